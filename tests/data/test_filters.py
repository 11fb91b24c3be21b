"""The filter language: what is accepted, what is refused, and what it selects."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite
from twisted.internet.threads import deferToThread

from zcomm.data import filters as language
from zcomm.data.filters import (
    _TEXTUAL,
    EVERYTHING,
    MAX_CONDITIONS,
    MAX_COPIED,
    MAX_DEPTH,
    MAX_LIST,
    MAX_TEXTUAL,
    MAX_TRIED,
    OPERATORS,
    parse_filter,
    parse_order,
)
from zcomm.data.requests import make_plan, parse_command
from zcomm.data.schema import demo_schema, load_schema
from zcomm.data.sql.statements import Statements
from zcomm.data.sql.tables import build_tables
from zcomm.data.store import Store
from zcomm.errors import CommandError, Invalid, UnknownField

USERS = demo_schema().models["Users"]


def nested(depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {"id": 1}
    for _ in range(depth - 1):
        where = {"$not": where}
    return where


@pytest.mark.parametrize(
    "where",
    [
        "id",
        "1; DROP TABLE Users",
        [],
        [1],
        True,
        1.5,
        {"$or": {}},
        {"$or": [1]},
        {"$not": []},
        {"$and": None},
        {"age": "18"},
        {"age": True},
        {"age": 2**63},
        {"age": 1.0},
        {"age__gt": None},
        {"age__in": 5},
        {"age__between": [1]},
        {"age__between": 5},
        {"age__isnull": 1},
        {"age__isnull": None},
        {"age": {"$gt": 5}},
        {"active": 1},
        {"active": "true"},
        {"active__contains": "t"},
        {"age__like": "1%"},
        {"name": 5},
        {"name": "a\0b"},
        {"name": "\ud800"},
        {"name__like": "a\\"},
        {"name__like": "x" * 1001},
        {"name__contains": None},
        {"created_at": "yesterday"},
        {"created_at": 5},
        {"created_at": "2024-13-01"},
        {"created_at": "0001-01-01T00:00:00+14:00"},
        {"id__in": list(range(MAX_LIST + 1))},
        nested(MAX_DEPTH + 1),
        {"$or": [{"id": n} for n in range(MAX_CONDITIONS)]},
        {"$or": [{"id__in": list(range(MAX_LIST))} for _ in range(3)]},
        {"$or": [{}] * MAX_CONDITIONS},
        {"$or": [{"$or": [{}] * 20}] * 20},
        {"name__contains": "x" * 1001},
        {"name__startswith": "x" * 1001},
        {"name__endswith": "x" * 1001},
        {"$or": [{"name__contains": "x" * 1000}] * 5},
        {"name__like": "a%" + "x" * 201},
        {"name__ilike": "a%" + "x" * 201},
        {"name__like": "a%" + "[" * 60},
        {"name__like": "%" + "_x" * 110},
        {"$and": [{"name__like": "%a%" + "x" * 50}] * 5},
    ],
    ids=lambda where: repr(where)[:40],
)
def test_invalid(where):
    """A value or a form that cannot be used is refused before any SQL is made."""
    with pytest.raises(Invalid):
        parse_filter(USERS, where)


def test_b11_values_are_counted_before_they_are_looked_at():
    """What is too much is told before any of it is parsed."""
    full = {"id__in": list(range(MAX_LIST))}
    with pytest.raises(Invalid, match="more than 2000 values"):
        parse_filter(USERS, {"$and": [full, full, {"created_at__in": ["no moment"]}]})


@pytest.mark.parametrize("operator", ["like", "ilike", "contains", "startswith", "endswith"])
def test_b1_conditions_that_look_into_texts_are_bounded(operator):
    """For each of them a database keeps a copy of the text."""
    looks = [{f"name__{operator}": "a%b"}] * MAX_TEXTUAL
    parse_filter(USERS, {"$or": [*looks, {"age": 1}, {"name": "a"}]})
    with pytest.raises(Invalid, match="more than 32 conditions of like, ilike, contains, startswith and endswith"):
        parse_filter(USERS, {"$or": looks, "$and": [{"$not": {"name__contains": "é"}}]})


@pytest.mark.parametrize("key", ["name__in", "name__not_in"])
def test_b1_lists_of_texts_beyond_a_few_values_are_bounded(key):
    """SQLite keeps a copy of the text for each."""
    short, long = {key: list("ab")}, {key: [str(n) for n in range(20)]}
    parse_filter(USERS, {"$or": [*[short] * 32, *[long] * MAX_TEXTUAL]})
    with pytest.raises(Invalid, match="lists of texts or bytes beyond 64 values"):
        parse_filter(USERS, {"$or": [*[short] * 33, *[long] * MAX_TEXTUAL]})
    parse_filter(USERS, {"$or": [{"age__in": list(range(20))}] * 90})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("s__like", "{:02}_a"),
        ("s__like", "%{:02}_a"),
        ("s__ilike", "{:02}_a"),
        ("s__ilike", "%{:02}_a"),
        ("s__ilike", "%é{:02}_a"),
        ("s__ilike", "%{:02}%"),
        ("s__ilike", "%é{:02}"),
        ("s__contains", "{:02}"),
        ("s__startswith", "{:02}"),
        ("s__endswith", "{:02}"),
        ("s", "{:02}"),
        ("s__ne", "{:02}"),
        ("s__gt", "{:02}"),
        ("s__lte", "{:02}"),
        ("s__between", ["{:02}", "{:02}"]),
        ("s__in", ["{:02}", "{:02}"]),
        ("s__not_in", ["{:02}", "{:02}"]),
        ("s__isnull", True),
        ("b", "AAA="),
        ("b__ne", "AAA="),
        ("b__in", ["AAA=", "AAE="]),
        ("b__not_in", ["AAA=", "AAE="]),
        ("o", "{:02}"),
        ("o__in", ["{:02}", "{:02}"]),
        ("o__not_in", ["{:02}", "{:02}"]),
        ("n", "{:02}"),
    ],
)
@pytest.mark.parametrize("how", ["$or", "$not"])
@pytest_twisted.ensureDeferred
async def test_b1_sqlite_keeps_no_text_for_each_condition(make_store, tmp_path, key, value, how):
    """SQLite keeps what is in a register until the statement ends; a text of a megabyte in each would be too much."""
    with closing(sqlite3.connect(tmp_path / "t.sqlite3")) as made:
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT, b BLOB, o BLOB, n NUMERIC)")
    schema = load_schema("t: {id: {type: int, pk: true}, s: str, b: bytes, o: str, n: str}")
    store = make_store(f"sqlite:///{tmp_path}/t.sqlite3", schema)
    await store.start()
    # In which operand an instruction says where it puts what it has of a column; a cast leaves it there.
    places = {"Column": 3, "Function": 3, "PureFunc": 3}

    def registers(conditions: int) -> int:
        either = [{key: json.loads(json.dumps(value).replace("{:02}", f"{n:02}"))} for n in range(conditions)]
        where = {"$or": either} if how == "$or" else {"$and": [{"$not": each} for each in either]}
        plan = make_plan(parse_command({"where": where}, "read", "t"), store.schema.models["t"], 10)
        statement = store._execution._statements.of(plan)
        with store._pool.connection() as connection:
            program, *_ = connection.run(f"EXPLAIN {statement.sql}", [""] * len(statement.parameters), True)
        return len({row[1 + places[row[1]]] for row in program if row[1] in places})

    few = await store._workers.run(1, registers, 1)
    assert few >= 1
    # But for a few, which are faster so: up to three each, with what is made of the text that is looked for.
    # So are lists of texts among numbers, each of which is looked for in a range too.
    copied = MAX_TEXTUAL if key == "o__in" else MAX_COPIED
    assert await store._workers.run(1, registers, MAX_TEXTUAL) <= few + 3 * copied


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest_twisted.ensureDeferred
async def test_b1_nulls_of_json_are_looked_for_without_copies(postgresql, make_store, url):
    """However often a filter asks whether a large value is a null of JSON, no database makes a text of it each time."""
    store = make_store(url, load_schema("t: {id: {type: int, pk: true}, j: json}"), threads=1, connections=1)
    await store.start()
    await store.create(1, "t", {"j": ["a" * 1_000_000]})
    await store.create(1, "t", {"j": None})
    with store._pool.connection() as connection:
        process = Path("/proc") / str(connection.process or "self")

    def peak() -> int:
        return int(re.search(r"VmHWM:\s*([0-9]+) kB", (process / "status").read_text())[1]) // 1024

    (process / "clear_refs").write_text("5")
    before = peak()
    assert await store.read(1, "t", {"$and": [{"j__isnull": False}] * 190}, fields=["id"]) == [{"id": 1}]
    assert await store.read(1, "t", {"$or": [{"j__isnull": True}] * 190}, fields=["id"]) == [{"id": 2}]
    assert peak() - before < 40


@pytest.mark.parametrize("dialect", [sqlite, postgresql], ids=["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "where",
    [
        {"name__contains": "a" * 900 + "b"},
        {"name__endswith": "a" * 900 + "b"},
        {"name__like": "%" + "a" * 900 + "b%"},
        {"name__like": "%" + "a" * 900 + "b"},
        {"name__ilike": "%" + "a" * 900 + "b%"},
        {"name__ilike": "%" + "é" * 900 + "b%"},
        {"$or": [{"name__contains": f"{n:03}" * 10} for n in range(MAX_TEXTUAL)]},
    ],
    ids=lambda where: repr(where)[:40],
)
def test_b1_long_texts_are_looked_for_and_not_matched(where, dialect):
    """A pattern is tried at each place of a text, letter by letter; a text of many letters is looked for instead."""
    plan = make_plan(parse_command({"where": where}, "read", "Users"), USERS, 10)
    statement = Statements(build_tables(demo_schema())[1], dialect.dialect(paramstyle="qmark")).of(plan)
    values = [value for kind, value in plan.slots if kind.endswith("literal")]
    assert len(values) == len(where.get("$or", "1"))
    matched = statement.sql.count("GLOB") + statement.sql.count("LIKE")
    # Of many that are short, the first few may be patterns, for which there may be an index.
    assert matched * 30 <= 200 if "$or" in where else matched == 0


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"emial": 1}, 'no field "emial"; did you mean "email"'),
        ({"1=1 OR id": 1}, "no field"),
        ({"id) OR (1=1": 1}, "no field"),
        ({"id--": 1}, "no field"),
        ({"": 1}, "no field"),
        ({"__class__": 1}, "no field"),
        ({"name__strtswith": "A"}, 'no operator "strtswith" for Users.name; did you mean "startswith"'),
        ({"age__evil": 1}, "no operator"),
        ({"name__like__gt": 1}, "no field"),
        ({"age__": 1}, "no operator"),
        ({"$nor": []}, 'no operator "$nor"'),
        ({"$or; DROP": []}, "no operator"),
        ({"Users.id": 1}, "no field"),
        ({"ID": 1}, 'did you mean "id"'),
    ],
)
def test_unknown(where, says):
    """What the schema does not know is named, with the nearest thing that it does."""
    with pytest.raises(UnknownField) as caught:
        parse_filter(USERS, where)
    assert says in str(caught.value)


def test_hidden_is_unknown():
    """A hidden field is spoken of exactly as one that does not exist."""
    model = load_schema("T: {id: {type: int, pk: true}, token: {type: str, hidden: true}}").models["T"]
    texts = []
    for name in ("token", "tokem"):
        for where in ({name: 1}, {name + "__like": "a%"}):
            with pytest.raises(UnknownField) as caught:
                parse_filter(model, where)
            texts.append(str(caught.value).replace(name, "…"))
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    "where",
    [
        None,
        {},
        {"$and": []},
        {"$and": [{}]},
        {"$or": [{}]},
        {"$not": {"id": []}},
        {"id__not_in": []},
        {"id__isnull": False},
        {"id__ne": None},
        {"$or": [{"age": 1}, {}]},
        {"$not": {"$or": []}},
    ],
)
def test_everything(where):
    """A filter that selects nothing in particular is known as such, however it is dressed."""
    assert parse_filter(USERS, where) == EVERYTHING


@pytest.mark.parametrize(
    "where",
    [
        {"id": []},
        {"$or": []},
        {"id__in": []},
        {"$not": {}},
        {"id": None},
        {"$and": [{"age": 1}, {"$or": []}]},
        {"age": 1, "id": []},
        {"$not": {"id__not_in": []}},
    ],
)
def test_nothing(where):
    """An empty list matches nothing; it never widens to everything."""
    assert parse_filter(USERS, where).nothing


@pytest.mark.parametrize(("where", "expected"), [(5, 5), ("5", 5), ("-7", -7)])
def test_id(where, expected):
    """An id alone stands for a filter on the primary key; numbers may come as text."""
    parsed = parse_filter(USERS, where)
    assert (parsed.shape, parsed.slots) == (("id", "eq"), (("int", expected),))


@pytest.mark.parametrize("where", ["1 ", " 1", "1\n", "+1", "01", "-0", "00", "1.0", "1e0", "1_0", "\u0661", "", 1.0])
def test_contact_an_id_as_text_has_one_form(where):
    """A text names no row but in the form that its number is shown in."""
    with pytest.raises(Invalid):
        parse_filter(USERS, where)


@pytest.mark.parametrize(
    ("pattern", "collapsed"),
    [
        ("%_" * 1000, None),
        ("%_" * 500, "_" * 500 + "%"),
        ("a%%b", "a%b"),
        (r"a\%\_b", r"a\%\_b"),
        (r"\\%%", r"\\%"),
        (r"\%%_%", r"\%_%"),
    ],
)
def test_patterns_are_collapsed(pattern, collapsed):
    """A run of wildcards is brought to the form that matches in the least time; long patterns are refused."""
    if collapsed is None:
        with pytest.raises(Invalid):
            parse_filter(USERS, {"name__like": pattern})
    else:
        assert parse_filter(USERS, {"name__like": pattern}).slots == (("pattern", collapsed),)


@pytest.mark.parametrize(
    "order_by",
    [
        "id; DROP TABLE Users",
        "(CASE WHEN 1=1 THEN id END)",
        "1",
        "pg_sleep(5)",
        "id DESC; --",
        "",
        " ",
        ",",
        "id,",
        "id ASC DESC",
        "id DESC NULLS FIRST",
        "a,b,c,d,e,f,g,h,i",
        {"id": "DESC"},
        {"id": "DESC; --"},
        5,
        True,
        [],
        ["id", 5],
        ["id, name"],
        ["id"] * 9,
        "id, id",
        "id DESC, id ASC",
        ["id\n; --"],
        "id" + " " * 5000 + "x",
    ],
)
def test_bad_order(order_by):
    """Ordering has a grammar; nothing else gets through."""
    with pytest.raises(CommandError):
        parse_order(USERS, order_by)


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        (None, ()),
        ("id", (("id", False),)),
        ("created_at DESC, name", (("created_at", True), ("name", False))),
        (["created_at desc", " name  ASC "], (("created_at", True), ("name", False))),
    ],
)
def test_order(order_by, expected):
    """Ordering as text and as a list."""
    assert parse_order(USERS, order_by) == expected


def test_unknown_order_is_named():
    """A field to order by that there is not is named with the nearest."""
    with pytest.raises(UnknownField, match='"craeted_at"; did you mean "created_at"'):
        parse_order(USERS, "craeted_at DESC")


@pytest.mark.parametrize("dialect", [sqlite, postgresql], ids=["sqlite", "postgresql"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_each_operator_has_its_sql(operator: str, dialect: Any):
    """What the language knows can be asked of both databases, and is explained where the language is."""
    values = [{"age": [1, 2]}, {"age": 1}, {"name": "a"}, {"active": True}]
    plans = []
    for name, value in (pair for each in values for pair in each.items()):
        try:
            plans.append(
                make_plan(parse_command({"where": {f"{name}__{operator}": value}}, "read", "Users"), USERS, 10)
            )
        except Invalid:
            continue
    statements = Statements(build_tables(demo_schema())[1], dialect.dialect(paramstyle="qmark"))
    assert plans and all(statements.of(plan).sql for plan in plans)
    assert operator in str(language.__doc__).split("``")[1].replace("\n", " ").split()


# What a filter selects, against an evaluator that shares nothing with the SQL.

ALPHABET = "aAbB%_\\*?[]-é É1"
texts = st.text(ALPHABET, max_size=4)
integers = st.integers(-3, 3)
moments = st.integers(0, 3).map(lambda day: datetime(2024, 1, 1 + day, tzinfo=UTC).isoformat())
VALUES = {"s": texts, "i": integers, "b": st.booleans(), "dt": moments}
COLUMNS = list(VALUES)


@st.composite
def conditions(draw: Any) -> tuple[str, Any]:
    name = draw(st.sampled_from(COLUMNS))
    value = VALUES[name]
    operator = draw(st.sampled_from([each for each in (*OPERATORS, "") if name == "s" or each not in _TEXTUAL]))
    many = st.lists(st.none() | value, max_size=4)
    key = f"{name}__{operator}" if operator else name
    if operator in ("", "eq", "ne"):
        return key, draw(st.none() | value | many)
    if operator in ("in", "not_in"):
        return key, draw(many)
    if operator == "isnull":
        return key, draw(st.booleans())
    if operator == "between":
        return key, [draw(value), draw(value)]
    made = draw(value)
    # A lone backslash at the end is an error of its own.
    return key, made + "\\" if operator in ("like", "ilike") and lone_backslash(made) else made


def lone_backslash(pattern: str) -> bool:
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def combined(filters: Any) -> Any:
    several = st.lists(filters, max_size=3)
    plain = st.lists(conditions(), max_size=3).map(dict)
    return st.builds(
        lambda base, more: {**base, **more},
        plain,
        st.fixed_dictionaries({}, optional={"$or": several, "$and": several, "$not": filters}),
    )


wheres = st.recursive(st.lists(conditions(), max_size=3).map(dict), combined, max_leaves=6)
rows = st.lists(st.fixed_dictionaries({name: st.none() | value for name, value in VALUES.items()}), max_size=6)


def like(text: str, pattern: str) -> bool:
    """LIKE by recursion on both."""
    if not pattern:
        return not text
    if pattern[0] == "%":
        return any(like(text[at:], pattern[1:]) for at in range(len(text) + 1))
    if pattern[0] == "_":
        return bool(text) and like(text[1:], pattern[1:])
    wanted, rest = (pattern[1], pattern[2:]) if pattern[0] == "\\" else (pattern[0], pattern[1:])
    return text[:1] == wanted and like(text[1:], rest)


def holds(row: dict[str, Any], key: str, wanted: Any) -> bool:
    if key == "$not":
        return not matches(row, wanted)
    if key == "$and":
        return all(matches(row, each) for each in wanted)
    if key == "$or":
        return any(matches(row, each) for each in wanted)
    name, _, operator = key.partition("__")
    value = row[name]
    if operator in ("", "eq", "in"):
        return value in wanted if isinstance(wanted, list) else value == wanted
    if operator in ("ne", "not_in"):
        return value not in wanted if isinstance(wanted, list) else value != wanted
    if operator == "isnull":
        return (value is None) is wanted
    if value is None:
        return False
    return {
        "gt": lambda: value > wanted,
        "gte": lambda: value >= wanted,
        "lt": lambda: value < wanted,
        "lte": lambda: value <= wanted,
        "between": lambda: wanted[0] <= value <= wanted[1],
        "like": lambda: like(value, wanted),
        "ilike": lambda: like(value.lower(), wanted.lower()),
        "contains": lambda: wanted in value,
        "startswith": lambda: value.startswith(wanted),
        "endswith": lambda: value.endswith(wanted),
    }[operator]()


def matches(row: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(holds(row, key, wanted) for key, wanted in where.items())


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(rows=rows, where=wheres)
def check_semantics(stores: list[Store], rows: list[dict[str, Any]], where: dict[str, Any]) -> None:
    stored = [{**row, "dt": row["dt"] and row["dt"].replace("+00:00", "Z")} for row in rows]
    # Compared as moments in the same spelling.
    expected = [stored[at] for at, row in enumerate(rows) if matches(row, where)]
    for store in stores:
        store.handle_request({"action": "delete", "model": "Things", "all": True})
        for row in rows:
            store.handle_request({"action": "create", "model": "Things", "values": row})
        # What is said first says nothing, and leaves no room for patterns and for lists of parameters.
        lists = [{"i__not_in": list(range(100, 116))}] * 4
        for asked in (where, {"$and": [{"$not": {"s__contains": "~" * MAX_TRIED}}, *lists, where]}):
            read = {"action": "read", "model": "Things", "where": asked, "fields": COLUMNS}
            assert store.handle_request(read) == expected


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_semantics(stores):
    """On both databases a filter selects exactly the rows that it describes."""
    await deferToThread(check_semantics, stores)
