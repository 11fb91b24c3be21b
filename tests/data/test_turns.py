"""One user's database time: writers take turns, statements are charged and end, and what cannot end counts."""

from __future__ import annotations

import gc
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.postgres import Cluster
from support.waiting import wait_until
from twisted.internet.defer import DeferredList

from zcomm.data.drivers import sqlite
from zcomm.data.drivers import turns as turns_module
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.pool import FAR, QUICK, Use
from zcomm.data.drivers.turns import LONG_HOLD, Locks, OneAtATime, Turns
from zcomm.data.filters import MAX_TEXTUAL
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import CommandTimeout, TooBusy

NOTES = """
Notes:
  id:   {type: int, pk: true}
  body: str
  who:  str
  n:    {type: int, default: 0}
"""
#: A condition that hardly any row meets, and that takes its time with each.
DEAR: list[Any] = [{"body__like": f"%q%{number}%z%"} for number in range(20)]


def fill(
    path: Any, table: str = "id INTEGER PRIMARY KEY, body TEXT, who TEXT, n INTEGER DEFAULT 0", rows: int = 20_000
):
    with sqlite3.connect(path) as made:
        made.execute("PRAGMA journal_mode = WAL")
        made.execute(f"CREATE TABLE Notes ({table}\n)".replace("-- \n)", ""))
        text = "lorem ipsum dolor sit amet " * 8
        made.executemany(
            "INSERT INTO Notes (id, body, who) VALUES (?, ?, ?)",
            ((number + 1, text, "bob" if number < 3 else "eve") for number in range(rows)),
        )
    made.close()
    path.chmod(0o600)


class Writers:
    """Threads that each take a turn, and tell the order in which they had one."""

    def __init__(self, turns: Turns):
        self.turns = turns
        self.order: list[Any] = []
        self.threads: list[threading.Thread] = []

    def add(self, owner: str, long: bool = False) -> None:
        """Another one, which waits when this returns."""

        def write() -> None:
            self.turns.take(owner, long, 30)
            self.order.append((owner, long))
            self.turns.give_back()

        before = self._waiting()
        thread = threading.Thread(target=write)
        thread.start()
        self.threads.append(thread)
        while self._waiting() == before:
            pass

    def _waiting(self) -> int:
        while True:
            try:
                return sum(map(len, list(self.turns._lines.values())))
            except RuntimeError:
                # The thread has just come.
                continue

    def end(self) -> list[Any]:
        for thread in self.threads:
            thread.join()
        return self.order


def test_b7_users_take_turns():
    """However many writes of one user wait, that of another is the next but one."""
    turns = Turns()
    turns.take("eve", False, 1)
    writers = Writers(turns)
    for owner in ("eve", "eve", "eve", "bob", "carol"):
        writers.add(owner)
    turns.give_back()
    assert [owner for owner, _ in writers.end()] == ["eve", "bob", "carol", "eve", "eve"]


def test_b7_a_write_is_in_the_way_of_other_users_alone():
    """It is so only after a while, and not of its own user's writes."""
    turns = Turns()
    turns.take("eve", False, 1)
    late = turns._since + turns_module.HOLD * 2
    writers = Writers(turns)
    writers.add("eve")
    assert not turns.in_the_way(late)
    writers.add("bob")
    assert not turns.in_the_way(turns._since)
    assert turns.in_the_way(late)
    turns.give_back()
    writers.end()
    assert turns.expects_long("eve") and not turns.expects_long("bob")


def test_b7_long_turns_are_few():
    """A long turn is longer, does not follow on another one while others wait, and has an allowance by user."""
    turns = Turns()
    turns.take("eve", True, 1)
    writers = Writers(turns)
    for owner, long in (("mallory", True), ("bob", False), ("carol", False)):
        writers.add(owner, long)
    assert not turns.in_the_way(turns._since + LONG_HOLD / 2)
    assert turns.in_the_way(turns._since + LONG_HOLD * 2)
    turns._since -= 3600
    turns.give_back()
    assert writers.end() == [("bob", False), ("carol", False), ("mallory", True)]
    with pytest.raises(Fault, match="overdrawn"):
        turns.take("eve", True, 1)
    turns.take("eve", False, 1)
    turns.give_back()


