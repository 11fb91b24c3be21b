"""zComms on hosts of the tests' own, listening."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from support.hosts import Running
from support.rawclient import RawClient


@pytest_twisted.async_yield_fixture
async def run(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await run(host, …)`` is a running zComm."""
    running: list[Running] = []
    clients: list[RawClient] = []

    async def start(host: Any, **options: Any) -> Running:
        one = Running(host, tmp_path, **options)
        running.append(one)
        await one.start()
        begin = one.client

        async def client(token: str | None = None) -> RawClient:
            clients.append(await begin(token))
            return clients[-1]

        one.client = client
        return one

    yield start
    # Clients of this kind say no goodbye: a server that has some waits for it.
    for client in clients:
        await client.leave()
    for one in running:
        await one.comm.stopService()
