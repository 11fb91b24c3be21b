"""Lists of a filter find the same rows whether their values are parameters of their own or one parameter together."""

from __future__ import annotations

import random
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_twisted
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from twisted.internet.threads import deferToThread

from zcomm.data.filters import MAX_APART, MAX_LIST, MAX_TEXTUAL, parse_filter
from zcomm.data.requests import make_plan, parse_command
from zcomm.data.schema import load_schema
from zcomm.data.sql.statements import MAX_STATEMENT, MAX_STATEMENTS, Statement, Statements
from zcomm.data.sql.tables import build_tables
from zcomm.data.store import Store
from zcomm.errors import Invalid

UUID = "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"
#: By the type of a field, what other programs may have written in a column of it.
STORED: dict[str, list[Any]] = {
    "str": [
        "a",
        "A",
        "é",
        "a\0b",
        "\0",
        "",
        " 1",
        "1",
        1,
        1.5,
        b"a",
        b"\xff",
        b"1",
        "'\"\\",
        "\u2028\U0001f600",
        float("inf"),
    ],
    "int": [0, 1, -(2**63), 2**63 - 1, 2**53 + 1, "1", "01", "x", 1.0, 1.5, "a\0b", b"1", True],
    "float": [
        0.1,
        1 / 3,
        5e-324,
        1.7976931348623157e308,
        9007199254740993.0,
        float("inf"),
        float("-inf"),
        "0.1",
        "x",
        2,
    ],
    "decimal": ["19.90", "19.9", "0.1", 0.1, "1e400", "12345678901234567890.123", 3, "x", "1" * 38],
    "bool": [0, 1, "t", "F", "yes", "x", 2, b"1"],
    "date": ["2024-05-06", "2024-05-06T00:00:00Z", 1714953600000, "infinity", "x", "0044-03-15 BC"],
    "datetime": [
        "2024-05-06 07:08:09",
        "2024-05-06T07:08:09.5Z",
        "2024-05-06 09:08:09+02:00",
        1714979289,
        2460436.8,
        "x",
    ],
    "time": ["08:30", "08:30:00", "0830", "24:00:00", "2000-01-01 08:30:00", "x"],
    "uuid": [
        UUID,
        UUID.upper(),
        UUID.replace("-", ""),
        bytes.fromhex(UUID.replace("-", "")),
        f"{{{UUID}}}",
        UUID[:-2] + "aB",
        "x",
    ],
    "bytes": [b"\0\xff", b"a", "a", b"", 1],
}
#: By the type of a field, types of columns in SQLite.
DECLARED = {
    "str": ["TEXT", "TEXT COLLATE NOCASE", "BLOB", "INTEGER", ""],
    "int": ["INTEGER", "TEXT", "REAL", "BLOB"],
    "float": ["REAL", "TEXT", "NUMERIC", ""],
    "decimal": ["TEXT", "NUMERIC", "REAL"],
    "bool": ["INTEGER", "TEXT"],
    "date": ["TEXT", "INTEGER", ""],
    "datetime": ["TEXT", "INTEGER", "REAL"],
    "time": ["TEXT", ""],
    "uuid": ["TEXT", "BLOB", "CHAR(32)"],
    "bytes": ["BLOB", "TEXT"],
}


def check(store: Store, model: str, fields: list[str], more: dict[str, list[Any]]) -> int:
    """Ask for each value that is shown and for some others, alone and many times over.

    :return: how often they were found.
    """
    rows = store.handle_request({"action": "read", "model": model})
    found = 0
    for name in fields:
        shown = [row[name] for row in rows if row[name] is not None and type(row[name]) is not bytes]
        for value in [*shown, *more.get(name, ())]:
            for operator in ("in", "not_in"):
                for rest in ([], [None]):
                    answers = []
                    for many in (1, MAX_APART + 1):
                        where = {f"{name}__{operator}": [value] * many + rest}
                        try:
                            answer = store.handle_request(
                                {"action": "read", "model": model, "where": where, "fields": ["id"]}
                            )
                        except Invalid as error:
                            answer = str(error)
                        answers.append(answer)
                    assert answers[0] == answers[1], (name, operator, value, rest)
                    found += operator == "in" and type(answers[0]) is list and bool(answers[0])
        alone = [store.handle_request({"action": "read", "model": model, "where": {name: value}}) for value in shown]
        together = store.handle_request({"action": "read", "model": model, "where": {name: shown + shown[:1] * 20}})
        assert together == [row for row in rows if any(row in each for each in alone)], name
    return found


