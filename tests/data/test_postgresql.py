"""PostgreSQL databases that others made and run: their faults, told as what they are."""

from __future__ import annotations

import gc
import sqlite3
import time
from contextlib import closing
from itertools import count
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.rows import rows_of_a_test
from support.waiting import wait_until
from twisted.internet.defer import DeferredList

from zcomm.data.catalog import fit_model
from zcomm.data.drivers import open_database
from zcomm.data.drivers.pool import FORGOTTEN
from zcomm.data.schema import load_schema
from zcomm.errors import (
    CommandError,
    CommandTimeout,
    ConfigError,
    Conflict,
    InternalError,
    Invalid,
    PermissionDenied,
    TooBusy,
    Unavailable,
)


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


def ids(kind: str = "int") -> str:
    """The declaration of a model with an id and a name."""
    return f"{{id: {{type: {kind}, pk: true}}, name: str}}"


MISFITS = [
    ("unique", "(id serial PRIMARY KEY, name text)", "{id: {type: int, pk: true}, name: {type: str, unique: true}}"),
    (
        "unique for some",
        "(id serial PRIMARY KEY, name text); CREATE UNIQUE INDEX ON t (name) WHERE id > 5",
        "{id: {type: int, pk: true}, name: {type: str, unique: true}}",
    ),
    (
        "unique later",
        "(id serial PRIMARY KEY, name text UNIQUE DEFERRABLE)",
        "{id: {type: int, pk: true}, name: {type: str, unique: true}}",
    ),
    (
        "unique expression",
        "(id serial PRIMARY KEY, name text); CREATE UNIQUE INDEX ON t (lower(name))",
        "{id: {type: int, pk: true}, name: {type: str, unique: true}}",
    ),
    (
        "unique together",
        "(id serial PRIMARY KEY, name text, other int, UNIQUE (name, other))",
        "{id: {type: int, pk: true}, name: {type: str, unique: true}}",
    ),
    ("no key", "(id serial, name text)", "{id: {type: int, pk: true}, name: str}"),
    ("another key", "(id serial, name text PRIMARY KEY)", "{id: {type: int, pk: true}, name: str}"),
    (
        "a key of two",
        "(id serial, name text, PRIMARY KEY (id, name))",
        "{id: {type: int, pk: true}, name: str}",
    ),
    (
        "required",
        "(id serial PRIMARY KEY, name text)",
        "{id: {type: int, pk: true}, name: {type: str, required: true}}",
    ),
    ("fk", "(id serial PRIMARY KEY, name int)", "{id: {type: int, pk: true}, name: {type: int, fk: o.id}}"),
    (
        "fk elsewhere",
        "(id serial PRIMARY KEY, name int REFERENCES p)",
        "{id: {type: int, pk: true}, name: {type: int, fk: o.id}}",
    ),
    (
        "on_delete",
        "(id serial PRIMARY KEY, name int REFERENCES o)",
        "{id: {type: int, pk: true}, name: {type: int, fk: o.id, on_delete: cascade}}",
    ),
]
FITS = [
    ("(id serial PRIMARY KEY, name text UNIQUE)", "{id: {type: int, pk: true}, name: {type: str, unique: true}}"),
    (
        "(id serial PRIMARY KEY, name text); CREATE UNIQUE INDEX ON t (name)",
        "{id: {type: int, pk: true}, name: {type: str, unique: true}}",
    ),
    (
        "(id serial PRIMARY KEY, name text UNIQUE NULLS NOT DISTINCT)",
        "{id: {type: int, pk: true}, name: {type: str, unique: true}}",
    ),
    ("(id serial UNIQUE NOT NULL, name text)", "{id: {type: int, pk: true}, name: str}"),
    (
        "(id serial PRIMARY KEY, name int REFERENCES o ON DELETE CASCADE DEFERRABLE)",
        "{id: {type: int, pk: true}, name: {type: int, fk: o.id, on_delete: cascade}}",
    ),
    ("(id int, name text, PRIMARY KEY (name, id))", "{id: {type: int, pk: true}, name: {type: str, pk: true}}"),
    ("(id serial PRIMARY KEY, name text NOT NULL)", "{id: {type: int, pk: true}, name: {type: str, required: true}}"),
]


