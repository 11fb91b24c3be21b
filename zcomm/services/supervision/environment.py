"""The environment that all services of one manager share, and the places of each one's files.

::

    <root>/services/<name>/          ours: the record, the lock
                          data/      the server's: its data, unless another directory was asked for
                          run/       the server's: sockets, private to it
    <root>/log/<name>.log

The root is zComm's data directory, whoever runs zComm: what is moved or backed up with it is all there is. What zComm
makes as root can be passed (:func:`zcomm.config.make_directory`); root's own directories on the way that are closed,
such as its home, are opened for the account of the server alone (:func:`zcomm.services.machine.account.let_pass`).
"""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.config import make_directory
from zcomm.errors import ConfigError, DataDirectoryError
from zcomm.runtime.files import user_name
from zcomm.services.machine.account import Account, blocked_by, let_pass
from zcomm.services.machine.logfile import LogFile
from zcomm.services.machine.query import Address
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.supervision.launch import Tools, find_tools
from zcomm.services.supervision.probes import Reply

#: Asks the server at an address (the second argument) how it does, within seconds (the third).
Question = Callable[[Any, Address, float], Deferred[Reply]]

__all__ = ["LIFETIMES", "ServiceHome", "ServicesEnvironment", "make_private"]

#: ``session``: the servers end with zComm, however it ends. ``persistent``: they outlive it, and the
#: next zComm takes them over as they run.
LIFETIMES = ("session", "persistent")


@dataclass(frozen=True, kw_only=True)
class ServicesEnvironment:
    """The state that all services of one manager share.

    :ivar data_dir: zComm's data directory, absolute.
    :ivar environ: the environment settings are read from; handed in, never looked up.
    :ivar now: the time of day, for what people and other processes read.
    :ivar chance: a number from 0 up to 1, for the spread of waits.
    :ivar system_root: where earlier versions put root's servers that could not reach ``data_dir``.
    :ivar misses: unanswered liveness questions in a row that make a server count as hung.
    :ivar protocols: the questions that a probe may ask besides the general ones, by the name of the kind.
    :ivar space: bytes that must be free to make a new data directory, and to start in an old one.
    """

    data_dir: Path
    environ: Mapping[str, str]
    reactor: Any
    lifetime: str = "session"
    tools: Tools = field(default_factory=find_tools)
    policy: RestartPolicy = RestartPolicy()
    now: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random
    system_root: Path = Path("/var/lib/zcomm")
    misses: int = 3
    protocols: Mapping[str, Question] = field(default_factory=dict)
    space: tuple[int, int] = (200 << 20, 32 << 20)
    log_bytes: int = 10 << 20
    log_count: int = 3

    def __post_init__(self) -> None:
        if not self.data_dir.is_absolute():
            raise ConfigError("data_dir", f"{str(self.data_dir)!r} is not an absolute path")
        if self.lifetime not in LIFETIMES:
            raise ConfigError("lifetime", f"{self.lifetime!r} is neither session nor persistent")

    def former_home(self, name: str) -> Path:
        """The place an earlier version gave the service, if zComm was root and the data directory closed."""
        mark = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:12]
        return self.system_root / mark / "services" / name


def make_private(path: Path, account: Account, service: str, mode: int = 0o700) -> None:
    """Make a directory that belongs to ``account``; one that exists must belong to it already.

    :raises DataDirectoryError: when it is not ours to use.
    """
    try:
        os.mkdir(path, mode)
        if os.geteuid() == 0:
            os.chown(path, account.uid, account.gid)
        os.chmod(path, mode)
        return
    except FileExistsError:
        found = os.lstat(path)
    except OSError as error:
        raise DataDirectoryError(service, str(path), f"cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise DataDirectoryError(service, str(path), "is not a directory")
    if found.st_uid not in (account.uid, os.geteuid()) or found.st_mode & 0o022:
        quoted = shlex.quote(str(path))
        raise DataDirectoryError(
            service,
            str(path),
            "could be changed by somebody else",
            f"run: sudo chown {user_name(account.uid)} {quoted} && chmod go-w {quoted}",
        )


def _resolved(path: Path) -> Path:
    # What links lead to is judged as it is; where a link stands is judged before it is followed any further.
    return Path(os.path.realpath(path))


class ServiceHome:
    """The places of one service. Directories may be symbolic links, but for that of the sockets.

    :ivar root: see the module.
    :ivar directory: the service's own.
    """

    def __init__(self, environment: ServicesEnvironment, name: str):
        self.name = name
        self.root = _resolved(environment.data_dir)
        self.directory = _resolved(_resolved(self.root / "services") / name)
        self.record = self.directory / "state.json"
        self.data = _resolved(self.directory / "data")
        self.run = self.directory / "run"
        log = _resolved(self.root / "log") / f"{name}.log"
        self.log = LogFile(log, environment.log_bytes, environment.log_count)
        self._former = environment.former_home(name)

    def make(self) -> None:
        """Make what is missing of our own.

        :raises DataDirectoryError: when something is in the way.
        """
        try:
            make_directory(self.root)
        except OSError as error:
            raise DataDirectoryError(self.name, str(self.root), f"cannot be made: {error.strerror}") from error
        # Those above the server's own directories are ours, to be passed but not read by its account.
        passable = 0o711 if os.geteuid() == 0 else 0o700
        me = Account("", os.geteuid(), os.getegid())
        for path in (self.root, self.directory.parent, self.directory):
            make_private(path, me, self.name, passable)
        make_private(self.log.path.parent, me, self.name)

    def open_to(self, account: Account) -> list[Path]:
        """Let the account of the server reach its directory; those on the way that were changed for it.

        :raises DataDirectoryError: naming the directory that keeps it out, and what lets it in.
        """
        if os.geteuid() != 0 or account.uid == 0:
            return []
        changed = let_pass(self.directory, account)
        closed = blocked_by(self.directory, account.uid, account.groups | {account.gid}, wanted=1)
        if closed is not None:
            raise DataDirectoryError(
                self.name,
                str(self.directory),
                f"the server runs as {account.name}, which may not enter {closed}",
                f"run: sudo chmod o+x {shlex.quote(str(closed))}; or give another data directory with --data-dir",
            )
        return changed

    def require_moved(self) -> None:
        """Look for data that an earlier version put elsewhere.

        :raises DataDirectoryError: with the command that brings it here, while nothing is here.
        """
        former = self._former / "data"
        if os.geteuid() == 0 and former.is_dir() and not self.data.exists():
            move = shlex.join(["mv", str(former), str(self.data)])
            reason = f"an earlier zComm keeps the data of this service in {former}, outside the data directory"
            raise DataDirectoryError(self.name, str(self.data), reason, f"bring it here: {move}")

    def make_run(self, account: Account) -> None:
        """Make the directory of the sockets, or give it to ``account``; call it with the lock held.

        :raises DataDirectoryError: when something is in the way.
        """
        if os.geteuid() == 0 and self.run.is_dir() and not self.run.is_symlink():
            # Ours, in a directory that only root can change: the server had another account before.
            os.chown(self.run, account.uid, account.gid, follow_symlinks=False)
        make_private(self.run, account, self.name)
