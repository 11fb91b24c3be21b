"""Keys and other values that existing tables make by themselves, on real databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
import pytest_twisted
from support.rows import rows_of_a_test

from zcomm.auth.policy import AllowAll
from zcomm.commands.description import Description
from zcomm.commands.files import Files
from zcomm.commands.functions import FunctionRegistry
from zcomm.commands.pages import PageRegistry
from zcomm.data.schema import load_schema
from zcomm.errors import ConfigError, Conflict, Invalid
from zcomm.interfaces import Identity

#: By model: its table in either database, what it is in the schema.
TABLES = {
    "uuids": (
        "id uuid PRIMARY KEY DEFAULT gen_random_uuid(), v int",
        "id text PRIMARY KEY DEFAULT (lower(hex(randomblob(16)))), v int",
        "{id: {type: uuid, pk: true}, v: int}",
    ),
    "texts": (
        "id text PRIMARY KEY DEFAULT md5(random()::text), v int",
        "id text PRIMARY KEY NOT NULL DEFAULT ('n' || hex(randomblob(8))), v int",
        "{id: {type: str, pk: true}, v: int}",
    ),
    "stamps": (
        "at timestamptz DEFAULT now(), k text DEFAULT 'none', v int, PRIMARY KEY (at, k)",
        "at text DEFAULT CURRENT_TIMESTAMP, k text DEFAULT 'none', v int, PRIMARY KEY (at, k)",
        "{at: {type: datetime, pk: true}, k: {type: str, pk: true}, v: int}",
    ),
    "domains": (
        "id made PRIMARY KEY, v int",
        None,
        "{id: {type: str, pk: true}, v: int}",
    ),
    "serials": (
        "id bigserial, at date NOT NULL, v int, PRIMARY KEY (id, at)",
        None,
        "{id: {type: int, pk: true}, at: {type: date, pk: true}, v: int}",
    ),
    "always": (
        "id bigint GENERATED ALWAYS AS IDENTITY, at date NOT NULL, v int, PRIMARY KEY (id, at)",
        None,
        "{id: {type: int, pk: true}, at: {type: date, pk: true}, v: int}",
    ),
    "computed": (
        "a int NOT NULL, v int, id text GENERATED ALWAYS AS ('x' || a::text) STORED PRIMARY KEY",
        None,
        "{id: {type: str, pk: true}, a: int, v: int}",
    ),
    "triggered": (
        "id text PRIMARY KEY, v int",
        None,
        "{id: {type: str, pk: true}, v: int}",
    ),
    "sums": (
        "id bigserial PRIMARY KEY, v int, n bigint GENERATED ALWAYS AS IDENTITY,"
        " double int GENERATED ALWAYS AS (v * 2) STORED NOT NULL",
        "id integer PRIMARY KEY, v int, n int GENERATED ALWAYS AS (v + 1) VIRTUAL NOT NULL,"
        " double int GENERATED ALWAYS AS (v * 2) STORED NOT NULL",
        "{id: {type: int, pk: true}, v: int, n: {type: int, required: true}, double: {type: int, required: true}}",
    ),
    "given": (
        "id text PRIMARY KEY, k text NOT NULL DEFAULT 'x', v int",
        "id text PRIMARY KEY DEFAULT (NULL), k text NOT NULL DEFAULT 'x', v int",
        "{id: {type: str, pk: true}, k: {type: str, required: true}, v: int}",
    ),
}
FIRST = """
CREATE DOMAIN made AS text DEFAULT 'made ' || gen_random_uuid();
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    NEW.id := CASE WHEN NEW.v = 0 THEN NEW.id ELSE coalesce(NEW.id, 'filled ' || NEW.v) END; RETURN NEW; END$$;
"""
LAST = """
CREATE TRIGGER f BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION fill();
CREATE TABLE ranges (id bigint GENERATED ALWAYS AS IDENTITY, at date NOT NULL, v int, PRIMARY KEY (id, at))
    PARTITION BY RANGE (at);
