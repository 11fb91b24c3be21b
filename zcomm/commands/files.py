"""Files that clients may read: ``zOpen(config.yaml)``, below one directory and nowhere else.

A name is walked part by part, each opened in the directory before it and never through a symbolic link,
so that there is no moment between checking and opening in which the answer could change. The files of a database that
is open are not to be had. Why a file cannot be had is not said: missing, outside and forbidden by the system all read
the same.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from zcomm.budget.written import PIECE, Written, write_json
from zcomm.commands.grammar import parse_call
from zcomm.errors import CommandError, ConfigError, Invalid, NotFound, PermissionDenied, Unavailable
from zcomm.interfaces import Client, Permissions, Request, owner_of
from zcomm.reading import directory_below, read_regular
from zcomm.runtime.logthrottle import Throttle

if TYPE_CHECKING:
    from zcomm.runtime.workers import Workers

__all__ = ["MAX_SIZE", "Files", "media_type"]

#: Bytes of the largest file that is sent.
MAX_SIZE = 1024 * 1024

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

# A table of its own: the one of the standard library differs from machine to machine, and reads files.
_TYPES = {
    ending: kind
    for kind, endings in (
        ("application/gzip", "gz"),
        ("application/json", "json map"),
        ("application/manifest+json", "webmanifest"),
        ("application/pdf", "pdf"),
        ("application/sql", "sql"),
        ("application/toml", "toml"),
        ("application/wasm", "wasm"),
        ("application/xml", "xml"),
        ("application/yaml", "yaml yml"),
        ("application/zip", "zip"),
        ("audio/mpeg", "mp3"),
        ("audio/ogg", "ogg"),
        ("audio/wav", "wav"),
        ("font/otf", "otf"),
        ("font/ttf", "ttf"),
        ("font/woff", "woff"),
        ("font/woff2", "woff2"),
        ("image/avif", "avif"),
        ("image/gif", "gif"),
        ("image/jpeg", "jpg jpeg"),
        ("image/png", "png"),
        ("image/svg+xml", "svg"),
        ("image/webp", "webp"),
        ("image/x-icon", "ico"),
        ("text/css", "css"),
        ("text/csv", "csv"),
        ("text/html", "html htm"),
        ("text/javascript", "js mjs"),
        ("text/markdown", "md"),
        ("text/plain", "txt log ini conf cfg"),
        ("text/x-python", "py"),
        ("text/x-rst", "rst"),
        ("video/mp4", "mp4"),
        ("video/webm", "webm"),
    )
    for ending in endings.split()
}


class Files:
    """Answers ``zOpen(…)`` with ``{name, type, size, modified, text or base64}``.

    :param root: the only directory whose files are sent; ``None`` refuses everything.
    :param permissions: asked before each file, by its name below ``root``.
    :param workers: where files are read.
    :raises ConfigError: when ``root`` is not a directory that can be read.
    """

    _log = Logger()

    def __init__(self, root: Path | None, permissions: Permissions, workers: Workers):
        self.permissions = permissions
        self._workers = workers
        self._failures = Throttle(time.monotonic)
        # Resolved now: a link that is the root itself was the operator's choice, a later one is not.
        self.root = None if root is None else Path(os.path.realpath(root))
        if self.root is not None:
            try:
                os.close(os.open(self.root, _DIRECTORY))
            except OSError as error:
                raise ConfigError("--files", f"{root}: {os.strerror(error.errno or 0)}") from None

    def respond(self, request: Request, client: Client) -> Deferred[dict[str, Any] | Written]:
        """A Deferred of the file that ``request`` names; of a large one as JSON, which was made in the thread.

        It fails with :class:`~zcomm.errors.CommandError` when the client may not have it, when there is
        none, and when it is larger than :data:`MAX_SIZE`.
        """
        try:
            name = parse_call(request.horizontal, "zOpen").name
            if self.root is None:
                # No role would help; what would is a directory to read, which the operator names.
                raise NotFound("this server opens no files")
            parts = _parts(name)
            if not self.permissions.allows(client.identity, "open", "file", "/".join(parts)):
                raise PermissionDenied
        except CommandError as error:
            return fail(error)
        return self._workers.run(owner_of(client), self._read, parts)

    def _read(self, parts: list[str]) -> dict[str, Any] | Written:
        """The file; runs in a worker thread."""
        try:
            data, facts = self._open(parts)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
                self._failures.log(
                    self._log.error, error.errno, "a file could not be read: {reason}", reason=error.strerror
                )
                raise Unavailable("The file cannot be read just now") from None
            raise _refused() from None
        answer: dict[str, Any] = {
            "name": "/".join(parts),
            "type": media_type(parts[-1]),
            "size": len(data),
            "modified": _iso(facts.st_mtime),
        }
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        is_text = text is not None and "\0" not in text
        form, content = ("text", text) if is_text else ("base64", b64encode(data).decode("ascii"))
        if len(data) <= PIECE:
            return {**answer, form: content}
        written = Written()
        written.write(write_json(answer)[:-1] + b',"%s":' % form.encode())
        written.put(content)
        written.write(b"}")
        return written

    def _open(self, parts: list[str]) -> tuple[bytes, os.stat_result]:
        # The root was resolved; if it became a link since, it is not what the operator named.
        with directory_below(self.root or Path(), parts[:-1]) as directory:
            data, facts = read_regular(parts[-1], MAX_SIZE, _check, follow=False, dir_fd=directory)
        if len(data) > MAX_SIZE:
            # It grew while it was read.
            raise _too_large()
        return data, facts


def media_type(name: str) -> str:
    """The media type of a file, by the ending of its name."""
    return _TYPES.get(name.rpartition(".")[2].lower(), "application/octet-stream")


def _parts(name: str) -> list[str]:
    """The parts of a relative name.

    :raises NotFound: for a name that leaves the root, hides (a leading dot), or no file of ours can have.
    """
    parts = name.split("/")
    for part in parts:
        if not part or part.startswith(".") or "\\" in part or not part.isprintable():
            raise _refused()
    return parts


def _check(facts: os.stat_result) -> None:
    # A second name of the same file may lie outside the root.
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        raise _refused()
    if facts.st_size > MAX_SIZE:
        raise _too_large()


def _refused() -> NotFound:
    return NotFound("Access denied: there is no such file, or it may not be opened")


def _too_large() -> Invalid:
    return Invalid(f"The file is larger than {MAX_SIZE // 1024} KiB")


def _iso(timestamp: float) -> str | None:
    try:
        date = datetime.fromtimestamp(timestamp, UTC)
    except (OverflowError, OSError, ValueError):
        return None  # A file system can hold dates that a calendar cannot.
    return date.isoformat(timespec="seconds").replace("+00:00", "Z")
