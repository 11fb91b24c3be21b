"""The short way through whole text frames and the long way through Autobahn must be the same way.

Both are given the same bytes, cut at the same places. What they write, in all its bytes, how the connection
stands afterwards, and how many commands were seen must not differ.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from support.rawclient import Opcode, build_frame, close_payload, handshake
from support.worlds import IosimWorld, _Pipe
from twisted.internet.task import Clock

from zcomm.wire.autobahn import CLOSED
from zcomm.wire.incoming import Incoming

pytestmark = pytest.mark.unmeasured

T, B, C, P = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION, Opcode.PING
OPENING = handshake("127.0.0.1", token="alice-token")


class LongWay(Incoming):
    """Every byte goes through Autobahn's state machine, as if there were no other way."""

    __slots__ = ()

    def _take_frames(self, data: bytes) -> None:
        if self._owner is not None and self._owner.state != CLOSED:
            self._owner.feed(data)

    def take_message(self, payload: bytes) -> None:
        # One that waits for its turn keeps what was fed behind it waiting as well.
        self.answer([payload])


class Side:
    """A server with one client, on a transport in memory that keeps all it is given."""

    def __init__(self, long: bool, **options: Any):
        self.world = IosimWorld(frame_rate=1e9, frame_burst=1e9, message_size=70_000, **options)
        self.clock: Clock = self.world.clock
        self.bifrost = self.world.bifrost
        self.bifrost.listen()
        factory = self.bifrost.factory
        self.protocol = factory.buildProtocol(None)
        self.transport = _Pipe(self.protocol, True)
        self.transport.HIGH_WATER = 1 << 40
        self.protocol.makeConnection(self.transport)
        if long:
            self.protocol._incoming.__class__ = LongWay
        self.protocol.dataReceived(OPENING)
        self.transport.getOutBuffer()
        self.written = b""

    def feed(self, pieces: list[bytes]) -> tuple[bytes, bool, int | None, int, int]:
        """Everything that can be seen of how ``pieces`` were taken."""
        for piece in pieces:
            if self.transport.disconnecting:
                break
            self.protocol.dataReceived(piece)
            self.clock.advance(0)
        written = b"".join(self.transport.stream)
        seen = (
            written,
            self.protocol.state == self.protocol.STATE_OPEN,
            self.protocol.localCloseCode,
            len(self.bifrost.registry),
            self.bifrost.factory.state.commands,
        )
        self.transport.lost()
        self.bifrost.stopService()
        return seen


def compare(stream: bytes, cuts: list[int], prefix: bytes = OPENING) -> None:
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    short, long = Side(False).feed(pieces), Side(True).feed(pieces)
    assert short == long, f"cut at {cuts}: {stream[:200]!r}"


def message(random: Random) -> bytes:
    """Something a client might say, or nearly."""
    return random.choice(
        (
            lambda: b'{"zKey":"ping","_requestId":%d}' % random.randrange(100),
            lambda: (
                b'{"zKey":"ping","zHorizontal":"%b"}'
                % (b"x" * random.choice((0, 90, 91, 92, 96, 97, 1000, 65_500, 65_505)))
            ),
            lambda: '{"zKey":"ping","zHorizontal":"é€😀"}'.encode(),
            lambda: b"",
            lambda: b"{",
            lambda: b"5",
            lambda: b"[" * 70,
            lambda: random.randbytes(random.randrange(8)),
            lambda: b"\xff",
            lambda: b'"\xe2\x82',
            lambda: b"x" * 70_001,
            lambda: b"x" * 70_000,
        )
    )()


def part(random: Random) -> bytes:
    """A frame or a few, mostly right."""
    text, mask = message(random), random.randbytes(4)
    kind = random.random()
    if kind < 0.6:
        return build_frame(T, text, mask=mask)
    if kind < 0.75:
        cut = random.randint(0, len(text))
        return build_frame(T, text[:cut], fin=False, mask=mask) + build_frame(C, text[cut:], mask=mask)
    if kind < 0.85:
        return build_frame(random.choice((P, Opcode.PONG)), random.randbytes(random.randrange(126)), mask=mask)
    if kind < 0.9:
        return build_frame(Opcode.CLOSE, close_payload(random.choice((1000, 1001, 1005, 3000, None))), mask=mask)
    if kind < 0.93:
        return build_frame(B, text[:10], mask=mask)
    if kind < 0.96:
        return build_frame(
            random.randrange(16),
            text[:125],
            rsv=random.randrange(8),
            fin=random.random() < 0.5,
            mask=random.choice((mask, None)),
        )
    return random.choice(
        (
            build_frame(T, text[:50], width=2),
            build_frame(T, text[:50], width=8),
            build_frame(T, b"", claim=2**63, width=8),
            build_frame(T, b"", claim=70_001),
            build_frame(C, b"x"),
            random.randbytes(20),
        )
    )


