"""The manager: requests, order, events, services of one's own. Real, but small servers."""

from __future__ import annotations

import dataclasses
import http.client
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings, strategies
from support.localservers import processes_in
from support.ports import unused_port
from support.waiting import wait_until
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from zcomm.errors import (
    ConfigError,
    ServiceError,
    ServiceNotInstalled,
    ServiceStartFailed,
    ServiceStartTimeout,
    UnknownService,
)
from zcomm.services.declaration import Probe, ServiceDeclaration, StopStep
from zcomm.services.kinds import KINDS
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.machine.identity import process_identity, seconds_running, started_at
from zcomm.services.manager import ServiceManager
from zcomm.services.resources import Meter
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.servicefile import load_services
from zcomm.services.status import Health, ServiceStatus

#: The services that every manager has.
KNOWN = tuple(kind.name for kind in KINDS)

HTTP = ServiceDeclaration(
    "files",
    argv=("python3", "-m", "http.server", "--bind", "{host}", "{port}"),
    port="auto",
    ready=Probe("http"),
    alive=Probe("http", every=0.1, timeout=2.0),
    url="http://{host}:{port}/",
)

#: What is told of a running server.
FIGURES = {"processes", "memory_bytes", "cpu_percent", "connections", "disk_bytes", "disk_free_bytes"}


def sleeper(name: str = "sleeper", script: str = "exec cat", **more: Any) -> ServiceDeclaration:
    """A service that only runs; started again, without a process beside it."""
    more.setdefault("stop", (StopStep(signal.SIGTERM, 5.0), StopStep(signal.SIGKILL, 5.0)))
    return ServiceDeclaration(name, argv=("/bin/sh", "-c", f"[ -p f ] || mkfifo f; {script} <>f"), **more)


