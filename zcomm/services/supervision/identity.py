"""Telling a process from all others that had or will have its pid."""

from __future__ import annotations

import os
import time

import psutil

__all__ = ["read_mark", "seconds_running", "start_stamp"]


def start_stamp(pid: int) -> str | None:
    """What tells this process from any other that had or will have its pid; ``None`` if it is gone.

    On Linux the start in clock ticks and the boot it belongs to: the wall clock may be set, that is not.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    except OSError:
        return None
    else:
        # A zombie has ended; that its pid is still taken helps nobody.
        return None if fields[0] in (b"Z", b"X") else f"{fields[19].decode()}@{boot}"
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def seconds_running(pid: int) -> float | None:
    """How long the process has run by the clock that nobody sets; ``None`` where there is no such clock."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, IndexError):
        return None


def read_mark(path: os.PathLike[str]) -> tuple[int, str] | None:
    """The living process that wrote its ``/proc/<pid>/stat`` into ``path``: (pid, stamp), else ``None``."""
    try:
        with open(path, "rb") as file:
            text = file.read(4096)
        pid = int(text.split(b" ", 1)[0])
        ticks = text.rpartition(b")")[2].split()[19].decode()
    except (OSError, ValueError, IndexError):
        return None
    stamp = start_stamp(pid) if pid > 1 else None
    return (pid, stamp) if stamp is not None and stamp.startswith(f"{ticks}@") else None
