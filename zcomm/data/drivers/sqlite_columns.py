"""The columns of SQLite's tables, which keep any value of any type: how each is read, found, ordered and written.

Other programs write dates, truth values and UUIDs in forms of their own. One form of each is shown, and it is what
filters and orders go by, on both sides. A value in no known form is shown as it is, is found by that, and is ordered as
the text or number that it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.elements import ColumnElement, UnaryExpression
from sqlalchemy.sql.operators import custom_op

from zcomm.data.drivers.sqlite_texts import decoded
from zcomm.data.models import Column, Field
from zcomm.data.sql.lists import Listed, one_item
from zcomm.data.values import KINDS, Beyond, Spelled, json_raw, json_text, json_value, show_datetime

__all__ = ["FUNCTIONS", "Seen", "affinity", "column_of"]

Expression = ColumnElement[Any]
#: What an operator asks of a column and of what it is compared with; "in" and "not_in" may have a list that is one.
Condition = Callable[[Expression, str, Any], ColumnElement[bool]]

#: The words that stand for a truth value, in small letters; Rails wrote t and f, others Y and N.
_TRUE = ("1", "1.0", "t", "true", "y", "yes", "on")
_FALSE = ("0", "0.0", "f", "false", "n", "no", "off")
_LONGEST_WORD = max(map(len, _TRUE + _FALSE))

#: A date, alone or with a time of day: as ISO 8601, SQLite, Ruby and Go write them. Go and Rust have nine digits of a
#: second, and Python six; Go adds the name of the zone, and the time since the program's start.
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?)((?<=\.[0-9]{6})[0-9]{1,6})?"
    r"(?: ?(Z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)(?: (?:[A-Z]{2,6}|[+-][0-9]{2,4}))?(?: m=[+-][0-9]+\.[0-9]+)?)?)?\Z",
    re.ASCII,
)
_TIME = re.compile(r"[0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2}(?:[.,][0-9]{1,6}0*)?)?)?\Z", re.ASCII)
#: The day in front of each time that Rails writes.
_RAILS_DAY = "2000-01-01 "

#: A datetime as it is written here, of a day that every month has.
_WRITTEN_HERE = re.compile(
    r"(?!0000)[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8]) (?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
    r"(?:(?!\.000000)\.[0-9]{6})?\Z",
    re.ASCII,
).match
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z", re.ASCII)
_UUID_FORM = r"\{{{0}{{8}}(?:-{0}{{4}}){{4}}{0}{{8}}\}}|{0}{{8}}(?:-{0}{{4}}){{4}}{0}{{8}}|{0}{{32}}"
#: The forms of a UUID: with hyphens, in braces or not, or bare.
_ANY_UUID = re.compile(f"(?:{_UUID_FORM.format('[0-9A-Fa-f]')})\\Z", re.ASCII)
_NUMERIC_TEXT = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*\Z", re.ASCII)
#: A text that SQLite writes of a number, where that has no more digits than a double keeps.
_WRITTEN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18}|(?:0|[1-9][0-9]*)\.(?:[0-9]*[1-9]|0))\Z", re.ASCII)

#: What is no number and yet a value of a column of numbers: as it is shown, and as SQLite makes a text of it.
_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity", "Inf", "-Inf"})
#: Characters of a text that is looked at as a number, and what is added to the place of its first digit.
_MAX_NUMBER, _PLACES = 1000, 50_000_000
_EXACT = Context(prec=_MAX_NUMBER, Emax=MAX_EMAX, Emin=MIN_EMIN)
_NINES = str.maketrans("0123456789", "9876543210")

#: Julian days of the years 1 to 9999, which begin at noon. Programs that write them have fractions, so that a whole
#: number is none: it may be the milliseconds or the seconds of a day in 1970.
_FIRST_JULIAN, _LAST_JULIAN = 1721425.5, 5373484.5
#: The seconds since 1970 of 1990 and 2100. In a column of no whole numbers those in between are seconds, and the others
#: milliseconds, as JavaScript and Prisma write them; their 1990 would be 40 days of 1970.
_SECONDS = (631_152_000, 4_102_444_800)
#: In a column of whole numbers, what is smaller is seconds: as milliseconds it would be a day of 1966 to 1973.
_MILLISECONDS = 100_000_000_000
_EPOCH = datetime(1970, 1, 1)
#: Of how many values that came last the form is taken for the one in use, where others before them have another.
_IN_USE = 20


def _text(value: Any) -> Any:
    """A value as it is shown where no form of it is known: bytes as the text that they are, infinity by its name."""
    if isinstance(value, float) and math.isinf(value):
        return KINDS["float"].show(value)
    return decoded(value) if isinstance(value, bytes) else value


#: The meaning of a column's numbers: what each seems to be, in a column of any type and in one declared for whole
#: numbers, or what all of them were found to be, in the end no moments.
_ANY, _WHOLE, _IN_SECONDS, _IN_MILLISECONDS, _IN_DAYS, _IN_NONE = range(6)
#: The last year that a number alone is taken for: milliseconds of later ones look like a date and a time in 14 digits.
_LAST_YEAR = 2500


def _of_number(number: float, unit: int) -> datetime | None:
    """The moment that a number means, in UTC.

    :param unit: the meaning of the column's numbers.
    """
    if unit == _IN_NONE:
        return None
    try:
        julian = isinstance(number, float) and _FIRST_JULIAN <= number < _LAST_JULIAN
        if julian and unit in (_ANY, _WHOLE, _IN_DAYS):
            # A double has them to a twentieth of a millisecond.
            return datetime(1, 1, 1) + timedelta(milliseconds=round((number - _FIRST_JULIAN) * 86_400_000))
        seconds = unit in (_WHOLE, _IN_SECONDS) and abs(number) < _MILLISECONDS
        if unit in (_ANY, _IN_DAYS):
            seconds = _SECONDS[0] <= number < _SECONDS[1]
        return _EPOCH + (timedelta(seconds=number) if seconds else timedelta(milliseconds=number))
    except (OverflowError, ValueError):
        return None


def _unit_of(number: float) -> int:
    """What a number alone is sure to be: one of milliseconds, seconds or days; ``_ANY`` for what may be several."""
    if isinstance(number, float) and _FIRST_JULIAN <= number < _LAST_JULIAN:
        return _IN_DAYS
    if _SECONDS[0] <= number < _SECONDS[1]:
        return _IN_SECONDS
    return _IN_MILLISECONDS if abs(number) >= _MILLISECONDS else _ANY


def _is_known(number: float, kind: str, unit: int) -> bool:
    """Whether ``number`` may be a moment of ``kind`` in the meaning that columns like its have."""
    if not math.isfinite(number):
        return True
    moment = _of_number(number, unit)
    if moment is None or moment.year > _LAST_YEAR:
        return False
    return kind == "datetime" or moment.time() == time()


def _is_calendar(number: float) -> bool:
    """Whether the digits of ``number`` are those of a date, and of a time perhaps: 20240506, 20240506070809."""
    if number != number // 1 or not 19000101 <= number < 21010000000000:
        return False
    digits = str(int(number))
    with suppress(ValueError):
        return bool(
            datetime.strptime(digits, {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits), "-"))
        )
    return False


def _of_text(text: str) -> tuple[datetime, bool, str] | None:
    """The moment that a text means by its own clock, whether that is one in UTC by what the text says, and the digits
    of its second that come after the sixth."""
    found = _MOMENT.match(text)
    if found is None:
        return None
    day, clock, rest, zone = found.groups()
    rest = (rest or "").rstrip("0")
    try:
        moment = datetime.fromisoformat(f"{day} {clock}" if clock else day)
        if zone is None or zone in ("Z", "UTC") or not zone.strip("+-0:"):
            return moment, True, rest
        return datetime.fromisoformat(f"{moment.isoformat()}{zone}"), False, rest
    except ValueError:
        return None


def _in_utc(text: str) -> tuple[datetime, str] | None:
    """The moment that a text means by its own clock, and what would be written of it if that clock were UTC's, with no
    more than six digits of a second."""
    found, parsed = _MOMENT.match(text), _of_text(text)
    if found is None or parsed is None:
        return None
    zone, head, tail = found[4], text[: found.end(2 if found[2] else 1)], text[found.end(3 if found[3] else 2) :]
    if found[2] is None:
        tail = ""
    elif zone and zone not in ("Z", "UTC"):
        blank, _, name = tail.partition(zone)
        tail = f"{blank}+{re.sub('[0-9]', '0', zone[1:])}{' UTC' if name else ''}"
    return parsed[0].replace(tzinfo=None), head + tail


def _moment(value: Any, unit: int) -> tuple[datetime, str] | None:
    """The moment that a value means, in UTC, and the digits of its second that come after the sixth."""
    if isinstance(value, (int, float)):
        moment = _of_number(value, unit)
        return None if moment is None else (moment, "")
    found = _of_text(value)
    if found is None:
        return None
    moment, utc, rest = found
    try:
        return moment if utc else moment.astimezone(UTC).replace(tzinfo=None), rest
    except OverflowError:
        return None


def _datetime_key(value: Any, unit: Any) -> Any:
    """A value of a datetime column in the form that is written here, which sorts as time does."""
    value = _text(value)
    found = None if value is None else _moment(value, unit)
    if found is None:
        return value
    moment, rest = found
    return moment.isoformat(" ", "microseconds" if rest else "auto") + rest


def _date_key(value: Any, unit: Any) -> Any:
    """A value of a date column, likewise; one with a time of day is no date."""
    value = _text(value)
    if value is None:
        return None
    moment, rest = None, ""
    if isinstance(value, (int, float)):
        moment = _of_number(value, unit)
    elif (found := _of_text(value)) is not None:
        # Midnight where it was written: it stands for the day there.
        moment, rest = found[0].replace(tzinfo=None), found[2]
    return value if moment is None or rest or moment.time() != time() else moment.date().isoformat()


def _time_key(value: Any) -> Any:
    value = _text(value)
    if isinstance(value, str):
        try:
            # All forms that a filter may ask in, for what is asked has to find what is shown so, and shorter ones.
            clock = value.removeprefix(_RAILS_DAY)
            return time.fromisoformat(clock).isoformat() if _TIME.match(clock) else value
        except ValueError:
            pass
    return value


def _uuid_of(value: Any) -> UUID | None:
    try:
        if isinstance(value, bytes):
            return UUID(bytes=value) if len(value) == 16 else None
        if isinstance(value, str) and _ANY_UUID.match(value):
            return UUID(value)
    except ValueError:
        pass
    return None


#: From a UUID of 36 small letters to each form that programs write.
_OF_UUID: tuple[Callable[[str], Any], ...] = (
    lambda text: text,
    str.upper,
    lambda text: text.replace("-", ""),
    lambda text: text.replace("-", "").upper(),
    lambda text: bytes.fromhex(text.replace("-", "")),
    lambda text: f"{{{text}}}",
    lambda text: f"{{{text}}}".upper(),
)


def _uuid_form(value: Any, form: Any) -> Any:
    """A UUID in one of the forms that programs write; what is none stays what it is."""
    # As it is bound. Parsing it would cost more than looking it up.
    if type(value) is not str or not _UUID.match(value):
        found = _uuid_of(value)
        if found is None:
            return value
        value = str(found)
    return _OF_UUID[form](value)


def _decimal_of(value: Any) -> Decimal | None:
    """The number that a value is, to its last digit; ``None`` for what is none."""
    if isinstance(value, float):
        # The shortest text that is this double, which is what it is shown as.
        return Decimal(repr(value))
    if isinstance(value, int):
        return Decimal(value)
    value = _text(value)
    if not isinstance(value, str):
        return None
    if value in _NOT_FINITE:
        return Decimal(value)
    try:
        number = Decimal(value.strip()) if len(value) <= _MAX_NUMBER and _NUMERIC_TEXT.match(value) else None
    except ArithmeticError:
        return None
    return None if number is None or abs(number.adjusted()) >= _PLACES else number


def _number_key(value: Any) -> Any:
    """A text that sorts as the number that a value is, and is equal for equal ones; of others, after them, as text.

    The sign, the place of the first digit, the digits; those of a negative number are what is missing to nine.
    """
    if value is None:
        return None
    number = _decimal_of(value)
    if number is None:
        return f"t{_text(value)}"
    if number.is_nan():
        return "4"
    if number.is_infinite():
        return "3" if number > 0 else "/"
    if not number:
        return "1"
    digits = "".join(map(str, number.as_tuple().digits)).lstrip("0").rstrip("0")
    text = f"{number.adjusted() + _PLACES:08d}{digits}"
    return f"2{text}" if number > 0 else f"0{text.translate(_NINES)}~"


def _float_key(value: Any) -> Any:
    """The double that a value is shown as; what is no number stays what it is."""
    number = _decimal_of(value)
    return _text(value) if number is None or number.is_nan() else float(number)


def _below(value: Any) -> Any:
    """A double that is no more than ``value`` in a column of numbers, and of a text no more than any text."""
    number = _decimal_of(value)
    if number is None or number.is_nan():
        return ""
    return math.nextafter(float(number), -math.inf)


def _above(value: Any) -> Any:
    number = _decimal_of(value)
    if number is None or number.is_nan():
        return b""
    return math.nextafter(float(number), math.inf)


#: What connections know beside SQLite's own functions: by name, how many arguments, what is called.
FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "zcomm_datetime": (2, _datetime_key),
    "zcomm_date": (2, _date_key),
    "zcomm_time": (1, _time_key),
    "zcomm_uuid": (2, _uuid_form),
    "zcomm_uuid_key": (1, lambda text: _uuid_form(decoded(text), 0)),
    "zcomm_number": (1, _number_key),
    "zcomm_float": (1, _float_key),
    "zcomm_below": (1, _below),
    "zcomm_above": (1, _above),
    "zcomm_item": (1, one_item),
}


# From the driver to JSON.


class _Truths(dict[Any, Any]):
    """The truth values that stand for what is stored, by that; of other values, themselves."""

    def __missing__(self, value: Any) -> Any:
        text = _text(value)
        shown = str(text)
        word = shown.lower() if len(shown) <= _LONGEST_WORD else ""
        return True if word in _TRUE else False if word in _FALSE else text


_TRUTHS = _Truths({0: False, 1: True})


def _datetime_reader(unit: int) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is str and _WRITTEN_HERE(value):
            # Parsing it would cost more than the rest of the row.
            return f"{value[:10]}T{value[11:]}Z"
        value = _text(value)
        found = _moment(value, unit)
        if found is None:
            return value
        moment, rest = found
        return f"{moment.isoformat(timespec='microseconds')}{rest}Z" if rest else show_datetime(moment)

    return read


def _date_reader(unit: int) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is str and len(value) == 10:
            # As it is written here, or no date.
            return value
        return _date_key(value, unit)

    return read


def _read_time(value: Any) -> Any:
    return value if type(value) is str and len(value) == 8 and value[2] == value[5] == ":" else _time_key(value)


def _read_uuid(value: Any) -> Any:
    if type(value) is str and _UUID.match(value):
        return value
    found = _uuid_of(value)
    # One in letters of both sizes is found by these alone: an index has no one place for all of their mixtures.
    spelled = type(value) is str and not (value.islower() or value.upper() == value)
    return _text(value) if found is None or spelled else str(found)


def _read_int(value: Any) -> Any:
    """A whole number that is kept as text. What does not fit in 64 bits, and no double is, is shown as a text: one for
    all that are equal."""
    if type(value) is int:
        return value
    number = _decimal_of(value)
    if number is None:
        return _text(value)
    if number.is_finite():
        if number.adjusted() <= 19 and number == number.to_integral_value() and -(2**63) <= int(number) < 2**63:
            return int(number)
        if Decimal(repr(float(number))) == number:
            return float(number)
    return _show_number(number.normalize(_EXACT))


def _read_double(value: Any) -> Any:
    """A whole number of a column of doubles."""
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**63:
        return int(value)
    return KINDS["float"].show(value) if isinstance(value, float) else value


def _read_float(value: Any) -> Any:
    # What RETURNING brings has not gone through the column yet, and may still be a whole number.
    if type(value) is not float:
        value = _float_key(value)
    # JSON has no infinity, and SQLite no NaN.
    return KINDS["float"].show(value) if type(value) is float else value


def _read_decimal(value: Any) -> Any:
    number = _decimal_of(value)
    return _text(value) if number is None else _show_number(number)


def _show_number(number: Decimal) -> Any:
    if number.is_finite() and abs(number.adjusted()) > _MAX_NUMBER:
        return str(number)
    return KINDS["decimal"].show(number if number else abs(number))


def _json_reader(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    def made(value: Any) -> Any:
        value = _text(value)
        if not isinstance(value, str):
            return value
        try:
            return read(value)
        except ValueError:
            return value

    return made


def _read_bytes(value: Any) -> Any:
    return KINDS["bytes"].show(value if isinstance(value, bytes) else str(value).encode())


# From Python to the driver.


def _bind_datetime(value: datetime | Beyond) -> str:
    if isinstance(value, Beyond):
        return str(value)
    # The form of SQLite's own functions. With six digits of a fraction or none, text sorts as time does.
    return value.replace(tzinfo=None).isoformat(" ")


def _bind_moment(value: date | time | Beyond) -> str:
    return str(value) if isinstance(value, Beyond) else value.isoformat()


def _bind_float(value: float) -> float:
    if math.isnan(value):
        # SQLite would store null.
        raise ValueError("must be a number; SQLite has no NaN")
    return value


def _float_text(value: float) -> str:
    """A float for a column that makes texts of numbers, and of floats such of 15 digits."""
    return str(KINDS["float"].show(_bind_float(value)))


def _decimal_text(value: Decimal) -> str:
    """A decimal as the one text that equal ones have, so that a unique column tells them apart."""
    if value.is_nan():
        raise ValueError("must be a number; SQLite has no NaN")
    if value.is_infinite():
        return str(value)
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _decimal_number(value: Decimal) -> int | float | str:
    """A decimal as the number that it is, or as its text where SQLite has no such number."""
    text = _decimal_text(value)
    if value.is_infinite():
        return float(value)
    # Without regard to the precision of the context, as a remainder would be.
    if "." not in text and abs(int(text)) < 2**63:
        return int(text)
    number = float(text)
    return number if Decimal(repr(number)) == value else text


# Conditions and orders.


def _raw(column: Expression) -> Expression:
    """``column`` for a function: text that is not UTF-8 would fail on its way to it, so that text comes as bytes."""
    return sa.case(
        (sa.func.typeof(column) == sa.literal_column("'text'"), sa.cast(column, sa.LargeBinary)), else_=column
    )


def _character(column: Expression, place: int) -> Expression:
    """The character of a text at ``place``, counted from 1; of bytes, a byte, which is equal to no character."""
    made: Expression = sa.func.substr(column, sa.literal_column(str(place)), sa.literal_column("1"))
    return made


def _when_written_here(column: Expression, forms: Mapping[int, Mapping[int, str]], otherwise: Expression) -> Expression:
    """``column`` where it is in a form that is written here, which costs no call of a function.

    :param forms: by the length of the text, its separators by their places. What stands between them may be anything:
        a text that is no date is its own key, and so is each that is written here.
    """
    cases: dict[Any, Any] = {}
    for length, separators in forms.items():
        looks = [_character(column, place) == sa.literal_column(f"'{each}'") for place, each in separators.items()]
        if length == 26:
            # Six digits, and not fewer with a time zone.
            looks += [
                _character(column, place).between(sa.literal_column("'0'"), sa.literal_column("'9'"))
                for place in (24, 26)
            ]
            looks.append(sa.func.substr(column, sa.literal_column("20")) != sa.literal_column("'.000000'"))
        cases[sa.literal_column(str(length))] = sa.case((sa.and_(*looks), column), else_=otherwise)
    return sa.case(
        cases, value=sa.func.length(column), else_=sa.case((column.is_not(None), otherwise), else_=sa.null())
    )


def _key_of(kind: str, unit: int = _ANY) -> Callable[[Expression], Expression]:
    number: Expression = sa.literal_column(str(unit))
    forms: dict[str, dict[int, dict[int, str]]] = {
        "datetime": {19: {5: "-", 11: " ", 17: ":"}, 26: {5: "-", 11: " ", 17: ":", 20: "."}},
        "date": {10: {5: "-", 8: "-"}},
        "time": {8: {3: ":", 6: ":"}},
    }

    def key(column: Expression) -> Expression:
        function = getattr(sa.func, f"zcomm_{kind}")
        made = function(_raw(column)) if kind == "time" else function(_raw(column), number)
        return _when_written_here(column, forms[kind], made)

    return key


def _truth(column: Expression) -> Expression:
    """A value of a column of truth values as 1, 0 or what it is."""
    words = sa.func.lower(sa.cast(column, sa.Text))
    return sa.case(
        (sa.func.typeof(column) == sa.literal_column("'integer'"), column),
        (words.in_([sa.literal_column(f"'{word}'") for word in _TRUE]), sa.literal_column("1")),
        (words.in_([sa.literal_column(f"'{word}'") for word in _FALSE]), sa.literal_column("0")),
        (column == sa.literal_column("9e999"), sa.literal_column("'Infinity'")),
        (column == sa.literal_column("-9e999"), sa.literal_column("'-Infinity'")),
        (sa.func.typeof(column) == sa.literal_column("'blob'"), sa.cast(column, sa.Text)),
        else_=column,
    )


def _bare(column: Expression) -> Expression:
    """``column`` without its affinity."""
    made: Expression = sa.func.coalesce(column, sa.null())
    return made


def _keyed(function: str) -> Condition:
    """Conditions on what a function makes of the column and of what it is compared with."""
    key = getattr(sa.func, function)

    def condition(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
        keys = values.mapped(key) if isinstance(values, Listed) else [key(value) for value in values]
        return _as_asked(key(_raw(column)), operator, keys)

    return condition


def _key(function: str) -> Callable[[Expression], Expression]:
    def key(column: Expression) -> Expression:
        made: Expression = getattr(sa.func, function)(_raw(column))
        return made

    return key


def _decimals(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
    """Conditions on decimals in a column of numbers, to the last digit, each with one that an index can answer."""
    exact = _keyed("zcomm_number")(column, operator, values)
    # Texts and bytes, which are more than any number, may be numbers as well.
    others = _rare(column >= sa.literal_column("''"))

    def near(first: Any, last: Any) -> ColumnElement[bool]:
        return _rare(column.between(sa.func.zcomm_below(first), sa.func.zcomm_above(last)))

    if operator in ("eq", "same", "in", "between") and not isinstance(values, Listed):
        pairs = [(values[0], values[1])] if operator == "between" else [(value, value) for value in values]
        return sa.and_(sa.or_(*(near(*pair) for pair in pairs), others), exact)
    if operator in ("gt", "gte"):
        return sa.and_(column >= sa.func.zcomm_below(values[0]), exact)
    if operator in ("lt", "lte"):
        return sa.and_(sa.or_(column <= sa.func.zcomm_above(values[0]), others), exact)
    return exact


def _low(value: Any) -> Expression:
    """No later than any text of a moment that ``value`` is: the clock of a time zone is less than a day away."""
    # SQLite takes February 31 for a day in March, which it is not here.
    earlier = sa.func.min(sa.func.date(value, sa.literal_column("'-1 day'")), value)
    return sa.func.coalesce(earlier, sa.literal_column("''"))


def _high(value: Any) -> Expression:
    # Beyond the year 9999 there is no date to compare with; every text is less than bytes are.
    later = sa.func.max(sa.func.date(value, sa.literal_column("'+2 days'")), value)
    return sa.func.coalesce(later, sa.literal_column("x''"))


def _moments(
    key: Callable[[Expression], Expression],
) -> Condition:
    """Conditions on dates and datetimes by their key, each with one on the column itself that an index can answer."""

    def condition(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
        made = key(column)
        # Numbers are less than any text, and bytes are more.
        numbers, raw = column < sa.literal_column("''"), column >= sa.literal_column("x''")

        def near(first: Any, last: Any) -> ColumnElement[bool]:
            return sa.or_(_rare(column.between(_low(first), _high(last))), _rare(numbers), _rare(raw))

        if operator in ("eq", "same"):
            return sa.and_(near(values[0], values[0]), made == values[0])
        if operator == "ne":
            return made.is_distinct_from(values[0])
        if operator == "in":
            found = _among(made, values)
            one_by_one = not isinstance(values, Listed)
            return sa.and_(sa.or_(*(near(each, each) for each in values)), found) if one_by_one else found
        if operator == "not_in":
            return sa.or_(sa.not_(_among(made, values)), column.is_(None))
        if operator in ("gt", "gte"):
            compared = made > values[0] if operator == "gt" else made >= values[0]
            return sa.and_(sa.or_(column >= _low(values[0]), numbers), compared)
        if operator in ("lt", "lte"):
            compared = made < values[0] if operator == "lt" else made <= values[0]
            return sa.and_(sa.or_(column <= _high(values[0]), raw), compared)
        return sa.and_(near(values[0], values[1]), made.between(values[0], values[1]))

    return condition


def _rare(condition: Expression) -> Expression:
    """A condition that few rows meet, for the planner, which takes one of a range for true of every fourth row."""
    made: Expression = sa.func.likelihood(condition, sa.literal_column("0.0001"))
    return made


def _among(
    column: Expression, values: Any, forms: Callable[[Any], Sequence[Any]] = lambda value: (value,)
) -> ColumnElement[bool]:
    """The condition that ``column`` is one of ``forms`` of one of ``values``."""
    return column.in_(
        values.of(forms) if isinstance(values, Listed) else [form for each in values for form in forms(each)]
    )


def _as_asked(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
    """The condition that an operator is of what stands on either side of it."""
    if operator in ("eq", "same"):
        equal: ColumnElement[bool] = column == values[0]
        return equal
    if operator == "ne":
        return column.is_distinct_from(values[0])
    if operator == "in":
        return _among(column, values)
    if operator == "not_in":
        return sa.or_(sa.not_(_among(column, values)), column.is_(None))
    if operator == "between":
        return column.between(values[0], values[1])
    order = {"gt": column.__gt__, "gte": column.__ge__, "lt": column.__lt__, "lte": column.__le__}
    compared: ColumnElement[bool] = order[operator](values[0])
    return compared


def _alternatives(forms: Callable[[Any], list[Any]], exact: bool = False) -> Condition:
    """Conditions of equality by all values that look like the one asked for; an index can answer them.

    :param exact: whether equal is what is the same letter by letter, where that is asked for.
    """

    def condition(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
        if operator not in ("eq", "same", "ne", "in", "not_in"):
            return _as_asked(column, operator, values)
        found = _among(column, values, forms) if isinstance(values, Listed) else _one_of(column, values, forms)
        if operator in ("ne", "not_in"):
            return sa.or_(sa.not_(found), column.is_(None))
        if operator == "same" and exact:
            return sa.and_(found, sa.collate(sa.cast(column, sa.Text), "BINARY") == values[0])
        return found

    return condition


def _one_of(column: Expression, values: Sequence[Any], forms: Callable[[Any], list[Any]]) -> ColumnElement[bool]:
    """The condition that ``column``, which may be long, is one of ``forms`` of one of ``values``.

    SQLite keeps what stands on the left of each ``IN`` until the statement ends, a text of a megabyte too.
    """
    found = []
    for value in values:
        usual, *others = forms(value)
        # With a plus it is looked up with the usual one, and not apart.
        found += [usual, *(UnaryExpression(other, operator=custom_op("+")) for other in others)]
    return sa.or_(*(column == form for form in found))


def _as_bytes(value: Any) -> Expression:
    return sa.cast(value, sa.LargeBinary)


def _text_forms(value: Any) -> list[Any]:
    return [value, _as_bytes(value)]


def _shown_text(column: Expression) -> Expression:
    """``column`` as the text that is shown, which is compared with the collation of the column."""
    made: Expression = sa.cast(column, sa.Text)
    return made


def _exact_text(column: Expression) -> Expression:
    made: Expression = sa.collate(sa.cast(column, sa.Text), "BINARY")
    return made


def _ordered(
    condition: Condition,
    key: Callable[[Expression], Expression],
    keyed: Callable[[Any], Any],
    alike: Callable[[Any], Any] | None,
) -> Condition:
    """``condition`` for equality, and for the rest one on the keys of both sides.

    :param alike: where the column was found with values of one form, which an index has in the order of their keys,
        from a parameter to it in that form. Others that come to it later are not found by their order then, and none
        is taken for another.
    """

    def made(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
        if operator in ("eq", "same", "ne", "in", "not_in"):
            return condition(column, operator, values)
        exact = _as_asked(key(column), operator, [keyed(value) for value in values])
        return exact if alike is None else sa.and_(_as_asked(column, operator, [*map(alike, values)]), exact)

    return made


def _forms_among_numbers(value: Any) -> list[Any]:
    """What is shown as the text ``value`` in a column that keeps numbers too, but for those near it."""
    endless = sa.case(
        (value == sa.literal_column("'Inf'"), sa.literal_column("9e999")),
        (value == sa.literal_column("'-Inf'"), sa.literal_column("-9e999")),
        else_=value,
    )
    return [*_text_forms(value), endless]


def _shown_texts(column: Expression, operator: str, values: Any) -> ColumnElement[bool]:
    """Conditions on the texts that are shown of a column that keeps numbers too, each with one for an index.

    Of a number 15 digits are shown, so that others near it look the same, and one of another type does not.
    """
    shown = _shown_text(column)
    if operator not in ("eq", "same", "ne", "in", "not_in"):
        return _as_asked(shown, operator, values)
    found = _among(shown, values) if isinstance(values, Listed) else _one_of(shown, values, lambda value: [value])
    if operator in ("ne", "not_in"):
        return sa.or_(sa.not_(found), column.is_(None))
    exact = sa.collate(shown, "BINARY") == values[0] if operator == "same" else found
    if isinstance(values, Listed):
        return exact
    near = [_one_of(column, values, _forms_among_numbers)]
    for value in values:
        number: Expression = sa.cast(value, sa.REAL())
        is_below = number < sa.literal_column("0")
        less, more = number * sa.literal_column("0.99999999999999"), number * sa.literal_column("1.00000000000001")
        # Without a function: SQLite keeps each text that it compares with the result of one.
        first, last = sa.case((is_below, more), else_=less), sa.case((is_below, less), else_=more)
        near.append(_rare(column.between(first, last)))
    return sa.and_(sa.or_(*near), exact)


def _uuid_forms(value: Any) -> list[Any]:
    """What looks like the UUID ``value``: it in each form, and as it was given."""
    endless = sa.case(
        (value == sa.literal_column("'Infinity'"), sa.literal_column("9e999")),
        (value == sa.literal_column("'-Infinity'"), sa.literal_column("-9e999")),
        else_=value,
    )
    forms = [sa.func.zcomm_uuid(value, sa.literal_column(str(form))) for form in range(len(_OF_UUID))]
    text = sa.func.typeof(forms[0]) == sa.literal_column("'text'")
    return [*forms, endless, sa.case((text, _as_bytes(forms[0])), else_=value)]


def _bytes_forms(value: Any) -> list[Any]:
    return [value, sa.cast(value, sa.Text)]


def affinity(declared: str) -> str:
    """The affinity of a column by its declared type (SQLite documentation, "Datatypes In SQLite", 3.1)."""
    upper = declared.upper()
    if "INT" in upper:
        return "INTEGER"
    if any(part in upper for part in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in upper or not upper.strip():
        return "BLOB"
    return "REAL" if any(part in upper for part in ("REAL", "FLOA", "DOUB")) else "NUMERIC"


def _kept_by(declared: str, real: bool) -> Callable[[str], str]:
    """From a text that a column of numbers makes one of to the text of that, for those that it changes; else ``""``."""

    def kept(text: str) -> str:
        if not _NUMERIC_TEXT.match(text):
            return ""
        number = _decimal_of(text)
        whole = number is not None and not real and number == number.to_integral_value()
        shown = _WRITTEN_NUMBER.match(text) and not (number is not None and not number and text[0] == "-")
        digits = sum(map(str.isdigit, text.lstrip("-0.")))
        if shown and "." not in text and not real and -(2**63) <= int(text) < 2**63:
            return ""
        if shown and "." in text and not whole and digits <= 15 and (float(text) == 0 or abs(float(text)) >= 1e-4):
            return ""
        return f"would be kept as {_show_kept(number, real)}, because the column is declared {declared} and not TEXT"

    return kept


def _show_kept(number: Decimal | None, real: bool) -> str:
    if number is None:
        return "another number"
    if not real and number == number.to_integral_value() and abs(number) < 2**63:
        return str(int(number))
    return repr(float(number))


def _keeps_text(declared: str, real: bool) -> Callable[[Any], None]:
    """Refuse texts that the column would make other numbers of."""
    kept = _kept_by(declared, real)

    def check(value: Any) -> None:
        reason = kept(value) if isinstance(value, str) else ""
        if reason:
            raise ValueError(reason)

    return check


def _keeps_json(declared: str, real: bool) -> Callable[[Any], None]:
    """Refuse numbers that the column would cut digits off."""

    def check(value: Any) -> None:
        if type(value) is not int or (not real and -(2**63) <= value < 2**63):
            return
        number = float(str(value))
        if math.isinf(number) or int(number) != value:
            raise ValueError(f"would lose digits, because the column is declared {declared} and not TEXT")

    return check


def _keeps_whole(declared: str) -> Callable[[Any], None]:
    """Refuse whole numbers that are no doubles."""

    def check(value: Any) -> None:
        if isinstance(value, int) and int(float(value)) != value:
            raise ValueError(
                f"would be kept as {int(float(value))}, because the column is declared {declared} and not INTEGER"
            )

    return check


def _keeps_decimal(declared: str, real: bool) -> Callable[[Any], None]:
    """Refuse decimals that the column would keep as other ones."""

    def check(value: Any) -> None:
        number = Decimal(value)
        if number.is_nan() or number.is_infinite():
            return
        if not real and number == number.to_integral_value() and abs(number) < 2**63:
            return
        if Decimal(repr(float(number))) != number:
            raise ValueError(
                f"has more digits than the column keeps (15), because it is declared {declared} and not TEXT"
            )

    return check


def _unfit_datetime(value: Any) -> Any:
    """Likewise; a datetime of more digits than Python has is in the form that its column is compared in."""
    found = _of_text(value) if type(value) is str else None
    return _unfit(value) if found is None or not found[2] else _datetime_key(value, _ANY)


def _unfit_text(value: Any) -> str:
    """A text that nobody may write, as others may have: one with NUL in it."""
    if type(value) is not str:
        raise ValueError("is no text")
    KINDS["str"].parse(value.replace("\0", ""))
    return value


def _unfit(value: Any) -> Any:
    """A value that a filter of any kind may ask for, as it is shown.

    :raises ValueError: for what no column holds.
    """
    if type(value) is str:
        return _unfit_text(value)
    if type(value) is int:
        return KINDS["int"].parse(value)
    if type(value) is float and math.isfinite(value) and not 2**53 <= abs(value) < 2**63:
        # A larger one may be a neighbour that a client's own numbers could not hold; it would find that one's row.
        return value
    raise ValueError("is of no type that a column holds")


#: The kinds that are compared as SQLite compares, for which a text and a number may be one.
_MIXED = frozenset({"int", "float", "decimal", "bool", "uuid"})


def _shown_only(field: Field, made: Column, family: str) -> Callable[[Any], Any]:
    """From a value that a filter asks for, though it is none of its kind, to itself.

    SQLite takes a text with a number in it, such as ``"01"`` with a blank, for that number, and 1 for 1.0. So nothing
    is asked for but what would be shown as it is, were it in the column, and the column keeps it as it is.
    """
    whole = field.kind.name == "int"
    numeric = family not in ("TEXT", "BLOB")
    texts = family == "TEXT" and field.kind.name not in _NUMBERS
    read = made.read or (_read_int if whole else _text)

    def unfit(value: Any) -> Any:
        value = _unfit(value)
        text = type(value) is str
        # A column for numbers makes one of such a text, and a column for texts a text of each number.
        if text and numeric and _NUMERIC_TEXT.match(value) or not text and texts:
            raise ValueError("is nothing that the column keeps")
        shown = read(value)
        # Elsewhere than among whole numbers 1 and 1.0 are one: JavaScript writes both as 1.
        same = type(shown) is type(value) or not (whole or text or type(shown) in (bool, str))
        if not same or shown != value:
            raise ValueError("is shown as another value")
        return value

    return unfit


#: Of the kinds of numbers, in a column that keeps them as texts too: what they are compared by, read and written as.
_NUMBERS: Mapping[str, tuple[str, Callable[[Any], Any], Callable[[Any], Any] | None]] = {
    "int": ("zcomm_number", _read_int, None),
    "float": ("zcomm_float", _read_float, _float_text),
    "decimal": ("zcomm_number", _read_decimal, _decimal_text),
}
_BASE: Mapping[str, Column] = {
    "str": Column(
        shown=lambda column: sa.cast(column, sa.Text),
        compare=_alternatives(_text_forms, True),
        unfit=_unfit_text,
    ),
    "int": Column(unfit=_unfit),
    "float": Column(bind=_bind_float, read=_read_float, unfit=_unfit),
    "decimal": Column(bind=_decimal_number, read=_read_decimal, compare=_decimals, unfit=_unfit),
    "bool": Column(read=_TRUTHS.__getitem__, compared=_truth, unfit=_unfit),
    "time": Column(bind=_bind_moment, read=_read_time, compared=_key_of("time"), unfit=_unfit),
    "uuid": Column(bind=str, read=_read_uuid, compare=_alternatives(_uuid_forms), unfit=_unfit),
    "json": Column(bind=json_text, read=_json_reader(json_value), raw=_json_reader(json_raw)),
    "bytes": Column(read=_read_bytes, compare=_alternatives(_bytes_forms)),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A column as it was found at the start.

    :ivar values: some of its values: those that come first and last in an index, the oldest and the newest.
    :ivar newest: the newest of them, the last one first.
    :ivar indexed: whether it is in an index.
    :ivar texts: whether its table keeps nothing else in it, because it is STRICT.
    :ivar binary: whether its values are compared byte by byte.
    """

    values: Sequence[Any] = ()
    newest: Sequence[Any] = ()
    indexed: bool = False
    texts: bool = False
    binary: bool = False


