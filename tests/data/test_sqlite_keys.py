"""Keys in SQLite that other programs wrote in forms of their own: one value is one key, whatever it looks like."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_twisted
from support.rows import rows_of_a_test

from zcomm.data.requests import make_plan, parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import Conflict, Invalid, PermissionDenied, Unavailable

UUIDS = [f"0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f{number:02x}" for number in range(4)]


def _uuid(value: str) -> list[Any]:
    bare = value.replace("-", "")
    return [value, value.upper(), bare, bare.upper(), bytes.fromhex(bare), f"{{{value}}}", f"{{{value}}}".upper()]


def _datetime(value: str) -> list[Any]:
    day, clock = value[:10], value[11:19]
    seconds = 1714979280 + int(value[17:19])
    return [f"{day} {clock}", f"{day}T{clock}Z", f"{day} {clock}.000000", f"{day} {clock}+00:00", seconds * 1000]


def _date(value: str) -> list[Any]:
    return [value, f"{value} 00:00:00.000000", f"{value}T00:00:00Z"]


def _decimal(value: str) -> list[Any]:
    return [
        value,
        f"{value}0",
        value.replace("-", "-00") if "-" in value else f"00{value}",
        f"{value}e0",
        value.encode(),
    ]


def _time(value: str) -> list[Any]:
    return [value, value[:5], f"{value}.000000"]


#: By kind: some values as they are shown, and the forms of one.
KINDS: dict[str, tuple[list[Any], Callable[[Any], list[Any]]]] = {
    "uuid": (UUIDS, _uuid),
    "datetime": ([f"2024-05-06T07:08:{number:02}Z" for number in range(4)], _datetime),
    "date": ([f"2024-05-0{number}" for number in range(1, 5)], _date),
    "time": ([f"07:0{number}:00" for number in range(4)], _time),
    "decimal": (["1.5", "2.25", "-3.5", "40.5"], _decimal),
    "int": ([7, 42, -1, 100], lambda value: [str(value), f"{value}.0", str(value).encode()]),
    "bool": ([True, False], lambda value: ["t", "TRUE", 1, "1"] if value else ["f", "false", 0, "no"]),
    "bytes": (["QUJD", "QUJE"], lambda value: {"QUJD": ["ABC", b"ABC"], "QUJE": ["ABD", b"ABD"]}[value]),
}
#: The types of their columns, where those are not TEXT.
DECLARED = {"datetime": "DATETIME", "bool": "BOOLEAN", "bytes": "BLOB"}


def _canonical(kind: str, value: Any) -> Any:
    """Decimals are shown with the zeros that they are kept with."""
    return format(Decimal(value).normalize(), "f") if kind == "decimal" and value is not None else value


@pytest_twisted.ensureDeferred
async def test_contact_one_value_is_one_key_whatever_its_form(tmp_path: Path, make_store: Callable[..., Store]):
    """A random run against a model, for each kind: keys alone, in groups, unique ones, and what points to them."""
    rng = random.Random(62)
    path = tmp_path / "keys.sqlite3"
    schema, tables = "", ""
    for kind in KINDS:
        schema += f"""
{kind}_alone: {{k: {{type: {kind}, pk: true}}, n: int}}
{kind}_group: {{who: {{type: str, pk: true}}, k: {{type: {kind}, pk: true}}, n: int}}
{kind}_unique: {{who: {{type: str, pk: true}}, k: {{type: {kind}, unique: true}}, n: int}}
{kind}_child: {{who: {{type: str, pk: true}}, k: {{type: {kind}, fk: {kind}_alone.k, on_delete: cascade}}, n: int}}
{kind}_heir: {{k: {{type: {kind}, pk: true, fk: {kind}_alone.k, on_delete: cascade}}, n: int}}
"""
        declared = DECLARED.get(kind, "TEXT")
        tables += f"""