def test_b7_who_waits_too_long_leaves_the_line():
    """Its place is nobody's: those behind it have their turn."""
    turns = Turns()
    turns.take("eve", False, 1)
    with pytest.raises(Fault, match="busy"):
        turns.take("bob", False, 0.01)
    turns.give_back()
    turns.take("carol", False, 0.01)


async def serve_notes(make_store: Callable[..., Store], path: Any, **settings: Any) -> Store:
    store = make_store(f"sqlite:///{path}/notes.sqlite3", load_schema(NOTES), 10, **settings)
    await store.start()
    return store


@pytest_twisted.ensureDeferred
async def test_b7_dear_updates_keep_nobody_from_writing(make_store, tmp_path):
    """One user has five dear updates in flight, over and over: others' creates get their turn each time."""
    fill(tmp_path / "notes.sqlite3")
    store = await serve_notes(make_store, tmp_path, busy_timeout=0.7)
    ends = False
    rounds = 0

    def again(_: Any = None) -> Any:
        nonlocal rounds
        rounds += 1
        if not ends:
            return store.update("eve", "Notes", {"$or": [*DEAR, {"who": "nobody"}]}, {"n": 1}).addBoth(again)
        return None

    attack = DeferredList([again() for _ in range(5)])
    for number in range(20):
        assert await store.create("bob", "Notes", {"body": str(number), "who": "new"})
    ends = True
    await attack


def wait_in_line(store: Store) -> Callable[[], None]:
    """Have a write of another user's wait for its turn all the time; returns what ends that."""
    turns = store._execution._database._turns  # type: ignore[attr-defined]
    ended = threading.Event()

    def stand() -> None:
        while not ended.is_set():
            turns.take("other", False, 60)
            turns.give_back()

    threads = [threading.Thread(target=stand) for _ in range(2)]
    for thread in threads:
        thread.start()

    def end() -> None:
        ended.set()
        for thread in threads:
            thread.join()

    return end


@pytest.mark.parametrize(
    "table",
    [
        "id INTEGER PRIMARY KEY, body TEXT, who TEXT, n INTEGER DEFAULT 0",
        "id INTEGER PRIMARY KEY, body TEXT, who TEXT, n INTEGER DEFAULT 0, rowid TEXT",
        "id INTEGER NOT NULL PRIMARY KEY, body TEXT, who TEXT, n INTEGER DEFAULT 0) WITHOUT ROWID -- ",
    ],
)
@pytest_twisted.ensureDeferred
async def test_b7_dear_changes_change_the_same_rows(make_store, tmp_path, table):
    """Those of a filter, whatever the table, with and without an idempotency key, while others wait all the time."""
    where = {"$or": [*DEAR, {"who": "bob"}]}
    fill(tmp_path / "notes.sqlite3", table)
    store = await serve_notes(make_store, tmp_path)
    end = wait_in_line(store)
    try:
        assert await store.update("eve", "Notes", where, {"n": 7}) == {"updated": 3}
        changed = await store.read("bob", "Notes", {"n": 7})
        assert sorted(row["id"] for row in changed) == [1, 2, 3]
        again = {"idempotency_key": "one"}
        assert await store.update("eve", "Notes", where, {"n": 8}, **again) == {"updated": 3}
        assert await store.update("eve", "Notes", where, {"n": 8}, **again) == {"updated": 3}
        assert await store.delete("eve", "Notes", where) == {"deleted": 3}
        assert await store.read("bob", "Notes", {"who": "bob"}) == []
    finally:
        end()


@pytest_twisted.ensureDeferred
async def test_statements_of_a_user_who_has_had_too_much_are_refused(store):
    """At once, for this user alone, whichever the action; the time to wait is named, and it is counted."""
    account = store._budgets.account("eve")
    account.database.charge(100)
    for refused in (store.read("eve", "Teams"), store.create("eve", "Teams", {"name": "a"})):
        with pytest.raises(TooBusy, match=r"kept the database busy for too long; try again in \d+ s"):
            await refused
    assert account.refused == 2
    assert await store.create("bob", "Teams", {"name": "a"})


