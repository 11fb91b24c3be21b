"""Random histories in which kinds change, and many are ended and put in, a step in each turn: what is left is what the
last word of everybody was."""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.examples import examples

from zcomm.errors import NotFound
from zcomm.interfaces import Identity
from zcomm.testing import MemoryClient, MemoryServer
from zcomm.topics import judging
from zcomm.wire.writebatch import WriteBatch

pytestmark = pytest.mark.unmeasured

USERS = ("ann", "bob")
TOPICS = ("room:1", "room:2", "user:ann", "user:bob")
ROOMS = ("", "{}", "{presence: true}", "{history: 5}", "{history: 50, presence: true}")
OWN = ("", "{}", "{personal: true}", "{personal: true, presence: true, history: 5}")

topics = st.sampled_from(TOPICS)
places = st.integers(0, 5)


class Seen(list[Any]):
    """The messages of a client, which follows what they say.

    :param hearers: those who may be told each message.
    """

    def __init__(self, hearers: list[list[Seen]]) -> None:
        super().__init__()
        self.hearers = hearers
        self.is_in: set[str] = set()
        self.got: list[int] = []

    def append(self, message: Any) -> None:
        event = message.get("event")
        if event == "subscribed":
            self.is_in.add(message["topic"])
        elif event == "unsubscribed":
            self.is_in.discard(message["topic"])
        elif event == "message":
            assert message["topic"] in self.is_in
            assert any(self is hearer for hearer in self.hearers[message["data"]])
            self.got.append(message["data"])


