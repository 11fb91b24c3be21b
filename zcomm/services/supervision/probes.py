"""Asking a server whether it works, in its own language.

An open port proves nothing: PostgreSQL accepts connections before it is ready and all through a recovery,
a stopped process still accepts, and the port may be a stranger's. Each question here ends in a
:class:`Reply`, or fails with :class:`~zcomm.services.supervision.query.NoAnswer`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.services.status import Health
from zcomm.services.supervision.query import NoAnswer, ask

__all__ = [
    "Reply",
    "ask_http",
    "ask_postgresql",
    "ask_redis",
    "ask_tcp",
    "encode_resp",
    "parse_postgresql",
    "parse_resp",
    "read_info",
    "speaks_postgresql",
]

Address = str | tuple[str, int]
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_PROTOCOL_3 = 196608


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said about itself.

    :ivar ready: whether it does its work.
    :ivar detail: in its own words, where it complained.
    :ivar facts: further facts (``run_id``, ``loading_eta_seconds``).
    """

    ready: bool
    health: Health = Health.HEALTHY
    detail: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


# -- PostgreSQL ------------------------------------------------------------------------------------------


def _startup_packet(user: str, database: str) -> bytes:
    words = ["user", user, "database", database, "application_name", "zcomm probe"]
    body = struct.pack("!i", _PROTOCOL_3) + b"".join(word.encode() + b"\0" for word in words) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def parse_postgresql(received: bytes) -> Reply | None:
    """The first message after a startup packet. 57P03 is "not now"; any other answer is life."""
    if len(received) < 5:
        return None
    kind, length = received[:1], struct.unpack("!i", received[1:5])[0]
    if kind not in (b"R", b"E", b"N", b"v") or not 4 <= length < 65536:
        raise NoAnswer("what answers is no PostgreSQL")
    if kind != b"E":
        return Reply(True)
    if len(received) < length + 1:
        return None
    fields = received[5 : length + 1].split(b"\0")
    parts = {part[:1]: part[1:].decode("utf-8", "replace") for part in fields if part}
    code, text = parts.get(b"C", ""), parts.get(b"M", "")
    if code == "57P03":
        return Reply(False, Health.LOADING, text)
    if code == "53300":
        return Reply(True, Health.SATURATED, text)
    return Reply(True, Health.DEGRADED, text)


def ask_postgresql(reactor: Any, address: Address, user: str, database: str, timeout: float) -> Deferred[Reply]:
    """Knock with a startup packet and leave at the answer; takes no password and writes no log line."""
    return ask(reactor, address, _startup_packet(user, database), parse_postgresql, timeout)


def speaks_postgresql(reactor: Any, address: Address, timeout: float) -> Deferred[bool]:
    """Whether a PostgreSQL is there: its answer to an SSLRequest, which needs nothing and logs nothing."""

    def parse(received: bytes) -> bool | None:
        # A stranger may send a greeting that begins with N or S; PostgreSQL sends the one byte.
        return (received in (b"S", b"N")) if received else None

    return ask(reactor, address, _SSL_REQUEST, parse, timeout)


# -- Redis -----------------------------------------------------------------------------------------------


def encode_resp(*words: str) -> bytes:
    """One command for Redis."""
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


def parse_resp(received: bytes, count: int) -> list[str] | None:
    """The first ``count`` simple replies, errors with their ``-``; ``None`` while incomplete."""
    replies: list[str] = []
    rest = received
    while len(replies) < count:
        line, found, after = rest.partition(b"\r\n")
        if not found:
            return None
        mark, text = line[:1], line[1:]
        if mark == b"$":
            try:
                size = int(text)
            except ValueError:
                raise NoAnswer("what answers is no Redis") from None
            if size < 0:
                replies.append("")
                rest = after
                continue
            if len(after) < size + 2:
                return None
            replies.append(after[:size].decode("utf-8", "replace"))
            rest = after[size + 2 :]
        elif mark in (b"+", b"-", b":"):
            replies.append(("-" if mark == b"-" else "") + text.decode("utf-8", "replace"))
            rest = after
            # It says this to a client it has no room for, and hangs up.
            if text.startswith(b"ERR max number of clients"):
                return [replies[-1]] * count
        else:
            raise NoAnswer("what answers is no Redis")
    return replies


def read_info(text: str) -> dict[str, str]:
    """The ``name:value`` lines of INFO."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def ask_redis(reactor: Any, address: Address, password: str, timeout: float) -> Deferred[Reply]:
    """``AUTH``, ``PING`` and ``INFO`` in one go.

    ``PONG`` is ready; ``LOADING`` is starting; other complaints (``NOAUTH``, ``MISCONF``, ``BUSY``) come
    from a server that lives, with that as its health.
    """
    words = [encode_resp("AUTH", password)] if password else []
    request = b"".join([*words, encode_resp("PING"), encode_resp("INFO")])

    def parse(received: bytes) -> Reply | None:
        replies = parse_resp(received, len(words) + 2)
        return None if replies is None else _judge_redis(replies[len(words) :], replies[0])

    return ask(reactor, address, request, parse, timeout)


#: What INFO says of the last time the data were written to disk.
_SAVED = ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status")


def _judge_redis(replies: Sequence[str], first: str) -> Reply:
    ping, info = replies
    facts = read_info(info)
    if ping.startswith("-LOADING"):
        return Reply(False, Health.LOADING, ping[1:], facts)
    if "max number of clients" in ping:
        return Reply(True, Health.SATURATED, ping[1:], facts)
    if ping.startswith("-"):
        return Reply(True, Health.DEGRADED, ping[1:], facts)
    if any(facts.get(name, "ok") != "ok" for name in _SAVED):
        return Reply(True, Health.DEGRADED, "it cannot save its data; see its log", facts)
    return Reply(True, Health.HEALTHY, "", facts)


# -- anything else ---------------------------------------------------------------------------------------


def ask_tcp(reactor: Any, address: Address, timeout: float) -> Deferred[Reply]:
    """Whether something accepts; the weakest question, for servers that offer no better one."""
    return ask(reactor, address, b"", lambda _: Reply(True), timeout)


def ask_http(reactor: Any, address: tuple[str, int], path: str, timeout: float) -> Deferred[Reply]:
    """Whether ``path`` is answered with a status below 500."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    request = f"GET {path} HTTP/1.0\r\nHost: {host}:{address[1]}\r\nUser-Agent: zcomm\r\n\r\n".encode()

    def parse(received: bytes) -> Reply | None:
        line, complete, _ = received.partition(b"\n")
        if not complete:
            return None
        found = re.match(rb"HTTP/\d(?:\.\d)? (\d{3})\b", line)
        if not found:
            raise NoAnswer("what answers is no HTTP server")
        status = int(found.group(1))
        return Reply(
            status < 500,
            Health.HEALTHY if status < 500 else Health.DEGRADED,
            "" if status < 500 else f"HTTP status {status} for {path}",
        )

    return ask(reactor, address, request, parse, timeout)
