"""Keeps live queries up to date, step by step (docs/architecture.rst, "Live queries").

A step reads, in one snapshot of the database, the rows that have changed, and finds out which queries that concerns.
What waits for the database runs in a thread of its own; all else on the reactor's thread, some milliseconds in a turn.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import itemgetter
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.data.drivers.driver import Fault
from zcomm.data.models import Model
from zcomm.data.requests import Plan
from zcomm.data.store import Store
from zcomm.errors import CommandError, CommandTimeout, InternalError, Invalid, TooBusy
from zcomm.live.differences import Difference
from zcomm.live.log import ChangeLog, Key
from zcomm.live.memberships import Membership, Memberships
from zcomm.live.nudge import Nudge
from zcomm.live.query import Query
from zcomm.live.reading import PASSING, QUERY_SECONDS, STEP_SECONDS, Found, Keys, Reading, merge, wide
from zcomm.live.requests import MAX_BYTES, MAX_ROWS, Question
from zcomm.live.rows import Entry, Form, Row, Unreadable
from zcomm.live.watched import Touched, Watched
from zcomm.runtime.collector import Collector
from zcomm.runtime.deferreds import Waiters
from zcomm.runtime.workers import Workers

__all__ = ["Feed"]

#: Seconds between the beginnings of two steps at least, and between two looks whether something has changed.
PACE, LOOK = 1 / 150, 0.0515
#: Seconds after a step that has found something for which one looks as often as there may be steps.
LIVELY = 0.1
#: Seconds after the beginning of a write for the first look: it is not committed yet.
SOON = 0.002
#: Seconds of a step that waits for the database for which no garbage is collected.
HELD = 1.0
#: Seconds of a turn that are spent on a step.
SLICE = 0.002
#: A query that takes longer than :data:`STEP_SECONDS` by itself is read beside steps. Then it rests, so many times as
#: long as it took.
SLOW_REST = 4.0
#: How often in a row the read of a query may take longer than :data:`QUERY_SECONDS`: a database has its moments.
LATE = 3
#: How many are read beside steps at a time, and how many of them for one user.
MOST_BESIDE, MOST_OF_ONE = 4, 2
#: How many of those who have a query are looked at for whose work its read is.
SOME = 8
#: How many steps are told apart for those whose rows are read meanwhile.
MOST_PAST = 100
#: Rows that are made at once.
ROWS_AT_ONCE = 50
#: Seconds that changes are logged for when there is no query any more.
REST = 10.0
#: How often in a row the rows of a query may fail to be read.
TRIES = 5
#: The faults of a read beside steps that are of others, and not of the query.
OTHERS = (*PASSING, "busy", "given_up", "refused", "timeout")
#: Bytes of those that are on their way out that take no room from what comes.
MOST_LEFT = 32 << 20
#: Seconds after which a step that has failed is tried again: the first time, and at most.
RETRY, MAX_RETRY = 0.1, 2.0
#: How many steps may fail in a row before whoever asks is told so.
FAILURES = 3


class Listener(Protocol):
    """Hears of what a step has found."""

    def differs(self, query: Query, made: Difference) -> None:
        """Take note of what has changed in the rows of ``query``."""

    def ended(self, query: Query, error: CommandError) -> None:
        """Take note that ``query`` cannot go on."""

    def sees(self, models: Collection[str]) -> None:
        """Take note that whose changes are seen of these may be another, from the next step on."""

    def step(self) -> Iterator[None]:
        """Tell all that has been noted, in slices."""

    def failed(self) -> None:
        """Take it that nothing that was noted is to be relied on."""


class Feed:
    """The live queries of one database.

    :param store: has the models; reads rows for whoever asks first.
    :param log: tells which rows have changed.
    :param clock: the reactor.
    :param listener: hears of what has changed.
    :ivar sees: by model why only changes by this program are seen; models of which all are seen are missing.
    """

    _log = Logger()

    def __init__(self, store: Store, log: ChangeLog, clock: Any, listener: Listener):
        self._store = store
        self._changes = log
        self._clock = clock
        self._listener = listener
        self._is_sqlite = store.execution.database.name == "sqlite"
        self._workers = Workers(1, name="zcomm-live", reactor=clock)
        self._watched: dict[str, Watched[Query]] = {}
        self._memberships = Memberships(lambda name: store.schema.find(name), log.key_form, self._is_sqlite)
        self._reads = Reading(store, log, self._watched, self._memberships)
        self.blind: dict[str, str] = {}
        #: Those whose rows are read now or that wait for the next step, by what they ask.
        self._coming: dict[Question, Query] = {}
        self._reading: dict[Question, Waiters[Query]] = {}
        #: Those that wait for the next step, each with the number of the first step that may have passed it by.
        self._joining: dict[Query, int] = {}
        #: The numbers of the first steps that may pass by what is read now.
        self._since: dict[object, int] = {}
        #: What steps have read, by their numbers, as long as somebody may have been passed by.
        self._past: deque[tuple[int, Found]] = deque()
        #: What has changed since the step before, as far as it was told here; by model, ``None`` for any rows. And what
        #: threads have told of since then, for the step under way.
        self._told: Keys = {}
        self._reported: deque[tuple[str, str, Sequence[Key] | None]] = deque()
        self._all_unknown = True
        self._number = 0
        self._is_running = self._is_due = self._is_watching = False
        #: Those that nobody is told of any more or that have ended, and what lets go of them where no step does.
        self._leaving: dict[Query, None] = {}
        self._clearing: IDelayedCall | None = None
        #: Those whose rows have to be read anew, the ones that have waited for longest first.
        self._stale: dict[Query, None] = {}
        #: Those whose rows others may have changed, which nobody hears of: for the next step.
        self._doubted: dict[Query, None] = {}
        #: The stale ones that are read beside steps, each with whose work that is; and what has become of it for the
        #: next step: their rows with the seconds that it took, and the number of the first step that may have passed
        #: them by.
        self._beside: dict[Query, Any] = {}
        #: How many were read so, and by user the number of the last one.
        self._reads_beside = 0
        self._turns: dict[Any, int] = {}
        self._renewals: list[tuple[Query, int, tuple[list[Entry], float] | Failure]] = []
        #: The models that could not be read in the last step.
        self._away: Collection[str] = frozenset()
        #: Begins a step when one of them, or one that has failed, has rested.
        self._slow_call: IDelayedCall | None = None
        self._ending: Waiters[None] = Waiters()
        #: The numbers of the step that began last, and of the last one that has taken in all that there was.
        self._started = self._done = 0
        self._size = 0
        self._next: IDelayedCall | None = None
        #: When the last step began, and the last look.
        self._begun = self._looked_at = float("-inf")
        self._retry = RETRY
        #: How many steps have failed in a row.
        self._failures = 0
        #: Whether there was a step that had no time for all that had to be read anew.
        self._has_lagged = False
        self._is_open = True
        self._looks = LoopingCall(self._look)
        self._tends = LoopingCall(self._tend)
        self._looks.clock = self._tends.clock = clock
        self._is_looking = False
        self._collector = Collector()
        #: When a step has found something, if that was lately; the look that comes before its time.
        self._found_at: float | None = None
        self._hurried: IDelayedCall | None = None
        #: Tells of writes by others.
        self._nudge = Nudge(clock, self._nudged)
        #: Since when there is no query.
        self._idle_since: float | None = None

    # -- from outside

    def start(self) -> Deferred[None]:
        """Find out which tables can be watched. Fires when that is known; it does not fail."""
        self._workers.start()
        self._store.execution.on_change = self._changed_in_thread
        models = list(self._store.schema.models.values())
        self.blind = {model.name: "its schema does not say live: true" for model in models if not model.live}
        live = [model for model in models if model.live]
        return self._thread(self._changes.prepare, live).addCallbacks(self._prepared, self._not_prepared, (live,))

    def _prepared(self, reasons: Mapping[str, str], live: Sequence[Model]) -> None:
        self.blind |= {name: reason for name, reason in reasons.items() if reason}
        for model in live:
            if model.name in self.blind:
                self._tell_of(model.name, self.blind[model.name])

    def _tell_of(self, model: str, reason: str) -> None:
        text = "live queries of {model} see changes by this server alone: {reason}"
        self._log.warn(text, model=model, reason=reason)

    def _not_prepared(self, failure: Any) -> None:
        self._log.failure("it is not known which tables can be watched", failure)
        self.blind |= dict.fromkeys(self._store.schema.models, "the database did not answer")

    def stop(self) -> Deferred[None]:
        """Let go of the database. Fires when nothing runs any more."""
        self._is_open = False
        self._collector.release()
        self._store.execution.on_change = None
        for loop in (self._looks, self._tends):
            if loop.running:
                loop.stop()
        for call in (self._next, self._hurried, self._slow_call, self._clearing):
            if call is not None:
                call.cancel()
        self._next = self._hurried = self._slow_call = self._clearing = None
        self._nudge.close()
        ended = self._thread(self._end).addErrback(lambda _: None)
        return ended.addCallback(lambda _: self._workers.stop())

    def _end(self) -> None:
        self._changes.end()
        self._changes.rest()
        self._changes.close()

    @property
    def queries(self) -> int:
        """The number of queries."""
        return sum(map(len, self._watched.values())) + len(self._coming)

    @property
    def size(self) -> int:
        """Bytes that all of them take, about, but for those that are on their way out, as far as these are not many."""
        left = sum(query.size for query in self._leaving if query.fault or not query.watchers)
        return self._size - min(left, MOST_LEFT)

    def sees_all(self, model: str) -> bool:
        """Whether changes by whomever are seen."""
        return model not in self.blind

    @property
    def is_running(self) -> bool:
        """Whether a step is under way: its queries may be on their way from one snapshot to the next."""
        return self._is_running

    @property
    def done(self) -> int:
        """The number of the last step that has taken in all that had changed before it began."""
        return self._done

    @property
    def fresh(self) -> int:
        """The :attr:`done` from which on all is seen that was changed here until now."""
        return self._started + self._is_due

    @property
    def is_failing(self) -> bool:
        """Whether so many steps have failed in a row that it is not known when one will go well again."""
        return self._failures >= FAILURES

    def when_ended(self) -> Deferred[None]:
        """Fires at the end of the next step, before another one begins."""
        return self._ending.add()

    def step(self) -> Deferred[None]:
        """Have a step begin soon where none is under way. Fires at its end, before another one begins."""
        self._step_soon()
        return self._ending.add()

    def is_coming(self, query: Query) -> bool:
        """Whether no step knows of ``query`` yet."""
        return self._coming.get(query.question) is query

    def is_joining(self, query: Query) -> bool:
        """Whether the next step has a coming ``query`` at the same snapshot as the others. Where it is not known when
        one goes well nothing is to be waited for, nor with a query that is behind the others anyhow."""
        return self.is_coming(query) and not self.is_read_beside(query) and not self.is_failing and self._is_open

    def is_passed_by(self, query: Query) -> bool:
        """Whether a step has begun since the rows of one that is joining were read: it may tell of later ones."""
        is_later = self._is_running or self._number >= self._joining.get(query, self._number + 1)
        return is_later and self.is_joining(query)

    def is_read_beside(self, query: Query) -> bool:
        """Whether a query is read beside steps, as it would keep them waiting, or make them fail."""
        return query.took > STEP_SECONDS or query.is_apart

    def knows(self, question: Question) -> bool:
        """Whether there is a query that asks ``question``, or one whose rows are read now."""
        if question in self._coming or question in self._reading:
            return True
        watched = self._watched.get(question.model)
        return watched is not None and question in watched.queries

    def ask(self, question: Question, plan: Plan, owner: Any) -> Deferred[Query]:
        """Get the query that asks ``question``, whose rows are read now where nobody asks it yet.

        :param plan: of its read.
        :param owner: whose work that is.
        :return: a Deferred of it; it fails with a :class:`~zcomm.errors.CommandError`.
        """
        watched = self._watched.get(question.model)
        known = self._coming.get(question) or (None if watched is None else watched.queries.get(question))
        if known is not None:
            if known.fault and self._is_running:
                return self.when_ended().addCallback(lambda _: self.ask(question, plan, owner))
            if not known.fault:
                return succeed(self._doubt(known))
            self._remove(known)
        reading = self._reading.get(question)
        if reading is not None:
            return reading.add().addCallback(self._doubt)
        reading = self._reading[question] = Waiters()
        waiting = reading.add()

        def done(query: Query) -> None:
            del self._reading[question]
            self._coming[question] = query
            self._size += query.size
            reading.fire(query)
            if not query.watchers:
                self._forget(query)

        def failed(failure: Any) -> None:
            del self._reading[question]
            reading.fail(failure.value)

        self._read(question, plan, owner).addCallbacks(done, failed)
        return waiting

    def _doubt(self, query: Query) -> Query:
        """Where nobody hears of other programs, have the rows read anew by a step that begins from now on: whoever asks
        now gets what there is now."""
        if not self.sees_all(query.question.model):
            self._doubted[query] = None
            self._step_soon()
        return query

    @inlineCallbacks
    def _read(self, question: Question, plan: Plan, owner: Any) -> Generator[Any, Any, Query]:
        model = self._store.schema.find(question.model)
        watched = self._watched_of(model)
        self._watch()
        query = Query(question, plan, model, watched.view(question), self._is_sqlite)
        mark = object()
        # The step that runs, or the next one, may read before it and tell of what it has seen.
        since = self._since[mark] = self._number + 1
        try:
            entries, seconds = yield self._rows_of_query(query, watched, owner)
            if seconds > 2 * QUERY_SECONDS:
                slow = TooBusy(
                    f"This query took {seconds:.1f} s, too long to be kept live; narrow its where, or give the "
                    "database an index for it"
                )
                slow.retryable = False
                raise slow
        except Unreadable:
            raise InternalError("A row of it has a value that cannot be read") from None
        finally:
            del self._since[mark]
        query.fill(entries)
        # Those that it keeps are looked up when it takes part.
        query.left = query.came = ()
        query.took = seconds
        if query.fault:
            raise Invalid(query.fault)
        self._joining[query] = since
        if self._number >= since or self._is_running:
            self._step_soon()
        return query

    @inlineCallbacks
    def _rows_of_query(
        self, query: Query, watched: Watched[Query], owner: Any, is_patient: bool = True
    ) -> Generator[Any, Any, tuple[list[Entry], float]]:
        """Read the rows of a query in a transaction of its own: a Deferred of them and of the seconds that it took.

        :param owner: whose work that is.
        :param is_patient: whether to wait for tables that others keep locked.
        """
        form = Form(watched.model, query.question.fields + query.view.beside, query.raw, self._is_sqlite)
        find = partial(self._store.find, owner)
        try:
            rows, seconds = yield find(wide(query, form), watched.key.columns, form.raw, MAX_BYTES, is_patient)
        except Invalid:
            if not query.has_spares:
                raise
            # The rows that clients see may come to less.
            query.has_spares = False
            rows, seconds = yield find(wide(query, form), watched.key.columns, form.raw, MAX_BYTES, is_patient)
        entries = yield self._entries(query, form, rows)
        return entries, seconds

    def _watched_of(self, model: Model) -> Watched[Query]:
        watched = self._watched.get(model.name)
        if watched is None or watched.model is not model:
            key = self._changes.key_form(model)
            if isinstance(key, str):
                raise Invalid(f"{model.name} cannot be asked for live: {key}")
            made: Watched[Query] = Watched(model, key, self._is_sqlite)
            if watched is not None and len(watched):
                return watched
            watched = self._watched[model.name] = made
        return watched

    def leave(self, query: Query, watcher: Any) -> None:
        """Tell ``watcher`` of ``query`` no more."""
        query.watchers.pop(watcher, None)
        if not query.watchers:
            self._forget(query)

    def _forget(self, query: Query) -> None:
        """Let go of a query as soon as no step goes through them."""
        self._leaving[query] = None
        self._clear_soon()

    def _clear_soon(self) -> None:
        if self._leaving and not self._is_running and self._clearing is None and self._is_open:
            self._clearing = self._clock.callLater(0, self._clear)

    def _clear(self) -> None:
        self._clearing = None
        if not self._is_running:
            until = perf_counter() + SLICE
            for _ in self._let_go():
                if perf_counter() > until:
                    break
            self._clear_soon()

    def _let_go(self) -> Iterator[None]:
        """Let go of those that have ended or that nobody is told of, in slices: their rows may be many."""
        while self._leaving:
            query, _ = self._leaving.popitem()
            if query.fault or not query.watchers:
                self._remove(query)
            yield

    def _remove(self, query: Query) -> None:
        if self._coming.get(query.question) is query:
            del self._coming[query.question]
            self._size -= query.size
            self._joining.pop(query, None)
        watched = self._watched.get(query.question.model)
        self._stale.pop(query, None)
        if watched is not None and watched.queries.get(query.question) is query:
            watched.remove(query)
            self._memberships.remove(query)
            self._size -= query.size

    # -- what has changed

    def _changed_in_thread(self, model: str, action: str, keys: Sequence[Key] | None) -> None:
        self._reported.append((model, action, keys))
        self._clock.callFromThread(self._changed)

    def _changed(self) -> None:
        if self._is_watching:
            self._step_soon()
        else:
            self._reported.clear()

    def _take_reported(self, told: Keys) -> None:
        """Take what rows this program has changed since that was asked last. Runs in the thread of the steps.

        :param told: takes them.
        """
        while self._reported:
            model, action, keys = self._reported.popleft()
            concerned = {model} if action == "create" else self._concerned(model)
            for name in concerned:
                if not self.sees_all(name):
                    merge(told, name, None if keys is None or concerned != {model} else set(keys))

    def _concerned(self, model: str) -> set[str]:
        """The models of which rows may change with those of ``model``: those that point to it, and so on."""
        found = {model}
        waiting = [model]
        while waiting:
            one = waiting.pop()
            for other in self._store.schema.models.values():
                if any(each.fk is not None and each.fk.model == one for each in other.fields.values()):
                    if other.name == model:
                        # Rows that are not named may go along.
                        found.add("")
                    if other.name not in found:
                        found.add(other.name)
                        waiting.append(other.name)
        return found

    def _watch(self) -> None:
        """Have changes logged from now on."""
        self._idle_since = None
        if self._is_watching:
            return
        self._is_watching = True
        self._all_unknown = True
        self._looks.start(LOOK, now=False)
        self._tends.start(1.0, now=False)
        self._nudge.arm(self._changes.file)
        self._step_soon()

    def _nudged(self) -> None:
        """Look whether what somebody is writing now is there, as often as after a step that has found something."""
        if self._is_open and self._is_watching:
            self._found_at = self._clock.seconds()
            if self._hurried is None:
                self._hurried = self._clock.callLater(SOON, self._look_hurried)

    def _look(self) -> None:
        """Find out whether something has changed."""
        if self._is_running and self._clock.seconds() - self._begun > HELD:
            self._collector.release()
        if not self.queries and not self._since:
            self._rest()
        elif self._is_running or self._is_due or self._is_looking:
            return
        else:
            self._is_looking = True
            self._looked_at = self._clock.seconds()
            self._thread(self._changes.changed).addCallbacks(self._looked, self._not_looked)

    def _rest(self) -> None:
        """Have nothing logged any more, some time after the last query is gone."""
        now = self._clock.seconds()
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > REST and not self._is_running:
            self._idle_since = None
            self._is_watching = self._is_due = False
            if self._next is not None:
                # That of a step which has failed.
                self._next.cancel()
                self._next = None
            self._looks.stop()
            self._tends.stop()
            self._nudge.close()
            self._thread(self._changes.rest).addErrback(lambda _: None)

    def _looked(self, has_changed: bool) -> None:
        self._is_looking = False
        if has_changed and self._is_open:
            self._step_soon()
        elif self._found_at is not None:
            self._look_soon()

    def _not_looked(self, _: Any) -> None:
        # The step finds out what is wrong.
        self._is_looking = False
        if self._is_open:
            self._step_soon()

    def _tend(self) -> Deferred[None]:
        return self._thread(self._changes.tend).addCallbacks(self._tended, lambda _: None)

    def _tended(self, changed: Mapping[str, str]) -> None:
        if self._found_at is None and self._is_watching:
            # It may be another file by now.
            self._nudge.arm(self._changes.file)
        for model, reason in changed.items():
            if reason:
                self.blind[model] = reason
                self._tell_of(model, reason)
            elif self.blind.pop(model, None):
                self._log.info("live queries of {model} see changes by whomever", model=model)
        if changed:
            self._listener.sees(changed)
            self._all_unknown = True
            self._step_soon()

    # -- steps

    def _step_soon(self, after: float = 0.0) -> None:
        """Have a step begin as soon as there may be one; none once nothing is logged any more: it would log again."""
        if not self._is_watching:
            return
        self._is_due = True
        if self._is_running or self._next is not None or not self._is_open:
            return
        wait = max(after, self._begun + PACE - self._clock.seconds(), 0.0)
        self._next = self._clock.callLater(wait, self._begin)

    def _begin(self) -> None:
        self._next = None
        self._is_running, self._is_due = True, False
        self._started += 1
        self._begun = self._clock.seconds()
        self._collector.hold()
        self._step().addBoth(self._over)

    def _over(self, outcome: bool | Failure) -> None:
        """Go on once a step is over.

        :param outcome: whether it has taken in all that it was about.
        """
        self._collector.release()
        self._is_running = False
        if not self._is_open:
            self._ending.fire(None)
            return
        after = 0.0
        try:
            after = self._clear_up(outcome if isinstance(outcome, Failure) else None)
        except Exception:
            # Whatever is wrong with one query, the others go on.
            self._all_unknown = self._is_due = True
            self._log.failure("a step of the live queries was not cleared up")
        if outcome is True:
            self._done = self._started
        self._ending.fire(None)
        self._clear_soon()
        if self._is_due or self._unknown() or self._readable() or self._startable():
            self._step_soon(after)
            return
        now = self._clock.seconds()
        # Those that wait for others beside steps come when these are done.
        resting = [query.rests_until for query in self._stale if query.rests_until > now and not self._is_away(query)]
        if resting:
            wait = min(resting) - now
            if self._slow_call is None:
                self._slow_call = self._clock.callLater(wait, self._slow_again)
            elif self._slow_call.getTime() > min(resting):
                self._slow_call.reset(wait)
        if self._found_at is not None:
            self._look_soon()

    def _look_soon(self) -> None:
        """Look again before the others do: whoever writes now is likely to go on."""
        if self._hurried is None and self._is_open and self._is_watching:
            wait = max(max(self._begun, self._looked_at) + PACE - self._clock.seconds(), 0.0)
            self._hurried = self._clock.callLater(wait, self._look_hurried)

    def _look_hurried(self) -> None:
        self._hurried = None
        is_lively = self._found_at is not None and self._clock.seconds() - self._found_at < LIVELY
        if is_lively and self._is_watching:
            self._look()
        else:
            self._found_at = None
            if self._is_watching:
                self._nudge.arm(self._changes.file)

    def _slow_again(self) -> None:
        """Have a query that takes long read again."""
        self._slow_call = None
        self._step_soon()

    def _readable(self) -> list[Query]:
        """The queries that are to be read anew by a step, the ones that have waited for longest first."""
        return [
            query
            for query in self._stale
            if not self.is_read_beside(query) and query not in self._beside and not self._is_away(query)
        ]

    def _unknown(self) -> list[Membership]:
        """The conditions on other models of which a step is to read which rows they find."""
        return [each for each in self._memberships.unknown if each.model.name not in self._away]

    def _is_away(self, query: Query) -> bool:
        """Whether a table is locked that the database would look at for the rows of ``query``."""
        return bool(self._away) and (query.question.model in self._away or not query.depends.isdisjoint(self._away))

    def _startable(self) -> list[tuple[Query, Any]]:
        """The queries that are to be read beside steps now, each with the watcher whose work that is: few at a time,
        which leaves room for commands; first those of whoever's turn was longest ago, and of these the ones that have
        waited for longest."""
        now = self._clock.seconds()
        owners = Counter(self._beside.values())
        if len(self._beside) >= MOST_BESIDE:
            return []
        turns = self._turns
        ready: list[tuple[int, Query, Any]] = []
        for query in self._stale:
            if not self.is_read_beside(query) or query.rests_until > now or query in self._beside:
                continue
            if not query.watchers or query.fault or self._is_away(query):
                continue
            some = islice(query.watchers.items(), SOME)
            turn, watcher = min(((turns.get(owner, 0), each) for each, owner in some), key=itemgetter(0))
            ready.append((turn, query, watcher))
        ready.sort(key=itemgetter(0))
        found: list[tuple[Query, Any]] = []
        for _, query, watcher in ready:
            owner = query.watchers[watcher]
            if owners[owner] < MOST_OF_ONE and len(self._beside) + len(found) < MOST_BESIDE:
                owners[owner] += 1
                found.append((query, watcher))
        return found

    def _read_beside(self) -> None:
        """Read anew those that take long, or at which a step has failed, which keeps no step waiting; each once it has
        rested."""
        startable = self._startable()
        if not startable and not self._beside:
            self._turns.clear()
        for query, watcher in startable:
            if query.took > STEP_SECONDS and not query.is_slow:
                query.is_slow = True
                text = "a live query of {model} takes {seconds:.2f} s; it is read beside the steps and behind them"
                self._log.info(text, model=query.question.model, seconds=query.took)
            mark = object()
            since = self._since[mark] = self._number + 1
            watched = self._watched[query.question.model]
            # In turn.
            owner = query.watchers.pop(watcher)
            query.watchers[watcher] = self._beside[query] = owner
            self._reads_beside += 1
            self._turns[owner] = self._reads_beside
            query.begun_at = self._clock.seconds()
            self._rows_of_query(query, watched, owner, False).addBoth(self._has_read, query, mark, since)

    def _has_read(self, result: Any, query: Query, mark: object, since: int) -> None:
        del self._since[mark]
        self._renewals.append((query, since, result))
        self._step_soon()

    def _take(self, query: Query, result: tuple[list[Entry], float] | Failure) -> bool:
        """Take what was read beside steps; returns whether these are its rows now."""
        self._beside.pop(query, None)
        watched = self._watched.get(query.question.model)
        if query.fault or watched is None or watched.queries.get(query.question) is not query:
            return False
        now = self._clock.seconds()
        if isinstance(result, Failure):
            error = result.value
            if isinstance(error, Unreadable):
                self._unreadable(query)
            elif isinstance(error, CommandError):
                kind = error.__cause__.kind if isinstance(error.__cause__, Fault) else ""
                is_own = kind not in ("", *OTHERS)
                query.late += isinstance(error, CommandTimeout)
                query.failures += is_own
                rest = min(RETRY * 2**query.failures, MAX_RETRY) if is_own else 1.0
                query.rests_until = now + max(rest, SLOW_REST * query.took)
                if query in self._stale:
                    # Others have waited for longer.
                    del self._stale[query]
                    self._stale[query] = None
                if query.failures >= TRIES or not (kind or error.retryable):
                    text = "a live query of {model} ends, as its rows cannot be read: {error}"
                    self._log.warn(text, model=query.question.model, error=error)
                    self._end_query(query, error)
            else:
                self._log.failure("a live query could not be read anew", result)
                self._end_query(query, InternalError("It could not be read anew"))
        else:
            entries, query.took = result
            query.read_at = query.begun_at
            query.is_slow = query.took > STEP_SECONDS
            query.late = query.late + 1 if query.took > QUERY_SECONDS else 0
            query.rests_until = now + SLOW_REST * query.took
            query.failures, query.is_apart = 0, False
            size = query.size
            self._stale.pop(query, None)
            self._became(query, size, query.fill(entries))
        if query.late >= LATE and not query.fault:
            self._too_slow(query)
        return not (query.fault or query.is_stale)

    def _clear_up(self, failure: Failure | None) -> float:
        """Take account of how a step has ended; returns the seconds after which there may be another one."""
        after = 0.0
        if failure is None:
            self._retry, self._failures = RETRY, 0
        else:
            # What it was about the log tells again.
            self._is_due = True
            self._failures += 1
            after, self._retry = self._retry, min(2 * self._retry, MAX_RETRY)
            fault = failure.value
            if not isinstance(fault, Fault):
                # Rows may have been taken of which nobody was told.
                self._all_unknown = True
                self._listener.failed()
                self._log.failure("a step of the live queries failed; it is tried again", failure)
            elif fault.kind == "migrated":
                self._thread(self._store.execution.look_again).addErrback(lambda _: None)
        for name in self._reads.distrusted:
            self._memberships.distrust(name)
        self._reads.distrusted.clear()
        return after

    @inlineCallbacks
    def _step(self) -> Generator[Any, Any, bool]:
        number = self._number + 1
        extra: Keys = {}
        yield from self._slices(self._let_go())
        yield from self._slices(self._admit(extra))
        told, self._told = self._told, {}
        for name, keys in extra.items():
            merge(told, name, keys)
        names = [name for name, watched in self._watched.items() if len(watched)]
        is_whole = False
        try:
            found: Found = yield self._thread(self._reads.find, names, told, self._take_reported)
            for name, late in found.late.items():
                merge(self._told, name, None if late is None else set(late))
            if not found.keys.keys().isdisjoint(names):
                self._found_at = self._clock.seconds()
            is_unknown, self._all_unknown = self._all_unknown, False
            self._away = found.away
            try:
                self._number = number
                if self._since or self._joining or self._renewals:
                    self._remember(number, found)
                if is_unknown or not found.known:
                    found.known = False
                    for watched in self._watched.values():
                        for query in watched.queries.values():
                            self._outdate(query)
                for watched in self._watched.values() if found.away else ():
                    for query in filter(self._is_away, watched.queries.values()):
                        self._outdate(query)
                yield from self._slices(self._look_at_members(found))
                is_whole = yield from self._settle(found, names)
            except BaseException:
                yield self._thread(self._changes.end)
                raise
            finally:
                found.rows, found.forms, found.member_rows = {}, {}, {}
        finally:
            if not is_whole:
                # It may have ended early without an error; what was told here no log tells again.
                self._is_due = True
                for name, keys in told.items():
                    merge(self._told, name, keys)
        ending = self._thread(self._changes.end)
        try:
            yield from self._slices(self._listener.step())
        finally:
            yield ending
        return is_whole

    def _remember(self, number: int, found: Found) -> None:
        """Keep what a step has found for those whose rows are read meanwhile, however long that takes."""
        if len(self._past) >= MOST_PAST:
            _, earlier = self._past.popleft()
            second, later = self._past.popleft()
            earlier.absorb(later)
            # Who was passed by the second alone is told of both, which is harmless.
            self._past.appendleft((second, earlier))
        self._past.append((number, found))

    def _admit(self, changed: Keys) -> Iterator[None]:
        """Let queries that were read since the last step take part from now on.

        :param changed: takes what has changed since they were read, by model.
        """
        renewals, self._renewals = self._renewals, []
        #: By model the first step that may have passed one of them by.
        first: dict[str, int] = {}
        for query, since in list(self._joining.items()):
            del self._joining[query]
            self._coming.pop(query.question, None)
            try:
                self._watched[query.question.model].add(query)
                self._memberships.add(query)
            except Exception:
                self._log.failure("a live query could not be taken in")
                self._end_query(query, InternalError("It could not be taken in"))
            self._passed_by(query, since, first)
            yield
        for query, since, result in renewals:
            if self._take(query, result):
                self._passed_by(query, since, first)
            yield
        for number, found in self._past:
            for model, since in first.items():
                if number >= since and (keys := found.keys.get(model)):
                    merge(changed, model, keys)
        doubted, self._doubted = self._doubted, {}
        for query in doubted:
            watched = self._watched.get(query.question.model)
            if watched is not None and watched.queries.get(query.question) is query:
                self._outdate(query)
        waiting = [*self._joining.values(), *(since for _, since, _ in self._renewals)]
        oldest = min([*self._since.values(), *waiting], default=None)
        while self._past and (oldest is None or self._past[0][0] < oldest):
            self._past.popleft()

    def _passed_by(self, query: Query, since: int, first: dict[str, int]) -> None:
        """Have a query hear of what steps have found while its rows were read.

        :param first: takes the first one of them, by model.
        """
        model = query.question.model
        first[model] = min(since, first.get(model, since))
        for number, found in self._past:
            is_known = found.known and found.keys.get(model, ()) is not None
            if number >= since and not (is_known and query.depends.isdisjoint(found.keys)):
                self._outdate(query)
                return

    def _settle(self, found: Found, names: Sequence[str]) -> Generator[Any, Any, bool]:
        """Find out what has become of the queries; whether that is all that the step was about."""
        touched: Touched[Query] = {}
        unsure: Touched[Query] = {}
        for name in names:
            watched = self._watched[name]
            keys = found.keys.get(name, ())
            if keys is None:
                for query in watched.queries.values():
                    self._outdate(query)
            elif keys and found.known:
                yield from self._slices(self._touch(watched, found, keys, touched, unsure))
        is_broken = False
        for query in [query for query in unsure if query.is_stale]:
            # It is read anew, now or in a later step.
            del unsure[query]
        if unsure:
            matching = yield self._thread(self._reads.ask_which, unsure)
            yield from self._slices(self._matched(unsure, matching, touched))
            is_broken = any(isinstance(keys, Fault) for keys in matching.values())
        yield from self._slices(self._change(touched))
        if is_broken:
            return False
        self._read_beside()
        stale = [query for query in self._readable() if query.watchers and not query.fault]
        if stale:
            anew = yield self._thread(self._reads.read_anew, stale)
            until = perf_counter() + SLICE
            for query, form, rows in anew:
                yield from self._renew(query, form, rows)
                if perf_counter() > until:
                    yield self._turn()
                    until = perf_counter() + SLICE
            if any(isinstance(rows, Fault) for _, _, rows in anew):
                return False
            if len(anew) < len(stale) and not self._has_lagged:
                self._has_lagged = True
                text = "{count} live queries are behind the others until the next step: those of one took too long"
                self._log.info(text, count=len(stale) - len(anew))
        if unknown := self._unknown():
            members = yield self._thread(self._reads.read_members, unknown)
            for membership, keys_of in members:
                self._memberships.learn(membership, keys_of)
        return True

    def _look_at_members(self, found: Found) -> Iterator[None]:
        """Have the queries read anew whose rows are in reach by other rows now."""
        for name in list(self._memberships.models):
            keys = found.members.get(name, ())
            if keys is None or not found.known:
                concerned: Iterator[Query | None] = self._memberships.forget(name)
            elif keys:
                rows = {row.key: row for row in found.member_rows.get(name, ())}
                concerned = self._memberships.look(name, keys, rows)
            else:
                continue
            for query in concerned:
                if query is not None:
                    self._outdate(query)
                yield

    def _touch(
        self,
        watched: Watched[Query],
        found: Found,
        keys: Iterable[Key],
        touched: Touched[Query],
        unsure: Touched[Query],
    ) -> Iterator[None]:
        name = watched.model.name
        form = found.forms[name]
        rows: dict[Key, Row] = {}
        for place, values in enumerate(found.rows[name]):
            row = Row(form, values)
            rows[row.key] = row
            if place % ROWS_AT_ONCE == 0:
                yield
        if len(rows) < len(found.rows[name]):
            # Two have the same key. Whom that concerns is found where all of its rows are read.
            for query in watched.queries.values():
                self._outdate(query)
            return
        for key in keys:
            yield from watched.look_at(key, rows.get(key), touched, unsure)
            yield

    def _matched(
        self,
        unsure: Touched[Query],
        matching: Mapping[Query, set[Key] | None | Fault],
        touched: Touched[Query],
    ) -> Iterator[None]:
        """Take what the database has said of the rows of which only it can tell.

        :param touched: takes of each query the rows that match, and ``None`` for those that do not any more.
        """
        for query, rows in unsure.items():
            keys = matching.get(query)
            if isinstance(keys, Fault):
                self._set_apart(query, keys)
                continue
            if keys is None:
                self._outdate(query)
                continue
            mine = touched.setdefault(query, {})
            for place, (key, row) in enumerate(rows.items()):
                if key in keys:
                    mine[key] = row
                elif key in query.keys:
                    mine[key] = None
                if place % ROWS_AT_ONCE == 0:
                    yield

    def _change(self, touched: Touched[Query]) -> Iterator[None]:
        for query, rows in touched.items():
            if query.is_stale or query.fault:
                continue
            if len(rows) > MAX_ROWS:
                # To read as many as it has is less than to make all of these.
                self._outdate(query)
                continue
            size = query.size
            try:
                if len(rows) > ROWS_AT_ONCE:
                    yield from _made(query, rows.values())
                made = query.change(rows)
            except Unreadable:
                self._unreadable(query)
                continue
            if made is None:
                self._outdate(query)
            else:
                self._became(query, size, made)
            yield

    def _became(self, query: Query, size: int, made: Difference) -> None:
        # Also of one that has to end: what it takes by then is what is let go of.
        self._size += query.size - size
        if query.left or query.came:
            self._watched[query.question.model].follow(query)
            query.left = query.came = ()
        if query.fault:
            self._end_query(query, Invalid(query.fault))
        elif made:
            self._listener.differs(query, made)

    def _end_query(self, query: Query, error: CommandError) -> None:
        query.fault = str(error)
        self._leaving[query] = None
        self._listener.ended(query, error)

    def _unreadable(self, query: Query) -> None:
        self._end_query(query, InternalError("A row of it has a value that cannot be read"))

    def _renew(self, query: Query, form: Form, rows: list[tuple[Any, ...]] | Fault) -> Generator[Any, Any, None]:
        if isinstance(rows, Fault):
            if rows.kind != "large":
                self._set_apart(query, rows)
                return
            if query.has_spares:
                # The rows that clients see may come to less: in the next step.
                query.has_spares = False
                return
            reason = f"Its rows come to more than {MAX_BYTES >> 20} MiB; ask for fewer fields or rows"
            self._end_query(query, Invalid(reason))
            return
        size = query.size
        try:
            entries = yield self._entries(query, form, rows)
        except Unreadable:
            self._unreadable(query)
            return
        self._stale.pop(query, None)
        query.late = 0
        self._became(query, size, query.fill(entries))

    def _outdate(self, query: Query) -> None:
        """Have the rows of ``query`` read anew, in this step or one of the next."""
        query.is_stale = True
        self._stale[query] = None

    def _set_apart(self, query: Query, fault: Fault) -> None:
        """Have a query read beside steps at which this one has failed, and with it those of its model that are to
        be read as well: they are likely to fail, too, and each of them would cost a step. Of one that took too long it
        is those of the same users."""
        text = "a live query of {model} fails a step; it is read beside the steps and behind them: {fault}"
        self._log.info(text, model=query.question.model, fault=fault)
        self._outdate(query)
        owners = {*query.watchers.values()}
        for each in self._stale:
            is_like = fault.kind != "timeout" or not owners.isdisjoint(each.watchers.values())
            if each is query or (is_like and each.question.model == query.question.model):
                each.is_apart = True

    def _too_slow(self, query: Query) -> None:
        reason = "It takes too long to be kept live; narrow its where, or give the database an index for it"
        self._end_query(query, TooBusy(reason))

    # -- threads and slices

    def _thread(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return self._workers.run("live", call, *args)

    def _slices(self, work: Iterator[None]) -> Generator[Any, Any, None]:
        """Do ``work``, no more of it in a turn than there is time for."""
        until = perf_counter() + SLICE
        for _ in work:
            if perf_counter() > until:
                yield self._turn()
                until = perf_counter() + SLICE

    def _turn(self) -> Deferred[None]:
        turn: Deferred[None] = Deferred()
        self._clock.callLater(0, turn.callback, None)
        return turn

    @inlineCallbacks
    def _entries(self, query: Query, form: Form, rows: Sequence[tuple[Any, ...]]) -> Generator[Any, Any, list[Any]]:
        made: list[Any] = []

        def make() -> Iterator[None]:
            for values in rows:
                made.append(Row(form, values).entry(query.view))
                yield

        yield from self._slices(make())
        return made


def _made(query: Query, rows: Iterable[Row | None]) -> Iterator[None]:
    """Make what ``query`` shows of ``rows``, in slices: it has them from then on.

    :raises Unreadable: for a row that cannot be shown.
    """
    for place, row in enumerate(rows):
        if row is not None:
            row.entry(query.view)
        if place % ROWS_AT_ONCE == 0:
            yield
