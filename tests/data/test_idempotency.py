"""Writes that are sent twice and made once."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from zcomm.data import execution, idempotency
from zcomm.data.drivers.postgresql import _Connection
from zcomm.data.idempotency import KEPT
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import Conflict, Invalid, TooBusy


@pytest_twisted.ensureDeferred
async def test_second_execution_returns_the_first_result(store):
    """Each kind of write, sent again with its key, returns what it returned and changes nothing."""
    user = await store.create(1, "Users", {"name": "A", "email": "a@b.cd"}, idempotency_key="c")
    assert await store.create(1, "Users", {"name": "A", "email": "a@b.cd"}, idempotency_key="c") == user
    for _ in range(2):
        assert await store.update(1, "Users", user["id"], {"age": 5}, idempotency_key="u") == {"updated": 1}
    await store.update(1, "Users", user["id"], {"age": 6})
    assert await store.update(1, "Users", user["id"], {"age": 5}, idempotency_key="u") == {"updated": 1}
    assert (await store.read(1, "Users"))[0]["age"] == 6
    kept = await store.upsert(1, "Users", {"name": "B", "email": "a@b.cd"}, idempotency_key="s")
    await store.update(1, "Users", user["id"], {"name": "C"})
    assert await store.upsert(1, "Users", {"name": "B", "email": "a@b.cd"}, idempotency_key="s") == kept
    for _ in range(2):
        assert await store.delete(1, "Users", user["id"], idempotency_key="d") == {"deleted": 1}
    assert await store.delete(1, "Users", {"id": []}, idempotency_key="e") == {"deleted": 0}


@pytest_twisted.ensureDeferred
async def test_every_type_is_kept(store):
    """A kept result comes back as the first one did, whatever is in it."""
    values = {
        "s": '\u00e9\U0001f600"',
        "f": 0.1,
        "d": "0.10",
        "dt": "2024-10-15T08:30:00Z",
        "by": "AAEC",
        "j": {"a": [None, 1.5]},
    }
    first = await store.create(1, "Things", values, idempotency_key="t")
    assert await store.create(1, "Things", values, idempotency_key="t") == first


@pytest_twisted.ensureDeferred
async def test_another_request(store):
    """A key that was used for another request is a conflict, and the other request is not carried out."""
    await store.create(1, "Teams", {"name": "a"}, idempotency_key="k")
    for attempt in (
        store.create(1, "Teams", {"name": "b"}, idempotency_key="k"),
        store.delete(1, "Teams", None, all=True, idempotency_key="k"),
    ):
        with pytest.raises(Conflict) as caught:
            await attempt
        assert "_idempotencyKey" in caught.value.fields
    assert [row["name"] for row in await store.read(1, "Teams")] == ["a"]


@pytest_twisted.ensureDeferred
async def test_at_the_same_time(store):
    """Twenty executions at once are one."""
    rows = await gatherResults([store.create(n, "Teams", {"name": "a"}, idempotency_key="k") for n in range(20)])
    assert rows == [rows[0]] * 20
    assert await store.read(1, "Teams") == [rows[0]]


@pytest_twisted.ensureDeferred
async def test_failure_is_not_kept(store):
    """A write that failed has left no trace; with its key it may succeed later."""
    await store.create(1, "Teams", {"name": "a"})
    for _ in range(2):
        with pytest.raises(Conflict, match="name already exists"):
            await store.create(1, "Teams", {"name": "a"}, idempotency_key="k")
    await store.delete(1, "Teams", {"name": "a"})
    assert (await store.create(1, "Teams", {"name": "a"}, idempotency_key="k"))["name"] == "a"


def count_kept(url: str, postgresql) -> int:
    kept = "SELECT count(*) FROM zcomm_idempotency"
    if not url.startswith("sqlite"):
        return postgresql.execute(kept, url.split("/")[3].split("?")[0])[0][0]
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return connection.execute(kept).fetchone()[0]
    finally:
        connection.close()


@pytest_twisted.ensureDeferred
async def test_b15_a_user_has_so_many_results_kept(make_store, url, postgresql, monkeypatch):
    """Beyond that its older ones are forgotten, never those of the last ten minutes, and never others'. That holds
    after a restart as well, and for commands that change nothing."""
    monkeypatch.setattr(idempotency, "KEPT_AT_MOST", 6)
    monkeypatch.setattr(idempotency, "SLICE", 2)
    now = [1_000_000.0]

    async def delete(store: Store, key: str, user: str = "eve") -> Any:
        command = parse_command({"action": "delete", "model": "Teams", "where": {"id": -1}, "_idempotencyKey": key})
        return (await store.execute(user, command, user)).result

    first = make_store(url, now=lambda: now[0])
    await first.start()
    await delete(first, "others", "bob")
    for number in range(3):
        await delete(first, f"old {number}")
    now[0] += idempotency.KEPT_AT_LEAST + 1
    second = make_store(url, now=lambda: now[0])
    await second.start()
    for number in range(6):
        assert await delete(second, f"new {number}") == {"deleted": 0}
    assert count_kept(url, postgresql) <= 1 + 6
    with pytest.raises(TooBusy, match="more than 6 _idempotencyKeys for this model in 10 minutes; try again in"):
        await delete(second, "one more")
    assert await delete(second, "new 0") == await delete(second, "others", "bob") == {"deleted": 0}
    assert await second.delete("eve", "Teams", {"id": -1}) == {"deleted": 0}
    now[0] += idempotency.KEPT_AT_LEAST + 1
    assert await delete(second, "one more") == {"deleted": 0}


@pytest_twisted.ensureDeferred
async def test_b15_expired_results_are_removed_some_at_a_time(make_store, url, postgresql, monkeypatch):
    """All of them in the end."""
    monkeypatch.setattr(execution, "SLICE", 2)
    now = [1_000_000.0]
    store = make_store(url, now=lambda: now[0])
    await store.start()
    for number in range(7):
        await store.delete("eve", "Teams", {"id": -1}, idempotency_key=f"{number}")
    now[0] += KEPT + 1
    await store.delete("eve", "Teams", {"id": -1}, idempotency_key="kept")
    await store._sweep()
    assert count_kept(url, postgresql) == 1


@pytest_twisted.ensureDeferred
async def test_expiry(make_store, url, postgresql):
    """After a day a key is forgotten, when it is used again and by the sweep."""
    now = [1_000_000.0]
    store = make_store(url, now=lambda: now[0])
    await store.start()
    first = await store.create(1, "Messages", {"text": "a"}, idempotency_key="k")
    await store.create(1, "Messages", {"text": "b"}, idempotency_key="other")
    now[0] += KEPT - 1
    assert await store.create(1, "Messages", {"text": "a"}, idempotency_key="k") == first
    now[0] += 2
    assert (await store.create(1, "Messages", {"text": "a"}, idempotency_key="k"))["id"] > first["id"]
    await store._sweep()
    kept = "SELECT key FROM zcomm_idempotency"
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        assert connection.execute(kept).fetchall() == [("k",)]
        connection.close()
    else:
        assert postgresql.execute(kept, url.split("/")[3].split("?")[0]) == [("k",)]


@pytest_twisted.ensureDeferred
async def test_blocking_form(store):
    """A program's own requests have keys as well."""
    request = {"action": "create", "model": "Teams", "values": {"name": "a"}, "_idempotencyKey": "k"}
    first = await deferToThread(store.handle_request, request, "program")
    assert await deferToThread(store.handle_request, request, "program") == first
    with pytest.raises(Conflict, match="name already exists"):
        await deferToThread(store.handle_request, request, "another")


