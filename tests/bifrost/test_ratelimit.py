"""What a peer may use up, on a clock of the test's own."""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from zcomm.auth.codes import CodeInUse
from zcomm.bifrost import ratelimit
from zcomm.bifrost.ratelimit import ALL_WAITING, APART, WAITING, AttemptWindow, Logins, TokenBucket
from zcomm.errors import HandshakeRefused, TooBusy


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


class Asked:
    """One login under way: when it was asked about, and what came of it."""

    def __init__(self, logins: Logins, clock: Clock, address: str, token: str, known: set[str] | None = None):
        self.address, self.token = address, token
        self.known = set() if known is None else known
        self.in_line = False
        self.began: float | None = None
        self.host: Deferred[str] = Deferred()
        self.outcome: Any = None
        self._clock = clock
        self.result = logins.check(address, token, self._begin)
        self.result.addBoth(self._settled)

    def _begin(self) -> Deferred[str]:
        self.began = self._clock.seconds()
        self.in_line = self.token not in self.known
        return self.host

    def _settled(self, outcome: Any) -> None:
        self.outcome = outcome

    @property
    def is_with_the_host(self) -> bool:
        return self.began is not None and self.outcome is None

    @property
    def refused(self) -> bool:
        return isinstance(self.outcome, Failure) and self.outcome.check(HandshakeRefused) is not None


def told(logins: Logins, token: str, answer: Any, address: str = "a") -> Any:
    """The outcome of a token whose host answers at once; ``None`` while it waits."""
    outcome: list[Any] = []
    logins.check(address, token, lambda: succeed(answer) if answer else fail(UnauthorizedLogin())).addBoth(
        outcome.append
    )
    return outcome[0] if outcome else None


def test_contact_r03_ten_failures_are_free_and_then_one_a_second():
    """A right token is asked about in its turn; another address is none the slower, and a minute later none is."""
    clock = Clock()
    logins = Logins(AttemptWindow(10, clock.seconds), clock)
    for number in range(10):
        assert told(logins, f"wrong-{number}", "").check(UnauthorizedLogin)
    waiting: list[Any] = []
    for number in range(3):
        logins.check("a", f"guess-{number}", lambda: fail(UnauthorizedLogin())).addErrback(
            lambda failure: waiting.append(clock.seconds())
        )
    logins.check("a", "right", lambda: succeed("alice")).addCallback(waiting.append)
    assert waiting == [] and told(logins, "right", "bob", "b") == "bob"
    clock.pump([0.125] * 48)
    assert [one for one in waiting if one != "alice"] == [1.0, 2.0, 3.0] and len(waiting) == 4
    assert told(logins, "right", "alice") == "alice", "what was good is not in the line"
    assert told(logins, "guess-0", "").check(HandshakeRefused), "what was bad takes nobody's turn"
    clock.advance(60)
    assert told(logins, "guess-0", "").check(UnauthorizedLogin)
    assert clock.getDelayedCalls() == []


