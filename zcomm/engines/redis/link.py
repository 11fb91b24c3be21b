"""A connection to one Redis server that is made again whenever it ends."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import (
    HostnameEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.engines.redis.protocol import LinkLost, RedisProtocol, ReplyError

__all__ = ["Address", "Credentials", "Link", "Words"]

#: A command, or a part of one.
Words = Sequence[bytes | str | int]

#: Seconds for a connection to be made, and for whatever is said on it first.
CONNECT = 3.0
#: Seconds without a word from a server that owes one, after which it is taken to be away.
STALL = 5.0
#: Seconds before a connection is tried again: the first time, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


class Address(NamedTuple):
    """The place of a server: host and port, or the path of a Unix socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Credentials(NamedTuple):
    """The way in: user and password (ACL), the number of the database, and TLS with certificates in PEM.

    :ivar tls: whether the connection is encrypted; the server's name is checked always.
    :ivar authorities: certificates of those whose word is taken; the system's when there are none.
    :ivar own: a certificate with its key, for servers that ask for one.
    """

    username: str | None = None
    password: str | None = None
    database: int = 0
    tls: bool = False
    authorities: tuple[bytes, ...] = ()
    own: bytes | None = None


class Link:
    """A connection that is kept up.

    :param reactor: the reactor.
    :param address: where to.
    :param credentials: the way in.
    :param name: what the server lists it as.
    :param first: the commands that are said first on each new connection.
    :param on_up: called when it can be used, again and again.
    :param on_down: called with the reason when it has ended, or could not be made.
    :ivar protocol: the connection of now; ``None`` while there is none.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Address,
        credentials: Credentials,
        name: str,
        first: Callable[[], list[Words]],
        on_up: Callable[[Link], None],
        on_down: Callable[[Link, BaseException], None],
    ):
        self._reactor = reactor
        self.address = address
        self._credentials = credentials
        self._name = name
        self._first = first
        self._on_up = on_up
        self._on_down = on_down
        self.protocol: RedisProtocol | None = None
        self._making: RedisProtocol | None = None
        self._connecting: Deferred[Any] | None = None
        self._again: IDelayedCall | None = None
        self._pause = FIRST_PAUSE
        self._is_over = False
        self._at_end = getattr(reactor, "at_end_of_turn", None) or (lambda call: reactor.callLater(0, call))

    def start(self) -> None:
        """Connect, and go on connecting."""
        self._again = None
        self._connecting = self._connect()
        self._connecting.addErrback(self._failed)

    def stop(self) -> None:
        """End the connection for good."""
        self._is_over = True
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._connecting is not None:
            self._connecting.cancel()
        for protocol in (self.protocol, self._making):
            if protocol is not None:
                protocol.abort()

    def end(self) -> None:
        """End the connection of now; another one is made."""
        if self.protocol is not None:
            self.protocol.abort()

    def look(self) -> None:
        """End the connection where the server owes a word for too long; to be called more often than that."""
        protocol = self.protocol
        if protocol is None:
            return
        if protocol.waits and self._reactor.seconds() - protocol.heard > STALL:
            protocol.abort()
        elif protocol.on_push is not None:
            protocol.send("PING")

    def _endpoint(self) -> Any:
        address = self.address
        if address.path:
            return UNIXClientEndpoint(self._reactor, address.path, timeout=CONNECT)
        endpoint = HostnameEndpoint(self._reactor, address.host, address.port, timeout=CONNECT)
        credentials = self._credentials
        if not credentials.tls:
            return endpoint
        trust = None
        if credentials.authorities:
            trust = trustRootFromCertificates([Certificate.loadPEM(pem) for pem in credentials.authorities])
        own = None if credentials.own is None else PrivateCertificate.loadPEM(credentials.own)
        return wrapClientTLS(optionsForClientTLS(address.host, trustRoot=trust, clientCertificate=own), endpoint)

    @inlineCallbacks
    def _connect(self) -> Any:
        protocol = RedisProtocol(self._at_end, self._reactor.seconds, self._lost)
        factory = Factory.forProtocol(lambda: protocol)
        factory.noisy = False
        yield self._endpoint().connect(factory)
        self._making = protocol
        credentials = self._credentials
        calls: list[Words] = []
        if credentials.password is not None:
            user = () if credentials.username is None else (credentials.username,)
            calls.append(("AUTH", *user, credentials.password))
        if credentials.database:
            calls.append(("SELECT", credentials.database))
        calls += [*self._first(), ("PING",)]
        # All leave at once; the first that fails tells why.
        replies = [protocol.call(*words) for words in calls]
        # For whoever lists the server's clients; an account may do without that right.
        named = protocol.call("CLIENT", "SETNAME", self._name)
        named.addErrback(lambda failure: failure.trap(ReplyError) and None)
        timer = self._reactor.callLater(CONNECT, protocol.abort)
        failure: BaseException | None = None
        for reply in [*replies, named]:
            try:
                yield reply
            except Exception as error:
                failure = failure or error
        if timer.active():
            timer.cancel()
        if failure is not None:
            protocol.abort()
            raise failure
        self._making, self._connecting = None, None
        if self._is_over or protocol.transport is None:
            protocol.abort()
            raise LinkLost
        self.protocol = protocol
        self._pause = FIRST_PAUSE
        self._on_up(self)

    def _failed(self, failure: Failure) -> None:
        self._connecting = self._making = None
        if not self._is_over:
            self._go_on(failure.value or LinkLost())

    def _lost(self, reason: Failure) -> None:
        was_up, self.protocol = self.protocol is not None, None
        if was_up and not self._is_over:
            self._go_on(reason.value or LinkLost())

    def _go_on(self, reason: BaseException) -> None:
        if self._again is None:
            # Not all of them at the same moment.
            self._again = self._reactor.callLater(self._pause * random.uniform(0.5, 1), self.start)  # noqa: S311 (no secret)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._on_down(self, reason)
