"""Requests carried out on a connection: the part of the store that runs in threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement
from twisted.logger import Logger

from zcomm.data.catalog import Relation, fit_model, what_changed
from zcomm.data.drivers.driver import FEW_ROWS, Connection, Database, Fault, size_of
from zcomm.data.drivers.pool import Pool, Use
from zcomm.data.drivers.turns import Locks
from zcomm.data.filters import MAX_LIST, Unfit, unfit_of
from zcomm.data.idempotency import CREATION_LOCK, SLICE, IdempotencyKey, IdempotencyTable
from zcomm.data.models import Column, Field, Model, Schema
from zcomm.data.neighbours import Server, ServersTable
from zcomm.data.requests import Command, Plan, make_plan
from zcomm.data.results import VALUE_BYTES, RowReader, RowWriter, lightened, too_many
from zcomm.data.sql.conditions import ALLOWANCE, Parameter
from zcomm.data.sql.statements import (
    MAX_JUDGED,
    MAX_NARROWED,
    MAX_TOLD,
    RESULT_BYTES,
    Statement,
    Statements,
    Telling,
)
from zcomm.data.sql.tables import IDEMPOTENCY_KEYS, build_tables
from zcomm.data.values import raw_text
from zcomm.errors import CommandError, ConfigError, Invalid, PermissionDenied
from zcomm.interfaces import Rows
from zcomm.text import quoted

__all__ = ["Done", "Execution", "Job", "Told"]

#: How many forms of rows are remembered.
_MAX_READERS = 1000
#: Bytes that the rows of which others are told may come to: as many as their broadcast may have.
MAX_TOLD_BYTES = 64 * 1024
#: How many values are tried one by one to find the one that the database did not take.
_MAX_TRIED = 100
#: Faults that a value may be the reason of: one that names a type or a table fails in ways of its own.
_OF_A_VALUE = ("invalid", "unknown", "unsupported", "altered")
#: How many of the values that a column takes an error names.
_SHOWN_CHOICES = 20
_TAKEN = "The database did not store the row"
#: How often a request is begun again because the tables changed under it.
_MAX_TRIES = 5
#: What tells a database of PostgreSQL from all others.
_IDENTITY = (
    "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), "
    "(SELECT oid::text FROM pg_catalog.pg_database WHERE datname = current_database())"
)
#: As whom expired idempotency keys are removed.
SWEEPER = "zcomm: sweeper"


class Told(NamedTuple):
    """The rows of an update or a delete, as others are told of them.

    :ivar keys: ``changes`` or ``ids``, as a broadcast has them.
    :ivar rows: by what decides who hears of which.
    """

    keys: dict[str, Any]
    rows: Rows


class _Untold(Exception):
    """The change can be made, but not so that its rows come back; nothing of it was done."""


@dataclass(frozen=True, slots=True)
class Done:
    """The outcome of a request.

    :ivar result: as plain values, ready for JSON; ``None`` where something changed and no answer could be made of it.
    :ivar changed: whether it changed what is stored.
    :ivar repeated: whether nothing was done but to look up the result that is kept for its idempotency key.
    :ivar told: the rows of an update or a delete; ``None`` where nobody asked for them, where they are many, and where
        nobody can tell.
    """

    result: Any
    changed: bool
    repeated: bool = False
    told: Told | None = None

    def as_new(self, action: str) -> Done:
        """The same of an action that was done just now."""
        return Done(self.result, action in ("create", "upsert") or any(self.result.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request on its way through the threads.

    :ivar owner: whose it is; ``None`` for the program itself.
    :ivar rows: the rows in its reach, by the values of their fields; all of them when there are none.
    :ivar as_json: whether the result is for a client: stored JSON stays the text that it is, and the rows of a read are
        JSON already where they are many or large.
    :ivar tells: whether others hear of the rows of an update or a delete.
    :ivar judged: the fields by which rights may tell these apart; ``None`` for any.
    """

    plan: Plan
    key: IdempotencyKey | None
    owner: Hashable = None
    as_json: bool = False
    rows: Mapping[str, Any] | None = None
    tells: bool = False
    judged: frozenset[str] | None = None

    @property
    def repeatable(self) -> bool:
        """Whether running it again does no harm when nobody knows whether it ran."""
        return self.plan.action == "read" or self.key is not None

    def trivial(self) -> Done | None:
        """The outcome of a request that no row can match, which the database need not be asked for."""
        if not self.plan.nothing or self.key is not None:
            return None
        return Done([] if self.plan.action == "read" else {self.plan.action + "d": 0}, False)


def bind(plan: Plan, parameters: Sequence[Parameter], allowance: int = RESULT_BYTES, numbers: Any = "") -> list[Any]:
    """The plan's values as the driver takes them, in the order of the statement's parameters.

    :param allowance: bytes that the rows may come to.
    :param numbers: those of the rows of a change in two steps, as JSON; or what the keys of rows are among.
    :raises Invalid: for a value that this database cannot keep, naming its field.
    """
    slots = plan.slots
    bound: list[Any] = []
    last, by = -1, None
    for number, field, convert in parameters:
        if number == last and convert is by:
            # A value may be compared in several ways.
            bound.append(bound[-1])
            continue
        last, by = number, convert
        value = slots[number][1] if number >= 0 else allowance if number == ALLOWANCE else numbers
        if type(value) is Unfit:
            value = value.value
        elif value is not None and convert is not None:
            try:
                value = convert(value)
            except ValueError as error:
                raise plan.model.invalid({"where" if field is None else field.name: str(error)}) from None
        bound.append(value)
    return bound


def _bounded(plan: Plan, allowance: int, writer: RowWriter) -> Plan:
    """The read ``plan``, with no more rows and one than ``allowance`` may have beside their texts."""
    width = VALUE_BYTES * len(plan.returning)
    most = allowance // width
    kind, limit = plan.slots[-2]
    if limit <= most:
        return plan
    writer.expect(most, min(limit * width, RESULT_BYTES))
    return replace(plan, slots=(*plan.slots[:-2], (kind, most + 1), plan.slots[-1]))


