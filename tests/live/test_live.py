"""Live queries at a real server: rights at every step, commands that cross each other, bounds, slow clients."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from support.liverows import Rows, ask, events, serve, texts, write, writing
from support.postgres import Cluster
from support.served import Served
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.threads import deferToThread

from zcomm.auth.policy import Policy
from zcomm.data.execution import Execution
from zcomm.live.subscriber import Subscriber
from zcomm.web.metrics import metrics_of

SCHEMA = """
Notes:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str, required: true}
  text: {type: str}
  secret: {type: str}
  rank: {type: int, default: 0}
Parts:
  _model: {live: true}
  id: {type: int, pk: true}
  note_id: {type: int, fk: Notes.id, on_delete: cascade}
"""
POLICY = """
admin: {models: "*"}
member:
  models:
    Notes: {actions: "*", rows: {owner: $name}, fields: {hide: [secret]}}
    Parts: [read]
"""


@pytest_twisted.async_yield_fixture
async def served(postgresql: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Served]:
    """A server with notes of several owners."""
    server = await serve(tmp_path, SCHEMA, url, users=("ann", "bob"), policy=POLICY)
    yield server
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_each_hears_of_the_rows_in_its_reach_and_of_no_hidden_field(served: Served):
    """Who has a right to its own rows has those, also as they come and go by another's hand; a hidden field is in no
    row, and can neither be asked by nor ordered by."""
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    mine = await Rows(ann, "q").ask("Notes", order_by="text")
    for owner, text in (("ann", "b"), ("bob", "x"), ("ann", "a")):
        await ask(admin, "create_Notes", {"values": {"owner": owner, "text": text, "secret": "s"}})
    assert texts(await mine.until(lambda rows: len(rows) == 2)) == ["a", "b"]
    assert all("secret" not in row for row in mine.rows)
    await ask(admin, "update_Notes", {"where": {"text": "x"}, "values": {"owner": "ann"}})
    assert texts(await mine.until(lambda rows: len(rows) == 3)) == ["a", "b", "x"]
    await ask(admin, "update_Notes", {"where": {"text": "a"}, "values": {"owner": "bob"}})
    assert texts(await mine.until(lambda rows: len(rows) == 2)) == ["b", "x"]
    before = len(events(ann))
    await ask(admin, "update_Notes", {"where": {"text": "b"}, "values": {"secret": "t"}})
    # A step that has seen it all is over when this has come.
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "z"}})
    await mine.until(lambda rows: len(rows) == 3)
    told = [event["queries"]["q"] for event in events(ann)[before:]]
    assert all(row["text"] == "z" for made in told for _, row in made.get("set", ()))
    for asked in ({"where": {"secret": "s"}}, {"order_by": "secret"}, {"fields": ["secret"]}):
        reply = await ann.call("zLive", {"query": "other", "model": "Notes", **asked})
        assert reply["code"] == "unknown_field", reply
    reply = await ann.call("zLive", {"query": "other", "model": "Users"})
    assert reply["code"] == "permission_denied"
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_rights_that_change_take_effect_in_the_running_query(served: Served):
    """With another policy a query has other rows, or has ended, at once; who keeps its rights is told nothing."""
    admin, ann, bob = [
        await served.client(**({} if who is None else {"token": served.tokens[who]})) for who in (None, "ann", "bob")
    ]
    for owner in ("ann", "bob"):
        await ask(admin, "create_Notes", {"values": {"owner": owner, "text": owner, "secret": "s"}})
    of_ann = await Rows(ann, "q").ask("Notes")
    of_bob = await Rows(bob, "q").ask("Notes", where={"text": "bob"}, fields=["text"])
    everything = await Rows(admin, "q").ask("Notes")
    policy = served.comm.program.permissions
    assert isinstance(policy, Policy)
    policy.become(Policy.from_yaml('admin: {models: "*"}\nmember: {models: {Notes: [read]}}', "test"))
    served.comm.judge_live()
    await of_ann.until(lambda rows: len(rows) == 2)
    assert {row["secret"] for row in of_ann.rows} == {"s"}
    assert texts(await of_bob.until(lambda rows: len(rows) == 1)) == ["bob"]
    policy.become(Policy.from_yaml('admin: {models: "*"}\nmember: {models: {Parts: [read]}}', "test"))
    served.comm.judge_live()
    await wait_until(lambda: (of_ann.now(), of_ann.error)[1] == "permission_denied", "the end of the query")
    seen = len(events(ann))
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "new"}})
    await everything.until(lambda rows: len(rows) == 3)
    assert len(events(ann)) == seen
    assert all("reset" not in event["queries"]["q"] for event in events(admin))
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_all_queries_of_a_connection_wait_for_the_one_that_is_judged_anew(served: Served, url: str):
    """While a table keeps its readers waiting nothing is told of others to who has rights to other rows of it now; then
    all is told in one step. Whoever has the rights of before goes on."""
    if url.startswith("sqlite"):
        return
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    await ask(admin, "create_Notes", {"values": {"owner": "bob", "text": "b"}})
    for note in (None, 1):
        await ask(admin, "create_Parts", {"values": {"note_id": note}})
    notes, parts = await Rows(ann, "notes").ask("Notes"), await Rows(ann, "parts").ask("Parts")
    everything = await Rows(admin, "notes").ask("Notes")
    assert (len(notes.rows), len(parts.rows)) == (0, 2)
    policy = served.comm.program.permissions
    assert isinstance(policy, Policy)
    with psycopg.connect(url) as other:
        await deferToThread(other.execute, 'LOCK TABLE "Parts" IN ACCESS EXCLUSIVE MODE')
        of_parts = "Parts: {actions: [read], rows: {note_id: 1}}"
        policy.become(Policy.from_yaml(POLICY.replace("Parts: [read]", of_parts), "test"))
        served.comm.judge_live()
        write(url, """INSERT INTO "Notes" (id, owner) VALUES (7, 'ann')""")
        await everything.until(lambda rows: len(rows) == 2)
        await ask(ann, "ping", None)
        assert events(ann) == []
    await parts.until(lambda rows: [row["note_id"] for row in rows] == [1])
    assert [row["id"] for row in notes.now()] == [7]
    assert [set(event["queries"]) for event in events(ann)] == [{"notes", "parts"}]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_rows_that_no_client_sees_are_not_too_large(served: Served, url: str):
    """Of a query with a limit more rows are kept than it shows; where these come to too much, it goes on without."""
    admin = await served.client()
    for number in range(5):
        await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": f"{number}" * 900_000}})
    asked: dict[str, object] = {"fields": ["text"], "order_by": "rank", "limit": 4}
    first = await Rows(admin, "first").ask("Notes", **asked)
    assert [row["text"][0] for row in first.rows] == ["0", "1", "2", "3"]
    for number in range(5):
        await ask(admin, "create_Notes", {"values": {"owner": "bob", "text": f"{number}", "rank": 1 + number}})
    later = await Rows(admin, "later").ask("Notes", where={"owner": "bob"}, **asked)
    assert texts(later.rows) == ["0", "1", "2", "3"]
    for number in range(4, -1, -1):
        change = {"where": {"owner": "bob", "text": f"{number}"}, "values": {"text": f"{number}" * 900_000}}
        await ask(admin, "update_Notes", change)
    await later.until(lambda rows: [row["text"] for row in rows] == [f"{number}" * 900_000 for number in range(4)])
    await ask(admin, "delete_Notes", {"where": {"rank": 1}})
    await later.until(lambda rows: [row["text"][0] for row in rows] == ["1", "2", "3", "4"])
    await ask(admin, "delete_Notes", {"where": {"owner": "ann"}})
    await first.until(lambda rows: [row["text"][0] for row in rows] == ["1", "2", "3", "4"])
    assert later.error == first.error == ""
    write(url, f"""UPDATE "Notes" SET text = '{"x" * 1_200_000}' WHERE owner = 'bob'""")
    await wait_until(lambda: (first.now(), first.error)[1] == "invalid", "the end of what is too large")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_right_that_is_gone_is_not_told_by_even_where_nobody_judges(served: Served):
    """A step asks for the rights anew: of rows that are out of reach by then nothing is told."""
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    mine = await Rows(ann, "q").ask("Notes")
    policy = served.comm.program.permissions
    assert isinstance(policy, Policy)
    policy.become(Policy.from_yaml('admin: {models: "*"}\nmember: {models: {Parts: [read]}}', "test"))
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "after"}})
    await wait_until(lambda: (mine.now(), mine.error)[1] == "permission_denied", "the end of the query")
    assert mine.rows == []
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_known_rows_are_not_sent_again(served: Served):
    """With the digest of the rows that there are the reply says the same; with that of others it has the rows."""
    admin = await served.client()
    rows = await Rows(admin, "q").ask("Notes", fields=["text"], order_by="rank DESC")
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "a", "rank": 1}})
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "b", "rank": 2}})
    await rows.until(lambda rows: len(rows) == 2)
    asked = {"query": "other", "model": "Notes", "fields": ["text"], "order_by": "rank DESC"}
    again = await ask(await served.client(), "zLive", {**asked, "known": rows.digest})
    assert again["same"] is True and "rows" not in again
    # The two change places, and no row has another byte.
    await ask(admin, "update_Notes", {"where": {"text": "a"}, "values": {"rank": 3}})
    before = rows.digest
    await rows.until(lambda rows: texts(rows) == ["a", "b"])
    other = await ask(await served.client(), "zLive", {**asked, "known": before})
    assert texts(other["rows"]) == ["a", "b"] and other["digest"] == rows.digest
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_reply_has_what_was_written_before(served: Served):
    """What a write has been answered for is in the reply to a query that is asked then, also where it is shared."""
    admin, other = await served.client(), await served.client()
    await Rows(admin, "q").ask("Notes")
    for number in range(20):
        await ask(other, "create_Notes", {"values": {"owner": "ann", "text": str(number)}})
        result = await ask(other, "zLive", {"query": f"q{number}", "model": "Notes"})
        assert len(result["rows"]) == number + 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_commands_on_one_query_take_effect_in_order(served: Served):
    """Asked for, ended and asked for anew in one breath: the last one counts, and is told of."""
    admin = await served.client()
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "a"}})
    for number, (key, asked) in enumerate(
        (
            ("zLive", {"query": "q", "model": "Notes"}),
            ("zUnsubscribe", {"query": "q"}),
            ("zLive", {"query": "q", "model": "Notes", "where": {"text": "b"}}),
            ("zLive", {"query": "q", "model": "Notes", "where": {"text": "c"}}),
        )
    ):
        admin.send_json({"zKey": key, "zHorizontal": asked, "_requestId": 1000 + number})
    replies: list[int] = []
    while len(replies) < 4:
        message = await admin.next_json()
        if "_requestId" in message:
            replies.append(message["_requestId"])
            assert "result" in message
    assert replies == [1000, 1001, 1002, 1003]
    seen = len(events(admin))
    for text in ("b", "c"):
        await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": text}})
    await wait_until(lambda: len(events(admin)) > seen, "an event")
    assert [row["text"] for event in events(admin)[seen:] for _, row in event["queries"]["q"]["set"]] == ["c"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_asked_is_refused_by_name(served: Served):
    """Each wrong field is named; nothing is left of what was refused."""
    admin = await served.client()
    for asked, code, field in (
        ({"model": "Notes"}, "invalid", "query"),
        ({"query": "", "model": "Notes"}, "invalid", "query"),
        ({"query": "x" * 65, "model": "Notes"}, "invalid", "query"),
        ({"query": "é", "model": "Notes"}, "invalid", "query"),
        ({"query": 1, "model": "Notes"}, "invalid", "query"),
        ({"query": "q"}, "invalid", "model"),
        ({"query": "q", "model": "Notes", "limit": 0}, "invalid", "limit"),
        ({"query": "q", "model": "Notes", "limit": 1001}, "invalid", "limit"),
        ({"query": "q", "model": "Notes", "limit": True}, "invalid", "limit"),
        ({"query": "q", "model": "Notes", "offset": 1}, "invalid", "offset"),
        ({"query": "q", "model": "Notes", "known": "zz"}, "invalid", "known"),
        ({"query": "q", "model": "Notes", "action": "read"}, "invalid", "action"),
        ({"query": "q", "model": "Notes", "where": {"nope": 1}}, "unknown_field", None),
        ({"query": "q", "model": "Nots"}, "unknown_model", None),
        ({"query": "q", "model": ["Notes"]}, "permission_denied", None),
    ):
        reply = await admin.call("zLive", asked)
        assert reply.get("code") == code, (asked, reply)
        assert field is None or field in reply["fields"], reply
    for asked in ({"query": "q", "topic": "room:1"}, {"query": "q", "x": 1}, {"query": ""}):
        assert (await admin.call("zUnsubscribe", asked))["code"] == "invalid"
    for horizontal in (None, "q", [], 1):
        assert (await admin.call("zLive", horizontal))["code"] == "invalid"
    assert await ask(admin, "zUnsubscribe", {"query": "never"}) == {"query": "never"}
    await wait_until(lambda: served.comm.zcli.live.feed.queries == 0, "the end of the queries")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_query_without_a_limit_may_have_a_thousand_rows(served: Served):
    """One more is refused; a query that comes to find one more ends and says why, and one with a limit goes on."""
    admin = await served.client()
    data = served.comm.zcli.data
    for number in range(1000):
        await data.create("test", "Notes", {"owner": "ann", "text": f"{number:04}"})
    everything = await Rows(admin, "all").ask("Notes", fields=["text"])
    first = await Rows(admin, "first").ask("Notes", fields=["text"], order_by="text DESC", limit=2)
    assert len(everything.rows) == 1000
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "9999"}})
    await wait_until(lambda: (everything.now(), everything.error)[1] == "invalid", "the end of the query")
    assert texts(await first.until(lambda rows: rows[0]["text"] == "9999")) == ["9999", "0999"]
    assert (await admin.call("zLive", {"query": "all", "model": "Notes"}))["code"] == "invalid"
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_command_that_is_taken_back_lets_nobody_overtake(served: Served):
    """Commands on one query run one behind the other, also where one in between does not run any more."""
    live = served.comm.zcli.live
    await served.client()
    (connection,) = served.bifrost.registry
    subscriber = Subscriber(live, connection)
    first: Deferred[str] = Deferred()
    run: list[str] = []

    def running(name: str, result: Deferred[str]) -> Deferred[str]:
        run.append(name)
        return result

    commands = [
        live._in_order(subscriber, "q", lambda name=name, result=result: running(name, result))
        for name, result in (("first", first), ("second", succeed("2")), ("third", succeed("3")))
    ]
    commands[1].addErrback(lambda failure: failure.trap(CancelledError))
    commands[1].cancel()
    assert await commands[1] is CancelledError and run == ["first"]
    first.callback("1")
    assert [await commands[0], await commands[2]] == ["1", "3"]
    assert run == ["first", "third"] and not subscriber.lanes
    await served.stands()


def live_numbers(served: Served) -> dict[str, float]:
    """The metrics of live queries, by the last word of their names."""
    families = text_string_to_metric_families(metrics_of(served.bifrost).decode())
    prefix = "zcomm_live_"
    return {one.name.removeprefix(prefix): one.samples[0].value for one in families if one.name.startswith(prefix)}


@pytest_twisted.ensureDeferred
async def test_who_leaves_leaves_nothing_behind(served: Served):
    """Queries end with their connection, with zUnsubscribe, and with one that replaces them, also where that is
    refused."""
    clients = [await served.client() for _ in range(3)]
    feed = served.comm.zcli.live.feed
    for client in clients:
        await Rows(client, "q").ask("Notes")
        await Rows(client, "r").ask("Notes", where={"text": "x"})
    assert feed.queries == 2
    counted = live_numbers(served)
    assert (counted["queries"], counted["subscriptions"], counted["bytes"]) == (2, 6, feed.size)
    await ask(clients[0], "create_Notes", {"values": {"owner": "ann", "text": "z"}})
    await wait_until(lambda: live_numbers(served)["events"] == counted["events"] + 3, "an event for each client")
    await wait_until(lambda: live_numbers(served)["steps"] > counted["steps"], "the end of the step")
    await Rows(clients[0], "q").ask("Notes", where={"text": "y"})
    assert feed.queries == 3
    await ask(clients[0], "zUnsubscribe", {"query": "q"})
    await wait_until(lambda: feed.queries == 2, "one query less")
    for wrong in ({"limit": 0}, {"model": "Nots"}, {"known": "?"}, {"filter": {}}, {"where": {"txt": "x"}}):
        await Rows(clients[0], "q").ask("Notes", where={"text": "z"})
        assert feed.queries == 3
        refused = await clients[0].call("zLive", {"query": "q", "model": "Notes", **wrong})
        assert "error" in refused, refused
        await wait_until(lambda: feed.queries == 2, f"one query less after {refused}")
    for client in clients:
        client.abort()
    await wait_until(lambda: feed.queries == 0 and feed.size == 0, "no query")
    assert live_numbers(served)["queries"] == live_numbers(served)["subscriptions"] == 0
    assert not served.comm.zcli.live._subscribers
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_client_that_takes_nothing_is_told_all_when_it_does(tmp_path: Path):
    """Steps do not queue up for it: it gets all rows once, when it has taken what waited, and goes on from there."""
    served = await serve(tmp_path, SCHEMA, broadcast="none")
    try:
        admin, slow = await served.client(), await served.client()
        rows = await Rows(slow, "q").ask("Notes", fields=["text"], limit=40)
        large = await Rows(slow, "large").ask("Notes", where={"owner": "bob"})
        slow.stop_reading()
        text = "x" * 20_000
        for number in range(40):
            await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": f"{number:02}{text}"}})
        for number in range(400):
            change = {"where": {"id": 1 + number % 40}, "values": {"text": f"{number:03}{text}"}}
            await ask(admin, "update_Notes", change)
        (client,) = [each for each in served.bifrost.registry if each.live is not None and each.live.queries]
        for _ in range(5):
            await ask(admin, "create_Notes", {"values": {"owner": "bob", "text": "x" * 900_000}})
        await wait_until(lambda: "large" not in client.live.queries, "the end of the query that is too large")
        assert client.transport is not None and client.transport.queued < 2 * 1024 * 1024
        slow.read_again()
        expected = [f"{number:03}{text}" for number in range(360, 400)]
        await rows.until(lambda rows: texts(rows) == expected)
        assert any("reset" in event["queries"].get("q", ()) for event in events(slow))
        await wait_until(lambda: (large.now(), large.error)[1] == "invalid", "the end of the other one")
        await ask(admin, "update_Notes", {"where": {"id": 1}, "values": {"text": "last"}})
        await rows.until(lambda rows: rows[0]["text"] == "last")
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_the_bounds_are_kept_and_named(tmp_path: Path):
    """More queries than a client may have, and more rows than there is memory for, are refused and cost nobody else
    theirs."""
    server = await serve(tmp_path, SCHEMA, limits={"live_per_client": 3, "live_memory": 1024 * 1024})
    try:
        greedy = await server.client()
        token = server.store.add("bob", "member").token
        other = await server.client(token=token)
        for _ in range(30):
            await server.comm.zcli.data.create("test", "Notes", {"owner": "ann", "text": "x" * 10_000})
        for number in range(3):
            reply = await greedy.call(
                "zLive", {"query": f"q{number}", "model": "Notes", "where": {"rank__gt": -number - 1}}
            )
            if "error" in reply:
                assert reply["code"] == "too_busy" and "Your live queries" in reply["error"]
        assert (await greedy.call("zLive", {"query": "more", "model": "Notes"}))["code"] == "too_busy"
        hasty = await server.client(token=token)
        for number in range(9):
            asked = {"query": f"q{number}", "model": "Notes", "limit": 1, "where": {"rank__lt": number}}
            hasty.send_json({"zKey": "zLive", "zHorizontal": asked, "_requestId": number})
        replies = [await hasty.next_json() for _ in range(9)]
        assert sorted("result" in reply for reply in replies) == [False] * 6 + [True] * 3
        assert len((await ask(other, "zLive", {"query": "q", "model": "Notes", "limit": 1}))["rows"]) == 1
        await server.stands()
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_what_was_left_takes_no_room_from_what_comes(tmp_path: Path):
    """Also in the same turn."""
    server = await serve(tmp_path, SCHEMA, limits={"live_memory": 1024 * 1024})
    try:
        client = await server.client()
        for _ in range(120):
            await server.comm.zcli.data.create("test", "Notes", {"owner": "ann", "text": "x" * 10_000})
        rows = await Rows(client, "q").ask("Notes")
        assert len(rows.rows) == 120 and server.comm.zcli.live.feed.size > 1024 * 1024
        for number in range(3):
            await rows.ask("Notes", where={"rank__gt": -number - 1})
        client.send_json({"zKey": "zUnsubscribe", "zHorizontal": {"query": "q"}, "_requestId": 1})
        other = await Rows(client, "other").ask("Notes", where={"rank__gt": -9})
        assert len(other.rows) == len(rows.rows)
        await server.stands()
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_write_that_goes_along_is_told_of(served: Served):
    """Rows that a cascade takes are gone for whoever looks at them."""
    admin = await served.client()
    note = await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "a"}})
    await ask(admin, "create_Parts", {"values": {"note_id": note["id"]}})
    parts = await Rows(admin, "parts").ask("Parts")
    assert len(parts.rows) == 1
    await ask(admin, "delete_Notes", {"where": {"id": note["id"]}})
    await parts.until(lambda rows: rows == [])
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_another_program_writes_is_told(served: Served, url: str):
    """Rows that it adds, changes, renames and takes away, one by one and all at once, and those that go along."""
    admin = await served.client()
    rows = await Rows(admin, "q").ask("Notes", order_by="rank DESC", limit=3)
    parts = await Rows(admin, "parts").ask("Parts")
    result = await ask(admin, "zLive", {"query": "q2", "model": "Notes", "limit": 1})
    assert result["sees"] == "all"
    values = ", ".join(f"({number}, 'ann', 't{number}', {number})" for number in range(1, 7))
    write(url, f'INSERT INTO "Notes" (id, owner, text, rank) VALUES {values}')
    assert texts(await rows.until(lambda rows: len(rows) == 3)) == ["t6", "t5", "t4"]
    write(url, """UPDATE "Notes" SET rank = 100 WHERE id < 3""")
    assert texts(await rows.until(lambda rows: rows[0]["id"] == 1)) == ["t1", "t2", "t6"]
    write(url, 'UPDATE "Notes" SET id = 77 WHERE id = 6', 'INSERT INTO "Parts" (id, note_id) VALUES (1, 5), (2, 4)')
    assert [row["id"] for row in await rows.until(lambda rows: rows[2]["id"] == 77)] == [1, 2, 77]
    await parts.until(lambda rows: len(rows) == 2)
    write(url, 'DELETE FROM "Notes" WHERE id IN (2, 5)')
    assert texts(await rows.until(lambda rows: rows[1]["id"] == 77)) == ["t1", "t6", "t4"]
    await parts.until(lambda rows: [row["id"] for row in rows] == [2])
    await writing(url, 'TRUNCATE "Notes" CASCADE')
    await rows.until(lambda rows: rows == [])
    await parts.until(lambda rows: rows == [])
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_asks_for_what_nobody_watches_has_what_there_is_now(tmp_path: Path, postgresql: Cluster, url: str):
    """Where others' writes are not seen, the rows that somebody else was told a moment ago are read once more, also
    before any step has taken that query up."""
    served = await serve(tmp_path, SCHEMA.replace("  _model: {live: true}\n", ""), url)
    try:
        first, second = await served.client(), await served.client()
        await Rows(await served.client(), "parts").ask("Parts")
        gate = threading.Event()
        waiting = served.comm.zcli.live.feed._workers.run("live", gate.wait, 60)
        try:
            assert (await Rows(first, "q").ask("Notes")).rows == []
            write(url, """INSERT INTO "Notes" (id, owner, text) VALUES (1, 'ann', 'a')""")
            asking = Rows(second, "q").ask("Notes")
            answer = Deferred.fromCoroutine(asking)
            await ask(first, "ping", None)
        finally:
            gate.set()
        assert texts((await answer).rows) == ["a"]
        await waiting
        await served.stands()
    finally:
        await served.stop()


@pytest.mark.parametrize("action", ["create", "update"])
@pytest_twisted.ensureDeferred
async def test_programs_of_ones_own_are_followed(served: Served, action: str):
    """What a function writes with the store's own methods is told as what clients write is."""
    admin = await served.client()
    data = served.comm.zcli.data
    rows = await Rows(admin, "q").ask("Notes")
    await data.create("test", "Notes", {"owner": "ann", "text": "a"})
    await rows.until(lambda rows: texts(rows) == ["a"])
    if action == "update":
        await data.update("test", "Notes", {"text": "a"}, {"text": "b"})
        await rows.until(lambda rows: texts(rows) == ["b"])
    assert isinstance(data.execution, Execution)
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_clients_are_told_whose_changes_are_seen(served: Served):
    """Where that is another now, those who ask that model and no others."""
    admin, other = await served.client(), await served.client()
    rows = await Rows(admin, "n").ask("Notes")
    assert (await ask(admin, "zLive", {"query": "p", "model": "Parts"}))["sees"] == "all"
    await ask(other, "zLive", {"query": "p", "model": "Parts"})
    feed = served.comm.zcli.live.feed
    for reason, sees in (("it was replaced", "own"), ("", "all")):
        feed._tended({"Notes": reason})
        await wait_until(lambda: events(admin), "the word")
        assert events(admin)[-1]["queries"] == {"n": {"sees": sees}} and not events(other)
        assert (await ask(admin, "zLive", {"query": "m", "model": "Notes"}))["sees"] == sees
        await ask(admin, "zUnsubscribe", {"query": "m"})
        admin.received.clear()
    rows.seen = 0
    await ask(other, "create_Notes", {"values": {"owner": "x", "text": "new"}})
    assert texts(await rows.until(lambda now: bool(now))) == ["new"]


