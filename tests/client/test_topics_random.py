"""The Python client's topics and the product's own over ways that lose, delay and end: random histories in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm import Identity
from zcomm.testing import MemoryServer

pytestmark = pytest.mark.unmeasured


class World:
    """A server, bob, whose connection is good, and alice, whose is not."""

    def __init__(self, history: int, last: int | None):
        guests = {f"user{number}": Identity(f"user{number}", "user") for number in range(8)}
        self.server = MemoryServer(tokens={"a": Identity("alice", "user"), "b": Identity("bob", "user"), **guests})
        self.server.topics.topic("room:{id}", history=history, presence=True, publish="anybody")
        self.alice, self.bob = self.server.connect("a"), self.server.connect("b")
        self.truth = self.bob.topic("room:1")
        self.all: list[tuple[int, Any]] = []
        self.truth.on("message", lambda message: self.all.append((message["offset"], message["data"])))
        self.truth.subscribe()
        self.room = self.alice.topic("room:1", presence=True, last=last)
        #: The offset of what was told last; ``None``: whatever comes next is right.
        self.at: int | None = None
        self.room.on("message", self.message)
        self.room.on("continuity", lambda news: news["recovered"] or self.begin())
        self.room.on("unsubscribed", self.ended)
        #: Listeners that raise harm nobody, so they say here what is wrong.
        self.wrong: list[Any] = []
        self.room.on("presence", self.presence)
        self.seen: set[str] | None = None
        self.sent = 0
        self.done: list[Any] = []

    def begin(self) -> None:
        self.at = None

    def ended(self, _: Any) -> None:
        self.at = self.seen = None

    def message(self, message: Any) -> None:
        if self.at not in (None, message["offset"] - 1):
            self.wrong.append(f"{message} after {self.at}")
        self.at = message["offset"]

    def presence(self, change: Any) -> None:
        if self.seen is not None:
            arrived, gone = set(change["arrived"]), set(change["gone"])
            if (self.seen | arrived) - gone != set(change["members"]) or self.seen & arrived or gone - self.seen:
                self.wrong.append(f"{change} after {self.seen}")
        self.seen = set(change["members"])

    # -- what may happen

    def subscribe(self, _: int) -> None:
        self.room.subscribe().addErrback(lambda _: None)

    def unsubscribe(self, _: int) -> None:
        self.room.unsubscribe().addErrback(lambda _: None)

    def publish(self, _: int) -> None:
        self.sent += 1
        data = ["alice", self.sent]
        self.room.publish(data).addCallbacks(lambda _: self.done.append(data), lambda _: None)

    def another(self, count: int) -> None:
        for _ in range(count + 1):
            self.sent += 1
            self.server.topics.publish("room:1", ["program", self.sent])
        self.server.settle()

    def state(self, number: int) -> None:
        self.room.presence.set_state({"number": number}).addErrback(lambda _: None)

    def come(self, number: int) -> None:
        guest = self.server.connect(f"user{number}")
        guest.topic("room:1").subscribe()
        if number % 2:
            self.server.advance(0.1 * number)
            guest.vanish()

    def vanish(self, _: int) -> None:
        self.alice.vanish()

    def half_open(self, _: int) -> None:
        self.alice.half_open()

    def reconnect(self, _: int) -> None:
        self.alice.reconnect()

    def drop_in(self, count: int) -> None:
        self.alice.incoming.drop(count)

    def lose(self, count: int) -> None:
        self.drop_in(count // 2 + 1)
        self.another(count)

    def lose_a_change(self, number: int) -> None:
        self.come(number)
        self.drop_in(1)
        self.server.advance(0.2)

    def drop_out(self, _: int) -> None:
        self.alice.outgoing.drop()

    def delay_in(self, number: int) -> None:
        self.alice.incoming.delay(number * 0.3)

    def delay_out(self, number: int) -> None:
        self.alice.outgoing.delay(number * 0.3)

    def double(self, count: int) -> None:
        self.alice.incoming.duplicate(count)
        self.another(count // 2)

    def wait(self, number: int) -> None:
        self.server.advance(number**3 * 0.1)


STEPS = (
    *(World.subscribe,) * 3,
    *(World.publish,) * 3,
    *(World.another,) * 4,
    *(World.reconnect,) * 3,
    *(World.wait,) * 3,
    World.unsubscribe,
    World.state,
    World.come,
    World.vanish,
    World.half_open,
    World.drop_in,
    *(World.lose,) * 2,
    World.lose_a_change,
    World.drop_out,
    World.delay_in,
    World.delay_out,
    World.double,
)


@given(
    st.sampled_from([3, 1000]),
    st.sampled_from([None, 2]),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 6)), min_size=8, max_size=40),
)
def test_once_in_order_or_told_first_and_who_is_there(history: int, last: int | None, steps: list[tuple[Any, int]]):
    """Whatever the connection does; each publish that was answered counts once, and in the end all is as it is."""
    world = World(history, last)
    server, alice = world.server, world.alice
    for step, number in [(World.subscribe, 0), *steps]:
        step(world, number)
    alice.reconnect()
    # Calls whose answer was lost have come to their end by then.
    server.advance(100)
    world.room.subscribe().addErrback(lambda _: None)
    for _ in range(2):
        # A message that is lost shows with the next one.
        world.another(0)
        server.advance(1)
    assert not world.wrong
    assert world.room.state == "subscribed"
    assert world.at == world.all[-1][0] == len(world.all)
    told = [tuple(data) for _, data in world.all]
    assert len(set(told)) == len(told)
    assert {tuple(data) for data in world.done} <= set(told)
    # A change that is lost shows with the next one.
    guest = server.connect("user7")
    guest.topic("room:1").subscribe()
    server.advance(1)
    found: list[Any] = []
    server.topics.members("room:1").addCallback(found.append)
    assert world.room.presence.members == found[0]["members"]
    server.stop()
