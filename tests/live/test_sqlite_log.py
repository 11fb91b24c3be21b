"""The changes of a SQLite database, as live queries are told of them: whoever writes, and however."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import sqlalchemy as sa
from support.waiting import wait_until_blocking

from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.drivers.sqlite_catalog import is_live_trigger
from zcomm.data.execution import Execution, Job
from zcomm.data.models import Schema
from zcomm.data.requests import Command, make_plan
from zcomm.data.schema import load_schema
from zcomm.live.log import Changes, KeyForm
from zcomm.live.sqlite.log import LEASE, MANY, QUOTA, SQLiteLog, live_facts, live_off_sql, live_sql

SCHEMA = """
Users:
  _model: {live: true}
  id: {type: int, pk: true}
  email: {type: str, unique: true}
  n: int
Seats:
  _model: {live: true}
  row: {type: str, pk: true}
  number: {type: int, pk: true}
  note: str
Others: {id: {type: int, pk: true}, a: str}
"""
TABLES = """
CREATE TABLE Users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, n INT);
CREATE TABLE Seats ("row" TEXT, number INT, note TEXT, PRIMARY KEY ("row", number));
CREATE TABLE Others (id INTEGER PRIMARY KEY, a TEXT);
"""

#: How many random transactions each kind of table gets.
ROUNDS = int(os.environ.get("ZCOMM_LIVE_ROUNDS", "150"))


class Watched:
    """A file with a log of its changes, and another program's connection to it."""

    def __init__(self, path: Path, schema: Schema, now: Callable[[], float] = time.time):
        self.path = path
        self.schema = schema
        self.other = sqlite3.connect(path, isolation_level=None)
        self.database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"), busy_timeout=1.0)
        self.log = self.another(now)

    def another(self, now: Callable[[], float] = time.time) -> SQLiteLog:
        """Another log of the file, as another process has it."""
        return SQLiteLog(self.database, lambda: self.schema, now=now)

    def prepared(self, log: SQLiteLog | None = None) -> SQLiteLog:
        """A log that watches, and has had its first step."""
        log = log or self.log
        reasons = log.prepare(list(self.schema.models.values()))
        assert {name: reasons[name] for name, model in self.schema.models.items() if model.live} == {
            name: "" for name, model in self.schema.models.items() if model.live
        }
        log.watch()
        assert not step(log).known
        assert not log.changed()
        return log

    def rows(self) -> int:
        """How many changes the log has."""
        return int(self.other.execute("SELECT count(*) FROM zcomm_changes WHERE model <> ''").fetchone()[0])

    def close(self) -> None:
        self.log.close()
        self.other.close()


def step(log: SQLiteLog) -> Changes:
    """One step that reads nothing."""
    changes = log.begin(())
    log.end()
    return changes


def keys(log: SQLiteLog) -> dict[str, Any]:
    """What a step is told, of a log that knows."""
    changes = step(log)
    assert changes.known
    return {name: None if found is None else set(found) for name, found in changes.keys.items()}


def is_anew(log: SQLiteLog) -> bool:
    """Whether a step is told that all rows of users may have changed."""
    changes = step(log)
    return not changes.known or changes.keys.get("Users", ()) is None