def _is_cut(value: Any) -> bool:
    """Whether ``value`` is the beginning of one that is too long to tell rows apart by."""
    return isinstance(value, str | bytes) and len(value) > MAX_JUDGED


def _known(column: Column | None) -> Column | None:
    return None if column is None else replace(column, formless=False)


def _may_be_refused(plan: Plan) -> bool:
    """Whether code of the database's users may have run when an answer to a write turns out to be an error."""
    capabilities = plan.model.capabilities
    if not capabilities.skips and not capabilities.disturbs:
        return False
    taken = capabilities.skips and plan.action in ("create", "upsert")
    return taken or plan.restricted or any(True for _ in unfit_of(plan.slots))


def _check_key(plan: Plan, row: Mapping[str, Any]) -> None:
    """Refuse a row whose key nobody gave and nothing filled. :raises Invalid: naming the fields."""
    made = plan.model.generated
    missing = {name: "is required" for name in plan.model.key if row[name] is None and name != made}
    if missing:
        raise Invalid("; ".join(f"{name} is required" for name in missing), missing)


def _one_by_one(plan: Plan, number: int, field: Field) -> list[list[Any]]:
    """The values of a list that is one parameter, as the parameters that each would be; none for any other slot."""
    values = plan.slots[number][1]
    if type(values) is not tuple:
        return []
    bind = None if field.column is None else field.column.bind
    return [[value if bind is None else bind(value)] for value in values[:_MAX_TRIED]]


def _choices(connection: Connection, field: Field) -> list[str]:
    """The texts that the column of ``field`` takes; none where it takes others as well, or nobody can tell."""
    if field.column is None or not field.column.listed:
        return []
    try:
        return [text for (text,) in connection.run(field.column.listed, (), True)[0]]
    except Fault:
        return []


def _keys_of(plan: Plan, done: Done | None) -> list[int] | None:
    """The keys of the rows that a write has changed, where they are single numbers; ``None`` where they are not
    known."""
    key = plan.model.key
    if done is None or len(key) != 1:
        return None
    if not done.changed:
        return []
    found: Any = None
    if plan.action in ("create", "upsert"):
        found = [done.result.get(key[0])] if isinstance(done.result, dict) else None
    elif done.told is not None:
        keys = done.told.keys
        found = keys.get("ids") or [each["id"] for each in keys.get("changes", ())]
    return found if found and all(type(each) is int for each in found) else None


def _in_transaction(connection: Connection, work: Callable[[], Any]) -> Any:
    connection.begin()
    try:
        result = work()
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return result


