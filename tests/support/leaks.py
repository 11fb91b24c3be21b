"""What a test left behind: timers, threads, child processes, sockets.

A snapshot before, another after; what is in the second and not in the first is a leak. Three things
are allowed for:

* Autobahn keeps its timeouts in batches (``txaio``): one call per bucket, which outlives the
  connections it served by up to the longest of their timeouts and then does nothing.
* The reactor's own thread pool and resolver threads live as long as the process.
* The process that forks programs (``support.preloaded``) begins with the first of them and stays.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from support.preloaded import own_child, own_descriptor

__all__ = ["Snapshot", "left_behind"]


@dataclass(frozen=True)
class Snapshot:
    """Everything countable that a test may leave behind, by a description that stays the same when
    a periodic call is scheduled anew."""

    timers: Counter[str]
    threads: Counter[str]
    children: Counter[str]
    sockets: int

    @classmethod
    def take(cls, reactor: Any) -> Snapshot:
        return cls(
            timers=Counter(_timer(call) for call in reactor.getDelayedCalls() if not _allowed(call)),
            threads=Counter(
                # A thread that took the place of another one of its pool is none more.
                re.sub("-[0-9]+$", "", thread.name)
                for thread in threading.enumerate()
                if not _pooled(thread)
            ),
            children=Counter(_children()),
            sockets=_open_sockets(),
        )


def left_behind(before: Snapshot, after: Snapshot) -> list[str]:
    """A line for each kind of thing that is there and was not; empty when all is clean."""
    lines = []
    for kind in ("timers", "threads", "children"):
        extra = getattr(after, kind) - getattr(before, kind)
        if extra:
            lines.append(f"{kind}: {dict(extra)}")
    if after.sockets > before.sockets:
        lines.append(f"sockets: {after.sockets - before.sockets} more than before")
    return lines


def _timer(call: Any) -> str:
    function = call.func
    # A LoopingCall is itself the function that is called; what it runs tells more.
    function = getattr(function, "f", function)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


def _allowed(call: Any) -> bool:
    module = getattr(call.func, "__module__", None) or ""
    return module.startswith("txaio")


def _pooled(thread: threading.Thread) -> bool:
    return thread.name.startswith("PoolThread-") or thread is threading.main_thread()


def _read(path: str) -> bytes:
    """A file of /proc in one read, or nothing when it is gone. For each thread, twice a test: open() is slower."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _children() -> list[str]:
    """This process's living children, with the command of each."""
    pids = {
        int(pid) for task in os.listdir("/proc/self/task") for pid in _read(f"/proc/self/task/{task}/children").split()
    }
    commands = [_read(f"/proc/{pid}/cmdline") for pid in pids - {own_child()}]
    return [command.replace(b"\0", b" ").decode("utf-8", "replace")[:120] for command in commands if command]


def _open_sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        if int(name) == own_descriptor():
            continue
        try:
            # Of a descriptor: a link of /proc takes many times as long.
            count += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
        except OSError:
            continue
    return count
