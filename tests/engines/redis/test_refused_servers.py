"""Servers that cannot carry topics, as a program that starts an engine by itself meets them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import pytest_twisted
from support.certificates import Authority
from support.nodes import KEPT, Node
from support.rediscluster import Cluster
from support.redisreplication import Replication
from support.redisserver import RedisServer
from twisted.internet.threads import deferToThread

from zcomm.errors import ConfigError, Unavailable

USERS = {"few": "on >pw ~zc:* &zc:* +@all -info", "none": "on >pw ~zc:* +ping"}


def marked(redis: RedisServer) -> str:
    redis.call("SET", "zc:{0}:zcomm", "mine")
    return redis.unix_url


def typed(redis: RedisServer) -> str:
    redis.call("LPUSH", "zc:{0}:zcomm", "mine")
    return redis.unix_url


@pytest.mark.parametrize(
    ("made", "url", "said"),
    [
        (lambda: RedisServer(password="right"), lambda redis: redis.unix_url.replace("right", "wrong"), "password"),
        (lambda: RedisServer(password="right"), lambda redis: f"unix://{redis.path}", "asks for a password"),
        (
            lambda: RedisServer(maxmemory="50mb", maxmemory_policy="allkeys-lru"),
            lambda redis: redis.unix_url,
            "noevict",
        ),
        (lambda: Replication(1), lambda servers: servers.replicas[0].url, "read-only replica"),
        (RedisServer, marked, "somebody else's"),
        (RedisServer, typed, "prefix"),
        (lambda: RedisServer(users=USERS), lambda redis: f"redis://none:pw@{redis.host}:{redis.port}", "right"),
        (lambda: Cluster(3), lambda cluster: "redis://{}:{}".format(*cluster.addresses[0]), "part of a cluster"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_start_fails_with_one_line(
    made: Callable[[], AbstractContextManager[object]], url: Callable[[object], str], said: str
):
    """Whichever it is: a setting that is wrong, or a server that cannot be used now."""
    with ExitStack() as stack:
        server = await deferToThread(stack.enter_context, made())
        node = Node(url(server))
        with pytest.raises((ConfigError, Unavailable)) as caught:
            await node.start()
        assert re.search(said, str(caught.value)) and "\n" not in str(caught.value)
        await node.engine.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_hides_its_replication_id_is_used():
    """Positions end with each connection then, which the log says; all else is as it is."""
    with RedisServer(users={"few": "on >pw ~zc:* &zc:* +@all -info"}) as server:
        node = await Node(f"redis://few:pw@{server.host}:{server.port}").start()
        await node.engine.listen("room:1", KEPT)
        first = await node.engine.publish("room:1", KEPT, b'"data":1')
        second = await node.engine.publish("room:1", KEPT, b'"data":2')
        assert first is not None and second == (first.epoch, 2)
        await node.hears(2)
        await node.engine.stopService()


@pytest_twisted.ensureDeferred
async def test_tls_is_spoken_where_the_certificate_is_known(tmp_path: Path):
    """With the authority's certificate in a file; without it the server is nobody's."""
    authority = Authority(tmp_path)
    file = tmp_path / "ca-of-servers.pem"
    file.write_bytes(authority.pem)
    file.chmod(0o600)
    with RedisServer(tls=authority) as server:
        url = f"rediss://127.0.0.1:{server.port}"
        node = await Node(f"{url}?ssl_ca_certs={file}").start()
        assert await node.engine.publish("room:1", KEPT, b'"data":1') is not None
        await node.engine.stopService()
        stranger = Node(url)
        with pytest.raises(Unavailable, match="TLS|certificate"):
            await stranger.start()
        await stranger.engine.stopService()
