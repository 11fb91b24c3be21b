"""One-time codes and the sessions that they become; the login of zAuth."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import RawClient, connect, handshake
from support.rows import rows_of_a_test
from support.serverprocess import CHECKOUT, clean_environ
from support.waiting import wait_until
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from zcomm import Config, Limits, WebSocketConfig, zComm
from zcomm.auth import codes
from zcomm.auth.codes import LIFETIME, CodeInUse, hold_code, looks_like_code, make_code
from zcomm.auth.credentials import BearerToken, OperatorCredentials, TokenChecker, ZAuthCredentials
from zcomm.auth.private_files import write_private
from zcomm.auth.sessions import end_codes, invite, open_codes, open_session, redeem
from zcomm.auth.tokens import Issued, TokenStore
from zcomm.errors import CredentialsError, PermissionDenied
from zcomm.interfaces import Identity


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def operator(tmp_path: Path) -> OperatorCredentials:
    return OperatorCredentials.load_or_create(tmp_path / "operator.json")


def signed_in(data_dir: Path, code: str) -> Issued:
    """The session that a code becomes."""
    held = redeem(data_dir, code)
    issued = open_session(data_dir, held.code)
    held.spend()
    return issued


def spend_code(data_dir: Path, code: str) -> str | None:
    """Spend a code as a server does; ``None`` for one that another has, or had."""
    try:
        held = hold_code(data_dir, code)
    except CodeInUse:
        return None
    if held is None:
        return None
    held.spend()
    return held.code.holder


def test_contact_a23_a_code_is_good_once(tmp_path: Path, operator: OperatorCredentials):
    """128 bits, of which the directory has the hash alone, in a file that nobody else can read; then it is
    gone (B23)."""
    before = os.umask(0)
    try:
        made = {invite(tmp_path) for _ in range(3)}
    finally:
        os.umask(before)
    directory = tmp_path / "codes"
    assert all(looks_like_code(f"code.{code}") and len(code) == 22 for code in made) and len(made) == 3
    files = list(directory.iterdir())
    assert {mode(path) for path in files} == {0o600} and mode(directory) & 0o077 in (0, 0o011)
    text = "".join(path.name + path.read_text() for path in files)
    assert operator.token not in text and not any(code in text for code in made)
    for code in made:
        issued = signed_in(tmp_path, code)
        assert (issued.record.user, issued.record.role) == (operator.username, "admin")
        assert issued.record.expires - issued.record.created == timedelta(hours=12)
        with pytest.raises(UnauthorizedLogin):
            signed_in(tmp_path, code)
    assert list(directory.iterdir()) == [] and len(TokenStore(tmp_path / "tokens.json").list()) == 3


def test_contact_a23_codes_that_are_none(
    tmp_path: Path, operator: OperatorCredentials, monkeypatch: pytest.MonkeyPatch
):
    """Wrong, old, of a clock that went wrong, damaged, or of an operator's token that was renewed: nobody is let in."""
    now = time.time()

    def of(when: float) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(codes, "wall_clock", lambda: datetime.fromtimestamp(when, UTC))
            return invite(tmp_path)

    def damaged(content: bytes) -> str:
        code = invite(tmp_path)
        (tmp_path / "codes" / codes._name(code)).write_bytes(content)
        return code

    holder = json.dumps({"holder": operator.identity.token_id}).encode()
    with rows_of_a_test() as row:
        for code in (
            "", "x", "A" * 22, "../operator.json", "\ud800", "x" * 500,
            of(now - LIFETIME - 1), of(now + 3600),
            *map(damaged, (b"", b"{", b"[]", b"{}", holder, b'{"holder": 5, "until": 9e99}', b"[" * 100_000)),
            damaged(b'{"holder": "%s", "until": NaN}' % operator.identity.token_id.encode()),
            damaged(b'{"holder": "%s", "until": Infinity}' % operator.identity.token_id.encode()),
            damaged(b'{"holder": "%s", "until": 1%s}' % (operator.identity.token_id.encode(), b"0" * 400)),
        ):  # fmt: skip
            with row(repr(code)), pytest.raises(UnauthorizedLogin):
                signed_in(tmp_path, code)
    assert signed_in(tmp_path, of(now - LIFETIME + 5))
    # A clock that was set right between the link and the click.
    assert signed_in(tmp_path, of(now + 30))
    code = invite(tmp_path)
    OperatorCredentials.rotate(tmp_path / "operator.json")
    with pytest.raises(UnauthorizedLogin):
        signed_in(tmp_path, code)
    old = invite(tmp_path)
    os.utime(tmp_path / "codes" / codes._name(old), (now - LIFETIME - 1,) * 2)
    kept = invite(tmp_path)
    assert [path.name for path in (tmp_path / "codes").iterdir()] == [codes._name(kept)]
    with pytest.raises(CredentialsError, match="does not exist; fix it with: zcomm token rotate"):
        invite(tmp_path / "elsewhere")


