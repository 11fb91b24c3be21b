"""Deferreds that fire together, and those of coroutines."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed

from zcomm.runtime.deferreds import Waiters, awaited, following


def test_all_who_wait_hear_of_it():
    """Once each; whoever asks from a callback waits for the next outcome."""
    waiters: Waiters[str] = Waiters()
    heard: list[Any] = []
    assert not waiters
    waiters.add().addCallback(heard.append)
    waiters.add().addCallback(lambda result: waiters.add().addCallback(heard.append))
    assert len(waiters) == 2
    waiters.fire("one")
    assert heard == ["one"] and len(waiters) == 1
    waiters.fire("two")
    assert heard == ["one", "two"] and not waiters


def test_all_who_wait_fail():
    """With the error that they are given."""
    waiters: Waiters[None] = Waiters()
    failed: list[Any] = []
    for _ in range(2):
        waiters.add().addErrback(lambda failure: failed.append(failure.value))
    error = ValueError("no")
    waiters.fail(error)
    assert failed == [error, error] and not waiters


@pytest.mark.parametrize("end", [lambda waiters: waiters.fire(None), lambda waiters: waiters.fail(ValueError())])
def test_a_cancelled_one_is_forgotten(end: Any):
    """Before the outcome, and by another's callback while all are fired."""
    waiters: Waiters[None] = Waiters()
    ends: list[Any] = []
    first, second, third = waiters.add(), waiters.add(), waiters.add()
    first.cancel()
    assert len(waiters) == 2
    second.addBoth(lambda _: third.cancel())
    third.addErrback(lambda failure: ends.append(failure.type))
    first.addErrback(lambda failure: ends.append(failure.type))
    end(waiters)
    assert ends == [CancelledError, CancelledError]


def test_the_last_who_gives_up_is_told_of():
    """Once, and not where there was an outcome."""
    told: list[str] = []
    waiters: Waiters[None] = Waiters(lambda: told.append("abandoned"))
    ones = [waiters.add(), waiters.add()]
    for one in ones:
        assert not told
        one.addErrback(lambda failure: failure.trap(CancelledError))
        one.cancel()
    assert told == ["abandoned"]
    late = waiters.add()
    waiters.fire(None)
    late.cancel()
    assert told == ["abandoned"]


def test_whoever_follows_leaves_the_outcome_as_it_is():
    """It is told the outcome or the error; when it is cancelled, that goes on."""
    outcomes: list[Deferred[str]] = [Deferred(), Deferred(), Deferred()]
    heard: list[Any] = []
    followers = [following(outcome).addBoth(heard.append) for outcome in outcomes]
    followers[0].cancel()
    assert not outcomes[0].called and heard.pop().check(CancelledError)
    outcomes[0].callback("unheard")
    outcomes[1].callback("one")
    outcomes[2].errback(ValueError("no"))
    assert heard[0] == "one" and heard[1].check(ValueError)


def test_only_coroutines_become_deferreds():
    """They run up to where they wait; what is no coroutine stays as it is."""
    gate: Deferred[int] = Deferred()

    async def work() -> int:
        return await gate + 1

    result = awaited(work())
    gate.callback(1)
    found: list[int] = []
    result.addCallback(found.append)
    assert found == [2]
    ready = succeed(5)
    assert awaited(ready) is ready and awaited("text") == "text"
