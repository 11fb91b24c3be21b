"""PostgreSQL as a service, with real servers: everything that goes wrong with it on a developer's machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import pytest_twisted
from support.localservers import children_of, copy_cluster, processes_in, sql, words_of
from support.ports import unused_port
from support.waiting import wait_until
from twisted.internet.defer import Deferred

from zcomm.errors import DataDirectoryError, PortInUse, ServiceError, ServiceNotInstalled, ServiceStartFailed
from zcomm.services.declaration import Probe
from zcomm.services.kinds.postgresql.programs import major
from zcomm.services.kinds.postgresql.service import POSTGRESQL, PostgreSQLService
from zcomm.services.machine.programs import find_all
from zcomm.services.manager import ServiceManager
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.supervision.record import Record
from zcomm.services.supervision.supervisor import Supervisor

INSTALLATIONS = {major(one): one for one in find_all(PostgreSQLService.programs, {"PATH": os.defpath})}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to other accounts")


def pg(manager: ServiceManager) -> Supervisor:
    service = manager.get("postgresql")
    assert isinstance(service.kind, PostgreSQLService)
    return service


def running_again(manager: ServiceManager, restarts: int = 1) -> Deferred[Any]:
    service = pg(manager)
    return wait_until(lambda: service.restarts >= restarts and service.state.value == "running", "a restart")


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def run_as(service: Supervisor, *words: str) -> subprocess.Popen[bytes]:
    account = service.context.account_for(service.context.home.data)
    return subprocess.Popen(words, user=account.uid, group=account.gid, extra_groups=[], cwd="/")


# -- the port ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest_twisted.ensureDeferred
async def test_a_port_held_by_a_stranger(cluster: ServiceManager, place: Path, address: str):
    """The error names who has it, nothing is spawned, and an open port is not called running (PG7, P4)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as stranger:
        stranger.bind((address, 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} is in use by .*{os.getpid()}"):
            await cluster.start("postgresql", port=port)
        status = await cluster.status("postgresql")
    assert (status["running"], status["state"], status["pid"]) == (False, "error", None)
    assert "in use" in status["reason"] and "auto" in status["fix"]
    assert processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_another_postgresql_on_the_port_is_not_ours(
    cluster: ServiceManager, make_manager: Callable[..., ServiceManager], place: Path, template: Path
):
    """It is reported as running but not managed, a start is refused, and a stop leaves it alone (PG8, PG9)."""
    await cluster.start("postgresql", port="auto")
    other = await cluster.status("postgresql")
    manager = make_manager(place / "second", environ={"POSTGRESQL_PORT": str(other["port"])})
    seen = await manager.status("postgresql")
    assert (seen["running"], seen["managed"], seen["pid"], seen["port"]) == (True, False, other["pid"], other["port"])
    copy_cluster(
        template, pg(manager).context.home.data, pg(manager).context.account_for(pg(manager).context.home.data)
    )
    with pytest.raises(PortInUse, match="postgres"):
        await manager.start("postgresql")
    assert await manager.stop("postgresql") is True
    assert (await cluster.status("postgresql"))["pid"] == other["pid"]
    assert await sql(cluster.connection_info("postgresql"), "select 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_a_long_path_gets_a_short_socket(
    make_manager: Callable[..., ServiceManager], place: Path, template: Path
):
    """A data directory too deep for a Unix socket works, with the socket in a short private place (PG5)."""
    deep = place / ("d" * 60) / ("e" * 60)
    manager = make_manager(deep)
    copy_cluster(
        template, pg(manager).context.home.data, pg(manager).context.account_for(pg(manager).context.home.data)
    )
    await manager.start("postgresql", port="auto")
    info = manager.connection_info("postgresql")
    path = Path(info["unix_socket"])
    assert path.is_socket() and len(str(path)) < 100 and path.parent.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_uid == psutil.Process((await manager.status("postgresql"))["pid"]).uids().real
    await manager.stop("postgresql")
    shutil.rmtree(path.parent)


# -- crashes -------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_kill_9_is_mended_and_no_row_is_lost(cluster: ServiceManager):
    """The server comes back by itself, with every committed row; the events tell of it (PG18, P2)."""
    await cluster.start("postgresql", port="auto")
    await sql(cluster.connection_info("postgresql"), "create table t as select generate_series(1, 1000) n")
    told: list[tuple[str, str]] = []
    cluster.subscribe(lambda name, status: told.append((status["state"], status["reason"])))
    os.kill((await cluster.status("postgresql"))["pid"], signal.SIGKILL)
    await running_again(cluster)
    assert await sql(cluster.connection_info("postgresql"), "select count(*) from t") == [(1000,)]
    assert [state for state, _ in told] == ["error", "starting", "running"] and "SIGKILL" in told[0][1]
    assert (await cluster.status("postgresql"))["restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT, signal.SIGTERM])
@pytest_twisted.ensureDeferred
async def test_an_end_nobody_asked_for_is_a_failure_whatever_its_status(cluster: ServiceManager, number: int):
    """PostgreSQL ends with status 0 after these signals, and is started again all the same (PG11)."""
    await cluster.start("postgresql", port="auto")
    os.kill((await cluster.status("postgresql"))["pid"], number)
    await running_again(cluster)


@pytest_twisted.ensureDeferred
async def test_five_crashes_in_a_minute_are_enough(make_manager: Callable[..., ServiceManager], template: Path):
    """Then it is left alone, in state error; a start by hand begins anew (P2)."""
    manager = make_manager(policy=RestartPolicy(base=0.001))
    service = pg(manager)
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    await manager.start("postgresql", port="auto")
    for restarts in range(1, 5):
        service.process.signal(signal.SIGKILL)
        await running_again(manager, restarts)
    service.process.signal(signal.SIGKILL)
    await wait_until(lambda: service.state.value == "error", "the end of patience")
    assert not [call for call in service.environment.reactor.getDelayedCalls() if "_try_again" in repr(call)]
    assert service.process is None and service.restarts == 4
    assert await manager.start("postgresql") is True


@pytest_twisted.ensureDeferred
async def test_a_busy_backend_survives_its_postmaster_and_is_ended(cluster: ServiceManager):
    """A backend that computes does not notice; it holds the shared memory until it is ended (PG17)."""
    await cluster.start("postgresql", port="auto")
    info = cluster.connection_info("postgresql")
    busy = sql(info, "do $$ begin loop end loop; end $$")
    busy.addErrback(lambda failure: failure.trap(psycopg.Error))
    pid = pg(cluster).process.pid

    def computes() -> bool:
        return any("DO" in " ".join(words_of(child.pid)) for child in children_of(pid))

    await wait_until(computes, "the busy backend")
    os.kill(pid, signal.SIGKILL)
    await running_again(cluster)
    await busy
    assert await sql(cluster.connection_info("postgresql"), "select 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_one_dead_backend_is_no_restart(cluster: ServiceManager):
    """PostgreSQL recovers by itself: same postmaster, nothing of ours happens (PG19)."""
    await cluster.start("postgresql", port="auto")
    info = cluster.connection_info("postgresql")
    pid = pg(cluster).process.pid

    def answers() -> Deferred[Any]:
        return sql(info, "select 1").addErrback(lambda failure: failure.trap(psycopg.Error) and None)

    with psycopg.connect(info["connection_string"]) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)
    while not isinstance(await answers(), list):
        continue
    assert pg(cluster).process.pid == pid and pg(cluster).restarts == 0


# -- health --------------------------------------------------------------------------------------------------


def watched_closely(manager: ServiceManager) -> Supervisor:
    alive = Probe("postgresql", every=0.05, timeout=0.5)
    service = manager.add(replace(POSTGRESQL, alive=alive))
    assert isinstance(service.kind, PostgreSQLService)
    return service


@pytest_twisted.ensureDeferred
async def test_no_room_for_clients_is_not_death(cluster: ServiceManager):
    """At max_connections it runs, saturated; it is healthy again when there is room (PG20)."""
    service = watched_closely(cluster)
    (service.context.home.data / "postgresql.auto.conf").write_text(
        "max_connections = 5\nsuperuser_reserved_connections = 0\nmax_wal_senders = 1\n"
    )
    await cluster.start("postgresql", port="auto")
    url = cluster.connection_info("postgresql")["connection_string"]
    clients: list[Any] = []

    def saturated() -> bool:
        # A probe may have the place that a client was refused: each turn takes what is free.
        try:
            clients.append(psycopg.connect(url))
        except psycopg.OperationalError as error:
            assert "too many" in str(error) or "reserved" in str(error)
        return service.health.value == "saturated"

    try:
        await wait_until(saturated, "saturation")
        status = await cluster.status("postgresql")
        assert status["running"] and "too many clients" in status["reason"]
    finally:
        for client in clients:
            client.close()
    await wait_until(lambda: service.health.value == "healthy", "health")
    assert service.restarts == 0


@pytest_twisted.ensureDeferred
async def test_a_suspended_server_is_noticed_and_resumed(cluster: ServiceManager):
    """It still accepts connections but answers none; told to continue, it needs no restart (PG21)."""
    service = watched_closely(cluster)
    await cluster.start("postgresql", port="auto")
    healths: list[str] = []
    cluster.subscribe(lambda name, status: healths.append(status["health"]))
    pid = service.process.pid
    os.kill(pid, signal.SIGSTOP)
    await wait_until(lambda: "unresponsive" in healths and service.health.value == "healthy", "the resumption")
    assert service.process.pid == pid and service.restarts == 0


@pytest_twisted.ensureDeferred
async def test_a_server_that_goes_on_hanging_is_replaced(cluster: ServiceManager):
    """One that is suspended again and again is ended and started anew (PG21)."""
    service = watched_closely(cluster)
    await cluster.start("postgresql", port="auto")
    pid = service.process.pid

    def replaced() -> bool:
        if service.process is not None and service.process.pid == pid and service.state.value == "running":
            os.kill(pid, signal.SIGSTOP)
        return service.restarts == 1 and service.state.value == "running"

    await wait_until(replaced, "a new server")
    assert service.process.pid != pid
    assert await sql(cluster.connection_info("postgresql"), "select 1") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_probing_leaves_no_trace_in_the_log(make_manager: Callable[..., ServiceManager], template: Path):
    """Neither the readiness nor the liveness questions write a line (PG22)."""
    answers: list[Any] = []

    class Counted(PostgreSQLService):
        def ask(self, record: Record, timeout: float) -> Any:
            return super().ask(record, timeout).addCallback(lambda reply: answers.append(reply) or reply)

    manager = make_manager(kinds=(Counted,))
    service = watched_closely(manager)
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    await manager.start("postgresql", port="auto")
    await wait_until(lambda: len(answers) >= 5, "five answers")
    log = service.context.home.log.tail()
    assert "FATAL" not in log and "ERROR" not in log and "SSL" not in log


# -- what lies in the directory --------------------------------------------------------------------------------


#: A program whose second thread says its number, and which goes on until its input ends.
THREAD = """
import sys, threading

def tell():
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()

threading.Thread(target=tell).start()
"""


@pytest.mark.parametrize("case", ["dead", "empty", "garbage", "own", "thread", "other account"])
@pytest_twisted.ensureDeferred
async def test_a_stale_pid_file(cluster: ServiceManager, place: Path, case: str):
    """Disproved claims are moved aside, never deleted: the new server's number may be the one that stands there
    (PG10, P6)."""
    service = pg(cluster)
    account = service.context.account_for(service.context.home.data)
    dead = subprocess.Popen(["true"])
    dead.wait()
    bystander = subprocess.Popen(
        ["/usr/bin/env", "python3", "-c", THREAD] if case == "thread" else ["cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **(
            {"user": account.uid, "group": account.gid, "extra_groups": []}
            if case in ("own", "thread") and os.geteuid() == 0
            else {}
        ),
    )
    pid = {"dead": dead.pid, "own": bystander.pid, "other account": bystander.pid}.get(case, 0)
    if case == "thread":
        # PostgreSQL takes its number for a process of its own account that lives; no list of processes has it.
        assert not psutil.pid_exists(pid := int(bystander.stdout.readline()))
    text = {"empty": "", "garbage": "not a pid file\n"}.get(
        case, f"{pid}\n{service.context.home.data}\n1700000000\n5432\n\n\n"
    )
    path = service.context.home.data / "postmaster.pid"
    path.write_text(text)
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)
    path.chmod(0o600)
    assert await cluster.start("postgresql", port="auto") is True
    assert (service.context.home.data / "postmaster.pid.aside").read_text() == text
    assert bystander.poll() is None
    bystander.communicate()


@pytest_twisted.ensureDeferred
async def test_a_zombie_in_the_pid_file_is_waited_out(cluster: ServiceManager):
    """A dead postmaster that its parent has not collected blocks PostgreSQL until it vanishes (PG10, PG18)."""
    from twisted.internet import reactor

    service = pg(cluster)
    account = service.context.account_for(service.context.home.data)
    words = {"user": account.uid, "group": account.gid, "extra_groups": []} if os.geteuid() == 0 else {}
    zombie = subprocess.Popen(["true"], **words)
    await wait_until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE, "the zombie")
    path = service.context.home.data / "postmaster.pid"
    path.write_text(f"{zombie.pid}\n{service.context.home.data}\n1700000000\n5432\n\n\n")
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)
    collect = reactor.callLater(0.3, zombie.wait)
    assert await cluster.start("postgresql", port="auto") is True
    assert not collect.active()


