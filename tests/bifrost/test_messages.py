"""Messages as values; the table of bad ones is in tests/wire/test_messages.py."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.bifrost.messages import (
    decode,
    encode,
    encode_broadcast,
    encode_error,
    encode_reply,
    encode_text,
    request_id_of,
)
from zcomm.errors import BadMessage, InternalError, Invalid, TooBusy

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=("Cs",))),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=4),
    ),
    max_leaves=12,
)


@given(
    values,
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=("Cs",)), max_size=16)),
)
def test_what_goes_in_comes_out(value, request_id):
    """Any JSON value, with any id, there and back."""
    request = decode(json.dumps({"zKey": "k", "zHorizontal": value, "_requestId": request_id}).encode())
    assert request.key == "k" and request.horizontal == value and request.request_id == request_id
    reply = json.loads(encode_reply(request.request_id, request.horizontal))
    assert reply == {"result": value, "_requestId": request_id}


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_bad_message(data: bytes):
    """Nothing else is ever raised, and what is a request has a key."""
    try:
        assert decode(data).key
    except BadMessage as error:
        assert error.code == "bad_message"
        request_id_of(data)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"_requestId": 5}', 5),
        (b'{"_requestId": "x", "zKey": 1}', "x"),
        (b'{"_requestId": true}', None),
        (b'{"_requestId": 1.5}', None),
        (b'{"_requestId": {}}', None),
        (b"[]", None),
        (b"{", None),
        (b'{"a": ' + b"[" * 70, None),
        (b"{}", None),
        (b'{"_requestId": "' + b"x" * 65 + b'"}', None),
    ],
)
def test_the_id_of_what_was_refused(payload: bytes, expected):
    """It is sent back if it can be used."""
    assert request_id_of(payload) == expected


@pytest.mark.parametrize(
    ("levels", "limit", "fine"), [(3, 4, True), (4, 4, True), (5, 4, False), (64, 64, True), (65, 64, False)]
)
def test_depth(levels: int, limit: int, fine: bool):
    """Counted with the message itself."""
    payload = b'{"zKey":"k","zHorizontal":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    if fine:
        assert decode(payload, limit).key == "k"
    else:
        with pytest.raises(BadMessage, match=f"at most {limit} levels"):
            decode(payload, limit)


def test_an_error_carries_fields_only_where_there_are_some():
    """And an id only where the request had one."""
    assert json.loads(encode_error(None, TooBusy("Too many"))) == {
        "error": "Too many",
        "code": "too_busy",
        "retryable": True,
    }
    assert json.loads(encode_error("a", Invalid("Wrong", {"age": "no"}))) == {
        "error": "Wrong",
        "code": "invalid",
        "retryable": False,
        "fields": {"age": "no"},
        "_requestId": "a",
    }
    assert json.loads(encode_error(0, Invalid("Wrong")))["_requestId"] == 0


def test_a_broadcast_has_no_id():
    """The key, the result, and what is announced besides."""
    assert json.loads(encode_broadcast("zFunc", [1], {"function": "f"})) == {
        "zKey": "zFunc",
        "function": "f",
        "result": [1],
    }


def test_what_the_program_says():
    """A string as it is, anything else as JSON, and what has no form is an error."""
    assert encode_text("plain é") == "plain é".encode()
    assert json.loads(encode_text({"a": math.inf})) == {"a": None}
    for impossible in ("\ud800", object(), {"a": object()}):
        with pytest.raises(InternalError):
            encode_text(impossible)


def test_a_result_without_end():
    """A list that holds itself is no result."""
    endless: list = []
    endless.append(endless)
    with pytest.raises(InternalError):
        encode(endless)
