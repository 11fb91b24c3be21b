"""What a host brings: data, a dispatcher, users, a checker, a logger; and what zComm does with each."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from support.hosts import host
from support.rawclient import connect
from support.waiting import wait_until
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from zope.interface import implementer

from zcomm import Config, WebSocketConfig, errors, zComm
from zcomm.auth import recheck as rechecking
from zcomm.auth.credentials import BearerToken, IBearerToken
from zcomm.comm import announce
from zcomm.host.log import HostLog
from zcomm.host.program import LOGIN_THREADS
from zcomm.host.users import HostUsers, identity_of
from zcomm.interfaces import Identity
from zcomm.runtime.workers import Workers

POLICY = """
clerk: {models: {Users: [read, create], Notes: {actions: "*", rows: {owner: $name, public: true}}}, commands: [known]}
"""


class Data:
    """Remembers what it was asked, and where; several may ask at once."""

    zcomm_filters = zcomm_concurrent = True

    def __init__(self):
        self.requests: list[dict[str, Any]] = []
        self.threads: set[str] = set()

    def handle_request(self, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        self.threads.add(threading.current_thread().name)
        if request["model"] == "Broken":
            raise RuntimeError("password=hunter2")
        if request["model"] == "Missing":
            raise errors.NotFound("No such row")
        return {"id": 1} if request["action"] == "create" else [1, 2]


class Users:
    """A host's users, as zAuth has them."""

    def validate(self, token: str) -> Any:
        if token == "explode":
            raise RuntimeError("the database of users is away")
        if token == "busy":
            raise errors.TooBusy("of the host's own")
        return {
            "clerk-token": {"username": "carla", "role": "clerk", "id": 7},
            "plain-token": {"name": "paul"},
            "odd-token": "odd",
            "nameless-token": {"role": "clerk"},
        }.get(token)


@pytest_twisted.ensureDeferred
async def test_data_alone_is_enough(run: Callable[..., Any]):
    """CRUD goes to the walker's data, in a worker thread, and the others hear of a change."""
    walker = SimpleNamespace(data=Data(), logger=logging.getLogger("walker"))
    running = await run(host(data=Data()), walker=walker, require_auth=False)
    client, other = await running.client(), await running.client()
    assert (await client.call("create_Users", {"values": {"name": "A"}}))["result"] == {"id": 1}
    assert await other.next_json() == {"zKey": "create_Users", "result": {"id": 1}}
    assert (await client.call("read_Users", {"where": {"id": 1}, "limit": 3}))["result"] == [1, 2]
    assert walker.data.requests == [
        {"values": {"name": "A"}, "action": "create", "model": "Users"},
        {"where": {"id": 1}, "limit": 3, "action": "read", "model": "Users"},
    ]
    assert all(name.startswith("zcomm-worker") for name in walker.data.threads)
    assert running.comm.zcli.data.requests == []


