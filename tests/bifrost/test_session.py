"""The rules of a connection as values: facts in, the end of the connection out."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from zcomm.bifrost.session import Session
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


@pytest.mark.parametrize(
    ("before", "now", "cause"),
    [(5, 4, None), (5, 5, "stalled"), (5, 6, "stalled"), (None, 4, "stalled"), (5, None, "stalled")],
)
def test_a_client_that_takes_nothing(before: int | None, now: int | None, cause: str | None):
    """It is cut off after the stall timeout, unless something is known to have gone out."""
    rules, _ = session()
    ending = rules.took_nothing(before, now)
    assert (ending and (ending.cause, ending.code)) == (cause and (cause, None)) and rules.stall_timeout == 10.0


def test_a_client_that_says_nothing():
    """The second ping in silence is its end; whatever it says counts."""
    rules, _ = session()
    assert rules.pinged() is None
    rules.heard = True
    assert rules.pinged() is None
    assert told(rules.pinged()) == ("ping_timeout", None, "", False)


def test_a_goodbye():
    """Nothing that is sent to the client is of use any more."""
    rules, _ = session()
    assert rules.is_open
    rules.said_goodbye()
    assert not rules.is_open
