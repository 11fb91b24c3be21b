"""Tells at once when somebody writes to a file, where the system does (inotify, Linux)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReactorFDSet
from twisted.python.filepath import FilePath

if sys.platform == "linux":
    from twisted.internet.inotify import IN_MODIFY, INotify, INotifyError

__all__ = ["Nudge"]


class Nudge:
    """Tells of the next write to a file. For the reactor's thread.

    It is a hint, and never all that one goes by: nothing is told where the system does not, or the file is another one.

    :param reactor: tells nothing where it cannot wait for files.
    :param told: called without arguments, once for each :meth:`arm`.
    """

    def __init__(self, reactor: Any, told: Callable[[], object]):
        self._reactor = reactor
        self._told = told
        self._watch: Any = None
        self._path = ""

    def arm(self, path: str) -> None:
        """Tell of the next write to the file at ``path``, and of one since the last that was told of."""
        if self._watch is None or not self._watch.connected or path != self._path:
            self.close()
            self._watch, self._path = self._watch_of(path), path
        if self._watch is not None:
            self._watch.startReading()

    def _watch_of(self, path: str) -> Any:
        if sys.platform == "linux" and path and IReactorFDSet.providedBy(self._reactor):
            # One user may have so many watches.
            with suppress(INotifyError, OSError):
                watch = INotify(self._reactor)
                try:
                    watch.watch(FilePath(path), IN_MODIFY, callbacks=[self._written])
                except BaseException:
                    watch.connectionLost(None)
                    raise
                return watch
        return None

    def _written(self, *_: object) -> None:
        if self._watch is not None:
            # Writes from here on are one event for the system, however many there are.
            self._watch.stopReading()
            self._told()

    def close(self) -> None:
        """Tell of nothing any more. Harmless where nothing was asked for."""
        watch, self._watch = self._watch, None
        if watch is not None and watch.connected:
            watch.stopReading()
            with suppress(OSError):
                watch.connectionLost(None)
