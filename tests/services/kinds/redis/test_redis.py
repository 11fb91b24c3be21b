"""Redis and Valkey as a service, with real servers: good order and every fault that loses data elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from support.localservers import processes_in, redis, words_of
from support.waiting import wait_until, wait_until_blocking
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from zcomm.errors import (
    ConfigError,
    DataDirectoryError,
    PortInUse,
    ServiceStartFailed,
    ServiceStopFailed,
)
from zcomm.services.declaration import Probe, StopStep
from zcomm.services.kinds.redis.service import REDIS, RedisService
from zcomm.services.machine.programs import find_all
from zcomm.services.manager import ServiceManager
from zcomm.services.supervision.supervisor import Supervisor

INSTALLATIONS = {one.flavour: one for one in find_all(RedisService.programs, {"PATH": os.defpath})}


def service_of(manager: ServiceManager) -> Supervisor:
    service = manager.get("redis")
    assert isinstance(service.kind, RedisService)
    return service


def running_again(manager: ServiceManager, restarts: int = 1) -> Deferred[Any]:
    service = service_of(manager)
    return wait_until(lambda: service.restarts >= restarts and service.state.value == "running", "a restart")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def give(service: Supervisor, path: Path) -> None:
    """Files a test puts into the data directory belong to the server's account."""
    if os.geteuid() == 0:
        account = service.context.account_for(service.context.home.data)
        os.chown(path, account.uid, account.gid)


@pytest.mark.parametrize("flavour", sorted(INSTALLATIONS))
@pytest_twisted.ensureDeferred
async def test_a_fresh_server_is_safe(manager: ServiceManager, place: Path, flavour: str):
    """Loopback, a random password, no debug commands, private files, not root (P12, P13, RD12)."""
    await manager.start("redis", port="auto", bin_dir=str(INSTALLATIONS[flavour].directory))
    info = manager.connection_info("redis")
    assert await redis(info, ("PING",), password="") == ["-NOAUTH Authentication required."]
    assert (await redis(info, ("PING",), password="wrong"))[0].startswith("-")
    assert await redis(info, ("SET", "a", "1"), ("GET", "a")) == ["OK", "1"]
    values = await redis(
        info,
        ("CONFIG", "GET", "bind"),
        ("CONFIG", "GET", "protected-mode"),
        ("DEBUG", "JMAP"),
        ("CONFIG", "GET", "appendonly"),
    )
    assert values[0] == ["bind", "127.0.0.1 -::1"] and values[1] == ["protected-mode", "yes"]
    assert values[2].startswith("-") and values[3] == ["appendonly", "yes"]
    service = service_of(manager)
    private = [service.context.home.data, service.context.home.run, service.context.home.data / "appendonlydir"]
    assert [mode(path) for path in private] == [0o700] * 3
    files = [path for path in service.context.home.data.rglob("*") if path.is_file()]
    assert files and {mode(path) for path in [*files, service.context.home.run / "redis.conf"]} == {0o600}
    status = await manager.status("redis")
    process = psutil.Process(status["pid"])
    assert process.ppid() == os.getpid() and (os.geteuid() != 0 or process.uids().real != 0)
    assert status["identity"] and status["version"] == INSTALLATIONS[flavour].version_text
    assert await manager.stop("redis") is True
    assert processes_in(place) == [] and (await manager.status("redis"))["state"] == "stopped"


@pytest_twisted.ensureDeferred
async def test_what_was_written_is_there_again(manager: ServiceManager):
    """Through a stop and a start, a restart, and kill -9 (P2)."""
    await manager.start("redis", port="auto")
    await redis(manager.connection_info("redis"), ("SET", "a", "1"))
    await manager.stop("redis")
    await manager.start("redis")
    await redis(manager.connection_info("redis"), ("SET", "b", "2"))
    await manager.restart("redis")
    await redis(manager.connection_info("redis"), ("SET", "c", "3"))
    service_of(manager).process.signal(signal.SIGKILL)
    await running_again(manager)
    assert await redis(manager.connection_info("redis"), ("MGET", "a", "b", "c")) == [["1", "2", "3"]]


