"""The calls of one owner: which of those that wait may begin beside those that run.

Calls that compute take Python's lock from the reactor, each of them for as long as a turn of it may take. So where
owners are not alone, one call of each computes at a time, and the next begins when that has ended or is seen to wait
for something; beside one that computes for long there is room for one other, of a kind that nothing is known of. Calls
of a kind whose last ones computed little wait for no look: it takes longer than most of them. They begin side by side,
ahead of those that have to wait; a few at a time where all calls are alike. A kind of which one was taken for such and
computed needs more of them the next time.

What another process computes for a call, as a database does, counts as if its thread did: others wait for that process
as they do for the reactor. What the way there and back takes counts for nothing, and keeps nobody.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from zcomm.runtime.workers.aside import Standing

__all__ = ["ALL", "LOOK", "NONE", "OVER", "QUICK", "Elsewhere", "Job", "Line", "Misjudged"]

#: Seconds after which a call that keeps others of its owner waiting is looked at again, and the part of that time for
#: which it has had the processor, from which on it computes: little, because others may have had it.
LOOK, COMPUTES = 0.01, 0.1
#: Seconds of the processor for a large result after which its owner rests for as many; and the most. It is made in
#: long pieces, and more of them follow where it is sent.
TIRING, REST = 0.001, 0.1
#: Seconds after which a call that computes keeps one other of its owner waiting no more, which may be a quick one.
LONG = 0.1
#: Calls of an owner that begin side by side at most where its calls are alike, until they are seen to wait: with more,
#: the reactor has to wait for Python's lock more often, and less gets done. One less where others have calls as well,
#: which each of them would keep waiting; one more for each so many seconds of the way to another process, for which
#: nobody waits for them.
BESIDE, WAY = 2, 0.0005
#: Seconds of the processor that a call may have had which computed little, however short it was, and seconds for which
#: another process may have been at work for it; and how many in a row speak for the next of their kind.
LITTLE, LITTLE_ELSEWHERE, IN_A_ROW = 0.001, 0.02, 3
#: How many times as many speak for it after one was misjudged, how many at most, and for how many seconds.
AGAIN, AT_MOST, LATELY = 4, 10_000, 60.0
#: Kinds that a line remembers, and misjudged ones that are remembered of all owners.
KINDS, MISJUDGED = 200, 1000
#: In the place of the thread of a call that has ended, and whose result has not been taken.
OVER = -1

#: What is thought of a call: that it computes little, nothing, that it computes; and how many of these may begin.
LIGHT, UNKNOWN, HEAVY = range(3)
NONE, QUICK, ALL = 0, 1, 3

_numbers, _NUMBER = count(), attrgetter("number")


class Misjudged:
    """The kinds of calls that were taken for such as compute little, and did not.

    :param now: seconds, of any beginning.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._known: OrderedDict[tuple[Hashable, Hashable], tuple[int, float]] = OrderedDict()

    def needs(self, owner: Hashable, kind: Hashable) -> int:
        """The number of calls in a row that have to compute little until the next is taken for such a one."""
        if not self._known:
            return IN_A_ROW
        needs, until = self._known.get((owner, kind), (IN_A_ROW, 0.0))
        return needs if until > self._now() else IN_A_ROW

    def add(self, owner: Hashable, kind: Hashable) -> None:
        """Take note of one."""
        needs = min(AT_MOST, AGAIN * self.needs(owner, kind))
        self._known[owner, kind] = needs, self._now() + LATELY
        self._known.move_to_end((owner, kind))
        if len(self._known) > MISJUDGED:
            self._known.popitem(last=False)


class Elsewhere(Protocol):
    """Another process at work for a call. Asked from any thread."""

    @property
    def way(self) -> float:
        """The seconds that the least takes which it can be asked for."""

    @property
    def at_work(self) -> float:
        """The seconds beyond those for which it has been at work so far."""


