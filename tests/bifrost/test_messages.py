"""Messages as values; the table of bad ones is in tests/wire/test_messages.py."""

from __future__ import annotations

import json
import math
from time import process_time

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
from zcomm.errors import BadMessage, CommandError, InternalError, Invalid, TooBusy
from zcomm.wire import frames_pure

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
        (b'{"_requestId": 1e3}', None),
        (b'{"_requestId": 9223372036854775808}', None),
        (b'{"_requestId": "\\ud83d"}', None),
        (b'{"a": {"_requestId": 5}}', None),
        (b'{"a": "\\"_requestId\\": 5}", "b": NaN}', None),
        (b'{"a": {"_requestId": 5}, "_requestId": 6, "b": NaN, }', 6),
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


MESSAGE_SIZE = 1_048_576


def filled(part: str, opening: str = "[", closing: str = "]") -> bytes:
    """A message of almost the size that one may have, full of ``part``."""
    start, end = '{"zKey":"ping","zHorizontal":' + opening, closing + "}"
    count = (MESSAGE_SIZE - len(start) - len(end) + 1) // (len(part.encode()) + 1)
    return (start + ",".join([part] * count) + end).encode()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(filled("[]"), id="lists"),
        pytest.param(filled("{}"), id="objects"),
        pytest.param(filled('{"a":1}'), id="small objects"),
        pytest.param(filled("[" * 60 + "]" * 60), id="deep lists"),
        pytest.param(filled('""'), id="empty texts"),
        pytest.param(filled('"é"'), id="texts of one character"),
        pytest.param(filled("1e300"), id="great floats"),
        pytest.param(filled("1e23"), id="floats between two doubles"),
        pytest.param(filled("4503599627370496.5"), id="long floats between two doubles"),
        pytest.param(filled("9007199254740993." + "0" * 30 + "1"), id="floats just above the middle"),
        pytest.param(filled("1" + "0" * 308 + ".0"), id="great floats without an exponent"),
        pytest.param(filled("9" * 4300), id="great integers"),
        pytest.param(
            ('{"zKey":"ping","zHorizontal":{' + ",".join(f'"{n:x}":1' for n in range(110_000)) + "}}").encode(),
            id="many names",
        ),
        pytest.param(
            ('{"zKey":"ping",' + ",".join(f'"k{n:x}":1' for n in range(90_000)) + "}").encode(), id="unknown keys"
        ),
    ],
)
def test_b11_what_takes_long_to_read_is_refused_unread(payload: bytes):
    """A message of one MiB that would keep the reader for 20 ms to 3 s is refused by what it holds, with its id."""
    payload = payload[:1] + b'"_requestId":7,' + payload[1:]
    with pytest.raises(BadMessage, match="Too many values to read at once"):
        decode(payload)
    assert request_id_of(payload) == 7


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(filled("1"), id="small integers"),
        pytest.param(filled("1.5"), id="short floats"),
        pytest.param(filled("-0.012345678901234567"), id="floats in full"),
        pytest.param(filled("1.2345678901234567e-05"), id="small floats in full"),
        pytest.param(filled("1234567890123456780"), id="ids of 19 digits"),
        pytest.param(filled("null"), id="nulls"),
        pytest.param(filled('"some text"'), id="texts"),
        pytest.param(
            filled('{"id":1,"sku":"a12345","qty":2,"price":"12.50","note":"","at":"2024-01-01T00:00:00Z"}'), id="rows"
        ),
        pytest.param(filled("\\n" * 100, '"', '"'), id="one text of escapes"),
    ],
)
def test_b11_what_a_program_sends_is_read_at_any_size(payload: bytes):
    """Numbers, texts and rows, as many as a message has room for."""
    assert decode(payload).key == "ping"


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


