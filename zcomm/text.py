"""Text: names that nearly fit, what may be shown of a client's words and of secrets. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from urllib.parse import unquote_plus

__all__ = ["did_you_mean", "quoted", "redact", "redact_command", "redact_url"]

#: Characters of the longest name that a near one is looked for: comparing takes time by the square of the length.
_MAX_NAME = 100

#: A name with a word in it that says that a secret follows. Looked at once from its beginning, whole: names of other
#: programs' making may be long.
_NAME = r"(?<![\w-])(?=[\w-]*(?:pass(?:word|wd|phrase)?|secret|token|auth(?:orization)?|api[_-]?key)s?(?![a-z]))[\w-]++"
_QUOTED = r"""(?P<quote{0}>["']) (?: (?:\\.|(?!(?P=quote{0})).)* (?P=quote{0}) | [^\r\n]* )"""
#: In the order of what ends the secret, the narrowest first: in a query its next part, in JSON and a header a comma,
#: elsewhere nothing but a space. A word too many is blanked rather than a part of a secret shown.
_SECRETS = re.compile(
    rf"""(?isx)
    (?P<query> (?<=[?&\#]) {_NAME} (?:=|%3d) ) [^\s&\#]+
    | (?P<listed>
        {_NAME} ["'] \s* [=:] \s* (?:bearer[\s.]+)?
        | (?: {_NAME} (?:\s*[=:]\s*|%3d) )? \b bearer (?:\.|\s+|%20)
    ) (?: {_QUOTED.format(1)} | [^\s&"'\#,;<>]+ )
    | (?P<word>
        {_NAME} (?:\s*[=:]\s*|%3d)
        | (?<!\S) (?=-) {_NAME} \s+
        | \b (?:requirepass|masterauth|password|passwd|secret|token) \b \s* (?=[^\s=:])
    ) (?: {_QUOTED.format(2)} | (?:(?!&{_NAME}= | (?<![\w-])bearer(?:[.\s]|%20))\S)+ )
    | \b zc_[a-z0-9]+_[a-z0-9_\-]{{8,}}
    """
)
#: On a command line, here with NUL between its arguments, any word that has to do with secrets announces one.
_ARGUMENTS = re.compile(r"(?i)(?<![\w-])((?=[\w-]*(?:pass|secret|token|auth))[\w-]++[= \0])[^\0]+")
#: The password before a URL's host goes on to the last "@": who writes one there does not always escape it.
_URL_PASSWORD = re.compile(r"(?s)[^:/]*:(?P<secret>.*)@")
#: The name of a setting in a URL's query. Its value goes on to the next one: drivers take "#" and "@" for parts of it.
_URL_SETTING = re.compile(r"[?&](?P<name>[^=?&]*)=")
_URL_VALUE = re.compile(r"[^&]*(?:&[^&=]*(?=&|\Z))*")
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)


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
    """Text of a client, fit to stand in a message: at most 64 characters, printable, in quotation marks."""
    shown = text if isinstance(text, str) else "of that kind"
    if len(shown) > 64:
        shown = shown[:61] + "..."
    return '"' + "".join(char if char.isprintable() else "?" for char in shown) + '"'


def redact(text: str, *secrets: str) -> str:
    """``text`` with secrets replaced by ``***``, for log lines and error messages.

    Replaced are the given ``secrets``, zComm's own tokens, and what follows ``password``, ``token``, ``Bearer`` and
    their like: in queries, headers, options, settings, JSON and sentences.
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _SECRETS.sub(_blanked, text)


def redact_command(arguments: Iterable[str]) -> str:
    """A program's command line with secrets replaced by ``***``, those that are arguments of their own whole."""
    return redact(_ARGUMENTS.sub(r"\1***", "\0".join(arguments)).replace("\0", " "))


def redact_url(url: str) -> str:
    """A URL, or what was meant to be one, with ``***`` for the password before its host and the secrets in its query.

    An unescaped password lets a URL be read in two ways; then the secrets of both are replaced.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        # No telling where the user's name ends.
        return redact(re.sub(r"(?s).+@", "***@", url))
    secrets = [match.span("secret")] if (match := _URL_PASSWORD.match(rest)) else []
    seen = 0
    for setting in _URL_SETTING.finditer(rest):
        if setting.end() > seen and _SECRET_NAME.search(unquote_plus(setting["name"])):
            value = _URL_VALUE.search(rest, setting.end())
            seen = value.end() if value else len(rest)
            secrets.append((setting.end(), seen))
    shown, at = f"{scheme}://", 0
    for begin, end in sorted(secrets):
        if at < begin:
            shown += f"{rest[at:begin]}***"
        at = max(at, end)
    return redact(shown + rest[at:])


def _blanked(match: re.Match[str]) -> str:
    kept = match["query"] or match["listed"] or match["word"] or ""
    quote = match["quote1"] or match["quote2"] or ""
    return f"{kept}{quote}***{quote}"
