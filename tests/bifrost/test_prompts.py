"""Prompts as values: which can be asked, what the client is told, what is an answer."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.bifrost.prompts import KINDS, MAX_LENGTH, Prompt
from zcomm.errors import ConfigError, Invalid

FORM = {
    "kind": "form",
    "label": "You",
    "fields": {
        "name": "Your name",
        "age": {"kind": "choice", "choices": [18, 19]},
        "news": {"kind": "confirm", "required": False},
    },
}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("Your name", {"kind": "text", "label": "Your name", "required": True, "max_length": 1000}),
        (
            {"label": "Name", "default": "Bob"},
            {"kind": "text", "label": "Name", "required": True, "max_length": 1000, "default": "Bob"},
        ),
        (
            {"kind": "password", "max_length": 10, "required": False},
            {"kind": "password", "label": "", "required": False, "max_length": 10},
        ),
        (
            {"kind": "choice", "choices": ["a", 1, 2.5]},
            {"kind": "choice", "label": "", "choices": ["a", 1, 2.5], "multiple": False, "required": True},
        ),
        (
            {"kind": "confirm", "label": "Sure?", "default": False},
            {"kind": "confirm", "label": "Sure?", "default": False},
        ),
        (Prompt("text", "Given"), {"kind": "text", "label": "Given", "required": True, "max_length": 1000}),
        (
            {"kind": "form", "fields": {"a": "A"}},
            {
                "kind": "form",
                "label": "",
                "fields": {"a": {"kind": "text", "label": "A", "required": True, "max_length": 1000}},
            },
        ),
    ],
)
def test_what_a_client_is_told(written: Any, told: dict[str, Any]):
    """The prompt in full, and nothing that is not of its kind."""
    assert Prompt.of(written).as_dict() == told


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (None, "a text or a mapping"),
        (7, "a text or a mapping"),
        ({"kind": "shell"}, "none of text, password"),
        ({"label": "x", "lable": "y"}, "unknown key 'lable'"),
        ({"kind": "choice"}, "needs choices"),
        ({"kind": "form"}, "needs fields"),
        ({"kind": "form", "fields": {"inner": FORM}}, "not forms"),
        ({"kind": "password", "default": "hunter2"}, "no default"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": MAX_LENGTH + 1}, "max_length"),
        ({"max_length": "9"}, "max_length"),
        ({"label": 7}, "label"),
        ({"kind": "choice", "choices": [[1]]}, "choices"),
        ({"kind": "choice", "choices": "yes"}, "choices"),
        ({"kind": "choice", "choices": [1, True]}, "choices"),
        ({"kind": "choice", "choices": [1, 1.0]}, "the same number"),
        ({"kind": "choice", "choices": [0.5, -0.0, 0]}, "the same number"),
        ({"kind": "choice", "choices": [math.nan]}, "not NaN"),
        ({"kind": "choice", "choices": [1, -math.inf]}, "not NaN"),
        ({"kind": "form", "fields": {7: "x"}}, "fields"),
        ({"kind": "form", "fields": ["x"]}, "fields"),
    ],
)
def test_prompts_that_cannot_be_asked(written: Any, reason: str):
    """They fail where they are written, naming what is wrong."""
    with pytest.raises(ConfigError, match=reason):
        Prompt.of(written)


@pytest.mark.parametrize(
    ("written", "value", "answer"),
    [
        ("Name", "Alice", "Alice"),
        ({"required": False}, "", ""),
        ({"kind": "password"}, " secret ", " secret "),
        ({"max_length": 3}, "äöü", "äöü"),
        ({"kind": "confirm"}, False, False),
        ({"kind": "choice", "choices": [1, "1"]}, "1", "1"),
        ({"kind": "choice", "choices": [1, 2.5]}, 2.5, 2.5),
        # As JavaScript writes them.
        ({"kind": "choice", "choices": [0.5, 1.0, 1.5]}, 1, 1.0),
        ({"kind": "choice", "choices": [0.5, 1.0, 1.5]}, 1.0, 1.0),
        ({"kind": "choice", "choices": [-0.0, 2.0**60]}, 0, -0.0),
        ({"kind": "choice", "choices": [0.0, 2.0**60]}, 2**60, 2.0**60),
        ({"kind": "choice", "choices": [0.0, 1e300]}, 1e300, 1e300),
        ({"kind": "choice", "choices": [1, 2.0, "2", 3.5], "multiple": True}, [2, "2", 1], [2.0, "2", 1]),
        (
            {"kind": "form", "fields": {"a": {"kind": "choice", "choices": [1.0]}, "b": "B"}},
            {"a": 1, "b": "x"},
            {"a": 1.0, "b": "x"},
        ),
        ({"kind": "choice", "choices": ["a", "b"], "multiple": True}, ["b", "a"], ["b", "a"]),
        ({"kind": "choice", "choices": ["a"], "multiple": True, "required": False}, [], []),
        ({"kind": "choice", "choices": ["a"], "required": False}, None, None),
        (FORM, {"name": "Alice", "age": 18, "news": True}, {"name": "Alice", "age": 18, "news": True}),
        (FORM, {"name": "Alice", "age": 18}, {"name": "Alice", "age": 18}),
    ],
)
def test_answers(written: Any, value: Any, answer: Any):
    """A value that fits comes through as it is, a choice as it was offered."""
    assert repr(Prompt.of(written).check(value)) == repr(answer)


@pytest.mark.parametrize(
    ("written", "value", "text"),
    [
        ("Name", "", "An answer is needed"),
        ("Name", "  \t", "An answer is needed"),
        ("Name", 7, "Answer with a text"),
        ("Name", None, "Answer with a text"),
        ({"max_length": 3}, "four", "At most 3 characters"),
        ({"kind": "confirm"}, "yes", "Answer with true or false"),
        ({"kind": "confirm"}, 1, "Answer with true or false"),
        ({"kind": "choice", "choices": [1, 0]}, True, "Answer with one of the choices"),
        ({"kind": "choice", "choices": [1]}, 1.0, "Answer with one of the choices"),
        ({"kind": "choice", "choices": [1.0]}, True, "Answer with one of the choices"),
        ({"kind": "choice", "choices": [2.0**53]}, 2**53 + 1, "Answer with one of the choices"),
        ({"kind": "choice", "choices": [2**53 + 1]}, 2.0**53, "Answer with one of the choices"),
        ({"kind": "choice", "choices": [1.0, 2], "multiple": True}, [1, 1.0], "Answer with a list of the choices"),
        ({"kind": "choice", "choices": ["a"]}, ["a"], "Answer with one of the choices"),
        ({"kind": "choice", "choices": ["a"]}, None, "Answer with one of the choices"),
        ({"kind": "choice", "choices": ["a"], "multiple": True}, "a", "Answer with a list of the choices"),
        ({"kind": "choice", "choices": ["a"], "multiple": True}, ["a", "a"], "Answer with a list of the choices"),
        ({"kind": "choice", "choices": ["a", "b"], "multiple": True}, ["a", "a"], "Answer with a list of the choices"),
        ({"kind": "choice", "choices": ["a"], "multiple": True}, [], "An answer is needed"),
        (FORM, "Alice", "Answer with an object of the fields"),
    ],
)
def test_values_that_are_no_answers(written: Any, value: Any, text: str):
    """They are refused with a text that says what would be one."""
    with pytest.raises(Invalid, match=f"^{text}$"):
        Prompt.of(written).check(value)


def test_a_form_says_what_is_wrong_with_each_field():
    """All of them at once, what nobody asked for included."""
    with pytest.raises(Invalid) as raised:
        Prompt.of(FORM).check({"name": "", "age": 17, "role": "admin", "news": "no"})
    assert raised.value.fields == {
        "name": "An answer is needed",
        "age": "Answer with one of the choices",
        "news": "Answer with true or false",
        "role": "is not asked for",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
PROMPTS = st.sampled_from(
    [
        "Name",
        {"kind": "password", "required": False},
        {"kind": "confirm"},
        {"kind": "choice", "choices": ["a", 1]},
        {"kind": "choice", "choices": ["a", 1], "multiple": True},
        FORM,
    ]
)


@given(PROMPTS, JSON)
def test_any_value_is_an_answer_or_refused(written: Any, value: Any):
    """Whatever a client sends, it is checked, never believed, and nothing else happens."""
    prompt = Prompt.of(written)
    try:
        answer = prompt.check(value)
    except Invalid as error:
        assert error.text and len(str(error.fields)) < 10_000
    else:
        assert answer == value and prompt.kind in KINDS
