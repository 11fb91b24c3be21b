"""Text: names that nearly fit, what may be shown of a client's words and of secrets. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote_plus

__all__ = ["did_you_mean", "quoted", "redact", "redact_command", "redact_url", "some"]

#: Characters of the longest name that a near one is looked for: comparing takes time by the square of the length.
_MAX_NAME = 64
#: Names that it is looked for among, and of those the ones that are compared letter by letter.
_MAX_KNOWN, _COMPARED = 500, 3
#: Twice the common letters by all letters, of names that are near.
_ALIKE = 0.6

#: A name with a word in it that says that a secret follows. Looked at once from its beginning, whole: names of other
#: programs' making may be long.
_NAME = r"(?<![\w-])(?=[\w-]*(?:pass(?:word|wd|phrase)?|secret|token|auth(?:orization)?|api[_-]?key)s?(?![a-z]))[\w-]++"
_QUOTED = r"""(?P<quote{0}>["']) (?: (?:\\.|(?!(?P=quote{0})).)* (?P=quote{0}) | [^\r\n]* )"""
#: In the order of what ends the secret, the narrowest first: in a query its next part, in JSON and a header a comma,
#: elsewhere nothing but a space. A word too many is blanked rather than a part of a secret shown.
_SECRETS = re.compile(
    rf"""(?isx)
    (?P<query> (?<=[?&\#]) (?:{_NAME}|code) (?:=|%3d) ) [^\s&\#]+
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
    | \b code\.[a-z0-9_\-]{{22}} (?![\w-])
    """
)
#: On a command line, here with NUL between its arguments, any word that has to do with secrets announces one.
_ARGUMENTS = re.compile(r"(?i)(?<![\w-])((?=[\w-]*(?:pass|secret|token|auth))[\w-]++[= \0])[^\0]+")
#: The password before a URL's host goes on to the last "@": who writes one there does not always escape it.
_URL_PASSWORD = re.compile(r"(?s)[^:/]*:(?P<secret>.*)@")
#: The name of a setting in a URL's query. Its value goes on to the next one: drivers take "#" and "@" for parts of it.
_URL_SETTING = re.compile(r"[?&](?P<name>[^=?&]*)=")
_URL_VALUE = re.compile(r"[^&]*(?:&[^&=]*(?=&|\Z))*")
_URL_AUTHORITY = re.compile(r"[^/?#]*")
#: The settings that may be shown. Of all others, misspelled ones too, nobody knows that they are no secrets.
_SHOWN_SETTINGS = frozenset(
    """
    application_name cache cached_statements channel_binding charset check_same_thread client_encoding connect_timeout
    dbname detect_types fallback_application_name gssencmode host hostaddr immutable isolation_level keepalives
    keepalives_count keepalives_idle keepalives_interval krbsrvname load_balance_hosts mode nolock passfile port
    prepare_threshold psow replication service servicefile ssl_max_protocol_version ssl_min_protocol_version sslcert
    sslcertmode sslcompression sslcrl sslcrldir sslmode sslnegotiation sslrootcert sslsni
    target_session_attrs tcp_user_timeout timeout uri user vfs
    """.split()
)
#: Text that is as plain as the part of a URL that it stands for. An escape is plain in none but as "@" in a user's
#: name and as "/" in a host, which is the directory of a socket then.
_PLAIN_SCHEME = re.compile(r"[\w+.-]*")
_PLAIN_USER = re.compile(r"(?:[\w.+~-]|%40)*")
_PLAIN_HOST = r"(?:\[[\w:.]*\]|(?:[\w.~-]|%2f)*)(?::\d{0,5}(?=[,/?]|\Z))?"
_PLAIN_HOSTS = re.compile(rf"(?i){_PLAIN_HOST}(?:,{_PLAIN_HOST})*")
_PLAIN_PATH = re.compile(r"[\w.$~+/ -]*")
_PLAIN_VALUE = re.compile(r"(?:[\w./,@* -]|:(?=\d{0,5}(?:,|\Z)))*")
_PLAIN_NAME = re.compile(r"[\w.%+-]{0,40}")


def did_you_mean(
    name: object, known: Iterable[str], *, or_list: bool = False, allowed: Callable[[str], bool] | None = None
) -> str:
    """A hint to put behind "unknown …": the one of ``known`` that is most like ``name``, case aside.

    It takes a millisecond or two at most, whatever the name and however many are known.

    :param or_list: where none is like it, list all that are known instead of saying nothing.
    :param allowed: which of ``known`` may be told of; asked of those that look like ``name``.
    :return: for example ``; did you mean "email"?``, ``; known are name, email``, or an empty text.
    """
    if or_list:
        known = list(known)
    if isinstance(name, str) and len(name) <= _MAX_NAME:
        near = _nearest(name.lower(), islice(known, _MAX_KNOWN), allowed)
        if near is not None:
            return f'; did you mean "{near}"?'
    return f"; known are {', '.join(known)}" if or_list else ""


def _nearest(name: str, known: Iterable[str], allowed: Callable[[str], bool] | None) -> str | None:
    """The one of ``known`` that is most like ``name``: compared are those that have most letters in common with it."""
    letters = _letters(name)
    alike = []
    for place, each in enumerate(known):
        # The same twice the common letters by all letters that the comparison itself cannot exceed.
        most = 2 * len(letters & _known_letters(each)) / (len(name) + len(each) or 1)
        if most >= _ALIKE:
            alike.append((-most, place, each))
    compared = SequenceMatcher()
    compared.set_seq2(name)
    found, best, left = None, _ALIKE, _COMPARED
    for most, _, each in sorted(alike):
        if not left or -most < best:
            break
        if allowed is None or allowed(each):
            left -= 1
            compared.set_seq1(each.lower())
            if (ratio := compared.ratio()) >= best and (found is None or ratio > best):
                found, best = each, ratio
    return found


def _letters(name: str) -> frozenset[tuple[str, int]]:
    """The characters of ``name``, each with how often it stood before."""
    seen: Counter[str] = Counter()
    letters = []
    for letter in name[:_MAX_NAME]:
        letters.append((letter, seen[letter]))
        seen[letter] += 1
    return frozenset(letters)


@lru_cache(maxsize=2048)
def _known_letters(name: str) -> frozenset[tuple[str, int]]:
    return _letters(name.lower())


def quoted(text: object) -> str:
    """Text of a client, fit to stand in a message: at most 64 characters, printable, in quotation marks."""
    shown = text if isinstance(text, str) else "of that kind"
    if len(shown) > 64:
        shown = shown[:61] + "..."
    return '"' + "".join(char if char.isprintable() else "?" for char in shown) + '"'


def some(names: Iterable[str], most: int = 5) -> str:
    """``names`` in a line, at most so many of them: ``a, b and 3 more``."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def redact(text: str, *secrets: str) -> str:
    """``text`` with secrets replaced by ``***``, for log lines and error messages.

    Replaced are the given ``secrets``, zComm's own tokens and one-time codes, and what follows ``password``, ``token``,
    ``Bearer`` and their like: in queries, headers, options, settings, JSON and sentences.
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _SECRETS.sub(_blanked, text)


def redact_command(arguments: Iterable[str]) -> str:
    """A program's command line with secrets replaced by ``***``, those that are arguments of their own whole."""
    return redact(_ARGUMENTS.sub(r"\1***", "\0".join(arguments)).replace("\0", " "))


def redact_url(url: str) -> str:
    """A URL, or what was meant to be one, with ``***`` for all that may be a secret.

    Shown are scheme, user, hosts, ports and path that look like ones, the path of a file whatever it looks like, and
    the settings in the query that are known to be none. An unescaped password lets a URL be read in two ways; then the
    secrets of both are replaced.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        # No telling where the user's name ends.
        user, at_sign, place = url.rpartition("@")
        return redact(_without_settings(f"***@{place}" if user else at_sign + place))
    if not _PLAIN_SCHEME.fullmatch(scheme):
        scheme = "***"
    secrets = _secret_settings(rest)
    start = 0
    if match := _URL_PASSWORD.match(rest):
        start, user_end = match.end(), match.start("secret") - 1
        secrets.append(match.span("secret"))
        plain = _PLAIN_USER.match(rest, 0, user_end)
        if plain and plain.end() < user_end and not _URL_SETTING.match(rest, plain.end()):
            secrets.append((0, user_end))
    if not (scheme.startswith("sqlite") and rest.startswith("/", start)):
        secrets += _not_plain(rest, start)
    shown, at = f"{scheme}://", 0
    for begin, end in sorted(secrets):
        if at <= begin:
            shown += rest[at:begin]
            shown += "" if shown.endswith("***") else "***"
        at = max(at, end)
    return redact(shown + rest[at:])


def _secret_settings(rest: str) -> list[tuple[int, int]]:
    """The places in a URL of the values of all settings but those that may be shown.

    What follows a secret is shown again from the next setting on that may be: an unescaped password looks like others.
    """
    secrets: list[tuple[int, int]] = []
    seen, begin = 0, -1
    for setting in _URL_SETTING.finditer(rest):
        if setting.start() < seen:
            continue
        match = _URL_VALUE.match(rest, setting.end())
        seen = match.end() if match else setting.end()
        is_shown = unquote_plus(setting["name"]).lower() in _SHOWN_SETTINGS
        if begin >= 0:
            if not is_shown:
                continue
            secrets.append((begin, setting.start()))
            begin = -1
        if not is_shown or not _PLAIN_VALUE.fullmatch(unquote_plus(rest[setting.end() : seen])):
            begin = setting.end() if _PLAIN_NAME.fullmatch(setting["name"]) else setting.start("name")
    return [*secrets, (begin, len(rest))] if begin >= 0 else secrets


def _not_plain(rest: str, start: int) -> list[tuple[int, int]]:
    """The places in a URL, from ``start`` on, of what does not look like its part; a user there has no password."""
    secrets = []
    authority = _URL_AUTHORITY.match(rest, start)
    user_end = rest.rfind("@", start, authority.end() if authority else start)
    if user_end >= 0:
        if not _PLAIN_USER.fullmatch(rest, start, user_end):
            secrets.append((start, user_end))
        start = user_end + 1
    hosts = _PLAIN_HOSTS.match(rest, start)
    at = hosts.end() if hosts else start
    if rest[at : at + 1] not in ("", "/", "?"):
        # A port that is no number is the password of a URL without a host, whatever stands behind it.
        return [*secrets, (at + (rest[at] == ":"), len(rest))]
    query = rest.find("?", at)
    path_end = query if query >= 0 else len(rest)
    if not _PLAIN_PATH.fullmatch(rest, at, path_end):
        secrets.append((at + 1, path_end))
    if 0 <= query < len(rest) - 1 and not _URL_SETTING.match(rest, query):
        following = _URL_SETTING.search(rest, query + 1)
        secrets.append((query + 1, following.start() if following else len(rest)))
    return secrets


def _without_settings(text: str) -> str:
    """Text that is no URL, up to the value of a setting that may not be shown or to a second colon."""
    text = re.sub(r"(?s)\A([a-z][\w+.-]*:[^:]+:).+", r"\1***", text, flags=re.IGNORECASE)
    at = 0
    while (end := text.find("=", at)) >= 0:
        words = re.split(r"[\s?&;,]", text[at:end].rstrip())
        if words[-1].lower() not in _SHOWN_SETTINGS:
            return f"{text[: end + 1]}***"
        at = end + 1
    return text


def _blanked(match: re.Match[str]) -> str:
    kept = match["query"] or match["listed"] or match["word"] or ""
    quote = match["quote1"] or match["quote2"] or ""
    return f"{kept}{quote}***{quote}"
