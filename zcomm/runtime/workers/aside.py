"""Calls that wait for a person, and give their place to others meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

__all__ = ["Standing", "aside", "current_call", "here", "seconds_away"]

T = TypeVar("T")

#: The pool and the call of a thread that is a pool's; nothing in any other.
here = threading.local()


class Standing:
    """A call that stands aside, as far as what it waits for needs it."""

    def __init__(self) -> None:
        self._is_over = False
        self._waits_for: Deferred[Any] | None = None

    def until(self, call: Callable[..., Deferred[T]], *args: Any) -> Deferred[T]:
        """``call(*args)``, whose Deferred is cancelled when the call is sent back. Called on the reactor thread."""
        deferred = self._waits_for = call(*args)
        if self._is_over:
            deferred.cancel()
        return deferred

    def end(self) -> None:
        """Wait no longer. Called on the reactor thread."""
        self._is_over = True
        if self._waits_for is not None:
            self._waits_for.cancel()


@contextmanager
def aside() -> Iterator[Standing]:
    """Give the place of this call to another one, for as long as the block takes.

    For a call that waits for a person: it holds its thread, but none of the places that a pool shares out. After the
    block it waits for a place of its owner's again, ahead of the owner's other calls. In a thread that is no pool's
    nothing happens.

    Where as many calls stand aside as may, one more sends another back: the one that has stood longest of the owner
    that has most, so that nobody's keep another's out. Of owners that have as many it is one whose address has most.

    :raises TooBusy: where as many calls of this owner's stand aside as one's may; in the place of what the block does,
        for a call that is sent back.
    """
    pool: Any = getattr(here, "pool", None)
    standing = Standing()
    if pool is None:
        yield standing
        return
    job = here.job
    pool._step_aside(job, standing)
    begun = time.monotonic()
    try:
        yield standing
    finally:
        pool._step_back(job)
        job.away += time.monotonic() - begun


def current_call() -> Any:
    """The call of a pool's that runs in this thread, for :meth:`Workers.give_up`; ``None`` in any other."""
    return getattr(here, "job", None)


def seconds_away() -> float:
    """The seconds that the call of this thread has stood aside so far, and waited for its place again."""
    job = current_call()
    return 0.0 if job is None else job.away
