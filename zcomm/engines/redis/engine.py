"""The engine on Redis: what is told or published in one process reaches all that share the servers."""

from __future__ import annotations

from collections import deque
from secrets import token_hex
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from zcomm.budget.written import write_json
from zcomm.engines.following import Following
from zcomm.engines.memory import HISTORY_MEMORY
from zcomm.engines.redis.beats import BEAT
from zcomm.engines.redis.channels import Channels
from zcomm.engines.redis.lease import Lease
from zcomm.engines.redis.link import Link
from zcomm.engines.redis.pool import FOREVER, Pool
from zcomm.engines.redis.protocol import LinkLost, ReplyError
from zcomm.engines.redis.publishing import Publishing
from zcomm.engines.redis.replies import changes_of, members_of, parts_of, position_of, slice_of
from zcomm.engines.redis.servers import Settings, settings_from
from zcomm.engines.redis.shares import Shares
from zcomm.errors import ConfigError, Unavailable
from zcomm.interfaces import (
    EVERYBODY,
    Audience,
    Broadcast,
    Change,
    IEngine,
    Kept,
    KeptMessage,
    Listener,
    Members,
    NodeListener,
    Position,
    Slice,
    TopicListener,
)
from zcomm.topics.history import MAX_SIZE
from zcomm.topics.keys import DIGEST
from zcomm.topics.presence import DETAIL
from zcomm.topics.requests import MAX_MESSAGES

__all__ = ["RedisEngine"]

#: Seconds between looks at links, and without a link after which clients are told.
LOOK, MOMENT = 1.0, 1.0
#: Seconds that the engine has for the last words of a node that stops.
LEAVE = 2.0
#: Seconds between comparisons of the topics that nothing is heard of, and how many of them in one call.
COMPARE, COMPARED = 25.0, 1000
#: Milliseconds that the numbering of a topic is known for at least, in which nothing is published.
NUMBERED = 10 * 24 * 3600 * 1000
#: The topic of what all nodes are told, the begin of what one is, and what those keep.
ALL, ONE = "$all", "$node:"
NODE_KEPT = Kept(1_000, 60.0)
#: Messages to other nodes that wait while the servers are away; where there are more, the nodes have missed some.
WAITING = 10_000


class _Head(msgspec.Struct):
    audience: msgspec.Raw
    is_result: bool = False
    is_notice: bool = False


_read_head = msgspec.json.Decoder(_Head).decode


class _Heard:
    """A topic that is listened to.

    :ivar is_asked: whether its position is asked for, or is not to be.
    :ivar was_heard: whether what is published there was heard once.
    :ivar waiting: those who wait until what is published is heard.
    """

    __slots__ = ("count", "is_asked", "is_kept", "waiting", "was_heard")

    def __init__(self, is_kept: bool):
        self.count = 1
        self.is_kept = is_kept
        self.is_asked = self.was_heard = False
        self.waiting: list[Deferred[Position | None]] = []


