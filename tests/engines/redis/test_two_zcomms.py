"""Two zComms on one Redis and one database: whoever is connected where, it is the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_twisted
from support.chaosproxy import ChaosProxy
from support.docs_blocks import block, runs
from support.rawclient import Opcode, RawClient, connect
from support.redisserver import RedisServer
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.web.client import Agent, readBody

from zcomm import Config, WebSocketConfig, zComm
from zcomm.config import Limits
from zcomm.host import Host

Pair = tuple[zComm, zComm]


async def server(directory: Path, engine: str, **limits: Any) -> zComm:
    """A zComm that listens, with the demo's models."""
    config = Config(directory, WebSocketConfig(port=0, require_auth=False, limits=Limits(**limits)), engine=engine)
    comm = zComm(Host(config, reactor), config=config, environ={"HOME": str(directory)}, reactor=reactor)
    await comm.start_websocket()
    await comm.start_below()
    return comm


@pytest_twisted.async_yield_fixture
async def pair(tmp_path: Path, redis: RedisServer, prefix: str) -> AsyncIterator[Pair]:
    """Two of them, on one engine; each has a database of its own."""
    engine = f"{redis.unix_url}?prefix={prefix}"
    two = await server(tmp_path / "a", engine), await server(tmp_path / "b", engine)
    yield two
    for comm in two:
        await comm.stopService()


async def client_of(comm: zComm) -> RawClient:
    return await connect(comm.websockets[0].port)


async def call(client: RawClient, key: str, horizontal: Any) -> Any:
    reply = await client.call(key, horizontal)
    assert "error" not in reply, reply
    return reply["result"]


async def event(client: RawClient, name: str) -> Any:
    """The next event of that name; none of another comes before."""
    message = await client.next_json()
    assert message.get("event") == name, message
    return message


@pytest_twisted.ensureDeferred
async def test_changes_reach_the_clients_of_both(pair: Pair):
    """What is created at one is told at the other, with no request id."""
    a, b = pair
    writer, far = await client_of(a), await client_of(b)
    row = await call(writer, "create_Users", {"values": {"name": "Ann", "email": "ann@example.com"}})
    assert await far.next_json() == {"zKey": "create_Users", "result": row}
    assert await b.broadcast_websocket("hello") >= 1
    assert (await writer.next()).text == (await far.next()).text == "hello"


@pytest_twisted.ensureDeferred
async def test_a_topic_is_one_at_both(pair: Pair):
    """Subscribe, publish, resume, history and presence, at whichever."""
    a, b = pair
    near, far = await client_of(a), await client_of(b)
    begun = await call(near, "zSubscribe", {"topic": "room:1", "presence": True})
    also = await call(far, "zSubscribe", {"topic": "room:1", "echo": False})
    assert (begun["epoch"], begun["offset"]) == (also["epoch"], also["offset"]) == (begun["epoch"], 0)
    told = await event(near, "presence")
    assert told["users"] == 1 and told["connections"] == 2 and len(told["joined"]["anonymous"]) == 1
    sent = await call(far, "zPublish", {"topic": "room:1", "data": {"n": 1}, "_idempotencyKey": "k-1"})
    assert sent == {"topic": "room:1", "epoch": begun["epoch"], "offset": 1}
    heard = await event(near, "message")
    assert heard == {
        "event": "message",
        "topic": "room:1",
        "offset": 1,
        "key": "k-1",
        "data": {"n": 1},
        "from": "anonymous",
    }
    own = await event(far, "message")
    assert own == {"event": "message", "topic": "room:1", "offset": 1, "own": True, "key": "k-1"}
    again = await call(near, "zPublish", {"topic": "room:1", "data": {"n": 1}, "_idempotencyKey": "k-1"})
    assert again == sent
    await call(near, "zPublish", {"topic": "room:1", "data": 2})
    assert (await event(near, "message"))["offset"] == (await event(far, "message"))["offset"] == 2
    late = await client_of(b)
    resumed = await call(late, "zSubscribe", {"topic": "room:1", "since": {"epoch": begun["epoch"], "offset": 0}})
    assert resumed["recovered"] and [message["offset"] for message in resumed["messages"]] == [1, 2]
    assert [message["data"] for message in resumed["messages"]] == [{"n": 1}, 2]
    history = await call(late, "zHistory", {"topic": "room:1", "limit": 1, "reverse": True})
    assert history["more"] and history["messages"][0]["offset"] == 2
    late.transport.abortConnection()
    told = await event(near, "presence")
    while told["connections"] != 2:
        told = await event(near, "presence")


@pytest_twisted.ensureDeferred
async def test_the_program_reaches_the_connections_of_both(pair: Pair):
    """Subscribed and unsubscribed by it, and ended, wherever they are."""
    a, b = pair
    near, far = await client_of(a), await client_of(b)
    await wait_until(lambda: a.engine.nodes() and b.engine.nodes())
    assert await a.subscribe("room:1", to="anonymous") == 2
    for client in (near, far):
        assert (await event(client, "subscribed"))["topic"] == "room:1"
    position = await b.publish("room:1", "hi")
    assert position is not None and position.offset == 1
    for client in (near, far):
        assert (await event(client, "message"))["data"] == "hi"
    assert b.unsubscribe("room:1") == 1
    for client in (near, far):
        assert (await event(client, "unsubscribed"))["reason"] == "ended"
    assert a.end_sessions("anonymous") == 1
    for client in (near, far):
        assert (await client.next_close()).close_code == 1013


