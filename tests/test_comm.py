"""zComm as the one service of a program: its children, and their beginning and end in order."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import connect
from support.serverprocess import clean_environ, twistd_command
from support.waiting import wait_until
from twisted.application.service import MultiService, Service
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.error import CannotListenError, ConnectError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer

from zcomm import Config, WebSocketConfig, errors, zBifrost, zComm
from zcomm.bifrost import server
from zcomm.bifrost.connection import Connection
from zcomm.config import Limits
from zcomm.errors import ConfigError
from zcomm.host import Host
from zcomm.runtime.runfile import running_servers
from zcomm.services.declaration import Probe, ServiceDeclaration
from zcomm.tap import Server


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
async def test_a_database_that_cannot_be_used_touches_no_service(data_dir: Path):
    """It is known from the configuration, before anything is started or taken over."""
    comm = made(data_dir, database="service:redis")
    with pytest.raises(errors.ConfigError, match="sqlite and postgresql only, not to redis"):
        comm.check_below()
    with pytest.raises(errors.ConfigError, match="sqlite and postgresql only, not to redis"):
        await comm.start_below()
    assert comm.services_manager.get("redis").state.value == "stopped"
    assert not (data_dir / "services").exists()


def test_a_driver_that_is_not_installed_is_missed_before_the_start(data_dir: Path):
    """As where zComm was installed without its PostgreSQL extra: twistd says so and touches no service."""
    (data_dir / "psycopg.py").write_text("raise ImportError('not installed')\n")
    done = subprocess.run(
        twistd_command("--port", "0", "--database", "service:postgresql", "--data-dir", str(data_dir / "home")),
        env=clean_environ(data_dir, {"PYTHONPATH": str(data_dir)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "pip install 'zcomm[postgresql]'" in done.stderr, done.stdout + done.stderr
    assert not (data_dir / "home" / "services").exists()


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


class Slow(Service):
    """A part that a program has added; ``ended`` fires its end."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return self.ended


def brief(directory: Path, seconds: float = 0.2) -> zComm:
    """One that waits for silent clients no longer than ``seconds``."""
    config = Config(directory, WebSocketConfig(port=0, require_auth=False, limits=Limits(shutdown_timeout=seconds)))
    return zComm(SimpleNamespace(session={}), config=config, environ={}, reactor=reactor)


async def accepts(port: int) -> bool:
    """Whether somebody listens on ``port``."""
    try:
        client = await connect(port, None)
    except ConnectError:
        return False
    client.transport.abortConnection()
    await client.when_ended()
    return True


@pytest_twisted.ensureDeferred
async def test_a_server_that_starts_while_another_stops_is_another(data_dir: Path):
    """It listens, it is heard of, it ends with all others; the one that was stopping goes its way."""
    comm = brief(data_dir)
    first = (await comm.start_websocket()).getHost().port
    silent = await connect(first)
    stopping = comm.stop_websocket()
    assert comm.websockets == [] and comm.stop_websocket().called is False
    second = await comm.start_websocket()
    await stopping
    assert not await accepts(first) and await accepts(second.getHost().port)
    assert comm.server_of(second) in comm.websockets and await comm.broadcast_websocket("to nobody") == 0
    port = second.getHost().port
    await comm.stopService()
    assert not await accepts(port) and comm.websockets == []
    await silent.when_ended()


@pytest_twisted.ensureDeferred
async def test_nothing_starts_while_all_stops(data_dir: Path):
    """Servers and services are refused until the end; then they start."""
    comm = brief(data_dir)
    silent = await connect((await comm.start_websocket()).getHost().port)
    ended = comm.stopService()
    for start in (comm.start_websocket, lambda: comm.start_service("redis"), lambda: comm.restart_service("redis")):
        with pytest.raises(errors.Unavailable, match="when the Deferred of stopService"):
            await start()
    with pytest.raises(errors.Unavailable):
        comm.startService()
    await ended
    await silent.when_ended()
    assert not comm.running and not any(part.running for part in comm) and comm.websockets == []
    port = (await comm.start_websocket()).getHost().port
    assert await accepts(port)
    await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_servers_stop_side_by_side(data_dir: Path):
    """All refuse newcomers at once and wait together for those who do not leave."""
    comm = brief(data_dir, 30)
    ports = [(await comm.start_websocket()).getHost().port for _ in range(3)]
    silent = [await connect(port) for port in ports]
    ended = comm.stopService()
    assert [await accepts(port) for port in ports] == [False] * 3
    for client in silent:
        assert (await client.next_close()).close_code == 1001
        client.transport.abortConnection()
        await client.when_ended()
    await ended