@pytest_twisted.ensureDeferred
async def test_the_password_is_told_to_nobody(manager: ServiceManager, place: Path):
    """Not in a command line, the log, the status or an event; it stays the same (P14, RD13)."""
    told: list[str] = []
    manager.subscribe(lambda name, status: told.append(repr(status)))
    await manager.start("redis", port="auto", password='quiet "secret" \\42')
    told += [repr(words_of(process.pid)) for process in processes_in(place)]
    told += [
        repr(await manager.status()),
        manager.get("redis").context.home.log.tail(),
        repr(service_of(manager).context.options),
    ]
    assert 'quiet "secret"' not in "".join(told) and 'quiet \\"secret' not in "".join(told)
    info = manager.connection_info("redis")
    assert info["password"] == 'quiet "secret" \\42' and info["password"] not in info["command"]
    assert await redis(info, ("PING",)) == ["PONG"]
    await manager.restart("redis")
    assert await redis(manager.connection_info("redis"), ("PING",)) == ["PONG"]


def bound(stranger: socket.socket, port: int) -> bool:
    try:
        stranger.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_a_port_held_by_a_stranger(manager: ServiceManager, place: Path):
    """The holder is named and nothing spawned (RD1, P4)."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(PortInUse, match=str(os.getpid())):
            await manager.start("redis", port=stranger.getsockname()[1])
    assert processes_in(place) == [] and (await manager.status("redis"))["running"] is False


@pytest_twisted.ensureDeferred
async def test_a_port_lost_between_a_crash_and_the_restart(manager: ServiceManager, free_port: int):
    """Whoever took the port of a server that was killed may only be passing: it is tried again, not left alone."""
    await manager.start("redis", port=free_port)
    seen: list[str] = []
    manager.subscribe(lambda _, status: seen.append(status["reason"]))
    service_of(manager).process.signal(signal.SIGKILL)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The reactor, and with it the restart, waits meanwhile.
        wait_until_blocking(lambda: bound(stranger, free_port), "the port of the killed server")
        stranger.listen()
        await wait_until(lambda: any(f"port {free_port} is in use" in reason for reason in seen), "an attempt")
    await running_again(manager, 2)
    assert manager.connection_info("redis")["port"] == free_port


@pytest_twisted.ensureDeferred
async def test_a_second_server_never_gets_the_directory(
    manager: ServiceManager, make_manager: Callable[..., ServiceManager], place: Path
):
    """Redis itself locks nothing, and the last to save wins: so the directory is locked (RD2)."""
    data = str(place / "shared")
    await manager.start("redis", port="auto", data_dir=data)
    second = make_manager(place / "second")
    with pytest.raises(DataDirectoryError, match="another zComm"):
        await second.start("redis", port="auto", data_dir=data)
    assert (await manager.status("redis"))["running"]


@pytest_twisted.ensureDeferred
async def test_a_stranger_in_the_directory(manager: ServiceManager, place: Path):
    """A Redis somebody else started there is named, and left alone (RD2)."""
    service = service_of(manager)
    account = service.context.account_for(service.context.home.data)
    data = place / "data"
    data.mkdir(mode=0o700)
    give(service, data)
    words = {"user": account.uid, "group": account.gid, "extra_groups": []} if os.geteuid() == 0 else {}
    theirs = subprocess.Popen(
        [str(INSTALLATIONS["redis"].server), "--port", "0", "--unixsocket", "s", "--dir", str(data)],
        cwd="/",
        stdout=subprocess.DEVNULL,
        **words,
    )
    try:
        await wait_until(lambda: os.readlink(f"/proc/{theirs.pid}/cwd") == str(data), "their server")
        with pytest.raises(DataDirectoryError, match=str(theirs.pid)):
            await manager.start("redis", port="auto", data_dir=str(data))
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


@pytest_twisted.ensureDeferred
async def test_another_redis_on_the_port_is_not_ours(
    manager: ServiceManager, make_manager: Callable[..., ServiceManager], place: Path
):
    """It answers NOAUTH, so it lives; it is reported, not managed, and not stopped (RD3)."""
    await manager.start("redis", port="auto")
    other = await manager.status("redis")
    second = make_manager(place / "second", environ={"REDIS_PORT": str(other["port"])})
    seen = await second.status("redis")
    assert (seen["running"], seen["managed"], seen["pid"]) == (True, False, other["pid"])
    assert await second.stop("redis") is True
    assert (await manager.status("redis"))["pid"] == other["pid"]


# -- data ------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_snapshot_is_never_ignored(manager: ServiceManager):
    """A directory with dump.rdb alone is loaded first and switched to the append-only file after (RD9)."""
    await manager.start("redis", port="auto", appendonly=False)
    # So many that writing them all into the new file takes a while.
    fill = "for i = 1, 500000 do redis.call('SET', 'filler:' .. i, i) end"
    await redis(manager.connection_info("redis"), ("SET", "kept", "yes"), ("EVAL", fill, "0"))
    await manager.stop("redis")
    service = service_of(manager)
    assert (service.context.home.data / "dump.rdb").exists() and not (
        service.context.home.data / "appendonlydir"
    ).exists()
    await manager.start("redis", port="auto", appendonly=True, appendfsync="always")
    info = manager.connection_info("redis")
    assert await redis(info, ("GET", "kept"), ("CONFIG", "GET", "appendonly")) == ["yes", ["appendonly", "yes"]]
    # Ready means that the new file is complete: what is written from now on survives a crash at once.
    assert await redis(info, ("SET", "new", "too")) == ["OK"]
    service.process.signal(signal.SIGKILL)
    await running_again(manager)
    assert await redis(manager.connection_info("redis"), ("MGET", "kept", "new")) == [["yes", "too"]]
    await manager.stop("redis")
    with pytest.raises(DataDirectoryError, match="ignored"):
        await manager.start("redis", port="auto", appendonly=False)


@pytest.mark.parametrize("flavour", sorted(INSTALLATIONS))
@pytest_twisted.ensureDeferred
async def test_with_always_nothing_that_was_acknowledged_is_lost(manager: ServiceManager, flavour: str):
    """Killed in the middle of a stream of writes: each one that was acknowledged is there again."""
    await manager.start("redis", port="auto", appendfsync="always", bin_dir=str(INSTALLATIONS[flavour].directory))
    info, process = manager.connection_info("redis"), service_of(manager).process
    acknowledged: list[int] = []

    def write() -> None:
        address = (info["host"], info["port"])
        with socket.create_connection(address, timeout=20) as connection, connection.makefile("rwb") as stream:
            stream.write(b"AUTH %s\r\n" % info["password"].encode())
            stream.flush()
            assert stream.readline() == b"+OK\r\n"
            for number in range(10**6):
                stream.write(b"SET row:%d x\r\n" % number)
                stream.flush()
                if stream.readline() != b"+OK\r\n":
                    break
                acknowledged.append(number)

    writing = deferToThread(write).addErrback(lambda failure: failure.trap(OSError))
    await wait_until(lambda: len(acknowledged) > 500, "five hundred writes")
    process.signal(signal.SIGKILL)
    await writing
    await running_again(manager)
    rows = [f"row:{number}" for number in acknowledged]
    assert await redis(manager.connection_info("redis"), ("EXISTS", *rows)) == [len(rows)]


@pytest_twisted.ensureDeferred
async def test_a_server_taken_over_writes_as_it_is_now_asked_to(make_manager: Any):
    """One that an earlier zComm started with everysec, under a zComm that is told always."""
    first = make_manager(lifetime="persistent")
    await first.start("redis", port="auto")
    info = first.connection_info("redis")
    assert await redis(info, ("CONFIG", "GET", "appendfsync")) == [["appendfsync", "everysec"]]
    pid = service_of(first).process.pid
    await first.stopService()
    second = make_manager(environ={"REDIS_APPENDFSYNC": "always"})
    assert await second.start("redis", port="auto")
    assert service_of(second).process.pid == pid
    assert await redis(info, ("CONFIG", "GET", "appendfsync")) == [["appendfsync", "always"]]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-12])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 an archive of some kind")


def from_the_future(path: Path) -> None:
    path.write_bytes(b"REDIS0099" + path.read_bytes()[9:])


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, foreign, from_the_future])
@pytest_twisted.ensureDeferred
async def test_a_damaged_snapshot_is_tried_once(manager: ServiceManager, damage: Callable[[Path], None]):
    """State error with a reason and a repair, no loop, the file untouched (RD8, RD10)."""
    await manager.start("redis", port="auto", appendonly=False)
    await redis(manager.connection_info("redis"), *[("SET", f"key{n}", "value" * 20) for n in range(50)])
    await manager.stop("redis")
    service = service_of(manager)
    path = service.context.home.data / "dump.rdb"
    damage(path)
    damaged = path.read_bytes()
    with pytest.raises((ServiceStartFailed, DataDirectoryError)) as caught:
        await manager.start("redis", port="auto", appendonly=False)
    assert caught.value.fix and path.read_bytes() == damaged
    assert getattr(caught.value, "permanent", True) and service.restarts == 0
    status = await manager.status("redis")
    assert status["state"] == "error" and status["reason"]


@pytest_twisted.ensureDeferred
async def test_a_cut_append_only_file_loads(manager: ServiceManager):
    """The tail a crash left half-written costs at most the last command (RD9, P17)."""
    await manager.start("redis", port="auto")
    await redis(manager.connection_info("redis"), *[("SET", f"key{n}", "value") for n in range(20)])
    service = service_of(manager)
    await manager.stop("redis")
    path = next((service.context.home.data / "appendonlydir").glob("*.incr.aof"))
    path.write_bytes(path.read_bytes()[:-5])
    await manager.start("redis", port="auto")
    assert await redis(manager.connection_info("redis"), ("DBSIZE",)) == [19]


@pytest_twisted.ensureDeferred
async def test_a_damaged_append_only_file_is_not_repaired_behind_your_back(manager: ServiceManager):
    """In the middle: state error, one try, the files untouched, the repair named (RD9, P17)."""
    await manager.start("redis", port="auto")
    await redis(manager.connection_info("redis"), *[("SET", f"key{n}", "value") for n in range(20)])
    service = service_of(manager)
    await manager.stop("redis")
    path = next((service.context.home.data / "appendonlydir").glob("*.incr.aof"))
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\x00garbage\xff" + content[210:])
    damaged = path.read_bytes()
    with pytest.raises(ServiceStartFailed, match="append") as caught:
        await manager.start("redis", port="auto")
    assert caught.value.permanent and "redis-check-aof" in caught.value.fix and path.read_bytes() == damaged


@pytest_twisted.ensureDeferred
async def test_a_lost_manifest_is_noticed(manager: ServiceManager):
    """Redis would start empty without a word; nothing is started instead (RD9)."""
    await manager.start("redis", port="auto")
    await redis(manager.connection_info("redis"), ("SET", "a", "1"))
    service = service_of(manager)
    await manager.stop("redis")
    next((service.context.home.data / "appendonlydir").glob("*.manifest")).unlink()
    with pytest.raises(DataDirectoryError, match="manifest"):
        await manager.start("redis", port="auto")


@pytest.mark.skipif(len(INSTALLATIONS) < 2, reason="needs Redis and Valkey")
@pytest_twisted.ensureDeferred
async def test_the_server_that_wrote_the_data_is_chosen(make_manager: Callable[..., ServiceManager]):
    """Valkey's snapshot is opened by Valkey; Redis alone is refused beforehand, with both named (RD10)."""
    manager = make_manager()
    await manager.start("redis", port="auto", bin_dir=str(INSTALLATIONS["valkey"].directory))
    await redis(manager.connection_info("redis"), ("SET", "a", "1"))
    await manager.stop("redis")
    with pytest.raises(DataDirectoryError, match="VALKEY"):
        await manager.start("redis", port="auto", bin_dir=str(INSTALLATIONS["redis"].directory))
    assert await manager.start("redis", port="auto") is True
    assert await redis(manager.connection_info("redis"), ("GET", "a")) == ["1"]


