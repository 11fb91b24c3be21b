"""Catalogue group C: compressed messages, where the operator allows them."""

from __future__ import annotations

import json
import zlib
from random import Random

import pytest
import pytest_twisted
from support.deflate import bomb, deflated, inflated
from support.rawclient import Opcode, build_frame
from support.served import Served, code_of, serving

MIB = 1024 * 1024
OFFER = "permessage-deflate; client_max_window_bits"

deflating = serving("deflating", compression=True, limits={"frame_rate": 1e9, "frame_burst": 1e9})
small = serving("small", compression=True, limits={"message_size": 1000})


def padded(size: int, random: Random | None = None) -> bytes:
    """A ping command of exactly ``size`` bytes, of one letter or of letters that do not compress well."""
    bare = len(b'{"zKey":"ping","zHorizontal":""}')
    filler = b"a" * (size - bare) if random is None else bytes(random.choices(range(0x23, 0x5B), k=size - bare))
    return b'{"zKey":"ping","zHorizontal":"' + filler + b'"}'


async def joined(server: Served, offer: str = OFFER):
    client = await server.client(headers=[("Sec-WebSocket-Extensions", offer)])
    agreed = client.reader.response.header("Sec-WebSocket-Extensions")
    assert agreed is not None and agreed.startswith("permessage-deflate"), agreed
    return client


