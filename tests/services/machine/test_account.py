"""Who the servers run as: root's never as root, an ordinary user's as that user."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import pytest_twisted
from support.localservers import copy_cluster, processes_in, redis, sql
from support.waiting import DEADLINE, wait_until
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.tokens import TokenStore
from zcomm.config import Config, make_data_directory
from zcomm.errors import ConfigError, DataDirectoryError
from zcomm.host.host import Host
from zcomm.runtime.runfile import run_file, write_run_file
from zcomm.services.kinds.postgresql.programs import major
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.machine.account import Account, account_of, blocked_by, choose_account, current_account, let_pass
from zcomm.services.machine.programs import find_all
from zcomm.services.manager import ServiceManager
from zcomm.services.supervision.environment import ServiceHome, ServicesEnvironment, make_private

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")
DRIVER = Path(__file__).parents[2] / "support" / "servicesdriver.py"
NAMELESS = 47110
#: What a statement may take.
LIMIT = {"options": "-c statement_timeout=30s"}


def run_driver(uid: int, gid: int, wanted: dict[str, Any]) -> subprocess.Popen[str]:
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.Popen(
        [interpreter_for_others(), str(DRIVER), json.dumps(wanted, default=str)],
        env=environ,
        user=uid,
        group=gid,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def open_to_others(path: str | Path) -> bool:
    """Whether another account gets there."""
    real = Path(os.path.realpath(path))
    return real.exists() and all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents)


def interpreter_for_others() -> str:
    """A Python of our version that another account may run; empty when there is none."""
    own = (sys.executable, f"/usr/bin/python3.{sys.version_info[1]}", f"/usr/local/bin/python3.{sys.version_info[1]}")
    return next((path for path in own if open_to_others(path)), "")


async def first_line(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """What the driver tells when all is started, or could not be; it ends if that takes too long."""
    from twisted.internet import reactor

    late = reactor.callLater(2 * DEADLINE, driver.kill)
    try:
        line = await deferToThread(driver.stdout.readline)
    finally:
        in_time = late.active()
        if in_time:
            late.cancel()
    assert in_time and line, "the services did not start"
    return json.loads(line)


def logs_of(home: Path) -> str:
    """What the services wrote, and where zComm saw them last."""
    written = [*home.glob("log/*"), *home.glob("services/*/state.json")]
    return "\n".join(f"{path}:\n{path.read_text(errors='replace')}" for path in written if path.is_file())


def no_server_yet(failure: Any) -> None:
    failure.trap(psycopg.OperationalError)


def programs() -> list[Any]:
    """Each pair of servers of this machine, the system's and the wheels': a PostgreSQL and a Redis or Valkey."""
    found = {
        kind.name: {major(one): one for one in find_all(kind.programs, {"PATH": os.defpath})}
        for kind in (PostgreSQLService, RedisService)
    }
    pairs = zip_longest(*([every[major] for major in sorted(every)] for every in found.values()))
    named = [
        {
            "postgresql": one or next(iter(found["postgresql"].values())),
            "redis": two or next(iter(found["redis"].values())),
        }
        for one, two in pairs
    ]
    return [
        pytest.param(
            {name: str(one.directory) for name, one in pair.items()},
            id="-".join(f"{one.flavour}{major(one)}" for one in pair.values()),
        )
        for pair in named
    ]


@root_only
@pytest.mark.skipif(not interpreter_for_others(), reason="every interpreter lies in a private home")
@pytest.mark.parametrize("directories", programs())
@pytest_twisted.ensureDeferred
async def test_an_ordinary_user_has_everything(place: Path, directories: dict[str, str]):
    """initdb, start, data, kill -9, stop: as nobody, in nobody's directory, with programs of system and wheels."""
    if not all(open_to_others(directory) for directory in directories.values()):
        pytest.skip("these programs lie in a private home")
    nobody = pwd.getpwnam("nobody")
    home = place / "nobody"
    home.mkdir(mode=0o700)
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    wanted = {name: {"port": "auto", "bin_dir": directory} for name, directory in directories.items()}
    driver = run_driver(nobody.pw_uid, nobody.pw_gid, {"home": home, "start": wanted})
    try:
        told = await first_line(driver)
        assert "error" not in told
        for name, directory in directories.items():
            assert Path(psutil.Process(told[name]["pid"]).exe()).parent == Path(os.path.realpath(directory))
        for name in ("postgresql", "redis"):
            assert psutil.Process(told[name]["pid"]).uids().real == nobody.pw_uid and told[name]["user"] == "nobody"
        assert await sql(told["postgresql"]["info"], "select current_database()", **LIMIT) == [("zolo_dev",)]
        assert await redis(told["redis"]["info"], ("PING",)) == ["PONG"]
        owners = {path.stat().st_uid for path in home.rglob("*")}
        assert owners == {nobody.pw_uid}
        await sql(told["postgresql"]["info"], "create table kept as select 1 as n", **LIMIT)

        def now(name: str) -> dict[str, Any]:
            """How to reach it: between its end and its next start, others may take the port, and it has another."""
            record = json.loads((home / "services" / name / "state.json").read_text())
            info, port = told[name]["info"], str(record["port"])
            string = info["connection_string"].replace(f":{info['port']}/", f":{port}/")
            return {**record, **info, "port": int(port), "connection_string": string}

        def is_back(name: str) -> bool:
            return now(name)["pid"] not in (0, told[name]["pid"]) and now(name)["identity"] != ""

        async def kept() -> list[tuple[Any, ...]] | None:
            return await sql(now("postgresql"), "select n from kept", **LIMIT).addErrback(no_server_yet)

        for name in ("postgresql", "redis"):
            os.kill(told[name]["pid"], signal.SIGKILL)
            await wait_until(lambda name=name: is_back(name), f"a restart of {name}")
        assert await redis(now("redis"), ("PING",)) == ["PONG"]
        end = time.monotonic() + DEADLINE
        while (rows := await kept()) is None:
            assert time.monotonic() < end, f"nothing answers on port {now('postgresql')['port']}"
        assert rows == [(1,)]
        driver.stdin.close()
        assert await deferToThread(driver.wait, 60) == 0
        assert processes_in(home) == []
    except BaseException:
        print(logs_of(home))
        raise
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()


