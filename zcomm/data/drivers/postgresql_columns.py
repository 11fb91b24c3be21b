"""The columns of PostgreSQL: which of zComm's types can use which, and how their values come and go.

A value travels as text in the form that PostgreSQL writes, and is cast to the column's own type, without its length
or precision: a filter compares as the column does, and finds what was read. What a column would keep as another value
is refused: before it is sent, where the type is one that is known here, and for any other by the statement itself,
which compares the value that the column would give back with the one that was sent.

The session has the database's own settings, for the code that runs there. No value goes by them: one that is sent says
all of itself, with its offset from UTC and its signs, and one whose text is otherwise under the database's settings is
written under zComm's, which hold for that one conversion.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, time
from decimal import Context, Decimal
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.adapt import AdaptersMap
from psycopg.types.string import TextLoader
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import psycopg as dialects
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement

from zcomm.data.drivers.driver import no_column
from zcomm.data.drivers.postgresql_session import change
from zcomm.data.models import Column, Field, Given, Model
from zcomm.data.values import KINDS, Beyond, Kind, decimal_parser, json_raw, json_text, json_value
from zcomm.errors import ConfigError

__all__ = ["ADAPTERS", "bound", "text_of"]

#: Types whose text psycopg would turn into Python's values, which do not reach as far as PostgreSQL's.
_AS_TEXT = ("date", "timestamp", "timestamptz", "time", "timetz", "interval", "numeric", "uuid", "json", "jsonb")
#: How psycopg reads: every one of those as the text that it came as.
ADAPTERS = AdaptersMap(psycopg.adapters)
for _name in _AS_TEXT:
    ADAPTERS.register_loader(_name, TextLoader)

#: Digits of a number in a column that sets no bound. PostgreSQL takes more than anybody has.
_NUMERIC_DIGITS = 1000
#: Digits that the numbers of one value of a jsonb may have for their exponents, which PostgreSQL writes out.
_WRITTEN_OUT = 256 * 1024
_EXPONENT = re.compile(r"[0-9]e[+-]?([0-9]{1,3})", re.ASCII)
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000", re.ASCII)
#: What is said of one, which PostgreSQL keeps in a json alone.
_NUL = "must not contain a NUL character"
_STRING_IN_JSON = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
#: The smallest modifier of a type that has a length or a precision: that of 0.
_MODIFIED = 4
#: The labels of an enum, which may come, go by another name and be put in between while the server runs.
_LABELS = "SELECT enumlabel::pg_catalog.text FROM pg_catalog.pg_enum WHERE enumtypid = {} ORDER BY enumsortorder"
_TIME_OF_DAY = re.compile(
    r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}(?::[0-9]{2}){0,2})?\Z", re.ASCII
)
#: Digits of a second, of which trailing zeros say nothing.
_FRACTION = re.compile(r"\.([0-9]*[1-9])", re.ASCII)
#: Intervals whose units PostgreSQL takes as they are. It rounds a fraction of a day, and of a month.
_INTERVAL = re.compile(
    r"infinity|-infinity"
    r"|(?:[+-]?[0-9]+ ?(?:years?|mons?|months?|weeks?|days?|hours?|min(?:ute)?s?)(?: (?!$)|$))*"
    r"(?:[+-]?[0-9]+:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?|[+-]?[0-9]+(?:\.[0-9]{1,6})? ?sec(?:ond)?s?)?"
    r"|P(?:[+-]?[0-9]+[YMWD])*(?:T(?:[+-]?[0-9]+[HM])*(?:[+-]?[0-9]+(?:\.[0-9]{1,6})?S)?)?",
    re.ASCII | re.IGNORECASE,
)
#: Types of PostgreSQL's own of which every text that they take says all of a value, in whichever notation. Of others
#: the text has to be the one that PostgreSQL writes.
_LOSSLESS = frozenset(
    {"inet", "cidr", "macaddr", "bit", "varbit", "interval"}
    | {f"{name}{many}range" for name in ("int4", "int8", "num") for many in ("", "multi")}
)
#: Arithmetic of numbers of 32 bits that rounds nothing.
_EXACT = Context(prec=200)
#: Types of texts that keep all characters or complain.
_TEXTS = frozenset({"text", "varchar", "bpchar", "citext"})
_DIGITS = ("extra_float_digits",)
#: Complained of by the database where a column would keep a value as another one.
_INEXACT = "zcomm finds a value that its column would change"
#: The settings that the texts of PostgreSQL's own types depend on, and of those of extensions that depend on none. Any
#: other text may depend on all of them.
_DEPENDING = {
    **dict.fromkeys(_TEXTS | _LOSSLESS - {"interval"}, ()),
    **dict.fromkeys(("int2", "int4", "int8", "numeric", "bool", "time", "timetz", "uuid", "json", "jsonb"), ()),
    **dict.fromkeys(("name", "char", "oid", "money", "macaddr8", "xml", "tsvector", "tsquery", "hstore"), ()),
    **dict.fromkeys(("date", "timestamp", "daterange", "datemultirange", "tsrange", "tsmultirange"), ("DateStyle",)),
    **dict.fromkeys(("timestamptz", "tstzrange", "tstzmultirange"), ("TimeZone", "DateStyle")),
    "interval": ("IntervalStyle",),
    "bytea": ("bytea_output",),
    **dict.fromkeys(("float4", "float8", "point", "line", "lseg", "box", "path", "polygon", "circle"), _DIGITS),
}
_INTEGERS = {"int2": 16, "int4": 32, "int8": 64}
#: The kind that a type of PostgreSQL's own has, where there is one for it.
_KINDS = {
    **dict.fromkeys(_INTEGERS, "int"),
    "float4": "float",
    "float8": "float",
    "numeric": "decimal",
    "bool": "bool",
    "date": "date",
    "timestamp": "datetime",
    "timestamptz": "datetime",
    "time": "time",
    "timetz": "time",
    "uuid": "uuid",
    "json": "json",
    "jsonb": "json",
    "bytea": "bytes",
}
#: Elements of an array whose form in JSON says all of their value; the others are given as text.
_PLAIN_ELEMENTS = frozenset(
    {*_INTEGERS, "float4", "float8", "bool", "text", "varchar", "bpchar", "name", "json", "jsonb", "citext"}
)

_COLUMNS = """
WITH RECURSIVE base (number, type, modifier) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_catalog.pg_attribute
    WHERE attrelid = pg_catalog.to_regclass(%s) AND attnum > 0 AND NOT attisdropped
  UNION ALL
    SELECT base.number, t.typbasetype, greatest(base.modifier, t.typtypmod)
    FROM base JOIN pg_catalog.pg_type t ON t.oid = base.type WHERE t.typtype = 'd'
)
SELECT a.attname AS field, pg_catalog.format_type(a.atttypid, a.atttypmod) AS declared,
    NOT a.attnotnull AS nullable, t.typname AS name, t.typtype AS form, t.typcategory AS category,
    pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname) AS cast,
    base.modifier, n.nspname = 'pg_catalog' AS builtin,
    t.typtype IN ('e', 'r', 'm') OR EXISTS (
        SELECT FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree'
        JOIN pg_catalog.pg_amop s ON s.amopfamily = o.opcfamily AND s.amopstrategy = 1
            AND s.amoplefttype = o.opcintype AND s.amoprighttype = o.opcintype
        JOIN pg_catalog.pg_operator l ON l.oid = s.amopopr AND l.oprname = '<'
        WHERE o.opcdefault AND o.opcintype IN (t.oid, e.oid)
    ) OR e.typtype = 'e' OR t.typname IN ('cidr', '_cidr', '_varchar') AS sortable,
    a.atttypid <> t.oid AS domain, coalesce(c.collisdeterministic, true) AS exact,
    coalesce(e.typname, '') AS element, coalesce(e.typtype, '') AS element_form,
    CASE WHEN t.typtype = 'e' THEN t.oid::int8 ELSE 0 END AS enum,
    n.nspname = 'pg_catalog' AND t.typname IN ('text', 'varchar') AND c.collisdeterministic AND CASE
        WHEN c.collprovider <> 'd' THEN c.collprovider = 'b' OR c.collprovider = 'c' AND c.collcollate = ANY ({bytes})
        -- Before PostgreSQL 15 the database has no provider of its own.
        ELSE coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'b'
            OR coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') = 'c' AND d.datcollate = ANY ({bytes})
    END IS TRUE AS by_byte
