"""What a client sees, the same on plain calls in memory, on frames in memory and on TCP.

The memory world is :mod:`zcomm.testing`: whatever holds here for TCP holds for what users test with.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted
from support.worlds import WORLDS, World
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from zcomm import Audience, Identity, Outcome, Policy
from zcomm.auth.credentials import IBearerToken
from zcomm.bifrost import session
from zcomm.errors import Conflict, Invalid
from zcomm.wire.closecodes import CloseCode

pytestmark = pytest.mark.unmeasured

POLICY = Policy.from_yaml(
    """
admin: {models: "*", functions: "*", pages: "*", files: "*", commands: "*"}
guest: {models: {Users: [read]}, commands: [open, shout]}
""",
    "test",
)


@pytest_twisted.async_yield_fixture(params=sorted(WORLDS))
async def world(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Starts a server of one kind of world; ended after the test."""
    worlds: list[World] = []

    async def start(**options: Any) -> World:
        made = WORLDS[request.param](**options)
        worlds.append(made)
        await made.start()
        return made

    yield start
    for made in worlds:
        await made.end()


ROW = {"id": 1, "name": "Ann"}


def equip(world: World) -> list[Deferred]:
    """Register commands of every kind; returns the Deferreds that "wait" hands out."""
    waiting: list[Deferred] = []
    command = world.bifrost.command
    command("value")(lambda: 42)
    command("echo")(lambda horizontal: horizontal)
    command("who")(lambda horizontal, client: [client.identity.name, client.identity.role, client.peer])
    command("fired")(lambda: succeed("fired"))
    command("conflict")(lambda: fail(Conflict("Taken", {"email": "is taken"})))
    command("broken")(lambda: 1 / 0)

    @command("invalid")
    def invalid():
        raise Invalid("Wrong", {"age": "is not a number"})

    @command("coroutine")
    async def coroutine(horizontal):
        await succeed(None)
        return {"got": horizontal}

    @command("wait")
    def wait():
        waiting.append(Deferred())
        return waiting[-1]

    @command("shout", broadcast=True)
    def shout(horizontal):
        return horizontal

    @command("open")
    def open_():
        return Outcome(ROW, changed=True, audience=Audience("model", "Vault"))

    @command("push")
    def push(horizontal, client):
        client.send({"event": "display", "data": horizontal})
        return None

    return waiting


REQUESTS: list[tuple[str, Any, Any]] = [
    ("value", {"zKey": "value", "_requestId": 1}, {"result": 42, "_requestId": 1}),
    ("string-id", {"zKey": "value", "_requestId": "a-1"}, {"result": 42, "_requestId": "a-1"}),
    ("no-id", {"zKey": "value"}, {"result": 42}),
    ("cmd", {"cmd": "value"}, {"result": 42}),
    (
        "horizontal",
        {"zKey": "echo", "zHorizontal": {"a": [1, None, "é"]}, "_requestId": 1},
        {"result": {"a": [1, None, "é"]}, "_requestId": 1},
    ),
    ("key-stands-for-it", {"zKey": "echo"}, {"result": "echo"}),
    ("null-is-null", {"zKey": "echo", "zHorizontal": None}, {"result": None}),
    ("ping", {"zKey": "ping", "zHorizontal": 5, "_requestId": 2}, {"result": 5, "_requestId": 2}),
    ("fired", {"zKey": "fired"}, {"result": "fired"}),
    (
        "coroutine",
        {"zKey": "coroutine", "zHorizontal": 1, "_requestId": 3},
        {"result": {"got": 1}, "_requestId": 3},
    ),
    ("who", {"zKey": "who"}, {"result": ["alice", "admin", "127.0.0.1"]}),
    (
        "declared",
        {"zKey": "invalid", "_requestId": 4},
        {
            "error": "Wrong",
            "code": "invalid",
            "retryable": False,
            "fields": {"age": "is not a number"},
            "_requestId": 4,
        },
    ),
    (
        "errback",
        {"zKey": "conflict", "_requestId": 5},
        {
            "error": "Taken",
            "code": "conflict",
            "retryable": False,
            "fields": {"email": "is taken"},
            "_requestId": 5,
        },
    ),
    (
        "undeclared",
        {"zKey": "broken", "_requestId": 6},
        {"error": "Internal error", "code": "internal", "retryable": False, "_requestId": 6},
    ),
    (
        "unknown",
        {"zKey": "eccho", "_requestId": 7},
        {
            "error": 'Unknown command; did you mean "echo"?',
            "code": "unknown_command",
            "retryable": False,
            "_requestId": 7,
        },
    ),
    ("no-json", "hello", {"error": "Invalid JSON", "code": "bad_message", "retryable": False}),
    ("empty", "", {"error": "Invalid JSON", "code": "bad_message", "retryable": False}),
    ("no-object", "[1]", {"error": "Message must be an object", "code": "bad_message", "retryable": False}),
]


