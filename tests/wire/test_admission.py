"""Catalogue group A: tokens, over real handshakes with the real token files."""

from __future__ import annotations

import ast
import json
import re
from datetime import timedelta
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

import pytest
import pytest_twisted
from support.rawclient import build_frame, handshake
from support.served import Served, code_of, refusal, serving, statuses
from support.waiting import wait_until
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import implementer

from zcomm import WebSocketConfig, zBifrost
from zcomm.auth import credentials, tokens
from zcomm.auth.credentials import IBearerToken
from zcomm.bifrost import admission, ratelimit
from zcomm.bifrost.ratelimit import AttemptWindow
from zcomm.client import connect as join_server
from zcomm.errors import ConnectionLost
from zcomm.interfaces import Identity
from zcomm.origin import OriginPolicy

#: Many wrong tokens come from one address here; the limit itself has a server of its own.
served = serving(limits={"auth_failures": 100_000})
counting = serving("counting", limits={"auth_failures": 10})
policed = serving("policed", policy=True)

REQUIRED = (1008, "Authentication required")
INVALID = (1008, "Invalid token")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="A1-unset"),
        "True",
        "tRuE",
        "yes",
        "1",
        pytest.param("maybe", id="A1-unknown-word"),
        pytest.param("", id="A1-empty"),
        pytest.param("flase", id="A1-typing-error"),
    ],
)
def test_a1_authentication_is_on_unless_clearly_switched_off(value: str | None):
    """A typing error never turns a protection off."""
    environ = {} if value is None else {"WEBSOCKET_REQUIRE_AUTH": value}
    assert WebSocketConfig.from_environ(environ).require_auth is True


@pytest.mark.parametrize("value", ["False", "false", "0", "no", "off"])
def test_a1_a_clear_no_is_a_no(value: str):
    """The guide's testing mode."""
    assert WebSocketConfig.from_environ({"WEBSOCKET_REQUIRE_AUTH": value}).require_auth is False


@pytest_twisted.ensureDeferred
async def test_a1_no_token_is_refused(served: Served):
    """The handshake completes, then 1008 says why."""
    assert await refusal(await served.connect()) == REQUIRED
    await served.stands()


#: What follows the question mark, with ``{}`` for the right token percent-encoded.
QUERIES = [
    pytest.param("token=wrong", INVALID, id="A2-wrong"),
    pytest.param("token=", INVALID, id="A2-empty"),
    pytest.param("token=%20%20", INVALID, id="A2-blanks"),
    pytest.param("token", REQUIRED, id="A2-no-value"),
    pytest.param("tokens={}", REQUIRED, id="A2-other-name"),
    pytest.param("token={}x", INVALID, id="A2-longer"),
    pytest.param("token=%20{}", INVALID, id="A2-blank-before"),
    pytest.param("token=%ff", INVALID, id="A4-invalid-utf-8"),
    pytest.param("token=%00{}", INVALID, id="A4-nul"),
    pytest.param("token=a%3Db%3D%3D", INVALID, id="A4-equals-encoded"),
    pytest.param("token=a=b==", INVALID, id="A4-equals"),
    pytest.param("token=%25", INVALID, id="A4-percent"),
    pytest.param("token={}&token=other", INVALID, id="A5-two"),
    pytest.param("token=other&token={}", INVALID, id="A5-two-the-other-way"),
    pytest.param("token={}&api_key=other", INVALID, id="A5-two-names"),
    pytest.param("token=" + "a=b&" * 200 + "token={}", INVALID, id="A5-too-many-fields"),
    pytest.param("token=" + "x" * 5000, INVALID, id="A6-5000-bytes"),
    pytest.param("token=" + "%C3%A9" * 300, INVALID, id="A6-over-512-as-utf-8"),
    pytest.param("token=%27%20OR%201%3D1--", INVALID, id="A8-sql"),
    pytest.param("token=%7B%22%24ne%22%3A1%7D", INVALID, id="A8-operator"),
    pytest.param("token=zc_", INVALID, id="A8-prefix-only"),
    pytest.param("token=zc_../../etc/passwd_x", INVALID, id="A12-path"),
    pytest.param("token=http%3A%2F%2Fevil.example", INVALID, id="A12-url"),
]


