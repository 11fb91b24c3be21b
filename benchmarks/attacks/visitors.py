"""Admitted clients as sockets: what they say, what they take of the answers, and what they count of them."""

from __future__ import annotations

import json
import re
import select
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from herd import CLOSE, PING, PONG, TEXT, masked

#: Seconds that an attack goes on, and rests, in turn.
BUSY, REST = 0.009, 0.001
#: Bytes of a message that are looked at; the rest of a large one is only counted.
KEPT = 4096
_CODE = re.compile(rb'"code": ?"(\w+)"')


class HungUp(Exception):
    """The server ended the connection."""


def handshake(port: int, token: str, *headers: str) -> bytes:
    """An opening handshake."""
    lines = [
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: ekNvbW0gcmF3IGNsaWVudA==",
        "Sec-WebSocket-Version: 13",
        f"Authorization: Bearer {token}",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def message(key: str, horizontal: Any = None, **more: Any) -> bytes:
    """A frame with one request."""
    content = {"zKey": key, **({} if horizontal is None else {"zHorizontal": horizontal}), **more}
    return masked(TEXT, json.dumps(content, separators=(",", ":")).encode())


class Frames:
    """The server's bytes, taken apart: of each message the opcode, its length and its first :data:`KEPT` bytes; of a
    compressed one its length as it came, and the first bytes of what is in it."""

    def __init__(self) -> None:
        self._head = b""
        self._opcode = self._length = self._missing = 0
        self._is_compressed = False
        self._payload = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Each message that is complete with ``data``."""
        view, at = memoryview(data), 0
        while at < len(data) or (self._opcode and not self._missing):
            if self._opcode:
                taken = min(self._missing, len(data) - at)
                if len(self._payload) < KEPT:
                    self._payload += bytes(view[at : at + min(taken, KEPT - len(self._payload))])
                at += taken
                self._missing -= taken
                if self._missing:
                    return
                payload = self._payload
                if self._is_compressed:
                    payload = zlib.decompressobj(wbits=-15).decompress(payload, KEPT)
                yield self._opcode, self._length, payload
                self._opcode, self._payload = 0, b""
                continue
            wanted = 2 if len(self._head) < 2 else 2 + {126: 2, 127: 8}.get(self._head[1], 0)
            taken = min(wanted - len(self._head), len(data) - at)
            self._head += bytes(view[at : at + taken])
            at += taken
            if len(self._head) < 2 or len(self._head) < 2 + {126: 2, 127: 8}.get(self._head[1], 0):
                continue
            self._length = self._missing = int.from_bytes(self._head[2:], "big") or self._head[1]
            self._opcode, self._is_compressed = self._head[0] & 15, bool(self._head[0] & 0x40)
            self._head = b""


class Visitor:
    """One admitted connection on an epoll.

    :param says: frames, without an end; ``None`` for one that only listens.
    :param in_flight: how many may wait for an answer.
    :param rate: bytes a second that it takes; 0 for one that takes nothing.
    """

    def __init__(
        self, port: int, opening: bytes, says: Iterator[bytes] | None, in_flight: int = 64, rate: float = float("inf")
    ):
        self.says = says
        self.in_flight = in_flight
        self.rate = rate
        self.owed = self.sent = self.taken = self.said = 0
        self.answers: Counter[str] = Counter()
        self.frames = Frames()
        self.out = memoryview(b"")
        self.begun = time.monotonic()
        self.socket = socket.socket()
        self.socket.settimeout(10)
        if rate != float("inf"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 if not rate else 64 * 1024)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(opening)
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(1)
            if not data:
                raise HungUp(f"during the handshake: {head[:60]!r}")
            head += data
        if b" 101 " not in head:
            raise HungUp(head[:60].decode("latin-1"))
        self.socket.setblocking(False)

    @property
    def may_speak(self) -> bool:
        """Whether it has something to say now."""
        return bool(self.out) or (self.says is not None and (self.owed < self.in_flight or not self.rate))

    def speak(self) -> None:
        """Send what the socket takes of one message."""
        if not self.out and self.says is not None:
            frame = next(self.says, None)
            if frame is None:
                self.says = None
                return
            self.out = memoryview(frame)
            self.owed += 1
            self.said += 1
        try:
            sent = self.socket.send(self.out)
        except BlockingIOError:
            return
        except OSError as error:
            raise HungUp(str(error)) from None
        self.sent += sent
        self.out = self.out[sent:]

    def listen(self) -> None:
        """Take what there is, as fast as it takes anything."""
        wanted = min(1 << 20, (time.monotonic() - self.begun) * self.rate - self.taken)
        if wanted < 1:
            return
        try:
            data = self.socket.recv(int(wanted))
        except BlockingIOError:
            return
        except OSError as error:
            raise HungUp(str(error)) from None
        if not data:
            raise HungUp("end of stream")
        self.taken += len(data)
        for opcode, _, payload in self.frames.feed(data):
            if opcode == PING:
                self.out = memoryview(bytes(self.out) + masked(PONG, payload)) if not self.out else self.out
            elif opcode == CLOSE:
                raise HungUp(f"close {int.from_bytes(payload[:2], 'big')} {payload[2:].decode(errors='replace')}")
            elif payload.startswith((b'{"result"', b'{"error"')):
                self.owed -= 1
                found = _CODE.search(payload) if payload.startswith(b'{"error"') else None
                self.answers[found[1].decode() if found else "result"] += 1
            else:
                self.answers["event" if payload.startswith(b'{"event"') else "broadcast"] += 1


class Crowd:
    """All connections of one attack, on one epoll: who is hung up on comes back.

    :param make: makes the visitor of a number.
    :param count: how many there are.
    :param pace: messages a second of all together.
    """

    def __init__(self, count: int, make: Any, pace: float = float("inf"), *, listeners: int = 0, listener: Any = None):
        self.make = [make] * count + [listener] * listeners
        self.count = count
        self.pace = pace
        self.poll = select.epoll()
        self.present: dict[int, tuple[int, Visitor]] = {}
        self.gone: Counter[str] = Counter()
        self.lost_listeners = 0
        self.connections = self.sent = self.said = 0
        self.answers: Counter[str] = Counter()
        self.heard: Counter[str] = Counter()
        self._next = [0.0] * len(self.make)
        # Listeners are there before anything is said.
        for number in sorted(range(len(self.make)), reverse=True):
            self.join(number)

    def join(self, number: int) -> None:
        """One connects; where it is refused it tries again after a while."""
        try:
            visitor = self.make[number](number)
        except (HungUp, OSError) as error:
            self.gone[f"refused: {str(error)[:60]}"] += 1
            self._next[number] = time.monotonic() + 0.2
            return
        self.connections += 1
        self.present[number] = (number, visitor)
        self.poll.register(visitor.socket, 0)

    def leave(self, number: int, why: str) -> None:
        """One is hung up on."""
        _, visitor = self.present.pop(number)
        self.poll.unregister(visitor.socket)
        visitor.socket.close()
        self._settle(number, visitor)
        if number < self.count:
            self.gone[why[:60]] += 1
        else:
            self.lost_listeners += 1
            self.gone[f"listener: {why[:60]}"] += 1

    def _settle(self, number: int, visitor: Visitor) -> None:
        self.sent += visitor.sent
        self.said += visitor.said
        (self.answers if number < self.count else self.heard).update(visitor.answers)

    def run(self, seconds: float) -> dict[str, Any]:
        """Attack for so long; what came of it."""
        begun = rested = time.monotonic()
        by_file: dict[int, int] = {}
        said = 0
        while (passed := time.monotonic() - begun) < seconds:
            # The system stops whoever fills a core in the real-time class, and with it the probe on the same core.
            if time.monotonic() - rested > BUSY:
                time.sleep(REST)
                rested = time.monotonic()
            for number in range(len(self.make)):
                if number not in self.present and self._next[number] <= time.monotonic():
                    self.join(number)
            by_file.clear()
            limited = []
            for number, visitor in self.present.values():
                by_file[visitor.socket.fileno()] = number
                events = select.EPOLLRDHUP
                if visitor.rate == float("inf"):
                    events |= select.EPOLLIN
                elif visitor.rate:
                    limited.append(number)
                if visitor.may_speak and said <= passed * self.pace:
                    events |= select.EPOLLOUT
                self.poll.modify(visitor.socket, events)
            for file, events in self.poll.poll(0.005):
                number = by_file[file]
                visitor = self.present[number][1]
                try:
                    if events & select.EPOLLIN:
                        visitor.listen()
                    if events & select.EPOLLOUT:
                        before = visitor.said
                        visitor.speak()
                        said += visitor.said - before
                    if events & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP) and not events & select.EPOLLIN:
                        raise HungUp("end of stream")
                except HungUp as error:
                    self.leave(number, str(error))
            for number in limited:
                if number in self.present:
                    try:
                        self.present[number][1].listen()
                    except HungUp as error:
                        self.leave(number, str(error))
        for number, visitor in self.present.values():
            self._settle(number, visitor)
        return {
            "connections": self.connections,
            "KB sent": self.sent // 1000,
            "messages": self.said,
            "answers": dict(self.answers),
            "listeners heard": dict(self.heard),
            "listeners lost": self.lost_listeners,
            "hung up": dict(self.gone),
        }
