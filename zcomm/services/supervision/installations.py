"""Server programs that were found, and which of them fits a data directory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcomm.services.kinds.redis.rdb import RdbHeader

__all__ = ["Installation", "choose_postgresql", "choose_redis", "describe", "parse_version", "reads_rdb"]

#: The newest RDB format each release line reads (its own); later lines are taken to read everything.
RDB_READ = {
    "redis": (((5,), 9), ((6,), 9), ((7, 0), 10), ((7, 2), 11), ((7, 4), 12)),
    "valkey": (((7,), 11), ((8,), 11), ((9,), 11)),
    "keydb": (((6,), 9),),
}

_VERSION = re.compile(r"(postgres \(PostgreSQL\)|Redis server|Valkey server|KeyDB server) (?:v=)?(\d+(?:\.\d+)*)")
_FLAVOURS = {
    "postgres (PostgreSQL)": "postgresql",
    "Redis server": "redis",
    "Valkey server": "valkey",
    "KeyDB server": "keydb",
}


@dataclass(frozen=True)
class Installation:
    """One server program that was found and said its version.

    :ivar flavour: ``postgresql``, ``redis``, ``valkey`` or ``keydb``.
    :ivar version: its version, for example ``(15, 20)`` or ``(9, 1, 2)``.
    :ivar server: the server program.
    :ivar source: where it comes from, for people.
    :ivar tree: for a wheel, what belongs to the program and has to travel with it when it is copied.
    """

    flavour: str
    version: tuple[int, ...]
    server: Path
    source: str
    tree: tuple[Path, ...] = ()

    @property
    def directory(self) -> Path:
        """The directory of the server program and the tools that belong to it."""
        return self.server.parent

    @property
    def major(self) -> str:
        """What a PostgreSQL data directory says in ``PG_VERSION``: ``15``, or ``9.6`` before version 10."""
        digits = 2 if self.version[0] < 10 and self.flavour == "postgresql" else 1
        return ".".join(str(number) for number in self.version[:digits])

    @property
    def version_text(self) -> str:
        """The version as people write it: ``15.20``."""
        return ".".join(str(number) for number in self.version)

    def tool(self, name: str) -> Path | None:
        """A program of the same installation (``initdb``, ``psql``), or None where it does not have it."""
        path = self.directory / (name + self.server.suffix)
        return path if path.is_file() else None

    def __str__(self) -> str:
        return f"{self.flavour} {self.version_text} ({self.source}, {self.server})"


def parse_version(text: str) -> tuple[str, tuple[int, ...]] | None:
    """Flavour and version from what ``--version`` printed, or None for a program that is something else."""
    found = _VERSION.search(text)
    if found is None:
        return None
    return _FLAVOURS[found[1]], tuple(int(number) for number in found[2].split("."))


def choose_postgresql(found: Sequence[Installation], major: str | None) -> Installation | None:
    """The installation for a data directory.

    :param found: what :func:`discover` fired with.
    :param major: the directory's ``PG_VERSION``, or None for one still to be made.
    :return: the newest of that major version, or the newest of all for a new directory; None when no
        installation can open the directory.
    """
    fitting = [one for one in found if one.flavour == "postgresql" and major in (None, one.major)]
    return _preferred(fitting)


def choose_redis(found: Sequence[Installation], header: RdbHeader | None) -> Installation | None:
    """The installation for a data directory whose snapshot begins with *header* (None: there is none)."""
    return _preferred([one for one in found if header is None or reads_rdb(one, header)])


def _preferred(found: Sequence[Installation]) -> Installation | None:
    asked_for = [one for one in found if one.source == "bin_dir"]
    return max(asked_for or found, key=_rank, default=None)


def _rank(one: Installation) -> tuple[Any, ...]:
    # Redis before its forks where several are there: a file it writes is read by all of them. Then the
    # newest, and of equals the machine's own package before a wheel.
    return one.flavour in ("postgresql", "redis"), one.version, not one.tree


def reads_rdb(one: Installation, header: RdbHeader) -> bool:
    """Whether this server reads a snapshot with that header; Valkey 9 and Redis part ways here."""
    if header.magic == "VALKEY":
        return one.flavour == "valkey" and one.version >= (9,)
    limits = [limit for line, limit in RDB_READ[one.flavour] if one.version[: len(line)] == line]
    return header.version <= limits[0] if limits else True


def describe(found: Iterable[Installation]) -> str:
    """The installations in one line, for errors: ``postgresql 15.20 (Debian package), …``."""
    return ", ".join(f"{one.flavour} {one.version_text} ({one.source})" for one in found) or "none"