# -- stopping and hanging ------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_server_that_cannot_save_is_not_killed(manager: ServiceManager):
    """stop() fails and it goes on with its data; force=True ends it, said aloud (RD5)."""
    await manager.start("redis", port="auto", appendonly=False)
    info = manager.connection_info("redis")
    assert await redis(info, ("SET", "only", "here"), ("CONFIG", "SET", "rdbcompression", "yes")) == ["OK", "OK"]
    service = service_of(manager)
    blocker = service.context.home.data / f"temp-{service.process.pid}.rdb"
    blocker.mkdir()
    with pytest.raises(ServiceStopFailed, match="cannot save") as caught:
        await manager.stop("redis")
    assert "force" in caught.value.fix
    status = await manager.status("redis")
    assert (status["running"], status["health"]) == (True, "degraded")
    assert await redis(info, ("GET", "only")) == ["here"]
    with pytest.raises(ServiceStopFailed):
        await manager.restart("redis")
    assert await manager.stop("redis", force=True) is True
    assert (await manager.status("redis"))["state"] == "stopped"


@pytest_twisted.ensureDeferred
async def test_a_busy_script_does_not_hold_up_the_stop(manager: ServiceManager):
    """The script is ended first, then the server saves and goes (RD6)."""
    await manager.start("redis", port="auto")
    info = manager.connection_info("redis")
    await redis(info, ("SET", "a", "1"), ("CONFIG", "SET", "busy-reply-threshold", "50"))
    busy = redis(info, ("EVAL", "while true do end", "0"))
    busy.addErrback(lambda failure: failure.trap(ConnectionError, OSError))
    watched = wait_until_busy(info)
    await watched
    assert await manager.stop("redis") is True
    await busy
    await manager.start("redis")
    assert await redis(manager.connection_info("redis"), ("GET", "a")) == ["1"]


