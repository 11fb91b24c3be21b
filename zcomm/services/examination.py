"""The values of an examination by the doctor, and the interface by which a kind of server adds its knowledge."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from zcomm.errors import DataDirectoryError, ServiceError
from zcomm.network import Holder
from zcomm.services.machine.account import Account
from zcomm.services.machine.directories import DirectoryFacts
from zcomm.services.machine.installations import Installation

__all__ = ["Examiner", "Finding", "RunningServer", "ServiceSite", "SiteFacts", "complaint", "evidence_of"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    :ivar service: the service or kind of server it is about.
    :ivar problem: what is wrong, in one sentence.
    :ivar evidence: what shows it: pid, start, owner, version, path, the line of a file.
    :ivar fix: the command or setting that mends it and can be undone.
    """

    service: str
    problem: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON values, for programs."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ServiceSite:
    """A service as it is set up: where its data lies and how it would be run.

    :ivar kind: the name of its kind.
    :ivar account: the one that its server runs as.
    :ivar port: its port; 0 when none is settled yet.
    :ivar used: whether it was ever to be started here, or is declared by the user.
    """

    service: str
    kind: str
    data_dir: Path
    account: Account
    port: int
    log: Path | None = None
    host: str = "127.0.0.1"
    used: bool = True


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server process of a known kind on this machine, whoever started it.

    :ivar kind: the name of its kind.
    :ivar status: as psutil says it: ``sleeping``, ``stopped``, ``zombie``…
    :ivar started: seconds since the epoch.
    :ivar directory: its working directory, which is its data directory; None when this user may not know.
    :ivar vanished: whether that directory was deleted.
    :ivar listens: the addresses and ports it listens on.
    :ivar orphan: whether it is a child process of a server that is gone.
    :ivar details: what :meth:`Examiner.look_at_server` saw.
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
    listens: tuple[tuple[str, int], ...] = ()
    orphan: bool = False
    details: Any = None


@dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """One :class:`ServiceSite`, looked at.

    :ivar free: bytes free on its file system.
    :ivar holder: the process that has its port, None when it is free.
    :ivar unfinished: directories an interrupted initialisation left beside it.
    :ivar readable: files with data or passwords that every user of the machine may read.
    :ivar log: the end of its log.
    :ivar details: what :meth:`Examiner.look_at_site` saw.
    """

    site: ServiceSite
    facts: DirectoryFacts
    free: int = 0
    holder: Holder | None = None
    unfinished: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    log: str = ""
    details: Any = None


class Examiner(ABC):
    """The checks of ``zcomm doctor`` for one kind of server. Methods that look **block**; those that judge do no I/O.

    :ivar title: its name for people.
    :ivar processes: the names of its server processes.
    :ivar end: the signal that ends such a server in good order, as ``kill`` takes it.
    :ivar loopback: the setting that keeps it from listening for other machines.
    """

    title: str
    processes: Sequence[str]
    end: str = "TERM"
    loopback: str = ""

    @abstractmethod
    def look_at_site(self, site: ServiceSite, facts: DirectoryFacts) -> Any:
        """Read the facts of a data directory that only this kind has, for :attr:`SiteFacts.details`."""

    @abstractmethod
    def judge_site(self, seen: SiteFacts, found: Sequence[Installation]) -> Iterator[Finding]:
        """Yield the faults of the data directory, or of the programs that ought to open it.

        :param found: the installations of this kind.
        """

    def is_orphan(self, title: str) -> bool:
        """Whether a process with this command line, and no parent of its kind, was forked by a server that is gone."""
        return False

    def look_at_server(self, process: psutil.Process, directory: Path) -> Any:
        """Read the facts of a running server that only this kind has, for :attr:`RunningServer.details`."""
        return None

    def judge_server(self, server: RunningServer) -> Iterator[Finding]:
        """Yield the faults of a running server that only this kind can have."""
        return iter(())

    def judge_servers(self, servers: Sequence[RunningServer]) -> Iterator[Finding]:
        """Yield the faults of several running servers of this kind taken together."""
        return iter(())


def complaint(service: str, judge: Callable[[], Any], evidence: Mapping[str, Any]) -> Iterator[Finding]:
    """Run a check, and yield its error as a finding."""
    try:
        judge()
    except DataDirectoryError as error:
        yield Finding(service, error.reason, {**evidence, "path": error.path}, error.fix)
    except ServiceError as error:
        yield Finding(service, error.reason, evidence, error.fix)


def evidence_of(server: RunningServer) -> dict[str, Any]:
    """The facts that identify the process of a finding."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(server.started))
    told: dict[str, Any] = {"pid": server.pid, "program": server.name, "user": server.user, "since": since}
    if server.directory is not None:
        told["directory"] = str(server.directory)
    if server.listens:
        told["listens"] = [f"{address}:{port}" for address, port in server.listens]
    return told
