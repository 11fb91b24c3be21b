"""The interface between the store and a database, and the faults that can occur there, in words of no database.

A driver turns the errors of its library into a :class:`Fault`; :func:`to_command_error` turns a fault into what the
client is told. No text of the database, no SQL and no path gets through.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

from zcomm.data.catalog import Relation
from zcomm.data.models import Field, Model
from zcomm.data.requests import Plan
from zcomm.errors import (
    CommandError,
    CommandTimeout,
    ConfigError,
    Conflict,
    InternalError,
    Invalid,
    PermissionDenied,
    TooBusy,
    Unavailable,
)
from zcomm.text import did_you_mean

__all__ = [
    "Backend",
    "Connection",
    "Database",
    "FEW_ROWS",
    "FREE_BYTES",
    "Fault",
    "GivenUp",
    "NO_ANSWER",
    "Writer",
    "no_column",
    "size_of",
    "sliced",
    "to_command_error",
]

NO_ANSWER = "The database does not answer; try again"
_UNKNOWN_OUTCOME = (
    "The database was lost during the change, which may or may not have been made; look before trying again"
)
_UNANSWERED = "The change was made, but its answer could not be; do not repeat it, and read what is there"
_TAKEN = (
    "The database brought no row back, and what it made of the command is unknown; do not repeat it, and read what is "
    "there"
)
_KEYED_OUTCOME = (
    "The database was lost during the change, which may or may not have been made; try again with the same "
    "_idempotencyKey"
)
#: Bytes that a read may come to before memory is held for it.
FREE_BYTES = 1024 * 1024
#: How many rows, and bytes of them, are made into something else in no time worth naming.
FEW_ROWS, SLICE_BYTES = 200, 64 * 1024
#: Characters of a text that a trigger or a function refuses with.
MAX_RAISED = 1000


@dataclass(slots=True)
class Fault(Exception):
    """Something that the database would not or could not do.

    :ivar kind: ``unique``, ``exclusion``, ``foreign_key``, ``stranded`` (rows point to one in another form of its key,
        which the database takes for no reference to it), ``not_null``, ``check``, ``invalid``, ``timeout``,
        ``busy``, ``full``, ``raised`` (a trigger or a function refused it, in words of its own that are ``detail``),
        ``declined`` (likewise, in words that are not for clients), ``altered`` (a table is not what it was at the
        start), ``remote`` (a server that the database itself asks does not answer), ``forbidden`` (the database does
        not grant it), ``unsupported`` (it never does that), ``down`` (no connection was had: nothing ran),
        ``crowded`` (likewise, for there are as many as there may be), ``lost`` (the connection broke while it was in
        use: whether anything ran is unknown), ``refused`` (the database is there and will not let us in), ``large``
        (the rows come to more than a result may), ``moved`` (it ran, in a file that is no longer the database),
        ``unanswered`` (it ran, and what it brought cannot be read), ``taken`` (it ran, and no row came back, though
        nothing was known that could keep it), ``stale`` (a statement that was prepared no
        longer holds: what it was part of is undone and can be begun again at once), ``migrated`` (others changed tables
        since these were compared with the schema: likewise, once they were compared again), ``in_the_way`` (a write
        kept those of others waiting: likewise, once these had their turn), ``overdrawn`` (the user's writes did so too
        often; ``detail`` is the seconds to wait), ``given_up`` (it went on beyond all limits: whether anything ran is
        unknown, and something may still run) or ``unknown``.
    :ivar columns: which columns it is about, as far as the database told.
    :ivar accepts: by column, a value that it takes now, in words that follow "must be"; where that may change while the
        server runs.
    :ivar detail: for the log and the person who runs the server, never for a client.
    :ivar size: of what is ``large``, bytes that it comes to, where that is no more than a result may have; 0 for more.
    """

    kind: str
    columns: tuple[str, ...] = ()
    detail: str = ""
    accepts: Mapping[str, str] = field(default_factory=dict)
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class GivenUp(Fault):
    """A statement that went on beyond all limits, and perhaps still does.

    :ivar later: a Deferred of what comes of it.
    """

    def __init__(self, later: Any):
        super().__init__("given_up", (), "no answer in time")
        self.later = later


@dataclass(eq=False, slots=True)
class Backend:
    """The part of a server that works for one connection, and may go on when that is gone.

    :ivar number: the server's own; ``None`` where a pooler stands in between, of whose servers nobody here knows.
    :ivar since: when it began, in the server's words, once it was asked: a number comes again.
    :ivar until: when it is taken for ended where nobody can tell, on the monotonic clock.
    """

    number: int | None
    since: str = ""
    until: float = float("inf")


class Counted(Protocol):
    """The time for which a server is at work (:class:`zcomm.data.drivers.pool.Use`)."""

    @property
    def seconds(self) -> float:
        """Those so far."""

    def spare(self, since: float, computed: float) -> None:
        """Count of the time since then only what this thread has computed."""


class Writer(Protocol):
    """Takes the rows of a read in slices, of few rows and few bytes; it may raise what it likes.

    :ivar allowance: bytes that all of them may come to.
    :ivar use: counts the time of the read.
    """

    allowance: int

    @property
    def use(self) -> Counted | None: ...

    def begin(self) -> None:
        """Forget what was taken: the statement runs again."""

    @property
    def has_begun(self) -> bool:
        """Whether rows were taken."""

    def take(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take some rows."""


