"""The requests of live queries as values: what a client asks for, checked (docs/protocol.rst, "Live queries")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zcomm.data.filters import Filter
from zcomm.data.models import Model
from zcomm.data.requests import Command, Plan, make_plan, parse_command
from zcomm.errors import Invalid
from zcomm.text import did_you_mean, quoted

__all__ = ["MAX_ROWS", "Live", "Question", "parse_live", "parse_name", "parse_unsubscribe", "question_of"]

#: Rows of a live query, and characters of the name that a client gives it.
MAX_ROWS, MAX_NAME = 1000, 64
#: Bytes that the rows of one may come to.
MAX_BYTES = 4 * 1024 * 1024
_LIVE = ("query", "model", "where", "filters", "fields", "order_by", "limit", "known")
_DIGEST = re.compile(r"[0-9a-f]{16}\Z")
_LIMIT = f"must be a whole number from 1 to {MAX_ROWS}"


@dataclass(frozen=True, slots=True)
class Live:
    """The request ``zLive``.

    :ivar query: the name of the query among those of its connection.
    :ivar command: what is asked, as of a read.
    :ivar known: the digest of what the client has; empty where it has nothing.
    """

    query: str
    command: Command
    known: str = ""


class Question(NamedTuple):
    """The part of a live query that clients share: whoever has the same question has the same rows.

    :ivar where: with the rows that are in reach.
    :ivar order: the fields, each with whether it descends; the key is in it.
    :ivar limit: ``None`` where it has none, and all rows are meant.
    """

    model: str
    fields: tuple[str, ...]
    where: Filter
    order: tuple[tuple[str, bool], ...]
    limit: int | None


def _wrong(field: str, reason: str) -> Invalid:
    return Invalid(f"{field} {reason}", {field: reason})


def _query(asked: dict[str, Any]) -> str:
    if "query" not in asked:
        raise _wrong("query", "is missing")
    query = asked["query"]
    if type(query) is str and 0 < len(query) <= MAX_NAME and query.isascii() and query.isprintable():
        return query
    raise _wrong("query", f"must be a text of 1 to {MAX_NAME} printable ASCII characters")


def parse_name(horizontal: Any) -> str:
    """Read the name of the query that ``zLive`` asks for.

    :raises Invalid: naming the field that is wrong.
    """
    if type(horizontal) is not dict:
        raise Invalid('zHorizontal must be an object like {"query": "q1", "model": "Users"}')
    return _query(horizontal)


def parse_live(horizontal: dict[str, Any]) -> Live:
    """Read ``zLive``.

    :raises Invalid: naming the field that is wrong.
    """
    for name in horizontal:
        if name not in _LIVE:
            reason = f"is no field of zLive{did_you_mean(name, _LIVE)}"
            raise Invalid(f"{quoted(name)} {reason}", {name: reason})
    query, known = _query(horizontal), horizontal.get("known")
    if known is not None and not (type(known) is str and _DIGEST.match(known)):
        raise _wrong("known", "must be the digest of an answer, 16 hexadecimal digits")
    limit = horizontal.get("limit")
    if limit is not None and not (type(limit) is int and 1 <= limit <= MAX_ROWS):
        raise _wrong("limit", _LIMIT)
    asked = {name: value for name, value in horizontal.items() if name not in ("query", "known")}
    return Live(query, parse_command({"action": "read", **asked}), known or "")


def parse_unsubscribe(horizontal: dict[str, Any]) -> str:
    """Read ``zUnsubscribe`` with ``query``; returns the name of the query.

    :raises Invalid: naming the field that is wrong.
    """
    for name in horizontal:
        if name == "topic":
            raise _wrong("topic", "and query: give one of them")
        if name != "query":
            reason = f"is no field of zUnsubscribe{did_you_mean(name, ('query', 'topic'))}"
            raise Invalid(f"{quoted(name)} {reason}", {name: reason})
    return _query(horizontal)


def question_of(command: Command, model: Model, rows: Mapping[str, Any]) -> tuple[Question, Plan]:
    """Check a request against its model.

    :param model: as it is for who asks (:meth:`zcomm.data.models.Model.restricted`).
    :param rows: the rows in reach, by the values of their fields.
    :return: the question, and the plan of the read of as many rows as one may have and one.
    :raises CommandError: naming the field and what is wrong with it.
    """
    if any(name not in model.visible for name in model.key):
        raise Invalid(f"{model.name} cannot be asked for live: its key is hidden")
    plan = make_plan(command, model, MAX_ROWS, rows)
    _, fields, where, order = plan.shape
    fields = tuple(name for name in model.key if name not in fields) + fields
    order += tuple((name, False) for name in model.key if name not in dict(order))
    question = Question(model.name, fields, Filter(where, plan.slots[:-2]), order, command.limit)
    slots = (*question.where.slots, ("int", MAX_ROWS + 1), ("int", 0))
    return question, replace(plan, shape=("read", fields, where, order), slots=slots, returning=fields, cap=None)
