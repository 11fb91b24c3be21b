"""Clients behind a proxy that speaks the PROXY protocol: headers by hand, whole, in pieces and wrong."""

from __future__ import annotations

import struct

import pytest
import pytest_twisted
from support.rawclient import Opcode, build_frame, handshake
from support.rows import rows_of_a_test
from support.served import Served, refusal, serving
from support.waiting import wait_until

from zcomm import WebSocketConfig
from zcomm.errors import ConfigError
from zcomm.runtime.endpoints import server_endpoints

LISTEN = ("haproxy:tcp:0:interface=127.0.0.1",)
served = serving(listen=LISTEN, limits={"auth_failures": 2, "pending_per_peer": 2, "handshake_timeout": 5.0})
behind_two = serving("behind_two", listen=LISTEN, trusted_proxies=("10.0.0.0/8",), limits={"auth_failures": 1})
open_to_all = serving("open_to_all", listen=LISTEN, require_auth=False, insecure=True)

V2 = b"\r\n\r\n\x00\r\nQUIT\n"


def v1(source: str, kind: str = "TCP4") -> bytes:
    return f"PROXY {kind} {source} 127.0.0.1 4711 443\r\n".encode()


def v2(kind: int, addresses: bytes, command: int = 0x21) -> bytes:
    return V2 + bytes((command, kind)) + struct.pack("!H", len(addresses)) + addresses