def test_contact_a_host_that_raises_for_wrong_tokens_is_guessed_at_no_faster():
    """Ten failures are free, whatever they are, and then one a second; and a host that is down locks nobody out."""
    clock = Clock()
    logins = Logins(AttemptWindow(10, clock.seconds), clock)
    assert told(logins, "loyal", "alice") == "alice"
    for error in (CancelledError(), CodeInUse(), HandshakeRefused(1013, ""), TooBusy("")) * 20:
        # Nothing was learnt about a token.
        host = partial(fail, error)
        assert logins.check("a", "right", host).addErrback(lambda failure: None).called
    moments: list[float] = []

    def guess(token: str) -> Deferred[Any]:
        def ask() -> Deferred[Any]:
            moments.append(clock.seconds())
            return fail(ValueError("signature verification failed"))

        return logins.check("a", token, ask).addErrback(lambda failure: failure.trap(ValueError))

    for number in range(30):
        guess(f"guess-{number % 15}")
    assert len(moments) == 10
    # Who was let in before waits for nobody, and does not slow others where nobody can tell.
    for _ in range(20):
        logins.check("a", "loyal", lambda: fail(ValueError("down"))).addErrback(lambda failure: None)
    assert told(logins, "loyal", "alice") == "alice" and told(logins, "other", "bob", "b") == "bob"
    right = Asked(logins, clock, "a", "right")
    clock.pump([0.25] * 4 * 40)
    assert moments[10:] == [float(second) for second in range(1, len(moments) - 9)]
    # Their tokens are older, and come behind it each time that they were asked about.
    assert right.is_with_the_host
    right.host.errback(ValueError("down"))
    guesses = [guess(f"guess-{number % 15}") for number in range(30)]
    right = Asked(logins, clock, "a", "right")
    clock.pump([0.25] * 4 * 2 * 20)
    assert right.is_with_the_host
    right.host.callback("carol")
    assert told(logins, "right", "carol") == "carol"
    clock.pump([0.25] * 4 * 120)
    assert all(one.called for one in guesses) and logins._lines == {} and clock.getDelayedCalls() == []
    clock.advance(60.0)
    assert told(logins, "new", "dan") == "dan"


def test_contact_r03_who_waits_too_long_is_told_to_come_back():
    """With the close code for it; and so is the last of those for whom there is no room."""
    clock = Clock()
    logins = Logins(AttemptWindow(1, clock.seconds), clock)
    told(logins, "wrong", "")
    guesses = [Asked(logins, clock, "a", f"guess-{number}") for number in range(WAITING + 3)]
    assert [number for number, guess in enumerate(guesses) if guess.refused] == [WAITING, WAITING + 1, WAITING + 2]
    guesses[0].result.cancel()
    assert guesses[0].outcome.value.close_code == 1013
    clock.advance(1.0)
    (asked,) = [guess for guess in guesses if guess.began is not None]
    assert asked is guesses[1]
    asked.result.cancel()
    assert not asked.refused, "a host that does not answer is another matter"
    assert len([guess for guess in guesses if guess.began == 1.0]) == 2
    for number in range(ALL_WAITING):
        told(logins, "wrong", "", f"address-{number % 20}")
        Asked(logins, clock, f"address-{number % 20}", f"guess-{number}")
    assert logins._waiting == ALL_WAITING == sum(len(line.waiting) for line in logins._lines.values())
    newcomer = Asked(logins, clock, "b", "right")
    assert newcomer.is_with_the_host, "another address has room, whoever fills the line"


@settings(max_examples=30)
@given(st.integers(0, 12), st.integers(1, 40), st.booleans())
def test_contact_neighbours_who_guess_without_end_keep_no_right_token_out(early: int, crowd: int, loyal: bool):
    """Whoever comes back is before all that were made up since it came first: it waits for twice as many turns as there
    were tokens before it, whether its neighbours stay or come again; and one guess a second is learnt about."""
    clock = Clock()
    logins = Logins(AttemptWindow(1, clock.seconds), clock)
    told(logins, "wrong", "")
    numbers = count()
    guesses = [Asked(logins, clock, "a", f"early-{number}") for number in range(early)]
    mine = Asked(logins, clock, "a", "right")
    learnt = 0
    for second in range(2 * early + 4):
        for step in range(4):
            waiting = [guess for guess in guesses if guess.began is None and guess.outcome is None]
            if not loyal and step == 2:
                for guess in waiting:
                    guess.result.cancel()
                guesses += [Asked(logins, clock, "a", guess.token) for guess in waiting]
            guesses += [Asked(logins, clock, "a", f"guess-{next(numbers)}") for _ in range(crowd - len(waiting))]
            if step == 3 and mine.began is None and second % 3 == 2:
                mine.result.cancel()
                assert mine.refused
                mine = Asked(logins, clock, "a", "right")
            clock.advance(0.25)
            for guess in guesses:
                if guess.is_with_the_host:
                    learnt += 1
                    guess.host.errback(UnauthorizedLogin())
        if mine.is_with_the_host:
            break
    assert mine.is_with_the_host and learnt <= clock.seconds()
    mine.host.callback("alice")
    assert told(logins, "right", "alice") == "alice"