CREATE TABLE {kind}_alone (k {declared} NOT NULL PRIMARY KEY, n INTEGER);
CREATE TABLE {kind}_group (who TEXT NOT NULL, k {declared} NOT NULL, n INTEGER, PRIMARY KEY (who, k));
CREATE TABLE {kind}_unique (who TEXT NOT NULL PRIMARY KEY, k {declared} UNIQUE, n INTEGER);
CREATE TABLE {kind}_child (who TEXT NOT NULL PRIMARY KEY, k {declared} REFERENCES {kind}_alone ON DELETE CASCADE, n);
CREATE TABLE {kind}_heir (k {declared} NOT NULL PRIMARY KEY REFERENCES {kind}_alone ON DELETE CASCADE, n INTEGER);
"""
    other = sqlite3.connect(path, isolation_level=None)
    other.executescript(tables)
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()

    async def attempt(done: Any) -> bool:
        try:
            await done
        except Conflict:
            return False
        return True

    known: dict[str, dict[str, dict[Any, tuple[Any, Any]]]] = {}
    with rows_of_a_test() as row:
        for again in (False, True):
            for kind, (values, forms) in KINDS.items():
                tables = [f"{kind}_{name}" for name in ("alone", "group", "unique", "child", "heir")]
                there = known.setdefault(kind, {table: {} for table in tables})
                with row(f"{kind} {again}"):
                    await _run(rng, store, other, kind, values, forms, attempt, there)
            # The start takes the forms that are there for those to write.
            await store.stop()
            await store.start()
    other.close()


async def _run(
    rng: random.Random,
    store: Store,
    other: sqlite3.Connection,
    kind: str,
    values: list[Any],
    forms: Callable[[Any], list[Any]],
    attempt: Callable[[Any], Any],
    there: dict[str, dict[Any, tuple[Any, Any]]],
) -> None:
    alone, group, unique, child, heir = (f"{kind}_{name}" for name in ("alone", "group", "unique", "child", "heir"))

    def drop(key: Any) -> None:
        del there[alone][key]
        there[heir].pop(key, None)
        there[child] = {who: have for who, have in there[child].items() if have[0] != key}

    for step in range(25):
        key, who, n = rng.choice(values), rng.choice("ab"), step
        form = rng.choice(forms(key))
        table = rng.choice([alone, group, unique, child, heir])
        place: Any = key if table in (alone, heir) else (who, key) if table == group else who
        row = {"k": key, "n": n} if table in (alone, heir) else {"who": who, "k": key, "n": n}
        taken = table == unique and any(has == key for whose, (has, _) in there[unique].items() if whose != who)
        points = table not in (child, heir) or key in there[alone]
        action = rng.choice(["other", "create", "upsert", "update", "delete", "back"])
        if action == "other" and place not in there[table] and not taken and points:
            # Other programs do not look at foreign keys unless they are told to.
            columns = tuple(row)
            marks = ", ".join("?" * len(columns))
            other.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",
                [form if name == "k" else row[name] for name in columns],
            )
            there[table][place] = (key, n)
        elif action == "create":
            made = await attempt(store.create(1, table, row))
            assert made or place in there[table] or taken or not points or table in (child, heir), (step, table, row)
            assert not made or (place not in there[table] and not taken and points), (step, table, row)
            if made:
                there[table][place] = (key, n)
        elif action == "upsert":
            done = await attempt(
                store.upsert(
                    1,
                    table,
                    row,
                    list({"k", "who"} & row.keys())
                    if table == group
                    else None
                    if table != unique and table != child
                    else ["who"],
                )
            )
            assert done or taken or not points or table == heir, (step, table, row)
            assert not done or (not taken and points), (step, table, row)
            if done:
                there[table][place] = (key, n)
        elif action == "update" and table in (unique, child):
            done = await attempt(store.update(1, table, {"who": who}, {"k": key}))
            assert done or taken or not points, (step, table, row)
            if done and who in there[table]:
                assert not taken and points
                there[table][who] = (key, there[table][who][1])
        elif action == "delete":
            where = {"k": key} if table in (alone, heir) else {"who": who, "k": key}
            had = place in there[table] and there[table][place][0] == key
            # What another program let point to a row in another form than that of the row stays behind.
            if table == alone:
                for each in (child, heir):
                    other.execute(f"DELETE FROM {each} WHERE k NOT IN (SELECT k FROM {alone})")
                there[child] = {r["who"]: (_canonical(kind, r["k"]), r["n"]) for r in await store.read(1, child)}
                there[heir] = {
                    _canonical(kind, r["k"]): (_canonical(kind, r["k"]), r["n"]) for r in await store.read(1, heir)
                }
            assert await store.delete(1, table, where) == {"deleted": int(had)}, (step, table, row)
            if had:
                if table == alone:
                    drop(key)
                else:
                    del there[table][place]
        elif action == "back":
            if table == child:
                # Those in another form than that of the row that they mean are given that one.
                other.execute(f"DELETE FROM {child} WHERE k NOT IN (SELECT k FROM {alone})")
                there[child] = {r["who"]: (_canonical(kind, r["k"]), r["n"]) for r in await store.read(1, child)}
            before = other.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall()
            for shown in await store.read(1, table):
                if table == heir:
                    await attempt(store.upsert(1, table, shown))
                else:
                    await store.upsert(
                        1, table, shown, ["who", "k"] if table == group else ["k"] if table == alone else ["who"]
                    )
                if table in (unique, child):
                    assert await store.update(1, table, {"who": shown["who"]}, {"k": shown["k"]}) == {"updated": 1}
            assert other.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall() == before, (step, table)
        shown = [{**each, "k": _canonical(kind, each["k"])} for each in await store.read(1, table)]
        keys = [
            each["k"] if table in (alone, heir) else (each["who"], each["k"]) if table == group else each["who"]
            for each in shown
        ]
        assert dict(zip(keys, ((each["k"], each["n"]) for each in shown), strict=True)) == there[table], (
            step,
            action,
            table,
            row,
        )
        assert len(set(keys)) == len(keys)


@pytest_twisted.ensureDeferred
async def test_contact_a_key_in_another_form_stays_its_owners(tmp_path: Path, make_store: Callable[..., Store]):
    """Row rights hold for a row whatever form its key has, and what points to it takes that form."""
    path = tmp_path / "doc.sqlite3"
    there = "0B54BE9A-6F5C-4C8E-9F0E-0C6A4D3F8F10"
    other = sqlite3.connect(path, isolation_level=None)
    other.executescript(
        f"""CREATE TABLE Doc (Id TEXT NOT NULL PRIMARY KEY, Owner TEXT NOT NULL, Body TEXT);
        CREATE TABLE Note (Id INTEGER PRIMARY KEY, Doc TEXT NOT NULL REFERENCES Doc, Day TEXT, UNIQUE (Doc, Day));
        INSERT INTO Doc VALUES ('{there}', 'alice', 'hers');
        INSERT INTO Note VALUES (1, '{there}', '2024-05-06 00:00:00.000000')"""
    )
    schema = """
Doc: {Id: {type: uuid, pk: true}, Owner: {type: str, required: true}, Body: str}
Note:
  _model: {unique: [[Doc, Day]]}
  Id: {type: int, pk: true}
  Doc: {type: uuid, fk: Doc.Id, required: true}
  Day: date
