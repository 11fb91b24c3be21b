"""The members of a topic without a network: random comings and goings, against who really is there."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.client.members import Change, Members, Whole

pytestmark = pytest.mark.unmeasured

#: Connections above which members are counted only, and below which they are named again.
LARGE, SMALL = 4, 3


class Room:
    """The members as a server knows them: it tells what changed since it last did, of each connection the last word."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, Any]] = {}
        self.version = self.told = 0
        self.changed: dict[tuple[str, str], Any] = {}
        self.arrived: dict[str, bool] = {}
        self.is_large = self.was_large = False

    @property
    def counts(self) -> dict[str, int]:
        return {"users": len(self.members), "connections": sum(map(len, self.members.values()))}

    def change(self, user: str, connection: str, state: Any) -> None:
        was_there = user in self.members
        if state is None:
            if connection not in self.members.get(user, {}):
                return
            del self.members[user][connection]
            if not self.members[user]:
                del self.members[user]
        else:
            self.members.setdefault(user, {})[connection] = state
        self.version += 1
        self.changed[user, connection] = state
        if was_there != (user in self.members):
            self.arrived[user] = not was_there
        connections = self.counts["connections"]
        self.is_large = connections > LARGE or (self.is_large and connections >= SMALL)

    def named(self) -> dict[str, Any]:
        return {user: dict(connections) for user, connections in self.members.items()}

    def whole(self) -> dict[str, Any]:
        reply = {"version": self.version, **self.counts}
        return reply if self.is_large else {**reply, "members": self.named()}

    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = {"after": self.told, "version": self.version, **self.counts}
        if self.was_large and not self.is_large:
            event["members"] = self.named()
        elif not self.is_large:
            event.update(joined={}, left={})
            for (user, connection), state in self.changed.items():
                if state is None:
                    event["left"].setdefault(user, []).append(connection)
                else:
                    event["joined"].setdefault(user, {})[connection] = state
        if not self.is_large:
            event["arrived"] = [user for user, came in self.arrived.items() if came]
            event["gone"] = [user for user, came in self.arrived.items() if not came]
        self.told, self.changed, self.arrived, self.was_large = self.version, {}, {}, self.is_large
        return event


class World:
    """A room, one client, and what is on its way between them."""

    def __init__(self) -> None:
        self.room = Room()
        self.client = Members()
        self.to_client: deque[tuple[str, Any]] = deque()
        self.questions = 0
        self.is_asking = False
        self.seen: set[str] | None = None
        self.subscribe(0)

    def subscribe(self, _: int) -> None:
        """Begin again, on another connection."""
        self.to_client.clear()
        self.questions, self.is_asking = 0, False
        self.client.forget_version()
        self.take(self.client.take(msgspec.convert(self.room.whole(), Whole)))

    def take(self, told: Any) -> None:
        if told is not None:
            members = told["members"]
            if members is None:
                self.seen = None
            else:
                if self.seen is not None:
                    assert not self.seen & set(told["arrived"]), "told of twice"
                    assert set(told["gone"]) <= self.seen, "told of twice"
                    assert (self.seen | set(told["arrived"])) - set(told["gone"]) == set(members)
                self.seen = set(members)
                members.clear()
        if self.client.must_ask and not self.is_asking:
            self.is_asking = True
            self.questions += 1

    def join(self, number: int) -> None:
        self.room.change(f"user{number % 3}", f"c{number}", {"number": self.room.version})

    def leave(self, number: int) -> None:
        self.room.change(f"user{number % 3}", f"c{number}", None)

    def tell(self, _: int) -> None:
        if self.room.version > self.room.told:
            self.to_client.append(("event", self.room.event()))

    def lose(self, number: int) -> None:
        """No server of ours does this."""
        events = [index for index, (kind, _) in enumerate(self.to_client) if kind == "event"]
        if events:
            del self.to_client[events[number % len(events)]]

    def answer(self, _: int) -> None:
        if self.questions:
            self.questions -= 1
            self.to_client.append(("reply", self.room.whole()))

    def read(self, count: int) -> None:
        for _ in range(count + 1):
            if self.to_client:
                kind, said = self.to_client.popleft()
                if kind == "event":
                    self.take(self.client.apply(msgspec.convert(said, Change)))
                else:
                    self.is_asking = False
                    self.take(self.client.take(msgspec.convert(said, Whole)))


STEPS = (
    *(World.join,) * 4,
    *(World.leave,) * 3,
    *(World.tell,) * 4,
    *(World.read,) * 4,
    *(World.answer,) * 2,
    *(World.lose,) * 2,
    World.subscribe,
)


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 8)), min_size=20, max_size=80))
def test_who_is_there_in_the_end(steps: list[tuple[Any, int]]):
    """Whatever is lost or late, each is told of once as they come and go, and the end is right."""
    world = World()
    for step, number in steps:
        step(world, number)
    for _ in range(3):
        # An event that is lost shows with the next one.
        world.join(0)
        world.tell(0)
        while world.to_client or world.questions:
            world.answer(0)
            world.read(0)
    counts = {"users": world.client.users, "connections": world.client.connections}
    assert counts == world.room.counts
    assert world.client.named == (None if world.room.is_large else world.room.members)
