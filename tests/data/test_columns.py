"""Columns that other programs made and fill: what may stand there is read, found again and written back."""

from __future__ import annotations

import random
import re
import sqlite3
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import pytest_twisted
import sqlalchemy as sa
from support.rows import rows_of_a_test

from zcomm.auth.policy import Policy
from zcomm.commands.crud import StoreCrud
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.errors import ConfigError, Conflict, InternalError, Invalid
from zcomm.interfaces import Identity, Request

#: By zComm's type and the column's: values that may stand there, as SQL has them.
HELD: dict[tuple[str, str], list[str]] = {
    ("int", "smallint"): ["0", "-32768", "32767"],
    ("int", "integer"): ["2147483647"],
    ("int", "bigint"): ["-9223372036854775808"],
    ("int", "even"): ["4"],
    ("float", "real"): ["0.1", "3.4e38", "1e-45", "'NaN'", "'infinity'", "'-infinity'", "16777216", "-0.0"],
    ("float", "double precision"): ["0.1", "1e308", "5e-324", "'NaN'", "'infinity'", "'-infinity'", "0.1::float8+0.2"],
    ("decimal", "numeric"): [
        "1234567890123456789012345678901.25",
        "19.90",
        "0.00",
        "'NaN'",
        "'Infinity'",
        "'-Infinity'",
        "-0.00000000000000000000000000000000000001",
        "9" * 38,
        "9" * 200 + "." + "1" * 50,
        "1000000",
    ],
    ("decimal", "numeric(10,2)"): ["19.90", "99999999.99", "0", "'NaN'"],
    ("decimal", "numeric(40,2)"): ["1234567890123456789012345678901234567.25"],
    ("decimal", "price"): ["0.50"],
    ("decimal", "money"): ["1234.50", "-0.01", "92233720368547758.07"],
    ("bool", "boolean"): ["true", "false"],
    ("bool", "flag"): ["true"],
    ("date", "date"): ["'2024-02-29'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'12000-01-01'", "'0001-01-01'"],
    ("date", "day"): ["'2024-02-29'", "'infinity'"],
    ("datetime", "timestamp"): [
        "'2024-10-15 08:30:00'",
        "'2024-10-15 08:30:00.5'",
        "'infinity'",
        "'-infinity'",
        "'0044-03-15 01:02:03.5 BC'",
        "'0044-03-15 01:02:03 BC'",
        "'12000-01-01 00:00:00.000001'",
        "'294276-12-31 23:59:59.999999'",
        "'4714-11-24 00:00:00 BC'",
        "'9999-12-31 23:59:59.999999'",
        "'0001-01-01'",
    ],
    ("datetime", "timestamptz"): [
        "'2024-10-15 08:30:00+02'",
        "'2024-10-15 08:30:00.123456+05:30'",
        "'infinity'",
        "'0044-03-15 01:02:03.5+00 BC'",
        "'0001-01-01 00:00:00+14'",
        "'9999-12-31 23:59:59.999999-10'",
        "'12000-01-01 00:00:00+00'",
    ],
    ("datetime", "timestamp(0)"): ["'2024-10-15 08:30:00'"],
    ("datetime", "instant"): ["'2024-10-15 08:30:00.25'", "'infinity'"],
    ("time", "time"): ["'08:30'", "'08:30:00.5'", "'24:00:00'", "'23:59:59.999999'"],
    ("time", "time(3)"): ["'08:30:00.125'"],
    ("time", "timetz"): ["'08:30+02'", "'24:00:00-05:30'", "'08:30:00.5+00'", "'08:30:00-15:59:59'"],
    ("uuid", "uuid"): ["'{0B54BE9A6F5C4C8E9F0E0C6A4D3F8F10}'"],
    ("uuid", "identity"): ["'0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10'"],
    ("bytes", "bytea"): ["'\\x00ff'", "''"],
    ("bytes", "digest"): ["'\\x00ff'"],
    ("str", "text"): ["''", "'a\\b%_'", "'é😀'", "'NULL'"],
    ("str", "varchar(5)"): ["'abcde'", "'ab   '"],
    ("str", "char(5)"): ["'ab'", "''"],
    ("str", "name"): ["'" + "x" * 63 + "'"],
    ("str", '"char"'): ["'x'"],
    ("str", "mood"): ["'sad'", "'so so'", "'Ok'"],
    ("str", "good_mood"): ["'Ok'"],
    ("str", "citext"): ["'Al@X.y'"],
    ("str", "email"): ["'Al@X.y'"],
    ("str", "work_email"): ["'Al@X.y'"],
    ("str", "inet"): ["'192.168.0.1'", "'192.168.0.1/24'", "'::1'"],
    ("str", "cidr"): ["'10.0.0.0/8'", "'2001:db8::/32'"],
    ("str", "macaddr"): ["'08:00:2b:01:02:03'"],
    ("str", "interval"): ["'1 year 2 mons -3 days 04:05:06.7'", "'-00:00:01'", "'0'", "'178000000 years'"],
    ("str", "span"): ["'90 minutes'"],
    ("str", "money"): ["1234.50", "-0.01"],
    ("str", "int4range"): ["'[1,5)'", "'empty'", "'(,)'"],
    ("str", "tstzrange"): ["'[2024-01-01 00:00+02,infinity)'"],
    ("str", "int4multirange"): ["'{[1,2),[5,9)}'"],
    ("str", "bit(3)"): ["B'101'"],
    ("str", "varbit"): ["B'10101'", "B''"],
    ("str", "xml"): ["'<a b=\"c\">d</a>'"],
    ("str", "point"): ["'(1.5,2)'"],
    ("str", "polygon"): ["'((0,0),(1,1),(1,0))'"],
    ("str", "tsvector"): ["'a:1 b:2'"],
    ("str", "pg_lsn"): ["'16/B374D848'"],
    ("str", "oid"): ["4294967295"],
    ("str", "hstore"): ["'a=>1, b=>NULL'"],
    ("str", "pair"): ["'(1,\"a b\")'"],
    ("str", "int[]"): ["'{1,NULL,3}'", "'{}'", "'{{1,2},{3,4}}'"],
    ("str", "text[]"): ["ARRAY['a \"b\" \\', 'NULL', NULL, '', '{}']"],
    ("str", "mood[]"): ["'{sad,\"so so\"}'"],
    ("str", "json[]"): ["ARRAY['{\"a\": 1}'::json]"],
    ("json", "json"): ['\'{"a": [1, null, "x"]}\'', "'1e30'", "'null'", "'\"text\"'"],
    ("json", "jsonb"): ['\'{"a": [1, null, "x"]}\'', "'1e30'", "'1e400'", "'0.1'", "'\"Infinity\"'"],
    ("json", "facts"): ["'{}'"],
    ("json", "int[]"): ["'{1,NULL,3}'", "'{}'", "'{{1,2},{3,4}}'"],
    ("json", "text[]"): ["ARRAY['a \"b\" \\', 'NULL', NULL, '', '{}']"],
    ("json", "mood[]"): ["'{sad,\"so so\"}'"],
    ("json", "numeric[]"): ["'{1234567890123456789012345678901.25,NaN}'"],
    ("json", "timestamptz[]"): ["'{infinity,2024-01-01 00:00:00+02}'"],
    ("json", "float8[]"): ["'{0.1,NaN}'"],
    ("json", "bool[]"): ["'{t,f,NULL}'"],
    ("json", "jsonb[]"): ["ARRAY['{\"a\": [1]}'::jsonb, '[1]', '\"x\"', '1']"],
    ("json", "hstore"): ['\'a=>1, "b \\"c"=>NULL\'', "''"],
    ("json", "pair"): ["'(1,\"a b\")'"],
}

