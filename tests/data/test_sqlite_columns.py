"""Values in SQLite's columns that other programs wrote: each in the one form of its kind, found and ordered by that."""

from __future__ import annotations

import json
import operator
import random
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rows import rows_of_a_test

from zcomm.data.requests import make_plan, parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.data.values import KINDS
from zcomm.errors import ConfigError, Conflict, Invalid


async def filled(make_store: Callable[..., Store], path: Path, schema: str, *statements: Any) -> Store:
    """A started store on a file, after another program ran ``statements``: SQL, or SQL and a list of rows."""
    store = make_store(f"sqlite:///{path}", load_schema(schema))
    other = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        if isinstance(statement, str):
            other.executescript(statement)
        else:
            other.executemany(*statement)
    other.close()
    await store.start()
    return store


async def ids(store: Store, model: str, where: Any = None, **more: Any) -> list[int]:
    return [row["id"] for row in await store.read(1, model, where, fields=["id"], **more)]


#: The same moment, as zComm, SQLite, Python, JavaScript, Ruby, Go, Rails and Prisma write it.
MOMENT = "2024-05-06T07:08:09Z"
MOMENTS: list[Any] = [
    "2024-05-06 07:08:09",
    "2024-05-06T07:08:09",
    "2024-05-06T07:08:09Z",
    "2024-05-06T07:08:09.000Z",
    "2024-05-06 07:08:09.000000",
    "2024-05-06 07:08:09.000",
    "2024-05-06 07:08:09+00:00",
    "2024-05-06T07:08:09.000+00:00",
    "2024-05-06 09:08:09+02:00",
    "2024-05-05T21:08:09-1000",
    "2024-05-06 07:08:09 UTC",
    "2024-05-06 07:08:09 +0000 UTC",
    "2024-05-06 09:08:09 +0200 CEST",
    "2024-05-06 04:08:09 -0300 -03",
    "2024-05-06 12:38:09.000000000 +0530 IST m=+0.013921",
    "2024-05-06 07:08:09.000000000+00:00",
    b"2024-05-06 07:08:09",
    1714979289,
    1714979289.0,
    1714979289000,
    2460436.797326389,
]
#: No dates, or none in a form that anybody knows; in the order of text, numbers first.
NO_DATES: list[Any] = [1e30, "", "2024-02-31 00:00:00", "2024-05-06T25:00:00", "abcd-ef-gh ij:kl:mn", "yesterday"]


@pytest.mark.parametrize("declared", ["DATETIME", "TEXT", "INTEGER", "TIMESTAMP NOT NULL", "datetime(6)", "", None])
@pytest_twisted.ensureDeferred
async def test_contact_f05_one_form_of_a_datetime(
    tmp_path: Path, make_store: Callable[..., Store], declared: str | None
):
    """Every known form is shown, found and ordered as the moment; what is none, as the text or number that it is."""
    path = tmp_path / "d.sqlite3"
    values = [each for each in [*MOMENTS, *NO_DATES] if not (declared == "TEXT" and isinstance(each, (int, float)))]
    known = [each for each in MOMENTS if each in values]
    make = f"CREATE TABLE t (id INTEGER PRIMARY KEY, d {declared}); CREATE INDEX i ON t (d)"
    schema = "t: {id: {type: int, pk: true}, d: {type: datetime, index: true}}"
    if declared is None:
        # A table that zComm made has writers beside zComm as well.
        first = await filled(make_store, path, schema)
        await first.stop()
        make = ""
    rows = [("2024-05-06 07:08:08.999999",), *((each,) for each in values), ("2024-05-06T07:08:09.000001Z",)]
    store = await filled(make_store, path, schema, make, ("INSERT INTO t (d) VALUES (?)", rows))
    last = len(rows)
    same = list(range(2, 2 + len(known)))
    strange = list(range(2 + len(known), last))
    shown = {row["id"]: row["d"] for row in await store.read(1, "t")}
    assert [shown[number] for number in same] == [MOMENT] * len(same)
    assert [shown[number] for number in strange] == [each for each in values if each in NO_DATES]
    for where in (
        {"d": MOMENT},
        {"d": "2024-05-06T09:08:09+02:00"},
        {"d__in": [MOMENT, "2001-01-01"]},
        {"d__between": [MOMENT, MOMENT]},
        {"d__gte": MOMENT, "d__lte": MOMENT},
        {"d__gt": "2024-05-06T07:08:08.999999Z", "d__lt": "2024-05-06T07:08:09.000001Z"},
    ):
        assert await ids(store, "t", where) == same, where
    assert await ids(store, "t", {"d__ne": MOMENT}) == [1, *strange, last]
    assert await ids(store, "t", {"$not": {"d__not_in": [MOMENT]}}) == same
    for number in strange:
        value = shown[number]
        assert await ids(store, "t", {"d": value}) == [number]
        assert await ids(store, "t", {"d__in": [value, MOMENT]}) == [*same, number]
        assert number not in await ids(store, "t", {"d__ne": value})
    # Text sorts as text, the numbers before it; known forms by their moment.
    key = {number: ((0, shown[number]) if isinstance(shown[number], float) else (1, shown[number])) for number in shown}
    key |= {number: (1, shown[number].replace("T", " ").rstrip("Z")) for number in (1, *same, last)}
    for descending in (False, True):
        ordered = sorted(shown, key=lambda number: (key[number], number))
        if descending:
            ordered = sorted(shown, key=lambda number: key[number], reverse=True)
        assert await ids(store, "t", order_by="d DESC" if descending else "d") == ordered
    with pytest.raises(Invalid) as invalid:
        await store.read(1, "t", {"d": "tomorrow"})
    assert invalid.value.fields == {"d": 'must be a date and time like "2024-10-15T08:30:00Z"'}
    for write in (
        store.update(1, "t", {"d": "tomorrow"}, {"d": MOMENT}),
        store.delete(1, "t", {"d__in": ["tomorrow"]}),
    ):
        with pytest.raises(Invalid, match="^d must be a date and time"):
            await write
    for where in ({"d__gt": "tomorrow"}, {"d__between": ["tomorrow", MOMENT]}):
        with pytest.raises(Invalid, match="^d must be a date and time"):
            await store.read(1, "t", where)
    assert await store.update(1, "t", {"d": shown[strange[0]]}, {"d": MOMENT}) == {"updated": 1}
    assert await store.delete(1, "t", {"d": MOMENT}) == {"deleted": len(same) + 1}


