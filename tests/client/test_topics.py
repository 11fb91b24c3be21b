"""Topics of the Python client against a server that does what a test says, over loopback TCP."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from support.topicserver import TopicServer
from support.waiting import DEADLINE, wait_until, wait_until_blocking
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from zcomm import errors
from zcomm.client import Client, Topic, connect, threaded
from zcomm.client.unread import MOST


@pytest_twisted.async_yield_fixture
async def server() -> AsyncIterator[TopicServer]:
    """One server for one test."""
    server = TopicServer()
    await server.bifrost.listen()
    yield server
    await server.bifrost.stopService()


@pytest_twisted.async_yield_fixture
async def client(server: TopicServer) -> AsyncIterator[Client]:
    """A client of it, that leaves with the test."""
    client = await connect(server.bifrost.url, timeout=30)
    yield client
    await client.disconnect()


def heard_of(room: Topic) -> list[Any]:
    """Everything that listeners of a topic are told, as it comes: the data of messages, the rest with its event."""
    heard: list[Any] = []
    room.on("message", lambda message: heard.append(message["data"]))
    for event in ("continuity", "subscribed", "unsubscribed", "presence"):
        room.on(event, lambda value, event=event: heard.append((event, value)))
    return heard


RECOVERED = ("continuity", {"recovered": True, "reason": None})


def not_recovered(reason: str) -> Any:
    return ("continuity", {"recovered": False, "reason": reason})


def subscribed(epoch: str | None = "e1.a", offset: int | None = 0, connection: str | None = None) -> Any:
    return ("subscribed", {"topic": "room:1", "epoch": epoch, "offset": offset, "connection": connection})


async def failure_of(deferred: Deferred[Any]) -> Any:
    """What a Deferred fails with."""
    try:
        result = await deferred
    except Exception as error:
        return error
    raise AssertionError(f"it did not fail: {result!r}")


@pytest_twisted.ensureDeferred
async def test_a_room(client: Client, server: TopicServer):
    """Nothing is sent before subscribe(); then messages come with their places, one's own too, until unsubscribe()."""
    server.publish("before")
    room = client.topic("room:1", last=5)
    heard: list[Any] = []
    stop = room.on("message", heard.append)
    assert await client.send({"zKey": "ping"}) == "ping" and not server.asked
    assert (room.state, room.position, repr(room)) == ("unsubscribed", None, "<topic room:1, unsubscribed>")
    assert await room.subscribe() == {"topic": "room:1", "epoch": "e1.a", "offset": 1, "connection": None}
    first = {"topic": "room:1", "data": "before", "offset": 1, "from": None, "key": None, "own": False}
    first["replayed"] = True
    assert heard == [first]
    key = (await room.publish({"text": "hi"}))["key"]
    assert [asked["_idempotencyKey"] for asked in server.asked_for("zPublish")] == [key] and len(key) >= 16
    await wait_until(lambda: len(heard) == 2, "one's own message")
    assert heard[1] == {**first, "data": {"text": "hi"}, "offset": 2, "from": "ann", "key": key, "replayed": False}
    assert await room.subscribe() == {"topic": "room:1", "epoch": "e1.a", "offset": 2, "connection": None}
    assert len(server.asked_for("zSubscribe")) == 1
    assert (room.state, room.position) == ("subscribed", {"epoch": "e1.a", "offset": 2})
    stop()
    server.publish("unheard")
    assert (await room.history(limit=2, reverse=True, before=3, since={"epoch": "e1.a", "offset": 0}))["messages"] == [
        first,
        {**heard[1], "replayed": True},
    ]
    assert server.asked_for("zHistory") == [
        {"topic": "room:1", "limit": 2, "reverse": True, "since": {"epoch": "e1.a", "offset": 0}, "before": 3}
    ]
    room.on("message", heard.append)
    await room.unsubscribe()
    client.topic("other")
    server.publish("after")
    assert await client.send({"zKey": "ping"}) == "ping" and len(heard) == 2
    await room.unsubscribe()
    assert (await room.subscribe())["offset"] == 4 and heard[-1]["data"] == "after"


@pytest_twisted.ensureDeferred
async def test_a_message_may_end_like_a_time(client: Client, server: TopicServer):
    """A text that looks as times do is published as any other."""
    room = client.topic("room:1")
    heard = heard_of(room)
    await room.subscribe()
    await room.publish({"at": "2026-01-31T12:00:00Z", "from": "2026-01-31T12:00:00+01:00"})
    await wait_until(lambda: heard[1:], "the message")
    assert heard[1] == {"at": "2026-01-31T12:00:00Z", "from": "2026-01-31T12:00:00+01:00"}