DECLARED = """
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE TYPE mood AS ENUM ('sad', 'so so', 'Ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0);
CREATE DOMAIN price AS numeric(10,2) CHECK (VALUE >= 0);
CREATE DOMAIN flag AS boolean;
CREATE DOMAIN day AS date;
CREATE DOMAIN instant AS timestamptz;
CREATE DOMAIN identity AS uuid;
CREATE DOMAIN digest AS bytea;
CREATE DOMAIN good_mood AS mood CHECK (VALUE <> 'sad');
CREATE DOMAIN email AS citext CHECK (VALUE ~ '@');
CREATE DOMAIN work_email AS email CHECK (VALUE !~ 'gmail');
CREATE DOMAIN span AS interval;
CREATE DOMAIN facts AS jsonb;
"""


def sql(url: str, text: str) -> list[tuple[Any, ...]]:
    """Run SQL in a PostgreSQL database as another program would; the rows of the last statement."""
    with session_of(url) as session:
        return ask(session, text)


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def session_of(url: str) -> psycopg.Connection[Any]:
    """A session of another program; its statements are transactions of their own."""
    parts = sa.make_url(url)
    return psycopg.connect(
        host=parts.query["host"], port=parts.query["port"], user="postgres", dbname=parts.database, autocommit=True
    )


def ask(session: psycopg.Connection[Any], text: str) -> list[tuple[Any, ...]]:
    """The rows of the last of some statements."""
    cursor = session.execute(text)  # type: ignore[call-overload]
    while cursor.nextset():
        pass
    return cursor.fetchall() if cursor.description else []


#: Columns that cannot be compared; their text is.
TEXT_ALONE = ("xml", "point", "polygon", "json[]", "hstore")
#: Each as SQL has it, of two literals.
OPERATORS = {
    "eq": "v = {0}",
    "ne": "v IS DISTINCT FROM {0}",
    "gt": "v > {0}",
    "gte": "v >= {0}",
    "lt": "v < {0}",
    "lte": "v <= {0}",
    "between": "v BETWEEN {0} AND {1}",
    "in": "v IN ({0}, {1})",
    "not_in": "v NOT IN ({0}, {1})",
}


@pytest_twisted.ensureDeferred
async def test_contact_r8_what_a_column_may_hold(make_store, postgresql_url):
    """Whatever may stand in a column of PostgreSQL is read, found as by SQL itself, and written back unchanged."""
    schema, tables = [], [DECLARED]
    for number, ((kind, column), values) in enumerate(HELD.items()):
        schema.append(f"t{number}: {{id: {{type: int, pk: true}}, v: {kind}}}")
        tables.append(f"CREATE TABLE t{number} (id serial PRIMARY KEY, v {column});")
        tables += [f"INSERT INTO t{number} (v) VALUES (({value})::{column});" for value in values]
    session = session_of(postgresql_url)
    ask(session, "\n".join(tables))
    store = make_store(postgresql_url, load_schema("\n".join(schema)))
    await store.start()
    with session, rows_of_a_test() as row:
        for number, ((kind, column), values) in enumerate(HELD.items()):
            model = f"t{number}"
            with row(f"{kind} {column}"):
                stored = await store.read(1, model, order_by="id")
                assert len(stored) == len(values)
            for each, value in zip(stored, values, strict=True):
                with row(f"{kind} {column} {value[:40]} {each['v']!r:.60}"):
                    if kind == "json" and column == "pair":
                        assert each["v"] == {"a": 1, "b": "a b"}
                        continue
                    if kind != "json":
                        same = ask(session, f"SELECT id FROM {model} WHERE v::text = ({value})::{column}::text")
                        found = await store.read(1, model, {"v": each["v"]}, fields=["id"])
                        assert each["id"] in [one["id"] for one in found], "not found"
                        assert len(found) >= len(same)
                        assert await store.read(1, model, {"v__ne": each["v"], "id": each["id"]}) == []
                        assert await store.read(1, model, {"v__in": [each["v"]], "id": each["id"]}) == [each]
                    made = await store.create(1, model, {"v": each["v"]})
                    assert made["v"] == each["v"]
                    assert await store.update(1, model, made["id"], {"v": each["v"]}) == {"updated": 1}
                    if each["v"] is not None:
                        same = "v::jsonb" if column == "json" else "v::text"
                        both = f"SELECT count(DISTINCT {same}) FROM {model} WHERE id IN ({each['id']}, {made['id']})"
                        assert ask(session, both) == [(1,)]
                    await store.delete(1, model, made["id"])
            if kind in ("json", "bytes") or column in TEXT_ALONE or column == "good_mood":
                continue
            for operator, condition in random.sample(list(OPERATORS.items()), 2):
                first, second = random.randrange(len(values)), random.randrange(len(values))
                literals = [f"({values[at]})::{column}" for at in (first, second)]
                with row(f"{kind} {column} {operator} {literals}"):
                    where = f"SELECT id FROM {model} WHERE {condition.format(*literals)} ORDER BY id"
                    asked = [stored[first]["v"], stored[second]["v"]]
                    wanted = asked if operator in ("between", "in", "not_in") else asked[0]
                    found = await store.read(1, model, {f"v__{operator}": wanted}, fields=["id"], order_by="id")
                    assert [(each["id"],) for each in found] == ask(session, where)