@pytest_twisted.ensureDeferred
async def test_contact_f05_filters_on_dates_use_an_index(tmp_path: Path, make_store: Callable[..., Store]):
    """Forms that differ do not make a filter look at every row."""
    store = await filled(
        make_store, tmp_path / "d.sqlite3", "t: {id: {type: int, pk: true}, d: {type: datetime, index: true}}"
    )
    plans: list[str] = []

    def explain(sql: str, order: int) -> None:
        with store._pool.connection() as connection:
            plans.append(
                " ".join(str(row[3]) for row in connection.run(f"EXPLAIN QUERY PLAN {sql}", [""] * order, True)[0])
            )

    for where in ({"d": MOMENT}, {"d__between": [MOMENT, MOMENT]}, {"d__in": [MOMENT, MOMENT]}):
        command = parse_command({"action": "read", "model": "t", "where": where})
        plan = make_plan(command, store.schema.models["t"], 10)
        statement = store._execution._statements.of(plan)
        await store._workers.run(1, explain, statement.sql, len(statement.parameters))
    assert [plan for plan in plans if "ix_t_d" not in plan] == []


COMPARISONS = {
    "": operator.eq,
    "__ne": operator.ne,
    "__gt": operator.gt,
    "__gte": operator.ge,
    "__lt": operator.lt,
    "__lte": operator.le,
}


@pytest_twisted.ensureDeferred
async def test_contact_f05_random_moments_in_random_forms(tmp_path: Path, make_store: Callable[..., Store]):
    """Filters and orders agree with Python's on moments that each writer wrote in a form of its own."""
    dice = random.Random(5)

    def written(moment: datetime, nanoseconds: int) -> Any:
        local = moment.astimezone(timezone(timedelta(minutes=30 * dice.randrange(-27, 28))))
        plain = moment.replace(tzinfo=None)
        if nanoseconds:
            clock = local.strftime("%H:%M:%S.%f") + f"{nanoseconds:03d}".rstrip("0")
            return f"{local.date()}{dice.choice(' T')}{clock}{local.strftime('%z')}"
        forms = [plain.isoformat(" "), plain.isoformat() + "Z", local.isoformat(), f"{plain.isoformat(' ')} UTC"]
        if moment.microsecond % 1000 == 0:
            forms += [round(moment.timestamp() * 1000), plain.isoformat(timespec="milliseconds") + "Z"]
        return dice.choice(forms)

    base = datetime(2024, 5, 6, tzinfo=UTC)
    moments = [
        (
            base + timedelta(hours=dice.randrange(-40, 40), microseconds=dice.choice([0, 0, 1000, 500_000, 1])),
            dice.choice([0, 0, 0, 1, 100, 999]),
        )
        for _ in range(150)
    ]
    rows = [(written(*each),) for each in moments]
    store = await filled(
        make_store,
        tmp_path / "d.sqlite3",
        "t: {id: {type: int, pk: true}, d: datetime}",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, d DATETIME); CREATE INDEX i ON t (d)",
        ("INSERT INTO t (d) VALUES (?)", rows),
    )
    numbered = list(enumerate(moments, 1))
    assert await ids(store, "t", order_by="d") == [n for n, _ in sorted(numbered, key=lambda each: (each[1], each[0]))]
    with rows_of_a_test() as row:
        for _ in range(60):
            at, until = sorted(moment for moment, _ in dice.sample(moments, 2))
            for name, holds in COMPARISONS.items():
                with row(f"{name} {at}"):
                    found = await ids(store, "t", {"d" + name: at.isoformat()})
                    assert found == [number for number, each in numbered if holds(each, (at, 0))]
            with row(f"between {at}, {until}"):
                found = await ids(store, "t", {"d__between": [at.isoformat(), until.isoformat()]})
                assert found == [n for n, each in numbered if (at, 0) <= each <= (until, 0)]
        for shown in await store.read("t", "t"):
            with row(shown["d"]):
                same = [number for number, each in numbered if each == moments[shown["id"] - 1]]
                assert await ids(store, "t", {"d": shown["d"]}) == same


