"""The rows of a live query without a network: random events, against what really was."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.client.rows import News, Rows, first_of

pytestmark = pytest.mark.unmeasured

NOTES = (None, "x", 1, 1.0, True, "1", [1], [True], {"a": [1, {"b": None}]}, {"a": [1, {"b": 0}]}, 0.0, -0.0)
KEYS = (["id"], ["id", "at"], ["at", "id"])


def key_of(row: dict[str, Any], names: list[str]) -> Any:
    return row[names[0]] if len(names) == 1 else [row[name] for name in names]


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@st.composite
def lists_of_rows(draw: Any) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """The names of a key, and what a query finds at one time after the other."""
    names = draw(st.sampled_from(KEYS))
    ids = st.integers(0, 5) if len(names) > 1 else st.sampled_from([1, 2, "1", "", 2**53 + 1, 2**53, -(2**63)])
    row = st.fixed_dictionaries({"id": ids, "at": st.integers(0, 1), "note": st.sampled_from(NOTES)})
    found = st.lists(row, max_size=6, unique_by=lambda row: text(key_of(row, names)))
    return names, draw(st.lists(found, min_size=2, max_size=6))


def event(draw: Any, names: list[str], before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """One that leads from the one to the other: what stays where it is are some that kept their order."""
    if draw(st.booleans()) and draw(st.booleans()):
        return {"reset": after}
    places = {text(key_of(row, names)): place for place, row in enumerate(before)}
    gone = [key_of(row, names) for row in before if all(key_of(row, names) != key_of(new, names) for new in after)]
    put, last = [], -1
    for place, row in enumerate(after):
        was = places.get(text(key_of(row, names)), -1)
        if was > last and text(before[was]) == text(row) and draw(st.booleans()):
            last = was
        else:
            put.append([place, row])
    # What is put may be named among what is gone as well.
    gone += [key_of(row, names) for _, row in put if draw(st.booleans())]
    parts = {"gone": gone, "set": put}
    return {name: part for name, part in parts.items() if part or draw(st.booleans())}


@given(lists_of_rows(), st.data())
def test_rows_follow_and_stay_the_same_objects(found: Any, data: Any) -> None:
    """After each event they are what the query finds, and ``change`` leads there from what was; what is equal in JSON
    is the same object, and the list where all are."""
    names, states = found
    rows = Rows()
    assert first_of(rows)["kind"] == "same"
    known: list[dict[str, Any]] = []
    for number, after in enumerate(states):
        before, previous = rows.list, {text(key_of(row, names)): row for row in rows.list}
        said = {"key": names, "rows": after} if number == 0 else event(data.draw, names, known, after)
        change = rows.take(msgspec.convert(json.loads(json.dumps({**said, "digest": str(number)})), News))
        known = after
        assert text(rows.list) == text(after) and rows.digest == str(number)
        now = {text(key_of(row, names)): row for row in rows.list}
        assert [row for key, row in now.items() if key not in previous] == change["added"]
        assert [row for key, row in previous.items() if key not in now] == change["removed"]
        changed = {text(key_of(one["row"], names)): one for one in change["changed"]}
        for key in now.keys() & previous.keys():
            if text(now[key]) == text(previous[key]):
                assert now[key] is previous[key] and key not in changed
            else:
                assert changed[key]["row"] is now[key] and changed[key]["before"] is previous[key]
        assert changed.keys() <= now.keys() & previous.keys()
        is_same = number > 0 and text(rows.list) == text(before)
        assert (change["kind"] == "same") == is_same == (rows.list is before and number > 0)
        assert is_same or change["kind"] == ("initial" if number == 0 else "reset" if "reset" in said else "change")
        assert first_of(rows) == {"kind": "initial", "added": rows.list, "removed": [], "changed": []}


def test_what_programs_do_to_rows_harms_nothing() -> None:
    """A list that was sorted, and rows that were changed: what comes next is right again."""
    rows = Rows()
    rows.take(News(key=["id"], rows=[{"id": number, "a": 0} for number in range(3)]))
    rows.list.reverse()
    rows.list[0]["a"] = object()
    rows.list[1]["id"] = 7
    rows.take(News(gone=[0], put=[(0, {"id": 2, "a": 0})]))
    assert [row["id"] for row in rows.list] == [2, 7]
    rows.take(News(reset=[{"id": 1, "a": 0}, {"id": 2, "a": 0}]))
    assert rows.list == [{"id": 1, "a": 0}, {"id": 2, "a": 0}]


@pytest.mark.parametrize("news", [News(put=[(0, {"a": 1})]), News(reset=[{"id": 1}, {}]), News(reset=[{"ID": 1}])])
def test_rows_without_a_key_change_nothing(news: News) -> None:
    """They are refused as a whole."""
    rows = Rows()
    with pytest.raises(ValueError, match="not said"):
        rows.take(News(rows=[]))
    rows.take(News(key=["id"], rows=[{"id": 1}], digest="d"))
    before = rows.list
    news.digest = "e"
    with pytest.raises(ValueError, match="'id', which is of its key"):
        rows.take(news)
    assert rows.list is before and rows.digest == "d" and before == [{"id": 1}]
