"""Names of models and fields: what they may look like."""

from __future__ import annotations

import re

__all__ = ["MAX_NAME", "is_name"]

#: The longest identifier PostgreSQL keeps whole (NAMEDATALEN - 1).
MAX_NAME = 63
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)


def is_name(text: object) -> bool:
    """Whether ``text`` can name a model or a field.

    Two underscores in a row separate a field from its operator in a filter (``age__gte``), so that no
    name may have them.
    """
    return isinstance(text, str) and len(text) <= MAX_NAME and _NAME.match(text) is not None and "__" not in text
