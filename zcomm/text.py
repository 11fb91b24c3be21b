"""Text: names that nearly fit, what may be shown of a client's words and of secrets. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "quoted", "redact"]

#: Characters of the longest name that a near one is looked for: comparing takes time by the square of the length.
_MAX_NAME = 100

#: A name with a word in it that says that a secret follows. Looked at once from its beginning, whole: names of other
#: programs' making may be long.
_NAME = r"(?=[\w-]*(?:pass(?:word|wd|phrase)?|secret|token|auth(?:orization)?|api_?key)s?(?![a-z]))[\w-]++"
_SECRETS = re.compile(
    rf"""(?ix)
    (?P<kept>
        (?<![\w-]) {_NAME} (?:["']?\s*[=:]|%3d) \s* (?:bearer[\s.]+)?
        | (?<!\S) --? {_NAME} \s+
        | \b (?:requirepass|masterauth|password|passwd) \s+
        | \b (?:secret|token) \s+ (?=["']|\S*\d)
        | \b bearer (?:\.|\s+|%20)
    )
    (?: (?P<quote>["']) (?:(?!(?P=quote)).)* (?P=quote)? | [^\s&"'\#,;<>]+ )
    | \b zc_[a-z0-9]+_[a-z0-9_\-]{{8,}}
    """
)


def did_you_mean(name: object, known: Iterable[str], *, or_list: bool = False) -> str:
    """A hint to put behind "unknown …": the one of ``known`` that is most like ``name``, case aside.

    :param or_list: where none is like it, list all that are known instead of saying nothing.
    :return: for example ``; did you mean "email"?``, ``; known are name, email``, or an empty text.
    """
    names = list(known)
    if isinstance(name, str) and len(name) <= _MAX_NAME:
        by_folded = {each.lower(): each for each in names}
        if near := get_close_matches(name.lower(), by_folded, 1):
            return f'; did you mean "{by_folded[near[0]]}"?'
    return f"; known are {', '.join(names)}" if or_list else ""


def quoted(text: object) -> str:
    """What a client sent, fit to stand in a message: at most 64 characters, printable, in quotation marks."""
    shown = text if isinstance(text, str) else "of that kind"
    if len(shown) > 64:
        shown = shown[:61] + "..."
    return '"' + "".join(char if char.isprintable() else "?" for char in shown) + '"'


def redact(text: str, *secrets: str) -> str:
    """``text`` with secrets replaced by ``***``, for log lines, error messages and command lines.

    Replaced are the given ``secrets``, zComm's own tokens, and what follows ``password``, ``token``, ``Bearer`` and
    their like: in queries, headers, options, settings and JSON.
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _SECRETS.sub(_blanked, text)


def _blanked(match: re.Match[str]) -> str:
    quote = match["quote"] or ""
    return f"{match['kept'] or ''}{quote}***{quote}"
