"""The client: calls and their answers, broadcasts, and coming back after a loss."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

import msgspec
from twisted.application.internet import ClientService
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.client import requests
from zcomm.client.calls import Calls
from zcomm.client.listeners import Listeners
from zcomm.client.live import Live, Lives, is_step
from zcomm.client.prompts import Prompts
from zcomm.client.protocol import MESSAGE_SIZE, ClientFactory, ClientProtocol
from zcomm.client.repeated import retry_delay
from zcomm.client.tls import verified
from zcomm.client.topics import Topic, Topics, is_event
from zcomm.errors import CommandError, ConnectionLost, Invalid, command_error
from zcomm.runtime.deferreds import Waiters
from zcomm.wire.closecodes import CloseCode
from zcomm.wire.frames import depth_within

__all__ = ["Client", "connect"]

#: Seconds a connection must have lasted for the next loss to be a first one.
STEADY_AFTER = 5.0
#: Seconds of silence after which the server is asked whether it is there, and the time it has to answer.
HEARTBEAT, PATIENCE = 25.0, 20.0
#: Seconds that an open connection has to let us in, and those of what waits for no time of its own.
GREETING, LONGEST = 10.0, 2.0**31 - 1
#: Calls that may be under way, where the server does not tell a smaller limit.
MOST_CALLS = 64
#: What a program may listen to.
HEARD = ("broadcast", "display", "service", "engine", "state", "close", "error")
_EVENTS = ("ask", "ask_closed", "display", "progress", "service", "engine")


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
        host's name (service-identity). ``unix:/path`` is a server that listens on a Unix socket.
    :param token: who we are.
    :param timeout: seconds a call waits for its answer.
    :param reconnect: whether to come back after a loss.
    :param trust_root: what to trust instead of the system, from ``twisted.internet.ssl.trustRootFromCertificates``.
    :returns: a Deferred of the :class:`Client`, fired when the server has let us in. It fails with
        :class:`~zcomm.errors.ConnectionLost` when it does not, and with what the network says otherwise.
    :raises ValueError: for a URL that is none, and for a token with characters that no header of HTTP carries: what is
        not printable, and blanks at its ends.
    """
    client = Client(url, token, timeout=timeout, reconnect=reconnect, trust_root=trust_root, reactor=reactor)
    return client.connect()


