"""The acceptor of connections: few in a turn, so that a crowd does not hold up those who are in, at little cost."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IListeningPort
from twisted.logger import LogEvent, Logger

from zcomm.runtime.logthrottle import Throttle

__all__ = ["ACCEPTS", "UNSENT", "Port", "adopt", "lend", "pause_while", "restrain"]

#: Connections accepted in one turn of the reactor at most; the rest wait in the backlog for the next turn.
ACCEPTS = 8
#: Bytes that the system keeps for a client and has not sent yet. Left to itself it takes megabytes from whoever does
#: not read, and is busy for a millisecond when it throws them away.
UNSENT = 128 * 1024
#: How much more is tried after a turn that brought as many as were tried for. A try that finds nobody costs as
#: much as a tenth of a handshake, so where clients come one by one, few are made.
GROWTH = 1.25
#: Seconds without accepting anybody where that has failed.
PAUSE = 0.1
#: Seconds between two lines in the log about that.
COMPLAINT_INTERVAL = 60.0


def restrain(listening: Any) -> None:
    """Bound what a TCP port takes: new connections in one turn, and what the system keeps for each; and what it does
    where no descriptor is left for another.

    A port of Twisted's accepts all who wait, which in a storm of visitors is hundreds. Without a descriptor it tries
    again in each turn, and tells the log of each connection.
    """
    if not isinstance(listening, tcp.Port):
        return
    port: Any = listening
    accept = port.doRead
    failures = _Failures(port._logger)
    observer: Any = failures.note
    port._logger = Logger(port._logger.namespace, observer=observer)

    def accept_some() -> Any:
        port.numberAccepts = ACCEPTS
        why = accept()
        if failures.taken():
            port.stopReading()
            port.reactor.callLater(PAUSE, _read_on, port)
        return why

    vars(port)["doRead"] = accept_some
    if port.addressFamily in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Accepted sockets inherit it.
        port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


def adopt(listening: socket.socket, factory: Any, reactor: Any) -> IListeningPort:
    """Accept on a socket that other processes accept on as well: the end of this port is not that of the socket, and
    the path of a Unix socket is left to whoever made it.

    :param listening: a socket that listens; it is copied.
    """
    port: Any
    if listening.family == socket.AF_UNIX:
        port = _SharedUnixPort._fromListeningDescriptor(reactor, listening.fileno(), factory)
    else:
        # The kind of port that the reactor makes.
        kind = getattr(reactor, "port_class", tcp.Port)
        port = kind._fromListeningDescriptor(reactor, listening.fileno(), listening.family, factory)
    port.startListening()
    return port  # type: ignore[no-any-return]


def lend(listening: Any) -> socket.socket:
    """The socket of a port, for other processes to accept on: the port itself accepts nobody from now on, and its end
    leaves theirs as they are.

    :raises TypeError: for a port that is none of TCP or of a Unix socket.
    """
    if not isinstance(listening, tcp.Port):
        raise TypeError(f"{type(listening).__name__} has no socket that several processes could accept on")
    listening.stopReading()
    listening._shouldShutdown = False
    lent: socket.socket = listening.socket.dup()
    return lent


def pause_while(listening: Any, is_ahead: Callable[[], bool], pause: float) -> None:
    """Have a port accept nobody for ``pause`` seconds whenever ``is_ahead()`` says so, and then whoever is there."""
    if not isinstance(listening, tcp.Port):
        return
    port: Any = listening
    accept = port.doRead
    #: Whether it has paused just now.
    paused = [False]

    def accept_or_wait() -> Any:
        if not paused[0] and is_ahead():
            paused[0] = True
            port.stopReading()
            port.reactor.callLater(pause, _read_on, port)
            return None
        paused[0] = False
        return accept()

    vars(port)["doRead"] = accept_or_wait


def _read_on(port: Any) -> None:
    if port.connected and not port.disconnecting:
        port.startReading()


class _Failures:
    """The connections that a port could not accept, of which the log is told once in a while.

    :param log: the port's own.
    """

    def __init__(self, log: Logger):
        self._log = log
        self._complaints = Throttle(time.monotonic, COMPLAINT_INTERVAL)
        self._met = False

    def note(self, event: LogEvent) -> None:
        """Take what a port says; an observer."""
        said = str(event.get("log_format", ""))
        error = event.get("acceptError", "EMFILE")
        if not said.startswith(("EMFILE ", "Re-reserving ", "Could not accept ")) or error == "ECONNABORTED":
            self._log.observer(event)
            return
        self._met = True
        self._complaints.log(
            self._log.warn,
            error,
            "No new connection can be accepted now ({error}): no files are left; raise the limit of open files "
            "(ulimit -n, LimitNOFILE)"
            if error in ("EMFILE", "ENFILE")
            else "No new connection can be accepted now ({error})",
            error=error,
        )

    def taken(self) -> bool:
        """Whether there was a failure since the last time."""
        met, self._met = self._met, False
        return met


class _SharedUnixPort(unix.Port):
    """A Unix socket that another process has made, and will remove."""

    _shouldShutdown = False  # noqa: N815 (the name is Twisted's)

    def startListening(self) -> None:
        """Accept; Twisted's own would give its path another mode, and the socket another backlog."""
        port: Any = self
        port.factory.doStart()
        port.socket, port._preexistingSocket = port._preexistingSocket, None
        port.fileno = port.socket.fileno
        self.connected = True
        self.numberAccepts = ACCEPTS
        self.startReading()

    def connectionLost(self, reason: Any) -> None:
        """Forget the socket, and leave its path."""
        tcp.Port.connectionLost(self, reason)


class Port(tcp.Port):
    """Twisted's port, which sets up loggers each time it is asked, with a short way for IPv4 while nothing is wrong."""

    factory: Any
    #: How many are tried for in this turn.
    _tries = 1.0

    _log = Logger()

    def doRead(self) -> None:
        """Accept who is there; called by the reactor."""
        if self.addressFamily != socket.AF_INET:
            super().doRead()
            return
        for accepted in range(int(self._tries)):
            try:
                connected, address = self.socket.accept()
            except BlockingIOError:
                self._tries = max(1, accepted)
                return
            except OSError:
                # Out of descriptors, or worse: Twisted knows what to do.
                super().doRead()
                return
            try:
                self._take(connected, address)
            except Exception:
                self._log.failure("a connection could not be taken")
        self._tries = min(ACCEPTS, self._tries * GROWTH)

    def _take(self, connected: socket.socket, address: tuple[str, int]) -> None:
        protocol = None
        try:
            protocol = self.factory.buildProtocol(self._buildAddr(address))
        finally:
            if protocol is None:
                connected.close()
        if protocol is None:
            return
        number = self.sessionno
        self.sessionno = number + 1
        protocol.makeConnection(self.transport(connected, protocol, address, self, number, self.reactor))
