"""Deadlines: each call once, at its time, by one timer, whatever the calls do."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from zcomm.runtime.timeouts import Deadlines


def test_each_at_its_time():
    """In any order, some cleared, some set anew; never more than one timer."""
    clock, made = Clock(), []
    deadlines = Deadlines(clock)
    for name, seconds in (("a", 10), ("b", 5), ("c", 10), ("d", 7), ("e", 12)):
        deadlines.set(name, seconds, lambda name=name: made.append((clock.seconds(), name)))
        assert len(clock.getDelayedCalls()) == 1
    deadlines.clear("c")
    deadlines.clear("c")
    deadlines.set("d", 11, lambda: made.append((clock.seconds(), "d again")))
    clock.pump([0.5] * 40)
    assert made == [(5, "b"), (10, "a"), (11, "d again"), (12, "e")]
    assert clock.getDelayedCalls() == []


def test_late_is_better_than_never():
    """A reactor that was held up makes all the calls that are due, and those that they ask for after them."""
    clock, made = Clock(), []
    deadlines = Deadlines(clock)
    deadlines.set("a", 1, lambda: deadlines.set("c", 0, lambda: made.append("c")))
    deadlines.set("b", 2, lambda: made.append("b"))
    clock.advance(60)
    assert made == ["b", "c"] and clock.getDelayedCalls() == []


def test_calls_that_clear_and_calls_that_fail():
    """What one call does to the others holds at once; one that fails is logged, and takes nobody along."""
    clock, made = Clock(), []
    deadlines = Deadlines(clock)
    deadlines.set("a", 1, lambda: deadlines.clear("b"))
    deadlines.set("b", 1, lambda: made.append("b"))
    deadlines.set("c", 1, lambda: 1 / 0)
    deadlines.set("d", 1, lambda: made.append("d"))
    deadlines.set("e", 2, lambda: made.append("e"))
    with capturedLogs() as logged:
        clock.advance(1)
    clock.advance(1)
    assert made == ["d", "e"]
    assert ["ZeroDivisionError" in str(event["log_failure"]) for event in logged] == [True]


def test_stopped_in_the_middle():
    """Nothing more happens, no timer is left, and it can be used again."""
    clock, made = Clock(), []
    deadlines = Deadlines(clock)
    deadlines.set("a", 1, deadlines.stop)
    deadlines.set("b", 1, lambda: made.append("b"))
    clock.advance(1)
    assert made == [] and clock.getDelayedCalls() == []
    deadlines.stop()
    deadlines.set("a", 1, lambda: made.append("a"))
    deadlines.stop()
    assert clock.getDelayedCalls() == []
    deadlines.set("a", 1, lambda: made.append("a"))
    clock.advance(1)
    assert made == ["a"]
