"""Limits how often equal lines are logged, so that no peer can fill a disk with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from twisted.python.failure import Failure

__all__ = ["Throttle", "place_of"]

#: Causes remembered; the one that was heard of longest ago is forgotten first.
MAX_CAUSES = 1000
#: Frames at the end of a traceback that tell one failure from another: what a client sends decides how deep it is.
_PLACE = 8


def place_of(failure: Failure) -> Hashable:
    """The kind of ``failure`` and its place in the code, which is the cause of all that fail there."""
    return type(failure.value), tuple((file, number) for _, file, number, *_ in failure.frames[-_PLACE:])


class Throttle:
    """One line for each cause and interval.

    :param seconds: the monotonic clock.
    :param interval: seconds.
    """

    def __init__(self, seconds: Callable[[], float], interval: float = 1.0):
        self._seconds = seconds
        self._interval = interval
        self._last: dict[Hashable, tuple[float, int]] = {}

    def log(self, emit: Callable[..., None], cause: Hashable, line: str, **values: Any) -> None:
        """Write ``line`` unless one for ``cause`` was written within the interval.

        The line says how many were left out since the last one.

        :param emit: the logger's method, such as ``log.warn``.
        :param values: the fields of ``line``, which is a format.
        """
        silent = self.passes(cause)
        if silent is None:
            return
        if silent:
            line += " ({silent} more like this were not logged)"
        emit(line, silent=silent, **values)

    def log_failure(self, emit: Callable[..., None], line: str, failure: Failure, **values: Any) -> None:
        """Write ``line`` with the traceback of ``failure``, once in an interval for each kind and place in the code.

        :param emit: the logger's method for failures, ``log.failure``.
        """
        self.log(emit, place_of(failure), line, failure=failure, **values)

    def passes(self, cause: Hashable) -> int | None:
        """The number of lines for ``cause`` left out since the last, if this one is to be written; else ``None``."""
        now = self._seconds()
        last, silent = self._last.pop(cause, (float("-inf"), 0))
        if now - last < self._interval:
            self._last[cause] = last, silent + 1
            return None
        if len(self._last) >= MAX_CAUSES:
            del self._last[next(iter(self._last))]
        self._last[cause] = now, 0
        return silent
