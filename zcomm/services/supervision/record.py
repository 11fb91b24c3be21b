"""The record that one zComm leaves for the next: which server it started, and how to know it again.

A pid alone says nothing: it may be another process by now. The record names the pid together with the
start of that process (:func:`zcomm.services.machine.identity.process_identity`), and is replaced in one step, so that a
zComm killed while it writes leaves the old record or the new one.

It belongs to the directory that it was written in, and names that with its inode. A copy of the directory, such as a
backup that was taken while the server ran, has a record of somebody else's server; a directory that was moved keeps its
own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from zcomm.runtime.files import directory_identity, replace_file
from zcomm.services.machine.identity import pid_space, process_identity, read_identity, started_at

__all__ = [
    "IDENTITY_FILE",
    "Record",
    "of_process",
    "read_json",
    "read_record",
    "read_replaced",
    "record_trouble",
    "session_of",
    "still_runs",
    "write_record",
]

#: Where a child writes down who it is, beside the record.
IDENTITY_FILE = "launched"
#: A record is a few hundred bytes; more is something else.
_MOST_BYTES = 65536
#: The directory that a record belongs to, beside its fields: the path and the identity.
_PLACE, _INODE = "directory", "directory_identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One server as it was last started.

    :ivar pid: its process id, 0 when it was stopped in good order.
    :ivar process_identity: the start of that process.
    :ivar port: its port; kept after the end, so that ``port="auto"`` stays the same.
    :ivar started: when it started, seconds since the epoch.
    :ivar session: the session that it led; kept after the end, for what it has started. See :func:`session_of`.
    :ivar leader: the start of the process that led it.
    :ivar space: where the session has that number, see :func:`zcomm.runtime.process.pid_space`.
    :ivar restarts: how often it had been started again by itself when this run began.
    :ivar log_start: the size in bytes that its log had before this run wrote to it.
    :ivar mark: what the environment of that has, see :data:`zcomm.services.machine.identity.MARK`.
    """

    pid: int = 0
    process_identity: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    data_dir: str = ""
    started: float = 0.0
    version: str = ""
    user: str = ""
    identity: str = ""
    log: str = ""
    socket_dir: str = ""
    session: int = 0
    leader: str = ""
    space: str = ""
    mark: str = ""
    restarts: int = 0
    log_start: int = 0

    def ended(self) -> Record:
        """The record of the same server after its end."""
        return replace(self, pid=0, process_identity="", started=0.0)


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a file; empty when it is missing, too big, a link or damaged."""
    try:
        return _load(path)
    except (OSError, ValueError):
        return {}


def _load(path: Path) -> dict[str, Any]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        value = json.loads(file.read(_MOST_BYTES))
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def record_trouble(path: Path) -> str:
    """Why nothing can be told from the record in ``path``; empty where there is none or it can be read."""
    try:
        readable = _record_of(_load(path)) is not None
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError:
        readable = False
    return "" if readable else f"{path} is damaged"


def read_record(path: Path) -> Record:
    """The record in ``path``; an empty one when there is none that makes sense.

    A zComm that died between the fork and its writing left no pid in it; the child wrote it beside it. One that was
    copied here says nothing, but the port where it came back to its place; in one that was moved along with its
    directory, the paths are the new ones.
    """
    content = read_json(path)
    record = _record_of(content) or Record()
    here = str(path.parent)
    if not _belongs(content, path):
        return Record(port=record.port if content.get(_PLACE) == here else 0)
    return _with_child(_moved(record, content.get(_PLACE), here), path)


def read_replaced(path: Path) -> Record:
    """The record in ``path`` of another directory that was at the very same place and made way for a copy of it; an
    empty one when there is none."""
    content = read_json(path)
    record = _record_of(content)
    if record is None or _belongs(content, path) or content.get(_PLACE) != str(path.parent):
        return Record()
    return _with_child(record, path)


def _with_child(record: Record, path: Path) -> Record:
    if record.pid or not record.data_dir:
        return record
    written = read_identity(path.with_name(IDENTITY_FILE))
    if written is None:
        return record
    pid, identity = written
    started = started_at(pid)
    return record if started is None else of_process(record, pid, identity, started)


def of_process(record: Record, pid: int, identity: str, started: float) -> Record:
    """The record with this process, which leads a session of its own, for its server."""
    return replace(
        record,
        pid=pid,
        process_identity=identity,
        started=started,
        session=pid,
        leader=identity,
        space=pid_space(),
    )


def _belongs(content: Mapping[str, Any], path: Path) -> bool:
    """Whether this is the directory that the record was written in."""
    if _INODE not in content:
        # An earlier version did not say.
        return True
    try:
        return bool(content[_INODE] == directory_identity(path.parent))
    except OSError:
        return False


def _moved(record: Record, before: object, now: str) -> Record:
    """The record with the paths of the server's directory as they are now."""
    if not isinstance(before, str) or before == now:
        return record

    def follow(path: str) -> str:
        return now + path[len(before) :] if f"{path}/".startswith(f"{before}/") else path

    return replace(record, data_dir=follow(record.data_dir), socket_dir=follow(record.socket_dir))


def _record_of(value: Mapping[str, Any]) -> Record | None:
    known: dict[str, Any] = {}
    for field in fields(Record):
        found: Any = value.get(field.name, field.default)
        wanted = type(field.default)
        if wanted is float and isinstance(found, int):
            found = float(found)
        if type(found) is not wanted:
            return None
        known[field.name] = found
    return Record(**known)


def write_record(path: Path, record: Record) -> None:
    """Replace the record in ``path``. :raises OSError: when the disk does not let it."""
    place = {_PLACE: str(path.parent), _INODE: directory_identity(path.parent)}
    replace_file(path, json.dumps({**asdict(record), **place}).encode(), durable=False)


def still_runs(record: Record) -> bool:
    """Whether the very process of the record lives."""
    return record.pid > 1 and record.process_identity != "" and process_identity(record.pid) == record.process_identity


def session_of(record: Record) -> int:
    """The session that the server of the record led, 0 when its number means another by now.

    It does after a boot or in another run of a container, and when another process has the number: none gets it while
    the session has members.
    """
    known = record.space != "" and record.space == pid_space()
    return record.session if known and process_identity(record.session) in (None, record.leader) else 0
