"""Deferreds: several that wait for one outcome, and those of coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent import futures
from types import CoroutineType
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from zcomm.runtime.thread import deferred_of, outcome_of
from zcomm.runtime.thread import in_loop as run_in_loop

__all__ = ["Unfinished", "Waiters", "awaited", "caught", "following", "is_cancellation", "is_promise"]

T = TypeVar("T")


class Unfinished(CancelledError):
    """Cancelled, and whether it was done is not known: to do it again might do it twice."""


class Waiters(Generic[T]):
    """Deferreds that wait for the same outcome; true while there are any. One that is cancelled is forgotten.

    :param abandoned: called when the last of them is cancelled: nobody wants the outcome any more.
    """

    def __init__(self, abandoned: Callable[[], None] | None = None) -> None:
        self._waiting: list[Deferred[T]] = []
        self._abandoned = abandoned

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self) -> Deferred[T]:
        """A Deferred of the next outcome."""
        waiter: Deferred[T] = Deferred(self._forget)
        self._waiting.append(waiter)
        return waiter

    def join(self, waiter: Deferred[T]) -> None:
        """Let a Deferred that was made before wait for the next outcome; one that was cancelled stays so."""
        self._waiting.append(waiter)

    def leave(self, waiter: Deferred[T]) -> bool:
        """Let a Deferred wait no more; whether it did wait."""
        if waiter not in self._waiting:
            return False
        self._waiting.remove(waiter)
        return True

    def fire(self, result: T) -> None:
        """Fire all with ``result``. One that is added from a callback waits for the next outcome."""
        for waiter in self._taken():
            # A callback of one may have cancelled another.
            if not waiter.called:
                waiter.callback(result)

    def fail(self, error: Exception | Failure) -> None:
        """Fail all with ``error``. One that is added from an errback waits for the next outcome."""
        for waiter in self._taken():
            if not waiter.called:
                waiter.errback(error)

    def _taken(self) -> list[Deferred[T]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _forget(self, waiter: Deferred[T]) -> None:
        if self.leave(waiter) and not self._waiting and self._abandoned is not None:
            self._abandoned()


def following(outcome: Deferred[T]) -> Deferred[T]:
    """A Deferred of what becomes of ``outcome``. To cancel it, or to limit its time, leaves ``outcome`` as it is."""
    waiters: Waiters[T] = Waiters()
    waiter = waiters.add()
    outcome.addCallbacks(waiters.fire, waiters.fail)
    return waiter


def is_promise(result: Any) -> bool:
    """Whether ``result`` is to be waited for: a coroutine or another awaitable, a Deferred or a future."""
    return hasattr(type(result), "__await__") or isinstance(result, futures.Future)


def is_cancellation(failure: Failure) -> bool:
    """Whether ``failure`` is that something was cancelled: a Deferred, a task, or a future of a thread."""
    return failure.check(CancelledError, asyncio.CancelledError, futures.CancelledError) is not None


def awaited(result: Any, in_loop: Callable[[Coroutine[Any, Any, Any]], Deferred[Any]] | None = None) -> Any:
    """``result`` as it is, or where it is a promise a Deferred of what comes of it in the end. Called on the reactor
    thread, wherever ``result`` was made.

    :param in_loop: runs a coroutine in a program's asyncio loop; it runs on the reactor's thread when left out.
    """
    coroutine: Coroutine[Any, Any, Any]
    if isinstance(result, CoroutineType):
        # Most are. It is looked at again, for it may return a promise in its turn.
        coroutine = result
    elif not is_promise(result) or isinstance(result, Deferred):
        return result
    elif isinstance(result, futures.Future):
        return deferred_of(result)
    elif isinstance(result, asyncio.Future):
        return run_in_loop(result.get_loop(), outcome_of(result))
    else:
        coroutine = outcome_of(result)
    if in_loop is not None:
        return in_loop(coroutine)
    return Deferred.fromCoroutine(_with_deferreds(coroutine))


async def _with_deferreds(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The outcome of ``coroutine``, on the reactor's thread."""
    result = await coroutine
    while is_promise(result):
        result = await awaited(result)
    return result


def caught() -> Failure:
    """The exception that is being handled, as a Failure; another one in the place of an exception that cannot even be
    asked for its type."""
    try:
        return Failure()
    except BaseException:
        return Failure(RuntimeError("an exception was raised that raises another when it is looked at"))
