"""What one client may cost all others: long events, long reads, values that only the database knows, many queries."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import pytest_twisted
from support.liverows import Rows, ask, events, serve, texts, write, writing
from support.postgres import Cluster
from support.served import Served
from support.waiting import wait_until
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from zcomm.data.models import Column
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.live import feed as feeds
from zcomm.live.feed import Feed
from zcomm.live.live import EVENT
from zcomm.live.log import KeyForm
from zcomm.live.query import Query
from zcomm.live.requests import MAX_ROWS, question_of
from zcomm.live.rows import Form, Row
from zcomm.live.watched import QUERIES_AT_ONCE, Touched, Watched

SCHEMA = """
Notes:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str}
  text: {type: str}
Parts:
  _model: {live: true}
  id: {type: int, pk: true}
"""


@pytest_twisted.async_yield_fixture
async def served(postgresql: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Served]:
    server = await serve(tmp_path, SCHEMA, url)
    yield server
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_step_with_much_to_tell_is_told_in_several_events(served: Served, url: str):
    """None of them is longer than it may be, but for the rows of one query; all rows are there in the end."""
    admin = await served.client()
    text = "x" * 5000
    values = ", ".join(f"({number}, 'ann', '{text}')" for number in range(100))
    write(url, f"""INSERT INTO "Notes" (id, owner, text) VALUES {values}""")
    many = [await Rows(admin, f"q{number}").ask("Notes", where={"id__lt": 1000 + number}) for number in range(12)]
    few = await Rows(admin, "few").ask("Notes", where={"id": 7})
    seen = len(events(admin))
    write(url, """UPDATE "Notes" SET text = text || '!'""")
    for rows in (*many, few):
        await rows.until(lambda rows: all(row["text"] == text + "!" for row in rows))
    sizes = [len(json.dumps(event)) for event in events(admin)[seen:]]
    assert len(sizes) >= 5 and max(sizes) < EVENT + 1000, sizes
    write(url, """UPDATE "Notes" SET text = '' WHERE id = 7""")
    for rows in (*many, few):
        await rows.until(lambda rows: any(row["text"] == "" for row in rows))
    last = events(admin)[-1]["queries"]
    assert len(last) == 13 and not any("reset" in made for made in last.values())
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_long_read_keeps_no_rows_of_the_steps_meanwhile(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
):
    """Only which have changed, of so many steps as may be, and whoever waited has what was changed."""
    monkeypatch.setattr(feeds, "MOST_PAST", 3)
    monkeypatch.setattr(feeds, "QUERY_SECONDS", 60.0)
    served = await serve(tmp_path, SCHEMA, postgresql_url)
    feed: Feed = served.comm.zcli.live.feed
    try:
        admin, other = await served.client(), await served.client()
        everything = await Rows(admin, "q").ask("Notes")
        # Until the log is held no step knows what has changed.
        await wait_until(lambda: feed._changes._read, "the log")  # type: ignore[attr-defined]
        with psycopg.connect(postgresql_url) as session:
            await deferToThread(session.execute, 'LOCK TABLE "Parts"')
            other.send_json({"zKey": "zLive", "zHorizontal": {"query": "p", "model": "Parts"}, "_requestId": 1})
            await wait_until(lambda: feed._since, "a read that waits")
            for number in range(8):
                write(postgresql_url, f"""INSERT INTO "Notes" (id, text) VALUES ({number}, 'a')""")
                await everything.until(lambda rows, most=number: len(rows) == most + 1)
            await wait_until(lambda: not feed.is_running, "the end of a step")
            assert 0 < len(feed._past) <= 3
            assert {key for _, found in feed._past for key in found.keys.get("Notes") or ()} >= set(range(4, 8))
            assert not any(found.rows for _, found in feed._past)
        assert (await other.next_json())["result"]["rows"] == []
        await wait_until(lambda: not feed._past, "nobody who waits")
        await served.stands()
    finally:
        await served.stop()


def watched(is_sqlite: bool) -> Watched:
    found = load_schema(SCHEMA, "test").models["Notes"]
    column = Column(by_code_point=True)
    model = replace(found, fields={name: replace(each, column=column) for name, each in found.fields.items()})
    return Watched(model, KeyForm(("id",), "", list), is_sqlite)


def add(home: Watched, **asked: object) -> Query:
    question, plan = question_of(parse_command({"action": "read", "model": "Notes", **asked}), home.model, {})
    query = Query(question, plan, home.model, home.view(question), home.is_sqlite)
    query.fill([])
    home.add(query)
    return query


@pytest.mark.parametrize("text", ["\ufffd", "a\0b"])
def test_only_those_who_ask_for_an_odd_text_have_the_database_asked(text: str):
    """A text of SQLite's that is no UTF-8, or that has a NUL, is none of those that are; it may be another odd one."""
    home = watched(True)
    plain = [add(home, where={"owner": f"o{number}", "text": "a"}) for number in range(10)]
    odd = add(home, where={"owner__in": ["o1", "\ufffd"]})
    others = [add(home, where={"text": "a", "owner__ne": "o1"}), add(home, where={"owner__not_in": ["o1", "o2"]})]
    touched: Touched = {}
    unsure: Touched = {}
    form = Form(home.model, ("id", "owner", "text"), ("owner", "text"), True)
    list(home.look_at(1, Row(form, (1, text, "a", text, "a", 1)), touched, unsure))
    assert set(unsure) == {odd} and set(touched) == set(others)
    assert not any(query in touched for query in plain)


