"""One zComm per directory."""

from __future__ import annotations

import subprocess
from pathlib import Path

from zcomm.runtime.files import DirectoryLock


def test_a_lock_is_held_by_one(tmp_path: Path):
    """Also where another path leads to the directory; what is given back can be taken."""
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path / "link")
    assert first.take() and first.take() and not second.take()
    first.release()
    assert second.take() and not first.take()
    second.release()
    second.release()


def test_a_child_that_has_a_copy_does_not_keep_it(tmp_path: Path):
    """A process between its fork and its program has all descriptors: what is given back is free at once."""
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    assert first.take()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[first._descriptor]) as child:
        first.release()
        assert second.take()
        child.stdin.close()
    second.release()
