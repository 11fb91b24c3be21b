"""Rows as a step reads them: what they look like to clients, and what they are to filters and orders.

Python may say of a row what the database would only where both mean the same; of all else it says that it does not
know (:data:`UNKNOWN`), and the database is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from zcomm.budget.written import write_json
from zcomm.data.models import Field, Model
from zcomm.live.log import Key

__all__ = ["UNKNOWN", "Entry", "Form", "Row", "View", "compared_by", "raw_fields", "sorted_by"]


class _Unknown:
    """Nothing that Python can say something of."""

    def __repr__(self) -> str:
        return "UNKNOWN"


#: A value of which only the database knows what it is.
UNKNOWN: Final = _Unknown()
#: From a value as the database brings it, and as clients see it, to what filters compare.
Meaning = Callable[[Any, Any], Any]
#: The types that values of these kinds have once they are read.
_PARSED: Mapping[str, type] = {"date": date, "datetime": datetime, "decimal": Decimal, "time": time, "uuid": UUID}


def _of_int(raw: Any, shown: Any) -> Any:
    return raw if type(raw) is int else UNKNOWN


def _of_text(raw: Any, shown: Any) -> Any:
    # What is no UTF-8 has been replaced by this character.
    return raw if type(raw) is str and "\0" not in raw and "\ufffd" not in raw else UNKNOWN


def _of_float(raw: Any, shown: Any) -> Any:
    return raw if type(raw) in (float, int) and not math.isnan(raw) else UNKNOWN


def _of_bool(raw: Any, shown: Any) -> Any:
    return shown if type(shown) is bool else UNKNOWN


def _of_text_of_uuid(raw: Any, shown: Any) -> Any:
    return raw if type(raw) is str and raw == shown else UNKNOWN


def _parsing(field: Field) -> Meaning:
    kind, parse = _PARSED[field.kind.name], field.kind.parse

    def meaning(raw: Any, shown: Any) -> Any:
        try:
            value = parse(shown)
        except ValueError:
            return UNKNOWN
        if type(value) is not kind or (type(value) is Decimal and not value.is_finite()):
            return UNKNOWN
        return value

    return meaning


def compared_by(field: Field, is_sqlite: bool) -> Meaning | None:
    """The meaning of the values of ``field`` where filters compare them; ``None`` where only the database knows it."""
    column, kind = field.column, field.kind.name
    if column is None:
        return None
    if kind == "str":
        if is_sqlite:
            return _of_text if column.by_code_point else None
        return _of_text if column.exact and column.shown is None and column.compared is None else None
    if kind == "int":
        return _of_int if column.compare is None and column.compared is None else None
    if kind == "float":
        # A number of 32 bits is compared as one.
        return _of_float if is_sqlite or (column.bind is None and column.compared is None) else None
    if kind == "bool":
        return _of_bool
    if kind in _PARSED and (is_sqlite or column.compared is None):
        return _parsing(field)
    return None


def sorted_by(field: Field, is_sqlite: bool) -> Meaning | None:
    """The meaning of the values of ``field`` where rows are ordered by them; ``None`` likewise."""
    column = field.column
    if column is None:
        return None
    if field.kind.name == "str" and not column.by_code_point:
        return None
    if is_sqlite and column.compare is not None and column.compared is None and field.kind.name != "str":
        # Ordered by what is stored, in whichever form.
        return _of_text_of_uuid if field.kind.name == "uuid" else None
    return compared_by(field, is_sqlite)


def raw_fields(model: Model, names: Iterable[str], is_sqlite: bool) -> tuple[str, ...]:
    """Those of the fields ``names`` of which it has to be known how they are stored."""
    return tuple(name for name in names if is_sqlite and model.fields[name].kind.name in ("str", "uuid"))


class Form:
    """The form of the rows that one statement brings.

    :param model: with its columns.
    :param names: the fields that are read.
    :param raw: those that are also read as they are stored, behind the others; the key comes last.
    :param is_sqlite: whether the database is one of SQLite.
    """

    def __init__(self, model: Model, names: Sequence[str], raw: Sequence[str], is_sqlite: bool):
        self.model = model
        self.names = tuple(names)
        self.raw = tuple(raw)
        self.place = {name: place for place, name in enumerate(self.names)}
        self.raw_place = {name: len(self.names) + place for place, name in enumerate(self.raw)}
        self.key_place = len(self.names) + len(self.raw)
        self.reads: dict[str, Callable[[Any], Any] | None] = {}
        self.compared: dict[str, Meaning | None] = {}
        self.sorted: dict[str, Meaning | None] = {}
        for name in self.names:
            field = model.fields[name]
            column = field.column
            self.reads[name] = None if column is None else column.raw or column.read
            self.compared[name] = compared_by(field, is_sqlite)
            self.sorted[name] = sorted_by(field, is_sqlite)

    def key_of(self, values: Sequence[Any]) -> Key:
        """The key of a row."""
        key = tuple(values[self.key_place :])
        return key[0] if len(key) == 1 else key


class Row:
    """A row as it is in a step.

    :ivar key: of the row.
    """

    __slots__ = ("_form", "_shown", "_values", "_written", "entries", "key", "meanings")

    def __init__(self, form: Form, values: Sequence[Any]):
        self._form = form
        self._values = values
        self.key = form.key_of(values)
        self._shown: dict[str, Any] = {}
        #: By field, what filters compare.
        self.meanings: dict[str, Any] = {}
        self._written: dict[tuple[str, ...], bytes] = {}
        #: As those queries have it that show it alike.
        self.entries: dict[View, Entry] = {}

    def shown(self, name: str) -> Any:
        """A value as clients see it."""
        shown = self._shown
        if name in shown:
            return shown[name]
        form = self._form
        value = self._values[form.place[name]]
        read = form.reads[name]
        if read is not None and value is not None:
            value = read(value)
        shown[name] = value
        return value

    def stored(self, name: str) -> Any:
        """A value as the database keeps it, as far as that was asked for."""
        form = self._form
        place = form.raw_place.get(name)
        return self._values[form.place[name] if place is None else place]

    def compared(self, name: str) -> Any:
        """A value as filters compare it: ``None`` for null, and :data:`UNKNOWN` where only the database knows."""
        meanings = self.meanings
        if name in meanings:
            return meanings[name]
        meaning = self._meaning(name, self._form.compared[name])
        meanings[name] = meaning
        return meaning

    def sorted(self, name: str) -> Any:
        """Likewise, what rows are ordered by."""
        return self._meaning(name, self._form.sorted[name])

    def _meaning(self, name: str, meaning: Meaning | None) -> Any:
        value = self.stored(name)
        if value is None:
            return None
        return UNKNOWN if meaning is None else meaning(value, self.shown(name))

    def written(self, names: tuple[str, ...]) -> bytes:
        """The JSON of some of its fields, in that order."""
        text = self._written.get(names)
        if text is None:
            text = self._written[names] = write_json({name: self.shown(name) for name in names})
        return text

    def name(self) -> bytes:
        """The JSON of its key, as clients see it: a list where it has several fields."""
        key = self._form.model.key
        return write_json(self.shown(key[0]) if len(key) == 1 else [self.shown(name) for name in key])


class _Down:
    """A value in an order that descends."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __lt__(self, other: _Down) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Down) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]


