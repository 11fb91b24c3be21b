"""Which of many equal log lines are written, so that no peer can fill a disk with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

__all__ = ["Throttle"]

#: Causes remembered; the one that was heard of longest ago is forgotten first.
MOST = 1000


class Throttle:
    """At most one line a second for each cause.

    :param seconds: the monotonic clock.
    """

    def __init__(self, seconds: Callable[[], float]):
        self._seconds = seconds
        self._last: dict[Hashable, tuple[float, int]] = {}

    def passes(self, cause: Hashable) -> int | None:
        """How many lines for ``cause`` were left out since the last, if this one is to be written; else ``None``."""
        now = self._seconds()
        last, silent = self._last.pop(cause, (float("-inf"), 0))
        if now - last < 1.0:
            self._last[cause] = last, silent + 1
            return None
        if len(self._last) >= MOST:
            del self._last[next(iter(self._last))]
        self._last[cause] = now, 0
        return silent
