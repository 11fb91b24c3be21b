"""The client: calls and their answers, broadcasts, and coming back after a loss."""
from __future__ import annotations

import random
from itertools import count
from typing import Any, Callable
from urllib.parse import urlsplit

import msgspec
from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.client import requests
from zcomm.client.protocol import ClientFactory, ClientProtocol
from zcomm.errors import CommandTimeout, ConnectionLost, command_error

__all__ = ["Client", "connect", "retry_delay"]

#: Seconds: the most a first retry waits, and the most any does.
FIRST_RETRY, LAST_RETRY = 0.5, 30.0


def retry_delay(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Seconds before retry number ``attempt`` (from 1): anywhere below a bound that doubles up to 30 s.

    Full jitter: a thousand clients that lost the same server do not come back in the same moment.
    """
    return chance() * min(LAST_RETRY, FIRST_RETRY * 2 ** min(attempt - 1, 16))


def connect(
    url: str,
    token: str | None = None,
    *,
    timeout: float = 30.0,
    reconnect: bool = True,
    trust_root: Any = None,
    reactor: Any = None,
) -> Deferred[Client]:
    """Connect to a zBifrost.

    :param url: ``ws://`` or ``wss://``; a certificate is verified against the system's authorities and the
        host's name (service-identity).
    :param token: who we are.
    :param timeout: seconds a call waits for its answer.
    :param reconnect: whether to come back after a loss.
    :param trust_root: authorities to trust instead of the system's (``twisted.internet.ssl.trustRootFromCertificates``).
    :returns: a Deferred of the :class:`Client`, fired when the server has let us in. It fails with
        :class:`~zcomm.errors.ConnectionLost` when it does not, and with what the network says otherwise.
    :raises ValueError: for a URL that is none.
    """
    client = Client(url, token, timeout=timeout, reconnect=reconnect, trust_root=trust_root, reactor=reactor)
    return client.connect()


class Client:
    """A connection to one zBifrost that comes back by itself; made by :func:`connect`.

    :ivar state: ``connecting``, ``connected``, ``reconnecting`` or ``closed``.
    """

    _log = Logger()

    def __init__(
        self, url: str, token: str | None = None, *, timeout: float = 30.0, reconnect: bool = True, trust_root: Any = None,
        reactor: Any = None,
    ):
        if reactor is None:
            from twisted.internet import reactor
        self.url = url
        self.state = "closed"
        self._reactor = reactor
        self._timeout = timeout
        self._reconnect = reconnect
        self._ids = count(1)
        self._calls: dict[int, Deferred[Any]] = {}
        self._progress: dict[int, Callable[..., Any]] = {}
        self._listeners: dict[str, list[Callable[[Any], Any]]] = {}
        self._on_ask: Callable[[dict[str, Any]], Any] | None = None
        self._asked: dict[str, Deferred[Any]] = {}
        self._protocol: ClientProtocol | None = None
        #: Attempts since a server last let us in. A connection that is accepted and dropped counts.
        self._attempts = 0
        self._connecting: list[Deferred[Client]] = []
        self._service = ClientService(
            _endpoint(url, trust_root, reactor), ClientFactory(url, token, self, reactor),
            retryPolicy=lambda _: self._next_delay(), clock=reactor,
        )

    def __repr__(self) -> str:
        return f"<zcomm client of {urlsplit(self.url).netloc}, {self.state}>"

    # -- the connection

    def connect(self) -> Deferred[Client]:
        """Connect; see :func:`connect`."""
        if self.state == "connected":
            return succeed(self)
        waiting: Deferred[Client] = Deferred(lambda d: self.disconnect())
        self._connecting.append(waiting)
        if not self._service.running:
            self.state = "connecting"
            self._attempts = 0
            self._service.startService()
            self._service.whenConnected(failAfterFailures=1).addErrback(self._unreachable)
        return waiting

    def _unreachable(self, failure: Failure) -> None:
        """The first attempt did not get as far as a connection."""
        if self.state == "connecting" and not failure.check(CancelledError):
            # Not from within the service's own state machine, which tells us of it.
            self._reactor.callLater(0, self._give_up, failure)

    def _give_up(self, failure: Failure) -> None:
        self.state = "closed"
        self._service.stopService()
        waiting, self._connecting = self._connecting, []
        for deferred in waiting:
            deferred.errback(failure)

    def _next_delay(self) -> float:
        self._attempts += 1
        return retry_delay(self._attempts)

    def disconnect(self) -> Deferred[None]:
        """Close for good: waiting calls fail, nothing comes back. Fires when the connection is gone."""
        self.state = "closed"
        gone = ConnectionLost(1000, "disconnect() was called")
        self._fail_calls(gone)
        waiting, self._connecting = self._connecting, []
        for deferred in waiting:
            deferred.errback(gone)
        if self._protocol is not None:
            self._protocol.sendClose(1000)
        return maybeDeferred(self._service.stopService).addCallback(lambda _: None)

    def opened(self, protocol: ClientProtocol) -> None:
        """A handshake is done; called by the connection. A refusal comes after it: only an answer proves we are in."""
        self._protocol = protocol
        # Without an answer the connection is worth nothing; its end then tells everybody.
        self._call("ping", None).addCallbacks(self._greeted, lambda _: protocol.dropConnection(abort=True))

    def _greeted(self, _: Any) -> None:
        self._attempts = 0
        self.state = "connected"
        waiting, self._connecting = self._connecting, []
        for deferred in waiting:
            deferred.callback(self)
        self._emit("state", self.state)

    def closed(self, protocol: ClientProtocol, error: ConnectionLost) -> None:
        """A connection has ended; called by it."""
        self._protocol = None
        self._fail_calls(error)
        for answer in list(self._asked.values()):
            answer.cancel()
        if self.state == "closed":
            return
        if self.state == "connecting" or not error.retryable or not self._reconnect:
            self._give_up(Failure(error))
        else:
            self.state = "reconnecting"
        self._emit("close", error)
        self._emit("state", self.state)

    def _fail_calls(self, error: ConnectionLost) -> None:
        calls, self._calls = self._calls, {}
        self._progress.clear()
        for call in calls.values():
            call.errback(error)

    # -- commands

    def create(self, model: str, values: dict[str, Any], **options: Any) -> Deferred[dict[str, Any]]:
        """A Deferred of the row as stored, its id included."""
        return self._command(requests.model_command("create", model, values=values), options)

    def read(
        self, model: str, filters: Any = None, options: dict[str, Any] | None = None, **call: Any
    ) -> Deferred[list[dict[str, Any]]]:
        """A Deferred of the list of rows.

        :param filters: an id, a list of ids, or a dict such as ``{"age__gte": 18}``.
        :param options: ``fields``, ``order_by``, ``limit``, ``offset``.
        """
        return self._command(
            requests.model_command("read", model, where=requests.where(filters), **(options or {})), call
        )

    def update(self, model: str, filters: Any, values: dict[str, Any], **options: Any) -> Deferred[dict[str, int]]:
        """A Deferred of ``{"updated": n}``. Without filters the server refuses, unless ``all=True``."""
        command = requests.model_command(
            "update", model, where=requests.where(filters), values=values, all=options.pop("all", None)
        )
        return self._command(command, options)

    def delete(self, model: str, filters: Any, **options: Any) -> Deferred[dict[str, int]]:
        """A Deferred of ``{"deleted": n}``. Without filters the server refuses, unless ``all=True``."""
        command = requests.model_command("delete", model, where=requests.where(filters), all=options.pop("all", None))
        return self._command(command, options)

    def upsert(
        self, model: str, values: dict[str, Any], conflict_fields: list[str] | str | None = None, **options: Any
    ) -> Deferred[dict[str, Any]]:
        """A Deferred of the row: a new one, or the one that agrees in ``conflict_fields``, updated."""
        fields = [conflict_fields] if isinstance(conflict_fields, str) else conflict_fields
        return self._command(requests.model_command("upsert", model, values=values, conflict_fields=fields), options)

    def zFunc(self, name: str, *args: Any, **options: Any) -> Deferred[Any]:  # noqa: N802 (the guide's name)
        """Call a function: ``zFunc("calculateTotal", {"cart_id": 123})``, or the whole ``"zFunc(…)"`` as a text."""
        return self._command(requests.call(name, args), options)

    def zLink(self, path: str, **options: Any) -> Deferred[dict[str, Any]]:  # noqa: N802
        """Go to a page: ``zLink("/admin/users")``."""
        return self._command(requests.form("zLink", path), options)

    def zOpen(self, file: str, **options: Any) -> Deferred[dict[str, Any]]:  # noqa: N802
        """Read a file the server offers: ``zOpen("config.yaml")``."""
        return self._command(requests.form("zOpen", file), options)

    def send(self, payload: dict[str, Any], timeout: float | None = None, **options: Any) -> Deferred[Any]:
        """Send any command; a Deferred of its result.

        :param payload: ``{"zKey": …, "zHorizontal": …}``; it is not changed.
        :param timeout: seconds to wait for the answer.
        :param options: ``on_progress``, called as ``on_progress(done, total, text)``; ``idempotency_key``.
        """
        key = payload.get("zKey", payload.get("cmd"))
        return self._command((key, payload.get("zHorizontal", key)), {**options, "timeout": timeout})

    def _command(self, command: tuple[str, Any], options: dict[str, Any]) -> Deferred[Any]:
        """Send one command, once: whether a call that got no answer was carried out, nobody knows, so it is the
        caller who decides to repeat it (safely, with an ``idempotency_key``)."""
        key, horizontal = command
        idempotency_key = options.pop("idempotency_key", None)
        if idempotency_key is not None:
            horizontal = {**horizontal, "_idempotencyKey": idempotency_key}
        if self.state != "connected":
            failed: Deferred[Any] = Deferred()
            failed.errback(ConnectionLost(1006, f"not connected ({self.state})"))
            return failed
        return self._call(key, horizontal, **options)

    def _call(
        self, key: str, horizontal: Any, timeout: float | None = None, on_progress: Callable[..., Any] | None = None
    ) -> Deferred[Any]:
        number = next(self._ids)
        limit = self._timeout if timeout is None else timeout
        answer: Deferred[Any] = Deferred(lambda _: self._forget(number))
        try:
            payload = msgspec.json.encode({"zKey": key, "zHorizontal": horizontal, "_requestId": number})
        except (TypeError, ValueError) as error:
            answer.errback(TypeError(f"the command cannot be written as JSON: {error}"))
            return answer
        self._calls[number] = answer
        if on_progress is not None:
            self._progress[number] = on_progress
        self._protocol.sendMessage(payload)
        answer.addTimeout(limit, self._reactor, lambda failure, _: self._timed_out(failure, limit))
        return answer

    def _timed_out(self, failure: Failure, limit: float) -> None:
        failure.trap(CancelledError)
        raise CommandTimeout(f"no answer within {limit:g} s")

    def _forget(self, number: int) -> None:
        self._calls.pop(number, None)
        self._progress.pop(number, None)

    # -- what arrives

    def received(self, payload: bytes) -> None:
        """A message has arrived; called by the connection."""
        try:
            message = msgspec.json.decode(payload)
        except (msgspec.DecodeError, RecursionError):
            self._emit("broadcast", payload.decode("utf-8", "replace"))
            return
        if isinstance(message, dict) and "_requestId" in message and ("result" in message or "error" in message):
            number = message["_requestId"]
            call = self._calls.pop(number, None) if isinstance(number, int) else None
            self._progress.pop(number, None) if isinstance(number, int) else None
            # A late answer, after its call gave up, is nobody's.
            if call is not None and "error" in message:
                call.errback(command_error(message))
            elif call is not None:
                call.callback(message["result"])
        elif isinstance(message, dict) and message.get("event") in ("ask", "ask_closed", "display", "progress", "service"):
            self._event(message["event"], message)
        else:
            self._emit("broadcast", message)

    def _event(self, event: str, message: dict[str, Any]) -> None:
        if event == "progress":
            listener = self._progress.get(message.get("progressOf", -1))
            if listener is not None:
                self._tell(listener, message.get("done"), message.get("total"), message.get("text", ""))
        elif event == "ask":
            self._ask(message)
        elif event == "ask_closed":
            answer = self._asked.pop(message.get("askId", ""), None)
            if answer is not None:
                answer.cancel()
        else:
            self._emit(event, message)

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``broadcast``, ``display``, ``service``, ``state`` or ``close``; returns the
        function that ends it."""
        self._listeners.setdefault(event, []).append(listener)
        return lambda: self._remove(event, listener)

    def on_broadcast(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` with each broadcast; returns the function that ends it."""
        return self.on("broadcast", listener)

    def remove_broadcast_listener(self, listener: Callable[[Any], Any]) -> None:
        """Call ``listener`` no more."""
        self._remove("broadcast", listener)

    def on_display(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` with each ``{"display": …, "data": …}``; returns the function that ends it."""
        return self.on("display", listener)

    def on_ask(self, answer: Callable[[dict[str, Any]], Any] | None) -> None:
        """Answer the server's questions: ``answer(prompt)`` returns the value or a Deferred of it; ``None`` declines."""
        self._on_ask = answer

    def _remove(self, event: str, listener: Callable[[Any], Any]) -> None:
        listeners = self._listeners.get(event, [])
        if listener in listeners:
            listeners.remove(listener)

    def _emit(self, event: str, *arguments: Any) -> None:
        for listener in list(self._listeners.get(event, ())):
            self._tell(listener, *arguments)

    def _tell(self, listener: Callable[..., Any], *arguments: Any) -> None:
        """One listener that raises keeps none of the others from hearing."""
        maybeDeferred(listener, *arguments).addErrback(
            lambda failure: self._log.failure("a listener of {client} failed", failure, client=self)
        )

    def _ask(self, message: dict[str, Any]) -> None:
        number = message.get("askId", "")
        answer = succeed(None) if self._on_ask is None else maybeDeferred(self._on_ask, message.get("prompt"))
        self._asked[number] = answer
        answer.addCallbacks(self._answer, self._cannot_answer, (number,), None, (number,), None)

    def _cannot_answer(self, failure: Failure, number: str) -> None:
        if self._asked.pop(number, None) is not None and not failure.check(CancelledError):
            self._log.failure("a question to {client} was not answered", failure, client=self)
            self._say_answer({"askId": number, "cancelled": True})

    def _answer(self, value: Any, number: str) -> None:
        if self._asked.pop(number, None) is not None:
            self._say_answer({"askId": number, "cancelled": True} if value is None else {"askId": number, "value": value})

    def _say_answer(self, answer: dict[str, Any]) -> None:
        if self._protocol is not None:
            self._call("zAnswer", answer).addErrback(
                lambda failure: self._log.warn("{client}: {reason}", client=self, reason=failure.getErrorMessage())
            )


def _endpoint(url: str, trust_root: Any, reactor: Any) -> IStreamClientEndpoint:
    """Where ``url`` leads.

    :raises ValueError: for a URL that is none of ours.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
        raise ValueError(f"{url!r} is not a WebSocket address such as ws://127.0.0.1:56891")
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    endpoint = HostnameEndpoint(reactor, parts.hostname, port)
    if parts.scheme == "ws":
        return endpoint
    creator: IOpenSSLClientConnectionCreator = optionsForClientTLS(parts.hostname, trustRoot=trust_root)
    return wrapClientTLS(creator, endpoint)