@pytest_twisted.ensureDeferred
async def test_long_statements_are_charged_and_quick_ones_are_not(make_store, tmp_path):
    """What runs is charged to its owner, waiting for other writers is not."""
    fill(tmp_path / "notes.sqlite3", rows=120_000)
    store = await serve_notes(make_store, tmp_path, statement_timeout=0.1)
    with pytest.raises(CommandTimeout):
        await store.read("eve", "Notes", {"$or": DEAR})
    await wait_until(lambda: store._budgets.account("eve").in_database.value > 0)
    turns = store._execution._database._turns
    turns.take("other", False, 1)
    waiting = store.create("bob", "Notes", {"body": "x"})
    await wait_until(lambda: turns._lines)
    timer = threading.Timer(0.3, turns.give_back)
    timer.start()
    await waiting
    timer.join()
    assert store._budgets.account("bob").in_database.value < 0.3


@pytest_twisted.ensureDeferred
async def test_b7_waiting_for_another_program_is_nobodys_fault(make_store, tmp_path):
    """Who has the turn while another program keeps the file's lock is in nobody's way, and neither cut nor charged."""
    path = tmp_path / "notes.sqlite3"
    fill(path, rows=1)
    store = await serve_notes(make_store, tmp_path)
    # The table of results is made first.
    await store.create("eve", "Notes", {"body": "x"}, idempotency_key="zero")
    turns = store._execution._database._turns
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        writes = [
            store.create(owner, "Notes", {"body": "x"}, idempotency_key="one") for owner in ("eve", "bob", "carol")
        ]
        await wait_until(lambda: len(turns._lines) == 2)
        assert not turns.in_the_way(time.monotonic() + 3600)
        other.execute("COMMIT")
    other.close()
    for write in writes:
        await write
    assert not turns._slow and not turns._long


@pytest_twisted.ensureDeferred
async def test_waiting_for_others_rows_to_become_json_is_not_charged(make_store, tmp_path):
    """Of several threads one converts at a time; the others' users pay nothing meanwhile."""
    fill(tmp_path / "notes.sqlite3", rows=300)
    store = make_store(f"sqlite:///{tmp_path}/notes.sqlite3", load_schema(NOTES), 10_000)
    await store.start()
    execution = store._execution
    for as_json in (False, True):
        with execution._converting:
            reading = store.execute("eve", parse_command({"action": "read", "model": "Notes"}), as_json=as_json)
            await wait_until(lambda: any(use._paused is not None for use in execution.pool._used.values()))
        await reading


@pytest_twisted.ensureDeferred
async def test_b2_what_is_given_up_counts_until_it_is_gone(own_cluster: Cluster, make_store):
    """Backends that nothing stops, each stopped by a signal for that: their user has no more of them than its share of
    the threads, its commands are answered, others go on; and they are ended as soon as they can be."""
    name = own_cluster.new_database()
    store = make_store(own_cluster.url(name), load_schema(NOTES), 4, statement_timeout=2.0)
    await store.start()
    await store.create("bob", "Notes", {"body": "a"})
    working = "SELECT pid FROM pg_stat_activity WHERE application_name = 'zcomm' AND wait_event_type = 'Lock'"
    with (
        psycopg.connect(own_cluster.url(name)) as other,
        psycopg.connect(own_cluster.url(name), autocommit=True) as look,
    ):
        other.execute('LOCK TABLE "Notes"')
        stopped: list[tuple[int]] = []
        while not stopped:
            # Where the first is at its limit before the second has a connection, both have one the next time.
            reads = [store.read("eve", "Notes") for _ in range(2)]
            for read in reads:
                read.addErrback(lambda failure: failure.value)
            ended = DeferredList(reads)
            await wait_until(lambda over=ended: over.called or len(look.execute(working).fetchall()) == 2)
            found = look.execute(working).fetchall()
            if len(found) == 2:
                stopped = found
            else:
                await ended
        try:
            for (pid,) in stopped:
                os.kill(pid, signal.SIGSTOP)
            other.rollback()
            assert [type(await read) for read in reads] == [CommandTimeout] * 2
            assert await store.read("bob", "Notes")
            waiting = store.read("eve", "Notes")
            await wait_until(lambda: len(store._pool.left) == 2)
            assert await store.read("bob", "Notes")
            # A thread may deliver what it has before it counts itself out.
            await wait_until(lambda: store._workers.running == 2)
            assert not waiting.called
            assert await store.check()
        finally:
            for (pid,) in stopped:
                os.kill(pid, signal.SIGCONT)
        assert await waiting
        pids = [pid for (pid,) in stopped]
        there = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s)"
        await wait_until(lambda: look.execute(there, (pids,)).fetchone() == (0,))
        await wait_until(lambda: store._workers.running == 0)
        assert not store._pool.left
    # What psycopg cancelled with is left to the collector, its socket included.
    gc.collect()


