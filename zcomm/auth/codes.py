"""One-time codes: a link that signs in carries one instead of a token, which a browser's history would keep for ever.

A code is a private file in the data directory that is named by its SHA-256. Whoever can write there may make one, so
``zcomm url`` needs no server for it. A server holds a code, by a lock on its file, from the handshake on, and removes
the file when the client is told its session: of several servers one does, and whoever was not let in may try again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shlex
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from zcomm.auth.private_files import read_private
from zcomm.auth.tokens import wall_clock
from zcomm.config import make_directory
from zcomm.errors import CredentialsError

__all__ = ["CODE", "LIFETIME", "CodeInUse", "HeldCode", "hold_code", "looks_like_code", "make_code"]

#: What stands before a code where a token could stand as well.
CODE = "code."
#: Seconds that a code is good for.
LIFETIME = 600

_CODE = re.compile(r"code\.[A-Za-z0-9_-]{22}\Z")


def looks_like_code(token: str) -> bool:
    """Whether ``token`` has the form of a code of :func:`make_code`, with ``code.`` before it."""
    return _CODE.match(token) is not None


def make_code(data_dir: Path, holder: str) -> str:
    """Make a code of 128 random bits, and forget those that are too old.

    :param holder: which token of the operator's the code stands for; another one ends it.
    :raises CredentialsError: when it cannot be written down.
    """
    code = secrets.token_urlsafe(16)
    directory = data_dir / "codes"
    path = directory / _name(code)
    now = wall_clock().timestamp()
    content = json.dumps({"holder": holder, "until": now + LIFETIME}).encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        make_directory(directory)
        _forget_old(directory, now)
        # Nobody looks for it before it is whole: nobody else knows its name.
        with open(os.open(path, flags, 0o600), "wb") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(content)
    except OSError as error:
        quoted = shlex.quote(str(data_dir))
        fix = f"df -h {quoted}; ls -ld {quoted}"
        raise CredentialsError(str(directory), f"a code cannot be written there: {error.strerror}", fix) from None
    return code


class CodeInUse(Exception):
    """Somebody else holds the code. Whether it is spent is not known yet."""


@dataclass(slots=True, eq=False)
class HeldCode:
    """A code that nobody else can use while it is held; a program that ends gives back what it holds.

    :ivar holder: which token of the operator's it stands for.
    """

    holder: str
    path: Path
    _descriptor: int

    def spend(self) -> None:
        """End the code, for good.

        :raises CredentialsError: when its file cannot be removed; it is held on.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise _not_removed(self.path, error) from None
        self.give_back()

    def give_back(self) -> None:
        """Leave the code to whoever tries it next. Harmless when that is done."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def hold_code(data_dir: Path, code: str) -> HeldCode | None:
    """Hold a code: of all who try at the same time, in all programs, one does.

    :return: ``None`` for one that is wrong, spent or too old.
    :raises CodeInUse: when somebody else holds it.
    :raises CredentialsError: when its file cannot be trusted, read or, later, removed.
    """
    path = data_dir / "codes" / _name(code)
    if read_private(path) is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been spent before it was locked.
        found = read_private(path)
        if found is None or not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            os.close(descriptor)
            return None
        if not os.access(path.parent, os.W_OK):
            raise _not_removed(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        holder = _holder(found[0])
    except BlockingIOError:
        os.close(descriptor)
        raise CodeInUse from None
    except BaseException:
        os.close(descriptor)
        raise
    held = HeldCode(holder or "", path, descriptor)
    if holder is None:
        held.spend()
        return None
    return held


def _not_removed(path: Path, error: OSError) -> CredentialsError:
    fix = f"ls -ld {shlex.quote(str(path.parent))}"
    return CredentialsError(str(path), f"cannot be removed: {error.strerror}", fix)


def _holder(content: bytes) -> str | None:
    """The holder that stands in the file of a code, while it is good."""
    try:
        record = json.loads(content)
        holder, until = record["holder"], record["until"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    if not isinstance(holder, str) or not isinstance(until, int | float):
        return None
    # Neither too old, nor made in a future that a clock has seen which went wrong.
    return holder if 0 <= until - wall_clock().timestamp() <= LIFETIME else None


def _name(code: str) -> str:
    return sha256(code.encode("utf-8", "surrogatepass")).hexdigest()


def _forget_old(directory: Path, now: float) -> None:
    for path in directory.iterdir():
        with suppress(OSError):
            if path.lstat().st_mtime < now - LIFETIME:
                path.unlink()
