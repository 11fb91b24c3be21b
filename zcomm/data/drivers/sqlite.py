"""SQLite: an embedded database in one file.

Readers do not wait for the writer (WAL), writers of this process take turns here instead of polling for
the file's lock, and every commit is on the disk before it is reported.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import NullPool

from zcomm.data.drivers.driver import Fault
from zcomm.data.filters import PATTERN
from zcomm.data.values import KINDS, json_text, show_datetime
from zcomm.errors import ConfigError
from zcomm.runtime.files import make_private_file
from zcomm.text import redact_url

__all__ = ["SQLiteDatabase"]

#: How often a statement looks at the clock, in steps of SQLite's machine; about a millisecond.
_STEPS = 20_000
#: RETURNING came with 3.35.
_OLDEST = (3, 35, 0)
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
    "SQLITE_TOOBIG": "invalid",
    "SQLITE_MISMATCH": "invalid",
}


def _fault(error: Exception) -> Fault:
    """Classify an error of SQLite's library as a fault."""
    name = getattr(error, "sqlite_errorname", None) or ""
    text = str(error)
    if name.startswith("SQLITE_CONSTRAINT"):
        # "UNIQUE constraint failed: Users.email, Users.name"
        columns = tuple(part.strip().rpartition(".")[2] for part in text.partition(": ")[2].split(",") if part)
        kinds = {
            "SQLITE_CONSTRAINT_UNIQUE": "unique",
            "SQLITE_CONSTRAINT_PRIMARYKEY": "unique",
            "SQLITE_CONSTRAINT_ROWID": "unique",
            "SQLITE_CONSTRAINT_NOTNULL": "not_null",
            "SQLITE_CONSTRAINT_FOREIGNKEY": "foreign_key",
            "SQLITE_CONSTRAINT_TRIGGER": "foreign_key",
        }
        return Fault(kinds.get(name, "invalid"), columns, text)
    # Extended codes continue the basic ones: SQLITE_BUSY_SNAPSHOT.
    basic = "_".join(name.split("_")[:2])
    if isinstance(error, (OverflowError, sqlite3.DataError)) and basic not in _FAULTS:
        return Fault("invalid", (), text)
    return Fault(_FAULTS.get(basic, "unknown"), (), f"{name} {text}")


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


def _bind_datetime(value: datetime) -> str:
    # The form of SQLite's own functions. With six digits of a fraction or none, text sorts as time does.
    return value.replace(tzinfo=None).isoformat(" ")


def _bind_decimal(value: Decimal) -> int | float:
    """A decimal as a number, which sorts and compares right; refused where it would not come back."""
    if value == value.to_integral_value():
        whole = int(value)
        if abs(whole) < 2**63:
            return whole
    number = float(value)
    if Decimal(repr(number)) != value:
        raise ValueError("has more digits than the database keeps (15)")
    return number


def _read_datetime(value: Any) -> Any:
    if (
        type(value) is str
        and value[10:11] == " "
        and (len(value) == 19 or (len(value) == 26 and value[19:] != ".000000"))
    ):
        # As it was written here; parsing it would cost more than the rest of the row.
        return f"{value[:10]}T{value[11:]}Z"
    try:
        moment = KINDS["datetime"].parse(value)
    except ValueError:
        return value
    return show_datetime(moment)


def _read_decimal(value: Any) -> Any:
    try:
        return KINDS["decimal"].show(KINDS["decimal"].parse(value))
    except ValueError:
        return None


def _read_float(value: Any) -> Any:
    # What RETURNING brings has not gone through the column yet, and may still be a whole number.
    number = float(value) if isinstance(value, int) else value
    # JSON has neither infinity nor NaN (which SQLite itself reads as null).
    return number if not isinstance(number, float) or math.isfinite(number) else None


def _read_json(value: Any) -> Any:
    if not isinstance(value, (str, bytes)):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return None


def _fetched(cursor: sqlite3.Cursor, max_bytes: int) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for row in cursor:
        rows.append(row)
        for value in row:
            if type(value) is str or type(value) is bytes:
                max_bytes -= len(value)
        if max_bytes < 0:
            cursor.close()
            raise Fault("large", (), "the rows of a read")
    return rows


class _Connection:
    """One SQLite connection (see :class:`zcomm.data.drivers.driver.Connection`)."""

    def __init__(self, raw: sqlite3.Connection, statement_timeout: float):
        self._raw = raw
        self._limit = statement_timeout
        self._until = float("inf")
        self._closed = False
        raw.set_progress_handler(self._overdue, _STEPS)

    def _overdue(self) -> bool:
        return time.monotonic() > self._until

    def alive(self) -> bool:
        return not self._closed

    def run(
        self, sql: str, parameters: Sequence[Any], fetches: bool, max_bytes: int | None = None
    ) -> tuple[list[tuple[Any, ...]], int]:
        self._until = time.monotonic() + self._limit
        try:
            cursor = self._raw.execute(sql, parameters)
            if max_bytes is not None:
                return _fetched(cursor, max_bytes), -1
            return (cursor.fetchall(), -1) if fetches else ([], cursor.rowcount)
        except (sqlite3.Error, OverflowError) as error:
            raise _fault(error) from error
        finally:
            self._until = float("inf")

    def begin(self) -> None:
        self.run("BEGIN IMMEDIATE", (), False)

    def commit(self) -> None:
        self.run("COMMIT", (), False)

    def rollback(self) -> None:
        try:
            if self._raw.in_transaction:
                self._raw.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()

    def interrupt(self) -> None:
        try:
            self._raw.interrupt()
        except sqlite3.Error:
            pass  # closed already

    def close(self) -> None:
        self._closed = True
        try:
            self._raw.close()
        except sqlite3.Error:
            pass


