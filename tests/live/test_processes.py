"""Several zComms on one SQLite file, each a process of its own, as the workers of one server are.

By hand, for as long as one likes: ``ZCOMM_TEST_SECONDS=600 ./test tests/live/test_processes.py``.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from live.differ.watcher import Lost, Query, Watcher
from support.serverprocess import LISTENING, READY, RunningServer, clean_environ, twistd_command
from support.waiting import wait_until_blocking

from zcomm.auth.tokens import TokenStore

#: Seconds for which all write.
SECONDS = float(os.environ.get("ZCOMM_TEST_SECONDS", "3"))
#: Seconds for which a process is stopped.
STOPPED = 10.0 if SECONDS > 30 else 2.0

SCHEMA = """
Notes: {_model: {live: true}, id: {type: int, pk: true}, text: {type: str, unique: true}}
Counts: {_model: {live: true}, id: {type: int, pk: true}, n: {type: int, default: 0}}
"""
ALL = {"order_by": "id"}
#: In the log of a server that something went wrong with.
WRONG = ("Traceback", "database is locked", "The database failed", "overwritten", "Unhandled")

pytestmark = [pytest.mark.unmeasured, pytest.mark.child, pytest.mark.timeout(SECONDS * 4 + 200)]


class Servers:
    """Servers on one file.

    :ivar running: those that run, in the order in which they were asked for.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.path = directory / "test.sqlite3"
        (directory / "schema.yaml").write_text(SCHEMA)
        self.running: list[RunningServer] = []
        self.watchers: list[Watcher] = []
        self.tokens: list[str] = []
        self._made = 0

    def start(self, count: int) -> list[RunningServer]:
        """Start so many more at the same moment."""
        started: list[RunningServer] = []
        for _ in range(count):
            self._made += 1
            data, home = self.directory / f"data{self._made}", self.directory / f"home{self._made}"
            for each in (data, home):
                each.mkdir(mode=0o700)
            command = twistd_command(
                *("--schema", str(self.directory / "schema.yaml"), "--database", f"sqlite:///{self.path}"),
                *("--port", "0", "--data-dir", str(data), "--broadcast", "none", "--database-time", "1000"),
            )
            self.tokens.append(TokenStore(data / "tokens.json").add("root", "admin").token)
            started.append(RunningServer(command, home, clean_environ(home)))
            self.running.append(started[-1])
        for server in started:
            found = server.wait_for_log(LISTENING)
            server.wait_for_log(READY)
            server.url, server.port = found[1], int(found[2])
        return started

    def join(self, server: RunningServer) -> Watcher:
        """A connection."""
        watcher = Watcher("root", lambda _: (server.port, self.tokens[self.running.index(server)]))
        watcher.connect()
        self.watchers.append(watcher)
        return watcher

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """What another program reads in the file."""
        with closing(sqlite3.connect(self.path)) as other:
            return other.execute(sql).fetchall()

    def end(self) -> None:
        """End them all, and look whether something went wrong."""
        for watcher in self.watchers:
            watcher.close()
        for server in self.running:
            server.kill()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path)
    yield made
    made.end()


