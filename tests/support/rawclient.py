"""A WebSocket client that can be as rude as a test needs: any bytes, any frame, no reading.

Three layers: bytes and frames without I/O (:func:`handshake`, :func:`build_frame`,
:class:`Reader`), a Twisted protocol for servers in the same process (:class:`RawClient`, through
:func:`connect` or joined in memory by ``iosim``), and a blocking socket for servers in another
process (:class:`BlockingRawClient`). The client methods have the same names in both.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import socket
import ssl
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from support.waiting import DEADLINE
from twisted.internet.defer import Deferred, DeferredQueue, inlineCallbacks
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

__all__ = [
    "BlockingRawClient",
    "ConnectionEnded",
    "Frame",
    "Opcode",
    "RawClient",
    "Reader",
    "Response",
    "accept_key",
    "build_frame",
    "close_payload",
    "connect",
    "handshake",
]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
KEY = base64.b64encode(b"zcomm raw client").decode()
MASK = b"\x37\xfa\x21\x3d"


class Opcode(IntEnum):
    """RFC 6455 section 5.2."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class ConnectionEnded(Exception):
    """The server ended the connection while something was awaited."""


@dataclass(frozen=True)
class Frame:
    """One frame from the server."""

    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0

    @property
    def text(self) -> str:
        return self.payload.decode("utf-8")

    @property
    def json(self) -> Any:
        return json.loads(self.payload)

    @property
    def close_code(self) -> int | None:
        """The code of a close frame; ``None`` when it has none."""
        return struct.unpack("!H", self.payload[:2])[0] if len(self.payload) >= 2 else None

    @property
    def close_reason(self) -> str:
        return self.payload[2:].decode("utf-8")


@dataclass(frozen=True)
class Response:
    """The head of the server's answer to the handshake."""

    status: int
    phrase: str
    headers: tuple[tuple[str, str], ...]

    def header(self, name: str) -> str | None:
        """The first value of the header ``name``, in any case; ``None`` when there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def accept_key(key: str) -> str:
    """The ``Sec-WebSocket-Accept`` that ``key`` must be answered with."""
    return base64.b64encode(hashlib.sha1(key.encode("ascii") + GUID, usedforsecurity=False).digest()).decode()


def handshake(
    host: str = "127.0.0.1",
    path: str = "/",
    *,
    token: str | None = None,
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
    headers: Iterable[tuple[str, str]] = (),
    without: Iterable[str] = (),
    method: str = "GET",
    version: str = "HTTP/1.1",
) -> bytes:
    """An opening handshake. ``token`` goes as a bearer header; ``headers`` are added as they are;
    the usual headers named in ``without`` are left out."""
    usual = [
        ("Host", host),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ]
    if token is not None:
        usual.append(("Authorization", f"Bearer {token}"))
    if origin is not None:
        usual.append(("Origin", origin))
    if subprotocols:
        usual.append(("Sec-WebSocket-Protocol", ", ".join(subprotocols)))
    left_out = {name.lower() for name in without}
    lines = [f"{method} {path} {version}"]
    lines += [f"{name}: {value}" for name, value in usual if name.lower() not in left_out]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "surrogateescape")


def build_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    claim: int | None = None,
    width: int | None = None,
) -> bytes:
    """A client's frame. ``mask=None`` forgets the mask; ``claim`` lies about the length;
    ``width`` (0, 2 or 8 bytes) forces a longer form of the length than needed."""
    length = len(payload) if claim is None else claim
    if width is None:
        width = 0 if length < 126 else 2 if length < 65536 else 8
    first = (0x80 if fin else 0) | (rsv << 4) | opcode
    flag = 0 if mask is None else 0x80
    if width == 0:
        head = struct.pack("!BB", first, flag | length)
    elif width == 2:
        head = struct.pack("!BBH", first, flag | 126, length)
    else:
        head = struct.pack("!BBQ", first, flag | 127, length)
    if mask is None:
        return head + payload
    stretched = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


def close_payload(code: int | None = 1000, reason: str | bytes = b"") -> bytes:
    """The body of a close frame; none at all for ``code=None``."""
    if code is None:
        return b""
    return struct.pack("!H", code) + (reason.encode("utf-8") if isinstance(reason, str) else reason)


@dataclass
class Reader:
    """The server's bytes, taken apart: one response head, then frames. No I/O."""

    response: Response | None = None
    expect_response: bool = True
    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> list[Response | Frame]:
        """What became complete with ``data``, in order."""
        self._buffer += data
        found: list[Response | Frame] = []
        while (item := self._next()) is not None:
            found.append(item)
        return found

    @property
    def rest(self) -> bytes:
        """What has come and is not a whole frame (the body, after an answer that is not 101)."""
        return bytes(self._buffer)

    def _next(self) -> Response | Frame | None:
        if self.expect_response and self.response is None:
            return self._head()
        if self.expect_response and self.response is not None and self.response.status != 101:
            return None
        return self._frame()

    def _head(self) -> Response | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        status_line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        _, status, phrase = (status_line.split(" ", 2) + [""])[:3]
        pairs = (line.partition(":") for line in lines)
        self.response = Response(int(status), phrase, tuple((name.strip(), value.strip()) for name, _, value in pairs))
        return self.response

    def _frame(self) -> Frame | None:
        data = self._buffer
        if len(data) < 2:
            return None
        length, start = data[1] & 0x7F, 2
        if length == 126:
            if len(data) < 4:
                return None
            length, start = struct.unpack_from("!H", data, 2)[0], 4
        elif length == 127:
            if len(data) < 10:
                return None
            length, start = struct.unpack_from("!Q", data, 2)[0], 10
        if len(data) < start + length:
            return None
        frame = Frame(data[0] & 0x0F, bytes(data[start : start + length]), bool(data[0] & 0x80), (data[0] >> 4) & 7)
        del data[: start + length]
        return frame


