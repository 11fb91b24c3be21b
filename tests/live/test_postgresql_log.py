"""Which rows of a real PostgreSQL have changed, whoever changed them: nothing is missed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import cycle
from typing import Any

import psycopg
import psycopg.sql
import pytest
import sqlalchemy as sa
from support.pgbouncer import pgbouncer
from support.postgres import Cluster
from support.rows import rows_of_a_test
from support.waiting import wait_until_blocking
from twisted.internet import reactor

from zcomm.budget.budgets import Budgets
from zcomm.config import Limits
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.postgresql import PostgreSQLDatabase
from zcomm.data.models import Field, Model, Schema
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.data.values import KINDS
from zcomm.live.log import Changes, KeyForm
from zcomm.live.postgresql import lock as postgresql_lock
from zcomm.live.postgresql import log as postgresql_log
from zcomm.live.postgresql.lock import clean
from zcomm.live.postgresql.log import PostgreSQLLog
from zcomm.live.postgresql.tables import quoted
from zcomm.runtime.workers import Workers


def model(name: str = "t", key: tuple[str, ...] = ("id",), namespace: str = "public", table: str = "") -> Model:
    fields = {column: Field(name=column, kind=KINDS["int"], pk=True, required=True) for column in key}
    return Model(name=name, fields=fields, namespace=namespace, table=table, live=True)


class Watched:
    """A log of tables of a database of the test's own, and other ways to it.

    :param url: of the database.
    """

    def __init__(self, url: str, *models: Model):
        self.url = url
        self.models = models
        self.database = PostgreSQLDatabase(sa.make_url(url))
        self.log = PostgreSQLLog(self.database, lambda: Schema({one.name: one for one in models}))

    def do_not_look(self) -> Watched:
        """Have steps not look at what was altered of the tables, which they would at any time."""
        self.log._shapes_at = float("inf")
        return self

    def look(self) -> None:
        """Have the next step look at what was altered of the tables, and others from time to time."""
        self.log._shapes_at = 0.0

    def others(self, **settings: Any) -> psycopg.Connection[Any]:
        """A connection of somebody else's."""
        return psycopg.connect(self.url, **settings)

    def watch(self) -> Watched:
        """Have all watched, and read what there is."""
        assert dict(self.log.prepare(self.models)) == {one.name: "" for one in self.models}
        return self.go_on().do_not_look()

    def go_on(self) -> Watched:
        self.log.watch()
        wait_until_blocking(lambda: self.step().known, "the log to begin")
        return self

    def step(self, *, during: Callable[[], object] = lambda: None) -> Changes:
        """The changes since the step before."""
        try:
            changes = self.log.begin([one.name for one in self.models])
            during()
            return changes
        finally:
            self.log.end()

    def clean(self) -> None:
        """Clean the log, as whoever holds the lock does now and then."""
        connection = self.database.connect()
        clean(connection)
        connection.close()

    def changes(self, name: str = "t") -> set[Any] | None:
        """The keys of one model that have changed since the step before, of which all is known."""
        changes = self.step()
        assert changes.known
        found = changes.keys.get(name, ())
        return None if found is None else set(found)


@pytest.fixture
def watched(postgresql: Cluster) -> Iterator[Callable[..., Watched]]:
    """``watched(sql, *models)``: tables that are made and watched; ``again=`` another server for the same database."""
    made: list[Watched] = []
    names: list[str] = []

    def make(sql: str = "CREATE TABLE t (id int PRIMARY KEY, v int)", *models: Model, again: bool = False) -> Watched:
        if not again:
            names.append(postgresql.new_database())
            for one in filter(str.strip, sql.split(";")):
                postgresql.execute(one, names[-1])
        made.append(Watched(postgresql.url(names[-1]), *(models or (model(),))))
        return made[-1]

    yield make
    for one in made:
        one.log.close()
    for name in names:
        postgresql.drop_database(name)


@contextmanager
def writing(one: Watched) -> Iterator[Callable[..., Any]]:
    with one.others(autocommit=True) as connection:
        yield connection.execute


WRITES = (
    ("insert", "INSERT INTO t VALUES (7, 0), (8, 0)", {7, 8}),
    ("update", "UPDATE t SET v = 5 WHERE id IN (1, 2)", {1, 2}),
    ("key", "UPDATE t SET id = id + 100 WHERE id = 1", {1, 101}),
    ("delete", "DELETE FROM t WHERE id = 3", {3}),
    ("nothing", "UPDATE t SET v = 5 WHERE id = 99", set()),
    ("truncate", "TRUNCATE t CASCADE", None),
    ("upsert", "INSERT INTO t VALUES (1, 5), (9, 5) ON CONFLICT (id) DO UPDATE SET v = 6", {1, 9}),
    ("ignored", "INSERT INTO t VALUES (1, 5), (9, 5) ON CONFLICT DO NOTHING", {9}),
    (
        "merge",
        "MERGE INTO t USING (VALUES (1), (2), (20)) s (i) ON t.id = s.i WHEN MATCHED AND i = 1 THEN DELETE "
        "WHEN MATCHED THEN UPDATE SET v = 8 WHEN NOT MATCHED THEN INSERT VALUES (i, 1)",
        {1, 2, 20},
    ),
    ("cte", "WITH d AS (DELETE FROM t WHERE id = 1 RETURNING id) INSERT INTO t SELECT id + 50, 1 FROM d", {1, 51}),
    ("many", "INSERT INTO t SELECT i, 1 FROM generate_series(1000, 1999) i", set(range(1000, 2000))),
    ("too many", "INSERT INTO t SELECT i, 1 FROM generate_series(1000, 2000) i", None),
    ("too many updated", "UPDATE t SET v = 1 WHERE id < 0", set()),
    ("replica", "SET session_replication_role = replica; INSERT INTO t VALUES (7, 0)", {7}),
    ("function", "DO $$ BEGIN INSERT INTO t VALUES (7, 0); UPDATE t SET v = 9 WHERE id = 2; END $$", {7, 2}),
    ("cascade", "DELETE FROM parent WHERE id = 1", {4}),
    ("cascaded key", "UPDATE parent SET id = 22 WHERE id = 1", {4}),
)


@pytest.fixture(scope="module")
def written(postgresql: Cluster) -> Iterator[Watched]:
    name = postgresql.new_database()
    for sql in (
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, v int, p int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE)",
    ):
        postgresql.execute(sql, name)
    one = Watched(postgresql.url(name), model()).watch()
    yield one
    one.log.close()
    postgresql.drop_database(name)


@pytest.mark.parametrize("name, sql, expected", WRITES, ids=[each[0] for each in WRITES])
def test_writes_of_others_are_known_by_their_keys(written: Watched, name: str, sql: str, expected: Any):
    """Each kind of write is read by the step after it, and by that one alone."""
    with writing(written) as execute:
        execute("TRUNCATE t, parent")
        execute("INSERT INTO parent VALUES (1), (2)")
        execute("INSERT INTO t VALUES (1, 0, 2), (2, 0, NULL), (3, 0, NULL), (4, 0, 1)")
        assert written.changes() is None
        execute(sql)
        assert written.changes() == expected
        assert written.changes() == set()
        assert not written.log.changed()