SHORT: list[tuple[str, bytes]] = [
    ("ping", build_frame(T, b'{"zKey":"ping"}')),
    (
        "two",
        build_frame(T, b'{"zKey":"ping","_requestId":1}') + build_frame(T, b'{"zKey":"ping","_requestId":2}'),
    ),
    ("126", build_frame(T, b'{"zKey":"ping","zHorizontal":"' + b"x" * 100 + b'"}') + build_frame(T, b"5")),
    (
        "ping-between",
        build_frame(T, b'{"zKey":', fin=False)
        + build_frame(P, b"p")
        + build_frame(C, b'"ping"}')
        + build_frame(T, b"5"),
    ),
    ("unmasked-second", build_frame(T, b"5") + build_frame(T, b"5", mask=None) + build_frame(T, b"6")),
    ("not-utf-8-second", build_frame(T, b"5") + build_frame(T, b"\xe2\x82") + build_frame(T, b"6")),
    (
        "close-between",
        build_frame(T, b"5") + build_frame(Opcode.CLOSE, close_payload(1000)) + build_frame(T, b"6"),
    ),
    ("binary-between", build_frame(T, b"5") + build_frame(B, b"5") + build_frame(T, b"6")),
    (
        "empty",
        build_frame(T, b"")
        + build_frame(P, b"")
        + build_frame(T, b"", fin=False)
        + build_frame(C, b"")
        + build_frame(T, b"5"),
    ),
    ("wide", build_frame(T, b"5", width=2) + build_frame(T, b"6")),
    ("reserved", build_frame(T, b"5", rsv=1) + build_frame(T, b"6")),
    (
        "zero-mask",
        build_frame(T, b'{"zKey":"ping"}', mask=b"\0\0\0\0") + build_frame(T, b"5", mask=b"\xff\xff\xff\xff"),
    ),
]


@pytest.mark.parametrize("stream", [pytest.param(row[1], id=row[0]) for row in SHORT])
def test_cut_at_every_place(stream: bytes):
    """In one piece, in two at each place, in single bytes."""
    compare(stream, [])
    for cut in range(1, len(stream)):
        compare(stream, [cut])
    compare(stream, list(range(1, len(stream))))


@pytest.mark.parametrize("seed", range(150))
def test_random_conversations(seed: int):
    """Right and wrong frames in any order, cut anywhere; also a stream with a few bytes changed."""
    random = Random(seed)
    stream = b"".join(part(random) for _ in range(random.choice((1, 2, 3, 5, 10))))
    for _ in range(3):
        count = min(len(stream) - 1, random.choice((0, 1, 2, 5, 30)))
        compare(stream, sorted(random.sample(range(1, len(stream)), count)) if count > 0 else [])
    if len(stream) < 5000:
        spoiled = bytearray(stream)
        for _ in range(random.randint(1, 4)):
            spoiled[random.randrange(len(spoiled))] = random.randrange(256)
        compare(bytes(spoiled), [])
        compare(
            bytes(spoiled),
            sorted(random.sample(range(1, len(spoiled)), min(3, len(spoiled) - 1))) if len(spoiled) > 3 else [],
        )


def test_more_messages_than_one_turn():
    """The short way takes turns; nothing is lost, doubled or moved."""
    stream = b"".join(build_frame(T, b'{"zKey":"ping","_requestId":%d}' % number) for number in range(1000))
    compare(stream, [])
    compare(stream, [5, 10_000, 10_001, 30_000])
    compare(stream + build_frame(P, b"x") + build_frame(T, b"\xff") + build_frame(T, b"5"), [20_000])
