"""The rows of an update or a delete, as others are told of them: which, with what values, and what it takes."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
import pytest_twisted
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.postgres import Cluster
from twisted.internet.threads import deferToThread

from zcomm.auth.policy import AllowAll
from zcomm.bifrost.messages import encode, encode_broadcast
from zcomm.data.execution import Done
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.data.sql.statements import MAX_TOLD
from zcomm.data.store import Store
from zcomm.engines.parts import Parts
from zcomm.errors import Conflict, PermissionDenied
from zcomm.interfaces import Audience, Broadcast, FieldRights, Identity

ANN = "ann"


async def change(store: Store, action: str, model: str, judged: Any = None, **asked: Any) -> Done:
    """A change of which others are told."""
    command = parse_command({"action": action, "model": model, **asked})
    return await store.execute(ANN, command, ANN, as_json=True, tells=True, judged=judged)


def told(done: Done) -> Any:
    """What others hear, as JSON has it, and what each of the rows is judged by."""
    if done.told is None:
        return None
    keys, rows = done.told
    values = [dict(zip(rows.fields, each, strict=True)) for each in rows.values]
    audience = Audience("model", "M", None, rows)
    assert Audience.from_json(audience.to_json()) == audience
    ((_, items),) = json.loads(encode(keys)).items()
    assert len(items) == len(values)
    return items, values


def run_sql(url: str, *statements: str) -> None:
    """Run statements as another program would."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        return
    parts = sa.make_url(url)
    where = {"host": parts.query["host"], "port": parts.query["port"], "dbname": parts.database}
    with psycopg.connect(user="postgres", autocommit=True, **where) as session:
        for statement in statements:
            session.execute(statement)


async def seats(store: Store, count: int) -> None:
    values = ", ".join(f"('r{number // 10}', {number}, {'true' if number % 2 else 'false'})" for number in range(count))
    run_sql(store_url(store), f'INSERT INTO "Seats" ("row", number, taken) VALUES {values}')


def store_url(store: Store) -> str:
    url: str = store._execution._database.url.render_as_string(hide_password=False)
    return url


@pytest_twisted.ensureDeferred
async def test_the_rows_are_told_by_their_keys(store: Store):
    """Those that were changed, with what was set as it is stored; those that were removed. What rights may tell them
    apart by is known of each, as it is after an update and was before a delete."""
    for name in ("a", "b", "c"):
        await store.create(ANN, "Members", {"id": f"0000000{name}-0000-0000-0000-000000000000", "note": name})
    ids = [each["id"] for each in await store.read(ANN, "Members", order_by="note")]
    done = await change(store, "update", "Members", where={"note__in": ["a", "b"]}, values={"note": "b"})
    items, values = told(done)
    assert done.result == {"updated": 2}
    assert sorted(items, key=str) == [{"id": each, "values": {"note": "b"}} for each in ids[:2]]
    assert values == [{"team": None, "second": None, "note": "b", "score": 0}] * 2
    done = await change(store, "update", "Members", frozenset({"score", "nothing"}), where=ids[0], values={"note": "c"})
    assert told(done) == ([{"id": ids[0], "values": {"note": "c"}}], [{"score": 0}])
    done = await change(store, "delete", "Members", frozenset({"note"}), where={"note": "c"})
    items, values = told(done)
    assert (sorted(items), values) == ([ids[0], ids[2]], [{"note": "c"}] * 2)
    assert told(await change(store, "delete", "Members", frozenset(), where=ids[1])) == ([ids[1]], [{}])