@pytest_twisted.ensureDeferred
async def test_a_lost_connection_is_made_up_for(client: Client, server: TopicServer):
    """It subscribes again from where it was, before anything else is sent; listeners hear of it, and of each message
    once."""
    room = client.topic("room:1", state={"a": 1}, echo=False)
    heard = heard_of(room)
    await room.subscribe()
    server.publish(1)
    await wait_until(lambda: 1 in heard, "the first message")
    server.asked.clear()
    server.lose_all()
    server.publish(2)
    server.publish(3)
    client.on("state", lambda state: state == "connected" and client.send({"zKey": "zHistory"}).addErrback(str))
    await wait_until(lambda: 3 in heard, "what was missed")
    server.publish(4)
    await wait_until(lambda: 4 in heard, "what comes now")
    assert heard == [subscribed(), 1, RECOVERED, 2, 3, subscribed(offset=3), 4]
    assert server.asked[0] == (
        "zSubscribe",
        {"topic": "room:1", "since": {"epoch": "e1.a", "offset": 1}, "state": {"a": 1}, "echo": False},
    )
    assert room.presence.members is room.presence.connection is None and room.presence.users == 0


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_made_up_for_is_said(client: Client, server: TopicServer):
    """Another epoch, what is kept no more, what was never kept: said before any later message. The newest that were
    asked for come then, too."""
    room = client.topic("room:1", last=2)
    heard = heard_of(room)
    await room.subscribe()
    server.lose_all()
    server.epoch, server.top, server.kept = "e2.a", 0, {}
    for data in range(3):
        server.publish(data)
    await wait_until(lambda: len(heard) == 5, "the newest")
    assert heard == [subscribed(), not_recovered("epoch"), 1, 2, subscribed("e2.a", 3)]
    heard.clear()
    plain = client.topic("room:1")
    assert plain is room
    server.epoch = None
    server.lose_all()
    await wait_until(lambda: len(heard) == 2, "the second loss")
    assert heard == [not_recovered("not_kept"), subscribed(None, None)]
    server.publish("unkept")
    await wait_until(lambda: "unkept" in heard, "a message without an offset")
    server.lose_all()
    await wait_until(lambda: len(heard) == 5, "the third loss")
    assert not_recovered("not_kept") in heard[3:] and "since" not in server.asked_for("zSubscribe")[-1]


@pytest_twisted.ensureDeferred
async def test_a_hole_is_mended(client: Client, server: TopicServer):
    """Where an event is missing the client subscribes again, and ignores the topic's events until the reply."""
    room = client.topic("room:1")
    heard = heard_of(room)
    await room.subscribe()
    late: Deferred[None] = Deferred()
    server.swallow = 2
    server.say["zSubscribe"] = lambda asked: late
    for data in range(3):
        server.publish(data)
    await wait_until(lambda: len(server.asked_for("zSubscribe")) == 2, "the second subscription")
    server.publish(3)
    server.tell(event="topic", epoch="e9", offset=77, recovered=False, reason="history_lost")
    assert await client.send({"zKey": "ping"}) == "ping" and heard == [subscribed()]
    late.callback(None)
    await wait_until(lambda: 3 in heard, "all")
    assert heard == [subscribed(), RECOVERED, 0, 1, 2, 3, subscribed(offset=4)]
    del server.say["zSubscribe"]
    # What is old is dropped, and what says only where the topic is.
    server.tell(event="message", offset=4, data="again")
    server.tell(event="topic", epoch="e1.b", offset=4)
    server.tell(event="message", offset=5, data="first", epoch="e1.c")
    server.tell(event="topic", epoch="e3.a", offset=9, recovered=False, reason="history_lost")
    server.tell(event="message", offset=10, data="later")
    await wait_until(lambda: "later" in heard, "the last message")
    assert heard[7:] == ["first", not_recovered("history_lost"), "later"]
    server.lose_all()
    await wait_until(lambda: len(server.asked_for("zSubscribe")) == 3, "the next subscription")
    assert server.asked_for("zSubscribe")[-1]["since"] == {"epoch": "e3.a", "offset": 10}


