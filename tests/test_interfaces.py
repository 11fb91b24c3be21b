"""Audiences as values: who belongs to one, and their JSON."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.auth.policy import AllowAll, Policy
from zcomm.interfaces import (
    EVERYBODY,
    NO_FIELD_RIGHTS,
    RIGHTS,
    Audience,
    FieldRights,
    Identity,
    Outcome,
    Rows,
    field_rights,
)

POLICY = Policy.from_yaml(
    """
admin: {models: "*", functions: "*", pages: "*", files: "*", commands: "*"}
guest:
  models:
    Users: [read]
    Notes: {actions: [read], rows: {owner: $name, public: true}}
    Shelves: {actions: [read], rows: {number: 1}}
    Drafts: [create, update]
  functions: [total]
  pages: [/shop]
  files: [a.yaml]
  commands: [report]
""",
    "policy",
)
ADMIN, GUEST, NOBODY = Identity("root", "admin"), Identity("ann", "guest"), Identity("x", "nobody")

values = st.text() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
rows = st.dictionaries(st.text(), values | st.booleans() | st.none(), max_size=4)
names = st.text(min_size=1)
ROWS = b'{"key": ["id"], "changed": [], "fields": ["a"], "values": [[1]]}'


@st.composite
def many_rows(draw: st.DrawFn) -> Rows:
    """Rows of a few fields."""
    fields = draw(st.lists(st.text(max_size=4), unique=True, max_size=3))
    row = st.tuples(*[values | st.booleans() | st.none()] * len(fields))
    key, changed = (tuple(draw(st.lists(st.text(max_size=4), unique=True, max_size=2))) for _ in range(2))
    return Rows(key, changed, tuple(fields), tuple(draw(st.lists(row, max_size=4))))


audiences = (
    st.just(EVERYBODY)
    | st.builds(Audience, st.sampled_from(sorted(RIGHTS)), names)
    | st.builds(Audience, st.just("model"), names, rows)
    | st.builds(Audience, st.just("model"), names, st.none(), many_rows())
)


@pytest.mark.parametrize(
    ("audience", "members"),
    [
        (Audience(), [ADMIN, GUEST, NOBODY]),
        (Audience("function", "total"), [ADMIN, GUEST]),
        (Audience("function", "other"), [ADMIN]),
        (Audience("command", "report"), [ADMIN, GUEST]),
        (Audience("command", "total"), [ADMIN]),
        (Audience("page", "/shop"), [ADMIN, GUEST]),
        (Audience("page", "/admin"), [ADMIN]),
        (Audience("file", "a.yaml"), [ADMIN, GUEST]),
        (Audience("file", "b.yaml"), [ADMIN]),
        (Audience("model", "Users"), [ADMIN, GUEST]),
        (Audience("model", "Users", {"id": 1}), [ADMIN, GUEST]),
        (Audience("model", "Drafts"), [ADMIN]),
        (Audience("model", "Notes"), [ADMIN, GUEST]),
        (Audience("model", "Notes", {"id": 1, "owner": "ann", "public": True}), [ADMIN, GUEST]),
        (Audience("model", "Notes", {"id": 1, "owner": "bob", "public": True}), [ADMIN]),
        (Audience("model", "Notes", {"id": 1, "owner": "ann"}), [ADMIN]),
        (Audience("model", "Notes", {"owner": None, "public": True}), [ADMIN]),
        (Audience("model", "Notes", {"owner": "ann", "public": 1}), [ADMIN]),
        (Audience("model", "Shelves", {"number": 1}), [ADMIN, GUEST]),
        (Audience("model", "Shelves", {"number": 1.0}), [ADMIN, GUEST]),
        (Audience("model", "Shelves", {"number": True}), [ADMIN]),
        (Audience("model", "Shelves", {"number": "1"}), [ADMIN]),
        (Audience("model", "Notes", {}), [ADMIN]),
    ],
)
def test_who_belongs_to_an_audience(audience: Audience, members: list[Identity]):
    """By the permissions of the server that asks; a row that does not say whose it is is nobody's."""
    for same in (audience, Audience.from_json(audience.to_json())):
        assert [identity for identity in (ADMIN, GUEST, NOBODY) if same.admits(identity, POLICY)] == members


@given(audiences)
def test_an_audience_comes_back_from_its_json(audience: Audience):
    """The same one, from JSON that any reader understands, as from a copy."""
    for same in (Audience.from_json(audience.to_json()), copy.deepcopy(audience), pickle.loads(pickle.dumps(audience))):
        assert same == audience and hash(same) == hash(audience)
        assert (same.kind, same.name, typed(same.row)) == (audience.kind, audience.name, typed(audience.row))
    assert isinstance(json.loads(audience.to_json()), dict)


def typed(row: Mapping[str, Any] | None) -> Any:
    """A row in which 1, 1.0 and True are three values, as are 0.0 and -0.0."""
    return None if row is None else {field: repr(value) for field, value in row.items()}


