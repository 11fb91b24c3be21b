"""Places for the servers of tests, and a finished PostgreSQL cluster to put there. A conftest takes the fixtures in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.localservers import end_all_in
from twisted.internet.defer import Deferred, gatherResults

from zcomm.services.manager import ServiceManager

__all__ = ["environment", "make_manager", "place", "template"]


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
    manager = ServiceManager(base / "home", environment(), reactor, space=(0, 0), reserve_after=None)
    pytest_twisted.blockon(manager.start("postgresql"))
    pytest_twisted.blockon(manager.stopService())
    yield manager.get("postgresql").context.home.data
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