#: By kind: the declared type, what was stored, what is shown, what else finds it.
SHOWN: list[tuple[str, str, Any, Any]] = [
    ("date", "DATE", "1996-07-04", "1996-07-04"),
    ("date", "DATETIME", "1996-07-04 00:00:00.000", "1996-07-04"),
    ("date", "TEXT", "1996-07-04T00:00:00Z", "1996-07-04"),
    ("date", "DATE", "1996-07-04T00:00:00+02:00", "1996-07-04"),
    ("date", "DATE", 836438400000, "1996-07-04"),
    ("date", "INTEGER", 836438400, "1996-07-04"),
    ("date", "REAL", 2450268.5, "1996-07-04"),
    ("date", "DATE", "1996-07-04 10:00:00", "1996-07-04 10:00:00"),
    ("date", "DATE", "July 4th", "July 4th"),
    ("date", "DATE", "1996-13-01", "1996-13-01"),
    ("datetime", "DATETIME", "1996-07-04", "1996-07-04T00:00:00Z"),
    ("datetime", "DATETIME", "2024-05-06 07:08:09.123456", "2024-05-06T07:08:09.123456Z"),
    ("datetime", "datetime(6)", "2024-05-06 07:08:09.500000", "2024-05-06T07:08:09.500000Z"),
    ("datetime", "DATETIME", 1714979289123, "2024-05-06T07:08:09.123000Z"),
    ("datetime", "DATETIME", -1, "1969-12-31T23:59:59.999000Z"),
    ("datetime", "DATETIME", 157766400000, "1975-01-01T00:00:00Z"),
    ("datetime", "INTEGER", 157766400, "1975-01-01T00:00:00Z"),
    ("datetime", "DATETIME", 1e30, 1e30),
    # No Julian days, though they are as many.
    ("datetime", "DATETIME", 3600000, "1970-01-01T01:00:00Z"),
    ("datetime", "TIMESTAMP", 1800000, "1970-01-01T00:30:00Z"),
    ("datetime", "", 3599000, "1970-01-01T00:59:59Z"),
    ("datetime", "BIGINT", 2000000, "1970-01-24T03:33:20Z"),
    ("datetime", "INTEGER", 5373483, "1970-03-04T04:38:03Z"),
    ("datetime", "REAL", 2460437.0, "2024-05-06T12:00:00Z"),
    ("datetime", "DATETIME", 2460436.75, "2024-05-06T06:00:00Z"),
    ("date", "INTEGER", 2419200, "1970-01-29"),
    ("datetime", "DATETIME", "0001-01-01 00:00:00", "0001-01-01T00:00:00Z"),
    ("datetime", "DATETIME", "9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999000Z"),
    ("datetime", "DATETIME", "9999-12-31T23:59:59-10:00", "9999-12-31T23:59:59-10:00"),
    ("datetime", "DATETIME", "2024-05-06 07:08:09.123456789", "2024-05-06T07:08:09.123456789Z"),
    ("datetime", "DATETIME", "2024-05-06 09:08:09.000000100+02:00", "2024-05-06T07:08:09.0000001Z"),
    ("datetime", "DATETIME", "2024-05-06T07:08:09.123456000Z", "2024-05-06T07:08:09.123456Z"),
    ("date", "DATE", "2024-05-06 00:00:00.0000001", "2024-05-06 00:00:00.0000001"),
    ("time", "TIME", "07:08:09.1234567", "07:08:09.1234567"),
    ("datetime", "DATETIME", "infinity", "infinity"),
    ("time", "TIME", "08:30", "08:30:00"),
    ("time", "TIME", "08:30:00.000", "08:30:00"),
    ("time", "TIME", "08:30:00.5", "08:30:00.500000"),
    ("time", "TIME", "half past", "half past"),
    ("bool", "BOOLEAN", 1, True),
    ("bool", "bool", 0, False),
    ("bool", "boolean", "t", True),
    ("bool", "boolean", "f", False),
    ("bool", "TEXT", "true", True),
    ("bool", "TEXT", "FALSE", False),
    ("bool", "CHAR(1)", "Y", True),
    ("bool", "CHAR(1)", "N", False),
    ("bool", "CHAR(1)", "1", True),
    ("bool", "TEXT", "0", False),
    ("bool", "REAL", 1.0, True),
    ("bool", "BLOB", b"no", False),
    ("bool", "TEXT", "On", True),
    ("bool", "BOOLEAN", "maybe", "maybe"),
    ("bool", "BOOLEAN", 2, 2),
    ("bool", "BOOLEAN", "", ""),
    ("uuid", "char(32)", "0b54be9a6f5c4c8e9f0e0c6a4d3f8f10", "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"),
    ("uuid", "TEXT", "0B54BE9A-6F5C-4C8E-9F0E-0C6A4D3F8F10", "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"),
    ("uuid", "UUID", "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10", "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"),
    ("uuid", "BLOB", bytes(range(16)), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
    ("uuid", "BINARY(16)", bytes(range(16)), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
    ("uuid", "TEXT", "none yet", "none yet"),
    ("int", "INTEGER", 5, 5),
    ("int", "INTEGER", "many", "many"),
    ("int", "INTEGER", 1.5, 1.5),
    ("int", "TEXT", "5", 5),
    ("int", "VARCHAR(9)", "05", 5),
    ("int", "TEXT", "-9223372036854775808", -(2**63)),
    ("int", "", "12", 12),
    ("float", "REAL", "n/a", "n/a"),
    ("float", "TEXT", "1.50", 1.5),
    ("float", "FLOAT", 2, 2.0),
    ("decimal", "decimal", 19.9, "19.9"),
    ("decimal", "decimal(10, 2)", 5, "5"),
    ("decimal", "TEXT", "19.9", "19.9"),
    ("decimal", "DECIMAL", "dear", "dear"),
    ("str", "TEXT", b"in bytes", "in bytes"),
    ("str", "varchar(150)", "plain", "plain"),
    ("str", "STRING", 123, "123"),
    ("str", "STRING", "text", "text"),
    ("str", "", 123, "123"),
    ("str", "", 1.5, "1.5"),
    ("str", "", b"in bytes", "in bytes"),
    ("str", "INTEGER", 7, "7"),
    ("str", "TEXT COLLATE NOCASE", b"Bytes", "Bytes"),
    ("int", "TEXT", b"in bytes", "in bytes"),
    ("float", "TEXT", b"in bytes", "in bytes"),
    ("decimal", "DECIMAL", b"in bytes", "in bytes"),
    ("decimal", "TEXT", b"in bytes", "in bytes"),
    ("bool", "BOOLEAN", b"in bytes", "in bytes"),
    ("bool", "TEXT", b"in bytes", "in bytes"),
    ("date", "DATE", b"in bytes", "in bytes"),
    ("datetime", "TEXT", b"in bytes", "in bytes"),
    ("time", "TIME", b"in bytes", "in bytes"),
    ("uuid", "TEXT", b"in bytes", "in bytes"),
    ("uuid", "BLOB", b"no uuid in bytes..", "no uuid in bytes.."),
    ("uuid", "BLOB", b"0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10", "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"),
    ("bytes", "BLOB", "text", "dGV4dA=="),
    ("bytes", "BLOB", b"\x00\xff", "AP8="),
]


@pytest_twisted.ensureDeferred
async def test_contact_f05_f06_what_is_shown_finds_it(tmp_path: Path, make_store: Callable[..., Store]):
    """Whatever a column holds is read, found by an equal filter with what was read, by no other, and can be changed."""
    models = "\n".join(
        f"T{number}: {{id: {{type: int, pk: true}}, v: {kind}}}" for number, (kind, *_) in enumerate(SHOWN)
    )
    statements: list[Any] = []
    for number, (_, declared, stored, _) in enumerate(SHOWN):
        statements.append(f"CREATE TABLE T{number} (id INTEGER PRIMARY KEY, v {declared})")
        statements.append((f"INSERT INTO T{number} (v) VALUES (?)", [(stored,), (None,)]))
    store = await filled(make_store, tmp_path / "v.sqlite3", models, *statements)
    with rows_of_a_test() as row:
        for number, (kind, declared, stored, shown) in enumerate(SHOWN):
            model = f"T{number}"
            with row(f"{kind} {declared} {stored!r}"):
                (read, null) = await store.read(1, model)
                assert (read["v"], type(read["v"]), null["v"]) == (shown, type(shown), None)
                assert await ids(store, model, {"v": shown}) == [1]
                assert await ids(store, model, {"v__in": [shown, None]}) == [1, 2]
                assert await ids(store, model, {"v__ne": shown}) == [2]
                assert await ids(store, model, {"$not": {"v": shown}}) == [2]
                # It is in a row, though in none that is asked for: no mistake.
                assert await ids(store, model, {"v__ne": shown, "id": 1}) == []
                assert await ids(store, model, {"v__not_in": [shown], "id": 1}) == []
                assert await ids(store, model, {"v": shown, "id": 2}) == []
                assert await store.update(1, model, {"v": shown, "id": 2}, {"v": None}) == {"updated": 0}
                assert await ids(store, model, {"v__isnull": True}) == [2]
                if kind != "bytes":
                    assert await ids(store, model, order_by="v") == [1, 2]
                assert await store.update(1, model, {"v": shown}, {"v": None}) == {"updated": 1}
                assert await ids(store, model, {"v__isnull": True}) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_contact_f06_what_nobody_wrote_is_a_mistake(tmp_path: Path, make_store: Callable[..., Store]):
    """A value of another kind that no row has is refused by name, as on every other database."""
    kinds = {"bool": "yes", "int": "x", "float": "x", "decimal": "x", "date": "x", "time": "x", "uuid": "x"}
    schema = "t: {id: {type: int, pk: true}, " + ", ".join(f"{kind}_: {kind}" for kind in kinds) + "}"
    store = await filled(make_store, tmp_path / "v.sqlite3", schema)
    await store.create(1, "t", {"int_": 5, "bool_": True})
    with rows_of_a_test() as row:
        for kind, value in kinds.items():
            for where in ({f"{kind}_": value}, {f"{kind}_": [value]}, {f"{kind}_": {}}, {f"{kind}_": "\ud800"}):
                with row(f"{kind} {where}"), pytest.raises(Invalid, match=f"^{kind}_ "):
                    await store.read(1, "t", where)
        with row("id"), pytest.raises(Invalid, match="^id must be a whole number"):
            await store.read(1, "t", "first")
        with row("a write"), pytest.raises(Invalid, match="^int_ must be a whole number"):
            await store.create(1, "t", {"int_": "x"})


@pytest_twisted.ensureDeferred
async def test_contact_f05_texts_are_kept_as_they_are_or_refused(tmp_path: Path, make_store: Callable[..., Store]):
    """A column that makes numbers of texts takes those that stay what they are; the others are refused by name."""
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "t: {id: {type: int, pk: true}, s: str, i: {type: str, column: i}, r: str}",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, s STRING, i INTEGER, r DOUBLE)",
    )
    with rows_of_a_test() as row:
        for name, kept, refused in (
            (
                "s",
                ["text", "12", "-5", "", "1.5", "0x10", "1 2", "\u0661"],
                ["0123", "1e5", "+5", "1.50", " 7", ".5"],
            ),
            ("i", ["text", "12"], ["007", "5.0"]),
            ("r", ["text", "1.5", "2.0"], ["2", "1.10", "00"]),
        ):
            for value in kept:
                with row(f"{name} {value!r}"):
                    made = await store.create(1, "t", {name: value})
                    assert made[name] == value
                    assert await ids(store, "t", {name: value, "id": made["id"]}) == [made["id"]]
            for value in refused:
                with row(f"{name} {value!r}"), pytest.raises(Invalid, match=f"^{name} would be kept as"):
                    await store.create(1, "t", {name: value})


