"""Answers with messages where there is little memory for results."""

from __future__ import annotations

from typing import Any

from zcomm.interfaces import Identity
from zcomm.testing import MemoryClient, MemoryServer

ALICE = Identity("alice", "user")


def answer(server: MemoryServer, client: MemoryClient, key: str, horizontal: Any) -> Any:
    """The result of a command, or its error."""
    found: list[Any] = []
    client.call(key, horizontal).addBoth(found.append)
    server.settle()
    return found[0].get("result", found[0])


def test_an_answer_is_never_larger_than_there_is_ever_room_for():
    """Who missed more is told so at once, who asks for the newest gets as many as fit; nobody waits for ever."""
    server = MemoryServer(results_size=1024 * 1024, publish_rate=1000)
    server.bifrost.topics.topic("room:{id}", history=100, publish="anybody")
    client = server.connect(identity=ALICE)
    first = answer(server, client, "zSubscribe", {"topic": "room:1"})
    for number in range(20):
        answer(server, client, "zPublish", {"topic": "room:1", "data": str(number) + "x" * 50_000})
    since = {"epoch": first["epoch"], "offset": 0}
    resumed = answer(server, client, "zSubscribe", {"topic": "room:1", "since": since})
    assert (resumed["recovered"], resumed["reason"]) == (False, "too_many") and "messages" not in resumed
    last = answer(server, client, "zSubscribe", {"topic": "room:1", "last": 100})
    assert [message["offset"] for message in last["messages"]] == [16, 17, 18, 19, 20]
    page = answer(server, client, "zHistory", {"topic": "room:1", "since": since})
    assert [message["offset"] for message in page["messages"]] == [1, 2, 3, 4, 5] and page["more"]
    since["offset"] = 16
    resumed = answer(server, client, "zSubscribe", {"topic": "room:1", "since": since})
    assert [message["offset"] for message in resumed["messages"]] == [17, 18, 19, 20]