FROM base
JOIN pg_catalog.pg_type t ON t.oid = base.type AND t.typtype <> 'd'
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum = base.number
LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation
LEFT JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
""".replace("{bytes}", "ARRAY['C', 'POSIX', 'C.UTF-8', 'C.UTF8', 'C.utf8']")


#: Where a unit of an interval begins that has no sign, but for the first one.
_UNSIGNED = re.compile(r"(?<= )(?=[0-9])", re.ASCII)
#: A moment that no type of Python's has, in UTC.
_FAR_MOMENT = re.compile(r"([0-9-]+)(?:[T ]([0-9:.]+)(?:Z|\+[0-9:]+)?)?( BC)?", re.ASCII)


class _Native(sa.types.UserDefinedType[Any]):
    """A type of the database by its name, to which values are cast."""

    cache_ok = True
    render_bind_cast = True

    def __init__(self, name: str):
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        # As in all SQL that psycopg gets.
        return self.name.replace("%", "%%")


_TEXT = _Native("text")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A column as the catalogue has it, domains unwrapped.

    :ivar declared: its type in full.
    :ivar name: of the type below all domains.
    :ivar form: ``b`` for a base type, ``c`` composite, ``e`` enum, ``r`` range, ``m`` multirange.
    :ivar category: the catalogue's letter; ``S`` is text, ``A`` an array.
    :ivar cast: the type as SQL names it, of any length.
    :ivar modifier: length or precision, -1 for none.
    :ivar builtin: whether the type is PostgreSQL's own.
    :ivar sortable: whether the type can be compared.
    :ivar domain: whether a domain stands above that type.
    :ivar exact: whether its collation tells all texts apart.
    :ivar element: of an array, the name of its items' type.
    :ivar element_form: likewise.
    :ivar enum: the number of an enum in the catalogue, 0 for any other type.
    :ivar by_byte: whether it is a text whose collation goes by bytes, which UTF-8 orders as characters.
    :ivar forms: as of :class:`~zcomm.data.drivers.postgresql_session.Session`, those that its text depends on.
    """

    declared: str
    nullable: bool
    name: str
    form: str
    category: str
    cast: str
    modifier: int
    builtin: bool
    sortable: bool
    domain: bool
    exact: bool
    element: str
    element_form: str
    enum: int
    by_byte: bool
    forms: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind that is made for it, ``""`` where there is none."""
        return _KINDS.get(self.name, "") if self.builtin else ""

    @property
    def textual(self) -> bool:
        """Whether it is text to PostgreSQL as well."""
        return self.category == "S" and self.name in _TEXTS

    @property
    def structured(self) -> bool:
        """Whether JSON has a form for what is in it."""
        return self.category == "A" or self.form == "c" or (self.name == "hstore" and not self.builtin)

    def depends_on(self, forms: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Those of ``forms`` that the text of its values may depend on."""
        name, form = (self.element, self.element_form) if self.category == "A" else (self.name, self.form)
        known = form == "e" or (name in _DEPENDING and (self.builtin or name in ("citext", "hstore")))
        depends = () if form == "e" else _DEPENDING.get(name, ()) if known else tuple(forms)
        return {name: both for name, both in forms.items() if name in depends}

    @property
    def money(self) -> bool:
        return self.name == "money" and self.builtin


