"""Random histories of servers that fail, beside a model: whoever is told that all is there has all, and nobody is told
otherwise for nothing.

By hand, for as long as one likes, with ``ZCOMM_TEST_SECONDS=3600 ZCOMM_TEST_SEED=7``; 10,000 are a good minute.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha1

import pytest
from support.histories import Histories, Presence, Speaker
from support.redisserver import RedisServer

from zcomm.engines.redis.scripts import Script, Scripts

SECONDS = float(os.environ.get("ZCOMM_TEST_SECONDS", "0"))
SEED = int(os.environ.get("ZCOMM_TEST_SEED", "1"))
#: Histories where no time is given, and steps of one.
HISTORIES, STEPS = 400, 80

pytestmark = pytest.mark.timeout(SECONDS + 120)


@pytest.fixture
def speaker(redis: RedisServer) -> Iterator[Speaker]:
    """A connection of its own."""
    one = Speaker(redis)
    yield one
    one.close()


def seeds() -> Iterator[int]:
    """As many as there are to be, or as there is time for."""
    until = time.monotonic() + SECONDS
    seed = SEED
    while time.monotonic() < until if SECONDS else seed < SEED + HISTORIES:
        yield seed
        seed += 1


def test_positions_of_random_histories(speaker: Speaker):
    """What clients are told when they come back is right, at whichever server, after whatever has happened."""
    counts: Counter[str] = Counter()
    scripts = Scripts(by_info=False)
    speaker.load(scripts)
    for seed in seeds():
        Histories(seed, speaker, scripts, counts).run(STEPS)
        counts["histories"] += 1
    print(*(f"{name} {number};" for name, number in sorted(counts.items())))
    assert all(counts[name] for name in ("recovered", "history_lost", "epoch", "too_old", "too_many", "repeated"))


def test_members_of_random_nodes(speaker: Speaker):
    """Whoever is in a topic is told of once when it comes and once when it goes, whichever node dies, pauses, comes
    back or takes another's members out meanwhile."""
    counts: Counter[str] = Counter()
    scripts = Scripts(by_info=False)
    # A few at a time, so that others come between.
    few = scripts.reap.text.replace("KEYS[4], 500)", "KEYS[4], 2)")
    assert few != scripts.reap.text
    scripts.reap = Script(few, sha1(few.encode(), usedforsecurity=False).hexdigest())
    speaker.load(scripts)
    for seed in seeds():
        Presence(seed, speaker, scripts, counts).run(STEPS)
        counts["histories"] += 1
    print(*(f"{name} {number};" for name, number in sorted(counts.items())))
    assert all(counts[name] for name in ("told", "reaped", "renewed", "compared"))
