"""What the others notice: a user who asks for a little at even intervals, and measures how long each takes."""

from __future__ import annotations

import http.client
import os
import re
import select
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
_ID = re.compile(rb'"_requestId": ?(\d+)}$')


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

    def take(self) -> Iterator[tuple[int, str]]:
        """The numbers of what is answered by now, each with its error or an empty text; what else comes is passed over.

        :raises HungUp: when the server ended the connection.
        """
        data = self.socket.recv(1 << 20)
        if not data:
            raise HungUp("end of stream")
        for opcode, _, payload in self.frames.feed(data):
            if opcode == PING:
                self.socket.sendall(masked(PONG, payload))
            elif opcode == CLOSE:
                raise HungUp(f"close {int.from_bytes(payload[:2], 'big')} {payload[2:].decode(errors='replace')}")
            elif found := _ID.search(payload):
                yield int(found[1]), payload.decode(errors="replace")[:160] if payload.startswith(b'{"error"') else ""

    def call(self, key: str, horizontal: Any = None) -> None:
        """Ask, and wait for the answer.

        :raises Refused: with the text of an error.
        """
        number = next(self._ids)
        self.socket.sendall(message(key, horizontal, _requestId=number))
        while True:
            for answered, error in self.take():
                if answered == number and error:
                    raise Refused(error)
                if answered == number:
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
    """Asks for one thing every so often, in a thread, and keeps what came of it.

    :ivar samples: when each was due, how long it took, and what went wrong.
    """

    #: Whether its thread runs before the rest of the machine.
    urgent = True

    def __init__(self, name: str, interval: float):
        super().__init__(name=name, daemon=True)
        self.interval = interval
        self.samples: list[tuple[float, float, str]] = []
        self.stopped = threading.Event()
        #: When those were due that wait for an answer, by their number.
        self.waiting: dict[int, float] = {}

    def run(self) -> None:
        if self.urgent:
            with suppress(AttributeError, PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
        self.ask_and_ask()

    def ask_and_ask(self) -> None:
        """Ask until it is stopped."""
        raise NotImplementedError

    def answered(self, number: int, error: str = "") -> None:
        """A request has its answer."""
        due = self.waiting.pop(number)
        self.samples.append((due, time.monotonic() - due, error))

    def figures(self, begun: float, ended: float) -> Figures:
        """Of the requests that were due in between; those that wait still count as long as they have."""
        now = time.monotonic()
        found = [*self.samples, *((due, now - due, "") for due in list(self.waiting.values()))]
        return Figures.of([each for each in found if begun <= each[0] < ended])


class Steps(Line):
    """One that connects anew for each request: ``ask`` does it, and fails in its own way."""

    def __init__(self, name: str, interval: float, ask: Callable[[], None]):
        super().__init__(name, interval)
        self.ask = ask

    def ask_and_ask(self) -> None:
        begun = time.monotonic()
        for number in count():
            due = begun + number * self.interval
            if self.stopped.wait(max(0.0, due - time.monotonic())):
                return
            self.waiting[number] = due
            try:
                self.ask()
                error = ""
            except (Refused, HungUp, OSError, http.client.HTTPException, psycopg.Error) as failure:
                error = f"{type(failure).__name__}: {str(failure).strip()[:110]}"
            self.answered(number, error)


class Requests(Line):
    """One connection that asks when it is time, whatever it still waits for, but for no more than it may at once.

    :param connect: makes the connection.
    :param key: what is asked for, with ``horizontal``.
    """

    AT_ONCE = 48

    def __init__(self, name: str, interval: float, connect: Callable[[], Caller], key: str, horizontal: Any):
        super().__init__(name, interval)
        self.connect = connect
        self.key, self.horizontal = key, horizontal
        self._numbers = count(1)

    def ask_and_ask(self) -> None:
        caller: Caller | None = None
        due = time.monotonic()
        while not self.stopped.is_set():
            try:
                caller = caller or self.connect()
                while len(self.waiting) < self.AT_ONCE and due <= time.monotonic():
                    number = next(self._numbers)
                    self.waiting[number] = due
                    due += self.interval
                    caller.socket.sendall(message(self.key, self.horizontal, _requestId=number))
                pause = self.interval if len(self.waiting) >= self.AT_ONCE else max(0.0, due - time.monotonic())
                if select.select([caller.socket], [], [], pause)[0]:
                    for number, error in caller.take():
                        self.answered(number, error)
            except (HungUp, OSError) as failure:
                caller = None
                for number in list(self.waiting):
                    self.answered(number, f"{type(failure).__name__}: {str(failure).strip()[:110]}")
                due = max(due, time.monotonic())


class Probe:
    """All that is watched of the user ``other``: pings, a row that is read, rows that are made, logins, health."""

    def __init__(self, stage: Stage, urgent: bool):
        port, token = stage.server.port, stage.tokens["other"]

        def visit() -> Caller:
            return Caller(port, token)

        def log_in() -> None:
            visitor = visit()
            try:
                visitor.call("ping")
            finally:
                visitor.close()

        def health() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                connection.request("GET", "/health")
                status = connection.getresponse().status
            finally:
                connection.close()
            if status != 200:
                raise Refused(f"/health {status}")

        def other_program() -> None:
            with psycopg.connect(stage.url, connect_timeout=10) as connection:
                connection.execute("SELECT 1")

        first = {"where": {"id": 1}}
        new = {"values": {"title": "a note"}}
        lines: list[Line] = [
            Requests("ping", 0.005, visit, "ping", "x"),
            Requests("read", 0.02, visit, "read_Notes", first),
            Requests("create", 0.05, visit, "create_Notes", new),
            Requests("function", 0.05, visit, "zFunc", "zFunc(quick)"),
            Steps("login", 0.2, log_in),
            Steps("health", 0.5, health),
        ]
        if not stage.url.startswith("sqlite"):
            lines.append(Steps("program", 0.5, other_program))
        self.lines = {line.name: line for line in lines}
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
