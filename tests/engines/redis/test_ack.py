"""What a message has survived when it is acknowledged, on real servers."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.nodes import KEPT, Node
from support.redisreplication import Replication
from support.redisserver import RedisServer
from support.waiting import wait_until_blocking
from twisted.internet.threads import deferToThread

from zcomm.errors import ConfigError, Unavailable
from zcomm.interfaces import Position


@pytest_twisted.ensureDeferred
async def test_fsync_is_looked_at():
    """A server that answers before its disk has it is refused; one that waits for that is used."""
    for settings, is_good in (
        ({}, False),
        ({"appendonly": "yes", "appendfsync": "everysec"}, False),
        ({"appendonly": "yes", "appendfsync": "always"}, True),
    ):
        with RedisServer(**settings) as redis:
            node = Node(redis.unix_url, ack="fsync")
            try:
                await node.start()
            except ConfigError as error:
                assert not is_good and error.name == "--ack" and "appendfsync always" in error.reason
            else:
                assert is_good
                sent = await node.engine.publish("room:1", KEPT, b'"data":1')
                assert sent is not None
                await deferToThread(redis.restart, kill=True)
                again = await node.engine.resume("room:1", Position(sent.epoch, 0))
                assert [message.fragment for message in again.messages] == [b'"data":1'] and not again.reason
            await node.engine.stopService()


@pytest_twisted.ensureDeferred
async def test_replicas_have_it_or_it_is_not_acknowledged():
    """All that are connected; one that stands still makes it `unavailable`."""
    with Replication(2) as servers:
        node = await Node(servers.master.url, ack="replica").start()
        client = servers.master.client()

        def have_both() -> bool:
            client.call("SET", "written", 1)
            return bool(client.call("WAIT", 2, 100) == 2)

        # A replica that has only just been connected says nothing within its first second.
        await deferToThread(wait_until_blocking, have_both, "both replicas")
        sent = await node.engine.publish("room:1", KEPT, b'"data":1')
        for replica in servers.replicas:
            assert replica.call("XLEN", "zc:{0}:s:room:1") == 1
        servers.replicas[0].pause()
        with pytest.raises(Unavailable, match="replicas may not"):
            await node.engine.publish("room:1", KEPT, b'"data":2')
        servers.replicas[0].go_on()
        await deferToThread(wait_until_blocking, have_both, "both replicas")
        client.close()
        assert sent is not None
        assert (await node.engine.publish("room:1", KEPT, b'"data":3')) == Position(sent.epoch, 3)
        await node.engine.stopService()
    with RedisServer() as alone:
        node = Node(alone.unix_url, ack="replica")
        with pytest.raises(ConfigError, match="no replica"):
            await node.start()
        await node.engine.stopService()
