"""Topics in memory: the product's own, and the Python client's side of them, on the virtual clock, with faults."""

from __future__ import annotations

from typing import Any

from zcomm import Identity
from zcomm.client import Topic
from zcomm.errors import CommandTimeout, ConnectionLost, PermissionDenied
from zcomm.testing import MemoryClient, MemoryServer, assert_error, assert_reply, assert_silent

ALICE, BOB = Identity("alice", "user"), Identity("bob", "user")


def rooms() -> tuple[MemoryServer, MemoryClient, MemoryClient]:
    """A server with rooms and everybody's own topic, and two clients of it."""
    server = MemoryServer(tokens={"a": ALICE, "b": BOB})
    server.topics.topic("room:{id}", history=5, keep=60, presence=True)
    server.topics.topic("user:{name}", personal=True, history=5)
    alice, bob = server.connect("a"), server.connect("b")
    for client in (alice, bob):
        # One's own topic.
        assert client.messages.pop()["event"] == "subscribed"
    return server, alice, bob


def heard_by(room: Topic) -> list[Any]:
    """The data of messages, and the word of continuity; it subscribes."""
    heard: list[Any] = []
    room.on("message", lambda message: heard.append(message["data"]))
    room.on("continuity", lambda value: heard.append(value["reason"] or "nothing was missed"))
    room.subscribe()
    assert room.state == "subscribed"
    return heard


def outcome_of(deferred: Any) -> list[Any]:
    """What a Deferred has come to, if it has: the result, or the error."""
    found: list[Any] = []
    deferred.addCallbacks(found.append, lambda failure: found.append(failure.value))
    return found


def test_a_room():
    """Raw commands and topics as programs have them, side by side; presence is told after its moment."""
    server, alice, bob = rooms()
    room = alice.topic("room:1", presence=True)
    seen: list[Any] = []
    room.on("presence", lambda change: seen.append((change["arrived"], change["gone"])))
    heard = heard_by(room)
    assert_reply(bob.call("zSubscribe", {"topic": "room:1"}))
    assert assert_reply(bob.call("zPublish", {"topic": "room:1", "data": "hi"}))["offset"] == 1
    server.topics.publish("room:1", "from the program")
    server.settle()
    assert heard == ["hi", "from the program"] and [message["data"] for message in bob.messages] == heard
    assert seen == [([], [])]
    server.advance(0.2)
    bob.vanish()
    server.advance(0.2)
    assert seen[1:] == [(["bob"], []), ([], ["bob"])]
    assert list(room.presence.members) == ["alice"]
    assert_silent(alice)
    assert_error(server.connect("b").call("zSubscribe", {"topic": "user:alice"}), "permission_denied")


def test_a_loss_and_the_return():
    """What was missed comes after it; what was kept no more is said; a publish waits for the connection."""
    server, alice, bob = rooms()
    heard = heard_by(alice.topic("room:1"))
    room = bob.topic("room:1")
    heard_by(room)
    room.publish("first")
    alice.vanish()
    room.publish("second")
    published = outcome_of(alice.topic("room:1").publish("mine"))
    assert heard == ["first"] and not published
    alice.reconnect()
    assert heard == ["first", "nothing was missed", "second", "mine"] and published[0]["offset"] == 3
    alice.half_open()
    for number in range(6):
        room.publish(number)
    alice.reconnect()
    assert heard[4:] == ["too_old"]
    room.publish("goes on")
    # The server gives the half of the old connection up, and not the new one.
    server.advance(50)
    assert heard[5:] == ["goes on"] and alice.closed is None and len(server.bifrost.clients) == 2
    alice.close()
    assert alice.topic("room:1").state == "subscribing"
    assert isinstance(outcome_of(alice.topic("room:1").publish("late"))[0], ConnectionLost)
    server.advance(61)
    alice.reconnect()
    assert heard[6:] == ["nothing was missed"]


def test_messages_that_are_lost():
    """A hole is mended as soon as it shows, and nobody hears of a message twice, or too late."""
    server, alice, bob = rooms()
    heard = heard_by(alice.topic("room:1"))
    room = bob.topic("room:1")
    room.subscribe()
    alice.incoming.drop(2)
    for number in range(3):
        room.publish(number)
    assert heard == ["nothing was missed", 0, 1, 2]
    alice.incoming.duplicate(2)
    room.publish(3)
    room.publish(4)
    assert heard[4:] == [3, 4]
    # A reply that is lost: nobody knows whether it was published, and it is asked again with the same key.
    bob.incoming.drop(2)
    published = outcome_of(room.publish(5))
    assert heard[6:] == [5] and not published
    bob.reconnect()
    assert published[0]["offset"] == 6 and heard[6:] == [5]
    bob.outgoing.cut()
    waiting = outcome_of(room.publish(6, timeout=5))
    server.advance(5)
    assert isinstance(waiting[0], CommandTimeout)


def test_messages_that_are_late():
    """They come in their order whatever the delay becomes; a late reply does not overtake them, nor they it."""
    server, alice, bob = rooms()
    topic = alice.topic("room:1", presence=True)
    heard = heard_by(topic)
    room = bob.topic("room:1")
    room.subscribe()
    alice.incoming.delay(5)
    room.publish(1)
    alice.incoming.delay(0)
    room.publish(2)
    server.advance(4)
    assert heard == []
    server.advance(1)
    assert heard == [1, 2]
    alice.incoming.delay(5)
    alice.vanish()
    room.publish(3)
    alice.reconnect()
    alice.incoming.delay(1)
    room.publish(4)
    alice.incoming.drop()
    room.publish(5)
    room.publish(6)
    assert heard == [1, 2, "nothing was missed", 3]
    server.advance(1)
    assert heard[4:] == [4]
    server.advance(1)
    assert heard[5:] == ["nothing was missed", 5, 6]
    assert set(topic.presence.members) == {"alice", "bob"}


def test_rules_of_the_program():
    """What a program says of its kinds is tried as it is: who may, what becomes of data, who is told of whom."""
    server, alice, bob = rooms()
    quiet = server.topics.topic("quiet:{id}", publish="anybody")
    seen: list[Any] = []

    @quiet.allow("subscribe")
    def may(identity: Identity, id: str) -> bool:
        return identity.name == "alice"

    @quiet.incoming
    def lower(identity: Identity, data: Any, id: str) -> Any:
        return data.lower()

    server.topics.on_presence("room:{id}")(lambda arrived, gone, id: seen.append((arrived, gone, id)))
    heard = heard_by(alice.topic("quiet:1"))
    assert isinstance(outcome_of(bob.topic("quiet:1").subscribe())[0], PermissionDenied)
    bob.topic("quiet:1").publish("LOUD")
    assert heard == ["loud"]
    bob.topic("room:1").subscribe()
    server.advance(0.2)
    bob.close()
    server.advance(0.2)
    assert seen == [(["bob"], [], "1"), ([], ["bob"], "1")]


def test_ones_own_topic():
    """It is heard without asking, in the messages of who asks for no topic, and goes on after a loss."""
    server, alice, bob = rooms()
    mine: list[Any] = []
    alice.topic("user:alice").on("message", lambda message: mine.append(message["data"]))
    server.topics.publish("user:alice", "for you")
    server.topics.publish("user:bob", "for him")
    server.settle()
    alice.vanish()
    server.topics.publish("user:alice", "while away")
    alice.reconnect()
    assert mine == ["for you", "while away"]
    assert [message["data"] for message in bob.messages] == ["for him"]