#: From a moment to each form of text in which one is written: how day and clock are set apart, the digits of a second,
#: the zone.
_CLOCKS: tuple[Callable[[datetime], str], ...] = (
    lambda value: value.isoformat(" ")[11:],
    lambda value: value.isoformat(" ", "microseconds")[11:],
    lambda value: value.isoformat(" ", "microseconds" if value.microsecond % 1000 else "milliseconds")[11:],
    lambda value: f"{value.isoformat(' ', 'microseconds')[11:]}0",
    lambda value: value.isoformat(" ")[11:].rstrip("0") if value.microsecond else value.isoformat(" ")[11:],
    lambda value: value.isoformat(" ", "auto" if value.microsecond % 1000 or not value.microsecond else "milliseconds")[
        11:
    ],
    lambda value: value.isoformat(" ", "auto" if value.second or value.microsecond else "minutes")[11:],
)


def _text_form(separator: str, clock: Callable[[datetime], str], zone: str) -> Callable[[datetime], str]:
    return lambda value: f"{value.date().isoformat()}{separator}{clock(value)}{zone}"


_MOMENT_FORMS = tuple(
    _text_form(separator, clock, zone)
    for zone in ("", "Z", "+00:00", " +00:00", "+0000", "+00", " UTC", " +0000 UTC")
    for separator in " T"
    for clock in _CLOCKS
)
_TIME_FORMS: tuple[Callable[[time], str], ...] = (
    lambda value: value.isoformat(),
    lambda value: value.isoformat("microseconds"),
    lambda value: value.isoformat("auto" if value.second or value.microsecond else "minutes"),
    lambda value: f"{_RAILS_DAY}{value.isoformat()}",
    lambda value: f"{_RAILS_DAY}{value.isoformat('microseconds')}",
)
#: The words for true and false that programs write.
_WORDS = (
    ("1", "0"),
    *(
        (yes, no)
        for one, two in (("t", "f"), ("true", "false"), ("y", "n"), ("yes", "no"), ("on", "off"))
        for yes, no in ((one, two), (one.upper(), two.upper()), (one.title(), two.title()))
    ),
)


