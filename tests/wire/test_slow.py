"""Catalogue group S: clients that take what they are sent slowly, late or not at all."""

from __future__ import annotations

import gc
import json
import weakref
from threading import Event

import pytest
import pytest_twisted
from support.rawclient import Opcode, RawClient, build_frame
from support.served import Served, serving
from support.waiting import wait_until
from twisted.internet.defer import Deferred

from zcomm.bifrost import connection

KIB = 1024

#: A small queue, so that the system's own buffers are the larger part, and much time.
served = serving(limits={"queue_size": 64 * KIB, "stall_timeout": 25.0})
impatient = serving("impatient", limits={"stall_timeout": 0.3, "frame_rate": 1e9, "frame_burst": 1e9})

#: Little memory for results, and much time to take them, however busy the machine is.
frugal = serving("frugal", limits={"results_size": 8 * KIB * KIB, "stall_timeout": 60.0})


async def flood(server: Served, size: int = 256 * KIB, until=None, reader: RawClient | None = None) -> int:
    """Broadcast messages of ``size`` until ``until()`` says so; returns how many. ``reader`` has had each of them
    before the next: on a machine that is busy it would fall behind as well."""
    sent = 0

    def once() -> bool:
        nonlocal sent
        if until():
            return True
        if reader is not None and sum(getattr(item, "opcode", None) == Opcode.TEXT for item in reader.received) < sent:
            return False
        server.bifrost.broadcast(json.dumps({"n": sent, "fill": "x" * size}))
        sent += 1
        return False

    await wait_until(once, "an end of the flood")
    return sent


