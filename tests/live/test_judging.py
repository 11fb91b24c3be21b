"""Filters and orders in Python, against the database: it says the same, or that it does not know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from support.postgres import Cluster
from twisted.internet import reactor

from zcomm.budget.budgets import Budgets
from zcomm.config import Limits
from zcomm.data.filters import parse_filter
from zcomm.data.models import Model
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.live import judging
from zcomm.live.requests import question_of
from zcomm.live.rows import Form, Row, View, raw_fields
from zcomm.runtime.workers import Workers

SCHEMA = """
Things:
  id: {type: int, pk: true}
  s:  str
  i:  int
  f:  float
  d:  decimal
  b:  bool
  da: date
  dt: datetime
  ti: time
  u:  uuid
  j:  json
  by: bytes
"""
ROWS: tuple[dict[str, Any], ...] = (
    {},
    {
        "s": "abc",
        "i": 1,
        "f": 1.5,
        "d": "1.50",
        "b": True,
        "da": "2024-02-29",
        "dt": "2024-02-29T12:00:00Z",
        "ti": "08:30:00",
        "u": "12345678-1234-5678-1234-567812345678",
        "j": {"a": 1},
        "by": "AAE=",
    },
    {
        "s": "Abc",
        "i": -7,
        "f": -0.0,
        "d": "1.5",
        "b": False,
        "da": "1999-12-31",
        "dt": "2024-02-29T12:00:00.5Z",
        "ti": "23:59:59.5",
        "u": "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "j": None,
        "by": "",
    },
    {"s": "", "i": 2**53 + 1, "f": 1e300, "d": "99999999999999999999.5", "da": "0001-01-01"},
    {"s": "ä%_\\", "i": 2, "f": 2.0, "d": "0", "dt": "9999-12-31T23:59:59.999999Z"},
    {"s": "abc def", "i": 2, "f": 1.0, "d": "-1", "b": True, "ti": "00:00:00"},
)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    *({name: ROWS[1][name]} for name in ("s", "i", "f", "d", "b", "da", "dt", "ti", "u", "by")),
    *({f"{name}__ne": ROWS[1][name]} for name in ("s", "i", "f", "d", "b", "da", "dt", "ti", "u")),
    *(
        {f"{name}__{how}": ROWS[1][name]}
        for name in ("s", "i", "f", "d", "da", "dt", "ti", "u")
        for how in ("gt", "gte", "lt", "lte")
    ),
    *({f"{name}__between": [ROWS[2][name], ROWS[1][name]]} for name in ("i", "f", "d", "da", "dt")),
    *({f"{name}__isnull": True} for name in ("s", "i", "f", "d", "b", "da", "dt", "ti", "u", "j", "by")),
    {"s__isnull": False},
    {"s__in": ["abc", "", None]},
    {"i__in": [1, 2]},
    {"i__not_in": [1, None]},
    {"i__not_in": [1, 2]},
    {"i__in": list(range(100))},
    {"i__not_in": list(range(100))},
    {"d__in": ["1.5", "0.0"]},
    {"s__like": "ab%"},
    {"s__like": "%b%"},
    {"s__like": "_bc"},
    {"s__like": "ä\\%%"},
    {"s__ilike": "ABC%"},
    {"s__contains": "b"},
    {"s__contains": "%_"},
    {"s__contains": ""},
    {"s__startswith": "ab"},
    {"s__startswith": "ä%_"},
    {"s__endswith": "def"},
    {"s__endswith": "\\"},
    {"$or": [{"i": 1}, {"s": ""}]},
    {"$or": [{"i": 1}, {"s__ilike": "%"}]},
    {"$and": [{"i__gte": 1}, {"$not": {"s": "abc"}}]},
    {"$not": {"s__ilike": "a%"}},
    {"$not": {"i__gt": 1}},
    {"i": 2, "b": True},
    {"f": 2},
    {"i__gt": 0, "s__startswith": "abc", "f__lt": 1.2},
)
ORDERS = ("s", "s DESC", "i DESC, s", "f", "d DESC", "b, i", "da DESC", "dt", "ti DESC", "u")


@pytest_twisted.async_yield_fixture
async def store(postgresql: Cluster, url: str) -> AsyncIterator[Store]:
    """A started store with the rows."""
    workers = Workers(2, name="test-judging", reactor=reactor)
    made = Store(url, load_schema(SCHEMA), workers, budgets=Budgets.on(reactor, Limits()))
    workers.start()
    await made.start()
    for row in ROWS:
        await made.create("test", "Things", row)
    yield made
    await made.stop()
    await workers.stop()


async def read_rows(store: Store, names: tuple[str, ...]) -> tuple[Model, Form, list[Row], bool]:
    """All rows as a step reads them."""
    is_sqlite = store.execution.database.name == "sqlite"
    model = store.schema.models["Things"]
    raw = raw_fields(model, names, is_sqlite)
    form = Form(model, names, raw, is_sqlite)
    question, plan = question_of(parse_command({"action": "read", "model": "Things"}), model, {})
    assert question.fields == names
    rows, _ = await store.find("test", plan, ("id",), raw, 1 << 20)
    return model, form, [Row(form, values) for values in rows], is_sqlite


@pytest_twisted.ensureDeferred
async def test_python_says_what_the_database_says(store: Store):
    """Of each filter and each row: whether it matches, or that only the database knows; and of many it knows."""
    names = tuple(store.schema.models["Things"].visible)
    model, _, rows, is_sqlite = await read_rows(store, names)
    decided = 0
    for where in FILTERS:
        found = parse_filter(model, where or None)
        matching = {row["id"] for row in await store.read("test", "Things", where or None)}
        test = judging.test_of(found, model, is_sqlite)
        equal, rest = judging.equal_to(found, model, is_sqlite)
        left = judging.test_of(rest, model, is_sqlite)
        verdicts = {row.key: test(row) for row in rows}
        for row in rows:
            verdict = verdicts[row.key]
            assert verdict in (None, row.key in matching), (where, row.key, verdict)
            if equal is not None and row.key in matching:
                assert row.compared(equal[0]) in equal[1] or repr(row.compared(equal[0])) == "UNKNOWN", where
                assert left(row) in (None, True), where
        if not judging.judged_by_the_database(found, model, is_sqlite):
            decided += sum(verdict is not None for verdict in verdicts.values())
    assert decided > 300


@pytest_twisted.ensureDeferred
async def test_python_sorts_as_the_database_does(store: Store):
    """Of each order that it knows; of others it says that it does not."""
    names = tuple(store.schema.models["Things"].visible)
    model, _, rows, is_sqlite = await read_rows(store, names)
    sorted_ones = 0
    for order in ORDERS:
        command = parse_command({"action": "read", "model": "Things", "order_by": order})
        question, _ = question_of(command, model, {})
        entries = [row.entry(View(model, question.fields, question.order, is_sqlite)) for row in rows]
        if any(entry.sort is None for entry in entries):
            continue
        sorted_ones += 1
        expected = [row["id"] for row in await store.read("test", "Things", order_by=order)]
        assert [entry.key for entry in sorted(entries, key=lambda entry: entry.sort or ())] == expected, order
    assert sorted_ones >= 5
