"""The filter language: what a client may ask of rows, parsed and checked against the schema.

::

    {"active": true, "age__gte": 18, "$or": [{"role": "admin"}, {"name__startswith": "A"}]}

Keys are ANDed. A key is a field, or a field with an operator: ``eq ne gt gte lt lte in not_in like ilike
contains startswith endswith between isnull``. ``$or`` and ``$and`` take a list of filters, ``$not`` takes
one. ``null`` is IS NULL, a list is IN, and an empty list matches nothing.

Every condition is true or false, never SQL's third thing: one on a field that is null is false, except
``ne`` and ``not_in``, which are true of it. So ``$not`` selects exactly the rows that its filter does not.

In ``like`` and ``ilike`` ``%`` stands for any text, ``_`` for any character, and a backslash takes the
meaning from the character after it; ``contains``, ``startswith`` and ``endswith`` take text as it is.

A parsed filter is two things: its *shape*, nested tuples that say everything but the values, by which
compiled SQL is remembered; and the values, in the order in which the shape needs them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zcomm.data.models import Field, Model
from zcomm.data.values import KINDS
from zcomm.errors import Invalid, UnknownField
from zcomm.text import did_you_mean, quoted

__all__ = [
    "ASCII_LITERAL",
    "EVERYTHING",
    "FOLDED_LITERAL",
    "FOLDED_PATTERN",
    "Filter",
    "MAX_CONDITIONS",
    "MAX_DEPTH",
    "MAX_LIST",
    "MAX_ORDER",
    "MAX_TEXTUAL",
    "OPERATORS",
    "PATTERN",
    "Slot",
    "Unfit",
    "and_",
    "escaped",
    "parse_filter",
    "parse_order",
    "unfit_of",
]

MAX_CONDITIONS = 200
MAX_DEPTH = 8
#: Values in one list of ``in`` or ``not_in``.
MAX_LIST = 1000
#: Values of such lists that are parameters of their own in a filter, and those of one list: an index may answer for
#: each. Longer lists are one parameter, and so are the others beyond.
MAX_SINGLE, MAX_APART = 64, 16
#: Values in a whole filter. They are counted before any is looked at.
MAX_VALUES = 2000
#: Conditions that look into texts, and that compare texts or bytes with lists that are one parameter. For each of those
#: that look PostgreSQL makes a copy of the text, and two where case does not count, which it keeps until it is done
#: with the row; SQLite keeps one for each list.
MAX_TEXTUAL = 32
#: Of those that look, how many are compared in the fastest way, in which SQLite keeps a copy of the text for each as
#: well.
MAX_COPIED = 8
#: Characters of a pattern, or of a text that is looked for within others.
MAX_PATTERN = 1000
#: Characters of all of them in a filter: looking for them takes time by their number times the text of a row, in which
#: nothing can interrupt a database.
MAX_PATTERNS = 4000
#: Characters of all ``like`` and ``ilike`` patterns of a filter that stand behind a first ``%``. Databases try those at
#: each place of a text, one by one; a text alone they look for by the means of a search.
MAX_TRIED = 200
#: The characters that are dear in SQLite's GLOB, and for how many others each stands.
_DEAR, _DEARNESS = "*?[", 3
#: Fields of an ``order_by``.
MAX_ORDER = 8

OPERATORS = (
    "eq",
    "ne",
    "gt",
    "gte",
    "lt",
    "lte",
    "in",
    "not_in",
    "like",
    "ilike",
    "contains",
    "startswith",
    "endswith",
    "between",
    "isnull",
)
_TEXTUAL = frozenset({"like", "ilike", "contains", "startswith", "endswith"})
_ORDERED = frozenset({"gt", "gte", "lt", "lte", "between"})
_COMBINERS = ("$or", "$and", "$not")

#: The kind of a slot that holds a LIKE pattern with backslash as its escape.
PATTERN = "pattern"
#: The same where case does not count, in ASCII alone and of all letters.
ASCII_PATTERN, FOLDED_PATTERN = "ascii_pattern", "folded_pattern"
#: The kind of a slot that holds a text to look for as it is; and where case does not count, in ASCII alone and of all
#: letters.
LITERAL, ASCII_LITERAL, FOLDED_LITERAL = "literal", "ascii_literal", "folded_literal"

#: A value, or a tuple of those of a list, and the name of its kind, or of one of the kinds of patterns and texts above.
Slot = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class Unfit:
    """A value that is none of its field's kind, and that its column may hold all the same.

    :ivar field: the name of its field.
    :ivar value: as it came.
    :ivar error: what is said of it where no row has it; of no account where two are compared.
    """

    field: str
    value: Any
    error: Invalid = dataclasses.field(compare=False)


Shape = tuple[Any, ...]

# No field can be called so.
_TRUE: Shape = ("$true",)
_FALSE: Shape = ("$false",)

_ID_TEXT = re.compile(r"(?:0|-?[1-9][0-9]{0,18})\Z", re.ASCII)
_ORDER_TERM = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)(?:\s+(asc|desc))?\s*\Z", re.ASCII | re.IGNORECASE)
_WILDCARDS = re.compile(r"[%_]{2,}")
#: What follows the first ``%`` of a pattern.
_TRIED = re.compile(r"(?:[^%\\]|\\.)*%(.+)", re.DOTALL)
#: A pattern that asks for a text alone, anywhere or at the end.
_ALONE = re.compile(r"%((?:[^%_\\]|\\.)+)(%?)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter.

    :ivar shape: what it asks, without the values.
    :ivar slots: the values with their kinds, in the order of the shape.
    """

    shape: Shape
    slots: tuple[Slot, ...] = ()

    @property
    def everything(self) -> bool:
        """Whether the filter asks nothing: every row matches it."""
        return self.shape == _TRUE

    @property
    def nothing(self) -> bool:
        """Whether no row can match it."""
        return self.shape == _FALSE


