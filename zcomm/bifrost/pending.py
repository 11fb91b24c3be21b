"""Handshakes in progress: how many at a time, and the course of each (docs/protocol.rst, "Handshake").

At most so many are in progress, and a share of them by peer, so that a host that connects and says nothing locks nobody
out. Connections beyond that wait unread for a place: a thousand clients of one host that come back in the same second
all get in, one after the other.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

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

__all__ = [
    "Candidate",
    "HandshakeChannel",
    "HandshakeServer",
    "HandshakeSession",
    "HandshakeState",
    "HttpResponder",
    "PendingHandshakes",
]

#: Answers an HTTP request that is no WebSocket: head, peer address, local address -> the whole response.
HttpResponder = Callable[[Head, str, str], "Deferred[bytes]"]

#: Bytes that may follow a handshake which is still being decided.
EARLY = 64 * 1024
#: Connections that may wait, for each handshake that may be in progress.
WAITING = 16


class Candidate(Protocol):
    """A new connection, as far as its place is concerned."""

    #: Its address; empty while that is not known.
    peer: str

    def begin(self, seconds: float) -> None:
        """Read the handshake; it has this long."""

    def wait(self) -> None:
        """Read nothing yet."""

    def drop(self, why: str) -> None:
        """Close the connection at once."""


class PendingHandshakes:
    """The places for handshakes in progress, and the lines of connections that wait for one.

    :param limits: how many in all and of one peer, and how long a handshake may take, waiting included.
    :param clock: an ``IReactorTime``.
    """

    def __init__(self, limits: Limits, clock: Any):
        self._limits = limits
        self._clock = clock
        #: With what their shares go by.
        self._inside: dict[Candidate, str] = {}
        self._by_peer: dict[str, int] = {}
        # By peer, so that each peer is served in turn; with the timer that ends the waiting.
        self._lines: OrderedDict[str, deque[Candidate]] = OrderedDict()
        self._timers: dict[Candidate, Any] = {}

    @property
    def count(self) -> int:
        """Handshakes in progress."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """Connections that wait for a place."""
        return len(self._timers)

    def refuses(self, peer: str) -> bool:
        """Whether no connection more of ``peer`` may even wait.

        Lines are bounded as places are, in all and by peer, or one host's line would shut the door for everybody.
        """
        if len(self._timers) >= self._limits.pending * WAITING:
            return True
        block = block_of(peer)
        return bool(block) and len(self._lines.get(block, ())) >= self._limits.pending_per_peer * WAITING

    def arrive(self, candidate: Candidate) -> None:
        """Give ``candidate`` a place, or let it wait for one."""
        block = block_of(candidate.peer)
        if self._has_place(block):
            self._enter(candidate, block, self._limits.handshake_timeout)
            return
        candidate.wait()
        self._lines.setdefault(block, deque()).append(candidate)
        self._timers[candidate] = self._clock.callLater(self._limits.handshake_timeout, candidate.drop, "pending_limit")

    def leave(self, candidate: Candidate) -> None:
        """Give the place of ``candidate``, which is decided about or gone, to the next. Harmless when it has none."""
        if candidate in self._inside:
            block = self._inside.pop(candidate)
            left = self._by_peer.pop(block) - 1
            if left:
                self._by_peer[block] = left
            self._serve_next()
        elif candidate in self._timers:
            # Its place in the line is skipped when its turn comes.
            timer = self._timers.pop(candidate)
            if timer.active():
                timer.cancel()

    def _has_place(self, block: str) -> bool:
        if len(self._inside) >= self._limits.pending:
            return False
        return not block or self._by_peer.get(block, 0) < self._limits.pending_per_peer

    def _enter(self, candidate: Candidate, block: str, seconds: float) -> None:
        self._inside[candidate] = block
        self._by_peer[block] = self._by_peer.get(block, 0) + 1
        candidate.begin(seconds)

    def _serve_next(self) -> None:
        for block in list(self._lines):
            line = self._lines[block]
            while line and line[0] not in self._timers:
                line.popleft()
            if not line:
                del self._lines[block]
            elif self._has_place(block):
                candidate = line.popleft()
                self._lines.move_to_end(block)
                timer = self._timers.pop(candidate)
                seconds = max(0.0, timer.getTime() - self._clock.seconds())
                timer.cancel()
                self._enter(candidate, block, seconds)
                return


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

    @property
    def is_full(self) -> bool:
        """Whether every place for an open connection is taken."""

    def check_user_limit(self, identity: Identity) -> None:
        """Raise HandshakeRefused where the user has as many connections as one may have."""

    def not_admitted(self, identity: Identity) -> None:
        """Forget a client whose token was right and that is not let in."""

    def count_drop(self, reason: str) -> None:
        """Count one connection that ended for ``reason``."""

    def unexpected(self, failure: Failure) -> None:
        """Log what should not have failed."""


class HandshakeChannel(Protocol):
    """The connection of a handshake, which carries out what is decided.

    Exactly one of ``admitted``, ``refused``, ``respond`` and ``drop`` is called, once.
    """

    #: The address of the client, once it is known; then, whether it is on this machine with no proxy between.
    peer: Any
    is_local: bool

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

    def drop(self, cause: str) -> None:
        """Cut the connection off."""


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

    It ends in one of three ways: the client is admitted; it is refused; or it gets one HTTP response.

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
        if self._server.is_full:
            self._refuse_http(HttpRefusal(503, (("Retry-After", "5"),)))
            return
        client = self._client
        self.state = HandshakeState.DECIDING
        self._deciding = deciding = admitter.admit(
            upgrade, client.peer, client.is_local, client.local_address, client.leave_place
        )
        deciding.addCallbacks(self._admit, self._refuse, callbackArgs=(upgrade,), errbackArgs=(upgrade,))
        deciding.addErrback(self._server.unexpected)
        if not deciding.called:
            client.pause_for_admission()

    def _admit(self, identity: Identity, upgrade: Upgrade) -> None:
        server = self._server
        if self.state is HandshakeState.OVER:
            server.not_admitted(identity)
            return
        try:
            server.check_user_limit(identity)
        except HandshakeRefused as refused:
            server.not_admitted(identity)
            self._turn_away(refused, upgrade)
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
        if pages is None:
            raise HttpRefusal(426, (("Upgrade", "websocket"),))
        client = self._client
        self.state = HandshakeState.DECIDING
        self._deciding = answer = maybeDeferred(pages, head, client.peer, client.local_address)
        answer.addErrback(self._server.unexpected)
        answer.addCallback(lambda response: self._respond(response or HttpRefusal(500).response()))

    def _refuse_http(self, refusal: HttpRefusal) -> None:
        self._server.count_drop(f"http_{refusal.status}")
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
