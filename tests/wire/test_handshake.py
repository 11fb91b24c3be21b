"""Catalogue group H: opening handshakes that are none, and what each gets."""

from __future__ import annotations

import base64
import os
from random import Random

import pytest
import pytest_twisted
from support.rawclient import KEY, ConnectionEnded, RawClient, Response, build_frame, handshake
from support.served import Served, statuses

HOST = "127.0.0.1"


def variant(*, without: tuple[str, ...] = (), headers: tuple[tuple[str, str], ...] = (), **options: str) -> bytes:
    """A handshake that is right but for what is said."""
    return handshake(HOST, headers=headers, without=without, **options)


def replaced(name: str, *values: str) -> bytes:
    """A handshake whose header ``name`` has these values, each in a header of its own; none leaves it out."""
    return variant(without=(name,), headers=tuple((name, value) for value in values))


def head_of(size: int) -> bytes:
    """A handshake of exactly ``size`` bytes, its closing empty line not counted."""
    bare = variant(headers=(("X-Filler", ""),))
    return variant(headers=(("X-Filler", "x" * (size - len(bare) + 4)),))


def with_headers(count: int) -> bytes:
    """A handshake of ``count`` headers."""
    return variant(headers=tuple((f"X-{number}", "1") for number in range(count - 5)))


