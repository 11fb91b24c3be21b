"""Many WebSocket clients in one process: plain sockets on one epoll, a few hundred bytes each.

Each client has an address of its own in 127/8, as users have, and behaves as the clients of zComm do: it
answers pings and goodbyes, and comes back after a loss with :func:`zcomm.client.client.retry_delay`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from zcomm.client.client import STEADY_AFTER, retry_delay

#: Of a unix's ``<linux/in.h>``: choose the port when the other end is known, so that ports may be shared.
IP_BIND_ADDRESS_NO_PORT = 24
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
AWAY, OPENING, OPEN = "away", "opening", "open"
#: Close codes after which coming back would end the same way.
FINAL = frozenset({1002, 1003, 1007, 1008, 1009})


def masked(opcode: int, payload: bytes) -> bytes:
    """One final frame with a mask of zeros, which RFC 6455 allows and which costs nothing to apply."""
    length = len(payload)
    if length < 126:
        return struct.pack("!BB", 0x80 | opcode, 0x80 | length) + b"\0\0\0\0" + payload
    if length < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 0xFE, length) + b"\0\0\0\0" + payload
    return struct.pack("!BBQ", 0x80 | opcode, 0xFF, length) + b"\0\0\0\0" + payload


class Member:
    """One client.

    :ivar on_text: called with the client and each text message.
    :ivar stays: whether it comes back after a loss.
    """

    __slots__ = ("attempts", "herd", "number", "on_text", "opened_at", "rest", "socket", "state", "stays")

    def __init__(self, herd: Herd, number: int, stays: bool):
        self.herd = herd
        self.number = number
        self.stays = stays
        self.state = AWAY
        self.attempts = 0
        self.opened_at = 0.0
        self.rest = b""
        self.socket: socket.socket | None = None
        self.on_text: Callable[[Member, bytes], None] | None = None

    def connect(self) -> None:
        """Begin a connection; whether it came about shows in :attr:`state`."""
        herd = self.herd
        self.socket = one = socket.socket()
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        address = 1 + self.number % 16_000_000
        one.bind((f"127.{1 + (address >> 16) % 250}.{address >> 8 & 255}.{address & 255}", 0))
        herd.attempts.append(time.monotonic())
        self.state = OPENING
        one.connect_ex(("127.0.0.1", herd.port))
        herd.watch(self, select.EPOLLOUT)

    def ready(self, events: int) -> None:
        """Take what the system says of the socket."""
        if events & select.EPOLLOUT and self.state is OPENING:
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.lose(f"errno {error}")
                return
            self.herd.poll.modify(self.socket.fileno(), select.EPOLLIN)
            self.write(self.herd.opening)
        elif events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(f"errno {error.errno}")
                return
            if not data:
                self.lose("end of stream")
                return
            self.take(data)

    def take(self, data: bytes) -> None:
        """Take bytes from the server."""
        data = self.rest + data if self.rest else data
        offset = 0
        if self.state is OPENING:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.rest = data
                return
            if not data.startswith(b"HTTP/1.1 101 "):
                self.lose(data[9:12].decode("ascii", "replace"))
                return
            offset = end + 4
            self.state = OPEN
            self.opened_at = time.monotonic()
            self.herd.opened(self)
        size = len(data)
        while size - offset >= 2 and self.socket is not None:
            length, start = data[offset + 1], offset + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[offset + 2 : start], "big")
            elif length == 127:
                start += 8
                length = int.from_bytes(data[offset + 2 : start], "big")
            if start > size or start + length > size:
                break
            self.frame(data[offset] & 15, data[start : start + length])
            offset = start + length
        self.rest = data[offset:] if self.socket is not None else b""

    def frame(self, opcode: int, payload: bytes) -> None:
        """Take one frame."""
        if opcode == TEXT:
            self.herd.texts += 1
            if self.on_text is not None:
                self.on_text(self, payload)
        elif opcode == PING:
            self.herd.pings += 1
            self.write(masked(PONG, payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else 1005
            self.write(masked(CLOSE, payload[:2]))
            if code in FINAL:
                self.stays = False
            self.lose(f"close {code}")

    def write(self, data: bytes) -> None:
        """Send, in one piece or not at all: what these clients say is smaller than a socket's buffer."""
        try:
            if self.socket is not None and self.socket.send(data) != len(data):
                self.lose("full buffer")
        except OSError as error:
            self.lose(f"errno {error.errno}")

    def say(self, message: Any) -> None:
        """Send one message as JSON."""
        self.write(masked(TEXT, json.dumps(message, separators=(",", ":")).encode()))

    def leave(self, rude: bool = False) -> None:
        """Go for good, with a goodbye or with a reset."""
        self.stays = False
        if self.socket is None:
            return
        if rude:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.write(masked(CLOSE, b"\x03\xe8"))
        if self.socket is not None:
            self.lose("left")

    def lose(self, why: str) -> None:
        """The connection is over."""
        if self.socket is None:
            return
        herd = self.herd
        herd.forget(self)
        was_open = self.state is OPEN
        self.state, self.rest = AWAY, b""
        herd.ends[why] += 1
        herd.lost(self, was_open)
        if self.stays:
            if was_open and time.monotonic() - self.opened_at >= STEADY_AFTER:
                self.attempts = 0
            self.attempts += 1
            herd.later(retry_delay(self.attempts), self.connect)


class Herd:
    """All clients of one process.

    :param port: where the server listens on 127.0.0.1.
    :param token: what they all show.
    :ivar open: how many are open now.
    :ivar ends: how connections ended, by reason.
    :ivar attempts: when each connection was begun.
    """

    def __init__(self, port: int, token: str):
        self.port = port
        self.opening = (
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: ekNvbW0gcmF3IGNsaWVudA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()
        self.poll = select.epoll()
        self.members: dict[int, Member] = {}
        self.open = self.texts = self.pings = 0
        self.most = 0
        self.ends: Counter[str] = Counter()
        self.attempts: list[float] = []
        self._numbers = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []

    def join(self, stays: bool = False) -> Member:
        """A new client, which connects now."""
        member = Member(self, next(self._numbers), stays)
        member.connect()
        return member

    def watch(self, member: Member, events: int) -> None:
        self.members[member.socket.fileno()] = member
        self.poll.register(member.socket.fileno(), events)

    def forget(self, member: Member) -> None:
        del self.members[member.socket.fileno()]
        self.poll.unregister(member.socket.fileno())
        member.socket.close()
        member.socket = None

    def opened(self, member: Member) -> None:
        self.open += 1
        self.most = max(self.most, self.open)

    def lost(self, member: Member, was_open: bool) -> None:
        self.open -= was_open

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call ``function`` after ``seconds`` of :meth:`run`."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), function))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let everything happen for so long, or until something holds; whether it does."""
        end = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= end:
                return False
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            due = min(end, self._timers[0][0]) if self._timers else end
            for number, events in self.poll.poll(min(0.2, max(0.0, due - time.monotonic())), 512):
                if (member := self.members.get(number)) is not None:
                    member.ready(events)
        return True

    def close(self) -> None:
        """Everybody leaves; timers are forgotten."""
        self._timers.clear()
        for member in list(self.members.values()):
            member.leave()
