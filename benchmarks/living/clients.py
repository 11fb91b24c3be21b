"""Clients: plain sockets that speak WebSocket, and the listener that counts the rows they are told of."""

from __future__ import annotations

import array
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cache
import herd
import servers

__all__ = ["Listener", "WebSocket"]

SOURCE = Path(__file__).with_name("listener.c")
#: Milliseconds between two pings, which go out in turn on as many connections as there are.
EVERY = 5
_PING = 2**63


class WebSocket:
    """A connection that waits for each answer, and has read nothing beyond it."""

    def __init__(self, port: int, path: str):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._exactly(1)
        if b" 101 " not in head:
            raise RuntimeError(f"refused: {head[:200]!r}")

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise RuntimeError("the server hung up")
            data += more
        return bytes(data)

    def say(self, message: dict[str, Any]) -> None:
        """Send a message."""
        self.socket.sendall(herd.masked(herd.TEXT, json.dumps(message).encode()))

    def hear(self) -> dict[str, Any]:
        """Wait for the next message."""
        while True:
            opcode, length = self._exactly(2)
            if length >= 126:
                length = int.from_bytes(self._exactly(2 if length == 126 else 8), "big")
            payload = self._exactly(length)
            if opcode & 15 == herd.TEXT:
                return json.loads(payload)  # type: ignore[no-any-return]
            if opcode & 15 == herd.CLOSE:
                raise RuntimeError(f"the server closed: {payload[2:]!r}")

    def ask(self, messages: Sequence[dict[str, Any]]) -> list[Any]:
        """Ask all of these at once, and wait for their results.

        :raises RuntimeError: for one that is an error.
        """
        for number, message in enumerate(messages):
            self.say({**message, "_requestId": number})
        results: list[Any] = [None] * len(messages)
        missing = len(messages)
        while missing:
            answer = self.hear()
            if "_requestId" in answer:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                results[answer["_requestId"]] = answer["result"]
                missing -= 1
        return results


class Listener:
    """The process that listens on connections that others have made.

    :param told: those that are told of rows.
    :param pinged: those that ask for a ping.
    :param ping: what they send, of which each answer comes in one piece.
    """

    def __init__(self, told: Sequence[socket.socket], pinged: Sequence[socket.socket], ping: bytes):
        program = cache.compiled(SOURCE)
        self._file = tempfile.NamedTemporaryFile(prefix="zcomm-bench-")
        self._read = 0
        numbers = [one.fileno() for one in (*pinged, *told)]
        self._process = subprocess.Popen(
            servers.pinned(
                1, [str(program), self._file.name, ping.hex(), str(EVERY), str(len(pinged)), *map(str, numbers)]
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=numbers,
            # Before those who write: what waits for it would seem late.
            preexec_fn=lambda: servers.undisturbed(3),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def records(self, pings: bool) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """What came since the last time: rows as their stamps and when, pings as how long and when; all nanoseconds.

        :param pings: whether there are to be pings from now on.
        :raises RuntimeError: when a server has hung up.
        """
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        if pipe_in is None or pipe_out is None:
            raise RuntimeError("there are no pipes")
        pipe_in.write(b"on\n" if pings else b"off\n")
        pipe_in.flush()
        if not pipe_out.readline():
            raise RuntimeError("the listener has ended")
        with open(self._file.name, "rb") as file:
            file.seek(self._read)
            numbers = array.array("Q", file.read())
        self._read += 8 * len(numbers)
        both = zip(numbers[::2], numbers[1::2], strict=True)
        rows, answers = [], []
        for what, when in both:
            if what >= _PING:
                answers.append((what - _PING, when))
            else:
                rows.append((what, when))
        return rows, answers

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._file.close()


def spent(pid: int) -> float:
    """Seconds of the processor that a process has used, by all of its threads."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1e9


def until(condition: Any, seconds: float, what: str) -> None:
    """Wait until ``condition()`` is true.

    :raises RuntimeError: saying ``what`` is missing.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(what)
        time.sleep(0.02)
    sys.stderr.flush()