DJANGO = """
CREATE TABLE "auth_user" ("id" integer NOT NULL PRIMARY KEY AUTOINCREMENT, "password" varchar(128) NOT NULL,
  "last_login" datetime NULL, "is_superuser" bool NOT NULL, "username" varchar(150) NOT NULL UNIQUE,
  "date_joined" datetime NOT NULL, "balance" decimal NOT NULL, "born" date NULL, "wakes" time NULL,
  "settings" text NOT NULL CHECK ((JSON_VALID("settings") OR "settings" IS NULL)), "key" char(32) NOT NULL UNIQUE,
  "visits" integer unsigned NOT NULL CHECK ("visits" >= 0));
INSERT INTO auth_user VALUES (1, 'pbkdf2', NULL, 1, 'ann', '2024-05-06 07:08:09.123456', '19.90', '1990-01-02',
  '08:30:00', '{"a": [1]}', '0b54be9a6f5c4c8e9f0e0c6a4d3f8f10', 3);
"""
DJANGO_SCHEMA = """
User:
  _model: {table: auth_user}
  id:       {type: int, pk: true}
  password: {type: str, hidden: true, default: ""}
  login:    {type: datetime, column: last_login}
  admin:    {type: bool, column: is_superuser, required: true, default: false}
  username: {type: str, unique: true, required: true}
  joined:   {type: datetime, column: date_joined, default: now}
  balance:  {type: decimal, default: 0}
  born:     date
  wakes:    time
  settings: {type: json, default: {}}
  key:      {type: uuid, default: uuid, unique: true}
  visits:   {type: int, default: 0}
"""
RAILS = """
CREATE TABLE "users" ("id" integer PRIMARY KEY AUTOINCREMENT NOT NULL, "name" varchar, "admin" boolean DEFAULT 'f',
  "active" boolean DEFAULT 1 NOT NULL, "price" decimal(10,2), "data" json, "created_at" datetime(6) NOT NULL,
  "updated_at" datetime NOT NULL);
CREATE UNIQUE INDEX "index_users_on_name" ON "users" ("name");
INSERT INTO users VALUES (1, 'ann', 't', 1, 19.9, '{"a":1}', '2024-05-06 07:08:09.123456', '2024-05-06 07:08:09'),
  (2, 'bob', 'f', 0, 5, '5', '2024-05-06 07:08:09.000000', '2024-05-06 07:08:09.000000');
"""
RAILS_SCHEMA = """
users: {id: {type: int, pk: true}, name: {type: str, unique: true}, admin: bool, active: {type: bool, default: true},
  price: decimal, data: json, created_at: {type: datetime, default: now}, updated_at: {type: datetime, default: now}}
"""
PRISMA = """
CREATE TABLE "Post" ("id" TEXT NOT NULL PRIMARY KEY, "createdAt" DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  "updatedAt" DATETIME NOT NULL, "published" BOOLEAN NOT NULL DEFAULT false, "price" DECIMAL NOT NULL, "blob" BLOB,
  "views" BIGINT NOT NULL, "authorId" INTEGER, CONSTRAINT "Post_authorId_fkey" FOREIGN KEY ("authorId")
  REFERENCES "User" ("id") ON DELETE SET NULL ON UPDATE CASCADE);
CREATE TABLE "User" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "born" DATETIME);
INSERT INTO "User" VALUES (1, 157766400000);
INSERT INTO "Post" VALUES ('cl1', 1714979289123, '2024-05-06 07:08:09', 1, 19.9, X'00ff', 9007199254740993, 1);
"""
PRISMA_SCHEMA = """
Post: {id: {type: str, pk: true}, createdAt: {type: datetime, default: now}, updatedAt: {type: datetime, default: now},
  published: {type: bool, default: false}, price: {type: decimal, default: 0}, blob: bytes,
  views: {type: int, default: 0}, authorId: {type: int, fk: User.id}}
User: {id: {type: int, pk: true}, born: datetime}
"""


