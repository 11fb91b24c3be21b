"""The state that the connections of one server share: limits, admission, the registry, the counters.

An Autobahn ``WebSocketServerFactory`` whose options are all set here, in one place, and stand on a
protocol class of its own: thousands of connections do not each carry a copy of them.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from zcomm.auth.policy import is_operator
from zcomm.bifrost.admission import Admission
from zcomm.bifrost.broadcaster import Broadcaster
from zcomm.bifrost.connection import Connection, ServerState, Transport
from zcomm.bifrost.handshake import Head, Upgrade
from zcomm.bifrost.pending import HttpResponder, Outsiders, PendingHandshakes
from zcomm.bifrost.protocol import BifrostProtocol
from zcomm.bifrost.registry import Elsewhere, Registry, user_of
from zcomm.bifrost.session import REFUSED
from zcomm.config import SPARE_FILES, Limits, file_limit
from zcomm.errors import HandshakeRefused, Unavailable
from zcomm.interfaces import Identity
from zcomm.origin import is_loopback
from zcomm.peers import UNIX, TrustedProxies, socket_address
from zcomm.runtime.deferreds import Waiters
from zcomm.runtime.logthrottle import Throttle
from zcomm.runtime.process import open_files
from zcomm.runtime.timeouts import Timeouts
from zcomm.topics.topics import Topics
from zcomm.wire.autobahn import SOME_HOOKS, UNUSED_HOOKS, FrameProtocol, HookRefusing, refuse_hooks, template_of
from zcomm.wire.closecodes import CloseCode
from zcomm.wire.incoming import Entrance
from zcomm.wire.writebatch import WriteBatch

__all__ = ["BifrostFactory"]

#: What compression may add to the length of a message on the wire. Autobahn checks a limit against both
#: lengths, so its limit is this much higher, and the exact one is checked on the finished message.
WIRE_SLACK = 1024
#: Seconds between two counts of the open files while they are short.
RECOUNT = 1.0
#: Seconds between two lines in the log about a want of files.
COMPLAINT_INTERVAL = 60.0
#: Connections that are kept for who runs the server; fewer where there are few at all.
KEPT_PLACES = 8
#: Connections of which one user may have all, where there are no more.
FEW = 100


class Channel(Transport, Protocol):
    """A TCP connection, or what stands for one in memory, as far as the factory looks at it."""

    @property
    def peer(self) -> str | None:
        """The address that it comes from."""

    @property
    def drop_reason(self) -> str:
        """The first reason that the server had to end it; empty where it had none, :data:`REFUSED` where
        that was counted already."""

    @property
    def is_closing(self) -> bool:
        """Whether a goodbye has been said that is not answered, or not flushed."""

    def forked(self) -> None:
        """Close the copy of its socket that a forked child has."""

    def drop(self, cause: str) -> None:
        """Cut the connection off."""

    def cut_off(self, cause: str) -> None:
        """Cut the connection off, from within no call of its own: its socket is closed when this returns."""


@implementer(IProtocolNegotiationFactory)
class BifrostFactory(WebSocketServerFactory, metaclass=HookRefusing):
    """Makes and counts connections.

    :param limits: what clients may use up.
    :param admission: who is let in.
    :param state: what all connections share.
    :param broadcaster: has the registry of those who were admitted.
    :param clock: an ``IReactorTime``.
    :param batch: the replies that wait for the end of the turn.
    :param accept_compression: whether permessage-deflate is negotiated.
    :param connection: the class that answers an admitted client.
    :param pages: what answers plain HTTP; ``None`` for nothing.
    :param proxies: those that are believed when they say where a client is.
    :param topics: those of the program; connections are put into their users' own.
    """

    noisy = False
    _log = Logger()
    #: The class of connections as it is given, and with the options of this server on it.
    _given: type[BifrostProtocol] = BifrostProtocol
    _protocol: type[BifrostProtocol]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kind: Any = cls.protocol
        if kind is not BifrostFactory.protocol:
            _require_ours(kind)
            # The options of each server still go on it.
            cls._given, cls.protocol = kind, BifrostFactory.protocol  # type: ignore[method-assign]
        if cls.connection is not BifrostFactory.connection:
            raise _given_to_zbifrost(cls.connection)

    def __init__(
        self,
        limits: Limits,
        admission: Admission,
        state: ServerState,
        broadcaster: Broadcaster,
        clock: Any,
        batch: WriteBatch,
        accept_compression: bool = False,
        connection: type[Connection] = Connection,
        pages: HttpResponder | None = None,
        proxies: TrustedProxies | None = None,
        topics: Topics | None = None,
    ):
        if not (isinstance(connection, type) and issubclass(connection, Connection)):
            raise TypeError(
                f"{_named(connection)} cannot answer zComm's clients. Subclass zcomm.bifrost.connection.Connection, "
                "override receive, and name it as zBifrost(connection=…)"
            )
        # Their bases may have got one since the classes were made.
        for kind in (type(self), connection):
            refuse_hooks(kind)
        super().__init__(server="", reactor=clock)
        self.limits = limits
        self.admission = admission
        self.state = state
        self.registry = broadcaster.registry
        #: Those who call over HTTP. They count as connections, and hear of nothing.
        self.callers: Registry[Connection] = Registry()
        #: Those at other processes of the same server, who count as well.
        self.elsewhere = Elsewhere()
        self.topics = topics
        self.clock = clock
        self.batch = batch
        self.entrance = Entrance(partial(clock.callLater, 0))
        self.compression = accept_compression
        self.pages = pages
        self._broadcaster = broadcaster
        self._connection = connection
        self.proxies = TrustedProxies() if proxies is None else proxies
        self._kept_places = min(KEPT_PLACES, limits.connections // 16)
        self._places_of_user = limits.connections_per_user or max(limits.connections // 2, min(limits.connections, FEW))
        #: The places of users that were claimed among those of all processes, by channel.
        self._claims: dict[Channel, tuple[str, str]] = {}
        self._claimed = 0
        self.pending = PendingHandshakes(limits, clock)
        self.timeouts = Timeouts(clock)
        #: Connections ended by the server or refused, by reason; each counts once.
        self.drops: Counter[str] = Counter()
        self.opened_count = 0
        self.accepting = True
        self._alive: set[Channel] = set()
        #: Those of them that are not let in.
        self.outsiders: Outsiders[Channel] = Outsiders()
        self._first_spare = _first_spare()
        #: Whether that has been reached; then how many connections there is room for, and when that was counted.
        self._is_short = False
        self._room = 0
        self._counted = float("-inf")
        self._when_empty: Waiters[None] = Waiters()
        self._refusals = Throttle(clock.seconds)
        self._failures = Throttle(clock.seconds)
        self._complaints = Throttle(clock.seconds, COMPLAINT_INTERVAL)
        # Handshake, pings and their timers are ours; what is left to Autobahn is framing, done strictly.
        super().setProtocolOptions(
            versions=[13],
            webStatus=False,
            utf8validateIncoming=True,
            requireMaskedClientFrames=True,
            maxFramePayloadSize=0,
            maxMessagePayloadSize=self.limits.message_size + (WIRE_SLACK if self.compression else 0),
            failByDrop=False,
            echoCloseCodeReason=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            autoPingTimeout=0,
        )
        self.protocol = self._given

    def setProtocolOptions(self, *args: Any, **options: Any) -> None:  # noqa: N802 (the name is Autobahn's)
        """Refuse to set Autobahn's options: those of zComm's connections are made once, from its limits.

        :raises TypeError: always.
        """
        raise _no_effect()

    def resetProtocolOptions(self) -> None:  # noqa: N802 (the name is Autobahn's)
        """Refuse to set Autobahn's options back, but for where the factory begins.

        :raises TypeError: once it is made.
        """
        if "_protocol" in vars(self):
            raise _no_effect()
        super().resetProtocolOptions()

    @property  # type: ignore[override]  # Autobahn types the attribute as what it makes
    def protocol(self) -> type[BifrostProtocol]:
        """The class of connections: a subclass of the one it is set to, with the options of this server on it.

        :raises TypeError: when it is set to one that is not zComm's: Autobahn's own does none of what a server of
            zComm's promises.
        """
        return self._protocol

    @protocol.setter
    def protocol(self, kind: type[BifrostProtocol]) -> None:
        _require_ours(kind)
        refuse_hooks(kind, UNUSED_HOOKS)
        refuse_hooks(kind, SOME_HOOKS, BifrostProtocol)
        shared = template_of(kind, self)
        own = {"__module__": __name__, "largest_message": self.limits.message_size}
        self._protocol = type("Protocol", (kind,), {**shared, **own})

    @property
    def connection(self) -> type[Connection]:
        """The class that answers an admitted client.

        :raises TypeError: when it is set: it is given to the server.
        """
        return self._connection

    @connection.setter
    def connection(self, kind: type[Connection]) -> None:
        raise _given_to_zbifrost(kind)

    def buildProtocol(self, addr: IAddress | None) -> BifrostProtocol | None:
        """A protocol for a new TCP connection; ``None``, which hangs up, when the server is stopping."""
        if addr is None:
            peer = "127.0.0.1"
        else:
            # A Unix socket has no address. One that is empty will be told by a PROXY header.
            peer = socket_address(getattr(addr, "host", UNIX))
        if self.proxies.trusts(peer):
            peer = ""
        if not self.takes():
            return None
        channel: BifrostProtocol = self._protocol()
        channel.factory = self
        channel.peer = peer
        channel.is_local = peer == UNIX or is_loopback(peer)
        self.came(channel)
        return channel

    def start_accepting(self) -> None:
        """Let clients come, as a factory does that was just made."""
        self.accepting = True
        # The program may have raised the limit since.
        self._first_spare = _first_spare()

    def stop_accepting(self) -> None:
        """Hang up on whoever comes from now on."""
        self.accepting = False

    def takes(self) -> bool:
        """Whether one more may come at all; counted where it may not."""
        if not self.accepting:
            self.count_drop("shutdown")
        return self.accepting

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802 (Twisted's name)
        """The protocols for a TLS connection, the best first (:rfc:`7301`); called by Twisted. Health checks of proxies
        may offer the older one alone."""
        return [b"http/1.1", b"http/1.0"]

    def forked(self) -> None:
        """Close the copies of connections that a forked child has."""
        for channel in self._alive:
            channel.forked()

    def came(self, channel: Channel) -> None:
        """A TCP connection has begun; :meth:`gone` says when it has ended."""
        self._alive.add(channel)
        self.outsiders.add(channel, channel.peer or "")

    def makes_way(self, channel: Channel, descriptor: int) -> bool:
        """Keep files free for everything else: where none are to be had beyond those, one who is not let in is cut off
        for the newcomer; whether the newcomer stays.

        :param descriptor: the number of its socket. The system gives the lowest that is free, so that a high one tells
            that as many files are open in the whole process, of whatever kind.
        """
        if (descriptor < self._first_spare and not self._is_short) or not self._has_no_room(descriptor):
            return True
        self._complaints.log(
            self._log.warn,
            "file_limit",
            "{number} files are open, and those that are left are not for connections: who waits is cut off; raise the "
            "limit of open files (ulimit -n, LimitNOFILE)",
            number=descriptor + 1,
        )
        chosen = self.outsiders.take(channel)
        if chosen is channel:
            channel.drop("file_limit")
            return False
        try:
            chosen.cut_off("file_limit")
        except Exception:
            self.unexpected(Failure())
        return True

    def _has_no_room(self, descriptor: int) -> bool:
        """Whether one connection more takes a file that is kept for something else."""
        # Once there are high numbers, a low one tells nothing: somebody has left.
        now = self.clock.seconds()
        if not self._is_short or now - self._counted >= RECOUNT:
            self._counted = now
            self._room = self._first_spare - (open_files(descriptor + 1) - len(self._alive))
        count = len(self._alive)
        is_high = descriptor >= self._first_spare
        self._is_short = is_high or count > self._room - SPARE_FILES
        return is_high or count > self._room

    def is_full_for(self, identity: Identity | None) -> bool:
        """Whether every place for an open connection is taken that one may have who is ``identity``.

        :param identity: ``None`` where that is not known yet: then every place there is.
        """
        # The last are for who runs the server, so that no crowd of users keeps it from looking what they do.
        kept = 0 if identity is None or is_operator(identity) else self._kept_places
        here = len(self.registry.members) + len(self.callers.members)
        return here + self.elsewhere.total >= self.limits.connections - kept

    def check_user_limit(self, identity: Identity, peer: str) -> None:
        """Let a user have a connection more.

        :raises HandshakeRefused: when it has as many as one user may have.
        """
        user = user_of(identity, peer)
        here = self.registry.connections_of(user) + self.callers.connections_of(user)
        if here + self.elsewhere.connections_of(user) >= self._places_of_user:
            # It passes, as soon as one of them has ended.
            raise HandshakeRefused(CloseCode.TRY_AGAIN_LATER, "Too many connections")

    def claim(self, channel: Channel, identity: Identity, peer: str) -> Deferred[bool] | None:
        """Ask the engine whether a user may have a connection more, where a number was given and several processes
        share the engine; ``None`` where this process alone counts. The place is the channel's until it has ended."""
        engine, most = self.state.engine, self.limits.connections_per_user
        if not engine.is_shared or not most:
            return None
        self._claimed += 1
        place = f"connections {user_of(identity, peer)}", f"{engine.node}-{self._claimed:x}"
        self._claims[channel] = place

        def claimed(has_place: bool) -> bool:
            if self._claims.get(channel) != place:
                # It has ended meanwhile.
                engine.release(*place)
            return has_place

        # Where the engine is away, each process goes by what it knows.
        claiming = engine.claim(*place, most).addErrback(lambda failure: failure.trap(Unavailable) and True)
        return claiming.addCallback(claimed)

    def not_admitted(self, identity: Identity) -> None:
        """Forget a client whose token was right and that is not let in."""
        self.admission.give_back(identity)

    def opened(self, channel: Channel, identity: Identity, upgrade: Upgrade) -> Connection:
        """A client was admitted."""
        self.outsiders.remove(channel)
        self.opened_count += 1
        connection = self._connection(
            channel, self.state, identity, channel.peer or "", self.opened_count, upgrade.host, upgrade.origin
        )
        self._broadcaster.join(connection)
        if self.topics is not None and self.topics.kinds.personal:
            self.topics.welcome(connection)
        return connection

    def closed(self, connection: Connection) -> None:
        """A client's conversation has ended; its connection may still be saying goodbye."""
        self.registry.remove(connection)
        channel: Any = connection.transport
        if channel is not None and channel in self._alive:
            self.outsiders.add(channel, connection.peer)
        self.admission.give_back(connection.identity)
        connection.lost()

    def called(self, channel: Channel, transport: Transport, identity: Identity, head: Head) -> Connection:
        """Somebody calls over HTTP.

        :param transport: carries the answer.
        """
        self.outsiders.remove(channel)
        origin = head.text(b"origin") or None
        caller = self._connection(transport, self.state, identity, channel.peer or "", 0, head.text(b"host"), origin)
        self.callers.add(caller)
        return caller

    def call_over(self, caller: Connection) -> None:
        """A call over HTTP has ended, however it did."""
        self.callers.remove(caller)
        self.admission.give_back(caller.identity)
        caller.lost()

    def gone(self, channel: Channel) -> None:
        """A TCP connection has ended."""
        self._alive.discard(channel)
        if self._claims and (place := self._claims.pop(channel, None)) is not None:
            self.state.engine.release(*place)
        self.outsiders.remove(channel)
        if not self._alive:
            self._emptied()
        if channel.drop_reason and channel.drop_reason != REFUSED:
            self.count_drop(channel.drop_reason)

    def _emptied(self) -> None:
        self.timeouts.stop()
        self._when_empty.fire(None)

    def when_empty(self) -> Deferred[None]:
        """Fires when no TCP connection is left. Undecided and refused ones are cut off, they are owed nothing."""
        empty = self._when_empty.add()
        for channel in list(self._alive):
            if not channel.is_closing:
                channel.abandon()
        if not self._alive:
            self._emptied()
        return empty

    def abort_all(self) -> None:
        """Cut off whoever is still there."""
        for channel in list(self._alive):
            channel.abandon()

    def refused(self, peer: str, reason: str) -> None:
        """Count that a client, or a request for a page, was not let in, and log it."""
        self.count_drop(f"refused: {reason}")
        self.note_refusal(peer, reason)

    def note_refusal(self, peer: str, reason: str) -> None:
        """Log that a client, or a request for a page, was not let in."""
        who = peer or "a client behind a proxy"
        self._refusals.log(self._log.info, reason, "{peer} was not let in: {reason}", peer=who, reason=reason)

    def count_drop(self, reason: str) -> None:
        """Count one connection that ended for ``reason``."""
        self.drops[reason] += 1

    def unexpected(self, failure: Failure) -> None:
        """Something failed that should not have: into the log with it, the server goes on."""
        self._failures.log_failure(self._log.failure, "a connection met an unexpected error", failure)


