"""The servers of one zComm, on their ports, with the database that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from support.rawclient import connect
from twisted.internet import reactor

from zcomm import Config, WebSocketConfig, zComm
from zcomm.host import Host
from zcomm.interfaces import IEngine


@pytest.mark.wire
@pytest_twisted.ensureDeferred
async def test_a_change_reaches_the_clients_of_all_servers(data_dir: Path):
    """Whoever is connected where; the program's own broadcasts are counted once for each client."""
    config = Config(data_dir, WebSocketConfig(port=0, require_auth=False))
    comm = zComm(Host(config, reactor), config=config, environ={"HOME": str(data_dir)}, reactor=reactor)
    servers = [comm.create_websocket(port=0) for _ in range(2)]
    assert IEngine.providedBy(comm.engine) and comm.engine.clients == 0
    for _ in servers:
        await comm.start_websocket()
    await comm.start_below()
    writer, near, far = [await connect(server.port) for server in (servers[0], servers[0], servers[1])]
    for client in (writer, near, far):
        assert (await client.call("ping", 1))["result"] == 1
    assert comm.engine.clients == 3
    row = (await writer.call("create_Users", {"values": {"name": "Ann", "email": "ann@example.com"}}))["result"]
    for client in (near, far):
        assert (await client.next()).json == {"zKey": "create_Users", "result": row}
    assert await comm.broadcast_websocket("hello") == 3
    assert [(await client.next()).text for client in (writer, near, far)] == ["hello"] * 3
    await comm.stopService()
    assert comm.engine.clients == 0
