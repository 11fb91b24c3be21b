"""Deferreds: several that wait for one outcome, and those of coroutines, which may await what asyncio has as well."""

from __future__ import annotations

import asyncio
from asyncio import _enter_task, _leave_task, current_task
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from contextvars import copy_context
from types import CoroutineType
from typing import Any, Generic, NoReturn, TypeVar

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.python.failure import Failure

from zcomm.errors import CommandError
from zcomm.runtime.thread import deferred_of, outcome_of
from zcomm.runtime.thread import in_loop as run_in_loop

__all__ = [
    "Abandoned",
    "Unfinished",
    "Waiters",
    "awaited",
    "caught",
    "driven",
    "following",
    "is_cancellation",
    "is_promise",
    "later",
    "then",
]

T = TypeVar("T")


class Abandoned(CancelledError):
    """Cancelled, and goes on all the same.

    :ivar later: a Deferred of what comes of it; ``None`` where nobody will know.
    """

    def __init__(self, later: Deferred[Any] | None = None):
        super().__init__()
        self.later = later


class Unfinished(Abandoned):
    """Cancelled, and whether it was done is not known: to do it again might do it twice."""


def later(failure: Failure) -> Deferred[Any] | None:
    """A Deferred of what comes of something that goes on after ``failure`` was told of it; ``None`` for all else."""
    # Many an exception has such an attribute, and some raise where they are asked.
    found = getattr(failure.value, "later", None) if failure.check(Abandoned, CommandError) else None
    return found if isinstance(found, Deferred) else None


def then(deferred: Deferred[Any], call: Callable[..., Any], *args: Any) -> Deferred[Any]:
    """``deferred`` with the callback ``call``, which also gets what comes :func:`later`."""
    return deferred.addCallbacks(call, _then_later, args, errbackArgs=(call, *args))


def _then_later(failure: Failure, call: Callable[..., Any], *args: Any) -> Failure:
    outcome = later(failure)
    if outcome is not None:
        outcome.addCallback(call, *args)
    return failure


def driven(steps: Generator[Deferred[Any], Any, T]) -> T | Deferred[T]:
    """The result of ``steps``, which yields Deferreds and gets their results, as with ``inlineCallbacks``; a Deferred
    of it where one of them has not fired yet. As long as they have, it costs next to nothing.

    What ``steps`` raises before the first that has not is raised here.
    """
    result = None
    try:
        while True:
            waiting = steps.send(result)
            result = getattr(waiting, "result", None)
            if not waiting.called or waiting.paused or isinstance(result, (Failure, Deferred)):
                return _driven_on(steps, waiting)
    except StopIteration as end:
        value: T = end.value
        return value


@inlineCallbacks
def _driven_on(steps: Generator[Deferred[Any], Any, T], waiting: Deferred[Any]) -> Generator[Deferred[Any], Any, T]:
    try:
        while True:
            try:
                result = yield waiting
            except Exception as error:
                waiting = steps.throw(error)
            else:
                waiting = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        steps.close()


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

    :param in_loop: runs a coroutine in a program's asyncio loop. When left out it runs on the reactor's thread, where
        it may await Deferreds and, on a reactor that is one of asyncio's, all that asyncio has.
    """
    is_coroutine = isinstance(result, CoroutineType)
    loop = _loop_here()
    if not is_coroutine:
        # Few are none.
        if not is_promise(result) or isinstance(result, Deferred):
            return result
        if isinstance(result, futures.Future):
            return deferred_of(result)
        if isinstance(result, asyncio.Future) and result.get_loop() is not loop:
            return run_in_loop(result.get_loop(), outcome_of(result))
    if in_loop is not None:
        return in_loop(result if is_coroutine else outcome_of(result))
    return Deferred.fromCoroutine(_here(result)) if loop is None else _Driven(_with_deferreds(result), loop).outcome


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _with_deferreds(promise: Any) -> Any:
    """The outcome of ``promise``, on the reactor's thread; it may be a promise in its turn."""
    result = await promise
    while is_promise(result):
        result = await awaited(result)
    return result


async def _here(promise: Any) -> Any:
    """The same where no asyncio loop runs."""
    try:
        return await _with_deferreds(promise)
    except (RuntimeError, AttributeError) as error:
        if not _needs_a_loop(error):
            raise
        raise RuntimeError(
            "a coroutine awaits what asyncio has, and no asyncio loop runs in this thread: on the reactor's thread "
            "that works with twistd --reactor=zcomm or --reactor=asyncio, and nowhere in zcomm.testing"
        ) from error


def _needs_a_loop(error: Exception) -> bool:
    """Whether it is what asyncio raises without a loop, or without a task of one; some of it has no words for that."""
    if str(error) in ("no running event loop", "await wasn't used with future"):
        return True
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).partition(".")[0] == "asyncio"


#: In the place of what asyncio is to wait for, where there is nothing.
_NOTHING: Any = object()


