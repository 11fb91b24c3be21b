"""Handshakes in progress: how many at a time, and the course of each (docs/protocol.rst, "Handshake").

At most so many are in progress, and a share of them by peer, so that a host that connects and says nothing locks nobody
out. Connections beyond that wait unread for a place: a thousand clients of one host that come back in the same second
all get in, one after the other. Nor do its own connections lock each other out: who says nothing in a place that others
wait for is back in the line in a moment.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import Enum
from secrets import randbelow
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from zcomm.bifrost.handshake import (
    Head,
    HttpRefusal,
    Upgrade,
    accept_response,
    parse_head,
    parse_upgrade,
    plausible_start,
)
from zcomm.config import Limits
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.peers import block_of
from zcomm.runtime.timeouts import Timeouts
from zcomm.wire import deflate as compression
from zcomm.wire.closecodes import CloseCode

__all__ = [
    "Candidate",
    "Exchange",
    "Outsiders",
    "HandshakeChannel",
    "HandshakeServer",
    "HandshakeSession",
    "HandshakeState",
    "HttpResponder",
    "PendingHandshakes",
]


class Exchange(Protocol):
    """Takes the connection of an HTTP request over from its handshake: what takes longer than that may."""

    def begin(self, channel: Any, early: bytes) -> None:
        """Go on with the connection.

        :param channel: a :class:`~zcomm.bifrost.protocol.BifrostProtocol`.
        :param early: bytes that came right behind the head.
        """

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer."""

    @property
    def is_closing(self) -> bool:
        """Whether all is said, and only has to be taken."""

    def lost(self) -> None:
        """The connection has ended. Called once, also where it never began."""


#: Answers an HTTP request that is no WebSocket: head, peer address, whether that is on this machine with no proxy
#: between, local address -> the whole response, or what takes the connection over.
HttpResponder = Callable[[Head, str, bool, str], "Deferred[bytes | Exchange]"]

#: Bytes that may follow a handshake which is still being decided.
EARLY = 64 * 1024
#: Connections that may wait, for each handshake that may be in progress.
WAITING = 16
#: Seconds from one look at the places to the next, while somebody waits. Who was found in one twice without a whole
#: request leaves it, so the longest line passes in 16 times two looks; twice that, as every second is by lot: 3.2 s.
LOOK = 0.05
#: So long, in looks, a client may take its HTTP response from a place that others wait for: 2 s.
LOOKS_FOR_A_RESPONSE = 40
#: Connections of which one is dropped when all lines together are full.
FEW = 8


Waiting = TypeVar("Waiting")


class Candidate(Protocol):
    """A new connection, as far as its place is concerned."""

    #: Its address; empty while that is not known.
    peer: str

    @property
    def progress(self) -> HandshakeState | None:
        """The progress of its handshake; ``None`` where that has not begun, or is over."""

    def begin(self, seconds: float) -> None:
        """Read the handshake, which has this long; or go on with it, in the time that it was given first."""

    def wait(self) -> None:
        """Read nothing for now."""

    def drop(self, why: str) -> None:
        """Close the connection at once."""


class _Line(Generic[Waiting]):
    """Connections that wait. Each may leave; the one whose turn it is, and one by lot, are found in one step."""

    __slots__ = ("_by_lot", "_members", "_places")

    def __init__(self) -> None:
        self._members: list[Waiting] = []
        #: Where each stands among the members; in the order in which they came.
        self._places: OrderedDict[Waiting, int] = OrderedDict()
        self._by_lot = False

    def __len__(self) -> int:
        return len(self._members)

    def add(self, candidate: Waiting) -> None:
        self._places[candidate] = len(self._members)
        self._members.append(candidate)

    def remove(self, candidate: Waiting) -> None:
        place = self._places.pop(candidate)
        last = self._members.pop()
        if last is not candidate:
            self._members[place] = last
            self._places[last] = place

    def any(self) -> Waiting:
        """One by lot."""
        return self._members[randbelow(len(self._members))]

    def next(self) -> Waiting:
        """In turns the one that waits the longest, and one by lot: a crowd that comes without end passes neither."""
        by_lot, self._by_lot = self._by_lot, not self._by_lot
        return self.any() if by_lot else next(iter(self._places))


class _Place:
    """What a connection has that is in a place.

    :ivar block: what its share goes by.
    :ivar looks: how often it was found there while somebody waited for it.
    """

    __slots__ = ("block", "looks")

    def __init__(self, block: str):
        self.block = block
        self.looks = 0


