"""What becomes of the servers when zComm dies, and what the next zComm finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import pytest_twisted
from support.localservers import copy_cluster, processes_in, redis, sql
from support.ports import unused_port
from support.preloaded import Preloaded
from support.waiting import wait_until
from twisted.internet.threads import deferToThread

from zcomm.errors import ServiceError
from zcomm.services.machine.identity import users_of
from zcomm.services.manager import ServiceManager
from zcomm.services.supervision.process import AdoptedProcess, process_identity
from zcomm.services.supervision.record import Record, read_record, record_trouble, still_runs, write_record

DRIVER = Path(__file__).parents[2] / "support" / "servicesdriver.py"
BOTH = {"postgresql": {"port": "auto"}, "redis": {"port": "auto"}}


class Driver:
    """A zComm in a process of its own."""

    def __init__(self, **wanted: Any):
        measured = {name: value for name, value in os.environ.items() if name.startswith(("COVERAGE_", "COV_"))}
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            **measured,
        }
        self.process = Preloaded(
            [sys.executable, str(DRIVER), json.dumps(wanted, default=str)],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def told(self) -> Any:
        """What it printed, in a Deferred."""
        return deferToThread(lambda: json.loads(self.process.stdout.readline()))

    def end(self) -> Any:
        """End its input; fires with its exit status."""
        self.process.stdin.close()
        return deferToThread(self.process.wait, 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if not stream.closed:
                stream.close()


@pytest.fixture
def drive(place: Path, template: Path, manager: ServiceManager) -> Iterator[Callable[..., Driver]]:
    """``drive(lifetime=…, start=…)`` runs a driver in the home of ``manager``."""
    service = manager.get("postgresql")
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    drivers: list[Driver] = []

    def run(**wanted: Any) -> Driver:
        drivers.append(Driver(**{"home": place / "home", "start": BOTH, **wanted}))
        return drivers[-1]

    yield run
    for driver in drivers:
        driver.close()


@pytest.mark.parametrize("bare", [False, True], ids=["by the kernel", "by a guardian"])
@pytest_twisted.ensureDeferred
async def test_with_lifetime_session_a_killed_zcomm_takes_its_servers_along(
    drive: Callable[..., Driver], place: Path, bare: bool
):
    """After kill -9, with a client connected, nothing is left, and PostgreSQL was shut down in order (P1, P22)."""
    driver = drive(bare=bare)
    told = await driver.told()
    assert "error" not in told
    client = psycopg.connect(told["postgresql"]["info"]["connection_string"], autocommit=True)
    client.execute("create table kept as select 1 as n")
    await redis(told["redis"]["info"], ("SET", "kept", "1"))
    driver.kill()
    await wait_until(lambda: not processes_in(place), "an end of everything")
    client.close()
    assert "received fast shutdown request" in (place / "home" / "log" / "postgresql.log").read_text()


@pytest_twisted.ensureDeferred
async def test_an_ordered_end_stops_all(drive: Callable[..., Driver], place: Path, manager: ServiceManager):
    """Status 0, no process left, and the records say so."""
    driver = drive()
    await driver.told()
    assert await driver.end() == 0
    assert processes_in(place) == []
    assert read_record(manager.get("postgresql").context.home.record).pid == 0


@pytest_twisted.ensureDeferred
async def test_persistent_servers_are_taken_over_without_a_pause(
    drive: Callable[..., Driver], place: Path, make_manager: Callable[..., ServiceManager]
):
    """The same processes, the same connection, no restart; then they are ours to watch and to stop (PG26, RD14)."""
    driver = drive(lifetime="persistent", start={name: {"port": unused_port()} for name in BOTH})
    told = await driver.told()
    client = psycopg.connect(told["postgresql"]["info"]["connection_string"], autocommit=True)
    client.execute("create table kept as select 1 as n")
    driver.kill()
    later = make_manager(lifetime="persistent")
    before = await later.status()
    assert all(
        before[name]["running"] and before[name]["managed"] and before[name]["pid"] == told[name]["pid"]
        for name in BOTH
    )
    for name in BOTH:
        assert await later.start(name) is True
        status = await later.status(name)
        assert (status["pid"], status["port"], status["restarts"]) == (told[name]["pid"], told[name]["port"], 0)
        assert (
            status["uptime_seconds"] > 0 and later.connection_info(name)["password"] == told[name]["info"]["password"]
        )
        assert status["identity"] == told[name]["identity"] != ""
    assert client.execute("select n from kept").fetchall() == [(1,)]
    client.close()
    for name in BOTH:
        os.kill(told[name]["pid"], signal.SIGKILL)
        service = later.get(name)
        await wait_until(
            lambda service=service: service.restarts == 1 and service.state.value == "running", "a restart"
        )
        # Where it was, though this zComm was never told of that port.
        assert (await later.status(name))["port"] == told[name]["port"]
    assert await sql(later.connection_info("postgresql"), "select n from kept") == [(1,)]
    for name in BOTH:
        assert await later.stop(name) is True
    assert processes_in(place) == []


def damage(record: Path, what: bytes) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(what)


def test_contact_h9_a_record_that_tells_nothing_is_told(tmp_path: Path):
    """What is there and cannot be understood is no proof that nothing runs; what is not there is."""
    record, good = tmp_path / "state.json", tmp_path / "good.json"
    assert record_trouble(record) == "" and record_trouble(tmp_path / "nowhere" / "state.json") == ""
    write_record(good, Record(pid=1))
    assert record_trouble(good) == ""
    # As the releases before wrote it, and those after may.
    good.write_text('{"pid": 7, "data_dir": "/d", "later": []}')
    assert record_trouble(good) == "" and read_record(good).pid == 7
    for content in (b"", b"{", b"[]", b"null", b'{"pid": "7"}', b'{"port": 1.5}', b"\xff", b'{"restarts": null}'):
        record.write_bytes(content)
        assert record_trouble(record) == f"{record} is damaged" and read_record(record) == Record()
    record.unlink()
    record.symlink_to(good)
    assert record_trouble(record).startswith(f"{record} cannot be read: ")
    record.unlink()
    record.mkdir()
    assert record_trouble(record) == f"{record} cannot be read: Is a directory"


@pytest_twisted.ensureDeferred
async def test_contact_h9_a_state_that_cannot_be_told_is_unknown(manager: ServiceManager):
    """And a start finds out: from then on it is known."""
    record = manager.get("redis").context.home.record
    assert (await manager.status("redis"))["state"] == "stopped"
    damage(record, b'{"pid": ')
    status = await manager.status("redis")
    assert (status["state"], status["running"], status["pid"]) == ("unknown", False, None)
    assert status["reason"] == f"{record} is damaged" and "zcomm service start redis" in status["fix"]
    assert manager.snapshot()["redis"]["state"] == "unknown"
    assert await manager.start("redis", port="auto") is True
    assert (await manager.status("redis"))["state"] == "running"
    assert await manager.stop("redis") is True
    assert (await manager.status("redis"))["state"] == "stopped"


@pytest_twisted.ensureDeferred
async def test_contact_h9_restarts_are_those_that_nobody_asked_for(make_manager: Callable[..., ServiceManager]):
    """Others see them too: another zComm that looks, and the next one."""
    manager, other = make_manager(), make_manager()
    service = manager.get("redis")
    assert await manager.start("redis", port="auto") is True
    assert await manager.restart("redis") is True

    async def counted() -> list[int]:
        return [(await each.status("redis"))["restarts"] for each in (manager, other)]

    assert await counted() == [0, 0]
    os.kill(service.process.pid, signal.SIGKILL)
    await wait_until(lambda: service.restarts == 1 and service.state.value == "running", "a restart")
    assert await counted() == [1, 1]
    assert await manager.restart("redis") is True
    assert await counted() == [1, 1]
    assert await manager.stop("redis") is True


@pytest_twisted.ensureDeferred
async def test_a_stop_takes_over_what_it_stops(
    drive: Callable[..., Driver], place: Path, make_manager: Callable[..., ServiceManager]
):
    """A manager that never started anything stops what the last one left running."""
    driver = drive(lifetime="persistent")
    await driver.told()
    driver.kill()
    later = make_manager(lifetime="persistent")
    assert await later.stop("redis") is True and await later.stop("postgresql") is True
    assert processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_a_server_that_died_unwatched_says_so(
    drive: Callable[..., Driver], make_manager: Callable[..., ServiceManager]
):
    """Stopped, and why, until it is started again; one that was stopped in order needs no reason."""
    driver = drive(lifetime="persistent")
    told = await driver.told()
    driver.kill()
    for name in BOTH:
        os.kill(told[name]["pid"], signal.SIGKILL)
        await wait_until(lambda name=name: process_identity(told[name]["pid"]) is None, "its end")
    later = make_manager()
    for name in BOTH:
        status = await later.status(name)
        assert (status["state"], status["reason"]) == ("stopped", "it ended while no zComm watched it")
        assert status["fix"] == f"its log: {later.get(name).context.home.log.path}"
        await later.start(name, port="auto")
        assert (await later.status(name))["reason"] == ""
        await later.stop(name)
    assert {(status["state"], status["reason"]) for status in (await make_manager().status()).values()} == {
        ("stopped", "")
    }


@pytest_twisted.ensureDeferred
async def test_a_persistent_end_leaves_them_running(
    drive: Callable[..., Driver], make_manager: Callable[..., ServiceManager], place: Path
):
    """An ordered end with lifetime="persistent" stops nothing; startService takes them over again."""
    driver = drive(lifetime="persistent")
    told = await driver.told()
    assert await driver.end() == 0
    later = make_manager(lifetime="persistent")
    later.startService()
    await wait_until(lambda: all(later.get(name).state.value == "running" for name in BOTH), "both taken over")
    assert {name: later.get(name).process.pid for name in BOTH} == {name: told[name]["pid"] for name in BOTH}
    for name in BOTH:
        await later.stop(name)


@pytest_twisted.ensureDeferred
async def test_a_second_zcomm_only_watches(drive: Callable[..., Driver], make_manager: Callable[..., ServiceManager]):
    """It sees the servers, a start is content with them, a stop is refused with the reason (PG31)."""
    driver = drive()
    told = await driver.told()
    second = make_manager()
    status = await second.status("redis")
    assert (status["running"], status["managed"], status["pid"]) == (True, True, told["redis"]["pid"])
    assert await second.start("redis") is True
    assert second.connection_info("redis")["connection_string"] == told["redis"]["info"]["connection_string"]
    with pytest.raises(ServiceError, match="another zComm"):
        await second.stop("redis")
    assert psutil.pid_exists(told["redis"]["pid"])
    assert await driver.end() == 0


@pytest_twisted.ensureDeferred
async def test_a_pid_that_means_another_process_is_left_alone(make_manager: Callable[..., ServiceManager], place: Path):
    """The record names a pid that somebody else has by now: it is not signalled, a new server starts (P21)."""
    manager = make_manager(environ={"REDIS_PORT": str(unused_port())})
    bystander = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    service = manager.get("redis")
    service.context.home.make()
    identity = process_identity(bystander.pid)
    write_record(
        service.context.home.record,
        Record(
            pid=bystander.pid, process_identity="12345@another-boot", port=6379, data_dir=str(service.context.home.data)
        ),
    )
    assert (await manager.status("redis"))["running"] is False
    assert await manager.stop("redis") is True
    assert await manager.start("redis", port="auto") is True
    assert process_identity(bystander.pid) == identity and (await manager.status("redis"))["pid"] != bystander.pid
    bystander.communicate()


@pytest_twisted.ensureDeferred
async def test_a_living_process_that_is_not_the_server_is_not_adopted(manager: ServiceManager):
    """Even with pid and start right, what does not answer as the server is not taken over."""
    bystander = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    service = manager.get("redis")
    service.context.home.make()
    write_record(
        service.context.home.record,
        Record(
            pid=bystander.pid, process_identity=process_identity(bystander.pid), data_dir=str(service.context.home.data)
        ),
    )
    assert await manager.start("redis", port="auto") is True
    assert bystander.poll() is None and (await manager.status("redis"))["pid"] != bystander.pid
    bystander.communicate()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": "7"}', '{"pid": 7, "process_identity": 1}', "\x00\xff", '{"pid": true}']
)
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str):
    """Half-written or foreign content means: nothing known (D4)."""
    path = tmp_path / "state.json"
    path.write_bytes(text.encode("latin-1"))
    assert read_record(path) == Record()


def test_a_record_is_replaced_in_one_step(tmp_path: Path):
    """What a killed writer leaves is the old record, and what it began goes; the file is private (D4)."""
    path = tmp_path / "state.json"
    write_record(path, Record(pid=7, process_identity="a@b", port=5433))
    half = tmp_path / ".state.json.0123456789abcdef.tmp"
    half.write_text("{half")
    assert read_record(path).port == 5433
    write_record(path, Record(pid=8, process_identity="c@d", port=5434))
    assert (
        read_record(path) == Record(pid=8, process_identity="c@d", port=5434) and path.stat().st_mode & 0o777 == 0o600
    )
    assert set(tmp_path.iterdir()) == {path}


def test_a_record_behind_a_link_is_not_followed(tmp_path: Path):
    """A link could lead root to somebody else's claims."""
    write_record(tmp_path / "real.json", Record(pid=7, process_identity="a@b"))
    (tmp_path / "state.json").symlink_to(tmp_path / "real.json")
    assert read_record(tmp_path / "state.json") == Record()


