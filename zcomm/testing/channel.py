"""The server's end of a connection in memory, with the limits that a protocol on a transport has."""

from __future__ import annotations

from collections import deque
from typing import Any

from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.interfaces import Identity
from zcomm.testing.link import Closed
from zcomm.wire.closecodes import CloseCode

__all__ = ["MemoryChannel"]


class MemoryChannel:
    """What a protocol with a transport is in production.

    :param server: the :class:`~zcomm.testing.MemoryServer`.
    :param client: the :class:`~zcomm.testing.MemoryClient` at the other end.
    """

    def __init__(self, server: Any, client: Any, peer: str = "127.0.0.1"):
        self.peer = peer
        self.local_address = "127.0.0.1"
        self.reading = True
        self.responsive = True
        self.queued = 0
        self._server = server
        self._client = client
        self._connection: Any = None
        self._bucket: TokenBucket | None = None
        self._early: deque[Any] = deque()
        self._waiting: deque[bytes] = deque()
        self._unread: deque[Any] = deque()
        self._stall: Any = None
        self._awaiting_pong = False

    def open(self, identity: Identity, upgrade: Upgrade) -> None:
        limits = self._server.bifrost.config.limits
        self._bucket = TokenBucket(limits.frame_rate, limits.frame_burst, self._server.clock.seconds)
        self._connection = self._server.bifrost.factory.opened(self, identity, upgrade)
        early, self._early = self._early, deque()
        for data in early:
            self.receive(data)

    def receive(self, data: str | bytes) -> None:
        if self._client.closed is not None:
            return
        connection = self._connection
        if connection is None:
            self._early.append(data)
        elif self._waiting:
            # A client that does not take its replies is not read from.
            self._unread.append(data)
        else:
            self._process(connection, data)

    def _process(self, connection: Any, data: str | bytes) -> None:
        self._awaiting_pong = False
        if self._bucket is not None and not self._bucket.spend(1):
            self._give_up(CloseCode.POLICY_VIOLATION, "Rate limit exceeded", "rate_limit")
        elif isinstance(data, bytes) and connection.receive_binary is None:
            self.close(CloseCode.UNSUPPORTED_DATA, "Text messages only")
        else:
            payload = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
            if len(payload) > self._server.bifrost.config.limits.message_size:
                self.close(CloseCode.MESSAGE_TOO_BIG, "Message too big")
            elif isinstance(data, bytes):
                connection.receive_binary(payload)
            elif any("\ud800" <= character <= "\udfff" for character in data):
                self.close(CloseCode.INVALID_PAYLOAD, "Not UTF-8")
            else:
                self.send(connection.receive([payload]))

    def send(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            if self._connection is None:
                return
            if self.reading:
                self._client.incoming.carry(payload)
                continue
            limit = self._server.bifrost.config.limits.queue_size
            if self.queued and self.queued + len(payload) > limit:
                self._give_up(CloseCode.TRY_AGAIN_LATER, "Slow consumer", "slow_consumer")
                return
            self._waiting.append(payload)
            self.queued += len(payload)
            if self._stall is None:
                stall_timeout = self._server.bifrost.config.limits.stall_timeout
                self._stall = self._server.clock.callLater(stall_timeout, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        self._drop("stalled")

    def resume(self) -> None:
        self.reading = True
        self._cancel_stall()
        waiting, self._waiting, self.queued = self._waiting, deque(), 0
        for payload in waiting:
            self._client.incoming.carry(payload)
        while self._unread and not self._waiting and self._connection is not None:
            self._process(self._connection, self._unread.popleft())

    def tick(self) -> None:
        """A ping: a client that answered nothing since the last one is dead."""
        if self._awaiting_pong:
            self._drop("ping_timeout")
        elif not self.responsive or not self.reading:
            self._awaiting_pong = True

    def close(self, code: int, reason: str = "") -> None:
        if self._connection is not None:
            self._server.bifrost.factory.count_drop(f"close_{int(code)}")
            self.left()
            self._client.incoming.carry(Closed(int(code), reason))

    def _give_up(self, code: int, reason: str, why: str) -> None:
        self._server.bifrost.factory.count_drop(why)
        self.left()
        self._client.incoming.carry(Closed(int(code), reason))

    def _drop(self, why: str) -> None:
        self._server.bifrost.factory.count_drop(why)
        self.left()
        self._client._ended(Closed(1006))

    def left(self) -> None:
        """The conversation is over."""
        self._cancel_stall()
        self._waiting.clear()
        self._unread.clear()
        self.queued = 0
        connection, self._connection = self._connection, None
        if connection is not None:
            self._server.bifrost.factory.closed(connection)

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
