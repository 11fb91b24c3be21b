"""SQLite: an embedded database in one file.

In a file that is made here readers do not wait for the writer (WAL); a file that is there keeps its journal. Writers of
this process take turns here instead of polling for the file's lock, and every commit is on the disk before it is
reported: in the file that is at the path, which is not the open one when somebody removed or replaced it.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import stat
import time
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.elements import ColumnElement
from twisted.logger import Logger

from zcomm.data.catalog import Relation
from zcomm.data.drivers.driver import (
    FEW_ROWS,
    FREE_BYTES,
    Backend,
    Fault,
    Writer,
    no_column,
    size_of,
    sliced,
)
from zcomm.data.drivers.sqlite_catalog import LIVE_TABLES, find_relations
from zcomm.data.drivers.sqlite_columns import FUNCTIONS, Seen, column_of
from zcomm.data.drivers.sqlite_texts import PIECE, Folding, decoded, folded
from zcomm.data.drivers.sqlite_watch import LOOKS, UNKNOWN, Compared, FileWatch, Sight, identity_of, reason_of
from zcomm.data.drivers.turns import FileTurn, OneAtATime, Turns
from zcomm.data.filters import ASCII_LITERAL, FOLDED_LITERAL, FOLDED_PATTERN, PATTERN
from zcomm.data.models import Model
from zcomm.data.sql.statements import RESULT_BYTES
from zcomm.errors import ConfigError
from zcomm.reading import open_to_everybody
from zcomm.runtime.files import make_private_file
from zcomm.text import quoted, redact_url

__all__ = ["SQLiteDatabase"]

#: Seconds that one user's command may keep others from a database in memory: reads and writes alike.
_MEMORY_HOLD = 0.05
#: The place of the statement that calls our functions or fetches many rows, and seconds that others wait for it.
_place = OneAtATime()
_PATIENCE = 0.02
#: How often a statement looks at the clock, in steps of SQLite's machine; about a millisecond.
_STEPS = 20_000
#: Bytes of a text that take one of our functions as long as to be called.
_CALL = 64
#: How many statements a connection has ready, and characters of them at most: compiled they take several times as much.
_READY, _READY_LENGTH = 100, 64 << 10
#: How many descriptors a connection may take: of the file, its log, the index of that, its directory, and ours.
_DESCRIPTORS = 6
#: Bytes of the log from which on one sees to it that it begins anew, after how many turns one looks at it, and
#: milliseconds that those who read it are waited for.
_LOG, _LOG_LOOK, _LOG_WAIT = 16 << 20, 50, 50
#: Seconds for which several threads write one after the other in one turn of the process.
_KEEP = 0.002
#: Seconds, about eleven days.
_FOR_EVER = 1e6
#: RETURNING came with 3.35.
_OLDEST = (3, 35, 0)
#: Bytes that a value may have for SQLite itself.
_LONGEST = 1_000_000_000
_FAULTS = {
    "SQLITE_INTERRUPT": "timeout",
    "SQLITE_BUSY": "busy",
    "SQLITE_LOCKED": "busy",
    "SQLITE_FULL": "full",
    "SQLITE_READONLY": "full",
    "SQLITE_IOERR": "full",
    "SQLITE_CANTOPEN": "down",
    "SQLITE_CORRUPT": "refused",
    "SQLITE_NOTADB": "refused",
    "SQLITE_PERM": "full",
    "SQLITE_NOLFS": "full",
    "SQLITE_PROTOCOL": "busy",
    "SQLITE_FORMAT": "refused",
    "SQLITE_AUTH": "forbidden",
    "SQLITE_NOMEM": "large",
    "SQLITE_TOOBIG": "invalid",
    "SQLITE_MISMATCH": "invalid",
}
#: The columns in indexes of all rows, and whether one begins with it.
_INDEXED = (
    "SELECT x.name, x.seqno = 0 FROM pragma_index_list(?) i JOIN pragma_index_xinfo(i.name) x "
    "WHERE x.key AND x.cid >= 0 AND NOT i.partial"
)
_STRICT_TABLE = "SELECT strict FROM pragma_table_list WHERE schema = 'main' AND name = ?"
#: The kinds whose values are written in the form of those that are there.
_LEARNT = ("bool", "date", "datetime", "decimal", "time", "uuid")
#: How many values of a column are looked at from each end.
_LOOKED_AT = 500
#: The beginnings of statements that change rows, and of all that depend on what tables are like.
_WRITES = ("INSERT", "UPDATE", "DELETE")
_WORK = ("SELECT", *_WRITES)
#: What ends a transaction.
_ENDS = ("COMMIT", "ROLLBACK")
#: What SQLite compiles of a comparison.
_COMPARISONS = ("Gt", "Ge", "Lt", "Le")
_NAMES = "SELECT name FROM sqlite_master WHERE type = 'table'"
#: What is said of a statement that held when the server started.
_GONE = ("no such ", "table ", "malformed database schema", "error in ", "unknown function")
_GENERATED = re.compile(r'cannot (?:INSERT into|UPDATE) generated column "(.*)"\Z', re.DOTALL)
#: Of a table that is STRICT: cannot store TEXT value in INT column Users.age
_STRICT = re.compile(r"cannot store [A-Z]+ value in [A-Z]+ column ")
#: The parameters of SQLite's URIs, and what they may be.
_URI_PARAMETERS = {"mode": ("ro", "rw", "rwc", "memory"), "immutable": ("0", "1"), "nolock": ("0", "1"), "vfs": ()}


def _fault(error: BaseException | None) -> Fault:
    """Classify an error of SQLite's library as a fault."""
    name = getattr(error, "sqlite_errorname", None) or ""
    text = str(error)
    if _STRICT.match(text):
        # Python has no name for this one.
        return Fault("invalid", _columns_of(text.partition(" column ")[2]), text)
    if name.startswith("SQLITE_CONSTRAINT"):
        columns = _columns_of(text.partition(": ")[2])
        kinds = {
            "SQLITE_CONSTRAINT_UNIQUE": "unique",
            "SQLITE_CONSTRAINT_PRIMARYKEY": "unique",
            "SQLITE_CONSTRAINT_ROWID": "unique",
            "SQLITE_CONSTRAINT_NOTNULL": "not_null",
            "SQLITE_CONSTRAINT_FOREIGNKEY": "foreign_key",
            # ON DELETE RESTRICT is a trigger within.
            "SQLITE_CONSTRAINT_TRIGGER": "foreign_key" if text == "FOREIGN KEY constraint failed" else "raised",
            "SQLITE_CONSTRAINT_CHECK": "check",
        }
        if kinds.get(name) == "check":
            # The name of the constraint, or the condition itself.
            columns = tuple(dict.fromkeys(re.findall(r"\w+", text.partition(": ")[2])))
        return Fault(kinds.get(name, "invalid"), columns, text)
    if _is_undecodable(error):
        # The library's own words quote the text.
        return Fault("unknown", (), "a text is not UTF-8")
    if text == "cannot UPSERT a view":
        return Fault("unsupported", (), text)
    generated = _GENERATED.match(text)
    if generated is not None:
        return Fault("invalid", (generated[1],), text)
    if name == "SQLITE_SCHEMA" or (name == "SQLITE_ERROR" and text.startswith(_GONE)):
        # Others changed the tables since the start.
        return Fault("refused", (), f"{text}; the tables are not what they were at the start; restart zComm")
    # Extended codes continue the basic ones: SQLITE_BUSY_SNAPSHOT.
    basic = "_".join(name.split("_")[:2])
    if isinstance(error, (OverflowError, sqlite3.DataError)) and basic not in _FAULTS:
        return Fault("invalid", (), text)
    reason = _why_nothing_opens() if basic in ("SQLITE_CANTOPEN", "SQLITE_IOERR") else ""
    if name == "SQLITE_IOERR_SHMSIZE":
        # Before anything is read the index of the log is made, which is a file of its own.
        reason = reason or "; no room is left on the disk, it seems"
    return Fault(_FAULTS.get(basic, "unknown"), (), f"{name} {text}{reason}")


