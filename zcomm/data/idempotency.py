"""Writes that may be sent twice: the first execution's result is kept beside what it wrote.

A client that does not hear the answer to a write cannot know whether it was made. With an
``_idempotencyKey`` it may send the same request again: key, change and result are stored in one
transaction, so that either all three are there or none, whatever dies in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement

from zcomm.data.drivers.driver import Connection, Fault
from zcomm.data.values import json_raw, raw_text
from zcomm.errors import Conflict, TooBusy

__all__ = ["CREATION_LOCK", "KEPT", "IdempotencyTable", "IdempotencyKey"]

#: Any number; it keeps two servers from creating the same tables at once.
CREATION_LOCK = 0x7A436F6D6D
#: How long a result is kept, in seconds.
KEPT = 24 * 3600
#: How many results are kept of one user's writes to one table, before older ones give way; and how old one is then, in
#: seconds, at least.
KEPT_AT_MOST = 250_000
KEPT_AT_LEAST = 600
#: How many results are removed at a time.
SLICE = 1000
#: Seconds for which it is taken for known that there are too many young ones.
_FULL = 30.0
#: How many users' results are counted before the counting begins anew.
_MANY = 10_000


_NONE: ColumnElement[Any] = sa.literal_column("0")
_ONE: ColumnElement[Any] = sa.literal_column("1")


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The identity of one write to a table, which no other has.

    :ivar identity: whose key it is; others may use the same one.
    :ivar key: as the client made it.
    :ivar request: the digest of what was asked.
    """

    identity: str
    key: str
    request: str


