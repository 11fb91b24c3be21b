"""The reactor for programs that have none: started once, in a thread of its own, when first needed.

A program whose reactor runs already (in its main thread, say) is served by that one.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent import futures
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar, overload

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python import threadable
from twisted.python.failure import Failure

__all__ = [
    "blocking",
    "deferred_of",
    "in_loop",
    "in_reactor",
    "is_in_loop",
    "is_reactors_thread",
    "keep_waking",
    "outcome_of",
]

_log = Logger()
_lock = threading.Lock()
_thread: threading.Thread | None = None
#: What waits for the reactor now: each is called with a Failure when the reactor ends before it has answered.
_waiters: set[Callable[[Any], None]] = set()
_watched = False
_ended = False
#: Whether the interpreter is at its end and the reactor with all in it is being stopped, or has been.
_stopping = False

#: Seconds the interpreter waits at its end for servers and services to stop.
EXIT_TIMEOUT = 30.0

#: Seconds between two looks of a main thread that waits for what the signals it got are for: Python itself looks only
#: where one interrupts the waiting, which one that comes just before does not.
SIGNALS_INTERVAL = 0.25

#: Seconds between two looks for children that have ended; nothing to do, and no system call, without any.
REAP_INTERVAL = 0.05

T = TypeVar("T")
P = ParamSpec("P")


def _installed() -> Any:
    # Twisted types it as the least of what a reactor is.
    from twisted.internet import reactor

    return reactor


def patched_by(modules: Mapping[str, Any]) -> str:
    """The package that has patched threads or sockets of this process, of those known to; empty where none has.

    :param modules: those that are imported, by name.
    """
    gevent, eventlet = modules.get("gevent.monkey"), modules.get("eventlet.patcher")
    kinds = ("thread", "socket", "select")
    if gevent is not None and any(map(gevent.is_module_patched, (*kinds, "threading"))):
        return "gevent"
    if eventlet is not None and any(map(eventlet.is_monkey_patched, kinds)):
        return "eventlet"
    return ""


def _reactor() -> Any:
    """The running reactor; started now where there is none.

    :raises RuntimeError: when it has ended, which it does once, with the program.
    """
    global _thread, _watched
    if patched := patched_by(sys.modules):
        raise RuntimeError(
            f"{patched} has replaced Python's threads by its own, in which zComm's reactor never runs: "
            f"use zComm in a process that is not patched"
        )
    with _lock:
        if _ended or (_thread is not None and not _thread.is_alive()):
            # After os.fork() too: threads do not follow into a child.
            raise RuntimeError("zComm's reactor has ended: the program is at its end, or this is a forked child")
        if "twisted.internet.reactor" not in sys.modules:
            from zcomm.runtime.reactor import install_if_free

            install_if_free()
        reactor = _installed()
        if not _watched:
            _watched = True
            reactor.addSystemEventTrigger("after", "shutdown", _release)
        if _thread is None and not reactor.running:
            from zcomm.runtime.clock import use_monotonic

            use_monotonic(reactor)
            running = threading.Event()
            reactor.callWhenRunning(_watch_children)
            reactor.callWhenRunning(running.set)
            # Not a daemon thread's sudden death: atexit stops it in order. The flag only keeps a
            # reactor that hangs from keeping the interpreter.
            _thread = threading.Thread(
                target=reactor.run, kwargs={"installSignalHandlers": False}, name="zcomm-reactor", daemon=True
            )
            _thread.start()
            running.wait()
            atexit.register(_stop)
            _take_sigterm()
        return reactor


def _take_sigterm() -> None:
    """Let SIGTERM end the program as Ctrl-C does: with what it has to clean up, and with :func:`_stop`.

    Python's own way is to be dead at once, which leaves clients without a goodbye. A program that has a handler of
    its own keeps it; so does one whose main thread is not the one that asks first, because only that thread may set
    one.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


class _Terminated(SystemExit):
    """The end of the program that a signal asked for."""


def _terminate(number: int, frame: FrameType | None) -> None:
    # The second one does not wait for what the first has begun.
    signal.signal(number, signal.SIG_DFL)
    waits = _waits_for_threads(frame)
    if _is_at_end(waits):
        return

    def end() -> NoReturn:
        raise _Terminated(128 + number)

    if not waits:
        # Threads that serve would be waited for at the end of the program, and serve on. A pool waits at the same
        # place; what is registered last comes first.
        getattr(threading, "_register_atexit", atexit.register)(_stop)
    if not is_in_loop():
        _heed_what_is_ignored(number, waits)
        end()
    # Out of the loop itself: whatever runs in it now, a command say, could take it for an error of its own.
    asyncio.get_running_loop().call_soon_threadsafe(end)


