"""One log line a second for each cause."""

from __future__ import annotations

from twisted.internet.task import Clock

from zcomm.runtime.logthrottle import MAX_CAUSES, Throttle


def test_one_line_a_second():
    """The next line that is written says how many were not; causes do not share."""
    clock = Clock()
    throttle = Throttle(clock.seconds)
    assert [throttle.passes("a") for _ in range(5)] == [0, None, None, None, None]
    assert throttle.passes("b") == 0
    clock.advance(0.999)
    assert throttle.passes("a") is None
    clock.advance(0.001)
    assert (throttle.passes("a"), throttle.passes("b")) == (5, 0)


def test_causes_are_forgotten():
    """However many there are, memory has an end; those of late are known."""
    throttle = Throttle(Clock().seconds)
    for cause in range(3 * MAX_CAUSES):
        assert throttle.passes(cause) == 0
    assert len(throttle._last) == MAX_CAUSES
    assert throttle.passes(3 * MAX_CAUSES - 1) is None and throttle.passes(0) == 0
