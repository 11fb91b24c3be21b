"""The changes of a SQLite file or of a database in memory, from a log that triggers write.

Triggers write while somebody has a *lease*: a row with the time until which it holds, and the length to which the log
may grow. SQLite has one writer at a time, who sees each lease that was committed before it began, so that all is logged
from the moment on in which a lease is written. A lease that was not renewed in time, that is not the one written last,
or that the log has outgrown, leaves everything unknown, once, and so does each change of a table.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

from twisted.logger import Logger

from zcomm.data.drivers.driver import Connection, Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.drivers.sqlite_catalog import LIVE_NAMES, is_live_trigger
from zcomm.data.models import Model, Schema
from zcomm.live.log import READ_SECONDS, Changes, Key, KeyForm
from zcomm.live.sqlite.triggers import (
    CHANGES,
    LEASES,
    MAKE_TABLES,
    Ask,
    Shape,
    installed,
    key_of,
    label_of,
    literal,
    name_in_quotes,
    shape_of,
    triggers_of,
    writes_of,
)

__all__ = ["LiveFacts", "SQLiteLog", "live_facts", "live_off_sql", "live_sql"]

#: Seconds for which a lease holds, and after which it is renewed.
LEASE, RENEWAL = 30, 10.0
#: Rows that the log may have that its reader has not read yet: what writes more in one go has everything read anew.
QUOTA = 100_000
#: How many changes are told one by one.
MANY = 50_000
#: How many rows of the log are removed in one go.
SLICE = 5000
#: Seconds between two looks at whether the triggers are there.
LOOK = 60.0
#: Seconds after which it is tried again where that failed for what may pass, and the faults that do not.
AGAIN = 2.0
LASTING = ("full", "forbidden", "unsupported")
#: Seconds by which the clock may run otherwise than time does, between two looks at it.
STEADY = 1.0
#: Whose work all this is.
OWNER = "zcomm: live"

#: Not SELECT: that fails where tables are not those of the start, which is no matter here.
_WITH = "WITH zcomm AS (SELECT 1)"
_STATE = (
    "SELECT l.until, l.upto, l.mark, (SELECT max(id) FROM zcomm_changes), "
    "(SELECT schema_version FROM pragma_schema_version), (SELECT data_version FROM pragma_data_version) "
    "FROM (SELECT ? AS life) AS me LEFT JOIN zcomm_live AS l ON l.life = me.life"
)
_VERSION = "SELECT data_version FROM pragma_data_version"
_TAKE_OVER = "DELETE FROM zcomm_live WHERE until <= ? OR life = ?"
_ANCHOR = "INSERT INTO zcomm_changes (model) VALUES ('')"
_LAST = "SELECT max(id) FROM zcomm_changes"
_LEASE = "INSERT INTO zcomm_live (life, until, upto, done, mark) VALUES (?, ?, ?, ?, ?)"
_KNOWN_LEASE = "SELECT until, mark, upto > (SELECT max(id) FROM zcomm_changes) FROM zcomm_live WHERE life = ?"
_RENEW = "UPDATE zcomm_live SET until = ?, upto = ?, done = ?, mark = ? WHERE life = ?"
_EXPIRED = "DELETE FROM zcomm_live WHERE until <= ?"
# The row that everybody has read last stays: who finds it knows that nobody else removed some.
_CLEAN = (
    "DELETE FROM zcomm_changes WHERE id IN (SELECT id FROM zcomm_changes "
    "WHERE id < (SELECT min(done) FROM zcomm_live) ORDER BY id LIMIT ?)"
)
_EMPTY = "DELETE FROM zcomm_changes"
_ANY_LEASE = "SELECT 1 FROM zcomm_live LIMIT 1"
_READ = "SELECT id, model, key FROM zcomm_changes WHERE id >= ? ORDER BY id LIMIT ?"
_REST = "SELECT model, count(*) FROM zcomm_changes WHERE id > ? GROUP BY model"

_ELSEWHERE = (
    "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name IN (SELECT value FROM json_each(?)) "
    "AND lower(tbl_name) <> lower(?)"
)
#: The kinds whose values may be kept as what is no key here.
_UNNAMED = {
    "float": "a floating-point number",
    "decimal": "a decimal, which SQLite may keep as a floating-point number",
    "bytes": "bytes",
    "json": "JSON",
}


class SQLiteLog:
    """The changes of one database (see :class:`zcomm.live.log.ChangeLog`).

    :param schema_of: brings the models as the store knows them now.
    :param connection: for a database in memory, which has one connection for all, as
        :meth:`zcomm.data.drivers.pool.Pool.connection` brings it. Elsewhere it has two of its own.
    :param compare: compares tables with the models, after others changed some.
    :param now: seconds since 1970.
    """

    _log = Logger()

    def __init__(
        self,
        database: SQLiteDatabase,
        schema_of: Callable[[], Schema],
        connection: Callable[..., AbstractContextManager[Connection]] | None = None,
        compare: Callable[[], object] = lambda: None,
        now: Callable[[], float] = time.time,
    ):
        self._database = database
        self._schema_of = schema_of
        self._compare = compare
        self._shared = connection if database.line is not None else None
        if database.line is not None and connection is None:
            raise ValueError("a database in memory has one connection, which has to be given")
        self._now = now
        self._reader: Any = None
        self._writer: Any = None
        #: The models that are to be watched, with what their tables are like; and why some are not.
        self._models: dict[str, Model] = {}
        self._shapes: dict[str, Shape] = {}
        self._reasons: dict[str, str] = {}
        #: Those reasons as they were told last.
        self._told: dict[str, str] = {}
        #: The models that are watched, by what the log calls them.
        self._labels: dict[str, str] = {}
        #: Those of which each write is logged as one of many rows.
        self._unlisted: set[str] = set()
        self._looked = float("-inf")
        #: The lease, and whether it is believed to hold.
        self._life = secrets.token_hex(16)
        self._mark = ""
        self._holds = False
        self._wants = False
        self._renewed = float("-inf")
        self._offset = self._drift()
        #: The row of the log that was read last, and the one up to which its rows were removed; whether all before is
        #: known; SQLite's numbers of the tables and of the content that were read last; how often the file was opened
        #: anew by then.
        self._at = self._cleaned = 0
        self._known = False
        self._tables = self._content = -1
        self._renewals = 0
        #: The models of which changes may not be logged now.
        self._broken: set[str] = set()
        #: What a step is about to have read, and whether it failed.
        self._step: tuple[int, int, int, set[str]] | None = None
        self._failed = False
        self._takes_long = self._has_migrated = False
        self._held: ExitStack | None = None
        #: Whether the log was to be looked after while a step was under way.
        self._is_late = False

    @property
    def file(self) -> str:
        return self._database.written_file

    # Watching.

    def prepare(self, models: Sequence[Model]) -> Mapping[str, str]:
        self._models = {model.name: model for model in models if model.live}
        self._reasons = {}
        self._look_after(True)
        self._told = dict(self._reasons)
        return {
            model.name: self._reasons.get(model.name, "") if model.live else "its schema does not say live: true"
            for model in models
        }

    def key_form(self, model: Model) -> KeyForm | str:
        names = [model.fields[name].column_name for name in model.key]
        reason = _why_unnamed(model, self._shapes.get(model.name))
        if reason:
            return reason
        quoted = tuple(map(name_in_quotes, names))
        form, brought = (quoted[0], "value")
        if len(names) > 1:
            form = f"({', '.join(quoted)})"
            brought = ", ".join(f"json_extract(value, '$[{place}]')" for place in range(len(names)))
        # Names in quotes, and numbers.
        listed = f"{form} IN (SELECT {brought} FROM json_each(?))"  # noqa: S608 (see above)
        return KeyForm(quoted, listed, _as_json)

    def watch(self) -> None:
        self._wants = True
        if not self._labels or (self._holds and self._is_steady()):
            return
        self._holds = False
        with self._writing() as connection:
            found = self._install(connection, False)
            self._take_lease(connection)
        self._learn(found)
        self._renewed = time.monotonic()
        self._holds = True

    def _take_lease(self, connection: Connection) -> None:
        """Take a lease anew: all before is unknown."""
        self._known = False
        now = int(self._now())
        connection.run(_TAKE_OVER, (now, self._life), False)
        connection.run(_ANCHOR, (), False)
        self._at, self._cleaned = _ask(connection)(_LAST, ())[0][0], 0
        self._mark = secrets.token_hex(8)
        lease = (self._life, now + LEASE, self._at + QUOTA, self._at, self._mark)
        connection.run(_LEASE, lease, False)

    def tend(self) -> Mapping[str, str]:
        # A step keeps writers from committing where there is no write-ahead log, and has the only connection in memory.
        self._is_late = self._held is not None
        if self._is_late:
            return {}
        self._see_to_it()
        told, self._told = self._told, dict(self._reasons)
        return {name: self._told.get(name, "") for name in self._models if self._told.get(name) != told.get(name)}

    def _see_to_it(self) -> None:
        """Do what :meth:`tend` is for, while no step is under way."""
        if self._models and (self._broken or time.monotonic() - self._looked > LOOK):
            self._look_after(False)
        if self._wants and self._labels:
            self.watch()
            if time.monotonic() - self._renewed > RENEWAL or self._cleaned < self._at:
                self._renew()

    def _renew(self) -> None:
        """Make the lease hold longer, and remove what everybody has read."""
        most, at = SLICE, self._at
        while True:
            mark, held = secrets.token_hex(8), True
            try:
                with self._writing() as connection:
                    # Whether it was committed is not known where that fails.
                    self._holds = False
                    held = self._extend(connection, at, mark)
                    touched = connection.run(_CLEAN, (most,), False)[1]
            except Fault as fault:
                # Of these nothing was done.
                self._holds = held and fault.kind in ("busy", "in_the_way")
                if fault.kind != "in_the_way" or most <= 1:
                    raise
                # Others' writes come first.
                most //= 2
                continue
            self._holds, self._renewed = True, time.monotonic()
            if not held:
                return
            self._mark = mark
            if touched < most:
                self._cleaned = at
                return

    def _extend(self, connection: Connection, at: int, mark: str) -> bool:
        """Make the lease hold longer, in a transaction that writes. Returns whether it held until now; else it is taken
        anew."""
        connection.run(_EXPIRED, (int(self._now()),), False)
        found = _ask(connection)(_KNOWN_LEASE, (self._life,))
        now = self._now()
        until, known, has_room = found[0] if found else (0, "", 0)
        # What was written to a full log is not in it, whatever room there is from now on.
        if until <= now or known != self._mark or not has_room or not self._is_steady():
            self._take_lease(connection)
            return False
        connection.run(_RENEW, (int(now) + LEASE, at + QUOTA, at, mark, self._life), False)
        return True

    def rest(self) -> None:
        self.end()
        had, self._wants, self._holds, self._known = self._holds, False, False, False
        if not had:
            return
        try:
            with self._writing() as connection:
                connection.run(_TAKE_OVER, (int(self._now()), self._life), False)
                if not _ask(connection)(_ANY_LEASE, ()):
                    connection.run(_EMPTY, (), False)
        except Fault as fault:
            # Nothing is logged any more once the lease has expired.
            self._log.debug("The log of changes was not emptied: {fault}", fault=fault)

    def close(self) -> None:
        self.end()
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._reader = self._writer = None
        self._holds = self._known = False

    # Steps.

    def begin(self, models: Collection[str]) -> Changes:
        self.end()
        if self._has_migrated:
            self._has_migrated = False
            self._compare()
            if self._reader is not None:
                # One statement fails of each connection that may not know what came of it.
                with suppress(Fault):
                    self._reader.run("SELECT 1", (), True)
        if self._is_late:
            self._is_late = False
            # Where others write, the lease may hold on for a while.
            with suppress(Fault):
                self._see_to_it()
        for _ in range(3):
            self.watch()
            self._enter()
            try:
                changes = self._changes()
            except BaseException:
                self._failed = True
                self.end()
                raise
            if changes is not None:
                return changes
            self.end()
            self._holds = False
        raise Fault("busy", (), "the lease on the log of changes does not hold; the clock may be set again and again")

    def _enter(self) -> None:
        """Begin the transaction of a step."""
        self._failed = False
        self._held = ExitStack()
        try:
            if self._shared is not None:
                self._reader = self._held.enter_context(self._shared(spare=True, long=self._takes_long))
            elif self._reader is None or not self._reader.alive():
                if self._reader is not None:
                    self._reader.close()
                self._reader = None
                self._known = False
                self._reader = self._database.connect()
            self._reader.begin_snapshot()
        except BaseException:
            self._failed = True
            self.end()
            raise

    def _changes(self) -> Changes | None:
        """The changes that the snapshot has; ``None`` where the lease does not hold in it."""
        ask = _ask(self._reader)
        if not self._labels:
            # Nothing is watched, and what was told of others is known to nobody here.
            return Changes({})
        state = self._state(ask)
        if state is None:
            return None
        last, tables, content = state
        broken = self._broken if tables == self._tables else self._find_broken(ask)
        self._step = (last, tables, content, broken)
        if not self._known or self._renewals != getattr(self._reader, "renewals", 0):
            return Changes({}, known=False)
        if tables != self._tables:
            # Between two looks they may have been made anew, with the same triggers.
            return Changes(dict.fromkeys(self._labels.values()))
        return self._read(ask, last, broken)

    def _read(self, ask: Ask, last: int, broken: set[str]) -> Changes:
        """What the log has since the step before."""
        keys: dict[str, set[Key] | None] = dict.fromkeys(broken)
        if last == self._at:
            return Changes(keys)
        rows = ask(_READ, (self._at, MANY + 2))
        for _, label, value in rows[1:]:
            name = self._labels.get(label)
            if name is None or (found := keys.setdefault(name, set())) is None:
                continue
            key = key_of(value, len(self._models[name].key))
            if key is None:
                keys[name] = None
            else:
                found.add(key)
        count = len(rows)
        if count > MANY + 1:
            for label, more in ask(_REST, (rows[-1][0],)):
                count += more
                if label in self._labels:
                    keys[self._labels[label]] = None
        # Somebody removed rows of the log, where some are missing.
        return Changes(keys, known=0 < count == last - self._at + 1)

    def _state(self, ask: Ask) -> tuple[int, int, int] | None:
        """The last row of the log, and SQLite's numbers of the tables and of the content; ``None`` where the lease does
        not hold."""
        try:
            until, upto, mark, last, tables, content = ask(_STATE, (self._life,))[0]
        except Fault as fault:
            if fault.kind not in ("refused", "migrated"):
                raise
            # Somebody took the tables of the log away. Where it is the file, to make them again fails. Where others are
            # other tables as well, the next step compares them, though nobody else asks.
            self._has_migrated = self._has_migrated or fault.kind == "migrated"
            return None
        # The clock is looked at last: what was committed so far was so before.
        holds = mark == self._mark and last is not None and last < upto and self._is_steady() and until > self._now()
        return (last, tables, content) if holds else None

    def run(self, sql: str, parameters: Sequence[Any], max_bytes: int | None = None) -> list[tuple[Any, ...]]:
        try:
            self._reader.hurry(READ_SECONDS)
            rows: list[tuple[Any, ...]] = self._reader.run(sql, parameters, True, max_bytes)[0]
        except BaseException as error:
            # What the step was about is told again.
            self._failed = True
            kind = error.kind if isinstance(error, Fault) else ""
            self._takes_long, self._has_migrated = kind == "in_the_way", kind == "migrated"
            raise
        return rows

    def end(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        step, self._step = self._step, None
        if self._reader is not None:
            self._reader.rollback()
        if step is not None and not self._failed:
            self._at, self._tables, self._content, self._broken = step
            self._known, self._renewals = True, getattr(self._reader, "renewals", 0)
            self._takes_long = False
        with suppress(Fault):
            held.close()
        if self._shared is not None:
            self._reader = None

    def changed(self) -> bool:
        if not self._labels:
            return False
        if self._held is not None or not (self._holds and self._known and self._is_steady()):
            return True
        try:
            if self._shared is not None:
                with self._shared(spare=True) as connection:
                    return self._has_changed(_ask(connection))
            if self._reader is None:
                return True
            content = self._reader.run(_VERSION, (), True)[0][0][0]
            if self._reader.renewals != self._renewals:
                # The numbers of another connection say nothing.
                return True
            return content != self._content and self._has_changed(_ask(self._reader))
        except Fault as fault:
            if fault.kind == "migrated":
                return True
            raise

    def _has_changed(self, ask: Ask) -> bool:
        state = self._state(ask)
        if state is None or state[0] != self._at or state[1] != self._tables or self._broken:
            return True
        # It was a row of another table, or what is done here.
        self._content = state[2]
        return False

    # Tables and triggers.

    def _look_after(self, first: bool) -> None:
        """See to it that the triggers are there.

        :param first: whether those that older versions made are removed.
        """
        self._looked = time.monotonic()
        if not self._models:
            return
        try:
            with self._writing(first) as connection:
                found = self._install(connection, first)
        except Fault as fault:
            if self._labels and not first:
                raise
            found = _Installed(dict.fromkeys(self._models, _why_not_installed(fault)), {}, {}, set())
            self._learn(found)
            if fault.kind not in LASTING:
                self._looked += AGAIN - LOOK
            return
        self._learn(found)

    def _learn(self, found: _Installed) -> None:
        self._reasons, self._labels, self._shapes, self._unlisted = found
        self._looked = time.monotonic()
        # Each is as it should be, or not watched.
        self._broken = set()

    def _current(self) -> dict[str, Model]:
        """The models that are to be watched, as the store knows them now."""
        known = self._schema_of().models
        return {name: known.get(name, model) for name, model in self._models.items()}

    def _install(self, connection: Connection, first: bool) -> _Installed:
        """Install what is missing, in a transaction that writes."""
        ask = _ask(connection)
        found = _Installed({}, {}, {}, set())
        for table, (made, columns) in MAKE_TABLES.items():
            there = [name for (name,) in ask("SELECT name FROM pragma_table_info(?)", (table,))]
            if not there:
                connection.run(made, (), False)
            elif there != columns:
                raise Fault("unsupported", (), f"there is a table {table} that is not zComm's; rename it")
        # A transaction that writes nothing begins in a file that cannot be written to as well.
        connection.run(_EXPIRED, (int(self._now()),), False)
        for name, model in self._current().items():
            key = [model.fields[each].column_name for each in model.key]
            shape = found.shapes[name] = shape_of(ask, model.table)
            reason = _why_not_watched(model, key, shape)
            if not reason:
                reason = self._put_triggers(connection, model, key, shape, first, found.unlisted)
            if reason:
                found.reasons[name] = reason
            else:
                found.labels[label_of(model.table, key)] = name
        return found

    def _put_triggers(
        self, connection: Connection, model: Model, key: list[str], shape: Shape, first: bool, unlisted: set[str]
    ) -> str:
        """Make the triggers of a table that are missing, and remove those that are not as they were made.

        :param first: whether those that older versions made are removed as well.
        :param unlisted: gets the model where its unique indexes are beyond what triggers can look up.
        :return: why SQLite does not take them.
        """
        ask, table = _ask(connection), model.table
        there, label = installed(ask, table), literal(label_of(table, key))
        detail = ""
        for each in (shape, replace(shape, uniques=None)):
            wanted = triggers_of(table, key, each)
            # Two versions that run at the same time would take each other's away again and again.
            old = [
                name
                for name, sql in there.items()
                if wanted.get(name) != sql
                and (
                    (label in sql and (first or name.startswith(LIVE_NAMES)))
                    or not is_live_trigger(name.encode(), sql.encode())
                )
            ]
            if not old and wanted.items() <= there.items() and not first:
                return ""
            connection.run("SAVEPOINT zcomm_live", (), False)
            try:
                for name in old:
                    connection.run(f"DROP TRIGGER {name_in_quotes(name)}", (), False)
                # Those of a table that was given another name went along, with their names.
                for (name,) in ask(_ELSEWHERE, (json.dumps(list(wanted)), table)):
                    connection.run(f"DROP TRIGGER {name_in_quotes(name)}", (), False)
                for name, sql in wanted.items():
                    if there.get(name) != sql:
                        connection.run(sql, (), False)
                for sql in writes_of(table, shape):
                    # No write may fail for them, and SQLite looks at them then only.
                    # An EXPLAIN that was compiled before tables changed may crash, or bring what memory has by chance.
                    ask(f"{sql} /* {secrets.token_hex(8)} */", ())
            except Fault as fault:
                if fault.kind not in ("refused", "unknown", "invalid", "unsupported", "migrated"):
                    raise
                detail = fault.detail
                connection.run("ROLLBACK TO zcomm_live", (), False)
                connection.run("RELEASE zcomm_live", (), False)
                continue
            connection.run("RELEASE zcomm_live", (), False)
            if each is not shape:
                unlisted.add(model.name)
            return ""
        return f"SQLite does not take its triggers ({detail})"

    def _find_broken(self, ask: Ask) -> set[str]:
        """The models whose triggers are not what they should be."""
        models, broken = self._current(), set()
        for label, name in self._labels.items():
            model = models[name]
            key = [model.fields[each].column_name for each in model.key]
            shape = shape_of(ask, model.table)
            if name in self._unlisted:
                shape = replace(shape, uniques=None)
            if (
                label != label_of(model.table, key)
                or _why_not_watched(model, key, shape)
                or not triggers_of(model.table, key, shape).items() <= installed(ask, model.table).items()
            ):
                broken.add(name)
        return broken

    # Connections and the clock.

    @contextmanager
    def _writing(self, long: bool = False) -> Iterator[Connection]:
        """A transaction that writes, in its turn among all writes.

        :param long: whether it may keep others waiting, as it does once, before there is anybody to wait.
        """
        with ExitStack() as held:
            if self._shared is not None:
                connection = held.enter_context(self._shared(spare=True, writes=True, long=long))
            else:
                if self._writer is None or not self._writer.alive():
                    if self._writer is not None:
                        self._writer.close()
                    self._writer = None
                    self._writer = self._database.connect()
                connection = self._writer
            held.enter_context(self._database.writing(connection, OWNER, long))
            connection.begin()
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def _drift(self) -> float:
        return self._now() - time.monotonic()

    def _is_steady(self) -> bool:
        """Whether the clock ran as time does since this was asked last. Where it was set, and perhaps set back, a lease
        may have seemed to have expired meanwhile."""
        drift = self._drift()
        if abs(drift - self._offset) < STEADY:
            self._offset = drift
            return True
        self._offset = drift
        self._holds = self._known = False
        return False


class _Installed(NamedTuple):
    """What came of the installation: by model why it is not watched, the models by what the log calls them, their
    tables, and those of which each write is logged as one of many rows."""

    reasons: dict[str, str]
    labels: dict[str, str]
    shapes: dict[str, Shape]
    unlisted: set[str]


def _ask(connection: Connection) -> Ask:
    def ask(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        return connection.run(f"{_WITH} {sql}" if sql.startswith("SELECT") else sql, parameters, True)[0]

    return ask


def _as_json(keys: Sequence[Key]) -> str:
    return json.dumps(keys, ensure_ascii=False, separators=(",", ":"))


def _why_unnamed(model: Model, shape: Shape | None) -> str:
    """Why rows of a model cannot be named by their keys, in words that follow its name; empty where they can."""
    if not model.key:
        return "has no primary key"
    kept = {} if shape is None else dict(shape.affinities)
    for name in model.key:
        field = model.fields[name]
        what = _UNNAMED.get(field.kind.name, "")
        if kept.get(field.column_name) == "REAL":
            what = "a floating-point number"
        if field.kind.name == "uuid" and field.column is not None and field.column.bind is not None:
            what = "bytes" if isinstance(field.column.bind(UUID(int=0)), bytes) else ""
        if what:
            return f"has a key that is kept as {what}"
    return ""


def _why_not_watched(model: Model, key: Sequence[str], shape: Shape) -> str:
    """Why a table cannot be watched, in words that follow "its table is not watched: "; empty where it can."""
    missing = [name for name in key if not shape.why_not and name not in shape.columns]
    unnamed = _why_unnamed(model, shape)
    return shape.why_not or (missing and f"it has no column {missing[0]}") or (unnamed and f"it {unnamed}") or ""


def _why_not_installed(fault: Fault) -> str:
    reasons = {
        "full": "the file cannot be written to, and so no triggers can be made",
        "forbidden": "no triggers can be made in the file",
        "busy": "another program kept the file from being written to",
        "in_the_way": "other writes came first",
        "unsupported": fault.detail,
    }
    return reasons.get(fault.kind, f"no triggers could be made ({fault})")


def live_sql(model: Model, ask: Ask) -> str:
    """The SQL that has the changes of a model's table logged, for a person to run.

    :param ask: asks the database that it is for.
    """
    key = [model.fields[name].column_name for name in model.key]
    shape = shape_of(ask, model.table)
    reason = _why_not_watched(model, key, shape)
    if reason:
        return f"-- {model.name}: its table is not watched: {reason}\n"
    there = {str(name) for (name,) in ask("SELECT name FROM sqlite_master WHERE type = 'table'", ())}
    made = [sql for table, (sql, _) in MAKE_TABLES.items() if table not in there]
    installed_here = installed(ask, model.table)
    made += [sql for name, sql in triggers_of(model.table, key, shape).items() if installed_here.get(name) != sql]
    return "".join(f"{statement};\n" for statement in ("BEGIN IMMEDIATE", *made, "COMMIT")) if made else ""


def live_off_sql(ask: Ask) -> str:
    """The SQL that has nothing logged any more, and removes all that was made for that."""
    triggers = ask("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'zcomm_live_*'", ())
    gone = [f"DROP TRIGGER IF EXISTS {name_in_quotes(str(name))}" for (name,) in triggers]
    gone += [f"DROP TABLE IF EXISTS {table}" for table in MAKE_TABLES]
    return "".join(f"{statement};\n" for statement in ("BEGIN IMMEDIATE", *gone, "COMMIT"))


class LiveFacts(NamedTuple):
    """The log of a database, as it says itself.

    :ivar rows: how many rows the log has.
    :ivar leases: of each lease the seconds for which it holds; less than none for one that has expired.
    :ivar tables: the tables that have triggers, with how many.
    """

    rows: int
    leases: tuple[float, ...]
    tables: Mapping[str, int]


def live_facts(ask: Ask, now: float) -> LiveFacts:
    """The state of the log, for a person to see."""
    there = {str(name) for (name,) in ask("SELECT name FROM sqlite_master WHERE type = 'table'", ())}
    tables = ask(
        "SELECT tbl_name, count(*) FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'zcomm_live_*' GROUP BY 1",
        (),
    )
    rows = ask("SELECT count(*) FROM zcomm_changes", ())[0][0] if CHANGES in there else 0
    leases = ask("SELECT until FROM zcomm_live ORDER BY until", ()) if LEASES in there else []
    return LiveFacts(rows, tuple(until - now for (until,) in leases), {str(name): count for name, count in tables})