class Job:
    """One call: where its result goes, and what to run."""

    __slots__ = (
        "_looked",
        "_used",
        "_used_first",
        "_waits",
        "args",
        "away",
        "clock",
        "deferred",
        "elsewhere",
        "fn",
        "is_abandoned",
        "is_large",
        "is_measured",
        "is_trusted",
        "kind",
        "kwargs",
        "line",
        "number",
        "result",
        "returns",
        "sent_back",
        "since",
        "thread",
        "thought",
    )

    def __init__(
        self, line: Line, kind: Hashable, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ):
        # None once the caller no longer wants the result; of one that was told so while it runs, who hears of its end.
        self.deferred: Deferred[Any] | None = None
        self.is_abandoned = False
        self.line = line
        self.kind = kind
        self.number = next(_numbers)
        self.fn = fn
        self.args = args
        self.kwargs = kwargs
        self.result: Any = None
        # What wakes it where it wants its place back; whether it goes on without one.
        self.returns: threading.Event | None = None
        self.sent_back = False
        self.away = 0.0
        # Whether it keeps its place until its result is taken.
        self.is_large = False
        # What was thought of it when it was put where it waits; whether it began as one that computes little.
        self.thought = UNKNOWN
        self.is_trusted = False
        # Which thread runs it, 0 before.
        self.thread = 0
        # That of its thread; not every system has one, and then it is waited for no longer than for a look.
        self.clock: int | None = None
        # The last that another process does or has done for it.
        self.elsewhere: Elsewhere | None = None
        # When somebody looked last, how much of the processor its thread had had by then and when it began, and whether
        # it waited for something, which is known from the first look on.
        self._looked = self._used = self._used_first = 0.0
        self.is_measured = self._waits = False
        # Since when it has been taken for one that computes.
        self.since = float("inf")

    def __lt__(self, other: Job) -> bool:
        return self.number < other.number

    def begin(self, thread: int, clock: int | None, now: float, used: float) -> None:
        """Take note of the thread that is at it, and has had the processor for some seconds before. Called in it."""
        self.clock = clock
        self._looked, self._used = now, used
        self._used_first = used
        self.thread = thread

    def look(self, now: float) -> None:
        """Look at what it has had of the processor, where nobody has for a while."""
        if self.thread in (0, OVER) or now - self._looked < LOOK:
            return
        used = self._used_by_now()
        self.is_measured = True
        self._waits = used - self._used < COMPUTES * (now - self._looked)
        if not self._waits and (self._beyond_little() or self.elsewhere is None or not self.elsewhere.at_work):
            self.line.learn(self, False, used - self._used_first >= LOOK)
        self._looked, self._used = now, used

    def computes(self, now: float) -> bool:
        """Whether it needs the processor, as far as is known: until it has been looked at, it does where nothing speaks
        for it."""
        if self.thread == OVER:
            return False
        if not self.is_measured:
            self._waits = self.line.thinks(self.kind) == LIGHT
        if self._waits:
            self.since = float("inf")
        elif self.since > now:
            self.since = now
        return not self._waits

    def _used_by_now(self) -> float:
        """The seconds of the processor that its thread has had, and what another process has been at work for it."""
        if self.clock is None:
            return self._used
        elsewhere = self.elsewhere
        try:
            # Not by its thread, which may end at any moment: the system's library takes a wrong one for an address.
            used = time.clock_gettime(self.clock)
        except OSError:
            return self._used
        return used if elsewhere is None else used + elsewhere.at_work

    def ended(self, seconds: float, used: float) -> None:
        """Learn from it, after so many seconds in which it had the processor for some."""
        beyond = self._beyond_little()
        is_light = (used <= LITTLE or used < COMPUTES * seconds) and not beyond
        if self.elsewhere is not None:
            self.line.way = self.elsewhere.way
        self.line.learn(self, is_light, used + beyond >= LOOK)
        # It knows this call: the two would be there until garbage is collected, with all that was asked.
        self.elsewhere = None
        if self.is_large and used > TIRING:
            self.line.rests = time.monotonic() + min(used, REST)

    def _beyond_little(self) -> float:
        """The seconds for which another process has been at work for it beyond those that are little."""
        return 0.0 if self.elsewhere is None else max(0.0, self.elsewhere.at_work - LITTLE_ELSEWHERE)

    @property
    def owner(self) -> Hashable:
        """Whose it is."""
        return self.line.owner


