"""All local servers of one zComm.

>>> manager = ServiceManager("/home/me/.zolo/zcomm", {}, reactor)      # doctest: +SKIP
>>> await manager.start("postgresql", port="auto")                      # doctest: +SKIP
True
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, gatherResults, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger

from zcomm.errors import ConfigError, ServiceError, ServiceStartFailed, UnknownService
from zcomm.services.declaration import PROBES, ServiceDeclaration, dependency_order
from zcomm.services.kinds import KINDS
from zcomm.services.kinds.declared import DeclaredService
from zcomm.services.machine.identity import seconds_running
from zcomm.services.options import Options
from zcomm.services.resources import Meter
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.status import ServiceState, ServiceStatus
from zcomm.services.supervision.environment import ServicesEnvironment
from zcomm.services.supervision.kind import Kind, KnownKind
from zcomm.services.supervision.launch import Tools, find_tools
from zcomm.services.supervision.supervisor import Supervisor

__all__ = ["ServiceManager"]

Subscriber = Callable[[str, dict[str, Any]], Any]


class ServiceManager(Service):
    """Starts, watches and stops local servers.

    It has a service of each kind that zComm knows; :meth:`add` teaches it others. Stopped as a Twisted service it
    stops all of them, each before what it depends on; with ``lifetime="persistent"`` they go on running, and the next
    manager takes them over as they are.

    :param data_dir: zComm's data directory, absolute.
    :param environ: where ``POSTGRESQL_PORT`` and the like are read from.
    :param lifetime: ``session`` (the servers end with this process, however it ends) or ``persistent``.
    :param reserve_after: seconds of idling after which a PostgreSQL cluster is made in reserve; ``None``
        for never. Only done once PostgreSQL has been started here.
    :param kinds: the kinds of servers that it knows by name.
    :param policy: when a server that ended is started again.
    :param tools: the system programs that launch servers; looked for by default.
    :param space: bytes that must be free to make a new data directory, and to start in an old one.
    :param misses: unanswered liveness questions in a row that make a server count as hung.
    :param log_bytes: size at which a server's log is rotated.
    :param log_count: how many older logs are kept.
    :param now: the time of day, for what people and other processes read.
    :param chance: a number from 0 up to 1, for the spread of waits.
    :param system_root: where root's servers live whose account cannot reach ``data_dir``.
    """

    name = "services"
    log = Logger()

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        environ: Mapping[str, str],
        reactor: Any,
        lifetime: str = "session",
        reserve_after: float | None = 30.0,
        *,
        kinds: Sequence[type[KnownKind]] = KINDS,
        policy: RestartPolicy = RestartPolicy(),  # noqa: B008 (a frozen value)
        tools: Tools | None = None,
        space: tuple[int, int] = (200 << 20, 32 << 20),
        misses: int = 3,
        log_bytes: int = 10 << 20,
        log_count: int = 3,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        system_root: Path = Path("/var/lib/zcomm"),
    ):
        self.environment = ServicesEnvironment(
            data_dir=Path(os.fspath(data_dir)),
            environ=environ,
            reactor=reactor,
            lifetime=lifetime,
            tools=tools or find_tools(),
            policy=policy,
            now=now,
            chance=chance,
            system_root=system_root,
            misses=misses,
            protocols={kind.name: kind.question for kind in kinds},
            space=space,
            log_bytes=log_bytes,
            log_count=log_count,
        )
        self.kinds = tuple(kinds)
        self._services: dict[str, Supervisor] = {}
        self._subscribers: list[Subscriber] = []
        self._meters: dict[str, Meter] = {}
        self._reserve_after = reserve_after
        #: The idle work that is not done, and whether one of them makes a later start faster.
        self._idling: set[Deferred[Any]] = set()
        self._reserving = False
        self._adopting: Deferred[Any] = succeed(None)
        #: Whether it stops or has stopped. One that was never started as a Twisted service is open all the same.
        self._closed = False
        for kind in kinds:
            self.add(kind.declaration)

    # -- registry ----------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The services there are, in the order they were added."""
        return tuple(self._services)

    def add(self, declaration: ServiceDeclaration) -> Supervisor:
        """Register a service; it replaces one of the same name that rests.

        :raises ConfigError: for a kind or a probe that no kind of this manager knows.
        :raises ServiceError: when a service of that name runs, is being started or stopped, or will be tried again.
        """
        known: dict[str, type[Kind]] = {kind.name: kind for kind in self.kinds}
        for probe in filter(None, (declaration.ready, declaration.alive)):
            if probe.kind not in PROBES and probe.kind not in known:
                raise ConfigError("probe", f"{probe.kind!r} is none of {', '.join((*PROBES, *known))}")
        if declaration.kind and declaration.kind not in known:
            raise ConfigError(declaration.name, f"its kind {declaration.kind!r} is none of {', '.join(known)}")
        old = self._services.get(declaration.name)
        if old is not None and not old.rests:
            raise ServiceError(declaration.name, "a service of that name runs or is about to", "stop it first")
        kind = known[declaration.kind] if declaration.kind else DeclaredService
        made = Supervisor(self.environment, declaration, kind, self._tell)
        self._services[declaration.name] = made
        return made

    def get(self, name: object) -> Supervisor:
        """The service. :raises UnknownService: when there is none of that name."""
        if not isinstance(name, str) or name not in self._services:
            raise UnknownService(name, self.names)
        return self._services[name]

    # -- the guide's operations ----------------------------------------------------------------------------

    def start(self, name: str, **arguments: Any) -> Deferred[bool]:
        """Start a service and first all it depends on.

        :return: fires with True when it is *ready*. Concurrent starts are one. Fails with a
            :class:`~zcomm.errors.ServiceError`: ``UnknownService``, ``ServiceNotInstalled``, ``PortInUse``,
            ``DataDirectoryError``, ``ServiceStartFailed`` (so it does when somebody stops it, or this manager,
            before it is ready), ``ServiceStartTimeout``.
        :raises ConfigError: at once, for a bad argument.
        """
        try:
            service = self.get(name)
            options = service.kind.read_options(arguments) if arguments else None
            return self.start_service(service, options)
        except ServiceError as error:
            return fail(error)

    def start_service(self, service: Supervisor, options: Options | None = None) -> Deferred[bool]:
        """As :meth:`start`, for a service and settings that were looked up already.

        :raises UnknownService: at once, when a service that it depends on is not there.
        """
        return self._in_order(service, lambda: self._planned(service, service.start(options)))

    def restart_service(self, service: Supervisor, options: Options | None = None) -> Deferred[bool]:
        """As :meth:`restart`, for a service and settings that were looked up already.

        :raises UnknownService: at once, when a service that it depends on is not there.
        """
        return self._in_order(service, lambda: self._planned(service, service.restart(options)))

    def _in_order(self, service: Supervisor, ask: Callable[[], Deferred[bool]]) -> Deferred[bool]:
        """Start all that a service depends on, then ask it."""
        *before, _ = self._needed([service])
        if self._closed:
            return fail(self._refusal(service.name))
        if before:
            return service.after(self._ready(before), ask)
        try:
            return ask()
        except ServiceError as error:
            return fail(error)

    def _ready(self, services: Sequence[Supervisor]) -> Deferred[Any]:
        """Start these one after the other. Each is asked for from now on, so that a stop of one that waits for its turn
        ends the start."""
        ready: Deferred[Any] = succeed(True)
        for service in services:
            ready = service.after(ready, partial(self._started, service))
        return ready

    def _started(self, service: Supervisor) -> Deferred[bool]:
        return self._planned(service, service.start())

    def _planned(self, service: Supervisor, start: Deferred[bool]) -> Deferred[bool]:
        return start.addCallback(self._plan_idle_work, service)

    def _refusal(self, name: str) -> ServiceError:
        return ServiceStartFailed(name, "the manager of the services stops or has stopped", "start it again")

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
        """Stop and start with the settings it had, or new ones, once all it depends on is ready; fires with True when
        it is ready again; fails as these do.

        :raises ConfigError: at once, for a bad argument.
        """
        try:
            service = self.get(name)
            options = service.kind.read_options(arguments) if arguments else None
            return self.restart_service(service, options)
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
            return self.status_of(self.get(name))
        except ServiceError as error:
            return fail(error)

    def status_of(self, service: Supervisor) -> Deferred[dict[str, Any]]:
        """As :meth:`status`, for a service that was looked up already."""
        return Deferred.fromCoroutine(self._status(service))

    async def _status(self, service: Supervisor) -> dict[str, Any]:
        seen = service.describe()
        try:
            seen = await self._inspect(service, seen)
        except (ConfigError, CancelledError):
            # Where it would be is not known, and the reason says why; or nobody waits for more.
            pass
        except Exception:
            # It may have ended while it was asked; what is known without asking is always told.
            self.log.failure("{name}: cannot be looked at closer", name=service.name)
        return self._shown(seen)

    async def _inspect(self, service: Supervisor, seen: ServiceStatus) -> ServiceStatus:
        """The status with what only the server, its process or its port can tell."""
        if seen.state in (ServiceState.STOPPED, ServiceState.UNKNOWN):
            seen = await service.kind.foreign() or seen
        elif seen.state is ServiceState.RUNNING and service.process is None:
            seen = await service.look_at_unattended(seen)
        if seen.pid:
            meter = self._meters.setdefault(service.name, Meter())
            now = self.environment.reactor.seconds()
            figures = await service.context.in_thread(meter.read, seen.pid, seen.data_dir, now)
            seen = replace(seen, resources=figures)
        return seen

    def _shown(self, seen: ServiceStatus) -> dict[str, Any]:
        """As people and programs read it. A wall clock that was set meanwhile makes no service older or younger."""
        now = self.environment.now()
        age = seconds_running(seen.pid) if seen.pid and seen.started is not None else None
        return (seen if age is None else replace(seen, started=now - age)).as_dict(now)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """The state of all services as last seen, with no server asked: for a health page."""
        return {name: self._shown(service.describe()) for name, service in self._services.items()}

    def connection_info(self, name: str) -> dict[str, Any]:
        """The way to reach a service, password included; see :class:`~zcomm.services.status.ConnectionInfo`.

        :raises UnknownService: when there is no such service.
        """
        return self.get(name).kind.connection_info().as_dict()

    def exports(self, name: str) -> str:
        """``export NAME=value`` lines for a shell, password included. :raises UnknownService:"""
        return self.get(name).kind.connection_info().exports()

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

    def _tell(self, service: Supervisor) -> None:
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
        """Take over what an earlier manager left running, if ``lifetime="persistent"``; the log and the subscribers
        hear of it."""
        super().startService()
        self._closed = False
        self._adopting = Deferred.fromCoroutine(self._adopt_all())
        self._adopting.addErrback(lambda failure: failure.trap(CancelledError) and None)
        self._adopting.addErrback(lambda failure: self.log.failure("the services could not be taken over", failure))

    async def _adopt_all(self) -> None:
        # Servers that are to outlive a zComm are taken over by the next one; others only when they are asked for.
        for service in list(self._services.values()) if self.environment.lifetime == "persistent" else ():
            try:
                await service.adopt()
            except ServiceError as error:
                self.log.warn("{name}: {reason}", name=service.name, reason=error.reason)

    def check(self, names: Sequence[str]) -> None:
        """Look whether these and all they depend on are known and well set; no server is touched.

        :raises UnknownService: when there is none of a name.
        :raises ConfigError: for a bad setting in the environment, and where any service needs one that is not declared.
        """
        dependency_order(service.declaration for service in self._services.values())
        for service in self._needed([self.get(name) for name in names]):
            if service.context.options is None:
                service.kind.read_options({})

    def start_all(
        self, names: Sequence[str], then: Callable[[], Deferred[None]] = lambda: succeed(None)
    ) -> Deferred[None]:
        """Start these in the order of their dependencies.

        :param then: the rest of the start, called when all are ready.
        :return: fires when ``then`` is done, and fails with the first error. Servers that were running before and
            were taken over by a start that fails go on as they were found.
        """
        try:
            self.check(names)
            order = self._needed([self.get(name) for name in names])
        except (ConfigError, ServiceError) as error:
            return fail(error)
        if self._closed and order:
            return fail(self._refusal(order[0].name))
        return Deferred.fromCoroutine(self._start_each(order, then))

    async def _start_each(self, order: Sequence[Supervisor], then: Callable[[], Deferred[None]]) -> None:
        without = [service for service in order if service.process is None]
        try:
            await self._ready(order)
            await then()
        except Exception:
            taken_over = [service for service in without if service.has_taken_over]
            await self._ended(taken_over, [service.release() for service in taken_over])
            raise

    def stopService(self) -> Deferred[None]:
        """Stop all servers, those that need others first; with ``lifetime="persistent"`` let them go on, and give up
        the starts that are under way. Until it is started again, starts fail with ``ServiceStartFailed``.

        :return: fires when all have ended, whatever became of each (the log tells).
        """
        super().stopService()
        self._closed = True
        return Deferred.fromCoroutine(self._stop_all())

    async def _stop_all(self) -> None:
        for idling in list(self._idling):
            idling.cancel()
        self._adopting.cancel()
        if self.environment.lifetime != "persistent":
            for level in self._levels():
                running = [service for service in level if self._is_up(service)]
                await self._ended(running, [service.stop() for service in running])
        # In this order, too: what waits for a service that it needs hears of its own end, not of that.
        every = [service for level in self._levels() for service in level]
        await self._ended(every, [service.release() for service in every])

    async def _ended(self, services: Sequence[Supervisor], endings: Sequence[Deferred[Any]]) -> None:
        """Wait for the end of each; the log tells of those that go on."""
        results: Any = await DeferredList(endings, consumeErrors=True)
        for service, (good, result) in zip(services, results, strict=True):
            if not good:
                self.log.error("{name}: {reason}", name=service.name, reason=str(result.value))

    @staticmethod
    def _is_up(service: Supervisor) -> bool:
        return not service.rests or service.state is not ServiceState.STOPPED

    def _levels(self) -> list[list[Supervisor]]:
        """The services so that each group can stop together, after those that need it."""
        left = set(self._services)
        levels = []
        while left:
            needed = {other for name in left for other in self._services[name].declaration.depends_on}
            level = [name for name in self._services if name in left and name not in needed]
            level = level or sorted(left)
            levels.append([self._services[name] for name in level])
            left -= set(level)
        return levels

    def _needed(self, services: Sequence[Supervisor]) -> list[Supervisor]:
        """These and all they depend on, in order. :raises UnknownService: when one of those is not there."""
        wanted: dict[str, Supervisor] = {}

        def collect(service: Supervisor) -> None:
            if service.name not in wanted:
                wanted[service.name] = service
                for other in service.declaration.depends_on:
                    collect(self.get(other))

        for service in services:
            collect(service)
        return [wanted[name] for name in dependency_order(each.declaration for each in wanted.values())]

    # -- idle moments ------------------------------------------------------------------------------------

    def _plan_idle_work(self, result: bool, service: Supervisor) -> bool:
        """Let the kind finish a start, and some time later do what makes a later one faster."""
        kind = service.kind
        if service.process is not None and isinstance(kind, KnownKind) and kind.has_idle_work:
            idling = Deferred.fromCoroutine(self._use_idle_time(kind, self._reserve_after))
            idling.addErrback(lambda failure: failure.trap(CancelledError))
            idling.addErrback(lambda failure: self.log.failure("the idle work of a service failed", failure))
            if not idling.called:
                self._idling.add(idling)
                idling.addBoth(lambda _: self._idling.discard(idling))
        return result

    async def _use_idle_time(self, kind: KnownKind, reserve_after: float | None) -> None:
        await kind.finish_start()
        if reserve_after is not None and not self._reserving:
            self._reserving = True
            try:
                await deferLater(self.environment.reactor, reserve_after)
                await kind.use_idle_time()
            finally:
                self._reserving = False