"""
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()

    async def bob(action: str, **more: Any) -> Any:
        command = parse_command({"action": action, "model": "Doc", **more})
        return (await store.execute(1, command, "bob", {"Owner": "bob"})).result

    for key in (there.lower(), there):
        with pytest.raises(PermissionDenied):
            await bob("upsert", values={"Id": key, "Body": "his"})
        with pytest.raises(Conflict) as conflict:
            await bob("create", values={"Id": key, "Body": "his"})
        assert conflict.value.fields == {"Id": "already exists"}
        assert await bob("update", where={"Id": key}, values={"Body": "his"}) == {"updated": 0}
    assert await store.upsert(1, "Doc", {"Id": there.lower(), "Owner": "alice", "Body": "new"}) == {
        "Id": there.lower(),
        "Owner": "alice",
        "Body": "new",
    }
    note = (await store.read(1, "Note"))[0]
    # The same day of the same document, in other forms: there is one already.
    with pytest.raises(Conflict):
        await store.create(1, "Note", {"Doc": note["Doc"], "Day": note["Day"]})
    second = await store.create(1, "Note", {"Doc": note["Doc"], "Day": "2024-05-07"})
    with pytest.raises(Conflict) as conflict:
        await store.update(1, "Note", {"Id": second["Id"]}, {"Day": note["Day"]})
    assert conflict.value.fields == {"Doc": "already exists", "Day": "already exists"}
    with pytest.raises(Conflict) as conflict:
        await store.create(1, "Note", {"Doc": "1b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"})
    assert conflict.value.fields == {"Doc": "points to a row that does not exist"}
    assert await store.update(1, "Note", {"Id": 1}, {"Doc": note["Doc"]}) == {"updated": 1}
    assert other.execute("SELECT * FROM Doc").fetchall() == [(there, "alice", "new")]
    assert other.execute("SELECT * FROM Note").fetchall() == [
        (1, there, "2024-05-06 00:00:00.000000"),
        (second["Id"], there, "2024-05-07 00:00:00.000000"),
    ]
    other.close()


#: By model: its kind, its column, and what other programs keep in it.
ORDERED: dict[str, tuple[str, str, list[Any]]] = {
    "indexed": ("str", "TEXT UNIQUE", ["aa", b"aa1", b"bb", "cc", b"dd", "B", b"C", "", b"\xc3\xa9", "é1"]),
    "bare": ("str", "TEXT", ["aa", b"aa", b"bb", "cc", b"dd", "B", b"C", "", b"\xc3\xa9", "é"]),
    "untyped": ("str", "", ["aa", 5, "50", b"ab", 10, 1.5, "1.25", -3, b"5", "5"]),
    "numeric": ("str", "STRING UNIQUE", ["aa", 5, "50", b"ab", 10, 1.5, -3, b"7", "x"]),
    "efcore": ("uuid", "TEXT PRIMARY KEY", [each.upper() for each in UUIDS]),
    "peewee": ("uuid", "TEXT UNIQUE", [each.replace("-", "") for each in UUIDS]),
    "mixed": ("uuid", "TEXT UNIQUE", [_uuid(each)[number % 7] for number, each in enumerate(UUIDS * 2)][1:6]),
    "apart": ("uuid", "TEXT", [_uuid(each)[number] for number, each in enumerate(UUIDS)]),
}


@pytest_twisted.ensureDeferred
async def test_contact_order_is_that_of_what_is_shown(tmp_path: Path, make_store: Callable[..., Store]):
    """Every operator and every page goes by the shown form, of texts beside bytes and numbers and of all UUIDs."""
    path = tmp_path / "o.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    schema = ""
    for model, (kind, column, values) in ORDERED.items():
        schema += f"{model}: {{id: {{type: int, pk: true}}, v: {kind}}}\n"
        column = column.replace("PRIMARY KEY", "UNIQUE")
        other.execute(f"CREATE TABLE {model} (id INTEGER PRIMARY KEY, v {column})")
        other.executemany(f"INSERT INTO {model} (v) VALUES (?)", [(each,) for each in values])
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()
    operators: dict[str, Callable[[Any, Any], bool]] = {
        "lt": lambda one, two: one < two,
        "lte": lambda one, two: one <= two,
        "gt": lambda one, two: one > two,
        "gte": lambda one, two: one >= two,
    }
    with rows_of_a_test() as row:
        for model, (kind, _, values) in ORDERED.items():
            shown = {each["id"]: each["v"] for each in await store.read(1, model)}
            assert len(shown) == len(values)

            async def found(where: Any, model: str = model) -> list[int]:
                return [each["id"] for each in await store.read(1, model, where, order_by="id")]

            for value in shown.values():
                with row(f"{model} {value}"):
                    for name, operator in operators.items():
                        expected = [number for number, each in shown.items() if operator(each, value)]
                        assert await found({f"v__{name}": value}) == expected, name
                    assert await found({"v__between": [min(shown.values()), value]}) == await found({"v__lte": value})
                    if kind == "str":
                        assert await found({"v__startswith": value[:1]}) == [
                            number for number, each in shown.items() if each.startswith(value[:1])
                        ]
                        assert await found({"v__ilike": value.upper()}) == [
                            number for number, each in shown.items() if each.lower() == value.lower()
                        ]
            for descending in (False, True):
                with row(f"{model} pages"):
                    order = "v DESC, id" if descending else "v, id"
                    ordered = sorted(shown.values(), reverse=descending)
                    assert [each["v"] for each in await store.read(1, model, order_by=order)] == ordered
                    pages: list[Any] = []
                    while page := await store.read(
                        1, model, {f"v__{'lt' if descending else 'gt'}": pages[-1]} if pages else None, order_by=order
                    ):
                        pages += [each["v"] for each in page if each["v"] == page[0]["v"]]
                    assert pages == ordered
            with row(f"{model} delete"):
                middle = sorted(shown.values())[2]
                gone = [number for number, each in shown.items() if each < middle]
                assert await store.delete(1, model, {"v__lt": middle}) == {"deleted": len(gone)}
                assert await found(None) == [number for number in shown if number not in gone]
                made = await store.create(1, model, {"v": "1b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"})
                stored = other.execute(f"SELECT v FROM {model} WHERE id = {made['id']}").fetchone()[0]
                if model == "efcore":
                    assert stored == "1B54BE9A-6F5C-4C8E-9F0E-0C6A4D3F8F10"
                if model == "peewee":
                    assert stored == "1b54be9a6f5c4c8e9f0e0c6a4d3f8f10"
    other.close()


@pytest_twisted.ensureDeferred
async def test_contact_a_form_that_comes_later_is_taken_for_no_other_value(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """An index that was found with one form answers for an order, and no row is hit that is not shown so."""
    path = tmp_path / "l.sqlite3"
    schema = "t: {id: {type: uuid, pk: true}, v: {type: str, index: true}}"
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()
    other = sqlite3.connect(path, isolation_level=None)
    other.executemany("INSERT INTO t VALUES (?, ?)", [(UUIDS[1].upper(), b"aa"), (UUIDS[2], "cc")])
    assert await store.delete(1, "t", {"v__gt": "bb", "id__lt": UUIDS[2]}) == {"deleted": 0}
    assert await store.delete(1, "t", {"v__gt": "cc"}) == {"deleted": 0}
    assert await store.delete(1, "t", {"id__lt": UUIDS[1]}) == {"deleted": 0}
    for order, where in (("v", {"v__gt": "a"}), ("v DESC", {"v__lt": "z"}), ("id", {"id__gt": UUIDS[0]})):
        command = parse_command({"action": "read", "model": "t", "where": where, "order_by": order, "limit": 1})
        plan = make_plan(command, store.schema.models["t"], 10)
        statement = store._execution._statements.of(plan)
        query = statement.sql.replace("zcomm_uuid_key", "upper").replace("zcomm_uuid", "coalesce")
        explained = other.execute(f"EXPLAIN QUERY PLAN {query}", [None] * len(statement.parameters)).fetchall()
        assert [each[3].partition(" USING")[0] for each in explained][0] == "SEARCH t"
        assert not any("TEMP B-TREE FOR ORDER BY" in each[3] for each in explained), explained
    other.close()


NOON = "2025-01-02T12:00:00Z"
#: By kind: the declared type, what is there, what is created, and how that is stored; nothing where it is refused.
WRITTEN: list[tuple[str, str, list[Any], Any, Any]] = [
    ("datetime", "INTEGER", [1714979289], NOON, 1735819200),
    ("datetime", "INTEGER", [1714979289], "2025-01-02T12:00:00.5Z", None),
    ("datetime", "INTEGER", [1714979289, 2000000, "2024-05-06 07:08:09.5"], NOON, 1735819200),
    ("datetime", "INTEGER", [1714979289123], "2025-01-02T12:00:00.5Z", 1735819200500),
    ("datetime", "BIGINT", [1714979289123, 3600000], "1970-01-01T02:00:00Z", 7200000),
    ("datetime", "INTEGER", [], NOON, 1735819200),
    ("datetime", "INTEGER", [], "2025-01-02T12:00:00.000001Z", None),
    ("datetime", "INTEGER", [1714979289, 1714979289123], NOON, None),
    ("datetime", "INTEGER", ["2024-05-06 07:08:09"], NOON, "2025-01-02 12:00:00"),
    ("datetime", "INTEGER", [1714979289000000, 0], NOON, None),
    ("datetime", "BIGINT", [1714979289000000000], NOON, None),
    ("datetime", "INTEGER", [13359452889000000], NOON, None),
    ("datetime", "DATETIME", [638505760890000000], NOON, None),
    ("date", "INTEGER", [1714979289000000], "2025-01-02", None),
    ("datetime", "INTEGER", [1714979289, 2**63 - 1], NOON, 1735819200),
    ("datetime", "INTEGER", [*[1714979289] * 1000, 1714979289123], NOON, None),
    ("datetime", "INTEGER", [*[1714979289123] * 1000, 1714979289], NOON, None),
    (
        "datetime",
        "TEXT",
        [*["2024-05-06 07:08:09"] * 600, *["2024-05-06T07:08:09Z"] * 20],
        NOON,
        "2025-01-02T12:00:00Z",
    ),
    ("datetime", "REAL", [1714979289.5], "2025-01-02T12:00:00.123456Z", 1735819200.123456),
    ("datetime", "REAL", [2460436.75], NOON, 2460678.0),
    ("datetime", "REAL", [2460436.75], "2025-01-02T12:00:00.123456Z", None),
    ("datetime", "REAL", [], NOON, 1735819200.0),
    ("datetime", "REAL", [], "1970-02-01T00:00:00Z", None),
    ("datetime", "DATETIME", [1714979289123, 1800000], NOON, 1735819200000),
    ("datetime", "DATETIME", [1714979289], NOON, 1735819200),
    ("datetime", "DATETIME", [1714979289, "2024-05-06 07:08:09"], NOON, "2025-01-02 12:00:00"),
    ("datetime", "DATETIME", [], NOON, "2025-01-02 12:00:00"),
    ("datetime", "DATETIME", ["2024-05-06 07:08:09.000000"], NOON, "2025-01-02 12:00:00.000000"),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.120Z"], NOON, "2025-01-02T12:00:00.000Z"),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.120Z"], "2025-01-02T12:00:00.123456Z", "2025-01-02T12:00:00.123456Z"),
    ("datetime", "TEXT", ["2024-05-06 07:08:09.12"], "2025-01-02T12:00:00.50Z", "2025-01-02 12:00:00.5"),
    ("datetime", "TEXT", ["2024-05-06 09:08:09+02:00"], NOON, "2025-01-02 12:00:00+00:00"),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.000005+00:00"], NOON, "2025-01-02T12:00:00+00:00"),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.123456789+00:00"], NOON, "2025-01-02T12:00:00+00:00"),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.120+00:00"] * 2, NOON, "2025-01-02T12:00:00.000+00:00"),
    ("datetime", "TEXT", ["2024-05-06 07:08:09.123 +00:00"], NOON, "2025-01-02 12:00:00.000 +00:00"),
    ("datetime", "TEXT", ["2024-05-06 07:08:09 +0000 UTC"], NOON, "2025-01-02 12:00:00 +0000 UTC"),
    (
        "datetime",
        "TEXT",
        ["2024-05-06 09:08:09.12 +0200 CEST"],
        "2025-01-02T12:00:00.5Z",
        "2025-01-02 12:00:00.5 +0000 UTC",
    ),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.12Z", "2024-05-06T07:08:09Z"], NOON, "2025-01-02T12:00:00Z"),
    ("datetime", "TEXT", ["2024-05-06T07:08:09.120Z", "2024-05-06T07:08:09Z"], NOON, "2025-01-02T12:00:00Z"),
    ("datetime", "TEXT", ["2024-05-06T07:08"], NOON, "2025-01-02T12:00"),
    ("datetime", "INTEGER", [20240506070809, 20240507000000], NOON, None),
    ("datetime", "INTEGER", [20240506], NOON, None),
    ("date", "INTEGER", [20240506, 20240507], "2025-01-02", None),
    ("date", "INTEGER", [45418], "2025-01-02", None),
    ("decimal", "TEXT", ["5.0", "1.1"], "5", "5.0"),
    ("decimal", "TEXT", ["5.00", "1.10"], "7.5", "7.50"),
    ("decimal", "TEXT", ["5.00", "1.10"], "7.125", "7.125"),
    ("decimal", "TEXT", ["5", "1.10"], "7.50", "7.5"),
    ("datetime", "TEXT", ["yesterday"], NOON, "2025-01-02 12:00:00"),
    ("date", "INTEGER", [1714953600], "2025-01-02", 1735776000),
    ("date", "DATETIME", ["2024-05-06 00:00:00.000000"], "2025-01-02", "2025-01-02 00:00:00.000000"),
    ("date", "DATE", ["2024-05-06", "2024-05-06 00:00:00"], "2025-01-02", "2025-01-02"),
    ("time", "TIME", ["07:08:00.000000"], "09:10:00", "09:10:00.000000"),
    ("time", "TIME", ["07:08"], "09:10:00", "09:10"),
    ("time", "time", ["2000-01-01 07:08:00"], "09:10:00", "2000-01-01 09:10:00"),
    ("time", "time(6)", ["2000-01-01 07:08:00.120000"], "09:10:00.5", "2000-01-01 09:10:00.500000"),
    ("time", "TIME", ["99:99", "07:08:00"], "09:10:00", "09:10:00"),
    ("bool", "TEXT", ["t"], False, "f"),
    ("bool", "BOOLEAN", ["TRUE", "FALSE"], True, "TRUE"),
    ("bool", "BOOLEAN", ["true", 1], True, 1),
    ("bool", "TEXT", ["Yes"], False, "No"),
    ("bool", "BOOLEAN", [*["t"] * 600, *[1] * 20], False, 0),
    ("bool", "BOOLEAN", [*[1] * 600, *["f"] * 20], True, "t"),
    ("uuid", "TEXT", [UUIDS[0].replace("-", "").upper()], UUIDS[1], UUIDS[1].replace("-", "").upper()),
    ("uuid", "TEXT", [UUIDS[0].upper(), UUIDS[2]], UUIDS[1], UUIDS[1]),
    ("uuid", "TEXT", [*[UUIDS[0]] * 600, *[UUIDS[2].upper()] * 20], UUIDS[1], UUIDS[1].upper()),
    ("uuid", "UUID", [UUIDS[0].replace("-", "")], UUIDS[1], UUIDS[1]),
    ("uuid", "UUID", [bytes.fromhex(UUIDS[0].replace("-", ""))], UUIDS[1], bytes.fromhex(UUIDS[1].replace("-", ""))),
]


@pytest_twisted.ensureDeferred
async def test_contact_what_is_written_has_the_form_of_what_is_there(tmp_path: Path, make_store: Callable[..., Store]):
    """A value is stored as the other program stores its own, found again, and one that this cannot say is refused."""
    path = tmp_path / "w.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    other.executescript("PRAGMA synchronous = OFF; BEGIN")
    schema = ""
    for number, (kind, declared, there, _, _) in enumerate(WRITTEN):
        now = ", default: now" if kind in ("date", "datetime") else ""
        schema += f"t{number}: {{id: {{type: int, pk: true}}, v: {kind}, made: {{type: {kind}{now}}}}}\n"
        other.execute(f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY, v {declared}, made {declared})")
        other.executemany(f"INSERT INTO t{number} (v, made) VALUES (?1, ?1)", [(each,) for each in there])
    other.execute("COMMIT")
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()
    with rows_of_a_test() as row:
        for number, (kind, declared, there, value, stored) in enumerate(WRITTEN):
            model = f"t{number}"
            with row(f"{number} {kind} {declared} {there[-3:]} {value}"):
                before = other.execute(f"SELECT v FROM {model}").fetchall()
                if stored is None:
                    with pytest.raises(Invalid) as invalid:
                        await store.create(1, model, {"v": value})
                    assert set(invalid.value.fields) >= {"v"}
                    if any("unit" in reason for reason in invalid.value.fields.values()):
                        with pytest.raises(Invalid, match="^made cannot be written: the numbers in its column are of "):
                            await store.create(1, model, {})
                        with pytest.raises(Invalid, match="^v cannot be written"):
                            await store.update(1, model, {"id": 1}, {"v": value})
                    assert other.execute(f"SELECT v FROM {model}").fetchall() == before
                    continue
                made = await store.create(1, model, {"v": value})
                assert (await store.read(1, model, {"v": value}))[-1] == made
                found = other.execute(f"SELECT v, made FROM {model} WHERE id = ?", (made["id"],)).fetchone()
                assert (found[0], type(found[0])) == (stored, type(stored))
                assert kind not in ("date", "datetime") or type(found[1]) is type(stored)
                assert await store.update(1, model, {"id": made["id"]}, {"v": made["v"]}) == {"updated": 1}
                assert await store.update(1, model, {"id": made["id"]}, {"v": None}) == {"updated": 1}
                assert await store.update(1, model, {"id": made["id"]}, {"v": value}) == {"updated": 1}
                assert other.execute(f"SELECT v FROM {model}").fetchall() == [*before, (stored,)]
    other.close()


@pytest.mark.parametrize("declared", ["TEXT", "BLOB", "UUID"])
@pytest_twisted.ensureDeferred
async def test_contact_a_uuid_in_letters_of_both_sizes_is_one_key(
    tmp_path: Path, make_store: Callable[..., Store], declared: str
):
    """It is reached by what is shown, once, beside others in any form, also by what points to it and by its order."""
    mixed = ["0b54Be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10", "1B54be9A6F5C4C8E9F0E0C6A4D3F8F10"[:31] + "a"]
    mixed.append("{2b54BE9a-6f5c-4c8e-9f0e-0c6a4d3f8f10}")
    path = tmp_path / "v.sqlite3"
    store = make_store(
        f"sqlite:///{path}",
        load_schema(
            "p: {id: {type: uuid, pk: true}, n: int}\n"
            "c: {_model: {unique: [[u, w]]}, id: {type: int, pk: true}, u: {type: uuid, fk: p.id}, w: int}\n"
            "late: {id: {type: uuid, pk: true}, n: int}"
        ),
    )
    with sqlite3.connect(path, isolation_level=None) as other:
        other.executescript(
            f"CREATE TABLE p (id {declared} PRIMARY KEY, n INTEGER);"
            f"CREATE TABLE late (id {declared} PRIMARY KEY, n INTEGER);"
            f"CREATE TABLE c (id INTEGER PRIMARY KEY, u {declared} REFERENCES p (id), w INTEGER, UNIQUE (u, w))"
        )
        other.executemany("INSERT INTO p VALUES (?, 0)", [(each,) for each in [*mixed, UUIDS[0], UUIDS[1].upper()]])
        await store.start()
        # One that came after the start, beside small letters.
        other.executemany("INSERT INTO late VALUES (?, 0)", [(each,) for each in [mixed[0], UUIDS[0]]])
        with rows_of_a_test() as row:
            for model, each in [*(("p", each) for each in mixed), ("late", mixed[0])]:
                with row(f"{model} {each}"):
                    there = {"id": each, "n": 0}
                    assert there in await store.read(1, model)
                    for where in (each, {"id": each}, {"id__in": [each]}):
                        assert await store.read(1, model, where) == [there]
                    assert there not in await store.read(1, model, {"id__ne": each})
                    with pytest.raises(Conflict):
                        await store.create(1, model, {"id": each, "n": 1})
                    assert await store.upsert(1, model, {"id": each, "n": 2}) == {"id": each, "n": 2}
                    assert await store.update(1, model, each, {"n": 3}) == {"updated": 1}
                    assert await store.read(1, model, each) == [{"id": each, "n": 3}]
                    if model == "p":
                        made = await store.create(1, "c", {"u": each, "w": 1})
                        assert made["u"] == each
                        with pytest.raises(Conflict):
                            await store.create(1, "c", {"u": each, "w": 1})
                        with pytest.raises(Conflict):
                            await store.delete(1, "p", each)
                        assert await store.read(1, "c", {"u": each}) == [made]
                        changed = await store.update(1, "c", {"u": each}, {"u": each})
                        assert (changed, await store.read(1, "c")) == ({"updated": 1}, [made])
                        assert await store.delete(1, "c", {"u": each}) == {"deleted": 1}
            with row("the order is that of the UUIDs, and pages miss none"):
                ordered = [each["id"] for each in await store.read(1, "p", order_by="id")]
                assert ordered == [UUIDS[0], UUIDS[1], *mixed]
                for number, each in enumerate(ordered):
                    more = await store.read(1, "p", {"id__gt": each}, order_by="id")
                    assert [one["id"] for one in more] == ordered[number + 1 :]
                    less = await store.read(1, "p", {"id__lte": each}, order_by="id")
                    assert [one["id"] for one in less] == ordered[: number + 1]
            with row("one that is asked for so is found in small letters and in capitals, and written like the others"):
                for small in UUIDS[:2]:
                    [found] = await store.read(1, "p", f"{small[:18].upper()}{small[18:]}")
                    assert found["id"] == small
                assert (await store.create(1, "late", {"id": f"{UUIDS[3][:18].upper()}{UUIDS[3][18:]}"}))[
                    "id"
                ] == UUIDS[3]
                bound = f"{UUIDS[0][:18].upper()}{UUIDS[0][18:]}"
                # The form was learnt with the first write, when there was one in letters of both sizes already.
                after = [one["id"] for one in await store.read(1, "late", {"id__gt": bound}, order_by="id")]
                assert after == [UUIDS[3], mixed[0]]
            with row("deleted"):
                for model, each in [*(("p", each) for each in mixed), ("late", mixed[0])]:
                    assert await store.delete(1, model, each) == {"deleted": 1}
                    assert await store.read(1, model, each) == []


#: A key as it is in the row that others point to, and as they have it; what SQLite itself sees is deleted with it.
STRANDED = [
    ("uuid", "TEXT", UUIDS[0], UUIDS[0].replace("-", ""), "cascade"),
    ("uuid", "TEXT", UUIDS[0].replace("-", ""), f"{{{UUIDS[0].upper()}}}", "set null"),
    ("uuid", "BLOB", bytes.fromhex(UUIDS[0].replace("-", "")), UUIDS[0], "restrict"),
    ("datetime", "TEXT", "2024-05-06 07:08:09", "2024-05-06T07:08:09Z", "cascade"),
    ("decimal", "TEXT", "1.5", "1.50", "set null"),
    ("int", "TEXT", "02", "2", "cascade"),
]


@pytest_twisted.ensureDeferred
async def test_contact_rows_that_point_to_a_key_in_another_form_are_not_left_behind(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """A delete, with all that goes with it, and a change of what is pointed to are refused where rows would stay."""
    path = tmp_path / "s.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    schema = ""
    rules = {"restrict": "", "cascade": "ON DELETE CASCADE", "set null": "ON DELETE SET NULL"}
    for n, (kind, declared, key, _, action) in enumerate(STRANDED):
        index = ", index: true" if n % 2 else ""
        schema += f"""