def _why_nothing_opens() -> str:
    """What the system says where it gives this process no descriptors, which SQLite does not tell."""
    opened: list[int] = []
    try:
        while len(opened) < _DESCRIPTORS:
            opened += os.pipe()
    except OSError as error:
        return f": {reason_of(error)}"
    finally:
        for each in opened:
            os.close(each)
    return ""


def _may(path: str, mode: int) -> bool:
    """Whether this process may do something with a file, as the user that it works as."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _columns_of(text: str) -> tuple[str, ...]:
    """The columns in ``Users.email, Users.name``, where the names may have dots and commas themselves.

    Each dot may be the one after the table; a column that there is not does no harm.
    """
    found: dict[str, None] = {}
    for place, char in enumerate(text):
        if char == ".":
            found.update(dict.fromkeys(text[place + 1 :].split(f", {text[: place + 1]}")))
    return tuple(found)


def _is_undecodable(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode to UTF-8")


def _glob(pattern: str) -> str:
    """A LIKE pattern with backslash as its escape, as a GLOB pattern."""
    parts: list[str] = []
    escaped = False
    for char in pattern:
        if escaped or char not in "\\%_":
            # GLOB has no escape; a set of one character stands for that character.
            parts.append(f"[{char}]" if char in "*?[" else char)
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            parts.append("*" if char == "%" else "?")
    return "".join(parts)


def _fetched(cursor: sqlite3.Cursor, max_bytes: int) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for row in cursor:
        rows.append(row)
        max_bytes -= size_of(row)
        if max_bytes < 0:
            raise Fault("large", (), "the rows of a read")
    return rows


class _Connection:
    """One SQLite connection (see :class:`zcomm.data.drivers.driver.Connection`).

    :param file: the look at the file that it has open; ``None`` in memory.
    :param sight: what it knows of a file without a log.
    :param connect: opens the file anew.
    :param writes: whether it is to be one that can write.
    :ivar turn: whose turn it has at writing, while it has.
    :ivar renewals: how often the file was opened anew: what was known of it before need not hold.
    """

    #: What runs does so in the thread that waits for it.
    backend = None
    process: int | None = None
    waits_since = float("inf")

    def __init__(
        self,
        raw: sqlite3.Connection,
        statement_timeout: float,
        file: FileWatch | None = None,
        sight: Sight | None = None,
        connect: Callable[[], _Connection] | None = None,
        writes: bool = False,
    ):
        self._raw = raw
        self._limit = statement_timeout
        self._file = file
        self._sight = sight
        self._connect = connect
        self._writes = writes
        self._until = float("inf")
        #: Seconds that a statement of the snapshot may run.
        self._hurry = float("inf")
        self._closed = False
        self.turn: Turns | None = None
        self.renewals = 0
        #: Whether the transaction writes nothing.
        self._only_reads = False
        #: Whether a statement was cut short for others; whether a transaction is being ended, which nothing cuts short.
        self._gave_way = self._ending = False
        #: Whether the statement that runs has called our functions or has many rows, and has the place of those that
        #: do; whether one of them has cut it short.
        self._calls = self._has_place = self._is_cut = False
        #: What these have done since one looked, as bytes of texts.
        self._worked = 0
        #: The statements that it may have ready, and their characters.
        self._ready: set[str] = set()
        self._ready_length = 0
        #: Whether a statement was compiled since the tables were known to be those that were compared with the schema.
        self._compiled = True
        #: Whether it can write less than the file lets it.
        self._lame = False
        #: The comparisons that whoever uses it may know of.
        self._comparisons = 0 if file is None else file.comparisons
        self._install()

    def _install(self) -> None:
        #: Bytes that a value may have, as SQLite is set; 0 where that is not known.
        self._length = 0
        self._raw.set_progress_handler(self._looks, _STEPS)
        self._folding = Folding()
        self._raw.create_function("zcomm_fold", 1, self._alone(self._folding), deterministic=True)
        for name, (count, function) in FUNCTIONS.items():
            self._raw.create_function(name, count, self._alone(function), deterministic=True)
        if self._file is not None:
            self._raw.set_authorizer(self._compiling)

    def _alone(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` for statements of which one at a time calls such: of several threads that compute, each makes
        the reactor wait for its turn. Between calls one looks whether the statement is to end."""

        def call(*values: Any) -> Any:
            if not self._calls:
                self._calls = True
                self._take_place()
            made = function(*values)
            value = values[0]
            self._worked += _CALL + (len(value) if isinstance(value, (str, bytes)) else 0)
            if self._worked > PIECE:
                # SQLite itself looks by its own steps, of which a call is one, however long it takes.
                self._worked = 0
                self._is_cut = self._looks()
                if self._is_cut:
                    raise TimeoutError
            return made

        return call

    def _take_place(self) -> None:
        with self._waiting():
            # Whoever has it may be busy with something else.
            self._has_place = _place.take(_PATIENCE)

    def _looks(self) -> bool:
        """Called in the middle of a statement, in its thread: lets another one have its place. Returns whether it is to
        end."""
        self._hand_on()
        return self._overdue()

    def _hand_on(self) -> None:
        if self._has_place and _place.is_waited_for:
            _place.give_back()
            self._take_place()

    def _in_hundreds(self, cursor: sqlite3.Cursor, writer: Writer) -> list[tuple[Any, ...]]:
        """As :func:`sliced`, of rows that are small each, which need not be measured."""
        writer.begin()
        rows = cursor.fetchmany(FEW_ROWS + 1)
        if len(rows) <= FEW_ROWS:
            return rows
        if not self._calls:
            # To fetch rows is to make values of them.
            self._calls = True
            self._take_place()
        while rows:
            writer.take(rows)
            self._hand_on()
            rows = cursor.fetchmany(FEW_ROWS)
        return rows

    def _overdue(self) -> bool:
        if self._ending:
            # SQLite would report as interrupted what it has just done.
            return False
        now = time.monotonic()
        turn = self.turn
        if turn is not None and turn.in_the_way(now):
            self._gave_way = True
            return True
        return now > self._until

    def expire(self) -> None:
        if self._overdue():
            self.interrupt()

    def _compiling(self, *_: object) -> int:
        """Called when SQLite compiles a statement, as it also does for one that it knows once tables have changed."""
        self._compiled = True
        return sqlite3.SQLITE_OK

    def _compare(self) -> None:
        """Raise :class:`Fault` where tables are not those that were compared with the schema.

        No statement runs on other tables than those that it was compiled for, so that nothing need be asked of those
        that were compiled before.
        """
        file = self._file
        known = None if file is None else file.compared
        if file is not None and known is not None:
            if self._raw.execute("PRAGMA schema_version").fetchone()[0] != known.number:
                found = Compared.of(self._raw, known.names)
                if found.statements != known.statements:
                    raise Fault("migrated", (), "others changed tables")
                # Tables that nobody asks for, or a VACUUM.
                file.compared = found
            if file.comparisons != self._comparisons:
                # Whoever asks may not know yet what came of the last one.
                self._comparisons = file.comparisons
                raise Fault("migrated", (), "others changed tables")
        self._compiled = False

    def alive(self) -> bool:
        if self._closed or self._lame:
            return False
        try:
            return self._file is None or self._file.in_place()
        except Fault:
            # Whatever it is used for looks again.
            return True

    def _check(self) -> None:
        """See to it that what SQLite keeps of the file is of what is there now.

        :raises Fault: when that cannot be had.
        """
        file = self._file
        if file is None or self._connect is None:
            return
        file.guard()
        if self._sight is None or self._raw.in_transaction:
            return
        try:
            self._sight = file.recognized(self._raw, self._sight)
        except sqlite3.Error as error:
            if _fault(error).kind == "busy":
                raise
            self._sight = None
        if self._sight is None:
            self.close()
            fresh = self._connect()
            self._raw, self._sight, self._closed = fresh._raw, fresh._sight, False
            self.renewals += 1
            self._install()
            if file.compared is not None:
                # Another file's tables may have the same number.
                file.compared = file.compared._replace(number=UNKNOWN)

    def _remember(self) -> None:
        """Take what the file looks like for the work of this connection, which has just written to it."""
        if self._file is not None and self._sight is not None and not self._raw.in_transaction:
            # Without that it is opened anew. What was written is written.
            with suppress(sqlite3.Error, Fault):
                self._sight = self._file.seen(self._raw, self._sight)

    def run(
        self,
        sql: str,
        parameters: Sequence[Any],
        fetches: bool,
        max_bytes: int | None = None,
        writer: Writer | None = None,
    ) -> tuple[list[tuple[Any, ...]], int]:
        self._until = time.monotonic() + min(self._limit, self._hurry)
        self._gave_way = self._is_cut = False
        self._ending = sql in _ENDS
        try:
            if self.turn is not None and self._overdue():
                raise Fault("in_the_way", (), "others wait to write")
            for _ in range(LOOKS):
                self._check()
                sight = self._sight
                found = self._decoded(sql, parameters, fetches, max_bytes, writer)
                if sight is None or not sight.immutable or self._file is None:
                    return found
                # Nothing kept others from writing meanwhile.
                if self._file.recognized(self._raw, sight) is sight:
                    return found
            raise Fault("busy", (), "others write to a file that was opened for reading alone")
        except (sqlite3.Error, OverflowError) as error:
            fault = Fault("timeout") if self._is_cut else _fault(error)
            if self._gave_way and fault.kind == "timeout":
                raise Fault("in_the_way", (), "others wait to write") from error
            if getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY" and self._can_do_less():
                self._lame = True
                raise Fault("down", (), "the file was opened for reading alone, and may be written to") from error
            if self._compiled or getattr(error, "sqlite_errorname", "") in ("SQLITE_ERROR", "SQLITE_SCHEMA"):
                # It may be one of tables that others changed. One whose trigger misses a table goes by the tables that
                # the connection read last, also when it is back; any other statement has them read anew.
                with suppress(sqlite3.Error):
                    self._raw.execute("SELECT 1 FROM sqlite_master LIMIT 0").close()
                    self._compare()
            try:
                raise fault from error
            finally:
                # Else the frame in its traceback would hold it: garbage that only the collector finds.
                del fault
        finally:
            self._until = float("inf")
            if self._calls:
                self._calls = False
                self._folding.forget()
                if self._has_place:
                    self._has_place = False
                    _place.give_back()

    def _can_do_less(self) -> bool:
        """Whether SQLite opened the file or its log for reading alone, though the system lets them be written to.

        It does so whatever the reason is that one cannot be opened for writing, be it that no descriptor was left.
        """
        if self._file is None or not self._writes or self._raw.in_transaction:
            return False
        log = self._file.log_file()
        if not all(_may(place, os.W_OK) for place in (self._file.path, os.path.dirname(log))):
            return False
        if identity_of(log) is not None and not _may(log, os.W_OK):
            return False
        try:
            self._raw.execute("BEGIN IMMEDIATE").close()
        except sqlite3.Error as error:
            return getattr(error, "sqlite_errorname", "") == "SQLITE_READONLY"
        self._raw.execute("ROLLBACK").close()
        return False

    def _decoded(
        self, sql: str, parameters: Sequence[Any], fetches: bool, max_bytes: int | None, writer: Writer | None
    ) -> tuple[list[tuple[Any, ...]], int]:
        # Decoding with replacements takes several times as long. What writes cannot be run again when it fails.
        reads = sql.startswith("SELECT")
        self._raw.text_factory = str if reads else decoded
        try:
            found = self._run(sql, parameters, fetches, max_bytes, writer)
        except sqlite3.OperationalError as error:
            if not reads or not _is_undecodable(error):
                raise
            self._raw.text_factory = decoded
            found = self._run(sql, parameters, fetches, max_bytes, writer)
        if not reads:
            self._remember()
        return found

    def _run(
        self, sql: str, parameters: Sequence[Any], fetches: bool, max_bytes: int | None, writer: Writer | None
    ) -> tuple[list[tuple[Any, ...]], int]:
        if self._file is None or not sql.startswith(_WRITES) or self._raw.in_transaction:
            return self._executed(sql, parameters, fetches, max_bytes, writer)
        # Not a transaction by itself: it is undone where it meets other tables.
        with self._waiting():
            self._raw.execute("BEGIN IMMEDIATE").close()
        try:
            found = self._executed(sql, parameters, fetches, max_bytes, writer)
            self._ending = True
            self._raw.execute("COMMIT").close()
        except BaseException:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK").close()
            raise
        return found

    def _executed(
        self, sql: str, parameters: Sequence[Any], fetches: bool, max_bytes: int | None, writer: Writer | None
    ) -> tuple[list[tuple[Any, ...]], int]:
        if writer is not None:
            found = self._written(sql, parameters, max_bytes is None, writer)
            if self._compiled:
                self._compare()
            self._note(sql)
            return found, -1
        self._bound(_LONGEST)
        cursor = self._raw.execute(sql, parameters)
        found = []
        count = -1
        if max_bytes is not None:
            try:
                found = _fetched(cursor, max_bytes)
            except Fault:
                cursor.close()
                raise
        elif fetches:
            found = cursor.fetchall()
        elif cursor.description is not None:
            count = sum(1 for _ in cursor)
        else:
            count = cursor.rowcount
        if self._compiled and sql.startswith(_WORK):
            self._compare()
        cursor.close()
        self._note(sql)
        return found, count

    def _written(self, sql: str, parameters: Sequence[Any], is_bounded: bool, writer: Writer) -> list[tuple[Any, ...]]:
        raw = self._raw
        # A value is in memory before anybody here sees it.
        is_free = not is_bounded and writer.allowance <= FREE_BYTES
        self._bound(writer.allowance if is_free else _LONGEST)
        try:
            cursor = raw.execute(sql, parameters)
            try:
                return self._in_hundreds(cursor, writer) if is_bounded else sliced(cursor, writer)
            except BaseException:
                cursor.close()
                raise
        except sqlite3.DataError as error:
            if is_free and getattr(error, "sqlite_errorname", "") == "SQLITE_TOOBIG":
                raise Fault("large", (), "a value of a read", size=RESULT_BYTES) from error
            raise

    def _bound(self, length: int) -> None:
        """Have SQLite refuse values and rows that are longer."""
        if length != self._length:
            self._length = length
            self._raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, length)

    def _note(self, sql: str) -> None:
        """Take note of a statement that is ready now, and let go of all where they are too many.

        The library lets go of one only for another.
        """
        if sql in self._ready:
            return
        self._ready.add(sql)
        self._ready_length += len(sql)
        if self._ready_length > _READY_LENGTH:
            compiled = self._compiled
            for number in range(_READY):
                self._raw.execute(f"SELECT {number}").close()
            self._compiled = compiled
            self._ready, self._ready_length = set(), 0

    def begin(self) -> None:
        with self._waiting():
            self.run("BEGIN IMMEDIATE", (), False)

    def begin_snapshot(self) -> None:
        self._only_reads = True
        try:
            self.run("BEGIN", (), False)
            # What it reads is that of its first read.
            self.run("PRAGMA schema_version", (), True)
        except BaseException:
            self.rollback()
            raise

    def hasty(self) -> AbstractContextManager[None]:
        # No table is locked by itself.
        return nullcontext()

    def hurry(self, seconds: float) -> None:
        """Let each statement run for so long at most until the snapshot ends."""
        self._hurry = seconds

    def _waiting(self) -> AbstractContextManager[None]:
        """Lasts while it waits for the file's lock, which only other programs hold while it has its turn."""
        return nullcontext() if self.turn is None else self.turn.aside()

    def commit(self) -> None:
        if self._only_reads:
            self.rollback()
        else:
            self.run("COMMIT", (), False)

    def rollback(self) -> None:
        only_read, self._only_reads = self._only_reads, False
        self._hurry = float("inf")
        try:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK").close()
                if not only_read:
                    self._remember()
        except sqlite3.Error:
            self.close()

    def restart_log(self) -> bool:
        """Copy the log into the file, so that it begins anew with the next write; returns whether that could be done.
        Those who read it are waited for, for a moment; whoever begins to read meanwhile reads the file alone."""
        try:
            timeout = self._raw.execute("PRAGMA busy_timeout").fetchone()[0]
            self._raw.execute(f"PRAGMA busy_timeout = {_LOG_WAIT}").close()
            try:
                is_busy: int = self._raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
            finally:
                self._raw.execute(f"PRAGMA busy_timeout = {timeout}").close()
        except sqlite3.Error:
            return False
        return not is_busy

    def distrust(self) -> None:
        """A trigger of SQLite can change nothing but rows."""

    def settle(self) -> None:
        """SQLite puts off nothing that changes a row."""

    def cancel(self) -> None:
        self.interrupt()

    def interrupt(self) -> None:
        try:
            self._raw.interrupt()
        except sqlite3.Error:
            pass  # closed already

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(sqlite3.Error):
            if self._file is None:
                self._raw.close()
            else:
                self._file.close(self._raw)