@pytest.fixture(params=["wal", "delete"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    """A file with and without a write-ahead log."""
    path = tmp_path / "data.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        os.chmod(path, 0o600)
        made.execute(f"PRAGMA journal_mode = {request.param}")
        made.executescript(TABLES)
    found = Watched(path, load_schema(SCHEMA))
    found.other.execute("PRAGMA synchronous = OFF")
    yield found
    found.close()


def test_what_another_program_writes_is_told(watched: Watched):
    """Each key that another program inserts, changes or deletes; once, and that nothing has changed after that."""
    log, other = watched.prepared(), watched.other
    other.execute("INSERT INTO Users VALUES (1, 'a', 1), (2, 'b', 1)")
    assert log.changed()
    assert keys(log) == {"Users": {1, 2}}
    assert not log.changed()
    other.execute("UPDATE Users SET id = 7 WHERE id = 1")
    other.execute("DELETE FROM Users WHERE id = 2")
    other.execute("INSERT INTO Seats VALUES ('it''s, 1', -5, NULL)")
    assert log.changed()
    assert keys(log) == {"Users": {1, 7, 2}, "Seats": {("it's, 1", -5)}}
    other.execute("DELETE FROM Users")
    assert keys(log) == {"Users": {7}}
    other.execute("INSERT INTO Others VALUES (1, 'a')")
    assert not log.changed()


def test_rows_that_replace_removes_are_told(watched: Watched):
    """Rows with the same unique values go without a trigger, by an insert and by an update, and are told all the
    same; and so are both keys of a row that gets another one."""
    log, other = watched.prepared(), watched.other
    other.execute("INSERT INTO Users VALUES (5, 'a', 1), (6, 'b', 1)")
    assert keys(log) == {"Users": {5, 6}}
    other.execute("INSERT OR REPLACE INTO Users VALUES (9, 'a', 2)")
    assert keys(log) == {"Users": {5, 9}}
    other.execute("UPDATE OR REPLACE Users SET email = 'a' WHERE id = 6")
    assert keys(log) == {"Users": {6, 9}}
    other.execute("UPDATE Users SET id = 7 WHERE id = 6")
    assert keys(log) == {"Users": {6, 7}}
    other.execute("INSERT INTO Seats (rowid, \"row\", number) VALUES (1, 'a', 1)")
    other.execute("INSERT OR REPLACE INTO Seats (rowid, \"row\", number) VALUES (1, 'b', 1)")
    assert keys(log) == {"Seats": {("a", 1), ("b", 1)}}


def test_values_that_sqlite_computes_are_looked_up(tmp_path: Path):
    """In an update, where SQLite computes them of what a trigger needs, and of nothing else that is not written."""
    path = tmp_path / "data.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        os.chmod(path, 0o600)
        made.execute("CREATE TABLE T (k INTEGER PRIMARY KEY, a, b, d AS (a || b) STORED UNIQUE)")
        made.execute("INSERT INTO T VALUES (3, NULL, 1), (10, 3, 1)")
    there = Watched(path, load_schema("T: {_model: {live: true}, k: {type: int, pk: true}}"))
    log = there.prepared()
    there.other.execute("UPDATE OR REPLACE T SET a = 3 WHERE k = 3")
    assert keys(log) == {"T": {3, 10}}
    there.close()


#: A table for each kind of key and of unique index, with the columns of its key.
SHAPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "number": ("CREATE TABLE t (k INTEGER PRIMARY KEY, a, b, c)", ("k",)),
    "text": ("CREATE TABLE t (k TEXT PRIMARY KEY, a, b, c)", ("k",)),
    "text in any case": ("CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY, a, b, c)", ("k",)),
    "no type": ("CREATE TABLE t (k PRIMARY KEY, a, b, c)", ("k",)),
    "without rowid": ("CREATE TABLE t (k INT PRIMARY KEY, a UNIQUE, b, c) WITHOUT ROWID", ("k",)),
    "strict": ("CREATE TABLE t (k INT NOT NULL UNIQUE, a TEXT UNIQUE, b INT, c ANY) STRICT", ("k",)),
    "two columns": ("CREATE TABLE t (k, l, a, b, c, PRIMARY KEY (k, l))", ("k", "l")),
    "two columns without rowid": (
        "CREATE TABLE t (k, l DEFAULT 1, a, b UNIQUE, c, PRIMARY KEY (l, k)) WITHOUT ROWID",
        ("k", "l"),
    ),
    "another key": ("CREATE TABLE t (i INTEGER PRIMARY KEY, k INT UNIQUE, a UNIQUE, b, c)", ("k",)),
    "composite": ("CREATE TABLE t (k INTEGER PRIMARY KEY, a, b, c, UNIQUE (a, b), UNIQUE (c))", ("k",)),
    "replacing": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a UNIQUE ON CONFLICT REPLACE, b NOT NULL ON CONFLICT REPLACE DEFAULT 2 "
        "UNIQUE ON CONFLICT REPLACE, c)",
        ("k",),
    ),
    "in part": (
        'CREATE TABLE t (k INTEGER PRIMARY KEY, a, b, c); CREATE UNIQUE INDEX "u ""x" ON t (a) WHERE b > 1 -- (x\n;'
        "CREATE UNIQUE INDEX v ON t (b, c) WHERE c IS NOT NULL AND a <> ')'",
        ("k",),
    ),
    "expression": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a, b, c);"
        "CREATE UNIQUE INDEX u ON t (lower(a /* , */) COLLATE NOCASE DESC, b + 0.5e-0);"
        "CREATE UNIQUE INDEX v ON t (length(c), \"a\" || 'x,(' || b) WHERE b IS NOT NULL",
        ("k",),
    ),
    "odd index": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a, b, c);"
        "CREATE UNIQUE INDEX [on (t)] ON [t]( CASE WHEN a IN (1, 2) THEN ',)' ELSE b END COLLATE NOCASE,(c)DESC )"
        "WHERE(b IS NOT NULL /* WHERE */) AND a NOT IN ('WHERE', \"c\", `b`) -- )\n;"
        "CREATE UNIQUE INDEX IF NOT EXISTS \"w,\" ON t (a - -1.5e0 , b || 'x' || c ASC) WHERE c <> 2 OR b > x'41' ;",
        ("k",),
    ),
    "an expression that may fail": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a, b NOT NULL, c);"
        "CREATE UNIQUE INDEX u ON t (a -> '$') WHERE json_valid(a);"
        "CREATE UNIQUE INDEX v ON t (\"abs\"(c)) WHERE typeof(c) = 'integer' AND c > -5",
        ("k",),
    ),
    "generated": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a, b, c, d AS (a || b) STORED UNIQUE, e AS (abs(c)) UNIQUE)",
        ("k",),
    ),
    "generated key": ("CREATE TABLE t (a, b UNIQUE, c, k TEXT AS (a || '-' || b) STORED UNIQUE)", ("k",)),
    "itself": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a INT UNIQUE REFERENCES t (k) ON DELETE CASCADE ON UPDATE CASCADE, "
        "b REFERENCES t (a) ON DELETE SET NULL ON UPDATE CASCADE, c)",
        ("k",),
    ),
    "rowid names": ("CREATE TABLE t (rowid TEXT PRIMARY KEY, oid UNIQUE, a, b, c)", ("rowid",)),
    "collations": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a, b TEXT COLLATE NOCASE, c);"
        "CREATE UNIQUE INDEX u ON t (a COLLATE NOCASE); CREATE UNIQUE INDEX v ON t (b COLLATE BINARY)",
        ("k",),
    ),
    "triggers": (
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a UNIQUE, b, c);"
        "CREATE TRIGGER x AFTER INSERT ON t WHEN NEW.b = 1 BEGIN SELECT RAISE(IGNORE); END;"
        "CREATE TRIGGER y AFTER UPDATE ON t WHEN NEW.b = 2 BEGIN SELECT RAISE(IGNORE); END;"
        "CREATE TRIGGER z BEFORE DELETE ON t WHEN OLD.b = 3 BEGIN UPDATE t SET c = 5; SELECT RAISE(IGNORE); END;"
        "CREATE TRIGGER w BEFORE INSERT ON t WHEN NEW.b = 4 "
        "BEGIN INSERT OR REPLACE INTO t (a, b) VALUES (NEW.a, 0); END",
        ("k",),
    ),
    "names": (
        'CREATE TABLE "new" ("a ""b\'{0}" TEXT PRIMARY KEY, a UNIQUE, b, c);'
        "CREATE UNIQUE INDEX u ON new (b) WHERE c > 1",
        ("a \"b'{0}",),
    ),
}


