"""The parent's part of a server: zComm whose clients are served by workers, where it has any."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks

from zcomm.bifrost.server import zBifrost
from zcomm.comm import zComm
from zcomm.config import Config
from zcomm.engines.choice import engine_from
from zcomm.errors import ConfigError, ServiceNotInstalled
from zcomm.web.health import public_status
from zcomm.workers.crew import Crew

if TYPE_CHECKING:
    from zcomm.services.manager import ServiceManager

__all__ = ["Parent", "for_parent"]

#: The local service that carries between workers where no engine is named.
OWN_ENGINE = "zcomm-engine"


def for_parent(config: Config) -> Config:
    """The configuration of the parent itself, which serves nobody and needs no engine."""
    return replace(config, engine="", ack="memory")


class Parent(zComm):
    """zComm that has its clients served by workers.

    It binds, keeps the local services and the data directory, and starts, watches and ends the workers. Without a crew
    it is zComm as it is.
    """

    #: The workers; ``None`` where it serves by itself.
    crew: Crew | None = None
    #: The URL of the engine of the workers, or ``service:NAME``.
    engine_of_workers = ""
    _ack = "memory"

    def have_workers(self, crew: Crew, engine: str, ack: str) -> None:
        """Have ``crew`` serve the clients.

        :param engine: the URL of the engine between them; empty for a Redis of zComm's own.
        :param ack: what a message that is acknowledged has survived.
        :raises ConfigError: for a URL that cannot be used, and where a package is missing.
        """
        self.crew = crew
        self.engine_of_workers = engine or f"service:{OWN_ENGINE}"
        self._ack = ack
        # Nothing is done with it here; a mistake is to be found before anything runs.
        engine_from(self.engine_of_workers, self.config.websocket.limits, self.reactor, ack)

    @property
    def _engine_service(self) -> str | None:
        """The local service that is the engine of the workers."""
        kind, _, name = self.engine_of_workers.partition(":")
        return name if kind == "service" else None

    @property
    def wanted_services(self) -> list[str]:
        """The services that the configuration names, and that of the engine."""
        service = self._engine_service
        return list(dict.fromkeys([*([] if service is None else [service]), *super().wanted_services]))

    @property
    def services_manager(self) -> ServiceManager:
        """The manager of local services, made on first use."""
        manager = super().services_manager
        if self._engine_service == OWN_ENGINE and OWN_ENGINE not in manager.names:
            from zcomm.services.declaration import AUTO
            from zcomm.services.kinds.redis.service import REDIS

            manager.add(replace(REDIS, name=OWN_ENGINE, port=AUTO))
        return manager

    def privilegedStartService(self) -> None:
        """Bind, for the workers where there are some."""
        super().privilegedStartService()
        if self.crew is not None:
            self.crew.take(self.websockets[0].ports)

    @inlineCallbacks
    def start_below(self) -> Any:
        """Start the configured services, then connect the data, or have the workers do that."""
        if self.crew is not None:
            # They load what they need meanwhile.
            self.crew.spawn()
        try:
            yield super().start_below()
        except ServiceNotInstalled as error:
            if error.service != OWN_ENGINE:
                raise
            raise ConfigError(
                "--workers",
                "several workers need a Redis or Valkey between them, and none is installed: "
                "pip install 'zcomm[services]', or name one with --engine",
            ) from None

    @inlineCallbacks
    def _start_data(self) -> Any:
        if self.crew is None:
            yield super()._start_data()
            return
        service, database = self._engine_service, self.config.database_service
        engine = self.engine_of_workers if service is None else self._url_of_engine(service)
        url = None
        if database is not None:
            self._drop_session_variables()
            url = self._url_of(database)
        yield self.crew.start(replace(self.config, engine=engine, ack=self._ack), url)

    def _url_of_engine(self, service: str) -> str:
        """The way to a managed engine: its Unix socket, where it has one."""
        info = self.get_service_connection_info(service)
        path = info["unix_socket"]
        url: str = info["connection_string"]
        return f"unix://:{quote(info['password'], safe='')}@{quote(path)}" if path else url

    def _service_changed(self, name: str, status: dict[str, Any]) -> None:
        if self.crew is None:
            super()._service_changed(name, status)
            return
        running = status["running"]
        database = self._url_of(name) if running and name == self.config.database_service else None
        engine = self._url_of_engine(name) if running and name == self._engine_service else None
        event = {"event": "service", "name": name, "status": public_status(status)}
        self.crew.service_changed(event, database, engine)

    def stop_websocket(self, bifrost: zBifrost | None = None) -> Deferred[None]:
        """Stop the servers and the workers; see :meth:`zcomm.comm.zComm.stop_websocket`."""
        stopping = super().stop_websocket(bifrost)
        if self.crew is None:
            return stopping
        return gatherResults([stopping, self.crew.stop()], consumeErrors=True).addCallback(lambda _: None)