async def refused(awaited: Any) -> str:
    """What an operation that is ``invalid`` says, which names its fields."""
    with pytest.raises(Invalid) as caught:
        await awaited
    assert all(str(caught.value).startswith(name) or name in str(caught.value) for name in caught.value.fields)
    return str(caught.value)


@pytest_twisted.ensureDeferred
async def test_contact_f01_thirty_eight_digits(make_store, postgresql_url):
    """Decimals of PostgreSQL are exact to 38 digits: in writes, reads, filters, defaults, rules and keys."""
    big, other = "1234567890123456789012345678901.25", "1234567890123456789012345678901.26"
    store = make_store(
        postgresql_url,
        load_schema(
            f"acc: {{id: {{type: int, pk: true}}, bal: {{type: decimal, default: '{big}', "
            f"rules: {{min: '-{big}', max: '{other}'}}}}}}\nkeyed: {{k: {{type: decimal, pk: true}}, v: int}}"
        ),
    )
    await store.start()
    assert (await store.create(1, "acc", {}))["bal"] == big
    assert (await store.create(1, "acc", {"bal": other}))["bal"] == other
    assert sql(postgresql_url, "SELECT bal::text FROM acc ORDER BY id") == [(big,), (other,)]
    assert [row["id"] for row in await store.read(1, "acc", {"bal": big})] == [1]
    assert [row["id"] for row in await store.read(1, "acc", {"bal__gt": big})] == [2]
    assert [row["id"] for row in await store.read(1, "acc", {"bal__in": [other, "0"]})] == [2]
    assert [row["id"] for row in await store.read(1, "acc", {"bal__between": [big, big]})] == [1]
    assert "at most" in await refused(store.create(1, "acc", {"bal": "1234567890123456789012345678901.27"}))
    assert "at least" in await refused(store.create(1, "acc", {"bal": "-1234567890123456789012345678901.26"}))
    assert await store.update(1, "acc", {"bal": other}, {"bal": "-" + big}) == {"updated": 1}
    assert await store.delete(1, "acc", {"bal": big}) == {"deleted": 1}
    assert await store.read(1, "acc") == [{"id": 2, "bal": "-" + big}]
    for number in ("9" * 38, "1" * 38, "0." + "1" * 38):
        assert await store.upsert(1, "keyed", {"k": number, "v": 1}) == {"k": number, "v": 1}
    assert await store.upsert(1, "keyed", {"k": "1" * 37 + "2", "v": 2}) == {"k": "1" * 37 + "2", "v": 2}
    assert await store.read(1, "keyed", "9" * 38) == [{"k": "9" * 38, "v": 1}]
    assert len(await store.read(1, "keyed")) == 4
    assert await store.upsert(1, "keyed", {"k": "19.90"}) == {"k": "19.90", "v": None}
    assert await store.upsert(1, "keyed", {"k": "19.9"}) == {"k": "19.90", "v": None}


@pytest_twisted.ensureDeferred
async def test_contact_f08_comparisons_are_the_columns_own(make_store, postgresql_url):
    """Enums, citext, real, char(n), inet, domains and collations compare as in SQL: equal, in, ordered, updated."""
    sql(
        postgresql_url,
        """
        CREATE EXTENSION citext;
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
        CREATE DOMAIN email AS citext CHECK (VALUE ~ '@');
        CREATE DOMAIN calm AS mood;
        CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (
            id serial PRIMARY KEY, m mood, c calm, e citext UNIQUE, w email, r real, p char(5), i inet,
            n text COLLATE nocase, l interval, s smallint
        );
        INSERT INTO t (m, c, e, w, r, p, i, n, l, s) VALUES
            ('happy', 'happy', 'Al@x.y', 'Al@x.y', 0.1, 'ab', '10.0.0.10', 'Ab', '1 day', 1),
            ('sad', 'sad', 'bo@x.y', 'bo@x.y', 0.25, 'b', '10.0.0.9', 'b', '25 hours', 2);
        """,
    )
    names = "m c e w p i n l".split()
    store = make_store(
        postgresql_url,
        load_schema(
            "t: {id: {type: int, pk: true}, r: float, s: int, e: {type: str, unique: true}, "
            + ", ".join(f"{name}: str" for name in names if name != "e")
            + "}"
        ),
    )
    await store.start()

    async def ids(where: Any, **more: Any) -> list[int]:
        return [row["id"] for row in await store.read(1, "t", where, **{"order_by": "id", **more})]

    with rows_of_a_test() as row:
        for where, expected in (
            ({"m": "happy"}, [1]),
            ({"m__gt": "ok"}, [1]),
            ({"m__in": ["happy", "ok"]}, [1]),
            ({"m__ne": "happy"}, [2]),
            ({"m__startswith": "ha"}, [1]),
            ({"m__ilike": "HA%"}, [1]),
            ({"c__lt": "ok"}, [2]),
            ({"c__contains": "app"}, [1]),
            ({"e": "al@x.y"}, [1]),
            ({"e__ne": "AL@X.Y"}, [2]),
            ({"e__in": ["AL@x.y", "nobody"]}, [1]),
            ({"e__not_in": ["AL@x.y"]}, [2]),
            ({"e__lt": "B"}, [1]),
            ({"e__startswith": "AL"}, [1]),
            ({"w": "BO@X.Y"}, [2]),
            ({"w": "no address"}, []),
            ({"r": 0.1}, [1]),
            ({"r__lte": 0.1}, [1]),
            ({"r__ne": 0.1}, [2]),
            ({"r__between": [0.1, 0.2]}, [1]),
            ({"p": "ab"}, [1]),
            ({"p": "ab   "}, [1]),
            ({"p__like": "a%"}, [1]),
            ({"i__lt": "10.0.0.10"}, [2]),
            ({"i": "10.0.0.10/32"}, [1]),
            ({"i__startswith": "10.0.0."}, [1, 2]),
            ({"n": "AB"}, [1]),
            ({"n__contains": "A"}, [1]),
            ({"n__contains": "a"}, []),
            ({"n__ilike": "a_"}, [1]),
            ({"l__gt": "1 day"}, [2]),
            ({"l": "24 hours"}, [1]),
            ({"s": 100_000}, []),
            ({"s__lt": 100_000}, [1, 2]),
        ):
            with row(str(where)):
                assert await ids(where) == expected
        for order, expected in (("m", [2, 1]), ("i", [2, 1]), ("l DESC", [2, 1]), ("c DESC", [1, 2]), ("e", [1, 2])):
            with row(order):
                assert await ids(None, order_by=order) == expected
    assert await store.update(1, "t", {"e": "AL@X.Y"}, {"m": "ok"}) == {"updated": 1}
    with pytest.raises(Conflict, match="^e already exists"):
        await store.create(1, "t", {"e": "AL@X.Y"})
    assert (await store.create(1, "t", {"m": "ok", "c": "sad", "e": "New@x.y", "w": "a@b", "p": "x"}))["m"] == "ok"
    assert await store.delete(1, "t", {"e__in": ["AL@X.Y", "new@x.y"]}) == {"deleted": 2}


