"""Commands over HTTP: ``POST /call`` and ``POST /publish``, for programs without a client (docs/protocol.rst, "HTTP").

A request is judged by its head: host, page, type, length, token, in this order. What is refused is not read, only let
pass. What is let in is a client of its server for the time of one command, with all limits of its user; it hears of
nothing but the answer.

A foreign page gets no further than its origin. Beside that no page can send such a request without asking first
(``Content-Type: application/json``, ``Authorization``), and who asks is answered 405.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
from twisted.internet.defer import Deferred, succeed

from zcomm.bifrost.connection import ROOM_TIMEOUT, Connection
from zcomm.bifrost.factory import BifrostFactory
from zcomm.bifrost.handshake import Head, bearer_tokens, http_head, http_response
from zcomm.bifrost.messages import encode_error
from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.bifrost.registry import user_of
from zcomm.bifrost.server import zBifrost
from zcomm.bifrost.session import REFUSED
from zcomm.budget.memory import Hold, Memory
from zcomm.budget.written import Pieces
from zcomm.errors import (
    BadMessage,
    CommandError,
    CommandTimeout,
    HandshakeRefused,
    PermissionDenied,
    TooBusy,
    Unavailable,
)
from zcomm.interfaces import ANONYMOUS, Identity
from zcomm.web.exchange import Sender
from zcomm.wire.closecodes import CloseCode

if TYPE_CHECKING:
    from zcomm.bifrost.protocol import BifrostProtocol

__all__ = ["Calls"]

#: The status of an answer by the code of its error; 200 where it has none.
STATUSES = {
    "bad_message": 400,
    "unknown_field": 400,
    "invalid": 400,
    "permission_denied": 403,
    "unknown_command": 404,
    "unknown_model": 404,
    "not_found": 404,
    "conflict": 409,
    "too_busy": 429,
    "internal": 500,
    "unavailable": 503,
    "timeout": 504,
}
#: Of a code of the program's own: whether it may succeed later decides.
OTHER, OTHER_LATER = 400, 503
#: Seconds that the reactor takes for a request, more or less, beside its command.
REQUEST = 1e-4
#: Bytes a second that a body brings at least, after the time that a handshake has.
SLOWEST = 16 * 1024
#: Bytes that may follow a body, which nobody looks at.
BEYOND = 64 * 1024
#: Seconds for which a body that nobody wants is let pass, so that its sender reads the answer, and bytes.
LINGER, LINGER_BYTES = 2.0, 4 * 1024 * 1024
#: Users whose rate is remembered.
USERS = 10_000

_HEADERS = (
    ("Content-Type", "application/json"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Told(msgspec.Struct):
    """What an answer says of itself."""

    code: str = ""
    retryable: bool = False


_read_told = msgspec.json.Decoder(_Told).decode
_read_raw = msgspec.json.Decoder(msgspec.Raw).decode


class _Bodies:
    """The bodies of one user that have not come yet, as :class:`~zcomm.budget.memory.Memory` counts them.

    They have a memory of their own: answers are not refused for want of what questions take.

    :ivar held: their bytes.
    """

    __slots__ = ("__weakref__", "held")

    def __init__(self) -> None:
        self.held = 0


class _Refused(Exception):
    """A request that is answered by its head.

    :ivar status: of the response.
    :ivar error: its body.
    """

    def __init__(self, status: int, error: CommandError, headers: tuple[tuple[str, str], ...] = ()):
        super().__init__(status)
        self.status = status
        self.error = error
        self.headers = headers


class Calls:
    """Answers what is posted; given to a :class:`~zcomm.web.pages.WebPages`."""

    def __init__(self) -> None:
        self._rates: OrderedDict[Hashable, TokenBucket] = OrderedDict()
        #: The memory of bodies, made with the first; and who has some, as long as anybody has.
        self._bodies: Memory | None = None
        self._senders: WeakValueDictionary[Hashable, _Bodies] = WeakValueDictionary()

    def __call__(self, bifrost: zBifrost, head: Head, peer: str, is_local: bool, local_address: str) -> Deferred[Any]:
        """Fires with what goes on with the connection."""
        try:
            length = self._judge(bifrost, head, is_local, local_address)
        except _Refused as refused:
            in_chunks = b"transfer-encoding" in head.headers
            return succeed(_Refusal(refused, LINGER_BYTES if in_chunks else _length(head)))
        admission = bifrost.factory.admission

        def admit(identity: Identity) -> Sender:
            try:
                # The list of origins may be another one by now.
                _check_page(bifrost, head, is_local, local_address)
                self._check_user(bifrost, identity, peer)
            except _Refused as refused:
                bifrost.factory.not_admitted(identity)
                return _Refusal(refused, length)
            return _Call(bifrost.factory, identity, head, length, *self._memory_of(bifrost, identity, peer))

        if admission.checker is None:
            return succeed(admit(ANONYMOUS))
        # In the header alone: addresses are kept in logs and histories.
        identified = admission.identify(bearer_tokens(head._replace(query="")), peer)
        return identified.addCallbacks(admit, self._not_admitted, errbackArgs=(bifrost, head, peer, length))

    def _judge(self, bifrost: zBifrost, head: Head, is_local: bool, local_address: str) -> int:
        """The length of the body of a request that may be made from where it comes.

        :raises _Refused: for any other.
        """
        _check_page(bifrost, head, is_local, local_address)
        kind, _, parameter = head.text(b"content-type").lower().replace(" ", "").partition(";")
        if kind != "application/json" or parameter.replace('"', "") not in ("", "charset=utf-8", "charset=utf8"):
            raise _Refused(415, BadMessage("Send JSON, with Content-Type: application/json"))
        if head.text(b"content-encoding").lower() not in ("", "identity"):
            raise _Refused(415, BadMessage("Send the body as it is, without Content-Encoding"))
        if b"transfer-encoding" in head.headers or b"content-length" not in head.headers:
            raise _Refused(411, BadMessage("Say how long the body is, with Content-Length; it cannot come in chunks"))
        if head.text(b"expect").lower() not in ("", "100-continue"):
            raise _Refused(417, BadMessage("Expect nothing, or 100-continue"))
        limits, length = bifrost.factory.limits, _length(head)
        # More than half of the memory for results nobody gets.
        largest = min(limits.message_size, limits.results_size // 2)
        if length > largest:
            raise _Refused(413, BadMessage(f"The body has {length} bytes; at most {largest} are read"))
        return length

    def _check_user(self, bifrost: zBifrost, identity: Identity, peer: str) -> None:
        """Let a user have one call more.

        :raises _Refused: where it has as many as it may have.
        """
        factory = bifrost.factory
        try:
            factory.check_user_limit(identity, peer)
        except HandshakeRefused as refused:
            raise _Refused(429, TooBusy(refused.reason), _after(1)) from None
        if factory.is_full_for(identity):
            raise _Refused(503, Unavailable("Every connection is taken"), _after(5))
        if not self._rate_of(bifrost, identity, peer).spend(1):
            raise _Refused(429, TooBusy("Too many requests; try again in 1 s"), _after(1))

    def _memory_of(self, bifrost: zBifrost, identity: Identity, peer: str) -> tuple[Memory, _Bodies]:
        """The memory for bodies, and what of it is the user's."""
        if self._bodies is None:
            self._bodies = Memory(bifrost.factory.limits.results_size)
        user = user_of(identity, peer)
        sender = self._senders.get(user)
        if sender is None:
            sender = self._senders[user] = _Bodies()
        return self._bodies, sender

    def _rate_of(self, bifrost: zBifrost, identity: Identity, peer: str) -> TokenBucket:
        """The rate of a user, which is that of one connection: each request is one of its own."""
        user = user_of(identity, peer)
        rate = self._rates.get(user)
        if rate is None:
            limits = bifrost.factory.limits
            rate = self._rates[user] = TokenBucket(limits.frame_rate, limits.frame_burst, bifrost.factory.clock.seconds)
            if len(self._rates) > USERS:
                self._rates.popitem(last=False)
        self._rates.move_to_end(user)
        return rate

    def _not_admitted(self, failure: Any, bifrost: zBifrost, head: Head, peer: str, length: int) -> Sender:
        failure.trap(HandshakeRefused)
        refused: HandshakeRefused = failure.value
        bifrost.factory.refused(peer, refused.reason)
        if refused.close_code == CloseCode.TRY_AGAIN_LATER:
            return _Refusal(_Refused(429, TooBusy(refused.reason), _after(60)), length, True)
        if refused.close_code == CloseCode.INTERNAL_ERROR:
            return _Refusal(_Refused(503, Unavailable(refused.reason), _after(5)), length, True)
        text = refused.reason
        if refused.reason == "Authentication required":
            text += ": Authorization: Bearer <token>, in the header and nowhere else"
        return _Refusal(_Refused(401, PermissionDenied(text), (("WWW-Authenticate", "Bearer"),)), length, True)


