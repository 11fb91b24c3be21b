"""Catalogue group F: frames that are wrong, too big or too many."""

from __future__ import annotations

import json
from random import Random

import pytest
import pytest_twisted
from support.rawclient import Frame, Opcode, build_frame, close_payload, handshake
from support.served import Served, code_of, serving
from support.waiting import wait_until
from twisted.internet.task import deferLater

from zcomm.bifrost import session

pytestmark = pytest.mark.unmeasured

MIB = 1024 * 1024
#: Enough for every table; the rates have a server of their own.
served = serving(limits={"frame_rate": 1e9, "frame_burst": 1e9})
small = serving("small", limits={"message_size": 1000})
brisk = serving("brisk", limits={"frame_rate": 100, "frame_burst": 400})
quick = serving("quick", limits={"ping_interval": 0.2})

T, B, C, P = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION, Opcode.PING


def closing(code: int | None, reason: bytes = b"") -> bytes:
    return build_frame(Opcode.CLOSE, close_payload(code, reason))


WRONG: list[tuple[str, bytes, int]] = [
    ("F1-unmasked", build_frame(T, b"{}", mask=None), 1002),
    ("F1-unmasked-empty", build_frame(T, b"", mask=None), 1002),
    ("F1-rsv1", build_frame(T, b"{}", rsv=4), 1002),
    ("F1-rsv2", build_frame(T, b"{}", rsv=2), 1002),
    ("F1-rsv3", build_frame(T, b"{}", rsv=1), 1002),
    ("F1-rsv-ping", build_frame(P, b"", rsv=4), 1002),
    *((f"F1-opcode-{opcode}", build_frame(opcode, b""), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    ("F1-ping-fragmented", build_frame(P, b"a", fin=False), 1002),
    ("F1-ping-126", build_frame(P, b"a" * 126), 1002),
    ("F1-close-126", build_frame(Opcode.CLOSE, close_payload(1000, b"a" * 124)), 1002),
    ("F1-close-1-byte", build_frame(Opcode.CLOSE, b"\x03"), 1002),
    *(
        (f"F1-close-{code}", closing(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    ),
    ("F1-close-bad-utf-8", closing(1000, b"\xff\xfe"), 1007),
    ("F2-length-2^63", build_frame(T, b"", claim=2**63, width=8), 1002),
    ("F2-length-2^64-1", build_frame(T, b"", claim=2**64 - 1, width=8), 1002),
    ("F2-short-in-2-bytes", build_frame(T, b"{}", width=2), 1002),
    ("F2-short-in-8-bytes", build_frame(T, b"{}", width=8), 1002),
    ("F2-65535-in-8-bytes", build_frame(T, b"a" * 65535, width=8), 1002),
    ("F3-1-GiB", build_frame(T, b"", claim=2**30), 1009),
    ("F3-2^62", build_frame(T, b"", claim=2**62), 1009),
    ("F3-2^63-1", build_frame(T, b"", claim=2**63 - 1), 1009),
    ("F3-binary-1-GiB", build_frame(B, b"", claim=2**30), 1003),
    ("F4-one-over", build_frame(T, b"a" * (MIB + 1)), 1009),
    ("F4-one-over-in-two", build_frame(T, b"a" * MIB, fin=False) + build_frame(C, b"a"), 1009),
    (
        "F4-one-over-in-many",
        build_frame(T, b"a", fin=False) + build_frame(C, b"a" * 1024, fin=False) * 1024,
        1009,
    ),
    ("F6-byte-0", build_frame(T, b"\xff"), 1007),
    ("F6-surrogate", build_frame(T, b'"\xed\xa0\x80"'), 1007),
    ("F6-overlong", build_frame(T, b'"\xc0\xaf"'), 1007),
    ("F6-too-high", build_frame(T, b'"\xf5\x80\x80\x80"'), 1007),
    ("F6-cut-at-the-end", build_frame(T, b'"\xe2\x82'), 1007),
    ("F6-over-frames", build_frame(T, b'"\xe2', fin=False) + build_frame(C, b"\x28"), 1007),
    ("F6-before-the-end", build_frame(T, b"\xed\xa0\x80", fin=False), 1007),
    ("F7-binary", build_frame(B, b'{"zKey":"ping"}'), 1003),
    ("F7-binary-empty", build_frame(B, b""), 1003),
    ("F7-binary-fragment", build_frame(B, b"a", fin=False), 1003),
    ("F8-continuation-first", build_frame(C, b"a"), 1002),
    ("F8-empty-continuation-first", build_frame(C, b""), 1002),
    ("F8-text-in-text", build_frame(T, b"a", fin=False) + build_frame(T, b"b"), 1002),
    ("F8-binary-in-text", build_frame(T, b"a", fin=False) + build_frame(B, b"b"), 1002),
    ("C8-rsv1-not-agreed", build_frame(T, b"\xaa\x56\x2a\x05\x00", rsv=4), 1002),
]


@pytest.mark.parametrize(("data", "code"), [pytest.param(*row[1:], id=row[0]) for row in WRONG])
@pytest_twisted.ensureDeferred
async def test_what_no_client_may_send(served: Served, data: bytes, code: int):
    """One close frame with the code of the table, no answer to anything, and the end."""
    client = await served.client()
    client.send(data)
    assert await code_of(client) == code
    assert len(client.received) == 2, client.received
    await served.stands()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([1000], id="F13-normal"),
        pytest.param([None], id="F13-no-code"),
        pytest.param([1001], id="F1-1001"),
        pytest.param([3000], id="F1-3000"),
        pytest.param([4999], id="F1-4999"),
        pytest.param([1000, 1001], id="F13-twice"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_goodbye_is_answered_once(served: Served, sent: list[int | None]):
    """With 1000, whatever the code; what comes after it is not looked at; the connection ends."""
    before = served.bifrost.factory.state.commands
    client = await served.client()
    client.send(b"".join(closing(code) for code in sent) + build_frame(T, b'{"zKey":"ping"}') * 3)
    assert (await client.next_close()).close_code == 1000
    await client.when_ended()
    assert len(client.received) == 2 and served.bifrost.factory.state.commands == before
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_f13_who_never_answers_a_goodbye_is_cut_off(served: Served):
    """The server says 1003; the peer says nothing more and does not hang up."""
    client = await served.client()
    client.send_frame(B, b"x")
    await client.next_close()
    await client.when_ended()
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_f13_data_behind_a_refused_frame_is_not_processed(served: Served):
    """From the close frame on only the peer's own goodbye matters."""
    before = served.bifrost.factory.state.commands
    client = await served.client()
    client.send(build_frame(B, b"x") + build_frame(T, b'{"zKey":"ping"}') * 10 + build_frame(P, b"x") + closing(1000))
    assert (await client.next_close()).close_code == 1003
    await client.when_ended()
    assert len(client.received) == 2 and served.bifrost.factory.state.commands == before
    await served.stands()


@pytest.mark.parametrize("payload", [b"\xff", b"abc\xff" + b"d" * 200, b'"\xe2\x82'])
@pytest_twisted.ensureDeferred
async def test_f6_what_follows_a_refused_payload_is_passed_over(served: Served, payload: bytes):
    """Text that is not UTF-8, then more, then the peer's goodbye, all in one piece: the connection ends at once."""
    client = await served.client()
    client.send(build_frame(T, payload) + build_frame(T, b'{"zKey":"ping"}') * 3 + closing(1000))
    assert (await client.next_close()).close_code == 1007
    await client.when_ended()
    assert len(client.received) == 2
    await served.stands()


def padded(size: int) -> bytes:
    """A ping command of exactly ``size`` bytes."""
    bare = len(b'{"zKey":"ping","zHorizontal":""}')
    return b'{"zKey":"ping","zHorizontal":"' + b"x" * (size - bare) + b'"}'


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(1, id="F4-exact"),
        pytest.param(2, id="F4-exact-in-two"),
        pytest.param(64, id="F4-exact-in-64"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_message_of_exactly_the_limit_is_answered(served: Served, pieces: int):
    """1,048,576 bytes, whole or in fragments."""
    message = padded(MIB)
    step = MIB // pieces
    client = await served.client()
    for start in range(0, MIB, step):
        client.send_frame(C if start else T, message[start : start + step], fin=start + step >= MIB)
    assert len((await client.next_json())["result"]) == MIB - 32
    await served.stands()


@pytest.mark.parametrize("size", [999, 1000, 1001, 1002])
@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest_twisted.ensureDeferred
async def test_f4_the_limit_is_exact_in_every_form(small: Served, size: int, pieces: int):
    """One byte more is one too many, however the message is cut."""
    message, step = padded(size), -(-size // pieces)
    client = await small.client()
    for start in range(0, size, step):
        client.send_frame(C if start else T, message[start : start + step], fin=start + step >= size)
    if size <= 1000:
        assert len((await client.next_json())["result"]) == size - 32
    else:
        assert await code_of(client) == 1009
    await small.stands()


@pytest_twisted.ensureDeferred
async def test_f8_a_ping_inside_a_message_is_answered_first(served: Served):
    """Control frames may stand between fragments."""
    client = await served.client()
    client.send(build_frame(T, b'{"zKey":', fin=False) + build_frame(P, b"between") + build_frame(C, b'"ping"}'))
    frame = await client.next()
    assert (frame.opcode, frame.payload) == (Opcode.PONG, b"between")
    assert await client.next_json() == {"result": "ping"}
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_f12_pings_are_answered_and_stray_pongs_are_not(served: Served):
    """With the same payload, in order."""
    client = await served.client()
    client.send(build_frame(P, b"") + build_frame(Opcode.PONG, b"stray") + build_frame(P, b"a" * 125))
    frames = [await client.next(), await client.next()]
    assert [(frame.opcode, frame.payload) for frame in frames] == [
        (Opcode.PONG, b""),
        (Opcode.PONG, b"a" * 125),
    ]
    await client.call("ping")
    assert len(client.received) == 4
    await served.stands()


FLOODS = [
    pytest.param(
        build_frame(T, b'{"zKey":"a"}', fin=False) + build_frame(C, b"", fin=False) * 5000,
        id="F9-empty-fragments",
    ),
    pytest.param(build_frame(T, b'{"zKey":"ping"}') * 5000, id="F11-tiny-messages"),
    pytest.param(build_frame(P, b"") * 5000, id="F12-pings"),
    pytest.param(build_frame(Opcode.PONG, b"") * 5000, id="F12-pongs"),
    pytest.param(build_frame(T, b"5") * 5000, id="F11-bad-messages"),
]


@pytest.mark.parametrize("flood", FLOODS)
@pytest_twisted.ensureDeferred
async def test_contact_r02_floods_of_frames_are_slowed(brisk: Served, flood: bytes):
    """Every frame counts, whatever it is; of what wants an answer at most the burst, and the rate of the time it took,
    gets one, but for pings. A ping behind all of it is answered at once, and another client is served meanwhile."""
    other = await brisk.client()
    began = brisk.reactor.seconds()
    client = await brisk.client()
    client.send(flood + build_frame(P, b"behind"))
    assert (await other.call("ping", 1))["result"] == 1
    while (frame := await client.next()).payload != b"behind":
        assert frame.opcode in (T, Opcode.PONG)
    passed = brisk.reactor.seconds() - began
    assert passed < 10, "the ping was answered in its turn"
    texts = [item for item in client.received if isinstance(item, Frame) and item.opcode == T]
    assert len(texts) <= 400 + 100 * passed + 1
    assert client.ended is False and brisk.bifrost.factory.drops["rate_limit"] == 0
    client.abort()
    await brisk.stands()


@pytest_twisted.ensureDeferred
async def test_contact_r02_a_flood_of_pings_is_ended(brisk: Served, monkeypatch: pytest.MonkeyPatch):
    """They cannot be slowed: 1008, when it has been a flood for its time, which is a second here."""
    monkeypatch.setattr(session, "FLOOD_TIME", 1.0)
    client = await brisk.client()
    closing = client.next_close()
    while not closing.called:
        client.send(build_frame(P, b"") * 500)
        await deferLater(brisk.reactor, 0.02)
    frame = await closing
    assert (frame.close_code, frame.close_reason) == (1008, "Rate limit exceeded")
    await client.when_ended()
    assert brisk.bifrost.factory.drops["rate_limit"] == 1
    await brisk.stands()


@pytest_twisted.ensureDeferred
async def test_contact_r02_one_call_in_flight_as_fast_as_can_be(brisk: Served):
    """Six hundred at a rate of a hundred and a burst of four hundred: each is answered, it only takes its time."""
    client = await brisk.client()
    began = brisk.reactor.seconds()
    for number in range(600):
        assert (await client.call("ping", number))["result"] == number
    assert brisk.reactor.seconds() - began > 1.5
    await brisk.stands()


@pytest_twisted.ensureDeferred
async def test_f5_half_a_frame_and_then_silence(quick: Served):
    """A peer that does not answer pings is dropped after at most two intervals, a half-read frame with it."""
    client = await quick.client()
    client.stop_reading()
    client.send(build_frame(T, b"a" * 500)[:100])
    await wait_until(lambda: quick.count == 0, "the end of the silent client")
    client.read_again()
    await client.when_ended()
    assert quick.bifrost.factory.drops["ping_timeout"] >= 1
    await quick.stands()


@pytest_twisted.ensureDeferred
async def test_a_client_that_answers_pings_stays(quick: Served):
    """Over several intervals, saying nothing else."""
    client = await quick.client()
    for _ in range(4):
        frame = await client.next()
        assert frame.opcode == Opcode.PING
        client.send_frame(Opcode.PONG, frame.payload)
    assert (await client.call("ping", 1))["result"] == 1
    await quick.stands()


@pytest.mark.parametrize("seed", range(40))
@pytest_twisted.ensureDeferred
async def test_f14_however_a_conversation_is_cut_the_answers_are_the_same(served: Served, seed: int):
    """Requests, fragments and pings, cut at random places, sometimes into single bytes."""
    random = Random(seed)
    stream, expected = b"", []
    for number in range(random.randint(1, 12)):
        message = json.dumps(
            {
                "zKey": "ping",
                "zHorizontal": "é" * random.choice((0, 1, 40, 70, 40_000)),
                "_requestId": number,
            },
            ensure_ascii=random.random() < 0.5,
        ).encode()
        expected.append(json.loads(message)["zHorizontal"])
        cuts = sorted(random.sample(range(len(message)), random.choice((0, 0, 1, 3))))
        pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True)]
        for index, piece in enumerate(pieces):
            if random.random() < 0.2:
                stream += build_frame(P, b"p")
            stream += build_frame(C if index else T, piece, fin=index == len(pieces) - 1, mask=random.randbytes(4))
    client = await served.connect(
        handshake("127.0.0.1", token=served.admin),
    )
    await client.next()
    start = 0
    while start < len(stream):
        size = random.choice((1, 1, 2, 3, 7, 100, 5000, 65536, len(stream)))
        client.transport.write(stream[start : start + size])
        start += size
    replies = [await client.next_json() for _ in expected]
    assert [reply["result"] for reply in sorted(replies, key=lambda reply: reply["_requestId"])] == expected
    await served.stands()


def mutilated(random: Random) -> bytes:
    """A conversation as it might be, with some of its bytes changed, doubled or left out."""
    frames = b"".join(
        build_frame(
            random.choice((T, T, C, P, Opcode.PONG, B, Opcode.CLOSE)),
            random.choice((b'{"zKey":"ping"}', b"", "é".encode() * 50, random.randbytes(random.randrange(300)))),
            fin=random.random() < 0.8,
            mask=random.randbytes(4),
        )
        for _ in range(random.randrange(1, 20))
    )
    data = bytearray(frames)
    for _ in range(random.randrange(8)):
        place = random.randrange(len(data))
        data[place : place + random.randrange(3)] = random.randbytes(random.randrange(3))
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("kind", ["random", "mutilated"])
@pytest.mark.parametrize("seed", range(4))
@pytest_twisted.ensureDeferred
async def test_f15_random_bytes_end_cleanly(served: Served, kind: str, seed: int):
    """Fifty conversations of each seed: replies and one close frame with a code of the standard's, or patience.

    The table asks for an hour of them; ``benchmarks/fuzz.py`` gives as many as one likes.
    """
    random = Random(seed)
    for _ in range(50):
        client = await served.client()
        client.send(random.randbytes(random.randrange(1, 4000)) if kind == "random" else mutilated(random))
        # A whole ping is answered unless something before it was wrong, or waits for its end.
        client.transport.loseWriteConnection()
        await client.when_ended()
        closes = [item for item in client.received[1:] if item.opcode == Opcode.CLOSE]
        assert len(closes) <= 1 and all(item.opcode in (T, Opcode.PONG, Opcode.CLOSE) for item in client.received[1:])
        for frame in closes:
            assert frame.close_code in (1000, 1002, 1003, 1007, 1009), frame
            assert frame is client.received[-1]
    await served.stands()
