"""The Python client against a real server over loopback TCP."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import math
import random
import time
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.served import Served
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock, LoopingCall

from zcomm import errors
from zcomm.client import Client, connect
from zcomm.client.calls import Calls
from zcomm.client.repeated import retry_delay
from zcomm.wire.frames import header

Join = Callable[..., Any]


async def failure_of(deferred: Deferred[Any]) -> Exception:
    """What a Deferred fails with."""
    try:
        result = await deferred
    except Exception as error:
        return error
    raise AssertionError(f"it did not fail: {result!r}")


@pytest_twisted.ensureDeferred
async def test_models(join: Join):
    """Create, read, update, delete and upsert, by id, by ids and by filter."""
    client = await join()
    alice = await client.create("Users", {"name": "Alice", "email": "alice@example.com", "age": 30})
    bob = await client.upsert("Users", {"name": "Bob", "email": "bob@example.com", "age": 17}, "email")
    assert await client.read("Users", {"age__gte": 18}) == [alice]
    assert await client.read("Users", [alice["id"], bob["id"]], {"fields": ["name"], "order_by": "name DESC"}) == [
        {"name": "Bob"},
        {"name": "Alice"},
    ]
    assert await client.update("Users", alice["id"], {"verified": True}) == {"updated": 1}
    assert (await client.read("Users", alice["id"]))[0]["verified"] is True
    assert await client.upsert("Users", {"email": bob["email"], "name": "Bobby"}, ["email"]) == {**bob, "name": "Bobby"}
    assert await client.delete("Users", bob["id"]) == {"deleted": 1}
    assert isinstance(await failure_of(client.delete("Users", None)), errors.Invalid)
    assert await client.delete("Users", None, all=True) == {"deleted": 1}
    assert await client.update("Users", None, {"age": 1}, all=True) == {"updated": 0}


@pytest_twisted.ensureDeferred
async def test_forms_and_raw_commands(join: Join, served: Served):
    """Functions, pages, files, anything else; arguments of any JSON form arrive as they were."""
    client = await join()
    assert await client.zFunc("zFunc(calculateTotal, {cart_id: 123})") == {"given": {"cart_id": 123}}
    assert await client.zFunc("echo", "a, b)", [1, None], {"ü": 1.5}) == [["a, b)", [1, None], {"ü": 1.5}], {}]
    assert (await client.zLink("/admin/users"))["title"] == "Users"
    assert (await client.zOpen("zOpen(config.yaml)"))["text"] == "answer: 42\n"
    payload = {"zKey": "ping", "zHorizontal": [datetime.date(2024, 1, 1)]}
    assert await client.send(payload, 10) == ["2024-01-01"]
    assert await client.send({"cmd": "ping"}) == "ping"
    assert payload == {"zKey": "ping", "zHorizontal": [datetime.date(2024, 1, 1)]}


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda client: client.read("Nothing"), errors.UnknownModel),
        (lambda client: client.read("Users", {"nmae": 1}), errors.UnknownField),
        (lambda client: client.create("Users", {"name": "A", "age": "old"}), errors.Invalid),
        (lambda client: client.zFunc("missing"), errors.UnknownCommand),
        (lambda client: client.zFunc("wrong"), errors.Invalid),
        (lambda client: client.zOpen("missing.yaml"), errors.NotFound),
        (lambda client: client.send({"zKey": ""}), errors.BadMessage),
    ],
    ids=["model", "field", "values", "function", "declared", "file", "key"],
)
@pytest_twisted.ensureDeferred
async def test_the_servers_errors(join: Join, call: Callable[[Any], Deferred[Any]], kind: type[Exception]):
    """Each comes as its own type, with the server's words and fields."""
    error = await failure_of(call(await join()))
    assert type(error) is kind and str(error)
    if kind is errors.Invalid:
        assert error.fields


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda client: client.read(""), TypeError),
        (lambda client: client.read("Users", 1.5), TypeError),
        (lambda client: client.read("Users", True), TypeError),
        (lambda client: client.read("Users", {"age__gte": float("nan")}), ValueError),
        (lambda client: client.create("Users", {"age": [float("inf")]}), ValueError),
        (lambda client: client.create("Users", {"age": object()}), TypeError),
        (lambda client: client.zFunc("echo", float("nan")), ValueError),
        (lambda client: client.zFunc("echo", idempotency_key="k"), TypeError),
    ],
)
@pytest_twisted.ensureDeferred
async def test_arguments_that_cannot_be_sent(join: Join, call: Callable[[Any], Any], kind: type[Exception]):
    """They raise at once, and the connection goes on."""
    client = await join()
    with pytest.raises(kind):
        call(client)
    assert await client.send({"zKey": "ping"}) == "ping"


@dataclasses.dataclass
class Measured:
    """A value of a program's own, of those that JSON has a form for."""

    height: Any


class Coded(enum.Enum):
    """A choice of a program's own."""

    A = b"a"


