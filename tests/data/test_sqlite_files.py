"""SQLite files that others made, hold open, move and remove while a store serves them."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
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
import sqlalchemy as sa
from support.rows import rows_of_a_test
from twisted.logger import capturedLogs, formatEvent

from zcomm.data.drivers import open_database
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import ConfigError, Conflict, Invalid, PermissionDenied, TooBusy, Unavailable

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


def _copied_into(source: Path, target: Path) -> None:
    """Overwrite a file in place, at a moment that its times tell from the one of its last write."""
    tick = target.with_name("tick")
    while True:
        tick.touch()
        if tick.stat().st_mtime_ns > target.stat().st_mtime_ns:
            break
    with source.open("rb") as old, target.open("r+b") as new:
        shutil.copyfileobj(old, new)
        new.truncate()


def _overwrite(place: Path) -> None:
    _copied_into(place / "older", place / "data.sqlite3")


def _overwrite_by_one_without_log(place: Path) -> None:
    with other_program(place / "older") as other:
        other.execute("PRAGMA journal_mode = DELETE")
    _overwrite(place)


def _truncate(place: Path) -> None:
    _copied_into(Path(os.devnull), place / "data.sqlite3")


def _overwrite_a_page(place: Path) -> None:
    """As rsync does, with --inplace: the size stays, and most of the pages."""
    (place / "page").write_bytes((place / "data.sqlite3").read_bytes()[:4096] + b"\0" * 4096)
    with (place / "page").open("ab") as page:
        page.write((place / "data.sqlite3").read_bytes()[8192:])
    _copied_into(place / "page", place / "data.sqlite3")


def _truncate_the_log(place: Path) -> None:
    os.truncate(place / "data.sqlite3-wal", 0)


def _cut_the_log(place: Path) -> None:
    os.truncate(place / "data.sqlite3-wal", (place / "data.sqlite3-wal").stat().st_size - 4120)


def _overwrite_the_log(place: Path) -> None:
    log = place / "data.sqlite3-wal"
    (place / "log").write_bytes(log.read_bytes()[:-4096] + b"\0" * 4096)
    other = bytearray((place / "log").read_bytes())
    other[16:24] = b"salt" * 2
    (place / "log").write_bytes(other)
    _copied_into(place / "log", log)


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
    _overwrite: "data.sqlite3 was overwritten or touched while it was open",
    _overwrite_by_one_without_log: "data.sqlite3 was overwritten or touched while it was open",
    _truncate: "data.sqlite3 was overwritten or touched while it was open",
    _overwrite_a_page: "data.sqlite3 was overwritten or touched while it was open",
    _truncate_the_log: "data.sqlite3-wal was overwritten or touched while it was open",
    _cut_the_log: "data.sqlite3-wal was overwritten or touched while it was open",
    _overwrite_the_log: "data.sqlite3-wal was overwritten or touched while it was open",
}


@pytest_twisted.ensureDeferred
async def test_contact_r11_a35_a_file_that_is_gone_takes_no_write(tmp_path: Path, make_store: Callable[..., Store]):
    """No write is acknowledged that is not in the file at the path, however that went, and the log says so
    once (B35)."""
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
async def test_contact_a_restore_into_a_file_that_is_all_there_is(tmp_path: Path, make_store: Callable[..., Store]):
    """A copy over the file after its log was emptied is noticed by the next command, and nobody writes to the copy."""
    for checkpoint in ("PASSIVE", "TRUNCATE"):
        path = tmp_path / checkpoint
        store = make_store(f"sqlite:///{path}", load_schema(NOTES), deadline=0.5)
        await store.start()
        await store.create(1, "Notes", {"text": "kept"})
        backup = tmp_path / "backup"
        with other_program(path) as other:
            other.execute(f"VACUUM INTO '{backup}'")
            await store.create(1, "Notes", {"text": "gone"})
            other.execute(f"PRAGMA wal_checkpoint({checkpoint})")
            await store.create(1, "Notes", {"text": "gone"})
            other.execute(f"PRAGMA wal_checkpoint({checkpoint})")
            assert await store.check() is True
            _copied_into(backup, path)
            restored = path.read_bytes()
            for command in (store.read(1, "Notes"), store.create(1, "Notes", {"text": "lost"}), store.read(1, "Notes")):
                with pytest.raises(Unavailable):
                    await command
        assert await store.check() is False
        await store.stop()
        assert path.read_bytes() == restored
        # SQLite cannot be made to let go of the log that it has, but by the end of the process.
        with pytest.raises(ConfigError, match="start another"):
            await store.start()
        # As the log tells to.
        for log in ("-wal", "-shm"):
            Path(f"{path}{log}").unlink(missing_ok=True)
        look = f"import sqlite3; print(*sqlite3.connect({str(path)!r}).execute('SELECT text FROM Notes'))"
        ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
        assert ran.stdout == "('kept',)\n", ran.stderr
        backup.unlink()


HONEST = """
import random, sqlite3, sys
path, older, seed = sys.argv[1:]
chance = random.Random(int(seed))
def opened():
    made = sqlite3.connect(path, isolation_level=None, timeout=60)
    made.execute(f"PRAGMA synchronous = {chance.choice(['OFF', 'NORMAL', 'FULL'])}")
    made.execute(f"PRAGMA wal_autocheckpoint = {chance.choice([0, 1, 3, 1000])}")
    return made