class _Sending:
    """What both clients send; :meth:`send` is theirs."""

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def send_frame(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        """See :func:`build_frame`."""
        self.send(build_frame(opcode, payload, **options))

    def send_text(self, text: str | bytes) -> None:
        self.send_frame(Opcode.TEXT, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)

    def send_json(self, message: Any) -> None:
        self.send_text(json.dumps(message))

    def send_close(self, code: int | None = 1000, reason: str | bytes = b"") -> None:
        self.send_frame(Opcode.CLOSE, close_payload(code, reason))


class RawClient(Protocol, _Sending):
    """A client on the reactor (or in memory). Everything received is kept in :attr:`received`."""

    def __init__(self, opening: bytes | None = None, clock: Any = None):
        self.reader = Reader(expect_response=opening is not None)
        self.received: list[Response | Frame] = []
        self.ended = False
        self._opening = opening
        self._clock = clock
        self._queue: DeferredQueue[Response | Frame | None] = DeferredQueue()
        self._end_waiters: list[Deferred[None]] = []
        self._ids = itertools.count(1)

    def connectionMade(self) -> None:
        if self._opening is not None:
            self.send(self._opening)

    def dataReceived(self, data: bytes) -> None:
        for item in self.reader.feed(data):
            self.received.append(item)
            self._queue.put(item)

    def connectionLost(self, reason: Any = None) -> None:
        self.ended = True
        self._queue.put(None)
        waiters, self._end_waiters = self._end_waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def send(self, data: bytes) -> None:
        self.transport.write(data)

    def next(self) -> Deferred[Any]:
        """Fires with the next :class:`Response` or :class:`Frame`; fails with :class:`ConnectionEnded`."""

        def check(item: Any) -> Any:
            if item is None:
                self._queue.put(None)
                raise ConnectionEnded(f"the connection ended after {self.received!r}")
            return item

        return self._limited(self._queue.get()).addCallback(check)

    @inlineCallbacks
    def next_json(self) -> Any:
        """Fires with the value of the next text frame; pings are answered, anything else is an error."""
        while True:
            frame = yield self.next()
            if isinstance(frame, Frame) and frame.opcode == Opcode.PING:
                self.send_frame(Opcode.PONG, frame.payload)
                continue
            if isinstance(frame, Frame) and frame.opcode == Opcode.PONG:
                continue
            if not isinstance(frame, Frame) or frame.opcode != Opcode.TEXT:
                raise AssertionError(f"expected a text frame, not {describe(frame)}")
            return frame.json

    @inlineCallbacks
    def next_close(self) -> Any:
        """Fires with the next close :class:`Frame`, whatever comes before it."""
        while True:
            frame = yield self.next()
            if isinstance(frame, Frame) and frame.opcode == Opcode.CLOSE:
                return frame

    @inlineCallbacks
    def call(self, key: str, horizontal: Any = None) -> Any:
        """Send a command and fire with its own reply, broadcasts passed over."""
        request_id = f"raw-{next(self._ids)}"
        message = {"zKey": key, "_requestId": request_id}
        if horizontal is not None:
            message["zHorizontal"] = horizontal
        self.send_json(message)
        while True:
            reply = yield self.next_json()
            if isinstance(reply, dict) and reply.get("_requestId") == request_id:
                return reply

    def when_ended(self) -> Deferred[None]:
        """Fires when the TCP connection is over."""
        waiter: Deferred[None] = Deferred()
        if self.ended:
            waiter.callback(None)
        else:
            self._end_waiters.append(waiter)
        return self._limited(waiter)

    def stop_reading(self) -> None:
        """Be a slow consumer."""
        self.transport.pauseProducing()

    def read_again(self) -> None:
        self.transport.resumeProducing()

    def abort(self) -> None:
        """Leave with RST."""
        self.transport.abortConnection()

    def leave(self) -> Deferred[None]:
        """End the TCP connection without a closing handshake; fires when it is over."""
        if not self.ended:
            self.transport.loseConnection()
        return self.when_ended()

    def _limited(self, waiting: Deferred[Any]) -> Deferred[Any]:
        return waiting if self._clock is None else waiting.addTimeout(DEADLINE, self._clock)


@inlineCallbacks
def connect(
    port: int, opening: bytes | None = b"", *, host: str = "127.0.0.1", reactor: Any = None, **options: Any
) -> Any:
    """Fires with a :class:`RawClient` on ``host:port``.

    With ``opening`` left as it is, :func:`handshake` is made of ``options`` and its answer awaited
    (it is in ``client.reader.response``). Other bytes are sent as they are, nothing is awaited;
    ``None`` sends nothing at all.
    """
    if reactor is None:
        from twisted.internet import reactor
    polite = opening == b""
    client = RawClient(handshake(f"{host}:{port}", **options) if polite else opening, clock=reactor)
    yield connectProtocol(HostnameEndpoint(reactor, host.encode(), port), client)
    if polite:
        yield client.next()
    return client


class BlockingRawClient(_Sending):
    """The same over a blocking socket, for a server in another process. A context manager."""

    def __init__(
        self,
        port: int,
        opening: bytes | None = b"",
        *,
        host: str = "127.0.0.1",
        source: str = "",
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        name_in_handshake: str = "",
        **options: Any,
    ):
        self.received: list[Response | Frame] = []
        self._waiting: list[Response | Frame] = []
        self._ids = itertools.count(1)
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        if source:
            self.socket.bind((source, 0))
        try:
            self.socket.connect((host, port))
        except OSError:
            self.socket.close()
            raise
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=server_name or host)
        polite = opening == b""
        self.reader = Reader(expect_response=opening is not None)
        if polite:
            opening = handshake(name_in_handshake or f"{host}:{port}", **options)
        if opening:
            self.send(opening)
        if polite:
            self.next()

    def __enter__(self) -> BlockingRawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def next(self) -> Any:
        """The next :class:`Response` or :class:`Frame`; raises :class:`ConnectionEnded`."""
        while not self._waiting:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise ConnectionEnded(f"the connection ended after {self.received!r}")
            items = self.reader.feed(data)
            self.received += items
            self._waiting += items
        return self._waiting.pop(0)

    def next_json(self) -> Any:
        """The value of the next text frame; pings are answered, anything else is an error."""
        while True:
            frame = self.next()
            if isinstance(frame, Frame) and frame.opcode == Opcode.PING:
                self.send_frame(Opcode.PONG, frame.payload)
                continue
            if isinstance(frame, Frame) and frame.opcode == Opcode.PONG:
                continue
            if not isinstance(frame, Frame) or frame.opcode != Opcode.TEXT:
                raise AssertionError(f"expected a text frame, not {describe(frame)}")
            return frame.json

    def next_close(self) -> Frame:
        """The next close frame, whatever comes before it."""
        while True:
            frame = self.next()
            if isinstance(frame, Frame) and frame.opcode == Opcode.CLOSE:
                return frame

    def call(self, key: str, horizontal: Any = None) -> Any:
        """Send a command and return its own reply, broadcasts passed over."""
        request_id = f"raw-{next(self._ids)}"
        message = {"zKey": key, "_requestId": request_id}
        if horizontal is not None:
            message["zHorizontal"] = horizontal
        self.send_json(message)
        while True:
            reply = self.next_json()
            if isinstance(reply, dict) and reply.get("_requestId") == request_id:
                return reply

    def wait_ended(self) -> None:
        """Return when the server has ended the TCP connection, whatever it still sends."""
        while True:
            try:
                self.next()
            except ConnectionEnded:
                return

    def abort(self) -> None:
        """Leave with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def describe(item: Any) -> str:
    """A frame as a failing test should show it."""
    if isinstance(item, Frame) and item.opcode == Opcode.CLOSE:
        return f"close {item.close_code} {item.close_reason!r}"
    return repr(item)
