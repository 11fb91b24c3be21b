"""SQLite files that others made, hold open, move and remove while a store serves them."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
import pytest_twisted
from support.rows import rows_of_a_test
from twisted.logger import capturedLogs, formatEvent

from zcomm.data.drivers import open_database
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import ConfigError, Invalid, TooBusy, Unavailable

NOTES = "Notes: {id: {type: int, pk: true}, text: str, key: {type: str, unique: true}}"


@contextmanager
def other_program(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of another program, in autocommit."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _remove(place: Path) -> None:
    for path in place.glob("*.sqlite3*"):
        path.unlink()


def _remove_the_file_alone(place: Path) -> None:
    (place / "data.sqlite3").unlink()


def _replace_beside_its_log(place: Path) -> None:
    (place / "older").rename(place / "data.sqlite3")


def _replace_without_log(place: Path) -> None:
    _remove(place)
    shutil.copy(place / "older", place / "data.sqlite3")


def _move_away(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))


def _rename(place: Path) -> None:
    (place / "data.sqlite3").rename(place / "renamed.sqlite3")


def _remove_the_log(place: Path) -> None:
    (place / "data.sqlite3-wal").unlink()


def _remove_the_index_of_the_log(place: Path) -> None:
    (place / "data.sqlite3-shm").unlink()


def _make_an_empty_one(place: Path) -> None:
    _remove(place)
    with other_program(place / "data.sqlite3") as other:
        other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)")


def _hide_behind_a_link(place: Path) -> None:
    (place / "data.sqlite3").unlink()
    (place / "data.sqlite3").symlink_to(place / "older")


ASTRAY: dict[Callable[[Path], None], str] = {
    _remove: "data.sqlite3 was removed or moved; put it back",
    _remove_the_file_alone: "data.sqlite3 was removed or moved; put it back",
    _replace_beside_its_log: "data.sqlite3 was replaced, and beside it is the log of the file before; stop zComm, move",
    _replace_without_log: "data.sqlite3 was replaced by another file; restart zComm",
    _move_away: "data.sqlite3 was removed or moved; put it back",
    _rename: "data.sqlite3 was removed or moved; put it back",
    _remove_the_log: "data.sqlite3-wal was removed or replaced",
    _remove_the_index_of_the_log: "data.sqlite3-shm was removed or replaced",
    _make_an_empty_one: "data.sqlite3 was replaced by another file; restart zComm",
    _hide_behind_a_link: "data.sqlite3 was replaced, and beside it",
}


@pytest_twisted.ensureDeferred
async def test_contact_r11_a35_a_file_that_is_gone_takes_no_write(tmp_path: Path, make_store: Callable[..., Store]):
    """No write is acknowledged that is not in the file at the path, however that went, and the log says so once."""
    schema = load_schema(NOTES)
    with rows_of_a_test() as row:
        for number, (astray, says) in enumerate(ASTRAY.items()):
            with row(astray.__name__):
                place = tmp_path / str(number)
                place.mkdir()
                store = make_store(f"sqlite:///{place}/data.sqlite3", schema, deadline=0.5)
                await store.start()
                await store.create(1, "Notes", {"text": "kept"})
                with other_program(place / "data.sqlite3") as source, other_program(place / "older") as older:
                    source.backup(older)
                await store.create(1, "Notes", {"text": "later"})
                assert await store.check() is True
                astray(place)
                with capturedLogs() as logged:
                    # Neither a fresh answer nor a read makes the check believe that all is well.
                    assert await store.check() is False
                    for write in (
                        store.create(1, "Notes", {"text": "lost"}),
                        store.create(1, "Notes", {"text": "lost"}, idempotency_key="k"),
                        store.update(1, "Notes", 1, {"text": "lost"}),
                        store.upsert(1, "Notes", {"key": "b", "text": "lost"}),
                        store.delete(1, "Notes", 1),
                    ):
                        with pytest.raises(Unavailable, match="does not answer"):
                            await write
                    assert await store.check() is False
                lines = [formatEvent(event) for event in logged]
                assert len(lines) == 1, lines
                assert says in lines[0]
                await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_r11_a35_a_file_that_is_back_is_served_again(tmp_path: Path, make_store: Callable[..., Store]):
    """A directory that is moved away and back again costs nothing that was acknowledged."""
    place = tmp_path / "place"
    place.mkdir()
    store = make_store(f"sqlite:///{place}/data.sqlite3", load_schema(NOTES), deadline=0.5)
    await store.start()
    await store.create(1, "Notes", {"text": "before"})
    place.rename(tmp_path / "away")
    for _ in range(3):
        with pytest.raises(Unavailable):
            await store.create(1, "Notes", {"text": "meanwhile"})
    with pytest.raises(Unavailable):
        await store.read(1, "Notes")
    assert await store.check() is False
    (tmp_path / "away").rename(place)
    assert await store.check() is True
    await store.create(1, "Notes", {"text": "after"})
    await store.stop()
    with other_program(place / "data.sqlite3") as other:
        assert [text for (text,) in other.execute("SELECT text FROM Notes")] == ["before", "after"]


@pytest_twisted.ensureDeferred
async def test_contact_r11_what_is_there_at_the_next_start_is_served(tmp_path: Path, make_store: Callable[..., Store]):
    """A stopped store asks for no file that it had before, and makes one where there is none."""
    path = tmp_path / "data.sqlite3"
    store = make_store(f"sqlite:///{path}", load_schema(NOTES))
    for _ in range(2):
        await store.start()
        assert (await store.create(1, "Notes", {"text": "first"}))["id"] == 1
        await store.stop()
        _remove(tmp_path)
    await store.start()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest_twisted.ensureDeferred
async def test_contact_r11_a_write_into_a_file_that_went_meanwhile_is_not_acknowledged(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """A file that goes between the write and its answer may have kept the write or not: nobody is told that it did."""
    # The trigger is one connection's: there is no other.
    store = make_store(f"sqlite:///{tmp_path}/data.sqlite3", load_schema(NOTES), connections=1)
    await store.start()
    with store._pool.connection() as connection:
        # A write of the table takes the file away, as somebody could at that moment.
        connection._raw.create_function("vanish", 0, lambda: (tmp_path / "data.sqlite3").unlink())  # type: ignore[attr-defined]
        connection.run("CREATE TEMP TRIGGER away AFTER INSERT ON Notes BEGIN SELECT vanish(); END", (), False)
    with pytest.raises(Unavailable, match="may or may not have been made") as caught:
        await store.create(1, "Notes", {"text": "lost"})
    assert caught.value.retryable is False


@pytest_twisted.ensureDeferred
async def test_contact_f30_a_file_keeps_its_journal(tmp_path: Path, make_store: Callable[..., Store]):
    """A file that is there is served in the mode that it has, also while another program reads in it."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)")
        other.executemany("INSERT INTO Notes (text) VALUES (?)", [("a",), ("b",)])
        reading = other.execute("SELECT * FROM Notes")
        reading.fetchone()
        store = make_store(f"sqlite:///{path}", load_schema(NOTES), busy_timeout=1.0, connections=1)
        # The table of idempotency keys has to wait for the reader; its database does not.
        await store.start()
        assert len(await store.read(1, "Notes")) == 2
        with pytest.raises(TooBusy):
            await store.create(1, "Notes", {"text": "c"}, idempotency_key="k")
        reading.close()
        made = {"id": 3, "text": "c", "key": None}
        for _ in range(2):
            assert await store.create(1, "Notes", {"text": "c"}, idempotency_key="k") == made
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        _remove_the_file_alone(tmp_path)
        with pytest.raises(Unavailable):
            await store.create(1, "Notes", {"text": "d"})


