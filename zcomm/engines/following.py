"""Following topics that an engine carries: their messages in order, each once, whatever is lost on the way.

Of each topic there is one position here, behind what was delivered last. What follows it is delivered, what is before
it was delivered already, and at anything else the engine is asked what comes behind it, and its word is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.errors import CommandError
from zcomm.interfaces import KeptMessage, Position, Slice

__all__ = ["Following"]

#: Messages that are kept while the engine is asked; where more come, it is asked again.
HELD = 1_000


class Hearer(Protocol):
    """The one who is told what comes; :class:`~zcomm.interfaces.TopicListener` has more to say of it."""

    def message(self, topic: str, position: Position, message: KeptMessage) -> None:
        """Take the next message of a topic; ``position`` is behind it."""

    def moved(self, topic: str, position: Position, reason: str) -> None:
        """Note that the next one does not follow the one before."""


class _Held(NamedTuple):
    position: Position
    message: KeptMessage


class _Followed:
    """A topic.

    :ivar position: ``None`` as long as it is not known where it begins.
    :ivar held: what came while the engine is asked; ``None`` where it is not.
    :ivar is_incomplete: whether more came than is held.
    :ivar is_late: whether the engine could not be asked.
    :ivar waiting: those who wait for its word.
    """

    __slots__ = ("held", "is_incomplete", "is_late", "position", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []
        self.position: Position | None = None
        self.held: deque[_Held] | None = deque()
        self.is_incomplete = self.is_late = False


class Following:
    """The topics that are followed here.

    :param read: asks the engine for what comes behind a position, as much as it tells at once.
    :param hearer: told what comes.
    """

    _log = Logger()

    def __init__(self, read: Callable[[str, Position], Deferred[Slice]], hearer: Hearer):
        self._read = read
        self._hearer = hearer
        self._topics: dict[str, _Followed] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._topics

    def begin(self, topic: str) -> None:
        """Follow ``topic``; nothing is delivered before :meth:`stand`."""
        self._topics[topic] = _Followed()

    def end(self, topic: str) -> None:
        """Follow it no more."""
        followed = self._topics.pop(topic, None)
        if followed is not None:
            _tell(followed)

    def stand(self, topic: str, position: Position) -> None:
        """Begin behind ``position``, which was asked for after it was begun to listen."""
        followed = self._topics.get(topic)
        if followed is not None and followed.position is None:
            followed.position = position
            self._go_on(topic, followed)

    def position(self, topic: str) -> Position | None:
        """Behind what was delivered last."""
        followed = self._topics.get(topic)
        return None if followed is None else followed.position

    def heard(self, topic: str, position: Position, message: KeptMessage) -> None:
        """Take in what was heard; ``position`` is behind it."""
        followed = self._topics.get(topic)
        if followed is None:
            return
        if followed.held is not None:
            if len(followed.held) < HELD:
                followed.held.append(_Held(position, message))
            else:
                followed.is_incomplete = True
            return
        if not self._take(topic, followed, position, message):
            self._heal(topic, followed)

    def check(self, topic: str, position: Position) -> None:
        """Compare with where the engine says that ``topic`` stands, or stood a moment ago."""
        followed = self._topics.get(topic)
        if followed is None or followed.held is not None or followed.position is None:
            return
        known = followed.position
        # An offset that is lower is one of a moment ago, or what came behind it is lost.
        if followed.is_late or position != known:
            self._heal(topic, followed)

    def heal(self, topics: Iterable[str] | None = None) -> None:
        """Ask the engine anew: for all topics, where none are named."""
        for topic in list(self._topics if topics is None else topics):
            followed = self._topics.get(topic)
            if followed is not None and followed.held is None:
                self._heal(topic, followed)

    def caught_up(self, topic: str) -> Deferred[None]:
        """Ask the engine anew; fires when all that it has told was delivered, or it could not be asked."""
        followed = self._topics.get(topic)
        if followed is None:
            return succeed(None)
        caught_up: Deferred[None] = Deferred()
        followed.waiting.append(caught_up)
        if followed.held is None:
            self._heal(topic, followed)
        return caught_up

    def _take(self, topic: str, followed: _Followed, position: Position, message: KeptMessage) -> bool:
        """Deliver a message if it is the next one; whether it is that, or was delivered before."""
        known = followed.position
        if known is None or position.epoch != known.epoch:
            return False
        if position.offset <= known.offset:
            return True
        if position.offset != known.offset + 1:
            return False
        self._deliver(topic, followed, position, message)
        return True

    def _deliver(self, topic: str, followed: _Followed, position: Position, message: KeptMessage) -> None:
        followed.position = position
        try:
            self._hearer.message(topic, position, message)
        except Exception:
            self._log.failure("a message of {topic} was not taken; the others go on", topic=topic)

    def _heal(self, topic: str, followed: _Followed) -> None:
        if followed.position is None:
            return
        followed.held, followed.is_incomplete, followed.is_late = deque(), False, False
        reading = self._read(topic, followed.position)
        reading.addCallbacks(self._healed, self._late, (topic, followed), errbackArgs=(topic, followed))
        reading.addErrback(lambda failure: self._log.failure("{topic} was not healed", failure, topic=topic))

    def _late(self, failure: Failure, topic: str, followed: _Followed) -> None:
        # Whoever hears that the engine is back asks anew.
        followed.held, followed.is_late = None, True
        _tell(followed)
        if not failure.check(CommandError):
            self._log.failure("{topic} was not healed", failure, topic=topic)

    def _healed(self, found: Slice, topic: str, followed: _Followed) -> None:
        if self._topics.get(topic) is not followed:
            return
        if found.reason:
            followed.position = found.position
            self._hearer.moved(topic, found.position, found.reason)
        else:
            for message in found.messages:
                # They are part of the numbering of now, whichever they were written under.
                self._deliver(topic, followed, Position(found.position.epoch, message.offset), message)
                if self._topics.get(topic) is not followed:
                    return
            if found.more:
                followed.is_incomplete = True
        self._go_on(topic, followed)

    def _go_on(self, topic: str, followed: _Followed) -> None:
        """Go on with what came meanwhile."""
        held, followed.held = followed.held or deque(), None
        is_incomplete, followed.is_incomplete = followed.is_incomplete, False
        while held:
            one = held.popleft()
            if not self._take(topic, followed, one.position, one.message):
                is_incomplete = True
                break
            if self._topics.get(topic) is not followed:
                return
        if followed.held is not None:
            return
        if is_incomplete:
            self._heal(topic, followed)
        else:
            _tell(followed)


def _tell(followed: _Followed) -> None:
    waiting, followed.waiting = followed.waiting, []
    for deferred in waiting:
        if not deferred.called:
            deferred.callback(None)
