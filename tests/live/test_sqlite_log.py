"""The changes of a SQLite database, as live queries are told of them: whoever writes, and however."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.execution import Execution, Job
from zcomm.data.models import Schema
from zcomm.data.requests import Command, make_plan
from zcomm.data.schema import load_schema
from zcomm.live.log import Changes
from zcomm.live.sqlite.log import SQLiteLog

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
        "CREATE UNIQUE INDEX v ON t (abs(c), \"a\" || 'x,(' || b) WHERE b IS NOT NULL",
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
        return pick.choice(
            [None, 0, 1, 2, 3, 4, 1, 2, 3, -1, 1.0, 1.5, "a", "A", "b", "1", "a\0b", b"a", b"\xff", "é'"]
        )

    def quoted(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    way = pick.choice(["", "", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"])
    some = pick.sample(list(columns), pick.randint(1, len(columns)))
    where, given = pick.choice(
        [("", []), (f"WHERE {quoted(pick.choice(list(columns)))} IS ?", [value()])]
        + [(f"WHERE {quoted(pick.choice(list(columns)))} > ?", [value()])]
    )
    kind = pick.choice(["insert"] * 5 + ["update"] * 4 + ["delete"] + ["upsert"] * 2)
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
        if outcomes[0] == ("datatype mismatch", True):
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
            changes = step(log)
            assert changes.known
            told = changes.keys.get("T", set())
            if told is not None:
                named += 1
                assert differ <= set(told), (sql, given)
            before = after
        assert named > ROUNDS // 20
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
