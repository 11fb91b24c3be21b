"""Plans to SQL, by SQLAlchemy Core, once for each shape.

Building and compiling an expression costs many times what running it does, so that the SQL is remembered
by the plan's shape. Every identifier in it comes from the schema; every value is a parameter.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement

from zcomm.data.filters import EVERYTHING
from zcomm.data.models import Column, Field, Model, Reference
from zcomm.data.requests import Plan, finds_few
from zcomm.data.row_security import tells_apart
from zcomm.data.sql.conditions import ROW, Binds, Conditions, Parameter, compared

__all__ = [
    "MAX_JUDGED",
    "MAX_NARROWED",
    "MAX_STATEMENT",
    "MAX_STATEMENTS",
    "MAX_TOLD",
    "RESULT_BYTES",
    "TOO_LARGE",
    "Statement",
    "Statements",
    "Telling",
]

#: Bytes of the statements that are remembered, about, and of one of them; a client can make up new shapes without end.
MAX_STATEMENTS, MAX_STATEMENT = 4 << 20, 64 << 10
#: Bytes that a parameter of a statement takes, with its part of the shape.
_PARAMETER_BYTES = 200
#: How many rows a change in two steps may be of.
MAX_NARROWED = 10_000
#: Of how many rows of a change others are told one by one.
MAX_TOLD = 100
#: Characters, or bytes, of a value that rows are named or told apart by: more is not brought back.
MAX_JUDGED = 1000
#: Since 3.38 every SQLite has the functions for JSON.
_HAS_JSON = sqlite3.sqlite_version_info >= (3, 38, 0)
#: Bytes that the values of one read may come to: what a reply may have (docs/protocol.rst, "Limits").
RESULT_BYTES = 16 * 1024 * 1024
#: What PostgreSQL complains of where they come to more. Its message repeats the text, in whatever language it speaks.
TOO_LARGE = "zcomm finds a result too large"
Group = tuple[str, ...]
_Write = TypeVar("_Write", sa.Update, sa.Delete)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A compiled SQL statement.

    :ivar sql: with the parameter marks of its driver.
    :ivar parameters: in the order of the marks.
    :ivar fetches: whether it brings rows back.
    :ivar max_bytes: bytes that the rows may come to, where the driver has to see to that.
    :ivar looks: what is looked for after a write, in its transaction: by the group of fields that has to be unique, a
        statement with values of the same plan, which brings rows where it is not.
    :ivar pointing: what is looked for before a write, likewise: a statement that brings a row where one points to what
        is taken away in a form in which the database does not see that.
    :ivar astray: what is looked for before a write, likewise: a statement that brings the places, in the plan's
        ``confined``, of the fields that would point to a row out of reach, or to none.
    """

    sql: str
    parameters: tuple[Parameter, ...]
    fetches: bool
    max_bytes: int | None = None
    looks: tuple[tuple[tuple[str, ...], Statement], ...] = ()
    pointing: Statement | None = None
    astray: Statement | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        others = [look for _, look in self.looks] + [each for each in (self.pointing, self.astray) if each is not None]
        own = 2 * len(self.sql) + _PARAMETER_BYTES * len(self.parameters)
        return own + sum(each.size for each in others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """A change that brings back the fields of its rows of which others are told.

    :ivar write: the change.
    :ivar find: what tells first whether the rows are few: a query for as many and one; of SQLite for their numbers,
        which ``write`` takes as a parameter. ``None`` where that is known, or is no matter.
    :ivar counts: whether ``write`` brings a few rows only, each behind the number of all.
    :ivar fields: the fields that it brings back: the key, what is written, and :attr:`judged`.
    :ivar judged: those by which rights may tell rows apart.
    :ivar cut: those of which no more than :data:`MAX_JUDGED` and one are brought back.
    :ivar padded: those in which blanks at the end count for nothing.
    """

    write: Statement
    find: Statement | None
    counts: bool
    fields: tuple[str, ...]
    judged: tuple[str, ...]
    cut: frozenset[str]
    padded: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return self.write.size + (0 if self.find is None else self.find.size)


class _Pointer(NamedTuple):
    """A foreign key.

    :ivar model: the name of the model that has it.
    :ivar of: the name of the one that it points to.
    :ivar cascades: whether a row goes along with that which it points to.
    """

    model: str
    field: Field
    of: str
    target: Field
    cascades: bool


class Statements:
    """The statements of one database, made when a shape is first met. Safe to use from any thread.

    :param tables: by model.
    :param dialect: of the database, with positional parameters.
    :param binders: by the kind of a slot, from the plan's value to what the driver takes; a column's own wins.
    :param models: all of them by name, for what fields point to.
    """

    def __init__(
        self,
        tables: Mapping[str, sa.Table],
        dialect: Dialect,
        binders: Mapping[str, Callable[[Any], Any]] = MappingProxyType({}),
        models: Mapping[str, Model] = MappingProxyType({}),
    ):
        self._binders = binders
        self._models = models
        self._tables = tables
        self._dialect = dialect
        self._sqlite = dialect.name == "sqlite"
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._size = 0
        self._conditions = Conditions(dialect, tables, models)

    def of(self, plan: Plan) -> Statement:
        """The statement of ``plan``."""
        plan = self._bound(plan)
        shape = (plan.model.name, plan.shape, plan.confined)
        with self._lock:
            known = self._known.get(shape)
            if known is not None:
                self._known.move_to_end(shape)
                return known  # type: ignore[no-any-return]
        made = self._compile(plan)
        self._remember({shape: made})
        return made

    def _remember(self, made: Mapping[tuple[Any, ...], Statement | Telling]) -> None:
        """Keep statements by their shapes, and forget others where they come to too much."""
        size = sum(each.size for each in made.values())
        if size > MAX_STATEMENT:
            return
        with self._lock:
            for shape, each in made.items():
                before = self._known.pop(shape, None)
                self._size += each.size - (0 if before is None else before.size)
                self._known[shape] = each
            while self._size > MAX_STATEMENTS:
                _, oldest = self._known.popitem(last=False)
                self._size -= oldest.size

    def narrowed(self, plan: Plan) -> tuple[Statement, Statement] | None:
        """A change in two steps, the first of which writes nothing: a query for the numbers of the rows that match, at
        most :data:`MAX_NARROWED` and one; and the change of those of them that still match, which takes their numbers
        as a parameter, and so do the looks before it.

        :return: ``None`` where there is no such thing.
        """
        capabilities = plan.model.capabilities
        if not self._sqlite or plan.action not in ("update", "delete") or capabilities.perhaps or not _HAS_JSON:
            return None
        plan = self._bound(plan)
        shape = (plan.model.name, plan.shape, plan.confined, "narrowed")
        with self._lock:
            found, made = self._known.get((*shape, "find")), self._known.get(shape)
        if found is None or made is None:
            found, made = self._numbers(plan, MAX_NARROWED + 1), self._by_numbers(plan)
            self._remember({(*shape, "find"): found, shape: made})
        return found, made

    def keyed(self, plan: Plan, key: Group, raw: Group, condition: str = "") -> Statement:
        """The read ``plan`` so that it brings more of each row: behind what it returns the columns of the fields
        ``raw`` as they are, and the expressions ``key``.

        :param condition: SQL with one parameter mark of the driver, in the place of order and limit: of the rows that
            ``plan`` asks for those of which it is true. Its parameter stands in the place of the numbers of rows.
        """
        plan = self._bound(plan)
        shape = (plan.model.name, plan.shape, plan.returning, key, raw, condition, "keyed")
        with self._lock:
            known = self._known.get(shape)
            if known is not None:
                self._known.move_to_end(shape)
                return known  # type: ignore[no-any-return]
        table = self._tables[plan.model.name]
        binds = Binds(plan, table, self._binders)
        columns: list[ColumnElement[Any]] = [table.c[name].label(f"zcomm__w{n}") for n, name in enumerate(raw)]
        for number, expression in enumerate(key):
            named: ColumnElement[Any] = sa.literal_column(expression)
            columns.append(named.label(f"zcomm__k{number}"))
        made = self._compiled(self._read(plan, table, binds, columns, condition), binds, True)
        if self._sqlite and _boundless(plan):
            made = replace(made, max_bytes=RESULT_BYTES)
        self._remember({shape: made})
        return made

    def _bound(self, plan: Plan) -> Plan:
        """``plan``, which may be of before the columns of its model were learnt, of the model with them."""
        model = self._models.get(plan.model.name, plan.model)
        return plan if model is plan.model else replace(plan, model=model)

    def _numbers(self, plan: Plan, most: int) -> Statement:
        """A query for the numbers of the rows that match ``plan``."""
        table = self._tables[plan.model.name]
        binds = Binds(plan, table, self._binders)
        query = sa.select(ROW).select_from(table).where(self._reached(plan, table, binds))
        return self._compiled(query.suffix_with(f"LIMIT {most}"), binds, True)

    def _by_numbers(self, plan: Plan, told: Group = (), cut: frozenset[str] = frozenset()) -> Statement:
        """The change of the rows of some numbers that match ``plan``; the parameters are those of :meth:`_compile`."""
        table = self._tables[plan.model.name]
        binds = Binds(plan, table, self._binders, narrowed=True)
        build: Any = self._update if plan.action == "update" else self._delete
        # By their numbers, whatever index its condition has: it was asked for these.
        write = build(plan, table, binds).with_hint("NOT INDEXED", dialect_name="sqlite")
        if plan.model.capabilities.lenient and plan.action == "update":
            write = write.prefix_with("OR ABORT", dialect="sqlite")
        if told:
            write = write.returning(*self._cut(plan, table.c, told, cut))
        return replace(
            self._compiled(write, binds, bool(told)),
            pointing=self._pointing(plan, table, True),
            astray=self._astray(plan, table, True) if plan.confined else None,
        )

    def telling(self, plan: Plan, rights: frozenset[str] | None) -> Telling | None:
        """The change ``plan`` so that it brings back its rows where they are few, and no more than a few where they are
        many; ``None`` where there is no such thing.

        :param rights: the fields by which rights may tell rows apart; ``None`` for any.
        """
        shape = (plan.model.name, plan.shape, plan.confined, rights, "told")
        with self._lock:
            known = self._known.get(shape)
            if known is not None:
                self._known.move_to_end(shape)
                return known  # type: ignore[no-any-return]
        plan = self._bound(plan)
        model, capabilities = plan.model, plan.model.capabilities
        few, whole = finds_few(model, plan.shape[-1]), plan.shape[-1] == EVERYTHING.shape
        if capabilities.perhaps or "read" in capabilities.lacks or (self._sqlite and not few and not _HAS_JSON):
            return None
        if any(model.fields[name].hidden for name in (*model.key, *plan.written)):
            return None
        if whole and capabilities.disturbs:
            # A policy of the table may keep rows from who asks for something of them, and not from who does not.
            return None
        named = model.visible if rights is None else [name for name in model.visible if name in rights]
        judged = tuple(name for name in named if tells_apart(model.fields[name]))
        fields = tuple(dict.fromkeys((*model.key, *plan.written, *judged)))
        padded = frozenset(name for name in fields if (own := model.fields[name].column) is not None and own.padded)
        cut = frozenset(
            name
            for name in fields
            if name not in plan.written and name not in padded and _is_boundless(model.fields[name])
        )
        find = None
        if few or not self._sqlite:
            write = self._compile(plan, fields, cut, few)
        else:
            write, find = self._by_numbers(plan, fields, cut), self._numbers(plan, MAX_TOLD + 1)
        if whole and not self._sqlite:
            table = self._tables[model.name]
            one: ColumnElement[Any] = sa.literal_column("1")
            query = sa.select(one).select_from(table).suffix_with(f"LIMIT {MAX_TOLD + 1}")
            if capabilities.only:
                query = query.with_hint(table, "ONLY", "postgresql")
            find = self._compiled(query, Binds(plan, table, self._binders), True)
        made = Telling(
            write=write,
            find=find,
            counts=not few and not self._sqlite,
            fields=fields,
            judged=judged,
            cut=cut,
            padded=padded,
        )
        self._remember({shape: made})
        return made

    def _compile(self, plan: Plan, told: Group = (), cut: frozenset[str] = frozenset(), few: bool = True) -> Statement:
        """
        :param told: the fields that a change brings back.
        :param cut: those of them of which no more than the beginning is wanted.
        :param few: whether it does so of all its rows.
        """
        table = self._tables[plan.model.name]
        build = getattr(self, "_" + plan.action)
        binds = Binds(plan, table, self._binders)
        element: ClauseElement = build(plan, table, binds)
        if plan.model.capabilities.lenient and isinstance(element, (sa.Insert, sa.Update)):
            # Not everywhere: it holds for the statements of the table's triggers as well, whatever they say.
            element = element.prefix_with("OR ABORT", dialect="sqlite")
        if told and isinstance(element, (sa.Update, sa.Delete)):
            if few:
                element = element.returning(*self._cut(plan, table.c, told, cut))
            else:
                element = self._counting(element, plan, told, cut)
        made = self._compiled(element, binds, bool(told) or plan.action not in ("update", "delete"))
        if self._sqlite and _boundless(plan):
            made = replace(made, max_bytes=RESULT_BYTES)
        looks = [(group, _alike(group, table, binds)) for group in _doubtful(plan)]
        return replace(
            made,
            looks=tuple((group, self._compiled(look, binds, True)) for group, look in looks),
            pointing=self._pointing(plan, table),
            astray=self._astray(plan, table) if plan.confined else None,
        )

    def _counting(self, write: sa.Update | sa.Delete, plan: Plan, told: Group, cut: frozenset[str]) -> ClauseElement:
        """``write`` on PostgreSQL, bringing back ``told`` of its rows where they are few, each behind their number; of
        many one row, for the number: what nobody is told of is neither made ready nor sent."""
        table = self._tables[plan.model.name]
        # Two of the columns may be called alike.
        labels = {name: f"zcomm__r{place}" for place, name in enumerate(told)}
        rows = write.returning(*(table.c[name].label(label) for name, label in labels.items())).cte("zcomm_changed")
        counted = sa.select(sa.func.count().label("zcomm__n")).select_from(rows).cte("zcomm_counted")
        one: ColumnElement[Any] = sa.literal_column("1")
        most: ColumnElement[Any] = sa.literal_column(str(MAX_TOLD))
        limit = sa.select(sa.case((counted.c.zcomm__n <= most, most), else_=one)).scalar_subquery()
        shown = self._cut(plan, {name: rows.c[label] for name, label in labels.items()}, told, cut)
        return sa.select(sa.select(counted.c.zcomm__n).scalar_subquery(), *shown).select_from(rows).limit(limit)

    def _cut(self, plan: Plan, columns: Any, told: Group, cut: frozenset[str]) -> list[ColumnElement[Any]]:
        """Those of ``columns`` that are ``told``, and those of ``cut`` without what is beyond :data:`MAX_JUDGED` and
        one."""
        one: ColumnElement[Any] = sa.literal_column("1")
        most: ColumnElement[Any] = sa.literal_column(str(MAX_JUDGED + 1))
        made = []
        for name, column in zip(told, _shown(plan.model, columns, told), strict=True):
            if name not in cut:
                made.append(column)
            elif self._sqlite:
                # A number stays one.
                text = sa.func.typeof(column).in_([sa.literal_column("'text'"), sa.literal_column("'blob'")])
                made.append(sa.case((text, sa.func.substr(column, one, most)), else_=column))
            else:
                if plan.model.fields[name].kind.name != "bytes":
                    column = sa.cast(column, sa.Text())
                made.append(sa.func.pg_catalog.substr(column, one, most))
        return made

    def _compiled(self, element: ClauseElement, binds: Binds, fetches: bool) -> Statement:
        compiled: Any = element.compile(dialect=self._dialect)
        names = compiled.positiontup or []
        return Statement(sql=str(compiled), parameters=tuple(binds.parameters[name] for name in names), fetches=fetches)

    def _create(self, plan: Plan, table: sa.Table, binds: Binds) -> ClauseElement:
        values = self._written(plan, table, binds)
        return table.insert().values(values).returning(*_shown(plan.model, table.c, plan.returning))

    def _written(self, plan: Plan, table: sa.Table, binds: Binds, conflict: Group = ()) -> dict[str, Any]:
        """By field, the value to write: in the form in which its key is there already, where it may have several.

        SQLite compares unique values and foreign keys as they are stored. A value in another form than that of the row
        which has it, or which it points to, would be another one to it.

        :param conflict: the fields that an upsert finds its row by.
        """
        model = plan.model
        usual = {name: binds.written(name) for name in plan.written}
        given = binds.values
        made: dict[str, Any] = {}
        for name, value in given.items():
            field = model.fields[name]
            there: list[Any] = []
            if field.fk is not None and field.fk.model in self._models:
                parent = self._tables[field.fk.model].alias()
                target = self._models[field.fk.model].fields[field.fk.field]
                if _several(field) or _several(target):
                    there.append(sa.select(parent.c[target.name]).where(_equal(target, parent, "same", value)))
            groups = [each for each in _groups(model) if _several(field) and name in each and given.keys() >= {*each}]
            for group in sorted(groups, key=lambda group: group != conflict):
                row = table.alias()
                alike = (
                    _equal(model.fields[each], row, "same" if each == name else "eq", given[each]) for each in group
                )
                there.append(sa.select(row.c[name]).where(*alike))
            written = usual[name]
            made[name] = sa.func.coalesce(*(each.scalar_subquery() for each in there), written) if there else written
        return made

    def _kept(self, name: str, table: sa.Table, binds: Binds, written: Any) -> Any:
        """What an existing row gets for ``written``: what it has, where that is the same value in whatever form."""
        field, value = binds.model.fields[name], binds.values[name]
        own = field.column
        if own is None or own.key is None:
            return written
        column = table.c[name]
        same: ColumnElement[bool] = own.key(column) == (value if own.keyed is None else own.keyed(value))
        if field.fk is not None:
            # Where foreign keys were not looked at when it was written, it may be in another form than what it means.
            parent = self._tables[field.fk.model].alias()
            same = sa.and_(same, sa.exists().where(parent.c[field.fk.field] == column))
        return sa.case((same, column), else_=written)

    def finding(self, target: Reference) -> ClauseElement:
        """A query for the row that a value points to, with it as its one parameter."""
        table, field = self._tables[target.model], self._models[target.model].fields[target.field]
        value = sa.bindparam("zcomm__0", type_=table.c[target.field].type)
        return sa.select(sa.literal_column("1")).select_from(table).where(_equal(field, table, "same", value))

    def _upsert(self, plan: Plan, table: sa.Table, binds: Binds) -> ClauseElement:
        _, _, conflict, replaced, replaceable = plan.shape
        insert = (sqlite_insert if self._sqlite else postgresql_insert)(table)
        insert = insert.values(self._written(plan, table, binds, conflict))
        # A row comes back from an update only. Where nothing is left to set, one field is set to what it is: the key
        # that was sent may be written another way than the one that is there, and equal all the same.
        changes = {name: self._kept(name, table, binds, insert.excluded[name]) for name in replaced}
        changes = changes or {conflict[0]: table.c[conflict[0]]}
        return insert.on_conflict_do_update(
            index_elements=[table.c[name] for name in conflict],
            set_=changes,
            where=None if replaceable == EVERYTHING.shape else self._conditions.of(replaceable, table, binds),
        ).returning(*_shown(plan.model, table.c, plan.returning))

    def _read(
        self,
        plan: Plan,
        table: sa.Table,
        binds: Binds,
        more: Sequence[ColumnElement[Any]] = (),
        condition: str = "",
    ) -> ClauseElement:
        """
        :param more: what is read behind the fields.
        :param condition: of :meth:`keyed`.
        """
        _, fields, where, order = plan.shape
        measured = [] if self._sqlite else _boundless(plan)
        shown = _shown(plan.model, table.c, fields)
        if measured:
            # A query of this one names them. The name of a field may be that of another's column.
            shown = [column.label(f"zcomm__r{number}") for number, column in enumerate(shown)]
        query = sa.select(*shown, *more).select_from(table)
        if where != EVERYTHING.shape or not condition:
            query = query.where(self._conditions.where(where, table, binds))
        if plan.model.capabilities.only:
            query = query.with_hint(table, "ONLY", "postgresql")
        if condition:
            query = query.where(binds.marked(condition, "?" if self._sqlite else "%s"))
            return _measured(query, plan, measured, binds.allowance()) if measured else query
        for name, descending in order:
            column = compared(plan.model.fields[name], table)
            term = column.desc() if descending else column.asc()
            if self._sqlite and _nullable(plan.model.fields[name]):
                # PostgreSQL's order of nulls, so that both databases sort alike.
                term = term.nulls_first() if descending else term.nulls_last()
            query = query.order_by(term)
        query = query.limit(binds.number()).offset(binds.number())
        return _measured(query, plan, measured, binds.allowance()) if measured else query

    def _update(self, plan: Plan, table: sa.Table, binds: Binds) -> ClauseElement:
        values = {
            name: self._kept(name, table, binds, value) for name, value in self._written(plan, table, binds).items()
        }
        write = _only(table.update(), plan).values(values).where(self._conditions.where(plan.shape[2], table, binds))
        return self._counted(write, plan)

    def _delete(self, plan: Plan, table: sa.Table, binds: Binds) -> ClauseElement:
        return self._counted(
            _only(table.delete(), plan).where(self._conditions.where(plan.shape[1], table, binds)), plan
        )

    def _pointing(self, plan: Plan, table: sa.Table, narrowed: bool = False) -> Statement | None:
        """Looks for a row that points to what ``plan`` takes away in a form in which SQLite does not see that."""
        taken = _taken(plan)
        pointers = list(self._foreign_keys()) if taken else []
        cascading: list[_Pointer] = []
        reached = {plan.model.name}
        # A changed value takes no rows along.
        while plan.action == "delete":
            along = [each for each in pointers if each.cascades and each.of in reached and each not in cascading]
            if not along:
                break
            cascading += along
            reached.update(pointer.model for pointer in along)
        # The values that go, by model and field, with a number for each.
        going: dict[tuple[str, str], ColumnElement[Any]] = {}
        pointers = [
            each
            for each in pointers
            if each.of in reached and (each.of != plan.model.name or each.target.name in taken)
        ]
        doubtful = [each for each in pointers if _several(each.field) or _several(each.target)]
        if not doubtful:
            return None
        for pointer in (*cascading, *doubtful):
            going.setdefault((pointer.of, pointer.target.name), sa.literal_column(str(len(going))))

        def values_of(model: str, rows: sa.FromClause) -> list[tuple[str, sa.Select[Any]]]:
            # Without the affinity of their columns, which are of several types.
            return [
                (name, sa.select(number.label("target"), _bare(rows.c[name]).label("value")))
                for (of, name), number in going.items()
                if of == model
            ]

        binds = Binds(plan, table, self._binders, narrowed)
        # Once, as its parameters.
        root = sa.select(*table.c).where(self._reached(plan, table, binds)).cte("zcomm_taken")
        first, *others = (
            # What has the value that is written keeps it in its form.
            found
            if plan.action == "delete"
            else found.where(_equal(plan.model.fields[name], root, "same", binds.values[name]).is_not(sa.true()))
            for name, found in values_of(plan.model.name, root)
        )
        gone = first.cte("zcomm_gone", recursive=True)
        for pointer in cascading:
            rows, before = self._tables[pointer.model].alias(), gone.alias()
            goes = (
                before.c.target == going[pointer.of, pointer.target.name],
                rows.c[pointer.field.name] == before.c.value,
            )
            others += [found.where(*goes) for _, found in values_of(pointer.model, rows)]
        gone = gone.union(*others) if others else gone
        one: ColumnElement[Any] = sa.literal_column("1")
        left = [sa.exists(self._left(pointer, gone, going)) for pointer in doubtful]
        return self._compiled(sa.select(one).where(sa.or_(*left)), binds, True)

    def _astray(self, plan: Plan, table: sa.Table, narrowed: bool = False) -> Statement:
        """Looks for fields that would point to a row out of reach; one that a row points to already may stay."""
        binds = Binds(plan, table, self._binders, narrowed)
        if plan.action == "create":
            for name in plan.written:
                binds.written(name)
        else:
            reached = self._reached(plan, table, binds)
        if plan.action == "upsert":
            reached = sa.and_(reached, self._conditions.of(plan.shape[4], table, binds))
        found = []
        for place, confined in enumerate(plan.confined):
            field, value = plan.model.fields[confined.name], binds.values[confined.name]
            model = self._models[confined.model]
            parent: Any = self._tables[confined.model].alias()
            target = _equal(model.fields[confined.field], parent, "same", value)
            within = self._conditions.of(confined.shape, parent, binds.of(model, parent))
            conditions = [sa.not_(sa.exists().where(target, within))]
            if plan.action != "create":
                same = _equal(field, table, "same", value)
                if plan.action == "update":
                    conditions.append(sa.exists().where(reached, same.is_not(sa.true())))
                else:
                    conditions.append(sa.not_(sa.exists().where(reached, same)))
            number: ColumnElement[Any] = sa.literal_column(str(place))
            found.append(sa.select(number).where(*conditions))
        return self._compiled(sa.union_all(*found) if len(found) > 1 else found[0], binds, True)

    def _left(
        self, pointer: _Pointer, gone: sa.CTE, going: Mapping[tuple[str, str], ColumnElement[Any]]
    ) -> sa.Select[Any]:
        """The rows that ``pointer`` leaves pointing to nothing."""
        rows, parent, values = self._tables[pointer.model].alias(), self._tables[pointer.of].alias(), gone.alias()
        column = rows.c[pointer.field.name]
        # A column of numbers alone has one form, and may point to one of texts.
        own, its = pointer.field.column or Column(), pointer.target.column or Column()
        key, its_key = own.key or its.key or _itself, its.key or own.key or _itself
        its_forms = [its_key(values.c.value)] if own.forms is None else own.forms(its_key(values.c.value))
        going_to = values.c.target == going[pointer.of, pointer.target.name]
        found = sa.union_all(*(sa.select(form).where(going_to) for form in its_forms))
        conditions = [
            (column if own.forms is not None else key(column)).in_(found),
            # As SQLite sees it, it points to a row, and SQLite sees to it.
            sa.not_(sa.exists().where(parent.c[pointer.target.name] == column)),
        ]
        for (model, name), number in going.items():
            if model == pointer.model:
                # It goes itself.
                itself = gone.alias()
                conditions.append(sa.not_(sa.exists().where(itself.c.target == number, rows.c[name] == itself.c.value)))
        one: ColumnElement[Any] = sa.literal_column("1")
        return sa.select(one).select_from(rows).where(*conditions)

    def _foreign_keys(self) -> Iterator[_Pointer]:
        for model in self._models.values():
            for field in () if model.capabilities.perhaps else model.fields.values():
                target = None if field.fk is None else self._models.get(field.fk.model)
                if target is not None and field.fk is not None and not target.capabilities.perhaps:
                    cascades = field.fk.on_delete == "cascade"
                    yield _Pointer(model.name, field, target.name, target.fields[field.fk.field], cascades)

    def _reached(self, plan: Plan, table: sa.Table, binds: Binds) -> ColumnElement[bool]:
        """The condition for the rows that ``plan`` takes or changes."""
        if plan.action == "delete":
            return self._conditions.where(plan.shape[1], table, binds)
        for name in plan.written:
            binds.written(name)
        if plan.action == "update":
            return self._conditions.where(plan.shape[2], table, binds)
        conflict = (plan.model.fields[name] for name in plan.shape[2])
        return sa.and_(*(_equal(each, table, "same", binds.values[each.name]) for each in conflict))

    def _counted(self, write: sa.Update | sa.Delete, plan: Plan) -> ClauseElement:
        """``write`` to a view so that it brings a row for each: SQLite counts none that a trigger has in its hands."""
        return write.returning(sa.literal_column("1")) if self._sqlite and plan.model.capabilities.perhaps else write


def _only(write: _Write, plan: Plan) -> _Write:
    """``write`` to the rows of its table, without those of tables that came to inherit from it."""
    return write.with_hint("ONLY", dialect_name="postgresql") if plan.model.capabilities.only else write


def _shown(model: Model, columns: Any, names: Iterable[str]) -> list[ColumnElement[Any]]:
    """Those of ``columns`` that are of ``names``, as they are read."""
    shown: list[ColumnElement[Any]] = []
    for name in names:
        column = model.fields[name].column
        there = columns[name]
        shown.append(there if column is None or column.shown is None else column.shown(there))
    return shown


def _itself(column: Any) -> Any:
    return column


def _taken(plan: Plan) -> Group:
    """The fields of which ``plan`` takes values away from rows."""
    if plan.model.capabilities.perhaps:
        return ()
    if plan.action == "delete":
        return tuple(plan.model.fields)
    if plan.action == "update":
        return plan.written
    return plan.shape[3] if plan.action == "upsert" else ()


def _bare(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """``column`` without its affinity."""
    return sa.func.coalesce(column, sa.null())


def _several(field: Field) -> bool:
    """Whether the column of ``field`` may hold several forms of one value."""
    return field.column is not None and field.column.key is not None


def _key(field: Field, table: sa.FromClause) -> ColumnElement[Any]:
    """What is equal for all forms of one value of ``field``."""
    column: ColumnElement[Any] = table.c[field.name]
    if field.column is not None and field.column.key is not None:
        return field.column.key(column)  # type: ignore[no-any-return]
    # The database itself sees to equal ones of a collation.
    return sa.collate(column, "BINARY") if field.kind.textual else column


def _equal(field: Field, table: sa.FromClause, operator: str, value: Any) -> ColumnElement[bool]:
    """The condition that ``field`` is ``value`` in any form, which an index can answer where filters have one."""
    column: ColumnElement[Any] = table.c[field.name]
    own = field.column
    if own is not None and own.compare is not None:
        return own.compare(column, operator, [value])  # type: ignore[no-any-return]
    equal: ColumnElement[bool] = (column if own is None or own.compared is None else own.compared(column)) == value
    return equal


def _groups(model: Model) -> list[Group]:
    """The groups of fields that the table of ``model`` keeps unique; a view keeps nothing."""
    return [] if model.capabilities.perhaps else model.identifying


def _doubtful(plan: Plan) -> list[Group]:
    """The groups of fields that a write may leave alike in two rows, whatever form its values are written in.

    Of one field alone, the form that is there is the one that is written. What it points to, or another group, may have
    it in another form.
    """
    groups = _groups(plan.model) if plan.action != "delete" else []
    found = []
    for group in groups:
        for name in group:
            field = plan.model.fields[name]
            more = len(group) > 1 or field.fk is not None or sum(name in each for each in groups) > 1
            if more and name in plan.written and _several(field) and group not in found:
                found.append(group)
    return found


def _alike(group: Group, table: sa.Table, binds: Binds) -> ClauseElement:
    """A query for rows that are alike in ``group``, among those that have the values which were written."""
    fields = [binds.model.fields[name] for name in group]
    conditions = [
        _equal(field, table, "same", binds.values[field.name])
        if field.name in binds.values
        else table.c[field.name].is_not(None)
        for field in fields
    ]
    one: ColumnElement[Any] = sa.literal_column("1")
    keys = [_key(field, table) for field in fields]
    return sa.select(one).select_from(table).where(*conditions).group_by(*keys).having(sa.func.count() > one)


def _nullable(field: Field) -> bool:
    return field.column.nullable if field.column is not None else not (field.required or field.pk)


def _boundless(plan: Plan) -> list[str]:
    """The fields of a read whose values may be of any size."""
    if plan.action != "read":
        return []
    return [name for name in plan.returning if _is_boundless(plan.model.fields[name])]


def _is_boundless(field: Field) -> bool:
    """Whether the values of ``field`` may be of any size."""
    if field.kind.textual:
        return field.rules is None or field.rules.max_length is None
    return field.kind.name in ("bytes", "json")


def _measured(query: sa.Select[Any], plan: Plan, names: list[str], allowance: Any) -> sa.Select[Any]:
    """``query`` for PostgreSQL, failing with ``TOO_LARGE`` where its rows come to more than they may, and how much.

    The driver has all rows in memory before it shows the first. The server knows how long a value is without
    reading it, and gives the rows of a materialized query in the order in which they came.
    """
    rows = query.cte("zcomm_rows").prefix_with("MATERIALIZED")
    zero: ColumnElement[Any] = sa.literal_column("0")
    one: ColumnElement[Any] = sa.literal_column("1")
    kinds = {name: plan.model.fields[name].kind.name for name in names}
    # Of text and bytes the length is known without reading them; the cast of text is none.
    columns = dict(zip(plan.returning, rows.c, strict=False))
    values = (columns[name] if kinds[name] == "bytes" else sa.cast(columns[name], sa.Text) for name in names)
    sizes = [sa.func.coalesce(sa.func.octet_length(value), zero) for value in values]
    total = sa.select(sa.func.sum(reduce(add, sizes)).label("size")).cte("zcomm_size")
    size = sa.select(total.c.size).scalar_subquery()
    # A text that is no number fails its cast, which is how a plain query fails at all.
    text = sa.func.concat(sa.literal_column(f"'{TOO_LARGE}: '"), size)
    verdict = sa.case((size > allowance, text), else_=sa.literal_column("'1'"))
    return sa.select(rows).where(sa.cast(verdict, sa.Integer) == one)
