"""The log of a database of which nothing is logged: of changes the store itself has to tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from zcomm.data.drivers.driver import Connection, Fault
from zcomm.data.models import Model
from zcomm.live.log import Changes, KeyForm

__all__ = ["OwnLog"]


class OwnLog:
    """Reads snapshots, and knows of no changes (see :class:`zcomm.live.log.ChangeLog`).

    :param connection: lends a connection for the length of a step.
    :param key_form: the keys of a model, as the database has them.
    """

    def __init__(
        self,
        connection: Callable[[], AbstractContextManager[Connection]],
        key_form: Callable[[Model], KeyForm | str],
    ):
        self._lend = connection
        self.key_form = key_form
        self._lent: AbstractContextManager[Connection] | None = None
        self._connection: Connection | None = None

    def prepare(self, models: Sequence[Model]) -> Mapping[str, str]:
        """Watch none of them."""
        return {model.name: "its database has no log of changes" for model in models}

    def watch(self) -> None:
        """Have nothing logged."""

    def begin(self, models: Collection[str]) -> Changes:
        """Begin a snapshot; no changes are known of."""
        self.end()
        lent = self._lend()
        self._connection = lent.__enter__()
        self._lent = lent
        self._connection.begin_snapshot()
        return Changes({})

    def run(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Read something in it."""
        if self._connection is None:
            raise Fault("down", (), "no step has begun")
        return self._connection.run(sql, parameters, True)[0]

    def end(self) -> None:
        """Let go of the connection."""
        lent, self._lent = self._lent, None
        connection, self._connection = self._connection, None
        if lent is not None and connection is not None:
            connection.rollback()
            lent.__exit__(None, None, None)

    def changed(self) -> bool:
        """Nothing is known."""
        return False

    def tend(self) -> Mapping[str, str]:
        """Nothing becomes otherwise."""
        return {}

    def rest(self) -> None:
        """Nothing is logged."""

    def close(self) -> None:
        """Let go of the connection."""
        self.end()
