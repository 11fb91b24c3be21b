"""zBifrost: the WebSocket server as a Twisted service."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.application.service import Service
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from zcomm.auth.credentials import IBearerToken
from zcomm.auth.policy import AllowAll
from zcomm.bifrost.admission import INVALID_ORIGIN, Admission
from zcomm.bifrost.broadcaster import Broadcaster, FindMembers
from zcomm.bifrost.connection import Connection, ServerState
from zcomm.bifrost.dispatch import Dispatcher, KeyedResponder, Responder
from zcomm.bifrost.factory import BifrostFactory
from zcomm.bifrost.given import Given
from zcomm.bifrost.handshake import Head
from zcomm.bifrost.messages import encode_text
from zcomm.bifrost.pending import Exchange
from zcomm.bifrost.prompts import OpenPrompts, Prompt
from zcomm.bifrost.ratelimit import AttemptWindow
from zcomm.bifrost.registry import Registry
from zcomm.budget.budgets import Budgets
from zcomm.config import WebSocketConfig
from zcomm.engines.memory import MemoryEngine
from zcomm.errors import ConfigError, NotListening, Unavailable
from zcomm.interfaces import Broadcast, Client, IEngine, LiveCounts, Permissions, Request
from zcomm.origin import is_loopback
from zcomm.peers import UNIX, socket_address
from zcomm.runtime.acceptor import restrain
from zcomm.runtime.deferreds import Waiters
from zcomm.runtime.endpoints import Address, ProxiedEndpoint, TLSEndpoint, addresses, server_endpoints
from zcomm.runtime.process import keep_from_children
from zcomm.runtime.transports import close_copy
from zcomm.topics.commands import TopicCommands
from zcomm.topics.kinds import Kind
from zcomm.topics.topics import Topics
from zcomm.wire.autobahn import HookRefusing, refuse_hooks
from zcomm.wire.closecodes import CloseCode
from zcomm.wire.fanout import fan_out
from zcomm.wire.writebatch import WriteBatch

__all__ = ["zBifrost"]

#: A tenth of the clients is pinged at a time, so that ten thousand pings never leave at once.
PING_SLICES = 10
#: Seconds between looks at whether the tokens of those connected still hold.
TOKEN_CHECK = 1.0


class zBifrost(Service, metaclass=HookRefusing):
    """A WebSocket server: commands with replies, broadcasts, admission, orderly shutdown.

    :param config: where to listen, whom to let in, the limits.
    :param checker: the ``twisted.cred`` checker for tokens; without one, a server that requires
        authentication lets nobody in.
    :param permissions: what each identity may do (:class:`~zcomm.interfaces.Permissions`); everything when it is left
        out.
    :param reactor: the reactor; the running one when it is left out.
    :param walker: the context a host's dispatcher gets with each command.
    :param engine: carries changes to other servers, and theirs here; whoever made it starts and stops it. When it is
        left out, the server has one of its own, in memory.
    :param budgets: the accounts of the users of all servers of the program; when they are left out, the server has its
        own, by its limits.
    :param topics: those of the program, on that engine; when they are left out, the server has its own.
    :param connection: the class that answers an admitted client: :class:`~zcomm.bifrost.connection.Connection`, or a
        subclass of it.
    :param pages: answers plain HTTP on the port: this server, the head of a request, the peer's address, whether that
        is on this machine with no proxy between, and the local address -> a Deferred of the whole response, or of an
        :class:`~zcomm.bifrost.pending.Exchange`. Without it a browser is told to upgrade.
    :ivar factory: an Autobahn ``WebSocketServerFactory``.
    :ivar registry: the clients that are connected and admitted.
    """

    name = "zBifrost"
    _log = Logger()
    _fan_out = staticmethod(fan_out)

    def __init__(
        self,
        config: WebSocketConfig | None = None,
        *,
        checker: ICredentialsChecker | None = None,
        permissions: Permissions | None = None,
        reactor: Any = None,
        walker: Any = None,
        engine: IEngine | None = None,
        budgets: Budgets | None = None,
        topics: Topics | None = None,
        connection: type[Connection] = Connection,
        pages: Callable[[zBifrost, Head, str, bool, str], Deferred[bytes | Exchange]] | None = None,
    ):
        # A base may have got one since the class was made.
        refuse_hooks(type(self))
        if reactor is None:
            from twisted.internet import reactor
        self.config = config = WebSocketConfig() if config is None else config
        self.walker = walker
        self._reactor = reactor
        limits = config.limits
        # Only what was left out is replaced: permissions that grant nothing yet may well be an empty container.
        permissions = AllowAll() if permissions is None else permissions
        self.given = Given(reactor, self.ask)
        self.dispatcher = Dispatcher(permissions, self.given)
        # Our own reactor has a cheaper way than a timer.
        at_end_of_turn = getattr(reactor, "at_end_of_turn", None) or partial(reactor.callLater, 0)
        batch = WriteBatch(at_end_of_turn)
        self.registry: Registry[Connection] = Registry()
        self.broadcaster = Broadcaster(
            self.registry, permissions, batch, self._fan_out, reactor.seconds, tells_results=config.broadcast != "none"
        )
        if engine is None:
            engine = MemoryEngine(limits.history_memory, reactor.seconds)
        self._engine: IEngine = engine
        budgets = Budgets.on(reactor, limits) if budgets is None else budgets
        if topics is None:
            topics = Topics(engine, reactor, limits, budgets, self._fan_out)
        self.topics = topics
        state = ServerState(
            dispatcher=self.dispatcher,
            engine=self._engine,
            clock=reactor,
            budgets=budgets,
            broadcast=config.broadcast,
            in_flight=limits.in_flight,
            timeout=limits.command_timeout,
            max_depth=limits.json_depth,
        )
        self._state = state
        self.live_counts: Callable[[], LiveCounts | None] = lambda: None
        self.prompts = OpenPrompts(reactor)
        self.dispatcher.reserve(OpenPrompts.KEY, self.prompts.respond)
        on_topics = TopicCommands(topics, permissions)
        self.dispatcher.reserve("zSubscribe", on_topics.subscribe)
        self.dispatcher.reserve("zUnsubscribe", on_topics.unsubscribe)
        self._unsubscribe = on_topics.unsubscribe
        self.dispatcher.reserve("zPublish", on_topics.publish)
        self.dispatcher.reserve("zHistory", on_topics.history, reads=True)
        self.dispatcher.reserve("zPresence", on_topics.presence)
        if not config.require_auth:
            checker = None
        elif checker is None:
            checker = _NobodyKnown()
        self._checker: ICredentialsChecker | None = checker
        proxies = config.proxies()
        #: Failed tokens by address.
        self.failures = AttemptWindow(limits.auth_failures, reactor.seconds)
        admission = Admission(config.origins(), self._checker, self.failures, reactor)
        self.factory = BifrostFactory(
            limits,
            admission,
            state,
            self.broadcaster,
            reactor,
            batch,
            config.compression,
            connection,
            None if pages is None else partial(pages, self),
            proxies,
            topics,
        )
        #: Makes the endpoints to listen on, from the configuration and the reactor.
        self.endpoints: Callable[[WebSocketConfig, Any], list[IStreamServerEndpoint]] = server_endpoints
        self._certified: list[TLSEndpoint] = []
        self._ports: list[IListeningPort] = []
        self._listening: Waiters[IListeningPort] = Waiters()
        #: Those who asked it to listen and do not know yet whether it does.
        self._asking: Waiters[IListeningPort] = Waiters(self._give_up)
        self._stopping: Waiters[None] = Waiters()
        self._starting: Deferred[Any] | None = None
        self._leaving = False
        self._slice = 0
        self._pings = LoopingCall(self._ping)
        self._tokens = LoopingCall(self._check_tokens)
        self._pings.clock = self._tokens.clock = reactor

    # -- for the program

    def command(self, key: str, *, broadcast: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a custom command; see :meth:`zcomm.bifrost.dispatch.Dispatcher.command`."""
        return self.dispatcher.command(key, broadcast=broadcast)

    def topic(self, pattern: str, **settings: Any) -> Kind:
        """Declare a kind of topics, at all servers of the program; see :meth:`zcomm.topics.topics.Topics.topic`."""
        return self.topics.topic(pattern, **settings)

    def serve_data(self, walker: Any, crud: KeyedResponder | None, host: KeyedResponder | None = None) -> None:
        """Set what answers the commands that are not registered, in place of what did before; see
        :meth:`zcomm.bifrost.dispatch.Dispatcher.serve_data`.

        :param walker: the context in which they are answered.
        """
        self.walker = walker
        self.dispatcher.serve_data(crud, host)

    def serve_members(self, members: FindMembers) -> None:
        """Set what looks up the memberships that rights to rows go by, for broadcasts."""
        self.broadcaster.members = members

    def serve_live(self, live: Responder, counts: Callable[[], LiveCounts | None]) -> None:
        """Set what answers ``zLive``, and ``zUnsubscribe`` of a query.

        :param counts: the numbers of the live queries; ``None`` where there are none.
        """
        self.live_counts = counts

        def unsubscribe(request: Request, client: Client) -> Any:
            horizontal = request.horizontal
            is_query = type(horizontal) is dict and "query" in horizontal
            return live(request, client) if is_query else self._unsubscribe(request, client)

        self.dispatcher.reserve("zLive", live)
        self.dispatcher.reserve("zUnsubscribe", unsubscribe)

    def is_heard(self) -> bool:
        """Whether somebody may hear of a change beside who makes it."""
        return self._state.is_heard

    @property
    def clients(self) -> list[Client]:
        """Those connected and admitted, as they are now."""
        return list(self.registry)

    def broadcast(self, message: Any, sender: Client | None = None) -> int:
        """Send ``message`` to every client of this server but ``sender``: a ``str`` as it is, anything else as JSON.

        :returns: how many clients it is sent to.
        :raises NotListening: when the server is not running.
        :raises InternalError: for a message JSON has no form for.
        """
        if not self._ports:
            raise NotListening
        return self.broadcaster.tell(Broadcast(encode_text(message), sender=sender))

    def display(self, event: str, data: Any, to: Client | None = None) -> int:
        """Show something: ``{"event": "display", "display": event, "data": data}``.

        :param event: what it is, as zDisplay names it (``header``, ``text``, ``table`` …).
        :param to: the client that sees it; everybody when it is left out.
        :returns: how many clients it is sent to.
        """
        message = {"event": "display", "display": event, "data": data}
        if to is None:
            return self.broadcast(message)
        to.send(message)
        return 1

    def ask(self, client: Client, prompt: Any, timeout: float = 60.0) -> Deferred[Any]:
        """Ask the person at ``client`` something.

        :param prompt: a text, a :class:`~zcomm.bifrost.prompts.Prompt`, or ``{"kind": "choice", "label": …,
            "choices": […]}``; ``kind`` is text, password, choice, confirm or form.
        :param timeout: seconds to answer in.
        :returns: a Deferred of the answer, which has been checked. It fails with
            :class:`~zcomm.errors.Declined`, with :class:`~zcomm.errors.CommandTimeout`, or with
            :class:`~zcomm.errors.Unavailable` when the client leaves; cancelling it takes the prompt back.
        :raises ConfigError: for a prompt that cannot be shown.
        """
        return self.prompts.ask(cast(Connection, client), Prompt.of(prompt), timeout)

    def when_listening(self) -> Deferred[IListeningPort]:
        """Fires with the listening port: at once while there is one, else when there will be."""
        return succeed(self._ports[0]) if self._ports else self._listening.add()

    def when_stopped(self) -> Deferred[None]:
        """Fires when the server has stopped: no port and no client is left. At once while it does not run."""
        return self._stopping.add() if self._ports or self._leaving else succeed(None)

    def ends_when(self, is_ending: Callable[[], bool]) -> None:
        """Ask ``is_ending()``, from now on, whether the program is about to stop the server: commands that fail then
        are left to the 1001 that everybody gets."""
        self._state.is_ending = is_ending

    def listens_on(self, port: IListeningPort) -> bool:
        """Whether ``port`` is one of its own."""
        return port in self._ports

    @property
    def ports(self) -> list[Any]:
        """All that it listens on, in the order of its endpoints; none while it does not."""
        return list(self._ports)

    @property
    def is_idle(self) -> bool:
        """Whether it neither listens nor is about to, and has nobody left to wait for."""
        return self._starting is None and not self._leaving

    @property
    def is_listening(self) -> bool:
        """Whether it accepts clients."""
        return bool(self._ports)

    @property
    def addresses(self) -> list[Address]:
        """All that it listens on, the one first that is told to clients on this machine; none while it does not."""
        return addresses(self._ports, self.config.listen or ("tcp",)) if self._ports else []

    @property
    def port(self) -> int:
        """The TCP port that it listens on, the first in :attr:`addresses`; the configured one while it has none."""
        return next((address.port for address in self.addresses if address.port is not None), self.config.port)

    @property
    def has_certificates(self) -> bool:
        """Whether an ``ssl:`` endpoint is among those it is to listen on."""
        return any(text.startswith("ssl:") for text in self.config.listen)

    @property
    def url(self) -> str:
        """The address that a client on this machine connects to; of several the one that is first in
        :attr:`addresses`."""
        if self._ports:
            return self.addresses[0].url
        address = socket_address(self.config.host)
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        return f"{'wss' if self.has_certificates else 'ws'}://{f'[{name}]' if ':' in name else name}:{self.port}"

    @property
    def page(self) -> str:
        """The address of the page for a browser on this machine, the user's own where there is one; empty where
        there is none, as for a Unix socket, behind a proxy, and while it does not listen."""
        pages = [address.page for address in self.addresses if address.page] if self.config.web else []
        return pages[0] if pages else ""

    def open_to_others(self) -> list[tuple[str, bool]]:
        """The addresses that it listens on and that others than this machine may reach, by the sockets as they are;
        and of each, whether nothing is encrypted there."""
        found = []
        for port, description in zip(self._ports, self.config.listen or ("tcp",), strict=False):
            address = socket_address(getattr(port.getHost(), "host", UNIX))
            if address != UNIX and not is_loopback(address):
                kind = description.removeprefix("haproxy:").partition(":")[0]
                found.append((address, kind in ("tcp", "tcp6", "systemd")))
        return found

    def close_clients(self, refused: Callable[[Client], bool], reason: str = "Session expired") -> int:
        """End the connections that ``refused`` picks; returns how many.

        The close code is 1008 where a new connection would not be let in: those of a page that is not allowed, and of a
        token that proves nobody any more. Otherwise it is 1013, with which a client comes back, to the rights of now.
        """
        chosen = [client for client in (*self.registry, *self.factory.callers) if refused(client)]
        for client in chosen:
            final = reason == INVALID_ORIGIN or not self.factory.admission.would_admit(client.identity)
            client.close(CloseCode.POLICY_VIOLATION if final else CloseCode.TRY_AGAIN_LATER, reason)
        return len(chosen)

    def reload_origins(self) -> int:
        """Read the files that the list of allowed origins names anew, and end the connections of pages that are no
        longer let in, with close code 1008.

        :returns: how many those are.
        :raises ConfigError: for a file that cannot be used; the old list still holds.
        """
        admission = self.factory.admission
        admission.replace_origins(self.config.origins())
        gone = {
            client
            for client in self.registry
            if client.transport is not None
            and not admission.allows_page(
                client.origin, client.host, client.transport.is_local, client.transport.local_address
            )
        }
        return self.close_clients(gone.__contains__, INVALID_ORIGIN)

    def reload_certificates(self) -> None:
        """Read the keys and certificates of the ``ssl:`` endpoints anew, for connections from now on.

        :raises ConfigError: for files that cannot be used; those of that endpoint as they were still hold, and the
            others are read.
        """
        wrong: list[ConfigError] = []
        for endpoint in self._certified:
            try:
                endpoint.read_anew()
            except ConfigError as error:
                wrong.append(error)
        if wrong:
            raise ConfigError(wrong[0].name, "; ".join(error.reason for error in wrong))

    # -- the service

    def listen(self) -> Deferred[IListeningPort]:
        """Start listening, or join the start that is under way; fires with the (first) port.

        Each call has a Deferred of its own; the start is given up when all of them are cancelled. It fails with
        ``CannotListenError``, with :class:`~zcomm.errors.ConfigError` for an endpoint that is none or whose TLS key or
        certificate cannot be used and for an ``on_presence`` that would never hear of any, and with
        :class:`~zcomm.errors.NotListening` when the server is stopped before all of its endpoints listen. While it
        stops it fails with :class:`~zcomm.errors.Unavailable`.
        """
        if self._leaving:
            # Its old clients and the new ones would be told apart by nobody.
            return fail(Unavailable("The server stops: start it again when the Deferred of stopService() has fired"))
        if self._starting is not None:
            return succeed(self._ports[0]) if self._ports else self._asking.add()
        try:
            self.topics.check_hooks()
            endpoints = self.endpoints(self.config, self._reactor)
        except ConfigError:
            return fail()
        below = [endpoint.below if isinstance(endpoint, ProxiedEndpoint) else endpoint for endpoint in endpoints]
        self._certified = [endpoint for endpoint in below if isinstance(endpoint, TLSEndpoint)]
        asked = self._asking.add()
        self.factory.start_accepting()
        opening = [maybeDeferred(endpoint.listen, self.factory) for endpoint in endpoints]
        starting = self._starting = gatherResults(opening, consumeErrors=True)
        starting.addCallbacks(self._opened, self._not_opened, callbackArgs=(starting,), errbackArgs=(starting, opening))
        starting.addCallbacks(self._asking.fire, self._asking.fail)
        return asked

    def forked(self) -> None:
        """Close the copies of ports and connections that a forked child has."""
        for port in self._ports:
            close_copy(port)
        self.factory.forked()

    def _give_up(self) -> None:
        if self._starting is not None:
            self._starting.cancel()

    def _opened(self, ports: list[IListeningPort], starting: Deferred[Any]) -> Any:
        if self._starting is not starting:
            # Stopped meanwhile.
            return _closed(ports).addCallback(lambda _: Failure(NotListening()))
        self._ports = ports
        keep_from_children(self)
        for port in ports:
            restrain(port)
        self._pings.start(self.config.limits.ping_interval / PING_SLICES, now=False)
        if self._checker is not None:
            self._tokens.start(TOKEN_CHECK, now=False)
        self._engine.attach(self.broadcaster)
        self.topics.serve(self.registry)
        for address in self.addresses if self.endpoints is server_endpoints else ():
            how = " (for a proxy that sends the header of the PROXY protocol)" if address.is_proxied else ""
            self._log.info("zBifrost listening on {url}{how}", url=address.url, how=how)
        self._listening.fire(ports[0])
        return ports[0]

    def _not_opened(self, failure: Any, starting: Deferred[Any], opening: list[Deferred[Any]]) -> Failure:
        """One of several endpoints could not listen: none of them does."""
        if self._starting is starting:
            self._starting = None
        for deferred in opening:
            deferred.addCallback(lambda port: port and port.stopListening())
        first: Failure = failure.value.subFailure
        return first

    def privilegedStartService(self) -> None:
        """Bind while the process may still bind any port."""
        self._listen_or_raise()

    def startService(self) -> None:
        """Listen on all endpoints.

        :raises twisted.internet.error.CannotListenError: at once, where the port is taken.
        """
        super().startService()
        try:
            self._listen_or_raise()
        except BaseException:
            # It can be started again.
            super().stopService()
            raise

    def _listen_or_raise(self) -> None:
        failures: list[Failure] = []
        listening = self.listen().addErrback(failures.append)
        if failures:
            failures[0].raiseException()

        def told(_: Any) -> None:
            if failures and not failures[0].check(NotListening):
                # Later than whoever called could be told.
                Service.stopService(self)
                self._log.failure("zBifrost does not listen", failures[0])

        listening.addCallback(told)

    def stopService(self) -> Deferred[None]:
        """Stop: accept nobody, tell everybody 1001, wait for them to leave (the shutdown timeout at most).

        Fires when no port, no client and no timer of this server is left. A second call joins the first; each has a
        Deferred of its own, and to cancel it leaves the stop as it is.
        """
        super().stopService()
        ended = self._stopping.add()
        if self._leaving:
            return ended
        self.factory.stop_accepting()
        self._leaving = True
        ports, self._ports = self._ports, []
        starting, self._starting = self._starting, None
        for call in (self._pings, self._tokens):
            if call.running:
                call.stop()
        closed = _closed(ports)
        if starting is not None and not ports:
            # It closes what it opens; that has been done when it fires.
            closed.addCallback(lambda _: starting)
        closed.addCallback(lambda _: self._dismiss()).addErrback(self._not_orderly)
        closed.addCallback(lambda _: self._engine.detach(self.broadcaster)).addErrback(self._not_orderly)
        closed.addCallback(self._left)
        return ended

    def _dismiss(self) -> Deferred[None]:
        for client in (*self.registry, *self.factory.callers):
            try:
                client.close(CloseCode.GOING_AWAY, "Server is shutting down")
            except Exception:
                # Cut off in time, like whoever does not leave.
                self._not_orderly(Failure())
        limit = self._reactor.callLater(self.config.limits.shutdown_timeout, self.factory.abort_all)
        return self.factory.when_empty().addCallback(lambda _: limit.active() and limit.cancel())

    def _not_orderly(self, failure: Failure) -> None:
        self._log.failure("the end of zBifrost was not orderly", failure)

    def _left(self, _: Any) -> None:
        self._state.notices.stop()
        self._state.budgets.stop()
        self.topics.leave(self.registry)
        self._leaving = False
        self._stopping.fire(None)

    # -- while it runs

    def _ping(self) -> None:
        self._slice = (self._slice + 1) % PING_SLICES
        for client in self.registry:
            if client.id % PING_SLICES == self._slice and client.transport is not None:
                try:
                    client.transport.tick()
                except Exception:
                    # Whatever is wrong with one connection, the others are pinged.
                    self.factory.unexpected(Failure())
                    client.transport.abandon()

    def _check_tokens(self) -> None:
        still_valid = getattr(self._checker, "still_valid", None)
        if still_valid is None:
            return
        identities = {*self.registry.identities, *self.factory.callers.identities}
        verdicts = {identity: still_valid(identity) for identity in identities}
        if not all(verdicts.values()):
            self.close_clients(lambda client: not verdicts.get(client.identity, True))


def _closed(ports: list[IListeningPort]) -> Deferred[Any]:
    """Close ``ports``; fires when all are, whatever kept one from it."""
    return DeferredList([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)


@implementer(ICredentialsChecker)
class _NobodyKnown:
    """Stands in for a checker that was not given: asking for tokens without knowing any lets nobody in."""

    credentialInterfaces = (IBearerToken,)

    def requestAvatarId(self, credentials: Any) -> Any:
        raise RuntimeError("authentication is required, but the server was given no checker for tokens")