@pytest_twisted.ensureDeferred
async def test_a_publish_outlasts_the_connection(client: Client, server: TopicServer):
    """Whose reply was lost is sent again with the same key; one made meanwhile waits, behind the subscription."""
    room = client.topic("room:1")
    heard = heard_of(room)
    await room.subscribe()
    server.say["zPublish"] = lambda asked: Deferred()
    data = {"text": "hi"}
    first = room.publish(data)
    data["text"] = "changed"
    await wait_until(lambda: server.asked_for("zPublish"), "the publish")
    server.publish({"text": "hi"}, key=server.asked_for("zPublish")[0]["_idempotencyKey"])
    server.keys[server.asked_for("zPublish")[0]["_idempotencyKey"]] = 1
    del server.say["zPublish"]
    server.lose_all()
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    second = room.publish("second", idempotency_key="chosen-0123456789")
    lost = server.asked_for("zPublish")[0]
    assert await first == {"key": lost["_idempotencyKey"], "epoch": "e1.a", "offset": 1}
    assert await second == {"key": "chosen-0123456789", "epoch": "e1.a", "offset": 2}
    assert server.asked_for("zPublish")[1] == lost
    assert [key for key, _ in server.asked[-3:]] == ["zSubscribe", "zPublish", "zPublish"]
    await wait_until(lambda: "second" in heard, "the second")
    assert [item for item in heard if not isinstance(item, tuple)] == [{"text": "hi"}, "second"]


@pytest_twisted.ensureDeferred
async def test_a_publish_ends(client: Client, server: TopicServer):
    """With its time, with the client, with the server's word, and says whether another one might be a second."""
    room = client.topic("room:1")
    with pytest.raises(TypeError, match=r"data\.x is nan"):
        room.publish({"x": float("nan")})
    server.say["zPublish"] = lambda asked: errors.TooBusy("slowly")
    error = await failure_of(room.publish(1))
    assert type(error) is errors.TooBusy and error.retryable
    server.say["zPublish"] = lambda asked: Deferred()
    for key, retryable in ((None, False), ("chosen-0123456789", True)):
        error = await failure_of(room.publish(1, idempotency_key=key, timeout=0.05))
        assert type(error) is errors.CommandTimeout and error.retryable is retryable
    waiting = room.publish(2)
    keyed = room.publish(2, idempotency_key="chosen-0123456789")
    cancelled = room.publish(3)
    cancelled.cancel()
    assert type(await failure_of(cancelled)) is CancelledError
    await wait_until(lambda: len(server.asked_for("zPublish")) == 6, "all")
    await server.bifrost.stopService()
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    late = room.publish(4, timeout=0.05)
    error = await failure_of(late)
    assert type(error) is errors.CommandTimeout and error.retryable
    await client.disconnect()
    lost = [await failure_of(each) for each in (waiting, keyed, room.publish(5))]
    assert {type(each) for each in lost} == {errors.ConnectionLost}
    assert lost[0].retryable is False
    assert "not sent" in str(lost[2])


@pytest_twisted.ensureDeferred
async def test_ones_own_without_echo(client: Client, server: TopicServer):
    """They come as own, without data; so do those that are sent again after a loss, with it."""
    room = client.topic("room:1", echo=False)
    heard: list[Any] = []
    room.on("message", lambda message: heard.append((message["data"], message["own"], message["key"])))
    await room.subscribe()
    server.swallow = 1
    first = (await room.publish("mine"))["key"]
    server.tell(event="message", offset=1, own=True, key=first)
    server.publish("other")
    await wait_until(lambda: len(heard) == 2, "another's")
    server.swallow = 1
    second = (await room.publish("mine too"))["key"]
    server.lose_all()
    server.publish("last")
    await wait_until(lambda: len(heard) == 4, "the return")
    assert heard == [(None, True, first), ("other", False, None), ("mine too", True, second), ("last", False, None)]


