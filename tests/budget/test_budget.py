"""Budgets of users: allowances that fill, turns of the reactor, bytes in flight, and accounts that come and go."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zcomm.budget.account import AWAY, DATABASE_BURST, HALF_LIFE, LONG, SLICE, Account, Bucket, Meter, Turns
from zcomm.budget.askers import Askers
from zcomm.budget.budgets import Budgets
from zcomm.budget.memory import Memory
from zcomm.config import Limits
from zcomm.errors import TooBusy


class Ends:
    """The ends of the turns of a reactor, told when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def __call__(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def end(self) -> None:
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns() -> Ends:
    return Ends()


@pytest.fixture
def budgets(clock: Clock, turns: Ends) -> Budgets:
    return Budgets(Limits(), Turns(clock.seconds, turns, clock.callLater))


def test_a_bucket_fills_and_may_be_overdrawn(clock: Clock):
    """It never holds more than its burst, and is never overdrawn by more."""
    bucket = Bucket(2.0, 10.0, clock.seconds)
    assert bucket.take(10) and not bucket.take(1)
    assert bucket.wait() == 0
    bucket.charge(4)
    assert (bucket.left, bucket.wait()) == (-4, 2)
    clock.advance(3)
    assert bucket.left == 2 and bucket.take(2)
    bucket.charge(1000)
    assert bucket.left == -10
    clock.advance(1000)
    assert bucket.left == 10 and bucket.is_full


def test_a_meter_forgets_half_in_its_time(clock: Clock):
    """What is older counts less, down to nothing."""
    meter = Meter(clock.seconds)
    meter.add(8)
    clock.advance(HALF_LIFE)
    meter.add(1)
    assert meter.value == pytest.approx(5)
    clock.advance(HALF_LIFE * 20)
    assert meter.value < 0.00001


def test_who_had_its_slice_waits_for_the_next_turn(budgets: Budgets, turns: Ends):
    """However its time was cut; what it had beyond is paid with the slices of the turns that follow."""
    account = budgets.account("ann")
    account.spend(10.0, 10.0 + SLICE / 2)
    assert not account.is_spent
    account.spend(10.0 + SLICE / 2, 10.0 + SLICE)
    assert account.is_spent
    turns.end()
    assert not account.is_spent
    account.spend(11.0, 11.0 + 3.5 * SLICE)
    for _ in range(3):
        assert account.is_spent
        turns.end()
    assert not account.is_spent and not turns.waiting
    assert account.on_reactor == pytest.approx(4.5 * SLICE)


def test_who_had_a_turn_for_long_is_away_where_others_ask(budgets: Budgets, clock: Clock, turns: Ends):
    """For twice as long, up to a bound; what waits goes on then, and so do the slices."""
    account, done = budgets.account("ann"), []
    budgets.askers.ask("bob")
    account.spend(0.0, LONG + 0.007)
    account.later(lambda: done.append(clock.seconds()))
    turns.end()
    assert account.is_spent and account.is_away and not turns.waiting
    clock.advance(0.019)
    assert account.is_away and not done
    clock.advance(0.001)
    assert not account.is_away and not account.is_spent and done == [pytest.approx(0.02)]
    account.spend(0.0, SLICE)
    turns.end()
    assert not account.is_spent and not account.is_away
    budgets.askers.ask("bob")
    account.spend(0.0, 3600.0)
    turns.end()
    clock.advance(AWAY)
    assert not account.is_away and not account.is_spent


def test_what_waits_is_paid_for(budgets: Budgets, clock: Clock, turns: Ends):
    """Hundreds of connections that are read from again take several turns; what they answer counts once."""
    account, done = budgets.account("ann"), []

    def answers() -> None:
        clock.advance(SLICE / 4)
        account.spend(0.0, SLICE / 8)
        done.append(clock.seconds())

    for _ in range(8):
        account.later(answers)
    for count in (4, 8, 8):
        turns.end()
        assert len(done) == count
    assert not account.is_spent and account.on_reactor == pytest.approx(8 * SLICE / 4, rel=1e-3)


def test_nobody_is_away_after_the_end(budgets: Budgets, clock: Clock, turns: Ends):
    """No timer is left; what waits goes on."""
    account, done = budgets.account("ann"), []
    budgets.askers.ask("bob")
    for each in (account, budgets.outsiders):
        each.spend(0.0, 2 * LONG)
    account.later(lambda: done.append("on"))
    turns.end()
    assert account.is_away and len(clock.getDelayedCalls()) == 2
    budgets.stop()
    assert not account.is_away and done == ["on"] and not clock.getDelayedCalls()
    budgets.stop()


@pytest.mark.parametrize("who", [None, "ann", "bob, long ago"])
def test_nobody_is_away_where_no_other_asks(budgets: Budgets, clock: Clock, turns: Ends, who: str | None):
    """Its time is paid with slices, in no time."""
    account = budgets.account("ann")
    if who:
        budgets.askers.ask(who.partition(",")[0])
        clock.advance(1.0 if "ago" in who else 0.0)
        budgets.askers.ask("ann")
    account.spend(0.0, 4 * SLICE)
    for _ in range(4):
        assert account.is_spent and not account.is_away
        turns.end()
    assert not account.is_spent


def test_those_who_ask_are_others_for_a_second(clock: Clock):
    """Whoever asked last is none for itself, but the one before is."""
    askers = Askers(clock.seconds)
    assert not askers.others("ann")
    askers.ask("ann")
    assert (askers.others("ann"), askers.others("bob")) == (False, True)
    clock.advance(0.6)
    askers.ask("bob")
    askers.ask("bob")
    assert (askers.others("ann"), askers.others("bob"), askers.others("eve")) == (True, True, True)
    clock.advance(0.6)
    assert (askers.others("ann"), askers.others("bob")) == (True, False)
    clock.advance(0.6)
    assert not any(map(askers.others, ("ann", "bob", "eve")))


def test_what_was_long_ago_is_not_lately(budgets: Budgets, clock: Clock, turns: Ends):
    """Although nobody has asked meanwhile what it was."""
    account = budgets.account("ann")
    for _ in range(100):
        account.spend(clock.seconds(), clock.seconds() + 0.001)
        clock.advance(HALF_LIFE / 2)
    # A sum of halves of halves.
    assert account.on_reactor == pytest.approx(0.001 / (2**0.5 - 1), rel=0.01)


def test_what_waits_goes_on_in_turn_as_far_as_there_is_time(budgets: Budgets, turns: Ends):
    """Each call in its order and once, a slice of them in each turn; one that fails holds up none behind it."""
    account = budgets.account("ann")
    done: list[int] = []

    def work(number: int) -> None:
        done.append(number)
        account.spend(0.0, SLICE / 2 + 1e-9)
        if number == 3:
            raise ValueError

    for number in range(6):
        account.later(partial(work, number))
    assert account.is_spent and not done
    turns.end()
    assert done == [0, 1] and account.is_spent
    with pytest.raises(ValueError):
        turns.end()
    assert done == [0, 1, 2, 3] and account.is_spent
    turns.end()
    turns.end()
    assert done == [0, 1, 2, 3, 4, 5] and not turns.waiting and not account.is_spent


def test_the_dearest_come_first(budgets: Budgets):
    """All that a user costs counts together, and nobody who costs nothing is named."""
    for number in range(1, 21):
        account = budgets.account(f"user {number}")
        account.spend(0.0, number / 2)
        account.in_database.add(number / 4)
        account.in_threads.add(number / 4)
    budgets.account("idle")
    assert [account.owner for account in budgets.dearest(3)] == ["user 20", "user 19", "user 18"]
    assert len(budgets.dearest(100)) == 20


def test_users_are_many_while_several_are_connected(budgets: Budgets):
    """However many connections each has; one that was here counts no more."""
    seen = []
    for change in (
        lambda: budgets.join("alice"),
        lambda: budgets.join("alice"),
        lambda: budgets.join("bob"),
        lambda: budgets.account("carol"),
        lambda: budgets.leave(budgets.account("alice")),
        lambda: budgets.leave(budgets.account("alice")),
        lambda: budgets.join("carol"),
    ):
        change()
        seen.append(budgets.are_many())
    assert seen == [False, False, True, True, True, False, True]


def test_an_account_is_forgotten_when_nothing_of_it_is_left(budgets: Budgets, clock: Clock):
    """Not before: who leaves and comes back has the budget that it left with."""
    account = budgets.join("ann")
    account.database.charge(DATABASE_BURST + 5)
    budgets.leave(account)
    assert budgets.join("ann") is account
    budgets.leave(account)
    clock.advance(DATABASE_BURST * 3)
    for number in range(10):
        budgets.leave(budgets.join(number))
    again = budgets.join("ann")
    assert again is not account and again.database.is_full


def test_an_account_is_forgotten_whatever_the_reactor_has_spent_on_it(budgets: Budgets, clock: Clock, turns: Ends):
    """What it was does not stay as it was because nobody asks: a visitor without a name has an account of its own."""
    for number in range(100):
        account = budgets.join(number)
        for _ in range(10):
            account.spend(clock.seconds(), clock.seconds() + SLICE)
            clock.advance(0.1)
            turns.end()
        budgets.leave(account)
    for number in range(100, 400):
        clock.advance(HALF_LIFE / 10)
        budgets.leave(budgets.join(number))
    assert len(budgets) < 10


def test_many_that_come_and_go_leave_few_accounts(budgets: Budgets):
    """Accounts of those who did nothing are gone with them."""
    for number in range(10_000):
        budgets.leave(budgets.join(number))
    assert len(budgets) < 10
    joined = [budgets.join("ann"), budgets.join("ann")]
    assert joined[0] is joined[1] and joined[0].clients == 2
    budgets.leave(joined[0])
    for number in range(100):
        budgets.leave(budgets.join(number))
    assert budgets.join("ann") is joined[0]


def test_a_refusal_counts_and_says_when(budgets: Budgets):
    """The error is one that may be tried again, in its time where that is known."""
    account = budgets.account("ann")
    error = account.refuse("Your statements have run for too long", 12.3)
    assert isinstance(error, TooBusy) and error.retryable
    assert str(error) == "Your statements have run for too long; try again in 12 s"
    assert str(account.refuse("Full")) == "Full; try again"
    assert account.refused == 2


def test_one_user_has_half_of_the_memory(budgets: Budgets):
    """Whatever it holds; the other half is for the others, of whom each has its even part."""
    memory, ann, bob = Memory(1000), budgets.account("ann"), budgets.account("bob")
    assert memory.hold(ann, 500) and not memory.hold(ann, 1)
    assert memory.hold(bob, 500) and not memory.hold(bob, 1)
    # All are in use: who has less than an even part still gets that.
    eve = budgets.account("eve")
    assert memory.hold(eve, 333) and not memory.hold(eve, 1)
    memory.release(ann, 500)
    assert memory.hold(eve, 1)
    for account, size in ((bob, 500), (eve, 334)):
        memory.release(account, size)
    assert memory.held == 0 and not any(account.held for account in (ann, bob, eve))


def test_who_waits_for_memory_comes_in_turn(budgets: Budgets):
    """Behind what the same user has asked for before; and whoever waits no longer keeps nobody else."""
    memory, ann, bob = Memory(1000), budgets.account("ann"), budgets.account("bob")
    came: list[str] = []

    def wait(account: Account, size: int, name: str) -> Deferred[None]:
        waited = memory.when(account, size)
        waited.addCallbacks(lambda _: came.append(name), lambda _: None)
        return waited

    wait(ann, 500, "first")
    second, third = wait(ann, 400, "second"), wait(ann, 100, "third")
    wait(bob, 500, "bob")
    assert came == ["first", "bob"]
    second.cancel()
    memory.release(ann, 500)
    assert came == ["first", "bob", "third"]
    assert not third.called or ann.held == 100
    memory.release(ann, 100)
    memory.release(bob, 500)
    assert memory.held == 0 and not memory._lines


def test_many_that_wait_for_memory_are_given_up_at_once(budgets: Budgets):
    """Nobody looks through all for each: a user's connections may end together."""
    memory, ann = Memory(1000), budgets.account("ann")
    waiting = [memory.when(ann, 500) for _ in range(20_000)]
    for deferred in waiting:
        deferred.addErrback(lambda _: None)
    begun = time.monotonic()
    for deferred in reversed(waiting[1:]):
        deferred.cancel()
    assert time.monotonic() - begun < 3
    memory.release(ann, 500)
    assert memory.held == 0 and not memory._lines


@pytest.mark.parametrize("seed", range(20))
def test_memory_holds_what_a_model_says(budgets: Budgets, seed: int):
    """Random holds, waits, cancellations and releases: nobody beyond half, nobody forgotten, nothing left over."""
    chance = random.Random(seed)
    memory = Memory(1000)
    accounts = [budgets.account(name) for name in "abcd"]
    held: list[tuple[Account, int]] = []
    waiting: list[tuple[Account, int, Deferred[None]]] = []

    def taken(_: object, account: Account, size: int) -> None:
        held.append((account, size))

    for _ in range(500):
        account, size = chance.choice(accounts), chance.randint(1, 500)
        step = chance.random()
        if step < 0.3:
            if memory.hold(account, size):
                held.append((account, size))
        elif step < 0.6:
            deferred = memory.when(account, size)
            deferred.addCallbacks(taken, lambda _: None, callbackArgs=(account, size))
            waiting.append((account, size, deferred))
        elif step < 0.7 and waiting:
            waiting.pop(chance.randrange(len(waiting)))[2].cancel()
        elif held:
            memory.release(*held.pop(chance.randrange(len(held))))
        assert memory.held == sum(size for _, size in held)
        for one in accounts:
            assert one.held == sum(size for whose, size in held if whose is one) <= 500
    # Whoever waits gets it, as soon as others give theirs back.
    while held:
        memory.release(*held.pop())
    assert all(deferred.called for _, _, deferred in waiting)
    assert memory.held == 0 and not memory._lines


def test_thousands_who_give_back_at_once(budgets: Budgets):
    """One after the other: none is let in from within another, however many are refused as soon as they have room."""
    memory, one = Memory(100), budgets.account("one")
    memory.take(one, 50)
    depth = 0
    deepest: list[int] = []

    def refused(_: None) -> None:
        nonlocal depth
        depth += 1
        deepest.append(depth)
        memory.release(one, 50)
        depth -= 1

    for _ in range(3000):
        memory.when(one, 50).addCallback(refused)
    memory.release(one, 50)
    assert deepest == [1] * 3000 and memory.held == 0
