"""The values on the pages that tell of topics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.docs_blocks import block, runs

from zcomm.auth.policy import Policy
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


@runs("operations-topics", "operations-topics-policy")
def test_topics_to_which_only_scripts_publish(tmp_path: Path):
    """A script publishes without a subscription; members hear of it and publish nothing."""
    server = MemoryServer(permissions=Policy.from_yaml(block("operations-topics-policy").text, "policy.yaml"))
    (tmp_path / "topics.yaml").write_text(block("operations-topics").text)
    server.topics.read_file(tmp_path / "topics.yaml")
    member, script = (server.connect(identity=Identity(role, role)) for role in ("member", "backend"))
    assert "result" in member.call("zSubscribe", {"topic": "news:1"}).result
    assert script.call("zPublish", {"topic": "news:1", "data": "all is well"}).result["result"]["offset"] == 1
    assert [message["data"] for message in member.messages] == ["all is well"]
    for client, key in ((member, "zPublish"), (script, "zSubscribe")):
        asked = {"topic": "news:1"} | ({"data": 1} if key == "zPublish" else {})
        assert client.call(key, asked).result["code"] == "permission_denied"


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