def test_updates_of_many_rows_are_many(watched: Callable[..., Watched]):
    """A statement that changes 1,000 rows names them; one more, and nobody is told which they are."""
    one = watched().watch()
    with writing(one) as execute:
        execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 1001) i")
        assert one.changes() is None
        execute("UPDATE t SET v = 1 WHERE id <= 1000")
        assert one.changes() == set(range(1, 1001))
        execute("UPDATE t SET v = 2")
        assert one.changes() is None
        execute("UPDATE t SET id = id + 5000 WHERE id <= 1000")
        assert one.changes() == {*range(1, 1001), *range(5001, 6001)}


def test_copied_rows_are_known(watched: Callable[..., Watched]):
    """COPY is a statement as others are."""
    one = watched().watch()
    with one.others() as connection:
        with connection.cursor().copy("COPY t FROM STDIN") as copy:
            copy.write_row((1, 2))
            copy.write_row((5, 2))
    assert one.changes() == {1, 5}


def test_a_transaction_is_known_when_it_is_over(watched: Callable[..., Watched]):
    """What savepoints and rollbacks undid is not told; what is not committed is told when it is, however late, and also
    by who has prepared it; what a savepoint kept is."""
    one = watched().watch()
    with one.others() as slow, one.others(autocommit=True) as quick:
        quick.execute("SET max_parallel_workers = 0")
        slow.execute("INSERT INTO t VALUES (1, 0)")
        slow.execute("SAVEPOINT a")
        slow.execute("INSERT INTO t VALUES (2, 0)")
        slow.execute("ROLLBACK TO a")
        slow.execute("SAVEPOINT b")
        slow.execute("INSERT INTO t VALUES (3, 0)")
        slow.execute("RELEASE b")
        quick.execute("INSERT INTO t VALUES (4, 0)")
        assert one.changes() == {4}
        quick.execute("INSERT INTO t VALUES (5, 0)")
        assert one.changes() == {5}
        slow.commit()
        assert one.log.changed()
        assert one.changes() == {1, 3}
        slow.execute("INSERT INTO t VALUES (6, 0)")
        slow.rollback()
        assert one.changes() == set()


def test_a_step_sees_nothing_of_what_comes_after_its_snapshot(watched: Callable[..., Watched]):
    """What is committed while a step reads is of the next one, with its rows."""
    one = watched().watch()
    with writing(one) as execute:

        def meanwhile() -> None:
            execute("INSERT INTO t VALUES (1, 0)")
            assert one.log.run("SELECT id FROM t", ()) == []

        assert one.step(during=meanwhile) == Changes({})
        assert one.changes() == {1}


def test_a_step_that_failed_is_told_again(watched: Callable[..., Watched]):
    """What a step read whose statement failed comes in the next one."""
    one = watched().watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        with pytest.raises(Fault):
            one.step(during=lambda: one.log.run("SELECT 1/0", ()))
        assert one.changes() == {1}
        assert one.changes() == set()


# -- from when on, and for whom


def test_a_writer_older_than_the_feed_is_logged(watched: Callable[..., Watched]):
    """A transaction whose snapshot is older than the lock logs what it writes: the lock stands outside of snapshots."""
    one = watched()
    one.log.prepare(one.models)
    with one.others() as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM t")
        one.go_on()
        old.execute("INSERT INTO t VALUES (1, 0)")
        old.commit()
    assert one.changes() == {1}


def test_a_writer_that_logged_nothing_is_waited_for(watched: Callable[..., Watched]):
    """Until a transaction is over that wrote before, nothing is known; who writes meanwhile is not held up, and is
    logged. The first step of which all is known comes after the transaction, with its rows."""
    one = watched()
    one.log.prepare(one.models)
    with one.others() as old, one.others(autocommit=True) as other:
        old.execute("INSERT INTO t VALUES (1, 0)")
        one.log.watch()
        # While the lock is waited for, the trigger does not get it.
        wait_until_blocking(
            lambda: (
                other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
                == (1,)
            ),
            "the lock to be waited for",
        )
        other.execute("INSERT INTO t VALUES (2, 0)")
        for _ in range(3):
            assert not one.step().known
        assert other.execute("SELECT keys FROM zcomm.changes").fetchall() == [([2],)]
        old.commit()
    wait_until_blocking(lambda: one.step().known, "the writer to be done")
    one.step(during=lambda: check(one.log.run("SELECT id FROM t ORDER BY id", ()), [(1,), (2,)]))


def check(found: object, expected: object) -> None:
    assert found == expected


def test_nothing_is_logged_while_nobody_watches(watched: Callable[..., Watched]):
    """Before somebody watches and after nobody does any more, and then the log is empty; whoever watches again knows
    nothing at first."""
    one = watched()
    one.log.prepare(one.models)
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        assert one.log.status().rows == 0
        one.go_on()
        execute("INSERT INTO t VALUES (2, 0)")
        assert one.log.status().rows == 1
        assert one.changes() == {2}
        one.log.rest()
        assert one.log.status() == replace(one.log.status(), rows=0, holder=None, feeds={})
        execute("INSERT INTO t VALUES (3, 0)")
        assert one.log.status().rows == 0
        one.log.watch()
        assert not one.step().known
        one.go_on()
        execute("INSERT INTO t VALUES (4, 0)")
        assert one.changes() == {4}


def test_two_servers_share_one_log(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch):
    """Both are told of all; the log keeps what one of them has not read. When the one with the lock stops, the other
    knows nothing until it has it."""
    monkeypatch.setattr(postgresql_log, "RENEW_EVERY", 0.0)
    one = watched().watch()
    two = watched(again=True).watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        assert one.changes() == {1}
        one.log.tend()
        one.clean()
        assert one.log.status().rows == 1
        assert two.log.changed()
        assert two.changes() == {1}
        two.log.tend()
        execute("INSERT INTO t VALUES (2, 0)")
        assert two.changes() == one.changes() == {2}
        one.log.tend()
        two.log.tend()
        one.clean()
        assert one.log.status().rows == 0
        assert len(one.log.status().feeds) == 2
        one.log.rest()
        execute("INSERT INTO t VALUES (3, 0)")
        assert not two.step().known
        two.go_on()
        execute("INSERT INTO t VALUES (4, 0)")
        assert two.changes() == {4}