class SQLiteDatabase:
    """A SQLite file (see :class:`zcomm.data.drivers.driver.Database`).

    :param url: ``sqlite:///path``; ``sqlite://`` for one in memory.
    :param statement_timeout: seconds that one statement may run.
    :param busy_timeout: seconds to wait for another writer.
    :raises ConfigError: for a path that cannot be used or a SQLite that is too old.
    """

    _log = Logger()

    name = "sqlite"
    # Unlike SELECT 1 it reads the file.
    probe = "PRAGMA schema_version"
    binders: Mapping[str, Callable[[Any], Any]] = {
        PATTERN: _glob,
        FOLDED_PATTERN: lambda pattern: folded(_glob(pattern)),
        ASCII_LITERAL: str.lower,
        FOLDED_LITERAL: folded,
    }
    namespace = ""
    buffers = False
    embedded = True

    def __init__(self, url: sa.URL, statement_timeout: float = 5.0, busy_timeout: float = 5.0):
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigError("database", f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
        self.dialect: Dialect = pysqlite.dialect()
        self.url = url
        _, self._options = self.dialect.create_connect_args(url.difference_update_query(_URI_PARAMETERS))
        self._options.update(
            isolation_level=None, check_same_thread=False, timeout=busy_timeout, cached_statements=_READY
        )
        self._options["uri"] = True
        self._shown = redact_url(url.render_as_string(hide_password=False))
        parameters = self._parameters(url)
        #: The file, ``None`` for a database in memory.
        self._path = None if parameters.get("mode") == "memory" else _path_of(url)
        self._mode = parameters.get("mode", "rwc")
        self._writes = self._mode != "ro" and parameters.get("immutable", "0") == "0"
        self._file = None if self._path is None else FileWatch(self._path)
        # Each connection to :memory: is a database of its own.
        self.capacity = 1 if self._path is None else None
        self._limit = statement_timeout
        self._busy = busy_timeout
        self._turns = Turns()
        #: The turn of this process and since when it has it, where it does. Used by the thread that has its turn.
        self._file_turn: FileTurn | None = None
        self._file_turn_since = 0.0
        self._turns_had = 0
        self._longest_log = _LOG
        self.line = Turns(_MEMORY_HOLD) if self._path is None else None
        self._shared: sqlite3.Connection | None = None
        #: Whether the file is an empty one, which may be given a log.
        self._new = False
        # No connection makes the file: one that is gone is missed.
        self._uri = _uri_of(self._path, {**parameters, "mode": "ro" if self._mode == "ro" else "rw"})
        self.serve()

    def _parameters(self, url: sa.URL) -> dict[str, str]:
        """The settings of the URL that are SQLite's own."""
        found: dict[str, str] = {}
        for name, allowed in _URI_PARAMETERS.items():
            value = url.query.get(name)
            if value is None:
                continue
            if not isinstance(value, str) or (allowed and value not in allowed):
                raise ConfigError(self._shown, f"{name} must be {' or '.join(allowed)}, once")
            found[name] = value
        return found

    def acting(self, runs_code: bool) -> str:
        return ""

    def move(self, url: sa.URL) -> bool:
        """A file is where it is."""
        return False

    def serve(self) -> None:
        """Take the file that is at the path for the one to serve, and make it where there is none.

        :raises ConfigError: for a path that cannot be used.
        """
        if self._file is not None:
            self._prepare_file(self._file.path)
            try:
                if not self._file.serve():
                    raise ConfigError(self._shown, "it was overwritten while this process had it open; start another")
                self._new = not os.path.getsize(self._file.path)
            except OSError as error:
                raise ConfigError(self._shown, f"the file cannot be looked at: {error.strerror}") from None

    def _prepare_file(self, path: str) -> None:
        """Create the file readable by its owner alone, where there is none: SQLite gives those beside it its mode.

        A file that is there is not opened: where it is open elsewhere in this process, to close it again would take
        the locks from it (POSIX locks are the process's).
        """
        directory = self._mode_of(os.path.dirname(path))
        if directory is None or not stat.S_ISDIR(directory):
            raise ConfigError(self._shown, "the directory does not exist; create it first")
        found = self._mode_of(path)
        if found is None and self._mode == "rwc":
            try:
                make_private_file(Path(path))
            except OSError as error:
                raise ConfigError(self._shown, f"the file cannot be opened: {error.strerror}") from None
            found = self._mode_of(path)
        if found is None:
            raise ConfigError(self._shown, f"there is no such file, and with mode={self._mode} none is made")
        if stat.S_ISDIR(found):
            raise ConfigError(self._shown, "it is a directory; name a file in it")
        if not stat.S_ISREG(found):
            raise ConfigError(self._shown, "it is no regular file; name one, or one that is not there yet")
        if not os.access(path, os.R_OK):
            raise ConfigError(self._shown, "the file cannot be opened: Permission denied")
        # A trigger in it would run with each write of ours.
        if found & 0o002:
            raise ConfigError(self._shown, f"everybody may write to the file; run: chmod o-w {shlex.quote(path)}")
        for each in (path, *(f"{path}-{end}" for end in ("wal", "shm", "journal"))):
            if os.path.lexists(each) and (reason := open_to_everybody(each)):
                raise ConfigError(self._shown, reason)
        owner, trusted = os.stat(path).st_uid, {0, os.geteuid(), os.stat(os.path.dirname(path)).st_uid}
        if os.geteuid() != 0 and owner not in trusted:
            fix = f"run: sudo chown {os.geteuid()} {shlex.quote(path)}"
            raise ConfigError(
                self._shown, f"it belongs to somebody else (uid {owner}), in a directory of others; {fix}"
            )

    def _mode_of(self, path: str) -> int | None:
        """The kind and the mode of what is at ``path``; ``None`` where there is nothing.

        :raises ConfigError: when the system does not tell.
        """
        try:
            return os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(self._shown, f"{path} cannot be looked at: {error.strerror}") from None

    def _open(self) -> tuple[sqlite3.Connection, bool]:
        """A connection, and whether it takes the file for one that nobody writes to."""
        try:
            return self._open_as(self._uri), False
        except sqlite3.Error as error:
            # A file with a write-ahead log needs an index of that beside it, also for reading.
            name = getattr(error, "sqlite_errorname", "")
            if self._file is None or not name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                raise
            log = self._file.log_file()
            # Where it could be made, what kept SQLite from that may pass.
            if _may(os.path.dirname(log), os.W_OK) or identity_of(log) is not None or not self._file.in_place():
                raise
        # Nobody writes to it, or there would be a log: until there is one, the file can be read as it lies there.
        return self._open_as(f"{self._uri}&immutable=1"), True

    def _open_as(self, uri: str) -> sqlite3.Connection:
        raw: sqlite3.Connection = sqlite3.connect(uri, **self._options)
        try:
            if self._path is not None and raw.execute("PRAGMA page_count").fetchone()[0] == 0:
                if not self._new:
                    # Somebody may be writing another one there.
                    raise Fault("refused", (), f"{self._path} is empty; put the file back, or restart zComm")
                self._use_wal(raw)
            # Off, SQLite before 3.44 would refuse JSON functions in a CHECK, an index or a generated column, and
            # FTS5 and R-trees in a trigger. Nothing that a schema may call here does harm.
            for pragma in ("foreign_keys = ON", "synchronous = FULL", "trusted_schema = ON"):
                raw.execute(f"PRAGMA {pragma}").close()
            for name, (count, function) in FUNCTIONS.items():
                raw.create_function(name, count, function, deterministic=True)
        except BaseException:
            raw.close()
            raise
        return raw

    def _use_wal(self, raw: sqlite3.Connection) -> None:
        """Turn a new file's write-ahead log on, which others may be doing at the same moment."""
        until = time.monotonic() + self._busy
        while True:
            try:
                raw.execute("PRAGMA journal_mode = WAL").close()
                return
            except sqlite3.OperationalError as error:
                # Two that change the mode could wait for each other for ever, so SQLite refuses one of them at
                # once, whatever its busy timeout is.
                if _fault(error).kind != "busy" or time.monotonic() > until:
                    raise
            time.sleep(0.005)

    def _raw(self) -> sqlite3.Connection:
        if self._path is not None:
            return self._open()[0]
        try:
            if self._shared is not None:
                self._shared.execute("SELECT 1").close()
                return self._shared
        except sqlite3.ProgrammingError:
            pass  # closed when the store was stopped
        self._shared, _ = self._open()
        return self._shared

    def connect(self, offered: Callable[[], bool] = lambda: False) -> _Connection:
        try:
            if self._file is None:
                connection = _Connection(self._raw(), self._limit)
                connection.turn = self.line
                return connection
            with self._file.counting:
                return self._connect(self._file)
        except sqlite3.Error as error:
            fault = _fault(error)
            # As a fault of its own, which the frame that raises it does not hold.
            raise replace(fault, kind=fault.kind if fault.kind in ("busy", "refused") else "down") from error

    def _connect(self, file: FileWatch) -> _Connection:
        file.verify()
        looks = file.looks()
        raw, immutable = self._open()
        try:
            # Opens the log, and keeps it open.
            raw.execute(self.probe).close()
            sight = file.opened(raw, looks, immutable)
        except BaseException:
            raw.close()
            raise
        self._new = False
        return _Connection(raw, self._limit, file, sight, self.connect, self._writes)

    def verify(self) -> None:
        if self._file is not None:
            self._file.verify()

    @property
    def written_file(self) -> str:
        """The path of the file that a write changes first; empty for a database in memory."""
        return "" if self._file is None else self._file.written_file

    def engine(self) -> sa.Engine:
        return sa.create_engine(
            "sqlite://", creator=self._raw, poolclass=NullPool if self._path is not None else sa.StaticPool
        )

    @contextmanager
    def writing(self, connection: Any = None, owner: Hashable = None, long: bool = False) -> Iterator[None]:
        file = self._file
        if file is None:
            # Whoever has the connection has its turn.
            yield
            return
        turns = self._turns
        turns.take(owner, long, self._busy)
        try:
            self.verify()
            if connection is not None:
                connection.turn = turns
            turn = self._among_processes(file)
            turns.elsewhere = turn
            yield
            self._turns_had += 1
            if self._turns_had % _LOG_LOOK == 0 and connection is not None:
                self._keep_log_short(file, connection)
            if not turns.is_waited_for:
                self._let_others()
            file.confirm()
        finally:
            turns.elsewhere = None
            if connection is not None:
                connection.turn = None
            self._end_turn()

    def _among_processes(self, file: FileWatch) -> FileTurn | None:
        """Have the turn of this process, where a thread before has not left it to this one."""
        turn = file.turn
        if self._file_turn is not None and self._file_turn is not turn:
            self._let_others()
        if turn is not None and self._file_turn is None:
            if not turn.take_at_once():
                with self._turns.aside():
                    if not turn.take(self._busy):
                        raise Fault("busy", (), "another process has its turn")
            self._file_turn, self._file_turn_since = turn, time.monotonic()
        return turn

    def _let_others(self) -> None:
        """End the turn of this process. Called in the turn of a thread."""
        turn, self._file_turn = self._file_turn, None
        if turn is not None:
            turn.give_back()

    def _end_turn(self) -> None:
        """End the turn of this thread, and that of the process unless the next thread is to go on with it: those of
        other processes would have to wake each time."""
        turns = self._turns
        if not turns.is_waited_for or time.monotonic() - self._file_turn_since > _KEEP:
            self._let_others()
        if not turns.give_back() and self._file_turn is not None:
            # Who waited has gone.
            turns.take(None, False, _FOR_EVER)
            self._let_others()
            self._end_turn()

    def _keep_log_short(self, file: FileWatch, connection: _Connection) -> None:
        """Have the log begin anew where it has become long: SQLite itself does so only in a moment in which nobody
        reads, and does not wait for one. Where readers let it not, it is tried again when it is longer."""
        size = file.log_size
        if size > self._longest_log:
            self._longest_log = max(_LOG, size + size // 4)
            if connection.restart_log():
                self._longest_log = _LOG

    def _wait_for(self, turn: FileTurn) -> None:
        with self._turns.aside():
            if not turn.take(self._busy):
                raise Fault("busy", (), "another process has its turn")

    def expects_long(self, owner: Hashable) -> bool:
        return self._turns.expects_long(owner)

    def bound(self, connection: sa.Connection, model: Model, table: sa.Table, url: str) -> Model:
        found = {
            row[1]: row for row in connection.exec_driver_sql("SELECT * FROM pragma_table_xinfo(?)", (table.name,))
        }
        # A key that is the row's number is never null, whatever the table says.
        keys = [row for row in found.values() if row[5]]
        number = keys[0][1] if len(keys) == 1 and keys[0][2].upper() == "INTEGER" else None
        for field in model.fields.values():
            if field.column_name not in found:
                raise no_column(model, field, found, url)
        generated = {name for name, row in found.items() if row[6]}
        self._explain(connection, model, table, generated, url)
        view = self._is_view(connection, model)
        indexes: dict[str, bool] = {}
        for name, leads in connection.exec_driver_sql(_INDEXED, (table.name,)):
            indexes[name] = indexes.get(name, False) or bool(leads)
        strict = sqlite3.sqlite_version_info >= (3, 37, 0) and connection.exec_driver_sql(_STRICT_TABLE, (table.name,))
        texts = {name for name, row in found.items() if row[2].upper() == "TEXT"} if strict and strict.scalar() else ()
        binary = set() if view else {name for name in found if self._is_binary(connection, table, name)}
        latest = () if view else self._latest(connection, table, found)
        fields = {}
        for field in model.fields.values():
            row = found[field.column_name]
            declared = row[2]
            if declared.upper() == "ANY" and self._is_untyped(connection, table, row[1]):
                declared = ""
            learns = not view and field.kind.name in _LEARNT
            looks = learns or (not view and field.kind.name == "str" and row[1] in indexes)
            values, newest = (
                self._look(connection, table.c[field.name], indexes.get(row[1]), latest) if looks else ((), ())
            )
            formless = learns and not values
            if formless and row[4]:
                values = newest = self._default(connection, row[4])
            seen = Seen(
                values=values,
                newest=newest,
                indexed=row[1] in indexes,
                texts=row[1] in texts,
                binary=row[1] in binary,
            )
            column = column_of(field, declared, not (row[3] or field.column_name == number), seen)
            fields[field.name] = replace(field, column=replace(column, formless=formless))
        return replace(model, fields=fields)

    def _look(
        self, connection: sa.Connection, column: Any, leads: bool | None, latest: Sequence[ColumnElement[Any]]
    ) -> tuple[Sequence[str | bytes | float], Sequence[str | bytes | float]]:
        """Some values of ``column``, of each end of its index and of the table, and those of them that came last.

        :param leads: whether it is the first one of an index; ``None`` where it is in none.
        :param latest: the order in which the rows that came last are first.
        """
        query: Any = sa.select(*_typed(column)).where(column.is_not(None))
        ends: list[Sequence[Any]] = [latest, ()]
        if leads:
            ends += [(column.asc(),), (column.desc(),)]
        found = []
        for end in ends:
            some = str(query.order_by(*end).compile(dialect=self.dialect))
            rows = connection.exec_driver_sql(f"{some} LIMIT {_LOOKED_AT}")
            found.append([decoded(value) if is_text else value for is_text, value in rows])
        return [value for values in found for value in values], found[0]

    def _default(self, connection: sa.Connection, default: str) -> Sequence[str | bytes | float]:
        """What the table itself makes of ``default``, which it has for a column: that is in the form of its program."""
        # In a query of its own, as a function may be in it.
        columns = str(sa.select(*_typed(sa.column("v"))).compile(dialect=self.dialect))
        with suppress(sa.exc.OperationalError):
            made = connection.exec_driver_sql(f"{columns} FROM (SELECT ({default}) AS v) WHERE v IS NOT NULL")
            return [decoded(value) if is_text else value for is_text, value in made]
        return ()

    def _latest(
        self, connection: sa.Connection, table: sa.Table, columns: Iterable[str]
    ) -> Sequence[ColumnElement[Any]]:
        """The order in which the rows of a table that came last are first, as far as SQLite knows that.

        :param columns: the names of all its columns.
        """
        taken = {name.lower() for name in columns}
        for name in (each for each in ("rowid", "oid", "_rowid_") if each not in taken):
            number: ColumnElement[Any] = sa.literal_column(name)
            query: Any = sa.select(number).select_from(table)
            # A table made WITHOUT ROWID has none.
            with suppress(sa.exc.OperationalError):
                connection.exec_driver_sql(f"EXPLAIN {query.compile(dialect=self.dialect)}").close()
                return (number.desc(),)
        return [column.desc() for column in table.primary_key]

    def _explain(self, connection: sa.Connection, model: Model, table: sa.Table, generated: set[str], url: str) -> None:
        """Have SQLite compile what will be asked of a table, and all that its triggers and indexes need for that.

        :param generated: its columns that nobody writes.
        :raises ConfigError: where it needs what only another program has: a collation, a function, a module.
        """
        # Each comparison needs the collation of its column.
        looks = [column > sa.literal_column("''") for column in table.columns]
        statements: list[Any] = [sa.select(sa.literal_column("1")).select_from(table).where(sa.or_(*looks))]
        plain = {column.key: column for column in table.columns if column.name not in generated}
        if not model.read_only and not model.capabilities.lacks and plain and not self._is_view(connection, model):
            nothing = dict.fromkeys(plain, sa.null())
            statements += [table.insert().values(nothing), table.update().values(nothing), table.delete()]
        for statement in statements:
            try:
                connection.exec_driver_sql(f"EXPLAIN {statement.compile(dialect=self.dialect)}").close()
            except sa.exc.OperationalError as error:
                if _fault(error.orig).kind not in ("unknown", "refused"):
                    raise
                missing = str(error.orig).removeprefix("no such table: main.")
                if missing in LIVE_TABLES:
                    # Somebody took them away, and left the triggers; who watches the table puts them back.
                    continue
                if missing in {name.strip("[]`\"'") for name in connection.exec_driver_sql(_NAMES).scalars()}:
                    # SQLite takes the quotes in the name of a table that points to this one for quotes around it.
                    continue
                raise ConfigError(
                    url,
                    f"model {model.name}: SQLite cannot use {quoted(model.table)} here ({error.orig}); what only "
                    "another program defines cannot be served: leave the model out, or make a table without it",
                ) from None

    def _is_binary(self, connection: sa.Connection, table: sa.Table, name: str) -> bool:
        """Whether SQLite says that it compares a column byte by byte. It tells of a collation by what it compiles."""
        compared = sa.column(name) > sa.literal_column("''")
        # No index is looked at: that would not tell.
        query: Any = sa.select(sa.literal_column("1")).select_from(table)
        sql = f"{query.compile(dialect=self.dialect)} WHERE +{compared.compile(dialect=self.dialect)}"
        with suppress(sa.exc.OperationalError):
            steps = connection.exec_driver_sql(f"EXPLAIN {sql}").fetchall()
            by = [str(step[5]).strip("()").partition("-")[0] for step in steps if step[1] in _COMPARISONS]
            return bool(by) and set(by) == {"BINARY"}
        return False

    def _is_untyped(self, connection: sa.Connection, table: sa.Table, name: str) -> bool:
        """Whether a column that is declared ANY keeps values as they are, as of a STRICT table, also behind a view.

        In any other table it is one of numbers, and SQLite tells that by the columns of a table that it makes.
        """
        query: Any = sa.select(sa.column(name)).select_from(table).where(sa.false())
        made = '"zcomm columns"'
        connection.exec_driver_sql(f"CREATE TEMP TABLE {made} AS {query.compile(dialect=self.dialect)}")
        try:
            found = connection.exec_driver_sql("SELECT type FROM pragma_table_info(?, 'temp')", (made.strip('"'),))
            return not found.scalar()
        finally:
            connection.exec_driver_sql(f"DROP TABLE temp.{made}")

    @staticmethod
    def _is_view(connection: sa.Connection, model: Model) -> bool:
        kind = connection.exec_driver_sql("SELECT type FROM sqlite_master WHERE name = ?", (model.table,)).scalar()
        return kind != "table"

    def relations(self, connection: sa.Connection, names: Mapping[str, str], url: str) -> Mapping[str, Relation]:
        return find_relations(connection, names, url)

    def ended(self, connection: Any, backends: Sequence[Backend]) -> Container[Backend]:
        return backends

    def held_up(self, connection: Any, processes: Sequence[int]) -> Mapping[int, Sequence[int]]:
        return {}

    def forbids(self, error: BaseException | None) -> bool:
        return (getattr(error, "sqlite_errorname", None) or "").startswith("SQLITE_READONLY")

    def locked(self, error: BaseException | None) -> bool:
        return (getattr(error, "sqlite_errorname", None) or "").startswith("SQLITE_BUSY")

    def passes(self, error: BaseException | None) -> bool:
        return (getattr(error, "sqlite_errorname", None) or "").startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR"))

    @contextmanager
    def comparing(self, connection: sa.Connection, names: Iterable[str], again: bool = False) -> Iterator[bool]:
        if self._file is None:
            # Nobody else has it.
            yield True
            return
        raw: Any = connection.connection.dbapi_connection
        begun = not raw.in_transaction
        if begun:
            connection.exec_driver_sql("BEGIN")
        try:
            found = Compared.of(raw, frozenset(name.lower() for name in names))
        except sqlite3.Error as error:
            raise _fault(error) from error
        yield found != self._file.compared
        if begun:
            connection.exec_driver_sql("COMMIT")
        if again and found != self._file.compared:
            # Counted first: nobody may take these tables for the ones before.
            self._file.comparisons += 1
        self._file.compared = found

    def learn_constraints(self, connection: sa.Connection, names: Sequence[str]) -> None:
        """SQLite names the columns itself."""


def _typed(column: Any) -> tuple[Any, Any]:
    """Whether a value is text, and the value; text as bytes, as it may be in another encoding."""
    text = sa.func.typeof(column) == sa.literal_column("'text'")
    return text, sa.case((text, sa.cast(column, sa.LargeBinary)), else_=column)


def _path_of(url: sa.URL) -> str | None:
    """The path in a URL, absolute; ``None`` for a database in memory."""
    name = url.database or ":memory:"
    if name.startswith("file:"):
        # SQLite's own form, with uri=true: file:path, file:/path or file://localhost/path.
        name = unquote(name.removeprefix("file:").removeprefix("//localhost").removeprefix("//"))
    return None if name in ("", ":memory:") else os.path.abspath(os.path.expanduser(name))


def _uri_of(path: str | None, parameters: Mapping[str, str]) -> str:
    if path is None:
        return "file::memory:"
    return f"file:{quote(path)}?{'&'.join(f'{name}={quote(value)}' for name, value in parameters.items())}"