def parent_of(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def get(info: dict[str, Any], path: str = "/") -> Deferred[int]:
    def ask() -> int:
        connection = http.client.HTTPConnection(info["host"], info["port"], timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    return deferToThread(ask)


@pytest_twisted.ensureDeferred
async def test_an_http_server_of_ones_own(manager: ServiceManager):
    """Declared in Python: ready when it answers, watched, restarted, stopped, with a URL."""
    service = manager.add(HTTP)
    assert await manager.start("files") is True
    info = manager.connection_info("files")
    assert info["connection_string"] == f"http://127.0.0.1:{info['port']}/" and await get(info) == 200
    service.process.signal(signal.SIGKILL)
    await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "a restart")
    assert await get(manager.connection_info("files")) == 200
    assert "FILES_URL" in info["environment"] and "GET / " in manager.get("files").context.home.log.tail()
    assert await manager.stop("files") is True
    with pytest.raises(OSError):
        await get(info)


@pytest_twisted.ensureDeferred
async def test_memcached_from_a_file(manager: ServiceManager):
    """Declared in YAML, with a dependency that is started first."""
    text = """
    services:
      cache:
        argv: [memcached, -l, "{host}", -p, "{port}", -U, "0"]
        port: auto
        ready: tcp
        stop: [[TERM, 5], [KILL, 5]]
        url: memcached://{host}:{port}
        depends_on: [base]
      base:
        argv: sh -c 'mkfifo f 2>/dev/null; exec cat <>f'
    """
    for declaration in load_services(text):
        manager.add(declaration)
    order: list[tuple[str, str]] = []
    manager.subscribe(lambda name, status: order.append((name, status["state"])))
    assert await manager.start("cache") is True
    assert order.index(("base", "running")) < order.index(("cache", "starting"))
    info = manager.connection_info("cache")

    def version() -> bytes:
        with socket.create_connection((info["host"], info["port"]), timeout=10) as connection:
            connection.sendall(b"version\r\n")
            return connection.recv(100)

    assert (await deferToThread(version)).startswith(b"VERSION")
    status = await manager.status("cache")
    if os.geteuid() == 0:
        assert status["user"] == "nobody" and psutil.Process(status["pid"]).uids().real != 0
    del order[:]
    await manager.stopService()
    assert order.index(("cache", "stopped")) < order.index(("base", "stopping"))


@pytest_twisted.ensureDeferred
async def test_k3_the_wall_clock_makes_no_service_older(make_manager: Callable[..., ServiceManager]):
    """An hour or a day forwards, an hour back: the uptime goes on as it was, and is never negative (K3)."""
    jump = 0.0
    manager = make_manager(now=lambda: time.time() + jump)
    assert await manager.start("redis")
    last = 0.0
    for jump in (0.0, 3600.0, 86400.0, -3600.0, 0.0):  # noqa: B007 (the lambda above reads it)
        for status in (await manager.status("redis"), manager.snapshot()["redis"]):
            assert last <= status["uptime_seconds"] < 600
            last = status["uptime_seconds"]


@pytest.mark.parametrize("name", ["nginx", "../x", "", None, 7, "POSTGRESQL", "a" * 500])
@pytest_twisted.ensureDeferred
async def test_there_is_no_such_service(manager: ServiceManager, place: Path, name: Any):
    """A typed error that names those there are; nothing happens (P19)."""
    for operation in (manager.start, manager.stop, manager.restart, manager.status):
        if operation == manager.status and name is None:
            continue
        with pytest.raises(UnknownService, match=", ".join(sorted(KNOWN))) as caught:
            await operation(name)
        assert ('did you mean "postgresql"?' in str(caught.value)) == (name == "POSTGRESQL")
    with pytest.raises(UnknownService):
        manager.connection_info(name)
    assert not (place / "home").exists()


@pytest_twisted.ensureDeferred
async def test_contact_who_asks_for_a_status_and_leaves_is_no_line_in_the_log(manager: ServiceManager):
    """However many of them hang up on a page that shows it."""
    with capturedLogs() as events:
        for _ in range(5):
            asked = manager.status()
            asked.addErrback(lambda _: None)
            asked.cancel()
        await manager.status()
    assert [event for event in events if "log_failure" in event] == []


@pytest_twisted.ensureDeferred
async def test_all_at_a_glance(manager: ServiceManager):
    """status() without a name tells of every service; what was never started is stopped."""
    every = await manager.status()
    assert set(every) == set(KNOWN) == set(manager.snapshot())
    assert {
        "running",
        "pid",
        "port",
        "uptime",
        "state",
        "health",
        "reason",
        "fix",
        "managed",
        "version",
        "user",
        "log",
    } <= set(every["redis"])


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_not_there(manager: ServiceManager):
    """Named before anything is spawned."""
    manager.add(ServiceDeclaration("ghost", argv=("no-such-program-here",)))
    with pytest.raises(ServiceNotInstalled, match="no-such-program-here"):
        await manager.start("ghost")


@pytest_twisted.ensureDeferred
async def test_a_start_that_never_gets_ready(manager: ServiceManager, place: Path):
    """It is given up in time, ended and collected; the last words are in the error (P10)."""
    manager.add(
        sleeper(script="echo working on it; exec cat", ready=Probe("log", pattern="^ready$"), start_timeout=0.4)
    )
    with pytest.raises(ServiceStartTimeout, match="not ready after 0.4 s") as caught:
        await manager.start("sleeper")
    assert "working on it" in caught.value.output_tail and processes_in(place) == []
    assert (await manager.status("sleeper"))["state"] == "error"


@pytest.mark.parametrize("probe", ["tcp", "http"])
@pytest_twisted.ensureDeferred
async def test_contact_c44_one_that_listens_elsewhere_is_told_where_it_is_asked(manager: ServiceManager, probe: str):
    """On ``::1``, or on another port: the error names the address and the key that changes it."""
    manager.add(sleeper(ready=Probe(probe), port="auto", start_timeout=0.4))
    with pytest.raises(ServiceStartTimeout, match="not ready after 0.4 s") as caught:
        await manager.start("sleeper")
    status = await manager.status("sleeper")
    assert caught.value.fix.startswith(f"let it listen on 127.0.0.1, port {status['port']}, ")
    assert "host in the declaration" in caught.value.fix and status["fix"] == caught.value.fix


@pytest_twisted.ensureDeferred
async def test_a_start_that_dies(manager: ServiceManager):
    """The error has its status and its last words."""
    manager.add(
        ServiceDeclaration(
            "dying", argv=("/bin/sh", "-c", "echo cannot go on; exit 3"), ready=Probe("log", pattern="never")
        )
    )
    with pytest.raises(ServiceStartFailed, match="status 3.*cannot go on") as caught:
        await manager.start("dying")
    assert caught.value.exit_code == 3 and "cannot go on" in caught.value.output_tail


@pytest_twisted.ensureDeferred
async def test_a_port_that_somebody_else_answers_on(manager: ServiceManager):
    """A probe that would be content with anybody's answer is not: the port must be the server's own (PG8)."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        service = manager.add(sleeper("late", port=stranger.getsockname()[1], ready=Probe("tcp"), start_timeout=0.5))
        start = manager.start("late")
        await wait_until(lambda: service.process is not None or service.state.value == "error", "its start")
        stranger.listen()
        with pytest.raises(ServiceError):
            await start


@pytest.mark.parametrize(
    ("probe", "ready"),
    [
        (Probe("exec", argv=("test", "-e", "{data_dir}/f")), True),
        (Probe("exec", argv=("false",)), False),
        (Probe("log", pattern="^listening on \\d+$"), True),
        (Probe("none"), True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_probes(manager: ServiceManager, probe: Probe, ready: bool):
    """A command's status, a line in the log, nothing at all."""
    manager.add(sleeper(script="echo listening on 80; exec cat", ready=probe, start_timeout=10.0 if ready else 0.3))
    if ready:
        assert await manager.start("sleeper") is True
    else:
        with pytest.raises(ServiceStartTimeout):
            await manager.start("sleeper")


@pytest.mark.unmeasured
@pytest.mark.parametrize("pattern", [".{0,1000}x", "(?s).*a.{900}"])
@pytest_twisted.ensureDeferred
async def test_no_log_stops_the_reactor(manager: ServiceManager, place: Path, pattern: str):
    """However much a server says and whatever is looked for, all else goes on; what is found stays found."""
    said = place / "said"
    said.write_text(("ab1 cde" * 110 + "\n") * 400 + "b" * 100_000)
    said.chmod(0o644)
    script = f"cat {said}; mkfifo g; read word <>g; echo; echo {'a' * 950}x; exec cat"
    ready, alive = Probe("log", pattern=pattern), Probe("log", pattern="never")
    service = manager.add(sleeper(script=script, ready=ready, alive=alive, start_timeout=100.0))
    gate = service.context.home.data / "g"
    longest = 0.0
    last = time.perf_counter()

    def turn() -> None:
        nonlocal longest, last
        now = time.perf_counter()
        longest, last = max(longest, now - last), now

    turns = LoopingCall(turn)
    turns.start(0.001)
    start = manager.start("sleeper")
    await wait_until(gate.exists, "its words")
    gate.write_text("go\n")
    assert await start is True
    turns.stop()
    assert longest < 0.5


@pytest_twisted.ensureDeferred
async def test_the_last_request_decides(manager: ServiceManager, place: Path):
    """start, stop, start, restart, stop within one turn of the reactor, and the like (P9)."""
    manager.add(sleeper())
    first = manager.start("sleeper")
    stop = manager.stop("sleeper")
    second = manager.start("sleeper")
    with pytest.raises(ServiceStartFailed, match="stopped before"):
        await first
    assert await stop is True and await second is True
    assert (await manager.status("sleeper"))["running"]
    results = [manager.restart("sleeper"), manager.stop("sleeper")]
    outcomes = await DeferredList(results, consumeErrors=True)
    assert [good for good, _ in outcomes] == [False, True]
    assert (await manager.status("sleeper"))["state"] == "stopped" and processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_the_last_request_decides_whenever_it_is_made(manager: ServiceManager, place: Path):
    """Whoever is just told that it runs stops it and starts it again, with other settings: it runs with those."""
    service = manager.add(sleeper())
    other = place / "other"
    asked: list[Any] = []

    def ask(ready: bool) -> bool:
        asked.extend((manager.stop("sleeper"), manager.start("sleeper", data_dir=other), manager.start("sleeper")))
        return ready

    assert await manager.start("sleeper").addCallback(ask) is True
    pid = service.process.pid
    assert await gatherResults(asked) == [True] * 3
    status = await manager.status("sleeper")
    assert status["running"] and status["pid"] != pid and status["data_dir"] == str(other)
    with pytest.raises(ServiceStartFailed, match="other settings"):
        await manager.start("sleeper", data_dir=place / "third")
    assert (await manager.status("sleeper"))["pid"] == status["pid"]


@pytest.mark.parametrize("seed", range(4))
@pytest_twisted.ensureDeferred
async def test_requests_of_those_who_are_told(manager: ServiceManager, place: Path, seed: int):
    """From within the news of a change, and of the end of a request: one process at most, the last one obeyed."""
    service = manager.add(sleeper())
    chance = random.Random(seed)
    answers: list[Deferred[Any]] = []
    made: list[str] = []

    def ask(*_: Any) -> None:
        if len(made) < 40:
            made.append(chance.choice(["start", "stop", "restart"]))
            answers.append(getattr(manager, made[-1])("sleeper").addBoth(lambda result: ask()))
        assert len([one for one in processes_in(place) if parent_of(one) == os.getpid()]) <= 1

    manager.subscribe(lambda name, status: ask() if chance.random() < 0.5 else None)
    ask()
    while len(made) < 40 or any(not answer.called for answer in answers):
        await answers[-1]
        turned: Deferred[None] = Deferred()
        manager.environment.reactor.callLater(0, turned.callback, None)
        await turned
    assert (service.state.value == "stopped") == (made[-1] == "stop"), made


@pytest_twisted.ensureDeferred
async def test_a_hundred_random_requests(manager: ServiceManager, place: Path):
    """In whatever order, also kills: one process at most, every request answered, the last one obeyed (P9)."""
    service = manager.add(sleeper())
    chance = random.Random(20261123)
    answers = []
    for number in range(100):
        what = chance.choice(["start", "stop", "restart", "kill", "turn", "turn"])
        if what == "kill" and service.process is not None:
            service.process.signal(signal.SIGKILL)
        elif what in ("start", "stop", "restart"):
            answers.append(getattr(manager, what)("sleeper").addErrback(lambda failure: failure.trap(ServiceError)))
        else:
            turned: Deferred[None] = Deferred()
            manager.environment.reactor.callLater(chance.random() * 0.02, turned.callback, None)
            await turned
        assert len([one for one in processes_in(place) if parent_of(one) == os.getpid()]) <= 1, number
    answers.append(manager.stop("sleeper"))
    await gatherResults(answers)
    assert (await manager.status("sleeper"))["state"] == "stopped" and processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_a_stop_during_backoff(make_manager: Callable[..., ServiceManager]):
    """What waits for its next attempt is simply stopped."""
    manager = make_manager(policy=RestartPolicy(base=1000.0, cap=1000.0))
    service = manager.add(sleeper())
    await manager.start("sleeper")
    service.process.signal(signal.SIGKILL)
    await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "the first attempt")
    service.process.signal(signal.SIGKILL)
    await wait_until(lambda: service.state.value == "error", "the wait")
    assert await manager.stop("sleeper") is True and service.state.value == "stopped"


