"""The options of a start: from its arguments, then the environment, then the declaration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from zcomm.errors import ConfigError
from zcomm.services.declaration import ServiceDeclaration, check_port_number
from zcomm.services.machine.account import choose_account
from zcomm.services.machine.directories import absolute_path
from zcomm.text import did_you_mean

__all__ = ["Options", "read_options"]

COMMON = ("data_dir", "port", "user")


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of a start.

    :ivar port: a port, ``"auto"``, or 0 for a service without one.
    :ivar data_dir: an absolute path, or ``None`` for the service's own.
    :ivar more: what only this kind of service knows (``database``, ``safe_mode``).
    """

    port: int | str
    _: KW_ONLY
    data_dir: Path | None = None
    user: str = ""
    bin_dir: Path | None = None
    password: str = field(default="", repr=False)
    more: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """One of ``more``."""
        return dict(self.more).get(name, default)


def read_options(
    declaration: ServiceDeclaration,
    arguments: Mapping[str, Any],
    environ: Mapping[str, str],
    known: Collection[str] = (),
) -> Options:
    """The options of a start.

    ``<NAME>_PORT`` and ``<NAME>_DATA_DIR`` of the environment stand in for missing arguments.

    :param known: argument names beyond those of every service.
    :raises ConfigError: for an argument that does not exist or cannot be.
    :raises DataDirectoryError: for a data directory that is no absolute path.
    """
    name = declaration.name
    allowed = (*COMMON, *known)
    for argument in arguments:
        if argument not in allowed:
            hint = did_you_mean(argument, allowed, or_list=True)
            raise ConfigError(str(argument)[:40], f"{name} has no such setting{hint}")
    given = {key: value for key, value in arguments.items() if value is not None}
    prefix = name.upper().replace("-", "_")
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
    bin_dir = given.get("bin_dir")
    user = given.get("user", "")
    password = given.get("password", "")
    for key, value in (("user", user), ("password", password)):
        if not isinstance(value, str) or "\0" in value or "\n" in value or len(value) > 1000:
            raise ConfigError(key, "is not a line of text")
    if user:
        # It exists and may be taken; whose the data directory is, the start will see.
        choose_account(None, user, (), environ)
    more = {
        key: value for key, value in given.items() if key not in ("data_dir", "port", "user", "bin_dir", "password")
    }
    return Options(
        port,
        data_dir=absolute_path(name, data_dir) if data_dir is not None else None,
        user=user or declaration.user,
        bin_dir=absolute_path(name, bin_dir, "directory of programs") if bin_dir else None,
        password=password,
        more=tuple(sorted(more.items())),
    )
