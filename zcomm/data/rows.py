"""Values on their way into the driver, and rows on their way out, as plain JSON-ready values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zcomm.data.models import Model
from zcomm.data.requests import Plan
from zcomm.errors import Invalid

__all__ = ["RowReader", "bind"]

Converters = Mapping[str, Callable[[Any], Any]]


def bind(plan: Plan, order: Sequence[int], binders: Converters) -> list[Any]:
    """The plan's values as the driver takes them, in the order of the statement's parameters.

    :raises Invalid: for a value that this database cannot keep, naming its field.
    """
    bound = []
    for number in order:
        kind, value = plan.slots[number]
        if value is not None and kind in binders:
            try:
                value = binders[kind](value)
            except ValueError as error:
                # The written values come first in every plan.
                name = plan.written[number] if number < len(plan.written) else "where"
                raise Invalid(f"{name} {error}", {name: str(error)}) from None
        bound.append(value)
    return bound


class RowReader:
    """Makes dictionaries of the rows of one shape.

    :param names: of the columns.
    :param readers: by kind, from what the driver brings to JSON.
    """

    def __init__(self, model: Model, names: Sequence[str], readers: Converters):
        self._names = tuple(names)
        self._converted = tuple(
            (name, readers[model.fields[name].kind.name]) for name in names if model.fields[name].kind.name in readers
        )

    def read(self, rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """All of ``rows``, converted."""
        names = self._names
        made = [dict(zip(names, row, strict=False)) for row in rows]
        for name, convert in self._converted:
            for row in made:
                value = row[name]
                if value is not None:
                    row[name] = convert(value)
        return made