@pytest_twisted.ensureDeferred
async def test_what_nobody_asks_for_is_not_told(store: Store):
    """Nor is what did not happen, or had happened before."""
    await seats(store, 3)
    command = parse_command({"action": "update", "model": "Seats", "where": {"number": 1}, "values": {"taken": True}})
    assert (await store.execute(ANN, command, ANN, as_json=True)).told is None
    for where in ({"number": 7}, {"row": "r0", "number": 7}, {"number__in": []}):
        done = await change(store, "update", "Seats", where=where, values={"taken": True})
        assert (done.result, done.changed, done.told) == ({"updated": 0}, False, None)
    keyed = {"where": {"row": "r0"}, "values": {"taken": True}, "_idempotencyKey": "k"}
    first, again = [await change(store, "update", "Seats", **keyed) for _ in range(2)]
    assert len(told(first)[0]) == 3 and (first.result, again.result) == ({"updated": 3}, {"updated": 3})
    assert again.repeated and again.told is None


@pytest_twisted.ensureDeferred
async def test_a_key_of_several_fields_is_a_list(store: Store):
    """In the order of the model's fields, by whatever the rows were found."""
    await seats(store, 4)
    by = [{"row": "r0", "number": 2}, {"number__gt": 2}, {"$or": [{"number": 0}, {"row": "r0", "number": 0}]}]
    for where, number in zip(by, (2, 3, 0), strict=True):
        done = await change(store, "update", "Seats", frozenset(), where=where, values={"taken": None})
        assert told(done)[0] == [{"id": ["r0", number], "values": {"taken": None}}]
        assert told(await change(store, "delete", "Seats", where=where))[0] == [["r0", number]]
    assert len(await store.read(ANN, "Seats")) == 1


@pytest_twisted.ensureDeferred
async def test_of_many_rows_nobody_is_told(store: Store):
    """Up to a hundred are told one by one, of whatever kind the command is; beyond that nothing of them is kept."""
    for count in (MAX_TOLD - 1, MAX_TOLD, MAX_TOLD + 1, 3000):
        for asked in ({"all": True}, {"where": {"number__gte": 0}}, {"where": {"row__startswith": "r"}}):
            await change(store, "delete", "Seats", all=True)
            await seats(store, count)
            done = await change(store, "update", "Seats", values={"taken": True}, **asked)
            expected = None if count > MAX_TOLD else count
            assert done.result == {"updated": count}
            assert (None if done.told is None else len(told(done)[0])) == expected, (count, asked)
            assert len(await store.read(ANN, "Seats", {"taken": True})) == count
            done = await change(store, "delete", "Seats", **asked)
            assert done.result == {"deleted": count}
            assert (None if done.told is None else len(told(done)[0])) == expected, (count, asked)
            assert await store.read(ANN, "Seats") == []
    await seats(store, 20)
    keys = [{"row": f"r{number // 10}", "number": number} for number in range(12)]
    done = await change(store, "update", "Seats", where={"$or": keys}, values={"taken": False})
    assert sorted(each["id"][1] for each in told(done)[0]) == [*range(12)]


THING = {
    "s": "text",
    "i": 2**60,
    "f": 1.5,
    "d": "12.50",
    "b": True,
    "da": "2024-02-29",
    "dt": "2024-02-29T10:11:12.130000Z",
    "ti": "10:11:12",
    "u": "12345678-1234-5678-1234-567812345678",
    "j": {"a": [1, None, "x"]},
    "by": "AAEC",
}


@pytest_twisted.ensureDeferred
async def test_values_have_the_form_that_a_read_has(store: Store):
    """Of each type, and null. Rights go by those that are the same in JSON."""
    made = await store.create(ANN, "Things", {})
    for values in (THING, dict.fromkeys(THING)):
        done = await change(store, "update", "Things", where={"s__ne": "no"}, values=values)
        command = parse_command({"action": "read", "model": "Things", "fields": list(THING)})
        read = await store.execute(ANN, command, ANN, as_json=True)
        stored = json.loads(encode(read.result))[0]
        assert told(done)[0] == [{"id": made["id"], "values": stored}]
        assert told(done)[1] == [{"id": made["id"], **{name: stored[name] for name in ("s", "i", "b")}}]


