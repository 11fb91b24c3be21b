"""What PostgreSQL answers, and names for its databases."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from zcomm.errors import (
    ConfigError,
)
from zcomm.services.kinds.postgresql.cluster import checked_name
from zcomm.services.kinds.postgresql.protocol import parse_postgresql
from zcomm.services.machine.query import NoAnswer
from zcomm.services.status import Health


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a'b", "a;b", "1a", "a" * 64, None, "é"])
def test_names_of_databases_that_are_none(name: Any):
    """Nothing that would have to be quoted."""
    with pytest.raises(ConfigError):
        checked_name("database", name)
    assert checked_name("database", "zolo_dev-2") == "zolo_dev-2"


def pg_message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def pg_error(code: str, text: str) -> bytes:
    return pg_message(b"E", b"SFATAL\0C" + code.encode() + b"\0M" + text.encode() + b"\0\0")


@pytest.mark.parametrize(
    ("answer", "ready", "health"),
    [
        (pg_message(b"R", struct.pack("!i", 10) + b"SCRAM-SHA-256\0\0"), True, Health.HEALTHY),
        (pg_error("57P03", "the database system is starting up"), False, Health.LOADING),
        (pg_error("53300", "sorry, too many clients already"), True, Health.SATURATED),
        (pg_error("28000", "no pg_hba.conf entry"), True, Health.DEGRADED),
    ],
)
def test_answers_of_postgresql(answer: bytes, ready: bool, health: Health):
    """ "Not now" is not ready; every other well-formed answer comes from a server that lives (PG20, PG22)."""
    reply = parse_postgresql(answer)
    assert (reply.ready, reply.health) == (ready, health)
    assert all(parse_postgresql(answer[:cut]) is None or answer[:1] != b"E" for cut in range(len(answer)))


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request", b"-ERR unknown\r\n", b"SSH-2.0-x\r\n", b"E\xff\xff\xff\xff"]
)
def test_strangers_are_no_postgresql(answer: bytes):
    """Whatever else listens there is told apart (PG8)."""
    with pytest.raises(NoAnswer):
        parse_postgresql(answer)