def test_a_server_that_waits_holds_no_snapshot(watched: Callable[..., Watched]):
    """The one that does not get the lock keeps nothing from being cleaned up in the database, however long it waits."""
    one = watched().watch()
    two = watched(again=True).watch()
    two.log.tend()
    held = "SELECT pid FROM pg_stat_activity WHERE application_name = 'zcomm' AND backend_xmin IS NOT NULL"
    with writing(one) as execute:
        for _ in range(20):
            assert execute(held).fetchall() == []


def test_a_server_that_was_away_for_long_knows_nothing(watched: Callable[..., Watched]):
    """Who cleans the log removes those that were not seen, and what was kept for them; they find that out."""
    one = watched().watch()
    (first,) = one.log.status().feeds
    two = watched(again=True).watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        assert one.changes() == {1}
        execute("UPDATE zcomm.feeds SET seen = now() - interval '2 minutes' WHERE id <> %s", (first,))
        one.clean()
        assert not two.step().known
        execute("INSERT INTO t VALUES (2, 0)")
        assert two.changes() == {2}


def test_a_lock_that_is_lost_is_taken_again(watched: Callable[..., Watched]):
    """When its session ends, nothing is known until it has another one."""
    one = watched().watch()
    with writing(one) as execute:
        holder = one.log.status().holder
        assert holder is not None
        execute("SELECT pg_terminate_backend(%s, 5000)", (holder[0],))
        assert one.log.changed()
        assert not one.step().known
        execute("INSERT INTO t VALUES (1, 0)")
        one.go_on()
        execute("INSERT INTO t VALUES (2, 0)")
        assert one.changes() == {2}


def test_a_life_that_somebody_removes_is_begun_anew(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch):
    """An emptied table is no reason to know nothing for ever."""
    monkeypatch.setattr(postgresql_lock, "REST_EVERY", 0.05)
    one = watched().watch()
    with writing(one) as execute:
        execute("TRUNCATE zcomm.life, zcomm.changes, zcomm.feeds")
        assert not one.step().known
        one.go_on()
        execute("INSERT INTO t VALUES (2, 0)")
        assert one.changes() == {2}


def test_a_log_that_somebody_empties_is_known_to_be_empty(watched: Callable[..., Watched]):
    """By TRUNCATE, right behind a change that no step has read: that one is not lost, it is among all that is read
    anew."""
    one = watched().watch()
    with writing(one) as execute:
        for _ in range(3):
            execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1, 0 FROM t")
            execute("TRUNCATE zcomm.changes")
            assert one.log.changed()
            assert not one.step().known
            assert not one.log.changed()
            execute("INSERT INTO t SELECT max(id) + 1, 0 FROM t")
            assert one.changes()


# -- what becomes of the database


def test_a_crash_of_the_server_is_survived(own_cluster: Cluster):
    """The numbers of transactions that were lost come again: after it nothing is known at first, and then all is."""
    own_cluster.execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
    one = Watched(own_cluster.url(), model()).watch()
    try:
        with writing(one) as execute:
            execute("SET synchronous_commit = off")
            for number in range(3):
                execute("INSERT INTO t VALUES (%s, 0)", (number,))
            assert one.changes() == {0, 1, 2}
            (pid,) = execute("SELECT pg_backend_pid()").fetchone()
            os.kill(pid, signal.SIGKILL)

        def broken() -> bool:
            try:
                one.step()
                return False
            except Fault:
                return True

        def recovered() -> Changes | None:
            with suppress(Fault):
                one.log.watch()
                return one.step()
            return None

        wait_until_blocking(broken, "the crash")
        assert not wait_until_blocking(recovered, "the server to recover").known
        wait_until_blocking(lambda: (found := recovered()) and found.known, "the log to begin")
        with writing(one) as execute:
            execute("INSERT INTO t VALUES (7, 0)")
        assert one.changes() == {7}
    finally:
        one.log.close()


def test_a_prepared_transaction_is_known_when_it_is_committed(own_cluster: Cluster):
    """Also where it was prepared before somebody watched, and logged nothing: it is waited for."""
    own_cluster.stop()
    own_cluster.start("max_prepared_transactions=5")
    own_cluster.execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
    one = Watched(own_cluster.url(), model())
    try:
        one.log.prepare(one.models)
        with writing(one) as execute:
            for sql in ("BEGIN", "INSERT INTO t VALUES (1, 0)", "PREPARE TRANSACTION 'one'"):
                execute(sql)
            one.log.watch()
            assert not one.step().known
            execute("COMMIT PREPARED 'one'")
            one.go_on()
            for sql in ("BEGIN", "INSERT INTO t VALUES (2, 0)", "PREPARE TRANSACTION 'two'"):
                execute(sql)
            execute("INSERT INTO t VALUES (3, 0)")
            assert one.changes() == {3}
            execute("COMMIT PREPARED 'two'")
            assert one.changes() == {2}
    finally:
        one.log.close()


def test_a_dump_brings_no_changes_along(postgresql: Cluster, watched: Callable[..., Watched]):
    """A restored log says nothing: its transactions are of another server. Its triggers are watched as they are."""
    one = watched().watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        execute("INSERT INTO zcomm.changes (xid, relation, keys) SELECT '999999999', relation, keys FROM zcomm.changes")
        dump = subprocess.run(["pg_dump", "-d", one.url], check=True, capture_output=True, timeout=60).stdout
        two = watched("")
        subprocess.run(["psql", "-q", "-d", two.url], input=dump, check=True, capture_output=True, timeout=60)
    assert two.log.status().rows == 2
    two.watch()
    assert two.log.status().rows == 0
    with writing(two) as execute:
        execute("INSERT INTO t VALUES (2, 0)")
    assert two.changes() == {2}
    assert two.changes() == set()


def test_tables_are_locked_against_truncation_before_they_are_read(watched: Callable[..., Watched]):
    """TRUNCATE is of no snapshot: it waits for the step, which reads what was there; and a step does not wait for long
    for a table that is being truncated: a later one tells of it."""
    one = watched().watch()
    with writing(one) as execute, one.others() as other:
        execute("INSERT INTO t VALUES (1, 0)")
        one.changes()

        def truncate() -> None:
            other.execute("TRUNCATE t")
            other.execute("INSERT INTO t VALUES (2, 0)")

        thread = threading.Thread(target=truncate)

        def meanwhile() -> None:
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            wait_until_blocking(lambda: execute(waiting).fetchone() == (1,), "the truncation to wait")
            check(one.log.run("SELECT id FROM t", ()), [(1,)])

        assert one.step(during=meanwhile) == Changes({})
        thread.join(10)
        assert one.step() == Changes({}, away=frozenset({"t"}))
        other.commit()
        wait_until_blocking(lambda: one.log.changed() and one.changes() is None, "the table")


# -- tables