@pytest.mark.parametrize(("query", "expected"), QUERIES)
@pytest_twisted.ensureDeferred
async def test_tokens_that_are_none(served: Served, query: str, expected: tuple[int, str]):
    """Each gets its fixed reason and nothing else."""
    assert await refusal(await served.connect(path="/?" + query.format(served.admin))) == expected
    await served.stands()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("/?token={}", [], id="A3-token"),
        pytest.param("/?api_key={}", [], id="A3-api-key"),
        pytest.param("/chat?x=1&token={}&y=2", [], id="A3-among-others"),
        pytest.param("/?token={}&api_key={}", [], id="A5-the-same-twice"),
        pytest.param("/", [("Authorization", "Bearer {}")], id="A3-header"),
        pytest.param("/", [("Authorization", "bearer {}")], id="A3-lower-case"),
        pytest.param("/", [("Authorization", "Bearer  {}")], id="A3-two-blanks"),
        pytest.param("/?token={}", [("Authorization", "Bearer {}")], id="A3-both-alike"),
        pytest.param("/", [("Sec-WebSocket-Protocol", "zbifrost.v1, bearer.{}")], id="A3-subprotocol"),
        pytest.param("/", [("Sec-WebSocket-Protocol", "bearer.{},zbifrost.v1")], id="A3-subprotocol-first"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_places_of_a_token(served: Served, path: str, headers: list[tuple[str, str]]):
    """All three are accepted; the token itself never comes back."""
    token = served.admin
    client = await served.connect(
        path=path.format(token, token), headers=[(name, value.format(token)) for name, value in headers]
    )
    assert (await client.call("ping", 1))["result"] == 1
    answer = client.reader.response
    assert token not in repr(answer.headers)
    assert answer.header("Sec-WebSocket-Protocol") == ("zbifrost.v1" if "zbifrost" in repr(headers) else None)
    await served.stands()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        pytest.param("/?token=wrong", [("Authorization", "Bearer {}")], id="A3-query-against-header"),
        pytest.param("/?token={}", [("Sec-WebSocket-Protocol", "bearer.wrong")], id="A3-query-against-subprotocol"),
        pytest.param("/", [("Authorization", "Bearer")], id="A3-header-empty"),
        pytest.param("/", [("Authorization", "Bearer \u00ff")], id="A4-header-not-ascii"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_tokens_that_contradict_each_other(served: Served, path: str, headers: list[tuple[str, str]]):
    """Whoever put the second one there hopes that the other is read."""
    client = await served.connect(
        path=path.format(served.admin),
        headers=[(name, value.format(served.admin)) for name, value in headers],
    )
    assert await refusal(client) == INVALID
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a3_another_scheme_is_no_token(served: Served):
    """Basic credentials are nothing that this server knows."""
    assert await refusal(await served.connect(headers=[("Authorization", "Basic YTpi")])) == REQUIRED
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a6_a_megabyte_of_token_is_too_long_a_handshake(served: Served):
    """It never gets as far as being a token."""
    client = await served.connect(handshake("127.0.0.1", path="/?token=" + "x" * 1_000_000))
    assert await statuses(client) in ([431], [])
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a9_contact_r03_ten_wrong_tokens_lock_nobody_out(counting: Served):
    """After ten failures within a minute wrong tokens of the address get a code to come back on; a right one of it is
    let in; and nobody of another is concerned (B5)."""
    window = counting.bifrost.factory.admission._failures
    for _ in range(10):
        assert await refusal(await counting.connect(path="/?token=wrong")) == INVALID
    for path in ("/?token=wrong", f"/?token={counting.admin[:-1]}", f"/?token=wrong&api_key={counting.admin}"):
        assert await refusal(await counting.connect(path=path)) == (1013, "Too many failed attempts")
    assert await refusal(await counting.connect()) == REQUIRED
    for token in (counting.admin, counting.tokens["guest"]):
        assert (await (await counting.client(token=token)).call("ping", 1))["result"] == 1
    assert not window.exhausted("192.0.2.1")
    lines = [line for line in counting.log_text.splitlines() if "was not let in" in line]
    assert len(lines) <= 3, lines
    # A minute later, as the window sees it.
    count, since = window._failures["127.0.0.1"]
    window._failures["127.0.0.1"] = count, since - 60
    assert await refusal(await counting.connect(path="/?token=wrong")) == INVALID
    await counting.stands()


@pytest_twisted.ensureDeferred
async def test_a9_contact_r03_a_short_operators_token_is_not_guessed_at_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An api_key of zAuth's may have eight characters: those who try are slowed, and the right one is let in."""
    home = tmp_path / "home" / ".zolo"
    home.mkdir(mode=0o700, parents=True)
    (tmp_path / "home").chmod(0o700)
    (home / "credentials").write_text('{"username": "ann", "role": "admin", "api_key": "short-8!"}')
    (home / "credentials").chmod(0o600)
    server = await Served(tmp_path, limits={"auth_failures": 3}).start()
    try:
        for number in range(3):
            assert await refusal(await server.connect(path=f"/?token=guess-{number}")) == INVALID
        began = server.reactor.seconds()
        guess = await server.connect(path="/?token=guess-4")
        guessed = server.reactor.seconds()
        assert await refusal(guess) == INVALID and guessed - began >= 0.9
        assert (await (await server.client(token=server.tokens["admin"])).call("ping", 1))["result"] == 1
        assert server.reactor.seconds() - guessed < 0.9, "a token of zComm's own waits with nobody"
        assert (await (await server.client(token="short-8!")).call("ping", 1))["result"] == 1
        assert server.reactor.seconds() - guessed >= 0.9
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_contact_neighbours_who_guess_without_end_keep_no_right_token_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two dozen of its own address, more than may shake hands at a time, some patient and some not: a right token that
    was never seen, shown again as a client does, is let in after at most twice as many turns as there are neighbours;
    a token of zComm's is let in at once; and the guesses that are learnt about come no faster than they may."""
    home = tmp_path / "home" / ".zolo"
    home.mkdir(mode=0o700, parents=True)
    (tmp_path / "home").chmod(0o700)
    (home / "credentials").write_text('{"username": "ann", "role": "admin", "api_key": "short-8!"}')
    (home / "credentials").chmod(0o600)
    apart = 0.05
    monkeypatch.setattr(ratelimit, "APART", apart)
    limits = {"auth_failures": 1, "handshake_timeout": 0.5, "pending_per_peer": 8}
    server = await Served(tmp_path, limits=limits).start()
    pending, learnt, going = server.bifrost.factory.pending, [], True

    async def guess(name: int) -> None:
        number = 0
        while going:
            number += 1
            opening = handshake("127.0.0.1", path=f"/?token=guess-{name}-{number}")
            client = await server.connect(None)
            client.send(opening)
            if name % 3:
                frame = await client.next_close()
                learnt.append((frame.close_code, frame.close_reason) == INVALID)
            else:
                await deferLater(server.reactor, apart)
            client.abort()
            await client.when_ended()

    crowd: list[Deferred[None]] = []
    mine = None
    try:
        assert await refusal(await server.connect(path="/?token=wrong")) == INVALID
        began = server.reactor.seconds()
        crowd += [Deferred.fromCoroutine(guess(name)) for name in range(24)]
        await wait_until(lambda: server.bifrost.factory.admission._logins._waiting >= 16, "a line")
        assert pending.count <= 8, "who waits for a turn has no place among the handshakes"
        assert (await (await server.client(token=server.tokens["admin"])).call("ping", 1))["result"] == 1
        before = len(learnt)
        while mine is None:
            try:
                mine = await join_server(server.bifrost.url, token="short-8!")
            except ConnectionLost as error:
                assert error.close_code == 1013 and error.retryable
        assert mine.state == "connected"
        assert sum(learnt[before:]) <= 100
        assert sum(learnt) <= (server.reactor.seconds() - began) / apart + 1
    finally:
        going = False
        for one in crowd:
            await one
        if mine is not None:
            await mine.disconnect()
        await server.stop()


@pytest.mark.parametrize("length", [513, 2_000, 15_000])
@pytest_twisted.ensureDeferred
async def test_contact_r15_a_hosts_token_may_be_as_long_as_the_head_allows(pending, length: int):
    """A JSON web token of any size that a client can send, in each of the places for one."""
    backend, bifrost, join = pending
    jwt = ("eyJhbGciOiJSUzI1NiJ9." + "a-_9" * length)[:length]
    asked: list[str] = []

    class Asking(Backend):
        def requestAvatarId(self, credentials):
            asked.append(credentials.token)
            return succeed(Identity("somebody", "guest"))

    backend.requestAvatarId = Asking().requestAvatarId
    for opening in (
        handshake("127.0.0.1", path=f"/?token={jwt}"),
        handshake("127.0.0.1", headers=[("Authorization", f"Bearer {jwt}")]),
        handshake("127.0.0.1", headers=[("Sec-WebSocket-Protocol", f"zbifrost.v1, bearer.{jwt}")]),
    ):
        backend.answer = backend  # nothing is waited for
        client = await join(opening)
        assert (await client.next()).status == 101
        assert (await client.call("ping", 1))["result"] == 1
    assert asked == [jwt] * 3


@implementer(ICredentialsChecker)
class Backend:
    """A checker whose answer the test decides, as a database's may come late, wrong or never."""

    credentialInterfaces = (IBearerToken,)

    def __init__(self):
        self.asked: list[Deferred] = []
        self.cancelled = 0
        self.answer = None

    def requestAvatarId(self, credentials):
        if self.answer is not None:
            return self.answer()
        deferred = Deferred(self._cancel)
        self.asked.append(deferred)
        return deferred

    def _cancel(self, deferred):
        self.cancelled += 1
        deferred.errback(CancelledError())


@pytest_twisted.async_yield_fixture()
async def pending():
    """A server whose checker has not answered yet, and the clients made through it."""
    from support.rawclient import connect
    from twisted.internet import reactor

    from zcomm import Limits

    backend = Backend()
    bifrost = zBifrost(WebSocketConfig(port=0, limits=Limits(handshake_timeout=0.5)), checker=backend, reactor=reactor)
    await bifrost.listen()
    clients = []

    async def join(opening: bytes | None = None):
        client = await connect(bifrost.port, handshake("127.0.0.1", token="any") if opening is None else opening)
        clients.append(client)
        if backend.answer is None:
            await wait_until(lambda: backend.asked, "the question who it is")
        return client

    yield backend, bifrost, join
    for client in clients:
        client.transport.abortConnection()
        await client.when_ended()
    await bifrost.stopService()


@pytest_twisted.ensureDeferred
async def test_a10_a_lookup_that_hangs_is_a_refusal(pending):
    """Within the handshake's time: 1011, and the lookup is cancelled."""
    backend, bifrost, join = pending
    client = await join()
    await client.next()
    assert await refusal(client) == (1011, "Authentication error")
    assert backend.cancelled == 1 and len(bifrost.registry) == 0


@pytest.mark.parametrize(
    "failing",
    [
        pytest.param(lambda: fail(RuntimeError("pw=secret\r\nX-Injected: yes")), id="A10-fails"),
        pytest.param(lambda: (_ for _ in ()).throw(RuntimeError("pw=secret\r\nX-Injected: yes")), id="H14-raises"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_lookup_that_fails_is_a_refusal(pending, failing):
    """A constant text; nothing of the cause is told."""
    backend, bifrost, join = pending
    backend.answer = failing
    client = await join()
    await client.next()
    assert await refusal(client) == (1011, "Authentication error")
    assert "secret" not in repr(client.received) and "Injected" not in repr(client.received)


def test_contact_a16_a_checker_that_fails_floods_no_log():
    """One traceback a second for each kind and place, and the next one says how many were left out."""
    clock, told = Clock(), []

    def observe(event):
        if "log_failure" in event:
            told.append(formatEvent(event))

    def raises(kind):
        raise kind("pw=secret")

    def runtime():
        raises(RuntimeError)

    def key():
        raises(KeyError)

    # What may be guessed waits in a line of its address; what may not is looked up at once.
    for beyond in (False, True):
        backend = Backend()
        backend.is_beyond_guessing = lambda token, beyond=beyond: beyond
        deciding = admission.Admission(OriginPolicy.from_list((), ()), backend, AttemptWindow(10, clock.seconds), clock)
        told.clear()
        globalLogPublisher.addObserver(observe)
        try:
            for lookup, silent in (
                (runtime, 0),
                (key, 0),
                (lambda: fail(RuntimeError("later")), 0),
                (runtime, 49),
                (key, 49),
            ):
                backend.answer = lookup
                refused = []
                for number in range(50):
                    deciding.identify((f"t{number}",), f"192.0.2.{number}").addErrback(refused.append)
                assert [failure.value.reason for failure in refused] == ["Authentication error"] * 50
                (line,) = told
                assert "the token of 192.0.2.0 could not be checked" in line
                assert (f"({silent} more like this were not logged)" in line) is bool(silent), line
                told.clear()
                clock.advance(1.0)
        finally:
            globalLogPublisher.removeObserver(observe)


@pytest.mark.parametrize("rudely", [pytest.param(False, id="H15-FIN"), pytest.param(True, id="H15-RST")])
@pytest_twisted.ensureDeferred
async def test_h15_who_leaves_during_the_lookup_was_never_there(pending, rudely: bool):
    """The lookup is cancelled, the registry stays empty, no timer is left."""
    backend, bifrost, join = pending
    client = await join()
    if rudely:
        client.abort()
    else:
        client.transport.loseConnection()
    # A peer whose bytes are not read is noticed by its reset, or when the handshake's time is over.
    await wait_until(lambda: not bifrost.factory._alive, "the end of the connection")
    assert backend.cancelled == 1 and len(bifrost.registry) == 0 and bifrost.factory.pending.count == 0
    assert bifrost.factory.opened_count == 0


@pytest_twisted.ensureDeferred
async def test_h15_an_answer_that_comes_too_late_opens_nothing(pending):
    """A checker that cannot be cancelled answers after the client has gone: no ghost."""
    backend, bifrost, join = pending
    late: Deferred = Deferred(lambda d: None)
    backend.answer = lambda: late
    client = await join()
    await wait_until(lambda: bifrost.factory._alive, "the handshake")
    client.abort()
    await wait_until(lambda: not bifrost.factory._alive, "the end of the connection")
    if not late.called:
        late.callback(Identity("late", "guest"))
    assert len(bifrost.registry) == 0 and bifrost.factory.opened_count == 0


@pytest_twisted.ensureDeferred
async def test_h19_frames_sent_during_the_lookup_wait_for_it(pending):
    """They are answered once, after admission."""
    backend, bifrost, join = pending
    client = await join(handshake("127.0.0.1", token="any") + build_frame(1, b'{"zKey":"ping","_requestId":1}'))
    client.send_json({"zKey": "ping", "_requestId": 2})
    assert bifrost.factory.state.commands == 0 and client.received == []
    backend.asked[0].callback(Identity("somebody", "guest"))
    await client.next()
    assert [(await client.next_json())["_requestId"] for _ in range(2)] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_h20_a_second_handshake_during_the_lookup_is_no_second_admission(pending):
    """The checker is asked once, one 101 goes out, and the second request is no frame."""
    backend, bifrost, join = pending
    opening = handshake("127.0.0.1", token="any")
    client = await join(opening + opening)
    backend.asked[0].callback(Identity("somebody", "guest"))
    assert (await client.next()).status == 101
    assert await code_of(client) == 1002
    assert len(backend.asked) == 1


@pytest_twisted.ensureDeferred
async def test_a_flood_behind_an_undecided_handshake_is_cut_off(pending):
    """What may wait for the decision is bounded."""
    backend, bifrost, join = pending
    client = await join()
    client.send(bytes(8 * 1024 * 1024))
    await client.when_ended()
    assert len(bifrost.registry) == 0


@pytest_twisted.ensureDeferred
async def test_a11_asking_for_tokens_without_a_checker_lets_nobody_in():
    """The presence of a token is never enough."""
    from support.rawclient import connect
    from twisted.internet import reactor

    bifrost = zBifrost(WebSocketConfig(port=0), reactor=reactor)
    await bifrost.listen()
    client = await connect(bifrost.port, token="any")
    assert await refusal(client) == (1011, "Authentication error")
    await bifrost.stopService()


@pytest_twisted.ensureDeferred
async def test_a7_only_digests_are_compared(served: Served, monkeypatch: pytest.MonkeyPatch):
    """Each token, right or nearly, is hashed, and the hashes are compared in constant time: nothing to measure.

    That no other comparison is made is looked up in the code, which no stopwatch on a shared machine can tell.
    """
    compared: list[tuple[bytes, bytes]] = []

    def noting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(credentials, "compare_digest", noting)
    user = served.tokens["admin"]
    nearly = [served.admin[:-1], served.admin[:-1] + "x", user[:-1] + ("x" if user[-1] != "x" else "y"), "zc_nobody_x"]
    for token in nearly:
        assert await refusal(await served.client(token=token)) == INVALID
    for token in (served.admin, user):
        assert (await (await served.client(token=token)).call("ping", 1))["result"] == 1
    assert len(compared) >= 6
    known = [sha256(token.encode()).digest() for token in (*nearly, served.admin, user)]
    assert all(len(one) == len(other) == 32 and one in known for one, other in compared)
    secret = re.compile(r"token(?!_id|s\b|\.id|\.user)|digest|sha256|secret|password|api_key")
    for module in (credentials, tokens, admission):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text("utf-8"))):
            if isinstance(node, ast.Compare) and any(isinstance(one, (ast.Eq, ast.NotEq)) for one in node.ops):
                text = re.sub(r"len\(.*\)", "", ast.unparse(node))
                assert not secret.search(text), f"{module.__name__}: {text}"
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a12_a_refused_token_is_nowhere(served: Served):
    """Not in the log, not in an answer (L1)."""
    client = await served.connect(path="/?token=hunter2-hunter2-hunter2")
    assert await refusal(client) == INVALID
    assert "hunter2" not in served.log_text and "hunter2" not in repr(client.received)
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a14_a_revoked_token_ends_its_connections(served: Served):
    """Those that it opened, and no others."""
    issued = served.store.add("leaving", "guest")
    leaving, staying = await served.client(token=issued.token), await served.client()
    assert (await leaving.call("ping", 1))["result"] == 1
    served.store.revoke("leaving")
    frame = await leaving.next_close()
    assert (frame.close_code, frame.close_reason) == (1008, "Session expired")
    assert (await staying.call("ping", 2))["result"] == 2
    assert await refusal(await served.client(token=issued.token)) == INVALID
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a_changed_role_is_no_end(served: Served):
    """Of the operator, and of a user's token: the client comes back by itself, and has the rights of now; a token that
    is gone is the end."""
    path = served.directory / "data" / "operator.json"
    content = json.loads(path.read_text())
    issued = served.store.add("rita", "guest")
    tokens = (served.directory / "data" / "tokens.json").read_text()
    clients = [await join_server(served.bifrost.url, token=token) for token in (served.admin, issued.token)]

    def roles() -> list[tuple[str, str]]:
        return sorted((one.identity.name, one.identity.role) for one in served.bifrost.clients)

    try:
        credentials.write_private(path, json.dumps({**content, "name": "olga", "role": "guest"}).encode())
        records = json.loads(tokens)
        records["tokens"][-1]["role"] = "blind"
        credentials.write_private(path.with_name("tokens.json"), json.dumps(records).encode())
        await wait_until(lambda: roles() == [("olga", "guest"), ("rita", "blind")], "the new roles")
        await wait_until(lambda: [one.state for one in clients] == ["connected"] * 2, "both again")
        served.store.revoke(issued.record.id)
        await wait_until(lambda: clients[1].state == "disconnected", "the end of the revoked one")
    finally:
        credentials.write_private(path, json.dumps(content).encode())
        for client in clients:
            await client.disconnect()
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a14_an_expired_token_is_none(served: Served):
    """By the wall clock, as its expiry was promised."""
    issued = served.store.add("brief", "guest", timedelta(days=1))
    client = await served.client(token=issued.token)
    assert (await client.call("ping", 1))["result"] == 1
    checker = served.bifrost.factory.admission.checker
    now = checker._now
    checker._now = lambda: now() + timedelta(days=2)
    try:
        assert (await client.next_close()).close_reason == "Session expired"
        assert await refusal(await served.client(token=issued.token)) == INVALID
    finally:
        checker._now = now
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_k4_no_clock_brings_a_revoked_token_back(served: Served):
    """A wall clock that is set back makes an expired token good again, by definition; a revoked one stays revoked."""
    expired = served.store.add("expired", "guest", timedelta(hours=2))
    revoked = served.store.add("revoked", "guest", timedelta(hours=2))
    served.store.revoke("revoked")
    checker = served.bifrost.factory.admission.checker
    now = checker._now
    try:
        for hours, answer in ((3, INVALID), (-1, None), (0, None)):
            checker._now = lambda hours=hours: now() + timedelta(hours=hours)
            client = await served.client(token=expired.token)
            if answer is None:
                assert (await client.call("ping", 1))["result"] == 1
            else:
                assert await refusal(client) == answer
            assert await refusal(await served.client(token=revoked.token)) == INVALID
    finally:
        checker._now = now
    await served.stands()


@pytest.mark.parametrize(
    ("key", "horizontal"),
    [
        pytest.param("delete_Users", {"where": {"id": 1}}, id="A15-delete"),
        pytest.param("create_Users", {"values": {"name": "x", "email": "x@example.com"}}, id="A15-create"),
        pytest.param("update_Users", {"where": {"id": 1}, "values": {"name": "y"}}, id="A15-update"),
        pytest.param(
            "upsert_Users",
            {"values": {"name": "y", "email": "y@example.com"}, "conflict_fields": ["email"]},
            id="A15-upsert",
        ),
        pytest.param("zFunc", "zFunc(calculateTotal, 1)", id="A15-function"),
        pytest.param("zOpen", "zOpen(config.yaml)", id="A15-file"),
        pytest.param("zLink", "zLink(/admin/users)", id="I10-page"),
        pytest.param("zLink", 'zLink(/admin/users, {role: "admin"})', id="I11-declared-role"),
        pytest.param("custom", {}, id="A15-command"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a15_what_a_role_was_not_granted_does_not_happen(policed: Served, key: str, horizontal):
    """An error, nothing executed, nothing heard by others."""
    if "custom" not in policed.bifrost.dispatcher.commands:
        policed.bifrost.command("custom", broadcast=True)(lambda: "done")
    watching = await policed.client(token=policed.tokens["admin"])
    guest = await policed.client(token=policed.tokens["guest"])
    reply = await guest.call(key, horizontal)
    assert reply["code"] in ("permission_denied", "invalid", "unknown_command", "not_found"), reply
    if "role" not in str(horizontal):
        assert reply["code"] in ("permission_denied", "not_found", "unknown_command")
    assert (await watching.call("read_Users", {"fields": ["id"]}))["result"] == []
    assert len(watching.received) == 2
    await policed.stands()


@pytest_twisted.ensureDeferred
async def test_a16_a_broadcast_reaches_those_who_may_read_it(policed: Served):
    """The guest may read the model, the blind one may not, the refused one is nobody."""
    author = await policed.client(token=policed.tokens["admin"])
    guest = await policed.client(token=policed.tokens["guest"])
    blind = await policed.client(token=policed.tokens["blind"])
    refused = await policed.connect()
    created = await author.call("create_Users", {"values": {"name": "Ann", "email": "ann@example.com"}})
    assert created["result"]["name"] == "Ann"
    heard = await guest.next_json()
    assert heard["zKey"] == "create_Users" and heard["result"] == created["result"] and "_requestId" not in heard
    assert (await author.call("read_Users", {}))["result"] == [created["result"]]
    assert (await author.call("delete_Users", {"where": {"id": created["result"]["id"]}}))["result"] == {"deleted": 1}
    assert (await guest.next_json())["zKey"] == "delete_Users"
    await blind.call("ping")
    assert len(blind.received) == 2, "a read or a write was told to somebody who may read neither"
    assert await refusal(refused) == REQUIRED
    await policed.stands()