@pytest_twisted.ensureDeferred
async def test_b7_waiting_for_others_rows_is_not_charged(own_cluster: Cluster, make_store):
    """Who waits in PostgreSQL for a row that another has locked keeps the time that it may have of the database."""
    name = own_cluster.new_database()
    store = make_store(own_cluster.url(name), load_schema(NOTES), 10, statement_timeout=6.0)
    await store.start()
    await store.create("bob", "Notes", {"body": "a"})
    account = store._budgets.account("bob")
    with psycopg.connect(own_cluster.url(name)) as other:
        other.execute('UPDATE "Notes" SET n = 1')
        begun = time.monotonic()
        writes = [store.update("bob", "Notes", {"id": 1}, {"n": number}) for number in range(4)]
        await wait_until(lambda: time.monotonic() > begun + 4.5)
        other.commit()
    for write in writes:
        await write
    gc.collect()
    # Of 18 seconds at least.
    assert account.database.left > 30 - 9
    assert account.in_database.value < 9


@pytest_twisted.ensureDeferred
async def test_what_waits_for_rows_of_others_keeps_nothing_else_of_its_user(
    own_cluster: Cluster, make_store, monkeypatch: pytest.MonkeyPatch
):
    """Updates of rows that another program has locked are soon known not to keep the database at work, and remain so
    until the next look; the reads of their user go on beside them, also where other users are connected."""
    name = own_cluster.new_database()
    store = make_store(own_cluster.url(name), load_schema(NOTES), 10)
    await store.start()
    store._watch.stop()
    monkeypatch.setattr(store._workers, "_are_many", lambda: True)
    rows = [await store.create("bob", "Notes", {"body": "a"}) for _ in range(4)]
    with psycopg.connect(own_cluster.url(name)) as other:
        other.execute('UPDATE "Notes" SET n = 1 WHERE id < 4')
        writes = [store.update("bob", "Notes", {"id": row["id"]}, {"n": 2}) for row in rows[:3]]
        held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await wait_until(lambda: own_cluster.execute(held) == [(3,)])
        await wait_until(lambda: not any(use.at_work for use in store._pool.at_work()))
        for _ in range(20):
            assert (await store.read("bob", "Notes", {"id": 4}))[0]["body"] == "a"
        assert not any(write.called for write in writes)
        other.commit()
    for write in writes:
        assert await write == {"updated": 1}
    gc.collect()


@pytest_twisted.ensureDeferred
async def test_what_changes_nothing_tells_nothing_of_the_time_that_a_commit_takes(own_cluster: Cluster, make_store):
    """Where commits are slow, later writes would be taken for such as the database computes for, and wait for each
    other. Nor does what the program asks for itself tell what users' requests take."""
    store = make_store(own_cluster.url(own_cluster.new_database()), load_schema(NOTES), 10)
    await store.start()
    assert await store.update("bob", "Notes", {"id": 1}, {"n": 2}) == {"updated": 0}
    assert await store.delete("bob", "Notes", {"id": 1}) == {"deleted": 0}
    assert store._pool._quickest == [FAR, FAR]
    await store.create("bob", "Notes", {"body": "a"})
    assert store._pool._quickest[0] == FAR > store._pool._quickest[1]
    await store.read("bob", "Notes", {"id": 1})
    assert store._pool._quickest[0] < FAR
    gc.collect()


