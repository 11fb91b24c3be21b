"""The keys that make publishing safe to repeat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from zcomm.errors import Conflict
from zcomm.interfaces import Position
from zcomm.topics.keys import KEPT, Keys, digest_of

ROOM = 16 * 1024 * 1024


class Now:
    """The time, as the test has it."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_the_same_again():
    """The same under the same key is known with its place; for another user it is new."""
    keys = Keys(ROOM, Now())
    digest = digest_of("room:1", b'"hi"')
    assert keys.find("ann", "k", digest) is None
    keys.keep("ann", "k", digest, Position("e", 7))
    assert keys.find("ann", "k", digest) == (digest, Position("e", 7))
    assert keys.find("bob", "k", digest) is None


def test_something_else_under_the_same_key():
    """Other data, and another topic, is a conflict that names the field."""
    keys = Keys(ROOM, Now())
    keys.keep("ann", "k", digest_of("room:1", b"1"), None)
    for other in (digest_of("room:1", b"2"), digest_of("room:2", b"1")):
        with pytest.raises(Conflict) as caught:
            keys.find("ann", "k", other)
        assert caught.value.fields == {"_idempotencyKey": "was used for something else"}


def test_user_and_key_are_told_apart():
    """Two users whose name and key are the same text together do not get each other's."""
    keys = Keys(ROOM, Now())
    digest = digest_of("t", b"1")
    keys.keep("ann", "1x", digest, Position("e", 1))
    assert keys.find("ann1", "x", digest) is None and keys.find("an", "n1x", digest) is None


def test_topic_and_data_are_told_apart():
    """What is published is not another topic's with the same text together."""
    assert digest_of("a", b"b1") != digest_of("ab", b"1")


@examples(100)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("kl"), st.floats(0, 80)), max_size=40))
def test_how_long_a_key_is_known(steps):
    """Each for five minutes at least and five and a half at most, however they come."""
    now = Now()
    keys = Keys(ROOM, now)
    kept: dict[tuple[str, str], float] = {}
    for number, (author, key, passed) in enumerate(steps):
        now.time += passed
        found = keys.find(author, key, b"d")
        age = now.time - kept.get((author, key), float("-inf"))
        assert found is not None or age >= KEPT - 1e-6
        assert found is None or age <= KEPT * 1.1 + 1e-6
        if found is None:
            keys.keep(author, key, b"d", Position("e", number))
            kept[author, key] = now.time


def test_one_user_with_very_many_keys():
    """They do not let another's be forgotten before its time; their own are known no more, which is no error."""
    now = Now()
    keys = Keys(64 * 1024, now)
    keys.keep("bob", "his", b"d", Position("e", 1))
    for number in range(10_000):
        keys.keep("ann", str(number), b"d", None)
    assert keys.find("bob", "his", b"d") == (b"d", Position("e", 1))
    assert sum(len(part.entries) for part in keys._parts) < 300


def test_very_many_users():
    """The oldest keys are forgotten in time to keep within the memory there is."""
    keys = Keys(64 * 1024, Now())
    for number in range(10_000):
        keys.keep(f"user{number}", "k", b"d", None)
    assert sum(len(part.entries) for part in keys._parts) < 360
    assert keys.find("user9999", "k", b"d") is not None
