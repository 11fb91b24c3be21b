"""Models in a database, off the reactor thread: the shell between requests and SQLite or PostgreSQL."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread

from zcomm.budget.account import Account
from zcomm.budget.budgets import Budgets
from zcomm.budget.memory import Hold
from zcomm.budget.written import Written
from zcomm.data.drivers import open_database, parsed_url
from zcomm.data.drivers.driver import FREE_BYTES, Fault, GivenUp, to_command_error
from zcomm.data.drivers.pool import QUICK, Use
from zcomm.data.drivers.reconnector import FIRST_DELAY, LAST_DELAY, Reconnector
from zcomm.data.execution import Done, Execution, Job
from zcomm.data.idempotency import IdempotencyKey
from zcomm.data.models import Model, Schema
from zcomm.data.neighbours import Server
from zcomm.data.requests import Command, Plan, make_plan, parse_command
from zcomm.data.row_security import targets
from zcomm.data.sql.statements import RESULT_BYTES
from zcomm.errors import CommandError, ConfigError, Invalid, TooBusy, Unavailable
from zcomm.interfaces import NO_FIELD_RIGHTS, FieldRights
from zcomm.runtime.deferreds import Abandoned, Waiters, following
from zcomm.runtime.logthrottle import Throttle
from zcomm.runtime.workers import Workers, current_call
from zcomm.text import redact_url

__all__ = ["Done", "Store"]

#: Seconds after which :meth:`Store.check` calls the database dead.
CHECK_TIMEOUT = 2.0
#: An answer this recent, in seconds, is proof enough of life.
CHECK_FRESH = 1.0
#: Seconds that :meth:`Store.stop` waits for what it does for all.
STOP_TIMEOUT = 1.0
#: Seconds between two looks at what runs.
LOOK_INTERVAL = 0.5
#: Seconds between two looks at what seems to compute, and may wait for a lock: it keeps others of its user waiting.
LOCKS_INTERVAL = 0.1
#: Seconds between two sweeps of expired idempotency keys.
SWEEP_INTERVAL = 3600.0
#: What is told without its reason, which the log has.
_TOLD = ("altered", "declined", "remote")
#: How often a request may be repeated whose connection broke while it ran.
MAX_LOSSES = 3
#: How many reads are remembered that came to more than they may without memory being held for them.
MAX_LARGE = 1000
#: Seconds between two lines in the log about the same kind of trouble.
COMPLAINT_INTERVAL = 60.0


class Store:
    """The models of a schema in one database.

    Every operation takes an ``owner`` (anything hashable, one for each client), whose work never holds up
    another's. Filters, values and results are those of the wire; what fails, fails with a
    :class:`~zcomm.errors.CommandError`. While the database is away, operations wait for it up to
    ``deadline``; none runs twice.

    :param url: ``sqlite:///path``, ``sqlite://`` (in memory) or ``postgresql://user@host/database``.
    :param schema: its models.
    :param workers: run the queries; started and stopped by whoever made them.
    :param row_cap: rows that one read may bring.
    :param budgets: the accounts of the owners, the same as those of whatever else charges them.
    :param statement_timeout: seconds that one statement may run.
    :param deadline: seconds that an operation waits for a database that does not answer.
    :param busy_timeout: seconds that a write waits for another one (SQLite).
    :param connections: how many there may be; one for each worker and a few for the program's own threads
        when not given.
    :param alone: whether the URL says all there is to say: variables such as PGSSLMODE are for other servers.
    :param now: seconds since 1970, for the expiry of idempotency keys.
    :raises ConfigError: for a URL that cannot be used.
    """

    #: What a host's data says of itself (:class:`zcomm.interfaces.IHostData`).
    zcomm_filters = zcomm_concurrent = True

    _log = Logger()

    def __init__(
        self,
        url: str,
        schema: Schema,
        workers: Workers,
        row_cap: int = 10_000,
        *,
        budgets: Budgets,
        statement_timeout: float = 5.0,
        deadline: float = 10.0,
        busy_timeout: float = 5.0,
        connections: int | None = None,
        alone: bool = False,
        reactor: IReactorTime | None = None,
        now: Callable[[], float] = time.time,
    ):
        self.row_cap = row_cap
        self.deadline = deadline
        self._workers = workers
        self._clock: IReactorTime = reactor if reactor is not None else workers.reactor  # type: ignore[assignment]
        self._budgets = budgets
        database, self.url = open_database(url, statement_timeout, busy_timeout, alone)
        self._file = (parsed_url(url).database or ":memory:") if database.name == "sqlite" else ""
        self._execution = Execution(
            database, self.url, schema, connections or workers.threads + 5, statement_timeout, now, self._used
        )
        self._pool = self._execution.pool
        #: For what is done for all: no user's statements keep it waiting.
        self._own = Workers(2, name="zcomm-database", reactor=workers.reactor)
        self._reconnector = Reconnector(lambda: self._own.run("reconnect", self._execution.ping), self._clock)
        # Two statements may follow one another in a transaction; after that the server is not answering.
        self._hung = 2 * statement_timeout + 2
        # For a turn among the threads here, and for one among processes.
        self._patience = 2 * busy_timeout
        self._watch = LoopingCall(self._look)
        self._watch.clock = self._clock
        self._lock_watch = LoopingCall(self._look_for_locks)
        self._lock_watch.clock = self._clock
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = self._clock
        self._checking: Waiters[bool] = Waiters()
        #: Not set while it starts: what columns keep is not known then, and so not how values are kept.
        self._knows = threading.Event()
        self._knows.set()
        self._starting: Waiters[None] = Waiters()
        self._looking_after = self._looking_for_locks = False
        #: What large reads came to, by the hash of owner, model and shape.
        self._large: OrderedDict[int, int] = OrderedDict()
        self._complaints = Throttle(time.monotonic, COMPLAINT_INTERVAL)

    @property
    def schema(self) -> Schema:
        """The models; with their columns, once the database has been asked."""
        return self._execution.schema

    @property
    def is_alone(self) -> bool:
        """Whether nobody else can use this database: it is in the memory of this process."""
        return self._execution.database.line is not None

    def start(self) -> Deferred[None]:
        """Connect, create the tables that are missing, compare the ones that are there. Operations wait for it.

        :return: a Deferred that fires when the store can be used. It fails with
            :class:`~zcomm.errors.ConfigError` when the database will not have us or does not fit the
            schema, and with :class:`~zcomm.errors.Unavailable` when it does not answer within the deadline.
        """
        self._knows.clear()
        self._pool.open()
        self._own.start()
        self._reconnector.start()
        started = self._submit(("start", id(self)), None, self._execution.prepare, True, self._until())
        started.addCallbacks(self._started, self._not_started)
        return started

    def _begin(self) -> None:
        """Let what waits for the start go on, as far as it can."""
        self._knows.set()
        self._starting.fire(None)

    def _started(self, _: None) -> None:
        self._begin()
        if not self._watch.running:
            self._watch.start(LOOK_INTERVAL, now=False)
            self._lock_watch.start(LOCKS_INTERVAL, now=False)
            self._sweeper.start(SWEEP_INTERVAL, now=True)

    def _not_started(self, failure: Failure) -> Failure:
        self._pool.close()
        self._begin()
        fault = failure.value
        if not isinstance(fault, Fault):
            if not failure.check(Unavailable):
                return failure
            fault = Fault("down", (), self._reconnector.reason)
        self._complain(fault)
        if fault.kind == "refused":
            return Failure(ConfigError(self.url, f"the database cannot be used: {fault.detail}"))
        reason = f": {fault.detail}" if fault.detail else ""
        return Failure(Unavailable(f"The database does not answer: {self.url}{reason}"))

    def move(self, url: str) -> None:
        """Go on with the same database at another place, as that of a service which has another port now.

        :raises ConfigError: for a URL that cannot be used.
        """
        self.url = redact_url(url)
        self._execution.move(parsed_url(url), self.url)

    def stop(self) -> Deferred[None]:
        """Let go of the database. Operations under way end; later ones fail.

        :return: a Deferred that fires when every unused connection is closed, soon.
        """
        for loop in (self._watch, self._lock_watch, self._sweeper):
            if loop.running:
                loop.stop()
        self._reconnector.stop()
        self._pool.close()
        self._begin()
        return following(self._own.stop()).addTimeout(STOP_TIMEOUT, self._clock).addErrback(lambda _: None)

    def interrupt(self) -> None:
        """End the statements that run, whoever's they are; what they were part of is undone."""
        self._pool.interrupt()

    def check(self) -> Deferred[bool]:
        """Find out whether the database answers.

        :return: a Deferred of that, within two seconds; it does not fail.
        """
        if not self._reconnector.is_down and self._execution.answered_within(CHECK_FRESH):
            return succeed(True)
        asked = bool(self._checking)
        answer = self._checking.add()
        if not asked:
            probe = self._own.run("check", self._execution.ping)
            probe.addTimeout(CHECK_TIMEOUT, self._clock)
            probe.addCallbacks(lambda _: self._checking.fire(True), self._unwell)
        return answer

    def _unwell(self, failure: Failure) -> None:
        fault = failure.value
        if isinstance(fault, Fault) and fault.kind == "refused":
            self._complain(fault)
        self._checking.fire(False)

    def create(
        self, owner: Hashable, model: str, values: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Deferred[dict[str, Any]]:
        """Add a row. Fires with the row as stored, its id included."""
        return self._request(
            owner, {"action": "create", "model": model, "values": values, "_idempotencyKey": idempotency_key}
        )

    def read(
        self,
        owner: Hashable,
        model: str,
        where: Any = None,
        *,
        fields: list[str] | None = None,
        order_by: str | list[str] | None = None,
        limit: int | None = None,
        offset: int | None = None,
    ) -> Deferred[list[dict[str, Any]]]:
        """Find rows. Fires with all that match, never with some; fails when they pass the row cap."""
        return self._request(
            owner,
            {
                "action": "read",
                "model": model,
                "where": where,
                "fields": fields,
                "order_by": order_by,
                "limit": limit,
                "offset": offset,
            },
        )

    def update(
        self,
        owner: Hashable,
        model: str,
        where: Any,
        values: Mapping[str, Any],
        *,
        all: bool = False,
        idempotency_key: str | None = None,
    ) -> Deferred[dict[str, int]]:
        """Change rows. Fires with ``{"updated": n}``."""
        return self._request(
            owner,
            {
                "action": "update",
                "model": model,
                "where": where,
                "values": values,
                "all": all or None,
                "_idempotencyKey": idempotency_key,
            },
        )

    def delete(
        self, owner: Hashable, model: str, where: Any, *, all: bool = False, idempotency_key: str | None = None
    ) -> Deferred[dict[str, int]]:
        """Remove rows. Fires with ``{"deleted": n}``."""
        return self._request(
            owner,
            {
                "action": "delete",
                "model": model,
                "where": where,
                "all": all or None,
                "_idempotencyKey": idempotency_key,
            },
        )

    def upsert(
        self,
        owner: Hashable,
        model: str,
        values: Mapping[str, Any],
        conflict_fields: list[str] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Deferred[dict[str, Any]]:
        """Add a row, or change the one that has the same ``conflict_fields``. Fires with the row."""
        return self._request(
            owner,
            {
                "action": "upsert",
                "model": model,
                "values": values,
                "conflict_fields": conflict_fields,
                "_idempotencyKey": idempotency_key,
            },
        )

    def _request(self, owner: Hashable, request: dict[str, Any]) -> Deferred[Any]:
        done = maybeDeferred(lambda: self.execute(owner, parse_command(request)))
        return done.addCallback(lambda done: done.result)

    def execute(
        self,
        owner: Hashable,
        command: Command,
        identity: str = "",
        rows: Mapping[str, Any] | None = None,
        reach: Callable[[str, str], Mapping[str, Any] | None] | None = None,
        *,
        fields: FieldRights = NO_FIELD_RIGHTS,
        as_json: bool = False,
        tells: bool = False,
        judged: frozenset[str] | None = None,
    ) -> Deferred[Done]:
        """Run a command whose permission has been checked.

        :param identity: whose the command's idempotency key is.
        :param rows: the rows in reach, by the values of their fields; all of them when it is left out.
        :param reach: likewise of any model, for what is written to point to by the field of that name, which comes
            second; ``None`` where the model or the field may not be read at all. All rows of all models when it is left
            out.
        :param fields: the rights to the fields of the model. The row that a create or an upsert brings back has those
            that are hidden all the same: who hears of it may have other rights.
        :param as_json: whether the result is for a client. Lists and objects of JSON in it are then texts, as
            :class:`msgspec.Raw`, and a large one is :class:`~zcomm.budget.written.Written` as a whole, for which memory
            of the owner's account is held until it is released.
        :param tells: whether others are to hear of the rows that an update or a delete was of (:attr:`Done.told`).
        :param judged: the fields by which rights may tell these apart; any where it is left out.
        :return: a Deferred of what came of it; fails with a :class:`~zcomm.errors.CommandError`.
        """
        if not self._knows.is_set():
            return self._starting.add().addCallback(
                lambda _: self.execute(
                    owner, command, identity, rows, reach, fields=fields, as_json=as_json, tells=tells, judged=judged
                )
            )
        try:
            model = self.schema.find(command.model)
            if command.takes_long(model):
                return self._execute_long(owner, command, model, identity, rows, reach, fields, as_json, tells, judged)
            job = self._job(command, identity, rows, reach, owner, as_json, fields, tells, judged)
        except CommandError:
            return fail()
        return self._carry_out(owner, job)

    def _execute_long(
        self,
        owner: Hashable,
        command: Command,
        model: Model,
        identity: str,
        rows: Mapping[str, Any] | None,
        reach: Callable[[str, str], Mapping[str, Any] | None] | None,
        fields: FieldRights,
        as_json: bool,
        tells: bool,
        judged: frozenset[str] | None,
    ) -> Deferred[Done]:
        """Plan a command in a thread, which takes so long that others would wait for it."""
        reached: Callable[[str, str], Mapping[str, Any] | None] | None = None
        if reach is not None:
            # Rights are asked for on this thread alone.
            pointed_to = {(field.fk.model, field.fk.field) for field in model.fields.values() if field.fk is not None}
            known = {each: reach(*each) for each in pointed_to}

            def reached(model: str, field: str) -> Mapping[str, Any] | None:
                return known[model, field]

        job = self._workers.run(
            owner, self._job, command, identity, rows, reached, owner, as_json, fields, tells, judged
        )
        return job.addCallbacks(lambda job: self._carry_out(owner, job), _not_planned)

    def _carry_out(self, owner: Hashable, job: Job) -> Deferred[Done]:
        known = job.trivial()
        if known is not None:
            return succeed(known)
        if (refusal := self._refusal(self._budgets.account(owner))) is not None:
            return fail(refusal)
        if job.as_json and job.plan.action == "read":
            return self._read(owner, job)
        was_lost = False

        def perform() -> Done:
            nonlocal was_lost
            try:
                done = self._execution.perform(job)
            except Fault as fault:
                was_lost = was_lost or fault.kind == "lost"
                raise
            # What a try did whose answer was lost nobody has heard of.
            return done.as_new(job.plan.action) if was_lost and done.repeated else done

        kind = _hash_of(owner, job.plan)
        return self._submit(owner, kind, perform, job.repeatable, self._until()).addErrback(self._explain, job)

    @staticmethod
    def _refusal(account: Account) -> TooBusy | None:
        """The error for a user whose statements have taken more than they may. Called from any thread."""
        wait = account.database.wait()
        return account.refuse("Your statements have kept the database busy for too long", wait) if wait else None

    def _read(self, owner: Hashable, job: Job) -> Deferred[Done]:
        """Read rows for a client. What comes to more than a little waits for memory, and holds no thread meanwhile."""
        until = self._until()
        kind = _hash_of(owner, job.plan)
        size = self._large.get(kind, 0)
        if size:
            return self._read_large(owner, job, size, until).addErrback(self._explain, job)
        done = self._submit(owner, kind, lambda: self._execution.perform(job, FREE_BYTES), True, until)
        return done.addErrback(self._not_read_so, owner, job, until)

    def _not_read_so(self, failure: Failure, owner: Hashable, job: Job, until: float) -> Any:
        again = self._too_large(failure, owner, job, until, 0)
        return self._explain(failure, job) if again is failure else again.addErrback(self._explain, job)

    def _too_large(self, failure: Failure, owner: Hashable, job: Job, until: float, held: int) -> Any:
        """Read again with as much memory as it takes, where that is no more than a result may have."""
        fault = failure.value
        if not isinstance(fault, Fault) or fault.kind != "large" or not fault.size:
            return failure
        most = self._most_held()
        if held >= most:
            return failure
        # What is text to the database grows on its way into JSON.
        size = most if held else fault.size + fault.size // 4
        self._remember(_hash_of(owner, job.plan), size)
        return self._read_large(owner, job, size, until)

    def _remember(self, shape: int, size: int) -> None:
        """Remember that a read came to so much, so that it is not tried with less."""
        self._large[shape] = size
        self._large.move_to_end(shape)
        if len(self._large) > MAX_LARGE:
            self._large.popitem(last=False)

    def _most_held(self) -> int:
        return min(RESULT_BYTES, self._budgets.memory.total // 2)

    def _read_large(self, owner: Hashable, job: Job, size: int, until: float) -> Deferred[Done]:
        memory, account = self._budgets.memory, self._budgets.account(owner)
        size = min(max(size, 2 * FREE_BYTES), self._most_held())

        def refused(_: Any, __: float) -> Failure:
            return Failure(account.refuse("Large results of yours that are on their way take all the memory for them"))

        def run(_: Any) -> Deferred[Done]:
            hold = Hold(memory, account, size, self._workers.reactor.callFromThread)
            kind = _hash_of(owner, job.plan)
            done = self._submit(owner, kind, lambda: self._perform_held(job, hold), True, self._until())
            return done.addCallback(self._was_read, hold, kind).addErrback(self._not_read, hold)

        waiting = memory.when(account, size)
        if not waiting.called:
            waiting.addTimeout(max(0.0, until - self._clock.seconds()), self._clock, refused)
        return waiting.addCallback(run).addErrback(self._too_large, owner, job, until, size)

    def _perform_held(self, job: Job, hold: Hold) -> Done:
        """Runs in a thread, which goes on though nobody waits for it any more."""
        with hold.in_use():
            if hold.is_abandoned:
                raise CancelledError
            return self._execution.perform(job, hold.size)

    def _was_read(self, done: Done, hold: Hold, shape: int) -> Done:
        result = done.result
        if not isinstance(result, Written):
            hold.release()
            self._large.pop(shape, None)
            return done
        size = len(result)
        hold.shrink(size)
        result.hold = hold
        if size <= FREE_BYTES:
            self._large.pop(shape, None)
        else:
            self._remember(shape, size + size // 4)
        return done

    @staticmethod
    def _not_read(failure: Failure, hold: Hold) -> Failure:
        hold.abandon()
        return failure

    @property
    def execution(self) -> Execution:
        """The part that carries out requests, in threads."""
        return self._execution

    def when_known(self) -> Deferred[None]:
        """Fires when it is known what the columns of its models keep: at once but for the time of its start."""
        return succeed(None) if self._knows.is_set() else self._starting.add()

    def find(
        self,
        owner: Hashable,
        plan: Plan,
        key: tuple[str, ...],
        raw: tuple[str, ...],
        allowance: int,
        is_patient: bool = True,
    ) -> Deferred[tuple[list[tuple[Any, ...]], float]]:
        """A Deferred of rows as the database brings them (:meth:`zcomm.data.execution.Execution.find`), and the seconds
        that it took; fails with a :class:`~zcomm.errors.CommandError`, whose cause is the database's fault where it was
        one."""
        if (refusal := self._refusal(self._budgets.account(owner))) is not None:
            return fail(refusal)
        job = Job(plan=plan, key=None, owner=owner)
        kind = _hash_of(owner, plan)
        done = self._submit(
            owner, kind, lambda: self._execution.find(plan, key, raw, owner, allowance, is_patient), True, self._until()
        )

        def too_large(failure: Failure) -> Failure:
            fault = failure.value
            if not isinstance(fault, Fault) or fault.kind != "large":
                return failure
            return Failure(Invalid(f"Its rows come to more than {allowance >> 20} MiB; ask for fewer fields or rows"))

        def explained(failure: Failure) -> Failure:
            fault = failure.value
            made = self._explain(failure, job)
            if isinstance(fault, Fault) and made.value is not None:
                # A copy, without the frames of its traceback.
                made.value.__cause__ = replace(fault)
            return made

        return done.addErrback(too_large).addErrback(explained)

    def handle_request(self, request: Mapping[str, Any], identity: str = "") -> Any:
        """Run ``{"action": "read", "model": "Users", …}`` and wait for the result.

        For the program's own threads; raises what :meth:`execute` fails with.

        :raises RuntimeError: on the reactor thread, which must not wait.
        """
        if isInIOThread():
            raise RuntimeError(
                "handle_request() waits, and so cannot be called on the reactor thread; use execute() there"
            )
        if not self._knows.wait(self.deadline):
            raise Unavailable("The database does not answer; try again")
        # Of a function, it is the work of who called that.
        call = current_call()
        job = self._job(parse_command(dict(request)), identity, owner=None if call is None else call.owner)
        known = job.trivial()
        if known is not None:
            return known.result
        account = self._budgets.known(job.owner)
        if account is not None and (refusal := self._refusal(account)) is not None:
            raise refusal
        until = time.monotonic() + self.deadline
        delay = 0.05
        losses = 0
        while True:
            try:
                return self._execution.perform(job).result
            except Fault as fault:
                losses += fault.kind == "lost"
                again = fault.kind == "down" or (fault.kind == "lost" and job.repeatable and losses <= MAX_LOSSES)
                if not again or time.monotonic() + delay > until:
                    raise to_command_error(fault, job.plan, job.key is not None) from None
            time.sleep(delay)
            delay = min(1.0, delay * 2)

    def _job(
        self,
        command: Command,
        identity: str,
        rows: Mapping[str, Any] | None = None,
        reach: Callable[[str, str], Mapping[str, Any] | None] | None = None,
        owner: Hashable = None,
        as_json: bool = False,
        fields: FieldRights = NO_FIELD_RIGHTS,
        tells: bool = False,
        judged: frozenset[str] | None = None,
    ) -> Job:
        schema = self.schema
        within = None if reach is None else lambda name, field: targets(schema.models[name], reach(name, field))
        plan = make_plan(command, schema.find(command.model).restricted(fields), self.row_cap, rows or {}, within)
        key = command.idempotency_key
        known = None if key is None else IdempotencyKey(identity, key, command.digest())
        return Job(plan=plan, key=known, owner=owner, as_json=as_json, rows=rows, tells=tells, judged=judged)

    def _until(self) -> float:
        return self._clock.seconds() + self.deadline

    def _submit(
        self,
        owner: Hashable,
        kind: Hashable,
        work: Callable[[], Any],
        repeatable: bool,
        until: float,
        tries: int = 0,
    ) -> Deferred[Any]:
        """Do ``work`` in a thread, again when the database was away and that does no harm.

        :param kind: tells statements apart of which one takes as long as another.
        """
        if self._reconnector.is_down:
            done: Deferred[Any] = fail(Fault("down", (), "it is known to be away"))
        else:
            done = self._workers.run_one_of(kind, owner, self._in_time, work, until)
        return done.addErrback(self._again, owner, kind, work, repeatable, until, tries)

    def _again(
        self,
        failure: Failure,
        owner: Hashable,
        kind: Hashable,
        work: Callable[[], Any],
        repeatable: bool,
        until: float,
        tries: int,
    ) -> Any:
        fault = failure.value
        if not isinstance(fault, Fault) or not (fault.kind == "down" or (fault.kind == "lost" and repeatable)):
            return failure
        # What ends its connection time after time would do so for ever, and perhaps the database with it.
        if self._clock.seconds() >= until or (fault.kind == "lost" and tries >= MAX_LOSSES):
            return failure
        waited = self._reconnector.wait(until, fault.detail)
        if tries:
            # A database that answers and cannot be used, say for want of connections, is not asked without end.
            waited.addCallback(lambda _: self._pause(tries, until))
        # After the last pause there may be no time left, and nobody was busy.
        return waited.addCallback(
            lambda _: (
                failure
                if self._clock.seconds() >= until
                else self._submit(owner, kind, work, repeatable, until, tries + 1)
            )
        )

    def _pause(self, tries: int, until: float) -> Deferred[None]:
        delay = min(LAST_DELAY, FIRST_DELAY * 2**tries, max(0.0, until - self._clock.seconds()))
        return deferLater(self._clock, delay)

    def _explain(self, failure: Failure, job: Job) -> Failure:
        """Turn a fault into what the client is told, and tell the log what it needs to know."""
        fault = failure.value
        if not isinstance(fault, Fault):
            return failure
        if fault.kind == "overdrawn":
            self._budgets.account(job.owner).refused += 1
        if fault.kind in ("unknown", "unanswered", "taken", "unsupported", "full", "refused", "moved", *_TOLD):
            self._complain(fault)
        error = to_command_error(fault, job.plan, job.key is not None)
        if isinstance(fault, GivenUp):
            error.later = fault.later
        elif fault.kind in ("unanswered", "taken") and job.plan.action != "read":
            # It was made all the same.
            error.later = succeed(Done(None, True))
        return Failure(error)

    def _complain(self, fault: Fault) -> None:
        # A client that repeats its command must not fill the log.
        self._complaints.log(
            self._log.error,
            fault.kind,
            "The database failed ({kind}): {detail}",
            kind=fault.kind,
            detail=fault.detail,
        )

    def _in_time(self, work: Callable[[], Any], until: float) -> Any:
        """Do ``work``, unless it has waited for a thread beyond its deadline. Runs in a thread."""
        if self._clock.seconds() > until:
            raise Fault("busy", (), "no thread was free before the deadline")
        return work()

    def identity(self) -> Deferred[str]:
        """A Deferred of an id of the database, which others that use it have as well; empty where it has none. That of
        a file begins with ``sqlite:``. It fails with a :class:`~zcomm.data.drivers.driver.Fault`."""
        if not self._file:
            return self._own.run("identity", self._execution.identity)
        # Of this host: the same path is another file elsewhere.
        where = f"{socket.gethostname()}:{os.path.realpath(self._file)}:{os.getpid() if self.is_alone else 0}"
        return succeed(f"sqlite:{sha256(where.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}")

    def say_there(self, node: str, engine: str, name: str) -> Deferred[list[Server]]:
        """Say that a server uses the database; a Deferred of the others that do, or did lately
        (:mod:`zcomm.data.neighbours`). It fails with a :class:`~zcomm.data.drivers.driver.Fault`."""
        return self._own.run("servers", self._execution.say_there, node, engine, name)

    def _sweep(self) -> Deferred[None]:
        """Forget expired idempotency keys. Runs on the reactor thread."""
        return self._own.run("sweep", self._execution.sweep).addErrback(self._not_swept)

    def _not_swept(self, failure: Failure) -> None:
        # It does no harm: an expired key is also forgotten when it is used.
        self._log.debug("Sweeping failed: {error}", error=failure.getErrorMessage())

    def _looked_after(self, _: Any) -> None:
        # Where the database could not be asked, it is the next time.
        self._looking_after = False

    def _used(self, use: Use) -> None:
        """Have a use that took its time charged. Runs in its thread."""
        self._workers.reactor.callFromThread(self._charge, use)

    def _charge(self, use: Use) -> None:
        """Charge what is new of the time of a use. Runs on the reactor thread."""
        # What every user's quick commands take is nobody's matter, however many they are.
        seconds = use.cost - QUICK - use.charged
        if seconds <= 0 or use.owner is None:
            return
        use.charged += seconds
        account = self._budgets.account(use.owner)
        account.database.charge(seconds)
        account.in_database.add(seconds)

    def _excuse(self, held_up: list[Use]) -> None:
        """Give back to users what they were charged for waiting for locks of others. Runs on the reactor thread.

        Each look stands for the time between two: who waits for less is seen as much more seldom.
        """
        self._spare(held_up)
        for use in held_up:
            account = self._budgets.account(use.owner)
            account.database.give_back(LOOK_INTERVAL)
            account.in_database.add(-min(LOOK_INTERVAL, account.in_database.value))

    def _spare(self, held_up: list[Use]) -> None:
        """Let uses that wait for locks keep nobody waiting until after the next look has told. Runs on the reactor
        thread."""
        for use in held_up:
            use.excuse(2 * LOOK_INTERVAL)

    def _look_for_locks(self) -> None:
        """Find out whether what seems to compute waits for a lock. Runs on the reactor thread."""
        if not self._looking_for_locks and any(use.at_work for use in self._pool.at_work()):
            self._looking_for_locks = True
            self._own.run("locks", self._execution.held_up).addCallback(self._spare).addBoth(self._looked_for_locks)

    def _looked_for_locks(self, _: Any) -> None:
        self._looking_for_locks = False

    def _look(self) -> None:
        """End what is past its time, and charge what runs for as long as it does. Runs on the reactor thread.

        What goes on beyond all limits, as in a server that has stopped answering, is answered for now, and counts as
        its owner's until it has ended.
        """
        uses, late = self._pool.expire(self._hung)
        for use in uses:
            self._charge(use)
        for use in late:
            self._workers.give_up(use.call, GivenUp)
        for use in self._pool.held_up(self._patience):
            # Another process was stopped in its turn at the file. Nothing was written, nor will be.
            self._workers.give_up(use.call, lambda _: Fault("busy", (), "another process does not end its turn"))
        if self._workers.waiting:
            # What a server that has stopped answering keeps the threads with may go on for ever.
            now, mine = self._clock.seconds(), self._in_time
            self._workers.give_up_waiting(
                lambda call, *args: call == mine and args[1] < now,
                Fault("busy", (), "no thread was free before the deadline"),
            )
        if (self._pool.left or self._pool.at_work()) and not self._looking_after:
            self._looking_after = True
            self._own.run("left", self._execution.look_after).addCallback(self._excuse).addBoth(self._looked_after)
        if late:
            self._log.warn("{count} queries got no answer and were given up", count=len(late))


def _not_planned(failure: Failure) -> Failure:
    # What goes on is the planning, and nothing comes of that.
    return Failure(CancelledError()) if failure.check(Abandoned) else failure


def _hash_of(owner: Hashable, plan: Plan) -> int:
    """Tells statements of one shape apart; a shape itself may be as long as a message."""
    return hash((owner, plan.model.name, plan.action, plan.shape))