class PendingHandshakes:
    """The places for handshakes in progress, and the lines of connections that wait for one.

    While somebody waits, who has not sent a whole request goes back into the line after a moment and keeps what it has
    sent; so everybody in a line is read from before its time is up, however many say nothing.

    :param limits: how many in all and of one peer, and how long a handshake may take, waiting included.
    :param clock: an ``IReactorTime``.
    """

    def __init__(self, limits: Limits, clock: Any):
        self._limits = limits
        self._clock = clock
        self._inside: dict[Candidate, _Place] = {}
        self._by_peer: dict[str, int] = {}
        #: With what its share goes by, and the timer that ends the waiting of one that has not begun.
        self._waiting: dict[Candidate, tuple[str, Any]] = {}
        self._lines: dict[str, _Line[Candidate]] = {}
        self._everybody: _Line[Candidate] = _Line()
        # Peers that wait for no more than one of all places: in their turns.
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._is_serving = False
        #: Runs while somebody waits.
        self._timer: Any = None

    @property
    def count(self) -> int:
        """Handshakes in progress."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """Connections that wait for a place."""
        return len(self._waiting)

    def arrive(self, candidate: Candidate) -> None:
        """Give ``candidate`` a place, or let it wait for one.

        Where lines are full one by lot is dropped for the newcomer: nobody keeps others out by being there first.
        """
        block = block_of(candidate.peer)
        seconds = self._limits.handshake_timeout
        if self._has_place(block):
            self._enter(candidate, block, seconds)
            return
        self._line_up(candidate, block, self._clock.callLater(seconds, self._turn_away, candidate))

    def leave(self, candidate: Candidate) -> None:
        """Give the place of ``candidate``, which is decided about or gone, to the next. Harmless when it has none."""
        if candidate in self._inside:
            self._free(candidate)
            self._serve()
        elif candidate in self._waiting:
            self._leave_line(candidate)

    def _has_share(self, block: str) -> bool:
        return not block or self._by_peer.get(block, 0) < self._limits.pending_per_peer

    def _has_place(self, block: str) -> bool:
        return len(self._inside) < self._limits.pending and self._has_share(block)

    def _enter(self, candidate: Candidate, block: str, seconds: float) -> None:
        self._inside[candidate] = _Place(block)
        self._by_peer[block] = self._by_peer.get(block, 0) + 1
        if not self._has_share(block):
            self._ready.pop(block, None)
        candidate.begin(seconds)

    def _free(self, candidate: Candidate) -> None:
        block = self._inside.pop(candidate).block
        left = self._by_peer.pop(block) - 1
        if left:
            self._by_peer[block] = left
        if block in self._lines:
            self._ready.setdefault(block)

    def _make_room(self, block: str) -> None:
        """Let one more of ``block`` wait: lines are bounded as places are, in all and by peer."""
        line = self._lines.get(block)
        if block and line is not None and len(line) >= self._limits.pending_per_peer * WAITING:
            self._turn_away(line.any())
        elif len(self._waiting) >= self._limits.pending * WAITING:
            # Of a few by lot the one with the longest line: those who are alone there stay.
            few = [self._everybody.any() for _ in range(FEW)]
            self._turn_away(max(few, key=lambda one: len(self._lines[self._waiting[one][0]])))

    def _line_up(self, candidate: Candidate, block: str, timer: Any) -> None:
        self._make_room(block)
        self._waiting[candidate] = block, timer
        self._lines.setdefault(block, _Line()).add(candidate)
        self._everybody.add(candidate)
        if self._has_share(block):
            self._ready.setdefault(block)
        if self._timer is None:
            self._timer = self._clock.callLater(LOOK, self._look)
        candidate.wait()

    def _leave_line(self, candidate: Candidate) -> float:
        """Take ``candidate`` out of its line; returns the seconds that are left to one that has not begun."""
        block, timer = self._waiting.pop(candidate)
        line = self._lines[block]
        line.remove(candidate)
        self._everybody.remove(candidate)
        if not line:
            del self._lines[block]
            self._ready.pop(block, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if timer is None or not timer.active():
            return 0.0
        seconds: float = max(0.0, timer.getTime() - self._clock.seconds())
        timer.cancel()
        return seconds

    def _turn_away(self, candidate: Candidate) -> None:
        self._leave_line(candidate)
        candidate.drop("pending_limit")

    def _serve(self) -> None:
        """Give the places that are free to those who wait, peers in turn."""
        if self._is_serving:
            # Whoever began it goes on, so that a thousand that are decided at once are no deep recursion.
            return
        self._is_serving = True
        try:
            while self._ready and len(self._inside) < self._limits.pending:
                block = next(iter(self._ready))
                self._ready.move_to_end(block)
                candidate = self._lines[block].next()
                self._enter(candidate, block, self._leave_line(candidate))
        finally:
            self._is_serving = False

    def _look(self) -> None:
        """Let those give up their places to others who have not sent their requests since the last look."""
        # Each look is a turn of the reactor's or more after the last: what had come by then has been read.
        self._timer = self._clock.callLater(LOOK, self._look)
        for candidate, place in list(self._inside.items()):
            if self._inside.get(candidate) is not place or not (self._ready or place.block in self._lines):
                continue
            place.looks += 1
            progress = candidate.progress
            if progress is HandshakeState.READING and place.looks > 1:
                self._free(candidate)
                self._serve()
                self._line_up(candidate, place.block, None)
                self._serve()
            elif progress is HandshakeState.RESPONDED and place.looks > LOOKS_FOR_A_RESPONSE:
                candidate.drop("http_stalled")


class Outsiders(Generic[Waiting]):
    """The connections of those who are not let in, or no longer, whatever they wait for: each has a file.

    Where files run out one of them makes way for the next, so that nobody keeps others out by being there first.
    """

    def __init__(self) -> None:
        self._everybody: _Line[Waiting] = _Line()
        self._blocks: dict[Waiting, str] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, outsider: Waiting, peer: str) -> None:
        """Count a connection, from now on as one of ``peer``; empty where that is not known yet."""
        self.remove(outsider)
        block = self._blocks[outsider] = block_of(peer)
        self._counts[block] += 1
        self._everybody.add(outsider)

    def remove(self, outsider: Waiting) -> None:
        """Forget a connection that is let in, or gone. Harmless when that is done."""
        block = self._blocks.pop(outsider, None)
        if block is not None:
            self._everybody.remove(outsider)
            if self._counts[block] > 1:
                self._counts[block] -= 1
            else:
                del self._counts[block]

    def take(self, newcomer: Waiting) -> Waiting:
        """The one that makes way for ``newcomer``, which is forgotten: of a few by lot the one whose address has the
        most; the newcomer itself where it is alone."""
        few = [one for one in (self._everybody.any() for _ in range(FEW)) if one is not newcomer]
        if not few:
            few = [one for one in self._blocks if one is not newcomer][:1] or [newcomer]
        chosen = max(few, key=lambda one: self._counts[self._blocks[one]])
        self.remove(chosen)
        return chosen


class Admitter(Protocol):
    """Decides which clients are let in."""

    def admit(
        self, upgrade: Upgrade, peer: str, is_local: bool, local_address: str, waits: Callable[[], None]
    ) -> Deferred[Identity]:
        """Fires with the client's identity, or fails with :class:`~zcomm.errors.HandshakeRefused`.

        :param waits: called when its token has to wait for those of its neighbours.
        """


class HandshakeServer(Protocol):
    """The server of a handshake, as far as it is asked."""

    limits: Limits
    admission: Admitter
    timeouts: Timeouts
    #: Whether compression is negotiated.
    compression: bool
    #: Answers plain HTTP; ``None`` where nothing does.
    pages: HttpResponder | None

    def is_full_for(self, identity: Identity | None) -> bool:
        """Whether every place is taken that one may have who is ``identity``; any place, of who is not known yet."""

    def check_user_limit(self, identity: Identity, peer: str) -> None:
        """Raise HandshakeRefused where the user has as many connections as one may have."""

    def claim(self, client: Any, identity: Identity, peer: str) -> Deferred[bool] | None:
        """Ask for a place of the user's among those of all processes; ``None`` where this one alone counts."""

    def not_admitted(self, identity: Identity) -> None:
        """Forget a client whose token was right and that is not let in."""

    def note_refusal(self, peer: str, reason: str) -> None:
        """Log that a client was not let in."""

    def unexpected(self, failure: Failure) -> None:
        """Log what should not have failed."""