@pytest_twisted.ensureDeferred
async def test_contact_f23_a21_constraints_that_a_table_lacks(postgresql, postgresql_url, tmp_path, make_store):
    """What the schema declares and an existing table does not keep ends the start, naming the field. Both
    databases (B21)."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    tables = [(f"bad{number}", create, body) for number, (_, create, body) in enumerate(MISFITS)]
    tables += [(f"good{number}", create, body) for number, (create, body) in enumerate(FITS)]
    schema = load_schema("o: {id: {type: int, pk: true}}\n" + "\n".join(f"{name}: {body}" for name, _, body in tables))
    script = {"postgresql": [], "sqlite": []}
    for name, create, _ in [("o", "(id serial PRIMARY KEY)", ""), ("p", "(id serial PRIMARY KEY)", ""), *tables]:
        create = f"CREATE TABLE {name} {create}".replace("ON t", f"ON {name}")
        script["postgresql"].append(create)
        create = create.replace("serial PRIMARY KEY", "INTEGER PRIMARY KEY").replace("serial", "INTEGER")
        create = create.replace("INDEX ON", f"INDEX i{name} ON").replace("NULLS NOT DISTINCT", "")
        script["sqlite"].append(create.replace("UNIQUE DEFERRABLE", ""))
    postgresql.execute(";".join(script["postgresql"]), database)
    path = tmp_path / "t.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join(script["sqlite"]))
    with rows_of_a_test() as row:
        for url in (postgresql_url, f"sqlite:///{path}"):
            opened, _ = open_database(url, 5, 5)
            with opened.engine().connect() as connected:
                found = opened.relations(connected, {name: name for name in schema.models}, url)
            for name, create, _ in tables:
                with row(f"{create} {url[:8]}"):
                    if name.startswith("good"):
                        fit_model(schema.models[name], found[name], schema, url)
                        continue
                    with pytest.raises(ConfigError, match=f"model {name}, field (id|name).* in the schema"):
                        fit_model(schema.models[name], found[name], schema, url)
            with row(f"a start {url[:8]}"), pytest.raises(ConfigError, match="model bad0, field name"):
                await make_store(url, schema, threads=1).start()


@pytest_twisted.ensureDeferred
async def test_contact_f29_foreign_keys_that_sqlite_cannot_follow(tmp_path, make_store):
    """A foreign key to what is not unique fails each write to its target; the start says which it is."""
    schema = load_schema(f"t: {ids()}")
    with rows_of_a_test() as row:
        for name, create in [
            (
                "not unique",
                "CREATE TABLE t (id INTEGER PRIMARY KEY, name text); CREATE TABLE c (a text REFERENCES t (name))",
            ),
            (
                "an index on some",
                "CREATE TABLE t (id INTEGER PRIMARY KEY, name text); CREATE UNIQUE INDEX i ON t (name) WHERE id > 1;"
                "CREATE TABLE c (a text REFERENCES t (name))",
            ),
            ("no table", "CREATE TABLE t (id INTEGER PRIMARY KEY, name text REFERENCES gone (id))"),
            (
                "no column",
                "CREATE TABLE t (id INTEGER PRIMARY KEY, name text); CREATE TABLE c (a text REFERENCES t (nme))",
            ),
            (
                "part of a key",
                "CREATE TABLE t (id INTEGER PRIMARY KEY, name text UNIQUE);"
                "CREATE TABLE c (a, b, FOREIGN KEY (a, b) REFERENCES t (id, name))",
            ),
        ]:
            path = tmp_path / f"{name}.sqlite3"
            with closing(sqlite3.connect(path)) as connection:
                connection.executescript(create)
            with row(name), pytest.raises(ConfigError, match="foreign key of .* points to"):
                await make_store(f"sqlite:///{path}", schema, threads=1).start()


@pytest_twisted.ensureDeferred
async def test_contact_f07_keys_that_the_database_does_not_make(postgresql, postgresql_url, tmp_path, make_store):
    """Where the database makes no ids they are taken, and must be given; where it makes them they are not."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    given = [
        ("postgresql", "(id int PRIMARY KEY, name text)"),
        ("sqlite", "(id INT PRIMARY KEY, name text)"),
        ("sqlite", "(id BIGINT PRIMARY KEY, name text)"),
        ("sqlite", "(id INTEGER PRIMARY KEY DESC, name text)"),
        ("sqlite", "(id INTEGER PRIMARY KEY, name text) WITHOUT ROWID"),
    ]
    made = [
        ("postgresql", "(id serial PRIMARY KEY, name text)"),
        ("postgresql", "(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text)"),
        ("postgresql", "(id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text)"),
        ("postgresql", "(id int PRIMARY KEY DEFAULT (random() * 1e9)::int, name text)"),
        ("sqlite", "(id INTEGER PRIMARY KEY, name text)"),
        ("sqlite", "(id integer, name text, PRIMARY KEY (id))"),
    ]
    filled = (
        "(id int PRIMARY KEY, name text); CREATE SEQUENCE s START 100; "
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN NEW.id = coalesce(NEW.id, nextval('s')); RETURN NEW; END$$; "
        "CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()"
    )

    async def opened(kind: str, create: str) -> Any:
        if kind == "postgresql":
            postgresql.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t {create}", database)
            url = postgresql_url
        else:
            path = tmp_path / f"{hash(create)}.sqlite3"
            with closing(sqlite3.connect(path)) as connection:
                connection.execute(f"CREATE TABLE t {create}")
            url = f"sqlite:///{path}"
        store = make_store(url, load_schema(f"t: {ids()}"), threads=1)
        await store.start()
        return store

    with rows_of_a_test() as row:
        for kind, create in given:
            with row(create):
                store = await opened(kind, create)
                with pytest.raises(Invalid, match="id is required"):
                    await store.create(1, "t", {"name": "a"})
                assert await store.create(1, "t", {"id": 7, "name": "a"}) == {"id": 7, "name": "a"}
                assert await store.upsert(1, "t", {"id": 7, "name": "b"}) == {"id": 7, "name": "b"}
                assert await store.read(1, "t", {"id": 7}) == [{"id": 7, "name": "b"}]
                await store.stop()
        for kind, create in made:
            with row(create):
                store = await opened(kind, create)
                with pytest.raises(Invalid, match="made by the database"):
                    await store.create(1, "t", {"id": 7, "name": "a"})
                row_ = await store.create(1, "t", {"name": "a"})
                assert await store.read(1, "t", {"id": row_["id"]}) == [row_]
                await store.stop()
        with row("a trigger"):
            store = await opened("postgresql", filled)
            assert await store.create(1, "t", {"id": 7, "name": "a"}) == {"id": 7, "name": "a"}
            assert await store.create(1, "t", {"name": "b"}) == {"id": 100, "name": "b"}
            await store.stop()


@pytest_twisted.ensureDeferred
async def test_a_sequence_that_is_behind(postgresql, postgresql_url, make_store):
    """After an import with ids of its own the error says what is wrong, and blames no field that nobody can write."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    store = make_store(postgresql_url, load_schema(f"t: {ids()}"), threads=1)
    await store.start()
    postgresql.execute("INSERT INTO t VALUES (1, 'imported')", database)
    with pytest.raises(Conflict, match="numbering of t is behind") as caught:
        await store.create(1, "t", {"name": "a"})
    assert caught.value.fields == {}


@pytest.fixture
def guest(postgresql, postgresql_url):
    """A role without rights, the name of a database, and the URL of the role there."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    role = f"guest_{database}"
    postgresql.execute(f"CREATE ROLE {role} LOGIN")
    yield role, database, postgresql_url.replace("postgres@", f"{role}@")
    postgresql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}", database)


