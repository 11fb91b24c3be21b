"""Windows, differences and digests, against a plain model of a table."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest

from zcomm.data.filters import Filter
from zcomm.data.models import Column, Model
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.live.differences import Difference, difference
from zcomm.live.log import KeyForm
from zcomm.live.query import Query
from zcomm.live.requests import question_of
from zcomm.live.rows import Entry, Form, Row, View
from zcomm.live.watched import QUERIES_AT_ONCE, Watched

SCHEMA = """
Orders:
  id: {type: int, pk: true}
  status: {type: str}
  total: {type: int}
  note: {type: str}
"""


def model() -> Model:
    """A model whose columns are ordered as Python orders."""
    found = load_schema(SCHEMA, "test").models["Orders"]
    fields = {name: replace(each, column=Column(by_code_point=True)) for name, each in found.fields.items()}
    return replace(found, fields=fields)


def apply(rows: list[dict[str, Any]], made: Difference) -> list[dict[str, Any]]:
    """The rule of docs/protocol.rst."""
    gone = {entry.name.decode() for entry in (*made.gone, *(entry for _, entry in made.set))}
    left = [row for row in rows if json.dumps(row["id"]) not in gone]
    for place, entry in made.set:
        left.insert(place, json.loads(entry.row))
    return left


def _placed(name: str, row: dict[str, Any]) -> tuple[bool, Any]:
    return row[name] is None, "" if row[name] is None else row[name]


class Table:
    """Rows, and what a query finds in them."""

    def __init__(self, chance: random.Random, asked: dict[str, Any]):
        self.chance = chance
        self.rows: dict[int, dict[str, Any]] = {}
        self.model = model()
        question, plan = question_of(parse_command({"action": "read", "model": "Orders", **asked}), self.model, {})
        self.view = View(self.model, question.fields, question.order, False)
        self.query = Query(question, plan, self.model, self.view, False)
        self.form = Form(self.model, tuple(self.model.fields), (), False)
        self.asked = asked
        #: How many of the keys are other numbers than they should be.
        self.floats = chance.choice((0, 0, 0.01))

    def row(self, id: int) -> Row | None:
        """A row as a step reads it."""
        found = self.rows.get(id)
        return None if found is None else Row(self.form, (*(found[name] for name in self.form.names), found["id"]))

    def matching(self) -> list[dict[str, Any]]:
        """All rows that match, in order."""
        found = [row for row in self.rows.values() if row["status"] in self.asked["where"]["status__in"]]
        found.sort(key=lambda row: row["id"])
        for term in reversed(self.asked.get("order_by", [])):
            name, _, how = term.partition(" ")
            # A stable sort keeps the order of what ties, also where it is reversed.
            found.sort(key=partial(_placed, name), reverse=how == "DESC")
        return found

    def matches(self, row: Row) -> bool:
        """Whether a row matches, as Python judges it."""
        equal = self.query.equal
        assert equal is not None
        return row.compared(equal[0]) in equal[1] and self.query.test(row) is True

    def read(self) -> list[Entry]:
        """What a read of the query brings."""
        found = [self.row(each["id"]) for each in self.matching()[: self.query.reads]]
        return [row.entry(self.view) for row in found if row is not None]

    def shown(self) -> list[dict[str, Any]]:
        """The rows as clients should see them."""
        limit = self.asked.get("limit", 1000)
        return [{name: row[name] for name in self.query.question.fields} for row in self.matching()[:limit]]

    def write(self) -> set[int]:
        """Change some rows; the keys of those."""
        chance, keys = self.chance, set()
        for _ in range(chance.choice((1, 1, 1, 2, 5, 12))):
            id = chance.randrange(25)
            keys.add(id)
            if chance.random() < 0.35:
                self.rows.pop(id, None)
            else:
                self.rows[id] = {
                    # To SQLite it is the same key.
                    "id": float(id) if chance.random() < self.floats else id,
                    "status": chance.choice(("new", "paid", "gone")),
                    "total": chance.choice((None, 1, 2, 3, 10)),
                    "note": chance.choice((None, "a", "B", "ä", "")),
                }
        return keys


@pytest.mark.parametrize("seed", range(60))
def test_after_every_step_the_client_has_the_rows(seed: int):
    """Whatever changes, with windows, nulls, ties and orders by fields that are not shown: what the differences make of
    the client's rows is what the query finds, and the digest is that of the same rows read anew."""
    chance = random.Random(seed)
    asked: dict[str, Any] = {"where": {"status__in": chance.choice((["new"], ["new", "paid"]))}}
    if chance.random() < 0.8:
        asked["order_by"] = chance.choice((["total"], ["total DESC"], ["note DESC", "total"], ["note"], ["id DESC"]))
    if chance.random() < 0.7:
        asked["limit"] = chance.choice((1, 2, 3, 8))
    if chance.random() < 0.5:
        asked["fields"] = chance.choice((["status"], ["id", "total"], ["note"]))
    table = Table(chance, asked)
    for _ in range(chance.randrange(4)):
        table.write()
    table.query.fill(table.read())
    client = [json.loads(entry.row) for entry in table.query.rows]
    anew = 0
    for _ in range(120):
        before, keys = table.query.digest, table.write()
        updates = {}
        for key in keys:
            row = table.row(key)
            matches = row is not None and table.matches(row)
            if matches or key in table.query.keys:
                updates[key] = row if matches else None
        made = table.query.change(updates)
        if made is None:
            anew += 1
            made = table.query.fill(table.read())
        client = apply(client, made)
        assert client == table.shown()
        assert (before == table.query.digest) is not bool(made)
        other = Query(table.query.question, table.query.plan, table.model, table.view, False)
        other.fill(table.read())
        assert other.digest == table.query.digest
    assert anew < 60


