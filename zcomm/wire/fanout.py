"""The same messages to many clients: framed once, compressed once for each size of window, a part in each turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from twisted.logger import Logger

from zcomm.budget.account import Account
from zcomm.wire.deflate import deflated_frames
from zcomm.wire.frames import frames
from zcomm.wire.sockets import send_all
from zcomm.wire.writebatch import WriteBatch

__all__ = ["FanOut", "fan_out"]

#: Bytes that are sent in one turn, which takes some milliseconds, and those that each client counts as besides.
PIECE, CLIENT = 4 * 1024 * 1024, 2048
#: Bytes that a socket takes at once, more or less; what is more waits without being copied.
SOCKET = 256 * 1024


class Output(Protocol):
    """The outgoing side of a client. Plain attributes, because a broadcast looks at each of thousands."""

    #: The socket, where nothing waits before it and uncompressed frames may be written to it by a system call;
    #: otherwise -1.
    fd: int
    #: The size of the window that the client agreed to compress with; 0 for none.
    window_bits: int
    #: Whether the transport has as much as it takes for now.
    blocked: bool


class Recipient(Protocol):
    """The transport of a client's messages."""

    @property
    def outgoing(self) -> Output:
        """Its outgoing side."""

    def send_frames(self, data: bytes) -> None:
        """Queue finished frames for this client."""


class Hearer(Protocol):
    """Somebody who is sent messages."""

    @property
    def transport(self) -> Any:
        """Its transport, a :class:`Recipient`; ``None`` once it hears nothing any more."""


#: Sends text messages through transports. With a list, those are put into it by their places that do not take what they
#: have already, and are sent nothing.
Send = Callable[..., None]


def fan_out(recipients: Sequence[Recipient], payloads: list[bytes], behind: list[int] | None = None) -> None:
    """Send text messages to many clients, with one system call for each that can take them at once.

    :param behind: takes the places of those who do not take what they have already, and are sent nothing; everybody is
        sent all of it when it is left out.
    """
    data = frames(payloads)
    compressed: dict[int, bytes] = {}
    for index, sent in send_all([recipient.outgoing.fd for recipient in recipients], data):
        # Something waits there already, or the system did not take it all: the transport knows what to do, and meets
        # whatever error there was.
        recipient = recipients[index]
        if behind is not None and recipient.outgoing.blocked:
            behind.append(index)
            continue
        bits = recipient.outgoing.window_bits
        if not bits:
            recipient.send_frames(data[sent:] if sent > 0 else data)
        else:
            if bits not in compressed:
                compressed[bits] = deflated_frames(payloads, bits)
            recipient.send_frames(compressed[bits])


@dataclass(slots=True, kw_only=True)
class _Sending:
    """The messages that some are being sent.

    :ivar tellers: whose time it takes.
    :ivar behind: is told of each who does not take what it has already, and so is not sent these; without it they wait
        for the hearer.
    :ivar about: what the log calls them.
    :ivar done: how many of the hearers have been sent them.
    """

    hearers: Sequence[Hearer]
    payloads: list[bytes]
    tellers: list[Account]
    behind: Callable[[Any], None] | None
    about: str
    done: int = 0


class FanOut:
    """Sends messages to many, in order, and no more in a turn of the reactor than it has time for.

    :param batch: says when a turn is over.
    :param send: sends the same messages through many transports at the least cost (:func:`fan_out`).
    """

    _log = Logger()

    def __init__(self, batch: WriteBatch, send: Send):
        self._batch = batch
        self._send = send
        self._sending: deque[_Sending] = deque()
        self._goes_on = False

    def add(
        self,
        hearers: Sequence[Hearer],
        payloads: list[bytes],
        tellers: list[Account],
        behind: Callable[[Any], None] | None = None,
        about: str = "all",
    ) -> None:
        """Send ``payloads`` to ``hearers``, behind what was added before; :meth:`begin` begins with it.

        :param tellers: whose time it takes.
        :param behind: called with each who does not take what it has already, and is sent nothing; without it the
            messages wait for whoever is slow.
        :param about: what the log calls them where they cannot be sent, such as their topic.
        """
        self._sending.append(_Sending(hearers=hearers, payloads=payloads, tellers=tellers, behind=behind, about=about))

    def begin(self, since: float) -> None:
        """Send what was added, unless that goes on already.

        :param since: when this turn's work for it has begun.
        """
        if not self._goes_on:
            self._go_on(since)

    def _go_on(self, since: float | None = None) -> None:
        self._goes_on = False
        since = perf_counter() if since is None else since
        left = PIECE
        while self._sending:
            if left <= 0:
                self._goes_on = True
                self._batch.next_turn(self._go_on)
                return
            sending = self._sending[0]
            size = CLIENT + min(sum(map(len, sending.payloads)), SOCKET)
            piece = sending.hearers[sending.done : sending.done + max(1, left // size)]
            sending.done += len(piece)
            left -= size * len(piece)
            if sending.done >= len(sending.hearers):
                self._sending.popleft()
            elif left < size:
                left = 0
            try:
                self._send_piece(sending, piece)
            except Exception:
                # What is told of other things goes out all the same.
                self._log.failure("not all could be sent what was to be told of {about}", about=sending.about)
            now = perf_counter()
            for account in sending.tellers:
                account.spend(since, since + (now - since) / len(sending.tellers))
            since = now

    def _send_piece(self, sending: _Sending, piece: Sequence[Hearer]) -> None:
        if sending.behind is None:
            self._send([transport for one in piece if (transport := one.transport) is not None], sending.payloads)
            return
        there = [one for one in piece if one.transport is not None]
        slow: list[int] = []
        self._send([one.transport for one in there], sending.payloads, slow)
        for place in slow:
            sending.behind(there[place])
