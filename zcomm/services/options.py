"""The options of a start: from its arguments, then the environment, then the declaration."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from zcomm.errors import ConfigError
from zcomm.services.declaration import ServiceDeclaration, check_port_number
from zcomm.services.machine.account import choose_account
from zcomm.services.machine.directories import absolute_path
from zcomm.text import did_you_mean

__all__ = ["BIN_DIR", "PASSWORD", "Options", "Setting", "read_options", "variables"]

COMMON = ("data_dir", "port", "user")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that starts of one kind of service take, besides ``data_dir``, ``port`` and ``user``.

    :ivar name: its name as an argument of a start; on the command line it has dashes for underscores.
    :ivar values: the values it takes: ``str`` for a line of text, ``Path`` for an absolute path, ``bool``, or the words
        of which it is one.
    :ivar help: its help in ``zcomm service start --help``. One without help is not on the command line, which everybody
        on the machine can read: a password, for instance.
    :ivar variable: the environment variable that stands in for it; empty for none.
    """

    name: str
    values: type[str] | type[Path] | type[bool] | tuple[str, ...] = str
    help: str = ""
    variable: str = ""

    def checked(self, value: object, service: str, called: str = "") -> Any:
        """The value as an option.

        :param called: what errors call the setting, if not by its name.
        :raises ConfigError: for a value that it does not take.
        :raises DataDirectoryError: for a path that is not absolute.
        """
        called = called or self.name
        if self.values is Path:
            return absolute_path(service, value, called) if value else None
        if self.values is str:
            return _line(called, value)
        if self.values is bool and not isinstance(value, bool):
            raise ConfigError(called, "is True or False")
        if isinstance(self.values, tuple) and value not in self.values:
            raise ConfigError(called, f"is {' or '.join(self.values)}")
        return value

    def of_environment(self, environ: Mapping[str, str], service: str) -> Any:
        """The value that its variable has, ``None`` without one. It raises as :meth:`checked`, naming the variable."""
        text = environ.get(self.variable, "").strip() if self.variable else ""
        if not text:
            return None
        value = {"true": True, "false": False}.get(text.lower(), text) if self.values is bool else text
        return self.checked(value, service, self.variable)


BIN_DIR = Setting("bin_dir", Path, "where its programs are (looked for)")
PASSWORD = Setting("password")


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of a start.

    :ivar port: a port, ``"auto"``, or 0 for a service without one.
    :ivar data_dir: an absolute path without symbolic links, or ``None`` for the service's own.
    :ivar more: what only this kind of service knows (``database``, ``safe_mode``).
    :ivar asked: the names of those that the start was given, rather than found in the environment or the declaration.
    """

    port: int | str
    _: KW_ONLY
    data_dir: Path | None = None
    user: str = ""
    bin_dir: Path | None = None
    password: str = field(default="", repr=False)
    more: tuple[tuple[str, Any], ...] = ()
    asked: frozenset[str] = field(default=frozenset(), compare=False)

    def get(self, name: str, default: Any = None) -> Any:
        """One of ``more``."""
        return dict(self.more).get(name, default)


def read_options(
    declaration: ServiceDeclaration,
    arguments: Mapping[str, Any],
    environ: Mapping[str, str],
    settings: Sequence[Setting] = (),
) -> Options:
    """The options of a start.

    The variables of the environment (see :func:`variables`) stand in for missing arguments.

    :param settings: those beyond what every service has.
    :raises ConfigError: for an argument that does not exist or cannot be.
    :raises DataDirectoryError: for a data directory that is no absolute path.
    """
    name = declaration.name
    allowed = (*COMMON, *(setting.name for setting in settings))
    for argument in arguments:
        if argument not in allowed:
            hint = did_you_mean(argument, allowed, or_list=True)
            raise ConfigError(str(argument)[:40], f"{name} has no such setting{hint}")
    given = {key: value for key, value in arguments.items() if value is not None}
    prefix = _prefix(declaration)
    port: int | str = 0
    if declaration.port != 0:
        if "port" in given:
            port = check_port_number(given["port"])
        elif environ.get(f"{prefix}_PORT", "").strip():
            port = check_port_number(environ[f"{prefix}_PORT"].strip(), f"{prefix}_PORT")
        else:
            port = declaration.port
    elif "port" in given:
        raise ConfigError("port", f"{name} has none")
    data_dir = given.get("data_dir") or environ.get(f"{prefix}_DATA_DIR", "").strip() or None
    user = _line("user", given.get("user", ""))
    own = {
        setting.name: setting.checked(given[setting.name], name)
        if setting.name in given
        else setting.of_environment(environ, name)
        for setting in settings
    }
    if user:
        # It exists and may be taken; whose the data directory is, the start will see.
        choose_account(None, user, (), environ)
    return Options(
        port,
        data_dir=Path(os.path.realpath(absolute_path(name, data_dir))) if data_dir is not None else None,
        user=user or declaration.user,
        bin_dir=own.pop(BIN_DIR.name, None),
        password=own.pop(PASSWORD.name, None) or "",
        more=tuple(sorted((key, value) for key, value in own.items() if value is not None)),
        asked=frozenset(given),
    )


def variables(declaration: ServiceDeclaration, settings: Sequence[Setting]) -> list[str]:
    """The variables of the environment that stand in for arguments of a start."""
    names = [f"{_prefix(declaration)}_PORT"] if declaration.port != 0 else []
    return [*names, f"{_prefix(declaration)}_DATA_DIR", *(each.variable for each in settings if each.variable)]


def _prefix(declaration: ServiceDeclaration) -> str:
    return declaration.name.upper().replace("-", "_")


def _line(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value or "\n" in value or len(value) > 1000:
        raise ConfigError(name, "is not a line of text")
    return value
