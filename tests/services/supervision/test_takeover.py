"""What one zComm leaves to the next when it dies at the worst moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest
import pytest_twisted
from support.localservers import children_of, copy_cluster, processes_in, redis, sql, words_of
from support.waiting import wait_until, wait_until_blocking

from zcomm.errors import ServiceError
from zcomm.services.declaration import Probe, ServiceDeclaration
from zcomm.services.kinds import KINDS
from zcomm.services.kinds.postgresql.service import POSTGRESQL
from zcomm.services.machine.identity import process_identity, read_identity
from zcomm.services.machine.programs import find_all
from zcomm.services.manager import ServiceManager
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.supervision import supervisor
from zcomm.services.supervision.record import read_record

CHECKOUT = Path(__file__).parents[3]
#: A manager that dies in the very moment in which the server's process exists.
DYING = """
import os, sys
from twisted.internet import reactor
from zcomm.services.manager import ServiceManager

home, name, lifetime, port, *bin_dir = sys.argv[1:]
spawn = reactor.spawnProcess

def spawn_and_die(protocol, *words, **more):
    child = spawn(protocol, *words, **more)
    if type(protocol).__name__ == "ManagedProcess":
        os.kill(os.getpid(), 9)
    return child

reactor.spawnProcess = spawn_and_die
manager = ServiceManager(home, os.environ, reactor, lifetime, space=(0, 0), reserve_after=None)
more = {"bin_dir": bin_dir[0]} if bin_dir else {}
reactor.callWhenRunning(lambda: manager.start(name, port=int(port), **more))
reactor.run()
"""


@pytest.mark.parametrize("name", ["redis", "postgresql"])
@pytest_twisted.ensureDeferred
async def test_a_server_whose_zcomm_died_at_its_birth_is_not_lost(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], name: str, free_port: int
):
    """Killed between the fork and its own note of it: the next one knows the server and takes it over."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(CHECKOUT)}
    words = [sys.executable, "-c", DYING, str(place / "home"), name, "persistent", str(free_port)]
    assert subprocess.run(words, env=environ, cwd="/", check=False).returncode == -signal.SIGKILL
    record = place / "home" / "services" / name / "state.json"
    wait_until_blocking(lambda: read_record(record).pid, "the child's own note")
    pid = read_record(record).pid
    manager = make_manager(lifetime="persistent")
    assert (await manager.status(name))["pid"] == pid
    await manager.start(name)
    status = await manager.status(name)
    assert status["running"] and status["managed"] and status["pid"] == pid
    await manager.stop(name)
    await wait_until(lambda: not psutil.pid_exists(pid), "the end of the server")
    assert processes_in(place) == []


#: A server program that serves when its door is open; everything else it does at once.
HESITANT = """#!/bin/sh
case "$1" in -V|--*) exec "{program}" "$@" ;; esac
while [ ! -e "{door}" ]; do /bin/sleep 0.01; done
exec "{program}" "$@"
"""


