"""A server whose messages are no commands: another class on the factory, the same protocol below it."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from support.deflate import deflated, inflated
from support.rawclient import Frame, Opcode, RawClient, build_frame
from support.worlds import LoopbackWorld

from zcomm.bifrost.connection import Connection

LIMIT = 4096
T, B, C = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION


class TextEcho(Connection):
    """Gives text back."""

    __slots__ = ()

    def receive(self, payloads: list[bytes]) -> list[bytes]:
        return payloads


class Echo(TextEcho):
    """Gives everything back."""

    __slots__ = ()

    def receive_binary(self, payload: bytes) -> None:
        self.transport.sendMessage(payload, isBinary=True)


@pytest_twisted.async_yield_fixture
async def echoing(request: pytest.FixtureRequest) -> Any:
    """A running server; the parameter, if any, has the class and the options."""
    kind, options = getattr(request, "param", (Echo, {}))
    world = LoopbackWorld(require_auth=False, message_size=LIMIT, connection=kind, **options)
    await world.start()
    yield world
    await world.end()
    assert not world.bifrost.factory._alive


async def joined(world: LoopbackWorld, **how: Any) -> RawClient:
    client = (await world.join(token=None, **how)).client
    assert (await client.next()).status == 101
    return client


async def frames_of(client: RawClient, count: int) -> list[Frame]:
    return [await client.next() for _ in range(count)]


@pytest_twisted.ensureDeferred
async def test_messages_come_back_in_order_as_what_they_were(echoing: LoopbackWorld):
    """Whole, empty, in fragments, with a control frame between; text that is no JSON, bytes that are no text."""
    client = await joined(echoing)
    client.send(
        build_frame(T, "keín JSON".encode())
        + build_frame(B, b"\xff\x00\xfe")
        + build_frame(T, b"{")
        + build_frame(B, b"")
        + build_frame(T, b"")
        + build_frame(B, b"\x80" * 10, fin=False)
        + build_frame(Opcode.PING, b"?")
        + build_frame(C, b"\x81")
        + build_frame(T, "é".encode()[:1], fin=False)
        + build_frame(C, "é".encode()[1:])
        + build_frame(B, b"x" * LIMIT)
    )
    assert [(frame.opcode, frame.payload) for frame in await frames_of(client, 9)] == [
        (T, "keín JSON".encode()),
        (B, b"\xff\x00\xfe"),
        (T, b"{"),
        (B, b""),
        (T, b""),
        (Opcode.PONG, b"?"),
        (B, b"\x80" * 10 + b"\x81"),
        (T, "é".encode()),
        (B, b"x" * LIMIT),
    ]


@pytest.mark.parametrize("echoing", [(Echo, {"compression": True})], indirect=True)
@pytest_twisted.ensureDeferred
async def test_compressed_messages_come_back_compressed(echoing: LoopbackWorld):
    """Each is compressed by itself, so that what was not kept is not referred to."""
    client = await joined(echoing, headers=[("Sec-WebSocket-Extensions", "permessage-deflate")])
    for opcode in (T, B, B, T):
        client.send(build_frame(opcode, deflated(b"again and " * 100), rsv=4))
    for opcode, frame in zip((T, B, B, T), await frames_of(client, 4), strict=True):
        assert (frame.opcode, frame.rsv) == (opcode, 4)
        assert inflated(frame.payload) == b"again and " * 100


@pytest.mark.parametrize("echoing", [(Echo, {}), (Echo, {"compression": True})], indirect=True)
@pytest.mark.parametrize("pieces", [(LIMIT + 1,), (LIMIT, 1), (1,) * (LIMIT + 1)], ids=["whole", "two", "many"])
@pytest_twisted.ensureDeferred
async def test_the_limit_holds_for_binary(echoing: LoopbackWorld, pieces: tuple[int, ...]):
    """One byte over, in any form."""
    client = await joined(echoing)
    last = len(pieces) - 1
    for index, size in enumerate(pieces):
        client.send_frame(C if index else B, b"\0" * size, fin=index == last)
    assert (await client.next_close()).close_code == 1009


@pytest.mark.parametrize("echoing", [(TextEcho, {})], indirect=True)
@pytest_twisted.ensureDeferred
async def test_binary_is_taken_only_by_who_says_so(echoing: LoopbackWorld):
    """It is refused as it begins, not as it ends: it may never end."""
    client = await joined(echoing)
    client.send(build_frame(T, b"text") + build_frame(B, b"", claim=1000))
    assert (await client.next()).payload == b"text"
    assert (await client.next_close()).close_code == 1003