#: Each row that gets ``n = 7`` takes a while, and is locked from then on.
SLOW_ROWS = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END $$;
CREATE TRIGGER slowly BEFORE UPDATE ON "Notes" FOR EACH ROW WHEN (NEW.n = 7) EXECUTE FUNCTION slowly();
INSERT INTO "Notes" (body, who, n) SELECT 'a', 'all', 0 FROM generate_series(1, 200)
"""


async def serve_slow_rows(cluster: Cluster, make_store: Callable[..., Store], **settings: Any) -> tuple[Store, str]:
    """A store, and its database, with 200 rows that take 0.2 s each for who sets ``n`` to 7."""
    name = cluster.new_database()
    store = make_store(cluster.url(name), load_schema(NOTES), 10, **settings)
    await store.start()
    cluster.execute(SLOW_ROWS, name)
    return store, name


@pytest_twisted.ensureDeferred
async def test_b7_who_has_locked_others_rows_for_long_lets_go_of_them(own_cluster: Cluster, make_store):
    """A dear update of a shared table ends when another user has waited for its rows; nothing of it is written, and it
    may be tried again. Whatever else of its user stands before the other one ends with it."""
    store, name = await serve_slow_rows(own_cluster, make_store, statement_timeout=30.0)
    with psycopg.connect(own_cluster.url(name), autocommit=True) as look:
        held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        attack = [store.update("eve", "Notes", {}, {"n": 7}, all=True)]
        await wait_until(lambda: look.execute(sleeps).fetchone() == (1,))
        attack += [store.update("eve", "Notes", {}, {"n": 7}, all=True) for _ in range(3)]
        await wait_until(lambda: look.execute(held).fetchone() == (3,))
    assert await store.update("bob", "Notes", {"id": 1}, {"n": 1}) == {"updated": 1}
    for update in attack:
        with pytest.raises(TooBusy, match=r"kept others waiting; try again in \d+ s") as refused:
            await update
        assert refused.value.retryable
    assert store._budgets.account("eve").refused == 4
    assert len(await store.read("bob", "Notes", {"n": 0})) == 199
    gc.collect()


@pytest_twisted.ensureDeferred
async def test_b7_rows_that_are_locked_over_and_over_are_let_go_of_sooner(own_cluster: Cluster, make_store):
    """Who has kept others waiting for some seconds may do so for a moment only, however many updates there are."""
    store, _ = await serve_slow_rows(own_cluster, make_store, statement_timeout=5.0)
    account = store._budgets.account("eve")
    ends = False

    def again(_: Any = None) -> Any:
        if ends or account.database.left < 0:
            return None
        return store.update("eve", "Notes", {}, {"n": 7}, all=True).addBoth(again)

    attack = DeferredList([again() for _ in range(5)])
    for number in range(6):
        assert await store.update("bob", "Notes", {"id": 1 + number % 3}, {"n": 1}) == {"updated": 1}
    ends = True
    await attack
    gc.collect()


@pytest_twisted.ensureDeferred
async def test_b7_who_waits_for_another_program_is_in_nobodys_way(own_cluster: Cluster, make_store):
    """Neither that program's transaction nor whoever waits for it ends, however many stand behind."""
    store, name = await serve_slow_rows(own_cluster, make_store, statement_timeout=30.0)
    with psycopg.connect(own_cluster.url(name)) as other:
        other.execute('UPDATE "Notes" SET n = 2 WHERE id = 2')
        first = store.update("eve", "Notes", {"id__lte": 2}, {"n": 3})
        held = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await wait_until(lambda: own_cluster.execute(held))
        begun = time.monotonic()
        writes = [store.update(owner, "Notes", {"id": 1}, {"n": 4}) for owner in ("bob", "carol")]
        await wait_until(lambda: time.monotonic() > begun + LONG_HOLD + 1.5)
        assert not first.called and not any(write.called for write in writes)
        other.commit()
    assert await first == {"updated": 2}
    for write in writes:
        assert await write == {"updated": 1}
    gc.collect()


