"""Services declared in a YAML file (``--services FILE``)::

services:
  cache:
    argv: [memcached, -l, 127.0.0.1, -p, "{port}"]
    port: 11211                 # or auto
    ready: tcp                  # or {http: /health}, {exec: [...]}, {log: "listening"}, none
    alive: {tcp: true, every: 2, timeout: 2}
    stop: [[TERM, 10], [KILL, 5]]
    url: memcached://127.0.0.1:{port}
    depends_on: [redis]
    environment: {TZ: UTC}
    user: nobody
    start_timeout: 30
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zcomm.config import read_text
from zcomm.errors import ConfigError
from zcomm.services.declaration import AUTO, Probe, ServiceDeclaration, StopStep, check_port_number, signal_number
from zcomm.services.kinds import KINDS
from zcomm.strictyaml import read_yaml
from zcomm.text import did_you_mean

__all__ = ["load_service_files", "load_services"]

_KEYS = ("argv", "port", "host", "ready", "alive", "stop", "url", "depends_on", "environment", "user", "start_timeout")
_PROBES = {"tcp": "", **{kind.name: "" for kind in KINDS}, "http": "path", "exec": "argv", "log": "pattern", "none": ""}


def load_service_files(paths: Iterable[Path]) -> list[ServiceDeclaration]:
    """The declarations in several YAML files, in their order.

    :raises ConfigError: as :func:`load_services` does, for a file that cannot be read, and for a service that two of
        them declare.
    """
    place: dict[str, Path] = {}
    declarations: list[ServiceDeclaration] = []
    for path in paths:
        for declaration in load_services(read_text(path, "--services"), str(path)):
            if declaration.name in place:
                first = place[declaration.name]
                raise ConfigError(str(path), f"{declaration.name} is declared in {first} as well; remove one of them")
            place[declaration.name] = path
            declarations.append(declaration)
    return declarations


def load_services(text: str, name: str = "services") -> list[ServiceDeclaration]:
    """The declarations in a YAML text, in its order.

    :param name: what errors call the text, usually the file's name.
    :raises ConfigError: naming the service and the key.
    """
    value = read_yaml(text, name)
    if isinstance(value, Mapping) and set(value) == {"services"}:
        value = value["services"]
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(name, "must be a mapping of service names to declarations")
    return [_located(key, entry, f"{name}: {key}") for key, entry in _named(value, name).items()]


def _located(service: str, entry: Any, where: str) -> ServiceDeclaration:
    """The declaration; every error names the place."""
    try:
        return _declaration(service, entry, where)
    except ConfigError as error:
        if error.name.startswith(where):
            raise
        raise ConfigError(where, f"{error.name}: {error.reason}") from None


def _declaration(service: str, entry: Any, where: str) -> ServiceDeclaration:
    if not isinstance(entry, Mapping):
        raise ConfigError(where, "must be a mapping with argv and more")
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(where, f"{key!r} is unknown{did_you_mean(key, _KEYS, or_list=True)}")
    if "argv" not in entry:
        raise ConfigError(where, "argv is missing")
    port = entry.get("port", 0)
    if not (port == AUTO or (type(port) is int and port == 0)):
        port = check_port_number(port, f"{where}: port")
    default = Probe("tcp") if port else Probe("none")
    alive = entry.get("alive")
    fields: dict[str, Any] = {
        "argv": _command(entry["argv"], f"{where}: argv"),
        "port": port,
        "ready": _probe(entry["ready"], f"{where}: ready", 0.01) if "ready" in entry else default,
        "alive": _probe(alive, f"{where}: alive", 2.0) if alive is not None else None,
        "depends_on": _words(entry.get("depends_on", ()), f"{where}: depends_on"),
        "environment": _environment(entry.get("environment", {}), f"{where}: environment"),
    }
    for key in ("host", "url", "user"):
        if key in entry:
            if not isinstance(entry[key], str):
                raise ConfigError(f"{where}: {key}", "must be text")
            fields[key] = entry[key]
    if "stop" in entry:
        fields["stop"] = _ladder(entry["stop"], f"{where}: stop")
    if "start_timeout" in entry:
        fields["start_timeout"] = _seconds(entry["start_timeout"], f"{where}: start_timeout")
    return ServiceDeclaration(service, **fields)


def _command(value: Any, where: str) -> tuple[str, ...]:
    words = _words(value, where)
    if not words:
        raise ConfigError(where, "has no program")
    return words


def _words(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise ConfigError(where, f"cannot be split into words: {error}") from None
    listed = isinstance(value, (list, tuple))
    if not listed or not all(_is_text(word) for word in value):
        raise ConfigError(where, "must be a list of words; put quotes around those that YAML takes for something else")
    return tuple(str(word) for word in value)


def _probe(value: Any, where: str, every: float) -> Probe:
    if isinstance(value, str):
        value = {value: True}
    if not isinstance(value, Mapping):
        raise ConfigError(where, "must be tcp, none, or a mapping such as {http: /health}")
    timing: dict[str, Any] = {
        key: _seconds(value[key], f"{where}: {key}") for key in ("every", "timeout") if key in value
    }
    kinds = [key for key in value if key not in ("every", "timeout")]
    if len(kinds) != 1 or kinds[0] not in _PROBES:
        raise ConfigError(where, f"needs one of {', '.join(_PROBES)}")
    kind = kinds[0]
    attribute = _PROBES[kind]
    extra: dict[str, Any] = {}
    if attribute == "argv":
        extra["argv"] = _words(value[kind], where)
    elif attribute:
        given = value[kind]
        if given is True and kind == "http":
            given = "/"
        if not isinstance(given, str):
            raise ConfigError(where, f"{kind} needs a text")
        extra[attribute] = given
    elif value[kind] is not True:
        raise ConfigError(where, f"{kind} takes nothing but true")
    return Probe(kind, **extra, **{"every": every, **timing})


def _ladder(value: Any, where: str) -> tuple[StopStep, ...]:
    if not isinstance(value, list) or any(not isinstance(step, list) or len(step) != 2 for step in value):
        raise ConfigError(where, "must be a list of [signal, seconds]")
    return tuple(StopStep(signal_number(name), _seconds(seconds, where)) for name, seconds in value)


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 3600:
        raise ConfigError(where, f"{value!r} is no number of seconds between 0 and 3600")
    return float(value)


def _environment(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(_is_text(one) for one in value.values()):
        raise ConfigError(
            where, "must be a mapping of names to texts; put quotes around those that YAML takes for something else"
        )
    return {name: str(one) for name, one in _named(value, where).items()}


def _is_text(value: Any) -> bool:
    # Not a yes, nothing or a day, of which Python would write something else than the file has.
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _named(value: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The mapping with its keys as text, of which no two may be the same: ``1`` and ``'1'`` are."""
    named: dict[str, Any] = {}
    for key, one in value.items():
        if str(key) in named:
            raise ConfigError(where, f"{str(key)!r} is given twice")
        named[str(key)] = one
    return named
