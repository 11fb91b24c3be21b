"""The run file ``server.json`` in the data directory: where a running server listens, for the commands that ask."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil

from zcomm.config import make_data_directory
from zcomm.runtime.files import replace_file

__all__ = ["read_run_file", "remove_run_file", "write_run_file"]

_NAME = "server.json"


def write_run_file(data_dir: Path, websocket: str, page: str, auth: bool) -> None:
    """Say where this process listens. It holds no secret; the start time tells this process from a later
    one of the same number.

    :raises ConfigError: when the data directory is missing and cannot be made.
    :raises OSError: when the file cannot be written.
    """
    make_data_directory(data_dir)
    content = {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "websocket": websocket,
        "page": page,
        "auth": auth,
    }
    replace_file(data_dir / _NAME, json.dumps(content).encode())


def read_run_file(data_dir: Path) -> dict[str, Any] | None:
    """The content of the run file; ``None`` when no server runs, or the one that wrote it has died."""
    try:
        content = json.loads((data_dir / _NAME).read_text())
        alive = abs(psutil.Process(content["pid"]).create_time() - content["started"]) < 1.0
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return content if alive else None


def remove_run_file(data_dir: Path) -> None:
    """This process no longer listens."""
    content = read_run_file(data_dir)
    if content is not None and content["pid"] == os.getpid():
        (data_dir / _NAME).unlink(missing_ok=True)