@pytest_twisted.ensureDeferred
async def test_contact_f19_a_database_that_gives_no_tables(postgresql, guest, make_store):
    """Without the right to create tables, or to write at all, what is there is served; a key alone is refused, and a
    table that is missing is named."""
    role, database, url = guest
    schema = load_schema(f"t: {ids()}")
    postgresql.execute(
        f"CREATE TABLE t (id serial PRIMARY KEY, name text); GRANT ALL ON t TO {role}; GRANT ALL ON t_id_seq TO {role}",
        database,
    )
    with rows_of_a_test() as row:
        with row("no CREATE"):
            store = make_store(url, schema, threads=1)
            await store.start()
            assert await store.create(1, "t", {"name": "a"}) == {"id": 1, "name": "a"}
            with pytest.raises(Invalid, match="_idempotencyKey cannot be used") as caught:
                await store.create(1, "t", {"name": "b"}, idempotency_key="k")
            assert set(caught.value.fields) == {"_idempotencyKey"}
            store._execution.sweep()
            assert await store.read(1, "t") == [{"id": 1, "name": "a"}]
            await store.stop()
        with row("a table is missing"):
            with pytest.raises(ConfigError, match="the tables u are missing and cannot be created.*grant"):
                await make_store(url, load_schema(f"t: {ids()}\nu: {ids()}"), threads=1).start()
        with row("it only reads"):
            postgresql.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
            store = make_store(url, schema, threads=1)
            await store.start()
            assert await store.read(1, "t") == [{"id": 1, "name": "a"}]
            with pytest.raises(Unavailable, match="cannot store anything now"):
                await store.create(1, "t", {"name": "b"})
            await store.stop()
            postgresql.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")
        with row("a table of keys that is not ours"):
            postgresql.execute("CREATE TABLE zcomm_idempotency (a int)", database)
            store = make_store(url, schema, threads=1)
            await store.start()
            with pytest.raises(Invalid, match="_idempotencyKey cannot be used"):
                await store.delete(1, "t", {"id": 1}, idempotency_key="k")
            await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_f24_f26_what_passes_for_a_table(postgresql, postgresql_url, make_store):
    """Materialized views, foreign and partitioned tables, views, children and tables of other schemas are served as far
    as they go; a name that is spelt another way is no new table."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        f"""
        CREATE TABLE base (id serial PRIMARY KEY, name text);
        INSERT INTO base (name) VALUES ('a'), ('b');
        CREATE MATERIALIZED VIEW mat AS SELECT id, name FROM base;
        CREATE VIEW plain AS SELECT id, name FROM base;
        CREATE VIEW made AS SELECT id, upper(name) AS name FROM base GROUP BY id;
        CREATE VIEW told AS SELECT id, upper(name) AS name FROM base;
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            INSERT INTO base (name) VALUES (lower(NEW.name)) RETURNING id INTO NEW.id; RETURN NEW; END$$;
        CREATE TRIGGER tell INSTEAD OF INSERT ON told FOR EACH ROW EXECUTE FUNCTION tell();
        CREATE TABLE parts (id bigint GENERATED BY DEFAULT AS IDENTITY, name text, PRIMARY KEY (id))
            PARTITION BY RANGE (id);
        CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (1) TO (3);
        CREATE TABLE part2 PARTITION OF parts FOR VALUES FROM (3) TO (100);
        CREATE TABLE parent (id serial PRIMARY KEY, name text);
        CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
        CREATE SCHEMA app; CREATE TABLE app.elsewhere (id serial PRIMARY KEY, name text);
        CREATE TABLE computed (id serial PRIMARY KEY, name text GENERATED ALWAYS AS ('fixed') STORED);
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw
            OPTIONS (host '{postgresql.directory}', dbname '{database}');
        CREATE USER MAPPING FOR postgres SERVER here OPTIONS (user 'postgres');
        CREATE FOREIGN TABLE far (id int, name text) SERVER here OPTIONS (table_name 'base');
        CREATE SEQUENCE counter;
        CREATE TABLE "Users" (id serial PRIMARY KEY, name text);
        """,
        database,
    )
    url = postgresql_url + "&options=-csearch_path%3Dpublic,app"
    names = ("mat", "plain", "made", "told", "parts", "child", "elsewhere", "far")
    store = make_store(url, load_schema("\n".join(f"{name}: {ids()}" for name in names)), threads=1)
    await store.start()
    with rows_of_a_test() as row:
        for name, writable in [("mat", False), ("made", False), ("plain", True), ("parts", True), ("child", True)]:
            with row(name):
                if writable:
                    created = await store.create(1, name, {"name": "c"})
                    assert await store.read(1, name, {"id": created["id"]}) == [created]
                    assert await store.update(1, name, {"id": created["id"]}, {"name": "d"}) == {"updated": 1}
                    assert await store.delete(1, name, {"id": created["id"]}) == {"deleted": 1}
                    continue
                assert [each["id"] for each in await store.read(1, name)] == [1, 2]
                for write in (
                    store.create(1, name, {"name": "c"}),
                    store.update(1, name, {"id": 1}, {"name": "c"}),
                    store.delete(1, name, {"id": 1}),
                ):
                    with pytest.raises(PermissionDenied, match=f"on {name}: it has a .*view there"):
                        await write
        with row("an INSTEAD OF trigger"):
            created = await store.create(1, "told", {"name": "x"})
            assert created["name"] == "X"
            assert await store.read(1, "told", {"id": created["id"]}) == [created]
            with pytest.raises(Invalid, match="does not support"):
                await store.upsert(1, "told", {"id": 1, "name": "y"})
        with row("a foreign table"):
            assert [each["name"] for each in await store.read(1, "far", {"id__lte": 2})] == ["a", "b"]
            assert await store.update(1, "far", {"id": 1}, {"name": "z"}) == {"updated": 1}
        with row("another schema"):
            await store.create(1, "elsewhere", {"name": "c"})
            assert postgresql.execute("SELECT count(*) FROM app.elsewhere", database) == [(1,)]
        with row("a generated column"):
            other = make_store(url, load_schema(f"computed: {ids()}"), threads=1)
            await other.start()
            assert await other.create(1, "computed", {}) == {"id": 1, "name": "fixed"}
            with pytest.raises(Invalid):
                await other.create(1, "computed", {"name": "mine"})
            await other.stop()
        for name, said in [
            ("users", "existing table is spelt Users"),
            ("counter", "no table"),
            ("USERS", "is spelt Users"),
        ]:
            with row(name), pytest.raises(ConfigError, match=said):
                await make_store(url, load_schema(f"{name}: {ids()}"), threads=1).start()
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_f18_rights_and_row_security(postgresql, guest, make_store):
    """What the database does not grant is a right that one lacks, and is not offered."""
    role, database, url = guest
    postgresql.execute(
        f"""
        CREATE TABLE reads (id serial PRIMARY KEY, name text); GRANT SELECT ON reads TO {role};
        CREATE TABLE one (id serial PRIMARY KEY, name text); GRANT SELECT ON one TO {role};
        GRANT UPDATE (id) ON one TO {role};
        CREATE TABLE blind (id serial PRIMARY KEY, name text); GRANT INSERT ON blind TO {role};
        CREATE TABLE own (id serial PRIMARY KEY, name text); GRANT ALL ON own, own_id_seq TO {role};
        ALTER TABLE own ENABLE ROW LEVEL SECURITY; ALTER TABLE own FORCE ROW LEVEL SECURITY;
        CREATE POLICY p ON own USING (name <> 'hidden') WITH CHECK (name = 'mine');
        INSERT INTO own (name) VALUES ('hidden');
        """,
        database,
    )
    schema = load_schema("\n".join(f"{name}: {ids()}" for name in ("reads", "one", "blind", "own")))
    store = make_store(url, schema, threads=1)
    await store.start()
    lacks = {name: sorted(model.capabilities.lacks) for name, model in store.schema.models.items()}
    assert lacks == {
        "reads": ["create", "delete", "update"],
        "one": ["create", "delete"],
        "blind": ["create", "delete", "read", "update"],
        "own": [],
    }
    with rows_of_a_test() as row:
        for name, write in [
            ("no right", lambda: store.create(1, "reads", {"name": "a"})),
            ("no right to that column", lambda: store.update(1, "one", {"id": 1}, {"name": "a"})),
            ("no right to read", lambda: store.read(1, "blind")),
            ("a row that a policy refuses", lambda: store.create(1, "own", {"name": "yours"})),
            ("likewise with a key", lambda: store.upsert(1, "reads", {"name": "a"}, ["id"], idempotency_key="k")),
        ]:
            with row(name), pytest.raises(PermissionDenied):
                await write()
        with row("rows that a policy hides"):
            await store.create(1, "own", {"name": "mine"})
            assert [each["name"] for each in await store.read(1, "own")] == ["mine"]
    await store.stop()


RAISING = """
CREATE TABLE t (id serial PRIMARY KEY, name text, size int CONSTRAINT positive CHECK (size > 0), low int, high int,
    during int4range, CONSTRAINT ordered CHECK (low < high), EXCLUDE USING gist (during WITH &&));
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    IF NEW.name = 'plain' THEN RAISE EXCEPTION 'No more than % of these', 3; END IF;
    IF NEW.name = 'coded' THEN RAISE EXCEPTION 'secret' USING ERRCODE = 'P0002'; END IF;
    IF NEW.name = 'own' THEN RAISE EXCEPTION 'secret' USING ERRCODE = 'ZZ001'; END IF;
    IF NEW.name = 'asserted' THEN ASSERT false, 'secret'; END IF;
    IF NEW.name = 'empty' THEN RAISE EXCEPTION ''; END IF;
    IF NEW.name = 'long' THEN RAISE EXCEPTION '%', repeat('é', 5000); END IF;
    IF NEW.name = 'dropped' THEN RETURN NULL; END IF;
    NEW.during = CASE NEW.name WHEN 'taken' THEN int4range(1, 5) END; RETURN NEW; END$$;
CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
"""


@pytest_twisted.ensureDeferred
async def test_contact_f15_what_triggers_and_constraints_say(postgresql, postgresql_url, tmp_path, make_store):
    """The text of a plain RAISE reaches the client, that of others never; checks name their fields; an exclusion is a
    conflict. The transaction of a key is no different."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(RAISING, database)
    path = tmp_path / "t.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, name text, size int CHECK (size > 0), low int, high int,"
            " CHECK (low < high));"
            "CREATE TRIGGER f BEFORE INSERT ON t WHEN NEW.name = 'plain' BEGIN"
            " SELECT RAISE(ABORT, 'No more than 3 of these'); END;"
            "CREATE TRIGGER g BEFORE INSERT ON t WHEN NEW.name = 'back' BEGIN"
            " SELECT RAISE(ROLLBACK, 'No more than 3 of these'); END;"
            "CREATE TRIGGER h BEFORE INSERT ON t WHEN NEW.name = 'fail' BEGIN"
            " SELECT RAISE(FAIL, 'No more than 3 of these'); END;"
        )
    schema = load_schema("t: {id: {type: int, pk: true}, name: str, size: int, low: int, high: int}")
    server, file = make_store(postgresql_url, schema, threads=1), make_store(f"sqlite:///{path}", schema, threads=1)
    await server.start()
    await file.start()
    said = "No more than 3 of these"
    with rows_of_a_test() as row:
        for store, name, error, text in [
            (server, "plain", Invalid, said),
            (file, "plain", Invalid, said),
            (file, "back", Invalid, said),
            (file, "fail", Invalid, said),
            (server, "coded", Invalid, "The database refuses this"),
            (server, "own", Invalid, "The database refuses this"),
            (server, "asserted", Invalid, "The database refuses this"),
            (server, "empty", Invalid, "The database refuses this"),
            (server, "long", Invalid, "é" * 1000),
            (server, "dropped", Invalid, "The database did not store the row"),
        ]:
            for key in (None, name):
                with row(f"{name} {key}"):
                    with pytest.raises(error) as caught:
                        await store.create(1, "t", {"name": name}, idempotency_key=key)
                    assert type(caught.value) is error and caught.value.text == text
        for store in (server, file):
            for values, fields in [({"size": -1}, {"size"}), ({"low": 2, "high": 1}, {"low", "high"})]:
                with row(f"{store.url[:8]} {values}"):
                    with pytest.raises(
                        Invalid, match=f"does not accept {', '.join(sorted(fields, reverse=True)[:1])}"
                    ) as caught:
                        await store.create(1, "t", values)
                    assert set(caught.value.fields) == fields
        with row("an exclusion"):
            await server.create(1, "t", {"name": "taken"})
            with pytest.raises(Conflict, match="conflicts with another row"):
                await server.create(1, "t", {"name": "taken"})
    assert len(await file.read(1, "t")) == 0
    assert len(await server.read(1, "t")) == 1


@pytest_twisted.ensureDeferred
async def test_contact_f17_rows_as_triggers_leave_them(postgresql, postgresql_url, tmp_path, make_store):
    """A create and an upsert answer with the row that a read finds, whatever changed it on the way, with a key too."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            EXECUTE format('UPDATE %I SET name = upper(name) WHERE id = $1', TG_TABLE_NAME) USING NEW.id;
            RETURN NEW; END$$;
        CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.name = upper(NEW.name); RETURN NEW; END$$;
        CREATE TABLE after (id serial PRIMARY KEY, code text UNIQUE, name text);
        CREATE TRIGGER f AFTER INSERT OR UPDATE OF code ON after FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TABLE before (id serial PRIMARY KEY, code text UNIQUE, name text);
        CREATE TRIGGER g BEFORE INSERT OR UPDATE ON before FOR EACH ROW EXECUTE FUNCTION g();
        CREATE TABLE ruled (id serial PRIMARY KEY, code text UNIQUE, name text);
        CREATE RULE r AS ON UPDATE TO ruled DO ALSO NOTHING;
        CREATE TABLE late (id serial PRIMARY KEY, code text UNIQUE, name text);
        CREATE CONSTRAINT TRIGGER f AFTER INSERT ON late INITIALLY IMMEDIATE FOR EACH ROW EXECUTE FUNCTION f();
        """,
        database,
    )
    path = tmp_path / "t.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE after (id INTEGER PRIMARY KEY, code text UNIQUE, name text);"
            "CREATE TRIGGER f AFTER INSERT ON AFTER BEGIN UPDATE after SET name = upper(name) WHERE id = NEW.id; END;"
            "CREATE TRIGGER g AFTER UPDATE OF code ON after BEGIN"
            " UPDATE after SET name = upper(name) WHERE id = NEW.id; END;"
        )
    body = "{id: {type: int, pk: true}, code: {type: str, unique: true}, name: str}"
    server = make_store(
        postgresql_url, load_schema("\n".join(f"{t}: {body}" for t in ("after", "before", "ruled", "late")))
    )
    file = make_store(f"sqlite:///{path}", load_schema(f"after: {body}"))
    await server.start()
    await file.start()
    with rows_of_a_test() as row:
        for store, model, upserts in [
            (server, "after", True),
            (server, "before", True),
            (server, "ruled", False),
            (server, "late", True),
            (file, "after", True),
        ]:
            for key in (None, "k"):
                with row(f"{model} {key} {store.url[:8]}"):
                    code = f"c{key}"
                    created = await store.create(1, model, {"code": code, "name": "a"}, idempotency_key=key and model)
                    assert await store.read(1, model, {"code": code}) == [created]
                    assert created["name"] == ("a" if model == "ruled" else "A")
                    if upserts:
                        again = await store.upsert(
                            1, model, {"code": code, "name": "b"}, ["code"], idempotency_key=key and f"u{model}"
                        )
                        assert await store.read(1, model, {"code": code}) == [again]
                        fresh = await store.upsert(1, model, {"code": f"new {key}", "name": "c"}, ["code"])
                        assert fresh["name"] == "C"


