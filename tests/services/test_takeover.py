"""What one zComm leaves to the next when it dies at the worst moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import pytest_twisted

from localservers import copy_cluster, processes_in, sql
from waiting import wait_until, wait_until_blocking
from zcomm.services.adoption import read_record
from zcomm.services.manager import ServiceManager
from zcomm.services.stamp import read_mark, start_stamp

CHECKOUT = Path(__file__).parents[2]
#: A manager that dies in the very moment in which the server's process exists.
DYING = """
import os, sys
from twisted.internet import reactor
from zcomm.services.manager import ServiceManager

home, name, lifetime = sys.argv[1:]
spawn = reactor.spawnProcess

def spawn_and_die(protocol, *words, **more):
    child = spawn(protocol, *words, **more)
    if type(protocol).__name__ == "ManagedProcess":
        os.kill(os.getpid(), 9)
    return child

reactor.spawnProcess = spawn_and_die
manager = ServiceManager(home, os.environ, reactor, lifetime, space=(0, 0), reserve_after=None)
reactor.callWhenRunning(lambda: manager.start(name, port="auto"))
reactor.run()
"""


@pytest.mark.parametrize("name", ["redis", "postgresql"])
@pytest_twisted.ensureDeferred
async def test_a_server_whose_zcomm_died_at_its_birth_is_not_lost(
    place: Path, template: Path, make_manager: Callable[..., ServiceManager], name: str
):
    """Killed between the fork and its own note of it: the next one knows the server and takes it over."""
    copy_cluster(template, place / "home" / "reserve" / template.name, None)
    environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(CHECKOUT)}
    words = [sys.executable, "-c", DYING, str(place / "home"), name, "persistent"]
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
    halted = next(one for one in psutil.Process(pid).children() if "walwriter" in " ".join(one.cmdline()))
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


def test_a_mark_is_believed_only_of_a_living_process(tmp_path: Path):
    """A pid that another process has by now, a half-written or a missing file say nothing."""
    mark = tmp_path / "launched"
    line = Path("/proc/self/stat").read_text()
    mark.write_text(line)
    assert read_mark(mark) == (os.getpid(), start_stamp(os.getpid()))
    fields = line.rpartition(")")[2].split()
    for text in (line.replace(f" {fields[19]} ", " 1 "), line[:30], "", "x y z", "0 (x) S", "٣ (x)"):
        mark.write_text(text)
        assert read_mark(mark) is None
    assert read_mark(tmp_path / "none") is None