@pytest_twisted.ensureDeferred
async def test_b1_texts_are_found_in_columns_of_all_types(make_store, postgresql_url):
    """A text that is looked for is found where a pattern with it matches, whatever the column's type and collation."""
    sql(
        postgresql_url,
        """
        CREATE EXTENSION citext;
        CREATE TYPE mood AS ENUM ('sad', 'Oké_50%', 'happy');
        CREATE DOMAIN email AS citext CHECK (VALUE ~ '@');
        CREATE DOMAIN calm AS mood;
        CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
        CREATE TABLE t (
            id serial PRIMARY KEY, s text, v varchar(9), p char(8), e citext, w email, m mood, c calm, k name,
            n text COLLATE nocase, i inet, a text[], t text COLLATE "tr-x-icu", g citext COLLATE "tr-x-icu"
        );
        INSERT INTO t (s, v, p, e, w, m, c, k, n, i, a, t, g) VALUES
            ('Oké_50%', 'Oké_50%', 'Oké_50%', 'Oké_50%', 'Oké@50%', 'Oké_50%', 'Oké_50%', 'Oké_50%', 'Oké_50%',
             '10.0.0.50', '{"Oké_50%"}', 'Iİıi', 'Iİıi'),
            ('\\%', '\\%', '\\%', '\\%', '\\%@', 'happy', 'happy', '\\%', '\\%', '::1', '{}', 'OKÉ', 'OKÉ'),
            ('', '', '', '', '@', 'sad', 'sad', '', '', '10.0.0.5', '{""}', '', ''),
            (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        """,
    )
    names = "s v p e w m c k n i a t g".split()
    fields = ", ".join(f"{name}: str" for name in names)
    store = make_store(postgresql_url, load_schema(f"t: {{id: {{type: int, pk: true}}, {fields}}}"))
    await store.start()
    texts = [
        "",
        "O",
        "é",
        "É",
        "_50",
        "50%",
        "%",
        "\\",
        "0%  ",
        "  ",
        "i",
        "I",
        "ı",
        "İ",
        "0.0.",
        "a",
        "PP",
        "Oké_50%",
        "Oké_50%x",
    ]
    no_room = {"$not": {"s__contains": "~" * 200}}
    for name in names:
        for text in texts:
            pattern = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            for operator, value, like in (
                ("contains", text, f"%{pattern}%"),
                ("endswith", text, f"%{pattern}"),
                ("startswith", text, f"{pattern}%"),
                ("ilike", f"%{pattern}%", f"%{pattern}%"),
                ("ilike", f"%{pattern}", f"%{pattern}"),
            ):
                matched = name if name in "svpewkt" else f"{name}::text"
                matched = f'{matched} COLLATE "default"' if name == "n" else matched
                matches = "ILIKE" if operator == "ilike" else "LIKE"
                expected = (
                    sql(postgresql_url, f"SELECT id FROM t WHERE {matched} {matches} {quoted(like)} ORDER BY id")
                    if name != "g"
                    else None
                )
                asked = [{f"{name}__{operator}": value}, {"$and": [no_room, {f"{name}__{operator}": value}]}]
                found = [await store.read(1, "t", each, fields=["id"], order_by="id") for each in asked]
                assert found[0] == found[1], (name, operator, value)
                assert expected is None or found[0] == [{"id": id} for (id,) in expected], (name, operator, value)


@pytest_twisted.ensureDeferred
async def test_contact_f34_an_upsert_keeps_the_key_that_is_there(make_store, postgresql_url):
    """An upsert whose key is equal to one that is written another way leaves that one as it is."""
    sql(
        postgresql_url,
        "CREATE EXTENSION citext; CREATE TABLE t (id serial PRIMARY KEY, e citext UNIQUE, n text);"
        "INSERT INTO t (e, n) VALUES ('bob@x.y', 'Bob')",
    )
    store = make_store(
        postgresql_url, load_schema("t: {id: {type: int, pk: true}, e: {type: str, unique: true}, n: str}")
    )
    await store.start()
    bob = {"id": 1, "e": "bob@x.y", "n": "Bob"}
    assert await store.upsert(1, "t", {"e": "BOB@X.Y"}) == bob
    assert await store.upsert(1, "t", {"e": "BOB@X.Y", "n": "B."}) == {**bob, "n": "B."}
    assert sql(postgresql_url, "SELECT e::text FROM t") == [("bob@x.y",)]


