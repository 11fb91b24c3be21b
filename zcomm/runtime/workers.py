"""Blocking work off the reactor thread: a bounded number of threads, shared fairly between owners.

Twisted's own pool serves first come, first served, so that one client with many slow queries makes
every other client wait behind all of them, and its queue has no end. Here each owner (a client) has
its own line, the lines are served in turn, no owner may hold more than its share of the threads, and
a queue that is full says so at once.

The cost of one call is one append and, when a thread is idle, one wake-up there; and one append back,
where all results that are ready at the same moment travel in a single wake-up of the reactor.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.errors import TooBusy, Unavailable
from zcomm.runtime.deferreds import Waiters

__all__ = ["SWITCH_INTERVAL", "Workers"]

#: Seconds that a thread which computes keeps the reactor waiting for its turn; Python's own 5 ms, with
#: several such threads, add up to what a person notices.
SWITCH_INTERVAL = 0.001

T = TypeVar("T")


class _Job:
    """One call: where its result goes, and what to run."""

    __slots__ = ("deferred", "line", "fn", "args", "kwargs", "result")

    def __init__(self, line: _OwnerQueue, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        # None once the caller no longer wants the result.
        self.deferred: Deferred[Any] | None = None
        self.line = line
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.result: Any = None


class _OwnerQueue:
    """The calls of one owner that wait and run."""

    __slots__ = ("owner", "jobs", "running", "queued")

    def __init__(self, owner: Hashable):
        self.owner = owner
        self.jobs: deque[_Job] = deque()
        self.running = 0
        # Whether the line stands among those to be served.
        self.queued = False


class Workers:
    """A pool of threads for blocking calls, fair between owners.

    :param threads: how many threads, and so how many calls run at once.
    :param waiting: how many calls may wait for a thread before :meth:`run` fails with
        :class:`~zcomm.errors.TooBusy`.
    :param name: begins the name of each thread.
    :param reactor: where results are delivered.
    :param share: how many threads one owner may hold at a time; half of them when not given, so that
        an owner whose calls are all slow leaves the other half to the rest.
    """

    _log = Logger()

    def __init__(
        self,
        threads: int = 10,
        waiting: int = 1000,
        name: str = "worker",
        *,
        reactor: IReactorFromThreads,
        share: int | None = None,
    ):
        if threads < 1:
            raise ValueError("threads must be at least 1")
        if waiting < 0:
            raise ValueError("waiting must not be negative")
        if share is not None and not 1 <= share <= threads:
            raise ValueError("share must be between 1 and the number of threads")
        self.threads = threads
        self.limit = waiting
        self.share = max(1, threads // 2) if share is None else share
        self._name = name
        self.reactor = reactor
        # Guards the lines and counters below; held for a few instructions only.
        self._lock = threading.Lock()
        self._lines: dict[Hashable, _OwnerQueue] = {}
        self._ready: deque[_OwnerQueue] = deque()
        self._waiting = 0
        self._running = 0
        self._idle = 0
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._done: deque[_Job] = deque()
        self._delivering = False
        self._pool: list[threading.Thread] = []
        self._alive = 0
        self._open = True
        self._stopping: Waiters[None] = Waiters()

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a thread."""
        return self._waiting

    @property
    def running(self) -> int:
        """The number of calls that run in a thread now."""
        return self._running

    def start(self) -> None:
        """Start the threads. Calls made earlier have waited and run now."""
        if self._pool:
            return
        if sys.getswitchinterval() > SWITCH_INTERVAL:
            sys.setswitchinterval(SWITCH_INTERVAL)
        self._open = True
        self._alive = self.threads
        for number in range(self.threads):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            self._pool.append(thread)
            thread.start()

    def stop(self) -> Deferred[None]:
        """Refuse new calls, fail the waiting ones, and let the running ones end.

        :return: a Deferred that fires when every thread has ended. Calls that waited have failed with
            :class:`~zcomm.errors.Unavailable` by then.
        """
        with self._lock:
            self._open = False
            abandoned = [job for line in self._lines.values() for job in line.jobs]
            for line in self._lines.values():
                line.jobs.clear()
            self._ready.clear()
            self._waiting = 0
            for _ in range(self._idle):
                self._wake.put(False)
            self._idle = 0
        for job in abandoned:
            deferred, job.deferred = job.deferred, None
            if deferred is not None:
                deferred.errback(Unavailable("The server is shutting down"))
        if not self._pool:
            return succeed(None)
        return self._stopping.add()

    def run(self, owner: Hashable, fn: Callable[..., T], *args: Any, **kwargs: Any) -> Deferred[T]:
        """Call ``fn(*args, **kwargs)`` in a thread. Called on the reactor thread.

        Cancelling the Deferred takes a call that still waits out of the queue; one that already runs
        ends by itself and its result is dropped.

        :param owner: whose work this is; owners are served in turn.
        :return: a Deferred of what ``fn`` returns, fired on the reactor thread. It fails with what
            ``fn`` raised, with :class:`~zcomm.errors.TooBusy` when too many calls wait, and with
            :class:`~zcomm.errors.Unavailable` after :meth:`stop`.
        """
        with self._lock:
            if not self._open:
                return fail(Unavailable("The server is shutting down"))
            line = self._lines.get(owner)
            if self._waiting >= self.limit and not (
                self._idle and (line is None or line.running + len(line.jobs) < self.share)
            ):
                return fail(TooBusy("Busy: too many commands are waiting"))
            if line is None:
                line = self._lines[owner] = _OwnerQueue(owner)
            job = _Job(line, fn, args, kwargs)
            deferred: Deferred[T] = Deferred(lambda _: self._cancel(job))
            job.deferred = deferred
            line.jobs.append(job)
            self._waiting += 1
            if not line.queued and line.running < self.share:
                line.queued = True
                self._ready.append(line)
            if self._idle and line.queued:
                self._idle -= 1
                self._wake.put(True)
        return deferred

    def _cancel(self, job: _Job) -> None:
        """Forget ``job``, and take it out of its line if it still stands there."""
        deferred, job.deferred = job.deferred, None
        with self._lock:
            try:
                job.line.jobs.remove(job)
            except ValueError:
                pass  # It runs or has run; its result will find nobody.
            else:
                self._waiting -= 1
                self._forget(job.line)
        if deferred is not None:
            deferred.errback(CancelledError())

    def _forget(self, line: _OwnerQueue) -> None:
        """Drop an owner that has nothing left. Called with the lock held."""
        if not line.jobs and not line.running and not line.queued:
            self._lines.pop(line.owner, None)

    def _next(self) -> _Job | None:
        """The next job in turn, or ``None``. Called with the lock held."""
        while self._ready:
            line = self._ready.popleft()
            if not line.jobs:
                line.queued = False
                self._forget(line)
                continue
            job = line.jobs.popleft()
            line.running += 1
            self._waiting -= 1
            self._running += 1
            line.queued = bool(line.jobs) and line.running < self.share
            if line.queued:
                self._ready.append(line)
            return job
        return None

    def _work(self) -> None:
        """The life of one thread."""
        job: _Job | None = None
        while True:
            with self._lock:
                if job is not None:
                    self._finished(job)
                job = self._next()
                if job is None:
                    if not self._open:
                        break
                    self._idle += 1
            if job is None:
                self._wake.get()
                continue
            try:
                job.result = job.fn(*job.args, **job.kwargs)
            except BaseException:
                # SystemExit and its kin included: a thread of the pool never ends because of a call.
                job.result = Failure()
            self._done.append(job)
            # Set before the reactor is woken and cleared before the results are taken, so that a
            # result is never left behind; two threads that both find it clear wake the reactor twice.
            if not self._delivering:
                self._delivering = True
                self.reactor.callFromThread(self._deliver)
        self.reactor.callFromThread(self._ended)

    def _finished(self, job: _Job) -> None:
        """Give back the thread that ``job`` held. Called with the lock held."""
        line = job.line
        line.running -= 1
        self._running -= 1
        if line.jobs:
            if not line.queued:
                line.queued = True
                self._ready.append(line)
        else:
            self._forget(line)

    def _deliver(self) -> None:
        """Fire the Deferreds of everything that has ended. Runs on the reactor thread."""
        self._delivering = False
        done = self._done
        while done:
            job = done.popleft()
            deferred, job.deferred = job.deferred, None
            if deferred is not None:
                deferred.callback(job.result)
            elif isinstance(job.result, Failure):
                self._log.debug("A cancelled call ended with {error}", error=getattr(job.result.type, "__name__", ""))

    def _ended(self) -> None:
        """Count a thread that has ended; after the last one :meth:`stop` is done."""
        self._alive -= 1
        if self._alive:
            return
        for thread in self._pool:
            thread.join()
        self._pool.clear()
        self._deliver()
        self._stopping.fire(None)