def test_a_difference_tells_no_row_that_has_kept_its_order():
    """Of a row that moves to the front one is told, and not all that it has passed."""
    table = Table(random.Random(1), {"where": {"status__in": ["new"]}, "order_by": ["total"]})
    for id in range(10):
        table.rows[id] = {"id": id, "status": "new", "total": id, "note": None}
    before = table.read()
    table.rows[9]["total"] = -1
    made = difference(before, table.read())
    assert [(place, entry.key) for place, entry in made.set] == [(0, 9)]
    assert made.gone == []


def test_rows_that_make_nothing_of_each_other_are_told_from_none():
    """Two rows alike but for their keys are not the digest of none, nor of two others alike."""
    digests = set()
    for status in ("new", "paid"):
        for ids in ((), (1, 2), (1,), (3, 4)):
            table = Table(random.Random(1), {"where": {"status__in": ["new", "paid"]}, "fields": ["status"]})
            for id in ids:
                table.rows[id] = {"id": id, "status": status, "total": 1, "note": None}
            table.query.fill(table.read())
            digests.add(table.query.digest)
    assert len(digests) == 7


def test_a_filter_that_python_does_not_judge_is_left_to_the_database():
    """Of a text in a column whose collation is not known, and of a pattern, nothing is said."""
    found = model()
    fields = {name: replace(each, column=Column(exact=False)) for name, each in found.fields.items()}
    unknown = replace(found, fields=fields)
    question, plan = question_of(
        parse_command({"action": "read", "model": "Orders", "where": {"status": "new"}}), unknown, {}
    )
    view = View(unknown, question.fields, question.order, False)
    query = Query(question, plan, unknown, view, False)
    form = Form(unknown, tuple(unknown.fields), (), False)
    assert query.test(Row(form, (1, "new", 1, None, 1))) is None
    assert query.equal is None
    assert isinstance(question.where, Filter)


def test_what_is_no_number_is_the_same_each_time():
    """A question with NaN, which is not equal to itself, is the question that it was: else nothing would answer it."""
    found = load_schema("Rates: {id: {type: int, pk: true}, f: float, d: decimal}", "test").models["Rates"]
    where = {"f__between": ["NaN", "Infinity"], "d__in": ["NaN", "1.5"]}
    first, second = (
        question_of(parse_command({"action": "read", "model": "Rates", "where": where}), found, {})[0] for _ in range(2)
    )
    assert first == second and len({first, second}) == 1


@pytest.mark.parametrize("limit", [{}, {"limit": 2}])
def test_rows_whose_order_only_the_database_knows_are_read_anew(limit: dict[str, Any]):
    """With one that is beyond the years of Python nothing is said of any, and nothing is half done."""
    found = load_schema("Days: {id: {type: int, pk: true}, day: date}", "test").models["Days"]
    fields = {name: replace(each, column=Column()) for name, each in found.fields.items()}
    days = replace(found, fields=fields)
    question, plan = question_of(
        parse_command({"action": "read", "model": "Days", "order_by": "day", **limit}), days, {}
    )
    view = View(days, question.fields, question.order, False)
    query, form = Query(question, plan, days, view, False), Form(days, tuple(days.fields), (), False)
    rows = [Row(form, (id, day, id)) for id, day in ((1, "2024-01-01"), (2, "2024-01-02"), (3, "infinity"))]
    query.fill([row.entry(view) for row in rows])
    before, digest = list(query.rows), query.digest
    assert query.change({1: None, 3: Row(form, (3, "2023-01-01", 3))}) is None
    assert query.change({1: Row(form, (1, "2025-01-01", 1))}) is None
    assert query.rows == before and query.digest == digest
    query.fill([row.entry(view) for row in rows[:2]])
    made = query.change({1: Row(form, (1, "2025-01-01", 1))})
    assert made is not None and [entry.key for _, entry in made.set] == [1]