p{n}: {{id: {{type: {kind}, pk: true}}, code: {{type: {kind}, unique: true}}}}
c{n}: {{id: {{type: int, pk: true}}, up: {{type: {kind}, fk: p{n}.id, on_delete: {action}{index}}}}}
d{n}: {{id: {{type: int, pk: true}}, up: {{type: {kind}, fk: p{n}.code}}}}
g{n}: {{id: {{type: {kind}, pk: true, fk: p{n}.id, on_delete: cascade}}}}
h{n}: {{id: {{type: int, pk: true}}, up: {{type: {kind}, fk: g{n}.id, on_delete: {action}}}}}
"""
        other.executescript(f"""
CREATE TABLE p{n} (id {declared} NOT NULL PRIMARY KEY, code {declared} UNIQUE);
CREATE TABLE c{n} (id INTEGER PRIMARY KEY, up {declared} REFERENCES p{n} (id) {rules[action]});
CREATE TABLE d{n} (id INTEGER PRIMARY KEY, up {declared} REFERENCES p{n} (code));
CREATE TABLE g{n} (id {declared} NOT NULL PRIMARY KEY REFERENCES p{n} (id) ON DELETE CASCADE);
CREATE TABLE h{n} (id INTEGER PRIMARY KEY, up {declared} REFERENCES g{n} (id) {rules[action]});
{f"CREATE INDEX i{n} ON c{n} (up);" if index else ""}
""")
        other.execute(f"INSERT INTO p{n} VALUES (?1, ?1)", (key,))
        other.execute(f"INSERT INTO g{n} VALUES (?)", (key,))
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()
    with rows_of_a_test() as row:
        for n, (kind, declared, key, form, action) in enumerate(STRANDED):
            with row(f"{kind} {declared} {key!r} {form!r} {action}"):
                shown = (await store.read(1, f"p{n}"))[0]["id"]
                for table in (f"c{n}", f"h{n}", f"d{n}"):
                    other.execute(f"INSERT INTO {table} VALUES (1, ?)", (form,))
                    with pytest.raises(Conflict, match="in another form of its key"):
                        await store.delete(1, f"p{n}", {"id": shown})
                    if table == f"d{n}":
                        with pytest.raises(Conflict, match="in another form of its key"):
                            await store.update(1, f"p{n}", {"id": shown}, {"code": None})
                        with pytest.raises(Conflict, match="in another form of its key"):
                            await store.upsert(1, f"p{n}", {"id": shown, "code": None})
                    # The same value stays as it is, and with it what points to it.
                    assert await store.update(1, f"p{n}", {"id": shown}, {"code": shown}) == {"updated": 1}
                    assert other.execute(f"SELECT * FROM p{n}").fetchall() == [(key, key)]
                    assert other.execute(f"SELECT up FROM {table}").fetchall() == [(form,)]
                    other.execute(f"DELETE FROM {table}")
                other.execute(f"INSERT INTO c{n} VALUES (1, ?)", (key,))
                if action == "restrict":
                    with pytest.raises(Conflict, match="still point to this row of p2$"):
                        await store.delete(1, f"p{n}", {"id": shown})
                    other.execute(f"DELETE FROM c{n}")
                assert await store.delete(1, f"p{n}", {"id": shown}) == {"deleted": 1}
                left = other.execute(f"SELECT id, up FROM c{n}").fetchall()
                assert left == ([(1, None)] if action == "set null" else [])
                assert other.execute(f"SELECT id FROM g{n}").fetchall() == []
    other.close()


@pytest.mark.filterwarnings("ignore:Cannot correctly sort tables")
@pytest_twisted.ensureDeferred
async def test_contact_no_delete_in_a_tree_leaves_a_row_behind(tmp_path: Path, make_store: Callable[..., Store]):
    """Whatever points to what, in which form, and goes along with what: afterwards no row points to nothing."""
    path = tmp_path / "s.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    # A tree, and a ring of two tables.
    other.executescript("""
CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, up TEXT REFERENCES t (id) ON DELETE CASCADE,
                r TEXT REFERENCES r (id) ON DELETE CASCADE);
CREATE TABLE r (id TEXT NOT NULL PRIMARY KEY, t TEXT REFERENCES t (id) ON DELETE CASCADE,
                s TEXT REFERENCES t (id) ON DELETE SET NULL);
""")
    schema = """
t:
  id: {type: uuid, pk: true}
  up: {type: uuid, fk: t.id, on_delete: cascade}
  r: {type: uuid, fk: r.id, on_delete: cascade}
r:
  id: {type: uuid, pk: true}
  t: {type: uuid, fk: t.id, on_delete: cascade}
  s: {type: uuid, fk: t.id, on_delete: set null}
"""
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    await store.start()
    chance = random.Random(7)
    counts = {"refused": 0, "deleted": 0}
    forms = (str, str, str, lambda key: key.hex, lambda key: str(key).upper())

    other.executescript("PRAGMA foreign_keys = OFF; PRAGMA synchronous = OFF")
    for _ in range(40):
        other.executescript("DELETE FROM t; DELETE FROM r")
        keys = [UUID(int=chance.getrandbits(128)) for _ in range(6)]
        stored = {key: chance.choice(forms)(key) for key in keys}

        for table in ("t", "r"):
            for key in keys:
                to = chance.choices([None, None, *keys], k=2)
                as_it_is = chance.random() < 0.7
                points = [each and (stored[each] if as_it_is else chance.choice(forms)(each)) for each in to]
                other.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (stored[key], *points))
        before = [await store.read(1, "t"), await store.read(1, "r")]
        try:
            await store.delete(1, "t", {"id__in": [str(key) for key in chance.sample(keys, chance.randint(1, 2))]})
            counts["deleted"] += 1
        except Conflict:
            counts["refused"] += 1
            assert [await store.read(1, "t"), await store.read(1, "r")] == before
        left = {model: await store.read(1, model) for model in ("t", "r")}
        ids = {model: {None, *(row["id"] for row in rows)} for model, rows in left.items()}
        assert {row["up"] for row in left["t"]} | {row[name] for row in left["r"] for name in "ts"} <= ids["t"]
        assert {row["r"] for row in left["t"]} <= ids["r"]
    # Neither is rare.
    assert min(counts.values()) > 10, counts
    other.close()
    other.close()


@pytest_twisted.ensureDeferred
async def test_contact_the_form_is_that_of_who_writes_first(tmp_path: Path, make_store: Callable[..., Store]):
    """Of a table that is empty at the start it is learnt with the first write here, or from the column's default."""
    path = tmp_path / "w.sqlite3"
    other = sqlite3.connect(path, isolation_level=None)
    other.executescript("""
CREATE TABLE a (id INTEGER PRIMARY KEY, v INTEGER);
CREATE TABLE b (id INTEGER PRIMARY KEY, v INTEGER DEFAULT (unixepoch('2024-05-06') * 1000), n INTEGER);
CREATE TABLE c (id INTEGER PRIMARY KEY, v TEXT, w BOOLEAN DEFAULT 'f', u TEXT DEFAULT (lower(hex(randomblob(16)))));
CREATE TABLE d (id INTEGER PRIMARY KEY, v INTEGER);
CREATE TABLE e (id INTEGER PRIMARY KEY, v REAL, x TEXT);
""")
    model = "{id: {type: int, pk: true}, v: datetime"
    schema = load_schema(f"""
a: {model}}}
b: {model}, n: int}}
c: {model}, w: bool, u: uuid}}
d: {model}}}
e: {model}, x: datetime}}
""")
    store = make_store(f"sqlite:///{path}", schema)
    await store.start()
    other.execute("INSERT INTO a (v) VALUES (1714979289123)")
    assert (await store.create(1, "a", {"v": "2025-01-02T12:00:00.5Z"}))["v"] == "2025-01-02T12:00:00.500000Z"
    assert await store.update(1, "a", {"id": 1}, {"v": NOON}) == {"updated": 1}
    assert other.execute("SELECT v FROM a").fetchall() == [(1735819200000,), (1735819200500,)]
    assert {row["v"] for row in await store.read(1, "a")} == {NOON, "2025-01-02T12:00:00.500000Z"}
    # Its own default is in milliseconds.
    assert (await store.create(1, "b", {"n": 1}))["v"] == "2024-05-06T00:00:00Z"
    assert await store.update(1, "b", {"id": 1}, {"v": NOON}) == {"updated": 1}
    await store.create(1, "b", {"v": NOON})
    assert other.execute("SELECT DISTINCT v FROM b").fetchall() == [(1735819200000,)]
    other.execute("INSERT INTO c (v) VALUES ('2024-05-06T07:08:09Z')")
    await store.create(1, "c", {"v": NOON, "w": True, "u": UUIDS[0]})
    assert other.execute("SELECT v, w, u FROM c WHERE id = 2").fetchall() == [
        ("2025-01-02T12:00:00Z", "t", UUIDS[0].replace("-", ""))
    ]
    # Nobody was before; what is written then is the form.
    await store.create(1, "d", {"v": NOON})
    other.execute("INSERT INTO d (v) VALUES (1714979289123)")
    await store.create(1, "d", {"v": NOON})
    assert other.execute("SELECT v FROM d WHERE id != 2").fetchall() == [(1735819200,), (1735819200,)]
    # What the value would be cut to is found out of what is there by then, too.
    other.execute("INSERT INTO e (v, x) VALUES (2460436.75, 'later')")
    with pytest.raises(Invalid, match="^v would be kept as 2025-01-02T12:00:00.123"):
        await store.create(1, "e", {"v": "2025-01-02T12:00:00.123456Z"})
    other.close()


