"""Large values as JSON: the same bytes as in one piece, and no piece that takes long."""

from __future__ import annotations

import http
import json
import threading
from collections import OrderedDict, namedtuple
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from support.served import Served, serving

from zcomm.bifrost import messages
from zcomm.bifrost.given import LONG
from zcomm.bifrost.messages import encode_reply, encode_written
from zcomm.budget.written import Written, write_json
from zcomm.errors import InternalError
from zcomm.wire import frames_pure, pieces
from zcomm.wire.frames import is_light

served = serving()

Point = namedtuple("Point", "x y")

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.integers(0, 600).map(lambda bits: 1 - 2**bits),
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


@pytest.mark.parametrize(
    ("value", "weight"),
    [
        (None, 1),
        ("x" * 63, 2),
        ("x" * 64, 3),
        (b"x" * 32, 2),
        ([], 1),
        ([1, 2.0, "a"], 4),
        ((True, [None]), 4),
        ({"a": 1, "b": [2, 3]}, 7),
        (OrderedDict(a=1), 3),
        (Point(1, "y"), 3),
        ([[[[1]]]], 5),
        (Decimal("1.5"), 1),
        (2**64 - 1, 1),
        (-(2**63), 1),
        (-(2**64), 1 + 2),
        ([10**300, 2**5000], 1 + 1 + 31 + 30 + 1 + 156 + 763),
        (http.HTTPStatus.OK, 1),
    ],
)
def test_what_a_value_weighs(value: Any, weight: int):
    """As much as there is in it, in both forms; what is nested without an end is never light."""
    for form in (is_light, frames_pure.is_light):
        assert form(value, weight) and not form(value, weight - 1)
        deep: Any = value
        for _ in range(600):
            deep = [deep]
        assert not form(deep, 10_000)


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
    "digits": [10**4000] * 250,
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
    assert json.loads(bytes(encode_written(None, made))) == json.loads(encode_reply(None, value))


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


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["plain", "coroutine", "told"])
async def test_very_large_results_of_commands_become_json_in_a_thread(
    served: Served, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Those of commands that run on the reactor's thread as well, and whoever else hears of them hears of them."""
    many = [[number] for number in range(LONG)]
    threads: list[str] = []

    async def later() -> Any:
        return many

    def noted(part: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return write_json(part)

    monkeypatch.setattr(pieces, "write_json", noted)
    served.bifrost.command(kind, broadcast=kind == "told")(later if kind == "coroutine" else lambda: many)
    client, other = await served.client(), await served.client()
    assert (await client.call(kind))["result"] == many
    assert len(threads) > 10 and all(name.startswith("zcomm-worker") for name in threads)
    if kind == "told":
        assert await other.next_json() == {"zKey": "told", "many": True}
    await served.stands()