def test_b7_what_counts_as_in_the_way():
    """What statements of another user's keep waiting for more than a moment: none of one's own or of the program's, and
    none that wait themselves for anybody else."""
    eve, mate, bob, program = Use("eve"), Use("eve"), Use("bob"), Use(None)
    locks = Locks()
    for seconds in range(1, 30):
        assert not locks.too_long({mate: [eve], bob: [program]}, 100.0 + seconds)
        assert not locks.too_long({bob: [mate], mate: [None]}, 100.2 + seconds)
        # Those who write to the same row wait for one another for a moment.
        assert not locks.too_long({Use("bob"): [Use("eve")]}, 100.5 + seconds)
        # A deadlock is the database's to find out.
        assert not locks.too_long({bob: [eve], eve: [bob]}, 100.7 + seconds)
    assert not locks._allowances
    ahead = {bob: [mate], mate: [eve, mate]}
    late = [locks.too_long(ahead, 200.0 + number / 2) for number in range(6)]
    assert late == [set()] * 5 + [{eve, mate}]
    # It has had most of what it may have.
    carol, other = Use("carol"), Use("eve")
    late = [locks.too_long({carol: [other]}, 210.0 + number / 2) for number in range(4)]
    assert late[:2] == [set()] * 2 and late[3] == {other}
    assert locks.wait("eve") > 0 == locks.wait("bob")


def test_b7_one_after_the_other_is_as_long():
    """Statements of one user that another one waits for by turns count together, also where they wait for each other
    alone; and those end as well that would be next."""
    mine, bob = [Use("eve") for _ in range(8)], Use("bob")
    locks = Locks()
    for number in range(5):
        assert not locks.too_long({bob: [mine[number]], mine[7]: [mine[number]]}, 100.0 + number / 2)
    assert locks.too_long({bob: [mine[5]], mine[7]: [mine[5]], mine[6]: [None]}, 102.5) == {mine[5], mine[7]}
    assert locks.too_long({bob: [mine[6]], mine[6]: [mine[7]], mine[7]: [mine[6]]}, 103.0) == {mine[6], mine[7]}


@pytest_twisted.ensureDeferred
async def test_b7_what_ends_a_statement_ends_no_later_one(own_cluster: Cluster, make_store):
    """A connection whose statement was told to end is nobody else's afterwards, whether it ended in time or not."""
    name = own_cluster.new_database()
    store = make_store(own_cluster.url(name), load_schema(NOTES), 10)
    await store.start()
    pool = store._pool
    with pool.connection("eve") as connection:
        use = pool.use_of(connection)
        use.is_cut = True
    with pool.connection("bob") as another:
        assert another is not connection
    pool.cut(use)
    assert not connection.alive()
    gc.collect()


def test_b7_waiting_for_other_threads_is_not_charged():
    """A use of a database in this process costs what its thread computes, however long that waits for others."""
    computed, costs = threading.Event(), {}

    def wait() -> None:
        use = Use("bob", True)
        computed.wait(30)
        use.end()
        costs["waits"] = use.seconds, use.cost

    waiting = threading.Thread(target=wait)
    waiting.start()
    use = Use("eve", True)
    begun = time.thread_time()
    while time.thread_time() < begun + 2 * QUICK:
        pass
    running = use.cost
    use.end()
    computed.set()
    waiting.join()
    assert QUICK < running <= use.cost + QUICK
    assert costs["waits"][0] >= QUICK > costs["waits"][1]


def test_b7_a_server_that_waits_for_us_is_not_at_work():
    """Of the time in which it has sent rows that nobody has taken, what this thread has computed is counted."""
    waiting = threading.Event()

    def compute() -> None:
        begun = time.thread_time()
        while time.thread_time() < begun + 2 * QUICK:
            pass
        waiting.set()

    other = threading.Thread(target=compute)
    use = Use("bob")
    since, computed = use.seconds, time.thread_time()
    other.start()
    waiting.wait(30)
    before = use.seconds
    use.spare(since, computed)
    assert use.seconds <= before - QUICK
    compute()
    before = use.seconds
    use.spare(since, computed)
    assert use.seconds >= QUICK
    other.join()


