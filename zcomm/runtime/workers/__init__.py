"""Blocking work off the reactor thread: a bounded number of threads, shared fairly between owners.

Twisted's own pool serves first come, first served, so that one client with many slow queries makes
every other client wait behind all of them, and its queue has no end. Here each owner (a user) has
its own line, the lines are served in turn, no owner may hold more than its share of the threads, and
a queue that is full says so at once.

Where owners are not alone, one call of each computes at a time, which :mod:`zcomm.runtime.workers.line` sees to.

A call that waits for a person says so (:func:`aside`), and its place goes to another call meanwhile. One with a large
result keeps its place until somebody has taken that, so that results never wait in heaps.

The cost of one call is one append and, when a thread is idle, one wake-up there; and one append back,
where all results that are ready at the same moment travel in a single wake-up of the reactor.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.budget.askers import Askers
from zcomm.budget.written import Written
from zcomm.errors import TooBusy, Unavailable
from zcomm.runtime.deferreds import Abandoned, Waiters, caught
from zcomm.runtime.workers.aside import Standing, aside, current_call, here, seconds_away
from zcomm.runtime.workers.line import ALL, LOOK, NONE, OVER, QUICK, Job, Line, Misjudged

__all__ = ["SWITCH_INTERVAL", "Workers", "aside", "current_call", "seconds_away"]

#: Seconds that a thread which computes keeps the reactor waiting for its turn; Python's own 5 ms, with
#: several such threads, add up to what a person notices.
SWITCH_INTERVAL = 0.00025

#: Seconds of a turn of the reactor after which further results wait for the next.
TURN = 0.002

#: How much less of a processor that both want a thread gets than the reactor does, in steps of niceness (Linux): less
#: than half of what that gets. What computes in C needs no Python's lock, and takes nobody's but the processor.
BEHIND = 4

#: Calls that may stand aside at once, of all owners and of one: each keeps a thread, which is some 50 KiB.
ASIDE, ASIDE_OF_ONE = 1000, 100

#: Of all owners together with those that were sent back, and have not ended yet.
ASIDE_AT_MOST = 2 * ASIDE

#: Bytes, more or less, of a result that is large; and values that are looked at to find out.
LARGE_RESULT, LOOKED_AT = 64 * 1024, 64

T = TypeVar("T")


def _address_of(owner: Hashable) -> Hashable:
    """Whose address counts as one: that of an owner that has one, otherwise the owner itself."""
    return getattr(owner, "address", owner)


def _is_large(result: Any) -> bool:
    """Whether a result takes much memory, as far as a short look tells: at texts, lists and objects."""
    size = 0
    waiting = [result]
    for _ in range(LOOKED_AT):
        if not waiting:
            break
        value = waiting.pop()
        kind = type(value)
        if kind in (str, bytes, bytearray, Written):
            size += len(value)
        elif kind in (list, tuple, dict):
            # A value that is referred to is seldom less than this.
            size += 32 * len(value)
            with suppress(RuntimeError):  # Somebody changes it.
                waiting += islice(value.values() if kind is dict else value, LOOKED_AT)
        if size > LARGE_RESULT:
            return True
    return False


def _too_busy() -> TooBusy:
    return TooBusy("Busy: too many questions are open")


def _end_fork(result: Any) -> None:
    """End this process, which a call forked, as Python ends a program; its one thread has no pool and no reactor."""
    status: Any = 0
    if isinstance(result, Failure):
        status = result.value.code or 0 if isinstance(result.value, SystemExit) else None
        if not isinstance(status, int):
            status = 1
            result.printTraceback(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)


class Workers:
    """A pool of threads for blocking calls, fair between owners.

    :param threads: how many threads, and so how many calls run at once.
    :param waiting: how many calls may wait for a thread before :meth:`run` fails with
        :class:`~zcomm.errors.TooBusy` for owners that have an even part of them.
    :param name: begins the name of each thread.
    :param reactor: where results are delivered.
    :param share: how many threads one owner may hold at a time; half of what the others leave when not given, so that
        owners whose calls are all slow leave some to the rest, as long as they are fewer than the threads.
    :param are_many: whether there are others who would notice that an owner's calls compute.
    :param askers: the owners of calls, of other pools too, to whom those that compute for long leave time.
    :param alike: whether what calls of an owner have computed tells what its next will, of whatever kind.
    :param behind: how many steps of niceness its threads have above the reactor's (Linux).
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
        are_many: Callable[[], bool] = lambda: False,
        askers: Askers | None = None,
        alike: bool = False,
        behind: int = BEHIND,
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
        self._is_fixed = share is not None
        self._are_many = are_many
        self._askers = Askers() if askers is None else askers
        self._alike = alike
        self._behind = behind
        self._misjudged = Misjudged()
        #: Whether those that wait for a call which computes will be looked at.
        self._looks = False
        self._name = name
        self.reactor = reactor
        #: The thread of the reactor, as the system numbers it.
        self._reactors = 0
        # Guards the lines and counters below; held for a few instructions only.
        self._lock = threading.Lock()
        self._lines: dict[Hashable, Line] = {}
        self._ready: deque[Line] = deque()
        #: Those that have something to be served, and all the places that they may have: few, as each has one.
        self._held: dict[Line, None] = {}
        self._waiting = 0
        self._running = 0
        self._idle = 0
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._done: deque[Job] = deque()
        self._delivering = False
        self._pool: list[threading.Thread] = []
        self._made = 0
        # Threads that have not ended, those of them whose calls have left their place, and of these those that stand
        # aside.
        self._alive = 0
        self._aside = 0
        self._standing = 0
        self._open = True
        self._stopping: Waiters[None] = Waiters()
        #: What is due later, and what is called then.
        self._timers: dict[IDelayedCall, Callable[[], None]] = {}

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
        self._reactors = threading.get_native_id()
        with self._lock:
            self._open = True
            for _ in range(self.threads):
                self._add_thread()

    def _add_thread(self) -> None:
        """Start one more thread. Called with the lock held."""
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True)
        thread.start()
        self._made += 1
        self._alive += 1
        self._pool.append(thread)

    def stop(self) -> Deferred[None]:
        """Refuse new calls, fail the waiting ones, and let the running ones end.

        :return: a Deferred that fires when every thread has ended. Calls that waited have failed with
            :class:`~zcomm.errors.Unavailable` by then.
        """
        with self._lock:
            self._open = False
            abandoned = [job for line in self._lines.values() for job in line]
            for line in self._lines.values():
                line.clear()
                for job in line.returning:
                    # Nobody is kept from a place any more.
                    self._come_back(job)
                line.returning.clear()
                line.queued = False
            self._ready.clear()
            self._held.clear()
            self._waiting = 0
            for _ in range(self._idle):
                self._wake.put(False)
            self._idle = 0
        for waiting in abandoned:
            deferred, waiting.deferred = waiting.deferred, None
            if deferred is not None:
                deferred.errback(Unavailable("The server is shutting down"))
        if not self._pool:
            return succeed(None)
        return self._stopping.add()

    def run(self, owner: Hashable, fn: Callable[..., T], *args: Any, **kwargs: Any) -> Deferred[T]:
        """Call ``fn(*args, **kwargs)`` in a thread. Called on the reactor thread.

        Of its kind nothing is known: see :meth:`run_one_of`.

        Cancelling the Deferred takes a call that still waits out of the queue; one that already runs
        ends by itself, and the Deferred fails with :class:`~zcomm.runtime.deferreds.Abandoned`.

        :param owner: whose work this is; owners are served in turn.
        :return: a Deferred of what ``fn`` returns, fired on the reactor thread. It fails with what
            ``fn`` raised, with :class:`~zcomm.errors.TooBusy` when too many calls wait, and with
            :class:`~zcomm.errors.Unavailable` after :meth:`stop`.
        """
        return self._run(owner, None, fn, args, kwargs)

    def run_one_of(self, kind: Hashable, owner: Hashable, fn: Callable[..., T], *args: Any) -> Deferred[T]:
        """As :meth:`run`, of a call of which others of its kind tell how much it computes.

        :param kind: what they have in common.
        """
        return self._run(owner, kind, fn, args, {})

    def _run(
        self, owner: Hashable, kind: Hashable, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Deferred[T]:
        with self._lock:
            if not self._open:
                return fail(Unavailable("The server is shutting down"))
            self._askers.ask(owner)
            line = self._lines.get(owner)
            # When too many wait, whoever has less than an even part of the places still gets one.
            own = 0 if line is None else len(line)
            part = self.limit // (len(self._lines) + (line is None))
            if (
                self._waiting >= self.limit
                and own >= part
                and not (
                    self._running + self._waiting < self.threads
                    and (line is None or (line.running + own < self._share_of(line) and self._room(line) == ALL))
                )
            ):
                return fail(TooBusy("Busy: too many commands are waiting"))
            if line is None:
                line = self._lines[owner] = Line(owner, self._alike, self._misjudged)
            job = Job(line, kind, fn, args, kwargs)
            deferred: Deferred[T] = Deferred(lambda _: self._cancel(job))
            job.deferred = deferred
            line.add(job)
            self._waiting += 1
            self._queue(line)
            if self._idle and line.queued:
                self._idle -= 1
                self._wake.put(True)
        return deferred

    def give_up(self, call: Any, error: Callable[[Deferred[Any]], Exception]) -> None:
        """Let a call that runs fail now for who waits for it. Called on the reactor thread.

        It has its thread, and its place among its owner's, for as long as it goes on.

        :param call: one of :func:`current_call`; that of another pool is left as it is.
        :param error: what it fails with, made of a Deferred of what comes of it after all.
        """
        if isinstance(call, Job) and self._lines.get(call.line.owner) is call.line:
            self._abandon(call, error)

    @staticmethod
    def _abandon(job: Job, error: Callable[[Deferred[Any]], Exception]) -> None:
        """Let who waits for ``job`` know that it waits in vain, and where to hear of its end."""
        deferred = job.deferred
        if deferred is not None and not job.is_abandoned:
            job.is_abandoned = True
            job.deferred = Deferred()
            deferred.errback(error(job.deferred))

    def give_up_waiting(self, is_late: Callable[..., bool], error: Exception) -> None:
        """Let calls that wait for a thread in vain fail. Called on the reactor thread.

        :param is_late: whether a call waits too long; called with its function and arguments.
        """
        with self._lock:
            late = [job for line in self._lines.values() for job in line if is_late(job.fn, *job.args)]
            for job in late:
                job.line.remove(job)
                self._waiting -= 1
                self._forget(job.line)
        for job in late:
            deferred, job.deferred = job.deferred, None
            if deferred is not None:
                deferred.errback(error)

    def _cancel(self, job: Job) -> None:
        """Forget ``job``, and take it out of its line if it still stands there."""
        with self._lock:
            is_gone = job.line.remove(job)
            if is_gone:
                self._waiting -= 1
                self._forget(job.line)
        if not is_gone:
            # It runs or has run.
            self._abandon(job, Abandoned)
            return
        deferred, job.deferred = job.deferred, None
        if deferred is not None:
            deferred.errback(CancelledError())

    def _forget(self, line: Line) -> None:
        """Drop an owner that has nothing left. Called with the lock held."""
        if len(line) or line.running or line.queued or line.aside or line.is_timed:
            # At the end of its rest it will be forgotten, and not the one that its owner would have by then.
            return
        if not line.rests or not self._is_resting(line):
            self._lines.pop(line.owner, None)

    def _next(self) -> Job | None:
        """The next job in turn, or ``None``; places that calls want back are given on the way. Called with the lock
        held."""
        while self._ready and self._running < self.threads:
            line = self._ready.popleft()
            line.queued = False
            room = self._room(line)
            job = self._returning(line, room)
            if job is not None:
                line.returning.popleft()
                self._come_back(job)
                job = None
            else:
                job = line.first(room)
                if job is not None:
                    line.begin(job)
                    self._take_place(job)
                    self._waiting -= 1
            # Where a call that came back has taken its owner's last place, or others took theirs, it is queued again
            # with what is given back.
            self._queue(line)
            if job is not None:
                if line.queued and self._are_many():
                    # When those came that it has now room for, nobody was woken.
                    self._wake_for(1)
                return job
            self._forget(line)
        return None

    def _queue(self, line: Line) -> None:
        """Let ``line`` stand for its turn, where it has something to be served and may. Called with the lock held."""
        if not line.queued and (len(line) or line.returning):
            room = self._room(line)
            if self._returning(line, room) is None and line.first(room) is None:
                self._held[line] = None
                return
            line.queued = True
            self._ready.append(line)

    @staticmethod
    def _returning(line: Line, room: int) -> Job | None:
        """The call of ``line`` that wants its place back, where there is room for it."""
        job = line.returning[0] if line.returning else None
        return None if job is None or line.thinks(job.kind) >= room else job

    def _share_of(self, line: Line) -> int:
        """The places that the owner of ``line`` may hold now. Called with the lock held.

        Half of what the others leave, so that several who take all that they may leave some as well.
        """
        if self._is_fixed:
            return self.share
        return min(self.share, max(1, (self.threads - self._running + line.running) // 2))

    def _room(self, line: Line) -> int:
        """For what there is room in ``line``; see :meth:`~zcomm.runtime.workers.line.Line.room`. Called with the lock
        held."""
        if line.running >= self._share_of(line):
            return NONE
        if self._is_fixed or not (line.at_work or line.rests) or not self._are_many():
            return ALL
        room = line.room(time.monotonic(), self._askers.others(line.owner))
        if line.rests and self._is_resting(line):
            # Those that compute little, and no other.
            room = min(room, QUICK)
        if room < ALL and line.at_work and not self._looks:
            self._looks = True
            self.reactor.callFromThread(self._look_later)
        return room

    def _is_resting(self, line: Line) -> bool:
        """Whether others have their time now, because ``line`` had it for long; it is served when that is over. Called
        with the lock held."""
        left = line.rests - time.monotonic()
        if left <= 0 or not (self._open and self._are_many() and self._askers.others(line.owner)):
            line.rests = 0.0
            return False
        if not line.is_timed:
            line.is_timed = True
            self.reactor.callFromThread(self._rest, line, left)
        return True

    def _rest(self, line: Line, seconds: float) -> None:
        self._call_later(seconds, partial(self._rest_over, line))

    def _rest_over(self, line: Line) -> None:
        with self._lock:
            line.is_timed = False
            self._queue_held()
            self._wake_for(len(self._ready))
            self._forget(line)

    def _look_later(self) -> None:
        self._call_later(LOOK, self._look)

    def _call_later(self, seconds: float, function: Callable[[], None]) -> None:
        def call() -> None:
            del self._timers[timer]
            function()

        timer: IDelayedCall = self.reactor.callLater(seconds, call)  # type: ignore[attr-defined]
        self._timers[timer] = function

    def _look(self) -> None:
        """Serve those whose calls are seen to wait for something. Runs on the reactor thread."""
        with self._lock:
            self._looks = False
            self._queue_held()
            self._wake_for(len(self._ready))

    def _take_place(self, job: Job) -> None:
        line = job.line
        line.running += 1
        line.at_work[job] = None
        self._running += 1

    def _come_back(self, job: Job) -> None:
        """Give ``job`` a place again. Called with the lock held."""
        self._stand_no_more(job)
        job.line.aside -= 1
        self._aside -= 1
        self._take_place(job)
        if job.returns is not None:
            job.returns.set()

    def _stand_no_more(self, job: Job) -> Standing:
        self._standing -= 1
        return job.line.standing.pop(job)

    def _send_one_back(self, line: Line) -> None:
        """Make room for a call of ``line`` among those that stand aside. Called with the lock held.

        What is sent back goes on at once, without a place: it has an error to tell, and waits for nobody.
        """
        of_address: Counter[Hashable] = Counter()
        for each in self._lines.values():
            of_address[_address_of(each.owner)] += len(each.standing)
        longest = max(
            (each for each in self._lines.values() if each.standing),
            key=lambda each: (len(each.standing), of_address[_address_of(each.owner)]),
        )
        if longest is line or self._aside >= ASIDE_AT_MOST:
            raise _too_busy()
        job = next(iter(longest.standing))
        standing = self._stand_no_more(job)
        job.sent_back = True
        if job.returns is not None:
            longest.returning.remove(job)
            job.returns.set()
        else:
            self.reactor.callFromThread(standing.end)

    def _step_aside(self, job: Job, standing: Standing) -> None:
        """Give the place of ``job`` away; runs in its thread. See :func:`aside`."""
        line = job.line
        with self._lock:
            if job.sent_back or line.aside >= ASIDE_OF_ONE:
                raise _too_busy()
            if self._standing >= ASIDE:
                self._send_one_back(line)
            # A thread in the place of this one, whether or not another is idle now: those may all be busy soon.
            if self._open and self._alive - self._aside <= self.threads:
                try:
                    self._add_thread()
                except RuntimeError:
                    # The system gives no more, and each that stands aside would leave one less for all others.
                    raise _too_busy() from None
            line.standing[job] = standing
            line.aside += 1
            self._standing += 1
            self._aside += 1
            self._give_place_back(job)
            if self._idle and self._ready:
                self._idle -= 1
                self._wake.put(True)

    def _step_back(self, job: Job) -> None:
        """Wait for a place; runs in the thread of ``job``.

        :raises TooBusy: when it was sent back.
        """
        line = job.line
        event: threading.Event | None = None
        with self._lock:
            if job.sent_back:
                raise _too_busy()
            if not self._open or (self._running < self.threads and line.thinks(job.kind) < self._room(line)):
                self._come_back(job)
                if self._idle:
                    # There is a thread too many now; it looks whether it is the one.
                    self._idle -= 1
                    self._wake.put(True)
            else:
                event = job.returns = threading.Event()
                line.returning.append(job)
                self._queue(line)
        if event is not None:
            event.wait()
            job.returns = None
            if job.sent_back:
                raise _too_busy()

    def _work(self) -> None:
        """The life of one thread."""
        self._stand_behind()
        job: Job | None = None
        here.pool = self
        process = os.getpid()
        thread = threading.get_ident()
        clock = time.pthread_getcpuclockid(thread) if hasattr(time, "pthread_getcpuclockid") else None
        while True:
            with self._lock:
                if job is not None and not job.is_large:
                    self._leave(job)
                job = self._next()
                if job is None:
                    if not self._open or self._alive - self._aside > self.threads:
                        self._alive -= 1
                        break
                    self._idle += 1
            if job is None:
                self._wake.get()
                continue
            here.job = job
            then, begun = time.thread_time(), time.monotonic()
            job.begin(thread, clock, begun, then)
            try:
                job.result = job.fn(*job.args, **job.kwargs)
            except BaseException:
                # SystemExit and its kin included: a thread of the pool never ends because of a call.
                job.result = caught()
            if os.getpid() != process:
                _end_fork(job.result)
            if isinstance(job.result, Deferred):
                # Of the reactor's thread; and no Deferred fires with another.
                job.result = Failure(TypeError("a call in a worker thread returned a Deferred"))
            # What it returned may be large: as long as this thread has nothing else to do, it would keep that.
            here.job = None
            seconds, used = time.monotonic() - begun, time.thread_time() - then
            job.is_large = _is_large(job.result)
            with self._lock:
                # Before anybody hears of it, and asks for the next.
                job.ended(seconds, used)
            job.thread = OVER
            self._done.append(job)
            # Set before the reactor is woken and cleared before the results are taken, so that a
            # result is never left behind; two threads that both find it clear wake the reactor twice.
            if not self._delivering:
                self._delivering = True
                self.reactor.callFromThread(self._deliver)
        self.reactor.callFromThread(self._ended, threading.current_thread())

    def _stand_behind(self) -> None:
        """Let the reactor have the processor first where both want it. Called in a thread."""
        if self._behind and sys.platform == "linux":
            # Elsewhere this is said of processes alone. Who may not be asked, or says no, is none who has to.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, self._reactors) + self._behind)

    def _leave(self, job: Job) -> None:
        """Count a call that has ended no more. Called with the lock held."""
        if not job.sent_back:
            self._give_place_back(job)
            return
        job.line.aside -= 1
        self._aside -= 1
        self._forget(job.line)

    def _give_place_back(self, job: Job) -> None:
        """Take back the place of ``job``. Called with the lock held."""
        line = job.line
        line.running -= 1
        line.at_work.pop(job, None)
        self._running -= 1
        if self._held:
            self._queue_held()
            # The thread that gives it back goes on with one of them.
            self._wake_for(len(self._ready) - 1)
        self._queue(line)
        self._forget(line)

    def _queue_held(self) -> None:
        """Queue those that had all the places they might, where they may have another. Called with the lock held."""
        held, self._held = self._held, {}
        for each in held:
            self._queue(each)

    def _wake_for(self, count: int) -> None:
        """Wake idle threads, one for each of ``count`` lines. Called with the lock held."""
        for _ in range(min(self._idle, count)):
            self._idle -= 1
            self._wake.put(True)

    def _deliver(self, time: float = TURN) -> None:
        """Fire the Deferreds of what has ended, for as long as a turn may take. Runs on the reactor thread."""
        self._delivering = False
        done = self._done
        end = perf_counter() + time
        while done:
            job = done.popleft()
            deferred, job.deferred = job.deferred, None
            result, job.result = job.result, None
            if deferred is not None:
                deferred.callback(result)
                if job.is_abandoned:
                    deferred.addErrback(self._failed_unheard)
            elif isinstance(result, Failure):
                self._failed_unheard(result)
            if job.is_large:
                del result
                if deferred is not None and deferred.paused:
                    # Whoever takes it has no room for it yet, and would have none for the next.
                    deferred.addBoth(self._taken, job)
                else:
                    self._taken(None, job)
            if done and perf_counter() > end:
                # Others have their turn before the next results.
                self._delivering = True
                self.reactor.callFromThread(self._deliver)
                return

    def _taken(self, result: Any, job: Job) -> Any:
        """Give back the place of a call whose large result has been taken."""
        with self._lock:
            self._leave(job)
            if self._idle and self._ready:
                self._idle -= 1
                self._wake.put(True)
        return result

    def _failed_unheard(self, failure: Failure) -> None:
        self._log.debug("A cancelled call ended with {error}", error=getattr(failure.type, "__name__", ""))

    def _ended(self, thread: threading.Thread) -> None:
        """Forget a thread that has ended; after the last one :meth:`stop` is done."""
        thread.join()
        self._pool.remove(thread)
        if not self._pool:
            self._deliver(float("inf"))
            timers, self._timers = self._timers, {}
            for timer, function in timers.items():
                timer.cancel()
                function()
            self._stopping.fire(None)