@pytest_twisted.ensureDeferred
async def test_a_stale_lock_of_the_socket(cluster: ServiceManager):
    """The lock beside the socket names a living process that is none of ours: it is no obstacle (PG10), nor where it
    alone is left."""
    service = pg(cluster)
    port = unused_port()
    await cluster.start("postgresql", port=port)
    await cluster.stop("postgresql")
    lock = service.context.home.run / f".s.PGSQL.{port}.lock"
    bystander = run_as(service, "sleep", "60")
    lock.write_text(f"{bystander.pid}\n{service.context.home.data}\n1700000000\n{port}\n{service.context.home.run}\n")
    try:
        assert await cluster.start("postgresql") is True
        await cluster.stop("postgresql")
        lock.write_text(f"{bystander.pid}\n{service.context.home.data}\n1700000000\n{port}\n\n")
        (service.context.home.data / "postmaster.pid").write_text(
            f"{bystander.pid}\n{service.context.home.data}\n1700000000\n{port}\n\n\n"
        )
        assert await cluster.start("postgresql") is True
        assert bystander.poll() is None and (await cluster.status("postgresql"))["port"] == port
    finally:
        bystander.kill()
        bystander.wait()


@pytest_twisted.ensureDeferred
async def test_a_backend_that_does_not_end_does_not_hold_up_the_stop(cluster: ServiceManager):
    """A fast shutdown waits for a suspended backend; the next step of the ladder ends that too (PG16, P3)."""
    quick = replace(
        POSTGRESQL,
        stop=tuple(
            replace(step, seconds=0.5) if step.signal == signal.SIGINT else replace(step, seconds=20.0)
            for step in POSTGRESQL.stop
        ),
    )
    service = cluster.add(quick)
    await cluster.start("postgresql", port="auto")
    info = cluster.connection_info("postgresql")
    with psycopg.connect(info["connection_string"], autocommit=True) as client:
        client.execute("create table kept as select 1 as n")
        os.kill(client.info.backend_pid, signal.SIGSTOP)
        assert await cluster.stop("postgresql") is True
        assert (await cluster.status("postgresql"))["state"] == "stopped"
    assert "received immediate shutdown request" in service.context.home.log.tail()
    assert await cluster.start("postgresql") is True
    assert await sql(cluster.connection_info("postgresql"), "select n from kept") == [(1,)]