@pytest_twisted.ensureDeferred
async def test_b7_parallel_reads_of_one_user_cost_what_they_compute(make_store, tmp_path):
    """Eight large reads at once are charged no more than this process has computed."""
    fill(tmp_path / "notes.sqlite3", rows=20_000)
    store = make_store(f"sqlite:///{tmp_path}/notes.sqlite3", load_schema(NOTES), 10, row_cap=20_000)
    await store.start()
    command = parse_command({"action": "read", "model": "Notes"})
    begun = time.process_time()
    await DeferredList([store.execute("eve", command) for _ in range(8)], fireOnOneErrback=True)
    charged = store._budgets.account("eve").in_database.value
    assert 0 < charged <= time.process_time() - begun


@pytest_twisted.ensureDeferred
async def test_b7_requests_of_functions_are_refused_as_their_users(store):
    """What a function asks for is the work of who called it, who may have had too much; others' functions go on."""
    store._budgets.account("eve").database.charge(100)
    read = {"action": "read", "model": "Teams"}
    with pytest.raises(TooBusy, match=r"kept the database busy for too long; try again in \d+ s"):
        await store._workers.run("eve", store.handle_request, read)
    assert store._budgets.account("eve").refused == 1
    assert await store._workers.run("bob", store.handle_request, read) == []


@pytest_twisted.ensureDeferred
async def test_b7_users_take_turns_at_a_database_in_memory(make_store):
    """Dear reads and updates of one user keep nobody else from the only connection, nor for long."""
    store = make_store("sqlite://", load_schema(NOTES), 10, statement_timeout=3.0)
    await store.start()
    text = "lorem ipsum dolor sit amet " * 8
    store._execution._database._shared.executemany(
        'INSERT INTO "Notes" (body, who) VALUES (?, ?)', ((text, "eve") for _ in range(40_000))
    )
    ends = False

    def again(_: Any = None, number: int = 0) -> Any:
        if ends:
            return None
        asked = (
            store.update("eve", "Notes", {"$or": DEAR}, {"n": 1})
            if number
            else store.read("eve", "Notes", {"$or": DEAR})
        )
        return asked.addBoth(again, number)

    attack = DeferredList([again(number=number % 2) for number in range(5)])
    for number in range(20):
        assert await store.create("bob", "Notes", {"body": str(number), "who": "new"})
    ends = True
    await attack


@pytest.mark.parametrize("action", ["update", "delete"])
@pytest_twisted.ensureDeferred
async def test_b7_what_is_looked_for_before_a_dear_change_keeps_nobody_waiting(make_store, tmp_path, action):
    """Where a change has to leave others' rows alone, its lookups are of the rows that were found before its turn."""
    schema = load_schema(
        NOTES + "  boss: {type: int, fk: Notes.id}\n  code: {type: uuid, unique: true}\n"
        "Leaves: {id: {type: int, pk: true}, note: {type: uuid, fk: Notes.code}}"
    )
    path = tmp_path / "notes.sqlite3"
    fill(
        path,
        "id INTEGER PRIMARY KEY, body TEXT, who TEXT, n INTEGER DEFAULT 0, boss INTEGER REFERENCES Notes (id), "
        "code TEXT UNIQUE",
        40_000,
    )
    with sqlite3.connect(path) as made:
        made.execute("CREATE INDEX bosses ON Notes (boss)")
        made.execute("UPDATE Notes SET code = '0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10' WHERE id = 3")
        # It may stay, though it is out of reach.
        made.execute("UPDATE Notes SET boss = 1 WHERE id = 40000")
    made.close()
    store = make_store(f"sqlite:///{path}", schema, 10)
    await store.start()
    await store.create("bob", "Leaves", {"note": "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"})
    asked = {"action": action, "model": "Notes", "where": {"$or": [*DEAR, {"id": 40_000}]}}
    command = parse_command(asked if action == "delete" else {**asked, "values": {"boss": 1}})
    turns = store._execution._database._turns
    # A slow machine does in that what it does without a look at each row.
    turns._hold = 0.1
    end = wait_in_line(store)
    try:
        done = await store.execute("eve", command, rows={"who": "eve"}, reach=lambda model, field: {"who": "eve"})
    finally:
        end()
    assert done.result == {f"{action}d": 1}
    assert "eve" in turns._slow and not turns._long