@pytest_twisted.ensureDeferred
async def test_contact_f09_what_a_column_would_round_or_cut_off_is_refused(make_store, postgresql_url):
    """A value that its column would keep as another one is refused by its field's name, and one that fits is not."""
    sql(
        postgresql_url,
        """
        CREATE DOMAIN price AS numeric(6,2) CHECK (VALUE >= 0);
        CREATE DOMAIN fair_price AS price CHECK (VALUE < 1000);
        CREATE TABLE t (
            id serial PRIMARY KEY, n numeric(5,2), m money, v varchar(3), c char(3), s smallint,
            ts timestamp(0), ti time(3), p price, q fair_price, r real, k name,
            iv interval(1), vb varbit(4), bi bit(3), na numeric(5,2)[], va varchar(2)[]
        )
        """,
    )
    store = make_store(
        postgresql_url,
        load_schema(
            "t: {id: {type: int, pk: true}, n: decimal, m: decimal, v: str, c: str, s: int, ts: datetime, ti: time, "
            "p: decimal, q: decimal, r: float, k: str, iv: str, vb: str, bi: str, na: json, va: json}"
        ),
    )
    await store.start()
    with rows_of_a_test() as row:
        for name, good, bad in (
            ("n", "999.99", ["19.999", "1000", "Infinity", 0.001]),
            ("m", "0.01", ["0.001", "1e30"]),
            ("v", "abc", ["abcd", "ab  "]),
            ("c", "abc", ["abcd"]),
            ("s", -32768, [32768]),
            ("ts", "2024-10-15T08:30:00Z", ["2024-10-15T08:30:00.5Z"]),
            ("ti", "08:30:00.125", ["08:30:00.1255"]),
            ("p", "0.50", ["0.505", "10000"]),
            ("q", "0.50", ["0.505", "10000"]),
            ("r", 0.1, [1e300, 1e-300]),
            ("k", "x" * 63, ["é" * 32]),
            ("iv", "1 day 00:00:01.5", ["1 day 00:00:01.55", "-00:00:00.0001"]),
            ("vb", "1010", ["10101"]),
            ("bi", "101", ["1", "1011"]),
            ("na", ["1.50", None], [["1.239"], [["1000"]], [True]]),
            ("va", ["ab", None], [["abc"], [["ok", "abc"]]]),
        ):
            with row(f"{name} {good}"):
                made = await store.create(1, "t", {name: good})
                where = {"id": made["id"]} if isinstance(good, list) else {name: made[name]}
                assert [each["id"] for each in await store.read(1, "t", where)] == [made["id"]]
            for value in bad:
                with row(f"{name} {value}"):
                    assert name + " must" in await refused(store.create(1, "t", {name: value}))
                    assert name + " must" in await refused(store.update(1, "t", {"id": 1}, {name: value}))
    wrong = await refused(store.create(1, "t", {"n": "1.999", "v": "abcd", "s": 1}))
    assert "n must" in wrong and "v must" in wrong
    assert await store.read(1, "t", {"n": "19.999"}) == await store.read(1, "t", {"v": "abcd"}) == []


@pytest_twisted.ensureDeferred
async def test_contact_f09_types_that_do_not_fit_are_refused_at_the_start(make_store, postgresql_url):
    """A column that a field's type cannot use ends the start with an error that names it and a type that can."""
    sql(
        postgresql_url,
        "CREATE DOMAIN price AS numeric(6,2); CREATE TYPE pair AS (a int, b int);"
        "CREATE TABLE t (id serial PRIMARY KEY, a int, f real, p price, l int[], n inet, m money, k pair, j jsonb)",
    )
    with rows_of_a_test() as row:
        for field, says in (
            ("a: str", "field a: the existing column is of type integer, which does not fit str; .* type to int$"),
            ("f: decimal", "of type real, which is not exact, which does not fit decimal; change .* to float$"),
            ("p: int", "of type price, which does not fit int; .* to decimal$"),
            ("l: int", "of type integer\\[\\], which does not fit int; .* to json or str$"),
            ("n: json", "of type inet, .* to str$"),
            ("m: float", "of type money, .* to decimal or str$"),
            ("k: uuid", "of type pair, .* to json or str$"),
            ("j: str", "of type jsonb, .* to json$"),
            ("x: str", "field x: the existing table has no such column"),
        ):
            with row(field):
                store = make_store(postgresql_url, load_schema(f"t: {{id: {{type: int, pk: true}}, {field}}}"))
                with pytest.raises(ConfigError, match=says):
                    await store.start()


@pytest_twisted.ensureDeferred
async def test_contact_f08_what_the_database_does_not_take_is_named(make_store, postgresql_url):
    """A value that only the database can judge is ``invalid`` by its field's name, which says what the column takes."""
    sql(
        postgresql_url,
        """
        CREATE TYPE mood AS ENUM ('sad', 'ok');
        CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0);
        CREATE TYPE "Per %s" AS ENUM ('a');
        CREATE TABLE t (id serial PRIMARY KEY, m mood, e even, i inet, x xml, d date, l int[], p "Per %s", y regtype)
        """,
    )
    store = make_store(
        postgresql_url,
        load_schema("t: {id: {type: int, pk: true}, m: str, e: int, i: str, x: str, d: date, l: json, p: str, y: str}"),
    )
    await store.start()
    with rows_of_a_test() as row:
        for values, says in (
            ({"m": "glad", "e": 2}, 'm must be one of "sad", "ok"'),
            ({"m": "ok", "e": 3}, "e must be a value that its column accepts (even)"),
            ({"i": "10.0.0", "e": 3}, "e must be .*; i must be .*inet"),
            ({"x": "<a>"}, "x must be .*xml"),
            ({"d": "9999999-01-01"}, "d must be .*date"),
            ({"l": [1, "x"]}, "l must be .*integer"),
            ({"l": 5}, "l must be a list"),
            ({"p": "b"}, 'p must be one of "a"'),
            ({"y": "nothing", "e": 2}, "y must be .*regtype"),
        ):
            with row(str(values)):
                said = await refused(store.create(1, "t", values))
                assert re.match(says.replace("(", "\\(").replace(")", "\\)"), said), said
                with pytest.raises(Invalid) as caught:
                    await store.create(1, "t", values, idempotency_key="k")
                assert str(caught.value) == said
                assert (await store.create(1, "t", {"m": "ok"}))["m"] == "ok"
        for where, says in (
            ({"m": "glad"}, "m must be one of"),
            ({"id__gt": 0, "i__lt": "no"}, "i must be .*inet"),
            ({"e": 3}, ""),
            ({"p__in": ["a", "b"]}, "p must be one of"),
        ):
            with row(str(where)):
                if not says:
                    assert await store.read(1, "t", where) == []
                    continue
                assert re.match(says, await refused(store.read(1, "t", where)))
                assert re.match(says, await refused(store.delete(1, "t", where)))


