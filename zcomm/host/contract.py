"""The host contract: the requests that a host's data may get, and the answers that count (docs/guide.rst, "Hosts").

zComm does not know a host's models. Whatever a client sent would reach a program that may put it into SQL, take it for
the name of a file, or not look at it at all; so a host gets known keys of the right type, and only what it said it can.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from unicodedata import normalize
from uuid import UUID

import msgspec

from zcomm.budget.written import write_json
from zcomm.data.filters import MAX_DEPTH, OPERATORS
from zcomm.data.requests import Command
from zcomm.errors import InternalError, Invalid, PermissionDenied, UnknownField
from zcomm.interfaces import NO_FIELD_RIGHTS, FieldRights
from zcomm.text import quoted

__all__ = ["can_be_cut", "checked_answer", "checked_result", "check_call", "host_request", "shown"]

#: The cure for all that a host is not trusted with.
_DECLARE_FILTERS = 'a host\'s data that takes filters says so with zcomm_filters = True (docs/guide.rst, "Hosts")'
_FAILED = "The program behind this server could not do it; its own log may say why"

_MODEL = re.compile(r"\w+\Z", re.ASCII)
#: A field, or in a filter a field with its operator.
_FIELD = re.compile(r"\w+\Z")
_ORDER_TERM = re.compile(r"\s*\w+(?:\s+(?:asc|desc))?\s*\Z", re.IGNORECASE)
_MAX_NUMBER = 2**63 - 1

#: The types of values that hold no others.
_VALUES = frozenset({bool, bytes, date, datetime, Decimal, float, int, str, time, type(None), UUID})

#: Characters of a call, each of which is looked at.
_LONGEST_CALL = 16_384


def host_request(
    command: Command, rows: Mapping[str, Any], fields: FieldRights, *, takes_filters: bool
) -> dict[str, Any]:
    """The request that a host gets for ``command``: its action and model, and what else was given of what it may have.

    :param rows: the rows in reach, by the values of their fields; all when empty.
    :param fields: the rights to the fields of the model.
    :param takes_filters: whether the host's data has declared ``zcomm_filters``.
    :raises Invalid: for what no host gets, and for what this one has not said it can.
    :raises UnknownField: for a field that is hidden: whether the host has it is not told.
    :raises PermissionDenied: where it could be led to other rows than those in reach, or to fields that are read-only.
    """
    if not isinstance(command.model, str) or not _MODEL.match(command.model):
        raise Invalid("The name of a model has letters, digits and _ only", {"model": "is no name"})
    if command.idempotency_key is not None:
        raise Invalid("_idempotencyKey: the data behind this server keeps no such keys; send the command without it")
    request = {"action": command.action, "model": command.model, **_reading(command)}
    if not takes_filters:
        if command.action != "read":
            raise Invalid(f"The data behind this server is only read: {_DECLARE_FILTERS}")
        if command.where not in (None, {}):
            raise Invalid(f"The data behind this server is read without a filter: {_DECLARE_FILTERS}")
        if rows or fields is not NO_FIELD_RIGHTS:
            raise PermissionDenied(f"Permission denied: {_DECLARE_FILTERS}")
        return request
    request |= _writing(command)
    if command.where is not None:
        request["where"] = _where(command.where)
    if command.action in ("update", "delete"):
        is_everything = _extent(command.where or {}) is None
        if is_everything and not command.all:
            raise Invalid(f'Refusing to {command.action} without a filter; name the rows in where, or say "all": true')
        if command.all and not is_everything:
            raise Invalid('Give a where or "all": true, not both')
        if command.all:
            request["all"] = True
    if fields is not NO_FIELD_RIGHTS:
        _check_fields(request, fields)
    return _confined(request, rows) if rows else request


def shown(answer: Any, hide: frozenset[str]) -> Any:
    """``answer`` without the fields that are hidden, wherever in it they stand.

    :raises InternalError: where it is neither an object nor a list of them: nobody could tell its fields.
    """
    alike = _Alike(hide)
    if type(answer) in (list, tuple):
        return [_shown(row, alike) for row in answer]
    return _shown(answer, alike)


def can_be_cut(answer: Any, hidden: frozenset[str]) -> bool:
    """Whether ``answer`` is rows of which others can be told by leaving out fields of ``hidden``: these are there by
    their very names, and no value holds others."""
    alike = _Alike(hidden)
    rows = answer if type(answer) in (list, tuple) else [answer]
    return all(
        type(row) is dict
        and all(
            type(name) is str and type(value) in _VALUES and (name in hidden or not alike[name])
            for name, value in row.items()
        )
        for row in rows
    )


class _Alike(dict[str, bool]):
    """Whether a name may be that of one of some fields, to a database that takes names for the same; found out once for
    each name."""

    def __init__(self, fields: Iterable[str]):
        self._fields = {_folded(name) for name in fields}

    def __missing__(self, name: str) -> bool:
        self[name] = found = _folded(name) in self._fields
        return found


def _shown(row: Any, hidden: _Alike) -> Any:
    try:
        # As the client would see it, whatever it is here.
        told = msgspec.json.decode(write_json(row))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InternalError("Result not serializable") from error
    if type(told) is not dict:
        raise InternalError(_FAILED)
    return _without(told, hidden)


def _without(value: Any, hidden: _Alike) -> Any:
    if type(value) is list:
        return [_without(each, hidden) for each in value]
    if type(value) is not dict:
        return value
    return {name: _without(each, hidden) for name, each in value.items() if not hidden[name]}


def check_call(key: str, horizontal: Any) -> None:
    """Refuse what is not ``key`` itself, or ``KEY(…)`` with nothing in the parentheses that could be a call of its own.

    A granted key brings no other one along, whether a host goes by the first parenthesis, the last one, pairs or lines,
    and whether it takes look-alikes of a sign for that sign.

    :raises Invalid: naming what is wrong.
    """
    if isinstance(horizontal, str) and horizontal == key:
        return
    if not (isinstance(horizontal, str) and horizontal.startswith(f"{key}(") and horizontal.endswith(")")):
        raise _unusable("zHorizontal", f'must be the text "{key}(…)", or left out')
    if len(horizontal) > _LONGEST_CALL:
        raise _unusable("zHorizontal", f"is longer than {_LONGEST_CALL} characters")
    inner = horizontal[len(key) + 1 : -1]
    if not inner.isprintable():
        raise _unusable("zHorizontal", "must have no line breaks and no invisible characters")
    if any(sign in normalize("NFKC", inner) for sign in "()"):
        raise _unusable(
            "zHorizontal", "must be one call, with no parentheses within its own; a function of zFunc takes any text"
        )


def checked_answer(answer: Any) -> Any:
    """``answer`` of a host's data, unless it says that the request failed: ``False``, ``None``, ``"error"``, or a list
    with one of them in the place of a row.

    :raises InternalError: for a failure.
    """
    rows = answer if isinstance(answer, list | tuple) else (answer,)
    if any(row is None or _is_failure(row) for row in rows):
        raise InternalError(_FAILED)
    return answer


def checked_result(result: Any) -> Any:
    """``result`` of a host's dispatcher, unless it says that the command failed: ``False`` or ``"error"``. Nothing at
    all is what many commands of a zCLI return.

    :raises InternalError: for a failure.
    """
    if _is_failure(result):
        raise InternalError(_FAILED)
    return result


def _is_failure(answer: Any) -> bool:
    return answer is False or isinstance(answer, str) and answer == "error"


def _reading(command: Command) -> dict[str, Any]:
    """What a read may say beside its filter."""
    given: dict[str, Any] = {}
    if command.fields is not None:
        given["fields"] = _names("fields", command.fields)
    order = command.order_by
    if order is not None:
        terms = order.split(",") if isinstance(order, str) else order
        if not isinstance(terms, list) or not all(isinstance(term, str) and _ORDER_TERM.match(term) for term in terms):
            raise _unusable("order_by", 'must be a text like "created_at DESC, name", or a list of such')
        given["order_by"] = order
    for name, number in (("limit", command.limit), ("offset", command.offset)):
        if number is None:
            continue
        if type(number) is not int or not 0 <= number <= _MAX_NUMBER:
            raise _unusable(name, "must be a whole number that is not negative")
        given[name] = number
    return given


def _writing(command: Command) -> dict[str, Any]:
    """What a write says beside its filter."""
    given: dict[str, Any] = {}
    values = command.values
    if values is not None:
        if not isinstance(values, dict) or not all(map(_FIELD.match, values)):
            raise _unusable("values", "must be an object of fields, whose names have letters, digits and _ only")
        given["values"] = values
    if command.conflict_fields is not None:
        given["conflict_fields"] = _names("conflict_fields", command.conflict_fields)
    return given


def _names(key: str, names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) and _FIELD.match(name) for name in names):
        raise _unusable(key, "must be a list of fields, whose names have letters, digits and _ only")
    return names


def _unusable(key: str, reason: str) -> Invalid:
    return Invalid(f"{key} {reason}", {key: reason})


def _where(where: Any, depth: int = 1) -> dict[str, Any]:
    """A filter of the form that docs/protocol.rst describes; fields, operators and values are the host's to know."""
    if not isinstance(where, dict):
        raise _unusable("where", 'must be an object like {"age__gte": 18}')
    if depth > MAX_DEPTH:
        raise _unusable("where", f"is nested more than {MAX_DEPTH} deep")
    for key, value in where.items():
        if key in ("$or", "$and"):
            if not isinstance(value, list):
                raise _unusable("where", f"{key} takes a list of filters")
            for part in value:
                _where(part, depth + 1)
        elif key == "$not":
            _where(value, depth + 1)
        elif not _FIELD.match(key):
            raise _unusable("where", f"{quoted(key)} is no field: names have letters, digits and _ only")
    return where


