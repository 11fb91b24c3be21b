"""The servers that use one database: a table in which each of them says once a minute that it is there.

By it those learn of each other that share no engine, and whose clients do not hear what is changed at the other. A
server is there whose row changes between two looks: so what a crash has left is nobody, and no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement, quoted_name

from zcomm.data.drivers.driver import Connection, Fault

__all__ = ["SERVERS", "Server", "ServersTable", "Strangers"]

#: The table in which servers say that they are there.
SERVERS = "zcomm_servers"
#: Seconds by the database's clock after which the row of a server that says nothing any more is removed.
FORGOTTEN = 600
#: Looks without a change after which a server has left: one may fall just before its next word.
LEFT = 2


class Server(NamedTuple):
    """A server, as its row has it.

    :ivar node: its id.
    :ivar engine: the id of its engine, which all have that share it.
    :ivar name: by which people know it.
    :ivar seen: another number each time it says that it is there.
    """

    node: str
    engine: str
    name: str
    seen: int


class ServersTable:
    """The table.

    :param dialect: of its database.
    :param namespace: the schema of the database that it is in, or is made in.
    """

    def __init__(self, dialect: Dialect, namespace: str):
        self._is_made = False
        self._is_sqlite = is_sqlite = dialect.name == "sqlite"
        table = sa.Table(
            SERVERS,
            sa.MetaData(),
            sa.Column("node", sa.Text(), primary_key=True),
            sa.Column("engine", sa.Text(), nullable=False),
            sa.Column("name", sa.Text(), nullable=False),
            # Milliseconds since 1970, by the database's clock.
            sa.Column("seen", sa.BigInteger(), nullable=False),
            schema=quoted_name(namespace, True) if namespace else None,
        )
        now: ColumnElement[Any] = sa.literal_column(
            "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
            if is_sqlite
            else "CAST(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000 AS bigint)"
        )
        column = table.c
        forgotten = column.seen < now - sa.literal_column(str(FORGOTTEN * 1000))

        def compiled(element: ClauseElement) -> tuple[str, tuple[str, ...]]:
            made: Any = element.compile(dialect=dialect)
            return str(made), tuple(made.positiontup or ())

        self._make = str(sa.schema.CreateTable(table, if_not_exists=True).compile(dialect=dialect))
        insert = (sqlite_insert if is_sqlite else postgresql_insert)(table)
        own = {name: sa.bindparam(f"zcomm__{name}", type_=sa.Text()) for name in ("node", "engine", "name")}
        self._say = compiled(
            insert.values(**own, seen=now).on_conflict_do_update(
                index_elements=[column.node],
                set_={"engine": insert.excluded.engine, "name": insert.excluded.name, "seen": insert.excluded.seen},
            )
        )
        self._read = compiled(sa.select(column.node, column.engine, column.name, column.seen, forgotten))
        self._forget = compiled(table.delete().where(forgotten))

    def say(self, connection: Connection, node: str, engine: str, name: str) -> list[Server]:
        """Say that a server is there, and read which others are, or were.

        :raises Fault: of kind ``forbidden`` among others, where there is no table and none can be made.
        """
        values = {"zcomm__node": node, "zcomm__engine": engine, "zcomm__name": name}
        is_made, self._is_made = self._is_made, False
        if self._is_sqlite and not is_made:
            # It takes a table that is missing for a file that is another one by now.
            connection.run(self._make, (), False)
        try:
            self._run(connection, self._say, values, False)
        except Fault as fault:
            if fault.kind not in ("altered", "refused"):
                raise
            # Not before: PostgreSQL asks for the right to make a table also where that is there.
            connection.run(self._make, (), False)
            self._run(connection, self._say, values, False)
        self._is_made = True
        rows = self._run(connection, self._read, {}, True)
        if any(row[4] for row in rows):
            self._run(connection, self._forget, {}, False)
        return [Server(*row[:4]) for row in rows if row[0] != node and not row[4]]

    @staticmethod
    def _run(
        connection: Connection, statement: tuple[str, tuple[str, ...]], values: dict[str, Any], fetches: bool
    ) -> list[tuple[Any, ...]]:
        sql, order = statement
        return connection.run(sql, [values[name] for name in order], fetches)[0]


class Strangers:
    """The servers that do not share the engine of this one."""

    def __init__(self) -> None:
        self._engine = ""
        #: By node, the row as it was when it had changed, and how many looks ago that was.
        self._seen: dict[str, tuple[Server, int]] = {}
        #: Those that are there, by node, with their names.
        self._there: dict[str, str] = {}

    def look(self, engine: str, servers: Iterable[Server]) -> tuple[list[str], list[str]]:
        """Take in what is in the table, and tell the names of those who have come and of those who have left.

        :param engine: the id of the own one. With another than before all begins anew: the others learn of it, too.
        """
        if engine != self._engine:
            self._engine, self._seen = engine, {}
        before, self._seen = self._seen, {}
        there: dict[str, str] = {}
        for server in servers:
            if server.engine == engine:
                continue
            known, looks = before.get(server.node, (None, 0))
            is_changed = known is None or (known.engine, known.seen) != (server.engine, server.seen)
            looks = 0 if is_changed else looks + 1
            self._seen[server.node] = server, looks
            has_spoken = known is not None and known.engine == server.engine and is_changed
            if has_spoken or (server.node in self._there and looks < LEFT):
                there[server.node] = server.name
        came = sorted(name for node, name in there.items() if node not in self._there)
        left = sorted(name for node, name in self._there.items() if node not in there)
        self._there = there
        return came, left