@pytest_twisted.ensureDeferred
async def test_a_start_goes_on_when_what_hung_survives_its_end(
    make_manager: Callable[..., ServiceManager], place: Path
):
    """Whoever asks while a hung server is being ended deals with it: that it survived the first attempt changes
    nothing for the start under way, and there are never two operations."""
    manager = make_manager(misses=1)
    hangs = place / "hangs"
    probe = ("sh", "-c", f"test ! -e {hangs} || exec sleep 60")
    service = manager.add(
        sleeper(
            script="trap '' TERM; exec cat",
            stop=(StopStep(signal.SIGTERM, 0.2),),
            alive=Probe("exec", argv=probe, every=0.05, timeout=0.3),
        )
    )
    await manager.start("sleeper")
    first = service.process
    assert first is not None
    states: list[str] = []
    manager.subscribe(lambda name, status: states.append(status["state"]))
    hangs.touch()
    await wait_until(lambda: service.state.value == "error", "the end of its patience")
    hangs.unlink()
    # The start takes longer to end it than the attempt that is under way, and succeeds.
    last = (StopStep(signal.SIGTERM, 0.6), StopStep(signal.SIGKILL, 5.0))
    service.declaration = service.context.declaration = dataclasses.replace(service.declaration, stop=last)
    del states[:]
    assert await manager.start("sleeper") is True
    assert "error" not in states and service.process is not first and first.exit is not None
    assert await manager.stop("sleeper") is True and processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_a_persistent_manager_takes_over_again_what_it_let_go(make_manager: Callable[..., ServiceManager]):
    """Stopped and started again it watches and stops the same server."""
    manager = make_manager(lifetime="persistent")
    service = manager.add(sleeper())
    manager.startService()
    await manager.start("sleeper")
    pid = service.process.pid
    await manager.stopService()
    assert service.process is None
    # It runs on, and says so.
    status = await manager.status("sleeper")
    assert (status["running"], status["pid"]) == (True, pid)
    manager.startService()
    await wait_until(lambda: service.process is not None and service.state.value == "running", "the takeover")
    assert service.process.pid == pid and service.restarts == 0
    await manager.stopService()
    assert await service.adopt() is True and service.process.pid == pid
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "the restart")
    assert await manager.stop("sleeper") is True


