"""Engines on a real Redis, and what they tell."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_twisted
from support.nodes import Node
from support.redisserver import RedisServer


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A server for all tests of a file; each has a prefix of its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """The begin of the keys of one test."""
    return f"t{abs(hash(request.node.nodeid)):x}"


@pytest_twisted.async_yield_fixture
async def nodes(redis: RedisServer, prefix: str) -> AsyncIterator[tuple[Node, Node]]:
    """Two engines on one server."""
    url = f"{redis.unix_url}?prefix={prefix}"
    two = await Node(url).start(), await Node(url).start()
    yield two
    for node in two:
        await node.engine.stopService()
