"""Requests of any form: each is carried out or refused with an error that is meant for clients."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.threads import deferToThread

from zcomm.data.filters import OPERATORS
from zcomm.data.requests import make_plan, parse_command
from zcomm.data.schema import load_schema
from zcomm.errors import CommandError, Conflict, InternalError, Invalid, PermissionDenied, UnknownField, UnknownModel
from zcomm.interfaces import ACTIONS

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["2024-10-15", "08:30", "19.99", "AAEC", "*", "id", "%_\\", "id DESC"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "id",
        "name",
        "email",
        "age",
        "active",
        "s",
        "i",
        "f",
        "d",
        "b",
        "da",
        "dt",
        "ti",
        "u",
        "j",
        "by",
        "secret",
        "score",
        "team",
        "x",
        "1=1",
    ]
)
keys = st.one_of(
    st.builds(
        lambda name, operator: name + operator,
        fields,
        st.sampled_from(["", *("__" + each for each in OPERATORS), "__evil"]),
    ),
    st.sampled_from(["$or", "$and", "$not", "$nor", ""]),
)
filters = st.recursive(
    st.dictionaries(keys, values, max_size=3),
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "$or": st.lists(inner, max_size=3),
                "$and": st.lists(inner, max_size=3),
                "$not": inner,
                "id": st.integers(-3, 3),
            },
        )
    ),
    max_leaves=5,
)
requests = st.fixed_dictionaries(
    {"action": st.sampled_from(ACTIONS), "model": st.sampled_from(["Users", "Things", "Members", "Seats", "Nothing"])},
    optional={
        "values": st.one_of(st.dictionaries(fields, values, max_size=4), values),
        "where": st.one_of(filters, values),
        "filters": filters,
        "fields": st.one_of(st.lists(fields, max_size=3), values),
        "order_by": st.one_of(values, fields),
        "limit": st.one_of(st.integers(-1, 9), scalars),
        "offset": st.one_of(st.integers(-1, 9), scalars),
        "conflict_fields": st.one_of(st.lists(fields, max_size=2), values),
        "all": scalars,
        "_idempotencyKey": scalars,
        "_schema_cached": values,
    },
)
EXPECTED = (Conflict, Invalid, PermissionDenied, UnknownField, UnknownModel)


def plain(value: Any) -> bool:
    """Whether ``value`` is JSON, and the same after a round trip."""
    return json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_any_request(stores):
    """On both databases a request of any form succeeds with plain values or fails with a declared error; whatever is
    accepted by the checks is also accepted by the database."""

    @settings(
        max_examples=300,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(requests)
    def check(request: dict[str, Any]) -> None:
        for store in stores:
            try:
                assert plain(store.handle_request(request))
            except EXPECTED as error:
                assert not isinstance(error, InternalError)
                assert len(str(error)) < 2000

    await deferToThread(check)


@given(values, st.sampled_from([*ACTIONS, None]), st.sampled_from(["Users", None]))
def test_any_json(horizontal, action, model):
    """Whatever JSON stands in place of a request, the refusal is an ordinary one."""
    try:
        parse_command(horizontal, action, model)
    except Invalid as error:
        assert len(str(error)) < 300


@given(requests)
def test_shapes_hold_no_values(schema, request):
    """What a client may choose freely never becomes part of the shape, from which SQL is made."""
    try:
        command = parse_command(request)
        plan = make_plan(command, schema.find(command.model), 100)
    except CommandError:
        return
    known = {
        *OPERATORS,
        *ACTIONS,
        "$and",
        "$or",
        "$not",
        "$true",
        "$false",
        "notnull",
        "ilike_ascii",
        *plan.model.fields,
    }

    def check(shape: Any) -> None:
        for part in shape:
            if isinstance(part, tuple):
                check(part)
            else:
                assert isinstance(part, (bool, int)) or part in known

    check(plan.shape)
    assert hash(plan.shape) is not None


@pytest.mark.parametrize(
    ("column", "stored", "shown"),
    [
        ("b", "5", 5),
        ("f", "9e999", "Infinity"),
        ("f", "-9e999", "-Infinity"),
        ("d", "9e999", "Infinity"),
        ("f", "7", 7.0),
        ("f", "'text'", "text"),
        ("d", "1.5", "1.5"),
        ("d", "'x'", "x"),
        ("dt", "'2024-10-15'", "2024-10-15T00:00:00Z"),
        ("dt", "'2024-10-15 08:30:00.000000'", "2024-10-15T08:30:00Z"),
        ("dt", "'soon'", "soon"),
        ("j", "'{\"a\": 1}'", {"a": 1}),
        ("j", "5", 5),
        ("j", "'{broken'", "{broken"),
        ("by", "'ab'", "YWI="),
        ("by", "x'00ff'", "AP8="),
        ("s", "5", "5"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_other_programs_wrote(make_store, tmp_path, column, stored, shown):
    """SQLite holds any value in any column; whatever another program put there, a read is JSON."""
    store = make_store(f"sqlite:///{tmp_path}/other.sqlite3")
    await store.start()
    connection = sqlite3.connect(tmp_path / "other.sqlite3")
    with connection:
        connection.execute(f"INSERT INTO Things({column}) VALUES ({stored})")
    connection.close()
    rows = await store.read(1, "Things")
    assert rows[0][column] == shown
    assert plain(rows)


def test_contact_b14_all_that_is_wrong_is_told_at_once():
    """What is missing stands beside what is bad, for new rows; not what the policy or a default fills in."""
    model = load_schema("""
Users:
  id:    {type: int, pk: true}
  name:  {type: str, required: true}
  owner: {type: str, required: true}
  email: {type: str, required: true, rules: {format: email}}
  age:   {type: int}
  role:  {type: str, required: true, default: user}
""").models["Users"]
    bad = {"email": "nowhere", "age": "old"}

    def fields_of(action: str, values: dict[str, Any], rows: dict[str, Any] | None = None, **more: Any) -> list[str]:
        command = parse_command({"values": values, **more}, action, "Users")
        with pytest.raises(Invalid) as caught:
            make_plan(command, model, 10, rows or {})
        assert all(f"{name} {reason}" in caught.value.text for name, reason in caught.value.fields.items())
        return sorted(caught.value.fields)

    assert fields_of("create", bad) == ["age", "email", "name", "owner"]
    assert fields_of("create", {**bad, "name": None}) == ["age", "email", "name", "owner"]
    assert fields_of("create", bad, {"owner": "ann"}) == ["age", "email", "name"]
    assert fields_of("create", {"id": 5}) == ["email", "id", "name", "owner"]
    assert fields_of("upsert", bad, conflict_fields=["email"]) == ["age", "email", "name", "owner"]
    assert fields_of("update", bad, where={"id": 1}) == ["age", "email"]
    assert fields_of("create", {"email": "a@example.com"}) == ["name", "owner"]