def finished(data: bytes) -> bytes:
    """A compressed message whose last block says that it is the last."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return compressor.compress(data) + compressor.flush(zlib.Z_FINISH)


def in_pieces(data: bytes, size: int = 1000) -> bytes:
    """A compressed message in fragments, the last of which is missing."""
    starts = range(0, len(data), size)
    return b"".join(
        build_frame(0 if start else Opcode.TEXT, data[start : start + size], rsv=0 if start else 4, fin=False)
        for start in starts
    )


#: What is sent after an agreement, and the close code.
WRONG: list[tuple[str, bytes, int]] = [
    ("C1-64-MiB", build_frame(Opcode.TEXT, bomb(64 * MIB), rsv=4), 1009),
    ("C2-in-fragments", in_pieces(bomb(64 * MIB)), 1009),
    ("C5-corrupt", build_frame(Opcode.TEXT, b"\xff\xff\xff\xff\xff", rsv=4), 1007),
    ("C2-512-MiB", build_frame(Opcode.TEXT, bomb(512 * MIB), rsv=4), 1009),
    ("C5-garbage-behind-the-end", build_frame(Opcode.TEXT, finished(b'{"zKey":"ping"}') + b"garbage", rsv=4), 1007),
    ("C6-ping", build_frame(Opcode.PING, b"\x02\x00", rsv=4), 1002),
    ("C6-close", build_frame(Opcode.CLOSE, b"\x03\xe8", rsv=4), 1002),
    (
        "C6-continuation",
        build_frame(Opcode.TEXT, deflated(b"{}"), rsv=4, fin=False) + build_frame(0, b"", rsv=4),
        1002,
    ),
    (
        "C6-continuation-of-plain",
        build_frame(Opcode.TEXT, b"{", fin=False) + build_frame(0, b"}", rsv=4),
        1002,
    ),
    ("C6-rsv2", build_frame(Opcode.TEXT, deflated(b"{}"), rsv=6), 1002),
    ("F6-utf-8", build_frame(Opcode.TEXT, deflated(b"\xff\xfe"), rsv=4), 1007),
    ("F7-binary", build_frame(Opcode.BINARY, deflated(b"{}"), rsv=4), 1003),
    ("F1-unmasked", build_frame(Opcode.TEXT, deflated(b"{}"), rsv=4, mask=None), 1002),
]


@pytest.mark.parametrize(("data", "code"), [pytest.param(*row[1:], id=row[0]) for row in WRONG])
@pytest_twisted.ensureDeferred
async def test_compressed_messages_that_are_none(deflating: Served, data: bytes, code: int):
    """One close frame with the code of the table, and the end."""
    client = await joined(deflating)
    client.send(data)
    assert await code_of(client) == code
    await deflating.stands()


@pytest.mark.parametrize("surplus", [0, 1, 2, 3, 5, 17, 67, 68, 69, 194, 195, 196, 300, 1023, 1024, 1025, 2000])
@pytest.mark.parametrize("letters", ["a", "many"])
@pytest_twisted.ensureDeferred
async def test_c3_the_limit_is_exact(small: Served, surplus: int, letters: str):
    """Counted after decompression: one byte more is 1009, and a message is never shortened (C3, C4, F4)."""
    message = padded(1000 + surplus, None if letters == "a" else Random(surplus))
    client = await joined(small)
    client.send_frame(Opcode.TEXT, deflated(message), rsv=4)
    if surplus:
        assert await code_of(client) == 1009
    else:
        frame = await client.next()
        reply = inflated(frame.payload) if frame.rsv else frame.payload
        assert len(json.loads(reply)["result"]) == 1000 - 32
    await small.stands()


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest_twisted.ensureDeferred
async def test_c4_an_incompressible_message_of_the_limit(deflating: Served, level: int):
    """Compression makes it longer on the wire; it is a message of the limit all the same."""
    message = padded(MIB, Random(4))
    client = await joined(deflating)
    client.send_frame(Opcode.TEXT, deflated(message, level), rsv=4)
    frame = await client.next()
    reply = inflated(frame.payload) if frame.rsv else frame.payload
    assert len(json.loads(reply)["result"]) == MIB - 32
    await deflating.stands()


@pytest_twisted.ensureDeferred
async def test_c5_a_message_cut_short_is_not_read_on(deflating: Served):
    """Half a stream is no message: 1007, or an error for what it says; never a guess."""
    client = await joined(deflating)
    client.send_frame(Opcode.TEXT, deflated(b'{"zKey":"ping","zHorizontal":"' + b"abc" * 100 + b'"}')[:-9], rsv=4)
    frame = await client.next()
    if frame.opcode == Opcode.CLOSE:
        assert frame.close_code == 1007
    else:
        assert frame.json["code"] == "bad_message"
    await deflating.stands()


@pytest.mark.parametrize("window", ["9", "10", '"11"', "12", "15"])
@pytest_twisted.ensureDeferred
async def test_contact_a_client_offers_a_small_window(deflating: Served, window: str):
    """The agreement is no larger (RFC 7692 section 7.1.2.2), or clients end the connection; it is compressed with."""
    client = await joined(deflating, f"permessage-deflate; client_max_window_bits={window}")
    parameters = client.reader.response.header("Sec-WebSocket-Extensions").split("; ")
    bits = min(12, int(window.strip('"')))
    assert f"client_max_window_bits={bits}" in parameters
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    client.send_frame(
        Opcode.TEXT, (compressor.compress(padded(5000)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4
    )
    assert len(json.loads(inflated((await client.next()).payload))["result"]) == 5000 - 32
    await deflating.stands()


@pytest_twisted.ensureDeferred
async def test_messages_share_the_clients_context_and_not_ours(deflating: Served):
    """A client may refer back to its own messages; each of ours stands for itself (C9)."""
    client = await joined(deflating)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    message = b'{"zKey":"ping","zHorizontal":"' + b"secret-0123456789" * 20 + b'"}'
    sizes = []
    for _ in range(3):
        client.send_frame(Opcode.TEXT, (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)
        frame = await client.next()
        assert frame.rsv == 4 and json.loads(inflated(frame.payload))["result"].startswith("secret")
        sizes.append(len(frame.payload))
    # The same reply is as long the third time as the first: nothing in it refers to an earlier one.
    assert len(set(sizes)) == 1
    await deflating.stands()


@pytest.mark.parametrize("behind", [b"", b"\0"])
@pytest_twisted.ensureDeferred
async def test_c5_messages_that_are_streams_of_their_own(deflating: Served, behind: bytes):
    """A client may end each with a last block, and the byte that RFC 7692 section 7.2.3.4 puts behind it."""
    client = await joined(deflating)
    for number in range(3):
        client.send_frame(Opcode.TEXT, finished(b'{"zKey":"ping","zHorizontal":%d}' % number) + behind, rsv=4)
        assert await client.next_json() == {"result": number}
    client.send_frame(Opcode.TEXT, deflated(b'{"zKey":"ping","zHorizontal":"plain"}'), rsv=4)
    assert await client.next_json() == {"result": "plain"}
    await deflating.stands()


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        pytest.param("permessage-deflate", True, id="plain"),
        pytest.param("permessage-deflate; server_max_window_bits=9", True, id="window-9"),
        pytest.param("permessage-deflate; server_max_window_bits=8", False, id="window-8"),
        pytest.param("permessage-deflate; server_max_window_bits=16", False, id="H18-window-16"),
        pytest.param("permessage-deflate; client_max_window_bits=7", False, id="H18-client-window-7"),
        pytest.param("permessage-deflate; server_no_context_takeover=1", False, id="H18-value-for-none"),
        pytest.param("permessage-deflate; unknown", False, id="H18-unknown"),
        pytest.param("permessage-deflate; unknown, permessage-deflate", True, id="H18-second-offer"),
        pytest.param("x-webkit-deflate-frame", False, id="other"),
        pytest.param("constructor, __proto__", False, id="H17-names"),
        pytest.param("permessage-deflate" + "; a" * 4000, False, id="H17-4000-parameters"),
        pytest.param(", ".join(["permessage-deflate; unknown"] * 400), False, id="H17-400-offers"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_offers(deflating: Served, offer: str, agreed: bool):
    """An illegal offer is declined and the handshake goes on without; messages work either way."""
    client = await deflating.client(headers=[("Sec-WebSocket-Extensions", offer)])
    assert (client.reader.response.header("Sec-WebSocket-Extensions") is not None) is agreed
    message = b'{"zKey":"ping","zHorizontal":"' + b"x" * 500 + b'"}'
    client.send_frame(Opcode.TEXT, deflated(message, bits=9) if agreed else message, rsv=4 if agreed else 0)
    frame = await client.next()
    assert len(json.loads(inflated(frame.payload) if frame.rsv else frame.payload)["result"]) == 500
    await deflating.stands()


@pytest_twisted.ensureDeferred
async def test_a_broadcast_reaches_every_kind_of_client(deflating: Served):
    """Compressed with each window, or not at all: the same message."""
    author = await deflating.client()
    listeners = [
        await deflating.client(),
        await joined(deflating),
        await joined(deflating, "permessage-deflate; server_max_window_bits=9"),
        await joined(deflating),
    ]
    text = "announcement " * 100
    assert deflating.bifrost.broadcast(text, sender=None) == 5
    for listener in [author, *listeners]:
        frame = await listener.next()
        assert (inflated(frame.payload) if frame.rsv else frame.payload).decode() == text
    await deflating.stands()


@pytest_twisted.ensureDeferred
async def test_b12_what_takes_long_to_compress_is_sent_as_it_is(deflating: Served):
    """Compressing a large answer would keep the reactor; those that follow are compressed again."""
    client = await joined(deflating)
    for size in (1_000_000, 1000):
        client.send_json({"zKey": "ping", "zHorizontal": "a" * size})
        frame = await client.next()
        assert bool(frame.rsv) is (size < 300_000)
        assert json.loads(inflated(frame.payload) if frame.rsv else frame.payload)["result"] == "a" * size
    await deflating.stands()