def _number_form(unit: int, real: bool) -> Callable[[datetime], float]:
    """From a moment to the number of ``unit`` that means it, or the one before."""

    def made(value: datetime) -> float:
        if unit == _IN_DAYS:
            return (value - datetime(1, 1, 1)) / timedelta(days=1) + _FIRST_JULIAN
        step = timedelta(seconds=1) if unit == _IN_SECONDS else timedelta(milliseconds=1)
        return (value - _EPOCH) / step if real else (value - _EPOCH) // step

    return made


def _common(forms: Sequence[Callable[[Any], Any]], found: Sequence[tuple[Any, Any]]) -> Callable[[Any], Any] | None:
    """The first form that all values have, of those that were found with what each means; ``None`` for none.

    :param found: the newest first. Where they differ, the form of the last few is the one in use.
    """
    for some in (found, found[:_IN_USE]):
        for form in forms:
            if all(each is not None and form(each) == value for each, value in some):
                return form
    return None


def _written(made: Column, form: Callable[[Any], Any], kind: Any) -> Column:
    """The column ``made``, in which values of Python's own type are written in ``form``."""

    def bind(value: Any) -> Any:
        return str(value) if isinstance(value, Beyond) else form(value)

    return replace(made, kept=lambda given: given(kind, bind))


def _moment_of(value: date) -> datetime:
    """A date or a datetime as a moment in UTC without saying so."""
    return value.replace(tzinfo=None) if isinstance(value, datetime) else datetime.combine(value, time())