#: The filter that every row matches.
EVERYTHING = Filter(_TRUE)
_NOTHING = Filter(_FALSE)


def parse_filter(model: Model, where: Any) -> Filter:
    """Parse what a client sent as ``where`` or ``filters``.

    :param where: an object; or the value of the primary key; ``None`` for none.
    :raises Invalid: for a value or shape that cannot be used.
    :raises UnknownField: for a field or operator there is not, naming the nearest.
    """
    if where is None:
        return EVERYTHING
    if type(where) is dict:
        return _Parser(model).parse(where, 1)
    if type(where) in (int, str):
        return _by_id(model, where)
    raise Invalid('where must be an object like {"age__gte": 18}, or an id')


def unfit_of(slots: Iterable[Slot]) -> Iterator[Unfit]:
    """The values of ``slots`` that are none of their fields' kinds."""
    for _, value in slots:
        for each in value if type(value) is tuple else (value,):
            if type(each) is Unfit:
                yield each


def and_(first: Filter, second: Filter) -> Filter:
    """Combine two filters into one that matches what both of them match."""
    return _all([first, second])


def _by_id(model: Model, where: int | str) -> Filter:
    if len(model.key) != 1:
        raise Invalid(f"{model.name} has no single id; use a filter with {' and '.join(model.key)}")
    field = model.fields[model.key[0]]
    if field.kind.name == "int" and isinstance(where, str) and _ID_TEXT.match(where):
        # Ids that come from forms and addresses are text, in the one form that a number is shown in.
        where = int(where)
    return Filter((field.name, "eq"), (_slot(field, where, True),))


def _slot(field: Field, value: Any, equality: bool = False) -> Slot:
    """The slot of a value that ``field`` is compared with.

    :param equality: whether rows are asked for that have it.
    """
    try:
        return field.kind.name, field.kind.parse(value)
    except ValueError as error:
        wrong = _invalid(field, str(error))
    if equality and field.column is not None and field.column.unfit is not None:
        try:
            return field.kind.name, Unfit(field.name, field.column.unfit(value), wrong)
        except ValueError:
            pass
    raise wrong


def _invalid(field: Field, reason: str) -> Invalid:
    return Invalid(f"{field.name} {reason}", {field.name: reason})


