"""What one peer may use up before it has proved anything: pending handshakes and failed tokens."""
from __future__ import annotations

from collections import OrderedDict
from typing import Callable

__all__ = ["AttemptWindow", "PendingHandshakes", "TokenBucket"]


class PendingHandshakes:
    """Counts connections that have not finished the opening handshake, in all and by peer.

    The share of a peer is what keeps one silent host from locking the others out.
    """

    __slots__ = ("_by_peer", "_per_peer", "_total", "count")

    def __init__(self, total: int, per_peer: int):
        self._total = total
        self._per_peer = per_peer
        self._by_peer: dict[str, int] = {}
        self.count = 0

    def enter(self, peer: str) -> bool:
        """Take a place for ``peer``; false when there is none."""
        mine = self._by_peer.get(peer, 0)
        if self.count >= self._total or mine >= self._per_peer:
            return False
        self.count += 1
        self._by_peer[peer] = mine + 1
        return True

    def leave(self, peer: str) -> None:
        """Give the place back."""
        self.count -= 1
        left = self._by_peer[peer] - 1
        if left:
            self._by_peer[peer] = left
        else:
            del self._by_peer[peer]


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