class Line:
    """The calls of one owner that wait and run. Guarded by the lock of its pool.

    :param alike: whether what its calls have computed tells what one of a new kind will.
    """

    __slots__ = (
        "_alike",
        "_is_stale",
        "_kinds",
        "_light",
        "_misjudged",
        "_waiting",
        "aside",
        "at_work",
        "is_timed",
        "owner",
        "queued",
        "rests",
        "returning",
        "running",
        "standing",
        "way",
    )

    def __init__(self, owner: Hashable, alike: bool, misjudged: Misjudged):
        self.owner = owner
        self._alike = alike
        self._misjudged = misjudged
        # Those that wait, by what is thought of them, each in their order. Two thousand may be given up at once, when
        # their connections end.
        self._waiting: tuple[OrderedDict[Job, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        # Whether something else is thought of some of them by now.
        self._is_stale = False
        # How many of the last that have ended computed little, of all and of each kind.
        self._light = 0
        self._kinds: dict[Hashable, int] = {}
        # The seconds of the way to another process that works for its calls.
        self.way = 0.0
        # How many have a place, and those of them that a thread is at.
        self.running = 0
        self.at_work: dict[Job, None] = {}
        # How many of its calls have left their place; those of them that stand aside, the longest first; and those
        # that want their place back.
        self.aside = 0
        self.standing: dict[Job, Standing] = {}
        self.returning: deque[Job] = deque()
        # Whether the line stands among those to be served.
        self.queued = False
        # Until when others have their time, where there are any, 0 for no time; and whether that end will be heeded.
        self.rests = 0.0
        self.is_timed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    def __iter__(self) -> Iterator[Job]:
        for each in self._waiting:
            yield from each

    def add(self, job: Job) -> None:
        """Let a call wait."""
        job.thought = self.thinks(job.kind)
        self._waiting[job.thought][job] = None

    def remove(self, job: Job) -> bool:
        """Let a call wait no more; returns whether it did."""
        waiting = self._waiting[job.thought]
        if job not in waiting:
            return False
        del waiting[job]
        return True

    def clear(self) -> None:
        """Let none wait."""
        for each in self._waiting:
            each.clear()

    def first(self, room: int) -> Job | None:
        """The call that is the next, where there is room for those of the first ``room`` of what may be thought."""
        if self._is_stale:
            # More is known of some kinds than when they came.
            self._is_stale = False
            waiting = sorted(self, key=_NUMBER)
            self.clear()
            for job in waiting:
                self.add(job)
        return min((next(iter(each)) for each in self._waiting[:room] if each), default=None)

    def begin(self, job: Job) -> None:
        """Let the call that is the first of those thought of as it is wait no more: it has a place."""
        del self._waiting[job.thought][job]
        job.is_trusted = job.thought == LIGHT

    def room(self, now: float, others_ask: bool = False) -> int:
        """For what there is room beside those that run, which are looked at: for none, for all, or for the first few of
        what may be thought of a call.

        :param others_ask: whether other owners have had calls lately.
        """
        for job in self.at_work:
            job.look(now)
        computing = [job for job in self.at_work if job.computes(now)]
        if not computing:
            if not self._alike:
                return ALL
            unseen = sum(not (job.is_measured or job.is_large) for job in self.at_work)
            return NONE if unseen >= BESIDE - others_ask + self.way // WAY else ALL
        if len(computing) == 1:
            return HEAVY if now - computing[0].since >= LONG else UNKNOWN
        # One that is quick at a time.
        return UNKNOWN if len(self.at_work) == 2 else NONE

    def thinks(self, kind: Hashable) -> int:
        """As what a call of that kind is taken: for :data:`LIGHT`, :data:`UNKNOWN` or :data:`HEAVY`."""
        known = None if kind is None else self._kinds.get(kind)
        if known is not None:
            return LIGHT if known >= self._misjudged.needs(self.owner, kind) else UNKNOWN if known else HEAVY
        is_light = self._alike and self._light >= self._misjudged.needs(self.owner, None)
        return LIGHT if is_light else UNKNOWN

    def learn(self, job: Job, is_light: bool, is_long: bool) -> None:
        """Take note of whether a call computed little.

        :param is_long: whether others would have noticed if it did not.
        """
        kind = job.kind
        before = self.thinks(kind), self.thinks(None)
        if job.is_trusted and is_long and not is_light:
            job.is_trusted = False
            self._misjudged.add(self.owner, kind if kind in self._kinds else None)
        self._light = self._light + 1 if is_light else 0
        if kind is not None:
            known = self._kinds.get(kind, -1)
            if known < 0 and len(self._kinds) >= KINDS:
                self._kinds.pop(next(iter(self._kinds)), None)
            self._kinds[kind] = max(known, 0) + 1 if is_light else 0
        if (self.thinks(kind), self.thinks(None)) != before:
            # Those that wait, two thousand perhaps, are looked through only where something else is thought of some.
            self._is_stale = True
