"""What is checked before a server is spawned: directories, versions, snapshots, sockets, space, ports."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from zcomm.errors import DataDirectoryError, PortInUse, ServiceError, ServiceNotInstalled
from zcomm.services.kinds.postgresql.directory import ClusterFacts, look_at_cluster
from zcomm.services.kinds.postgresql.programs import postgresql_for
from zcomm.services.kinds.redis.config import FILES
from zcomm.services.kinds.redis.programs import redis_for
from zcomm.services.machine.directories import (
    DirectoryFacts,
    absolute_path,
    judge_directory,
    judge_space,
    look_at_directory,
    require_port,
    require_space,
    socket_directory,
)

ME = os.geteuid()
GOOD = DirectoryFacts(Path("/srv/data"), "directory", uid=26, mode=0o700)


@pytest.mark.parametrize(
    "value,fix",
    [
        ("data", "write /full/path/data"),
        ("./data", "write /full/path/./data"),
        ("../../etc", "write "),
        ("~", "write /"),
        ("~/data", "write /"),
        ("", ""),
        ("  ", ""),
        ("/a\0b", ""),
        ("/a\nb", ""),
        ("/a\x1b[2Jb", ""),
        (None, ""),
        (b"/data", ""),
        (17, ""),
        (True, ""),
        (["/data"], ""),
    ],
)
def test_a_path_that_depends_on_where_one_stands_is_refused(value, fix):
    """Relative, ``~`` or no path: a typed error that says what to write instead."""
    with pytest.raises(DataDirectoryError) as caught:
        absolute_path("postgresql", value)
    assert caught.value.service == "postgresql" and caught.value.fix.startswith(fix)


@pytest.mark.parametrize(
    "value,expected",
    [
        ("/srv/data", "/srv/data"),
        ("/srv//data/", "/srv/data"),
        ("/srv/a/../data", "/srv/data"),
        ("/srv/with spaces/ünïcode", "/srv/with spaces/ünïcode"),
        (Path("/srv/data"), "/srv/data"),
    ],
)
def test_an_absolute_path_is_taken(value, expected):
    """Spaces and letters of any language are part of a name."""
    assert absolute_path("redis", value) == Path(expected)


def test_redis_takes_a_directory_others_may_read_but_not_write():
    """Redis asks for nothing, so only what endangers the data is refused."""
    judge_directory("redis", replace(GOOD, mode=0o755, names=("dump.rdb", "other")), 26, "redis", files=FILES)
    with pytest.raises(DataDirectoryError, match="has the mode 0777"):
        judge_directory("redis", replace(GOOD, mode=0o777), 26, "redis", files=FILES)


@pytest.mark.parametrize(
    "make,kind",
    [
        (lambda path: None, "missing"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_text(""), "other"),
        (lambda path: path.symlink_to("/nowhere-at-all"), "missing"),
        (lambda path: path.symlink_to("/"), "directory"),
        (lambda path: os.mkfifo(path), "other"),
        (lambda path: path.symlink_to(path), "hidden"),
    ],
)
def test_whatever_stands_there_is_looked_at(tmp_path: Path, make, kind):
    """Looking never raises, whatever it finds."""
    path = tmp_path / "data"
    make(path)
    facts = look_at_directory(path, ME, files=10)
    assert facts.kind == kind and facts.path == path


@pytest.mark.parametrize("path", ["/etc/passwd/data", "/" + "x" * 300, "/" + "y/" * 3000])
def test_impossible_paths_are_looked_at(path):
    """Under a file, too long a name, too long a path."""
    assert look_at_directory(Path(path), ME).kind in ("other", "hidden")


def test_the_facts_are_the_directory_s(tmp_path: Path):
    """Owner, mode, content, version and databases come from the files."""
    (tmp_path / "PG_VERSION").write_text("15\n")
    for database in ("1", "4", "5", "pgsql_tmp"):
        (tmp_path / "base" / database).mkdir(parents=True)
    tmp_path.chmod(0o750)
    facts = look_at_directory(tmp_path, ME)
    assert (facts.uid, facts.mode, look_at_cluster(tmp_path)) == (ME, 0o750, ClusterFacts("15", 3))
    assert facts.names == ("PG_VERSION", "base") and facts.foreign is None and not facts.read_only


@pytest.mark.skipif(ME != 0, reason="only root can give files away")
def test_a_single_file_of_another_owner_is_found(tmp_path: Path):
    """PostgreSQL would start and then fail each connection; the file is named instead."""
    (tmp_path / "base" / "5").mkdir(parents=True)
    stray = tmp_path / "base" / "5" / "pg_filenode.map"
    stray.write_text("")
    os.chown(stray, 65534, 65534)
    tmp_path.chmod(0o700)
    facts = look_at_directory(tmp_path, 0)
    assert facts.foreign == stray
    with pytest.raises(DataDirectoryError, match="pg_filenode.map: does not belong to root"):
        judge_directory("postgresql", facts, 0, "root")


@pytest.mark.skipif(ME != 0, reason="only root has another account to ask for")
def test_a_private_parent_is_named_and_stays_private(tmp_path: Path):
    """The directory that is closed to the server's account is found; its mode is not touched."""
    (tmp_path / "closed" / "data").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    os.chown(tmp_path / "closed" / "data", 65534, 65534)
    facts = look_at_directory(tmp_path / "closed" / "data", 65534)
    assert facts.blocked is not None and facts.blocked in (tmp_path / "closed", *tmp_path.parents, tmp_path)
    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o700


