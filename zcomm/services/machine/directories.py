"""Data directories, ports and space: what must hold before a server is spawned, with a typed error and its repair.

A server that finds its directory, port or socket wrong exits with status 1 and a line in its log, some of
them misleading; found beforehand, the same thing has a name, a reason and the one command that mends it.
The ``look_at_…`` and ``read_…`` functions do the I/O (call them in a thread), the ``judge_…`` functions only
decide. Nothing here changes, creates or deletes a file.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.config import has_control
from zcomm.errors import DataDirectoryError, PortInUse, ServiceError
from zcomm.network import Holder, check_port, port_holder
from zcomm.runtime.files import user_name
from zcomm.services.machine.account import blocked_by

__all__ = [
    "DirectoryFacts",
    "absolute_path",
    "judge_directory",
    "judge_space",
    "look_at_directory",
    "require_port",
    "require_space",
    "socket_directory",
]

#: Bytes that must be free before a server starts: WAL segments, a snapshot, logs.
SPACE_NEEDED = 200 * 1024 * 1024
#: Files looked at for a foreign owner before a start; ``zcomm doctor`` looks at all.
OWNERS_LOOKED_AT = 3000
#: The longest path of a Unix socket in bytes (the size of ``sun_path`` without its final NUL).
SOCKET_PATH_MAX = {"linux": 107, "darwin": 103}


@dataclass(frozen=True)
class DirectoryFacts:
    """The facts about a data directory.

    :ivar path: as it was asked for.
    :ivar kind: ``missing``, ``directory``, ``other`` (a file…) or ``hidden`` (not reachable for us).
    :ivar uid: its owner.
    :ivar mode: its permission bits.
    :ivar names: what lies in it, sorted.
    :ivar foreign: the first file inside with another owner than the directory.
    :ivar blocked: the directory on the way that the service's account may not pass.
    :ivar read_only: whether it is on a file system that is mounted read-only.
    """

    path: Path
    kind: str = "missing"
    _: KW_ONLY
    uid: int = -1
    mode: int = 0
    names: tuple[str, ...] = ()
    foreign: Path | None = None
    blocked: Path | None = None
    read_only: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing is in it; the ``lost+found`` of a fresh file system does not count."""
        return not set(self.names) - {"lost+found"}

    def strange(self, files: Collection[str]) -> bool:
        """Whether it holds something, and none of the ``files`` by which a server's own directory is known."""
        return not (self.empty or set(files) & set(self.names))


def absolute_path(service: str, value: object, what: str = "data directory") -> Path:
    """*value* as a path that means the same wherever zComm was started.

    :raises DataDirectoryError: for a relative path, ``~``, an empty one, control characters, or no path at all.
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(value, bytes):
        raise DataDirectoryError(service, repr(value), f"is not a path for a {what}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text.strip() or has_control(text):
        raise DataDirectoryError(service, repr(text), f"is not a path for a {what}")
    if not os.path.isabs(text):
        meant = os.path.expanduser(text) if text.startswith("~") else os.path.join("/", "full", "path", text)
        raise DataDirectoryError(service, text, f"the {what} must be an absolute path", f"write {meant}")
    return Path(os.path.normpath(text))


def look_at_directory(path: Path, uid: int, gids: Sequence[int] = (), files: int = OWNERS_LOOKED_AT) -> DirectoryFacts:
    """The facts about *path* for a server that runs as *uid*; **blocks**. Never raises for what it finds.

    :param files: how many files inside are looked at for a foreign owner.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return DirectoryFacts(path)
    except NotADirectoryError:
        return DirectoryFacts(path, "other")
    except OSError:
        return DirectoryFacts(path, "hidden")
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        return DirectoryFacts(path, "other", uid=status.st_uid, mode=mode)
    try:
        blocked = blocked_by(path.parent, uid, gids, wanted=1)
        names = tuple(sorted(os.listdir(path)))
    except OSError:
        return DirectoryFacts(path, "hidden", uid=status.st_uid, mode=mode)
    return DirectoryFacts(
        path,
        "directory",
        uid=status.st_uid,
        mode=mode,
        names=names,
        foreign=_first_foreign(path, status.st_uid, files),
        blocked=blocked,
        read_only=bool(os.statvfs(path).f_flag & os.ST_RDONLY),
    )


