"""What a service started and what goes on without it: it ends with it, whichever way that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest_twisted
from services.supervision.test_record import Driver
from support.localservers import processes_in
from support.ports import unused_port
from support.rows import rows_of_a_test
from support.waiting import wait_until
from twisted.logger import capturedLogs, formatEvent

from zcomm.services.declaration import Probe, ServiceDeclaration, StopStep
from zcomm.services.machine.identity import pid_space, process_identity, processes_marked
from zcomm.services.manager import ServiceManager
from zcomm.services.supervision.record import read_record, write_record

LISTEN = "import socket, sys, time; one = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(1000)"
SERVER = f'python3 -S -c "{LISTEN}" {{port}}'

#: Shells whose own end is not that of what they run.
LEAVES = {
    "before another command": f"{SERVER}; true",
    "in the background": f"{SERVER} & wait",
    "in a session of its own": f"setsid {SERVER} & wait",
    "given up by its parent": f"({SERVER} &); exec sleep 1000",
    "without its environment": f"env -i $(command -v python3) {SERVER.partition(' ')[2]}; true",
    "that ignores to be asked": f"trap '' TERM; {SERVER} & trap - TERM; wait",
    "that writes over its environment": "redis-server --port {port} --save '' --dir {data_dir}; true",
}


def declared(name: str, script: str) -> ServiceDeclaration:
    return ServiceDeclaration(
        name,
        argv=("/bin/sh", "-c", script),
        port=unused_port(),
        ready=Probe("tcp", every=0.02),
        stop=(StopStep(signal.SIGTERM, 0.3), StopStep(signal.SIGKILL, 10.0)),
        environment={"PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest_twisted.ensureDeferred
async def test_contact_f20_a_stop_ends_all_that_was_started(manager: ServiceManager, place: Path):
    """Also what went into another session, lost its parent or its environment; then the port is free for a start."""
    names = {name: f"s{number}" for number, name in enumerate(LEAVES)}
    for name, script in LEAVES.items():
        service = manager.add(declared(names[name], script))
        assert await manager.start(service.name) is True, name
        assert len(processes_in(service.context.home.directory)) > 1, name
        assert await manager.stop(service.name) is True
        assert processes_in(service.context.home.directory) == [], name
        assert await manager.start(service.name) is True, name
    await manager.stopService()
    assert processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_contact_f20_a_leader_that_is_killed_is_started_again(manager: ServiceManager):
    """What it left has the port, and is ended before the next one needs it; the log says so once."""
    service = manager.add(declared("app", LEAVES["before another command"]))
    await manager.start("app")
    first = (await manager.status("app"))["pid"]
    with capturedLogs() as events:
        os.kill(first, signal.SIGKILL)
        await wait_until(lambda: service.restarts == 1 and service.state == "running", "a restart")
    assert sum("ends what it left" in (formatEvent(event) or "") for event in events) == 1
    left = processes_in(service.context.home.directory)
    assert len(left) == 2 and first not in [one.pid for one in left]
    await manager.stop("app")


@pytest_twisted.ensureDeferred
async def test_contact_f20_a_zcomm_that_is_killed_takes_all_along(place: Path):
    """kill -9: nobody is there to end anything but the guardian; SIGTERM: in good order."""
    port = unused_port()
    shells = {"app": {"argv": ["/bin/sh", "-c", LEAVES["in a session of its own"]], "port": port}}
    for end in (signal.SIGKILL, signal.SIGTERM):
        driver = Driver(home=place / "home", declare=shells, start={"app": {}})
        try:
            told = await driver.told()
            assert "error" not in told, told
            if end == signal.SIGKILL:
                driver.kill()
            else:
                driver.process.send_signal(end)
            await wait_until(lambda: not processes_in(place), "an end of everything")
        finally:
            driver.close()


@pytest_twisted.ensureDeferred
async def test_contact_f20_the_next_start_ends_what_is_left(place: Path, make_manager: Callable[..., ServiceManager]):
    """Where zComm and the guardian were killed both, what has the port is ended by the next start."""
    port = unused_port()
    script = LEAVES["before another command"]
    driver = Driver(
        home=place / "home", declare={"app": {"argv": ["/bin/sh", "-c", script], "port": port}}, start={"app": {}}
    )
    try:
        told: dict[str, Any] = await driver.told()
        for child in psutil.Process(driver.process.pid).children():
            if "guardian.py" in " ".join(child.cmdline()):
                child.kill()
        driver.kill()
        await wait_until(lambda: not psutil.pid_exists(told["app"]["pid"]), "the end of the shell, by the kernel")
        assert processes_in(place) != []
        manager = make_manager(place / "home")
        manager.add(ServiceDeclaration("app", argv=("/bin/sh", "-c", script), port=port, ready=Probe("tcp")))
        assert await manager.start("app") is True
        await manager.stop("app")
        assert processes_in(place) == []
    finally:
        driver.close()


def test_a_process_of_somebody_else_is_none_of_a_service():
    """Neither one in a session of the same number, nor one without a session at all, such as those of the kernel."""
    assert processes_marked("0123456789abcdef", os.getsid(0)) == []
    assert processes_marked("0123456789abcdef", 0) == []
    assert process_identity(os.getpid()) is not None


@pytest_twisted.ensureDeferred
async def test_contact_a_session_that_has_the_number_by_now_is_none_of_a_service(place: Path, manager: ServiceManager):
    """After a boot, in another run of a container, or when the numbers have come round; its own is known still."""
    service = manager.add(ServiceDeclaration("app", argv=("/bin/sleep", "1000")))
    await manager.start("app")
    await manager.stop("app")
    path = service.context.home.record
    ended = read_record(path)
    assert ended.session and ended.space == pid_space()
    ours, number = ended.space, "1@another boot"
    # With a leader that lives, and without.
    scripts = {True: "exec env -i /bin/sleep 1000", False: "env -i /bin/sleep 1000 & echo $!"}
    with rows_of_a_test() as row:
        for name, has_leader, leader, space, ends in (
            ("another process", True, ended.leader, ours, False),
            ("the process of another boot", True, "", number, False),
            ("an old record", True, "", "", False),
            ("a session of another boot", False, ended.leader, number, False),
            ("an old record of a session", False, "", "", False),
            ("its own session", False, ended.leader, ours, True),
        ):
            with (
                row(name),
                subprocess.Popen(
                    ["/bin/sh", "-c", scripts[has_leader]], stdout=subprocess.PIPE, text=True, start_new_session=True
                ) as shell,
            ):
                pid = shell.pid if has_leader else int(shell.stdout.readline())
                sleeper = psutil.Process(pid)
                try:
                    await wait_until(lambda one=sleeper: one.name() == "sleep", "its program")
                    if not has_leader:
                        shell.wait()
                    identity = leader or process_identity(shell.pid) or ""
                    write_record(path, replace(ended, session=shell.pid, leader=identity, space=space))
                    await manager.start("app")
                    await manager.stop("app")
                    assert (process_identity(pid) is None) is ends
                finally:
                    with suppress(psutil.NoSuchProcess):
                        sleeper.kill()
