"""Live queries of the Python client against a server that does what a test says, over loopback TCP."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
import pytest_twisted
from support.waiting import wait_until, wait_until_blocking
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher

from zcomm import WebSocketConfig, errors, zBifrost
from zcomm.client import Client, Live, connect, threaded
from zcomm.config import Limits
from zcomm.interfaces import Client as Peer
from zcomm.interfaces import Request
from zcomm.runtime.thread import blocking

A, B, C = ({"id": number, "name": name} for number, name in ((1, "a"), (2, "b"), (3, "c")))
NOTHING = {"added": [], "removed": [], "changed": []}
SAME = {"kind": "same", **NOTHING}


class QueryServer:
    """A real zBifrost whose answers to zLive a test decides: what the product's own never says, and when it does not.

    :ivar rows: what every query finds; ``None``: it is answered when the test says so.
    :ivar say: called with what is asked; what it returns is the answer, unless that is ``None``.
    :ivar asked: each command that came, as its key and what it said.
    """

    def __init__(self) -> None:
        self.bifrost = zBifrost(WebSocketConfig(port=0, require_auth=False, limits=Limits(ping_interval=3600.0)))
        self.rows: list[dict[str, Any]] = [A, B]
        self.say: Any = lambda asked: None
        self.asked: list[tuple[str, Any]] = []
        self.peer: Peer | None = None
        self.bifrost.dispatcher.reserve("zLive", self._live)
        self.bifrost.dispatcher.reserve("zUnsubscribe", self._unsubscribe)

    def _live(self, request: Request, client: Peer) -> Any:
        asked: Any = request.horizontal
        self.asked.append(("zLive", asked))
        self.peer = client
        said = self.say(asked)
        if isinstance(said, errors.CommandError):
            raise said
        return self.reply(asked) if said is None else said

    def reply(self, asked: Any) -> dict[str, Any]:
        """What it finds now."""
        digest = repr(self.rows)
        found: dict[str, Any] = {"same": True} if asked.get("known") == digest else {"rows": self.rows}
        return {"query": asked["query"], "key": ["id"], "digest": digest, "step": 1, "sees": "all", **found}

    def _unsubscribe(self, request: Request, client: Peer) -> Any:
        self.asked.append(("zUnsubscribe", request.horizontal))
        return request.horizontal

    def asked_for(self, key: str) -> list[Any]:
        """What each command of that key said."""
        return [asked for name, asked in self.asked if name == key]

    def tell(self, **queries: Any) -> None:
        """One step of the newest connection."""
        assert self.peer is not None
        self.peer.send({"event": "live", "step": 2, "queries": queries})

    def lose_all(self, code: int = 1001) -> None:
        """End all connections."""
        for client in self.bifrost.clients:
            client.close(code, "restart")


@pytest_twisted.async_yield_fixture
async def server() -> AsyncIterator[QueryServer]:
    """One server for one test."""
    server = QueryServer()
    await server.bifrost.listen()
    yield server
    await server.bifrost.stopService()


@pytest_twisted.async_yield_fixture
async def client(server: QueryServer) -> AsyncIterator[Client]:
    """A client of it, that leaves with the test."""
    client = await connect(server.bifrost.url, timeout=30)
    yield client
    await client.disconnect()


def tellings(live: Live) -> list[Any]:
    """Everything that listeners are told, in order."""
    told: list[Any] = []
    live.on("status", lambda status: told.append(status))
    live.on("error", lambda error: told.append(error.code))
    live.subscribe(lambda rows, change: told.append((list(rows), change)))
    return told


async def failure_of(deferred: Any) -> Any:
    """What a Deferred fails with."""
    try:
        result = await deferred
    except Exception as error:
        return error
    raise AssertionError(f"it did not fail: {result!r}")


async def heard_all(client: Client) -> None:
    """All that the server has said by now has come."""
    assert await client.send({"zKey": "ping"}) == "ping"


@pytest_twisted.ensureDeferred
async def test_rows_and_what_is_different(client: Client, server: QueryServer):
    """The first who subscribes asks for it, as it was meant when it was made; who comes later is told at once."""
    filters, fields = {"status__in": ["new"], "total__gt": 2**70}, ["name"]
    live = client.live("Orders", filters, fields=fields, order_by=["name"], limit=5)
    filters["status__in"].append("paid")
    fields.append("total")
    await heard_all(client)
    assert not server.asked and (live.rows, live.status, live.error, live.sees) == ([], "loading", None, None)
    told = tellings(live)
    assert told == [([], SAME)]
    await wait_until(lambda: live.status == "live", "the rows")
    assert server.asked == [
        (
            "zLive",
            {
                "query": "q1",
                "model": "Orders",
                "where": {"status__in": ["new"], "total__gt": 2**70},
                "fields": ["name"],
                "order_by": ["name"],
                "limit": 5,
            },
        )
    ]
    assert told[1:] == [([A, B], {"kind": "initial", **NOTHING, "added": [A, B]}), "live"]
    assert (live.sees, live.digest, repr(live)) == ("all", repr([A, B]), "<live Orders, live>")
    before = live.get_snapshot()
    changed = {**A, "name": "z"}
    server.tell(q1={"gone": [2], "set": [[0, C], [1, changed]], "digest": "d2"}, q9={"gone": [1]})
    await wait_until(lambda: len(told) == 4, "the step")
    change = {"kind": "change", "added": [C], "removed": [B], "changed": [{"row": changed, "before": A}]}
    assert told[3] == ([C, changed], change) and live.get_snapshot() is live.rows is not before
    assert (live.sees, live.digest) == ("all", "d2")
    later: list[Any] = []
    live.subscribe(lambda rows, change: later.append(change))
    assert later == [{"kind": "initial", **NOTHING, "added": [C, changed]}] and len(server.asked) == 1


@pytest_twisted.ensureDeferred
async def test_a_step_is_told_when_all_queries_have_taken_it(client: Client, server: QueryServer):
    """Listeners of one see the other as it is then; one that raises keeps nobody from hearing."""
    first, second = client.live("Orders"), client.live("Users", 7)
    seen: list[Any] = []
    failures: list[Any] = []
    globalLogPublisher.addObserver(failures.append)
    try:
        first.subscribe(lambda rows, change: change["nothing"])
        first.subscribe(lambda rows, change: seen.append((len(first.rows), len(second.rows))))
        second.subscribe(lambda rows, change: seen.append((len(first.rows), len(second.rows))))
        await wait_until(lambda: second.status == "live", "the rows")
        assert server.asked_for("zLive")[1]["where"] == {"id": 7}
        seen.clear()
        server.tell(q1={"gone": [1]}, q2={"set": [[2, C]]})
        await wait_until(lambda: len(seen) == 2, "the step")
    finally:
        globalLogPublisher.removeObserver(failures.append)
    assert seen == [(1, 3), (1, 3)]
    assert len([failure for failure in failures if "log_failure" in failure]) == 3


@pytest_twisted.ensureDeferred
async def test_it_ends_when_nobody_looks_any_more(client: Client, server: QueryServer):
    """Not between two looks in one turn; and with the rows that it had it goes on later."""
    live = client.live("Orders")
    stop = live.subscribe(lambda rows, change: None)
    await wait_until(lambda: live.status == "live", "the rows")
    before = live.rows
    stop()
    stop()
    again = live.subscribe(lambda rows, change: None)
    await heard_all(client)
    assert live.status == "live" and len(server.asked) == 1
    again()
    await wait_until(lambda: live.status == "stale", "the end")
    server.tell(q1={"gone": [1]})
    await heard_all(client)
    assert server.asked[1:] == [("zUnsubscribe", {"query": "q1"})] and live.rows is before
    told: list[Any] = []
    live.subscribe(lambda rows, change: told.append(change["kind"]))
    await wait_until(lambda: live.status == "live", "the rows again")
    asked = server.asked_for("zLive")[1]
    assert (asked["query"], asked["known"], told) == ("q2", repr([A, B]), ["initial", "same"]) and live.rows is before
    live.stop()
    live.stop()
    await heard_all(client)
    assert live.status == "stale" and server.asked[3:] == [("zUnsubscribe", {"query": "q2"})]


@pytest_twisted.ensureDeferred
async def test_looked_at_while_it_is_asked_for(client: Client, server: QueryServer):
    """Who comes takes the answer that is under way; where nobody does, the query ends with it."""
    answers: list[Deferred[Any]] = []
    server.say = lambda asked: answers.append(Deferred()) or answers[-1]
    live = client.live("Orders")
    live.subscribe(lambda rows, change: None)()
    await wait_until(lambda: answers, "the question")
    await heard_all(client)
    stop = live.subscribe(lambda rows, change: None)
    server.tell(q1={"gone": [1]})
    answers.pop().callback(server.reply(server.asked[0][1]))
    await wait_until(lambda: live.status == "live", "the rows")
    assert len(server.asked) == 1 and live.rows == [A, B]
    other = client.live("Users")
    other.subscribe(lambda rows, change: None)()
    await wait_until(lambda: answers, "the question")
    stop()
    await wait_until(lambda: live.status == "stale", "the end")
    answers.pop().callback(server.reply(server.asked[1][1]))
    await wait_until(lambda: len(server.asked_for("zUnsubscribe")) == 2, "the end of the other")
    assert (other.status, other.rows, server.asked[-1][1]) == ("loading", [], {"query": "q2"})


@pytest_twisted.ensureDeferred
async def test_a_lost_connection(client: Client, server: QueryServer):
    """The rows are stale until the next one. Nobody is told of those that are the same: they stay the same objects."""
    live = client.live("Orders")
    told = tellings(live)
    rows = await live.start()
    told.clear()
    server.lose_all()
    await wait_until(lambda: told[-1:] == ["live"], "the next connection")
    assert told == [([A, B], SAME), "stale", ([A, B], SAME), "live"] and live.rows is rows
    told.clear()
    server.rows = [C, dict(B)]
    server.lose_all()
    await wait_until(lambda: told[-1:] == ["live"], "the next connection")
    assert told[2:] == [([C, B], {"kind": "reset", "added": [C], "removed": [A], "changed": []}), "live"]
    assert live.rows[1] is rows[1] and [asked["query"] for asked in server.asked_for("zLive")] == ["q1", "q2", "q3"]
    server.tell(q1={"gone": [2]}, q2={"gone": [2]}, q3={"sees": "own"})
    await wait_until(lambda: live.sees == "own", "the word")
    assert live.rows == [C, B] and told[-1] == ([C, B], SAME)


@pytest_twisted.ensureDeferred
async def test_events_before_the_answer_are_of_something_else(client: Client, server: QueryServer):
    """They change nothing; and what nobody looks at as the connection is lost is asked for again by who looks."""
    live = client.live("Orders")
    stop = live.subscribe(lambda rows, change: None)
    await wait_until(lambda: live.status == "live", "the rows")
    live.on("status", lambda status: stop())
    states: list[str] = []
    client.on("state", states.append)
    server.lose_all()
    await wait_until(lambda: states == ["reconnecting", "connected"], "the next connection")
    assert live.status == "stale"
    await heard_all(client)
    assert len(server.asked) == 1
    answers: list[Deferred[Any]] = []
    server.say = lambda asked: answers.append(Deferred()) or answers[-1]
    live.subscribe(lambda rows, change: None)
    await wait_until(lambda: answers, "the question")
    server.tell(q1={"gone": [1]}, q2={"gone": [1]})
    await heard_all(client)
    assert live.rows == [A, B] and live.status == "stale"
    answers[0].callback(server.reply(server.asked[-1][1]))
    await wait_until(lambda: live.status == "live", "the rows")
    server.tell(q2={"gone": [1]})
    await wait_until(lambda: live.rows == [B], "the step")


@pytest_twisted.ensureDeferred
async def test_start(client: Client, server: QueryServer):
    """It waits for the rows, and keeps them live; without a connection, or where it is refused, it fails."""
    live = client.live("Orders")
    assert await live.start() == [A, B] == await live.start()
    server.tell(q1={"gone": [1]})
    await wait_until(lambda: live.rows == [B], "the step")
    answers: list[Deferred[Any]] = []
    server.say = lambda asked: answers.append(Deferred()) or answers[-1]
    other = client.live("Users")
    assert isinstance(await failure_of(other.start(timeout=0.05)), errors.CommandTimeout)
    waiting = other.start()
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)
    waiting = other.start()
    other.stop()
    assert isinstance(await failure_of(waiting), errors.ConnectionLost)
    abandoned = client.live("Pages")
    assert isinstance(await failure_of(abandoned.start(timeout=0.05)), errors.CommandTimeout)
    answers[-1].callback(server.reply(server.asked[-1][1]))
    await wait_until(lambda: server.asked_for("zUnsubscribe"), "the end of what nobody waits for")
    of_client: list[Any] = []
    client.on("error", of_client.append)
    refusal = errors.TooBusy("Later")
    server.say = lambda asked: refusal
    third = client.live("Items")
    assert isinstance(await failure_of(third.start()), errors.TooBusy)
    refusal = errors.PermissionDenied("No")
    assert isinstance(await failure_of(third.start()), errors.PermissionDenied) and not of_client
    server.say = lambda asked: None
    await client.disconnect()
    assert (live.status, live.rows) == ("stale", [B])
    assert isinstance(await failure_of(live.start()), errors.ConnectionLost)
    assert isinstance(await failure_of(other.start()), errors.ConnectionLost)
    server.asked.clear()
    await client.connect()
    await wait_until(lambda: live.status == "live", "the rows")
    await heard_all(client)
    assert [asked["model"] for asked in server.asked_for("zLive")] == ["Orders"]


@pytest_twisted.ensureDeferred
async def test_an_error_ends_it(client: Client, server: QueryServer):
    """At once or later: it is told once, iterations raise it, and the next look begins anew."""
    of_client: list[Any] = []
    client.on("error", lambda error: of_client.append(error.code))
    refusal = errors.PermissionDenied("No")
    server.say = lambda asked: refusal
    live = client.live("Orders")
    told = tellings(live)
    await wait_until(lambda: live.status == "error", "the refusal")
    assert told == [([], SAME), ([], SAME), "error", "permission_denied"] and live.error.code == "permission_denied"
    unheard = client.live("Users")
    stop = unheard.subscribe(lambda rows, change: None)
    await wait_until(lambda: unheard.status == "error", "the refusal")
    assert of_client == ["permission_denied"]
    states: list[str] = []
    client.on("state", states.append)
    server.lose_all()
    await wait_until(lambda: states == ["reconnecting", "connected"], "the next connection")
    await heard_all(client)
    assert len(server.asked) == 2
    server.say = lambda asked: None
    unheard.subscribe(lambda rows, change: None)
    assert (unheard.status, unheard.error) == ("loading", None)
    await wait_until(lambda: unheard.status == "live", "the rows")
    stop()
    rows = aiter(unheard)
    assert await anext(rows) == [A, B]
    server.tell(q3={"error": "No more", "code": "permission_denied", "final": True})
    assert isinstance(await failure_of(anext(rows)), errors.PermissionDenied)
    with pytest.raises(StopAsyncIteration):
        await anext(rows)
    rows = aiter(unheard)
    assert await anext(rows) == [A, B]
    await wait_until(lambda: unheard.status == "live", "the rows")
    server.tell(q4={"error": "No more", "code": "permission_denied", "final": True})
    await wait_until(lambda: unheard.status == "error", "the end")
    assert isinstance(await failure_of(anext(rows)), errors.PermissionDenied)
    with pytest.raises(StopAsyncIteration):
        await anext(rows)
    assert (unheard.status, unheard.rows) == ("error", [A, B]) and of_client == ["permission_denied"]
    await heard_all(client)
    assert not server.asked_for("zUnsubscribe")


@pytest_twisted.ensureDeferred
async def test_an_error_that_may_pass(client: Client, server: QueryServer):
    """It is told once, and asked again after a while."""
    refusals = [errors.TooBusy("Later"), errors.TooBusy("Later")]
    server.say = lambda asked: refusals.pop() if refusals else None
    live = client.live("Orders")
    told = tellings(live)
    await wait_until(lambda: live.error is not None, "the refusal")
    assert (live.status, live.error.code) == ("loading", "too_busy")
    await wait_until(lambda: live.status == "live", "the rows")
    assert told.count("too_busy") == 1 and live.error is None and len(server.asked) == 3
    refusals.append(errors.TooBusy("Later"))
    server.lose_all()
    await wait_until(lambda: told.count("too_busy") == 2, "the refusal")
    assert (live.status, live.rows) == ("stale", [A, B])
    live.stop()
    await heard_all(client)
    assert len(server.asked) == 4 and live.status == "stale"


@pytest_twisted.ensureDeferred
async def test_no_answer_in_time(server: QueryServer):
    """The question may have come too late: the query is ended before it is asked for again."""
    client = await connect(server.bifrost.url, timeout=0.2)
    answers: list[Deferred[Any]] = []
    server.say = lambda asked: None if answers else answers.append(Deferred()) or answers[0]
    live = client.live("Orders")
    live.subscribe(lambda rows, change: None)
    await wait_until(lambda: live.status == "live", "the rows")
    assert server.asked[1] == ("zUnsubscribe", {"query": "q1"}) and server.asked[2][1]["query"] == "q2"
    answers[0].callback({})
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_what_is_no_answer_and_no_event(client: Client, server: QueryServer):
    """An answer without rows ends the query; an event that is none changes nothing; a broadcast is one."""
    server.say = lambda asked: {"query": asked["query"], "key": ["id"]}
    live = client.live("Orders")
    live.subscribe(lambda rows, change: None)
    await wait_until(lambda: live.status == "error", "the end")
    await heard_all(client)
    assert live.error.code == "internal" and server.asked[-1] == ("zUnsubscribe", {"query": "q1"})
    server.say = lambda asked: None
    await live.start()
    for news in (None, 5, "x", {"reset": 5}, {"set": [[0]]}, {"set": [[0, {"name": "c"}]]}, {"gone": 3}):
        server.tell(q2=news)
    heard: list[Any] = []
    client.on_broadcast(heard.append)
    assert server.peer is not None
    server.peer.send({"event": "live", "song": 1})
    await heard_all(client)
    assert live.rows == [A, B] and heard == [{"event": "live", "song": 1}]


@pytest_twisted.ensureDeferred
async def test_iterations(client: Client, server: QueryServer):
    """They have the rows now and after changes, the last of several, and nothing of what is no change; the query ends
    when the last one is left."""
    live = client.live("Orders")
    async for rows in live:
        assert rows == [A, B]
        break
    gc.collect()
    await wait_until(lambda: live.status == "stale", "the end")
    snapshots = aiter(live)
    assert aiter(snapshots) is snapshots and await anext(snapshots) == [A, B]
    first, second = (Deferred.fromCoroutine(anext(snapshots)) for _ in range(2))
    await wait_until(lambda: live.status == "live", "the rows again")
    server.tell(q2={"sees": "own"})
    server.tell(q2={"set": [[2, C]]})
    assert await first == [A, B, C]
    stop = live.subscribe(lambda rows, change: None)
    second.cancel()
    assert isinstance(await failure_of(second), CancelledError)
    server.tell(q2={"gone": [1]})
    server.tell(q2={"gone": [2]})
    await heard_all(client)
    assert await anext(snapshots) == [C]
    stop()
    waiting = Deferred.fromCoroutine(anext(snapshots))
    live.stop()
    assert isinstance(await failure_of(waiting), StopAsyncIteration)
    server.lose_all(1008)
    snapshots = aiter(live)
    await anext(snapshots)
    assert isinstance(await failure_of(anext(snapshots)), errors.ConnectionLost)
    await client.connect()
    await heard_all(client)
    assert live.status == "stale"
    snapshots = aiter(live)
    await anext(snapshots)
    await client.disconnect()
    with pytest.raises(StopAsyncIteration):
        await anext(snapshots)


@pytest_twisted.ensureDeferred
async def test_iterations_that_are_cancelled(client: Client, server: QueryServer):
    """The query ends, whoever keeps what was raised; who reads on gets what has changed since, and no rows twice."""
    live = client.live("Orders")
    seen: list[Any] = []

    async def follow() -> None:
        async for rows in live:
            seen.append(rows)

    following = Deferred.fromCoroutine(follow())
    await wait_until(lambda: seen, "the rows")
    following.cancel()
    cancelled = await failure_of(following)
    assert isinstance(cancelled, CancelledError) and cancelled.__traceback__ is not None
    await wait_until(lambda: live.status == "stale", "the end")
    await heard_all(client)
    assert server.asked_for("zUnsubscribe") == [{"query": "q1"}] and seen == [[A, B]]

    changes = aiter(live)
    assert await anext(changes) == [A, B]
    await wait_until(lambda: live.status == "live", "the rows again")
    first, second = (Deferred.fromCoroutine(anext(changes)) for _ in range(2))
    first.cancel()
    assert isinstance(await failure_of(first), CancelledError)
    await heard_all(client)
    assert live.status == "live", "the second one waits"
    second.cancel()
    assert isinstance(await failure_of(second), CancelledError)
    waiting = Deferred.fromCoroutine(anext(changes))
    await heard_all(client)
    assert live.status == "live" and len(server.asked_for("zUnsubscribe")) == 1, "it was read on at once"
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)
    await wait_until(lambda: live.status == "stale", "the end")

    waiting = Deferred.fromCoroutine(anext(changes))
    await wait_until(lambda: live.status == "live", "the rows again")
    await heard_all(client)
    assert not waiting.called, "it has given these rows"
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)
    await wait_until(lambda: live.status == "stale", "the end")
    server.rows = [B]
    assert await anext(changes) == [B]

    waiting = Deferred.fromCoroutine(anext(changes))
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)
    live.stop()
    assert isinstance(await failure_of(anext(changes)), StopAsyncIteration)
    asked = len(server.asked_for("zLive"))
    changes = aiter(live)
    await anext(changes)
    waiting = Deferred.fromCoroutine(anext(changes))
    waiting.cancel()
    assert isinstance(await failure_of(waiting), CancelledError)
    await heard_all(client)
    await client.disconnect()
    assert isinstance(await failure_of(anext(changes)), errors.ConnectionLost)
    assert isinstance(await failure_of(anext(changes)), StopAsyncIteration)
    assert len(server.asked_for("zLive")) == asked + 1


@pytest_twisted.ensureDeferred
async def test_an_iteration_that_is_closed(client: Client, server: QueryServer):
    """The query ends, whoever keeps the iteration, and so does who still waits for it."""
    live = client.live("Orders")
    with closing(aiter(live)) as changes:
        assert await anext(changes) == [A, B]
        waiting = Deferred.fromCoroutine(anext(changes))
    assert isinstance(await failure_of(waiting), StopAsyncIteration)
    assert isinstance(await failure_of(anext(changes)), StopAsyncIteration)
    await wait_until(lambda: live.status == "stale", "the end")
    live.subscribe(lambda rows, change: None)
    with closing(aiter(live)) as changes:
        assert await anext(changes) == [A, B]
        await wait_until(lambda: live.status == "live", "the rows again")
        server.tell(q2={"set": [[2, C]]})
        await wait_until(lambda: len(live.rows) == 3, "rows that are not read")
    assert isinstance(await failure_of(anext(changes)), StopAsyncIteration)


@pytest_twisted.ensureDeferred
async def test_who_is_taken_out_hears_nothing_more(client: Client, server: QueryServer):
    """Nor does who subscribes while others are told hear anything twice."""
    first, second = client.live("Orders"), client.live("Users")
    heard: list[Any] = []

    def listen(rows: Any, change: Any) -> None:
        if change["kind"] == "change":
            stop()
            second.subscribe(lambda rows, change: heard.append((change["kind"], len(rows))))

    first.subscribe(listen)
    stop = first.subscribe(lambda rows, change: change["kind"] == "change" and heard.append("wrong"))
    await second.start()
    server.tell(q1={"gone": [1]}, q2={"gone": [1]})
    await wait_until(lambda: second.rows == [B], "the step")
    assert heard == [("initial", 1)]
    third = client.live("Items")
    third.subscribe(lambda rows, change: third.stop())
    await heard_all(client)
    assert len(server.asked) == 2


def test_what_cannot_be_meant():
    """It is refused when the query is made."""
    client = Client("ws://127.0.0.1:9")
    for wrong, why in (
        (lambda: client.live(""), "non-empty string"),
        (lambda: client.live("Orders", 1.5), "filters are an id"),
        (lambda: client.live("Orders", {"a": float("nan")}), "where.a is nan"),
        (lambda: client.live("Orders", offset=5), "offset"),
        (lambda: client.live("Orders").subscribe(None), "a listener is a function"),
    ):
        with pytest.raises(TypeError, match=why):
            wrong()
    with pytest.raises(ValueError, match="no event of that name"):
        client.live("Orders").on("rows", print)


@pytest_twisted.ensureDeferred
async def test_a_program_without_a_reactor(server: QueryServer):
    """It waits for rows and changes; listeners are called in a thread where they may wait."""

    def use() -> None:
        with threaded.connect(server.bifrost.url) as client:
            live = client.live("Orders", {"name": "a"}, fields=["name"], order_by="name", limit=5)
            assert (live.model, live.status, live.rows, live.error, live.sees) == ("Orders", "loading", [], None, None)
            heard: list[Any] = []

            def listen(rows: Any, change: Any) -> None:
                heard.append((change["kind"], client.send({"zKey": "ping"}), threading.current_thread().name))

            statuses: list[str] = []
            live.on("status", statuses.append)
            stop = live.subscribe(listen)
            assert live.start() == [A, B] == live.get_snapshot() and live.digest == repr([A, B])
            wait_until_blocking(lambda: len(heard) == 2 and statuses, "the rows")
            assert [kind for kind, *_ in heard] == ["same", "initial"] and heard[0][2].startswith("zcomm-listener")
            stop()
            seen = []
            for rows in live:
                seen.append(len(rows))
                if len(rows) == 1:
                    break
                blocking(server.tell, q1={"gone": [1]})
            assert seen == [2, 1]
            rows = iter(live)
            assert iter(rows) is rows and next(rows) == [B]
            live.stop()
            assert list(rows) == [] and repr(live) == "<live Orders, stale>"
            wait_until_blocking(lambda: statuses == ["live", "stale"], "the end")

    await deferToThread(use)


@pytest_twisted.ensureDeferred
async def test_what_a_listener_does_is_told_afterwards(client: Client, server: QueryServer):
    """Everybody hears everything in its order, also where one of them leaves the server in the middle of a step."""
    first, second = client.live("Orders"), client.live("Users")
    heard: list[Any] = []
    first.subscribe(lambda rows, change: change["kind"] == "change" and client.disconnect())
    second.subscribe(lambda rows, change: heard.append((change["kind"], len(rows), len(change["removed"]))))
    second.on("status", heard.append)
    snapshots = aiter(second)
    await second.start()
    await anext(snapshots)
    heard.clear()
    server.tell(q1={"gone": [1]}, q2={"gone": [1]})
    await wait_until(lambda: second.status == "stale", "the end")
    assert heard == [("change", 1, 1), ("same", 1, 0), "stale"]
    assert await anext(snapshots) == [B]
    with pytest.raises(StopAsyncIteration):
        await anext(snapshots)


@pytest_twisted.ensureDeferred
async def test_another_key(client: Client, server: QueryServer):
    """The server comes back with another model behind the name: rows are told apart by what its answer says."""
    server.say = lambda asked: {**server.reply(asked), "key": ["name"]} if asked["query"] == "q2" else None
    live = client.live("Orders")
    await live.start()
    server.rows = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
    server.lose_all()
    await wait_until(lambda: live.rows == server.rows, "the rows again")
    server.tell(q2={"gone": ["a"]})
    await wait_until(lambda: live.rows == server.rows[1:], "the step")
