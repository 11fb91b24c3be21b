"""Commands over HTTP, posted to the socket of a running server."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import RawClient, connect
from support.rows import rows_of_a_test
from support.served import Served, serving
from support.waiting import DEADLINE, wait_until
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue
from zope.interface import implementer

from zcomm import WebSocketConfig, zBifrost
from zcomm.auth.credentials import IBearerToken
from zcomm.errors import CommandError
from zcomm.interfaces import Identity, Outcome

pytestmark = pytest.mark.wire

HOST = "127.0.0.1"

policed = serving("policed", policy=True)
open_to_all = serving("open_to_all", require_auth=False)
listed = serving("listed", require_auth=False, allowed_origins=("https://app.example.com",))
guarded = serving("guarded", limits={"auth_failures": 4})
narrow = serving(
    "narrow",
    limits={
        "connections_per_user": 3,
        "results_size": 1024 * 1024,
        "command_timeout": 0.3,
        "handshake_timeout": 0.5,
        "stall_timeout": 0.2,
        "message_size": 300_000,
        "auth_failures": 100,
    },
)
proxied = serving("proxied", limits={"auth_failures": 2}, trusted_proxies=("127.0.0.1",))
behind = serving("behind", require_auth=False, insecure=True, trusted_proxies=("127.0.0.1",))
paced = serving("paced", limits={"frame_rate": 1.0, "frame_burst": 3.0})


class Odd(CommandError):
    """A code that only the program knows."""

    code = "out_of_stock"


def request(
    served: Served,
    body: Any,
    token: str | None = "",
    path: str = "/call",
    headers: str = "",
    host: str = HOST,
    content_type: str | None = "application/json",
    length: int | None = -1,
    version: str = "1.1",
) -> bytes:
    """A request as a program writes it: by the operator, unless ``token`` says who."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", f"Host: {host}"]
    if content_type is not None:
        lines.append(f"Content-Type: {content_type}")
    if length is not None:
        lines.append(f"Content-Length: {len(payload) if length < 0 else length}")
    if token is not None and served.config.websocket.require_auth:
        lines.append(f"Authorization: Bearer {token or served.admin}")
    return "\r\n".join(lines).encode() + b"\r\n" + headers.encode() + b"\r\n" + payload


async def answer(client: RawClient) -> tuple[int, Any]:
    """The status and the JSON of what a client gets, which is as long as was said."""
    await client.when_ended()
    response: Any = client.reader.response
    assert response is not None, "no response"
    assert int(response.header("Content-Length")) == len(client.reader.rest)
    if response.header("Content-Type") != "application/json":
        return response.status, client.reader.rest
    assert response.header("X-Content-Type-Options") == "nosniff" and response.header("Cache-Control") == "no-store"
    assert response.header("Access-Control-Allow-Origin") is None
    return response.status, json.loads(client.reader.rest)


async def posted(served: Served, body: Any, **options: Any) -> tuple[int, Any]:
    """The answer to one request."""
    return await answer(await served.connect(request(served, body, **options)))


def called(key: str, horizontal: Any = None) -> dict[str, Any]:
    return {"zKey": key} if horizontal is None else {"zKey": key, "zHorizontal": horizontal}


@pytest_twisted.ensureDeferred
async def test_the_answer_is_that_of_the_socket(served: Served):
    """The same text, but for the id: a result with 200, an error with the status of its code."""
    served.bifrost.dispatcher.commands.pop("odd", None)

    @served.bifrost.command("odd")
    def odd(horizontal: Any) -> Any:
        error = Odd("None left")
        error.retryable = horizontal is True
        raise error

    socket = await served.client()
    user = {"values": {"name": "Ann Doe", "email": "ann@example.com"}}
    with rows_of_a_test() as row:
        for message, status in (
            (called("ping", {"a": [1, 2.5, None, "ä"]}), 200),
            (called("ping"), 200),
            (called("zFunc(calculateTotal, {cart: 1})"), 200),
            (called("zFunc", {"name": "echo", "args": [1]}), 200),
            (called("zFunc", {"name": "echo", "args": ["x" * 900_000]}), 200),
            (called("zLink(/admin/users)"), 200),
            (called("zOpen(config.yaml)"), 200),
            (called("read_Users", {"where": {"name": "nobody"}}), 200),
            (called("zDescribe"), 200),
            ({"cmd": "ping"}, 200),
            ([1], 400),
            ({}, 400),
            (called("create_Users", {"values": {"name": "A", "email": "b", "age": "c"}}), 400),
            (called("read_Users", {"where": {"nme": 1}}), 400),
            (called("zFunc(wrong)"), 400),
            (called("nothing"), 404),
            (called("read_Nothing"), 404),
            (called("zOpen(missing.yaml)"), 404),
            (called("odd", False), 400),
            (called("odd", True), 503),
        ):
            with row(str(message)[:80]):
                socket.send_json({**message, "_requestId": 7} if isinstance(message, dict) else message)
                expected = await socket.next_json()
                expected.pop("_requestId", None)
                got = await posted(served, message)
                assert got == (status, expected)
    assert (await posted(served, called("create_Users", user)))[0] == 200
    status, told = await posted(served, called("create_Users", user))
    assert (status, told["code"]) == (409, "conflict")
    assert (await posted(served, {**called("ping", 1), "_requestId": 9})) == (200, {"result": 1, "_requestId": 9})
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_rights_are_those_of_the_token(policed: Served):
    """Whose it is says what it may: 403 for what it may not, and the log names who tried."""
    for role, status in (("admin", 200), ("guest", 200), ("blind", 403)):
        got = await posted(policed, called("read_Users", {}), token=policed.tokens[role])
        assert got[0] == status, role
    assert "'blind-user' (blind) at 127.0.0.1 may not 'read_Users'" in policed.log_text
    await policed.stands()