@pytest_twisted.ensureDeferred
async def test_contact_f21_variables_of_libpq(postgresql, postgresql_url, make_store, monkeypatch):
    """A server of our own is reached whatever the shell says of PostgreSQL; of another the error names the cause."""
    schema = load_schema(f"t: {ids()}")
    with rows_of_a_test() as row:
        for name, value in [
            ("PGHOSTADDR", "192.0.2.1"),
            ("PGSSLMODE", "verify-full"),
            ("PGTARGETSESSIONATTRS", "standby"),
            ("PGCHANNELBINDING", "require"),
            ("PGREQUIREAUTH", "md5"),
            ("PGOPTIONS", "-c search_path=nowhere"),
            ("PGCLIENTENCODING", "LATIN1"),
            ("PGAPPNAME", "x"),
            ("PGSSLROOTCERT", "/nowhere"),
        ]:
            with row(name), monkeypatch.context() as patch:
                patch.setenv(name, value)
                store = make_store(postgresql_url, schema, threads=1, alone=True)
                await store.start()
                assert await store.read(1, "t") == []
                await store.stop()
        with row("the reason"), monkeypatch.context() as patch:
            patch.setenv("PGTARGETSESSIONATTRS", "standby")
            with pytest.raises(Unavailable, match="does not answer: .*standby"):
                await make_store(postgresql_url, schema, threads=1, deadline=0.5).start()


#: What a trigger does to the session that it runs in.
DONE = {
    "a search path": "PERFORM set_config('search_path', 'evil', false)",
    "a table of the same name": "CREATE TEMP TABLE t (LIKE evil.t INCLUDING ALL);"
    "CREATE TEMP TABLE zcomm_idempotency (LIKE evil.zcomm_idempotency INCLUDING ALL)",
    "types of the same name": "CREATE TEMP TABLE text (x int); CREATE TEMP TABLE bytea (x int)",
    "foreign keys that are off": "PERFORM set_config('session_replication_role', 'replica', false)",
    "a role": "SET ROLE stranger",
    "another user": "SET SESSION AUTHORIZATION stranger",
    "no writes": "PERFORM set_config('default_transaction_read_only', 'on', false)",
    "writes that may be lost": "PERFORM set_config('synchronous_commit', 'off', false)",
    "times": "PERFORM set_config('TimeZone', 'Asia/Tokyo', false), set_config('DateStyle', 'German', false)",
    "a limit": "PERFORM set_config('lock_timeout', '1', false), set_config('statement_timeout', '0', false)",
    "a setting of its own": "PERFORM set_config('app.tenant', '2', false)",
    "an encoding": "PERFORM set_config('client_encoding', 'LATIN1', false)",
}
SEEN = (
    "concat_ws(' ', current_user, session_user, current_setting('synchronous_commit'),"
    " current_setting('session_replication_role'), current_setting('statement_timeout'),"
    " current_setting('app.tenant', true), current_setting('TimeZone'))"
)