@pytest_twisted.ensureDeferred
async def test_contact_f13_f37_settings_of_others_do_not_matter(make_store, postgresql_url):
    """Whatever a database or a role sets, values are the same, and a write that was made is answered."""
    name = postgresql_url.partition("@/")[2].partition("?")[0]
    sql(
        postgresql_url,
        "\n".join(
            f"ALTER DATABASE {name} SET {setting};"
            for setting in (
                "datestyle = 'SQL, DMY'",
                "intervalstyle = iso_8601",
                "timezone = 'America/New_York'",
                "extra_float_digits = -15",
                "bytea_output = 'escape'",
                "standard_conforming_strings = off",
                "client_encoding = 'LATIN1'",
                "array_nulls = off",
                "transform_null_equals = on",
                "xmloption = document",
                "default_transaction_isolation = serializable",
                "lc_messages = 'C'",
            )
        ),
    )
    store = make_store(
        postgresql_url,
        load_schema(
            "t: {id: {type: int, pk: true}, dt: datetime, da: date, ti: time, f: float, d: decimal, by: bytes, s: str, "
            "j: json, l: json, i: str, p: str, ts: datetime, x: str}"
        ),
    )
    sql(
        postgresql_url,
        "CREATE TABLE t (id serial PRIMARY KEY, dt timestamptz, da date, ti time, f float8, d numeric, by bytea,"
        "s text, j jsonb, l text[], i interval, p tstzrange, ts timestamp, x xml)",
    )
    await store.start()
    values = {
        "dt": "2024-10-05T06:30:00.500000Z",
        "ts": "2024-10-05T06:30:00Z",
        "da": "2024-10-05",
        "ti": "08:30:00",
        "f": 0.1 + 0.2,
        "d": "19.90",
        "by": "AAEC/1xc",
        "s": "€ \\ ' 😀",
        "j": {"a": "\\\\ €"},
        "l": ["NULL", None, '\\ " €'],
        "i": "1 day 02:00:00",
        "x": "a<b/>c",
        "p": '["2024-10-05 06:30:00+00",infinity)',
    }
    assert await store.create(1, "t", values) == {"id": 1, **values}
    with rows_of_a_test() as row:
        for field, value in values.items():
            with row(field):
                if field not in ("j", "l"):
                    assert await store.read(1, "t", {field: value}) == [{"id": 1, **values}]
        for where in ({"s__contains": "\\ '"}, {"s__like": "% \\\\ '%"}, {"s__endswith": "😀"}, {"s__ilike": "€%"}):
            with row(str(where)):
                assert len(await store.read(1, "t", where)) == 1
    assert await store.update(1, "t", {"dt": values["dt"]}, values) == {"updated": 1}


@pytest_twisted.ensureDeferred
async def test_contact_f13_after_a_commit_nothing_fails(make_store, postgresql_url):
    """An answer that cannot be made says that the write was; with a key it is undone."""
    sql(
        postgresql_url,
        """
        CREATE TABLE t (id serial PRIMARY KEY, n int, j text, big text);
        ALTER TABLE t ALTER j TYPE json USING j::json;
        """,
    )
    store = make_store(postgresql_url, load_schema("t: {id: {type: int, pk: true}, n: int, j: json, big: str}"))
    await store.start()
    # Others alter the table meanwhile, and fill in what no message has room for.
    sql(
        postgresql_url,
        """
        ALTER TABLE t ALTER j TYPE text;
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.n = 1 THEN NEW.j = 'no json'; END IF;
            IF NEW.n = 2 THEN NEW.big = repeat('x', 17000000); END IF;
            RETURN NEW; END $$;
        CREATE TRIGGER fill BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION fill();
        """,
    )
    for n in (1, 2):
        with pytest.raises(InternalError, match="^The change was made, but its answer could not be") as caught:
            await store.create(1, "t", {"n": n})
        assert caught.value.retryable is False
        assert sql(postgresql_url, f"SELECT count(*) FROM t WHERE n = {n}") == [(1,)]
        with pytest.raises(InternalError, match="^Internal error"):
            await store.create(1, "t", {"n": n}, idempotency_key="k")
        assert sql(postgresql_url, f"SELECT count(*) FROM t WHERE n = {n}") == [(1,)]
    assert await store.update(1, "t", {"n": 2}, {"n": 2}) == {"updated": 1}


