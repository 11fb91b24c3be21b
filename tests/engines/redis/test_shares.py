"""The shares of users in an engine's memory: a model of what is kept, and what has to go."""

from __future__ import annotations

import random

from zcomm.engines.redis.shares import CHUNKS, Shares
from zcomm.interfaces import Kept
from zcomm.topics.history import MESSAGE, TOPIC, USER_SHARE

TOTAL = 4_000_000
SHARE = TOTAL // USER_SHARE


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_nobody_has_more_than_a_share_and_what_goes_is_the_oldest():
    """Random users, topics, sizes and times: what is left of each user's messages is within a share, each topic has
    lost its oldest ones only, and nobody loses anything whose messages have room."""
    for seed in range(30):
        chance, clock = random.Random(seed), Clock()
        shares = Shares(TOTAL, clock)
        tops: dict[str, int] = {}
        #: By topic, the messages that are left: offset, author, size, time.
        left: dict[str, list[tuple[int, str, int, float]]] = {}
        kept = Kept(chance.choice([5, 50, 1000]), 60.0)
        modest = 0
        for _ in range(1500):
            clock.now += chance.random() * chance.choice([0.01, 0.01, 3])
            author = chance.choice(["greedy", "greedy", "greedy", "ann"])
            topic = f"t{chance.randrange(chance.choice([3, 300]))}" if author == "greedy" else "ann's"
            size = chance.choice([10, 1000, 30_000]) if author == "greedy" else 100
            tops[topic] = offset = tops.get(topic, 0) + 1
            messages = left.setdefault(topic, [])
            messages.append((offset, author, size, clock.now))
            del messages[: max(0, len(messages) - kept.messages)]
            for trim in shares.add(author, topic, kept, offset, size):
                assert trim.topic != "ann's"
                left[trim.topic] = [one for one in left[trim.topic] if one[0] > trim.offset]
            for name, those in left.items():
                if those and those[-1][3] + kept.seconds <= clock.now:
                    left[name] = []
            held = [one for those in left.values() for one in those if one[1] == author]
            used = sum(MESSAGE + one[2] for one in held)
            assert used <= SHARE, (seed, used)
            modest = max(modest, used) if author == "ann" else modest
        assert modest and shares.size <= TOTAL


def test_what_is_over_is_forgotten():
    """Topics that have expired take nothing, nor does a user who has none; the names of topics have their price."""
    clock = Clock()
    shares = Shares(TOTAL, clock)
    for number in range(10):
        assert not shares.add("ann", f"t{number}", Kept(10, 5.0), 1, 100)
    assert shares.size == 10 * (TOPIC + MESSAGE + 100)
    clock.now = 5.0
    for number in range(11):
        assert not shares.add("ann", "new", Kept(10, 5.0), number + 1, SHARE // CHUNKS)
    assert shares.size == TOPIC + 10 * (MESSAGE + SHARE // CHUNKS)
    many = [
        trim for number in range(SHARE // TOPIC + 10) for trim in shares.add("eve", f"e{number}", Kept(1, 5.0), 1, 0)
    ]
    assert many and shares.size <= SHARE + TOPIC + 10 * (MESSAGE + SHARE // CHUNKS)