def test_without_a_server_the_error_says_how_to_get_one():
    """Nothing installed is its own error, with the command."""
    for choose, facts in ((postgresql_for, (GOOD.path, None)), (redis_for, ([],))):
        with pytest.raises(ServiceNotInstalled, match="pip install 'zcomm\\[services\\]'"):
            choose([], *facts)


@pytest.mark.parametrize("platform,longest", [("linux", 107), ("darwin", 103), ("freebsd14", 103)])
def test_a_socket_path_that_is_too_long_gets_a_short_directory(platform, longest):
    """To the byte: the longest that fits stays, one more does not."""
    name = len("/.s.PGSQL.54321")
    fits = Path("/" + "d" * (longest - name - 1))
    assert socket_directory(fits, ".s.PGSQL.54321", 26, platform) == fits
    too_long = Path(f"{fits}d")
    short = socket_directory(too_long, ".s.PGSQL.54321", 26, platform)
    assert str(short).startswith("/tmp/zcomm-26/") and len(str(short)) < 40
    assert short == socket_directory(too_long, ".s.PGSQL.54322", 26, platform)
    assert short != socket_directory(Path(f"{too_long}d"), ".s.PGSQL.54321", 26, platform)


def test_a_socket_path_is_measured_in_bytes():
    """Letters that take two bytes count twice."""
    assert socket_directory(Path("/" + "ü" * 60), ".s.PGSQL.5432", 26, "linux") != Path("/" + "ü" * 60)
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="too long"):
        probe.bind("/" + "ü" * 60)


@pytest.mark.parametrize("free,fine", [(200 * 2**20, True), (200 * 2**20 - 1, False), (0, False), (2**40, True)])
def test_too_little_space_is_an_error_with_the_figures(free, fine):
    """200 MB is the line."""
    if fine:
        judge_space("postgresql", Path("/srv"), free)
    else:
        with pytest.raises(ServiceError, match=f"has {free // 2**20} MB free of the 200 needed"):
            judge_space("postgresql", Path("/srv"), free)


def test_space_is_looked_for_where_the_directory_will_be(tmp_path: Path):
    """A directory that is still to be made counts with the nearest one that exists."""
    require_space("redis", tmp_path / "a" / "b" / "c", needed=1)
    with pytest.raises(ServiceError, match="MB free"):
        require_space("redis", tmp_path / "a", needed=2**60)
    with pytest.raises(DataDirectoryError, match="cannot be looked at"):
        require_space("redis", Path("/etc/passwd/x"))


@pytest_twisted.ensureDeferred
async def test_a_taken_port_is_refused_with_its_holder(free_port):
    """The error names the port and who has it."""
    await require_port("postgresql", free_port)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} is in use by .*pid {os.getpid()}") as caught:
            await require_port("postgresql", port)
        assert caught.value.port == port and "--port auto" in caught.value.fix
