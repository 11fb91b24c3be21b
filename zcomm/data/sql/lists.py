"""Lists of a filter as one parameter each: one statement serves all lengths, and takes no time to make.

SQLite reads it as JSON, PostgreSQL as an array. Both get each value just as they would alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement

__all__ = ["Listed", "array_text", "items_text", "one_item"]

Expression = ColumnElement[Any]


class Listed:
    """The values of a list, as a query of SQLite brings them.

    :param parameter: the list as JSON (:func:`items_text`).
    :param made: from a value to what the column is compared with.
    """

    def __init__(self, parameter: Any, made: Callable[[Any], Any] = lambda value: value):
        self._parameter = parameter
        self._made = made

    def mapped(self, made: Callable[[Any], Any]) -> Listed:
        """The list of what ``made`` makes of each value."""
        return Listed(self._parameter, lambda value: made(self._made(value)))

    def of(self, forms: Callable[[Any], Sequence[Any]] = lambda value: (value,)) -> Any:
        """A query for ``forms`` of all values."""
        rows = sa.func.json_each(self._parameter).table_valued("value", "type")
        # An expression and no column, so that it gets the affinity of what it is compared with, as a parameter does.
        value = sa.case(
            (rows.c.type == sa.literal_column("'array'"), sa.func.zcomm_item(rows.c.value)), else_=rows.c.value
        )
        queries = [sa.select(form).select_from(rows) for form in forms(self._made(value))]
        return queries[0] if len(queries) == 1 else sa.union_all(*queries)


def items_text(values: Iterable[Any]) -> str:
    """Values for SQLite as JSON. Those that SQLite would not read of it as they are come as pairs of their type and a
    text (:func:`one_item`): it reads a number up to its last digit, and a text up to a NUL.
    """
    return json.dumps([_item(value) for value in values], ensure_ascii=False, separators=(",", ":"))


def _item(value: Any) -> Any:
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, str) and "\0" in value:
        return ["str", value]
    return value


def one_item(text: str) -> Any:
    """The value of a pair of :func:`items_text`, which SQLite calls for."""
    kind, value = json.loads(text)
    return float.fromhex(value) if kind == "float" else bytes.fromhex(value) if kind == "bytes" else value


def array_text(values: Iterable[Any]) -> str:
    """Values for PostgreSQL as the text of an array."""
    return "{" + ",".join(_element(value) for value in values) + "}"


def _element(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (int, float)):
        return repr(value)
    text = f"\\x{value.hex()}" if isinstance(value, bytes) else str(value)
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'