def _extent(where: dict[str, Any]) -> bool | None:
    """How much a filter selects: ``None`` is every row, ``False`` none, ``True`` depends on the rows."""
    extents: list[bool | None] = []
    for key, value in where.items():
        if key == "$and":
            extents.append(_all(map(_extent, value)))
        elif key == "$or":
            extents.append(_negated(_all(_negated(_extent(part)) for part in value)))
        elif key == "$not":
            extents.append(_negated(_extent(value)))
        else:
            extents.append(True)
    return _all(extents)


def _all(extents: Iterable[bool | None]) -> bool | None:
    found = set(extents)
    return False if False in found else True if True in found else None


def _negated(extent: bool | None) -> bool | None:
    return {None: False, False: None, True: True}[extent]


def _check_fields(request: dict[str, Any], rights: FieldRights) -> None:
    """Refuse what names a field that is hidden, as if it were not there, or writes one that is read-only."""
    hidden, readonly = _Alike(rights.hide), _Alike(rights.readonly)
    model = request["model"]
    order = request.get("order_by", [])
    terms = order.split(",") if isinstance(order, str) else order
    values = request.get("values", {})
    for name in (
        *request.get("fields", ()),
        *(term.split()[0] for term in terms),
        *values,
        *request.get("conflict_fields", ()),
    ):
        if hidden[name]:
            raise UnknownField(f"{model} has no field {quoted(name)}")
    _check_where(request.get("where", {}), hidden, model)
    protected = {name: "cannot be written" for name in values if readonly[name]}
    if protected:
        raise PermissionDenied(f"{', '.join(f'{model}.{name}' for name in protected)} cannot be written", protected)