@pytest_twisted.ensureDeferred
async def test_contact_a_key_belongs_to_the_table_that_is_written(make_store, url, postgresql):
    """Servers that share the table of kept results, each with tables of its own, are told of their own rows alone; two
    that write the same table make one row, unless the same names mean other columns of it."""

    async def started(body: str, options: str = "") -> Store:
        made = make_store(url + options, load_schema(body), threads=1)
        await made.start()
        return made

    key = "{id: {type: int, pk: true}, "
    notes = [f"Notes: {{_model: {{table: {table}}}, {key[1:]}text: str, more: str}}" for table in ("a b", "b", "b")]
    options = [""] * 3
    if url.startswith("postgresql"):
        name = url.split("/")[3].split("?")[0]
        postgresql.execute(
            "CREATE SCHEMA t1; CREATE SCHEMA t2; CREATE TABLE t1.it (id bigserial PRIMARY KEY, text text, more text);"
            "CREATE TABLE t2.it (LIKE t1.it INCLUDING ALL)",
            name,
        )
        await started(notes[0])
        notes += [f"Notes: {{_model: {{table: it}}, {key[1:]}text: str, more: str}}"] * 2
        options += ["&options=-csearch_path%3Dt1,public", "&options=-csearch_path%3Dt2,public"]
    stores = [await started(body, option) for body, option in zip(notes, options, strict=True)]
    for asked in ({"text": "x"}, {"text": "x", "more": "y"}):
        for store in stores:
            made = await store.create(1, "Notes", asked, idempotency_key=str(len(asked)))
            assert await store.create(1, "Notes", asked, idempotency_key=str(len(asked))) == made
            assert (await store.read(1, "Notes", order_by="id DESC"))[0] == made
        for store in stores:
            with pytest.raises(Conflict, match="used for another"):
                await store.create(1, "Notes", {"text": "z"}, idempotency_key=str(len(asked)))
    assert [len(await store.read(1, "Notes")) for store in stores] == [2] * len(stores)
    swapped = await started(f"Notes: {{_model: {{table: b}}, {key[1:]}text: {{type: str, column: more}}}}")
    with pytest.raises(Conflict, match="used for another"):
        await swapped.create(1, "Notes", {"text": "x"}, idempotency_key="1")