@pytest_twisted.ensureDeferred
async def test_rows_that_come_to_too_much_end_their_query_alone(served: Served):
    """A query whose rows grow beyond what one may have ends and says why; another of the same model goes on."""
    admin = await served.client()
    data = served.comm.zcli.data
    for number in range(6):
        await data.create("test", "Notes", {"owner": "ann", "text": str(number)})
    whole = await Rows(admin, "whole").ask("Notes", order_by="text DESC")
    names = await Rows(admin, "names").ask("Notes", fields=["owner"], where={"owner__ilike": "A%"})
    for number in range(6):
        await data.update("test", "Notes", {"text": str(number)}, {"text": f"{number}{'x' * 1_000_000}"})
    await wait_until(lambda: (whole.now(), whole.error)[1] == "invalid", "the end of the query")
    await data.create("test", "Notes", {"owner": "Ann", "text": "new"})
    await names.until(lambda rows: len(rows) == 7)
    assert names.error == ""
    reply = await admin.call("zLive", {"query": "again", "model": "Notes"})
    assert reply["code"] in ("invalid", "too_busy"), reply
    feed = served.comm.zcli.live.feed
    admin.abort()
    await wait_until(lambda: feed.queries == 0, "no query")
    assert feed.size == 0 and not feed._watched["Notes"]._keeping
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_table_that_is_lost_ends_its_queries_and_no_others(served: Served, url: str):
    """Its rows cannot be read any more: that is said, and the queries of other models go on."""
    admin = await served.client()
    notes, parts = await Rows(admin, "notes").ask("Notes", fields=["text"]), await Rows(admin, "parts").ask("Parts")
    await writing(url, 'ALTER TABLE "Parts" RENAME TO "Elsewhere"')
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "a"}})
    await wait_until(lambda: (parts.now(), parts.error)[1] != "", "the end of the query")
    await notes.until(lambda rows: texts(rows) == ["a"])
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "b"}})
    await notes.until(lambda rows: texts(rows) == ["a", "b"])
    served.forget()


