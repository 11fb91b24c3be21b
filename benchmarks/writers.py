"""Writers of rows for :mod:`torture`, and which of the rows that were acknowledged are gone."""

from __future__ import annotations

import math
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import psycopg

#: Seconds for which Redis, with ``appendfsync everysec``, goes on acknowledging what it has not yet written
#: because the disk is busy; and as much again for a clock that a busy machine reads late.
POSTPONED = 2.0
LATE = 0.5


class Writer(threading.Thread):
    """Commits numbered rows as fast as the server lets it, and notes those that were acknowledged."""

    def __init__(self, connection: dict[str, Any]):
        super().__init__(daemon=True)
        self.connection = connection
        self.acknowledged: dict[int, float] = {}
        self.refused = 0
        self.over = threading.Event()
        self.next = 0

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.write()
            except (OSError, psycopg.Error, EOFError, ValueError):
                self.refused += 1
                self.over.wait(0.02)

    def write(self) -> None:
        raise NotImplementedError

    def missing(self) -> list[int]:
        """The acknowledged rows that are not there."""
        raise NotImplementedError


class PostgreSQLWriter(Writer):
    """One row, one transaction."""

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.connection["connection_string"], connect_timeout=5, autocommit=True)

    def write(self) -> None:
        with self.connect() as connection:
            connection.execute("create table if not exists rows (n bigint primary key)")
            while not self.over.is_set():
                number, self.next = self.next, self.next + 1
                connection.execute("insert into rows values (%s)", (number,))
                self.acknowledged[number] = time.monotonic()

    def missing(self) -> list[int]:
        with self.connect() as connection:
            there = {row[0] for row in connection.execute("select n from rows")}
        return [number for number in self.acknowledged if number not in there]


class RedisWriter(Writer):
    """One key, one SET."""

    def command(self, connection: socket.socket, *words: str) -> bytes:
        parts = [word.encode() for word in words]
        connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        answer = connection.makefile("rb")
        line = answer.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("Redis hung up")
        if line.startswith(b"-"):
            raise ValueError(line.decode())
        if line.startswith(b"*"):
            items = []
            for _ in range(int(line[1:])):
                items.append(answer.read(int(answer.readline()[1:]) + 2)[:-2])
            return b" ".join(items)
        return line[1:-2]

    def connect(self) -> socket.socket:
        connection = socket.create_connection((self.connection["host"], self.connection["port"]), 5)
        if self.connection.get("password"):
            self.command(connection, "AUTH", self.connection["password"])
        return connection

    def write(self) -> None:
        with self.connect() as connection:
            while not self.over.is_set():
                number, self.next = self.next, self.next + 1
                self.command(connection, "SET", f"row:{number}", "x")
                self.acknowledged[number] = time.monotonic()

    def missing(self) -> list[int]:
        with self.connect() as connection:
            return [
                number for number in self.acknowledged if self.command(connection, "EXISTS", f"row:{number}") != b"1"
            ]


@dataclass(frozen=True)
class Gap:
    """Acknowledged rows in a row that are gone, and when the rows around them were acknowledged.

    A clock alone does not tell on which side of a kill a row is: the last answer before it may be read after
    it. The rows are written one after the other, so their order does.
    """

    first: int
    last: int
    count: int
    seconds: float
    after: float
    before: float

    def is_excused(self, kills: list[tuple[float, float]]) -> bool:
        """Whether these were the last rows before a SIGKILL and no more than the server may have put off."""
        within = [kill for kill in kills if self.after <= kill[1] and kill[0] <= self.before]
        return bool(within) and self.seconds <= POSTPONED * len(within) + LATE

    def __str__(self) -> str:
        return f"{self.count} from {self.first} to {self.last}, acknowledged within {self.seconds:.3f} s"


def gaps(acknowledged: dict[int, float], missing: list[int]) -> list[Gap]:
    """The missing rows, those with no other row between them together."""
    found, gone, order = [], set(missing), sorted(acknowledged)
    place = 0
    while place < len(order):
        end = place
        while end < len(order) and order[end] in gone:
            end += 1
        if end > place:
            first, last = order[place], order[end - 1]
            found.append(
                Gap(
                    first,
                    last,
                    end - place,
                    acknowledged[last] - acknowledged[first],
                    acknowledged[order[place - 1]] if place else 0.0,
                    acknowledged[order[end]] if end < len(order) else math.inf,
                )
            )
        place = end + 1
    return found
