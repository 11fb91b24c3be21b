"""PostgreSQL, by psycopg 3: one round trip for one statement, prepared by the server when it recurs.

Behind a pooler the server's sessions are shared with strangers. Nothing is kept in them then: no prepared statement,
and of the settings only what ends with the transaction.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy.dialects.postgresql import psycopg as dialects
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import NullPool
from twisted.logger import Logger

from zcomm.data.catalog import Relation
from zcomm.data.drivers.driver import FREE_BYTES, Backend, Counted, Fault, Writer, sliced
from zcomm.data.drivers.postgresql_catalog import find_constraints, find_relations
from zcomm.data.drivers.postgresql_columns import ADAPTERS, bound
from zcomm.data.drivers.postgresql_pooler import find_arranged, first_answer
from zcomm.data.drivers.postgresql_session import Session, asked_settings, learn_session, renew_session, set_session
from zcomm.data.models import Model
from zcomm.data.sql.statements import RESULT_BYTES, TOO_LARGE
from zcomm.errors import ConfigError

__all__ = ["PostgreSQLDatabase"]

#: Seconds for one attempt to connect; libpq takes no less than 2.
CONNECT_TIMEOUT = 3
#: Seconds that one statement of the start may run, which is asked once and reads the catalogue or creates tables.
START_TIMEOUT = 60.0
#: Seconds between two looks at whether the server waits for its rows to be taken.
_GLANCE = 0.002
#: Seconds for which the settings that the database's users made up are taken for known, behind a pooler.
RENEW_EVERY = 1.0
#: Seconds for which what was given up counts as running behind a pooler, which does not tell.
POOLED_PATIENCE = 60.0
#: Those of some processes of the server that are there, and when each began; the end of one that is at work.
_BACKENDS = """
SELECT a.pid, a.backend_start::pg_catalog.text FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.int4[])
"""
#: Those of some processes of the server that wait for a lock, each with all that it waits for.
_HELD_UP = """
SELECT a.pid, pg_catalog.pg_blocking_pids(a.pid) FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.int4[]) AND a.wait_event_type OPERATOR(pg_catalog.=) 'Lock'
"""
#: The process that works for whoever asks.
_PROCESS = "SELECT pg_catalog.pg_backend_pid()"
#: Begins a transaction whose first query takes the snapshot of all.
_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_TERMINATE = """
SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid OPERATOR(pg_catalog.=) %s::pg_catalog.int4 AND a.backend_start::pg_catalog.text OPERATOR(pg_catalog.=) %s
    AND a.usename OPERATOR(pg_catalog.=) SESSION_USER
