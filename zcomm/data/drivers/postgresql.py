"""PostgreSQL, by psycopg 3: one round trip for one statement, prepared by the server when it recurs."""

from __future__ import annotations

import math
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import psycopg as dialects
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import NullPool

from zcomm.data.drivers.driver import Fault
from zcomm.data.statements import TOO_LARGE
from zcomm.data.values import KINDS, json_text, show_datetime

__all__ = ["PostgreSQLDatabase"]

#: Seconds for one attempt to connect; libpq takes no less than 2.
CONNECT_TIMEOUT = 3
#: By SQLSTATE, and by its first two characters (PostgreSQL documentation, appendix A).
_FAULTS = {
    "23505": "unique",
    "23503": "foreign_key",
    "23502": "not_null",
    "57014": "timeout",
    "55P03": "busy",
    "40001": "busy",
    "40P01": "busy",
    "25006": "full",
    "57P01": "lost",
    "57P02": "lost",
    "57P03": "down",
    "57P05": "lost",
    "53300": "down",
    "08": "lost",
    "22": "invalid",
    "23": "invalid",
    "53": "full",
    "54": "invalid",
    "58": "full",
}
#: Why a connection is refused that waiting does not mend. libpq brings no SQLSTATE for these.
_REFUSALS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "not permitted to log in",
    "permission denied for database",
    "no password supplied",
    "invalid connection option",
)


def _read_datetime(value: datetime) -> str:
    if value.tzinfo is not None and value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return show_datetime(value)


def _read_float(value: float) -> float | None:
    # JSON has neither infinity nor NaN.
    return value if math.isfinite(value) else None


def _read_decimal(value: Decimal) -> str | None:
    return KINDS["decimal"].show(value) if value.is_finite() else None


class _Connection:
    """One PostgreSQL connection (see :class:`zcomm.data.drivers.driver.Connection`)."""

    def __init__(self, raw: psycopg.Connection[Any], columns: Callable[[str | None, str | None], tuple[str, ...]]):
        self._raw = raw
        self._columns = columns
        self._cursor = raw.cursor()
        self._poll = select.poll()
        self._poll.register(raw.fileno(), select.POLLIN)

    def alive(self) -> bool:
        # The server has nothing to say to an idle connection but that it ends it.
        return not self._raw.closed and not self._poll.poll(0)

    def run(
        self, sql: str, parameters: Sequence[Any], fetches: bool, max_bytes: int | None = None
    ) -> tuple[list[tuple[Any, ...]], int]:
        # The rows are all there before the first can be measured: a statement that reads measures for itself.
        try:
            cursor = self._cursor
            cursor.execute(sql, parameters or None)
            return (cursor.fetchall(), cursor.rowcount) if fetches else ([], cursor.rowcount)
        except psycopg.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: psycopg.Error) -> Fault:
        state = error.sqlstate or ""
        diagnosis = error.diag
        # The server's own words may quote values; they go no further than the log.
        detail = f"{state} {diagnosis.message_primary or type(error).__name__}"
        if state in ("0A000", "26000"):
            # The table was altered, or a pooler dropped the prepared statement: a new connection will do,
            # and this statement has not run.
            self.close()
            return Fault("down", (), detail)
        if state == "22P02" and TOO_LARGE in (diagnosis.message_primary or ""):
            return Fault("large", (), "the rows of a read")
        kind = _FAULTS.get(state) or _FAULTS.get(state[:2], "unknown")
        broken = isinstance(error, psycopg.OperationalError) and not state
        if kind == "unknown" and (self._raw.closed or broken):
            kind = "lost"
        if kind in ("lost", "down"):
            self.close()
            # Of what was under way when the connection broke, nothing is known.
            return Fault("lost", (), detail)
        columns = self._columns(diagnosis.table_name, diagnosis.constraint_name)
        if diagnosis.column_name:
            columns = (diagnosis.column_name,)
        return Fault(kind, columns, detail)

    def begin(self) -> None:
        self.run("BEGIN", (), False)

    def commit(self) -> None:
        self.run("COMMIT", (), False)

    def rollback(self) -> None:
        try:
            if not self._raw.closed:
                self._raw.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def interrupt(self) -> None:
        # Not a polite cancel: that needs a server that answers. Ending the conversation wakes the thread.
        try:
            with socket.socket(fileno=os.dup(self._raw.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        except (psycopg.Error, OSError):
            pass  # closed already

    def close(self) -> None:
        try:
            self._raw.close()
        except psycopg.Error:
            pass


class PostgreSQLDatabase:
    """A PostgreSQL database (see :class:`zcomm.data.drivers.driver.Database`).

    :param url: ``postgresql://user:password@host:port/database``.
    :param statement_timeout: seconds that one statement may run.
    """

    name = "postgresql"
    probe = "SELECT 1"
    capacity: int | None = None
    binders: Mapping[str, Callable[[Any], Any]] = {
        "json": lambda value: Jsonb(value, json_text),
    }
    readers: Mapping[str, Callable[[Any], Any]] = {
        "float": _read_float,
        "decimal": _read_decimal,
        "date": date.isoformat,
        "datetime": _read_datetime,
        "time": time.isoformat,
        "uuid": str,
        "bytes": KINDS["bytes"].show,
    }

    def __init__(self, url: sa.URL, statement_timeout: float = 5.0):
        self.url = url.set(drivername="postgresql+psycopg")
        self.dialect: Dialect = dialects.dialect(paramstyle="format")
        self._limit = statement_timeout
        self._constraints: dict[tuple[str, str], tuple[str, ...]] = {}
        self._arguments, self._options = self.dialect.create_connect_args(self.url)
        self._options.setdefault("application_name", "zcomm")
        self._options.setdefault("connect_timeout", CONNECT_TIMEOUT)

    def _open(self) -> psycopg.Connection[Any]:
        raw = psycopg.connect(*self._arguments, autocommit=True, **self._options)
        try:
            milliseconds = max(1, round(self._limit * 1000))
            raw.execute(
                f"SET statement_timeout = {milliseconds}; SET TimeZone = 'UTC'; "
                f"SET idle_in_transaction_session_timeout = {milliseconds * 4}"
            )
        except psycopg.Error:
            raw.close()
            raise
        return raw

    def serve(self) -> None:
        """A server does not come to stand for another as a file does."""

    verify = serve

    def connect(self) -> _Connection:
        try:
            return _Connection(self._open(), self._columns_of)
        except psycopg.Error as error:
            text = str(error).rpartition("FATAL:")[2].strip()
            refused = isinstance(error, psycopg.ProgrammingError) or any(reason in text for reason in _REFUSALS)
            fault = Fault("refused" if refused else "down", (), text)
        # Not from within the except clause, where the fault would hold the error and with it the socket.
        raise fault

    def engine(self) -> sa.Engine:
        return sa.create_engine(self.url, creator=self._open, poolclass=NullPool)

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def constraints(self, columns: Mapping[tuple[str, str], tuple[str, ...]]) -> None:
        self._constraints = dict(columns)

    def _columns_of(self, table: str | None, constraint: str | None) -> tuple[str, ...]:
        return self._constraints.get((table or "", constraint or ""), ())
