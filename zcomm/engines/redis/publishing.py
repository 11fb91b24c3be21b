"""Publishing: one write and one reply for each message, with as little around that as there can be.

What does not change between two messages of a topic is written down once. Where the server is away, or does not take
the message, it waits in the topic's lane, and all that are published behind it do: so they keep their order.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from zcomm.engines.redis.layout import Layout
from zcomm.engines.redis.link import Words
from zcomm.engines.redis.pool import PATIENCE, Call, Pool, is_refused
from zcomm.engines.redis.replies import position_of
from zcomm.engines.redis.scripts import Scripts
from zcomm.engines.redis.shares import Shares
from zcomm.errors import Conflict, Unavailable
from zcomm.interfaces import Kept, Position
from zcomm.topics.history import KEEPS, KNOWN
from zcomm.topics.keys import DIGEST
from zcomm.topics.keys import KEPT as KEYS_KEPT

__all__ = ["Publishing"]

#: Topics whose beginnings of commands are remembered.
REMEMBERED = 20_000
#: Milliseconds for which a key of a publish is known.
KEY = int(KEYS_KEPT * 1000)


class _Route:
    """The way of a topic's messages: what all of its commands have in common.

    :ivar names: the keys that the script is told.
    :ivar words: what it is told first.
    :ivar begin: the begin of a command without a key of idempotency, and ``keyed`` of one with it.
    :ivar middle: those words.
    """

    __slots__ = ("begin", "kept", "keyed", "middle", "names", "partition", "scripts", "words")

    def __init__(self, layout: Layout, scripts: Scripts, topic: str, kept: Kept | None):
        self.scripts, self.kept = scripts, kept
        keys = layout.topic(topic)
        self.partition = keys.partition
        self.names = keys.stream, keys.meta, layout.history(keys.partition)
        if kept is None:
            self.words: Words = keys.channel, KEY
            script, more = scripts.relay, 2
        else:
            known = KNOWN if KEEPS * kept.seconds < KNOWN else KEEPS * kept.seconds
            self.words = keys.channel, kept.messages, int(kept.seconds * 1000), int(known * 1000), KEY
            script, more = scripts.publish, 3
        count = 3 + len(self.names) + len(self.words) + more
        names = b"".join(map(_bulk, self.names))
        self.begin = b"*%d\r\n$7\r\nEVALSHA\r\n%b$1\r\n3\r\n%b" % (count, _bulk(script.sha), names)
        self.keyed = b"*%d\r\n$7\r\nEVALSHA\r\n%b$1\r\n4\r\n%b" % (count + 1, _bulk(script.sha), names)
        self.middle = b"".join([_bulk(word) for word in self.words])


class _Message:
    """A message on its way, and what is to be done with the reply.

    :ivar rest: what the script is told last.
    """

    __slots__ = ("author", "home", "name", "published", "rest", "route", "size", "topic")

    def __init__(
        self,
        home: Publishing,
        topic: str,
        route: _Route,
        author: str | None,
        name: bytes | None,
        rest: Words,
        size: int,
    ):
        self.home = home
        self.topic = topic
        self.route = route
        self.author = author
        self.name = name
        self.rest = rest
        self.size = size
        self.published: Deferred[Position | None] = Deferred()

    def __call__(self, reply: Any) -> None:
        if type(reply) is bytes:
            self.home.done(self, reply)
        else:
            self.home.failed(self, reply)

    @property
    def call(self) -> Call:
        """The call that publishes it."""
        route = self.route
        script = route.scripts.relay if route.kept is None else route.scripts.publish
        names = route.names if self.name is None else (*route.names, self.name)
        return Call(route.partition, script, names, (*route.words, *self.rest), self.name is not None)


class Publishing:
    """Publishes messages.

    :param pool: sends them.
    :param layout: the names of keys.
    :param node: the id of this process.
    :param shares: counts what users publish.
    :param seconds: the monotonic clock.
    :param at_end: calls its argument at the end of the turn.
    :param is_copied: whether the replicas have to have it.
    :param on_drained: called with a topic whose messages do not wait any more.
    """

    def __init__(
        self,
        pool: Pool,
        layout: Layout,
        node: str,
        shares: Shares,
        seconds: Callable[[], float],
        at_end: Callable[[Callable[[], None]], object],
        is_copied: bool,
        on_drained: Callable[[], None],
    ):
        self._pool = pool
        self._layout = layout
        self._node = node
        self._shares = shares
        self._seconds = seconds
        self._at_end = at_end
        self._is_copied = is_copied
        self._on_drained = on_drained
        self._routes: OrderedDict[str, _Route] = OrderedDict()
        #: Messages that wait for a server, in order, by topic.
        self._lanes: dict[str, deque[tuple[_Message, float]]] = {}
        #: Numberings that were offered to scripts.
        self._epochs = 0

    def is_waiting(self, topic: str) -> bool:
        """Whether messages of ``topic`` wait for a server."""
        return topic in self._lanes

    def new_epoch(self) -> bytes:
        """A numbering that no topic has, nor had."""
        self._epochs += 1
        return b"%s%x" % (self._node.encode(), self._epochs)

    def publish(
        self,
        topic: str,
        kept: Kept | None,
        fragment: bytes,
        author: str | None,
        origin: str,
        key: str | None,
        digest: bytes,
    ) -> Deferred[Position | None]:
        """Publish a message; see :class:`~zcomm.interfaces.IEngine`."""
        route = self._routes.get(topic)
        if route is None or route.kept != kept or route.scripts is not self._pool.scripts:
            route = self._routes[topic] = _Route(self._layout, self._pool.scripts, topic, kept)
            if len(self._routes) > REMEMBERED:
                self._routes.popitem(last=False)
        payload = b"%b\n%b" % (origin.encode(), fragment)
        name, digest = None, digest[:DIGEST]
        if key is not None:
            name = self._layout.idempotency(route.partition, author or "", key)
        rest: Words
        if kept is None:
            rest = payload, digest
        else:
            rest = payload, self.new_epoch(), digest
        message = _Message(self, topic, route, author, name, rest, len(payload))
        protocol = self._pool.protocol(route.partition)
        if protocol is None or topic in self._lanes:
            self._wait(message)
        else:
            if name is None:
                begin = route.begin + route.middle
            else:
                begin = b"%b$%d\r\n%b\r\n%b" % (route.keyed, len(name), name, route.middle)
            if kept is None:
                words = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n" % (begin, len(payload), payload, len(digest), digest)
            else:
                epoch = rest[1]
                words = b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
                    begin,
                    len(payload),
                    payload,
                    len(epoch),
                    epoch,
                    len(digest),
                    digest,
                )
            protocol.ask(words, message)
        return message.published

    def done(self, message: _Message, reply: bytes) -> None:
        """Tell the position of a message."""
        position = position_of(reply)
        published, author, kept = message.published, message.author, message.route.kept
        if author is not None and position is not None and kept is not None and message.topic[0] != "$":
            for trim in self._shares.add(author, message.topic, kept, position.offset, message.size):
                keys = self._layout.topic(trim.topic)
                trimming = self._pool.call(keys.partition, self._pool.scripts.trim, (keys.stream,), (trim.offset + 1,))
                # Where the engine is away, the next one goes further.
                trimming.addErrback(lambda failure: failure.trap(Unavailable) and None)
        if published.called:
            return
        if self._is_copied and message.topic[0] != "$":
            copied = self._pool.copied(message.route.partition)
            copied.addCallback(lambda _: position).addBoth(
                lambda result: None if published.called else published.callback(result)
            )
        else:
            published.callback(position)

    def failed(self, message: _Message, error: BaseException) -> None:
        """Let a message wait that was not taken, or tell why it is not published."""
        try:
            self._pool.judge(error, message.call)
        except Exception as verdict:
            _refuse(message, verdict)
        else:
            self._wait(message)

    def _wait(self, message: _Message) -> None:
        """Publish it behind what waits for the server already."""
        lane = self._lanes.get(message.topic)
        if lane is None:
            lane = self._lanes[message.topic] = deque()
            self._at_end(partial(self._begin, message.topic, lane))
        lane.append((message, self._seconds() + PATIENCE))

    def _begin(self, topic: str, lane: deque[tuple[_Message, float]]) -> None:
        self._drive(topic, lane)

    @inlineCallbacks
    def _drive(self, topic: str, lane: deque[tuple[_Message, float]]) -> Generator[Deferred[Any], Any, None]:
        while lane:
            message, until = lane[0]
            if not message.published.called:
                try:
                    reply = yield self._pool.patiently(message.call, until)
                except Exception as error:
                    _refuse(message, error)
                else:
                    self.done(message, reply)
            lane.popleft()
        del self._lanes[topic]
        self._on_drained()


def _refuse(message: _Message, error: BaseException) -> None:
    if is_refused(error, "CONFLICT"):
        error = Conflict(
            "_idempotencyKey: it was used to publish something else; use a key only for the same again",
            {"_idempotencyKey": "was used for something else"},
        )
    if not message.published.called:
        message.published.errback(Failure(error))


def _bulk(word: bytes | str | int) -> bytes:
    """A word, as the protocol has it."""
    raw = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)
