"""Saying in the log that another server uses the same database, and that its clients and those here do not hear of each
other, for the two share no engine."""

from __future__ import annotations

import os
import socket
from secrets import token_hex
from typing import Any

from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.data.drivers.driver import Fault
from zcomm.data.neighbours import Strangers
from zcomm.data.store import Store
from zcomm.errors import Unavailable
from zcomm.interfaces import IEngine
from zcomm.text import some

__all__ = ["INTERVAL", "Neighbours", "own_name"]

#: Seconds between two looks.
INTERVAL = 60.0
#: Faults of a database that will do it another time.
_PASSING = frozenset(
    ("down", "crowded", "lost", "busy", "timeout", "stale", "migrated", "in_the_way", "given_up", "moved")
)
#: Characters of the name of another server that the log has.
_SHOWN = 100


def own_name() -> str:
    """The name by which people know this process."""
    return f"{socket.gethostname()} (pid {os.getpid()})"


class Neighbours:
    """The looks at who else uses the database.

    :param store: the database.
    :param engine: of this process.
    :param reactor: the reactor.
    """

    _log = Logger()

    def __init__(self, store: Store, engine: IEngine, reactor: Any):
        self._store = store
        self._engine = engine
        self._node = token_hex(8)
        self._strangers = Strangers()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self) -> None:
        """Look now, and once a minute."""
        self._looking.start(INTERVAL, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def _look(self) -> None:
        # One that takes long keeps none of the others from being made.
        self.look().addErrback(self._not_looked)

    @inlineCallbacks
    def look(self) -> Any:
        """Say that this server is there, look who else is, and tell the log of strangers that have come or left; a
        Deferred. It fails with :class:`~zcomm.errors.Unavailable` while the engine is away, and with a
        :class:`~zcomm.data.drivers.driver.Fault`."""
        engine = yield self._engine.identity()
        servers = yield self._store.say_there(self._node, engine, own_name())
        came, left = self._strangers.look(engine, servers)
        if came:
            self._log.warn(
                "{others} uses the same database without sharing an engine with this server: clients here are not told "
                "of what is changed and published there, nor those there of what is here (live queries see all "
                "changes); start both with the same --engine redis://...",
                others=_shown(came),
            )
        if left:
            self._log.info("{others} does not use the database by itself any more", others=_shown(left))

    def _not_looked(self, failure: Failure) -> None:
        self._log.debug("not looked who else uses the database: {error}", error=failure.getErrorMessage())
        fault = failure.value
        if not (failure.check(Unavailable) or (isinstance(fault, Fault) and fault.kind in _PASSING)):
            # A database that does not let it be done would say so each minute.
            self.stop()


def _shown(names: list[str]) -> str:
    return some([name[:_SHOWN] if name.isprintable() else repr(name[:_SHOWN]) for name in names])
