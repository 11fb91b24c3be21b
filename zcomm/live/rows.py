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

import msgspec

from zcomm.budget.written import write_json
from zcomm.data.models import Column, Field, Model
from zcomm.live.log import Key

__all__ = [
    "ROW_BYTES",
    "UNKNOWN",
    "Entry",
    "Form",
    "Row",
    "Unreadable",
    "View",
    "compared_by",
    "raw_fields",
    "sorted_by",
]


class _Unknown:
    """Nothing that Python can say something of."""

    def __repr__(self) -> str:
        return "UNKNOWN"


#: Bytes that a row takes beside its JSON, about.
ROW_BYTES = 400
#: A value of which only the database knows what it is.
UNKNOWN: Final = _Unknown()
#: From a value as the database brings it, and as clients see it, to what filters compare.
Meaning = Callable[[Any, Any], Any]
#: The types that values of these kinds have once they are read.
_PARSED: Mapping[str, type] = {"date": date, "datetime": datetime, "decimal": Decimal, "time": time, "uuid": UUID}


def _of_int(raw: Any, shown: Any) -> Any:
    return raw if type(raw) is int else UNKNOWN


def _of_text(raw: Any, shown: Any) -> Any:
    return raw if type(raw) is str else UNKNOWN


def _of_whole_text(raw: Any, shown: Any) -> Any:
    return raw if type(raw) is str and _is_whole(raw) else UNKNOWN


def _is_whole(text: str) -> bool:
    # In a text of SQLite's, what is no UTF-8 has been replaced by this character, and some functions end at a NUL.
    return "\0" not in text and "\ufffd" not in text


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
            return _of_whole_text if column.by_code_point else None
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
    if is_sqlite and _is_by_form(column) and field.kind.name != "str":
        return _of_text_of_uuid if field.kind.name == "uuid" else None
    return compared_by(field, is_sqlite)


def raw_fields(model: Model, names: Iterable[str], is_sqlite: bool) -> tuple[str, ...]:
    """Those of the fields ``names`` of which it has to be known how they are stored."""
    if not is_sqlite:
        return ()
    found = {name: model.fields[name] for name in names}
    return tuple(name for name, each in found.items() if each.kind.name in ("str", "uuid") or _is_by_form(each.column))


def _is_by_form(column: Column | None) -> bool:
    """Whether SQLite orders the column by what is stored, in whichever form."""
    return column is not None and column.compare is not None and column.compared is None


class Form:
    """The form of the rows that one statement brings.

    :param model: with its columns.
    :param names: the fields that are read.
    :param raw: those that are also read as they are stored, behind the others; the key comes last.
    :param is_sqlite: whether the database is one of SQLite.
    :ivar place: by field, where its value is.
    :ivar stored: by field, where its value is as it is stored.
    :ivar reads: the places of values that clients see otherwise, with what makes those.
    :ivar compared: by field, what filters compare.
    """

    def __init__(self, model: Model, names: Sequence[str], raw: Sequence[str], is_sqlite: bool):
        self.model = model
        self.names = tuple(names)
        self.raw = tuple(raw)
        self.is_sqlite = is_sqlite
        self.place = {name: place for place, name in enumerate(self.names)}
        self.stored = self.place | {name: len(self.names) + place for place, name in enumerate(self.raw)}
        self._key = len(self.names) + len(self.raw)
        columns = [(self.place[name], model.fields[name].column) for name in self.names]
        reads = [(place, column.raw or column.read) for place, column in columns if column is not None]
        self.reads = tuple((place, read) for place, read in reads if read is not None)
        self.compared = {name: compared_by(model.fields[name], is_sqlite) for name in self.names}
        #: The key is a number, and shown as it is.
        self.is_numbered = len(model.key) == 1 and model.fields[model.key[0]].kind.name == "int"
        self._views: dict[View, _Shape] = {}

    def key_of(self, values: Sequence[Any]) -> Key:
        """The key of a row."""
        if len(values) == self._key + 1:
            key: Key = values[self._key]
            return key
        return tuple(values[self._key :])

    def shape(self, view: View) -> _Shape:
        """The rows of this form as ``view`` shows them."""
        shape = self._views.get(view)
        if shape is None:
            shape = self._views[view] = _Shape(self, view)
        return shape


class Unreadable(Exception):
    """A row that has a value which nobody can read."""


