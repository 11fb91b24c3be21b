"""Rate limits: failed logins by address, frames by connection."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["AttemptWindow", "TokenBucket"]


class AttemptWindow:
    """Failed attempts by peer over the last minute.

    :param limit: attempts allowed in ``span`` seconds.
    :param clock: seconds on the monotonic clock.
    :param peers: how many peers are remembered; the one quiet the longest is forgotten first.
    """

    def __init__(self, limit: int, clock: Callable[[], float], span: float = 60.0, peers: int = 10_000):
        self._limit = limit
        self._clock = clock
        self._span = span
        self._peers = peers
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def exhausted(self, peer: str) -> bool:
        """Whether ``peer`` has used up its attempts and its minute has not passed."""
        count, since = self._failures.get(peer, (0, 0.0))
        if count and self._clock() - since >= self._span:
            del self._failures[peer]
            return False
        return count >= self._limit

    def failed(self, peer: str) -> None:
        """Count one failure of ``peer``; its minute starts anew with each."""
        count, _ = self._failures.pop(peer, (0, 0.0))
        self._failures[peer] = count + 1, self._clock()
        if len(self._failures) > self._peers:
            self._failures.popitem(last=False)


class TokenBucket:
    """Frames a client may still send: ``burst`` at once, ``rate`` a second over time.

    The clock is asked only when the bucket is empty, so that a frame within the limits costs a subtraction.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]):
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._since = clock()

    def spend(self, count: int) -> bool:
        """Take ``count`` tokens; false when the client is over its rate."""
        self._tokens -= count
        if self._tokens >= 0:
            return True
        now = self._clock()
        self._tokens = min(self._burst - count, self._tokens + (now - self._since) * self._rate)
        self._since = now
        return self._tokens >= 0
