"""A client in memory."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred, succeed

from zcomm.runtime.deferreds import Waiters
from zcomm.testing.channel import MemoryChannel
from zcomm.testing.link import Closed, Link

__all__ = ["MemoryClient"]

#: Stands for what was not given.
MISSING = object()


class MemoryClient:
    """A client of a :class:`MemoryServer`; made by its :meth:`~MemoryServer.connect`.

    :ivar incoming: the way from the server, whose faults can be set.
    :ivar outgoing: the way to the server.
    :ivar messages: what came and is no reply to :meth:`call`, oldest first: a JSON message as its value, other
        text as it is.
    :ivar closed: how the connection ended; ``None`` while it is open or being opened.
    """

    def __init__(self, server: Any, peer: str):
        self.incoming = Link(server.clock, self._received)
        self.outgoing = Link(server.clock, lambda data: self._channel.receive(data))
        self.messages: list[Any] = []
        self.closed: Closed | None = None
        self._server = server
        self._channel = MemoryChannel(server, self, peer)
        self._ids = count(1)
        self._calls: dict[int | str, Deferred[dict[str, Any]]] = {}
        self._when_closed: Waiters[Closed] = Waiters()

    def call(
        self, key: str, horizontal: Any = MISSING, request_id: int | str | None = None
    ) -> Deferred[dict[str, Any]]:
        """Send a command.

        :param horizontal: its ``zHorizontal``; none when left out.
        :param request_id: its ``_requestId``; a number not used yet when left out.
        :returns: a Deferred of the whole reply, ``{"result": …}`` or ``{"error": …, "code": …}``. It fails with
            :exc:`ConnectionError` when the connection ends before the reply.
        """
        number = next(self._ids) if request_id is None else request_id
        message = {"zKey": key, "_requestId": number}
        if horizontal is not MISSING:
            message["zHorizontal"] = horizontal
        answer: Deferred[dict[str, Any]] = Deferred(lambda _: self._forget(number))
        if self.closed is not None:
            answer.errback(ConnectionError(f"the connection is closed: {self.closed}"))
            return answer
        self._calls[number] = answer
        self.send(message)
        return answer

    def send(self, message: Any) -> None:
        """Send one message: a ``str`` as it is, ``bytes`` as a binary message, anything else as JSON."""
        if not isinstance(message, (str, bytes)):
            message = json.dumps(message)
        self.outgoing.carry(message)
        self._server.settle()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection from this side, and let the server notice."""
        self._channel.left()
        self._ended(Closed(code, reason))
        self._server.settle()

    def vanish(self) -> None:
        """End the connection without a goodbye; the server notices at once, as with a reset."""
        self.close(1006)

    def half_open(self) -> None:
        """Vanish in a way that the server cannot notice, like a machine that lost its network: pings decide."""
        self.incoming.cut()
        self.outgoing.cut()
        self._channel.ignore_pings()

    def stop_reading(self) -> None:
        """Take nothing: what the server sends waits there."""
        self._channel.pause()

    def read_again(self) -> None:
        """Take what waits, and what comes."""
        self._channel.resume()
        self._server.settle()

    def when_closed(self) -> Deferred[Closed]:
        """Fires with how the connection ended; at once when it has."""
        return self._when_closed.add() if self.closed is None else succeed(self.closed)

    def _forget(self, number: int | str) -> None:
        self._calls.pop(number, None)

    def _received(self, payload: bytes | Closed) -> None:
        if self.closed is not None:
            return
        if isinstance(payload, Closed):
            self._ended(payload)
            # It answers the goodbye, and the server hangs up.
            self._channel.left()
            return
        text = payload.decode("utf-8")
        try:
            message = json.loads(text)
        except ValueError:
            message = text
        number = message.get("_requestId") if isinstance(message, dict) else None
        call = None if number is None else self._calls.pop(number, None)
        if call is None:
            self.messages.append(message)
        else:
            call.callback(message)

    def _ended(self, how: Closed) -> None:
        if self.closed is not None:
            return
        self.closed = how
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.errback(ConnectionError(f"the connection ended: {how}"))
        self._when_closed.fire(how)
