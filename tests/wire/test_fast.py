"""The compiled functions give what their Python twins give, on whatever bytes."""

from __future__ import annotations

import gc
import socket
import sys
from contextlib import ExitStack
from errno import EAGAIN, EBADF, ECONNRESET, EPIPE

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rawclient import MASK, build_frame

from zcomm.wire import frames, frames_pure, sockets

fast = pytest.importorskip("zcomm.wire._fast", reason="zcomm.wire._fast is not built")

LARGEST = 66_000

payloads = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(str.encode),
    st.sampled_from([b"", b"a" * 125, b"a" * 126, b"\xc3\xa9" * 63, b"b" * 65535, b"b" * 65536, b"b" * (LARGEST + 1)]),
)


def encoded(payload: bytes) -> bytes:
    """A whole masked text message."""
    return build_frame(1, payload)


frame_like = st.builds(
    build_frame,
    st.one_of(st.just(1), st.just(1), st.integers(0, 15)),
    payloads,
    fin=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 4, 7]),
    mask=st.one_of(st.just(MASK), st.binary(min_size=4, max_size=4), st.none()),
    width=st.one_of(st.none(), st.none(), st.just(8)),
)
#: A few frames or parts of some, none of them long.
short_streams = st.lists(frame_like.filter(lambda frame: len(frame) < 400), min_size=1, max_size=3).map(b"".join)
streams = st.lists(st.one_of(frame_like, frame_like, frame_like, st.binary(max_size=20)), max_size=6).map(b"".join)


@given(streams, st.data())
def test_split_on_random_streams(data: bytes, choices):
    """The same payloads and the same place to stop, from whatever offset and with whatever limit."""
    offset = choices.draw(st.one_of(st.just(0), st.integers(0, len(data))))
    largest = choices.draw(st.sampled_from([LARGEST, 100, 125, 126, 0, -1]))
    assert fast.split(data, offset, largest) == frames_pure.split(data, offset, largest)


@settings(max_examples=50)
@given(short_streams)
def test_split_cut_at_every_place(data: bytes):
    """However a stream is cut, both take the same from each part."""
    for cut in range(len(data) + 1):
        assert fast.split(data[:cut], 0, LARGEST) == frames_pure.split(data[:cut], 0, LARGEST)
        assert fast.split(data, cut, LARGEST) == frames_pure.split(data, cut, LARGEST)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=50).map(str.encode),
        st.tuples(
            st.text(max_size=20).map(str.encode), st.binary(max_size=4), st.text(max_size=20).map(str.encode)
        ).map(b"".join),
    ),
    st.integers(-2, 40),
)
def test_utf8_and_depth_on_random_bytes(payload: bytes, limit: int):
    """What is text is text for both, and its depth is the same."""
    assert fast.split(encoded(payload), 0, LARGEST) == frames_pure.split(encoded(payload), 0, LARGEST)
    assert fast.depth_within(payload, limit) == frames_pure.depth_within(payload, limit)


@given(st.text(st.sampled_from('[]{}"\\a,'), max_size=60).map(str.encode), st.integers(0, 12))
def test_depth_on_brackets_and_quotes(payload: bytes, limit: int):
    """Not JSON, but made of its marks: the answers are the same."""
    assert fast.depth_within(payload, limit) == frames_pure.depth_within(payload, limit)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"zKey":"ping","zHorizontal":[1,2,3]}',
        b'[{"name":"a","x":1},{"name":"b","x":2},{"nome":1}]',
        b"[" + b"9" * 299 + b"," + b"9" * 301 + b"," + b"9" * 4301 + b"]",
        b"[0.1234567890123455,0.12345678901234567890,1e5,1e-5,1e100,1.5e+10," + b"1." + b"3" * 150 + b"]",
        b'["\\"","\u0000",',
    ],
)
def test_what_some_messages_cost(payload: bytes):
    """The same in both forms."""
    assert fast.price(payload) == frames_pure.price(payload)


@given(
    st.lists(
        st.sampled_from([*'"\\,:[{]}10.eE-+ aé5', '"a":', '"bb" :', "9007199254740993", "0" * 140]),
        max_size=30,
    )
)
def test_the_price_of_whatever_stands_there(parts: list[str]):
    """Not JSON, but made of its marks, names and dear numbers: it costs the same."""
    payload = "".join(parts).encode()
    assert fast.price(payload) == frames_pure.price(payload)


