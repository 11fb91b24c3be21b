"""The cost of a running server: memory, processor, connections, disk. Read off the reactor's thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

from zcomm.services.machine.identity import seconds_running

__all__ = ["Meter"]

#: Files of a data directory that are counted; more would keep a disk busy for a figure.
_FILES = 20000
#: How psutil says that a process ended while it was read; now and then it lets the system's own error through.
_GONE = (psutil.Error, OSError)


class Meter:
    """The figures of one server's processes; keeps what the share of the processor is reckoned from."""

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def read(self, pid: int, data_dir: str, now: float) -> dict[str, Any]:
        """**Blocks** for some milliseconds.

        :param now: seconds on a monotonic clock.
        :return: ``processes``, ``memory_bytes`` (each shared page counted once, where the system tells),
            ``cpu_percent`` since the last reading, at first since its start (100 is one processor),
            ``connections``, ``disk_bytes``, ``disk_free_bytes``. Empty when the server is gone.
        """
        try:
            server = psutil.Process(pid)
            processes = [server, *server.children(recursive=True)]
        except _GONE:
            return {}
        memory = seconds = connections = 0.0
        for process in processes:
            memory += _memory(process)
            seconds += _seconds(process)
            connections += _connections(process)
        share = None
        if self._before is not None and now > self._before[0]:
            share = max(0.0, round(100.0 * (seconds - self._before[1]) / (now - self._before[0]), 1))
        elif self._before is None and (age := seconds_running(pid)):
            share = round(100.0 * seconds / age, 1)
        self._before = (now, seconds)
        used, free = _disk(data_dir)
        return {
            "processes": len(processes),
            "memory_bytes": int(memory),
            "cpu_percent": share,
            "connections": int(connections),
            "disk_bytes": used,
            "disk_free_bytes": free,
        }


def _memory(process: psutil.Process) -> float:
    try:
        # The proportional set size: PostgreSQL's shared buffers are counted once, not once per backend.
        return float(process.memory_full_info().pss)
    except (*_GONE, AttributeError):
        try:
            return float(process.memory_info().rss)
        except _GONE:
            return 0.0


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return float(times.user + times.system)
    except _GONE:
        return 0.0


def _connections(process: psutil.Process) -> int:
    try:
        return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))
    except _GONE:
        return 0


def _disk(data_dir: str) -> tuple[int | None, int | None]:
    used, files = 0, 0
    for directory, _, names in os.walk(data_dir):
        for name in names:
            files += 1
            if files > _FILES:
                return None, _free(data_dir)
            try:
                used += os.lstat(Path(directory) / name).st_blocks * 512
            except OSError:
                continue
    return used, _free(data_dir)


def _free(path: str) -> int | None:
    try:
        return psutil.disk_usage(path).free
    except OSError:
        return None