@dataclasses.dataclass
class Dated:
    """Another one."""

    at: datetime.datetime


@pytest_twisted.ensureDeferred
async def test_contact_r12_what_json_has_no_form_for_is_refused_everywhere(join: Join):
    """By each call, with the place, and nothing is sent; what has a form arrives whole."""
    client = await join()
    endless: list[Any] = []
    endless.append(endless)
    holes = (
        math.nan,
        math.inf,
        -math.inf,
        Decimal("NaN"),
        Decimal("-Infinity"),
        Measured(math.nan),
        Measured(Decimal("NaN")),
        b"abc",
        bytearray(b"x"),
        memoryview(b"x"),
        [{"a": (b"",)}],
        {b"a": 1},
        {1: {b"b"}},
        Measured({"a": [b"x"]}),
        Coded.A,
        [{"a": (math.nan,)}],
        {math.inf},
        object(),
        len,
        {None: 1},
        "caf\udce9",
        {"\ud800": 1},
        endless,
        10**5000,
        (each for each in [1]),
    )
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda hole: client.create("Users", {"name": "A", "age": hole}),
        lambda hole: client.update("Users", 1, {"age": hole}),
        lambda hole: client.update("Users", {"age": hole}, {"age": 1}),
        lambda hole: client.upsert("Users", {"age": hole}),
        lambda hole: client.read("Users", {"$or": [{"age": hole}]}),
        lambda hole: client.delete("Users", {"age__in": [hole]}),
        lambda hole: client.zFunc("echo", 1, [hole]),
        lambda hole: client.call("echo", [hole]),
        lambda hole: client.call("echo", kwargs={"value": hole}),
        lambda hole: client.send({"zHorizontal": hole}),
        lambda hole: client.send({"zKey": "ping", "zHorizontal": {"deep": [hole]}}),
    )
    for call in calls:
        for hole in holes:
            with pytest.raises(TypeError):
                call(hole)
    with pytest.raises(TypeError, match=r"^values\.age\[1\] is nan, which JSON has no form for"):
        client.create("Users", {"age": [1, math.nan]})
    with pytest.raises(TypeError, match=r"^values\.age\.a is bytes, .*give a text as a str, and bytes in base64"):
        client.create("Users", {"age": {"a": b"x"}})
    with pytest.raises(TypeError, match=r"^values\.age is sNaN, which JSON has no form for"):
        client.create("Users", {"age": Decimal("sNaN")})
    with pytest.raises(TypeError, match=r"^values\.age has two keys that are one text"):
        client.create("Users", {"age": {1: "a", "1": "b"}})
    odd = datetime.timezone(datetime.timedelta(minutes=9, seconds=21))
    with pytest.raises(TypeError, match=r"^values\.age\[0\] is 12:00:00\+00:09:21, whose offset JSON has no form for"):
        client.create("Users", {"age": [datetime.time(12, tzinfo=odd)]})
    assert len(client._calls) == 0
    # That of Paris.
    first = datetime.datetime(1900, 6, 1, 12, tzinfo=odd)
    for value, form in (
        # Its offset has seconds, which is not written.
        (first, "1900-06-01T11:50:39Z"),
        ([{"at": first}, Dated(first)], [{"at": "1900-06-01T11:50:39Z"}, {"at": "1900-06-01T11:50:39Z"}]),
        (datetime.datetime.fromisoformat("2024-01-02T03:04:05+01:00"), "2024-01-02T03:04:05+01:00"),
        ([None, "NaN", "Infinity", 'say "NaN"', {"nan": None}], ...),
        (Decimal("1.50"), "1.50"),
        (Measured(1.5), {"height": 1.5}),
        ([None, Measured(1.5)], [None, {"height": 1.5}]),
        ((1, 2), [1, 2]),
        (10**30, ...),
        (
            {1: {"a": True}, uuid.UUID(int=7): [Measured("x"), {2}]},
            {"1": {"a": True}, f"{uuid.UUID(int=7)}": [{"height": "x"}, [2]]},
        ),
    ):
        assert await client.send({"zKey": "ping", "zHorizontal": value}) == (value if form is ... else form)


@pytest_twisted.ensureDeferred
async def test_contact_r26_a_message_that_is_too_large_fails_alone(join: Join, served: Served):
    """It is not sent: the connection lives, and the calls beside it; one of just the limit arrives."""
    client = await join()
    gate: Deferred[str] = Deferred()
    served.bifrost.command("beside")(lambda: gate)
    beside = client.send({"zKey": "beside"})
    around = len(b'{"zKey":"ping","zHorizontal":"","_requestId":100}')
    calls = [client.send({"zKey": "ping", "zHorizontal": "x" * size}) for size in (1024 * 1024, 2_000_000, 5000)]
    for call in calls[:2]:
        error = await failure_of(call)
        assert type(error) is errors.Invalid and "1048576" in str(error) and not error.retryable
    assert await calls[2] == "x" * 5000
    assert len(await client.send({"zKey": "ping", "zHorizontal": "x" * (1024 * 1024 - around)})) == 1024 * 1024 - around
    assert isinstance(await failure_of(client.send({"zKey": "ping", "zHorizontal": "é" * 600_000})), errors.Invalid)
    gate.callback("still there")
    assert await beside == "still there"
    assert client.state == "connected"
    abandoned = client.send({"zKey": "ping", "zHorizontal": "x" * 2_000_000})
    abandoned.cancel()
    assert isinstance(await failure_of(abandoned), CancelledError)
    # A server that lied would cut it off with 1009: it comes back.
    for connection in list(served.bifrost.registry):
        connection.close(1009, "Message too big")
    await wait_until(lambda: client.state == "reconnecting", "the loss")
    await wait_until(lambda: client.state == "connected", "the client back")


