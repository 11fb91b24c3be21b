"""Audiences as values: who belongs to one, and their JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.auth.policy import Policy
from zcomm.interfaces import EVERYBODY, RIGHTS, Audience, Identity, Outcome

POLICY = Policy.from_yaml(
    """
admin: {models: "*", functions: "*", pages: "*", files: "*", commands: "*"}
guest:
  models: {Users: [read], Notes: {actions: [read], rows: {owner: $name, public: true}}, Drafts: [create, update]}
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
audiences = (
    st.just(EVERYBODY)
    | st.builds(Audience, st.sampled_from(sorted(RIGHTS)), names)
    | st.builds(Audience, st.just("model"), names, rows)
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
        (Audience("model", "Notes", {}), [ADMIN]),
    ],
)
def test_who_belongs_to_an_audience(audience: Audience, members: list[Identity]):
    """By the permissions of the server that asks; a row that does not say whose it is is nobody's."""
    for same in (audience, Audience.from_json(audience.to_json())):
        assert [identity for identity in (ADMIN, GUEST, NOBODY) if same.admits(identity, POLICY)] == members


@given(audiences)
def test_an_audience_comes_back_from_its_json(audience: Audience):
    """The same one, from JSON that any reader understands."""
    assert Audience.from_json(audience.to_json()) == audience
    assert isinstance(json.loads(audience.to_json()), dict)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"everybody"',
        b'{"kind": "topic", "name": "x"}',
        b'{"kind": "Model", "name": "x"}',
        b'{"kind": "model"}',
        b'{"kind": "model", "name": ""}',
        b'{"name": "x"}',
        b'{"kind": "model", "name": 5}',
        b'{"kind": null}',
        b'{"kind": "model", "name": "Users", "rows": {}}',
        b'{"kind": "model", "name": "Users", "row": {"a": []}}',
        b'{"kind": "model", "name": "Users", "row": {"a": {}}}',
        b'{"kind": "model", "name": "Users", "row": []}',
        b'{"kind": "function", "name": "f", "row": {}}',
        b'{"kind": "everybody", "extra": 1}',
        b'{"kind": "model", "name": "\xff"}',
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
    "parts", [("model",), ("model", ""), ("everybody", "x"), ("topic", "x"), ("", ""), ("page", "/x", {"a": 1})]
)
def test_what_a_program_cannot_mean(parts: tuple[Any, ...]):
    """Said where it is written."""
    with pytest.raises(ValueError):
        Audience(*parts)


def test_an_outcome_is_for_everybody_only_where_it_says_so():
    """By default it names nobody, and who may ask for the same hears of it; no value can be changed once it is made."""
    assert Outcome(1).audience is None and Outcome(1, audience=EVERYBODY).audience == Audience()
    with pytest.raises(AttributeError):
        EVERYBODY.kind = "model"
