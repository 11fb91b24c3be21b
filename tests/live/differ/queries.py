"""Random live queries."""

from __future__ import annotations

from random import Random
from typing import Any

from live.differ.models import Field, Model

__all__ = ["query_of"]

_ORDERED = ("gt", "gte", "lt", "lte", "between")
_TEXTUAL = ("like", "ilike", "contains", "startswith", "endswith")


def query_of(dice: Random, model: Model) -> dict[str, Any]:
    """What zLive and a read of ``model`` are asked: ``where``, ``fields``, ``order_by`` and ``limit``."""
    asked: dict[str, Any] = {}
    if dice.random() < 0.55:
        where = _where(dice, model, 1)
        asked[dice.choice(["where", "where", "filters"])] = where
    names = [each.name for each in model.fields if not each.hidden or dice.random() < 0.02]
    if dice.random() < 0.7:
        able = [name for name in names if model.field(name).kind != "json" or dice.random() < 0.03]
        picked = dice.sample(able, min(len(able), dice.choice([1, 1, 2])))
        terms = [f"{name}{dice.choice(['', ' asc', ' DESC', ' desc'])}" for name in picked]
        asked["order_by"] = dice.choice([terms, ", ".join(terms)])
    if dice.random() < 0.65:
        asked["limit"] = dice.choice([1, 2, 3, 3, 4, 5, 8, 13, 20])
    if dice.random() < 0.4:
        asked["fields"] = dice.sample(names, dice.randrange(1, len(names) + 1))
    return asked


def _where(dice: Random, model: Model, depth: int) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for _ in range(dice.choice([0, 1, 1, 1, 1, 2] if depth == 1 else [0, 1, 1, 2, 2, 3])):
        if depth < 4 and dice.random() < 0.3:
            how = dice.choice(["$or", "$and", "$not"])
            if how == "$not":
                where[how] = _where(dice, model, depth + 1)
            else:
                where[how] = [_where(dice, model, depth + 1) for _ in range(dice.choice([0, 1, 2, 2, 3]))]
        else:
            where |= _condition(dice, dice.choice(model.fields))
    return where


def _condition(dice: Random, field: Field) -> dict[str, Any]:
    name, pool = field.name, field.pool or [1, 2, 3]

    def value() -> Any:
        return field.value(dice)

    if field.kind == "json":
        return dice.choice([{f"{name}__isnull": dice.random() < 0.5}, {name: None}])
    how = dice.random()
    if how < 0.12:
        return dice.choice([{f"{name}__isnull": dice.random() < 0.5}, {name: None}, {f"{name}__ne": None}])
    if how < 0.35:
        return {dice.choice([name, f"{name}__eq", f"{name}__ne"]): value()}
    if how < 0.55:
        many = [value() for _ in range(dice.choice([0, 1, 2, 3, 5, 18]))]
        return {dice.choice([name, f"{name}__in", f"{name}__not_in"]): many}
    if field.kind == "str" and how < 0.8:
        text = str(dice.choice(pool))
        operator = dice.choice(_TEXTUAL)
        if operator in ("like", "ilike"):
            return {f"{name}__{operator}": _pattern(dice, text)}
        start = dice.randrange(len(text) + 1)
        return {f"{name}__{operator}": text[start : start + dice.randrange(4)]}
    operator = dice.choice(_ORDERED)
    return {f"{name}__{operator}": [value(), value()] if operator == "between" else value()}


def _pattern(dice: Random, text: str) -> str:
    """A pattern that is likely to fit ``text``, or that text in other letters."""
    text = dice.choice([text, text.upper(), text.lower()])
    made = ""
    for character in text:
        what = dice.random()
        if what < 0.25:
            made += "_"
        elif what < 0.35:
            made += "%"
        else:
            made += "\\" + character if character in "\\%_" or what > 0.93 else character
    return dice.choice(["%", "", ""]) + made + dice.choice(["%", "", ""])