@root_only
@pytest_twisted.ensureDeferred
async def test_a_data_directory_of_a_number_without_a_name(manager: ServiceManager, template: Path):
    """PostgreSQL runs as the owner of its directory even if no account has that number (PG1, PG2)."""
    service = manager.get("postgresql")
    account = account_of(NAMELESS)
    assert not account.listed
    copy_cluster(template, service.context.home.data, account)
    subprocess.run(["chown", "-R", f"{NAMELESS}:{NAMELESS}", str(service.context.home.data)], check=True)
    await manager.start("postgresql", port="auto")
    status = await manager.status("postgresql")
    assert psutil.Process(status["pid"]).uids().real == NAMELESS and status["user"] == f"uid {NAMELESS}"
    assert Path(f"/proc/{status['pid']}/status").read_text().split("Groups:")[1].split("\n")[0].split() in (
        [],
        [str(NAMELESS)],
    )
    assert await sql(manager.connection_info("postgresql"), "select 1") == [(1,)]


@root_only
@pytest_twisted.ensureDeferred
async def test_an_account_of_ones_own(manager: ServiceManager):
    """user= names the account; one that is not the owner of the directory is refused with the repair."""
    await manager.start("redis", port="auto", user="nobody")
    status = await manager.status("redis")
    assert status["user"] == "nobody" and psutil.Process(status["pid"]).username() == "nobody"
    await manager.stop("redis")
    with pytest.raises(DataDirectoryError, match="belongs to nobody") as caught:
        await manager.start("redis", port="auto", user="redis")
    assert "chown" in caught.value.fix
    with pytest.raises(ConfigError, match="root"):
        manager.start("redis", user="root")