@pytest.mark.parametrize("seed", range(40))
def test_as_few_rows_are_told_as_there_can_be(seed: int):
    """Of rows that only the database orders, and that change places without another byte: all but a longest run that
    has kept its order."""
    chance = random.Random(seed)
    table = Table(chance, {"where": {"status__in": ["new"]}, "order_by": ["total"]})
    for id in range(9):
        table.rows[id] = {"id": id, "status": "new", "total": 1, "note": None}
    entries = table.read()
    before = chance.sample(entries, chance.randrange(10))
    after = chance.sample(entries, chance.randrange(10))
    made = difference(before, after)
    client = [json.loads(entry.row) for entry in before]
    assert apply(client, made) == [json.loads(entry.row) for entry in after]
    places = [before.index(entry) for entry in after if entry in before]
    longest = max(
        (len(run) for size in range(len(places) + 1) for run in combinations(places, size) if list(run) == sorted(run)),
        default=0,
    )
    assert len(made.set) == len(after) - longest
    assert {entry.key for entry in made.gone} == {entry.key for entry in before} - {entry.key for entry in after}


class Compared(Query):
    """A query that counts how often it is compared with others."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return self is other

    __hash__ = Query.__hash__


def test_many_queries_that_keep_one_row_cost_no_more_than_each_by_itself():
    """None is looked for among all others, and a row that concerns all of them is looked at in slices."""
    table = Table(random.Random(1), {"where": {"status__in": ["new"]}})
    table.rows = {1: {"id": 1, "status": "new", "total": 5, "note": None}}
    row = table.row(1)
    assert row is not None
    watched = Watched(table.model, KeyForm(("id",), "", list), False)
    queries: list[Query] = []
    kept: Any = None
    for number in range(2 * QUERIES_AT_ONCE):
        kept = watched._keeping[1] if number == QUERIES_AT_ONCE else kept
        asked = parse_command({"action": "read", "model": "Orders", "where": {"total__gt": number - 9}})
        question, plan = question_of(asked, table.model, {})
        queries.append(Compared(question, plan, table.model, table.view, False))
        queries[-1].fill([row.entry(table.view)])
        watched.add(queries[-1])
    # Nothing is copied with each that comes.
    assert watched._keeping[1] is kept
    Compared.times = 0
    touched: dict[Query, dict[Any, Row | None]] = {}
    slices = sum(1 for _ in watched.look_at(1, row, touched, {}))
    assert [touched[query] for query in queries] == [{1: row}] * 14 + [{1: None}] * (len(queries) - 14)
    assert slices >= 4
    for query in queries:
        watched.remove(query)
    assert not watched._keeping
    assert Compared.times < len(queries)


def test_an_order_counts_where_there_are_several_rows():
    """Of none and of one the digest is the same in any order; of two that stand as they did it is another."""
    digests: list[set[str]] = [set(), set(), set()]
    for order in (["total", "note"], ["note DESC"], ["total DESC", "id DESC"]):
        table = Table(random.Random(1), {"where": {"status__in": ["new"]}, "order_by": order})
        table.floats = 0
        for number, found in enumerate(digests):
            table.query.fill(table.read())
            found.add(table.query.digest)
            table.rows[number] = {"id": number, "status": "new", "total": 1, "note": "a"}
    assert [len(found) for found in digests] == [1, 1, 3]


@pytest.mark.parametrize("is_first", [False, True])
def test_a_key_in_another_form_takes_the_place_of_the_one_before(is_first: bool):
    """They are the same to the order and to the database, as 0 and 0.00 are, and come in any order."""
    table = Table(random.Random(1), {})

    def row(id: int, key: str) -> Row:
        values = {"id": id, "status": "a", "total": 1, "note": key}
        return Row(table.form, (*(values[name] for name in table.form.names), key))

    query = table.query
    query.fill([row(number, str(number)).entry(table.view) for number in (1, 2, 3)])
    changes: dict[Any, Row | None] = {"2": None, "2.0": row(2, "2.0")}
    made = query.change(dict(reversed(changes.items())) if is_first else changes)
    assert made is not None
    assert [entry.key for entry in made.gone] == ["2"]
    assert [(place, entry.key) for place, entry in made.set] == [(1, "2.0")]
    assert [entry.key for entry in query.rows] == ["1", "2.0", "3"]
    assert set(map(id, query.rows)) == set(map(id, query.keys.values()))
