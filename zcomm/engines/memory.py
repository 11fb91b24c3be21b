"""The engine of servers that run in one process: what is told or published is handed from one to the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from zcomm.errors import Conflict
from zcomm.interfaces import (
    Broadcast,
    Change,
    IEngine,
    Kept,
    Listener,
    Members,
    NodeListener,
    Position,
    Slice,
    TopicListener,
)
from zcomm.topics.history import MAX_SIZE, Histories
from zcomm.topics.keys import Keys
from zcomm.topics.presence import DETAIL, Roster

__all__ = ["HISTORY_MEMORY", "MemoryEngine"]

#: Bytes of kept messages, where nobody says.
HISTORY_MEMORY = 256 * 1024 * 1024
#: The part of them that keys take beside.
KEYS = 4


@implementer(IEngine)
class MemoryEngine(Service):
    """Tells each server that is attached, at once and in the order of attaching. It carries messages unstarted, too.

    :param memory: bytes that the messages of topics may take.
    :param seconds: the monotonic clock.
    :ivar histories: the messages that topics keep.
    """

    name = "engine"
    is_shared = is_away = False
    elsewhere = 0

    def __init__(self, memory: int = HISTORY_MEMORY, seconds: Callable[[], float] = time.monotonic) -> None:
        # Keys are the servers, in the order they came.
        self._listeners: dict[Listener, None] = {}
        self.node = token_hex(3)
        self.histories = Histories(memory, seconds)
        self._keys = Keys(memory // KEYS, seconds)
        self._rosters: dict[str, Roster] = {}
        #: Of presence: the highest that any topic had which nobody is in any more. None of them begins again below it.
        self._version = 0
        self._deliver: TopicListener | None = None
        #: How often each topic is listened to.
        self._heard: dict[str, int] = {}

    def identity(self) -> Deferred[str]:
        """A Deferred of the id of this engine, which no other process shares."""
        return succeed(self.node)

    def attach(self, listener: Listener) -> None:
        """Tell ``listener`` from now on; once, however often it is attached."""
        self._listeners[listener] = None

    def detach(self, listener: Listener) -> None:
        """Tell ``listener`` no more; harmless when it is not attached."""
        self._listeners.pop(listener, None)

    @property
    def clients(self) -> int:
        """The number of clients of the attached servers."""
        count = 0
        for listener in self._listeners:
            count += listener.clients
        return count

    def tell(self, message: Broadcast) -> int:
        """Hand ``message`` to each server, which judges by its own permissions which of its clients get it.

        :returns: the number of those clients.
        """
        count = 0
        for listener in list(self._listeners):
            count += listener.tell(message)
        return count

    def cast(self, message: bytes, node: str | None = None) -> None:
        """Tell other nodes, of which there are none."""

    def nodes(self) -> list[str]:
        """The other nodes: none."""
        return []

    def listen_to_nodes(self, listener: NodeListener) -> None:
        """Tell ``listener`` what other nodes say, which is nothing."""

    def claim(self, name: str, member: str, limit: int) -> Deferred[bool]:
        """A Deferred of whether there is a place: who is alone counts by itself."""
        return succeed(True)

    def release(self, name: str, member: str) -> None:
        """Give a place back, of which none was taken."""

    # -- topics

    def deliver(self, listener: TopicListener) -> None:
        """Tell ``listener`` of what is published; there is one for all servers."""
        self._deliver = listener

    def listen(self, topic: str, kept: Kept | None) -> Deferred[Position | None]:
        """Deliver ``topic``; a Deferred of the position behind its newest message."""
        self._heard[topic] = self._heard.get(topic, 0) + 1
        return succeed(None if kept is None else self.histories.listen(topic))

    def catch_up(self, topic: str) -> Deferred[None]:
        """Deliver what is there of a topic that is listened to, which is done already."""
        return succeed(None)

    def unlisten(self, topic: str) -> None:
        """Deliver ``topic`` no more."""
        left = self._heard.pop(topic, 0) - 1
        if left > 0:
            self._heard[topic] = left
        self.histories.unlisten(topic)

    def publish(
        self,
        topic: str,
        kept: Kept | None,
        fragment: bytes,
        author: str | None = None,
        origin: str = "",
        key: str | None = None,
        digest: bytes = b"",
        teller: Any = None,
    ) -> Deferred[Position | None]:
        """Publish a message; see :class:`~zcomm.interfaces.IEngine`."""
        if key is not None:
            try:
                known = self._keys.find(author or "", key, digest)
            except Conflict:
                return fail()
            if known is not None:
                return succeed(known[1])
        position = None
        if kept is not None:
            position = self.histories.append(topic, kept, fragment, author, origin).position
        if key is not None:
            self._keys.keep(author or "", key, digest, position)
        if topic in self._heard and self._deliver is not None:
            self._deliver.message(topic, position, fragment, origin, teller)
        return succeed(position)

    def resume(self, topic: str, since: Position) -> Deferred[Slice]:
        """A Deferred of all messages after ``since``, or of none and the reason."""
        return succeed(self.histories.resume(topic, since))

    def read(
        self,
        topic: str,
        since: Position | None,
        before: Position | None,
        limit: int,
        reverse: bool,
        most: int = MAX_SIZE,
    ) -> Deferred[Slice]:
        """A Deferred of some messages."""
        return succeed(self.histories.read(topic, since, before, limit, reverse, most))

    def drop(self, topic: str) -> None:
        """Forget all messages of ``topic``."""
        self.histories.drop(topic)

    def enter(self, topic: str, connection: str, user: str, state: bytes | None, teller: Any = None) -> Deferred[None]:
        """Let a connection into a topic, or take its new state, if any."""
        roster = self._rosters.get(topic)
        if roster is None:
            roster = self._rosters[topic] = Roster(self._version)
        change = roster.enter(connection, user, state)
        if change is not None:
            self._tell(topic, change, teller)
        return succeed(None)

    def leave(self, topic: str, connection: str, teller: Any = None) -> None:
        """Let a connection leave a topic."""
        roster = self._rosters.get(topic)
        if roster is None:
            return
        change = roster.leave(connection)
        if not roster.connections:
            del self._rosters[topic]
            self._version = max(self._version, roster.version)
        if change is not None:
            self._tell(topic, change, teller)

    def _tell(self, topic: str, change: Change, teller: Any) -> None:
        if self._deliver is not None:
            self._deliver.presence(topic, change, teller)
            self._deliver.came_or_went(topic, change)

    def members(self, topic: str, most: int = DETAIL) -> Deferred[Members]:
        """A Deferred of who is in a topic, with names where they are no more than ``most``."""
        roster = self._rosters.get(topic)
        return succeed((Roster(self._version) if roster is None else roster).members(most))