class IdempotencyTable:
    """The table of kept results.

    :param table: as :func:`zcomm.data.sql.tables.build_tables` makes it.
    :param dialect: of its database.
    :param now: seconds since 1970.
    :ivar late: whether it is still to be made, with the first result that is kept.
    """

    def __init__(self, table: sa.Table, dialect: Dialect, now: Callable[[], float]):
        self._now = now
        self.late = False
        self._table = table.name
        made: list[Any] = [sa.schema.CreateTable(table, if_not_exists=True)]
        made += [sa.schema.CreateIndex(index, if_not_exists=True) for index in table.indexes]
        self._make = [str(each.compile(dialect=dialect)) for each in made]
        if dialect.name == "postgresql":
            # Two that make the same table at once fail.
            self._make.insert(0, f"SELECT pg_advisory_xact_lock({CREATION_LOCK})")
        column = table.c
        insert = (sqlite_insert if dialect.name == "sqlite" else postgresql_insert)(table)
        its_key = sa.and_(
            column.identity == sa.bindparam("zcomm__i", type_=sa.Text()),
            column.key == sa.bindparam("zcomm__k", type_=sa.Text()),
        )
        text = sa.Text()
        number = sa.BigInteger()
        expired = column.expires < sa.bindparam("zcomm__e", type_=number)

        def compiled(element: ClauseElement) -> tuple[str, tuple[str, ...]]:
            made: Any = element.compile(dialect=dialect)
            return str(made), tuple(made.positiontup or ())

        # On PostgreSQL a second transaction with the same key waits here for the first one's end.
        self._claim = compiled(
            insert.values(
                identity=sa.bindparam("zcomm__i", type_=text),
                key=sa.bindparam("zcomm__k", type_=text),
                request=sa.bindparam("zcomm__r", type_=text),
                expires=sa.bindparam("zcomm__e", type_=number),
            )
            .on_conflict_do_nothing(index_elements=[column.identity, column.key])
            .returning(column.key)
        )
        self._find = compiled(sa.select(column.request, column.result).where(its_key))
        kept = sa.bindparam("zcomm__v", type_=text)
        self._fill = compiled(table.update().values(result=kept).where(its_key))
        self._forget = compiled(table.delete().where(its_key, expired))
        self._oldest = compiled(sa.select(sa.func.min(column.expires)))
        its = column.identity == sa.bindparam("zcomm__i", type_=text)
        limit: ColumnElement[Any] = sa.bindparam("zcomm__n", type_=number)
        key_of = sa.tuple_(column.identity, column.key)
        some = sa.select(column.identity, column.key)
        # Without an offset: SQLite's dialect would make that a parameter of its own.
        self._sweep = compiled(table.delete().where(key_of.in_(some.where(expired).limit(limit).offset(_NONE))))
        self._make_room = compiled(
            table.delete().where(key_of.in_(some.where(its, expired).limit(limit).offset(_NONE)))
        )
        counted = sa.select(_ONE).select_from(table).where(its).limit(limit).offset(_NONE).subquery()
        self._count = compiled(sa.select(sa.func.count()).select_from(counted))
        #: How many results are kept, by identity, as far as that was counted; at most so many, as some may have
        #: expired. And until when, on the clock of :mod:`time`, there are known to be too many young ones.
        self._counts: dict[str, int] = {}
        self._full: dict[str, float] = {}

    def run_once(
        self,
        connection: Connection,
        key: IdempotencyKey,
        written: sa.Table,
        acting: str,
        write: Callable[[], Any],
        raw: bool = False,
    ) -> tuple[Any, bool]:
        """Call ``write`` unless that has been done for this key, in one transaction.

        :param written: the table that it writes to. Several servers may keep their results in one table, each with
            models of its own for tables of its own: what is answered with another's result has to be in the same table.
        :param acting: as of :meth:`zcomm.data.drivers.driver.Database.acting`; likewise.
        :param raw: whether stored JSON stays the text that it is, to be passed on.
        :return: the result, and whether it was made now.
        :raises Conflict: when the key was used for another request.
        """
        identity = json.dumps([key.identity, written.schema, written.name, acting])
        # Under the name of a field another model of the table may mean another column.
        columns = json.dumps(sorted((column.key, column.name) for column in written.c if column.key != column.name))
        request = sha256(f"{key.request}{columns}".encode()).hexdigest()
        names = {"zcomm__i": identity, "zcomm__k": key.key, "zcomm__r": request}
        now = int(self._now())
        if self.late:
            self._make_table(connection)
        connection.begin()
        try:
            self._forget_expired(connection, {**names, "zcomm__e": now})
            claimed = self._run(connection, self._claim, {**names, "zcomm__e": now + KEPT}, True)
            if claimed:
                self._see_to_room(connection, identity, now)
                result = write()
                self._run(connection, self._fill, {**names, "zcomm__v": raw_text(result)}, False)
            else:
                found = self._run(connection, self._find, names, True)
                known, kept = found[0]
                if known != request:
                    raise Conflict(
                        "This _idempotencyKey was used for another request; make a new one",
                        {"_idempotencyKey": "was used for another request"},
                    )
                result = _kept(kept) if raw else json.loads(kept)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        if claimed:
            self._counts[identity] = self._counts.get(identity, 0) + 1
        return result, bool(claimed)

    def _see_to_room(self, connection: Connection, identity: str, now: int) -> None:
        """Forget some older results of an identity that has as many as there may be.

        :raises TooBusy: where all of them are young.
        """
        count = self._counts.get(identity)
        if count is not None and count < KEPT_AT_MOST:
            return
        left = self._full.get(identity, 0.0) - self._now()
        if left <= 0:
            bound: dict[str, Any] = {"zcomm__i": identity, "zcomm__n": KEPT_AT_MOST + 1}
            # The one that has just been claimed is among them.
            count = self._run(connection, self._count, bound, True)[0][0] - 1
            if count >= KEPT_AT_MOST:
                old = {"zcomm__i": identity, "zcomm__e": now + KEPT - KEPT_AT_LEAST, "zcomm__n": SLICE}
                count -= self._touched(connection, self._make_room, old)
            if count < KEPT_AT_MOST:
                if len(self._counts) > _MANY:
                    self._counts, self._full = {}, {}
                self._counts[identity] = count
                return
            left = _FULL
            self._full[identity] = self._now() + left
        raise TooBusy(
            f"You have sent more than {KEPT_AT_MOST} _idempotencyKeys for this model in {KEPT_AT_LEAST // 60} minutes; "
            f"try again in {max(1, round(left))} s"
        )

    def _make_table(self, connection: Connection) -> None:
        """Make the table. By itself: what follows has to meet the tables as they are, this one included."""
        try:
            connection.begin()
            try:
                for statement in self._make:
                    connection.run(statement, (), False)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
        except Fault as fault:
            if fault.kind != "forbidden":
                raise
            raise replace(fault, kind="full", detail=f"{self._table} cannot be made: {fault.detail}") from fault
        self.late = False

    def _forget_expired(self, connection: Connection, values: dict[str, Any]) -> None:
        try:
            self._run(connection, self._forget, values, False)
        except Fault as fault:
            if fault.kind != "altered":
                raise
            # Somebody removed the table, or put a copy of the database in its place that has none.
            self.late = True
            raise replace(fault, kind="stale") from fault

    def sweep(self, connection: Connection, most: int = SLICE) -> bool:
        """Forget some of the results that are kept no longer, ``most`` of them; returns whether there may be more."""
        if self.late:
            return False
        now = int(self._now())
        # SQLite keeps readers out for a write that finds nothing as well, where the file has no write-ahead log.
        oldest = self._run(connection, self._oldest, {}, True)[0][0]
        if oldest is None or oldest >= now:
            return False
        return self._touched(connection, self._sweep, {"zcomm__e": now, "zcomm__n": most}) >= most

    @staticmethod
    def _touched(connection: Connection, statement: tuple[str, tuple[str, ...]], values: dict[str, Any]) -> int:
        sql, order = statement
        return connection.run(sql, [values[name] for name in order], False)[1]

    @staticmethod
    def _run(
        connection: Connection, statement: tuple[str, tuple[str, ...]], values: dict[str, Any], fetches: bool
    ) -> list[tuple[Any, ...]]:
        sql, order = statement
        return connection.run(sql, [values[name] for name in order], fetches)[0]


def _kept(text: str) -> Any:
    """A result that was kept, with the values of JSON as texts."""
    values = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return {name: json_raw(bytes(value).decode()) for name, value in values.items()}
