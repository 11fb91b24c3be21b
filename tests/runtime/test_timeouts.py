"""Timeouts: each call once, at its time, by one timer, whatever the calls do."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from zcomm.runtime.timeouts import Timeouts


def test_each_at_its_time():
    """In any order, some cleared, some set anew; never more than one timer."""
    clock, made = Clock(), []
    timeouts = Timeouts(clock)
    for name, seconds in (("a", 10), ("b", 5), ("c", 10), ("d", 7), ("e", 12)):
        timeouts.set(name, seconds, lambda name=name: made.append((clock.seconds(), name)))
        assert len(clock.getDelayedCalls()) == 1
    timeouts.clear("c")
    timeouts.clear("c")
    timeouts.set("d", 11, lambda: made.append((clock.seconds(), "d again")))
    clock.pump([0.5] * 40)
    assert made == [(5, "b"), (10, "a"), (11, "d again"), (12, "e")]
    assert clock.getDelayedCalls() == []


def test_late_is_better_than_never():
    """A reactor that was held up makes all the calls that are due, and those that they ask for after them."""
    clock, made = Clock(), []
    timeouts = Timeouts(clock)
    timeouts.set("a", 1, lambda: timeouts.set("c", 0, lambda: made.append("c")))
    timeouts.set("b", 2, lambda: made.append("b"))
    clock.advance(60)
    assert made == ["b", "c"] and clock.getDelayedCalls() == []


def test_calls_that_clear_and_calls_that_fail():
    """What one call does to the others holds at once; one that fails is logged, and takes nobody along."""
    clock, made = Clock(), []
    timeouts = Timeouts(clock)
    timeouts.set("a", 1, lambda: timeouts.clear("b"))
    timeouts.set("b", 1, lambda: made.append("b"))
    timeouts.set("c", 1, lambda: 1 / 0)
    timeouts.set("d", 1, lambda: made.append("d"))
    timeouts.set("e", 2, lambda: made.append("e"))
    with capturedLogs() as logged:
        clock.advance(1)
    clock.advance(1)
    assert made == ["d", "e"]
    assert ["ZeroDivisionError" in str(event["log_failure"]) for event in logged] == [True]


def test_stopped_in_the_middle():
    """Nothing more happens, no timer is left, and it can be used again."""
    clock, made = Clock(), []
    timeouts = Timeouts(clock)
    timeouts.set("a", 1, timeouts.stop)
    timeouts.set("b", 1, lambda: made.append("b"))
    clock.advance(1)
    assert made == [] and clock.getDelayedCalls() == []
    timeouts.stop()
    timeouts.set("a", 1, lambda: made.append("a"))
    timeouts.stop()
    assert clock.getDelayedCalls() == []
    timeouts.set("a", 1, lambda: made.append("a"))
    clock.advance(1)
    assert made == ["a"]