#: What is sent, and the only status that comes back.
REFUSED: list[tuple[str, bytes, int]] = [
    ("H2-host-malformed", replaced("Host", "[::1"), 101),
    ("H2-host-empty", replaced("Host", ""), 400),
    ("H2-host-missing", replaced("Host"), 400),
    ("H2-host-twice", replaced("Host", HOST, HOST), 400),
    ("H3-version-8", replaced("Sec-WebSocket-Version", "8"), 426),
    ("H3-version-7", replaced("Sec-WebSocket-Version", "7"), 426),
    ("H3-version-0", replaced("Sec-WebSocket-Version", "0"), 426),
    ("H3-version-99", replaced("Sec-WebSocket-Version", "99"), 426),
    ("H3-version-x", replaced("Sec-WebSocket-Version", "x"), 400),
    ("H3-version-missing", replaced("Sec-WebSocket-Version"), 400),
    ("H3-version-twice", replaced("Sec-WebSocket-Version", "13", "13"), 400),
    ("H4-post", variant(method="POST"), 405),
    ("H4-put", variant(method="PUT"), 405),
    ("H4-head-upgrade", variant(method="HEAD"), 405),
    ("H4-http-1.0", variant(version="HTTP/1.0"), 505),
    ("H4-http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("H4-no-version", b"GET /\r\n\r\n", 400),
    ("H4-bad-version", variant(version="HTCPCP/1.0"), 400),
    ("H5-upgrade-absent", replaced("Upgrade"), 426),
    ("H5-upgrade-h2c", replaced("Upgrade", "h2c"), 426),
    ("H5-connection-close", replaced("Connection", "close"), 400),
    ("H5-connection-missing", replaced("Connection"), 400),
    ("H5-key-missing", replaced("Sec-WebSocket-Key"), 400),
    ("H5-key-short", replaced("Sec-WebSocket-Key", base64.b64encode(b"short").decode()), 400),
    ("H5-key-long", replaced("Sec-WebSocket-Key", base64.b64encode(b"x" * 17).decode()), 400),
    ("H5-key-not-base64", replaced("Sec-WebSocket-Key", "!" * 24), 400),
    ("H5-key-twice", replaced("Sec-WebSocket-Key", KEY, KEY), 400),
    ("H6-total-over", head_of(16 * 1024 + 1), 431),
    ("H6-line-over", variant(headers=(("X-Long", "x" * 16384),)), 431),
    ("H6-path-over", variant(path="/" + "x" * 16384), 431),
    ("H7-101-headers", with_headers(101), 431),
    ("H7-2000-headers", with_headers(2000), 431),
    ("H8-nul", variant(headers=(("X", "a\0b"),)), 400),
    ("H8-vertical-tab", variant(headers=(("X", "a\x0bOrigin: http://evil.example"),)), 400),
    ("H8-file-separator", variant(headers=(("X", "a\x1cOrigin: http://evil.example"),)), 400),
    ("H8-bare-cr", variant(headers=(("X", "a\rOrigin: http://evil.example"),)), 400),
    ("H8-bare-lf", variant(headers=(("X", "a\nOrigin: http://evil.example"),)), 400),
    ("H8-folded", variant(headers=(("X", "a\r\n b"),)), 400),
    ("H8-delete", variant(headers=(("X", "a\x7fb"),)), 400),
    ("H8-no-colon", variant(headers=(("X\r\nno colon at all", "1"),)), 400),
    ("H8-blank-before-colon", variant(headers=(("X ", "1"),)), 400),
    ("H8-name-empty", variant(headers=(("", "1"),)), 400),
    ("H11-fragment", variant(path="/#frag"), 400),
    ("H11-asterisk", variant(path="*"), 400),
    ("H11-foreign-absolute", variant(path="http://evil.example/"), 400),
    ("H11-blank-in-path", variant(path="/a b"), 400),
    ("H11-path-not-ascii", variant(path="/\u00e9"), 400),
    ("H16-protocol-not-ascii", replaced("Sec-WebSocket-Protocol", "\u00fc"), 400),
    ("H16-protocol-twice-the-same", replaced("Sec-WebSocket-Protocol", "a, a"), 400),
    ("H16-protocol-empty", replaced("Sec-WebSocket-Protocol", ""), 400),
    ("H16-protocol-blanks", replaced("Sec-WebSocket-Protocol", " " * 8000), 400),
    ("H20-content-length", variant(headers=(("Content-Length", "5"),)) + b"hello", 400),
    ("H20-transfer-encoding", variant(headers=(("Transfer-Encoding", "chunked"),)) + b"0\r\n\r\n", 400),
    ("H20-two-lengths", variant(headers=(("Content-Length", "0"), ("Content-Length", "0"))), 400),
]


@pytest.mark.parametrize(("opening", "status"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
@pytest_twisted.ensureDeferred
async def test_what_is_no_handshake_gets_a_status(served: Served, opening: bytes, status: int):
    """One response with the status of the table, no product name, no reflection, and the connection's end."""
    client = await served.connect(opening)
    if status == 101:
        # Well-formed, but no name of ours: told in a way that a browser can see.
        await client.next()
        assert (await client.next_close()).close_code == 1008
    else:
        assert await statuses(client) == [status]
        answer = client.reader.response
        assert answer.header("Server") is None and not client.reader.rest
        assert "evil" not in repr(answer)
        if opening == replaced("Sec-WebSocket-Version", "99"):
            assert answer.header("Sec-WebSocket-Version") == "13"
        if status == 405:
            assert answer.header("Allow") is not None
    await served.stands()


#: Odd, and still one unmistakable handshake.
ACCEPTED: list[tuple[str, bytes]] = [
    ("H6-total-exact", head_of(16 * 1024)),
    ("H7-100-headers", with_headers(100)),
    ("H8-latin-1-nel-is-no-line", variant(headers=(("X", "b\x85Sec-WebSocket-Version: 8"),))),
    ("H9-utf-8-in-cookie", variant(headers=(("Cookie", "a=\xc3\x85Host: zz"),))),
    ("H9-cookie-then-header", variant(headers=(("Cookie", "name=\xc3\x85"), ("X-After", "1")))),
    ("H11-double-slash", variant(path="//evil.example/")),
    ("H11-percent-nul", variant(path="/%00")),
    ("H11-own-absolute", variant(path=f"http://{HOST}/chat")),
    ("H11-long-path", variant(path="/" + "x" * 15_000)),
    ("H17-extension-constructor", replaced("Sec-WebSocket-Extensions", "constructor")),
    ("H17-extension-proto", replaced("Sec-WebSocket-Extensions", "__proto__")),
    ("H17-extension-semicolons", replaced("Sec-WebSocket-Extensions", "a" + ";" * 4000)),
    ("H17-extension-twice", replaced("Sec-WebSocket-Extensions", "a", "b")),
    (
        "H18-deflate-illegal",
        replaced("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=99"),
    ),
    (
        "H18-deflate-twice",
        replaced(
            "Sec-WebSocket-Extensions",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        ),
    ),
    ("H5-connection-list", replaced("Connection", "keep-alive, Upgrade")),
    ("H5-upgrade-case", replaced("Upgrade", "WebSocket")),
]


@pytest.mark.parametrize("opening", [pytest.param(row[1], id=row[0]) for row in ACCEPTED])
@pytest_twisted.ensureDeferred
async def test_odd_handshakes_that_are_right(served: Served, opening: bytes):
    """They are accepted with no extension and no subprotocol, and nothing in them became a header of its own."""
    opening = opening.replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {served.admin}\r\n\r\n".encode())
    if len(opening) > 16 * 1024 or opening.count(b"\r\n") > 101:
        # The exact limits leave no room for another header: the token goes where it takes none.
        filler = opening.find(b"\r\nX-0: 1") if b"\r\nX-0: 1" in opening else -1
        if filler >= 0:
            opening = opening.replace(b"\r\nX-0: 1", b"", 1)
        else:
            surplus = len(opening) - 16 * 1024 - 4
            opening = opening.replace(b"x" * surplus, b"", 1)
            assert len(opening) == 16 * 1024 + 4
    client = await served.connect(opening)
    answer = await client.next()
    assert answer.status == 101, answer
    assert answer.header("Sec-WebSocket-Extensions") is None and answer.header("Sec-WebSocket-Protocol") is None
    assert (await client.call("ping", 1))["result"] == 1
    await served.stands()


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="H21-tls-client-hello"),
        pytest.param(Random(21).randbytes(4096).replace(b"G", b"\0"), id="H21-random-4096"),
        pytest.param(b"\0", id="H21-nul"),
        pytest.param(b"\r\n\r\n", id="H21-empty-lines"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_http_is_dropped(served: Served, opening: bytes):
    """Not a byte is answered."""
    client = await served.connect(opening)
    await client.when_ended()
    assert client.received == [] and client.reader.rest == b""
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h19_a_frame_glued_to_the_handshake_is_answered_once(served: Served):
    """What came early is processed after admission, exactly once."""
    ping = build_frame(1, b'{"zKey":"ping","_requestId":7}')
    client = await served.connect(handshake(HOST, token=served.admin) + ping)
    await client.next()
    assert await client.next_json() == {"result": "ping", "_requestId": 7}
    await client.call("ping")
    assert len(client.received) == 3
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h19_a_frame_glued_to_a_refused_handshake_is_dropped(served: Served):
    """Of a client that is not let in no frame is looked at."""
    before = served.bifrost.factory.state.commands
    ping = build_frame(1, b'{"zKey":"ping","_requestId":7}')
    client = await served.connect(handshake(HOST) + ping * 10)
    await client.next()
    assert (await client.next_close()).close_code == 1008
    await client.when_ended()
    assert len(client.received) == 2 and served.bifrost.factory.state.commands == before
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h20_a_second_handshake_is_no_frame(served: Served):
    """One 101 only; the pipelined request is read as frames, which it is not: 1002."""
    opening = handshake(HOST, token=served.admin)
    client = await served.connect(opening + opening)
    assert (await client.next()).status == 101
    assert (await client.next_close()).close_code == 1002
    await client.when_ended()
    assert [type(item) for item in client.received].count(Response) == 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h14_nothing_of_the_request_is_in_a_response(served: Served):
    """Whatever a handshake carries, the statuses are the standard's and the texts are fixed."""
    client = await served.connect(variant(path="/pw=secret%0d%0aX-Injected:yes", headers=(("X", "a\0"),)))
    await client.when_ended()
    assert client.reader.response.headers == (("Connection", "close"), ("Content-Length", "0"))
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h2_bytes_one_at_a_time_make_a_handshake(served: Served):
    """However a handshake is cut, it is the same handshake; what follows counts too."""
    opening = handshake(HOST, token=served.admin, headers=[("X-Filler", os.urandom(20).hex())])
    client = await served.connect(None)
    for byte in opening:
        client.send(bytes((byte,)))
    client.reader.expect_response = True
    assert (await client.next()).status == 101
    assert (await client.call("ping", 2))["result"] == 2
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h22_only_the_named_interface_answers(served: Served):
    """Bound to 127.0.0.1, nobody is there on ::1."""
    from twisted.internet.endpoints import TCP6ClientEndpoint, connectProtocol

    with pytest.raises(Exception) as caught:
        await connectProtocol(TCP6ClientEndpoint(served.reactor, "::1", served.port), RawClient(None))
    assert not isinstance(caught.value, ConnectionEnded)
    await served.stands()
