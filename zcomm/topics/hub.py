"""The subscriptions of this process: who hears of which topic, from where on (docs/protocol.rst, "Topics").

A topic has one position here. Whoever subscribes joins in the turn in which the reply is written, at the position that
the reply tells; so no message is told twice or left out. What is published within a turn leaves at its end, in one pass
over the sockets. Who does not take what it has been sent already is told nothing of what a topic keeps, and is caught
up from there once it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Hashable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NoReturn

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from zcomm.budget.account import PUBLISH_BURST, Bucket
from zcomm.budget.budgets import Budgets
from zcomm.budget.memory import Hold
from zcomm.budget.written import Written, write_json
from zcomm.config import Limits
from zcomm.errors import CommandError, TooBusy, Unavailable
from zcomm.interfaces import (
    Change,
    IEngine,
    KeptMessage,
    Position,
    Slice,
)
from zcomm.runtime.deferreds import driven
from zcomm.topics.history import MAX_SIZE
from zcomm.topics.judging import Judging, is_cancelled, topic_event
from zcomm.topics.kinds import Found, Kinds
from zcomm.topics.presence import NO_STATE
from zcomm.topics.requests import MAX_MESSAGES, Subscribe
from zcomm.topics.subscriber import Subscriber
from zcomm.topics.subscriptions import Message, Owner, Subscription, Topic, TopicClient, encode_messages
from zcomm.topics.watching import SLICE, Watching
from zcomm.wire.fanout import FanOut
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Hub"]

#: Connections' worth of subscriptions that one user may have.
CONNECTIONS = 256
#: Bytes of a reply that takes little room (:data:`zcomm.bifrost.session.SMALL`).
SMALL = 64 * 1024
#: Bytes of messages that a client which is caught up is sent before it has to have taken them.
CHUNK = 128 * 1024
#: Seconds that an engine which is away has to come back.
PATIENCE = 10.0
#: How often the engine is asked where what it says and what was delivered here are too far apart.
TRIES = 5


class Hub:
    """The topics of one process; the :class:`~zcomm.interfaces.TopicListener` of its engine.

    :param engine: carries and keeps what is published.
    :param kinds: the kinds of topics.
    :param clock: for what is told together, and rates.
    :param limits: of a client.
    :param budgets: the memory of large replies.
    :param batch: says when a turn is over.
    :param fan_out: sends to many.
    :param is_heard: whether the program hears who comes into a topic and goes.
    :param on_presence: tells the program: topic, users who have come, users who have gone.
    :ivar watching: tells of presence.
    :ivar judging: lets subscriptions follow kinds and rights that change.
    """

    _log = Logger()

    def __init__(
        self,
        engine: IEngine,
        kinds: Kinds,
        clock: IReactorTime,
        limits: Limits,
        budgets: Budgets,
        batch: WriteBatch,
        fan_out: Callable[..., None],
        is_heard: Callable[[str], bool],
        on_presence: Callable[[str, list[str], list[str]], None],
    ):
        self.engine = engine
        self.kinds = kinds
        self.limits = limits
        #: Bytes of the messages of one answer: no more than there is ever room for.
        self.most = min(MAX_SIZE, limits.results_size // 4)
        self._clock = clock
        self._budgets = budgets
        self._batch = batch
        self._fan_out = FanOut(batch, fan_out)
        self._topics: dict[str, Topic] = {}
        self.subscribers: dict[str, Subscriber] = {}
        #: Messages so far that somebody here was told of.
        self.delivered = 0
        #: Connections that had to do with topics so far, and subscriptions that were begun.
        self._numbers = self._begun = 0
        #: Topics with messages that wait for the end of the turn.
        self._dirty: list[Topic] = []
        self.watching = Watching(engine, clock, batch, self._fan_out, self._topics.get, is_heard, on_presence)
        self.tell_members = self.watching.tell_members
        self.judging = Judging(engine, kinds, batch, self._fan_out, self._topics, self.subscribers, self)
        self._by_user: Counter[Hashable] = Counter()
        engine.deliver(self)

    def __len__(self) -> int:
        return len(self._topics)

    @property
    def subscriptions(self) -> int:
        """The number of subscriptions of all connections."""
        return self._by_user.total()

    # -- positions

    def told(self, topic: str, position: Position) -> Position:
        """A position of the engine's as clients know it: whether the topic is kept is part of the numbering."""
        # An engine that others share sees to that itself.
        found = self.kinds.find(topic) if self.kinds.have_changed and not self.engine.is_shared else None
        if found is None or not found.generation:
            return position
        return Position(f"{position.epoch}-{found.generation:x}", position.offset)

    def known(self, topic: str, told: Position) -> Position | None:
        """A position that a client tells as the engine knows it; ``None`` for one of a numbering that is over."""
        known = Position(told.epoch.partition("-")[0], told.offset)
        return known if known.epoch and self.told(topic, known) == told else None

    def resume(self, topic: str, since: Position) -> Deferred[Slice]:
        """All messages after ``since``, as clients know positions."""
        known = self.known(topic, since)
        if known is None:
            known = Position("", since.offset)
        return self.engine.resume(topic, known).addCallback(partial(self._told_slice, topic))

    def read(
        self,
        topic: str,
        since: Position | None,
        before: Position | None,
        limit: int,
        reverse: bool,
        most: int = MAX_SIZE,
    ) -> Deferred[Slice]:
        """Some of the messages, as clients know positions."""
        known = self._bound(topic, since), self._bound(topic, before)
        read = self.engine.read(topic, known[0], known[1], limit, reverse, most)
        return read.addCallback(partial(self._told_slice, topic))

    def _bound(self, topic: str, told: Position | None) -> Position | None:
        if told is None or not told.epoch:
            return told
        # No engine has such an epoch as that of one that is over.
        return self.known(topic, told) or Position("-", told.offset)

    def _told_slice(self, topic: str, found: Slice) -> Slice:
        return found._replace(position=self.told(topic, found.position)) if self.kinds.have_changed else found

    # -- connections

    def subscriber(self, client: TopicClient) -> Subscriber:
        """The side of topics of ``client``; made where it has none.

        :raises Unavailable: for one that is gone.
        """
        subscriber: Subscriber | None = client.subscriber
        if subscriber is None:
            if client.transport is None:
                raise Unavailable("The connection has ended")
            self._numbers += 1
            subscriber = Subscriber(self, client, f"{self.engine.node}-{self._numbers:x}")
            client.subscriber = self.subscribers[subscriber.id] = subscriber
        return subscriber

    def lost(self, subscriber: Subscriber) -> None:
        """A connection is gone."""
        self.subscribers.pop(subscriber.id, None)
        for subscription in list(subscriber.topics.values()):
            self.leave(subscription)
        waiting, subscriber.waiting = subscriber.waiting, None
        for deferred in waiting or ():
            # Whoever waits has been cancelled, or is now.
            deferred.cancel()

    def take_publish(self, client: Any, subscriber: Subscriber | None) -> None:
        """Count a message that a client publishes.

        :raises TooBusy: where it publishes too many.
        """
        rate = self.limits.publish_rate
        if subscriber is None:
            bucket = client.account.publishing
        else:
            bucket = subscriber.bucket
            if bucket is None:
                bucket = subscriber.bucket = Bucket(rate, rate * PUBLISH_BURST, self._clock.seconds)
        if not bucket.take(1):
            raise TooBusy(f"Too many messages published: at most {rate:g} a second; try again")

    # -- subscribing

    def subscribe(self, subscriber: Subscriber, asked: Subscribe, found: Found, judge: Callable[[], Found]) -> Any:
        """Subscribe a connection, or begin its subscription anew.

        :param judge: says of which kind the topic is; raises where the client may not subscribe to it, now.
        :returns: the result, or a Deferred of it; it has to be sent in the turn in which it is there.
        """
        result = driven(self._subscribing(subscriber, asked, found, judge))
        # What is written already is taken of a Deferred only.
        return succeed(result) if isinstance(result, Written) else result

    def _subscribing(
        self, subscriber: Subscriber, asked: Subscribe, found: Found, judge: Callable[[], Found]
    ) -> Generator[Deferred[Any], Any, dict[str, Any] | Written]:
        topic = self._hold(asked.topic, found)
        is_in = False
        try:
            if topic.listening is not None:
                listening: Deferred[None] = Deferred()
                topic.listening.append(listening)
                yield listening.addTimeout(PATIENCE, self._clock, _is_away)
            part: Slice | None = None
            messages: list[bytes] | None = None
            members: bytes | None = None
            hold: Hold | None = None
            tries = 0
            try:
                while True:
                    self.judging.renew(asked.topic)
                    wants_messages = topic.kept is not None and (asked.since is not None or asked.last > 0)
                    if wants_messages:
                        yield subscriber.when_free()
                        self.judging.renew(asked.topic)
                    has_presence = self._judge(subscriber, asked, judge).kind.presence
                    part = messages = None
                    if wants_messages and topic.kept is not None:
                        part = yield self._slice(asked)
                    if has_presence:
                        # Where it fails, the engine may have it all the same.
                        is_in = True
                        yield self._enter(subscriber, asked)
                        if asked.presence:
                            there = yield self.engine.members(asked.topic)
                            members = write_json(self.watching.shown(topic, there))
                    if part is not None and not part.reason:
                        known = self._as_delivered(topic, part, asked)
                        if known is None:
                            # What the engine says and what was delivered here are too far apart.
                            tries += 1
                            if tries > TRIES:
                                raise Unavailable("The engine that carries topics is behind; try again")
                            yield self.engine.catch_up(asked.topic)
                            continue
                        messages = encode_messages(known)
                    size = sum(map(len, messages or ())) + len(messages or ()) + len(members or b"")
                    if size <= SMALL or hold is not None and hold.size >= size:
                        break
                    if hold is not None:
                        hold.release()
                    # It may have grown when there is room for it.
                    size += size // 8 + SMALL
                    memory, account = self._budgets.memory, subscriber.client.account
                    waiting = memory.when(account, size)
                    is_waiting = not waiting.called
                    yield waiting
                    hold = Hold(memory, account, size, lambda call: call())
                    if not is_waiting:
                        break
                # What was delivered while this was written down is behind it.
                self._judge(subscriber, asked, judge)
                # From here to the reply nothing waits.
                self._join(subscriber, topic, asked)
                if topic.found.kind.presence is not is_in:
                    # It has become another while something was waited for.
                    self.judging.show(asked.topic, subscriber)
            except BaseException:
                if hold is not None:
                    hold.release()
                raise
            result: dict[str, Any] = {"topic": asked.topic}
            if topic.epoch:
                result |= {"epoch": topic.epoch, "offset": topic.offset}
            if asked.since is not None:
                reason = "not_kept" if part is None else part.reason
                result["recovered"] = not reason
                if reason:
                    result["reason"] = reason
            if members is not None:
                result |= {"connection": subscriber.id, "presence": msgspec.Raw(members)}
            return _with_messages(result, messages, hold)
        except BaseException:
            if is_in and asked.topic not in subscriber.topics:
                self.engine.leave(asked.topic, subscriber.id, subscriber.client.account)
            raise
        finally:
            topic.holders -= 1
            self._let_go(topic)

    def _enter(self, subscriber: Subscriber, asked: Subscribe) -> Deferred[None]:
        state = NO_STATE if asked.state is None else asked.state
        return self.engine.enter(asked.topic, subscriber.id, subscriber.user, state, subscriber.client.account)

    def _slice(self, asked: Subscribe) -> Deferred[Slice]:
        if asked.since is not None:
            return self.resume(asked.topic, asked.since).addCallback(self._bounded)
        return self.read(asked.topic, None, None, asked.last, True, self.most).addCallback(
            lambda found: found._replace(messages=list(reversed(found.messages)))
        )

    def _bounded(self, part: Slice) -> Slice:
        if sum([len(message.fragment) for message in part.messages]) <= self.most:
            return part
        return Slice(part.position, reason="too_many")

    def _as_delivered(self, topic: Topic, part: Slice, asked: Subscribe) -> Sequence[KeptMessage] | None:
        """The messages of ``part`` as far as they have been delivered here, and those that have been since; ``None``
        where that cannot be told.

        The engine is asked and heard over two connections, of which either may be ahead. Whoever joins is told what
        comes behind what has been delivered here, so the messages of the reply have to end there.
        """
        if not self.engine.is_shared:
            return part.messages
        since = asked.since
        if part.position.epoch != topic.epoch or (since is not None and since.offset > topic.offset):
            return None
        if part.position.offset >= topic.offset:
            return [message for message in part.messages if message.offset <= topic.offset]
        missed = topic.between(part.position.offset)
        if missed is None:
            return None
        messages = [*part.messages, *missed]
        return messages if since is not None else messages[-asked.last :]

    def _judge(self, subscriber: Subscriber, asked: Subscribe, judge: Callable[[], Found]) -> Found:
        """Whether the client may subscribe, as things are now.

        :raises CommandError: where it may not.
        """
        client = subscriber.client
        if client.transport is None:
            raise Unavailable("The connection has ended")
        found = judge()
        if asked.topic in subscriber.topics:
            return found
        most = self.limits.topics_per_client
        if len(subscriber.topics) >= most:
            raise TooBusy(f"Too many topics: at most {most}; unsubscribe from one")
        if self._by_user[client.account.owner] >= most * CONNECTIONS:
            raise client.account.refuse(f"Too many topics on all your connections: at most {most * CONNECTIONS}")
        return found

    def _hold(self, name: str, found: Found) -> Topic:
        """The topic, which is kept until :meth:`_let_go`."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name, found)
            topic.listening = []
            self.engine.listen(name, topic.kept).addCallbacks(self._listens, is_cancelled, (topic,))
        topic.holders += 1
        return topic

    def _listens(self, position: Position | None, topic: Topic) -> None:
        if position is not None:
            topic.epoch, topic.offset = self.told(topic.name, position)
        waiting, topic.listening = topic.listening, None
        for deferred in waiting or ():
            if not deferred.called:
                deferred.callback(None)

    def _let_go(self, topic: Topic) -> None:
        if topic.is_unused and self._topics.get(topic.name) is topic:
            del self._topics[topic.name]
            topic.pending = None
            self.engine.unlisten(topic.name)

    def _join(self, subscriber: Subscriber, topic: Topic, asked: Subscribe) -> None:
        """Let a connection hear of what is published from now on."""
        old = subscriber.topics.get(topic.name)
        if old is None:
            self._by_user[subscriber.client.account.owner] += 1
        else:
            self._part(old)
        self._begun += 1
        number = -self._begun if asked.is_own else self._begun
        self._take_in(Subscription(topic, subscriber, asked.echo, asked.presence, number))

    def _take_in(self, subscription: Subscription) -> None:
        topic, subscriber = subscription.topic, subscription.subscriber
        subscriber.topics[topic.name] = subscription
        topic.members[subscription] = None
        if topic.pending:
            if topic.late is None:
                topic.late = {}
            topic.late[subscription] = len(topic.pending)
        if subscription.watches:
            if topic.watchers is None:
                topic.watchers = {}
            topic.watchers[subscription] = None
        if not subscription.echo:
            if topic.quiet is None:
                topic.quiet = {}
            topic.quiet[subscriber.id] = subscription

    def _part(self, subscription: Subscription) -> None:
        """Tell a subscription nothing more, whatever is on its way to it."""
        topic, subscriber = subscription.topic, subscription.subscriber
        subscription.transport = None
        topic.members.pop(subscription, None)
        for places in (topic.behind, topic.watchers, topic.late, subscriber.behind, subscriber.stale):
            if places is not None:
                places.pop(subscription, None)
        if topic.quiet is not None and topic.quiet.get(subscriber.id) is subscription:
            del topic.quiet[subscriber.id]
            topic.quiet = topic.quiet or None
        topic.behind = topic.behind or None
        topic.watchers = topic.watchers or None

    def leave(self, subscription: Subscription) -> None:
        """End a subscription."""
        topic, subscriber = subscription.topic, subscription.subscriber
        account = subscriber.client.account
        self._part(subscription)
        if subscriber.topics.pop(topic.name, None) is not None:
            left = self._by_user[account.owner] - 1
            if left:
                self._by_user[account.owner] = left
            else:
                del self._by_user[account.owner]
        if topic.found.kind.presence:
            self.engine.leave(topic.name, subscriber.id, account)
        self._let_go(topic)

    def end(self, subscription: Subscription, reason: str) -> None:
        """End a subscription that its client has not asked to end, and tell it so."""
        self.leave(subscription)
        subscription.subscriber.client.send_payloads(
            [write_json({"event": "unsubscribed", "topic": subscription.topic.name, "reason": reason})]
        )

    # -- messages

    def message(self, topic: str, position: Position | None, fragment: bytes, origin: str, teller: Any) -> None:
        """Deliver a message at the end of this turn."""
        heard = self._topics.get(topic)
        if heard is None:
            return
        self.delivered += 1
        offset, epoch = 0, ""
        if position is not None and heard.epoch:
            heard.offset = offset = position.offset
            if self.engine.is_shared:
                if position.epoch != heard.epoch:
                    heard.epoch = epoch = position.epoch
                if heard.holders or heard.behind:
                    heard.recent.append(KeptMessage(offset, fragment, origin))
                elif heard.recent:
                    heard.recent.clear()
        if teller is None and (author := self.subscribers.get(origin)) is not None:
            teller = author.client.account
        pending = heard.pending
        if pending is None:
            pending = heard.pending = []
            if not self._dirty:
                self._batch.add_last(self)
            self._dirty.append(heard)
        pending.append(Message(heard.payload(offset, fragment, epoch), fragment, offset, origin, teller, epoch))

    def flush(self) -> None:
        """Send what waits; called at the end of the turn."""
        begun = perf_counter()
        dirty, self._dirty = self._dirty, []
        for topic in dirty:
            pending, topic.pending = topic.pending, None
            late, topic.late = topic.late, None
            if pending and topic.members:
                try:
                    self._send(topic, pending, late or {})
                except Exception:
                    # Those of other topics go out all the same.
                    self._log.failure("messages of {topic} could not be sent", topic=topic.name)
        self._fan_out.begin(begun)

    def _send(self, topic: Topic, pending: list[Message], late: dict[Subscription, int]) -> None:
        tellers = list({message.teller: None for message in pending if message.teller is not None})
        quiet = topic.quiet
        special = dict.fromkeys(late)
        if quiet is not None:
            for message in pending:
                if (subscription := quiet.get(message.origin)) is not None:
                    special[subscription] = None
        behind = None
        if topic.epoch:
            behind = partial(self._falls_behind, topic.epoch, pending[0].offset - 1)
        hearers = [one for one in topic.members if one not in special] if special else list(topic.members)
        if hearers:
            self._fan_out.add(hearers, [message.payload for message in pending], tellers, behind, topic.name)
        for subscription in special:
            rest = pending[late.get(subscription, 0) :]
            if rest and subscription in topic.members:
                if topic.epoch:
                    behind = partial(self._falls_behind, topic.epoch, rest[0].offset - 1)
                payloads = [
                    self._for(subscription, message.offset, message.fragment, message.origin, message.epoch)
                    for message in rest
                ]
                self._fan_out.add([subscription], payloads, tellers, behind, topic.name)

    def _for(self, subscription: Subscription, offset: int, fragment: bytes, origin: str, epoch: str = "") -> bytes:
        """The event of a message as a subscriber gets it."""
        if origin == subscription.subscriber.id and not subscription.echo:
            return subscription.topic.own_payload(offset, fragment, epoch)
        return subscription.topic.payload(offset, fragment, epoch)

    def _falls_behind(self, epoch: str, offset: int, subscription: Subscription) -> None:
        """Catch a subscriber up later, who does not take what it has been sent: from that position on."""
        topic, subscriber = subscription.topic, subscription.subscriber
        if subscription not in topic.members:
            # It was taken out meanwhile.
            return
        subscription.transport = None
        subscription.offset = offset
        del topic.members[subscription]
        if topic.late is not None:
            topic.late.pop(subscription, None)
        if topic.behind is None:
            topic.behind = {}
        topic.behind[subscription] = epoch
        if subscriber.behind is None:
            subscriber.behind = {}
        subscriber.behind[subscription] = None

    def catch_up(self, subscriber: Owner) -> None:
        """Tell a subscriber what it has missed of the topics that it is behind in, as far as it takes that."""
        until = perf_counter() + SLICE
        for subscription in list(subscriber.behind or ()):
            if subscriber.is_blocked:
                return
            topic, since = subscription.topic, subscription.offset
            behind = topic.behind or {}
            if subscription not in behind:
                # It has ended meanwhile, or is about to.
                self._part(subscription)
                continue
            if topic.epoch:
                found = self.read(topic.name, Position(behind[subscription], since), None, MAX_MESSAGES, False, CHUNK)
            else:
                # It keeps nothing any more.
                found = succeed(Slice(Position("", 0), reason="not_kept"))
            # Where the engine is away, it goes on when that is back.
            found.addCallbacks(
                self._caught_up, lambda failure: failure.trap(CommandError) and None, (subscription, since)
            )
            if perf_counter() > until:
                subscriber.go_on_later()
                return

    def _caught_up(self, found: Slice, subscription: Subscription, since: int) -> None:
        topic, subscriber = subscription.topic, subscription.subscriber
        client = subscriber.client
        if subscription not in (topic.behind or ()) or subscription.offset != since:
            return
        if client.transport is None:
            return
        begun = perf_counter()
        offset = since
        messages = found.messages
        if self.engine.is_shared and not found.reason:
            if found.position.epoch != topic.epoch or since > topic.offset:
                self.engine.catch_up(topic.name).addCallback(lambda _: subscriber.go_on_later())
                return
            # The engine may be ahead of what was delivered here, or behind it.
            messages = [message for message in messages if message.offset <= topic.offset]
            if not found.more:
                messages += topic.between(messages[-1].offset if messages else since) or ()
        if found.reason:
            client.send_payloads([topic_event(topic, found.reason)])
            offset = topic.offset
            if topic.behind is not None:
                topic.behind[subscription] = topic.epoch
        elif messages:
            # What it missed is owed to it: that it waits ends no connection.
            behind = topic.behind or {}
            epoch = found.position.epoch if found.position.epoch != behind[subscription] else ""
            behind[subscription] = found.position.epoch
            first, *rest = messages
            client.transport.reply(
                [self._for(subscription, *first, epoch), *(self._for(subscription, *each) for each in rest)]
            )
            offset = messages[-1].offset
        if client.transport is None or subscription not in (topic.behind or ()):
            return
        if offset >= topic.offset:
            self._part(subscription)
            again = Subscription(topic, subscriber, subscription.echo, subscription.watches, subscription.number)
            self._take_in(again)
            if again.watches and topic.found.kind.presence:
                self.tell_members(again)
        else:
            subscription.offset = offset
        if subscriber.behind or subscriber.stale:
            subscriber.go_on_later()
        client.account.spend(begun, perf_counter())

    def moved(self, topic: str, position: Position, reason: str) -> None:
        """Tell those who are subscribed that what follows does not follow what they have."""
        heard = self._topics.get(topic)
        if heard is not None and heard.epoch and heard.listening is None:
            if heard.pending:
                self.flush()
            self.judging.renumber(heard, position, reason)

    def presence(self, topic: str, change: Change, teller: Any) -> None:
        """Tell of somebody who has come or gone, within a moment."""
        self.watching.change(topic, self._topics.get(topic), change, teller)

    def presence_missed(self, topic: str) -> None:
        """Look who is there, where somebody here watches that."""
        self.watching.look(topic)

    def came_or_went(self, topic: str, change: Change) -> None:
        """Tell the program of that, where it hears of the topic."""
        self.watching.note(topic, change)

    def engine_state(self, state: str) -> None:
        """Go on, where the engine is back, with what could not be read from it."""
        if state == "ok":
            self.judging.begin(subscriber.go_on_later for subscriber in list(self.subscribers.values()))

    def topic(self, name: str) -> Topic | None:
        """The topic, where somebody here is subscribed to it."""
        return self._topics.get(name)


def _is_away(_: Any, __: float) -> NoReturn:
    raise Unavailable("The engine that carries topics is away; try again")


def _with_messages(result: dict[str, Any], messages: list[bytes] | None, hold: Hold | None) -> dict[str, Any] | Written:
    """A result with messages where there are any, and the memory that is held for it."""
    if hold is None:
        if messages is not None:
            result["messages"] = msgspec.Raw(b"[" + b",".join(messages) + b"]")
        return result
    written = Written()
    written.write(write_json(result)[:-1])
    if messages is not None:
        written.write(b',"messages":[')
        for place, message in enumerate(messages):
            written.write(b"," + message if place else message)
        written.write(b"]")
    written.write(b"}")
    written.hold = hold
    return written