def test_contact_a23_a_code_that_others_could_have_made_is_not_taken(tmp_path: Path):
    """A file that is open to others or a link is an error, as with all private files."""
    code = make_code(tmp_path, "operator-x")
    path = tmp_path / "codes" / codes._name(code)
    path.chmod(0o644)
    with pytest.raises(CredentialsError, match="open to others"):
        spend_code(tmp_path, code)
    path.chmod(0o600)
    path.rename(tmp_path / "real")
    path.symlink_to(tmp_path / "real")
    with pytest.raises(CredentialsError, match="symbolic link"):
        spend_code(tmp_path, code)
    (tmp_path / "file").touch()
    with pytest.raises(CredentialsError, match="a code cannot be written there: Not a directory"):
        make_code(tmp_path / "file", "operator-x")


SPENDER = """
import sys
from pathlib import Path
from zcomm.auth.codes import CodeInUse, hold_code
print("ready", flush=True)
for code in sys.stdin:
    try:
        held = hold_code(Path(sys.argv[1]), code.strip())
    except CodeInUse:
        held = None
    if held is not None:
        held.spend()
    print(held is not None, flush=True)
"""


def test_contact_a23_of_two_servers_one_spends_a_code(tmp_path: Path):
    """Several threads here and another process: each code is good for exactly one of them."""
    made = [make_code(tmp_path, "operator-x") for _ in range(150)]
    other = subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(tmp_path)],
        cwd=CHECKOUT, env=clean_environ(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("".join(f"{code}\n" for code in made))
    other.stdin.flush()
    spent: list[str] = []

    def spend() -> None:
        spent.extend(code for code in reversed(made) if spend_code(tmp_path, code))

    threads = [threading.Thread(target=spend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output, _ = other.communicate(timeout=60)
    assert len(spent) == len(set(spent)) and len(spent) + output.count("True") == 150


def test_contact_a23_sessions_that_are_over_are_forgotten(tmp_path: Path):
    """With the next session that begins; other tokens stay, expired ones as well, for somebody made them."""
    now = [datetime(2026, 11, 23, 8, tzinfo=UTC)]
    store = TokenStore(tmp_path / "tokens.json", lambda: now[0])
    kept = [store.add("ann", "user", timedelta(hours=1)).record, store.add("bo", "user").record]
    first = store.add_session("op", "admin", timedelta(hours=12)).record
    second = store.add_session("op", "admin", timedelta(hours=13)).record
    assert store.list() == (*kept, first, second)
    now[0] += timedelta(hours=12)
    third = store.add_session("op", "admin", timedelta(hours=12)).record
    assert store.list() == (*kept, second, third)


def test_contact_a_code_is_given_back_by_whoever_was_not_let_in(tmp_path: Path, operator: OperatorCredentials):
    """As by one who leaves while it is looked up; while it is held nobody else has it; and the session ends it."""
    store = TokenStore(tmp_path / "tokens.json")
    asked: list[Deferred[Any]] = []

    def later(result: Any) -> Deferred[Any]:
        asked.append(Deferred())
        return asked[-1]

    checker = TokenChecker(
        operator,
        store,
        sign_in=lambda code: later(code).addCallback(lambda _: redeem(tmp_path, code)),
        open_session=lambda code: later(None).addCallback(lambda _: open_session(tmp_path, code)),
    )
    code = invite(tmp_path)

    def come() -> tuple[list[Any], Deferred[Any]]:
        outcome: list[Any] = []
        decided = checker.requestAvatarId(BearerToken(f"code.{code}"))
        decided.addBoth(outcome.append)
        return outcome, decided

    gone, decided = come()
    decided.cancel()
    asked.pop().callback(None)
    assert gone[0].check(CancelledError)
    first, _ = come()
    asked.pop().callback(None)
    second, _ = come()
    asked.pop().callback(None)
    assert second[0].check(CodeInUse) and checker.still_valid(first[0])
    assert (first[0].name, first[0].role) == (operator.username, "admin")
    checker.give_back(first[0])
    checker.give_back(first[0])
    assert not checker.still_valid(first[0])
    third, _ = come()
    asked.pop().callback(None)
    # It leaves while its session is made: nobody has that, and the code is still good.
    left: list[Any] = []
    checker.take_session(third[0]).addBoth(left.append)
    checker.give_back(third[0])
    asked.pop().callback(None)
    fourth, _ = come()
    asked.pop().callback(None)
    failed: list[Any] = []
    checker.take_session(fourth[0]).addErrback(failed.append)
    asked.pop().errback(CredentialsError("tokens.json", "the disk is full"))
    assert failed[0].check(CredentialsError)
    told: list[Any] = []
    checker.take_session(fourth[0]).addCallback(told.append)
    assert checker.take_session(fourth[0]) is None
    asked.pop().callback(None)
    assert proved(checker, told[0]).name == operator.username and checker.still_valid(fourth[0])
    assert checker.take_session(fourth[0]) is None and list((tmp_path / "codes").iterdir()) == []
    spent, _ = come()
    asked.pop().callback(None)
    assert spent[0].check(UnauthorizedLogin)
    (session,) = [token for token in store.list() if told[0].startswith(f"zc_{token.id}_")]
    store.revoke(session.id)
    checker.refresh()
    assert not checker.still_valid(fourth[0]) and proved(checker, told[0]) is None


def test_contact_a_code_that_is_held_ends(tmp_path: Path):
    """As one that nobody has: with its time, with the operator's token, with its file, and by the commands for tokens.
    Nothing becomes of it then, not even while its session is being made; and it is in the list until then."""

    def damage(path: Path, content: bytes) -> None:
        (path / "codes" / ("0" * 64)).write_bytes(content)
        (path / "codes" / ("0" * 64)).chmod(0o644)
        (path / "codes" / "another thing").mkdir()

    def changed(path: Path, **values: Any) -> None:
        content = {**json.loads((path / "operator.json").read_text()), **values}
        write_private(path / "operator.json", json.dumps(content).encode())

    wall = [datetime.now(UTC)]
    # After the codes are made.
    beginning = wall[0] + timedelta(seconds=60)
    with rows_of_a_test() as row:
        for number, (name, end, ends) in enumerate((
            ("time", lambda path, code: wall.__setitem__(0, beginning + timedelta(seconds=LIFETIME + 1)), True),
            ("a clock set back", lambda path, code: wall.__setitem__(0, beginning - timedelta(hours=1)), True),
            ("rotated", lambda path, code: OperatorCredentials.rotate(path / "operator.json"), True),
            ("another token", lambda path, code: changed(path, token="chosen by hand"), True),
            ("no token", lambda path, code: (path / "operator.json").unlink(missing_ok=True), True),
            ("no file", lambda path, code: code.path.unlink(), True),
            ("no directory", lambda path, code: (path / "codes").rename(path / "moved"), True),
            ("a file of others", lambda path, code: code.path.chmod(0o644), True),
            ("by the id", lambda path, code: end_codes(path, code.id), True),
            ("by the user", lambda path, code: (damage(path, b"x"), end_codes(path, "zora")), True),
            ("other users", lambda path, code: end_codes(path, "zo"), False),
            ("a minute less", lambda path, code: wall.__setitem__(0, beginning + timedelta(seconds=540)), False),
            ("another code", lambda path, code: (path / "codes" / codes._name(invite(path))).unlink(), False),
        )):  # fmt: skip
            with row(name):
                path = tmp_path / str(number)
                OperatorCredentials.load_or_create(path / "operator.json")
                changed(path, name="zora")
                wall[0], clock, asked = beginning, Clock(), Deferred()
                store = TokenStore(path / "tokens.json")
                checker = TokenChecker(
                    OperatorCredentials.load(path / "operator.json"),
                    store,
                    lambda: wall[0],
                    clock.seconds,
                    sign_in=lambda code, path=path: succeed(redeem(path, code)),
                    open_session=lambda code, path=path, asked=asked: asked.addCallback(
                        lambda _: open_session(path, code)
                    ),
                )
                first, second = (proved(checker, f"code.{invite(path)}") for _ in range(2))
                held = [entry.held.code for entry in checker._codes.values()]
                assert [(token.id, token.user) for token in open_codes(path).values()] == [
                    (first.token_id, "zora"),
                    (second.token_id, "zora"),
                ]
                told: list[Any] = []
                checker.take_session(first).addBoth(told.append)
                with pytest.MonkeyPatch.context() as patched:
                    patched.setattr("zcomm.auth.sessions.wall_clock", lambda: wall[0])
                    for code in held:
                        # The commands end both at once.
                        if code.path.exists():
                            end(path, code)
                    clock.advance(1.0)
                    asked.callback(None)
                for identity in (first, second):
                    assert checker.still_valid(identity) is not ends and checker.would_admit(identity) is not ends
                if ends:
                    checker.take_session(second).addBoth(told.append)
                    assert [bool(failure.check(PermissionDenied, CredentialsError)) for failure in told] == [True, True]
                    assert store.list() == ()
                else:
                    assert proved(checker, told[0]).name == "zora"


@pytest_twisted.ensureDeferred
async def test_contact_who_stays_with_a_code_is_hung_up_on_when_it_ends(tmp_path: Path):
    """With 1008, and whether it has ever asked who it is or not; others stay."""
    config = Config(tmp_path, WebSocketConfig(port=0))
    comm = zComm(SimpleNamespace(session={}), config=config, environ={}, reactor=reactor)
    port = (await comm.start_websocket()).getHost().port
    path = tmp_path / "operator.json"
    stays = await connect(port, token=TokenStore(tmp_path / "tokens.json").add("ann", "admin").token)

    async def come() -> RawClient:
        client = await connect(port, subprotocols=["zbifrost.v1", f"code.{invite(tmp_path)}"])
        assert "result" in await client.call("ping")
        return client

    for end in (
        lambda: OperatorCredentials.rotate(path),
        lambda: end_codes(tmp_path, OperatorCredentials.load(path).username),
    ):
        inside = await come()
        end()
        close = await inside.next_close()
        assert (close.close_code, close.close_reason) == (1008, "Session expired")
    assert "result" in await stays.call("ping")
    await stays.leave()
    await comm.stopService()


def test_contact_a_session_follows_the_operators_file(tmp_path: Path):
    """Name and role of today, for connections that are open and for new ones; without the file it is nobody's."""
    path = tmp_path / "operator.json"
    operator = OperatorCredentials.load_or_create(path)
    store = TokenStore(tmp_path / "tokens.json")
    token = signed_in(tmp_path, invite(tmp_path)).token
    kept = store.add(operator.username, "admin").token
    clock = Clock()
    checker = TokenChecker(operator, store, monotonic=clock.seconds)

    def changed(**values: Any) -> None:
        content = {**json.loads(path.read_text()), **values}
        write_private(path, json.dumps(content).encode())

    before = proved(checker, token)
    assert (before.name, before.role) == (operator.username, "admin")
    with rows_of_a_test() as row:
        for values in ({"role": "clerk"}, {"name": "zora"}, {"name": "Zoë", "role": "nobody"}):
            with row(repr(values)):
                held = proved(checker, token)
                changed(**values)
                clock.advance(1.0)
                assert not checker.still_valid(held) and checker.would_admit(held)
                after = proved(checker, token)
                assert {"name": after.name, "role": after.role}.items() >= values.items()
                assert checker.still_valid(after) and after.token_id == before.token_id
    OperatorCredentials.rotate(path)
    clock.advance(1.0)
    assert checker.still_valid(after) and proved(checker, token) == after, (
        "another token of the operator's is no change"
    )
    path.unlink()
    clock.advance(1.0)
    assert not checker.still_valid(after) and not checker.would_admit(after) and proved(checker, token) is None
    assert proved(checker, kept) is not None, "a token that was given to somebody is that"
    assert proved(TokenChecker(None, store), token) is None


@pytest.fixture
def zauth(tmp_path: Path) -> Path:
    """zAuth's login file, as it writes it."""
    path = tmp_path / "home" / ".zolo" / "credentials"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"username": "zoe", "role": "zAdmin", "api_key": "a-key-of-zauth", "user_id": 7}))
    path.chmod(0o600)
    return path