async def wait_until_busy(info: dict[str, Any]) -> None:
    while not (await redis(info, ("PING",)))[0].startswith("-BUSY"):
        continue


@pytest_twisted.ensureDeferred
async def test_it_lives_though_it_complains(manager: ServiceManager):
    """Full of clients it is saturated, unable to save degraded; it is not restarted for that (RD3, RD7)."""
    alive = Probe("redis", every=0.05, timeout=1.0)
    service = manager.add(replace(REDIS, alive=alive))
    await manager.start("redis", port="auto", appendonly=False)
    info = manager.connection_info("redis")
    await redis(info, ("CONFIG", "SET", "maxclients", "4"))
    clients: list[socket.socket] = []

    def saturated() -> bool:
        # One more each time: a probe that is under way takes a place, and gives it back.
        clients.append(socket.create_connection((info["host"], info["port"])))
        return service.health.value == "saturated"

    await wait_until(saturated, "saturation")
    for client in clients:
        client.close()
    await wait_until(lambda: service.health.value == "healthy", "health")
    in_the_way = service.context.home.data / "dump.rdb"
    in_the_way.mkdir()
    await redis(info, ("SET", "a", "1"), ("BGSAVE",))
    await wait_until(lambda: service.health.value == "degraded", "degradation")
    assert service.restarts == 0 and (await manager.status("redis"))["running"]
    in_the_way.rmdir()


