"""PID namespaces, as containers have them: the same numbers come again at each start."""

from __future__ import annotations

import functools
import subprocess

import pytest

__all__ = ["contained"]

#: The command is the first process of it; its end, and that of ``unshare``, is the end of all in it.
_WORDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@functools.cache
def _is_possible() -> bool:
    try:
        return subprocess.run([*_WORDS, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def contained(command: list[str]) -> list[str]:
    """The command in a PID namespace of its own; skips the test where this user may make none."""
    if not _is_possible():
        pytest.skip("this user may not make a PID namespace")
    return [*_WORDS, *command]
