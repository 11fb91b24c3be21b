"""Asking a server whether it works: the answer, and the questions that any server may be asked.

An open port proves nothing: PostgreSQL accepts connections before it is ready and all through a recovery,
a stopped process still accepts, and the port may be a stranger's. So each kind has a question of its own beside
these; all end in a :class:`Reply`, or fail with :class:`~zcomm.services.machine.query.NoAnswer`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.services.machine.query import Address, NoAnswer, ask
from zcomm.services.status import Health

__all__ = ["Reply", "ask_http", "ask_tcp"]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a server about its own state.

    :ivar ready: whether it does its work.
    :ivar detail: in its own words, where it complained.
    :ivar facts: further facts (``run_id``, ``loading_eta_seconds``).
    """

    ready: bool
    health: Health = Health.HEALTHY
    detail: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


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
