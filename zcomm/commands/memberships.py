"""Whose the rows are that a broadcast tells of, where rights to them go by a membership.

The database is asked once for each broadcast, however many hear it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList

from zcomm.data.requests import Command
from zcomm.engines.parts import Members
from zcomm.interfaces import Among, Broadcast, owner_of

if TYPE_CHECKING:
    from zcomm.data.store import Done, Store

__all__ = ["Memberships"]

#: Members of what one broadcast tells of; where there are more, nobody is told of rows by a membership.
MAX_MEMBERS = 10_000


class Memberships:
    """Looks up memberships.

    :param store: has the models.
    """

    def __init__(self, store: Store):
        self._store = store

    def __call__(self, message: Broadcast, wanted: Mapping[str, Collection[Among]]) -> Deferred[Members]:
        """A Deferred of whose the values are that ``message`` tells of; it does not fail.

        :param wanted: by field, the memberships that rights go by.
        """
        shapes = {
            (among.model, among.field, tuple(name for name, _ in among.where)): field
            for field, memberships in wanted.items()
            for among in memberships
        }
        owner = None if message.sender is None else owner_of(message.sender)
        asked = [self._find(owner, shape, _values(message, field)) for shape, field in shapes.items()]
        return DeferredList(asked).addCallback(
            lambda found: dict(zip(shapes, (each for _, each in found), strict=True))
        )

    def _find(
        self, owner: Any, shape: tuple[str, str, tuple[str, ...]], values: Collection[Any]
    ) -> Deferred[Mapping[Any, Any] | None]:
        model, field, names = shape
        where = {f"{field}__in": list(values)}
        command = Command(
            action="read", model=model, where=where, fields=list(dict.fromkeys((field, *names))), limit=MAX_MEMBERS
        )

        def found(done: Done) -> dict[Any, set[tuple[Any, ...]]] | None:
            if len(done.result) == MAX_MEMBERS:
                return None
            members: dict[Any, set[tuple[Any, ...]]] = {}
            for row in done.result:
                members.setdefault(row[field], set()).add(tuple(row[name] for name in names))
            return members

        return self._store.execute(owner, command).addCallbacks(found, lambda _: None)


def _values(message: Broadcast, field: str) -> list[Any]:
    """The values that the rows of a broadcast have in ``field``, as far as they are known, each once."""
    audience = message.audience
    if audience.row is not None:
        return [audience.row[field]] if audience.row.get(field) is not None else []
    rows = audience.rows
    if rows is None or field not in rows.fields:
        return []
    column = rows.fields.index(field)
    return list({row[column]: None for row in rows.values if row[column] is not None})
