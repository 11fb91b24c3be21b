"""The questions to a Redis or one of its forks, in its own protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.services.machine.query import Address, NoAnswer, ask
from zcomm.services.status import Health
from zcomm.services.supervision.probes import Reply

__all__ = ["ask_redis", "encode_resp", "parse_resp", "read_info"]


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
