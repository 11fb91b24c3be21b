"""The requests of the client's methods, as values (docs/protocol.rst, "Commands")."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any

import msgspec
from msgspec import to_builtins

__all__ = ["call", "could_double", "form", "model_command", "where", "written"]

_write = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical").encode


#: What is written as it is, whatever its value; NaN apart, which shows as a null.
_PLAIN = frozenset({str, int, bool, float, type(None)})
_NAMES = frozenset({str})
_BYTES = (bytes, bytearray, memoryview)
#: The end of a datetime with an offset, as it is written.
_OFFSET = re.compile(rb'[0-9](?:Z|[+-][0-9]{2}:[0-9]{2})"')


def where(filters: Any) -> Any:
    """``filters`` as the server takes them: an id becomes ``{"id": id}``, a list of ids ``{"id": [...]}``."""
    if filters is None or isinstance(filters, Mapping):
        return filters
    if isinstance(filters, (str, int, list, tuple)) and not isinstance(filters, bool):
        return {"id": list(filters) if isinstance(filters, (list, tuple)) else filters}
    raise TypeError(f"filters are an id, a list of ids or a dict, not {type(filters).__name__}")


def model_command(action: str, model: str, **parts: Any) -> tuple[str, dict[str, Any]]:
    """The key and horizontal of a CRUD command; parts that are ``None`` are left out."""
    if not isinstance(model, str) or not model:
        raise TypeError("a model is named by a non-empty string")
    given = {name: value for name, value in parts.items() if value is not None}
    return f"{action}_{model}", {"action": action, "model": model, **given}


class _Named(msgspec.Struct):
    zKey: Any


class _Horizontal(msgspec.Struct):
    idempotency_key: str = msgspec.field(name="_idempotencyKey")


class _Keyed(msgspec.Struct):
    zHorizontal: _Horizontal


_read_name = msgspec.json.Decoder(_Named).decode
_read_keyed = msgspec.json.Decoder(_Keyed).decode
_CHANGES = ("create_", "update_", "delete_", "upsert_")


def could_double(payload: bytes) -> bool:
    """Whether the command in ``payload``, sent again, could make a change a second time."""
    try:
        key = _read_name(payload).zKey
        if not isinstance(key, str) or not (key.startswith(_CHANGES) or key == "zPublish"):
            return False
        _read_keyed(payload)
    except (msgspec.ValidationError, RecursionError):
        return True
    return False


class _NoJson(TypeError, ValueError):
    """A value that JSON has no form for."""


def written(message: dict[str, Any]) -> bytes:
    """``message`` as JSON, with everything in it.

    :raises TypeError: for what JSON has no form for, by its place; it is a ``ValueError`` too.
    """
    try:
        payload = _write(message)
        if _OFFSET.search(payload):
            # An offset is written to the minute; those before 1972 have seconds in many places.
            payload = _write(_without_seconds(message))
        is_plain = _is_plain(message)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise _NoJson(f"the command cannot be written as JSON: {error}") from None
    # NaN and the infinities would be null or a text: a field would be erased, or a filter match other rows than meant.
    if b"null" in payload or not is_plain:
        _refuse_lost(message, "")
    return payload


def _is_plain(value: Any) -> bool:
    """Whether there are only texts, numbers, booleans, dicts and lists in ``value``, of just these types."""
    inner: Collection[Any]
    if type(value) is dict:
        if not _NAMES.issuperset(map(type, value)):
            return False
        inner = value.values()
    elif type(value) is list:
        inner = value
    else:
        return type(value) in _PLAIN
    return _PLAIN.issuperset(map(type, inner)) or all(map(_is_plain, inner))


def _without_seconds(value: Any) -> Any:
    """``value`` with the datetimes in UTC whose offset has seconds."""
    if isinstance(value, datetime):
        offset = value.utcoffset()
        return value.astimezone(UTC) if offset is not None and offset % timedelta(minutes=1) else value
    if value is None or isinstance(value, (str, int, float, Decimal, bytes, msgspec.Raw)):
        # What is raw was written by itself.
        return value
    if isinstance(value, Mapping):
        return {name: _without_seconds(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_without_seconds(inner) for inner in value]
    # A dataclass or another object that has a form as one of the above.
    plain = to_builtins(value, builtin_types=(datetime, Decimal))
    return plain if isinstance(plain, str) else _without_seconds(plain)


def _refuse_lost(value: Any, place: str) -> None:
    if isinstance(value, (float, Decimal)):
        if not (isfinite(value) if isinstance(value, float) else value.is_finite()):
            raise _NoJson(f"{place.removeprefix('zHorizontal.')} is {value}, which JSON has no form for")
    elif isinstance(value, _BYTES):
        # The client cannot know whether a field is of bytes; one of text would hold the base64.
        raise _NoJson(
            f"{place.removeprefix('zHorizontal.')} is {type(value).__name__}, which JSON has no form for; "
            "give a text as a str, and bytes in base64: base64.b64encode(…).decode()"
        )
    elif isinstance(value, time):
        if (value.utcoffset() or timedelta()) % timedelta(minutes=1):
            raise _NoJson(f"{place.removeprefix('zHorizontal.')} is {value}, whose offset JSON has no form for")
    elif isinstance(value, Mapping):
        if len({str(name) for name in value}) < len(value):
            raise _NoJson(
                f"{place.removeprefix('zHorizontal.')} has two keys that are one text, as JSON's are: {value}"
            )
        for name, inner in value.items():
            there = f"{place}.{name}" if place else str(name)
            _refuse_lost(name, there)
            _refuse_lost(inner, there)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, inner in enumerate(value):
            _refuse_lost(inner, f"{place}[{number}]")
    elif value is not None and not isinstance(value, (str, int, msgspec.Raw)):
        # A dataclass or another object that has a form as one of the above.
        plain = to_builtins(value, builtin_types=(*_BYTES, Decimal))
        if not isinstance(plain, str):
            _refuse_lost(plain, place)


def form(name: str, argument: str) -> tuple[str, Any]:
    """The key and horizontal of a string form: ``zLink(/admin/users)`` from the path alone or the whole."""
    text = argument.strip()
    if text.startswith(f"{name}("):
        return name, text
    if name == "zOpen" and (text != argument or "," in text):
        # What the form has no way to write.
        return name, {"name": argument}
    return name, f"{name}({text})"


def call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> tuple[str, Any]:
    """The key and horizontal of a function call: in JSON, or the whole ``zFunc(…)`` as a text.

    :raises TypeError: for a ``name`` that is no text, ``args`` that are no list and ``kwargs`` that are no dict.
    """
    if not isinstance(name, str):
        raise TypeError(f"a function is called by its name, not by {type(name).__name__}")
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise TypeError(f"args are a list, not {type(args).__name__}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs are a dict, not {type(kwargs).__name__}")
    if not args and not kwargs and name.strip().startswith("zFunc("):
        return "zFunc", name.strip()
    return "zFunc", {"name": name, "args": list(args), **({"kwargs": dict(kwargs)} if kwargs else {})}
