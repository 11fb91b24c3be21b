"""The reactor for programs that have none: started once, in a thread of its own, when first needed.

A program whose reactor runs already (in its main thread, say) is served by that one.
"""
from __future__ import annotations

import asyncio
import atexit
import sys
import threading
from typing import Any, Awaitable, Callable, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["blocking", "in_reactor", "run_soon"]

_log = Logger()
_lock = threading.Lock()
_thread: threading.Thread | None = None

#: Seconds the interpreter waits at its end for servers and services to stop.
EXIT_TIMEOUT = 30.0

#: Seconds between two looks for children that have ended; nothing to do, and no system call, without any.
REAP_INTERVAL = 0.05

T = TypeVar("T")


def _reactor() -> Any:
    """The running reactor; started now where there is none."""
    global _thread
    with _lock:
        if "twisted.internet.reactor" not in sys.modules:
            from zcomm.reactor import install_if_free

            install_if_free()
        from twisted.internet import reactor

        if _thread is None and not reactor.running:
            from zcomm.clock import use_monotonic

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
        return reactor


def _watch_children() -> None:
    """Look for children that have ended: their signal goes to the main thread, which is not ours."""
    from twisted.internet.process import reapAllProcesses

    LoopingCall(reapAllProcesses).start(REAP_INTERVAL)


def _stop() -> None:
    """Stop the reactor, and with it in order everything that runs in it; called when the interpreter ends."""
    thread = _thread
    if thread is None or not thread.is_alive():
        return
    from twisted.internet import reactor

    def stop() -> None:
        if reactor.running:
            reactor.stop()

    reactor.callFromThread(stop)
    thread.join(EXIT_TIMEOUT)


def _refuse_own_thread() -> None:
    from twisted.python.threadable import ioThread

    if ioThread is not None and threading.get_ident() == ioThread:
        raise RuntimeError(
            "a blocking call of zcomm.threaded on the reactor's own thread would wait for itself; "
            "use the Deferreds of zcomm.zComm there"
        )


def blocking(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` in the reactor's thread and wait for its result, or for what its Deferred fires with.

    Ctrl-C while waiting cancels the Deferred.

    :raises RuntimeError: at once, on the reactor's own thread.
    :raises Exception: whatever the function or its Deferred fails with.
    """
    _refuse_own_thread()
    reactor = _reactor()
    done = threading.Event()
    outcome: list[Any] = []
    waiting: list[Deferred[Any]] = []

    def finish(result: Any) -> None:
        outcome.append(result)
        done.set()

    def call() -> None:
        deferred = maybeDeferred(function, *args, **kwargs)
        waiting.append(deferred)
        deferred.addBoth(finish)

    reactor.callFromThread(call)
    try:
        done.wait()
    except BaseException:
        reactor.callFromThread(lambda: waiting and waiting[0].cancel())
        raise
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result


def in_reactor(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Awaitable[Any]:
    """Call ``function`` in the reactor's thread; awaited under asyncio for its result.

    Cancelling the task cancels the Deferred.
    """
    _refuse_own_thread()
    reactor = _reactor()
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    waiting: list[Deferred[Any]] = []

    def settle(result: Any) -> None:
        if future.done():
            return
        if isinstance(result, Failure):
            future.set_exception(result.value)
        else:
            future.set_result(result)

    def finish(result: Any) -> None:
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            # The program's loop is closed: nobody waits any more.
            if isinstance(result, Failure) and not future.cancelled():
                _log.failure("nobody waited for this failure", result)

    def call() -> None:
        deferred = maybeDeferred(function, *args, **kwargs)
        waiting.append(deferred)
        deferred.addBoth(finish)

    def cancelled(future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            reactor.callFromThread(lambda: waiting and waiting[0].cancel())

    future.add_done_callback(cancelled)
    reactor.callFromThread(call)
    return future


def run_soon(function: Callable[..., Any], *args: Any) -> None:
    """Call ``function`` in the reactor's thread, whenever it comes to it."""
    _reactor().callFromThread(function, *args)
