"""Catalogue group J: messages that are no commands, and commands that go wrong."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import json
import uuid
from typing import Any

import pytest
import pytest_twisted
from support.served import Served, serving
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import eventAsText

from zcomm.errors import Invalid
from zcomm.host import demo

pytestmark = pytest.mark.unmeasured


class Unwritable:
    """A value that JSON has no form for."""


class Commands:
    """What the commands of :func:`commanded` left behind."""

    def __init__(self):
        self.pending: list[Deferred] = []
        self.cancelled = 0


def raising(error: BaseException):
    def command():
        raise error

    return command


def recursing():
    return recursing()


async def slowly_wrong():
    raise RuntimeError("password=hunter2 in /root/secret.py")


def failing():
    return fail(ValueError("SELECT password FROM users"))


def register(server: Served) -> Commands:
    commands = Commands()
    command = server.bifrost.command

    def forever():
        def cancelled(_):
            commands.cancelled += 1

        deferred: Deferred = Deferred(cancelled)
        commands.pending.append(deferred)
        return deferred

    command("forever")(forever)
    for name, error in {
        "key": KeyError("SELECT secret"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "memory": MemoryError("/root/x.py"),
        "os": OSError(2, "No such file", "/etc/shadow"),
        "stop": StopIteration(5),
        "text": RuntimeError("Traceback (most recent call last)"),
    }.items():
        command(f"raise_{name}")(raising(error))
    command("recursing")(recursing)
    command("slowly_wrong")(slowly_wrong)
    command("failing")(failing)
    values = {
        "object": Unwritable(),
        "deep": None,
        "surrogate": "\ud800",
        "big": "x" * (17 * 1024 * 1024),
        "integer": 2**70,
        "nan": float("nan"),
        "infinity": [float("inf"), -float("inf")],
        "date": datetime.date(2026, 11, 23),
        "datetime": datetime.datetime(2026, 11, 23, 12, tzinfo=datetime.UTC),
        "decimal": decimal.Decimal("0.10"),
        "uuid": uuid.UUID(int=1),
        "bytes": b"\xff\x00",
        "set": {1},
        "tuple": (1, 2),
        "mib": "x" * (3 * 1024 * 1024),
        "key": {1: 2},
    }
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    values["deep"] = deep
    for name, value in values.items():
        command(f"later_{name}")((lambda result: lambda: succeed(result))(value))
        command(f"now_{name}")((lambda result: lambda: result)(value))
    return commands


@pytest_twisted.async_yield_fixture(scope="module")
async def commanded(tmp_path_factory):
    """A server with commands that go wrong in every way; its ``commands`` tell what became of them."""
    server = Served(tmp_path_factory.mktemp("commanded"), limits={"in_flight": 16, "command_timeout": 1.0})
    server.commands = register(server)
    await server.start()
    yield server
    await server.stop()


patient = serving("patient", limits={"in_flight": 16})


MESSAGES: list[tuple[str, bytes, str]] = [
    ("J1-brace", b"{", "Invalid JSON"),
    ("J1-empty", b"", "Invalid JSON"),
    ("J1-blanks", b"  \r\n\t", "Invalid JSON"),
    ("J1-bom", b'\xef\xbb\xbf{"zKey":"ping"}', "Invalid JSON"),
    ("J1-trailing", b'{"zKey":"ping"} x', "Invalid JSON"),
    ("J1-two-objects", b'{"zKey":"ping"}{"zKey":"ping"}', "Invalid JSON"),
    ("J1-single-quotes", b"{'zKey':'ping'}", "Invalid JSON"),
    ("J1-bare-text", b"hello", "Invalid JSON"),
    ("J1-trailing-comma", b'{"zKey":"ping",}', "Invalid JSON"),
    ("J1-comment", b'{"zKey":"ping"/**/}', "Invalid JSON"),
    ("J2-100k-lists", b"[" * 100_000, "Too deep"),
    ("J2-100k-lists-closed", b"[" * 100_000 + b"]" * 100_000, "Too deep"),
    ("J2-50k-objects", b'{"a":' * 50_000, "Too deep"),
    ("J3-depth-65", b'{"zKey":"ping","zHorizontal":' + b"[" * 64 + b"]" * 64 + b"}", "Too deep"),
    ("J4-1-MiB-integer", b'{"zKey":"ping","zHorizontal":' + b"9" * 1_000_000 + b"}", "Invalid JSON"),
    ("J4-1e999", b'{"zKey":"ping","zHorizontal":1e999}', "Invalid JSON"),
    ("J4-NaN", b'{"zKey":"ping","zHorizontal":NaN}', "Invalid JSON"),
    ("J4-Infinity", b'{"zKey":"ping","zHorizontal":Infinity}', "Invalid JSON"),
    ("J4-minus-Infinity", b'{"zKey":"ping","zHorizontal":-Infinity}', "Invalid JSON"),
    ("J4-leading-zero", b'{"zKey":"ping","zHorizontal":01}', "Invalid JSON"),
    ("J4-hexadecimal", b'{"zKey":"ping","zHorizontal":0x1}', "Invalid JSON"),
    ("J5-number", b"5", "Message must be an object"),
    ("J5-null", b"null", "Message must be an object"),
    ("J5-list", b"[]", "Message must be an object"),
    ("J5-string", b'"x"', "Message must be an object"),
    ("J5-true", b"true", "Message must be an object"),
    ("J6-no-key", b"{}", "Missing zKey"),
    ("J6-key-null", b'{"zKey":null}', "Missing zKey"),
    ("J6-key-empty", b'{"zKey":""}', "Missing zKey"),
    ("J6-key-number", b'{"zKey":5}', "Invalid zKey"),
    ("J6-key-list", b'{"zKey":["ping"]}', "Invalid zKey"),
    ("J6-key-object", b'{"zKey":{}}', "Invalid zKey"),
    ("J6-key-10-KB", b'{"zKey":"' + b"x" * 10_000 + b'"}', "Invalid zKey"),
    ("J8-surrogate", b'{"zKey":"ping","zHorizontal":"\\ud800"}', "Invalid JSON"),
    ("J8-surrogate-in-key", b'{"zKey":"\\udc00"}', "Invalid JSON"),
    ("J8-control", b'{"zKey":"ping","zHorizontal":"\x01"}', "Invalid JSON"),
    ("J10-id-object", b'{"zKey":"ping","_requestId":{}}', "Invalid _requestId"),
    ("J10-id-list", b'{"zKey":"ping","_requestId":[1]}', "Invalid _requestId"),
    ("J10-id-true", b'{"zKey":"ping","_requestId":true}', "Invalid _requestId"),
    ("J10-id-float", b'{"zKey":"ping","_requestId":1.5}', "Invalid _requestId"),
    ("J10-id-65-bytes", b'{"zKey":"ping","_requestId":"' + b"x" * 65 + b'"}', "Invalid _requestId"),
    (
        "J10-id-65-bytes-utf-8",
        b'{"zKey":"ping","_requestId":"' + "é".encode() * 33 + b'"}',
        "Invalid _requestId",
    ),
    ("J9-proto", b'{"__proto__":{"zKey":"ping"}}', "Missing zKey"),
]


@pytest.mark.parametrize(("message", "text"), [pytest.param(*row[1:], id=row[0]) for row in MESSAGES])
@pytest_twisted.ensureDeferred
async def test_what_is_no_request(served: Served, message: bytes, text: str):
    """One error with code bad_message to its sender, nothing to others; the connection stays."""
    other = await served.client()
    client = await served.client()
    client.send_text(message)
    error = await client.next_json()
    assert error["error"].startswith(text) and error["code"] == "bad_message" and error["retryable"] is False
    assert "_requestId" not in error
    assert (await client.call("ping", 1))["result"] == 1
    await other.call("ping")
    assert len(other.received) == 2
    await served.stands()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param({"zHorizontal": 1}, id="J6-no-key"),
        pytest.param({"zKey": 5}, id="J6-key-number"),
        pytest.param({"zKey": "nobody"}, id="J11-unknown"),
        pytest.param({"zKey": "read_Nobody"}, id="J11-unknown-model"),
    ],
)
@pytest.mark.parametrize("request_id", [0, -1, 2**53, 2**63 - 1, "x", "", "x" * 64, "\u0000", 'é"\\'])
@pytest_twisted.ensureDeferred
async def test_j10_an_error_finds_its_call(served: Served, message: dict, request_id: int | str):
    """The id comes back as it was, whatever was wrong with the rest."""
    client = await served.client()
    client.send_json({**message, "_requestId": request_id})
    error = await client.next_json()
    assert "error" in error and error["_requestId"] == request_id and type(error["_requestId"]) is type(request_id)
    await served.stands()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            {"zKey": "ping", "zHorizontal": {"__proto__": {"a": 1}, "constructor": 2, "toString": 3}},
            id="J9-names",
        ),
        pytest.param({"zKey": "ping", "zHorizontal": "\u0000"}, id="J8-nul"),
        pytest.param({"zKey": "ping", "zHorizontal": None}, id="J6-null"),
        pytest.param({"zKey": "ping", "zHorizontal": 0}, id="J6-zero"),
        pytest.param({"zKey": "ping", "zHorizontal": list(range(100_000))}, id="J6-long-list"),
        pytest.param({"zKey": "ping", "zHorizontal": 1, "unknown": [1], "_schema_cached": {}}, id="J12-extra-keys"),
        pytest.param({"zKey": "ping", "zHorizontal": 2**63 - 1}, id="J4-largest-integer"),
        pytest.param({"zKey": "ping", "zHorizontal": "<img src=x onerror=alert(1)>"}, id="I22-markup"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_values_come_back_as_they_were(served: Served, message: dict):
    """Data is data, whatever it looks like."""
    client = await served.client()
    client.send_json({**message, "_requestId": 1})
    assert await client.next_json() == {"result": message["zHorizontal"], "_requestId": 1}
    await served.stands()


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        pytest.param(b'{"zKey":"ping"}', {"result": "ping"}, id="J6-no-horizontal"),
        pytest.param(b'{"cmd":"ping"}', {"result": "ping"}, id="J6-cmd"),
        pytest.param(b'{"cmd":"nobody","zKey":"ping"}', {"result": "ping"}, id="J6-cmd-and-key"),
        pytest.param(b'{"zKey":"nobody","zKey":"ping"}', {"result": "ping"}, id="J7-last-wins"),
        pytest.param(b'{"zKey":"ping","_requestId":1,"_requestId":2}', {"result": "ping", "_requestId": 2}, id="J7-id"),
        pytest.param(b'{"zKey":"ping","_requestId":null}', {"result": "ping"}, id="J10-null"),
        pytest.param(b'{"zKey":"ping","zHorizontal":' + b"[" * 63 + b"]" * 63 + b"}", None, id="J3-depth-64"),
        pytest.param(b'\r\n {"zKey" : "ping"}\t', {"result": "ping"}, id="J1-blanks-around"),
        pytest.param(b'{"zKey":"ping","zHorizontal":"[[[[' + b"[" * 1000 + b'"}', None, id="J3-brackets-in-a-string"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_requests_that_look_odd(served: Served, message: bytes, reply: dict | None):
    """Well-formed all the same."""
    client = await served.client()
    client.send_text(message)
    got = await client.next_json()
    assert got == reply if reply is not None else "result" in got
    await served.stands()


@pytest.mark.parametrize(
    ("key", "horizontal", "code"),
    [
        pytest.param("nobody", None, "unknown_command", id="J11-nobody"),
        pytest.param("create_", {}, "unknown_command", id="J11-no-model"),
        pytest.param("_Users", {}, "unknown_command", id="J11-no-action"),
        pytest.param("truncate_Users", {}, "unknown_command", id="J11-no-such-action"),
        pytest.param("read_Users", {"action": "delete", "where": {"id": 1}}, "invalid", id="J11-action-differs"),
        pytest.param("read_Users", {"model": "Orders"}, "invalid", id="J11-model-differs"),
        pytest.param("read_Users", [], "invalid", id="J11-horizontal-list"),
        pytest.param("read_Users", "zFunc(calculateTotal, 1)", "invalid", id="J11-form-under-another-name"),
        pytest.param("zAnswer", {"askId": "0", "value": 1}, "not_found", id="J11-answer-nobody-asked-for"),
        pytest.param("read_Users", {"wehre": {}}, "invalid", id="J12-unknown-in-horizontal"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_j11_commands_that_do_not_add_up(served: Served, key: str, horizontal, code: str):
    """An error with the right code; nothing is executed."""
    client = await served.client()
    reply = await client.call(key, horizontal)
    assert reply["code"] == code, reply
    await served.stands()


@pytest.mark.parametrize("name", ["object", "deep", "surrogate", "big"])
@pytest.mark.parametrize("way", ["now", "later"])
@pytest_twisted.ensureDeferred
async def test_j13_results_without_a_form(commanded: Served, way: str, name: str):
    """A fixed error, never an exception, never half a reply (J13, J14)."""
    client = await commanded.client()
    reply = await client.call(f"{way}_{name}")
    assert reply["code"] == "internal" and reply["error"].startswith("Result ")
    await commanded.stands()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("integer", 2**70),
        ("nan", None),
        ("infinity", [None, None]),
        ("date", "2026-11-23"),
        ("datetime", "2026-11-23T12:00:00Z"),
        ("decimal", "0.10"),
        ("uuid", "00000000-0000-0000-0000-000000000001"),
        ("bytes", "/wA="),
        ("set", [1]),
        ("tuple", [1, 2]),
        ("mib", "x" * (3 * 1024 * 1024)),
        ("key", {"1": 2}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_j13_results_that_json_lacks(commanded: Served, name: str, form):
    """One documented form each; a reply may be larger than a request (J14)."""
    client = await commanded.client()
    reply = await client.call(f"now_{name}")
    assert reply["result"] == form
    await commanded.stands()


@pytest.mark.parametrize(
    "key",
    [
        "raise_key",
        "raise_exit",
        "raise_interrupt",
        "raise_generator",
        "raise_memory",
        "raise_os",
        "raise_stop",
        "raise_text",
        "recursing",
        "slowly_wrong",
        "failing",
    ],
)
@pytest_twisted.ensureDeferred
async def test_j15_a_command_that_fails_ends_alone(commanded: Served, key: str):
    """A fixed text with the id; the cause is in the log; the connection and the reactor go on (J15, J18)."""
    # A user of its own: what one user makes fail is in the log some times a second.
    client = await commanded.client(token=commanded.store.add(f"failing-{key}", "admin").token)
    reply = await client.call(key)
    assert (reply["error"], reply["code"], reply["retryable"]) == ("Internal error", "internal", False)
    assert "_requestId" in reply
    assert (await client.call("ping", 1))["result"] == 1
    await commanded.stands(failures=1)


@pytest_twisted.ensureDeferred
async def test_contact_r01_what_is_refused_is_answered_with_its_id(served: Served):
    """Half an emoji, 65 levels, what is no JSON: each is answered, in order, and others hear nothing of it."""
    other, client = await served.client(), await served.client()
    values = (
        "[" * 65 + "]" * 65,
        '"Hi \\ud83d"',
        "NaN",
        "[1,]",
        "9" * 5000,
        '{"a":1,"a":"\\ud800"}',
        "[" * 500_000 + "]" * 500_000,
    )
    for number, value in enumerate(values):
        client.send_text(f'{{"zKey":"ping","zHorizontal":{value},"_requestId":{number}}}'.encode())
        client.send_text(f'{{"_requestId":"n{number}","zKey":"ping","zHorizontal":{value}}}'.encode())
    for number in range(len(values)):
        for identifier in (number, f"n{number}"):
            error = await client.next_json()
            assert (error["code"], error["_requestId"]) == ("bad_message", identifier)
    assert (await client.call("ping", 1))["result"] == 1
    await other.call("ping")
    assert len(other.received) == 2
    await served.stands()


#: A file's name that is no UTF-8, as ``os.listdir`` gives it.
NO_TEXT = "caf\udce9.txt"


@pytest_twisted.ensureDeferred
async def test_contact_r06_an_error_that_cannot_be_written_is_told_all_the_same(commanded: Served):
    """From whatever it comes: one answer, with the id, and the connection and the other calls live."""
    errors = {
        "text": lambda: Invalid(f"{NO_TEXT} is in use"),
        "fields": lambda: Invalid("x", {"file": NO_TEXT}),
        "object": lambda: Invalid("x", {"when": Unwritable()}),
        "number": lambda: Invalid(5),
    }
    program, command = commanded.comm.program, commanded.bifrost.command
    asked: dict[str, tuple[str, str]] = {}

    def register_all(name: str, make) -> None:
        def plain():
            raise make()

        async def coroutine():
            raise make()

        async def page():
            raise make()

        for way, function in (("plain", plain), ("coroutine", coroutine), ("deferred", lambda: fail(make()))):
            command(f"{way}_{name}")(function)
            asked[f"{way}_{name}"] = f"{way}_{name}", ""
        program.functions.register(plain, name=f"thread_{name}")
        program.functions.register(coroutine, name=f"coroutine_{name}")
        for way in ("thread", "coroutine"):
            asked[f"zFunc {way} {name}"] = "zFunc", f"zFunc({way}_{name})"
        program.pages.register(f"/plain/{name}", data=plain)
        program.pages.register(f"/coroutine/{name}", data=page)
        for way in ("plain", "coroutine"):
            asked[f"zLink {way} {name}"] = "zLink", f"zLink(/{way}/{name})"

    for name, make in errors.items():
        register_all(name, make)
    client, other = await commanded.client(), await commanded.client()
    client.send_json({"zKey": "forever", "_requestId": "pending"})
    for identifier, (key, horizontal) in asked.items():
        client.send_json({"zKey": key, "zHorizontal": horizontal, "_requestId": identifier})
        reply = await client.next_json()
        assert (reply["_requestId"], reply["code"], reply["retryable"]) == (identifier, "invalid", False), reply
    assert (await client.next_json())["_requestId"] == "pending"
    await other.call("ping")
    assert len(other.received) == 2
    await commanded.stands()


class Strange(Exception):
    """An exception that raises wherever it is looked at."""

    def _refuse(self, *_):
        raise SystemExit("looked at")

    args = property(_refuse)
    __str__ = __repr__ = _refuse


class Stranger(Exception):
    """An exception that does not even tell its type; nothing of Twisted can carry it."""

    __class__ = property(Strange._refuse)


@pytest_twisted.ensureDeferred
async def test_contact_whatever_is_raised_is_answered_in_every_form(commanded: Served):
    """One answer with the id to each call: of commands and functions, plain, coroutines and Deferreds."""
    errors = {
        "exit": SystemExit,
        "interrupt": KeyboardInterrupt,
        "generator": GeneratorExit,
        "group": lambda: ExceptionGroup("several", [ValueError("a"), Invalid("b")]),
        "base_group": lambda: BaseExceptionGroup("several", [SystemExit(1)]),
        "cancelled": CancelledError,
        "asyncio": asyncio.CancelledError,
        "strange": Strange,
        "stop": StopIteration,
        "async_stop": StopAsyncIteration,
    }
    program, command = commanded.comm.program, commanded.bifrost.command
    asked: list[tuple[str, str]] = []

    def register_all(name: str, make) -> None:
        def plain():
            raise make()

        async def coroutine():
            raise make()

        async def later():
            await deferLater(reactor, 0)
            raise make()

        def failed():
            try:
                raise make()
            except BaseException:
                return fail()

        for way, function in (("plain", plain), ("coroutine", coroutine), ("later", later), ("deferred", failed)):
            command(f"any_{way}_{name}")(function)
            asked.append((f"any_{way}_{name}", ""))
            program.functions.register(function, name=f"any_{way}_{name}", thread=None if way != "deferred" else False)
            asked.append(("zFunc", f"zFunc(any_{way}_{name})"))

    for name, make in errors.items():
        register_all(name, make)
    client = await commanded.client()
    for number, (key, horizontal) in enumerate(asked):
        client.send_json({"zKey": key, "zHorizontal": horizontal, "_requestId": number})
        reply = await client.next_json()
        shown = (reply["_requestId"], reply["code"], reply["retryable"])
        assert shown == (number, "internal", False), (key, horizontal, reply)
    command("stranger")(raising(Stranger()))
    program.functions.register(raising(Stranger()), name="stranger")
    for call in (("stranger", ""), ("zFunc", "zFunc(stranger)")):
        assert (await client.call(*call))["code"] == "internal"
    assert (await client.call("ping", 1))["result"] == 1
    commanded.forget()


@pytest_twisted.ensureDeferred
async def test_contact_what_asyncio_has_is_awaited_where_the_reactor_is_one_of_its(commanded: Served):
    """In commands, functions and pages, beside Deferreds and within the time of a command; on another reactor the log
    says what it needs."""

    async def nap(**_: Any) -> dict[str, Any]:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(
                asyncio.wait_for(deferLater(reactor, 0, lambda: "slept").asFuture(asyncio.get_running_loop()), 20)
            )
            await deferLater(reactor, 0)
        return {"napped": [task.result(), await succeed("fired")]}

    async def overslept() -> None:
        await asyncio.Event().wait()

    program, command = commanded.comm.program, commanded.bifrost.command
    command("nap")(nap)
    command("later")(lambda: nap())
    command("overslept")(overslept)
    program.functions.register(nap, name="nap")
    program.functions.register(lambda: nap(), name="later")
    program.pages.register("/nap", title="Nap", data=nap)
    client = await commanded.client(token=commanded.store.add("napping", "admin").token)
    is_of_asyncio = isinstance(reactor, AsyncioSelectorReactor)
    asked = [("nap", 1), ("later", 1), ("zFunc", "zFunc(nap)"), ("zFunc", "zFunc(later)"), ("zLink", "zLink(/nap)")]
    for key, horizontal in asked:
        reply = await client.call(key, horizontal)
        if is_of_asyncio:
            assert reply["result"]["napped"] == ["slept", "fired"], (key, horizontal, reply)
        else:
            assert reply["code"] == "internal"
    assert (await client.call("overslept"))["code"] == ("timeout" if is_of_asyncio else "internal")
    said = [each for each in commanded.log if "no asyncio loop runs" in eventAsText(each)]
    assert bool(said) is not is_of_asyncio
    assert (await client.call("ping", 1))["result"] == 1
    commanded.forget()


@pytest_twisted.ensureDeferred
async def test_contact_a_command_that_takes_no_notice_of_its_end_is_answered(commanded: Served):
    """It goes on by itself; its caller is told that the time is over, once."""
    goes_on: Deferred = Deferred()

    @commanded.bifrost.command("stubborn")
    async def stubborn():
        try:
            await Deferred()
        except CancelledError:
            return await goes_on

    client = await commanded.client()
    reply = await client.call("stubborn")
    assert (reply["code"], reply["retryable"]) == ("timeout", True)
    goes_on.callback("too late")
    assert (await client.call("ping", 1))["result"] == 1
    await commanded.stands()


@pytest_twisted.ensureDeferred
async def test_contact_r06_what_cannot_be_written_fails_alone(commanded: Served):
    """A prompt, a word of progress, a display, a broadcast: one answer, and nothing is left."""
    program, command = commanded.comm.program, commanded.bifrost.command

    @command("asks")
    async def asks(_, client):
        return await commanded.bifrost.ask(client, NO_TEXT)

    @command("shows")
    async def shows(_, client):
        client.send({"event": "display", "data": NO_TEXT})

    @command("broadcasts")
    async def broadcasts():
        await commanded.comm.broadcast_websocket({"text": NO_TEXT})

    @program.functions.register
    def reports(*, progress):
        progress(1, 2, NO_TEXT)

    @program.functions.register
    async def reports_later(*, progress):
        progress(1, 2, NO_TEXT)

    # Just as large as a result may be: with what stands around it in a broadcast, it would be larger than that.
    tells_all = "tells_all" * 10
    command(tells_all, broadcast=True)(lambda: "x" * (16 * 1024 * 1024 - 40))
    client = await commanded.client()
    for key, horizontal in (
        ("asks", 1),
        ("shows", 1),
        ("broadcasts", 1),
        ("zFunc", "zFunc(reports)"),
        ("zFunc", "zFunc(reports_later)"),
    ):
        reply = await client.call(key, horizontal)
        assert reply["code"] == "internal", (key, reply)
    assert not any(member.prompts or member.running for member in commanded.bifrost.registry)
    assert len((await client.call(tells_all))["result"]) > 10_000_000
    other = await commanded.client()
    assert len((await client.call(tells_all))["result"]) > 10_000_000
    assert await other.next_json() == {"zKey": tells_all, "many": True}
    await commanded.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a31_an_answer_is_taken_from_who_has_all_commands_running(patient: Served):
    """Sixteen commands that ask, of at most sixteen: each is answered; one more command is still too busy."""

    @patient.bifrost.command("asks")
    async def asks(number, client):
        return [number, await patient.bifrost.ask(client, f"Number {number}?")]

    client = await patient.client()
    for number in range(16):
        client.send_json({"zKey": "asks", "zHorizontal": number, "_requestId": number})
    prompts = [await client.next_json() for _ in range(16)]
    assert (await client.call("ping"))["code"] == "too_busy"
    for number, prompt in enumerate(prompts):
        client.send_json(
            {"zKey": "zAnswer", "zHorizontal": {"askId": prompt["askId"], "value": "yes"}, "_requestId": f"a{number}"}
        )
        answers = [await client.next_json() for _ in range(2)]
        assert {"result": True, "_requestId": f"a{number}"} in answers
        assert {"result": [number, "yes"], "_requestId": number} in answers
    await patient.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a_command_whose_deferred_has_fired_and_waits_for_another_times_out(commanded: Served):
    """It counts among those in flight, has no more time than any other, and is cancelled when its client leaves."""
    waited: list[str] = []
    commanded.bifrost.command("further")(
        lambda: succeed(None).addCallback(lambda _: Deferred(lambda _: waited.append("cancelled")))
    )
    client = await commanded.client()
    reply = await client.call("further")
    assert (reply["code"], reply["retryable"], waited) == ("timeout", True, ["cancelled"])
    for number in range(17):
        client.send_json({"zKey": "further", "_requestId": number})
    assert (await client.next_json())["code"] == "too_busy"
    client.abort()
    await wait_until(lambda: len(waited) == 17, "the commands of a client that is gone to be cancelled")
    await commanded.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a_change_that_may_have_been_made_is_not_to_be_sent_again(commanded: Served):
    """Of a change that did not end in time nobody knows whether it was made: to repeat it is advised with an
    idempotency key alone, by which it is made once."""
    client = await commanded.client()
    values = {"name": "Late", "email": "late@example.com"}
    asked = {
        "create_Users": {"values": values},
        "update_Users": {"where": {"name": "Late"}, "values": {"name": "Later"}},
        "upsert_Users": {"values": values, "conflict_fields": ["email"]},
        "delete_Users": {"where": {"name": "nobody"}},
    }
    # As while another change is made.
    with commanded.comm.zcli.data._execution._database.writing():
        for key, horizontal in asked.items():
            reply = await client.call(key, horizontal)
            assert (key, reply["code"], reply["retryable"]) == (key, "timeout", False)
            assert "may have been made" in reply["error"]
            reply = await client.call(key, {**horizontal, "_idempotencyKey": key})
            assert (key, reply["code"], reply["retryable"]) == (key, "timeout", True)
    await commanded.stands()


@pytest_twisted.ensureDeferred
async def test_j15_a_command_that_never_ends_times_out(commanded: Served):
    """It is cancelled, and its caller told."""
    before = commanded.commands.cancelled
    client = await commanded.client()
    reply = await client.call("forever")
    assert (reply["code"], reply["retryable"]) == ("timeout", True)
    assert commanded.commands.cancelled == before + 1
    await commanded.stands()


@pytest_twisted.ensureDeferred
async def test_j16_one_command_too_many_is_too_busy(patient: Served):
    """The seventeenth while sixteen run; replies go to their own ids, in the order in which they are ready."""
    pending: list[Deferred] = []

    @patient.bifrost.command("wait")
    def wait(horizontal):
        pending.append(Deferred())
        return pending[-1]

    client = await patient.client()
    for number in range(17):
        client.send_json({"zKey": "wait", "_requestId": number})
    reply = await client.next_json()
    assert (reply["_requestId"], reply["code"], reply["retryable"]) == (16, "too_busy", True)
    for number in reversed(range(16)):
        pending[number].callback(number * 10)
        assert await client.next_json() == {"result": number * 10, "_requestId": number}
    assert (await client.call("ping", 1))["result"] == 1
    await patient.stands()


@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
@pytest_twisted.ensureDeferred
async def test_j17_a_client_that_leaves_takes_its_commands_along(commanded: Served, rudely: bool):
    """They are cancelled, nothing is written to the dead transport, nobody is left in the registry."""
    before = commanded.commands.cancelled
    client = await commanded.client()
    for _ in range(5):
        client.send_json({"zKey": "forever"})
    await wait_until(
        lambda: any(member.running == 5 for member in commanded.bifrost.registry), "five commands that run"
    )
    if rudely:
        client.abort()
    else:
        client.transport.loseConnection()
    await wait_until(lambda: commanded.count == 0, "an empty registry")
    assert commanded.commands.cancelled == before + 5
    await commanded.stands()


@pytest_twisted.ensureDeferred
async def test_j1_nothing_that_is_wrong_is_broadcast(served: Served):
    """Neither raw text nor an error reaches another client (J1, J10)."""
    other, client = await served.client(), await served.client()
    for text in (
        b"raw text",
        b'{"zKey":"nobody"}',
        b'{"zKey":"create_Users","zHorizontal":{"values":{}},"_requestId":1}',
    ):
        client.send_text(text)
        assert "error" in await client.next_json()
    await other.call("ping")
    assert len(other.received) == 2
    assert json.dumps([item.payload.decode() for item in other.received[1:]]).count("nobody") == 0
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a16_commands_that_fail_do_not_flood_the_log(served: Served):
    """Each is answered; of those that fail at the same place one a second is logged, with how many there were."""

    @served.bifrost.command("fails_here")
    def fails_here(horizontal: Any) -> Any:
        return horizontal["missing"]

    @served.bifrost.command("fails_deep")
    def fails_deep(horizontal: Any) -> Any:
        return fails_deep(horizontal - 1) if horizontal else 1 // 0

    client = await served.client()
    for number in range(50):
        assert (await client.call("fails_here", {}))["code"] == "internal"
        assert (await client.call("fails_deep", number))["code"] == "internal"
    failed = [event["key"] for event in served.log if "log_failure" in event]
    # A second may have passed, and the deepest have nothing else at their end.
    assert failed.count("fails_here") in (1, 2, 3) and 1 <= failed.count("fails_deep") <= 12, failed
    total = {"items": [{"price": 1}]}
    for cart in ({"cart_id": []}, {"cart_id": {}}, {"items": 5}, {"items": [[]]}, {"items": [{"price": None}]}):
        with pytest.raises(Invalid):
            demo.calculateTotal(cart)
    assert demo.calculateTotal(total)["total"] == 1
    served.log.clear()
    await served.stands()