@pytest.mark.parametrize(("sent", "expected"), [pytest.param(*row[1:], id=row[0]) for row in REQUESTS])
@pytest_twisted.ensureDeferred
async def test_each_request_has_its_reply(world, sent: Any, expected: Any):
    """One reply to its sender, nothing to others, and the connection goes on."""
    here = await world()
    equip(here)
    client, other = await here.join(), await here.join("bob-token")
    client.send(sent)
    assert await client.next() == expected
    assert await client.call("ping", 1) == {"result": 1}
    assert await other.call("ping", 2) == {"result": 2}
    assert client.items() == [] and other.items() == []


@pytest_twisted.ensureDeferred
async def test_replies_follow_their_ids_not_their_order(world):
    """The one that is ready first comes first."""
    here = await world()
    waiting = equip(here)
    client = await here.join()
    for number in range(3):
        client.send({"zKey": "wait", "_requestId": number})
    await here.until(lambda: len(waiting) == 3, "three commands that run")
    for number in (2, 0, 1):
        waiting[number].callback(number)
        assert await client.next() == {"result": number, "_requestId": number}


@pytest_twisted.ensureDeferred
async def test_in_flight(world):
    """One more than the limit is too busy; a finished one makes room."""
    here = await world(in_flight=2)
    waiting = equip(here)
    client = await here.join()
    for number in range(3):
        client.send({"zKey": "wait", "_requestId": number})
    reply = await client.next()
    assert (reply["_requestId"], reply["code"], reply["retryable"]) == (2, "too_busy", True)
    waiting[0].callback("done")
    assert await client.next() == {"result": "done", "_requestId": 0}
    assert await client.call("value") == {"result": 42}


@pytest_twisted.ensureDeferred
async def test_a_command_that_takes_too_long(world):
    """It is cancelled; its caller is told."""
    here = await world(command_timeout=0.2)
    equip(here)
    client = await here.join()
    reply = await client.call("wait")
    assert (reply["code"], reply["retryable"]) == ("timeout", True)


@pytest.mark.parametrize(
    ("mode", "key", "heard"),
    [
        ("changes", "shout", True),
        ("changes", "echo", False),
        ("all", "shout", True),
        ("all", "echo", True),
        ("none", "shout", False),
        ("none", "echo", False),
        ("all", "invalid", False),
        ("all", "broken", False),
        ("all", "fired", True),
    ],
)
@pytest_twisted.ensureDeferred
async def test_whose_results_others_hear(world, mode: str, key: str, heard: bool):
    """By the mode of the server; never an error, never an id, never the sender itself."""
    here = await world(broadcast=mode)
    equip(here)
    client, other = await here.join(), await here.join("bob-token")
    client.send({"zKey": key, "zHorizontal": "hi", "_requestId": 9})
    reply = await client.reply(9)
    if heard:
        assert await other.next() == {"zKey": key, "result": reply["result"]}
    await other.call("value")
    if mode == "all":
        # The other one's own command is told to the first.
        assert await client.next() == {"zKey": "value", "result": 42}
    assert other.items() == [] and client.items() == []