def sort_key(row: Row, order: Sequence[tuple[str, bool]]) -> tuple[Any, ...] | None:
    """The place of a row in ``order``; ``None`` where only the database knows it. Nulls are the largest of all."""
    made: list[Any] = []
    for name, descends in order:
        value = row.sorted(name)
        if value is UNKNOWN:
            return None
        is_null = value is None
        if descends:
            made += (not is_null, None if is_null else _Down(value))
        else:
            made += (is_null, value)
    return tuple(made)


class Entry:
    """A row as queries have it that show the same fields in the same order.

    :ivar name: its key as clients see it, as JSON.
    :ivar row: as JSON.
    :ivar sort: its place in the order; ``None`` where only the database knows it.
    :ivar hash: of the row and of what it is ordered by.
    """

    __slots__ = ("hash", "key", "name", "row", "sort")

    def __init__(self, row: Row, view: View):
        self.key = row.key
        self.name = row.name()
        self.row = row.written(view.fields)
        self.sort = sort_key(row, view.order)
        text = self.row + row.written(view.beside) if view.beside else self.row
        self.hash = int.from_bytes(blake2b(text, digest_size=8).digest(), "big")

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.row) + len(self.name) + 400


class View:
    """The fields that a query shows, and the order of its rows.

    :ivar beside: the fields of the order that are not shown.
    :ivar is_sorted: whether Python knows the order, of most rows at least.
    """

    __slots__ = ("beside", "fields", "is_sorted", "order")

    def __init__(self, model: Model, fields: tuple[str, ...], order: tuple[tuple[str, bool], ...], is_sqlite: bool):
        self.fields = fields
        self.order = order
        self.beside = tuple(name for name, _ in order if name not in fields)
        self.is_sorted = all(sorted_by(model.fields[name], is_sqlite) for name, _ in order)

    def entry(self, row: Row) -> Entry:
        """``row`` as it is shown; made once."""
        entry = row.entries.get(self)
        if entry is None:
            entry = row.entries[self] = Entry(row, self)
        return entry