@pytest.mark.parametrize("indexed", [False, True], ids=["plain", "indexed"])
@pytest_twisted.ensureDeferred
async def test_b4_lists_of_sqlite(make_store: Callable[..., Store], tmp_path: Path, indexed: bool):
    """Whatever SQLite's columns hold is found in a list that is one parameter as in one that is many."""
    columns = {
        f"{kind}{number}": (kind, declared) for kind, each in DECLARED.items() for number, declared in enumerate(each)
    }
    file = sqlite3.connect(tmp_path / "test.sqlite3", isolation_level=None)
    listed = ", ".join(f"{name} {declared}" for name, (_, declared) in columns.items())
    file.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {listed})")
    for name, (kind, _) in columns.items():
        if indexed:
            file.execute(f"CREATE INDEX ix_{name} ON t ({name})")
        file.executemany(f"INSERT INTO t ({name}) VALUES (?)", [(value,) for value in STORED[kind]])
    file.close()
    fields = ", ".join(f"{name}: {kind}" for name, (kind, _) in columns.items())
    store = make_store(
        f"sqlite:///{tmp_path}/test.sqlite3", load_schema(f"t: {{id: {{type: int, pk: true}}, {fields}}}")
    )
    await store.start()
    some = {name: ["nowhere", 7, 0.25, "7.50", "2024-05-06", "2024-05-06T07:08:09Z"] for name in columns}
    assert await deferToThread(check, store, "t", list(columns), some) > 200


@pytest_twisted.ensureDeferred
async def test_b4_lists_of_postgresql(make_store: Callable[..., Store], postgresql_url: str):
    """Likewise in PostgreSQL, whatever the type and the collation of a column."""
    columns = {
        "s": ("str", "text", ["a", "", " ", '"\\{},NULL', "NULL", "é", "\U0001f600"]),
        "v": ("str", "varchar(9)", ["a", "b c", "{}"]),
        "p": ("str", "char(4)", ["a", "ab"]),
        "e": ("str", "citext", ["a", "B"]),
        "m": ("str", "mood", ["sad", "o,k"]),
        "c": ("str", "calm", ["sad", "o,k"]),
        "k": ("str", "name", ["a"]),
        "n": ("str", "text COLLATE nocase", ["a", "B"]),
        "i": ("str", "inet", ["10.0.0.1", "::1"]),
        "g": ("str", "int[]", ["{1,2}", "{}"]),
        "x": ("str", "box", ["(1,1),(0,0)"]),
        "w": ("str", "money", ["$1.50"]),
        "l": ("str", "interval", ["1 day", "25:00:00"]),
        "i2": ("int", "smallint", ["1", "-32768"]),
        "i8": ("int", "bigint", ["9223372036854775807"]),
        "f4": ("float", "real", ["0.1", "NaN", "Infinity"]),
        "f8": ("float", "float8", ["0.1", "NaN", "-Infinity", "5e-324"]),
        "d": ("decimal", "numeric", ["19.90", "NaN", "1e60"]),
        "dm": ("decimal", "money", ["2.50"]),
        "b": ("bool", "boolean", ["t", "f"]),
        "da": ("date", "date", ["2024-05-06", "infinity", "0044-03-15 BC"]),
        "ts": ("datetime", "timestamp", ["2024-05-06 07:08:09", "-infinity"]),
        "tz": ("datetime", "timestamptz", ["2024-05-06 07:08:09.5+02", "12000-01-01"]),
        "ti": ("time", "time", ["08:30", "24:00:00"]),
        "tt": ("time", "timetz", ["08:30+02"]),
        "u": ("uuid", "uuid", [UUID]),
        "by": ("bytes", "bytea", ["\\x00ff", "a"]),
    }
    listed = ", ".join(f"{name} {declared}" for name, (_, declared, _) in columns.items())
    parts = sa.make_url(postgresql_url)
    with psycopg.connect(
        host=parts.query["host"], port=parts.query["port"], user="postgres", dbname=parts.database
    ) as other:
        other.execute(
            "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'o,k'); CREATE DOMAIN calm AS mood;"
            "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
            f"CREATE TABLE t (id serial PRIMARY KEY, {listed})"
        )
        for name, (_, _, values) in columns.items():
            for value in values:
                other.execute(f"INSERT INTO t ({name}) VALUES (%s)", (value,))
    fields = ", ".join(f"{name}: {kind}" for name, (kind, _, _) in columns.items())
    store = make_store(postgresql_url, load_schema(f"t: {{id: {{type: int, pk: true}}, {fields}}}"))
    await store.start()
    some = {name: ["A", "ab  ", "nowhere", 7, 70000, "7.5", "2024-05-06", "2024-05-06T05:08:09.5Z"] for name in columns}
    found = await deferToThread(check, store, "t", list(columns), some)
    assert found > 80


