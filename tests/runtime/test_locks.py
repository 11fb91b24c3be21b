"""One zComm per directory."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

from zcomm.runtime.files import DirectoryLock, FileLock


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


def test_contact_a_file_is_locked_by_one_at_a_time(tmp_path: Path):
    """However many take it while others remove it; each gets it in the end, and at last it is gone."""
    inside, most, taken = 0, 0, 0
    count = threading.Lock()

    def work() -> None:
        nonlocal inside, most, taken
        own = 0
        # How often it is somebody else's is for the system to say.
        while own < 200:
            lock = FileLock(tmp_path / "lock")
            if lock.take():
                own += 1
                with count:
                    inside, taken = inside + 1, taken + 1
                    most = max(most, inside)
                with count:
                    inside -= 1
                lock.release()
                lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and taken == 800 and list(tmp_path.iterdir()) == []
