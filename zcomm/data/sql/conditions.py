"""Filters to SQL: the condition that the shape of a filter is on the rows of a table, and its parameters.

Each condition without others in it is compiled once by itself, and those of a filter are put together as text: to
compile them anew would take a millisecond each, and a filter may have hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement

from zcomm.data.filters import Slot, Unfit, escaped
from zcomm.data.models import Field, Given, Model
from zcomm.data.requests import Plan
from zcomm.data.sql.lists import Listed, array_text, items_text

__all__ = ["ALLOWANCE", "NUMBERS", "ROW", "Binds", "Conditions", "Parameter", "compared"]

#: In the place of the number of a slot: the bytes that the rows of a read may come to; the numbers of the rows of a
#: change in two steps, as JSON, or what the keys of rows are among.
ALLOWANCE, NUMBERS = -1, -2
#: The number of a row of SQLite's.
ROW: ColumnElement[Any] = sa.literal_column("rowid")
#: Bytes that JSON's null has at most as it is stored, white space of another program's included. A value that the
#: database has compressed to no more has some thirty thousand at most.
_LARGE_NULL = "128"


class Parameter(NamedTuple):
    """A parameter of a statement: a slot of the plan, and how its value gets there.

    :ivar number: of the slot, :data:`ALLOWANCE` or :data:`NUMBERS`.
    :ivar field: whose value it is, ``None`` for a number of rows.
    :ivar bind: from the plan's value to what the driver takes; ``None`` where that is the same.
    """

    number: int
    field: Field | None
    bind: Callable[[Any], Any] | None


class Conditions:
    """The conditions of filters on the tables of one database. Safe to use from any thread.

    :param dialect: of the database, with positional parameters.
    :param tables: by model, for conditions that look into others.
    :param models: all of them by name.
    """

    def __init__(self, dialect: Dialect, tables: Mapping[str, sa.Table], models: Mapping[str, Model]):
        self._dialect = dialect
        self._tables = tables
        self._models = models
        self._sqlite = dialect.name == "sqlite"
        #: Those that filters are made of. There are as many as fields and operators.
        self._leaves: dict[tuple[Any, ...], _Leaf] = {}

    def where(self, shape: tuple[Any, ...], table: sa.Table, binds: Binds) -> ColumnElement[bool]:
        """The condition of ``shape`` on the table of a statement, put together of conditions that are compiled."""
        if shape[0] in ("$true", "$false"):
            where = self.of(shape, table, binds)
        else:
            where = _Condition(table, self._parts(shape, table, binds))
        if not binds.narrowed:
            return where
        numbers: Any = sa.select(sa.column("value")).select_from(sa.func.json_each(binds.numbers()))
        return sa.and_(ROW.in_(numbers), where)

    def _parts(self, shape: tuple[Any, ...], table: sa.Table, binds: Binds) -> list[Any]:
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
        leaf = self._leaves.get(name)
        if leaf is None:
            leaf = self._leaves[name] = binds.leaf(lambda apart: self.of(shape, table, apart), self._dialect)
            return ["(", *leaf.of(binds, leaf.first), ")"]
        return ["(", *leaf.of(binds, binds.skip(leaf.count)), ")"]

    def of(self, shape: tuple[Any, ...], table: sa.Table, binds: Binds) -> ColumnElement[bool]:
        """The condition of ``shape`` as SQLAlchemy's expression."""
        head = shape[0]
        if head == "$true":
            return sa.true()
        if head == "$false":
            return sa.false()
        if head == "$not":
            # Not plain NOT: of a condition on null that is null again, and the row would match neither.
            return self.of(shape[1], table, binds).is_not(sa.true())
        if head in ("$and", "$or"):
            parts = [self.of(part, table, binds) for part in shape[1:]]
            return sa.and_(*parts) if head == "$and" else sa.or_(*parts)
        field, operator = binds.model.fields[head], shape[1]
        if operator in ("like", "ilike", "ilike_ascii"):
            return self._like(field, table, shape, binds)
        if operator in ("contains", "endswith"):
            return self._looking(field, table, shape, binds)
        if operator in ("listed", "not_listed"):
            return self._listed(field, table, operator, binds)
        if operator == "among":
            return self._among(field, table, shape, binds)
        if field.column is not None and field.column.compare is not None and operator not in ("isnull", "notnull"):
            count = {"in": 1, "not_in": 1}.get(operator, 0) and shape[2] or 1 + (operator == "between")
            own: ColumnElement[bool] = field.column.compare(
                table.c[head], operator, [binds.compared(field) for _ in range(count)]
            )
            return own
        column = compared(field, table)
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
            # Of a large value no copy is made as text, which would be kept for each condition until its row is done.
            size = sa.func.length(sa.cast(column, sa.LargeBinary))
            if not self._sqlite:
                size = sa.func.pg_catalog.pg_column_size(column)
            is_large = size > sa.literal_column(_LARGE_NULL, sa.Integer())
            null = sa.or_(_is_null(column), sa.case((is_large, sa.false()), else_=text == sa.literal_column("'null'")))
            return null if operator == "isnull" else sa.not_(null)
        made: ColumnElement[bool] = _COMPARISONS[operator](column, lambda: binds.compared(field))
        return made

    def _listed(self, field: Field, table: sa.Table, operator: str, binds: Binds) -> ColumnElement[bool]:
        """The condition that ``field`` is one of the values of a list that is one parameter, or none of them."""
        column: ColumnElement[Any] = table.c[field.name]
        negated = operator == "not_listed"
        if self._sqlite:
            values = Listed(binds.listed(field, sa.Text(), items_text))
            if field.column is not None and field.column.compare is not None:
                own: ColumnElement[bool] = field.column.compare(column, "not_in" if negated else "in", values)
                return own
            column = compared(field, table)
            return sa.or_(column.not_in(values.of()), _is_null(column)) if negated else column.in_(values.of())
        kind = None if field.column is None else field.column.compared_type
        values = binds.listed(field, sa.ARRAY(column.type if kind is None else kind), array_text)
        column = compared(field, table)
        if negated:
            return sa.or_(column != sa.all_(values), _is_null(column))
        return column == sa.any_(values)

    def _among(self, field: Field, table: sa.Table, shape: tuple[Any, ...], binds: Binds) -> ColumnElement[bool]:
        """The condition that ``field`` has a value that another model has in rows that match: letter by letter.

        :param shape: the field; the operator; the other model, its field, and the shape of the filter on it.
        """
        _, _, other, target, where = shape
        model, rows = self._models[other], self._tables[other].alias()
        found = sa.select(self._exactly(model.fields[target], rows))
        inner: Any = rows
        found = found.select_from(rows).where(self.of(where, inner, binds.of(model, rows)))
        return self._exactly(field, table).in_(found)

    def _exactly(self, field: Field, table: Any) -> ColumnElement[Any]:
        """The column of ``field`` so that equal is what is the same letter by letter."""
        column, own = compared(field, table), field.column
        if not field.kind.textual:
            return column
        if self._sqlite:
            return sa.collate(column, "BINARY")
        return column if own is None or own.exact else sa.collate(sa.cast(column, sa.Text()), "C")

    def _same(self, field: Field, table: sa.Table, binds: Binds) -> ColumnElement[bool]:
        """Equal, letter by letter, also where the column's own comparison takes other texts for equal ones."""
        column = table.c[field.name]
        own = field.column
        if self._sqlite or not field.kind.textual or own is None or (own.exact and own.shown is None):
            value = binds.compared(field)
            equal: ColumnElement[bool] = compared(field, table) == value
            if self._sqlite and field.kind.textual:
                return sa.and_(equal, sa.collate(column, "BINARY") == value)
            return equal
        # The text as it was given, not as a value of the column's type, which may be one without its blanks.
        value, text = binds.compared_and_text(field)
        if own.shown is not None:
            # A type of few texts takes no other: that no row has it is no mistake of whoever asks.
            return sa.collate(own.shown(column), "C") == text  # type: ignore[no-any-return]
        return sa.and_(compared(field, table) == value, sa.collate(sa.cast(column, sa.Text()), "C") == text)

    def _like(self, field: Field, table: sa.Table, shape: tuple[Any, ...], binds: Binds) -> ColumnElement[bool]:
        """The condition that ``field`` is like a pattern.

        :param shape: the field; which operator; whether a copy of the text may be kept for it.
        """
        _, operator, copies = shape
        pattern = binds.pattern(field)
        column = _matched(field, table)
        if not self._sqlite:
            # A backslash escapes without being told to.
            return column.like(pattern) if operator == "like" else column.ilike(pattern)
        if copies and operator == "ilike_ascii":
            return column.like(pattern, escape="\\")
        if not copies:
            pattern = _varying(pattern, column)
        # SQLite's LIKE knows no case, of ASCII letters; GLOB does, and both run in the same time.
        if operator == "ilike_ascii":
            escape = _varying(sa.literal_column("'\\'", sa.Text()), column)
            return sa.type_coerce(sa.func.like(pattern, column, escape), sa.Boolean())
        subject = column if operator == "like" else _folded(column)
        return subject.op("GLOB", is_comparison=True)(pattern)

    def _looking(self, field: Field, table: sa.Table, shape: tuple[Any, ...], binds: Binds) -> ColumnElement[bool]:
        """The condition that a text is within ``field`` or at its end.

        :param shape: the field; which of the two; whether case does not count, as ``"ascii"`` where the text has no
            other letters, else as ``"folded"``; whether it may be looked for as a pattern; whether a copy of the
            column's text may be kept for it.
        """
        _, operator, fold, brief, copies = shape
        column, zero = _matched(field, table), sa.literal_column("0", sa.Integer())
        if self._sqlite:
            text = binds.pattern(field)
            if not copies:
                text = _varying(text, column)
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


