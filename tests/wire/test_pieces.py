"""Large values as JSON: the same bytes as in one piece, and no piece that takes long."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcomm.bifrost import messages
from zcomm.bifrost.messages import encode_reply, encode_written
from zcomm.budget.written import Written, write_json
from zcomm.errors import InternalError
from zcomm.wire import frames_pure, pieces
from zcomm.wire.frames import is_light

Point = namedtuple("Point", "x y")

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=True),
    st.text(max_size=80),
    st.binary(max_size=80),
    st.just(Decimal("1.50")),
    st.just(date(2026, 1, 2)),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=40), st.integers(0, 9)), inner),
        st.dictionaries(st.text(max_size=3), inner).map(OrderedDict),
        st.tuples(inner, inner).map(lambda pair: Point(*pair)),
    ),
    max_leaves=60,
)


@given(values, st.integers(0, 80))
def test_both_forms_weigh_alike(value: Any, most: int):
    """The compiled one says what the Python one says."""
    assert is_light(value, most) == frames_pure.is_light(value, most)


@settings(max_examples=200)
@given(values, st.integers(1, 20), st.integers(2, 5))
def test_pieces_come_to_the_same(value: Any, light: int, together: int):
    """Whatever is cut, and wherever: the reply is that of the value in one piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LIGHT", light)
        patch.setattr(pieces, "TOGETHER", together)
        patch.setattr(pieces, "BYTES", 6)
        made = messages.written([value])
    if isinstance(made, Written):
        assert encode_written("id", made) == encode_reply("id", [value])
    else:
        assert made == [value] or value != value or "nan" in repr(value)
        assert is_light([value], light)


LARGE = {
    "pairs": [[number, number + 1] for number in range(100_000)],
    "rows": [{"id": number, "name": "abc" * 5, "ok": True} for number in range(50_000)],
    "one": [[[{"all": list(range(200_000))}]]],
    "names": {f"name {number}": number for number in range(100_000)},
    "text": ["x" * 1_000_000, "é" * 500_000],
    "bytes": [b"x" * 1_000_001],
    "empty": [[] for _ in range(100_000)],
}


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in LARGE.items()])
def test_no_piece_is_much(value: Any, monkeypatch: pytest.MonkeyPatch):
    """What is made in one call, in which no other thread has its turn, weighs no more than it may."""
    sizes: list[int] = []

    def counted(part: Any) -> bytes:
        assert is_light(part, pieces.LIGHT)
        made = write_json(part)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(pieces, "write_json", counted)
    monkeypatch.setattr("zcomm.budget.written.write_json", counted)
    made = messages.written(value)
    assert isinstance(made, Written) and max(sizes, default=0) < 2_000_000
    assert json.loads(encode_written(None, made)) == json.loads(encode_reply(None, value))


def test_what_cannot_be_written():
    """As in one piece: too much, nested too deeply, in a circle, and what JSON has no form for."""
    far: list[Any] = [list(range(1000))] * 1000
    with pytest.raises(InternalError, match="too large"):
        messages.written([far] * 1000)
    circle: list[Any] = []
    circle += [circle, *range(pieces.LIGHT)]
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, deep, [*range(pieces.LIGHT), object()], ["\ud800" * 1_000_000]):
        with pytest.raises(InternalError, match="not serializable"):
            messages.written(value)


def test_what_somebody_changes_meanwhile_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    """It is made into JSON in one piece then, which nothing comes between."""
    shared = {str(number): number for number in range(100_000)}

    def grown(part: Any) -> bytes:
        shared[str(len(shared))] = 1
        return write_json(part)

    monkeypatch.setattr(pieces, "write_json", grown)
    assert messages.written(shared) is shared