@root_only
@pytest_twisted.ensureDeferred
async def test_contact_n1_h6_roots_data_is_in_a_private_home(make_manager: Callable[..., ServiceManager], place: Path):
    """The data directory holds it all wherever it is; the server's account passes what is closed, nobody else does, and
    a directory that was moved is found with its rows (PG3)."""
    private = place / "root-home"
    private.mkdir(mode=0o700)
    home = private / "zcomm"
    home.mkdir(mode=0o700)
    manager = make_manager(home, system_root=place / "var-lib")
    await manager.start("redis", port="auto")
    status = await manager.status("redis")
    data = Path(status["data_dir"])
    server, stranger = account_of(status["user"]), account_of("daemon")
    assert data == home / "services" / "redis" / "data" and data.owner() == server.name
    assert status["log"] == str(home / "log" / "redis.log") and not (place / "var-lib").exists()
    for directory in (private, home):
        mode = stat.S_IMODE(directory.stat().st_mode)
        assert mode & 0o707 == 0o700, "nobody else may enter, and the account may not list it"
        assert blocked_by(directory, stranger.uid, {stranger.gid}, wanted=1) == private
        assert blocked_by(directory, server.uid, {server.gid}, wanted=1) is None
    assert await redis(manager.connection_info("redis"), ("SET", "a", "kept"), ("SAVE",)) == ["OK", "OK"]
    await manager.stop("redis")
    blocked = private / "data"
    blocked.mkdir(mode=0o700)
    with pytest.raises(DataDirectoryError, match=str(blocked)):
        await manager.start("redis", port="auto", data_dir=str(blocked), user="nobody")
    await manager.stopService()
    home.rename(private / "moved")
    manager = make_manager(private / "moved", system_root=place / "var-lib")
    await manager.start("redis", port="auto")
    assert await redis(manager.connection_info("redis"), ("GET", "a")) == ["kept"]
    await manager.stop("redis")


@pytest_twisted.ensureDeferred
async def test_contact_symbolic_links_for_directories(make_manager: Callable[..., ServiceManager], place: Path):
    """The data directory, one on its way and those in it may be links; what they lead to is judged as it is."""
    real, disk, log = (place / name for name in ("real", "disk", "log"))
    for directory in (real, disk, log):
        directory.mkdir(mode=0o711)
    (place / "way").symlink_to(place)
    (place / "link").symlink_to(real)
    (real / "services").symlink_to("../disk")
    (real / "log").symlink_to(log)
    (disk / "redis").mkdir(mode=0o711)
    (disk / "redis" / "data").symlink_to(place / "not-there-yet")
    manager = make_manager(place / "way" / "link")
    await manager.start("redis", port="auto")
    status = await manager.status("redis")
    assert (status["data_dir"], status["log"]) == (str(place / "not-there-yet"), str(log / "redis.log"))
    assert await redis(manager.connection_info("redis"), ("SET", "a", "kept"), ("SAVE",)) == ["OK", "OK"]
    await manager.stopService()
    # The same by another name, and as a directory of its own that was asked for.
    (place / "data").symlink_to("not-there-yet")
    manager = make_manager(real)
    await manager.start("redis", port="auto", data_dir=str(place / "data"))
    assert await redis(manager.connection_info("redis"), ("GET", "a")) == ["kept"]
    await manager.stopService()
    disk.chmod(0o777)
    with pytest.raises(DataDirectoryError, match=f"{disk}: could be changed by somebody else; run: sudo chown [a-z]+ "):
        await make_manager(place / "link").start("redis", port="auto")


@root_only
@pytest_twisted.ensureDeferred
async def test_contact_n1_what_an_earlier_start_put_elsewhere_is_named(
    make_manager: Callable[..., ServiceManager], place: Path
):
    """Data in the system's directory is never taken for none: the start is refused with the command that brings it."""
    manager = make_manager(place / "zcomm", system_root=place / "var-lib")
    service = manager.get("redis")
    former = service.environment.former_home("redis") / "data"
    former.mkdir(parents=True)
    os.chown(former, account_of("redis").uid, account_of("redis").gid)
    with pytest.raises(DataDirectoryError, match="an earlier zComm keeps the data") as caught:
        await manager.start("redis", port="auto")
    moves = caught.value.fix.removeprefix("bring it here: ")
    assert moves == f"mv {former} {service.context.home.data}"
    former.rename(service.context.home.data)
    assert await manager.start("redis", port="auto") is True