@pytest.mark.parametrize("flood", [18_000, 60_000])
def test_contact_thousands_of_guesses_a_second_keep_no_right_token_out(flood: int):
    """What 600 and 2,000 of them a second turn away in the half minute until a client comes back, of its own address or
    a thousand others: it has its place, then and after its host could not tell."""
    clock = Clock()
    logins = Logins(AttemptWindow(1, clock.seconds), clock)
    numbers = count()
    told(logins, "wrong", "")

    def half_a_minute(crowd: list[Deferred[Any]]) -> list[Deferred[Any]]:
        for one in crowd:
            one.cancel()
        clock.advance(30.0)
        for _ in range(flood):
            digest = blake2b(b"%d" % next(numbers), digest_size=16).digest()
            logins._places.keep(digest, next(logins._numbers))
        return [
            logins.check("a", f"guess-{next(numbers)}", lambda: fail(UnauthorizedLogin())).addErrback(lambda _: None)
            for _ in range(WAITING + 10)
        ]

    told(logins, "wrong", "")
    crowd = half_a_minute([])
    mine = Asked(logins, clock, "a", "right")
    assert mine.refused, "it is the youngest of a full line"
    for answer in (RuntimeError("the host is down"), None):
        crowd = half_a_minute(crowd)
        mine = Asked(logins, clock, "a", "right")
        clock.pump([0.5] * 5)
        assert mine.is_with_the_host, "every second turn is that of the oldest"
        if answer is not None:
            mine.host.errback(answer)
            assert not mine.refused
    mine.host.callback("alice")
    assert told(logins, "right", "alice") == "alice"
    assert len(logins._places._hashes) == ratelimit.GROUPS * ratelimit.ROOM, "however many there were"


def test_contact_places_are_kept_while_a_hundred_thousand_are_made_up():
    """Of each 5,000 one is lost by chance; one that is shown again has its number, and its time anew."""
    places = ratelimit._Places()
    digests = [blake2b(b"%d" % number, digest_size=16).digest() for number in range(151_000)]
    assert places.get(digests[0]) == 0
    places.forget(digests[0])
    for number, digest in enumerate(digests[:101_000], 1):
        places.keep(digest, number)
    # More than ten of a thousand are lost once in 10^15 times.
    assert sum(places.get(digests[number]) == number + 1 for number in range(1_000)) >= 990
    for number in range(1_000):
        places.keep(digests[number], number + 1)
    for number, digest in enumerate(digests[101_000:], 101_001):
        places.keep(digest, number)
    assert sum(places.get(digests[number]) == number + 1 for number in range(1_000)) >= 990
    places.forget(digests[-1])
    assert places.get(digests[-1]) == 0 and places.get(digests[-2]) == 150_999


def test_contact_lots_are_drawn_also_for_those_who_come_last():
    """Neighbours who hold older tokens than anybody, for ever, get half of the turns."""
    clock = Clock()
    logins = Logins(AttemptWindow(1, clock.seconds), clock)
    told(logins, "wrong", "")
    older = [Asked(logins, clock, "a", f"older-{number}") for number in range(400)]
    mine = Asked(logins, clock, "a", "right")
    line = logins._lines["a"]
    drawn = 0
    for _ in range(4_000):
        oldest, by_lot = line.next(), line.next()
        assert oldest is line.waiting[0]
        drawn += by_lot is line.waiting[-1]
    # One of 401, in 4,000 lots: that it is none of them happens once in 20,000 times, so that it is asked twice.
    if not drawn:
        drawn = sum(line.next() is not None and line.next() is line.waiting[-1] for _ in range(20_000))
    assert 0 < drawn < 100 and mine.began is None and older[0].began is None


