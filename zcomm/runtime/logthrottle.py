"""Limits how much is logged of what peers bring about, so that none of them can fill a disk with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from twisted.python.failure import Failure

__all__ = ["MOST_LINES", "MOST_OF_ONE", "MOST_TRACEBACK", "Throttle", "place_of"]

#: Lines of one throttle within an interval, whatever their causes are, and of one source.
MOST_LINES, MOST_OF_ONE = 20, 5
#: Characters of a traceback, and the frames that it begins and ends with: what a client sends decides how deep one is,
#: and what an exception says.
MOST_TRACEBACK, _FIRST, _LAST = 8000, 10, 30
#: Characters of all tracebacks of a throttle that may come at once, and a second; what is more is that short.
TRACEBACKS, TRACEBACK_RATE, SHORT_TRACEBACK = 80_000, 2_000, 500
#: Causes remembered; the one that was heard of longest ago is forgotten first.
MAX_CAUSES = 1000
#: Frames at the end of a traceback that tell one failure from another.
_PLACE = 8


def place_of(failure: Failure) -> Hashable:
    """The kind of ``failure`` and its place in the code, which is the cause of all that fail there."""
    return type(failure.value), tuple((file, number) for _, file, number, *_ in failure.frames[-_PLACE:])


def _shortened(failure: Failure, most: int) -> _Shortened:
    """A copy of ``failure`` whose traceback has ``most`` characters and a few."""
    short = _Shortened.__new__(_Shortened)
    short.__dict__.update(failure.__dict__)
    if (more := len(failure.frames) - _FIRST - _LAST) > 0:
        left_out = (f"{more} more", "...", 0, (), ())
        short.frames = [*failure.frames[:_FIRST], left_out, *failure.frames[-_LAST:]]
    text = Failure.getTraceback(short)
    if (more := len(text) - most) > 0:
        first = most // 4
        text = f"{text[:first]}\n[{more} characters left out]\n{text[first + more :]}"
    short.text = text
    return short


class _Shortened(Failure):
    text: str

    def getTraceback(self, *args: Any, **kwargs: Any) -> str:  # noqa: N802 (its name in Twisted)
        return self.text


class Throttle:
    """One line for each cause and interval, and no more than :data:`MOST_LINES` of all causes together.

    Tracebacks are short ones once there were :data:`TRACEBACKS` of late.

    :param seconds: the monotonic clock.
    :param interval: seconds.
    """

    def __init__(self, seconds: Callable[[], float], interval: float = 1.0):
        self._seconds = seconds
        self._interval = interval
        self._last: dict[Hashable, tuple[float, int]] = {}
        #: Since when lines are counted, how many were written since, and of each source.
        self._since = float("-inf")
        self._lines = 0
        self._of: dict[Hashable, int] = {}
        #: Characters that are left for tracebacks, and when that was so.
        self._room, self._room_at = float(TRACEBACKS), seconds()

    def log(
        self, emit: Callable[..., None], cause: Hashable, line: str, *, source: Hashable = None, **values: Any
    ) -> None:
        """Write ``line`` unless one for ``cause`` was written within the interval, or too many others.

        The line says how many were left out since the last one.

        :param emit: the logger's method, such as ``log.warn``.
        :param source: who brought it about, if that is known: nobody takes all lines from the others.
        :param values: the fields of ``line``, which is a format.
        """
        silent = self.passes(cause, source)
        if silent is not None:
            self._write(emit, silent, line, **values)

    @staticmethod
    def _write(emit: Callable[..., None], silent: int, line: str, **values: Any) -> None:
        if silent:
            line += " ({silent} more like this were not logged)"
        emit(line, silent=silent, **values)

    def _shortened(self, failure: Failure) -> Failure:
        now = self._seconds()
        self._room = min(TRACEBACKS, self._room + (now - self._room_at) * TRACEBACK_RATE)
        self._room_at = now
        short = _shortened(failure, MOST_TRACEBACK if self._room > 0 else SHORT_TRACEBACK)
        self._room -= len(short.text)
        return short

    def log_failure(
        self,
        emit: Callable[..., None],
        line: str,
        failure: Failure,
        *,
        cause: Hashable = None,
        source: Hashable = None,
        **values: Any,
    ) -> None:
        """Write ``line`` with the traceback of ``failure``, once in an interval for each kind and place in the code.

        :param emit: the logger's method for failures, ``log.failure``.
        :param cause: what it counts as in the place of that.
        """
        silent = self.passes(place_of(failure) if cause is None else cause, source)
        if silent is not None:
            self._write(emit, silent, line, failure=self._shortened(failure), **values)

    def passes(self, cause: Hashable, source: Hashable = None) -> int | None:
        """The number of lines for ``cause`` left out since the last, if this one is to be written; else ``None``."""
        now = self._seconds()
        last, silent = self._last.pop(cause, (float("-inf"), 0))
        if now - last < self._interval or not self._has_room(now, source):
            self._remember(cause, last, silent + 1)
            return None
        self._remember(cause, now, 0)
        self._lines += 1
        self._of[source] = self._of.get(source, 0) + 1
        return silent

    def _has_room(self, now: float, source: Hashable) -> bool:
        if now - self._since >= self._interval:
            self._since, self._lines = now, 0
            self._of.clear()
        return self._lines < MOST_LINES and (source is None or self._of.get(source, 0) < MOST_OF_ONE)

    def _remember(self, cause: Hashable, last: float, silent: int) -> None:
        if len(self._last) >= MAX_CAUSES:
            del self._last[next(iter(self._last))]
        self._last[cause] = last, silent
