"""What fails in one topic harms no other."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import LogEvent, eventAsText

from zcomm.interfaces import Identity
from zcomm.testing import MemoryServer
from zcomm.testing.server import _MemoryBifrost
from zcomm.topics.subscriptions import Topic

ANN = Identity("ann", "user")


@pytest.mark.parametrize("where", ["made", "sent"])
def test_messages_that_cannot_be_sent(where: str, log: list[LogEvent], monkeypatch: pytest.MonkeyPatch):
    """Those of other topics go out in the same turn, and the log says of which topic they were; the next ones of that
    topic are sent."""
    fan_out = _MemoryBifrost._fan_out
    is_broken = True

    def broken(transports: Any, payloads: list[bytes], *more: Any) -> None:
        if is_broken and any(b'"bad:1"' in payload for payload in payloads):
            raise ValueError("a bug")
        fan_out(transports, payloads, *more)

    def refuse(*_: Any) -> bytes:
        raise ValueError("a bug")

    if where == "sent":
        monkeypatch.setattr(_MemoryBifrost, "_fan_out", staticmethod(broken))
    server = MemoryServer()
    client = server.connect(identity=ANN)
    for topic in ("good:1", "bad:1", "good:2"):
        client.call("zSubscribe", {"topic": topic, "echo": not topic.startswith("bad")})
    with monkeypatch.context() as patch:
        if where == "made":
            patch.setattr(Topic, "own_payload", refuse)
        for topic in ("good:1", "bad:1", "good:2"):
            client.call("zPublish", {"topic": topic, "data": 1})
        server.settle()
    is_broken = False
    assert [message["topic"] for message in client.messages if "event" in message] == ["good:1", "good:2"]
    assert ["bad:1" in str(eventAsText(event)) for event in log if "log_failure" in event] == [True]
    client.call("zPublish", {"topic": "bad:1", "data": 2})
    server.settle()
    assert [message["offset"] for message in client.messages if message.get("topic") == "bad:1"] == [2]