@pytest.mark.parametrize("failing", ["another service", "what comes after them"])
@pytest_twisted.ensureDeferred
async def test_a_start_that_fails_leaves_what_it_took_over_as_it_was(
    make_manager: Callable[..., ServiceManager], failing: str
):
    """It goes on with its pid and port, through the end of the manager too; what the start began itself ends."""
    first = make_manager(lifetime="persistent")
    first.add(HTTP)
    await first.start("files")
    before = await first.status("files")
    await first.stopService()

    def fail_afterwards() -> Deferred[None]:
        raise ConfigError("database", "cannot be used")

    second = make_manager()
    second.add(HTTP)
    begun = second.add(sleeper())
    second.add(sleeper("broken", "exit 3; "))
    second.startService()
    names = ["files", "sleeper", *(["broken"] if failing == "another service" else [])]
    with pytest.raises((ConfigError, ServiceStartFailed)):
        await second.start_all(names, fail_afterwards)
    assert second.get("files").process is None and begun.process is not None
    own = begun.process
    await second.stopService()
    assert own.exit is not None
    after = await make_and_take_over(make_manager)
    assert (after["pid"], after["port"]) == (before["pid"], before["port"])


async def make_and_take_over(make_manager: Callable[..., ServiceManager]) -> dict[str, Any]:
    third = make_manager()
    third.add(HTTP)
    await third.start("files")
    status: dict[str, Any] = await third.status("files")
    await third.stop("files")
    return status


@pytest_twisted.ensureDeferred
async def test_a_start_knows_of_bad_settings_before_it_starts_anything(
    make_manager: Callable[..., ServiceManager], place: Path
):
    """A setting or a name that is wrong in the last of several services keeps the first from being started."""
    manager = make_manager(environ={"PATH": os.environ["PATH"], "REDIS_PORT": "many"})
    manager.add(sleeper())
    with pytest.raises(ConfigError, match="REDIS_PORT"):
        await manager.start_all(["sleeper", "redis"])
    with pytest.raises(UnknownService):
        await manager.start_all(["sleeper", "nothing"])
    assert manager.get("sleeper").process is None and processes_in(place) == []


def gated(gate: Path) -> ServiceDeclaration:
    """An HTTP server that counts as ready while the file is there."""
    return dataclasses.replace(HTTP, ready=Probe("exec", argv=("test", "-e", str(gate))))


@pytest_twisted.ensureDeferred
async def test_a_persistent_manager_gives_up_a_start(make_manager: Callable[..., ServiceManager], place: Path):
    """What it had started ends, its caller hears of it, what it needs goes on; the next manager starts it anew."""
    gate = place / "gate"
    manager = make_manager(lifetime="persistent")
    manager.add(sleeper("base"))
    service = manager.add(dataclasses.replace(gated(gate), depends_on=("base",)))
    manager.startService()
    start = manager.start("files")
    await wait_until(lambda: service.process is not None, "its process")
    begun, base = service.process, manager.get("base").process
    await manager.stopService()
    with pytest.raises(ServiceStartFailed, match="given up before it was ready"):
        await start
    assert begun.exit is not None and service.process is None and service.state.value == "stopped"
    assert psutil.pid_exists(base.pid)
    gate.touch()
    later = make_manager(lifetime="persistent")
    later.add(sleeper("base"))
    later.add(gated(gate))
    assert await later.start("files") is True and await later.start("base") is True
    assert later.get("base").process.pid == base.pid
    for name in ("files", "base"):
        await later.stop(name)
    assert processes_in(place) == []


