"""The messages that topics keep: in order, numbered without a gap, within bounds (docs/protocol.rst, "History").

Values in, values out: who keeps them in memory is :mod:`zcomm.engines.memory`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heapify, heappop, heappush
from itertools import count, islice
from secrets import token_bytes

from zcomm.interfaces import Kept, KeptMessage, Position, Slice
from zcomm.topics.requests import MAX_MESSAGES

__all__ = ["Histories", "Log", "MAX_SIZE", "USER_SHARE"]

#: Bytes of the messages of one answer.
MAX_SIZE = 1024 * 1024
#: The part of all memory for messages that one user's may take.
USER_SHARE = 4
#: Bytes that a message and a topic take beside what is in them.
MESSAGE, TOPIC = 120, 1400
#: Seconds for which a topic's position is known after its last message, and as many times its ``keep`` at least.
KNOWN, KEEPS = 24 * 3600.0, 10
#: Topics that are forgotten at once, at most, so that nobody waits for many.
AT_ONCE = 4
#: Topics without messages that are remembered, because others may know their numbering.
IDLE = 100_000
#: Times that are noted although they are of no topic any more, beside twice as many as there are topics.
NOTED = 1000
NEVER = float("inf")
#: Groups of topics, each of which has its own count of those that were forgotten.
GROUPS = 4096


@dataclass(slots=True, eq=False)
class _Author:
    """A user whose messages are kept.

    :ivar logs: the bytes in each topic; the topic first that it has published to the longest ago.
    """

    name: str
    size: int = 0
    logs: OrderedDict[Log, int] = field(default_factory=OrderedDict)


#: Stands for the messages of a topic that has none; a deque of its own takes as much as all else of a topic.
_NONE: deque[tuple[bytes, _Author | None, str]] = deque()


class Log:
    """The messages of one topic.

    :ivar epoch: the numbering; another one where offsets begin anew.
    :ivar top: the offset of the newest message there ever was.
    :ivar messages: the newest of them, oldest first: fragment, author, origin.
    :ivar expires: when they are forgotten, and ``known`` when the topic is.
    :ivar listeners: how many listen to it; it is not forgotten meanwhile.
    :ivar owner: who has published to it first, and is charged with the topic itself.
    """

    __slots__ = ("due", "epoch", "expires", "far", "known", "listeners", "messages", "owner", "top", "topic")

    def __init__(self, topic: str, epoch: str):
        self.topic = topic
        self.epoch = epoch
        self.top = 0
        self.messages = _NONE
        self.owner: _Author | None = None
        self.expires = self.known = 0.0
        #: When it is looked at next; and later once more, for a time that was noted before that one.
        self.due = self.far = NEVER
        self.listeners = 0

    @property
    def position(self) -> Position:
        """Behind the newest message."""
        return Position(self.epoch, self.top)

    def between(self, first: int, last: int) -> Iterator[KeptMessage]:
        """The messages with the offsets from ``first`` to ``last``, which are all there."""
        messages = self.messages
        start = first - (self.top - len(messages)) - 1
        if start <= len(messages) // 2:
            found: Iterator[tuple[bytes, _Author | None, str]] = islice(messages, start, start + last - first + 1)
        else:
            # From the end, which is nearer.
            behind = self.top - last
            chosen = list(islice(reversed(messages), behind, behind + last - first + 1))
            found = reversed(chosen)
        return (
            KeptMessage(offset, fragment, origin)
            for offset, (fragment, _, origin) in zip(count(first), found, strict=False)
        )


class Histories:
    """The logs of all topics of one node, in as much memory as they may take.

    Where that is used up, the topics lose their oldest messages that were published to the longest ago. Where one user
    has more than a share, the topics that user has filled do. None is ever taken from the middle.

    :param total: bytes.
    :param seconds: the monotonic clock.
    :ivar size: bytes that are taken.
    """

    def __init__(self, total: int, seconds: Callable[[], float]):
        self.total = total
        self.size = 0
        self._share = total // USER_SHARE
        self._seconds = seconds
        self._logs: dict[str, Log] = {}
        #: Those with messages, the one first that was published to the longest ago; and those with none that nobody
        #: listens to, the one first that is known the longest.
        self._filled: OrderedDict[Log, None] = OrderedDict()
        self._idle: OrderedDict[Log, None] = OrderedDict()
        self._authors: dict[str, _Author] = {}
        #: What is to be looked at, and when; each log is in it twice at most.
        self._due: list[tuple[float, int, Log]] = []
        self._numbers = count()
        # A topic that nobody has published to need not be remembered: its numbering follows from its name, and from how
        # many of its group have been forgotten.
        self._key = token_bytes(16)
        self._era = 0
        self._forgotten = [0] * GROUPS

    def __len__(self) -> int:
        return len(self._logs)

    def log(self, topic: str) -> Log:
        """The log of ``topic``; a new one where it has none."""
        log = self._logs.get(topic)
        if log is None:
            log = self._logs[topic] = Log(topic, self._epoch(topic))
        return log

    def _epoch(self, topic: str) -> str:
        """The numbering of a topic that has no log: no other topic's, and none that it had before."""
        text = f"{self._era} {self._forgotten[hash(topic) % GROUPS]} {topic}".encode()
        return blake2b(text, digest_size=8, key=self._key).hexdigest()

    def position(self, topic: str) -> Position:
        """Behind the newest message of ``topic``."""
        log = self._logs.get(topic)
        return Position(self._epoch(topic), 0) if log is None else log.position

    def listen(self, topic: str) -> Position:
        """Do not forget ``topic`` until :meth:`unlisten`."""
        log = self.log(topic)
        log.listeners += 1
        self._idle.pop(log, None)
        return log.position

    def unlisten(self, topic: str) -> None:
        """Forget ``topic`` as others, unless somebody else listens; undoes one :meth:`listen`."""
        log = self._logs.get(topic)
        if log is None or not log.listeners:
            return
        log.listeners -= 1
        if not log.listeners and not log.messages:
            if log.top or log.epoch != self._epoch(topic):
                self._rests(log)
            else:
                self._forget(log)

    def append(self, topic: str, kept: Kept, fragment: bytes, author: str | None, origin: str) -> Log:
        """Keep a message; returns the log, whose :attr:`~Log.top` it is.

        :param author: the user whose share it takes; ``None`` for the program.
        :param origin: the connection that published it.
        """
        now = self._seconds()
        self.expire(now)
        log = self.log(topic)
        if log.messages and log.expires <= now:
            self._clear(log)
        user = None
        cost = MESSAGE + len(fragment)
        if not log.top:
            cost += TOPIC
        if author is not None:
            user = self._authors.get(author)
            if user is None:
                user = self._authors[author] = _Author(author)
            if not log.top:
                log.owner = user
            user.size += cost
            logs = user.logs
            logs[log] = logs.get(log, 0) + cost
            logs.move_to_end(log)
        log.top += 1
        if log.messages is _NONE:
            log.messages = deque()
        log.messages.append((fragment, user, origin))
        self.size += cost
        self._filled[log] = None
        self._filled.move_to_end(log)
        if self._idle:
            self._idle.pop(log, None)
        seconds = kept.seconds
        log.expires = now + seconds
        log.known = now + (KNOWN if KEEPS * seconds < KNOWN else KEEPS * seconds)
        if log.expires < log.due:
            # What stands there already is met once more, and not noted again meanwhile.
            log.far = min(log.due, log.far)
            self._look_at(log, log.expires)
        while len(log.messages) > kept.messages:
            self._drop_first(log)
        if user is not None and user.size > self._share:
            self._trim(user)
        if self.size > self.total:
            self._tidy()
        return log

    def resume(self, topic: str, since: Position) -> Slice:
        """The messages after ``since``: all of them, or none and the reason."""
        log, now = self._current(topic)
        if since.epoch != now.epoch:
            return Slice(now, reason="epoch")
        if since.offset > now.offset:
            return Slice(now, reason="history_lost")
        missed = now.offset - since.offset
        if log is None or not missed:
            return Slice(now)
        if missed > len(log.messages):
            return Slice(now, reason="too_old")
        if missed > MAX_MESSAGES:
            return Slice(now, reason="too_many")
        messages = list(log.between(since.offset + 1, log.top))
        if sum([len(message.fragment) for message in messages]) > MAX_SIZE:
            return Slice(now, reason="too_many")
        return Slice(now, messages)

    def read(
        self,
        topic: str,
        since: Position | None,
        before: Position | None,
        limit: int,
        reverse: bool,
        most: int = MAX_SIZE,
    ) -> Slice:
        """Some of the messages after ``since`` and before ``before``, as many as fit into one answer.

        :param reverse: the newest first; otherwise the oldest.
        :param most: bytes of them, more or less; there is always one.
        """
        log, now = self._current(topic)
        for bound in (since, before):
            if bound is not None and bound.epoch and bound.epoch != now.epoch:
                return Slice(now, reason="epoch")
        if since is not None and since.offset > now.offset:
            return Slice(now, reason="history_lost")
        messages: list[KeptMessage] = []
        if log is None or not log.messages:
            reason = "too_old" if since is not None and since.offset < now.offset else ""
            return Slice(now, messages, reason=reason)
        first = log.top - len(log.messages) + 1
        if since is not None:
            if since.offset + 1 < first:
                return Slice(now, reason="too_old")
            first = since.offset + 1
        last = log.top if before is None else min(before.offset - 1, log.top)
        if first > last:
            return Slice(now, messages)
        more = last - first + 1 > limit
        if reverse:
            chosen = reversed(list(log.between(max(first, last - limit + 1), last)))
        else:
            chosen = log.between(first, min(last, first + limit - 1))
        size = 0
        for message in chosen:
            size += len(message.fragment)
            if size > most and messages:
                more = True
                break
            messages.append(message)
        return Slice(now, messages, more=more)

    def drop(self, topic: str) -> bool:
        """Forget all of ``topic``: whoever knew a position of it is told so. Returns whether there was anything."""
        log = self._logs.get(topic)
        if log is None:
            return False
        listeners = log.listeners
        if not log.top:
            self._forgotten[hash(topic) % GROUPS] += 1
        self._forget(log)
        if listeners:
            self.log(topic).listeners = listeners
        return True

    def renew(self) -> None:
        """Begin another numbering for topics that nobody has published to yet."""
        self._era += 1

    def expire(self, now: float) -> None:
        """Forget what is too old, some of it at a time."""
        due = self._due
        for _ in range(AT_ONCE):
            if not due or due[0][0] > now:
                return
            when, _, log = heappop(due)
            if self._logs.get(log.topic) is not log:
                continue
            if log.due != when:
                log.far = NEVER
                continue
            log.due = NEVER
            if log.expires > now:
                self._look_at(log, log.expires)
                continue
            self._clear(log)
            if log.known > now:
                if log.far < NEVER:
                    log.due, log.far = log.far, NEVER
                else:
                    self._look_at(log, log.known)
            elif not log.listeners:
                self._forget(log)

    def _look_at(self, log: Log, when: float) -> None:
        log.due = when
        heappush(self._due, (when, next(self._numbers), log))
        if len(self._due) > 3 * len(self._logs) + NOTED:
            # Most are of topics that were forgotten before their time.
            known = self._logs.get
            self._due[:] = [noted for noted in self._due if known(noted[2].topic) is noted[2]]
            heapify(self._due)

    def _current(self, topic: str) -> tuple[Log | None, Position]:
        """The log of ``topic``, without what is too old, and the position behind its newest message."""
        now = self._seconds()
        self.expire(now)
        log = self._logs.get(topic)
        if log is None:
            return None, Position(self._epoch(topic), 0)
        if log.messages and log.expires <= now:
            self._clear(log)
        return log, log.position

    def _drop_first(self, log: Log) -> None:
        fragment, user, _ = log.messages.popleft()
        size = MESSAGE + len(fragment)
        self.size -= size
        if user is not None:
            self._relieve(user, log, size)

    def _relieve(self, user: _Author, log: Log, size: int) -> None:
        """Charge ``user`` with ``size`` bytes less in ``log``."""
        user.size -= size
        left = user.logs[log] - size
        if left:
            user.logs[log] = left
        else:
            del user.logs[log]
            if not user.logs:
                del self._authors[user.name]

    def _disown(self, log: Log) -> None:
        """Charge nobody with the topic itself any more."""
        owner, log.owner = log.owner, None
        if owner is not None:
            self._relieve(owner, log, TOPIC)

    def _clear(self, log: Log) -> None:
        """Forget the messages of a log; where it stands is known on."""
        while log.messages:
            self._drop_first(log)
        log.messages = _NONE
        self._filled.pop(log, None)
        if not log.listeners:
            self._rests(log)

    def _rests(self, log: Log) -> None:
        self._idle[log] = None
        if len(self._idle) > IDLE:
            self._forget(next(iter(self._idle)))

    def _trim(self, user: _Author) -> None:
        """Let the topics lose messages that a user has filled, those first that it has published to the longest ago."""
        while user.size > self._share:
            log = next(iter(user.logs))
            if log.messages:
                self._drop_first(log)
            if log.messages:
                continue
            self._disown(log)
            if log.listeners:
                self._filled.pop(log, None)
            else:
                # What a user does without end leaves nothing behind.
                self._forget(log)

    def _tidy(self) -> None:
        """Keep within the memory that there is."""
        while self.size > self.total:
            if self._idle:
                self._forget(next(iter(self._idle)))
                continue
            log = next(iter(self._filled), None)
            if log is None:
                return
            self._drop_first(log)
            if not log.messages:
                self._clear(log)

    def _forget(self, log: Log) -> None:
        while log.messages:
            self._drop_first(log)
        log.messages = _NONE
        self._disown(log)
        del self._logs[log.topic]
        self._filled.pop(log, None)
        self._idle.pop(log, None)
        if log.top:
            self.size -= TOPIC
            # Its offsets may come again: nobody may take them for those that were.
            self._forgotten[hash(log.topic) % GROUPS] += 1