@pytest_twisted.ensureDeferred
async def test_presence(client: Client, server: TopicServer):
    """Changes that fit are merged; one that does not has the whole asked for, once."""
    room = client.topic("room:1", presence=True)
    heard: list[Any] = []
    room.on("presence", heard.append)
    await room.presence.set_state({"typing": False})
    assert (await room.subscribe())["connection"] == "c1" == room.presence.connection
    assert server.asked == [("zSubscribe", {"topic": "room:1", "presence": True, "state": {"typing": False}})]
    members = room.presence.members
    assert members == {"ann": {"c1": {"typing": False}}} and heard[0]["members"] == members
    heard[0]["members"].clear()
    members.clear()
    server.tell(event="presence", after=0, version=2, users=2, connections=2, joined={"bob": {"c2": {}}}, left={})
    await wait_until(lambda: len(heard) == 2, "bob")
    assert heard[1] == {
        "members": {"ann": {"c1": {"typing": False}}, "bob": {"c2": {}}},
        "arrived": ["bob"],
        "gone": [],
        "users": 2,
        "connections": 2,
    }
    late: list[Deferred[Any]] = []

    def ask(asked: Any) -> Any:
        late.append(Deferred())
        return late[-1]

    server.say["zPresence"] = ask
    for version in (5, 6, 7):
        server.tell(event="presence", after=version - 1, version=version, users=9, connections=9, joined={}, left={})
    await wait_until(lambda: late, "the question")
    assert await client.send({"zKey": "ping"}) == "ping" and len(late) == 1
    late[0].callback({"version": 7, "users": 1, "connections": 1, "members": {"eve": {"c9": {}}}})
    await wait_until(lambda: len(heard) == 3, "the answer")
    assert (heard[2]["arrived"], heard[2]["gone"]) == (["eve"], ["ann", "bob"])
    assert (room.presence.users, room.presence.connections) == (1, 1)
    set_state = room.presence.set_state({"typing": True})
    await wait_until(lambda: len(late) == 2, "the state")
    assert server.asked[-1] == ("zPresence", {"topic": "room:1", "state": {"typing": True}})
    late[1].callback({"version": 8, "users": 1, "connections": 1, "members": {"eve": {"c9": {"typing": True}}}})
    await set_state
    assert room.presence.members == {"eve": {"c9": {"typing": True}}}
    del server.say["zPresence"]
    server.lose_all()
    await wait_until(lambda: len(heard) == 5, "the return")
    assert server.asked_for("zSubscribe")[-1]["state"] == {"typing": True}
    assert (heard[4]["arrived"], heard[4]["gone"]) == (["ann"], ["eve"])
    server.say["zPresence"] = lambda asked: errors.Invalid("state: too large")
    assert type(await failure_of(room.presence.set_state({"much": "x" * 2000}))) is errors.Invalid
    server.lose_all()
    await wait_until(lambda: len(heard) == 6, "the next return")
    assert server.asked_for("zSubscribe")[-1]["state"] == {"typing": True}
    await room.unsubscribe()
    assert room.presence.members is None
    with pytest.raises(TypeError, match="state is a dict"):
        room.presence.set_state([1])


@pytest_twisted.ensureDeferred
async def test_the_server_ends_a_subscription(client: Client, server: TopicServer):
    """Listeners hear why, iterations end, and it is not begun again by itself: by the event, and by a refusal."""
    room = client.topic("room:1")
    heard = heard_of(room)
    await room.subscribe()
    iteration = room.__aiter__()
    server.tell(event="unsubscribed", reason="permission_denied")
    with pytest.raises(StopAsyncIteration):
        await iteration.__anext__()
    await wait_until(lambda: len(heard) == 2, "the word of it")
    assert heard == [subscribed(), ("unsubscribed", {"topic": "room:1", "reason": "permission_denied"})]
    server.lose_all()
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    await wait_until(lambda: client.state == "connected", "the return")
    assert await client.send({"zKey": "ping"}) == "ping" and len(server.asked) == 1
    await room.subscribe()
    heard.clear()
    refusals = [errors.TooBusy("busy"), errors.PermissionDenied("no")]
    server.say["zSubscribe"] = lambda asked: refusals.pop(0)
    server.lose_all()
    await wait_until(lambda: heard, "the refusal")
    assert heard == [("unsubscribed", {"topic": "room:1", "reason": "permission_denied"})] and not refusals
    for refusal in (errors.PermissionDenied("no"), errors.TooBusy("no")):
        refusals.append(refusal)
        assert type(await failure_of(room.subscribe())) is type(refusal)
    assert len(heard) == 1
    del server.say["zSubscribe"]
    await room.subscribe()
    # Ended while it is asked to go on: the connection is put out again.
    late: Deferred[None] = Deferred()
    server.say["zSubscribe"] = lambda asked: late
    server.tell(event="message", offset=99, data="a hole")
    await wait_until(lambda: server.asked[-1][0] == "zSubscribe" and "since" in server.asked[-1][1], "the question")
    heard.clear()
    server.tell(event="unsubscribed", reason="ended")
    assert await client.send({"zKey": "ping"}) == "ping"
    late.callback(None)
    await wait_until(lambda: heard, "the end")
    assert heard == [("unsubscribed", {"topic": "room:1", "reason": "ended"})] and room.state == "unsubscribed"
    await wait_until(lambda: server.asked[-1][0] == "zUnsubscribe", "the leaving")
    del server.say["zSubscribe"]
    server.say["zUnsubscribe"] = lambda asked: errors.Invalid("it is yours")
    await room.subscribe()
    assert type(await failure_of(room.unsubscribe())) is errors.Invalid
    server.publish("goes on")
    await wait_until(lambda: "goes on" in heard, "the next message")