@pytest_twisted.ensureDeferred
async def test_contact_a_message_that_is_too_deep_fails_alone(tmp_path: Path):
    """By the limit that the server has told, and whatever stands in it; one of just the limit arrives."""
    served = await Served(tmp_path, limits={"json_depth": 7}).start()
    try:
        client = await connect(served.bifrost.url, served.admin)
        nested = functools.partial(functools.reduce, lambda inner, _: [inner])
        fine = {"zKey": "ping", "zHorizontal": nested(range(6), '[[[["'), "more": '}"\\'}
        assert await client.send(fine) == fine["zHorizontal"]
        for deep in (nested(range(7), 1), [nested(range(80), "x")] * 2000):
            error = await failure_of(client.send({"zKey": "ping", "zHorizontal": deep}))
            assert type(error) is errors.Invalid and "more than the 7 levels of nesting" in str(error)
        assert served.bifrost.factory.state.errors == {}
        # A server that does not tell it says so itself, and the answer finds its call.
        client._protocol.json_depth = None  # type: ignore[union-attr]
        for wide in (1, 20_000):
            deep = [nested(range(80), "x")] + [[[[1]]]] * wide
            assert type(await failure_of(client.send({"zKey": "ping", "zHorizontal": deep}))) is errors.BadMessage
        await client.disconnect()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_contact_a_wait_that_is_cancelled_is_nobody_elses(join: Join, served: Served):
    """Whoever waits beside it is told of the connection, and one that was lost comes back."""
    client = Client(served.bifrost.url, served.admin)
    waits = [client.connect() for _ in range(4)]
    waits[0].cancel()
    waits[2].addTimeout(0.0, reactor)
    assert isinstance(await failure_of(waits[0]), errors.ConnectionLost)
    assert await waits[1] is await waits[3] is client
    failures: list[Any] = []

    def give_up(state: str) -> None:
        if state == "reconnecting":
            for wait in [client.connect().addErrback(failures.append) for _ in range(3)]:
                wait.cancel()

    client.on("state", give_up)
    for connection in list(served.bifrost.registry):
        connection.close(1012, "Restart")
    await wait_until(lambda: failures != [], "the loss")
    assert [failure.type for failure in failures] == [errors.ConnectionLost] * 3
    await wait_until(lambda: client.state == "connected", "the client back")
    await client.disconnect()
    # A first attempt that nobody waits for is given up, and may be made again.
    again = client.connect()
    again.cancel()
    assert isinstance(await failure_of(again), errors.ConnectionLost)
    assert client.state == "disconnected"
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_contact_r01_an_error_that_answers_nothing_is_no_broadcast(join: Join, served: Served):
    """It is an ``error`` event; what a program says with such words is still heard."""
    client = await join()
    heard: list[Any] = []
    told: list[Any] = []
    client.on_broadcast(heard.append)
    client.on("error", told.append)
    (connection,) = list(served.bifrost.registry)
    connection.send({"error": "Invalid JSON", "code": "bad_message", "retryable": False})
    connection.send({"error": "of the program"})
    connection.send({"zKey": "f", "error": "x", "code": "y", "retryable": False})
    await wait_until(lambda: len(heard) == 2, "what the program says")
    assert [type(error) for error in told] == [errors.BadMessage]
    # Each of what the server refuses finds its call.
    for horizontal in ([[]] * 2, functools.reduce(lambda inner, _: [inner], range(70), [])):
        call = client.send({"zKey": "ping", "zHorizontal": horizontal})
        assert isinstance(await failure_of(call), errors.Invalid) if len(horizontal) == 1 else await call == horizontal
    served.forget()