def _check_where(where: dict[str, Any], hidden: _Alike, model: str) -> None:
    for key, value in where.items():
        if key in ("$or", "$and"):
            for part in value:
                _check_where(part, hidden, model)
        elif key == "$not":
            _check_where(value, hidden, model)
        else:
            # Whatever the host takes for a field and for an operator.
            parts = key.split("__")
            names = parts[:-1] if len(parts) > 1 and parts[-1] in OPERATORS else parts
            for name in (key, *names):
                if hidden[name]:
                    raise UnknownField(f"{model} has no field {quoted(name)}")


def _confined(request: dict[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """``request``, of no other rows than those that the policy grants."""
    if request["action"] == "upsert":
        # An existing row need not be one of them.
        raise PermissionDenied
    own = {_folded(field): field for field in rows}
    for part in ("where", "values"):
        for name, value in request.get(part, {}).items():
            # To a database OWNER may be owner, and to a program a letter that looks like another may be that one.
            field = own.get(_folded(name))
            # In Python 1 is True and 1.0; to a host, and for whoever grants rows, they are different.
            if field is not None and (name != field or type(value) is not type(rows[field]) or value != rows[field]):
                raise PermissionDenied
    if request["action"] == "create":
        return {**request, "values": {**request.get("values", {}), **rows}}
    request.pop("all", None)
    return {**request, "where": {**request.get("where", {}), **rows}}


def _folded(name: str) -> str:
    return normalize("NFKC", name).casefold()
