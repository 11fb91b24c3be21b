r"""Regular expressions for texts of clients and of logs: RE2's, matched in time that no pattern can inflate.

Python's ``re`` backtracks: a pattern like ``(a+)+b`` and thirty letters keep it busy for minutes, and patterns come
from files while the text comes from clients and servers. RE2 follows all alternatives at once. Its language is the
usual one without back references and look-around.

Where the two read a pattern differently, it means here what it means in Python: ``\d``, ``\w`` and ``\s`` know the
characters of all scripts. What cannot be kept so is refused rather than given another meaning. There are three
exceptions:

* ``$`` is the end of the text, and not also the place before a newline that ends it;
* where case does not count (``(?i)``), ``i`` and ``I`` are like one another only, not like Turkish ``İ`` and ``ı`` too;
* there, too, U+0345, an iota below a letter, belongs to ``\w``, since it is like the letter iota.
"""

from __future__ import annotations

import re
import string
from functools import cached_property
from typing import Any

import re2

__all__ = ["MAX_PATTERN", "MAX_TEXT", "Pattern", "PatternError"]

#: How long a pattern may be, in characters.
MAX_PATTERN = 500
#: How long a text it is matched with may be, in characters; longer ones never match.
MAX_TEXT = 10_000
#: Instructions of a pattern times characters of a text that take some milliseconds, where nothing can be remembered of
#: matching, as with ``.*a.{300}``.
LONG = 1_000_000
#: Bytes for one pattern, its program and what is remembered of matching it; the first that holds the program is taken.
#: It is small because RE2 stops remembering, where that does not pay, only when the memory is full. The other is for
#: repetitions such as ``\w{1,300}``: a class of all scripts is a thousand instructions.
MEMORY = (512 << 10, 16 << 20)

# str.isdecimal, str.isalnum with the underscore, and str.isspace, as members of a set. Each begins and ends with
# what cannot become an end of a range, whatever stands beside it.
_DIGIT = r"\p{Nd}"
_WORD = r"\p{L}_\p{N}"
_SPACE = r"\p{Z}\x{85}\x09-\x0d\x1c-\x1f"
_NO_SPACE = (
    r"\p{L}\x00-\x08\x0e-\x1b\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}"
    r"\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff}"
)
_CLASSES = {
    r"\d": f"[{_DIGIT}]",
    r"\D": f"[^{_DIGIT}]",
    r"\w": f"[{_WORD}]",
    r"\W": f"[^{_WORD}]",
    r"\s": f"[{_SPACE}]",
    r"\S": f"[^{_SPACE}]",
}
_MEMBERS = {r"\d": _DIGIT, r"\D": r"\P{Nd}", r"\w": _WORD, r"\s": _SPACE, r"\S": _NO_SPACE}
# Escapes that mean the same in RE2.
_ESCAPE = re.compile(r"\\(?:[nrtfv]|[pP](?:[A-Z]|\{\^?\w+\})|x(?:[0-9A-Fa-f]{2}|\{[0-9A-Fa-f]{1,6}\}))", re.ASCII)
_COUNT = re.compile(r"\{([0-9]+)(?:(,)([0-9]*))?\}")
#: What RE2 repeats at most. Numbers that it cannot read at all, too, it would take for the text that they are made of.
_MAX_COUNT = 1000
# A bracket that closes is a character where a set begins.
_SET = re.compile(r"\[\^?\]?")
_NAMED_SET = re.compile(r"\[:\^?[a-z]+:\]")


class PatternError(ValueError):
    """A pattern that is not in the language; the text says why and what to write."""


class Pattern:
    """A compiled pattern.

    :param text: the pattern.
    :raises PatternError: for what is not in the language or too big.
    """

    def __init__(self, text: str):
        if len(text) > MAX_PATTERN:
            raise PatternError(f"a pattern may have at most {MAX_PATTERN} characters")
        self.text = text
        self._expression = _compile(_translate(text))
        self._size: int = self._expression.programsize

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def matches(self, text: str) -> bool:
        """Whether the *whole* of ``text`` matches; write ``.*`` where anything may stand.

        Half a character (a lone surrogate) matches nothing.
        """
        if len(text) > MAX_TEXT:
            return False
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            return False
        return self._expression.fullmatch(encoded) is not None

    def takes_long(self, text: str) -> bool:
        """Whether :meth:`matches` may take more than some milliseconds, in which other threads run."""
        return len(text) <= MAX_TEXT and len(text) * self._size > LONG

    def found_in(self, text: str) -> bool:
        """Whether a part of ``text``, of any length, matches; ``^`` and ``$`` stand for the ends of its lines."""
        return self._in_lines.search(text.encode(errors="replace")) is not None

    @cached_property
    def _in_lines(self) -> Any:
        return _compile(f"(?m){_translate(self.text)}")


def _compile(text: str) -> Any:
    """A compiled expression of ``re2``, which has no types."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    reason = ""
    for options.max_mem in MEMORY:
        try:
            return re2.compile(text, options)
        except UnicodeEncodeError:
            raise PatternError("it holds half a character (a lone surrogate)") from None
        except re2.error as error:
            reason = error.args[0].decode(errors="replace")
    if "too large" in reason:
        raise PatternError("the pattern is too big; use smaller repeat counts")
    raise PatternError(f"{reason}; it can have what RE2 has (https://github.com/google/re2/wiki/Syntax)")


def _translate(text: str) -> str:
    """A pattern as RE2 has to read it to mean what it means in Python."""
    made: list[str] = []
    at, in_set = 0, False
    while at < len(text):
        part = text[at]
        if part == "\\":
            part, translated = _escape(text, at, in_set)
        elif in_set:
            if _NAMED_SET.match(text, at):
                raise PatternError(r"[:…:] is not supported; a letter is \p{L}, one of upper case \p{Lu}, a digit \d")
            translated = r"\[" if part == "[" else part
            in_set = part != "]"
        elif begun := _SET.match(text, at):
            part = translated = begun.group()
            in_set = True
        elif part == "{":
            part, translated = _count(text, at)
        else:
            translated = part
        made.append(translated)
        at += len(part)
    return "".join(made)


def _count(text: str, at: int) -> tuple[str, str]:
    """The count at a place of a pattern, and the same without leading zeros, which RE2 would not take for a count."""
    count = _COUNT.match(text, at)
    if count is None:
        raise PatternError(
            rf"'{{' begins a count like {{2}}, {{2,}} or {{2,5}} at character {at + 1}; write \{{ for it"
        )
    least, comma, most = count.groups(default="")
    if any(int(number or 0) > _MAX_COUNT for number in (least, most)):
        raise PatternError(f"a count goes to {_MAX_COUNT}, at character {at + 1}; use smaller repeat counts")
    return count.group(), f"{{{int(least)}{comma}{int(most) if most else ''}}}"


def _escape(text: str, at: int, in_set: bool) -> tuple[str, str]:
    """The escape at a place of a pattern, and what RE2 calls it."""
    part = text[at : at + 2]
    if part == r"\W" and in_set:
        raise PatternError(r"\W within [] is not supported; \p{L} is a letter, \P{L} anything else, [^\w] stands alone")
    if part in _CLASSES:
        return part, (_MEMBERS if in_set else _CLASSES)[part]
    if known := _ESCAPE.match(text, at):
        return known.group(), known.group()
    char = part[1:]
    if not char or char.isalnum():
        raise PatternError(f"{part} is not supported at character {at + 1}")
    return part, part if char in string.punctuation and char != "_" else char
