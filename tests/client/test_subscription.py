"""The subscription without a network: random histories of a topic and of its connections, against what really was."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.client.subscription import Subscription

pytestmark = pytest.mark.unmeasured

NEWEST = 1000


class Topic:
    """A topic as a server keeps it. Each message says which one was before it, so that a gap shows.

    :ivar log: the messages that are kept, by offset.
    :ivar before: the newest message of all, by offset, kept or not.
    :ivar forks: for each epoch that there was, the offset up to which its history is this one's.
    """

    def __init__(self) -> None:
        self.count = self.top = self.life = 0
        self.log: dict[int, dict[str, Any]] = {}
        self.names: dict[int, int] = {0: 0}
        self.epoch = "0.0"
        self.next_epoch: str | None = None
        self.forks: dict[str, int] = {}

    def publish(self) -> dict[str, Any]:
        self.count += 1
        message = {"offset": self.top + 1, "data": {"id": self.count, "before": self.names[self.top]}}
        if self.next_epoch is not None:
            self.forks[self.epoch] = self.top
            self.epoch, self.next_epoch = self.next_epoch, None
            message["epoch"] = self.epoch
        self.top += 1
        self.names[self.top] = self.count
        self.log[self.top] = message
        return message

    def trim(self, count: int) -> None:
        for offset in sorted(self.log)[:count]:
            del self.log[offset]

    def new_suffix(self) -> str:
        self.life += 1
        return f"{self.epoch.split('.')[0]}.{self.life}"

    def fork(self, lost: int) -> None:
        """Another server goes on, which never had the newest messages."""
        kept = max(0, self.top - lost)
        self.forks[self.epoch] = kept
        self.forks = {epoch: min(offset, kept) for epoch, offset in self.forks.items()}
        for offset in range(kept + 1, self.top + 1):
            self.log.pop(offset, None)
            del self.names[offset]
        self.top = kept
        self.epoch, self.next_epoch = self.new_suffix(), None

    def restart(self) -> None:
        """All is forgotten."""
        self.life += 1
        self.top, self.log, self.forks, self.next_epoch = 0, {}, {}, None
        self.epoch = f"{self.life}.{self.life}"
        # What comes first comes after nothing that anybody could know.
        self.names = {0: -self.life}

    def subscribe(self, asked: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = {"topic": "t", "epoch": self.epoch, "offset": self.top}
        since = asked.get("since")
        if since is not None:
            limit = self.top if since["epoch"] == self.epoch else self.forks.get(since["epoch"])
            missed = range(since["offset"] + 1, self.top + 1)
            reason = ""
            if limit is None:
                reason = "epoch"
            elif since["offset"] > limit:
                reason = "history_lost"
            elif not all(offset in self.log for offset in missed):
                reason = "too_old"
            reply["recovered"] = not reason
            if reason:
                reply["reason"] = reason
            else:
                reply["messages"] = [self.log[offset] for offset in missed]
        elif "last" in asked:
            kept = sorted(self.log)[-asked["last"] :]
            reply["messages"] = [self.log[offset] for offset in kept]
        return reply


class World:
    """A topic, one client, and what is on its way between them."""

    def __init__(self, last: int | None):
        self.topic = Topic()
        self.client = Subscription("t", last=last)
        self.is_connected = self.is_wanted = True
        self.is_there = False
        self.to_server: deque[dict[str, Any]] = deque()
        self.to_client: deque[dict[str, Any]] = deque()
        #: The message after which the next one that is told must come; ``None``: any.
        self.at: int | None = None
        self.told: list[int] = []
        self.ask()

    def ask(self) -> None:
        """As the shell does."""
        client = self.client
        if self.is_connected and not client.is_asking and (not client.is_subscribed or client.must_ask):
            self.to_server.append(client.ask())

    def event(self, event: dict[str, Any]) -> None:
        if self.is_there:
            self.to_client.append({"topic": "t", **event})

    def take(self, news: list[tuple[str, Any]], place: int | None = None) -> None:
        for event, value in news:
            if event == "continuity":
                if not value["recovered"]:
                    self.at = None
            elif event == "message":
                data = value["data"]
                assert self.at is None or data["before"] == self.at, "a gap, a double, or out of order"
                self.at = data["id"]
                self.told.append(data["id"])
        if any(event == "subscribed" for event, _ in news):
            # All that was before is told, or said to be missing.
            assert self.at is None or self.at == place
            self.at = place
        self.ask()

    # -- what may happen

    def publish(self, _: int) -> None:
        self.event({"event": "message", **self.topic.publish()})

    def server_reads(self, _: int) -> None:
        if self.to_server:
            asked = self.to_server.popleft()
            self.is_there = True
            self.to_client.append({"reply": self.topic.subscribe(asked), "place": self.topic.names[self.topic.top]})

    def client_reads(self, count: int) -> None:
        for _ in range(count + 1):
            if self.to_client:
                message = self.to_client.popleft()
                if "reply" in message:
                    self.take(self.client.answered(message["reply"]), message["place"])
                else:
                    place = message.pop("place", None)
                    news = self.client.heard(message)
                    self.take(news)
                    if message["event"] == "topic" and news and not self.client.is_asking:
                        self.at = place

    def lose_an_event(self, number: int) -> None:
        """No server of ours does this."""
        events = [index for index, item in enumerate(self.to_client) if item.get("event") == "message"]
        if events:
            del self.to_client[events[number % len(events)]]

    def repeat_an_event(self, number: int) -> None:
        if self.to_client and "event" in self.to_client[0]:
            self.to_client.insert(0, dict(self.to_client[0]))

    def disconnect(self, _: int) -> None:
        self.is_connected = self.is_there = False
        self.to_server.clear()
        self.to_client.clear()
        self.client.lost()

    def connect(self, _: int) -> None:
        self.is_connected = True
        self.ask()

    def trim(self, count: int) -> None:
        self.topic.trim(count)

    def go_on_elsewhere(self, _: int) -> None:
        """Nothing is lost: the next message says so."""
        if self.topic.next_epoch is None:
            self.topic.next_epoch = self.topic.new_suffix()

    def fork(self, lost: int) -> None:
        self.topic.fork(lost + 1)
        self.discontinuity("history_lost")

    def restart(self, _: int) -> None:
        self.topic.restart()
        self.discontinuity("epoch")

    def discontinuity(self, reason: str) -> None:
        topic = self.topic
        self.event(
            {
                "event": "topic",
                "epoch": topic.epoch,
                "offset": topic.top,
                "recovered": False,
                "reason": reason,
                "place": topic.names[topic.top],
            }
        )


STEPS = (
    *(World.publish,) * 4,
    *(World.server_reads,) * 2,
    *(World.client_reads,) * 4,
    *(World.connect,) * 2,
    World.lose_an_event,
    World.repeat_an_event,
    World.disconnect,
    World.trim,
    World.go_on_elsewhere,
    World.fork,
    World.restart,
)


@given(
    st.sampled_from([None, None, 1, 3, NEWEST]),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4)), max_size=60),
)
def test_each_message_once_in_order_or_told_first(last: int | None, steps: list[tuple[Any, int]]):
    """Whatever is lost, late, double, forgotten or goes on elsewhere; and in the end nothing is missing."""
    world = World(last)
    for step, number in steps:
        step(world, number)
    world.connect(0)
    for _ in range(2):
        # A message that is lost shows with the next one.
        world.publish(0)
        while world.to_server or world.to_client:
            world.server_reads(0)
            world.client_reads(0)
    assert world.client.is_subscribed and not world.client.must_ask
    assert world.told[-1:] == [world.topic.count]
    assert (world.client.epoch, world.client.offset) == (world.topic.epoch, world.topic.top)
