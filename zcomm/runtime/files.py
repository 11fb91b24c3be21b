"""Making and replacing files that are their owner's alone, locks of directories, and the names of owners.

What zComm makes has the mode that is named here and at :func:`zcomm.config.make_directory`, whatever the umask is: a
umask that takes the owner's own bits would leave files that the next start cannot read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = [
    "DirectoryLock",
    "FileLock",
    "directory_identity",
    "make_private_file",
    "replace_file",
    "user_name",
]


def replace_file(path: Path, content: bytes, uid: int = -1, gid: int = -1, *, durable: bool = True) -> None:
    """Replace ``path`` in one step by a file of mode 0600; **blocks** until it is on the disk.

    A reader meanwhile, and whatever looks after a crash or on a full disk, finds the old content or the new one,
    whole. A process that is killed while it writes leaves ``.NAME.*.tmp`` behind; the next write of the same file
    removes it.

    :param uid: the owner; this process's own user if it is left out.
    :param gid: the owner's group.
    :param durable: False for what means nothing after a power failure (a record of processes): it does not wait for
        the disk, which takes tens of milliseconds.
    :raises OSError: when it cannot be written; the old file is as it was.
    """
    _remove_abandoned(path)
    temporary, descriptor = _begin(path)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if uid >= 0:
                os.fchown(descriptor, uid, gid)
            if durable:
                os.fsync(descriptor)
            # Before its lock goes with the descriptor, or another writer might remove it first.
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if not durable:
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_private_file(path: Path) -> None:
    """Make an empty file of mode 0600 where there is nothing; what is there stays as it is, mode and all.

    :raises OSError: when it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _begin(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, and its descriptor, which holds the file's lock for as long as it is open."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
        descriptor = os.open(temporary, flags, 0o600)
        os.fchmod(descriptor, 0o600)
        # Without locks in the file system nobody can take this one for abandoned either.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        # Another writer found it before it was locked.
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers of ``path`` left: it may hold secrets. A living writer has its file locked."""
    name = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{16}\.tmp")
    with suppress(OSError):
        for left in filter(name.fullmatch, os.listdir(path.parent)):
            with suppress(OSError):
                _remove_unlocked(path.parent / left)


def _remove_unlocked(left: Path) -> None:
    descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left.unlink()
    finally:
        os.close(descriptor)


def user_name(uid: int) -> str:
    """The name of a user of this machine, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def directory_identity(path: Path) -> str:
    """The identity by which a directory is known from a copy of it; moving it, links and bind mounts keep it.

    It goes into files that name a living process: a copy of the directory has them too, and owns no process.

    :raises OSError: when there is no such directory.
    """
    facts = os.stat(path)
    return f"{facts.st_dev}:{facts.st_ino}"


class _Lock:
    """The descriptor that holds an advisory lock, ``None`` while it is not held."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def forked(self) -> None:
        """Close the copy that a forked child has; the lock stays with its parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class DirectoryLock(_Lock):
    """One zComm per directory: an advisory lock that is held from a successful :meth:`take` until :meth:`release`.

    It is on the directory's inode, so that two ways to write its path, a link or a bind mount lead to the same lock,
    and a renamed directory keeps it. The system drops it when its holder dies, however it dies.
    """

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory

    def take(self) -> bool:
        """Take it without waiting; ``False`` when another process has it.

        :raises OSError: when the directory cannot be opened.
        """
        if self._descriptor is not None:
            return True
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            raise
        self._descriptor = descriptor
        return True

    def holder(self) -> int:
        """The pid of the process that took it, as far as the system tells; 0 where it does not (Linux does)."""
        try:
            facts = os.stat(self.directory)
            place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
            for line in Path("/proc/locks").read_text().splitlines():
                _, kind, _, _, pid, where, *_ = line.split()
                if kind == "FLOCK" and where == place:
                    return int(pid)
        except (OSError, ValueError):
            pass
        return 0

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self._descriptor is not None:
            # A child that was forked and is not yet another program has a copy of the descriptor, with the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None


class FileLock(_Lock):
    """One process per name: an advisory lock on a file made for it, held from a successful :meth:`take` until
    :meth:`release`.

    The system drops it when its holder dies, however it dies; the file is left then, and means nothing.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def take(self) -> bool:
        """Take it without waiting; ``False`` when another has it, True where the file system has no locks.

        :raises OSError: when the file cannot be made or opened.
        """
        while self._descriptor is None:
            make_private_file(self.path)
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    os.close(descriptor)
                    return False
            if os.fstat(descriptor).st_nlink:
                self._descriptor = descriptor
            else:
                # Its holder has removed it since it was opened.
                os.close(descriptor)
        return True

    def release(self) -> None:
        """Give it back and remove the file; harmless when it is not held."""
        if self._descriptor is not None:
            with suppress(OSError):
                self.path.unlink()
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