@pytest_twisted.ensureDeferred
async def test_loading_is_not_ready(make_manager: Callable[..., ServiceManager]):
    """While it loads it is starting, with the time it needs as progress; then it is ready (RD4)."""
    manager = make_manager()
    await manager.start("redis", port="auto", appendonly=False)
    info = manager.connection_info("redis")
    await redis(
        info,
        ("CONFIG", "SET", "proto-max-bulk-len", "1048576"),
        ("EVAL", "for i=1,200000 do redis.call('set', 'key'..i, i) end", "0"),
    )
    await manager.stop("redis")
    service = service_of(manager)
    seen: list[tuple[str, str]] = []
    manager.subscribe(lambda name, status: seen.append((status["state"], status["progress"])))
    assert await manager.start("redis", port="auto", appendonly=False) is True
    assert await redis(manager.connection_info("redis"), ("DBSIZE",)) == [200000]
    assert ("running", "") == seen[-1] and all(state != "running" for state, _ in seen[:-1])
    assert service.state.value == "running"


@pytest_twisted.ensureDeferred
async def test_a_suspended_server_is_resumed(manager: ServiceManager):
    """No answer three times, told to continue, healthy again without a restart (PG21)."""
    service = manager.add(replace(REDIS, alive=Probe("redis", every=0.05, timeout=0.3)))
    await manager.start("redis", port="auto")
    seen: list[str] = []
    manager.subscribe(lambda name, status: seen.append(status["health"]))
    service.process.signal(signal.SIGSTOP)
    await wait_until(lambda: "unresponsive" in seen and service.health.value == "healthy", "the resumption")
    assert service.restarts == 0