class Rights:
    """Rights to the rows that have some values."""

    def __init__(self, granted: dict[str, Any]):
        self.granted = granted

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return True

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return self.granted


@given(rows, rows)
def test_the_verdict_is_the_same_on_both_sides_of_the_json(row: dict[str, Any], granted: dict[str, Any]):
    """Whatever is granted; a right to no more than what is in the row reaches it."""
    audience = Audience("model", "Notes", row)
    there = Audience.from_json(audience.to_json())
    for rights in (granted, row, {**row, **granted}, dict(list(row.items())[:1]), dict.fromkeys(row, True)):
        assert audience.admits(GUEST, Rights(rights)) == there.admits(GUEST, Rights(rights))
    assert there.admits(GUEST, Rights(row))


def test_an_audience_cannot_be_changed():
    """Neither it nor its row, nor by changing what it was made of; so it can be a key."""
    given = {"owner": "ann", "n": 1}
    audience = Audience("model", "Notes", given)
    given["owner"] = "bob"
    assert audience.row == {"owner": "ann", "n": 1}
    with pytest.raises(TypeError):
        audience.row["owner"] = "bob"
    with pytest.raises(AttributeError):
        audience.row = {}
    assert {audience: 1}[Audience("model", "Notes", {"n": 1, "owner": "ann"})] == 1
    others = [Audience("model", "Notes", {"owner": "ann", "n": value}) for value in (1.0, True, "1", None)]
    assert len({audience, *others, Audience("model", "Notes"), EVERYBODY}) == 7
    assert (
        Audience.from_json(b'{"kind": "everybody", "rows": null, "row": null, "name": ""}') == EVERYBODY != "everybody"
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"everybody"',
        b'{"kind": "topik", "name": "x", "rows": null, "row": null}',
        b'{"kind": "Model", "name": "x", "rows": null, "row": null}',
        b'{"kind": "model"}',
        b'{"kind": "model", "name": "", "rows": null, "row": null}',
        b'{"name": "x"}',
        b'{"kind": "model", "name": 5, "rows": null, "row": null}',
        b'{"kind": null, "name": "", "rows": null, "row": null}',
        b'{"kind": "model", "name": "Users", "rows": {}}',
        b'{"kind": "model", "name": "Users", "rows": null, "row": {"a": []}}',
        b'{"kind": "model", "name": "Users", "rows": null, "row": {"a": {}}}',
        b'{"kind": "model", "name": "Users", "rows": null, "row": []}',
        b'{"kind": "function", "name": "f", "rows": null, "row": {}}',
        b'{"kind": "everybody", "name": "", "rows": null, "row": null, "extra": 1}',
        b"{}",
        b'{"kind": "everybody"}',
        b'{"name": "", "rows": null, "row": null}',
        b'{"kind": "model", "name": "Notes"}',
        b'{"kind": "model", "name": "Salaries", "name": "Notes", "rows": null, "row": null}',
        b'{"kind": "model", "name": "Notes", "rows": null, "row": null, "kind": "everybody"}',
        b'{"kind": "model", "name": "Notes", "rows": null, "row": {"owner": "ann", "owner": "bob"}}',
        b'{"kind": "model", "name": "Notes", "rows": null, "row": {"n": NaN}}',
        b'{"kind": "model", "name": "Notes", "rows": null, "row": {"n": 1e999}}',
        b'{"kind": "model", "name": "Notes", "rows": null, "row": null} x',
        b'\xef\xbb\xbf{"kind": "everybody", "name": "", "rows": null, "row": null}',
        b'{"kind": "model", "name": "Users", "rows": [], "row": null}',
        b'{"kind": "model", "name": "Users", "rows": {}, "row": null}',
        b'{"kind": "model", "name": "Users", "rows": {"key": ["id"], "changed": [], "fields": ["a"]}, "row": null}',
        b'{"kind": "model", "name": "Users", "rows": %s, "row": null}' % ROWS.replace(b"[[1]]", b"[[1, 2]]"),
        b'{"kind": "model", "name": "Users", "rows": %s, "row": null}' % ROWS.replace(b"[[1]]", b"[1]"),
        b'{"kind": "model", "name": "Users", "rows": %s, "row": null}' % ROWS.replace(b"[[1]]", b"[[[]]]"),
        b'{"kind": "model", "name": "Users", "rows": %s, "row": null}' % ROWS.replace(b'["a"]', b'"a"'),
        b'{"kind": "model", "name": "Users", "rows": %s, "row": null}' % ROWS.replace(b'["a"]', b'["a", "a"]'),
        b'{"kind": "model", "name": "Users", "rows": %s, "row": null}' % ROWS.replace(b'["id"]', b"[1]"),
        b'{"kind": "model", "name": "Users", "rows": %s, "row": {}}' % ROWS,
        b'{"kind": "function", "name": "f", "rows": %s, "row": null}' % ROWS,
        b'{"kind": "model", "name": "\xff", "rows": null, "row": null}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_audience_is_refused(payload: bytes):
    """A kind that this version does not know may be narrower than everybody; it is never taken for it."""
    with pytest.raises(ValueError):
        Audience.from_json(payload)


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.text(max_size=9), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_are_an_audience_or_refused(payload: bytes):
    """Nothing else comes of them."""
    try:
        audience = Audience.from_json(payload)
    except ValueError:
        return
    assert Audience.from_json(audience.to_json()) == audience


@pytest.mark.parametrize(
    "parts", [("model",), ("model", ""), ("everybody", "x"), ("topik", "x"), ("", ""), ("page", "/x", {"a": 1})]
)
def test_what_a_program_cannot_mean(parts: tuple[Any, ...]):
    """Said where it is written."""
    with pytest.raises(ValueError):
        Audience(*parts)


class Text(str):
    """A text of a program's own."""


class Number(IntEnum):
    """A number of a program's own."""

    ONE = 1


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ((Text("model"), "Notes"), "kind"),
        ((["model"], "Notes"), "kind"),
        ((None, ""), "kind"),
        (("model", 5), "name"),
        (("model", b"Notes"), "name"),
        (("model", Text("Notes")), "name"),
        (("model", "\ud800"), "name"),
        (("everybody", None), "name"),
        (("model", "Notes", 5), "row"),
        (("model", "Notes", [("a", 1)]), "row"),
        (("model", "Notes", {1: 2}), "row: a field"),
        (("model", "Notes", {None: 2}), "row: a field"),
        (("model", "Notes", {Text("a"): 2}), "row: a field"),
        (("model", "Notes", {"\ud800": 2}), "row: a field"),
        *(
            (("model", "Notes", {"good": 1, "bad": value}), "row: bad: ")
            for value in (
                [1],
                {},
                b"x",
                Text("x"),
                "\udfff",
                Number.ONE,
                2**64,
                -(2**63) - 1,
                math.inf,
                -math.inf,
                math.nan,
                Decimal(1),
                date(2024, 10, 15),
                UUID(int=1),
                object(),
            )
        ),
    ],
)
def test_what_json_does_not_keep_is_refused(parts: tuple[Any, ...], named: str):
    """By name of the field: after its way through JSON it would be another audience, or none."""
    with pytest.raises(ValueError, match=f"^{named}"):
        Audience(*parts)


