"""The guide's API for programs without a reactor: plain calls, and coroutines under asyncio.

The same objects as :class:`zcomm.zComm`, worked by a reactor in a background thread. Calls that touch
services answer as the guide says, ``True`` or ``False``, a dict or ``{}``, and log the reason of a
failure with the host's own logger. A blocking call on the reactor's own thread raises at once instead of
waiting for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from typing import Any, Literal, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm import comm
from zcomm.bifrost import server
from zcomm.bifrost.dispatch import adapted
from zcomm.bifrost.given import BlockingClient as Client
from zcomm.bifrost.given import InLoop, ending, in_the_loop, in_worker, kind_of, unwrapped
from zcomm.config import Config
from zcomm.errors import Unavailable, ZCommError
from zcomm.host.log import HostLog
from zcomm.interfaces import Client as ReactorClient
from zcomm.interfaces import Identity, Position, Request
from zcomm.runtime.deferreds import Waiters
from zcomm.runtime.thread import blocking, in_loop, in_reactor, keep_waking
from zcomm.runtime.workers import Workers, aside
from zcomm.topics import kinds

__all__ = ["Client", "Kind", "zBifrost", "zComm"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class zBifrost:
    """A WebSocket server, made by :meth:`zComm.create_websocket`.

    :param bifrost: the server in the reactor's thread.
    :param workers: where its plain commands run.
    :param in_loop: runs a coroutine in the asyncio loop in which a server is served.
    """

    def __init__(
        self,
        bifrost: server.zBifrost,
        workers: Workers,
        in_loop: Callable[[server.zBifrost, Coroutine[Any, Any, Any]], Deferred[Any]],
    ):
        self._bifrost = bifrost
        self._workers = workers
        self._in_loop = in_loop

    def __repr__(self) -> str:
        return f"<zBifrost {self.url}>"

    @property
    def port(self) -> int:
        """The port it listens on; the configured one while it does not."""
        return self._bifrost.port

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return self._bifrost.url

    @property
    def is_listening(self) -> bool:
        """Whether it accepts clients."""
        return self._bifrost.is_listening

    @property
    def clients(self) -> list[Client]:
        """Those connected, as they are now."""
        return [Client(client) for client in blocking(lambda: self._bifrost.clients)]

    def command(self, key: str, *, broadcast: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a custom command, as a decorator; see :meth:`zcomm.zBifrost.command`.

        A plain function runs in a worker thread and may block; a coroutine function, and what a plain one returns to
        be awaited, runs in the loop that awaits ``start_websocket``.

        :raises ConfigError: for a key that is taken or not a non-empty string, and for parameters that nobody could
            fill.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            answer, wants = adapted(key, function)
            is_coroutine = kind_of(function) == "coroutine"
            in_loop = partial(self._in_loop, self._bifrost)

            def respond(request: Request, client: ReactorClient) -> Any:
                given = self._bifrost.given(wants, request, client, "loop" if is_coroutine else "thread")
                call = partial(answer, request, Client(client), given)
                if is_coroutine:
                    return ending(lambda: in_the_loop(call), given, in_loop)
                return ending(lambda: in_worker(self._workers, client, call, kind=key, in_loop=in_loop), given)

            blocking(self._bifrost.dispatcher.add, key, respond, broadcast=broadcast)
            return function

        return register

    def broadcast(self, message: Any, sender: Client | None = None) -> int:
        """Send ``message`` to every client but ``sender``; returns to how many.

        :raises NotListening: when the server is not running.
        """
        return blocking(self._bifrost.broadcast, message, unwrapped(sender))

    def display(self, event: str, data: Any, to: Client | None = None) -> int:
        """Show something to one client or to all; returns to how many."""
        return blocking(self._bifrost.display, event, data, unwrapped(to))

    def ask(self, client: Client, prompt: Any, timeout: float = 60.0) -> Any:
        """Ask the person at ``client``, and wait for the answer; see :meth:`zcomm.zBifrost.ask`.

        Coroutines call it in a thread: ``await asyncio.to_thread(bifrost.ask, client, prompt)``.
        """
        with aside() as standing:
            return blocking(standing.until, self._bifrost.ask, unwrapped(client), prompt, timeout)


class _Somebody:
    """Whose work it is to ask about an identity."""

    id, peer = 0, ""

    def __init__(self, identity: Identity):
        self.identity = identity


def _elsewhere(function: Callable[..., Any], workers: Workers, in_loop: InLoop) -> Callable[..., Any]:
    """``function`` of a program, called with whose work it is before its own arguments: in a worker thread, or in the
    loop that serves where it is a coroutine function."""
    is_coroutine = kind_of(function) == "coroutine"

    def call(whose: Any, *args: Any, **parts: Any) -> Any:
        bound = partial(function, *args, **parts)
        if is_coroutine:
            return in_loop(in_the_loop(bound))
        return in_worker(workers, whose, bound, kind=function, in_loop=in_loop)

    return call


class Kind:
    """One kind of topics, made by :meth:`zComm.topic`.

    Plain functions run in worker threads and may block; coroutine functions run in the loop that serves.
    """

    def __init__(self, kind: kinds.Kind, workers: Workers, in_loop: InLoop):
        self._kind = kind
        self._workers = workers
        self._in_loop = in_loop

    def __repr__(self) -> str:
        return repr(self._kind)

    def allow(self, action: str) -> Callable[[F], F]:
        """Ask the program too whether somebody may, as a decorator; see :meth:`zcomm.topics.kinds.Kind.allow`.

        :raises ConfigError: for an action that is none or is asked already, and for a function that cannot be called.
        """
        register: Callable[[Callable[..., Any]], object] = blocking(self._kind.allow, action)

        def decorate(function: F) -> F:
            blocking(register, self._adapted(function))
            return function

        return decorate

    def incoming(self, function: F) -> F:
        """Check or rewrite what clients publish, as a decorator; see :meth:`zcomm.topics.kinds.Kind.incoming`.

        :raises ConfigError: where there is one already, and for a function that cannot be called so.
        """
        blocking(self._kind.incoming, self._adapted(function))
        return function

    def _adapted(self, function: Any) -> Callable[..., Any]:
        if not callable(function):
            # It is refused by name.
            return function  # type: ignore[no-any-return]
        call = _elsewhere(function, self._workers, self._in_loop)

        @wraps(function)
        def ask(identity: Identity, *args: Any, **parts: Any) -> Any:
            return call(_Somebody(identity), identity, *args, **parts)

        return ask


class zComm:
    """Communication and services of one host, for programs without a reactor.

    :param zcli: the host: anything with a ``session``. Its ``logger`` hears what zComm has to say.
    :param config: the configuration; read from the environment when it is left out.
    :param environ: the environment; the process' own when it is left out.
    :raises ValueError: for a host that is ``None`` or has no session.
    """

    _log = Logger()

    def __init__(self, zcli: Any, *, config: Config | None = None, environ: Mapping[str, str] | None = None):
        #: The tasks that serve, by server.
        self._serving: dict[server.zBifrost, asyncio.Task[Any]] = {}
        self._below: Literal["", "starting", "started"] = ""
        self._waiting_for_below: Waiters[None] = Waiters()
        self._comm = blocking(comm.zComm, zcli, config=config, environ=environ, in_loop=self._in_loop)
        self._host_log = HostLog.of(zcli)
        self._host_log.start()
        self.zcli = zcli

    @property
    def program(self) -> Any:
        """Functions, pages and permissions; see :class:`zcomm.zComm`."""
        return self._comm.program

    def create_websocket(self, walker: Any = None, port: int | None = None, host: str | None = None) -> zBifrost:
        """A WebSocket server, not listening yet; see :meth:`zcomm.zComm.create_websocket`."""
        bifrost = blocking(self._comm.create_websocket, walker, port, host)
        return zBifrost(bifrost, self._comm.program.workers, self._in_loop)

    def _in_loop(self, bifrost: server.zBifrost, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Run ``coroutine`` in the loop in which ``bifrost`` is served."""
        serving = self._serving.get(bifrost)
        if serving is None or serving.cancelling():
            coroutine.close()
            raise Unavailable("The server is not served by an event loop now")
        return in_loop(serving.get_loop(), coroutine)

    def start_below(self) -> None:
        """Start the configured services, then connect the host's data, and wait until commands can use both.

        ``start_websocket`` does so by itself, before it listens. A second call does nothing.

        :raises ServiceError: for a service that does not start, which names the cause and the fix.
        :raises ConfigError: for a setting that cannot be used, and for a database that does not fit the schema.
        :raises Unavailable: for a database that does not answer.
        """
        blocking(self._start_below)

    def _start_below(self) -> Deferred[None]:
        """Once, whoever asks meanwhile; on the reactor's thread."""
        if self._below == "started":
            return succeed(None)
        joined = self._waiting_for_below.add()
        if not self._below:
            self._below = "starting"
            self._comm.start_below().addBoth(self._below_ended)
        return joined

    def _below_ended(self, result: Any) -> None:
        self._below = "" if isinstance(result, Failure) else "started"
        if isinstance(result, Failure):
            self._waiting_for_below.fail(result)
        else:
            self._waiting_for_below.fire(None)

    async def start_websocket(self, socket_ready: Any = None, walker: Any = None) -> None:
        """Serve until the server is stopped or the task is cancelled; first start what commands need
        (:meth:`start_below`).

        :param socket_ready: an :class:`asyncio.Event`, an :class:`asyncio.Future`, or anything with ``set()``.
            An event is set when it is decided whether the server listens: when it cannot, whoever waits
            for the event goes on too, and this coroutine has raised. A future gets the error.
        :raises twisted.internet.error.CannotListenError: when the port is taken.
        """
        try:
            bifrost = await self._begin(walker)
        except BaseException as error:
            comm.announce(socket_ready, error)
            raise
        comm.announce(socket_ready, None)
        stop_waking = keep_waking(asyncio.get_running_loop())
        try:
            await in_reactor(bifrost.when_stopped)
        except BaseException:
            # Cancelled: nothing is left of it when this returns.
            await asyncio.shield(in_reactor(self._comm.stop_websocket, bifrost))
            raise
        finally:
            stop_waking()
            self._serving.pop(bifrost, None)

    async def _begin(self, walker: Any) -> server.zBifrost:
        """Listen. A task that is cancelled meanwhile leaves no server behind that nobody could stop."""
        serving = asyncio.current_task()

        def start() -> Any:
            below = self._start_below()
            listening = below.addCallback(lambda _: self._comm.start_websocket(None, walker))
            return listening.addCallback(self._comm.server_of).addCallback(remember)

        def remember(bifrost: server.zBifrost) -> server.zBifrost:
            if serving is not None:
                self._serving[bifrost] = serving
                # A loop that ends cancels it together with what runs for commands, in any order.
                bifrost.ends_when(lambda: serving.cancelling() > 0)
            return bifrost

        starting = in_reactor(start)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.shield(in_reactor(self._comm.stop_websocket, await starting))
            raise

    async def broadcast_websocket(self, message: Any, sender: Client | None = None) -> int:
        """Send ``message`` to all clients of all servers; returns to how many.

        :raises NotListening: when no server runs.
        """
        return await in_reactor(self._comm.broadcast_websocket, message, unwrapped(sender))

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
        """Declare a kind of topics; see :meth:`zcomm.topics.topics.Topics.topic`.

        :raises ConfigError: for a setting that cannot be used, and for names that are declared already.
        """
        kind = blocking(
            self._comm.topic,
            pattern,
            history=history,
            keep=keep,
            presence=presence,
            publish=publish,
            personal=personal,
        )
        return Kind(kind, self._comm.program.workers, self._in_any_loop)

    def on_presence(self, pattern: str) -> Callable[[F], F]:
        """Hear of those who come into topics and go, as a decorator; see
        :meth:`zcomm.topics.topics.Topics.on_presence`. A plain function is called in a worker thread, a coroutine
        function in the loop that serves.

        :raises ConfigError: for a pattern that is none, and for a function that cannot be called so.
        """
        register: Callable[[Callable[..., Any]], object] = blocking(self._comm.on_presence, pattern)
        nobody = _Somebody(Identity("", ""))

        def decorate(function: F) -> F:
            call = _elsewhere(function, self._comm.program.workers, self._in_any_loop)
            blocking(register, wraps(function)(lambda *args, **parts: call(nobody, *args, **parts)))
            return function

        return decorate

    def publish(self, topic: str, data: Any, key: str | None = None) -> Position | None:
        """Publish a message to a topic, in the program's name; its position, or ``None`` for a topic that keeps none.
        See :meth:`zcomm.topics.topics.Topics.publish`."""
        return blocking(self._comm.publish, topic, data, key)

    def history(
        self,
        topic: str,
        *,
        since: Position | None = None,
        before: Position | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> dict[str, Any]:
        """Read messages that a topic keeps; see :meth:`zcomm.topics.topics.Topics.history`."""
        return blocking(partial(self._comm.history, topic, since=since, before=before, limit=limit, reverse=reverse))

    def members(self, topic: str) -> dict[str, Any]:
        """Look who is in a topic; see :meth:`zcomm.topics.topics.Topics.members`."""
        return blocking(self._comm.members, topic)

    def subscribe(self, topic: str, to: str) -> int:
        """Subscribe the connections that the user ``to`` has now; returns how many come in."""
        return blocking(self._comm.subscribe, topic, to)

    def unsubscribe(self, topic: str, to: str | None = None) -> int:
        """End the subscriptions of the user ``to``, or of everybody; returns how many."""
        return blocking(self._comm.unsubscribe, topic, to)

    def _in_any_loop(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Run ``coroutine`` in the loop in which a server is served."""
        for bifrost in self._serving:
            return self._in_loop(bifrost, coroutine)
        coroutine.close()
        raise Unavailable("No server is served by an event loop now")

    def end_sessions(self, user: str) -> int:
        """End the connections of ``user`` now; returns how many. See :meth:`zcomm.zComm.end_sessions`."""
        return blocking(self._comm.end_sessions, user)

    def stop_websocket(self) -> None:
        """Stop every server: accept nobody, 1001 to everybody, wait for them to leave."""
        blocking(self._comm.stop_websocket)

    def start_service(self, service_name: str, **kwargs: Any) -> bool:
        """Start a local server and wait until it is ready; ``False`` when it cannot be, with the reason in the log."""
        return self._answer(False, self._comm.start_service, service_name, **kwargs)

    def stop_service(self, service_name: str) -> bool:
        """Stop a local server and wait for its end."""
        return self._answer(False, self._comm.stop_service, service_name)

    def restart_service(self, service_name: str) -> bool:
        """Restart a local server and wait until it is ready again."""
        return self._answer(False, self._comm.restart_service, service_name)

    def service_status(self, service_name: str | None = None) -> dict[str, Any]:
        """One service's status, or all by name."""
        return self._answer({}, self._comm.service_status, service_name)

    def get_service_connection_info(self, service_name: str) -> dict[str, Any]:
        """The address and credentials of a service, secrets included."""
        return self._answer({}, self._comm.get_service_connection_info, service_name)

    def check_port(self, port: int, host: str = "127.0.0.1") -> bool:
        """Whether ``port`` is free.

        :raises ValueError: for what is no port.
        """
        return blocking(self._comm.check_port, port, host)

    def close(self) -> None:
        """Stop servers, data and services in order, and wait. The end of the program does the same."""
        blocking(self._stop)
        self._host_log.stop()

    def _stop(self) -> Deferred[None]:
        self._below = ""
        return self._comm.stopService()

    def _answer(self, otherwise: T, function: Callable[..., Deferred[T] | T], *args: Any, **kwargs: Any) -> T:
        call: Callable[..., Any] = function
        try:
            answer: T = blocking(call, *args, **kwargs)
            return answer
        except (ZCommError, OSError) as error:
            self._log.error("{call}: {reason}", call=function.__name__, reason=str(error))
            return otherwise
