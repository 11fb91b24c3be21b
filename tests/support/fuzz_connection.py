"""A hostile peer on a whole connection: any bytes, cut anywhere, and what must hold whatever they were.

The first two bytes of an input say how the server is set up and where the rest is cut; the rest is what the
peer sends, from its first byte or behind a right handshake.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from support.rawclient import Frame, Reader, Response, build_frame, handshake
from support.worlds import HERE, IDENTITIES, _Pipe, _Tokens
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher

from zcomm import Limits, WebSocketConfig, zBifrost
from zcomm.bifrost.handshake import http_response
from zcomm.web.calls import SLOWEST
from zcomm.web.pages import WebPages
from zcomm.wire.closecodes import CloseCode

__all__ = ["COMPRESSED", "OPENED", "PAGES", "connection", "quiet"]

#: What the bits of an input's first byte mean.
COMPRESSED, OPENED, PAGES = 1, 2, 4

STATUSES = frozenset(
    {100, 101, 200, 304, 308, 400, 401, 403, 404, 405, 408, 411, 413, 415, 417, 421, 426, 429, 431, 500, 503, 504, 505}
)
CODES = frozenset({"bad_message", "unknown_command", "permission_denied", "too_busy", "invalid", "not_found"})
LARGEST = 4096
OPENING = handshake("127.0.0.1", token="alice-token")
DEFLATING = handshake(
    "127.0.0.1",
    token="alice-token",
    headers=[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")],
)
STILL_THERE = build_frame(1, b'{"zKey":"ping","_requestId":"still there"}')


@contextmanager
def quiet() -> Iterator[None]:
    """Fail when anything is logged as an error meanwhile."""
    said: list[Any] = []

    def listen(event: Any) -> None:
        if event.get("log_level") in (LogLevel.error, LogLevel.critical) or "log_failure" in event:
            said.append(event)

    globalLogPublisher.addObserver(listen)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(listen)
    if said:
        failure = said[0].get("log_failure")
        raise AssertionError(f"logged: {failure.getTraceback() if failure else said[0]}")


class Served:
    """A server on a clock of its own; connections come and go."""

    def __init__(self, flags: int, **limited: Any):
        self.clock = Clock()
        limits = Limits(**{"message_size": LARGEST, "auth_failures": 1 << 30, **limited})
        checker = _Tokens(IDENTITIES)
        config = WebSocketConfig(port=0, compression=bool(flags & COMPRESSED), limits=limits)
        pages = WebPages(lambda bifrost: succeed({"status": "ok"})) if flags & PAGES else None
        self.bifrost = zBifrost(config, checker=checker, reactor=self.clock, pages=pages)
        self.bifrost.command("later")(self._later)

    def _later(self, horizontal: Any, client: Any) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()
        call = self.clock.callLater(0.5, lambda: waiting.callback(horizontal))
        waiting.addErrback(lambda failure: (call.active() and call.cancel(), failure)[1])
        return waiting


class Peer:
    """One connection to it."""

    def __init__(self, served: Served):
        self.served = served
        self.protocol: Any = served.bifrost.factory.buildProtocol(HERE)
        self.pipe = _Pipe(self.protocol, True)
        self.written = b""
        self.protocol.makeConnection(self.pipe)

    @property
    def over(self) -> bool:
        return self.pipe.disconnecting or self.pipe.disconnected

    def feed(self, data: bytes) -> None:
        """Let the server read ``data``, unless it reads nothing any more, and take what it writes."""
        self.settle()
        if not self.over and not self.pipe.paused:
            self.protocol.dataReceived(data)
        self.settle()

    def settle(self, seconds: float = 0) -> None:
        self.served.clock.advance(seconds)
        for _ in range(50):
            taken = self.pipe.getOutBuffer() or b""
            self.written += taken
            if self.pipe.producer is not None and not self.over:
                self.pipe.producer.resumeProducing()
            self.served.clock.advance(0)
            if not taken and not self.pipe.paused:
                break


_served: dict[int, Served] = {}


def connection(data: bytes) -> None:
    """Whatever a peer sends, it gets documented answers or a documented end, and nothing of it stays behind."""
    if len(data) < 3:
        return
    flags, cuts, stream = data[0] & 7, data[1], data[2:]
    if (served := _served.get(flags)) is None:
        served = _served[flags] = Served(flags)
    random = Random(cuts)
    places = sorted({0, len(stream), *(random.randrange(len(stream)) for _ in range(cuts % 8))})
    with quiet():
        peer = Peer(served)
        if flags & OPENED:
            peer.feed(DEFLATING if flags & COMPRESSED else OPENING)
        for begin, end in zip(places, places[1:], strict=False):
            peer.feed(stream[begin:end])
        _check_end(served, peer)


def _check_end(served: Served, peer: Peer) -> None:
    protocol = peer.protocol
    opened = peer.written.startswith(b"HTTP/1.1 101 ")
    if not peer.over and not opened:
        peer.settle(served.bifrost.config.limits.handshake_timeout)
        if served.bifrost.factory.callers:
            # One whose body does not come has a little longer; then there is its command.
            peer.settle(LARGEST / SLOWEST)
            peer.settle(0.5)
        assert peer.over, "a handshake that did not end is still waited for"
    elif not peer.over and protocol.state == protocol.STATE_CLOSING:
        peer.settle(1.0)
        assert peer.over, "a client that was told goodbye is still there"
    probed = opened and not peer.over and _between_frames(protocol)
    if probed:
        # With as many commands in flight as there may be, even a ping is refused until they are done.
        peer.settle(0.5)
        peer.feed(STILL_THERE)
    items = _items(peer.written)
    if probed:
        replies = [json.loads(item) for item in items if isinstance(item, bytes)]
        assert replies and replies[-1] == {"result": "ping", "_requestId": "still there"}, "alive, and does not answer"
    peer.pipe.lost()
    assert len(served.bifrost.registry) == len(served.bifrost.factory.callers) == 0, "somebody stays in the registry"
    pending = served.bifrost.factory.pending
    assert pending.count == pending.waiting == 0, "somebody keeps a place for handshakes"
    for _ in range(1000):
        # A user that has had its time waits for the ends of turns, which come at once.
        if not any(call.getTime() <= served.clock.seconds() for call in served.clock.getDelayedCalls()):
            break
        served.clock.advance(0)
    assert not served.clock.getDelayedCalls(), f"timers are left: {served.clock.getDelayedCalls()}"


def _between_frames(protocol: Any) -> bool:
    return (
        protocol.state == protocol.STATE_OPEN
        and not protocol.data
        and protocol.current_frame is None
        and not protocol.inside_message
    )


def _items(written: bytes) -> list[Any]:
    """What the server wrote, each thing checked: texts as bytes, the close code as a number."""
    reader = Reader()
    items: list[Any] = []
    for item in reader.feed(written):
        if isinstance(item, Response):
            assert item.status in STATUSES, f"status {item.status}"
            if item.status != 101:
                body = http_response(item.status)
                assert written.startswith(body.split(b"\r\n")[0])
                return items
        else:
            items.append(_frame(item))
            if item.opcode == 8:
                assert not reader.rest and item is not None, "something follows the goodbye"
    assert not reader.rest, "half a frame was written"
    closes = [item for item in items if isinstance(item, int)]
    assert len(closes) < 2 and (not closes or isinstance(items[-1], int)), "something follows the goodbye"
    return items


def _frame(frame: Frame) -> Any:
    assert frame.fin and frame.rsv in (0, 4), frame
    if frame.opcode == 8:
        code = frame.close_code
        assert code is not None and (code in set(CloseCode) or 3000 <= code < 5000 or code == 1000), (
            f"close code {code}"
        )
        frame.close_reason.encode()
        return code
    if frame.opcode == 10:
        assert frame.rsv == 0 and len(frame.payload) < 126
        return None
    assert frame.opcode == 1, frame
    text = frame.payload
    if frame.rsv:
        text = zlib.decompressobj(-15).decompress(text + b"\0\0\xff\xff")
    message = json.loads(text.decode("utf-8"))
    assert ("result" in message) != ("error" in message), message
    assert "error" not in message or message["code"] in CODES, message
    return text