def test_contact_r13_an_answer_that_came_meanwhile_counts():
    """The process stood still when a call's time was over: what came is read before the call is late, however long it
    stood still, and however many other messages are read first."""
    for still in (0.0, 0.1, 0.5, 0.9, 5.0, 60.0):
        for others in (0, 1, 100):
            for is_silent in (False, True):
                clock, sent, questions = Clock(), [], []

                def ask(questions: list[Deferred[Any]] = questions) -> Deferred[Any]:
                    questions.append(Deferred())
                    return questions[-1]

                calls = Calls(clock, paused=lambda: False, most=64, ask=ask)
                answered, silent = (
                    calls.start("x", 1, 4.0, lambda number, _, sent=sent: sent.append(number)) for _ in range(2)
                )
                results, late = [], []
                answered.addBoth(results.append)
                silent.addErrback(late.append)
                clock.advance(3.9)
                # Time passes, and nothing of this process runs.
                clock.rightNow += 0.1 + still
                clock.advance(0)
                for _ in range(others):
                    # Each takes its time, in which timers are due before the next one is read.
                    calls.heard += 1
                    clock.rightNow += 0.3
                    clock.advance(0)
                assert results == late == []
                calls.heard += 1
                calls.settle({"_requestId": sent[0], "result": "came meanwhile"})
                assert results == ["came meanwhile"] and late == []
                if is_silent:
                    clock.pump([0.05] * 12)
                else:
                    questions[-1].callback("answered behind all others")
                assert late[0].check(errors.CommandTimeout)
                assert not clock.getDelayedCalls() and len(calls) == 0


def lose_a_connection(dice: random.Random) -> None:
    """With calls that wait, are under way and are overdue, of which some do something when they fail."""
    clock, heard, begun = Clock(), [], []
    calls = Calls(clock, paused=lambda: False, most=3, ask=lambda: begin("ping", 10.0, urgent=True))

    def begin(key: str, timeout: float, *, urgent: bool = False) -> Deferred[Any]:
        call = calls.start(key, 1, timeout, lambda *_: None, urgent=urgent)
        begun.append(call)
        number = len(begun)

        def settled(_: Any) -> None:
            heard.append(number)
            if is_lost and len(begun) < 20:
                what = dice.choice(["nothing", "cancel", "cancel", "begin", "all"])
                if what == "cancel":
                    dice.choice(begun).cancel()
                elif what == "begin":
                    begin("x", 5.0)
                elif what == "all":
                    calls.fail_all(errors.ConnectionLost(1000, "closed"))

        return call.addErrback(lambda failure: settled(failure) or failure).addErrback(lambda _: None)

    is_lost = False
    for _ in range(8):
        begin("x", dice.choice([1.0, 1.0, 5.0]))
    clock.advance(dice.choice([0.0, 1.2]))
    is_lost = True
    calls.fail_all(errors.ConnectionLost(1006, "gone"))
    calls.fail_all(errors.ConnectionLost(1006, "gone"))
    clock.pump([0.5] * 400)
    assert sorted(heard) == [*range(1, len(begun) + 1)]
    assert len(calls) == 0 and not clock.getDelayedCalls()


def test_contact_each_call_of_a_lost_connection_is_settled_once():
    """Whatever settling one of them does to the others: a question of an overdue one goes with it, and whoever hears of
    one cancels others, begins new ones or fails all again."""
    dice = random.Random(8)
    for _ in range(300):
        lose_a_connection(dice)


@pytest.mark.parametrize("still", [0.1, 0.5, 0.9])
@pytest_twisted.ensureDeferred
async def test_contact_r13_an_answer_behind_many_others(join: Join, served: Served, still: float):
    """It has left the server before the client's process stands still, and takes a while to be read."""
    client = await join()
    heard: list[Any] = []
    client.on_broadcast(heard.append)
    answer: Deferred[str] = Deferred()
    served.bifrost.command(f"behind {still}")(lambda: answer)
    call = client.send({"zKey": f"behind {still}"}, 0.05)
    await wait_until(lambda: any(each.running for each in served.bifrost.clients), "the command")
    (inside,) = [each for each in served.bifrost.clients if each.running]
    for _ in range(300):
        inside.send("x" * 1000)
    answer.callback("behind")
    busy = time.monotonic() + still
    while time.monotonic() < busy:
        pass  # the program computes: no timer fires, and nothing is read
    assert await call == "behind" and len(heard) == 300


@pytest_twisted.ensureDeferred
async def test_contact_the_greeting_has_a_time_of_its_own(served: Served, monkeypatch: pytest.MonkeyPatch):
    """However long a call may take, who is not let in does not wait for that."""
    monkeypatch.setattr("zcomm.client.client.GREETING", 0.05)
    commands = served.bifrost.dispatcher.commands
    monkeypatch.setitem(commands, "zDescribe", lambda *_: Deferred())
    error = await failure_of(connect(served.bifrost.url, served.admin, timeout=1e9, reconnect=False))
    assert isinstance(error, errors.ConnectionLost)


