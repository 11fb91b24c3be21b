"""One-time codes: a link that signs in carries one instead of a token, which a browser's history would keep for ever.

A code is a private file in the data directory that is named by its SHA-256. Whoever can write there may make one, so
``zcomm url`` needs no server for it; whoever removes the file has spent the code, so that of several servers one does.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from zcomm.auth.private_files import read_private
from zcomm.auth.tokens import wall_clock
from zcomm.config import make_directory
from zcomm.errors import CredentialsError

__all__ = ["CODE", "LIFETIME", "looks_like_code", "make_code", "spend_code"]

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


def spend_code(data_dir: Path, code: str) -> str | None:
    """Spend a code, for good: of all who try at the same time one does.

    :return: which token of the operator's it stands for; ``None`` for one that is wrong, spent or too old.
    :raises CredentialsError: when its file cannot be trusted or read.
    """
    path = data_dir / "codes" / _name(code)
    found = read_private(path)
    if found is None:
        return None
    try:
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(
            str(path), f"cannot be removed: {error.strerror}", f"ls -ld {shlex.quote(str(path.parent))}"
        ) from None
    try:
        record = json.loads(found[0])
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
