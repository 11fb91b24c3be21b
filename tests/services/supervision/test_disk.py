"""Full disks, with small file systems in memory: no committed row is lost, and all comes back with the space."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.localservers import copy_cluster, redis, sql
from support.waiting import wait_until
from twisted.internet.defer import Deferred

from zcomm.errors import ServiceError, ServiceStartFailed
from zcomm.services.declaration import Probe
from zcomm.services.kinds.redis.service import REDIS
from zcomm.services.machine.logfile import LogFile
from zcomm.services.manager import ServiceManager
from zcomm.services.restart_policy import RestartPolicy


def fill(directory: Path, leave: int = 0) -> Path:
    """Take all the space of a file system but ``leave`` bytes."""
    path = directory / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize > leave:
            os.write(descriptor, b"\0" * 4096)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)
    return path


@pytest_twisted.ensureDeferred
async def test_postgresql_on_a_full_disk(
    make_manager: Callable[..., ServiceManager], small_disk: Callable[[int], Path], template: Path
):
    """It gives up after some attempts with the reason; with space again, every committed row is there (PG28, D1)."""
    disk = small_disk(160)
    manager = make_manager(disk / "home", policy=RestartPolicy(base=0.01))
    service = manager.get("postgresql")
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    await manager.start("postgresql", port="auto")
    info = manager.connection_info("postgresql")
    await sql(info, "create table t (n int, filler text)")
    await sql(info, "insert into t select g, repeat('x', 100) from generate_series(1, 1000) g")
    filler = fill(disk)
    committed = 1000
    for _ in range(400):
        try:
            await sql(info, "insert into t select g, repeat('x', 1000) from generate_series(1, 1000) g")
        except psycopg.Error:
            break
        committed += 1000
    else:
        pytest.fail("the disk was never full")
    await wait_until(lambda: service.state.value in ("running", "error"), "a decision")
    filler.unlink()
    if service.state.value != "running":
        assert "space" in service.reason.lower()
    assert await manager.start("postgresql") is True
    ((count,),) = await sql(manager.connection_info("postgresql"), "select count(*) from t")
    assert count == committed


@pytest_twisted.ensureDeferred
async def test_no_start_without_space(
    make_manager: Callable[..., ServiceManager], small_disk: Callable[[int], Path], template: Path
):
    """It is said beforehand, with the figures; nothing is spawned (PG28)."""
    disk = small_disk(60)
    manager = make_manager(disk / "home", space=(200 << 20, 32 << 20))
    with pytest.raises(ServiceError, match="60 MB free.*200"):
        await manager.start("postgresql", port="auto")
    service = manager.get("postgresql")
    assert not service.context.home.data.exists() and service.process is None


@pytest_twisted.ensureDeferred
async def test_initdb_on_a_full_disk_leaves_nothing(
    make_manager: Callable[..., ServiceManager], small_disk: Callable[[int], Path]
):
    """A failed initialisation says why and is gone (PG12, PG28)."""
    disk = small_disk(20)
    manager = make_manager(disk / "home")
    with pytest.raises(ServiceStartFailed, match="space"):
        await manager.start("postgresql", port="auto")
    assert [path.name for path in manager.get("postgresql").context.home.directory.glob("data*")] == []


@pytest_twisted.ensureDeferred
async def test_a_mount_point_as_data_directory(manager: ServiceManager, small_disk: Callable[[int], Path]):
    """A finished directory cannot be renamed onto a mount point; it is made in place."""
    disk = small_disk(200)
    account = manager.get("postgresql").context.account_for(manager.get("postgresql").context.home.data)
    if os.geteuid() == 0:
        os.chown(disk, account.uid, account.gid)
    disk.chmod(0o700)
    await manager.start("postgresql", port="auto", data_dir=str(disk))
    assert await sql(manager.connection_info("postgresql"), "select current_database()") == [("zolo_dev",)]
    await manager.stop("postgresql")
    assert stat.S_IMODE(disk.stat().st_mode) == 0o700


@pytest_twisted.ensureDeferred
async def test_redis_on_a_full_disk(make_manager: Callable[..., ServiceManager], small_disk: Callable[[int], Path]):
    """It runs, degraded: reads work, writes are refused; with space again writes work (D2, RD7)."""
    disk = small_disk(24)
    manager = make_manager(disk / "home")
    service = manager.add(replace(REDIS, alive=Probe("redis", every=0.1, timeout=5.0)))
    await manager.start("redis", port="auto")
    info = manager.connection_info("redis")
    assert await redis(info, ("CONFIG", "SET", "appendfsync", "always"), ("SET", "kept", "yes")) == ["OK", "OK"]
    filler = fill(disk, leave=131072)
    pid = service.process.pid

    async def refused() -> bool:
        for number in range(3000):
            answer: Any
            try:
                (answer,) = await redis(info, ("SET", f"k{number}", "x" * 5000))
            except OSError:
                return True
            if str(answer).startswith("-"):
                return True
        return False

    # appendfsync everysec: Redis goes on and says MISCONF; with always it would end itself.
    await redis(info, ("CONFIG", "SET", "appendfsync", "everysec"))
    assert await Deferred.fromCoroutine(refused())
    await wait_until(lambda: service.health.value == "degraded", "degradation")
    assert service.process.pid == pid and await redis(info, ("GET", "kept")) == ["yes"]
    filler.unlink()
    await wait_until(lambda: service.health.value == "healthy", "health")
    assert (await redis(info, ("SET", "again", "1")))[0] == "OK"


@pytest_twisted.ensureDeferred
async def test_redis_on_a_full_disk_with_always(
    make_manager: Callable[..., ServiceManager], small_disk: Callable[[int], Path]
):
    """It ends rather than acknowledge what it cannot keep; with space again all it acknowledged is there (D2)."""
    disk = small_disk(24)
    manager = make_manager(disk / "home", policy=RestartPolicy(base=0.01))
    service = manager.get("redis")
    await manager.start("redis", port="auto", appendfsync="always")
    info = manager.connection_info("redis")
    filler = fill(disk, leave=131072)
    acknowledged: list[str] = []
    for number in range(3000):
        try:
            (answer,) = await redis(info, ("SET", f"k{number}", "x" * 5000))
        except OSError:
            break
        assert answer == "OK"
        acknowledged.append(f"k{number}")
    else:
        pytest.fail("the disk was never full")
    await wait_until(lambda: service.restarts > 0 or service.state.value == "error", "its end")
    filler.unlink()
    assert await manager.start("redis") is True
    assert acknowledged and await redis(manager.connection_info("redis"), ("EXISTS", *acknowledged)) == [
        len(acknowledged)
    ]


@pytest_twisted.ensureDeferred
async def test_a_home_that_cannot_be_written(
    make_manager: Callable[..., ServiceManager], small_disk: Callable[[int], Path]
):
    """On a file system that is mounted read-only: a typed error that names the place, nothing is spawned (D5)."""
    disk = small_disk(4)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    manager = make_manager(disk / "home")
    for name in ("postgresql", "redis"):
        with pytest.raises(ServiceError, match="[Rr]ead-only") as caught:
            await manager.start(name, port="auto")
        assert "unexpected" not in str(caught.value) and manager.get(name).process is None
        assert (await manager.status(name))["state"] == "error"


@pytest_twisted.ensureDeferred
async def test_a_full_disk_under_the_log_harms_nobody(
    make_manager: Callable[..., ServiceManager], place: Path, small_disk: Callable[[int], Path], template: Path
):
    """The server works on without its log (D3)."""
    logs = small_disk(1)
    manager = make_manager()
    service = manager.get("postgresql")
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    service.context.home.log = LogFile(logs / "postgresql.log")
    await manager.start("postgresql", port="auto")
    fill(logs)
    info = manager.connection_info("postgresql")
    for _ in range(5):
        with pytest.raises(psycopg.Error):
            await sql(info, "select nonsense")
    assert await sql(info, "select 1") == [(1,)]
    assert await manager.restart("postgresql") is True