def _moment_column(kind: str, declared: str, nullable: bool, seen: Seen) -> Column:
    """The column of dates or datetimes, written in the form that its values have, where they have one."""
    family = affinity(declared)
    numbers = [value for value in seen.values if isinstance(value, (int, float))]
    unit = _WHOLE if family == "INTEGER" else _ANY
    known = [number for number in numbers if _is_known(number, kind, unit)]
    units = {_unit_of(number) for number in known} - {_ANY}
    unsure = "the numbers in its column are of several units" if len(units) > 1 else ""
    if (len(known) < len(numbers) and not units) or (numbers and all(map(_is_calendar, numbers))):
        unsure = "the numbers in its column are of no unit that is known: neither seconds nor milliseconds nor days"
        unit = _IN_NONE
    elif len(units) == 1:
        unit = next(iter(units))
    key = _key_of(kind, unit)
    read = _datetime_reader(unit) if kind == "datetime" else _date_reader(unit)
    made = Column(
        bind=_bind_datetime if kind == "datetime" else _bind_moment,
        # What RETURNING brings has not gone through the column yet, and may still be a whole number.
        read=(lambda value: read(float(value) if type(value) is int else value)) if family == "REAL" else read,
        compared=key,
        compare=_moments(key),
        unfit=_unfit_datetime if kind == "datetime" else _unfit,
        nullable=nullable,
        key=key,
    )
    alone = len(numbers) == len(seen.values)
    # Text among numbers of a column for numbers is of those that did not know better, as zComm once.
    if (numbers and alone) or (family in ("INTEGER", "REAL") and (alone or len(numbers) > 0 and len(units) <= 1)):
        real = family == "REAL" or any(isinstance(number, float) for number in numbers)
        written = unit if units else _IN_MILLISECONDS if numbers and family != "INTEGER" else _IN_SECONDS
        return _numbered(made, _number_form(written, real), unit, unsure)
    usual: Callable[[Any], Any] = (lambda value: value.isoformat(" ")) if kind == "datetime" else date.isoformat
    texts: list[tuple[Any, Any]] = []
    for value in seen.newest:
        found = _in_utc(value) if isinstance(value, str) else None
        moment, text = (None, value) if found is None else found
        texts.append((moment if moment is None or kind == "datetime" else moment.date(), text))
    forms = (usual, *(_of_a_day(form) if kind == "date" else form for form in _MOMENT_FORMS))
    form = _common(forms, texts)
    return made if form is None or form is usual else _written(made, lambda value: form(_naive(value)), sa.Text())