SCHEMAS = {
    "a check": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT CHECK (json_valid(m)))",
    "a generated column": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT, n TEXT AS (json_extract(m, '$.n')) STORED)",
    "an index on an expression": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT);"
    "CREATE INDEX i ON a (json_extract(m, '$.n'))",
    "a partial index": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT); CREATE INDEX i ON a (m) WHERE json_valid(m)",
    "a default": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT, n TEXT DEFAULT (json('{}')))",
    "a view": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT);"
    "CREATE VIEW v AS SELECT id, json_extract(m, '$.n') AS n FROM a",
    "a trigger with FTS5": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT); CREATE VIRTUAL TABLE f USING fts5(m);"
    "CREATE TRIGGER ai AFTER INSERT ON a BEGIN INSERT INTO f(rowid, m) VALUES (new.id, new.m); END;"
    "CREATE TRIGGER au AFTER UPDATE ON a BEGIN UPDATE f SET m = new.m WHERE rowid = new.id; END;"
    "CREATE TRIGGER ad AFTER DELETE ON a BEGIN DELETE FROM f WHERE rowid = old.id; END",
    "a trigger with an R-tree": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT);"
    "CREATE VIRTUAL TABLE r USING rtree(id, low, high);"
    "CREATE TRIGGER ai AFTER INSERT ON a BEGIN INSERT INTO r VALUES (new.id, 1, 2); END",
    "a trigger with JSON": "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT); CREATE TABLE l (n TEXT);"
    "CREATE TRIGGER ai AFTER INSERT ON a BEGIN INSERT INTO l SELECT value FROM json_each(new.m); END",
}