@pytest_twisted.ensureDeferred
async def test_contact_the_limits_of_the_server_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No call is refused or lost where the server allows less than usual, nor the connection when it is too busy for a
    ping."""
    monkeypatch.setattr("zcomm.client.client.HEARTBEAT", 0.02)
    served = await Served(tmp_path, limits={"in_flight": 2, "message_size": 3000}).start()
    try:
        gate: Deferred[None] = Deferred()
        running = most = 0

        @served.bifrost.command("slow")
        async def slow(horizontal: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await gate
            running -= 1
            return horizontal

        client = await connect(served.bifrost.url, served.admin)
        states: list[str] = []
        client.on("state", states.append)
        calls = [client.send({"zKey": "slow", "zHorizontal": [n, "x" * 2000]}) for n in range(10)]
        large = await failure_of(client.send({"zKey": "ping", "zHorizontal": "x" * 3000}, 0.01))
        assert isinstance(large, errors.CommandTimeout)  # it waits for its turn as the others do
        await wait_until(lambda: served.bifrost.factory.state.errors.get("too_busy", 0) > 2, "some heartbeats")
        gate.callback(None)
        assert [(await call)[0] for call in calls] == list(range(10))
        assert isinstance(await failure_of(client.send({"zKey": "ping", "zHorizontal": "x" * 3000})), errors.Invalid)
        assert (most, states, client.state) == (2, [], "connected")
        await client.disconnect()
    finally:
        await served.stop()


@pytest.mark.parametrize("answer", ["an error", None, [], {"limits": None}, {"limits": {"in_flight": 0}}])
@pytest_twisted.ensureDeferred
async def test_contact_a_server_that_does_not_tell_its_limits(
    served: Served, monkeypatch: pytest.MonkeyPatch, answer: Any
):
    """It has let the client in all the same, and has the usual ones."""

    def describe(*_: Any) -> Any:
        if answer == "an error":
            raise errors.UnknownCommand("Unknown command: zDescribe")
        return answer

    monkeypatch.setitem(served.bifrost.dispatcher.commands, "zDescribe", describe)
    client = await connect(served.bifrost.url, served.admin)
    assert len(await client.send({"zKey": "ping", "zHorizontal": "x" * 100_000})) == 100_000
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_a_message_that_takes_long_is_a_sign_of_life(join: Join, served: Served, monkeypatch: pytest.MonkeyPatch):
    """On a slow line an answer takes longer than a heartbeat, and the answer to a ping stands behind it."""
    monkeypatch.setattr("zcomm.client.client.HEARTBEAT", 0.05)
    monkeypatch.setattr("zcomm.client.client.PATIENCE", 0.05)
    client = await join()
    states: list[str] = []
    client.on("state", states.append)
    heard: list[Any] = []
    client.on("broadcast", heard.append)
    transport = next(iter(served.bifrost.registry)).transport.transport
    message = json.dumps({"zKey": "slow", "result": "x" * 100}).encode()
    pieces = iter([header(len(message)), *(bytes((byte,)) for byte in message)])

    def drip() -> None:
        piece = next(pieces, None)
        if piece is None:
            dripping.stop()
        else:
            transport.write(piece)

    commands = served.bifrost.dispatcher.commands
    dripping = LoopingCall(drip)
    with monkeypatch.context() as silent:
        silent.setitem(commands, "ping", lambda *_: Deferred())
        dripping.start(0.005)
        await wait_until(lambda: not dripping.running, "the whole message")
        await wait_until(lambda: heard, "the message")
    assert states == [] and client.state == "connected"
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_dead_without_saying_so(join: Join, served: Served, monkeypatch: pytest.MonkeyPatch):
    """A server that has fallen silent is asked, and given up when it does not answer."""
    monkeypatch.setattr("zcomm.client.client.HEARTBEAT", 0.02)
    client = await join()
    states: list[str] = []
    client.on("state", states.append)
    commands = served.bifrost.dispatcher.commands
    ping = commands["ping"]
    asked: list[Any] = []

    def silent(request: Any, _: Any) -> Deferred[None]:
        asked.append(request)
        return Deferred()

    try:
        with monkeypatch.context() as impatient:
            impatient.setattr("zcomm.client.client.PATIENCE", 0.02)
            commands["ping"] = silent
            await wait_until(lambda: asked, "the question")
            await wait_until(lambda: states[:1] == ["reconnecting"], "the end of the connection")
    finally:
        commands["ping"] = ping
    await wait_until(lambda: client.state == "connected", "the client back")
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_contact_r12_an_answer_that_cannot_be_sent_declines(join: Join, served: Served):
    """The prompt does not stay open until its time is over; the cause is in the log."""

    @served.bifrost.command("asks")
    async def asks(_: Any, client: Any) -> Any:
        return await served.bifrost.ask(client, "Number?")

    client = await join()
    for answer in (math.nan, object(), "caf\udce9"):
        client.on_ask(lambda _, answer=answer: answer)
        error = await failure_of(client.send({"zKey": "asks"}))
        assert isinstance(error, errors.Invalid) and "declined" in str(error)
    assert served.log_text.count("cannot be sent; it is declined") == 3
    served.forget()


@pytest_twisted.ensureDeferred
async def test_contact_b25_call_is_there_too(join: Join, served: Served):
    """With a list of arguments, arguments by name, and the options of a call."""

    @served.comm.program.functions.register
    def named(first: Any, second: Any = "b", third: Any = "c") -> list[Any]:
        return [first, second, third]

    client = await join()
    assert await client.call("named", [1, 2]) == [1, 2, "c"]
    assert await client.call("named", [1], kwargs={"third": 3}, timeout=20) == [1, "b", 3]
    assert await client.call("named", kwargs={"second": 2, "first": None}) == [None, 2, "c"]
    assert await client.call("echo", ("x" * 500_000,)) == [["x" * 500_000], {}]
    for wrong in (lambda: client.call("named", "ab"), lambda: client.call("named", {"a": 1}), lambda: client.call(5)):
        with pytest.raises(TypeError):
            wrong()
    for wrong in ({"timeout": "5"}, {"timeout": -1}, {"timeout": math.nan}, {"on_progress": 1}, {"retries": 2}):
        with pytest.raises(TypeError):
            client.call("named", [1], **wrong)
    (served.files / "a, b.txt").write_text("comma")
    (served.files / " blank.txt").write_text("blank")
    assert (await client.zOpen("a, b.txt"))["text"] == "comma"
    assert (await client.zOpen(" blank.txt"))["text"] == "blank"
    assert (await client.zOpen("config.yaml"))["text"] == "answer: 42\n"
    del served.comm.program.functions._functions["named"]


@pytest_twisted.ensureDeferred
async def test_an_idempotency_key_makes_one_row(join: Join):
    """The same create twice, with the same key, is one create."""
    client = await join()
    values = {"name": "Once", "email": "once@example.com"}
    first = await client.create("Users", values, idempotency_key="key-1")
    assert await client.create("Users", values, idempotency_key="key-1") == first
    await client.delete("Users", first["id"])


@pytest_twisted.ensureDeferred
async def test_broadcasts(join: Join, served: Served):
    """The others hear of a change and of what the program says; one that raises keeps none from hearing."""
    client, other = await join(), await join()
    heard: list[Any] = []

    def wrong(message: Any) -> None:
        raise RuntimeError("a listener of the test's")

    client.on_broadcast(wrong)
    stop = client.on_broadcast(heard.append)
    row = await other.create("Users", {"name": "News", "email": "news@example.com"})
    await wait_until(lambda: heard, "the news")
    assert heard == [{"zKey": "create_Users", "result": row}]
    await other.update("Users", row["id"], {"age": 7})
    await wait_until(lambda: len(heard) == 2, "the update")
    assert heard.pop()["changes"] == [{"id": row["id"], "values": {"age": 7}}]
    served.bifrost.broadcast("{not json")
    served.bifrost.broadcast([1])
    await wait_until(lambda: len(heard) == 3, "what the program says")
    assert heard[1:] == ["{not json", [1]]
    stop()
    client.remove_broadcast_listener(wrong)
    client.remove_broadcast_listener(wrong)
    await other.delete("Users", row["id"])
    assert await client.send({"zKey": "ping"}) == "ping" and len(heard) == 3
    served.forget()


@pytest_twisted.ensureDeferred
async def test_more_calls_than_the_server_takes_at_once(join: Join, served: Served):
    """They wait for their turn here; each gets its own answer."""
    gate: Deferred[None] = Deferred()
    entered: list[int] = []

    @served.bifrost.command("gated")
    async def gated(number: int) -> int:
        entered.append(number)
        waiting: Deferred[None] = Deferred()
        gate.addCallback(lambda _: waiting.callback(None))
        await waiting
        return number

    client = await join()
    calls = [client.send({"zKey": "gated", "zHorizontal": number}) for number in range(200)]
    await wait_until(lambda: len(entered) == 64, "the first of them")
    calls[150].cancel()
    calls[3].cancel()
    gate.callback(None)
    results = [await call for number, call in enumerate(calls) if number not in (3, 150)]
    assert results == [number for number in range(200) if number not in (3, 150)]
    assert isinstance(await failure_of(calls[3]), CancelledError) and 150 not in entered
    assert len(client._calls) == 0


@pytest_twisted.ensureDeferred
async def test_a_call_without_an_answer_times_out(join: Join, served: Served):
    """It fails with a timeout; the answer that comes too late is nobody's."""
    late: Deferred[str] = Deferred()
    served.bifrost.command("late")(lambda: late)
    client = await join()
    error = await failure_of(client.send({"zKey": "late"}, 0.05))
    assert isinstance(error, errors.CommandTimeout) and error.retryable
    late.callback("too late")
    assert await client.send({"zKey": "ping"}) == "ping"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("end", ["time", "connection"])