def is_watched(pid: int) -> bool:
    """Whether this process has a descriptor of the process ``pid`` (``pidfd_open``)."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        try:
            if f"Pid:\t{pid}\n" in entry.read_text():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(("name", "program"), [("redis", "redis-server"), ("postgresql", "postgres")])
@pytest_twisted.ensureDeferred
async def test_a_server_is_recognised_before_it_is_one(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], name: str, program: str, free_port: int
):
    """The child that a dead zComm left is not in its directory yet: the next one waits, and starts no second."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(CHECKOUT)}
    (kind,) = [kind for kind in KINDS if kind.name == name]
    there = find_all(kind.programs, environ)[0].directory
    door, bin_dir = place / "door", place / "bin"
    bin_dir.mkdir(mode=0o755)
    for tool in there.iterdir():
        if tool.name != program:
            (bin_dir / tool.name).symlink_to(tool)
    (bin_dir / program).write_text(HESITANT.format(program=there / program, door=door))
    (bin_dir / program).chmod(0o755)
    words = [sys.executable, "-c", DYING, str(place / "home"), name, "persistent", str(free_port), str(bin_dir)]
    assert subprocess.run(words, env=environ, cwd="/", check=False).returncode == -signal.SIGKILL
    record = place / "home" / "services" / name / "state.json"
    wait_until_blocking(lambda: read_record(record).pid, "the child's own note")
    pid = read_record(record).pid
    manager = make_manager(lifetime="persistent")
    starting = manager.start(name)
    await wait_until(lambda: is_watched(pid), "the take-over")
    assert not starting.called
    door.touch()
    await starting
    assert (await manager.status(name))["pid"] == pid
    await manager.stop(name)
    await wait_until(lambda: processes_in(place) == [], "the end of the server")


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_just_ending_is_waited_for_and_started_anew(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager]
):
    """The old zComm was killed while it stopped PostgreSQL: the new one's start outlasts that stop."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    first = make_manager(lifetime="persistent")
    await first.start("postgresql", port="auto")
    pid = (await first.status("postgresql"))["pid"]
    ((backend,),) = await sql(first.connection_info("postgresql"), "select pg_backend_pid()")
    await first.stopService()
    # A child that is halted keeps the shutdown from ending, for as long as we like.
    halted = next(one for one in children_of(pid) if "walwriter" in " ".join(words_of(one.pid)))
    halted.suspend()
    os.kill(pid, signal.SIGINT)
    second = make_manager(lifetime="persistent")
    starting = second.start("postgresql", port="auto")
    await wait_until(lambda: second.get("postgresql").process is not None, "the take-over")
    assert not starting.called
    halted.resume()
    assert await starting is True
    status = await second.status("postgresql")
    assert status["running"] and status["pid"] != pid and backend != pid
    await second.stop("postgresql")


@pytest_twisted.ensureDeferred
async def test_contact_a_stop_that_stopped_nothing_says_so(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], monkeypatch: pytest.MonkeyPatch
):
    """A server that nothing shows to be the one of its directory runs on, and that is an error."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    first = make_manager(lifetime="persistent")
    await first.start("postgresql", port="auto")
    seen = await first.status("postgresql")
    await first.stopService()
    # It is on its way to nowhere.
    monkeypatch.setattr(supervisor, "BIRTH", 0.0)
    held = Path(seen["data_dir"], "postmaster.pid")
    held.rename(held.with_suffix(".away"))
    second = make_manager(lifetime="persistent")
    with pytest.raises(ServiceError, match=rf"\(pid {seen['pid']}\) still runs.*kill -INT {seen['pid']}"):
        await second.stop("postgresql")
    held.with_suffix(".away").rename(held)
    await second.stop("postgresql")
    await wait_until(lambda: processes_in(place) == [], "the end of the server")


def test_an_identity_is_believed_only_of_a_living_process(tmp_path: Path):
    """A pid that another process has by now, a half-written or a missing file say nothing."""
    launched = tmp_path / "launched"
    line = Path("/proc/self/stat").read_text() + Path("/proc/sys/kernel/random/boot_id").read_text()
    launched.write_text(line)
    assert read_identity(launched) == (os.getpid(), process_identity(os.getpid()))
    fields = line.rpartition(")")[2].split()
    another_boot = line.replace(fields[-1], "0" * 8 + fields[-1][8:])
    for text in (
        line.replace(f" {fields[19]} ", " 1 "),
        another_boot,
        line[:30],
        line[:-38],
        "",
        "x y z",
        "0 (x) S",
        "٣ (x)",
    ):
        launched.write_text(text)
        assert read_identity(launched) is None
    assert read_identity(tmp_path / "none") is None


@pytest_twisted.ensureDeferred
async def test_contact_the_last_words_are_those_of_this_run(make_manager: Callable[..., ServiceManager], place: Path):
    """Not those of a run before, which stand above in the log, also where the server was taken over."""
    first = ServiceDeclaration("app", argv=("/bin/sh", "-c", "echo complaint of long ago; exec sleep 1000"))
    again = replace(first, argv=("/bin/sleep", "1000"))
    manager = make_manager(lifetime="persistent")
    manager.add(first)
    await manager.start("app")
    log = manager.get("app").context.home.log
    await wait_until(lambda: "complaint" in log.tail(), "its words")
    await manager.stop("app")
    manager.add(again)
    await manager.start("app")
    await manager.stopService()
    manager = make_manager(lifetime="persistent", policy=RestartPolicy(attempts=1))
    service = manager.add(again)
    assert await service.adopt()
    os.kill(service.context.record.pid, signal.SIGKILL)
    await wait_until(lambda: service.state.value == "error", "the end")
    assert service.reason == "it ended" and "complaint" in log.tail()


