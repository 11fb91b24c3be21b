"""Identities of a host, asked about again on a virtual clock."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from zcomm import Identity
from zcomm.auth.credentials import BearerToken
from zcomm.auth.recheck import AT_ONCE, RECHECK, RecheckingChecker

MINUTE = 60


class Host:
    """A checker that knows logins: users by token, what is asked in ``asked``; ``slow`` answers when told to."""

    def __init__(self, **users: Any):
        self.users: dict[str, Any] = users
        self.asked: list[str] = []
        self.slow = False
        self.pending: list[tuple[Deferred[Any], str]] = []

    def requestAvatarId(self, credentials: BearerToken) -> Any:
        self.asked.append(credentials.token)
        if self.slow:
            self.pending.append((Deferred(), credentials.token))
            return self.pending[-1][0]
        return self.verdict(credentials.token)

    def verdict(self, token: str) -> Any:
        user = self.users.get(token)
        if isinstance(user, Exception):
            return fail(user)
        return fail(UnauthorizedLogin()) if user is None else succeed(user)

    def answer(self) -> None:
        deferred, token = self.pending.pop(0)
        self.verdict(token).chainDeferred(deferred)


def checking(**users: Any) -> tuple[RecheckingChecker, Host, Clock]:
    host, clock = Host(**users), Clock()
    return RecheckingChecker(host, clock.seconds), host, clock


def login(checker: RecheckingChecker, token: str) -> Any:
    outcome: list[Any] = []
    checker.requestAvatarId(BearerToken(token)).addBoth(outcome.append)
    return outcome[0]


def watch(checker: RecheckingChecker, clock: Clock, seconds: int, *identities: Identity) -> list[bool]:
    """What the server does: once a second it asks about each who is connected. Returns the last verdicts."""
    verdicts = [True] * len(identities)
    for _ in range(seconds):
        clock.advance(1)
        verdicts = [checker.still_valid(identity) for identity in identities]
    return verdicts


def test_a_host_is_asked_at_most_once_a_minute():
    """However many connections the identity has, and again for as long as one is there."""
    checker, host, clock = checking(a=Identity("ann", "user"))
    ann = login(checker, "a")
    assert watch(checker, clock, int(RECHECK) - 1, ann, ann) == [True, True] and host.asked == ["a"]
    assert watch(checker, clock, 10 * MINUTE, ann) == [True]
    assert 1 + 10 <= len(host.asked) <= 1 + 11


def test_a_token_that_is_gone_is_noticed_within_a_minute():
    """From the moment the host revokes it, in whatever part of the minute."""
    for later in (1, 30, 57, 58, 59):
        checker, host, clock = checking(a=Identity("ann", "user"))
        ann = login(checker, "a")
        watch(checker, clock, later, ann)
        del host.users["a"]
        assert watch(checker, clock, MINUTE, ann) == [False]
        assert login(checker, "a").check(UnauthorizedLogin)


def test_two_tokens_of_one_user_are_two_identities():
    """Which cannot be told from their ids, nor tokens be tried against them; a host's own ids are kept."""
    checker, host, clock = checking(
        a=Identity("ann", "user"), b=Identity("ann", "user"), c=Identity("ann", "user", "own")
    )
    first, second, third = (login(checker, token) for token in "abc")
    assert len({first.token_id, second.token_id, "own"}) == 3 and third == Identity("ann", "user", "own")
    assert login(checking(a=Identity("ann", "user"))[0], "a").token_id != first.token_id
    assert login(checker, "a") == first
    del host.users["b"]
    assert watch(checker, clock, MINUTE, first, second, third) == [True, False, True]


def test_another_role_is_another_identity():
    """Its connections end, and the next login has the new role."""
    checker, host, clock = checking(a=Identity("ann", "user"))
    ann = login(checker, "a")
    host.users["a"] = Identity("ann", "admin")
    assert watch(checker, clock, MINUTE, ann) == [False]
    assert watch(checker, clock, MINUTE, login(checker, "a")) == [True]


def test_while_the_host_cannot_say_those_who_are_in_stay():
    """Nobody new is let in; when it can say again, the answer counts."""
    checker, host, clock = checking(a=Identity("ann", "user"))
    ann = login(checker, "a")
    host.users["a"] = RuntimeError("the database of users is away")
    assert watch(checker, clock, 5 * MINUTE, ann) == [True]
    assert login(checker, "a").check(RuntimeError)
    del host.users["a"]
    assert watch(checker, clock, MINUTE, ann) == [False]


def test_few_questions_are_with_the_host_at_once():
    """Ten thousand clients that came in the same second do not take the threads of those who log in or command."""
    checker, host, clock = checking(**{f"t{number}": Identity(f"u{number}", "user") for number in range(1000)})
    everybody = [login(checker, token) for token in host.users]
    host.slow = True
    del host.users["t999"]
    watch(checker, clock, MINUTE, *everybody)
    assert len(host.pending) == AT_ONCE
    while host.pending:
        assert len(host.pending) <= AT_ONCE
        host.answer()
    verdicts = [checker.still_valid(identity) for identity in everybody]
    assert verdicts.index(False) == 999 and verdicts.count(False) == 1
    assert len(host.asked) == 2 * len(everybody)


def test_contact_a_question_that_is_never_answered_keeps_no_token_of_others():
    """Those who are in by them stay; a token that is gone ends its connections all the same, half a minute later."""
    users = {f"t{number}": Identity(f"u{number}", "user") for number in range(2_000)}
    checker, host, clock = checking(**users)
    everybody = [login(checker, token) for token in users]
    host.slow = True
    watch(checker, clock, MINUTE, *everybody)
    assert len(host.pending) == AT_ONCE
    silent = [deferred for deferred, _ in host.pending]
    del host.users["t1999"]
    host.slow = False
    assert watch(checker, clock, MINUTE // 2, *everybody) == [True] * 1999 + [False]
    # Whoever comes too late is not heard.
    for deferred in silent:
        deferred.callback(None)
    assert watch(checker, clock, MINUTE, *everybody[:-1]) == [True] * 1999


def test_who_left_is_forgotten():
    """And asked about no more; whoever stayed is still known. What was never let in is not valid."""
    checker, host, clock = checking(a=Identity("ann", "user"), b=Identity("bo", "user"), c=Identity("cy", "user"))
    ann, bo = login(checker, "a"), login(checker, "b")
    watch(checker, clock, 3 * MINUTE, bo)
    assert host.asked.count("a") == 1
    login(checker, "c")
    assert checker.still_valid(bo) and not checker.still_valid(ann)
    assert not checker.still_valid(Identity("dee", "user"))


def test_what_is_no_identity_is_refused():
    """The mistake is in the host's checker, and named."""
    checker, _, _ = checking(a="ann")
    failure = login(checker, "a")
    assert failure.check(TypeError)
    with pytest.raises(TypeError, match="a str, not an Identity"):
        failure.raiseException()