@pytest_twisted.ensureDeferred
async def test_contact_f05_a_file_of_django(tmp_path: Path, make_store: Callable[..., Store]):
    """Django's columns are read, found, and written as Django writes them."""
    path = tmp_path / "db.sqlite3"
    store = await filled(make_store, path, DJANGO_SCHEMA, DJANGO)
    ann = {
        "id": 1,
        "login": None,
        "admin": True,
        "username": "ann",
        "joined": "2024-05-06T07:08:09.123456Z",
        "balance": "19.9",
        "born": "1990-01-02",
        "wakes": "08:30:00",
        "settings": {"a": [1]},
        "key": "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10",
        "visits": 3,
    }
    assert await store.read(1, "User") == [ann]
    for name in ann.keys() - {"settings"}:
        assert await ids(store, "User", {name: ann[name]}) == [1], name
    given = {name: value for name, value in ann.items() if name != "id"}
    assert await store.update(1, "User", 1, given) == {"updated": 1}
    assert await store.upsert(1, "User", {**given, "visits": 4}, ["key"]) == {**ann, "visits": 4}
    other = {**given, "username": "bob", "key": "1b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"}
    made = await store.create(1, "User", other)
    assert made == {"id": made["id"], **other}
    django = sqlite3.connect(path)
    rows = django.execute('SELECT date_joined, is_superuser, balance, born, wakes, "key" FROM auth_user').fetchall()
    django.close()
    keys = ["0b54be9a6f5c4c8e9f0e0c6a4d3f8f10", "1b54be9a6f5c4c8e9f0e0c6a4d3f8f10"]
    assert rows == [("2024-05-06 07:08:09.123456", 1, 19.9, "1990-01-02", "08:30:00", key) for key in keys]


@pytest_twisted.ensureDeferred
async def test_contact_f06_a_file_of_rails(tmp_path: Path, make_store: Callable[..., Store]):
    """Truth values of both ages of Rails, datetimes with six digits and with none."""
    store = await filled(make_store, tmp_path / "development.sqlite3", RAILS_SCHEMA, RAILS)
    ann, bob = await store.read(1, "users")
    assert (ann["admin"], ann["active"], bob["admin"], bob["active"]) == (True, True, False, False)
    assert (bob["created_at"], bob["updated_at"], bob["data"], bob["price"]) == (MOMENT, MOMENT, 5, "5")
    assert await ids(store, "users", {"updated_at": MOMENT}) == [1, 2]
    assert await ids(store, "users", {"admin": True}) == await ids(store, "users", {"active": True}) == [1]
    assert await ids(store, "users", order_by="admin DESC") == [1, 2]
    assert await ids(store, "users", {"created_at__gt": MOMENT}) == [1]
    await store.update(1, "users", 2, {"admin": True})
    assert await ids(store, "users", {"admin": True}) == [1, 2]


@pytest_twisted.ensureDeferred
async def test_contact_f05_a_file_of_prisma(tmp_path: Path, make_store: Callable[..., Store]):
    """Datetimes in milliseconds, beside those that the database made itself."""
    store = await filled(make_store, tmp_path / "dev.db", PRISMA_SCHEMA, PRISMA)
    (post,) = await store.read(1, "Post")
    assert post["createdAt"] == "2024-05-06T07:08:09.123000Z"
    assert post["updatedAt"] == MOMENT
    assert (post["published"], post["price"], post["blob"], post["views"]) == (True, "19.9", "AP8=", 2**53 + 1)
    assert await store.read(1, "User") == [{"id": 1, "born": "1975-01-01T00:00:00Z"}]
    assert await ids(store, "User", {"born__lt": "1980-01-01"}) == [1]
    for name, value in post.items():
        assert [row["id"] for row in await store.read(1, "Post", {name: value})] == ["cl1"], name
    made = await store.create(1, "Post", {"id": "cl2", "authorId": 1, "createdAt": post["createdAt"]})
    assert [row["id"] for row in await store.read(1, "Post", {"createdAt": made["createdAt"]})] == ["cl1", "cl2"]


DECLARED = ("INTEGER", "BIGINT", "TEXT", "VARCHAR(40)", "REAL", "NUMERIC", "DECIMAL(10, 2)", "BLOB", "")
#: Where numbers get lost: around what doubles and 64 bits hold, and beyond.
EDGES = (0, 1, 2**53, 2**63 - 2, 10**15, 10**17, 123456789012345678)


def random_number(chance: random.Random, kind: str) -> Any:
    number = chance.choice(EDGES) + chance.randrange(-2, 3)
    number = max(-(2**63), min(2**63 - 1, number * chance.choice((1, -1))))
    if kind == "int":
        return number
    if kind == "float":
        return chance.choice((float(number), number / 7, number + 0.1, 5e-324, 1.7e308, 0.1 + 0.2, 1e22, -0.5, 1e15))
    digits = chance.randrange(1, 39)
    whole = "".join(chance.choice("0123456789") for _ in range(digits))
    place = chance.randrange(digits + 1)
    text = chance.choice((str(number), f"{number}.5", f"{whole[:place] or 0}.{whole[place:]}0", whole, "0.10", "1E+30"))
    return chance.choice(("", "-")) + text.removeprefix("-")


def stored_form(chance: random.Random, value: Any, declared: str) -> Any:
    """A value as another program may store it."""
    text = str(value)
    forms = [value, text, f"0{text}" if text[0] not in "-" else text, f" {text}", float(value)]
    if isinstance(value, str) and "." in value:
        forms.append(f"{value}00")
    if declared in ("TEXT", "VARCHAR(40)", "BLOB", ""):
        forms.append(text.encode())
    chosen = chance.choice([*forms, 7, 2.5, "many"])
    return str(chosen) if isinstance(chosen, int) and not -(2**63) <= chosen < 2**63 else chosen


def number_of(shown: Any) -> Decimal | None:
    try:
        return None if shown == "many" or shown is None else Decimal(str(shown))
    except ArithmeticError:
        return None