@pytest_twisted.ensureDeferred
async def test_what_is_no_such_request(served: Served):
    """Each is answered with what to do about it, and no command of it ever runs."""
    ran = []
    served.bifrost.dispatcher.commands.pop("ran", None)
    served.bifrost.command("ran")(lambda: ran.append(1))
    body = called("ran")
    with rows_of_a_test() as row:
        for name, options, status in (
            ("no token", {"token": None}, 401),
            ("a wrong token", {"token": "wrong"}, 401),
            ("another scheme", {"token": None, "headers": f"Authorization: Basic {served.admin}\r\n"}, 401),
            ("an empty token", {"token": None, "headers": "Authorization: Bearer \r\n"}, 401),
            ("a token in the query", {"token": None, "path": f"/call?token={served.admin}"}, 401),
            ("a key in the query", {"token": None, "path": f"/call?api_key={served.admin}"}, 401),
            ("a cookie", {"token": None, "headers": f"Cookie: token={served.admin}; Bearer={served.admin}\r\n"}, 401),
            ("a subprotocol", {"token": None, "headers": f"Sec-WebSocket-Protocol: bearer.{served.admin}\r\n"}, 401),
            ("two tokens", {"headers": "Authorization: Bearer other\r\n"}, 400),
            ("text", {"content_type": "text/plain"}, 415),
            ("a form", {"content_type": "application/x-www-form-urlencoded"}, 415),
            ("parts", {"content_type": "multipart/form-data; boundary=x"}, 415),
            ("no type", {"content_type": None}, 415),
            ("json and more", {"content_type": "application/json; x=text/plain"}, 415),
            ("text and json", {"content_type": "text/plain; application/json"}, 415),
            ("two types", {"headers": "Content-Type: text/plain\r\n"}, 415),
            ("latin-1", {"content_type": "application/json; charset=latin-1"}, 415),
            ("packed", {"headers": "Content-Encoding: gzip\r\n"}, 415),
            ("no length", {"length": None}, 411),
            ("chunks", {"length": None, "headers": "Transfer-Encoding: chunked\r\n"}, 411),
            ("chunks and a length", {"headers": "Transfer-Encoding: chunked\r\n"}, 400),
            ("two lengths", {"headers": "Content-Length: 5\r\n"}, 400),
            ("a negative length", {"length": None, "headers": "Content-Length: -1\r\n"}, 400),
            ("a signed length", {"length": None, "headers": "Content-Length: +14\r\n"}, 400),
            ("no number", {"length": None, "headers": "Content-Length: 0x10\r\n"}, 400),
            ("a number of Arabia", {"length": None, "headers": "Content-Length: \u00b2\r\n"}, 400),
            ("a list of lengths", {"length": None, "headers": "Content-Length: 14, 14\r\n"}, 400),
            ("an endless number", {"length": None, "headers": f"Content-Length: {'9' * 19}\r\n"}, 400),
            ("too long", {"length": 1024 * 1024 + 1}, 413),
            ("far too long", {"length": 10**17}, 413),
            ("another hope", {"headers": "Expect: 200-maybe\r\n"}, 417),
            ("a foreign page", {"headers": "Origin: https://evil.example\r\n"}, 403),
            ("no page", {"headers": "Origin: null\r\n"}, 403),
            ("an empty page", {"headers": "Origin: \r\n"}, 403),
            ("a page of that name", {"headers": "Origin: http://localhost.evil.example\r\n"}, 403),
            ("a rebound name", {"host": "evil.example", "headers": "Origin: http://evil.example\r\n"}, 421),
            ("another name", {"host": "evil.example"}, 421),
            ("a page", {"path": "/"}, 405),
            ("the health", {"path": "/health"}, 405),
            ("another path", {"path": "/call/"}, 405),
            ("an escaped path", {"path": "/%63all"}, 405),
            ("HTTP of old", {"version": "1.0", "length": None}, 411),
        ):
            with row(name):
                got = await posted(served, body, **options)
                assert got[0] == status, got
                if isinstance(got[1], dict):
                    assert set(got[1]) == {"error", "code", "retryable"}
                    assert got[1]["error"] == "Invalid token" or status != 401 or "Bearer" in got[1]["error"]
    for method, path, allowed in (
        ("GET", "/call", "POST"),
        ("HEAD", "/publish", "POST"),
        ("OPTIONS", "/call", "POST"),
        ("OPTIONS", "/publish?x", "POST"),
        ("PUT", "/call", "POST"),
        ("OPTIONS", "/", "GET, HEAD"),
    ):
        asked = (
            f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nOrigin: http://localhost:1\r\n"
            "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
        client = await served.connect(asked.encode())
        await client.when_ended()
        response: Any = client.reader.response
        assert (response.status, response.header("Allow")) == (405, allowed), (method, path)
        assert not any(name.lower().startswith("access-control") for name, _ in response.headers)
    assert ran == []
    # Who is at home may: a program, and the pages that the server lets in.
    for options in (
        {},
        {"version": "1.0"},
        {"headers": "Origin: http://localhost:5173\r\n"},
        {"headers": f"Origin: http://127.0.0.1:{served.port}\r\n", "host": f"127.0.0.1:{served.port}"},
        {"content_type": 'application/json; charset="UTF-8"'},
        {"content_type": "Application/JSON ;charset=utf-8"},
        {"path": "/call?x=1"},
    ):
        assert (await posted(served, body, **options))[0] == 200, options
    assert len(ran) == 7
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_bodies_that_are_no_commands(served: Served):
    """They are read as messages of the socket are: bad_message, 400, and nothing else happens."""
    with rows_of_a_test() as row:
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"ping",
            b'"ping"',
            b"zKey=ping",
            b'{"zKey": "ping"}{"zKey": "ping"}',
            b'{"zKey": "ping"},',
            b'{"zKey": NaN}',
            b'{"zKey": "ping", "zHorizontal": "\xff"}',
            b'{"zKey": "ping", "zHorizontal": "\\ud800"}',
            b'{"zKey": ""}',
            b'{"zKey": 1}',
            b'{"zHorizontal": 1}',
            b'{"zKey": "' + b"x" * 5000 + b'"}',
            b'{"zKey": "ping", "zHorizontal": ' + b"[" * 100 + b"]" * 100 + b"}",
            b'{"zKey": "ping", "zHorizontal": [' + b"{}," * 300_000 + b"{}]}",
            b"\xef\xbb\xbf{}",
            b"\x00",
            b"\xff\xfe",
        ):
            with row(repr(body[:40])):
                status, told = await posted(served, body)
                assert (status, told["code"]) == (400, "bad_message")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_is_published_is_a_command_of_that_key(served: Served):
    """Its body is the zHorizontal, whatever it says of keys; a body that is no JSON is none."""
    heard: list[Any] = []
    own = served.bifrost.dispatcher.commands.get("zPublish")
    served.bifrost.dispatcher.reserve("zPublish", lambda request, client: heard.append(request.horizontal) or "done")
    try:
        for body in ({"topic": "room:1", "data": {"text": "hi"}}, {"zKey": "ping"}, [1], "text", None, 5):
            assert await posted(served, body, path="/publish") == (200, {"result": "done"})
            assert heard.pop() == body
        for body in (b'{},"zKey":"ping","a":{}', b"{}}", b"", b"{", b'1,"zKey":"ping"', b'{"a":1} {"b":2}', b"[" * 70):
            status, told = await posted(served, body, path="/publish")
            assert (status, told["code"]) == (400, "bad_message"), body
        # Deeper than Python's stack, which no reader of JSON goes down.
        for body in (b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"data":' * 50_000):
            status, told = await posted(served, body, path="/publish")
            assert (status, told["error"]) == (400, "Too deep: at most 64 levels of nesting")
        assert heard == []
        for refused in ({"token": None}, {"content_type": "text/plain"}, {"headers": "Origin: null\r\n"}):
            assert (await posted(served, {"topic": "x"}, path="/publish", **refused))[0] in (401, 403, 415)
        assert heard == []
    finally:
        del served.bifrost.dispatcher.commands["zPublish"]
        if own is not None:
            served.bifrost.dispatcher.commands["zPublish"] = own
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_subscribers_hear_what_is_posted(served: Served):
    """In order, with its author and its key, once for each key; what takes a connection says so."""
    rooms = served.comm.topic("hall:{name}", history=10, publish="anybody")
    served.comm.topic("closed:{name}", history=10)

    @rooms.incoming
    def clean(identity: Any, data: Any, name: str) -> Any:
        return {**data, "room": name}

    socket = await served.client()
    subscribed = (await socket.call("zSubscribe", {"topic": "hall:1"}))["result"]
    for number, key in ((1, "k1"), (2, "k2"), (1, "k1")):
        message = {"topic": "hall:1", "data": {"n": number}, "_idempotencyKey": key}
        told = {"topic": "hall:1", "epoch": subscribed["epoch"], "offset": number}
        assert await posted(served, message, path="/publish", token=served.tokens["guest"]) == (200, {"result": told})
    heard = [await socket.next_json() for _ in range(2)]
    assert [(one["offset"], one["data"], one["from"], one["key"]) for one in heard] == [
        (1, {"n": 1, "room": "1"}, "guest-user", "k1"),
        (2, {"n": 2, "room": "1"}, "guest-user", "k2"),
    ]
    status, told = await posted(served, called("zHistory", {"topic": "hall:1"}))
    assert status == 200 and [one["offset"] for one in told["result"]["messages"]] == [1, 2]
    for body, path, status, code, word in (
        (called("zSubscribe", {"topic": "hall:1"}), "/call", 400, "invalid", "WebSocket"),
        (called("zUnsubscribe", {"topic": "hall:1"}), "/call", 400, "invalid", "WebSocket"),
        (called("zPresence", {"topic": "hall:1", "state": {}}), "/call", 400, "invalid", ""),
        ({"topic": "closed:1", "data": 1}, "/publish", 403, "permission_denied", "publish: anybody"),
        ({"topic": "hall:1"}, "/publish", 400, "invalid", "data"),
        ({"topic": "hall:1", "data": 1, "date": 2}, "/publish", 400, "invalid", "date"),
        ({"topic": "hall:1", "data": 1, "key": "k9"}, "/publish", 400, "invalid", "_idempotencyKey"),
        ({"topic": "no topic", "data": 1}, "/publish", 400, "invalid", "topic"),
        ({"topic": "hall:1", "data": "x" * 70_000}, "/publish", 400, "invalid", ""),
        ({"topic": "hall:1", "data": {"n": 3}, "_idempotencyKey": "k1"}, "/publish", 409, "conflict", ""),
    ):
        got, told = await posted(served, body, path=path, token=served.tokens["guest"])
        assert (got, told["code"]) == (status, code) and word in told["error"], (body, told)
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_body_comes_as_it_comes(served: Served):
    """In one piece with the head, byte by byte, long, and after the server has said to go on; more than was said of it
    is nobody's request."""
    text = "x" * 900_000
    for message in (called("ping", 1), called("ping", text)):
        whole = request(served, message)
        client = await served.connect(whole[:30])
        step = 1 if len(whole) < 1000 else 70_000
        for start in range(30, len(whole), step):
            client.send(whole[start : start + step])
            await wait_until(lambda: True, "a turn")
        assert await answer(client) == (200, {"result": message["zHorizontal"]})
    for message in (called("ping", 1), called("ping", text)):
        whole = request(served, message, headers="Expect: 100-continue\r\n")
        head, _, body = whole.partition(b"\r\n\r\n")
        client = await served.connect(head + b"\r\n\r\n")
        assert (await client.next()).status == 100
        client.reader.response = None
        client.send(body)
        assert await answer(client) == (200, {"result": message["zHorizontal"]})
    # Who is refused is not told to go on.
    client = await served.connect(
        request(served, b"", length=500_000, token="wrong", headers="Expect: 100-continue\r\n")
    )
    assert (await client.next()).status == 401
    # A second request behind the first is not looked at.
    twice = request(served, called("ping", 1)) + request(served, called("ping", 2))
    assert await answer(await served.connect(twice)) == (200, {"result": 1})
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_is_refused_reads_the_answer(served: Served):
    """Though it sends its whole body first: that is let pass, not cut off; and nothing is kept of it."""

    def send_all_first(whole: bytes) -> bytes:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            client.settimeout(DEADLINE)
            client.connect(("127.0.0.1", served.port))
            client.sendall(whole)
            got = b""
            while not got.endswith(b"}") and (data := client.recv(65536)):
                got += data
            return got

    body = called("ping", "x" * 1_000_000)
    chunks = {"length": None, "headers": "Transfer-Encoding: chunked\r\n"}
    for options, status in (
        ({"token": "wrong"}, 401),
        ({"content_type": "text/plain"}, 415),
        ({"host": "evil"}, 421),
        (chunks, 411),
    ):
        got = await deferToThread(send_all_first, request(served, body, **options))
        assert got.startswith(b"HTTP/1.1 %d " % status) and got.endswith(b"}"), got[:100]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_wrong_tokens_are_counted_with_those_of_handshakes(guarded: Served):
    """After as many of one address a wrong one is 429, on the socket as well; a right one is let in."""
    for _ in range(4):
        assert (await posted(guarded, called("ping"), token="wrong"))[0] == 401
    client = await guarded.connect(request(guarded, called("ping"), token="wrong"))
    assert (await answer(client))[0] == 429 and client.reader.response.header("Retry-After") == "60"
    socket = await guarded.connect(path="/?token=wrong")
    assert (await socket.next_close()).close_code == 1013
    assert (await posted(guarded, called("ping", 1))) == (200, {"result": 1})
    assert guarded.bifrost.factory.drops["refused: Invalid token"] == 4
    await guarded.stands()


@pytest_twisted.ensureDeferred
async def test_without_authentication_only_this_machine_calls(open_to_all: Served, listed: Served):
    """A program without a page from here, where no list is set; a page of an allowed origin; nobody else's."""
    own = f"127.0.0.1:{open_to_all.port}"
    with rows_of_a_test() as row:
        for served, headers, host, status in (
            (open_to_all, "", HOST, 200),
            (open_to_all, "Origin: http://localhost:5173\r\n", HOST, 200),
            (open_to_all, f"Origin: http://{own}\r\n", own, 200),
            (open_to_all, "Origin: https://evil.example\r\n", HOST, 403),
            (open_to_all, "Origin: null\r\n", HOST, 403),
            (open_to_all, "Origin: http://evil.example\r\n", "evil.example", 421),
            (open_to_all, "", "evil.example", 421),
            (listed, "", HOST, 403),
            (listed, "Origin: http://localhost:5173\r\n", HOST, 403),
            (listed, "Origin: https://app.example.com\r\n", HOST, 200),
            (listed, "Origin: https://evil.example\r\n", HOST, 403),
        ):
            with row(f"{served.port} {headers!r} {host}"):
                assert (await posted(served, called("ping"), headers=headers, host=host))[0] == status
        for content_type in ("text/plain", "application/x-www-form-urlencoded", None):
            with row(str(content_type)):
                assert (await posted(open_to_all, called("ping"), content_type=content_type))[0] == 415
    # All of one address that call are one user.
    accounts = [account for account in open_to_all.bifrost.factory.state.budgets if account.owner[0] == 0]
    assert len(accounts) == 1
    await open_to_all.stands()


@pytest_twisted.ensureDeferred
async def test_calls_behind_a_proxy(proxied: Served, behind: Served):
    """Failures are of the address that a trusted one tells; and nobody behind it is on this machine."""
    body = called("ping", "x" * 200_000)
    told = "X-Forwarded-For: 203.0.113.{}\r\n"
    for number, status in ((1, 401), (1, 401), (1, 429), (2, 401)):
        got = await posted(proxied, body, token="wrong", headers=told.format(number))
        assert got[0] == status
    assert await posted(proxied, body, headers=told.format(1)) == (200, {"result": "x" * 200_000})
    assert (await posted(proxied, body))[0] == 200
    for headers in ("", told.format(1), told.format(1) + "Origin: http://localhost:5173\r\n"):
        assert (await posted(behind, called("ping"), headers=headers))[0] == 403
    origin = f"127.0.0.1:{behind.port}"
    got = await posted(behind, called("ping", 1), host=origin, headers=f"{told.format(1)}Origin: http://{origin}\r\n")
    assert got == (200, {"result": 1})
    await proxied.stands()


@implementer(ICredentialsChecker)
class Slow:
    """Says whose a token is when a test lets it."""

    credentialInterfaces = (IBearerToken,)

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        self.asked.append(Deferred())
        return self.asked[-1]


@pytest_twisted.ensureDeferred
async def test_a_body_waits_for_its_token(served: Served, monkeypatch: pytest.MonkeyPatch):
    """Unread, in no place for handshakes, and whole when the token is found right; who leaves is forgotten."""
    slow = Slow()
    admission = served.bifrost.factory.admission
    monkeypatch.setattr(admission, "checker", slow)
    monkeypatch.setattr(admission, "_is_beyond_guessing", lambda token: False)
    whole = request(served, called("ping", "x" * 900_000))
    client = await served.connect(whole[:1000])
    await wait_until(lambda: slow.asked, "the question")
    client.send(whole[1000:])
    gone = await served.connect(whole)
    await wait_until(lambda: len(slow.asked) == 2, "another")
    assert served.bifrost.factory.pending.count == 0 and not served.bifrost.factory.callers
    gone.transport.abortConnection()
    slow.asked[0].callback(Identity("ann", "admin", "one"))
    assert await answer(client) == (200, {"result": "x" * 900_000})
    slow.asked[1].callback(Identity("ann", "admin", "two"))
    await wait_until(lambda: not served.bifrost.factory._alive, "nobody")
    assert not served.bifrost.factory.callers
    monkeypatch.undo()
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_others_hear_of_a_change(served: Served):
    """Every client that may, be there one or several; the caller's other connections too, and it hears of nothing."""
    for clients in (1, 2):
        sockets = [await served.client() for _ in range(clients)]
        row = {"values": {"name": "Told User", "email": f"told{clients}@example.com"}}
        status, told = await posted(served, called("create_Users", row))
        assert status == 200
        for each in sockets:
            heard = await each.next_json()
            assert (heard["zKey"], heard["result"]) == ("create_Users", told["result"])
        assert len(served.bifrost.clients) == clients
        for each in sockets:
            each.transport.abortConnection()
        await wait_until(lambda: not served.count, "an empty registry")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_repeated_key_changes_nothing_twice(served: Served):
    """A job that is run again with the same _idempotencyKey gets the first answer."""
    create = called(
        "create_Users", {"values": {"name": "Once Only", "email": "once@example.com"}, "_idempotencyKey": "k1"}
    )
    first = await posted(served, create)
    assert first[0] == 200 and await posted(served, create) == first
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_hangs_up_cancels_its_command(served: Served):
    """As a lost connection does; a change that is made all the same is told to the others."""
    waiting: list[Deferred[Any]] = []
    cancelled: list[bool] = []
    for key in ("wait", "stubborn"):
        served.bifrost.dispatcher.commands.pop(key, None)

    @served.bifrost.command("wait")
    def wait() -> Deferred[Any]:
        waiting.append(Deferred(lambda _: cancelled.append(True)))
        return waiting[-1]

    @served.bifrost.command("stubborn", broadcast=True)
    def stubborn() -> Deferred[Any]:
        # It cannot be taken back any more.
        waiting.append(Deferred(lambda each: each.callback(Outcome("made", changed=True))))
        return waiting[-1]

    client = await served.connect(request(served, called("wait")))
    await wait_until(lambda: waiting, "the command")
    assert len(served.bifrost.factory.callers) == 1 and served.count == 0
    assert served.bifrost.factory.pending.count == 0
    client.transport.abortConnection()
    await wait_until(lambda: cancelled, "the end of it")
    await wait_until(lambda: not served.bifrost.factory.callers, "no caller")
    socket = await served.client()
    client = await served.connect(request(served, called("stubborn")))
    await wait_until(lambda: len(waiting) == 2, "the command")
    client.transport.abortConnection()
    assert (await socket.next_json())["result"] == "made"
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_needs_a_connection_says_so_or_does_no_harm(served: Served):
    """Nobody can be asked; what is sent beside the answer goes nowhere."""
    for key in ("asks", "sends", "closes"):
        served.bifrost.dispatcher.commands.pop(key, None)

    @served.bifrost.command("asks")
    async def asks(horizontal: Any, client: Any, *, ask: Any) -> Any:
        return await ask("Really?")

    @served.bifrost.command("sends")
    def sends(horizontal: Any, client: Any, *, progress: Any) -> Any:
        client.send({"event": "hello"})
        progress(1, 2, "half")
        client.visited("/here")
        return [client.id, client.identity.name, client.peer, client.place]

    @served.bifrost.command("closes")
    def closes(horizontal: Any, client: Any) -> Deferred[Any]:
        client.close(*horizontal)
        return Deferred()

    status, told = await posted(served, called("asks", 1))
    assert (status, told["code"], told["retryable"]) == (400, "invalid", False) and "WebSocket" in told["error"]
    identity = served.comm.program._checker.operator.identity
    for extra in ({}, {"_requestId": "a"}):
        status, told = await posted(served, {**called("sends", 1), **extra})
        assert (status, told["result"]) == (200, [0, identity.name, "127.0.0.1", "/here"])
    assert (await posted(served, called("closes", [1000, "Enough"])))[0] == 503
    assert (await posted(served, called("closes", [1008, "Session expired"])))[0] == 401
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_command_has_its_time(narrow: Served):
    """504 when it is over, as the socket says it; a body that does not come is 408, and a head is cut off as ever."""
    narrow.bifrost.dispatcher.commands.pop("never", None)
    narrow.bifrost.command("never")(lambda: Deferred())
    status, told = await posted(narrow, called("never"))
    assert (status, told["code"], told["retryable"]) == (504, "timeout", True)
    status, told = await posted(narrow, b"{", length=2)
    assert (status, told["code"]) == (408, "timeout")
    client = await narrow.connect(request(narrow, called("ping"))[:20])
    await client.when_ended()
    assert client.reader.response is None
    assert not narrow.bifrost.factory.callers
    await narrow.stands()


@pytest_twisted.ensureDeferred
async def test_connections_of_a_user_are_counted_together(narrow: Served):
    """Sockets and calls: 429 for one more, and a socket too is one too many."""
    waiting: list[Deferred[Any]] = []
    narrow.bifrost.dispatcher.commands.pop("hold", None)
    narrow.bifrost.command("hold")(lambda: waiting.append(Deferred()) or waiting[-1])
    socket = await narrow.client()
    callers = [await narrow.connect(request(narrow, called("hold"))) for _ in range(2)]
    await wait_until(lambda: len(waiting) == 2, "two commands")
    status, told = await posted(narrow, called("ping"))
    assert (status, told["code"], told["error"]) == (429, "too_busy", "Too many connections")
    another = await narrow.connect(token=narrow.admin)
    assert (await another.next_close()).close_code == 1013
    assert (await posted(narrow, called("ping", 1), token=narrow.tokens["guest"]))[0] == 200
    for each in waiting:
        each.callback("done")
    for caller in callers:
        assert await answer(caller) == (200, {"result": "done"})
    assert (await posted(narrow, called("ping", 1)))[0] == 200
    assert (await socket.call("ping", 1))["result"] == 1
    await narrow.stands()


@pytest_twisted.ensureDeferred
async def test_requests_have_a_rate(paced: Served):
    """That of one connection for all calls of a user; others have theirs."""
    statuses = [(await posted(paced, called("ping")))[0] for _ in range(5)]
    assert statuses[:3] == [200] * 3 and statuses[-1] == 429
    assert (await posted(paced, called("ping"), token=paced.tokens["guest"]))[0] == 200
    await wait_until(lambda: paced.bifrost.factory.pages.func._calls._rates["guest-user"].wait(3) == 0, "a new burst")
    await paced.stands()


@pytest_twisted.ensureDeferred
async def test_half_sent_bodies_are_bounded(narrow: Served, monkeypatch: pytest.MonkeyPatch):
    """In all, and for each user at half of that; nobody else waits, and all is given back."""
    assert (await posted(narrow, called("ping", 1)))[0] == 200
    memory = narrow.bifrost.factory.pages.func._calls._bodies
    # What came with a head counts too, as long as there is no room for it.
    account = narrow.bifrost.factory.state.budgets.account("admin-user")
    monkeypatch.setattr(account, "may_arrive", 50_000)
    half = [
        await narrow.connect(request(narrow, b"{" + b"x" * 10, length=300_000, token=narrow.tokens[role]))
        for role in ("admin", "admin")
    ]
    await wait_until(lambda: memory.held == 300_000, "one that is read")
    await wait_until(lambda: account.arriving == 11, "one that waits")
    half.append(await narrow.connect(request(narrow, b"{" * 60_000, length=300_000, token=narrow.tokens["admin"])))
    status, told = await answer(half[-1])
    assert (status, told["error"]) == (429, "Too many bytes of yours are on their way; try again")
    assert await posted(narrow, called("ping", "x" * 200_000), token=narrow.tokens["guest"]) == (
        200,
        {"result": "x" * 200_000},
    )
    assert await posted(narrow, called("ping", 1), token=narrow.tokens["blind"]) == (200, {"result": 1})
    assert memory.held <= memory.total
    for client in half:
        client.transport.abortConnection()
    await wait_until(lambda: not memory.held and not memory._lines, "all of it given back")
    await wait_until(lambda: not account.arriving, "nothing arriving")
    assert (await posted(narrow, b"", length=300_001))[0] == 413
    await narrow.stands()


@pytest_twisted.ensureDeferred
async def test_many_large_calls_at_once_are_all_answered(served: Served):
    """What still comes takes nothing of the memory for answers."""
    message = called("ping", "x" * 900_000)
    callers = [await served.connect(request(served, message)) for _ in range(16)]
    assert [(await answer(caller))[0] for caller in callers] == [200] * 16
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_does_not_take_an_answer_is_cut_off(narrow: Served):
    """It takes of its user's memory as long as it waits, like that of a socket; other users are answered."""
    narrow.bifrost.dispatcher.commands.pop("much", None)
    narrow.bifrost.command("much")(lambda: "x" * 450_000)
    memory = narrow.bifrost.factory.state.budgets.memory
    slow = await narrow.connect(request(narrow, called("much")))
    slow.transport.pauseProducing()
    # What the system does not take waits.
    await wait_until(lambda: memory.held or narrow.bifrost.factory.drops["stalled"], "an answer that waits")
    assert (await posted(narrow, called("ping", 1), token=narrow.tokens["guest"]))[0] == 200
    await wait_until(lambda: narrow.bifrost.factory.drops["stalled"] == 1, "the end of it")
    await wait_until(lambda: not memory.held, "its memory")
    slow.transport.resumeProducing()
    got = await posted(narrow, called("much"))
    assert got == (200, {"result": "x" * 450_000})
    await narrow.stands()


@pytest_twisted.ensureDeferred
async def test_a_token_that_ends_takes_its_calls_along(served: Served):
    """401 within a second or so, while the command still runs."""
    served.bifrost.dispatcher.commands.pop("endless", None)
    waiting: list[Deferred[Any]] = []
    served.bifrost.command("endless")(lambda: waiting.append(Deferred()) or waiting[-1])
    token = served.store.add("leaver", "admin").token
    client = await served.connect(request(served, called("endless"), token=token))
    await wait_until(lambda: waiting, "the command")
    served.store.revoke("leaver")
    status, told = await answer(client)
    assert (status, told["error"]) == (401, "Session expired")
    await served.stands()


@pytest_twisted.async_yield_fixture
async def leaving(tmp_path: Path) -> AsyncIterator[Served]:
    """A server that a test may stop."""
    server = await Served(tmp_path).start()
    yield server
    if server.bifrost.is_listening:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_server_that_stops_says_so(leaving: Served):
    """503 to calls that run, in time; none is cut off without a word."""
    waiting: list[Deferred[Any]] = []
    leaving.bifrost.command("endless")(lambda: waiting.append(Deferred()) or waiting[-1])
    client = await leaving.connect(request(leaving, called("endless")))
    await wait_until(lambda: waiting, "the command")
    stopped = ensureDeferred(leaving.stop())
    status, told = await answer(client)
    assert (status, told["code"], told["retryable"]) == (503, "unavailable", True)
    assert "shutting down" in told["error"] and "may have been carried out" in told["error"]
    await stopped


@pytest_twisted.ensureDeferred
async def test_without_pages_nothing_is_posted():
    """With ``--no-web`` there is no such path."""
    bifrost = zBifrost(WebSocketConfig(port=0))
    port = await bifrost.listen()
    try:
        for path in ("/call", "/publish"):
            posting = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\n{{}}"
            client = await connect(port.getHost().port, posting.encode())
            await client.when_ended()
            assert client.reader.response.status == 405
    finally:
        await bifrost.stopService()


@pytest_twisted.ensureDeferred
async def test_curl_calls(served: Served, tmp_path: Path):
    """With a small body and a large one, for which it waits to be told to go on."""
    config = tmp_path / "curl"
    for size in (1, 900_000):
        body = tmp_path / "body.json"
        body.write_text(json.dumps(called("ping", "x" * size)))
        config.write_text(
            f'url = "http://127.0.0.1:{served.port}/call"\nheader = "Authorization: Bearer {served.admin}"\n'
            f'header = "Content-Type: application/json"\nheader = "Expect: 100-continue"\n'
            f'data-binary = "@{body}"\nsilent\nfail\n'
        )
        output, error, status = await getProcessOutputAndValue("curl", ["-K", str(config)], os.environ)
        assert status == 0, error
        assert json.loads(output) == {"result": "x" * size}
    await served.stands()
