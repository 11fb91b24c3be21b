"""PostgreSQL as a service, with real servers: a life in good order."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import pytest_twisted
from support.localservers import copy_cluster, processes_in, sql, words_of
from support.ports import unused_port
from support.waiting import wait_until
from twisted.internet.defer import gatherResults

from zcomm.errors import ConfigError, DataDirectoryError, ServiceStartFailed
from zcomm.runtime.files import replace_file
from zcomm.services.kinds.postgresql.cluster import read_note
from zcomm.services.kinds.postgresql.programs import major
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.machine.programs import find_all
from zcomm.services.manager import ServiceManager

INSTALLATIONS = {major(one): one for one in find_all(PostgreSQLService.programs, {"PATH": os.defpath})}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("major", sorted(INSTALLATIONS))
@pytest_twisted.ensureDeferred
async def test_the_first_start_makes_a_safe_cluster(manager: ServiceManager, place: Path, major: str):
    """UTF-8, scram passwords only, loopback only, private files, and zolo_dev is there (PG15, P11)."""
    assert await manager.start("postgresql", port="auto", bin_dir=str(INSTALLATIONS[major].directory)) is True
    info = manager.connection_info("postgresql")
    rows = await sql(
        info,
        "select current_database(), current_setting('server_encoding'), "
        "current_setting('password_encryption'), current_setting('listen_addresses'), "
        "current_setting('data_checksums')",
    )
    assert rows == [("zolo_dev", "UTF8", "scram-sha-256", "127.0.0.1", "on")]
    assert {method for (method,) in await sql(info, "select auth_method from pg_hba_file_rules")} == {"scram-sha-256"}
    data = manager.get("postgresql").context.home.data
    assert [mode(path) for path in (data, data / "zcomm.json", manager.get("postgresql").context.home.run)] == [
        0o700,
        0o600,
        0o700,
    ]
    assert mode(manager.get("postgresql").context.home.log.path) == 0o600
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await sql(
            {**info, "connection_string": info["connection_string"].replace(info["password"], "wrong")}, "select 1"
        )
    status = await manager.status("postgresql")
    assert (status["running"], status["state"], status["health"]) == (True, "running", "healthy")
    assert status["version"].split(".")[0] == major and status["resources"]["processes"] > 3
    assert await manager.stop("postgresql") is True
    assert processes_in(place) == []


@pytest_twisted.ensureDeferred
async def test_the_child_is_the_server_itself(cluster: ServiceManager):
    """A direct child, leader of its session, not root, with three descriptors and few variables (P15, P16, PG29)."""
    os.environ["ZCOMM_TEST_TOKEN"] = "leaked"
    try:
        await cluster.start("postgresql", port="auto")
    finally:
        del os.environ["ZCOMM_TEST_TOKEN"]
    pid = (await cluster.status("postgresql"))["pid"]
    process = psutil.Process(pid)
    assert process.ppid() == os.getpid() and os.getsid(pid) == pid
    assert process.name() == "postgres"
    if os.geteuid() == 0:
        assert process.uids().real != 0 and process.username() == (await cluster.status("postgresql"))["user"]
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    assert not [one for one in variables if "TOKEN" in one or one.startswith(("PGPASS", "LD_", "PYTHON"))]
    own = {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)}
    assert own == {"/dev/null", str(cluster.get("postgresql").context.home.log.path)}
    ours = {
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }
    theirs = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    assert not {one for one in ours & theirs if one.startswith(("socket:", "pipe:"))}


@pytest_twisted.ensureDeferred
async def test_rows_survive_stop_start_restart(cluster: ServiceManager):
    """What was committed is there after a stop, a start and a restart; the password stays."""
    await cluster.start("postgresql", port="auto")
    info = cluster.connection_info("postgresql")
    await sql(info, "create table t as select 1 as n")
    assert await cluster.stop("postgresql") is True
    assert await cluster.stop("postgresql") is True
    status = await cluster.status("postgresql")
    assert (status["running"], status["state"], status["pid"], status["uptime"]) == (False, "stopped", None, None)
    assert await cluster.start("postgresql") is True
    assert await cluster.start("postgresql") is True
    before = (await cluster.status("postgresql"))["pid"]
    assert await cluster.restart("postgresql") is True
    after = await cluster.status("postgresql")
    assert after["pid"] != before and after["restarts"] == 0
    assert await sql(cluster.connection_info("postgresql"), "select n from t") == [(1,)]
    assert cluster.connection_info("postgresql")["password"] == info["password"]


@pytest_twisted.ensureDeferred
async def test_concurrent_starts_are_one(cluster: ServiceManager, place: Path):
    """Three starts at once end in one server, and all three are told."""
    assert await gatherResults([cluster.start("postgresql", port="auto") for _ in range(3)]) == [True] * 3
    pid = (await cluster.status("postgresql"))["pid"]
    assert [one.pid for one in processes_in(place) if one.ppid() == os.getpid()] == [pid]


@pytest_twisted.ensureDeferred
async def test_a_stop_with_a_client_connected_is_fast(cluster: ServiceManager):
    """An idle client does not hold up the stop, as it would after SIGTERM (PG16, P3)."""
    await cluster.start("postgresql", port="auto")
    connection = psycopg.connect(cluster.connection_info("postgresql")["connection_string"], autocommit=True)
    connection.execute("select 1")
    assert await cluster.stop("postgresql") is True
    connection.close()
    log = cluster.get("postgresql").context.home.log.tail()
    assert "received fast shutdown request" in log and "received immediate" not in log


@pytest_twisted.ensureDeferred
async def test_a_database_and_a_password_of_ones_own(cluster: ServiceManager):
    """database= is made when it is not there, password= becomes the password, of an old cluster too."""
    await cluster.start("postgresql", port="auto", database="shop-1", password='it\'s \\ secret "x"')
    info = cluster.connection_info("postgresql")
    assert (info["database"], info["password"]) == ("shop-1", 'it\'s \\ secret "x"')
    assert await sql(info, "select current_database()") == [("shop-1",)]
    await cluster.restart("postgresql")
    assert await sql(cluster.connection_info("postgresql"), "select current_database()") == [("shop-1",)]


@pytest_twisted.ensureDeferred
async def test_contact_f22_a_named_database_that_was_dropped_is_made_again(cluster: ServiceManager):
    """Whatever the note says: also where another was made in its place meanwhile, and where only earlier versions wrote
    the note, without saying which database is which."""
    await cluster.start("postgresql", port="auto", database="shop")
    note = cluster.get("postgresql").context.home.data / "zcomm.json"

    async def in_postgres(*statements: str) -> None:
        info = cluster.connection_info("postgresql")
        url = info["connection_string"].rpartition("/")[0] + "/postgres"
        for statement in statements:
            await sql({**info, "connection_string": url}, statement)

    async def answers() -> bool:
        info = cluster.connection_info("postgresql")
        return info["database"] == "shop" and await sql(info, "select current_database()") == [("shop",)]

    await in_postgres("DROP DATABASE shop")
    await cluster.restart("postgresql")
    assert await answers()
    await in_postgres("DROP DATABASE shop", "CREATE DATABASE other", "CREATE DATABASE shop")
    await cluster.restart("postgresql")
    assert await answers()
    await in_postgres("DROP DATABASE shop")
    await cluster.stop("postgresql")
    told = json.loads(note.read_text())
    replace_file(note, json.dumps({**told, "databases": ["zolo_dev", "shop"]}).encode(), *os.stat(note)[4:6])
    await cluster.start("postgresql")
    assert await answers() and read_note(note.parent).databases["shop"] > 0


@pytest_twisted.ensureDeferred
async def test_contact_f21_the_shells_variables_of_libpq_do_not_reach_it(
    make_manager: Callable[..., ServiceManager], template: Path
):
    """Neither the server, nor the programs that set it up, nor what asks whether it is ready."""
    shell = {
        "PGHOST": "192.0.2.1",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGSSLMODE": "verify-full",
        "PGSERVICE": "none",
        "PGOPTIONS": "-c default_transaction_read_only=on -c no_such=1",
        "PGCLIENTENCODING": "LATIN1",
        "PGDATABASE": "none",
        "PGUSER": "none",
        "PGDATA": "/nowhere",
        "PGTZ": "Mars",
        "LC_ALL": "tlh",
    }
    manager = make_manager(environ={"PATH": os.environ["PATH"], "POSTGRESQL_PORT": "auto", **shell})
    service = manager.get("postgresql")
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    await manager.start("postgresql", database="made")
    seen = psutil.Process((await manager.status("postgresql"))["pid"]).environ()
    # The server sets PGDATA itself.
    assert not {name for name in seen if name.startswith("PG")} - {"PGDATA", "PGLOCALEDIR", "PGSYSCONFDIR"}
    assert seen["LC_ALL"] == "C.UTF-8" and seen.get("PGDATA") != "/nowhere"
    await sql(manager.connection_info("postgresql"), "create table t (a text)")


@pytest_twisted.ensureDeferred
async def test_contact_h7_what_is_missing_above_a_data_directory_is_made(cluster: ServiceManager, place: Path):
    """As for zComm's own; where that cannot be, the error has its fix."""
    deep = place / "var" / "deeper" / "data"
    await cluster.start("postgresql", port="auto", data_dir=str(deep))
    assert (deep / "PG_VERSION").exists() and mode(deep) == 0o700
    assert {mode(parent) for parent in deep.parents[:2]} == {0o711 if os.geteuid() == 0 else 0o700}
    await cluster.start("redis", port="auto", data_dir=str(place / "a" / "b" / "c"))
    await cluster.stop("redis")
    with pytest.raises(DataDirectoryError, match="cannot be made") as caught:
        await cluster.start("redis", port="auto", data_dir="/proc/none/data")
    assert caught.value.fix


