"""From a request to what answers it."""

from __future__ import annotations

import asyncio
from concurrent import futures
from enum import StrEnum
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import capturedLogs
from zope.interface import implementer

from zcomm.auth.credentials import IBearerToken
from zcomm.auth.policy import AllowAll, Policy
from zcomm.bifrost.dispatch import Dispatcher
from zcomm.bifrost.given import Given
from zcomm.bifrost.server import zBifrost
from zcomm.commands.functions import FunctionRegistry
from zcomm.engines.memory import MemoryEngine
from zcomm.errors import ConfigError, Declined, Invalid, UnknownCommand
from zcomm.interfaces import EVERYBODY, Audience, Identity, Request
from zcomm.testing import MemoryServer, assert_error


class Somebody:
    """A client, as far as a responder looks at it."""

    identity = Identity("alice", "admin")


CLIENT = Somebody()
#: No command here asks for anything that needs a reactor or somebody who answers.
GIVEN = Given(None, lambda client, prompt, timeout: fail(Declined()))


class Crud:
    """Answers everything that looks like one."""

    def matches(self, key: str) -> bool:
        return "_" in key

    def respond(self, request: Request, client: Any) -> str:
        return "crud"


def dispatcher() -> Dispatcher:
    made = Dispatcher(AllowAll(), GIVEN)
    made.serve_data(Crud())
    made.form("zFunc", lambda request, client: "function")
    made.form("zOpen", lambda request, client: "file")
    made.command("own_key")(lambda: "own")
    return made


def answer(made: Dispatcher, key: str, horizontal: Any = None) -> Any:
    request = Request(key=key, horizontal=key if horizontal is None else horizontal)
    return made.find(request)(request, CLIENT)


class OldRights:
    """Permissions by another method, as they were once asked for."""

    def may(self, identity: Identity, action: str, model: str) -> bool:
        return True


class NoRows:
    """Half of what permissions have to answer."""

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("permissions", "missing"), [(OldRights(), "allows"), (NoRows(), "rows"), (object(), "allows")]
)
def test_permissions_that_answer_no_question(permissions: Any, missing: str):
    """Said when the server is made, not with its first command."""
    with pytest.raises(ConfigError, match=f"has no method {missing}"):
        zBifrost(permissions=permissions)


@pytest.mark.parametrize(
    ("key", "horizontal", "expected"),
    [
        ("own_key", None, "own"),
        ("read_Users", {}, "crud"),
        ("zFunc", "zFunc(a)", "function"),
        ("zFunc(a)", None, "function"),
        ("zOpen", "zOpen(a)", "file"),
        ("read_Users", "zFunc(a)", "crud"),
        ("ping", 1, 1),
        ("own_key", "zFunc(a)", "own"),
    ],
)
def test_who_answers(key: str, horizontal: Any, expected: Any):
    """Registered keys first, forms under their own name only, then models."""
    assert answer(dispatcher(), key, horizontal) == expected


@pytest.mark.parametrize(
    ("key", "horizontal", "words"),
    [
        ("nobody", None, "Unknown command"),
        ("png", None, 'did you mean "ping"'),
        ("zFunc", None, "needs a zHorizontal"),
        ("zFunc", {"a": 1}, "needs a zHorizontal"),
        ("zFunc", "zOpen(a)", "needs a zHorizontal"),
        ("zFunc(a)", 5, "as zKey says all"),
        ("zFunc(a)", "zFunc(b)", "leave zHorizontal out"),
        ("zOpen(" + "a" * 4000, {}, "leave zHorizontal out"),
        ("zLink", "zLink(/a)", "Unknown command"),
        ("anything", "zFunc(a)", "Unknown command"),
        ("x" * 4096, None, "Unknown command"),
    ],
)
def test_nobody_answers(key: str, horizontal: Any, words: str):
    """An error that helps, and never repeats a long key."""
    with pytest.raises(UnknownCommand, match=words.replace("(", r"\(")) as caught:
        answer(dispatcher(), key, horizontal)
    assert len(caught.value.text) < 120


class HostsOwn:
    """A host's dispatcher, which is asked a few keys."""

    KEYS = ("own_key", "read_Users", "zFunc", "known")

    def matches(self, key: str) -> bool:
        return key in self.KEYS

    def respond(self, request: Request, client: Any) -> str:
        return "host"