@pytest.mark.parametrize("kind", ["int", "float", "decimal"])
@pytest_twisted.ensureDeferred
async def test_contact_numbers_of_any_kind_in_columns_of_any_type(
    tmp_path: Path, make_store: Callable[..., Store], kind: str
):
    """What is written is what is read, or is refused by name; each filter finds what it asks for by what was read."""
    chance = random.Random(kind)
    models = []
    statements = []
    for number, declared in enumerate(DECLARED):
        models.append(f"T{number}: {{id: {{type: int, pk: true}}, v: {{type: {kind}, index: {number % 2 == 0}}}}}")
        statements.append(f"CREATE TABLE T{number} (id INTEGER PRIMARY KEY, v {declared})")
        statements.append(f"CREATE INDEX i{number} ON T{number} (v)")
        rows = [(stored_form(chance, random_number(chance, kind), declared),) for _ in range(15)]
        statements.append((f"INSERT INTO T{number} (v) VALUES (?)", rows))
    models.append(f"Own: {{id: {{type: int, pk: true}}, v: {{type: {kind}, unique: true}}}}")
    store = await filled(make_store, tmp_path / "v.sqlite3", "\n".join(models), *statements)
    with rows_of_a_test() as row:
        for model, declared in [*((f"T{number}", declared) for number, declared in enumerate(DECLARED)), ("Own", "")]:
            for _ in range(10):
                value = random_number(chance, kind)
                with row(f"create {model} {declared} {value!r}"):
                    try:
                        made = await store.create(1, model, {"v": value})
                    except Invalid as error:
                        assert list(error.fields) == ["v"] and model != "Own"
                        assert declared not in ("TEXT", "VARCHAR(40)", "BLOB", "")
                        continue
                    except Conflict:
                        assert model == "Own"
                        continue
                    assert number_of(made["v"]) == number_of(value) and type(made["v"]) is type(value), made
            shown = {each["id"]: each["v"] for each in await store.read(1, model)}
            numbers = {number: number_of(value) for number, value in shown.items()}
            if model == "Own":
                assert len(set(numbers.values())) == len(numbers)
            asked = chance.sample(list(shown.values()), 6) + [random_number(chance, kind) for _ in range(4)]
            for value in asked:
                wanted = number_of(value)
                same = [each for each, v in numbers.items() if v == wanted and (v is not None or shown[each] == value)]
                with row(f"{model} {declared} {value!r}"):
                    try:
                        assert await ids(store, model, {"v": value}) == same
                    except Invalid:
                        assert not same
                        continue
                    assert await ids(store, model, {"v__in": [value] * 3}) == same
                    assert await ids(store, model, {"$not": {"v__ne": value}}) == same
                    assert await ids(store, model, {"v__in": [value, *asked]}) == sorted(
                        each
                        for each, v in numbers.items()
                        if any(shown[each] == a or (v is not None and v == number_of(a)) for a in [value, *asked])
                    )
                    if wanted is None or (kind == "int" and type(value) is not int):
                        continue
                    try:
                        store.schema.models[model].fields["v"].kind.parse(value)
                    except ValueError:
                        continue
                    less = [each for each, v in numbers.items() if v is not None and v < wanted]
                    more = [each for each, v in numbers.items() if v is None or v > wanted]
                    assert await ids(store, model, {"v__lt": value}) == less
                    assert await ids(store, model, {"v__lte": value}) == sorted(less + same)
                    assert await ids(store, model, {"v__gt": value}) == more
                    assert await ids(store, model, {"v__gte": value}) == sorted(more + same)
                    assert await ids(store, model, {"v__between": [value, value]}) == same
            with row(f"order of {model} {declared}"):
                ordered = await ids(store, model, order_by="v")
                expected = sorted(numbers, key=lambda n: (numbers[n] is None, numbers[n] or 0, n))
                assert [numbers[n] for n in ordered] == [numbers[n] for n in expected]


@pytest_twisted.ensureDeferred
async def test_contact_what_a_column_would_change_is_refused(tmp_path: Path, make_store: Callable[..., Store]):
    """Texts, JSON, floats and defaults that a column makes other values of are refused by name, and others are kept."""
    schema = "t: {id: {type: int, pk: true}, s: str, j: json, r: json, f: float, u: uuid}"
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        schema,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, s NUMERIC, j JSON, r REAL, f VARCHAR(30), u UUID)",
    )
    hexadecimal = "12345678901234567890123456789012"
    kept = 1
    with rows_of_a_test() as row:
        for name, values in {
            "s": ["-5", "9223372036854775807", "1.5", "0.0001", "text", "1e5x", "12345678901234.5", "2024-01-01"],
            "j": [2**63 - 1, 2**70, 0.1 + 0.2, "12", "12345678901234567890", [2**70], None, 1e-7],
            "r": [2**53, 10**22, 1.5, "a"],
            "f": [0.1 + 0.2, 1e300, 5e-324, -0.5, 1e22],
            "u": ["12345678-9012-3456-7890-123456789012"],
        }.items():
            for value in values:
                with row(f"{name} {value!r}"):
                    made = await store.create(1, "t", {name: value})
                    kept = made["id"]
                    assert made[name] == value
                    assert (await store.read(1, "t", made["id"]))[0][name] == value
                    if value is not None and name not in ("j", "r"):
                        assert await ids(store, "t", {name: value}) == [made["id"]]
        with row("a UUID of digits"):
            assert len(await ids(store, "t", {"u": hexadecimal})) == 1
        for name, values in {
            "s": [
                "1e99999",
                "9223372036854775808",
                str(0.1 + 0.2),
                "1e+16",
                "-0",
                "2.0",
                "1.50",
                "0.00001",
                " 1",
                "+1",
            ],
            "j": [2**63 + 1, 10**30, 10**400, -(2**64) - 1],
            "r": [2**53 + 1],
        }.items():
            for value in values:
                with row(f"{name} {value!r}"), pytest.raises(Invalid) as invalid:
                    await store.create(1, "t", {name: value})
                assert list(invalid.value.fields) == [name]
        assert await ids(store, "t", {"id__gt": kept}) == []
    with pytest.raises(ConfigError, match="model t, field s: its default would be kept as 123, because"):
        await make_store(
            store.url, load_schema("t: {id: {type: int, pk: true}, s: {type: str, default: '0123'}}")
        ).start()


