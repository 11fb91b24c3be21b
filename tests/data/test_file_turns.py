"""Turns at writing to one SQLite file among processes: in order, and never lost with the process that has one."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_twisted
import sqlalchemy as sa
from support.waiting import wait_until, wait_until_blocking
from twisted.internet.threads import deferToThread

from zcomm.data.drivers import sqlite
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.drivers.turns import HOLD_ELSEWHERE, FileTurn, Turns
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import TooBusy

NOTES = "Notes: {id: {type: int, pk: true}, body: str}"

#: A process that begins to write, and says so; what it reads ends its turn.
HOLDER = """
import sys
import sqlalchemy as sa
from zcomm.data.drivers.sqlite import SQLiteDatabase

database = SQLiteDatabase(sa.make_url(f"sqlite:///{sys.argv[1]}"))
connection = database.connect()
with database.writing(connection, "other"):
    connection.begin()
    connection.run("INSERT INTO Notes (body) VALUES ('half')", (), False)
    print("in", flush=True)
    sys.stdin.readline()
    connection.commit()
print("out", flush=True)
sys.stdin.readline()
"""


def begun(path: Path) -> subprocess.Popen[str]:
    """Another process in the middle of a write."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    told = process.stdout.readline()
    if told != "in\n":
        process.kill()
        raise AssertionError(f"{told!r} {process.communicate()}")
    return process


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Have it end with the block."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def made(path: Path) -> Path:
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, body TEXT)")
    other.close()
    path.chmod(0o600)
    return path


def turn_at(path: Path) -> FileTurn:
    return FileTurn(os.open(path, os.O_RDWR))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_bytes(b"")
    return path


class Waiting(threading.Thread):
    """A thread that waits for a turn, and gives it back when it is told to."""

    def __init__(self, turn: FileTurn, timeout: float = 60.0):
        super().__init__(daemon=True)
        self.turn, self.timeout = turn, timeout
        self.has_had: bool | None = None
        self.over = threading.Event()
        self.start()

    def run(self) -> None:
        has_had = self.turn.take(self.timeout)
        self.has_had = has_had
        if has_had:
            self.over.wait(60)
            self.turn.give_back()

    def end(self) -> None:
        """Have it give the turn back."""
        self.over.set()
        self.join(60)


def test_who_has_had_a_turn_overtakes_nobody(file: Path):
    """The quickest one to ask again, as it runs while others have to wake, waits behind who is next."""
    mine, other = turn_at(file), turn_at(file)
    for _ in range(200):
        assert mine.take_at_once()
        waits = Waiting(other)
        wait_until_blocking(lambda: mine.is_waited_for, "somebody who waits")
        mine.give_back()
        assert not mine.take_at_once()
        waits.end()
        assert waits.has_had and not mine.is_waited_for


def test_a_turn_that_comes_too_late_is_none(file: Path):
    """Who has stopped waiting does not keep it."""
    mine, other = turn_at(file), turn_at(file)
    assert mine.take_at_once()
    waits = Waiting(other, timeout=0.01)
    wait_until_blocking(lambda: mine.is_waited_for, "somebody who waits")
    until = time.monotonic() + 0.02
    wait_until_blocking(lambda: time.monotonic() > until, "some time")
    mine.give_back()
    waits.join(60)
    assert waits.has_had is False
    assert mine.take_at_once()


def test_a_write_is_in_the_way_of_other_processes(file: Path):
    """One that takes long gives way to those that wait elsewhere, as to those that wait here."""
    mine, other = turn_at(file), turn_at(file)
    turns = Turns()
    turns.take("eve", False, 1.0)
    assert mine.take_at_once()
    turns.elsewhere = mine
    late = time.monotonic() + HOLD_ELSEWHERE
    assert not turns.in_the_way(late)
    waits = Waiting(other)
    wait_until_blocking(lambda: turns.in_the_way(late), "a write that is in the way")
    # What it does next is looked for before it has a turn.
    assert turns.expects_long("eve")
    mine.give_back()
    waits.end()


def test_the_turn_of_a_process_ends_with_it(tmp_path: Path):
    """By kill -9 in the middle of a transaction: the next one goes on at once, and nothing of it is there."""
    path = made(tmp_path / "test.sqlite3")
    database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
    connection = database.connect()
    written: list[float] = []

    def write() -> None:
        with database.writing(connection, "me"):
            connection.run("INSERT INTO Notes (body) VALUES ('whole')", (), False)
        written.append(time.monotonic())

    with ending(begun(path)) as other:
        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        looks = turn_at(Path(f"{path}-wal"))
        wait_until_blocking(lambda: looks.is_waited_for, "a thread that waits for the other process")
        assert not written
        other.send_signal(signal.SIGKILL)
        thread.join(60)
    assert written
    assert connection.run("SELECT body FROM Notes", (), True)[0] == [("whole",)]
    connection.close()


