"""A client in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from zcomm.client.topics import Topic, Topics, is_event
from zcomm.errors import CommandTimeout, ConnectionLost, command_error
from zcomm.runtime.deferreds import Waiters
from zcomm.testing.channel import MemoryChannel
from zcomm.testing.link import Closed, Link

__all__ = ["MemoryClient"]

#: Stands for what was not given.
MISSING = object()
#: Seconds that a topic waits for an answer.
TIMEOUT = 30.0


class MemoryClient:
    """A client of a :class:`MemoryServer`; made by its :meth:`~MemoryServer.connect`.

    :ivar incoming: the way from the server, whose faults can be set; that of the connection of now.
    :ivar outgoing: the way to the server.
    :ivar messages: what came and is no reply to :meth:`call`, oldest first: a JSON message as its value, other
        text as it is. What topics of :meth:`topic` hear is not among it.
    :ivar closed: how the connection ended; ``None`` while it is open or being opened.
    """

    def __init__(self, server: Any, peer: str, arrive: Callable[[MemoryClient], None]):
        self.messages: list[Any] = []
        self.closed: Closed | None = None
        self._server = server
        self._peer = peer
        #: Opens the connection of now.
        self._arrive = arrive
        self._ids = count(1)
        self._calls: dict[int | str, Deferred[dict[str, Any]]] = {}
        self._when_closed: Waiters[Closed] = Waiters()
        self._topics = Topics(
            server.clock, self._command, lambda: self._state, lambda given: TIMEOUT if given is None else given
        )
        #: The topics that the test has asked for.
        self._known: set[str] = set()
        self._state = "connecting"
        self._is_cut = False
        self._open()

    def _open(self) -> None:
        self.closed, self._is_cut = None, False
        self.incoming = Link(self._server.clock, self._received)
        self._channel = channel = MemoryChannel(self._server, self, self._peer, self.incoming)
        self.outgoing = Link(self._server.clock, channel.receive)
        self._arrive(self)
        self._server.settle()
        if self.closed is None:
            self._state = "connected"
            self._topics.came_back()
            self._server.settle()

    def reconnect(self) -> None:
        """Open another connection, as the client of a program does when it has lost one: its topics go on there."""
        if self.closed is None and self._is_cut:
            # It notices; the server does not.
            self._ended(Closed(1006))
        elif self.closed is None:
            self.vanish()
        # What was on its way arrives nowhere.
        self.incoming.cut()
        self.outgoing.cut()
        self._state = "reconnecting"
        self._open()

    def topic(
        self,
        name: str,
        *,
        presence: bool = False,
        last: int | None = None,
        state: Mapping[str, Any] | None = None,
        echo: bool = True,
    ) -> Topic:
        """A topic as programs have it from :meth:`zcomm.client.Client.topic`: on the virtual clock, with the faults of
        this connection. After a loss it goes on with :meth:`reconnect`."""
        self._known.add(name)
        return self._topics.topic(name, presence=presence, last=last, state=state, echo=echo)

    def _command(self, key: str, horizontal: Any, timeout: float | None = None) -> Deferred[Any]:
        if self._state != "connected":
            return fail(ConnectionLost(1006, "the command was not sent"))
        late = CommandTimeout("No answer in time")

        def settle(reply: dict[str, Any]) -> Any:
            if "error" in reply:
                raise command_error(reply)
            return reply["result"]

        def lost(failure: Failure) -> None:
            failure.trap(ConnectionError)
            raise ConnectionLost(1006 if self.closed is None else self.closed.code)

        answer: Deferred[Any] = self.call(key, json.loads(msgspec.json.encode(horizontal)))
        answer.addTimeout(TIMEOUT if timeout is None else timeout, self._server.clock, lambda *_: Failure(late))
        return answer.addCallbacks(settle, lost)

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
        self._state = "disconnected"
        self._leave(Closed(code, reason))
        self._topics.ended(ConnectionLost(code, reason), by_program=True)

    def vanish(self) -> None:
        """End the connection without a goodbye; the server notices at once, as with a reset."""
        self._leave(Closed(1006))

    def _leave(self, how: Closed) -> None:
        self._channel.left()
        self._ended(how)
        self._server.settle()

    def half_open(self) -> None:
        """Vanish in a way that the server cannot notice, like a machine that lost its network: pings decide."""
        self._is_cut = True
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
        if call is not None:
            call.callback(message)
            return
        if not (is_event(message) and self._topics.heard(message) and message["topic"] in self._known):
            self.messages.append(message)

    def _ended(self, how: Closed, channel: MemoryChannel | None = None) -> None:
        if self.closed is not None or channel not in (None, self._channel):
            # The server may notice the end of a connection when there is another one already.
            return
        self.closed = how
        if self._state == "connected":
            self._state = "reconnecting"
        self._topics.lost()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.errback(ConnectionError(f"the connection ended: {how}"))
        self._when_closed.fire(how)
