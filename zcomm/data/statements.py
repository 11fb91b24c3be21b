"""Plans to SQL, by SQLAlchemy Core, once for each shape.

Building and compiling an expression costs many times what running it does, so that the SQL is remembered
by the plan's shape. Every identifier in it comes from the schema; every value is a parameter.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement

from zcomm.data.filters import EVERYTHING, Slot
from zcomm.data.requests import Plan

__all__ = ["MAX_STATEMENTS", "RESULT_BYTES", "TOO_LARGE", "Statement", "Statements"]

#: How many statements are remembered; a client can make up new shapes without end.
MAX_STATEMENTS = 500
#: Bytes that the values of one read may come to: what a reply may have (docs/protocol.rst, "Limits").
RESULT_BYTES = 16 * 1024 * 1024
#: What PostgreSQL complains of where they come to more. Its message repeats the text, in whatever language it speaks.
TOO_LARGE = "zcomm finds a result too large"


@dataclass(frozen=True, slots=True)
class Statement:
    """A compiled SQL statement.

    :ivar sql: with the parameter marks of its driver.
    :ivar order: which slot of the plan each parameter is.
    :ivar fetches: whether it brings rows back.
    :ivar max_bytes: bytes that the rows may come to, where the driver has to see to that.
    """

    sql: str
    order: tuple[int, ...]
    fetches: bool
    max_bytes: int | None = None


class Statements:
    """The statements of one database, made when a shape is first met. Safe to use from any thread.

    :param tables: by model.
    :param dialect: of the database, with positional parameters.
    """

    def __init__(self, tables: Mapping[str, sa.Table], dialect: Dialect):
        self._tables = tables
        self._dialect = dialect
        self._sqlite = dialect.name == "sqlite"
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Any, ...], Statement] = OrderedDict()

    def of(self, plan: Plan) -> Statement:
        """The statement of ``plan``."""
        shape = (plan.model.name, plan.shape)
        with self._lock:
            known = self._known.get(shape)
            if known is not None:
                self._known.move_to_end(shape)
                return known
        made = self._compile(plan)
        with self._lock:
            self._known[shape] = made
            if len(self._known) > MAX_STATEMENTS:
                self._known.popitem(last=False)
        return made

    def _compile(self, plan: Plan) -> Statement:
        table = self._tables[plan.model.name]
        build = getattr(self, "_" + plan.action)
        binds = _Binds(plan.slots)
        element: ClauseElement = build(plan, table, binds)
        compiled: Any = element.compile(dialect=self._dialect)
        names = compiled.positiontup or []
        return Statement(
            str(compiled),
            tuple(binds.numbers[name] for name in names),
            plan.action not in ("update", "delete"),
            RESULT_BYTES if self._sqlite and _boundless(plan) else None,
        )

    def _create(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        values = {name: binds.next(table.c[name]) for name in plan.written}
        return table.insert().values(values).returning(*(table.c[name] for name in plan.returning))

    def _upsert(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        _, written, conflict, replaced, replaceable = plan.shape
        insert = (sqlite_insert if self._sqlite else postgresql_insert)(table)
        insert = insert.values({name: binds.next(table.c[name]) for name in written})
        # A row comes back from an update only, so that one is made even when nothing is left to set.
        return insert.on_conflict_do_update(
            index_elements=[table.c[name] for name in conflict],
            set_={name: insert.excluded[name] for name in replaced},
            where=None if replaceable == EVERYTHING.shape else self._condition(replaceable, table, binds),
        ).returning(*(table.c[name] for name in plan.returning))

    def _read(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        _, fields, where, order = plan.shape
        query = sa.select(*(table.c[name] for name in fields))
        query = query.where(self._condition(where, table, binds))
        for name, descending in order:
            column = table.c[name]
            term = column.desc() if descending else column.asc()
            if self._sqlite and column.nullable:
                # PostgreSQL's order of nulls, so that both databases sort alike.
                term = term.nulls_first() if descending else term.nulls_last()
            query = query.order_by(term)
        query = query.limit(binds.next(None)).offset(binds.next(None))
        return query if self._sqlite or not _boundless(plan) else _measured(query, _boundless(plan))

    def _update(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        values = {name: binds.next(table.c[name]) for name in plan.written}
        return table.update().values(values).where(self._condition(plan.shape[2], table, binds))

    def _delete(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        return table.delete().where(self._condition(plan.shape[1], table, binds))

    def _condition(self, shape: tuple[Any, ...], table: sa.Table, binds: _Binds) -> ColumnElement[bool]:
        head = shape[0]
        if head == "$true":
            return sa.true()
        if head == "$false":
            return sa.false()
        if head == "$not":
            # Not plain NOT: of a condition on null that is null again, and the row would match neither.
            return self._condition(shape[1], table, binds).is_not(sa.true())
        if head in ("$and", "$or"):
            parts = [self._condition(part, table, binds) for part in shape[1:]]
            return sa.and_(*parts) if head == "$and" else sa.or_(*parts)
        column: ColumnElement[Any] = table.c[head]
        if shape[1] in ("in", "not_in"):
            values = [binds.next(column) for _ in range(shape[2])]
            if shape[1] == "in":
                return column.in_(values)
            return sa.or_(column.not_in(values), column.is_(None))
        if shape[1] in ("like", "ilike", "ilike_ascii"):
            return self._like(column, shape[1], binds)
        compared: ColumnElement[bool] = _COMPARISONS[shape[1]](column, binds)
        return compared

    def _like(self, column: ColumnElement[Any], operator: str, binds: _Binds) -> ColumnElement[bool]:
        pattern = binds.next(column)
        if not self._sqlite:
            compare = column.like if operator == "like" else column.ilike
            return compare(pattern, escape="\\")
        if operator == "ilike_ascii":
            return column.like(pattern, escape="\\")
        # SQLite's LIKE knows no case, of ASCII letters; GLOB does, and both run in the same time.
        subject = column if operator == "like" else sa.func.zcomm_fold(sa.cast(column, sa.LargeBinary))
        return subject.op("GLOB", is_comparison=True)(pattern if operator == "like" else sa.func.zcomm_fold(pattern))


def _boundless(plan: Plan) -> list[str]:
    """The fields of a read whose values may be of any size."""
    if plan.action != "read":
        return []
    fields = (plan.model.fields[name] for name in plan.returning)
    return [
        field.name
        for field in fields
        if field.kind.name in ("bytes", "json")
        or (field.kind.textual and (field.rules is None or field.rules.max_length is None))
    ]


def _measured(query: sa.Select[Any], names: list[str]) -> sa.Select[Any]:
    """``query`` for PostgreSQL, failing with ``TOO_LARGE`` where its rows come to more than a result may.

    The driver has all rows in memory before it shows the first. The server knows how long a value is without
    reading it, and gives the rows of a materialized query in the order in which they came.
    """
    rows = query.cte("zcomm_rows").prefix_with("MATERIALIZED")
    zero: ColumnElement[Any] = sa.literal_column("0")
    one: ColumnElement[Any] = sa.literal_column("1")
    values = (
        sa.cast(rows.c[name], sa.Text) if isinstance(rows.c[name].type, sa.JSON) else rows.c[name] for name in names
    )
    sizes = [sa.func.coalesce(sa.func.octet_length(value), zero) for value in values]
    total = sa.select(sa.func.sum(reduce(add, sizes))).scalar_subquery()
    # A text that is no number fails its cast, which is how a plain query fails at all.
    text: ColumnElement[Any] = sa.literal_column(f"'{TOO_LARGE}'")
    verdict = sa.case((total > sa.literal_column(str(RESULT_BYTES)), text), else_=sa.literal_column("'1'"))
    return sa.select(rows).where(sa.cast(verdict, sa.Integer) == one)


_COMPARISONS: dict[str, Any] = {
    "eq": lambda column, binds: column == binds.next(column),
    "ne": lambda column, binds: column.is_distinct_from(binds.next(column)),
    "gt": lambda column, binds: column > binds.next(column),
    "gte": lambda column, binds: column >= binds.next(column),
    "lt": lambda column, binds: column < binds.next(column),
    "lte": lambda column, binds: column <= binds.next(column),
    "between": lambda column, binds: column.between(binds.next(column), binds.next(column)),
    "isnull": lambda column, binds: column.is_(None),
    "notnull": lambda column, binds: column.is_not(None),
}


class _Binds:
    """Makes one parameter for each slot, in their order."""

    def __init__(self, slots: tuple[Slot, ...]):
        self.numbers: dict[str, int] = {}
        self._left: Iterator[int] = iter(range(len(slots)))

    def next(self, column: ColumnElement[Any] | None) -> Any:
        """The parameter of the next slot, typed like ``column``; a number when there is none."""
        number = next(self._left)
        # No column can be called so: SQLAlchemy keeps parameters and columns in one namespace.
        name = f"zcomm__{number}"
        self.numbers[name] = number
        return sa.bindparam(name, type_=sa.BigInteger() if column is None else column.type)
