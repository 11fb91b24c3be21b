"""A small blocking client of Redis, which has nothing in common with zComm's own."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

__all__ = ["PATIENCE", "Client", "ReplyError"]

#: Seconds that a reply may take. Less than the limit of a test, so that the test says what did not answer.
PATIENCE = 20.0


class ReplyError(Exception):
    """The server answered a command with an error; its text is the server's."""

    @property
    def code(self) -> str:
        """Its first word, such as ``MOVED``."""
        return str(self).partition(" ")[0]


class Client:
    """One connection. Text is UTF-8 in both directions; bytes that are none come as surrogates.

    It ends with the ``with`` block that it is used in.

    :ivar connection: its socket.
    """

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._stream = connection.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, whatever still comes."""
        with suppress(OSError):
            self._stream.close()
        self.connection.close()

    def call(self, *words: object) -> Any:
        """Send a command and wait for its reply.

        :raises ReplyError: when it is an error; within a list errors are values.
        """
        self.send(*words)
        return self.reply()

    def calls(self, *commands: Sequence[object]) -> list[Any]:
        """Send all commands at once; their replies, errors among them."""
        self.connection.sendall(b"".join(encode(command) for command in commands))
        return [read(self._stream) for _ in commands]

    def send(self, *words: object) -> None:
        """Send a command without waiting for its reply."""
        self.connection.sendall(encode(words))

    def reply(self) -> Any:
        """Wait for the next reply, or for what the server pushes to a subscriber."""
        answer = read(self._stream)
        if isinstance(answer, ReplyError):
            raise answer
        return answer


def encode(words: Sequence[object]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape") for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def read(stream: Any) -> Any:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server hung up")
    mark, text = line[:1], line[1:-2].decode("utf-8", "surrogateescape")
    if mark == b"$":
        return None if text == "-1" else exactly(stream, int(text) + 2)[:-2].decode("utf-8", "surrogateescape")
    if mark == b"*":
        return None if text == "-1" else [read(stream) for _ in range(int(text))]
    if mark == b":":
        return int(text)
    if mark == b"+":
        return text
    if mark == b"-":
        return ReplyError(text)
    raise ValueError(f"no reply begins with {line[:20]!r}")


def exactly(stream: Any, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ConnectionError("the server hung up in the middle of a reply")
    return bytes(data)
