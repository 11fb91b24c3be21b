"""One-time codes: a link that signs in carries one instead of a token, which a browser's history would keep for ever.

A code is a private file in the data directory that is named by its SHA-256. Whoever can write there may make one, so
``zcomm url`` needs no server for it. A server holds a code, by a lock on its file, from the handshake on, and removes
the file when the client is told its session: of several servers one does, and whoever was not let in may try again.
A code that is held ends as one that nobody has: with its time, with the operator's token, and with its file.
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

from zcomm.auth.private_files import is_private, read_private
from zcomm.auth.tokens import wall_clock
from zcomm.config import make_directory
from zcomm.errors import CredentialsError

__all__ = [
    "CODE",
    "LIFETIME",
    "Code",
    "CodeInUse",
    "HeldCode",
    "end_code",
    "hold_code",
    "list_codes",
    "looks_like_code",
    "make_code",
]

#: What stands before a code where a token could stand as well.
CODE = "code."
#: Seconds that a code is good for.
LIFETIME = 600
#: Seconds that the clock may be set back before a code looks as if a clock that went wrong had made it.
CLOCK_SLACK = 60

_CODE = re.compile(r"code\.[A-Za-z0-9_-]{22}\Z")
_NAME = re.compile(r"[0-9a-f]{64}\Z")


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


@dataclass(frozen=True, slots=True)
class Code:
    """A code, as its file has it.

    :ivar holder: which token of the operator's it stands for.
    :ivar until: the end of its time, in seconds of the wall clock since 1970.
    """

    path: Path
    holder: str
    until: float

    @property
    def id(self) -> str:
        """Names it, in lists and for commands; nobody gets in with it."""
        return f"code-{self.path.name[:16]}"

    def is_timely(self, now: float) -> bool:
        """Whether it is neither too old, nor made in a future that a clock has seen which went wrong."""
        return 0 <= self.until - now <= LIFETIME + CLOCK_SLACK

    def is_good(self, holder: str, now: float) -> bool:
        """Whether somebody may come with it, stay in with it, or get a session for it.

        :param holder: the operator's token of now.
        """
        return holder == self.holder and self.is_timely(now) and is_private(self.path)


@dataclass(slots=True, eq=False)
class HeldCode:
    """A code that nobody else can use while it is held; a program that ends gives back what it holds."""

    code: Code
    _descriptor: int

    def spend(self) -> None:
        """End the code, for good.

        :raises CredentialsError: when its file cannot be removed; it is held on.
        """
        end_code(self.code)
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
        record = _code(path, found[0])
    except BlockingIOError:
        os.close(descriptor)
        raise CodeInUse from None
    except BaseException:
        os.close(descriptor)
        raise
    held = HeldCode(record or Code(path, "", 0.0), descriptor)
    if record is None or not record.is_timely(wall_clock().timestamp()):
        held.spend()
        return None
    return held


def end_code(code: Code) -> None:
    """Remove the file of a code, which ends it for whoever holds it as well. Harmless when that is done.

    :raises CredentialsError: when it cannot be removed.
    """
    try:
        code.path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_removed(code.path, error) from None


def list_codes(data_dir: Path) -> list[Code]:
    """The codes whose time is not over, held or not, those that end first before the others. What others could have
    made is none.

    :raises CredentialsError: when they cannot be read.
    """
    directory = data_dir / "codes"
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        fix = f"ls -ld {shlex.quote(str(directory))}"
        raise CredentialsError(str(directory), f"cannot be read: {error.strerror}", fix) from None
    now = wall_clock().timestamp()
    found = [(path, read_private(path)) for path in paths if _NAME.match(path.name) and is_private(path)]
    codes = [code for path, content in found if content is not None and (code := _code(path, content[0])) is not None]
    return sorted((code for code in codes if code.is_timely(now)), key=lambda code: code.until)


def _not_removed(path: Path, error: OSError) -> CredentialsError:
    fix = f"ls -ld {shlex.quote(str(path.parent))}"
    return CredentialsError(str(path), f"cannot be removed: {error.strerror}", fix)


def _code(path: Path, content: bytes) -> Code | None:
    """The code of a file; ``None`` for a file that is damaged."""
    try:
        record = json.loads(content)
        holder, until = record["holder"], record["until"]
        if not isinstance(holder, str) or not isinstance(until, int | float):
            return None
        return Code(path, holder, float(until))
    except (ValueError, RecursionError, TypeError, KeyError, OverflowError):
        return None


def _name(code: str) -> str:
    return sha256(code.encode("utf-8", "surrogatepass")).hexdigest()


def _forget_old(directory: Path, now: float) -> None:
    for path in directory.iterdir():
        with suppress(OSError):
            if path.lstat().st_mtime < now - LIFETIME:
                path.unlink()
