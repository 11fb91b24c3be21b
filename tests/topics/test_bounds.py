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


def filled(client: MemoryClient, server: MemoryServer) -> int:
    """Takes all memory that the user of ``client`` has for results; returns how much that is."""
    memory = server.bifrost.factory.state.budgets.memory
    (account,) = {each.account for each in server.bifrost.registry if each.identity == ALICE}
    memory.take(account, memory.total // 2)
    return memory.total // 2


def given_back(server: MemoryServer, size: int) -> None:
    """Gives back what :func:`filled` took."""
    (account,) = {each.account for each in server.bifrost.registry if each.identity == ALICE}
    server.bifrost.factory.state.budgets.memory.release(account, size)
    server.settle()


def test_what_is_too_much_when_there_is_room_for_it_holds_none():
    """A reply that waited for room, and has no messages in the end, gives back what was held for them."""
    server = MemoryServer(results_size=1024 * 1024, publish_rate=1000)
    server.bifrost.topics.topic("room:{id}", history=100, publish="anybody")
    client, other = server.connect(identity=ALICE), server.connect(identity=Identity("bob", "user"))
    epoch = answer(server, client, "zSubscribe", {"topic": "room:1"})["epoch"]
    for number in range(4):
        answer(server, other, "zPublish", {"topic": "room:1", "data": str(number) + "x" * 50_000})
    size = filled(client, server)
    found: list[Any] = []
    client.call("zSubscribe", {"topic": "room:1", "since": {"epoch": epoch, "offset": 0}}).addBoth(found.append)
    for number in range(4):
        answer(server, other, "zPublish", {"topic": "room:1", "data": str(number) + "x" * 50_000})
    assert found == []
    given_back(server, size)
    assert found[0]["result"]["reason"] == "too_many"
    assert server.bifrost.factory.state.budgets.memory.held == 0


def test_many_members_wait_for_room():
    """A reply that is large because of them waits for room; it is no error of a connection that has joined."""
    server = MemoryServer(results_size=1024 * 1024)
    server.bifrost.topics.topic("hall", presence=True)
    for number in range(120):
        other = server.connect(identity=Identity(f"user{number}", "user"))
        answer(server, other, "zSubscribe", {"topic": "hall", "state": {"about": "x" * 1000}})
    client = server.connect(identity=ALICE)
    size = filled(client, server)
    found: list[Any] = []
    client.call("zSubscribe", {"topic": "hall", "presence": True}).addBoth(found.append)
    server.settle()
    assert found == []
    given_back(server, size)
    assert len(found[0]["result"]["presence"]["members"]) == 121
    assert server.bifrost.factory.state.budgets.memory.held == 0