def bound(
    connection: sa.Connection, model: Model, table: sa.Table, url: str, forms: Mapping[str, tuple[str, str]]
) -> Model:
    """``model`` with the columns of its table.

    :param url: the database as the user may see it, for errors.
    :param forms: as of :class:`~zcomm.data.drivers.postgresql_session.Session`.
    :raises ConfigError: for a column that the field's type cannot use.
    """
    name = ".".join('"' + part.replace('"', '""') + '"' for part in (table.schema, table.name) if part)
    found = {}
    for row in connection.exec_driver_sql(_COLUMNS, (name, name)).mappings():
        facts = dict(row)
        field_name = facts.pop("field")
        there = _Found(**facts)
        found[field_name] = replace(there, forms=there.depends_on(forms))
    encoding = connection.exec_driver_sql("SELECT pg_catalog.getdatabaseencoding()").scalar()
    fields = {}
    for each in model.fields.values():
        column = found.get(each.column_name)
        if column is None:
            raise no_column(model, each, found, url)
        fields[each.name] = _bound(each, column, f"model {model.name}", url, encoding == "UTF8")
    return replace(model, fields=fields)


def _bound(field: Field, there: _Found, place: str, url: str, unicode: bool) -> Field:
    """``field`` with its column, and with a kind of the values that this column may hold.

    :param unicode: whether the database has all characters.
    """
    made = _column(field.kind, there)
    if made is None:
        inexact = ", which is not exact" if there.kind == "float" and field.kind.name == "decimal" else ""
        raise ConfigError(
            url,
            f"{place}, field {field.name}: the existing column is of type {there.declared}{inexact}, "
            f"which does not fit {field.kind.name}; change the schema's type to {there.kind or _fitting(there)}",
        )
    kind, column = made
    if not unicode and kind.name in ("str", "json"):
        column = _in_its_characters(kind, column, _Native(there.cast))
    declared, cast = _Native(there.declared), _Native("text" if column.compared_type is not None else there.cast)
    column = replace(
        column,
        nullable=there.nullable,
        by_code_point=there.by_byte and unicode,
        accepts=f"a value that its column accepts ({there.declared})",
        listed=_LABELS.format(there.enum) if there.enum else "",
        tried=_tried(column.kept or (lambda given: given(cast, None)), declared),
        tried_compared=_tried(column.asked or (lambda given: given(cast, None)), cast),
    )
    if field.default is not None and field.default.value is not None:
        try:
            for check in (column.check, column.bind):
                if check is not None:
                    check(field.default.value)
        except ValueError as error:
            raise ConfigError(url, f"{place}, field {field.name}: the default {error}") from None
    return replace(field, kind=kind, column=column)


