"""The progress notice: one line of what a command waits for, once it has waited for a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from twisted.internet.task import LoopingCall

__all__ = ["ProgressNotice"]

#: Seconds after which a command that still waits says what it waits for, and how often it looks.
NOTICE_AFTER, LOOK_EVERY = 1.0, 0.2


class ProgressNotice:
    """Writes the progress of services on standard error while a command waits, from :data:`NOTICE_AFTER` seconds on.

    On a terminal one line is written over again; elsewhere each new thing gets a line.

    :param manager: a :class:`~zcomm.services.manager.ServiceManager`.
    """

    def __init__(self, manager: Any, names: Sequence[str], reactor: Any, out: TextIO):
        self._manager, self._names, self._out = manager, names, out
        self._clock = reactor.seconds
        self._begun = reactor.seconds()
        self._last = ""
        self._call = LoopingCall(self._look)
        self._call.clock = reactor
        self._call.start(LOOK_EVERY, now=False)

    def _look(self) -> None:
        waited = self._clock() - self._begun
        if waited < NOTICE_AFTER:
            return
        now = {name: self._manager.get(name).progress for name in self._names}
        doing = "; ".join(f"{name}: {text}" for name, text in now.items() if text)
        if not doing:
            return
        if self._out.isatty():
            self._out.write(f"\r\x1b[K{doing} ({waited:.0f} s)")
            self._out.flush()
            self._last = doing
        elif doing != self._last:
            self._out.write(f"{doing}\n")
            self._out.flush()
            self._last = doing

    def stop(self) -> None:
        """The wait is over; leaves a clean line."""
        if self._call.running:
            self._call.stop()
        if self._last and self._out.isatty():
            self._out.write("\r\x1b[K")
            self._out.flush()
