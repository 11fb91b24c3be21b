"""The limits that workers share: each tells the others, by way of the parent, who is connected to it and who failed.

The others know of a change within a few thousandths of a second. A parent that does not answer leaves each with what it
knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.interfaces import IDelayedCall

from zcomm.bifrost.registry import Elsewhere
from zcomm.bifrost.server import zBifrost

__all__ = ["Others", "Shares"]

#: Seconds between two news of connections; what comes meanwhile is told together.
APART = 0.005
#: Seconds until the next try where the parent does not read.
BEHIND = 0.1
#: The share by which one may be ahead of the mean before it lets the others accept, and connections beyond that.
AHEAD, FEW = 1.05, 1


class Others(Elsewhere):
    """The connections of the other workers."""

    def __init__(self) -> None:
        self._users: dict[int, dict[str, int]] = {}
        self._totals: dict[int, int] = {}
        self.total = 0

    def heard(self, worker: int, users: Mapping[str, int], total: int) -> None:
        """Take what a worker tells: its connections, and those of the users of whom it has more or fewer."""
        known = self._users.setdefault(worker, {})
        for user, count in users.items():
            if count:
                known[user] = count
            else:
                known.pop(user, None)
        self._totals[worker] = total
        self.total = sum(self._totals.values())

    def gone(self, worker: int) -> None:
        """Forget a worker that has ended."""
        self._users.pop(worker, None)
        self._totals.pop(worker, None)
        self.total = sum(self._totals.values())

    def connections_of(self, user: str) -> int:
        """The number of connections that a user has at the others."""
        return sum(users.get(user, 0) for users in self._users.values())

    def is_ahead(self, here: int) -> bool:
        """Whether a worker with ``here`` connections has notably more than the mean."""
        mean = (here + self.total) / (1 + len(self._totals))
        return here > mean * AHEAD + FEW


class Shares:
    """Tells of the connections and failures of one worker.

    :param bifrost: its server.
    :param count: how many workers there are.
    :param send: tells the parent: a name, and what it takes; returns whether it could.
    :param clock: an ``IReactorTime``.
    :ivar others: what the others have told.
    """

    def __init__(self, bifrost: zBifrost, count: int, send: Callable[..., bool], clock: Any):
        self._bifrost = bifrost
        self._send = send
        self._clock = clock
        self._users: set[str] = set()
        self._failed: list[str] = []
        self._timer: IDelayedCall | None = None
        self._told = float("-inf")
        self.others = bifrost.factory.elsewhere = Others()
        for registry in (bifrost.registry, bifrost.factory.callers):
            registry.tell = self._changed
        bifrost.failures.tell = self._note_failure
        bifrost.failures.counting = count

    @property
    def here(self) -> int:
        """The connections of this worker."""
        return len(self._bifrost.registry) + len(self._bifrost.factory.callers)

    def is_ahead(self) -> bool:
        """Whether this worker has notably more connections than the others."""
        return self.others.is_ahead(self.here)

    def failures(self, peers: Iterable[str]) -> None:
        """Take the failures that another worker has counted."""
        for peer in peers:
            self._bifrost.failures.heard(peer)

    def _changed(self, user: str) -> None:
        self._users.add(user)
        self._soon()

    def _note_failure(self, peer: str) -> None:
        # Whoever guesses does not wait: nor do these news.
        if not self._send("failed", [peer]):
            self._failed.append(peer)
            self._soon()

    def _soon(self) -> None:
        if self._timer is None:
            wait = max(0.0, self._told + APART - self._clock.seconds())
            self._timer = self._clock.callLater(wait, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._told = self._clock.seconds()
        registry, callers = self._bifrost.registry, self._bifrost.factory.callers
        users = {user: registry.connections_of(user) + callers.connections_of(user) for user in self._users}
        if not self._send("connections", users, self.here) or (self._failed and not self._send("failed", self._failed)):
            # The parent does not read now.
            self._timer = self._clock.callLater(BEHIND, self._tell)
            return
        self._users.clear()
        self._failed.clear()

    def stop(self) -> None:
        """Tell nothing more."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        for registry in (self._bifrost.registry, self._bifrost.factory.callers):
            registry.tell = None
        self._bifrost.failures.tell = None