def _in_its_characters(kind: Kind, column: Column, native: _Native) -> Column:
    """``column`` of a database that has not all characters.

    The server complains of most that it lacks, and takes some for others that look alike.
    """
    form = json_text if kind.name == "json" else str

    def checked(
        made: Callable[[Given], ColumnElement[Any]] | None, plain: Any
    ) -> Callable[[Given], ColumnElement[Any]]:
        def value(given: Given) -> ColumnElement[Any]:
            there = given(plain, column.bind) if made is None else made(given)
            stored = sa.func.convert_to(given(sa.Text(), form), sa.literal_column("'UTF8'"))
            return _verified(there, stored, given(sa.LargeBinary(), lambda each: form(each).encode()))

        return value

    plain = column.type or native
    compared = plain if column.compared_type is None else column.compared_type
    return replace(column, kept=checked(column.kept, plain), asked=checked(column.asked, compared))


def _tried(made: Callable[[Given], ColumnElement[Any]], cast: _Native) -> str:
    """SQL that does nothing but with a value what a statement does, and with as many parameters."""

    def given(kind: Any, bind: Callable[[Any], Any] | None) -> ColumnElement[Any]:
        return sa.bindparam(None, type_=kind)

    return str(sa.select(sa.cast(made(given), cast)).compile(dialect=dialects.dialect(paramstyle="format")))


def _fitting(there: _Found) -> str:
    if there.structured:
        return "json or str"
    return "decimal or str" if there.money else "str"


def _column(kind: Kind, there: _Found) -> tuple[Kind, Column] | None:
    """The kind as this column has it, and the column; ``None`` where the two do not fit."""
    if there.kind:
        return _own(kind, there) if there.kind == kind.name else None
    if kind.name == "str":
        return kind, _text(there)
    if kind.name == "json" and there.structured:
        return kind, _structure(there)
    if kind.name == "decimal" and there.money:
        # The text of money depends on the country that the server is set up for.
        number = sa.Numeric()

        def kept(given: Given) -> ColumnElement[Any]:
            value = sa.cast(given(number, str), number)
            return _verified(value, sa.cast(sa.cast(value, _Native(there.declared)), number), value)

        return kind, Column(
            type=number,
            bind=str,
            check=_within_places(17, 2),
            shown=lambda column: sa.cast(column, number),
            compared=lambda column: sa.cast(column, number),
            kept=kept,
        )
    return None


