"""The server's end of a connection in memory: handshake and session of production, without frames and sockets."""

from __future__ import annotations

from collections import deque
from typing import Any

from zcomm.bifrost.connection import Connection
from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.pending import Admitter, Exchange, HandshakeSession, HandshakeState
from zcomm.bifrost.session import CLOSING_TIME, NOT_UTF8, REFUSED, Session
from zcomm.budget.written import Pieces
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.origin import is_loopback
from zcomm.testing.link import Closed, Link
from zcomm.wire.autobahn import HookRefusing
from zcomm.wire.closecodes import Ending, close_reason
from zcomm.wire.deflate import Deflate

__all__ = ["MemoryChannel"]


class MemoryChannel(metaclass=HookRefusing):
    """Carries out for a client in memory what the handshake and the session decide, as the protocol does on a socket.

    :param server: the :class:`~zcomm.testing.MemoryServer`.
    :param client: the :class:`~zcomm.testing.MemoryClient` at the other end.
    :param incoming: the way to it.
    :ivar reading: whether the client takes what it is sent.
    :ivar responsive: whether it answers pings.
    :ivar queued: bytes that wait for it.
    :ivar drop_reason: why the server ended the connection, for the counters.
    """

    def __init__(self, server: Any, client: Any, peer: str, incoming: Link):
        self.peer = peer
        self.is_local = is_loopback(peer)
        self.local_address = "127.0.0.1"
        self.reading = True
        self.responsive = True
        self.queued = 0
        #: How many of them answer what the client has asked.
        self._owed = 0
        #: Bytes that the client has taken.
        self._taken = 0
        self._server = server
        self._factory: Any = server.bifrost.factory
        self._client = client
        self._incoming = incoming
        self._handshake: HandshakeSession | None = None
        self._session: Session | None = None
        self._connection: Connection | None = None
        #: Messages to the server that came before the client was let in, or while it took no replies.
        self._unread: deque[str | bytes] = deque()
        self._waiting: deque[bytes | Closed] = deque()
        self._stall: Any = None
        #: Reads on, from a client that is over its rate.
        self._slowed: Any = None
        #: Cuts off a client that does not answer a goodbye.
        self._timer: Any = None
        self._lost = False
        self.drop_reason = ""
        self._upgrade: Upgrade
        self._admitter: Admitter

    # -- the handshake

    def arrive(self, upgrade: Upgrade, admitter: Admitter) -> None:
        """Ask to be let in, as soon as there is a place among those that may shake hands."""
        self._upgrade, self._admitter = upgrade, admitter
        self._factory.came(self)
        self._factory.pending.arrive(self)

    @property
    def progress(self) -> HandshakeState | None:
        """The progress of the handshake; ``None`` where that has not begun, or is over."""
        return None if self._handshake is None else self._handshake.state

    def wait(self) -> None:
        """Keep what the client sends until there is a place, as is done in any case."""

    def begin(self, seconds: float) -> None:
        """Shake hands, which may take this long."""
        self._handshake = handshake = HandshakeSession(self, self._factory, seconds)
        # The places that become free as a server stops are for nobody: the next is cut off too.
        if self._factory.accepting:
            handshake.decide(self._upgrade, self._admitter)

    def locate(self, forwarded: str) -> None:
        """Do nothing: there is no head, and so no proxy that would have written one."""

    def pause_for_admission(self) -> None:
        """Keep what the client sends until it is let in, as is done in any case."""

    def leave_place(self) -> None:
        """Do nothing: there are no places in memory."""

    def admitted(
        self, identity: Identity, upgrade: Upgrade, response: bytes, deflate: Deflate | None, early: bytes
    ) -> None:
        """Let the client in."""
        self._open()
        self._connection = connection = self._factory.opened(self, identity, upgrade)
        if self._session is not None:
            self._session.charges(self._factory.state.budgets.memory, connection.account)
        self._read_on()

    def refused(self, refusal: HandshakeRefused, response: bytes) -> None:
        """Tell the client why it is not let in."""
        self._open()
        self.drop_reason = REFUSED
        self._factory.refused(self.peer or "", refusal.reason)
        self.close(refusal.close_code, refusal.reason)

    def respond(self, response: bytes) -> None:
        """End a handshake with a response: ``HTTP/1.1 503 Service Unavailable``."""
        self._hang_up(Closed(1006, f"HTTP {response.split()[1].decode()}"))

    def handed_over(self, exchange: Exchange, early: bytes) -> None:
        """End a handshake that is none: there is no HTTP in memory."""
        exchange.lost()
        self._hang_up(Closed(1006, "HTTP"))

    def _open(self) -> None:
        self._handshake = None
        self._factory.pending.leave(self)
        self._session = Session(self._factory.limits, self._server.clock.seconds)

    # -- messages in

    def receive(self, data: str | bytes) -> None:
        """Take one message of the client's."""
        if self._client.closed is not None:
            return
        self._unread.append(data)
        if self._slowed is None:
            self._read_on()
        elif self._session is not None:
            self._session.heard = True
            self._count(self._session, 1)

    def _read_on(self) -> None:
        # A client that does not take its replies is not read from.
        if self._slowed is not None and self._slowed.active():
            return
        self._slowed = None
        while self._unread and not self._waiting and self._connection is not None and self._session is not None:
            rate = self._session.rate
            if not rate.spend(1):
                # Over its rate: what it has sent waits.
                rate.take_back(1)
                self._slowed = self._server.clock.callLater(rate.wait(1), self._read_on)
                self._count(self._session, 0)
                return
            self._process(self._connection, self._session, self._unread.popleft())

    def _count(self, session: Session, frames: int) -> None:
        """Count frames of a client that is over its rate."""
        ending = session.came(frames)
        if ending is not None:
            self.obey(ending)

    def _process(self, connection: Connection, session: Session, data: str | bytes) -> None:
        session.heard = True
        is_binary = isinstance(data, bytes)
        take_binary = connection.receive_binary
        payload = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
        ending = (
            session.begins(is_binary, take_binary is not None) or session.completed(len(payload)) or _not_utf8(data)
        )
        if ending is not None:
            self.obey(ending)
        elif is_binary and take_binary is not None:
            take_binary(payload)
        else:
            self.reply(connection.receive([payload]))

    # -- messages out

    def send(self, payloads: list[bytes]) -> None:
        """Send text messages."""
        for payload in payloads:
            self._carry(payload, False)

    def has_room(self, size: int) -> bool:
        """Whether an answer of that size may be sent, and wait where it has to."""
        return self._session is None or self._session.has_room(size, not self.reading)

    def reply(self, replies: list[bytes]) -> None:
        """Send what the client has asked for."""
        for payload in replies:
            self._carry(payload, True)

    def reply_in_pieces(self, reply: Pieces) -> None:
        """Send a long answer to what the client has asked for."""
        self._carry(bytes(reply), True)

    def _carry(self, payload: bytes, is_owed: bool) -> None:
        session = self._session
        if session is None or not session.is_open:
            return
        size = len(payload)
        if self.reading:
            self._taken += size
            self._incoming.carry(payload)
        elif not is_owed and (ending := session.may_wait(self.queued - self._owed, size)) is not None:
            self.obey(ending)
        else:
            self._waiting.append(payload)
            self.queued += size
            if is_owed:
                self._owed += size
                session.owes(self._owed)
            if self._stall is None:
                session.watched(self._taken, self.queued)
                self._stall = self._server.clock.callLater(session.interval, self._check_stall, session)

    def _nothing_waits(self) -> None:
        self._waiting, self.queued, self._owed = deque(), 0, 0
        if self._session is not None:
            self._session.owes(0)

    def _check_stall(self, session: Session) -> None:
        # Here it takes everything or nothing.
        self._stall = None
        ending = session.looked(self._taken, self.queued)
        if ending is not None:
            self.obey(ending)
        else:
            self._stall = self._server.clock.callLater(session.interval, self._check_stall, session)

    @property
    def is_blocked(self) -> bool:
        """Whether the client does not take what it has been sent."""
        return not self.reading

    def ignore_pings(self) -> None:
        """Let no ping be answered from now on."""
        self.responsive = False

    def pause(self) -> None:
        """Let the client take nothing until it resumes."""
        self.reading = False

    def resume(self) -> None:
        """Let the client take what waits, and what comes."""
        self.reading = True
        self._cancel_stall()
        waiting = self._waiting
        self._taken += self.queued
        self._nothing_waits()
        for payload in waiting:
            self._incoming.carry(payload)
        if self._connection is not None:
            self._connection.drained()
        self._read_on()

    def tick(self) -> None:
        """Ping, or hang up on a client that has said nothing since the last ping."""
        session = self._session
        if session is None or not session.is_open or self._waiting or self._slowed is not None:
            return
        ending = session.pinged(0, 0)
        if ending is not None:
            self.obey(ending)
        elif self.responsive and self.reading:
            # Its pong.
            session.heard = True

    # -- the end

    def obey(self, ending: Ending) -> None:
        """End the connection in this way."""
        if ending.code is None:
            self.drop(ending.cause)
            return
        if ending.at_once:
            self.drop_reason = self.drop_reason or ending.cause
        self._say_goodbye(ending.code, ending.reason, ending.at_once)

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; nothing the client sends from now on is answered."""
        self._say_goodbye(code, reason)

    def _say_goodbye(self, code: int, reason: str, at_once: bool = False) -> None:
        session = self._session
        if session is None or not session.is_open:
            return
        self.drop_reason = self.drop_reason or f"close_{int(code)}"
        session.said_goodbye()
        self._leave()
        self._timer = self._server.clock.callLater(CLOSING_TIME, self.drop, "close_timeout")
        goodbye = Closed(int(code), close_reason(reason).decode())
        if at_once:
            self._nothing_waits()
        if at_once or self.reading:
            self._incoming.carry(goodbye)
        else:
            # Behind what it has not taken yet.
            self._waiting.append(goodbye)

    @property
    def is_closing(self) -> bool:
        """Whether a goodbye has been said that is not answered."""
        return self._session is not None and not self._session.is_open

    def drop(self, cause: str) -> None:
        """Cut the connection off."""
        self.drop_reason = self.drop_reason or cause
        self._hang_up(Closed(1006))

    def cut_off(self, cause: str) -> None:
        """Cut the connection off."""
        self.drop(cause)

    def forked(self) -> None:
        """A client in memory has no socket."""

    def abandon(self) -> None:
        """Cut the connection off; nobody is owed a goodbye any more."""
        self.drop("shutdown")

    def _hang_up(self, seen: Closed) -> None:
        self.left()
        self._incoming.end(lambda: self._client._ended(seen, self))

    def left(self) -> None:
        """Forget the client, which is gone."""
        if self._lost:
            return
        self._lost = True
        self._cancel_stall()
        for timer in (self._timer, self._slowed):
            if timer is not None and timer.active():
                timer.cancel()
        self._nothing_waits()
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.abandon()
        self._factory.pending.leave(self)
        if self._session is not None:
            self._session.said_goodbye()
        self._leave()
        self._factory.gone(self)

    def _leave(self) -> None:
        self._unread.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._factory.closed(connection)

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


def _not_utf8(data: str | bytes) -> Ending | None:
    """The end of a client whose text has no form in UTF-8, which on a socket is found in the frames."""
    if isinstance(data, str) and any("\ud800" <= character <= "\udfff" for character in data):
        return NOT_UTF8
    return None
