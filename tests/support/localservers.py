"""Talking to real PostgreSQL and Redis servers in tests, and seeing which processes are there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
from support.waiting import wait_until_blocking
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

__all__ = ["children_of", "copy_cluster", "end_all_in", "processes_in", "redis", "sql", "words_of"]


def sql(info: dict[str, Any], statement: str, **more: Any) -> Deferred[list[tuple[Any, ...]]]:
    """Run a statement on the server of a connection info, in a thread; fires with the rows."""
    import psycopg

    def run() -> list[tuple[Any, ...]]:
        with psycopg.connect(info["connection_string"], connect_timeout=10, autocommit=True, **more) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return deferToThread(run)


def redis(info: dict[str, Any], *commands: tuple[Any, ...], password: str | None = None) -> Deferred[list[Any]]:
    """Run commands on the server of a connection info, in a thread; errors are strings with their ``-``."""
    word = info["password"] if password is None else password

    def run() -> list[Any]:
        address = (info["host"], info["port"])
        with socket.create_connection(address, timeout=20) as connection, connection.makefile("rwb") as stream:
            replies = []
            for command in ([("AUTH", word)] if word else []) + list(commands):
                words = [str(part).encode() for part in command]
                stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(one), one) for one in words))
                stream.flush()
                replies.append(_read_reply(stream))
            return replies[1:] if word else replies

    return deferToThread(run)


def _read_reply(stream: Any) -> Any:
    line = stream.readline()
    if not line:
        raise ConnectionError("the server hung up")
    mark, text = line[:1], line[1:-2].decode()
    if mark == b"$":
        return stream.read(int(text) + 2)[:-2].decode() if int(text) >= 0 else None
    if mark == b"*":
        return [_read_reply(stream) for _ in range(int(text))]
    if mark == b":":
        return int(text)
    return f"-{text}" if mark == b"-" else text


def copy_cluster(template: Path, target: Path, account: Any) -> None:
    """Put a copy of a finished cluster at ``target``; what is missing above it is made passable."""
    parents = [parent for parent in target.parents if not parent.exists()]
    for parent in reversed(parents):
        parent.mkdir(mode=0o711)
        parent.chmod(0o711)
    subprocess.run(["cp", "-a", str(template), str(target)], check=True)


def processes_in(base: Path) -> list[psutil.Process]:
    """Every living process that stands below ``base`` or has it in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline())
            inside = process.cwd().startswith(str(base)) or str(base) in text
            if inside and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process; nothing when it has ended meanwhile."""
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def end_all_in(base: Path) -> None:
    """Kill what a failed test left below ``base``."""
    for process in processes_in(base):
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.Error:
            continue
    wait_until_blocking(lambda: not processes_in(base), f"an end of the processes in {base}")


def children_of(pid: int) -> list[psutil.Process]:
    """The living children of a process."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
