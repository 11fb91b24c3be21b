"""The log of a server: a file the server itself appends to, so that a busy zComm never blocks it.

A pipe would: with nobody reading, PostgreSQL's processes hang in ``write`` and take the database with
them. Rotation copies the file and cuts the original (the server keeps its descriptor), which works
because the descriptor is opened for appending.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LogFile", "LogPlace"]

#: Bytes of a log that are read at once, and of a line of it that count.
PIECE, LONGEST_LINE = 256 << 10, 10_000


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The place up to which a log has been read.

    :ivar line: where the first line begins that was not complete, in bytes.
    :ivar end: up to where it was read.
    :ivar inside: whether ``line`` is within a line of which no more counts.
    :ivar file: the inode of the file, 0 before it was read.
    """

    line: int
    end: int
    inside: bool = False
    file: int = 0


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log and its older copies ``.1``, ``.2``…

    :ivar max_bytes: size that makes it due for rotation, and the most an older copy holds.
    :ivar count: how many older copies are kept.
    """

    path: Path
    max_bytes: int = 10 * 1024 * 1024
    count: int = 3

    def open(self) -> int:
        """A descriptor to append with; the file is readable by its owner alone.

        :raises OSError: when it cannot be opened, or is a symbolic link.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        os.fchmod(descriptor, 0o600)
        return descriptor

    def size(self) -> int:
        """Bytes in it now, 0 when it does not exist."""
        try:
            return os.stat(self.path).st_size
        except OSError:
            return 0

    def tail(self, limit: int = 16384, since: int = 0) -> str:
        """Its last ``limit`` bytes as text, nothing before the offset ``since``.

        An offset behind the end means that the log was rotated meanwhile.
        """
        try:
            with open(self.path, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                start = since if since <= end else 0
                file.seek(max(start, end - limit))
                return file.read(limit).decode("utf-8", "replace")
        except OSError:
            return ""

    def place(self, limit: int, since: int = 0) -> LogPlace:
        """The place from which all its last ``limit`` bytes are new; ``since`` is as in :meth:`tail`."""
        end = self.size()
        start = since if since <= end else 0
        begin = max(start, end - limit)
        return LogPlace(begin, begin, inside=begin > start)

    def lines_after(self, place: LogPlace) -> tuple[list[str], LogPlace]:
        """The lines written since it was read up to a place, and the place to go on from. **Blocks** on the disk.

        No more than a piece is read. The last line may still be without its end: it comes again when it has grown.
        Of a long line the first :data:`LONGEST_LINE` bytes come, once. A log that was cut or replaced is read from its
        beginning.
        """
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_size < place.end or place.file not in (0, found.st_ino):
                    place = LogPlace(0, 0)
                if found.st_size == place.end:
                    return [], place
                file.seek(place.line)
                read = file.read(PIECE)
        except OSError:
            return [], place
        *lines, rest = read.split(b"\n")
        end = place.line + len(read)
        begun, inside = end - len(rest), place.inside and not lines
        if place.inside:
            del lines[:1]
        if not inside and len(rest) >= LONGEST_LINE:
            lines.append(rest)
            inside = True
        elif not inside and rest and end >= found.st_size:
            lines.append(rest)
        at = LogPlace(end if inside else begun, end, inside, found.st_ino)
        return [line[:LONGEST_LINE].decode("utf-8", "replace") for line in lines], at

    def due(self) -> bool:
        """Whether it has grown past its size."""
        return self.size() > self.max_bytes

    def rotate(self) -> bool:
        """Shift the older copies, copy the newest part, cut the log. **Blocks** on the disk.

        :return: whether a copy was kept; without space for one the log is cut all the same, because
            a log that fills the disk stops the database beside it.
        """
        for number in range(self.count - 1, 0, -1):
            older = self._copy(number)
            if older.exists():
                os.replace(older, self._copy(number + 1))
        kept = False
        if self.count:
            kept = self._keep_newest(self._copy(1))
        os.truncate(self.path, 0)
        return kept

    def _copy(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _keep_newest(self, target: Path) -> bool:
        try:
            with open(self.path, "rb") as source:
                end = source.seek(0, os.SEEK_END)
                source.seek(max(0, end - self.max_bytes))
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
                os.fchmod(descriptor, 0o600)
                with open(descriptor, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        except OSError:
            with suppress(OSError):
                target.unlink()
            return False
        return True