class Slices(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(judging, "SLICE", -1.0)
        self.turns: deque[Callable[[], None]] = deque()
        self.patch.setattr(WriteBatch, "next_turn", lambda batch, call: self.turns.append(call))
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "topics.yaml"
        self.server = MemoryServer(stall_timeout=36_000.0, ping_interval=36_000.0, publish_rate=100_000)
        self.clients: list[tuple[MemoryClient, Seen, str]] = []
        #: Those who are in the topic of each message when it is published.
        self.hearers: list[list[Seen]] = []
        #: Those who do not take what they are sent.
        self.slow: set[MemoryClient] = set()

    def teardown(self) -> None:
        try:
            for client, _, _ in self.clients:
                client.read_again()
            self.settle()
            self.check()
            for client, _, _ in self.clients:
                client.vanish()
            self.settle()
            assert not len(self.server.topics.hub) and not self.server.topics.hub.subscriptions
            assert not self.server.topics.engine._heard and not self.server.topics.engine._rosters
        finally:
            self.patch.undo()
            self.directory.cleanup()

    def settle(self) -> None:
        self.server.advance(1)
        while self.turns:
            self.turns.popleft()()
            self.server.advance(1)

    def check(self) -> None:
        """Everybody knows the same: the clients, the topics, and the engine."""
        hub, kinds = self.server.topics.hub, self.server.topics.kinds
        connections = {connection.subscriber: connection for connection in self.server.bifrost.clients}
        counts: Counter[Any] = Counter()
        for topic in TOPICS:
            found = hub.topic(topic)
            subscribed = {one.id for one in hub.subscribers.values() if topic in one.topics}
            assert subscribed == {one.id for one in hub.subscribers.values() if one.is_in(topic)}
            assert subscribed == ({one.subscriber.id for one in found.subscriptions} if found else set())
            assert len(subscribed) == sum(topic in seen.is_in for _, seen, _ in self.clients)
            kind = kinds.find(topic)
            members = self.server.topics.engine.members(topic, 1000).result
            named = {connection for each in members.members.values() for connection in each}
            assert named == (subscribed if kind is not None and kind.kind.presence else set())
            if subscribed:
                assert kind is not None and found is not None and found.found == kind
            if kind is not None and kind.kind.personal:
                assert len(subscribed) == sum(f"user:{user}" == topic for _, _, user in self.clients)
        for subscriber in hub.subscribers.values():
            assert subscriber in connections
            counts[subscriber.client.account.owner] += len(subscriber.topics)
            assert not subscriber.behind and not subscriber.stale
        assert +counts == hub._by_user
        assert self.server.topics.engine._heard == dict.fromkeys(hub._topics, 1)

    @initialize(rooms=st.sampled_from(ROOMS), own=st.sampled_from(OWN), count=st.integers(2, 6))
    def begin(self, rooms: str, own: str, count: int) -> None:
        self.reload(rooms, own)
        for number in range(count):
            self.connect(USERS[number % 2])

    @rule(user=st.sampled_from(USERS))
    @precondition(lambda self: len(self.clients) < 6)
    def connect(self, user: str) -> None:
        client = self.server.connect(identity=Identity(user, "member"))
        seen = Seen(self.hearers)
        for message in client.messages:
            seen.append(message)
        client.messages = seen
        self.clients.append((client, seen, user))

    @rule(place=places)
    def vanish(self, place: int) -> None:
        if place < len(self.clients):
            self.clients.pop(place)[0].vanish()

    @rule(rooms=st.sampled_from(ROOMS), own=st.sampled_from(OWN))
    def reload(self, rooms: str, own: str) -> None:
        lines = ["hall: {}"]
        lines += [f'"room:{{id}}": {rooms}'] if rooms else []
        lines += [f'"user:{{name}}": {own}'] if own else []
        self.path.write_text("\n".join(lines) + "\n")
        if self.server.topics._file is None:
            self.server.topics.read_file(self.path)
        else:
            self.server.topics.reload()

    @rule(place=places, topic=topics, watches=st.booleans())
    def subscribe(self, place: int, topic: str, watches: bool) -> None:
        if place < len(self.clients):
            client, seen, _ = self.clients[place]
            call = client.call("zSubscribe", {"topic": topic} | ({"presence": True} if watches else {}))
            call.addCallback(lambda reply: seen.is_in.add(topic) if "result" in reply else None)
            call.addErrback(lambda failure: failure.trap(ConnectionError))

    @rule(place=places, topic=topics)
    def unsubscribe(self, place: int, topic: str) -> None:
        if place < len(self.clients):
            client, seen, _ = self.clients[place]
            call = client.call("zUnsubscribe", {"topic": topic})
            call.addCallback(lambda reply: seen.is_in.discard(topic) if "result" in reply else None)
            call.addErrback(lambda failure: failure.trap(ConnectionError))

    @rule(place=places, topic=topics)
    def say(self, place: int, topic: str) -> None:
        if place < len(self.clients):
            call = self.clients[place][0].call("zPresence", {"topic": topic, "state": {"typing": True}})
            call.addErrback(lambda failure: failure.trap(ConnectionError))

    @rule(topic=topics, user=st.sampled_from([None, *USERS]))
    def put_out(self, topic: str, user: str | None) -> None:
        found = self.server.topics.kinds.find(topic)
        if found is None or not found.kind.personal:
            self.server.topics.unsubscribe(topic, user)

    @rule(topic=topics, user=st.sampled_from(USERS))
    def put_in(self, topic: str, user: str) -> None:
        self.server.topics.subscribe(topic, user).addErrback(lambda failure: failure.trap(NotFound))

    @rule(topic=topics, count=st.integers(1, 8), ends=st.booleans())
    def publish(self, topic: str, count: int, ends: bool) -> None:
        subscribers = self.server.topics.hub.subscribers.values()
        there = {one.client for one in subscribers if one.is_in(topic)}
        hearers = [(client, seen) for client, seen, _ in self.clients if client._channel._connection in there]
        for _ in range(count):
            published = self.server.topics.publish(topic, len(self.hearers))
            published.addErrback(lambda failure: failure.trap(NotFound))
            self.hearers.append([seen for _, seen in hearers])
        if ends and self.server.topics.kinds.find(topic) is not None:
            self.server.settle()
            for client, seen in hearers:
                assert client in self.slow or set(range(len(self.hearers))[-count:]) <= set(seen.got)

    @rule(place=places)
    def stop_reading(self, place: int) -> None:
        if place < len(self.clients):
            self.slow.add(self.clients[place][0])
            self.clients[place][0].stop_reading()

    @rule(place=places)
    def read_again(self, place: int) -> None:
        if place < len(self.clients):
            self.clients[place][0].read_again()

    @rule(count=st.integers(1, 3))
    def turn(self, count: int) -> None:
        self.server.settle()
        for _ in range(min(count, len(self.turns))):
            self.turns.popleft()()

    @rule()
    def rest(self) -> None:
        for client, _, _ in self.clients:
            client.read_again()
        self.settle()
        self.check()


TestSlices = Slices.TestCase
TestSlices.settings = examples(60, stateful_step_count=40, deadline=None)
