"""Whole text frames in and out, in Python and compiled, held against each other and against Autobahn's own parser."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rawclient import MASK, build_frame

from zcomm.wire import frames_pure
from zcomm.wire.frames import pongs

try:
    from zcomm.wire import _fast
except ImportError:
    _fast = None

LARGEST = 70_000


@pytest.fixture(params=["pure", "compiled"])
def frames(request):
    """Each form of the functions in turn."""
    if request.param == "pure":
        return frames_pure
    if _fast is None:
        pytest.skip("zcomm.wire._fast is not built")
    return _fast


def encoded(payload: bytes, first: int = 0x81, mask: bytes | None = MASK, width: int | None = None) -> bytes:
    """A frame as a client sends it, a whole masked text message unless told otherwise; ``first`` is its first byte."""
    return build_frame(first & 0x0F, payload, fin=first >= 0x80, rsv=first >> 4 & 7, mask=mask, width=width)


@pytest.mark.parametrize("length", [0, 1, 3, 7, 8, 9, 125, 126, 127, 65535, 65536, LARGEST])
def test_split_takes_a_message_of_each_length(frames, length: int):
    """Each of the three length encodings is read, up to and including the largest message."""
    payload = (b"0123456789abcdef" * (length // 16 + 1))[:length]
    data = encoded(payload)
    assert frames.split(data, 0, LARGEST) == ([payload], len(data))


def test_split_takes_all_that_is_whole(frames):
    """Several messages in one read come out in order, the rest stays where it is."""
    data = b"xx" + encoded(b"one") + encoded("zwei €".encode()) + encoded(b"") + encoded(b"half")[:-1]
    payloads, offset = frames.split(data, 2, LARGEST)
    assert payloads == [b"one", "zwei €".encode(), b""]
    assert data[offset:] == encoded(b"half")[:-1]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encoded(b"a", first=0x82), id="binary"),
        pytest.param(encoded(b"a", first=0x01), id="first fragment"),
        pytest.param(encoded(b"a", first=0x80), id="last fragment"),
        pytest.param(encoded(b"a", first=0xC1), id="compressed"),
        pytest.param(encoded(b"a", first=0xA1), id="second extension bit"),
        pytest.param(encoded(b"a", first=0x91), id="third extension bit"),
        pytest.param(encoded(b"a", first=0x83), id="reserved opcode"),
        pytest.param(encoded(b"", first=0x89), id="ping"),
        pytest.param(encoded(b"\x03\xe8", first=0x88), id="close"),
        pytest.param(encoded(b"unmasked", mask=None), id="unmasked"),
        pytest.param(encoded(b"a" * 125, width=2), id="125 bytes, length in two"),
        pytest.param(encoded(b"a", width=8), id="1 byte, length in eight"),
        pytest.param(encoded(b"a" * 65535, width=8), id="65535 bytes, length in eight"),
        pytest.param(encoded(b"a" * (LARGEST + 1)), id="too large"),
        pytest.param(b"\x81\xff" + b"\xff" * 8 + MASK + b"a", id="a length of 2**64 - 1"),
        pytest.param(b"\x81\xff\x7f" + b"\xff" * 7 + MASK + b"a", id="a length of 2**63 - 1"),
        pytest.param(encoded(b"\x80"), id="stray continuation byte"),
        pytest.param(encoded(b"\xc0\x80"), id="overlong NUL"),
        pytest.param(encoded(b"\xe0\x9f\xbf"), id="overlong in three bytes"),
        pytest.param(encoded(b"\xf0\x8f\xbf\xbf"), id="overlong in four bytes"),
        pytest.param(encoded(b"\xed\xa0\x80"), id="surrogate"),
        pytest.param(encoded(b"\xf4\x90\x80\x80"), id="beyond U+10FFFF"),
        pytest.param(encoded(b"\xf5\x80\x80\x80"), id="byte F5"),
        pytest.param(encoded(b"12345678\xe2\x82"), id="ends within a character"),
        pytest.param(encoded(b"\xe2\x28\xa1"), id="second byte is no continuation"),
        pytest.param(encoded(b"\xe2\x82\x28"), id="third byte is no continuation"),
    ],
)
def test_split_leaves_everything_else(frames, data: bytes):
    """What is not a whole plain text message is not taken, and neither is what follows it."""
    assert frames.split(data + encoded(b"after"), 0, LARGEST) == (([], 0) if data else ([b"after"], 11))
    before = encoded(b"before")
    assert frames.split(before + data, 0, LARGEST) == ([b"before"], len(before))


def test_split_waits_for_the_last_byte(frames):
    """A message cut anywhere is not taken before it is whole."""
    for data in (encoded(b"hello"), encoded(b"h" * 300), encoded(b"h" * 65536)):
        for cut in [*range(min(len(data), 20)), len(data) - 1]:
            assert frames.split(data[:cut], 0, LARGEST) == ([], 0)


@pytest.mark.parametrize("offset", [-1, 4, 2**70, -(2**70)])
def test_split_refuses_an_offset_outside(frames, offset: int):
    """A wrong offset is a mistake of the caller, not something to guess about."""
    with pytest.raises(ValueError, match="outside"):
        frames.split(b"abc", offset, LARGEST)


@pytest.mark.parametrize(("largest", "taken"), [(-1, 0), (0, 1), (4, 1), (5, 2), (2**80, 2), (-(2**80), 0)])
def test_split_takes_no_message_over_the_limit(frames, largest: int, taken: int):
    """The limit is exact, whatever number it is."""
    payloads, _ = frames.split(encoded(b"") + encoded(b"12345"), 0, largest)
    assert len(payloads) == taken


@pytest.mark.parametrize(
    "text", ["\u0000", "\u007f", "\u0080", "߿", "ࠀ", "퟿", "\ue000", "￿", "\U00010000", "\U0010ffff"]
)
def test_split_takes_every_kind_of_character(frames, text: str):
    """The first and last character of each length are UTF-8, wherever they stand."""
    for before in range(9):
        payload = b"x" * before + text.encode() + b"y"
        assert frames.split(encoded(payload), 0, LARGEST)[0] == [payload]


@pytest.mark.parametrize(
    ("length", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65535, b"\x81\x7e\xff\xff"),
        (65536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
        (2**63 - 1, b"\x81\x7f\x7f" + b"\xff" * 7),
    ],
)
def test_header_writes_the_length_in_the_fewest_bytes(frames, length: int, head: bytes):
    """RFC 6455 section 5.2: the minimal number of bytes must be used."""
    assert frames.header(length) == head


@pytest.mark.parametrize("length", [-1, 2**63, 2**70, -(2**70)])
def test_header_refuses_what_no_frame_can_have(frames, length: int):
    """A length outside of 63 bits is a mistake of the caller."""
    with pytest.raises(ValueError, match="length"):
        frames.header(length)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
def test_frame_is_header_and_payload(frames, length: int):
    """One payload in one frame, and many are their frames joined."""
    payload = b"z" * length
    assert frames.frame(payload) == frames.header(length) + payload
    assert frames.frames([b"a", payload, b""]) == b"\x81\x01a" + frames.frame(payload) + b"\x81\x00"
    assert frames.frames([]) == b""


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("1", 0),
        ("[]", 1),
        ("{}", 1),
        ("[[],[]]", 2),
        ('{"a":{"b":[1]}}', 3),
        ('["[[[[{{{{"]', 1),
        (r'["\"[[[[","[[["]', 1),
        (r'["\\",[[]]]', 3),
        (r'["\\\"[[[",[]]', 2),
        ("[" * 500 + "]" * 500, 500),
        ("[],[],[],{},{},{}", 1),
        ('"[[[[[', 0),
        ('"\\', 0),
    ],
)
def test_depth_within_counts_brackets_outside_of_strings(frames, text: str, depth: int):
    """The limit is exact, and what stands inside of a string does not count."""
    payload = text.encode()
    assert frames.depth_within(payload, depth)
    assert not frames.depth_within(payload, depth - 1)


def test_depth_within_takes_any_limit(frames):
    """A limit beyond every machine number is still a limit."""
    assert frames.depth_within(b"[[]]", 2**80)
    assert not frames.depth_within(b"", -(2**80))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\[]{}€')),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.sampled_from('"\\[{'), max_size=2), inner, max_size=3)
    ),
    max_leaves=30,
)


def depth_of(value) -> int:
    """The depth to which a JSON value nests, found by walking it."""
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 0


@given(JSON, st.booleans())
def test_depth_within_agrees_with_the_value(value, ascii_only: bool):
    """For every JSON text the answer is the depth of what it says."""
    payload = json.dumps(value, ensure_ascii=ascii_only).encode()
    depth = depth_of(value)
    for functions in filter(None, (frames_pure, _fast)):
        assert functions.depth_within(payload, depth)
        assert not functions.depth_within(payload, depth - 1)


def test_time_grows_with_length_alone(frames):
    """Inputs made to be slow (quotes, backslashes, brackets, one long string) are read once; a square would not end."""
    size = 1 << 20
    for hostile in (b"[]" * size, b'"' * size, b"\\" * size, b'"' + b'\\"' * size, b'"a' * size, b"{" + b"}{" * size):
        frames.depth_within(hostile + b"[" * 100, 64)
    text = "€".encode() * (size // 3)
    assert frames.split(encoded(text), 0, size)[0] == [text]


PING = 0x89


@pytest.mark.parametrize("length", [0, 1, 4, 125])
def test_pongs_answer_whole_pings(length: int):
    """With their payloads, in one piece, and say how far they came."""
    payload = (b"0123456789abcdef" * 8)[:length]
    data = b"x" + encoded(payload, PING) + encoded(b"two", PING) + encoded(b"{}")
    answers, offset, count = pongs(data, 1, 10)
    assert answers == bytes((0x8A, length)) + payload + b"\x8a\x03two"
    assert (data[offset:], count) == (encoded(b"{}"), 2)
    assert pongs(data, 1, 1)[2] == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encoded(b"a", PING)[:-1], id="half"),
        pytest.param(encoded(b"", PING)[:5], id="half a header"),
        pytest.param(encoded(b"a", PING, mask=None) + bytes(9), id="unmasked"),
        pytest.param(encoded(b"a" * 126, PING), id="too long"),
        pytest.param(encoded(b"a", PING, width=2), id="length in too many bytes"),
        pytest.param(encoded(b"a", 0x09), id="fragmented"),
        pytest.param(encoded(b"a", 0xC9), id="with an extension bit"),
        pytest.param(encoded(b"a", 0x8A), id="a pong"),
        pytest.param(encoded(b"a"), id="a text"),
    ],
)
def test_pongs_leave_everything_else(data: bytes):
    """What is no whole, legal ping is for the state machine."""
    assert pongs(data, 0, 10) == (b"", 0, 0)
