"""A connection before it is a WebSocket: one request head, then a decision (docs/protocol.rst, "Handshake").

It ends in one of three ways: the client is admitted; it is refused, which a browser can only be told by a
close code, so the handshake completes first; or it gets one HTTP response and is hung up on.
"""

from __future__ import annotations

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
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.wire import deflate as compression

__all__ = ["Channel", "Opening"]

#: Bytes that may follow a handshake which is still being decided.
EARLY = 64 * 1024


class Channel(Protocol):
    """What the opening asks of its connection."""

    factory: Any
    transport: Any
    peer: Any

    @property
    def local_address(self) -> str:
        """The address the connection came in on; empty for a unix socket."""

    def pause_for_admission(self) -> None:
        """Read nothing until it is known whether the client is let in."""

    def admitted(
        self,
        identity: Identity,
        upgrade: Upgrade,
        response: bytes,
        deflate: compression.Deflate | None,
        early: bytes,
    ) -> None:
        """The client is in."""

    def refused(self, refusal: HandshakeRefused, response: bytes) -> None:
        """The client is not let in."""

    def drop(self, why: str) -> None:
        """Cut the connection off."""


class Opening:
    """The opening of one connection; forgotten when the client is in.

    :param channel: the connection. It is told ``admitted`` or ``refused``, once.
    :param seconds: until it is given up.
    """

    __slots__ = ("_channel", "_data", "_deciding", "_ended", "_factory", "_left")

    def __init__(self, channel: Channel, seconds: float):
        self._channel = channel
        self._factory = channel.factory
        self._data = b""
        #: Admission, or the page, while it is being waited for.
        self._deciding: Deferred[Any] | None = None
        #: An HTTP response has been sent: nothing that still comes is looked at.
        self._ended = False
        self._left = False
        self._factory.deadlines.set(self, seconds, self._time_is_up)

    def receive(self, data: bytes) -> None:
        """Take bytes of the head."""
        if self._ended:
            return
        before = len(self._data)
        self._data = head = self._data + data
        if self._deciding is not None:
            # Reading is paused; this was on its way. It waits, and is dropped with a refusal.
            if len(head) > EARLY:
                self._channel.drop("early_data")
            return
        if not plausible_start(head):
            self._channel.drop("not_http")
            return
        limits = self._factory.limits
        end = head.find(b"\r\n\r\n", max(0, before - 3))
        if max(end, len(head) if end < 0 else 0) > limits.head_size:
            self._respond(HttpRefusal(431))
        elif end >= 0:
            self._data = head[end + 4 :]
            try:
                self._consider(parse_head(head[:end], limits.head_count))
            except HttpRefusal as refusal:
                self._respond(refusal)

    def _consider(self, head: Head) -> None:
        if not head.wants_upgrade:
            self._serve(head)
            return
        upgrade = parse_upgrade(head)
        if self._factory.is_full:
            raise HttpRefusal(503, (("Retry-After", "5"),))
        channel = self._channel
        self._deciding = deciding = self._factory.admission.admit(upgrade, channel.peer, channel.local_address)
        deciding.addCallbacks(self._admit, self._refuse, (upgrade,), None, (upgrade,), None)
        deciding.addErrback(self._factory.unexpected)
        if not deciding.called:
            channel.pause_for_admission()

    def _admit(self, identity: Identity, upgrade: Upgrade) -> None:
        if self._left:
            return
        try:
            self._factory.within_share(identity)
        except HandshakeRefused as refused:
            self._turn_away(refused, upgrade)
            return
        self._factory.deadlines.clear(self)
        deflate, extensions = None, ""
        if self._factory.compression and upgrade.extensions:
            deflate, extensions = compression.negotiate(upgrade.extensions)
        self._channel.admitted(identity, upgrade, accept_response(upgrade, extensions), deflate, self._data)

    def _refuse(self, failure: Failure, upgrade: Upgrade) -> None:
        refused = failure.value
        if not isinstance(refused, HandshakeRefused):
            failure.raiseException()
        if not self._left:
            self._turn_away(refused, upgrade)

    def _turn_away(self, refused: HandshakeRefused, upgrade: Upgrade) -> None:
        self._factory.deadlines.clear(self)
        self._channel.refused(refused, accept_response(upgrade))

    def _serve(self, head: Head) -> None:
        if self._factory.pages is None:
            raise HttpRefusal(426, (("Upgrade", "websocket"),))
        channel = self._channel
        self._deciding = answer = maybeDeferred(self._factory.pages, head, channel.peer, channel.local_address)
        answer.addErrback(self._factory.unexpected)
        answer.addCallback(lambda response: self._end(response or HttpRefusal(500).response()))

    def _respond(self, refusal: HttpRefusal) -> None:
        self._factory.count_drop(f"http_{refusal.status}")
        self._end(refusal.response())

    def _end(self, response: bytes) -> None:
        """Answer and hang up. A peer that does not take the answer is cut off when its time is up."""
        self._deciding = None
        self._data = b""
        if self._left:
            return
        self._ended = True
        self._factory.deadlines.set(self, self._factory.limits.handshake_timeout, self._time_is_up)
        self._channel.transport.write(response)
        self._channel.transport.loseConnection()

    def _time_is_up(self) -> None:
        if self._deciding is not None:
            # Admission fails with 1011: whoever cannot be checked is not let in. A page fails with 500.
            self._deciding.cancel()
        else:
            self._channel.drop("http_stalled" if self._ended else "handshake_timeout")

    def lost(self) -> None:
        """The peer has left, or is let go: what was being decided is cancelled."""
        self._left = True
        self._factory.deadlines.clear(self)
        deciding, self._deciding = self._deciding, None
        if deciding is not None:
            deciding.cancel()