@given(
    st.lists(
        st.sampled_from(
            [
                '"_requestId"',
                r'"_request\u0049d"',
                ":",
                ",",
                "{",
                "}",
                "[",
                "]",
                '"',
                "\\",
                " ",
                "\0",
                "1",
                '"x"',
                '"a":[1],',
            ]
        ),
        max_size=14,
    ),
    st.sampled_from(["{", " {", "\ufeff{", '{"_requestId":1,', ""]),
)
def test_the_id_in_whatever_stands_there(parts: list[str], start: str):
    """Not JSON, but made of its marks and of names of ids: both find the same one, or none."""
    payload = (start + "".join(parts)).encode()
    assert fast.request_id(payload) == frames_pure.request_id(payload)
    assert fast.request_id(payload[:-1]) == frames_pure.request_id(payload[:-1])


@pytest.mark.unmeasured
def test_every_short_sequence_of_lead_bytes():
    """All 65,536 pairs, and each with a continuation after it, are judged as Python's own decoder does."""
    for first in range(256):
        for tail in (b"", b"\x80", b"\x80\x80", b"a"):
            stream = [encoded(bytes((first, second)) + tail) for second in range(256)]
            for data in stream:
                assert fast.split(data, 0, LARGEST) == frames_pure.split(data, 0, LARGEST)


@given(st.lists(payloads, max_size=5))
def test_frames_of_random_payloads(items: list[bytes]):
    """Written as the Python twin writes them."""
    assert fast.frames(items) == frames_pure.frames(items)
    for item in items:
        assert fast.frame(item) == frames_pure.frame(item)
        assert fast.header(len(item)) == frames_pure.header(len(item))


@pytest.mark.parametrize(
    "call",
    [
        lambda: fast.split(),
        lambda: fast.split(b"", 0),
        lambda: fast.split("text", 0, 1),
        lambda: fast.split(bytearray(b"x"), 0, 1),
        lambda: fast.split(b"", "0", 1),
        lambda: fast.split(b"", 0, None),
        lambda: fast.header("1"),
        lambda: fast.frame("text"),
        lambda: fast.frames(None),
        lambda: fast.frames([b"a", "b"]),
        lambda: fast.frames("ab"),
        lambda: fast.depth_within("text", 1),
        lambda: fast.depth_within(b"", 1.5),
        lambda: fast.request_id("text"),
        lambda: fast.request_id(),
        lambda: fast.send_all([1.5], b""),
        lambda: fast.send_all(None, b""),
        lambda: fast.send_all([], "text"),
        lambda: fast.send_all([]),
        lambda: fast.receive(1.5, 1),
        lambda: fast.receive(1),
        lambda: fast.send_messages(1, None),
        lambda: fast.send_messages(1, [b"a", "b"]),
        lambda: fast.send_messages(1.5, [b"a"]),
    ],
)
def test_a_wrong_argument_is_a_type_error(call):
    """What is not of the right type is refused before anything is read from it."""
    with pytest.raises(TypeError):
        call()


def test_no_reference_is_lost_or_kept():
    """A thousand calls leave as many objects as ten, on every way out."""
    stream = encoded(b"message") * 3 + encoded(b"\xff")

    def each_way_out() -> None:
        fast.split(stream, 0, LARGEST)
        fast.frames([b"a", b"b" * 200])
        fast.depth_within(b"[[[]]]", 2)
        fast.request_id(b'{"a": [{"b": 1}], "_requestId": 5}')
        fast.request_id(b"[")
        fast.send_all([-1], b"x")
        fast.send_messages(-1, [b"x"])
        for wrong in (
            lambda: fast.frames([b"a", 1]),
            lambda: fast.send_all([0, None], b""),
            lambda: fast.split(b"", 1, 1),
        ):
            with pytest.raises((TypeError, ValueError)):
                wrong()

    def blocks(times: int) -> int:
        for _ in range(times):
            each_way_out()
        gc.collect()
        return sys.getallocatedblocks()

    blocks(100)
    before = blocks(10)
    assert abs(blocks(1000) - before) < 200


@pytest.fixture(params=["pure", "compiled"])
def send_all(request):
    """Each form of the broadcast write in turn."""
    return sockets.send_all_pure if request.param == "pure" else fast.send_all


@pytest.fixture
def pair():
    """Two ends of a stream, neither of which blocks."""
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        for end in ends:
            end.setblocking(False)
        yield ends


def test_send_all_writes_to_each(send_all, pair):
    """Each socket gets the bytes once, and where all went well there is nothing to report."""
    near, far = pair
    assert send_all([near.fileno(), far.fileno()], b"hello") == []
    assert (near.recv(10), far.recv(10)) == (b"hello", b"hello")
    assert send_all([], b"hello") == []


def test_send_all_does_not_wait(send_all, pair):
    """A full socket takes a part, then nothing; those after it get everything all the same."""
    near, far = pair
    large = b"x" * (8 << 20)
    [(place, taken)] = send_all([near.fileno()], large)
    assert place == 0 and 0 < taken < len(large)
    assert send_all([near.fileno(), far.fileno()], b"small") == [(0, -EAGAIN)]
    assert near.recv(10) == b"small"


