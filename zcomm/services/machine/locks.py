"""One zComm per directory: an advisory lock on the directory itself.

The lock is on the directory's inode, so that two ways to write its path, a link or a bind mount lead to
the same lock, and a renamed directory keeps it. The system drops it when its holder dies, however it dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """A lock that is held from a successful :meth:`take` until :meth:`release`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._descriptor: int | None = None

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

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self._descriptor is not None:
            # A child that was forked and is not yet another program has a copy of the descriptor, with the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None