class HandshakeChannel(Protocol):
    """The connection of a handshake, which carries out what is decided.

    Exactly one of ``admitted``, ``refused``, ``respond``, ``handed_over`` and ``drop`` is called, once.
    """

    #: The address of the client, once it is known; then, whether it is on this machine with no proxy between.
    peer: Any
    is_local: bool
    #: The reason that the server has to end it, by which it is counted.
    drop_reason: str

    @property
    def local_address(self) -> str:
        """The address the connection came in on; empty for a unix socket."""

    def locate(self, forwarded: str) -> None:
        """Find out where the client is, then let its handshake proceed.

        :param forwarded: its ``X-Forwarded-For``.
        """

    def pause_for_admission(self) -> None:
        """Read nothing until it is known whether the client is let in."""

    def leave_place(self) -> None:
        """Give the place among the handshakes to the next: its turn comes by another rule."""

    def admitted(
        self,
        identity: Identity,
        upgrade: Upgrade,
        response: bytes,
        deflate: compression.Deflate | None,
        early: bytes,
    ) -> None:
        """Let the client in.

        :param response: completes the handshake.
        :param early: bytes that came right behind the request, and are answered now.
        """

    def refused(self, refusal: HandshakeRefused, response: bytes) -> None:
        """Complete the handshake, then say the close code: a browser does not see an HTTP status."""

    def respond(self, response: bytes) -> None:
        """Send one HTTP response and hang up."""

    def handed_over(self, exchange: Exchange, early: bytes) -> None:
        """Let ``exchange`` go on; ``early`` came right behind the head."""

    def drop(self, cause: str) -> None:
        """Cut the connection off."""


