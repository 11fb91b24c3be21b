"""Replies to the commands of one connection on one topic, and how many it may publish."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from zcomm.interfaces import Identity
from zcomm.testing import MemoryClient, MemoryServer

ALICE = Identity("alice", "user")


def told(server: MemoryServer, client: MemoryClient, number: int, key: str, horizontal: Any, into: list[Any]) -> None:
    """Send a command; what it is answered with is put into a list, with its number."""
    client.call(key, horizontal).addBoth(lambda reply: into.append((number, reply.get("result", reply.get("code")))))


@pytest.mark.parametrize("waits", ["at once", "later", "a coroutine"])
@pytest.mark.parametrize("is_open", [False, True])
def test_replies_keep_their_order(waits: str, is_open: bool):
    """As the commands do, whether the program answers at once or late, and the first of them as those behind it."""
    server = MemoryServer()
    rooms = server.bifrost.topics.topic("room:{id}", history=10, publish="anybody")
    asked: list[Deferred[bool]] = []

    def later() -> Deferred[bool]:
        asked.append(Deferred())
        return asked[-1]

    async def of_itself() -> bool:
        return True

    answer = {"at once": lambda: True, "later": later, "a coroutine": of_itself}[waits]
    rooms.allow("subscribe")(lambda identity, id: answer())
    client = server.connect(identity=ALICE)
    replies: list[Any] = []
    commands: list[tuple[str, dict[str, Any]]] = [
        ("zSubscribe", {}),
        ("zPublish", {"data": 1}),
        ("zSubscribe", {"last": 5}),
        ("zPublish", {"data": 2}),
        ("zUnsubscribe", {}),
        ("zSubscribe", {}),
        ("zUnsubscribe", {}),
        ("zPublish", {"data": 3}),
    ]
    for number, (key, horizontal) in enumerate(commands):
        told(server, client, number, key, {"topic": "room:1", **horizontal}, replies)
        if is_open:
            server.settle()
    server.settle()
    while any(not deferred.called for deferred in asked):
        next(deferred for deferred in asked if not deferred.called).callback(True)
        server.settle()
    assert [number for number, _ in replies] == list(range(len(commands)))
    assert [result.get("offset") for _, result in replies] == [0, 1, 1, 2, None, 2, None, 3]
    # What was published in the turn of leaving may be told or not.
    events = [message["offset"] for message in client.messages if message.get("event") == "message"]
    assert events in ([1], [1, 2])


def test_the_rate_of_publishing_is_of_each_connection():
    """Also of those that are subscribed to nothing: one tab of a user leaves the others theirs."""
    server = MemoryServer(publish_rate=5.0)
    for _ in range(3):
        client = server.connect(identity=ALICE)
        replies: list[Any] = []
        for number in range(11):
            told(server, client, number, "zPublish", {"topic": "room:1", "data": number}, replies)
        server.settle()
        assert [reply == "too_busy" for _, reply in replies] == [False] * 10 + [True]