@pytest_twisted.ensureDeferred
async def test_what_a_program_added_is_stopped(data_dir: Path):
    """After the servers and before what it stands on; each child is waited for."""
    comm = made(data_dir)
    added = Slow()
    added.setServiceParent(comm)
    bifrost = comm.create_websocket(port=0)
    await comm.start_websocket()
    assert added.running
    ended = comm.stopService()
    await wait_until(lambda: not added.running, "its turn")
    assert not bifrost.is_listening and comm.engine.running and comm.program.running and not ended.called
    added.ended.callback(None)
    await ended
    assert not any(part.running for part in comm)


@pytest_twisted.ensureDeferred
async def test_a_part_that_never_stops_keeps_no_other_running(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Its time is over, the log names it, and the others are stopped."""
    monkeypatch.setattr("zcomm.comm.GRACE", 0.1)
    comm = brief(data_dir)
    Slow().setServiceParent(comm)
    comm.startService()
    with capturedLogs() as events:
        await comm.stopService()
    assert not comm.program.running and not comm.engine.running
    assert any("Slow" in formatEvent(event) and "did not end in time" in formatEvent(event) for event in events)


@pytest_twisted.ensureDeferred
async def test_a_server_that_was_told_to_listen_by_itself(data_dir: Path):
    """It is closed with the others, though zComm had not begun."""
    comm = brief(data_dir)
    port = (await comm.create_websocket().listen()).getHost().port
    assert not comm.running and await accepts(port)
    await comm.stopService()
    assert not await accepts(port)


@implementer(IStreamServerEndpoint)
class Later:
    """An endpoint that listens when it is told to."""

    def __init__(self) -> None:
        self.told: Deferred[None] = Deferred()

    def listen(self, factory: Any) -> Deferred[Any]:
        return self.told.addCallback(lambda _: TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory))


@pytest_twisted.ensureDeferred
async def test_a_stop_before_it_listens(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """What opens too late is closed at once, who waits for it is told, and the stop waits for that."""
    endpoint = Later()
    monkeypatch.setattr(server, "server_endpoints", lambda *_: [endpoint])
    comm = brief(data_dir, 30)
    starting = comm.start_websocket()
    (bifrost,) = comm.websockets
    ended, stopped = comm.stop_websocket(), bifrost.when_stopped()
    assert not ended.called and not stopped.called
    endpoint.told.callback(None)
    with pytest.raises(errors.NotListening):
        await starting
    await ended
    await stopped
    assert not bifrost.is_listening and bifrost.parent is None and comm.websockets == []
    await comm.stopService()


@pytest.mark.unmeasured
@pytest.mark.parametrize("seed", range(6))
@pytest_twisted.ensureDeferred
async def test_in_any_order(data_dir: Path, seed: int):
    """Whatever is started and stopped, in any order, what was started last and not stopped since is what listens."""
    choose = random.Random(seed)
    comm = brief(data_dir, 0.02)
    running: dict[int, zBifrost] = {}
    waiting: list[Deferred[Any]] = []
    seen: set[int] = set()
    clients = []
    for _ in range(25):
        action = choose.choice(("start", "start", "join", "create", "stop one", "stop all", "end", "wait"))
        if action == "start" and not comm._stopping:
            port = await comm.start_websocket()
            running[port.getHost().port] = comm.server_of(port)
            seen.add(port.getHost().port)
        elif action == "start":
            with pytest.raises(errors.Unavailable):
                await comm.start_websocket()
        elif action == "join" and running:
            clients.append(await connect(choose.choice(list(running))))
        elif action == "create":
            comm.create_websocket()
        elif action == "stop one" and running:
            waiting.append(comm.stop_websocket(running.pop(choose.choice(list(running)))))
        elif action == "stop all":
            waiting.append(comm.stop_websocket())
            running.clear()
        elif action == "end":
            waiting.append(comm.stopService())
            running.clear()
        elif action == "wait":
            while waiting:
                await waiting.pop()
        listening = {bifrost.port for bifrost in comm.websockets if bifrost.is_listening}
        assert listening == set(running) and {one for one in comm if isinstance(one, zBifrost)} == set(running.values())
    while waiting:
        await waiting.pop()
    assert {port for port in seen if await accepts(port)} == set(running)
    await comm.stopService()
    assert not any([await accepts(port) for port in seen]) and not any(part.running for part in comm)
    for client in clients:
        await client.when_ended()


@pytest_twisted.ensureDeferred
async def test_what_is_started_by_itself_while_all_stops(data_dir: Path):
    """A server that stops does not listen again yet; another one, and a child, are stopped as well."""
    comm = brief(data_dir)
    slow, late = Slow(), Slow()
    slow.setServiceParent(comm)
    port = await comm.start_websocket()
    client = await connect(port.getHost().port)
    (first,) = comm.websockets
    ended, again = comm.stopService(), first.stopService()
    with pytest.raises(errors.Unavailable):
        await first.listen()
    other = (await comm.create_websocket().listen()).getHost().port
    await again
    await wait_until(lambda: not comm.running, "the turn of what was added")
    late.setServiceParent(comm)
    late.startService()
    slow.ended.callback(None)
    late.ended.callback(None)
    await ended
    assert not slow.running and not late.running and not await accepts(other)
    await client.when_ended()


@pytest_twisted.ensureDeferred
async def test_a_connection_class_of_its_own(data_dir: Path):
    """A server that zComm makes answers its clients with the class it is given."""

    class Mine(Connection):
        pass

    comm = brief(data_dir)
    bifrost = comm.create_websocket(connection=Mine)
    port = await comm.start_websocket()
    client = await connect(port.getHost().port)
    assert [type(one) for one in bifrost.clients] == [Mine]
    client.transport.abortConnection()
    await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_an_environment_that_turns_bad_keeps_nothing_running(data_dir: Path):
    """A stop needs nothing from it: all it needs is known since the start."""
    environ = {"HOME": str(data_dir), "WEBSOCKET_REQUIRE_AUTH": "no", "WEBSOCKET_PORT": "0"}
    comm = zComm(SimpleNamespace(session={}), environ=environ, reactor=reactor)
    added, manager = Service(), comm.services_manager
    added.setServiceParent(comm)
    await comm.start_websocket()
    environ["WEBSOCKET_PORT"] = "abc"
    with pytest.raises(errors.ConfigError):
        _ = comm.config
    await comm.stopService()
    assert not any(part.running for part in (added, comm.engine, comm.program, manager))


class Odd(Service):
    """A child that cannot even say whether it runs, once it has started."""

    _running: Any = 0

    @property
    def running(self) -> Any:
        if self._running:
            raise RuntimeError("odd")
        return 0

    @running.setter
    def running(self, running: Any) -> None:
        self._running = running


@pytest_twisted.ensureDeferred
async def test_a_step_of_the_end_that_fails_keeps_no_other_from_being_taken(data_dir: Path):
    """It is logged; engine, threads and services are stopped all the same."""
    comm = brief(data_dir)
    Odd().setServiceParent(comm)
    manager = comm.services_manager
    await comm.start_websocket()
    with capturedLogs() as events:
        await comm.stopService()
    assert not any(part.running for part in (comm.engine, comm.program, manager)) and not comm._stopping
    assert any("not orderly" in formatEvent(event) for event in events)


@dataclass
class Equal(Service):
    """A child that has no hash and is equal to others of its kind."""

    number: int = 0


@pytest_twisted.ensureDeferred
async def test_children_without_a_hash(data_dir: Path):
    """Each is stopped, and what is behind them."""
    comm = brief(data_dir)
    children = [Equal(), Equal()]
    for child in children:
        child.setServiceParent(comm)
    manager = comm.services_manager
    await comm.start_websocket()
    await comm.stopService()
    assert not any(part.running for part in (*children, comm.engine, comm.program, manager))


@pytest_twisted.ensureDeferred
async def test_whoever_asks_for_the_end_late_hears_of_it_when_it_is_there(data_dir: Path):
    """A second caller, and a parent that stops meanwhile; one that is cancelled is told so and changes nothing."""
    parent, comm, slow = MultiService(), brief(data_dir), Slow()
    comm.setServiceParent(parent)
    slow.setServiceParent(comm)
    parent.startService()
    first = comm.stopService()
    await wait_until(lambda: not comm.running and not slow.running, "the turn of what was added")
    second, third, above = comm.stopService(), comm.stopService(), parent.stopService()
    third.cancel()
    with pytest.raises(CancelledError):
        await third
    assert not any(waiter.called for waiter in (first, second, above)) and comm.program.running
    slow.ended.callback(None)
    for waiter in (first, second, above):
        await waiter
    assert not comm.program.running


@pytest.mark.parametrize("later", [0, 0.2])
def test_the_reactor_ends_when_all_has_ended(data_dir: Path, later: float):
    """Also when a stop was under way before the reactor was told to end."""
    program = f"""
from pathlib import Path
from types import SimpleNamespace
from twisted.application.service import Service
from twisted.internet import reactor, task
from zcomm import Config, WebSocketConfig, zComm

class Slow(Service):
    def stopService(self):
        super().stopService()
        return task.deferLater(reactor, 0.5, print, "ended")

config = Config(Path({str(data_dir)!r}), WebSocketConfig(port=0, require_auth=False))
comm = zComm(SimpleNamespace(session={{}}), config=config)
Slow().setServiceParent(comm)
comm.startService()
reactor.addSystemEventTrigger("after", "shutdown", lambda: print("over", comm.program.running))
reactor.callWhenRunning(comm.stopService)
reactor.callLater({later}, reactor.stop)
reactor.run()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:twisted", "-c", program],
        env=clean_environ(data_dir),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split("\n") == ["ended", "over 0", ""] and done.stderr == "", done.stdout + done.stderr


class Fails(Service):
    """A child that does not start as long as it is ``wrong``."""

    wrong = True

    def startService(self) -> None:
        super().startService()
        if self.wrong:
            raise RuntimeError("wrong")


@pytest_twisted.ensureDeferred
async def test_a_start_that_failed_is_taken_up_by_the_next(data_dir: Path):
    """What can run does at once. The next start fails again as long as the cause is there, then starts the rest."""
    taken = made(data_dir)
    port = (await taken.start_websocket()).getHost().port
    comm, child = brief(data_dir), Fails()
    child.setServiceParent(comm)
    servers = [comm.create_websocket(port=wanted) for wanted in (0, port, 0)]
    for start in (comm.privilegedStartService, comm.startService, comm.startService):
        with pytest.raises(RuntimeError if start == comm.startService else CannotListenError):
            start()
    assert [one.is_listening for one in servers] == [True, False, True] and not child.running
    child.wrong = False
    with pytest.raises(CannotListenError):
        comm.startService()
    assert child.running and comm.websockets == servers
    with pytest.raises(CannotListenError):
        await comm.start_websocket()
    await taken.stopService()
    comm.startService()
    assert all(one.is_listening for one in servers) and comm.websockets == servers
    await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_a_stop_of_servers_that_nobody_waits_for_any_more(data_dir: Path):
    """Whoever cancels is told so; the stop goes on, and others who wait for it hear of it when it is there."""
    comm = brief(data_dir, 30)
    client = await connect((await comm.start_websocket()).getHost().port)
    by_itself = comm.create_websocket()
    other = await connect((await by_itself.listen()).getHost().port)
    (first, _) = comm.websockets
    with capturedLogs() as events:
        for stop in (by_itself.stopService, comm.stop_websocket, lambda: comm.stop_websocket(first), first.stopService):
            cancelled, waiting = stop(), stop()
            cancelled.cancel()
            with pytest.raises(CancelledError):
                await cancelled
            assert not waiting.called
        everything = comm.stop_websocket()
        for one in (client, other):
            assert (await one.next_close()).close_code == 1001
            one.transport.abortConnection()
            await one.when_ended()
        await waiting
        await everything
    assert not [event for event in events if event.get("log_failure")] and not comm._leaving
    await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_a_stop_while_nothing_runs_can_be_cancelled(data_dir: Path):
    """The server that was told to listen by itself ends all the same."""
    comm = brief(data_dir, 30)
    client = await connect((await comm.create_websocket().listen()).getHost().port)
    cancelled, waiting = comm.stopService(), comm.stopService()
    cancelled.cancel()
    with pytest.raises(CancelledError):
        await cancelled
    assert not waiting.called
    client.transport.abortConnection()
    await waiting
    await client.when_ended()


@pytest.mark.parametrize("end", ["stop", "fail"])
@pytest_twisted.ensureDeferred
async def test_all_who_ask_a_server_to_listen_are_told(data_dir: Path, monkeypatch: pytest.MonkeyPatch, end: str):
    """Each of them, when it is stopped before it listens and when it cannot; the next start is another one."""
    endpoint = Later()
    monkeypatch.setattr(server, "server_endpoints", lambda *_: [endpoint])
    bifrost = brief(data_dir).create_websocket()
    asking = [bifrost.listen(), bifrost.listen()]
    hoping = bifrost.when_listening()
    if end == "stop":
        stopped = bifrost.stopService()
        endpoint.told.callback(None)
        await stopped
    else:
        endpoint.told.errback(CannotListenError("127.0.0.1", 1, OSError()))
    for one in asking:
        with pytest.raises(errors.NotListening if end == "stop" else CannotListenError):
            await one
    assert bifrost.is_idle and not hoping.called
    endpoint.told = Deferred()
    asking = [bifrost.listen(), bifrost.listen()]
    endpoint.told.callback(None)
    port = await asking[0]
    assert (await asking[1]) is port and (await hoping) is port and (await bifrost.listen()) is port
    await bifrost.stopService()


@pytest_twisted.ensureDeferred
async def test_a_start_is_given_up_when_nobody_waits_for_it(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """One who cancels takes it from nobody else."""
    endpoint = Later()
    monkeypatch.setattr(server, "server_endpoints", lambda *_: [endpoint])
    comm = brief(data_dir)
    first, second = comm.start_websocket(), comm.start_websocket()
    (bifrost,) = comm.websockets
    for one, idle in ((first, False), (second, True)):
        one.cancel()
        with pytest.raises(CancelledError):
            await one
        assert bifrost.is_idle is idle
    await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_listen_after_all_says_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Where it is known too late for startService() to raise it, the log has it, and it can be started again."""
    endpoint = Later()
    monkeypatch.setattr(server, "server_endpoints", lambda *_: [endpoint])
    bifrost = brief(data_dir).create_websocket()
    bifrost.startService()
    with capturedLogs() as events:
        endpoint.told.errback(CannotListenError("127.0.0.1", 1, OSError()))
    assert any("does not listen" in formatEvent(event) for event in events) and not bifrost.running
    endpoint.told = Deferred()
    bifrost.startService()
    endpoint.told.callback(None)
    assert bifrost.is_listening
    await bifrost.stopService()


@pytest_twisted.ensureDeferred
async def test_a_server_bound_before_the_start_is_no_child_after_the_end(data_dir: Path):
    """Or it would listen at the next start, and nobody would know it."""
    comm = brief(data_dir)
    bifrost = comm.create_websocket()
    comm.privilegedStartService()
    assert bifrost.is_listening
    await comm.stopService()
    assert bifrost.parent is None and not bifrost.is_listening and comm.websockets == []


@pytest_twisted.ensureDeferred
async def test_contact_a36_n6_who_has_the_data_directory(data_dir: Path):
    """A zComm with its own host has it alone, from its start to its end, and is found; others write down where they
    listen beside it, and take nothing from it (B36)."""
    first, second = made(data_dir), made(data_dir)
    await first.start_websocket()
    for start in (second.start_websocket, second.startService, second.claim):
        with pytest.raises(ConfigError, match=rf"{data_dir} is in use by another zComm"):
            result = start()
            if result is not None:
                await result
    assert not second.running and second.websockets == [] or await second.stopService() is None
    config = Config(data_dir, WebSocketConfig(port=0, require_auth=False))
    beside = zComm(SimpleNamespace(session={}), config=config, environ={}, reactor=reactor)
    port = await beside.start_websocket()
    assert [one["websocket"] for one in running_servers(data_dir)] == [
        first.websockets[0].url,
        f"ws://127.0.0.1:{port.getHost().port}",
    ]
    assert {path.name for path in data_dir.glob("server*")} == {"server.json", f"server-{os.getpid()}.json"}
    await beside.stopService()
    assert [one["websocket"] for one in running_servers(data_dir)] == [first.websockets[0].url]
    await first.stopService()
    assert running_servers(data_dir) == []
    await second.start_websocket()
    assert len(running_servers(data_dir)) == 1
    await second.stopService()


@pytest_twisted.ensureDeferred
async def test_contact_a34_a_run_file_that_cannot_be_written(data_dir: Path):
    """On a full disk, say: the server serves all the same, and says once what it could not write and what that
    means (B34). It is written when it can be."""
    comm = made(data_dir)
    (data_dir / "server.json").mkdir()
    with capturedLogs() as events:
        port = await comm.start_websocket()
    client = await connect(port.getHost().port)
    assert (await client.call("ping"))["result"] == "ping"
    await client.leave()
    with capturedLogs() as later:
        await try_again(comm)
        (data_dir / "server.json").rmdir()
        assert running_servers(data_dir) == []
        await try_again(comm)
    assert comm._say_again is None
    assert [one["websocket"] for one in running_servers(data_dir)] == [comm.websockets[0].url]
    said, then = (
        [formatEvent(event) for event in some if "server.json" in (formatEvent(event) or "")]
        for some in (events, later)
    )
    assert len(said) == 1 and "cannot be written: Is a directory; until it is" in said[0]
    assert then == [f"{data_dir / 'server.json'} is written"]
    await comm.stopService()
    assert running_servers(data_dir) == []


@pytest_twisted.ensureDeferred
async def test_a_run_file_is_not_written_after_the_end(data_dir: Path):
    """It is no longer tried then."""
    comm = made(data_dir)
    (data_dir / "server.json").mkdir()
    await comm.start_websocket()
    waiting = comm._say_again
    assert waiting is not None and waiting.active()
    await comm.stopService()
    assert comm._say_again is None and not waiting.active()


async def try_again(comm: zComm) -> None:
    """Let the time pass until a run file is tried again."""
    waiting = comm._say_again
    waiting.reset(0)
    await wait_until(lambda: not waiting.active(), "another try")


@pytest_twisted.ensureDeferred
async def test_a_run_file_that_cannot_be_removed_keeps_nothing_running(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """The daemon logs it and stops."""

    def fail(_: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("zcomm.comm.remove_run_file", fail)
    config = Config(data_dir, WebSocketConfig(port=0, require_auth=False))
    daemon = Server(Host(config, reactor), config=config, environ={}, reactor=reactor)
    await daemon.start_websocket()
    with capturedLogs() as events:
        await daemon.stopService()
    assert not daemon.running and not daemon.program.running
    assert any("the end was not orderly" in formatEvent(event) for event in events)


def test_contact_n12_a37_the_log_of_a_start_is_so(data_dir: Path):
    """The service behind the database is among those that are started; root is told what it does (B37)."""
    for database, services, line in (
        ("service:postgresql", (), "services: postgresql"),
        ("service:postgresql", ("redis", "postgresql"), "services: redis, postgresql"),
        ("", ("redis",), "services: redis"),
        ("", (), "services: none"),
    ):
        websocket = WebSocketConfig(port=0, require_auth=False)
        config = Config(data_dir, websocket, database=database, services=services)
        daemon = Server(Host(config, reactor), config=config, environ={}, reactor=reactor)
        daemon.create_websocket()
        lines = daemon._announcement()
        assert line in lines
        assert any("runs as root" in one for one in lines) is (os.geteuid() == 0)


def test_the_log_names_the_policy_and_the_kinds_of_topics(data_dir: Path):
    """At the start and when they were read anew, also where the new file cannot be used: those that hold then. Of many
    kinds it names a few."""
    policy, topics = data_dir / "policy.yaml", data_dir / "topics.yaml"
    config = Config(data_dir, WebSocketConfig(port=0, require_auth=False))
    daemon = Server(Host(config, reactor), config=config, environ={}, reactor=reactor)
    daemon.create_websocket()
    assert "policy: none, everybody may do everything; topics: any" in daemon._announcement()
    policy.write_text("admin: {}\n")
    topics.write_text('"room:{id}": {}\n"hall": {}\n')
    config = replace(config, policy=policy, topics=topics)
    daemon = Server(Host(config, reactor), config=config, environ={}, reactor=reactor)
    daemon.create_websocket()
    first = f"policy: {policy}; topics: hall, room:{{id}}"
    assert first in daemon._announcement()
    for text, line in (
        ("nonsense", first),
        (
            "".join(f"kind{number}: {{}}\n" for number in range(8)),
            f"policy: {policy}; topics: kind0, kind1, kind2, kind3",
        ),
    ):
        topics.write_text(text)
        with capturedLogs() as events:
            daemon.reload()
        assert formatEvent(events[-1]) == (line if text == "nonsense" else f"{line}, kind4 and 3 more")