@root_only
@pytest_twisted.ensureDeferred
async def test_contact_n1_a_way_that_root_may_not_open_is_named(
    make_manager: Callable[..., ServiceManager], place: Path
):
    """The private home of somebody else is left as it is; the error names it and what helps."""
    theirs = place / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 1, 1)
    manager = make_manager(theirs / "zcomm", system_root=place / "var-lib")
    with pytest.raises(DataDirectoryError, match=f"may not enter {theirs}") as caught:
        await manager.start("redis", port="auto")
    assert "--data-dir" in caught.value.fix and f"chmod o+x {theirs}" in caught.value.fix
    assert stat.S_IMODE(theirs.stat().st_mode) == 0o700 and os.listxattr(theirs) == []


@root_only
def test_a_list_that_is_there_keeps_what_it_grants(place: Path):
    """One more entry takes nothing from anybody and gives nobody else more than before; a second time changes
    nothing."""
    here, ann, ben = place / "here", Account("uid 4711", 4711, 4711), Account("uid 4712", 4712, 4712)
    here.mkdir(mode=0o750)
    here.chmod(0o750)
    assert let_pass(here, ann) == [here] and let_pass(here, ann) == []
    # As setfacl -m m::--- does: the list grants nobody anything until the mask is wider.
    here.chmod(0o700)
    assert blocked_by(here, 4711, {4711}, wanted=1) == here
    assert let_pass(here, ben) == [here]
    assert blocked_by(here, 4712, {4712}, wanted=1) is None
    assert blocked_by(here, 4711, {4711}, wanted=1) == here
    assert blocked_by(here, 4713, {4713}, wanted=1) == here
    assert let_pass(here, Account("", 0, 0)) == []


@root_only
@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize(
    "first",
    [
        make_data_directory,
        lambda home: TokenStore(home / "tokens.json").add("ann", "user"),
        lambda home: write_run_file(run_file(home, True), "ws://127.0.0.1:1", "", True),
        lambda home: OperatorCredentials.load_or_create(home / "operator.json"),
        lambda home: Host(Config(home), Clock()),
        lambda home: ServiceHome(environment_of(home), "redis").make(),
    ],
    ids=["twistd", "token", "run file", "credentials", "host", "service"],
)
def test_the_place_does_not_depend_on_what_came_first(place: Path, first: Callable[[Path], object], umask: int):
    """Whatever makes the data directory, services are in it; other accounts pass it and read no file in it."""
    home, nobody = place / "new" / ".zolo" / "zcomm", account_of("nobody")
    before = os.umask(umask)
    try:
        first(home)
        place_of_service = ServiceHome(environment_of(home), "redis")
        place_of_service.make()
        assert place_of_service.open_to(nobody) == []
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (place / "new", *(place / "new").rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_file()} <= {0o600}
    assert {mode for path, mode in modes.items() if path.is_dir()} <= {0o700, 0o711}
    assert modes[home] == 0o711 and modes[home / "log"] == 0o700


@pytest_twisted.ensureDeferred
async def test_a_file_is_no_data_directory(make_manager: Callable[..., ServiceManager], place: Path):
    """Nothing is started anywhere else instead."""
    (place / "file").touch()
    for home, reason in ((place / "file", "is not a directory"), (place / "file" / "x", "Not a directory")):
        manager = make_manager(home, system_root=place / "lib")
        with pytest.raises(DataDirectoryError, match=f"{home}.* {reason}"):
            await manager.start("redis", port="auto")
    assert list(place.iterdir()) == [place / "file"]


def environment_of(home: Path) -> ServicesEnvironment:
    return ServicesEnvironment(data_dir=home, environ={}, reactor=None, system_root=home.parents[2] / "lib")