@pytest_twisted.ensureDeferred
async def test_contact_f03_f04_functions_in_a_schema_work(tmp_path: Path, make_store: Callable[..., Store]):
    """Whatever functions and virtual tables the schema of a file uses, its tables are served, and so are the others."""
    schema = load_schema("a: {id: {type: int, pk: true}, m: str}\nb: {id: {type: int, pk: true}}")
    with rows_of_a_test() as row:
        for number, (name, statements) in enumerate(SCHEMAS.items()):
            with row(name):
                path = tmp_path / f"{number}.sqlite3"
                with other_program(path) as other:
                    other.executescript(statements)
                    other.execute("CREATE TABLE b (id INTEGER PRIMARY KEY)")
                store = make_store(f"sqlite:///{path}", schema)
                await store.start()
                assert await store.read(1, "b") == []
                made = await store.create(1, "a", {"m": '{"n": "x"}'})
                assert await store.update(1, "a", made["id"], {"m": "{}"}) == {"updated": 1}
                assert await store.read(1, "a") == [{"id": made["id"], "m": "{}"}]
                assert await store.delete(1, "a", made["id"]) == {"deleted": 1}


@pytest_twisted.ensureDeferred
async def test_contact_a33_text_that_is_no_utf_8(tmp_path: Path, make_store: Callable[..., Store]):
    """A stored text in another encoding is read with replacements and can be replaced; the log has nothing of it."""
    path = tmp_path / "data.sqlite3"
    latin = "CAST(X'544F505345435245542066FC72' AS TEXT)"  # TOPSECRET für
    with other_program(path) as other:
        other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)")
        other.execute(f"INSERT INTO Notes VALUES (1, {latin}, 'a'), (2, 'plain', {latin}), (3, {latin}, 'c')")
        other.execute(
            f"CREATE TRIGGER t AFTER INSERT ON Notes BEGIN UPDATE Notes SET text = {latin} WHERE id = new.id; END"
        )
    store = make_store(f"sqlite:///{path}", load_schema(NOTES))
    shown = "TOPSECRET f\ufffdr"
    with capturedLogs() as logged:
        await store.start()
        assert [row["text"] for row in await store.read(1, "Notes")] == [shown, "plain", shown]
        assert (await store.read(1, "Notes", 2)) == [{"id": 2, "text": "plain", "key": shown}]
        for where in ({"text__contains": "SECRET"}, {"text__ilike": "%f\ufffdR"}, {"text__ilike": "topsecret%"}):
            assert [row["id"] for row in await store.read(1, "Notes", where)] == [1, 3], where
        assert await store.read(1, "Notes", {"text__ilike": "%\u00c4%"}) == []
        # What is written has an answer, whatever the row has beside it.
        assert (await store.upsert(1, "Notes", {"key": "c", "text": "x"}))["text"] == "x"
        assert (await store.upsert(1, "Notes", {"key": "a"}))["text"] == shown
        assert (await store.create(1, "Notes", {"text": "y"}))["id"] == 4
        assert await store.update(1, "Notes", 1, {"text": "mended"}) == {"updated": 1}
        assert (await store.read(1, "Notes", 1))[0]["text"] == "mended"
    assert not [line for line in map(formatEvent, logged) if line and "SECRET" in line]