def proved(checker: TokenChecker, token: str) -> Identity | None:
    found: list[Any] = []
    checker.requestAvatarId(BearerToken(token)).addBoth(found.append)
    return found[0] if isinstance(found[0], Identity) else None


def test_contact_h4_a_login_of_zauth_is_accepted_and_never_touched(tmp_path: Path, zauth: Path):
    """While the file is there and private; what is wrong with it is one line in the log, and ends nothing else."""
    lines: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if "zauth" in event.get("log_namespace", "").lower() or "of zAuth" in (event.get("log_format") or ""):
            lines.append(event["reason"])

    operator = OperatorCredentials.load_or_create(tmp_path / "operator.json")
    checker = TokenChecker(
        operator, TokenStore(tmp_path / "tokens.json"), zauth=ZAuthCredentials(zauth), monotonic=lambda: 0
    )
    checker.RECHECK = 0.0
    content = zauth.read_bytes()
    globalLogPublisher.addObserver(hear)
    try:
        zoe = proved(checker, "a-key-of-zauth")
        assert (zoe.name, zoe.role) == ("zoe", "zAdmin") and checker.still_valid(zoe)
        assert lines == [] and zauth.read_bytes() == content
        with rows_of_a_test() as row:
            for damage, reason in [
                (lambda: zauth.chmod(0o644), "open to others"),
                (lambda: zauth.write_text("{"), "not a JSON object"),
                (lambda: zauth.write_text('{"api_key": "short"}'), "its api_key is not"),
                (lambda: zauth.write_text('{"api_key": "long enough", "role": 5}'), "its role is not text"),
                (lambda: (zauth.unlink(), zauth.mkdir(mode=0o700)), "is not a file"),
                (lambda: (zauth.unlink(), zauth.symlink_to(tmp_path / "operator.json")), "is a symbolic link"),
                (lambda: zauth.write_text('{"username": "zoe", "api_key": null}'), None),
                (lambda: zauth.unlink(), None),
            ]:
                with row(str(reason)):
                    damage()
                    for _ in range(3):
                        assert proved(checker, "a-key-of-zauth") is None and not checker.still_valid(zoe)
                        assert proved(checker, operator.token) == operator.identity
                    assert len(lines) == (reason is not None) and (not lines or reason in lines[0])
                    lines.clear()
                    if zauth.is_symlink() or zauth.exists():
                        zauth.rmdir() if zauth.is_dir() else zauth.unlink()
                    zauth.write_bytes(content)
                    zauth.chmod(0o600)
                    assert proved(checker, "a-key-of-zauth") == zoe and checker.still_valid(zoe)
        zauth.write_text(json.dumps({"username": "zed", "api_key": "another-key-of-zauth"}))
        assert not checker.still_valid(zoe) and proved(checker, "another-key-of-zauth").role == "admin"
    finally:
        globalLogPublisher.removeObserver(hear)


