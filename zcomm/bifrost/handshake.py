"""The opening handshake as values: bytes of a request head in, a request or a refusal out (RFC 6455 section 4.2).

Stricter than HTTP needs to be: one line ending, no obsolete folding, no control bytes, one value for
each header that decides something. What two parsers could read in two ways is refused (RFC 9112
section 11), so a proxy in front and this server can never disagree about who asks for what.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from hashlib import sha1
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

__all__ = [
    "SUBPROTOCOL",
    "Head",
    "HttpRefusal",
    "TAKES_POST",
    "Upgrade",
    "accept_response",
    "bearer_tokens",
    "http_head",
    "http_response",
    "parse_head",
    "parse_upgrade",
    "plausible_start",
]

#: The subprotocol that the JavaScript and Python clients offer and the server then selects.
SUBPROTOCOL = "zbifrost.v1"
BEARER = "bearer."
#: As :data:`zcomm.auth.codes.CODE`.
CODE = "code."

#: A proxy makes such a request of each, and nobody behind it gets in.
_OLD_VERSION = (
    "its WebSocket request came as HTTP/1.0; a proxy in front has to speak HTTP/1.1 to the server "
    "(nginx: proxy_http_version 1.1)"
)
_NO_CONNECTION = (
    "its WebSocket request has no Connection: upgrade; a proxy in front has to send it "
    '(nginx: proxy_set_header Connection "upgrade")'
)
_NO_UPGRADE = (
    "its WebSocket request has no Upgrade: websocket; a proxy in front has to send it "
    "(nginx: proxy_set_header Upgrade $http_upgrade)"
)

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN_BYTES = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TOKEN = re.compile(_TOKEN_BYTES + rb"\Z")
#: Header lines, each behind its line end: a token, a colon, and no control byte but the tab. A line that starts
#: with a blank is obsolete folding, one without a colon is no header.
_HEADERS = re.compile(rb"(?:\r\n" + _TOKEN_BYTES + rb":[\t\x20-\x7e\x80-\xff]*)*\Z")
#: The paths that take a POST, and nothing else.
TAKES_POST = frozenset({"/call", "/publish"})
_TARGET = re.compile(rb"[!-\"$-~]+\Z")
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")
_KNOWN_METHOD = re.compile(rb"[A-Z]{1,16}\Z")
#: Headers whose second copy would make a request mean two things.
_SINGLE = frozenset(
    (
        b"host",
        b"origin",
        b"upgrade",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"authorization",
        b"content-length",
        b"transfer-encoding",
    )
)


class HttpRefusal(Exception):
    """A request that gets an HTTP status and no WebSocket.

    :ivar status: the status code.
    :ivar headers: further response headers.
    :ivar reason: for the log: what a proxy before the server makes of each handshake, and its cure; empty otherwise.
    """

    def __init__(self, status: int, headers: tuple[tuple[str, str], ...] = (), reason: str = ""):
        super().__init__(status)
        self.status = status
        self.headers = headers
        self.reason = reason

    def response(self) -> bytes:
        """The whole response: the standard phrase, never a text of the peer's or ours."""
        return http_response(self.status, b"", self.headers)


class Head(NamedTuple):
    """A well-formed request head.

    :ivar method: ``GET``, ``HEAD`` …
    :ivar path: the target's path, as sent.
    :ivar query: the target's query, as sent, without the question mark.
    :ivar headers: value by lower-case name; values of repeated list headers joined by commas.
    """

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]

    def text(self, name: bytes) -> str:
        """A header's value with each byte as one character; empty when it is missing."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def wants_upgrade(self) -> bool:
        """Whether this asks for a WebSocket, well or badly, rather than for a page."""
        return b"upgrade" in self.headers or b"sec-websocket-key" in self.headers


class Upgrade(NamedTuple):
    """A well-formed WebSocket request.

    :ivar accept: the value of ``Sec-WebSocket-Accept`` that proves we understood it.
    :ivar origin: the page's origin, or ``None`` for a program that sends none.
    :ivar host: the ``Host`` header.
    :ivar protocols: the subprotocols offered, in the client's order.
    :ivar extensions: the raw ``Sec-WebSocket-Extensions`` value.
    :ivar tokens: every bearer token the client sent, in any of the three places, duplicates removed.
    """

    accept: str
    origin: str | None
    host: str
    protocols: tuple[str, ...]
    extensions: str
    tokens: tuple[str, ...]


def plausible_start(data: bytes) -> bool:
    """Whether ``data`` may be the beginning of an HTTP request: a TLS ClientHello or random bytes are not."""
    return 65 <= data[0] <= 90


def parse_head(data: bytes, max_headers: int = 100) -> Head:
    """Read a request head, without its closing empty line.

    :raises HttpRefusal: 400 for anything malformed, 405 for a method other than GET and HEAD, or than POST where that
        is what the path takes, 431 for more than ``max_headers`` headers, 505 for an HTTP version other than 1.1; but
        1.0, as health checks of proxies speak it, will do for what is no WebSocket.
    """
    if data.count(b"\r\n") > max_headers:
        raise HttpRefusal(431)
    lines = data.split(b"\r\n")
    request_line = lines[0].split(b" ")
    if len(request_line) != 3 or not _KNOWN_METHOD.match(request_line[0]):
        raise HttpRefusal(400)
    method, target, version = request_line
    is_old = version == b"HTTP/1.0"
    if version != b"HTTP/1.1" and not is_old:
        raise HttpRefusal(505 if version.startswith(b"HTTP/") else 400)
    if not _TARGET.match(target) or b"#" in target:
        raise HttpRefusal(400)
    takes_post = target.partition(b"?")[0].decode("ascii") in TAKES_POST
    if method not in ((b"POST",) if takes_post else (b"GET", b"HEAD")):
        raise HttpRefusal(405, (("Allow", "POST" if takes_post else "GET, HEAD"),))
    if not _HEADERS.match(data, len(lines[0])):
        raise HttpRefusal(400)
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            raise HttpRefusal(400)
        else:
            headers[name] += b"," + value
    length = headers.get(b"content-length", b"0")
    if takes_post:
        if not _LENGTH.match(length) or (b"transfer-encoding" in headers and b"content-length" in headers):
            raise HttpRefusal(400)
    elif b"transfer-encoding" in headers or length != b"0":
        # A GET with a body is a smuggling attempt or a mistake: nothing here reads bodies.
        raise HttpRefusal(400)
    host = headers.get(b"host", b"")
    if not host and (b"host" in headers or not is_old):
        raise HttpRefusal(400)
    text = target.decode("ascii")
    if not text.startswith("/"):
        text = _path_of_absolute(text, host)
    path, _, query = text.partition("?")
    head = Head(method.decode("ascii"), path, query, headers)
    if is_old and head.wants_upgrade:
        raise HttpRefusal(505, reason=_OLD_VERSION)
    return head


def _path_of_absolute(target: str, host: bytes) -> str:
    """The path of an absolute-form target whose host is the ``Host`` header's (RFC 9112 section 3.2.2)."""
    scheme, separator, rest = target.partition("://")
    authority, slash, path = rest.partition("/")
    if not separator or scheme.lower() not in ("http", "ws") or authority.encode("ascii").lower() != host.lower():
        raise HttpRefusal(400)
    return slash + path or "/"