def test_other_programs_write_in_between(tmp_path: Path):
    """They know nothing of turns: a turn that begins while one of them writes waits for it as SQLite does."""
    path = made(tmp_path / "test.sqlite3")
    database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
    connection = database.connect()
    with sqlite3.connect(path, isolation_level=None, check_same_thread=False) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO Notes (body) VALUES ('theirs')")
        ends = threading.Timer(0.05, lambda: other.execute("COMMIT"))
        ends.start()
        with database.writing(connection, "me"):
            connection.run("INSERT INTO Notes (body) VALUES ('mine')", (), False)
        ends.join(60)
        assert other.execute("SELECT body FROM Notes ORDER BY id").fetchall() == [("theirs",), ("mine",)]
    other.close()
    connection.close()


def test_a_turn_that_threads_leave_to_each_other_ends_with_the_last(tmp_path: Path):
    """Also where the one that it was left to has stopped waiting: no process keeps a turn that no thread of it has."""
    path = made(tmp_path / "test.sqlite3")
    databases = [SQLiteDatabase(sa.make_url(f"sqlite:///{path}"), busy_timeout=wait) for wait in (0.0005, 0.002)]
    written: list[int] = []

    def write(number: int) -> None:
        database = databases[number % 2]
        connection = database.connect()
        for turn in range(150):
            try:
                with database.writing(connection, f"user {(number + turn) % 3}"):
                    connection.run("INSERT INTO Notes (body) VALUES ('x')", (), False)
                written.append(number)
            except Fault as fault:
                assert fault.kind in ("busy", "in_the_way")
        connection.close()

    # They keep the log in place.
    connections = [database.connect() for database in databases]
    threads = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {number % 2 for number in written} == {0, 1}
    assert connections[0].run("SELECT count(*) FROM Notes", (), True)[0] == [(len(written),)]
    looks = turn_at(Path(f"{path}-wal"))
    assert looks.take_at_once()
    for connection in connections:
        connection.close()


def test_the_log_begins_anew_though_somebody_always_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As many processes do that each read for a moment: SQLite alone would have its log grow for ever."""
    monkeypatch.setattr(sqlite, "_LOG", 8 << 20)
    path = made(tmp_path / "test.sqlite3")
    database = SQLiteDatabase(sa.make_url(f"sqlite:///{path}"))
    connection = database.connect()
    is_over, reads = threading.Event(), [0]

    def read() -> None:
        readers = [sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in range(2)]
        while not is_over.is_set():
            for reader in readers:
                reader.execute("BEGIN")
                reader.execute("SELECT max(id) FROM Notes").fetchall()
                # The other one has begun before.
                reads[0] += 1
                other = readers[reads[0] % 2]
                if other.in_transaction:
                    other.execute("ROLLBACK")
                is_over.wait(0.001)
        for reader in readers:
            reader.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    text = "x" * 40_000
    for number in range(1500):
        with database.writing(connection, "me"):
            connection.run("INSERT OR REPLACE INTO Notes VALUES (?, ?)", (number % 10, text), False)
    is_over.set()
    thread.join(60)
    assert reads[0] > 20
    # It was 1500 times 40 KB that were written.
    assert Path(f"{path}-wal").stat().st_size < 24 << 20
    connection.close()


@pytest_twisted.ensureDeferred
async def test_a_process_that_was_stopped_in_its_turn_keeps_nobody_waiting_for_ever(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """Who waits for it is told that the database is busy, and what was told so is not written later."""
    path = made(tmp_path / "test.sqlite3")
    store = make_store(f"sqlite:///{path}", load_schema(NOTES), busy_timeout=0.2, deadline=0.5)
    await store.start()
    with ending(await deferToThread(begun, path)) as other:
        assert other.stdin is not None and other.stdout is not None
        waiting = [store.create(owner, "Notes", {"body": "mine"}) for owner in ("ann", "bob")]
        for each in waiting:
            with pytest.raises(TooBusy):
                await each
        print(file=other.stdin, flush=True)
        assert await deferToThread(other.stdout.readline) == "out\n"
        await wait_until(lambda: not store._pool._used)
        await store.create("ann", "Notes", {"body": "again"})
        assert [row["body"] for row in await store.read("ann", "Notes")] == ["half", "again"]
