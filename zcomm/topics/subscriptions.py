"""The topics of this process and the subscriptions to them: what the hub keeps of each (:mod:`zcomm.topics.hub`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred

from zcomm.budget.account import Account
from zcomm.interfaces import Identity, Kept, KeptMessage, Permissions
from zcomm.topics.kinds import Found

__all__ = ["Message", "Subscription", "Topic", "TopicClient", "encode_messages"]


#: Messages that are remembered of a topic that somebody is about to join.
RECENT = 1_000


class TopicClient(Protocol):
    """A connection, as far as topics look at it."""

    identity: Identity
    peer: str
    account: Account
    transport: Any
    #: Its side of topics, a :class:`~zcomm.topics.subscriber.Subscriber`; ``None`` as long as it has none.
    subscriber: Any

    @property
    def permissions(self) -> Permissions:
        """Those of its server."""

    def send_payloads(self, payloads: list[bytes]) -> None:
        """Queue messages that are encoded already."""


class Owner(Protocol):
    """The connection of a subscription: a :class:`~zcomm.topics.subscriber.Subscriber`."""

    id: str
    user: str
    client: TopicClient
    topics: dict[str, Subscription]
    behind: dict[Subscription, None] | None
    stale: dict[Subscription, None] | None

    @property
    def is_blocked(self) -> bool:
        """Whether its client does not take what it has been sent."""

    def go_on_later(self) -> None:
        """Go on with what it has missed in the next turn that its user has time in."""


class Subscription:
    """The part that a connection has in a topic.

    It is told of messages as long as it has a transport. Whatever begins it anew makes another one, so that nothing
    that is on its way to the old one reaches the new one.

    :ivar echo: whether the connection's own messages come back whole.
    :ivar watches: whether it is told who comes and goes.
    :ivar number: of the request that it was begun by; negative where the server has begun it, as the user's own.
    :ivar offset: of one that is behind, the last message that it was sent.
    """

    __slots__ = ("echo", "number", "offset", "subscriber", "topic", "transport", "watches")

    def __init__(self, topic: Topic, subscriber: Owner, echo: bool, watches: bool, number: int):
        self.topic = topic
        self.subscriber = subscriber
        self.echo = echo
        self.watches = watches
        self.number = number
        self.offset = 0
        self.transport: Any = subscriber.client.transport


class Message(NamedTuple):
    """A message that waits for the end of the turn.

    :ivar fragment: the inside of its JSON.
    :ivar origin: the connection that has published it.
    :ivar epoch: its numbering, where that is another one than that of the message before.
    """

    payload: bytes
    fragment: bytes
    offset: int
    origin: str
    teller: Account | None
    epoch: str


class Topic:
    """A topic that somebody here is subscribed to, or about to be.

    :ivar epoch: the numbering as clients are told it, and ``offset``: behind the newest message. Both empty for one
        that keeps none.
    :ivar members: those who are told of messages as they come.
    :ivar behind: those who are caught up once they have taken what they were sent, and the numbering that they know.
    :ivar watchers: those who are told who comes and goes.
    :ivar quiet: those to whom their own messages do not come back, by connection.
    :ivar late: those who have joined while messages wait for the end of the turn, and how many of these they know.
    :ivar holders: how many are about to join.
    :ivar is_detailed: whether watchers are told names.
    :ivar recent: the messages that have been delivered since somebody began to be about to join or be caught up, the
        newest of them, where the engine is asked for what came before; it may know more or less by then.
    :ivar presence_version: of the last change that watchers were told of; ``None`` as long as there is none.
    """

    __slots__ = (
        "behind",
        "begin",
        "epoch",
        "found",
        "holders",
        "is_detailed",
        "late",
        "listening",
        "members",
        "name",
        "offset",
        "pending",
        "presence_version",
        "quiet",
        "recent",
        "watchers",
    )

    def __init__(self, name: str, found: Found):
        self.name = name
        self.found = found
        self.begin = b'{"event":"message","topic":"%s",' % name.encode()
        self.epoch = ""
        self.offset = 0
        self.members: dict[Subscription, None] = {}
        self.behind: dict[Subscription, str] | None = None
        self.watchers: dict[Subscription, None] | None = None
        self.quiet: dict[str, Subscription] | None = None
        self.late: dict[Subscription, int] | None = None
        self.pending: list[Message] | None = None
        self.holders = 0
        self.is_detailed = True
        self.presence_version: int | None = None
        self.recent: deque[KeptMessage] = deque(maxlen=RECENT)
        #: Fires when the engine delivers it; ``None`` from then on.
        self.listening: list[Deferred[None]] | None = None

    @property
    def kept(self) -> Kept | None:
        """The messages that it keeps."""
        return self.found.kind.kept

    @property
    def is_unused(self) -> bool:
        """Whether nobody needs it."""
        return not (self.members or self.behind or self.holders)

    def between(self, offset: int) -> list[KeptMessage] | None:
        """The messages that have been delivered after ``offset``; ``None`` where they are not all remembered."""
        missed = self.offset - offset
        if missed <= 0:
            return []
        if missed > len(self.recent):
            return None
        found = list(self.recent)[-missed:]
        return found if found[0].offset == offset + 1 else None

    @property
    def subscriptions(self) -> list[Subscription]:
        """All of those who are told of messages, now or once they are caught up."""
        return [*self.members, *(self.behind or ())]

    def has(self, subscription: Subscription) -> bool:
        """Whether a subscription to it goes on."""
        return subscription in self.members or (self.behind is not None and subscription in self.behind)

    def take_out(self, user: str | None) -> list[Subscription]:
        """Tell the subscriptions of ``user`` nothing that is published from now on; everybody's where it is ``None``.

        :returns: them, which are ended one after the other.
        """
        if user is None:
            ended = self.subscriptions
            self.members, self.behind = {}, None
            return ended
        ended = [subscription for subscription in self.subscriptions if subscription.subscriber.user == user]
        for subscription in ended:
            self.members.pop(subscription, None)
            if self.behind is not None:
                self.behind.pop(subscription, None)
        self.behind = self.behind or None
        return ended

    def payload(self, offset: int, fragment: bytes, epoch: str = "") -> bytes:
        """The event of a message.

        :param epoch: where it is another one than that of the message before.
        """
        if not offset:
            return self.begin + fragment + b"}"
        if epoch:
            return b'%s"offset":%d,"epoch":"%s",%s}' % (self.begin, offset, epoch.encode(), fragment)
        return b'%s"offset":%d,%s}' % (self.begin, offset, fragment)

    def own_payload(self, offset: int, fragment: bytes, epoch: str = "") -> bytes:
        """The event of a message, for who has published it and wants no echo."""
        # A key stands first. Within it no quotation mark is without a backslash, so that it ends at the first one.
        key = b"," + fragment.partition(b',"data":')[0] if fragment.startswith(b'"key":') else b""
        return self.payload(offset, b'"own":true' + key, epoch)


def encode_messages(messages: Iterable[KeptMessage]) -> list[bytes]:
    """The messages of an answer, each as JSON."""
    return [b'{"offset":%d,%s}' % (offset, fragment) for offset, fragment, _ in messages]
