"""zcomm.testing: its faults, assertions and clock. That it behaves as the real server is tested with the wire."""

from __future__ import annotations

from typing import Any

import pytest

from zcomm import FunctionRegistry, Identity, PageRegistry
from zcomm.bifrost.connection import Connection
from zcomm.testing import (
    Closed,
    MemoryServer,
    assert_broadcast,
    assert_closed,
    assert_error,
    assert_reply,
    assert_silent,
)

ALICE, BOB = Identity("alice", "admin"), Identity("bob", "admin")


def counting() -> tuple[MemoryServer, list[Any]]:
    """A server that notes what it was asked."""
    asked: list[Any] = []

    def note(horizontal: Any) -> int:
        asked.append(horizontal)
        return len(asked)

    server = MemoryServer(commands={"note": note})
    server.bifrost.command("shout", broadcast=True)(lambda horizontal: horizontal)
    return server, asked


def test_the_example():
    """A command, its reply, and what the other hears."""
    server, _ = counting()
    alice, bob = server.connect(), server.connect()
    assert assert_reply(alice.call("shout", "hello"), "hello") == "hello"
    assert assert_broadcast(bob, "shout", "hello") == {"zKey": "shout", "result": "hello"}
    assert_silent(alice, bob)


class Measuring(Connection):
    """Answers a binary message with its size."""

    __slots__ = ()

    def receive_binary(self, payload: bytes) -> None:
        self.send({"size": len(payload)})


def test_binary_messages():
    """They end the connection, as in production, but where the connection takes them, up to the size of a message."""
    refused = MemoryServer(message_size=1024).connect()
    refused.send(b"abc")
    assert_closed(refused, 1003)
    server = MemoryServer(message_size=1024, connection=Measuring)
    client = server.connect()
    client.send(b"\xff" * 1024)
    assert client.messages == [{"size": 1024}]
    assert_reply(client.call("ping", 1), 1)
    client.send(b"\xff" * 1025)
    assert_closed(client, 1009)


def test_a_lost_request():
    """It never arrives; the next one does."""
    server, asked = counting()
    client = server.connect()
    client.outgoing.drop()
    lost = client.call("note", 1)
    assert_reply(client.call("note", 2), 1)
    assert asked == [2] and not lost.called
    server.stop()
    with pytest.raises(AssertionError, match="there is no reply"):
        assert_reply(lost)


def test_a_request_that_is_sent_twice():
    """The command runs twice; the second reply answers nobody's call and lies among the messages."""
    server, asked = counting()
    client = server.connect()
    client.outgoing.duplicate()
    assert_reply(client.call("note", "x", request_id="a"), 1)
    assert asked == ["x", "x"] and client.messages == [{"result": 2, "_requestId": "a"}]


def test_delay_in_both_directions():
    """Time is what the test makes of it, and the order stays."""
    server, asked = counting()
    client = server.connect()
    client.outgoing.delay(1.0)
    client.incoming.delay(0.5)
    first, second = client.call("note", 1), client.call("note", 2)
    server.advance(0.9)
    assert asked == []
    server.advance(0.2)
    assert asked == [1, 2] and not first.called
    server.advance(0.5)
    assert_reply(first, 1)
    assert_reply(second, 2)


def test_a_half_open_connection():
    """Nothing passes, nobody says so; the second ping that is not answered ends it."""
    server, asked = counting()
    client = server.connect()
    call = client.call("note", 1)
    assert_reply(call, 1)
    client.half_open()
    client.call("note", 2).addErrback(lambda failure: failure.trap(ConnectionError))
    assert asked == [1] and len(server.bifrost.clients) == 1
    server.advance(41)
    assert server.bifrost.clients == [] and server.bifrost.factory.drops["ping_timeout"] == 1
    assert_closed(client, 1006)


def test_a_client_that_vanishes():
    """Its calls fail, the others stay."""
    server, _ = counting()
    alice, bob = server.connect(identity=ALICE), server.connect(identity=BOB)
    alice.outgoing.drop()
    call = alice.call("note")
    alice.vanish()
    failures: list[Any] = []
    call.addErrback(lambda failure: failures.append(failure.check(ConnectionError)))
    assert failures == [ConnectionError] and [who.identity for who in server.bifrost.clients] == [BOB]
    gone = alice.call("note")
    gone.addErrback(lambda failure: failures.append(failure.check(ConnectionError)))
    assert len(failures) == 2
    assert bob.closed is None


