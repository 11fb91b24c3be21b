"""zComm as the one service of a program: its children, and their beginning and end in order."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import connect
from support.waiting import wait_until
from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.error import CannotListenError

from zcomm import Config, WebSocketConfig, errors, zComm
from zcomm.host import Host
from zcomm.services.declaration import Probe, ServiceDeclaration


def made(directory: Path, **options: Any) -> zComm:
    config = Config(directory, WebSocketConfig(port=0, require_auth=False), **options)
    return zComm(Host(config, reactor), config=config, environ={"HOME": str(directory)}, reactor=reactor)


@pytest_twisted.ensureDeferred
async def test_all_parts_are_children(data_dir: Path):
    """The program, the host, the services and each server that was started; one that was not is none."""
    comm = made(data_dir)
    idle = comm.create_websocket(port=0)
    await comm.start_websocket()
    other = comm.create_websocket(port=0)
    manager = comm.services_manager
    assert set(comm) == {comm.engine, comm.program, comm.zcli, manager, idle}
    assert all(part.running for part in comm) and not other.running
    await comm.stopService()
    assert set(comm) == {comm.engine, comm.program, comm.zcli, manager}
    assert not any(part.running for part in comm) and comm.websockets == [] and idle.parent is None


@pytest_twisted.ensureDeferred
async def test_each_part_is_stopped_in_order(data_dir: Path):
    """Servers, then data, then threads, then services: each when the one before has ended."""
    comm = made(data_dir)
    bifrost = comm.create_websocket(port=0)
    await comm.start_websocket()
    await comm.start_below()
    manager = comm.services_manager
    seen: list[Any] = []
    bifrost.when_stopped().addCallback(lambda _: seen.extend((comm.zcli.running, comm.program.running)))
    go_on = threading.Event()
    working = comm.program.workers.run("somebody", go_on.wait)
    ended = comm.stopService()
    await wait_until(lambda: not comm.program.running, "the threads' turn")
    assert seen == [1, 1] and not comm.zcli.running and manager.running and not ended.called
    go_on.set()
    assert await working is True
    await ended
    assert not manager.running and comm.stopService().called


@pytest_twisted.ensureDeferred
async def test_a_second_stop_waits_for_the_first(data_dir: Path):
    """Whoever asks for the end while it is on its way hears of it when it is there."""
    comm = made(data_dir)
    port = await comm.start_websocket()
    client = await connect(port.getHost().port)
    first, second = comm.stopService(), comm.stopService()
    assert not first.called and not second.called and comm.is_stopping
    assert (await client.next_close()).close_code == 1001
    await first
    await second
    await client.when_ended()
    assert comm.is_stopping and not comm.running


@pytest_twisted.ensureDeferred
async def test_it_starts_again(data_dir: Path):
    """A zComm that was stopped serves again when it is asked to, with its data."""
    comm = made(data_dir)
    for name in ("Ann", "Ben"):
        port = await comm.start_websocket()
        await comm.start_below()
        client = await connect(port.getHost().port)
        answer = await client.call("create_Users", {"values": {"name": name, "email": f"{name}@example.com"}})
        assert answer["result"]["name"] == name
        await client.leave()
        await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_a_child_of_an_application(data_dir: Path):
    """Under a parent it starts and stops with it; it asks the reactor for nothing of its own."""
    parent = MultiService()
    comm = made(data_dir)
    comm.setServiceParent(parent)
    bifrost = comm.create_websocket(port=0)
    parent.privilegedStartService()
    parent.startService()
    assert bifrost.is_listening and bifrost.parent is comm and comm._trigger is None
    await parent.stopService()
    assert not bifrost.is_listening and not comm.running


@pytest_twisted.ensureDeferred
async def test_services_begin_and_end_with_it(data_dir: Path):
    """A service started without any server runs until zComm is stopped."""
    comm = zComm(
        SimpleNamespace(session={}), config=Config(data_dir), environ={"PATH": "/usr/bin:/bin"}, reactor=reactor
    )
    comm.services_manager.add(ServiceDeclaration("sleeper", argv=("cat", "/dev/fd/0"), ready=Probe("none")))
    assert not comm.services_manager.running
    with pytest.raises(errors.UnknownService):
        await comm.start_service("nothing")
    assert comm.running and comm.services_manager.running
    await comm.stopService()
    assert not comm.services_manager.running


@pytest_twisted.ensureDeferred
async def test_an_end_after_a_start_that_failed(data_dir: Path):
    """A port that is taken keeps nothing else from running, and from being stopped with the reactor."""
    taken = made(data_dir)
    port = (await taken.start_websocket()).getHost().port
    comm = zComm(
        SimpleNamespace(session={}),
        config=Config(data_dir, WebSocketConfig(port=port, require_auth=False)),
        environ={},
        reactor=reactor,
    )
    comm.create_websocket()
    with pytest.raises(CannotListenError):
        comm.startService()
    other = comm.create_websocket(port=0)
    await comm.start_websocket()
    assert other.is_listening and comm._trigger is not None
    await comm.stopService()
    assert not other.is_listening and comm._trigger is None
    await taken.stopService()


@pytest_twisted.ensureDeferred
async def test_servers_that_come_and_go(data_dir: Path):
    """The name of one that has left is given to no other."""
    comm = made(data_dir)
    first, second = comm.create_websocket(), comm.create_websocket()
    for _ in range(2):
        await comm.start_websocket()
    await comm.stop_websocket(first)
    third = comm.create_websocket()
    await comm.start_websocket()
    assert third.parent is comm and second.is_listening and third.is_listening
    await comm.stopService()