@pytest_twisted.ensureDeferred
async def test_a_server_of_somebody_else_in_our_directory(cluster: ServiceManager, place: Path):
    """pg_ctl started it: it is neither joined nor touched, and the error says who it is (PG9)."""
    service = pg(cluster)
    (service.context.home.root).joinpath("sock").mkdir(mode=0o777)
    (service.context.home.root / "sock").chmod(0o777)
    one = INSTALLATIONS[(service.context.home.data / "PG_VERSION").read_text().strip()]
    port = unused_port()
    theirs = run_as(
        service,
        str(one.server),
        "-D",
        str(service.context.home.data),
        "-p",
        str(port),
        "-h",
        "127.0.0.1",
        "-k",
        str(service.context.home.root / "sock"),
    )
    try:
        await wait_until(
            lambda: (
                "ready" in (service.context.home.data / "postmaster.pid").read_text()
                if (service.context.home.data / "postmaster.pid").exists()
                else False
            ),
            "their server",
        )
        with pytest.raises(DataDirectoryError, match=rf"pid {theirs.pid}"):
            await cluster.start("postgresql", port="auto")
        assert theirs.poll() is None
    finally:
        theirs.send_signal(signal.SIGINT)
        theirs.wait()


def file_instead(data: Path) -> Path:
    shutil.rmtree(data)
    data.write_text("no directory")
    return data