def compared(field: Field, table: sa.Table) -> ColumnElement[Any]:
    """The column of ``field`` as filters and orders ask for it."""
    column: ColumnElement[Any] = table.c[field.name]
    return column if field.column is None or field.column.compared is None else field.column.compared(column)


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
    their values until the statement ends: the text of a column once for each condition on it. Of one that may vary it
    makes a new text for each row, which takes up to three times as long.
    """
    return sa.func.coalesce(value, column)


def _is_null(column: ColumnElement[Any]) -> ColumnElement[bool]:
    # IS NULL says yes of a composite all of whose fields are null; the server makes a plain test for null of this.
    return column.is_not_distinct_from(sa.null())


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

    def of(self, binds: Binds, first: int) -> list[Any]:
        """Its parts with parameters of a statement.

        :param first: the number of its first slot there.
        """
        return [
            part if isinstance(part, str) else (binds.name(first + part[0], part[1], part[2]), part[3])
            for part in self.parts
            if part != ""
        ]


class Binds:
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

    def of(self, model: Model, table: Any) -> Binds:
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

    def marked(self, sql: str, mark: str) -> ColumnElement[bool]:
        """A condition that is SQL, in which the last ``mark`` stands for the numbers of rows."""
        before, _, after = sql.rpartition(mark)
        return _Condition(self._table, ["(", before, (self.name(NUMBERS, None, None), sa.types.NULLTYPE), after, ")"])

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

    def leaf(self, build: Callable[[Binds], ColumnElement[bool]], dialect: Dialect) -> _Leaf:
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