@pytest_twisted.ensureDeferred
async def test_contact_a_key_belongs_to_the_tenant_of_a_table(make_store, postgresql_url, postgresql):
    """Servers that come to one table with rows of several tenants as another role, or with another setting of the
    database's own, are told of their own rows alone; two that come alike make one row."""
    name = postgresql_url.split("/")[3].split("?")[0]
    postgresql.execute(
        """
        CREATE ROLE one LOGIN; CREATE ROLE two LOGIN;
        CREATE TABLE set (id bigserial PRIMARY KEY, v int, tenant text DEFAULT current_setting('app.tenant', true));
        CREATE TABLE roles (id bigserial PRIMARY KEY, v int, tenant text DEFAULT current_user);
        ALTER TABLE roles ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON roles USING (tenant = current_user);
        CREATE TABLE plain (id bigserial PRIMARY KEY, v int);
        GRANT ALL ON SCHEMA public TO PUBLIC; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
        GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO PUBLIC
        """,
        name,
    )
    schema = load_schema(
        "\n".join(f"{each}: {{id: {{type: int, pk: true}}, v: int}}" for each in ("set", "roles", "plain"))
    )
    options = ["", "-capp.tenant%3D1", "-capp.tenant%3D2", "-crole%3Done", "-crole%3Dtwo", "-crole%3Dtwo"]
    try:
        stores = [make_store(f"{postgresql_url}&options={each}", schema, threads=1) for each in options]
        for store in stores:
            await store.start()
        for model, rows in (("set", 3), ("roles", 5), ("plain", 3)):
            made = [await store.create(1, model, {"v": 1}, idempotency_key="k") for store in stores]
            assert len({row["id"] for row in made}) == rows, (model, made)
            for row, store in zip(made, stores, strict=True):
                assert row in await store.read(1, model)
                assert await store.create(1, model, {"v": 1}, idempotency_key="k") == row
        for store in stores:
            await store.stop()
    finally:
        postgresql.execute("DROP OWNED BY one, two; DROP ROLE one, two", name)


