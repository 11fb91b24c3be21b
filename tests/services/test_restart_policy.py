"""The policy of restarts, as values."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from zcomm.services.restart_policy import RestartPolicy


def test_the_waits_between_attempts():
    """At once, then 0.1 s doubled each time, up to half a minute (P2)."""
    policy = RestartPolicy(attempts=100, jitter=0.0)
    waits = [policy.delay([0.0] * count, lambda: 0.5) for count in range(1, 14)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_five_failures_in_a_minute_end_it():
    """Older ones do not count; good health forgets them all."""
    policy = RestartPolicy()
    assert policy.delay([0, 1, 2, 3], lambda: 0.0) == pytest.approx(0.4)
    assert policy.delay([0, 1, 2, 3, 60], lambda: 0.0) is None
    assert policy.delay([0, 1, 2, 3, 60.1], lambda: 0.0) is not None
    assert policy.remembered((1.0, 2.0), ready_at=3.0, now=62.9) == (1.0, 2.0, 62.9)
    assert policy.remembered((1.0, 2.0), ready_at=3.0, now=63.0) == (63.0,)
    assert policy.remembered((1.0,), ready_at=None, now=900.0) == (1.0, 900.0)


@given(count=strategies.integers(1, 200), chance=strategies.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_the_cap_nor_negative(count: int, chance: float):
    """Whatever the number of failures and the luck."""
    delay = RestartPolicy(attempts=1000).delay([0.0] * count, lambda: chance)
    assert delay is not None and 0 <= delay <= 30
