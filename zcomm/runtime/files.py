"""Replacing a file in one step, and the names of those whom files belong to."""

from __future__ import annotations

import os
import pwd
import secrets
from pathlib import Path

__all__ = ["replace_file", "user_name"]


def replace_file(path: Path, content: bytes, uid: int = -1, gid: int = -1, *, durable: bool = True) -> None:
    """Replace ``path`` in one step by a file that only its owner may read; **blocks** until it is on the disk.

    A reader meanwhile, and whatever looks after a crash or on a full disk, finds the old content or the new one,
    whole. A process that is killed while it writes leaves ``.NAME.*.tmp`` behind.

    :param uid: the owner; this process's own user if it is left out.
    :param gid: the owner's group.
    :param durable: False for what means nothing after a power failure (a record of processes): it does not wait for
        the disk, which takes tens of milliseconds.
    :raises OSError: when it cannot be written; the old file is as it was.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if uid >= 0:
                os.fchown(descriptor, uid, gid)
            if durable:
                os.fsync(descriptor)
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


def user_name(uid: int) -> str:
    """The name of a user of this machine, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