@pytest.mark.parametrize("ask", ["stop", "restart"])
@pytest_twisted.ensureDeferred
async def test_a_persistent_manager_waits_for_a_stop(
    make_manager: Callable[..., ServiceManager], place: Path, ask: str
):
    """One that is under way is carried out, and nothing is started after it."""
    manager = make_manager(lifetime="persistent")
    service = manager.add(sleeper())
    await manager.start("sleeper")
    process = service.process
    asked = getattr(manager, ask)("sleeper").addErrback(lambda failure: failure.trap(ServiceStartFailed))
    await manager.stopService()
    await asked
    assert process.exit is not None and service.state.value == "stopped" and processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_a_takeover_that_is_given_up_ends_nothing(make_manager: Callable[..., ServiceManager], place: Path):
    """Stopped while it takes over, it takes over no other; the servers go on, and the next manager has them."""
    gate = place / "gate"
    gate.touch()
    first = make_manager(lifetime="persistent")
    both = gated(gate), sleeper("after")
    pids = {}
    for declaration in both:
        service = first.add(declaration)
        await first.start(declaration.name)
        pids[declaration.name] = service.process.pid
    await first.stopService()
    gate.unlink()
    second = make_manager(lifetime="persistent")
    files, after = [second.add(declaration) for declaration in both]
    second.startService()
    await wait_until(lambda: files.process is not None, "the takeover")
    assert files.process.pid == pids["files"] and files.state.value == "starting"
    await second.stopService()
    assert files.process is None and after.process is None and all(map(psutil.pid_exists, pids.values()))
    gate.touch()
    third = make_manager(lifetime="persistent")
    for declaration in both:
        third.add(declaration)
    third.startService()
    await wait_until(lambda: all(third.get(name).state.value == "running" for name in pids), "the takeover")
    assert {name: third.get(name).process.pid for name in pids} == pids
    for name in pids:
        await third.stop(name)


@pytest_twisted.ensureDeferred
async def test_a_bad_setting_of_the_environment(make_manager: Callable[..., ServiceManager]):
    """An argument wins over it; without one the start says so; what is shown names it, and a stop needs no settings."""
    manager = make_manager(environ={"REDIS_PORT": "abc"}, lifetime="persistent")
    with pytest.raises(ConfigError, match="REDIS_PORT"):
        await manager.start("redis")
    status = await manager.status("redis")
    assert (status["state"], status["port"]) == ("stopped", None) and "REDIS_PORT: 'abc'" in status["reason"]
    assert (await manager.status())["postgresql"]["reason"] == ""
    port = unused_port()
    assert await manager.start("redis", port=port) is True
    await manager.stopService()
    later = make_manager(environ={"REDIS_PORT": "abc"}, lifetime="persistent")
    assert (await later.status("redis"))["port"] == port
    assert await later.stop("redis") is True and not (await later.status("redis"))["running"]


@pytest_twisted.ensureDeferred
async def test_events(manager: ServiceManager):
    """Each change is told once to each subscriber; one that fails harms nobody; one that left hears nothing."""
    manager.add(sleeper())
    heard: list[tuple[str, str, bool]] = []

    def failing(name: str, status: dict[str, Any]) -> None:
        raise RuntimeError("a bad subscriber")

    manager.subscribe(failing)
    unsubscribe = manager.subscribe(lambda name, status: heard.append((name, status["state"], status["running"])))
    await manager.start("sleeper")
    await manager.stop("sleeper")
    states = [state for _, state, _ in heard]
    assert states == ["starting", "running", "stopping", "stopped"] and [running for *_, running in heard] == [
        False,
        True,
        False,
        False,
    ]
    unsubscribe()
    unsubscribe()
    await manager.start("sleeper")
    assert len(heard) == 4


@pytest_twisted.ensureDeferred
async def test_dependencies(manager: ServiceManager):
    """Each after what it needs; a circle or a gap is an error; a failed need fails the start."""
    manager.add(ServiceDeclaration("broken", argv=("/bin/sh", "-c", "exit 1"), ready=Probe("log", pattern="never")))
    service = manager.add(sleeper("needy", depends_on=("broken",)))
    with pytest.raises(ServiceStartFailed, match="^broken"):
        await manager.start("needy")
    assert service.process is None
    manager.add(sleeper("one", depends_on=("two",)))
    manager.add(sleeper("two", depends_on=("one",)))
    with pytest.raises(ConfigError, match="one -> two -> one"):
        await manager.start("one")
    manager.add(sleeper("lost", depends_on=("nowhere",)))
    with pytest.raises(UnknownService):
        await manager.start("lost")


def layered(manager: ServiceManager, place: Path, gates: bool = True) -> tuple[Any, Any, Any]:
    """Three services, each of which needs the one before; the first is ready when its gate is there."""
    ready = Probe("exec", argv=("test", "-e", str(place / "gate")))
    return (
        manager.add(sleeper("base", ready=ready if gates else Probe("none"))),
        manager.add(sleeper("middle", depends_on=("base",))),
        manager.add(sleeper("top", depends_on=("middle",))),
    )


