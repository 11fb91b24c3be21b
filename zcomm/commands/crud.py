"""CRUD commands: ``create_Users``, ``read_Users`` and their kin, on the models of a store."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Raw
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure

from zcomm.data.requests import Command, parse_command
from zcomm.data.row_security import told_apart
from zcomm.errors import CommandError, PermissionDenied, UnknownCommand
from zcomm.interfaces import (
    ACTIONS,
    RIGHTS,
    Audience,
    Client,
    FieldRights,
    Identity,
    Outcome,
    Permissions,
    Request,
    field_rights,
    owner_of,
    row_fields,
)
from zcomm.runtime.deferreds import Unfinished, later, then

if TYPE_CHECKING:
    from zcomm.data.store import Done, Store

__all__ = ["CRUD_KEY", "NEEDED", "StoreCrud", "audience_of", "is_count"]

#: The key of a CRUD command: the action, an underscore, the model.
CRUD_KEY = re.compile(f"({'|'.join(ACTIONS)})_(.+)", re.DOTALL)
#: The rights that each action takes, all of them. An upsert may make a row or change one.
NEEDED = {**{action: (action,) for action in RIGHTS["model"]}, "upsert": ("create", "update")}

#: The key of the number of rows, where the answer is no more than that.
_COUNTS = {"update": "updated", "delete": "deleted"}
#: Bytes of a value that is more than others are told.
_LONG = 64 * 1024
#: The types of values that rights to rows go by: those that are the same in Python and in JSON.
_PLAIN = frozenset({bool, float, int, str, type(None)})


class StoreCrud:
    """Answers CRUD commands.

    :param store: has the models.
    :param permissions: who may do what with which of them.
    :param is_heard: whether somebody else may hear of a change.
    """

    def __init__(self, store: Store, permissions: Permissions, is_heard: Callable[[], bool] = lambda: True):
        self._store = store
        self._permissions = permissions
        self._is_heard = is_heard

    def matches(self, key: str) -> bool:
        """Whether ``key`` is that of a CRUD command; the model it names may not exist."""
        return CRUD_KEY.fullmatch(key) is not None

    def respond(self, request: Request, client: Client) -> Deferred[Outcome]:
        """Carry out a command.

        :return: a Deferred of the outcome: the row for create and upsert, the rows for read,
            ``{"updated": n}`` and ``{"deleted": n}``. It fails with a
            :class:`~zcomm.errors.CommandError`.
        """
        try:
            command = self._command(request)
            self._permit(command, client.identity)
        except CommandError:
            return fail()
        identity, permissions = client.identity, self._permissions

        def reach(model: str, field: str) -> Mapping[str, Any] | None:
            if not permissions.allows(identity, "read", "model", model):
                return None
            if field in field_rights(permissions, identity, model).hide:
                # Which values are there is what it must not find out.
                return None
            return permissions.rows(identity, model) or {}

        rows, fields = permissions.rows(identity, command.model), field_rights(permissions, identity, command.model)
        tells = command.action in _COUNTS and self._is_heard()
        done = self._store.execute(
            owner_of(client),
            command,
            identity.name,
            rows,
            reach,
            fields=fields,
            as_json=True,
            tells=tells,
            judged=row_fields(permissions, command.model) if tells else None,
        )
        return then(done, self._outcome, command, fields).addErrback(self._unfinished, command)

    @staticmethod
    def _unfinished(failure: Failure, command: Command) -> Failure:
        """Say of a change that was cancelled that it may have been made, where to send it again would make it twice."""
        if failure.check(CancelledError) and command.action != "read" and command.idempotency_key is None:
            return Failure(Unfinished(later(failure)))
        return failure

    @staticmethod
    def _command(request: Request) -> Command:
        match = CRUD_KEY.fullmatch(request.key)
        if match is None:
            raise UnknownCommand("Unknown command")
        # A message without zHorizontal has the key in its place, which then says everything.
        horizontal = {} if request.horizontal == request.key else request.horizontal
        return parse_command(horizontal, match.group(1), match.group(2))

    def _permit(self, command: Command, identity: Identity) -> None:
        """Check the right to ``command`` before the model is looked up: clients learn only of models that they may use.

        :raises PermissionDenied: where there is none.
        """
        allows = self._permissions.allows
        if not all(allows(identity, right, "model", command.model) for right in NEEDED[command.action]):
            raise PermissionDenied()
        # Asked here as well, where it is known which models may be named as the nearest.
        self._store.schema.find(
            command.model, lambda model: any(allows(identity, right, "model", model) for right in RIGHTS["model"])
        )

    def _outcome(self, done: Done, command: Command, fields: FieldRights) -> Outcome:
        result = done.result
        if command.action in _COUNTS:
            return _counted(done, command)
        model = self._store.schema.models.get(command.model)
        told = told_apart(model, result) if model is not None and isinstance(result, dict) else result
        audience = audience_of(command.action, command.model, told)
        is_known, whole = result is not None, None
        if fields.hide and isinstance(result, dict):
            # Of the others each hears what it may see itself. The reply does not tell how large that is.
            is_known = not any(_is_long(value) for name, value in result.items() if name in fields.hide)
            whole = {"result": result}
            result = {name: value for name, value in result.items() if name not in fields.hide}
        return Outcome(result, done.changed, audience, repeated=done.repeated, is_known=is_known, told=whole)


def _is_long(value: Any) -> bool:
    """Whether a value of a row is too much to be told to others. Long ones are JSON already."""
    return type(value) is Raw and memoryview(value).nbytes > _LONG


def _counted(done: Done, command: Command) -> Outcome:
    """The outcome of an update or a delete: who may read some of its rows hears which they are."""
    result, told = done.result, done.told
    if told is None:
        # What has changed is to be read anew where nobody can tell.
        return Outcome(
            result,
            done.changed,
            Audience("model", command.model),
            repeated=done.repeated,
            is_known=not done.changed and result is not None,
        )
    audience = Audience("model", command.model, None, told.rows)
    return Outcome(result, done.changed, audience, told={"result": result, **told.keys})


def audience_of(action: str, model: str, result: Any) -> Audience:
    """The audience of ``result``: those who may read the model and, where it is a row, that row."""
    # How many rows were changed or removed says nothing of what is in them; a host may answer with more than that.
    if is_count(action, result):
        return Audience("model", model)
    # The row as clients see it, of which only plain values can be told apart. What is no single row has no value that
    # a right to some rows could ask for, and neither has one that JSON would not keep as it is.
    if isinstance(result, dict):
        row = {name: value for name, value in result.items() if type(value) in _PLAIN}
        try:
            return Audience("model", model, row)
        except ValueError:
            pass
    return Audience("model", model, {})


def is_count(action: str, result: Any) -> bool:
    """Whether ``result`` says no more than how many rows were changed or removed."""
    count = _COUNTS.get(action)
    if count is None:
        return False
    told = result[count] if type(result) is dict and count in result and len(result) == 1 else result
    return told is None or isinstance(told, int)
