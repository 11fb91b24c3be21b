"""Names of models and fields: what they may look like, and how an unknown one is spoken of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["MAX_NAME", "is_name", "nearest", "quoted"]

#: The longest identifier PostgreSQL keeps whole (NAMEDATALEN - 1).
MAX_NAME = 63
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)


def is_name(text: object) -> bool:
    """Whether ``text`` can name a model or a field.

    Two underscores in a row separate a field from its operator in a filter (``age__gte``), so that no
    name may have them.
    """
    return isinstance(text, str) and len(text) <= MAX_NAME and _NAME.match(text) is not None and "__" not in text


def quoted(text: object) -> str:
    """What a client sent, fit to stand in a message: short, printable, in quotation marks."""
    shown = text if isinstance(text, str) else "of that kind"
    if len(shown) > 64:
        shown = shown[:61] + "..."
    return '"' + "".join(char if char.isprintable() else "?" for char in shown) + '"'


def nearest(text: object, known: Iterable[str]) -> str:
    """A hint at the known name that is most like ``text``; empty when none is.

    :return: for example ``; did you mean "email"?``
    """
    # Comparing takes time by the square of the length; a name this long is no slip of the finger.
    if not isinstance(text, str) or len(text) > MAX_NAME + 12:
        return ""
    by_folded = {name.lower(): name for name in known}
    found = difflib.get_close_matches(text.lower(), by_folded, 1, 0.6)
    return f'; did you mean "{by_folded[found[0]]}"?' if found else ""
