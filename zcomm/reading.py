"""Reading files in a process that must not touch some of them, as SQLite has them open.

Closing any descriptor of a file takes all locks away that the process has on it (POSIX, ``fcntl``), also those that a
library took by descriptors of its own: SQLite warns of it ("How To Corrupt An SQLite Database File", 2.2). Other
programs would then write to a database, or take its log away, while it is in use here. So a file that such a library
has open is not opened a second time, by whatever name it is asked for, and a descriptor whose closing could take
somebody's lock is not closed as long as there is one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

__all__ = [
    "FileIdentity",
    "Holder",
    "begin_to_hold",
    "directory_below",
    "file_identity",
    "open_to_everybody",
    "read_regular",
]

#: The device and the number of a file, which tell it from every other one, whatever its names are.
FileIdentity = tuple[int, int]

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Bytes that are asked for at least at a time.
PART = 4096
#: The question for a lock that would stand in the way of a new one on the whole file (Linux).
_GETLK = getattr(fcntl, "F_OFD_GETLK", None)
_WHOLE = "@hhqqi4x"


class Holder(Protocol):
    """Somebody who has files open that nobody else in this process may open."""

    def held(self) -> Iterable[FileIdentity]:
        """Those files, and those that may become it at any moment."""


_holders: WeakSet[Holder] = WeakSet()
#: Held where a descriptor is closed, so that nobody begins to hold its file between the question and the closing.
_closing = threading.Lock()
#: Descriptors that could not be closed, by their files.
_kept: dict[FileIdentity, list[int]] = {}


def file_identity(path: str) -> FileIdentity | None:
    """The file that is at ``path``; ``None`` where there is none.

    :raises OSError: when the system does not tell, which says nothing about the file.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def open_to_everybody(path: str | os.PathLike[str]) -> str:
    """Why anybody on this machine could change what is at ``path``, or put something else there, with the command that
    mends it; empty where nobody could.

    What a group may do is the business of its members. In a directory with the sticky bit, as ``/tmp``, nobody takes
    the place of what others have. The root of a mount is often open where nobody else is: a volume of a container.
    """
    named, real = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    for place in dict.fromkeys((real, *named.parents, *real.parents)):
        try:
            mode = os.stat(place).st_mode
        except OSError:
            continue
        if mode & stat.S_IWOTH and (place == real or not (mode & stat.S_ISVTX or os.path.ismount(place))):
            what = "put files into" if stat.S_ISDIR(mode) else "write to"
            return f"everybody may {what} {place} (mode {mode & 0o7777:04o}); run: chmod o-w {shlex.quote(str(place))}"
    return ""


def begin_to_hold(holder: Holder) -> None:
    """Have what ``holder`` has open left alone, as long as that lives. Called before it opens anything."""
    with _closing:
        _holders.add(holder)


@contextmanager
def directory_below(root: Path, parts: Iterable[str]) -> Iterator[int]:
    """The open directory that ``parts`` lead to from ``root``, each opened in the one before it.

    None of them is a link, so that there is no moment between checking and opening in which the answer could change.

    :raises OSError: where one of them is missing, or no directory.
    """
    directory = os.open(root, _DIRECTORY)
    try:
        for part in parts:
            inner = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = inner
        yield directory
    finally:
        os.close(directory)


def read_regular(
    path: str | os.PathLike[str],
    limit: int,
    check: Callable[[os.stat_result], None],
    *,
    follow: bool = True,
    dir_fd: int | None = None,
    offset: int = 0,
) -> tuple[bytes, os.stat_result]:
    """The first ``limit`` bytes of a regular file and one more, where there are more; **blocks** on the disk.

    :param check: raises for a file that is not to be read: before it is opened, for that can have effects of its own,
        and for the open one, which may be another by then.
    :param follow: whether ``path`` may be a link.
    :param dir_fd: the open directory that ``path`` is in.
    :param offset: where to begin.
    :raises OSError: when it cannot be read; ``EBUSY`` for a file of a database that this process has open.
    """
    facts = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow)
    if stat.S_ISLNK(facts.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    check(facts)
    identity = facts.st_dev, facts.st_ino
    with _closing:
        _refuse_held(identity, path)
        spare = _kept.get(identity)
        descriptor = spare.pop() if spare else -1
    if descriptor < 0:
        descriptor = os.open(path, _FLAGS | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
    try:
        facts = os.fstat(descriptor)
        check(facts)
        if (facts.st_dev, facts.st_ino) != identity:
            with _closing:
                _refuse_held((facts.st_dev, facts.st_ino), path)
        # The usual file comes in one piece, which is not copied; one that grows meanwhile in several.
        parts, size = [], 0
        while size <= limit:
            wanted = max(facts.st_size + 1 - offset - size, PART)
            if not (part := os.pread(descriptor, min(limit + 1 - size, wanted), offset + size)):
                break
            parts.append(part)
            size += len(part)
    finally:
        _close(descriptor)
    return b"".join(parts), facts


def _refuse_held(identity: FileIdentity, path: str | os.PathLike[str]) -> None:
    if identity in _held():
        raise OSError(errno.EBUSY, "a database that is open has it", os.fspath(path))


def _held() -> set[FileIdentity]:
    return {identity for holder in list(_holders) for identity in holder.held()}


def _close(descriptor: int) -> None:
    """Close a descriptor, and those that were kept, where that takes no locks away."""
    facts = os.fstat(descriptor)
    with _closing:
        _kept.setdefault((facts.st_dev, facts.st_ino), []).append(descriptor)
        held = _held()
        for identity, descriptors in list(_kept.items()):
            if not descriptors or not (identity in held or _locked(descriptors[0])):
                del _kept[identity]
                for each in descriptors:
                    os.close(each)


def _locked(descriptor: int) -> bool:
    """Whether somebody has a lock on a file, this process included; ``False`` where the system does not tell."""
    if _GETLK is not None:
        with suppress(OSError):
            asked = struct.pack(_WHOLE, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            return bool(struct.unpack(_WHOLE, fcntl.fcntl(descriptor, _GETLK, asked))[0] != fcntl.F_UNLCK)
    return False