def _own(kind: Kind, there: _Found) -> tuple[Kind, Column]:
    """A column of a type that has a kind of its own."""
    name, modifier = there.name, there.modifier
    native = _Native(there.cast)
    if kind.name == "int":
        # Filters ask in 64 bits: of a column that has fewer, a larger number finds nothing.
        bits = _INTEGERS[name]
        return kind, Column(check=None if bits == 64 else _within_bits(bits))
    forms = there.forms
    shown = (lambda column: _as_text(column, forms)) if forms else None
    if name in ("float4", "float8"):
        read: Callable[[Any], Any] = (lambda text: _read_float(float(text))) if forms else _read_float
        if name == "float8":
            return kind, Column(read=read, shown=shown)
        return kind, Column(type=native, bind=_bind_real, read=read, shown=shown)
    if name == "numeric":
        check = None
        if modifier >= _MODIFIED:
            check = _within_places(*_places(modifier))
        return replace(kind, parse=decimal_parser(_NUMERIC_DIGITS)), Column(type=native, bind=str, check=check)
    if name == "timestamp":
        check = _within_fraction(modifier)
        return kind, Column(type=native, bind=str, read=_read_datetime, check=check, shown=shown)
    if name == "timestamptz":
        return kind, _moment(native, _within_fraction(modifier), forms)
    if name == "time":
        return kind, Column(type=native, bind=str, read=_read_time, check=_within_fraction(modifier))
    if name == "timetz":
        check = _within_fraction(modifier)
        return replace(kind, parse=_parse_timetz), Column(type=native, bind=_bind_timetz, check=check)
    if kind.name == "json":
        bind = _jsonb_text if name == "jsonb" else json_text
        return kind, Column(type=native, bind=bind, read=json_value, raw=json_raw)
    if kind.name == "bytes":
        return kind, Column(read=KINDS["bytes"].show)
    return kind, Column(bind=None if kind.name == "bool" else str, shown=shown)


def _moment(native: _Native, check: Callable[[Any], None] | None, forms: Mapping[str, tuple[str, str]]) -> Column:
    """A column of timestamps with a time zone, which are shown in UTC and sent with their offset."""
    if "TimeZone" not in forms:
        shown = (lambda column: _as_text(column, forms)) if forms else None
        return Column(type=native, bind=_bind_moment, read=_read_datetime, check=check, shown=shown)
    others = {name: both for name, both in forms.items() if name != "TimeZone"}

    def in_utc(column: Any) -> ColumnElement[Any]:
        # As a timestamp without a zone: it reaches as far. By a distance, since names of zones are the database's.
        clock = _Text(sa.Text(), "pg_catalog.timezone(INTERVAL '0', CAST(", column, " AS pg_catalog.timestamptz))")
        return _as_text(clock, others) if others else clock

    return Column(type=native, bind=_bind_moment, read=_read_clock, check=check, shown=in_utc)


def _text(there: _Found) -> Column:
    """A column that is read as the text that PostgreSQL writes, and compares as what it is."""
    native, declared, text, forms = _Native(there.cast), _Native(there.declared), sa.Text(), there.forms
    if there.textual:
        length = there.modifier - _MODIFIED if there.builtin and there.modifier >= _MODIFIED else None
        return Column(
            type=native,
            check=None if length is None else _within_length(length),
            # Patterns know only collations that tell all texts apart (before PostgreSQL 18).
            matched=None if there.exact else lambda column: sa.collate(sa.cast(column, text), "default"),
            exact=there.exact and there.builtin and there.name != "bpchar",
            padded=there.builtin and there.name == "bpchar",
            caseless=there.name == "citext",
        )

    def as_text(column: Any) -> ColumnElement[Any]:
        return _as_text(column, forms) if forms else sa.cast(column, text)

    def as_native(column: Any) -> ColumnElement[Any]:
        return sa.cast(column, native)

    bind = _interval if there.builtin and there.name == "interval" else None
    lossless = there.builtin and there.name in _LOSSLESS

    def sent(given: Given) -> Any:
        if there.builtin and there.name == "xml":
            # A cast takes what the database is set to take.
            return _Text(native, "XMLPARSE(CONTENT ", given(text, bind), ")")
        return given(native, bind)

    def kept(given: Given) -> ColumnElement[Any]:
        value = sent(given)
        stored = _cast(value, declared)
        if lossless:
            return _verified(value, _cast(stored, _TEXT), _cast(value, _TEXT))
        return _verified(value, _as_text(stored, forms), given(text, bind))

    def asked(given: Given) -> ColumnElement[Any]:
        value = sent(given)
        verified = _verified(value, _as_text(value, forms), given(text, bind))
        # Once: an index is not asked for what changes a setting.
        return _Text(native, "(SELECT ", verified, ")") if forms else verified

    if there.builtin and there.name == "name":
        # Compared as a text, of any length.
        return Column(type=native, compared_type=text, kept=kept)
    # An operator of all enums or all ranges does not find itself for a domain.
    own = as_native if there.domain else None
    return Column(
        type=native,
        compared_type=None if there.sortable else text,
        bind=bind,
        shown=as_text,
        compared=own if there.sortable else as_text,
        matched=as_text,
        kept=None if there.form == "e" else kept,
        asked=None if there.form == "e" or lossless or not there.sortable else asked,
        exact=there.form == "e",
    )