@pytest_twisted.ensureDeferred
async def test_the_secret_is_nowhere_but_in_the_connection_info(cluster: ServiceManager, place: Path):
    """No password in a command line, the log, the status, an event or an error (P14)."""
    told: list[str] = []
    cluster.subscribe(lambda name, status: told.append(repr(status)))
    await cluster.start("postgresql", port="auto", password="tell-nobody-42")
    told += [" ".join(words_of(process.pid)) for process in processes_in(place)]
    told += [
        repr(await cluster.status()),
        cluster.get("postgresql").context.home.log.tail(),
        repr(cluster.get("postgresql").context.options),
        repr(cluster.get("postgresql").kind.connection_info()),
    ]
    await sql(cluster.connection_info("postgresql"), "select 1")
    assert "tell-nobody-42" not in "".join(told)
    assert cluster.connection_info("postgresql")["password"] == "tell-nobody-42"
    assert cluster.connection_info("postgresql")["command"].count("tell-nobody-42") == 0


@pytest_twisted.ensureDeferred
async def test_a_reserve_makes_the_first_start_a_rename(make_manager: Callable[..., ServiceManager], template: Path):
    """With a cluster in reserve nothing is initialised; the reserve is used up and each has its own password."""
    manager = make_manager()
    service = manager.get("postgresql")
    assert await service.kind.make_reserve() is True
    assert await service.kind.make_reserve() is True
    reserve = next((service.context.home.root / "reserve").iterdir())
    password = read_note(reserve).password
    assert password != read_note(template).password
    inode = reserve.stat().st_ino
    await manager.start("postgresql", port="auto")
    assert service.context.home.data.stat().st_ino == inode and not reserve.exists()
    assert manager.connection_info("postgresql")["password"] == password
    assert await sql(manager.connection_info("postgresql"), "select current_database()") == [("zolo_dev",)]