"""
#: Characters of a statement that is prepared at most, and how many are by one connection. What is prepared each session
#: keeps, on both sides: the server with a plan, which takes it 0.2 to 0.3 MB.
_MAX_PREPARED, _PREPARED = 4096, 40
#: Milliseconds that one waits for a table who waits for none.
_HASTE = 100
#: How often a statement recurs before the server keeps it prepared.
PREPARE_THRESHOLD = 5
#: By SQLSTATE, and by its first two characters (PostgreSQL documentation, appendix A).
_FAULTS = {
    "23505": "unique",
    "23503": "foreign_key",
    "23001": "foreign_key",
    "23502": "not_null",
    "23514": "check",
    "23P01": "exclusion",
    "44": "check",
    "57014": "timeout",
    "55P03": "busy",
    "55006": "busy",
    "72": "busy",
    "0A000": "unsupported",
    # No unique constraint for what an upsert goes by, or one that is deferrable; a relation that is not written to.
    "42P10": "unsupported",
    "42809": "unsupported",
    "55": "unsupported",
    # A value for a generated column.
    "428C9": "invalid",
    "42501": "forbidden",
    "P0001": "raised",
    # Errors that the code of triggers and functions makes, in words that are not for clients.
    "P0": "declined",
    "09": "declined",
    "21": "declined",
    "27": "declined",
    "2F": "declined",
    "38": "declined",
    "39": "declined",
    # What zComm asks for was there at the start.
    "42": "altered",
    "3F": "altered",
    "40": "busy",
    "40003": "lost",
    "25006": "full",
    "25P03": "lost",
    "25P04": "lost",
    "57": "lost",
    "57P03": "down",
    "53300": "down",
    "28": "refused",
    "3D": "refused",
    "08": "lost",
    "HV": "remote",
    "22": "invalid",
    "23": "invalid",
    "53": "full",
    "54": "invalid",
    "58": "full",
}
#: The classes of PostgreSQL's own that are no fault of anybody's that could be named. Any other is of somebody who
#: raises errors with an SQLSTATE of their own.
_UNNAMED = frozenset("01 02 03 0B 0F 0L 0P 0Z 20 24 25 26 2B 2D 34 3B F0 XX".split())
#: Why a connection is refused that waiting does not mend. libpq brings no SQLSTATE for these.
_REFUSED = re.compile(
    "authentication failed|does not exist|no pg_hba.conf entry|not permitted to log in|permission denied for database"
    "|no password supplied|invalid connection option|does not support SSL|certificate verify failed"
    "|invalid (?:value for parameter|[a-z_]+ value:)|unrecognized configuration parameter"
    # pgbouncer's.
    "|no such (?:database|user)|unsupported startup parameter|statement pooling mode"
)
#: There are as many connections as there may be.
_CROWDED = re.compile("too many (?:clients|connections)|connection slots|no more connections allowed")
#: pgbouncer had no session of the server for a statement: it has not run.
_NOT_RUN = re.compile("query_wait_timeout|no more connections allowed|server login|cannot connect to server")
#: A name in a message, in the quotation marks of whatever language.
_QUOTED = re.compile('["«»„“](.+)["«»“”]')
#: How much that is which is too large.
_SIZE = re.compile(f"{TOO_LARGE}: ([0-9]+)", re.ASCII)
#: That a session is not the one in which a statement was prepared.
_ELSEWHERE = ("26000", "42P05")
#: Parameters of libpq for a server on this machine; not every version has each.
_OWN_SERVER = {
    "sslmode": "disable",
    "sslcertmode": "allow",
    "gssencmode": "disable",
    # An empty one would admit no method.
    "require_auth": "!gss",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
}
#: What of psycopg's own parameters no URL can say.
_NOT_IN_URLS = ("autocommit", "context", "cursor_factory", "row_factory")


class _Connection:
    """One PostgreSQL connection (see :class:`zcomm.data.drivers.driver.Connection`).

    :param raw: connected, in autocommit.
    :param session: as the start found it.
    :param limits: settings of times.
    :param pooled: whether the server's session is others' as well: all is set for each transaction then.
    :param columns: the columns of a constraint, by table and name.
    :param misled: called when a statement was prepared in another session than this one.
    :param renewed: the session as it has to be by now, behind a pooler.
    """

    def __init__(
        self,
        raw: psycopg.Connection[Any],
        session: Session,
        limits: dict[str, str],
        pooled: bool,
        columns: Callable[[str | None, str | None], tuple[str, ...]],
        misled: Callable[[], None],
        renewed: Callable[[psycopg.Connection[Any]], Session],
    ):
        self._raw = raw
        self._pooled = pooled
        self.process = None if pooled else raw.info.backend_pid
        self._renewed = renewed
        self._settings = {**limits, "search_path": session.wide}
        self._pin(session)
        self._begin = session.begin
        self._restore = (
            "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; SELECT pg_catalog.pg_advisory_unlock_all(); "
            f"DISCARD TEMP; SELECT {set_session(session, session.wide, limits)}"
        )
        #: Whether the transaction, and whether the session may be otherwise than it was.
        self._disturbed = self._dirty = False
        self._columns = columns
        self._misled = misled
        self._cursor = raw.cursor()
        self.waits_since = float("inf")
        self._transaction = False
        self._stale = False
        self._poll = select.poll()
        self._poll.register(raw.fileno(), select.POLLIN)

    def _pin(self, session: Session) -> None:
        self._session = session
        self._pins, self._pins_within = session.pins(self._settings), session.pins(self._settings, True)

    def alive(self) -> bool:
        # The server has nothing to say to an idle connection but that it ends it.
        return not self._raw.closed and not self._stale and not self._poll.poll(0)

    def run(
        self,
        sql: str,
        parameters: Sequence[Any],
        fetches: bool,
        max_bytes: int | None = None,
        writer: Writer | None = None,
    ) -> tuple[list[tuple[Any, ...]], int]:
        # The rows are all there before the first can be measured: a statement that reads measures for itself.
        try:
            return self._run(sql, parameters, fetches, writer)
        except psycopg.Error as error:
            fault = self._fault(error)
            if self._pooled and not self._transaction:
                self.rollback()
            try:
                if fault.kind != "stale" or self._transaction:
                    raise fault from error
            finally:
                # Else the frame in its traceback would hold it: garbage that only the collector finds.
                del fault
        # Nothing of it has run, and nothing is prepared any more.
        try:
            return self._run(sql, parameters, fetches, writer)
        except psycopg.Error as error:
            raise self._fault(error) from error

    def _run(
        self, sql: str, parameters: Sequence[Any], fetches: bool, writer: Writer | None
    ) -> tuple[list[tuple[Any, ...]], int]:
        cursor = self._cursor
        alone = self._pooled and not self._transaction
        if alone:
            self._begin_pinned()
        elif self._disturbed or (self._dirty and not self._transaction):
            self._regain()
        is_large = writer is not None and writer.allowance > FREE_BYTES
        if not is_large:
            cursor.execute(sql, parameters or None, prepare=False if len(sql) > _MAX_PREPARED else None)
        try:
            if writer is not None:
                rows: Iterable[Any] = cursor
                if is_large:
                    rows = cursor.stream(sql, parameters or None)
                    rows = rows if writer.use is None else self._unhurried(rows, writer.use)
                result = sliced(rows, writer), -1
            else:
                result = (cursor.fetchall(), cursor.rowcount) if fetches else ([], cursor.rowcount)
        except (psycopg.DataError, ValueError) as error:
            if isinstance(error, psycopg.Error) and error.sqlstate is not None:
                # The server's own: the rows of a stream are asked for here.
                raise
            # psycopg reads the values here, when the server has done its part.
            if alone:
                self.rollback()
            kind = "unknown" if alone else "unanswered"
            raise Fault(kind, (), f"a row cannot be read: {type(error).__name__}") from error
        if alone:
            # A constraint may be checked here. (psycopg's pipelines would save two round trips, but end with a Flush,
            # for which pgbouncer keeps a session of the server until the next command.)
            self._raw.execute("COMMIT")
            self._leave_process()
        return result

    def _unhurried(self, rows: Iterable[Any], use: Counted) -> Iterator[Any]:
        """``rows``, which the server sends no faster than they are taken: while there are some that it has sent, it is
        not at work, however long we wait for other threads of ours."""
        waits = False
        at, since, computed = time.monotonic(), use.seconds, time.thread_time()
        for row in rows:
            yield row
            now = time.monotonic()
            if now - at > _GLANCE:
                waited, waits = waits, bool(self._poll.poll(0))
                if waited and waits:
                    use.spare(since, computed)
                at, since, computed = now, use.seconds, time.thread_time()

    def _fault(self, error: psycopg.Error) -> Fault:
        state = error.sqlstate or ""
        diagnosis = error.diag
        message = diagnosis.message_primary or ""
        # The server's own words may quote values; they go no further than the log.
        detail = f"{state} {message or type(error).__name__}"
        # The message is in whatever language the server speaks.
        altered = state == "0A000" and diagnosis.source_function == "RevalidateCachedQuery"
        if (altered or state in _ELSEWHERE) and self._raw.prepare_threshold is not None:
            self._raw.prepare_threshold = None
            self._stale = True
            if not altered:
                self._misled()
            return Fault("stale", (), detail)
        if state == "22P02" and TOO_LARGE in message:
            told = _SIZE.search(message)
            size = 0 if told is None else int(told[1])
            return Fault("large", (), "the rows of a read", size=size if size <= RESULT_BYTES else 0)
        kind = _FAULTS.get(state) or _FAULTS.get(state[:2]) or ("declined" if state else "unknown")
        if state[:2] in _UNNAMED and state not in _FAULTS:
            kind = "unknown"
        elif kind == "altered" and diagnosis.context:
            # It is not our statement that asks for it, but code of the database's users.
            kind = "unknown"
        elif state[:2] == "08" and diagnosis.severity_nonlocalized == "ERROR" and not self._raw.closed:
            # Not this connection is broken, but that of the database to another one, of a foreign table say.
            kind = "remote"
        broken = isinstance(error, psycopg.OperationalError) and not state
        if kind == "unknown" and (self._raw.closed or broken):
            kind = "lost"
        if kind in ("lost", "down"):
            self.close()
            if _NOT_RUN.search(message):
                return Fault("down", (), detail)
            # Of what was under way when the connection broke, nothing is known.
            return Fault("lost", (), detail)
        if kind == "check" and not diagnosis.table_name:
            # Of a domain: a value of its own is at fault, in whichever column.
            kind = "invalid"
        if kind == "raised":
            return Fault(kind, (), message)
        columns = self._columns(diagnosis.table_name, diagnosis.constraint_name)
        if diagnosis.column_name:
            columns = (diagnosis.column_name,)
        elif state == "428C9" and (named := _QUOTED.search(message)) is not None:
            # Here the message alone has it.
            columns = (named[1],)
        return Fault(kind, columns, detail)

    def distrust(self) -> None:
        self._disturbed = self._dirty = True

    def _regain(self) -> None:
        """Have the session as it was, before the next statement."""
        self._arrange(self._pins_within if self._transaction else self._restore)
        self._disturbed = False
        self._dirty = self._dirty and self._transaction

    def _begin_pinned(self, begin: str = "") -> None:
        self._disturbed = self._dirty = False
        self.waits_since = time.monotonic()
        try:
            self._begin_in_turn(begin or self._begin)
        finally:
            self.waits_since = float("inf")

    def _begin_in_turn(self, begin: str) -> None:
        session = self._renewed(self._raw)
        if session is not self._session:
            self._pin(session)
        try:
            begun = self._arrange(f"{begin}; {self._pins}; {_PROCESS}", begin == self._begin != "BEGIN")
        except psycopg.errors.FeatureNotSupported:
            # A standby, which took the place of a server that takes writes.
            self.rollback()
            self._begin = "BEGIN"
            begun = self._arrange(f"{self._begin}; {self._pins}; {_PROCESS}")
        while begun.nextset():
            pass
        self.process = int(begun.fetchall()[0][0])

    def _arrange(self, sql: str, perhaps: bool = False) -> psycopg.Cursor[Any]:
        """Run what only arranges the session.

        :param perhaps: whether the server may lack what it asks for, which is psycopg's error then.
        :raises Fault: ``down`` when it fails: nothing of the statement to come has run.
        """
        try:
            return self._raw.execute(sql)
        except psycopg.Error as error:
            if perhaps and isinstance(error, psycopg.errors.FeatureNotSupported):
                raise
            self.close()
            message = error.diag.message_primary or " ".join(str(error).split())
            raise Fault("down", (), f"the session cannot be had as it was: {error.sqlstate or ''} {message}") from error

    def begin(self) -> None:
        if self._pooled:
            self._begin_pinned()
            self._transaction = True
            return
        if self._dirty:
            self._regain()
        self._transaction = True
        try:
            self.run("BEGIN", (), False)
        except Fault:
            self.rollback()
            raise

    def begin_snapshot(self, before: str = "") -> None:
        """
        :param before: statements without parameters that run before the snapshot is taken; none where a pooler stands
            in between, since the session is arranged by queries there.
        """
        if self._pooled:
            self._begin_pinned(_SNAPSHOT)
            self._transaction = True
            return
        if self._dirty:
            self._regain()
        self._transaction = True
        try:
            self.run(f"{_SNAPSHOT}; {before}" if before else _SNAPSHOT, (), False)
        except Fault:
            self.rollback()
            raise

    @contextmanager
    def hasty(self) -> Iterator[None]:
        # Not one snapshot, which would be from before a TRUNCATE that it waits for.
        self.begin()
        try:
            self.run(f"SET LOCAL lock_timeout = {_HASTE}", (), False)
            yield
        finally:
            self.rollback()

    def commit(self) -> None:
        # What a trigger did at the very end of the transaction matters no more to it.
        self._disturbed = False
        self.run("COMMIT", (), False)
        self._transaction = False
        self._leave_process()

    def _leave_process(self) -> None:
        if self._pooled:
            # It may be a stranger's next.
            self.process = None

    def rollback(self) -> None:
        self._leave_process()
        try:
            if not self._raw.closed:
                self._raw.execute("ROLLBACK")
        except psycopg.Error:
            self.close()
        self._transaction = False

    def settle(self) -> None:
        self.run("SET CONSTRAINTS ALL IMMEDIATE", (), False)
        self.distrust()

    def expire(self) -> None:
        """The server ends a statement by itself."""

    @property
    def backend(self) -> Backend:
        if self._pooled:
            return Backend(None, until=time.monotonic() + POOLED_PATIENCE)
        return Backend(self.process)

    def cancel(self) -> None:
        # In a thread: it is a connection of its own, to a server that may not answer.
        with suppress(RuntimeError):
            threading.Thread(target=self._cancel, name="zcomm-cancel", daemon=True).start()

    def _cancel(self) -> None:
        # Since psycopg 3.2 there is one that goes by TLS where the connection does.
        with suppress(psycopg.Error, OSError):
            getattr(self._raw, "cancel_safe", self._raw.cancel)()

    def interrupt(self) -> None:
        # Ending the conversation wakes the thread, whether the server answers or not.
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
    :param alone: whether the URL says all there is to say, so that the variables of libpq are for other servers.
    """

    _log = Logger()

    name = "postgresql"
    probe = "SELECT 1"
    capacity: int | None = None
    buffers = True
    embedded = False
    line = None
    binders: Mapping[str, Callable[[Any], Any]] = {}

    def __init__(self, url: sa.URL, statement_timeout: float = 5.0, alone: bool = False):
        self.dialect: Dialect = dialects.dialect(paramstyle="format")
        self._constraints: dict[tuple[str, str], tuple[str, ...]] = {}
        self._alone = alone
        self.url = url.set(drivername="postgresql+psycopg")
        self._connect_to(self.url)
        self._limit = statement_timeout
        self._session: Session | None = None
        #: The settings of the users' own that the URL asks for.
        self._tenant: dict[str, str] = {}
        self._renew_at = 0.0
        #: Whether a pooler was found in between, whose sessions are not ours, and one that has too few of them.
        self._pooled = self._small = False

    def move(self, url: sa.URL) -> bool:
        url = url.set(drivername=self.url.drivername)
        if url == self.url:
            return False
        self._connect_to(url)
        self.url = url
        return True

    def _connect_to(self, url: sa.URL) -> None:
        arguments, given = self.dialect.create_connect_args(url)
        options = {**(_without_environment() if self._alone else {}), **given}
        self._threshold = _prepare_threshold(options)
        options["application_name"] = options.get("application_name") or "zcomm"
        options.setdefault("connect_timeout", CONNECT_TIMEOUT)
        # Of all poolers' the one parameter that each of them keeps for its client.
        options["client_encoding"] = "UTF8"
        self._arguments, self._options = arguments, options

    def _connected(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            *self._arguments, autocommit=True, prepare_threshold=None, context=ADAPTERS, **self._options
        )

    def _open(
        self, limit: float, wide: bool = False, offered: Callable[[], bool] = lambda: False
    ) -> psycopg.Connection[Any]:
        begun = time.monotonic()
        raw = self._connected()
        try:
            # The process that the server says it is, and the one that the other end of this connection said it is:
            # a pooler makes that up, because a session of the server is not its client's for long.
            same = f"pg_catalog.pg_backend_pid() = {raw.info.backend_pid}"
            if raw.info.parameter_status("server_encoding") == "SQL_ASCII":
                raise psycopg.NotSupportedError(
                    "FATAL: the encoding of the database is SQL_ASCII, which does not say what its bytes mean; make a "
                    "database with encoding UTF8 and load a dump into it"
                )
            session = self._session
            path = "" if session is None else session.wide if wide else session.path
            arranged = "" if session is None else set_session(session, path, _limits(limit))
            statement = f"SELECT {same}, CASE WHEN {same} THEN {arranged or 'NULL'} END"
            if not self._ask_first(raw, statement, begun, offered):
                if not self._pooled:
                    # A pooler of single statements says so here.
                    raw.execute("BEGIN")
                    raw.execute("COMMIT")
                self._found_pooler()
            if session is None:
                session = learn_session(raw, self._pooled)
                if self._pooled:
                    self._refuse_arranged(raw, session)
                self._session = session
                asked = asked_settings(raw.info.options)
                self._tenant = {name: value for name, value in asked.items() if "." in name}
                if not self._pooled:
                    path = session.wide if wide else session.path
                    raw.execute(f"SELECT {set_session(session, path, _limits(limit))}")
        except psycopg.Error:
            raw.close()
            raise
        return raw

    def _ask_first(
        self, raw: psycopg.Connection[Any], statement: str, begun: float, offered: Callable[[], bool]
    ) -> bool:
        """Run the first statement of a connection.

        :param begun: when the connection was begun, on the monotonic clock.
        :param offered: as of :meth:`connect`.
        :return: its first value.
        :raises psycopg.Error: also when there is another connection, or no answer in the time for connecting.
        """

        def instead() -> bool:
            found = offered()
            if found and not self._small:
                self._small = True
                self._log.warn(
                    "The pooler has no session free for each connection, so that commands wait for one another; make "
                    "its pool larger (default_pool_size of pgbouncer)"
                )
            return found

        now = time.monotonic()
        # A login is several questions: what takes no longer than that may merely be far away.
        patient, until = 2 * now - begun, now + (int(float(self._options["connect_timeout"])) or math.inf)
        row = first_answer(raw, statement, patient, until, instead)
        if row is None:
            raise psycopg.OperationalError(
                "FATAL: a connection got no answer to its first statement: the pooler has too many connections for its "
                "sessions, or gets no answer itself"
            )
        return row[0] == "t"

    def _refuse_arranged(self, raw: psycopg.Connection[Any], session: Session) -> None:
        """Refuse a pooler that gives each session settings which ``session`` has otherwise: they would be set back."""
        settled = {"search_path", "role", *_limits(1), *asked_settings(raw.info.options)}
        names = [name for name in (*session.values, *session.own) if name.lower() not in settled]
        found, sure = find_arranged(raw, names, self._connected)
        if not found:
            return
        there = ", ".join(f"{name} set to {value or repr(value)}" for name, value in found.items())
        options = "".join(f"%20-c{name}%3D…" for name in found).removeprefix("%20")
        say = (
            f"say in the query of the URL what is meant (?options={options}, with ignore_startup_parameters = options "
            "in pgbouncer)"
        )
        if sure:
            raise psycopg.NotSupportedError(
                f"FATAL: the pooler makes each session with {there}, as by its connect_query or a variable such as "
                f"PGTZ, and the database does not; {say}"
            )
        self._log.warn(
            "The pooler's sessions have {there}, which has no effect on zComm. Where another program left that there "
            "all is well; where the pooler makes them so, as by its connect_query, {say}",
            there=there,
            say=say,
        )

    def acting(self, runs_code: bool) -> str:
        values = self._learned.values
        role = values["session_authorization"] if values["role"] == "none" else values["role"]
        return json.dumps([role if runs_code else "", self._tenant], sort_keys=True)

    def serve(self) -> None:
        self._session = None

    def verify(self) -> None:
        """A server does not come to stand for another as a file does."""

    @property
    def namespace(self) -> str:
        return self._learned.namespace

    @property
    def pooled(self) -> bool:
        """Whether a pooler stands in between, as far as connections have shown."""
        return self._pooled

    @property
    def forms(self) -> Mapping[str, tuple[str, str]]:
        """The settings of :class:`~zcomm.data.drivers.postgresql_session.Session` by which values are written."""
        return self._learned.forms

    @property
    def _learned(self) -> Session:
        if self._session is None:
            raise Fault("down", (), "no connection was had")
        return self._session

    def _found_pooler(self) -> None:
        if self._pooled:
            return
        self._pooled = True
        self._log.info("A pooler stands before the database: no statements are prepared, settings are sent with each")

    def connect(self, offered: Callable[[], bool] = lambda: False) -> _Connection:
        try:
            raw = self._open(self._limit, True, offered)
            if not self._pooled:
                raw.prepared_max = _PREPARED
                raw.prepare_threshold = _prepared_apart(raw, self._threshold)
            limits = _limits(self._limit)
            session, pooled = self._learned, self._pooled
            return _Connection(raw, session, limits, pooled, self._columns_of, self._found_pooler, self._renewed)
        except psycopg.Error as error:
            text = " ".join(str(error).rpartition("FATAL:")[2].split())
            if "statement pooling mode" in text:
                text = f"the pooler says: {text}; set its pool_mode to transaction or session"
            refused = (
                isinstance(error, (psycopg.ProgrammingError, psycopg.NotSupportedError))
                or _REFUSED.search(text) is not None
            )
            crowded = _CROWDED.search(text) is not None
            fault = Fault("crowded" if crowded else "refused" if refused else "down", (), text)
        # Not from within the except clause, where the fault would hold the error and with it the socket.
        try:
            raise fault
        finally:
            del fault

    def _renewed(self, raw: psycopg.Connection[Any]) -> Session:
        """The session with the settings of the users' own that the database has by now, or had a moment ago."""
        session = self._learned
        if time.monotonic() < self._renew_at:
            return session
        # Others need not look as well.
        self._renew_at = time.monotonic() + RENEW_EVERY
        try:
            session = self._session = renew_session(raw, session, _limits(self._limit))
        except psycopg.Error as error:
            if raw.closed:
                # It says so with the next statement, and nothing of the database: the next connection looks.
                self._renew_at = 0.0
                return session
            # A database that is full of code is not asked with each.
            self._renew_at += RENEW_EVERY * 60
            self._log.warn(
                "Settings that are new in the database cannot be had: {error}", error=" ".join(str(error).split())
            )
        return session

    def engine(self) -> sa.Engine:
        engine = sa.create_engine(self.url, creator=lambda: self._open(START_TIMEOUT), poolclass=NullPool)
        if self._pooled:
            sa.event.listen(engine, "before_cursor_execute", self._begin_pinned)
            sa.event.listen(engine, "after_cursor_execute", self._commit_alone)
        return engine

    def _begin_pinned(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        raw = cursor.connection
        if raw.info.transaction_status == TransactionStatus.IDLE:
            session = self._learned
            raw.execute(f"{session.begin}; {session.pins(_limits(START_TIMEOUT))}")
            # A statement that begins a transaction finds one begun, and goes on in it.
            connection.info["alone"] = not statement.startswith("BEGIN")

    def _commit_alone(self, connection: Any, cursor: Any, *_: Any) -> None:
        if connection.info.pop("alone", False):
            cursor.connection.execute("COMMIT")

    def bound(self, connection: sa.Connection, model: Model, table: sa.Table, url: str) -> Model:
        return bound(connection, model, table, url, self._learned.forms)

    def writing(
        self, connection: Any = None, owner: Hashable = None, long: bool = False
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def expects_long(self, owner: Hashable) -> bool:
        return False

    def relations(self, connection: sa.Connection, names: Mapping[str, str], url: str) -> Mapping[str, Relation]:
        return find_relations(connection, names, url)

    def ended(self, connection: Any, backends: Sequence[Backend]) -> Container[Backend]:
        known = {each.number: each for each in backends if each.number is not None}
        now = time.monotonic()
        ended = {each for each in backends if each.until < now}
        if not known:
            return ended
        there = dict(connection.run(_BACKENDS, (list(known),), True)[0])
        for number, backend in known.items():
            backend.since = backend.since or there.get(number, "")
            if not backend.since or there.get(number) != backend.since:
                ended.add(backend)
                continue
            # What computes looks for it when it is done with that.
            with suppress(Fault):
                connection.run(_TERMINATE, (number, backend.since), True)
        return ended

    def held_up(self, connection: Any, processes: Sequence[int]) -> Mapping[int, Sequence[int]]:
        return dict(connection.run(_HELD_UP, (list(processes),), True)[0]) if processes else {}

    def forbids(self, error: BaseException | None) -> bool:
        # No right to, or a server that only reads: a replica, or one that is set so.
        return getattr(error, "sqlstate", None) in ("42501", "25006")

    def locked(self, error: BaseException | None) -> bool:
        return False

    def passes(self, error: BaseException | None) -> bool:
        return False

    def comparing(
        self, connection: sa.Connection, names: Iterable[str], again: bool = False
    ) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def learn_constraints(self, connection: sa.Connection, names: Sequence[str]) -> None:
        self._constraints = find_constraints(connection, names)

    def _columns_of(self, table: str | None, constraint: str | None) -> tuple[str, ...]:
        return self._constraints.get((table or "", constraint or ""), ())


def _limits(limit: float) -> dict[str, str]:
    """The settings of times.

    :param limit: seconds that one statement may run.
    """
    milliseconds = max(1, round(limit * 1000))
    return {
        "statement_timeout": str(milliseconds),
        "idle_in_transaction_session_timeout": str(milliseconds * 4),
    }


def _without_environment() -> dict[str, str]:
    """The parameters that libpq would take from variables, as they are without any; a server of our own has no TLS."""
    known = psycopg.pq.Conninfo.get_defaults()
    plain = {each.keyword.decode(): (each.compiled or b"").decode() for each in known if each.envvar}
    # An empty service would be looked for, an empty timeout is no number.
    del plain["service"], plain["connect_timeout"]
    return plain | {name: value for name, value in _OWN_SERVER.items() if name in plain}


def _prepare_threshold(options: dict[str, Any]) -> int | None:
    """Take psycopg's ``prepare_threshold`` out of the settings of a URL, where all are texts.

    :raises ConfigError: for one that is no number, and for parameters of psycopg's that have no text.
    """
    for name in _NOT_IN_URLS:
        if name in options:
            raise ConfigError("database", f"{name} cannot be set in a URL; take it out")
    given = options.pop("prepare_threshold", str(PREPARE_THRESHOLD))
    if isinstance(given, str) and given.lower() in ("", "none"):
        return None
    if not isinstance(given, str) or not given.isascii() or not given.isdecimal() or len(given) > 9:
        raise ConfigError(
            "database", "prepare_threshold is a number of times, or none to have no statement prepared by the server"
        )
    return int(given)


def _prepared_apart(raw: psycopg.Connection[Any], threshold: int | None) -> int | None:
    """Give the statements of ``raw`` names that no other connection has, wherever in the world it is.

    :return: the threshold; ``None`` where psycopg no longer counts its names, so that nothing is prepared.
    """
    manager = getattr(raw, "_prepared", None)
    if not isinstance(getattr(manager, "_prepared_idx", None), int):
        return None
    # A pooler that passes the server's process on is not found. Under the name of another's statement that statement
    # would run; under a name that nobody has, nothing does.
    manager._prepared_idx = secrets.randbits(62)  # type: ignore[union-attr]
    return threshold