@pytest_twisted.ensureDeferred
async def test_broadcasts_are_for_those_who_may_read(world):
    """The outcome says who; a guest hears what its role may."""
    here = await world(permissions=POLICY)
    equip(here)
    alice, bob, guest = await here.join(), await here.join("bob-token"), await here.join("guest-token")
    assert await alice.call("open") == {"result": ROW}
    assert await alice.call("shout", "hello") == {"result": "hello"}
    assert [await bob.next(), await bob.next()] == [
        {"zKey": "open", "result": ROW},
        {"zKey": "shout", "result": "hello"},
    ]
    assert await guest.next() == {"zKey": "shout", "result": "hello"}


@pytest_twisted.ensureDeferred
async def test_permissions_are_asked_for_each_command(world):
    """What a role was not granted does not run."""
    here = await world(permissions=POLICY)
    equip(here)
    guest, other = await here.join("guest-token"), await here.join()
    reply = await guest.call("echo", 1)
    assert reply == {"error": "Permission denied", "code": "permission_denied", "retryable": False}
    assert await guest.call("shout", "mine") == {"result": "mine"}
    assert await guest.call("ping") == {"result": "ping"}
    assert await other.next() == {"zKey": "shout", "result": "mine"}


@pytest_twisted.ensureDeferred
async def test_the_program_speaks(world):
    """A string as it is, anything else as JSON; to everybody, or to all but one; in order."""
    here = await world()
    clients = [await here.join(), await here.join("bob-token"), await here.join("guest-token")]
    assert here.bifrost.broadcast("plain text") == 3
    assert here.bifrost.broadcast({"a": 1}, sender=here.bifrost.clients[0]) == 2
    for client in clients:
        assert await client.next() == "plain text"
    for client in clients[1:]:
        assert await client.next() == {"a": 1}
    await here.settled()
    assert clients[0].items() == []


@pytest_twisted.ensureDeferred
async def test_a_command_sends_to_its_caller(world):
    """Before the reply, and to nobody else."""
    here = await world()
    equip(here)
    client, other = await here.join(), await here.join("bob-token")
    client.send({"zKey": "push", "zHorizontal": "look", "_requestId": 1})
    assert await client.next() == {"event": "display", "data": "look"}
    assert await client.next() == {"result": None, "_requestId": 1}
    await other.call("ping")
    assert other.items() == []


