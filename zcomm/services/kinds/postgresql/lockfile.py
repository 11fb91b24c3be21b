"""``postmaster.pid``: who holds a PostgreSQL data directory, and whether the claim is still true.

PostgreSQL refuses to start while the file names a process of its own user that is alive, whatever that
process is, or when the file is empty or damaged. Deleting it on suspicion has destroyed databases; so it is
judged on evidence about processes, and only a claim that was *disproved* is moved aside, never deleted. None is left
where it is for the next server: with its number, which in a container comes again at each start, it would pass for that
server's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from enum import Enum
from pathlib import Path

import psutil

__all__ = [
    "Claim",
    "PidFile",
    "ProcessFacts",
    "Verdict",
    "judge_claim",
    "look_at_claim",
    "look_at_process",
    "move_aside",
    "parse_pid_file",
    "processes_in",
]

_PROGRAMS = ("postgres", "postmaster")
#: Seconds by which the start time in the file and that of its process may differ: the clock of one has a
#: resolution of 10 ms, that of the other of a second, and the wall clock may have been set in between.
_START_TOLERANCE = 60.0


@dataclass(frozen=True)
class PidFile:
    """The lines of a ``postmaster.pid``, as far as they were written.

    :ivar pid: the postmaster.
    :ivar data_dir: its data directory.
    :ivar started: when it started, seconds since the epoch.
    :ivar port: its port.
    :ivar socket_dir: where its Unix socket is.
    :ivar address: the first address it listens on.
    :ivar status: ``starting``, ``ready``, ``stopping`` or ``standby``.
    """

    pid: int
    data_dir: str = ""
    _: KW_ONLY
    started: int = 0
    port: int = 0
    socket_dir: str = ""
    address: str = ""
    status: str = ""


@dataclass(frozen=True)
class ProcessFacts:
    """The facts about a process, as seen from outside.

    :ivar inside: whether its working directory is the data directory (a postmaster and its children never
        leave it); None when this user may not know.
    """

    pid: int
    name: str
    _: KW_ONLY
    status: str
    started: float
    uid: int
    inside: bool | None = None

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"pid {self.pid} ({self.name}, uid {self.uid}, since {since})"


class Claim(Enum):
    """The standing of a pid file: whether a server holds the directory."""

    #: There is none.
    ABSENT = "absent"
    #: A PostgreSQL runs in this directory.
    LIVE = "live"
    #: Its process is gone, or another user's; PostgreSQL sees that itself and goes on. It may be moved aside.
    GONE = "gone"
    #: Its process has ended but was not collected yet by its parent; it vanishes by itself.
    ZOMBIE = "zombie"
    #: Disproved, though PostgreSQL would believe it: it may be moved aside.
    FALSE = "false"
    #: Neither proved nor disproved: hands off.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """A :class:`Claim` and the evidence for it.

    :ivar proof: the evidence, for people.
    :ivar pid: the process it is about.
    :ivar left: processes of a dead server that still use the directory.
    """

    claim: Claim
    proof: str
    pid: int | None = None
    left: tuple[ProcessFacts, ...] = ()


def parse_pid_file(text: str) -> PidFile | None:
    """The content of a ``postmaster.pid``; None when it is empty or damaged (no pid in its first line)."""
    lines = [line.strip() for line in text.splitlines()] + [""] * 8
    pid = _number(lines[0].lstrip("-"))
    if not pid:
        return None
    return PidFile(
        pid,
        lines[1],
        started=_number(lines[2]),
        port=_number(lines[3]),
        socket_dir=lines[4],
        address=lines[5],
        status=lines[7],
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 15 else 0


def judge_claim(text: str | None, process: ProcessFacts | None, inside: Sequence[ProcessFacts], uid: int) -> Verdict:
    """Decide what a pid file is worth.

    :param text: its content, None when there is none.
    :param process: the process with the pid it names, None when there is no such process.
    :param inside: every PostgreSQL process whose working directory is the data directory.
    :param uid: the account the server runs as; PostgreSQL itself ignores the processes of others.
    """
    living = [one for one in inside if one.status != psutil.STATUS_ZOMBIE]
    if text is None:
        if living:
            proof = f"{living[0]} still uses the directory"
            return Verdict(Claim.ABSENT, proof, living[0].pid, tuple(living))
        return Verdict(Claim.ABSENT, "nobody holds the directory")
    parsed = parse_pid_file(text)
    if parsed is None:
        what = "empty" if not text.strip() else "damaged"
        if living:
            proof = f"the file is {what}, but {living[0]} works in the directory"
            return Verdict(Claim.LIVE, proof, living[0].pid)
        return Verdict(Claim.FALSE, f"the file is {what}, and no process works in the directory")
    others = tuple(one for one in living if one.pid != parsed.pid)
    if process is None:
        return Verdict(Claim.GONE, f"there is no process {parsed.pid}", parsed.pid, others)
    if process.status == psutil.STATUS_ZOMBIE:
        return Verdict(Claim.ZOMBIE, f"{process} has ended and waits for its parent", parsed.pid, others)
    if process.inside:
        if process.name in _PROGRAMS:
            return Verdict(Claim.LIVE, f"{process} works in the directory", parsed.pid)
        proof = f"{process} works in the directory, though it is no PostgreSQL"
        return Verdict(Claim.UNKNOWN, proof, parsed.pid)
    if process.name not in _PROGRAMS:
        return _disproved(process, uid, f"{process} is no PostgreSQL", others)
    if process.uid != uid:
        # A directory's server is its owner's.
        return _disproved(process, uid, f"{process} is another user's", others)
    if process.inside is False:
        return _disproved(process, uid, f"{process} works in another directory", others)
    if parsed.started and process.started - parsed.started > _START_TOLERANCE:
        return _disproved(process, uid, f"{process} started after the file was written", others)
    proof = f"{process} may be its PostgreSQL: this user may not see where it works"
    return Verdict(Claim.UNKNOWN, proof, parsed.pid)


def _disproved(process: ProcessFacts, uid: int, proof: str, left: tuple[ProcessFacts, ...]) -> Verdict:
    # Another user's process does not keep PostgreSQL from starting.
    claim = Claim.FALSE if process.uid == uid else Claim.GONE
    return Verdict(claim, proof, process.pid, left)


def look_at_claim(data_dir: Path, uid: int, name: str = "postmaster.pid") -> Verdict:
    """Read the pid file of *data_dir* and judge it; **blocks** for some milliseconds, changes nothing."""
    try:
        text: str | None = (data_dir / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = None
    except OSError as error:
        return Verdict(Claim.UNKNOWN, f"{name} cannot be read: {error.strerror}")
    parsed = parse_pid_file(text) if text is not None else None
    process = look_at_process(parsed.pid, data_dir) if parsed is not None else None
    return judge_claim(text, process, processes_in(data_dir), uid)


def look_at_process(pid: int, data_dir: Path) -> ProcessFacts | None:
    """The facts about a process, None when there is none with that pid."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return ProcessFacts(
                pid,
                process.name(),
                status=process.status(),
                started=process.create_time(),
                uid=process.uids().real,
                inside=_works_in(process, data_dir),
            )
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ProcessFacts(pid, "", status="", started=0.0, uid=-1)


def processes_in(data_dir: Path) -> list[ProcessFacts]:
    """Every PostgreSQL process that works in *data_dir*, as far as this user may know, oldest first."""
    found = []
    for process in psutil.process_iter(["name"]):
        if process.info["name"] in _PROGRAMS and _works_in(process, data_dir):
            facts = look_at_process(process.pid, data_dir)
            if facts is not None:
                found.append(facts)
    return sorted(found, key=lambda one: (one.started, one.pid))


def _works_in(process: psutil.Process, data_dir: Path) -> bool | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return os.path.samefile(process.cwd(), data_dir)
    except psutil.AccessDenied:
        return None
    except (psutil.Error, OSError):
        return False


def move_aside(data_dir: Path, verdict: Verdict, name: str = "postmaster.pid") -> Path:
    """Rename a disproved pid file (false or gone); call it with the lock of the data directory held.

    :return: its new name, ``postmaster.pid.aside`` (an older file of that name is replaced).
    :raises ValueError: when the claim was not disproved.
    """
    if verdict.claim not in (Claim.FALSE, Claim.GONE):
        raise ValueError(f"{name} stays: {verdict.proof}")
    aside = data_dir / f"{name}.aside"
    os.replace(data_dir / name, aside)
    return aside