other = opened()
for _ in range(150):
    what = chance.randrange(8)
    try:
        if what < 3:
            other.execute("INSERT INTO Notes (text) VALUES (?)", ("x" * chance.randrange(9000),))
        elif what == 3:
            other.execute(f"PRAGMA wal_checkpoint({chance.choice(['PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'])})")
        elif what == 4:
            other.close()
            other = opened()
        elif what == 5:
            other.execute("DELETE FROM Notes WHERE id % 5 = ? AND text != 'mine'", (chance.randrange(5),))
        elif what == 6:
            other.execute("VACUUM")
        else:
            with other:
                other.execute("BEGIN IMMEDIATE")
                other.executemany("INSERT INTO Notes (text) VALUES (?)", [("y" * 3000,)] * 20)
                other.execute(chance.choice(["COMMIT", "ROLLBACK"]))
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
"""


@pytest_twisted.ensureDeferred
async def test_contact_other_programs_of_sqlite_are_no_strangers(tmp_path: Path, make_store: Callable[..., Store]):
    """Writes, checkpoints, vacuums and restores of others, at random, refuse nothing here; and nothing is lost."""
    path = tmp_path / "data.sqlite3"
    store = make_store(f"sqlite:///{path}", load_schema(NOTES), busy_timeout=30.0, statement_timeout=30.0, deadline=60)
    await store.start()
    written = 0
    others = [
        subprocess.Popen([sys.executable, "-c", HONEST, str(path), "", str(seed)], stderr=subprocess.PIPE)
        for seed in (1, 2)
    ]
    try:
        while any(other.poll() is None for other in others):
            await store.create(1, "Notes", {"text": "mine"})
            written += 1
            assert await store.check() is True
    finally:
        for process in others:
            process.kill()
            assert process.stderr is not None
            assert (process.wait(), process.stderr.read()) == (0, b"")
            process.stderr.close()
    assert len(await store.read(1, "Notes", {"text": "mine"}, fields=["id"])) == written
    # As sqlite3's own .restore: through SQLite, as one transaction.
    with other_program(tmp_path / "older") as older, other_program(path) as other:
        older.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)")
        older.backup(other)
    assert await store.check() is True
    assert (await store.create(1, "Notes", {"text": "after"}))["id"] == 1
    await store.stop()
    with other_program(path) as other:
        assert other.execute("SELECT text FROM Notes").fetchall() == [("after",)]


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


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many descriptors, and no more, are to be had in this process meanwhile."""
    # What others have left behind would give back its own at any moment.
    gc.collect()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]
    for each in free:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def no_way_to(place: Path) -> Iterator[None]:
    """The system tells nothing about what is in a directory meanwhile."""
    away = place.with_name("away")
    away.symlink_to(place)
    exchange(place, away)
    try:
        yield
    finally:
        exchange(place, away)
        away.unlink()


def exchange(one: Path, other: Path) -> None:
    """Let two paths have each other's files, at no moment of which one of them is missing: renameat2(2)."""
    at_the_working_directory, by_exchange = -100, 2
    paths = (at_the_working_directory, bytes(one), at_the_working_directory, bytes(other))
    if ctypes.CDLL(None, use_errno=True).renameat2(*paths, by_exchange):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))


