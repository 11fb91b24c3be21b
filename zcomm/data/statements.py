"""Plans to SQL, by SQLAlchemy Core, once for each shape.

Building and compiling an expression costs many times what running it does, so that the SQL is remembered
by the plan's shape. Every identifier in it comes from the schema; every value is a parameter.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnElement

from zcomm.data.filters import EVERYTHING, Slot, Unfit, escaped
from zcomm.data.lists import Listed, array_text, items_text
from zcomm.data.models import Column, Field, Given, Model, Reference
from zcomm.data.requests import Plan

__all__ = [
    "ALLOWANCE",
    "MAX_NARROWED",
    "MAX_STATEMENT",
    "MAX_STATEMENTS",
    "NUMBERS",
    "RESULT_BYTES",
    "TOO_LARGE",
    "Parameter",
    "Statement",
    "Statements",
]

#: Bytes of the statements that are remembered, about, and of one of them; a client can make up new shapes without end.
MAX_STATEMENTS, MAX_STATEMENT = 4 << 20, 64 << 10
#: Bytes that a parameter of a statement takes, with its part of the shape.
_PARAMETER_BYTES = 200
#: How many rows a change in two steps may be of.
MAX_NARROWED = 10_000
#: The number of a row of SQLite's.
_ROW: ColumnElement[Any] = sa.literal_column("rowid")
#: Since 3.38 every SQLite has the functions for JSON.
_HAS_JSON = sqlite3.sqlite_version_info >= (3, 38, 0)
#: Bytes that the values of one read may come to: what a reply may have (docs/protocol.rst, "Limits").
RESULT_BYTES = 16 * 1024 * 1024
#: What PostgreSQL complains of where they come to more. Its message repeats the text, in whatever language it speaks.
TOO_LARGE = "zcomm finds a result too large"
#: In the place of the number of a slot: the bytes that the rows of a read may come to; the numbers of the rows of a
#: change in two steps, as JSON.
ALLOWANCE, NUMBERS = -1, -2
Group = tuple[str, ...]
_Write = TypeVar("_Write", sa.Update, sa.Delete)


class Parameter(NamedTuple):
    """A parameter of a statement: a slot of the plan, and how its value gets there.

    :ivar number: of the slot, :data:`ALLOWANCE` or :data:`NUMBERS`.
    :ivar field: whose value it is, ``None`` for a number of rows.
    :ivar bind: from the plan's value to what the driver takes; ``None`` where that is the same.
    """

    number: int
    field: Field | None
    bind: Callable[[Any], Any] | None


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
        self._known: OrderedDict[tuple[Any, ...], Statement] = OrderedDict()
        self._size = 0
        #: The conditions that filters are made of. There are as many as fields and operators.
        self._conditions: dict[tuple[Any, ...], _Leaf] = {}

    def of(self, plan: Plan) -> Statement:
        """The statement of ``plan``."""
        model = self._models.get(plan.model.name, plan.model)
        if model is not plan.model:
            # The plan is of before its columns were learnt.
            plan = replace(plan, model=model)
        shape = (plan.model.name, plan.shape, plan.confined)
        with self._lock:
            known = self._known.get(shape)
            if known is not None:
                self._known.move_to_end(shape)
                return known
        made = self._compile(plan)
        self._remember({shape: made})
        return made

    def _remember(self, made: dict[tuple[Any, ...], Statement]) -> None:
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
        model = self._models.get(plan.model.name, plan.model)
        plan = plan if model is plan.model else replace(plan, model=model)
        shape = (plan.model.name, plan.shape, plan.confined, "narrowed")
        with self._lock:
            found, made = self._known.get((*shape, "find")), self._known.get(shape)
        if found is None or made is None:
            table = self._tables[plan.model.name]
            binds = _Binds(plan, table, self._binders)
            query = sa.select(_ROW).select_from(table).where(self._reached(plan, table, binds))
            found = self._compiled(query.suffix_with(f"LIMIT {MAX_NARROWED + 1}"), binds, True)
            binds = _Binds(plan, table, self._binders, narrowed=True)
            build: Any = self._update if plan.action == "update" else self._delete
            # By their numbers, whatever index its condition has: it was asked for these.
            write = build(plan, table, binds).with_hint("NOT INDEXED", dialect_name="sqlite")
            if capabilities.lenient and plan.action == "update":
                write = write.prefix_with("OR ABORT", dialect="sqlite")
            made = replace(
                self._compiled(write, binds, False),
                pointing=self._pointing(plan, table, True),
                astray=self._astray(plan, table, True) if plan.confined else None,
            )
            self._remember({(*shape, "find"): found, shape: made})
        return found, made

    def _compile(self, plan: Plan) -> Statement:
        table = self._tables[plan.model.name]
        build = getattr(self, "_" + plan.action)
        binds = _Binds(plan, table, self._binders)
        element: ClauseElement = build(plan, table, binds)
        if plan.model.capabilities.lenient and isinstance(element, (sa.Insert, sa.Update)):
            # Not everywhere: it holds for the statements of the table's triggers as well, whatever they say.
            element = element.prefix_with("OR ABORT", dialect="sqlite")
        made = self._compiled(element, binds, plan.action not in ("update", "delete"))
        if self._sqlite and _boundless(plan):
            made = replace(made, max_bytes=RESULT_BYTES)
        looks = [(group, _alike(group, table, binds)) for group in _doubtful(plan)]
        return replace(
            made,
            looks=tuple((group, self._compiled(look, binds, True)) for group, look in looks),
            pointing=self._pointing(plan, table),
            astray=self._astray(plan, table) if plan.confined else None,
        )

    def _compiled(self, element: ClauseElement, binds: _Binds, fetches: bool) -> Statement:
        compiled: Any = element.compile(dialect=self._dialect)
        names = compiled.positiontup or []
        return Statement(sql=str(compiled), parameters=tuple(binds.parameters[name] for name in names), fetches=fetches)

    def _create(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        values = self._written(plan, table, binds)
        return table.insert().values(values).returning(*_shown(plan.model, table, plan.returning))

    def _written(self, plan: Plan, table: sa.Table, binds: _Binds, conflict: Group = ()) -> dict[str, Any]:
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

    def _kept(self, name: str, table: sa.Table, binds: _Binds, written: Any) -> Any:
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

    def _upsert(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
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
            where=None if replaceable == EVERYTHING.shape else self._condition(replaceable, table, binds),
        ).returning(*_shown(plan.model, table, plan.returning))

    def _read(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        _, fields, where, order = plan.shape
        measured = [] if self._sqlite else _boundless(plan)
        shown = _shown(plan.model, table, fields)
        if measured:
            # A query of this one names them. The name of a field may be that of another's column.
            shown = [column.label(f"zcomm__r{number}") for number, column in enumerate(shown)]
        query = sa.select(*shown).select_from(table)
        query = query.where(self._where(where, table, binds))
        if plan.model.capabilities.only:
            query = query.with_hint(table, "ONLY", "postgresql")
        for name, descending in order:
            column = _compared(plan.model.fields[name], table)
            term = column.desc() if descending else column.asc()
            if self._sqlite and _nullable(plan.model.fields[name]):
                # PostgreSQL's order of nulls, so that both databases sort alike.
                term = term.nulls_first() if descending else term.nulls_last()
            query = query.order_by(term)
        query = query.limit(binds.number()).offset(binds.number())
        return _measured(query, plan, measured, binds.allowance()) if measured else query

    def _update(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        values = {
            name: self._kept(name, table, binds, value) for name, value in self._written(plan, table, binds).items()
        }
        write = _only(table.update(), plan).values(values).where(self._where(plan.shape[2], table, binds))
        return self._counted(write, plan)

    def _delete(self, plan: Plan, table: sa.Table, binds: _Binds) -> ClauseElement:
        return self._counted(_only(table.delete(), plan).where(self._where(plan.shape[1], table, binds)), plan)

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

        binds = _Binds(plan, table, self._binders, narrowed)
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
        binds = _Binds(plan, table, self._binders, narrowed)
        if plan.action == "create":
            for name in plan.written:
                binds.written(name)
        else:
            reached = self._reached(plan, table, binds)
        if plan.action == "upsert":
            reached = sa.and_(reached, self._condition(plan.shape[4], table, binds))
        found = []
        for place, (name, shape) in enumerate(plan.confined):
            field, value = plan.model.fields[name], binds.values[name]
            reference: Any = field.fk
            model = self._models[reference.model]
            parent: Any = self._tables[reference.model].alias()
            target = _equal(model.fields[reference.field], parent, "same", value)
            within = self._condition(shape, parent, binds.of(model, parent))
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

    def _reached(self, plan: Plan, table: sa.Table, binds: _Binds) -> ColumnElement[bool]:
        """The condition for the rows that ``plan`` takes or changes."""
        if plan.action == "delete":
            return self._where(plan.shape[1], table, binds)
        for name in plan.written:
            binds.written(name)
        if plan.action == "update":
            return self._where(plan.shape[2], table, binds)
        conflict = (plan.model.fields[name] for name in plan.shape[2])
        return sa.and_(*(_equal(each, table, "same", binds.values[each.name]) for each in conflict))

    def _counted(self, write: sa.Update | sa.Delete, plan: Plan) -> ClauseElement:
        """``write`` to a view so that it brings a row for each: SQLite counts none that a trigger has in its hands."""
        return write.returning(sa.literal_column("1")) if self._sqlite and plan.model.capabilities.perhaps else write

    def _where(self, shape: tuple[Any, ...], table: sa.Table, binds: _Binds) -> ColumnElement[bool]:
        """The condition of ``shape`` on the table of a statement, put together of conditions that are compiled.

        To compile each anew would take a millisecond, and a filter may have hundreds.
        """
        if shape[0] in ("$true", "$false"):
            where = self._condition(shape, table, binds)
        else:
            where = _Condition(table, self._parts(shape, table, binds))
        if not binds.narrowed:
            return where
        numbers: Any = sa.select(sa.column("value")).select_from(sa.func.json_each(binds.numbers()))
        return sa.and_(_ROW.in_(numbers), where)

    def _parts(self, shape: tuple[Any, ...], table: sa.Table, binds: _Binds) -> list[Any]:
        head = shape[0]
        if head == "$not":
            true = "1" if self._sqlite else "true"
            return ["(", *self._parts(shape[1], table, binds), f" IS NOT {true})"]
        if head in ("$and", "$or"):
            parts: list[Any] = []
            for part in shape[1:]:
                parts += [" AND " if head == "$and" else " OR ", *self._parts(part, table, binds)]
            return ["(", *parts[1:], ")"]
        name = (binds.model.name, shape)
        leaf = self._conditions.get(name)
        if leaf is None:
            leaf = self._conditions[name] = binds.leaf(
                lambda apart: self._condition(shape, table, apart), self._dialect
            )
            return ["(", *leaf.of(binds, leaf.first), ")"]
        return ["(", *leaf.of(binds, binds.skip(leaf.count)), ")"]

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
        field, operator = binds.model.fields[head], shape[1]
        if operator in ("like", "ilike", "ilike_ascii"):
            return self._like(field, table, shape, binds)
        if operator in ("contains", "endswith"):
            return self._looking(field, table, shape, binds)
        if operator in ("listed", "not_listed"):
            return self._listed(field, table, operator, binds)
        if field.column is not None and field.column.compare is not None and operator not in ("isnull", "notnull"):
            count = {"in": 1, "not_in": 1}.get(operator, 0) and shape[2] or 1 + (operator == "between")
            own: ColumnElement[bool] = field.column.compare(
                table.c[head], operator, [binds.compared(field) for _ in range(count)]
            )
            return own
        column = _compared(field, table)
        if operator in ("in", "not_in"):
            values = [binds.compared(field) for _ in range(shape[2])]
            if operator == "in":
                return column.in_(values)
            return sa.or_(column.not_in(values), _is_null(column))
        if operator == "same":
            return self._same(field, table, binds)
        if operator in ("isnull", "notnull") and field.kind.name == "json":
            # JSON has a null of its own, which looks like none at all, also with the white space that JSON knows.
            text = sa.func.trim(sa.cast(column, sa.Text()), sa.literal_column("' \t\n\r'"))
            null = sa.or_(_is_null(column), text == sa.literal_column("'null'"))
            return null if operator == "isnull" else sa.not_(null)
        compared: ColumnElement[bool] = _COMPARISONS[operator](column, lambda: binds.compared(field))
        return compared

    def _listed(self, field: Field, table: sa.Table, operator: str, binds: _Binds) -> ColumnElement[bool]:
        """The condition that ``field`` is one of the values of a list that is one parameter, or none of them."""
        column: ColumnElement[Any] = table.c[field.name]
        negated = operator == "not_listed"
        if self._sqlite:
            values = Listed(binds.listed(field, sa.Text(), items_text))
            if field.column is not None and field.column.compare is not None:
                own: ColumnElement[bool] = field.column.compare(column, "not_in" if negated else "in", values)
                return own
            column = _compared(field, table)
            return sa.or_(column.not_in(values.of()), _is_null(column)) if negated else column.in_(values.of())
        kind = None if field.column is None else field.column.compared_type
        values = binds.listed(field, sa.ARRAY(column.type if kind is None else kind), array_text)
        column = _compared(field, table)
        if negated:
            return sa.or_(column != sa.all_(values), _is_null(column))
        return column == sa.any_(values)

    def _same(self, field: Field, table: sa.Table, binds: _Binds) -> ColumnElement[bool]:
        """Equal, letter by letter, also where the column's own comparison takes other texts for equal ones."""
        column = table.c[field.name]
        own = field.column
        if self._sqlite or not field.kind.textual or own is None or (own.exact and own.shown is None):
            value = binds.compared(field)
            equal: ColumnElement[bool] = _compared(field, table) == value
            if self._sqlite and field.kind.textual:
                return sa.and_(equal, sa.collate(column, "BINARY") == value)
            return equal
        # The text as it was given, not as a value of the column's type, which may be one without its blanks.
        value, text = binds.compared_and_text(field)
        if own.shown is not None:
            # A type of few texts takes no other: that no row has it is no mistake of whoever asks.
            return sa.collate(own.shown(column), "C") == text  # type: ignore[no-any-return]
        return sa.and_(_compared(field, table) == value, sa.collate(sa.cast(column, sa.Text()), "C") == text)

    def _like(self, field: Field, table: sa.Table, shape: tuple[Any, ...], binds: _Binds) -> ColumnElement[bool]:
        """The condition that ``field`` is like a pattern.

        :param shape: the field; which operator; whether an index may be asked.
        """
        _, operator, is_leading = shape
        pattern = binds.pattern(field)
        column = _matched(field, table)
        if not self._sqlite:
            # A backslash escapes without being told to.
            return column.like(pattern) if operator == "like" else column.ilike(pattern)
        if is_leading and operator == "ilike_ascii":
            return column.like(pattern, escape="\\")
        if not is_leading:
            pattern = _varying(pattern, column)
        # SQLite's LIKE knows no case, of ASCII letters; GLOB does, and both run in the same time.
        if operator == "ilike_ascii":
            escape = _varying(sa.literal_column("'\\'", sa.Text()), column)
            return sa.type_coerce(sa.func.like(pattern, column, escape), sa.Boolean())
        subject = column if operator == "like" else _folded(column)
        return subject.op("GLOB", is_comparison=True)(pattern)

    def _looking(self, field: Field, table: sa.Table, shape: tuple[Any, ...], binds: _Binds) -> ColumnElement[bool]:
        """The condition that a text is within ``field`` or at its end.

        :param shape: the field; which of the two; whether case does not count, as ``"ascii"`` where the text has no
            other letters, else as ``"folded"``; whether it may be looked for as a pattern.
        """
        _, operator, fold, brief = shape
        column, zero = _matched(field, table), sa.literal_column("0", sa.Integer())
        if self._sqlite:
            text = _varying(binds.pattern(field), column)
            if fold:
                column = sa.func.lower(column) if fold == "ascii" else _folded(column)
            if operator == "contains":
                return sa.func.instr(column, text) > zero
            # As bytes, of which the number is known.
            end = sa.cast(text, sa.LargeBinary)
            return sa.func.substr(sa.cast(column, sa.LargeBinary), -sa.func.length(end)) == end
        own = field.column
        if brief or (own is not None and own.padded):
            after = "%" if operator == "contains" else ""
            pattern = binds.literal(field, lambda text: f"%{escaped(text)}{after}")
            return column.ilike(pattern) if fold else column.like(pattern)
        text, column, own_functions = binds.literal(field), sa.cast(column, sa.Text()), sa.func.pg_catalog
        if fold or (own is not None and own.caseless):
            # By the rules of the column's own collation.
            text, column = own_functions.lower(sa.func.coalesce(text, column)), own_functions.lower(column)
        if operator == "contains":
            return own_functions.strpos(column, text) > zero
        last = own_functions.right(column, own_functions.char_length(text))
        return sa.collate(last, "C") == sa.collate(text, "C")


