"""Files that hold secrets: the owner's alone from the first byte, replaced whole or not at all.

A file that others could have read or put there is not used: it is refused with the one command that
repairs it.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zcomm.config import make_directory
from zcomm.errors import CredentialsError
from zcomm.reading import read_regular
from zcomm.runtime.files import make_private_file, replace_file, user_name

__all__ = ["Directory", "FileSignature", "file_signature", "locked", "read_private", "write_private"]

#: Bytes; far more than any file of this kind needs.
MAX_SIZE = 16 * 1024 * 1024

#: What changes when a file is written, replaced, or opened to others.
FileSignature = tuple[int, int, int, int]


def file_signature(path: Path) -> FileSignature | None:
    """Times of modification and change, inode and size of ``path``; ``None`` when there is no such file."""
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    return _signature(facts)


def _signature(facts: os.stat_result) -> FileSignature:
    return facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_size


class Directory:
    """The directory of a file, as it was when it was first seen there.

    A file that is gone means something only while its directory is the same: one that was moved, or whose volume is
    away for a moment, says nothing of what is in it.
    """

    def __init__(self, path: Path):
        self._path = path.parent
        self._known = self._identity()

    def _identity(self) -> tuple[int, int] | None:
        try:
            facts = os.stat(self._path)
        except OSError:
            return None
        return facts.st_dev, facts.st_ino

    def check(self) -> None:
        """:raises CredentialsError: when it is away, or another one is in its place."""
        found = self._identity()
        if self._known is None:
            self._known = found
        elif found != self._known:
            raise CredentialsError(
                str(self._path),
                "is gone" if found is None else "is not the directory that was there at the start",
                f"ls -ld {shlex.quote(str(self._path))}",
            )


def read_private(path: Path) -> tuple[bytes, FileSignature] | None:
    """The content of ``path`` and its signature, or ``None`` when there is no such file.

    :raises CredentialsError: when it is a link, another user's, open to others, or cannot be read.
    """
    quoted = shlex.quote(str(path))
    try:
        content, facts = read_regular(path, MAX_SIZE, lambda facts: _trusted(path, facts), follow=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink():
            raise CredentialsError(
                str(path), "is a symbolic link", f'mv -f "$(readlink -f {quoted})" {quoted}'
            ) from None
        raise _unreadable(path, error) from None
    return content, _signature(facts)


def is_private(path: Path) -> bool:
    """Whether :func:`read_private` would read ``path`` now, as far as its owner and mode tell."""
    try:
        _trusted(path, path.lstat())
    except (OSError, CredentialsError):
        return False
    return True


def _trusted(path: Path, facts: os.stat_result) -> None:
    """:raises CredentialsError: for what is no file, not ours, or not ours alone."""
    quoted = shlex.quote(str(path))
    if not stat.S_ISREG(facts.st_mode):
        raise CredentialsError(str(path), "is not a file", f"mv {quoted} {quoted}.old")
    if facts.st_uid != os.geteuid():
        me, owner = user_name(os.geteuid()), user_name(facts.st_uid)
        fix = f"sudo chown {me} {quoted}"
        if path.parent.stat().st_uid == facts.st_uid:
            # The server that the directory belongs to could not read the file any more.
            fix = f"sudo -su {shlex.quote(owner)}"
        raise CredentialsError(str(path), f"belongs to {owner}, not to {me}", fix)
    if facts.st_mode & 0o077:
        raise CredentialsError(
            str(path), f"is open to others (mode {facts.st_mode & 0o7777:04o})", f"chmod 600 {quoted}"
        )
    if facts.st_size > MAX_SIZE:
        raise CredentialsError(str(path), "is far larger than it can be", f"mv {quoted} {quoted}.old")


def write_private(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` in one step; call it inside :func:`locked`.

    Whoever reads meanwhile, and whoever looks after a crash or a full disk, finds the old content or the
    new one, whole.

    :raises CredentialsError: when it cannot be written; the old file is as it was.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise _unwritable(path, error) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the only right to write ``path``, also against other processes; waits for it.

    The lock is on a file beside it, because ``path`` itself is replaced. It ends with the process that
    holds it, however that ends. Missing directories are made (:func:`zcomm.config.make_directory`).

    :raises CredentialsError: when the directory cannot be made or written.
    """
    try:
        make_directory(path.parent)
        if not path.exists():
            _refuse_among_others(path.parent)
        lock = path.parent / f".{path.name}.lock"
        make_private_file(lock)
        descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_among_others(directory: Path) -> None:
    """:raises CredentialsError: where files of this kind are another user's, who could not read a new one."""
    for other in directory.glob("*.json"):
        owner = other.lstat().st_uid
        if owner != os.geteuid():
            name = user_name(owner)
            raise CredentialsError(
                str(other), f"belongs to {name}, not to {user_name(os.geteuid())}", f"sudo -su {shlex.quote(name)}"
            )


def _unreadable(path: Path, error: OSError) -> CredentialsError:
    quoted, directory = shlex.quote(str(path)), shlex.quote(str(path.parent))
    return CredentialsError(str(path), f"cannot be read: {error.strerror}", f"ls -ld {directory} {quoted}")


def _unwritable(path: Path, error: OSError) -> CredentialsError:
    directory = shlex.quote(str(path.parent))
    return CredentialsError(str(path), f"cannot be written: {error.strerror}", f"df -h {directory}; ls -ld {directory}")
