"""Run files: who they are believed, and what becomes of those that are not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.rows import rows_of_a_test

from zcomm.errors import ConfigError
from zcomm.runtime.files import directory_identity
from zcomm.runtime.process import process_identity
from zcomm.runtime.runfile import remove_run_file, run_file, running_servers, write_run_file

HERE = "ws://127.0.0.1:1"


def written(data_dir: Path, **changed: object) -> Path:
    path = data_dir / "server.json"
    content = {
        "pid": os.getpid(),
        "started": process_identity(os.getpid()),
        "directory": directory_identity(data_dir),
        "websocket": HERE,
        "page": "",
        "auth": True,
    }
    path.write_text(json.dumps({**content, **changed}))
    path.chmod(0o600)
    return path


def test_what_is_written_is_found(tmp_path: Path):
    """server.json comes first, and each process removes its own file alone."""
    write_run_file(run_file(tmp_path, False), "ws://127.0.0.1:2", "", False)
    write_run_file(run_file(tmp_path, True), HERE, "http://127.0.0.1:1/", True)
    assert [one["websocket"] for one in running_servers(tmp_path)] == [HERE, "ws://127.0.0.1:2"]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    remove_run_file(run_file(tmp_path, True), "1@an earlier one of this number")
    assert len(running_servers(tmp_path)) == 2
    remove_run_file(run_file(tmp_path, True))
    assert [one["page"] for one in running_servers(tmp_path)] == [""]
    assert running_servers(tmp_path / "missing") == []


def test_contact_a26_a_link_in_its_place_is_not_followed(tmp_path: Path):
    """What it leads to stays as it is, where it is written and where it is read; a directory is an error."""
    data_dir, target = tmp_path / "data", tmp_path / "target"
    data_dir.mkdir()
    written(tmp_path).rename(target)
    before = target.read_bytes()
    (data_dir / "server.json").symlink_to(target)
    assert running_servers(data_dir) == [] and target.exists()
    write_run_file(run_file(data_dir, True), HERE, "", True)
    assert target.read_bytes() == before and not (data_dir / "server.json").is_symlink()
    (data_dir / "server.json").unlink()
    (data_dir / "server.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_run_file(run_file(data_dir, True), HERE, "", True)
    with pytest.raises(ConfigError):
        write_run_file(tmp_path / "target" / "server.json", HERE, "", True)


DISBELIEVED: dict[str, Callable[[Path], object]] = {
    "open to others": lambda path: path.chmod(0o602),
    "open to a group": lambda path: path.chmod(0o620),
    "not JSON": lambda path: path.write_text("{"),
    "no object": lambda path: path.write_text("[1]"),
    "not text": lambda path: path.write_bytes(b"\xff"),
    "empty": lambda path: path.write_text(""),
    "no number": lambda path: written(path.parent, pid="1"),
    "no time": lambda path: written(path.parent, started=None),
    "no directory": lambda path: written(path.parent, directory=None),
    "no address": lambda path: written(path.parent, websocket=5),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


def test_what_is_not_believed(tmp_path: Path):
    """A token would be sent to the address in it: what could be somebody else's, or is damaged, counts for nothing and
    is left as it is."""
    with rows_of_a_test() as row:
        for number, (name, change) in enumerate(DISBELIEVED.items()):
            with row(name):
                (place := tmp_path / str(number)).mkdir()
                path = written(place)
                assert len(running_servers(place)) == 1
                change(path)
                assert running_servers(place) == [] and path.exists()


def test_contact_a36_what_a_dead_server_left_is_removed(tmp_path: Path):
    """Its number may be another process's by now; that it started at another time tells."""
    with rows_of_a_test() as row:
        for changed in ({"pid": 4194304}, {"pid": -1}, {"pid": 10**30}, {"started": "1@x"}):
            with row(str(changed)):
                path = written(tmp_path, **changed)
                assert running_servers(tmp_path) == [] and not path.exists()


def test_contact_a_copy_of_a_data_directory_is_not_that_of_the_running_server(tmp_path: Path):
    """What is called from it must not go to the original; a directory that was moved, or is reached by a link, is the
    same one."""
    one, two = tmp_path / "one", tmp_path / "two"
    for alone in (True, False):
        write_run_file(run_file(one, alone), HERE, "", True)
    shutil.copytree(one, two)
    assert running_servers(two) == [] and list(two.iterdir()) == []
    one.rename(tmp_path / "moved")
    one.symlink_to("moved")
    assert len(running_servers(one)) == len(running_servers(tmp_path / "moved")) == 2


def test_contact_a_clock_that_was_set_loses_no_server(tmp_path: Path):
    """The time of day says nothing of a process: its start is written in the kernel's ticks of this boot."""
    write_run_file(run_file(tmp_path, True), HERE, "", True)
    (found,) = running_servers(tmp_path)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert found["started"] == f"{ticks}@{boot}"
