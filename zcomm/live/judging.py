"""Filters as functions on rows, which say what the database would say, or that only the database knows.

Conditions are true or false, never SQL's third thing (:mod:`zcomm.data.filters`); what is not known is ``None`` here.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from zcomm.data.filters import EVERYTHING, LITERAL, PATTERN, Filter, Slot, Unfit
from zcomm.data.models import Model
from zcomm.live.rows import UNKNOWN, Row, compared_by

__all__ = ["Test", "equal_to", "judged_by_the_database", "memberships_of", "test_of"]

#: Whether a row matches; ``None`` where only the database knows.
Test = Callable[[Row], "bool | None"]

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
#: The operators of shapes that clients call otherwise.
_WORDS = {"listed": "in", "not_listed": "not_in", "ilike_ascii": "ilike", "same": "eq", "among": "in"}
#: The operators for which texts have to be in an order.
_ORDERED = frozenset({*_COMPARISONS, "between"})


def test_of(where: Filter, model: Model, is_sqlite: bool) -> Test:
    """The filter ``where`` on rows of ``model``."""
    return _Compiler(model, is_sqlite).test(where.shape, iter(where.slots))


def equal_to(where: Filter, model: Model, is_sqlite: bool) -> tuple[tuple[str, frozenset[Any]] | None, Filter]:
    """A field, and the values one of which it has in each row that matches ``where``, where there is such a field and
    Python knows its values: the one with the fewest. And the filter that is left for rows that have one of them."""
    compiler = _Compiler(model, is_sqlite)
    is_whole = where.shape[0] != "$and"
    parts = (where.shape,) if is_whole else where.shape[1:]
    slots = iter(where.slots)
    taken = [(part, [next(slots) for _ in range(_count(part))]) for part in parts]
    best: tuple[str, frozenset[Any]] | None = None
    chosen = -1
    for place, (part, mine) in enumerate(taken):
        if part[0].startswith("$") or part[1] not in ("eq", "same", "in", "listed"):
            continue
        values = compiler.values(part, mine)
        if values is None or model.fields[part[0]].kind.name == "bool":
            continue
        if best is None or len(values) < len(best[1]):
            best, chosen = (part[0], frozenset(values)), place
    if best is None:
        return None, where
    left = [each for place, each in enumerate(taken) if place != chosen]
    if not left:
        return best, EVERYTHING
    return best, Filter(("$and", *(part for part, _ in left)), tuple(slot for _, mine in left for slot in mine))


def judged_by_the_database(where: Filter, model: Model, is_sqlite: bool) -> list[str]:
    """The conditions of ``where`` of which Python knows nothing, as their fields and operators."""
    compiler = _Compiler(model, is_sqlite)
    found: dict[str, None] = {}

    def look(shape: tuple[Any, ...], slots: Iterator[Slot]) -> None:
        if shape[0] in ("$and", "$or", "$not"):
            for part in shape[1:]:
                look(part, slots)
        elif not shape[0].startswith("$") and compiler.test(shape, slots) is _ask:
            found[f"{shape[0]}__{_WORDS.get(shape[1], shape[1])}"] = None

    look(where.shape, iter(where.slots))
    return list(found)


def memberships_of(where: Filter) -> list[tuple[str, Filter]]:
    """The conditions on other models in ``where``: the name of each model, and what is asked of its rows."""
    found: list[tuple[str, Filter]] = []
    slots = iter(where.slots)
    waiting = [where.shape]
    while waiting:
        shape = waiting.pop()
        if shape[0] in ("$and", "$or", "$not"):
            waiting += reversed(shape[1:])
            continue
        mine = tuple(next(slots) for _ in range(_count(shape)))
        if len(shape) > 1 and shape[1] == "among":
            found.append((shape[2], Filter(shape[4], mine)))
    return found


def _count(shape: tuple[Any, ...]) -> int:
    """The number of slots of a shape."""
    head = shape[0]
    if head in ("$and", "$or", "$not"):
        return sum(map(_count, shape[1:]))
    if head.startswith("$"):
        return 0
    how = shape[1]
    if how in ("in", "not_in"):
        return int(shape[2])
    if how == "among":
        return _count(shape[4])
    return {"between": 2, "isnull": 0, "notnull": 0}.get(how, 1)


#: By kind, the types of parsed values that Python compares as the database does.
_KINDS: dict[str, frozenset[type]] = {
    name: frozenset({kind})
    for name, kind in (
        ("str", str),
        ("int", int),
        ("float", float),
        ("bool", bool),
        ("date", date),
        ("datetime", datetime),
        ("decimal", Decimal),
        ("time", time),
        ("uuid", UUID),
    )
}


def _ask(row: Row) -> bool | None:
    return None


class _Compiler:
    def __init__(self, model: Model, is_sqlite: bool):
        self._model = model
        self._is_sqlite = is_sqlite

    def values(self, shape: tuple[Any, ...], slots: list[Slot]) -> list[Any] | None:
        """The values that a condition compares its field with, where Python knows them; else ``None``."""
        field = self._model.fields[shape[0]]
        if compared_by(field, self._is_sqlite) is None:
            return None
        values: list[Any] = []
        for _, value in slots:
            values += value if type(value) is tuple else (value,)
        kinds = {type(value) for value in values}
        if len(kinds) > 1 or Unfit in kinds or not kinds <= _KINDS[field.kind.name]:
            return None
        # NaN is equal to itself for a database.
        if any(value != value for value in values):
            return None
        return values

    def test(self, shape: tuple[Any, ...], slots: Iterator[Slot]) -> Test:
        head = shape[0]
        if head == "$true":
            return lambda row: True
        if head == "$false":
            return lambda row: False
        if head == "$not":
            return _not(self.test(shape[1], slots))
        if head in ("$and", "$or"):
            parts = [self.test(part, slots) for part in shape[1:]]
            if len(parts) == 1:
                return parts[0]
            return _all(parts) if head == "$and" else _any(parts)
        return self._condition(shape, [next(slots) for _ in range(_count(shape))])

    def _condition(self, shape: tuple[Any, ...], slots: list[Slot]) -> Test:
        name, how = shape[0], shape[1]
        field = self._model.fields[name]
        if how in ("isnull", "notnull"):
            return _ask if field.kind.name == "json" else _null(name, how == "isnull")
        if how in ("like", "contains", "endswith"):
            return self._textual(shape, slots)
        values = self.values(shape, slots)
        if values is None:
            return _ask
        if how in _ORDERED:
            column = field.column
            if field.kind.name == "str" and not (column is not None and column.by_code_point):
                return _ask
            if how == "between":
                return _between(name, values[0], values[1])
            return _compared(name, _COMPARISONS[how], values[0])
        if how in ("eq", "same"):
            return _equal(name, values[0])
        if how == "ne":
            return _not_equal(name, values[0])
        if how in ("in", "listed"):
            return _among(name, frozenset(values))
        if how in ("not_in", "not_listed"):
            return _not_among(name, frozenset(values))
        return _ask

    def _textual(self, shape: tuple[Any, ...], slots: list[Slot]) -> Test:
        name, how = shape[0], shape[1]
        column = self._model.fields[name].column
        if compared_by(self._model.fields[name], self._is_sqlite) is None or column is None or column.caseless:
            return _ask
        ((kind, text),) = slots
        if how == "like":
            # A text and then anything is what startswith asks for; other patterns may take very long.
            plain = text[:-1].replace("\\\\", "").replace("\\%", "").replace("\\_", "")
            if kind != PATTERN or not text.endswith("%") or text.endswith("\\%") or any(c in plain for c in "%_\\"):
                return _ask
            start = re.sub(r"\\(.)", r"\1", text[:-1], flags=re.DOTALL)
            return _texted(name, lambda value: value.startswith(start))
        if kind != LITERAL or column.padded or "\0" in text:
            return _ask
        if how == "contains":
            return _texted(name, lambda value: text in value)
        return _texted(name, lambda value: value.endswith(text))


def _not(part: Test) -> Test:
    def test(row: Row) -> bool | None:
        verdict = part(row)
        return None if verdict is None else not verdict

    return test


def _all(parts: list[Test]) -> Test:
    def test(row: Row) -> bool | None:
        known: bool | None = True
        for part in parts:
            verdict = part(row)
            if verdict is False:
                return False
            if verdict is None:
                known = None
        return known

    return test


def _any(parts: list[Test]) -> Test:
    def test(row: Row) -> bool | None:
        known: bool | None = False
        for part in parts:
            verdict = part(row)
            if verdict:
                return True
            if verdict is None:
                known = None
        return known

    return test


def _null(name: str, wanted: bool) -> Test:
    return lambda row: (row.stored(name) is None) is wanted


def _equal(name: str, wanted: Any) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        if value is UNKNOWN:
            return False if row.differs(name, wanted) else None
        return bool(value == wanted)

    return test


def _not_equal(name: str, wanted: Any) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        if value is UNKNOWN:
            return True if row.differs(name, wanted) else None
        return bool(value != wanted)

    return test


def _among(name: str, wanted: frozenset[Any]) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        if value is UNKNOWN:
            return False if all(row.differs(name, each) for each in wanted) else None
        return value is not None and value in wanted

    return test


def _not_among(name: str, wanted: frozenset[Any]) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        if value is UNKNOWN:
            return True if all(row.differs(name, each) for each in wanted) else None
        return value is None or value not in wanted

    return test


def _compared(name: str, compare: Callable[[Any, Any], Any], wanted: Any) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        return None if value is UNKNOWN else value is not None and bool(compare(value, wanted))

    return test


def _between(name: str, low: Any, high: Any) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        return None if value is UNKNOWN else value is not None and bool(low <= value <= high)

    return test


def _texted(name: str, matches: Callable[[str], bool]) -> Test:
    def test(row: Row) -> bool | None:
        value = row.compared(name)
        return None if value is UNKNOWN else value is not None and matches(value)

    return test
