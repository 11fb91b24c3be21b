"""Whether an open SQLite file is still the one at its path, and what is in it and its log still SQLite's own work.

A file may be removed, moved, replaced, or overwritten by a copy while it is open. SQLite takes the name for the file,
and what it kept in memory or finds in the log for what belongs to it, so that writes would be lost, or spoil the copy.
Here the file is looked at before a write and after it, and nothing is acknowledged that is not in the file at the path.

Where the system does not let it be looked at (too many open files, an error of the disk), that says nothing about the
file: it cannot be used as long as that lasts, and no longer. Only what was read and is not SQLite's work is for good.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from twisted.logger import Logger

from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.sqlite_catalog import LIVE_TABLES, is_live_trigger
from zcomm.data.drivers.turns import FileTurn
from zcomm.reading import FileIdentity, begin_to_hold, file_identity

__all__ = ["LOOKS", "UNKNOWN", "Compared", "FileWatch", "Sight", "identity_of", "reason_of"]

#: No number of SQLite's for a schema, which has 32 bits.
UNKNOWN = 1 << 32
# Bytes: a schema may have text in it that is not UTF-8.
_STATEMENTS = "SELECT type, CAST(tbl_name AS BLOB), CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master"


class Compared(NamedTuple):
    """The tables of a file that were compared with the models.

    :ivar number: SQLite's own for all its tables, which each change of one changes; :data:`UNKNOWN` to look again.
    :ivar names: of the tables, in small letters.
    :ivar statements: by which these, their indexes and triggers were made; and all others, where one is a view. Without
        the log of changes for live queries and the triggers that write it.
    """

    number: int
    names: frozenset[str]
    statements: frozenset[tuple[Any, ...]]

    @classmethod
    def of(cls, raw: sqlite3.Connection, names: frozenset[str]) -> Compared:
        """The tables as they are now, in a transaction of ``raw``."""
        number = raw.execute("PRAGMA schema_version").fetchone()[0]
        found = [
            (row, row[1].decode("utf-8", "replace").lower())
            for row in raw.execute(_STATEMENTS)
            if row[0] != "trigger" or not is_live_trigger(*row[2:])
        ]
        found = [(row, table) for row, table in found if table not in LIVE_TABLES]
        if not any(row[0] == "view" and table in names for row, table in found):
            found = [(row, table) for row, table in found if table in names]
        return cls(number, names, frozenset(row for row, _ in found))


#: What follows a file's name in those of its log and the index of that.
_LOGS = ("-wal", "-shm")
#: What follows it in the name of the journal of a file without a log.
_JOURNAL = "-journal"


def reason_of(error: OSError) -> str:
    """The reason of an error of the system, which says nothing about a file, in words for the log."""
    reason = error.strerror or str(error)
    is_full = error.errno in (errno.EMFILE, errno.ENFILE)
    return f"{reason}; raise the limit of open files (ulimit -n)" if is_full else reason


def _not_told(path: str, error: OSError) -> Fault:
    """The fault where the system does not let a file be looked at."""
    return Fault("down", (), f"{path} cannot be looked at: {reason_of(error)}")


def identity_of(path: str) -> FileIdentity | None:
    """The file that is at ``path``; ``None`` where there is none.

    :raises Fault: ``down`` when the system does not tell.
    """
    try:
        return file_identity(path)
    except OSError as error:
        raise _not_told(path, error) from error


def _looks(path: str) -> tuple[int, int] | None:
    """What a write changes of a file: when it was changed last, and its size; ``None`` where there is none.

    :raises Fault: ``down`` when the system does not tell.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _not_told(path, error) from error
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True, slots=True)
class _LogIndex:
    """The head of the index of a write-ahead log (SQLite documentation, "WAL-mode File Format", 2.2).

    :ivar head: the counts of the log, by which readers find what is in it.
    :ivar backfilled: how many frames of it are in the file, and how many somebody set out to copy there.
    """

    head: bytes
    backfilled: tuple[int, int]

    @property
    def page(self) -> int:
        """Bytes of a page."""
        size: int = struct.unpack_from("=H", self.head, 14)[0]
        # 64 KiB does not fit in there.
        return 65536 if size == 1 else size

    @property
    def frames(self) -> int:
        """How many pages the log has."""
        found: int = struct.unpack_from("=I", self.head, 16)[0]
        return found

    @property
    def settled(self) -> bool:
        """Whether nobody is copying into the file."""
        return self.backfilled[0] == self.backfilled[1]

    @property
    def state(self) -> bytes:
        """All that changes when something is copied into the file."""
        return self.head[32:40] + struct.pack("=2I", *self.backfilled)

    def ends(self, log: int) -> bool:
        """Whether the open log is as long as the index says, and its last frame the one that the index knows."""
        size, frames = self.page, self.frames
        if not frames:
            return True
        first = os.pread(log, 32, 0)
        last = os.pread(log, 24, 32 + (frames - 1) * (24 + size))
        whole = os.fstat(log).st_size >= 32 + frames * (24 + size)
        salt, checksum = self.head[32:40], struct.pack(">2I", *struct.unpack_from("=2I", self.head, 24))
        return whole and first[16:24] == salt and last[8:16] == salt and last[16:24] == checksum


