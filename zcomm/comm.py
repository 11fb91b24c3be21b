"""zComm: the guide's API through Deferreds, as one ``MultiService``.

What is asked for here waits or touches the outside world, so each method answers with a Deferred; a
failure is an errback with a typed error. :mod:`zcomm.threaded` has the same methods as plain calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, fail, inlineCallbacks, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm import network
from zcomm.auth.policy import Policy
from zcomm.bifrost.connection import Connection
from zcomm.bifrost.messages import encode_text
from zcomm.bifrost.server import zBifrost
from zcomm.commands.description import Description
from zcomm.commands.forms import serve_forms
from zcomm.config import Config, make_data_directory
from zcomm.engines.choice import engine_from
from zcomm.engines.nodes import Nodes
from zcomm.errors import ConfigError, NotListening, Unavailable, ZCommError
from zcomm.host import Host, HostCrud, HostDispatcher, HostPermissions
from zcomm.host.line import Runner
from zcomm.host.program import Program
from zcomm.host.users import checker_of
from zcomm.interfaces import Broadcast, Client, IEngine, Position
from zcomm.runtime.clock import use_monotonic
from zcomm.runtime.deferreds import Waiters, following
from zcomm.runtime.files import DirectoryLock
from zcomm.runtime.process import keep_from_children
from zcomm.runtime.runfile import remove_run_file, run_file, running_servers, write_run_file
from zcomm.topics.kinds import Kind
from zcomm.topics.topics import Topics
from zcomm.web.health import HealthReport, public_status
from zcomm.web.pages import WebPages
from zcomm.web.site import Site

if TYPE_CHECKING:
    from zcomm.data.models import Schema
    from zcomm.services.manager import ServiceManager

__all__ = ["announce", "zComm"]

F = TypeVar("F", bound=Callable[..., Any])

#: Seconds beyond the shutdown timeout after which a part that has not stopped is left as it is: a server ends its
#: connections at that timeout, data may have a statement under way.
GRACE = 5.0
#: Seconds for all local services together. Each is killed long before, and those that need others end first.
SERVICES_TIMEOUT = 300.0
#: Seconds until a run file that could not be written is tried again: a full disk has room some time.
RUN_FILE_AGAIN = 30.0
#: Variables of libpq that no parameter of a connection takes precedence over.
SESSION_VARIABLES = ("PGSERVICE", "PGDATESTYLE", "PGTZ", "PGGEQO")


def announce(socket_ready: Any, outcome: Any) -> None:
    """Tell whoever waits for a server whether it listens.

    :param socket_ready: a Deferred, a future, or anything with ``set()``, such as an event. An event cannot
        say that something failed; it is set all the same, because who waits for it would wait for ever.
    :param outcome: the listening port or ``None``, or what kept it from listening.
    """
    failed = isinstance(outcome, BaseException)
    if isinstance(socket_ready, Deferred):
        if not socket_ready.called:
            socket_ready.callback(Failure(outcome) if failed else outcome)
    elif hasattr(socket_ready, "set_exception"):
        if socket_ready.done():
            return
        if not failed:
            socket_ready.set_result(outcome)
        elif isinstance(outcome, Exception):
            socket_ready.set_exception(outcome)
        else:
            socket_ready.cancel()
    elif socket_ready is not None:
        socket_ready.set()


class zComm(MultiService):
    """Communication and services of one host.

    Its children are the engine, the program with its threads, zComm's own :class:`~zcomm.host.Host` where there is
    one, the manager of local services once it is asked for, and the servers that were started. It starts by itself
    with the first server or service; :meth:`stopService`, or the end of the reactor, stops all of it in order.

    A server that was stopped is forgotten. Whoever starts zComm again, by itself or below another service, makes its
    servers anew with :meth:`create_websocket` or :meth:`start_websocket`.

    :param zcli: the host: anything with a ``session`` (docs/guide.rst, "Hosts").
    :param config: the configuration; read from the environment when it is left out.
    :param environ: the environment; the process' own when it is left out.
    :param reactor: the reactor; the running one when it is left out.
    :param in_loop: runs the coroutines of functions in a program's asyncio loop (:mod:`zcomm.threaded`); they await
        Deferreds on the reactor's thread when it is left out.
    :ivar program: functions, pages, files and permissions of its servers.
    :ivar engine: carries changes from each of its servers to the clients of all.
    :ivar topics: what clients subscribe to, at all of its servers.
    :ivar websockets: the servers made so far.
    :raises ValueError: for a host that is ``None`` or has no session.
    :raises ConfigError: for a setting that cannot be used.
    """

    _log = Logger()

    def __init__(
        self,
        zcli: Any,
        *,
        config: Config | None = None,
        environ: Mapping[str, str] | None = None,
        reactor: Any = None,
        in_loop: Callable[[zBifrost, Coroutine[Any, Any, Any]], Deferred[Any]] | None = None,
    ):
        if zcli is None or getattr(zcli, "session", None) is None:
            raise ValueError("zComm needs a host with a session: zComm(zcli)")
        super().__init__()
        if reactor is None:
            from twisted.internet import reactor
        self.zcli = zcli
        self.reactor = reactor
        self._environ = os.environ if environ is None else environ
        self._given = config
        self._in_loop = in_loop
        config = self.config
        self.engine: IEngine = engine_from(config.engine, config.websocket.limits, reactor, config.ack)
        self.engine.setServiceParent(self)
        self.nodes = Nodes(self.engine, reactor, self._missed)
        # The environment may be one that cannot be used when the end has come.
        self._shutdown_timeout = config.websocket.limits.shutdown_timeout
        self.program = Program(config, reactor, zcli.schema if isinstance(zcli, Host) else None, zcli)
        self.program.setServiceParent(self)
        self.topics = Topics(self.engine, reactor, config.websocket.limits, self.program.budgets)
        if config.topics is not None:
            self.topics.read_file(config.topics)
        if isinstance(zcli, Host):
            zcli.setServiceParent(self)
        self.websockets: list[zBifrost] = []
        self.nodes.on("end_sessions", self._end_sessions)
        self.nodes.on("judge_live", lambda _: self._judge_live())
        self.nodes.on("subscribe", lambda body: self.topics.subscribe(*body))
        self.nodes.on("unsubscribe", lambda body: self.topics.unsubscribe(*body))
        self._made = 0
        self._manager: ServiceManager | None = None
        #: Held from the start to the end where the data is zComm's own.
        self._lock = DirectoryLock(config.data_dir)
        #: Where it is written down which server listens, once it is.
        self._run_file: Path | None = None
        #: When that is tried again.
        self._say_again: IDelayedCall | None = None
        self._trigger: Any = None
        self._ended: Waiters[None] = Waiters()
        self._stopping = False
        #: Those who wait for the end of a server that is on its way there, by the server's ``id()``.
        self._leaving: dict[int, Waiters[None]] = {}
        use_monotonic(reactor)

    @property
    def config(self) -> Config:
        """The configuration: the one given, or what the environment says now (never what it said at import)."""
        if self._given is not None:
            return self._given
        return Config.from_environ(self._environ)

    # -- the WebSocket server

    def create_websocket(
        self,
        walker: Any = None,
        port: int | None = None,
        host: str | None = None,
        *,
        connection: type[Connection] = Connection,
    ) -> zBifrost:
        """A WebSocket server, not listening yet; each call makes another one.

        :param walker: the context of commands (:class:`zcomm.interfaces.IWalker`); the host's own when left out.
        :param port: 0 for any free port; when left out, the configured one (``WEBSOCKET_PORT``, else 56891).
        :param host: the interface; when left out, the configured one (``WEBSOCKET_HOST``, else 127.0.0.1).
        :param connection: the class that answers an admitted client.
        :raises ConfigError: for a port or host that cannot be used.
        """
        walker = getattr(self.zcli, "walker", None) if walker is None else walker
        config = self.config.websocket
        if port is not None or host is not None:
            config = replace(config, listen=(), port=config.port if port is None else port, host=host or config.host)
        checker = None
        if config.require_auth:
            known = checker_of(self.zcli, self.program.login_workers, self.reactor.seconds)
            checker = self.program.checker(self._environ) if known is None else known
        permissions = self.program.permissions
        if isinstance(permissions, Policy) and not isinstance(self.zcli, Host):
            permissions = HostPermissions(permissions)
        bifrost = zBifrost(
            config,
            checker=checker,
            permissions=permissions,
            reactor=self.reactor,
            engine=self.engine,
            budgets=self.program.budgets,
            topics=self.topics,
            connection=connection,
            pages=self._pages() if config.web else None,
        )
        if isinstance(permissions, HostPermissions):
            permissions.registered = bifrost.dispatcher.commands
        # The names of children differ, also from those that have left.
        self._made += 1
        bifrost.setName(f"zBifrost-{self._made}")
        self._attach(bifrost, walker)
        self.websockets.append(bifrost)
        return bifrost

    def _attach(self, bifrost: zBifrost, walker: Any) -> None:
        """Put behind ``bifrost`` what the host and the program have."""
        program = self.program
        dispatcher = bifrost.dispatcher
        permissions = dispatcher.permissions
        dispatcher.workers = program.workers
        serve_forms(
            dispatcher,
            program.workers,
            functions=program.functions,
            pages=program.pages,
            files=program.files,
            in_loop=None if self._in_loop is None else partial(self._in_loop, bifrost),
        )
        told = program.description(self._known_schema, bifrost.config.limits, partial(self.topics.granted, permissions))
        dispatcher.reserve(Description.KEY, told.respond)
        if isinstance(self.zcli, Host):
            bifrost.serve_data(walker, self.zcli.crud(permissions, bifrost.is_heard))
            bifrost.serve_live(self.zcli.respond_live, self.zcli.count_live)
            bifrost.serve_members(self.zcli.members)
        else:
            data = self._part("data", walker)
            crud = own = None
            if hasattr(data, "handle_request"):
                crud = HostCrud(data, permissions, self._line(data, walker))
            dispatch = self._part("zDispatch", walker)
            # Without a policy file nothing is named in one.
            if callable(dispatch) and isinstance(permissions, HostPermissions):
                line = self._line(dispatch, walker)
                own = HostDispatcher(dispatch, walker, permissions, line, dispatcher.refuse)
            bifrost.serve_data(walker, crud, own)

    def _line(self, part: Any, walker: Any) -> Runner:
        """Where ``part`` of the host is called: one request after the other, unless the host says that it need not."""
        if any(getattr(one, "zcomm_concurrent", None) is True for one in (part, walker, self.zcli)):
            return self.program.workers
        return self.program.host_line

    def _known_schema(self) -> Schema | None:
        """The models; once their database has been asked, with what can be done with them."""
        if not isinstance(self.zcli, Host):
            return None
        return self.zcli.schema if self.zcli.data is None else self.zcli.data.schema

    def _part(self, name: str, walker: Any) -> Any:
        """What the walker has of that name, else what the host has. Empty is not missing."""
        part = getattr(walker, name, None)
        return getattr(self.zcli, name, None) if part is None else part

    def _pages(self) -> WebPages:
        return WebPages(self._health_report(), self._site())

    def _health_report(self) -> HealthReport:
        data = self.zcli if isinstance(self.zcli, Host) else None
        return HealthReport(data, lambda: self._manager, self.reactor.seconds, self.engine)

    def _site(self) -> Site | None:
        www = self.config.websocket.www
        return None if www is None else Site(www, self.program.page_workers(), self.config.data_dir)

    def start_websocket(self, socket_ready: Any = None, walker: Any = None) -> Deferred[IListeningPort]:
        """Start the server last created that does not listen yet, or a new one.

        :param socket_ready: told how it went, see :func:`announce`.
        :param walker: the context of commands; see :meth:`create_websocket`.
        :returns: a Deferred of the listening port, fired when it listens. It fails with
            :class:`twisted.internet.error.CannotListenError` when the port is taken, with
            :class:`~zcomm.errors.NotListening` when the server is stopped before it listens, and with
            :class:`~zcomm.errors.Unavailable` while zComm stops.
        """

        def told(result: Any) -> Any:
            announce(socket_ready, result.value if isinstance(result, Failure) else result)
            return result

        return maybeDeferred(self._start_websocket, walker).addBoth(told)

    @inlineCallbacks
    def _start_websocket(self, walker: Any) -> Any:
        self._begin()
        # A child may be one whose port was taken.
        idle = [bifrost for bifrost in self.websockets if bifrost.parent is None or bifrost.is_idle]
        if idle and walker is not None and idle[-1].walker is not walker:
            self._attach(idle[-1], walker)
        bifrost = idle[-1] if idle else self.create_websocket(walker)
        try:
            port = yield bifrost.listen()
        except Exception:
            # Somebody else may still wait for it.
            if not idle and bifrost.is_idle and bifrost in self.websockets:
                self.websockets.remove(bifrost)
            raise
        if bifrost.parent is None:
            bifrost.setServiceParent(self)
        self._say_where()
        return port

    def server_of(self, port: IListeningPort) -> zBifrost:
        """The server that listens on ``port``.

        :raises NotListening: when none of ours does.
        """
        for bifrost in self.websockets:
            if bifrost.listens_on(port):
                return bifrost
        raise NotListening

    def stop_websocket(self, bifrost: zBifrost | None = None) -> Deferred[None]:
        """Stop one server, or all of them: accept nobody, 1001 to everybody, wait for them to leave.

        What starts meanwhile is another server.

        :returns: a Deferred that fires when they have left. It never fails, unless it is cancelled, which leaves the
            stop as it is.
        """
        if bifrost is not None:
            return self._leave(bifrost)
        return self._leave_all(self.websockets)

    def _leave_all(self, servers: Iterable[zBifrost]) -> Deferred[None]:
        """Stop ``servers``; fires when they have left, and those that were on their way already."""
        for bifrost in list(servers):
            self._leave(bifrost)
        left = DeferredList([waiters.add() for waiters in self._leaving.values()])
        return following(left.addCallback(lambda _: None))

    def _leave(self, bifrost: zBifrost) -> Deferred[None]:
        """Stop a server and forget it, or join that."""
        if id(bifrost) in self._leaving:
            return self._leaving[id(bifrost)].add()
        waiters = self._leaving[id(bifrost)] = Waiters()
        left = waiters.add()
        if bifrost in self.websockets:
            self.websockets.remove(bifrost)

        def leave() -> Deferred[None]:
            try:
                return bifrost.stopService()
            finally:
                if bifrost.parent is not None:
                    bifrost.disownServiceParent()

        def gone(_: None) -> None:
            # The server has lived until now, because it is named here.
            self._leaving.pop(id(bifrost)).fire(None)

        self._stopped(bifrost, bifrost.config.limits.shutdown_timeout + GRACE, leave).addCallback(gone)
        return left

    def broadcast_websocket(self, message: Any, sender: Client | None = None) -> Deferred[int]:
        """Send ``message`` to all clients of all servers.

        :param message: a string is sent as it is, anything else as JSON.
        :param sender: a client that does not get it.
        :returns: a Deferred of the number of clients it is sent to, those of other processes on the same engine as they
            have said within the last seconds. It fails with
            :class:`~zcomm.errors.NotListening` when no server runs.
        """
        if not any(bifrost.is_listening for bifrost in self.websockets):
            return fail(NotListening())
        told = Broadcast(encode_text(message), sender=sender)
        return maybeDeferred(lambda: self.engine.tell(told) + self.engine.elsewhere)

    def end_sessions(self, user: str) -> int:
        """End the connections of ``user`` at all servers now, those of other processes on the same engine included:
        ``Session expired``, with close code 1008 for a token that zComm knows to be gone. Otherwise it is 1013: the
        client comes back, and its token is checked anew.

        Whose token is gone is found out within a minute anyway. This is for at once: take the token away, then call it.

        :param user: the name of the identity.
        :returns: how many connections of this process are ended.
        """
        self.nodes.tell("end_sessions", user)
        return self._end_sessions(user)

    def _end_sessions(self, user: str) -> int:
        return sum(bifrost.close_clients(lambda client: client.identity.name == user) for bifrost in self.websockets)

    def read_anew(self) -> Iterator[tuple[str, ZCommError | None]]:
        """Read the policy, the tokens, the kinds of topics, the allowed origins and the TLS certificates anew.

        It yields of each what it was, and why it cannot be used where that is so: what was read before holds then.

        Nobody who may stay notices.
        """
        parts: list[tuple[str, Callable[[], Any]]] = [
            ("the policy and the tokens", self.program.reload),
            ("the topics", self.topics.reload),
        ]
        for server in self.websockets:
            parts.append(("the allowed origins", server.reload_origins))
            if server.has_certificates:
                parts.append(("the TLS certificates", server.reload_certificates))
        for what, read in parts:
            try:
                read()
            except ZCommError as error:
                yield what, error
            else:
                yield what, None
        self._judge_live()

    def judge_live(self) -> None:
        """Judge live queries by the rights of now, at all processes on the same engine: who has no right any more to
        rows that it hears of hears no more of them. At a SIGHUP it is done by itself; each step judges those whom it
        tells something anyway."""
        self.nodes.tell("judge_live")
        self._judge_live()

    def _judge_live(self) -> None:
        if isinstance(self.zcli, Host):
            self.zcli.judge_live()

    def _missed(self) -> None:
        """Go by what holds now, where what other processes said was lost."""
        for read in (self.program.reload, self.topics.reload):
            try:
                read()
            except ZCommError as error:
                self._log.error("not read anew, what was read before still holds: {reason}", reason=str(error))
        self._judge_live()

    # -- topics

    def topic(
        self,
        pattern: str,
        *,
        history: int = 0,
        keep: float = 3600.0,
        presence: bool = False,
        publish: str = "subscribers",
        personal: bool = False,
    ) -> Kind:
        """Declare a kind of topics; see :meth:`zcomm.topics.topics.Topics.topic`."""
        return self.topics.topic(
            pattern, history=history, keep=keep, presence=presence, publish=publish, personal=personal
        )

    def on_presence(self, pattern: str) -> Callable[[F], F]:
        """Hear of those who come into topics and go; see :meth:`zcomm.topics.topics.Topics.on_presence`."""
        return self.topics.on_presence(pattern)

    def publish(self, topic: str, data: Any, key: str | None = None) -> Deferred[Position | None]:
        """Publish a message to a topic, in the program's name; a Deferred of its position, which is ``None`` for a
        topic that keeps no history. See :meth:`zcomm.topics.topics.Topics.publish`."""
        return self.topics.publish(topic, data, key)

    def history(
        self,
        topic: str,
        *,
        since: Position | None = None,
        before: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> Deferred[dict[str, Any]]:
        """A Deferred of messages that a topic keeps; see :meth:`zcomm.topics.topics.Topics.history`."""
        return self.topics.history(topic, since=since, before=before, limit=limit, reverse=reverse)

    def members(self, topic: str) -> Deferred[dict[str, Any]]:
        """A Deferred of who is in a topic; see :meth:`zcomm.topics.topics.Topics.members`."""
        return self.topics.members(topic)

    def subscribe(self, topic: str, to: str) -> Deferred[int]:
        """Subscribe the connections that the user ``to`` has now, at all processes on the same engine; a Deferred of
        how many come in. See :meth:`zcomm.topics.topics.Topics.subscribe`."""

        def counted(results: list[tuple[bool, Any]]) -> int:
            (is_done, here), (_, elsewhere) = results
            if not is_done:
                here.raiseException()
            return int(here + sum(each for each in elsewhere if isinstance(each, int)))

        asking: list[Deferred[Any]] = [
            maybeDeferred(self.topics.subscribe, topic, to),
            self.nodes.ask("subscribe", [topic, to]),
        ]
        return DeferredList(asking, consumeErrors=True).addCallback(counted)

    def unsubscribe(self, topic: str, to: str | None = None) -> int:
        """End the subscriptions of the user ``to``, or of everybody, at all processes on the same engine; returns how
        many of this process. See :meth:`zcomm.topics.topics.Topics.unsubscribe`."""
        self.nodes.tell("unsubscribe", [topic, to])
        return self.topics.unsubscribe(topic, to)

    # -- local services

    @property
    def services_manager(self) -> ServiceManager:
        """The manager of local services, made on first use."""
        if self._manager is None:
            # Most programs never ask for a service; those do not pay for loading what runs them.
            from zcomm.services.manager import ServiceManager
            from zcomm.services.servicefile import load_service_files

            config = self.config
            declarations = load_service_files(config.declarations)
            self._manager = ServiceManager(config.data_dir, self._environ, self.reactor)
            self._manager.setServiceParent(self)
            for declaration in declarations:
                self._manager.add(declaration)
            self._manager.subscribe(self._service_changed)
        return self._manager

    def _service_changed(self, name: str, status: dict[str, Any]) -> None:
        event = {"event": "service", "name": name, "status": public_status(status)}
        self.engine.tell(Broadcast(encode_text(event)))
        if isinstance(self.zcli, Host) and status["running"] and name == self.config.database_service:
            # It may have another port than before.
            self.zcli.move_data(self._url_of(name))
        if status["running"] and name == self.config.engine_service:
            self._connect_engine(name)

    def _connect_engine(self, name: str) -> None:
        connect_to = getattr(self.engine, "connect_to", None)
        if connect_to is not None:
            connect_to(self._url_of(name))

    def _url_of(self, service: str) -> str:
        url: str = self.get_service_connection_info(service)["connection_string"]
        return url

    def start_service(self, service_name: str, **kwargs: Any) -> Deferred[bool]:
        """Start a local server, or join its start.

        :param kwargs: its settings: ``port``, ``data_dir``, ``user`` and what else the service knows.
        :returns: a Deferred of ``True`` when it is *ready*: its own process answers in its own protocol. It
            fails with a :class:`~zcomm.errors.ServiceError` that names the cause and the fix, and with
            :class:`~zcomm.errors.Unavailable` while zComm stops.
        """
        return maybeDeferred(self._begin).addCallback(lambda _: self.services_manager.start(service_name, **kwargs))

    def stop_service(self, service_name: str) -> Deferred[bool]:
        """Stop a local server; a Deferred of ``True`` when its process has exited."""
        return maybeDeferred(lambda: self.services_manager.stop(service_name))

    def restart_service(self, service_name: str) -> Deferred[bool]:
        """Stop and start with the same settings; a Deferred of ``True`` when it is ready again. It fails as that of
        :meth:`start_service` does."""
        return maybeDeferred(self._begin).addCallback(lambda _: self.services_manager.restart(service_name))

    def service_status(self, service_name: str | None = None) -> Deferred[dict[str, Any]]:
        """A Deferred of one service's status (``running``, ``pid``, ``port``, ``uptime``, ``state``, ``health``
        and more), or of all by name."""
        return maybeDeferred(lambda: self.services_manager.status(service_name))

    def get_service_connection_info(self, service_name: str) -> dict[str, Any]:
        """Say how to connect: ``host``, ``port``, ``database``, ``user``, ``password``, ``connection_string``.

        This is the only place that shows a secret.

        :raises UnknownService: when there is no service of that name.
        """
        return self.services_manager.connection_info(service_name)

    @property
    def has_services(self) -> bool:
        """Whether a local service was named or asked for."""
        return self._manager is not None

    # -- network utilities

    def check_port(self, port: int, host: str = "127.0.0.1") -> Deferred[bool]:
        """A Deferred of whether ``port`` is free; see :func:`zcomm.network.check_port`."""
        return network.check_port(port, host, self.reactor)

    # -- as a service

    def privilegedStartService(self) -> None:
        """Bind every server that was created, while the process may still bind any port.

        :raises twisted.internet.error.CannotListenError: where a port is taken.
        """
        self._take_in_servers()
        super().privilegedStartService()

    def startService(self) -> None:
        """Start the program's threads and every server that was created. :meth:`start_below` does the rest.

        One that fails keeps none of the others from running. Another call starts what does not run, or fails again.

        :raises twisted.internet.error.CannotListenError: where a port is taken.
        :raises Unavailable: while it stops.
        """
        self._refuse_while_it_stops()
        self._start([bifrost for bifrost in self.websockets if bifrost.parent is None])
        self._say_where()

    def claim(self) -> None:
        """Take the data directory for zComm's own :class:`~zcomm.host.Host`, which keeps its data there, until the end;
        a start does it where it was not done before. Other hosts share it.

        :raises ConfigError: naming the process that has it.
        """
        if not isinstance(self.zcli, Host):
            return
        directory = self._lock.directory
        make_data_directory(directory)
        try:
            taken = self._lock.take()
        except OSError as error:
            # A file system without locks: what is right for one server is right all the same.
            self._log.warn("{directory} cannot be locked: {reason}", directory=str(directory), reason=error.strerror)
            return
        if not taken:
            pids = [one["pid"] for one in running_servers(directory) if one["pid"] != os.getpid()]
            pid = pids[0] if pids else self._lock.holder()
            by = f"another zComm (pid {pid})" if pid else "another zComm"
            raise ConfigError("--data-dir", f"{directory} is in use by {by}; stop that one, or name another directory")

    def _say_where(self) -> None:
        """Write down where the first server listens, for ``zcomm url`` and ``zcomm call``: later, where that cannot be
        done now."""
        again, self._say_again = self._say_again, None
        if again is not None and again.active():
            again.cancel()
        listening = [bifrost for bifrost in self.websockets if bifrost.is_listening]
        if self._run_file is not None or not listening:
            return
        bifrost = listening[0]
        addresses = bifrost.addresses
        path = run_file(self._lock.directory, isinstance(self.zcli, Host))
        url = "" if addresses[0].is_proxied else addresses[0].url
        told = [{"url": address.url, "proxy_header": address.is_proxied} for address in addresses]
        try:
            write_run_file(path, url, bifrost.page, bifrost.config.require_auth, told)
        except (OSError, ConfigError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if again is None:
                self._log.warn(
                    "{path} cannot be written: {reason}; until it is, which is tried again and again, zcomm url and "
                    "zcomm call do not find this server without --url",
                    path=str(path),
                    reason=reason,
                )
            self._say_again = self.reactor.callLater(RUN_FILE_AGAIN, self._say_where)
        else:
            self._run_file = path
            if again is not None:
                self._log.info("{path} is written", path=str(path))

    def _forget_where(self) -> None:
        again, self._say_again = self._say_again, None
        if again is not None:
            again.cancel()
        path, self._run_file = self._run_file, None
        if path is not None:
            remove_run_file(path)

    @property
    def is_stopping(self) -> bool:
        """Whether it is on its way to its end, or there."""
        return self._stopping or not self.running

    def _take_in_servers(self) -> None:
        for bifrost in self.websockets:
            if bifrost.parent is None:
                bifrost.setServiceParent(self)

    def _begin(self) -> None:
        """Start what is a child already, unless that is done; see to an end when the reactor stops.

        :raises Unavailable: while it stops.
        """
        self._refuse_while_it_stops()
        if not self.running:
            self._start([])

    def _refuse_while_it_stops(self) -> None:
        if self._stopping:
            raise Unavailable("zComm stops: start again when the Deferred of stopService() has fired")

    def _start(self, created: list[zBifrost]) -> None:
        """Start each child that does not run, and ``created`` as further children; then raise what the first that
        failed has raised."""
        self.claim()
        # Not before: a daemon is a child that has to have it.
        keep_from_children(self._lock)
        if not self.running and (self.parent is None or not self.parent.running):
            # Nobody else would. First, because what is started may fail at a port that is taken.
            self._trigger = self.reactor.addSystemEventTrigger("before", "shutdown", self._shut_down)
        Service.startService(self)
        failures: list[Failure] = []
        idle = [child for child in self if not child.running]
        for child, start in [
            *((child, child.startService) for child in idle),
            *((bifrost, partial(bifrost.setServiceParent, self)) for bifrost in created),
        ]:
            if self.is_stopping:
                # One of them has ended it.
                break
            try:
                start()
            except Exception:
                failures.append(Failure())
                if child.running:
                    # Half of it may run; the next call starts it anew.
                    self._stopped(child, self._shutdown_timeout + GRACE)
        if failures:
            failures[0].raiseException()

    def _shut_down(self) -> Deferred[None]:
        """What the reactor waits for before it ends."""
        # It has taken it out already.
        self._trigger = None
        return self.stopService()

    @property
    def wanted_services(self) -> list[str]:
        """The services that the configuration names, those behind the engine and the database among them."""
        config = self.config
        return list(dict.fromkeys([*config.services, *filter(None, [config.engine_service, config.database_service])]))

    def check_below(self) -> None:
        """Look for what would make :meth:`start_below` fail and can be known with no service touched.

        :raises UnknownService: for a service that is not there.
        :raises ConfigError: for a declaration or setting of a service, for a database that zComm does not speak to,
            and for a driver that is not installed.
        """
        if self.wanted_services or self.config.declarations:
            self.services_manager.check(self.wanted_services)
        database = self.config.database_service
        if isinstance(self.zcli, Host) and database is not None:
            self.zcli.check_database(self.services_manager.get(database).declaration.url)

    @inlineCallbacks
    def start_below(self) -> Any:
        """Start the configured services, then connect the host's data.

        :returns: a Deferred that fires when commands can use both. When it fails, services that were running before
            go on as they were found.
        """
        self.check_below()
        self._begin()
        if self.wanted_services:
            yield self.services_manager.start_all(self.wanted_services, self._start_parts)
        else:
            yield self._start_parts()

    @inlineCallbacks
    def _start_parts(self) -> Any:
        name = self.config.engine_service
        if name is not None:
            self._connect_engine(name)
        connected = getattr(self.engine, "connected", None)
        if connected is not None:
            try:
                yield connected()
            except Unavailable as error:
                raise ConfigError("--engine", str(error)) from None
        yield self._start_data()
        if isinstance(self.zcli, Host):
            yield self.zcli.join(self.engine)
            self.zcli.meet(self.engine)

    @inlineCallbacks
    def _start_data(self) -> Any:
        if isinstance(self.zcli, Host):
            url = None
            if self.config.database_service is not None:
                self._drop_session_variables()
                url = self._url_of(self.config.database_service)
            yield self.zcli.start_data(url)

    def _drop_session_variables(self) -> None:
        """Take out of the process' environment what the shell says to every PostgreSQL, ours among them."""
        # Not of the mapping that was given: libpq reads the process' own.
        for name in filter(os.environ.__contains__, SESSION_VARIABLES):
            del os.environ[name]
            self._log.warn(
                "{name} is left out from here on, for the functions as well: the database is zComm's own", name=name
            )

    def stopService(self) -> Deferred[None]:
        """Stop in order: the servers (accept nobody, 1001 to everybody, wait), other children that were added, then
        engine, data, threads and services.

        A part that fails to stop, or does not end in time, is logged and keeps none of the others running: threads have
        the shutdown timeout, local services limits of their own, after which they are killed, all else five seconds
        beyond that timeout.

        The servers are forgotten: another start has none until they are made anew.

        :returns: a Deferred that fires when all is done, at once while nothing runs. Each call has one of its own. It
            never fails, unless it is cancelled, which leaves the stop as it is.
        """
        if not self.running and not self._stopping:
            # A server that was told to listen by itself is none of its children.
            return self._leave_all(self._busy_servers())
        ended = self._ended.add()
        if not self._stopping:
            self._stopping = True
            self._stop_in_order()
        return ended

    @inlineCallbacks
    def _stop_in_order(self) -> Any:
        seen: list[IService] = []
        # Whatever becomes of one step, the others are taken.
        for step in (
            self._forget_where,
            self.stop_websocket,
            partial(self._stop_added, seen),
            partial(self._stop_own, seen),
            partial(self._stop_late, seen),
            self._lock.release,
            self._let_reactor_end,
        ):
            yield maybeDeferred(step).addErrback(self._not_orderly)
        self._stopping = False
        self._ended.fire(None)

    def _let_reactor_end(self) -> None:
        """The reactor, which would have waited until now, need not any more."""
        trigger, self._trigger = self._trigger, None
        if trigger is not None:
            self.reactor.removeSystemEventTrigger(trigger)

    def _not_orderly(self, failure: Failure) -> None:
        self._log.failure("the end was not orderly", failure)

    def _stop_added(self, seen: list[IService]) -> Deferred[Any]:
        """Stop what a program has added, which stands on what is zComm's own."""
        # Not MultiService's own way, which stops all children at once.
        Service.stopService(self)
        seen.extend(self._own())
        added = self._running_beyond(seen)
        seen.extend(added)
        return DeferredList([self._stopped(child, self._shutdown_timeout + GRACE) for child in reversed(added)])

    def _own(self) -> list[IService]:
        """What is zComm's own, in the order in which it is stopped."""
        host = [self.zcli] if isinstance(self.zcli, Host) else []
        services = [] if self._manager is None else [self._manager]
        return [self.engine, *host, self.program, *services]

    @inlineCallbacks
    def _stop_own(self, seen: list[IService]) -> Any:
        for part in self._own():
            seen.append(part)
            limit = self._shutdown_timeout + GRACE
            if part is self.program:
                limit = self._shutdown_timeout
            elif part is self._manager:
                limit = SERVICES_TIMEOUT
            yield self._stopped(part, limit)

    @inlineCallbacks
    def _stop_late(self, seen: list[IService]) -> Any:
        """Stop what was started by itself meanwhile."""
        while (late := self._running_beyond(seen)) or self._busy_servers():
            seen.extend(late)
            servers = [one for one in late if isinstance(one, zBifrost)]
            others = [one for one in late if not isinstance(one, zBifrost)]
            ending = [self._stopped(one, self._shutdown_timeout + GRACE) for one in others]
            yield DeferredList([*ending, self._leave_all([*servers, *self._busy_servers()])])

    def _running_beyond(self, known: list[IService]) -> list[IService]:
        """The children that run and are none of ``known``. A program's objects may be equal, or have no hash."""
        return [child for child in self if child.running and not any(child is one for one in known)]

    def _busy_servers(self) -> list[zBifrost]:
        return [bifrost for bifrost in self.websockets if not bifrost.is_idle]

    def _stopped(self, part: IService, limit: float, stop: Callable[[], Any] | None = None) -> Deferred[None]:
        """Stop ``part``; fires when it has, or when ``limit`` seconds are over, and never fails. What takes longer is
        left as it is."""
        stopping = maybeDeferred(lambda: (stop or part.stopService)()).addErrback(self._not_stopped, part)
        ended = following(stopping.addCallback(lambda _: None))
        return ended.addTimeout(limit, self.reactor).addErrback(lambda _: self._late(part))

    def _not_stopped(self, failure: Failure, part: IService) -> None:
        self._log.failure("{part} did not stop cleanly", failure, part=part.name or part)

    def _late(self, part: IService) -> None:
        # Its threads are daemons: the process does not wait for what they still do.
        self._log.warn("{part} did not end in time", part=part.name or part)