@pytest_twisted.ensureDeferred
async def test_contact_f35_r9_other_encodings(make_store, postgresql):
    """A character that the database's encoding lacks is ``invalid`` by its field's name; SQL_ASCII ends the start."""
    for encoding in ("LATIN1", "EUC_JP", "SQL_ASCII"):
        postgresql.execute(
            f"CREATE DATABASE {encoding} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    try:
        store = make_store(postgresql.url("latin1"), load_schema("t: {id: {type: int, pk: true}, s: str, j: json}"))
        await store.start()
        assert (await store.create(1, "t", {"s": "Ärger", "j": ["é"]}))["s"] == "Ärger"
        assert len(await store.read(1, "t", {"s__startswith": "Ä", "s": "Ärger"})) == 1
        with rows_of_a_test() as row:
            for text in ("€uro 😀", "日本"):
                for asked in (
                    lambda text=text: store.create(1, "t", {"s": text}),
                    lambda text=text: store.update(1, "t", {"id": 1}, {"s": text}),
                    lambda text=text: store.read(1, "t", {"s": text}),
                    lambda text=text: store.delete(1, "t", {"s__contains": text}),
                ):
                    with row(text):
                        assert (await refused(asked())).startswith("s must be a value that its column accepts")
        assert (await store.read(1, "t"))[0] == {"id": 1, "s": "Ärger", "j": ["é"]}
        await store.stop()
        fields = "s: {type: str, unique: true}, n: str, e: str, j: json, k: json, a: json"
        postgresql.execute(
            "CREATE TYPE e AS ENUM ('日本'); CREATE TABLE t (id serial PRIMARY KEY, s varchar(9) UNIQUE, n name, e e,"
            " j json, k jsonb, a text[]); INSERT INTO t (s, n, j, k, a) SELECT w, w, json_build_array(w),"
            r" jsonb_build_array(w), ARRAY[w] FROM (VALUES (U&'\FFE4')) AS v (w)",
            "euc_jp",
        )
        store = make_store(postgresql.url("euc_jp"), load_schema(f"t: {{id: {{type: int, pk: true}}, {fields}}}"))
        await store.start()
        with rows_of_a_test() as row:
            kept = {"s": "日本￤é", "n": "日本", "e": "日本", "j": {"日本": [1.5]}, "k": ["￤"], "a": ["日本", None]}
            made = await store.create(1, "t", kept)
            assert made == {"id": 2, **kept}
            for name in ("s", "n", "e"):
                assert await store.read(1, "t", {name: kept[name]}) == [made]
            assert await store.upsert(1, "t", {**kept, "n": "本"}, ["s"]) == {**made, "n": "本"}
            # It would be kept as the full-width character.
            for name, value in {"s": "¦", "n": "¦", "j": ["¦"], "k": {"¦": 1}, "a": ["a", "¦"]}.items():
                with row(name):
                    for asked in (
                        store.create(1, "t", {name: value}),
                        store.update(1, "t", {"id": 1}, {name: value}),
                        store.upsert(1, "t", {"s": "日本", name: value}, ["s"]),
                        *([store.read(1, "t", {name: value})] if name in "sn" else []),
                        *([store.delete(1, "t", {f"{name}__in": ["日本", value]})] if name in "sn" else []),
                    ):
                        assert (await refused(asked)).startswith(f"{name} must be a value that its column accepts")
            assert len(await store.read(1, "t")) == 2
        await store.stop()
        store = make_store(postgresql.url("sql_ascii"), load_schema("t: {id: {type: int, pk: true}}"))
        with pytest.raises(ConfigError, match="the encoding of the database is SQL_ASCII, .* encoding UTF8") as caught:
            await store.start()
        assert "\n" not in str(caught.value)
    finally:
        for encoding in ("LATIN1", "EUC_JP", "SQL_ASCII"):
            postgresql.drop_database(encoding)


@pytest_twisted.ensureDeferred
async def test_contact_f32_numbers_and_nulls_within_json(make_store, postgresql_url, tmp_path):
    """Whole numbers of JSON have as many digits as they have; a null of JSON is found like any other."""
    schema = load_schema("t: {id: {type: int, pk: true}, j: json}")
    with rows_of_a_test() as row:
        for url in (postgresql_url, f"sqlite:///{tmp_path}/json.sqlite3"):
            with row(url.partition(":")[0]):
                store = make_store(url, schema)
                await store.start()
                value = {"a": [10**22, 10**30, -(10**400), 2**64]}
                assert (await store.create(1, "t", {"j": value}))["j"] == value
                stored = (await store.read(1, "t"))[0]["j"]
                assert stored == value
                assert (await store.create(1, "t", {"j": stored}))["j"] == value
                write = "INSERT INTO t (j) VALUES ('null')"
                if url.startswith("sqlite"):
                    with sqlite3.connect(tmp_path / "json.sqlite3") as other:
                        other.execute(write)
                    other.close()
                else:
                    sql(url, write)
                await store.create(1, "t", {"j": None})
                assert [each["id"] for each in await store.read(1, "t", {"j": None})] == [3, 4]
                assert [each["id"] for each in await store.read(1, "t", {"j__isnull": False})] == [1, 2]
                assert [each["j"] for each in await store.read(1, "t", {"id__gte": 3})] == [None, None]


@pytest_twisted.ensureDeferred
async def test_contact_nulls_of_rows_and_of_json(make_store, postgresql_url, tmp_path):
    """A filter for null, and what a change or a removal by it reaches, is what is shown as null, and nothing else."""
    columns = ("c", "d", "j", "b", "l")
    sql(
        postgresql_url,
        """CREATE TYPE pair AS (street text, zip text); CREATE DOMAIN pairing AS pair;
        CREATE TABLE t (id serial PRIMARY KEY, c pair, d pairing, j json, b jsonb, l pair[], s pair, n int);
        INSERT INTO t (id) VALUES (0);
        INSERT INTO t (c, d, j, b, l, s) VALUES ('(,)', '(,)', ' null', 'null', '{NULL}', '(,)'),
            (ROW(NULL, NULL), ROW(NULL, NULL), E'null\n', ' null ', '{}', '(a,)'),
            ('(a,)', '(,b)', E'\t\rnull', '"null"', '{"(,)"}', '("",)'),
            ('(a,b)', NULL, '"null"', '[null]', NULL, NULL), (NULL, '("","")', '[null]', '{}', NULL, NULL)""",
    )
    with sqlite3.connect(tmp_path / "nulls.sqlite3") as other:
        other.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, j JSON)")
        other.executemany("INSERT INTO t (j) VALUES (?)", [(None,), (" null",), ("null\n",), ("[null]",), ('"null"',)])
    other.close()
    with rows_of_a_test() as row:
        for url, names in ((postgresql_url, (*columns, "s")), (f"sqlite:///{tmp_path}/nulls.sqlite3", ("j",))):
            fields = ", ".join(f"{name}: {'str' if name == 's' else 'json'}" for name in names)
            store = make_store(url, load_schema(f"t: {{id: {{type: int, pk: true}}, {fields}}}"))
            await store.start()
            rows = await store.read(1, "t", order_by="id")
            for name in names:
                null = [each["id"] for each in rows if each[name] is None]
                rest = [each["id"] for each in rows if each[name] is not None]
                assert null
                assert rest
                for where, expected in (
                    ({name: None}, null),
                    ({f"{name}__isnull": True}, null),
                    ({f"{name}__isnull": False}, rest),
                    ({"$not": {name: None}}, rest),
                    ({"$or": [{name: None}, {"id": -1}]}, null),
                    ({"$and": [{name: None}, {"id__gte": 0}]}, null),
                ):
                    with row(f"{url[:6]} {where}"):
                        assert [each["id"] for each in await store.read(1, "t", where, order_by="id")] == expected
                with row(f"{url[:6]} {name} removed"):
                    assert await store.delete(1, "t", {name: None, "id__in": rest}) == {"deleted": 0}
            await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_nulls_in_keys(make_store, postgresql_url, tmp_path):
    """Where a database lets keys be null, such rows are found, told from the others, changed and removed."""
    sql(
        postgresql_url,
        "CREATE TABLE t0 (k text, n int); INSERT INTO t0 VALUES (NULL, 1), ('a', 2); CREATE VIEW t AS SELECT * FROM t0",
    )
    with sqlite3.connect(tmp_path / "keys.sqlite3") as other:
        other.execute("CREATE TABLE t (k TEXT PRIMARY KEY, n INTEGER)")
        other.execute("INSERT INTO t VALUES (NULL, 1), ('a', 2)")
    other.close()
    with rows_of_a_test() as row:
        for url in (postgresql_url, f"sqlite:///{tmp_path}/keys.sqlite3"):
            with row(url.partition(":")[0]):
                store = make_store(url, load_schema("t: {k: {type: str, pk: true}, n: int}"))
                await store.start()
                assert await store.read(1, "t", {"k": None}) == [{"k": None, "n": 1}]
                assert await store.read(1, "t", {"k__isnull": False}) == [{"k": "a", "n": 2}]
                assert await store.read(1, "t", {"k__ne": None}) == [{"k": "a", "n": 2}]
                assert await store.read(1, "t", {"k": [None, "b"]}) == [{"k": None, "n": 1}]
                assert await store.read(1, "t", {"k__not_in": ["a"]}) == [{"k": None, "n": 1}]
                assert [each["n"] for each in await store.read(1, "t", order_by="k")] == [2, 1]
                assert await store.update(1, "t", {"k": None}, {"n": 5}) == {"updated": 1}
                assert await store.delete(1, "t", {"k": None}) == {"deleted": 1}
                assert await store.read(1, "t") == [{"k": "a", "n": 2}]
                await refused(store.delete(1, "t", {}))