def test_partitions_are_watched_whoever_writes_them(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch):
    """By the table or directly, from one to another; one that comes or goes has the queries read anew."""
    monkeypatch.setattr(postgresql_log, "COMPARE_EVERY", 0.0)
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (100) TO (200) PARTITION BY LIST (id);"
        "CREATE TABLE t2a PARTITION OF t2 DEFAULT;"
        "CREATE TABLE late (v int, id int PRIMARY KEY)"
    ).watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0), (150, 0)")
        assert one.changes() == {1, 150}
        execute("UPDATE t SET id = 160 WHERE id = 1")
        assert one.changes() == {1, 160}
        execute("UPDATE t2a SET v = 5 WHERE id = 150")
        assert one.changes() == {150}
        execute("INSERT INTO t2 VALUES (151, 0)")
        assert one.changes() == {151}
        execute("INSERT INTO late VALUES (0, 250)")
        execute("ALTER TABLE t ATTACH PARTITION late FOR VALUES FROM (200) TO (300)")
        assert one.log.tend() == {}
        assert one.changes() is None
        execute("INSERT INTO late VALUES (0, 251)")
        assert one.changes() == {251}
        execute("ALTER TABLE t DETACH PARTITION late")
        assert one.log.tend() == {}
        assert one.changes() is None
        execute("DROP TABLE t1")
        one.log.tend()
        assert one.changes() is None
        execute("TRUNCATE t2a")
        assert one.changes() is None


@pytest.mark.parametrize("form", ["{}", "DO 'BEGIN {}; END'", "SELECT f()", "EXECUTE m", "BEGIN; EXECUTE m; COMMIT"])
def test_rows_that_merge_moves_to_another_partition_are_told(watched: Callable[..., Watched], form: str):
    """PostgreSQL has them in no transition table of an update; all is read anew."""
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (100) TO (200)"
    ).watch()
    merge = "MERGE INTO t USING (VALUES (1)) AS s (k) ON t.id = s.k WHEN MATCHED THEN UPDATE SET id = 101"
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0), (2, 0)")
        assert one.changes() == {1, 2}
        execute(f"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS 'BEGIN {merge}; END'")
        execute(f"PREPARE m AS {merge}")
        execute(form.format(merge))
        assert one.changes() is None
        execute("UPDATE t SET id = 102 WHERE id = 2")
        assert one.changes() == {2, 102}


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t RENAME TO old; ALTER TABLE other RENAME TO t; "
        "ALTER TABLE t RENAME TO other; ALTER TABLE old RENAME TO t",
        "ALTER TABLE t DISABLE TRIGGER ALL; UPDATE t SET v = 5; ALTER TABLE t ENABLE TRIGGER ALL",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id < 2)",
        "ALTER POLICY q ON t USING (id < 3)",
        "CREATE TABLE heir () INHERITS (t); INSERT INTO heir VALUES (7, 7)",
        "ALTER TABLE t RENAME v TO w; ALTER TABLE t RENAME w TO v",
        "ALTER SCHEMA public RENAME TO old; ALTER SCHEMA old RENAME TO public",
    ],
    ids=["swapped", "disabled", "row security", "policy", "heir", "column", "schema"],
)
def test_what_is_altered_has_all_read_anew(watched: Callable[..., Watched], sql: str):
    """Also where it is undone by the time that somebody looks. Statistics and vacuum alter nothing."""
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE POLICY q ON t;"
        "CREATE TABLE other (id int PRIMARY KEY, v int);"
        "INSERT INTO t VALUES (1, 0), (2, 0)"
    ).watch()
    with writing(one) as execute:
        execute("UPDATE t SET v = 1 WHERE id = 1")
        one.look()
        assert one.changes() == {1}
        execute("VACUUM ANALYZE t")
        execute("VACUUM FREEZE t")
        one.look()
        assert not one.log.changed()
        for each in sql.split("; "):
            execute(each)
        wait_until_blocking(one.log.changed, "what was altered")
        assert one.changes() is None and one.changes() == set()
        assert one.log.tend() == {}
        one.look()
        one.changes()
        execute("UPDATE t SET v = 9 WHERE id = 1")
        assert one.changes() == {1}
        assert one.changes() == set()


def test_a_table_that_takes_the_place_of_another_is_looked_at_as_well(watched: Callable[..., Watched]):
    """From then on: also where the first one is put back."""
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE other (id int PRIMARY KEY, v int);"
        "CREATE TABLE part (id int PRIMARY KEY, v int)"
    ).watch()
    one.look()
    one.changes()
    with writing(one) as execute:
        for first, second in (("old", "other"), ("other", "old")) * 2:
            execute(f"BEGIN; ALTER TABLE t RENAME TO {first}; ALTER TABLE {second} RENAME TO t; COMMIT")
            wait_until_blocking(one.log.changed, "what was altered")
            assert one.changes() is None
            one.log.tend()
            # As the feed does: what is put right, and what came, asks for steps of its own.
            while one.log.changed():
                one.changes()


def test_heirs_are_watched_with_their_parent(watched: Callable[..., Watched]):
    """Their rows are rows of the parent as well."""
    one = watched("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE heir (w int) INHERITS (t)").watch()
    heir = watched("", model("heir"), again=True).watch()
    with writing(one) as execute:
        execute("INSERT INTO heir VALUES (1, 0, 0)")
        assert one.changes() == heir.changes("heir") == {1}
        execute("UPDATE t SET v = 2")
        assert one.changes() == heir.changes("heir") == {1}
        execute("UPDATE t SET v = 3")
        assert one.changes() == {1}


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE t ENABLE TRIGGER ALL",
        "DROP TRIGGER zcomm_update_da01325d ON t",
        "DROP TRIGGER zcomm_update_da01325d ON t; CREATE TRIGGER zcomm_update_da01325d AFTER UPDATE ON t FOR EACH "
        "STATEMENT EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "DROP SCHEMA zcomm CASCADE",
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v int)",
        "ALTER TABLE t RENAME TO gone; CREATE TABLE t (id int PRIMARY KEY, v int)",
        "ALTER TABLE t ALTER id TYPE bigint",
    ],
    ids=["not always", "dropped", "other", "schema", "new table", "renamed", "type"],
)
def test_triggers_that_are_not_right_are_made_right(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch, sql: str
):
    """Once they are compared; what happened before is not known, and so all is read anew."""
    monkeypatch.setattr(postgresql_log, "COMPARE_EVERY", 0.0)
    monkeypatch.setattr(postgresql_lock, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(postgresql_lock, "REST_EVERY", 0.02)
    one = watched().watch()
    with writing(one) as execute:
        for each in sql.split("; "):
            execute(each)
        assert one.log.tend() == {}
        first = one.step()
        assert not first.known or first.keys["t"] is None
        one.go_on()
        execute("SET session_replication_role = replica")
        execute("INSERT INTO t VALUES (1, 0)")
        assert one.changes() == {1}
        execute("UPDATE t SET v = 8")
        assert one.changes() == {1}


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t RENAME id TO other",
        "ALTER TABLE t DROP id",
        "ALTER TABLE t ALTER id TYPE text",
        "ALTER TABLE t ALTER id TYPE bool USING id > 0",
        "ALTER TABLE t ADD n int, ADD o int, ADD q int, ADD k1 int",
    ],
)
def test_no_writer_fails_when_a_key_is_altered(watched: Callable[..., Watched], sql: str):
    """A migration may alter the column that a trigger names: writes go on, and what they change is not known."""
    one = watched("CREATE TABLE t (id int PRIMARY KEY, v int, w int)").watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        execute(sql)
        one.changes()
        execute("UPDATE t SET v = 5")
        assert one.changes() == ({1} if "ADD" in sql else None)
        execute(
            "INSERT INTO t (v) VALUES (1)" if "DROP" in sql else "INSERT INTO t VALUES ('1', 1) ON CONFLICT DO NOTHING"
        )
        execute("DELETE FROM t")
        one.changes()