@pytest.mark.parametrize("identifier", [7, -(2**63), 2**63 - 1, "", 'a"b\\\\', "é" * 32])
def test_contact_r01_the_id_is_found_in_what_is_no_request(identifier):
    """Wherever it stands in the message, and whatever keeps that from being read."""
    refused = (
        "[" * 65 + "]" * 65,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 70 + "1" + "}" * 70,
        '"Hi \\ud83d"',
        '{"\\udc00": 1}',
        '["\\ud83d\\u0041"]',
        "NaN",
        "[-Infinity, NaN]",
        "1e999",
        "9" * 5000,
        "01",
        '"\t"',
        '"\\x"',
        "'text'",
    )
    own = '"_requestId": ' + json.dumps(identifier, ensure_ascii=False)
    for value in refused:
        for text in (
            f'{{"zKey": "ping", "zHorizontal": {value}, {own}}}',
            f'{{{own}, "zKey": "ping", "zHorizontal": {value}}}',
            f'{{"zKey": "ping", {own}, "zHorizontal": {value}}}',
            f'{{"_requestId": 1, {own}, "zHorizontal": {value}, "zKey": "ping"}}',
            f'{{"zHorizontal": {value}, "_requestId": 1, {own}, "zKey": "ping"}} ',
        ):
            with pytest.raises(BadMessage):
                decode(text.encode())
            assert request_id_of(text.encode()) == identifier, text[:80]
    # Between two values that are no plain ones: where all that is wrong is what lenient writers put.
    for value in ("[NaN]", '["\\ud83d"]', "[-Infinity]", "[" * 65 + "]" * 65):
        assert request_id_of(f'{{"a": [1], {own}, "b": {value}}}'.encode()) == identifier


def _geojson(count: int) -> str:
    feature = '{"properties": {"tags": {"x": {"y": 1}}}, "geometry": {"coordinates": [[[1.5, 2.5], [3.5, 4.5]]]}}'
    return f'{{"features": [{", ".join([feature] * count)}]}}'


def test_contact_the_id_of_a_large_refused_message_is_found():
    """As large as a message may be, wherever the id stands, and however much else is nested beside and before it."""
    deep = '{"content": [{"marks": [{"attrs": {"c": [1]}}]}, ' * 50 + "1" + "]}" * 50
    wide = ", ".join(f'"k{number}": [[[1]]]' for number in range(40_000))
    rows = ", ".join('{"prices": [1, 2], "o": {"a": [{"b": "]}"}]}}' for _ in range(20_000))
    for value in (_geojson(9000), "[" + ", ".join([deep] * 300) + "]", f"{{{wide}}}", f"[{rows}]"):
        for wrong in ("NaN", '"\\ud83d"', "1e400", "[" * 65 + "]" * 65):
            for text in (
                f'{{"zKey": "ping", "zHorizontal": [{value}, {wrong}], "_requestId": 7}}',
                f'{{"zKey": "ping", "more": {wrong}, {wide}, "_requestId": 7}}',
                f'{{"_requestId": 7, "zKey": "ping", "zHorizontal": [{value}, {wrong}]}}',
            ):
                payload = text.encode()
                start = process_time()
                assert request_id_of(payload) == 7, text[:80]
                assert process_time() - start < 0.2


