"""The clock that timers run on.

Twisted's reactors take the wall clock, which somebody may set: an hour forward fires every timer at
once, an hour back stops them for an hour.
"""
from __future__ import annotations

import time
from typing import Any

__all__ = ["use_monotonic"]


def use_monotonic(reactor: Any) -> None:
    """Let all timers of ``reactor`` run on the monotonic clock; those that wait keep the time they have left.

    Does nothing to a clock of tests, or to a reactor that is monotonic already.
    """
    from twisted.internet.base import ReactorBase

    if not isinstance(reactor, ReactorBase) or reactor.seconds is time.monotonic:
        return
    shift = time.monotonic() - reactor.seconds()
    for call in reactor.getDelayedCalls():
        call.time += shift
        call.seconds = time.monotonic
    reactor.seconds = time.monotonic
