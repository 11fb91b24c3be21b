"""Who a token proves: the checker, and what may be said of a token."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from zcomm.auth.credentials import (
    MAX_TOKEN,
    BearerToken,
    IBearerToken,
    OperatorCredentials,
    TokenChecker,
    fingerprint,
)
from zcomm.auth.tokens import TokenStore, new_token
from zcomm.errors import CredentialsError
from zcomm.interfaces import Identity


class Wall:
    """A wall clock and a monotonic one that stand still until they are moved."""

    def __init__(self) -> None:
        self.date = datetime(2026, 11, 23, 8, tzinfo=UTC)
        self.seconds = 0.0

    def now(self) -> datetime:
        return self.date

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.date += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(tmp_path: Path, wall: Wall) -> TokenStore:
    return TokenStore(tmp_path / "tokens.json", wall.now)


@pytest.fixture
def operator(tmp_path: Path) -> OperatorCredentials:
    return OperatorCredentials.load_or_create(tmp_path / "operator.json")


@pytest.fixture
def checker(operator, store, wall) -> TokenChecker:
    return TokenChecker(operator, store, wall.now, wall.monotonic)


def answer(checker: TokenChecker, token: str) -> Identity | type[BaseException]:
    """Who ``token`` proves, or the class of the failure."""
    found: list[Identity | Failure] = []
    deferred: Deferred[Identity] = checker.requestAvatarId(BearerToken(token))
    deferred.addBoth(found.append)
    return found[0].type if isinstance(found[0], Failure) else found[0]


def test_it_is_a_checker_of_cred(checker):
    """It can be put wherever twisted.cred takes one, and names the credentials it checks."""
    assert verifyObject(ICredentialsChecker, checker)
    assert verifyObject(IBearerToken, BearerToken("x"))
    assert IBearerToken in checker.credentialInterfaces


def test_the_operators_token(checker, operator):
    """The token of the operator's file proves the operator."""
    identity = answer(checker, operator.token)
    assert (identity.name, identity.role) == (operator.username, "admin")
    assert operator.token not in repr(identity) and checker.still_valid(identity)


def test_a_users_token(checker, store):
    """A token proves its user and role, and which token it was."""
    issued = store.add("alice", "clerk")
    assert answer(checker, issued.token) == Identity("alice", "clerk", issued.record.id)


def wrong_tokens() -> list[str]:
    return [
        "",
        " ",
        "x",
        "null",
        "' OR 1=1--",
        '{"$ne":1}',
        "zc_",
        "zc__",
        "zc_operator_",
        "zc_operator_x",
        "Bearer x",
        "a=b==",
        "\0",
        "é",
        "\ud800",
        "%00",
        "../tokens.json",
        "zc_" + "a" * 10 + "_" + "b" * 43,
        "*",
        "0",
        "None",
        "x" * 512,
        "x" * 513,
        "é" * 300,
        "x" * 5000,
        "x" * 1_000_000,
    ]


@pytest.mark.parametrize("token", wrong_tokens(), ids=lambda token: repr(token[:20]) + str(len(token)))
def test_wrong_tokens(token: str, checker, store):
    """A2, A4, A6, A8: whatever is no token proves nobody, and is never an error of the server."""
    store.add("alice", "clerk")
    assert answer(checker, token) is UnauthorizedLogin


def test_nearly_right_tokens(checker, store, operator):
    """A7: a right beginning, end, id, digest or case proves no more than a wrong one."""
    token = store.add("alice", "clerk").token
    number = token.split("_")[1]
    for wrong in (
        token[:-1],
        token + "x",
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        token.upper(),
        " " + token,
        token + "\n",
        f"zc_{number}_",
        f"zc_{number}_" + "A" * 43,
        sha256(token.encode()).hexdigest(),
        number,
        operator.token[:-1],
        store.add("bob", "clerk").token.rpartition("_")[0] + "_" + token.split("_", 2)[2],
    ):
        assert answer(checker, wrong) is UnauthorizedLogin, wrong