IPV4 = bytes((203, 0, 113, 9, 127, 0, 0, 1)) + struct.pack("!2H", 4711, 443)
IPV6 = bytes.fromhex("20010db8000000010000000000000009") + bytes(15) + b"\x01" + struct.pack("!2H", 4711, 443)
#: A header, and the address of the client that it tells.
HEADERS = [
    (v1("203.0.113.9"), "203.0.113.9"),
    (b"PROXY TCP6 2001:db8::9 ::1 4711 443\r\n", "2001:db8::9"),
    (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 4711 443\r\n", "203.0.113.9"),
    (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
    (b"PROXY UNKNOWN ffff::ffff ffff::ffff 65535 65535\r\n", "127.0.0.1"),
    (v2(0x11, IPV4), "203.0.113.9"),
    (v2(0x11, IPV4 + b"\x04\x00\x03abc"), "203.0.113.9"),
    (v2(0x21, IPV6), "2001:db8:0:1::9"),
    (v2(0x00, b"", 0x20), "127.0.0.1"),
    (v2(0x31, bytes(216)), "unix"),
]
#: What is no header.
NONE = [
    b"GET / HTTP/1.1\r\n",
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 a b c d\r\n",
    b"PROXY TCP4 nobody 127.0.0.1 1 2\r\n",
    b"PROXY \r\n",
    b"PROXY TCP4 \xff\xfe 127.0.0.1 1 2\r\n",
    b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"PROXY " + b"x" * 200,
    b"PROXYING",
    V2 + b"\x31\x11\x00\x0c" + IPV4,
    V2 + b"\x21\x11\x00\x02ab",
    V2[:11] + b"x",
    b"\x16\x03\x01\x02\x00",
]


def opening(served: Served, **options: object) -> bytes:
    options.setdefault("token", served.admin)
    return handshake("127.0.0.1", **options) + build_frame(Opcode.TEXT, b'{"zKey":"ping"}')


@pytest_twisted.ensureDeferred
async def test_contact_r03_the_header_says_where_the_client_is(served: Served):
    """Both versions, in one piece with what follows or byte by byte."""
    with rows_of_a_test() as row:
        for header, address in HEADERS:
            for cuts in ([len(header)], [1], [5], range(1, len(header))):
                with row(f"{header[:30]!r} {cuts}"):
                    client = await served.connect(header[: cuts[0]])
                    for begin, end in zip(cuts, [*cuts[1:], len(header)], strict=True):
                        client.send(header[begin:end])
                    client.send(opening(served))
                    assert (await client.next()).status == 101
                    assert await client.next_json() == {"result": "ping"}
                    assert [one.peer for one in served.bifrost.clients] == [address]
                    client.abort()
                    await wait_until(lambda: not served.count, "its end")
    assert not [event for event in served.log if "log_failure" in event]


@pytest_twisted.ensureDeferred
async def test_what_is_no_header_is_hung_up_on(served: Served):
    """Without a word, and without a traceback in the log."""
    before = served.bifrost.factory.drops["proxy_header"]
    with rows_of_a_test() as row:
        for data in NONE:
            with row(repr(data[:30])):
                client = await served.connect(data)
                client.send(b"x" * 20)
                await client.when_ended()
                assert client.received == []
    assert served.bifrost.factory.drops["proxy_header"] - before == len(NONE)
    assert not [event for event in served.log if "log_failure" in event]


@pytest_twisted.ensureDeferred
async def test_contact_r03_the_limits_are_those_of_the_client(served: Served):
    """Its failures and its places; of the proxy's address there is no share."""

    async def guessed(address: str) -> tuple[int | None, str]:
        client = await served.connect(v1(address) + handshake("127.0.0.1", token="wrong"))
        await client.next()
        return await refusal(client)

    wrong, later = (1008, "Invalid token"), (1013, "Too many failed attempts")
    assert [await guessed("203.0.113.1") for _ in range(3)] == [wrong, wrong, later]
    assert await guessed("203.0.113.2") == wrong
    silent = [await served.connect(v1("203.0.113.3")) for _ in range(4)]
    pending = served.bifrost.factory.pending
    await wait_until(lambda: (pending.count, pending.waiting) == (2, 2), "places for two and a line for two")
    client = await served.connect(v1("203.0.113.4") + opening(served))
    assert (await client.next()).status == 101
    silent[0].abort()
    await wait_until(lambda: (pending.count, pending.waiting) == (2, 1), "the next in the line")
    assert not [event for event in served.log if "log_failure" in event]


@pytest_twisted.ensureDeferred
async def test_contact_who_waits_for_a_place_with_its_header_is_answered(served: Served):
    """A request that comes with the header, or in pieces, waits for a place of its address, and is read from then."""
    silent = [await served.connect(v1("203.0.113.5")) for _ in range(2)]
    pending = served.bifrost.factory.pending
    await wait_until(lambda: pending.count + pending.waiting >= 2, "all places of an address")
    with rows_of_a_test() as row:
        for cut in (10, len(v1("203.0.113.5")), 90, 10_000):
            with row(str(cut)):
                data = v1("203.0.113.5") + opening(served)
                client = await served.connect(data[:cut])
                client.send(data[cut:])
                assert (await client.next()).status == 101
                assert await client.next_json() == {"result": "ping"}
                client.send(build_frame(Opcode.TEXT, b'{"zKey":"ping","_requestId":2}'))
                assert await client.next_json() == {"result": "ping", "_requestId": 2}
                client.abort()
    for one in silent:
        one.abort()


@pytest_twisted.ensureDeferred
async def test_a_proxy_behind_a_proxy(behind_two: Served):
    """Where the header names a trusted proxy, its X-Forwarded-For is read; of others it is not."""
    for source, address in (("10.1.1.1", "203.0.113.7"), ("198.51.100.1", "198.51.100.1")):
        forwarded = [("X-Forwarded-For", "198.51.100.9, 203.0.113.7")]
        client = await behind_two.connect(v1(source) + opening(behind_two, headers=forwarded))
        assert (await client.next()).status == 101
        assert [one.peer for one in behind_two.bifrost.clients] == [address]
        client.abort()
        await wait_until(lambda: not behind_two.count, "its end")


@pytest_twisted.ensureDeferred
async def test_no_claim_makes_a_client_local(open_to_all: Served):
    """Neither an address of this machine nor none at all: programs without a token and local pages are not let in."""
    for header in (v1("127.0.0.1"), b"PROXY TCP6 ::1 ::1 1 2\r\n", b"PROXY UNKNOWN\r\n", v2(0x00, b"", 0x20)):
        for origin in (None, "http://localhost:5173"):
            client = await open_to_all.connect(header + handshake("127.0.0.1", origin=origin))
            await client.next()
            assert await refusal(client) == (1008, "Invalid origin"), (header, origin)


def test_contact_a_header_within_tls_is_refused_by_name():
    """A proxy writes it before TLS begins: each of its connections would be hung up on, and a client could write it."""
    for description in ("haproxy:ssl:0:privateKey=x.pem", "haproxy:haproxy:ssl:0"):
        with pytest.raises(ConfigError, match=r"--listen.*comes before TLS.*haproxy:tcp:"):
            server_endpoints(WebSocketConfig(listen=(description,), require_auth=True), None)
