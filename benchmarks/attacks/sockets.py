"""What hostile sockets send, admitted or not, as fast as they can: bytes, whatever they mean."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from herd import PING, TEXT, masked

from attacks.visitors import BUSY, REST, handshake

KIB = 1024
BINARY = 2


def fragment(payload: bytes, first: bool = False) -> bytes:
    """A frame of a message that does not end."""
    frame = masked(TEXT if first else 0, payload)
    return bytes((frame[0] & 0x7F,)) + frame[1:]


@dataclass(frozen=True)
class Attack:
    """What some sockets do, all at once and over and over.

    :ivar sockets: how many there are.
    :ivar flood: what each sends without an end; nothing at all if it is empty.
    :ivar opening: ``client`` for an admitted one, ``twice`` for two handshakes in one piece, ``none`` for no word.
    :ivar first: sent once, before the flood.
    :ivar reads: whether it takes what the server sends.
    :ivar drops: whether it leaves with a reset as soon as it is connected.
    :ivar rate: connections a second at most; more of them fill the core, and that is what they cost everybody.
    :ivar broadcasts: 16 KiB messages a second that the server has to send everybody meanwhile.
    :ivar path: what is asked for in plain HTTP, with a wrong token, in the place of ``opening``; from one address.
    :ivar growth: MB that the server may grow by.
    """

    sockets: int = 1
    flood: bytes = b""
    opening: str = "client"
    first: bytes = b""
    reads: bool = True
    drops: bool = False
    rate: int = 1000
    broadcasts: int = 0
    path: str = ""
    growth: float = 5.0
    databases = False
    listeners = 0
    writes = False

    @property
    def options(self) -> tuple[str, ...]:
        """What the server is started with."""
        return ("--broadcast", "all") if self.broadcasts else ()

    def attacker(self, port: int, tokens: dict[str, str]) -> Attacker:
        """The other process."""
        return Attacker(self, port, tokens)


PINGS = masked(PING, b"p" * 100) * 500
EMPTY_PINGS = masked(PING, b"") * 10_000
TINY = masked(TEXT, b'{"zKey":"ping"}') * 2000
ECHO = masked(TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 60_000}).encode())

ATTACKS = {
    "nothing": Attack(sockets=0),
    "endless-headers-20": Attack(20, b"y" * 64 * KIB, "none", b"GET / HTTP/1.1\r\nX: "),
    "empty-fragments": Attack(1, fragment(b"") * 10_000, first=fragment(b"a", first=True)),
    "1-byte-fragments": Attack(1, fragment(b"a") * 10_000, first=fragment(b"a", first=True)),
    "pings": Attack(1, PINGS),
    "pings-never-read": Attack(1, PINGS, reads=False),
    "pings-after-goodbye-30": Attack(30, EMPTY_PINGS, first=masked(BINARY, b"x")),
    "tiny-messages": Attack(1, TINY),
    "echo-never-read": Attack(1, ECHO, reads=False),
    "stalled-reader": Attack(1, reads=False, broadcasts=200),
    "stalled-readers-20": Attack(20, reads=False, broadcasts=200, growth=30.0),
    "stalled-readers-100": Attack(100, reads=False, broadcasts=200, growth=120.0),
    "silent-sockets-400": Attack(400, opening="none"),
    "pipelined-handshakes": Attack(8, opening="twice"),
    "connect-drop-storm": Attack(8, opening="client", drops=True, rate=1500),
    "guesses-at-metrics": Attack(8, path="/metrics", opening="none"),
}


class Attacker:
    """The other process: all sockets of one attack on one epoll."""

    def __init__(self, attack: Attack, port: int, tokens: dict[str, str]):
        self.attack, self.port = attack, port
        self.authors = [handshake(port, token) for name, token in tokens.items() if name.startswith("author")]
        opening = handshake(port, tokens["attacker"])
        self.first = {"client": opening, "twice": opening * 2, "none": b""}[attack.opening] + attack.first
        if attack.path:
            self.first = (
                f"GET {attack.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer guess\r\n\r\n".encode()
            )
        self.poll = select.epoll()
        self.sockets: dict[int, tuple[socket.socket, memoryview]] = {}
        self.connections = self.sent = 0

    def join(self) -> None:
        """One more socket, of an address of its own: no limit by address helps the server."""
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 if not self.attack.reads else 256 * KIB)
        number = self.connections
        if not self.attack.path:
            one.bind((f"127.{1 + (number >> 16) % 250}.{number >> 8 & 255}.{1 + number % 250}", 0))
        self.connections += 1
        try:
            one.connect(("127.0.0.1", self.port))
        except OSError:
            one.close()
            return
        one.setblocking(False)
        events = select.EPOLLRDHUP | (select.EPOLLIN if self.attack.reads else 0)
        if self.first or self.attack.flood:
            events |= select.EPOLLOUT
        self.poll.register(one, events)
        self.sockets[one.fileno()] = one, memoryview(self.first)

    def leave(self, number: int) -> None:
        one, _ = self.sockets.pop(number)
        if self.attack.drops:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()

    def act(self, number: int, events: int) -> None:
        """Say what there is to say; go when the server wants it."""
        one, rest = self.sockets[number]
        try:
            if events & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
                raise ConnectionError
            if events & select.EPOLLIN and not one.recv(256 * KIB):
                raise ConnectionError
            if events & select.EPOLLOUT:
                if not rest and self.attack.flood:
                    rest = memoryview(self.attack.flood)
                taken = one.send(rest)
                self.sent += taken
                self.sockets[number] = one, rest[taken:]
                if len(rest) == taken and not self.attack.flood:
                    self.poll.modify(
                        one,
                        events & ~select.EPOLLOUT | select.EPOLLRDHUP | (select.EPOLLIN if self.attack.reads else 0),
                    )
                    if self.attack.drops:
                        raise ConnectionError
        except BlockingIOError:
            pass
        except OSError:
            self.leave(number)

    def run(self, seconds: float) -> dict[str, Any]:
        """Attack for so long; what came of it."""
        authors = []
        # As many as it takes for each to keep within what one user may tell others.
        for opening in self.authors if self.attack.broadcasts else []:
            authors.append(author := socket.create_connection(("127.0.0.1", self.port)))
            author.sendall(opening)
            author.recv(64 * KIB)
            author.setblocking(False)
        message = masked(TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 16 * KIB}).encode())
        begun = time.monotonic()
        announced, rested = 0, begun
        while (passed := time.monotonic() - begun) < seconds:
            while len(self.sockets) < self.attack.sockets and self.connections <= self.attack.rate * passed:
                self.join()
            # The system stops whoever fills a core in the real-time class, and with it the probe on the same core.
            if time.monotonic() - rested > BUSY:
                time.sleep(REST)
                rested = time.monotonic()
            for number, events in self.poll.poll(0.002):
                self.act(number, events)
            try:
                while authors and announced < passed * self.attack.broadcasts:
                    author = authors[announced % len(authors)]
                    author.setblocking(True)
                    author.sendall(message)
                    author.setblocking(False)
                    announced += 1
                for author in authors:
                    with suppress(BlockingIOError):
                        author.recv(1 << 20)
            except ConnectionError:
                # The server has ended.
                authors = []
        return {"connections": self.connections, "MB sent": self.sent // 1_000_000, "broadcasts": announced}
