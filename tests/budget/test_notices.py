"""Notices in the place of what is too much to be told."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from zcomm.budget.notices import INTERVAL, MOST, MOST_BYTES, Notices
from zcomm.interfaces import EVERYBODY, Audience, Broadcast

ALICE, BOB = "alice", "bob"


class Told:
    """Notices, and what they have sent."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[Broadcast] = []
        self.notices = Notices(self.clock, self.sent.append)

    def say(self, owner: str = ALICE, payload: bytes = b"{}", audience: Audience = EVERYBODY, **how: Any) -> None:
        self.notices.say(owner, payload, audience, how.get("sender"), how.get("size", 1000))  # type: ignore[arg-type]

    def taken(self) -> list[Broadcast]:
        sent = self.sent[:]
        self.sent.clear()
        return sent


@pytest.fixture
def told() -> Told:
    return Told()


def test_the_first_leaves_at_once_and_the_last_is_followed_by_one(told: Told):
    """In between one an interval, however many there are; and nothing is left behind."""
    for _ in range(50):
        for _ in range(20):
            told.say()
        told.clock.advance(INTERVAL / 10)
    assert 5 <= len(told.taken()) <= 7
    told.clock.advance(INTERVAL)
    told.taken()
    told.say()
    told.clock.advance(INTERVAL)
    (last,) = told.taken()
    assert last.is_notice and last.is_result and last.payload == b"{}"
    told.clock.advance(INTERVAL)
    assert not told.taken() and not told.clock.getDelayedCalls() and not told.notices._lately


def test_what_says_something_else_is_said_by_itself(told: Told):
    """Another user's, another command's."""
    for _ in range(3):
        told.say(ALICE, b"1")
        told.say(ALICE, b"2")
        told.say(BOB, b"1")
    assert [each.payload for each in told.taken()] == [b"1", b"2", b"1"]
    told.clock.advance(INTERVAL)
    assert [each.payload for each in told.taken()] == [b"1", b"2", b"1"]


def test_each_audience_hears_of_it(told: Told):
    """Rows have audiences of their own; those of one model or function are one."""
    rows = [Audience("model", "Users", {"id": number}) for number in range(5)]
    model = Audience("model", "Users")
    for audience in (*rows, model, model):
        told.say(audience=audience)
    assert [each.audience for each in told.taken()] == rows[:1]
    told.clock.advance(INTERVAL)
    assert [each.audience for each in told.taken()] == [*rows[1:], model]


@pytest.mark.parametrize(("count", "size"), [(MOST, 10), (2, MOST_BYTES // 2)])
def test_few_rows_wait(told: Told, count: int, size: int):
    """As large rows as one likes are not kept for an interval: they are told of earlier."""
    told.say()
    told.taken()
    for number in range(count):
        assert not told.sent
        told.say(audience=Audience("model", "Users", {"id": number}), size=size)
    assert len(told.taken()) == count


def test_a_sender_is_told_of_what_others_have_done(told: Told):
    """Two connections of one user hear of each other; one alone has its replies."""
    one: Any = object()
    other: Any = object()
    for senders, expected in (((one, one, one), one), ((one, one, other), None), ((one, other, other), other)):
        for sender in senders:
            told.say(sender=sender)
        assert [each.sender for each in told.taken()] == [one]
        told.clock.advance(INTERVAL)
        assert [each.sender for each in told.taken()] == [expected]
        told.clock.advance(INTERVAL)


def test_stopped(told: Told):
    """No timer is left, and nothing is said."""
    told.say()
    told.say()
    told.notices.stop()
    told.clock.advance(10)
    assert len(told.sent) == 1 and not told.clock.getDelayedCalls()
    told.notices.stop()
