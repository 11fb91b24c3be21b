"""The status of a service: its state, its health, how to connect."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["ConnectionInfo", "Health", "ServiceState", "ServiceStatus", "uptime_text"]


class ServiceState(StrEnum):
    """The state of a service: the guide's four, and the two transitions between them."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    #: It ought to run and does not; ``reason`` says why.
    ERROR = "error"
    #: It cannot be told: what the zComm that started it wrote down cannot be read.
    UNKNOWN = "unknown"


class Health(StrEnum):
    """The health of a running server; never a reason to restart it, except ``unresponsive``."""

    HEALTHY = "healthy"
    #: It works, but something is wrong (Redis cannot save, a probe was refused).
    DEGRADED = "degraded"
    #: It works and takes no further clients.
    SATURATED = "saturated"
    #: It loads its data or recovers.
    LOADING = "loading"
    #: It did not answer in time.
    UNRESPONSIVE = "unresponsive"
    #: Nobody asked it yet, or it does not run.
    UNKNOWN = "unknown"


def uptime_text(seconds: float) -> str:
    """``2h 15m``: the two largest units that are not nothing."""
    rest = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, rest = divmod(rest, size)
        parts.append((amount, unit))
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{amount}{unit}" for amount, unit in parts[:2] if amount or len(parts) == 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One look at a service. It never holds a secret.

    :ivar started: when the server started, seconds since the epoch.
    :ivar managed: whether zComm runs it; another server on its port is reported, never touched.
    :ivar identity: what no other server has: PostgreSQL's system identifier, Redis's run id.
    :ivar restarts: how often it was started again by itself, by the zComm that runs it; starts and restarts that
        somebody asked for do not count.
    :ivar progress: what a start is waiting for, for people.
    :ivar resources: the figures of :mod:`zcomm.services.resources`, if they were taken.
    """

    name: str
    state: ServiceState = ServiceState.STOPPED
    pid: int | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    started: float | None = None
    health: Health = Health.UNKNOWN
    reason: str = ""
    fix: str = ""
    managed: bool = True
    version: str = ""
    user: str = ""
    log: str = ""
    data_dir: str = ""
    identity: str = ""
    restarts: int = 0
    progress: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self, now: float) -> dict[str, Any]:
        """The guide's dictionary with everything else zComm knows.

        :param now: the time of day, seconds since the epoch.
        """
        running = self.state is ServiceState.RUNNING
        up = max(0.0, now - self.started) if self.started is not None else None
        return {
            "running": running,
            "pid": self.pid,
            "port": self.port,
            "uptime": uptime_text(up) if up is not None else None,
            "uptime_seconds": round(up, 3) if up is not None else None,
            "name": self.name,
            "state": self.state.value,
            "health": self.health.value,
            "reason": self.reason,
            "fix": self.fix,
            "managed": self.managed,
            "host": self.host,
            "version": self.version,
            "user": self.user,
            "log": self.log,
            "data_dir": self.data_dir,
            "identity": self.identity,
            "restarts": self.restarts,
            "progress": self.progress,
            "resources": dict(self.resources),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """The address and credentials of a server. It is the only value of this package that shows a password.

    :ivar connection_string: the URL, password included.
    :ivar command: the command line client's command; it names the URL's parts, never the password.
    :ivar environment: variables for ``export`` (``DATABASE_URL``, ``PGHOST``…).
    """

    host: str
    port: int
    connection_string: str = field(repr=False, default="")
    database: str = ""
    user: str = ""
    password: str = field(repr=False, default="")
    unix_socket: str = ""
    command: str = ""
    managed: bool = True
    environment: Mapping[str, str] = field(repr=False, default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The guide's four keys and the rest."""
        return {
            "host": self.host,
            "port": self.port,
            "database": self.database,
            "connection_string": self.connection_string,
            "user": self.user,
            "password": self.password,
            "unix_socket": self.unix_socket,
            "command": self.command,
            "managed": self.managed,
            "environment": dict(self.environment),
        }

    def exports(self) -> str:
        """Lines for a shell's ``eval``."""
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items())
