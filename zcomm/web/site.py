"""The user's own page: the files of one directory, for everybody who may reach the port (``--www``).

Each request looks at the file as it is now, in a thread. A name is walked part by part, never through a symbolic link,
and nothing is listed. Files of a few megabytes are kept in memory with a compressed form, as far as there is room;
larger ones are read piece by piece as their client takes them, so that no crowd of slow clients takes memory.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred

from zcomm.commands.files import media_type
from zcomm.errors import ConfigError
from zcomm.peers import block_of
from zcomm.reading import directory_below, open_to_everybody, read_regular
from zcomm.runtime.workers import Workers
from zcomm.web.content import Content

__all__ = ["MOVED", "OWN_NAMES", "Large", "Missing", "SMALL", "Site"]

#: Names of zComm's own paths, which no file of the user's may have.
OWN_NAMES = (
    "admin",
    "call",
    "demo",
    "health",
    "live",
    "metrics",
    "publish",
    "ready",
    "zBifrost.d.ts",
    "zBifrost.js",
)
INDEX = "index.html"
#: Stands for a directory that was asked for without the slash at its end.
MOVED = "moved"
#: Bytes of the largest file that is kept in memory, and of all that are.
LARGEST_KEPT, ALL_KEPT = 4 * 1024 * 1024, 32 * 1024 * 1024
#: Bytes of a file that is sent from memory whether it is kept or not.
SMALL = 64 * 1024
#: Files that are being sent at once, of those that take more than a moment; and to one address.
DOWNLOADS, DOWNLOADS_OF_ONE = 256, 32
#: Nanoseconds after a change within which another one might not be seen.
RECENT = 2_000_000_000
_OF_THE_SYSTEM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE})

#: What tells whether a file is still the one that it was: device, number, size, and when it was changed.
Signature = tuple[int, int, int, int, int]


class Missing(Exception):
    """There is no such page, or it is not to be had."""


class Large(NamedTuple):
    """A file that is sent from the disk.

    :ivar parts: its name.
    """

    parts: tuple[str, ...]
    signature: Signature

    @property
    def size(self) -> int:
        """The number of its bytes."""
        return self.signature[2]

    @property
    def media_type(self) -> str:
        """The type of its content."""
        return media_type(self.parts[-1])

    @property
    def tag(self) -> str:
        """The tag of its content, without quotes."""
        return "-".join(f"{number:x}" for number in self.signature[1:4])


class _Shelf:
    """The contents that are kept in memory, those used last. Callable from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: OrderedDict[tuple[str, ...], tuple[Signature, Content]] = OrderedDict()
        #: Bytes of these, and of others that are still being sent.
        self._size = 0

    def find(self, parts: tuple[str, ...], signature: Signature) -> Content | None:
        """The content of a file, if it is the one that was kept."""
        with self._lock:
            kept, content = self._contents.get(parts, (None, None))
            if kept != signature:
                return None
            self._contents.move_to_end(parts)
            return content

    def put(self, parts: tuple[str, ...], signature: Signature, content: Content) -> bool:
        """Keep a content, in the place of those that were not asked for the longest; returns whether there is room."""
        with self._lock:
            self._drop(parts)
            for other in list(self._contents):
                if self._size + content.size <= ALL_KEPT:
                    break
                if not self._contents[other][1].users:
                    self._drop(other)
            if self._size + content.size > ALL_KEPT:
                return False
            self._contents[parts] = signature, content
            content.is_kept = True
            self._size += content.size
            return True

    def _drop(self, parts: tuple[str, ...]) -> None:
        _, content = self._contents.pop(parts, (None, None))
        if content is not None:
            content.is_kept = False
            if not content.users:
                self._size -= content.size

    def use(self, content: Content) -> None:
        """Count a response that is sent from ``content``."""
        with self._lock:
            if not content.users and not content.is_kept:
                self._size += content.size
            content.users += 1

    def give_back(self, content: Content) -> None:
        """Count one less."""
        with self._lock:
            content.users -= 1
            if not content.users and not content.is_kept:
                self._size -= content.size


