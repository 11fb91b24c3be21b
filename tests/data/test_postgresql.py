"""PostgreSQL databases that others made and run: their faults, told as what they are."""

from __future__ import annotations

from typing import Any

import pytest_twisted
from support.rows import rows_of_a_test
from twisted.internet.defer import DeferredList

from zcomm.data.schema import load_schema
from zcomm.errors import Invalid


def sessions(postgresql: Any, database: str) -> int:
    """How many sessions a database has had."""
    postgresql.execute("SELECT pg_stat_force_next_flush()", database)
    rows = postgresql.execute(f"SELECT sessions FROM pg_stat_database WHERE datname = '{database}'")
    return int(rows[0][0])


@pytest_twisted.ensureDeferred
async def test_contact_f02_f38_what_the_database_never_does(postgresql, postgresql_url, make_store):
    """It is refused at once, with a few connections, however often it is asked, and so is all else that never works."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        "CREATE COLLATION anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
        'CREATE TABLE "T" (id bigserial PRIMARY KEY, name text COLLATE anycase);'
        'CREATE VIEW "V" AS SELECT id, upper(name COLLATE "C") AS name FROM "T";'
        'CREATE TABLE "R" (id bigserial PRIMARY KEY, name text);'
        'CREATE RULE gone AS ON INSERT TO "R" DO INSTEAD NOTHING',
        database,
    )
    schema = load_schema("\n".join(f"{name}: {{id: {{type: int, pk: true}}, name: str}}" for name in "TVR"))
    store = make_store(postgresql_url, schema, threads=2)
    await store.start()
    await store.create(1, "T", {"name": "a"})
    before = sessions(postgresql, database)
    # Its own patterns do not know the collation (before PostgreSQL 18).
    assert len(await store.read(1, "T", {"name__contains": "a"})) == 1
    with rows_of_a_test() as row:
        for name, ask in (
            ("an expression", lambda: store.update(1, "V", {"id": 1}, {"name": "b"})),
            ("a rule", lambda: store.create(1, "R", {"name": "a"})),
            ("with a key", lambda: store.create(1, "R", {"name": "a"}, idempotency_key="k")),
        ):
            with row(name):
                for worked, failure in await DeferredList([ask() for _ in range(32)], consumeErrors=True):
                    assert not worked
                    assert failure.check(Invalid), failure.value
                    assert "does not support" in str(failure.value)
    assert sessions(postgresql, database) - before < 8


@pytest_twisted.ensureDeferred
async def test_contact_f02_a_table_that_is_altered_meanwhile(postgresql, postgresql_url, make_store):
    """A statement that was prepared before goes on, within a transaction and without, and is prepared again."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    schema = load_schema("T: {id: {type: int, pk: true}, name: {type: str, rules: {max_length: 9}}}")
    store = make_store(f"{postgresql_url}&prepare_threshold=0", schema, threads=1, connections=1)
    await store.start()
    for number, key in enumerate((None, "a", None, "b")):
        for _ in range(2):
            await store.create(1, "T", {"name": "x"}, idempotency_key=key and f"{key}{_}")
            await store.read(1, "T", {"name": "x"})
        postgresql.execute(f'ALTER TABLE "T" ALTER name TYPE {("varchar", "text")[number % 2]}', database)
        await store.create(1, "T", {"name": "y"}, idempotency_key=key)
    assert len(await store.read(1, "T")) == 12
    with store._execution.pool.connection() as connection:
        assert connection._raw.prepare_threshold == 0


@pytest_twisted.ensureDeferred
async def test_contact_f38_fewer_connections_than_threads(postgresql, postgresql_url, make_store):
    """Where the database gives fewer connections than there are threads, they share what there is."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(f"CREATE ROLE {database} LOGIN SUPERUSER; ALTER DATABASE {database} OWNER TO {database}")
    postgresql.execute(f"ALTER ROLE {database} NOSUPERUSER CONNECTION LIMIT 2")
    postgresql.execute(f"GRANT ALL ON SCHEMA public TO {database}", database)
    schema = load_schema("T: {id: {type: int, pk: true}, name: str}")
    store = make_store(postgresql_url.replace("postgres@", f"{database}@"), schema, threads=8)
    await store.start()
    done = await DeferredList([store.create(number, "T", {"name": "x"}) for number in range(64)], fireOnOneErrback=True)
    assert len(done) == 64
    await store.stop()
    postgresql.execute(f"DROP OWNED BY {database}", database)
    postgresql.execute(f"ALTER DATABASE {database} OWNER TO postgres; DROP ROLE {database}")