CREATE TABLE range PARTITION OF ranges DEFAULT;
CREATE VIEW v_uuids AS SELECT * FROM uuids;
CREATE VIEW v_always AS SELECT * FROM always;
CREATE TABLE loose (id text UNIQUE, v int);
CREATE VIEW v_loose AS SELECT * FROM loose;
CREATE VIEW v_told AS SELECT * FROM loose;
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    INSERT INTO loose VALUES ('told ' || NEW.v, NEW.v) RETURNING id INTO NEW.id; RETURN NEW; END$$;
CREATE TRIGGER t INSTEAD OF INSERT ON v_told FOR EACH ROW EXECUTE FUNCTION tell();
"""
#: The models of views.
VIEWS = {
    "v_uuids": TABLES["uuids"][2],
    "v_always": TABLES["always"][2],
    "v_loose": TABLES["texts"][2],
    "v_told": TABLES["texts"][2],
}


def described(schema: Any) -> dict[str, Any]:
    permissions = AllowAll()
    description = Description(
        lambda: schema, FunctionRegistry(), PageRegistry(), Files(None, permissions, None), permissions
    )
    return description._of_models(Identity(name="ann", role="user"))


@pytest_twisted.ensureDeferred
async def test_contact_keys_that_the_database_makes(postgresql, postgresql_url, tmp_path, make_store):
    """What the database makes of a key, whole or in part, need not be sent and comes back; what it makes always may not
    be sent; and zDescribe tells both."""
    database = postgresql_url.partition("@/")[2].partition("?")[0]
    path = tmp_path / "t.sqlite3"
    tables = "".join(f"CREATE TABLE {name} ({own});" for name, (own, _, _) in TABLES.items())
    postgresql.execute(FIRST + tables + LAST, database)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "".join(f"CREATE TABLE {name} ({own});" for name, (_, own, _) in TABLES.items() if own)
        )
        connection.executescript(
            "CREATE TABLE loose (id text UNIQUE, v int); CREATE VIEW v_loose AS SELECT * FROM loose;"
            "CREATE TRIGGER t INSTEAD OF INSERT ON v_loose BEGIN INSERT INTO loose VALUES (NEW.id, NEW.v); END;"
        )
    models = {name: body for name, (_, _, body) in TABLES.items()} | {"ranges": TABLES["always"][2], **VIEWS}
    server = make_store(postgresql_url, load_schema("\n".join(f"{name}: {body}" for name, body in models.items())))
    file = make_store(
        f"sqlite:///{path}",
        load_schema(
            "\n".join(
                f"{name}: {body}"
                for name, body in models.items()
                if name == "v_loose" or (name in TABLES and TABLES[name][1])
            )
        ),
    )
    await server.start()
    await file.start()
    at = {"at": "2024-01-01"}
    with rows_of_a_test() as row:
        for store in (server, file):
            told = described(store.schema)
            for model, values, key in [
                ("uuids", {}, ["id"]),
                ("texts", {}, ["id"]),
                ("stamps", {}, ["at", "k"]),
                ("domains", {}, ["id"]),
                ("serials", at, ["id"]),
                ("always", at, ["id"]),
                ("ranges", at, ["id"]),
                ("computed", {"a": 3}, ["id"]),
                ("triggered", {"v": 1}, []),
                ("sums", {"v": 4}, ["id", "n", "double"]),
                ("v_uuids", {"v": 1}, []),
                ("v_always", at, []),
                ("v_told", {"v": 1}, []),
            ]:
                if model not in store.schema.models:
                    continue
                for by in (None, "k" + model):
                    with row(f"{store.url[:6]} {model} {by}"):
                        made = await store.create(1, model, values, idempotency_key=by)
                        names = store.schema.models[model].key
                        assert all(made[name] is not None for name in names)
                        assert await store.read(1, model, {name: made[name] for name in names}) == [made]
                        fields = told[model]["fields"]
                        assert [name for name in fields if fields[name].get("made")] == sorted(
                            key, key=list(fields).index
                        )
                        needed = ["at"] if values is at and model not in VIEWS else []
                        assert [name for name in fields if fields[name].get("required")] == needed
                        if model != "v_told":
                            await store.delete(1, model, None, all=True)
                        else:
                            postgresql.execute("DELETE FROM loose", database)
            with row(f"{store.url[:6]} upsert"):
                first = await store.create(1, "texts", {"v": 1})
                again = await store.upsert(1, "texts", {"id": first["id"], "v": 2})
                assert again == {"id": first["id"], "v": 2}
                with pytest.raises(Invalid, match="id is required, as conflict_fields names it"):
                    await store.upsert(1, "texts", {"v": 2}, ["id"])
                own = "00000000-0000-4000-8000-000000000001"
                assert (await store.create(1, "uuids", {"id": own}))["id"] == own
                with pytest.raises(Conflict, match="id already exists"):
                    await store.create(1, "uuids", {"id": own})
                assert UUID((await store.create(1, "uuids", {"v": 1}))["id"])
            for model, values, reason in [
                ("always", {"id": 1, **at}, {"id": "is made by the database; leave it out"}),
                ("ranges", {"id": 1}, {"id": "is made by the database; leave it out", "at": "is required"}),
                ("computed", {"id": "x3", "a": 3}, {"id": "is made by the database; leave it out"}),
                ("sums", {"n": 1}, {"n": "is made by the database; leave it out"}),
                ("sums", {"double": 1}, {"double": "is made by the database; leave it out"}),
                ("texts", {"id": None}, {"id": "is required"}),
                ("serials", {}, {"at": "is required"}),
                ("triggered", {"v": 0}, {"id": "is required"}),
                ("v_loose", {"v": 1}, {"id": "is required"}),
                ("v_always", {"v": 1}, {"at": "is required"}),
                ("v_always", {"id": 1, **at}, {"id": "is not accepted"}),
                ("given", {"v": 1}, {"id": "is required", "k": "is required"}),
            ]:
                if model not in store.schema.models:
                    continue
                with row(f"{store.url[:6]} {model} {values}"):
                    with pytest.raises(Invalid) as caught:
                        await store.create(1, model, values)
                    found = dict(caught.value.fields)
                    assert found == reason or ("not accepted" in str(reason) and found.keys() == reason.keys())
        with row("nothing is left"):
            assert postgresql.execute("SELECT * FROM loose", database) == []
            assert await file.read(1, "v_loose") == []
        with row("an update"):
            with pytest.raises(Invalid, match="double is made by the database"):
                await server.update(1, "sums", {"id": 1}, {"double": 3})
            with pytest.raises(Invalid, match="always.id cannot be changed"):
                await server.update(1, "always", {"id": 1}, {"id": 3})
        with row("by what the database makes always"), pytest.raises(Invalid, match="id is made by the database"):
            await server.upsert(1, "always", at, ["id", "at"])
        with row("an identity that became one that is always made"):
            postgresql.execute("ALTER TABLE serials ALTER id DROP DEFAULT", database)
            postgresql.execute("ALTER TABLE serials ALTER id ADD GENERATED ALWAYS AS IDENTITY", database)
            with pytest.raises(Invalid) as caught:
                await server.create(1, "serials", {"id": 1, **at})
            assert list(caught.value.fields) == ["id"]
        with row("a default for what is made always"):
            body = "sums: {id: {type: int, pk: true}, double: {type: int, default: 1}}"
            for url in (postgresql_url, f"sqlite:///{path}"):
                with pytest.raises(ConfigError, match="model sums, field double: it has a default"):
                    await make_store(url, load_schema(body)).start()
        with row("a key that is made, and that clients cannot write"):
            reads = load_schema("uuids: {id: {type: uuid, pk: true, readonly: true}, v: int}")
            for number, url in enumerate((postgresql_url, f"sqlite:///{path}")):
                store = make_store(url, reads)
                await store.start()
                assert (await store.create(1, "uuids", {"v": number}))["id"]
                for name, body in [
                    ("given", "{id: {type: str, pk: true, readonly: true}, v: int}"),
                    ("fresh", "{id: {type: uuid, pk: true, readonly: true}, v: int}"),
                    ("parts", "{id: {type: int, pk: true, readonly: true}, at: {type: int, pk: true}}"),
                ]:
                    with pytest.raises(ConfigError, match="field id: clients cannot write it, and its table makes no"):
                        await make_store(url, load_schema(f"{name}: {body}")).start()
