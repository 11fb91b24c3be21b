"""The values on the pages that tell of topics."""

from __future__ import annotations

import json
from typing import Any

from support.docs_blocks import block, runs

from zcomm.interfaces import Identity
from zcomm.testing import MemoryServer
from zcomm.topics.kinds import kinds_from_yaml

ALICE = Identity("alice", "user")


@runs("guide-topics")
def test_the_file_of_kinds():
    """It declares what the page says."""
    rooms, own = kinds_from_yaml(block("guide-topics").text, "topics.yaml")
    assert (rooms.pattern.text, rooms.history, rooms.keep, rooms.presence, rooms.publish, rooms.personal) == (
        "room:{id}",
        1000,
        3600.0,
        True,
        "subscribers",
        False,
    )
    assert (own.pattern.text, own.history, own.personal) == ("user:{name}", 100, True)


def shown(name: str) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(block(name).text)
    return message


@runs("protocol-subscribed", "protocol-unsubscribed", "protocol-topic")
def test_the_events_of_subscriptions():
    """They have the keys and the words that the page shows."""
    server = MemoryServer()
    topics = server.bifrost.topics
    topics.topic("user:{name}", personal=True, history=100)
    topics.topic("room:{id}", history=2, publish="anybody")
    client, other = server.connect(identity=ALICE), server.connect(identity=ALICE)
    (event,) = client.messages
    assert event == shown("protocol-subscribed") | {"epoch": event["epoch"], "offset": 0}
    client.call("zSubscribe", {"topic": "room:1"})
    client.messages.clear()
    client.stop_reading()
    for number in range(4):
        other.call("zPublish", {"topic": "room:1", "data": number})
    client.read_again()
    (event,) = client.messages
    assert event == shown("protocol-topic") | {"epoch": event["epoch"], "offset": 4}
    assert topics.unsubscribe("room:1") == 1
    server.settle()
    assert client.messages[-1] == shown("protocol-unsubscribed") | {"reason": "ended"}