class _OpenLog:
    """The log of a file and its index, as the open connections have them.

    It has a descriptor of the log, which is closed when nobody looks at it any more: to look takes no other, so that a
    process without any left can do it. SQLite has no locks on the log, which closing one would take away.

    :param file: the path of the file itself, not of a link to it.
    :raises OSError: when the log cannot be opened.
    """

    __slots__ = ("_descriptor", "identities", "settled", "turn")

    def __init__(self, file: str):
        self._descriptor = -1
        #: The turn at writing among processes; ``None`` where this one may not write to it.
        self.turn: FileTurn | None = None
        #: By path, the log first.
        self.identities = {file + end: file_identity(file + end) for end in _LOGS}
        #: What the log said when nobody was copying from it into the file, and what the file looked like then.
        self.settled: tuple[bytes, tuple[int, int]] | None = None
        log, known = next(iter(self.identities.items()))
        try:
            self._descriptor = os.open(log, os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            self._descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self.turn = FileTurn(self._descriptor)
        found = os.fstat(self._descriptor)
        if (found.st_dev, found.st_ino) != known:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), log)

    def __del__(self) -> None:
        if self.turn is None and self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def paths(self) -> str:
        """Both names, for a person to read."""
        return " and ".join(self.identities)

    def index(self) -> bytes:
        """The beginning of the index as it is now; empty where there is none.

        :raises OSError: when it cannot be read.
        """
        path = list(self.identities)[1]
        known = self.identities[path]
        return b"" if known is None else _read_index(path, known)

    def ends(self, index: _LogIndex) -> bool:
        """Whether the log ends as ``index`` says. :raises OSError: when it cannot be read."""
        return index.ends(self._descriptor)


#: The open indexes of logs. To close one takes SQLite's own locks on it away, in the whole process (POSIX), so that one
#: stays open as long as it is there, whoever stopped looking at it.
_INDEXES: dict[FileIdentity, int] = {}
#: The files that connections were left open to because they must not be closed any more, and who looks after them.
_ABANDONED: dict[FileIdentity | None, FileWatch] = {}
_KEPT: list[sqlite3.Connection] = []
_opening = threading.Lock()
#: How often the index is read until it stays the same for the time of a look.
LOOKS = 5


def _read_index(path: str, known: FileIdentity) -> bytes:
    """The beginning of the index ``known`` at ``path``, as it is; empty where it is gone.

    :raises OSError: when it cannot be read.
    """
    with _opening:
        descriptor = _INDEXES.get(known)
        if descriptor is None:
            if file_identity(path) != known:
                return b""
            descriptor = _INDEXES[known] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(descriptor, 132, 0)


def _log_index(found: bytes) -> _LogIndex | None:
    """What an index begins with; ``None`` where it is none, or somebody is writing to it."""
    # Its head is there twice, and whoever changes it changes one after the other. Version 3007000 is all there is.
    if len(found) < 132 or found[:48] != found[48:96] or struct.unpack_from("=I", found)[0] != 3007000:
        return None
    return _LogIndex(found[:48], (struct.unpack_from("=I", found, 96)[0], struct.unpack_from("=I", found, 128)[0]))