@pytest_twisted.ensureDeferred
async def test_contact_what_says_nothing_about_a_file_passes(tmp_path: Path, make_store: Callable[..., Store]):
    """Descriptors that run out, and a path that cannot be followed, make no file a foreign one: it is served on."""
    for journal in ("wal", "delete"):
        place = tmp_path / journal
        place.mkdir()
        with other_program(place / "data.sqlite3") as other:
            other.execute(f"PRAGMA journal_mode = {journal}")
            other.execute(JOURNAL)
        store = make_store(f"sqlite:///{place}/data.sqlite3", load_schema(NOTES), deadline=0.2)
        patient = make_store(f"sqlite:///{place}/data.sqlite3", load_schema(NOTES), deadline=30.0)
        await store.start()
        with capturedLogs() as logged:
            with descriptors_left(0):
                starting = patient.start()
                if journal == "wal":
                    # Nothing has to be opened.
                    await store.create(1, "Notes", {"text": "mine"})
                    assert await store.check() is True
                else:
                    with pytest.raises(Unavailable, match="does not answer"):
                        await store.create(1, "Notes", {"text": "not mine"})
                assert await patient.check() is False
            await starting
            await patient.create(1, "Notes", {"text": "mine"})
            with no_way_to(place):
                for command in (store.create(1, "Notes", {"text": "not mine"}), store.read(1, "Notes")):
                    with pytest.raises(Unavailable, match="does not answer"):
                        await command
                assert await store.check() is False
        lines = " ".join(formatEvent(event) for event in logged)
        assert "Too many open files; raise the limit" in lines
        assert "Too many levels of symbolic links" in lines
        assert not [word for word in ("removed", "replaced", "overwritten") if word in lines], lines
        assert await store.check() is True
        await store.create(1, "Notes", {"text": "mine"})
        texts = [row["text"] for row in await patient.read(1, "Notes")]
        assert texts == ["mine"] * (2 + (journal == "wal"))


def test_contact_a_file_that_a_few_descriptors_do_not_open_is_opened_later(tmp_path: Path):
    """However few are left when it is opened: no connection is had, or one that reads and writes all that there is."""
    with rows_of_a_test() as row:
        for journal, is_open, left in product(("wal", "delete"), (False, True), (0, 1, 2, 3, 5)):
            with row(f"{journal} {is_open} {left}"):
                path = tmp_path / f"{journal}{is_open}{left}"
                with other_program(path) as other:
                    other.execute(f"PRAGMA journal_mode = {journal}")
                    other.execute(JOURNAL)
                    database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
                    others = [database.connect()] if is_open else []
                    connection = None
                    with descriptors_left(left):
                        try:
                            connection = database.connect()
                        except Fault as fault:
                            assert fault.kind == "down"
                            assert "Too many open files; raise the limit of open files" in fault.detail
                    other.execute("INSERT INTO Notes (text) VALUES ('theirs')")
                    for each in (connection or database.connect(), *others):
                        with database.writing():
                            each.run("INSERT INTO Notes (text) VALUES ('ours')", (), False)
                        each.close()
                    count = 2 + is_open
                    assert other.execute("SELECT count(*) FROM Notes").fetchall() == [(count,)]


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
    """A stored text in another encoding is read with replacements and can be replaced; the log has nothing of it
    (B33)."""
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


