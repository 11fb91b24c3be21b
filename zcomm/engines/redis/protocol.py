"""One connection to Redis: commands out, replies in, in order. All commands of a turn of the reactor leave in one
write."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

__all__ = ["LinkLost", "RedisProtocol", "ReplyError"]

ReplyError = hiredis.ReplyError


class LinkLost(Exception):
    """The connection ended before the reply: nobody knows whether the command was carried out."""


#: Takes a reply, an error or :class:`LinkLost`. It raises nothing.
Handler = Callable[[Any], None]


class RedisProtocol(Protocol):
    """One connection.

    :param at_end: calls its argument at the end of the turn.
    :param seconds: the monotonic clock.
    :param on_lost: told the reason when the connection has ended.
    :ivar on_push: told each message of a connection that has subscribed to channels; such a one has no replies.
    :ivar heard: when something came last, or was asked for while nothing was waited for.
    """

    def __init__(
        self,
        at_end: Callable[[Callable[[], None]], object],
        seconds: Callable[[], float],
        on_lost: Callable[[Failure], None],
    ):
        self._at_end = at_end
        self._seconds = seconds
        self._on_lost = on_lost
        self.on_push: Callable[[Any], None] | None = None
        self._reader = hiredis.Reader()
        self._waiting: deque[Handler] = deque()
        self._out: list[bytes] = []
        self.heard = seconds()

    @property
    def waits(self) -> bool:
        """Whether the server owes a word."""
        return bool(self._waiting) or self.on_push is not None

    def call(self, *words: bytes | str | int) -> Deferred[Any]:
        """Send a command; a Deferred of its reply. It fails with :class:`ReplyError` where the server refuses, and with
        :class:`LinkLost`."""
        reply: Deferred[Any] = Deferred()
        self.ask(hiredis.pack_command(words), partial(_settle, reply))  # type: ignore[arg-type]
        return reply

    def ask(self, packed: bytes, handler: Handler) -> None:
        """Send a command as the protocol has it; ``handler`` is called with its reply, which may be a
        :class:`ReplyError`, or with :class:`LinkLost`."""
        if self.transport is None:
            handler(LinkLost())
            return
        if not self._waiting:
            self.heard = self._seconds()
        self._waiting.append(handler)
        if not self._out:
            self._at_end(self._flush)
        self._out.append(packed)

    def send(self, *words: bytes | str | int) -> None:
        """Send a command that has no reply of its own."""
        if not self._out:
            self._at_end(self._flush)
        self._out.append(hiredis.pack_command(words))  # type: ignore[arg-type]

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.transport is not None and out:
            self.transport.write(b"".join(out))

    def connectionMade(self) -> None:
        """Send small writes at once."""
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)

    def dataReceived(self, data: bytes) -> None:
        """Take the replies that have come."""
        self.heard = self._seconds()
        reader = self._reader
        try:
            reader.feed(data)
            take = reader.gets
            waiting = self._waiting
            while (reply := take()) is not False:
                if self.on_push is not None:
                    self.on_push(reply)
                else:
                    waiting.popleft()(reply)
        except (hiredis.ProtocolError, IndexError):
            # What speaks there is no Redis.
            self.abort()

    def abort(self) -> None:
        """End the connection now."""
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail what waits."""
        self.transport = None
        self._out = []
        waiting, self._waiting = self._waiting, deque()
        self._on_lost(reason)
        lost = LinkLost()
        lost.__cause__ = reason.value
        for handler in waiting:
            handler(lost)


def _settle(deferred: Deferred[Any], reply: Any) -> None:
    if isinstance(reply, (ReplyError, LinkLost)):
        deferred.errback(reply)
    else:
        deferred.callback(reply)