def escaped(text: str) -> str:
    """A LIKE pattern that matches ``text`` and nothing else."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _collapsed(wildcards: re.Match[str]) -> str:
    """A run of wildcards in the one form that does not make a matcher try the same thing twice."""
    run = wildcards.group()
    return "_" * run.count("_") + ("%" if "%" in run else "")


def _like_pattern(field: Field, pattern: str) -> str:
    # Even pieces stand between escapes; the escaped characters themselves are left alone.
    pieces = re.split(r"(\\.)", pattern, flags=re.DOTALL)
    if any(piece.endswith("\\") for piece in pieces[::2]):
        raise _invalid(field, "must not end in a lone backslash; write two for one")
    pieces[::2] = [_WILDCARDS.sub(_collapsed, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _cost(pattern: str) -> int:
    """How many characters are compared at one place of a text, at most, until it is known not to match there."""
    return len(pattern) + _DEARNESS * sum(map(pattern.count, _DEAR))


class _Costs:
    """Counts what a filter costs, before it is spent.

    Each method raises :class:`~zcomm.errors.Invalid` for what is too much.
    """

    def __init__(self) -> None:
        self._conditions = self._values = self._characters = self._tried = self._brief = self._single = 0
        self._textual = self._copied = 0

    def add_condition(self) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise Invalid(f"where has more than {MAX_CONDITIONS} conditions")

    def add_values(self, count: int) -> None:
        self._values += count
        if self._values > MAX_VALUES:
            raise Invalid(f"where has more than {MAX_VALUES} values")

    def add_single(self, count: int) -> bool:
        """Whether so many values of a list may be parameters of their own."""
        if count > MAX_APART or self._single + count > MAX_SINGLE:
            return False
        self._single += count
        return True

    def add_textual(self) -> None:
        self._textual += 1
        if self._textual > MAX_TEXTUAL:
            raise Invalid(
                f"where has more than {MAX_TEXTUAL} conditions of like, ilike, contains, startswith and endswith, "
                f"and of lists of texts or bytes beyond {MAX_SINGLE} values in all"
            )

    def add_pattern(self, field: Field, text: str) -> None:
        self.add_values(1)
        self.add_textual()
        if len(text) > MAX_PATTERN:
            raise _invalid(field, f"must be a pattern of at most {MAX_PATTERN} characters")
        self._characters += len(text)
        if self._characters > MAX_PATTERNS:
            raise Invalid(f"where has patterns of more than {MAX_PATTERNS} characters together")

    def add_tried(self, pattern: str) -> None:
        """What is tried at each place of a text."""
        found = _TRIED.match(pattern)
        self._tried += _cost(found[1]) if found else 0
        if self._tried > MAX_TRIED:
            raise Invalid(
                f"where has like patterns of more than {MAX_TRIED} characters behind the first % of each; "
                "look for a longer text with contains, or a pattern that is % and a text"
            )

    def add_copied(self) -> bool:
        """Whether there is room yet for a condition that keeps a copy of a text."""
        self._copied += 1
        return self._copied <= MAX_COPIED

    def add_brief(self, text: str) -> bool:
        """Whether there is room yet for looking for ``text`` as a pattern, which an index may answer."""
        cost = _cost(text)
        if self._brief + cost > MAX_TRIED:
            return False
        self._brief += cost
        return True


class _Parser:
    """Parses one filter and counts what it costs."""

    def __init__(self, model: Model):
        self._model = model
        self._costs = _Costs()

    def parse(self, where: Mapping[str, Any], depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise Invalid(f"where is nested deeper than {MAX_DEPTH} levels")
        if not where:
            self._costs.add_condition()
        return _all([self._entry(key, value, depth) for key, value in where.items()])

    def _entry(self, key: str, value: Any, depth: int) -> Filter:
        self._costs.add_condition()
        if key.startswith("$"):
            return self._combined(key, value, depth)
        field = self._model.fields.get(key)
        if field is not None and not field.hidden:
            return _condition(field, "eq", value, self._costs)
        name, separator, operator = key.rpartition("__")
        if not separator:
            self._model.find(key)
        field = self._model.find(name)
        if operator not in OPERATORS:
            raise UnknownField(
                f"There is no operator {quoted(operator)} for {self._model.name}.{field.name}"
                f"{did_you_mean(operator, OPERATORS)}"
            )
        return _condition(field, operator, value, self._costs)

    def _combined(self, key: str, value: Any, depth: int) -> Filter:
        if key not in _COMBINERS:
            raise UnknownField(f"There is no operator {quoted(key)}{did_you_mean(key, _COMBINERS)}")
        if key == "$not":
            if type(value) is not dict:
                raise Invalid("$not must be an object")
            return _negated(self.parse(value, depth + 1))
        if type(value) is list and len(value) > MAX_CONDITIONS:
            raise Invalid(f"where has more than {MAX_CONDITIONS} conditions")
        if type(value) is not list or not all(type(each) is dict for each in value):
            raise Invalid(f"{key} must be a list of objects")
        parts = [self.parse(each, depth + 1) for each in value]
        return _any(parts) if key == "$or" else _all(parts)


def _all(parts: list[Filter]) -> Filter:
    if any(part.nothing for part in parts):
        return _NOTHING
    return _joined("$and", [part for part in parts if not part.everything], EVERYTHING)


def _any(parts: list[Filter]) -> Filter:
    if any(part.everything for part in parts):
        return EVERYTHING
    return _joined("$or", [part for part in parts if not part.nothing], _NOTHING)


def _joined(how: str, parts: list[Filter], empty: Filter) -> Filter:
    if len(parts) <= 1:
        return parts[0] if parts else empty
    slots = tuple(slot for part in parts for slot in part.slots)
    return Filter((how, *(part.shape for part in parts)), slots)


def _negated(part: Filter) -> Filter:
    if part.everything:
        return _NOTHING
    return EVERYTHING if part.nothing else Filter(("$not", part.shape), part.slots)


def _is_null(field: Field, wanted: bool) -> Filter:
    if field.pk and (field.column is None or not field.column.nullable):
        # No row has a null key, so this asks for all rows or for none. Not so in SQLite, where keys may be null.
        return _NOTHING if wanted else EVERYTHING
    return Filter((field.name, "isnull" if wanted else "notnull"))


def _equal(field: Field, value: Any, costs: _Costs) -> Filter:
    if value is None:
        return _is_null(field, True)
    _comparable(field)
    costs.add_values(1)
    return Filter((field.name, "eq"), (_slot(field, value, True),))


def _comparable(field: Field) -> None:
    if not field.kind.comparable:
        raise _invalid(field, f"is of type {field.kind.name} and can only be asked for with isnull")


def _list(field: Field, value: Any, negated: bool, costs: _Costs) -> Filter:
    if type(value) is not list:
        raise _invalid(field, "must be a list")
    if len(value) > MAX_LIST:
        raise _invalid(field, f"must be a list of at most {MAX_LIST} values")
    _comparable(field)
    costs.add_values(len(value))
    slots = [_slot(field, each, True) for each in value if each is not None]
    # Rounded up to a power of two by repeating the last one, so that lists of many lengths share few statements.
    room = 1 << (len(slots) - 1).bit_length() if slots else 0
    some: Filter
    if not slots:
        some = _NOTHING
    elif costs.add_single(room) or (field.column is not None and field.column.asked is not None):
        slots += [slots[-1]] * (room - len(slots))
        some = Filter((field.name, "not_in" if negated else "in", room), tuple(slots))
    else:
        if field.kind.textual or field.kind.name == "bytes":
            costs.add_textual()
        listed = (field.kind.name, tuple(slot[1] for slot in slots))
        some = Filter((field.name, "not_listed" if negated else "listed"), (listed,))
    has_null = any(each is None for each in value)
    if negated:
        some = EVERYTHING if not slots else some
        return _all([some, _is_null(field, False)]) if has_null else some
    return _any([some, _is_null(field, True)]) if has_null else some


def _condition(field: Field, operator: str, value: Any, costs: _Costs) -> Filter:
    """One condition with an operator."""
    if operator == "eq":
        return _list(field, value, False, costs) if type(value) is list else _equal(field, value, costs)
    if operator in ("in", "not_in"):
        return _list(field, value, operator == "not_in", costs)
    if operator == "isnull":
        if type(value) is not bool:
            raise _invalid(field, "isnull must be true or false")
        return _is_null(field, value)
    if operator == "ne":
        if type(value) is list:
            return _list(field, value, True, costs)
        if value is None:
            return _is_null(field, False)
        _comparable(field)
        costs.add_values(1)
        return Filter((field.name, "ne"), (_slot(field, value, True),))
    if operator in _TEXTUAL:
        return _textual(field, operator, value, costs)
    if operator in _ORDERED and not field.kind.ordered:
        raise _invalid(field, f"is of type {field.kind.name}, which has no order")
    if operator == "between":
        if type(value) is not list or len(value) != 2:
            raise _invalid(field, "between must be a list of two values")
        costs.add_values(2)
        return Filter((field.name, "between"), (_slot(field, value[0]), _slot(field, value[1])))
    costs.add_values(1)
    return Filter((field.name, operator), (_slot(field, value),))


def _textual(field: Field, operator: str, value: Any, costs: _Costs) -> Filter:
    if not field.kind.textual:
        raise _invalid(field, f"is of type {field.kind.name}; {operator} is for text")
    try:
        text = KINDS["str"].parse(value)
    except ValueError as error:
        raise _invalid(field, str(error)) from None
    costs.add_pattern(field, text)
    if operator == "startswith":
        return Filter((field.name, "like", costs.add_copied()), ((PATTERN, escaped(text) + "%"),))
    folded = operator == "ilike"
    if operator in ("like", "ilike"):
        pattern = _like_pattern(field, text)
        alone = _ALONE.match(pattern)
        if alone is None:
            costs.add_tried(pattern)
            kind = PATTERN
            if folded:
                # Every database folds ASCII itself, and fast.
                operator, kind = ("ilike_ascii", ASCII_PATTERN) if text.isascii() else ("ilike", FOLDED_PATTERN)
            return Filter((field.name, operator, costs.add_copied()), ((kind, pattern),))
        operator, text = "contains" if alone[2] else "endswith", re.sub(r"\\(.)", r"\1", alone[1], flags=re.DOTALL)
    if not text:
        return Filter((field.name, "like", costs.add_copied()), ((PATTERN, "%"),))
    how, kind = "", LITERAL
    if folded:
        how, kind = ("ascii", ASCII_LITERAL) if text.isascii() else ("folded", FOLDED_LITERAL)
    return Filter((field.name, operator, how, costs.add_brief(text), costs.add_copied()), ((kind, text),))


def parse_order(model: Model, order_by: Any) -> tuple[tuple[str, bool], ...]:
    """Parse ``order_by``: ``"created_at DESC, name"``, or a list of such terms.

    :return: the fields, each with whether it descends.
    :raises Invalid: for what is not in the grammar.
    :raises UnknownField: for a field there is not.
    """
    if order_by is None:
        return ()
    if isinstance(order_by, str):
        terms: list[Any] = order_by.split(",", MAX_ORDER)
    elif isinstance(order_by, list):
        terms = order_by[: MAX_ORDER + 1]
    else:
        raise Invalid('order_by must be like "created_at DESC, name"')
    if not 1 <= len(terms) <= MAX_ORDER:
        raise Invalid(f"order_by must name 1 to {MAX_ORDER} fields")
    found: dict[str, bool] = {}
    for term in terms:
        match = _ORDER_TERM.match(term) if isinstance(term, str) and len(term) < 200 else None
        if match is None:
            raise Invalid(f'order_by: {quoted(term)} is not like "created_at DESC"')
        field = model.find(match.group(1))
        if not field.kind.ordered:
            raise _invalid(field, f"is of type {field.kind.name}, which has no order")
        if field.name in found:
            raise Invalid(f"order_by names {field.name} twice")
        found[field.name] = (match.group(2) or "").lower() == "desc"
    return tuple(found.items())