def test_tables_that_cannot_be_watched_say_why(watched: Callable[..., Watched]):
    """Each in words that follow "its table is not watched: "; what can be is."""
    names = ("t", "view", "stored", "keyless", "gone", "far", "wide", "quiet")
    models = [model(name) for name in names]
    models[3] = replace(models[3], fields={})
    models[-1] = replace(models[-1], live=False)
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY);"
        "CREATE VIEW view AS SELECT * FROM t;"
        "CREATE MATERIALIZED VIEW stored AS SELECT * FROM t;"
        "CREATE TABLE keyless (v int);"
        "CREATE TABLE quiet (id int PRIMARY KEY);"
        "CREATE TABLE wide (id int4range PRIMARY KEY);"
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;"
        "CREATE FOREIGN TABLE far (id int) SERVER files OPTIONS (filename '/dev/null')",
        *models,
    )
    assert one.log.prepare(models) == {
        "t": "",
        "view": "it is a view, whose rows change without a trigger",
        "stored": "it is a materialized view, whose rows change without a trigger",
        "keyless": "it has no primary key in the schema",
        "gone": "it is not there as the schema has it",
        "far": "it is a foreign table, whose rows change without a trigger",
        "wide": "its key id is of type int4range, whose values cannot be told apart by their text",
        "quiet": "its model does not say so, with _model: {live: true}",
    }
    quiet = Watched(one.url, models[0], models[-1])
    assert quiet.log.prepare(models[:1]) == {"t": ""}
    assert isinstance(quiet.log.key_form(models[-1]), KeyForm)
    assert quiet.log.tend() == {}
    quiet.log.close()
    assert one.log.key_form(models[6]) == "its key id is of type int4range, whose values have no exact text"
    one.go_on()
    one.step(during=lambda: check(one.log.run("SELECT count(*) FROM view", ()), [(0,)]))