@pytest_twisted.ensureDeferred
async def test_the_server_begins_a_subscription(client: Client, server: TopicServer):
    """Its messages are told, to who comes later too; after a loss the server begins it again, and the client asks for
    what it missed."""
    server.there = list(server.bifrost.clients)
    server.tell(event="subscribed", **server.place)
    server.publish("unheard")
    assert await client.send({"zKey": "ping"}) == "ping"
    gc.collect()
    room = client.topic("room:1", last=1)
    heard = heard_of(room)
    server.publish("given")
    await wait_until(lambda: "given" in heard, "a message")
    assert heard == ["given"] and not server.asked
    server.lose_all()
    server.publish("missed")
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    await wait_until(lambda: client.state == "connected", "the return")
    assert not server.asked
    server.there = list(server.bifrost.clients)
    server.tell(event="subscribed", **server.place)
    await wait_until(lambda: "missed" in heard, "what was missed")
    await wait_until(lambda: len(heard) == 4, "its end")
    assert heard[1:] == [RECOVERED, "missed", subscribed(offset=3)]
    await room.subscribe()
    assert server.asked_for("zSubscribe")[-1] == {"topic": "room:1", "since": {"epoch": "e1.a", "offset": 3}}


@pytest_twisted.ensureDeferred
async def test_the_server_begins_what_may_not_be_asked_for(client: Client, server: TopicServer):
    """It goes on, and what may have been missed is said."""
    room = client.topic("room:1")
    heard = heard_of(room)
    server.say["zSubscribe"] = lambda asked: errors.PermissionDenied("no")
    server.there = list(server.bifrost.clients)
    server.tell(event="subscribed", **server.place)
    server.publish("first")
    await wait_until(lambda: "first" in heard, "the first")
    server.lose_all()
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    await wait_until(lambda: client.state == "connected", "the return")
    server.there = list(server.bifrost.clients)
    server.tell(event="subscribed", **server.place)
    await wait_until(lambda: len(heard) == 3, "the word of it")
    server.publish("second")
    await wait_until(lambda: "second" in heard, "the second")
    assert type(await failure_of(room.subscribe())) is errors.PermissionDenied
    server.publish("third")
    await wait_until(lambda: "third" in heard, "the third")
    denied = not_recovered("permission_denied")
    assert heard[1:] == ["first", denied, "second", denied, "third"]
    assert room.state == "subscribed" and ("zUnsubscribe", {"topic": "room:1"}) not in server.asked


@pytest_twisted.ensureDeferred
async def test_iteration(client: Client, server: TopicServer):
    """It subscribes, gives what is kept and what comes, goes on after a break where it was, and raises on a hole."""
    for data in range(4):
        server.publish(data)
    room = client.topic("room:1", last=3)
    seen = []
    async for message in room:
        seen.append(message["data"])
        if len(seen) == 2:
            break
    server.publish(4)
    await wait_until(lambda: room._subscription.offset == 5, "the fifth")
    messages = room.__aiter__()
    assert messages.__aiter__() is messages
    seen += [(await messages.__anext__())["data"] for _ in range(2)]
    assert seen == [1, 2, 3, 4]
    cancelled = Deferred.fromCoroutine(messages.__anext__())
    cancelled.cancel()
    assert type(await failure_of(cancelled)) is CancelledError
    reading = Deferred.fromCoroutine(messages.__anext__())
    other = room.__aiter__()
    server.publish(5)
    assert (await reading)["data"] == (await other.__anext__())["data"] == 5
    del other
    server.publish(6)
    server.tell(event="topic", epoch="e2", offset=9, recovered=False, reason="history_lost")
    server.epoch, server.top, server.kept = "e2", 9, {9: {"offset": 9, "data": "nine"}}
    await wait_until(lambda: room._subscription.epoch == "e2", "the discontinuity")
    assert (await messages.__anext__())["data"] == 6
    with pytest.raises(errors.MessagesLost, match="messages of room:1 are missing: history_lost") as raised:
        await messages.__anext__()
    assert (raised.value.topic, raised.value.reason) == ("room:1", "history_lost")
    with pytest.raises(StopAsyncIteration):
        await messages.__anext__()
    async for message in room:
        assert message["data"] == "nine"
        leaving = room.unsubscribe()
    await leaving


