"""The inventory of this machine: server programs, running servers, data directories. Looks, and changes nothing.

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

from zcomm.network import find_holder, is_free
from zcomm.services.examination import RunningServer, ServiceSite, SiteFacts
from zcomm.services.kinds import KINDS
from zcomm.services.machine.directories import look_at_directory
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.logfile import LogFile
from zcomm.services.machine.programs import find_all, find_unrecognised
from zcomm.services.supervision.kind import KnownKind

__all__ = ["Inventory", "look", "look_at_site", "running_servers", "take_inventory"]

#: Every file of a data directory is looked at, up to this many.
OWNERS_LOOKED_AT = 200_000

#: Seconds an ended process may wait for its parent before it is reported.
ZOMBIE_PATIENCE = 2.5

Kinds = Sequence[type[KnownKind]]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The servers, services and processes that were looked at.

    :ivar kinds: the kinds of servers that were looked for.
    :ivar installations: by the name of the kind.
    :ivar unrecognised: what programs of a server's name said instead of its version, by the name of the kind.
    """

    kinds: Kinds = KINDS
    installations: Mapping[str, Sequence[Installation]] = field(default_factory=dict)
    unrecognised: Mapping[str, Mapping[Path, str]] = field(default_factory=dict)
    servers: Sequence[RunningServer] = ()
    sites: Sequence[SiteFacts] = ()

    def kind(self, name: str) -> type[KnownKind]:
        """The kind of that name."""
        return next(kind for kind in self.kinds if kind.name == name)


def take_inventory(
    sites: Sequence[ServiceSite], environ: Mapping[str, str], kinds: Kinds = KINDS, reactor: Any = None
) -> Deferred[Inventory]:
    """Look at the machine and at the services as they are set up, in a thread.

    :param environ: where programs are looked for, see :func:`zcomm.services.machine.programs.candidates`.
    :return: fires with the :class:`Inventory`.
    """
    if reactor is None:
        from twisted.internet import reactor
    return deferToThreadPool(reactor, reactor.getThreadPool(), look, sites, environ, kinds)


def look(sites: Sequence[ServiceSite], environ: Mapping[str, str], kinds: Kinds = KINDS) -> Inventory:
    """As :func:`take_inventory`, but **blocks**."""
    return Inventory(
        kinds=kinds,
        installations={kind.name: find_all(kind.programs, environ) for kind in kinds},
        unrecognised={kind.name: find_unrecognised(kind.programs, environ) for kind in kinds},
        servers=running_servers(kinds),
        sites=[look_at_site(site, kinds) for site in sites],
    )


def running_servers(kinds: Kinds = KINDS) -> list[RunningServer]:
    """Every server of these kinds that this user may see; the children of a server are left out."""
    by_process = {name: kind for kind in kinds for name in kind.examiner.processes}
    listening = _listeners()
    families: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] in by_process:
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
                kind = by_process[process.info["name"]]
                found.append(_facts(kind, process, tuple(sorted(listening.get(process.pid, ())))))
        except psutil.Error:
            continue
    return sorted(found, key=lambda one: (one.kind, one.started, one.pid))


def _facts(kind: type[KnownKind], process: psutil.Process, listens: tuple[tuple[str, int], ...]) -> RunningServer:
    status = process.status()
    directory, vanished, title = None, False, ""
    if status != psutil.STATUS_ZOMBIE:
        try:
            directory = Path(process.cwd())
            title = " ".join(process.cmdline())
            vanished = _deleted(process.pid)
        except psutil.AccessDenied:
            pass
    return RunningServer(
        kind=kind.name,
        pid=process.pid,
        name=process.name(),
        user=process.username(),
        uid=process.uids().real,
        status=status,
        started=process.create_time(),
        directory=directory,
        vanished=vanished,
        listens=listens,
        orphan=kind.examiner.is_orphan(title),
        details=kind.examiner.look_at_server(process, directory) if directory and not vanished else None,
    )


def _deleted(pid: int) -> bool:
    """Whether the working directory of a process has no name any more; Linux alone tells."""
    try:
        return os.stat(f"/proc/{pid}/cwd").st_nlink == 0
    except OSError:
        return False


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


def look_at_site(site: ServiceSite, kinds: Kinds = KINDS) -> SiteFacts:
    """One service's directory, port and log; **blocks**."""
    (kind,) = [kind for kind in kinds if kind.name == site.kind]
    gids = sorted(site.account.groups | {site.account.gid})
    facts = look_at_directory(site.data_dir, site.account.uid, gids, OWNERS_LOOKED_AT)
    there = facts.kind == "directory"
    taken = site.port and not is_free(site.port, ("127.0.0.1", "::1"))
    beside, name = site.data_dir.parent, site.data_dir.name
    unfinished = beside.glob(f"{name}.new-*") if os.access(beside, os.R_OK | os.X_OK) else ()
    return SiteFacts(
        site=site,
        facts=facts,
        free=_free(site.data_dir),
        holder=find_holder(site.port) if taken else None,
        unfinished=tuple(sorted(unfinished)),
        readable=_readable(site.data_dir) if there else (),
        log=LogFile(site.log).tail() if site.log is not None else "",
        details=kind.examiner.look_at_site(site, facts),
    )


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
