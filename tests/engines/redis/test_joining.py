"""Who joins a topic while messages come at both nodes gets each of them once, by the reply or as an event."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import RawClient, connect
from support.redisserver import RedisServer
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred

from zcomm import Config, WebSocketConfig, zComm
from zcomm.config import Limits
from zcomm.host import Host

MESSAGES, JOINERS = 1500, 12


async def started(directory: Path, engine: str) -> zComm:
    limits = Limits(ping_interval=3600.0, publish_rate=1e6)
    config = Config(directory, WebSocketConfig(port=0, require_auth=False, limits=limits), engine=engine)
    comm = zComm(Host(config, reactor), config=config, environ={"HOME": str(directory)}, reactor=reactor)
    await comm.start_websocket()
    await comm.start_below()
    return comm


class Joiner:
    """A client that begins its subscription anew, again and again, from where it is; it takes nothing for granted.

    :ivar got: what it has been told of each offset.
    """

    def __init__(self, client: RawClient, topic: str, seed: int):
        self.client = client
        self.topic = topic
        self.chance = random.Random(seed)
        self.position: dict[str, Any] | None = None
        self.got: dict[int, Any] = {}
        self.joined = 0
        self.done: Deferred[None] = Deferred()

    def take(self, offset: int, data: Any) -> None:
        assert self.position is not None and offset == self.position["offset"] + 1, (offset, self.position)
        self.position["offset"] = offset
        assert offset not in self.got
        self.got[offset] = data

    async def run(self) -> None:
        while len(self.got) < MESSAGES:
            asked: dict[str, Any] = {"topic": self.topic}
            if self.position is not None:
                asked["since"] = self.position
            reply = await self.client.call("zSubscribe", asked)
            assert "result" in reply, reply
            result = reply["result"]
            self.joined += 1
            if self.position is None:
                self.position = {"epoch": result["epoch"], "offset": 0}
                assert result["offset"] == 0
            else:
                assert result["recovered"], result
                for message in result["messages"]:
                    self.take(message["offset"], message["data"])
                assert self.position["offset"] == result["offset"]
            for _ in range(self.chance.randrange(200)):
                if len(self.got) == MESSAGES:
                    break
                event = await self.client.next_json()
                if event.get("event") == "message":
                    self.take(event["offset"], event["data"])


@pytest.mark.parametrize("seed", (1, 2))
@pytest_twisted.ensureDeferred
async def test_each_message_comes_once(tmp_path: Path, redis: RedisServer, prefix: str, seed: int):
    """In order and without a gap, at both nodes, with messages from both; the reply ends where the events begin."""
    engine = f"{redis.unix_url}?prefix={prefix}"
    comms = [await started(tmp_path / name, engine) for name in "ab"]
    joiners = [
        Joiner(await connect(comms[number % 2].websockets[0].port), "room:1", seed * 100 + number)
        for number in range(JOINERS)
    ]
    comms[0].topic("room:{id}", history=10_000, publish="anybody")
    comms[1].topic("room:{id}", history=10_000, publish="anybody")
    for joiner in joiners:
        reply = await joiner.client.call("zSubscribe", {"topic": "room:1"})
        joiner.position = {"epoch": reply["result"]["epoch"], "offset": reply["result"]["offset"]}
        assert joiner.position["offset"] == 0
    running = [ensureDeferred(joiner.run()) for joiner in joiners]
    chance = random.Random(seed)
    published = 0
    while published < MESSAGES:
        several = [
            chance.choice(comms).publish("room:1", published + number)
            for number in range(min(chance.choice([1, 3, 40]), MESSAGES - published))
        ]
        published += len(several)
        for one in several:
            await one
    results = await DeferredList(running, consumeErrors=True)
    for is_done, failure in results:
        if not is_done:
            failure.raiseException()
    told = [joiner.got for joiner in joiners]
    assert all(got == told[0] for got in told) and sorted(told[0]) == list(range(1, MESSAGES + 1))
    assert sorted(told[0].values()) == list(range(MESSAGES))
    assert sum(joiner.joined for joiner in joiners) > 5 * JOINERS
    for comm in comms:
        await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_who_is_slow_is_caught_up_at_either_node(tmp_path: Path, redis: RedisServer, prefix: str):
    """A client that takes nothing for a while is told each message once, in order, when it reads again, and is not
    thrown out; messages come at both nodes all the time."""
    engine = f"{redis.unix_url}?prefix={prefix}"
    comms = [await started(tmp_path / name, engine) for name in "ab"]
    for comm in comms:
        comm.topic("room:{id}", history=10_000, publish="anybody")
    clients = [await connect(comm.websockets[0].port) for comm in comms]
    text, count, published = "x" * 30_000, 450, 0
    for client in clients:
        reply = await client.call("zSubscribe", {"topic": "room:1"})
        assert reply["result"]["offset"] == 0

    async def publish() -> None:
        nonlocal published
        while published < count:
            several = [comms[each % 2].publish("room:1", [published + each, text]) for each in range(5)]
            published += len(several)
            for one in several:
                await one

    async def read(client: RawClient) -> None:
        for number in range(count):
            if number % 150 == 0:
                client.stop_reading()
                so_many = min(count, number + 120)
                await wait_until(lambda so_many=so_many: published >= so_many)
                client.read_again()
            event = await client.next_json()
            assert (event.get("event"), event.get("offset")) == ("message", number + 1)
            assert len(event["data"]) == 2

    running = [ensureDeferred(publish()), *(ensureDeferred(read(client)) for client in clients)]
    for is_done, result in await DeferredList(running, consumeErrors=True):
        if not is_done:
            result.raiseException()
    for comm in comms:
        await comm.stopService()