@pytest.mark.parametrize("start", ["start", "restart", "start_all"])
@pytest.mark.parametrize("stopped", ["top", "middle", "base"])
@pytest_twisted.ensureDeferred
async def test_a_stop_ends_a_start_that_waits_for_what_it_needs(
    manager: ServiceManager, place: Path, stopped: str, start: str
):
    """The last request decides, also for a service whose turn has not come."""
    base, middle, top = layered(manager, place)
    started = manager.start_all(["top"]) if start == "start_all" else getattr(manager, start)("top")
    await wait_until(lambda: base.process is not None, "the process of the first")
    assert not top.rests
    assert await manager.stop(stopped) is True
    with pytest.raises(ServiceStartFailed, match=f"^{stopped}: it was stopped before it was ready"):
        await started
    (place / "gate").touch()
    assert await manager.start("base") is True
    assert middle.rests and top.rests and middle.process is None and top.process is None
    assert await manager.start("top") is True


@pytest.mark.parametrize("lifetime", ["session", "persistent"])
@pytest_twisted.ensureDeferred
async def test_a_manager_that_stops_ends_starts_that_wait_for_what_they_need(
    make_manager: Callable[..., ServiceManager], place: Path, lifetime: str
):
    """Whoever asked hears it of the service that they asked for; nothing is started any more."""
    manager = make_manager(lifetime=lifetime)
    base, middle, top = layered(manager, place)
    started = manager.start("top")
    await wait_until(lambda: base.process is not None, "the process of the first")
    await manager.stopService()
    with pytest.raises(ServiceStartFailed, match="^top: it was (stopped|given up) before it was ready"):
        await started
    assert all(each.rests for each in (base, middle, top))
    # A question for the gate that was under way ends by itself.
    await wait_until(lambda: processes_in(place) == [], "an end of all that was started")


@pytest_twisted.ensureDeferred
async def test_a_start_that_was_stopped_while_it_waited_can_be_asked_for_again(manager: ServiceManager, place: Path):
    """Start, stop, start: one end, then a start; who cancels a start keeps others from nothing."""
    base, _, top = layered(manager, place)
    first = manager.start("top")
    second = manager.start("top")
    await wait_until(lambda: base.process is not None, "the process of the first")
    stop = manager.stop("top")
    third = manager.start("top")
    fourth = manager.start("top")
    fourth.cancel()
    (place / "gate").touch()
    outcomes = await DeferredList([first, second, stop, third, fourth], consumeErrors=True)
    assert [good for good, _ in outcomes] == [False, False, True, True, False] and top.state.value == "running"


@pytest_twisted.ensureDeferred
async def test_a_restart_starts_what_is_needed_first(manager: ServiceManager, place: Path):
    """In the order of a start; what runs already goes on."""
    base, middle, top = layered(manager, place, gates=False)
    order: list[str] = []
    manager.subscribe(lambda name, status: order.append(name) if status["state"] == "running" else None)
    assert await manager.restart("top") is True
    assert order == ["base", "middle", "top"]
    pids = [each.process.pid for each in (base, middle, top)]
    assert await manager.restart("top") is True
    assert [each.process.pid for each in (base, middle)] == pids[:2] and top.process.pid != pids[2]
    await manager.stop("base")
    manager.add(ServiceDeclaration("base", argv=("/bin/sh", "-c", "exit 1"), ready=Probe("log", pattern="never")))
    pid = top.process.pid
    with pytest.raises(ServiceStartFailed, match="^base"):
        await manager.restart("top")
    assert top.process.pid == pid and top.state.value == "running"


@pytest_twisted.ensureDeferred
async def test_a_manager_that_stops_refuses_starts(make_manager: Callable[..., ServiceManager], place: Path):
    """So a subscriber that starts what ends keeps nothing alive; started again, the manager starts services again.
    One that was never started as a Twisted service starts them too."""
    manager = make_manager()
    service = manager.add(sleeper())
    answers: list[Deferred[Any]] = []

    def insist(name: str, status: dict[str, Any]) -> None:
        if status["state"] == "stopped":
            asked = manager.start(name), manager.restart(name), manager.start_all([name])
            answers.extend(answer.addErrback(lambda failure: failure.value) for answer in asked)

    assert await manager.start("sleeper") is True
    unsubscribe = manager.subscribe(insist)
    await manager.stopService()
    unsubscribe()
    assert service.rests and processes_in(place) == []
    for answer in answers:
        error = await answer
        assert isinstance(error, ServiceStartFailed) and "stops or has stopped" in str(error)
    assert len(answers) == 3
    with pytest.raises(ServiceStartFailed, match="stops or has stopped"):
        await manager.start("sleeper")
    with pytest.raises(UnknownService):
        await manager.start("nothing")
    assert await manager.stop("sleeper") is True and (await manager.status("sleeper"))["state"] == "stopped"
    manager.startService()
    assert await manager.start("sleeper") is True


@pytest_twisted.ensureDeferred
async def test_as_a_twisted_service(make_manager: Callable[..., ServiceManager], place: Path):
    """It starts nothing by itself; stopService ends all and waits for the end."""
    manager = make_manager()
    service = manager.add(sleeper())
    manager.startService()
    assert service.state.value == "stopped" and manager.running
    await manager.start_all(["sleeper"])
    assert service.state.value == "running"
    await manager.stopService()
    assert processes_in(place) == [] and not manager.running