def _random_statement(pick: random.Random, table: str, columns: Sequence[str]) -> tuple[str, list[Any]]:
    """A write to a table, with small values of all types, so that there are conflicts."""

    def value() -> Any:
        others = [-1, 1.0, 1.5, "A", "b", "1", "a\0b", b"a", b"\xff", "é'", None, 4, -(2**63)]
        return pick.choice([None, 1, 2, 3, "a"]) if pick.random() < 0.7 else pick.choice(others)

    def quoted(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    way = pick.choice(["", "", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"])
    some = pick.sample(list(columns), pick.randint(1, len(columns)))
    column = quoted(pick.choice(list(columns)))
    where, given = pick.choice(
        [("", []), (f"WHERE {column} > ?", [value()]), *[(f"WHERE {column} IS ?", [value()])] * 4]
    )
    kind = pick.choice(["insert"] * 5 + ["update"] * 5 + ["delete"] + ["upsert"] * 2)
    if kind == "delete":
        return f"DELETE FROM {table} {where}", given
    if kind == "update":
        sets = ", ".join(f"{quoted(name)} = ?" for name in some)
        return f"UPDATE {way} {table} SET {sets} {where}", [value() for _ in some] + given
    names = ", ".join(map(quoted, some))
    rows = [[value() for _ in some] for _ in range(pick.randint(1, 3))]
    marks = ", ".join(f"({', '.join('?' for _ in some)})" for _ in rows)
    flat = [each for row in rows for each in row]
    if kind == "upsert":
        return (
            f"INSERT INTO {table} ({names}) VALUES {marks} ON CONFLICT DO UPDATE SET {quoted(some[-1])} = ?",
            [*flat, value()],
        )
    return f"INSERT {way} INTO {table} ({names}) VALUES {marks}", flat


class Twin:
    """A table in a watched file, and one that is written in the same way and not watched."""

    def __init__(self, path: Path, made: str, table: str, key: Sequence[str], recursive: bool):
        self.table, self.key = table, key
        self.both = [sqlite3.connect(each, isolation_level=None) for each in (path, ":memory:")]
        os.chmod(path, 0o600)
        for each in self.both:
            each.text_factory = lambda data: data.decode("utf-8", "replace")
            each.execute("PRAGMA journal_mode = WAL")
            each.execute("PRAGMA synchronous = OFF")
            each.execute("PRAGMA foreign_keys = ON")
            each.execute(f"PRAGMA recursive_triggers = {recursive}")
            each.executescript(made)
        self.both[1].execute("CREATE TABLE written (x)")
        for event in ("BEFORE INSERT", "AFTER INSERT", "BEFORE UPDATE", "BEFORE DELETE"):
            # Where a trigger writes, SQLite goes through the rows in another order, and meets other conflicts.
            self.both[1].execute(
                f'CREATE TRIGGER "{event}" {event} ON "{table}" BEGIN INSERT INTO written VALUES (1); END'
            )
        columns = self.both[0].execute(f'PRAGMA table_xinfo("{table}")').fetchall()
        self.columns = [row[1] for row in columns if not row[6]]

    def run(self, sql: str, given: Sequence[Any] = ()) -> None:
        """Run a statement, which does the same on either side, also where it fails."""
        outcomes = []
        for each in self.both:
            try:
                outcomes.append((each.execute(sql, given).rowcount, each.in_transaction))
            except sqlite3.Error as error:
                outcomes.append((str(error), each.in_transaction))
        assert outcomes[0] == outcomes[1]
        if outcomes[0][1] and str(outcomes[0][0]).startswith(("datatype mismatch", "cannot store ")):
            # SQLite does not always undo the rows before that one.
            self.run("ROLLBACK")

    def rows(self) -> dict[Any, Any]:
        """All rows by their key, which are the same on either side."""
        shown = ", ".join('"' + each.replace('"', '""') + '"' for each in self.key)
        sides = []
        for each in self.both:
            found: dict[Any, list[Any]] = {}
            for row in each.execute(f'SELECT {shown}, * FROM "{self.table}"'):
                found.setdefault(row[0] if len(self.key) == 1 else row[: len(self.key)], []).append(repr(row))
            sides.append({name: sorted(those) for name, those in found.items()})
        assert sides[0] == sides[1]
        return sides[0]

    def close(self) -> None:
        for each in self.both:
            each.close()


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_whatever_is_written_is_told(name: str, recursive: bool, tmp_path: Path):
    """After random statements, also undone ones and cascades, each row that is otherwise has been told by its key. Each
    statement does what it would do to a table that is not watched."""
    made, key = SHAPES[name]
    path = tmp_path / "data.sqlite3"
    with closing(Twin(path, made, "new" if name == "names" else "t", key, recursive)) as twin:
        fields = "".join(
            f"  k{place}: {{type: str, pk: true, column: {_yaml(each)}}}\n" for place, each in enumerate(key)
        )
        there = Watched(path, load_schema(f"T:\n  _model: {{live: true, table: {twin.table}}}\n{fields}"))
        log = there.prepared()
        pick = random.Random(name)
        before, named = twin.rows(), 0
        for _ in range(ROUNDS):
            grouped = pick.random() < 0.3
            if grouped:
                twin.run("BEGIN")
            for _ in range(pick.randint(1, 4) if grouped else 1):
                saved = twin.both[0].in_transaction and pick.random() < 0.3
                if saved:
                    twin.run("SAVEPOINT s")
                sql, given = _random_statement(pick, f'"{twin.table}"', twin.columns)
                twin.run(sql, given)
                if saved and twin.both[0].in_transaction:
                    twin.run(pick.choice(["ROLLBACK TO s", "RELEASE s"]))
            if twin.both[0].in_transaction:
                twin.run(pick.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
            after = twin.rows()
            differ = {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)}
            assert log.changed() or not differ
            if pick.random() < 0.1:
                log.tend()
            changes = step(log)
            assert changes.known
            told = changes.keys.get("T", set())
            if told is not None:
                named += 1
                assert differ <= set(told), (sql, given)
            before = after
        assert named > ROUNDS // 20 or "may fail" in name
        there.close()


def _yaml(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _execution(database: SQLiteDatabase, schema: Schema) -> Execution:
    execution = Execution(database, "sqlite", schema, 3, 5.0, time.time)
    execution.prepare()
    return execution


def _do(execution: Execution, action: str, model: str, **given: Any) -> Any:
    found = execution.schema.models[model]
    plan = make_plan(Command(action=action, model=model, **given), found, 100)
    return execution.perform(Job(plan=plan, key=None)).result


@pytest.mark.parametrize("url", ["file", "memory"])
def test_its_own_triggers_are_no_matter_to_a_store(url: str, tmp_path: Path):
    """Before and after they are made, and after another start, writes are what they were: no row is read again, nobody
    is told that tables were changed, and a trigger of anybody else still is noticed."""
    schema = load_schema(SCHEMA)
    where = "sqlite://" if url == "memory" else f"sqlite:///{tmp_path}/data.sqlite3"
    database = SQLiteDatabase(sa.make_url(where))
    execution = _execution(database, schema)
    _do(execution, "create", "Users", values={"email": "a"})
    compared = database._file and database._file.comparisons
    log = SQLiteLog(database, lambda: execution.schema, execution.pool.connection)
    assert log.prepare(list(schema.models.values()))["Users"] == ""
    log.watch()
    assert not step(log).known
    _do(execution, "update", "Users", where={"id": 1}, values={"n": 2})
    assert log.changed()
    assert keys(log) == {"Users": {1}}
    assert not log.changed()
    _do(execution, "upsert", "Users", values={"email": "a"}, conflict_fields=["email"])
    assert log.changed()
    assert 1 in keys(log)["Users"]
    assert not execution._triggered
    assert (database._file and database._file.comparisons) == compared
    if url == "file":
        again = _execution(SQLiteDatabase(sa.make_url(where)), schema)
        capabilities = again.schema.models["Users"].capabilities
        assert not (capabilities.rereads or capabilities.skips or capabilities.perhaps or capabilities.disturbs)
        again.pool.close()
        with closing(sqlite3.connect(tmp_path / "data.sqlite3", isolation_level=None)) as other:
            other.execute("CREATE TRIGGER t AFTER UPDATE ON Users BEGIN UPDATE Users SET n = 9; END")
        _do(execution, "update", "Users", where={"id": 1}, values={"n": 3})
        assert execution._triggered == {"Users"}
    log.close()
    execution.pool.close()
    with suppress(Fault):
        log.rest()


@pytest.mark.parametrize("is_live", [False, True])
def test_the_log_is_made_beside_a_view(is_live: bool, tmp_path: Path):
    """Where a model is a view any table may be what it looks at, but for those of the log."""
    live = ", _model: {live: true}" if is_live else ""
    schema = load_schema(SCHEMA + f"Seen: {{id: {{type: int, pk: true}}, email: str{live}}}\n")
    path = tmp_path / "data.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript(TABLES + "CREATE VIEW Seen AS SELECT id, email FROM Users;")
        database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
        execution = _execution(database, schema)
        log = SQLiteLog(database, lambda: execution.schema, execution.pool.connection)
        reasons = log.prepare(list(schema.models.values()))
        assert reasons["Users"] == "" and (not is_live or reasons["Seen"])
        log.watch()
        assert not step(log).known
        assert _do(execution, "read", "Seen") == []
        other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
        assert log.changed()
        assert keys(log) == {"Users": {1}}
        compared = database._file and database._file.comparisons
        other.execute("CREATE TABLE more (id INTEGER PRIMARY KEY)")
        assert len(_do(execution, "read", "Seen")) == 1
        assert (database._file and database._file.comparisons) != compared
        log.close()
        execution.pool.close()


def test_texts_that_are_ordered_by_code_point(tmp_path: Path):
    """Only those of a column for texts that SQLite compares byte by byte are."""
    path = tmp_path / "data.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        os.chmod(path, 0o600)
        made.execute(
            "CREATE TABLE Users (id INTEGER PRIMARY KEY, a TEXT, b TEXT COLLATE NOCASE, c TEXT COLLATE RTRIM, d, "
            "e INT, f varchar(9) COLLATE binary, g TEXT UNIQUE, h BLOB)"
        )
        made.execute("CREATE VIEW Seen AS SELECT * FROM Users")
    fields = "".join(f"  {name}: str\n" for name in "abcdefgh")
    schema = load_schema(
        f"Users:\n  id: {{type: int, pk: true}}\n{fields}"
        f"Seen:\n  _model: {{read_only: true}}\n  id: {{type: int, pk: true}}\n{fields}"
    )
    execution = _execution(SQLiteDatabase(sa.make_url(f"sqlite:///{path}")), schema)
    found = {name: field.column.by_code_point for name, field in execution.schema.models["Users"].fields.items()}
    assert {name for name, by in found.items() if by} == {"a", "f", "g"}
    assert not any(field.column.by_code_point for field in execution.schema.models["Seen"].fields.values())
    execution.pool.close()


def test_a_snapshot_stays_what_it_is(watched: Watched):
    """It is taken when it is begun, and a writer in a file with a write-ahead log does not wait for it."""
    connection = watched.database.connect()
    watched.other.execute("INSERT INTO Others VALUES (1, 'a')")
    connection.begin_snapshot()
    if watched.other.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        watched.other.execute("INSERT INTO Others VALUES (2, 'b')")
    assert connection.run("SELECT count(*) FROM Others", (), True)[0] == [(1,)]
    connection.rollback()
    watched.other.execute("INSERT OR REPLACE INTO Others VALUES (2, 'b')")
    connection.begin_snapshot()
    assert connection.run("SELECT count(*) FROM Others", (), True)[0] == [(2,)]
    connection.commit()
    connection.close()


#: A program that writes to a file until it is killed, each row in a transaction of its own and sometimes undone.
#: It rests after each: SQLite has no queue for its lock, and two that retake it at once leave it to nobody else.
WRITER = """
import sqlite3, sys, time
other = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
number = int(sys.argv[2])
print("begun", flush=True)
while True:
    number += 1
    other.execute("BEGIN IMMEDIATE")
    other.execute("INSERT OR REPLACE INTO Users VALUES (?, ?, 0)", (number, str(number % 7)))
    other.execute("UPDATE Users SET n = n + 1 WHERE id % 3 = ?", (number % 3,))
    if number % 5 == 0:
        other.execute("DELETE FROM Users WHERE id % 11 = ?", (number % 11,))
    other.execute("ROLLBACK" if number % 4 == 0 else "COMMIT")
    time.sleep(0.002)
"""
#: One that watches a file, and renews its lease, until it is killed.
HOLDER = """
import sys, time
import sqlalchemy as sa
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.schema import load_schema
from zcomm.live.sqlite.log import LEASE, MANY, QUOTA, SQLiteLog, live_facts, live_off_sql, live_sql
schema = load_schema(sys.argv[2])
log = SQLiteLog(SQLiteDatabase(sa.make_url("sqlite:///" + sys.argv[1])), lambda: schema)
log.prepare(list(schema.models.values()))
log.watch()
print("begun", flush=True)
sys.stdin.read()
"""


@contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has begun, killed at the end."""
    running = subprocess.Popen(
        [sys.executable, "-c", source, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        yield running
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()


def read_rows(log: SQLiteLog) -> dict[int, tuple[Any, ...]]:
    return {row[0]: row for row in log.run("SELECT id, email, n FROM Users", ())}


def test_nothing_is_missed_of_programs_that_write_at_once_and_are_killed(watched: Watched):
    """What differs between the snapshots of two steps has been told by its key, whoever wrote and died meanwhile."""
    log = watched.prepared()
    before: dict[int, tuple[Any, ...]] = {}
    steps = told = 0
    with program(WRITER, str(watched.path), "0") as first, program(WRITER, str(watched.path), "100000"):
        until, tended = time.monotonic() + 50, 0.0
        # On a busy machine a step may find little.
        while steps < 30 or told <= 100:
            assert time.monotonic() < until, (steps, told)
            if steps == 15:
                first.send_signal(signal.SIGKILL)
                first.wait()
            try:
                if time.monotonic() - tended > 1:
                    log.tend()
                    tended = time.monotonic()
                changes = log.begin(("Users",))
                after = read_rows(log)
            except Fault as fault:
                # Without a write-ahead log a reader waits for writers, and may not get its turn.
                assert fault.kind in ("busy", "timeout")
                continue
            finally:
                log.end()
            if not changes.known:
                # Those who write have kept it from renewing its lease, and it says so.
                before = after
                continue
            differ = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            found = changes.keys.get("Users", set())
            # Programs that are quick have changed too many.
            if found is not None:
                assert differ <= set(found)
                told += len(found)
            before = after
            steps += 1
    watched.other.execute("PRAGMA busy_timeout = 10000")
    assert watched.other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_that_is_busy_is_watched_as_soon_as_it_is_not(watched: Watched):
    """Another program that writes as the server starts keeps tables from being watched for no longer than that."""
    models = list(watched.schema.models.values())
    watched.other.execute("BEGIN IMMEDIATE")
    reasons = watched.log.prepare(models)
    assert reasons["Users"] == reasons["Seats"] == "another program kept the file from being written to"
    assert watched.log.tend() == {}
    watched.other.execute("COMMIT")
    assert wait_until_blocking(watched.log.tend, "the triggers", timeout=20) == {"Users": "", "Seats": ""}
    watched.log.watch()
    assert not step(watched.log).known
    watched.other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert keys(watched.log) == {"Users": {1}}


def test_nothing_is_logged_while_nobody_watches(watched: Watched):
    """Not before, and not after; and the log is empty then."""
    watched.log.prepare(list(watched.schema.models.values()))
    watched.other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert watched.rows() == 0
    log = watched.prepared()
    watched.other.execute("INSERT INTO Users VALUES (2, 'b', 1)")
    assert watched.rows() == 1
    log.rest()
    watched.other.execute("INSERT INTO Users VALUES (3, 'c', 1)")
    assert watched.other.execute("SELECT count(*) FROM zcomm_changes").fetchone() == (0,)
    log.watch()
    assert not step(log).known
    watched.other.execute("DELETE FROM Users WHERE id = 1")
    assert keys(log) == {"Users": {1}}


def test_a_second_reader_has_a_lease_of_its_own(watched: Watched):
    """Each is told all once; the log has what the slower one has not read, and no more."""
    log = watched.prepared()
    with closing(watched.another()) as second:
        watched.prepared(second)
        step(log)
        for number in range(5):
            watched.other.execute("INSERT INTO Users (email) VALUES (?)", (str(number),))
            step(log)
            log.tend()
        assert watched.rows() == 5
        assert keys(second) == {"Users": {1, 2, 3, 4, 5}}
        second.tend()
        assert watched.rows() <= 1
        log.rest()
        watched.other.execute("DELETE FROM Users WHERE id = 2")
        assert keys(second) == {"Users": {2}}
        second.rest()
        assert watched.rows() == 0


def test_a_reader_that_was_killed_keeps_nobody(watched: Watched):
    """Its lease ends by itself; then the log is the others' alone, who remove what it has left."""
    with program(HOLDER, str(watched.path), SCHEMA):
        watched.other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert live_facts(lambda sql, given: watched.other.execute(sql, given).fetchall(), time.time()).leases[0] > 0
    watched.other.execute("INSERT INTO Users VALUES (2, 'b', 1)")
    assert watched.rows() == 2
    # Time goes by for its lease alone.
    watched.other.execute("UPDATE zcomm_live SET until = until - ?", (LEASE,))
    watched.other.execute("INSERT INTO Users VALUES (3, 'c', 1)")
    assert watched.rows() == 2
    log = watched.prepared()
    log.tend()
    assert watched.rows() == 0
    assert len(live_facts(lambda sql, given: watched.other.execute(sql, given).fetchall(), time.time()).leases) == 1


LAPSES: dict[str, tuple[str, ...]] = {
    "expired": ("UPDATE zcomm_live SET until = CAST(strftime('%s', 'now') AS INTEGER)",),
    "removed": ("DELETE FROM zcomm_live",),
    "of an older copy": ("UPDATE zcomm_live SET mark = 'x'",),
    "log removed": ("DELETE FROM zcomm_changes",),
    "log removed in part": (
        "INSERT INTO Users (email) VALUES ('y'), ('z')",
        "DELETE FROM zcomm_changes WHERE id = (SELECT max(id) - 1 FROM zcomm_changes)",
    ),
    "tables removed": (
        "DROP TABLE zcomm_live",
        "DROP TABLE zcomm_changes",
        "CREATE TABLE zcomm_live (life TEXT PRIMARY KEY, until INTEGER, upto INTEGER, done INTEGER, mark TEXT)",
        "CREATE TABLE zcomm_changes (id INTEGER PRIMARY KEY, model TEXT NOT NULL, key)",
    ),
}


@pytest.mark.parametrize("ways", LAPSES.values(), ids=LAPSES)
def test_a_lease_that_did_not_hold_leaves_everything_unknown(ways: tuple[str, ...], watched: Watched):
    """Once: then all is told again."""
    log, other = watched.prepared(), watched.other
    for way in ways:
        other.execute(way)
    other.execute("INSERT INTO Users VALUES (101, 'a', 1)")
    assert log.changed()
    assert not step(log).known
    other.execute("INSERT INTO Users VALUES (102, 'b', 1)")
    assert log.changed()
    assert keys(log) == {"Users": {102}}
    # Likewise where it is renewed first.
    for way in ways:
        other.execute(way.replace("'y'", "'v'").replace("'z'", "'w'"))
    other.execute("INSERT INTO Users VALUES (203, 'c', 1)")
    log._renewed = float("-inf")
    log.tend()
    assert log.changed()
    assert not step(log).known


def test_tables_of_the_log_that_are_gone_are_made_again(watched: Watched):
    """Until then nobody can write to what is watched; that lasts no longer than a second."""
    log, other = watched.prepared(), watched.other
    other.execute("DROP TABLE zcomm_changes")
    other.execute("DROP TABLE zcomm_live")
    with pytest.raises(sqlite3.OperationalError, match="zcomm_live"):
        other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert log.changed()
    assert not step(log).known
    # SQLite looks at the tables anew for this, and not for what a trigger misses.
    other.execute("SELECT * FROM zcomm_live")
    other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert keys(log) == {"Users": {1}}
    other.execute("DROP TABLE zcomm_changes")
    database = SQLiteDatabase(sa.make_url(f"sqlite:///{watched.path}"))
    execution = _execution(database, watched.schema)
    assert watched.another().prepare(list(watched.schema.models.values()))["Users"] == ""
    other.execute("SELECT * FROM zcomm_changes")
    other.execute("INSERT INTO Users VALUES (2, 'b', 1)")
    execution.pool.close()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_is_set_leaves_everything_unknown(seconds: int, watched: Watched):
    """Also where it is set back before anybody has looked at the lease: others may have taken it for expired."""
    ahead = [0.0]
    watched.log.close()
    watched.log = log = watched.prepared(watched.another(lambda: time.time() + ahead[0]))
    ahead[0] = seconds
    assert log.changed()
    assert not step(log).known
    assert not log.changed()
    ahead[0] = 0.0
    assert log.tend() == {}
    assert log.changed()
    assert not step(log).known
    assert keys(log) == {}


def test_a_lease_outlasts_readers_that_keep_writers_waiting(watched: Watched):
    """Where it cannot be written to the file for now, it holds on as it was."""
    log, other = watched.prepared(), watched.other
    log._renewed = float("-inf")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Fault):
        log.tend()
    other.execute("ROLLBACK")
    other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    other.execute("BEGIN")
    other.execute("SELECT * FROM Users").fetchall()
    with suppress(Fault):
        log.tend()
    other.execute("ROLLBACK")
    assert keys(log) == {"Users": {1}}
    log.tend()
    assert keys(log) == {}


def test_a_step_that_fails_is_told_again(watched: Watched):
    """What it was told is part of the next one, whatever has changed since."""
    log, other = watched.prepared(), watched.other
    other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert log.begin(()).keys == {"Users": {1}}
    with pytest.raises(Fault):
        log.run("SELECT nothing FROM Users", ())
    log.end()
    other.execute("INSERT INTO Users VALUES (2, 'b', 1)")
    assert log.changed()
    assert keys(log) == {"Users": {1, 2}}
    assert keys(log) == {}


def test_a_lease_that_is_lost_during_a_step_is_noticed_after_it(watched: Watched):
    """The end of a step makes nothing known that was not."""
    log, other = watched.prepared(), watched.other
    log.begin(())
    if other.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        other.execute("DELETE FROM zcomm_live")
        other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    assert log.tend() == {}
    log._offset += 100
    log.tend()
    assert log.changed()
    log.end()
    assert not step(log).known
    assert keys(log) == {}


def test_a_lease_is_renewed_between_steps(watched: Watched):
    """Also where each look finds a step under way."""
    log, other = watched.prepared(), watched.other
    left = "SELECT until FROM zcomm_live"
    other.execute("UPDATE zcomm_live SET until = until - 20")
    (before,) = other.execute(left).fetchone()
    log._renewed -= 20
    log.begin(())
    log.tend()
    assert other.execute(left).fetchone() == (before,)
    log.end()
    assert log.begin(()).known
    log.end()
    assert other.execute(left).fetchone()[0] > before


def test_many_changes_are_told_as_many(watched: Watched):
    """A model with more than are told one by one is read anew, and others are not; what passes the length of the log
    leaves everything unknown, and costs the writer no more."""
    log, other = watched.prepared(), watched.other
    numbers = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {})"
    other.execute("INSERT INTO Seats VALUES ('a', 1, 'n')")
    other.execute(f"{numbers.format(MANY + 500)} INSERT INTO Users SELECT x, x, x FROM c")
    assert keys(log) == {"Users": None, "Seats": {("a", 1)}}
    other.execute("UPDATE Seats SET note = 'm'")
    assert keys(log) == {"Seats": {("a", 1)}}
    log.tend()
    for _ in range(QUOTA // MANY + 1):
        other.execute("UPDATE Users SET n = n + 1")
    assert watched.rows() <= QUOTA + 1
    assert not step(log).known
    log.tend()
    other.execute("DELETE FROM Users WHERE id = 1")
    assert keys(log) == {"Users": {1}}
    assert watched.rows() < 10


def test_a_log_that_was_full_is_known_for_it_once_it_has_room_again(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    """What was written meanwhile is in no log: the lease that is renewed before a step has seen that is a new one."""
    monkeypatch.setattr("zcomm.live.sqlite.log.QUOTA", 100)
    log, other = watched.prepared(), watched.other
    rows = "WITH RECURSIVE c(x) AS (SELECT {0} UNION ALL SELECT x + 1 FROM c WHERE x < {0} + 59) SELECT x, x, x FROM c"
    other.execute(f"INSERT INTO Users {rows.format(0)}")
    assert keys(log) == {"Users": {*range(60)}}
    other.execute(f"INSERT INTO Users {rows.format(100)}")
    log.tend()
    other.execute("INSERT INTO Users VALUES (1000, 'last', 1)")
    assert not step(log).known
    other.execute("DELETE FROM Users WHERE id = 1")
    assert keys(log) == {"Users": {1}}


DDL: dict[str, tuple[str, ...]] = {
    "triggers removed": ("DROP TRIGGER {0}", "INSERT INTO Users VALUES (1, 'a', 1)"),
    "in a transaction": ("BEGIN", "DROP TRIGGER {0}", "INSERT INTO Users VALUES (1, 'a', 1)", "{1}", "COMMIT"),
    "table made anew": (
        "DROP TABLE Users",
        "CREATE TABLE Users (id INTEGER PRIMARY KEY, email TEXT UNIQUE, n INT)",
        "INSERT INTO Users VALUES (1, 'a', 1)",
    ),
    "table exchanged": (
        "CREATE TABLE made (id INTEGER PRIMARY KEY, email TEXT UNIQUE, n INT)",
        "INSERT INTO made VALUES (1, 'a', 1)",
        "ALTER TABLE Users RENAME TO older",
        "ALTER TABLE made RENAME TO Users",
    ),
    "column renamed and back": (
        "ALTER TABLE Users RENAME COLUMN email TO mail",
        "INSERT INTO Users VALUES (1, 'a', 1)",
        "ALTER TABLE Users RENAME COLUMN mail TO email",
    ),
    "another index": (
        "CREATE UNIQUE INDEX u ON Users (n)",
        "INSERT INTO Users VALUES (1, 'a', 1)",
        "INSERT OR REPLACE INTO Users VALUES (2, 'b', 1)",
    ),
    "a trigger that ignores": (
        "CREATE TRIGGER x AFTER INSERT ON Users BEGIN SELECT RAISE(/* */ IGNORE); END",
        "INSERT INTO Users VALUES (1, 'a', 1)",
    ),
}


@pytest.mark.parametrize("statements", DDL.values(), ids=DDL)
def test_tables_that_others_change_are_read_anew(statements: tuple[str, ...], watched: Watched):
    """At once, until the triggers are as they should be again; a second later they are."""
    log, other = watched.prepared(), watched.other
    triggers = other.execute(
        "SELECT name, sql FROM sqlite_master "
        "WHERE type = 'trigger' AND tbl_name = 'Users' AND sql LIKE '% AFTER INSERT %'"
    ).fetchone()
    for statement in statements:
        other.execute(statement.format(*triggers))
    assert log.changed()
    assert is_anew(log)
    other.execute("INSERT INTO Users VALUES (11, 'x', 11)")
    assert log.changed()
    changes = step(log)
    assert not changes.known or changes.keys in ({"Users": None}, {"Users": {11}})
    assert log.tend() == {}
    assert is_anew(log) or not log.changed()
    other.execute("INSERT INTO Users VALUES (12, 'y', 12)")
    other.execute("UPDATE OR REPLACE Users SET email = 'y' WHERE id = 11")
    found = keys(log)["Users"]
    assert found == {11, 12} or (found is None and "ignores" in statements[0].replace("IGNORE", "ignores"))
    triggers = other.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'zcomm_live_%'")
    assert triggers.fetchone()[0] <= 12


def test_a_column_goes_a_second_after_its_index(watched: Watched):
    """SQLite keeps columns that a trigger names, and none names what is not unique any more."""
    log, other = watched.prepared(), watched.other
    other.execute("CREATE UNIQUE INDEX u ON Users (n)")
    step(log)
    log.tend()
    other.execute("DROP INDEX u")
    with pytest.raises(sqlite3.OperationalError, match="error in trigger zcomm_live_"):
        other.execute("ALTER TABLE Users DROP COLUMN n")
    assert is_anew(log)
    assert log.tend() == {}
    other.execute("ALTER TABLE Users DROP COLUMN n")
    assert is_anew(log)
    other.execute("INSERT INTO Users VALUES (1, 'a')")
    assert keys(log) == {"Users": {1}}


def test_triggers_of_an_older_version_go_at_the_start(watched: Watched):
    """Not before: the older one may still run. They are nobody else's, and change no row."""
    log, other = watched.prepared(), watched.other
    names = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'zcomm_live_%' ORDER BY 1"
    ours = other.execute(names).fetchall()
    (sql,) = other.execute("SELECT sql FROM sqlite_master WHERE name = ?", ours[0]).fetchone()
    older = sql.replace("zcomm_live_1_", "zcomm_live_0_", 1)
    other.execute(older)
    assert is_live_trigger(older.split()[2].encode(), older.encode())
    assert is_anew(log)
    log._looked = float("-inf")
    log.tend()
    assert len(other.execute(names).fetchall()) == len(ours) + 1
    with closing(watched.another()) as another:
        another.prepare(list(watched.schema.models.values()))
    assert other.execute(names).fetchall() == ours


def test_tables_that_others_change_are_compared_before_the_next_step(watched: Watched):
    """The step that meets them fails once, and what it was told is told again."""
    database = SQLiteDatabase(sa.make_url(f"sqlite:///{watched.path}"))
    execution = _execution(database, watched.schema)
    with closing(SQLiteLog(database, lambda: execution.schema, compare=execution.look_again)) as log:
        watched.prepared(log)
        watched.other.execute("ALTER TABLE Users ADD COLUMN more TEXT")
        watched.other.execute("INSERT INTO Users VALUES (1, 'a', 1, 'm')")
        log.begin(("Users",))
        with pytest.raises(Fault) as caught:
            log.run("SELECT id FROM Users", ())
        assert caught.value.kind == "migrated"
        log.end()
        changes = log.begin(("Users",))
        assert not changes.known or changes.keys["Users"] is None
        assert log.run("SELECT id FROM Users", ()) == [(1,)]
        log.end()
        assert not log.changed()
    execution.pool.close()


def test_a_table_that_is_gone_is_not_watched_any_more(watched: Watched):
    """The others are; and it is watched again once it is there again."""
    log, other = watched.prepared(), watched.other
    other.execute("ALTER TABLE Seats RENAME TO Places")
    assert is_anew(log)
    assert log.tend() == {"Seats": "it is gone"}
    step(log)
    other.execute("INSERT INTO Users VALUES (2, 'b', 1)")
    assert keys(log) == {"Users": {2}}
    other.execute("ALTER TABLE Places RENAME TO Seats")
    # Whatever finds it out, it is told.
    other.execute("DELETE FROM zcomm_live")
    assert not step(log).known
    assert log.tend() == {"Seats": ""}
    step(log)
    other.execute("INSERT INTO Seats VALUES ('a', 1, 'n')")
    assert keys(log) == {"Seats": {("a", 1)}}


def test_a_copy_that_is_restored_leaves_everything_unknown(watched: Watched, tmp_path: Path):
    """By SQLite itself, into the file that is open: as it was before the last renewal of the lease, or without one."""
    log, other = watched.prepared(), watched.other
    other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        other.backup(copy)
        log._renewed = float("-inf")
        log.tend()
        assert step(log).known
        copy.backup(other)
    assert log.changed()
    assert not step(log).known
    other.execute("INSERT INTO Users VALUES (2, 'b', 1)")
    assert keys(log) == {"Users": {2}}


@pytest.mark.skipif(not which("sqlite3"), reason="there is no sqlite3 to run")
def test_a_dump_goes_into_another_file(watched: Watched, tmp_path: Path):
    """With the triggers and what was logged: there all is unknown at first, and logged then as here."""
    watched.prepared()
    watched.other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    dump = subprocess.run(["sqlite3", str(watched.path), ".dump"], capture_output=True, text=True, check=True).stdout
    path = tmp_path / "other.sqlite3"
    subprocess.run(["sqlite3", str(path)], input=dump, capture_output=True, text=True, check=True)
    os.chmod(path, 0o600)
    there = Watched(path, watched.schema)
    log = there.prepared()
    subprocess.run(["sqlite3", str(path), "REPLACE INTO Users VALUES (2, 'a', 1)"], check=True)
    assert keys(log) == {"Users": {1, 2}}
    there.close()


def test_why_a_table_is_not_watched(tmp_path: Path):
    """It says so, and what can be watched is; nothing fails."""
    path = tmp_path / "data.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        os.chmod(path, 0o600)
        made.executescript(
            "CREATE TABLE Plain (id INTEGER PRIMARY KEY, a TEXT); CREATE VIEW Seen AS SELECT * FROM Plain;"
            "CREATE VIRTUAL TABLE Words USING fts5(id, a); CREATE TABLE Real (id REAL PRIMARY KEY, a TEXT);"
            "CREATE TABLE Bytes (id BLOB PRIMARY KEY, a TEXT)"
        )
    schema = load_schema(
        "".join(
            f"{name}:\n  _model: {{live: true}}\n  id: {{type: {kind}, pk: true}}\n"
            for name, kind in {"Plain": "int", "Seen": "int", "Words": "str", "Real": "int", "Bytes": "bytes"}.items()
        )
    )
    database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
    with closing(SQLiteLog(database, lambda: schema)) as log:
        models = list(schema.models.values())
        assert log.prepare(models) == {
            "Plain": "",
            "Seen": "it is a view",
            "Words": "it is a virtual table",
            "Real": "it has a key that is kept as a floating-point number",
            "Bytes": "it has a key that is kept as bytes",
        }
        assert log.key_form(schema.models["Bytes"]) == "has a key that is kept as bytes"
        log.watch()
        assert not step(log).known
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        made.executescript("DROP TABLE zcomm_changes; CREATE TABLE zcomm_changes (a)")
    with closing(SQLiteLog(database, lambda: schema)) as log:
        assert log.prepare(models)["Plain"] == "there is a table zcomm_changes that is not zComm's; rename it"
        log.watch()
        assert step(log) == Changes({})
        assert not log.changed()
        assert log.tend() == {}
    with closing(sqlite3.connect(path, isolation_level=None)) as made:
        made.executescript("DROP TABLE zcomm_changes")
    with closing(SQLiteLog(database, lambda: schema)) as log:
        assert log.prepare(models)["Plain"] == ""
    with closing(SQLiteLog(SQLiteDatabase(sa.make_url(f"sqlite:///{path}?mode=ro")), lambda: schema)) as log:
        reasons = log.prepare(models)
        assert reasons["Plain"] == "the file cannot be written to, and so no triggers can be made"
        log.watch()
        log.begin(("Plain",))
        assert log.run("SELECT id FROM Plain", ()) == []
        log.end()
        log.rest()


def test_a_person_turns_it_on_and_off(watched: Watched):
    """The statements do what the server does, which has nothing to do then; and they take all away again."""
    other = watched.other

    def ask(sql: str, given: Sequence[Any]) -> list[tuple[Any, ...]]:
        return other.execute(sql, given).fetchall()

    def schema() -> list[Any]:
        return other.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()

    before = schema()
    for name in ("Users", "Seats"):
        other.executescript(live_sql(watched.schema.models[name], ask))
    made = schema()
    assert live_sql(watched.schema.models["Users"], ask) == ""
    watched.prepared()
    assert schema() == made
    facts = live_facts(ask, time.time())
    assert (facts.rows, len(facts.leases), set(facts.tables)) == (1, 1, {"Users", "Seats"})
    other.executescript(live_off_sql(ask))
    assert schema() == before
    assert live_facts(ask, time.time()) == (0, (), {})


def test_keys_that_cannot_be_named_are_told_as_many(watched: Watched):
    """They do no harm: no write fails because of them."""
    log, other = watched.prepared(), watched.other
    for row, number in ((None, 1), (b"a", 1), ("a", 1.5), ("a\0b", 1), ("x" * 2000, 1), ("a", b"\xff")):
        other.execute("INSERT INTO Seats VALUES (?, ?, 'n')", (row, number))
        assert keys(log) == {"Seats": None}
    other.execute("INSERT INTO Seats VALUES (CAST(x'ff' AS TEXT), 1, 'n')")
    assert keys(log) == {"Seats": None}
    other.execute("UPDATE Seats SET note = 'm' WHERE number = 1 AND \"row\" IS NULL")
    assert keys(log) == {"Seats": None}


def test_a_program_that_trusts_no_schema_can_write(watched: Watched):
    """Nothing that the triggers call is kept from them then."""
    log, other = watched.prepared(), watched.other
    other.execute("PRAGMA trusted_schema = OFF")
    other.execute("PRAGMA cell_size_check = ON")
    other.execute("INSERT INTO Users VALUES (1, 'a', 1)")
    other.execute("INSERT INTO Seats VALUES ('a', 1, 'n')")
    assert keys(log) == {"Users": {1}, "Seats": {("a", 1)}}


def test_a_write_looks_at_few_rows(watched: Watched):
    """What is unique is looked up in its index, also where that is one of some rows, or of an expression."""
    other = watched.other
    other.execute("CREATE UNIQUE INDEX u ON Users (n) WHERE email > 'a'")
    other.execute("CREATE UNIQUE INDEX v ON Users (lower(email) DESC)")
    watched.prepared()
    numbers = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000)"
    other.execute(f"{numbers} INSERT INTO Users SELECT x, 'b' || x, x FROM c")
    looks = [0]

    def look() -> int:
        looks[0] += 1
        return 0

    other.set_progress_handler(look, 100)
    other.execute("INSERT INTO Users VALUES (10000, 'x', 10000)")
    other.execute("UPDATE Users SET email = 'z', n = 10001 WHERE id = 10000")
    other.execute("INSERT OR REPLACE INTO Users VALUES (10002, 'Z', 5)")
    other.execute("DELETE FROM Users WHERE id = 1")
    assert looks[0] < 50


def test_keys_of_the_log_find_their_rows(watched: Watched):
    """By an index, and the columns bring what the log has."""
    log, other = watched.prepared(), watched.other
    for name, rows in {
        "Users": [(2**62, "a", 1), (-1, "b", 1), (5, "c", 1)],
        "Seats": [("a,'b", 1, "n"), ('"é\\', -(2**62), "n"), ("5", 5, "n")],
    }.items():
        for row in rows:
            other.execute(f"INSERT INTO {name} VALUES (?, ?, ?)", row)
        form = log.key_form(watched.schema.models[name])
        assert isinstance(form, KeyForm)
        told = keys(log)[name]
        sql = f"SELECT {', '.join(form.columns)} FROM {name} WHERE {form.condition}"
        found = other.execute(sql, (form.encode(list(told)),)).fetchall()
        assert {row[0] if len(row) == 1 else row for row in found} == told
        assert len(told) == 3
        plan = [row[3] for row in other.execute(f"EXPLAIN QUERY PLAN {sql}", (form.encode(list(told)),))]
        assert any(each.startswith(f"SEARCH {name} USING ") for each in plan)


def test_a_file_that_cannot_be_opened_for_a_while_is_a_fault_and_no_more(watched: Watched):
    """Each attempt says so, whatever was attempted before; with the file there again everything is read anew."""
    log = watched.prepared()
    away = watched.path.with_name("away")
    watched.path.rename(away)
    for _ in range(3):
        with pytest.raises(Fault):
            step(log)
        log.end()
    away.rename(watched.path)
    assert not step(log).known