def _naive(value: Any) -> Any:
    return value.replace(tzinfo=None) if isinstance(value, datetime) else value


def _of_a_day(form: Callable[[datetime], str]) -> Callable[[date], str]:
    return lambda value: form(_moment_of(value))


def _numbered(made: Column, form: Callable[[datetime], float], unit: int, unsure: str) -> Column:
    """The column ``made`` of numbers, which takes what they can say.

    :param unit: the meaning of its numbers.
    :param unsure: why nobody can tell what to write; empty where that is plain.
    """

    def check(value: Any) -> None:
        if unsure:
            raise ValueError(f"cannot be written: {unsure}")
        if isinstance(value, Beyond):
            raise ValueError("has no number, and its column is one of numbers")
        kept = _of_number(form(_moment_of(value)), unit)
        if kept != _moment_of(value):
            shown = "another" if kept is None else show_datetime(kept)
            raise ValueError(f"would be kept as {shown}, because its column is one of numbers")

    def fitted(value: Any) -> Any:
        if unsure:
            raise ValueError(f"cannot be written: {unsure}")
        kept = _of_number(form(_moment_of(value)), unit)
        return value if kept is None or not isinstance(value, datetime) else kept.replace(tzinfo=UTC)

    return replace(_written(made, lambda value: form(_moment_of(value)), sa.Float()), check=check, fitted=fitted)


