"""The types of fields, and their form in JSON.

What a read returns is accepted again by writes and filters:

============  ====================================  ===========================================
type          in JSON                               in Python
============  ====================================  ===========================================
str           string                                ``str``
int           number, 64 bit                        ``int``
float         number                                ``float``
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
datetime, a datetime without an offset (taken as UTC), a UUID without hyphens, in capitals or braces.

What databases hold and Python or JSON has no form for is the text that PostgreSQL writes: ``"NaN"``, ``"Infinity"``
and ``"-Infinity"`` for a float or a decimal, and :class:`Beyond` for a date, datetime or time.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal, InvalidOperation
from io import BytesIO
from itertools import chain
from typing import Any
from uuid import UUID

import msgspec

from zcomm.wire.frames import depth_within

__all__ = [
    "KINDS",
    "Beyond",
    "Kind",
    "Spelled",
    "decimal_parser",
    "is_small",
    "json_pieces",
    "json_raw",
    "json_text",
    "json_value",
    "kind_named",
    "raw_text",
    "show_datetime",
]

MAX_INT = 2**63 - 1
MIN_INT = -(2**63)
#: Significant digits, and places on either side of the point, of a decimal.
MAX_DIGITS = 38
MAX_JSON_DEPTH = 64
#: The digits of an integer from 2**53 on.
_LARGE = re.compile(r"-?[1-9][0-9]{15,18}\Z")
#: Bits of a whole number within a JSON value, and digits of one that another program wrote: as Python reads of a text.
MAX_JSON_INT_BITS = 14_000
MAX_JSON_DIGITS = 4000
_PLAIN = frozenset({float, bool, type(None)})
_JSON_TYPES = frozenset({dict, list, str, int, float, bool, type(None)})
#: How many values Python writes as JSON in a moment. Meanwhile no other thread runs.
_IN_A_MOMENT = 1000
#: What a JSON text has where it may not say the same as Python's values: a number of many digits or with an exponent,
#: half of a character, a zero with a sign. Told apart by their first character, most of a text is passed over at once.
_DELICATE = re.compile(r"[-.0-9\\](?:(?<=[.0-9])[.0-9]{16}|(?<=[0-9])[eE]|(?<=-)0(?![.0-9])|(?<=\\)u[dD][89a-fA-F])")
#: One byte for digits and points, one for exponents and one for signs, none of which is in a text of JSON by itself: by
#: these most texts are seen to have no number that is worth a look.
_CLASSES = bytes.maketrans(b"0123456789.eE+-", b"\0" * 11 + b"\1\1\2\2")
_LONG_RUN, _LARGE_EXPONENTS = b"\0" * 16, (b"\1\0\0\0", b"\1\2\0\0\0")
#: The numbers that may be it, among them some that stand in strings.
_DOUBTFUL = re.compile(
    rb"[0-9][0-9.eE+-]{15,}|[0-9][0-9.]*[eE][-+]?[0-9]{3,}|-0(?<=[\[,: \t\r\n]-0)(?![0-9.eE])", re.ASCII
)
_STRING_OR_NUMBER = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?[0-9][0-9.eE+-]*+', re.DOTALL)
#: Bytes that are looked at in one piece, within which no other thread has its turn.
_PIECE = 64 * 1024
#: Digits of a second that nobody here keeps.
_BELOW_MICROSECONDS = re.compile(r"[.,][0-9]{6}[0-9]*[1-9]", re.ASCII)

#: Decimal digits that every double keeps, and the numbers below which it has them in front of the point.
_FLOAT_DIGITS, _EXACT_FLOAT = 15, 1e15
#: Arithmetic that rounds nothing. The default context keeps 28 digits.
_EXACT = Context(prec=4000, traps=[InvalidOperation])
#: What is no number and yet a value of a float or a numeric column, as PostgreSQL writes it. Each is one object, so
#: that two filters are equal where Python takes no NaN for another.
_FLOATS = {name: float(name) for name in ("NaN", "Infinity", "-Infinity")}
_DECIMALS = {name: Decimal(name) for name in _FLOATS}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?\Z", re.ASCII)
#: What is taken of dates, times and UUIDs. Python's own parsers take more, and some of it as something else: an offset
#: after a date for a time of day, a blank or an underscore in a UUID for a digit less.
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", re.ASCII)
_CLOCK = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?"
_TIME = re.compile(r"[0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2}(?:[.,][0-9]+)?)?)?\Z", re.ASCII)
_DATETIME = re.compile(
    rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[Tt ]{_CLOCK}(?:Z|[+-][0-9]{{2}}(?::?[0-9]{{2}}(?::?[0-9]{{2}})?)?)?)?\Z",
    re.ASCII,
)
_UUID = re.compile(
    r"[0-9a-f]{32}\Z|(\{)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?(1)\})\Z",
    re.ASCII | re.IGNORECASE,
)
#: A date that PostgreSQL writes and Python does not have, and what may follow it in a datetime of UTC.
_FAR_DATE = re.compile(
    r"([0-9]{4,7})-([0-9]{2})-([0-9]{2})(?:[T ]([0-9:.]{5,15})(?:Z|\+00(?::00)?)?)?( BC)?\Z", re.ASCII
)


class Beyond(str):
    """A date, datetime or time that Python's types do not reach, as the text that PostgreSQL writes.

    ``infinity``, ``-infinity``, years before 1 and after 9999, and the time ``24:00:00``. It compares with the values
    of Python's types, and with its own kind, by where it lies in time.
    """

    _place: tuple[Any, ...]

    def __new__(cls, text: str, place: tuple[Any, ...]) -> Beyond:
        made = super().__new__(cls, text)
        made._place = place
        return made

    def _key(self, other: object) -> tuple[Any, Any]:
        if isinstance(other, Beyond):
            return self._place, other._place
        return self._place[0], 0

    def __lt__(self, other: object) -> bool:
        mine, theirs = self._key(other)
        return bool(mine < theirs)

    def __le__(self, other: object) -> bool:
        mine, theirs = self._key(other)
        return bool(mine <= theirs)

    def __gt__(self, other: object) -> bool:
        mine, theirs = self._key(other)
        return bool(mine > theirs)

    def __ge__(self, other: object) -> bool:
        mine, theirs = self._key(other)
        return bool(mine >= theirs)

    __eq__ = str.__eq__
    __hash__ = str.__hash__


class Spelled(UUID):
    """A UUID that came as a text with letters of both sizes, which a database that keeps texts may have just so.

    :ivar text: as it came.
    """

    text: str

    def __init__(self, text: str):
        super().__init__(text)
        # A UUID lets nobody set anything.
        object.__setattr__(self, "text", text)


def _beyond(text: str, timed: bool) -> Beyond | None:
    """The moment that ``text`` names, where Python has none like it.

    :param timed: whether a time of day may follow the date.
    """
    if text in ("infinity", "-infinity"):
        return Beyond(text, (1 if text == "infinity" else -1, math.inf if text == "infinity" else -math.inf))
    found = _FAR_DATE.match(text) if len(text) <= 40 else None
    if found is None or (found[4] is not None and not timed):
        return None
    year = int(found[1])
    # The year before 1 is 1 BC. The calendar repeats itself every 400 years.
    count = 1 - year if found[5] else year
    if not year or 1 <= count <= 9999:
        return None
    try:
        date(count % 400 + 400, int(found[2]), int(found[3]))
        if found[4] is not None:
            time.fromisoformat(found[4])
    except ValueError:
        return None
    return Beyond(text, (1 if count > 0 else -1, count, found[2], found[3], found[4] or ""))


def _check_text(value: str) -> str:
    # PostgreSQL cannot store NUL, and neither database a lone surrogate.
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return _check_unicode(value)


def _check_unicode(value: str) -> str:
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
    if type(value) is str and value in _FLOATS:
        return _FLOATS[value]
    if type(value) not in (int, float):
        raise ValueError("must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    if number != value:
        raise ValueError("must be a number that 64 bits hold exactly, as a float")
    return number


def decimal_parser(max_digits: int) -> Callable[[Any], Decimal]:
    """A parser of decimals that have at most ``max_digits`` digits, and as many places on either side of the point.

    Their trailing zeros are kept: 19.90 is equal to 19.9, and is written another way.
    """
    longest = 2 * max_digits + 4

    def parse(value: Any) -> Decimal:
        if type(value) is str and value in _DECIMALS:
            return _DECIMALS[value]
        try:
            # By way of the text, so that 0.1 is a tenth and not its nearest binary fraction.
            text = str(value) if type(value) in (str, int, float, Decimal) else ""
            if len(text) > longest or not _NUMBER.match(text):
                raise ValueError
            number = Decimal(text)
        except (ValueError, InvalidOperation):
            raise ValueError('must be a decimal number, as a string like "19.99"') from None
        if type(value) is float and (abs(value) >= _EXACT_FLOAT or len(number.as_tuple().digits) > _FLOAT_DIGITS):
            # It may have been written with digits that a double does not have, and nobody can tell which.
            raise ValueError(f'must be a string, like "19.99", to have more than {_FLOAT_DIGITS} digits')
        if not number:
            number = abs(number)
        plain = number.normalize(_EXACT).as_tuple() if number else Decimal(0).as_tuple()
        digits, exponent, places = len(plain.digits), plain.exponent, number.as_tuple().exponent
        if (
            not isinstance(exponent, int)
            or not isinstance(places, int)
            or digits > max_digits
            or not (-max_digits <= exponent and digits + exponent <= max_digits)
        ):
            raise ValueError(f"must have at most {max_digits} digits")
        # Zeros that an exponent puts beyond all bounds, and not one that was written.
        return number if -longest <= places <= 0 else number.quantize(Decimal(1), context=_EXACT)

    return parse


def _parse_bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("must be true or false")
    return value


def _parse_date(value: Any) -> date | Beyond:
    if type(value) is date:  # what YAML makes of a default
        return value
    try:
        if type(value) is not str or not _DATE.match(value):
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        far = _beyond(value, False) if type(value) is str else None
        if far is not None:
            return far
        raise ValueError('must be a date like "2024-10-15"') from None


def _check_fraction(value: Any) -> None:
    if type(value) is str and len(value) <= 60 and _BELOW_MICROSECONDS.search(value):
        raise ValueError("must have at most 6 digits after the seconds")


def _parse_datetime(value: Any) -> datetime | Beyond:
    _check_fraction(value)
    try:
        if type(value) is str and len(value) <= 40 and _DATETIME.match(value):
            value = datetime.fromisoformat(value)
        elif type(value) is date:
            value = datetime(value.year, value.month, value.day)
        if not isinstance(value, datetime):
            raise ValueError
        if value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value.astimezone(UTC)
    except (ValueError, OverflowError):
        far = _beyond(value, True) if type(value) is str else None
        if far is not None:
            return far
        raise ValueError('must be a date and time like "2024-10-15T08:30:00Z"') from None


def _parse_time(value: Any) -> time | Beyond:
    if value == "24:00:00":
        return Beyond(value, (1,))
    _check_fraction(value)
    try:
        if type(value) is not str or len(value) > 20 or not _TIME.match(value):
            raise ValueError
        return time.fromisoformat(value)
    except ValueError:
        raise ValueError('must be a time like "08:30:00"') from None


def _parse_uuid(value: Any) -> UUID:
    if isinstance(value, UUID):
        return value
    try:
        if type(value) is not str or not _UUID.match(value):
            raise ValueError
        return UUID(value) if value.islower() or value.upper() == value else Spelled(value)
    except ValueError:
        raise ValueError('must be a UUID like "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10"') from None


def _parse_bytes(value: Any) -> bytes:
    try:
        if type(value) is not str:
            raise ValueError
        decoded = base64.b64decode(value, validate=True)
        # The last character may have bits that belong to no byte.
        if base64.b64encode(base64.b64decode(value[-4:])).decode() != value[-4:]:
            raise ValueError
        return decoded
    except (ValueError, binascii.Error):
        raise ValueError("must be a base64 string") from None


def _parse_json(value: Any) -> Any:
    # All values of one depth at once: one by one a message of them would take a third of a second.
    layer: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        types = set(map(type, layer))
        if not types <= _JSON_TYPES:
            raise ValueError("must be a JSON value")
        if int in types:
            numbers = layer if len(types) == 1 else [item for item in layer if type(item) is int]
            if max(max(numbers).bit_length(), min(numbers).bit_length()) > MAX_JSON_INT_BITS:
                raise ValueError("must not have numbers of more than 4000 digits")
        if float in types and not all(math.isfinite(item) for item in layer if type(item) is float):
            raise ValueError("must have finite numbers")
        if str in types:
            # JSON has a way to write NUL. Where a column has none, it says so.
            _check_unicode("".join([item for item in layer if type(item) is str]))
        below: list[Any] = []
        if dict in types:
            objects = [item for item in layer if type(item) is dict]
            keys = list(chain.from_iterable(objects))
            if not set(map(type, keys)) <= {str}:
                raise ValueError("must have strings as keys")
            _check_unicode("".join(keys))
            below += chain.from_iterable(item.values() for item in objects)
        if list in types:
            below += chain.from_iterable([item for item in layer if type(item) is list])
        if not below:
            return value
        layer = below
    raise ValueError(f"must not be nested deeper than {MAX_JSON_DEPTH} levels")


def show_datetime(value: datetime) -> str:
    """A datetime in UTC as JSON has it; a fraction stands there only when there is one."""
    return value.replace(tzinfo=None).isoformat() + "Z"


def _same(value: Any) -> Any:
    return value


def _show_float(value: float) -> float | str:
    return value if math.isfinite(value) else str(Decimal(value))


def _show_decimal(value: Decimal) -> str:
    return format(value, "f")


def _show_moment(value: date | time | Beyond) -> str:
    return str(value) if isinstance(value, Beyond) else value.isoformat()


def _show_datetime(value: datetime | Beyond) -> str:
    return str(value) if isinstance(value, Beyond) else show_datetime(value)


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
        Kind(name="float", parse=_parse_float, show=_show_float),
        Kind(name="decimal", parse=decimal_parser(MAX_DIGITS), show=_show_decimal),
        Kind(name="bool", parse=_parse_bool),
        Kind(name="date", parse=_parse_date, show=_show_moment),
        Kind(name="datetime", parse=_parse_datetime, show=_show_datetime),
        Kind(name="time", parse=_parse_time, show=_show_moment),
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
    if type(value) not in (dict, list) or is_small(value, 10 * _IN_A_MOMENT):
        return _WRITER.encode(value)
    return "".join(json_pieces(value, _WRITER))


def is_small(value: Any, room: int = _IN_A_MOMENT) -> bool:
    """Whether looking through ``value`` takes no time: whether it has no more values than ``room``.

    Long texts and numbers count for as many as take the time that they do. Nothing beyond ``room`` is looked at.
    """
    todo = [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind is str:
            room -= len(item) >> 8
        elif kind is int:
            room -= item.bit_length() >> 6
        elif kind is dict or kind is list:
            room -= len(item)
            if room >= 0:
                todo += item.values() if kind is dict else item
        if room < 0:
            return False
    return True


def json_pieces(value: Any, writer: json.JSONEncoder) -> list[str]:
    """The text that ``writer`` makes of a value, in pieces that are made one by one, each in a moment."""
    made: list[str] = []
    _write_pieces(value, writer, made)
    return made


def _is_plain(values: list[Any]) -> bool:
    """Whether any of ``values`` is written in no time."""
    types = set(map(type, values))
    return types <= _PLAIN or (types <= _PLAIN | {int} and all(-(2**63) <= each < 2**63 for each in values if each))


def _write_pieces(value: Any, writer: json.JSONEncoder, made: list[str]) -> None:
    if type(value) not in (list, dict):
        made.append(writer.encode(value))
        return
    is_object = type(value) is dict
    begin, end = "{}" if is_object else "[]"
    if value and not is_object and _is_plain(value):
        parts = [value[at : at + _IN_A_MOMENT] for at in range(0, len(value), _IN_A_MOMENT)]
        made.append(begin + writer.item_separator.join([writer.encode(part)[1:-1] for part in parts]) + end)
        return
    items: Iterable[Any] = value
    if is_object:
        items = sorted(value.items()) if writer.sort_keys else value.items()
    waiting: list[Any] = []
    left = _IN_A_MOMENT
    made.append(begin)
    comma = ""

    def write() -> None:
        nonlocal comma, left
        if waiting:
            made.append(comma + writer.encode(dict(waiting) if is_object else waiting)[1:-1])
            comma, left = writer.item_separator, _IN_A_MOMENT
            waiting.clear()

    for item in items:
        child = item[1] if is_object else item
        if type(child) in (list, dict) and child:
            write()
            made.append(f"{comma}{writer.encode(item[0])}{writer.key_separator}" if is_object else comma)
            _write_pieces(child, writer, made)
            comma = writer.item_separator
            continue
        waiting.append(item)
        left -= 1 + (child.bit_length() >> 6 if type(child) is int else 0)
        if left <= 0:
            write()
    write()
    made.append(end)


def json_value(text: str) -> Any:
    """The value of a JSON text that any program may have written, such that JSON can be made of it again.

    A number that neither a double nor an integer of ``MAX_JSON_DIGITS`` holds exactly is a string of its digits; NaN
    and infinity, which JSON does not have, are their names. A value that is nested deeper than ``MAX_JSON_DEPTH``
    levels, or has half a character (``"\\ud800"``), is ``text`` itself.

    :raises ValueError: for a text that is no JSON.
    """
    delicate = _DELICATE.search(text) is not None
    try:
        value = (_READER if delicate else _PLAIN_READER).decode(text)
    except RecursionError:
        return text
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _deeper_than(value, MAX_JSON_DEPTH):
        return text
    if delicate:
        try:
            json_text(value).encode()
        except UnicodeEncodeError:
            return text
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for each in layer
            for child in (each.values() if type(each) is dict else each if type(each) is list else ())
            if type(child) in (dict, list)
        ]
        if not layer:
            return False
    return True


def _number_of(text: str) -> float | str:
    number = float(text)
    if repr(number) == text:
        return number
    try:
        return number if math.isfinite(number) and Decimal(repr(number)) == Decimal(text) else text
    except InvalidOperation:
        return text


def _whole_of(text: str) -> float | int | str:
    if text == "-0":
        return -0.0
    return int(text) if len(text) <= MAX_JSON_DIGITS else text


_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_PLAIN_READER = json.JSONDecoder(parse_constant=str)
_READER = json.JSONDecoder(parse_float=_number_of, parse_int=_whole_of, parse_constant=str)


_read_raw = msgspec.json.Decoder(msgspec.Raw).decode


def json_raw(text: str) -> Any:
    """The value of a JSON text as of :func:`json_value`; a list or an object as the text itself, which is passed on.

    Made into objects it would take up to sixty times the memory.
    """
    if text[:1] not in ("[", "{"):
        return json_value(text)
    try:
        data = text.encode()
        raw = _read_raw(data)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        # What is no JSON to others, NaN and half of a character among it, of which no client has written any.
        return json_value(text)
    if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and not depth_within(data, MAX_JSON_DEPTH):
        return text
    if all(map(_is_kept, _doubtful(data))):
        return raw
    return msgspec.Raw(_rewritten(data))


def raw_text(value: Any) -> str:
    """As :func:`json_text`, for a row in which there are texts of :func:`json_raw`."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{json_text(name)}:{raw_text(each)}' for name, each in value.items())}}}"
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else json_text(value)


