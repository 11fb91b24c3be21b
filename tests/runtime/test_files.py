"""Files that are replaced in one step, and the names of owners."""

from __future__ import annotations

import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from zcomm.runtime.files import make_private_file, replace_file, user_name


def test_a_file_is_replaced_and_private(tmp_path: Path):
    """The new content whole, its owner's alone, and nothing beside it."""
    path = tmp_path / "secret.json"
    path.write_text("old")
    path.chmod(0o644)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret.json"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int):
    """Open to no one else under one that takes nothing, and to its owner under one that takes everything."""
    (tmp_path / "there").touch(0o640)
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "replaced", b"new")
        make_private_file(tmp_path / "made")
        make_private_file(tmp_path / "there")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"replaced": 0o600, "made": 0o600, "there": 0o640}


def test_a_link_is_replaced_not_followed(tmp_path: Path):
    """What it points to stays as it was."""
    (tmp_path / "other").write_text("other")
    path = tmp_path / "secret"
    path.symlink_to(tmp_path / "other")
    replace_file(path, b"new")
    assert (tmp_path / "other").read_text() == "other" and not path.is_symlink()


def test_what_killed_writers_left_is_removed(tmp_path: Path):
    """Theirs of the same name only; what a living writer has begun, a directory and a link stay."""
    ours = [tmp_path / f".a.json.{digit * 16}.tmp" for digit in "0123"]
    others = [tmp_path / name for name in (".a.json.b.0000000000000000.tmp", ".a.json.0.tmp", ".b.json.lock")]
    for path in (*ours[:2], *others):
        path.write_text("secret")
    ours[2].mkdir()
    ours[3].symlink_to(others[0])
    with open(ours[1], "rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        replace_file(tmp_path / "a.json", b"new")
        assert set(tmp_path.iterdir()) == {tmp_path / "a.json", *ours[1:], *others}
    replace_file(tmp_path / "a.json", b"newer", durable=False)
    assert set(tmp_path.iterdir()) == {tmp_path / "a.json", *ours[2:], *others}


@pytest.mark.unmeasured
def test_writers_at_once_do_not_remove_each_others_files(tmp_path: Path):
    """Each write ends well, whatever the others remove."""
    path = tmp_path / "state.json"
    with ThreadPoolExecutor(8) as threads:
        for write in [threads.submit(replace_file, path, b"x" * 100, durable=False) for _ in range(800)]:
            write.result()
    assert os.listdir(tmp_path) == ["state.json"] and path.read_bytes() == b"x" * 100


def test_what_cannot_be_written_leaves_the_old(tmp_path: Path):
    """A directory in its place, and a directory that is not there."""
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        replace_file(tmp_path / "taken", b"new")
    assert os.listdir(tmp_path) == ["taken"]
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "missing" / "file", b"new")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_is_given(tmp_path: Path):
    """As for the servers that run as accounts of their own."""
    replace_file(tmp_path / "note", b"x", 65534, 65534)
    assert (tmp_path / "note").stat().st_uid == 65534 and (tmp_path / "note").stat().st_gid == 65534


def test_an_owner_without_a_name_is_a_number():
    """Not every uid has a row in the system's table."""
    assert user_name(0) == "root" and user_name(3_999_999) == "3999999"
    assert user_name(os.getuid()) == psutil.Process().username()
