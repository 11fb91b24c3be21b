"""CRUD commands: ``create_Users``, ``read_Users`` and their kin, on the models of a store."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail

from zcomm.data.requests import ACTIONS, Command, parse_command
from zcomm.data.row_security import shows
from zcomm.errors import CommandError, PermissionDenied, UnknownCommand
from zcomm.interfaces import Client, Identity, Outcome, Permissions, Request

if TYPE_CHECKING:
    from zcomm.data.store import Done, Store

__all__ = ["CRUD_KEY", "Crud", "readable_by"]

#: What the key of a CRUD command looks like: the action, an underscore, the model.
CRUD_KEY = re.compile(f"({'|'.join(ACTIONS)})_(.+)", re.DOTALL)


class Crud:
    """Answers CRUD commands.

    :param store: has the models.
    :param permissions: who may do what with which of them.
    """

    def __init__(self, store: Store, permissions: Permissions):
        self._store = store
        self._permissions = permissions

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
        rows = self._permissions.rows(client.identity, command.model)
        done = self._store.execute(client.id, command, client.identity.name, rows)
        return done.addCallback(self._outcome, command)

    @staticmethod
    def _command(request: Request) -> Command:
        match = CRUD_KEY.fullmatch(request.key)
        if match is None:
            raise UnknownCommand("Unknown command")
        # A message without zHorizontal has the key in its place, which then says everything.
        horizontal = {} if request.horizontal == request.key else request.horizontal
        return parse_command(horizontal, match.group(1), match.group(2))

    def _permit(self, command: Command, identity: Identity) -> None:
        """Check the right to ``command`` first, so that nobody learns of models that are not theirs."""
        may = self._permissions.may
        actions = ("create", "update") if command.action == "upsert" else (command.action,)
        if not all(may(identity, action, command.model) for action in actions):
            raise PermissionDenied()
        # Asked here as well, where it is known which models may be named as the nearest.
        self._store.schema.find(command.model, lambda model: any(may(identity, action, model) for action in ACTIONS))

    def _outcome(self, done: Done, command: Command) -> Outcome:
        readable = readable_by(self._permissions, command.action, command.model, done.result)
        return Outcome(done.result, done.changed, readable)


def readable_by(permissions: Permissions, action: str, model: str, result: Any) -> Callable[[Identity], bool]:
    """Who may hear of the ``result`` of a change: whoever may read the model and, where it is a row, that row."""

    def readable(identity: Identity) -> bool:
        if not permissions.may(identity, "read", model):
            return False
        rows = permissions.rows(identity, model)
        # How many rows were changed or removed says nothing of what is in them.
        return not rows or action in ("update", "delete") or (isinstance(result, dict) and shows(result, rows))

    return readable