@pytest.mark.parametrize("key", ["", "k" * 129, 5, True, [], "\n", "\u00e9", "\0"])
def test_bad_keys(key):
    """A key is a short text that can stand in a log."""
    with pytest.raises(Invalid, match="_idempotencyKey"):
        parse_command({"action": "create", "model": "T", "values": {}, "_idempotencyKey": key})


def test_same_request_same_digest():
    """The order of keys in an object makes no other request; any other difference does."""

    def digest(**more):
        return parse_command({"action": "create", "model": "T", **more}).digest()

    assert (
        digest(values={"a": 1, "b": 2})
        == digest(values={"b": 2, "a": 1})
        == digest(values={"a": 1, "b": 2}, _idempotencyKey="k")
    )
    assert len({digest(values={"a": value}) for value in (1, "1", True, None, 1.5, [1])}) == 6


@pytest_twisted.ensureDeferred
async def test_what_a_lost_answer_had_done_is_told(make_store, postgresql_url, monkeypatch):
    """The connection ends behind the commit: the store tries again by itself, finds the result, and others hear of it;
    of one that is asked for again later they have heard."""
    store = make_store(postgresql_url)
    await store.start()
    commit, ends = _Connection.commit, []

    def and_end(connection: _Connection) -> None:
        commit(connection)
        if ends:
            ends.pop()
            connection.run("SELECT pg_terminate_backend(pg_backend_pid())", (), True)

    monkeypatch.setattr(_Connection, "commit", and_end)
    for changed, words in [
        (True, {"action": "create", "values": {"name": "A", "email": "a@b.cd"}}),
        (True, {"action": "update", "where": {"name": "A"}, "values": {"age": 5}}),
        (False, {"action": "update", "where": {"name": "nobody"}, "values": {"age": 5}}),
    ]:
        command = parse_command({"model": "Users", "_idempotencyKey": f"{words}"[:90].replace("\n", ""), **words})
        ends.append(True)
        first = await store.execute(1, command, "ann")
        assert not ends and (first.changed, first.repeated) == (changed, False)
        second = await store.execute(1, command, "ann")
        assert (second.result, second.changed, second.repeated) == (first.result, False, True)
    assert len(await store.read(1, "Users")) == 1


#: Writes with a key in a process that dies by its own hand just before the commit.
DIE_BEFORE_COMMIT = """
import os, sys
import sqlalchemy as sa
from zcomm.data.idempotency import IdempotencyTable, IdempotencyKey
from zcomm.data.schema import demo_schema
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.sql.tables import build_tables

database = SQLiteDatabase(sa.make_url("sqlite:///" + sys.argv[1]))
connection = database.connect()
connection.commit = lambda: os.kill(os.getpid(), 9)
_, tables, kept = build_tables(demo_schema())
books = IdempotencyTable(kept, database.dialect, lambda: 1e9)
insert = "INSERT INTO Messages(text) VALUES ('half')"
write = lambda: connection.run(insert, (), False)
books.run_once(connection, IdempotencyKey("", "k", "digest"), tables["Messages"], "", write)
"""


@pytest_twisted.ensureDeferred
async def test_crash_between_write_and_commit(make_store, tmp_path):
    """A process that dies in the middle leaves neither the row nor the key; the retry makes both."""
    path = f"{tmp_path}/crash.sqlite3"
    store = make_store(f"sqlite:///{path}")
    await store.start()
    died = await deferToThread(subprocess.run, [sys.executable, "-c", DIE_BEFORE_COMMIT, path], timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert await store.read(1, "Messages") == []
    row = await store.create(1, "Messages", {"text": "whole"}, idempotency_key="k")
    assert await store.read(1, "Messages") == [row]