def _padded(least: int) -> Callable[[Decimal], str]:
    """From a decimal to its text with at least as many digits behind the point."""

    def made(value: Decimal) -> str:
        text = _decimal_text(value)
        whole, _, fraction = text.partition(".")
        return text if len(fraction) >= least or not value.is_finite() else f"{whole}.{fraction:0<{least}}"

    return made


#: .NET always writes one digit behind the point; others write two or four of money.
_DECIMAL_FORMS = tuple(map(_padded, range(7)))


def _decimal_column(made: Column, seen: Seen) -> Column:
    """The column of decimals that are kept as text, written with the zeros that its values have."""
    found = [(_decimal_of(value) if isinstance(value, str) else None, value) for value in seen.newest]
    form = _common(_DECIMAL_FORMS, found)
    return made if form is None or form is _DECIMAL_FORMS[0] else _written(made, form, sa.Text())


def _time_column(made: Column, seen: Seen) -> Column:
    found: list[tuple[Any, Any]] = []
    for value in seen.newest:
        key = _time_key(value)
        # What is no time is its own key, and so is one in the usual form.
        known = isinstance(key, str) and _TIME.match(key) and len(key) in (8, 15)
        found.append((time.fromisoformat(key) if known and key < "24" else None, value))
    form = _common(_TIME_FORMS, found)
    return made if form is None or form is _TIME_FORMS[0] else _written(made, form, sa.Text())