@pytest_twisted.ensureDeferred
async def test_tables_that_others_change_hold_up_no_step(served: Served, url: str):
    """Another program makes a table, and adds a column and an index to one that is watched, and asks the server for
    nothing: what it writes then is told all the same."""
    admin = await served.client()
    rows = await Rows(admin, "q").ask("Notes", order_by="text")
    changes = (
        'CREATE TABLE "Others" (id INTEGER PRIMARY KEY)',
        'ALTER TABLE "Notes" ADD COLUMN extra INTEGER',
        'CREATE INDEX by_text ON "Notes" (text)',
        'DROP TABLE "Others"',
    )
    for number, change in enumerate(changes):
        write(url, change)
        write(url, f"""INSERT INTO "Notes" (id, owner, text) VALUES ({number}, 'ann', 't{number}')""")
        await rows.until(lambda rows, count=number + 1: len(rows) == count)  # type: ignore[misc]
    assert texts(rows.rows) == ["t0", "t1", "t2", "t3"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_only_the_database_can_tell_is_asked_of_it(served: Served):
    """Filters that Python does not judge, orders that it does not know, and conditions on JSON-like absences."""
    admin = await served.client()
    judged = await Rows(admin, "judged").ask("Notes", where={"text__ilike": "%É%"}, order_by="text DESC", limit=2)
    either = await Rows(admin, "either").ask("Notes", where={"$or": [{"text__ilike": "x%"}, {"rank": 7}]})
    for number, text in enumerate(("é", "Éa", "x", "zé", None)):
        await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": text, "rank": number}})
    assert len(await judged.until(lambda rows: len(rows) == 2)) == 2
    for where, values in (
        ({"text": "x"}, {"rank": 7}),
        ({"text": "zé"}, {"text": "no"}),
        ({"rank": 0}, {"text": "ÉÉ"}),
        ({"rank": 7}, {"text": "y"}),
        ({"text": "y"}, {"rank": 8}),
    ):
        await ask(admin, "update_Notes", {"where": where, "values": values})
    for rows, asked in (
        (judged, {"where": {"text__ilike": "%É%"}, "order_by": "text DESC", "limit": 2}),
        (either, {"where": {"$or": [{"text__ilike": "x%"}, {"rank": 7}]}, "order_by": "id"}),
    ):
        expected = await ask(admin, "read_Notes", asked)
        await rows.until(lambda found, expected=expected: found == expected)  # type: ignore[misc]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_where_nothing_is_logged_writes_by_the_server_are_followed(postgresql: Cluster, tmp_path: Path, url: str):
    """Of models that are not live: rows that clients write, those that go along by foreign keys, and, for whoever asks
    anew, those that others have written."""
    served = await serve(tmp_path, SCHEMA.replace("  _model: {live: true}\n", ""), url, policy=POLICY)
    try:
        admin = await served.client()
        notes, parts = await Rows(admin, "notes").ask("Notes"), await Rows(admin, "parts").ask("Parts")
        assert (await ask(admin, "zLive", {"query": "other", "model": "Notes", "limit": 1}))["sees"] == "own"
        for number in range(3):
            note = await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": str(number)}})
            await ask(admin, "create_Parts", {"values": {"note_id": note["id"]}})
        await parts.until(lambda rows: len(rows) == 3)
        await ask(admin, "update_Notes", {"where": {"text": "1"}, "values": {"text": "one"}})
        await ask(admin, "delete_Notes", {"where": {"text": "0"}})
        assert texts(await notes.until(lambda rows: len(rows) == 2)) == ["one", "2"]
        await parts.until(lambda rows: len(rows) == 2)
        write(url, """INSERT INTO "Notes" (id, owner, text) VALUES (99, 'ann', 'foreign')""")
        again = await ask(await served.client(), "zLive", {"query": "q", "model": "Notes"})
        assert texts(again["rows"]) == ["one", "2", "foreign"]
        await notes.until(lambda rows: len(rows) == 3)
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_a_slow_client_is_told_all_that_it_missed_in_one_event(tmp_path: Path):
    """The rows of all its queries are of one step, and that one of them has ended is said as well."""
    served = await serve(tmp_path, SCHEMA, broadcast="none")
    try:
        admin, slow = await served.client(), await served.client()
        data, feed = served.comm.zcli.data, served.comm.zcli.live.feed
        for number in range(10):
            await data.create("test", "Notes", {"owner": "ann", "text": f"{number}", "rank": number})
        low = await Rows(slow, "low").ask("Notes", where={"rank__lt": 1000})
        high = await Rows(slow, "high").ask("Notes", where={"rank__gte": 1000}, fields=["rank"])
        ending = await Rows(slow, "ending").ask("Notes", fields=["secret"])
        (client,) = [each for each in served.bifrost.registry if each.live is not None and each.live.queries]
        slow.stop_reading()
        text = "x" * 20_000
        for number in range(1000):
            if client.transport is not None and client.transport.is_blocked:
                break
            values = {"text": f"{number:03}{text}"}
            await ask(admin, "update_Notes", {"where": {"id": 1 + number % 10}, "values": values})
        # Rows that go from one query to the other, and one row too many for the third.
        await ask(admin, "update_Notes", {"where": {"id__lte": 9}, "values": {"rank": 1000}})
        url = f"sqlite:///{tmp_path}/data/zcomm.sqlite3"
        counted = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 995)"
        write(url, f"""INSERT INTO "Notes" (owner, secret, rank) {counted} SELECT 'ann', 'y', NULL FROM n""")
        await wait_until(lambda: len(client.live.queries) == 2 and not feed.is_running, "the end of a query")
        slow.read_again()
        await wait_until(lambda: (ending.now(), ending.error)[1] == "invalid", "the end of the query")
        assert set(events(slow)[-1]["queries"]) == {"low", "high", "ending"}
        assert ([row["id"] for row in low.now()], len(high.now())) == ([10], 9)
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_the_same_rows_in_another_order_are_sent(served: Served):
    """A digest tells the order from others, also where it is that of all rows and each has the same text."""
    admin = await served.client()
    for rank in (1, 2):
        await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": str(rank), "rank": rank}})
    up = await Rows(admin, "q").ask("Notes", order_by="rank")
    down = await ask(admin, "zLive", {"query": "q", "model": "Notes", "order_by": "rank DESC", "known": up.digest})
    assert texts(down["rows"]) == ["2", "1"] and down["digest"] != up.digest
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_value_of_another_kind_can_be_asked_for(served: Served, url: str):
    """Where the column may hold it the rows are those of a read; elsewhere it is refused by name."""
    admin = await served.client()
    await ask(admin, "create_Notes", {"values": {"owner": "ann", "text": "a", "rank": 1}})
    where = {"rank__in": ["none", 1]}
    read = await admin.call("read_Notes", {"where": where})
    live = await admin.call("zLive", {"query": "q", "model": "Notes", "where": where})
    assert live.get("code") == read.get("code") == (None if url.startswith("sqlite") else "invalid")
    if url.startswith("sqlite"):
        rows = Rows(admin, "q")
        rows.rows = live["result"]["rows"]
        assert texts(rows.rows) == ["a"]
        write(url, """INSERT INTO "Notes" (id, owner, text, rank) VALUES (7, 'ann', 'b', 'none')""")
        assert texts(await rows.until(lambda rows: len(rows) == 2)) == ["a", "b"]
        assert served.comm.zcli.live.feed.queries == 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_another_form_of_the_same_value_moves_its_row(tmp_path: Path):
    """Where an index of SQLite has values in one form rows are ordered by what is stored: one that another program
    writes in another form, and back, is where a read has it, though it looks the same."""
    (tmp_path / "schema.yaml").write_text("Things: {_model: {live: true}, id: {type: int, pk: true}, tag: uuid}")
    url = f"sqlite:///{tmp_path}/test.sqlite3"
    rest = "0000000-0000-4000-8000-000000000000"
    write(
        url,
        "PRAGMA journal_mode = WAL",
        'CREATE TABLE "Things" (id INTEGER PRIMARY KEY, tag TEXT)',
        'CREATE INDEX tags ON "Things" (tag)',
        f"""INSERT INTO "Things" VALUES (1, 'b{rest}'), (2, 'c{rest}')""",
    )
    served = await Served(tmp_path, config={"schemas": (tmp_path / "schema.yaml",), "database": url}).start()
    try:
        admin = await served.client()
        rows = await Rows(admin, "q").ask("Things", order_by="tag")
        first = rows.digest
        for form, ids in (("upper", [2, 1]), ("lower", [1, 2])):
            write(url, f'UPDATE "Things" SET tag = {form}(tag) WHERE id = 2')
            assert [row["id"] for row in await ask(admin, "read_Things", {"order_by": "tag"})] == ids
            await rows.until(lambda rows, ids=ids: [row["id"] for row in rows] == ids)
            assert (rows.digest == first) is (form == "lower")
        await served.stands()
    finally:
        await served.stop()