def test_b2_threads_that_compute_hand_their_place_on():
    """It goes to whoever has waited longest; who waits for too long leaves the line, and has none."""
    place = OneAtATime()
    assert place.take(0) and not place.take(0.01) and not place.is_waited_for
    order: list[str] = []

    def wait(name: str) -> None:
        assert place.take(30)
        order.append(name)
        place.give_back()

    threads = []
    for number, name in enumerate(("one", "two", "three"), 1):
        threads.append(threading.Thread(target=wait, args=(name,)))
        threads[-1].start()
        while len(place._line) < number:
            pass
    place.give_back()
    for thread in threads:
        thread.join()
    assert order == ["one", "two", "three"] and place.take(0)


@pytest_twisted.ensureDeferred
async def test_b2_long_texts_are_looked_at_for_no_longer_than_a_statement_may_run(make_store, tmp_path):
    """Though SQLite itself takes too few steps for that to call anybody: it ends within the rows that it looks at, and
    the place of those that compute is free again."""
    path = tmp_path / "notes.sqlite3"
    fill(path, rows=1)
    with sqlite3.connect(path) as made:
        made.executemany("INSERT INTO Notes (body) VALUES (?)", [(f"{number}{'İ' * 500_000}",) for number in range(9)])
    made.close()
    store = await serve_notes(make_store, tmp_path, statement_timeout=0.02)
    for _ in range(2):
        with pytest.raises(CommandTimeout):
            await store.read("eve", "Notes", {"$or": [{"body__ilike": f"%é{number}%"} for number in range(3)]})
    assert await store.read("eve", "Notes", {"body__ilike": "%é%", "id": 1}) == []


@pytest_twisted.ensureDeferred
async def test_b2_texts_that_are_not_long_are_looked_at_for_no_longer_either(make_store, tmp_path):
    """Each takes SQLite a step or two of those after which it looks by itself: the statement ends between them."""
    path = tmp_path / "notes.sqlite3"
    fill(path, rows=1)
    with sqlite3.connect(path) as made:
        made.executemany("INSERT INTO Notes (body) VALUES (?)", [(f"{number}{'É' * 8_000}",) for number in range(60)])
    made.close()
    store = await serve_notes(make_store, tmp_path, statement_timeout=0.02)
    with pytest.raises(CommandTimeout):
        await store.read("eve", "Notes", {"$or": [{"body__ilike": f"%é{number}%"} for number in range(MAX_TEXTUAL)]})
    assert await store.read("eve", "Notes", {"body__ilike": "%é%", "id": 1}) == []


@pytest_twisted.ensureDeferred
async def test_b8_reads_of_many_rows_take_turns_at_fetching_them(make_store, tmp_path, monkeypatch):
    """One at a time of all users: each that fetches computes. Those of a few rows wait for nobody, and all are read."""
    monkeypatch.setattr(sqlite, "_PATIENCE", 30.0)
    fill(tmp_path / "notes.sqlite3", rows=5_000)
    store = await serve_notes(make_store, tmp_path)

    def read(owner: str, limit: int) -> Any:
        asked = {"action": "read", "model": "Notes", "fields": ["id"], "limit": limit, "order_by": "id"}
        return store.execute(owner, parse_command(asked), as_json=True).addCallback(lambda done: done.result)

    assert sqlite._place.take(0)
    many = [read(owner, 3_000) for owner in ("eve", "bob")]
    try:
        await wait_until(lambda: len(sqlite._place._line) == 2, "both to wait for the place")
        assert [row["id"] for row in await read("ann", 3)] == [1, 2, 3]
        assert not any(each.called for each in many)
    finally:
        sqlite._place.give_back()
    for each in many:
        result = await each
        assert [row["id"] for row in json.loads(result.json())] == list(range(1, 3_001))
        result.hold and result.hold.release()
    assert sqlite._place.take(0)
    sqlite._place.give_back()
