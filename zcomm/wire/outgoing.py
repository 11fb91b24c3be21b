"""The bounded queue of frames that wait to be sent to one client.

The operating system takes what it can at once. What it does not take goes to the transport, and when
the transport says it has enough, further frames wait here by reference: a broadcast to a hundred slow
clients is still one copy of each frame. Past the limit the client is given up, because a queue that
only grows is memory lost to somebody who does not listen. What a client has asked for by itself does not count
towards that limit: it is bounded by what it may ask for, and a line that is slow is no reason to cut it.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from zcomm.runtime.transports import bytes_held, holds_nothing, is_plain
from zcomm.wire.closecodes import Ending
from zcomm.wire.deflate import Deflate, deflated_frames
from zcomm.wire.frames import frames
from zcomm.wire.sockets import send_messages
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Outgoing"]


class WriteRules(Protocol):
    """The limits of writing, as a session keeps them."""

    @property
    def stall_timeout(self) -> float:
        """Seconds that a client may take nothing."""

    def may_wait(self, queued: int, size: int) -> Ending | None:
        """Let ``size`` bytes wait with ``queued`` others that nobody asked for; the end where those are too many."""

    def took_nothing(self, before: int | None, now: int | None) -> Ending | None:
        """Compare what was left to send; the end of the connection where it is no less after the stall timeout."""


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
        "_clock",
        "_given_up",
        "_number",
        "_outstanding",
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
        self._outstanding: int | None = None
        #: Bytes that wait here, beyond what the transport has taken.
        self.queued = 0
        #: How many of them answer what the client has asked.
        self.owed = 0
        #: Whether the transport has asked to wait.
        self.blocked = False
        plain = is_plain(transport)
        self._send = transport.getHandle().send if plain else None
        self._number = transport.fileno() if plain and deflate is None else -1
        #: The socket, where nothing waits before it and frames made for many may be written to it by a
        #: system call; otherwise -1. A plain attribute, because a broadcast asks each of thousands.
        self.fd = -1
        #: The window of the compression; 0 for none.
        self.window_bits = 0 if deflate is None else deflate.window_bits
        transport.registerProducer(self, True)

    def send(self, payloads: list[bytes]) -> None:
        """Send text messages; at the end of this turn, unless they are its first."""
        if self.fd < 0:
            bits = self.window_bits
            self.send_frames(deflated_frames(payloads, bits) if bits else frames(payloads))
        elif self._batch.begins():
            rest = send_messages(self.fd, payloads)
            if rest:
                self.send_frames(rest)
        else:
            self._replies = payloads
            # Whatever is written next takes them along, so no more than these ever wait here.
            self.fd = -1
            self._batch.add(self)

    def reply(self, replies: list[bytes]) -> None:
        """Send the client what it has asked for: as :meth:`send`, but never too much to wait."""
        if self.blocked:
            bits = self.window_bits
            self._hold(deflated_frames(replies, bits) if bits else frames(replies), True)
        else:
            self.send(replies)

    def flush(self) -> None:
        """Send what waits for the end of the turn; called by it."""
        payloads, self._replies = self._replies, None
        if payloads is not None:
            self.fd = self._number
            rest = send_messages(self.fd, payloads)
            if rest:
                self.send_frames(rest)

    def send_frames(self, data: bytes) -> None:
        """Send frames, or whatever else is made for the wire already, now or as soon as the client takes it."""
        if self._replies is not None:
            payloads, self._replies = self._replies, None
            data = frames(payloads) + data
        if self.blocked:
            self._hold(data, False)
            return
        send = self._send
        transport = self._transport
        if send is not None and holds_nothing(transport):
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

    def _hold(self, data: bytes, is_owed: bool) -> None:
        if self._given_up:
            # The close is on its way.
            return
        if self._queue is None:
            self._queue = deque()
        ending = None if is_owed else self._rules.may_wait(self.queued - self.owed, len(data))
        if ending is not None:
            self._given_up = True
            self.discard()
            if self._owner is not None:
                self._owner.obey(ending)
            return
        self._queue.append((data, is_owed))
        self.queued += len(data)
        if is_owed:
            self.owed += len(data)

    def discard(self) -> None:
        """Forget what waits, and let what is written next, which is a goodbye, go to the transport."""
        self._queue = None
        self.queued = self.owed = 0
        self.blocked = False

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
            self._owner.output_blocked()
            self._watch_stall()

    def resumeProducing(self) -> None:
        """The transport is empty; called by it."""
        self.blocked = False
        while self._queue and not self.blocked:
            data, is_owed = self._queue.popleft()
            self.queued -= len(data)
            if is_owed:
                self.owed -= len(data)
            self._transport.write(data)
        if not self.blocked:
            self._queue = None
            self._cancel_stall()
            if self._owner is not None:
                self._owner.output_drained()

    def stopProducing(self) -> None:
        """The connection is gone; called by the transport."""
        self.discard()

    def _watch_stall(self) -> None:
        self._outstanding = bytes_held(self._transport)
        if self._stall is None:
            self._stall = self._clock.callLater(self._rules.stall_timeout, self._check_stall)

    def _check_stall(self) -> None:
        self._stall = None
        ending = self._rules.took_nothing(self._outstanding, bytes_held(self._transport))
        if ending is None:
            self._watch_stall()
        elif self._owner is not None:
            self._owner.obey(ending)

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