async def test_contact_an_error_without_an_answer_says_whether_to_send_again(join: Join, served: Served, end: str):
    """Not a change of a model that was sent, unless it has a key; what was not sent may be, and so may all else."""
    rows: list[tuple[str, Any, bool]] = [
        ("create_Gone", {"values": {"v": 1}}, False),
        ("update_Gone", {"where": {"id": 1}, "_idempotencyKey": None}, False),
        ("delete_Gone", {"where": {"_idempotencyKey": "k"}}, False),
        ("upsert_Gone", "a text", False),
        ("create_Gone", {"values": {"v": 1}, "_idempotencyKey": "k"}, True),
        ("read_Gone", {"where": {"id": 1}}, True),
        ("recreate_Gone", {"values": {}}, True),
    ]
    client, unsent = await join(), await join()
    unsent._calls.most = 0
    for key in {row[0] for row in rows} - set(served.bifrost.dispatcher.commands):
        served.bifrost.command(key)(lambda: Deferred())
    wait = 0.05 if end == "time" else 30
    commands = [{"zKey": key, "zHorizontal": given} for key, given, _ in rows]
    calls = [each.send(command, wait) for each in (client, unsent) for command in commands]
    ends: list[errors.ConnectionLost] = []
    client.on("close", ends.append)
    if end == "connection":
        assert await client.send({"zKey": "ping"}) == "ping"
        for connection in list(served.bifrost.registry):
            connection.close(1011)
    failures: list[Any] = [await failure_of(call) for call in calls]
    kind = errors.CommandTimeout if end == "time" else errors.ConnectionLost
    assert {type(error) for error in failures} == {kind}
    assert [error.retryable for error in failures] == [right for *_, right in rows] + [True] * len(rows)
    if end == "connection":
        assert [error.retryable for error in ends] == [True]
        assert {error.close_code for error in failures} == {1011}


