"""The reactor zComm runs best on: Twisted's asyncio reactor over uvloop, with a shorter way to a read.

``twistd zcomm`` takes it by itself where uvloop is installed and no other reactor was asked for;
``twistd --reactor=zcomm`` asks for it by name. Everything works on Twisted's other reactors as well.
"""
from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from twisted.internet._signals import _SIGCHLDWaker
from twisted.internet.asyncioreactor import AsyncioSelectorReactor

__all__ = ["UvloopReactor", "install", "install_if_free"]


class UvloopReactor(AsyncioSelectorReactor):
    """The asyncio reactor, less what it does around each read.

    Twisted sets up a logging context for every event of every connection. Ours log through their own
    objects, so the context tells nobody anything, at a cost of about three microseconds a read.
    """

    def startRunning(self, installSignalHandlers: bool = True) -> None:  # noqa: N803 (Twisted's name)
        """Start, and get the news of children that end back from uvloop, which takes all signals for itself."""
        super().startRunning(installSignalHandlers)
        if installSignalHandlers:
            self.callLater(0, self._take_signals_back)

    def _take_signals_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for reader in self._internalReaders:
                if isinstance(reader, _SIGCHLDWaker):
                    signal.set_wakeup_fd(reader.o, warn_on_full_buffer=False)

    def addReader(self, reader: Any) -> None:
        """Watch ``reader``; its ``doRead`` is called straight from the event loop."""
        if reader in self._readers:
            return
        fd = reader.fileno()
        try:
            self._asyncioEventloop.add_reader(fd, self._read, reader)
        except OSError:
            # Files that epoll refuses: the slow way knows what to do.
            super().addReader(reader)
        else:
            self._readers[reader] = fd

    def _read(self, reader: Any) -> None:
        try:
            why = reader.doRead()
        except Exception as error:
            if reader.fileno() != -1:
                self._log.failure("reading from {reader} failed", reader=reader)
            why = error
        if why:
            self._disconnectSelectable(reader, why, True)


def install() -> None:
    """Make it the reactor; called by ``twistd --reactor=zcomm``.

    :raises ImportError: when uvloop is not installed.
    """
    import uvloop
    from twisted.internet.main import installReactor

    installReactor(UvloopReactor(uvloop.new_event_loop()))


def install_if_free() -> bool:
    """Make it the reactor unless there is one already or uvloop is missing; returns whether it did."""
    if "twisted.internet.reactor" in sys.modules:
        return False
    try:
        install()
    except ImportError:
        return False
    return True
