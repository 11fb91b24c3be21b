"""Rules of a field's values beyond its type, as ``rules`` in a schema declare them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from zcomm.data.values import Kind
from zcomm.patterns import Pattern

__all__ = ["FORMATS", "Rules"]

# Each of these is linear: no two neighbouring repetitions can match the same character.
_EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s.\x00-\x1f]+(?:\.[^@\s.\x00-\x1f]+)+\Z")
_PHONE = re.compile(r"\+?[0-9 ().\-/]{3,30}\Z", re.ASCII)


def _is_email(text: str) -> bool:
    # 254 characters is the longest address that SMTP can carry (RFC 5321, erratum 1690).
    return len(text) <= 254 and _EMAIL.match(text) is not None


def _is_url(text: str) -> bool:
    if len(text) > 2048 or any(char.isspace() or not char.isprintable() for char in text):
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _is_phone(text: str) -> bool:
    # 15 digits is the longest number there is (ITU-T E.164).
    return _PHONE.match(text) is not None and 3 <= sum(char.isdigit() for char in text) <= 15


FORMATS: dict[str, tuple[Callable[[str], bool], str]] = {
    "email": (_is_email, "must be an e-mail address"),
    "url": (_is_url, "must be an http or https URL"),
    "phone": (_is_phone, "must be a phone number"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one field; ``None`` where there is no such rule.

    :ivar min_length: characters of a str at least.
    :ivar max_length: characters of a str at most.
    :ivar min: the smallest value, in the field's Python type.
    :ivar max: the largest value.
    :ivar pattern: what the whole str must match.
    :ivar format: ``email``, ``url`` or ``phone``.
    :ivar error_message: said in place of zComm's own text.
    """

    min_length: int | None = None
    max_length: int | None = None
    min: Any = None
    max: Any = None
    pattern: Pattern | None = None
    format: str | None = None
    error_message: str | None = None

    def broken_by(self, value: Any, kind: Kind) -> str | None:
        """Find the first rule that ``value`` breaks.

        :return: a reason that reads on from the field's name; ``None`` when no rule is broken.
        """
        reason = self._reason(value, kind)
        return reason if reason is None or self.error_message is None else self.error_message

    def _reason(self, value: Any, kind: Kind) -> str | None:
        if self.min_length is not None and len(value) < self.min_length:
            return f"must have at least {self.min_length} characters"
        if self.max_length is not None and len(value) > self.max_length:
            return f"must have at most {self.max_length} characters"
        # NaN is on neither side of anything, and a Decimal that is NaN cannot even be asked.
        nan = value != value
        if self.min is not None and (nan or value < self.min):
            return f"must be at least {kind.show(self.min)}"
        if self.max is not None and (nan or value > self.max):
            return f"must be at most {kind.show(self.max)}"
        if self.format is not None:
            check, text = FORMATS[self.format]
            if not check(value):
                return text
        if self.pattern is not None and not self.pattern.matches(value):
            return "does not have the required form"
        return None