@pytest.mark.parametrize(
    ("key", "horizontal", "code"),
    [
        ("update_Users", {"values": {}}, "invalid"),
        ("delete_Users", {"where": {}}, "invalid"),
        ("delete_Users", {"filters": [], "all": 1}, "invalid"),
        ("create_Users", "create_Users", "invalid"),
        ("create_Users", {"action": "delete"}, "invalid"),
        ("create_Users", {"model": "Salaries"}, "invalid"),
        ("create_Broken", {}, "internal"),
        ("create_Missing", {}, "not_found"),
        ("drop_Users", {}, "unknown_command"),
        ("create_", {}, "unknown_command"),
        ("zFunc", 'zFunc(os.system, "x")', "unknown_command"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_does_not_reach_the_data(run: Callable[..., Any], key: str, horizontal: Any, code: str):
    """Requests that contradict themselves, and writes without a filter; the host's own failures stay its own."""
    data = Data()
    running = await run(host(data=data), require_auth=False)
    client = await running.client()
    reply = await client.call(key, horizontal)
    assert reply["code"] == code and "hunter2" not in str(reply)
    assert (data.requests != []) == (key in ("create_Broken", "create_Missing"))


@pytest_twisted.ensureDeferred
async def test_all_rows_when_that_is_said(run: Callable[..., Any]):
    """``"all": true`` is a filter."""
    data = Data()
    client = await (await run(host(data=data), require_auth=False)).client()
    assert (await client.call("delete_Users", {"all": True}))["result"] == [1, 2]


OWN = {"owner": "carla", "public": True}


@pytest.mark.parametrize(
    ("key", "horizontal", "part"),
    [
        ("read_Notes", {}, {"where": OWN}),
        ("read_Notes", {"where": {"id": 1, "owner": "carla"}}, {"where": {"id": 1, **OWN}}),
        ("read_Notes", {"filters": {"id": 1}}, {"where": {"id": 1, **OWN}}),
        ("create_Notes", {}, {"values": OWN}),
        ("create_Notes", {"values": {"title": "x"}}, {"values": {"title": "x", **OWN}}),
        (
            "update_Notes",
            {"where": {"id": 1}, "values": {"title": "x"}},
            {"where": {"id": 1, **OWN}, "values": {"title": "x"}},
        ),
        ("delete_Notes", {"all": True}, {"where": OWN}),
        ("read_Notes", {"where": {"owner": "paul"}}, None),
        ("read_Notes", {"where": {"OWNER": "carla"}}, None),
        ("delete_Notes", {"filters": {"public": False}}, None),
        ("create_Notes", {"values": {"owner": "paul"}}, None),
        ("create_Notes", {"values": {"Owner": "paul"}}, None),
        ("update_Notes", {"where": {"id": 1}, "values": {"owner": "paul"}}, None),
        ("upsert_Notes", {"values": {"title": "x"}}, None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a15_the_rows_of_a_policy(
    run: Callable[..., Any], key: str, horizontal: Any, part: dict[str, Any] | None
):
    """The host is asked for the rows that the policy grants; where zComm cannot be sure of that, it is not asked."""
    data = Data()
    client = await (await run(host(data=data, auth=Users()), policy=POLICY)).client("clerk-token")
    reply = await client.call(key, horizontal)
    if part is None:
        assert reply["code"] == "permission_denied" and data.requests == []
    else:
        action, _, model = key.partition("_")
        assert "result" in reply and data.requests == [{"action": action, "model": model, **part}]


@pytest.mark.parametrize(
    ("granted", "code"),
    [
        ("[create, update]", None),
        ('"*"', None),
        ("[create, read, delete]", "permission_denied"),
        ("[update]", "permission_denied"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_upsert_takes_two_rights(run: Callable[..., Any], granted: str, code: str | None):
    """Those to create and to update, as on zComm's own data."""
    data = Data()
    running = await run(host(data=data, auth=Users()), policy=f"clerk: {{models: {{Users: {granted}}}}}")
    reply = await (await running.client("clerk-token")).call("upsert_Users", {"values": {"name": "x"}})
    assert reply.get("code") == code and len(data.requests) == (code is None)


@pytest_twisted.ensureDeferred
async def test_a_row_that_was_updated_is_for_those_who_reach_it(run: Callable[..., Any]):
    """A host may answer an update with the row instead of a number."""
    rows = {1: {"id": 1, "owner": "paul", "public": True}, 2: {"id": 2, "owner": "carla", "public": True}}
    data = SimpleNamespace(handle_request=lambda request: rows[request["where"]["id"]], zcomm_filters=True)
    policy = POLICY + "user: {models: {Notes: [update]}}\n"
    running = await run(host(data=data, auth=Users()), policy=policy)
    paul, clerk = await running.client("plain-token"), await running.client("clerk-token")
    for number, row in rows.items():
        assert (await paul.call("update_Notes", {"where": {"id": number}}))["result"] == row
    assert (await clerk.next_json())["result"] == rows[2]


@pytest_twisted.ensureDeferred
async def test_a_dispatcher(run: Callable[..., Any]):
    """It gets the commands that the policy names, with the walker; ``ping`` and the program's own stay here."""
    seen: list[Any] = []

    def dispatch(key: str, horizontal: Any, walker: Any) -> Any:
        seen.append((key, horizontal, walker, threading.current_thread() is threading.main_thread()))
        return {"dispatched": key}

    walker = SimpleNamespace(zDispatch=dispatch)
    running = await run(
        host(data=Data(), walker=walker, zDispatch=lambda *_: "the host's"),
        require_auth=False,
        policy="guest: {models: '*', commands: [create_Users, zFunc, own]}",
    )
    running.comm.websockets[0].command("own")(lambda: "own")
    client = await running.client()
    assert (await client.call("create_Users"))["result"] == {"dispatched": "create_Users"}
    assert (await client.call("zFunc", "zFunc(a)"))["result"] == {"dispatched": "zFunc"}
    assert (await client.call("own"))["result"] == "own" and (await client.call("ping", 1))["result"] == 1
    assert (await client.call("read_Users"))["result"] == [1, 2]
    assert seen == [("create_Users", "create_Users", walker, False), ("zFunc", "zFunc(a)", walker, False)]


@pytest_twisted.ensureDeferred
async def test_users_of_the_host(run: Callable[..., Any], tmp_path: Path):
    """A token is asked about, off the reactor's thread; nobody's is refused, and so is everybody's while that fails."""
    running = await run(host(data=Data(), auth=Users()), policy=POLICY)
    assert not (tmp_path / ".zolo").exists()
    clerk = await running.client("clerk-token")
    assert (await clerk.call("read_Users", {}))["result"] == [1, 2]
    assert (await clerk.call("delete_Users", {"where": {"id": 1}}))["code"] == "permission_denied"
    (inside,) = running.comm.websockets[0].clients
    assert (inside.identity.name, inside.identity.role) == ("carla", "clerk")
    plain = await running.client("plain-token")
    assert (await plain.call("read_Users", {}))["code"] == "permission_denied"
    for token, code, reason in (
        ("nobody", 1008, "Invalid token"),
        ("x" * 600, 1008, "Invalid token"),
        (None, 1008, "Authentication required"),
        ("explode", 1011, "Authentication error"),
        ("busy", 1011, "Authentication error"),
        ("odd-token", 1011, "Authentication error"),
        ("nameless-token", 1011, "Authentication error"),
    ):
        close = await (await running.client(token)).next_close()
        assert (close.close_code, close.close_reason) == (code, reason)


@pytest_twisted.ensureDeferred
async def test_a_dispatcher_is_asked_only_what_is_granted(run: Callable[..., Any]):
    """A policy's commands hold for a host's dispatcher as well."""
    running = await run(host(zDispatch=lambda *_: "done", auth=Users()), policy=POLICY)
    clerk = await running.client("clerk-token")
    assert (await clerk.call("known"))["result"] == "done"
    assert (await clerk.call("unknown"))["code"] == "permission_denied"


@pytest_twisted.ensureDeferred
async def test_results_of_a_dispatcher_are_for_those_who_may_ask_for_them(run: Callable[..., Any]):
    """Where every result is told, those who may not use the command do not hear of it."""
    policy = POLICY + "user: {commands: [secret, known]}\n"
    running = await run(host(zDispatch=lambda key, *_: key, auth=Users()), policy=policy, broadcast="all")
    paul, clerk, other = [await running.client(token) for token in ("plain-token", "clerk-token", "plain-token")]
    for key in ("secret", "known"):
        assert (await paul.call(key))["result"] == key
    assert await clerk.next_json() == {"zKey": "known", "result": "known"}
    assert [(await other.next_json())["result"] for _ in range(2)] == ["secret", "known"]


class ByRole:
    """The users of a host, each of whom has the token and the role of its name."""

    def validate(self, token: str) -> Any:
        return {"name": token, "role": token}


@pytest_twisted.ensureDeferred
async def test_contact_whoever_may_not_ask_a_host_hears_of_no_result(run: Callable[..., Any]):
    """A star grants nothing of a host's, nor does a line for a model that may be the same: neither the command nor what
    came of it. Commands that the server has itself are granted by a star all the same."""
    policy = """
    caller: {commands: [secret, shared, zFunc, zOpen, own], models: {"*": "*"}}
    both: {commands: ["*", secret], models: {Notes: "*"}}
    star: {commands: "*", models: {"*": "*"}}
    stars: {commands: ["*"], models: {"*": "*", notes: [create]}}
    other: {commands: [shared, own], models: {"*": "*", NOTES: []}}
    """
    running = await run(host(data=Data(), zDispatch=lambda key, *_: key, auth=ByRole()), policy=policy, broadcast="all")
    running.comm.websockets[0].command("own")(lambda: "own")
    names = ("caller", "both", "star", "stars", "other")
    clients = {name: await running.client(name) for name in names}
    for key, horizontal in (
        ("secret", None),
        ("secret", "secret(x)"),
        ("shared", None),
        ("zFunc", "zFunc(f)"),
        ("zOpen", "zOpen(f)"),
        ("own", None),
        ("create_Notes", {"values": {"owner": "ann"}}),
        ("read_Notes", {}),
        ("update_Notes", {"where": {"id": 1}, "values": {"owner": "bob"}}),
        ("read_Users", {}),
    ):
        assert "result" in await clients["caller"].call(key, horizontal), key
    await clients["caller"].call("ping")
    heard = {}
    for name in names[1:]:
        heard[name] = []
        while (message := await clients[name].next_json())["zKey"] != "ping":
            heard[name].append(message["zKey"])
    notes = ["create_Notes", "read_Notes", "update_Notes"]
    assert heard == {
        "both": ["secret", "secret", "own", *notes],
        "star": ["own", *notes, "read_Users"],
        "stars": ["own", "read_Users"],
        "other": ["shared", "own", "read_Users"],
    }
    assert (await clients["star"].call("secret"))["code"] == "unknown_command"
    assert (await clients["other"].call("secret"))["code"] == "permission_denied"
    assert (await clients["stars"].call("read_Notes"))["code"] == "permission_denied"


@pytest_twisted.ensureDeferred
async def test_a_checker_of_the_host(run: Callable[..., Any]):
    """It is asked before anything else."""

    @implementer(ICredentialsChecker)
    class Checker:
        credentialInterfaces = (IBearerToken,)

        def requestAvatarId(self, credentials: IBearerToken) -> Deferred[Identity]:
            return succeed(Identity("kim", "any")) if credentials.token == "open" else fail(UnauthorizedLogin())

    running = await run(host(checker=Checker(), auth=Users()))
    assert (await (await running.client("open")).call("ping"))["result"] == "ping"
    assert (await (await running.client("clerk-token")).next_close()).close_code == 1008


@pytest_twisted.ensureDeferred
async def test_contact_a8_nobody_waits_for_others_threads_to_log_in(run: Callable[..., Any]):
    """All threads of functions are busy, and one address has as many logins under way as it may: others get in."""
    open_gates, asked = threading.Event(), []

    def validate(token: str) -> Any:
        asked.append(token)
        if token.startswith("slow"):
            open_gates.wait(30)
        return {"username": token}

    running = await run(host(auth=SimpleNamespace(validate=validate)))
    running.comm.program.functions.register(lambda: open_gates.wait(30), name="wait")
    workers = running.comm.program.workers
    # Each has half of the threads that the others leave, and one at least.
    busy = [await running.client(f"user{number}") for number in range(workers.threads)]
    try:
        for client in busy:
            for number in range(5):
                client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(wait)", "_requestId": number})
        await wait_until(lambda: workers.running == workers.threads, "every thread to be busy")
        logins = running.comm.program.login_workers()
        slow = [logins.run("192.0.2.1", validate, f"slow{number}") for number in range(2 * LOGIN_THREADS)]
        await wait_until(lambda: len(asked) == len(busy) + LOGIN_THREADS // 2, "one address to have its share")
        assert (await (await running.client("late")).call("ping", 1))["result"] == 1
    finally:
        open_gates.set()
    await gatherResults(slow)


@pytest_twisted.ensureDeferred
async def test_a_user_who_is_gone_is_sent_away(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """A14: of two tokens of one user, the one the host revokes ends its connection; asked off the reactor's thread."""
    monkeypatch.setattr(rechecking, "RECHECK", 0.5)
    users = {"first": {"username": "ann"}, "second": {"username": "ann"}, "risen": {"username": "bo", "role": "clerk"}}
    threads = set()

    def validate(token: str) -> Any:
        threads.add(threading.current_thread())
        return users.get(token)

    running = await run(host(auth=SimpleNamespace(validate=validate)))
    first, second, risen = [await running.client(token) for token in ("first", "second", "risen")]
    assert (await second.call("ping", 1))["result"] == 1
    del users["first"]
    users["risen"] = {"username": "bo", "role": "admin"}
    for gone, code in ((first, 1008), (risen, 1013)):
        close = await gone.next_close()
        assert (close.close_code, close.close_reason) == (code, "Session expired")
    assert (await second.call("ping", 2))["result"] == 2
    assert threading.main_thread() not in threads
    assert [client.identity.role for client in running.comm.websockets[0].clients] == ["user"]


@pytest_twisted.ensureDeferred
async def test_contact_sessions_are_ended_at_once(run: Callable[..., Any]):
    """A14: all connections of the user and nobody else's; nobody's are none."""
    running = await run(host(auth=Users()))
    one, two, other = [await running.client(token) for token in ("clerk-token", "clerk-token", "plain-token")]
    assert running.comm.end_sessions("nobody") == 0
    assert running.comm.end_sessions("carla") == 2
    for gone in (one, two):
        close = await gone.next_close()
        assert (close.close_code, close.close_reason) == (1013, "Session expired"), "the host is asked again"
    assert (await other.call("ping", 1))["result"] == 1


@pytest_twisted.ensureDeferred
async def test_a_checker_that_knows_by_itself_is_not_asked_again(run: Callable[..., Any]):
    """Its own still_valid counts."""

    @implementer(ICredentialsChecker)
    class Checker:
        credentialInterfaces = (IBearerToken,)
        open = True

        def requestAvatarId(self, credentials: IBearerToken) -> Deferred[Identity]:
            return succeed(Identity("kim", "any"))

        def still_valid(self, identity: Identity) -> bool:
            return self.open

    checker = Checker()
    running = await run(host(checker=checker))
    client = await running.client("open")
    assert running.comm.websockets[0].clients[0].identity == Identity("kim", "any")
    checker.open = False
    assert (await client.next_close()).close_reason == "Session expired"


@pytest.mark.parametrize("user", [None, False, {}])
def test_nobody(user: Any):
    """All that a host may mean by nobody."""
    with pytest.raises(UnauthorizedLogin):
        identity_of(user)


@pytest.mark.parametrize("user", [{"username": "a\ud800"}, {"username": "a", "role": "\udfff"}])
def test_names_that_nobody_can_be_told(user: Any):
    """They are refused where they come from: no message could have them."""
    with pytest.raises(TypeError, match="which has no UTF-8"):
        identity_of(user)


@pytest_twisted.ensureDeferred
async def test_contact_a_host_that_raises_for_wrong_tokens_counts_them(run: Callable[..., Any]):
    """Whatever it raises, errors of zComm's own and users that are none among it."""
    running = await run(host(auth=Users()))
    failures = running.comm.websockets[0].factory.admission._failures
    before = failures.left("127.0.0.1")
    for count, token in enumerate(("explode", "busy", "odd-token", "nameless-token"), 1):
        close = await (await running.client(token)).next_close()
        assert (close.close_code, close.close_reason) == (1011, "Authentication error")
        assert failures.left("127.0.0.1") == before - count
    assert (await (await running.client("clerk-token")).call("ping"))["result"] == "ping"
    assert failures.left("127.0.0.1") == before - count


@pytest_twisted.ensureDeferred
async def test_an_empty_token_is_nobodys():
    """The host is not even asked."""
    asked: list[str] = []
    workers = Workers(threads=1, reactor=reactor)
    with pytest.raises(UnauthorizedLogin):
        await HostUsers(asked.append, workers).requestAvatarId(BearerToken(""))
    assert asked == []


@pytest_twisted.ensureDeferred
async def test_another_walker(run: Callable[..., Any], tmp_path: Path):
    """A server that was created with one walker is started with another: the last word counts."""
    first, second = SimpleNamespace(data=Data(), zDispatch=lambda *_: "first"), SimpleNamespace(data=Data())
    config = Config(tmp_path, WebSocketConfig(port=0, require_auth=False))
    comm = zComm(host(), config=config, environ={"HOME": str(tmp_path)}, reactor=reactor)
    bifrost = comm.create_websocket(first)
    assert bifrost.walker is first
    ready: Deferred[Any] = Deferred()
    port = await comm.start_websocket(ready, second)
    assert await ready is port and comm.server_of(port) is bifrost and comm.websockets == [bifrost]
    assert bifrost.walker is second
    client = await connect(port.getHost().port)
    assert (await client.call("read_Users", {}))["result"] == [1, 2] and len(second.data.requests) == 1
    with pytest.raises(errors.NotListening):
        comm.server_of(object())
    await comm.stopService()
    await client.when_ended()


@pytest_twisted.ensureDeferred
async def test_a_port_that_is_taken(run: Callable[..., Any], tmp_path: Path):
    """The Deferred fails, an event is set all the same, and no server is left over."""
    running = await run(host(), require_auth=False)
    config = Config(tmp_path, WebSocketConfig(port=running.port, require_auth=False))
    comm = zComm(host(), config=config, environ={}, reactor=reactor)
    event, deferred = threading.Event(), Deferred()
    for ready in (event, deferred, None):
        with pytest.raises(CannotListenError):
            await comm.start_websocket(ready)
    assert event.is_set() and comm.websockets == []
    with pytest.raises(CannotListenError):
        await deferred
    await comm.stopService()


def test_announcing():
    """Each kind of waiter hears once, however it went."""
    done: Deferred[Any] = succeed(1)
    announce(done, None)
    loop = asyncio.new_event_loop()
    good, bad, gone, settled = (loop.create_future() for _ in range(4))
    settled.set_result(0)
    announce(good, "port")
    announce(bad, ValueError("taken"))
    announce(gone, asyncio.CancelledError())
    announce(settled, "port")
    announce(None, "port")
    assert (
        good.result() == "port"
        and isinstance(bad.exception(), ValueError)
        and gone.cancelled()
        and settled.result() == 0
    )
    loop.close()


class Heard(logging.Handler):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def test_the_hosts_logger():
    """It hears what zComm says and what goes wrong below it, each once, and nothing after the end."""
    heard = Heard()
    logger = logging.getLogger("a host")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(heard)
    ours, theirs = Logger("zcomm.somewhere"), Logger("somebody.else")
    logs = [HostLog.of(SimpleNamespace(logger=logger)) for _ in range(2)]
    for log in logs:
        log.start()
    ours.info("100% of {what}", what="it")
    theirs.info("not ours")
    theirs.error("an error below")
    logs[0].stop()
    ours.warn("still heard")
    logs[1].stop()
    logs[1].stop()
    ours.critical("not heard")
    assert heard.lines == ["INFO 100% of it", "ERROR an error below", "WARNING still heard"]
    third, fourth = HostLog(logger), HostLog(logger)
    third.start()
    fourth.start()
    fourth.stop()
    ours.debug("again")
    third.stop()
    assert heard.lines[-1] == "DEBUG again" and len(heard.lines) == 4


@pytest_twisted.ensureDeferred
async def test_the_old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``ZComm`` and ``ZSocket`` work and warn, from the module that keeps them and from the package."""
    import zcomm

    for name, value in (("HOME", str(tmp_path)), ("WEBSOCKET_REQUIRE_AUTH", "False"), ("WEBSOCKET_PORT", "0")):
        monkeypatch.setenv(name, value)

    def use() -> list[Any]:
        with pytest.warns(DeprecationWarning, match="ZComm is now zComm"):
            comm = zcomm.ZComm(host())
        results: list[Any] = [type(comm.create_websocket(port=0)).__name__]
        with pytest.warns(DeprecationWarning, match="ZSocket is now zBifrost"):
            sockets = [
                zcomm.ZSocket(),
                zcomm.ZSocket(walker=host(data=Data())),
                zcomm.ZSocket(SimpleNamespace(zcli=host())),
            ]

        async def serve() -> None:
            ready = asyncio.Event()
            with pytest.warns(DeprecationWarning, match="start_socket_server is now"):
                serving = asyncio.ensure_future(sockets[1].start_socket_server(ready))
                await ready.wait()
            results.append((sockets[1].port > 0, await sockets[1].broadcast("x")))
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

        asyncio.run(serve())
        for one in (comm, *(socket._comm for socket in sockets)):
            one.close()
        return results

    assert await deferToThread(use) == ["zBifrost", (True, 0)]
    with pytest.raises(AttributeError):
        _ = zcomm.ZAuth


@pytest_twisted.ensureDeferred
async def test_a_broadcast_needs_a_server(tmp_path: Path):
    """Without one it fails with NotListening."""
    comm = zComm(host(), config=Config(tmp_path), environ={}, reactor=reactor)
    with pytest.raises(errors.NotListening):
        await comm.broadcast_websocket("x")


@pytest_twisted.ensureDeferred
async def test_several_servers(run: Callable[..., Any]):
    """A broadcast goes to the clients of all of them, but not to its sender; each is stopped by itself."""
    running = await run(host(data=Data()), require_auth=False)
    comm = running.comm
    second = comm.create_websocket(port=0)
    assert second.when_stopped().called and not second.is_listening
    port = await comm.start_websocket()
    clients = [await running.client(), await connect(port.getHost().port)]
    await wait_until(lambda: len(second.clients) == 1 and len(comm.websockets[0].clients) == 1, "both clients")
    assert await comm.broadcast_websocket({"n": 1}) == 2
    assert await comm.broadcast_websocket("x", second.clients[0]) == 1
    assert [await client.next_json() for client in clients] == [{"n": 1}] * 2
    stopped = second.when_stopped()
    assert (await second.when_listening()) is port
    await comm.stop_websocket(second)
    assert (await clients[1].next_close()).close_code == 1001
    await stopped
    await clients[1].when_ended()
    assert comm.websockets[0].is_listening and second not in comm.websockets