@pytest_twisted.ensureDeferred
async def test_s1_a_reader_that_stops_is_given_up(served: Served):
    """When its queue has passed the limit: counted as a slow consumer, gone from the registry; another has it all."""
    before = served.bifrost.factory.drops["slow_consumer"]
    slow, other = await served.client(), await served.client()
    slow.stop_reading()
    sent = await flood(served, until=lambda: served.count < 2, reader=other)
    for number in range(sent):
        assert (await other.next_json())["n"] == number
    assert (await other.call("ping", 1))["result"] == 1
    await wait_until(lambda: len(served.bifrost.factory._alive) == 1, "the end of its connection")
    assert served.bifrost.factory.drops["slow_consumer"] == before + 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_s1_the_close_code_is_1013(served: Served):
    """Whoever reads again in time learns why, after what was on its way already."""
    slow = await served.client()
    slow.stop_reading()
    await flood(served, until=lambda: served.count == 0)
    slow.read_again()
    numbers = []
    while True:
        frame = await slow.next()
        if frame.opcode == Opcode.CLOSE:
            break
        if frame.opcode == Opcode.TEXT:
            numbers.append(frame.json["n"])
    assert (frame.close_code, frame.close_reason) == (1013, "Slow consumer")
    assert numbers == list(range(len(numbers)))
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_s2_many_readers_stop(served: Served):
    """All of them are given up, and the one that reads misses nothing."""
    slow = [await served.client() for _ in range(20)]
    other = await served.client()
    for client in slow:
        client.stop_reading()
    sent = await flood(served, until=lambda: served.count == 1, reader=other)
    assert [(await other.next_json())["n"] for _ in range(sent)] == list(range(sent))
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_s4_a_reader_that_pauses_loses_nothing(served: Served):
    """Within the limit everything arrives, in order, however it had to wait."""
    slow = await served.client()
    slow.stop_reading()
    channel = next(iter(served.bifrost.registry)).transport
    # Until the transport says that it has enough, and a little more than that.
    sent = await flood(served, 16 * KIB, until=lambda: channel.queued > 16 * KIB)
    slow.read_again()
    assert [(await slow.next_json())["n"] for _ in range(sent)] == list(range(sent))
    assert channel.queued == 0 and (await slow.call("ping", 1))["result"] == 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_answers_cut_nobody_off(served: Served):
    """Whoever asks for much at once over a slow line gets all of it, and hears what is told meanwhile; where it is more
    than may wait, an error comes for each that does not; and the client stays in either case."""
    owed: list[Deferred[str]] = []

    def large() -> Deferred[str]:
        owed.append(Deferred())
        return owed[-1]

    served.bifrost.command("large")(large)
    slow, other = await served.client(), await served.client()
    channel = min(served.bifrost.registry, key=lambda member: member.id).transport
    for count in (24, 48):
        for number in range(count):
            slow.send_json({"zKey": "large", "_requestId": number})
        await wait_until(lambda count=count: len(owed) == count, "the requests")
        slow.stop_reading()
        for number, answer in enumerate(owed):
            served.bifrost.broadcast({"n": number})
            answer.callback("x" * 500 * KIB)
        owed.clear()
        assert channel.queued > 10 * KIB * KIB and slow.ended is False
        answered, told, refused = [], [], 0
        slow.read_again()
        while len(answered) + len(told) < 2 * count:
            message = await slow.next_json()
            if "n" in message:
                told.append(message["n"])
                continue
            answered.append(message["_requestId"])
            refused += "error" in message
            if "error" in message:
                assert (message["code"], message["retryable"]) == ("too_busy", False) and "has run" in message["error"]
            else:
                assert len(message["result"]) == 500 * KIB
        assert answered == told == list(range(count)) and (refused > 0) == (count * 500 > 16 * KIB)
        assert (await slow.call("ping", 1))["result"] == 1
        assert [(await other.next_json())["n"] for _ in range(count)] == told
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_b14_what_a_transport_keeps_is_its_users(served: Served):
    """Be it less than the transport would tell of by itself; given back when it has left; and a user whose connections
    keep more than it may have is answered nothing but that until then, on each of them."""
    slow, other = await served.client(), await served.client()
    member = min(served.bifrost.registry, key=lambda member: member.id)
    account, memory = member.account, served.bifrost.factory.state.budgets.memory
    slow.stop_reading()
    asked = 0

    def kept() -> bool:
        nonlocal asked
        if not member.transport.queued and not slow.transport.dataBuffer:
            asked += 1
            slow.send_json({"zKey": "ping", "zHorizontal": "x" * 20 * KIB})
        return member.transport.queued > 0

    await wait_until(kept, "something that waits")
    assert 0 < account.held == memory.held == member.transport.queued < 64 * KIB
    memory.take(account, memory.most)
    refused = await other.call("ping", 1)
    assert (refused["code"], refused["error"][:16]) == ("too_busy", "Too many answers")
    memory.release(account, memory.most)
    assert (await other.call("ping", 1))["result"] == 1
    slow.read_again()
    answers = [await slow.next_json() for _ in range(asked)]
    assert all(answer["result"] == "x" * 20 * KIB for answer in answers)
    await wait_until(lambda: account.held == memory.held == 0, "the memory to be given back")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_b14_what_only_reads_may_be_asked_for_again(served: Served, monkeypatch: pytest.MonkeyPatch):
    """An answer that has waited for room in vain is an error that says so: nothing has happened but that a file was
    read."""
    monkeypatch.setattr(connection, "ROOM_TIMEOUT", 0.1)
    errors = served.bifrost.factory.state.errors
    before = errors.get("too_busy", 0)
    (served.files / "large.txt").write_text("x" * KIB * KIB)
    slow = [await served.client() for _ in range(40)]
    for client in slow:
        client.stop_reading()
        client.send_json({"zKey": "zOpen", "zHorizontal": {"name": "large.txt"}, "_requestId": 1})
    await wait_until(
        lambda: errors.get("too_busy", 0) > before and not any(client.running for client in served.bifrost.registry),
        "the answers",
    )
    for client in slow:
        client.read_again()
    answers = [await client.next_json() for client in slow]
    refused = [answer for answer in answers if "error" in answer]
    assert 0 < len(refused) < 40
    assert all((answer["code"], answer["retryable"]) == ("too_busy", True) for answer in refused)
    assert "result" in await slow[0].call("zOpen", {"name": "large.txt"})
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_s3_a_slow_but_steady_reader_stays(impatient: Served):
    """Slower than the stall limit for the whole, but taking something all the time."""
    slow = await impatient.client()
    slow.stop_reading()
    channel = next(iter(impatient.bifrost.registry)).transport
    sent = await flood(impatient, 64 * KIB, until=lambda: channel.queued > 256 * KIB)
    received = 0
    while received < sent:
        slow.read_again()
        before = len(slow.received)
        await wait_until(lambda before=before: len(slow.received) > before or slow.ended, "something to arrive")
        slow.stop_reading()
        received = sum(getattr(item, "opcode", None) == Opcode.TEXT for item in slow.received)
    slow.read_again()
    assert not slow.ended
    assert [item.json["n"] for item in slow.received[1:] if item.opcode == Opcode.TEXT] == list(range(sent))
    await impatient.stands()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            build_frame(Opcode.TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 60_000}).encode()),
            id="S5-commands",
        ),
        pytest.param(build_frame(Opcode.PING, b"p" * 125) * 200, id="S5-pings"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_s5_who_never_reads_is_not_read_from(impatient: Served, command: bytes):
    """The server stops taking requests when its answers are not taken, and drops the client after the stall limit."""
    state = impatient.bifrost.factory.state
    before = impatient.bifrost.factory.drops["stalled"]
    client, other = await impatient.client(), await impatient.client()
    client.stop_reading()
    answered = state.commands
    member = min(impatient.bifrost.registry, key=lambda member: member.id)

    def more() -> bool:
        if impatient.count == 1:
            return True
        if len(client.transport.dataBuffer) < 1024 * KIB:
            client.send(command * 4)
        return False

    await wait_until(more, "the end of the client that does not read")
    assert impatient.bifrost.factory.drops["stalled"] == before + 1
    assert (state.commands - answered) * 60_000 < 64 * 1024 * KIB and member.transport is None
    assert (await other.call("ping", 1))["result"] == 1
    await impatient.stands()


@pytest_twisted.ensureDeferred
async def test_s7_a_close_does_not_wait_for_a_reader_that_stopped(impatient: Served):
    """The server says goodbye to somebody who takes nothing: the connection ends in time all the same."""
    slow = await impatient.client()
    slow.stop_reading()
    member = next(iter(impatient.bifrost.registry))
    await flood(impatient, until=lambda: member.transport is None or member.transport.queued > 0)
    member.close(1000, "bye")
    await wait_until(lambda: not impatient.bifrost.factory._alive, "the end of the connection")
    await impatient.stands()


@pytest_twisted.ensureDeferred
async def test_s7_the_server_stops_with_readers_that_stopped(tmp_path):
    """Those who read get 1001; the others are cut off when the shutdown time is over."""
    server = await Served(tmp_path, limits={"shutdown_timeout": 0.5, "stall_timeout": 60.0}).start()
    slow, good = await server.client(), await server.client()
    slow.stop_reading()
    member = min(server.bifrost.registry, key=lambda member: member.id)
    await flood(server, until=lambda: member.transport.queued > 0)
    stopping = Deferred.fromCoroutine(server.stop())
    frame = await good.next_close()
    assert (frame.close_code, frame.close_reason) == (1001, "Server is shutting down")
    good.send_close(1001)
    await stopping
    assert not server.bifrost.factory._alive and not server.count
    slow.abort()
    await slow.when_ended()


@pytest_twisted.ensureDeferred
async def test_s9_broadcasts_while_clients_come_and_go(served: Served):
    """Everybody who stays hears everything, in order; whoever comes and goes disturbs nobody."""
    staying = [await served.client() for _ in range(5)]
    for number in range(40):
        coming = await served.client()
        served.bifrost.broadcast({"n": number})
        if number % 2:
            coming.abort()
        else:
            assert (await coming.next_json()) == {"n": number}
            coming.send_close()
    for client in staying:
        assert [(await client.next_json())["n"] for _ in range(40)] == list(range(40))
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_s9_a_client_that_is_gone_harms_no_broadcast(served: Served):
    """Its socket is closed in the very turn in which everybody is written to."""
    clients = [await served.client() for _ in range(6)]
    members = sorted(served.bifrost.registry, key=lambda member: member.id)
    served.bifrost.broadcast({"n": 1})
    members[2].transport.transport.abortConnection()
    members[4].transport.transport.getHandle().shutdown(2)
    for index, client in enumerate(clients):
        if index not in (2, 4):
            assert await client.next_json() == {"n": 1}
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_b14_many_connections_of_one_user_share_its_memory(frugal: Served):
    """However many of them take nothing: what waits is half of the memory for results; for the others too_busy comes in
    the place of an answer, also where that is ready at once, and another user has its own."""
    memory = frugal.bifrost.factory.state.budgets.memory
    frugal.bifrost.command("ready")(lambda: "x" * 900 * KIB)
    slow = [await frugal.client() for _ in range(12)]
    for client in slow:
        client.stop_reading()
        client.send_json({"zKey": "ready", "_requestId": 1})
    state = frugal.bifrost.factory.state
    await wait_until(lambda: state.errors.get("too_busy", 0) >= 7, "those for which there is no room")
    assert KIB * KIB < memory.held <= 4 * KIB * KIB
    assert sum(client.transport.queued for client in frugal.bifrost.registry) <= 5 * KIB * KIB
    other = await frugal.client(token=frugal.tokens["admin"])
    assert len((await other.call("ready"))["result"]) == 900 * KIB
    told = []
    for client in slow:
        client.read_again()
        told.append(await client.next_json())
    refused = [message for message in told if "error" in message]
    assert 7 <= len(refused) < 12 and all((each["code"], each["retryable"]) == ("too_busy", False) for each in refused)
    assert all(len(message["result"]) == 900 * KIB for message in told if "result" in message)
    await frugal.stands()
    assert memory.held == 0


async def ask_for_large(server: Served, client: RawClient, name: str, count: int, size: int) -> None:
    """Let ``client``, which reads nothing, ask for so many results of a function, of which the first is made when all
    have been asked for."""
    member = max(server.bifrost.registry, key=lambda member: member.id)
    gate = Event()

    def large() -> str:
        gate.wait(60)
        return "x" * size

    server.comm.program.functions.register(large, name=name)
    client.stop_reading()
    for number in range(count):
        client.send_json({"zKey": "zFunc", "zHorizontal": {"name": name}, "_requestId": number})
    await wait_until(lambda: member.running == count, "the requests")
    gate.set()


@pytest_twisted.ensureDeferred
async def test_b14_results_of_functions_wait_for_room(frugal: Served):
    """More of them at once than their user has memory for all come to a client that takes them, though it is slow;
    meanwhile no more are made than threads have places for its user."""
    memory, workers = frugal.bifrost.factory.state.budgets.memory, frugal.comm.program.workers
    client = await frugal.client()
    member = next(iter(frugal.bifrost.registry))
    await ask_for_large(frugal, client, "waits", 40, 700 * KIB)
    await wait_until(lambda: member.account.kept > workers.share * 700 * KIB, "as many as there are places")
    assert workers.running == workers.share and member.running > 20 and memory.held <= 4 * KIB * KIB
    client.read_again()
    told = [await client.next_json() for _ in range(40)]
    assert all(len(message.get("result", "")) == 700 * KIB for message in told)
    assert sorted(message["_requestId"] for message in told) == list(range(40))
    await wait_until(lambda: memory.held == member.account.kept == workers.running == 0, "the end of it all")
    await frugal.stands()


@pytest_twisted.ensureDeferred
async def test_b14_results_of_functions_do_not_wait_for_ever(frugal: Served, monkeypatch: pytest.MonkeyPatch):
    """What has waited in vain is an error that says that the command has run; what a client has left behind is kept no
    longer."""
    memory, workers = frugal.bifrost.factory.state.budgets.memory, frugal.comm.program.workers
    client = await frugal.client()
    member = next(iter(frugal.bifrost.registry))
    monkeypatch.setattr(connection, "ROOM_TIMEOUT", 0.1)
    await ask_for_large(frugal, client, "late", 20, 900 * KIB)
    await wait_until(lambda: member.running == 0, "the end of all of them")
    assert member.account.kept == workers.running == 0
    leaving = await frugal.client()
    monkeypatch.setattr(connection, "ROOM_TIMEOUT", 3600.0)
    await ask_for_large(frugal, leaving, "left", 4, 900 * KIB)
    await wait_until(lambda: member.account.kept > 3 * 900 * KIB, "what waits")
    leaving.abort()
    await wait_until(lambda: member.account.kept == workers.running == 0, "the end of what waits")
    client.read_again()
    told = [await client.next_json() for _ in range(20)]
    refused = [message for message in told if "error" in message]
    assert 0 < len(refused) < 20 and all("has run" in message["error"] for message in refused)
    await wait_until(lambda: memory.held == 0, "the memory to be given back")
    await frugal.stands()


@pytest_twisted.ensureDeferred
async def test_b14_reads_wait_for_room(frugal: Served, monkeypatch: pytest.MonkeyPatch):
    """A read of less than 1 MiB for which there is no room is repeated when there is, though its user's other
    connections take theirs late: none is ``too_busy``, in order or not, of models and of files."""
    # However busy the machine is.
    monkeypatch.setattr(connection, "ROOM_TIMEOUT", 60.0)
    memory = frugal.bifrost.factory.state.budgets.memory
    errors = dict(frugal.bifrost.factory.state.errors)
    first = await frugal.client()
    for number in range(9):
        values = {"name": "x" * 100, "email": f"{number}@example.com"}
        assert "result" in await first.call("create_Users", {"values": values})
    (frugal.files / "large.txt").write_text("z" * 900 * KIB)
    (frugal.files / "bytes.bin").write_bytes(b"\0" * 600 * KIB)
    clients = [await frugal.client() for _ in range(12)]
    for number, client in enumerate(clients):
        client.stop_reading()
        name = "large.txt" if number % 2 else "bytes.bin"
        client.send_json({"zKey": "zOpen", "zHorizontal": f"zOpen({name})", "_requestId": 1})
        client.send_json({"zKey": "read_Users", "zHorizontal": {"limit": 1}, "_requestId": 2})
    await wait_until(lambda: memory._lines, "somebody who waits for room")
    assert memory.held <= 4 * KIB * KIB
    sizes = []
    # All of them: who waits may wait for any of the others.
    for client in clients:
        client.read_again()
    for client in clients:
        told = {message["_requestId"]: message for message in [await client.next_json(), await client.next_json()]}
        result = told[1]["result"]
        sizes.append(len(result.get("text") or result["base64"]))
        assert len(told[2]["result"]) == 1
    assert sizes == [800 * KIB, 900 * KIB] * 6
    await frugal.stands()
    assert memory.held == 0 and not memory._lines
    assert frugal.bifrost.factory.state.errors == errors


@pytest_twisted.ensureDeferred
async def test_b14_reads_wait_for_room_as_long_as_their_client_stays(frugal: Served):
    """Who leaves waits no longer, and nothing is held for it."""
    memory = frugal.bifrost.factory.state.budgets.memory
    (frugal.files / "large.txt").write_text("z" * 900 * KIB)
    clients = [await frugal.client() for _ in range(12)]
    for client in clients:
        client.stop_reading()
        client.send_json({"zKey": "zOpen", "zHorizontal": "zOpen(large.txt)", "_requestId": 1})
    await wait_until(lambda: memory._lines, "somebody who waits for room")
    for client in clients:
        client.abort()
    await wait_until(lambda: not memory.held and not memory._lines, "nothing that is held")
    await frugal.stands()


@pytest_twisted.ensureDeferred
async def test_b14_what_waits_for_a_client_is_forgotten_when_it_has_left(served: Served):
    """At once, and not when the garbage is collected: where nobody comes any more, that is never."""
    client = await served.client()
    client.stop_reading()
    client.send_json({"zKey": "ping", "zHorizontal": "x" * 900 * KIB, "_requestId": 1})
    await wait_until(lambda: any(member.transport.queued for member in served.bifrost.registry), "an answer that waits")
    (protocol,) = (member.transport for member in served.bifrost.registry)
    seen = [weakref.ref(protocol), weakref.ref(protocol.transport)]
    del protocol
    gc.collect()
    gc.disable()
    try:
        client.abort()
        await wait_until(lambda: not any(each() for each in seen), "the end of it")
    finally:
        gc.enable()
    await served.stands()