def _waits_for_threads(frame: FrameType | None) -> bool:
    """Whether the main thread has come to its end and waits for the other threads that are no daemons.

    :param frame: of what it is at.
    """
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("threading", "_shutdown"):
            return True
        frame = frame.f_back
    return False


def _is_at_end(waits: bool) -> bool:
    """Whether the program is ending anyhow: what is raised then would end nothing but what cleans up after it, which is
    :func:`_stop` or another function that ``atexit`` calls. That comes after the last thread that is no daemon; waiting
    for one of those is no end yet."""
    return _stopping or not (waits or threading.main_thread().is_alive())


def _heed_what_is_ignored(number: int, waits: bool) -> None:
    """Have a :class:`_Terminated` end the program also where Python reports it as ignored and goes on.

    :param waits: whether the main thread waits for others, where it always does so, and then ends with the status that
        it had.
    """
    otherwise = sys.unraisablehook

    def heed(ignored: sys.UnraisableHookArgs) -> None:
        if not isinstance(ignored.exc_value, _Terminated):
            otherwise(ignored)
        elif waits:
            from zcomm.runtime.process import exit_with

            exit_with(128 + number)
        else:
            # It struck an object that ended, say. Raised here it would be ignored again.
            sys.unraisablehook = otherwise
            signal.signal(number, _terminate)
            reactor = _installed()
            reactor.callFromThread(reactor.callLater, SIGNALS_INTERVAL, os.kill, os.getpid(), number)

    sys.unraisablehook = heed


def _watch_children() -> None:
    """Look for children that have ended: their signal goes to the main thread, which is not ours."""
    from twisted.internet.process import reapAllProcesses

    LoopingCall(reapAllProcesses).start(REAP_INTERVAL)


def _release() -> None:
    """The reactor ends: who still waits for it would wait for ever."""
    global _ended
    with _lock:
        _ended = True
        waiters = list(_waiters)
    for finish in waiters:
        finish(Failure(RuntimeError("zComm's reactor has ended before it could answer")))


def _stop() -> None:
    """Stop the reactor, and with it in order everything that runs in it; called when the interpreter ends."""
    global _stopping
    _stopping = True
    thread = _thread
    if thread is None or not thread.is_alive():
        return
    reactor = _installed()

    def stop() -> None:
        if reactor.running:
            reactor.stop()

    reactor.callFromThread(stop)
    until = time.monotonic() + EXIT_TIMEOUT
    while thread.is_alive() and (left := until - time.monotonic()) > 0:
        thread.join(min(left, SIGNALS_INTERVAL))


def is_reactors_thread() -> bool:
    """Whether this is the reactor's thread; in a process without a running one everything is on it."""
    return threadable.ioThread in (None, threading.get_ident())


def is_in_loop() -> bool:
    """Whether an asyncio loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _refuse_own_thread() -> None:
    if threadable.ioThread is not None and is_reactors_thread():
        raise RuntimeError(
            "a blocking call of zcomm.threaded on the reactor's own thread would wait for itself; "
            "use the Deferreds of zcomm.zComm there"
        )


class _Crossing:
    """One call into the reactor's thread: it answers once, whatever comes first."""

    def __init__(self, reactor: Any, answer: Callable[[Any], None]):
        self._reactor = reactor
        self._answer: Callable[[Any], None] | None = answer
        self._deferred: Deferred[Any] | None = None
        self._cancelled = False
        with _lock:
            if _ended:
                raise RuntimeError("zComm's reactor has ended")
            _waiters.add(self._finish)

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Call ``function`` over there."""
        self._reactor.callFromThread(self._call, function, args, kwargs)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._deferred = deferred = maybeDeferred(function, *args, **kwargs)
        deferred.addBoth(self._finish)
        if self._cancelled:
            deferred.cancel()

    def _finish(self, result: Any) -> None:
        with _lock:
            _waiters.discard(self._finish)
            answer, self._answer = self._answer, None
        if answer is not None:
            answer(result)

    def cancel(self) -> None:
        """Give up waiting; may be called from any thread."""

        def cancel() -> None:
            self._cancelled = True
            if self._deferred is not None:
                self._deferred.cancel()

        self._reactor.callFromThread(cancel)


@overload
def blocking(function: Callable[P, Deferred[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...


@overload
def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


def blocking(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` in the reactor's thread and wait for its result, or for what its Deferred fires with.

    Ctrl-C while waiting cancels the Deferred.

    :raises RuntimeError: at once, on the reactor's own thread and when the reactor has ended.
    :raises Exception: whatever the function or its Deferred fails with.
    """
    _refuse_own_thread()
    done = threading.Event()
    outcome: list[Any] = []

    def finish(result: Any) -> None:
        outcome.append(result)
        done.set()

    crossing = _Crossing(_reactor(), finish)
    try:
        # A signal's error comes at any place.
        crossing.call(function, args, kwargs)
        interval = SIGNALS_INTERVAL if threading.current_thread() is threading.main_thread() else None
        while not done.wait(interval):
            pass
    except BaseException:
        crossing.cancel()
        raise
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result


