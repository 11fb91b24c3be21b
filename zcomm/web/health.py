"""``/health``: whether the server and what it needs are well, for people, load balancers and the demo page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks

from zcomm.bifrost.server import zBifrost
from zcomm.interfaces import IEngine

__all__ = ["HealthReport", "public_status"]


#: Of a service's status, what everybody may know: no paths, no accounts, no processes.
_PUBLIC = ("state", "health", "running", "managed", "port", "uptime")


def public_status(status: dict[str, Any]) -> dict[str, Any]:
    """A service's status as web clients get it."""
    return {key: status.get(key) for key in _PUBLIC}


class Checked(Protocol):
    """Data that can say whether it answers."""

    def check(self) -> Deferred[bool]: ...


class HealthReport:
    """Makes the report of a server, whose uptime counts from here.

    :param data: the host's data; ``None`` for a host that answers for its own.
    :param manager: gives the manager of local services, or ``None`` while none was asked for.
    :param seconds: the monotonic clock.
    :param engine: carries what others hear of; it is told of where other processes may share it.
    """

    def __init__(
        self,
        data: Checked | None,
        manager: Callable[[], Any],
        seconds: Callable[[], float],
        engine: IEngine | None = None,
    ):
        self._data = data
        self._manager = manager
        self._seconds = seconds
        self._engine = engine
        self._since = seconds()

    @inlineCallbacks
    def __call__(self, bifrost: zBifrost) -> Any:
        """A Deferred of the report on ``bifrost``; its ``status`` is ``ok`` or ``unavailable``.

        It tells states, never addresses, names of users or secrets: whoever reaches the port may read it.
        """
        report: dict[str, Any] = {
            "status": "ok",
            "uptime": round(self._seconds() - self._since, 3),
            "clients": len(bifrost.registry),
        }
        if self._engine is not None and self._engine.is_shared:
            # Rows are read and written all the same: a balancer has no reason to take this server out.
            report["engine"] = "unavailable" if self._engine.is_away else "ok"
            report["nodes"] = len(self._engine.nodes()) + 1
        if self._data is not None:
            answers = yield self._data.check()
            report["database"] = "ok" if answers else "unavailable"
            if not answers:
                report["status"] = "unavailable"
        manager = self._manager()
        if manager is not None:
            services = yield manager.status()
            report["services"] = {name: public_status(status) for name, status in services.items()}
        return report