def test_send_all_names_the_error(send_all, pair):
    """A closed peer and a descriptor that is none cost the caller a number, not a signal or an exception."""
    near, far = pair
    number = far.fileno()
    far.close()
    [(place, error), closed] = send_all([near.fileno(), number], b"a")
    assert place == 0 and error in (-EPIPE, -ECONNRESET)
    assert closed == (1, -EBADF)


def test_send_all_leaves_out_what_has_to_wait(send_all, pair):
    """A negative descriptor stands for a client whose turn has not come: reported, not written to."""
    near, far = pair
    assert send_all([-1, near.fileno(), -1], b"hello") == [(0, 0), (2, 0)]
    assert far.recv(10) == b"hello"


@pytest.fixture(params=["pure", "compiled"])
def receive(request):
    """Each form of the read in turn."""
    return sockets.receive_pure if request.param == "pure" else fast.receive


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(encoded(b"one"), id="one message"),
        pytest.param(encoded(b"one") + encoded("zwei €".encode()) + encoded(b""), id="three messages"),
        pytest.param(encoded(b"x" * 300), id="a longer one"),
        pytest.param(encoded(b""), id="an empty one"),
        pytest.param(encoded(b"one") + encoded(b"two")[:-1], id="one and a half"),
        pytest.param(encoded(b"\xff"), id="not UTF-8"),
        pytest.param(encoded(b"x" * 1001), id="too large"),
        pytest.param(build_frame(2, b"a"), id="binary"),
        pytest.param(build_frame(9, b""), id="ping"),
        pytest.param(encoded(b"one") + build_frame(9, b""), id="a message and a ping"),
        pytest.param(b"\x81", id="one byte"),
    ],
)
def test_receive_gives_messages_or_bytes(receive, pair, sent: bytes):
    """A list where whole messages are all there is, and otherwise exactly what came."""
    near, far = pair
    far.sendall(sent)
    payloads, end = frames_pure.split(sent, 0, 1000)
    assert receive(near.fileno(), 1000) == (payloads if end == len(sent) else sent)


def test_receive_does_not_wait(receive, pair):
    """Nothing to read, the end of the stream and a bad descriptor are three different things."""
    near, far = pair
    with pytest.raises(BlockingIOError):
        receive(near.fileno(), 1000)
    far.close()
    assert receive(near.fileno(), 1000) == b""
    with pytest.raises(OSError) as caught:
        receive(-1, 1000)
    assert caught.value.errno == EBADF


@given(short_streams)
def test_receive_on_random_streams(data: bytes):
    """The same answer from both, for whatever a read brings."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(end) for end in socket.socketpair())
        near.setblocking(False)
        far.sendall(data)
        first = fast.receive(near.fileno(), LARGEST)
        far.sendall(data)
        assert first == sockets.receive_pure(near.fileno(), LARGEST)


@pytest.fixture(params=["pure", "compiled"])
def send_messages(request):
    """Each form of the write in turn."""
    return sockets.send_messages_pure if request.param == "pure" else fast.send_messages


@pytest.mark.parametrize(
    "items", [[], [b""], [b"a"], [b"a", b"b" * 126, b"c" * 200], [b"d" * 65_000, b"e" * 535], [b"f" * 70_000]]
)
def test_send_messages_writes_them_all(send_messages, pair, items: list[bytes]):
    """What arrives is the frames, one after the other, and nothing is left."""
    near, far = pair
    assert send_messages(near.fileno(), items) == b""
    assert (far.recv(1 << 20) if items else b"") == frames_pure.frames(items)


def test_send_messages_returns_what_was_not_taken(send_messages, pair):
    """Of a full socket the rest comes back, of a broken one everything; no signal, no exception."""
    near, far = pair
    items = [b"x" * (4 << 20)] * 2
    rest = send_messages(near.fileno(), items)
    assert 0 < len(rest) < len(frames_pure.frames(items)) and frames_pure.frames(items).endswith(rest)
    assert send_messages(near.fileno(), [b"small"]) == frames_pure.frame(b"small")
    far.close()
    assert send_messages(near.fileno(), [b"gone"]) == frames_pure.frame(b"gone")
    assert send_messages(-1, [b"gone"]) == frames_pure.frame(b"gone")


@pytest.mark.skipif("zcomm_pure" in sys._xoptions, reason="passed over with -X zcomm_pure")
def test_the_compiled_functions_are_the_ones_in_use():
    """The server runs the extension if that was built."""
    assert frames.COMPILED and frames.split is fast.split and sockets.send_all is fast.send_all
