"""One log line a second for each cause, some of all causes together, and tracebacks of a bounded length."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, eventAsText
from twisted.python.failure import Failure

from zcomm.runtime.logthrottle import (
    MAX_CAUSES,
    MOST_LINES,
    MOST_OF_ONE,
    MOST_TRACEBACK,
    SHORT_TRACEBACK,
    TRACEBACK_RATE,
    TRACEBACKS,
    Throttle,
)


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
        throttle.passes(cause)
    assert len(throttle._last) == MAX_CAUSES


def test_b16_no_more_than_some_lines_of_all_causes():
    """Causes that somebody makes up by the thousand are some lines a second; what was left out is counted."""
    clock = Clock()
    throttle = Throttle(clock.seconds)
    assert sum(throttle.passes(cause) is not None for cause in range(500)) == MOST_LINES
    assert throttle.passes("mine") is None
    clock.advance(1)
    assert throttle.passes(499) == 1 and throttle.passes("mine") == 1


def test_b16_one_source_leaves_lines_to_others():
    """Of one user there are fewer than all."""
    throttle = Throttle(Clock().seconds)
    assert sum(throttle.passes(cause, "ann") is not None for cause in range(500)) == MOST_OF_ONE
    assert throttle.passes("hers", "ben") == 0 and throttle.passes("nobody's") == 0


def descend(depth: int, text: str) -> None:
    if depth:
        descend(depth - 1, text)
    raise ValueError(text)


@pytest.mark.parametrize(("depth", "text"), [(900, "deep"), (0, "long" * 300_000), (900, "\n" * 300_000)])
def test_b16_a_traceback_has_a_bounded_length(depth: int, text: str):
    """However deep a command goes, and whatever its exception says; where it began and where it ended is there."""
    lines: list[str] = []
    with pytest.raises(ValueError) as caught:
        descend(depth, text)
    failure = Failure(caught.value)
    log = Logger(observer=lambda event: lines.append(eventAsText(event)))
    Throttle(Clock().seconds).log_failure(log.failure, "it failed", failure)
    assert len(lines) == 1 and len(lines[0]) < MOST_TRACEBACK + 500
    assert "test_b16_a_traceback" in lines[0] and ("descend" in lines[0])
    assert len(failure.frames) == depth + 2, "others see all of it"


def test_b16_many_tracebacks_become_short():
    """In as many places as one makes it fail, there are no more characters of tracebacks than so many, and then so many
    a second; what is left of them says what failed."""
    clock, lines = Clock(), []
    log = Logger(observer=lambda event: lines.append(eventAsText(event)))
    throttle = Throttle(clock.seconds)
    seconds = 100
    for number in range(seconds * 100):
        with pytest.raises(ValueError) as caught:
            descend(30, f"{number} " * 10_000)
        failure = Failure(caught.value)
        failure.frames = [(*frame[:2], number, *frame[3:]) for frame in failure.frames]
        throttle.log_failure(log.failure, "it failed", failure)
        clock.advance(0.01)
    assert len(lines) == MOST_LINES * seconds
    around = len(lines) * (SHORT_TRACEBACK + 200)
    assert sum(map(len, lines)) < TRACEBACKS + MOST_TRACEBACK + seconds * TRACEBACK_RATE + around
    assert "descend" in lines[0] and len(lines[-1]) < SHORT_TRACEBACK + 200 and "characters left out" in lines[-1]