@pytest.mark.parametrize(
    "arguments",
    [
        {"ready": Probe("ping")},
        {"alive": Probe("ping")},
        {"kind": "mysql"},
        {"kind": "../x"},
        {"kind": None},
    ],
)
def test_what_no_kind_knows_is_refused_at_once(manager: ServiceManager, arguments: dict[str, Any]):
    """A probe or a kind that is not there is said when the service is added, not when it is needed."""
    with pytest.raises(ConfigError):
        manager.add(ServiceDeclaration("one", argv=("true",), **arguments))
    assert manager.names == KNOWN


class Vanishing(RedisService):
    """A kind whose server on the port ends while it is looked at."""

    async def foreign(self) -> ServiceStatus | None:
        stranger = subprocess.Popen(["sleep", "60"])
        seen = psutil.Process(stranger.pid)
        stranger.kill()
        stranger.wait()
        return ServiceStatus(name=self.name, pid=stranger.pid, user=seen.username())


@pytest_twisted.ensureDeferred
async def test_a_report_survives_what_vanishes(make_manager: Callable[..., ServiceManager]):
    """A server that ends between two steps of a status costs its own details, not the report."""
    manager = make_manager(kinds=(Vanishing, PostgreSQLService))
    found = await manager.status()
    assert set(found) == {"redis", "postgresql"} and found["redis"]["state"] == "stopped"
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert started_at(gone.pid) is None and seconds_running(gone.pid) is None and process_identity(gone.pid) is None
    status = await manager.get("redis").context.foreign_status(1, Health.HEALTHY)
    assert status.pid is None and status.started is None


@pytest.mark.parametrize("moment", range(12))
def test_the_figures_survive_the_end_of_a_process(moment: int):
    """Killed at any step of the reading, there are figures or none, and no error."""
    running = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & sleep 60 & wait"], start_new_session=True)
    killer = threading.Timer(moment * 0.0005, os.killpg, (running.pid, signal.SIGKILL))
    killer.start()
    meter = Meter()
    while running.poll() is None:
        assert set(meter.read(running.pid, "/nonexistent", 1.0)) in (set(), FIGURES)
    killer.join()
    assert meter.read(running.pid, "/nonexistent", 2.0) == {}


@pytest_twisted.ensureDeferred
async def test_replacing_a_service(manager: ServiceManager):
    """A declaration replaces one that does not run, not one that does."""
    manager.add(sleeper())
    await manager.start("sleeper")
    with pytest.raises(ServiceError, match="runs"):
        manager.add(sleeper())
    await manager.stop("sleeper")
    assert manager.add(sleeper(url="x:")) is manager.get("sleeper")


@pytest.mark.parametrize("moment", ["it starts", "it waits for what it needs", "it waits for another attempt"])
@pytest.mark.parametrize("lifetime", ["session", "persistent"])
@pytest_twisted.ensureDeferred
async def test_only_a_service_that_rests_is_replaced(
    make_manager: Callable[..., ServiceManager], place: Path, moment: str, lifetime: str
):
    """Nothing that was replaced goes on without its manager."""
    manager = make_manager(policy=RestartPolicy(base=1000.0, cap=1000.0), lifetime=lifetime)
    base, _, top = layered(manager, place)
    replaced = top if moment == "it waits for what it needs" else base
    started = manager.start("top").addErrback(lambda failure: failure.trap(ServiceStartFailed))
    if moment == "it waits for another attempt":
        (place / "gate").touch()
        await started
        for attempt in range(1, 3):
            base.process.signal(signal.SIGKILL)
            wanted = ("running", 1) if attempt == 1 else ("error", 1)
            await wait_until(lambda wanted=wanted: (base.state.value, base.restarts) == wanted, "the next attempt")
    with pytest.raises(ServiceError, match="stop it first"):
        manager.add(replaced.declaration)
    assert manager.get(replaced.name) is replaced
    await manager.stopService()
    await started
    if lifetime == "persistent":
        await gatherResults([manager.stop("top"), manager.stop("middle")])
    assert manager.add(replaced.declaration) is not replaced and processes_in(place) == []


@pytest.mark.parametrize("lifetime", ["session", "persistent"])
@pytest.mark.parametrize("ask", ["start", "restart"])
@pytest_twisted.ensureDeferred
async def test_a_takeover_with_other_settings(
    make_manager: Callable[..., ServiceManager], place: Path, ask: str, lifetime: str
):
    """A start with others fails, as it does for a server that this manager started; a restart has what it asks for."""
    first = make_manager(lifetime="persistent")
    service = first.add(HTTP)
    await first.start("files", data_dir=place / "one")
    pid, port = service.process.pid, (await first.status("files"))["port"]
    await first.stopService()
    second = make_manager(lifetime=lifetime)
    service = second.add(HTTP)
    if ask == "start":
        for other in ({"data_dir": place / "two"}, {"port": unused_port()}):
            with pytest.raises(ServiceStartFailed, match="already runs with other settings"):
                await second.start("files", **other)
        status = await second.status("files")
        assert service.process is None and status["pid"] == pid and psutil.pid_exists(pid)
        assert await second.start("files", data_dir=place / "one", port=port) is True and service.process.pid == pid
    else:
        assert await second.restart("files", data_dir=place / "two") is True
        status = await second.status("files")
        assert status["pid"] != pid and status["data_dir"] == str(place / "two") and status["port"] == port
        assert not psutil.pid_exists(pid)
    assert await second.stop("files") is True