def test_long_tokens_are_not_looked_up(operator, store):
    """A6: above 512 bytes nothing is hashed or read, not even a store that cannot be."""
    checker = TokenChecker(operator, store)
    store.path.write_text("broken")
    store.path.chmod(0o600)
    assert answer(checker, "x" * (MAX_TOKEN + 1)) is UnauthorizedLogin
    assert answer(checker, "é" * (MAX_TOKEN // 2 + 1)) is UnauthorizedLogin
    assert answer(checker, "x" * MAX_TOKEN) is CredentialsError


def test_when_tokens_cannot_be_checked_the_answer_is_no(checker, store, operator):
    """A10: an unreadable or untrusted file lets nobody in by what is in it, those with a right token included; then it
    is mended."""
    token = store.add("alice", "clerk").token
    identity = answer(checker, token)
    whole = store.path.read_bytes()
    for damage in (
        lambda: store.path.write_text("{"),
        lambda: store.path.chmod(0o644),
        lambda: store.path.write_text("[]"),
    ):
        damage()
        assert answer(checker, token) is CredentialsError
        assert answer(checker, operator.token) == operator.identity
        assert answer(checker, "wrong") is CredentialsError
        store.path.write_bytes(whole)
        store.path.chmod(0o600)
        assert answer(checker, token) == identity


def test_without_any_source_nobody_is_let_in():
    """A11: the presence of a token is never enough."""
    checker = TokenChecker(None, None)
    assert answer(checker, "anything") is UnauthorizedLogin
    assert not checker.still_valid(Identity("a", "b", "")) and not checker.still_valid(Identity("a", "b", "operator-x"))


def test_an_expired_token(checker, store, wall):
    """A14: from its date on a token is refused, and its connections are not valid any more."""
    issued = store.add("alice", "clerk", timedelta(hours=1))
    identity = answer(checker, issued.token)
    wall.advance(3599)
    assert answer(checker, issued.token) == identity and checker.still_valid(identity)
    wall.advance(1)
    assert answer(checker, issued.token) is UnauthorizedLogin
    assert not checker.still_valid(identity)


def test_a_revoked_token(checker, store, tmp_path, wall):
    """A14: what another program revoked is refused at once, and noticed for open connections within a second."""
    issued, other = store.add("alice", "clerk"), store.add("bob", "clerk")
    identity, staying = answer(checker, issued.token), answer(checker, other.token)
    TokenStore(tmp_path / "tokens.json").revoke("alice")
    assert answer(checker, issued.token) is UnauthorizedLogin
    assert not checker.still_valid(identity) and checker.still_valid(staying)
    TokenStore(tmp_path / "tokens.json").revoke("bob")
    assert checker.still_valid(staying)
    wall.advance(TokenChecker.RECHECK)
    assert not checker.still_valid(staying)


def test_refresh_tells_what_changed(checker, store, tmp_path):
    """A server learns whether there is anything to look for."""
    store.add("alice", "clerk")
    checker.refresh()
    assert checker.refresh() is False
    TokenStore(tmp_path / "tokens.json").add("bob", "clerk")
    assert checker.refresh() is True and checker.refresh() is False
    OperatorCredentials.rotate(tmp_path / "operator.json")
    assert checker.refresh() is True and checker.refresh() is False


def test_a_rotated_operator_token(checker, operator, tmp_path, wall):
    """The operator's old token is refused and its connections end; the new one works."""
    old = operator.token
    identity = answer(checker, old)
    fresh = OperatorCredentials.rotate(tmp_path / "operator.json")
    assert fresh.token != old
    assert answer(checker, old) is UnauthorizedLogin
    assert not checker.still_valid(identity)
    assert checker.still_valid(answer(checker, fresh.token))


def test_a_removed_credential_file(checker, operator, tmp_path, wall):
    """Without its file the operator's token ends, and the empty token does not take its place."""
    identity = answer(checker, operator.token)
    token = operator.token
    (tmp_path / "operator.json").unlink()
    assert answer(checker, token) is UnauthorizedLogin
    assert answer(checker, "") is UnauthorizedLogin
    assert not checker.still_valid(identity)


def test_a_changed_role_ends_connections(checker, store, tmp_path, wall):
    """Who is connected with rights that the token no longer has is not valid any more."""
    issued = store.add("alice", "admin")
    identity = answer(checker, issued.token)
    document = json.loads(store.path.read_text())
    document["tokens"][0]["role"] = "guest"
    store.path.write_text(json.dumps(document))
    wall.advance(2)
    assert not checker.still_valid(identity)
    assert answer(checker, issued.token).role == "guest"


@pytest.mark.parametrize(
    "identity",
    [
        Identity("anonymous", "guest"),
        Identity("alice", "admin", "nothere"),
        Identity("alice", "admin", "operator"),
        Identity("root", "admin", "operator-0000000000000000"),
    ],
)
def test_identities_that_no_token_proves(identity: Identity, checker):
    """An identity made up elsewhere is not valid."""
    assert not checker.still_valid(identity)


def test_while_files_cannot_be_read_clients_stay(checker, store, wall):
    """A file that breaks ends no connection; the log says why nobody new comes in, once."""
    identity = answer(checker, store.add("alice", "clerk").token)
    store.path.chmod(0o644)
    events: list[dict] = []
    globalLogPublisher.addObserver(events.append)
    try:
        for _ in range(3):
            wall.advance(2)
            assert checker.still_valid(identity)
        store.path.chmod(0o600)
        wall.advance(2)
        assert checker.still_valid(identity)
    finally:
        globalLogPublisher.removeObserver(events.append)
    assert len([event for event in events if "cannot be checked" in event["log_format"]]) == 1


def test_contact_a_file_that_cannot_be_read_keeps_no_token_of_another(checker, store, operator, wall):
    """A token that was revoked ends its connections, whatever is wrong with the operator's file meanwhile."""
    issued = store.add("alice", "clerk")
    alice, admin = answer(checker, issued.token), answer(checker, operator.token)
    operator.path.write_text("{")
    store.revoke(issued.record.id)
    wall.advance(2)
    assert not checker.still_valid(alice) and not checker.would_admit(alice) and checker.still_valid(admin)


def test_contact_a_file_that_cannot_be_read_keeps_out_no_token_of_another(checker, store, operator, wall):
    """Whatever is wrong with one, by what is in it nobody new comes in, and by the other everybody does; and one that
    was revoked is not let in by what was read before."""
    alice, bob = store.add("alice", "clerk"), store.add("bob", "clerk")
    identity, admin = answer(checker, alice.token), answer(checker, operator.token)
    damages = (
        lambda path: path.chmod(0o644),
        lambda path: path.write_text('{"name": "a", "tok'),
        lambda path: path.write_text('{"role": 7, "token": "x",}'),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(""),
    )
    for mine, others, path in (
        ((operator.token, admin), (alice.token, identity), operator.path),
        ((alice.token, identity), (operator.token, admin), store.path),
    ):
        whole = path.read_bytes()
        for damage in damages:
            damage(path)
            for _ in range(2):
                assert answer(checker, mine[0]) is CredentialsError and answer(checker, "wrong") is CredentialsError
                assert answer(checker, others[0]) == others[1]
                assert checker.still_valid(identity) and checker.still_valid(admin)
                wall.advance(2)
            path.write_bytes(whole)
            path.chmod(0o600)
            assert answer(checker, mine[0]) == mine[1] and answer(checker, "wrong") is UnauthorizedLogin
    operator.path.write_text("{")
    store.revoke(bob.record.id)
    assert answer(checker, bob.token) is CredentialsError and answer(checker, alice.token) == identity


def test_tokens_differ():
    """A token is 256 random bits behind a readable id, and fits what a checker reads."""
    tokens = {new_token() for _ in range(200)}
    assert len({token for token, _ in tokens}) == len({number for _, number in tokens}) == 200
    for token, number in tokens:
        prefix, found, secret = token.split("_", 2)
        assert (prefix, found) == ("zc", number) and len(secret) == 43 and number.isalnum() and len(token) < MAX_TOKEN
        assert token.isascii() and token.replace("_", "").replace("-", "").isalnum()


def test_a_fingerprint_is_all_a_log_may_show():
    """A12: four hexadecimal digits of the digest, for any text."""
    assert fingerprint("secret") == sha256(b"secret").hexdigest()[:4]
    assert len(fingerprint("\ud800é")) == 4
    assert "secret" not in repr(BearerToken("secret")) and BearerToken("secret").token == "secret"