KEYS = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN short AS varchar(9) CHECK (VALUE <> '');
CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE k_int2 (id int2 PRIMARY KEY);
CREATE TABLE k_int8 (id int8 PRIMARY KEY);
CREATE TABLE k_text (id text PRIMARY KEY);
CREATE TABLE k_loose (id text COLLATE loose PRIMARY KEY);
CREATE TABLE k_varchar (id varchar(40) PRIMARY KEY);
CREATE TABLE k_char (id char(8) PRIMARY KEY);
CREATE TABLE k_citext (id citext PRIMARY KEY);
CREATE TABLE k_short (id short PRIMARY KEY);
CREATE TABLE k_uuid (id uuid PRIMARY KEY);
CREATE TABLE k_bool (id bool PRIMARY KEY);
CREATE TABLE k_numeric (id numeric PRIMARY KEY);
CREATE TABLE k_float4 (id float4 PRIMARY KEY);
CREATE TABLE k_float8 (id float8 PRIMARY KEY);
CREATE TABLE k_bytea (id bytea PRIMARY KEY);
CREATE TABLE k_date (id date PRIMARY KEY);
CREATE TABLE k_time (id time PRIMARY KEY);
CREATE TABLE k_timetz (id timetz PRIMARY KEY);
CREATE TABLE k_timestamp (id timestamp PRIMARY KEY);
CREATE TABLE k_timestamptz (id timestamptz PRIMARY KEY);
CREATE TABLE k_mood (id mood PRIMARY KEY);
CREATE TABLE k_inet (id inet PRIMARY KEY);
CREATE TABLE k_name (id name PRIMARY KEY)
"""
VALUES = {
    "int2": ["1", "-32768"],
    "int8": ["9223372036854775807"],
    "text": ["", "a", "ü''\"\\ %s {x,y}", "NULL", " "],
    "loose": ["a", "ß"],
    "varchar": ["a ", "%"],
    "char": ["a", ""],
    "citext": ["Ab"],
    "short": ["x y"],
    "uuid": ["6f1c0b5e-3a55-4bd1-9a3d-0d0c7a6a8a01"],
    "bool": ["true", "false"],
    "numeric": ["1.50", "-0.001", "NaN", "1e30"],
    "float4": ["0.1", "-0", "Infinity", "1.1754944e-38"],
    "float8": ["0.1", "0.30000000000000004", "NaN", "5e-324"],
    "bytea": ["\\x00ff5c", "\\x"],
    "date": ["2024-02-03", "infinity", "0044-03-15 BC"],
    "time": ["04:05:06.789", "24:00"],
    "timetz": ["04:05:06+05:30"],
    "timestamp": ["2024-02-03 04:05:06.7", "-infinity", "0044-03-15 01:02:03 BC"],
    "timestamptz": ["2024-02-03 04:05:06.7+03", "infinity", "0044-03-15 01:02:03+00 BC"],
    "mood": ["glad"],
    "inet": ["10.0.0.1/8", "::1"],
    "name": ["pg"],
}


def test_keys_have_one_name_whatever_their_type(postgresql: Cluster, watched: Callable[..., Watched]):
    """The log brings what the key's expressions bring of the row, and the condition finds the row, by its index; in a
    database that writes dates, numbers and bytes in its own way."""
    models = [model(f"k_{name}") for name in VALUES]
    one = watched(KEYS, *models)
    database = sa.make_url(one.url).database
    for setting in (
        "datestyle = 'SQL, DMY'",
        "timezone = 'Asia/Kolkata'",
        "extra_float_digits = -3",
        "bytea_output = 'escape'",
        "enable_seqscan = off",
        "jit = off",
    ):
        postgresql.execute(f"ALTER DATABASE {database} SET {setting}")
    one.watch()
    with writing(one) as execute, rows_of_a_test() as row:
        for each in models:
            name = each.name
            for value in VALUES[name[2:]]:
                execute(f"INSERT INTO {name} VALUES ({psycopg.sql.Literal(value).as_string(None)})")
            form = one.log.key_form(each)
            assert isinstance(form, KeyForm)
            changes = one.step().keys[name]
            with row(name):
                assert changes is not None and len(changes) == len(VALUES[name[2:]])

                def look(form: KeyForm = form, name: str = name, changes: Any = changes) -> None:
                    found = one.log.run(f"SELECT {form.columns[0]} FROM {name}", ())
                    assert {key for (key,) in found} == set(changes)
                    asked = f"SELECT {form.columns[0]} FROM {name} WHERE {form.condition}"
                    assert one.log.run(asked, (form.encode(list(changes)),)) != []
                    for key in changes:
                        assert (key,) in one.log.run(asked, (form.encode([key]),))
                    plan = str(one.log.run("EXPLAIN " + asked, (form.encode(list(changes)),)))
                    assert "Index" in plan or "Bitmap" in plan

                one.step(during=look)


def test_keys_of_several_columns_are_named_by_all_of_them(watched: Callable[..., Watched]):
    """In the order of the model, each with its own type; a condition finds the rows by all of them."""
    one = watched(
        "CREATE TYPE mood AS ENUM ('sad', 'glad');"
        'CREATE TABLE t (v int, "At" timestamptz, "n%" int, m mood, s text, PRIMARY KEY (s, "n%", "At", m))',
        model("t", ("n%", "s", "At", "m")),
    ).watch()
    key = (5, 'a"b', "2024-01-02 03:04:05+00", "glad")
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (0, '2024-01-02 04:04:05+01', 5, 'glad', 'a\"b'), (0, 'infinity', 6, 'sad', '')")
        assert one.changes() == {key, (6, "", "infinity", "sad")}
        execute("UPDATE t SET s = 'c' WHERE s = ''")
        assert one.changes() == {(6, "", "infinity", "sad"), (6, "c", "infinity", "sad")}
        form = one.log.key_form(one.models[0])
        assert isinstance(form, KeyForm)
        assert form.columns[:2] == ('"n%"', '"s"')
        columns = ", ".join(form.columns).replace("%", "%%")
        asked = f"SELECT {columns} FROM t WHERE {form.condition}"
        wanted = [key, (7, "x", "infinity", "sad"), (6, "c", "infinity", "gone")]
        one.step(during=lambda: check(one.log.run(asked, (form.encode(wanted),)), [key]))


def test_nothing_that_a_database_is_full_of_gets_in_between(watched: Callable[..., Watched]):
    """A key may be called as a variable of PL/pgSQL is, or anyhow; a writer's search path may have tables, functions
    and operators of the same names as those that a trigger uses."""
    names = ("tg_op", "new", "found", "$zcomm$", "a'b", "k1", "n", "t", "%s")
    one = watched(
        f'CREATE TABLE "T\'%" ({", ".join(f"{quoted(name)} int" for name in names)}, v int, '
        f"PRIMARY KEY ({', '.join(map(quoted, names))}));"
        "CREATE SCHEMA bad;"
        "CREATE TABLE bad.n (id int); CREATE TABLE bad.o (id int); CREATE TABLE bad.changes (id int);"
        "CREATE FUNCTION bad.count(int) RETURNS bigint LANGUAGE sql AS 'SELECT 1/0';"
        "CREATE FUNCTION bad.jsonb_build_array(int, int, int, int, int, int, int, int, int) RETURNS jsonb "
        "LANGUAGE sql AS 'SELECT NULL::jsonb';"
        "CREATE FUNCTION bad.no(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';"
        "CREATE OPERATOR bad.= (LEFTARG = text, RIGHTARG = text, FUNCTION = bad.no)",
        model("t", names, table="T'%"),
    ).watch()
    key = tuple(range(1, 10))
    with writing(one) as execute:
        execute("SET search_path = bad, pg_catalog, public")
        execute(f'INSERT INTO "T\'%" VALUES {(*key, 0)}')
        assert one.changes() == {key}
        execute('UPDATE "T\'%" SET v = 1')
        assert one.changes() == {key}
        execute('DELETE FROM "T\'%"')
        assert one.changes() == {key}


def test_a_label_that_is_no_more_is_no_error(watched: Callable[..., Watched]):
    """Of the keys that are asked for some may have a label that was renamed since."""
    one = watched("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE t (id mood PRIMARY KEY)").watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES ('sad'), ('glad')")
        execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
        form = one.log.key_form(one.models[0])
        assert isinstance(form, KeyForm)
        asked = f"SELECT id FROM t WHERE {form.condition}"
        one.step(during=lambda: check(one.log.run(asked, (form.encode(["sad", "glad"]),)), [("glad",)]))


# -- rights


@pytest.fixture
def plain(postgresql: Cluster) -> Iterator[str]:
    """A role that may nothing."""
    postgresql.execute("CREATE ROLE plain LOGIN")
    yield "plain"
    for (name,) in postgresql.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'"):
        postgresql.execute("DROP OWNED BY plain CASCADE", str(name))
    postgresql.execute("DROP ROLE plain")


def test_who_may_make_no_triggers_says_what_a_dba_can_do(watched: Callable[..., Watched], plain: str):
    """Tables of others are not watched, and all else works; when their owner has run the SQL, they are. What removes it
    leaves nothing behind."""
    models = (model(), model("mine"))
    one = watched("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE mine (id int PRIMARY KEY)", *models)
    their = Watched(one.url.replace("postgres@", "plain@"), *models)
    with writing(one) as execute:
        execute("GRANT SELECT (id) ON t TO plain")
        execute("ALTER TABLE mine OWNER TO plain")
        reasons = their.log.prepare(models)
        assert set(reasons) == {"t", "mine"}
        assert all("may not create the schema zcomm" in reason for reason in reasons.values())
        their.log.watch()
        assert their.step(during=lambda: check(their.log.run("SELECT id FROM t", ()), [])) == Changes({})
        assert not their.log.changed()
        script = their.log.live_sql(models[0])
        execute(script)
        assert their.log.prepare(models) == {
            "t": "",
            "mine": "its triggers cannot be made: 42501 permission denied for schema zcomm",
        }
        execute("GRANT CREATE ON SCHEMA zcomm TO plain")
        assert their.log.prepare(models) == {"t": "", "mine": ""}
        their.go_on()
        execute("INSERT INTO t VALUES (1)")
        execute("INSERT INTO mine VALUES (1)")
        assert {name: set(keys or ()) for name, keys in their.step().keys.items()} == {"t": {1}, "mine": {1}}
        their.log.rest()
        execute("REVOKE INSERT ON zcomm.changes FROM plain")
        assert "grant too little to the role plain" in their.log.prepare(models)["t"]
        assert one.log.prepare(models)["mine"] == "the role plain, to which its function belongs, may not write the log"
        execute("GRANT INSERT ON zcomm.changes TO plain")
        execute("DROP TRIGGER zcomm_delete_da01325d ON t")
        assert "belongs to postgres" in their.log.prepare(models)["t"]
        execute(one.log.live_off_sql())
        assert execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchone() == (0,)
        assert execute("SELECT to_regnamespace('zcomm')").fetchone() == (None,)
        execute("INSERT INTO t VALUES (2)")
    their.log.close()


def test_all_is_removed_whatever_has_become_of_the_tables(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
):
    """A partition that was detached has its triggers still, and so has a table that goes by another name, or is not as
    its model says; those of tables that belong to others stay."""
    odd = 'it\'s "theirs" % $zcomm$'
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE part PARTITION OF t FOR VALUES FROM (0) TO (9); CREATE TABLE gone PARTITION OF t DEFAULT;"
        "CREATE TABLE renamed (id int PRIMARY KEY); CREATE TABLE moved (id int PRIMARY KEY);"
        f"CREATE TABLE {quoted(odd)} (id int PRIMARY KEY); CREATE SCHEMA app",
        *(model(name) for name in ("t", "renamed", "moved")),
        model("odd", table=odd),
    )
    assert dict(one.log.prepare(one.models)) == {each.name: "" for each in one.models}
    monkeypatch.setattr(postgresql_log, "ATTEMPTS", 0)
    with suppress(psycopg.errors.DuplicateObject), writing(one) as execute:
        execute("CREATE ROLE remover LOGIN")
    their = Watched(one.url.replace("postgres@", "remover@"))
    with writing(one) as execute, one.others() as busy:
        execute("ALTER TABLE t DETACH PARTITION gone")
        execute('ALTER TABLE renamed RENAME TO "Old ""one"""')
        execute("ALTER TABLE moved SET SCHEMA app")
        execute(f"ALTER TABLE {quoted(odd)} DROP COLUMN id")
        assert len(one.log.watched()) == 6
        busy.execute("INSERT INTO app.moved VALUES (1)")
        # Whoever writes waits behind who removes, and for no longer than that.
        with pytest.raises(Fault, match="busy"):
            one.log.remove()
        assert len(one.log.watched()) == 6
        busy.rollback()
        execute("GRANT USAGE ON SCHEMA app TO remover")
        execute("ALTER TABLE app.moved OWNER TO remover")
        their.log.remove()
        assert len(their.log.status().tables) == 5 and "app.moved" not in one.log.watched()
        one.log.remove()
        assert one.log.watched() == []
        assert execute("SELECT to_regnamespace('zcomm')").fetchone() == (None,)
        execute("DROP OWNED BY remover")
    their.log.close()


