"""The connection of one client: messages in, replies out.

It knows nothing of frames or sockets. A transport carries its messages; the same code is driven by
Autobahn's protocol in production and by plain calls in tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from sys import intern
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.reflect import safe_str

from zcomm.bifrost.dispatch import Dispatcher, ping
from zcomm.bifrost.messages import (
    MAX_BROADCAST,
    MAX_KEY,
    code_of,
    encode_broadcast,
    encode_error,
    encode_notice,
    encode_reply,
    encode_text,
    encode_written,
    read,
    request_id_of,
)
from zcomm.bifrost.session import SMALL
from zcomm.budget.account import Account
from zcomm.budget.budgets import Budgets
from zcomm.budget.memory import Hold
from zcomm.budget.notices import Notices
from zcomm.budget.written import Pieces, Written
from zcomm.errors import CommandError, CommandTimeout, InternalError, PermissionDenied, TooBusy
from zcomm.interfaces import Audience, Broadcast, Identity, IEngine, Outcome, Permissions, Request, owner_of
from zcomm.runtime.deferreds import Unfinished, awaited, caught, is_cancellation, later
from zcomm.runtime.logthrottle import Throttle, place_of
from zcomm.topics.subscriber import Subscriber
from zcomm.wire.autobahn import HookRefusing
from zcomm.wire.closecodes import require_sendable
from zcomm.wire.fanout import Recipient
from zcomm.wire.frames import depth_within
from zcomm.wire.incoming import TURN

__all__ = ["Connection", "ServerState", "Transport"]

#: The key of answers to prompts. They are taken from a client that has all its commands running too: those may be
#: what waits for them.
ANSWER = "zAnswer"
#: Bytes of answers after which the rest of what came together waits, so that a client which does not take what it is
#: sent is asked for no more.
AT_ONCE = 256 * 1024
#: Seconds that a read waits for room for its answer, and the result of a thread for its own.
ROOM_TIMEOUT = 10.0
#: Seconds that it takes, more or less, to find out that a tiny message is none.
REFUSAL = 1e-5
#: Results that are not waited for, which is most of them.
_PLAIN = frozenset({bool, dict, float, int, list, str, type(None)})


class Follower(Protocol):
    """The side of live queries of a connection."""

    def drained(self) -> None:
        """Go on with what waits for the client, which has taken all that it was sent."""

    def lost(self) -> None:
        """Forget the client, which is gone."""


class Transport(Recipient, Protocol):
    """The way between a connection and its client."""

    def send(self, payloads: list[bytes]) -> None:
        """Queue text messages: as many as may wait, or the connection ends."""

    def reply(self, replies: list[bytes]) -> None:
        """Queue what the client has asked for, however much waits."""

    def reply_in_pieces(self, reply: Pieces) -> None:
        """Queue a long answer, however much waits."""

    def has_room(self, size: int) -> bool:
        """Whether its user has room for an answer of that size, which may have to wait."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""

    def tick(self) -> None:
        """Ping the client, or drop it where it left the last ping unanswered; called every ping interval."""

    def abandon(self) -> None:
        """Cut it off without a closing handshake."""

    #: Whether the client is on this machine, with no proxy between.
    is_local: bool

    @property
    def local_address(self) -> str:
        """The address it came in on; empty where it has none."""

    @property
    def queued(self) -> int:
        """Bytes that wait for the client."""

    @property
    def is_blocked(self) -> bool:
        """Whether the client does not take what it has been sent."""


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The state that all connections of a server share.

    :ivar engine: carries what others hear of.
    :ivar budgets: the accounts of users.
    :ivar broadcast: ``changes``, ``all`` or ``none`` (which results others hear of).
    :ivar in_flight: commands one client may have running.
    :ivar timeout: seconds a command may take.
    :ivar max_depth: levels of nesting a message may have.
    :ivar commands: messages received so far.
    :ivar errors: errors answered so far, by code.
    :ivar notices: tells others of what is too much to be told in full.
    :ivar is_ending: whether the program ends what serves, and with it what it runs for commands: the server is about to
        stop, and commands that fail have no answer but the 1001 that everybody gets.
    """

    dispatcher: Dispatcher
    engine: IEngine
    clock: IReactorTime
    budgets: Budgets
    broadcast: str = "changes"
    in_flight: int = 64
    timeout: float = 30.0
    max_depth: int = 64
    commands: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    is_ending: Callable[[], bool] = lambda: False
    notices: Notices = field(init=False)
    _denied: Throttle = field(init=False)
    _failures: Throttle = field(init=False)

    _log = Logger()

    def __post_init__(self) -> None:
        self.notices = Notices(self.clock, self.engine.tell)
        self._denied = Throttle(self.clock.seconds)
        self._failures = Throttle(self.clock.seconds)

    def denied(self, client: Connection, request: Request) -> None:
        """Log a command that its client may not use: the user, the address and the command, without arguments."""
        self._denied.log(
            self._log.warn,
            client.account.owner,
            "{name!r} ({role}) at {peer} may not {command!r}",
            name=client.identity.name,
            role=client.identity.role,
            peer=client.peer,
            command=_named(request),
        )

    def failed(self, client: Connection, request: Request | None, failure: Failure) -> None:
        """Log a command that failed in a way nobody declared, with its traceback: once a second for each place in the
        code, however often clients make it fail."""
        self._failures.log_failure(
            self._log.failure,
            "command {key!r} of {client} failed",
            failure,
            source=client.account.owner,
            key=request.key[:80] if request else "",
            client=client,
        )

    def failed_unseen(self, client: Connection, request: Request | None) -> None:
        """Log a command that failed with what cannot be shown."""
        self._failures.log(
            self._log.error,
            "unseen",
            "command {key!r} failed with what cannot be shown",
            source=client.account.owner,
            key=request.key[:80] if request else "",
        )

    def unserved(self, client: Connection, request: Request | None, error: CommandError) -> None:
        """Log a command that is answered with ``internal`` and some text, which promises that the log has the cause:
        once a second for each place in the code and each kind of command, however often clients make it fail."""
        cause = error.__cause__
        self._failures.log(
            self._log.error,
            (place_of(Failure(error)), type(cause), None if request is None else self._kind(request)),
            "command {command!r} of {client} is answered with internal: {reason}{why}",
            source=client.account.owner,
            command="" if request is None else _named(request),
            client=client,
            reason=safe_str(error)[:200],
            why="" if cause is None else f" ({type(cause).__name__}: {safe_str(cause)[:200]})",
        )

    def _kind(self, request: Request) -> str:
        """The command, in as many forms as the server has commands: clients can make up no others."""
        if request.key in self.dispatcher.commands:
            return request.key
        named = _named(request).replace(" ", "")
        return named if named.startswith("zFunc(") else request.key.partition("(")[0].partition("_")[0]

    @property
    def is_heard(self) -> bool:
        """Whether somebody may hear of a change beside who makes it."""
        return self.broadcast != "none" and self.engine.clients > 1

    def announce(self, request: Request, outcome: Outcome, sender: Connection, size: int) -> None:
        """Tell the others of a successful command, as the broadcast mode has it (docs/protocol.rst, "Broadcasts").

        It never raises: the command is done, and its caller gets the result whoever else hears of it.

        :param size: bytes of its reply, which are nearly those of its broadcast.
        """
        if self.broadcast == "none" or outcome.repeated or not (outcome.changed or self.broadcast == "all"):
            return
        # A sender that has left meanwhile is no longer among those the engine counts.
        if self.engine.clients <= sender.is_lasting:
            return
        try:
            audience = outcome.audience
            if audience is None:
                audience = self.dispatcher.audience_of(request)
                if audience is None:
                    return
            # What is far too large is not written only to be measured.
            if outcome.is_known and size <= MAX_BROADCAST + MAX_KEY:
                payload = encode_broadcast(_told_key(request.key), outcome.result, outcome.announcement, outcome.told)
                if len(payload) <= MAX_BROADCAST and sender.account.broadcast.take(len(payload)):
                    self.engine.tell(Broadcast(payload, audience, sender, is_result=True))
                    return
            # Arguments in a key would make each notice another one.
            key = request.key if request.key in self.dispatcher.commands else request.key.partition("(")[0]
            if audience.rows is not None:
                # They are told of together with others of the model.
                audience = Audience(audience.kind, audience.name)
            self.notices.say(sender.account, encode_notice(key, outcome.announcement), audience, sender, size)
        except BaseException:
            self._failures.log_failure(
                self._log.failure,
                "the result of {key!r} could not be told to the others",
                Failure(),
                cause="told",
                key=request.key[:80],
            )


class Connection(metaclass=HookRefusing):
    """An admitted client; provides :class:`zcomm.interfaces.Client`.

    A subclass that is given as ``zBifrost(connection=…)`` and overrides :meth:`receive` answers messages that are
    no commands. Frames, limits, admission and goodbyes stay what they are. A hook of Autobahn's, such as ``onMessage``,
    which nothing would call, is refused by a TypeError, in a subclass and wherever else it is put.

    :ivar transport: what carries the messages: the protocol, an Autobahn ``WebSocketServerProtocol``; ``None`` once
        the client is gone.
    :ivar id: its number at the server; 0 for a call over HTTP, which is nobody's connection.
    """

    #: Takes one binary message; a method of subclasses, which must not raise either. As long as there is none, a
    #: binary message ends its connection with 1003, where it begins.
    receive_binary: Callable[[bytes], None] | None = None

    __slots__ = (
        "_commands",
        "_place",
        "_running",
        "_state",
        "account",
        "host",
        "id",
        "identity",
        "left",
        "live",
        "on_lost",
        "origin",
        "peer",
        "prompts",
        "subscriber",
        "transport",
    )

    _log = Logger()

    def __init__(
        self,
        transport: Transport,
        state: ServerState,
        identity: Identity,
        peer: str,
        number: int,
        host: str = "",
        origin: str | None = None,
    ):
        self.transport: Transport | None = transport
        self._state = state
        self._commands = state.dispatcher.commands
        # Keys alone: an empty dictionary is a third of an empty set.
        self._running: dict[Deferred[Any], None] = {}
        self.id = number
        self.identity = identity
        self.peer = peer
        #: What its user has taken of what all share.
        self.account: Account = state.budgets.join(owner_of(self))
        #: The name it knows the server by, and the page it runs in; ``None`` for a program. Most clients have the same.
        self.host = intern(host)
        self.origin = None if origin is None else intern(origin)
        #: The messages that :meth:`receive` has left, which come again in another turn.
        self.left: list[bytes] = []
        self._place = ""
        #: Called with the client, once each, when it is gone.
        self.on_lost: list[Callable[[Connection], None]] = []
        #: The ids of the prompts that it has been shown and has not answered.
        self.prompts: dict[str, None] = {}
        #: What it has to do with topics, if anything.
        self.subscriber: Subscriber | None = None
        #: What it has to do with live queries, if anything.
        self.live: Follower | None = None

    def __repr__(self) -> str:
        return f"<client {self.id} {self.identity.name!r} at {self.peer}>"

    @property
    def is_lasting(self) -> bool:
        """Whether it can be told more than the answers to what it asks: it is connected, and no call over HTTP."""
        return self.id > 0 and self.transport is not None

    @property
    def place(self) -> str:
        """The page zLink took it to last; empty at first."""
        return self._place

    def visited(self, path: str) -> None:
        """Remember that the client is at the page ``path`` from now on."""
        self._place = path

    @property
    def permissions(self) -> Permissions:
        """Those of its server."""
        return self._state.dispatcher.permissions

    @property
    def running(self) -> int:
        """The number of its commands that have not been answered yet."""
        return len(self._running)

    def receive(self, payloads: list[bytes]) -> list[bytes]:
        """Answer what arrived together; returns the replies that are ready, in order.

        It never raises for what a peer sent. Where those that take long have had the time of a turn, or there are
        many bytes to send, the rest is :attr:`left`.

        :param payloads: text messages: UTF-8, within the limit of a message.
        """
        replies = []
        state = self._state
        commands, limit, depth = self._commands, state.in_flight, state.max_depth
        all_are_told = state.broadcast == "all"
        # The shape of a message that is known to take little time, unless others hear of it.
        cheap = 0 if all_are_told else 1
        account = self.account
        if account.held > state.budgets.memory.most:
            # Its connections do not take what they have asked for: nothing more is run for it until they do.
            limit = 0
        elif account.running >= account.may_run:
            limit = 0
        size, until = 0, 0.0
        state.commands += len(payloads)
        waiting = iter(payloads)
        for payload in waiting:
            request = None
            reply: bytes | Pieces | None
            # When what is not known to take little time has begun.
            shape = depth_within(payload, depth)
            begun = perf_counter() if shape > cheap else 0.0
            try:
                request = read(payload, shape, depth)
                if len(self._running) >= limit and request.key != ANSWER:
                    raise self._too_many(limit)
                # Most of what is asked for is registered, and needs no search: a call less for each request.
                respond = commands.get(request.key) or state.dispatcher.find(request)
                if respond is ping and shape <= cheap:
                    # Its answer is here already. Whatever else is asked for is measured.
                    replies.append(encode_reply(request.request_id, request.horizontal))
                    continue
                begun = begun or perf_counter()
                result = respond(request, self)
                kind = type(result)
                if kind in _PLAIN:
                    reply = encode_reply(request.request_id, result)
                    if all_are_told:
                        state.announce(request, Outcome(result), self, len(reply))
                elif isinstance(result, Outcome):
                    reply = self._settled(request, result)
                elif isinstance(result := awaited(result), Deferred):
                    reply = self._answer_later(request, result)
                else:
                    reply = encode_reply(request.request_id, result)
                    if all_are_told:
                        state.announce(request, Outcome(result), self, len(reply))
            except CommandError as error:
                begun = begun or perf_counter() - REFUSAL
                reply = self._error(request.request_id if request else request_id_of(payload), error, request)
            except BaseException:
                # Whatever a command raises, SystemExit included, ends that command and nothing else.
                begun = begun or perf_counter()
                reply = self._failed(request, caught())
            if self.transport is None:
                break
            if reply is not None:
                if len(reply) <= SMALL and isinstance(reply, bytes):
                    replies.append(reply)
                else:
                    # What its client does not take is of its user's memory, before another one is made.
                    if replies:
                        self.transport.reply(replies)
                        replies = []
                    self._deliver(request, reply, self.transport)
                    if self.transport is None:
                        break
                size += len(reply)
            now = perf_counter()
            account.spend(begun, now)
            until = until or begun + TURN
            if now > until or account.is_spent or size > AT_ONCE:
                self.left = list(waiting)
                state.commands -= len(self.left)
                break
        return replies

    def _too_many(self, limit: int) -> TooBusy:
        if limit:
            return TooBusy(f"Too many requests in flight: at most {limit}")
        if self.account.running >= (most := self.account.may_run):
            return self.account.refuse(f"Too many requests in flight on all your connections: at most {most}")
        return self.account.refuse("Too many answers wait for you to read them, on all your connections")

    def _answer_later(
        self, request: Request, deferred: Deferred[Any], waits_for_room: bool = True
    ) -> bytes | Pieces | None:
        """The reply where ``deferred`` has fired already; otherwise ``None``, and the reply follows.

        :param waits_for_room: whether a read may be repeated for want of room.
        """
        ready: list[bytes | Pieces] = []
        waiting = is_late = is_answered = is_over = False
        expiry: IDelayedCall | None = None

        # It gets itself: a name of its own in here would keep the request until the garbage is collected.
        def expire(again: Callable[..., None]) -> None:
            nonlocal expiry, is_late, is_answered
            expiry = None
            if self.prompts:
                # While a person is asked, the prompt's own time counts.
                expiry = self._state.clock.callLater(self._state.timeout, again, again)
                return
            is_late = True
            deferred.cancel()
            if deferred in self._running:
                # It goes on all the same; whoever waits is told.
                done(Failure(CancelledError()))
                is_answered = True

        def done(result: Any) -> Deferred[None] | None:
            nonlocal is_over
            if is_answered:
                self._done_late(result, request)
                return None
            is_over = True
            # What is ready at once is part of what is measured already.
            begun = perf_counter() if waiting else 0.0
            self._running.pop(deferred, None)
            self.account.running -= waiting
            reply: bytes | Pieces
            if expiry is not None:
                expiry.cancel()
            if isinstance(result, Failure):
                if self._state.is_ending() and not result.check(CommandError):
                    if not is_cancellation(result):
                        self._failed(request, result)
                    return None
                if (outcome := later(result)) is not None:
                    outcome.addBoth(self._done_late, request)
                reply = self._failed(request, result, is_late)
            else:
                try:
                    reply = self._settled(request, result)
                except BaseException:
                    # A value may raise what it likes when it is written.
                    reply = self._failed(request, caught())
            kept: Deferred[None] | None = None
            if not waiting:
                _release(result)
                ready.append(reply)
            elif (transport := self.transport) is not None:
                value = _written_of(result)
                if value is None or value.hold is None:
                    # A thread made it that makes no other until it is taken.
                    is_kept = value is not None
                    kept = self._deliver(request, reply, transport, waits_for_room, is_kept)
                else:
                    with value.hold.handed_over():
                        self._deliver(request, reply, transport, waits_for_room)
            else:
                _release(result)
            if begun:
                self.account.spend(begun, perf_counter())
            return kept

        deferred.addBoth(done)
        if is_over:
            return ready[0] if ready else None
        self._state.budgets.askers.ask(self.account.owner)
        # One that has fired may wait all the same, for another that a callback returned.
        self._running[deferred] = None
        self.account.running += 1
        expiry = self._state.clock.callLater(self._state.timeout, expire, expire)
        waiting = True
        return None

    def _deliver(
        self,
        request: Request | None,
        reply: bytes | Pieces,
        transport: Transport,
        waits_for_room: bool = True,
        is_kept: bool = False,
    ) -> Deferred[None] | None:
        """Send ``reply``, where it may wait behind what the client has not taken yet.

        :param waits_for_room: whether a read may be repeated for want of room.
        :param is_kept: whether the reply of another command may be kept until there is room.
        :returns: where it is kept, a Deferred that fires when it no longer is.
        """
        size = len(reply)
        if not transport.has_room(size):
            again = request is not None and self._state.dispatcher.only_reads(request)
            if request is not None and again and waits_for_room and size > SMALL:
                if self._read_again(request, size):
                    return None
            elif request is not None and is_kept and (kept := self._keep(request, reply)) is not None:
                return kept
            reply = self._error(None if request is None else request.request_id, _unsent(size, again))
        _send(transport, reply)
        return None

    def _keep(self, request: Request, reply: bytes | Pieces) -> Deferred[None] | None:
        """Send ``reply`` when there is room for it, of a command that has run.

        :returns: a Deferred that fires when that is done, or when it was too late; ``None`` where its user has as much
            waiting as it may have.
        """
        memory, account, size = self._state.budgets.memory, self.account, len(reply)
        if account.kept + size > memory.total // 2:
            return None
        account.kept += size
        waiting = memory.when(account, size)
        # Whoever leaves waits no longer, and it counts as in flight.
        self._running[waiting] = None

        def settle(result: Any) -> None:
            account.kept -= size
            self._running.pop(waiting, None)
            hold = Hold(memory, account, 0 if isinstance(result, Failure) else size, lambda call: call())
            with hold.handed_over():
                if self.transport is not None:
                    self._deliver(request, reply, self.transport, False)

        return waiting.addTimeout(ROOM_TIMEOUT, self._state.clock).addBoth(settle)

    def _read_again(self, request: Request, size: int) -> bool:
        """Repeat a read when there is room for its answer of ``size`` bytes, which is forgotten until then.

        :returns: whether there is ever that much.
        """
        memory, account, refused = self._state.budgets.memory, self.account, _unsent(size, True)
        # Of its next answer, which may have grown.
        size += size // 8
        if size > memory.total // 2:
            return False

        def read(_: None) -> Deferred[Any]:
            # In a turn of its own: one that is refused at once makes room for the next, and so on.
            return deferLater(self._state.clock, 0, respond).addBoth(held)

        def respond() -> Any:
            return awaited(self._state.dispatcher.find(request)(request, self))

        def held(result: Any) -> Any:
            value = _written_of(result)
            if value is None or value.hold is not None:
                memory.release(account, size)
            else:
                value.hold = Hold(memory, account, size, lambda call: call())
            return result

        waiting = memory.when(account, size).addTimeout(ROOM_TIMEOUT, self._state.clock, lambda *_: Failure(refused))
        reply = self._answer_later(request, waiting.addCallback(read), False)
        if reply is not None and self.transport is not None:
            _send(self.transport, reply)
        return True

    def _settled(self, request: Request, result: Any) -> bytes | Pieces:
        """The reply for ``result``; its audience is told."""
        outcome = result if isinstance(result, Outcome) else Outcome(result)
        value = outcome.result
        if isinstance(value, Written):
            reply = encode_written(request.request_id, value)
        else:
            reply = encode_reply(request.request_id, value)
        self._state.announce(request, outcome, self, len(reply))
        return reply

    def _done_late(self, result: Any, request: Request) -> None:
        """Tell the others of a change that was made after its command was answered, or after its client had left; or
        that was answered with an error, because no answer could be made of it."""
        if isinstance(result, Outcome) and result.changed and not self._state.is_ending():
            begun = perf_counter()
            try:
                self._settled(request, result)
            except BaseException:
                self._failed(request, caught())
            self.account.spend(begun, perf_counter())
        _release(result)

    def _failed(self, request: Request | None, failure: Failure, is_late: bool = False) -> bytes:
        """The error for ``failure``: its own words where it is declared, a fixed text where it is not.

        :param is_late: whether the command was cancelled because its time was over.
        """
        request_id = None if request is None else request.request_id
        kind, error = type(failure.value), failure.value
        # Its own word for its type is not asked for: that may raise.
        if issubclass(kind, CommandError) and isinstance(error, CommandError):
            return self._error(request_id, error, request)
        if self.transport is None and issubclass(kind, CancelledError):
            # It has ended because its client has left: nobody is told anything.
            return b""
        if is_late and issubclass(kind, CancelledError):
            late = CommandTimeout(f"The command did not end within {self._state.timeout:g} s")
            if issubclass(kind, Unfinished):
                late = CommandTimeout(f"{late}; the change may have been made all the same: look before trying again")
                late.retryable = False
            return self._error(request_id, late)
        try:
            self._state.failed(self, request, failure)
        except BaseException:
            # An exception may raise another where it is shown.
            self._state.failed_unseen(self, request)
        return self._told(request_id, InternalError())

    def _error(self, request_id: int | str | None, error: CommandError, request: Request | None = None) -> bytes:
        if code_of(error) == InternalError.code:
            self._state.unserved(self, request, error)
        elif isinstance(error, PermissionDenied) and request is not None:
            self._state.denied(self, request)
        return self._told(request_id, error, request)

    def _told(self, request_id: int | str | None, error: CommandError, request: Request | None = None) -> bytes:
        """The message of ``error``, which counts where somebody is there to get it."""
        if self.transport is not None:
            errors = self._state.errors
            code = code_of(error)
            errors[code] = errors.get(code, 0) + 1
        return encode_error(request_id, error, partial(self._state.unserved, self, request))

    def send_payloads(self, payloads: list[bytes]) -> None:
        """Queue messages that are encoded already; nothing happens once the client is gone."""
        if self.transport is not None:
            self.transport.send(payloads)

    def send(self, message: Any) -> None:
        """Queue ``message`` for this client alone: a ``str`` as it is, anything else as JSON."""
        self.send_payloads([encode_text(message)])

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake.

        :param code: one that may be sent: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
        :param reason: cut to the 123 bytes of UTF-8 that a close frame has room for.
        :raises TypeError: for a ``code`` that is no ``int``, or a ``reason`` that is no ``str``.
        :raises ValueError: for any other ``code``.
        """
        require_sendable(code, reason)
        if self.transport is not None:
            self.transport.close(code, reason)

    def drained(self) -> None:
        """Go on with what topics and live queries have for it: it has taken all that waited."""
        if self.subscriber is not None:
            self.subscriber.drained()
        if self.live is not None:
            self.live.drained()

    def lost(self) -> None:
        """Cancel its running commands and call :attr:`on_lost`; called once, when the client is gone."""
        self.transport = None
        begun = perf_counter()
        if self.subscriber is not None:
            self.subscriber.lost()
        if self.live is not None:
            self.live.lost()
        self._state.budgets.leave(self.account)
        for deferred in list(self._running):
            deferred.cancel()
        listeners, self.on_lost = self.on_lost, []
        for listener in listeners:
            listener(self)
        # The ends of its user's other connections wait for their turn, like all that is read from them.
        self.account.spend(begun, perf_counter())