def test_forms_in_json():
    """Of those that have one, under their own key; behind a host's dispatcher, which takes texts, of none."""
    made = dispatcher()
    made.form("zFunc", lambda request, client: request.horizontal["name"], as_json=True)
    made.form("zOpen", lambda request, client: "file", lambda given: Audience("file", given["name"]), as_json=True)
    made.form("zLink", lambda request, client: "page")
    assert answer(made, "zFunc", {"name": "f"}) == "f"
    assert made.audience_of(Request(key="zOpen", horizontal={"name": "a"})) == Audience("file", "a")
    assert made.audience_of(Request(key="zFunc", horizontal={"name": "a"})) is None
    for key, horizontal in (("zFunc", ["f"]), ("zFunc", 5), ("zLink", {"path": "/"})):
        with pytest.raises(UnknownCommand, match="needs a zHorizontal"):
            answer(made, key, horizontal)
    # A value like others, which is not the same as none.
    with pytest.raises(UnknownCommand, match="leave zHorizontal out"):
        made.find(Request(key="zFunc(f)", horizontal=None))
    assert answer(made, "read_Users", {"name": "f"}) == "crud"
    made.serve_data(Crud(), HostsOwn())
    assert answer(made, "zFunc", {"name": "f"}) == "host"
    assert answer(made, "zOpen", {"name": "f"}) == "file"


def test_a_host_answers_what_it_is_asked():
    """Before forms and models, never in the place of what is registered, and nothing else."""
    made = dispatcher()
    made.serve_data(Crud(), HostsOwn())
    assert answer(made, "own_key") == "own"
    assert {answer(made, key, horizontal) for key, horizontal in HOSTS} == {"host"}
    assert answer(made, "zFunc(a)") != "host" and answer(made, "read_Orders") != "host"
    with pytest.raises(UnknownCommand):
        answer(made, "nobody")


HOSTS = [("read_Users", {}), ("zFunc", "zFunc(a)"), ("zFunc", {"a": 1}), ("known", None)]


def test_contact_a28_names_are_told_to_those_who_may_use_them():
    """What is not granted and what is not there have one error; a hint names what is granted (B28)."""
    policy = Policy.from_yaml("clerk: {commands: [sweepFloor]}\nboss: {commands: '*'}", "policy")
    commands = {name: lambda: "done" for name in ("wipeAllCustomers", "sweepFloor")}
    tokens = {role: Identity(role, role) for role in ("clerk", "boss", "nobody")}
    server = MemoryServer(commands, permissions=policy, tokens=tokens)
    boss, clerk, nobody = [server.connect(token=role) for role in ("boss", "clerk", "nobody")]
    told = assert_error(boss.call("wipeAlCustomers"), "unknown_command")
    assert told["error"] == 'Unknown command; did you mean "wipeAllCustomers"?'
    for client in (clerk, nobody):
        for key in ("wipeAllCustomers", "wipeAlCustomers", "WIPEALLCUSTOMERS", "whatever"):
            assert assert_error(client.call(key), "permission_denied")["error"] == "Permission denied"
    for key in ("sweepFlor", "sweepfloor"):
        told = assert_error(clerk.call(key), "permission_denied")
        assert told["error"] == 'Permission denied; did you mean "sweepFloor"?'
        assert assert_error(nobody.call(key), "permission_denied")["error"] == "Permission denied"
    told = assert_error(nobody.call("pong"), "permission_denied")
    assert told["error"] == 'Permission denied; did you mean "ping"?'


@pytest.mark.parametrize("key", ["ping", "own_key", "", None, 5, "\ud800"])
def test_keys_that_cannot_be_registered(key: Any):
    """Taken, empty or no text."""
    with pytest.raises(ConfigError):
        dispatcher().command(key)(lambda: None)


class Key(StrEnum):
    """A program's own list of its names."""

    TOTAL = "total"


def test_names_from_an_enumeration():
    """They are the texts that they are."""
    functions = FunctionRegistry()
    functions.register(lambda: "function", name=Key.TOTAL)
    server = MemoryServer({Key.TOTAL: lambda: "command"}, functions=functions, broadcast="all")
    one, other = server.connect(), server.connect()
    one.call("total")
    one.call("zFunc", "zFunc(total)")
    assert [message["result"] for message in other.messages] == ["command", "function"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: "none", "none"),
        (lambda horizontal: horizontal, "h"),
        (lambda horizontal, client: (horizontal, client), ("h", CLIENT)),
        (lambda *everything: everything, ("h", CLIENT)),
        (lambda horizontal, *, extra=1: (horizontal, extra), ("h", 1)),
        (lambda horizontal, client, third=3: (horizontal, client, third), ("h", CLIENT, 3)),
        (lambda *, identity: identity, CLIENT.identity),
        (lambda horizontal, *, client, identity: (horizontal, client, identity), ("h", CLIENT, CLIENT.identity)),
        (lambda horizontal, client, **rest: (horizontal, rest), ("h", {})),
        ("text".__add__, "texth"),
    ],
)
def test_a_function_gets_what_it_declares(function: Any, expected: Any):
    """Nothing, the horizontal, or the client as well; and what it asks for by keyword."""
    made = dispatcher()
    made.command("f")(function)
    request = Request(key="f", horizontal="h")
    assert made.find(request)(request, CLIENT) == expected


