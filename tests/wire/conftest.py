"""The servers of the wire tests: one for each module and set of limits, looked over after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from wire.served import RUNNING, Served


def serving(name: str = "served", **options: Any) -> Callable[..., Any]:
    """A module-wide fixture of a :class:`Served` with ``options``."""

    @pytest_twisted.async_yield_fixture(scope="module", name=name)
    async def fixture(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
        server = await Served(tmp_path_factory.mktemp("served"), **options).start()
        yield server
        await server.stop()

    return fixture


served = serving()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What one test did is nothing that the next one trips over, however it ended."""
    for server in RUNNING:
        server.forget()
    yield
    for server in RUNNING:
        server.forget()