def judge_directory(
    service: str,
    facts: DirectoryFacts,
    uid: int,
    account: str,
    private: int = 0o022,
    files: Collection[str] = (),
) -> None:
    """Whether a server that runs as *uid* can work in the directory (or make it, when it is missing).

    :param account: the name of that user, for the repair.
    :param private: mode bits that must not be set.
    :param files: the names that tell the directory of such a server from any other.
    :raises DataDirectoryError: with the reason, and the exact ``chown`` or ``chmod`` line.
    """
    path, quoted = str(facts.path), shlex.quote(str(facts.path))
    # What is right for a data directory would ruin /etc.
    another = "give a directory of its own" if facts.strange(files) else ""
    take = another or f"run: sudo chown -R {account} {quoted}"
    if facts.kind == "missing":
        return
    if facts.kind == "other":
        raise DataDirectoryError(service, path, "is not a directory", "give another data directory")
    if facts.kind == "hidden":
        raise DataDirectoryError(service, path, "may not be read by this user", take)
    if facts.blocked is not None:
        raise DataDirectoryError(
            service,
            path,
            f"the server runs as {account}, which may not enter {facts.blocked}",
            "give a data directory outside private homes, or another user for the service",
        )
    if facts.uid != uid:
        owner = user_name(facts.uid)
        raise DataDirectoryError(service, path, f"belongs to {owner}, the server runs as {account}", take)
    if facts.read_only:
        raise DataDirectoryError(
            service,
            path,
            "is on a file system that is mounted read-only",
            "mount it for writing, or give another data directory",
        )
    if facts.mode & 0o700 != 0o700 or facts.mode & private:
        raise DataDirectoryError(
            service,
            path,
            f"has the mode {facts.mode:04o}, which its server refuses",
            another or f"run: chmod 0700 {quoted}",
        )
    if facts.foreign is not None:
        raise DataDirectoryError(
            service, str(facts.foreign), f"does not belong to {account}, as the data directory does", take
        )


def socket_directory(preferred: Path, name: str, uid: int, platform: str = sys.platform) -> Path:
    """*preferred* if a socket of that *name* in it has a path short enough for the system, else a short directory.

    The fallback, ``/tmp/zcomm-<uid>/<hash of preferred>``, is not made here: it must be made 0700.
    """
    limit = SOCKET_PATH_MAX.get(platform, 103)
    # A lock beside the socket may have a longer name, but only the socket's own is limited.
    if len(os.fsencode(preferred / name)) <= limit:
        return preferred
    digest = hashlib.sha256(os.fsencode(preferred)).hexdigest()[:12]
    return Path(f"/tmp/zcomm-{uid}/{digest}")  # noqa: S108 (who makes it checks its owner and mode)


def judge_space(service: str, path: Path, free: int, needed: int = SPACE_NEEDED) -> None:
    """Whether *free* bytes are enough; :raises ServiceError: when they are not."""
    if free < needed:
        raise ServiceError(
            service,
            f"the file system of {path} has {free // 2**20} MB free of the {needed // 2**20} needed",
            "make room there, or give a data directory on another file system",
        )


def require_space(service: str, path: Path, needed: int = SPACE_NEEDED) -> None:
    """As :func:`judge_space`, for the file system that *path* is on or will be on; **blocks**."""
    place = path
    while True:
        try:
            free = shutil.disk_usage(place).free
        except FileNotFoundError:
            if place == place.parent:
                raise
            place = place.parent
            continue
        except OSError as error:
            raise DataDirectoryError(service, str(place), f"cannot be looked at: {error.strerror}") from error
        judge_space(service, path, free, needed)
        return


async def _require_port(service: str, port: int, host: str, reactor: Any) -> None:
    if await check_port(port, host, reactor=reactor):
        return
    holder: Holder | None = await port_holder(port, reactor=reactor)
    if holder is None and port < 1024:
        raise ServiceError(service, f"this user may not listen on port {port}", "choose a port above 1023")
    raise PortInUse(
        service,
        port,
        str(holder) if holder is not None else "",
        "give another port, or take any free one with port='auto' (--port auto of zcomm service; "
        f"{service.upper().replace('-', '_')}_PORT=auto in the environment of twistd zcomm)",
    )


def require_port(service: str, port: int, host: str = "127.0.0.1", reactor: Any = None) -> Deferred[None]:
    """Make sure that a server can listen on *port*.

    :return: fires with None; errbacks with :class:`~zcomm.errors.PortInUse`, which names the holder.
    """
    return Deferred.fromCoroutine(_require_port(service, port, host, reactor))


def _first_foreign(path: Path, uid: int, files: int) -> Path | None:
    looked_at = 0
    for directory, names, found in os.walk(path):
        for name in (*names, *found):
            looked_at += 1
            if looked_at > files:
                return None
            inside = os.path.join(directory, name)
            try:
                if os.lstat(inside).st_uid != uid:
                    return Path(inside)
            except OSError:
                continue
    return None