@pytest_twisted.ensureDeferred
async def test_what_is_too_large_is_not_told(store: Store):
    """What is sent, or is the key. By what is there nobody is judged: it is not brought back a hundred times."""
    made = [await store.create(ANN, "Things", {"s": "x" * 30_000}) for _ in range(3)]
    done = await change(store, "update", "Things", where={"id__gt": 0}, values={"i": 1})
    items, values = told(done)
    assert items == [{"id": each["id"], "values": {"i": 1}} for each in made]
    assert values == [{"id": each["id"], "i": 1, "b": None} for each in made]
    for large in ({"s": "y" * 70_000}, {"j": ["y" * 700] * 100}, {"by": "AAEC" * 22_000}):
        done = await change(store, "update", "Things", frozenset(), where=made[0]["id"], values=large)
        assert done.result == {"updated": 1} and done.told is None, large.keys()
    done = await change(store, "update", "Things", where={"id__gt": 0}, values={"s": "z" * 40_000})
    assert done.result == {"updated": 3} and done.told is None
    for length in (1000, 1001):
        await store.create(ANN, "Seats", {"row": "k" * length, "number": 1})
    for length, expected in ((1000, [{"id": ["k" * 1000, 1], "values": {"taken": True}}]), (1001, None)):
        asked = {"row": "k" * length}
        done = await change(store, "update", "Seats", where=asked, values={"taken": True})
        assert done.result == {"updated": 1} and (done.told and told(done)[0]) == expected
        done = await change(store, "delete", "Seats", where={**asked, "number": 1})
        assert done.result == {"deleted": 1} and (done.told is None) is (expected is None)


FOLLOWED = {
    "sqlite": (
        "CREATE TABLE kept (id INTEGER PRIMARY KEY, label TEXT, owner TEXT)",
        "CREATE TRIGGER u AFTER UPDATE OF label ON kept WHEN NEW.label <> 'gone' BEGIN"
        " UPDATE kept SET label = upper(NEW.label), owner = 'bob' WHERE id = NEW.id; END",
        "CREATE TRIGGER g AFTER UPDATE OF label ON kept WHEN NEW.label = 'gone' BEGIN"
        " DELETE FROM kept WHERE id = NEW.id AND id > 1; END",
        "CREATE TRIGGER d BEFORE DELETE ON kept WHEN OLD.owner = 'fixed' BEGIN SELECT raise(IGNORE); END",
    ),
    "postgresql": (
        "CREATE TABLE kept (id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, label TEXT, owner TEXT)",
        "CREATE FUNCTION followed() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF NEW.label = 'gone' THEN DELETE FROM kept WHERE id = NEW.id AND id > 1;"
        " ELSIF NEW.label <> upper(NEW.label) THEN"
        " UPDATE kept SET label = upper(NEW.label), owner = 'bob' WHERE id = NEW.id; END IF; RETURN NULL; END$$",
        "CREATE FUNCTION fixed() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RETURN CASE WHEN OLD.owner = 'fixed' THEN NULL ELSE OLD END; END$$",
        "CREATE TRIGGER u AFTER UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION followed()",
        "CREATE TRIGGER d BEFORE DELETE ON kept FOR EACH ROW EXECUTE FUNCTION fixed()",
    ),
}


@pytest_twisted.ensureDeferred
async def test_rows_are_told_as_triggers_leave_them(url: str, make_store: Callable[..., Store]):
    """What one changed afterwards is what is stored; a row that it removed is not there to be told of, and one that it
    kept was not removed."""
    run_sql(url, *FOLLOWED[url.partition(":")[0]])
    schema = load_schema("Kept: {_model: {table: kept}, id: {type: int, pk: true}, label: str, owner: str}")
    store = make_store(url, schema)
    await store.start()
    for owner in ("ann", "fixed", "ann"):
        await store.create(ANN, "Kept", {"label": "x", "owner": owner})
    for where in (1, {"id__lt": 2}):
        done = await change(store, "update", "Kept", frozenset({"owner"}), where=where, values={"label": "new"})
        assert told(done) == ([{"id": 1, "values": {"label": "NEW"}}], [{"owner": "bob"}])
        await store.update(ANN, "Kept", {"id": 1}, {"owner": "ann"})
    done = await change(store, "update", "Kept", where={"id__in": [1, 3]}, values={"label": "gone"})
    assert done.result == {"updated": 2}
    assert told(done)[0] == [{"id": 1, "values": {"label": "gone"}}]
    done = await change(store, "delete", "Kept", frozenset({"owner"}), where={"id__gt": 0})
    left = await store.read(ANN, "Kept")
    assert (done.result, told(done)) == ({"deleted": 1}, ([1], [{"owner": "ann"}]))
    assert [each["id"] for each in left] == [2]


