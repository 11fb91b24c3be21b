"""What is on this machine: server programs, running servers, data directories. Looks, and changes nothing.

:mod:`zcomm.services.doctor.findings` decides what of it is wrong.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from zcomm.network import Holder, find_holder, is_free
from zcomm.services.kinds.postgresql.lockfile import Verdict, look_at_claim, parse_pid_file
from zcomm.services.supervision.account import Account
from zcomm.services.supervision.directories import DirectoryFacts, look_at_directory
from zcomm.services.supervision.installations import Installation
from zcomm.services.supervision.logfile import LogFile
from zcomm.services.supervision.programs import find_all

__all__ = ["LookedAt", "Place", "RunningServer", "Survey", "survey"]

#: Every file of a data directory is looked at, up to this many.
OWNERS_LOOKED_AT = 200_000

#: Seconds an ended process may wait for its parent before it is reported.
ZOMBIE_PATIENCE = 2.5

_KINDS = {
    "postgres": "postgresql",
    "postmaster": "postgresql",
    "redis-server": "redis",
    "valkey-server": "redis",
    "keydb-server": "redis",
}


@dataclass(frozen=True)
class Place:
    """A service as it is set up: where its data lies and how it would be run.

    :ivar kind: ``postgresql`` or ``redis``.
    :ivar account: who its server runs as.
    :ivar port: its port; 0 when none is settled yet.
    """

    service: str
    kind: str
    data_dir: Path
    account: Account
    port: int
    log: Path | None = None
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class RunningServer:
    """A PostgreSQL or Redis process on this machine, whoever started it.

    :ivar kind: ``postgresql`` or ``redis``.
    :ivar status: as psutil says it: ``sleeping``, ``stopped``, ``zombie``…
    :ivar started: seconds since the epoch.
    :ivar directory: its working directory, which is its data directory; None when this user may not know.
    :ivar vanished: whether that directory was deleted.
    :ivar backend: whether it is a child process of PostgreSQL whose server is gone.
    :ivar listens: the addresses and ports it listens on.
    :ivar claimed: for PostgreSQL, whether ``postmaster.pid`` of its directory names it.
    """

    kind: str
    pid: int
    name: str
    user: str
    uid: int
    status: str
    started: float
    directory: Path | None = None
    vanished: bool = False
    backend: bool = False
    listens: tuple[tuple[str, int], ...] = ()
    claimed: bool | None = None


@dataclass(frozen=True)
class LookedAt:
    """One :class:`Place`, looked at.

    :ivar claim: for PostgreSQL, what its ``postmaster.pid`` is worth.
    :ivar free: bytes free on its file system.
    :ivar holder: who has its port, None when it is free.
    :ivar unfinished: directories an interrupted initialisation left beside it.
    :ivar trusting: lines of ``pg_hba.conf`` that ask for no password: (number, line).
    :ivar readable: files with data or passwords that every user of the machine may read.
    :ivar snapshot: size of ``dump.rdb`` in bytes, None when there is none.
    :ivar append_only: whether there is an append-only file, which Redis loads instead of the snapshot.
    :ivar log: the end of its log.
    """

    place: Place
    facts: DirectoryFacts
    claim: Verdict | None = None
    free: int = 0
    holder: Holder | None = None
    unfinished: tuple[Path, ...] = ()
    trusting: tuple[tuple[int, str], ...] = ()
    readable: tuple[Path, ...] = ()
    snapshot: int | None = None
    append_only: bool = False
    log: str = ""


@dataclass(frozen=True)
class Survey:
    """Everything that was looked at."""

    installations: Mapping[str, Sequence[Installation]] = field(default_factory=dict)
    servers: Sequence[RunningServer] = ()
    places: Sequence[LookedAt] = ()


def survey(places: Sequence[Place], environ: Mapping[str, str], reactor: Any = None) -> Deferred[Survey]:
    """Look at the machine and at *places*, in a thread.

    :param environ: where programs are looked for, see :func:`zcomm.services.supervision.programs.candidates`.
    :return: fires with the :class:`Survey`.
    """
    if reactor is None:
        from twisted.internet import reactor
    return deferToThreadPool(reactor, reactor.getThreadPool(), look, places, environ)


def look(places: Sequence[Place], environ: Mapping[str, str]) -> Survey:
    """As :func:`survey`, but **blocks**."""
    installations = {kind: find_all(kind, environ) for kind in ("postgresql", "redis")}
    return Survey(installations, running_servers(), [look_at_place(place) for place in places])


def running_servers() -> list[RunningServer]:
    """Every PostgreSQL and Redis this user may see; the children of a server are left out."""
    listening = _listeners()
    families: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] in _KINDS:
            families[process.pid] = process
    # Some init processes take seconds to collect what ended; only what nobody collects is worth a word.
    # (psutil could wait for them, but collects the children of this process, which others wait for.)
    ended = [process for process in families.values() if process.info["status"] == psutil.STATUS_ZOMBIE]
    deadline = time.monotonic() + ZOMBIE_PATIENCE
    while any(process.is_running() for process in ended) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = []
    for process in families.values():
        try:
            with process.oneshot():
                if process.ppid() in families:
                    continue
                found.append(_facts(process, tuple(sorted(listening.get(process.pid, ())))))
        except psutil.Error:
            continue
    return sorted(found, key=lambda one: (one.kind, one.started, one.pid))


def _facts(process: psutil.Process, listens: tuple[tuple[str, int], ...]) -> RunningServer:
    name, status = process.name(), process.status()
    directory, vanished, title = None, False, ""
    if status != psutil.STATUS_ZOMBIE:
        try:
            directory = Path(process.cwd())
            title = " ".join(process.cmdline())
            vanished = _deleted(process.pid)
        except psutil.AccessDenied:
            pass
    kind = _KINDS[name]
    # A postmaster shows its command line; what shows "postgres: …" was forked by one.
    backend = kind == "postgresql" and title.startswith("postgres:")
    claimed = _claims(directory, process.pid) if kind == "postgresql" and directory and not vanished else None
    return RunningServer(
        kind,
        process.pid,
        name,
        process.username(),
        process.uids().real,
        status,
        process.create_time(),
        directory,
        vanished,
        backend,
        listens,
        claimed,
    )


def _deleted(pid: int) -> bool:
    """Whether the working directory of a process has no name any more; Linux alone tells."""
    try:
        return os.stat(f"/proc/{pid}/cwd").st_nlink == 0
    except OSError:
        return False


def _claims(directory: Path, pid: int) -> bool | None:
    try:
        parsed = parse_pid_file((directory / "postmaster.pid").read_text("utf-8", "replace"))
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return parsed is not None and parsed.pid == pid


def _listeners() -> dict[int, set[tuple[str, int]]]:
    listening: dict[int, set[tuple[str, int]]] = {}
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return listening
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.pid is not None and one.laddr:
            listening.setdefault(one.pid, set()).add((one.laddr.ip, one.laddr.port))
    return listening


def look_at_place(place: Place) -> LookedAt:
    """One service's directory, port and log; **blocks**."""
    gids = sorted(place.account.groups | {place.account.gid})
    facts = look_at_directory(place.data_dir, place.account.uid, gids, OWNERS_LOOKED_AT)
    there = facts.kind == "directory"
    postgresql, redis = place.kind == "postgresql" and there, place.kind == "redis" and there
    taken = place.port and not is_free(place.port, ("127.0.0.1", "::1"))
    beside, name = place.data_dir.parent, place.data_dir.name
    unfinished = beside.glob(f"{name}.new-*") if os.access(beside, os.R_OK | os.X_OK) else ()
    claimed = postgresql and facts.version is not None
    return LookedAt(
        place,
        facts,
        look_at_claim(place.data_dir, place.account.uid) if claimed else None,
        _free(place.data_dir),
        find_holder(place.port) if taken else None,
        tuple(sorted(unfinished)),
        _trusting(place.data_dir / "pg_hba.conf") if postgresql else (),
        _readable(place.data_dir) if there else (),
        _size(place.data_dir / "dump.rdb") if redis else None,
        redis and (place.data_dir / "appendonlydir").is_dir(),
        LogFile(place.log).tail() if place.log is not None else "",
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _free(path: Path) -> int:
    while True:
        try:
            found = os.statvfs(path)
        except OSError:
            if path == path.parent:
                return 0
            path = path.parent
            continue
        return found.f_bavail * found.f_frsize


def _trusting(path: Path) -> tuple[tuple[int, str], ...]:
    """The lines that let somebody in without a password; a peer's own account on a socket is a proof."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    return tuple(
        (number, " ".join(line.split()))
        for number, line in enumerate(lines, 1)
        if not line.lstrip().startswith("#") and "trust" in line.split("#")[0].split()[3:]
    )


def _readable(directory: Path) -> tuple[Path, ...]:
    """Files that every user may read, in a directory that every user may enter."""
    try:
        if not directory.stat().st_mode & stat.S_IXOTH:
            return ()
        return tuple(
            path
            for path in sorted(directory.iterdir())
            if path.suffix in (".rdb", ".conf", ".aof", ".json")
            and path.is_file()
            and path.stat().st_mode & stat.S_IROTH
        )
    except OSError:
        return ()
