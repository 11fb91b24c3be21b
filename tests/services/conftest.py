"""Real servers for the tests of the services: a place to keep them, managers that are stopped again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.localservers import copy_cluster, end_all_in
from support.places import make_manager, place, template

from zcomm.services.manager import ServiceManager

__all__ = ["cluster", "make_manager", "manager", "place", "small_disk", "template"]


@pytest.fixture
def manager(make_manager: Callable[..., ServiceManager]) -> ServiceManager:
    """A manager with nothing started."""
    return make_manager()


@pytest.fixture
def cluster(manager: ServiceManager, template: Path) -> ServiceManager:
    """A manager whose PostgreSQL has its data directory already, so that a start is short."""
    copy_cluster(
        template,
        manager.get("postgresql").context.home.data,
        manager.get("postgresql").context.account_for(manager.get("postgresql").context.home.data),
    )
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
