"""Timeouts of many owners, by one timer of the reactor's.

Nearly all of them are cleared long before; a timer for each would cost more than what it watches over.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

__all__ = ["Timeouts"]


class Timeouts:
    """Calls that are made in a while, one for each owner, unless they are cleared before.

    :param clock: for the one timer. It may run on for a while when nothing is left to wait for.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime):
        self._clock = clock
        self._calls: dict[object, tuple[float, Callable[[], None]]] = {}
        self._timer: IDelayedCall | None = None
        self._next = 0.0

    def set(self, owner: object, seconds: float, call: Callable[[], None]) -> None:
        """Make ``call`` in ``seconds``, in place of what ``owner`` waited for before."""
        due = self._clock.seconds() + seconds
        self._calls[owner] = due, call
        if self._timer is None or due < self._next:
            self._start_timer(due)

    def clear(self, owner: object) -> None:
        """Make no call for ``owner``; harmless when none was set."""
        self._calls.pop(owner, None)

    def stop(self) -> None:
        """Forget all of them, and the timer."""
        self._calls.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._clock.callLater(max(0.0, due - self._clock.seconds()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        for owner, (due, call) in list(self._calls.items()):
            # A call may have cleared the timeouts of others.
            if due <= now and self._calls.pop(owner, None) is not None:
                try:
                    call()
                except Exception:
                    self._log.failure("what a timeout calls failed")
        if self._calls and self._timer is None:
            self._start_timer(min(due for due, _ in self._calls.values()))
