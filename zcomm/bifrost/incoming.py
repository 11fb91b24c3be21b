"""The short way in: from a socket that is readable to the messages it brought, without the bytes in between.

It is taken where the connection is a plain socket and between two messages, and where a read brings whole text
messages and nothing else, which is nearly always. Everything else goes the usual way, through the transport and
``dataReceived``, and comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from zcomm.bifrost.connection import Connection
from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.runtime.transports import read_as_usual, read_instead, stop_reading_instead
from zcomm.wire.autobahn import OPEN, FrameProtocol
from zcomm.wire.frames import pongs
from zcomm.wire.outgoing import Outgoing
from zcomm.wire.sockets import receive

__all__ = ["LONG_TURN", "REFUSED", "SHORT", "TURN", "DirectReading"]

#: Messages of one client answered in one turn of the reactor; the rest wait for the next turn.
TURN = 256
#: Frames of one client that take the long way in one turn; each costs ten short messages and more.
LONG_TURN = 32
#: Short messages, or pings, that cost as much as one of them.
SHORT = 8
#: The pause of a client whose messages are no longer wanted.
REFUSED = 8


class DirectReading(FrameProtocol):
    """The base of zComm's protocol that reads for itself."""

    #: Bytes of one message; set by the factory, like Autobahn's options.
    largest_message = 1024 * 1024

    _pauses = 0
    _connection: Connection | None = None
    _outgoing: Outgoing | None = None
    _backlog: tuple[list[bytes], bytes] | None = None
    #: The connection, while what comes next begins a message.
    _direct: Connection | None = None
    _awaiting_pong = False
    _fd = -1

    # What the protocol does with messages, whichever way they came.
    _bucket: TokenBucket
    _spend: Callable[[int], bool]
    _too_fast: Callable[[], None]
    #: A socket's: more than what Twisted's ITransport tells of.
    transport: Any
    _continue_later: Callable[[list[bytes], bytes], None]

    def read_directly(self) -> None:
        """Read for ourselves from now on, where the transport is a socket and nothing more (no TLS, no Unix socket)."""
        if read_instead(self.transport, self._read):
            self._fd = self.transport.fileno()

    def read_no_longer(self) -> None:
        """The connection is gone; the transport lets go of us."""
        stop_reading_instead(self.transport)

    def _look_ahead(self) -> None:
        """Settle whether what comes next begins a message and may be read directly; called after each read."""
        between = (
            self._backlog is None and self.state == OPEN and self.at_message_boundary and not self._pauses & REFUSED
        )
        self._direct = self._connection if between else None

    def _read(self) -> Any:
        """Read once; called by the reactor in place of the transport's ``doRead``, and returns what that returns."""
        connection, outgoing = self._direct, self._outgoing
        if connection is None or outgoing is None:
            return read_as_usual(self.transport)
        try:
            got = receive(self._fd, self.largest_message)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if type(got) is bytes:
            if not got:
                return CONNECTION_DONE
            self.dataReceived(got)
            return None
        # Whole messages and nothing else, which is what a read nearly always brings.
        self._awaiting_pong = False
        if len(got) > TURN:
            self._continue_later(got[TURN:], b"")
            del got[TURN:]
        if not self._bucket.spend(len(got)):
            self._too_fast()
            return None
        replies = connection.receive(got)
        if replies and self.state == OPEN:
            outgoing.send(replies)
        return None

    def _answer_pings(self, data: bytes, offset: int) -> tuple[int, int]:
        """Answer the whole pings that ``data`` has at ``offset``, in one write.

        :returns: the offset behind them, and how many frames of the long way they cost: 0 where there is none.
        """
        answers, offset, count = pongs(data, offset, TURN)
        if count == 0:
            return offset, 0
        if self._spend(count) and self._outgoing is not None:
            self._outgoing.send_frames(answers)
        return offset, 1 + count // SHORT
