"""The names of topics, and the patterns that kinds of them are declared by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from zcomm.errors import ConfigError

__all__ = ["MAX_NAME", "NamePattern", "is_topic_name", "user_part"]

#: Characters of a name.
MAX_NAME = 255

_NAME = re.compile(rf"[A-Za-z0-9_.:@/%-]{{1,{MAX_NAME}}}")
_LITERAL = re.compile(r"[A-Za-z0-9_.@/%-]*")
_PART = re.compile(r"([^{}]*)\{([^{}]*)\}([^{}]*)")


def is_topic_name(name: object) -> bool:
    """Whether ``name`` can be that of a topic."""
    return type(name) is str and _NAME.fullmatch(name) is not None


def user_part(name: str) -> str | None:
    """The name of a user as it stands in the name of a topic: in UTF-8 and percent-encoded, but for letters, digits and
    ``_.@-``; ``None`` for one that is no text, or too long for any topic."""
    try:
        part = quote(name, safe="@").replace("~", "%7E")
    except UnicodeEncodeError:
        return None
    return part if 0 < len(part) <= MAX_NAME else None


@dataclass(frozen=True, slots=True)
class _Segment:
    """What stands between two colons.

    :ivar before: stands before the parameter; the whole of a segment without one.
    :ivar parameter: its name; empty where there is none.
    """

    before: str
    parameter: str = ""
    after: str = ""

    def value(self, text: str) -> str | None:
        """The parameter's value in ``text``; ``None`` where that does not fit. Empty for a segment without one."""
        if not self.parameter:
            return "" if text == self.before else None
        end = len(text) - len(self.after)
        if end <= len(self.before) or not (text.startswith(self.before) and text.endswith(self.after)):
            return None
        return text[len(self.before) : end]

    def meets(self, other: _Segment) -> bool:
        """Whether a text fits both."""
        if not self.parameter:
            return other.value(self.before) is not None
        if not other.parameter:
            return self.value(other.before) is not None
        begins, ends = sorted((self.before, other.before), key=len), sorted((self.after, other.after), key=len)
        return begins[1].startswith(begins[0]) and ends[1].endswith(ends[0])


class NamePattern:
    """The names of one kind of topic: ``room:{id}``, where ``{id}`` is one or more characters other than ``:``.

    There is at most one parameter between two colons, so that each name is read in one way only.

    :ivar text: as it was declared.
    :ivar parameters: their names, in order.
    :ivar rank: sorts patterns, the narrower before the wider one.
    :raises ConfigError: naming what is wrong with it.
    """

    def __init__(self, text: str, where: str = "topic"):
        def fault(reason: str) -> ConfigError:
            return ConfigError(where, f"{text!r:.80}: {reason}")

        if not isinstance(text, str) or not text:
            raise fault("the pattern of a kind is a text such as room:{id}")
        segments = []
        for part in text.split(":"):
            match = _PART.fullmatch(part)
            if match is None and ("{" in part or "}" in part):
                raise fault("a parameter is written {name}, and at most one stands between two colons")
            before, parameter, after = match.groups() if match else (part, "", "")
            if not _LITERAL.fullmatch(before + after):
                raise fault("names of topics have letters, digits and _.:@/%- only")
            if match is not None and not (parameter.isidentifier() and parameter.isascii()):
                raise fault(f"{{{parameter}}} is no name of a parameter; use one such as {{id}}")
            segments.append(_Segment(before, parameter, after))
        self.text = text
        self.parameters = tuple(segment.parameter for segment in segments if segment.parameter)
        if len(set(self.parameters)) < len(self.parameters):
            raise fault("a parameter is there twice")
        if len(text) - sum(len(name) + 1 for name in self.parameters) > MAX_NAME:
            raise fault(f"a name has {MAX_NAME} characters at most")
        self._segments = tuple(segments)
        self.rank = tuple(
            (1, -len(segment.before) - len(segment.after), segment.before)
            if segment.parameter
            else (0, 0, segment.before)
            for segment in segments
        )
        #: The same for patterns that differ in the names of their parameters only.
        self.shape = tuple((segment.before, bool(segment.parameter), segment.after) for segment in segments)

    @property
    def glob(self) -> str:
        """The pattern as a policy has it: with a star for each parameter."""
        return self.name(dict.fromkeys(self.parameters, "*"))

    def match(self, name: str) -> dict[str, str] | None:
        """The values of the parameters in ``name``; ``None`` where it does not fit."""
        parts = name.split(":")
        if len(parts) != len(self._segments):
            return None
        values = {}
        for segment, part in zip(self._segments, parts, strict=True):
            value = segment.value(part)
            if value is None:
                return None
            if segment.parameter:
                values[segment.parameter] = value
        return values

    def meets(self, other: NamePattern) -> bool:
        """Whether a name fits both."""
        mine, others = self._segments, other._segments
        return len(mine) == len(others) and all(one.meets(two) for one, two in zip(mine, others, strict=True))

    def name(self, values: Mapping[str, str]) -> str:
        """The name with these values of the parameters."""
        return ":".join(
            segment.before + values[segment.parameter] + segment.after if segment.parameter else segment.before
            for segment in self._segments
        )
