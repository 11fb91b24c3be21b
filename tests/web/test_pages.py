"""The demo page and its like, asked for over the socket of a running server."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.rawclient import connect
from support.served import Served, statuses
from twisted.internet.defer import CancelledError, fail

from zcomm import WebSocketConfig, zBifrost

pytestmark = pytest.mark.wire

HOST = "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/?redirect=https://evil.example", id="H13-redirect"),
        pytest.param("/?redirect=javascript:alert(1)&after=0", id="H13-javascript"),
        pytest.param("/?after=zz", id="H13-after"),
        pytest.param("/", id="H12-plain-get"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_plain_get_is_never_a_redirect(served: Served, path: str):
    """The demo page whatever the query says; no product, no version, nothing reflected."""
    client = await served.connect(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert await statuses(client) == [200]
    answer = client.reader.response
    assert answer.header("Server") is None and answer.header("Location") is None
    assert b"evil.example" not in client.reader.rest and b"alert(1)" not in client.reader.rest
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_h12_without_pages_a_plain_get_gets_426():
    """A server without a page has nothing to say to HTTP."""
    bifrost = zBifrost(WebSocketConfig(port=0))
    port = await bifrost.listen()
    try:
        client = await connect(port.getHost().port, f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert await statuses(client) == [426]
        assert client.reader.response.header("Upgrade") == "websocket" and client.reader.rest == b""
        client.abort()
    finally:
        await bifrost.stopService()


@pytest_twisted.ensureDeferred
async def test_contact_b4_whoever_asks_for_health_may_hang_up(served: Served):
    """At once or later, and as often as they like: no line of the log is theirs, and the next one is answered."""
    asked = f"GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    clients = [await served.connect(asked) for _ in range(30)]
    for client in clients:
        client.transport.abortConnection()
    client = await served.connect(asked)
    assert await statuses(client) == [200]
    assert "Traceback" not in served.log_text
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_health_checks_speak_http_1_0(served: Served):
    """HAProxy's and nginx's own, with a host or without; one that is not ours is none here either, and no WebSocket."""
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for method, more, status in (
        ("OPTIONS", "", 405),
        ("GET", "", 200),
        ("HEAD", "", 200),
        ("GET", f"Host: {HOST}\r\n", 200),
        ("GET", "Host: \r\n", 400),
        ("GET", "Host: elsewhere.example\r\n", 421),
        ("GET", f"{upgrade}Sec-WebSocket-Version: 13\r\n", 505),
    ):
        client = await served.connect(f"{method} /health HTTP/1.0\r\n{more}\r\n".encode())
        assert await statuses(client) == [status], (method, more)
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_f40_health_that_is_given_up_is_no_failure(served: Served, monkeypatch: pytest.MonkeyPatch):
    """Asked while a start fails, what it waits for is cancelled: 503, and nothing in the log. One that fails is said
    once a second."""
    pages, asked = served.bifrost.factory.pages.func, f"GET /health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    monkeypatch.setattr(pages, "_health", lambda bifrost: fail(CancelledError()))
    client = await served.connect(asked)
    assert await statuses(client) == [503] and b'{"status":"unavailable"}' in client.reader.rest
    assert "Traceback" not in served.log_text
    monkeypatch.setattr(pages, "_health", lambda bifrost: fail(ValueError("no")))
    for _ in range(5):
        client = await served.connect(asked)
        assert await statuses(client) == [503] and b'{"status":"error"}' in client.reader.rest
    assert served.log_text.count("the health report failed") in (1, 2)
    served.log.clear()
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_r31_every_page_may_import_the_client(served: Served):
    """The client and its types, from any origin, and nothing else; no answer depends on who asks."""
    for path, shared in (
        ("/zBifrost.js", True),
        ("/zBifrost.d.ts", True),
        ("/", False),
        ("/demo/main.js", False),
        ("/health", False),
    ):
        for origin in ("http://localhost:5173", "https://evil.example", "null", None):
            said = "" if origin is None else f"Origin: {origin}\r\n"
            client = await served.connect(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{said}\r\n".encode())
            assert await statuses(client) == [200]
            answer = client.reader.response
            assert answer.header("Access-Control-Allow-Origin") == ("*" if shared else None), (path, origin)
            policy = answer.header("Cross-Origin-Resource-Policy")
            assert policy == ("cross-origin" if shared else "same-origin"), (path, origin)
            assert answer.header("Access-Control-Allow-Credentials") is None
    await served.stands()
