"""Real servers for the tests of the services: a place to keep them, managers that are stopped again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.localservers import copy_cluster, end_all_in
from twisted.internet.defer import Deferred, gatherResults

from zcomm.services.manager import ServiceManager


def _new_place() -> Path:
    # Memory where there is some: the disk of a busy machine would decide how long a test takes.
    memory = "/dev/shm"
    base = Path(tempfile.mkdtemp(prefix="zcomm-", dir=memory if os.access(memory, os.W_OK) else None))
    base.chmod(0o711)
    return base


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory other accounts may pass; whatever still runs in it at the end is ended."""
    base = _new_place()
    yield base
    end_all_in(base)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """One finished PostgreSQL cluster, to be copied."""
    from twisted.internet import reactor

    base = _new_place()
    service = ServiceManager(base / "home", environment(), reactor, space=(0, 0)).get("postgresql")
    made = pytest_twisted.blockon(Deferred.fromCoroutine(service.kind.make_reserve()))
    service.release()
    assert made
    yield next((base / "home" / "reserve").iterdir())
    shutil.rmtree(base, ignore_errors=True)


def environment() -> dict[str, str]:
    """The environment the services of the tests read: any port will do, other tests run beside this one."""
    return {"PATH": os.environ.get("PATH", os.defpath), "POSTGRESQL_PORT": "auto", "REDIS_PORT": "auto"}


@pytest.fixture
def make_manager(place: Path) -> Iterator[Callable[..., ServiceManager]]:
    """``make_manager(home=…, environ=…, lifetime=…, …)``; all are stopped at the end."""
    from twisted.internet import reactor

    managers: list[ServiceManager] = []

    def make(
        home: Path | None = None, environ: dict[str, str] | None = None, lifetime: str = "session", **settings: Any
    ) -> ServiceManager:
        settings.setdefault("space", (0, 0))
        settings.setdefault("reserve_after", None)
        manager = ServiceManager(
            home or place / "home", {**environment(), **(environ or {})}, reactor, lifetime, **settings
        )
        managers.append(manager)
        return manager

    yield make

    def stop_all() -> Deferred[Any]:
        return gatherResults([manager.stopService() for manager in managers], consumeErrors=True)

    pytest_twisted.blockon(stop_all())


@pytest.fixture
def manager(make_manager: Callable[..., ServiceManager]) -> ServiceManager:
    """A manager with nothing started."""
    return make_manager()


@pytest.fixture
def cluster(manager: ServiceManager, template: Path) -> ServiceManager:
    """A manager whose PostgreSQL has its data directory already, so that a start is short."""
    copy_cluster(template, manager.get("postgresql").context.home.data, manager.get("postgresql").context.account())
    return manager


@pytest.fixture
def small_disk(place: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(megabytes)`` mounts a file system in memory; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        target = place / f"disk{len(mounted)}"
        target.mkdir(mode=0o711)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=711", "tmpfs", str(target)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("this user may not mount a file system")
        mounted.append(target)
        return target

    yield mount
    end_all_in(place)
    for target in mounted:
        subprocess.run(["umount", "-l", str(target)], check=False)