@pytest_twisted.ensureDeferred
async def test_contact_a_key_that_points_to_a_row_is_not_made_up(tmp_path: Path, make_store: Callable[..., Store]):
    """A row that is one to one with another needs its key, also where SQLite would take the next number for it."""
    path = tmp_path / "w.sqlite3"
    schema = load_schema("""
people: {id: {type: int, pk: true}, name: str}
profiles: {person: {type: int, pk: true, fk: people.id}, bio: str}
""")
    store = make_store(f"sqlite:///{path}", schema)
    await store.start()
    for model in ("people", "people", "people"):
        await store.create(1, model, {"name": "x"})
    again = make_store(f"sqlite:///{path}", schema)
    await again.start()
    with sqlite3.connect(tmp_path / "other.sqlite3") as other:
        other.executescript("""
CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE profiles (person INTEGER PRIMARY KEY REFERENCES people, bio TEXT);
INSERT INTO people (name) VALUES ('a'), ('b');
""")
    theirs = make_store(f"sqlite:///{tmp_path}/other.sqlite3", schema)
    await theirs.start()
    for each in (store, again, theirs):
        with pytest.raises(Invalid, match="^person is required"):
            await each.create(1, "profiles", {"bio": "whose?"})
        assert await each.create(1, "profiles", {"person": 2, "bio": "of b"}) == {"person": 2, "bio": "of b"}
        assert await each.delete(1, "profiles", {"person": 2}) == {"deleted": 1}


