"""What one zComm leaves behind for the next: which server it started, and how to know it again.

A pid alone says nothing: it may be another process by now. The record names the pid together with the
start of that process (:func:`zcomm.services.supervision.process.start_stamp`), and is replaced in one step, so that a
zComm killed while it writes leaves the old record or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from zcomm.runtime.files import replace_file
from zcomm.services.supervision.identity import read_mark, start_stamp

__all__ = ["MARK", "Record", "read_json", "read_record", "still_runs", "users_of", "write_record"]

#: Where a child writes down who it is, beside the record.
MARK = "launched"
#: A record is a few hundred bytes; more is something else.
_MOST_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Record:
    """One server as it was last started.

    :ivar pid: its process id, 0 when it was stopped in good order.
    :ivar stamp: the start of that process.
    :ivar port: its port; kept after the end, so that ``port="auto"`` stays the same.
    :ivar started: when it started, seconds since the epoch.
    """

    pid: int = 0
    stamp: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    data_dir: str = ""
    started: float = 0.0
    version: str = ""
    user: str = ""
    identity: str = ""
    log: str = ""
    socket_dir: str = ""
    owner: int = 0

    def ended(self) -> Record:
        """The record of the same server after its end."""
        return replace(self, pid=0, stamp="", started=0.0, owner=0)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a file; empty when it is missing, too big, a link or damaged."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            value = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_record(path: Path) -> Record:
    """The record in ``path``; an empty one when there is none that makes sense.

    A zComm that died between the fork and its writing left no pid in it; the child wrote it beside it.
    """
    record = _record_of(read_json(path))
    if record.pid or not record.data_dir:
        return record
    written = read_mark(path.with_name(MARK))
    if written is None:
        return record
    pid, stamp = written
    try:
        return replace(record, pid=pid, stamp=stamp, started=psutil.Process(pid).create_time())
    except psutil.Error:
        return record


def _record_of(value: Mapping[str, Any]) -> Record:
    known: dict[str, Any] = {}
    for field in fields(Record):
        found: Any = value.get(field.name, field.default)
        wanted = type(field.default)
        if wanted is float and isinstance(found, int):
            found = float(found)
        if type(found) is not wanted:
            return Record()
        known[field.name] = found
    return Record(**known)


def write_record(path: Path, record: Record) -> None:
    """Replace the record in ``path``. :raises OSError: when the disk does not let it."""
    replace_file(path, json.dumps(asdict(record)).encode())


def still_runs(record: Record) -> bool:
    """Whether the very process of the record lives."""
    return record.pid > 1 and record.stamp != "" and start_stamp(record.pid) == record.stamp


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
    linux = os.path.isdir("/proc/self")
    for pid in _pids():
        if pid == but or pid == os.getpid():
            continue
        try:
            # The stat goes through the link of the system, so that mounts and links do not matter.
            place = os.stat(f"/proc/{pid}/cwd" if linux else psutil.Process(pid).cwd())
        except (OSError, psutil.Error):
            continue
        if (place.st_dev, place.st_ino) == (wanted.st_dev, wanted.st_ino) and start_stamp(pid) is not None:
            try:
                found.append((pid, psutil.Process(pid).name()))
            except psutil.Error:
                continue
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return psutil.pids()