def test_b26_what_is_beside_a_database_is_looked_at_too(tmp_path: Path):
    """Its log, its index, a journal that would be played back, and the directory where all of them are."""
    place = tmp_path / "place"
    place.mkdir()
    path = place / "data.sqlite3"
    with other_program(path) as connection:
        connection.execute("create table Notes (id integer primary key, text, key)")
    for end in ("-wal", "-shm", "-journal"):
        beside = place / f"data.sqlite3{end}"
        beside.touch()
        beside.chmod(0o666)
        with pytest.raises(ConfigError, match=f"everybody may write to .*{end} .*chmod o-w"):
            open_database(f"sqlite:///{path}", 5.0, 5.0)
        beside.unlink()
    place.chmod(0o777)
    with pytest.raises(ConfigError, match=f"everybody may put files into {place} .*chmod o-w"):
        open_database(f"sqlite:///{path}", 5.0, 5.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_b26_a_database_of_somebody_else_is_refused(tmp_path: Path):
    """It is, where it lies in a directory that is not theirs; one that is shared with whose directory it is, is not."""
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        base.chmod(0o755)
        mine, theirs = base / "mine", base / "theirs"
        for place, owner in ((mine, 4711), (theirs, 4712)):
            place.mkdir()
            path = place / "data.sqlite3"
            with other_program(path) as connection:
                connection.execute("create table Notes (id integer primary key, text, key)")
            path.chmod(0o664)
            os.chown(path, 4712, 4711)
            os.chown(place, owner, 4711)
            place.chmod(0o775)
        os.setegid(4711)
        os.seteuid(4711)
        with pytest.raises(ConfigError, match=r"belongs to somebody else \(uid 4712\).*chown 4711"):
            open_database(f"sqlite:///{mine}/data.sqlite3", 5.0, 5.0)
        open_database(f"sqlite:///{theirs}/data.sqlite3", 5.0, 5.0)
    finally:
        os.seteuid(0)
        os.setegid(0)
        shutil.rmtree(base)


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


@pytest_twisted.ensureDeferred
async def test_contact_a_schema_that_passes_over_conflicts(tmp_path: Path, make_store: Callable[..., Store]):
    """Whatever a table says should become of a conflict, it is an error, and no other row is lost or changed by it."""
    path = tmp_path / "data.sqlite3"
    ways = ("REPLACE", "IGNORE", "ROLLBACK", "FAIL", "ABORT")
    schema = load_schema(
        "\n".join(
            f"{way}: {{id: {{type: int, pk: true}}, key: {{type: str, unique: true}}, owner: str, n: int}}"
            for way in ways
        )
    )
    with other_program(path) as other:
        for way in ways:
            other.executescript(
                f"CREATE TABLE {way} (id INTEGER PRIMARY KEY ON/**/CONFLICT {way}, key TEXT UNIQUE ON -- so\n"
                f"  CONFLICT {way}, owner TEXT NOT NULL ON CONFLICT {way} DEFAULT 'ann', n INT CHECK (n > 0));"
                f"INSERT INTO {way} VALUES (1, 'a', 'ann', 1), (2, 'b', 'bob', 1)"
            )
    store = make_store(f"sqlite:///{path}", schema)
    await store.start()
    with rows_of_a_test() as row:
        for way in ways:
            before = await store.read(1, way)
            bobs = {"owner": "bob"}
            for values, error in (
                ({"key": "a", "owner": "bob"}, Conflict),
                ({"key": "c", "owner": None}, Invalid),
                ({"key": "c", "owner": "bob", "n": 0}, Invalid),
            ):
                for action, more in (
                    ("create", {}),
                    ("update", {"where": 2}),
                    ("update", {"where": {"n": 1}}),
                    ("upsert", {"conflict_fields": ["key"]}),
                ):
                    if action == "upsert" and values["key"] == "a":
                        error = PermissionDenied
                    with row(f"{way} {action} {values} {more}"):
                        command = parse_command({"action": action, "model": way, "values": values, **more})
                        with pytest.raises(error):
                            await store.execute(1, command, rows={} if values["owner"] is None else bobs)
                        assert await store.read(1, way) == before
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_triggers_resolve_conflicts_their_own_way(tmp_path: Path, make_store: Callable[..., Store]):
    """A trigger that replaces or ignores rows of another table does so, as its owner wrote it."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        other.executescript(
            "CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE);"
            "CREATE TABLE seen (text TEXT PRIMARY KEY, n); CREATE TABLE first (text TEXT PRIMARY KEY, n);"
            "CREATE TRIGGER t AFTER INSERT ON Notes BEGIN"
            "  INSERT OR REPLACE INTO seen VALUES (new.text, new.id);"
            "  INSERT OR IGNORE INTO first VALUES (new.text, new.id); END"
        )
    store = make_store(f"sqlite:///{path}", load_schema(NOTES))
    await store.start()
    for key in ("a", "b"):
        await store.create(1, "Notes", {"text": "same", "key": key})
    await store.stop()
    with other_program(path) as other:
        assert other.execute("SELECT seen.n, first.n FROM seen, first").fetchall() == [(2, 1)]


@pytest_twisted.ensureDeferred
async def test_contact_a_view_tells_how_many_rows_its_triggers_changed(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """SQLite counts none of them; they are those that the filter found, and whoever listens hears of them."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        other.executescript(
            "CREATE TABLE base (id INTEGER PRIMARY KEY, text TEXT, gone INT DEFAULT 0);"
            "INSERT INTO base (text) VALUES ('a'), ('b'), ('b'), ('c');"
            "CREATE VIEW Seen AS SELECT id, text FROM base WHERE NOT gone;"
            "CREATE TRIGGER u INSTEAD OF UPDATE ON Seen BEGIN UPDATE base SET text = new.text WHERE id = old.id; END;"
            "CREATE TRIGGER d INSTEAD OF DELETE ON Seen BEGIN UPDATE base SET gone = 1 WHERE id = old.id; END;"
        )
    store = make_store(f"sqlite:///{path}", load_schema("Seen: {id: {type: int, pk: true}, text: str}"))
    await store.start()
    assert await store.update(1, "Seen", {"id": 1}, {"text": "A"}) == {"updated": 1}
    assert await store.update(1, "Seen", {"text": "b"}, {"text": "B"}, idempotency_key="k") == {"updated": 2}
    assert await store.update(1, "Seen", {"text": "none"}, {"text": "B"}) == {"updated": 0}
    assert await store.delete(1, "Seen", {"id": 1}) == {"deleted": 1}
    request = {"action": "delete", "model": "Seen", "where": {"text": "B"}}
    for count in (2, 0):
        done = await store.execute(1, parse_command(request))
        assert (done.result, done.changed) == ({"deleted": count}, count > 0)
    assert await store.delete(1, "Seen", {}, all=True) == {"deleted": 1}
    with other_program(path) as other:
        assert other.execute("SELECT text, gone FROM base").fetchall() == [("A", 1), ("B", 1), ("B", 1), ("c", 1)]