@pytest_twisted.ensureDeferred
async def test_iteration_of_what_comes_too_fast(client: Client, server: TopicServer):
    """A thousand wait; where more would, the iteration says so behind them. One that has not begun begins later."""
    room = client.topic("room:1")
    await room.subscribe()
    for data in range(MOST + 5):
        server.publish(data)
    await wait_until(lambda: room._subscription.offset == MOST + 5, "all")
    messages = room.__aiter__()
    assert (await messages.__anext__())["data"] == 5
    for data in range(MOST + 5, MOST + 9):
        server.publish(data)
    await wait_until(lambda: room._subscription.offset == MOST + 9, "more")
    assert [(await messages.__anext__())["data"] for _ in range(MOST)] == list(range(6, MOST + 6))
    with pytest.raises(errors.MessagesLost, match="too_slow"):
        await messages.__anext__()


@pytest_twisted.ensureDeferred
async def test_the_end_of_the_client_ends_all(client: Client, server: TopicServer):
    """Who waits is told; a client that connects again has its subscriptions again."""
    room = client.topic("room:1")
    heard = heard_of(room)
    messages = room.__aiter__()
    reading = Deferred.fromCoroutine(messages.__anext__())
    await wait_until(lambda: heard, "the subscription")
    server.lose_all(1008)
    assert type(await failure_of(reading)) is errors.ConnectionLost
    await client.connect()
    reading = Deferred.fromCoroutine(room.__aiter__().__anext__())
    await client.disconnect()
    assert type(await failure_of(reading)) is StopAsyncIteration
    for call in (room.history, lambda: room.publish(1), lambda: Deferred.fromCoroutine(room.__aiter__().__anext__())):
        assert type(await failure_of(call())) is errors.ConnectionLost
    await room.presence.set_state({})
    server.publish("missed")
    await client.connect()
    await wait_until(lambda: "missed" in heard, "what was missed")
    await client.disconnect()
    await room.unsubscribe()
    await client.connect()
    await client.send({"zKey": "ping"})
    assert len(server.asked_for("zSubscribe")) == 3


@pytest_twisted.ensureDeferred
async def test_subscribing_and_unsubscribing_take_turns(client: Client, server: TopicServer):
    """In the order of the calls, whichever connection they find; what nobody waits for any more is taken back."""
    room = client.topic("room:1")
    late: Deferred[None] = Deferred()
    server.say["zSubscribe"] = lambda asked: late
    calls = [room.subscribe(), room.unsubscribe(), room.subscribe(), room.unsubscribe()]
    await wait_until(lambda: server.asked, "the first")
    late.callback(None)
    del server.say["zSubscribe"]
    for call in calls:
        await call
    assert [key for key, _ in server.asked] == ["zSubscribe", "zUnsubscribe"] * 2
    server.say["zSubscribe"] = lambda asked: Deferred()
    server.asked.clear()
    given_up = room.subscribe()
    short = room.subscribe(timeout=0.05)
    assert type(await failure_of(short)) is errors.CommandTimeout and not given_up.called
    given_up.cancel()
    assert type(await failure_of(given_up)) is CancelledError
    assert await client.send({"zKey": "ping"}) == "ping"
    assert [key for key, _ in server.asked] == ["zSubscribe", "zUnsubscribe"]
    # Lost while it waits, it goes on with the next connection.
    waits = room.subscribe()
    await wait_until(lambda: len(server.asked) == 3, "the next")
    del server.say["zSubscribe"]
    server.lose_all()
    await waits
    server.lose_all()
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    await room.unsubscribe()
    # What waits for a connection is taken back, and what waits for its turn has no more time than it was given.
    waits = room.subscribe()
    short = room.subscribe(timeout=0.05)
    assert type(await failure_of(short)) is errors.CommandTimeout and room.state == "subscribing"
    await room.unsubscribe()
    assert type(await failure_of(waits)) is CancelledError and room.state == "unsubscribed"
    await wait_until(lambda: client.state == "connected", "the return")
    assert await client.send({"zKey": "ping"}) == "ping" and len(server.asked_for("zSubscribe")) == 3