ACTIONS = st.one_of(
    st.tuples(st.just("come"), st.sampled_from(["a", "b"]), st.integers(0, 30)),
    st.tuples(st.sampled_from(["right", "wrong", "fails", "leave"]), st.integers(0, 40)),
    st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 7.0, 61.0])),
)


@settings(max_examples=200)
@example(1, [("come", "b", 0), ("come", "b", 0), ("come", "b", 1), ("right", 0)])
@example(2, [("come", "a", 0), ("come", "a", 0), ("wrong", 0), ("come", "a", 0), ("wait", 61.0)])
@given(st.integers(1, 5), st.lists(ACTIONS, max_size=80))
def test_contact_r03_any_crowd_of_logins(limit: int, actions: list[tuple[Any, ...]]):
    """Nobody learns of more tokens than the limit and one a second; each login ends; others never wait."""
    clock = Clock()
    logins = Logins(AttemptWindow(limit, clock.seconds), clock)
    logged_in: set[str] = set()
    failures: dict[str, list[float]] = {"a": [], "b": []}
    #: Failures of those who were asked about beside the line, as their token had been good.
    beside = {"a": 0, "b": 0}
    everybody: list[Asked] = []

    def counted(address: str) -> list[float]:
        """The failures of an address that are not forgotten: none since was a minute later than the one before."""
        kept: list[float] = []
        for moment in failures[address]:
            kept = [*(kept if kept and moment - kept[-1] < 60 else []), moment]
        return kept if kept and clock.seconds() - kept[-1] < 60 else []

    def free(address: str, known: Asked | None = None) -> bool:
        """Whether one more may be asked about now, by the model."""
        asking = [one for one in everybody if one.address == address and one.is_with_the_host and one.in_line]
        if len(counted(address)) < limit:
            return len(counted(address)) + len(asking) < limit
        return not asking and clock.seconds() - counted(address)[-1] >= APART

    for action, *rest in actions:
        if action == "come":
            address, number = rest
            in_line = str(number) not in logged_in
            queue = [one for one in everybody if one.address == address and one.began is None and one.outcome is None]
            at_once = not in_line or (free(address) and not queue)
            newcomer = Asked(logins, clock, address, str(number), logged_in)
            everybody.append(newcomer)
            if not (newcomer.refused and len(counted(address)) >= limit):
                assert (newcomer.began is not None) == at_once, (address, number)
            else:
                assert in_line
        elif action == "wait":
            clock.pump([0.25] * int(rest[0] / 0.25))
        else:
            under_way = [one for one in everybody if one.outcome is None]
            if not under_way:
                continue
            one = under_way[rest[0] % len(under_way)]
            if action == "leave":
                one.result.cancel()
            elif one.began is not None:
                if action == "right":
                    logged_in.add(one.token)
                    one.host.callback("somebody")
                elif action == "wrong":
                    logged_in.discard(one.token)
                    failures[one.address].append(clock.seconds())
                    beside[one.address] += not one.in_line
                    one.host.errback(UnauthorizedLogin())
                else:
                    if one.in_line:
                        failures[one.address].append(clock.seconds())
                    one.host.errback(RuntimeError("down"))
        for address in ("a", "b"):
            asking = [one for one in everybody if one.address == address and one.is_with_the_host and one.in_line]
            assert len(asking) <= max(1, limit - len(counted(address)) + beside[address])
            queue = [one for one in everybody if one.address == address and one.began is None and one.outcome is None]
            assert not (queue and free(address)), "a turn is free, and nobody has it"
    for _ in range(100):
        for one in everybody:
            if one.is_with_the_host:
                failures[one.address].append(clock.seconds())
                one.host.errback(UnauthorizedLogin())
        clock.pump([0.25] * 4)
    assert all(one.outcome is not None for one in everybody)
    assert clock.getDelayedCalls() == [] and logins._lines == {}
