"""Running one coroutine on the reactor, for commands that talk to servers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

__all__ = ["run_on_reactor"]


def run_on_reactor(work: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    """Run ``work(reactor)`` to its end and return its exit status; once in a process.

    Ctrl-C and SIGTERM cancel the work and wait until it has cleaned up.

    :raises BaseException: what the work raised.
    :raises KeyboardInterrupt: when a signal ended it.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    results: list[int | Failure] = []
    running: list[Deferred[int]] = []

    def finished(result: int | Failure) -> None:
        results.append(result)
        if reactor.running and not stopping:
            reactor.stop()

    stopping: list[bool] = []

    def interrupted() -> Deferred[Any] | None:
        stopping.append(True)
        if not running or results:
            return None
        settled: Deferred[Any] = Deferred()
        running[0].addBoth(settled.callback)
        running[0].cancel()
        return settled

    def begin() -> None:
        running.append(Deferred.fromCoroutine(work(reactor)))
        running[0].addBoth(finished)

    reactor.callWhenRunning(begin)
    reactor.addSystemEventTrigger("before", "shutdown", interrupted)
    reactor.run()
    result = results[0] if results else Failure(CancelledError())
    if isinstance(result, Failure):
        if result.check(CancelledError):
            raise KeyboardInterrupt
        result.raiseException()
    return result