@pytest_twisted.ensureDeferred
async def test_contact_a_column_for_any_type_of_a_strict_table(tmp_path: Path, make_store: Callable[..., Store]):
    """It keeps a text as a text, where one that is declared so in another table makes a number of it."""
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "a: {id: {type: int, pk: true}, v: str, n: int}\nb: {id: {type: int, pk: true}, v: str}\n"
        "w: {_model: {read_only: true}, id: {type: int, pk: true}, v: str}",
        "CREATE TABLE a (id INTEGER PRIMARY KEY, v ANY, n ANY) STRICT; CREATE VIEW w AS SELECT id, v FROM a;"
        "CREATE TABLE b (id INTEGER PRIMARY KEY, v ANY);"
        "INSERT INTO a VALUES (1, 42, 1), (2, '42', '1'), (3, '042', 2), (4, 42.0, 1.0), (5, x'3432', NULL);",
    )
    for model in ("a", "w"):
        assert [row["v"] for row in await store.read(1, model, order_by="id")] == ["42", "42", "042", "42.0", "42"]
        for value, found in (("42", [1, 2, 5]), ("042", [3]), ("42.0", [4])):
            assert await ids(store, model, {"v": value}) == found
            assert await ids(store, model, {"v__in": [value]}) == found
            others = [number for number in range(1, 6) if number not in found]
            assert await ids(store, model, {"v__ne": value}) == others
            assert await ids(store, model, {"v__not_in": [value]}) == others
    assert (await store.create(1, "a", {"v": "0123"}))["v"] == "0123"
    assert await ids(store, "a", {"n": 1}) == [1, 2, 4]
    with pytest.raises(Invalid, match="would be kept as 123"):
        await store.create(1, "b", {"v": "0123"})


@pytest_twisted.ensureDeferred
async def test_contact_texts_of_numbers_are_found_as_they_are_shown(tmp_path: Path, make_store: Callable[..., Store]):
    """In a column of numbers or of no type each value is found by its text, and by no other one's."""
    values = [5, 5.0, 0.1 + 0.2, 0.3, 1e300, 1e22, 2**53 + 1, 9007199254740993.0, 2**63 - 1, -(2**63), 1e-7, -1.5, 0, 1]
    values += [float("inf"), float("-inf"), 1 / 3, 123456789012345678.0, 1e15, b"5", "abc", "5x", "", 5e-324]
    for declared in ("NUMERIC", "", "REAL", "INTEGER", "BLOB"):
        store = await filled(
            make_store,
            tmp_path / f"v{declared}.sqlite3",
            "t: {id: {type: int, pk: true}, v: str}",
            f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared}); CREATE INDEX i ON t (v)",
            ("INSERT INTO t (v) VALUES (?)", [(value,) for value in values]),
        )
        rows = await store.read(1, "t")
        with rows_of_a_test() as row:
            for shown in {each["v"] for each in rows}:
                same = [each["id"] for each in rows if each["v"] == shown]
                with row(f"{declared} {shown}"):
                    assert await ids(store, "t", {"v": shown}, order_by="id") == same
                    assert await ids(store, "t", {"v__in": [shown]}, order_by="id") == same
                    assert len(await ids(store, "t", {"v__ne": shown})) == len(rows) - len(same)


@pytest_twisted.ensureDeferred
async def test_contact_times_are_found_in_every_form_that_a_filter_takes(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """A text that a filter takes for a time is shown as that time."""
    texts = ["05", "05:00", "05:00:00", "0500", "050000.5", "05:00:00.5", "050000.0", "5", "24:00:00", "abc"]
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "t: {id: {type: int, pk: true}, v: time}",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)",
        ("INSERT INTO t (v) VALUES (?)", [(text,) for text in texts]),
    )
    rows = await store.read(1, "t")
    with rows_of_a_test() as row:
        for text, found in zip(texts, rows, strict=True):
            for asked in (text, found["v"]):
                with row(asked):
                    expected = [each["id"] for each in rows if each["v"] == found["v"]]
                    assert await ids(store, "t", {"v": asked}, order_by="id") == expected


@pytest_twisted.ensureDeferred
async def test_contact_an_upsert_into_a_view_with_triggers(tmp_path: Path, make_store: Callable[..., Store]):
    """SQLite has none; create, update and delete go through the triggers."""
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "v: {id: {type: int, pk: true}, t: str}",
        "CREATE TABLE a (id INTEGER PRIMARY KEY, t TEXT); CREATE VIEW v AS SELECT id, t FROM a;"
        "CREATE TRIGGER i INSTEAD OF INSERT ON v BEGIN INSERT INTO a VALUES (new.id, new.t); END;"
        "CREATE TRIGGER u INSTEAD OF UPDATE ON v BEGIN UPDATE a SET t = new.t WHERE id = old.id; END;"
        "CREATE TRIGGER d INSTEAD OF DELETE ON v BEGIN DELETE FROM a WHERE id = old.id; END;"
        "INSERT INTO a VALUES (1, 'a')",
    )
    with pytest.raises(Invalid, match="does not support this upsert of v"):
        await store.upsert(1, "v", {"id": 1, "t": "b"})
    assert await store.read(1, "v") == [{"id": 1, "t": "a"}]


@pytest_twisted.ensureDeferred
async def test_contact_an_endless_number_is_shown_by_its_name(tmp_path: Path, make_store: Callable[..., Store]):
    """In a column of another kind it is no null, and is found by what is shown."""
    kinds = ("bool", "date", "datetime", "time", "uuid", "float", "decimal")
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "\n".join(f"t_{kind}: {{id: {{type: int, pk: true}}, v: {kind}}}" for kind in kinds),
        *(
            f"CREATE TABLE t_{kind} (id INTEGER PRIMARY KEY, v NUMERIC);"
            f"INSERT INTO t_{kind} VALUES (1, 1e999), (2, -1e999), (3, NULL), (4, 7)"
            for kind in kinds
        ),
    )
    with rows_of_a_test() as row:
        for kind in kinds:
            with row(kind):
                shown = [each["v"] for each in await store.read(1, f"t_{kind}", order_by="id")]
                assert shown[:3] == ["Infinity", "-Infinity", None]
                for number in (0, 1):
                    assert await ids(store, f"t_{kind}", {"v": shown[number]}) == [number + 1]
                    assert number + 1 not in await ids(store, f"t_{kind}", {"v__ne": shown[number]})