@pytest_twisted.ensureDeferred
async def test_the_reserve_is_made_in_idle_time(make_manager: Callable[..., ServiceManager], template: Path):
    """After a start and some idling there is a new one, without being asked for."""
    manager = make_manager(reserve_after=0.01)
    service = manager.get("postgresql")
    copy_cluster(template, service.context.home.data, service.context.account_for(service.context.home.data))
    await manager.start("postgresql", port="auto")
    await wait_until(
        lambda: [
            one for one in (service.context.home.root / "reserve").glob("postgresql-*") if ".new-" not in one.name
        ],
        "the reserve",
        # Whoever else wants the processors has them first.
        timeout=240,
    )


@pytest_twisted.ensureDeferred
async def test_contact_a_new_cluster_is_written_through(
    place: Path, make_manager: Callable[..., ServiceManager], monkeypatch: pytest.MonkeyPatch
):
    """It is on the disk soon after the start that made it, which does not wait for that; later starts do nothing."""
    calls = place / "calls"
    calls.touch()
    calls.chmod(0o666)
    (place / "nice").write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {shutil.which("nice")} "$@"\n')
    (place / "nice").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    # What else is done in an idle moment waits, and nothing for that.
    manager = make_manager(reserve_after=3600)
    home = manager.get("postgresql").context.home

    async def lines(number: int) -> None:
        await wait_until(lambda: calls.read_text().count("\n") == number, f"{number} calls", timeout=240)
        await wait_until(lambda: len(manager._idling) == 1, "the end of what is done after a start", timeout=240)

    await manager.start("postgresql", port="auto")
    await lines(1)
    await manager.restart("postgresql", port="auto")
    await lines(1)
    await manager.stop("postgresql")
    shutil.rmtree(home.data)
    await manager.start("postgresql", port="auto")
    await lines(2)
    assert {line.partition("initdb ")[2] for line in calls.read_text().splitlines()} == {f"--sync-only -D {home.data}"}


