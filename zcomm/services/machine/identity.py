"""The identity of processes: what tells one from all others with its pid, and which work in a directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from zcomm.runtime.process import pid_space, process_identity

__all__ = [
    "MARK",
    "pid_space",
    "processes_marked",
    "process_identity",
    "read_identity",
    "seconds_running",
    "stands_in",
    "started_at",
    "users_of",
    "working_directory",
]

#: The variable by which a server and all that it starts are known; its value is another at each start.
MARK = "ZCOMM_SERVICE"


def seconds_running(pid: int) -> float | None:
    """The seconds that the process has run, by a monotonic clock; ``None`` where there is no such clock."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, IndexError):
        return None


def started_at(pid: int) -> float | None:
    """The start time of the process, seconds since the epoch; ``None`` if it is gone, or the system does not tell."""
    try:
        return psutil.Process(pid).create_time()
    except (psutil.Error, OSError):
        return None


def read_identity(path: os.PathLike[str]) -> tuple[int, str] | None:
    """The living process that wrote its ``/proc/<pid>/stat`` and the boot into ``path``: (pid, identity), else
    ``None``."""
    try:
        with open(path, "rb") as file:
            text = file.read(4096)
        pid = int(text.split(b" ", 1)[0])
        told = text.rpartition(b")")[2].split()
        written = f"{told[19].decode()}@{told[-1].decode()}"
    except (OSError, ValueError, IndexError):
        return None
    return (pid, written) if pid > 1 and process_identity(pid) == written else None


def stands_in(pid: int, directory: Path) -> bool:
    """Whether the working directory of the process is ``directory``, as far as this user may know.

    The stat goes through the link of the system, so that mounts and links do not matter.
    """
    try:
        return os.path.samestat(_place_of(pid), os.stat(directory))
    except (OSError, psutil.Error):
        return False


def _place_of(pid: int) -> os.stat_result:
    return os.stat(f"/proc/{pid}/cwd" if os.path.isdir("/proc/self") else psutil.Process(pid).cwd())


def working_directory(pid: int) -> str:
    """The path of the directory that the process works in, for people; empty where the system does not tell."""
    try:
        return psutil.Process(pid).cwd()
    except (OSError, psutil.Error):
        return ""


def users_of(directory: Path, but: int = 0) -> list[tuple[int, str]]:
    """The living processes whose working directory is ``directory``, as (pid, name).

    PostgreSQL's and Redis's processes stand in their data directory. Processes of other users are seen
    by root only.

    :param but: a pid to leave out.
    """
    try:
        wanted = os.stat(directory)
    except OSError:
        return []
    found = []
    for pid in _pids():
        if pid == but or pid == os.getpid():
            continue
        try:
            place = _place_of(pid)
        except (OSError, psutil.Error):
            continue
        if os.path.samestat(place, wanted) and process_identity(pid) is not None:
            try:
                found.append((pid, psutil.Process(pid).name()))
            except psutil.Error:
                continue
    return found


def processes_marked(mark: str, session: int) -> list[tuple[int, str]]:
    """The living processes that a server started, itself among them, as (pid, identity); **blocks** for some
    milliseconds.

    :param mark: what its environment has as :data:`MARK`, which they inherit wherever they went.
    :param session: the session that it led, for those of it that have written over their environment or were given
        none.
    """
    wanted, found = f"{MARK}={mark}", []
    for pid in _pids():
        if pid == os.getpid():
            continue
        try:
            environment = _environment_of(pid)
            if wanted in environment or (
                session and os.getsid(pid) == session and "=" not in next(iter(environment), "") and _is_ours(pid)
            ):
                identity = process_identity(pid)
                if identity is not None:
                    found.append((pid, identity))
        except (OSError, psutil.Error):
            continue
    return found


def _environment_of(pid: int) -> list[str]:
    """The variables that a process was started with. :raises OSError, psutil.Error: when they may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().decode("utf-8", "surrogateescape").split("\0")
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            raise
    return [f"{name}={value}" for name, value in psutil.Process(pid).environ().items()]


def _is_ours(pid: int) -> bool:
    """Whether the process belongs to this user, or this user is root."""
    return os.geteuid() in (0, psutil.Process(pid).uids().real)


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return psutil.pids()