@pytest_twisted.ensureDeferred
async def test_contact_what_triggers_leave_in_a_session(postgresql, postgresql_url, make_store):
    """What a trigger, a policy's function or a cascade does to the session has no effect on the next statement, nor on
    the further statements of its own transaction."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    columns = "(id bigserial PRIMARY KEY, name text UNIQUE, at timestamptz, up bigint{})"
    kept = "(identity text, key text, request text, result text, expires bigint, PRIMARY KEY (identity, key))"
    postgresql.execute("CREATE ROLE stranger")
    postgresql.execute(
        f"""
        CREATE SCHEMA evil; CREATE TABLE evil.t {columns.format("")}; CREATE TABLE evil.pure {columns.format("")};
        CREATE TABLE evil.zcomm_idempotency {kept};
        CREATE TABLE t {columns.format(f" REFERENCES t, seen text DEFAULT {SEEN}")};
        CREATE TABLE pure {columns.format(f" REFERENCES pure, seen text DEFAULT {SEEN}")};
        CREATE TABLE top (id bigserial PRIMARY KEY, name text);
        CREATE TABLE below (id bigserial PRIMARY KEY, top bigint REFERENCES top ON DELETE CASCADE);
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
        CREATE TRIGGER f AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TRIGGER f AFTER DELETE ON below FOR EACH ROW EXECUTE FUNCTION f();
        GRANT ALL ON SCHEMA evil, public TO stranger; GRANT ALL ON ALL TABLES IN SCHEMA evil, public TO stranger;
        GRANT ALL ON ALL SEQUENCES IN SCHEMA evil, public TO stranger;
        """,
        database,
    )
    body = (
        "{id: {type: int, pk: true}, name: {type: str, unique: true}, at: datetime, seen: {type: str, readonly: true}"
    )
    schema = load_schema(
        f"t: {body}, up: {{type: int, fk: t.id}}}}\npure: {body}, up: {{type: int, fk: pure.id}}}}\ntop: {ids()}"
    )
    store = make_store(postgresql_url, schema, threads=1)
    await store.start()
    disturbing = {name for name, model in store.schema.models.items() if model.capabilities.disturbs}
    assert disturbing == {"t", "top"}
    seen = f"postgres postgres on origin 5s {postgresql.execute('SHOW TimeZone', database)[0][0]}"
    with rows_of_a_test() as row:
        for name, done in DONE.items():
            postgresql.execute(
                f"CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {done};RETURN NULL; END$$",
                database,
            )
            for key in (None, "k"):
                with row(f"{name} {key}"):
                    values = {"name": f"{name} é {key}", "at": "2024-05-06T07:08:09.500000Z"}
                    if key == "k":
                        above = await store.create(1, "top", {"name": name})
                        postgresql.execute(f"INSERT INTO below (top) VALUES ({above['id']})", database)
                        await store.delete(1, "top", {"id": above["id"]})
                    for model in ("t", "t", "pure"):
                        values["name"] += "."
                        used = key and values["name"].replace("é", model)
                        made = await store.create(1, model, values, idempotency_key=used)
                        assert made["seen"].split() == seen.split(), made["seen"]
                        assert {each: made[each] for each in values} == values
                        if key:
                            again = await store.create(1, model, values, idempotency_key=used)
                            assert again == made
                        assert await store.read(1, model, {"name": values["name"]}) == [made]
                        with pytest.raises(Conflict):
                            await store.create(1, model, {"up": 99_999})
                        assert await store.update(1, model, {"id": made["id"]}, {"up": None}) == {"updated": 1}
                    for table in ("t", "pure", "zcomm_idempotency"):
                        assert postgresql.execute(f"SELECT count(*) FROM evil.{table}", database) == [(0,)]
    await store.stop()
    postgresql.execute("DROP OWNED BY stranger", database)
    postgresql.execute("DROP ROLE stranger")


@pytest_twisted.ensureDeferred
async def test_contact_rules_that_do_something_else(postgresql, postgresql_url, make_store):
    """Of a rule that removes nothing but marks a row the server says that it reached none: such a change is refused by
    name. What a rule does of the same kind is counted, and so is what a trigger does."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    marks = "DO INSTEAD UPDATE base SET gone = true WHERE id = OLD.id"
    names = ("marked", "counted", "partly", "ignored", "tables")
    views = [f"CREATE VIEW {name} AS SELECT id, a FROM base WHERE NOT gone;" for name in names[:-1]]
    postgresql.execute(
        f"""CREATE TABLE base (id bigserial PRIMARY KEY, a text, gone bool NOT NULL DEFAULT false);
        {"".join(views)} CREATE TABLE tables (id bigserial PRIMARY KEY, a text); INSERT INTO tables VALUES (1, 'x');
        INSERT INTO base (a) VALUES ('x'), ('x'), ('y'); CREATE TABLE log (a text);
        CREATE RULE d AS ON DELETE TO marked {marks};
        CREATE RULE u AS ON UPDATE TO marked DO INSTEAD INSERT INTO log VALUES (NEW.a);
        CREATE RULE d AS ON DELETE TO counted DO INSTEAD (INSERT INTO log VALUES ('d');
            DELETE FROM base WHERE id = OLD.id);
        CREATE RULE u AS ON UPDATE TO counted DO INSTEAD UPDATE base SET a = NEW.a WHERE id = OLD.id;
        CREATE RULE d AS ON DELETE TO partly WHERE OLD.a = 'x' {marks};
        CREATE RULE d AS ON DELETE TO ignored DO INSTEAD NOTHING;
        CREATE RULE u AS ON UPDATE TO ignored DO INSTEAD SELECT pg_sleep(0);
        CREATE RULE d AS ON DELETE TO tables DO INSTEAD UPDATE tables SET a = 'gone' WHERE id = OLD.id""",
        database,
    )
    fields = "id: {type: int, pk: true}, a: str"
    schema = load_schema("\n".join(f"{name}: {{{fields}}}" for name in names))
    store = make_store(postgresql_url, schema, threads=1)
    await store.start()
    lacks = {name: sorted(store.schema.models[name].capabilities.lacks) for name in names}
    assert lacks == {
        "marked": ["delete", "update"],
        "counted": [],
        "partly": ["delete"],
        "ignored": ["update"],
        "tables": ["delete"],
    }
    for name in ("marked", "partly", "tables"):
        with pytest.raises(PermissionDenied, match="a rule does something else there"):
            await store.delete(1, name, {"a": "x"})
    assert await store.update(1, "counted", {"a": "x"}, {"a": "z"}) == {"updated": 2}
    assert await store.delete(1, "ignored", {"a": "z"}) == {"deleted": 0}
    assert await store.delete(1, "counted", {"a": "z"}) == {"deleted": 2}
    assert postgresql.execute("SELECT a, gone FROM base", database) == [("y", False)]
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_tables_that_inherit(postgresql, postgresql_url, make_store):
    """A key that children repeat names no row for sure: refused at the start, and without effect where a child comes
    later. Partitions, a view of the parent alone and a model that nobody writes go on."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        """
        CREATE TABLE parent (id serial PRIMARY KEY, name text);
        CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
        INSERT INTO parent (id, name) VALUES (1, 'of the parent'); INSERT INTO child VALUES (1, 'of the child');
        CREATE VIEW alone AS SELECT * FROM ONLY parent;
        CREATE TABLE later (id serial PRIMARY KEY, name text);
        CREATE TABLE parts (id serial PRIMARY KEY, name text) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF parts FOR VALUES FROM (1) TO (1000);
        """,
        database,
    )
    with pytest.raises(ConfigError, match="model parent: other tables inherit from its own .public.child."):
        await make_store(postgresql_url, load_schema(f"parent: {ids()}"), threads=1).start()
    schema = load_schema(
        f"alone: {ids()}\nchild: {ids()}\nlater: {ids()}\nparts: {ids()}\nmade: {ids()}\n"
        f"All: {{_model: {{table: parent, read_only: true}}, {ids()[1:]}"
    )
    store = make_store(postgresql_url, schema, threads=1)
    await store.start()
    for model in ("later", "made"):
        await store.create(1, model, {"name": "mine"})
        postgresql.execute(
            f"CREATE TABLE of_{model} () INHERITS ({model}); INSERT INTO of_{model} VALUES (1, 'theirs')", database
        )
    with rows_of_a_test() as row:
        for model in ("alone", "child", "later", "parts", "made"):
            with row(model):
                if model == "parts":
                    await store.create(1, model, {"name": "mine"})
                before = [each for each in await store.read(1, model) if each["id"] == 1]
                assert len(before) == 1
                assert await store.update(1, model, {"id": 1}, {"name": "new"}) == {"updated": 1}
                assert await store.read(1, model, {"id": 1}) == [{"id": 1, "name": "new"}]
                assert await store.delete(1, model, {"id": 1}) == {"deleted": 1}
        with row("read only"):
            assert await store.read(1, "All") == []
        with row("rows of others"):
            for model in ("later", "made"):
                assert postgresql.execute(f"SELECT * FROM of_{model}", database) == [(1, "theirs")]


@pytest_twisted.ensureDeferred
async def test_contact_schemas_of_a_database(postgresql, postgresql_url, make_store):
    """Tables are where the search path of the role, the database or the URL finds them at the start, and made in its
    first schema; types come from any; a path that changes afterwards changes nothing."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        """
        CREATE SCHEMA app; CREATE SCHEMA "of Types"; CREATE SCHEMA other;
        CREATE EXTENSION citext SCHEMA "of Types"; CREATE DOMAIN other.short AS varchar(5);
        CREATE TYPE other.mood AS ENUM ('sad', 'ok'); CREATE TABLE app.text (x int);
        CREATE TABLE app.t (id serial PRIMARY KEY, name "of Types".citext UNIQUE, short other.short, mood other.mood);
        CREATE TABLE public.t (id serial PRIMARY KEY, name text, short text, mood text);
        """,
        database,
    )
    postgresql.execute(f"ALTER DATABASE {database} SET search_path = app, public")
    body = "{id: {type: int, pk: true}, name: {type: str, unique: true}, short: str, mood: str}"
    schema = load_schema(f"t: {body}\nmade: {body}")
    store = make_store(postgresql_url, schema, threads=2)
    await store.start()
    with rows_of_a_test() as row:
        with row("the path of the database"):
            made = await store.create(1, "t", {"name": "Ann", "short": "abc", "mood": "ok"})
            assert await store.read(1, "t", {"name": "ANN", "short": "abc", "mood": "ok"}) == [made]
            assert await store.update(1, "t", {"name": "aNN"}, {"mood": "sad"}) == {"updated": 1}
            again = await store.upsert(1, "t", {"name": "aNN", "mood": "ok"}, ["name"], idempotency_key="k")
            assert again["id"] == made["id"]
            with pytest.raises(Invalid, match="mood must be one of"):
                await store.create(1, "t", {"name": "Bob", "mood": "glad"})
            await store.create(1, "made", {"name": "x"})
            assert postgresql.execute("SELECT count(*) FROM app.made, app.zcomm_idempotency", database) == [(1,)]
        with row("a path that changes"):
            postgresql.execute(f"ALTER DATABASE {database} SET search_path = other")
            store._execution.pool.close()
            store._execution.pool.open()
            assert len(await store.read(1, "t", {"name": "ANN"})) == 1
            await store.create(1, "t", {"name": "Cid"})
            assert postgresql.execute("SELECT count(*) FROM app.t", database) == [(2,)]
        with row("the path of the URL"):
            second = make_store(
                postgresql_url + "&options=-c%20search_path%3Dpublic", load_schema(f"t: {ids()}"), threads=1
            )
            await second.start()
            await second.create(1, "t", {"name": "of public"})
            assert postgresql.execute("SELECT name FROM public.t", database) == [("of public",)]


@pytest_twisted.ensureDeferred
async def test_contact_a_database_and_tables_that_go_meanwhile(postgresql, postgresql_url, make_store):
    """What is no longer there is unavailable until it is back, with a key too; nothing is written elsewhere."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    store = make_store(postgresql_url, load_schema(f"t: {ids()}"), threads=1, deadline=1.0)
    await store.start()
    await store.create(1, "t", {"name": "a"})
    number = count(1)

    async def refused() -> None:
        for work in (
            lambda: store.create(1, "t", {"name": "lost"}),
            lambda: store.create(1, "t", {"name": "lost"}, idempotency_key=f"k{next(number)}"),
            lambda: store.update(1, "t", {"id": 1}, {"name": "lost"}),
            lambda: store.delete(1, "t", {"id": 1, "name": "a"}),
            lambda: store.read(1, "t", {"name": "a"}),
        ):
            with pytest.raises(Unavailable):
                await work()

    with rows_of_a_test() as row:
        for name, away, back in [
            ("renamed", "ALTER TABLE t RENAME TO u", "ALTER TABLE u RENAME TO t"),
            ("moved", "CREATE SCHEMA s; ALTER TABLE t SET SCHEMA s", "ALTER TABLE s.t SET SCHEMA public"),
            ("a column", "ALTER TABLE t RENAME name TO n", "ALTER TABLE t RENAME n TO name"),
            (
                "a type",
                "ALTER TABLE t ALTER name TYPE int4range USING NULL",
                "ALTER TABLE t ALTER name TYPE text USING 'a'",
            ),
            ("the schema", "ALTER SCHEMA public RENAME TO p", "ALTER SCHEMA p RENAME TO public"),
        ]:
            with row(name):
                postgresql.execute(away, database)
                await refused()
                postgresql.execute(back, database)
                assert await store.read(1, "t") == [{"id": 1, "name": "a"}]
                assert await store.update(1, "t", {"id": 1}, {"name": "a"}) == {"updated": 1}
        with row("the database"):
            end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
            postgresql.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
            postgresql.execute(end)
            postgresql.execute(f"ALTER DATABASE {database} RENAME TO away_{database}")
            await refused()
            postgresql.execute(f"ALTER DATABASE away_{database} RENAME TO {database}")
            postgresql.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
            assert await store.read(1, "t") == [{"id": 1, "name": "a"}]