@pytest.mark.parametrize("text", ["o7", "\ufffd"])
def test_many_queries_are_looked_at_in_slices(text: str):
    """For one row as well, so that the reactor has its turns."""
    home = watched(True)
    for number in range(3 * QUERIES_AT_ONCE):
        add(home, where={"owner": f"o{number}"})
        add(home, where={"id__gt": number})
    form = Form(home.model, ("id", "owner"), ("owner",), True)
    touched: Touched = {}
    assert len(list(home.look_at(1, Row(form, (1, text, text, 1)), touched, {}))) >= 3
    assert len(touched) == 1 + (text == "o7")
    everything = home.look_at(1, None, touched, {})
    assert list(everything) == []


@pytest_twisted.ensureDeferred
async def test_an_odd_text_is_as_a_read_has_it(served: Served, url: str):
    """Whichever: those of SQLite that are no UTF-8, or have a NUL, and the character that stands for what is none."""
    admin = await served.client()
    whole = await Rows(admin, "all").ask("Notes", order_by="id")
    wheres = (
        {"owner": "\ufffd"},
        {"owner__ne": "a"},
        {"owner__in": ["a", "\ufffd"]},
        {"owner__not_in": ["\ufffd", "b"]},
    )
    found = [await Rows(admin, f"q{number}").ask("Notes", where=where) for number, where in enumerate(wheres)]
    odd = ["'\ufffd'", "'a'", "'\ufffd\ufffd'"]
    odd += ["CAST(X'FF' AS TEXT)", "CAST(X'610062' AS TEXT)", "X'61'"] if url.startswith("sqlite") else []
    for number, value in enumerate(odd):
        write(url, f"""INSERT INTO "Notes" (id, owner) VALUES ({number}, {value})""")
    await whole.until(lambda rows: len(rows) == len(odd))
    for where, rows in zip(wheres, found, strict=True):
        ids = [row["id"] for row in await ask(admin, "read_Notes", {"where": where})]
        await rows.until(lambda rows, ids=ids: [row["id"] for row in rows] == ids)
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_queries_that_take_long_keep_no_others_waiting(
    tmp_path: Path, postgresql: Cluster, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
):
    """One whose rows take long to be read is read beside steps, which go on without it. The next one takes its rows and
    what has changed meanwhile."""
    monkeypatch.setattr(feeds, "STEP_SECONDS", 0.0)
    with psycopg.connect(postgresql_url, autocommit=True) as other:
        other.execute("CREATE TABLE entries (id int PRIMARY KEY, text text)")
        other.execute("CREATE TABLE gate AS SELECT true AS is_open")
        other.execute(
            "CREATE FUNCTION opens() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN "
            "WHILE NOT (SELECT is_open FROM gate) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN true; END $$"
        )
        other.execute('CREATE VIEW "Slow" AS SELECT id, text FROM entries WHERE (SELECT opens())')
        served = await serve(
            tmp_path, f"{SCHEMA}Slow:\n  id: {{type: int, pk: true}}\n  text: {{type: str}}\n", postgresql_url
        )
        feed: Feed = served.comm.zcli.live.feed
        try:
            client, second = await served.client(), await served.client()
            slow, quick = await Rows(client, "slow").ask("Slow"), await Rows(client, "quick").ask("Parts")
            other.execute("UPDATE gate SET is_open = false")
            answer = Deferred.fromCoroutine(Rows(second, "slow").ask("Slow"))
            await wait_until(lambda: feed._beside, "the read beside steps")
            for number in range(1, 6):
                write(postgresql_url, f"""INSERT INTO "Parts" VALUES ({number})""")
                await quick.until(lambda rows, most=number: len(rows) == most)
            assert not answer.called and feed._beside
            other.execute("INSERT INTO entries VALUES (1, 'a')")
            other.execute("UPDATE gate SET is_open = true")
            # The read that waited has a snapshot of before.
            await answer
            again = await Rows(await served.client(), "slow").ask("Slow")
            assert texts(again.rows) == ["a"]
            assert texts(await slow.until(lambda rows: len(rows) == 1)) == ["a"]
            await wait_until(lambda: not feed._beside and not feed._past, "the end of what was kept for it")
            await served.stands()
        finally:
            await served.stop()