#: The answer where every place is taken.
_FULL = HttpRefusal(503, (("Retry-After", "5"),))


class HandshakeState(Enum):
    """The progress of a handshake."""

    #: The head of the request is being read.
    READING = "reading"
    #: Admission, or a page, is waited for.
    DECIDING = "deciding"
    #: An HTTP response is on its way; nothing that still comes is looked at.
    RESPONDED = "responded"
    #: The client is let in, refused, or gone.
    OVER = "over"


class HandshakeSession:
    """One handshake: a request head, then a decision.

    It ends in one of four ways: the client is admitted; it is refused; it gets one HTTP response; or an exchange of
    HTTP goes on without it.

    :param client: the connection.
    :param server: what all handshakes of the server share.
    :param seconds: until it is given up.
    """

    __slots__ = ("_client", "_data", "_deciding", "_head", "_server", "state")

    def __init__(self, client: HandshakeChannel, server: HandshakeServer, seconds: float):
        self.state = HandshakeState.READING
        self._client = client
        self._server = server
        self._data = b""
        self._deciding: Deferred[Any] | None = None
        self._head: Head | None = None
        server.timeouts.set(self, seconds, self._time_is_up)

    def receive(self, data: bytes) -> None:
        """Take bytes of the head, or bytes that came right behind it."""
        if self.state is not HandshakeState.READING:
            self._keep(data)
            return
        before = len(self._data)
        self._data = head = self._data + data
        if not plausible_start(head):
            self._client.drop("not_http")
            return
        limits = self._server.limits
        end = head.find(b"\r\n\r\n", max(0, before - 3))
        if max(end, len(head) if end < 0 else 0) > limits.head_size:
            self._refuse_http(HttpRefusal(431))
        elif end >= 0:
            self._data = head[end + 4 :]
            try:
                self._head = request = parse_head(head[:end], limits.head_count)
            except HttpRefusal as refusal:
                self._refuse_http(refusal)
                return
            self.state = HandshakeState.DECIDING
            self._client.locate(request.text(b"x-forwarded-for"))

    def proceed(self) -> None:
        """Decide about the request, as soon as there is one: the client has a place."""
        request, self._head = self._head, None
        if request is None or self.state is not HandshakeState.DECIDING:
            return
        try:
            if request.wants_upgrade:
                self.decide(parse_upgrade(request), self._server.admission)
            else:
                self._serve(request)
        except HttpRefusal as refusal:
            self._refuse_http(refusal)

    def _keep(self, data: bytes) -> None:
        if self.state is HandshakeState.DECIDING:
            # Reading is paused; this was on its way. It waits, and is dropped with a refusal.
            self._data += data
            if len(self._data) > EARLY:
                self._client.drop("early_data")

    def decide(self, upgrade: Upgrade, admitter: Admitter) -> None:
        """Let ``admitter`` say whether the client is let in, where the server has a place for it."""
        if self._server.is_full_for(None):
            self._refuse_http(_FULL)
            return
        client = self._client
        self.state = HandshakeState.DECIDING
        self._deciding = deciding = admitter.admit(
            upgrade, client.peer, client.is_local, client.local_address, client.leave_place
        )
        deciding.addCallback(self._claim)
        deciding.addCallbacks(self._admit, self._refuse, callbackArgs=(upgrade,), errbackArgs=(upgrade,))
        deciding.addErrback(self._server.unexpected)
        if not deciding.called:
            client.pause_for_admission()

    def _claim(self, identity: Identity) -> Identity | Deferred[Identity]:
        claiming = self._server.claim(self._client, identity, self._client.peer)
        return identity if claiming is None else claiming.addCallback(self._claimed, identity)

    def _claimed(self, has_place: bool, identity: Identity) -> Identity:
        if not has_place:
            self._server.not_admitted(identity)
            raise HandshakeRefused(CloseCode.TRY_AGAIN_LATER, "Too many connections")
        return identity

    def _admit(self, identity: Identity, upgrade: Upgrade) -> None:
        server = self._server
        if self.state is HandshakeState.OVER:
            server.not_admitted(identity)
            return
        try:
            server.check_user_limit(identity, self._client.peer)
        except HandshakeRefused as refused:
            server.not_admitted(identity)
            self._turn_away(refused, upgrade)
            return
        if server.is_full_for(identity):
            server.not_admitted(identity)
            self._refuse_http(_FULL)
            return
        self._end()
        deflate, extensions = None, ""
        if server.compression and upgrade.extensions:
            deflate, extensions = compression.negotiate(upgrade.extensions)
        self._client.admitted(identity, upgrade, accept_response(upgrade, extensions), deflate, self._data)

    def _refuse(self, failure: Failure, upgrade: Upgrade) -> None:
        refused = failure.value
        if not isinstance(refused, HandshakeRefused):
            failure.raiseException()
        if self.state is not HandshakeState.OVER:
            self._turn_away(refused, upgrade)

    def _turn_away(self, refused: HandshakeRefused, upgrade: Upgrade) -> None:
        self._end()
        self._client.refused(refused, accept_response(upgrade))

    def _serve(self, head: Head) -> None:
        pages = self._server.pages
        is_post = head.method == "POST"
        if pages is None:
            raise HttpRefusal(405, (("Allow", "GET"),)) if is_post else HttpRefusal(426, (("Upgrade", "websocket"),))
        client = self._client
        self.state = HandshakeState.DECIDING
        self._deciding = answer = maybeDeferred(pages, head, client.peer, client.is_local, client.local_address)
        answer.addErrback(self._server.unexpected)
        answer.addCallback(self._answer).addErrback(self._unexpected)
        if is_post and not answer.called:
            # As a WebSocket does: tokens wait by another rule, and nothing is read before it is known whose this is.
            client.leave_place()
            client.pause_for_admission()

    def _unexpected(self, failure: Failure) -> None:
        self._server.unexpected(failure)
        self._client.drop("http_failed")

    def _answer(self, response: bytes | Exchange | None) -> None:
        if response is None or isinstance(response, bytes):
            self._respond(response or HttpRefusal(500).response())
        elif self.state is HandshakeState.OVER:
            response.lost()
        else:
            self._end()
            self._client.handed_over(response, self._data)

    def _refuse_http(self, refusal: HttpRefusal) -> None:
        self._client.drop_reason = f"http_{refusal.status}"
        if refusal.reason:
            self._server.note_refusal(self._client.peer, refusal.reason)
        self._respond(refusal.response())

    def _respond(self, response: bytes) -> None:
        """Answer and hang up. A peer that does not take the answer is cut off when its time is up."""
        self._deciding = None
        self._data = b""
        if self.state is HandshakeState.OVER:
            return
        self.state = HandshakeState.RESPONDED
        self._server.timeouts.set(self, self._server.limits.handshake_timeout, self._time_is_up)
        self._client.respond(response)

    def _time_is_up(self) -> None:
        if self._deciding is not None:
            # Admission fails with 1011: a client that cannot be checked is not let in. A page fails with 500.
            self._deciding.cancel()
        else:
            self._client.drop("http_stalled" if self.state is HandshakeState.RESPONDED else "handshake_timeout")

    def _end(self) -> None:
        self.state = HandshakeState.OVER
        self._deciding = None
        self._server.timeouts.clear(self)

    def abandon(self) -> None:
        """Forget the client, which has left: what was being decided is cancelled. Harmless when it is over."""
        if self.state is HandshakeState.OVER:
            return
        deciding = self._deciding
        self._end()
        if deciding is not None:
            deciding.cancel()
