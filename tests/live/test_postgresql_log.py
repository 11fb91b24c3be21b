"""Which rows of a real PostgreSQL have changed, whoever changed them: nothing is missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from support.postgres import Cluster
from support.waiting import wait_until_blocking

from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.postgresql import PostgreSQLDatabase
from zcomm.data.models import Field, Model, Schema
from zcomm.data.values import KINDS
from zcomm.live.log import Changes
from zcomm.live.postgresql_log import PostgreSQLLog


def model(name: str = "t", key: tuple[str, ...] = ("id",), namespace: str = "public", table: str = "") -> Model:
    fields = {column: Field(name=column, kind=KINDS["int"], pk=True, required=True) for column in key}
    return Model(name=name, fields=fields, namespace=namespace, table=table)


class Watched:
    """A log of tables of a database of the test's own, and other ways to it.

    :param url: of the database.
    """

    def __init__(self, url: str, *models: Model):
        self.url = url
        self.models = models
        self.log = PostgreSQLLog(
            PostgreSQLDatabase(sa.make_url(url)), lambda: Schema({one.name: one for one in models})
        )

    def others(self, **settings: Any) -> psycopg.Connection[Any]:
        """A connection of somebody else's."""
        return psycopg.connect(self.url, **settings)

    def watch(self) -> Watched:
        """Have all watched, and read what there is."""
        assert dict(self.log.prepare(self.models)) == {one.name: "" for one in self.models}
        return self.go_on()

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
