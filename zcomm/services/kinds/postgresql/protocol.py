"""The questions to a PostgreSQL, by its first messages: no password is needed, no log line written."""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.services.machine.query import Address, NoAnswer, ask
from zcomm.services.status import Health
from zcomm.services.supervision.probes import Reply

__all__ = ["ask_postgresql", "parse_postgresql", "speaks_postgresql"]

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_PROTOCOL_3 = 196608


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