def _forget_indexes() -> None:
    """Close the indexes that SQLite removed."""
    with _opening:
        for key, descriptor in list(_INDEXES.items()):
            if not os.fstat(descriptor).st_nlink:
                os.close(_INDEXES.pop(key))


def _abandon(raw: sqlite3.Connection) -> None:
    """Keep a connection from ever being closed, also when the interpreter ends and lets go of all that it has."""
    if hasattr(ctypes, "pythonapi"):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))
    else:
        # What has no counts of references closes nothing at its end.
        _KEPT.append(raw)


@dataclass(frozen=True, slots=True)
class Sight:
    """The state of a file as a connection without a log knows it, by which it finds out that others changed that.

    :ivar looks: the file as it was before the rest was found out.
    :ivar version: changes when SQLite dropped what it kept of the file, as it does where counts in its head changed.
    :ivar schema: the tables and where they are.
    :ivar immutable: whether the file was taken for one that nobody writes to.
    """

    looks: tuple[int, int] | None
    version: int
    schema: tuple[tuple[Any, ...], ...]
    immutable: bool


def _version(raw: sqlite3.Connection) -> int:
    version: int = raw.execute("PRAGMA data_version").fetchone()[0]
    return version


def _schema(raw: sqlite3.Connection) -> tuple[tuple[Any, ...], ...]:
    # Bytes: a schema may have text in it that is not UTF-8.
    return tuple(raw.execute("SELECT type, CAST(name AS BLOB), rootpage, CAST(sql AS BLOB) FROM sqlite_master"))