@pytest_twisted.ensureDeferred
async def test_what_sqlite_does_not_bring_back_is_not_told(tmp_path: Any, make_store: Callable[..., Store]):
    """A view; a table without numbers of its rows, but for those that are asked for by their keys; one with a column
    that is called like the number. Each is changed as it would be otherwise."""
    url = f"sqlite:///{tmp_path}/odd.sqlite3"
    run_sql(
        url,
        "CREATE TABLE base (id INTEGER PRIMARY KEY, label TEXT)",
        "CREATE VIEW seen AS SELECT id, label FROM base",
        "CREATE TRIGGER u INSTEAD OF UPDATE ON seen BEGIN UPDATE base SET label = NEW.label WHERE id = OLD.id; END",
        "CREATE TRIGGER d INSTEAD OF DELETE ON seen BEGIN DELETE FROM base WHERE id = OLD.id; END",
        "CREATE TABLE plain (id TEXT PRIMARY KEY, label TEXT) WITHOUT ROWID",
        "CREATE TABLE named (id TEXT PRIMARY KEY, label TEXT, rowid TEXT)",
        "INSERT INTO base VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO plain VALUES ('k', 'a'), ('l', 'b')",
        "INSERT INTO named VALUES ('k', 'a', 'x'), ('l', 'b', 'y')",
    )
    schema = load_schema(
        "Seen: {_model: {table: seen}, id: {type: int, pk: true}, label: str}\n"
        "Plain: {_model: {table: plain}, id: {type: str, pk: true}, label: str}\n"
        "Named: {_model: {table: named}, id: {type: str, pk: true}, label: str}"
    )
    store = make_store(url, schema)
    await store.start()
    for model, key in (("Seen", 1), ("Plain", "k"), ("Named", "k")):
        done = await change(store, "update", model, frozenset(), where=key, values={"label": "c"})
        assert done.result == {"updated": 1}
        assert told(done) == (None if model == "Seen" else ([{"id": key, "values": {"label": "c"}}], [{}])), model
        for label in ("d", "e"):
            done = await change(store, "update", model, where={"label__gt": ""}, values={"label": label})
            assert done.result == {"updated": 2} and done.told is None, model
        done = await change(store, "delete", model, all=True)
        assert done.result == {"deleted": 2} and done.told is None and done.changed, model


