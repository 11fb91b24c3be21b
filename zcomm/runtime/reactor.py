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
from math import inf
from time import perf_counter
from typing import Any

from twisted.internet._signals import _SIGCHLDWaker
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.base import DelayedCall
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.posixbase import PosixReactorBase

from zcomm.runtime.acceptor import Port

__all__ = ["UvloopReactor", "install", "install_if_free"]

#: Of 8 KiB each, as below TLS: more than a socket's receive buffer holds.
READS_BEHIND_AN_ERROR = 1024
#: How many uvloop watches by itself: fewer than the events that it takes at a time.
FEW = 512
#: How many of the others are asked for at a time, and seconds after which the rest of those waits for the next turn.
READS, TURN = 1024, 0.005


class UvloopReactor(AsyncioSelectorReactor):
    """The asyncio reactor, less what it does around each read.

    Twisted sets up a logging context for every event of every connection. Ours log through their own
    objects, so the context tells nobody anything, at a cost of about three microseconds a read.

    A socket with an error, which is what a reset by the peer is, uvloop reports once and then never again,
    also where what came before the reset is all that this once has read. So an epoll of our own watches for
    errors and nothing else; it is one more thing that uvloop waits for, and costs nothing until there is one.

    Where more than 1,024 always have something, uvloop reads on and on, 48 times as many, before it looks at anything
    else: timers, signals, results of threads. So of many it watches the first by itself, and an epoll of ours all
    others, who are one event to it, which ends by the clock.

    Twisted looks for its next timer with every new one. Nearly all of ours are limits of commands that are answered
    long before, so that the loop is asked for another wake-up only by one that is earlier than all there are.
    """

    #: The ports of TCP that it makes.
    port_class = Port

    def __init__(self, eventloop: Any):
        #: The time of the timer that the loop wakes up for.
        self._wakes_at = inf
        #: Who is read from, by file descriptor.
        self._reading: dict[int, Any] = {}
        self._errors: Any = None
        #: Those who are too many for uvloop, by file descriptor, and those of them that had something and no time was
        #: left for.
        self._crowd: dict[int, Any] = {}
        self._left: list[tuple[int, int]] = []
        self._epoll: Any = None
        super().__init__(eventloop)
        if hasattr(select, "epoll"):
            # kqueue knows no such state: there the end of the stream is an event of its own.
            self._errors = select.epoll()
            eventloop.add_reader(self._errors.fileno(), self._look_after)
            self._epoll = select.epoll()
            eventloop.add_reader(self._epoll.fileno(), self._read_crowd)

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

    def callLater(  # noqa: N802 (Twisted's name)
        self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object
    ) -> DelayedCall:
        """Call ``callable`` after ``delay`` seconds."""
        call = PosixReactorBase.callLater(self, delay, callable, *args, **kwargs)
        if call.time < self._wakes_at:
            self._reschedule()
        return call

    def _reschedule(self) -> None:
        super()._reschedule()
        timers = self._pendingTimedCalls
        self._wakes_at = timers[0].time if timers else inf

    def _onTimer(self) -> None:  # noqa: N802 (Twisted's name)
        # None is there now.
        self._wakes_at = inf
        super()._onTimer()

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
            if self._epoll is not None and len(self._readers) >= FEW:
                self._join_crowd(reader, fd)
                return
            self._asyncioEventloop.add_reader(fd, self._read, reader)
        except OSError:
            # Files that epoll refuses: the slow way knows what to do.
            super().addReader(reader)
        else:
            self._watch(reader, fd)

    def _join_crowd(self, reader: Any, fd: int) -> None:
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except FileExistsError:
            # Its number was somebody else's, who has not been forgotten yet.
            self._epoll.modify(fd, select.EPOLLIN)
        self._readers[reader] = fd
        self._crowd[fd] = reader

    def _read_crowd(self) -> None:
        """Read once from each of the crowd that has something, as far as there is time: the next turn goes on with the
        others."""
        ready, self._left = self._left or self._epoll.poll(0, READS), []
        crowd, until = self._crowd, perf_counter() + TURN
        for place, (fd, _) in enumerate(ready, 1):
            # What was read before may have ended others, and a number may be another's by now, who has nothing.
            reader = crowd.get(fd)
            if reader is not None:
                self._read(reader)
                if perf_counter() > until:
                    self._left = ready[place:]
                    return

    def _watch(self, reader: Any, fd: int) -> None:
        self._readers[reader] = fd
        self._reading[fd] = reader
        if self._errors is not None:
            try:
                self._errors.register(fd, select.EPOLLET)
            except FileExistsError:
                # It was read from before: an error that came meanwhile is told again.
                self._errors.modify(fd, select.EPOLLET)

    def removeReader(self, reader: Any) -> None:
        """No longer watch ``reader``."""
        fd = self._readers.get(reader, -1)
        if fd in self._crowd and self._crowd[fd] is reader:
            del self._readers[reader], self._crowd[fd]
            # One that is closed is watched no more.
            with suppress(OSError, ValueError):
                self._epoll.unregister(fd)
            return
        super().removeReader(reader)
        if self._reading.get(fd) is reader:
            del self._reading[fd]

    def _look_after(self) -> None:
        """Some descriptors have an error; whoever is still read from shall find it."""
        for fd, _ in self._errors.poll(0):
            self._read_on(fd, self._reading.get(fd), READS_BEHIND_AN_ERROR)

    def _read_on(self, fd: int, reader: Any, times: int) -> None:
        """Read what came before the error, one read a turn, and at last the error itself, which ends it."""
        if reader is None or self._reading.get(fd) is not reader:
            return
        self._read(reader)
        if times:
            self._asyncioEventloop.call_soon(self._read_on, fd, reader, times - 1)

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