def _doubtful(data: bytes) -> Iterator[bytes]:
    """The numbers in a JSON text, in strings as well, that may not say the same as Python's values."""
    classes = data.translate(_CLASSES)
    if _LONG_RUN not in classes and b"-0" not in data and not any(each in classes for each in _LARGE_EXPONENTS):
        return
    del classes
    at, size = 0, len(data)
    while at < size:
        end = min(at + _PIECE, size)
        found = _DOUBTFUL.search(data, at, end)
        if found is None:
            # One that begins here has its place in the next piece.
            at = end if end == size else end - len(_LONG_RUN)
            continue
        if found.end() == end:
            found = _DOUBTFUL.match(data, found.start())
            if found is None:
                # What looked like one was cut off.
                at = end
                continue
        yield found[0]
        at = found.end()


def _is_kept(number: bytes) -> bool:
    """Whether a number is passed on as it stands there."""
    try:
        return repr(float(number)).encode() == number or _passed_on(number) == number
    except ValueError:
        # It is within a string.
        return True


def _passed_on(number: bytes) -> bytes:
    """What a number of a JSON text is passed on as.

    :raises ValueError: for what is none.
    """
    text = number.decode()
    value = _whole_of(text) if text.lstrip("-").isdigit() else _number_of(text)
    return number if isinstance(value, (int, float)) and number != b"-0" else json_text(value).encode()


def _rewritten(data: bytes) -> bytes:
    """A JSON text with all its numbers as they are passed on."""
    made, at = BytesIO(), 0
    for token in _STRING_OR_NUMBER.finditer(data):
        old = token[0]
        if old[:1] != b'"' and (new := _passed_on(old)) != old:
            made.write(data[at : token.start()])
            made.write(new)
            at = token.end()
    made.write(data[at:])
    return made.getvalue()
