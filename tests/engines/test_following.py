"""Following a topic over a line that loses, repeats and delays: each message once, in order, or a word why not."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred, fail

from zcomm.engines.following import HELD, Following
from zcomm.errors import Unavailable
from zcomm.interfaces import KeptMessage, Position, Slice


class World:
    """An engine in miniature, and whoever follows it.

    :ivar kept: the messages of the topic, the first of which is number one.
    :ivar line: what is published and not heard yet.
    """

    def __init__(self, chance: random.Random):
        self.chance = chance
        self.epoch = "e.a"
        self.kept: list[bytes] = []
        self.line: list[tuple[Position, KeptMessage]] = []
        self.asked: list[tuple[Position, Deferred[Slice]]] = []
        self.is_away = False
        self.told: list[bytes] = []
        self.moves = 0
        self.is_new = False
        self.following = Following(self.read, self)

    def read(self, topic: str, since: Position) -> Deferred[Slice]:
        if self.is_away:
            return fail(Unavailable("away"))
        asked: Deferred[Slice] = Deferred()
        self.asked.append((since, asked))
        return asked

    def answer(self) -> None:
        since, asked = self.asked.pop(0)
        now = Position(self.epoch, len(self.kept))
        if since.epoch.partition(".")[0] != self.epoch.partition(".")[0] or since.offset > now.offset:
            asked.callback(Slice(now, reason="epoch"))
            return
        part = self.kept[since.offset : since.offset + 3]
        messages = [KeptMessage(since.offset + place, each, "") for place, each in enumerate(part, 1)]
        asked.callback(Slice(now, messages, more=since.offset + len(part) < now.offset))

    def message(self, topic: str, position: Position, message: KeptMessage) -> None:
        self.told.append(message.fragment)

    def moved(self, topic: str, position: Position, reason: str) -> None:
        self.moves += 1
        self.told = self.kept[: position.offset]

    def publish(self) -> None:
        self.kept.append(b"%d %d" % (len(self.kept), self.chance.getrandbits(30)))
        position = Position(self.epoch, len(self.kept))
        self.line.append((position, KeptMessage(position.offset, self.kept[-1], "")))

    def step(self) -> None:
        what = self.chance.random()
        if what < 0.4:
            self.publish()
        elif what < 0.7 and self.line:
            heard = self.line.pop(0) if self.chance.random() < 0.9 else self.chance.choice(self.line)
            self.following.heard("t", *heard)
        elif what < 0.75 and self.line:
            self.line.pop(self.chance.randrange(len(self.line)))
        elif what < 0.95 and self.asked:
            self.answer()
        elif what < 0.96:
            self.epoch = f"{self.epoch.partition('.')[0]}.{self.chance.getrandbits(20):x}"
        elif what < 0.965:
            self.epoch, self.kept, self.line = f"n{self.chance.getrandbits(20):x}.a", [], []
            self.is_new = True
        elif what < 0.98:
            self.is_away = not self.is_away

    def settle(self) -> None:
        self.is_away, self.line = False, []
        done: list[Any] = []
        self.following.caught_up("t").addCallback(done.append)
        while self.asked:
            self.answer()
        self.following.check("t", Position(self.epoch, len(self.kept)))
        self.following.heal()
        while self.asked:
            self.answer()
        assert done == [None]


def test_each_once_and_in_order():
    """Whatever was lost or came twice: what was told is what the engine has, from where it said that it begins."""
    for seed in range(300):
        world = World(random.Random(seed))
        world.following.begin("t")
        world.publish()
        world.following.heard("t", *world.line[0])
        world.following.stand("t", Position("e.a", 0))
        for _ in range(120):
            world.step()
            assert world.told == world.kept[: len(world.told)] or world.is_new
        world.settle()
        assert world.told == world.kept, seed
        position = world.following.position("t")
        assert position is not None and position.offset == len(world.kept)
        assert position.epoch.partition(".")[0] == world.epoch.partition(".")[0]


def test_what_comes_while_it_is_asked_is_bounded():
    """What is too much is asked for."""
    world = World(random.Random(1))
    world.following.begin("t")
    for _ in range(HELD + 50):
        world.publish()
        world.following.heard("t", *world.line.pop())
    world.following.stand("t", Position("e.a", 0))
    world.settle()
    assert world.told == world.kept and "t" in world.following
    waiting: list[Any] = []
    world.following.caught_up("t").addCallback(waiting.append)
    world.following.end("t")
    assert waiting == [None] and world.following.position("t") is None and "t" not in world.following
    world.following.caught_up("t").addCallback(waiting.append)
    world.following.heard("t", Position("e.a", 1), KeptMessage(1, b"", ""))
    assert waiting == [None, None]
