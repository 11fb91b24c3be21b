"""The acceptor of connections: few in a turn, so that a crowd does not hold up those who are in, at little cost."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import tcp
from twisted.logger import Logger

__all__ = ["ACCEPTS", "UNSENT", "Port", "restrain"]

#: Connections accepted in one turn of the reactor at most; the rest wait in the backlog for the next turn.
ACCEPTS = 8
#: Bytes that the system keeps for a client and has not sent yet. Left to itself it takes megabytes from whoever does
#: not read, and is busy for a millisecond when it throws them away.
UNSENT = 128 * 1024
#: How much more is tried after a turn that brought as many as were tried for. A try that finds nobody costs as
#: much as a tenth of a handshake, so where clients come one by one, few are made.
GROWTH = 1.25


def restrain(port: Any) -> None:
    """Bound what a TCP port takes: new connections in one turn, and what the system keeps for each.

    A port of Twisted's accepts all who wait, which in a storm of visitors is hundreds.
    """
    if not isinstance(port, tcp.Port):
        return
    accept = port.doRead

    def accept_some() -> Any:
        port.numberAccepts = ACCEPTS
        return accept()

    vars(port)["doRead"] = accept_some
    if port.addressFamily in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # Accepted sockets inherit it.
        port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)


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
