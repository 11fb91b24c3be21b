"""Opening handshakes as values; the table of bad ones is in tests/wire/test_handshake.py."""

from __future__ import annotations

import pytest
from support.rawclient import KEY, accept_key, handshake

from zcomm.bifrost.handshake import (
    Head,
    HttpRefusal,
    accept_response,
    bearer_tokens,
    http_response,
    parse_head,
    parse_upgrade,
    plausible_start,
)


def head(**options) -> Head:
    return parse_head(handshake("127.0.0.1:1", **options)[:-4])


def test_a_whole_handshake():
    """Every part of it, as it was sent."""
    upgrade = parse_upgrade(
        head(
            path="/chat?x=1&token=a%2Bb",
            origin="http://a.example",
            subprotocols=("zbifrost.v1", "bearer.a+b"),
            headers=[("Sec-WebSocket-Extensions", "x; y"), ("Sec-WebSocket-Extensions", "z")],
        )
    )
    assert upgrade.accept == accept_key(KEY)
    assert (upgrade.origin, upgrade.host) == ("http://a.example", "127.0.0.1:1")
    assert upgrade.protocols == ("zbifrost.v1", "bearer.a+b") and upgrade.extensions == "x; y,z"
    assert upgrade.tokens == ("a+b",)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, ()),
        ({"path": "/?token=a"}, ("a",)),
        ({"path": "/?api_key=a"}, ("a",)),
        ({"token": "a"}, ("a",)),
        ({"path": "/?token=a&api_key=b"}, ("a", "b")),
        ({"path": "/?token=a", "token": "a"}, ("a",)),
        ({"path": "/?token="}, ("",)),
        ({"path": "/?token=%ff"}, ("",)),
        ({"path": "/?token=%C3%A9"}, ("é",)),
        ({"path": "/?tokens=a"}, ()),
        ({"path": "/token=a"}, ()),
        ({"path": "/?TOKEN=a"}, ()),
        ({"headers": [("Authorization", "Basic a")]}, ()),
        ({"headers": [("Authorization", "BEARER a")]}, ("a",)),
        ({"headers": [("Authorization", "Bearer")]}, ("",)),
        ({"path": "/?token=%C3%A9", "headers": [("Authorization", "Bearer é".encode().decode("latin-1"))]}, ("é",)),
        ({"headers": [("Authorization", "Bearer é")]}, ("",)),
        ({"path": "/?x=" + "y&" * 200 + "token=a"}, ("",)),
    ],
)
def test_tokens(options: dict, tokens: tuple[str, ...]):
    """From all three places, each once; one that is there and unreadable is not none."""
    found = head(**options)
    assert bearer_tokens(found) == tokens


def test_only_our_subprotocol_is_selected():
    """A bearer token never comes back."""
    for offered, selected in (
        (("x", "zbifrost.v1", "bearer.t"), True),
        (("x", "bearer.t"), False),
        ((), False),
    ):
        response = accept_response(parse_upgrade(head(subprotocols=offered)))
        assert (b"Sec-WebSocket-Protocol: zbifrost.v1\r\n" in response) is selected and b"bearer" not in response
    assert b"Sec-WebSocket-Extensions: e\r\n\r\n" in accept_response(parse_upgrade(head()), "e")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"G", True),
        (b"PRI", True),
        (b"\x16\x03", False),
        (b"get", False),
        (b" GET", False),
        (b"\0", False),
        (b"[", False),
    ],
)
def test_what_may_become_http(data: bytes, expected: bool):
    """Told by the first byte."""
    assert plausible_start(data) is expected


def test_responses():
    """The standard's phrase, the length, the end of the connection."""
    assert (
        http_response(404, b"no", (("X", "1"),))
        == b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 2\r\nX: 1\r\n\r\nno"
    )
    assert HttpRefusal(405, (("Allow", "GET"),)).response().startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a?b=c?d", "/a", "b=c?d"),
        ("//evil/", "//evil/", ""),
        ("http://127.0.0.1:1/x?y", "/x", "y"),
        ("ws://127.0.0.1:1", "/", ""),
    ],
)
def test_targets(target: str, path: str, query: str):
    """A path and a query, whatever form they came in."""
    found = head(path=target)
    assert (found.path, found.query) == (path, query)
