"""Whether a postmaster.pid is still true: decisions on facts, and the same with a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.localservers import words_of
from support.waiting import wait_until_blocking

from zcomm.services.kinds.postgresql.lockfile import (
    Claim,
    PidFile,
    ProcessFacts,
    Verdict,
    judge_claim,
    look_at_claim,
    look_at_process,
    move_aside,
    parse_pid_file,
    processes_in,
)
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.machine.account import blocked_by
from zcomm.services.machine.programs import find_all

ME = os.geteuid()
UID = 65534 if ME == 0 else ME
TEXT = "812\n/srv/data\n1700000000\n5432\n/tmp\n127.0.0.1\n 1234 5678\nready   \n"
POSTGRES = ProcessFacts(812, "postgres", status="sleeping", started=1700000000.0, uid=UID, inside=True)


@pytest.mark.parametrize(
    "text,expected",
    [
        (
            TEXT,
            PidFile(
                812, "/srv/data", started=1700000000, port=5432, socket_dir="/tmp", address="127.0.0.1", status="ready"
            ),
        ),
        ("812\n/srv/data\n1700000000\n5432\n", PidFile(812, "/srv/data", started=1700000000, port=5432)),
        ("-812\n/srv/data\n", PidFile(812, "/srv/data")),
        ("812", PidFile(812)),
        ("", None),
        ("\n\n", None),
        ("abc\n", None),
        ("0\n", None),
        ("9" * 40, None),
        ("٣\n", None),
        ("12x\n", None),
        ("\0\0\0", None),
    ],
)
def test_the_file_is_read_as_far_as_it_was_written(text, expected):
    """Half a file has half the facts; without a pid there are none."""
    assert parse_pid_file(text) == expected


@pytest.mark.parametrize(
    "text,process,inside,claim,proof",
    [
        (None, None, [], Claim.ABSENT, "nobody holds"),
        (None, None, [POSTGRES], Claim.ABSENT, "pid 812 (postgres"),
        (TEXT, POSTGRES, [POSTGRES], Claim.LIVE, "works in the directory"),
        (TEXT, None, [], Claim.GONE, "there is no process 812"),
        (
            TEXT,
            replace(POSTGRES, status=psutil.STATUS_ZOMBIE, inside=None),
            [],
            Claim.ZOMBIE,
            "waits for its parent",
        ),
        (TEXT, replace(POSTGRES, name="bash", inside=False), [], Claim.FALSE, "is no PostgreSQL"),
        (TEXT, replace(POSTGRES, name="bash", inside=None), [], Claim.FALSE, "is no PostgreSQL"),
        (TEXT, replace(POSTGRES, name="bash", inside=False, uid=UID + 1), [], Claim.GONE, "is no PostgreSQL"),
        (TEXT, replace(POSTGRES, inside=None, uid=UID + 1), [], Claim.GONE, "is another user's"),
        (TEXT, replace(POSTGRES, inside=False), [], Claim.FALSE, "works in another directory"),
        (TEXT, replace(POSTGRES, inside=None), [], Claim.UNKNOWN, "may not see where it works"),
        (
            TEXT,
            replace(POSTGRES, inside=None, started=1700000400.0),
            [],
            Claim.FALSE,
            "started after the file",
        ),
        (
            TEXT,
            replace(POSTGRES, inside=None, started=1600000000.0),
            [],
            Claim.UNKNOWN,
            "may be its PostgreSQL",
        ),
        (TEXT, replace(POSTGRES, name="bash"), [], Claim.UNKNOWN, "though it is no PostgreSQL"),
        ("", None, [], Claim.FALSE, "empty, and no process"),
        ("", None, [POSTGRES], Claim.LIVE, "empty, but pid 812"),
        ("garbage", None, [], Claim.FALSE, "damaged, and no process"),
        (
            "garbage",
            None,
            [replace(POSTGRES, status=psutil.STATUS_ZOMBIE)],
            Claim.FALSE,
            "damaged, and no process",
        ),
    ],
)
def test_a_claim_is_judged_on_evidence(text, process, inside, claim, proof):
    """Only what was disproved may be moved aside."""
    verdict = judge_claim(text, process, inside, UID)
    assert verdict.claim is claim and proof in verdict.proof


def test_backends_that_outlived_their_server_are_named():
    """The postmaster is gone, one of its children still computes."""
    child = replace(POSTGRES, pid=900)
    assert judge_claim(TEXT, None, [child], UID).left == (child,)
    assert judge_claim(None, None, [child], UID).left == (child,)


@pytest.mark.parametrize("claim", sorted(set(Claim) - {Claim.FALSE, Claim.GONE}, key=str))
def test_a_claim_that_was_not_disproved_stays(tmp_path: Path, claim):
    """Moving the file of a living server aside is a ValueError."""
    (tmp_path / "postmaster.pid").write_text(TEXT)
    with pytest.raises(ValueError, match="postmaster.pid stays"):
        move_aside(tmp_path, Verdict(claim, "proof"))
    assert (tmp_path / "postmaster.pid").read_text() == TEXT


def test_a_disproved_claim_is_moved_and_kept(tmp_path: Path):
    """The file can be looked at afterwards."""
    (tmp_path / "postmaster.pid").write_text("")
    verdict = look_at_claim(tmp_path, UID)
    assert verdict.claim is Claim.FALSE
    assert move_aside(tmp_path, verdict).read_text() == ""
    assert look_at_claim(tmp_path, UID).claim is Claim.ABSENT


def test_a_file_that_cannot_be_read_is_not_judged(tmp_path: Path):
    """A directory of that name proves nothing."""
    (tmp_path / "postmaster.pid").mkdir()
    assert look_at_claim(tmp_path, UID).claim is Claim.UNKNOWN


def test_a_living_process_that_is_no_server_is_recognised(tmp_path: Path):
    """The pid was given to another program of the same user since."""
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}\n1700000000\n")
    verdict = look_at_claim(tmp_path, ME)
    assert verdict.claim is Claim.FALSE and f"pid {os.getpid()}" in verdict.proof


def test_a_zombie_is_recognised(tmp_path: Path):
    """A process nobody has collected holds nothing."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until_blocking(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    (tmp_path / "postmaster.pid").write_text(f"{child.pid}\n")
    assert look_at_claim(tmp_path, ME).claim is Claim.ZOMBIE
    child.wait()
    assert look_at_claim(tmp_path, ME).claim is Claim.GONE
    assert look_at_process(child.pid, tmp_path) is None