@pytest_twisted.ensureDeferred
async def test_a_query_that_takes_long_rests(tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch):
    """So many times as long as it took; then it is its turn again, whoever writes, and nothing was missed."""
    monkeypatch.setattr(feeds, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(feeds, "SLOW_REST", 0.0)
    served = await serve(tmp_path, SCHEMA, postgresql_url)
    feed: Feed = served.comm.zcli.live.feed
    # TRUNCATE alters a table as well, for which it is read once more.
    feed._changes._shapes_at = float("inf")  # type: ignore[attr-defined]
    try:
        client = await served.client()
        slow, quick = await Rows(client, "slow").ask("Notes"), await Rows(client, "quick").ask("Parts")
        for number in range(3):
            await writing(postgresql_url, f"""INSERT INTO "Notes" (id) VALUES ({number})""", """TRUNCATE "Notes" """)
            await writing(postgresql_url, f"""INSERT INTO "Parts" VALUES ({number})""")
            await quick.until(lambda rows, most=number: len(rows) == most + 1)
            await slow.until(lambda rows: not rows)
        await wait_until(lambda: not (feed._stale or feed.is_running or feed._is_due), "all rows as they are")
        monkeypatch.setattr(feeds, "SLOW_REST", 1e6)
        await writing(postgresql_url, """INSERT INTO "Notes" (id) VALUES (1)""")
        await slow.until(lambda rows: len(rows) == 1)
        await writing(postgresql_url, """TRUNCATE "Notes" """)
        await slow.until(lambda rows: not rows)
        await writing(postgresql_url, """INSERT INTO "Notes" (id) VALUES (1)""")
        await slow.until(lambda rows: len(rows) == 1)
        await writing(postgresql_url, """TRUNCATE "Notes" """)
        for number in range(3, 8):
            await writing(postgresql_url, f"""INSERT INTO "Parts" VALUES ({number})""")
            await quick.until(lambda rows, most=number: len(rows) == most + 1)
        assert len(slow.now()) == 1 and len(feed._stale) == 1 and not feed._beside
        monkeypatch.setattr(feeds, "SLOW_REST", 0.0)
        await wait_until(lambda: feed._slow_call, "the end of a step")
        assert feed._slow_call is not None
        for query in feed._stale:
            query.rests_until = 0.0
        feed._slow_call.reset(0.0)
        await slow.until(lambda rows: not rows)
        for _ in range(2):
            await writing(postgresql_url, """INSERT INTO "Notes" (id) VALUES (2)""")
            await slow.until(lambda rows: len(rows) == 1)
            await writing(postgresql_url, """TRUNCATE "Notes" """)
            await slow.until(lambda rows: not rows)
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_a_query_that_thousands_of_changes_concern_is_read_anew(
    served: Served, url: str, monkeypatch: pytest.MonkeyPatch
):
    """To make them all for the sake of ten would take the turn of others."""
    admin = await served.client()
    texts_of = [f"a{number:05}" for number in range(3000)]
    values = ", ".join(f"({number}, 'ann', '{text}')" for number, text in enumerate(texts_of))
    write(url, f"""INSERT INTO "Notes" (id, owner, text) VALUES {values}""")
    first = await Rows(admin, "q").ask("Notes", order_by="id DESC", limit=10)
    every = await Rows(admin, "r").ask("Notes", where={"owner": "bob"})
    assert texts(first.rows) == texts_of[:-11:-1]
    taken: list[int] = []
    change = Query.change
    monkeypatch.setattr(Query, "change", lambda query, rows: taken.append(len(rows)) or change(query, rows))
    write(url, """UPDATE "Notes" SET text = 'b' || text""")
    assert texts(await first.until(lambda rows: rows[0]["text"] == "ba02999")) == [
        f"b{text}" for text in texts_of[:-11:-1]
    ]
    assert max(taken, default=0) <= MAX_ROWS and every.now() == []
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_commands_leave_nothing_to_the_collector(served: Served):
    """What refers to itself is there until garbage is collected, which takes the longer the more there is."""
    client = await served.client()

    async def some(number: int) -> None:
        await ask(client, "create_Notes", {"values": {"owner": "ann", "text": "a"}})
        await ask(client, "update_Notes", {"where": {"owner": "ann"}, "values": {"text": str(number)}})
        await ask(client, "zLive", {"query": "q", "model": "Notes", "where": {"text": str(number)}})

    for number in range(20):
        await some(number)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for number in range(20, 25):
            await some(number)
        gc.collect()
        left = [each for each in gc.garbage if type(each).__module__.startswith("zcomm.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
    await served.stands()
