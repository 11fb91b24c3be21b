"""Those who wait for one outcome."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["Waiters"]


class Waiters:
    """Deferreds that fire with True, or fail, together; one that is cancelled is forgotten."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[bool]] = []

    def add(self) -> Deferred[bool]:
        """One more."""
        waiter: Deferred[bool] = Deferred(self._forget)
        self._waiting.append(waiter)
        return waiter

    def settle(self) -> None:
        """It has come about."""
        for waiter in self._all():
            waiter.callback(True)

    def fail(self, error: Exception) -> None:
        """It will not."""
        for waiter in self._all():
            waiter.errback(Failure(error))

    def _all(self) -> list[Deferred[bool]]:
        # Each may ask anew from its callback, and then waits for the next outcome.
        waiting, self._waiting = self._waiting, []
        return waiting

    def _forget(self, waiter: Deferred[bool]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
