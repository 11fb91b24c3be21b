"""What waits to be sent to one client, bounded.

The operating system takes what it can at once. What it does not take goes to the transport, and when
the transport says it has enough, further frames wait here by reference: a broadcast to a hundred slow
clients is still one copy of each frame. Past the limit the client is given up, because a queue that
only grows is memory lost to somebody who does not listen.
"""
from __future__ import annotations

from collections import deque
from typing import Any, Callable

from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection as TCPConnection
from zope.interface import implementer

__all__ = ["Outgoing"]


@implementer(IPushProducer)
class Outgoing:
    """The outgoing side of one connection; registered with its transport as the streaming producer.

    :param transport: the Twisted transport, TCP or TLS.
    :param limit: bytes that may wait before ``on_overflow`` is called. One message larger than that
        may still be sent while nothing else waits.
    :param on_blocked: called when the transport has taken enough for now.
    :param on_drained: called when everything that waited has been handed over.
    :param on_overflow: called when the client is given up.
    :param own_frames: whether what is sent must be made for this client alone, because of what it negotiated.
    """

    __slots__ = (
        "_given_up", "_limit", "_number", "_on_blocked", "_on_drained", "_on_overflow", "_queue", "_send", "_transport", "blocked", "fd",
        "queued",
    )

    def __init__(
        self,
        transport: Any,
        limit: int,
        on_blocked: Callable[[], None],
        on_drained: Callable[[], None],
        on_overflow: Callable[[], None],
        own_frames: bool = False,
    ):
        self._transport = transport
        self._limit = limit
        self._on_blocked = on_blocked
        self._on_drained = on_drained
        self._on_overflow = on_overflow
        self._queue: deque[bytes] | None = None
        self._given_up = False
        #: Bytes that wait here, beyond what the transport has taken.
        self.queued = 0
        #: Whether the transport has asked to wait.
        self.blocked = False
        plain = isinstance(transport, TCPConnection) and not getattr(transport, "TLS", False)
        self._send = transport.getHandle().send if plain else None
        self._number = transport.fileno() if plain and not own_frames else -1
        #: The socket, where nothing waits before it and frames made for many may be written to it by a
        #: system call; otherwise -1. A plain attribute, because a broadcast asks each of thousands.
        self.fd = -1
        transport.registerProducer(self, True)

    def write(self, data: bytes) -> None:
        """Send ``data``, now or as soon as the client takes it."""
        if self.blocked:
            self._hold(data)
            return
        send = self._send
        transport = self._transport
        if send is not None and not transport.dataBuffer and not transport._tempDataBuffer:
            # Nothing waits: one system call instead of a trip through the reactor. What it does not
            # take, and every error, is the transport's to deal with.
            if not transport.connected or transport.disconnecting:
                return
            try:
                sent = send(data)
            except OSError:
                sent = 0
            if sent == len(data):
                self.fd = self._number
                return
            data = data[sent:]
        # The transport does not tell when it is empty again; the next write finds out.
        self.fd = -1
        transport.write(data)

    def _hold(self, data: bytes) -> None:
        if self._given_up:
            # The close is on its way.
            return
        if self._queue is None:
            self._queue = deque()
        if self.queued and self.queued + len(data) > self._limit:
            self._given_up = True
            self.discard()
            self._on_overflow()
            return
        self._queue.append(data)
        self.queued += len(data)

    def discard(self) -> None:
        """Forget what waits."""
        self._queue = None
        self.queued = 0

    def release(self) -> None:
        """The connection is gone: forget what waits and whom to tell."""
        self.discard()
        self._send = None
        self.fd = self._number = -1
        self._on_blocked = self._on_drained = self._on_overflow = _nobody

    def outstanding(self) -> int | None:
        """Bytes the transport still holds; ``None`` where it does not tell."""
        transport = self._transport
        if self._send is None:
            transport = getattr(transport, "transport", transport)
        if not isinstance(transport, TCPConnection):
            return None
        return len(transport.dataBuffer) - transport.offset + transport._tempDataLen

    def pauseProducing(self) -> None:
        """The transport holds enough; called by it."""
        self.blocked = True
        self.fd = -1
        self._on_blocked()

    def resumeProducing(self) -> None:
        """The transport is empty; called by it."""
        self.blocked = False
        while self._queue and not self.blocked:
            data = self._queue.popleft()
            self.queued -= len(data)
            self._transport.write(data)
        if not self.blocked:
            self._queue = None
            self._on_drained()

    def stopProducing(self) -> None:
        """The connection is gone; called by the transport."""
        self.discard()


def _nobody() -> None:
    pass
