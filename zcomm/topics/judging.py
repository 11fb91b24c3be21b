"""Judging subscriptions anew when kinds or rights have changed, and ending many of them: in as many turns as it takes.

Each step goes by what holds in its own turn, so that whatever happens between two of them is the later word.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.budget.written import write_json
from zcomm.errors import CommandError
from zcomm.interfaces import IEngine, Position
from zcomm.topics.kinds import Found, Kinds
from zcomm.topics.subscriber import Subscriber
from zcomm.topics.subscriptions import Subscription, Topic
from zcomm.topics.watching import SLICE
from zcomm.wire.fanout import FanOut
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Judging", "is_cancelled", "topic_event"]

#: Whether a subscription goes on.
May = Callable[[Subscriber, Subscription, Found], bool]


class Home(Protocol):
    """The hub, as far as what is judged needs it."""

    def flush(self) -> None:
        """Send what waits."""

    def told(self, topic: str, position: Position) -> Position:
        """A position as clients know it."""

    def end(self, subscription: Subscription, reason: str) -> None:
        """End a subscription, and tell its client so."""

    def catch_up(self, subscriber: Any) -> None:
        """Tell a subscriber what it has missed."""


class Judging:
    """Lets subscriptions follow the kinds and rights of now.

    :param engine: knows who is there.
    :param kinds: the kinds of topics.
    :param batch: says when a turn is over.
    :param fan_out: sends to many.
    :param topics: those that somebody here is subscribed to, by name.
    :param subscribers: the connections that have to do with topics, by id.
    :param home: what it is done with.
    """

    _log = Logger()

    def __init__(
        self,
        engine: IEngine,
        kinds: Kinds,
        batch: WriteBatch,
        fan_out: FanOut,
        topics: dict[str, Topic],
        subscribers: dict[str, Subscriber],
        home: Home,
    ):
        self._engine = engine
        self._kinds = kinds
        self._batch = batch
        self._fan_out = fan_out
        self._topics = topics
        self._subscribers = subscribers
        self._home = home
        #: What is under way; each has its slice in turn.
        self._work: deque[Iterator[Callable[[], object]]] = deque()
        self._goes_on = False
        #: Who may go on, and the steps behind that, where all is to be judged and that has not begun.
        self._asked: tuple[May, Iterable[Callable[[], object]]] | None = None
        self._is_judging = False

    # -- in slices

    def begin(self, steps: Iterable[Callable[[], object]]) -> None:
        """Take all ``steps``, one after the other, and no more in a turn than there is time for."""
        self._work.append(iter(steps))
        if not self._goes_on:
            self._go_on()

    def _go_on(self) -> None:
        self._goes_on = True
        until = perf_counter() + SLICE
        while self._work:
            for step in self._work[0]:
                try:
                    step()
                except Exception:
                    self._log.failure("what was to become of a subscription failed; the others go on")
                if perf_counter() > until:
                    self._work.rotate(-1)
                    self._batch.next_turn(self._go_on)
                    return
            self._work.popleft()
        self._goes_on = False

    # -- kinds and rights that change

    def judge(self, may: May, then: Iterable[Callable[[], object]] = ()) -> None:
        """Judge every subscription by the kinds and rights of now, from the next turn on: what the program still says
        of a kind that it has just declared holds for it. Where that is under way already, all is judged once more
        behind it, however often that is asked for meanwhile.

        :param may: whether a subscription goes on.
        :param then: further steps, behind all of these.
        """
        # What was published before is numbered as it was then.
        self._home.flush()
        self._asked = may, then
        if not self._is_judging:
            self._is_judging = True
            self._work.append(self._judging())
            if not self._goes_on:
                self._goes_on = True
                self._batch.next_turn(self._go_on)

    def _judging(self) -> Iterator[Callable[[], object]]:
        while self._asked is not None:
            (may, then), self._asked = self._asked, None
            for name in list(self._topics):
                yield partial(self.renew, name)
            for subscriber in list(self._subscribers.values()):
                for name in list(subscriber.topics):
                    yield partial(self._judge, may, subscriber, name)
            yield from then
        self._is_judging = False

    def _judge(self, may: May, subscriber: Subscriber, name: str) -> None:
        subscription = subscriber.topics.get(name)
        if subscription is None:
            return
        found = self._kinds.find(name)
        if found is None:
            self._home.end(subscription, "kind_gone")
        elif not may(subscriber, subscription, found):
            self._home.end(subscription, "permission_denied")
        elif subscription.number < 0 and not found.kind.personal:
            # Nobody has asked for it.
            self._home.end(subscription, "ended")

    def renew(self, name: str) -> None:
        """Take over what the kind of a topic is now, which may not have had its turn yet."""
        topic = self._topics.get(name)
        if topic is None:
            return
        found = self._kinds.find(name)
        if found is None or found == topic.found:
            return
        had_presence, was_kept = topic.found.kind.presence, bool(topic.epoch)
        topic.found = found
        if found.kind.presence is not had_presence:
            subscribers = [subscription.subscriber for subscription in topic.subscriptions]
            self.begin(partial(self.show, name, subscriber) for subscriber in subscribers)
        if topic.listening is not None:
            return
        self._engine.unlisten(name)
        self._engine.listen(name, topic.kept).addCallbacks(self._renumbered, is_cancelled, (topic, was_kept))

    def show(self, name: str, subscriber: Any) -> None:
        """Let a connection be among the members of a topic, or not, as its subscription is now."""
        subscription = subscriber.topics.get(name)
        if subscription is not None and subscription.topic.found.kind.presence:
            # Who has said of itself what it is since has the last word.
            # Where the engine is away, it is told when it is back.
            self._engine.enter(name, subscriber.id, subscriber.user, None).addErrback(
                lambda failure: failure.trap(CommandError) and None
            )
        else:
            self._engine.leave(name, subscriber.id)

    def _renumbered(self, position: Position | None, topic: Topic, was_kept: bool) -> None:
        told = Position("", 0) if position is None else self._home.told(topic.name, position)
        self.renumber(topic, told, "not_kept" if was_kept and not told.epoch else "")

    def renumber(self, topic: Topic, position: Position, reason: str) -> None:
        """Tell those who are subscribed to ``topic`` where it stands now.

        :param position: as clients know it; with no epoch where none are kept.
        :param reason: why they cannot go on from where they are; empty where they have nothing to go on from.
        """
        if position == (topic.epoch, topic.offset):
            return
        topic.epoch, topic.offset = position
        topic.recent.clear()
        event = topic_event(topic, reason)
        if topic.members:
            # Behind what is on its way to them.
            self._fan_out.add(list(topic.members), [event], [], about=topic.name)
            self._fan_out.begin(perf_counter())
        if topic.behind:
            subscribers = [subscription.subscriber for subscription in topic.behind]
            self.begin(partial(self._home.catch_up, subscriber) for subscriber in subscribers)

    # -- many that end

    def end_all(self, topic: Topic, user: str | None, reason: str) -> int:
        """End the subscriptions to a topic; none of them is told anything that is published from now on.

        :param user: whose; everybody's when it is ``None``.
        :returns: how many they are.
        """
        ended = topic.take_out(user)
        self.begin(partial(self._end, subscription, reason) for subscription in ended)
        return len(ended)

    def _end(self, subscription: Subscription, reason: str) -> None:
        name, subscriber = subscription.topic.name, subscription.subscriber
        # One that was begun anew meanwhile goes on.
        if subscriber.topics.get(name) is subscription:
            self._home.end(subscription, reason)
        # The topic may have lost its presence meanwhile, and who was taken out of it is not looked at then.
        self.show(name, subscriber)


def is_cancelled(failure: Failure) -> None:
    """Take it that somebody does not listen any more who had begun to."""
    failure.trap(CancelledError)


def topic_event(topic: Topic, reason: str = "") -> bytes:
    """The event of another position on a live connection."""
    event: dict[str, Any] = {"event": "topic", "topic": topic.name}
    if topic.epoch:
        event |= {"epoch": topic.epoch, "offset": topic.offset}
    if reason:
        event |= {"recovered": False, "reason": reason}
    return write_json(event)
