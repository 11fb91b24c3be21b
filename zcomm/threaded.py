"""The guide's API for programs without a reactor: plain calls, and coroutines under asyncio.

The same objects as :class:`zcomm.zComm`, worked by a reactor in a background thread. Calls that touch
services answer as the guide says, ``True`` or ``False``, a dict or ``{}``, and log the reason of a
failure. A blocking call on the reactor's own thread raises at once instead of waiting for itself.
"""
from __future__ import annotations

from typing import Any, Callable

from twisted.logger import Logger

from zcomm import comm
from zcomm.bifrost import server
from zcomm.bifrost.dispatch import adapted
from zcomm.errors import ZCommError
from zcomm.interfaces import Client
from zcomm.reactorthread import blocking, in_reactor
from zcomm.workers import Workers

__all__ = ["zBifrost", "zComm"]


class zBifrost:  # noqa: N801 (the guide's name)
    """A WebSocket server, made by :meth:`zComm.create_websocket`.

    :param bifrost: the server in the reactor's thread.
    :param workers: where its commands run.
    """

    def __init__(self, bifrost: server.zBifrost, workers: Workers):
        self._bifrost = bifrost
        self._workers = workers

    def __repr__(self) -> str:
        return f"<zBifrost {self.url}>"

    @property
    def port(self) -> int:
        """The port it listens on; the configured one while it does not."""
        return self._bifrost.port

    @property
    def url(self) -> str:
        """What a client connects to."""
        return self._bifrost.url

    @property
    def clients(self) -> list[Client]:
        """Those connected, as they are now."""
        return blocking(lambda: self._bifrost.clients)

    def command(self, key: str, *, broadcast: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a custom command, as a decorator. The function runs in a worker thread and may block."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            answer = adapted(function)
            blocking(
                self._bifrost.dispatcher.add, key,
                lambda request, client: self._workers.run(client.id, answer, request, client),
                broadcast=broadcast,
            )
            return function

        return register

    def broadcast(self, message: Any, sender: Client | None = None) -> int:
        """Send ``message`` to every client but ``sender``; returns to how many."""
        return blocking(self._bifrost.broadcast, message, sender)

    def display(self, event: str, data: Any, to: Client | None = None) -> int:
        """Show something to one client or to all; returns to how many."""
        return blocking(self._bifrost.display, event, data, to)

    def ask(self, client: Client, prompt: Any, timeout: float = 60.0) -> Any:
        """Ask the person at ``client``, and wait for the answer; see :meth:`zcomm.zBifrost.ask`."""
        return blocking(self._bifrost.ask, client, prompt, timeout)


class zComm:  # noqa: N801 (the guide's name)
    """Communication and services of one host, for programs without a reactor.

    :param zcli: the host: anything with a ``session``.
    :param given: ``config`` and ``environ``, as :class:`zcomm.zComm` takes them.
    :raises ValueError: for a host that is ``None`` or has no session.
    """

    _log = Logger()

    def __init__(self, zcli: Any, **given: Any):
        self._comm = blocking(comm.zComm, zcli, **given)
        self.zcli = zcli

    @property
    def program(self) -> Any:
        """Functions, pages and permissions; see :class:`zcomm.zComm`."""
        return self._comm.program

    def create_websocket(self, walker: Any = None, port: int | None = None, host: str | None = None) -> zBifrost:
        """A WebSocket server, not listening yet; see :meth:`zcomm.zComm.create_websocket`."""
        return zBifrost(blocking(self._comm.create_websocket, walker, port, host), self._comm.program.workers)

    async def start_websocket(self, socket_ready: Any = None, walker: Any = None) -> None:
        """Serve until the server is stopped or the task is cancelled.

        :param socket_ready: anything with ``set()``, such as an :class:`asyncio.Event`; set when it listens.
        :raises twisted.internet.error.CannotListenError: when the port is taken; ``socket_ready`` is not set.
        """
        port = await in_reactor(self._comm.start_websocket, None, walker)
        bifrost = await in_reactor(self._comm.server_of, port)
        if socket_ready is not None:
            socket_ready.set()
        try:
            await in_reactor(bifrost.when_stopped)
        finally:
            # Cancelled, or stopped already: either way nothing is left when this returns.
            await in_reactor(self._comm.stop_websocket, bifrost)

    async def broadcast_websocket(self, message: Any, sender: Client | None = None) -> int:
        """Send ``message`` to all clients; returns to how many.

        :raises NotListening: when no server runs.
        """
        return await in_reactor(self._comm.broadcast_websocket, message, sender)

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
        """How to connect to a service, secrets included."""
        return self._answer({}, self._comm.get_service_connection_info, service_name)

    def check_port(self, port: int, host: str = "127.0.0.1") -> bool:
        """Whether ``port`` is free.

        :raises ValueError: for what is no port.
        """
        return blocking(self._comm.check_port, port, host)

    def close(self) -> None:
        """Stop servers, data and services in order, and wait. The end of the program does the same."""
        blocking(self._comm.stopService)

    def _answer(self, otherwise: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return blocking(function, *args, **kwargs)
        except ZCommError as error:
            self._log.error("{call}: {reason}", call=function.__name__, reason=str(error))
            return otherwise