def size_of(row: Sequence[Any]) -> int:
    """The length of the texts and bytes in a row."""
    size = 0
    for value in row:
        if type(value) is str or type(value) is bytes:
            size += len(value)
    return size


def sliced(cursor: Iterable[Any], writer: Writer) -> list[tuple[Any, ...]]:
    """The rows of a read where they are few and small; otherwise none, and ``writer`` has taken them."""
    writer.begin()
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in cursor:
        rows.append(row)
        for value in row:
            if type(value) is str or type(value) is bytes:
                size += len(value)
        if size > SLICE_BYTES or len(rows) > FEW_ROWS:
            writer.take(rows)
            rows, size = [], 0
    if rows and writer.has_begun:
        writer.take(rows)
        rows = []
    return rows


class Connection(Protocol):
    """One connection, used by one thread at a time. Every method may raise :class:`Fault`.

    :ivar process: the server's number of what works for it now; ``None`` where there is none, or nobody knows.
    :ivar waits_since: since when it has waited for a session of a pooler's, on the monotonic clock; infinity where it
        does not.
    """

    process: int | None
    waits_since: float

    @property
    def backend(self) -> Backend | None:
        """The part of the server that may go on when the connection is given up; ``None`` where there is none."""

    def alive(self) -> bool:
        """Whether it looks usable, found out without asking the server."""

    def run(
        self,
        sql: str,
        parameters: Sequence[Any],
        fetches: bool,
        max_bytes: int | None = None,
        writer: Writer | None = None,
    ) -> tuple[list[tuple[Any, ...]], int]:
        """Run one statement; outside :meth:`begin` it is a transaction of its own.

        :param max_bytes: bytes that the rows may come to, where the statement does not see to that by itself.
        :param writer: takes the rows where they are more than a few.
        :return: the rows that no writer took, and how many rows were touched.
        """

    def begin(self) -> None: ...

    def begin_snapshot(self) -> None:
        """Begin a transaction that reads one snapshot, and writes nothing."""

    def hasty(self) -> AbstractContextManager[None]:
        """A transaction that reads, and does not wait for tables that others keep locked: that is a fault of kind
        ``busy``."""

    def commit(self) -> None: ...

    def rollback(self) -> None:
        """Undo what was done since :meth:`begin`. Never raises; a broken connection has undone it."""

    def distrust(self) -> None:
        """Take into account that code of the database's users ran, and may have left the session otherwise."""

    def settle(self) -> None:
        """Have done now what code of the database's users put off until the end of the transaction."""

    def expire(self) -> None:
        """Make a statement that runs in another thread end where it is past its time. Never raises."""

    def cancel(self) -> None:
        """Ask for the end of a statement that runs in another thread. Waits for nothing, and never raises."""

    def interrupt(self) -> None:
        """Make a statement that runs in another thread end. Never raises."""

    def close(self) -> None:
        """Close the connection; never raises."""


class Line(Protocol):
    """The turns of users at what one of them has at a time (:class:`zcomm.data.drivers.turns.Turns`)."""

    def take(self, owner: Hashable, long: bool, timeout: float) -> None: ...

    def give_back(self) -> object: ...