def _matched(field: Field, table: sa.Table) -> ColumnElement[Any]:
    """The column of ``field`` as patterns are matched with it."""
    column: ColumnElement[Any] = table.c[field.name]
    return column if field.column is None or field.column.matched is None else field.column.matched(column)


def _folded(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """``column`` without its case, letters of all scripts included, in SQLite."""
    made: ColumnElement[Any] = sa.func.zcomm_fold(sa.cast(column, sa.LargeBinary))
    return made


def _varying(value: Any, column: ColumnElement[Any]) -> Any:
    """``value``, never null, as an argument that SQLite does not take for the same in each row.

    SQLite has registers of its own for the arguments of a call of which one is the same for all rows, and they keep
    their values until the statement ends: the text of a column once for each condition on it.
    """
    return sa.func.coalesce(value, column)


def _only(write: _Write, plan: Plan) -> _Write:
    """``write`` to the rows of its table, without those of tables that came to inherit from it."""
    return write.with_hint("ONLY", dialect_name="postgresql") if plan.model.capabilities.only else write


def _shown(model: Model, table: sa.Table, names: Iterable[str]) -> list[ColumnElement[Any]]:
    """The columns of ``names`` as they are read."""
    shown: list[ColumnElement[Any]] = []
    for name in names:
        column = model.fields[name].column
        there = table.c[name]
        shown.append(there if column is None or column.shown is None else column.shown(there))
    return shown


def _compared(field: Field, table: sa.Table) -> ColumnElement[Any]:
    """The column of ``field`` as filters and orders ask for it."""
    column: ColumnElement[Any] = table.c[field.name]
    return column if field.column is None or field.column.compared is None else field.column.compared(column)


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


def _alike(group: Group, table: sa.Table, binds: _Binds) -> ClauseElement:
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


def _is_null(column: ColumnElement[Any]) -> ColumnElement[bool]:
    # IS NULL says yes of a composite all of whose fields are null; the server makes a plain test for null of this.
    return column.is_not_distinct_from(sa.null())


def _nullable(field: Field) -> bool:
    return field.column.nullable if field.column is not None else not (field.required or field.pk)


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
    columns = dict(zip(plan.returning, rows.c, strict=True))
    values = (columns[name] if kinds[name] == "bytes" else sa.cast(columns[name], sa.Text) for name in names)
    sizes = [sa.func.coalesce(sa.func.octet_length(value), zero) for value in values]
    total = sa.select(sa.func.sum(reduce(add, sizes)).label("size")).cte("zcomm_size")
    size = sa.select(total.c.size).scalar_subquery()
    # A text that is no number fails its cast, which is how a plain query fails at all.
    text = sa.func.concat(sa.literal_column(f"'{TOO_LARGE}: '"), size)
    verdict = sa.case((size > allowance, text), else_=sa.literal_column("'1'"))
    return sa.select(rows).where(sa.cast(verdict, sa.Integer) == one)


_COMPARISONS: dict[str, Callable[[ColumnElement[Any], Callable[[], Any]], ColumnElement[bool]]] = {
    "eq": lambda column, value: column == value(),
    "ne": lambda column, value: column.is_distinct_from(value()),
    "gt": lambda column, value: column > value(),
    "gte": lambda column, value: column >= value(),
    "lt": lambda column, value: column < value(),
    "lte": lambda column, value: column <= value(),
    "between": lambda column, value: column.between(value(), value()),
    "isnull": lambda column, value: _is_null(column),
    "notnull": lambda column, value: sa.not_(_is_null(column)),
}


class _Condition(ColumnElement[bool]):
    """SQL of texts and parameters.

    :param table: that its columns are of.
    :param parts: texts, and of each parameter its name and type.
    """

    inherit_cache = False

    def __init__(self, table: sa.Table, parts: list[Any]):
        # Of a truth value SQLAlchemy would say that it is 1.
        self.type: Any = sa.types.NULLTYPE
        self.table = table
        self.parts = parts

    @property
    def _from_objects(self) -> list[sa.FromClause]:
        return [self.table]


@compiles(_Condition)
def _of_condition(element: _Condition, compiler: Any, **options: Any) -> str:
    made: list[str] = []
    #: By type, a parameter that SQLAlchemy has written, and where its name is: hundreds more take it no time.
    written: dict[Any, tuple[str, str]] = {}
    for part in element.parts:
        if isinstance(part, str):
            made.append(part)
            continue
        name, kind = part
        text, other = written.get(kind, ("", ""))
        if other and f"({other})" in text:
            made.append(text.replace(f"({other})", f"({name})"))
            compiler.binds[name] = compiler.binds[other]
        else:
            written[kind] = compiler.process(sa.bindparam(name, type_=kind), **options), name
            made.append(written[kind][0])
    return "".join(made)


class _Mark(sa.BindParameter[Any]):
    """The place of a parameter in a condition that is compiled by itself."""

    inherit_cache = False


#: What stands on either side of the name of a mark. No identifier has it.
_SIDE = "\0"


@compiles(_Mark)
def _of_mark(element: _Mark, compiler: Any, **options: Any) -> str:
    # Not by the options: some of SQLAlchemy's own do not pass them on.
    vars(compiler).setdefault("zcomm_marks", {})[element.key] = element.type
    return f"{_SIDE}{element.key}{_SIDE}"


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A condition without others in it, compiled.

    :ivar parts: its texts and, between them, its parameters: each the number of the slot counted from the condition's
        first one, the field, the conversion and the type.
    :ivar count: how many slots it takes.
    :ivar first: the number of the first one in the statement that it was made for.
    """

    parts: tuple[Any, ...]
    count: int
    first: int

    def of(self, binds: _Binds, first: int) -> list[Any]:
        """Its parts with parameters of a statement.

        :param first: the number of its first slot there.
        """
        return [
            part if isinstance(part, str) else (binds.name(first + part[0], part[1], part[2]), part[3])
            for part in self.parts
            if part != ""
        ]


class _Binds:
    """Makes one parameter for each slot of a plan, in their order.

    :param narrowed: whether the rows of a change are those of some numbers alone.
    """

    def __init__(
        self, plan: Plan, table: sa.Table, binders: Mapping[str, Callable[[Any], Any]], narrowed: bool = False
    ):
        self.model = plan.model
        self.narrowed = narrowed
        self.parameters: dict[str, Parameter] = {}
        #: The values that are written as their columns are compared with them, by field.
        self.values: dict[str, Any] = {}
        self._slots: Iterator[tuple[int, Slot]] = iter(enumerate(plan.slots))
        self._made: Callable[..., Any] = sa.bindparam
        self._table = table
        self._binders = binders

    def of(self, model: Model, table: Any) -> _Binds:
        """The parameters that follow, as those of another model."""
        other = copy(self)
        other.model, other._table, other.values = model, table, {}
        return other

    def written(self, name: str) -> Any:
        """A value to store in the field ``name``."""
        field = self.model.fields[name]
        number, slot = self._take()
        given, own = self._given(number, field), field.column
        self.values[name] = given(self._table.c[name].type, self._binders.get(slot) if own is None else own.bind)
        return self.values[name] if own is None or own.kept is None else own.kept(given)

    def compared(self, field: Field) -> Any:
        """A value that the column of ``field`` is compared with."""
        kind = None if field.column is None else field.column.compared_type
        made = None if field.column is None else field.column.asked
        return self._next(field, self._table.c[field.name].type if kind is None else kind, made=made)

    def compared_and_text(self, field: Field) -> tuple[Any, Any]:
        """A value that the column of ``field`` is compared with, and the text that it is."""
        kind = None if field.column is None else field.column.compared_type
        kind = self._table.c[field.name].type if kind is None else kind
        bind = None if field.column is None else field.column.bind
        both: tuple[Any, Any] = self._next(
            field, kind, made=lambda given: (given(kind, bind), sa.cast(given(sa.Text(), None), sa.Text()))
        )
        return both

    def pattern(self, field: Field) -> Any:
        """A pattern or a text that the column of ``field`` is matched with, in the form in which this database wants
        it."""
        return self._next(field, sa.Text(), True)

    def literal(self, field: Field, bind: Callable[[Any], Any] | None = None) -> Any:
        """A text that is looked for in the column of ``field``, as ``bind`` makes it."""
        return self._next(field, sa.Text(), made=lambda given: given(sa.Text(), bind))

    def allowance(self) -> Any:
        """The bytes that the rows may come to."""
        return self._given(ALLOWANCE, None)(sa.BigInteger(), None)

    def numbers(self) -> Any:
        """The numbers of rows."""
        return self._given(NUMBERS, None)(sa.Text(), None)

    def number(self) -> Any:
        """A number of rows."""
        return self._next(None, sa.BigInteger())

    def listed(self, field: Field, kind: Any, text: Callable[[Iterable[Any]], str]) -> Any:
        """A list that the column of ``field`` is compared with, as the ``text`` that is made of its values."""
        own, number, slot = field.column, *self._take()
        convert = self._binders.get(slot) if own is None else own.bind

        def bind(values: Sequence[Any]) -> str:
            return text(
                value.value if type(value) is Unfit else value if convert is None else convert(value)
                for value in values
            )

        return self.at(number, field, bind, kind)

    def at(self, number: int, field: Field | None, bind: Callable[[Any], Any] | None, kind: Any) -> Any:
        """A parameter for the slot of that number."""
        return self._made(self.name(number, field, bind), type_=kind)

    def name(self, number: int, field: Field | None, bind: Callable[[Any], Any] | None) -> str:
        """The name of one."""
        # No column can be called so: SQLAlchemy keeps parameters and columns in one namespace.
        name = f"zcomm__{len(self.parameters)}"
        self.parameters[name] = Parameter(number, field, bind)
        return name

    def skip(self, count: int) -> int:
        """Pass over so many slots.

        :return: the number of the first of them; 0 for none.
        """
        return [self._take()[0] for _ in range(count)][0] if count else 0

    def leaf(self, build: Callable[[_Binds], ColumnElement[bool]], dialect: Dialect) -> _Leaf:
        """The condition that ``build`` makes with the slots that come next."""
        apart = copy(self)
        apart.parameters, apart._made = {}, _Mark
        compiled: Any = build(apart).compile(dialect=dialect)
        kinds: dict[str, Any] = vars(compiled).get("zcomm_marks", {})
        numbers = {parameter.number for parameter in apart.parameters.values()}
        first = min(numbers, default=0)
        parts: list[Any] = str(compiled).split(_SIDE)
        for place in range(1, len(parts), 2):
            number, field, bind = apart.parameters[parts[place]]
            parts[place] = (number - first, field, bind, kinds[parts[place]])
        return _Leaf(tuple(parts), len(numbers), first)

    def _take(self) -> tuple[int, str]:
        number, (kind, _) = next(self._slots)
        return number, kind

    def _given(self, number: int, field: Field | None) -> Given:
        def given(kind: Any, bind: Callable[[Any], Any] | None) -> Any:
            return self.at(number, field, bind, kind)

        return given

    def _next(
        self, field: Field | None, kind: Any, pattern: bool = False, made: Callable[[Given], Any] | None = None
    ) -> Any:
        number, slot = self._take()
        given = self._given(number, field)
        if made is not None:
            return made(given)
        own = None if field is None or pattern else field.column
        return given(kind, self._binders.get(slot) if own is None else own.bind)
