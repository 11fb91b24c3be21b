"""Two servers on one database: each says in its log that their clients do not hear of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.logger import LogEvent, capturedLogs, formatEvent

from zcomm import Config, WebSocketConfig, zComm
from zcomm.engines.memory import MemoryEngine
from zcomm.host import Host
from zcomm.host.neighbours import Neighbours


def lines(events: list[LogEvent]) -> list[str]:
    """What was said of other servers."""
    return [formatEvent(event) for event in events if "{others}" in (event.get("log_format") or "")]


async def server(directory: Path, database: str = "") -> zComm:
    config = Config(directory, WebSocketConfig(port=0, require_auth=False), database=database)
    comm = zComm(Host(config, reactor), config=config, environ={"HOME": str(directory)}, reactor=reactor)
    await comm.start_below()
    return comm


@pytest_twisted.ensureDeferred
async def test_both_say_it_once_until_the_other_has_left(tmp_path: Path):
    """Both of them, and not again before something changes."""
    a = await server(tmp_path / "a")
    b = await server(tmp_path / "b", f"sqlite:///{tmp_path}/a/zcomm.sqlite3")
    stores: Any = [a.zcli.data, b.zcli.data]
    first, second = [Neighbours(store, MemoryEngine(), reactor) for store in stores]
    try:
        with capturedLogs() as events:
            while len(lines(events)) < 2:
                for each in (first, second):
                    await each.look()
        said = lines(events)
        assert len(said) == 2 and all("(pid " in line and "--engine redis://" in line for line in said), said
        with capturedLogs() as events:
            for _ in range(3):
                for each in (first, second):
                    await each.look()
            while not lines(events):
                # The second has left.
                await first.look()
        (line,) = lines(events)
        assert "not use the database by itself any more" in line
    finally:
        for comm in (b, a):
            await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_begins_with_its_data(tmp_path: Path):
    """The row of a server is there once it can use its data."""
    comm = await server(tmp_path)
    try:
        found: list[Any] = []

        async def is_there() -> bool:
            found[:] = await comm.zcli.data.say_there("n", "e", "other")
            return bool(found)

        while not await is_there():
            pass
        assert found[0].engine == comm.engine.node
    finally:
        await comm.stopService()