class Database(Protocol):
    """One database: how to reach it, and how its values look on either side.

    :ivar name: ``sqlite`` or ``postgresql``.
    :ivar probe: a statement that shows whether the database answers.
    :ivar dialect: SQLAlchemy's, with the driver's positional parameters.
    :ivar binders: by the kind of a slot that is no field's, from Python to what the driver takes; kinds that need
        nothing are missing.
    :ivar namespace: the schema of PostgreSQL in which tables are made, as the start finds it; empty for SQLite.
    :ivar capacity: how many connections it can have at a time, ``None`` for any number.
    :ivar buffers: whether all rows of a statement are in memory before the first one can be had.
    :ivar embedded: whether statements run in the threads that ask for them.
    :ivar line: the turns of users at the one connection that it can have; ``None`` where it can have several.
    """

    name: str
    probe: str
    dialect: Dialect
    binders: Mapping[str, Callable[[Any], Any]]
    capacity: int | None
    buffers: bool
    embedded: bool

    @property
    def line(self) -> Line | None: ...

    @property
    def namespace(self) -> str: ...

    def acting(self, runs_code: bool) -> str:
        """As whom and with which settings of the users' own the URL comes to the database, on which its code depends:
        what tenants of one table are told apart by.

        :param runs_code: whether code of the database's users runs. A table alone does not ask for the role.
        """

    def serve(self) -> None:
        """Take what is at the URL now for the database to serve. :raises ConfigError: when that cannot be used."""

    def move(self, url: sa.URL) -> bool:
        """Connect to ``url`` from here on: the same server is there now. Returns whether that is another place."""

    def verify(self) -> None:
        """Find out whether what is at the URL still is that database, without asking it.

        :raises Fault: ``refused`` when it is not.
        """

    def connect(self, offered: Callable[[], bool] = lambda: False) -> Connection:
        """
        :param offered: asked while the database lets us wait: whether there is another connection to use instead.
        :raises Fault: ``down``, ``refused`` or ``crowded``.
        """

    def engine(self) -> sa.Engine:
        """A SQLAlchemy engine on the same database, for creating and reflecting tables."""

    def bound(self, connection: sa.Connection, model: Model, table: sa.Table, url: str) -> Model:
        """``model`` with each field's column, as ``table`` has them.

        :param url: the database as the user may see it, for errors.
        :raises ConfigError: for a column that is missing, or that the field's type cannot use.
        """

    def writing(
        self, connection: Connection | None = None, owner: Hashable = None, long: bool = False
    ) -> AbstractContextManager[None]:
        """Held around each write, and left when it is committed.

        :param connection: which writes. A statement of it fails as ``in_the_way`` once it has kept other users' writes
            waiting for too long.
        :param owner: whose write it is.
        :param long: whether it cannot be done in less time.
        :raises Fault: ``busy``; ``overdrawn`` where the owner had too many long turns; ``refused`` before and ``moved``
            after the write when :meth:`verify` fails.
        """

    def expects_long(self, owner: Hashable) -> bool:
        """Whether writes of ``owner`` were ``in_the_way`` lately, and others write."""

    def relations(self, connection: sa.Connection, names: Mapping[str, str], url: str) -> Mapping[str, Relation]:
        """Those of the tables ``names`` that are there, and what else passes for one.

        :param connection: of :meth:`engine`.
        :param names: the model of each, for errors.
        :param url: the database as the user may see it, for errors.
        :raises ConfigError: for a name that is something else, and for a table that cannot be written to.
        """

    def ended(self, connection: Connection, backends: Sequence[Backend]) -> Container[Backend]:
        """Those of ``backends`` that are no longer at work. The others are told once more to end.

        :param connection: to ask by.
        """

    def held_up(self, connection: Connection, processes: Sequence[int]) -> Mapping[int, Sequence[int]]:
        """Those of ``processes`` that wait for what others have locked, each with all that it waits for.

        :param connection: to ask by.
        """

    def forbids(self, error: BaseException | None) -> bool:
        """Whether an error of the driver's library says that this connection may not create tables."""

    def locked(self, error: BaseException | None) -> bool:
        """Whether an error of the driver's library says that others keep this connection from writing for now."""

    def passes(self, error: BaseException | None) -> bool:
        """Whether an error of the driver's library says that the database cannot be had for now, and nothing of it."""

    def comparing(
        self, connection: sa.Connection, names: Iterable[str], again: bool = False
    ) -> AbstractContextManager[bool]:
        """Held while tables are compared with the schema, which stay meanwhile as they are. From its end on a statement
        that meets other ones fails, as ``migrated``, and has changed nothing; where the database sees to that.

        :param names: of the tables.
        :param again: whether requests are under way, which may not know yet what comes of it.
        :return: of the context, whether tables may have changed since they were compared last.
        """

    def learn_constraints(self, connection: sa.Connection, names: Sequence[str]) -> None:
        """Learn which columns each constraint of tables is about."""


def no_column(model: Model, field: Field, there: Iterable[str], url: str) -> ConfigError:
    """The error for a field that an existing table, of the columns ``there``, has no column for."""
    return ConfigError(
        url,
        f"model {model.name}, field {field.name}: the existing table has no such "
        f"column{did_you_mean(field.column_name, there)}, and existing tables are not altered; add the column, "
        "name it with column: … or take the field out of the schema",
    )


