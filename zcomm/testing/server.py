"""The server in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import Clock
from zope.interface import implementer

from zcomm.auth.credentials import IBearerToken
from zcomm.bifrost.connection import Connection
from zcomm.bifrost.given import Given, Place
from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.server import zBifrost
from zcomm.commands.forms import serve_forms
from zcomm.commands.functions import FunctionRegistry
from zcomm.commands.pages import PageRegistry
from zcomm.config import Limits, WebSocketConfig
from zcomm.interfaces import Client, Identity, IEngine, Permissions, Request
from zcomm.testing.client import MemoryClient
from zcomm.testing.link import Closed

__all__ = ["MemoryServer"]

_LIMITS = frozenset(item.name for item in fields(Limits))


@implementer(IListeningPort)
class _Port:
    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 56891)

    def startListening(self) -> None:
        """It does already, as much as it ever will."""

    def stopListening(self) -> None:
        """Do nothing: no port is open."""


class _VirtualReactor(Clock):
    """A clock on which something can be listened to."""

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> _Port:
        return _Port()

    def callFromThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.callLater(0, function, *args, **kwargs)


class _MemoryBifrost(zBifrost):
    """Broadcasts go to each client by itself; there is no system to write to."""

    @staticmethod
    def _fan_out(transports: Sequence[Any], payloads: list[bytes], behind: list[int] | None = None) -> None:
        for place, transport in enumerate(transports):
            if behind is not None and transport.is_blocked:
                behind.append(place)
            else:
                transport.send(payloads)


class _AtOnce:
    """Runs what production runs in a thread, here and now."""

    def run(self, owner: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(function, *args, **kwargs)

    def run_one_of(self, kind: Any, owner: Any, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """The result of ``function``, of whatever kind it is."""
        return self.run(owner, function, *args)


class _GivenAtOnce(Given):
    """Gives what runs in a thread in production the same as all else: here it may not wait."""

    def __call__(self, wants: Sequence[str], request: Request, client: Client, place: Place) -> dict[str, Any]:
        return super().__call__(wants, request, client, "reactor")


@implementer(ICredentialsChecker)
class _Tokens:
    credentialInterfaces = (IBearerToken,)

    def __init__(self, identities: Mapping[str, Identity]):
        self.identities = dict(identities)

    # Twisted's own avatar ids are bytes.
    def requestAvatarId(self, credentials: Any) -> Deferred[Identity]:  # type: ignore[override]
        identity = self.identities.get(credentials.token)
        return fail(UnauthorizedLogin()) if identity is None else succeed(identity)

    def is_beyond_guessing(self, token: str) -> bool:
        # They stand for those that zComm makes.
        return True

    def still_valid(self, identity: Identity) -> bool:
        return identity in self.identities.values() or identity.token_id == "given"  # noqa: S105 (a word, not a token)

    def would_admit(self, identity: Identity) -> bool:
        return self.still_valid(identity)


class _Known:
    """Lets a client in as somebody, without asking anybody."""

    def __init__(self, identity: Identity):
        self._identity = identity

    def admit(
        self, upgrade: Upgrade, peer: str, is_local: bool, local_address: str, waits: Callable[[], None]
    ) -> Deferred[Identity]:
        return succeed(self._identity)


class MemoryServer:
    """A running zBifrost in memory.

    :param commands: custom commands by key, as for :meth:`zcomm.bifrost.server.zBifrost.command`; further ones,
        and those that broadcast, are registered on :attr:`bifrost`.
    :param tokens: who holds which token; without it, and without a ``checker``, authentication is off.
    :param checker: a ``twisted.cred`` checker of your own.
    :param permissions: what each identity may do; everything when left out.
    :param functions: what zFunc calls; plain functions run at once instead of in a thread.
    :param pages: where zLink leads.
    :param engine: what it shares with other servers; nothing when left out.
    :param connection: the class that answers an admitted client.
    :param options: fields of :class:`~zcomm.config.WebSocketConfig` and :class:`~zcomm.config.Limits`.
    :ivar bifrost: the server: :meth:`~zcomm.bifrost.server.zBifrost.command`, ``broadcast``, ``ask``, ``clients``.
    :ivar topics: its topics: :meth:`~zcomm.topics.topics.Topics.topic` declares them, ``publish``, ``members``.
    :ivar clock: the virtual clock; see :meth:`advance`.
    """

    def __init__(
        self,
        commands: Mapping[str, Callable[..., Any]] | None = None,
        *,
        tokens: Mapping[str, Identity] | None = None,
        checker: ICredentialsChecker | None = None,
        permissions: Permissions | None = None,
        functions: FunctionRegistry | None = None,
        pages: PageRegistry | None = None,
        engine: IEngine | None = None,
        connection: type[Connection] = Connection,
        **options: Any,
    ):
        self.clock = _VirtualReactor()
        if checker is None and tokens is not None:
            checker = _Tokens(tokens)
        limits = {name: options.pop(name) for name in list(options) if name in _LIMITS}
        options.setdefault("require_auth", checker is not None)
        if limits:
            options["limits"] = Limits(**limits)
        self.bifrost: zBifrost = _MemoryBifrost(
            WebSocketConfig(**options),
            checker=checker,
            permissions=permissions,
            reactor=self.clock,
            engine=engine,
            connection=connection,
        )
        self.topics = self.bifrost.topics
        for key, command in (commands or {}).items():
            self.bifrost.command(key)(command)
        at_once: Any = _AtOnce()
        given = _GivenAtOnce(self.clock, self.bifrost.ask)
        serve_forms(self.bifrost.dispatcher, at_once, functions=functions, pages=pages, given=given)
        self.bifrost.listen()

    def connect(
        self,
        token: str | None = None,
        *,
        identity: Identity | None = None,
        origin: str | None = None,
        host: str = "127.0.0.1",
        peer: str = "127.0.0.1",
    ) -> MemoryClient:
        """A client that opens a connection now. Whether it was let in shows in its ``closed``.

        :param token: its token.
        :param identity: who it is, without any check.
        :param origin: the page it runs in; ``None`` for a program.
        :param host: the name it calls the server by.
        :param peer: the address it comes from.
        """
        upgrade = Upgrade(
            accept="", origin=origin, host=host, protocols=(), extensions="", tokens=() if token is None else (token,)
        )
        factory = self.bifrost.factory

        def arrive(client: MemoryClient) -> None:
            if factory.takes():
                client._channel.arrive(upgrade, factory.admission if identity is None else _Known(identity))
            else:
                client._ended(Closed(1006))

        return MemoryClient(self, peer, arrive)

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due happens in its order."""
        end = self.clock.seconds() + seconds
        while due := [call.getTime() for call in self.clock.getDelayedCalls() if call.getTime() <= end]:
            self.clock.advance(max(0.0, min(due) - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def settle(self) -> None:
        """Let everything happen that takes no time; clients do so by themselves."""
        self.advance(0)

    def stop(self) -> Deferred[None]:
        """Shut the server down; a Deferred that fires when it has stopped."""
        stopped = self.bifrost.stopService()
        self.settle()
        return stopped
