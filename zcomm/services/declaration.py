"""The declaration of a service, one small value: how to run it, how to see that it works, how to end it.

PostgreSQL, Redis and whatever a user adds (in Python, or in the YAML file of ``--services``) are the
same kind of thing to the rest of zComm. Nothing here does I/O.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Any

from zcomm.config import port_number
from zcomm.errors import ConfigError
from zcomm.patterns import Pattern, PatternError
from zcomm.text import did_you_mean

__all__ = [
    "AUTO",
    "PROBES",
    "Probe",
    "ServiceDeclaration",
    "Settings",
    "StopStep",
    "check_port_number",
    "dependency_order",
    "fill",
    "signal_number",
]

#: As a port: take a free one and keep it from then on.
AUTO = "auto"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
PLACEHOLDERS = ("host", "port", "data_dir", "user")
#: A word in braces, or in two pairs of them; ``${…}`` is the shell's.
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|(?<![${])\{([A-Za-z_]\w*)\}(?!\})")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+\Z")
_PATH = re.compile(r"/[!-~]*\Z")
_KIND = re.compile(r"[a-z][a-z0-9_]*\Z")
#: The questions that any server may be asked.
PROBES = ("tcp", "http", "exec", "log", "none")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one run of a service, all of them decided.

    :ivar port: the TCP port, 0 for a service without one.
    :ivar data_dir: absolute path of its data directory.
    :ivar user: the account it runs as.
    """

    host: str
    port: int
    data_dir: str
    user: str = ""


def fill(text: str, settings: Settings) -> str:
    """Put the settings into ``{host}``, ``{port}``, ``{data_dir}`` and ``{user}``.

    ``{{word}}`` becomes ``{word}``; ``${word}``, and braces around anything but one word, stay.
    """

    def filled(match: re.Match[str]) -> str:
        if match[1]:
            return f"{{{match[1]}}}"
        return str(getattr(settings, match[2])) if match[2] in PLACEHOLDERS else match[0]

    return _PLACEHOLDER.sub(filled, text)


def _check_words(name: str, words: Sequence[str]) -> None:
    """:raises ConfigError: for what cannot be a command."""
    if isinstance(words, str):
        raise ConfigError(name, f"{words!r} is no list of words")
    bad = [word for word in words if not isinstance(word, str) or "\0" in word]
    if bad:
        raise ConfigError(name, f"{bad[0]!r} cannot be part of a command")
    if words and not words[0].strip():
        raise ConfigError(name, "the command has no program")


def _check_placeholders(service: str, text: str, port: int | str) -> None:
    for match in _PLACEHOLDER.finditer(text):
        if match[2] and match[2] not in PLACEHOLDERS:
            known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
            raise ConfigError(
                service,
                f"{match[0]} in {text!r} stands for nothing{did_you_mean(match[2], PLACEHOLDERS)}; there are {known}, "
                f"and {{{match[0]}}} is the word itself in braces",
            )
        if match[2] == "port" and port == 0:
            raise ConfigError(service, f"{text!r} has a port, and the service has none; declare one, or port: auto")


@dataclass(frozen=True, slots=True)
class Probe:
    """One way to ask a server whether it works.

    ``tcp`` (something accepts), ``http`` (a status below 500 for ``path``), ``exec`` (``argv`` exits
    with 0), ``log`` (a line matches ``pattern``, see
    :mod:`zcomm.patterns`; of a line the first 10 000 bytes count), ``none`` (it runs, so it works), or the name of a
    kind of server that zComm knows (``postgresql``, ``redis``): then in its own protocol.

    :ivar every: seconds between two questions.
    :ivar timeout: seconds one answer may take.
    """

    kind: str = "tcp"
    _: KW_ONLY
    path: str = "/"
    pattern: str = ""
    argv: tuple[str, ...] = ()
    every: float = 0.01
    timeout: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not _KIND.match(self.kind):
            raise ConfigError("probe", f"{self.kind!r} is no kind of probe")
        if self.kind == "log":
            try:
                _compiled(self.pattern)
            except PatternError as error:
                raise ConfigError("probe", f"the log pattern: {error}") from None
            if not self.pattern:
                raise ConfigError("probe", "a log probe needs a pattern")
        if self.kind == "exec" and not self.argv:
            raise ConfigError("probe", "an exec probe needs a command")
        _check_words("probe", self.argv)
        if self.kind == "http" and not _PATH.match(self.path):
            raise ConfigError(
                "probe", "an http probe needs a path that starts with /, with %XX for all but visible ASCII characters"
            )
        if not 0 < self.every <= 3600 or not 0 < self.timeout <= 3600:
            raise ConfigError("probe", "every and timeout are seconds between 0 and 3600")

    def found_in(self, line: str) -> bool:
        """Whether a line of the log matches the pattern."""
        return _compiled(self.pattern).found_in(line)


# A probe that waits asks every few milliseconds.
_compiled = lru_cache(32)(Pattern)