def _structure(there: _Found) -> Column:
    """An array, a composite or an hstore, as JSON."""
    native, declared, forms = _Native(there.cast), _Native(there.declared), there.forms
    texts = there.category == "A" and not (there.element in _PLAIN_ELEMENTS or there.element_form == "e")
    bind: Callable[[Any], str] = _unwritable
    numbers = False
    if there.category == "A":
        numbers = there.builtin and there.element == "numeric"
        bind = _numbers_text if numbers else _json_array_text if there.element in ("json", "jsonb") else _array_text
    elif there.name == "hstore":
        bind = _hstore_text
    bind = _without_nul(bind)

    def items(column: Any) -> Any:
        if not texts:
            return column
        return sa.cast(_as_text(column, forms) if forms else column, sa.ARRAY(sa.Text()))

    def shown(column: Any) -> ColumnElement[Any]:
        # Not as jsonb, which has not all that others may have written into a json.
        return _as_json(column, forms) if forms and not texts else sa.func.to_json(items(column))

    def kept(given: Given) -> ColumnElement[Any]:
        value = given(native, bind)
        stored = sa.cast(value, declared)
        if numbers:
            return _verified(value, stored, value)
        there = sa.cast(_as_json(stored, forms), JSONB()) if forms and not texts else sa.func.to_jsonb(items(stored))
        return _verified(value, there, sa.cast(given(sa.Text(), json_text), JSONB()))

    return Column(type=native, bind=bind, read=json_value, raw=json_raw, shown=shown, kept=kept)


class _Text(ColumnElement[Any]):
    """SQL of texts and elements in turn; a filter of thousands of values has no time for more elements than these.

    :param kind: the type of its value.
    """

    inherit_cache = False

    def __init__(self, kind: Any, *parts: Any):
        self.type = kind
        self.parts = parts


@compiles(_Text)
def _compiled(element: _Text, compiler: Any, **options: Any) -> str:
    return "".join(part if isinstance(part, str) else compiler.process(part, **options) for part in element.parts)


def _cast(value: Any, kind: Any) -> ColumnElement[Any]:
    return _Text(kind, "CAST(", value, f" AS {kind.get_col_spec()})")


def _as_text(value: Any, forms: Mapping[str, tuple[str, str]]) -> ColumnElement[Any]:
    """``value`` as the text that zComm shows, whatever the settings of the session.

    A function's arguments are evaluated in their order and before it: ``value`` first, which may be an expression of a
    view, and last the settings under which it is written; then those that were there.
    """
    if not forms:
        return _cast(value, _TEXT)
    ours, theirs = _changes(forms)
    then = ") = 0 THEN pg_catalog.concat(pg_catalog.concat("
    return _Text(sa.Text(), "CASE WHEN pg_catalog.num_nulls(", value, then, value, f"{ours}){theirs}) END")


def text_of(column: str, forms: Mapping[str, tuple[str, str]]) -> str:
    """SQL of the text that zComm shows for a column of a type that is written so, whatever the settings of the session.

    :param column: quoted.
    :param forms: as of :class:`~zcomm.data.drivers.postgresql_session.Session`, those that its text depends on.
    """
    text = _as_text(sa.literal_column(column, _TEXT), forms)
    return str(text.compile(dialect=dialects.dialect(paramstyle="format")))


def _as_json(value: Any, forms: Mapping[str, tuple[str, str]]) -> ColumnElement[Any]:
    """``value`` as JSON, likewise."""
    ours, theirs = _changes(forms)
    then = ") = 0 THEN pg_catalog.json_build_array(pg_catalog.json_build_array("
    return _Text(sa.Text(), "CASE WHEN pg_catalog.num_nulls(", value, then, value, f"{ours}) -> 0{theirs}) -> 0 END")