@pytest_twisted.ensureDeferred
async def test_contact_a_file_in_utf_16_is_refused(tmp_path: Path, make_store: Callable[..., Store]):
    """Its bytes are not those of its texts here; the error says how to make one that can be served."""
    for encoding in ("UTF-16le", "UTF-16be", "UTF-16"):
        path = tmp_path / f"{encoding}.sqlite3"
        with other_program(path) as other:
            other.execute(f"PRAGMA encoding = '{encoding}'")
            other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)")
        with pytest.raises(ConfigError, match="its texts are in UTF-16.e; make one in UTF-8"):
            await make_store(f"sqlite:///{path}", load_schema(NOTES)).start()


FOREIGN = {
    "a collation": ("CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT COLLATE mine)", "no such collation sequence: mine"),
    "an index by a collation": (
        "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT); CREATE INDEX i ON a (m COLLATE mine)",
        "no such collation sequence: mine",
    ),
    "a function in a check": (
        "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT CHECK (mine(m)))",
        "unknown function: mine",
    ),
    "a function in a trigger": (
        "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT);"
        "CREATE TRIGGER t AFTER UPDATE ON a BEGIN SELECT mine(new.m); END",
        "no such function: mine",
    ),
    "a view of nothing": ("CREATE VIEW a AS SELECT id, m FROM gone", "no such table: main.gone"),
    "a trigger on nothing": (
        "CREATE TABLE a (id INTEGER PRIMARY KEY, m TEXT);"
        "CREATE TRIGGER t AFTER DELETE ON a BEGIN DELETE FROM gone; END",
        "no such table: main.gone",
    ),
}


@pytest_twisted.ensureDeferred
async def test_contact_what_only_another_program_defines(tmp_path: Path, make_store: Callable[..., Store]):
    """A table that SQLite cannot use without its program is refused at the start, with the cause."""
    schema = load_schema("a: {id: {type: int, pk: true}, m: str}")
    with rows_of_a_test() as row:
        for number, (name, (statements, cause)) in enumerate(FOREIGN.items()):
            path = tmp_path / f"{number}.sqlite3"
            with row(name):
                with other_program(path) as other:
                    other.create_collation("mine", lambda a, b: (a > b) - (a < b))
                    other.create_function("mine", 1, lambda value: 1, deterministic=True)
                    other.executescript(statements)
                with pytest.raises(ConfigError, match=cause):
                    await make_store(f"sqlite:///{path}", schema, deadline=1.0).start()


