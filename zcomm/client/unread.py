"""Messages of a topic that wait to be iterated over."""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred, succeed

from zcomm.client.subscription import Message
from zcomm.errors import MessagesLost

__all__ = ["Unread"]

#: Messages that wait at most; a reader that is slower than that misses some, and is told.
MOST = 1000


class Unread:
    """Messages that wait for one iteration. Those that are missing, and the end, stand in their place, as an exception.

    :param topic: the name of the topic.
    """

    def __init__(self, topic: str):
        self._topic = topic
        self._items: deque[Message | BaseException] = deque()
        self._readers: deque[Deferred[Message | BaseException]] = deque()
        #: Whether a reader has begun: where it begins nothing is missing before.
        self._is_begun = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Message | BaseException) -> None:
        """Append a message, or the exception in the place of what is missing, or of the end."""
        if self._readers:
            self._readers.popleft().callback(item)
        elif len(self._items) < MOST:
            self._items.append(item)
        elif not self._is_begun:
            self._items.popleft()
            self._items.append(item)
        elif not isinstance(self._items[-1], BaseException):
            self._items.append(item if isinstance(item, BaseException) else MessagesLost(self._topic, "too_slow"))

    def is_missing(self, reason: str) -> None:
        """Take note that messages are missing here."""
        if self._is_begun:
            self.put(MessagesLost(self._topic, reason))
        else:
            self._items.clear()

    def begin(self) -> None:
        """Let somebody read from now on."""
        self._is_begun = True

    def begin_anew(self) -> None:
        """Let somebody else begin, to whom what was missing until here is nothing."""
        self._is_begun = False
        while self._items and isinstance(self._items[0], BaseException):
            self._items.popleft()

    def next(self) -> Deferred[Any]:
        """A Deferred of the next message or exception. To cancel it leaves that to the next."""
        if self._items:
            return succeed(self._items.popleft())
        reader: Deferred[Any] = Deferred(self._readers.remove)
        self._readers.append(reader)
        return reader