class Site:
    """The files of one directory.

    :param root: the directory.
    :param workers: the threads that look at them.
    :param private: a directory that must not be in it.
    :raises ConfigError: when it is no directory that can be read, could be changed by anybody, or holds ``private`` or
        a file with a name of zComm's.
    """

    def __init__(self, root: Path, workers: Workers, private: Path):
        # Resolved now: a link that is the root itself was the operator's choice, a later one is not.
        self.root = Path(os.path.realpath(root))
        self._workers = workers
        self._shelf = _Shelf()
        self._downloads: Counter[str] = Counter()
        try:
            names = set(os.listdir(self.root))
        except OSError as error:
            raise ConfigError("--www", f"{root}: {error.strerror}") from None
        if self.root in (place := Path(os.path.realpath(private)), *place.parents):
            raise ConfigError(
                "--www", f"{root} holds the data directory {private}; name one with nothing but your pages"
            )
        if reason := open_to_everybody(root):
            raise ConfigError("--www", reason)
        for name in OWN_NAMES:
            if name in names:
                raise ConfigError("--www", f"{root / name}: /{name} is zComm's own; give it another name")

    def find(self, path: str, peer: str) -> Deferred[Content | Large | str]:
        """A Deferred of what is at the path of a URL, as it was sent: a content, or :data:`MOVED`.

        It fails with :class:`Missing`, and with :class:`~zcomm.errors.TooBusy`, :class:`~zcomm.errors.Unavailable` or
        ``OSError`` where that cannot be found out now.

        :param peer: who asks; addresses have their turns.
        """
        return self._workers.run(block_of(peer), self._find, path)

    def _find(self, path: str) -> Content | Large | str:
        """Look at the file; runs in a thread."""
        *above, name = _parts(path)
        parts = (*above, name or INDEX)
        try:
            with directory_below(self.root, above) as directory:
                facts = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode) and name:
                    os.stat(f"{name}/{INDEX}", dir_fd=directory, follow_symlinks=False)
                    return MOVED
                return self._content(parts, directory, facts)
        except OSError as error:
            if error.errno in _OF_THE_SYSTEM:
                raise
            raise Missing from None

    def _content(self, parts: tuple[str, ...], directory: int, facts: os.stat_result) -> Content | Large:
        _check(facts)
        signature = _signature(facts)
        content = self._shelf.find(parts, signature)
        if content is not None:
            return content
        if facts.st_size > LARGEST_KEPT:
            return Large(parts, signature)
        # What is changed twice within a moment may look the same afterwards.
        is_settled = abs(time.time_ns() - facts.st_ctime_ns) > RECENT
        if facts.st_size > SMALL and not is_settled:
            return Large(parts, signature)
        data, facts = read_regular(parts[-1], LARGEST_KEPT, _check, follow=False, dir_fd=directory)
        if _signature(facts) != signature or len(data) != facts.st_size:
            # It is being written.
            return Large(parts, _signature(facts))
        content = Content(data, media_type(parts[-1]))
        if is_settled and not self._shelf.put(parts, signature, content) and len(data) > SMALL:
            return Large(parts, signature)
        return content

    def read(self, file: Large, peer: str, offset: int, size: int) -> Deferred[bytes]:
        """A Deferred of so many bytes of a file; it fails with ``OSError`` where that is another one by now."""
        return self._workers.run(block_of(peer), self._read, file, offset, size)

    def _read(self, file: Large, offset: int, size: int) -> bytes:
        def check(facts: os.stat_result) -> None:
            if _signature(facts) != file.signature:
                raise OSError(errno.ESTALE, "it was changed meanwhile")

        with directory_below(self.root, file.parts[:-1]) as directory:
            data, _ = read_regular(file.parts[-1], size, check, follow=False, dir_fd=directory, offset=offset)
        if len(data) < size:
            raise OSError(errno.ESTALE, "it was cut off meanwhile")
        return data[:size]

    def enters(self, peer: str) -> bool:
        """Count a file that is sent for as long as its client takes; whether there is room for it."""
        block = block_of(peer)
        if self._downloads.total() >= DOWNLOADS or self._downloads[block] >= DOWNLOADS_OF_ONE:
            return False
        self._downloads[block] += 1
        return True

    def leaves(self, peer: str) -> None:
        """Count one less."""
        block = block_of(peer)
        self._downloads[block] -= 1
        if not self._downloads[block]:
            del self._downloads[block]

    def use(self, content: Content) -> None:
        """Count a response that is sent from ``content`` for as long as its client takes."""
        self._shelf.use(content)

    def give_back(self, content: Content) -> None:
        """Count one less."""
        self._shelf.give_back(content)


def _parts(path: str) -> list[str]:
    """The parts of the path of a URL, the last of which is empty where it ends with a slash.

    :raises Missing: for one that leaves the root, hides (a leading dot), is zComm's own, or no file of ours can have.
    """
    parts = []
    for text in path.split("/")[1:]:
        try:
            part = unquote_to_bytes(text).decode()
        except UnicodeDecodeError:
            raise Missing from None
        if part.startswith(".") or "/" in part or "\\" in part or not part.isprintable() or len(part) > 255:
            raise Missing
        parts.append(part)
    if not parts or not all(parts[:-1]) or parts[0] in OWN_NAMES:
        raise Missing
    return parts


def _check(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise Missing


def _signature(facts: os.stat_result) -> Signature:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