@pytest_twisted.ensureDeferred
async def test_an_adopted_process_and_its_end():
    """Found by pid and start, it is signalled through its descriptor and its end is told; others are not found."""
    from twisted.internet import reactor

    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert (
        identity
        and still_runs(Record(pid=child.pid, process_identity=identity))
        and not still_runs(Record(pid=child.pid, process_identity="1@x"))
    )
    assert AdoptedProcess.find(reactor, child.pid, "1@x") is None
    assert AdoptedProcess.find(reactor, 1, "x") is None and AdoptedProcess.find(reactor, 2**22 + 1, "x") is None
    process = AdoptedProcess.find(reactor, child.pid, identity)
    ended = process.when_exited()
    assert process.signal(signal.SIGTERM) is True
    assert (await ended).code is None and str(process.exit) == "ended"
    child.communicate()
    assert process.signal(signal.SIGTERM) is False and process_identity(child.pid) is None


@pytest_twisted.ensureDeferred
async def test_letting_go_of_a_process():
    """A process let go lives on, and nothing watches it any more."""
    from twisted.internet import reactor

    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    process = AdoptedProcess.find(reactor, child.pid, process_identity(child.pid))
    readers = len(reactor.getReaders())
    process.let_go()
    assert len(reactor.getReaders()) == readers - 1 and child.poll() is None
    child.communicate()