@pytest.mark.parametrize(
    ("how", "ending"),
    [
        pytest.param({"token": None}, (1008, "Authentication required"), id="no-token"),
        pytest.param({"token": "wrong"}, (1008, "Invalid token"), id="wrong-token"),
        pytest.param({"origin": "http://evil.example"}, (1008, "Invalid origin"), id="origin"),
        pytest.param({"token": None, "origin": "http://evil.example"}, (1008, "Invalid origin"), id="origin-first"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_is_not_let_in(world, how: dict, ending: tuple[int, str]):
    """The code and the reason; nothing it sends is looked at; it hears nothing."""
    here = await world()
    client = await here.join(**how)
    client.send({"zKey": "ping", "_requestId": 1})
    assert await client.ended() == ending
    assert client.items() == [] and len(here.bifrost.registry) == 0
    assert here.bifrost.factory.state.commands == 0
    assert here.bifrost.factory.drops["refused: " + ending[1]] == 1


@pytest_twisted.ensureDeferred
async def test_without_authentication_everybody_is_a_guest(world):
    """A token is not looked at."""
    here = await world(require_auth=False)
    equip(here)
    client = await here.join(None)
    assert await client.call("who") == {"result": ["anonymous", "guest", "127.0.0.1"]}


@pytest_twisted.ensureDeferred
async def test_a_full_server(world):
    """The connection is refused with HTTP 503; one that leaves makes room."""
    here = await world(connections=1)
    first = await here.join()
    second = await here.join("bob-token")
    assert (await second.ended())[0] == 1006
    assert await first.call("ping") == {"result": "ping"}
    first.vanish()
    await here.until(lambda: len(here.bifrost.registry) == 0, "the first to leave")
    assert await (await here.join()).call("ping") == {"result": "ping"}


@pytest.mark.parametrize(
    ("sent", "ending", "cause"),
    [
        pytest.param([b"binary"], (1003, "Text messages only"), "close_1003", id="binary"),
        pytest.param(["x" * 501], (1009, "Message too big"), "close_1009", id="too-big"),
        pytest.param(["x" * 2000], (1009, "Message too big"), "close_1009", id="much-too-big"),
        pytest.param(["\ud800"], (1007, "Invalid payload"), "close_1007", id="not-utf-8"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_ends_a_connection(world, sent: list, ending: tuple[int, str], cause: str):
    """The right close code and reason, the registry without it, and a count; others stay."""
    here = await world(message_size=500)
    client, other = await here.join(), await here.join("bob-token")
    for message in sent:
        client.send(message)
    assert await client.ended() == ending
    assert await other.call("ping") == {"result": "ping"}
    assert len(here.bifrost.registry) == 1
    await here.until(lambda: here.bifrost.factory.drops, "its being counted")
    assert here.bifrost.factory.drops == {cause: 1}


@pytest_twisted.ensureDeferred
async def test_contact_r02_a_client_that_is_too_fast_is_slowed(world):
    """Its burst is answered at once, the rest at its rate, all of it and in order; others are not slowed."""
    here = await world(frame_rate=20, frame_burst=50)
    client, other = await here.join(), await here.join("bob-token")
    began = here.bifrost._reactor.seconds()
    for number in range(80):
        client.send({"zKey": "ping", "zHorizontal": number})
    assert await other.call("ping") == {"result": "ping"}
    assert [await client.next() for _ in range(50)] == [{"result": number} for number in range(50)]
    assert [await client.next() for _ in range(30)] == [{"result": number} for number in range(50, 80)]
    assert here.bifrost._reactor.seconds() - began > 1.2
    assert client.ending() is None and here.bifrost.factory.drops == {}


@pytest_twisted.ensureDeferred
async def test_contact_r02_a_flood_is_ended(world, monkeypatch: pytest.MonkeyPatch):
    """With 1008, once it has been one for its time, which is no ten seconds here."""
    monkeypatch.setattr(session, "FLOOD_TIME", 1.5)
    here = await world(frame_rate=20, frame_burst=50)
    client, other = await here.join(), await here.join("bob-token")
    clock = here.bifrost._reactor
    began = clock.seconds()
    while client.ending() is None:
        for _ in range(20):
            client.send({"zKey": "ping"})
        due = clock.seconds() + 0.05
        await here.until(lambda due=due: clock.seconds() >= due, "the next of the flood")
    assert client.ending() == (1008, "Rate limit exceeded") and clock.seconds() - began >= 1.5
    assert len(client.items()) <= 50 + 20 * (clock.seconds() - began) + 1
    assert await other.call("ping") == {"result": "ping"}
    await here.until(lambda: here.bifrost.factory.drops, "its being counted")
    assert here.bifrost.factory.drops == {"rate_limit": 1}


@pytest_twisted.ensureDeferred
async def test_a_message_of_the_limit_is_one(world):
    """To the byte."""
    here = await world(message_size=500)
    client = await here.join()
    client.send('{"zKey":"ping","zHorizontal":"' + "x" * 468 + '"}')
    assert len((await client.next())["result"]) == 468


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_ends_what_it_had_running(world):
    """Its commands are cancelled, nobody else's are."""
    here = await world()
    waiting = equip(here)
    client, other = await here.join(), await here.join("bob-token")
    client.send({"zKey": "wait"})
    await here.until(lambda: waiting, "the command")
    other.send({"zKey": "wait", "_requestId": 5})
    await here.until(lambda: len(waiting) == 2, "the other one's command")
    client.vanish()
    await here.until(lambda: waiting[0].called, "the end of the command")
    waiting[1].callback("done")
    assert await other.next() == {"result": "done", "_requestId": 5}
    assert len(here.bifrost.registry) == 1
    assert await other.call("ping") == {"result": "ping"}


@pytest_twisted.ensureDeferred
async def test_the_server_ends_a_connection(world):
    """With a code and a reason of the program's."""
    here = await world()
    client = await here.join()
    here.bifrost.clients[0].close(4001, "Enough")
    assert await client.ended() == (4001, "Enough")
    assert here.bifrost.clients == []


@pytest.mark.parametrize("others", [1, 2])
@pytest_twisted.ensureDeferred
async def test_what_a_client_changed_as_it_left_is_told(world, others: int):
    """By whoever is still there, be it one; the sender is gone, and no reply goes to it."""
    here = await world()
    waiting = equip(here)

    @here.bifrost.command("leave", broadcast=True)
    def leave(horizontal, client):
        client.close(4001, "Left")
        return horizontal

    @here.bifrost.command("commit", broadcast=True)
    def commit(horizontal):
        # The row is there, whoever cancels the command.
        waiting.append(Deferred(lambda deferred: deferred.callback(horizontal)))
        return waiting[-1]

    members = [await here.join() for _ in range(others)]
    client = await here.join()
    client.send({"zKey": "leave", "zHorizontal": 1, "_requestId": 1})
    assert await client.ended() == (4001, "Left")
    for member in members:
        assert await member.next() == {"zKey": "leave", "result": 1}
    client = await here.join()
    client.send({"zKey": "commit", "zHorizontal": 2, "_requestId": 2})
    await here.until(lambda: len(waiting) == 1, "its command")
    here.bifrost.clients[-1].close(4002)
    for member in members:
        assert await member.next() == {"zKey": "commit", "result": 2}
    assert client.items() == []


@pytest.mark.parametrize(
    ("reason", "seen"), [("r" * 123, "r" * 123), ("r" * 200, "r" * 123), ("é" * 100, "é" * 61), ("", "")]
)
@pytest_twisted.ensureDeferred
async def test_a_close_reason_has_its_room(world, reason: str, seen: str):
    """What a close frame has no room for is cut off between two characters."""
    here = await world()
    client = await here.join()
    here.bifrost.clients[0].close(4001, reason)
    assert await client.ended() == (4001, seen)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1012, 1014, 3000, 4999, CloseCode.GOING_AWAY])
@pytest_twisted.ensureDeferred
async def test_a_close_code_that_may_be_sent(world, code: int):
    """Those of the RFC and its registry, those of libraries, and those of programs."""
    here = await world()
    client = await here.join()
    here.bifrost.clients[0].close(code, "Bye")
    assert await client.ended() == (code, "Bye")


@pytest.mark.parametrize(
    ("error", "named", "goodbye"),
    [
        *((ValueError, "code", (code, "x")) for code in (-1, 0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)),
        *((ValueError, "code", (code, "x")) for code in (65536, 10**30, CloseCode.ABNORMAL)),
        *((TypeError, "code", (code, "x")) for code in ("1000", 1000.0, None, True)),
        *((TypeError, "reason", (1000, reason)) for reason in (None, b"x", 5)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_close_code_that_nobody_may_send(world, error: type[Exception], named: str, goodbye: tuple[Any, Any]):
    """Is the caller's error, by the name of the argument; the connection stays."""
    here = await world()
    client = await here.join()
    member = here.bifrost.clients[0]
    with pytest.raises(error, match=f"^{named}: "):
        member.close(*goodbye)
    assert await client.call("ping") == {"result": "ping"} and client.ending() is None
    client.vanish()
    await here.until(lambda: not here.bifrost.clients, "the client to be gone")
    with pytest.raises(error, match=f"^{named}: "):
        member.close(*goodbye)


class Named(Outcome):
    """A program's own kind of outcome."""


@pytest_twisted.ensureDeferred
async def test_an_outcome_of_a_programs_own_kind(world):
    """Is one: at once, later, and for those who hear of it."""
    here = await world()
    here.bifrost.command("now")(lambda: Named(1, changed=True))
    here.bifrost.command("later")(lambda: succeed(Named(2, changed=True)))
    client, other = await here.join(), await here.join("bob-token")
    for result, key in ((1, "now"), (2, "later")):
        assert await client.call(key) == {"result": result}
        assert await other.next() == {"zKey": key, "result": result}


@pytest_twisted.ensureDeferred
async def test_a_goodbye_waits_its_turn(world):
    """A client that does not read yet has what was sent before, then the goodbye."""
    here = await world(queue_size=10_000_000)
    client = await here.join()
    member = here.bifrost.clients[0]
    client.stop_reading()
    here.bifrost.broadcast("y" * 800_000)
    await here.settled()
    here.bifrost.broadcast("waiting")
    await here.settled()
    member.close(1008, "expired")
    assert member not in here.bifrost.clients and client.ending() is None
    client.read_again()
    assert await client.next() == "y" * 800_000
    assert await client.next() == "waiting"
    assert await client.ended() == (1008, "expired")
    await here.until(lambda: here.bifrost.factory.drops["close_1008"] == 1, "its being counted")


@pytest_twisted.ensureDeferred
async def test_a_goodbye_to_one_that_never_reads(world):
    """It is cut off when its time to answer is up, and counted by what it would have been told."""
    here = await world(queue_size=10_000_000)
    client = await here.join()
    member = here.bifrost.clients[0]
    client.stop_reading()
    here.bifrost.broadcast("y" * 6_000_000)
    await here.settled()
    member.close(1008, "expired")
    await here.until(lambda: here.bifrost.factory.drops, "its being counted")
    client.read_again()
    assert await client.ended() == (1006, "")
    assert here.bifrost.factory.drops == {"close_1008": 1}


@implementer(ICredentialsChecker)
class Undecided:
    """Answers when the test does.

    :ivar asked: what it has been asked, and has not answered.
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(self) -> None:
        self.asked: list[Deferred] = []

    def requestAvatarId(self, credentials: Any) -> Deferred:
        self.asked.append(Deferred())
        return self.asked[-1]


@pytest_twisted.ensureDeferred
async def test_handshakes_wait_for_a_place(world):
    """So many of one peer are decided at a time; the others follow."""
    checker = Undecided()
    here = await world(checker=checker, pending=2, pending_per_peer=1)
    clients = [await here.arrive() for _ in range(4)]
    pending = here.bifrost.factory.pending
    for number in range(4):
        await here.until(lambda number=number: pending.waiting == 3 - number, "the others to wait")
        await here.until(lambda number=number: len(checker.asked) == number + 1, "the question")
        assert pending.count == 1 and len(here.bifrost.registry) == number
        checker.asked[number].callback(Identity(f"user{number}", "admin"))
        await here.until(lambda number=number: sum(one.is_decided() for one in clients) == number + 1, "one let in")
    assert [client.identity.name for client in here.bifrost.clients] == ["user0", "user1", "user2", "user3"]
    assert (pending.count, pending.waiting) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_more_than_may_wait_are_turned_away(world):
    """The line of one peer is bounded: for who comes besides, one of it is hung up on, and counted."""
    here = await world(checker=Undecided(), pending=2, pending_per_peer=1)
    pending = here.bifrost.factory.pending
    first = [await here.arrive() for _ in range(17)]
    await here.until(lambda: pending.waiting == 16, "a full line")
    last = await here.arrive()
    await here.until(lambda: sum(client.is_decided() for client in first) == 1, "one to be turned away")
    turned_away = next(client for client in first if client.is_decided())
    assert await turned_away.ended() == (1006, "") and not last.is_decided()
    assert here.bifrost.factory.drops == {"pending_limit": 1} and pending.waiting == 16


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_is_never_decided(world):
    """It ends with the time for it, as a check that failed."""
    here = await world(checker=Undecided(), handshake_timeout=0.2)
    client = await here.arrive()
    assert (await client.ended())[0] == 1011
    assert len(here.bifrost.registry) == 0


@pytest_twisted.ensureDeferred
async def test_a_stop_during_a_handshake(world):
    """Who is undecided, or waits, is cut off; the answer that comes later lets nobody in."""
    checker = Undecided()
    here = await world(checker=checker, pending=2, pending_per_peer=1)
    clients = [await here.arrive() for _ in range(2)]
    await here.until(lambda: here.bifrost.factory.pending.waiting == 1 and checker.asked, "the question")
    stopped: list[Any] = []
    here.stop().addBoth(stopped.append)
    for client in clients:
        assert await client.ended() == (1006, "")
    await here.until(lambda: stopped, "the server to stop")
    assert stopped == [None] and checker.asked[0].called and len(checker.asked) == 1
    # Cancelled: what its checker says now is heard by nobody.
    checker.asked[0].callback(Identity("late", "admin"))
    assert here.bifrost.clients == [] and here.bifrost.factory.drops == {"shutdown": 2}
    assert (here.bifrost.factory.pending.count, here.bifrost.factory.pending.waiting) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_close_clients_picks(world):
    """Those it is told to; with a code to come back on as long as their tokens are good."""
    here = await world()
    alice, bob = await here.join(), await here.join("bob-token")
    assert here.bifrost.close_clients(lambda client: client.identity.name == "bob") == 1
    assert await bob.ended() == (1013, "Session expired")
    assert await alice.call("ping") == {"result": "ping"}


@pytest_twisted.ensureDeferred
async def test_a_slow_consumer_is_given_up(world):
    """When its queue is full; the one that reads has everything, in order."""
    here = await world(queue_size=64 * 1024)
    slow, good = await here.join(), await here.join("bob-token")
    slow.stop_reading()
    sent = 0

    def flood() -> bool:
        nonlocal sent
        if len(here.bifrost.registry) == 1:
            return True
        here.bifrost.broadcast({"n": sent, "fill": "x" * 50_000})
        sent += 1
        return False

    await here.until(flood, "the slow one to be given up")
    for number in range(sent):
        assert (await good.next())["n"] == number
    assert await good.call("ping") == {"result": "ping"}


@pytest_twisted.ensureDeferred
async def test_a_dead_peer_is_dropped(world):
    """Within two ping intervals, without a word."""
    here = await world(ping_interval=0.2)
    dead = await here.join()
    dead.stop_reading()
    await here.until(lambda: len(here.bifrost.registry) == 0, "the dead one to be dropped")
    await here.until(lambda: here.bifrost.factory.drops["ping_timeout"] == 1, "its being counted")


@pytest_twisted.ensureDeferred
async def test_prompts(world):
    """Asked of one client, answered by it alone, once."""
    here = await world()
    client, other = await here.join(), await here.join("bob-token")
    member = min(here.bifrost.clients, key=lambda member: member.id)
    answers: list[Any] = []
    here.bifrost.ask(member, {"kind": "confirm", "label": "Sure?"}).addBoth(answers.append)
    message = await client.next()
    assert message["event"] == "ask" and message["prompt"]["kind"] == "confirm"
    answer = {"askId": message["askId"], "value": True}
    assert (await other.call("zAnswer", answer))["code"] == "not_found"
    assert (await client.call("zAnswer", {**answer, "value": "yes"}))["code"] == "invalid"
    assert await client.call("zAnswer", answer) == {"result": True}
    assert answers == [True]
    assert (await client.call("zAnswer", answer))["code"] == "not_found"


@pytest_twisted.ensureDeferred
async def test_shutdown(world):
    """Everybody gets 1001; when it has stopped nobody is left and nobody is let in."""
    here = await world()
    clients = [await here.join(), await here.join("bob-token")]
    stopped: list[Any] = []
    here.stop().addBoth(stopped.append)
    for client in clients:
        assert await client.ended() == (1001, "Server is shutting down")
    await here.until(lambda: stopped, "the server to stop")
    assert stopped == [None] and len(here.bifrost.registry) == 0
