"""Topics of the Python client against the product's own, over loopback TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest_twisted
from support.served import Served
from support.serverprocess import RunningServer
from support.waiting import wait_until
from twisted.internet.threads import deferToThread

from zcomm import errors
from zcomm.client import Client, Topic, connect, threaded

Enter = Callable[..., Any]


@pytest_twisted.async_yield_fixture
async def rooms(tmp_path_factory: Any) -> AsyncIterator[Served]:
    """A server with kinds of topics: rooms, a feed of the program's, and everybody's own."""
    server = Served(tmp_path_factory.mktemp("rooms"))
    server.comm.topic("room:{id}", history=5, presence=True)
    server.comm.topic("log:{id}", history=1000)
    server.comm.topic("feed:{id}", publish="nobody")
    server.comm.topic("user:{name}", personal=True, history=5)
    await server.start()
    yield server
    await server.stop()


@pytest_twisted.async_yield_fixture
async def enter(rooms: Served) -> AsyncIterator[Enter]:
    """``await enter()`` is a client of it: the operator's, unless ``token`` says whose."""
    clients: list[Client] = []

    async def enter(token: str = "") -> Client:
        client = await connect(rooms.bifrost.url, token or rooms.admin)
        clients.append(client)
        return client

    yield enter
    for client in clients:
        await client.disconnect()


def said(room: Topic) -> list[Any]:
    """The data of messages, and the word of continuity."""
    heard: list[Any] = []
    room.on("message", lambda message: heard.append(message["data"]))
    room.on("continuity", lambda value: heard.append((value["recovered"], value["reason"])))
    return heard


async def cut(server: Served, client: Client, *missed: tuple[str, Any]) -> None:
    """End the connections of the server, and wait until this client has noticed.

    :param missed: topics and what is published to them before anybody can be back.
    """
    states: list[str] = []
    client.on("state", states.append)
    for connection in list(server.bifrost.registry):
        connection.close(1001, "restart")
    for topic, data in missed:
        await server.comm.publish(topic, data)
    await wait_until(lambda: "reconnecting" in states, "the loss")


async def failure_of(deferred: Any) -> Any:
    """What a Deferred fails with."""
    try:
        return await deferred
    except Exception as error:
        return error


@pytest_twisted.ensureDeferred
async def test_two_talk(enter: Enter, rooms: Served):
    """Each hears both and sees who is there; who comes later hears what was said before, who was away what was
    missed."""
    alice, bob = await enter(), await enter(rooms.tokens["guest"])
    room, other = alice.topic("room:1", presence=True), bob.topic("room:1", last=3, echo=False)
    heard, answers, seen = said(room), said(other), []
    room.on("presence", seen.append)
    await room.subscribe()
    assert (await room.publish("first"))["offset"] == 1
    await other.subscribe()
    sent = await other.publish("second")
    assert sent["offset"] == 2
    for topic, is_own in ((room, False), (other, True)):
        newest = (await topic.history(limit=1, reverse=True))["messages"][0]
        assert (newest["key"], newest["own"], newest["data"]) == (sent["key"], is_own, "second")
    for asked in ({"since": {"epoch": "yesterday", "offset": 1}}, {"before": {"epoch": "yesterday", "offset": 1}}):
        nothing = await room.history(**asked)
        assert (nothing["recovered"], nothing["reason"], nothing["messages"]) == (False, "epoch", [])
    await wait_until(lambda: len(heard) == 2 and len(answers) == 2 and len(seen) == 2, "the messages")
    assert (heard, answers) == (["first", "second"], ["first", None])
    names = [alice_name] = list(seen[0]["members"])
    assert seen[1]["arrived"] == ["guest-user"] and set(seen[1]["members"]) == {*names, "guest-user"}
    await other.presence.set_state({"typing": True})
    await wait_until(lambda: len(seen) == 3, "the state")
    assert list(seen[2]["members"]["guest-user"].values()) == [{"typing": True}]
    assert room.presence.connection in room.presence.members[alice_name]
    await cut(rooms, alice, ("room:1", "missed"))
    await wait_until(lambda: "missed" in heard and "missed" in answers, "what was missed")
    assert heard[2:] == [(True, None), "missed"] and answers[2:] == [(True, None), "missed"]
    for number in range(6):
        await rooms.comm.publish("room:1", number)
    await wait_until(lambda: 5 in heard and 5 in answers, "the next")
    assert heard[4:] == answers[4:] == list(range(6))
    await bob.disconnect()
    await wait_until(lambda: seen[-1]["gone"] == ["guest-user"], "the end of one")