def test_contact_a26_a_database_that_everybody_may_write_to_is_refused(tmp_path: Path):
    """A trigger that somebody put there would run with each write of ours."""
    path = tmp_path / "it's.sqlite3"
    with other_program(path) as connection:
        connection.execute("create table Notes (id integer primary key, text, key)")
    for mode in (0o666, 0o602, 0o777):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="everybody may write to the file") as caught:
            open_database(f"sqlite:///{path}", 5.0, 5.0)
        assert f"chmod o-w {shlex.quote(str(path))}" in str(caught.value)


READ_ONLY = """
import os, sys
import sqlalchemy as sa
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase

place, mode = sys.argv[1:]
path = os.path.join(place, "data.sqlite3")
if not mode:
    os.chmod(path, 0o444)
    os.chmod(place, 0o555)
    if not os.getuid():
        os.seteuid(65534)
database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}{mode}"))
connection = database.connect()
print(connection.run("SELECT a FROM t", (), True)[0])
try:
    connection.run("INSERT INTO t VALUES (2)", (), False)
except Fault as fault:
    print(fault.kind)
"""


def test_contact_f30_files_that_cannot_be_written_are_read():
    """With mode=ro, and in a directory without the right to write, of either journal; a write is what fails."""
    with rows_of_a_test() as row:
        for journal, mode in product(("wal", "delete"), ("?mode=ro", "")):
            # Where anybody may look, which a test's own directory is not.
            with row(f"{journal} {mode}"), tempfile.TemporaryDirectory() as place:
                os.chmod(place, 0o755)
                with other_program(Path(place, "data.sqlite3")) as other:
                    other.execute(f"PRAGMA journal_mode = {journal}")
                    other.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
                ran = subprocess.run(
                    [sys.executable, "-c", READ_ONLY, place, mode], capture_output=True, text=True, timeout=60, cwd="/"
                )
                os.chmod(place, 0o755)
                assert ran.stdout == "[(1,)]\nfull\n", ran.stderr


@pytest_twisted.ensureDeferred
async def test_contact_f30_a_store_of_a_file_that_is_only_read(tmp_path: Path, make_store: Callable[..., Store]):
    """Reading, it wants nothing of the file but the tables of its models; writes and keys are refused."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)")
        other.execute("INSERT INTO Notes (text) VALUES ('a')")
    store = make_store(f"sqlite:///{path}?mode=ro", load_schema(NOTES))
    await store.start()
    assert [row["text"] for row in await store.read(1, "Notes", {"text__ilike": "A"})] == ["a"]
    assert await store.check() is True
    with pytest.raises(Unavailable, match="cannot store"):
        await store.create(1, "Notes", {"text": "b"})
    with pytest.raises(Invalid, match="_idempotencyKey cannot be used"):
        await store.create(1, "Notes", {"text": "b"}, idempotency_key="k")
    missing = make_store(f"sqlite:///{path}?mode=ro", load_schema("Others: {id: {type: int, pk: true}}"))
    with pytest.raises(ConfigError, match="Others are missing and cannot be created"):
        await missing.start()
