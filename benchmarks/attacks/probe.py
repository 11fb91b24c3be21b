"""What the others notice: a user who asks for a little at even intervals, and measures how long each takes."""

from __future__ import annotations

import http.client
import os
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import psycopg
from herd import CLOSE, PING, PONG, masked

from attacks.stage import Stage
from attacks.visitors import Frames, HungUp, handshake, message

#: Seconds after which an answer is given up.
PATIENCE = 40.0


class Refused(Exception):
    """An error in the place of an answer."""


class Caller:
    """A client that blocks.

    :param token: whose it is.
    """

    def __init__(self, port: int, token: str):
        self.frames = Frames()
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(handshake(port, token))
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(1)
            if not data:
                raise HungUp("during the handshake")
            head += data
        if b" 101 " not in head:
            raise HungUp(head[:40].decode("latin-1"))
        self._ids = count(1)

    def call(self, key: str, horizontal: Any = None) -> None:
        """Ask, and wait for the answer; what else comes is passed over.

        :raises Refused: with the code of an error.
        :raises HungUp: when the server ended the connection.
        """
        number = next(self._ids)
        self.socket.sendall(message(key, horizontal, _requestId=number))
        wanted = b'"_requestId":%d}' % number
        while True:
            data = self.socket.recv(1 << 20)
            if not data:
                raise HungUp("end of stream")
            found = False
            for opcode, _, payload in self.frames.feed(data):
                if opcode == PING:
                    self.socket.sendall(masked(PONG, payload))
                elif opcode == CLOSE:
                    raise HungUp(f"close {int.from_bytes(payload[:2], 'big')} {payload[2:].decode(errors='replace')}")
                elif payload.endswith(wanted):
                    found = True
                    if payload.startswith(b'{"error"'):
                        raise Refused(payload.decode(errors="replace")[:200])
            if found:
                return

    def close(self) -> None:
        self.socket.close()


@dataclass
class Figures:
    """What came of the requests of some seconds."""

    count: int
    p50: float
    p99: float
    most: float
    failures: Counter[str]

    @classmethod
    def of(cls, samples: list[tuple[float, float, str]]) -> Figures:
        """Of samples: when each was due, how long it took, and what went wrong."""
        times = sorted(seconds for _, seconds, _ in samples) or [0.0]
        return cls(
            len(samples),
            statistics.median(times),
            times[len(times) * 99 // 100],
            times[-1],
            Counter(error for _, _, error in samples if error),
        )

    def __str__(self) -> str:
        failed = f" FAILED {dict(self.failures)}" if self.failures else ""
        return (
            f"p50 {self.p50 * 1000:.1f} p99 {self.p99 * 1000:.1f} max {self.most * 1000:.0f} ms ({self.count}){failed}"
        )


class Line(threading.Thread):
    """Asks for one thing every so often, in a thread.

    A request that has to wait for the one before it waits from when it was due: otherwise one long stall would count
    once.

    :param connect: makes what ``ask`` is called with.
    :ivar samples: when each was due, how long it took, and what went wrong.
    """

    #: Whether its thread runs before the rest of the machine.
    urgent = True

    def __init__(self, name: str, interval: float, connect: Callable[[], Any], ask: Callable[[Any], None]):
        super().__init__(name=name, daemon=True)
        self.interval = interval
        self.connect = connect
        self.ask = ask
        self.samples: list[tuple[float, float, str]] = []
        self.stopped = threading.Event()
        self.busy_since = 0.0

    def run(self) -> None:
        if self.urgent:
            with suppress(AttributeError, PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
        link = None
        begun = time.monotonic()
        for number in count():
            due = begun + number * self.interval
            if self.stopped.wait(max(0.0, due - time.monotonic())):
                return
            self.busy_since = due
            error = ""
            try:
                if link is None:
                    link = self.connect()
                self.ask(link)
            except (Refused, HungUp, OSError, http.client.HTTPException, psycopg.Error) as failure:
                error = f"{type(failure).__name__}: {str(failure).strip()[:110]}"
                if not isinstance(failure, Refused):
                    link = None
            self.busy_since = 0.0
            self.samples.append((due, time.monotonic() - due, error))

    def figures(self, begun: float, ended: float) -> Figures:
        """Of the requests that were due in between; those that wait still count as long as they have."""
        found = [each for each in list(self.samples) if begun <= each[0] < ended]
        now = time.monotonic()
        due = self.busy_since
        while due and due < ended:
            if due >= begun:
                found.append((due, now - due, ""))
            due += self.interval
        return Figures.of(found)


class Probe:
    """All that is watched of the user ``other``: pings, a row that is read, rows that are made, logins, health."""

    def __init__(self, stage: Stage, urgent: bool):
        port, token = stage.server.port, stage.tokens["other"]

        def visit() -> Caller:
            return Caller(port, token)

        def log_in(_: Any) -> None:
            visitor = visit()
            try:
                visitor.call("ping")
            finally:
                visitor.close()

        def health(_: Any) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.request("GET", "/health")
                status = connection.getresponse().status
            finally:
                connection.close()
            if status != 200:
                raise Refused(f"/health {status}")

        def other_program(_: Any) -> None:
            with psycopg.connect(stage.url, connect_timeout=10) as connection:
                connection.execute("SELECT 1")

        first = {"where": {"id": 1}}
        new = {"values": {"title": "a note"}}
        self.lines = {
            "ping": Line("ping", 0.005, visit, lambda caller: caller.call("ping", "x")),
            "read": Line("read", 0.02, visit, lambda caller: caller.call("read_Notes", first)),
            "create": Line("create", 0.05, visit, lambda caller: caller.call("create_Notes", new)),
            "function": Line("function", 0.05, visit, lambda caller: caller.call("zFunc", "zFunc(quick)")),
            "login": Line("login", 0.2, lambda: True, log_in),
            "health": Line("health", 0.5, lambda: True, health),
        }
        if not stage.url.startswith("sqlite"):
            self.lines["program"] = Line("program", 0.5, lambda: True, other_program)

        for line in self.lines.values():
            line.urgent = urgent

    def start(self) -> None:
        for line in self.lines.values():
            line.start()

    def stop(self) -> None:
        """No more requests; those under way are left alone."""
        for line in self.lines.values():
            line.stopped.set()

    def figures(self, begun: float, ended: float) -> dict[str, Figures]:
        """Of each line."""
        return {name: line.figures(begun, ended) for name, line in self.lines.items()}