@pytest_twisted.ensureDeferred
async def test_what_postgresql_does_not_bring_back_is_not_told(
    postgresql: Cluster, postgresql_url: str, make_store: Callable[..., Store]
):
    """A table with a rule, one with a column that the role may write and not read, and what a policy of the table
    hides: each is changed as it would be otherwise. Partitions, generated columns and texts with blanks are told."""
    name = sa.make_url(postgresql_url).database
    role = f"told_{name}"
    run_sql(
        postgresql_url,
        f"CREATE ROLE {role} LOGIN",
        "CREATE TABLE ruled (id int PRIMARY KEY, label text)",
        "CREATE TABLE log (label text)",
        "CREATE RULE r AS ON UPDATE TO ruled DO ALSO INSERT INTO log VALUES (NEW.label)",
        "CREATE TABLE passed (id int PRIMARY KEY, label text)",
        "CREATE RULE r AS ON UPDATE TO passed DO INSTEAD UPDATE ruled SET label = NEW.label WHERE id = OLD.id",
        "CREATE TABLE blind (id int PRIMARY KEY, label text, pass text)",
        "CREATE TABLE guarded (id int PRIMARY KEY, label text)",
        "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY s ON guarded FOR SELECT USING (id = 1)",
        "CREATE POLICY w ON guarded FOR UPDATE USING (true)",
        "CREATE TABLE parted (id int PRIMARY KEY, label text) PARTITION BY RANGE (id)",
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (2)",
        "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (2) TO (9)",
        "CREATE TABLE padded (id int PRIMARY KEY, label char(4), size int GENERATED ALWAYS AS (id * 10) STORED)",
        *(
            f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')"
            for table in ("ruled", "passed", "blind", "guarded", "parted")
        ),
        "INSERT INTO padded VALUES (1, 'a'), (2, 'b')",
        f"GRANT ALL ON ruled, passed, log, guarded, parted, padded TO {role}",
        f"GRANT SELECT (id, label), UPDATE, DELETE ON blind TO {role}",
        f"GRANT CREATE ON SCHEMA public TO {role}",
    )
    schema = load_schema(
        "\n".join(
            f"{model}: {{_model: {{table: {model.lower()}}}, id: {{type: int, pk: true}}, label: str{more}}}"
            for model, more in (
                ("Ruled", ""),
                ("Passed", ""),
                ("Blind", ", pass: str"),
                ("Guarded", ""),
                ("Parted", ""),
                ("Padded", ", size: int"),
            )
        )
    )
    store = make_store(postgresql.url(name).replace("//postgres@", f"//{role}@"), schema)
    await store.start()
    for number in (1, 0):
        for model in ("Ruled", "Passed"):
            keyed = {"_idempotencyKey": f"{model} {number}"} if number else {}
            done = await change(store, "update", model, where={"id__lt": 2}, values={"label": "x"}, **keyed)
            assert done.result == {"updated": 1} and done.told is None and not done.repeated, model
        done = await change(store, "update", "Blind", frozenset(), where={"id__gt": 0}, values={"pass": "secret"})
        assert done.result == {"updated": 2} and done.told is None
    done = await change(store, "update", "Guarded", all=True, values={"label": "y"})
    assert done.result == {"updated": 2} and done.told is None
    for where, count in ((1, 1), ({"id__gt": 0}, 2)):
        done = await change(store, "update", "Parted", where=where, values={"label": "z"})
        items, values = told(done)
        assert sorted(each["id"] for each in items) == [*range(1, count + 1)]
        assert values == [{"id": each["id"], "label": "z"} for each in items]
        done = await change(store, "update", "Padded", where=where, values={"label": "p"})
        items, values = told(done)
        assert items == [{"id": number, "values": {"label": "p   "}} for number in range(1, count + 1)]
        assert values == [{"id": number, "label": "p", "size": number * 10} for number in range(1, count + 1)]
    await store.stop()
    run_sql(postgresql_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest_twisted.ensureDeferred
async def test_a_database_in_memory_tells_as_well(make_store: Callable[..., Store]):
    """On its only connection, and by one user after the other."""
    store = make_store("sqlite://")
    await store.start()
    for number in range(3):
        await store.create(ANN, "Seats", {"row": "r", "number": number})
    done = await change(store, "update", "Seats", frozenset(), where={"number__lt": 2}, values={"taken": True})
    assert [each["id"] for each in told(done)[0]] == [["r", 0], ["r", 1]]
    assert told(await change(store, "delete", "Seats", where={"row": "r", "number": 2}))[0] == [["r", 2]]
    assert len(told(await change(store, "delete", "Seats", all=True))[0]) == 2


@pytest_twisted.ensureDeferred
async def test_who_has_kept_others_waiting_is_told_of_all_the_same(tmp_path: Any, make_store: Callable[..., Store]):
    """Its rows are found before it has its turn; a few of them are told of, many are not."""
    store = make_store(f"sqlite:///{tmp_path}/slow.sqlite3")
    await store.start()
    turns: Any = store._execution._database
    for count in (5, MAX_TOLD, MAX_TOLD + 1):
        await change(store, "delete", "Seats", all=True)
        await seats(store, count)
        for where in ({"number__gte": 0}, {"row": "r0", "number": 3}):
            turns._turns._slow[ANN], turns._turns._others_at = time.monotonic() + 60, time.monotonic()
            assert turns.expects_long(ANN)
            done = await change(store, "update", "Seats", where=where, values={"taken": None})
            changed = 1 if "row" in where else count
            assert done.result == {"updated": changed}
            assert (None if done.told is None else len(told(done)[0])) == (None if changed > MAX_TOLD else changed)


@pytest_twisted.ensureDeferred
async def test_what_is_written_may_point_to_some_rows_only(store: Store):
    """What is looked for before a change is looked for as ever, whatever it brings back."""
    for name in ("one", "two"):
        await store.create(ANN, "Teams", {"name": name})
    made = [await store.create(ANN, "Members", {"note": "n"}) for _ in range(2)]

    def reach(model: str, field: str) -> dict[str, Any]:
        return {"name": "one"}

    for where in (made[0]["id"], {"note": "n"}):
        for team, expected in ((1, True), (2, False)):
            asked = {"action": "update", "model": "Members", "where": where, "values": {"team": team}}
            execute = store.execute(ANN, parse_command(asked), ANN, {}, reach, as_json=True, tells=True)
            if expected:
                items, values = told(await execute)
                assert {each["id"] for each in items} >= {made[0]["id"]} and values[0]["team"] == 1
            else:
                with pytest.raises(Conflict):
                    await execute
    assert [each["team"] for each in await store.read(ANN, "Members")] == [1, 1]


NOTES = load_schema(
    "Notes: {id: {type: int, pk: true}, owner: str, team: int, public: bool, label: str, pay: int,"
    " hid: {type: str, hidden: true}}"
)
RIGHTS = frozenset({"owner", "team", "public"})
owners, teams, labels = st.sampled_from(["ann", "bob", None]), st.sampled_from([0, 1, None]), st.sampled_from("abc")
notes = st.fixed_dictionaries(
    {"owner": owners, "team": teams, "public": st.booleans(), "label": labels, "pay": st.integers(0, 3)}
)
#: With the places of rows where their numbers go.
wheres = (
    st.fixed_dictionaries({"id": st.integers(0, 5)})
    | st.fixed_dictionaries({"id__in": st.lists(st.integers(0, 5), max_size=3)})
    | st.fixed_dictionaries({}, optional={"owner": owners, "team": teams, "public": st.booleans()})
    | st.fixed_dictionaries({"label__gte": labels, "pay__lt": st.integers(0, 4)})
)
written = st.fixed_dictionaries(
    {},
    optional={"owner": owners, "team": teams, "public": st.booleans(), "label": st.just("new"), "pay": st.just(9)},
).filter(len)
granted = st.fixed_dictionaries(
    {}, optional={"owner": st.sampled_from(["ann", "bob"]), "team": st.integers(0, 1), "public": st.booleans()}
)
hidden = st.sets(st.sampled_from(["owner", "label", "pay", "public"]))


class Hearer(AllowAll):
    """Somebody with rights to some rows, and without some fields."""

    def __init__(self, rows: dict[str, Any], hide: set[str]):
        self._rows, self._fields = rows, FieldRights(hide=hide)

    def __repr__(self) -> str:
        return f"Hearer({self._rows}, {set(self._fields.hide)})"

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return self._rows

    def fields(self, identity: Identity, model: str) -> FieldRights:
        return self._fields

    def expected(self, before: list[dict[str, Any]], after: list[dict[str, Any]], values: Any) -> Any:
        """What it is to hear of rows that were removed, or in which ``values`` were set."""

        def mine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [row for row in rows if all(row[name] == value for name, value in self._rows.items())]

        if values is None:
            ids = [row["id"] for row in mine(before)]
            return {"zKey": "k", "result": {"deleted": len(ids)}, "ids": ids} if ids else None
        seen = [name for name in values if name not in self._fields.hide]
        rows = mine(after) if seen or not self._rows.keys().isdisjoint(values) else []
        changes = [{"id": row["id"], "values": {name: row[name] for name in seen}} for row in rows]
        return {"zKey": "k", "result": {"updated": len(changes)}, "changes": changes} if changes else None

    def hears(self, done: Done) -> Any:
        """What it hears, once the message has gone to another process."""
        if done.told is None:
            return None
        keys, rows = done.told
        audience = Audience.from_json(Audience("model", "Notes", None, rows).to_json())
        payload = encode_broadcast("k", None, None, {"result": done.result, **keys})
        parts = Parts(Broadcast(payload, audience, is_result=True))
        part = parts.of(Identity("x", "y"), self)
        if part is None:
            return None
        heard = json.loads(parts.message(part).payload)
        for items in (heard.get("ids"), heard.get("changes")):
            if items:
                items.sort(key=lambda item: item if isinstance(item, int) else item["id"])
        return heard


counted: dict[str, int] = {}


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(notes, min_size=1, max_size=6),
    where=wheres,
    values=st.none() | written,
    mine=granted,
    hearers=st.lists(
        st.builds(Hearer, granted, st.sets(st.sampled_from(["owner", "label", "pay", "public"]))),
        min_size=3,
        max_size=5,
    ),
    is_hinted=st.booleans(),
)
def check_hearers(
    stores: list[Store],
    rows: list[dict[str, Any]],
    where: dict[str, Any],
    values: Any,
    mine: dict[str, Any],
    hearers: list[Hearer],
    is_hinted: bool,
) -> None:
    for store in stores:
        handle = store.handle_request
        handle({"action": "delete", "model": "Notes", "all": True})
        ids = [handle({"action": "create", "model": "Notes", "values": row})["id"] for row in rows]
        asked: dict[str, Any] = {"where": dict(where)} if where else {"all": True}
        if "id" in where:
            asked["where"]["id"] = ids[where["id"] % len(ids)]
        if "id__in" in where:
            asked["where"]["id__in"] = [ids[place % len(ids)] for place in where["id__in"]]
        everything = {"action": "read", "model": "Notes", "order_by": "id"}
        before = handle({**everything, "where": {"$and": [asked.get("where", {}), mine]}})
        action = {"action": "delete"} if values is None else {"action": "update", "values": values}
        command = parse_command({**action, "model": "Notes", **asked})
        try:
            job = store._job(command, ANN, mine, None, ANN, True, tells=True, judged=RIGHTS if is_hinted else None)
        except PermissionDenied:
            # It would take rows out of its own reach.
            return
        done = job.trivial() or store._execution.perform(job)
        assert done.result in ({"deleted": len(before)}, {"updated": len(before)})
        changed = {row["id"] for row in before}
        after = [row for row in handle(everything) if row["id"] in changed]
        for hearer in hearers:
            expected = hearer.expected(before, after, values)
            assert hearer.hears(done) == expected, (store.url, hearer)
            kind = "nothing" if expected is None else "ids" if "ids" in expected else "changes"
            counted[kind] = counted.get(kind, 0) + 1


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_each_hears_what_it_may_read(
    postgresql: Cluster, postgresql_url: str, tmp_path: Any, make_store: Callable[..., Store]
):
    """Random rows, changes and rights, on both databases: what each hears is what was removed of what it could read,
    and what was set in what it may read, as a reference finds it that reads all rows before and after."""
    made = [make_store(url, NOTES) for url in (f"sqlite:///{tmp_path}/told.sqlite3", postgresql_url)]
    for store in made:
        await store.start()
    for _ in range(4):
        await deferToThread(check_hearers, made)
        if len(counted) == 3 and min(counted.values()) > 20:
            # By chance one kind of what is heard comes up seldom.
            break
    assert min(counted.values()) > 20 and len(counted) == 3, counted
