"""The side of topics of one connection: its subscriptions, and its commands in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail, succeed

from zcomm.budget.account import Bucket
from zcomm.budget.written import write_json
from zcomm.interfaces import ANONYMOUS, Identity
from zcomm.peers import block_of
from zcomm.topics.subscriptions import Subscription, TopicClient
from zcomm.topics.watching import SLICE

__all__ = ["Subscriber", "author_of", "sender_of"]


class Home(Protocol):
    """The hub, as a connection needs it."""

    def lost(self, subscriber: Subscriber) -> None:
        """End all subscriptions of a connection that is gone."""

    def catch_up(self, subscriber: Subscriber) -> None:
        """Tell it what it has missed."""

    def tell_members(self, subscription: Subscription) -> None:
        """Tell a subscription who is there."""


class Subscriber:
    """The side of topics of one connection.

    :ivar id: the id of the connection, unique in all processes.
    :ivar user: the name of its user.
    :ivar author: whom its messages are charged to, and whose keys make them safe to repeat.
    :ivar sender: the member of the JSON of its messages that tells who has sent them.
    :ivar topics: its subscriptions, by topic.
    """

    __slots__ = (
        "_goes_on",
        "_hub",
        "_lanes",
        "author",
        "behind",
        "bucket",
        "client",
        "id",
        "sender",
        "stale",
        "topics",
        "user",
        "waiting",
    )

    def __init__(self, hub: Home, client: TopicClient, number: str):
        self._hub = hub
        self.client = client
        self.id = number
        self.user = client.identity.name
        self.author = author_of(client)
        self.sender = sender_of(client.identity)
        self.topics: dict[str, Subscription] = {}
        self.bucket: Bucket | None = None
        #: Commands on a topic for which an earlier one has to end first, by topic.
        self._lanes: dict[str, deque[tuple[Deferred[Any], Callable[[], Deferred[Any]]]]] | None = None
        #: Replies that wait until nothing else does.
        self.waiting: deque[Deferred[None]] | None = None
        self.behind: dict[Subscription, None] | None = None
        self._goes_on = False
        #: Subscriptions that have missed who came and went.
        self.stale: dict[Subscription, None] | None = None

    @property
    def is_blocked(self) -> bool:
        """Whether its client does not take what it has been sent."""
        transport = self.client.transport
        return transport is None or transport.is_blocked

    def is_in(self, topic: str) -> bool:
        """Whether it is subscribed to ``topic``, and that is not about to be ended."""
        subscription = self.topics.get(topic)
        return subscription is not None and subscription.topic.has(subscription)

    def is_busy(self, topic: str) -> bool:
        """Whether a command on ``topic`` is under way."""
        return self._lanes is not None and topic in self._lanes

    def in_order(self, topic: str, run: Callable[[], Any]) -> Any:
        """Run a command on ``topic``, behind those that came before it and are not done.

        :returns: its result, or a Deferred of that. To cancel it is not to run it, or to cancel what it has begun.
        """
        lanes = self._lanes
        if lanes is None or topic not in lanes:
            result = run()
            # One that has fired may wait all the same, for another that a callback returned.
            if not isinstance(result, Deferred) or (result.called and not result.paused):
                return result
            if lanes is None:
                lanes = self._lanes = {}
            lanes[topic] = deque()
            outcome: Deferred[Any] = Deferred(lambda _: result.cancel())
            result.addBoth(self._over, outcome, topic)
            return outcome
        begun: list[Deferred[Any]] = []

        def cancel(_: Deferred[Any]) -> None:
            for deferred in begun:
                deferred.cancel()

        waiting: Deferred[Any] = Deferred(cancel)

        def begin() -> Deferred[Any]:
            begun.append(_deferred(run))
            return begun[0]

        lanes[topic].append((waiting, begin))
        return waiting

    def _over(self, result: Any, outcome: Deferred[Any], topic: str) -> None:
        """Tell what a command has come to, and go on with what waited for it: so replies have the order of commands."""
        _tell(result, outcome)
        lanes = self._lanes
        lane = None if lanes is None else lanes.get(topic)
        if lanes is None or lane is None:
            return
        while lane:
            waiting, begin = lane.popleft()
            if waiting.called:
                continue
            running = begin()
            if not running.called or running.paused:
                running.addBoth(self._over, waiting, topic)
                return
            # Not from within each other: very many may be done at once.
            running.addBoth(_tell, waiting)
        del lanes[topic]

    def when_free(self) -> Deferred[None]:
        """Fires when nothing waits for the client any more that a large reply would have to wait behind."""
        if not self.waiting and not self.is_blocked:
            return succeed(None)
        if self.waiting is None:
            self.waiting = deque()
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        return waiting

    def drained(self) -> None:
        """The client has taken all that waited for it: go on with what waits here, as far as it takes that too, and no
        longer than there is time for in one turn."""
        begun = perf_counter()
        while (self.waiting or self.behind or self.stale) and not self.is_blocked:
            if self.waiting:
                first = self.waiting.popleft()
                if not first.called:
                    first.callback(None)
            elif self.behind:
                self._hub.catch_up(self)
                if self.behind:
                    # It goes on by itself.
                    break
            elif self.stale:
                subscription = next(iter(self.stale))
                del self.stale[subscription]
                self._hub.tell_members(subscription)
            if perf_counter() > begun + SLICE:
                self.go_on_later()
                break
        self.client.account.spend(begun, perf_counter())

    def go_on_later(self) -> None:
        """Go on with what waits here in the next turn that its user has time in."""
        if not self._goes_on:
            self._goes_on = True
            self.client.account.later(self._go_on)

    def _go_on(self) -> None:
        self._goes_on = False
        self.drained()

    def lost(self) -> None:
        """The client is gone."""
        self._hub.lost(self)


def author_of(client: Any) -> str:
    """Whose messages a client publishes, where they are counted: its user's; without authentication, where nobody can
    tell users apart, those of the addresses that share their limits with its own."""
    if client.identity is ANONYMOUS:
        return f"{client.identity.name} {block_of(client.peer)}"
    name: str = client.identity.name
    return name


def sender_of(identity: Identity) -> bytes:
    """The member of a message's JSON that tells who has sent it."""
    return b',"from":' + write_json(identity.name)


def _tell(result: Any, outcome: Deferred[Any]) -> None:
    """Tell what a command has come to, where somebody waits for it still."""
    if not outcome.called:
        outcome.callback(result)


def _deferred(run: Callable[[], Any]) -> Deferred[Any]:
    try:
        result = run()
    except Exception:
        # Also what the program's functions raise: it answers this command, and not the one before it.
        return fail()
    return result if isinstance(result, Deferred) else succeed(result)
