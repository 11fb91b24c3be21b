"""The types of fields, and their form in JSON.

What a read returns is accepted again by writes and filters:

============  ====================================  ===========================================
type          in JSON                               in Python
============  ====================================  ===========================================
str           string                                ``str``
int           number, 64 bit                        ``int``
float         number, finite                        ``float``
decimal       string, ``"19.99"``                   ``Decimal``, up to 38 digits
bool          ``true``, ``false``                   ``bool``
date          string, ``"2024-10-15"``              ``date``
datetime      string, ``"2024-10-15T08:30:00Z"``    ``datetime``, always UTC
time          string, ``"08:30:00"``                ``time``
uuid          string, 36 characters                 ``UUID``
json          any value                             the same
bytes         string, base64                        ``bytes``
============  ====================================  ===========================================

Accepted as well: numbers for a decimal, a date alone (midnight) or a time with an offset for a
datetime, a datetime without an offset (taken as UTC), a UUID without hyphens.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

__all__ = ["KINDS", "Kind", "json_text", "kind_named", "show_datetime"]

MAX_INT = 2**63 - 1
MIN_INT = -(2**63)
#: Significant digits, and places on either side of the point, of a decimal.
MAX_DIGITS = 38
MAX_JSON_DEPTH = 64
#: The digits of an integer from 2**53 on.
_LARGE = re.compile(r"-?[1-9][0-9]{15,18}\Z")


def _check_text(value: str) -> str:
    # PostgreSQL cannot store NUL, and neither database a lone surrogate.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("must be valid Unicode text") from None
    return value


def _parse_str(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("must be a string")
    return _check_text(value)


def _parse_int(value: Any) -> int:
    if type(value) is str and _LARGE.match(value):
        # As clients send it whose numbers are doubles: what they cannot hold reaches them as a text.
        value = int(value)
        if abs(value) < 2**53:
            raise ValueError("must be a whole number")
    if type(value) is not int:
        exact = type(value) is float and abs(value) >= 2**53
        raise ValueError("must be a whole number" + (", written with all its digits" if exact else ""))
    if not MIN_INT <= value <= MAX_INT:
        raise ValueError("must fit in 64 bits")
    return value


def _parse_float(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError("must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _parse_decimal(value: Any) -> Decimal:
    if type(value) not in (str, int, float, Decimal) or len(str(value)) > 80:
        raise ValueError('must be a decimal number, as a string like "19.99"')
    try:
        # By way of the text, so that 0.1 is a tenth and not its nearest binary fraction.
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError('must be a decimal number, as a string like "19.99"') from None
    if not number.is_finite():
        raise ValueError("must be a finite number")
    number = number.normalize() if number else Decimal(0)
    digits, exponent = number.as_tuple().digits, number.as_tuple().exponent
    if (
        len(digits) > MAX_DIGITS
        or not isinstance(exponent, int)
        or not (-MAX_DIGITS <= exponent and len(digits) + exponent <= MAX_DIGITS)
    ):
        raise ValueError(f"must have at most {MAX_DIGITS} digits")
    return number


def _parse_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _parse_date(value: Any) -> date:
    if type(value) is date:  # what YAML makes of a default
        return value
    try:
        if type(value) is not str or len(value) > 10:
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError('must be a date like "2024-10-15"') from None


def _parse_datetime(value: Any) -> datetime:
    try:
        if type(value) is str and len(value) <= 40:
            value = datetime.fromisoformat(value)
        elif type(value) is date:
            value = datetime(value.year, value.month, value.day)
        if not isinstance(value, datetime):
            raise ValueError
        if value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError('must be a date and time like "2024-10-15T08:30:00Z"') from None


def _parse_time(value: Any) -> time:
    try:
        if type(value) is not str or len(value) > 20:
            raise ValueError
        parsed = time.fromisoformat(value)
        if parsed.tzinfo is not None:
            raise ValueError
        return parsed
    except ValueError:
        raise ValueError('must be a time like "08:30:00"') from None


def _parse_uuid(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        if type(value) is not str or len(value) not in (32, 36):
            raise ValueError
        return UUID(value)
    except ValueError:
        raise ValueError('must be a UUID like "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"') from None


def _parse_bytes(value: Any) -> bytes:
    try:
        if type(value) is not str:
            raise ValueError
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("must be a base64 string") from None


def _parse_json(value: Any) -> Any:
    todo: list[tuple[Any, int]] = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH} levels")
        if type(item) is dict:
            for key in item:
                if type(key) is not str:
                    raise ValueError("must have strings as keys")
                _check_text(key)
            todo += [(child, depth + 1) for child in item.values()]
        elif type(item) is list:
            todo += [(child, depth + 1) for child in item]
        elif type(item) is str:
            _check_text(item)
        elif type(item) is int:
            _parse_int(item)
        elif type(item) is float:
            _parse_float(item)
        elif item is not None and type(item) is not bool:
            raise ValueError("must be a JSON value")
    return value


def show_datetime(value: datetime) -> str:
    """A datetime in UTC as JSON has it; a fraction stands there only when there is one."""
    return value.replace(tzinfo=None).isoformat() + "Z"


def _same(value: Any) -> Any:
    return value


def _show_decimal(value: Decimal) -> str:
    number = value.normalize() if value else Decimal(0)
    return format(number, "f")


def _show_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A type of field.

    :ivar name: as in a schema.
    :ivar parse: from JSON to Python; raises ``ValueError`` with a text that reads on from the field's
        name (``must be a whole number``).
    :ivar show: from Python to JSON.
    :ivar ordered: whether ``gt`` and its kin, and ordering, mean anything.
    :ivar textual: whether ``like`` and its kin do.
    :ivar comparable: whether equality does.
    """

    name: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], Any] = _same
    ordered: bool = True
    textual: bool = False
    comparable: bool = True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(name="str", parse=_parse_str, textual=True),
        Kind(name="int", parse=_parse_int),
        Kind(name="float", parse=_parse_float),
        Kind(name="decimal", parse=_parse_decimal, show=_show_decimal),
        Kind(name="bool", parse=_parse_bool),
        Kind(name="date", parse=_parse_date, show=date.isoformat),
        Kind(name="datetime", parse=_parse_datetime, show=show_datetime),
        Kind(name="time", parse=_parse_time, show=time.isoformat),
        Kind(name="uuid", parse=_parse_uuid, show=str),
        Kind(name="json", parse=_parse_json, ordered=False, comparable=False),
        Kind(name="bytes", parse=_parse_bytes, show=_show_bytes, ordered=False),
    )
}
_ALIASES = {
    "string": "str",
    "text": "str",
    "integer": "int",
    "boolean": "bool",
    "numeric": "decimal",
    "timestamp": "datetime",
}


def kind_named(name: str) -> Kind | None:
    """The kind that a schema calls ``name``, or ``None``."""
    lowered = name.lower()
    return KINDS.get(_ALIASES.get(lowered, lowered))


def json_text(value: Any) -> str:
    """A JSON value as the text that databases store."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
