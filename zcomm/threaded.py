"""The guide's API for programs without a reactor: plain calls, and coroutines under asyncio.

The same objects as :class:`zcomm.zComm`, worked by a reactor in a background thread. Calls that touch
services answer as the guide says, ``True`` or ``False``, a dict or ``{}``, and log the reason of a
failure with the host's own logger. A blocking call on the reactor's own thread raises at once instead of
waiting for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from zcomm import comm
from zcomm.bifrost import server
from zcomm.bifrost.dispatch import adapted
from zcomm.config import Config
from zcomm.errors import ZCommError
from zcomm.host.log import HostLog
from zcomm.interfaces import Client as ReactorClient
from zcomm.interfaces import Identity, Request, owner_of
from zcomm.runtime.thread import blocking, in_loop, in_reactor
from zcomm.runtime.workers import Workers

__all__ = ["Client", "zBifrost", "zComm"]

T = TypeVar("T")


class Client:
    """One connected client, to be used from any thread but the reactor's.

    Two are equal when they stand for the same connection.
    """

    __slots__ = ("_client",)

    def __init__(self, client: ReactorClient):
        self._client = client

    def __repr__(self) -> str:
        return repr(self._client)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Client) and other._client is self._client

    def __hash__(self) -> int:
        return hash(self._client)

    @property
    def id(self) -> int:
        """Its number at this server."""
        return self._client.id

    @property
    def identity(self) -> Identity:
        """The identity that the client's token proved."""
        return self._client.identity

    @property
    def peer(self) -> str:
        """The address it came from."""
        return self._client.peer

    @property
    def place(self) -> str:
        """The page zLink took it to last; empty at first."""
        return self._client.place

    def send(self, message: Any) -> None:
        """Send it ``message``, to it alone: a ``str`` as it is, anything else as JSON.

        :raises InternalError: for a message JSON has no form for.
        """
        blocking(self._client.send, message)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
        :param reason: cut to 123 bytes of UTF-8.
        :raises TypeError: for a ``code`` that is no ``int``, or a ``reason`` that is no ``str``.
        :raises ValueError: for any other ``code``.
        """
        blocking(self._client.close, code, reason)


def _inner(client: Client | ReactorClient | None) -> Any:
    return client._client if isinstance(client, Client) else client


class zBifrost:
    """A WebSocket server, made by :meth:`zComm.create_websocket`.

    :param bifrost: the server in the reactor's thread.
    :param workers: where its commands run.
    :param loops: the asyncio loop in which each server is served.
    """

    def __init__(
        self, bifrost: server.zBifrost, workers: Workers, loops: Mapping[server.zBifrost, asyncio.AbstractEventLoop]
    ):
        self._bifrost = bifrost
        self._workers = workers
        self._loops = loops

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

        A plain function runs in a worker thread and may block; a coroutine function runs in the loop that
        awaits ``start_websocket``.

        :raises ConfigError: for a key that is taken or not a non-empty string.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            answer = adapted(function)

            def in_thread(request: Request, client: ReactorClient) -> Any:
                return self._workers.run(owner_of(client), answer, request, Client(client))

            def as_coroutine(request: Request, client: ReactorClient) -> Any:
                return in_loop(self._loops[self._bifrost], answer(request, cast(ReactorClient, Client(client))))

            responder = as_coroutine if iscoroutinefunction(function) else in_thread
            blocking(self._bifrost.dispatcher.add, key, responder, broadcast=broadcast)
            return function

        return register

    def broadcast(self, message: Any, sender: Client | None = None) -> int:
        """Send ``message`` to every client but ``sender``; returns to how many.

        :raises NotListening: when the server is not running.
        """
        return blocking(self._bifrost.broadcast, message, _inner(sender))

    def display(self, event: str, data: Any, to: Client | None = None) -> int:
        """Show something to one client or to all; returns to how many."""
        return blocking(self._bifrost.display, event, data, _inner(to))

    def ask(self, client: Client, prompt: Any, timeout: float = 60.0) -> Any:
        """Ask the person at ``client``, and wait for the answer; see :meth:`zcomm.zBifrost.ask`.

        Coroutines call it in a thread: ``await asyncio.to_thread(bifrost.ask, client, prompt)``.
        """
        return blocking(self._bifrost.ask, _inner(client), prompt, timeout)


class zComm:
    """Communication and services of one host, for programs without a reactor.

    :param zcli: the host: anything with a ``session``. Its ``logger`` hears what zComm has to say.
    :param config: the configuration; read from the environment when it is left out.
    :param environ: the environment; the process' own when it is left out.
    :raises ValueError: for a host that is ``None`` or has no session.
    """

    _log = Logger()

    def __init__(self, zcli: Any, *, config: Config | None = None, environ: Mapping[str, str] | None = None):
        self._comm = blocking(comm.zComm, zcli, config=config, environ=environ)
        self._host_log = HostLog.of(zcli)
        self._host_log.start()
        self._loops: dict[server.zBifrost, asyncio.AbstractEventLoop] = {}
        self.zcli = zcli

    @property
    def program(self) -> Any:
        """Functions, pages and permissions; see :class:`zcomm.zComm`."""
        return self._comm.program

    def create_websocket(self, walker: Any = None, port: int | None = None, host: str | None = None) -> zBifrost:
        """A WebSocket server, not listening yet; see :meth:`zcomm.zComm.create_websocket`."""
        bifrost = blocking(self._comm.create_websocket, walker, port, host)
        return zBifrost(bifrost, self._comm.program.workers, self._loops)

    async def start_websocket(self, socket_ready: Any = None, walker: Any = None) -> None:
        """Serve until the server is stopped or the task is cancelled.

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
        try:
            await in_reactor(bifrost.when_stopped)
        except BaseException:
            # Cancelled: nothing is left of it when this returns.
            await asyncio.shield(in_reactor(self._comm.stop_websocket, bifrost))
            raise
        finally:
            self._loops.pop(bifrost, None)

    async def _begin(self, walker: Any) -> server.zBifrost:
        """Listen. A task that is cancelled meanwhile leaves no server behind that nobody could stop."""
        loop = asyncio.get_running_loop()

        def start() -> Any:
            return self._comm.start_websocket(None, walker).addCallback(self._comm.server_of).addCallback(remember)

        def remember(bifrost: server.zBifrost) -> server.zBifrost:
            self._loops[bifrost] = loop
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
        return await in_reactor(self._comm.broadcast_websocket, message, _inner(sender))

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
        blocking(self._comm.stopService)
        self._host_log.stop()

    def _answer(self, otherwise: T, function: Callable[..., Deferred[T] | T], *args: Any, **kwargs: Any) -> T:
        call: Callable[..., Any] = function
        try:
            answer: T = blocking(call, *args, **kwargs)
            return answer
        except (ZCommError, OSError) as error:
            self._log.error("{call}: {reason}", call=function.__name__, reason=str(error))
            return otherwise