@pytest_twisted.ensureDeferred
async def test_what_is_no_longer_kept_is_said(enter: Enter, rooms: Served):
    """Away for more messages than are kept; the newest that were asked for come all the same."""
    client = await enter()
    room, feed = client.topic("room:2", last=2), client.topic("feed:2")
    heard, news = said(room), said(feed)
    await room.subscribe()
    await feed.subscribe()
    await room.publish("before")
    await cut(rooms, client, *((topic, number) for number in range(7) for topic in ("room:2", "feed:2")))
    await wait_until(lambda: 6 in heard and news, "the newest")
    assert heard == ["before", (False, "too_old"), 5, 6] and news == [(False, "not_kept")]
    await rooms.comm.publish("feed:2", "now")
    await wait_until(lambda: "now" in news, "the feed")
    assert type(await failure_of(feed.publish("mine"))) is errors.PermissionDenied
    assert type(await failure_of(feed.history())) is errors.Invalid
    assert type(await failure_of(client.topic("nothing:1").subscribe())) is errors.NotFound
    assert type(await failure_of(client.topic("feed:1", presence=True).subscribe())) is errors.Invalid
    assert type(await failure_of(client.topic("room 1").publish(1))) is errors.Invalid
    assert type(await failure_of(room.presence.set_state({"much": "x" * 2000}))) is errors.Invalid


@pytest_twisted.ensureDeferred
async def test_ones_own_topic(enter: Enter, rooms: Served):
    """It is heard without asking, goes on after a loss, and cannot be left."""
    client = await enter(rooms.tokens["guest"])
    mine = client.topic("user:guest-user")
    heard = said(mine)
    await rooms.comm.publish("user:guest-user", "for you")
    await wait_until(lambda: heard, "the message")
    await cut(rooms, client, ("user:guest-user", "while away"))
    await wait_until(lambda: "while away" in heard, "what was missed")
    assert heard == ["for you", (True, None), "while away"]
    await mine.subscribe()
    assert type(await failure_of(mine.unsubscribe())) is errors.Invalid
    await rooms.comm.publish("user:guest-user", "still")
    await wait_until(lambda: heard[-1] == "still", "the next")
    given = client.topic("room:3")
    ends: list[Any] = []
    given.on("unsubscribed", ends.append)
    assert await rooms.comm.subscribe("room:3", to="guest-user") == 1
    assert (await given.publish("mine"))["offset"] == 1
    rooms.comm.unsubscribe("room:3", to="guest-user")
    await wait_until(lambda: ends, "the end")
    assert ends == [{"topic": "room:3", "reason": "ended"}]
    assert type(await failure_of(given.publish("no more"))) is errors.PermissionDenied


@pytest_twisted.ensureDeferred
async def test_a_room_for_many_at_once(enter: Enter, rooms: Served):
    """Messages in bursts, with losses in between: each once and in order, by listener and by iteration."""
    writer, reader = await enter(), await enter(rooms.tokens["guest"])
    room, other = writer.topic("log:1"), reader.topic("log:1")
    await room.subscribe()
    heard = said(other)
    iteration = other.__aiter__()
    await other.subscribe()
    for burst in range(20):
        calls = [room.publish(burst * 5 + number) for number in range(5)]
        if burst % 8 == 1:
            await cut(rooms, writer)
        for call in calls:
            await call
    await wait_until(lambda: 99 in heard, "the last")
    assert [data for data in heard if not isinstance(data, tuple)] == list(range(100))
    assert {data for data in heard if isinstance(data, tuple)} <= {(True, None)}
    assert [(await iteration.__anext__())["data"] for _ in range(100)] == list(range(100))


@pytest_twisted.ensureDeferred
async def test_killed_and_started_again(running_server: Callable[..., RunningServer], free_port: int):
    """After a restart of a server that keeps its history in memory, listeners hear that it is another."""
    server = await deferToThread(running_server, "--port", str(free_port))

    def use() -> tuple[list[Any], Any]:
        with threaded.connect(server.url, server.token) as client:
            room = client.topic("room:1", presence=True)
            heard: list[Any] = []
            room.on("continuity", heard.append)
            messages = iter(room)
            room.subscribe()
            room.publish("before")
            assert next(messages)["data"] == "before"
            server.kill()
            running_server("--port", str(free_port))
            try:
                next(messages)
            except errors.MessagesLost as error:
                room.publish("after")
                (said,) = [next(iter(room))["data"]]
                assert room.presence.users == 1
                return heard, (error.reason, said)
        raise AssertionError("it went on")

    heard, told = await deferToThread(use)
    assert heard == [{"recovered": False, "reason": "epoch"}] and told == ("epoch", "after")
