"""The pid file of twistd: whose it may be, and what becomes of a stale one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from support.rows import rows_of_a_test
from support.waiting import wait_until_blocking

from zcomm.runtime.process import PidFile, remove_stale_pid_file


@contextmanager
def running(*command: str) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_contact_a_pid_file_of_no_living_server_is_removed(tmp_path: Path):
    """Whichever process has its number by now; what may be that of a server stays, as does what is no pid file."""
    path = tmp_path / "twistd.pid"
    told, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (told.set(), end.wait()), daemon=True)
    thread.start()
    told.wait()
    with (
        rows_of_a_test() as row,
        running("cat") as other,
        running(sys.executable, "-S", "-c", "input()") as python,
        subprocess.Popen(["true"]) as zombie,
    ):
        wait_until_blocking(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE, "a zombie")
        for name, text, stays in (
            ("its own number", f"{os.getpid()}", False),
            ("nobody's", "4194305", False),
            ("more than a number of a process can be", "9" * 40, False),
            ("a thread's", f"{thread.native_id}", False),
            ("a zombie's", f"{zombie.pid}", False),
            ("another program's", f"{other}", False),
            ("another program's, as others write it", f"{other}\n", False),
            ("maybe a server's", f"{python}", True),
            ("ours, the number is maybe a server's", f"{python}\n", False),
            ("emptied by a power failure", "", False),
            ("zeros after a power failure", "\0" * 4, False),
            ("something else", "127.0.0.1 localhost\n", True),
            ("something longer", f"{os.getpid()}\n" * 99, True),
        ):
            with row(name):
                path.write_text(text)
                remove_stale_pid_file(str(path))
                assert path.exists() is stays
                assert not stays or path.read_text() == text
        path.unlink(missing_ok=True)
        remove_stale_pid_file(str(path))
        target = tmp_path / "target"
        target.write_text(f"{os.getpid()}")
        path.symlink_to(target)
        remove_stale_pid_file(str(path))
        assert path.is_symlink() and target.exists()
        path.unlink()
        path.mkdir()
        remove_stale_pid_file(str(path))
        assert path.is_dir()
    end.set()
    thread.join()


def test_contact_a_pid_file_of_a_living_server_stays(tmp_path: Path):
    """Its number says nothing: in another container it is another's. A child that may outlive it has no copy."""
    path = tmp_path / "twistd.pid"
    path.write_text(f"{os.getpid()}")
    held = PidFile(str(path))
    held.hold()
    assert path.read_text() == f"{os.getpid()}\n"
    remove_stale_pid_file(str(path))
    assert path.exists()
    child = os.fork()
    if not child:
        os._exit(held._descriptor is not None)
    assert os.waitpid(child, 0)[1] == 0
    # As at its end.
    held.forked()
    remove_stale_pid_file(str(path))
    assert not path.exists()
    for text in ("1", "no number"):
        path.write_text(text)
        held.hold()
        held.remove()
        assert path.read_text() == text
    path.write_text(f"{os.getpid()}\n")
    held.remove()
    assert not path.exists()
