"""Writes that are answered with an error, and rows that change at the very end, on real databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest
import pytest_twisted
from support.rows import rows_of_a_test

from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.errors import CommandError, InternalError, Invalid, PermissionDenied, Unavailable

BODY = "{id: {type: int, pk: true}, k: {type: str, unique: true}, v: int}"
TAKING = """
CREATE TABLE log (t text, k text);
CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO log VALUES (TG_TABLE_NAME, NEW.k); RETURN NULL; END$$;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO log VALUES (TG_TABLE_NAME, 'noted'); RETURN NEW; END$$;
CREATE FUNCTION tell() RETURNS text LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO log VALUES ('told', 'told'); RETURN 'told'; END$$;
CREATE TABLE routed (id bigserial PRIMARY KEY, k text UNIQUE, v int);
CREATE TRIGGER r BEFORE INSERT ON routed FOR EACH ROW EXECUTE FUNCTION take();
CREATE TABLE kept (id bigserial PRIMARY KEY, k text UNIQUE, v int);
INSERT INTO kept (k, v) VALUES ('a', 1);
CREATE TRIGGER r BEFORE UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION take();
CREATE TABLE parted (id bigserial, k text, v int, PRIMARY KEY (id, k), UNIQUE (k)) PARTITION BY LIST (k);
CREATE TABLE part PARTITION OF parted FOR VALUES IN ('a');
CREATE TRIGGER r BEFORE INSERT ON part FOR EACH ROW EXECUTE FUNCTION take();
CREATE TABLE base (id bigserial PRIMARY KEY, k text UNIQUE, v int);
CREATE VIEW seen AS SELECT * FROM base;
CREATE TRIGGER r INSTEAD OF INSERT ON seen FOR EACH ROW EXECUTE FUNCTION take();
CREATE VIEW through AS SELECT * FROM routed;
CREATE TABLE noted (id bigserial PRIMARY KEY, k text UNIQUE, v int);
INSERT INTO noted (k, v) VALUES ('a', 1);
CREATE TRIGGER r BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER s BEFORE UPDATE ON noted FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TABLE telling (id bigserial PRIMARY KEY, k text UNIQUE, v int, told text DEFAULT tell());
INSERT INTO telling (k, v, told) VALUES ('a', 1, '');
CREATE TABLE plain (id bigserial PRIMARY KEY, k text UNIQUE, v int);
"""
NOT_STORED = "The database did not store the row"


def upsert(store: Any, model: str, rows: dict[str, Any] | None = None, key: str | None = None) -> Any:
    command = {"action": "upsert", "model": model, "values": {"k": "a", "v": 2}, "conflict_fields": ["k"]}
    return store.execute(1, parse_command({**command, "_idempotencyKey": key}), "", rows or {})


@pytest_twisted.ensureDeferred
async def test_contact_an_error_leaves_nothing(postgresql, postgresql_url, tmp_path, make_store):
    """Whatever a trigger did with a row that it took is undone with the refusal, with a key and without; what keeps a
    row out of reach is told from what takes it."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(TAKING, database)
    path = tmp_path / "t.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE log (t text, k text);"
            + "".join(
                f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, k text UNIQUE, v int);"
                for name in ("routed", "kept", "after", "noted", "base")
            )
            + "CREATE VIEW seen AS SELECT * FROM base; INSERT INTO kept (k, v) VALUES ('a', 1);"
            "INSERT INTO noted (k, v) VALUES ('a', 1);"
            + "".join(
                f"CREATE TRIGGER {name}_{number} {when} ON {name} BEGIN INSERT INTO log VALUES ('{name}', NEW.k);"
                f" SELECT RAISE(IGNORE); END;"
                for number, (name, when) in enumerate(
                    [
                        ("routed", "BEFORE INSERT"),
                        ("kept", "BEFORE UPDATE"),
                        ("seen", "INSTEAD OF INSERT"),
                    ]
                )
            )
            + "CREATE TRIGGER n BEFORE INSERT ON noted BEGIN INSERT INTO log VALUES ('noted', NEW.k); END;"
        )
    models = ("routed", "kept", "seen", "noted")
    more = ("parted", "through", "telling", "plain")
    server = make_store(
        postgresql_url,
        load_schema(
            "\n".join(f"{name}: {BODY}" for name in (*models, *more) if name != "parted")
            + "\nparted: {id: {type: int, pk: true}, k: {type: str, pk: true, unique: true}, v: int}"
        ),
    )
    file = make_store(f"sqlite:///{path}", load_schema("\n".join(f"{name}: {BODY}" for name in models)))
    await server.start()
    await file.start()

    def left(store: Any) -> list[Any]:
        if store is server:
            return list(postgresql.execute("SELECT * FROM log", database))
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT * FROM log").fetchall()

    with rows_of_a_test() as row:
        for store in (server, file):
            kind = store.url[:6]
            for model in ("routed", "seen", "parted", "through"):
                if store is file and model in more:
                    continue
                for key in (None, "c"):
                    if (store, model) == (file, "seen"):
                        continue
                    with row(f"create {kind} {model} {key}"):
                        with pytest.raises(Invalid) as caught:
                            await store.create(1, model, {"k": "a", "v": 1}, idempotency_key=key and key + model)
                        assert (type(caught.value), caught.value.text, left(store)) == (Invalid, NOT_STORED, [])
            for key in (None, "u"):
                with row(f"upsert {kind} {key}"):
                    with pytest.raises(CommandError) as caught:
                        await upsert(store, "kept", None, key)
                    assert (type(caught.value), caught.value.text, left(store)) == (Invalid, NOT_STORED, [])
                for model in ("noted", "telling"):
                    if store is file and model in more:
                        continue
                    with row(f"out of reach {kind} {model} {key}"):
                        with pytest.raises(PermissionDenied):
                            await upsert(store, model, {"v": 2}, key)
                        assert left(store) == []
        with row("a value that no row has"):
            # A trigger for the statement runs without a row as well.
            with pytest.raises(Invalid):
                await server.update(1, "noted", {"id": "x"}, {"v": 2})
            assert left(server) == []
            assert (await server.update(1, "noted", {"k": "none"}, {"v": 2})) == {"updated": 0}
            postgresql.execute("DELETE FROM log", database)
        with row("a trigger that came later"):
            await server.create(1, "plain", {"k": "a"})
            postgresql.execute(
                "CREATE TRIGGER r BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION take()",
                database,
            )
            with pytest.raises(InternalError, match="do not repeat it") as told:
                await server.create(1, "plain", {"k": "b"})
            assert not told.value.retryable
            assert len(left(server)) == 1
            with pytest.raises(Invalid, match=NOT_STORED):
                await server.create(1, "plain", {"k": "b"})
            assert len(left(server)) == 1