@pytest.mark.parametrize("pure", [False, True], ids=["usual", "pure"])
def test_contact_r01_no_refused_message_takes_long(monkeypatch: pytest.MonkeyPatch, pure: bool):
    """A megabyte of anything, with an id in it or what looks like one: some milliseconds, or a few hundred where
    nothing is compiled."""
    if pure:
        monkeypatch.setattr("zcomm.bifrost.messages.request_id", frames_pure.request_id)
    size = 64 * 1024 if pure else 1024 * 1024
    for part in (
        b'"a":1,',
        b'"_requestId":',
        b'"_requestId":1,',
        rb'"\u005frequestId":1,',
        rb"\"_requestId\":1,",
        b'{"_requestId":1,',
        b"[",
        b"[[[1,",
        b"[[[]]],",
        b'{"a":[[{"b":[1]}]]},',
        b'"',
        b'"",',
        b",",
        b"\\",
        b'\\"',
        b" ",
    ):
        for text in (
            b'{"_requestId":1,' + part * (size // len(part)),
            b"{" + part * (size // len(part)) + b'"_requestId":1}',
            b'{"a":"' + part * (size // len(part)),
        ):
            start = process_time()
            request_id_of(text)
            assert process_time() - start < 0.2, text[:40]


def test_contact_r22_which_integers_are_taken():
    """An id has 64 bits, as every language can hold those; a value may have more, and comes back as it was."""
    for value in (2**53 + 1, 2**63, -(2**64), 10**20, 10**400, 10**4299):
        request = decode(json.dumps({"zKey": "k", "zHorizontal": [value], "_requestId": 1}).encode())
        assert request.horizontal == [value]
        assert json.loads(encode_reply(1, request.horizontal))["result"] == [value]
    for identifier, fine in (
        (2**63 - 1, True),
        (2**63, False),
        (-(2**63), True),
        (-(2**63) - 1, False),
        (10**20, False),
    ):
        payload = json.dumps({"zKey": "k", "_requestId": identifier}).encode()
        if fine:
            assert decode(payload).request_id == request_id_of(payload) == identifier
        else:
            with pytest.raises(BadMessage, match="64 bits"):
                decode(payload)
            assert request_id_of(payload) is None


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        # An escaped name, also beside one that is not.
        (rb'{"\u0069d": 1, "\u005frequestId": 5, "a": NaN}', 5),
        (rb'{"_request\u0049d": 5, "a": NaN}', 5),
        (rb'{"_requestId": 1, "_request\u0049d": 5, "a": NaN}', 5),
        (rb'{"\u005f\u0072\u0065\u0071\u0075\u0065\u0073\u0074\u0049\u0064": "x", "a": 01}', "x"),
        (rb'{"_requestId\u0000": 5, "a": NaN}', None),
        (rb'{"\\u005frequestId": 5, "a": NaN}', None),
        # In the middle, behind and between what is nested.
        (b'{"a": [[[{"b": [1]}]]], "_requestId": 5, "c": {"d": {"e": {"f": NaN}}}}', 5),
        (b'{"a": {"_requestId": 1}, "_requestId": 5, "c": {"_requestId": 2}, }', 5),
        (b'{"a": "}, {", "_requestId": 5, "c": "[", ]', 5),
        (b'{"zKey" "ping", "_requestId": 5}', 5),
        (b'{"zKey": , "_requestId": 5}', 5),
        (b'{,"_requestId": 5}', 5),
        (b'\xef\xbb\xbf{"_requestId": 5}', 5),
        # The last one counts, as where the message can be read.
        (b'{"_requestId": 1, "_requestId": 5, "a": NaN}', 5),
        (b'{"_requestId": 5, "_requestId": {}, "a": NaN}', None),
        (b'{"_requestId": 5, "_requestId": 1.5, "a": NaN}', None),
        # Cut off: what is there is the message's own, or nobody's.
        (b'{"_requestId": 5, "a": {"b": [1, ', 5),
        (b'{"_requestId": 5, "a": "b', 5),
        (b'{"zKey": "a", "zHorizontal": {"_requestId": 5}', None),
        (b'{"zKey": "a", "zHorizontal": {"b": 1, "_requestId": 5}', None),
        (b'{"zKey": "a", "zHorizontal": [{"_requestId": 5}]', None),
        (b'{"zKey": "a", "_requestId": 12', None),
        (b'{"zKey": "a", "_requestId": "12', None),
        (b'{"zKey": "a", "_requestId": ', None),
        # Brackets that do not match, and what is no name.
        (b'{"a": {"b": [1}, "_requestId": 5}', None),
        (b'{"a": {"b": 1], "_requestId": 5}}', None),
        (b'{"a": 1}, "_requestId": 5}', None),
        (b'{"a": "_requestId": 5}', None),
        (b'{"a": ["_requestId": 5]}', None),
        (b'[{"_requestId": 5}, NaN]', None),
        (b'x{"_requestId": 5}', None),
        (b"{'_requestId': 5}", None),
    ],
)
def test_contact_the_id_of_a_broken_message_is_its_own(payload: bytes, expected):
    """Wherever it stands and however it is written; never that of an inner object."""
    assert request_id_of(payload) == expected


@given(values, st.data())
def test_contact_no_inner_id_is_taken_for_the_outer(value, data):
    """However a message is cut off or broken at one place, its own id is found or none."""
    inner = json.dumps({"_requestId": 1, "a": value, "b": [{"_requestId": 2}]})
    whole = f'{{"a": {inner}, "_requestId": 3456789, "b": {inner}}}'.encode()
    assert request_id_of(whole) == 3456789
    cut = data.draw(st.integers(0, len(whole)))
    assert request_id_of(whole[:cut]) in (None, 3456789)
    assert request_id_of(whole.replace(b"1", b"NaN", 1)) in (None, 3456789)


class Worded(CommandError):
    """An error of a program's own that forgot what it is made of."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


class Hostile(str):
    """A text that raises whatever is done with it."""

    def _refuse(self, *_):
        raise SystemExit(3)

    encode = __str__ = __repr__ = __len__ = __iter__ = __format__ = isascii = _refuse


class HostileFields(dict):
    """An object that raises whatever is done with it."""

    def _refuse(self, *_):
        raise KeyboardInterrupt

    items = values = keys = __iter__ = __len__ = __bool__ = _refuse


class Unasked(CommandError):
    """An error that raises when it is asked for anything."""

    def __init__(self):
        pass

    def _refuse(self):
        raise GeneratorExit

    text = fields = code = retryable = property(_refuse)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Invalid(Hostile("caf\udce9")), {"error": "caf?", "code": "invalid"}),
        (
            Invalid("x", {Hostile("a"): Hostile("b")}),
            {"error": "x", "code": "invalid", "fields": {"a": "b"}},
        ),
        (Worded(text="x", fields=HostileFields(a="b")), {"error": "x", "code": "internal", "fields": {"a": "b"}}),
        (Worded(text="x", code=Hostile("y")), {"error": "x", "code": "internal"}),
        (Unasked(), {"error": "(not a text)", "code": "internal"}),
        (TooBusy("x"), {"error": "x", "code": "too_busy", "retryable": True}),
        *(
            (Worded(text="x", fields={}, code="own", retryable=retryable), {"error": "x", "code": "own"})
            for retryable in ("yes", 1, None, [1], Hostile("yes"))
        ),
    ],
)
def test_contact_an_error_is_told_whatever_its_parts_do(error, told):
    """Nothing of what a program's error brings is called, and each part has the type that the protocol says."""
    assert json.loads(encode_error(3, error)) == {"retryable": False, **told, "_requestId": 3}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Invalid("caf\udce9.txt is in use"), {"error": "caf?.txt is in use", "code": "invalid"}),
        (Invalid("x", {"file": "caf\udce9"}), {"error": "x", "code": "invalid", "fields": {"file": "caf?"}}),
        (Invalid("x", {"when": object()}), {"error": "x", "code": "invalid", "fields": {"when": "(not a text)"}}),
        (Invalid("x", {"\ud800": {1: 2}}), {"error": "x", "code": "invalid", "fields": {"?": "(not a text)"}}),
        (Invalid("x", {5: "five"}), {"error": "x", "code": "invalid", "fields": {"(not a text)": "five"}}),
        (Invalid(OSError("/etc/shadow")), {"error": "(not a text)", "code": "invalid"}),
        (Invalid(b"bytes"), {"error": "(not a text)", "code": "invalid"}),
        (Worded(), {"error": "(not a text)", "code": "internal"}),
        (Worded(text="x", fields=None, code=7, retryable="yes"), {"error": "x", "code": "internal"}),
        (Worded(text="x", fields=[1], code="c\ud800"), {"error": "x", "code": "internal"}),
        (Invalid("x" * (17 * 1024 * 1024)), {"error": "Error too large", "code": "internal"}),
    ],
    ids=["text", "reason", "object", "name", "number", "exception", "bytes", "bare", "wrong", "code", "large"],
)
def test_contact_r06_an_error_is_told_whatever_it_holds(error, told):
    """Texts that UTF-8 does not have, and what is no text, are replaced; nothing else of it is told."""
    assert json.loads(encode_error(3, error)) == {"retryable": False, **told, "_requestId": 3}
