"""The parts of a broadcast that tells of rows: who hears which of them, and which of their fields."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.auth.policy import AllowAll
from zcomm.engines.parts import MANY, WHOLE, Parts
from zcomm.interfaces import Audience, Broadcast, FieldRights, Identity, Rows

ANN = Identity("ann", "user")


class Rights(AllowAll):
    """To the rows of those values, without the fields that are hidden."""

    def __init__(self, rows: dict[str, Any] | None = None, hide: Any = (), reads: bool = True):
        self._rows, self._hide, self._reads = rows or {}, FieldRights(hide=hide), reads

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return self._reads

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return self._rows

    def fields(self, identity: Identity, model: str) -> FieldRights:
        return self._hide


def heard(message: Broadcast, rights: Rights) -> Any:
    """What is heard with ``rights``, and whether it is a notice; ``None`` for nothing."""
    parts = Parts(message)
    part = parts.of(ANN, rights)
    assert parts.admits(ANN, rights) is (part is not None)
    if part is None:
        return None
    told = parts.message(part)
    assert parts.message(part) is told and told.sender is message.sender and told.audience is message.audience
    assert (told.payload is message.payload) is (part == WHOLE)
    decoded = json.loads(told.payload)
    assert told.is_notice is ("many" in decoded) and (told.is_notice or told is message or part not in (WHOLE, MANY))
    return decoded


def message_of(told: dict[str, Any], audience: Audience) -> Broadcast:
    return Broadcast(json.dumps({"zKey": "k", **told}).encode(), audience, is_result=True)


@pytest.mark.parametrize(
    ("result", "left"),
    [
        ({"id": 1, "name": "x", "pay": 5}, {"id": 1, "name": "x"}),
        ([{"id": 1, "pay": {"x": [1]}}, {"pay": 2}], [{"id": 1}, {}]),
        ({}, {}),
        ([], []),
        (7, None),
        ("pay", None),
        (None, None),
        ([{"pay": 1}, 2], None),
        ([[{"pay": 1}]], None),
    ],
)
def test_hidden_fields_are_cut_out_of_a_result(result: Any, left: Any):
    """Of a row and of rows. Of anything else nobody can tell what is in it, so that there is something to be read."""
    message = message_of({"result": result}, Audience("model", "Staff", {}))
    assert heard(message, Rights()) == {"zKey": "k", "result": result}
    assert heard(message, Rights(hide=["pay"])) == (
        {"zKey": "k", "many": True} if left is None else {"zKey": "k", "result": left}
    )
    assert heard(message, Rights(reads=False)) is None


def test_what_tells_of_no_row_is_whole():
    """A notice has nothing that could be hidden."""
    notice = Broadcast(b'{"zKey":"k","many":true}', Audience("model", "Staff", {"id": 1}), is_notice=True)
    assert Parts(notice).of(ANN, Rights(hide=["id"])) is WHOLE


VALUES = st.sampled_from([1, True, 0, False, 1.0, "1", "ann", None])
FIELDS = ("owner", "team")


@given(
    st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6),
    st.dictionaries(st.sampled_from([*FIELDS, "other"]), VALUES, max_size=3),
    st.sets(st.sampled_from(["id", "name", "owner", "pay"])),
    st.sampled_from([(), ("name",), ("pay", "name"), ("owner",), ("owner", "name")]),
    st.booleans(),
)
def test_each_hears_of_its_rows(
    values: list[tuple[Any, Any]], granted: dict[str, Any], hide: set[str], changed: tuple[str, ...], reads: bool
):
    """Of random rows, rights and changes: a reference says row by row what is heard of them."""
    rows = Rows(("id",), changed, FIELDS, tuple(values))
    changes = [
        {"id": number, "values": {name: f"{name} {number}" for name in changed}} for number, _ in enumerate(values)
    ]
    ids = [change["id"] for change in changes]
    told: dict[str, Any] = {"result": {"updated": len(ids)}, "changes": changes}
    if not changed:
        told = {"result": {"deleted": len(ids)}, "ids": ids}
    message = message_of(told, Audience("model", "Staff", None, rows))

    def same(one: Any, other: Any) -> bool:
        return one == other and isinstance(one, bool) is isinstance(other, bool)

    mine = [
        number
        for number, row in enumerate(values)
        if all(same(dict(zip(FIELDS, row, strict=True)).get(name), value) for name, value in granted.items())
    ]
    seen = [name for name in changed if name not in hide]
    expected: Any = None
    if not reads:
        pass
    elif "other" in granted or ("id" in hide and mine):
        expected = {"zKey": "k", "many": True}
    elif not mine:
        pass
    elif not changed:
        expected = {"zKey": "k", "result": {"deleted": len(mine)}, "ids": mine}
    elif seen or any(name in changed for name in granted):
        kept = [{"id": number, "values": {name: f"{name} {number}" for name in seen}} for number in mine]
        expected = {"zKey": "k", "result": {"updated": len(mine)}, "changes": kept}
    assert heard(message, Rights(granted, hide, reads)) == expected
    admitted = message.audience.admits(ANN, Rights(granted, (), reads))
    assert admitted is (reads and bool(mine or "other" in granted))


def test_a_right_to_what_no_row_can_be_reaches_none():
    """A program's permissions may say anything."""
    rows = Rows(("id",), (), ("owner",), (("ann",),))
    message = message_of({"result": {"deleted": 1}, "ids": [1]}, Audience("model", "Staff", None, rows))
    assert heard(message, Rights({"owner": ["ann"]})) is None
    assert heard(message, Rights({"owner": "ann"})) == {"zKey": "k", "result": {"deleted": 1}, "ids": [1]}


def test_a_row_that_came_into_reach_is_told_of_though_nothing_of_it_is_seen():
    """What has changed is hidden, and it is what the rights go by: without a word nobody would know of the row."""
    changes = [{"id": number, "values": {"owner": owner}} for number, owner in enumerate(("ann", "bob"))]
    rows = Rows(("id",), ("owner",), ("owner",), (("ann",), ("bob",)))
    message = message_of({"result": {"updated": 2}, "changes": changes}, Audience("model", "Staff", None, rows))
    told = {"zKey": "k", "result": {"updated": 1}, "changes": [{"id": 0, "values": {}}]}
    assert heard(message, Rights({"owner": "ann"}, ["owner"])) == told
    assert heard(message, Rights({}, ["owner"])) is None
