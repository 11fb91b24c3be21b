"""Run files in the data directory: where running servers listen, for the commands that ask.

The one that has the data directory's lock writes ``server.json``; a program whose host keeps its data elsewhere
``server-<pid>.json``.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zcomm.config import make_data_directory
from zcomm.runtime.files import directory_identity, replace_file
from zcomm.runtime.process import process_identity

__all__ = ["disbelieved", "remove_run_file", "run_file", "running_servers", "write_run_file"]

_NAME = re.compile(r"server(-\d+)?\.json")
#: A run file is a few hundred bytes; more is something else.
_MOST_BYTES = 65536


def run_file(data_dir: Path, alone: bool) -> Path:
    """The run file of this process.

    :param alone: whether it has the lock of the data directory.
    """
    return data_dir / ("server.json" if alone else f"server-{os.getpid()}.json")


def write_run_file(
    path: Path, websocket: str, page: str, auth: bool, listening: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Say where this process listens. It holds no secret; the start tells this process from a later one of
    the same number, also when the clock was set meanwhile, and a copy of the directory is not that of this process.

    :param websocket: the address for clients on this machine; empty where there is none without a proxy.
    :param page: the same for browsers.
    :param auth: whether clients need a token.
    :param listening: of each address its ``url``, and whether it wants a ``proxy_header``.
    :raises ConfigError: when the data directory is missing and cannot be made.
    :raises OSError: when the file cannot be written.
    """
    make_data_directory(path.parent)
    content = {
        "pid": os.getpid(),
        "started": process_identity(os.getpid()),
        "directory": directory_identity(path.parent),
        "websocket": websocket,
        "page": page,
        "auth": auth,
        "listening": [dict(address) for address in listening],
    }
    replace_file(path, json.dumps(content).encode(), durable=False)


def running_servers(data_dir: Path) -> list[dict[str, Any]]:
    """The contents of the run files of processes that live, ``server.json`` first; those of dead ones are removed, and
    those that were copied here with another data directory."""
    found = []
    for path in _run_files(data_dir):
        content = _read(path)
        if content is None:
            continue
        if _lives(content, data_dir):
            found.append(content)
        else:
            # A start that comes first may have written another meanwhile.
            remove_run_file(path, content["started"])
    return found


def disbelieved(data_dir: Path) -> Path | None:
    """The first run file that is there and counts for nothing, as it could be somebody else's or is damaged."""
    return next((path for path in _run_files(data_dir) if os.path.lexists(path) and _read(path) is None), None)


def _run_files(data_dir: Path) -> list[Path]:
    """All of a data directory, ``server.json`` first."""
    try:
        names = sorted(filter(_NAME.fullmatch, os.listdir(data_dir)), key=lambda name: (len(name), name))
    except OSError:
        return []
    return [data_dir / name for name in names]


def remove_run_file(path: Path, started: str | None = None) -> None:
    """Remove a run file, if it is that of a process.

    :param started: its identity, as its number may be another's by now; this process's own when it is left out.
    """
    content = _read(path)
    if content is not None and content["started"] == (process_identity(os.getpid()) if started is None else started):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a run file; ``None`` for what is none, or could be somebody else's.

    Whoever reads sends a token to the address in it: the file is of this user or of whom the directory belongs to, it
    is no link, and nobody else can write it.
    """
    try:
        owners = (os.geteuid(), os.stat(path.parent).st_uid)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in owners or facts.st_mode & 0o022:
                return None
            content = json.loads(file.read(_MOST_BYTES))
        if (
            isinstance(content["pid"], int)
            and isinstance(content["started"], str)
            and isinstance(content["directory"], str)
            and isinstance(content["websocket"], str)
            and isinstance(content["page"], str)
            and isinstance(content["auth"], bool)
        ):
            return dict(content)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _lives(content: dict[str, Any], data_dir: Path) -> bool:
    try:
        here = directory_identity(data_dir) == content["directory"]
        return bool(here and process_identity(content["pid"]) == content["started"])
    except (ValueError, OverflowError, OSError):
        return False