@pytest_twisted.ensureDeferred
async def test_progress(join: Join, served: Served):
    """A long function says how far it is; each word of it gives the call its time again."""
    steps = [Deferred() for _ in range(3)]

    @served.comm.program.functions.register
    async def slowly(*, progress: Any) -> str:
        for number, step in enumerate(steps, 1):
            progress(number, 3, f"step {number}")
            await step
        return "done"

    @served.comm.program.functions.register
    def in_a_thread(*, progress: Any, ask: Any, identity: Any) -> str:
        progress(1)
        return f"{identity.role} {ask('Name?')}"

    client = await join()
    seen: list[Any] = []

    def on_progress(*told: Any) -> None:
        seen.append(told)
        reactor.callLater(0, steps[len(seen) - 1].callback, None)

    assert await client.zFunc("slowly", on_progress=on_progress) == "done"
    assert seen == [(1, 3, "step 1"), (2, 3, "step 2"), (3, 3, "step 3")]
    client.on_ask(lambda prompt: succeed("Bob") if prompt["label"] == "Name?" else None)
    assert await client.zFunc("in_a_thread") == "admin Bob"
    del served.comm.program.functions._functions["slowly"], served.comm.program.functions._functions["in_a_thread"]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (None, "Authentication required"),
        ("wrong-token", "Invalid token"),
        ("wrong token, with spaces", "Invalid token"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_who_is_not_let_in(served: Served, token: str | None, reason: str):
    """connect() fails with the server's words, and the token is in none of them."""
    error = await failure_of(connect(served.bifrost.url, token))
    assert isinstance(error, errors.ConnectionLost)
    assert (error.close_code, error.reason, error.retryable) == (1008, reason, False)
    assert token is None or token not in str(error)


@pytest_twisted.ensureDeferred
async def test_nobody_listens(free_port: int):
    """connect() fails with what the network says."""
    assert isinstance(await failure_of(connect(f"ws://127.0.0.1:{free_port}")), ConnectError)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:1",
        "ws://",
        "ws://127.0.0.1:1/#token=secret",
        "ws://127.0.0.1:99999",
        "ws://127.0.0.1:0",
        "ws://[::1",
    ],
)
def test_addresses_that_are_none(url: str):
    """They are refused at once, without repeating what may be a token."""
    with pytest.raises(ValueError, match="not a WebSocket address") as raised:
        connect(url, reactor=reactor)
    assert "secret" not in str(raised.value)


@pytest_twisted.ensureDeferred
async def test_coming_back(join: Join, served: Served):
    """After a loss the calls under way fail at once, later ones too, until the client is back by itself."""
    client = await join()
    states: list[str] = []
    closes: list[Any] = []
    client.on("state", states.append)
    client.on("close", closes.append)
    again: list[Exception] = []

    def try_again(failure: Any) -> None:
        client.send({"zKey": "ping"}).addErrback(lambda second: again.append(second.value))
        again.append(failure.value)

    served.bifrost.command("never")(lambda: Deferred())
    client.send({"zKey": "never"}).addErrback(try_again)
    await wait_until(lambda: any(c.running for c in served.bifrost.registry), "the call")
    for connection in list(served.bifrost.registry):
        connection.close(1001, "restart")
    await wait_until(lambda: states[-1:] == ["connected"], "the client back")
    assert states == ["reconnecting", "connected"]
    assert [error.close_code for error in closes] == [1001]
    assert all(isinstance(error, errors.ConnectionLost) for error in again) and len(again) == 2
    assert await client.send({"zKey": "ping"}) == "ping"
    assert await client.connect() is client
    assert "admin" not in repr(client) and "connected" in repr(client)


