"""The limits that several processes share, and who lets the others accept."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zcomm.bifrost.ratelimit import AttemptWindow, Logins
from zcomm.config import Config, Limits, WebSocketConfig
from zcomm.workers.crew import DIVIDED, share_of
from zcomm.workers.shares import Others


def test_the_connections_of_others():
    """The newest news of each count; those of one that is gone do not."""
    others = Others()
    others.heard(1, {"alice": 2, "bob": 1}, 3)
    others.heard(2, {"alice": 5}, 5)
    assert (others.total, others.connections_of("alice"), others.connections_of("bob")) == (8, 7, 1)
    others.heard(1, {"bob": 0}, 2)
    assert (others.total, others.connections_of("bob"), others.connections_of("carl")) == (7, 0, 0)
    others.gone(2)
    others.gone(2)
    assert (others.total, others.connections_of("alice")) == (2, 2)


@pytest.mark.parametrize(
    ("here", "there", "ahead"),
    [
        (1000, [], False),
        (1, [0], False),
        (2, [0], False),
        (3, [0], True),
        (1040, [1000], False),
        (1110, [1000], True),
        (1000, [1100], False),
        (400, [0, 900, 0], True),
    ],
)
def test_who_is_ahead_lets_the_others_accept(here: int, there: list[int], ahead: bool):
    """By a twentieth of the mean, and one."""
    others = Others()
    for number, total in enumerate(there):
        others.heard(number, {}, total)
    assert others.is_ahead(here) is ahead


def test_each_has_its_part_of_what_is_divided():
    """No limit that is of all becomes one of each; those of a connection stay."""
    limits = Limits(connections=1000, pending=9, pending_per_peer=1, database_time=1.0)
    config = Config(Path("/srv"), WebSocketConfig(limits=limits), services=("redis",))
    part = share_of(config, 4)
    of_each = part.websocket.limits
    assert (of_each.pending, of_each.pending_per_peer, of_each.database_time) == (3, 1, 0.25)
    assert part.services == () and part.data_dir == config.data_dir
    for name in Limits.__slots__:
        if name not in DIVIDED:
            assert getattr(of_each, name) == getattr(limits, name)
    # What has a least stays above it.
    assert share_of(Config(Path("/srv"), WebSocketConfig(limits=Limits(results_size=2 << 20))), 64).websocket.limits
    assert share_of(config, 1).websocket.limits == limits


def test_failures_elsewhere_count_here():
    """Two processes that tell each other let as many be tried as one alone would, and what the other was asked about
    in the same moment; then each lets one in two seconds."""
    clock = Clock()
    windows = [AttemptWindow(4, clock.seconds) for _ in range(2)]
    asked: list[list[Deferred[None]]] = [[], []]
    for number, window in enumerate(windows):
        window.counting = 2
        window.tell = windows[1 - number].heard
    logins = [Logins(window, clock) for window in windows]

    def show(number: int, token: str) -> None:
        def ask() -> Deferred[None]:
            asked[number].append(Deferred())
            return asked[number][-1]

        logins[number].check("203.0.113.9", token, ask).addErrback(lambda failure: failure.trap(UnauthorizedLogin))

    def fail() -> int:
        """Let what is asked fail, and what is asked then; returns how often that was."""
        count = 0
        while open_ones := [each for some in asked for each in some if not each.called]:
            open_ones[0].errback(UnauthorizedLogin())
            count += 1
        return count

    for number in range(2):
        for each in range(6):
            show(number, f"{number}-{each}")
    assert [len(each) for each in asked] == [2, 2]
    assert 4 <= fail() <= 6
    clock.advance(1.9)
    assert fail() == 0
    clock.advance(0.2)
    assert fail() == 2
    # Those who wait are let go.
    for _ in range(3):
        clock.advance(2.1)
        assert fail() <= 2
    assert fail() == 0 and not clock.getDelayedCalls()
