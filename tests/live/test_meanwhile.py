"""What changes while the rows of a live query are read, while a step fails, and while rights change."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.liverows import Rows, ask, events, serve, texts, write, writing
from support.postgres import Cluster
from support.rawclient import Frame, Opcode, RawClient
from support.served import Served
from support.waiting import wait_until
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from zcomm.auth.policy import Policy
from zcomm.data.drivers.driver import Fault
from zcomm.live import feed as feeds

SCHEMA = """
Notes:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str}
  text: {type: str}
Parts:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str}
  text: {type: str}
Members:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str}
  user: {type: str}
Plain:
  id: {type: int, pk: true}
  owner: {type: str}
  text: {type: str}
"""
POLICY = """
admin: {models: "*"}
member:
  models:
    Notes: [read]
    Parts: {actions: [read], rows: {owner: {in: {model: Members, field: owner, where: {user: $name}}}}}
"""


@pytest_twisted.async_yield_fixture
async def served(postgresql: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Served]:
    server = await serve(tmp_path, SCHEMA, url, users=("ann", "bob"), policy=POLICY)
    yield server
    await server.stop()


def slow_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Callable[[], None]]:
    """Have what the database says to those who ask first come late: what it has said, and what lets it come."""
    store = served.comm.zcli.live._store
    find = store.find
    said: list[Any] = []
    held: list[tuple[Deferred[Any], Any]] = []

    def hold(answer: Any) -> Deferred[Any]:
        said.append(answer)
        held.append((Deferred(), answer))
        return held[-1][0]

    def let_go() -> None:
        monkeypatch.undo()
        for deferred, answer in held:
            deferred.callback(answer)

    monkeypatch.setattr(store, "find", lambda *asked: find(*asked).addCallback(hold))
    return said, let_go


async def first_rows(client: RawClient) -> list[dict[str, Any]]:
    """The rows of the next reply."""
    while "result" not in (message := await client.next_json()):
        pass
    rows: list[dict[str, Any]] = message["result"]["rows"]
    return rows


async def watching(served: Served, url: str, client: RawClient) -> Rows:
    """A query on notes, once the log of changes is known to lack nothing."""
    rows = await Rows(client, "q").ask("Notes")
    log: Any = served.comm.zcli.live.feed._changes
    await wait_until(lambda: log._known if url.startswith("sqlite") else log._read, "the log")
    write(url, """INSERT INTO "Notes" (id, text) VALUES (0, 'a')""")
    await rows.until(lambda rows: len(rows) == 1)
    return rows


@pytest_twisted.ensureDeferred
async def test_the_first_query_of_a_model_has_what_was_changed_while_it_was_read(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """By another program as well, in steps that no query of this model has taken part in."""
    admin = await served.client()
    everything = await watching(served, url, admin)
    for model, change in (
        ("Parts", """INSERT INTO "Parts" (id, text) VALUES (1, 'new')"""),
        ("Plain", None),
    ):
        said, let_go = slow_reads(served, monkeypatch)
        # With no other query that this one would have to wait for.
        other = await served.client()
        other.send_json({"zKey": "zLive", "zHorizontal": {"query": model, "model": model}, "_requestId": 1})
        await wait_until(lambda said=said: said, "what the database says")
        if change is None:
            await served.comm.zcli.data.create("test", model, {"text": "new"})
        else:
            write(url, change)
        count = len(everything.rows)
        write(url, f"""INSERT INTO "Notes" (id, text) VALUES ({count}, 'a')""")
        await everything.until(lambda rows, count=count: len(rows) == count + 1)
        rows = Rows(other, model)
        rows.seen = len(events(other))
        let_go()
        rows.rows = await first_rows(other)
        assert rows.rows == []
        assert texts(await rows.until(lambda rows: rows != [])) == ["new"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_loses_a_membership_while_its_first_rows_are_read_loses_them(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """Also where nobody has asked by such a membership before."""
    write(
        url,
        """INSERT INTO "Members" (id, owner, "user") VALUES (1, 'o', 'ann')""",
        """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'secret')""",
    )
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    everything = await watching(served, url, admin)
    said, let_go = slow_reads(served, monkeypatch)
    ann.send_json({"zKey": "zLive", "zHorizontal": {"query": "q", "model": "Parts"}, "_requestId": 1})
    await wait_until(lambda: said, "what the database says")
    write(url, """DELETE FROM "Members" WHERE id = 1""", """INSERT INTO "Notes" (id, text) VALUES (1, 'a')""")
    await everything.until(lambda rows: len(rows) == 2)
    rows = Rows(ann, "q")
    let_go()
    rows.rows = await first_rows(ann)
    assert texts(rows.rows) == ["secret"]
    await rows.until(lambda rows: rows == [])
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_a_step_could_not_tell_is_told_by_the_next(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """Also what nobody logs, and what the database is asked about while it fails."""
    admin, other = await served.client(), await served.client()
    await watching(served, url, admin)
    asked = {"where": {"text__ilike": "N%"}}
    rows = await Rows(other, "plain").ask("Plain", **asked)
    log: Any = served.comm.zcli.live.feed._changes
    run = log.run
    runs: list[str] = []

    def run_once_badly(sql: str, *others: Any) -> Any:
        # First the rows are read, and then it is asked which of them match.
        runs.append(sql)
        return run("SELECT * FROM zcomm_no_such_table", (), None) if len(runs) == 2 else run(sql, *others)

    monkeypatch.setattr(log, "run", run_once_badly)
    await served.comm.zcli.data.create("test", "Plain", {"text": "new"})
    assert texts(await rows.until(lambda rows: rows != [])) == ["new"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_queries_that_others_ask_by_the_new_rights_wait_for_those_that_nobody_does(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """All queries of a connection have their new rows in one event."""
    for model in ("Notes", "Parts"):
        write(url, *[f"""INSERT INTO "{model}" (id, owner) VALUES ({id}, '{id}')""" for id in (1, 2)])
    policy = served.comm.program.permissions
    assert isinstance(policy, Policy)
    member = 'admin: {{models: "*"}}\nmember: {{models: {{Notes: {0}, Parts: {0}}}}}'
    policy.become(Policy.from_yaml(member.format("[read]"), "test"))
    ann, bob = [await served.client(token=served.tokens[name]) for name in ("ann", "bob")]
    notes, parts = await Rows(ann, "notes").ask("Notes"), await Rows(ann, "parts").ask("Parts")
    feed = served.comm.zcli.live.feed
    policy.become(Policy.from_yaml(member.format("{actions: [read], rows: {owner: '2'}}"), "test"))
    assert len((await Rows(bob, "notes").ask("Notes")).rows) == 1
    await wait_until(lambda: not (feed.is_running or feed._is_due), "the end of a step")
    said, let_go = slow_reads(served, monkeypatch)
    served.comm.judge_live()
    await wait_until(lambda: said, "what the database says")
    await ask(ann, "ping", None)
    assert events(ann) == []
    let_go()
    await parts.until(lambda rows: len(rows) == 1)
    assert len(notes.now()) == 1
    assert [set(event["queries"]) for event in events(ann)] == [{"notes", "parts"}]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_member_who_comes_has_her_own_queries_read_anew_alone(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """Those of the same model that other users ask are as they were."""
    feed: Any = served.comm.zcli.live.feed
    write(url, """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'hers')""")
    admin = await served.client()
    hers, his = [
        await Rows(await served.client(token=served.tokens[name]), "q").ask("Parts") for name in ("ann", "bob")
    ]
    await watching(served, url, admin)

    def is_quiet() -> bool:
        under_way = feed.is_running or feed._is_due or feed._all_unknown
        return not under_way and not feed._memberships.unknown

    await wait_until(is_quiet, "what the members are")
    outdated: set[Any] = set()
    outdate = feed._outdate
    monkeypatch.setattr(feed, "_outdate", lambda query: outdated.add(query) or outdate(query))
    write(url, """INSERT INTO "Members" (id, owner, "user") VALUES (1, 'o', 'ann')""")
    assert texts(await hers.until(lambda rows: rows != [])) == ["hers"]
    await wait_until(is_quiet, "the end of the step")
    assert len(outdated) == 1 and his.now() == []
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_query_that_cannot_be_taken_in_keeps_none_of_the_others_out(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """It ends, and says so."""
    feed: Any = served.comm.zcli.live.feed
    admin = await served.client()
    everything = await watching(served, url, admin)
    add = feed._memberships.add

    def fail(query: Any) -> None:
        if query.question.limit == 2:
            raise RuntimeError("a fault of our own")
        add(query)

    monkeypatch.setattr(feed._memberships, "add", fail)
    some = [Rows(admin, f"q{limit}") for limit in (1, 2, 3)]
    for limit, rows in enumerate(some, start=1):
        await rows.ask("Notes", limit=limit)
    write(url, """UPDATE "Notes" SET text = 'b'""")
    for rows in (everything, some[0], some[2]):
        assert texts(await rows.until(lambda rows: texts(rows) != ["a"])) == ["b"]
    await wait_until(lambda: some[1].now() and some[1].error, "the error")
    assert some[1].error == "internal"
    await wait_until(lambda: feed.queries == 3, "the end of the one")
    await served.stands(failures=1)


@pytest_twisted.ensureDeferred
async def test_whoever_asks_waits_for_a_step_that_went_well(served: Served, url: str, monkeypatch: pytest.MonkeyPatch):
    """One that failed has not seen what was changed before somebody asked."""
    feed: Any = served.comm.zcli.live.feed
    admin, other = await served.client(), await served.client()
    everything = await watching(served, url, admin)
    begin, failed = feed._changes.begin, []

    def fail(models: Any) -> Any:
        if len(failed) < 2:
            failed.append(models)
            raise Fault("lost", (), "a fault of our own")
        return begin(models)

    await wait_until(lambda: not feed.is_running and not feed._is_due, "no step")
    monkeypatch.setattr(feed._changes, "begin", fail)
    await served.comm.zcli.data.create("test", "Notes", {"text": "new"})
    assert texts((await Rows(other, "q").ask("Notes")).rows) == ["a", "new"]
    assert len(failed) == 2
    assert texts(await everything.until(lambda rows: len(rows) == 2)) == ["a", "new"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_step_that_has_to_wait_for_its_snapshot_tells_all_that_it_sees(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """Of models whose changes are logged, and of those of which only this server's are seen: in one event."""
    admin = await served.client()
    notes, plain = await watching(served, url, admin), await Rows(admin, "plain").ask("Plain")
    feed: Any = served.comm.zcli.live.feed
    begin, held, gate = feed._changes.begin, threading.Event(), threading.Event()

    def hold(models: Any) -> Any:
        held.set()
        assert gate.wait(30)
        return begin(models)

    await wait_until(lambda: not (feed.is_running or feed._is_due), "the end of a step")
    monkeypatch.setattr(feed._changes, "begin", hold)
    write(url, """UPDATE "Notes" SET text = 'b'""")
    await wait_until(held.is_set, "a step")
    await ask(admin, "create_Plain", {"values": {"text": "new"}})
    write(url, """UPDATE "Notes" SET text = 'c'""")
    monkeypatch.undo()
    gate.set()
    assert texts(await notes.until(lambda rows: texts(rows) == ["c"])) == ["c"]
    (first,) = [event["queries"].keys() for event in events(admin) if '"c"' in str(event).replace("'", '"')]
    assert first == {"q", "plain"} and texts(plain.now()) == ["new"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_table_that_somebody_keeps_locked_stops_its_own_queries_alone(tmp_path: Path, postgresql_url: str):
    """And those by memberships in it; others go on, and these have all once the table can be read."""
    served = await serve(tmp_path, SCHEMA, postgresql_url, users=("ann",), policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin, ann, late = [
            await served.client(token=token) for token in (served.admin, served.tokens["ann"], served.admin)
        ]
        write(postgresql_url, """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'hers')""")
        notes = await watching(served, postgresql_url, admin)
        parts, hers = await Rows(admin, "parts").ask("Parts"), await Rows(ann, "hers").ask("Parts")
        for table, change in (
            ("Parts", """INSERT INTO "Parts" (id, owner, text) VALUES (2, 'x', 'new')"""),
            ("Members", """INSERT INTO "Members" (id, owner, "user") VALUES (1, 'o', 'ann')"""),
        ):
            with psycopg.connect(postgresql_url) as session:
                session.execute(f'ALTER TABLE "{table}" ADD COLUMN x int')
                session.execute(change)
                for text in ("b", "c"):
                    write(postgresql_url, f"""UPDATE "Notes" SET text = '{table} {text}'""")
                    assert texts(await notes.until(lambda rows, text=text: rows[0]["text"].endswith(text)))
                    # Also whoever asks what others have.
                    assert (await Rows(late, "notes").ask("Notes")).rows == notes.rows
                assert table in feed._away
                late.send_json({"zKey": "zLive", "zHorizontal": {"query": "p", "model": "Parts"}, "_requestId": 1})
                assert (len(parts.now()), hers.now()) == (1 + (table == "Members"), [])
                session.commit()
            assert len(await first_rows(late)) == 2
            await parts.until(lambda rows: len(rows) == 2)
        assert texts(await hers.until(lambda rows: rows != [])) == ["hers"]
        write(postgresql_url, """UPDATE "Parts" SET text = 'last'""")
        assert texts(await hers.until(lambda rows: rows[0]["text"] == "last")) == ["last"]
        assert texts(await parts.until(lambda rows: rows[0]["text"] == "last")) == ["last", "last"]
        assert not feed._away
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_what_was_written_just_before_a_table_was_locked_is_read_once_it_is_free(
    tmp_path: Path, postgresql_url: str
):
    """Where nothing is logged as well: no other write has to come."""
    served = await serve(tmp_path, SCHEMA.replace("  _model: {live: true}\n", ""), postgresql_url)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin = await served.client()
        write(postgresql_url, """INSERT INTO "Notes" (id, owner, text) VALUES (1, 'o', 'a')""")
        rows = await Rows(admin, "q").ask("Notes")
        assert not feed.sees_all("Notes") and texts(rows.rows) == ["a"]
        with psycopg.connect(postgresql_url) as first, psycopg.connect(postgresql_url) as second:
            first.execute('SELECT FROM "Notes" FOR UPDATE')
            written = admin.call("update_Notes", {"where": {"id": 1}, "values": {"text": "b"}})
            await waiting(postgresql_url, 1)
            # It has the table as soon as that is written, before any step.
            locked = deferToThread(second.execute, 'LOCK TABLE "Notes"')
            await waiting(postgresql_url, 2)
            first.commit()
            assert "result" in await written
            await locked
            await wait_until(lambda: "Notes" in feed._away, "a step without the table")
            assert texts(rows.now()) == ["a"]
            second.commit()
        assert texts(await rows.until(lambda found: found[0]["text"] == "b")) == ["b"]
        assert not feed._away
        await served.stands()
    finally:
        await served.stop()


async def waiting(url: str, count: int) -> None:
    """Fires once so many wait for locks of others."""
    asked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with psycopg.connect(url, autocommit=True) as session:
        await wait_until(lambda: session.execute(asked).fetchone() == (count,), f"{count} who wait")


@pytest.mark.parametrize("where", [{}, {"text__ilike": "%A%"}], ids=["known", "asked"])
@pytest_twisted.ensureDeferred
async def test_a_query_that_cannot_be_read_any_more_ends_alone(served: Served, url: str, where: dict[str, Any]):
    """As one by a membership in a table that is gone; others of the same model are told meanwhile, and go on."""
    write(url, """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'a')""")
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    await watching(served, url, admin)
    parts, hers = await Rows(admin, "parts").ask("Parts"), await Rows(ann, "hers").ask("Parts", where=where)
    await writing(url, 'DROP TABLE "Members"')
    for text in ("b", "c"):
        write(url, f"""UPDATE "Parts" SET text = '{text}'""")
        assert texts(await parts.until(lambda rows, text=text: rows[0]["text"] == text)) == [text]
    await wait_until(lambda: hers.now() == [] and hers.error, "the end of the query")
    write(url, """UPDATE "Parts" SET text = 'd'""")
    assert texts(await parts.until(lambda rows: rows[0]["text"] == "d")) == ["d"]
    assert not parts.error and served.comm.zcli.live.feed.queries == 2
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_whoever_asks_is_told_where_no_step_goes_well(served: Served, url: str, monkeypatch: pytest.MonkeyPatch):
    """Not kept waiting for one, however long that takes."""
    feed: Any = served.comm.zcli.live.feed
    client, late = await served.client(), await served.client()
    await watching(served, url, client)
    begin = feed._changes.begin

    def fail(models: Any) -> Any:
        raise Fault("lost", (), "a fault of our own")

    monkeypatch.setattr(feed._changes, "begin", fail)
    await served.comm.zcli.data.create("test", "Notes", {"text": "new"})
    assert (await late.call("zLive", {"query": "q", "model": "Notes"}))["code"] == "unavailable"
    monkeypatch.setattr(feed._changes, "begin", begin)
    await wait_until(lambda: not feed._failures, "a step that goes well")
    assert texts((await Rows(late, "q").ask("Notes")).rows) == ["a", "new"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_steps_that_fail_end_with_the_last_query(served: Served, url: str, monkeypatch: pytest.MonkeyPatch):
    """None that is tried again holds the log once nobody asks for anything; whoever asks then is told as ever."""
    feed: Any = served.comm.zcli.live.feed
    monkeypatch.setattr(feeds, "REST", 0.1)
    client = await served.client()
    await watching(served, url, client)
    begin = feed._changes.begin

    def fail(models: Any) -> Any:
        raise Fault("lost", (), "a fault of our own")

    monkeypatch.setattr(feed._changes, "begin", fail)
    write(url, """UPDATE "Notes" SET text = 'b'""")
    await wait_until(lambda: feed._retry == feeds.MAX_RETRY, "a step that fails")
    await ask(client, "zUnsubscribe", {"query": "q"})
    await wait_until(lambda: not feed._is_watching, "rest")
    assert not feed._is_due and feed._next is None
    monkeypatch.setattr(feed._changes, "begin", begin)
    rows = await Rows(client, "q").ask("Notes")
    write(url, """UPDATE "Notes" SET text = 'c'""")
    assert texts(await rows.until(lambda rows: texts(rows) != ["b"])) == ["c"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_query_that_takes_long_is_read_for_those_who_have_it(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """Not for whoever asked it first and has left since."""
    feed: Any = served.comm.zcli.live.feed
    ann, bob = [await served.client(token=served.tokens[name]) for name in ("ann", "bob")]
    hers, his = [await Rows(client, "q").ask("Notes") for client in (ann, bob)]
    (query,) = feed._watched["Notes"].queries.values()
    await ask(ann, "zUnsubscribe", {"query": hers.name})
    monkeypatch.setattr(feeds, "STEP_SECONDS", -1.0)
    find, owners = feed._store.find, []
    monkeypatch.setattr(feed._store, "find", lambda owner, *asked: owners.append(owner) or find(owner, *asked))
    feed._outdate(query)
    write(url, """INSERT INTO "Notes" (id, text) VALUES (1, 'a')""")
    await his.until(lambda rows: len(rows) == 1)
    assert set(owners) == {"bob"}
    await served.stands()


@contextmanager
def steps_held(served: Served) -> Iterator[None]:
    """Have what steps do with the database wait."""
    go_on = threading.Event()
    held = served.comm.zcli.live.feed._thread(go_on.wait, 60)
    try:
        yield
    finally:
        go_on.set()
        held.addErrback(lambda _: None)


def states(client: RawClient, *names: str) -> list[dict[str, str]]:
    """The text of the only row of each query, by its name, after each message of a client that tells of it."""
    found: list[dict[str, str]] = [{}]
    for item in client.received:
        message = json.loads(item.payload) if isinstance(item, Frame) and item.opcode == Opcode.TEXT else {}
        result, told = message.get("result"), message.get("queries", {})
        if isinstance(result, dict) and result.get("query") in names:
            found.append(found[-1] | {result["query"]: "".join(texts(result["rows"]))})
        rows = {
            name: told[name].get("reset") or [row for _, row in told[name]["set"]] for name in names if name in told
        }
        if rows:
            found.append(found[-1] | {name: "".join(texts(each)) for name, each in rows.items()})
    return found


@pytest_twisted.ensureDeferred
async def test_a_query_that_is_asked_while_a_step_begins_goes_on_together_with_the_others(served: Served, url: str):
    """What is written once it is answered comes to all of the connection at once, whenever the step that tells of it
    began."""
    admin, other = await served.client(), await served.client()
    await watching(served, url, admin)
    feed: Any = served.comm.zcli.live.feed
    await ask(other, "create_Parts", {"values": {"text": "a"}})
    await wait_until(lambda: not (feed.is_running or feed._is_due), "no step")
    with steps_held(served):
        await ask(other, "create_Plain", {"values": {"text": "b"}})
        await wait_until(lambda: feed.is_running, "a step that waits")
        admin.send_json({"zKey": "zLive", "zHorizontal": {"query": "p", "model": "Parts"}, "_requestId": 77})
        await wait_until(lambda: feed._joining, "its rows")
        await ask(admin, "ping", None)
        await ask(other, "update_Parts", {"where": {"id": 1}, "values": {"text": "b"}})
        await ask(other, "update_Notes", {"where": {"id": 0}, "values": {"text": "b"}})
    await wait_until(lambda: states(admin, "q", "p")[-1] == {"q": "b", "p": "b"}, "both")
    assert {"q": "b", "p": "a"} not in states(admin, "q", "p")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_query_that_is_judged_anew_while_a_step_begins_goes_on_together_with_the_others(
    served: Served, url: str
):
    """Likewise, where it is another query by the rights of now."""
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    await watching(served, url, ann)
    feed: Any = served.comm.zcli.live.feed
    await ask(admin, "create_Parts", {"values": {"owner": "o", "text": "a"}})
    assert (await Rows(ann, "p").ask("Parts")).rows == []
    await wait_until(lambda: not (feed.is_running or feed._is_due), "no step")
    policy = served.comm.program.permissions
    assert isinstance(policy, Policy)
    with steps_held(served):
        await ask(admin, "create_Plain", {"values": {"text": "b"}})
        await wait_until(lambda: feed.is_running, "a step that waits")
        policy.become(Policy.from_yaml(POLICY.partition("    Parts")[0] + "    Parts: [read]\n", "test"))
        served.comm.judge_live()
        await wait_until(lambda: feed._joining, "its rows")
        await ask(admin, "update_Parts", {"where": {"id": 1}, "values": {"text": "b"}})
        await ask(admin, "update_Notes", {"where": {"id": 0}, "values": {"text": "b"}})
    await wait_until(lambda: states(ann, "q", "p")[-1] == {"q": "b", "p": "b"}, "both")
    assert {"q": "b", "p": "a"} not in states(ann, "q", "p")
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_query_that_is_judged_anew_before_a_step_begins_is_ahead_of_no_other(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """Its rows are read at once, and told once the others have these changes as well."""
    ann = await served.client(token=served.tokens["ann"])
    await watching(served, url, ann)
    feed: Any = served.comm.zcli.live.feed
    write(url, """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'a')""")
    assert (await Rows(ann, "p").ask("Parts")).rows == []
    # Nothing is looked for meanwhile.
    monkeypatch.setattr(feed._looks, "f", lambda: None)
    monkeypatch.setattr(feed, "_look_soon", lambda: None)
    await wait_until(lambda: not (feed.is_running or feed._is_due or feed._is_looking or feed._hurried), "no step")
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as session, session:
            session.execute("UPDATE Parts SET text = 'b'")
            session.execute("UPDATE Notes SET text = 'b'")
    else:
        with psycopg.connect(url) as session:
            session.execute("""UPDATE "Parts" SET text = 'b'""")
            session.execute("""UPDATE "Notes" SET text = 'b'""")
    policy = served.comm.program.permissions
    assert isinstance(policy, Policy)
    policy.become(Policy.from_yaml(POLICY.partition("    Parts")[0] + "    Parts: [read]\n", "test"))
    served.comm.judge_live()
    await wait_until(lambda: states(ann, "q", "p")[-1].get("p"), "an event")
    assert states(ann, "q", "p")[-1] == {"q": "b", "p": "b"}
    assert {"q": "a", "p": "b"} not in states(ann, "q", "p")
    monkeypatch.undo()
    await served.stands()