APP = ServiceDeclaration("app", argv=("/bin/sleep", "1000"))
ALL = ("postgresql", "redis", "app")


async def left_running(home: Path, template: Path, make_manager: Callable[..., ServiceManager]) -> ServiceManager:
    """One server of each kind, started in ``home`` by a manager that has gone; each has kept a value."""
    copy_cluster(template, home / "reserve" / template.name, None)
    manager = make_manager(home, lifetime="persistent")
    manager.add(APP)
    for name in ALL:
        await manager.start(name)
    await sql(manager.connection_info("postgresql"), "create table kept as select 'original' as x")
    await redis(manager.connection_info("redis"), ("SET", "kept", "original"))
    await manager.stopService()
    return manager


def copy_halted(home: Path, target: Path) -> None:
    """Copy a directory as it is at one moment, though servers work in it."""
    servers = processes_in(home)
    # The process that PostgreSQL had for a client of before may be ending at any moment until it is halted.
    for process in servers:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    subprocess.run(["cp", "-a", str(home), str(target)], check=True)
    for process in servers:
        with suppress(psutil.NoSuchProcess):
            process.resume()


async def kept(manager: ServiceManager) -> tuple[str, str]:
    """The values that the servers of a manager keep."""
    ((found,),) = await sql(manager.connection_info("postgresql"), "select x from kept")
    return found, (await redis(manager.connection_info("redis"), ("GET", "kept")))[0]


@pytest_twisted.ensureDeferred
async def test_contact_a_copy_of_a_data_directory_has_servers_of_its_own(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager]
):
    """Those of the original, which run, are not seen, stopped nor written to from it; one that was moved keeps its
    own, but that PostgreSQL is started anew, as it knows its directory by the path."""
    one = await left_running(place / "home", template, make_manager)
    before = await one.status()
    copy_halted(place / "home", place / "copy")
    two = make_manager(place / "copy", lifetime="persistent")
    two.add(APP)
    for name in ALL:
        assert not (await two.status(name))["running"] and await two.stop(name) is True
        assert await two.start(name) is True
        status = await two.status(name)
        assert status["pid"] != before[name]["pid"] and status["data_dir"] == str(
            place / "copy/services" / name / "data"
        )
    await sql(two.connection_info("postgresql"), "update kept set x = 'copy'")
    await redis(two.connection_info("redis"), ("SET", "kept", "copy"))
    assert await kept(two) == ("copy", "copy") and await kept(one) == ("original", "original")
    for name in ALL:
        assert await two.stop(name) is True
    (place / "home").rename(place / "moved")
    (place / "link").symlink_to("moved")
    three = make_manager(place / "link", lifetime="persistent")
    three.add(APP)
    for name in ALL:
        assert (await three.status(name))["pid"] == before[name]["pid"]
        assert await three.start(name) is True
        status = await three.status(name)
        assert (status["pid"] == before[name]["pid"]) is (name != "postgresql")
        assert status["data_dir"] == str(place / "moved/services" / name / "data")
    assert await kept(three) == ("original", "original")
    for name in ALL:
        assert await three.stop(name) is True
    assert processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_contact_a_backup_in_the_place_of_a_directory_whose_servers_run(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], monkeypatch: pytest.MonkeyPatch
):
    """Starts and stops name the server that goes on elsewhere, until it has ended there; then what was brought back
    is there."""
    home, broken = place / "home", place / "broken"
    one = await left_running(home, template, make_manager)
    pids = {name: status["pid"] for name, status in (await one.status()).items()}
    copy_halted(home, place / "backup")
    await sql(one.connection_info("postgresql"), "update kept set x = 'a mistake'")
    home.rename(broken)
    (place / "backup").rename(home)
    two = make_manager(home, lifetime="persistent")
    two.add(APP)
    for name in ALL:
        assert not (await two.status(name))["managed"] or name == "app"
        for request in (two.start, two.stop):
            with pytest.raises(ServiceError, match=f"pid {pids[name]}.*runs, in {broken}/services/{name}/data") as said:
                await request(name)
            assert said.value.fix.endswith(f" {pids[name]}")
    three = make_manager(broken, lifetime="persistent")
    three.add(APP)
    for name in ALL:
        assert await three.stop(name) is True
    assert processes_in(place) == []
    for name in ALL:
        assert await two.start(name) is True
    assert await kept(two) == ("original", "original")
    # The data directories alone.
    await two.stopService()
    four = make_manager(home, lifetime="persistent")
    monkeypatch.setattr(supervisor, "BIRTH", 0.1)
    for name in ALL[:2]:
        data = home / "services" / name / "data"
        data.rename(aside := data.with_name("aside"))
        copy_halted(aside, data)
        with pytest.raises(ServiceError, match=f"still runs, in {aside}"):
            await four.start(name)
        shutil.rmtree(data)
        aside.rename(data)
        assert await four.start(name) is True and await four.stop(name) is True


