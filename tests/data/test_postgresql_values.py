"""Values of PostgreSQL's columns: kept exactly or refused by field, found by a filter alone, read whatever they are."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import pytest
import pytest_twisted
from data.test_columns import ask, refused, session_of, sql
from support.rows import rows_of_a_test

from zcomm.bifrost.messages import encode_reply
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.errors import ConfigError, Invalid

DECLARED = """
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree;
CREATE TYPE pair AS (a numeric(5,2), b varchar(3), c interval(0));
CREATE TYPE spans AS RANGE (subtype = float8);
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN span AS interval(0);
CREATE DOMAIN short AS varchar(3)[];
CREATE DOMAIN cent AS numeric(5,2);
CREATE DOMAIN pairing AS pair;
CREATE DOMAIN letter AS "char";
"""
#: By zComm's type and the column's: values that it keeps, and those that it does not.
CASES: dict[tuple[str, str], tuple[list[Any], list[Any]]] = {
    ("str", '"char"'): (["x", ""], ["xy", "é", "  "]),
    ("str", "letter"): (["x"], ["xy"]),
    ("str", "name"): (["x" * 63, "é" * 31], ["x" * 64, "é" * 32]),
    ("str", "char(3)"): (["abc"], ["abcd", "abc "]),
    ("str", "varchar(3)"): (["abc", "ab "], ["abcd", "abc ", "ab  "]),
    ("str", "interval"): (
        ["1 day", "00:00:00.123456", "-00:00:01", "1 year 2 mons -3 days +04:05:06.7"],
        ["00:00:00.1234567", "1.5 days", "0.1 months", "1.1234567 seconds", "", "P0.1Y", "1", "1 day 00:00:00.0000001"],
    ),
    ("str", "interval(0)"): (["1 day 00:00:01"], ["00:00:00.5", "00:00:01.4", "1.5 seconds", "PT0.5S"]),
    ("str", "interval(3)"): (["00:00:01.125"], ["00:00:01.1254"]),
    ("str", "interval day to second"): (["3 days 00:00:01.5"], ["9223372036854775807 days"]),
    ("str", "interval year to month"): (["1 year 2 mons"], ["1 year 2 days", "3 days", "00:00:01", "25 hours"]),
    ("str", "interval hour to minute"): (["04:05:00"], ["04:05:06", "1 second"]),
    ("str", "interval day"): (["3 days"], ["24:00:00"]),
    ("str", "span"): (["00:00:01"], ["00:00:00.5"]),
    ("str", "timestamp(0)[]"): (['{"2024-10-15 08:30:00"}'], ['{"2024-10-15 08:30:00.5"}', "{2024-10-15}"]),
    ("str", "numeric(5,2)[]"): (["{1.50,NULL}"], ["{1.239}", "{1.999}", "{1000}"]),
    ("str", "varchar(3)[]"): (["{abc,NULL}"], ["{abcd}", '{"abc "}']),
    ("str", "short"): (["{abc}"], ["{abcd}"]),
    ("str", "char(3)[]"): (['{"ab "}'], ["{abcd}"]),
    ("str", "float4[]"): (["{0.1}"], ["{0.123456789}"]),
    ("str", "bit(2)[]"): (["{10}"], ["{1}", "{101}"]),
    ("str", "int[]"): (["{1,2}", "[2:3]={1,2}"], ["{1.5}", "{x}"]),
    ("str", "pair"): (["(1.50,ab,00:00:01)"], ["(1.555,ab,00:00:01)", "(1.50,abcd,00:00:01)", "(1.50,ab,00:00:00.5)"]),
    ("str", "pairing"): (["(1.50,ab,00:00:01)"], ["(1.555,ab,00:00:01)"]),
    ("str", "pair[]"): (['{"(1.50,ab,00:00:01)"}'], ['{"(1.555,ab,00:00:01)"}']),
    ("str", "tsrange"): (['["2024-01-01 00:00:00","2024-01-02 00:00:00")'], ['["2024-01-01 00:00:00.1234567",)']),
    ("str", "daterange"): (["[2024-01-01,2024-02-01)"], ["[2024-01-01 10:00,2024-02-01)"]),
    ("str", "spans"): (["[0.5,1)"], ["[0.50000000000000000001,1)"]),
    ("str", "int4range"): (["[1,5)"], ["[1.5,2)"]),
    ("str", "nummultirange"): (["{[1.5,2)}"], ["{x}"]),
    ("str", "oid"): (["4294967295", "0"], ["-1", "4294967296", "007", " 1"]),
    ("str", "xid"): (["7"], ["-1", "4294967296", "12x", "0x7"]),
    ("str", "cid"): (["7"], ["-1", "12x"]),
    ("str", "tid"): (["(1,2)"], ["(-1,2)", "(1,70000)"]),
    ("str", "pg_lsn"): (["16/B374D848"], ["16/b374d848z", "x"]),
    ("str", "regclass"): (["pg_class"], ["pg_nothing"]),
    ("str", "bit(3)"): (["101"], ["1", "1011", "x5"]),
    ("str", "bit varying(3)"): (["10", ""], ["1010"]),
    ("str", "money"): (["$1,234.50"], ["$0.001", "1.999"]),
    ("decimal", "money"): (["1234.50"], ["0.001"]),
    ("str", "inet"): (["10.0.0.1/8"], ["10.0.0.1/33", "10.0.0"]),
    ("str", "cidr"): (["10.0.0.0/8"], ["10.0.0.1/8"]),
    ("str", "macaddr8"): (["08:00:2b:01:02:03:04:05"], ["08:00:2b:01:02:03"]),
    ("str", "point"): (["(1.5,2)"], ["(1.00000000000000000001,2)", "(9007199254740993,0)"]),
    ("str", "circle"): (["<(1,2),3>"], ["<(1,2),3.00000000000000000001>"]),
    ("str", "tsvector"): (["'a':1 'b':2"], ["b a a", "'a':99999"]),
    ("str", "tsquery"): (["'a' & 'b'"], ["!"]),
    ("str", "xml"): (["<a>b</a>"], ["<a>"]),
    ("str", "hstore"): (['"a"=>"1"'], ["a=>1, a=>2"]),
    ("str", "ltree"): (["a.b"], ["a b"]),
    ("str", "citext"): (["Ab "], ["a\0"]),
    ("str", "txid_snapshot"): (["10:20:10,14"], ["10:20:10,10"]),
    ("str", "jsonpath"): (['$."a"'], ["$["]),
    ("json", "timestamp(0)[]"): (
        [["2024-10-15 08:30:00"]],
        [["2024-10-15 08:30:00.5"], ["2024-10-15 08:30:00.1234567"]],
    ),
    ("json", "numeric(5,2)[]"): ([["1.50", None], [1.5]], [["1.239"], [1.239], [1000], [True], [0.12345678901234567]]),
    ("json", "numeric[]"): ([["0." + "1" * 38], [1e13], [[1], [2]]], [["x"], [0.12345678901234567]]),
    ("json", "varchar(3)[]"): ([["abc", "ab "], [["a"]]], [["abcd"], ["abc "], [5], ["a\0"]]),
    ("json", "short"): ([["abc"]], [["abcd"], ["abc "]]),
    ("json", "float4[]"): ([[0.1, "NaN"]], [[0.123456789], [16777217]]),
    ("json", "float8[]"): ([[0.1 + 0.2]], [[2**53 + 1]]),
    ("json", "int[]"): ([[1, None], [[1], [2]]], [[1.5], ["1"], [2**31], [[]]]),
    ("json", "interval(0)[]"): ([["1 day"]], [["00:00:00.5"]]),
    ("json", '"char"[]'): ([["a"]], [["ab"]]),
    ("json", "oid[]"): ([["1"]], [["-1"]]),
    ("json", "jsonb[]"): ([[{"a": 0.1}, None, 2**70]], ["x", ["\0"]]),
    ("json", "mood[]"): ([["ok"]], [["glad"]]),
    ("json", "hstore"): ([{"a": "1", "b": None}], [{"a": 1}, {"a": "\0"}]),
    ("json", "json"): (["\0", {"a\0": ["\0\\u0000"]}], ["\ud800"]),
    ("json", "jsonb"): (
        [10**40, 0.1 + 0.2, {"a": [1, None]}, "\\u0000", ["\\\\u0000"]],
        ["\0", ["\\\0"], {"\0": 1}, "\ud800"],
    ),
    ("float", "real"): (
        [0.1, 0.25, 16777216, 3.4e38, 1e-45, "NaN"],
        [0.123456789, 16777217, 1e300, 0.1 + 0.2, 2**60 + 1],
    ),
    ("float", "double precision"): ([0.1 + 0.2, 5e-324], [2**53 + 1]),
    ("decimal", "numeric(5,2)"): (["1.50", 1.25], ["1.999", 1.999, 1000, "Infinity"]),
    ("decimal", "cent"): (["1.50"], ["1.999"]),
    ("decimal", "numeric"): (["0." + "1" * 38, "9" * 38], [0.12345678901234567]),
    ("datetime", "timestamp(0)"): (
        ["2024-10-15T08:30:00Z", "infinity"],
        ["2024-10-15T08:30:00.5Z", "12000-01-01 00:00:00.5"],
    ),
    ("datetime", "timestamp(3)"): (["2024-10-15T08:30:00.125000Z"], ["2024-10-15T08:30:00.1255Z"]),
    ("datetime", "timestamptz"): (
        ["2024-10-15T08:30:00.123456Z"],
        ["2024-10-15T08:30:00.1234567Z", "2024-10-15T08:30:00,1234567"],
    ),
    ("time", "time(0)"): (["08:30:00", "24:00:00"], ["08:30:00.5", "08:30:00.0000001"]),
    ("time", "timetz(0)"): (["08:30:00+02"], ["08:30:00.5+02", "08:30:00.0000001+02"]),
    ("time", "time"): (["08:30:00.123456"], ["08:30:00.1234567"]),
    ("bytes", "bytea"): (["AA==", "AAEC", ""], ["AB==", "AAF=", "AAA"]),
    ("int", "smallint"): ([1], [70000]),
}


@pytest_twisted.ensureDeferred
async def test_contact_values_are_kept_exactly_or_refused(make_store, postgresql_url):
    """What a column would keep as another value is ``invalid`` by its field, and finds no row; the rest is found."""
    schema, tables = [], [DECLARED]
    for number, (kind, column) in enumerate(CASES):
        schema.append(f"t{number}: {{id: {{type: int, pk: true}}, k: {{type: int, unique: true}}, v: {kind}}}")
        tables.append(f"CREATE TABLE t{number} (id serial PRIMARY KEY, k int UNIQUE, v {column});")
    session = session_of(postgresql_url)
    ask(session, "\n".join(tables))
    store = make_store(postgresql_url, load_schema("\n".join(schema)))
    await store.start()
    with session, rows_of_a_test() as row:
        for number, ((kind, column), (kept, changed)) in enumerate(CASES.items()):
            model = f"t{number}"
            for value in kept:
                with row(f"{kind} {column} {value!r:.60}"):
                    made = await store.create(1, model, {"v": value})
                    same = made["v"] == value or str(made["v"]) == str(value)
                    assert same or kind == "decimal" or column.startswith(("interval", "numeric")), made
                    assert (await store.upsert(1, model, {"k": 1, "v": made["v"]}))["v"] == made["v"]
                    assert await store.update(1, model, made["id"], {"v": value}) == {"updated": 1}
                    assert await store.read(1, model, made["id"]) == [made]
                    if kind != "json":
                        found = await store.read(1, model, {"v": value})
                        assert made["id"] in [each["id"] for each in found]
                        assert all(each["v"] == made["v"] for each in found)
            there = await store.read(1, model, order_by="id")
            for value in changed:
                with row(f"{kind} {column} {value!r:.60} refused"):
                    for asked in (
                        store.create(1, model, {"v": value}),
                        store.update(1, model, there[0]["id"], {"v": value}),
                        store.upsert(1, model, {"k": 1, "v": value}),
                    ):
                        assert (await refused(asked)).startswith("v must")
                    if kind != "json" and column != "char(3)":
                        for where in ({"v": value}, {"v__in": [value]}):
                            try:
                                assert await store.read(1, model, where) == []
                            except Invalid as error:
                                assert list(error.fields) == ["v"]
            with row(f"{kind} {column}"):
                assert await store.read(1, model, order_by="id") == there


#: What others may write into a column of JSON, and what is read of it.
JSONS: list[tuple[str, Any]] = [
    ('{"a":1e400,"b":0.1}', {"a": "1e400", "b": 0.1}),
    ("[1e-400,-1E999999999999999999999]", ["1e-400", "-1E999999999999999999999"]),
    ("[0.12345678901234567890123456789012345678]", ["0.12345678901234567890123456789012345678"]),
    ("[0.30000000000000004,19.90,1.0000000000000000000000]", [0.30000000000000004, 19.9, 1.0]),
    ("9" * 38, int("9" * 38)),
    ("[" + "7" * 5000 + "]", ["7" * 5000]),
    ("[" * 64 + "]" * 64, json.loads("[" * 64 + "]" * 64)),
    ("[" * 65 + "]" * 65, "[" * 65 + "]" * 65),
    ("[" * 3000 + "]" * 3000, "[" * 3000 + "]" * 3000),
    ('{"a":"\\ud800"}', '{"a":"\\ud800"}'),
    ('{"\\udfff":1}', '{"\\udfff":1}'),
    ('"\\ud83d\\ude00\\u0000"', "😀\0"),
    ('"\\\\ud800"', "\\ud800"),
    ("null", None),
]


@pytest_twisted.ensureDeferred
async def test_contact_every_json_is_read(make_store, postgresql_url):
    """No JSON that another program, a default or a trigger wrote keeps a row from being read, alone or in a list."""
    session = session_of(postgresql_url)
    ask(session, "CREATE TABLE t (id serial PRIMARY KEY, j json, b jsonb, l json[])")
    for text, _ in JSONS:
        session.execute("INSERT INTO t (j, l) VALUES (%s, %s::json[])", (text, [text]))
        if "\\u" not in text and "99999999" not in text:
            session.execute("UPDATE t SET b = %s::jsonb WHERE id = lastval()", (text,))
    ask(session, """ALTER TABLE t ALTER j SET DEFAULT '"\\ud800"', ALTER b SET DEFAULT '1e-400'""")
    store = make_store(postgresql_url, load_schema("t: {id: {type: int, pk: true}, j: json, b: json, l: json}"))
    await store.start()
    with session, rows_of_a_test() as row:
        read = await store.read(1, "t", order_by="id")
        assert len(read) == len(JSONS)
        for each, (text, value) in zip(read, JSONS, strict=True):
            with row(text[:50]):
                assert each["j"] == value
                encode_reply(1, each)
                if "\\u" not in text:
                    assert each["l"] == [value] or each["l"] == f"[{text}]"
        made = await store.create(1, "t", {"l": [1]})
        assert made["j"] == '"\\ud800"' and made["b"] == "0." + "0" * 399 + "1"
        encode_reply(1, made)
        assert (await store.create(1, "t", {}, idempotency_key="k"))["j"] == '"\\ud800"'
        assert await store.update(1, "t", {"id__gt": 0}, {"l": None}) == {"updated": len(JSONS) + 2}


@pytest_twisted.ensureDeferred
async def test_contact_defaults_and_rights_keep_to_their_column(make_store, postgresql_url):
    """A default that its column would change ends the start or is refused by field; a granted value likewise."""
    sql(postgresql_url, 'CREATE TABLE t (id serial PRIMARY KEY, n numeric(5,2), v varchar(3), c "char", i interval(0))')
    for field, says in (
        ("n: {type: decimal, default: '1.999'}", "field n: the default must have at most 2 decimal places"),
        ("v: {type: str, default: 'abc '}", "field v: the default must have at most 3 characters"),
    ):
        store = make_store(postgresql_url, load_schema(f"t: {{id: {{type: int, pk: true}}, {field}}}"))
        with pytest.raises(ConfigError, match=says):
            await store.start()
    schema = load_schema(
        "t: {id: {type: int, pk: true}, c: {type: str, default: ab}, i: {type: str, default: '00:00:00.5'}, v: str}"
    )
    store = make_store(postgresql_url, schema)
    await store.start()
    assert "c must" in await refused(store.create(1, "t", {"i": "1 day"}))
    assert "i must" in await refused(store.create(1, "t", {"c": "a"}))
    assert (await store.create(1, "t", {"c": "a", "i": "1 day"}))["c"] == "a"
    for name, value in (("v", "abc "), ("c", "ab"), ("i", "00:00:00.5")):
        create = {"action": "create", "model": "t", "values": {"c": "a", "i": "1 day"} | {name: value}}
        read = parse_command({"action": "read", "model": "t"})
        del create["values"][name]
        assert f"{name} must" in await refused(store.execute(1, parse_command(create), rows={name: value}))
        try:
            assert (await store.execute(1, read, rows={name: value})).result == []
        except Invalid as error:
            assert list(error.fields) == [name]
    assert len(await store.read(1, "t")) == 1


def _texts(dice: random.Random) -> Any:
    number = dice.choice(["", "-"]) + str(dice.randrange(10 ** dice.randrange(1, 12)))
    fraction = str(dice.randrange(10**9))[: dice.randrange(0, 9)]
    text = f"{number}.{fraction}" if fraction else number
    moment = f"2024-0{dice.randrange(1, 10)}-1{dice.randrange(10)} 0{dice.randrange(10)}:30:{dice.randrange(10, 60)}"
    moment += f".{fraction}" if fraction else ""
    plain = text.lstrip("-")
    return dice.choice(
        [
            text,
            float(text),
            moment,
            moment[11:],
            moment + "+00",
            f"{plain[:3]} days {moment[11:]}",
            f"{{{text}}}",
            f"({text},{plain})",
            f"[{plain},)",
            [text],
            [float(text)],
            format(dice.randrange(64), "b"),
            dice.choice(["a", "ab", "abc", "é", "a ", "ab  "]),
            f"10.0.{dice.randrange(300)}.0/{dice.randrange(40)}",
        ]
    )


@pytest_twisted.ensureDeferred
async def test_contact_random_values_come_back_or_are_refused(make_store, postgresql_url):
    """Whatever is sent for whichever type, it is refused by field, or read, found and kept as what was sent."""
    dice = random.Random()
    seed = dice.randrange(10**9)
    dice.seed(seed)
    session = session_of(postgresql_url)
    ask(session, DECLARED)
    columns = list(CASES)
    ask(
        session,
        "\n".join(f"CREATE TABLE t{at} (id serial PRIMARY KEY, v {case[1]});" for at, case in enumerate(columns)),
    )
    schema = "\n".join(f"t{at}: {{id: {{type: int, pk: true}}, v: {kind}}}" for at, (kind, _) in enumerate(columns))
    store = make_store(postgresql_url, load_schema(schema))
    await store.start()
    with session, rows_of_a_test() as row:
        for _ in range(600):
            at, value = dice.randrange(len(columns)), _texts(dice)
            kind, column = columns[at]
            with row(f"{seed}: {kind} {column} {value!r}"):
                try:
                    made = await store.create(1, f"t{at}", {"v": value})
                except Invalid as error:
                    assert list(error.fields) == ["v"], error
                    if kind == "json":
                        continue
                    try:
                        assert await store.read(1, f"t{at}", {"v": value}) == [], "found what cannot be there"
                    except Invalid as again:
                        assert list(again.fields) == ["v"]
                    continue
                assert await store.read(1, f"t{at}", made["id"]) == [made]
                if kind == "json":
                    continue
                # As PostgreSQL itself has both, without the length and the precision of the column. (It reads not all
                # notations of dates and times that zComm does.)
                if isinstance(value, str) and (kind == "str" or (kind == "decimal" and column != "money")):
                    named = "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attname = 'v' AND attrelid = "
                    base = ask(session, f"{named}'t{at}'::regclass")[0][0]
                    told = session.execute(
                        f"SELECT v::text, (%s::{base})::text, %s::text FROM t{at} WHERE id = %s",
                        (value, value, made["id"]),
                    ).fetchall()
                    if kind != "decimal":
                        assert told[0][0].rstrip() in (told[0][1].rstrip(), told[0][2].rstrip()), told
                    else:
                        assert float(told[0][0]) == float(told[0][1])
                found = await store.read(1, f"t{at}", {"v": made["v"]}, order_by="id")
                assert made in found


@pytest_twisted.ensureDeferred
async def test_contact_each_number_of_32_bits_is_taken_as_it_is_shown(make_store, postgresql_url):
    """What is read of a real is written and asked for again, whichever of its numbers it is."""
    odd = [0, 1, 2, 0x7F7FFFFF, 0x00800000, 0x007FFFFF, 0x4CF12E02, *(power << 23 for power in range(1, 255))]
    bits = odd + [random.getrandbits(32) for _ in range(3000)]
    numbers = [struct.unpack("<f", struct.pack("<I", each))[0] for each in bits]
    with session_of(postgresql_url) as session:
        ask(session, "CREATE TABLE t (id serial PRIMARY KEY, r real)")
        session.execute("INSERT INTO t (r) SELECT unnest(%s::float8[])", (numbers,))
    store = make_store(postgresql_url, load_schema("t: {id: {type: int, pk: true}, r: float}"))
    await store.start()
    shown = [each["r"] for each in await store.read(1, "t", order_by="id")]
    found = set()
    for start in range(0, len(shown), 1000):
        part = shown[start : start + 1000]
        found |= {each["id"] for each in await store.read(1, "t", {"r__in": part}, fields=["id"])}
    assert len(found) == len(shown) == len(numbers)
    for number in (126449940.0, 0.123456789, -0.1234567890123):
        assert "r must be a number that its column" in await refused(store.read(1, "t", {"r": number}))