def test_an_outcome_is_for_everybody_only_where_it_says_so():
    """By default it names nobody, and who may ask for the same hears of it; no value can be changed once it is made."""
    assert Outcome(1).audience is None and Outcome(1, audience=EVERYBODY).audience == Audience()
    with pytest.raises(AttributeError):
        EVERYBODY.kind = "model"


def test_an_outcome_names_its_audience_as_a_value():
    """What is none is refused where it is written, by its name; what judges identities itself was once taken."""
    for wrong in (lambda identity: True, "everybody", Audience, 0):
        with pytest.raises(TypeError, match=r"^audience: must be a zcomm\.interfaces\.Audience"):
            Outcome(1, changed=True, audience=wrong)


class RightsToFields(AllowAll):
    """Permissions that answer for fields with what they were made with."""

    def __init__(self, fields: Any):
        self._fields = fields

    def fields(self, identity: Identity, model: str) -> Any:
        return self._fields


class RightsToRows:
    """Permissions from before there were rights to fields."""

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return True

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    "permissions", [AllowAll(), POLICY, RightsToRows(), *map(RightsToFields, (None, FieldRights(), NO_FIELD_RIGHTS))]
)
def test_permissions_that_restrict_no_field_answer_with_one_object(permissions: Any):
    """Those that know nothing of fields included: whoever asks compares with it, and goes on as before."""
    assert field_rights(permissions, GUEST, "Users") is NO_FIELD_RIGHTS


def test_rights_to_fields_are_one_value_however_they_were_written():
    """They are what prepared models and payloads are found by, so that a list of names makes no second one."""
    rights = FieldRights(hide=["salary"], readonly={"role"})
    assert field_rights(RightsToFields(rights), GUEST, "Users") is rights
    assert rights == FieldRights(frozenset({"salary"}), frozenset({"role"}))
    assert len({rights, FieldRights({"salary"}, ["role"])}) == 1


@pytest.mark.parametrize("hide", ["salary", [1], [["salary"]]])
def test_a_text_is_no_list_of_fields(hide: Any):
    """It would hide its letters, and nothing else."""
    with pytest.raises(TypeError, match="^hide: must be names of fields"):
        FieldRights(hide=hide)


@pytest.mark.parametrize("answer", [["salary"], {"hide": ["salary"]}, True])
def test_rights_to_fields_that_are_none_restrict_more_than_nothing(answer: Any):
    """Nobody knows what they were to hide, so nobody is answered."""
    with pytest.raises(TypeError, match="^fields: must return zcomm.interfaces.FieldRights"):
        field_rights(RightsToFields(answer), GUEST, "Users")