class Writers:
    """Clients that write as fast as they can, each in a thread, until they are told to stop.

    :ivar acknowledged: the texts of the notes that are there, as their clients were told.
    :ivar counted: how often a client was told that it has counted on.
    :ivar refused: answers that are errors.
    :ivar slowest: the seconds of the slowest answer, by thread.
    """

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.counted = 0
        self.refused: list[Any] = []
        self.slowest: dict[str, float] = {}
        self.lost: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, name: str, client: Watcher) -> None:
        """Have a client write."""
        self.slowest[name] = 0.0
        thread = threading.Thread(target=self._run, args=(name, client), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def end(self) -> None:
        """Have all stop."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a client got no answer"

    def _run(self, name: str, client: Watcher) -> None:
        number = 0
        try:
            while not self._over.is_set():
                number += 1
                text = f"{name} {number}"
                if self._call(name, client, "create_Notes", {"values": {"text": text}}) is not None:
                    with self._lock:
                        self.acknowledged.append(text)
                rows = self._call(name, client, "read_Counts", {"where": {"id": 1}})
                if rows:
                    had = rows[0]["n"]
                    # No other client's count is lost: who is late changes no row.
                    wanted = {"where": {"id": 1, "n": had}, "values": {"n": had + 1}}
                    found = self._call(name, client, "update_Counts", wanted)
                    with self._lock:
                        self.counted += 0 if found is None else found["updated"]
        except Lost:
            self.lost.append(name)

    def _call(self, name: str, client: Watcher, key: str, horizontal: Any) -> Any:
        begun = time.monotonic()
        answer = client.call(key, horizontal)
        self.slowest[name] = max(self.slowest[name], time.monotonic() - begun)
        if "error" in answer:
            self.refused.append(answer)
        return answer.get("result")


def texts(rows: list[bytes]) -> list[str]:
    return [json.loads(row)["text"] for row in rows]


def settled(client: Watcher, query: Query) -> None:
    """Wait until a client has what a read answers it."""

    def check() -> bool:
        while client.hear(0.05):
            pass
        return query.rows == client.read(query.model, query.asked)

    wait_until_blocking(check, f"what {query.model} has")


def test_a_new_file_is_made_once(servers: Servers):
    """Processes that start at the same moment: each is ready, and what they find is whole."""
    servers.start(4)
    assert servers.ask("PRAGMA integrity_check") == [("ok",)]
    names = [name for (name,) in servers.ask("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert {"Notes", "Counts", "zcomm_changes", "zcomm_live"} <= set(names)
    clients = [servers.join(server) for server in servers.running]
    queries = [Query("q", "Notes", ALL) for _ in clients]
    for client, query in zip(clients, queries, strict=True):
        assert client.live(query) == "rows" and query.sees == "all"
    for number, client in enumerate(clients):
        assert client.call("create_Notes", {"values": {"text": str(number)}})["result"]["id"] == number + 1
    for client, query in zip(clients, queries, strict=True):
        settled(client, query)
        assert texts(query.rows) == ["0", "1", "2", "3"]
    for server in servers.running:
        assert not [line for line in WRONG if line in server.log], server.log


def test_nothing_is_lost_where_several_write(servers: Servers):
    """Creates, counts and reads by clients of three processes: each is answered, none undoes another's."""
    servers.start(3)
    first = servers.join(servers.running[0])
    assert first.call("create_Counts", {"values": {"n": 0}})["result"]["n"] == 0
    listeners = [servers.join(server) for server in servers.running]
    asked = {"order_by": "id DESC", "limit": 20}
    queries = [(each, Query(f"q{name}", name, asked)) for each in listeners for name in ("Notes", "Counts")]
    for client, query in queries:
        assert client.live(query) == "rows"
    writers = Writers()
    for number, server in enumerate(servers.running):
        for _ in range(2):
            writers.begin(f"client {number}.{_}", servers.join(server))
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        for client, _ in queries:
            client.hear(0.01)
    writers.end()
    assert not writers.refused and not writers.lost
    assert {text for (text,) in servers.ask("SELECT text FROM Notes")} == set(writers.acknowledged)
    assert servers.ask("SELECT n FROM Counts") == [(writers.counted,)]
    for client, query in queries:
        settled(client, query)
    print(len(writers.acknowledged), "notes,", writers.counted, "counts;", writers.slowest)
    for server in servers.running:
        assert not [line for line in WRONG if line in server.log], server.log


def test_a_key_has_one_effect_in_all_processes(servers: Servers):
    """The same command with the same key, sent to two processes at the same moment."""
    servers.start(2)
    clients = [servers.join(server) for server in servers.running]
    rounds = int(20 * SECONDS)
    barrier = threading.Barrier(2)

    def send(client: Watcher) -> list[Any]:
        answers = []
        for number in range(rounds):
            barrier.wait(30)
            values = {"values": {"text": f"note {number}"}, "_idempotencyKey": f"the key of round {number}"}
            answers.append(client.call("create_Notes", values))
        return answers

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(send, clients)
    assert [each["result"] for each in one] == [each["result"] for each in other]
    assert servers.ask("SELECT count(*), count(DISTINCT text) FROM Notes") == [(rounds, rounds)]


def test_one_that_is_killed_or_stopped_harms_no_other(servers: Servers):
    """What was acknowledged is there, others go on at once, and no live query misses what was written meanwhile."""
    servers.start(3)
    stays, dies, rests = servers.running
    assert servers.join(stays).call("create_Counts", {"values": {"n": 0}})["result"]
    clients = [servers.join(stays), servers.join(rests)]
    queries = [Query("q", "Notes", {"order_by": "id DESC", "limit": 100}) for _ in clients]
    for client, query in zip(clients, queries, strict=True):
        assert client.live(query) == "rows"
    writers = Writers()
    for name, server in (("stays", stays), ("dies", dies), ("dies too", dies), ("rests", rests)):
        writers.begin(name, servers.join(server))
    begun = len(writers.acknowledged)
    wait_until_blocking(lambda: len(writers.acknowledged) > begun + 50, "some writes")
    dies.process.send_signal(signal.SIGKILL)
    wait_until_blocking(lambda: {"dies", "dies too"} <= set(writers.lost), "the end of a process")
    begun = len(writers.acknowledged)
    wait_until_blocking(lambda: len(writers.acknowledged) > begun + 50, "writes after the end of a process")
    os.kill(rests.process.pid, signal.SIGSTOP)
    started: list[RunningServer] = []
    try:
        until = time.monotonic() + STOPPED
        begun = len(writers.acknowledged)
        while time.monotonic() < until:
            clients[0].hear(0.05)
        went_on = len(writers.acknowledged) - begun
    finally:
        os.kill(rests.process.pid, signal.SIGCONT)
    started += servers.start(1)
    newcomer = servers.join(started[0])
    late = Query("q", "Notes", {"order_by": "id DESC", "limit": 100})
    assert newcomer.live(late) == "rows"
    writers.end()
    print(went_on, "notes while one was stopped,", len(writers.acknowledged), "in all;", writers.slowest)
    # Where it was stopped in its turn for longer than others wait, they are told so.
    assert {answer["code"] for answer in writers.refused} <= ({"too_busy"} if STOPPED > 5 else set())
    assert set(writers.lost) == {"dies", "dies too"}
    there = {text for (text,) in servers.ask("SELECT text FROM Notes")}
    assert set(writers.acknowledged) <= there
    (count,) = servers.ask("SELECT n FROM Counts")[0]
    # Those that died may have counted without an answer.
    assert writers.counted <= count <= writers.counted + 2
    for client, query in [*zip(clients, queries, strict=True), (newcomer, late)]:
        settled(client, query)
