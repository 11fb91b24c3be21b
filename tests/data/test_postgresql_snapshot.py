"""What live queries ask of PostgreSQL's driver: one snapshot for several statements, and which texts are ordered as
Python orders them."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy as sa
from support.pgbouncer import pgbouncer
from support.postgres import PORT, Cluster

from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.postgresql import PostgreSQLDatabase
from zcomm.data.schema import load_schema
from zcomm.data.store import Store

TEXTS = load_schema(
    """
Texts:
  id: {type: int, pk: true}
  plain: str
  c: str
  posix: str
  ucs: str
  icu: str
  loose: str
  german: str
  short: str
  padded: str
  wrapped: str
"""
)


def count(connection: object) -> object:
    return connection.run("SELECT count(*) FROM t", (), True)[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pgbouncer"])
def test_a_snapshot_stays_as_it_was(postgresql: Cluster, pooled: bool):
    """Statements after ``begin_snapshot`` see what was there at the first of them, write nothing, and what comes after
    the transaction sees all; behind a pooler too."""
    name = postgresql.new_database()
    postgresql.execute("CREATE TABLE t (id int)", name)

    def try_it(url: str) -> None:
        connection = PostgreSQLDatabase(sa.make_url(url)).connect()
        connection.begin_snapshot()
        assert count(connection) == [(0,)]
        postgresql.execute("INSERT INTO t VALUES (1)", name)
        assert count(connection) == [(0,)]
        with pytest.raises(Fault, match="full"):
            connection.run("INSERT INTO t VALUES (2)", (), False)
        connection.rollback()
        assert count(connection) == [(1,)]
        connection.begin_snapshot()
        assert count(connection) == [(1,)]
        connection.commit()
        connection.run("INSERT INTO t VALUES (3)", (), False)
        assert count(connection) == [(2,)]
        connection.close()

    if pooled:
        with pgbouncer(postgresql) as bouncer:
            try_it(bouncer.url(name))
    else:
        try_it(postgresql.url(name))
    postgresql.drop_database(name)


def test_what_runs_before_a_snapshot_takes_none(postgresql: Cluster):
    """A table that is locked before the snapshot is read with all that others committed until it was locked; where it
    cannot be locked in time the transaction is over, and the connection can be used."""
    name = postgresql.new_database()
    postgresql.execute("CREATE TABLE t (id int)", name)
    connection = PostgreSQLDatabase(sa.make_url(postgresql.url(name))).connect()
    lock = "SET LOCAL lock_timeout = 50; LOCK TABLE public.t IN ACCESS SHARE MODE"
    for _ in range(7):
        # As often as makes the driver prepare what recurs.
        connection.begin_snapshot(lock)
        connection.commit()
    connection.begin_snapshot(lock)
    postgresql.execute("INSERT INTO t VALUES (1)", name)
    assert count(connection) == [(1,)]
    connection.commit()
    with psycopg.connect(host=str(postgresql.directory), port=PORT, user="postgres", dbname=name) as other:
        other.execute("TRUNCATE t")
        with pytest.raises(Fault, match="busy"):
            connection.begin_snapshot(lock)
        assert connection.run("SELECT 1", (), True) == ([(1,)], 1)
    connection.close()
    postgresql.drop_database(name)


async def test_texts_that_are_ordered_by_code_point_are_known(postgresql: Cluster, make_store):  # type: ignore[no-untyped-def]
    """Those of the collations C, POSIX and ucs_basic, and of a database that has one of them for its own; no others."""
    name = postgresql.new_database()
    for sql in (
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "CREATE COLLATION german (provider = icu, locale = 'de')",
        'CREATE DOMAIN wrapped AS text COLLATE "C" CHECK (length(VALUE) < 9)',
        'CREATE TABLE "Texts" (id int PRIMARY KEY, plain text, c text COLLATE "C", posix varchar COLLATE "POSIX", '
        'ucs text COLLATE ucs_basic, icu text COLLATE "de-x-icu", loose text COLLATE loose, '
        'german varchar(5) COLLATE german, short varchar(3), padded char(4) COLLATE "C", wrapped wrapped)',
    ):
        postgresql.execute(sql, name)
    store: Store = make_store(postgresql.url(name), schema=TEXTS)
    await store.start()
    model = store.schema.find("Texts")
    assert {each.name for each in model.fields.values() if each.column and each.column.by_code_point} == {
        "plain",
        "c",
        "posix",
        "ucs",
        "short",
        "wrapped",
    }
    await store.stop()
    postgresql.drop_database(name)


@pytest.mark.parametrize(
    "settings, by_code_point",
    [
        ("LOCALE 'C'", True),
        ("LOCALE 'C.UTF-8' ICU_LOCALE 'und' LOCALE_PROVIDER icu", False),
        ("ENCODING 'LATIN1' LOCALE 'C'", False),
    ],
)
async def test_the_own_collation_of_a_database_is_looked_up(
    postgresql: Cluster,
    make_store,  # type: ignore[no-untyped-def]
    settings: str,
    by_code_point: bool,
):
    """A column without a collation has the database's, whose bytes say nothing of characters but in UTF-8."""
    name = postgresql.new_database()
    postgresql.drop_database(name)
    postgresql.execute(f"CREATE DATABASE {name} TEMPLATE template0 {settings}")
    store: Store = make_store(postgresql.url(name), schema=load_schema("T:\n  id: {type: int, pk: true}\n  s: str\n"))
    await store.start()
    column = store.schema.find("T").fields["s"].column
    assert column is not None and column.by_code_point is by_code_point
    await store.stop()
    postgresql.drop_database(name)