class SQLiteDatabase:
    """A SQLite file (see :class:`zcomm.data.drivers.driver.Database`).

    :param url: ``sqlite:///path``; ``sqlite://`` for one in memory.
    :param statement_timeout: seconds that one statement may run.
    :param busy_timeout: seconds to wait for another writer.
    :raises ConfigError: for a path that cannot be used or a SQLite that is too old.
    """

    name = "sqlite"
    # Unlike SELECT 1 it reads the file.
    probe = "PRAGMA schema_version"
    binders: Mapping[str, Callable[[Any], Any]] = {
        "decimal": _bind_decimal,
        "date": date.isoformat,
        "datetime": _bind_datetime,
        "time": lambda value: value.isoformat(),
        "uuid": str,
        "json": json_text,
        PATTERN: _glob,
    }
    readers: Mapping[str, Callable[[Any], Any]] = {
        "bool": bool,
        "float": _read_float,
        "decimal": _read_decimal,
        "datetime": _read_datetime,
        "json": _read_json,
        "bytes": lambda value: KINDS["bytes"].show(value if isinstance(value, bytes) else str(value).encode()),
    }

    def __init__(self, url: sa.URL, statement_timeout: float = 5.0, busy_timeout: float = 5.0):
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigError("database", f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed")
        self.dialect: Dialect = pysqlite.dialect()
        self.url = url
        self._memory = url.database in (None, "", ":memory:")
        # Each connection to :memory: is a database of its own.
        self.capacity = 1 if self._memory else None
        self._limit = statement_timeout
        self._busy = busy_timeout
        self._writer = threading.Lock()
        self._shared: sqlite3.Connection | None = None
        self._arguments, self._options = self.dialect.create_connect_args(url)
        self._options.update(isolation_level=None, check_same_thread=False, timeout=busy_timeout, cached_statements=300)
        if not self._memory:
            self._prepare_file(url)

    @staticmethod
    def _prepare_file(url: sa.URL) -> None:
        """Create the file readable by its owner alone, where there is none: SQLite gives those beside it its mode."""
        path = os.path.abspath(os.path.expanduser(str(url.database)))
        shown = redact_url(url.render_as_string(hide_password=False))
        if not os.path.isdir(os.path.dirname(path)):
            raise ConfigError(shown, "the directory does not exist; create it first")
        if os.path.isdir(path):
            raise ConfigError(shown, "it is a directory; name a file in it")
        try:
            make_private_file(Path(path))
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(shown, f"the file cannot be opened: {error.strerror}") from None

    def _open(self) -> sqlite3.Connection:
        arguments = self._arguments if self._memory else [os.path.expanduser(self._arguments[0])]
        raw: sqlite3.Connection = sqlite3.connect(*arguments, **self._options)  # type: ignore[call-overload]  # SQLAlchemy's
        try:
            self._use_wal(raw)
            for pragma in ("foreign_keys = ON", "synchronous = FULL", "trusted_schema = OFF"):
                raw.execute(f"PRAGMA {pragma}").close()
            raw.create_function("zcomm_fold", 1, _fold, deterministic=True)
        except sqlite3.Error:
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
        if not self._memory:
            return self._open()
        try:
            if self._shared is not None:
                self._shared.execute("SELECT 1").close()
                return self._shared
        except sqlite3.ProgrammingError:
            pass  # closed when the store was stopped
        self._shared = self._open()
        return self._shared

    def connect(self) -> _Connection:
        try:
            return _Connection(self._raw(), self._limit)
        except sqlite3.Error as error:
            fault = _fault(error)
            raise (fault if fault.kind in ("busy", "refused") else replace(fault, kind="down")) from error

    def engine(self) -> sa.Engine:
        return sa.create_engine(
            "sqlite://", creator=self._raw, poolclass=NullPool if not self._memory else sa.StaticPool
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        if not self._writer.acquire(timeout=self._busy):
            raise Fault("busy", (), "another thread is writing")
        try:
            yield
        finally:
            self._writer.release()

    def constraints(self, columns: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
        """SQLite names the columns itself."""


def _fold(value: Any) -> Any:
    """Text without its case, letters beyond ASCII included, which SQLite's own functions leave alone."""
    return value.lower() if isinstance(value, str) else value
