"""The parts of a broadcast: of the rows that it tells of, each client hears those that it may read, and of each row the
fields that it may.

They are cut out of the message itself, which is written once, and once again for each set of rights that see less of
it: all who see the same are sent the same bytes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from zcomm.interfaces import Among, Audience, Broadcast, Identity, Permissions, Rows, exactly, field_rights

__all__ = ["MANY", "WHOLE", "Members", "Part", "Parts"]

#: By the model and the field that memberships have the values of, and the fields that say whose they are: of each value
#: that a broadcast tells of, whose it is. ``None`` where nobody knows.
Members = Mapping[tuple[str, str, tuple[str, ...]], Mapping[Any, Container[tuple[Any, ...]]] | None]

_write = msgspec.json.encode
_read_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_ids = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_rows = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode


class _Change(msgspec.Struct):
    id: msgspec.Raw
    values: dict[str, msgspec.Raw]


_read_changes = msgspec.json.Decoder(list[_Change]).decode


class Part(NamedTuple):
    """The part of a broadcast that a client hears.

    :ivar places: of the rows that it hears of; ``None`` for all.
    :ivar hidden: the fields that it does not.
    :ivar is_known: whether that can be told; where it cannot, it is to read anew.
    """

    places: tuple[int, ...] | None = None
    hidden: frozenset[str] = frozenset()
    is_known: bool = True


#: All of it; and that there is something to be read anew.
WHOLE, MANY = Part(), Part(is_known=False)


class Parts:
    """The parts of one broadcast of rows.

    :param message: whose audience has a row, or some.
    :param members: the memberships that rights go by, where they were looked up.
    """

    def __init__(self, message: Broadcast, members: Members | None = None):
        self._message = message
        self._members = members
        self._made = {WHOLE: message}
        #: What was found out, within the turn in which the message is told.
        self._known: dict[Identity, Part | None] = {}
        self._indexes: dict[tuple[str, ...], dict[tuple[Any, ...], list[int]]] = {}
        self._keys: dict[str, msgspec.Raw] = {}
        self._changes: list[_Change] = []
        self._ids: list[msgspec.Raw] = []

    def admits(self, identity: Identity, permissions: Permissions) -> bool:
        """Whether ``identity`` hears any of it."""
        audience = self._message.audience
        if audience.rows is None and self._members is None:
            return audience.admits(identity, permissions)
        return self.of(identity, permissions) is not None

    def of(self, identity: Identity, permissions: Permissions) -> Part | None:
        """The part that ``identity`` hears; ``None`` where it hears nothing. ``permissions`` are asked once for several
        rows."""
        message, audience = self._message, self._message.audience
        if audience.rows is None:
            verdict = self._admits(audience, identity, permissions)
            if verdict is None:
                return MANY
            if not verdict:
                return None
            hidden = field_rights(permissions, identity, audience.name).hide
            return Part(None, hidden) if hidden and not message.is_notice else WHOLE
        if identity in self._known:
            return self._known[identity]
        self._known[identity] = part = self._of(audience.name, audience.rows, identity, permissions)
        return part

    def _admits(self, audience: Audience, identity: Identity, permissions: Permissions) -> bool | None:
        """Whether a row is one of those in reach; ``None`` where nobody knows."""
        granted = self._granted(identity, permissions, audience.name) if self._members is not None else {}
        memberships = [name for name, value in granted.items() if isinstance(value, (Among, _Mine))]
        if not memberships:
            return audience.admits(identity, permissions)
        if not permissions.allows(identity, "read", "model", audience.name):
            return False
        row = audience.row or {}
        if any(isinstance(granted[name], Among) for name in memberships):
            return None
        if any(name not in row or row[name] not in granted[name] for name in memberships):
            return False
        rest = {name: value for name, value in granted.items() if name not in memberships}
        return all(name in row and exactly([row[name]]) == exactly([value]) for name, value in rest.items())

    def _granted(self, identity: Identity, permissions: Permissions, model: str) -> Mapping[str, Any]:
        """The rows in reach by the values of their fields; by those that the identity has of the ones that are told of,
        where rights go by a membership and that is known."""
        granted = permissions.rows(identity, model) or {}
        if self._members is None or not any(isinstance(value, Among) for value in granted.values()):
            return granted
        return {name: self._mine(value) if isinstance(value, Among) else value for name, value in granted.items()}

    def _mine(self, among: Among) -> Among | _Mine:
        names = tuple(name for name, _ in among.where)
        known = None if self._members is None else self._members.get((among.model, among.field, names))
        if known is None:
            return among
        own = tuple(value for _, value in among.where)
        return _Mine(value for value, whose in known.items() if own in whose)

    def _of(self, model: str, rows: Rows, identity: Identity, permissions: Permissions) -> Part | None:
        if not permissions.allows(identity, "read", "model", model):
            return None
        granted = self._granted(identity, permissions, model)
        places = None
        if granted and self._members is not None and any(isinstance(each, (Among, _Mine)) for each in granted.values()):
            if not rows.knows(granted) or any(isinstance(each, Among) for each in granted.values()):
                return MANY
            places = _reached(granted, rows)
            if not places:
                return None
            if len(places) == len(rows.values):
                places = None
        elif granted:
            if not rows.knows(granted):
                return MANY
            names = tuple(granted)
            index = self._indexes.get(names)
            if index is None:
                index = self._indexes[names] = rows.index(names)
            reached = rows.reached(granted, index)
            if not reached:
                return None
            if len(reached) < len(rows.values):
                places = tuple(reached)
        hidden = field_rights(permissions, identity, model).hide
        if hidden:
            if not hidden.isdisjoint(rows.key):
                return MANY
            hidden = hidden.intersection(rows.changed)
            # A row that came into reach is told of, whatever else may be seen of it.
            if rows.changed and len(hidden) == len(rows.changed) and not any(name in hidden for name in granted or ()):
                return None
        return WHOLE if places is None and not hidden else Part(places, hidden)

    def message(self, part: Part) -> Broadcast:
        """The message that tells ``part``."""
        made = self._made.get(part)
        if made is None:
            whole = self._message
            payload = self._payload(part) if part.is_known else None
            is_notice = payload is None
            if payload is None:
                payload = _write({"zKey": self._parsed()["zKey"], "many": True})
            made = Broadcast(payload, whole.audience, whole.sender, whole.is_result, is_notice)
            self._made[part] = made
        return made

    def _parsed(self) -> dict[str, msgspec.Raw]:
        if not self._keys:
            self._keys = _read_keys(self._message.payload)
            if self._message.audience.rows is not None:
                self._changes = _read_changes(self._keys["changes"]) if "changes" in self._keys else []
                self._ids = _read_ids(self._keys["ids"]) if "ids" in self._keys else []
        return self._keys

    def _payload(self, part: Part) -> bytes | None:
        """The payload of ``part``; ``None`` of a result that has none."""
        keys = self._parsed()
        if self._message.audience.rows is None:
            result = _without(keys["result"], part.hidden)
            return None if result is None else _write({**keys, "result": result})
        if self._changes:
            changes = _at(self._changes, part.places)
            told = [{"id": each.id, "values": _seen(each.values, part.hidden)} for each in changes]
            return _write({**keys, "result": {"updated": len(told)}, "changes": told})
        ids = _at(self._ids, part.places)
        return _write({**keys, "result": {"deleted": len(ids)}, "ids": ids})


class _Mine(frozenset[Any]):
    """The values by which rows are in reach, of those that a broadcast tells of."""


def _reached(granted: Mapping[str, Any], rows: Rows) -> tuple[int, ...]:
    """The places of the rows in reach, where that goes by memberships."""
    columns = [(rows.fields.index(name), value) for name, value in granted.items()]

    def is_reached(row: tuple[Any, ...]) -> bool:
        return all(
            row[column] in value if isinstance(value, _Mine) else exactly([row[column]]) == exactly([value])
            for column, value in columns
        )

    return tuple(place for place, row in enumerate(rows.values) if is_reached(row))


def _at(items: Sequence[Any], places: tuple[int, ...] | None) -> Sequence[Any]:
    return items if places is None else [items[place] for place in places]


def _seen(row: dict[str, msgspec.Raw], hidden: frozenset[str]) -> dict[str, msgspec.Raw]:
    return {name: value for name, value in row.items() if name not in hidden}


def _without(result: msgspec.Raw, hidden: frozenset[str]) -> Any:
    """A row, or rows, without the fields that are hidden; ``None`` for what is neither."""
    try:
        if bytes(memoryview(result)[:1]) == b"{":
            return _seen(_read_keys(result), hidden)
        return [_seen(row, hidden) for row in _read_rows(result)]
    except msgspec.DecodeError:
        return None
