"""Exchanges of HTTP that outlast the head of their request: a response that leaves piece by piece, as it is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zcomm.bifrost.session import Session
from zcomm.wire.closecodes import Ending
from zcomm.wire.outgoing import Outgoing

if TYPE_CHECKING:
    from zcomm.bifrost.protocol import BifrostProtocol

__all__ = ["Download", "Sender"]

#: Bytes that are sent at once.
PIECE = 128 * 1024


class Sender:
    """Sends one response, at the pace of its client; the rules for who takes too little are those of a WebSocket.

    A subclass says what to send, in :meth:`drained`, and calls :meth:`end` behind the last of it.
    """

    _channel: BifrostProtocol | None = None
    _outgoing: Outgoing
    _is_ended = False

    def begin(self, channel: BifrostProtocol, early: bytes) -> None:
        """Take the connection over."""
        factory = channel.factory
        self._channel = channel
        self._session = Session(factory.limits, factory.clock.seconds)
        self._outgoing = Outgoing(self, channel.transport, self._session, factory.clock, factory.batch)

    def receive(self, data: bytes) -> None:
        """Take no notice of what still comes: there is one request in a connection."""

    @property
    def is_closing(self) -> bool:
        """Whether all is said, and only has to be taken."""
        return self._is_ended

    def lost(self) -> None:
        """Forget the connection, which is gone."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.factory.timeouts.clear(self)
            self._outgoing.release()

    def drained(self) -> None:
        """Everything has been taken: send more, or end."""
        raise NotImplementedError

    def end(self) -> None:
        """Hang up when the last byte has left."""
        channel = self._channel
        if channel is None or self._is_ended:
            return
        self._is_ended = True
        if not self._outgoing.blocked:
            self._hang_up(channel)

    def _hang_up(self, channel: BifrostProtocol) -> None:
        factory = channel.factory
        factory.timeouts.set(self, factory.limits.handshake_timeout, self._time_is_up)
        channel.transport.unregisterProducer()
        channel.transport.loseConnection()

    def _time_is_up(self) -> None:
        if self._channel is not None:
            self._channel.drop("http_stalled")

    # -- for what sends

    def output_blocked(self) -> None:
        """The transport has taken enough for now; called by what sends."""

    def output_drained(self) -> None:
        """The transport has room again; called by what sends."""
        if self._channel is None:
            return
        if self._is_ended:
            self._hang_up(self._channel)
        else:
            self.drained()

    def obey(self, ending: Ending) -> None:
        """Cut off who takes too little; called by what sends."""
        if self._channel is not None:
            self._channel.drop(ending.cause)


class Download(Sender):
    """Sends a content that is too long for one piece.

    :param head: the head of the response.
    :param size: bytes of the content.
    :param read: bytes of the content from an offset on, so many or fewer; at once or as a Deferred.
    :param over: called once, when the connection has ended.
    """

    def __init__(
        self,
        head: bytes,
        size: int,
        read: Callable[[int, int], bytes | Deferred[bytes]],
        over: Callable[[], None],
    ):
        self._head = head
        self._size = size
        self._read = read
        self._over = over
        self._sent = 0
        self._reading: Deferred[bytes] | None = None

    def begin(self, channel: BifrostProtocol, early: bytes) -> None:
        """Send the head, and as much as is taken."""
        super().begin(channel, early)
        self._outgoing.send_pieces([self._head])
        if not self._outgoing.blocked:
            self.drained()

    def drained(self) -> None:
        """Send on until the client has enough for now."""
        while self._channel is not None and not self._outgoing.blocked and self._reading is None:
            if self._sent == self._size:
                self.end()
                return
            piece = self._read(self._sent, min(PIECE, self._size - self._sent))
            if isinstance(piece, bytes):
                self._send(piece)
            else:
                self._reading = piece
                piece.addCallbacks(self._come, self._failed)

    def _come(self, piece: bytes) -> None:
        self._reading = None
        if self._channel is not None:
            self._send(piece)
            self.drained()

    def _failed(self, failure: Failure) -> None:
        """Cut it off: a client sees that it lacks something, because it was told the length."""
        self._reading = None
        if self._channel is not None:
            self._channel.drop("http_unreadable")

    def _send(self, piece: bytes) -> None:
        self._sent += len(piece)
        self._outgoing.send_pieces([piece])

    def lost(self) -> None:
        """Forget the connection, which is gone."""
        super().lost()
        if self._reading is not None:
            self._reading.cancel()
        self._over()
