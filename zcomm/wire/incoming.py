"""Reading from one client: from a socket that has bytes to the messages in them, for a bounded time in each turn.

There are two ways in. The short one is taken where the connection is a plain socket and what comes next begins a
message: one system call reads, whole text messages are taken from what it brought in one pass, and their replies leave
with one write. Everything else (fragments, control frames, compression, half frames, TLS) goes through Autobahn's state
machine, one frame at a time, so that a flood of tiny frames costs what its frames cost and no more. Both come to the
same.

A turn ends by the clock. What is known to take little time, reading and tiny messages, is charged to the user by what
it takes on average, since to look at a clock is dear beside it; everything else by what it took. A user that has had
its slice is not read from until the turn is over, on none of its connections; what was read already waits. Below TLS a
read brings little, and all of its time is charged: records with one byte of a message, or none, take as long as others.

A client that is faster than it may be is slowed: its frames wait, and when as many as one message may have bytes wait,
nothing more is read. The pings among them are answered at once all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST

from zcomm.runtime.transports import (
    read_as_usual,
    read_instead,
    read_instead_below,
    read_pieces_below,
    stop_reading_instead,
)
from zcomm.wire.autobahn import CLOSED, CLOSING, OPEN
from zcomm.wire.closecodes import Ending
from zcomm.wire.frames import end_of_frame, pongs, split
from zcomm.wire.outgoing import Outgoing
from zcomm.wire.sockets import receive

__all__ = [
    "ADMISSION",
    "AWAY",
    "CROWD",
    "FAIRNESS",
    "OUTPUT",
    "PENDING",
    "RATE",
    "REFUSED",
    "TURN",
    "Entrance",
    "Incoming",
]

#: Why nothing is read from a client, as bits: it waits for a place among those that may shake hands; it is being
#: decided about; it does not take what it is sent; others have their turn; what it sends is no longer wanted; it is
#: over its rate, and has been read from a moment ago; its user has nothing for some turns; too much has arrived of that
#: user's other messages, so that the rest of this one waits.
PENDING, ADMISSION, OUTPUT, FAIRNESS, REFUSED, RATE, AWAY, CROWD = 1, 2, 4, 8, 16, 32, 64, 128

#: Messages of one client that are answered in one turn of the reactor; the rest wait for the next turn.
MESSAGES_PER_ITERATION = 256
#: Frames of one client that take the long way in one turn; each costs ten short messages and more.
FRAMES_PER_ITERATION = 32
#: Short messages, or pings, that cost as much as one of them.
MESSAGES_PER_FRAME = 8
#: Seconds that one read takes with its write, and one tiny message of it, more or less.
READ, MESSAGE = 5e-6, 2e-6
#: Seconds after which the rest of a client's frames waits for the next turn.
TURN = 0.002
#: Seconds of a turn for what comes below TLS from all together who are not let in yet: the least; and, as much as
#: others have had, where many of them have something to do, the most.
ENTRANCE, WIDE_ENTRANCE = TURN, 0.02
#: Bytes from which on a message that took the long way is answered in a turn of its own.
LARGE = 64 * 1024
#: Bytes that wait of a client that is over its rate, from which on nothing more is read of it.
WAITING = 256 * 1024
#: Bytes of a message that is not whole which may be there whatever else is.
FEW = 4096
#: Bytes that a whole message takes besides its own.
OBJECT = 64
#: Bytes that one read below TLS brings, of a client that is let in, and before. The least records are 27 bytes, and new
#: keys, which some of them ask for, take some 25 microseconds each.
PIECE, EARLY_PIECE = 8 * 1024, 1024
#: Seconds between two looks at a client that is over its rate, unless its rate is lower still; and the most.
LOOK, LAST_LOOK = 0.02, 1.0

_CLOSE = 8


class Account(Protocol):
    """The time of the reactor that a user has taken."""

    #: Whether it has had all that it may have in this turn.
    is_spent: bool
    #: Whether that is so for more than a turn.
    is_away: bool
    #: Seconds in all, and at how many of them it is to be told that those are over.
    busy: float
    due: float
    #: Bytes of its messages that are not whole yet, or wait for their turn; and how many of them there may be.
    arriving: int
    may_arrive: int

    @property
    def finishing(self) -> object:
        """The one whose message is read to its end whatever else has arrived."""

    def may_finish(self, client: Any) -> bool:
        """Whether the rest of the message of ``client`` is read; if not, its ``go_on`` is called when it may be."""

    def make_way(self, client: Any) -> None:
        """Nothing is to be read to its end for ``client``; let others go on, where there is room."""

    def spend(self, begun: float, ended: float) -> None:
        """Charge what was measured."""

    def over(self) -> None:
        """Let it wait for the end of the turn."""

    def later(self, call: Callable[[], object]) -> None:
        """Call ``call`` in a turn that it has time in."""


class Receiver(Protocol):
    """Answers the messages of an admitted client."""

    #: Whom it belongs to.
    account: Account
    #: The messages that :meth:`receive` has left for another turn, because there was no time.
    left: list[bytes]

    def receive(self, payloads: list[bytes]) -> list[bytes]:
        """Answer text messages; returns the replies that are ready."""


class Rate(Protocol):
    """The pace of a client."""

    def spend(self, count: int) -> bool:
        """Count frames; false where they are too many."""

    def take_back(self, count: int) -> int:
        """Say how many of the frames that could not be spent were too many, which are not counted then."""

    def give_back(self, count: int) -> None:
        """Forget that so many frames were spent."""

    def wait(self, count: int) -> float:
        """Seconds until so many frames may be spent."""


class ReadRules(Protocol):
    """The limits of reading, as a session keeps them."""

    #: Whether anything has come since the last ping.
    heard: bool
    #: Whether what is sent to the client is still of use.
    is_open: bool
    #: The end of a client whose user has too much that is not whole.
    crowded: Ending

    @property
    def rate(self) -> Rate:
        """The frames that the client may still send."""

    def came(self, count: int) -> Ending | None:
        """Count frames of a client that is over its rate; the end of the connection where it floods."""


class ReadingConnection(Protocol):
    """The connection: Autobahn's state machine for what takes the long way, and what is told of the end.

    It is a :class:`~zcomm.wire.autobahn.FrameProtocol` with a way to end.
    """

    state: int

    @property
    def unfinished(self) -> int:
        """Bytes of a message that is not whole yet."""

    @property
    def at_message_boundary(self) -> bool:
        """Whether the next byte begins a message, or a control frame between two."""

    def missing(self) -> int | None:
        """Bytes that the frame in progress still lacks; ``None`` between frames."""

    def take_back(self) -> bytes:
        """The beginning of a frame header that waits for its end; it is no longer there."""

    def feed(self, data: bytes) -> None:
        """Give ``data`` to the state machine."""

    def dataReceived(self, data: bytes) -> None:
        """Take what the short way cannot use."""

    def obey(self, ending: Ending) -> None:
        """End the connection in this way."""


class Entrance:
    """Bounds the time in each turn for what comes below TLS from clients that are not let in yet.

    A certificate's signature takes a millisecond, or five, and thirty clients may ask for one at the same time. Who
    had to wait is read from before all others.

    :param at_end: calls its argument once the reactor is done with what it is doing now.
    """

    __slots__ = ("_at_end", "_first", "_is_waiting", "_later", "_may_use", "_since", "_used")

    def __init__(self, at_end: Callable[[Callable[[], None]], object]):
        self._at_end = at_end
        self._since = self._used = 0.0
        self._may_use = ENTRANCE
        self._is_waiting = False
        #: Those who had no time in the last turn, and those who have none in this.
        self._first: set[Any] = set()
        self._later: set[Any] = set()

    def read(self, socket: Any) -> Any:
        """Read once from ``socket``, or not in this turn."""
        if not self._is_waiting:
            self._wait(ENTRANCE)
        if self._used >= self._may_use or (self._first and socket not in self._first):
            self._later.add(socket)
            return None
        self._first.discard(socket)
        begun = perf_counter()
        why = read_as_usual(socket)
        self._used += perf_counter() - begun
        return why

    def _wait(self, may_use: float) -> None:
        self._is_waiting = True
        self._since, self._used, self._may_use = perf_counter(), 0.0, may_use
        self._at_end(self._turn_over)

    def _turn_over(self) -> None:
        # Of those who had waited before some may have left, or have nothing any more.
        self._first, self._later = self._first & self._later or self._later, set()
        self._is_waiting = False
        if self._first:
            others = perf_counter() - self._since - self._used
            self._wait(min(WIDE_ENTRANCE, max(ENTRANCE, others)))


class Incoming:
    """The reading side of one connection.

    :param owner: the connection.
    :param transport: the Twisted transport.
    :param clock: for the next turn.
    :param largest_message: bytes that one message may have.
    :param entrance: of all clients that are not let in yet.
    :param account: of all clients that are not let in.
    """

    __slots__ = (
        "_account",
        "_backlog",
        "_clock",
        "_entrance",
        "_fd",
        "_held",
        "_is_held",
        "_is_late",
        "_largest",
        "_looks_on",
        "_next",
        "_outgoing",
        "_outsiders",
        "_owner",
        "_pauses",
        "_receiver",
        "_rules",
        "_transport",
        "_unseen",
        "_wake",
    )

    _rules: ReadRules
    _outgoing: Outgoing

    def __init__(
        self,
        owner: ReadingConnection,
        transport: Any,
        clock: IReactorTime,
        largest_message: int,
        entrance: Entrance,
        account: Account,
    ):
        self._owner: ReadingConnection | None = owner
        #: Whom its time is charged to: once it is let in its user, also when that has been said goodbye.
        self._account = self._outsiders = account
        self._entrance = entrance
        self._transport = transport
        self._clock = clock
        self._largest = largest_message
        self._fd = -1
        self._pauses = 0
        #: How many bytes of what waits and of what is not whole are counted.
        self._held = 0
        #: The messages, and the bytes behind them, that wait for the next turn.
        self._backlog: tuple[list[bytes], bytes] | None = None
        #: Whether they wait until the client has taken what it was sent.
        self._is_held = False
        #: Whether it waited for the rest of a message when that was asked last.
        self._is_late = False
        self._receiver: Receiver | None = None
        #: The receiver, while what comes next begins a message.
        self._next: Receiver | None = None
        #: While the client is over its rate, the bytes at the end of the backlog in which no pings were looked for
        #: yet; else -1.
        self._unseen = -1
        self._looks_on = False
        self._wake: Any = None
        read_pieces_below(transport, EARLY_PIECE)
        read_instead_below(transport, self.read_below)

    # -- whether it reads

    def pause(self, reason: int) -> None:
        """Read nothing until :meth:`resume` for the same reason."""
        if not self._pauses and self._transport is not None:
            self._transport.pauseProducing()
        self._pauses |= reason
        if reason == OUTPUT and self._account.finishing is self:
            # Until it takes what it was sent, others' messages would wait.
            self._account.make_way(self)

    def resume(self, reason: int) -> None:
        """Read again, unless there is another reason not to; harmless where ``reason`` was none."""
        if self._pauses & reason:
            self._pauses &= ~reason
            transport = self._transport
            if not self._pauses and transport is not None and not getattr(transport, "disconnecting", False):
                transport.resumeProducing()
            if self._is_held and not self._pauses & OUTPUT:
                self._is_held = False
                self._clock.callLater(0, self._continue)

    def is_paused_for(self, reason: int) -> bool:
        """Whether ``reason`` keeps it from reading."""
        return bool(self._pauses & reason)

    def go_on(self) -> bool:
        """Read the rest of a message that had to wait, as soon as the client takes what it was sent; returns whether it
        does."""
        self._rules.heard, self._is_late = True, False
        self.resume(CROWD)
        return not self.is_paused_for(OUTPUT)

    def is_late(self) -> bool:
        """Whether the rest of a message has waited since this was asked before. Asked at each ping: a message that was
        not read to its end since the last one gives way to others."""
        if self._account.finishing is self:
            self._account.make_way(self)
        waited, self._is_late = self._is_late, self.is_paused_for(CROWD)
        return waited and self._is_late

    @property
    def is_slowed(self) -> bool:
        """Whether the client is over its rate, so that what it has sent waits."""
        return self._unseen >= 0

    # -- the life of a connection

    def begin(self, rules: ReadRules, outgoing: Outgoing) -> None:
        """Expect frames, which nobody answers yet: the handshake is over."""
        self._rules = rules
        self._outgoing = outgoing
        if read_instead(self._transport, self.read):
            self._fd = self._transport.fileno()

    def admit(self, receiver: Receiver, early: bytes) -> None:
        """Let ``receiver`` answer from now on.

        :param early: bytes that came with the handshake, and are answered now.
        """
        self._receiver = receiver
        self._forget_held()
        self._account = receiver.account
        read_pieces_below(self._transport, PIECE)
        self.resume(ADMISSION)
        if early:
            self.take(early)
        elif self._rules.is_open:
            self._next = receiver

    def belongs_to(self, account: Account) -> None:
        """Charge what is read from now on to ``account``: who it is is known, and no frames will come."""
        self._account = account
        read_pieces_below(self._transport, PIECE)

    def dismiss(self) -> None:
        """Answer nothing any more; a goodbye may still come."""
        self._receiver = self._next = None
        self._make_way()

    def refuse(self) -> None:
        """Read nothing any more, and forget what was read."""
        self._backlog = None
        self.pause(REFUSED)
        self._forget_held()

    def release(self) -> None:
        """Forget the connection, which is gone."""
        self._receiver = self._next = self._backlog = None
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        transport, self._transport = self._transport, None
        if transport is not None:
            stop_reading_instead(transport)
        self._forget_held()
        # No circle of references is left, and nobody who could be told.
        self._owner = None

    # -- the short way

    def read(self) -> Any:
        """Read once; called by the reactor in place of the transport's ``doRead``, and returns what that returns."""
        receiver, rules = self._next, self._rules
        if receiver is None:
            if self._account.is_spent:
                return self._not_now(self._account)
            return read_as_usual(self._transport)
        account = receiver.account
        if account.is_spent:
            return self._not_now(account)
        try:
            got = receive(self._fd, self._largest)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if type(got) is bytes:
            if not got:
                return CONNECTION_DONE
            if self._owner is not None:
                self._owner.dataReceived(got)
            return None
        # Whole messages and nothing else, which is what a read nearly always brings.
        rules.heard = True
        if len(got) > MESSAGES_PER_ITERATION:
            self._take_messages(got, b"", 0)
            return None
        if not rules.rate.spend(len(got)):
            self._hold_back(got, [], b"")
        account.busy += READ + MESSAGE * len(got)
        if account.busy >= account.due:
            account.over()
        replies = receiver.receive(got)
        if replies and rules.is_open:
            self._reply(replies)
        if receiver.left:
            self._leave(self._take_left(receiver), b"")
        return None

    def read_below(self, socket: Any) -> Any:
        """Read once from ``socket``, which is below the transport; called by the reactor as :meth:`read` is."""
        account = self._account
        if account is self._outsiders:
            return self._entrance.read(socket)
        if account.is_spent:
            return self._not_now(account)
        charged, begun = account.busy, perf_counter()
        why = read_as_usual(socket)
        # The messages that it has brought are charged already.
        account.spend(begun, max(begun, perf_counter() - (account.busy - charged)))
        return why

    def _not_now(self, account: Account) -> None:
        """Read nothing, because its user has no time: the reactor asks again in the next turn, or when it has some."""
        if account.is_away:
            self.pause(AWAY)
            account.later(self._back)

    def _back(self) -> None:
        self.resume(AWAY)

    def _look_ahead(self) -> None:
        """Settle, once a read is dealt with, whether what comes next begins a message and may take the short way."""
        may = (
            self._receiver is not None
            and self._owner is not None
            and self._backlog is None
            and not self._pauses & REFUSED
            and self._rules.is_open
            and self._owner.at_message_boundary
        )
        self._next = self._receiver if may else None

    # -- the long way

    def take(self, data: bytes) -> None:
        """Take bytes that the transport has read."""
        self._rules.heard = True
        self._next = None
        if self._backlog is not None:
            payloads, rest = self._backlog
            self._backlog = payloads, rest + data
            if self._unseen >= 0:
                self._unseen += len(data)
                self._look_for_pings()
                self.pause(RATE)
        elif self._account.is_spent:
            self._continue_later([], data)
        else:
            self._take_frames(data)
            self._look_ahead()
        self._count_held()

    def _count_held(self) -> None:
        """Count what is held of the client's messages. Where all connections of its user have too much, nothing more is
        read of what waits, and of what is not whole: but for one of them, so that it gets done."""
        unfinished = 0 if self._owner is None else self._owner.unfinished
        held = unfinished
        if self._backlog is not None:
            payloads, rest = self._backlog
            held += len(rest) + sum(map(len, payloads)) + OBJECT * len(payloads)
        account = self._account
        account.arriving += held - self._held
        is_less, self._held = held < self._held, held
        if account.arriving > account.may_arrive:
            if self._unseen >= 0:
                self.pause(RATE)
            if self._is_held and held > FEW and account.arriving > 2 * account.may_arrive:
                # It takes no answers, and what was read with what those were of would be kept until it does.
                self._obey(self._rules.crowded)
                return
            if unfinished > FEW and self._rules.is_open:
                if account.arriving > 2 * account.may_arrive:
                    # Few bytes became much.
                    self._obey(self._rules.crowded)
                elif not account.may_finish(self):
                    self.pause(CROWD)
                return
        if unfinished <= FEW:
            self._make_way()
        if is_less:
            account.make_way(None)

    def _forget_held(self) -> None:
        held, self._held = self._held, 0
        self._account.arriving -= held
        self._make_way()
        if held:
            self._account.make_way(None)

    def whole(self) -> None:
        """A message that was not whole is. Others that wait have their turn before what follows, which may have come
        with its end."""
        self._make_way()

    def _make_way(self) -> None:
        """Nothing is to be read to its end here."""
        if self._pauses & CROWD or self._account.finishing is self:
            self._account.make_way(self)
            self.resume(CROWD)

    def take_message(self, payload: bytes) -> None:
        """Answer a message that took the long way; where it took time, others have their turn before the rest of it."""
        account = self._account
        if len(payload) <= LARGE or self._receiver is None or account.arriving > account.may_arrive:
            # Where too much of its user waits, it does not wait as well: unpacked, it may be much more than what came.
            self.answer([payload])
            return
        # It counts as a frame when it comes again.
        self._rules.rate.give_back(1)
        self._leave([payload], b"")

    def answer(self, payloads: list[bytes]) -> list[bytes]:
        """Answer messages, where anybody does; returns those for which there was no time."""
        receiver = self._receiver
        if not payloads or receiver is None:
            return []
        replies = receiver.receive(payloads)
        if replies and self._rules.is_open:
            self._reply(replies)
        return self._take_left(receiver) if receiver.left else []

    def _take_left(self, receiver: Receiver) -> list[bytes]:
        """The messages that ``receiver`` has left, which count as frames when they come again."""
        left, receiver.left = receiver.left, []
        self._rules.rate.give_back(len(left))
        return left

    def _reply(self, replies: list[bytes]) -> None:
        """Send replies; the time counts where they are compressed."""
        outgoing, receiver = self._outgoing, self._receiver
        if outgoing.window_bits and receiver is not None:
            begun = perf_counter()
            outgoing.reply(replies)
            receiver.account.spend(begun, perf_counter())
        else:
            outgoing.reply(replies)

    def _take_frames(self, data: bytes) -> None:
        """Take frames, and parts of them, as many as one turn has time for; the rest waits."""
        account = self._account
        begun, measured = perf_counter(), account.busy
        self._take_some_frames(data, begun)
        # What was charged for the messages among them is in it.
        account.spend(begun + account.busy - measured, perf_counter())

    def _take_some_frames(self, data: bytes, begun: float) -> None:
        offset, budget = 0, FRAMES_PER_ITERATION
        while offset < len(data) and budget > 0 and (not offset or perf_counter() - begun < TURN):
            frames = self._owner
            if frames is None or frames.state == CLOSED or self._pauses & REFUSED:
                return
            if (missing := frames.missing()) is not None:
                end, cost = offset + missing, 1
                self._feed(frames, data, offset, end)
            else:
                if waiting := frames.take_back():
                    # The beginning of a frame header: look again, with what follows.
                    data, offset = waiting + data[offset:], 0
                end, cost = self._take_next(frames, data, offset)
            if self._backlog is not None:
                # What follows waits already.
                return
            offset = end
            budget -= cost
        if offset < len(data):
            self._leave([], data[offset:])

    def _take_next(self, frames: ReadingConnection, data: bytes, offset: int) -> tuple[int, int]:
        """Take what begins at ``offset``, between two frames: whole messages, or pings, or one frame.

        :returns: where it ends, and the frames of the long way that it costs as much as.
        """
        if frames.state == OPEN and self._receiver is not None:
            if frames.at_message_boundary:
                payloads, end = split(data, offset, self._largest)
                if payloads:
                    cost = len(payloads) // MESSAGES_PER_FRAME
                    self._take_messages(payloads, data, end)
                    return end, cost
                offset = end
            answers, end, count = pongs(data, offset, MESSAGES_PER_ITERATION)
            if count:
                self._outgoing.send_frames(answers)
                if not self._rules.rate.spend(count):
                    self._rules.rate.take_back(count)
                    self._slow_down([], data[end:], count)
                return end, 1 + count // MESSAGES_PER_FRAME
        end = end_of_frame(data, offset)
        if frames.state == CLOSING:
            if end < len(data) and data[offset] & 0x0F != _CLOSE:
                # Of a client that was told goodbye only its own goodbye matters.
                return end, 0
        elif not self._rules.rate.spend(1):
            self._rules.rate.take_back(1)
            self._slow_down([], data[offset:])
            return offset, 1
        self._feed(frames, data, offset, end)
        return end, 1

    def _feed(self, frames: ReadingConnection, data: bytes, offset: int, end: int) -> None:
        """Give the state machine what stands in ``data`` from ``offset`` to ``end``.

        What follows waits behind a message that waits.
        """
        unseen = self._unseen
        frames.feed(data[offset:end])
        if self._backlog is not None:
            payloads, rest = self._backlog
            after = data[end:]
            self._backlog = payloads, rest + after
            if self._unseen >= 0:
                # What was looked at for pings before is not looked at, and counted, again.
                self._unseen = min(unseen, len(after))

    def _take_messages(self, payloads: list[bytes], data: bytes, offset: int) -> None:
        """Answer as many messages as one turn has time for and the rate allows; the others wait, and what stands in
        ``data`` from ``offset`` on behind them."""
        later = payloads[MESSAGES_PER_ITERATION:]
        del payloads[MESSAGES_PER_ITERATION:]
        is_slow = not self._rules.rate.spend(len(payloads))
        if is_slow:
            self._hold_back(payloads, later, data[offset:])
        elif later:
            self._continue_later(later, data[offset:])
        receiver = self._receiver
        if receiver is not None:
            account = receiver.account
            account.busy += READ + MESSAGE * len(payloads)
            if account.busy >= account.due:
                account.over()
        left = self.answer(payloads)
        if left:
            self._leave(left, data[offset:])

    def _leave(self, payloads: list[bytes], rest: bytes) -> None:
        """Let messages, and the bytes behind them, wait before what waits already; not where nobody needs them."""
        if self._transport is None or self._pauses & REFUSED:
            return
        if self._backlog is None:
            self._continue_later(payloads, rest)
        else:
            waiting, after = self._backlog
            self._backlog = payloads + waiting, after

    def _hold_back(self, payloads: list[bytes], later: list[bytes], rest: bytes) -> None:
        """Take those of ``payloads`` that could not be spent off its end, to wait before ``later`` and ``rest``."""
        kept = len(payloads) - self._rules.rate.take_back(len(payloads))
        later = payloads[kept:] + later
        del payloads[kept:]
        self._slow_down(later, rest, len(later))

    def _obey(self, ending: Ending) -> None:
        if self._owner is not None:
            self._owner.obey(ending)

    # -- the next turn

    def _continue_later(self, payloads: list[bytes], rest: bytes) -> None:
        """Let others have their turn before this client's next messages."""
        if self._unseen >= 0:
            self._slow_down(payloads, rest)
            return
        self._backlog = payloads, rest
        self._next = None
        self.pause(FAIRNESS)
        self._clock.callLater(0, self._continue)

    def _slow_down(self, payloads: list[bytes], rest: bytes, count: int = 0) -> None:
        """Let messages, and the bytes behind them, wait until the rate allows them.

        :param count: frames that came and were not counted as such.
        """
        self._backlog = payloads, rest
        self._next = None
        if self._unseen < 0:
            self._unseen = len(rest)
        else:
            # It is in what was taken since that pings were looked for.
            self._unseen = min(self._unseen, len(rest))
            count = 0
        self._look_for_pings(count)
        if len(rest) < min(self._largest, WAITING) and self._account.arriving <= self._account.may_arrive:
            self.resume(FAIRNESS | RATE)
        else:
            self.pause(RATE)
        rate = self._rules.rate
        delay = max(rate.wait(1), min(LOOK, rate.wait(MESSAGES_PER_ITERATION)))
        self._wake = self._clock.callLater(min(LAST_LOOK, delay), self._continue)

    def _look_for_pings(self, count: int = 0) -> None:
        """Answer the pings among what waits, and count all frames that came; a client that floods is ended.

        :param count: frames that came besides.
        """
        if self._backlog is None:
            return
        payloads, rest = self._backlog
        start = position = begin = len(rest) - self._unseen
        # Up to a whole message of it, of which a copy is made only where something is taken out.
        view = memoryview(rest)
        kept, answers = [view[:begin]], []
        begun = perf_counter()
        while position < len(rest):
            if perf_counter() - begun > TURN and position > start:
                self._look_on()
                break
            messages, end = split(rest, position, self._largest)
            count += len(messages)
            position = end
            answer, end, pinged = pongs(rest, position, MESSAGES_PER_ITERATION)
            if pinged:
                kept.append(view[begin:position])
                begin = position = end
                answers.append(answer)
                count += pinged
            elif not messages:
                end = end_of_frame(rest, position)
                if end == len(rest):
                    # It may not be all there.
                    break
                position = end
                count += 1
        if answers:
            if self._rules.is_open:
                self._outgoing.send_frames(b"".join(answers))
            self._backlog = payloads, b"".join((*kept, view[begin:]))
        self._unseen = len(rest) - position
        self._account.spend(begun, perf_counter())
        ending = self._rules.came(count)
        if ending is not None and self._rules.is_open:
            self._obey(ending)

    def _look_on(self) -> None:
        """Go on looking for pings when others have had their turn."""
        if not self._looks_on:
            self._looks_on = True
            self._clock.callLater(0, self._look_further)

    def _look_further(self) -> None:
        self._looks_on = False
        if self._unseen > 0 and self._transport is not None:
            self._look_for_pings()

    def _continue(self) -> None:
        self._wake = None
        if self._backlog is None or self._transport is None:
            return
        if self._account.is_spent:
            self._account.later(self._continue)
            return
        if self._pauses & OUTPUT and self._rules.is_open:
            # Its replies would only pile up. The pings of one that is slowed are looked for as they come.
            self._is_held = True
            self._count_held()
            return
        payloads, rest = self._backlog
        if not self._rules.is_open:
            payloads = []
        self._backlog = None
        if payloads:
            self._take_messages(payloads, rest, 0)
        if rest and self._backlog is None:
            self._take_frames(rest)
        if self._backlog is None:
            self._unseen = -1
            self._look_ahead()
            self.resume(FAIRNESS | RATE)
        self._count_held()