def test_servers_that_install_at_once_do_not_meet(watched: Callable[..., Watched]):
    """Each finds all as it should be in the end."""
    models = [model(f"t{number}") for number in range(4)]
    first = watched("; ".join(f"CREATE TABLE t{number} (id int PRIMARY KEY)" for number in range(4)), *models)
    servers = [first, *(watched("", *models, again=True) for _ in range(3))]
    reasons: list[Any] = []
    threads = [
        threading.Thread(target=lambda one=one: reasons.append(one.log.prepare(models)))  # type: ignore[misc]
        for one in servers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert reasons == [{one.name: "" for one in models}] * 4


def test_a_table_in_use_holds_the_start_up_for_no_longer_than_it_may(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
):
    """A table that somebody writes for long is watched later; writers behind us wait for no longer than we do."""
    monkeypatch.setattr(postgresql_log, "ATTEMPTS", 1)
    monkeypatch.setattr(postgresql_log, "COMPARE_EVERY", 0.0)
    one = watched("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)", model(), model("u"))
    with one.others() as busy:
        busy.execute("INSERT INTO t VALUES (1)")
        assert one.log.prepare(one.models) == {
            "t": "others keep its table locked, so that its triggers cannot be made; it is tried again",
            "u": "",
        }
        busy.commit()
    assert one.log.tend() == {"t": ""}


def test_behind_a_pooler_nothing_is_watched(postgresql: Cluster):
    """A lock of a session that is others' as well would be theirs; rows are read all the same."""
    name = postgresql.new_database()
    postgresql.execute("CREATE TABLE t (id int PRIMARY KEY)", name)
    with pgbouncer(postgresql) as bouncer:
        one = Watched(bouncer.url(name), model())
        assert "a pooler stands before the database" in one.log.prepare(one.models)["t"]
        one.log.watch()
        assert one.step(during=lambda: check(one.log.run("SELECT count(*) FROM t", ()), [(0,)])) == Changes({})
        assert not one.log.changed()
        assert isinstance(one.log.key_form(one.models[0]), KeyForm)
        one.log.tend()
        one.log.close()
    postgresql.drop_database(name)


async def test_triggers_of_ours_are_no_code_of_others(postgresql: Cluster, postgresql_url: str):
    """A table that is watched can do all that it could, and is written and read as before: the driver does not ask
    whether code of the database's users changed rows, or left the session otherwise."""
    schema = load_schema("t:\n  _model: {live: true}\n  id: {type: int, pk: true}\n  v: int\n")
    found = []
    for _ in range(2):
        workers = Workers(2, name="test-live", reactor=reactor)
        store = Store(postgresql_url, schema, workers, budgets=Budgets.on(reactor, Limits()))
        workers.start()
        await store.start()
        found.append(store.schema.find("t").capabilities)
        log = PostgreSQLLog(PostgreSQLDatabase(sa.make_url(postgresql_url)), lambda store=store: store.schema)  # type: ignore[misc]
        assert log.prepare(list(store.schema.models.values())) == {"t": ""}
        log.close()
        await store.stop()
        await workers.stop()
    assert found[0] == found[1]
    assert not found[1].disturbs and not found[1].rereads


def test_an_heir_of_two_is_watched_with_both(watched: Callable[..., Watched]):
    """A statement on the other parent, which has no such key, changes rows of the one that is watched."""
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE above (w int);"
        "CREATE TABLE u (w int) INHERITS (above); CREATE TABLE heir () INHERITS (t, u)"
    ).watch()
    with writing(one) as execute:
        execute("INSERT INTO heir VALUES (1, 0, 0)")
        assert one.changes() == {1}
        for table in ("u", "above"):
            execute(f"UPDATE {table} SET w = w + 1")
            assert one.changes() is None
        execute("DELETE FROM above")
        assert one.changes() is None
        execute("UPDATE t SET v = 2")
        assert one.changes() == set()


@pytest.mark.parametrize("kind", ["text", "bytea", "numeric", 'text COLLATE "en-x-icu"', "varchar", "domain"])
def test_no_write_fails_for_keys_that_are_long(watched: Callable[..., Watched], kind: str):
    """They are not told one by one: as many of them as may be logged are more than fit into a row of the log."""
    one = watched(f"CREATE DOMAIN domain AS text; CREATE TABLE t (id {kind} PRIMARY KEY, v int)").watch()
    made = {"bytea": "convert_to(repeat('a', 200000) || i, 'UTF8')", "numeric": "(10::numeric ^ 120000) * i"}
    with writing(one) as execute:
        execute(f"INSERT INTO t SELECT {made.get(kind, 'repeat($$a$$, 200000) || i')}, i FROM generate_series(1, 2) i")
        assert one.changes() is None
        assert execute("SELECT max(pg_column_size(keys)) FROM zcomm.changes").fetchone() == (None,)
        text = {"bytea": "'b'", "numeric": "7"}.get(kind, "repeat('b', 1000)")
        execute(f"INSERT INTO t VALUES ({text}, 0)")
        assert len(one.changes() or ()) == 1