def _truth_column(made: Column, seen: Seen) -> Column:
    """The column of truth values, written in the words that its values have, where they are of one pair."""
    forms: list[Callable[[Any], Any]] = [{True: 1, False: 0}.__getitem__]
    forms += [{True: yes, False: no}.__getitem__ for yes, no in _WORDS]
    found = [(_TRUTHS[value], value) for value in seen.newest]
    form = _common(forms, [(truth if isinstance(truth, bool) else None, value) for truth, value in found])
    return made if form is None or form is forms[0] else _written(made, form, sa.Text())


def _uuid_keyed(value: Any) -> Expression:
    made: Expression = sa.func.zcomm_uuid(value, sa.literal_column("0"))
    return made


def _uuid_key(column: Expression) -> Expression:
    here = sa.and_(
        sa.func.length(column) == sa.literal_column("36"),
        _character(column, 9) == sa.literal_column("'-'"),
        column == sa.func.lower(column),
    )
    text = sa.func.typeof(column) == sa.literal_column("'text'")
    return sa.case((here, column), (text, sa.func.zcomm_uuid_key(_as_bytes(column))), else_=_uuid_keyed(column))


def _uuid_writer(form: int) -> Callable[[UUID], Any]:
    return lambda value: _OF_UUID[form](str(value))