@overload
def in_reactor(function: Callable[P, Deferred[T]], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...


@overload
def in_reactor(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...


def in_reactor(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """Call ``function`` in the reactor's thread; awaited under asyncio for its result.

    Cancelling the task cancels the Deferred.

    :raises RuntimeError: as :func:`blocking` does.
    """
    _refuse_own_thread()
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any) -> None:
        if future.done():
            return
        if not isinstance(result, Failure):
            future.set_result(result)
            return
        error = result.value
        if isinstance(error, StopIteration) or not isinstance(error, BaseException):
            # A future refuses it, and whoever awaits would wait for ever.
            error = RuntimeError(f"the call raised {type(error).__name__}")
            error.__cause__ = result.value
        future.set_exception(error)

    def finish(result: Any) -> None:
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            # The program's loop is closed: nobody waits any more.
            _log.debug("an answer came after the end of its event loop")

    crossing = _Crossing(_reactor(), finish)
    future.add_done_callback(lambda done: crossing.cancel() if done.cancelled() else None)
    crossing.call(function, args, kwargs)
    return future


async def outcome_of(promise: Any) -> Any:
    """The outcome of ``promise`` in the end, in an asyncio loop: of an awaitable, a future, or a Deferred."""
    while True:
        if isinstance(promise, Deferred):
            # Of the reactor's thread; only there it may be touched.
            promise = await in_reactor(lambda deferred: deferred, promise)
        elif isinstance(promise, futures.Future):
            promise = await asyncio.wrap_future(promise)
        elif hasattr(type(promise), "__await__"):
            promise = await promise
        else:
            return promise


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await outcome_of(coroutine)
    except (SystemExit, KeyboardInterrupt) as error:
        # asyncio would take it out of its loop, and with it everything.
        raise RuntimeError(f"the coroutine raised {type(error).__name__}") from error


def in_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
    """Run ``coroutine`` in a program's asyncio loop; called on the reactor's thread.

    :returns: a Deferred of its result, or of what comes of that where it is to be awaited in its turn; cancelling it
        cancels the task. It fails with ``RuntimeError`` for a coroutine that raises ``SystemExit`` or
        ``KeyboardInterrupt``: what a client may call does not end the program.
    """
    return deferred_of(asyncio.run_coroutine_threadsafe(_contained(coroutine), loop))


def deferred_of(running: futures.Future[Any]) -> Deferred[Any]:
    """A Deferred of what ``running`` ends with, in whichever thread; called on the reactor's thread. Cancelling it
    cancels ``running``."""
    reactor = _installed()

    def cancel(_: Deferred[Any]) -> None:
        running.cancel()

    answer: Deferred[Any] = Deferred(cancel)

    def deliver() -> None:
        if answer.called:
            return
        if running.cancelled():
            answer.errback(Failure(futures.CancelledError("cancelled by the program")))
        elif (error := running.exception()) is not None:
            answer.errback(Failure(error))
        else:
            answer.callback(running.result())

    running.add_done_callback(lambda _: reactor.callFromThread(deliver))
    return answer


def keep_waking(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Wake ``loop``, in which this is called, every :data:`SIGNALS_INTERVAL`: a signal that came just before it began
    to wait, or to another thread, does not wake it, and would be heeded with what comes next.

    :return: ends that.
    """
    waking: asyncio.TimerHandle

    def wake() -> None:
        nonlocal waking
        waking = loop.call_later(SIGNALS_INTERVAL, wake)

    wake()
    return lambda: waking.cancel()
