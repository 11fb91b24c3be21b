"""The reactor zComm runs best on: Twisted's asyncio reactor over uvloop, with a shorter way to a read.

``twistd zcomm`` takes it by itself where uvloop is installed and no other reactor was asked for;
``twistd --reactor=zcomm`` asks for it by name. Everything works on Twisted's other reactors as well.
"""

from __future__ import annotations

import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet._signals import _SIGCHLDWaker
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import CONNECTION_LOST

from zcomm.runtime.acceptor import Port

__all__ = ["UvloopReactor", "install", "install_if_free"]

#: How many are read from before others have their turn: timers, signals, writes, results of threads.
READS = 256


class UvloopReactor(AsyncioSelectorReactor):
    """The asyncio reactor, less what it does around each read.

    Twisted sets up a logging context for every event of every connection. Ours log through their own
    objects, so the context tells nobody anything, at a cost of about three microseconds a read.

    All that is read from is in an epoll of our own, which is one event to uvloop. Uvloop itself reads on, up to 48
    times 1,024 events, before it looks at anything else where more than that many always have something. It takes
    Python's lock for each event anew, which a thread that computes has then. And it reports a socket with an error once
    and then never again, also where what came before a reset is all that this once has read.
    """

    def __init__(self, eventloop: Any):
        #: Who is read from, by file descriptor.
        self._reading: dict[int, Any] = {}
        # Elsewhere uvloop watches each by itself; kqueue knows no such state, the end of a stream is an event there.
        self._epoll: Any = select.epoll() if hasattr(select, "epoll") else None
        super().__init__(eventloop)
        if self._epoll is not None:
            eventloop.add_reader(self._epoll.fileno(), self._read_all)

    def startRunning(self, installSignalHandlers: bool = True) -> None:
        """Start, and get the news of children that end back from uvloop, which takes all signals for itself."""
        super().startRunning(installSignalHandlers)
        if installSignalHandlers:
            self.callLater(0, self._take_signals_back)

    def _take_signals_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for reader in self._internalReaders:
                if isinstance(reader, _SIGCHLDWaker):
                    signal.set_wakeup_fd(reader.o, warn_on_full_buffer=False)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        """Listen, with a port of our own."""
        listening = Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def addReader(self, reader: Any) -> None:
        """Watch ``reader``; its ``doRead`` is called straight from the event loop."""
        if reader in self._readers:
            return
        fd = reader.fileno()
        try:
            if self._epoll is None:
                self._asyncioEventloop.add_reader(fd, self._read, reader)
            else:
                self._watch(fd)
        except OSError:
            # Files that epoll refuses: the slow way knows what to do.
            super().addReader(reader)
        else:
            self._readers[reader] = fd
            self._reading[fd] = reader

    def _watch(self, fd: int) -> None:
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except FileExistsError:
            # Its number was somebody else's, who has not been forgotten yet.
            self._epoll.modify(fd, select.EPOLLIN)

    def removeReader(self, reader: Any) -> None:
        """No longer watch ``reader``."""
        fd = self._readers.get(reader, -1)
        is_current = self._reading.get(fd) is reader
        if is_current:
            del self._reading[fd]
        if self._epoll is None or fd < 0:
            super().removeReader(reader)
            return
        del self._readers[reader]
        if is_current:
            # One that is closed is watched no more.
            with suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def _read_all(self) -> None:
        """Read once from each that has something."""
        reading = self._reading
        for fd, _ in self._epoll.poll(0, READS):
            # What was read before may have ended others.
            reader = reading.get(fd)
            if reader is not None:
                self._read(reader)

    def addWriter(self, writer: Any) -> None:
        """Watch ``writer``. A descriptor that uvloop has given up since the last read is a lost connection."""
        try:
            super().addWriter(writer)
        except RuntimeError:
            self.callLater(0, self._disconnectSelectable, writer, CONNECTION_LOST, False)

    def callFromThread(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Call ``f`` on this reactor's thread: in its next turn, where Twisted takes two."""
        self._asyncioEventloop.call_soon_threadsafe(self._call, partial(f, *args, **kwargs))

    def at_end_of_turn(self, function: Callable[[], None]) -> None:
        """Call ``function`` once what is ready now has been read; as ``callLater(0, …)``, at a tenth of the cost."""
        self._asyncioEventloop.call_soon(self._call, function)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:
            self._log.failure("what was left for a later turn failed")

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