def _changes(forms: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Arguments that set what zComm needs, and what the session had; nothing comes of them."""
    return (
        "".join(f", {change(name, ours)}" for name, (ours, _) in forms.items()),
        "".join(f", {change(name, theirs)}" for name, (_, theirs) in forms.items()),
    )


def _verified(value: Any, stored: Any, given: Any) -> ColumnElement[Any]:
    """``value``, in a statement that fails where ``stored``, which the column makes of it, is not ``given``."""
    # A text that is no number fails its cast, which is how a plain query fails at all.
    verdict = " IS DISTINCT FROM ", given, f" THEN '{_INEXACT}' ELSE '1' END AS integer) = 1 THEN "
    return _Text(value.type, "CASE WHEN CAST(CASE WHEN ", stored, *verdict, value, " END")


def _places(modifier: int) -> tuple[int, int]:
    """The places before and after the point of a numeric with this modifier."""
    # Precision and scale in 16 and 11 bits; the scale has a sign since PostgreSQL 15.
    precision, scale = (modifier - _MODIFIED) >> 16 & 0xFFFF, ((modifier - _MODIFIED & 0x7FF) ^ 1024) - 1024
    return precision - scale, scale


def _within_bits(bits: int) -> Callable[[Any], None]:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def check(value: Any) -> None:
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")

    return check


def _within_places(before: int, after: int) -> Callable[[Any], None]:
    """A check for decimals of so many places before and after the point; of more, PostgreSQL rounds."""

    def check(value: Any) -> None:
        if value.is_nan() or not value:
            return
        if value.is_infinite():
            raise ValueError("must be a finite number")
        _, digits, exponent = value.as_tuple()
        zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
        if -(exponent + zeros) > after:
            limit = f"{after} decimal places" if after >= 0 else f"{-after} zeros before the point"
            raise ValueError(f"must have at {'most' if after >= 0 else 'least'} {limit}")
        if len(digits) + exponent > before:
            raise ValueError(f"must have at most {max(before, 0)} digits before the point")

    return check


def _within_fraction(digits: int) -> Callable[[Any], None] | None:
    """A check for times whose seconds have so many digits of a fraction; PostgreSQL would round more."""
    if not 0 <= digits < 6:
        return None
    unit = 10 ** (6 - digits)

    def check(value: Any) -> None:
        if isinstance(value, (datetime, time)):
            finer = value.microsecond % unit != 0
        else:
            # As PostgreSQL writes it.
            found = _FRACTION.search(value) if isinstance(value, str) else None
            finer = found is not None and len(found[1]) > digits
        if finer:
            raise ValueError(f"must have at most {digits} digits after the seconds" if digits else "must be in seconds")

    return check


def _within_length(length: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        # PostgreSQL would cut blanks off, and nothing else.
        if len(value) > length:
            raise ValueError(f"must have at most {length} characters")

    return check


def _bind_real(value: float) -> float:
    try:
        small = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        small = None
    if small is None or (value and not small):
        raise ValueError("must fit in 32 bits, the type of its column (real)")
    # Numbers of 6 digits are told apart everywhere but next to 0.
    if math.isfinite(value) and not (abs(value) > 1e-37 and float(f"{value:.6g}") == value):
        shown = _real_shown(small)
        if shown != value:
            raise ValueError(f"must be a number that its column (real) keeps; this one it would keep as {shown!r}")
    return value


def _real_shown(value: float) -> float:
    """The number that PostgreSQL shows for one of 32 bits: the one with fewest digits that is nearer to no other."""
    (bits,) = struct.unpack("<I", struct.pack("<f", abs(value)))
    if not bits:
        return value
    size, below = Decimal(abs(value)), Decimal(struct.unpack("<f", struct.pack("<I", bits - 1))[0])
    above = struct.unpack("<f", struct.pack("<I", bits + 1))[0]
    # The gaps to its neighbours are the same, but for a power of two.
    down = _EXACT.subtract(size, below)
    up = _EXACT.subtract(Decimal(above), size) if math.isfinite(above) else down
    low, high = _EXACT.subtract(size, _EXACT.divide(down, 2)), _EXACT.add(size, _EXACT.divide(up, 2))
    for digits in range(1, 9):
        nearest = Decimal(f"{abs(value):.{digits}g}")
        # A power of two has more room above it than below, and what is half way to the next number is not taken.
        for shown in (nearest, Context(prec=digits).next_plus(nearest)):
            if low < shown < high:
                return math.copysign(float(shown), value)
    return float(f"{value:.9g}")


def _without_nul(bind: Callable[[Any], str]) -> Callable[[Any], str]:
    """``bind``, refusing a text that PostgreSQL could not be sent."""

    def bound(value: Any) -> str:
        text = bind(value)
        if "\0" in text:
            raise ValueError(_NUL)
        return text

    return bound


def _jsonb_text(value: Any) -> str:
    text = json_text(value)
    if "\\u0000" in text and _NUL_IN_JSON.search(text):
        raise ValueError(_NUL)
    if _written_out(text) > _WRITTEN_OUT and _written_out(_STRING_IN_JSON.sub("", text)) > _WRITTEN_OUT:
        raise ValueError(
            f"has too many numbers like 1e308: its column would write more than {_WRITTEN_OUT} zeros of them"
        )
    return text


def _written_out(text: str) -> int:
    """The zeros that PostgreSQL writes for the exponents in a text of JSON, and for what looks like them in strings."""
    # Most texts have none, or are too short.
    return sum(int(found[1]) for found in _EXPONENT.finditer(text)) if "e" in text and len(text) > 1000 else 0


def _interval(value: str) -> str:
    if not value or not _INTERVAL.fullmatch(value):
        raise ValueError('must be an interval like "1 year 2 mons 3 days 04:05:06.789", of whole units')
    # Where a database is set to the standard's intervals, the sign of the first unit is that of all that have none.
    return _UNSIGNED.sub("+", value) if value[0] == "-" else value


def _read_float(value: float) -> float | str:
    return value if math.isfinite(value) else KINDS["float"].show(value)


def _read_datetime(value: str) -> str:
    """``2024-10-15 08:30:00.5+00`` as JSON has it; the text itself for a moment that Python does not know."""
    text = value[:-3] if value[-3:] == "+00" else value
    length = len(text)
    if length == 19:
        return f"{text[:10]}T{text[11:]}Z"
    if 20 < length <= 26 and text[19] == "." and text[-1] != "C":
        return f"{text[:10]}T{text[11:]:0<15}Z"
    return value


def _read_clock(value: str) -> str:
    """``2024-10-15 08:30:00.5``, the clock of UTC, likewise; a moment that Python does not know has its offset."""
    read = _read_datetime(value)
    if read is not value or "infinity" in value:
        return read
    clock, before, _ = value.partition(" BC")
    return f"{clock}+00{before}"


def _bind_moment(value: datetime | Beyond) -> str:
    """With its offset from UTC, which the session would fill in."""
    found = _FAR_MOMENT.fullmatch(value) if isinstance(value, Beyond) else None
    return str(value) if found is None else f"{found[1]} {found[2] or '00:00:00'}+00{found[3] or ''}"


def _bind_timetz(value: Any) -> str:
    """Likewise."""
    text = str(value).replace("Z", "+00")
    return text if "+" in text or "-" in text else f"{text}+00"


def _read_time(value: str) -> str:
    return f"{value:0<15}" if len(value) > 8 else value


def _parse_timetz(value: Any) -> Any:
    """A time with its offset from UTC, which is UTC itself where none is given."""
    text = value if type(value) is str and len(value) <= 30 else ""
    if _TIME_OF_DAY.match(text):
        try:
            time.fromisoformat(text.replace("24:00:00", "00:00:00", 1))
            return text
        except ValueError:
            pass
    raise ValueError('must be a time with an offset like "08:30:00+02"')


def _item(value: Any) -> str:
    if isinstance(value, list):
        return _array_text(value)
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return _quoted(value if isinstance(value, str) else json_text(value))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _array_text(value: Any) -> str:
    """A list as PostgreSQL writes an array."""
    if not isinstance(value, list):
        raise ValueError("must be a list, as its column is an array")
    return "{" + ",".join(map(_item, value)) + "}"


def _numbers_text(value: Any) -> str:
    """A list of decimals, in lists as well, as PostgreSQL writes an array."""
    if not isinstance(value, list):
        raise ValueError("must be a list, as its column is an array")
    parse = decimal_parser(_NUMERIC_DIGITS)

    def text(item: Any) -> str:
        if isinstance(item, list):
            return _numbers_text(item)
        return "NULL" if item is None else str(parse(item))

    return "{" + ",".join(map(text, value)) + "}"


def _json_array_text(value: Any) -> str:
    if not isinstance(value, list):
        raise ValueError("must be a list, as its column is an array")
    return "{" + ",".join(_quoted(json_text(each)) for each in value) + "}"


def _hstore_text(value: Any) -> str:
    """An object of texts as hstore writes it."""
    if not isinstance(value, dict) or not all(each is None or isinstance(each, str) for each in value.values()):
        raise ValueError("must be an object whose values are strings or null, as its column is an hstore")
    return ",".join(f"{_quoted(key)}=>{'NULL' if each is None else _quoted(each)}" for key, each in value.items())


def _unwritable(value: Any) -> str:
    raise ValueError("can only be read, as its column is of a composite type; use type str to write it as text")
