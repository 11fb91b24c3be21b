"""Catalogue groups R, H1 and L: what peers may use up, and what the log says of them."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from support.rawclient import Opcode, RawClient, handshake
from support.served import Served, refusal, serving, statuses
from support.waiting import wait_until
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.logger import globalLogPublisher

from zcomm.client import connect
from zcomm.errors import ConnectionLost

brief = serving("brief", limits={"handshake_timeout": 0.4})
crowded = serving("crowded", limits={"pending": 12, "pending_per_peer": 8, "handshake_timeout": 60.0})
narrow = serving("narrow", limits={"connections": 3})
served = serving(limits={"auth_failures": 100_000})
heavy = serving("heavy", limits={"in_flight": 2000})


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param(b"", id="H1-silent"),
        pytest.param(b"G", id="H2-one-byte"),
        pytest.param(handshake("127.0.0.1")[:-2], id="H2-never-ends"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n", id="H2-half"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_handshake_that_does_not_come_ends(brief: Served, opening: bytes):
    """When its time is over, whatever has come; one timer, nothing kept."""
    client = await brief.connect(opening or None)
    await client.when_ended()
    assert client.received == []
    assert brief.bifrost.factory.drops["handshake_timeout"] >= 1
    await brief.stands()


@pytest_twisted.ensureDeferred
async def test_h2_the_time_is_not_reset_by_trickling(brief: Served):
    """A byte now and then buys no time."""
    client = await brief.connect(None)
    sent = 0

    def trickle() -> bool:
        nonlocal sent
        if not client.ended and sent < len(handshake("127.0.0.1")) - 4:
            client.send(handshake("127.0.0.1")[sent : sent + 1])
            sent += 1
        return client.ended

    await wait_until(trickle, "the end of the trickle")
    assert client.received == []
    await brief.stands()


@pytest_twisted.ensureDeferred
async def test_http_that_is_not_taken_ends(brief: Served):
    """A peer that asks for a page and then reads nothing is dropped in the same time."""
    client = await brief.connect(None)
    client.stop_reading()
    client.send(b"GET /zBifrost.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    await wait_until(lambda: len(brief.bifrost.factory._alive) == 0, "the end of the connection")
    client.read_again()
    await client.when_ended()
    await brief.stands()


async def from_address(server: Served, address: str, opening: bytes | None) -> RawClient:
    """A client of another peer on this machine: all of 127.0.0.0/8 is ours."""
    client = RawClient(opening, clock=server.reactor)
    endpoint = TCP4ClientEndpoint(server.reactor, "127.0.0.1", server.port, bindAddress=(address, 0))
    await connectProtocol(endpoint, client)
    server.clients.append(client)
    return client


@pytest_twisted.ensureDeferred
async def test_r2_one_peer_locks_nobody_out(crowded: Served, monkeypatch: pytest.MonkeyPatch):
    """Its share of the pending handshakes is bounded, and so is the line of those that wait for a place of it; others
    still come in, and so does one of its own that shakes hands."""
    monkeypatch.setattr("zcomm.bifrost.pending.LOOK", 0.01)
    factory = crowded.bifrost.factory
    silent = [await crowded.connect(None) for _ in range(8)]
    await wait_until(lambda: factory.pending.count == 8, "eight that say nothing")
    silent += [await crowded.connect(None) for _ in range(8 * 16 + 1)]
    await wait_until(lambda: factory.drops["pending_limit"] == 1, "one to be turned away")
    assert (factory.pending.count, factory.pending.waiting) == (8, 8 * 16)
    ninth = await crowded.connect(handshake("127.0.0.1", token=crowded.admin))
    good = await from_address(crowded, "127.0.0.2", handshake("127.0.0.1", token=crowded.admin))
    assert (await good.next()).status == 101
    assert (await good.call("ping", 1))["result"] == 1
    assert (await ninth.next()).status == 101
    assert (await ninth.call("ping", 2))["result"] == 2
    for client in silent:
        client.abort()
    await wait_until(lambda: factory.pending.count == factory.pending.waiting == 0, "all places to be free again")
    await crowded.stands()


@pytest_twisted.ensureDeferred
async def test_r2_all_pending_handshakes_are_bounded(crowded: Served):
    """Many peers together have no more places than there are."""
    factory = crowded.bifrost.factory
    clients = [await from_address(crowded, f"127.0.0.{2 + number % 4}", None) for number in range(20)]
    await wait_until(lambda: factory.pending.count + factory.pending.waiting == 20, "all twenty to be there")
    assert factory.pending.count == 12
    for client in clients:
        client.abort()
    await wait_until(lambda: factory.pending.count == factory.pending.waiting == 0, "all places to be free again")
    await crowded.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a_neighbour_of_six_hundred_that_say_nothing(served: Served, monkeypatch: pytest.MonkeyPatch):
    """More than may be there of one address, some with a part of a request: who shakes hands is let in while they are
    there, after a few tries at most."""
    monkeypatch.setattr("zcomm.bifrost.pending.LOOK", 0.01)
    pending = served.bifrost.factory.pending
    crowd: list[socket.socket] = []
    try:
        for number in range(600):
            crowd.append(socket.create_connection(("127.0.0.1", served.port)))
            if number % 3 == 0:
                crowd[-1].send(b"GET / HTTP/1.1\r\nHost: ")
        await wait_until(lambda: pending.count + pending.waiting == 32 + 512, "all that may be there")
        before = served.bifrost.factory.drops["handshake_timeout"]
        client, tries = None, 0
        while client is None:
            tries += 1
            try:
                client = await connect(served.bifrost.url, token=served.admin, reconnect=False)
            except ConnectionLost:
                assert tries < 5
        assert await client.send({"zKey": "ping"}) is not None
        assert pending.waiting > 400 and served.bifrost.factory.drops["handshake_timeout"] == before
        await client.disconnect()
    finally:
        for one in crowd:
            one.close()
    await wait_until(lambda: pending.count == pending.waiting == 0, "all places to be free again")
    await served.stands()


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_r3_a_storm_of_visitors_leaves_nothing(served: Served):
    """Hundreds that come and go in every manner, while one is served."""
    witness = await served.client()
    for number in range(300):
        client = await served.connect(
            *((None,) if number % 3 == 0 else ()), **({"token": served.admin} if number % 3 == 1 else {})
        )
        if number % 2:
            client.abort()
        else:
            client.transport.loseConnection()
        served.clients.remove(client)
        if number % 50 == 0:
            assert (await witness.call("ping", number))["result"] == number
    await wait_until(lambda: len(served.bifrost.factory._alive) == 1, "all but one to be gone")
    assert served.count == 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_r5_a_full_server_says_so(narrow: Served):
    """503 to one more, counted by clients and not by sockets; a place that is free is given away."""
    silent = [await narrow.connect(None) for _ in range(5)]
    clients = [await narrow.client() for _ in range(3)]
    fourth = await narrow.connect(handshake("127.0.0.1", token=narrow.admin))
    assert await statuses(fourth) == [503]
    assert fourth.reader.response.header("Retry-After") == "5"
    clients[0].abort()
    await wait_until(lambda: narrow.count == 2, "a free place")
    again = await narrow.client()
    assert (await again.call("ping", 1))["result"] == 1
    clients[1].abort()
    await wait_until(lambda: narrow.count == 2, "a free place again")
    assert len(silent) == 5
    await narrow.stands()


shared = serving("shared", limits={"connections_per_user": 3, "pending_per_peer": 200})


@pytest_twisted.ensureDeferred
async def test_r8_one_user_has_its_share_of_connections(shared: Served):
    """Whichever of its tokens it shows: one more is told to come back, and counted with its reason; others come in."""
    tokens = [shared.store.add("eager", role).token for role in ("admin", "guest")]
    clients = [await shared.client(token=tokens[number % 2]) for number in range(3)]
    for token in tokens:
        assert await refusal(await shared.client(token=token)) == (1013, "Too many connections")
    assert (await (await shared.client()).call("ping", 1))["result"] == 1
    clients[0].abort()
    await wait_until(lambda: shared.bifrost.registry.connections_of("eager") == 2, "a free place")
    assert (await (await shared.client(token=tokens[1])).call("ping", 2))["result"] == 2
    for client in clients[1:]:
        assert (await client.call("ping", 3))["result"] == 3
    asking = await shared.connect(
        f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {shared.admin}\r\n\r\n".encode()
    )
    assert await statuses(asking) == [200]
    assert b'zcomm_drops_total{reason="refused: Too many connections"} 2.0' in asking.reader.rest
    await shared.stands()


@pytest_twisted.ensureDeferred
async def test_r8_many_at_once_pass_no_limit(shared: Served):
    """Twenty handshakes under way together: three are in, and seventeen are told."""
    coming = [shared.client() for _ in range(20)]
    clients = [await client for client in coming]
    for client in clients:
        client.send_json({"zKey": "ping", "_requestId": 1})
    answers = [await client.next() for client in clients]
    told = [(frame.close_code, frame.close_reason) for frame in answers if frame.opcode == Opcode.CLOSE]
    assert told == [(1013, "Too many connections")] * 17 and shared.count == 3
    for client in clients:
        client.abort()
    await wait_until(lambda: shared.count == 0, "an empty registry")
    await shared.stands()


taken = serving("taken", limits={"connections": 32, "pending_per_peer": 200})
large = serving("large", limits={"connections": 204, "pending_per_peer": 400, "pending": 400})
anybody = serving("anybody", limits={"connections_per_user": 3}, require_auth=False)


@pytest_twisted.ensureDeferred
async def test_b39_the_last_places_are_the_operators(taken: Served):
    """Users who take all there are leave them: the operator gets in, and who has the role admin; nobody else does."""
    tokens = [taken.store.add(f"user {number}", "guest").token for number in range(3)]
    for number in range(30):
        await taken.client(token=tokens[number % 3])
    for token in tokens:
        assert await statuses(await taken.connect(handshake("127.0.0.1", token=token))) == [503]
    for token in (taken.admin, taken.tokens["admin"]):
        assert (await (await taken.client(token=token)).call("ping", 1))["result"] == 1
    assert await statuses(await taken.connect(handshake("127.0.0.1", token=taken.admin))) == [503]
    taken.clients[0].abort()
    await wait_until(lambda: taken.count == 31, "a free place")
    await taken.stands()


@pytest_twisted.ensureDeferred
async def test_b39_one_user_has_half_of_the_places(large: Served):
    """Where nobody says how many: with all its tokens together, and the others have the rest."""
    tokens = [large.store.add("eager", role).token for role in ("admin", "guest")]
    for number in range(102):
        await large.client(token=tokens[number % 2])
    for token in tokens:
        assert await refusal(await large.client(token=token)) == (1013, "Too many connections")
    assert (await (await large.client(token=large.tokens["guest"])).call("ping", 1))["result"] == 1
    await large.stands()


@pytest_twisted.ensureDeferred
async def test_b39_without_authentication_an_address_is_a_user(anybody: Served):
    """There one has its share as a user has elsewhere."""
    clients = [await anybody.client(token=None) for _ in range(3)]
    assert await refusal(await anybody.client(token=None)) == (1013, "Too many connections")
    clients[0].abort()
    await wait_until(lambda: anybody.count == 2, "a free place")
    assert anybody.bifrost.registry.connections_of("127.0.0.1") == 2
    assert (await (await anybody.client(token=None)).call("ping", 1))["result"] == 1
    for client in clients[1:]:
        client.abort()
    anybody.clients[-1].abort()
    await wait_until(lambda: anybody.count == 0, "an empty registry")
    assert anybody.bifrost.registry.connections_of("127.0.0.1") == 0
    await anybody.stands()


@pytest_twisted.ensureDeferred
async def test_r6_more_work_than_threads(heavy: Served):
    """A thousand reads at once from one client: all are answered, no thread per message, others are served."""
    import threading

    threads = threading.active_count()
    client, other = await heavy.client(), await heavy.client()
    for number in range(1000):
        client.send_json({"zKey": "read_Users", "zHorizontal": {"where": {"id": number}}, "_requestId": number})
    assert (await other.call("read_Users", {"limit": 1}))["result"] == []
    replies = [await client.next_json() for _ in range(1000)]
    assert {reply["_requestId"] for reply in replies} == set(range(1000))
    assert all(reply.get("result") == [] or reply.get("code") == "too_busy" for reply in replies)
    assert threading.active_count() <= threads + 1
    await heavy.stands()


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_r10_a_megabyte_of_brackets(served: Served):
    """Refused or read in one go; the next request is answered."""
    client = await served.client()
    client.send_text(b'{"zKey":"ping","zHorizontal":[' + b"[]," * 340_000 + b"[]]}")
    reply = await client.next_json()
    assert "result" in reply or reply["code"] == "bad_message"
    assert (await client.call("ping", 1))["result"] == 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_l2_what_a_peer_says_stays_on_its_line(served: Served):
    """Line ends, escapes and format fields from the wire never shape the log."""
    nasty = "http://evil\x1b[31m{0.__class__}%s{peer!r}"
    opening = handshake("127.0.0.1", token=served.admin, headers=[("Origin", nasty.replace("\x1b", "\u009b"))])
    client = await served.connect(opening)
    await client.next()
    assert (await refusal(client))[0] == 1008
    client = await served.client()
    reply = await client.call("x\n2026-01-01 forged\x1b[31m{0.__class__}%s" + "y" * 3000)
    assert reply["code"] == "unknown_command"
    assert "forged" not in served.log_text and "\x1b" not in served.log_text and "\x9b" not in served.log_text
    assert "__class__" not in served.log_text
    assert max(map(len, served.log_text.splitlines()), default=0) <= 1024
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_l2_the_key_of_a_command_that_failed_is_cut_and_escaped(served: Served):
    """It is in the log, where whoever looks for the cause needs it: on one line, not whole."""
    key = "bad\n2026-01-01 forged \x1b[31m" + "y" * 300
    served.bifrost.command(key)(lambda: 1 / 0)
    client = await served.client()
    assert (await client.call(key))["code"] == "internal"
    lines = [line for line in served.log_text.splitlines() if "forged" in line]
    assert len(lines) == 1 and not lines[0].startswith("2026-01-01 forged") and "\x1b" not in lines[0]
    assert "y" * 100 not in served.log_text
    await served.stands(failures=1)


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_l3_thousands_of_refusals_are_a_few_lines(served: Served):
    """At most one line a second for each cause, and a counter."""
    before = served.bifrost.factory.drops["refused: Invalid token"]
    began = served.reactor.seconds()
    for _ in range(300):
        client = await served.connect(path="/?token=wrong")
        client.abort()
        served.clients.remove(client)
    await wait_until(lambda: served.bifrost.factory.drops["refused: Invalid token"] == before + 300, "the count")
    lines = [line for line in served.log_text.splitlines() if "was not let in" in line]
    assert len(lines) <= served.reactor.seconds() - began + 2
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_l4_bodies_are_not_logged(served: Served):
    """Neither values nor passwords, of commands that succeed, fail or are none."""
    client = await served.client()
    await client.call(
        "create_Users", {"values": {"name": "very-private", "email": "no address", "password": "hunter2"}}
    )
    await client.call("nobody", {"token": "hunter2", "text": "very-private"})
    client.send_text("very-private hunter2")
    await client.next_json()
    assert "hunter2" not in served.log_text and "very-private" not in served.log_text
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_l5_a_log_observer_that_fails_stops_nobody(served: Served):
    """Commands and refusals go on while every line of the log raises."""

    def observer(event):
        raise RuntimeError("full disk")

    globalLogPublisher.addObserver(observer)
    try:
        client = await served.connect(path="/?token=wrong")
        assert (await refusal(client))[0] == 1008
        client = await served.client()
        assert (await client.call("ping", 1))["result"] == 1
    finally:
        globalLogPublisher.removeObserver(observer)
    served.log.clear()
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_t8_forwarded_headers_are_not_believed(served: Served):
    """Whoever connects says nothing about where it comes from."""
    client = await served.client(
        headers=[
            ("X-Forwarded-For", "203.0.113.9"),
            ("X-Forwarded-Proto", "https"),
            ("Forwarded", "for=9.9.9.9"),
        ]
    )
    await client.call("ping")
    assert [member.peer for member in served.bifrost.registry] == ["127.0.0.1"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_socket_closed_before_it_was_accepted(served: Served):
    """A peer that is gone when its turn comes is nobody."""
    for _ in range(20):
        with socket.socket() as visitor:
            visitor.connect(("127.0.0.1", served.port))
    await served.stands()


quick = serving("quick", limits={"ping_interval": 0.2})


@pytest_twisted.ensureDeferred
async def test_one_connection_that_fails_at_its_ping_stops_no_other(quick: Served):
    """It is cut off, the log has the cause, and the rest go on being pinged."""

    def broken() -> None:
        raise RuntimeError("the system gave this socket up")

    bad, good = await quick.client(), await quick.client()
    channel = min(quick.bifrost.registry, key=lambda member: member.id).transport
    channel.sendPing = broken
    # On a slow machine a ping may be out already; not that one's timeout shall end the connection.
    channel._session.heard = True
    for _ in range(3):
        ping = await good.next()
        good.send_frame(Opcode.PONG, ping.payload)
    await bad.when_ended()
    assert quick.count == 1
    await quick.stands(failures=1)