class Cluster:
    """A real PostgreSQL, started without zComm."""

    def __init__(self, root: Path):
        found = [
            one
            for one in find_all(PostgreSQLService.programs, os.environ)
            if ME or blocked_by(one.server, UID, ()) is None
        ]
        if not found:
            pytest.skip("no PostgreSQL that an ordinary user may run")
        self.server = found[0]
        self.data = root / "data"
        self.data.mkdir(mode=0o700)
        self.account = {"user": UID, "group": UID, "extra_groups": []} if ME == 0 else {}
        if ME == 0:
            os.chown(self.data, UID, UID)
        self.run("initdb", "-D", self.data, "-N", "-A", "trust", "--locale=C.UTF-8")
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, tool: str, *argv: object) -> str:
        return subprocess.run(
            [self.server.tool(tool), *map(str, argv)],
            env={"PATH": os.defpath},
            cwd="/",
            check=True,
            capture_output=True,
            text=True,
            **self.account,
        ).stdout

    def start(self) -> int:
        command = [
            str(self.server.server),
            "-D",
            str(self.data),
            "-c",
            "listen_addresses=",
            "-k",
            str(self.data),
        ]
        with open(self.data.parent / "log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                env={"PATH": os.defpath},
                cwd="/",
                start_new_session=True,
                stdout=log,
                stderr=log,
                **self.account,
            )
        wait_until_blocking(lambda: self.file().endswith("ready"), "PostgreSQL to be ready")
        return self.process.pid

    def file(self) -> str:
        try:
            return (self.data / "postmaster.pid").read_text().rstrip()
        except FileNotFoundError:
            return ""

    def end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="zcomm-test-", dir="/tmp"))
    root.chmod(0o755)
    made = None
    try:
        made = Cluster(root)
        yield made
    finally:
        if made is not None:
            made.end(signal.SIGQUIT)
            # What lived on is ended by what it is, not by a name.
            for left in processes_in(made.data):
                os.kill(left.pid, signal.SIGKILL)
        shutil.rmtree(root)