@pytest_twisted.ensureDeferred
async def test_a_restart_of_what_an_earlier_manager_left(make_manager: Callable[..., ServiceManager], place: Path):
    """It is another process with the settings it had, whenever it is asked for during the takeover."""
    port = unused_port()
    for asked in (["restart"], ["start", "restart"], ["start", "stop", "start"], ["stop", "start"]):
        first = make_manager(lifetime="persistent")
        first.add(HTTP)
        await first.start("files", data_dir=place / "one", port=port)
        pid = first.get("files").process.pid
        await first.stopService()
        second = make_manager()
        service = second.add(HTTP)
        answers = await DeferredList([getattr(second, one)("files") for one in asked], consumeErrors=True)
        assert answers[-1] == (True, True)
        status = await second.status("files")
        assert (status["port"], status["data_dir"]) == (port, str(place / "one")) and status[
            "pid"
        ] == service.process.pid
        # A restart joins a start that is under way, as it always does.
        assert (status["pid"] == pid) == (asked == ["start", "restart"])
        await second.stop("files")


@pytest_twisted.ensureDeferred
async def test_what_another_zcomm_has_is_neither_stopped_nor_restarted(make_manager: Callable[..., ServiceManager]):
    """Whoever asks for that has an answer, also when they ask while a start finds out; a start is content."""
    owner, other = make_manager(), make_manager()
    owner.add(sleeper())
    service = other.add(sleeper())
    await owner.start("sleeper")
    pid = owner.get("sleeper").process.pid
    asked: list[Deferred[Any]] = []

    def ask(name: str, status: dict[str, Any]) -> None:
        if status["state"] == "starting" and not asked:
            asked.extend((service.stop(), service.start()))

    other.subscribe(ask)
    first = service.start()
    for answer in (first, *asked, service.stop(), service.restart()):
        with pytest.raises(ServiceError):
            await answer
    assert len(asked) == 2 and service.rests
    assert await service.start() is True and service.process is None
    assert owner.get("sleeper").process.pid == pid


@pytest_twisted.ensureDeferred
async def test_the_log_is_rotated_while_it_runs(make_manager: Callable[..., ServiceManager]):
    """Size times count, without the server noticing."""
    manager = make_manager(log_bytes=1000, log_count=1)
    service = manager.add(sleeper(script="yes | head -c 50000; exec cat", alive=Probe("none", every=0.02)))
    await manager.start("sleeper")
    copy = service.context.home.log.path.with_name("sleeper.log.1")
    await wait_until(lambda: copy.exists() and service.context.home.log.size() < 1000, "the rotation")
    assert copy.stat().st_size <= 1000 and (await manager.status("sleeper"))["running"]


def test_settings_that_cannot_be(place: Path):
    """A relative data directory and an unknown lifetime are refused at once."""
    for arguments in (("relative",), (place, "for ever")):
        with pytest.raises(ConfigError):
            ServiceManager(arguments[0], {}, None, *arguments[1:])


@pytest.fixture
def unstarted(place: Path) -> ServiceManager:
    """A manager that is only asked for names."""
    return ServiceManager(place / "home", {}, None)


@given(text=strategies.text(max_size=60))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_is_a_way_out_of_the_directory(unstarted: ServiceManager, text: str):
    """Whatever a client calls a service, it is one of the registered names or no service."""
    if text not in unstarted.names:
        with pytest.raises(UnknownService):
            unstarted.get(text)


@pytest_twisted.ensureDeferred
async def test_auto_wins_the_race_for_a_port(make_manager: Callable[..., ServiceManager], place: Path):
    """Two that choose the same free port at the same time both come up, on two ports (PG7)."""
    managers = [make_manager(place / name) for name in ("a", "b", "c")]
    assert await gatherResults([each.start("redis", port="auto") for each in managers]) == [True] * 3
    ports = {(await each.status("redis"))["port"] for each in managers}
    assert len(ports) == 3


def test_the_figures_of_processes_that_come_and_go(place: Path):
    """Whatever ends while it is read costs its own figures, never the answer."""
    meter = Meter()
    parent = subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/true & /bin/true & wait; done"])
    try:
        for turn in range(100):
            figures = meter.read(parent.pid, str(place), float(turn))
            assert figures["processes"] >= 1 and figures["disk_bytes"] == 0
    finally:
        parent.kill()
        parent.wait()
    assert meter.read(parent.pid, str(place), 1000.0) == {}


@pytest_twisted.ensureDeferred
async def test_contact_h9_the_log_tells_of_starts_and_ends(manager: ServiceManager):
    """One line each, with pid and port; the share of the processor is told by the first look, too."""
    service = manager.add(sleeper())
    with capturedLogs() as events:
        await manager.start("sleeper")
        status = await manager.status("sleeper")
        os.kill(status["pid"], signal.SIGKILL)
        await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "a restart")
        again = (await manager.status("sleeper"))["pid"]
        await manager.stop("sleeper")
    told = [formatEvent(event) for event in events if (formatEvent(event) or "").startswith("sleeper: ")]
    # Its own child may outlive it by a moment.
    told = [line for line in told if not (line or "").startswith("sleeper: ends what it left running")]
    assert told == [
        "sleeper: starts",
        f"sleeper: ready, pid {status['pid']}",
        "sleeper: it was ended by SIGKILL",
        "sleeper: starts again",
        f"sleeper: ready, pid {again}",
        "sleeper: stopped",
    ]
    assert isinstance(status["resources"]["cpu_percent"], float)