class FileWatch:
    """The look at one file for all connections that a process has to it.

    :param path: the file, absolute.
    """

    _log = Logger()

    def __init__(self, path: str):
        self.path = path
        #: The file that is served; what else comes to stand at its path is another database.
        self._served: FileIdentity | None = None
        #: The log of the open connections, and how many those are.
        self._opened: _OpenLog | None = None
        self._connections = 0
        #: Held while a connection is opened or closed.
        self.counting = threading.Lock()
        #: Why the open file is not the database any more, once that was seen.
        self._spoilt = ""
        #: The tables that were compared with the schema; ``None`` before that.
        self.compared: Compared | None = None
        #: How often they were since the start.
        self.comparisons = 0

    def serve(self) -> bool:
        """Take the file that is at the path for the one to serve; whether it may be.

        One that this process left open, because it was overwritten, may not: SQLite would go on with the log that it
        still has open.

        :raises OSError: when the system does not tell which it is.
        """
        begin_to_hold(self)
        self._served = file_identity(self.path)
        self._spoilt, self.compared = "", None
        if self._opened is not None:
            self._opened.settled = None
        return self._served not in _ABANDONED

    def held(self) -> set[FileIdentity]:
        """The files that SQLite has open, or may open at any moment (:class:`zcomm.reading.Holder`)."""
        file = os.path.realpath(self.path)
        # They may have been moved since.
        found = {self._served, *([] if self._opened is None else self._opened.identities.values())}
        for end in ("", *_LOGS, _JOURNAL):
            # What cannot be looked at cannot be opened either.
            with suppress(OSError):
                found.add(file_identity(file + end))
        return {each for each in found if each is not None}

    def log_file(self) -> str:
        """The path of the log, which stands beside the file itself, not beside a link to it."""
        return os.path.realpath(self.path) + _LOGS[0]

    @property
    def written_file(self) -> str:
        """The path of the file that a write changes first: the log, where the open file has one."""
        opened = self._opened
        return self.path if opened is None else next(iter(opened.identities))

    def in_place(self) -> bool:
        """Whether the open file is still the one at the path. :raises Fault: ``down`` when the system does not tell."""
        return identity_of(self.path) == self._served

    def looks(self) -> tuple[int, int] | None:
        """The file before it is opened: what :meth:`opened` takes."""
        return _looks(self.path)

    def opened(self, raw: sqlite3.Connection, looks: tuple[int, int] | None, immutable: bool) -> Sight | None:
        """Count a connection that has just read from the file.

        :param looks: the file as it was before.
        :param immutable: whether the connection takes the file for one that nobody writes to.
        :returns: what it knows of a file without a log; ``None`` for one with a log.
        """
        mode = raw.execute("PRAGMA journal_mode").fetchone()[0]
        self.verify()
        sight = None
        if mode != "wal" or immutable:
            sight = Sight(looks, _version(raw), _schema(raw), immutable)
        elif self._opened is None:
            try:
                self._opened = _OpenLog(os.path.realpath(self.path))
                self._settle(raw)
                self._watch()
            except OSError as error:
                self._opened = None
                raise _not_told(self.log_file(), error) from error
            except BaseException:
                # The connection will be closed, and its log with it.
                self._opened = None
                raise
        self._connections += 1
        return sight

    def close(self, raw: sqlite3.Connection) -> None:
        """Close a connection that was counted, or leave it open where closing it would, or may, spoil a file."""
        with self.counting:
            is_known = True
            if not self._spoilt and self._connections == 1:
                try:
                    if self.in_place():
                        self._look_before_closing()
                except Fault as fault:
                    is_known = fault.kind != "down"
                    self._log.critical("{reason}", reason=fault.detail)
            if self._spoilt or not is_known:
                # The last one to close the file copies the log into it, which is another file's.
                if self._spoilt:
                    _ABANDONED[self._served] = self
                _abandon(raw)
                return
            self._connections -= 1
            if not self._connections:
                # SQLite removes the log when nobody needs it.
                self._opened = None
            raw.close()
        _forget_indexes()

    @property
    def turn(self) -> FileTurn | None:
        """The turn of this process at writing; ``None`` where SQLite alone keeps processes apart."""
        return None if self._opened is None else self._opened.turn

    @property
    def log_size(self) -> int:
        """Bytes of the pages in the log, about; 0 where there is none, or nobody knows."""
        opened = self._opened
        try:
            index = None if opened is None else self._index(opened)
        except Fault:
            return 0
        return 0 if index is None else index.page * index.frames

    def verify(self) -> None:
        """Look at names and content before a write.

        :raises Fault: ``refused`` for another file than the one that is served.
        """
        self._verify_names()
        self._watch()

    def confirm(self) -> None:
        """Look at names and content after a write.

        :raises Fault: ``moved`` where it may have gone into another file.
        """
        try:
            self._verify_names()
            opened = self._opened
            index = None if opened is None else self._index(opened)
            if opened is not None and index is not None and opened.settled and index.state == opened.settled[0]:
                # The end of the log is what was just written, and tells no more than before.
                self.guard()
            else:
                self._watch()
        except Fault as fault:
            raise replace(fault, kind="moved") from None

    def recognized(self, raw: sqlite3.Connection, sight: Sight) -> Sight | None:
        """The state of the file for a connection without a log; ``None`` where that has to be opened anew.

        SQLite itself finds out that others wrote, by counts in the head of the file. It does not where a copy was put
        over the file whose counts came to be the same, and keeps pages, or the schema, of what was there before.
        """
        if self._opened is not None:
            # Another connection found one.
            return None
        if sight.immutable:
            same = _looks(self.path) == sight.looks and identity_of(self.log_file()) is None
            return sight if same else None
        if _looks(self.path) == sight.looks:
            return sight
        looks, version = self._at_rest(raw)
        if version == sight.version or raw.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return None
        return Sight(looks, version, sight.schema, False) if _schema(raw) == sight.schema else None

    def seen(self, raw: sqlite3.Connection, sight: Sight) -> Sight:
        """The state of the file for a connection that has just written to it itself."""
        if _looks(self.path) == sight.looks:
            return sight
        looks, version = self._at_rest(raw)
        return replace(sight, looks=looks, version=version)

    def _at_rest(self, raw: sqlite3.Connection) -> tuple[tuple[int, int] | None, int]:
        """The look at a file without a log, and SQLite's count of what others wrote, while nobody writes by SQLite: in
        the middle of a write it looks otherwise than after that, and the count is the same."""
        raw.execute("BEGIN").close()
        try:
            version = _version(raw)
            return _looks(self.path), version
        finally:
            raw.execute("ROLLBACK").close()

    def _verify_names(self) -> None:
        """Raise :class:`Fault` where other files stand at the paths than those that are open."""
        found = identity_of(self.path)
        if found != self._served:
            raise Fault("refused", (), self._astray(self.path, found))
        opened = self._opened
        for log, known in () if opened is None else opened.identities.items():
            if identity_of(log) != known and opened is self._opened:
                raise Fault(
                    "refused", (), f"{log} was removed or replaced, and no write is safe without it; restart zComm"
                )

    def _settle(self, raw: sqlite3.Connection) -> None:
        """Have the log copied into the file where it is not known whether that is going on, as after a crash."""
        index = None if self._opened is None else self._index(self._opened)
        if index is not None and not index.settled:
            try:
                raw.execute("PRAGMA wal_checkpoint").close()
            except sqlite3.Error:
                pass  # read-only, or others are at it

    def _index(self, opened: _OpenLog) -> _LogIndex | None:
        """The index of the log as it is now. :raises Fault: ``down`` when it cannot be read."""
        try:
            return _log_index(opened.index())
        except OSError as error:
            raise _not_told(self.log_file(), error) from error

    def guard(self) -> None:
        """Raise :class:`Fault` for a file with a log that others wrote to: a look at its times for every statement."""
        if self._spoilt:
            raise Fault("refused", (), self._spoilt)
        settled = None if self._opened is None else self._opened.settled
        if settled is not None and _looks(self.path) != settled[1]:
            self._watch()

    def _watch(self, log_matters: bool = True) -> None:
        """Find out whether something else than SQLite wrote to the open file or its log.

        All that SQLite writes goes to the log, and from there to the file, which the index of the log tells before
        and after. So the file cannot change while the index stays what it is, and the log ends as the index says.

        :param log_matters: whether to look at the log as well.
        :raises Fault: ``refused``, from then on, when it did; ``down`` when it cannot be looked at now.
        """
        if self._spoilt:
            raise Fault("refused", (), self._spoilt)
        opened = self._opened
        if opened is None:
            return
        try:
            for _ in range(LOOKS):
                found = opened.index()
                index = _log_index(found)
                if index is None:
                    continue
                looks, ends_so = _looks(self.path), not log_matters or opened.ends(index)
                if opened.index() != found:
                    # A write or a checkpoint came between.
                    continue
                if opened is not self._opened:
                    # The last connection was closed meanwhile, and the log is nobody's.
                    return
                if not ends_so:
                    self._spoil(next(iter(opened.identities)), opened)
                if index.settled and looks is not None:
                    known = opened.settled
                    if known is not None and known[0] == index.state and known[1] != looks:
                        self._spoil(self.path, opened)
                    opened.settled = index.state, looks
                return
        except OSError as error:
            raise _not_told(self.log_file(), error) from error

    def _spoil(self, path: str, opened: _OpenLog) -> None:
        # A copy cannot be told from a mere touch, after which the log has what was acknowledged.
        self._spoilt = (
            f"{path} was overwritten or touched while it was open, by something else than SQLite; stop zComm and start "
            f"it again; only if {self.path} was put back from a copy, move {opened.paths} away in between"
        )
        raise Fault("refused", (), self._spoilt)

    def _astray(self, path: str, found: FileIdentity | None) -> str:
        if found is None:
            return f"{path} was removed or moved; put it back, or restart zComm to begin with a new one"
        logs = {} if self._opened is None else self._opened.identities
        stale = [log for log, known in logs.items() if known is not None and identity_of(log) == known]
        if stale:
            # SQLite would take what is in them for a part of the new file.
            return (
                f"{path} was replaced, and beside it is the log of the file before; stop zComm, "
                f"move {' and '.join(stale)} away, and start it again"
            )
        return f"{path} was replaced by another file; restart zComm to use that, or put the old one back"

    def _look_before_closing(self) -> None:
        """Raise :class:`Fault` where the last connection would put the log into other content than it is of.

        A log that is merely gone does no harm: it is copied into the file from where it is open, and so rescued.
        """
        opened = self._opened
        if opened is not None:
            log = next(iter(opened.identities))
            looks = _looks(log)
            # An empty one is of somebody who only read.
            begun = looks is not None and looks[1] > 0
            if begun and any(identity_of(each) not in (None, known) for each, known in opened.identities.items()):
                self._spoil(log, opened)
        self._watch(log_matters=False)