@pytest_twisted.ensureDeferred
async def test_contact_h4_n11_a38_a_server_needs_no_home_and_logs_nobody_in(tmp_path: Path):
    """With a data directory, neither a missing home nor one that is not there ends a start; nothing is made in one."""
    for number, environ in enumerate(({}, {"HOME": ""}, {"HOME": "/nonexistent"}, {"HOME": str(tmp_path / "home")})):
        data = tmp_path / f"data-{number}"
        config = Config(data, WebSocketConfig(port=0))
        comm = zComm(SimpleNamespace(session={}), config=config, environ=environ, reactor=reactor)
        port = (await comm.start_websocket()).getHost().port
        operator = OperatorCredentials.load(data / "operator.json")
        client = await connect(port, token=operator.token)
        assert (await client.call("zDescribe"))["result"]["identity"]["name"] == operator.username
        await client.leave()
        await comm.stopService()
        assert mode(data / "operator.json") == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"data-{number}" for number in range(4)]


@pytest_twisted.ensureDeferred
async def test_contact_a23_signing_in(tmp_path: Path):
    """A code stands in the place of a token, alone; several at once are several sessions; a wrong one is a failure."""
    comm = zComm(
        SimpleNamespace(session={}), config=Config(tmp_path, WebSocketConfig(port=0)), environ={}, reactor=reactor
    )
    port = (await comm.start_websocket()).getHost().port
    clients: list[RawClient] = []

    async def offer(*protocols: str, **options: Any) -> RawClient:
        clients.append(await connect(port, subprotocols=["zbifrost.v1", *protocols], **options))
        return clients[-1]

    code, token = invite(tmp_path), comm.program.operator_token
    for protocols, options in (
        ((f"code.{code}", f"bearer.{token}"), {}),
        ((f"code.{code}", "code." + "A" * 22), {}),
        ((f"code.{code}",), {"token": token}),
        (("code." + "A" * 22,), {}),
        (("code.",), {}),
        ((f"code.{code[:-1]}",), {}),
        ((f"bearer.{code}",), {}),
    ):
        close = await (await offer(*protocols, **options)).next_close()
        assert (close.close_code, close.close_reason) == (1008, "Invalid token"), protocols
    # However busy the functions of others keep the threads.
    gate = threading.Event()
    busy = [comm.program.workers.run(number, gate.wait) for number in range(comm.program.workers.threads)]
    several = [code, *(invite(tmp_path) for _ in range(4))]
    inside = [await offer(f"code.{each}") for each in several]
    assert inside[0].reader.response.header("Sec-WebSocket-Protocol") == "zbifrost.v1"
    answers = await gatherResults([client.call("zDescribe") for client in inside])
    sessions = [answer["result"]["session"] for answer in answers]
    assert len(set(sessions)) == 5 and token not in sessions
    gate.set()
    await gatherResults(busy)
    described = (await inside[0].call("zDescribe"))["result"]
    assert "session" not in described
    again = await offer(f"bearer.{sessions[1]}")
    assert (await again.call("zDescribe"))["result"] == described
    await gatherResults([client.leave() for client in clients])
    await comm.stopService()