def parse_upgrade(head: Head) -> Upgrade:
    """Read the WebSocket part of a request (RFC 6455 section 4.2.1).

    :raises HttpRefusal: 400 or 426 for anything but a version 13 upgrade.
    """
    headers = head.headers
    if head.method != "GET":
        raise HttpRefusal(405, (("Allow", "GET"),))
    if headers.get(b"upgrade", b"").lower() != b"websocket":
        raise HttpRefusal(426, (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")), _NO_UPGRADE)
    if b"upgrade" not in _list(headers.get(b"connection", b"").lower()):
        raise HttpRefusal(400, reason=_NO_CONNECTION)
    version = headers.get(b"sec-websocket-version", b"")
    if version != b"13":
        # Draft versions are refused whole: version 8 even names its origin in another header.
        if version.isdigit() and len(version) <= 3:
            raise HttpRefusal(426, (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")))
        raise HttpRefusal(400)
    key = headers.get(b"sec-websocket-key", b"")
    try:
        if len(key) != 24 or len(a2b_base64(key, strict_mode=True)) != 16:
            raise HttpRefusal(400)
    except Base64Error:
        raise HttpRefusal(400) from None
    protocols = _subprotocols(headers.get(b"sec-websocket-protocol"))
    origin = headers.get(b"origin")
    return Upgrade(
        accept=b64encode(sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii"),
        origin=None if origin is None else origin.decode("latin-1"),
        host=head.text(b"host"),
        protocols=protocols,
        extensions=head.text(b"sec-websocket-extensions"),
        tokens=bearer_tokens(head, protocols),
    )


def _list(value: bytes) -> list[bytes]:
    return [item.strip(b" \t") for item in value.split(b",")]


def _subprotocols(value: bytes | None) -> tuple[str, ...]:
    """The offered subprotocols (RFC 6455 section 4.1, item 10): tokens, none twice."""
    if value is None:
        return ()
    offered = _list(value)
    if not all(map(_TOKEN.match, offered)) or len(set(offered)) != len(offered):
        raise HttpRefusal(400)
    return tuple(item.decode("ascii") for item in offered)


def bearer_tokens(head: Head, protocols: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every token sent: subprotocol ``bearer.…``, ``Authorization: Bearer …``, ``?token=`` or ``?api_key=``; and the
    subprotocol ``code.…`` of a one-time code, whole, which stands in the place of one.

    It is UTF-8 in all of them. One that is there but empty or undecodable counts as an (invalid) token, so that it can
    never be mistaken for none.
    """
    found = [item.removeprefix(BEARER) for item in protocols if item.startswith((BEARER, CODE))]
    authorization = head.headers.get(b"authorization")
    if authorization is not None:
        scheme, _, value = authorization.partition(b" ")
        if scheme.lower() == b"bearer":
            found.append(_text(value.strip(b" ")))
    if "token=" in head.query or "api_key=" in head.query:
        found += [value for name, value in _parameters(head.query) if name in ("token", "api_key")]
    return tuple(dict.fromkeys(found))


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _parameters(query: str) -> list[tuple[str, str]]:
    if "%" not in query and "+" not in query and "&" not in query:
        # One parameter with nothing to decode, as it nearly always is.
        name, _, value = query.partition("=")
        return [(name, value)]
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except (UnicodeDecodeError, ValueError):
        return [("token", "")]


def accept_response(upgrade: Upgrade, extensions: str = "") -> bytes:
    """The 101 response. It names no product and no version (RFC 6455 section 4.2.2)."""
    response = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {upgrade.accept}\r\n"
    )
    if SUBPROTOCOL in upgrade.protocols:
        response += f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
    if extensions:
        response += f"Sec-WebSocket-Extensions: {extensions}\r\n"
    return (response + "\r\n").encode("ascii")


def http_response(status: int, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """One whole HTTP response, after which the connection ends."""
    return http_head(status, len(body), headers) + body


def http_head(status: int, size: int, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The head of a response with a body of so many bytes."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Connection: close"]
    if status != HTTPStatus.NOT_MODIFIED:
        # There it would be the length of what is not sent.
        lines.append(f"Content-Length: {size}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