@pytest_twisted.ensureDeferred
async def test_contact_errors_of_strict_tables_and_generated_columns(tmp_path: Path, make_store: Callable[..., Store]):
    """A value that the table does not take is invalid by its field; a table that went is unavailable, and says why."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        other.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, d INT, n INT AS (id + 1) STORED) STRICT")
        other.execute("INSERT INTO a (id) VALUES (1)")
    store = make_store(
        f"sqlite:///{path}", load_schema("a: {id: {type: int, pk: true}, d: time, n: int}"), deadline=0.5
    )
    await store.start()
    for values in ({"d": "08:30:00"}, {"n": 5}):
        for write in (store.create(1, "a", values), store.update(1, "a", 1, values)):
            with pytest.raises(Invalid) as invalid:
                await write
            assert list(invalid.value.fields) == list(values)
    with other_program(path) as other:
        other.execute("DROP TABLE a")
    with capturedLogs() as logged, pytest.raises(Unavailable):
        await store.create(1, "a", {})
    assert "is not what it was at the start (it is gone)" in " ".join(formatEvent(event) or "" for event in logged)


JOURNAL = "CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT, key TEXT UNIQUE)"


async def _texts(store: Store) -> list[object]:
    return [row["text"] for row in await store.read(1, "Notes")]


@pytest_twisted.ensureDeferred
async def test_contact_a_log_that_another_program_turns_on(tmp_path: Path, make_store: Callable[..., Store]):
    """A file whose journal others change to a log while it is served is watched as one that had it from the start."""
    with rows_of_a_test() as row:
        ways = (None, _remove_the_log, _overwrite, _truncate, _truncate_the_log, _cut_the_log)
        for number, astray in enumerate(ways):
            with row(str(astray)):
                place = tmp_path / str(number)
                place.mkdir()
                path = place / "data.sqlite3"
                with other_program(path) as other:
                    other.execute(JOURNAL)
                store = make_store(f"sqlite:///{path}", load_schema(NOTES), deadline=0.5, connections=2)
                await store.start()
                # Both connections know the file as it was.
                with store._pool.connection() as first, store._pool.connection() as second:
                    for connection in (first, second):
                        connection.run("SELECT 1 FROM Notes", (), True)
                await store.create(1, "Notes", {"text": "before"})
                with other_program(path) as source, other_program(place / "older") as older:
                    source.backup(older)
                    source.execute("PRAGMA journal_mode = WAL")
                with store._pool.connection() as first, store._pool.connection() as second:
                    for connection in (first, second):
                        assert connection.run("SELECT text FROM Notes", (), True) == ([("before",)], -1)
                await store.create(1, "Notes", {"text": "after"})
                assert await _texts(store) == ["before", "after"]
                if astray is None:
                    with other_program(path) as other:
                        other.execute("INSERT INTO Notes (text) VALUES ('another')")
                    assert await _texts(store) == ["before", "after", "another"]
                    assert await store.check() is True
                else:
                    astray(place)
                    with pytest.raises(Unavailable):
                        await store.create(1, "Notes", {"text": "lost"})
                    assert await store.check() is False
                await store.stop()


def _same_counts(path: Path, backup: Path) -> None:
    """A copy to which as much happened as to the file: the counts in the head are the same."""
    _copied_into(backup, path)
    with other_program(path) as other:
        other.execute("INSERT INTO Notes (text) VALUES ('shell')")


def _other_tables_of_the_same_number(path: Path, backup: Path) -> None:
    """The same statements that changed the schema, in another order, with more writes than there were."""
    with other_program(backup) as other:
        other.executescript(
            "DROP TABLE Notes; CREATE TABLE other (a); CREATE TABLE another (a);"
            f"{JOURNAL}; INSERT INTO Notes (text) VALUES ('shell')"
        )
        cookie = other.execute("PRAGMA schema_version").fetchone()[0]
        for _ in range(5):
            other.execute("INSERT INTO Notes (text) VALUES ('shell')")
    with other_program(path) as other:
        other.execute(f"PRAGMA schema_version = {cookie}")
    _copied_into(backup, path)


def _a_page_alone(path: Path, backup: Path) -> None:
    """Another content under the head of the file."""
    with other_program(path) as other:
        root = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'Notes'").fetchone()[0]
    page = path.read_bytes()[(root - 1) * 4096 : root * 4096]
    changed = bytearray(path.read_bytes())
    changed[(root - 1) * 4096 : root * 4096] = page.replace(b"mine", b"mIne").replace(b"kept", b"KEPT")
    backup.write_bytes(changed)
    _copied_into(backup, path)


COPIES: tuple[Callable[[Path, Path], None], ...] = (
    _same_counts,
    _other_tables_of_the_same_number,
    _a_page_alone,
    lambda path, backup: _copied_into(backup, path),
    lambda path, backup: os.utime(path),
)


@pytest_twisted.ensureDeferred
async def test_contact_a_copy_over_a_file_without_log(tmp_path: Path, make_store: Callable[..., Store]):
    """What is there now is served, and written to: nothing that was kept of the content before gets into it."""
    with rows_of_a_test() as row:
        for (number, copy), first in product(enumerate(COPIES), ("read", "create")):
            with row(f"{copy.__name__} {first}"):
                path, backup = tmp_path / f"{number}{first}", tmp_path / f"{number}{first}.backup"
                with other_program(path) as other:
                    other.execute(JOURNAL)
                store = make_store(f"sqlite:///{path}", load_schema(NOTES), deadline=5.0)
                await store.start()
                await store.create(1, "Notes", {"text": "kept"})
                shutil.copy(path, backup)
                await store.create(1, "Notes", {"text": "mine"})
                assert await _texts(store) == ["kept", "mine"]
                copy(path, backup)
                with other_program(path) as other:
                    there = [text for (text,) in other.execute("SELECT text FROM Notes ORDER BY id")]
                if first == "read":
                    assert await _texts(store) == there
                await store.create(1, "Notes", {"text": "later"})
                assert await _texts(store) == [*there, "later"]
                await store.stop()
                with other_program(path) as other:
                    assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                    assert [text for (text,) in other.execute("SELECT text FROM Notes")] == [*there, "later"]


@pytest_twisted.ensureDeferred
async def test_contact_others_who_write_to_a_file_without_log_cost_no_opening(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """Their rows are there at once, and the connection stays the one that it was."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        other.execute(JOURNAL)
        store = make_store(f"sqlite:///{path}", load_schema(NOTES), connections=1)
        await store.start()
        await store.create(1, "Notes", {"text": "first", "key": "a"})
        with store._pool.connection() as connection:
            raw = connection._raw  # type: ignore[attr-defined]
        for number in range(20):
            other.execute("INSERT INTO Notes (text) VALUES (?)", (f"other {number}",))
            assert (await _texts(store))[-1] == f"other {number}"
            await store.create(1, "Notes", {"text": f"mine {number}"})
            with pytest.raises(Conflict):
                await store.create(1, "Notes", {"text": "taken", "key": "a"})
        with store._pool.connection() as connection:
            assert connection._raw is raw  # type: ignore[attr-defined]
        other.execute("ALTER TABLE Notes ADD COLUMN more TEXT")
        assert (await store.create(1, "Notes", {"text": "last"}))["id"] == 42
        # An empty file is no new one: somebody may be about to write another there.
        os.truncate(path, 0)
        with pytest.raises(Unavailable):
            await store.create(1, "Notes", {"text": "lost"})
        assert path.stat().st_size == 0