class Client:
    """A connection to one zBifrost that comes back by itself; made by :func:`connect`.

    What JSON has no form for raises a ``TypeError`` and is not sent: NaN and the infinities, half an emoji, and bytes,
    which a field of that type takes in base64.

    :ivar state: ``connecting``, ``connected``, ``reconnecting`` or ``disconnected``.
    """

    _log = Logger()

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        reconnect: bool = True,
        trust_root: Any = None,
        reactor: Any = None,
    ):
        if reactor is None:
            from twisted.internet import reactor
        self.url = url
        self.state = "disconnected"
        self._reactor = reactor
        self._timeout = _seconds(timeout)
        self._reconnect = reconnect
        #: The program's function that answers prompts; without one they are declined.
        self._answer: Callable[[dict[str, Any]], Any] | None = None
        self._prompts = Prompts(
            lambda answer: self._call("zAnswer", answer, urgent=True),
            lambda prompt: None if self._answer is None else self._answer(prompt),
        )
        self._calls = Calls(
            reactor,
            paused=lambda: len(self._prompts) > 0,
            most=MOST_CALLS,
            ask=lambda: self._call("ping", None, LONGEST, urgent=True),
        )
        self._listeners = Listeners(HEARD, self)
        self._topics = Topics(
            reactor,
            lambda key, horizontal, timeout=None: self._command((key, horizontal), {"timeout": timeout}),
            lambda: self.state,
            lambda timeout: self._timeout if timeout is None else _seconds(timeout),
        )
        self._lives = Lives(
            reactor,
            lambda key, horizontal: self._command((key, horizontal), {}),
            lambda: self.state,
            lambda timeout: self._timeout if timeout is None else _seconds(timeout),
            lambda error: self._listeners.emit("error", error),
        )
        self._protocol: ClientProtocol | None = None
        #: Attempts since a connection last held. One that is accepted and dropped counts.
        self._attempts = 0
        self._greeted_at = 0.0
        self._beating: IDelayedCall | None = None
        self._connecting: Waiters[Client] = Waiters(self._nobody_waits)
        self._disconnecting: Waiters[None] = Waiters()
        self._stopping = False
        endpoint, address = _endpoint(url, trust_root, reactor)
        self._service = ClientService(
            endpoint,
            ClientFactory(address, token, self, reactor),
            retryPolicy=lambda _: self._next_delay(),
            clock=reactor,
        )

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        where = f"{parts.hostname}:{parts.port}" if parts.hostname else parts.path
        return f"<zcomm client of {where}, {self.state}>"

    # -- the connection

    def connect(self) -> Deferred[Client]:
        """Connect; see :func:`connect`. To cancel it, or to limit its time, ends this wait alone; a first attempt that
        nobody waits for any more is given up."""
        if self.state == "connected":
            return succeed(self)

        waiting = self._connecting.add().addErrback(self._not_connected)
        if self.state == "disconnected" and not self._stopping:
            self._begin()
        return waiting

    @staticmethod
    def _not_connected(failure: Failure) -> Failure:
        if failure.check(CancelledError):
            return Failure(ConnectionLost(1000, "connect() was cancelled"))
        return failure

    def _nobody_waits(self) -> None:
        """A first attempt is made for those who wait for it, where a connection that was lost comes back for itself."""
        if self.state == "connecting":
            self.disconnect()

    def _begin(self) -> None:
        self.state = "connecting"
        self._attempts = 0
        self._service.startService()
        self._service.whenConnected(failAfterFailures=1).addErrback(self._unreachable)

    def _unreachable(self, failure: Failure) -> None:
        """The first attempt did not get as far as a connection."""
        if self.state == "connecting" and not failure.check(CancelledError):
            self._give_up(failure)

    def _give_up(self, failure: Failure) -> None:
        self.state = "disconnected"
        self._stop()
        self._connecting.fail(failure)
        error = failure.value
        lost = error if isinstance(error, ConnectionLost) else ConnectionLost(1006, str(error))
        self._topics.ended(lost)
        self._lives.ended(lost)

    def _stop(self) -> Deferred[None]:
        """Stop the service that keeps the connection up; fires when it is gone.

        In turns of their own, both the stop and what comes after it: the service's state machine may be
        what called us, and is not to be called from within itself.
        """
        gone = self._disconnecting.add()
        if not self._stopping:
            self._stopping = True
            self._reactor.callLater(
                0,
                lambda: maybeDeferred(self._service.stopService).addBoth(
                    lambda _: self._reactor.callLater(0, self._stopped) and None
                ),
            )
        return gone

    def _stopped(self) -> None:
        self._stopping = False
        if self._connecting:
            # Somebody has called connect() meanwhile.
            self._begin()
        self._disconnecting.fire(None)

    def _next_delay(self) -> float:
        self._attempts += 1
        return retry_delay(self._attempts)

    def disconnect(self) -> Deferred[None]:
        """Close for good: waiting calls fail, nothing comes back. Fires when the connection is gone."""
        if self.state != "disconnected":
            self.state = "disconnected"
            self._listeners.emit("state", self.state)
        gone = ConnectionLost(1000, "disconnect() was called")
        self._calls.fail_all(gone)
        self._prompts.drop_all()
        self._connecting.fail(gone)
        if self._protocol is not None:
            self._protocol.sendClose(1000)
        stopping = self._stop()
        self._topics.ended(gone, by_program=True)
        self._lives.ended(gone, by_program=True)
        return stopping

    def opened(self, protocol: ClientProtocol) -> None:
        """A handshake is done; called by the connection. A refusal comes after it: only an answer proves we are in.
        It tells the limits to keep, which may be others than those of the connection before."""
        self._protocol = protocol
        protocol.is_heard = False
        self._call("zDescribe", ["limits"], GREETING, urgent=True).addCallbacks(
            self._greeted, self._not_greeted, callbackArgs=(protocol,), errbackArgs=(protocol,)
        )

    def _not_greeted(self, failure: Failure, protocol: ClientProtocol) -> None:
        if failure.check(CommandError) and protocol.is_heard:
            # An error is an answer as well.
            self._greeted(None, protocol)
        else:
            # Without an answer the connection is worth nothing; its end then tells everybody.
            protocol.dropConnection(abort=True)

    def _greeted(self, described: Any, protocol: ClientProtocol) -> None:
        limits = described.get("limits") if isinstance(described, dict) else None
        told = limits if isinstance(limits, dict) else {}
        size, depth, most = told.get("message_size"), told.get("json_depth"), told.get("in_flight")
        protocol.message_size = size if isinstance(size, int) else MESSAGE_SIZE
        protocol.json_depth = depth if isinstance(depth, int) else None
        self._calls.most = min(most, MOST_CALLS) if isinstance(most, int) and most >= 1 else MOST_CALLS
        self._greeted_at = self._reactor.seconds()
        self.state = "connected"
        if self._protocol is not None:
            self._beating = self._reactor.callLater(HEARTBEAT, self._beat, self._protocol)
        self._topics.came_back()
        self._lives.came_back()
        self._listeners.emit("state", self.state)
        self._connecting.fire(self)

    def _beat(self, protocol: ClientProtocol) -> None:
        """Find out a connection that is dead without saying so; one that nothing has come from is asked."""
        if not protocol.is_alive:
            # One that is too busy for a ping says so, and is there.
            self._call("ping", None, PATIENCE, urgent=True).addErrback(
                lambda _: None if protocol.is_alive else protocol.dropConnection(abort=True)
            )
        protocol.is_alive = False
        self._beating = self._reactor.callLater(HEARTBEAT, self._beat, protocol)

    def closed(self, protocol: ClientProtocol, error: ConnectionLost) -> None:
        """A connection has ended; called by it."""
        self._protocol = None
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        before = self.state
        if before == "connected" and self._reactor.seconds() - self._greeted_at >= STEADY_AFTER:
            self._attempts = 0
        if before == "connecting" and error.close_code == CloseCode.TLS_HANDSHAKE:
            # Later it passes: a server that is restarted may have its certificate a little after.
            error.retryable = False
        final = before == "connecting" or not error.retryable or not self._reconnect
        if before != "disconnected":
            # First of all, so that whoever hears of it and sends again is told that it cannot be.
            self.state = "disconnected" if final else "reconnecting"
        self._topics.lost()
        self._calls.fail_all(error)
        self._prompts.drop_all()
        self._lives.lost()
        if before == "disconnected":
            return
        if final:
            self._give_up(Failure(error))
        self._listeners.emit("close", error)
        self._listeners.emit("state", self.state)

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

    def zFunc(self, name: str, *args: Any, **options: Any) -> Deferred[Any]:
        """Call a function: ``zFunc("calculateTotal", {"cart_id": 123})``, or the whole ``"zFunc(…)"`` as a text, as a
        host takes it that has a dispatcher of its own."""
        return self._command(requests.call(name, args), options)

    def call(
        self, name: str, args: Sequence[Any] = (), *, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Deferred[Any]:
        """Call a function with a list of arguments by place and ``kwargs`` by name."""
        return self._command(requests.call(name, args, kwargs), options)

    def zLink(self, path: str, **options: Any) -> Deferred[dict[str, Any]]:
        """Go to a page: ``zLink("/admin/users")``."""
        return self._command(requests.form("zLink", path), options)

    def zOpen(self, file: str, **options: Any) -> Deferred[dict[str, Any]]:
        """Read a file the server offers: ``zOpen("config.yaml")``."""
        return self._command(requests.form("zOpen", file), options)

    def send(self, payload: dict[str, Any], timeout: float | None = None, **options: Any) -> Deferred[Any]:
        """Send any command; a Deferred of its result.

        :param payload: ``{"zKey": …, "zHorizontal": …}``; it is not changed.
        :param timeout: seconds to wait for the answer.
        :param options: ``on_progress``, called as ``on_progress(done, total, text)``; ``idempotency_key``.
        """
        if not isinstance(payload, Mapping):
            raise TypeError(f'payload is a dict such as {{"zKey": "ping"}}, not {type(payload).__name__}')
        key = payload.get("zKey", payload.get("cmd"))
        return self._command((key, payload.get("zHorizontal", key)), {**options, "timeout": timeout})

    def topic(
        self,
        name: str,
        *,
        presence: bool = False,
        last: int | None = None,
        state: Mapping[str, Any] | None = None,
        echo: bool = True,
    ) -> Topic:
        """The :class:`~zcomm.client.Topic` of that name, one for each name. Nothing is sent yet.

        :param presence: whether to be told who is in it.
        :param last: how many of the newest messages a subscription begins with, 1,000 at most.
        :param state: what the others see of this client; a small JSON object.
        :param echo: whether its own messages come with their data; without, they come as ``own``.

        Other options than before count from the next ``subscribe()`` on.
        """
        return self._topics.topic(name, presence=presence, last=last, state=state, echo=echo)

    def live(
        self,
        model: str,
        filters: Any = None,
        *,
        fields: Sequence[str] | None = None,
        order_by: str | Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Live:
        """The rows that :meth:`read` would bring, now and from now on: a :class:`~zcomm.client.Live`. Nothing is sent
        yet.

        :param filters: an id, a list of ids, or a dict such as ``{"age__gte": 18}``.
        :param order_by: ``"created_at DESC, name"``, or a list. Equal ones stand in the order of the primary key.
        :param limit: how many rows at most, 1,000 when left out; a query that finds more then is refused.
        """
        return self._lives.live(model, filters, fields, order_by, limit)

    def _command(self, command: tuple[Any, Any], options: dict[str, Any]) -> Deferred[Any]:
        """Send one command, once: whether a call that got no answer was carried out, nobody knows, so it is the
        caller who decides to repeat it (safely, with an ``idempotency_key``)."""
        key, horizontal = command
        idempotency_key = options.pop("idempotency_key", None)
        if idempotency_key is not None:
            if not isinstance(horizontal, dict) or key == "zFunc":
                raise TypeError("an idempotency_key goes with commands on models")
            horizontal = {**horizontal, "_idempotencyKey": idempotency_key}
        if self.state != "connected":
            return fail(ConnectionLost(1006, f"not connected ({self.state}): the command was not sent"))
        return self._call(key, horizontal, **options)

    def _call(
        self,
        key: Any,
        horizontal: Any,
        timeout: float | None = None,
        on_progress: Callable[..., Any] | None = None,
        urgent: bool = False,
    ) -> Deferred[Any]:
        timeout = self._timeout if timeout is None else _seconds(timeout)
        if on_progress is not None and not callable(on_progress):
            raise TypeError("on_progress is a function")
        protocol: Any = self._protocol
        return self._calls.start(
            key,
            horizontal,
            timeout,
            lambda number, payload: self._transmit(protocol, number, payload),
            on_progress=on_progress,
            urgent=urgent,
        )

    def _transmit(self, protocol: ClientProtocol, number: int, payload: bytes) -> None:
        """Send a message that the server takes: a larger one would end the connection, and all calls with it."""
        size, depth = protocol.message_size, protocol.json_depth
        if len(payload) > size:
            text = f"The command has {len(payload)} bytes, and the server takes {size}: it was not sent"
        elif depth is not None and not depth_within(payload, depth):
            text = f"The command has more than the {depth} levels of nesting that the server takes: it was not sent"
        else:
            protocol.say(payload)
            return
        # In a turn of its own, as the caller has not got its Deferred yet.
        self._reactor.callLater(0, self._refuse, number, Invalid(text))

    def _refuse(self, number: int, error: Invalid) -> None:
        if number in self._calls:
            self._calls.fail(number, error)

    # -- what arrives

    def received(self, payload: bytes) -> None:
        """A message has arrived; called by the connection."""
        self._calls.heard += 1
        try:
            message = msgspec.json.decode(payload)
        except (msgspec.DecodeError, RecursionError):
            self._listeners.emit("broadcast", payload.decode("utf-8", "replace"))
            return
        if isinstance(message, dict) and "_requestId" in message and ("result" in message or "error" in message):
            self._calls.settle(message)
        elif isinstance(message, dict) and message.get("event") in _EVENTS:
            self._event(message["event"], message)
        elif isinstance(message, dict) and _is_error(message):
            # The answer to something that was no message at all.
            self._log.warn("the server said: {reason}", reason=str(message["error"])[:200])
            self._listeners.emit("error", command_error(message))
        elif is_step(message):
            self._lives.heard(message)
        elif not (is_event(message) and self._topics.heard(message)):
            self._listeners.emit("broadcast", message)

    def _event(self, event: str, message: dict[str, Any]) -> None:
        if event == "progress":
            listener = self._calls.progress(message)
            if listener is not None:
                self._listeners.tell(listener)
        elif event == "ask":
            self._prompts.ask(message)
        elif event == "ask_closed":
            self._prompts.taken_back(message)
        else:
            self._listeners.emit(event, message)

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``broadcast``, ``display``, ``service``, ``engine``, ``state``, ``close``, or
        ``error`` (of the server, where it answers no call); returns the function that ends it."""
        return self._listeners.on(event, listener)

    def on_broadcast(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` with each broadcast; returns the function that ends it.

        One with ``many`` in the place of ``result`` tells of more than is told in full: read anew what is of interest.
        """
        return self.on("broadcast", listener)

    def remove_broadcast_listener(self, listener: Callable[[Any], Any]) -> None:
        """Call ``listener`` no more."""
        self._listeners.remove("broadcast", listener)

    def on_display(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` with each ``{"display": …, "data": …}``; returns the function that ends it."""
        return self.on("display", listener)

    def on_ask(self, answer: Callable[[dict[str, Any]], Any] | None) -> None:
        """Answer the server's prompts: ``answer(prompt)`` returns the value, or a Deferred or coroutine of it;
        ``None`` declines. A value that the server refuses is asked for again, with ``prompt["error"]``."""
        if answer is not None and not callable(answer):
            raise TypeError(f"what answers prompts is a function or None, not {type(answer).__name__}")
        self._answer = answer


def _seconds(timeout: Any) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 2**31:
        raise TypeError(f"timeout is a number of seconds above 0, not {timeout!r:.60}")
    return timeout


def _is_error(message: dict[str, Any]) -> bool:
    """Whether it is an error of the server, and not a result that happens to have one: those have a ``zKey``."""
    kinds = (("error", str), ("code", str), ("retryable", bool))
    return "zKey" not in message and all(type(message.get(name)) is kind for name, kind in kinds)


def _endpoint(url: str, trust_root: Any, reactor: Any) -> tuple[IStreamClientEndpoint, str]:
    """The endpoint that ``url`` leads to, and the address that its server is called by there.

    :raises ValueError: for a URL that is none of ours.
    """
    parts: SplitResult | None
    port: int | None = None
    rest = ""
    try:
        parts = urlsplit(url)
        port = parts.port
        # What stands behind the host goes into the request as it is: percent-encoded (RFC 3986 section 2.1).
        rest = _encoded(parts.path) + ("?" if parts.query else "") + _encoded(parts.query)
    except ValueError:
        parts = None
    if parts is not None and parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return UNIXClientEndpoint(reactor, url.removeprefix("unix:")), "ws://localhost"
    if parts is None or parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment or port == 0:
        # Without the text itself: a token may stand in it.
        raise ValueError("the URL is not a WebSocket address such as ws://127.0.0.1:56891 or unix:/run/zcomm/socket")
    # A zone is written %25eth0 in a URL (RFC 6874 section 2), and %eth0 everywhere else.
    host = re.sub("%25(?=.)", "%", parts.hostname) if ":" in parts.hostname else parts.hostname
    port = port or (80 if parts.scheme == "ws" else 443)
    endpoint: IStreamClientEndpoint
    if "%" in host and ":" in host:
        # HostnameEndpoint would forget the zone.
        endpoint = TCP6ClientEndpoint(reactor, host, port)
    else:
        endpoint = HostnameEndpoint(reactor, host, port)
    address = f"{parts.scheme}://{parts.netloc}{rest}"
    if parts.scheme == "ws":
        return endpoint, address
    return wrapClientTLS(verified(host.partition("%")[0], trust_root), endpoint), address


def _encoded(text: str) -> str:
    """``text`` with what has no place in a URL percent-encoded, in UTF-8; what is so already stays."""
    return quote(text, safe="".join(map(chr, range(0x21, 0x7F))))
