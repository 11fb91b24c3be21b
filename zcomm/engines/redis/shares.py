"""The share that each user has of the memory of an engine's histories. Values in, values out.

Each node counts what is published at it, and no more than is kept of that. Where a user has more than a share, the
topics that it has published to the longest ago lose their oldest messages, as those in memory do: none is ever taken
from the middle.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from zcomm.interfaces import Kept
from zcomm.topics.history import MESSAGE, TOPIC, USER_SHARE

__all__ = ["Shares", "Trim"]

#: The part of a share that is counted as one.
CHUNKS = 64


class Trim(NamedTuple):
    """The messages that a topic is to lose: those up to this offset."""

    topic: str
    offset: int


class _Filled:
    """The messages that a user has published to one topic, in chunks of several: the last offset and bytes of each."""

    __slots__ = ("chunks", "expires", "size")

    def __init__(self) -> None:
        self.chunks: deque[tuple[int, int]] = deque()
        self.size = TOPIC
        self.expires = 0.0


class _Author:
    """A user, and the topics that it has filled, the one first that it has published to the longest ago."""

    __slots__ = ("size", "topics")

    def __init__(self) -> None:
        self.size = 0
        self.topics: OrderedDict[str, _Filled] = OrderedDict()


class Shares:
    """The users that have published here.

    :param total: bytes of all of them together.
    :param seconds: the monotonic clock.
    :ivar size: bytes that are taken.
    """

    def __init__(self, total: int, seconds: Callable[[], float]):
        self._total = total
        self._share = total // USER_SHARE
        self._chunk = self._share // CHUNKS
        self._seconds = seconds
        self.size = 0
        #: The one first that has published the longest ago.
        self._authors: OrderedDict[str, _Author] = OrderedDict()

    def add(self, author: str, topic: str, kept: Kept, offset: int, size: int) -> list[Trim]:
        """Count a message of ``size`` bytes; what has to go for it."""
        now = self._seconds()
        user = self._authors.get(author)
        if user is None:
            user = self._authors[author] = _Author()
        self._authors.move_to_end(author)
        topics, cost = user.topics, MESSAGE + size
        filled = topics.get(topic)
        if filled is None:
            filled = topics[topic] = _Filled()
            user.size += TOPIC
            self.size += TOPIC
        topics.move_to_end(topic)
        filled.expires = now + kept.seconds
        chunks = filled.chunks
        if chunks and (last := chunks[-1])[1] + cost <= self._chunk and last[0] <= offset:
            chunks[-1] = offset, last[1] + cost
        else:
            chunks.append((offset, cost))
        filled.size += cost
        user.size += cost
        self.size += cost
        if chunks[0][0] > offset - kept.messages and user.size <= self._share and self.size <= self._total:
            return []
        return self._make_room(author, user, filled, offset - kept.messages, now)

    def _make_room(self, author: str, user: _Author, filled: _Filled, lost: int, now: float) -> list[Trim]:
        """Forget what is gone by itself, and let go what is too much.

        :param lost: the last offset that the topic has lost already, as it keeps no more.
        """
        while filled.chunks and filled.chunks[0][0] <= lost:
            self._drop(user, filled)
        self._expire(user, now)
        trims: list[Trim] = []
        while user.size > self._share:
            trims += self._trim(user)
        while self.size > self._total:
            name, oldest = next(iter(self._authors.items()))
            self._expire(oldest, now)
            if oldest.topics:
                trims += self._trim(oldest)
            if not oldest.topics:
                del self._authors[name]
        if not user.topics:
            self._authors.pop(author, None)
        return trims

    def _trim(self, user: _Author) -> list[Trim]:
        topic, filled = next(iter(user.topics.items()))
        trims = []
        if filled.chunks:
            trims.append(Trim(topic, filled.chunks[0][0]))
            self._drop(user, filled)
        if not filled.chunks:
            self._forget(user, topic)
        return trims

    def _expire(self, user: _Author, now: float) -> None:
        while user.topics:
            topic, filled = next(iter(user.topics.items()))
            if filled.expires > now:
                return
            self._forget(user, topic)

    def _forget(self, user: _Author, topic: str) -> None:
        self._count(user, -user.topics.pop(topic).size)

    def _drop(self, user: _Author, filled: _Filled) -> None:
        _, size = filled.chunks.popleft()
        filled.size -= size
        self._count(user, -size)

    def _count(self, user: _Author, size: int) -> None:
        user.size += size
        self.size += size