#: By what a trigger raises, or when a constraint is checked: the error, its text.
SAID = [
    ("44000", Invalid, "The database does not accept a value"),
    ("P0004", Invalid, "The database refuses this"),
    ("P0002", Invalid, "The database refuses this"),
    ("ZZ001", Invalid, "The database refuses this"),
    ("09000", Invalid, "The database refuses this"),
    ("21000", Invalid, "The database refuses this"),
    ("27000", Invalid, "The database refuses this"),
    ("38000", Invalid, "The database refuses this"),
    ("39004", Invalid, "The database refuses this"),
    ("22012", Invalid, "The database does not accept a value"),
    ("22P02", Invalid, "The database does not accept a value"),
    ("23000", Invalid, "The database does not accept a value"),
    ("23001", Conflict, "Other rows still point to this row of t"),
    ("40001", TooBusy, "The database is busy; try again"),
    ("40002", TooBusy, "The database is busy; try again"),
    ("53100", Unavailable, "The database cannot store anything now"),
    ("53200", Unavailable, "The database cannot store anything now"),
    ("54001", Invalid, "The database does not accept a value"),
    ("55000", Invalid, "The database does not support this create of t"),
    ("55006", TooBusy, "The database is busy; try again"),
    ("55P03", TooBusy, "The database is busy; try again"),
    ("57014", CommandTimeout, "The command took too long; ask for less at a time"),
    ("58030", Unavailable, "The database cannot store anything now"),
    ("08001", Unavailable, "A server that the database itself asks does not answer; try again"),
    ("HV000", Unavailable, "A server that the database itself asks does not answer; try again"),
    ("42501", PermissionDenied, "Permission denied"),
    ("42P01", InternalError, "Internal error"),
    ("XX000", InternalError, "Internal error"),
    ("XX001", InternalError, "Internal error"),
    ("0LP01", InternalError, "Internal error"),
]