@implementer(IEngine)
class RedisEngine(Service):
    """Carries topics and broadcasts by Redis or Valkey.

    :param settings: where the servers are.
    :param reactor: the reactor.
    :param memory: bytes that messages may take which users have published at this process.
    :param ack: what a message that is acknowledged has survived: ``memory``, ``fsync`` or ``replica``.
    :ivar node: the id of this process.
    """

    name = "engine"
    is_shared = True
    _log = Logger()

    def __init__(self, settings: Settings, reactor: Any, memory: int = HISTORY_MEMORY, ack: str = "memory"):
        self._settings = settings
        self._reactor = reactor
        self._layout = layout = settings.layout
        self.node = token_hex(5)
        self._listeners: dict[Listener, None] = {}
        self._deliver: TopicListener | None = None
        self._node_listener: NodeListener | None = None
        at_end = getattr(reactor, "at_end_of_turn", None) or (lambda call: reactor.callLater(0, call))
        self._at_end = at_end
        self._pool = pool = Pool(settings, reactor, layout, f"zcomm-{self.node}", self, ack)
        self._channels = Channels(
            layout, pool.hearing, settings.kind == "cluster", self._confirmed, self._heard_raw, pool.find_again
        )
        self._following = Following(self._read_on, self)
        self._lease = Lease(
            pool, layout, self.node, at_end, lambda: reactor.seconds(), lambda: self.own_clients, self._brought_about
        )
        self._topics: dict[str, _Heard] = {}
        shares = Shares(memory, lambda: reactor.seconds())
        self._publishing = Publishing(
            pool, layout, self.node, shares, lambda: reactor.seconds(), at_end, ack == "replica", self._cast_on
        )
        self._looking = LoopingCall(self._look)
        self._beating = LoopingCall(self._beat)
        self._comparing = LoopingCall(self._compare)
        for loop in (self._looking, self._beating, self._comparing):
            loop.clock = reactor
        #: What other nodes are to be told and have not been.
        self._casts: deque[tuple[str, bytes]] = deque()
        self._has_lost_casts = False
        self._is_ready = self._is_degraded = False

    # -- as a service

    def startService(self) -> None:
        """Begin to look for the servers; :meth:`connected` says when they are there."""
        super().startService()
        self._pool.start()
        self._looking.start(LOOK, now=False)

    def connect_to(self, url: str) -> None:
        """Use the server of a managed service, which may have moved.

        :raises ConfigError: for a URL that is none of a Redis.
        """
        self._pool.use(settings_from(url))

    def connected(self) -> Deferred[None]:
        """A Deferred that fires when the engine can be used. It fails with :class:`~zcomm.errors.ConfigError` for
        servers that cannot be, as they are, and with :class:`~zcomm.errors.Unavailable` where none is there; the engine
        goes on trying then."""
        return self._pool.connected()

    @inlineCallbacks
    def stopService(self) -> Any:
        """Leave, with all members; a Deferred that fires when the engine has been told, or has been away too long."""
        super().stopService()
        for loop in (self._beating, self._comparing):
            if loop.running:
                loop.stop()
        if self._is_ready and self._pool.is_up:
            leaving = self._lease.own.done().addCallback(lambda _: self._lease.leave())
            yield leaving.addTimeout(LEAVE, self._reactor).addErrback(lambda _: None)
        if self._looking.running:
            self._looking.stop()
        self._pool.stop()

    # -- servers that come and go

    def servers_up(self) -> None:
        """Tell the engine what it may have lost, and ask it for what was missed."""
        if self._is_ready:
            self._tell_whether_away()
            self._lease.own.enter_again()
            self._lease.leave_again()
            self._compare()
            self._cast_on()
            return
        for topic in (ALL, f"{ONE}{self.node}"):
            if topic not in self._topics:
                self.listen(topic, NODE_KEPT)
        self._lease.beat().addCallbacks(self._begin, self._pool.trouble)

    def _begin(self, _: Any) -> None:
        if self._is_ready or not self.running:
            return
        self._is_ready = True
        self._beating.start(BEAT, now=False)
        self._comparing.start(COMPARE, now=False)
        self._pool.usable()
        # The others know of it at once, and not with their next beat only.
        self._cast(ALL, b"h")

    def hearing_up(self, link: Link) -> None:
        """Subscribe anew on a new connection."""
        self._channels.up(link)

    def hearing_down(self) -> None:
        """Forget what was subscribed to there."""
        self._channels.down()

    def servers_moved(self) -> None:
        """Subscribe where the topics are now."""
        self._channels.renew()

    def _beat(self) -> Deferred[Any]:
        # Where the engine is away, others do without.
        beating: Deferred[Any] = self._lease.beat()
        return beating.addErrback(self._not_beaten)

    def _not_beaten(self, failure: Failure) -> None:
        if not failure.check(Unavailable):
            self._log.failure("the engine could not be told that this node is there", failure)

    def _look(self) -> None:
        self._pool.look()
        self._tell_whether_away()
        if self._pool.is_up:
            if not self._is_ready:
                self.servers_up()
            for topic, heard in list(self._topics.items()):
                if not heard.is_asked and self._channels.is_confirmed(topic):
                    self._ask(topic, heard)

    def _tell_whether_away(self) -> None:
        since = self._pool.down_since
        is_degraded = since is not None and self._reactor.seconds() - since >= MOMENT
        if is_degraded is self._is_degraded or not self._is_ready:
            return
        self._is_degraded = is_degraded
        if is_degraded:
            self._log.warn("the engine is away: {why}", why=self._pool.why())
        else:
            self._log.info("the engine is back")
        self._tell_state("degraded" if is_degraded else "ok")

    def _tell_state(self, state: str, **more: Any) -> None:
        event = Broadcast(write_json({"event": "engine", "state": state, **more}))
        for listener in list(self._listeners):
            listener.tell(event)
        if self._deliver is not None:
            self._deliver.engine_state(state)

    # -- broadcasts and nodes

    @inlineCallbacks
    def join(self, database: str, name: str) -> Any:
        """Say to all that share the engine in which database the rows are that this process tells of.

        :param database: its id, which begins with ``sqlite:`` for one that other hosts cannot have.
        :param name: by which people know this process.
        :returns: a Deferred that fails with :class:`~zcomm.errors.ConfigError` where another process that is there has
            its rows in another database.
        """
        try:
            other = yield self._lease.join(database, name, self._reactor)
        except Unavailable:
            # It is said with the next beat.
            return
        if other is not None:
            raise ConfigError(
                "--engine",
                f"{other} is on the same engine with the same prefix and has its rows in another database; give each "
                "database a prefix of its own: ?prefix=NAME behind the engine's URL",
            )

    @inlineCallbacks
    def identity(self) -> Any:
        """A Deferred of the id that all have who share this engine; it fails with :class:`~zcomm.errors.Unavailable`
        while its servers are away."""
        protocol = self._pool.protocol(0)
        try:
            if protocol is not None:
                yield protocol.call("SET", self._layout.identity, token_hex(8), "NX")
                found = yield protocol.call("GET", self._layout.identity)
                if found is not None:
                    return found.decode()
        except (ReplyError, LinkLost):
            # Another time.
            pass
        raise Unavailable("The engine is away")

    def attach(self, listener: Listener) -> None:
        """Tell ``listener`` from now on."""
        self._listeners[listener] = None

    def detach(self, listener: Listener) -> None:
        """Tell ``listener`` no more."""
        self._listeners.pop(listener, None)

    @property
    def is_away(self) -> bool:
        """Whether servers have been away for more than a moment, or were not there yet."""
        return self._is_degraded or not self._is_ready

    @property
    def own_clients(self) -> int:
        """The number of clients of this process."""
        return sum(listener.clients for listener in self._listeners)

    @property
    def clients(self) -> int:
        """The number of clients of all nodes, as those have said within the last seconds; two at least."""
        # One may have come since.
        return max(2, self.own_clients + self.elsewhere)

    @property
    def elsewhere(self) -> int:
        """The number of clients of other nodes, as those have said within the last seconds."""
        return self._lease.clients_of_others

    def tell(self, message: Broadcast) -> int:
        """Hand ``message`` to all servers: those of this process at once, those of others by Redis."""
        count = 0
        for listener in list(self._listeners):
            count += listener.tell(message)
        head = write_json(_Head(msgspec.Raw(message.audience.to_json()), message.is_result, message.is_notice))
        self._cast(ALL, b"b" + head + b"\n" + message.payload)
        return count

    def cast(self, message: bytes, node: str | None = None) -> None:
        """Tell all other nodes, or one of them; they are told in order, each once, or that they have missed some."""
        self._cast(ALL if node is None else f"{ONE}{node}", b"n" + message)

    def nodes(self) -> list[str]:
        """The ids of the other nodes that have been there within the last seconds."""
        return self._lease.others

    def listen_to_nodes(self, listener: NodeListener) -> None:
        """Tell ``listener`` what other nodes say."""
        self._node_listener = listener

    def _cast(self, topic: str, message: bytes) -> None:
        self._casts.append((topic, message))
        if len(self._casts) > WAITING:
            self._casts.popleft()
            self._has_lost_casts = True
        self._cast_on()

    def _cast_on(self) -> None:
        """Send what other nodes are to be told, in order, where the servers are there."""
        while (self._casts or self._has_lost_casts) and self._is_ready:
            topic, message = (ALL, b"m") if self._has_lost_casts else self._casts[0]
            if self._publishing.is_waiting(topic) or self._pool.protocol(self._layout.topic(topic).partition) is None:
                return
            if self._has_lost_casts:
                self._has_lost_casts = False
            else:
                self._casts.popleft()
            # What is sent again after the connection was lost is known by its key.
            sent = self.publish(topic, NODE_KEPT, message, self.node, self.node, token_hex(8), bytes(DIGEST))
            sent.addErrback(self._not_cast)

    def _not_cast(self, failure: Failure) -> None:
        self._has_lost_casts = True
        if not failure.check(Unavailable):
            self._log.failure("other nodes could not be told", failure)

    def _told(self, message: KeptMessage) -> None:
        """Take what another node has said."""
        if message.origin == self.node:
            return
        kind, body = message.fragment[:1], message.fragment[1:]
        if kind == b"b":
            head, _, payload = body.partition(b"\n")
            found = _read_head(head)
            audience = Audience.from_json(bytes(found.audience))
            if audience == EVERYBODY:
                # The very one is known by.
                audience = EVERYBODY
            told = Broadcast(payload, audience, None, found.is_result, found.is_notice)
            for listener in list(self._listeners):
                listener.tell(told)
        elif kind == b"n" and self._node_listener is not None:
            self._node_listener.heard(message.origin, body)
        elif kind == b"m":
            self._missed()
        elif kind == b"h":
            self._beat()

    def _missed(self) -> None:
        """This process has missed what other nodes have said."""
        self._log.warn("what other nodes said was missed; tokens and rights are read anew")
        self._tell_state("ok", recovered=False)
        if self._node_listener is not None:
            self._node_listener.missed()

    # -- topics

    def deliver(self, listener: TopicListener) -> None:
        """Tell ``listener`` of what is published; there is one for all servers."""
        self._deliver = listener

    def listen(self, topic: str, kept: Kept | None) -> Deferred[Position | None]:
        """Deliver ``topic``; a Deferred of the position behind its newest message."""
        waiting: Deferred[Position | None] = Deferred()
        heard = self._topics.get(topic)
        if heard is None:
            heard = self._topics[topic] = _Heard(kept is not None)
            heard.waiting.append(waiting)
            if kept is not None:
                self._following.begin(topic)
            self._channels.add(topic)
            return waiting
        heard.count += 1
        position = self._following.position(topic)
        if not self._channels.is_confirmed(topic) or (heard.is_kept and position is None):
            heard.waiting.append(waiting)
        else:
            waiting.callback(position)
        return waiting

    def catch_up(self, topic: str) -> Deferred[None]:
        """Deliver what is there of a topic that is listened to; fires when that is done, or the engine is away."""
        return self._following.caught_up(topic)

    def unlisten(self, topic: str) -> None:
        """Deliver ``topic`` no more."""
        heard = self._topics.get(topic)
        if heard is None:
            return
        heard.count -= 1
        if not heard.count:
            del self._topics[topic]
            self._following.end(topic)
            self._channels.remove(topic)
            for waiting in heard.waiting:
                waiting.cancel()

    def _confirmed(self, topic: str) -> None:
        """What is published from now on is heard: ask where the topic stands."""
        heard = self._topics.get(topic)
        if heard is None:
            return
        if heard.was_heard and self._deliver is not None:
            # Meanwhile it was not.
            self._deliver.presence_missed(topic)
        heard.was_heard = True
        self._ask(topic, heard)

    def _ask(self, topic: str, heard: _Heard) -> None:
        heard.is_asked = True
        if not heard.is_kept:
            self._stands(None, topic, heard)
            return
        keys = self._layout.topic(topic)
        words = (self._publishing.new_epoch(), NUMBERED)
        names = (keys.stream, keys.meta, self._layout.history(keys.partition))
        asking = self._pool.call(keys.partition, self._pool.scripts.listen, names, words, patience=FOREVER)
        asking.addCallbacks(
            lambda reply: self._stands(position_of(reply), topic, heard), self._stands_not, errbackArgs=(topic, heard)
        )

    def _stands(self, position: Position | None, topic: str, heard: _Heard) -> None:
        if self._topics.get(topic) is not heard:
            return
        waiting, heard.waiting = heard.waiting, []
        if position is not None:
            if self._following.position(topic) is None:
                # Whoever waits knows the position first, then what comes behind it.
                for deferred in waiting:
                    deferred.callback(position)
                waiting = []
                self._following.stand(topic, position)
            else:
                self._following.check(topic, position)
            position = self._following.position(topic)
        for deferred in waiting:
            deferred.callback(position)

    def _stands_not(self, failure: Failure, topic: str, heard: _Heard) -> None:
        # It is asked for again soon.
        heard.is_asked = False
        if self.running and not failure.check(Unavailable):
            self._log.failure("{topic} cannot be listened to", failure, topic=topic)

    def _heard_raw(self, topic: str, data: bytes) -> None:
        """Take what was published on a topic's channel."""
        if data[:1] == b"p":
            if self._deliver is not None:
                for change in changes_of(data[1:]):
                    self._deliver.presence(topic, change, None)
            return
        head, _, fragment = data.partition(b"\n")
        offset, epoch, origin = head.decode().split(" ", 2)
        heard = self._topics[topic]
        if epoch == "-":
            if self._deliver is not None:
                self._deliver.message(topic, None, fragment, origin, None)
            # Other nodes keep it, or do not keep it any more.
            if heard.is_kept:
                self._following.heal([topic])
            return
        position = Position(epoch, int(offset))
        message = KeptMessage(position.offset, fragment, origin)
        if heard.is_kept:
            self._following.heard(topic, position, message)
        elif self._deliver is not None:
            self._deliver.message(topic, None, fragment, origin, None)

    def message(self, topic: str, position: Position, message: KeptMessage) -> None:
        """Deliver what is followed."""
        if topic[0] == "$":
            self._told(message)
        elif self._deliver is not None:
            self._deliver.message(topic, position, message.fragment, message.origin, None)

    def moved(self, topic: str, position: Position, reason: str) -> None:
        """Tell of a topic that does not go on where it was."""
        if topic[0] == "$":
            self._missed()
            if reason == "history_lost":
                # Those who had not heard what is lost cannot know that it was there.
                self._cast(topic, b"m")
        elif self._deliver is not None:
            self._deliver.moved(topic, position, reason)

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
        """Publish a message; see :class:`~zcomm.interfaces.IEngine`. The one that comes back is delivered here too."""
        return self._publishing.publish(topic, kept, fragment, author, origin, key, digest)

    def resume(self, topic: str, since: Position) -> Deferred[Slice]:
        """A Deferred of all messages after ``since``, or of none and the reason."""
        known = since if since.epoch else Position("-", since.offset)
        return self._read(topic, known, None, MAX_MESSAGES, False, MAX_SIZE, True)

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
        return self._read(topic, since, before, limit, reverse, most, False)

    def _read_on(self, topic: str, since: Position) -> Deferred[Slice]:
        return self._read(topic, since, None, MAX_MESSAGES, False, MAX_SIZE, False)

    def _read(
        self,
        topic: str,
        since: Position | None,
        before: Position | None,
        limit: int,
        reverse: bool,
        most: int,
        is_whole: bool,
    ) -> Deferred[Slice]:
        keys = self._layout.topic(topic)
        words: list[bytes | str | int] = [self._publishing.new_epoch(), NUMBERED]
        if since is None:
            words += ["", "", ""]
        else:
            words += [*parts_of(since.epoch), since.offset]
        if before is None:
            words += ["", ""]
        else:
            words += [parts_of(before.epoch)[0], before.offset]
        words += [limit, most, int(reverse), int(is_whole)]
        names = (keys.stream, keys.meta, self._layout.history(keys.partition))
        return self._pool.call(keys.partition, self._pool.scripts.read, names, words).addCallback(slice_of)

    def drop(self, topic: str) -> None:
        """Forget all messages of ``topic``."""
        keys = self._layout.topic(topic)
        dropping = self._pool.call(keys.partition, self._pool.scripts.drop, (keys.stream, keys.meta), ())
        dropping.addErrback(
            lambda failure: self._log.failure("the messages of {topic} are not dropped", failure, topic=topic)
        )

    def _compare(self) -> None:
        """Look whether something was missed, and keep the numberings of what is listened to from being forgotten."""
        by_partition: dict[int, list[str]] = {}
        for topic, heard in self._topics.items():
            if heard.is_kept:
                by_partition.setdefault(self._layout.topic(topic).partition, []).append(topic)
        for partition, topics in by_partition.items():
            for begin in range(0, len(topics), COMPARED):
                part = topics[begin : begin + COMPARED]
                names = [self._layout.topic(topic).meta for topic in part]
                comparing = self._pool.call(partition, self._pool.scripts.stand, names, (NUMBERED,))
                comparing.addCallbacks(self._compared, lambda failure: failure.trap(Unavailable) and None, (part,))

    def _compared(self, replies: list[bytes], topics: list[str]) -> None:
        for topic, reply in zip(topics, replies, strict=True):
            position = position_of(reply)
            if position is None:
                # Its numbering is gone, with all that was kept.
                self._following.heal([topic])
            else:
                self._following.check(topic, position)

    # -- presence

    def enter(self, topic: str, connection: str, user: str, state: bytes | None, teller: Any = None) -> Deferred[None]:
        """Let a connection into a topic, or take its new state, if any."""
        return self._lease.own.enter(topic, connection, user, state)

    def leave(self, topic: str, connection: str, teller: Any = None) -> None:
        """Let a connection leave a topic."""
        self._lease.own.leave(topic, connection)

    def claim(self, name: str, member: str, limit: int) -> Deferred[bool]:
        """Ask for one of ``limit`` places of all nodes together; a Deferred of whether there was one."""
        claiming: Deferred[bool] = self._lease.claim(name, member, limit)
        return claiming

    def release(self, name: str, member: str) -> None:
        """Give a place back."""
        self._lease.release(name, member)

    def _brought_about(self, topic: str, change: Change) -> None:
        if self._deliver is not None:
            self._deliver.came_or_went(topic, change)

    def members(self, topic: str, most: int = DETAIL) -> Deferred[Members]:
        """A Deferred of who is in a topic, with names where they are no more than ``most``."""
        keys = self._layout.topic(topic)
        asking = self._pool.call(keys.partition, self._pool.scripts.members, (keys.members, keys.users), (most,))
        return asking.addCallback(members_of)
