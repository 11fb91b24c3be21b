"""One connection of the Python client: Autobahn's client protocol, less its defaults."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Protocol

from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from autobahn.websocket.types import ConnectingRequest
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from zcomm.bifrost.handshake import BEARER, SUBPROTOCOL
from zcomm.client.tls import problem
from zcomm.errors import ConnectionLost
from zcomm.wire.autobahn import how_it_ended

__all__ = ["ClientFactory", "ClientProtocol"]

_SUBPROTOCOL_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
#: What a server may send in one message: its largest result and what stands around it.
LARGEST_MESSAGE = 17 * 1024 * 1024
#: Bytes of a message that a server takes, where it does not tell its limit.
MESSAGE_SIZE = 1024 * 1024


class Listener(Protocol):
    """The events of a connection, as its client receives them."""

    def opened(self, protocol: ClientProtocol) -> None: ...

    def received(self, payload: bytes) -> None: ...

    def closed(self, protocol: ClientProtocol, error: ConnectionLost) -> None: ...


class ClientProtocol(WebSocketClientProtocol):
    """Tells its client what arrives, and when and why it ends.

    :ivar message_size: bytes of a message that the server takes, as its answer to the greeting tells.
    :ivar json_depth: levels of nesting that it takes; ``None`` where it does not tell.
    :ivar is_heard: whether anything has arrived since the greeting.
    :ivar is_alive: whether anything has come since the client looked last, be it a part of a message that takes long.
    """

    message_size = MESSAGE_SIZE
    json_depth: int | None = None
    is_heard = is_alive = True

    _certificate_problem = ""

    def onConnecting(self, transport_details: Any) -> ConnectingRequest:  # noqa: N802 (the name is Autobahn's)
        """The request to send: an IPv6 address stands in brackets, and without the zone of a link, in its ``Host``
        (RFC 3986 section 3.2.2, RFC 6874 section 3)."""
        factory = self.factory
        host = factory.host
        return ConnectingRequest(
            host=f"[{host.partition('%')[0]}]" if ":" in host else host,
            port=factory.port,
            resource=factory.resource,
            headers=factory.headers,
            useragent=factory.useragent,
            origin=factory.origin,
            protocols=factory.protocols,
        )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The transport has ended."""
        if self.factory.isSecure:
            self._certificate_problem = problem(reason)
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Something has come."""
        self.is_alive = True
        super().dataReceived(data)

    def onOpen(self) -> None:
        """The server has completed the handshake."""
        self.factory.listener.opened(self)

    def say(self, payload: bytes) -> None:
        """Send a message, unless the connection is about to end: that will be told to whoever waits for an answer."""
        with suppress(Disconnected):
            self.sendMessage(payload)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message has arrived."""
        self.is_heard = True
        if not isBinary:
            self.factory.listener.received(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection has ended."""
        if self._certificate_problem:
            # RFC 6455 section 7.4.1: never sent, for just this use.
            self.factory.listener.closed(self, ConnectionLost(1015, self._certificate_problem))
            return
        self.factory.listener.closed(self, ConnectionLost(*how_it_ended(self, code)))


class ClientFactory(WebSocketClientFactory):
    """Makes connections to one server.

    The token travels as a subprotocol, which no proxy logs; one that cannot, in a header.
    """

    noisy = False
    protocol = ClientProtocol

    def __init__(self, url: str, token: str | None, listener: Listener, reactor: Any):
        protocols, headers = [SUBPROTOCOL], {}
        if token:
            if _SUBPROTOCOL_TOKEN.match(token):
                protocols.append(BEARER + token)
            elif not token.isprintable() or token.strip(" ") != token:
                # Without the token: it is a secret.
                raise ValueError("token: a header of HTTP carries printable characters and blanks inside, no others")
            else:
                # Autobahn writes it in UTF-8, as the server reads it.
                headers["Authorization"] = f"Bearer {token}"
        super().__init__(url, protocols=protocols, headers=headers, useragent="", reactor=reactor)
        self.listener = listener
        self.setProtocolOptions(
            version=18,
            openHandshakeTimeout=10,
            closeHandshakeTimeout=2,
            serverConnectionDropTimeout=2,
            failByDrop=False,
            maxMessagePayloadSize=LARGEST_MESSAGE,
            # The client asks by a command of its own: Autobahn's timer would end a connection whose answer waits to be
            # read.
            autoPingInterval=0,
            autoPingTimeout=0,
            tcpNoDelay=True,
        )