def _first_spare() -> int:
    """The number from which on descriptors are for everything but connections."""
    limit = file_limit()
    return limit - min(SPARE_FILES, limit // 4)


def _require_ours(kind: Any) -> None:
    """Refuse a class of connections that zComm does not drive.

    :raises TypeError: naming the way that there is.
    """
    if not (isinstance(kind, type) and issubclass(kind, BifrostProtocol)):
        raise TypeError(
            f"{_named(kind)} cannot carry zComm's connections, its onMessage would never be called. Subclass "
            "zcomm.bifrost.connection.Connection, override receive, and name it as zBifrost(connection=…)"
        )


def _no_effect() -> TypeError:
    """The error for an option of Autobahn's that is set where it was taken already."""
    return TypeError(
        "Autobahn's options have no effect on zComm's connections. Set what they may use up by "
        "WebSocketConfig(limits=Limits(…)), and compression by WebSocketConfig(compression=…)"
    )


class _Option:
    """An option of Autobahn's on the factory, which is taken over to the class of connections when that is made.

    :raises TypeError: when it is set afterwards.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str):
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        try:
            return vars(instance)[self._name]
        except (KeyError, TypeError):
            raise AttributeError(self._name) from None

    def __set__(self, instance: Any, value: Any) -> None:
        if "_protocol" in vars(instance):
            raise _no_effect()
        vars(instance)[self._name] = value


for _option in FrameProtocol.CONFIG_ATTRS:
    setattr(BifrostFactory, _option, _Option(_option))


def _given_to_zbifrost(kind: Any) -> TypeError:
    """The error for a class of :class:`Connection` that is given where nobody asks for it."""
    return TypeError(
        f"{_named(kind)} is not taken from the factory. Name it when the server is made: zBifrost(connection=…)"
    )


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else repr(kind)