ENDING = """
import signal, sys
import sqlalchemy as sa
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase

path, when = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
connections = [database.connect() for _ in range(2)]
for number in range(60):
    connections[number % 2].run("INSERT INTO Notes (text) VALUES (?)", (f"later {number}" + "z" * 500,), False)
database.verify()
print("written", flush=True)
sys.stdin.readline()
if when == "noticed":
    try:
        connections[0].run("INSERT INTO Notes (text) VALUES ('lost')", (), False)
    except Fault as fault:
        print(fault.kind, flush=True)
for connection in connections:
    connection.close()
print("closed", flush=True)
signal.sigwait({signal.SIGTERM})
sys.exit(7)
"""


def test_contact_the_end_of_the_process_puts_no_log_into_a_copy(tmp_path: Path):
    """A copy over an open file is the same after the process that had it open, whoever noticed it and when."""
    with rows_of_a_test() as row:
        for when, touched in product(("noticed", "unnoticed"), (False, True)):
            with row(f"{when} {touched}"):
                path, backup = tmp_path / f"{when}{touched}.sqlite3", tmp_path / "backup"
                with other_program(path) as other:
                    other.execute("PRAGMA journal_mode = WAL")
                    other.execute(JOURNAL)
                    other.execute("INSERT INTO Notes (text) VALUES ('kept')")
                shutil.copy(path, backup)
                with subprocess.Popen(
                    [sys.executable, "-c", ENDING, str(path), when],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                ) as process:
                    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
                    try:
                        assert process.stdout.readline() == "written\n"
                        if touched:
                            _copied_into(path, backup)
                        _copied_into(backup, path)
                        there = path.read_bytes()
                        print(file=process.stdin, flush=True)
                        if when == "noticed":
                            assert process.stdout.readline() == "refused\n"
                        assert process.stdout.readline() == "closed\n"
                        process.terminate()
                        assert process.wait(60) == 7, process.stderr.read()
                    finally:
                        process.kill()
                assert path.read_bytes() == there
                if touched:
                    # The advice is right in both cases: with the log that is beside it, all is there.
                    with other_program(path) as other:
                        assert other.execute("SELECT count(*) FROM Notes").fetchall() == [(61,)]


@pytest_twisted.ensureDeferred
async def test_contact_a_log_that_went_is_rescued_at_the_end(tmp_path: Path, make_store: Callable[..., Store]):
    """What was acknowledged before somebody removed the log gets into the file, where nobody else wrote meanwhile."""
    path = tmp_path / "data.sqlite3"
    store = make_store(f"sqlite:///{path}", load_schema(NOTES), deadline=0.5)
    await store.start()
    await store.create(1, "Notes", {"text": "kept"})
    for log in ("-wal", "-shm"):
        Path(f"{path}{log}").unlink()
    with pytest.raises(Unavailable):
        await store.create(1, "Notes", {"text": "lost"})
    # In a process of its own, which has no part in what this one still has open.
    look = f"import sqlite3; print(sqlite3.connect({str(path)!r}).execute('SELECT count(*) FROM Notes').fetchall())"
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert "no such table" in ran.stderr
    await store.stop()
    with other_program(path) as other:
        assert other.execute("SELECT text FROM Notes").fetchall() == [("kept",)]


