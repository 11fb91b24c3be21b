"""Insides of processes that nobody else tells of: the log files twistd has open, an exit status of our own, and what
tells one process from a later one of its number."""

from __future__ import annotations

import atexit
import gc
import os
import sys

import psutil
from twisted.python.logfile import BaseLogFile

__all__ = ["exit_failed", "open_log_files", "process_identity"]


def open_log_files() -> list[BaseLogFile]:
    """The files that Twisted logs to. Asked for once, at the start: it looks at every object there is."""
    return [thing for thing in gc.get_objects() if isinstance(thing, BaseLogFile)]


def exit_failed() -> None:
    """Exit with status 1, after all that is to be done at exit; register it with :mod:`atexit`.

    twistd itself knows no failure after the reactor has started.
    """
    atexit.unregister(exit_failed)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def process_identity(pid: int) -> str | None:
    """The identity that tells this process from any other that had or will have its pid; ``None`` if it is gone.

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