class Execution:
    """Carries out requests on one database. Every method blocks, and may be called from any thread.

    :param database: where.
    :param url: the database as the user may see it.
    :param schema: its models.
    :param connections: how many there may be.
    :param timeout: seconds to wait for one of them.
    :param now: seconds since 1970.
    :param used: told of uses of connections (:class:`~zcomm.data.drivers.pool.Pool`).
    :ivar pool: the connections.
    :ivar answered: when the database answered last, on the monotonic clock.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        url: str,
        schema: Schema,
        connections: int,
        timeout: float,
        now: Callable[[], float],
        used: Callable[[Use], object] = lambda use: None,
    ):
        self._database = database
        self._url = url
        self.pool = Pool(database, connections, timeout, used)
        self._locks = Locks()
        #: The models; with their columns, once the database has been asked.
        self.schema = schema
        self._now = now
        self._declared = schema
        self._idempotency: IdempotencyTable | None = None
        self._servers: ServersTable | None = None
        self._build("")
        self._converting = threading.Lock()
        #: The models whose tables got a trigger since the start, which may change a written row or take it.
        self._triggered: set[str] = set()
        #: The columns whose form is to be learnt from what others write, by model and field.
        self._formless: set[tuple[str, str]] = set()
        #: The tables as they were at the start, and by model why one cannot be used any more as it is.
        self._relations: Mapping[str, Relation] = {}
        self._altered: dict[str, str] = {}
        #: The models of whose rows nobody is told, as the database does not bring them back.
        self._untold: set[str] = set()
        self._comparing = threading.Lock()
        #: Told of each write in its thread: the model, the action, and the keys of the rows where they are known.
        self.on_change: Callable[[str, str, Sequence[int] | None], object] | None = None
        self.answered = float("-inf")

    def prepare(self) -> None:
        """Connect, create the tables that are missing, compare the ones that are there.

        :raises Fault: when the database cannot be had.
        :raises ConfigError: when it does not fit the schema.
        """
        self._database.serve()
        self.schema = self._declared
        # The engine reports a connection that fails in words of its own; a plain one is clearer.
        with self.pool.connection() as connection:
            connection.run(self._database.probe, (), True)
        try:
            with self._connected() as connected:
                self._make_tables(connected)
                self._database.learn_constraints(connected, [model.table for model in self.schema.models.values()])
        except sa.exc.OperationalError as error:
            raise Fault("down", (), str(error.orig)) from error
        except sa.exc.DBAPIError as error:
            raise ConfigError(self._url, f"its tables cannot be used: {error.orig}") from error

    def look(self) -> None:
        """Compare the tables that are there with the schema; none is made.

        :raises Fault: when the database cannot be had.
        :raises ConfigError: when it does not fit the schema, or lacks a table.
        """
        self._database.serve()
        try:
            with self._connected() as connected:
                found = self._bind(connected)
        except sa.exc.OperationalError as error:
            raise Fault("down", (), str(error.orig)) from error
        except sa.exc.DBAPIError as error:
            raise ConfigError(self._url, f"its tables cannot be used: {error.orig}") from error
        missing = [model.table for model in self.schema.models.values() if model.table not in found]
        if missing:
            raise ConfigError(self._url, f"the tables {', '.join(missing)} are missing; start the server once")

    @contextmanager
    def _connected(self, owner: Hashable = None, long: bool = True) -> Iterator[sa.Connection]:
        """A connection that tells what tables are like. Whoever has it keeps all others from the only one, where there
        is no other: two threads that used that at once would undo each other's work, or end the process.

        :param owner: whose turn it is then.
        :param long: whether that turn may be long.
        """
        turn = nullcontext() if self._database.line is None else self.pool.connection(owner, long=long)
        with turn, self._database.engine().connect() as connected:
            yield connected

    def _make_tables(self, connected: sa.Connection) -> None:
        """Compare the tables that are there with the schema, and create the others.

        :raises ConfigError: when one does not fit, or is missing and cannot be created.
        """
        names = self._names()
        database = self._database
        found = self._bind(connected)
        if len(found) < len(names):
            try:
                # Two servers may start at once; one that has nothing to create needs no right to write.
                connected.exec_driver_sql(
                    f"BEGIN; SELECT pg_advisory_xact_lock({CREATION_LOCK})"
                    if database.name == "postgresql"
                    else "BEGIN IMMEDIATE"
                )
                found = database.relations(connected, names, self._url)
                self._fit(found)
                wanted = [table for table in self._metadata.sorted_tables if table.name not in found]
                self._metadata.create_all(connected, wanted, checkfirst=False)
                with database.comparing(connected, names):
                    self._learn_columns(connected)
                    self._relations = database.relations(connected, names, self._url)
                connected.exec_driver_sql("COMMIT")
            except sa.exc.DBAPIError as error:
                missing = [model.table for model in self.schema.models.values() if model.table not in found]
                late = not missing and database.locked(error.orig)
                if not late and not database.forbids(error.orig):
                    raise
                connected.rollback()
                if missing:
                    raise ConfigError(
                        self._url,
                        f"the tables {', '.join(missing)} are missing and cannot be created: "
                        f"{str(error.orig).partition(chr(10))[0]}; create them, or grant the right to",
                    ) from None
                self._bind(connected)
                if late:
                    self._results.late = True
                else:
                    self._keep_no_results("is missing and cannot be created")
        if IDEMPOTENCY_KEYS in found and found[IDEMPOTENCY_KEYS].lacks:
            self._keep_no_results("cannot be written to")

    def _names(self) -> dict[str, str]:
        """The models, by their tables, with the table of idempotency keys."""
        return {model.table: name for name, model in self._declared.models.items()} | {
            IDEMPOTENCY_KEYS: IDEMPOTENCY_KEYS
        }

    def _bind(self, connected: sa.Connection) -> Mapping[str, Relation]:
        """Compare the tables that are there with the schema, and bind the models to them where none is missing.

        :raises ConfigError: when one does not fit.
        """
        names = self._names()
        with self._database.comparing(connected, names):
            found = self._database.relations(connected, names, self._url)
            self._fit(found)
            if all(model.table in found for model in self.schema.models.values()):
                self._learn_columns(connected)
            self._relations = found
            self._altered, self._triggered = {}, set()
        return found

    def keyed(self, plan: Plan, key: tuple[str, ...], raw: tuple[str, ...], condition: str = "") -> Statement:
        """The statement of a read that brings more of each row (:meth:`zcomm.data.sql.statements.Statements.keyed`)."""
        return self._statements.keyed(plan, key, raw, condition)

    def find(
        self,
        plan: Plan,
        key: tuple[str, ...],
        raw: tuple[str, ...],
        owner: Hashable,
        allowance: int,
        is_patient: bool,
    ) -> tuple[list[tuple[Any, ...]], float]:
        """Read rows as :meth:`keyed` has them.

        :param allowance: bytes that they may come to.
        :param is_patient: whether to wait for tables that others keep locked; else that is a fault of kind ``busy``.
        :return: the rows as the database brings them, and the seconds that it took of the database.
        :raises Fault: for what the database would not or could not do.
        """
        if plan.nothing:
            return [], 0.0
        for _ in range(_MAX_TRIES):
            self._refuse_altered(plan.model)
            statement = self._statements.keyed(plan, key, raw)
            parameters = bind(plan, statement.parameters, allowance)
            most = None if statement.max_bytes is None else allowance
            try:
                with self.pool.connection(owner) as connection:
                    use = self.pool.use_of(connection)
                    with nullcontext() if is_patient else connection.hasty():
                        rows, _ = connection.run(statement.sql, parameters, True, most)
                    seconds = use.cost
            except Fault as fault:
                if fault.kind not in ("stale", "migrated"):
                    raise
                if fault.kind == "migrated":
                    self.look_again()
                continue
            self.answered = time.monotonic()
            return rows, seconds
        raise Fault("busy", (), "others change tables")

    @property
    def database(self) -> Database:
        """The database, of which further connections can be had."""
        return self._database

    def look_again(self) -> None:
        """Find out which tables are not what they were at the start, after others changed some.

        :raises Fault: when the database does not tell.
        """
        database, then = self._database, self._relations
        try:
            with (
                self._comparing,
                self._connected() as connected,
                database.comparing(connected, self._names(), True) as changed,
            ):
                if not changed:
                    return
                altered = {}
                for name, model in self._declared.models.items():
                    try:
                        # One by one: what is wrong with one table is no matter of another.
                        now = database.relations(connected, {model.table: name}, self._url).get(model.table)
                    except ConfigError as error:
                        altered[name] = str(error)
                        continue
                    reason = what_changed(model, then[model.table], now, self._declared, self._url)
                    if reason:
                        altered[name] = reason
                    elif now is not None and (now.rereads or now.skips):
                        self._triggered.add(name)
                kept = database.relations(connected, {IDEMPOTENCY_KEYS: IDEMPOTENCY_KEYS}, self._url)
                self._results.late = self._results.late or not kept
                self._altered = altered
        except sa.exc.DBAPIError as error:
            kind = "busy" if database.locked(error.orig) else "down" if database.passes(error.orig) else "refused"
            raise Fault(kind, (), str(error.orig)) from error

    def _refuse_altered(self, model: Model) -> None:
        if model.name in self._altered:
            reason = self._altered[model.name]
            raise Fault(
                "altered", (), f"the table {model.table} is not what it was at the start ({reason}); restart zComm"
            )

    def _keep_no_results(self, reason: str) -> None:
        self._idempotency = None
        self._log.warn(
            "{url}: the table {table} {reason}: commands with an _idempotencyKey are refused",
            url=self._url,
            table=IDEMPOTENCY_KEYS,
            reason=reason,
        )

    def _fit(self, found: Mapping[str, Relation]) -> None:
        """Compare existing tables with the schema, and take from them what the models have to know.

        :raises ConfigError: when one does not fit.
        """
        models = dict(self._declared.models)
        for name, model in self._declared.models.items():
            if model.table in found:
                models[name] = fit_model(model, found[model.table], self._declared, self._url)
                continue
            models[name] = replace(model, namespace=self._database.namespace)
            if model.read_only:
                raise ConfigError(
                    self._url,
                    f"model {name}: there is no table {quoted(model.table)}, and it is read_only; make the table",
                )
        self.schema = Schema(models)
        kept = found.get(IDEMPOTENCY_KEYS)
        self._build(self._database.namespace if kept is None else kept.namespace)

    def _build(self, namespace: str) -> None:
        """Make the tables of the schema as it is known now.

        :param namespace: of the table of idempotency keys.
        """
        self._metadata, self._tables, idempotency_keys = build_tables(self.schema, namespace)
        self._statements = Statements(self._tables, self._database.dialect, self._database.binders, self.schema.models)
        self._results = IdempotencyTable(idempotency_keys, self._database.dialect, self._now)
        self._idempotency = self._results
        self._readers: dict[tuple[str, tuple[str, ...], bool], RowReader] = {}

    def _learn_columns(self, connected: sa.Connection) -> None:
        """Bind the models to the columns that their tables have.

        :raises ConfigError: for a column that its field's type cannot use.
        """
        database = self._database
        models = {
            name: database.bound(connected, model, self._tables[name], self._url)
            for name, model in self.schema.models.items()
        }
        for model in models.values():
            for field in model.fields.values():
                if field.pk and field.readonly and field.name in model.needed and not model.read_only:
                    raise ConfigError(
                        self._url,
                        f"model {model.name}, field {field.name}: clients cannot write it, and its table makes no "
                        "value of the key; give it a default",
                    )
                self._check_default(model, field)
        self._use(models)
        self._formless = {
            (model.name, field.name)
            for model in models.values()
            for field in model.fields.values()
            if field.column is not None and field.column.formless
        }

    def _use(self, models: Mapping[str, Model]) -> None:
        """Take ``models``, which are bound to their columns, for those that are served."""
        database = self._database
        self.schema = Schema(models)
        self._metadata, self._tables, _ = build_tables(self.schema)
        self._statements = Statements(self._tables, database.dialect, database.binders, self.schema.models)
        self._readers = {}

    def _learn_late(self, plan: Plan, owner: Hashable, at_length: bool) -> None:
        """Learn the form of columns that ``plan`` writes first, in case others have written to them since the start.

        :param owner: whose plan it is.
        :param at_length: whether its turn at the only connection may be long.
        :raises Invalid: for a value that such a column cannot keep, naming its field.
        :raises Fault: when the database does not tell.
        """
        model = plan.model
        values = dict(zip(plan.written, (value for _, value in plan.slots), strict=False))
        first = [name for name, value in values.items() if value is not None and (model.name, name) in self._formless]
        if not first:
            return
        try:
            with self._comparing, self._connected(owner, at_length) as connected:
                model, table = self.schema.models[model.name], self._tables[model.name]
                there: ColumnElement[Any] = sa.literal_column("1")
                found: Any = (
                    sa.select(there).select_from(table).where(sa.or_(*(table.c[each].is_not(None) for each in first)))
                )
                if connected.execute(found.limit(1)).first() is not None:
                    model = self._database.bound(connected, model, table, self._url)
                known = {each: replace(model.fields[each], column=_known(model.fields[each].column)) for each in first}
                model = replace(model, fields={**model.fields, **known})
                self._use({**self.schema.models, model.name: model})
        except ConfigError:
            # Others changed the table, which the statement itself will find out.
            return
        except sa.exc.DBAPIError as error:
            if not self._database.locked(error.orig) and not self._database.passes(error.orig):
                if self._database.line is not None and not at_length:
                    raise Fault("in_the_way", (), "others wait for the only connection") from error
                return
            raise Fault("busy" if self._database.locked(error.orig) else "down", (), str(error.orig)) from error
        self._formless.difference_update((model.name, name) for name in first)
        wrong = {}
        for name in first:
            column = model.fields[name].column
            if column is not None and column.check is not None:
                try:
                    column.check(values[name])
                except ValueError as error:
                    wrong[name] = str(error)
        if wrong:
            raise plan.model.invalid(wrong)

    def _check_default(self, model: Model, field: Field) -> None:
        """Refuse a default that the column would refuse, or keep as another value, each time."""
        default, column = field.default, field.column
        if default is None or default.source != "value" or default.value is None or column is None:
            return
        try:
            if column.check is not None:
                column.check(default.value)
            if column.bind is not None:
                column.bind(default.value)
        except ValueError as error:
            raise ConfigError(self._url, f"model {model.name}, field {field.name}: its default {error}") from None

    def move(self, url: sa.URL, shown: str) -> None:
        """Go on where the database is now.

        :param shown: the URL as the user may see it.
        """
        if self._database.move(url):
            self._url = shown
            # What answers at the old place may be another one by now.
            self.pool.renew()

    def ping(self) -> None:
        """Find out whether the database answers. :raises Fault: when it does not."""
        self._database.verify()
        with self.pool.connection(spare=True) as connection:
            connection.run(self._database.probe, (), True)
        self.answered = time.monotonic()

    def look_after(self) -> list[Use]:
        """Find out which of the statements that were given up have ended, and tell the others to; and those that keep
        other users' waiting for too long. Called from one thread at a time.

        :return: the uses that wait for what others have locked.
        """
        left, at_work = self.pool.left, self.pool.at_work()
        with self.pool.connection(spare=True) as connection:
            if left:
                self.pool.forget(self._database.ended(connection, left))
            waiting = self._waiting(connection, at_work)
        for use in self._locks.too_long(waiting, time.monotonic()):
            self.pool.cut(use)
        return list(waiting)

    def held_up(self) -> list[Use]:
        """The uses that seem to be at work, and wait for what others have locked."""
        at_work = {use: process for use, process in self.pool.at_work().items() if use.at_work}
        if not at_work:
            return []
        with self.pool.connection(spare=True) as connection:
            return list(self._waiting(connection, at_work))

    def _waiting(self, connection: Connection, at_work: dict[Use, int]) -> dict[Use, list[Use | None]]:
        """By use that waits for a lock those that have it: ``None`` for other programs."""
        held_up = self._database.held_up(connection, list(at_work.values()))
        # The process of one that has ended may have been another's when it was asked about.
        uses = {process: use for use, process in at_work.items() if not use.has_ended}
        return {
            uses[process]: [uses.get(each) for each in others] for process, others in held_up.items() if process in uses
        }

    def answered_within(self, seconds: float) -> bool:
        """Whether the database answered so recently, and still is the one that did."""
        try:
            self._database.verify()
        except Fault:
            return False
        return time.monotonic() - self.answered < seconds

    def perform(self, job: Job, allowance: int = RESULT_BYTES) -> Done:
        """Carry out a request.

        :param allowance: bytes that the rows of a read may come to, where they become JSON.
        :raises Fault: for what the database would not or could not do.
        :raises CommandError: for what it was not asked.
        """
        done: Done | None = None
        try:
            try:
                done = self._performed(job, allowance, False)
            except Fault as fault:
                if fault.kind != "in_the_way" or self._database.line is None:
                    raise
            if done is None:
                # Others have had their turn at the connection.
                done = self._performed(job, allowance, True)
            return done
        finally:
            if self.on_change is not None and job.plan.action != "read":
                # Also where it failed: what came of it may not be known.
                self.on_change(job.plan.model.name, job.plan.action, _keys_of(job.plan, done))

    def _performed(self, job: Job, allowance: int, at_length: bool) -> Done:
        """
        :param at_length: whether its turn at the only connection may be long.
        """
        plan = job.plan
        if plan.model.name in self._altered:
            # It may have been put back.
            self.look_again()
            self._refuse_altered(plan.model)
        if self._formless:
            self._learn_late(plan, job.owner, at_length)
        statement = self._statements.of(plan)
        writes = plan.action != "read"
        writer = None
        if job.as_json and not writes:
            writer = RowWriter(self._reader(plan, True), plan.cap, allowance)
            if self._database.buffers and allowance < RESULT_BYTES:
                plan = _bounded(plan, allowance, writer)
        parameters = bind(plan, statement.parameters, allowance)
        capabilities = plan.model.capabilities
        together = reread = rereads = long = False
        database = self._database
        telling = self._statements.telling(plan, job.judged) if job.tells and self._may_tell(plan) else None
        told: Told | None = None

        with self.pool.connection(job.owner, writes, long=at_length) as connection:
            use = self.pool.use_of(connection)
            if writer is not None:
                writer.use, writer.converting = use, partial(use.holding, self._converting)

            def run() -> Any:
                nonlocal told
                told, tells = None, False
                first, numbers = (statement, "") if narrowed is None else narrowed
                if telling is not None:
                    numbers_of_few = self._few(connection, telling, plan, numbers)
                    if numbers_of_few is not None:
                        first, numbers, tells = telling.write, numbers_of_few, True
                astray = first.astray
                if astray is not None:
                    found = connection.run(astray.sql, bind(plan, astray.parameters, numbers=numbers), True)[0]
                    if found:
                        outside = {
                            plan.confined[place].name: "cannot have this value"
                            for (place,) in found
                            if plan.confined[place].is_right
                        }
                        if outside:
                            fields = ", ".join(f"{plan.model.name}.{name}" for name in outside)
                            raise PermissionDenied(f"{fields} cannot have this value", outside)
                        names = [plan.confined[place].name for (place,) in found]
                        columns = tuple(plan.model.fields[name].column_name for name in names)
                        raise Fault("foreign_key", columns, "a row is out of reach, or not there")
                pointing = first.pointing
                if (
                    pointing is not None
                    and connection.run(pointing.sql, bind(plan, pointing.parameters, numbers=numbers), True)[0]
                ):
                    raise Fault("stranded", (), "rows point to one of these in another form of its key")
                if tells and telling is not None:
                    return tell(
                        telling, *self._changed(connection, telling, plan, numbers, together or job.key is not None)
                    )
                if narrowed is not None:
                    return finish(*connection.run(first.sql, bind(plan, first.parameters, numbers=numbers), False))
                return finish(
                    *connection.run(statement.sql, parameters, statement.fetches, statement.max_bytes, writer)
                )

            def tell(telling: Telling, rows: list[tuple[Any, ...]], count: int) -> Any:
                nonlocal told
                made = finish([], count)
                if 0 < count <= MAX_TOLD:
                    told = self._told(connection, plan, telling, rows, rereads)
                return made

            def finish(rows: list[tuple[Any, ...]], count: int) -> Any:
                if capabilities.disturbs:
                    connection.distrust()
                if not writes:
                    if writer is None:
                        return self._result(plan, rows, count, use=use)
                    return writer.end() if writer.has_begun else self._result(plan, rows, count, True, use)
                for group, look in statement.looks:
                    if connection.run(look.sql, bind(plan, look.parameters), True)[0]:
                        columns = tuple(plan.model.fields[name].column_name for name in group)
                        raise Fault("unique", columns, "a row has the same in another form")
                try:
                    made = self._written(plan, rows, count, job.as_json)
                    if not statement.fetches:
                        self._refuse_unfit(connection, job, made)
                    return self._stored(connection, plan, made, job.as_json) if reread else made
                except (Fault, CommandError) as error:
                    if statement.fetches and isinstance(error, Invalid) and not together and job.key is None:
                        # The table got a trigger since the start, and what that did is there for good.
                        self._triggered.add(plan.model.name)
                        raise Fault("taken", (), f"{plan.model.table} got a trigger that takes its rows") from error
                    raise
                except Exception as error:
                    raise Fault("unanswered", (), f"a row cannot be read: {type(error).__name__}") from error

            def once() -> tuple[Any, bool]:
                if job.key is None:
                    return _in_transaction(connection, run) if together else run(), True
                if self._idempotency is None:
                    raise Invalid(
                        "_idempotencyKey cannot be used: the database has no table to keep results in",
                        {"_idempotencyKey": "cannot be used with this database"},
                    )
                acting = self._database.acting(capabilities.disturbs)
                table = self._tables[plan.model.name]
                return self._idempotency.run_once(connection, job.key, table, acting, run, job.as_json)

            def tried() -> tuple[Any, bool]:
                try:
                    return once()
                except Fault as fault:
                    if fault.kind == "unanswered" and (job.key is not None or together):
                        # The answer belongs to the transaction, which was undone.
                        raise replace(fault, kind="unknown") from fault
                    if fault.kind == "foreign_key" and not fault.columns:
                        raise replace(fault, columns=self._dangling(connection, plan)) from fault
                    if fault.kind in _OF_A_VALUE and not fault.columns:
                        columns, accepts = self._refused(connection, plan, statement, parameters)
                        kind = "invalid" if columns else fault.kind
                        raise replace(fault, kind=kind, columns=columns, accepts=accepts) from fault
                    raise

            def repeated() -> tuple[Any, bool]:
                nonlocal together, reread, rereads, telling
                left = _MAX_TRIES
                while True:
                    left -= 1
                    # Where a comparison comes after this, the connection tells.
                    self._refuse_altered(plan.model)
                    triggered = plan.model.name in self._triggered
                    reread = writes and (capabilities.rereads or triggered) and statement.fetches
                    # What is answered with an error has left nothing: whatever can be refused afterwards is still
                    # undone then.
                    looks = bool(statement.looks) or not (statement.pointing is statement.astray is None)
                    together = writes and (reread or triggered or looks or _may_be_refused(plan))
                    rereads = plan.action == "update" and (capabilities.rereads or triggered)
                    if telling is not None and (rereads or telling.find is not None):
                        together = True
                    try:
                        return tried()
                    except _Untold:
                        telling = None
                    except Fault as fault:
                        if fault.kind not in ("stale", "migrated"):
                            raise
                        if not left:
                            raise replace(fault, kind="busy") from fault
                        if fault.kind == "migrated":
                            self.look_again()

            narrowed = None
            if writes and database.expects_long(job.owner):
                narrowed = self._narrowed(connection, plan)
            while True:
                try:
                    if not writes:
                        result, made = repeated()
                        self._refuse_unfit(connection, job, result)
                        break
                    use.pause()
                    with database.writing(connection, job.owner, long):
                        use.go_on()
                        result, made = repeated()
                    break
                except Fault as fault:
                    use.go_on()
                    if fault.kind == "timeout" and use.is_cut:
                        raise replace(fault, kind="overdrawn", detail=f"{self._locks.wait(job.owner):.1f}") from fault
                    if fault.kind != "in_the_way" or long or database.line is not None:
                        raise
                # Others have had their turn. What is found without one keeps nobody waiting.
                if narrowed is None:
                    narrowed = self._narrowed(connection, plan)
                    long = narrowed is None
                else:
                    long = True
            if not made and statement.fetches:
                # The schema may hide since then what was kept.
                result = {name: value for name, value in result.items() if name in plan.returning}
            changed = made and writes and (statement.fetches or any(result.values()))
            use.tells_the_way = changed or not writes
        self.answered = time.monotonic()
        return Done(result, changed, not made, told if made else None)

    def _may_tell(self, plan: Plan) -> bool:
        """Whether the rows of a change are not too large to be told of before anybody has seen them."""
        if plan.action not in ("update", "delete") or plan.model.name in self._untold:
            return False
        size = 0
        for _, value in plan.slots[: len(plan.written)]:
            size += len(raw_text(value)) if isinstance(value, dict | list) else size_of((value,))
        return size <= MAX_TOLD_BYTES

    def _few(self, connection: Connection, telling: Telling, plan: Plan, numbers: str) -> str | None:
        """The numbers of the rows of a change of which others are told, as far as it takes numbers; ``None`` where they
        are many.

        :param numbers: those that were found before.
        :raises _Untold: where they cannot be found.
        """
        find = telling.find
        if find is None:
            return ""
        if numbers:
            return numbers if numbers.count(",") < MAX_TOLD else None
        try:
            rows, _ = connection.run(find.sql, bind(plan, find.parameters), True)
        except Fault as fault:
            self._leave_untold(plan, fault, ("refused",))
            raise
        if len(rows) > MAX_TOLD:
            return None
        found = [number for (number,) in rows]
        if not all(type(number) is int for number in found):
            # A column of that name.
            self._untold.add(plan.model.name)
            raise _Untold
        return json.dumps(found)

    def _changed(
        self, connection: Connection, telling: Telling, plan: Plan, numbers: str, is_undone: bool
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Make a change whose rows come back.

        :param is_undone: whether it is, where it fails.
        :return: the rows, and how many were changed.
        :raises _Untold: where the database does not do it so.
        """
        write = telling.write
        try:
            rows, _ = connection.run(write.sql, bind(plan, write.parameters, numbers=numbers), True)
        except Fault as fault:
            self._leave_untold(plan, fault, ("forbidden", "unsupported", "unanswered" if is_undone else ""))
            raise
        if not telling.counts:
            return rows, len(rows)
        return [row[1:] for row in rows], rows[0][0] if rows else 0

    def _leave_untold(self, plan: Plan, fault: Fault, kinds: tuple[str, ...]) -> None:
        """Tell of no more rows of a model where that is why a statement failed."""
        if fault.kind in kinds:
            self._untold.add(plan.model.name)
            raise _Untold from fault

    def _told(
        self, connection: Connection, plan: Plan, telling: Telling, rows: list[tuple[Any, ...]], rereads: bool
    ) -> Told | None:
        """The ``rows`` of a change as others are told of them; ``None`` where nobody can tell.

        :param rereads: whether they may have been changed since, in this transaction.
        :raises _Untold: where the database failed.
        """
        try:
            # The key comes first.
            if telling.cut and any(_is_cut(value) for row in rows for value in row[: len(plan.model.key)]):
                return None
            if rereads:
                rows = self._read_again(connection, plan, telling, rows)
            if sum(map(size_of, rows)) > MAX_TOLD_BYTES:
                return None
            made = self._reader_of(plan.model.name, telling.fields, True).read(rows)
            key = plan.model.key
            # Rights that go by what is too long here are not known to reach a row.
            known = [name for name in telling.judged if not any(_is_cut(row[name]) for row in made)]
            judged = made
            if telling.padded:
                judged = [
                    {
                        name: value.rstrip(" ") if value and name in telling.padded else value
                        for name, value in row.items()
                    }
                    for row in made
                ]
            values = tuple([tuple([row[name] for name in known]) for row in judged])
            ids = [row[key[0]] for row in made] if len(key) == 1 else [[row[name] for name in key] for row in made]
            if plan.action == "delete":
                return Told({"ids": ids}, Rows(key, (), tuple(known), values))
            written = plan.written
            changes = [
                {"id": id, "values": {name: row[name] for name in written}} for id, row in zip(ids, made, strict=True)
            ]
            return Told({"changes": changes}, Rows(key, written, tuple(known), values))
        except Fault as fault:
            raise _Untold from fault
        except Exception:
            # Of what is written already nothing fails. That there is something to read anew is always true.
            return None

    def _read_again(
        self, connection: Connection, plan: Plan, telling: Telling, rows: list[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """The rows as they are now, those that are still there: a trigger may have changed them."""
        model = self.schema.models[plan.model.name]
        if model.capabilities.defers:
            connection.settle()
        made = self._reader_of(model.name, telling.fields, False).read(rows)
        if len(model.key) == 1:
            (key,) = model.key
            where: Any = {f"{key}__in": [row[key] for row in made]}
        else:
            where = {"$or": [{name: row[name] for name in model.key} for row in made]}
        command = Command(action="read", model=model.name, where=where, fields=list(telling.fields), limit=MAX_TOLD)
        read = make_plan(command, model, MAX_TOLD)
        statement = self._statements.of(read)
        return connection.run(statement.sql, bind(read, statement.parameters), True, statement.max_bytes)[0]

    def _refuse_unfit(self, connection: Connection, job: Job, result: Any) -> None:
        """Say what is wrong with a value that no row in reach has: it is a mistake, and no value that another program
        wrote.

        :raises Invalid: naming its field.
        """
        if any(result.values()) if isinstance(result, dict) else result:
            return
        unfit = list(unfit_of(job.plan.slots))
        if not unfit:
            return
        values: dict[str, dict[Any, None]] = {}
        for each in unfit:
            values.setdefault(each.field, {})[each.value] = None
        some = [
            {name: list(asked)[at : at + MAX_LIST]}
            for name, asked in values.items()
            for at in range(0, len(asked), MAX_LIST)
        ]
        model = self.schema.models[job.plan.model.name]
        command = Command(action="read", model=model.name, where={"$or": some}, fields=[unfit[0].field], limit=1)
        read = make_plan(command, model, 1, job.rows or {})
        statement = self._statements.of(read)
        if not connection.run(statement.sql, bind(read, statement.parameters), True, statement.max_bytes)[0]:
            raise unfit[0].error

    def _narrowed(self, connection: Connection, plan: Plan) -> tuple[Statement, str] | None:
        """A statement, with the numbers of rows, that changes those which match now and still match then, as those of
        a change under READ COMMITTED are; ``None`` where there is none, or too many rows match."""
        statements = self._statements.narrowed(plan)
        if statements is None:
            return None
        find, write = statements
        try:
            rows, _ = connection.run(find.sql, bind(plan, find.parameters), True)
        except Fault as fault:
            if fault.kind == "timeout":
                raise
            # A table without numbers of rows.
            return None
        numbers = [number for (number,) in rows]
        if len(numbers) > MAX_NARROWED or not all(type(number) is int for number in numbers):
            return None
        return write, json.dumps(numbers)

    def _reader(self, plan: Plan, raw: bool) -> RowReader:
        return self._reader_of(plan.model.name, plan.returning, raw)

    def _reader_of(self, model: str, names: tuple[str, ...], raw: bool) -> RowReader:
        key = (model, names, raw)
        readers = self._readers
        reader = readers.get(key)
        if reader is None:
            # Looked up after the readers: those are of these models or of older ones.
            reader = RowReader(self.schema.models[model], names, raw)
            if len(readers) < _MAX_READERS:
                readers[key] = reader
        return reader

    def _result(
        self, plan: Plan, rows: list[tuple[Any, ...]], count: int, raw: bool = False, use: Use | None = None
    ) -> Any:
        if plan.action == "update":
            return {"updated": count}
        if plan.action == "delete":
            return {"deleted": count}
        if plan.cap is not None and len(rows) > plan.cap:
            raise too_many(plan.cap)
        reader = self._reader(plan, raw)
        if len(rows) <= FEW_ROWS:
            made = reader.read(rows)
        else:
            # One thread at a time: each that computes makes the reactor wait for its turn.
            with self._converting if use is None else use.holding(self._converting):
                made = reader.read(rows)
        if plan.action == "read":
            return made
        if not made:
            if plan.restricted:
                # An upsert met a row that is not in reach.
                raise PermissionDenied
            # A trigger or a rule took it.
            raise Invalid(_TAKEN)
        return made[0]

    def _written(self, plan: Plan, rows: list[tuple[Any, ...]], count: int, raw: bool) -> Any:
        """The answer to a write; it may be larger than a message, as what others stored in the row is in it."""
        made = self._result(plan, rows, count, raw)
        if plan.model.capabilities.perhaps and plan.returning:
            _check_key(plan, made)
        size = sum(map(size_of, rows))
        # Text grows on its way into JSON, sixfold at most.
        if size > RESULT_BYTES // 6 and len(raw_text(made)) > RESULT_BYTES:
            raise Fault("unanswered", (), "a row is larger than a message may be")
        return lightened(made) if raw and plan.returning else made

    def _refused(
        self, connection: Connection, plan: Plan, statement: Statement, values: Sequence[Any]
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Find the columns whose values the database does not take; PostgreSQL does not name them.

        :return: with the texts that each takes, where it takes some only.
        """
        found = []
        accepts: dict[str, str] = {}
        given: dict[int, tuple[Field, list[Any]]] = {}
        for (number, field, _), value in zip(statement.parameters, values, strict=False):
            if field is not None and value is not None:
                given.setdefault(number, (field, []))[1].append(value)
        for number, (field, parameters) in list(given.items())[:_MAX_TRIED]:
            column = field.column
            sql = "" if column is None else column.tried if number < len(plan.written) else column.tried_compared
            if not sql:
                continue
            try:
                for each in _one_by_one(plan, number, field) or [parameters]:
                    tried = each[: sql.replace("%%", "").count("%s")]
                    connection.run(sql, tried, True)
            except Fault as fault:
                # The name of a type or of a table is looked up, and one that is none is an error of another class.
                if fault.kind not in _OF_A_VALUE:
                    break
                choices = _choices(connection, field)
                if all(value in choices for value in tried):
                    # It is the type that is no longer there.
                    continue
                found.append(field.column_name)
                if choices:
                    shown = ", ".join(map(quoted, choices[:_SHOWN_CHOICES]))
                    accepts[field.column_name] = f"one of {shown}{', …' if len(choices) > _SHOWN_CHOICES else ''}"
        return tuple(dict.fromkeys(found)), accepts

    def _stored(self, connection: Connection, plan: Plan, row: dict[str, Any], raw: bool) -> dict[str, Any]:
        """The row of a write as it is now: a trigger may have changed it after it was reported."""
        if plan.model.capabilities.defers:
            connection.settle()
        key = {name: row[name] for name in plan.model.key}
        if None in key.values():
            # Of a view, whose trigger does not tell what it made.
            return row
        command = Command(action="read", model=plan.model.name, where=key, fields=list(plan.returning))
        # Whoever wrote it, all of it comes back.
        read = make_plan(command, self.schema.models[plan.model.name], 1)
        statement = self._statements.of(read)
        parameters = bind(read, statement.parameters)
        found = self._result(read, *connection.run(statement.sql, parameters, True, statement.max_bytes), raw)
        stored: dict[str, Any] = found[0] if found else row
        return stored

    def _dangling(self, connection: Connection, plan: Plan) -> tuple[str, ...]:
        """Find the fields that point to no row; SQLite does not name them."""
        found = []
        for name, (_, value) in zip(plan.written, plan.slots, strict=False):
            field = plan.model.fields[name]
            target = field.fk
            if target is None or value is None:
                continue
            sql: Any = self._statements.finding(target).compile(dialect=self._database.dialect)
            convert = None if field.column is None else field.column.bind
            bound = value if convert is None else convert(value)
            if not connection.run(str(sql), [bound] * len(sql.positiontup or ()), True)[0]:
                found.append(name)
        return tuple(found)

    def sweep(self) -> None:
        """Forget expired idempotency keys."""
        if self._idempotency is None:
            return
        most, more, compared = SLICE, True, False
        while more and self.pool.is_open:
            # Others' writes have their turn in between, and are not kept from it for long.
            with self.pool.connection(spare=True) as connection:
                try:
                    with self._database.writing(connection, SWEEPER):
                        more = self._idempotency.sweep(connection, most)
                except Fault as fault:
                    if fault.kind == "in_the_way" and most > 1:
                        most = max(1, most // 2)
                    elif fault.kind == "migrated" and not compared:
                        compared = True
                        self.look_again()
                    else:
                        raise

    def say_there(self, node: str, engine: str, name: str) -> list[Server]:
        """Say that a server uses the database, and read which others do (:mod:`zcomm.data.neighbours`).

        :raises Fault: where the database does not let it be said, too.
        """
        if self._servers is None:
            self._servers = ServersTable(self._database.dialect, self._database.namespace)
        with self.pool.connection(spare=True) as connection:
            for left in reversed(range(_MAX_TRIES)):
                try:
                    with self._database.writing(connection, SWEEPER):
                        return self._servers.say(connection, node, engine, name)
                except Fault as fault:
                    if not left or fault.kind != "in_the_way":
                        raise
        raise AssertionError

    def identity(self) -> str:
        """An id of the database, which is the same wherever it is asked from; empty where the database does not tell.

        :raises Fault: when the database cannot be had.
        """
        if self._database.name != "postgresql":
            return ""
        # A copy made by a dump is another one; a standby that is promoted is the same.
        with self.pool.connection(spare=True) as connection:
            try:
                ((system, number),) = connection.run(_IDENTITY, (), True)[0]
            except Fault as fault:
                if fault.kind not in ("forbidden", "altered", "unsupported"):
                    raise
                return ""
        return f"postgresql:{system}:{number}"
