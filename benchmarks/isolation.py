"""What one hostile client costs the others: their latency and the server's memory, under each attack.

::

    python benchmarks/isolation.py                    # every attack, a table
    python benchmarks/isolation.py empty-fragments    # one of them
    python benchmarks/isolation.py --seconds 20 --json

For each attack there is a new ``twistd zcomm`` with its defaults on core 0; the attack runs in a process of
its own on core 1, as fast as it can, and comes back as soon as the server has ended it. A client in this
process, also on core 1 and before the attack in its scheduler's eyes, sends a ping command every 5 ms and
measures the time to the reply. Memory is the peak that the system counted (``VmHWM``) over what the server had
before. The exit status is 1 when a bound does not hold. Linux only, as root for the scheduling; elsewhere the
figures are those of a machine that shares its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd import PING, TEXT, masked
from soak import Server

#: For every attack: milliseconds of another client's 99th percentile, MB that the server may grow by.
P99_MS, GROWTH_MB = 20.0, 5.0
INTERVAL = 0.005
#: Seconds that an attack goes on, and rests, in turn.
BUSY, REST = 0.009, 0.001
KIB = 1024


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
    growth: float = GROWTH_MB


PINGS = masked(PING, b"p" * 100) * 500
TINY = masked(TEXT, b'{"zKey":"ping"}') * 2000
ECHO = masked(TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 60_000}).encode())

ATTACKS = {
    "nothing": Attack(sockets=0),
    "endless-headers-20": Attack(20, b"y" * 64 * KIB, "none", b"GET / HTTP/1.1\r\nX: "),
    "empty-fragments": Attack(1, fragment(b"") * 10_000, first=fragment(b"a", first=True)),
    "1-byte-fragments": Attack(1, fragment(b"a") * 10_000, first=fragment(b"a", first=True)),
    "pings": Attack(1, PINGS),
    "pings-never-read": Attack(1, PINGS, reads=False),
    "tiny-messages": Attack(1, TINY),
    "echo-never-read": Attack(1, ECHO, reads=False),
    "stalled-reader": Attack(1, reads=False, broadcasts=200),
    "stalled-readers-20": Attack(20, reads=False, broadcasts=200, growth=30.0),
    "stalled-readers-100": Attack(100, reads=False, broadcasts=200, growth=120.0),
    "silent-sockets-400": Attack(400, opening="none"),
    "pipelined-handshakes": Attack(8, opening="twice"),
    "connect-drop-storm": Attack(8, opening="client", drops=True, rate=1500),
}


class Attacker:
    """The other process: all sockets of one attack on one epoll."""

    def __init__(self, attack: Attack, port: int, token: str):
        self.attack, self.port = attack, port
        handshake = (
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: ekNvbW0gcmF3IGNsaWVudA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()
        self.first = {"client": handshake, "twice": handshake * 2, "none": b""}[attack.opening] + attack.first
        self.handshake = handshake
        self.poll = select.epoll()
        self.sockets: dict[int, tuple[socket.socket, memoryview]] = {}
        self.connections = self.sent = 0

    def join(self) -> None:
        """One more socket, of an address of its own: no limit by address helps the server."""
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096 if not self.attack.reads else 256 * KIB)
        number = self.connections
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

    def run(self, seconds: float) -> dict[str, int]:
        """Attack for so long; what came of it."""
        author = None
        if self.attack.broadcasts:
            author = socket.create_connection(("127.0.0.1", self.port))
            author.sendall(self.handshake)
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
            if author is not None:
                while announced < passed * self.attack.broadcasts:
                    author.setblocking(True)
                    author.sendall(message)
                    author.setblocking(False)
                    announced += 1
                try:
                    author.recv(1 << 20)
                except BlockingIOError:
                    pass
        return {"connections": self.connections, "MB sent": self.sent // 1_000_000, "broadcasts": announced}


class Probe:
    """Another client, which asks for a ping every few milliseconds and does nothing else."""

    def __init__(self, server: Server):
        self.socket = socket.create_connection(("127.0.0.1", server.port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            (
                f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: ekNvbW0gcmF3IGNsaWVudA==\r\nSec-WebSocket-Version: 13\r\n"
                f"Authorization: Bearer {server.token}\r\n\r\n"
            ).encode()
        )
        if b" 101 " not in self.socket.recv(64 * KIB):
            raise RuntimeError("the probe was not let in")
        self.number = 0

    def ask(self, horizontal: str = "x") -> float:
        """Seconds from the request to its reply; broadcasts and pings in between are passed over."""
        self.number += 1
        begun = time.monotonic()
        self.socket.sendall(
            masked(TEXT, json.dumps({"zKey": "ping", "zHorizontal": horizontal, "_requestId": self.number}).encode())
        )
        wanted = f'"_requestId":{self.number}}}'.encode()
        tail = b""
        while True:
            data = self.socket.recv(1 << 20)
            if not data:
                raise RuntimeError("the probe was hung up on")
            tail = tail[-64:] + data
            if wanted in tail:
                return time.monotonic() - begun

    def watch(self, seconds: float) -> list[float]:
        """Latencies, one every few milliseconds, from the moment that each request was due.

        A request that had to wait for the one before it waited too: otherwise one long stall would count once.
        """
        found, begun = [], time.monotonic()
        for number in range(int(seconds / INTERVAL)):
            due = begun + number * INTERVAL
            time.sleep(max(0.0, due - time.monotonic()))
            self.ask()
            found.append(time.monotonic() - due)
        return found


def urgent(process: int, priority: int) -> None:
    """Let a process run before those of the rest of the machine, where we may say so."""
    try:
        os.sched_setscheduler(process, os.SCHED_FIFO, os.sched_param(priority))
    except (AttributeError, PermissionError):
        pass


def measure(name: str, seconds: float) -> dict[str, Any]:
    """One attack on one server."""
    attack = ATTACKS[name]
    with tempfile.TemporaryDirectory(prefix="zcomm-isolation-") as directory:
        server = Server(
            Path(directory), *(["--broadcast", "all", "--broadcast-rate", "1000000000"] if attack.broadcasts else [])
        )
        try:
            urgent(server.process.pid, 10)
            probe = Probe(server)
            for _ in range(5):
                probe.ask("x" * 900_000)
            probe.watch(1.0)
            (Path("/proc") / str(server.process.pid) / "clear_refs").write_text("5")
            before = server.usage()
            attacking = subprocess.Popen(
                [sys.executable, __file__, "--attack", name, "--port", str(server.port), "--seconds", str(seconds + 1)],
                env={**os.environ, "ZCOMM_TOKEN": server.token},
                stdout=subprocess.PIPE,
            )
            urgent(attacking.pid, 5)
            time.sleep(0.5)
            latencies = sorted(probe.watch(seconds))
            after = server.usage()
            told = json.loads(attacking.communicate(timeout=60)[0])
            drops = {
                key.removeprefix("drop: "): int(value)
                for key, value in server.metrics().items()
                if key.startswith("drop: ")
            }
        finally:
            server.stop()
        return {
            "p50 ms": round(statistics.median(latencies) * 1000, 2),
            "p99 ms": round(latencies[len(latencies) * 99 // 100] * 1000, 2),
            "max ms": round(latencies[-1] * 1000, 2),
            "grown MB": round((after["peak"] - before["rss"]) * KIB / 1e6, 1),
            "processor share": round((after["cpu"] - before["cpu"]) / seconds, 2),
            "samples": len(latencies),
            **told,
            "drops": drops,
            "complaints": server.complaints(),
        }


def main() -> int:
    """Attack, or measure attacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], help="[all]")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each [8]")
    parser.add_argument("--json", action="store_true", help="everything that was measured")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if arguments.attack:
        print(
            json.dumps(
                Attacker(ATTACKS[arguments.attack], arguments.port, os.environ["ZCOMM_TOKEN"]).run(arguments.seconds)
            )
        )
        return 0
    urgent(0, 20)
    results, wrong = {}, []
    for name in arguments.attacks or ATTACKS:
        results[name] = one = measure(name, arguments.seconds)
        if one["p99 ms"] > P99_MS or one["grown MB"] > ATTACKS[name].growth or one["complaints"]:
            wrong.append(name)
        if not arguments.json:
            print(
                f"{name:22} p50 {one['p50 ms']:6.2f} ms  p99 {one['p99 ms']:6.2f} ms  +{one['grown MB']:5.1f} MB  "
                f"{one['connections']:6} connections  {one['drops']}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps({"results": results, "wrong": wrong}, indent=1))
    elif wrong:
        print("beyond the bounds:", ", ".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