DEFERRED = """
CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    EXECUTE format('UPDATE %I SET v = v + 100 WHERE k = $1 AND v < 100', TG_ARGV[0]) USING NEW.k; RETURN NULL; END$$;
CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO far (k) VALUES (NEW.k); RETURN NEW; END$$;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'no more of these'; END$$;
CREATE TABLE far (k text);
CREATE TABLE near (id bigserial PRIMARY KEY, k text UNIQUE, v int);
CREATE CONSTRAINT TRIGGER t AFTER INSERT OR UPDATE ON near DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION more('near');
CREATE TABLE remote (id bigserial PRIMARY KEY, k text UNIQUE, v int);
CREATE TRIGGER t BEFORE INSERT ON remote FOR EACH ROW EXECUTE FUNCTION pass();
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON far DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION more('remote');
CREATE TABLE strict (id bigserial PRIMARY KEY, k text UNIQUE, v int);
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON strict DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse();
CREATE TABLE parted (id bigserial, k text, v int, PRIMARY KEY (id, k), UNIQUE (k)) PARTITION BY LIST (k);
CREATE TABLE part PARTITION OF parted DEFAULT;
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON part DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION more('part');
"""


@pytest_twisted.ensureDeferred
async def test_contact_rows_as_deferred_triggers_leave_them(postgresql, postgresql_url, make_store):
    """What a trigger does at the end of the transaction, of whichever table, is in the answer."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(DEFERRED, database)
    names = ("near", "remote", "strict")
    schema = "\n".join(f"{name}: {BODY}" for name in names)
    schema += "\nparted: {id: {type: int, pk: true}, k: {type: str, pk: true, unique: true}, v: int}"
    store = make_store(postgresql_url, load_schema(schema))
    await store.start()
    with rows_of_a_test() as row:
        for model in ("near", "remote", "parted"):
            for key in (None, f"k{model}"):
                with row(f"{model} {key}"):
                    made = await store.create(1, model, {"k": f"a{key}", "v": 1}, idempotency_key=key)
                    assert made["v"] == 101
                    assert await store.read(1, model, {"k": f"a{key}"}) == [made]
                    fresh = await store.upsert(
                        1, model, {"k": f"b{key}", "v": 2}, ["k"], idempotency_key=key and "u" + key
                    )
                    assert fresh["v"] == 102
        for key in (None, "s"):
            with row(f"refused {key}"), pytest.raises(Invalid, match="no more of these"):
                await store.create(1, "strict", {"k": "a", "v": 1}, idempotency_key=key)
        assert await store.read(1, "strict") == []


@pytest_twisted.ensureDeferred
async def test_contact_labels_of_an_enum_as_they_are_now(postgresql, postgresql_url, make_store):
    """An error names the labels that the type has by then, in a write and in a filter, in whichever schema it is."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute(
        "CREATE SCHEMA far; CREATE TYPE far.mood AS ENUM ('sad', 'ok'); CREATE DOMAIN temper AS far.mood;"
        "CREATE TABLE t (id serial PRIMARY KEY, m far.mood, d temper);",
        database,
    )
    store = make_store(postgresql_url, load_schema("t: {id: {type: int, pk: true}, m: str, d: str}"))
    await store.start()
    with rows_of_a_test() as row:
        for change, labels in [
            ("SELECT 1", '"sad", "ok"'),
            ("ALTER TYPE far.mood RENAME VALUE 'sad' TO 'blue'", '"blue", "ok"'),
            ("ALTER TYPE far.mood ADD VALUE 'so so' AFTER 'blue'", '"blue", "so so", "ok"'),
        ]:
            postgresql.execute(change, database)
            for name in "md":
                for ask in (store.create, store.read):
                    with row(f"{change} {name} {ask.__name__}"):
                        with pytest.raises(Invalid) as caught:
                            await ask(1, "t", {name: "none of them"})
                        said = f"{name} must be one of {labels}"
                        assert (caught.value.text, list(caught.value.fields)) == (said, [name])
        for value in ("blue", "so so", "ok"):
            with row(value):
                assert (await store.create(1, "t", {"m": value, "d": value}))["d"] == value
        postgresql.execute("ALTER TYPE far.mood RENAME TO humour", database)
        with row("a type that is gone"), pytest.raises(Unavailable):
            await store.create(1, "t", {"m": "ok"})
