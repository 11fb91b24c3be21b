"""What zcomm doctor finds: decisions on a survey, and real servers that are in trouble."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_twisted
from support.ports import unused_port
from support.waiting import wait_until_blocking

from zcomm.network import Holder
from zcomm.services.doctor.findings import findings
from zcomm.services.doctor.inventory import Inventory, look, look_at_site, running_servers, take_inventory
from zcomm.services.examination import Finding, RunningServer, ServiceSite, SiteFacts
from zcomm.services.kinds import KINDS
from zcomm.services.kinds.postgresql.directory import ClusterFacts
from zcomm.services.kinds.postgresql.examiner import PostgreSQLSite
from zcomm.services.kinds.postgresql.lockfile import Claim, ProcessFacts, Verdict
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.machine.account import Account, blocked_by
from zcomm.services.machine.directories import DirectoryFacts
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.programs import find_all

ME = os.geteuid()
UID = 65534 if ME == 0 else ME
ACCOUNT = Account("nobody" if ME == 0 else psutil.Process().username(), UID, UID if ME == 0 else os.getegid())

POSTGRES = RunningServer(
    kind="postgresql",
    pid=812,
    name="postgres",
    user="pg",
    uid=26,
    status="sleeping",
    started=1.7e9,
    directory=Path("/srv/pg"),
    listens=(("127.0.0.1", 5432), ("::1", 5432)),
    details=True,
)
REDIS = RunningServer(
    kind="redis",
    pid=900,
    name="redis-server",
    user="redis",
    uid=27,
    status="sleeping",
    started=1.7e9,
    directory=Path("/srv/redis"),
    listens=(("127.0.0.1", 6379),),
)
INSTALLED = {
    "postgresql": [Installation("postgresql", (15, 20), Path("/usr/bin/postgres"), "PATH")],
    "redis": [Installation("redis", (7, 0, 15), Path("/usr/bin/redis-server"), "PATH")],
}
PG_SITE = ServiceSite(
    service="postgresql",
    kind="postgresql",
    data_dir=Path("/srv/pg"),
    account=Account("pg", 26, 26),
    port=5432,
    log=Path("/srv/log"),
)
CLUSTER = DirectoryFacts(
    Path("/srv/pg"), "directory", uid=26, mode=0o700, names=("PG_VERSION", "base", "global", "postgresql.conf")
)
NO_DIRECTORY = DirectoryFacts(Path("/srv/pg"), "missing")
DETAILS = PostgreSQLSite(ClusterFacts("15", 3), Verdict(Claim.ABSENT, "nobody holds the directory"))
WELL = SiteFacts(site=PG_SITE, facts=CLUSTER, details=DETAILS, free=2**40)


def found(*, servers=(), places=(), installations=None) -> list[Finding]:
    known = INSTALLED if installations is None else installations
    return findings(Inventory(installations=known, servers=servers, sites=places))


def site(kind: str, data: Path, port: int = 0) -> ServiceSite:
    return ServiceSite(service=kind, kind=kind, data_dir=data, account=ACCOUNT, port=port)


def test_a_healthy_machine_has_no_findings():
    """Servers of different kinds, each in its own directory, on loopback."""
    assert found(servers=[POSTGRES, REDIS], places=[WELL]) == []


@pytest.mark.parametrize(
    "server,problem,fix",
    [
        (
            replace(POSTGRES, status="zombie"),
            "has ended, and its parent has not taken notice",
            "end or restart its parent",
        ),
        (replace(POSTGRES, status="stopped"), "is halted", "kill -CONT 812"),
        (replace(REDIS, status="stopped"), "is halted", "kill -CONT 900"),
        (replace(POSTGRES, orphan=True), "whose server is gone still computes", "kill -QUIT 812"),
        (
            replace(POSTGRES, vanished=True),
            "data directory of a running PostgreSQL was deleted",
            "dump its data while it",
        ),
        (replace(POSTGRES, details=False), "not the one its postmaster.pid names", "kill -INT 812"),
        (replace(REDIS, uid=0, user="root"), "runs as root", "zcomm service start"),
        (replace(REDIS, listens=(("0.0.0.0", 6379),)), "listens for other machines", "bind 127.0.0.1 -::1"),
        (
            replace(POSTGRES, listens=(("::", 5432),)),
            "listens for other machines",
            "listen_addresses = 'localhost'",
        ),
    ],
)
def test_a_server_in_trouble_is_found(server, problem, fix):
    """One finding, with the pid and start as evidence and the command that mends it."""
    (finding,) = found(servers=[server])
    assert problem in finding.problem and fix in finding.fix
    assert finding.evidence["pid"] == server.pid and finding.evidence["since"]
    json.dumps(finding.as_dict())


def test_one_port_with_two_servers_is_found():
    """IPv4 leads to one, IPv6 to another: both are named."""
    servers = [
        replace(POSTGRES, listens=(("127.0.0.1", 5432),)),
        replace(POSTGRES, pid=813, directory=Path("/srv/other"), listens=(("::1", 5432),)),
    ]
    (finding,) = found(servers=servers)
    assert "port 5432 leads to different servers" in finding.problem
    assert [one["pid"] for one in finding.evidence["servers"]] == [812, 813]


def test_two_redis_in_one_directory_are_found():
    """Nothing in Redis keeps the second from overwriting the data of the first."""
    (finding,) = found(servers=[REDIS, replace(REDIS, pid=901, listens=(("127.0.0.1", 6380),))])
    assert "several servers work in /srv/redis" in finding.problem


def test_missing_programs_are_found():
    """Each kind of server that is not installed, with the way to get it."""
    missing = found(installations={kind.name: [] for kind in KINDS})
    assert [one.service for one in missing] == [kind.name for kind in KINDS]
    assert all(
        ("pip install 'zcomm[services]'" in one.fix) is bool(kind.programs.wheels)
        for one, kind in zip(missing, KINDS, strict=True)
    )


@pytest.mark.parametrize(
    "place,problems",
    [
        (replace(WELL, site=replace(PG_SITE, used=False), facts=NO_DIRECTORY), 0),
        (replace(WELL, site=replace(PG_SITE, used=False)), 1),
        (replace(WELL, facts=NO_DIRECTORY), 1),
    ],
)
def test_programs_are_missed_where_they_are_used(place: SiteFacts, problems: int):
    """A kind that nobody has started here is no problem; one with a directory, or that was to be started, is."""
    missing = [one for one in found(places=[place], installations={"postgresql": []}) if "installed" in one.problem]
    assert len(missing) == problems


def test_a_program_that_is_not_recognised_is_shown():
    """Its path and its words stand beside the finding, which would contradict what one sees on the PATH."""
    strange = {"redis": {Path("/opt/redis-server"): "Redis of the future"}}
    (finding,) = findings(Inventory(installations={"redis": []}, unrecognised=strange))
    assert finding.evidence["found"] == '/opt/redis-server says "Redis of the future" to --version'


LEFT = ProcessFacts(815, "postgres", status="running", started=1.7e9, uid=26, inside=True)


@pytest.mark.parametrize(
    "place,problem,fix",
    [
        (replace(WELL, facts=replace(CLUSTER, mode=0o755)), "has the mode 0755", "run: chmod 0700 /srv/pg"),
        (replace(WELL, facts=replace(CLUSTER, uid=4242)), "belongs to 4242", "run: sudo chown -R pg /srv/pg"),
        (
            replace(WELL, details=replace(DETAILS, cluster=ClusterFacts("15", 1))),
            "never finished",
            "mv /srv/pg /srv/pg.incomplete",
        ),
        (
            replace(WELL, facts=replace(CLUSTER, foreign=Path("/srv/pg/base/1/x"))),
            "does not belong to pg",
            "chown",
        ),
        (
            replace(WELL, details=replace(DETAILS, cluster=ClusterFacts("9.6", 3))),
            "made by PostgreSQL 9.6",
            "nothing was changed",
        ),
        (replace(WELL, free=2**20), "has 1 MB free of the 200 needed", "make room there"),
        (
            replace(WELL, details=replace(DETAILS, claim=Verdict(Claim.FALSE, "pid 1 (bash) is no PostgreSQL", 1))),
            "postmaster.pid is false",
            "mv /srv/pg/postmaster.pid /srv/pg/postmaster.pid.aside",
        ),
        (
            replace(WELL, details=replace(DETAILS, claim=Verdict(Claim.UNKNOWN, "may be", 1))),
            "neither be proved nor disproved",
            "sudo zcomm doctor",
        ),
        (
            replace(WELL, details=replace(DETAILS, claim=Verdict(Claim.GONE, "no process 1", 1, (LEFT,)))),
            "still uses the data directory",
            "kill -QUIT 815",
        ),
        (
            replace(WELL, unfinished=(Path("/srv/pg.new-12"),)),
            "interrupted initialisation",
            "mv /srv/pg.new-12 /srv/pg.new-12.aside",
        ),
        (
            replace(WELL, details=replace(DETAILS, trusting=((92, "host all all 127.0.0.1/32 trust"),))),
            "every local user without a password",
            "scram-sha-256",
        ),
        (
            replace(WELL, readable=(Path("/srv/pg/x.conf"),)),
            "every user of this machine may read",
            "chmod 0700 /srv/pg",
        ),
        (
            replace(WELL, holder=Holder(77, "nc", "nc -l 5432")),
            "port 5432 is taken by another program",
            "--port auto",
        ),
        (
            replace(WELL, log='2026 FATAL:  data directory "/srv/pg" has invalid permissions\n'),
            "the next would fail the same way",
            "chmod 0700",
        ),
    ],
)
def test_a_place_in_trouble_is_found(place, problem, fix):
    """One finding for one fault, with a fix that deletes nothing."""
    (finding,) = found(places=[place])
    assert problem in finding.problem and fix in finding.fix and finding.evidence
    assert not {"rm", "rmdir", "unlink"} & set(shlex.split(finding.fix.replace("'", "")))
    json.dumps(finding.as_dict())


def test_a_port_of_the_running_service_itself_is_no_finding():
    """Its own server may have it."""
    held = replace(WELL, holder=Holder(812, "postgres", "postgres -D /srv/pg"))
    assert found(servers=[POSTGRES], places=[held]) == []


def test_the_log_of_a_running_server_is_not_held_against_it():
    """An old complaint is over once the server runs."""
    assert found(servers=[POSTGRES], places=[replace(WELL, log="FATAL:  could not bind\n")]) == []


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that every account may pass."""
    path = Path(tempfile.mkdtemp(prefix="zcomm-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def own(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if ME == 0:
        os.chown(path, UID, UID)
    return path


def redis_server() -> Installation:
    servers = [
        one for one in find_all(RedisService.programs, os.environ) if ME or blocked_by(one.server, UID, ()) is None
    ]
    if not servers:
        pytest.skip("no Redis that an ordinary user may run")
    return servers[0]


@pytest.fixture
def redis(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    data = own(root / "redis")
    port = unused_port()
    account = {"user": UID, "group": UID, "extra_groups": []} if ME == 0 else {}
    running = subprocess.Popen(
        [
            redis_server().server,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--dir",
            data,
            "--daemonize",
            "no",
        ],
        cwd=data,
        env={"PATH": os.defpath},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **account,
    )
    wait_until_blocking(lambda: any(one.pid == running.pid and one.listens for one in running_servers()), "Redis")
    yield running
    running.send_signal(signal.SIGCONT)
    running.kill()
    running.wait()


def test_a_real_redis_is_seen_as_it_is(redis, root: Path):
    """Pid, owner, directory and port come from the running process."""
    (seen,) = [one for one in running_servers() if one.pid == redis.pid]
    assert seen.kind == "redis" and seen.uid == UID and seen.directory == root / "redis"
    assert [address for address, _ in seen.listens] == ["127.0.0.1"] and not seen.vanished


def test_a_halted_redis_and_its_deleted_directory_are_found(redis, root: Path):
    """SIGSTOP and a removed directory, with the pid as evidence; the fix works."""
    redis.send_signal(signal.SIGSTOP)
    wait_until_blocking(lambda: psutil.Process(redis.pid).status() == psutil.STATUS_STOPPED)
    shutil.rmtree(root / "redis")
    told = {one.problem: one for one in findings(look([], os.environ)) if one.evidence.get("pid") == redis.pid}
    assert set(told) == {
        "a Redis is halted: it accepts connections and answers none",
        "the data directory of a running Redis was deleted",
    }
    command = told["a Redis is halted: it accepts connections and answers none"].fix.split()
    subprocess.run(command, check=True)
    wait_until_blocking(lambda: psutil.Process(redis.pid).status() != psutil.STATUS_STOPPED)


def test_a_zombie_is_found():
    """A server that ended while its parent looks away."""
    running = subprocess.Popen(
        [redis_server().server, "--port", "0", "--unixsocket", "/nowhere/at/all"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until_blocking(lambda: psutil.Process(running.pid).status() == psutil.STATUS_ZOMBIE)
        told = [one for one in findings(look([], os.environ)) if one.evidence.get("pid") == running.pid]
        assert len(told) == 1 and "has ended" in told[0].problem
    finally:
        running.wait()


@pytest_twisted.ensureDeferred
async def test_a_real_directory_in_trouble_is_found(root: Path):
    """Files as they are on a disk: a false pid file, leftovers, trust, a taken port."""
    data = own(root / "data")
    for database in ("1", "4", "5"):
        (data / "base" / database).mkdir(parents=True)
    (data / "global").mkdir()
    (data / "PG_VERSION").write_text("15\n")
    (data / "postgresql.conf").touch()
    (data / "postmaster.pid").write_text("")
    (data / "pg_hba.conf").write_text("# all all trust\nlocal all all peer # trust\nhost all all ::1/128  trust\n")
    own(root / "data.new-123")
    if ME == 0:
        subprocess.run(["chown", "-R", str(UID), str(data)], check=True)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        place = site("postgresql", data, stranger.getsockname()[1])
        told = findings(await take_inventory([place], {"PATH": "/nonexistent", "POSTGRESQL_BIN_DIR": "/nonexistent"}))
    mine = {one.problem: one for one in told if str(root) in json.dumps(one.as_dict()) or "port" in one.problem}
    assert "its postmaster.pid is false, and PostgreSQL would believe it" in mine
    assert mine["an interrupted initialisation left a directory behind"].evidence["path"] == f"{data}.new-123"
    trust = mine["PostgreSQL lets in every local user without a password"]
    assert trust.evidence["line"] == "3: host all all ::1/128 trust"
    assert any(problem.startswith(f"its port {place.port} is taken") for problem in mine)
    for one in mine.values():
        if one.fix.startswith("mv "):
            subprocess.run(shlex.split(one.fix), check=True)
    assert (data / "postmaster.pid.aside").exists() and (root / "data.new-123.aside").exists()


@pytest.mark.parametrize(
    "content,problem",
    [
        (b"", "is empty or no snapshot"),
        (b"VALKEY080 more", "has the format VALKEY 80"),
        (b"REDIS0010 more", None),
    ],
)
def test_a_snapshot_that_no_server_here_reads_is_found(root: Path, content, problem):
    """A broken or newer snapshot is named before Redis loops over it."""
    data = own(root / "redis")
    (data / "dump.rdb").write_bytes(content)
    if ME == 0:
        os.chown(data / "dump.rdb", UID, UID)
    place = look_at_site(site("redis", data))
    told = [one.problem for one in found(places=[place])]
    assert (len(told) == 1 and problem in told[0]) if problem else told == []


def test_a_snapshot_that_would_be_ignored_is_found(root: Path):
    """appendonly yes over an existing snapshot starts empty."""
    data = own(root / "redis")
    (data / "dump.rdb").write_bytes(b"REDIS0010 more")
    (data / "redis.conf").write_text("# appendonly no\nappendonly yes\n")
    if ME == 0:
        subprocess.run(["chown", "-R", str(UID), str(data)], check=True)
    place = look_at_site(site("redis", data))
    assert any("snapshot would be ignored" in one.problem for one in found(places=[place]))
    (data / "appendonlydir").mkdir()
    if ME == 0:
        os.chown(data / "appendonlydir", UID, UID)
    place = look_at_site(site("redis", data))
    assert found(places=[place]) == []
