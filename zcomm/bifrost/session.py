"""The rules for a client that has shaken hands: how fast, how large, how much may wait, who is alive, how it ends.

Facts go in and decisions come out, as values: nothing here reads, writes or sets a timer, so the protocol on a socket
and the channel in memory of :mod:`zcomm.testing` are driven by the same rules (docs/protocol.rst, "Limits").
"""

from __future__ import annotations

from collections.abc import Callable

from zcomm.bifrost.messages import MAX_RESULT
from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.config import Limits
from zcomm.wire.closecodes import CloseCode, Ending

__all__ = ["CLOSING_TIME", "FAULTS", "NOT_UTF8", "REFUSED", "Session"]

#: How many times its rate a client sends that floods, and for how many seconds.
FLOOD, FLOOD_TIME = 10, 10.0
#: Seconds for a client to answer a close frame (RFC 6455 section 7.1.1), and for it to hang up afterwards.
CLOSING_TIME = 1.0
#: The ``drop_reason`` of a connection that was counted when it was refused.
REFUSED = "refused"

_FLOOD = Ending("rate_limit", CloseCode.POLICY_VIOLATION, "Rate limit exceeded", at_once=True)
_BINARY = Ending(code=CloseCode.UNSUPPORTED_DATA, reason="Text messages only")
_TOO_BIG = Ending(code=CloseCode.MESSAGE_TOO_BIG, reason="Message too big")
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

    __slots__ = ("_flooding_since", "_frames", "_limits", "_seconds", "heard", "is_open", "rate")

    def __init__(self, limits: Limits, seconds: Callable[[], float]):
        self._limits = limits
        self._seconds = seconds
        #: While the client is over its rate: since when, and how many frames have come.
        self._flooding_since: float | None = None
        self._frames = 0
        self.rate = TokenBucket(limits.frame_rate, limits.frame_burst, seconds)
        self.heard = True
        self.is_open = True

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

    def may_owe(self, owed: int, size: int) -> bool:
        """Whether an answer of ``size`` bytes may wait behind ``owed`` of others: one at least, of whatever size."""
        return not owed or owed + size <= MAX_RESULT

    @property
    def stall_timeout(self) -> float:
        """Seconds that a client may take nothing of what waits for it."""
        return self._limits.stall_timeout

    def took_nothing(self, before: int | None, now: int | None) -> Ending | None:
        """Compare what was left to send; the end of the connection where it is no less after the stall timeout.

        A client that is slow, but takes something, stays: what waits for it is bounded anyway.

        :param before: bytes that were left; ``None`` where that is not known.
        :param now: bytes that are left.
        """
        return None if before is not None and now is not None and now < before else _STALLED

    def pinged(self) -> Ending | None:
        """Judge the client as a ping is due: the end of one that has said nothing since the last; else ping it."""
        if not self.heard:
            return _SILENT
        self.heard = False
        return None

    def said_goodbye(self) -> None:
        """Expect nothing but the goodbye of the other side."""
        self.is_open = False