_UUID_FORMS: tuple[Callable[[UUID], Any], ...] = (str, *map(_uuid_writer, range(1, len(_OF_UUID))))


def _uuid_column(made: Column, family: str, seen: Seen) -> Column:
    """The column of UUIDs ``made``, written in the form that its values have, where they have one."""
    usual = made.bind or str
    # A column of numbers may make one of bare digits.
    forms = _UUID_FORMS if family in ("TEXT", "BLOB") else (*_UUID_FORMS[:2], *_UUID_FORMS[4:])
    written = _common((usual, *forms), [(_uuid_of(value), value) for value in seen.newest]) or usual
    all_alike = all((found := _uuid_of(value)) is not None and written(found) == value for value in seen.values)
    place = _UUID_FORMS.index(written) if seen.indexed and all_alike else None
    alike = None if place is None else lambda value: _uuid_forms(value)[place]

    def bind(value: Any) -> Any:
        return written(value) if isinstance(value, UUID) else value

    return replace(
        made,
        # It is found as it was given, too, and is written in the form of the others.
        bind=lambda value: value.text if isinstance(value, Spelled) else bind(value),
        kept=lambda given: given(sa.Text(), bind),
        key=_uuid_key,
        keyed=_uuid_keyed,
        forms=_uuid_forms,
        compared=None if alike else _uuid_key,
        compare=_ordered(_alternatives(_uuid_forms), _uuid_key, _uuid_keyed, alike),
    )


def _text_column(made: Column, family: str, seen: Seen) -> Column:
    """The column of texts ``made``, ordered and matched as the texts that are shown."""
    if seen.texts:
        return replace(made, compare=None)
    plain = family == "TEXT" and seen.indexed and not any(isinstance(value, bytes) for value in seen.values)
    compare = made.compare or _alternatives(_text_forms, True)
    if family == "TEXT":
        compare = _ordered(compare, _shown_text, lambda value: value, (lambda value: value) if plain else None)
    if plain:
        return replace(made, compare=compare)
    # Without an index a write of the same text is not worth a look at what is there.
    key = _exact_text if seen.indexed or family != "TEXT" else None
    return replace(made, compare=compare, compared=_shown_text, matched=_shown_text, key=key)


def column_of(field: Field, declared: str, nullable: bool, seen: Seen) -> Column:
    """The column of ``field``, by its declared type and its values.

    :param nullable: whether the database lets it be null.
    """
    made = _seen_column(field, declared, nullable, seen)
    return replace(made, unfit=_shown_only(field, made, affinity(declared))) if field.kind.name in _MIXED else made


def _seen_column(field: Field, declared: str, nullable: bool, seen: Seen) -> Column:
    kind = field.kind.name
    if kind in ("date", "datetime"):
        return _moment_column(kind, declared, nullable, seen)
    made = _column_of(field, declared, nullable)
    if kind == "time":
        return replace(_time_column(made, seen), key=made.compared)
    if kind == "bool":
        return replace(_truth_column(made, seen), key=made.compared)
    if kind == "uuid":
        return _uuid_column(made, affinity(declared), seen)
    if kind == "decimal" and affinity(declared) == "TEXT":
        made = _decimal_column(made, seen)
    if kind == "str":
        # Numbers become texts there. Bytes that somebody may put there come after all texts.
        by_code_point = seen.binary and affinity(declared) == "TEXT"
        return replace(_text_column(made, affinity(declared), seen), by_code_point=by_code_point)
    if kind == "bytes":
        return replace(made, key=_as_bytes, keyed=_as_bytes)
    numbers = "zcomm_number" if kind == "decimal" else ""
    if kind in _NUMBERS and affinity(declared) in ("TEXT", "BLOB"):
        numbers = _NUMBERS[kind][0]
    if numbers:
        return replace(made, key=_key(numbers), keyed=_key(numbers))
    return made


def _column_of(field: Field, declared: str, nullable: bool) -> Column:
    kind, family = field.kind.name, affinity(declared)
    made = replace(_BASE[kind], nullable=nullable)
    numeric = family not in ("TEXT", "BLOB")
    if kind in _NUMBERS and not numeric:
        function, read, text = _NUMBERS[kind]
        made = replace(made, read=read, compared=_key(function), compare=_keyed(function))
        if family == "TEXT":
            made = replace(made, bind=text)
    elif kind == "decimal":
        made = replace(made, check=_keeps_decimal(declared, family == "REAL"))
    elif kind == "int" and family == "REAL":
        # With an index SQLite makes a double of what the column is compared with, which may be a neighbour.
        made = replace(made, check=_keeps_whole(declared), read=_read_double, compared=_bare)
    elif kind == "json" and numeric:
        made = replace(made, check=_keeps_json(declared, family == "REAL"))
    elif kind == "str" and family == "BLOB":
        made = replace(made, compare=_shown_texts)
    elif kind == "str" and family != "TEXT":
        made = replace(made, check=_keeps_text(declared, family == "REAL"), compare=_shown_texts)
    elif kind == "uuid" and not numeric and re.search(r"\(\s*32\s*\)", declared):
        # As Django keeps them.
        made = replace(made, bind=_UUID_FORMS[2])
    elif kind == "uuid" and (family == "BLOB" or re.search(r"BINARY|\(\s*16\s*\)", declared.upper())) and declared:
        made = replace(made, bind=_UUID_FORMS[4])
    return made
