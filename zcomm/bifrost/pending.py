"""Who is being decided about, and who waits for that.

At most so many handshakes are open at a time, and a share of them by peer, so that a host that connects and
says nothing locks nobody out. Whoever comes when its share is taken waits unread for a place: a thousand
clients of one host that come back in the same second all get in, one after the other.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Protocol

from zcomm.config import Limits

__all__ = ["Arrival", "Doorway"]

#: How many may wait, for each one that may be decided about.
WAITING = 16


class Arrival(Protocol):
    """What the doorway asks of a new connection."""

    peer: str

    def begin(self, seconds: float) -> None:
        """Read the handshake; it has this long."""

    def wait(self) -> None:
        """Read nothing yet."""

    def drop(self, why: str) -> None:
        """Hang up."""


class Doorway:
    """Counts those being decided about, and keeps those that wait in line.

    :param limits: how many in all and of one peer, and how long a handshake may take, waiting included.
    :param clock: an ``IReactorTime``.
    """

    def __init__(self, limits: Limits, clock: Any):
        self._limits = limits
        self._clock = clock
        self._inside: dict[Arrival, None] = {}
        self._by_peer: dict[str, int] = {}
        # By peer, so that each peer is served in turn; with the timer that ends the waiting.
        self._lines: OrderedDict[str, deque[Arrival]] = OrderedDict()
        self._timers: dict[Arrival, Any] = {}

    @property
    def count(self) -> int:
        """How many are being decided about."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._timers)

    def refuses(self, peer: str) -> bool:
        """Whether nobody more of ``peer`` may even wait: lines are bounded as places are, in all and by peer, or one
        host's line would shut the door for everybody."""
        return len(self._timers) >= self._limits.pending * WAITING or (
            len(self._lines.get(peer, ())) >= self._limits.pending_per_peer * WAITING
        )

    def arrive(self, arrival: Arrival) -> None:
        """Give ``arrival`` a place, or let it wait for one."""
        if self._has_place(arrival.peer):
            self._enter(arrival, self._limits.handshake_timeout)
            return
        arrival.wait()
        self._lines.setdefault(arrival.peer, deque()).append(arrival)
        self._timers[arrival] = self._clock.callLater(self._limits.handshake_timeout, arrival.drop, "pending_limit")

    def leave(self, arrival: Arrival) -> None:
        """``arrival`` is decided about, or gone: its place is the next one's. Harmless when it had none."""
        if arrival in self._inside:
            del self._inside[arrival]
            left = self._by_peer.pop(arrival.peer) - 1
            if left:
                self._by_peer[arrival.peer] = left
            self._serve_next()
        elif arrival in self._timers:
            # Its place in the line is skipped when its turn comes.
            timer = self._timers.pop(arrival)
            if timer.active():
                timer.cancel()

    def _has_place(self, peer: str) -> bool:
        return len(self._inside) < self._limits.pending and self._by_peer.get(peer, 0) < self._limits.pending_per_peer

    def _enter(self, arrival: Arrival, seconds: float) -> None:
        self._inside[arrival] = None
        self._by_peer[arrival.peer] = self._by_peer.get(arrival.peer, 0) + 1
        arrival.begin(seconds)

    def _serve_next(self) -> None:
        for peer in list(self._lines):
            line = self._lines[peer]
            while line and line[0] not in self._timers:
                line.popleft()
            if not line:
                del self._lines[peer]
            elif self._has_place(peer):
                arrival = line.popleft()
                self._lines.move_to_end(peer)
                timer = self._timers.pop(arrival)
                seconds = max(0.0, timer.getTime() - self._clock.seconds())
                timer.cancel()
                self._enter(arrival, seconds)
                return