class Row:
    """A row as it is in a step.

    :param values: as the database has brought them.
    :ivar key: of the row.
    :ivar entries: the row as queries have it that show it alike.
    """

    __slots__ = ("_form", "_meanings", "_shown", "_values", "entries", "is_readable", "key")

    def __init__(self, form: Form, values: Sequence[Any]):
        self._form = form
        self._values = self._shown = values
        self.key = form.key_of(values)
        self.entries: dict[View, Entry] = {}
        self._meanings: dict[str, Any] = {}
        self.is_readable = True
        if form.reads:
            shown = self._shown = list(values)
            try:
                for place, read in form.reads:
                    if shown[place] is not None:
                        shown[place] = read(shown[place])
            except Exception:
                # Another program's value, of which a read would fail.
                self.is_readable = False

    def stored(self, name: str) -> Any:
        """A value as the database keeps it, as far as that was asked for."""
        return self._values[self._form.stored[name]]

    def compared(self, name: str) -> Any:
        """A value as filters compare it: ``None`` for null, and :data:`UNKNOWN` where only the database knows it."""
        meanings = self._meanings
        if name in meanings:
            return meanings[name]
        form = self._form
        value = self._values[form.stored[name]]
        if value is not None:
            meaning = form.compared[name]
            value = (
                UNKNOWN if meaning is None or not self.is_readable else meaning(value, self._shown[form.place[name]])
            )
        meanings[name] = value
        return value

    def differs(self, name: str, wanted: Any) -> bool:
        """Whether a value of which only the database knows what it is, is another than ``wanted`` all the same: a text
        that lacks what is odd about it."""
        return type(wanted) is str and _is_whole(wanted) and type(self.stored(name)) is str

    def entry(self, view: View) -> Entry:
        """The row as ``view`` shows it; made once.

        :raises Unreadable: where it cannot be.
        """
        entry = self.entries.get(view)
        if entry is None:
            if not self.is_readable:
                raise Unreadable
            entry = self.entries[view] = self._form.shape(view).entry(self.key, self._values, self._shown)
        return entry


class _Down(msgspec.Struct, gc=False, eq=False):
    """A value in an order that descends."""

    value: Any

    def __lt__(self, other: _Down) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Down) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]


class Entry(msgspec.Struct, gc=False, eq=False):
    """A row as queries have it that show the same fields in the same order.

    :ivar name: its key as clients see it, as JSON: a list where it has several fields.
    :ivar row: as JSON.
    :ivar sort: its place in the order, in which nulls are the largest of all; ``None`` where only the database knows
        it.
    :ivar hash: of the row and of what it is ordered by.
    :ivar size: bytes that it takes, about.
    """

    # There may be millions, and none refers to another: whoever collects garbage need not look at them.
    key: Key
    name: bytes
    row: bytes
    sort: tuple[Any, ...] | None
    hash: int
    size: int


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


class _Shape:
    """The rows of a form as a view shows them."""

    def __init__(self, form: Form, view: View):
        self._fields = [(name, form.place[name]) for name in view.fields]
        self._beside = [form.place[name] for name in view.beside]
        self._key = [form.place[name] for name in form.model.key]
        self._is_numbered = form.is_numbered
        #: Of each field of the order where it is stored and where it is shown, its meaning, and whether it descends.
        self._order = [
            (form.stored[name], form.place[name], sorted_by(form.model.fields[name], form.is_sqlite), descends)
            for name, descends in view.order
        ]
        self._forms = [(stored, place) for stored, place, _, _ in self._order if stored != place]

    def entry(self, key: Key, values: Sequence[Any], shown: Sequence[Any]) -> Entry:
        row = write_json({name: shown[place] for name, place in self._fields})
        text = row + write_json([shown[place] for place in self._beside]) if self._beside else row
        for stored, place in self._forms:
            if values[stored] != shown[place]:
                # Another form of the same value has another place in the order.
                text += repr(values[stored]).encode()
        if self._is_numbered and type(key) is int:
            name = b"%d" % key
        else:
            names = [shown[place] for place in self._key]
            name = write_json(names if len(names) > 1 else names[0])
        sort: list[Any] | None = []
        for stored, place, meaning, descends in self._order:
            value = values[stored]
            if value is None:
                sort += (not descends, None)  # type: ignore[operator]
                continue
            value = UNKNOWN if meaning is None else meaning(value, shown[place])
            if value is UNKNOWN:
                sort = None
                break
            sort += (descends, _Down(value) if descends else value)  # type: ignore[operator]
        hash = int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
        return Entry(key, name, row, None if sort is None else tuple(sort), hash, len(row) + ROW_BYTES)
