"""The log of changes for whoever looks after a database: what it takes, what there is, and how it is removed.

All of it blocks, and none of it runs in a server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.execution import Execution
from zcomm.data.models import Model
from zcomm.data.requests import Command
from zcomm.errors import ConfigError
from zcomm.live.judging import judged_by_the_database
from zcomm.live.query import Query
from zcomm.live.requests import MAX_ROWS, question_of
from zcomm.live.rows import View
from zcomm.live.sqlite.log import SQLiteLog, live_facts, live_off_sql, live_sql

__all__ = ["Administration", "administration", "explain"]


class Administration(Protocol):
    """The log of changes of one database."""

    def sql(self, model: Model) -> str:
        """The SQL by which the owner of its table has ``model`` watched.

        :raises ConfigError: where it cannot be.
        """

    def install(self, models: Sequence[Model]) -> Mapping[str, str]:
        """Have ``models`` watched; by model why one is not, empty where it is."""

    def remove(self) -> list[str]:
        """Remove what was installed, for whichever tables; those that are watched still, as they belong to others."""

    def state(self) -> list[str]:
        """Lines of what there is."""

    def close(self) -> None:
        """Let go of the database."""


def administration(execution: Execution, url: str, now: Callable[[], float]) -> Administration:
    """The log of the database of ``execution``, whose tables are known.

    :param url: the database as the user may see it, for errors.
    :param now: seconds since 1970, as the database counts them.
    """
    database = execution.database
    if isinstance(database, SQLiteDatabase):
        return _SQLite(execution, database, now)
    return _PostgreSQL(execution, url, now)


class _SQLite:
    def __init__(self, execution: Execution, database: SQLiteDatabase, now: Callable[[], float]):
        self._now = now
        self._execution = execution
        self._log = SQLiteLog(database, lambda: execution.schema, execution.pool.connection, execution.look_again)

    def _ask(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._execution.pool.connection() as connection:
            return connection.run(sql, parameters, True)[0]

    def sql(self, model: Model) -> str:
        made = live_sql(model, self._ask)
        return made or f"-- {model.name}: its table is watched already\n"

    def install(self, models: Sequence[Model]) -> Mapping[str, str]:
        return self._log.prepare(models)

    def remove(self) -> list[str]:
        with self._execution.pool.connection() as connection:
            statements = [line.rstrip(";") for line in live_off_sql(self._ask).splitlines()]
            for statement in statements[1:-1]:
                connection.run(statement, (), False)
        return []

    def state(self) -> list[str]:
        facts = live_facts(self._ask, self._now())
        holding = [seconds for seconds in facts.leases if seconds > 0]
        return [
            *([f"{table}: watched" for table in sorted(facts.tables)] or ["no table is watched"]),
            f"watching now: {len(holding)} server{'' if len(holding) == 1 else 's'}",
            f"changes in the log: {facts.rows}",
        ]

    def close(self) -> None:
        self._log.close()


class _PostgreSQL:
    def __init__(self, execution: Execution, url: str, now: Callable[[], float]):
        # psycopg is not installed everywhere.
        from zcomm.data.drivers.postgresql import PostgreSQLDatabase
        from zcomm.live.postgresql.log import PostgreSQLLog

        self._url = url
        self._now = now
        self._log = PostgreSQLLog(cast(PostgreSQLDatabase, execution.database), lambda: execution.schema)

    def sql(self, model: Model) -> str:
        try:
            return self._log.live_sql(model)
        except ValueError as error:
            raise ConfigError(self._url, f"model {model.name}: its table is not watched: {error}") from None

    def install(self, models: Sequence[Model]) -> Mapping[str, str]:
        return self._log.prepare(models)

    def remove(self) -> list[str]:
        self._log.remove()
        return self._log.watched()

    def state(self) -> list[str]:
        status = self._log.status()
        lines = [f"{table}: watched" for table in status.tables] or ["no table is watched"]
        if status.holder is not None:
            process, place, since = status.holder
            lines.append(
                f"watching now: process {process} of {place or 'this machine'}, for {self._now() - since:.0f} s"
            )
        else:
            lines.append("watching now: nobody")
        servers = len(status.feeds)
        lines.append(f"reading the log: {servers} server{'' if servers == 1 else 's'}")
        lines.append(f"changes in the log: {status.rows}, {status.size / 1024:,.0f} KiB")
        return lines

    def close(self) -> None:
        self._log.close()


def explain(model: Model, command: Command, is_sqlite: bool) -> list[str]:
    """Lines of how a live query is kept up to date, and what that costs.

    :param model: with its columns.
    :param command: as of a read.
    :raises CommandError: for one that cannot be asked.
    """
    question, plan = question_of(command, model, {})
    view = View(model, question.fields, question.order, is_sqlite)
    query = Query(question, plan, model, view, is_sqlite)
    lines = []
    if query.equal is None:
        lines.append("a changed row is looked at for this query and each like it: no condition asks for a value")
    else:
        name, values = query.equal
        count = len(values)
        lines.append(f"a changed row is found by {name}, of which it asks for {count} value{'' if count == 1 else 's'}")
    asked = judged_by_the_database(question.where, model, is_sqlite)
    if asked:
        lines.append(f"the database is asked about changed rows, once in a step: {', '.join(asked)}")
    else:
        lines.append("whether a changed row matches is found out without the database")
    order = ", ".join(f"{name} DESC" if descends else name for name, descends in question.order)
    if view.is_sorted:
        lines.append(f"the place of a changed row is found out without the database: {order}")
    else:
        lines.append(
            f"the rows are read anew whenever one of them changes: only the database knows the order of {order}"
        )
    if question.limit is None:
        lines.append(f"all rows are kept, up to {MAX_ROWS}; with more it ends")
    else:
        lines.append(
            f"{question.limit} rows are shown and up to {query.capacity} kept; they are read anew when more than the "
            "difference have left"
        )
    return lines