#: PostgreSQL with a stop ladder whose first steps are soon over.
QUICK = replace(POSTGRESQL, stop=(*(replace(one, seconds=0.3) for one in POSTGRESQL.stop[:-1]), POSTGRESQL.stop[-1]))


@pytest.mark.parametrize("case", ["smart", "spent", "immediate"])
@pytest_twisted.ensureDeferred
async def test_contact_a_server_that_never_ends_its_shutdown_is_ended_and_started_anew(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], case: str
):
    """A dying zComm told it to end, and it goes on without letting anybody in: the next start outlasts that, with all
    that was committed."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    first = make_manager(lifetime="persistent")
    await first.start("postgresql", port="auto")
    pid = (await first.status("postgresql"))["pid"]
    info = first.connection_info("postgresql")
    await sql(info, "create table kept as select 1 as n")
    await first.stopService()
    with psycopg.connect(info["connection_string"], autocommit=True):
        if case != "smart":
            # Nothing but SIGKILL ends a child that is halted, and so its leader.
            next(one for one in children_of(pid) if "walwriter" in " ".join(words_of(one.pid))).suspend()
        os.kill(pid, {"smart": signal.SIGTERM, "spent": signal.SIGINT, "immediate": signal.SIGQUIT}[case])
        pid_file = first.get("postgresql").context.home.data / "postmaster.pid"
        await wait_until(lambda: "stopping" in pid_file.read_text(), "the shutdown")
        second = make_manager(lifetime="persistent")
        second.add(QUICK)
        assert await second.start("postgresql") is True
    status = await second.status("postgresql")
    assert status["running"] and status["pid"] != pid and status["port"] == info["port"]
    assert await sql(second.connection_info("postgresql"), "select n from kept") == [(1,)]
    await second.stop("postgresql")
    await wait_until(lambda: processes_in(place) == [], "the end of all")


@pytest.mark.parametrize("name", ["postgresql", "redis"])
@pytest_twisted.ensureDeferred
async def test_contact_a_halted_server_does_not_lock_out(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], name: str
):
    """PostgreSQL is told to continue and taken over as it is; one that is not ready in its time is started anew."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    first = make_manager(lifetime="persistent")
    await first.start(name, port="auto")
    before = await first.status(name)
    await first.stopService()
    os.kill(before["pid"], signal.SIGSTOP)
    second = make_manager(lifetime="persistent")
    if name == "redis":
        second.add(replace(second.get(name).declaration, start_timeout=2.0))
    assert await second.start(name) is True
    status = await second.status(name)
    assert status["running"] and status["port"] == before["port"]
    assert (status["pid"] == before["pid"]) is (name == "postgresql")
    await second.stop(name)


@pytest_twisted.ensureDeferred
async def test_contact_a_server_that_somebody_else_told_to_end_is_replaced(cluster: ServiceManager):
    """The smart shutdown waits for the sessions that are there, maybe for ever, and lets no new one in: such a server
    is not called well."""
    cluster.add(replace(QUICK, alive=Probe("postgresql", every=0.05, timeout=2.0)))
    service = cluster.get("postgresql")
    await cluster.start("postgresql", port="auto")
    info, pid = cluster.connection_info("postgresql"), service.context.record.pid
    healths: list[str] = []
    cluster.subscribe(lambda name, status: healths.append(status["health"]))
    with psycopg.connect(info["connection_string"], autocommit=True) as session:
        session.execute("create table kept as select 1 as n")
        os.kill(pid, signal.SIGTERM)
        await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "a new server")
    assert "unresponsive" in healths and service.context.record.pid != pid
    assert await sql(cluster.connection_info("postgresql"), "select n from kept") == [(1,)]