class _Driven(Coroutine[Any, Any, None]):
    """A coroutine that awaits Deferreds as well as what asyncio has: it goes as far as it can at once, and on as a
    Deferred fires that it waits for, as without a loop. Only for what asyncio has there is a task, whose turns it then
    takes, and which waits too where it waits for a Deferred. To the coroutine this object is the current task, and has
    that task made when it is asked for anything a task has: most are not.

    Whoever cancels it speaks its own language. To cancel the Deferred that it waits for is Twisted's, and raises
    Twisted's error; a task that is cancelled, as by ``asyncio.timeout``, raises asyncio's wherever it waits.

    :ivar outcome: fires with its result.
    """

    # Of the class until there is something: most come to their end without.
    _task: Any = None
    #: The Deferred it waits for; what asyncio shall wait for, until the task has it; and whether the task has.
    _at: Deferred[Any] | None = None
    _told: Any = _NOTHING
    _is_given = False
    #: Whether its task is cancelled and has not had the turn since.
    _is_struck = False
    #: What the task waits for as long as the coroutine waits for Deferreds.
    _parked: asyncio.Future[None] | None = None
    _is_over = False
    _result: Any = None

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop):
        self.outcome: Deferred[Any] = Deferred(self._cancel)
        self._coroutine = coroutine
        self._loop = loop
        self._context = copy_context()
        self._go_on(coroutine.send, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made_task(), name)

    def _made_task(self) -> Any:
        if self._task is None:
            self._task = asyncio.Task(self, loop=self._loop, context=self._context)
            # The reactor may end before its last turn, which has nothing left to do.
            self._task._log_destroy_pending = False
        return self._task

    def _step(self, resume: Callable[[Any], Any], value: Any) -> None:
        """Go on to where it waits next, or ends."""
        try:
            awaits = resume(value)
        except StopIteration as end:
            self._result = end.value
            self._is_over = True
        except BaseException:
            self._result = caught()
            self._is_over = True
        else:
            if isinstance(awaits, Deferred):
                self._at = awaits
                awaits.addBoth(self._fired, awaits)
            else:
                self._told = awaits

    def _tell(self) -> None:
        if not self.outcome.called:
            self.outcome.callback(self._result)

    # -- out of a Deferred

    def _go_on(self, resume: Callable[[Any], Any], value: Any) -> None:
        loop = self._loop
        outer = current_task(loop)
        if outer is not None:
            _leave_task(loop, outer)
        stand_in: Any = self
        _enter_task(loop, stand_in)
        try:
            self._context.run(self._step, resume, value)
        finally:
            _leave_task(loop, stand_in)
            if outer is not None:
                _enter_task(loop, outer)
        if self._at is not None:
            return
        if self._told is not _NOTHING:
            self._made_task()
        if self._parked is not None and not self._parked.done():
            self._parked.set_result(None)
        if self._is_over:
            self._tell()

    def _fired(self, result: Any, by: Deferred[Any]) -> None:
        if self._at is not by or self._is_struck or (self._parked is not None and self._parked.cancelled()):
            # The task was cancelled meanwhile: that is the next thing it hears of.
            return
        self._at = None
        if isinstance(result, Failure):
            self._go_on(result.throwExceptionIntoGenerator, self._coroutine)
        else:
            self._go_on(self._coroutine.send, result)

    def _cancel(self, _: Deferred[Any]) -> None:
        if self._at is not None:
            self._at.cancel()
        else:
            self.cancel()

    def cancel(self, msg: Any = None) -> bool:
        """Cancel its task, as whoever has it as the current one does."""
        self._is_struck = not self._is_over
        cancelled: bool = self._made_task().cancel(msg)
        return cancelled

    # -- in a turn of the task

    def send(self, value: None) -> Any:
        """What the task is to wait for now."""
        if self._is_given:
            self._is_given = False
            self._turn(self._coroutine.send, None)
        return self._awaits()

    def throw(self, error: Any, *_: Any) -> Any:
        """The same, after ``error``: of what it waited for, or because the task is cancelled."""
        self._is_struck = False
        told, self._told = self._told, _NOTHING
        at, self._at = self._at, None
        if at is not None:
            at.cancel()
        elif isinstance(told, asyncio.Future) and told.cancel():
            # The task has not waited for it yet, and hears of its end as of any other's.
            self._told = told
            return self._awaits()
        self._is_given = False
        if not self._is_over:
            self._turn(self._coroutine.throw, error)
        return self._awaits()

    def _turn(self, resume: Callable[[Any], Any], value: Any) -> None:
        stand_in: Any = self
        _leave_task(self._loop, self._task)
        _enter_task(self._loop, stand_in)
        try:
            self._step(resume, value)
        finally:
            _leave_task(self._loop, stand_in)
            _enter_task(self._loop, self._task)

    def _awaits(self) -> Any:
        if self._is_over:
            self._tell()
            raise StopIteration
        if self._at is not None:
            self._parked = self._loop.create_future()
            return next(self._parked.__await__())
        told, self._told = self._told, _NOTHING
        self._is_given = True
        return told

    def close(self) -> None:
        """End it where it waits."""
        self._coroutine.close()

    def __await__(self) -> NoReturn:
        raise RuntimeError("a task drives it")


def caught() -> Failure:
    """The exception that is being handled, as a Failure; another one in the place of an exception that cannot even be
    asked for its type."""
    try:
        return Failure()
    except BaseException:
        return Failure(RuntimeError("an exception was raised that raises another when it is looked at"))
