"""The bounded queue of frames that wait to be sent to one client.

The operating system takes what it can at once. What it does not take goes to the transport, and when
the transport says it has enough, further frames wait here by reference: a broadcast to a hundred slow
clients is still one copy of each frame. Past the limit the client is given up, because a queue that
only grows is memory lost to somebody who does not listen. What a client has asked for by itself does not count
towards that limit: it takes of the memory that its user has for results, and leaves it piece by piece. A line that is
slow is no reason to cut it; one on which next to nothing moves is.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from zcomm.budget.written import Pieces
from zcomm.runtime.transports import bytes_held, bytes_unacknowledged, holds_nothing, is_plain, pause_above
from zcomm.wire.closecodes import Ending
from zcomm.wire.deflate import Deflate, deflated_frames
from zcomm.wire.frames import frames, header
from zcomm.wire.sockets import send_messages
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Outgoing"]

#: Bytes of an answer that a transport is given at once: as many as it sends at once. It joins what it holds, and keeps
#: it until the last byte has left.
PIECE = 128 * 1024

#: An answer that is longer is copied no more often than has to be.
LARGE = 512 * 1024
#: Bytes above which what a transport holds counts as waiting. A socket takes all that it can before, so that what it
#: leaves does wait; with TLS everything goes to the transport first.
ENOUGH, ENOUGH_WITH_TLS = 0, 16 * 1024


class WriteRules(Protocol):
    """The limits of writing, as a session keeps them."""

    @property
    def interval(self) -> float:
        """Seconds between looks at what the client takes."""

    def may_wait(self, queued: int, size: int) -> Ending | None:
        """Let ``size`` bytes wait with ``queued`` others that nobody asked for; the end where those are too many."""

    def owes(self, size: int) -> None:
        """Note how many bytes of what the client has asked for wait by now, in whatever place."""

    def watched(self, taken: int | None, left: int) -> None:
        """Note that something waits from now on, what was taken before, and how much is left."""

    def looked(self, taken: int | None, left: int) -> Ending | None:
        """Compare with what was taken before; the end of the connection where it is too little."""


class WritingConnection(Protocol):
    """The connection, as far as sending tells it anything."""

    def output_blocked(self) -> None:
        """The transport has taken enough for now."""

    def output_drained(self) -> None:
        """The queue has been handed over entirely."""

    def obey(self, ending: Ending) -> None:
        """End the connection in this way."""


@implementer(IPushProducer)
class Outgoing:
    """The outgoing side of one connection; registered with its transport as the streaming producer.

    :param owner: the connection.
    :param transport: the Twisted transport, TCP or TLS.
    :param rules: how much may wait, and how long a client may take nothing.
    :param clock: for the stall timeout.
    :param batch: the replies of the server that wait for the end of the turn.
    :param deflate: the compression agreed with the client; its frames are then made for it alone.
    """

    __slots__ = (
        "_batch",
        "_below",
        "_below_is_owed",
        "_clock",
        "_enough",
        "_given",
        "_given_up",
        "_number",
        "_owner",
        "_queue",
        "_replies",
        "_rules",
        "_send",
        "_stall",
        "_transport",
        "blocked",
        "fd",
        "owed",
        "queued",
        "window_bits",
    )

    def __init__(
        self,
        owner: WritingConnection,
        transport: Any,
        rules: WriteRules,
        clock: IReactorTime,
        batch: WriteBatch,
        deflate: Deflate | None = None,
    ):
        self._owner: WritingConnection | None = owner
        self._transport = transport
        self._rules = rules
        self._clock = clock
        self._batch = batch
        #: Messages that wait for the end of the turn, before everything else.
        self._replies: list[bytes] | None = None
        #: What waits, and whether it answers the client.
        self._queue: deque[tuple[bytes, bool]] | None = None
        self._given_up = False
        self._stall: Any = None
        #: Bytes that the transport was given in all.
        self._given = 0
        #: Bytes that it held when it had enough, and whether the last of them answer the client.
        self._below = 0
        self._below_is_owed = False
        #: Bytes that wait here, beyond what the transport has taken.
        self.queued = 0
        #: How many of them answer what the client has asked.
        self.owed = 0
        #: Whether the transport has asked to wait.
        self.blocked = False
        plain = is_plain(transport)
        self._enough = ENOUGH if plain else ENOUGH_WITH_TLS
        self._send = transport.getHandle().send if plain else None
        self._number = transport.fileno() if plain and deflate is None else -1
        #: The socket, where nothing waits before it and frames made for many may be written to it by a
        #: system call; otherwise -1. A plain attribute, because a broadcast asks each of thousands.
        self.fd = -1
        #: The window of the compression; 0 for none.
        self.window_bits = 0 if deflate is None else deflate.window_bits
        transport.registerProducer(self, True)

    @property
    def waiting(self) -> int:
        """Bytes that wait for the client, those that the transport holds included."""
        return self.queued + (bytes_held(self._transport) or 0)

    def send(self, payloads: list[bytes]) -> None:
        """Send text messages; at the end of this turn, unless they are its first."""
        if self.fd < 0:
            self.send_frames(self._framed(payloads))
        elif self._batch.begins():
            rest = send_messages(self.fd, payloads)
            if rest:
                self._give(rest, True)
        else:
            self._replies = payloads
            # Whatever is written next takes them along, so no more than these ever wait here.
            self.fd = -1
            self._batch.add(self)

    def reply(self, replies: list[bytes]) -> None:
        """Send the client what it has asked for: as :meth:`send`, but never too much to wait."""
        if len(replies) == 1 and len(replies[0]) > LARGE:
            self._give_large(replies[0])
        elif self.fd < 0:
            self._give(self._framed(replies), True)
        else:
            self.send(replies)

    def reply_at_once(self, replies: list[bytes]) -> None:
        """As :meth:`reply`, but not at the end of the turn: what waits of it is known when this returns."""
        if len(replies) == 1 and len(replies[0]) > LARGE:
            self._give_large(replies[0])
        else:
            self._give(self._framed(replies), True)

    def reply_in_pieces(self, reply: Pieces) -> None:
        """As :meth:`reply_at_once`, with one that is not copied."""
        first, *others = reply.parts
        self.send_pieces([header(len(reply)) + first, *others])

    def _give_large(self, payload: bytes) -> None:
        """Send an answer that takes time to copy, which is done once, and is too long to be compressed."""
        begin = header(len(payload))
        first = PIECE - len(begin)
        self.send_pieces([begin + payload[:first], *_pieces(payload, first)])

    def send_pieces(self, pieces: list[bytes]) -> None:
        """Send what answers the client, made for the wire already, behind whatever waits."""
        if self._replies is not None:
            payloads, self._replies = self._replies, None
            self._give(frames(payloads), True)
        if not self._given_up:
            self._hold_pieces(pieces)
        if not self.blocked:
            self.fd = -1
            self._go_on()
            self._tell()

    def _framed(self, payloads: list[bytes]) -> bytes:
        bits = self.window_bits
        return deflated_frames(payloads, bits) if bits else frames(payloads)

    def flush(self) -> None:
        """Send what waits for the end of the turn; called by it."""
        payloads, self._replies = self._replies, None
        if payloads is not None:
            self.fd = self._number
            rest = send_messages(self.fd, payloads)
            if rest:
                self._give(rest, True)

    def send_frames(self, data: bytes) -> None:
        """Send frames, or whatever else is made for the wire already, now or as soon as the client takes it."""
        self._give(data, False)

    def _give(self, data: bytes, is_owed: bool) -> None:
        """Send ``data``, or let it wait.

        :param is_owed: whether it answers the client.
        """
        if self._replies is not None:
            payloads, self._replies = self._replies, None
            data = frames(payloads) + data
            is_owed = True
        if self.blocked:
            self._hold(data, is_owed)
            return
        send = self._send
        transport = self._transport
        if send is not None and holds_nothing(transport):
            # Nothing waits: one system call instead of a trip through the reactor. What it does not
            # take, and every error, is the transport's to deal with.
            if self._stall is not None:
                self._cancel_stall()
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
        # Until the next write finds nothing that waits.
        self.fd = -1
        if is_owed and len(data) > PIECE:
            self._hold(data, True)
            self._go_on()
        else:
            self._hand_over(data, is_owed)
            self._pause()

    def _hand_over(self, data: bytes, is_owed: bool) -> None:
        self._given += len(data)
        self._below_is_owed = is_owed
        self._transport.write(data)

    def _pause(self) -> None:
        """Wait until the transport is empty, be it less than it would say so of by itself.

        So what it holds is known, and what comes meanwhile is not copied into it.
        """
        if not self.blocked:
            pause_above(self._transport, self._enough)

    def _go_on(self) -> None:
        """Hand over what waits, as much as the transport takes."""
        queue = self._queue
        while queue and not self.blocked:
            data, is_owed = queue.popleft()
            self.queued -= len(data)
            if is_owed:
                self.owed -= len(data)
            self._hand_over(data, is_owed)
        self._pause()

    def _hold_pieces(self, pieces: list[bytes]) -> None:
        """Let what answers the client wait; as pieces it leaves the memory one by one."""
        if self._queue is None:
            self._queue = deque()
        size = sum(map(len, pieces))
        self.queued += size
        self.owed += size
        self._queue.extend([(piece, True) for piece in pieces])
        self._tell()

    def _hold(self, data: bytes, is_owed: bool) -> None:
        if self._given_up:
            # The close is on its way.
            return
        if is_owed:
            self._hold_pieces(_pieces(data))
            return
        queue = self._queue
        if queue is None:
            queue = self._queue = deque()
        size = len(data)
        self.queued += size
        told = self.queued - size - self.owed
        if told and not self._below_is_owed:
            # Not all of a large one that has begun to leave: it kept nobody from waiting behind it.
            told += min(self._below, PIECE)
        ending = self._rules.may_wait(told, size)
        if ending is None:
            queue.append((data, False))
            return
        self._given_up = True
        self.discard()
        if self._owner is not None:
            self._owner.obey(ending)

    def _tell(self) -> None:
        """Let the rules know how much waits of what the client has asked for."""
        self._rules.owes(self.owed + (self._below if self._below_is_owed else 0))

    def discard(self) -> None:
        """Forget what waits, and let what is written next, which is a goodbye, go to the transport."""
        self._queue = None
        self.queued = self.owed = self._below = 0
        self.blocked = False
        self._tell()

    def release(self) -> None:
        """The connection is gone: forget what waits and whom to tell."""
        self._cancel_stall()
        self.discard()
        self._send = self._owner = self._replies = None
        self.fd = self._number = -1

    def pauseProducing(self) -> None:
        """The transport holds enough; called by it."""
        self.blocked = True
        self.fd = -1
        if self._owner is not None:
            self._below = bytes_held(self._transport) or 0
            self._tell()
            self._owner.output_blocked()
            self._watch_stall()

    def resumeProducing(self) -> None:
        """The transport is empty; called by it."""
        self.blocked = False
        self._below = 0
        self._go_on()
        if not self.blocked:
            self._queue = None
            self._cancel_stall()
        self._tell()
        if not self.blocked and self._owner is not None:
            self._owner.output_drained()

    def stopProducing(self) -> None:
        """The connection is gone; called by the transport."""
        self.discard()

    def watch(self) -> None:
        """Time the client where anything waits, be it too little for the transport to say so; called now and then."""
        if self._owner is not None and bytes_held(self._transport):
            self._watch_stall()

    def _watch_stall(self) -> None:
        if self._stall is None:
            self._rules.watched(self._taken(), self.waiting)
            self._stall = self._clock.callLater(self._rules.interval, self._check_stall)

    def _taken(self) -> int | None:
        """Bytes that the client's system has taken, of all that the transport was given, less some that are no news."""
        held = bytes_held(self._transport)
        return None if held is None else self._given - held - bytes_unacknowledged(self._transport)

    def _check_stall(self) -> None:
        self._stall = None
        if not self.blocked and not self.waiting:
            return
        ending = self._rules.looked(self._taken(), self.waiting)
        if ending is None:
            self._stall = self._clock.callLater(self._rules.interval, self._check_stall)
        elif self._owner is not None:
            self._owner.obey(ending)

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _pieces(data: bytes, begin: int = 0) -> list[bytes]:
    """``data`` in pieces, from ``begin`` on."""
    return [data[start : start + PIECE] for start in range(begin, len(data), PIECE)]
