"""Waiting for a condition with a deadline: what tests do where others sleep.

A sleep is too short on a busy machine and too long on an idle one. These return as soon as the
condition holds, and say what they waited for when it does not come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

__all__ = ["DEADLINE", "wait_until", "wait_until_blocking"]

#: Seconds. Generous: it is only ever spent by a test that fails.
DEADLINE = 60.0

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], what: str = "", timeout: float = DEADLINE, reactor: Any = None
) -> Deferred[T]:
    """A Deferred that fires with the first true value of ``condition()``.

    It fails with :exc:`TimeoutError` naming ``what`` after ``timeout`` seconds, and with whatever
    ``condition`` raises.
    """
    if reactor is None:
        from twisted.internet import reactor
    deadline = time.monotonic() + timeout
    found: list[T] = []

    def look() -> None:
        value = condition()
        if value:
            found.append(value)
            poll.stop()
        elif time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for {what or condition!r}")

    poll = LoopingCall(look)
    poll.clock = reactor
    return poll.start(0.01).addCallback(lambda _: found[0])


def wait_until_blocking(condition: Callable[[], T], what: str = "", timeout: float = DEADLINE) -> T:
    """As :func:`wait_until`, for tests without a reactor of their own: blocks, returns the value."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s in vain for {what or condition!r}")
        pause.wait(0.01)
    return value