async def health_of(comm: zComm) -> dict[str, Any]:
    """The health report of a server, with its status."""
    response = await Agent(reactor).request(b"GET", f"http://127.0.0.1:{comm.websockets[0].port}/health".encode())
    report: dict[str, Any] = json.loads(await readBody(response))
    return report | {"code": response.code}


@pytest_twisted.ensureDeferred
async def test_the_connections_of_a_user_are_counted_together(tmp_path: Path, redis: RedisServer, prefix: str):
    """Where a number was given it is for all processes; a place that was left is free at once, wherever."""
    engine = f"{redis.unix_url}?prefix={prefix}"
    a, b = [await server(tmp_path / name, engine, connections_per_user=3) for name in "ab"]
    clients = [await client_of(comm) for comm in (a, b, a)]
    for comm in (a, b):
        refused = await client_of(comm)
        assert (await refused.next_close()).close_code == 1013
    clients[1].abort()

    async def has_come_in() -> bool:
        client = await client_of(a)
        client.send_json({"zKey": "ping", "_requestId": 1})
        frame = await client.next()
        return bool(frame.opcode == Opcode.TEXT)

    while not await has_come_in():
        pass
    for comm in (a, b):
        await comm.stopService()
    assert not redis.call("KEYS", f"{prefix}:{{0}}:p:*")


@pytest_twisted.ensureDeferred
async def test_the_engine_has_one_id_for_all(pair: Pair, redis: RedisServer, prefix: str):
    """Also where its server has lost it."""
    a, b = pair
    known = await a.engine.identity()
    assert known == await b.engine.identity() and known not in (a.engine.node, b.engine.node)
    redis.call("DEL", f"{prefix}:{{0}}:id")
    assert await a.engine.identity() == await b.engine.identity() != known


@runs("protocol-engine")
@pytest_twisted.ensureDeferred
async def test_the_engine_goes_and_comes_back(tmp_path: Path):
    """Clients are told; what waits is done or says `unavailable`; what was missed is made good."""
    with RedisServer() as redis:
        a, b = await server(tmp_path / "a", redis.unix_url), await server(tmp_path / "b", redis.unix_url)
        near, far = await client_of(a), await client_of(b)
        begun = await call(near, "zSubscribe", {"topic": "room:1"})
        await call(far, "zSubscribe", {"topic": "room:1"})
        await call(near, "zPublish", {"topic": "room:1", "data": 1})
        for client in (near, far):
            assert (await event(client, "message"))["offset"] == 1
        redis.kill()
        for client in (near, far):
            assert await event(client, "engine") == json.loads(block("protocol-engine").text)
        health = await health_of(a)
        assert (health["code"], health["status"], health["engine"]) == (200, "ok", "unavailable")
        # It keeps nothing: another server with another history, on which all begins anew.
        redis.start()
        for client in (near, far):
            events: dict[str, Any] = {}
            while events.keys() != {"engine", "topic"}:
                message = await client.next_json()
                events[message["event"]] = message
            assert events["engine"]["state"] == "ok"
            assert not events["topic"]["recovered"] and events["topic"]["epoch"] != begun["epoch"]
        sent = await call(near, "zPublish", {"topic": "room:1", "data": 2})
        assert sent["offset"] == 1
        for client in (near, far):
            message = await client.next_json()
            while message["event"] == "engine":
                message = await client.next_json()
            assert message["data"] == 2
        health = await health_of(b)
        assert (health["engine"], health["nodes"]) == ("ok", 2)
        url = f"http://127.0.0.1:{b.websockets[0].port}/metrics".encode()
        metrics = (await readBody(await Agent(reactor).request(b"GET", url))).decode()
        for line in ("zcomm_engine_up 1.0", "zcomm_nodes 2.0", "# TYPE zcomm_clients_of_all_nodes gauge"):
            assert f"\n{line}\n" in metrics
        for comm in (a, b):
            await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_who_watches_hears_of_what_was_not_heard(tmp_path: Path):
    """Somebody comes while the connection for channels is down: whoever watches is told all members then."""
    with RedisServer() as redis:
        async with ChaosProxy(redis.path) as proxy:
            a = await server(tmp_path / "a", redis.unix_url)
            b = await server(tmp_path / "b", f"redis://127.0.0.1:{proxy.port}")
            far = await client_of(b)
            begun = await call(far, "zSubscribe", {"topic": "room:1", "presence": True})
            told: dict[str, Any] = {"connections": 1}
            await proxy.refuse()
            proxy.cut()
            near = await client_of(a)
            await call(near, "zSubscribe", {"topic": "room:1", "presence": True})
            proxy.go_on()
            while told["connections"] != 2:
                message = await far.next_json()
                told = message if message.get("event") == "presence" else told
            assert told["after"] <= begun["presence"]["version"] < told["version"]
            assert len(told["members"]["anonymous"]) == 2
            for comm in (a, b):
                await comm.stopService()