@pytest_twisted.ensureDeferred
async def test_contact_json_that_json_cannot_say_is_shown_as_its_own_text(
    tmp_path: Path, make_store: Callable[..., Store]
):
    """Half of a character, numbers that no double is, deep values, as PostgreSQL shows them, also after an upsert."""
    deep, shallow = "[" * 65 + "]" * 65, "[" * 64 + "]" * 64
    shown: dict[Any, Any] = {
        '{"bio":"hi \\ud83d"}': '{"bio":"hi \\ud83d"}',
        '{"\\uDE00": 1}': '{"\\uDE00": 1}',
        '"\\ud83d"': '"\\ud83d"',
        b'["\\ud83d"]': '["\\ud83d"]',
        '"\\ud83d\\ude00"': "😀",
        '{"a":1e400}': {"a": "1e400"},
        '[-1e999, {"b": 1E+400}]': ["-1e999", {"b": "1E+400"}],
        "[0.1234567890123456789]": ["0.1234567890123456789"],
        "[NaN, Infinity, -Infinity]": ["NaN", "Infinity", "-Infinity"],
        "NaN": "NaN",
        '"NaN \\ud83d"': '"NaN \\ud83d"',
        "9" * 4001: "9" * 4001,
        deep: deep,
        "[" * 100_000: "[" * 100_000,
        shallow: json.loads(shallow),
        "1e400": "1e400",
        "[1,2": "[1,2",
    }
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "t: {id: {type: int, pk: true}, k: {type: int, unique: true}, n: int, v: json}",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER UNIQUE, n INTEGER, v TEXT)",
        ("INSERT INTO t (k, v) VALUES (?, ?)", list(enumerate(shown))),
    )
    with rows_of_a_test() as row:
        for number, (text, value) in enumerate(shown.items()):
            with row(text[:40]):
                [made] = await store.read(1, "t", {"k": number})
                assert json.dumps(made["v"]) == json.dumps(value)
                # Such that it can be sent.
                json.dumps(made, ensure_ascii=False, allow_nan=False).encode()
                changed = await store.upsert(1, "t", {"k": number, "n": 2}, ["k"])
                assert changed == made | {"n": 2}


#: What clients ask for, of each JSON type: the forms that SQLite takes for one number, and what it takes for none.
ASKED: list[Any] = [
    *("1", "1 ", " 1", "1\n", "\t1\v", "+1", "01", "1.0", "1.", "1e0", "10e-1", "-1", "-01", "0", "-0", "+0", "00"),
    *("1.5", "01.5", " 1.5", "15e-1", "1_0", "10", "\u0661", "", " ", "abc", "abc ", "t", "true", "0" * 1100 + "1"),
    *("99999999999999999999", "099999999999999999999", "+99999999999999999999", "99999999999999999999.0", "1e400"),
    *("Infinity", "Inf", "inf", " Infinity", "NaN", "2024-05-06", "2024-05-06 "),
    *("a0eebc999c0b4ef8bb6d6bb9bd380a11", " a0eebc999c0b4ef8bb6d6bb9bd380a11", "9007199254740993", "9007199254740992 "),
    *(0, 1, -1, 10, 15, 2**53, 2**53 + 1, 10**18, 10**20, 0.0, -0.0, 1.0, 1.5, 1e18, 1e20, 0.12345678901234567, True),
]
JSON_TYPES = (str, int, float, bool)
#: What other programs keep.
KEPT: list[Any] = [
    *(0, 1, -1, 10, 1.0, 1.5, 1e20, 9e999, 2**53, 2**53 + 1, 10**18, "1", " 1", "01", "+1", "1.0", "abc", "abc ", ""),
    *("99999999999999999999", " 99999999999999999999", "1e400", "Infinity", "Inf", "t", "0x1", b"1", b"abc", "1.50"),
    *("0.12345678901234567", "9007199254740993", "2024-05-06", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None),
]
#: The numbers of the rows of those that have no end, some of them in columns of numbers only.
ENDLESS = {number for number, value in enumerate(KEPT, 1) if value in (9e999, "1e400", "Infinity", "Inf")}


def alike(one: Any, other: Any, kind: str) -> bool:
    """Whether JSON values are the same to a client, by what they are in a field of ``kind``."""
    if kind == "decimal":
        try:
            one, other = KINDS["decimal"].parse(one), KINDS["decimal"].parse(other)
        except ValueError:
            pass
    numbers = kind != "int" and {type(one), type(other)} == {int, float}
    return one == other and (type(one) is type(other) or numbers)


@pytest.mark.parametrize("declared", ["INTEGER", "REAL", "TEXT", ""])
@pytest_twisted.ensureDeferred
async def test_contact_a_filter_finds_what_is_shown_as_it_was_asked_and_nothing_else(
    tmp_path: Path, make_store: Callable[..., Store], declared: str
):
    """A text that SQLite would take for a number names no row of that number, nor does a number name one of a text."""
    kinds = ["int", "float", "decimal", "bool", "uuid", "datetime"]
    store = await filled(
        make_store,
        tmp_path / "v.sqlite3",
        "".join(f"{kind}s: {{id: {{type: int, pk: true}}, v: {kind}}}\n" for kind in kinds),
        *(
            (f"INSERT INTO {kind}s (v) VALUES (?)", [(value,) for value in KEPT])
            if made
            else f"CREATE TABLE {kind}s (id INTEGER PRIMARY KEY, v {declared}); CREATE INDEX {kind}i ON {kind}s (v)"
            for kind in kinds
            for made in (False, True)
        ),
    )
    with rows_of_a_test() as row:
        for kind in kinds:
            shown = {each["id"]: each["v"] for each in await store.read(1, f"{kind}s")}
            for asked in {repr(each): each for each in (*ASKED, *shown.values()) if type(each) in JSON_TYPES}.values():
                with row(f"{kind} {asked!r:.40}"):
                    try:
                        named = KINDS[kind].show(KINDS[kind].parse(asked))
                    except ValueError:
                        named = asked
                    expected = [number for number, value in shown.items() if alike(value, named, kind)]
                    try:
                        found = await ids(store, f"{kind}s", {"v": asked}, order_by="id")
                    except Invalid:
                        found = []
                    # A column of texts keeps infinity as Inf, which is found as the infinity that it is, too.
                    assert set(found) - (ENDLESS if asked == "Infinity" else set()) <= set(expected)
                    # What has no end, and numbers that may be those of a neighbour, are not always found again.
                    if isinstance(asked, str) or abs(asked) < 2**53:
                        assert {each for each in expected if type(KEPT[each - 1]) is not bytes} - ENDLESS <= set(found)