@pytest_twisted.ensureDeferred
async def test_what_no_server_should_say_does_no_harm(client: Client, server: TopicServer):
    """Events that are none are left out, replies that are none fail; a listener that raises harms nobody."""
    room = client.topic("room:1", presence=True)
    heard = heard_of(room)
    broadcasts: list[Any] = []
    client.on_broadcast(broadcasts.append)

    def wrong(value: Any) -> None:
        raise RuntimeError("a listener of the test's")

    room.on("message", wrong)
    room.on("message", lambda message: heard.append("after"))
    await room.subscribe()
    for event in (
        {"event": "message", "offset": "x"},
        {"event": "message", "offset": 1, "key": 7},
        {"event": "presence"},
        {"event": "presence", "after": 1, "version": 2, "users": 1, "connections": 1, "joined": [1]},
        {"event": "topic", "epoch": 7},
        {"event": "message", "topic": "unknown:1", "offset": 1},
    ):
        server.tell(**event)
    server.tell(event="message", topic=7)
    server.bifrost.broadcast({"event": "message", "text": "a program's own"})
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    server.publish("good")
    await wait_until(lambda: "after" in heard, "a message")
    globalLogPublisher.removeObserver(logged.append)
    assert [item for item in heard if not isinstance(item, tuple)] == ["good", "after"]
    assert broadcasts == [
        {"event": "message", "topic": "unknown:1", "offset": 1},
        {"event": "message", "topic": 7},
        {"event": "message", "text": "a program's own"},
    ]
    assert any("a listener of" in str(event.get("log_format")) for event in logged)
    for answer in ({"messages": 7}, [], {"offset": "x"}):
        server.say["zHistory"] = lambda asked, answer=answer: answer
        server.say["zSubscribe"] = server.say["zHistory"]
        if answer != {"offset": "x"}:
            assert type(await failure_of(room.history())) is errors.InternalError
        other = client.topic("room:2")
        assert type(await failure_of(other.subscribe())) is errors.InternalError
    server.say["zPresence"] = lambda asked: {"version": "new"}
    await room.presence.set_state({"a": 1})


@pytest_twisted.ensureDeferred
async def test_one_topic_for_each_name(client: Client, server: TopicServer):
    """It is the same object while anybody needs it, and forgotten then; its options are those of its subscription."""
    heard: list[Any] = []
    client.topic("room:1").on("message", heard.append)
    gc.collect()
    await client.topic("room:1").subscribe()
    server.publish("hi")
    await wait_until(lambda: heard, "the message")
    room = client.topic("room:1", presence=True, last=3)
    assert client.topic("room:1", presence=True, last=3) is room is client.topic("room:1")
    since = {"epoch": "e1.a", "offset": 1}
    assert len(server.asked) == 1
    await room.subscribe()
    await room.subscribe()
    assert server.asked[1:] == [("zSubscribe", {"topic": "room:1", "since": since, "presence": True})]
    # Those that the server does not take leave it as it was.
    server.say["zSubscribe"] = lambda asked: errors.Invalid("last: no") if asked.get("echo") is False else None
    client.topic("room:1", echo=False)
    assert type(await failure_of(room.subscribe())) is errors.Invalid
    await wait_until(lambda: len(server.asked) == 4, "the way back")
    assert server.asked[3] == server.asked[1] and room.state == "subscribed"
    await room.unsubscribe()
    await room.subscribe()
    assert server.asked[-1] == ("zSubscribe", {"topic": "room:1", "last": 3, "presence": True})
    for number in range(1000):
        client.topic(f"room:{number + 2}")
    assert len(client._topics._known) == 1