def test_a_partition_may_be_watched_by_itself_as_well(watched: Callable[..., Watched]):
    """Also where it is the parent that is written to, whose statements run no triggers of a partition."""
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE part PARTITION OF t FOR VALUES FROM (0) TO (100)",
        model(),
        model("part"),
    ).watch()
    assert one.log.prepare(one.models) == {"t": "", "part": ""}
    with writing(one) as execute:
        execute("INSERT INTO part VALUES (1)")
        assert one.step() == Changes({"t": {1}, "part": {1}})
        execute("INSERT INTO t VALUES (2)")
        assert one.step() == Changes({"t": {2}, "part": {2}})
        execute("TRUNCATE t")
        assert one.step() == Changes({"t": None, "part": None})


def test_a_schema_of_somebody_elses_is_left_alone(watched: Callable[..., Watched]):
    """What has the names of ours and is something else is not written to, and no trigger is made that would fail."""
    one = watched(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE SCHEMA zcomm; CREATE TABLE zcomm.changes (id int, note text)"
    )
    assert "tables of something else" in one.log.prepare(one.models)["t"]
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1)")
        assert execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'zcomm'::regnamespace").fetchone() == (1,)
        execute("DROP TABLE zcomm.changes")
        assert one.log.prepare(one.models) == {"t": ""}
        execute("DROP TABLE zcomm.feeds")
        assert one.log.prepare(one.models) == {"t": ""}


def test_a_log_that_nobody_reads_does_not_grow(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch):
    """Whoever holds the lock empties it when no server is there that reads; a server whose steps fail for long lets go
    of what it has not read."""
    one = watched().watch()
    with writing(one) as execute:
        execute("INSERT INTO t VALUES (1, 0)")
        execute("DELETE FROM zcomm.feeds")
        one.clean()
        assert one.log.status().rows == 0
        assert not one.step().known
        assert one.step().known
        execute("INSERT INTO t VALUES (2, 0)")
        with pytest.raises(Fault):
            one.step(during=lambda: one.log.run("SELECT 1/0", ()))
        one.log.tend()
        one.clean()
        assert one.log.status().rows == 1
        monkeypatch.setattr(postgresql_log, "STALE", 0)
        one.log.tend()
        one.clean()
        assert one.log.status().rows == 0
        assert not one.step().known


# -- at random


class Writer(threading.Thread):
    """Changes rows at random, as programs do, with savepoints and rollbacks.

    :param number: of its own; some of its rows are others' as well.
    :param patience: seconds that it may sit in a transaction.
    """

    def __init__(self, url: str, number: int, seed: int, patience: float):
        super().__init__()
        self._url = url
        self._random = random.Random(seed * 100 + number)
        self._number = number
        self._patience = patience
        self.stopped = threading.Event()
        self.done = 0
        self.failed: list[Exception] = []

    def run(self) -> None:
        try:
            with psycopg.connect(self._url) as connection:
                while not self.stopped.is_set():
                    with suppress(psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected, Undone):
                        self._transact(connection)
                        self.done += 1
                    connection.rollback()
        except Exception as error:
            self.failed.append(error)

    def _transact(self, connection: psycopg.Connection[Any]) -> None:
        chance, choose = self._random.random, self._random.choice
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {choose(('READ COMMITTED', 'REPEATABLE READ'))}")
        for _ in range(choose((1, 1, 1, 2, 5))):
            with suppress(Undone), connection.transaction():
                self._change(connection)
                self.stopped.wait(choose((0, 0, 0, 0.001, 0.01, self._patience)))
                if chance() < 0.2:
                    raise Undone
        if chance() < 0.2:
            raise Undone
        connection.commit()

    def _change(self, connection: psycopg.Connection[Any]) -> None:
        # A transaction locks rows of one number after those of lower ones as a rule.
        key = self._random.randrange(30) + 30 * self._number
        shared = self._random.randrange(30)
        sql, parameters = self._random.choice(
            [
                ("INSERT INTO t VALUES (%s, 1) ON CONFLICT (id) DO UPDATE SET v = t.v + 1", (key,)),
                (
                    "INSERT INTO t SELECT i, 0 FROM generate_series(%s::int, %s::int) i ON CONFLICT DO NOTHING",
                    (key, key + 3),
                ),
                ("UPDATE t SET v = v + 1 WHERE id = %s", (shared,)),
                ("UPDATE t SET v = v + 1 WHERE id BETWEEN %s AND %s", (key, key + 10)),
                ("UPDATE t SET id = -id WHERE id = %s AND NOT EXISTS (SELECT FROM t WHERE id = %s)", (key, -key)),
                ("DELETE FROM t WHERE id = %s", (key,)),
                ("DELETE FROM t WHERE id = %s", (-key,)),
            ]
        )
        with suppress(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute(sql, parameters)


class Undone(Exception):
    """A program's reason not to commit."""


@pytest.mark.parametrize("seed", range(2))
def test_no_change_is_missed(watched: Callable[..., Watched], seed: int):
    """While several write, and two servers watch that come and go: the rows that each has, with those read anew whose
    keys it is told, are after each step the rows that the step's snapshot has."""
    servers = [watched(), watched("", again=True)]
    for one in servers:
        one.log.prepare(one.models)
    writers = [Writer(one.url, number, seed, 0.1 if number == 0 else 0.0) for number in range(4)]
    for writer in writers:
        writer.start()
    rows: list[dict[int, int]] = [{}, {}]
    known = 0
    chance = random.Random(seed)
    until = time.monotonic() + 2.5
    try:
        for number in cycle((0, 1)):
            one = servers[number]
            if chance.random() < 0.01:
                one.log.rest()
            one.log.watch()
            now: dict[int, int] = {}
            step = one.step(during=lambda one=one, now=now: now.update(one.log.run("SELECT id, v FROM t", ())))  # type: ignore[misc]
            keys = step.keys.get("t", ())
            if step.known:
                assert keys is not None
                known += 1
                mine = {key: v for key, v in rows[number].items() if key not in keys}
                rows[number] = mine | {key: now[key] for key in keys if key in now}
                assert rows[number] == now
            rows[number] = now
            if time.monotonic() > until:
                break
    finally:
        for writer in writers:
            writer.stopped.set()
        for writer in writers:
            writer.join(20)
    assert [writer.failed for writer in writers] == [[]] * 4
    assert known > 50 and sum(writer.done for writer in writers) > 100