def _check_page(bifrost: zBifrost, head: Head, is_local: bool, local_address: str) -> None:
    """Refuse a request that does not come from a page of an allowed origin, nor from a program that may call.

    :raises _Refused: for it.
    """
    admission, host = bifrost.factory.admission, head.text(b"host")
    if not admission.knows_host(host, local_address):
        raise _Refused(421, PermissionDenied("This server does not answer under that host name"))
    origin = head.text(b"origin") if b"origin" in head.headers else None
    if not admission.allows_page(origin, host, is_local, local_address):
        raise _Refused(403, PermissionDenied("Invalid origin"))


def _length(head: Head) -> int:
    return int(head.text(b"content-length") or 0)


def _after(seconds: int) -> tuple[tuple[str, str], ...]:
    return (("Retry-After", str(seconds)),)


class _Refusal(Sender):
    """Answers a request by its head, and lets its body pass: who is still sending it would not read the answer.

    :param length: bytes of the body.
    :param is_counted: whether the refusal was.
    """

    def __init__(self, refused: _Refused, length: int, is_counted: bool = False):
        self._refused = refused
        self._left = length
        self._is_counted = is_counted

    def begin(self, channel: BifrostProtocol, early: bytes) -> None:
        """Answer."""
        super().begin(channel, early)
        refused = self._refused
        # Who has no right token was counted already.
        channel.drop_reason = REFUSED if self._is_counted else f"http_{refused.status}"
        response = http_response(refused.status, encode_error(None, refused.error), (*_HEADERS, *refused.headers))
        self._outgoing.send_pieces([response])
        channel.factory.timeouts.set(self, LINGER, self.end)
        self._left = min(self._left, LINGER_BYTES)
        self.receive(early)

    def receive(self, data: bytes) -> None:
        """Let it pass."""
        self._left -= len(data)
        if self._left <= 0:
            self.end()

    def drained(self) -> None:
        """Wait for the rest of the body."""