def _send(transport: Transport, reply: bytes | Pieces) -> None:
    if isinstance(reply, bytes):
        transport.reply([reply])
    else:
        transport.reply_in_pieces(reply)


def _written_of(result: Any) -> Written | None:
    """The JSON of ``result``, where it is that."""
    value = result.result if isinstance(result, Outcome) else result
    return value if isinstance(value, Written) else None


def _release(result: Any) -> None:
    """Hold no more memory for ``result``, which nobody wants."""
    value = _written_of(result)
    if value is not None and value.hold is not None:
        value.hold.release()


def _unsent(size: int, again: bool) -> TooBusy:
    """The error in the place of an answer that has no room to wait: a write of that command has happened.

    :param again: whether it did no more than read.
    """
    what = f"Too many answers wait for you to read them, so that this one of {size} bytes is not sent"
    error = TooBusy(f"{what}; {'try again' if again else 'the command has run'}, and ask for less at once")
    error.retryable = again
    return error


def _told_key(key: str) -> str:
    """The key as others hear of it: without the arguments of a function, which are the caller's."""
    name, comma, _ = key.partition(",")
    return f"{name.rstrip()})" if comma and key.startswith("zFunc(") else key


def _named(request: Request) -> str:
    """The command without its arguments, which may be secrets: ``create_Users``, ``zFunc(total)``."""
    form = request.horizontal if isinstance(request.horizontal, str) else request.key
    if isinstance(request.horizontal, dict):
        if request.key in ("zFunc", "zOpen"):
            return f"{request.key}({request.horizontal.get('name')})"[:80]
        if request.key in ("zSubscribe", "zPublish", "zHistory", "zPresence"):
            return f"{request.key}({request.horizontal.get('topic')})"[:80]
        if request.key == "zLive":
            return f"{request.key}({request.horizontal.get('model')})"[:80]
    name, parenthesis, rest = form.partition("(")
    if not parenthesis or not request.key.startswith(name):
        return request.key.partition("(")[0][:80]
    return f"{name}({rest.partition(',')[0].rstrip(') ')})"[:80]