@pytest.mark.parametrize("code", [1000, 1008])
@pytest_twisted.ensureDeferred
async def test_a_last_word_is_final(join: Join, served: Served, code: int):
    """Told goodbye, or put out, the client does not come back by itself; connect() brings it back."""
    client = await join()
    for connection in list(served.bifrost.registry):
        connection.close(code, "goodbye")
    await wait_until(lambda: client.state == "disconnected", "the end")
    error = await failure_of(client.send({"zKey": "ping"}))
    assert isinstance(error, errors.ConnectionLost) and "not sent" in str(error)
    await client.connect()
    assert await client.send({"zKey": "ping"}) == "ping"


@pytest_twisted.ensureDeferred
async def test_without_reconnection(join: Join, served: Served):
    """``reconnect=False`` ends with the first loss."""
    client = await join(reconnect=False)
    for connection in list(served.bifrost.registry):
        connection.close(1001)
    await wait_until(lambda: client.state == "disconnected", "the end")


@pytest_twisted.ensureDeferred
async def test_disconnect_is_final(join: Join, served: Served):
    """What is under way or waits fails; who still connects is told."""
    served.bifrost.command("forever")(lambda: Deferred())
    client = await join()
    calls = [client.send({"zKey": "forever"}) for _ in range(70)]
    states: list[str] = []
    client.on("state", states.append)
    await client.disconnect()
    assert {type(await failure_of(call)) for call in calls} == {errors.ConnectionLost}
    assert (client.state, states) == ("disconnected", ["disconnected"])
    await client.disconnect()
    attempt = client.connect()
    assert await failure_of(client.disconnect().addCallback(lambda _: attempt))
    second = client.connect()
    second.cancel()
    assert isinstance(await failure_of(second), errors.ConnectionLost)
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_malformed_messages_do_no_harm(join: Join, served: Served):
    """Whatever a server says, the client goes on."""
    client = await join()
    (connection,) = list(served.bifrost.registry)
    for message in (
        "[[",
        "null",
        {"_requestId": "x", "result": 1},
        {"_requestId": [1], "error": "?"},
        {"event": "progress"},
        {"event": "progress", "progressOf": [1]},
        {"event": "ask"},
        {"event": "ask", "askId": 7},
        {"event": "ask_closed", "askId": "?"},
        {"event": "ask", "askId": "unknown", "prompt": None},
        {"event": "service", "name": "redis"},
    ):
        connection.send(message)
    assert await client.send({"zKey": "ping"}) == "ping"
    (call,) = [client.send({"zKey": "ping"})]
    assert await call == "ping"


@pytest_twisted.ensureDeferred
async def test_what_is_told_of_the_engine_is_no_broadcast(join: Join, served: Served):
    """It has listeners of its own."""
    client = await join()
    told: list[Any] = []
    client.on("broadcast", told.append)
    client.on("engine", lambda message: told.append((message["state"], message.get("recovered"))))
    (connection,) = list(served.bifrost.registry)
    for state in ({"state": "degraded"}, {"state": "ok"}, {"state": "ok", "recovered": False}):
        connection.send({"event": "engine", **state})
    assert await client.send({"zKey": "ping"}) == "ping"
    assert told == [("degraded", None), ("ok", None), ("ok", False)]


def test_contact_what_is_no_payload_event_or_listener_is_refused_by_name():
    """At once, with what is meant; the plain client's are the same."""
    client = Client("ws://127.0.0.1:1")
    for call, kind, said in (
        (lambda: client.send("ping"), TypeError, "payload is a dict"),
        (lambda: client.send([1]), TypeError, "not list"),
        (lambda: client.on("brodcast", print), ValueError, 'did you mean "broadcast"'),
        (lambda: client.on("zzz", print), ValueError, "known are"),
        (lambda: client.on(["state"], print), ValueError, "known are"),
        (lambda: client.on_broadcast(5), TypeError, "not int"),
        (lambda: client.on_display(None), TypeError, "not NoneType"),
        (lambda: client.on_ask("yes"), TypeError, "not str"),
    ):
        with pytest.raises(kind, match=said):
            call()


def test_the_delay_before_a_retry():
    """Anywhere below a bound that doubles from half a second up to thirty."""
    assert [retry_delay(attempt, lambda: 1.0) for attempt in (1, 2, 3, 7, 8, 100)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
    assert retry_delay(5, lambda: 0.0) == 0.0


def test_an_error_of_a_later_server():
    """A code this client does not know is still a CommandError with that code."""
    error = errors.command_error({"error": "New", "code": "brand_new", "retryable": True, "fields": "?"})
    assert (type(error), error.code, error.retryable, error.fields) == (errors.CommandError, "brand_new", True, {})
    for retryable in (True, False):
        lost = errors.command_error({"error": "Lost", "code": "unavailable", "retryable": retryable})
        assert type(lost) is errors.Unavailable and lost.retryable is retryable
    assert errors.Unavailable("now").retryable