@pytest_twisted.ensureDeferred
async def test_contact_a_code_is_spent_only_by_a_connection_that_is_told_its_session(tmp_path: Path):
    """Not by one too many of its user, one that is cut off after the handshake, a second one at the same time, or a
    request for a page."""
    limits = Limits(connections_per_user=1)
    comm = zComm(
        SimpleNamespace(session={}),
        config=Config(tmp_path, WebSocketConfig(port=0, limits=limits)),
        environ={},
        reactor=reactor,
    )
    bifrost = comm.create_websocket()
    port = (await comm.start_websocket()).getHost().port
    code, token = invite(tmp_path), comm.program.operator_token
    files = tmp_path / "codes"

    async def offer(*protocols: str, **options: Any) -> RawClient:
        return await connect(port, subprotocols=["zbifrost.v1", *protocols], **options)

    async def ended() -> None:
        await wait_until(lambda: not bifrost.clients, "the end")

    other = await offer(token=token)
    close = await (await offer(f"code.{code}")).next_close()
    assert (close.close_code, close.close_reason) == (1013, "Too many connections")
    await other.leave()
    await ended()
    cut = await offer(f"code.{code}")
    await wait_until(lambda: len(bifrost.clients) == 1, "a client")
    close = await (await offer(f"code.{code}")).next_close()
    assert (close.close_code, close.close_reason) == (1013, "Code in use")
    cut.abort()
    await ended()
    for _ in range(3):
        opening = handshake("127.0.0.1", subprotocols=["zbifrost.v1", f"code.{code}"])
        impatient = await connect(port, None)
        impatient.send(opening)
        impatient.abort()
        await impatient.when_ended()
    await wait_until(lambda: not bifrost.factory._alive, "the end of those who left")
    for path, headers in (
        ("/metrics", [("Authorization", f"Bearer code.{code}")]),
        (f"/metrics?token=code.{code}", []),
        ("/health", [("Authorization", f"Bearer code.{code}")]),
        (f"/?token=code.{code}", []),
    ):
        page = await connect(
            port,
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
            + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers)
            + b"\r\n",
        )
        await page.when_ended()
        assert page.reader.response.status in (200, 503), path
    assert len(list(files.iterdir())) == 1
    client = await offer(f"code.{code}")
    # A client may ask for the limits to keep before anybody asks who it is.
    assert list((await client.call("zDescribe", ["limits"]))["result"]) == ["limits"]
    assert len(list(files.iterdir())) == 1
    session = (await client.call("zDescribe", ["identity"]))["result"]["session"]
    assert list(files.iterdir()) == []
    await client.leave()
    await ended()
    close = await (await offer(f"code.{code}")).next_close()
    assert (close.close_code, close.close_reason) == (1008, "Invalid token")
    again = await offer(f"bearer.{session}")
    assert "session" not in (await again.call("zDescribe"))["result"]
    await again.leave()
    await comm.stopService()


def test_a_session_is_told_to_nobody_else(tmp_path: Path) -> None:
    """Where there is no session, zDescribe does not speak of one."""
    checker = TokenChecker(None, TokenStore(tmp_path / "tokens.json"))
    assert checker.take_session(Identity("a", "b", "c")) is None
    assert proved(checker, "code." + "A" * 22) is None