def test_what_is_no_option_is_refused_by_name():
    """At once, with what is meant."""
    client = Client("ws://127.0.0.1:1")
    room = client.topic("room:1")
    for call, kind, said in (
        (lambda: client.topic(""), TypeError, "non-empty string"),
        (lambda: client.topic(7), TypeError, "non-empty string"),
        (lambda: client.topic("a", presence=1), TypeError, "presence is True or False"),
        (lambda: client.topic("a", echo="no"), TypeError, "echo is True or False"),
        (lambda: client.topic("a", last=0), TypeError, "last is a number of messages"),
        (lambda: client.topic("a", last=True), TypeError, "last is a number of messages"),
        (lambda: client.topic("a", state=[1]), TypeError, "state is a dict"),
        (lambda: client.topic("a", state={"x": float("nan")}), TypeError, r"state\.x is nan"),
        (lambda: room.on("mesage", print), ValueError, 'did you mean "message"'),
        (lambda: room.on("message", 5), TypeError, "not int"),
        (lambda: room.subscribe(timeout=0), TypeError, "timeout is a number of seconds"),
        (lambda: room.publish(b""), TypeError, "data is bytes"),
        (lambda: room.history(since=4), TypeError, "since is a dict"),
        (lambda: room.history(before="4"), TypeError, "before is a dict"),
    ):
        with pytest.raises(kind, match=said):
            call()


@pytest_twisted.ensureDeferred
async def test_a_first_connection_that_fails_ends_what_waited(free_port: int):
    """Who publishes while it is being made waits for it, and no longer."""
    client = Client(f"ws://127.0.0.1:{free_port}")
    connecting = client.connect()
    waiting = client.topic("room:1").publish(1)
    assert type(await failure_of(connecting)) is not None
    assert type(await failure_of(waiting)) is errors.ConnectionLost
    assert isinstance(await failure_of(client.connect()), ConnectError)


@pytest_twisted.ensureDeferred
async def test_each_of_several_loops_ends(client: Client, server: TopicServer):
    """All that wait for a message end with the subscription, and with the client, however soon one of them does."""
    for end in (client.topic("room:1").unsubscribe, client.disconnect):
        room = client.topic("room:1")
        await room.subscribe()
        ended: list[type[BaseException]] = []
        for messages in [aiter(room) for _ in range(3)]:
            waiting = Deferred.fromCoroutine(messages.__anext__())
            waiting.addErrback(lambda failure: ended.append(failure.type))  # noqa: B023 (it ends within the loop)
        await end()
        await wait_until(lambda: len(ended) == 3, "the end of each")  # noqa: B023 (it ends within the loop)
        assert ended == [StopAsyncIteration] * 3


@pytest_twisted.ensureDeferred
async def test_the_plain_client(server: TopicServer):
    """The same for programs without a reactor: calls wait, listeners have their thread, a loop waits for messages."""
    server.publish("kept")

    def use() -> None:
        heard: list[Any] = []
        changes: list[Any] = []
        with threaded.connect(server.bifrost.url) as client:
            room = client.topic("room:1", presence=True, last=10)

            def listen(message: Any) -> None:
                # In a thread where a call may wait.
                heard.append((message["data"], client.send({"zKey": "ping"}), threading.current_thread().name))

            stop = room.on("message", listen)
            room.on("presence", changes.append)
            assert room.subscribe()["offset"] == 1 and room.name == "room:1" and "room:1" in repr(room)
            assert room.publish("said")["offset"] == 2
            wait_until_blocking(lambda: len(heard) == 2 and changes, "the messages")
            assert [said for said, *_ in heard] == ["kept", "said"] and heard[0][1] == "ping"
            assert heard[0][2].startswith("zcomm-listener")
            stop()
            assert room.presence.members == {"ann": {"c1": {}}} == changes[0]["members"]
            assert (room.presence.users, room.presence.connections, room.presence.connection) == (1, 1, "c1")
            assert room.state == "subscribed" and room.position == {"epoch": "e1.a", "offset": 2}
            room.presence.set_state({"typing": True})
            assert [message["data"] for message in room.history(limit=1)["messages"]] == ["kept"]
            for number in range(3):
                room.publish(number)
            seen = []
            for message in room:
                seen.append(message["data"])
                if message["data"] == 1:
                    break
            for message in client.topic("room:1"):
                seen.append(message["data"])
                room.unsubscribe()
            assert seen == [0, 1, 2]
            messages = iter(client.topic("room:1", last=1))
            assert iter(messages) is messages and next(messages)["data"] == 2
            ended: list[BaseException] = []

            def wait() -> None:
                try:
                    next(messages)
                except Exception as error:
                    ended.append(error)

            waiting = threading.Thread(target=wait)
            waiting.start()
        waiting.join(DEADLINE)
        assert [type(error) for error in ended] == [StopIteration] and room.state == "subscribing"
        for call in (lambda: room.on("mesage", print), lambda: room.on("message", 5)):
            try:
                call()
            except (ValueError, TypeError):
                continue
            raise AssertionError("it was taken")

    await deferToThread(use)
