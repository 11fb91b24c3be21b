"""Texts as SQLite hands them out, and without their case, of all scripts: its own functions know of ASCII alone.

Python lets nobody else run while it reads a text of bytes or takes the case from it: a long one is done in pieces. What
a statement asks for again and again, as for each of its conditions on the same column of a row, is done once.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from typing import Any

__all__ = ["PIECE", "Folding", "decoded", "folded"]

#: Bytes, or characters, that are done in one piece. They take a millisecond at most.
PIECE = 16 * 1024
_decoder = getincrementaldecoder("utf-8")


def decoded(data: bytes) -> str:
    """A stored text, whose writer may have taken another encoding for UTF-8."""
    return data.decode("utf-8", "replace") if len(data) <= PIECE else "".join(_pieces(data))


def _pieces(value: str | bytes) -> Iterator[str]:
    if isinstance(value, str):
        for at in range(0, len(value), PIECE):
            yield value[at : at + PIECE]
        return
    decode = _decoder("replace").decode
    for at in range(0, len(value), PIECE):
        yield decode(value[at : at + PIECE], at + PIECE >= len(value))


def folded(text: str) -> str:
    """A short text without its case."""
    # The sigma at the end of a word is another one than within, which nobody means who does not mean the case.
    return text.lower().replace("ς", "σ")


class Folding:
    """Takes the case from texts, as a function of one connection: of the thread that uses it."""

    __slots__ = ("_folded", "_value")

    def __init__(self) -> None:
        self._value: str | bytes | None = None
        self._folded = ""

    def __call__(self, value: Any) -> Any:
        """A text without its case, which comes as bytes where it is of a column: what is not UTF-8 would fail on its
        way here. Any other value as it is."""
        if not isinstance(value, (str, bytes)):
            return value
        if len(value) <= PIECE:
            return folded(decoded(value) if isinstance(value, bytes) else value)
        if value != self._value:
            self._folded = "".join(map(folded, _pieces(value)))
            self._value = value
        return self._folded

    def forget(self) -> None:
        """Keep no text: the statement has ended."""
        self._value, self._folded = None, ""
