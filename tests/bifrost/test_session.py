"""The rules of a connection as values: facts in, the end of the connection out."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from zcomm.bifrost.session import LOOKS, Session
from zcomm.budget.account import Turns
from zcomm.budget.budgets import Budgets
from zcomm.config import Limits
from zcomm.wire.closecodes import Ending

LIMITS = Limits(frame_rate=10, frame_burst=20, message_size=2000, queue_size=1024, stall_timeout=10.0)


def session() -> tuple[Session, Clock]:
    clock = Clock()
    return Session(LIMITS, clock.seconds), clock


def told(ending: Ending | None) -> tuple[str, int | None, str, bool] | None:
    return ending and (ending.cause, ending.code, ending.reason, ending.at_once)


FLOOD = ("rate_limit", 1008, "Rate limit exceeded", True)


@pytest.mark.parametrize(
    ("frames", "step", "seconds", "ends"),
    [
        pytest.param(11, 0.1, 10.5, True, id="eleven-times"),
        pytest.param(1010, 1.0, 10.5, True, id="a-hundred-times"),
        pytest.param(1010, 60.0, 30.0, False, id="all-at-once"),
        pytest.param(9, 0.1, 30.0, False, id="nine-times"),
        pytest.param(99, 1.0, 30.0, False, id="in-bundles"),
        pytest.param(400, 5.0, 30.0, False, id="bursts"),
        pytest.param(2, 0.1, 60.0, False, id="twice"),
    ],
)
def test_contact_r02_only_a_flood_ends_a_connection(frames: int, step: float, seconds: float, ends: bool):
    """More than ten times the rate, for ten seconds: not a moment earlier."""
    rules, clock = session()
    told_at = None
    came = 0.0
    while told_at is None and clock.seconds() < seconds:
        ending = rules.came(frames if clock.seconds() >= came else 0)
        if clock.seconds() >= came:
            came += step
        if ending is not None:
            assert told(ending) == FLOOD
            told_at = clock.seconds()
        clock.advance(0.1)
    assert (told_at is not None) == ends and (not ends or told_at >= 10.0)


def test_contact_r02_a_flood_that_stops_is_forgotten():
    """Nine seconds of it, then as many of the rate, are none; what comes then begins anew."""
    rules, clock = session()
    for frames in [110] * 9 + [0] * 9 + [110] * 9:
        assert rules.came(frames) is None
        clock.advance(1.0)


@pytest.mark.parametrize(
    ("is_binary", "is_taken", "code"),
    [(False, False, None), (False, True, None), (True, True, None), (True, False, 1003)],
)
def test_a_binary_message_that_nobody_takes(is_binary: bool, is_taken: bool, code: int | None):
    """It ends the connection where it begins, in an orderly way."""
    ending = session()[0].begins(is_binary, is_taken)
    assert (ending and ending.code) == code and not (ending and ending.at_once)


def test_a_message_that_is_too_long():
    """The limit itself is allowed."""
    rules, _ = session()
    assert rules.completed(2000) is None
    assert told(rules.completed(2001)) == ("", 1009, "Message too big", False)


def test_more_waits_than_may():
    """One message of any size may wait alone; the next must fit behind it."""
    rules, _ = session()
    assert rules.may_wait(0, 5000) is None and rules.may_wait(600, 424) is None
    assert told(rules.may_wait(600, 425)) == ("slow_consumer", 1013, "Slow consumer", True)


MANY = 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("left", "steps", "ends_after"),
    [
        pytest.param(100, [0], 1, id="nothing"),
        pytest.param(100, [None], 1, id="unknown"),
        pytest.param(100_000, [50_000, 0], 2, id="nothing-any-more"),
        pytest.param(100_000, [1] * 10, 3, id="a-byte-each-time"),
        pytest.param(1_000_000, [10_000] * 10, 3, id="less-than-a-slow-line"),
        pytest.param(600_000, [10_300] * 50, None, id="a-slow-line"),
        pytest.param(600_000, [1, 1, 40_000] * 14, None, id="by-fits-and-starts"),
        pytest.param(1_000_000, [60_000, 1, 1, 1], 4, id="less-and-less"),
        pytest.param(MANY, [250_000] * 60, 3, id="B14-100-KB-in-4-s-of-16-MiB"),
        pytest.param(MANY, [300_000] * 55, None, id="16-MiB-within-ten-minutes"),
        pytest.param(2_000, [1_000, 1], None, id="the-rest"),
    ],
)
def test_b14_a_client_that_takes_little(left: int, steps: list[int | None], ends_after: int | None):
    """It is cut off where it takes nothing within a stall timeout, or next to nothing within three; and where what
    waits would not be taken within sixty."""
    rules, _ = session()
    taken = 5
    rules.watched(taken if steps != [None] else None, left)
    ended = None
    for number, step in enumerate(steps, 1):
        taken += step or 0
        endings = [rules.looked(None if step is None else taken, max(0, left - taken)) for _ in range(LOOKS)]
        ending = next(filter(None, endings), None)
        if ending is not None:
            assert told(ending) == ("stalled", None, "", False)
            ended = number
            break
    assert ended == ends_after and rules.interval == 10.0 / LOOKS


def test_b14_a_client_is_kept_for_no_more_than_a_look_beyond_its_time():
    """What its system took in the first moment counts from that moment, not from the end of the first ten seconds."""
    rules, _ = session()
    rules.watched(0, 100_000)
    endings = [rules.looked(50_000, 50_000) for _ in range(LOOKS + 1)]
    assert endings[:LOOKS] == [None] * LOOKS and told(endings[LOOKS]) == ("stalled", None, "", False)


def test_b14_a_client_that_has_taken_all_begins_anew():
    """What it has taken of other things does not count, nor what it has not."""
    rules, _ = session()
    rules.watched(0, 1000)
    assert rules.looked(1, 999) is None and rules.looked(2, 998) is None
    rules.watched(1000, 50_000)
    assert rules.looked(12_000, 39_000) is None and rules.looked(22_000, 29_000) is None


def test_b14_answers_take_of_their_users_memory():
    """Each as much as waits of it, given back as it leaves, once; small ones that need not wait have an eighth more."""
    clock = Clock()
    budgets = Budgets(Limits(results_size=1024 * 1024), Turns(clock.seconds, lambda call: call(), clock.callLater))
    memory = budgets.memory
    one, other = budgets.join("alice"), budgets.join("bob")
    first, second, third = (session()[0] for _ in range(3))
    assert first.has_room(10**9, True)
    first.owes(10**6)
    first.owes(0)
    for rules, account in ((first, one), (second, one), (third, other)):
        rules.charges(memory, account)
    assert first.has_room(512 * 1024, True)
    first.owes(500 * 1024)
    assert (one.held, memory.held) == (500 * 1024, 500 * 1024)
    assert not second.has_room(13 * 1024, True) and second.has_room(12 * 1024, True)
    assert second.has_room(64 * 1024, False) and not second.has_room(64 * 1024 + 1, False)
    first.owes(600 * 1024)
    assert second.has_room(40 * 1024, False) and not second.has_room(41 * 1024, False)
    assert one.refused == 3
    assert third.has_room(512 * 1024, True)
    second.owes(40 * 1024)
    first.owes(100 * 1024)
    assert one.held == memory.held == 140 * 1024
    for _ in range(2):
        first.owes(0)
        second.owes(0)
    assert one.held == memory.held == other.held == 0


def test_a_client_that_says_nothing():
    """The second ping in silence is its end; whatever it says counts."""
    rules, _ = session()
    assert rules.pinged(0, 0) is None
    rules.heard = True
    assert rules.pinged(1000, 0) is None
    assert told(rules.pinged(50_000, 0)) == ("ping_timeout", None, "", False)


@pytest.mark.parametrize(
    ("in_front", "moved", "stays"),
    [
        pytest.param(100_000, 20 * 1024, True, id="at-a-slow-pace"),
        pytest.param(100_000, 20 * 1024 - 1, False, id="slower"),
        pytest.param(100_000, 0, False, id="nothing"),
        pytest.param(5_000, 5_000, True, id="all-of-it"),
        pytest.param(5_000, 4_999, False, id="not-all-of-it"),
        pytest.param(0, 10**6, False, id="nothing-stood-in-front"),
    ],
)
def test_a_ping_that_waits_behind_what_a_slow_client_takes(in_front: int, moved: int, stays: bool):
    """It cannot be answered before it arrives: who takes what stands in front of it is there, until the next one."""
    rules, _ = session()
    assert rules.pinged(7, in_front) is None
    silent = ("ping_timeout", None, "", False)
    assert told(rules.pinged(7 + moved, 0)) == (None if stays else silent)
    if stays:
        assert told(rules.pinged(10**9, 0)) == silent


def test_a_goodbye():
    """Nothing that is sent to the client is of use any more."""
    rules, _ = session()
    assert rules.is_open
    rules.said_goodbye()
    assert not rules.is_open
