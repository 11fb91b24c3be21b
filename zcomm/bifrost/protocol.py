"""One TCP connection of the server: it does what Autobahn, handshake, session and both sides of the wire decide.

Autobahn's state machine takes every frame that is not on the short way of :mod:`zcomm.wire.incoming`; the rules for a
client stand in :mod:`zcomm.bifrost.session`, those for a handshake in :mod:`zcomm.bifrost.pending`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from zcomm.bifrost.connection import Connection
from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.pending import Exchange, HandshakeSession, HandshakeState
from zcomm.bifrost.session import CLOSING_TIME, FAULTS, REFUSED, SMALL, Session
from zcomm.budget.account import Account
from zcomm.budget.written import Pieces
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.peers import UNIX, socket_address
from zcomm.runtime.transports import (
    bytes_acknowledged,
    bytes_unacknowledged,
    close_copy,
    descriptor_of,
    end_at_once,
)
from zcomm.wire.autobahn import CLOSING, OPEN, SOME_HOOKS, FrameProtocol, refuse_hooks
from zcomm.wire.closecodes import Ending, close_reason
from zcomm.wire.deflate import Deflate
from zcomm.wire.incoming import ADMISSION, CROWD, OUTPUT, PENDING, Incoming
from zcomm.wire.outgoing import Outgoing

__all__ = ["BifrostProtocol"]


class BifrostProtocol(FrameProtocol):
    """One TCP connection: an HTTP request, or the handshake and the frames of one WebSocket client."""

    #: Bytes of one message; set by the factory, like Autobahn's options.
    largest_message = 1024 * 1024

    #: A TCP, TLS or Unix socket's: more than what Twisted's ITransport tells of.
    transport: Any
    _incoming: Incoming
    #: The address of the client; empty until it is known. A proxy says it, in front of the request or in its head.
    peer: str
    #: Whether the client is on this machine, with no proxy between.
    is_local = False
    #: While it is in progress, with one of the places for those.
    _handshake: HandshakeSession | None = None
    #: In the place of a session, from the end of the handshake on, where that was HTTP which takes longer.
    _exchange: Exchange | None = None
    #: From the end of the handshake on, whether the client is let in or only told why not.
    _session: Session | None = None
    #: There as long as the session.
    outgoing: Outgoing
    #: While the client is in.
    _connection: Connection | None = None
    #: The message that takes the long way, as far as it has come.
    _message: bytearray | None = None
    _message_is_binary = False
    #: Cuts off a client that does not answer a goodbye.
    _timer: Any = None
    _lost = False
    #: Why the server ended the connection, for the counters.
    drop_reason = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_hooks(cls, SOME_HOOKS, BifrostProtocol)

    # -- the life of the connection

    def connectionMade(self) -> None:
        """Wait for a place among those that may shake hands."""
        factory = self.factory
        factory.countConnections += 1
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass
        self._incoming = Incoming(
            self,
            self.transport,
            factory.clock,
            self.largest_message,
            factory.entrance,
            factory.state.budgets.outsiders,
        )
        if factory.makes_way(self, descriptor_of(self.transport)):
            factory.pending.arrive(self)

    @property
    def progress(self) -> HandshakeState | None:
        """The progress of the handshake; ``None`` where that has not begun, or is over."""
        return None if self._handshake is None else self._handshake.state

    def wait(self) -> None:
        """Read nothing until there is a place."""
        self._incoming.pause(PENDING)

    def begin(self, seconds: float) -> None:
        """Read the handshake, which has this long; or go on with it, in the place that the client's address has."""
        if self._handshake is None:
            self._handshake = HandshakeSession(self, self.factory, seconds)
            self._incoming.resume(PENDING)
        else:
            self._incoming.resume(PENDING)
            self._handshake.proceed()

    @property
    def local_address(self) -> str:
        """The address the connection came in on; empty for a unix socket."""
        return socket_address(getattr(self.transport.getHost(), "host", ""))

    def proxied(self) -> None:
        """A PROXY header has said where the client is."""
        address = self._source()
        if not self.factory.proxies.trusts(address):
            self._move(address)

    def locate(self, forwarded: str) -> None:
        """Find out where the client is, then go on with its handshake as soon as its address has a place for it.

        :param forwarded: its ``X-Forwarded-For``, which counts when a trusted proxy sends it.
        """
        if not self.peer:
            self._move(self.factory.proxies.client_of(self._source(), forwarded))
        elif self._handshake is not None and not self._incoming.is_paused_for(PENDING):
            # Its request may have come behind a PROXY header that left it without a place: then it waits for one.
            self._handshake.proceed()

    def _source(self) -> str:
        return socket_address(getattr(self.transport.getPeer(), "host", UNIX))

    def _move(self, address: str) -> None:
        """Give up the place of a proxy for one of ``address``."""
        pending = self.factory.pending
        pending.leave(self)
        self.peer = address
        self.factory.outsiders.add(self, address)
        pending.arrive(self)

    def dataReceived(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if self._session is not None:
            self._incoming.take(data)
        elif self._handshake is not None:
            self._handshake.receive(data)
        elif self._exchange is not None:
            self._exchange.receive(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell everybody who waited for the peer, once each, and leave nothing behind."""
        self._lost = True
        self._incoming.release()
        self._cancel_timer()
        if self._session is not None:
            self._session.said_goodbye()
            self.outgoing.release()
            self._leave()
        elif self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.lost()
        else:
            handshake, self._handshake = self._handshake, None
            if handshake is not None:
                handshake.abandon()
            self.factory.pending.leave(self)
        self.end_frames(reason)
        self.factory.countConnections -= 1
        self.factory.gone(self)

    # -- what the handshake says

    def pause_for_admission(self) -> None:
        """Read nothing until it is known whether the client is let in."""
        self._incoming.pause(ADMISSION)

    def leave_place(self) -> None:
        """Give the place among the handshakes to the next: neighbours that wait for their turns take none."""
        self.factory.pending.leave(self)

    def admitted(
        self, identity: Identity, upgrade: Upgrade, response: bytes, deflate: Deflate | None, early: bytes
    ) -> None:
        """Let the client in.

        :param response: completes the handshake.
        :param early: what came right behind the request, and is answered now.
        """
        self._open(response, deflate)
        self._connection = connection = self.factory.opened(self, identity, upgrade)
        if self._session is not None:
            self._session.charges(self.factory.state.budgets.memory, connection.account)
        self._incoming.admit(connection, early)

    def refused(self, refusal: HandshakeRefused, response: bytes) -> None:
        """Complete the handshake, then say the close code: a browser does not see an HTTP status."""
        self._open(response, None)
        self._incoming.resume(ADMISSION)
        self.drop_reason = REFUSED
        self.factory.refused(self.peer or "", refusal.reason)
        self.close(refusal.close_code, refusal.reason)

    def respond(self, response: bytes) -> None:
        """Send one HTTP response and hang up."""
        self.transport.write(response)
        self.transport.loseConnection()

    def belongs_to(self, account: Account) -> None:
        """Charge what the exchange takes to read to the account of its user from now on."""
        self._incoming.belongs_to(account)

    def read_on(self, is_wanted: bool) -> None:
        """Read what follows, or nothing for now."""
        if is_wanted:
            self._incoming.resume(ADMISSION)
        else:
            self._incoming.pause(ADMISSION)

    def handed_over(self, exchange: Exchange, early: bytes) -> None:
        """Let ``exchange`` go on; its place is for the next."""
        self._handshake = None
        self._exchange = exchange
        self.factory.pending.leave(self)
        self._incoming.resume(ADMISSION)
        exchange.begin(self, early)

    def _open(self, response: bytes, deflate: Deflate | None) -> None:
        # It is decided; its place is for the next.
        self._handshake = None
        factory = self.factory
        factory.pending.leave(self)
        self.begin_frames(None if deflate is None else deflate.inbound)
        self._session = session = Session(factory.limits, factory.clock.seconds)
        self.outgoing = outgoing = Outgoing(self, self.transport, session, factory.clock, factory.batch, deflate)
        outgoing.send_frames(response)
        self._incoming.begin(session, outgoing)

    # -- messages that took the long way

    def onMessageBegin(self, isBinary: bool) -> None:
        """Begin to join a message."""
        super().onMessageBegin(isBinary)
        self._message, self._message_is_binary = bytearray(), isBinary
        if self._session is not None and self._connection is not None:
            self._judge(self._session.begins(isBinary, self._connection.receive_binary is not None))

    def onMessageFrameData(self, payload: bytes) -> None:
        """Join a part of a message in place, so that a million one-byte fragments cost a million bytes.

        :param payload: unmasked, decompressed and, where it is text, UTF-8 so far.
        """
        if self.takes_messages and self._message is not None:
            self._message += payload

    @property
    def unfinished(self) -> int:
        """Bytes of a message that is not whole yet."""
        return 0 if self._message is None else len(self._message)

    def onMessageEnd(self) -> None:
        """Answer a message."""
        if not self.takes_messages:
            return
        message, self._message = self._message, None
        if self._session is None or self._connection is None or message is None:
            return
        self._incoming.whole()
        # Autobahn's own limit is a little higher, because of what compression adds to the wire length.
        if self._judge(self._session.completed(len(message))):
            if not self._message_is_binary:
                self._incoming.take_message(bytes(message))
            elif (take := self._connection.receive_binary) is not None:
                take(bytes(message))

    # -- frames out

    def send(self, payloads: list[bytes]) -> None:
        """Send text messages, in one piece."""
        if self.state == OPEN:
            self.outgoing.send(payloads)

    def reply(self, replies: list[bytes]) -> None:
        """Send what the client has asked for, in one piece."""
        if self.state != OPEN:
            return
        if len(replies[0]) > SMALL:
            # Its user's memory is asked for the next one before this turn is over.
            self.outgoing.reply_at_once(replies)
        else:
            self.outgoing.reply(replies)

    def reply_in_pieces(self, reply: Pieces) -> None:
        """Send the client a long answer to what it has asked for."""
        if self.state == OPEN:
            self.outgoing.reply_in_pieces(reply)

    def has_room(self, size: int) -> bool:
        """Whether an answer of that size may be sent, and wait where it has to."""
        return self._session is None or self._session.has_room(size, self.outgoing.blocked)

    def send_frames(self, data: bytes) -> None:
        """Send frames that have been built for many clients."""
        if self.state == OPEN:
            self.outgoing.send_frames(data)

    @property
    def is_blocked(self) -> bool:
        """Whether the client does not take what it has been sent."""
        return self._session is not None and self.outgoing.blocked

    @property
    def queued(self) -> int:
        """Bytes that wait for this client, those that its transport holds included."""
        return 0 if self._session is None else self.outgoing.waiting

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Send what Autobahn makes by itself (pongs, close frames) in its turn, like the rest."""
        if self._session is None:
            self.transport.write(data)
        else:
            self.outgoing.send_frames(data)

    def tick(self) -> None:
        """Ping, or hang up on a client that has said nothing since the last ping; called every ping interval."""
        # Of a client that is not read from no pong can be heard; its stall is timed already. One that is slowed has
        # said more than was looked at.
        session, incoming = self._session, self._incoming
        if session is None:
            return
        if incoming.is_late():
            self.obey(session.crowded)
        if incoming.is_slowed or incoming.is_paused_for(OUTPUT | CROWD):
            return
        if self.state == OPEN:
            if self._judge(session.pinged(bytes_acknowledged(self.transport), bytes_unacknowledged(self.transport))):
                self.outgoing.watch()
                self.sendPing()

    def output_blocked(self) -> None:
        """Read nothing from a client that does not take what it is sent: its replies would only pile up."""
        self._incoming.pause(OUTPUT)

    def output_drained(self) -> None:
        """Read again: the client has taken everything."""
        self._incoming.resume(OUTPUT)
        if self._connection is not None:
            self._connection.drained()

    # -- closing

    def _judge(self, ending: Ending | None) -> bool:
        """Do as the session says; returns whether the connection goes on."""
        if ending is not None:
            self.obey(ending)
        return ending is None

    def obey(self, ending: Ending) -> None:
        """End the connection in this way."""
        if ending.code is None:
            self.drop(ending.cause)
            return
        if ending.at_once:
            self.drop_reason = self.drop_reason or ending.cause
            self.outgoing.discard()
        self.close(ending.code, ending.reason)
        if ending.at_once:
            self._incoming.refuse()

    def close(self, code: int, reason: str = "") -> None:
        """Begin the closing handshake; nothing the client sends from now on is answered."""
        if self.state == OPEN:
            self.sendCloseFrame(int(code), close_reason(reason))

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Say goodbye, or answer one; a peer that does not answer in time is cut off (RFC 6455 section 7.1.1)."""
        if self.state != OPEN:
            return
        if not isReply and not self.drop_reason:
            self.drop_reason = f"close_{code}"
        if not isReply and not self.takes_messages and code in FAULTS:
            # A fault that Autobahn has found, in the server's own words.
            reasonUtf8 = close_reason(FAULTS[code])
        super().sendCloseFrame(code, reasonUtf8, isReply)
        # Nobody needs the beginning of a message that is not whole any more.
        self._message = None
        if self._session is not None:
            self._session.said_goodbye()
        self._leave()
        self._arm_abort()

    def dropConnection(self, abort: bool = False) -> None:
        """End the TCP connection; called by Autobahn when the closing handshake is over."""
        super().dropConnection(abort)
        if not self._lost and not abort:
            self._arm_abort()

    def unregisterProducer(self) -> None:
        """Let the transport flush, then close; called by Autobahn before it hangs up."""
        if self._session is not None and not self._lost:
            super().unregisterProducer()

    @property
    def is_closing(self) -> bool:
        """Whether a goodbye has been said that is not answered, or not flushed."""
        if self._exchange is not None:
            return self._exchange.is_closing
        return bool(self.state == CLOSING)

    def forked(self) -> None:
        """Close the copy of the socket that a forked child has."""
        close_copy(self.transport)

    def abandon(self) -> None:
        """Cut the connection off; nobody is owed a goodbye any more."""
        self.drop("shutdown")

    def drop(self, cause: str) -> None:
        """Cut the connection off, and count why; also what the timer of a goodbye calls."""
        self.drop_reason = self.drop_reason or cause
        if not self._lost:
            self.transport.abortConnection()

    def cut_off(self, cause: str) -> None:
        """Cut the connection off, from within no call of its own: its socket is closed when this returns."""
        self.drop(cause)
        end_at_once(self.transport)

    def _arm_abort(self) -> None:
        self._cancel_timer()
        self._timer = self.factory.clock.callLater(CLOSING_TIME, self.drop, "close_timeout")

    def _cancel_timer(self) -> None:
        # One that has fired has this as its function still, and would wait with it for the garbage collector.
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._incoming.dismiss()
            self.factory.closed(connection)