def test_two_homes_do_not_share_a_place(place: Path):
    """Each data directory is looked for in a place of its own under the system's."""
    former = {
        ServicesEnvironment(data_dir=place / name, environ={}, reactor=None, system_root=place / "lib").former_home("x")
        for name in ("a", "b")
    }
    assert len(former) == 2 and all(path.parents[2] == place / "lib" for path in former)


@root_only
@pytest.mark.parametrize(
    ("usual", "environ", "expected"),
    [
        (("nobody",), {}, "nobody"),
        (("no-such-account", "daemon"), {}, "daemon"),
        ((), {"SUDO_UID": "1"}, account_of(1).name),
        ((), {"SUDO_UID": "0"}, "nobody"),
        ((), {"SUDO_UID": "x"}, "nobody"),
        ((), {}, "nobody"),
    ],
)
def test_the_account_of_a_new_directory(place: Path, usual: tuple[str, ...], environ: dict[str, str], expected: str):
    """The usual accounts, then who called sudo, then nobody; never root (PG1)."""
    assert choose_account(place / "new", "", usual, environ).name == expected


@root_only
def test_the_owner_of_the_directory_comes_first(place: Path):
    """An existing directory says itself who its server is."""
    os.chown(place, 1, 1)
    assert choose_account(place, "", ("nobody",), {}).uid == 1
    assert choose_account(place, "nobody", (), {}).name == "nobody"


def test_there_must_be_such_an_account():
    """A name nobody has is a bad argument."""
    with pytest.raises(ConfigError, match="no account"):
        account_of("no-such-account-here")
    assert current_account().uid == os.geteuid()


@root_only
def test_a_place_that_others_can_change_is_refused(place: Path):
    """Root does not run what lies in a directory that somebody else could fill."""
    me = current_account()
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    with pytest.raises(DataDirectoryError, match="changed by somebody else"):
        make_private(place / "open", me, "x")
    (place / "theirs").mkdir()
    os.chown(place / "theirs", 1, 1)
    with pytest.raises(DataDirectoryError, match="changed by somebody else"):
        make_private(place / "theirs", me, "x")
    (place / "link").symlink_to(place)
    with pytest.raises(DataDirectoryError, match="not a directory"):
        make_private(place / "link", me, "x")
    (place / "file").write_text("")
    home = ServiceHome(ServicesEnvironment(data_dir=place / "file", environ={}, reactor=None), "redis")
    with pytest.raises(DataDirectoryError):
        home.make()


@root_only
def test_what_exists_already_keeps_its_mode(place: Path):
    """A directory that is ours already is neither opened nor closed further."""
    (place / "mine").mkdir(mode=0o750)
    (place / "mine").chmod(0o750)
    make_private(place / "mine", Account("", os.geteuid(), os.getegid()), "x", 0o700)
    assert stat.S_IMODE((place / "mine").stat().st_mode) == 0o750
    shutil.rmtree(place / "mine")


@root_only
@pytest.mark.skipif(not interpreter_for_others(), reason="every interpreter lies in a private home")
@pytest_twisted.ensureDeferred
async def test_an_ordinary_user_without_a_name(place: Path):
    """Redis works for a user that the system does not list (a container); PostgreSQL says what is missing (PG2)."""
    home = place / "nameless"
    home.mkdir(mode=0o700)
    os.chown(home, NAMELESS, NAMELESS)
    driver = run_driver(
        NAMELESS, NAMELESS, {"home": home, "start": {"redis": {"port": "auto"}, "postgresql": {"port": "auto"}}}
    )
    try:
        told = await first_line(driver)
        assert await redis(told["redis"]["info"], ("PING",)) == ["PONG"]
        assert told["error"][0] == "ServiceStartFailed" and "could not look up" in told["error"][1]
        assert not (home / "services" / "postgresql" / "data").exists()
        driver.stdin.close()
        assert await deferToThread(driver.wait, 60) == 0
    finally:
        driver.kill()
        driver.wait()
        driver.stdout.close()
