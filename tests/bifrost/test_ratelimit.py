"""What a peer may use up, on a clock of the test's own."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from zcomm.bifrost.ratelimit import AttemptWindow, TokenBucket


def test_a_bucket_gives_its_burst_and_then_its_rate():
    """Neither more nor, after a rest, more than the burst."""
    clock = Clock()
    bucket = TokenBucket(10, 20, clock.seconds)
    assert all(bucket.spend(1) for _ in range(20))
    assert not bucket.spend(1)
    clock.advance(1.0)
    assert sum(bucket.spend(1) for _ in range(30)) == 9
    clock.advance(1000)
    assert sum(bucket.spend(1) for _ in range(100)) == 20


@pytest.mark.parametrize("count", [1, 7, 20])
def test_a_steady_sender_within_the_rate_is_never_stopped(count: int):
    """However it bundles what it sends."""
    clock = Clock()
    bucket = TokenBucket(10, 20, clock.seconds)
    for _ in range(500):
        assert bucket.spend(count)
        clock.advance(count / 10)


def test_more_than_the_burst_at_once_is_too_much():
    """Even after a long rest."""
    clock = Clock()
    bucket = TokenBucket(10, 20, clock.seconds)
    clock.advance(1000)
    assert not bucket.spend(21)


def test_attempts():
    """So many within a minute of the last; then anew. Others are not concerned."""
    clock = Clock()
    window = AttemptWindow(3, clock.seconds)
    for _ in range(3):
        assert not window.exhausted("a")
        window.failed("a")
    assert window.exhausted("a") and not window.exhausted("b")
    clock.advance(59.9)
    assert window.exhausted("a")
    clock.advance(0.2)
    assert not window.exhausted("a")
    window.failed("a")
    assert not window.exhausted("a")


def test_only_so_many_peers_are_remembered():
    """The one that has been quiet the longest is forgotten."""
    clock = Clock()
    window = AttemptWindow(1, clock.seconds, peers=3)
    for peer in "abcad":
        window.failed(peer)
        clock.advance(0.1)
    assert [peer for peer in "abcd" if window.exhausted(peer)] == ["a", "c", "d"]