@pytest_twisted.ensureDeferred
async def test_a_stop_of_a_suspended_server(manager: ServiceManager):
    """It hears nothing until it is told to continue; the stop sees to that."""
    declaration = replace(REDIS, alive=None, stop=(StopStep(signal.SIGTERM, 10.0), StopStep(signal.SIGKILL, 5.0)))
    service = manager.add(declaration)
    await manager.start("redis", port="auto")
    await redis(manager.connection_info("redis"), ("SET", "a", "1"))
    service.process.signal(signal.SIGSTOP)
    assert await manager.stop("redis") is True
    await manager.start("redis")
    assert await redis(manager.connection_info("redis"), ("GET", "a")) == ["1"]


@pytest_twisted.ensureDeferred
async def test_a_long_path(make_manager: Callable[..., ServiceManager], place: Path):
    """A deep directory gets its socket elsewhere, a path with signs is quoted (RD11, PG5)."""
    manager = make_manager(place / ('a "b" \\c' + "d" * 50) / ("e" * 60))
    await manager.start("redis", port="auto")
    socket_path = Path(manager.connection_info("redis")["unix_socket"])
    assert socket_path.is_socket() and mode(socket_path.parent) == 0o700
    await manager.stop("redis")
    socket_path.parent.rmdir()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"port": 0}, ConfigError),
        ({"port": "x"}, ConfigError),
        ({"appendonly": "yes"}, ConfigError),
        ({"appendfsync": "no"}, ConfigError),
        ({"appendfsync": True}, ConfigError),
        ({"database": "a"}, ConfigError),
        ({"data_dir": "here"}, DataDirectoryError),
        ({"password": 7}, ConfigError),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bad_arguments(manager: ServiceManager, place: Path, arguments: dict, error: type):
    """A typed error, and nothing on the disk (P19)."""
    with pytest.raises(error):
        await manager.start("redis", **arguments)
    assert not (place / "home").exists()


@pytest_twisted.ensureDeferred
async def test_a_healthy_start_and_stop_log_no_error(manager: ServiceManager):
    """Whoever looks through the log for what is wrong finds nothing of zComm's making.

    Redis warns of how the machine's kernel is set up, and is right.
    """
    await manager.start("redis")
    await manager.stop("redis")
    log = manager.get("redis").context.home.log.path.read_text()
    assert "Ready to accept connections" in log
    # Redis marks how it starts and ends as warnings too.
    wrong = ("rror", "ailed", "Can't", "Could not", "WARNING: ", "Warning: ")
    kernel = ("overcommit", "Transparent Huge Pages", "TCP backlog", "clocksource")
    lines = [line for line in log.splitlines() if not any(word in line for word in kernel)]
    assert [line for line in lines if any(word in line for word in wrong)] == []