def test_a_client_that_does_not_read():
    """What it misses waits, in order; too long, and it is dropped; too much, and it gets 1013."""
    server = MemoryServer(stall_timeout=5.0, queue_size=1024)
    client = server.connect()
    client.stop_reading()
    for number in range(3):
        server.bifrost.broadcast({"n": number})
    server.advance(1)
    assert client.messages == []
    client.send({"zKey": "ping", "_requestId": 1})
    client.read_again()
    assert client.messages == [{"n": 0}, {"n": 1}, {"n": 2}, {"result": "ping", "_requestId": 1}]
    client.stop_reading()
    server.bifrost.broadcast({"n": 3})
    server.advance(6)
    assert_closed(client, 1006)
    other = server.connect()
    other.stop_reading()
    for _ in range(3):
        server.bifrost.broadcast("x" * 500)
    server.settle()
    assert_closed(other, 1013, "Slow consumer")
    assert server.bifrost.factory.drops["stalled"] == server.bifrost.factory.drops["slow_consumer"] == 1


def test_when_closed():
    """Before, after and twice."""
    server = MemoryServer(tokens={"right": ALICE})
    client = server.connect("right")
    told: list[Closed] = []
    client.when_closed().addCallback(told.append)
    client.when_closed().addCallback(told.append)
    client.close(4000, "bye")
    client.when_closed().addCallback(told.append)
    assert told == [Closed(4000, "bye")] * 3
    assert_closed(server.connect("wrong"), 1008, "Invalid token")


def test_functions_and_pages():
    """zFunc runs plain functions at once; zLink leads to registered pages."""
    functions, pages = FunctionRegistry(), PageRegistry()

    @functions.register
    def double(number: int) -> int:
        return 2 * number

    pages.register("/users", title="Users")
    server = MemoryServer(functions=functions, pages=pages)
    client = server.connect()
    assert_reply(client.call("zFunc", "zFunc(double, 21)"), 42)
    assert assert_reply(client.call("zLink", "zLink(/users)"))["title"] == "Users"
    assert_error(client.call("zFunc", "zFunc(triple, 1)"), "unknown_command")


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda client: assert_reply(client.call("nobody")), "the command failed"),
        (lambda client: assert_reply(client.call("ping", 1), 2), "the result is 1, not 2"),
        (lambda client: assert_error(client.call("ping"), "invalid"), "not an error 'invalid'"),
        (
            lambda client: assert_error(client.call("nobody"), "unknown_command", {"a": "b"}),
            "the fields are None",
        ),
        (lambda client: assert_broadcast(client, "shout"), "no broadcast of 'shout'"),
        (lambda client: assert_closed(client, 1000), "the connection is open"),
    ],
)
def test_the_assertions_can_fail(check: Any, words: str):
    """In words that say what was there instead."""
    server = MemoryServer()
    with pytest.raises(AssertionError, match=words):
        check(server.connect())


def test_more_assertions_that_fail():
    """A broadcast with another result, a client that is not silent, another code."""
    server, _ = counting()
    alice, bob = server.connect(), server.connect()
    alice.call("shout", 1)
    with pytest.raises(AssertionError, match="heard"):
        assert_silent(alice, bob)
    with pytest.raises(AssertionError, match="the broadcast says 1, not 2"):
        assert_broadcast(bob, "shout", 2)
    bob.close()
    with pytest.raises(AssertionError, match="ended with"):
        assert_closed(bob, 1008)


def test_nothing_is_left_after_a_stop():
    """No client, no timer."""
    server, _ = counting()
    clients = [server.connect() for _ in range(3)]
    stopped: list[Any] = []
    server.stop().addBoth(stopped.append)
    for client in clients:
        assert_closed(client, 1001)
    assert stopped == [None] and server.clock.getDelayedCalls() == []
    assert_closed(server.connect(), 1006)