READER = """
import os, sys
import sqlalchemy as sa
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase

if not os.getuid():
    os.seteuid(65534)
database = SQLiteDatabase(sa.make_url(f"sqlite:///{sys.argv[1]}"))
connection = database.connect()
for _ in sys.stdin:
    try:
        if not connection.alive():
            connection = database.connect()
        print(*[a for (a,) in connection.run("SELECT a FROM t", (), True)[0]], flush=True)
    except Fault as fault:
        print(fault.kind, flush=True)
"""


def test_contact_a_file_that_was_opened_as_one_that_nobody_writes_to():
    """What others write to it nevertheless, as into a volume that is mounted for reading here, is served at once."""
    # Where anybody may look, which a test's own directory is not.
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        path = place / "data.sqlite3"
        with other_program(path) as other:
            other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1)")
        path.chmod(0o644)
        place.chmod(0o555)
        with subprocess.Popen(
            [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        ) as reader:

            def shown() -> str:
                assert reader.stdin is not None and reader.stdout is not None
                print(file=reader.stdin, flush=True)
                return reader.stdout.readline().strip()

            @contextmanager
            def writer() -> Iterator[sqlite3.Connection]:
                place.chmod(0o755)
                with other_program(path) as other:
                    other.execute("SELECT 1 FROM t").fetchall()
                    yield other
                    place.chmod(0o755)
                place.chmod(0o555)

            try:
                assert shown() == "1"
                # A writer that came and went.
                with writer() as other:
                    other.execute("INSERT INTO t VALUES (2)")
                assert shown() == "1 2"
                with writer() as other:
                    other.execute("DELETE FROM t WHERE a = 1")
                    other.execute("VACUUM")
                assert shown() == "2"
                # Where no memory is shared, as between machines: a log, and no index of it.
                log = path.with_name("data.sqlite3-wal")
                place.chmod(0o755)
                log.write_bytes(b"x" * 100)
                place.chmod(0o555)
                assert shown() in ("down", "2")
                place.chmod(0o755)
                log.unlink()
                place.chmod(0o555)
                assert shown() == "2"
                # One that stays.
                with writer() as other:
                    other.execute("INSERT INTO t VALUES (3)")
                    place.chmod(0o555)
                    assert shown() == "2 3"
                    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    other.execute("INSERT INTO t VALUES (4)")
                    assert shown() == "2 3 4"
                assert shown() == "2 3 4"
            finally:
                reader.kill()
                place.chmod(0o755)


@pytest_twisted.ensureDeferred
async def test_contact_a_text_with_nul_of_another_program_is_found(tmp_path: Path, make_store: Callable[..., Store]):
    """It cannot be written here, and yet its row is found by it, key or not, and changed and removed."""
    path = tmp_path / "data.sqlite3"
    with other_program(path) as other:
        for name, declared in (("Texts", "TEXT"), ("Chars", "varchar(9)"), ("Bare", ""), ("Whole", "INTEGER")):
            other.execute(
                f"CREATE TABLE {name} (id {declared} PRIMARY KEY NOT NULL, a {declared}, d TEXT) WITHOUT ROWID"
            )
            values = [(key, text, "2024\0") for key, text in (("a\0b", "x\0"), ("a", "x"), ("a\0c", "\0"))]
            other.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", values)
    body = "{id: {type: str, pk: true}, a: str, d: datetime}"
    names = ("Texts", "Chars", "Bare", "Whole")
    store = make_store(f"sqlite:///{path}", load_schema("\n".join(f"{name}: {body}" for name in names)))
    await store.start()
    with rows_of_a_test() as row:
        for name in names:
            with row(name):
                there = await store.read(1, name, order_by="id")
                assert [(each["id"], each["a"]) for each in there] == [("a", "x"), ("a\0b", "x\0"), ("a\0c", "\0")]
                for each in there:
                    assert await store.read(1, name, {"id": each["id"]}) == [each]
                    assert await store.read(1, name, each["id"]) == [each]
                    assert await store.read(1, name, {"a__in": [each["a"], "none"]}) == [each]
                assert len(await store.read(1, name, {"a__ne": "x\0"})) == 2
                assert len(await store.read(1, name, {"d": "2024\0"})) == 3
                with pytest.raises(Invalid, match="NUL"):
                    await store.read(1, name, {"a": "n\0ne"})
                with pytest.raises(Invalid, match="NUL"):
                    await store.update(1, name, {"id": "a"}, {"a": "y\0"})
                assert await store.update(1, name, {"id": "a\0b"}, {"a": "y"}) == {"updated": 1}
                assert await store.delete(1, name, {"id": "a\0c"}) == {"deleted": 1}
                assert [each["a"] for each in await store.read(1, name, order_by="id")] == ["x", "y"]
