"""Real servers that fail in every way, under two engines: what was acknowledged is delivered, in order and once, or it
is said that it is not; nobody waits for ever; and all is well again when they are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from support.chaosproxy import ChaosProxy
from support.rediscluster import Cluster
from support.redisreplication import Replication, Sentinels
from support.redisserver import RedisServer
from support.traffic import LONG, Traffic, Witness, while_busy
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from zcomm.errors import Unavailable
from zcomm.interfaces import EVERYBODY, Broadcast

ROOM = "room:1"
#: Seconds in which members of a node are gone that has died.
REAPED = 13.0

Make = Callable[[str], Any]


@pytest_twisted.async_yield_fixture
async def make() -> AsyncIterator[Make]:
    """Makes engines that end with the test."""
    made: list[Witness] = []

    async def one(url: str) -> Witness:
        made.append(Witness(url))
        await made[-1].start()
        return made[-1]

    yield one
    for node in made:
        await node.engine.stopService()


async def pair(make: Make, url: str, other: str = "") -> list[Witness]:
    return [await make(url), await make(other or url)]


def after(seconds: float) -> Deferred[Any]:
    """Fires after the time that a fault has to last to be one."""
    return deferLater(reactor, seconds, lambda: None)


def thread(call: Callable[..., Any], *words: Any, **more: Any) -> Deferred[Any]:
    return deferToThread(call, *words, **more)


@pytest_twisted.ensureDeferred
async def test_a_kill_loses_nothing_that_is_on_disk(make: Make):
    """With ``appendfsync always`` nobody is told of a loss, and there is none."""
    with RedisServer(appendonly="yes", appendfsync="always") as redis:
        nodes = await pair(make, redis.unix_url)

        async def fault(traffic: Traffic) -> None:
            for _ in range(3):
                redis.kill()
                await thread(redis.start)
                await traffic.goes_on()

        traffic, moved = await while_busy(nodes, fault)
        assert moved == [False, False] and not traffic.refused


@pytest.mark.parametrize("kept", ["older", "nothing"])
@pytest_twisted.ensureDeferred
async def test_who_has_seen_what_is_lost_is_told(make: Make, kept: str):
    """A server that comes back without its newest messages, or with nothing at all."""
    with RedisServer(appendonly="yes", appendfsync="everysec") as redis:
        nodes = await pair(make, redis.unix_url)

        async def fault(traffic: Traffic) -> None:
            data = redis.copy_data() if kept == "older" else None
            await traffic.goes_on()
            await thread(redis.restart, data=data, empty=data is None)

        _, moved = await while_busy(nodes, fault)
        assert moved == [True, True]


@pytest_twisted.ensureDeferred
async def test_a_loss_is_told_before_the_next_message(make: Make):
    """Also where nobody publishes any more."""
    with RedisServer(appendonly="yes") as redis:
        nodes = await pair(make, redis.unix_url)
        for node in nodes:
            await node.listen(ROOM)
        first = await nodes[0].engine.publish(ROOM, LONG, b"1", "ann")
        data = redis.copy_data()
        await nodes[0].engine.publish(ROOM, LONG, b"2", "ann")
        for node in nodes:
            await node.hears(2)
        await thread(redis.restart, data=data)
        for node in nodes:
            await wait_until(lambda node=node: node.moves)
            assert node.moves == [(ROOM, first, "history_lost")]


@pytest_twisted.ensureDeferred
async def test_a_message_to_nodes_that_is_lost_is_missed_by_all(make: Make):
    """Also by the one that had not heard of it yet, which cannot know: whoever has heard of it says so."""
    with RedisServer(appendonly="yes") as redis:
        a = await make(redis.unix_url)
        async with ChaosProxy(redis.path) as proxy:
            b = await make(f"redis://127.0.0.1:{proxy.port}")
            await wait_until(lambda: a.engine.nodes() and b.engine.nodes())
            data = redis.copy_data()
            proxy.stall("to_client")
            a.engine.tell(Broadcast(b'{"zKey":"x"}', EVERYBODY))
            a.engine.cast(b"word")
            topic = a.engine._layout.topic("$all").stream
            await wait_until(lambda: b"word" in str(redis.call("XRANGE", topic.decode(), "-", "+")).encode())
            redis.kill()
            proxy.cut()
            proxy.go_on()
            await thread(redis.restart, data=data)
            await wait_until(lambda: b.misses, "a word of what was missed")
            assert not b.said
            assert [json.loads(message.payload) for message in b.told] == [
                {"event": "engine", "state": "ok", "recovered": False}
            ]


@pytest_twisted.ensureDeferred
async def test_a_server_that_stands_still(make: Make):
    """What was asked waits, and is done once; nobody is taken for dead."""
    with RedisServer() as redis:
        nodes = await pair(make, redis.unix_url)
        for number, node in enumerate(nodes):
            await node.engine.enter(ROOM, f"c{number}", f"user{number}", b"{}")

        async def fault(traffic: Traffic) -> None:
            redis.pause()
            await after(7)
            redis.go_on()

        traffic, moved = await while_busy(nodes, fault)
        assert moved == [False, False] and not traffic.refused
        assert (await nodes[0].engine.members(ROOM)).connections == 2
        assert not any(node.gone(ROOM) for node in nodes)
        for node in nodes:
            # It is found to be away after five seconds, and said so a second later.
            await wait_until(lambda node=node: node.states in ([], ["degraded", "ok"]))


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("direction", ["to_client", "to_server"])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_stalls_and_is_cut(make: Make, direction: Any, keyed: bool):
    """An answer that is lost: with a key it is done once, without one nobody says that it was not done."""
    with RedisServer() as redis:
        async with ChaosProxy(redis.path) as proxy:
            nodes = await pair(make, redis.unix_url, f"redis://127.0.0.1:{proxy.port}")

            async def fault(traffic: Traffic) -> None:
                for _ in range(3):
                    proxy.stall(direction)
                    await traffic.goes_on()
                    proxy.cut()
                    proxy.go_on()
                    await traffic.goes_on()

            traffic, moved = await while_busy(nodes, fault, keyed=keyed)
            assert moved == [False, False]
            assert bool(traffic.refused) is not keyed
            assert all("_idempotencyKey" in one for one in traffic.refused)


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
@pytest_twisted.ensureDeferred
async def test_connections_that_a_server_ends(make: Make, kind: str):
    """Of either kind, again and again."""
    with RedisServer() as redis:
        nodes = await pair(make, redis.unix_url)

        async def fault(traffic: Traffic) -> None:
            for _ in range(10):
                await wait_until(lambda: redis.call("CLIENT", "LIST", "TYPE", kind).count("name=zcomm") == 2)
                # The kit's own connection is another.
                redis.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                await traffic.goes_on(4)

        traffic, moved = await while_busy(nodes, fault)
        assert moved == [False, False] and not traffic.refused


@pytest_twisted.ensureDeferred
async def test_changes_of_members_that_were_not_heard_are_asked_for(make: Make):
    """A node whose connection for channels was away says of which topics it may not know who is there."""
    with RedisServer() as redis:
        async with ChaosProxy(redis.path) as proxy:
            a, b = await pair(make, redis.unix_url, f"redis://127.0.0.1:{proxy.port}")
            await b.listen(ROOM)
            await b.engine.listen("un:1", None)
            assert not b.unheard
            proxy.cut()
            await a.engine.enter(ROOM, "a-1", "ann", b"{}")
            await wait_until(lambda: {ROOM, "un:1"} <= set(b.unheard))


@pytest_twisted.ensureDeferred
async def test_a_delay_changes_nothing_but_the_time(make: Make):
    """Messages and answers that are 300 ms late, each way."""
    with RedisServer() as redis:
        async with ChaosProxy(redis.path) as proxy:
            nodes = await pair(make, redis.unix_url, f"redis://127.0.0.1:{proxy.port}")

            async def fault(traffic: Traffic) -> None:
                proxy.delay(0.3)
                await traffic.goes_on()

            traffic, moved = await while_busy(nodes, fault)
            assert moved == [False, False] and not traffic.refused


@pytest_twisted.ensureDeferred
async def test_scripts_that_are_forgotten(make: Make):
    """``SCRIPT FLUSH``: they are told again, and nobody notices."""
    with RedisServer() as redis:
        nodes = await pair(make, redis.unix_url)

        async def fault(traffic: Traffic) -> None:
            for _ in range(5):
                redis.call("SCRIPT", "FLUSH")
                await traffic.goes_on(5)

        traffic, moved = await while_busy(nodes, fault, keyed=False)
        assert moved == [False, False] and not traffic.refused


@pytest_twisted.ensureDeferred
async def test_a_node_that_reads_too_slowly(make: Make):
    """The server ends its connection for channels; it gets all of it from the stream."""
    with RedisServer(client_output_buffer_limit="pubsub 64kb 0 0") as redis:
        async with ChaosProxy(redis.path) as proxy:
            a, b = await pair(make, redis.unix_url, f"redis://127.0.0.1:{proxy.port}")
            for node in (a, b):
                await node.listen(ROOM)
            proxy.stall("to_client")
            for number in range(100):
                await a.engine.publish(ROOM, LONG, b"%d" % number + b"x" * 60_000, "ann")
            await wait_until(lambda: redis.call("CLIENT", "LIST", "TYPE", "pubsub").count("name=zcomm") == 1)
            proxy.go_on()
            for node in (a, b):
                await node.hears(100)
                assert node.check(ROOM)[1] is False and node.offsets(ROOM) == [*range(1, 101)]


@pytest_twisted.ensureDeferred
async def test_a_server_without_room(make: Make):
    """What needs room is refused at once, and taken again when there is some; what was begun to be listened to
    meanwhile is heard then."""
    with RedisServer() as redis:
        a, b = await pair(make, redis.unix_url)
        await a.listen(ROOM)
        redis.call("CONFIG", "SET", "maxmemory", 1)
        listening = b.engine.listen("room:2", LONG)
        await wait_until(lambda: "errorstat_OOM" in redis.info("errorstats"), "that it is refused")
        with pytest.raises(Unavailable):
            await a.engine.publish(ROOM, LONG, b"1", "ann")
        with pytest.raises(Unavailable):
            await a.engine.enter(ROOM, "a-1", "ann", b"{}")
        with pytest.raises(Unavailable):
            await b.engine.publish("room:2", LONG, b"1", "ann")
        redis.call("CONFIG", "SET", "maxmemory", 0)
        await listening
        assert await a.engine.publish(ROOM, LONG, b"2", "ann")
        assert await a.engine.publish("room:2", LONG, b"3", "ann")
        await wait_until(lambda: b.offsets("room:2") == [1])
        await wait_until(lambda: a.offsets(ROOM) == [1])
        # With the next beat.
        members = await b.engine.members(ROOM)
        while not members.connections:
            members = await b.engine.members(ROOM)
        assert members.members == {"ann": {"a-1": b"{}"}}


@pytest_twisted.ensureDeferred
async def test_who_left_just_before_a_loss_does_not_come_back(make: Make):
    """A server that has forgotten that a connection left is told again."""
    with RedisServer(appendonly="yes") as redis:
        a, b = await pair(make, redis.unix_url)
        await b.listen(ROOM)
        for name in ("ann", "bob"):
            await a.engine.enter(ROOM, f"a-{name}", name, b"{}")
        data = redis.copy_data()
        a.engine.leave(ROOM, "a-ann")
        await wait_until(lambda: len(b.gone(ROOM)) == 1)
        await thread(redis.restart, data=data)
        members = a.engine._layout.topic(ROOM).members.decode()
        await wait_until(lambda: redis.call("HKEYS", members) == ['"a-bob"'], "a second goodbye")
        found = await b.engine.members(ROOM)
        assert found.members == {"bob": {"a-bob": b"{}"}} and found.users == 1
        # The loss was before that, or nobody would know.
        await wait_until(lambda: ROOM in b.unheard)


@pytest_twisted.ensureDeferred
async def test_a_failover_by_sentinels(make: Make):
    """While messages are published: whoever was promoted goes on, and who has seen more than it has is told."""
    with Replication(2) as servers, Sentinels(servers) as sentinels:
        hosts = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
        nodes = await pair(make, f"redis+sentinel://{hosts}/{sentinels.name}")

        async def fault(traffic: Traffic) -> None:
            await thread(sentinels.failover)
            await traffic.goes_on()
            await thread(sentinels.wait_until_settled)
            old = await thread(sentinels.master)
            old.kill()
            await thread(sentinels.wait_for_another_master, old)

        traffic, _ = await while_busy(nodes, fault)
        assert not traffic.refused


@pytest_twisted.ensureDeferred
async def test_a_cluster_that_changes_masters_there_and_back(make: Make):
    """``CLUSTER FAILOVER``: the connections stay, the history is another; nothing is lost, nobody is told so."""
    with Cluster(3, 1) as cluster:
        nodes = await pair(make, "redis+cluster://" + ",".join(f"{host}:{port}" for host, port in cluster.addresses))
        slot = nodes[0].engine._layout.slots[nodes[0].engine._layout.topic(ROOM).partition]

        async def fault(traffic: Traffic) -> None:
            for _ in range(2):
                master = await thread(cluster.owner_of, slot)
                (replica,) = await thread(cluster.replicas_of, master)
                await thread(cluster.failover, replica)
                await traffic.goes_on()

        traffic, moved = await while_busy(nodes, fault)
        assert moved == [False, False] and not traffic.refused


@pytest.mark.parametrize("keyed", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_slot_that_moves(make: Make, keyed: bool):
    """A part of the topics goes to another server of the cluster: they wait for that, and go on."""
    with Cluster(3) as cluster:
        nodes = await pair(make, "redis+cluster://" + ",".join(f"{host}:{port}" for host, port in cluster.addresses))
        slot = nodes[0].engine._layout.slots[nodes[0].engine._layout.topic(ROOM).partition]

        async def fault(traffic: Traffic) -> None:
            for _ in range(2):
                owner = await thread(cluster.owner_of, slot)
                to = next(server for server in cluster.servers if server is not owner)
                await thread(cluster.move_slot, slot, to)
                await traffic.goes_on()

        traffic, moved = await while_busy(nodes, fault, keyed=keyed)
        assert moved == [False, False] and not traffic.refused


@pytest_twisted.ensureDeferred
async def test_a_master_that_becomes_a_replica(make: Make):
    """Under a URL that names it alone: publishes are refused at their deadline, and taken when it is a master again."""
    with RedisServer() as redis, RedisServer() as other:
        nodes = await pair(make, redis.unix_url)
        for node in nodes:
            await node.listen(ROOM)
        redis.call("REPLICAOF", *other.address)
        published = [node.engine.publish(ROOM, LONG, b"1", "ann") for node in nodes]
        begun = reactor.seconds()  # type: ignore[attr-defined]
        for each in published:
            with pytest.raises(Unavailable):
                await each
        assert 9 < reactor.seconds() - begun < 16  # type: ignore[attr-defined]
        redis.call("REPLICAOF", "NO", "ONE")
        # The other one has nothing of the topic.
        assert await nodes[0].engine.publish(ROOM, LONG, b"2", "ann")
        await wait_until(lambda: all(node.moves for node in nodes), "a word of what is lost")
        assert await nodes[0].engine.publish(ROOM, LONG, b"3", "ann")
        await wait_until(lambda: all(b"3" in [one[2] for one in node.messages] for node in nodes))