def _unaccepted(field: Field, now: Mapping[str, str]) -> str:
    accepts = now.get(field.column_name) or ("" if field.column is None else field.column.accepts)
    return f"must be {accepts}" if accepts else "is not accepted"


def to_command_error(fault: Fault, plan: Plan, keyed: bool = False) -> CommandError:
    """Translate a fault into the error that a client gets, which names visible fields alone.

    :param keyed: whether it may send the same again without doing it twice, because it sent an idempotency key.
    """
    seen = tuple(name for name in plan.model.fields_of(fault.columns) if name in plan.model.visible)
    names = ", ".join(seen)
    if fault.kind == "unique":
        if not seen:
            return Conflict("A row like this already exists")
        if seen == (plan.model.generated,) and plan.model.generated not in plan.written:
            # Nobody gave it, so that nobody can give another.
            return Conflict(
                f"The database made a {names} that is taken: its numbering of {plan.model.name} is behind, as after "
                "an import; whoever runs the database has to set it on"
            )
        return Conflict(f"{names} already exists", dict.fromkeys(seen, "already exists"))
    if fault.kind == "exclusion":
        return Conflict(
            f"{names or 'The row'} conflicts with another row", dict.fromkeys(seen, "conflicts with another row")
        )
    if fault.kind == "foreign_key":
        pointing = [name for name in plan.written if plan.model.fields[name].fk is not None]
        if plan.action == "delete" or not pointing:
            return Conflict(f"Other rows still point to this row of {plan.model.name}")
        if not seen and len(pointing) == 1 and pointing[0] in plan.model.visible:
            seen, names = (pointing[0],), pointing[0]
        if not seen:
            return Conflict("A row that this one points to does not exist")
        return Conflict(
            f"{names} points to a row that does not exist", dict.fromkeys(seen, "points to a row that does not exist")
        )
    if fault.kind == "stranded":
        return Conflict(
            f"Other rows still point to this row of {plan.model.name}, in another form of its key, so that the "
            "database would leave them behind; change or delete them first"
        )
    if fault.kind == "not_null":
        return Invalid(f"{names or 'A field'} is required", dict.fromkeys(seen, "is required"))
    if fault.kind == "check":
        return Invalid(f"The database does not accept {names or 'a value'}", dict.fromkeys(seen, "is not accepted"))
    if fault.kind == "raised":
        # Who wrote it meant it to be read.
        return Invalid(fault.detail[:MAX_RAISED].encode("utf-8", "replace").decode() or "The database refuses this")
    if fault.kind == "declined":
        return Invalid("The database refuses this")
    if fault.kind == "altered":
        return Unavailable(
            f"The table of {plan.model.name} is gone or is not as it was when the server started; whoever runs the "
            "database has to put it back, or start the server again"
        )
    if fault.kind == "remote":
        return Unavailable("A server that the database itself asks does not answer; try again")
    if fault.kind == "forbidden":
        return PermissionDenied()
    if fault.kind == "invalid":
        reasons = {name: _unaccepted(plan.model.fields[name], fault.accepts) for name in seen}
        said = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        return Invalid(said or "The database does not accept a value", reasons)
    if fault.kind == "unsupported":
        return Invalid(f"The database does not support this {plan.action} of {plan.model.name}")
    if fault.kind == "unanswered" and plan.action != "read":
        return InternalError(_UNANSWERED)
    if fault.kind == "taken":
        return InternalError(_TAKEN)
    if fault.kind == "large":
        return InternalError("Result too large; ask for less with limit or fields")
    if fault.kind == "overdrawn":
        wait = max(1, round(float(fault.detail)))
        return TooBusy(f"Your commands have kept others waiting; try again in {wait} s, with less at a time")
    if fault.kind in ("timeout", "in_the_way") or (fault.kind == "given_up" and plan.action == "read"):
        return CommandTimeout("The command took too long; ask for less at a time")
    if fault.kind == "busy":
        return TooBusy("The database is busy; try again")
    if fault.kind == "full":
        return Unavailable("The database cannot store anything now")
    if fault.kind in ("moved", "given_up") or (fault.kind == "lost" and plan.action != "read"):
        lost = Unavailable(_KEYED_OUTCOME if keyed else _UNKNOWN_OUTCOME)
        # Repeating it blindly could do it twice.
        lost.retryable = keyed
        return lost
    if fault.kind in ("down", "lost", "refused"):
        return Unavailable(NO_ANSWER)
    return InternalError()
