"""The shell between Autobahn and a :class:`~zcomm.bifrost.connection.Connection`.

Whole text frames, which is nearly all a client ever sends, are taken from a read in one pass and
answered with one write. Everything else (fragments, control frames, compression, half frames) goes
through Autobahn's state machine untouched, one frame at a time, so that a flood of tiny frames costs
what its frames cost and no more.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.incoming import LONG_TURN, REFUSED, SHORT, TURN, DirectReading
from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.bifrost.session import Opening
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.wire import deflate as compression
from zcomm.wire.autobahn import CLOSING, OPEN
from zcomm.wire.closecodes import CloseCode, close_reason
from zcomm.wire.frames import end_of_frame, split
from zcomm.wire.outgoing import Outgoing

__all__ = ["BifrostProtocol"]

#: Seconds for a client to answer a close frame.
CLOSING_TIME = 1.0

#: Why reading from a client is suspended, beside ``REFUSED``.
ADMISSION, OUTPUT, FAIRNESS, WAITING = 1, 2, 4, 16


class BifrostProtocol(DirectReading):
    """One TCP connection: an HTTP request, or the handshake and the frames of one WebSocket client."""

    #: Until the client is in: its opening, which holds one of the places for those that are not.
    _opening: Opening | None = None
    _timer: Any = None
    _deflate: compression.Deflate | None = None
    #: From when the handshake is over.
    outgoing: Outgoing
    _message: bytearray | None = None
    #: A TCP, TLS or Unix socket's: more than what Twisted's ITransport tells of.
    transport: Any
    _lost = False
    #: Why the server ended the connection, for the counters.
    drop_reason = ""

    # -- the life of the connection

    def connectionMade(self) -> None:
        """A peer has connected; it has a few seconds to say something sensible."""
        factory = self.factory
        factory.countConnections += 1
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass
        factory.doorway.arrive(self)

    def wait(self) -> None:
        """Others of this peer are being decided about; called by the doorway."""
        self._pause(WAITING)

    def begin(self, seconds: float) -> None:
        """Read the handshake, which has this long; called by the doorway."""
        self._opening = Opening(self, seconds)
        self._resume(WAITING)

    @property
    def local_address(self) -> str:
        """The address the connection came in on; empty for a unix socket."""
        return str(getattr(self.transport.getHost(), "host", ""))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer is gone. What waited for it is told exactly once, and nothing of it stays behind."""
        self._lost = True
        self.read_no_longer()
        self._cancel_timer()
        self._end_opening()
        self._backlog = None
        self._leave()
        if self._outgoing is not None:
            self._outgoing.release()
        self.end_frames(reason)
        self.factory.countConnections -= 1
        self.factory.gone(self)

    def dataReceived(self, data: bytes) -> None:
        """Bytes from the peer, for whichever part of the conversation this is."""
        self._awaiting_pong = False
        self._direct = None
        if self.state == OPEN or self.state == CLOSING:
            if self._backlog is not None:
                payloads, rest = self._backlog
                self._backlog = payloads, rest + data
            else:
                self._receive_frames(data)
                self._look_ahead()
        elif self._opening is not None:
            self._opening.receive(data)

    # -- the end of the opening, one way or the other

    def pause_for_admission(self) -> None:
        """Read nothing until it is known whether the client is let in."""
        self._pause(ADMISSION)

    def admitted(
        self, identity: Identity, upgrade: Upgrade, response: bytes, deflate: compression.Deflate | None, early: bytes
    ) -> None:
        """The client is in; called by the opening.

        :param response: completes the handshake.
        :param early: what came right behind the request, and is answered now.
        """
        factory = self.factory
        self._deflate = deflate
        self._open(response)
        limits = factory.limits
        self._bucket = TokenBucket(limits.frame_rate, limits.frame_burst, factory.clock.seconds)
        self._connection = factory.opened(self, identity, upgrade)
        self._resume(ADMISSION)
        if early:
            self._receive_frames(early)
        self._look_ahead()

    def refused(self, refusal: HandshakeRefused, response: bytes) -> None:
        """The client is not let in; called by the opening.

        A browser cannot see an HTTP status: the handshake completes, then the close code says why.
        """
        self._open(response)
        self._resume(ADMISSION)
        self.factory.refused(self, refusal)
        self.close(refusal.close_code, refusal.reason)

    def _open(self, response: bytes) -> None:
        self._end_opening()
        self.begin_frames(None if self._deflate is None else self._deflate.inbound)
        factory = self.factory
        self._outgoing = self.outgoing = Outgoing(
            self, self.transport, factory.limits, factory.clock, factory.batch, self._deflate
        )
        self._outgoing.send_frames(response)
        self.read_directly()

    def _end_opening(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.lost()
        self.factory.doorway.leave(self)

    # -- frames in

    def _receive_frames(self, data: bytes) -> None:
        offset, size = 0, len(data)
        connection, largest, left = self._connection, self.largest_message, LONG_TURN
        while offset < size and left > 0:
            if self.state == self.STATE_CLOSED or self._lost or self._pauses & REFUSED:
                return
            missing = self.missing()
            if missing is None:
                if waiting := self.take_back():
                    # The beginning of a frame header waits in Autobahn: look again, with what follows.
                    data = waiting + data[offset:]
                    offset, size = 0, len(data)
                if connection is not None and self.state == OPEN and self.at_message_boundary:
                    payloads, offset = split(data, offset, largest)
                    if payloads:
                        if len(payloads) > TURN:
                            self._continue_later(payloads[TURN:], data[offset:])
                            payloads = payloads[:TURN]
                            offset = size
                        left -= len(payloads) // SHORT
                        if self._spend(len(payloads)):
                            self._answer(payloads)
                        continue
                if self.state == OPEN and connection is not None:
                    offset, cost = self._answer_pings(data, offset)
                    if cost:
                        left -= cost
                        continue
                end = end_of_frame(data, offset)
                if self.state == CLOSING:
                    # Of a client that was told goodbye only its own goodbye matters.
                    if end < size and data[offset] & 0x0F != 8:
                        offset = end
                        continue
                elif not self._spend(1):
                    return
            else:
                end = offset + missing
            self.feed(data[offset:end] if offset or end < size else data)
            offset = end
            left -= 1
        if offset < size:
            self._continue_later([], data[offset:])

    def _answer(self, payloads: list[bytes]) -> None:
        if self._connection is not None and (replies := self._connection.receive(payloads)):
            self.send(replies)

    def _spend(self, count: int) -> bool:
        if self._bucket.spend(count):
            return True
        self._too_fast()
        return False

    def _too_fast(self) -> None:
        self._give_up(CloseCode.POLICY_VIOLATION, "Rate limit exceeded", "rate_limit")

    def _continue_later(self, payloads: list[bytes], rest: bytes) -> None:
        """Let others have their turn before this client's next messages."""
        self._backlog = payloads, rest
        self._direct = None
        self._pause(FAIRNESS)
        self.factory.clock.callLater(0, self._continue)

    def _continue(self) -> None:
        if self._backlog is None or self._lost:
            return
        payloads, rest = self._backlog
        if self.state != OPEN:
            payloads = []
        self._backlog = None
        if len(payloads) > TURN:
            self._continue_later(payloads[TURN:], rest)
            payloads, rest = payloads[:TURN], b""
        if payloads and self._spend(len(payloads)):
            self._answer(payloads)
        if rest and self._backlog is None:
            self._receive_frames(rest)
        if self._backlog is None:
            self._look_ahead()
            self._resume(FAIRNESS)

    def message_begins(self, is_binary: bool) -> None:
        """Begin to join a message that takes the long way."""
        self._message = bytearray()
        if is_binary and self._connection is not None and self._connection.receive_binary is None:
            self.close(CloseCode.UNSUPPORTED_DATA, "Text messages only")

    def message_goes_on(self, part: bytes) -> None:
        """Join a part of a message in place, so that a million one-byte fragments cost a million bytes."""
        if self._message is not None:
            self._message += part

    def message_ends(self, is_binary: bool) -> None:
        """Answer a message that took the long way."""
        message, self._message = self._message, None
        if self._connection is None or message is None:
            return
        if len(message) > self.largest_message:
            # Autobahn's own limit is a little higher, because of what compression adds to the wire length.
            self.close(CloseCode.MESSAGE_TOO_BIG, "Message too big")
            return
        if not is_binary:
            self._answer([bytes(message)])
        elif (take := self._connection.receive_binary) is not None:
            take(bytes(message))

    # -- frames out

    def send(self, payloads: list[bytes]) -> None:
        """Send text messages, in one piece."""
        if self.state == OPEN and self._outgoing is not None:
            self._outgoing.send(payloads)

    def send_frames(self, data: bytes) -> None:
        """Send frames that have been built for many clients."""
        if self.state == OPEN and self._outgoing is not None:
            self._outgoing.send_frames(data)

    @property
    def queued(self) -> int:
        """Bytes that wait for this client, beyond what its transport holds."""
        return 0 if self._outgoing is None else self._outgoing.queued

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Everything Autobahn itself sends (pongs, close frames) waits its turn like the rest."""
        if self._outgoing is None:
            self.transport.write(data)
        else:
            self._outgoing.send_frames(data)

    def tick(self) -> None:
        """Called every ping interval: a client that has said nothing since the last ping is dead."""
        if self.state != OPEN or self._pauses & OUTPUT:
            # Of a client that is not read from no pong can be heard; its stall is timed already.
            return
        if self._awaiting_pong:
            self.drop("ping_timeout")
            return
        self._awaiting_pong = True
        self.sendPing()

    # -- what the outgoing side says

    def output_blocked(self) -> None:
        """The client does not take what it is sent: it is not read from either, its replies would only pile up."""
        self._pause(OUTPUT)

    def output_drained(self) -> None:
        """The client has taken everything."""
        self._resume(OUTPUT)

    def overflowed(self) -> None:
        """More waits for the client than may wait."""
        self._give_up(CloseCode.TRY_AGAIN_LATER, "Slow consumer", "slow_consumer")

    # -- closing

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; nothing the client sends from now on is answered."""
        if self.state == OPEN:
            self.sendCloseFrame(int(code), close_reason(reason))

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Say goodbye; whoever does not answer in time is cut off (RFC 6455 section 7.1.1)."""
        if self.state != OPEN:
            return
        if not isReply and not self.drop_reason:
            self.drop_reason = f"close_{code}"
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self._leave()
        self._arm_abort()

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection; called by Autobahn when the closing handshake is over."""
        super().dropConnection(abort)
        if not self._lost and not abort:
            self._arm_abort()

    def unregisterProducer(self) -> None:
        """Called by Autobahn before it hangs up; without a producer the transport flushes, then closes."""
        if self._outgoing is not None and not self._lost:
            super().unregisterProducer()

    def _give_up(self, code: CloseCode, reason: str, why: str) -> None:
        """End the connection of a client over its limits: what it sends is no longer read."""
        self.drop_reason = why
        if self._outgoing is not None:
            self._outgoing.discard()
        self.close(code, reason)
        self._backlog = None
        self._pause(REFUSED)

    def abandon(self) -> None:
        """Cut the connection off; nobody is owed a goodbye any more."""
        self.drop("shutdown")

    def drop(self, why: str) -> None:
        """Cut the connection off, and count why; also what the timer of a goodbye calls."""
        self.drop_reason = self.drop_reason or why
        if not self._lost:
            self.transport.abortConnection()

    def _arm_abort(self) -> None:
        self._cancel_timer()
        self._timer = self.factory.clock.callLater(CLOSING_TIME, self.drop, "close_timeout")

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        self._direct = None
        if connection is not None:
            self.factory.closed(connection)

    # -- reading

    def _pause(self, why: int) -> None:
        if not self._pauses and not self._lost:
            self.transport.pauseProducing()
        self._pauses |= why

    def _resume(self, why: int) -> None:
        if self._pauses & why:
            self._pauses &= ~why
            if not self._pauses and not self._lost and not getattr(self.transport, "disconnecting", False):
                self.transport.resumeProducing()
