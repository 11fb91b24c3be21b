"""The side of live queries of one connection: its queries by their names, and what it is told of them."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed

from zcomm.budget.account import Account
from zcomm.budget.written import write_json
from zcomm.interfaces import Client, FieldRights, Permissions
from zcomm.live.query import Query
from zcomm.live.requests import Live

__all__ = ["LiveClient", "Rights", "Subscriber", "Subscription", "event"]

#: Whether a model may be read at all, the rows in reach by the values of their fields, and the rights to its fields.
Rights = tuple[bool, dict[str, Any], FieldRights]


class LiveClient(Client, Protocol):
    """A connection, as live queries see it."""

    account: Account
    live: Any

    @property
    def transport(self) -> Any:
        """Carries its messages; ``None`` once it is gone."""

    @property
    def permissions(self) -> Permissions:
        """Those of its server."""

    def send_payloads(self, payloads: list[bytes]) -> None:
        """Queue messages that are encoded already."""


class Subscription:
    """A query of a connection.

    :ivar asked: the request, by which it is judged anew.
    :ivar rights: the rights that it was judged by.
    :ivar query: whose rows it hears of; ``None`` while these are read anew.
    :ivar is_behind: whether its client has to be told all rows.
    """

    __slots__ = ("asked", "is_behind", "query", "rights", "subscriber")

    def __init__(self, subscriber: Subscriber, asked: Live, rights: Rights):
        self.subscriber = subscriber
        self.asked = asked
        self.rights = rights
        self.query: Query | None = None
        self.is_behind = False


class Subscriber:
    """The side of live queries of one connection.

    :ivar queries: its subscriptions, by the names that the client has given them.
    :ivar step: the number of the last event.
    :ivar notes: what it is to be told in this step, by name.
    :ivar noted: bytes of those, at most.
    """

    __slots__ = ("_home", "asking", "client", "judging", "lanes", "noted", "notes", "queries", "step", "waiting")

    def __init__(self, home: Any, client: LiveClient):
        self._home = home
        self.client = client
        self.queries: dict[str, Subscription] = {}
        self.step = 0
        #: How many are asked for and not answered.
        self.asking = 0
        #: How many are judged anew.
        self.judging = 0
        self.notes: dict[str, bytes] = {}
        self.noted = 0
        #: The commands that others of the same name wait for, by name.
        self.lanes: dict[str, Deferred[None]] = {}
        #: Replies that wait until nothing else does.
        self.waiting: list[Deferred[None]] = []

    @property
    def is_blocked(self) -> bool:
        """Whether it is to be told nothing: its client does not take what it has been sent, or is gone; or one of its
        queries is judged anew, which the others wait for."""
        transport = self.client.transport
        return transport is None or transport.is_blocked or self.judging > 0

    def when_free(self) -> Deferred[None]:
        """Fires when nothing waits for the client any more that a large reply would have to wait behind."""
        if not self.is_blocked and not self.waiting:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        return waiting

    def due(self) -> dict[str, bytes]:
        """Take what is to be told now, by name; a slow client is told all rows once it has caught up, and by then also
        why queries have ended."""
        notes, self.notes, self.noted = self.notes, {}, 0
        if not self.is_blocked:
            return notes
        for name, note in notes.items():
            subscription = self.queries.get(name)
            if subscription is None:
                self.notes[name] = note
            else:
                subscription.is_behind = True
        return {}

    def send(self, notes: dict[str, bytes]) -> None:
        """Send an event.

        :param notes: what is told of each query, by name.
        """
        if notes:
            self.step += 1
            self._home.events += 1
            self.client.send_payloads([event(self.step, notes)])

    def drained(self) -> None:
        """The client has taken all that waited for it, or one of its queries was judged anew."""
        while self.waiting and not self.is_blocked:
            waiting = self.waiting.pop(0)
            if not waiting.called:
                waiting.callback(None)
        if not self.is_blocked and (self.notes or any(each.is_behind for each in self.queries.values())):
            self._home.catch_up(self)

    def lost(self) -> None:
        """The client is gone."""
        self._home.lost(self)


def event(step: int, notes: dict[str, bytes]) -> bytes:
    """The event of a step."""
    queries = b",".join([b"%s:%s" % (write_json(name), note) for name, note in notes.items()])
    return b'{"event":"live","step":%d,"queries":{%s}}' % (step, queries)