def signal_number(name: str | int) -> int:
    """``"TERM"``, ``"SIGTERM"`` or 15 as a signal number.

    :raises ConfigError: for anything that is no signal of this system.
    """
    try:
        if isinstance(name, int) and not isinstance(name, bool):
            return int(signal.Signals(name))
        text = str(name).upper()
        return int(signal.Signals[text if text.startswith("SIG") else f"SIG{text}"])
    except (KeyError, ValueError):
        raise ConfigError("stop", f"{name!r} is not a signal") from None


@dataclass(frozen=True, slots=True)
class StopStep:
    """One rung of a stop ladder: send ``signal``, then wait ``seconds`` for the end."""

    signal: int
    seconds: float

    def __post_init__(self) -> None:
        signal_number(self.signal)
        if not 0 < self.seconds <= 3600:
            raise ConfigError("stop", "the seconds of a step lie between 0 and 3600")


Argv = tuple[str, ...] | Callable[[Settings], Sequence[str]]


@dataclass(frozen=True, slots=True)
class ServiceDeclaration:
    """One kind of local server.

    :ivar name: lower-case letters, digits, ``-`` and ``_``; it also names its directory.
    :ivar argv: the command, with placeholders (see :func:`fill`), or a function of the settings.
    :ivar kind: the name of a kind of server that zComm knows, which needs no ``argv``; empty for any other.
    :ivar port: the default port, ``"auto"``, or 0 for none.
    :ivar ready: what must succeed once before the service counts as running.
    :ivar alive: what must keep succeeding; ``None`` when the process itself is all there is to watch.
    :ivar stop: the ladder; the last step ought to be ``SIGKILL``.
    :ivar url: the connection URL, with placeholders.
    :ivar depends_on: services that must be ready first.
    :ivar environment: variables it gets besides the few every child gets.
    :ivar user: the account to run as when zComm runs as root.
    :ivar start_timeout: seconds until a start that is not ready is given up.
    :ivar parent_death_signal: what it gets when zComm itself is killed (``lifetime="session"``).
    """

    name: str
    argv: Argv = ()
    _: KW_ONLY
    kind: str = ""
    port: int | str = 0
    host: str = "127.0.0.1"
    ready: Probe = Probe("none")
    alive: Probe | None = None
    stop: tuple[StopStep, ...] = (StopStep(signal.SIGTERM, 10.0), StopStep(signal.SIGKILL, 5.0))
    url: str = ""
    depends_on: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    start_timeout: float = 30.0
    parent_death_signal: int = signal.SIGTERM

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name):
            raise ConfigError("service", f"{self.name!r} is no name: lower-case letters, digits, - and _")
        if not isinstance(self.kind, str) or (self.kind and not _KIND.match(self.kind)):
            raise ConfigError(self.name, f"{self.kind!r} is no kind of service")
        if self.port != 0:
            check_port_number(self.port)
        if not self.stop:
            raise ConfigError(self.name, "a service needs at least one stop step")
        words = () if callable(self.argv) else self.argv
        _check_words(self.name, words)
        if not isinstance(self.host, str) or not _HOST.match(self.host):
            raise ConfigError(self.name, f"{self.host!r} is no host: an address of this machine, such as 127.0.0.1")
        if any(ord(character) < 32 for character in self.url):
            raise ConfigError(self.name, f"{self.url!r} is no URL: it has a control character")
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ConfigError(self.name, f"{name!r} cannot be a variable of its environment with that value")
        probes = [probe for probe in (self.ready, self.alive) if probe is not None]
        asked = [word for probe in probes for word in probe.argv]
        for text in (*words, *asked, self.url, *self.environment.values()):
            _check_placeholders(self.name, text, self.port)
        needs_port = self.ready.kind in ("tcp", "http") or (self.alive and self.alive.kind in ("tcp", "http"))
        if needs_port and self.port == 0:
            raise ConfigError(self.name, "a tcp or http probe needs a port")

    def command(self, settings: Settings) -> list[str]:
        """The command line of one run."""
        if callable(self.argv):
            return list(self.argv(settings))
        return [fill(part, settings) for part in self.argv]


def check_port_number(port: Any, name: str = "port") -> int | str:
    """``port`` if it is a TCP port or ``"auto"``; a numeral is taken for its number.

    :raises ConfigError: for anything else.
    """
    if port == AUTO:
        return AUTO
    try:
        return port_number(name, port, 1)
    except ConfigError as error:
        raise ConfigError(name, f"{error.reason}, or {AUTO!r}") from None


def dependency_order(declarations: Iterable[ServiceDeclaration]) -> list[str]:
    """The names, each after all it depends on, otherwise in the order given.

    :raises ConfigError: when a dependency is missing or goes round in a circle.
    """
    by_name = {declaration.name: declaration for declaration in declarations}
    order: list[str] = []
    open_names: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in open_names:
            circle = " -> ".join([*open_names[open_names.index(name) :], name])
            raise ConfigError("depends_on", f"the services wait for each other: {circle}")
        open_names.append(name)
        for needed in by_name[name].depends_on:
            if needed not in by_name:
                raise ConfigError("depends_on", f"{name} needs {needed}, which is not declared")
            visit(needed)
        open_names.pop()
        order.append(name)

    for name in by_name:
        visit(name)
    return order