@pytest_twisted.ensureDeferred
async def test_contact_a_table_that_goes_before_its_first_write_is_named(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """What others changed is found out and said as in any other write, and no file is made anew."""
    with rows_of_a_test() as row:
        for number, change in enumerate(
            ("RENAME COLUMN n TO m", "DROP COLUMN v", "RENAME TO b", "RENAME COLUMN id TO number")
        ):
            with row(change):
                path = tmp_path / f"{number}.sqlite3"
                other = sqlite3.connect(path, isolation_level=None)
                other.execute("CREATE TABLE a (id INTEGER PRIMARY KEY, v INTEGER, n INTEGER)")
                store = make_store(
                    f"sqlite:///{path}", load_schema("a: {id: {type: int, pk: true}, v: datetime, n: int}")
                )
                await store.start()
                other.execute("INSERT INTO a (v, n) VALUES (1714979289123, 1)")
                other.execute(f"ALTER TABLE a {change}")
                for _ in range(2):
                    with pytest.raises(Unavailable, match="^The table of a is gone or is not as it was"):
                        await store.create(1, "a", {"v": NOON})
                other.close()
    path = tmp_path / "gone.sqlite3"
    store = make_store(f"sqlite:///{path}", load_schema("a: {id: {type: int, pk: true}, v: datetime}"))
    await store.start()
    path.rename(tmp_path / "moved.sqlite3")
    with pytest.raises(Unavailable):
        await store.create(1, "a", {"v": NOON})
    assert not path.exists()