def test_who_stands_in_a_directory(tmp_path: Path):
    """Processes are found by their working directory, through links too; this process is left out."""
    place = tmp_path / "data"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=place)
    assert users_of(tmp_path / "link") == [(child.pid, "cat")]
    assert users_of(place, but=child.pid) == [] and users_of(tmp_path / "missing") == []
    child.communicate()


@pytest_twisted.ensureDeferred
async def test_zcomm_killed_while_it_makes_a_cluster(place: Path, make_manager: Callable[..., ServiceManager]):
    """No directory looks initialised afterwards, initdb is gone too, and the next zComm makes a good one (PG12)."""
    driver = Driver(home=place / "fresh", start={"postgresql": {"port": "auto"}})
    try:
        directory = place / "fresh" / "services" / "postgresql"
        await wait_until(lambda: list(directory.glob("data.new-*/PG_VERSION")), "the beginning of a cluster")
        driver.kill()
        assert not (directory / "data").exists()
        await wait_until(lambda: not processes_in(place), "the end of initdb")
        later = make_manager(place / "fresh")
        assert await later.start("postgresql", port="auto") is True
        assert await sql(later.connection_info("postgresql"), "select current_database()") == [("zolo_dev",)]
        assert list(directory.glob("data.new-*")) == []
    finally:
        driver.close()


@pytest_twisted.ensureDeferred
async def test_a_zcomm_that_stands_still_holds_up_no_server(drive: Callable[..., Driver]):
    """Suspended, it reads nothing; the servers write their logs to files and work on (PG25)."""
    driver = drive()
    told = await driver.told()
    driver.process.send_signal(signal.SIGSTOP)
    try:
        noise = "do $$ begin for i in 1..3000 loop raise warning '%', repeat('x', 100); end loop; end $$"
        await sql(told["postgresql"]["info"], noise, options="-c client_min_messages=error")
        assert await sql(told["postgresql"]["info"], "select 1") == [(1,)]
        assert await redis(told["redis"]["info"], ("PING",)) == ["PONG"]
    finally:
        driver.process.send_signal(signal.SIGCONT)
    assert Path(told["postgresql"]["log"]).stat().st_size > 300_000
    assert await driver.end() == 0