def with_mode(mode: int) -> Callable[[Path], Path]:
    def change(data: Path) -> Path:
        data.chmod(mode)
        return data

    return change


def foreign_owner(data: Path) -> Path:
    os.chown(data, 65534, 65534)
    return data


def not_empty(data: Path) -> Path:
    shutil.rmtree(data)
    data.mkdir(mode=0o700)
    os.chown(data, *_owner_of(data.parent / "run"))
    (data / "thesis.txt").write_text("years of work")
    return data


def half_made(data: Path) -> Path:
    shutil.rmtree(data / "base")
    return data


def _owner_of(path: Path) -> tuple[int, int]:
    return (path.stat().st_uid, path.stat().st_gid) if path.exists() else (os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (file_instead, "not a directory"),
        (with_mode(0o755), "0755"),
        (with_mode(0o770), "0770"),
        (with_mode(0o500), "0500"),
        pytest.param(foreign_owner, "user=|belongs to|owner", marks=root_only),
        (half_made, "never finished"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_directory_that_cannot_be_used(cluster: ServiceManager, place: Path, damage: Callable, words: str):
    """The reason and the repair are named, nothing is spawned, nothing is changed or deleted (PG14, P5)."""
    service = pg(cluster)
    damage(service.context.home.data)
    before = (
        content(service.context.home.data)
        if service.context.home.data.is_dir()
        else service.context.home.data.read_bytes()
    )
    arguments = {"user": "postgres"} if damage is foreign_owner else {}
    with pytest.raises(DataDirectoryError, match=words) as caught:
        await cluster.start("postgresql", port="auto", **arguments)
    assert caught.value.fix
    after = (
        content(service.context.home.data)
        if service.context.home.data.is_dir()
        else service.context.home.data.read_bytes()
    )
    assert before == after and processes_in(place) == []
    service.context.home.data.chmod(0o700)


@pytest_twisted.ensureDeferred
async def test_a_directory_with_something_else_in_it_is_not_touched(manager: ServiceManager, place: Path):
    """No cluster is made among somebody's files (P5)."""
    data = place / "papers"
    data.mkdir(mode=0o700)
    (data / "thesis.txt").write_text("years of work")
    with pytest.raises(DataDirectoryError, match="not empty|belongs to"):
        await manager.start("postgresql", port="auto", data_dir=str(data))
    assert content(data) == {"thesis.txt": b"years of work"} and [
        one.name for one in place.iterdir() if "papers" in one.name
    ] == ["papers"]


@pytest_twisted.ensureDeferred
async def test_a_directory_with_spaces_and_signs(
    make_manager: Callable[..., ServiceManager], place: Path, template: Path
):
    """Any path that is absolute will do (P5)."""
    manager = make_manager(place / 'My Docs \'n "things" $HOME')
    copy_cluster(
        template, pg(manager).context.home.data, pg(manager).context.account_for(pg(manager).context.home.data)
    )
    await manager.start("postgresql", port="auto")
    assert await sql(manager.connection_info("postgresql"), "select 1") == [(1,)]


@pytest.mark.skipif(len(INSTALLATIONS) < 2, reason="needs two major versions of PostgreSQL")
@pytest_twisted.ensureDeferred
async def test_the_version_of_the_directory_decides(make_manager: Callable[..., ServiceManager], place: Path):
    """The fitting program is chosen; where only another is allowed, the error names both and nothing changes (PG13)."""
    old, new = (INSTALLATIONS[major] for major in sorted(INSTALLATIONS)[:2])
    manager = make_manager()
    await manager.start("postgresql", port="auto", bin_dir=str(old.directory))
    await manager.stop("postgresql")
    assert await manager.restart("postgresql", port="auto") is True
    assert (await manager.status("postgresql"))["version"] == old.version_text
    await manager.stop("postgresql")
    before = content(pg(manager).context.home.data)
    with pytest.raises(DataDirectoryError, match=rf"PostgreSQL {major(old)}.*{major(new)}"):
        await manager.start("postgresql", port="auto", bin_dir=str(new.directory))
    assert content(pg(manager).context.home.data) == before


# -- making one ------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_killed_initdb_leaves_nothing_that_looks_made(manager: ServiceManager, place: Path):
    """Whatever kills it, there is no data directory afterwards, and the next start makes one (PG12)."""
    service = pg(manager)
    start = manager.start("postgresql", port="auto")

    def kill() -> bool:
        for process in processes_in(place):
            with suppress(psutil.NoSuchProcess):
                if process.name() in ("initdb", "postgres"):
                    process.kill()
                    return True
        return False

    await wait_until(kill, "initdb")
    with pytest.raises(ServiceStartFailed, match="initdb"):
        await start
    assert not service.context.home.data.exists() and list(service.context.home.directory.glob("data.new-*")) == []
    (service.context.home.directory / "data.new-999999").mkdir()
    assert await manager.start("postgresql") is True
    assert list(service.context.home.directory.glob("data.new-*")) == []


@pytest_twisted.ensureDeferred
async def test_a_stop_while_a_cluster_is_made(manager: ServiceManager, place: Path):
    """The start is told, everything ends, nothing is left; the next start works (P9, PG12)."""
    service = pg(manager)
    start = manager.start("postgresql", port="auto")
    await wait_until(lambda: list(service.context.home.directory.glob("data.new-*")), "the beginning")
    stop = manager.stop("postgresql")
    with pytest.raises(ServiceStartFailed, match="stopped before"):
        await start
    assert await stop is True
    await wait_until(lambda: not processes_in(place), "quiet")
    assert not service.context.home.data.exists() and (await manager.status("postgresql"))["state"] == "stopped"


@pytest_twisted.ensureDeferred
async def test_no_program_no_server(manager: ServiceManager, place: Path):
    """A directory without PostgreSQL: the error says how to get it (PG30, P7)."""
    (place / "empty").mkdir(mode=0o755)
    with pytest.raises(ServiceNotInstalled) as caught:
        await manager.start("postgresql", port="auto", bin_dir=str(place / "empty"))
    assert "install" in caught.value.fix and not pg(manager).context.home.data.exists()


# -- its configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("shared_buffers = '900GB'\n", "memory|shared_buffers"),
        ("no_such_setting = 1\n", "no_such_setting"),
        ("this is not a setting\n", "syntax error|errors"),
        ("shared_preload_libraries = 'gone'\n", "gone"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_configuration_that_keeps_it_from_starting(cluster: ServiceManager, setting: str, words: str):
    """PostgreSQL's own words are the reason, it is not tried again, and safe_mode helps where it can (PG27)."""
    service = pg(cluster)
    conf = service.context.home.data / "postgresql.auto.conf"
    conf.write_text(setting)
    with pytest.raises(ServiceStartFailed, match=words) as caught:
        await cluster.start("postgresql", port="auto")
    assert caught.value.permanent and caught.value.exit_code == 1 and "safe_mode" in caught.value.fix
    assert service.restarts == 0 and (await cluster.status("postgresql"))["state"] == "error"
    if "=" in setting and "no_such" not in setting:
        assert await cluster.start("postgresql", port="auto", safe_mode=True) is True
        await sql(cluster.connection_info("postgresql"), "alter system reset all")
        assert await cluster.restart("postgresql", port="auto") is True


@pytest_twisted.ensureDeferred
async def test_our_port_and_address_win(cluster: ServiceManager):
    """ALTER SYSTEM can move neither the port nor the addresses nor the log (PG27, PG6)."""
    (pg(cluster).context.home.data / "postgresql.auto.conf").write_text(
        "port = 1\nlisten_addresses = '*'\nunix_socket_directories = '/nonexistent'\n"
        "logging_collector = on\nlc_messages = 'C'\n"
    )
    await cluster.start("postgresql", port="auto")
    assert await sql(cluster.connection_info("postgresql"), "show listen_addresses") == [("127.0.0.1",)]
    assert "ready to accept connections" in cluster.get("postgresql").context.home.log.tail()


@pytest.mark.parametrize(
    ("name", "damage"), [("pg_hba.conf", b"this is no rule\n"), ("global/pg_control", b"\0" * 8192)]
)
@pytest_twisted.ensureDeferred
async def test_damaged_files_are_not_retried(cluster: ServiceManager, name: str, damage: bytes):
    """Damage ends in state error with a reason; the file is left as it is (PG27, P17)."""
    path = pg(cluster).context.home.data / name
    path.write_bytes(damage)
    with pytest.raises(ServiceError) as caught:
        await cluster.start("postgresql", port="auto")
    assert caught.value.reason and path.read_bytes() == damage and pg(cluster).restarts == 0


@pytest_twisted.ensureDeferred
async def test_a_damaged_log_of_writes_is_permanent(cluster: ServiceManager):
    """Without a valid checkpoint it would crash for ever; it is tried once (P17)."""
    data = pg(cluster).context.home.data
    await cluster.start("postgresql", port="auto")
    pg(cluster).environment.reactor.callLater(0, lambda: None)
    await cluster.stop("postgresql")
    for segment in (data / "pg_wal").iterdir():
        if segment.is_file():
            segment.write_bytes(b"\0" * segment.stat().st_size)
    with pytest.raises(ServiceStartFailed, match="checkpoint") as caught:
        await cluster.start("postgresql", port="auto")
    assert caught.value.permanent


@root_only
@pytest_twisted.ensureDeferred
async def test_one_file_with_a_wrong_owner(cluster: ServiceManager):
    """The server says ready and connections fail; it is reported as degraded, with the file and the repair (PG14)."""
    service = pg(cluster)
    path = next((service.context.home.data / "base").glob("*/PG_VERSION"))
    os.chown(path, 0, 0)
    await cluster.start("postgresql", port="auto")
    await wait_until(lambda: service.health.value == "degraded", "the finding")
    status = await cluster.status("postgresql")
    assert status["running"] and str(path) in status["reason"] and "chown" in status["fix"]


@root_only
@pytest_twisted.ensureDeferred
async def test_another_local_user_gets_nowhere(cluster: ServiceManager):
    """Neither through the socket nor, without the password, over TCP; nor does the data open (P13)."""
    await cluster.start("postgresql", port="auto")
    info = cluster.connection_info("postgresql")
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect(sys.argv[1])\n"
        "except PermissionError: print('closed')\n"
        "try: open(sys.argv[2])\n"
        "except PermissionError: print('closed')\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script, info["unix_socket"], str(pg(cluster).context.home.data / "zcomm.json")],
        capture_output=True,
        text=True,
        user="nobody",
        group="nogroup",
        extra_groups=[],
        cwd="/",
        check=False,
    )
    assert done.stdout.split() == ["closed", "closed"], done.stderr
    with pytest.raises(psycopg.OperationalError, match="no password supplied|authentication failed"):
        await sql({"connection_string": f"postgresql://postgres@127.0.0.1:{info['port']}/postgres"}, "select 1")


#: A postgres that writes down its arguments.
TALKATIVE = """#!/bin/sh
echo "$*" >> "{words}"
exec "{program}" "$@"
"""


@pytest_twisted.ensureDeferred
async def test_contact_a_database_is_added_to_a_crashed_cluster_durably(cluster: ServiceManager, place: Path):
    """Single-user mode recovers it first, and its checkpoint gives up the log: not without fsync."""
    service = pg(cluster)
    there = INSTALLATIONS[(service.context.home.data / "PG_VERSION").read_text().strip()].server
    bin_dir, words = place / "bin", place / "words"
    bin_dir.mkdir(mode=0o755)
    words.touch()
    words.chmod(0o666)
    for tool in there.parent.iterdir():
        if tool.name != "postgres":
            (bin_dir / tool.name).symlink_to(tool)
    (bin_dir / "postgres").write_text(TALKATIVE.format(words=words, program=there))
    (bin_dir / "postgres").chmod(0o755)
    await cluster.start("postgresql", port="auto")
    await sql(cluster.connection_info("postgresql"), "create table kept as select 1 as n")
    os.kill(service.process.pid, signal.SIGKILL)
    await wait_until(lambda: service.state.value != "running", "the crash")
    await cluster.stop("postgresql")
    await cluster.start("postgresql", port="auto", database="another", bin_dir=str(bin_dir))
    (line,) = (line for line in words.read_text().splitlines() if line.startswith("--single"))
    assert " -F " not in line and "fsync" not in line
    info = cluster.connection_info("postgresql")
    assert info["database"] == "another" and await sql(info, "show fsync") == [("on",)]
