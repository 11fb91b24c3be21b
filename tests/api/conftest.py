"""A whole zComm in this process, and the clients of a test, which all leave at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from wire.served import Served

from zcomm.client import Client, connect


@pytest_twisted.async_yield_fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One server for the tests of a module."""
    server = await Served(tmp_path_factory.mktemp("served")).start()
    yield server
    await server.stop()


@pytest_twisted.async_yield_fixture
async def join(served: Served) -> AsyncIterator[Callable[..., Any]]:
    """``await join()`` is a connected client: the operator's, unless ``token`` says whose."""
    clients: list[Client] = []

    async def join(**options: Any) -> Client:
        options.setdefault("token", served.admin)
        client = await connect(served.bifrost.url, **options)
        clients.append(client)
        return client

    yield join
    for client in clients:
        await client.disconnect()