@pytest_twisted.ensureDeferred
async def test_a_running_server_is_not_moved_by_other_settings(cluster: ServiceManager):
    """start() with another port on a running server is refused; restart() with one moves it."""
    await cluster.start("postgresql", port="auto")
    first = (await cluster.status("postgresql"))["port"]
    with pytest.raises(ServiceStartFailed, match="other settings"):
        await cluster.start("postgresql", port=first + 1, database="other")
    assert await cluster.start("postgresql", port="auto") is True
    await cluster.restart("postgresql", port="auto", database="zolo_dev")
    assert (await cluster.status("postgresql"))["running"]


@pytest_twisted.ensureDeferred
async def test_auto_keeps_its_port(cluster: ServiceManager, make_manager: Callable[..., ServiceManager]):
    """port="auto" is the same port in the next run, also of the next manager (PG7)."""
    # Another test's server takes a usual port as soon as it is free.
    port = unused_port()
    await cluster.start("postgresql", port=port)
    await cluster.stop("postgresql")
    later = make_manager()
    await later.start("postgresql", port="auto")
    assert (await later.status("postgresql"))["port"] == port


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"port": 70000}, ConfigError, "port"),
        ({"port": 0}, ConfigError, "port"),
        ({"port": -1}, ConfigError, "port"),
        ({"port": "abc"}, ConfigError, "port"),
        ({"port": True}, ConfigError, "port"),
        ({"prot": 5432}, ConfigError, 'did you mean "port"'),
        ({"database": 'a"b'}, ConfigError, "database"),
        ({"database": ""}, ConfigError, "database"),
        ({"database": 7}, ConfigError, "database"),
        ({"password": "two\nlines"}, ConfigError, "password"),
        ({"safe_mode": "yes"}, ConfigError, "safe_mode"),
        ({"data_dir": "relative/dir"}, DataDirectoryError, "absolute"),
        ({"data_dir": "~/pg"}, DataDirectoryError, "absolute"),
        ({"data_dir": "a\0b"}, DataDirectoryError, "path"),
        ({"user": "no-such-user-here"}, ConfigError, "no account"),
        ({"bin_dir": "bin"}, DataDirectoryError, "absolute"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_bad_arguments_start_nothing(
    manager: ServiceManager, place: Path, arguments: dict, error: type, words: str
):
    """A typed error, nothing spawned and nothing created (P19, P5)."""
    with pytest.raises(error, match=words):
        await manager.start("postgresql", **arguments)
    assert processes_in(place) == [] and not (place / "home" / "services" / "postgresql" / "data").exists()


@pytest_twisted.ensureDeferred
async def test_a_healthy_start_and_stop_log_no_error(cluster: ServiceManager):
    """Whoever looks through the log for what is wrong finds nothing, also in a cluster that sets a pid file."""
    data = cluster.get("postgresql").context.home.data
    with (data / "postgresql.conf").open("a") as settings:
        settings.write("external_pid_file = '/nonexistent/postgresql.pid'\n")
    await cluster.start("postgresql")
    await cluster.stop("postgresql")
    log = cluster.get("postgresql").context.home.log.path.read_text()
    assert "ready to accept connections" in log and "shut down" in log
    wrong = ("could not", "ERROR", "FATAL", "PANIC", "WARNING")
    # So ends a question that is under way at the moment of the stop.
    lines = [line for line in log.splitlines() if "canceling authentication" not in line]
    assert [line for line in lines if any(word in line for word in wrong)] == []


@pytest_twisted.ensureDeferred
async def test_contact_a_copy_whose_settings_name_the_original(cluster: ServiceManager, place: Path, template: Path):
    """``data_directory`` in its files leads to no other cluster, neither when it runs nor when a database is made
    in it before."""
    data = cluster.get("postgresql").context.home.data
    account = cluster.get("postgresql").context.account_for(data)
    copy_cluster(template, original := place / "original", account)
    untouched = {path: path.stat().st_mtime_ns for path in original.rglob("*")}
    line = f"data_directory = '{original}'\n"
    (data / "more.conf").write_text(line)
    os.chown(data / "more.conf", account.uid, account.gid)
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(f"include = 'more.conf'\n{line}")
    with (data / "postgresql.auto.conf").open("a") as settings:
        settings.write(line)
    await cluster.start("postgresql", database="another")
    info = cluster.connection_info("postgresql")
    assert await sql(info, "select current_setting('data_directory'), current_database()") == [(str(data), "another")]
    await cluster.stop("postgresql")
    assert untouched == {path: path.stat().st_mtime_ns for path in original.rglob("*")}
    # What is nowhere keeps it from nothing.
    for path in (data / "more.conf", data / "postgresql.auto.conf"):
        path.write_text("data_directory = '/nowhere'\n")
    assert await cluster.start("postgresql", database="third") is True
