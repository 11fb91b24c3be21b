"""The string forms ``zFunc(name, {a: 1})``, ``zLink(/path)`` and ``zOpen(file)`` as values, and the same in JSON.

Nothing here is evaluated or looked up: text in, a :class:`Call` of JSON values out. The arguments of
``zFunc`` are JSON with three liberties: bare keys, single quotes, and bare words, which are strings
(``zContext`` is the text "zContext" and never an object of the server). Each character is looked at a
fixed number of times, and texts beyond a limit not at all, so that no text takes long to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from zcomm.bifrost.messages import MAX_PRICE
from zcomm.errors import Invalid, UnknownCommand
from zcomm.text import did_you_mean, quoted
from zcomm.wire.frames import price

__all__ = ["FUNCTION_NAME", "PAGE_PATH", "Call", "parse_call"]

#: The name of a function that clients may call. A leading underscore is for those that they may not.
FUNCTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
#: The path of a page.
PAGE_PATH = re.compile(r"[A-Za-z0-9_.\-/@~]{1,512}\Z")

#: Characters of a whole call whose arguments are strict JSON, which is decoded in C.
STRICT_LIMIT = 131_072
#: Characters of a whole call whose arguments use the liberties.
RELAXED_LIMIT = 16_384
#: Levels of nesting, as in a message.
MAX_DEPTH = 64
#: Characters of a file's name.
FILE_LIMIT = 512
#: What the forms that can be written in JSON take there.
_KEYS = {"zFunc": ("name", "args", "kwargs"), "zOpen": ("name",)}

# One token that strict JSON does not have as it is. A string that does not end is matched up to the end
# of the text, so that the search never starts again inside it; the quantifiers give nothing back.
_LIBERTY = re.compile(
    r'"(?:[^"\\]|\\.)*+(?P<double>"?)'
    r"|'(?P<inner>(?:[^'\\]|\\.)*+)(?P<single>'?)"
    r"|(?<![0-9A-Za-z_$.+\-])(?P<word>[A-Za-z_$][A-Za-z0-9_$.=\-]*+)(?P<colon>[ \t\r\n]*+:)?",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\Z")
_QUOTE_OR_ESCAPE = re.compile(r'"|\\\'')
# Words another language spells so; taken as strings they would mean the opposite of what was meant.
_MISTAKEN = {
    "True": "true",
    "False": "false",
    "None": "null",
    "undefined": "null",
    "NaN": "null",
    "Infinity": "null",
}

_decode = msgspec.json.Decoder(list).decode


@dataclass(frozen=True, slots=True)
class Call:
    """One parsed form.

    :ivar form: ``zFunc``, ``zLink`` or ``zOpen``.
    :ivar name: the function's name, the path or the file's name.
    :ivar args: the arguments of ``zFunc`` by place; empty for the other two.
    :ivar kwargs: those by name, which only JSON has.
    """

    form: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def parse_call(text: Any, form: str) -> Call:
    """``text``, which must be one ``form(…)``, or for ``zFunc`` and ``zOpen`` its JSON, as a :class:`Call`.

    :raises Invalid: for anything that is no such call, in words that say what is wrong.
    :raises UnknownCommand: for a ``zFunc`` whose name no function can have.
    """
    if type(text) is dict and form in _KEYS:
        return _object(text, form)
    if not isinstance(text, str):
        raise Invalid(f'Invalid arguments: {form} takes a string of the form "{form}(…)"')
    if len(text) > STRICT_LIMIT:
        longer = '; {"name": …, "args": […]} may be as long as a message' if form == "zFunc" else ""
        raise Invalid(f"Invalid arguments: {form}(…) is longer than {STRICT_LIMIT} characters{longer}")
    text = text.strip()
    if not text.startswith(form + "(") or not text.endswith(")"):
        raise Invalid(f'Invalid arguments: not of the form "{form}(…)"')
    inner = text[len(form) + 1 : -1]
    if form == "zFunc":
        return _function_call(inner)
    if form == "zLink":
        return Call(form, _path(inner.strip(" ")))
    return Call(form, _file(inner.strip(" ")))


def _object(given: dict[str, Any], form: str) -> Call:
    keys = _KEYS[form]
    for key in given:
        if key not in keys:
            raise Invalid(f"Invalid arguments: unknown key {quoted(key)}{did_you_mean(key, keys)}", {key: "is unknown"})
    name, args, kwargs = given.get("name"), given.get("args"), given.get("kwargs")
    if not isinstance(name, str) or not name:
        raise Invalid(f'Invalid arguments: {form} needs a name: {{"name": …}}', {"name": "must be a string"})
    if args is not None and type(args) is not list:
        raise Invalid("Invalid arguments: args must be a list", {"args": "must be a list"})
    if kwargs is not None and type(kwargs) is not dict:
        raise Invalid("Invalid arguments: kwargs must be an object", {"kwargs": "must be an object"})
    if form == "zOpen":
        if len(name) > FILE_LIMIT:
            raise Invalid(f"Invalid arguments: a file name has 1 to {FILE_LIMIT} characters")
        return Call(form, name)
    if not FUNCTION_NAME.match(name):
        raise UnknownCommand("Unknown function")
    return Call(form, name, tuple(args or ()), kwargs or {})


def _function_call(inner: str) -> Call:
    name, comma, arguments = inner.partition(",")
    name = name.strip(" ")
    if not name:
        raise Invalid('Invalid arguments: zFunc needs the name of a function: "zFunc(name, …)"')
    if not FUNCTION_NAME.match(name):
        raise UnknownCommand("Unknown function")
    return Call("zFunc", name, _arguments(arguments) if comma else ())


def _path(path: str) -> str:
    if "," in path:
        raise Invalid("Invalid arguments: zLink takes a path and nothing else")
    if not PAGE_PATH.match(path):
        raise Invalid("Invalid arguments: a path has 1 to 512 letters, digits or any of _ . - / @ ~")
    return path


def _file(name: str) -> str:
    if not name or len(name) > FILE_LIMIT:
        raise Invalid(f"Invalid arguments: a file name has 1 to {FILE_LIMIT} characters")
    if "," in name:
        raise Invalid('Invalid arguments: zOpen takes one name; a file with a comma in it is opened with {"name": …}')
    return name


def _arguments(text: str) -> tuple[Any, ...]:
    if not text.strip():
        raise Invalid("Invalid arguments: nothing follows the comma")
    try:
        found = _read(text)
    except (ValueError, RecursionError):
        # Strict JSON first: it is what most programs send, and costs a tenth.
        found = _relaxed(text)
    # Only text with that many brackets can be that deep.
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(found, MAX_DEPTH + 1):
        raise Invalid(f"Invalid arguments: nested more than {MAX_DEPTH} levels deep")
    return tuple(found)


def _read(text: str) -> list[Any]:
    """Strict JSON, less the brackets around it, unless that takes too long: the message had it as one text."""
    values = f"[{text}]".encode()
    if price(values) > MAX_PRICE:
        raise Invalid("Invalid arguments: too many values to read at once; send fewer")
    return _decode(values)


def _relaxed(text: str) -> list[Any]:
    if len(text) > RELAXED_LIMIT:
        raise Invalid(f"Invalid arguments: not strict JSON, and longer than {RELAXED_LIMIT} characters")
    try:
        return _read(_LIBERTY.sub(_strict, text))
    except RecursionError:
        raise Invalid(f"Invalid arguments: nested more than {MAX_DEPTH} levels deep") from None
    except ValueError:
        # msgspec's own text counts bytes of the rewritten text, which would mislead.
        raise Invalid("Invalid arguments: not JSON after the function's name") from None


def _strict(match: re.Match[str]) -> str:
    """One string or bare word as strict JSON has it."""
    word = match["word"]
    if word is None:
        if match["double"]:
            return match[0]
        if match["single"]:
            return f'"{_QUOTE_OR_ESCAPE.sub(_requoted, match["inner"])}"'
        raise Invalid("Invalid arguments: a string that does not end")
    colon = match["colon"]
    if colon is not None:
        if not _BARE_KEY.match(word):
            raise Invalid(f"Invalid arguments: the key {word[:40]} needs quotes")
        return f'"{word}":'
    if word in ("true", "false", "null"):
        return word
    if word in _MISTAKEN:
        raise Invalid(f'Invalid arguments: {word} is not JSON; write {_MISTAKEN[word]}, or the text "{word}"')
    return f'"{word}"'


def _requoted(match: re.Match[str]) -> str:
    return '\\"' if match[0] == '"' else "'"


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than ``levels`` deep in ``value``, level by level."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is list or type(inner) is dict
        ]
        if not layer:
            return False
    return True
