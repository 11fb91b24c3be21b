"""The rules for a client that has shaken hands: how fast, how large, how much may wait, who is alive, how it ends.

Facts go in and decisions come out, as values: nothing here reads, writes or sets a timer, so the protocol on a socket
and the channel in memory of :mod:`zcomm.testing` are driven by the same rules (docs/protocol.rst, "Limits").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.budget.account import Account
from zcomm.budget.memory import Memory
from zcomm.config import Limits
from zcomm.wire.closecodes import CloseCode, Ending

__all__ = ["CLOSING_TIME", "FAULTS", "NOT_UTF8", "REFUSED", "SMALL", "Session"]

#: How many times its rate a client sends that floods, and for how many seconds.
FLOOD, FLOOD_TIME = 10, 10.0
#: Bytes a second that a client takes at least of what waits for it, over as many stall timeouts; and in how many it
#: would have taken all, at its pace.
LEAST_RATE, WINDOW, ALL_OF_IT = 1024, 3, 60
#: How often one looks within a stall timeout.
LOOKS = 4
#: Bytes of an answer that takes little room, where nothing waits: the system has as much for it.
SMALL = 64 * 1024
#: Seconds for a client to answer a close frame (RFC 6455 section 7.1.1), and for it to hang up afterwards.
CLOSING_TIME = 1.0
#: The ``drop_reason`` of a connection that was counted when it was refused.
REFUSED = "refused"

_FLOOD = Ending("rate_limit", CloseCode.POLICY_VIOLATION, "Rate limit exceeded", at_once=True)
_BINARY = Ending(code=CloseCode.UNSUPPORTED_DATA, reason="Text messages only")
_TOO_BIG = Ending(code=CloseCode.MESSAGE_TOO_BIG, reason="Message too big")
_CROWDED = Ending("too_many_unfinished", CloseCode.TRY_AGAIN_LATER, "Too many unfinished messages", at_once=True)
#: The end of a client whose text is none, or cannot be unpacked.
NOT_UTF8 = Ending(code=CloseCode.INVALID_PAYLOAD, reason="Invalid payload")
#: The reasons of what is found in the frames before a message is whole: the same as where the rules find it.
FAULTS: dict[int | None, str] = {ending.code: ending.reason for ending in (_TOO_BIG, NOT_UTF8)}
_SLOW = Ending("slow_consumer", CloseCode.TRY_AGAIN_LATER, "Slow consumer", at_once=True)
_STALLED = Ending("stalled")
_SILENT = Ending("ping_timeout")


class Session:
    """The rules as they stand for one client.

    :param limits: those of the server.
    :param seconds: the monotonic clock.
    :ivar is_open: whether the client is spoken with; false from the goodbye on, whoever says it.
    :ivar heard: whether anything has come from the client since the last ping. A plain attribute, and ``rate`` with
        it, because each read of the server's sets it.
    :ivar rate: the frames that the client may still send; what is more waits.
    """

    __slots__ = (
        "_account",
        "_charged",
        "_flooding_since",
        "_frames",
        "_in_front",
        "_limits",
        "_looks",
        "_memory",
        "_seconds",
        "_taken",
        "heard",
        "is_open",
        "rate",
    )

    #: The end of a client whose user has too much that is not whole.
    crowded = _CROWDED

    def __init__(self, limits: Limits, seconds: Callable[[], float]):
        self._limits = limits
        self._seconds = seconds
        #: While the client is over its rate: since when, and how many frames have come.
        self._flooding_since: float | None = None
        self._frames = 0
        self.rate = TokenBucket(limits.frame_rate, limits.frame_burst, seconds)
        self.heard = True
        self.is_open = True
        #: Whose memory the answers take that wait, from when the client is let in; and how much they take of it.
        self._memory: Memory | None = None
        self._account: Account | None = None
        self._charged = 0
        #: What was taken in all, and what waited, at the last looks.
        self._looks: deque[tuple[int | None, int]] = deque(maxlen=WINDOW * LOOKS)
        #: What was taken in all by the last ping, and how much of what the system had taken stood in front of that.
        self._taken = self._in_front = 0

    def charges(self, memory: Memory, account: Account) -> None:
        """Charge what waits for the client to ``account`` from now on."""
        self._memory, self._account = memory, account

    def came(self, count: int) -> Ending | None:
        """Count frames of a client that is over its rate; the end of one that floods.

        Who is over its rate is slowed. It floods when more than ten times the rate came, on average, over ten seconds.
        """
        now = self._seconds()
        if self._flooding_since is None:
            self._flooding_since, self._frames = now, 0
            return None
        self._frames += count
        passed = now - self._flooding_since
        if passed >= 1.0 and self._frames <= FLOOD * self._limits.frame_rate * passed:
            self._flooding_since, self._frames = now, 0
        return _FLOOD if passed >= FLOOD_TIME and self._frames else None

    def begins(self, is_binary: bool, is_binary_taken: bool) -> Ending | None:
        """Judge a message by its first frame.

        :param is_binary_taken: whether anybody knows what to do with a binary one.
        """
        return _BINARY if is_binary and not is_binary_taken else None

    def completed(self, size: int) -> Ending | None:
        """Judge a whole message by its bytes."""
        return _TOO_BIG if size > self._limits.message_size else None

    def may_wait(self, queued: int, size: int) -> Ending | None:
        """Let ``size`` bytes wait with ``queued`` others; the end of the connection where those are too many.

        Neither counts answers. One message larger than the limit may wait while no other does.
        """
        return _SLOW if queued and queued + size > self._limits.queue_size else None

    def has_room(self, size: int, waits: bool) -> bool:
        """Whether an answer of ``size`` bytes may be sent: it takes of its user's memory as far as it has to wait.

        :param waits: whether the client has something left to take.
        """
        if self._memory is None or self._account is None:
            return True
        if self._memory.fits(self._account, size, is_small=size <= SMALL and not waits):
            return True
        self._account.refused += 1
        return False

    def owes(self, size: int) -> None:
        """Note how many bytes of answers wait by now, wherever they do."""
        change = size - self._charged
        if not change or self._memory is None or self._account is None:
            return
        self._charged = size
        if change > 0:
            self._memory.take(self._account, change)
        else:
            self._memory.release(self._account, -change)

    @property
    def interval(self) -> float:
        """Seconds between looks at what a client takes of what waits for it."""
        return self._limits.stall_timeout / LOOKS

    def watched(self, taken: int | None, left: int) -> None:
        """Something waits from now on. How much of it was taken is to be looked at each :attr:`interval`.

        :param taken: bytes that the client's system has taken so far, of any beginning; ``None`` where unknown.
        :param left: bytes that wait.
        """
        self._looks.clear()
        self._looks.append((taken, left))

    def looked(self, taken: int | None, left: int) -> Ending | None:
        """Compare with what was taken before; the end of the connection where it is nothing for as long as a stall
        timeout, or far too little.

        A client that is slow stays. One that takes less than a slow line brings, on average, does not mean to take it.
        """
        looks = self._looks
        if len(looks) >= LOOKS:
            before, _ = looks[-LOOKS]
            if before is None or taken is None or taken <= before:
                return _STALLED
            begun, waited = looks[0]
            passed = WINDOW * self._limits.stall_timeout
            if len(looks) == WINDOW * LOOKS and begun is not None:
                if taken - begun < min(waited, max(LEAST_RATE * passed, waited * WINDOW / ALL_OF_IT)):
                    return _STALLED
        looks.append((taken, left))
        return None

    def pinged(self, taken: int, in_front: int) -> Ending | None:
        """Judge the client as a ping is due: the end of one that has said nothing since the last; else ping it.

        The ping stands behind what the system has for the client already. Where that was much, and the client's line is
        slow, it may not have got the last one yet: it is heard as long as it takes what stood in front of that, or as
        much as a slow line brings.

        :param taken: bytes that the client's system has taken so far, of any beginning.
        :param in_front: bytes that the server's has for it.
        """
        if not self.heard:
            moved = taken - self._taken
            if not self._in_front or moved < min(self._in_front, LEAST_RATE * self._limits.ping_interval):
                return _SILENT
        self.heard = False
        self._taken, self._in_front = taken, in_front
        return None

    def said_goodbye(self) -> None:
        """Expect nothing but the goodbye of the other side."""
        self.is_open = False