def test_a_running_server_holds_its_directory(cluster: Cluster):
    """The postmaster named in its file, seen from outside."""
    pid = cluster.start()
    verdict = look_at_claim(cluster.data, UID)
    assert verdict.claim is Claim.LIVE and verdict.pid == pid
    assert pid in [one.pid for one in processes_in(cluster.data)]
    cluster.end(signal.SIGINT)
    assert look_at_claim(cluster.data, UID).claim is Claim.ABSENT


@pytest.mark.parametrize("content", ["", "garbage\n"])
def test_an_empty_or_damaged_file_of_a_running_server_is_no_invitation(cluster: Cluster, content):
    """The file says nothing, the processes in the directory say it all."""
    cluster.start()
    whole = (cluster.data / "postmaster.pid").read_text()
    (cluster.data / "postmaster.pid").write_text(content)
    verdict = look_at_claim(cluster.data, UID)
    (cluster.data / "postmaster.pid").write_text(whole)
    assert verdict.claim is Claim.LIVE
    cluster.end(signal.SIGINT)


@pytest.mark.parametrize("content", ["", "garbage\n", None])
def test_postgresql_starts_again_once_a_false_claim_is_moved_aside(cluster: Cluster, content):
    """What PostgreSQL itself refuses for ever is mended: empty, damaged, another process's pid."""
    file = cluster.data / "postmaster.pid"
    stranger = subprocess.Popen([sys.executable if ME else "/bin/cat"], stdin=subprocess.PIPE, **cluster.account)
    try:
        file.write_text(content if content is not None else f"{stranger.pid}\n{cluster.data}\n1700000000\n")
        if ME == 0:
            os.chown(file, UID, UID)
        with pytest.raises(subprocess.CalledProcessError):
            cluster.run("postgres", "-D", cluster.data, "-c", "listen_addresses=", "-k", cluster.data)
        verdict = look_at_claim(cluster.data, UID)
        assert verdict.claim is Claim.FALSE
        move_aside(cluster.data, verdict)
        cluster.start()
    finally:
        stranger.communicate()
    cluster.end(signal.SIGINT)


def test_a_backend_that_outlives_a_killed_server_is_found(cluster: Cluster):
    """It keeps the shared memory, so the next start would fail; it is named with its pid."""
    cluster.start()
    sql = "do $$ begin loop end loop; end $$"
    client = subprocess.Popen(
        [
            cluster.server.tool("psql"),
            "-h",
            cluster.data,
            "-U",
            "nobody" if ME == 0 else psutil.Process().username(),
            "-d",
            "postgres",
            "-c",
            sql,
        ],
        env={"PATH": os.defpath},
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **cluster.account,
    )

    def busy() -> bool:
        return any("DO" in " ".join(words_of(one.pid)) for one in processes_in(cluster.data))

    wait_until_blocking(busy, "a backend that computes")
    cluster.end(signal.SIGKILL)
    wait_until_blocking(lambda: len(processes_in(cluster.data)) == 1, "the idle backends to leave")
    verdict = look_at_claim(cluster.data, UID)
    assert verdict.claim is Claim.GONE and len(verdict.left) == 1
    os.kill(verdict.left[0].pid, signal.SIGKILL)
    client.wait()
    wait_until_blocking(lambda: not processes_in(cluster.data), "the last backend to end")
    cluster.start()
    cluster.end(signal.SIGINT)