@pytest_twisted.ensureDeferred
async def test_contact_every_class_of_errors(postgresql, postgresql_url, make_store):
    """An error of each class, at once and when the transaction ends, is told by what it means, and leaves nothing."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        """
        CREATE TABLE t (id serial PRIMARY KEY, name text);
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE EXCEPTION 'secret' USING ERRCODE = NEW.name; RETURN NULL; END$$;
        CREATE TABLE base (id serial PRIMARY KEY, name text);
        CREATE VIEW checked AS SELECT * FROM base WHERE name < 'm' WITH CHECK OPTION;
        """,
        database,
    )
    store = make_store(postgresql_url, load_schema(f"t: {ids()}\nchecked: {ids()}"), threads=1)
    await store.start()
    with rows_of_a_test() as row:
        for when in ("IMMEDIATE", "DEFERRED"):
            postgresql.execute(
                "DROP TRIGGER IF EXISTS f ON t; CREATE CONSTRAINT TRIGGER f AFTER INSERT ON t"
                f" DEFERRABLE INITIALLY {when} FOR EACH ROW EXECUTE FUNCTION f()",
                database,
            )
            for state, error, text in SAID:
                for key in (None, f"{when} {state}"):
                    with row(f"{when} {state} {key}"):
                        with pytest.raises(CommandError) as caught:
                            await store.create(1, "t", {"name": state}, idempotency_key=key)
                        assert (type(caught.value), caught.value.text) == (error, text)
        with row("a view with a check option"):
            for write in (
                store.create(1, "checked", {"name": "z"}),
                store.create(1, "checked", {"name": "z"}, idempotency_key="view"),
            ):
                with pytest.raises(Invalid, match="does not accept"):
                    await write
    assert await store.read(1, "t") == []


@pytest_twisted.ensureDeferred
async def test_contact_triggers_with_more_rights_than_ours(postgresql, guest, make_store):
    """A trigger of the superuser's may set for its transaction, or leave in the session, what we may not set."""
    role, database, url = guest
    postgresql.execute(
        f"""
        CREATE TABLE t (id serial PRIMARY KEY, name text UNIQUE, up int REFERENCES t);
        CREATE TABLE pure (id serial PRIMARY KEY, name text UNIQUE, up int REFERENCES pure);
        CREATE TABLE zcomm_idempotency (identity text, key text, request text NOT NULL, result text,
            expires bigint NOT NULL, PRIMARY KEY (identity, key));
        CREATE FUNCTION f() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$BEGIN
            PERFORM set_config('session_replication_role', 'replica', NEW.name LIKE 'local%'); RETURN NULL; END$$;
        CREATE TRIGGER f AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();
        GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};
        """,
        database,
    )
    body = "{id: {type: int, pk: true}, name: {type: str, unique: true}, up: int}"
    store = make_store(url, load_schema(f"t: {body}\npure: {body}"), threads=1, deadline=1.0)
    await store.start()
    with rows_of_a_test() as row:
        for name in ("local", "left"):
            for key in (None, name):
                with row(f"{name} {key}"):
                    made = await store.create(1, "t", {"name": f"{name} {key}"}, idempotency_key=key)
                    assert await store.read(1, "t", {"name": f"{name} {key}"}) == [made]
                    for model in ("pure", "t"):
                        with pytest.raises(Conflict):
                            await store.create(1, model, {"name": "none", "up": 99_999})
    assert len(await store.read(1, "t")) == 4


@pytest_twisted.ensureDeferred
async def test_b4_the_server_keeps_few_prepared_statements(postgresql, postgresql_url, make_store):
    """However many shapes recur, each connection has a few dozen of them prepared, and none that is long: what the
    server keeps of one takes a hundred times the memory of its text."""
    store = make_store(postgresql_url, threads=1, connections=1)
    await store.start()
    conditions = [{name: "x"} for name in ("s", "s__ne", "s__gt", "s__lt", "s__gte", "s__lte", "s__like")]
    shapes = [{"$or": [conditions[place] for place in range(7) if number >> place & 1]} for number in range(1, 128)]
    shapes = [where for where in shapes if len(where["$or"]) > 2][:60]
    for where in [*shapes, {"$and": [{"$or": conditions}] * 9}]:
        for _ in range(6):
            await store.read(1, "Things", where, fields=["id"])
    with store._pool.connection() as connection:
        longest, number = connection.run(
            "SELECT max(length(statement)), count(*) FROM pg_prepared_statements", (), True
        )[0][0]
    assert 20 <= number <= 50 and longest <= 4096
    assert await store.read(1, "Things", shapes[0]) == []


class FewConnections:
    """The owner of a database, to whom it gives four connections.

    :ivar url: of the database as that owner.
    """

    def __init__(self, postgresql: Any, url: str):
        self._postgresql = postgresql
        self.name = name = url.partition("@/")[2].partition("?")[0]
        self.url = url.replace("postgres@", f"{name}@")
        postgresql.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 4; ALTER DATABASE {name} OWNER TO {name}")
        postgresql.execute(f"GRANT ALL ON SCHEMA public TO {name}", name)

    def allow_more(self) -> None:
        """Give as many as are asked for from now on."""
        self._postgresql.execute(f"ALTER ROLE {self.name} CONNECTION LIMIT -1")

    def drop(self) -> None:
        """Give the database back to the one who had it, without what is in it."""
        self._postgresql.execute(f"DROP OWNED BY {self.name}", self.name)
        self._postgresql.execute(f"ALTER DATABASE {self.name} OWNER TO postgres; DROP ROLE {self.name}")


@pytest.fixture
def few_connections(postgresql, postgresql_url):
    """A database that gives few connections to its owner."""
    owner = FewConnections(postgresql, postgresql_url)
    yield owner
    owner.drop()
    gc.collect()


@pytest_twisted.ensureDeferred
async def test_b2_one_user_leaves_half_of_few_connections(postgresql, postgresql_url, few_connections, make_store):
    """Where the database gives no more than four, dear reads of one user have two of them: others are served, and the
    server's own questions, while those run."""
    schema = load_schema("T: {id: {type: int, pk: true}, name: str}\nU: {id: {type: int, pk: true}, name: str}")
    store = make_store(few_connections.url, schema, threads=12, statement_timeout=20.0)
    await store.start()
    await DeferredList([store.create(number, "T", {"name": "x"}) for number in range(64)], fireOnOneErrback=True)
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as other:
        other.execute('LOCK TABLE "T"')
        reads = [store.read("eve", "T") for _ in range(12)]
        await wait_until(lambda: store._workers.running == 6)
        for number in range(20):
            assert await store.create("bob", "U", {"name": str(number)})
            assert await store.check()
        assert not any(read.called for read in reads)
    await DeferredList(reads, fireOnOneErrback=True)


@pytest_twisted.ensureDeferred
async def test_b2_connections_that_the_database_gives_again_are_used(
    postgresql, postgresql_url, few_connections, make_store
):
    """Once there may be more of them, one more is tried from time to time."""
    schema = load_schema("T: {id: {type: int, pk: true}, name: str}")
    store = make_store(few_connections.url, schema, threads=8, statement_timeout=20.0)
    await store.start()
    await DeferredList([store.create(number, "T", {"name": "x"}) for number in range(64)], fireOnOneErrback=True)
    few_connections.allow_more()
    held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as other:
        other.execute('LOCK TABLE "T"')
        reads = [store.read(f"user {number}", "T") for number in range(8)]
        await wait_until(lambda: postgresql.execute(held) == [(8,)])
    await DeferredList(reads, fireOnOneErrback=True)


@pytest_twisted.ensureDeferred
async def test_b2_one_user_alone_uses_connections_that_the_database_gives_again(
    postgresql, postgresql_url, few_connections, make_store
):
    """That there were few is forgotten after a minute: one user alone, who has half of them, tries no more."""
    schema = load_schema("T: {id: {type: int, pk: true}, name: str}")
    store = make_store(few_connections.url, schema, threads=12, statement_timeout=20.0)
    await store.start()
    await DeferredList([store.create(number, "T", {"name": "x"}) for number in range(64)], fireOnOneErrback=True)
    few_connections.allow_more()
    assert store._pool._most is not None
    store._pool._review([], time.monotonic() + FORGOTTEN)
    held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with psycopg.connect(postgresql_url.replace("+psycopg", "")) as other:
        other.execute('LOCK TABLE "T"')
        reads = [store.read("alice", "T") for _ in range(6)]
        await wait_until(lambda: postgresql.execute(held) == [(6,)])
    await DeferredList(reads, fireOnOneErrback=True)
