"""Tables of a SQLite file that others change while a store serves them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rows import rows_of_a_test
from twisted.logger import capturedLogs, formatEvent

from zcomm.data.drivers.driver import Connection, Fault
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import CommandError, Invalid, Unavailable

SCHEMA = """
Parents: {id: {type: int, pk: true}, name: str}
Notes:
  id: {type: int, pk: true}
  a: str
  d: decimal
  at: datetime
  code: {type: str, unique: true}
  name: {type: str, required: true}
  parent: {type: int, fk: Parents.id}
Others: {id: {type: int, pk: true}, a: str}
"""
COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "a": "varchar(20)",
    "d": "TEXT",
    "at": "TEXT",
    "code": "TEXT UNIQUE",
    "name": "TEXT NOT NULL",
    "parent": "INTEGER REFERENCES Parents(id)",
}
ROW = {"a": "0099", "d": "1234567890.12345678901", "at": "2024-05-06T07:08:09Z", "code": "c", "name": "n", "parent": 1}


def rebuilt(**changes: str | None) -> list[str]:
    """The statements of a migration tool that makes a table anew, with other columns."""
    columns = {name: kind for name, kind in (COLUMNS | changes).items() if kind is not None}
    kept = ", ".join(name for name, kind in columns.items() if " AS (" not in kind)
    return [
        f"CREATE TABLE made ({', '.join(map(' '.join, columns.items()))})",
        f"INSERT INTO made ({kept}) SELECT {kept} FROM Notes",
        "DROP TABLE Notes",
        "ALTER TABLE made RENAME TO Notes",
    ]


VIEW = [
    "ALTER TABLE Notes RENAME TO Base",
    "CREATE VIEW Notes AS SELECT * FROM Base",
    "CREATE TRIGGER put INSTEAD OF UPDATE ON Notes BEGIN UPDATE Base SET a = new.a WHERE id = old.id; END",
    "CREATE TRIGGER gone INSTEAD OF DELETE ON Notes BEGIN DELETE FROM Base WHERE id = old.id; END",
    "CREATE TRIGGER made INSTEAD OF INSERT ON Notes BEGIN INSERT INTO Base (name) VALUES (new.name); END",
]
#: By name, what others do, and of what the log speaks; nothing where the table can be served as before.
MIGRATIONS: dict[str, tuple[list[str], str]] = {
    "decimal to a number": (rebuilt(d="decimal"), "d is declared otherwise"),
    "text to a number": (rebuilt(a="INTEGER"), "a is declared otherwise"),
    "text to nothing": (rebuilt(a=""), "a is declared otherwise"),
    "datetime to a number": (rebuilt(at="INTEGER"), "at is declared otherwise"),
    "key to text": (rebuilt(id="TEXT PRIMARY KEY"), "id is declared otherwise"),
    "key to nothing": (rebuilt(id="INTEGER"), "id is declared otherwise"),
    "not unique": (rebuilt(code="TEXT"), "it is unique in the schema"),
    "unique in part": (
        [*rebuilt(code="TEXT"), "CREATE UNIQUE INDEX u ON Notes (code) WHERE a IS NULL"],
        "an index on some of its rows",
    ),
    "not required": (rebuilt(name="TEXT"), "name may be null now"),
    "no reference": (rebuilt(parent="INTEGER"), "it points to Parents.id in the schema"),
    "replacing": (rebuilt(code="TEXT UNIQUE ON CONFLICT REPLACE"), "what can be written is otherwise"),
    "generated": (rebuilt(a="TEXT AS (code)"), "a is declared otherwise"),
    "column gone": (rebuilt(a=None), "a is gone"),
    "column renamed": (["ALTER TABLE Notes RENAME COLUMN a TO b"], "a is gone"),
    "table gone": (["DROP TABLE Notes"], "it is gone"),
    "table renamed": (["ALTER TABLE Notes RENAME TO Older"], "it is gone"),
    "view": (VIEW, "it is a view now"),
    "longer text": (rebuilt(a="varchar(40)", at="varchar(30)"), ""),
    "more required": (rebuilt(a="TEXT NOT NULL"), ""),
    "a column more": (["ALTER TABLE Notes ADD COLUMN more TEXT DEFAULT 'x'"], ""),
    "indexes": (["CREATE INDEX i ON Notes (a)", "CREATE UNIQUE INDEX ui ON Notes (a, d)"], ""),
    "another table": (["CREATE TABLE made (x REFERENCES Notes(id))", "DROP TABLE made"], ""),
    "statistics": (["ANALYZE"], ""),
    "vacuum": (["VACUUM"], ""),
    "a trigger that writes": (
        ["CREATE TRIGGER t AFTER UPDATE ON Notes BEGIN INSERT INTO Others (a) VALUES (new.a); END"],
        "",
    ),
}


async def _outcomes(store: Store) -> list[Any]:
    """What comes of each kind of request, with the text of an error."""
    asked: list[Callable[[], Any]] = [
        lambda: store.update(1, "Notes", {"id": 1}, {"d": ROW["d"], "a": "0099"}),
        lambda: store.update(1, "Notes", {"id": 1}, {"a": "0099"}, idempotency_key="k"),
        lambda: store.upsert(1, "Notes", ROW, ["code"]),
        lambda: store.create(1, "Notes", {"name": "m", "a": "0", "code": "o"}),
        lambda: store.delete(1, "Notes", {"code": "o"}),
        lambda: store.read(1, "Notes", {"a": "0099"}),
    ]
    found = []
    for ask in asked:
        try:
            found.append(await ask())
        except CommandError as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest_twisted.ensureDeferred
async def test_contact_a_migration_beside_a_store(journal: str, tmp_path: Path, make_store: Callable[..., Store]):
    """Tables that are not what they were are unavailable by themselves, and nothing is written; others go on."""
    path = tmp_path / "data.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, rows_of_a_test() as row:
        other.execute(f"PRAGMA journal_mode = {journal}")
        other.execute("PRAGMA synchronous = OFF")
        other.execute("CREATE TABLE Parents (id INTEGER PRIMARY KEY, name TEXT)")
        other.execute("INSERT INTO Parents VALUES (1, 'p')")
        other.execute("CREATE TABLE Others (id INTEGER PRIMARY KEY, a TEXT)")
        columns = ", ".join(map(" ".join, COLUMNS.items()))
        fresh = [
            f"CREATE TABLE Notes ({columns})",
            f"INSERT INTO Notes ({', '.join(ROW)}) VALUES (?, ?, '2024-05-06 07:08:09', ?, ?, ?)",
        ]

        def again() -> None:
            if other.in_transaction:
                other.execute("ROLLBACK")
            there = other.execute("SELECT type, name FROM sqlite_master WHERE name IN ('Notes', 'Base', 'Older')")
            for kind, name in there.fetchall():
                other.execute(f"DROP {kind} {name}")
            other.execute(fresh[0])
            other.execute(fresh[1], [value for name, value in ROW.items() if name != "at"])

        again()
        store = make_store(f"sqlite:///{path}", load_schema(SCHEMA), threads=2)
        await store.start()
        usual = await _outcomes(store)
        assert [type(each) for each in usual] == [dict, dict, dict, dict, dict, list], usual
        # Each takes many writes to the disk.
        for name, (statements, reason) in list(MIGRATIONS.items())[:: 1 if journal == "wal" else 5]:
            with row(name):
                again()
                assert await store.read(1, "Notes", {"a": "0099"}), "put back"
                if "VACUUM" not in statements:
                    other.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    other.execute(statement)
                if other.in_transaction:
                    other.execute("COMMIT")
                before = list(other.iterdump())
                with capturedLogs() as logged:
                    store._complaints._last.clear()
                    found = await _outcomes(store)
                    if not reason:
                        # A key is used once.
                        assert [str(each)[:9] for each in found] == [str(each)[:9] for each in usual]
                        continue
                    assert {str(each)[:47] for each in found} == {"Unavailable: The table of Notes is gone or is n"}
                assert any(reason in (formatEvent(event) or "") for event in logged), logged
                assert [line for line in other.iterdump() if "zcomm" not in line] == [
                    line for line in before if "zcomm" not in line
                ]
                assert (await store.create(1, "Others", {"a": "0012"}))["a"] == "0012"


@pytest_twisted.ensureDeferred
async def test_contact_a_trigger_that_a_table_gets_later(tmp_path: Path, make_store: Callable[..., Store]):
    """It is known at the first write: rows come as it leaves them, and of a row that it takes nothing is left."""
    store = make_store(f"sqlite:///{tmp_path}/data.sqlite3", load_schema("Notes: {id: {type: int, pk: true}, a: str}"))
    await store.start()
    assert (await store.create(1, "Notes", {"a": "x"}))["a"] == "x"
    with closing(sqlite3.connect(tmp_path / "data.sqlite3", isolation_level=None)) as other:
        other.execute("CREATE TRIGGER t AFTER INSERT ON Notes BEGIN UPDATE Notes SET a = 'made' WHERE id = new.id; END")
        assert (await store.create(1, "Notes", {"a": "y"}))["a"] == "made"
        other.execute("CREATE TABLE log (a)")
        other.execute(
            "CREATE TRIGGER take BEFORE INSERT ON Notes BEGIN INSERT INTO log VALUES (new.a); SELECT RAISE(IGNORE); END"
        )
        with pytest.raises(Invalid, match="did not store the row"):
            await store.create(1, "Notes", {"a": "z"})
        assert other.execute("SELECT * FROM log").fetchall() == []
        other.execute("DROP TRIGGER take")
        other.execute("DROP TRIGGER t")
        assert (await store.create(1, "Notes", {"a": "last"}))["a"] == "last"


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest_twisted.ensureDeferred
async def test_contact_no_write_meets_tables_that_changed_meanwhile(
    journal: str, tmp_path: Path, make_store: Callable[..., Store]
):
    """However writes and migrations fall together: none goes into a table that is not the one of the start."""
    path = tmp_path / "data.sqlite3"
    made = "CREATE TABLE Notes (id INTEGER PRIMARY KEY, a {kind})"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=20)) as other:
        other.execute(f"PRAGMA journal_mode = {journal}")
        other.execute("PRAGMA synchronous = OFF")
        other.execute(made.format(kind="TEXT"))
        store = make_store(f"sqlite:///{path}", load_schema("Notes: {id: {type: int, pk: true}, a: str}"), threads=3)
        await store.start()
        kept: list[int] = []
        wrong: list[Any] = []
        ended, written = threading.Event(), threading.Event()

        def migrate() -> None:
            try:
                for number in range(24):
                    other.execute("BEGIN IMMEDIATE")
                    rows = other.execute("SELECT a FROM Notes").fetchall()
                    (wrong if number % 2 else kept).extend(rows)
                    other.execute("DROP TABLE Notes")
                    other.execute(made.format(kind="TEXT" if number % 2 else "INTEGER"))
                    other.execute("COMMIT")
                    written.clear()
                    written.wait(10)
            finally:
                ended.set()

        thread = threading.Thread(target=migrate)
        thread.start()
        acknowledged = 0
        while not ended.is_set():
            tries = [store.create(each, "Notes", {"a": "0099"}) for each in range(3)]
            for each in tries:
                try:
                    assert (await each)["a"] == "0099"
                    acknowledged += 1
                except Unavailable:
                    pass
                written.set()
        thread.join()
        kept.extend(other.execute("SELECT a FROM Notes").fetchall())
        assert wrong == []
        assert len(kept) == acknowledged > 0


@pytest_twisted.ensureDeferred
async def test_contact_a_table_that_a_trigger_writes_to_goes_and_comes_back(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """A change that failed without it is made again once it is there, by the connection that failed, too."""
    path = tmp_path / "t.sqlite3"
    store = make_store(f"sqlite:///{path}", load_schema(SCHEMA))
    await store.start()
    await store.create(1, "Notes", {"name": "n"})
    change = "UPDATE Notes SET a = ? WHERE id = 1"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, store._pool.connection() as first:
        with store._pool.connection() as second:
            other.execute("CREATE TABLE log (a)")
            other.execute("CREATE TRIGGER t AFTER UPDATE ON Notes BEGIN INSERT INTO log VALUES (new.a); END")

            def outcomes(connection: Connection, sql: str, *parameters: str) -> list[int | str]:
                found: list[int | str] = []
                for _ in range(4):
                    try:
                        found.append(connection.run(sql, parameters, sql.startswith("SELECT"))[1])
                    except Fault as fault:
                        found.append(fault.kind)
                    connection.rollback()
                    if found[-1] == "migrated":
                        store.execution.look_again()
                return found

            assert outcomes(second, change, "1")[-1] == outcomes(first, change, "1")[-1] == 1
            other.execute("DROP TABLE log")
            assert outcomes(first, change, "2")[-1] == "refused"
            other.execute("CREATE TABLE log (a)")
            outcomes(second, "SELECT 1 FROM Notes")
            assert outcomes(first, change, "3")[-1] == 1


@pytest_twisted.ensureDeferred
async def test_contact_the_table_of_idempotency_keys_goes(stores: list[Store]):
    """A copy that is put back may have none: it is made again, with the first request that needs it."""
    with rows_of_a_test() as row:
        for store in stores:
            with row(store.url):
                for turn in ("first", "second"):
                    values = {"name": turn}
                    made = await store.create(1, "Teams", values, idempotency_key=turn)
                    assert await store.create(1, "Teams", values, idempotency_key=turn) == made
                    with store._execution.pool.connection() as connection:
                        connection.run("DROP TABLE zcomm_idempotency", (), False)
                    # Many at once, and the sweep of old ones.
                    names = [f"{turn} {number}" for number in range(4)]
                    more = [store.create(name, "Teams", {"name": name}, idempotency_key=name) for name in names]
                    assert len({(await each)["id"] for each in more}) == 4
                    await store._sweep()
                    assert (await store.read(1, "Teams", {"name": turn}))[0] == made
