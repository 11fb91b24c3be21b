"""Clients that take what they are sent late: what they missed comes as they take it, and in small parts."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from zcomm.interfaces import Identity
from zcomm.testing import MemoryClient, MemoryServer
from zcomm.topics import hub, subscriber

ALICE, BOB = Identity("alice", "user"), Identity("bob", "user")
TOPICS = [f"room:{number}" for number in range(6)]


def result(server: MemoryServer, client: MemoryClient, key: str, **horizontal: Any) -> Any:
    """The result of a command."""
    found: list[Any] = []
    client.call(key, horizontal).addBoth(found.append)
    server.settle()
    return found[0]["result"]


def events(client: MemoryClient) -> list[tuple[str, str]]:
    """The events that have come since the last look: what they are, and their topics."""
    found = [(message["event"], message["topic"]) for message in client.messages if "event" in message]
    client.messages.clear()
    return found


def test_who_takes_one_thing_at_a_time_is_told_so(monkeypatch: pytest.MonkeyPatch):
    """Members of many topics are not all made for who does not take the first: that would be memory without bound."""
    server = MemoryServer()
    slow, other = server.connect(identity=ALICE), server.connect(identity=BOB)
    for topic in TOPICS:
        result(server, slow, "zSubscribe", topic=topic, presence=True)
    server.advance(0.5)
    slow.stop_reading()
    for topic in TOPICS:
        result(server, other, "zSubscribe", topic=topic)
    server.advance(0.5)
    events(slow)
    transport = next(client for client in server.bifrost.clients if client.identity == ALICE).transport
    reply = transport.reply

    def take_one(payloads: list[bytes]) -> None:
        reply(payloads)
        transport.pause()

    monkeypatch.setattr(transport, "reply", take_one)
    told = []
    for _ in TOPICS:
        slow.read_again()
        told.append(events(slow))
    assert told == [[("presence", topic)] for topic in TOPICS]


@pytest.mark.parametrize("what", ["members", "messages", "replies"])
def test_what_was_missed_is_told_in_several_turns(what: str, monkeypatch: pytest.MonkeyPatch):
    """However many topics it is of, nobody waits for all of it."""
    server = MemoryServer()
    slow, other = server.connect(identity=ALICE), server.connect(identity=BOB)
    epochs = {}
    for topic in TOPICS:
        epochs[topic] = result(server, slow, "zSubscribe", topic=topic, presence=what == "members")["epoch"]
    server.advance(0.5)
    slow.stop_reading()
    for topic in TOPICS:
        if what == "members":
            result(server, other, "zSubscribe", topic=topic)
        else:
            result(server, other, "zPublish", topic=topic, data=1)
    server.advance(0.5)
    replies: list[Any] = []
    if what == "replies":
        for topic in TOPICS:
            asked = {"topic": topic, "since": {"epoch": epochs[topic], "offset": 0}}
            slow.call("zSubscribe", asked).addCallback(replies.append)
        server.settle()
    slow.messages.clear()
    # Each look at the clock finds more time gone than a turn has.
    seconds = count(0.0, 1.0)
    for module in (hub, subscriber):
        monkeypatch.setattr(module, "perf_counter", lambda: next(seconds))
    connection = next(client for client in server.bifrost.clients if client.identity == ALICE)
    turns = []
    later = connection.account.later
    monkeypatch.setattr(type(connection.account), "later", lambda self, call: (turns.append(call), later(call)))
    slow.read_again()
    server.advance(5)
    assert len(turns) >= len(TOPICS) - 1
    if what == "replies":
        assert [reply["result"]["topic"] for reply in replies] == TOPICS
        assert all(reply["result"]["recovered"] and len(reply["result"]["messages"]) == 1 for reply in replies)
    else:
        assert sorted(events(slow)) == [("presence" if what == "members" else "message", topic) for topic in TOPICS]