@pytest_twisted.ensureDeferred
async def test_b4_numbers_of_a_list_are_exact(stores: list[Store]):
    """A float, and a decimal, is found in a long list to its last digit."""
    chance = random.Random(4)
    numbers = [chance.uniform(-1, 1) * 10.0 ** chance.randint(-300, 300) for _ in range(60)]

    def run(store: Store) -> None:
        for number in numbers:
            values = {"f": number, "d": f"{chance.randint(-(10**30), 10**30)}e-7"}
            store.handle_request({"action": "create", "model": "Things", "values": values})
        rows = store.handle_request({"action": "read", "model": "Things"})
        for name in ("f", "d", "id"):
            asked = [row[name] for row in rows[::2]]
            where = {f"{name}__in": asked}
            assert store.handle_request({"action": "read", "model": "Things", "where": where}) == rows[::2]

    for store in stores:
        await deferToThread(run, store)


@pytest.mark.parametrize("name", ["s", "u", "dt", "by", "f"])
def test_b4_one_statement_serves_long_lists(schema: Any, name: str):
    """All lists beyond a few values have one shape, and so have those behind many short ones."""
    model = schema.models["Things"]
    values = {"s": "a", "u": UUID, "dt": "2024-05-06T07:08:09Z", "by": "YQ==", "f": 0.5}
    shapes = {
        parse_filter(model, {f"{name}__in": [values[name]] * count}).shape for count in (MAX_APART + 1, 500, MAX_LIST)
    }
    assert len(shapes) == 1
    many = {"$and": [{f"{name}__in": [values[name]] * MAX_APART}] * MAX_TEXTUAL}
    plan = make_plan(parse_command({"where": many}, "read", "Things"), model, 10)
    assert sum(type(value) is not tuple for _, value in plan.slots) < 80


SHAPES = [f"{name}__{operator}" for name in ("dt", "d", "u", "s", "f") for operator in ("gt", "ne", "lte")]


def large_filter(number: int) -> dict[str, Any]:
    """A filter of nearly as many conditions as there may be, unlike that of any other number."""
    values = {"s": "a", "u": UUID, "dt": "2024-05-06T07:08:09Z", "d": "1.5", "f": 0.5}
    chance = random.Random(number)
    keys = [chance.choice(SHAPES) for _ in range(195)]
    return {"$or": [{key: values[key.partition("__")[0]]} for key in keys]}


def test_b4_statements_are_remembered_by_their_bytes(schema: Any):
    """New shapes without end, of thousands of parameters or of one, take no more than they may."""
    model = schema.models["Things"]
    statements = Statements(build_tables(schema)[1], sqlite.dialect())

    def of(where: Any) -> Statement:
        return statements.of(make_plan(parse_command({"where": where}, "read", "Things"), model, 10))

    first = of({"id": 1})
    assert of({"id": 1}) is first
    for number in range(40):
        made = of(large_filter(number))
        # Too large to be kept at all, or within the budget with all others.
        assert of(large_filter(number)) is not made or made.size <= MAX_STATEMENT
        assert sum(each.size for each in statements._known.values()) <= MAX_STATEMENTS
    for number in range(3000):
        fields = [name for place, name in enumerate(model.visible) if number >> place & 1] or ["id"]
        plan = make_plan(parse_command({"fields": fields, "where": {"s": "a"}}, "read", "Things"), model, 10)
        statements.of(plan)
        if number % 500 == 0:
            assert sum(each.size for each in statements._known.values()) <= MAX_STATEMENTS
    # What a statement needs to be made is no more than there are fields and operators.
    assert len(statements._conditions._leaves) < 100


@pytest_twisted.ensureDeferred
async def test_b4_large_statements_are_not_kept_ready(make_store: Callable[..., Store], schema: Any, tmp_path: Path):
    """SQLite keeps what it compiled for the next time; of large statements that would be megabytes a dozen."""
    store = make_store(f"sqlite:///{tmp_path}/test.sqlite3", schema, connections=1)
    await store.start()

    def grown() -> float:
        def resident() -> float:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

        def read(number: int) -> None:
            store.handle_request({"action": "read", "model": "Things", "where": large_filter(number)})

        for number in range(10):
            read(number)
        before = resident()
        for number in range(10, 110):
            read(number)
        return resident() - before

    if sys.platform == "linux":
        assert await deferToThread(grown) < 12
