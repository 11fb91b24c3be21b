"""All local servers of one zComm.

>>> manager = ServiceManager("/home/me/.zolo/zcomm", {}, reactor)      # doctest: +SKIP
>>> await manager.start("postgresql", port="auto")                      # doctest: +SKIP
True
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, gatherResults
from twisted.logger import Logger

from zcomm.errors import ServiceError, UnknownService
from zcomm.services.declaration import ServiceDeclaration, dependency_order
from zcomm.services.kinds.declared import DeclaredService
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.resources import Meter
from zcomm.services.status import ServiceState, ServiceStatus
from zcomm.services.supervision.environment import Context
from zcomm.services.supervision.identity import seconds_running
from zcomm.services.supervision.local import LocalService
from zcomm.services.supervision.query import pause
from zcomm.services.supervision.supervisor import Supervised

__all__ = ["ServiceManager"]

Subscriber = Callable[[str, dict[str, Any]], Any]


class ServiceManager(Service):
    """Starts, watches and stops local servers.

    It knows ``postgresql`` and ``redis``; :meth:`add` teaches it others. As a Twisted service it starts
    those named in ``autostart``, each after what it depends on, and stops all in the opposite order; with
    ``lifetime="persistent"`` they go on running, and the next manager takes them over as they are.

    :param data_dir: zComm's data directory, absolute.
    :param environ: where ``POSTGRESQL_PORT`` and the like are read from.
    :param lifetime: ``session`` (the servers end with this process, however it ends) or ``persistent``.
    :param autostart: what to start with the service.
    :param reserve_after: seconds of idling after which a PostgreSQL cluster is made in reserve; ``None``
        for never. Only done once PostgreSQL has been started here.
    :param settings: further settings of :class:`~zcomm.services.supervision.environment.Context`.
    """

    name = "services"
    log = Logger()

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        environ: Mapping[str, str],
        reactor: Any,
        lifetime: str = "session",
        autostart: Sequence[str] = (),
        reserve_after: float | None = 30.0,
        **settings: Any,
    ):
        self._context = Context(Path(os.fspath(data_dir)), environ, reactor, lifetime, **settings)
        self._services: dict[str, Supervised] = {}
        self._subscribers: list[Subscriber] = []
        self._meters: dict[str, Meter] = {}
        self._reserve_after = reserve_after
        self._reserving: Deferred[Any] | None = None
        self.autostart = tuple(autostart)
        self.add(PostgreSQLService(self._context))
        self.add(RedisService(self._context))

    # -- registry ----------------------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """What a service of one's own is made with."""
        return self._context

    @property
    def names(self) -> tuple[str, ...]:
        """The services there are, in the order they were added."""
        return tuple(self._services)

    def add(self, service: ServiceDeclaration | Supervised) -> Supervised:
        """Register a service, or a declaration of one; it replaces one of the same name that does not run.

        :raises ConfigError: when its dependencies go round in a circle.
        :raises ServiceError: when a service of that name runs.
        """
        made = DeclaredService(self._context, service) if isinstance(service, ServiceDeclaration) else service
        old = self._services.get(made.name)
        if old is not None and old.process is not None:
            raise ServiceError(made.name, "a service of that name runs", "stop it first")
        made.changed = self._tell
        self._services[made.name] = made
        return made

    def get(self, name: object) -> Supervised:
        """The service. :raises UnknownService: when there is none of that name."""
        if not isinstance(name, str) or name not in self._services:
            raise UnknownService(name, self.names)
        return self._services[name]

    # -- the guide's operations ----------------------------------------------------------------------------

    def start(self, name: str, **arguments: Any) -> Deferred[bool]:
        """Start a service and first all it depends on.

        :return: fires with True when it is *ready*. Concurrent starts are one. Fails with a
            :class:`~zcomm.errors.ServiceError`: ``UnknownService``, ``ServiceNotInstalled``, ``PortInUse``,
            ``DataDirectoryError``, ``ServiceStartFailed``, ``ServiceStartTimeout``.
        :raises ConfigError: at once, for a bad argument.
        """
        try:
            service = self.get(name)
            if arguments:
                service.read_options(arguments)
            order = self._needed([name])
        except ServiceError as error:
            return fail(error)
        if order == [name]:
            return self._started(service, arguments)
        return Deferred.fromCoroutine(self._start_in_order(order, name, arguments))

    def _started(self, service: Supervised, arguments: Mapping[str, Any]) -> Deferred[bool]:
        try:
            return service.start(**arguments).addCallback(self._plan_reserve)
        except ServiceError as error:
            return fail(error)

    async def _start_in_order(self, order: Sequence[str], name: str, arguments: Mapping[str, Any]) -> bool:
        for each in order:
            await self._started(self._services[each], arguments if each == name else {})
        return True

    def stop(self, name: str, force: bool = False) -> Deferred[bool]:
        """Stop a service.

        :param force: even if it cannot save its data.
        :return: fires with True when its process has *exited*, or when none ran. Fails with
            ``UnknownService``, ``ServiceStopFailed`` (it goes on), ``ServiceStopTimeout``.
        """
        try:
            return self.get(name).stop(force)
        except ServiceError as error:
            return fail(error)

    def restart(self, name: str, **arguments: Any) -> Deferred[bool]:
        """Stop and start with the settings it had; fires with True when it is ready again; fails as these do.

        :raises ConfigError: at once, for a bad argument.
        """
        try:
            return self.get(name).restart(**arguments)
        except ServiceError as error:
            return fail(error)

    def status(self, name: str | None = None) -> Deferred[dict[str, Any]]:
        """The guide's status dictionary (:meth:`~zcomm.services.status.ServiceStatus.as_dict`).

        A server on the service's port that zComm did not start is reported with ``managed`` False.

        :param name: one service; without it the Deferred fires with all, by name.
        """
        if name is None:
            every = [self.status(each) for each in self._services]
            return gatherResults(every, consumeErrors=True).addCallback(
                lambda found: dict(zip(self._services, found, strict=True))
            )
        try:
            return Deferred.fromCoroutine(self._status(self.get(name)))
        except ServiceError as error:
            return fail(error)

    async def _status(self, service: Supervised) -> dict[str, Any]:
        seen = service.describe()
        if seen.state is ServiceState.STOPPED:
            seen = await service.foreign() or seen
        elif seen.state is ServiceState.RUNNING and service.process is None:
            seen = replace(seen, health=await service.unattended_health())
        if seen.pid:
            meter = self._meters.setdefault(service.name, Meter())
            now = self._context.reactor.seconds()
            figures = await service.in_thread(meter.read, seen.pid, seen.data_dir, now)
            seen = replace(seen, resources=figures)
        return self._shown(seen)

    def _shown(self, seen: ServiceStatus) -> dict[str, Any]:
        """As people and programs read it. A wall clock that was set meanwhile makes no service older or younger."""
        now = self._context.now()
        age = seconds_running(seen.pid) if seen.pid and seen.started is not None else None
        return (seen if age is None else replace(seen, started=now - age)).as_dict(now)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """What is known of all services without asking anybody anything: for a health page."""
        return {name: self._shown(service.describe()) for name, service in self._services.items()}

    def connection_info(self, name: str) -> dict[str, Any]:
        """How to connect, password included; see :class:`~zcomm.services.status.ConnectionInfo`.

        :raises UnknownService: when there is no such service.
        """
        return self.get(name).connection_info().as_dict()

    def exports(self, name: str) -> str:
        """``export NAME=value`` lines for a shell, password included. :raises UnknownService:"""
        return self.get(name).connection_info().exports()

    def log_tail(self, name: str, limit: int = 16384) -> str:
        """The end of a service's log. :raises UnknownService:"""
        return self.get(name).home.log.tail(limit)

    # -- events ------------------------------------------------------------------------------------------

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call ``callback(name, status)`` whenever the state or health of a service changes.

        :return: a function that ends it.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def _tell(self, service: LocalService) -> None:
        if not self._subscribers:
            return
        status = self._shown(service.describe())
        for callback in list(self._subscribers):
            try:
                callback(service.name, dict(status))
            except Exception:
                # One that fails keeps nobody else from hearing of it.
                self.log.failure("a subscriber to the services failed")

    # -- as a Twisted service ------------------------------------------------------------------------------

    def startService(self) -> None:
        """Take over what an earlier manager left running, if ``lifetime="persistent"``; start what starts with us.

        The log and the subscribers hear of the outcome; :meth:`start_all` is for who wants to wait for it.
        """
        super().startService()
        starting = Deferred.fromCoroutine(self._start_all())
        starting.addErrback(lambda failure: self.log.failure("the services could not be started", failure))

    def start_all(self, names: Sequence[str]) -> Deferred[None]:
        """Start these in the order of their dependencies; fails with the first error."""
        try:
            order = self._needed(names)
        except ServiceError as error:
            return fail(error)
        return Deferred.fromCoroutine(self._start_each(order))

    async def _start_each(self, order: Sequence[str]) -> None:
        for name in order:
            await self._started(self._services[name], {})

    async def _start_all(self) -> None:
        # Servers that are to outlive a zComm are taken over by the next one; others only when they are asked for.
        for service in self._services.values() if self._context.lifetime == "persistent" else ():
            try:
                await service.adopt()
            except ServiceError as error:
                self.log.warn("{name}: {reason}", name=service.name, reason=error.reason)
        for name in self._needed(self.autostart):
            try:
                await self._started(self._services[name], {})
            except ServiceError as error:
                self.log.error("{name}: {reason}", name=name, reason=str(error))

    def stopService(self) -> Deferred[None]:
        """Stop all servers, those that need others first; with ``lifetime="persistent"`` let them go on.

        :return: fires when all have ended, whatever became of each (the log tells).
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop_all())

    async def _stop_all(self) -> None:
        if self._reserving is not None:
            self._reserving.cancel()
        if self._context.lifetime == "persistent":
            for service in self._services.values():
                service.release()
            return
        for level in self._levels():
            running = [self._services[name] for name in level if self._is_up(self._services[name])]
            results: Any = await DeferredList([service.stop() for service in running], consumeErrors=True)
            for service, (good, result) in zip(running, results, strict=True):
                if not good:
                    self.log.error("{name}: {reason}", name=service.name, reason=str(result.value))
        for service in self._services.values():
            service.release()

    @staticmethod
    def _is_up(service: Supervised) -> bool:
        return service.process is not None or service.state is not ServiceState.STOPPED

    def _levels(self) -> list[list[str]]:
        """The names so that each group can stop together, after those that need it."""
        left = set(self._services)
        levels = []
        while left:
            needed = {other for name in left for other in self._services[name].declaration.depends_on}
            level = [name for name in self._services if name in left and name not in needed]
            levels.append(level or sorted(left))
            left -= set(levels[-1])
        return levels

    def _needed(self, names: Sequence[str]) -> list[str]:
        """These and all they depend on, in order. :raises UnknownService: for a name that is none."""
        wanted: dict[str, ServiceDeclaration] = {}

        def collect(name: str) -> None:
            if name not in wanted:
                declaration = self.get(name).declaration
                wanted[name] = declaration
                for other in declaration.depends_on:
                    collect(other)

        for name in names:
            collect(name)
        return dependency_order(wanted.values())

    # -- the reserve -------------------------------------------------------------------------------------

    def _plan_reserve(self, result: bool) -> bool:
        postgresql = self._services.get("postgresql")
        due = self._reserving is None and self._reserve_after is not None
        if due and isinstance(postgresql, PostgreSQLService) and postgresql.state is ServiceState.RUNNING:
            self._reserving = Deferred.fromCoroutine(self._reserve(postgresql, self._reserve_after or 0.0))
            self._reserving.addErrback(lambda failure: failure.trap(CancelledError))
            self._reserving.addErrback(lambda failure: self.log.failure("no cluster in reserve", failure))
        return result

    async def _reserve(self, service: PostgreSQLService, seconds: float) -> None:
        try:
            await pause(self._context.reactor, seconds)
            await service.make_reserve()
        finally:
            self._reserving = None