@pytest_twisted.ensureDeferred
async def test_contact_f10_rights_to_rows_are_exact(make_store, postgresql_url, tmp_path):
    """The rows of one user are not those of another whose name a column takes for the same one."""
    sql(
        postgresql_url,
        "CREATE EXTENSION citext; CREATE TABLE t (id serial PRIMARY KEY, owner citext, n int);"
        "INSERT INTO t (owner) VALUES ('bob'), ('Bob')",
    )
    with sqlite3.connect(tmp_path / "rights.sqlite3") as other:
        other.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, owner TEXT COLLATE NOCASE, n INTEGER)")
        other.execute("INSERT INTO t (owner) VALUES ('bob'), ('Bob')")
    other.close()
    schema = load_schema("t: {id: {type: int, pk: true}, owner: str, n: int}")
    with rows_of_a_test() as row:
        for url in (postgresql_url, f"sqlite:///{tmp_path}/rights.sqlite3"):
            with row(url.partition(":")[0]):
                store = make_store(url, schema)
                await store.start()

                async def asked(action: str, owner: str, store: Any = store, **more: Any) -> Any:
                    command = parse_command({"action": action, "model": "t", **more})
                    return (await store.execute(1, command, rows={"owner": owner})).result

                assert [each["id"] for each in await asked("read", "Bob")] == [2]
                assert [each["id"] for each in await asked("read", "bob", where={"owner": "BOB"})] == [1]
                assert await asked("update", "Bob", where={"owner": "bob"}, values={"n": 1}) == {"updated": 1}
                assert await asked("delete", "BOB", where={"id__gt": 0}) == {"deleted": 0}
                assert [each["n"] for each in await store.read(1, "t", order_by="id")] == [None, 1]
                # What a filter asks for is still the column's own.
                assert len(await store.read(1, "t", {"owner": "BOB"})) == 2


@pytest_twisted.ensureDeferred
async def test_contact_blanks_that_fill_up_a_column_are_nobodys_right(make_store, postgresql_url):
    """A char(n) cannot tell "bob " from "bob": whoever has the former name reaches no row of the other's, and makes
    none; and who has the latter is told of a row that is shown with blanks."""
    sql(
        postgresql_url,
        """
        CREATE DOMAIN short AS char(8);
        CREATE TABLE t (id serial PRIMARY KEY, a char(8), b short);
        INSERT INTO t (a, b) VALUES ('bob', 'bob'), ('Bob', 'Bob'), ('bob b', 'bob b');
        """,
    )
    store = make_store(postgresql_url, load_schema("t: {id: {type: int, pk: true}, a: str, b: str}"))
    await store.start()

    async def of(rows: dict[str, Any], **request: Any) -> Any:
        return (await store.execute(1, parse_command({"model": "t", **request}), "somebody", rows)).result

    for name in ("a", "b"):
        for other in ("bob ", " bob", "bob  ", "BOB", "bob\t"):
            rows = {name: other}
            assert await of(rows, action="read") == []
            assert await of(rows, action="update", all=True, values={"a": "x"} if name == "b" else {"b": "x"}) == {
                "updated": 0
            }
            assert await of(rows, action="delete", all=True) == {"deleted": 0}
        with pytest.raises(Invalid, match=f"{name} cannot be kept with the blanks at its end"):
            await of({name: "bob "}, action="create", values={})
        assert [row["id"] for row in await of({name: "bob"}, action="read")] == [1]
    policy = Policy.from_yaml("admin: {models: '*'}\nx: {models: {t: {rows: {b: bob}, actions: '*'}}}", "policy")
    crud, admin = StoreCrud(store, policy), SimpleNamespace(id=1, identity=Identity("a", "admin"))
    made = await crud.respond(Request(key="create_t", horizontal={"values": {"b": "bob"}}), admin)
    assert made.result["b"] == "bob     " and made.audience.admits(Identity("bob", "x"), policy)
