"""The clock that timers run on.

Twisted's reactors take the wall clock, which somebody may set: an hour forward fires every timer at
once, an hour back stops them for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["use_monotonic"]


def use_monotonic(reactor: Any) -> None:
    """Let all timers of ``reactor`` run on the monotonic clock from now on.

    The reactor's time goes on from the value it has, so this may be done while it runs: a reactor that is
    just looking for timers that are due has read its clock before. Does nothing to a clock of tests, or
    the second time.
    """
    from twisted.internet.base import ReactorBase

    if not isinstance(reactor, ReactorBase) or getattr(reactor.seconds, "is_monotonic", False):
        return
    seconds = _going_on_from(reactor.seconds())
    calls: Any = reactor.getDelayedCalls()
    for call in calls:
        call.seconds = seconds
    reactor.seconds = seconds


def _going_on_from(start: float) -> Callable[[], float]:
    monotonic = time.monotonic
    offset = start - monotonic()

    def seconds() -> float:
        return monotonic() + offset

    seconds.is_monotonic = True  # type: ignore[attr-defined]
    return seconds
