"""Processes that die and that stand still: their members are gone, once, within 13 seconds; those that go on come in
again; and none goes where only Redis is away."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import RawClient, connect
from support.redisserver import RedisServer
from support.serverprocess import RunningServer, start_server
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

pytestmark = [pytest.mark.child, pytest.mark.timeout(180)]

ROOM = "room:1"
#: Seconds until the members of a process are gone that has died.
REAPED = 13.0
#: The rest of a busy machine.
SLACK = 6.0


def start(home: Path, engine: str) -> RunningServer:
    home.mkdir()
    return start_server("--port", "0", "--no-auth", "--engine", engine, home=home)


async def client_of(server: RunningServer) -> RawClient:
    client: RawClient = await connect(server.port)
    reply = await client.call("zSubscribe", {"topic": ROOM, "presence": True})
    assert "error" not in reply, reply
    return client


class Watcher:
    """The members of a topic, as a client has them by applying what it is told."""

    def __init__(self, client: RawClient):
        self.client = client
        self.there: set[str] = set()
        self.version = 0
        self.left: list[str] = []
        self.states: list[str] = []

    async def begin(self) -> Watcher:
        reply = await self.client.call("zPresence", {"topic": ROOM})
        self.version = reply["result"]["version"]
        self.there = {one for connections in reply["result"]["members"].values() for one in connections}
        self._go_on()
        return self

    def _go_on(self) -> None:
        self.client.next_json().addCallbacks(self._take, lambda _: None)

    def _take(self, message: dict[str, Any]) -> None:
        if message.get("event") == "engine":
            self.states.append(message["state"])
        if message.get("event") == "presence" and message["after"] <= self.version < message["version"]:
            self.version = message["version"]
            if "members" in message:
                self.there = {one for connections in message["members"].values() for one in connections}
            for connections in message.get("left", {}).values():
                self.left += connections
                self.there.difference_update(connections)
            for connections in message.get("joined", {}).values():
                self.there.update(connections)
        self._go_on()


def now() -> float:
    return float(reactor.seconds())  # type: ignore[attr-defined]


async def processes_die_and_stand_still(tmp_path: Path) -> None:
    """One is killed and one is stopped at the same moment; a third tells its client of both, and of the one that goes
    on after 15 seconds. What was acknowledged by the one that was killed is there."""
    with RedisServer() as redis:
        killed, still, watches = [
            await deferToThread(start, tmp_path / name, redis.unix_url) for name in ("killed", "still", "watches")
        ]
        try:
            watcher = await Watcher(await client_of(watches)).begin()
            lost, paused = [await client_of(killed) for _ in range(3)], [await client_of(still) for _ in range(2)]
            await wait_until(lambda: len(watcher.there) == 6)
            before = set(watcher.there)
            sent = await lost[0].call("zPublish", {"topic": ROOM, "data": "last words"})
            killed.signal(signal.SIGKILL)
            still.signal(signal.SIGSTOP)
            begun = now()
            await wait_until(lambda: len(watcher.there) == 1)
            assert now() - begun < REAPED + SLACK
            assert len(watcher.left) == 5 and len(set(watcher.left)) == 5
            await deferLater(reactor, max(0.0, 15 - (now() - begun)), lambda: None)  # type: ignore[arg-type]
            still.signal(signal.SIGCONT)
            await wait_until(lambda: len(watcher.there) == 3)
            assert watcher.there < before and len(watcher.left) == 5
            reply = await paused[0].call("zHistory", {"topic": ROOM})
            assert [message["data"] for message in reply["result"]["messages"]] == ["last words"]
            assert reply["result"]["offset"] == sent["result"]["offset"]
            # It is under the new name that they go.
            still.signal(signal.SIGTERM)
            await wait_until(lambda: len(watcher.there) == 1)
            assert len(watcher.left) == 7
        finally:
            for server in (killed, still, watches):
                server.signal(signal.SIGCONT)
                await deferToThread(server.kill)


async def nobody_dies_of_a_server_that_is_away(tmp_path: Path) -> None:
    """Redis is not there for twelve seconds, longer than a process may be silent."""
    with RedisServer(appendonly="yes", appendfsync="always") as redis:
        servers = [await deferToThread(start, tmp_path / name, redis.unix_url) for name in ("a", "b")]
        try:
            watchers = [await Watcher(await client_of(server)).begin() for server in servers]
            await wait_until(lambda: all(len(one.there) == 2 for one in watchers))
            redis.kill()
            await wait_until(lambda: all(one.states == ["degraded"] for one in watchers))
            await deferLater(reactor, 12, lambda: None)  # type: ignore[arg-type]
            await deferToThread(redis.start)
            await wait_until(lambda: all(one.states == ["degraded", "ok"] for one in watchers))
            # Two beats of each, so that it would have been seen.
            await deferLater(reactor, 7, lambda: None)  # type: ignore[arg-type]
            assert all(not one.left and len(one.there) == 2 for one in watchers)
        finally:
            for server in servers:
                await deferToThread(server.kill)


@pytest_twisted.ensureDeferred
async def test_processes_that_die_and_a_server_that_is_away(tmp_path: Path):
    """Both at once, as each takes its time."""
    await gatherResults(
        [
            Deferred.fromCoroutine(one(tmp_path))
            for one in (processes_die_and_stand_still, nobody_dies_of_a_server_that_is_away)
        ],
        consumeErrors=True,
    )