class _Call(Sender):
    """One command: a body, then its answer, which it carries for a :class:`~zcomm.bifrost.connection.Connection`."""

    #: Nothing is broadcast to it.
    fd, window_bits, blocked = -1, 0, False

    def __init__(
        self, factory: BifrostFactory, identity: Identity, head: Head, length: int, memory: Memory, sender: _Bodies
    ):
        self._factory = factory
        self._memory = memory
        self._sender = sender
        self._identity = identity
        self._head = head
        self._left = length
        self._body: list[bytes] = []
        self._caller: Connection | None = None
        #: Bytes of it that count as arriving.
        self._arrived = 0
        #: The memory of the body, while it comes.
        self._hold: Hold | None = None
        self._room: Deferred[None] | None = None
        self._is_running = self._is_answered = False
        self.is_local = False
        self.local_address = ""

    # -- the request

    def begin(self, channel: BifrostProtocol, early: bytes) -> None:
        """Read the body, as soon as there is room for it."""
        super().begin(channel, early)
        self.is_local, self.local_address = channel.is_local, channel.local_address
        factory = self._factory
        self._caller = caller = factory.called(channel, self, self._identity, self._head)
        self._session.charges(factory.state.budgets.memory, caller.account)
        channel.belongs_to(caller.account)
        caller.account.busy += REQUEST
        if caller.account.busy >= caller.account.due:
            caller.account.over()
        self._count(len(early))
        if caller.account.arriving > caller.account.may_arrive:
            self._no_room(None, caller)
            return
        if len(early) >= self._left:
            self.receive(early)
            return
        channel.read_on(False)
        room = self._memory.when(self._sender, self._left)
        self._room = room.addTimeout(ROOM_TIMEOUT, factory.clock)
        self._room.addCallbacks(self._read, self._no_room, callbackArgs=(early, self._left), errbackArgs=(caller,))

    def _read(self, _: None, early: bytes, size: int) -> None:
        self._room = None
        self._count(0)
        channel, factory = self._channel, self._factory
        self._hold = Hold(self._memory, self._sender, size, lambda call: call())
        if channel is None or self._is_answered:
            self._hold.release()
            return
        factory.timeouts.set(self, factory.limits.handshake_timeout + size / SLOWEST, self._too_slow)
        channel.read_on(True)
        if not early and self._head.text(b"expect"):
            channel.transport.write(_CONTINUE)
        self.receive(early)

    def _no_room(self, _: Any, caller: Connection) -> None:
        self._room = None
        if self._channel is not None:
            self._count(0)
            self._fail(429, caller.account.refuse("Too many bytes of yours are on their way"), _after(1))

    def _too_slow(self) -> None:
        self._fail(408, CommandTimeout("The body did not come in time"))

    def receive(self, data: bytes) -> None:
        """Take bytes of the body; what comes beyond it is no request of anybody's."""
        if self._is_running or self._is_answered:
            self._left -= len(data)
            if self._left < -BEYOND and self._channel is not None:
                self._channel.drop("early_data")
            return
        self._body.append(data[: self._left])
        self._left -= len(data)
        caller = self._caller
        if self._left > 0 or caller is None:
            return
        self._is_running = True
        if caller.account.is_spent:
            caller.account.later(self._run)
        else:
            self._run()

    def _count(self, size: int) -> None:
        """Count the bytes of the body that there was no room for yet, which came with the head."""
        if self._caller is not None:
            is_less = size < self._arrived
            self._caller.account.arriving += size - self._arrived
            self._arrived = size
            if is_less:
                self._caller.account.make_way(None)

    def _run(self) -> None:
        self._count(0)
        caller, factory = self._caller, self._factory
        body, self._body = b"".join(self._body), []
        if self._hold is not None:
            self._hold.release()
        if self._channel is None or caller is None or self._is_answered:
            return
        if self._head.path == "/publish":
            try:
                _read_raw(body)
            except msgspec.DecodeError:
                self._fail(400, BadMessage("Invalid JSON"))
                return
            except RecursionError:
                # As is told of a message.
                most = factory.limits.json_depth
                self._fail(400, BadMessage(f"Too deep: at most {most} levels of nesting"))
                return
            # The key is the last, which counts, whatever stands before it.
            body = b'{"zHorizontal":%s,"zKey":"zPublish"}' % body
        # A connection of the program's own may answer nothing.
        factory.timeouts.set(self, factory.limits.command_timeout + 3 * ROOM_TIMEOUT, self._no_answer)
        replies = caller.receive([body])
        if replies:
            self.reply(replies)

    def _no_answer(self) -> None:
        self._fail(504, CommandTimeout("There was no answer"))

    # -- the answer

    def reply(self, replies: list[bytes]) -> None:
        """Send the answer; called by the caller's connection."""
        answer, status = replies[0], 200
        if not answer.startswith(b'{"result"'):
            try:
                told = _read_told(answer)
            except msgspec.DecodeError:
                told = _Told()
            if told.code:
                status = STATUSES.get(told.code, OTHER_LATER if told.retryable else OTHER)
        later = {429: _after(1), 503: _after(5)}.get(status, ())
        self._answer(status, (*_HEADERS, *later), [answer])

    def reply_in_pieces(self, reply: Pieces) -> None:
        """Send a long answer, which is a result."""
        self._answer(200, _HEADERS, reply.parts)

    def _fail(self, status: int, error: CommandError, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self._answer(status, (*_HEADERS, *headers), [encode_error(None, error)])

    def _answer(self, status: int, headers: tuple[tuple[str, str], ...], parts: list[bytes]) -> None:
        channel = self._channel
        if channel is None or self._is_answered:
            return
        self._is_answered = True
        self._factory.timeouts.clear(self)
        begin = http_head(status, sum(map(len, parts)), headers)
        first, *others = parts
        self._outgoing.send_pieces([begin + first, *others])
        self.end()

    def drained(self) -> None:
        """Nothing has been said yet that could have been taken, but that the body may come."""

    def has_room(self, size: int) -> bool:
        """Whether an answer of that size may be sent."""
        return self._session.has_room(size, self._outgoing.blocked)

    def close(self, code: int, reason: str) -> None:
        """Answer that there will be no answer; called for the caller's connection."""
        if code == CloseCode.POLICY_VIOLATION:
            self._fail(401, PermissionDenied(reason), (("WWW-Authenticate", "Bearer"),))
        else:
            what = "; the command may have been carried out all the same" if self._is_running else ""
            self._fail(503, Unavailable(f"{reason}{what}"), _after(5))

    def abandon(self) -> None:
        """Cut it off."""
        if self._channel is not None:
            self._channel.abandon()

    def send(self, payloads: list[bytes]) -> None:
        """Forget what is no answer: there is nobody to hear it."""

    def send_frames(self, data: bytes) -> None:
        """Forget it, as :meth:`send` does."""

    def tick(self) -> None:
        """Ping nobody."""

    @property
    def outgoing(self) -> _Call:
        """Itself: no frames leave here."""
        return self

    @property
    def queued(self) -> int:
        """Bytes that wait for the client."""
        return 0 if self._channel is None else self._outgoing.waiting

    @property
    def is_blocked(self) -> bool:
        """Whether the client does not take what it has been sent."""
        return self._channel is not None and self._outgoing.blocked

    def lost(self) -> None:
        """The connection has ended: what still runs for it is cancelled."""
        super().lost()
        self._count(0)
        if self._room is not None:
            self._room.cancel()
        if self._hold is not None:
            self._hold.release()
        if self._caller is None:
            self._factory.not_admitted(self._identity)
        else:
            self._factory.call_over(self._caller)
