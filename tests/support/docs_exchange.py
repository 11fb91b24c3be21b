"""Plays the exchanges of the documentation: ``>`` is sent, ``<`` must come, ``2>`` and ``2<`` are a second client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from support.rawclient import BlockingRawClient

__all__ = ["ANYTHING", "Line", "parse_exchange", "play", "same"]

#: Stands for any value; as a key, for any further keys.
ANYTHING = "…"
LINE = re.compile(r"(?P<who>\d?)(?P<direction>[<>]) (?P<payload>.+)\Z")
#: Stands for what came last under this key, in a message or in its result.
PLACEHOLDER = re.compile(r'"<([A-Za-z_]+)>"')


@dataclass(frozen=True)
class Line:
    """One message: which client's, whether the client sends it, and its text."""

    who: int
    sent: bool
    payload: str


def parse_exchange(text: str) -> list[Line]:
    """The lines of a block; a line that is none is an error."""
    found = []
    for line in text.strip().splitlines():
        match = LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of an exchange: {line!r}")
        found.append(Line(int(match["who"] or 1), match["direction"] == ">", match["payload"]))
    return found


def same(expected: Any, actual: Any) -> bool:
    """Whether ``actual`` is what was announced, types included."""
    if expected == ANYTHING:
        return True
    if isinstance(expected, dict) and isinstance(actual, dict):
        if ANYTHING in expected:
            expected = {key: value for key, value in expected.items() if key != ANYTHING}
            actual = {key: value for key, value in actual.items() if key in expected}
        return expected.keys() == actual.keys() and all(same(expected[key], actual[key]) for key in expected)
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    return type(expected) is type(actual) and expected == actual


def _is_live(message: dict[str, Any]) -> bool:
    return message.get("event") == "live"


def play(lines: list[Line], connect: Callable[[], BlockingRawClient]) -> None:
    """Send and compare in order; afterwards nothing more may have come to any of the clients.

    What one client hears in consecutive lines is compared once all of it has come.
    """
    clients = {who: connect() for who in sorted({line.who for line in lines})}
    seen: dict[str, str] = {}

    def filled(payload: str) -> str:
        return PLACEHOLDER.sub(lambda match: seen[match[1]], payload)

    try:
        for (who, is_sent), block in groupby(lines, key=lambda line: (line.who, line.sent)):
            payloads = [line.payload for line in block]
            if is_sent:
                for payload in payloads:
                    clients[who].send_text(filled(payload))
                continue
            # No order is promised between live events and the others.
            payloads.sort(key=lambda payload: _is_live(json.loads(payload)))
            came = sorted((clients[who].next_json() for _ in payloads), key=_is_live)
            for announced, actual in zip(payloads, came, strict=True):
                payload = filled(announced)
                if not same(json.loads(payload), actual):
                    raise AssertionError(f"announced: {payload}\nreceived:  {json.dumps(actual, ensure_ascii=False)}")
                result = actual.get("result")
                for values in (actual, result if isinstance(result, dict) else {}):
                    seen |= {key: json.dumps(value) for key, value in values.items()}
        for client in clients.values():
            client.send_json({"zKey": "ping", "zHorizontal": "the end", "_requestId": "end"})
            last = client.next_json()
            if last != {"result": "the end", "_requestId": "end"}:
                raise AssertionError(f"the block does not have this message: {json.dumps(last, ensure_ascii=False)}")
    finally:
        for client in clients.values():
            client.socket.close()