async def endless():
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda horizontal, client, progress: 0, "'progress' must be keyword-only"),
        (lambda identity: 0, "'identity' must be keyword-only"),
        (lambda client: 0, "'client' must be keyword-only"),
        (lambda a, b, c: 0, "at most, but takes a, b, c"),
        (lambda a, *, database: 0, "nobody can fill the keyword-only parameter 'database'"),
        (endless, "a generator has no single result"),
        ("text", "cannot be called"),
        (None, "cannot be called"),
    ],
)
def test_contact_n15_a_function_that_nobody_could_call_is_refused(function: Any, words: str):
    """When it is registered, by its key, and not with each call."""
    with pytest.raises(ConfigError, match="^command 'f': ") as caught:
        dispatcher().command("f")(function)
    assert words in caught.value.reason


@pytest.mark.parametrize(
    ("key", "horizontal", "expected"),
    [
        ("ping", 1, EVERYBODY),
        ("own_key", None, Audience("command", "own_key")),
        ("own_key", "zOpen(a)", Audience("command", "own_key")),
        ("zOpen", "zOpen(a)", Audience("file", "zOpen(a)")),
        ("zOpen(a)", None, Audience("file", "zOpen(a)")),
        ("zFunc", "zFunc(a)", None),
        ("read_Users", {}, None),
        ("read_Users", "zOpen(a)", None),
        ("reserved", None, None),
    ],
)
def test_who_may_ask_for_the_same(key: str, horizontal: Any, expected: Audience | None):
    """By the right that the request took; nobody where none is known."""
    made = dispatcher()
    made.form("zOpen", lambda request, client: "file", lambda text: Audience("file", text))
    made.command("reserved")(lambda: None)
    made.reserve("reserved", lambda request, client: None)
    assert made.audience_of(Request(key=key, horizontal=key if horizontal is None else horizontal)) == expected


def test_who_may_ask_a_host_for_the_same():
    """Those who may use that command; what is registered stays what it is."""
    made = dispatcher()
    made.serve_data(None, HostsOwn())
    for key in HostsOwn.KEYS:
        assert made.audience_of(Request(key=key, horizontal="zFunc(a)")) == Audience("command", key)
    assert made.audience_of(Request(key="nobody", horizontal="zFunc(a)")) is None
    assert made.audience_of(Request(key="ping", horizontal=1)) == EVERYBODY


class Nothing(dict):  # type: ignore[type-arg]
    """Parts of a server that are all in one, and empty: false, as an empty container is."""

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return name in self

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return {}


class EmptyEngine(MemoryEngine):
    """An engine that has a length, and it is none."""

    def __len__(self) -> int:
        return 0


@implementer(ICredentialsChecker)
class EmptyChecker(dict):  # type: ignore[type-arg]
    """Knows nobody yet."""

    credentialInterfaces = (IBearerToken,)

    def requestAvatarId(self, credentials: Any) -> Deferred[Identity]:
        return succeed(Identity("kim", "any"))


def test_what_is_given_counts_even_where_it_is_empty():
    """Permissions that grant nothing yet grant nothing; an engine and a checker that are empty are those given."""
    engine = EmptyEngine()
    server = MemoryServer(
        {"wipe": lambda: "wiped"}, permissions=Nothing(), engine=engine, checker=EmptyChecker(), tokens={}
    )
    client = server.connect("any")
    assert_error(client.call("wipe"), "permission_denied")
    assert engine.clients == 1
    bare = zBifrost(permissions=Nothing(), engine=engine, checker=EmptyChecker())
    assert isinstance(bare.dispatcher.permissions, Nothing)
    assert bare._engine is engine and isinstance(bare._checker, EmptyChecker)


def test_contact_a_command_that_fails_because_the_server_is_about_to_stop_is_left_to_its_goodbye():
    """Whoever cancelled it; what is declared is said all the same, and what failed of itself is logged."""
    ending: list[None] = []
    waiting: list[Deferred[Any]] = []

    def wait() -> Deferred[Any]:
        waiting.append(Deferred())
        return waiting[-1]

    errors = [
        CancelledError(),
        asyncio.CancelledError(),
        futures.CancelledError(),
        ValueError("of its own"),
        Invalid("no"),
    ]
    server = MemoryServer({"wait": wait})
    server.bifrost.ends_when(lambda: bool(ending))
    client = server.connect()
    answers: list[Any] = []
    for _ in errors:
        client.call("wait").addBoth(answers.append)
    ending.append(None)
    with capturedLogs() as logged:
        for deferred, error in zip(waiting, errors, strict=True):
            deferred.errback(error)
        server.settle()
        server.stop()
    assert [each["code"] for each in answers[:1]] == ["invalid"]
    assert [each.type for each in answers[1:]] == [ConnectionError] * 4 and client.closed.code == 1001
    assert [each["log_failure"].type for each in logged if "log_failure" in each] == [ValueError]
