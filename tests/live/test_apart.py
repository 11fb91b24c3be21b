"""Queries at which a step fails, or that it would wait for: they are read beside steps, and keep no others waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.liverows import Rows, ask, serve, texts, write, writing
from support.pgbouncer import pgbouncer
from support.postgres import Cluster
from support.waiting import wait_until
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from zcomm.live import feed as feeds
from zcomm.live.sqlite import log as sqlite_log

TABLE = """
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str}
  text: {type: str}
"""
MODELS = ("Notes", "Parts", "Members")
SCHEMA = "".join(f"{name}:{TABLE}" for name in MODELS)
POLICY = """
admin: {models: "*"}
member:
  models:
    Parts: {actions: [read], rows: {owner: {in: {model: Members, field: owner, where: {text: $name}}}}}
"""
#: A policy of Members, whose rows cannot be read while the gate is closed, in one way or another.
GATE = (
    "CREATE TABLE gate (state text)",
    "INSERT INTO gate VALUES ('open')",
    """
    CREATE FUNCTION passes() RETURNS bool LANGUAGE plpgsql AS $$ DECLARE state text; BEGIN
        SELECT g.state INTO state FROM public.gate AS g;
        IF state = 'fails' THEN RAISE division_by_zero; END IF;
        IF state = 'busy' THEN RAISE lock_not_available; END IF;
        IF state = 'slow' THEN PERFORM pg_sleep(60); END IF;
        -- Longer than a step reads, shorter than a session may.
        IF state = 'long' THEN PERFORM pg_sleep(2); END IF;
        RETURN true;
    END $$
    """,
    'ALTER TABLE "Members" ENABLE ROW LEVEL SECURITY',
    'ALTER TABLE "Members" FORCE ROW LEVEL SECURITY',
    'CREATE POLICY m ON "Members" USING (passes())',
    "GRANT SELECT ON gate TO PUBLIC",
)


@pytest.fixture
def as_owner(postgresql: Cluster, postgresql_url: str) -> Iterator[str]:
    """The database as the owner of its tables, of whom policies and privileges hold."""
    name = postgresql_url.partition("@/")[2].partition("?")[0]
    postgresql.execute("CREATE ROLE owner LOGIN")
    write(
        postgresql_url,
        f"GRANT CREATE ON DATABASE {name} TO owner",
        *(f'CREATE TABLE "{each}" (id int PRIMARY KEY, owner text, text text)' for each in MODELS),
        *(f'ALTER TABLE "{each}" OWNER TO owner' for each in MODELS),
        """INSERT INTO "Notes" (id, text) VALUES (1, 'a')""",
        """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'a')""",
        """INSERT INTO "Members" (id, owner, text) VALUES (1, 'o', 'ann')""",
    )
    yield postgresql_url.replace("postgres@", "owner@")
    postgresql.execute("DROP OWNED BY owner CASCADE", name)
    postgresql.execute("DROP ROLE owner")


async def told(url: str, notes: Rows, *several: str) -> None:
    """Another program's changes of the notes reach whoever follows them."""
    for text in several:
        await writing(url, f"""UPDATE "Notes" SET text = '{text}'""")
        await notes.until(lambda rows, text=text: texts(rows) == [text])


@pytest.mark.parametrize("how", ["fails", "busy", "slow", "long", "locked"])
@pytest_twisted.ensureDeferred
async def test_queries_whose_own_statement_fails_keep_no_others_waiting(
    tmp_path: Path, postgresql_url: str, as_owner: str, how: str
):
    """None of a model whose first one has failed is tried in a step again, until it went well beside them. Those that
    fail for good end by name; those that wait for others, or take long for a while, do not."""
    url = postgresql_url
    write(url, *GATE)
    served = await serve(tmp_path, SCHEMA, as_owner, users=("ann",), policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
        notes, parts = await Rows(admin, "notes").ask("Notes"), await Rows(admin, "parts").ask("Parts")
        hers = [await Rows(ann, f"h{n}").ask("Parts", where={"text__ne": f"{n}"}) for n in range(4)]
        assert all(texts(rows.rows) == ["a"] for rows in hers)
        await wait_until(lambda: feed._changes._read and not feed._stale, "the log")
        with psycopg.connect(url) as session:
            if how == "locked":
                await deferToThread(session.execute, "LOCK TABLE gate")
            else:
                write(url, f"UPDATE gate SET state = '{how}'")
            change = """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'b')"""
            await writing(url, 'DELETE FROM "Parts"', change)
            await wait_until(lambda: sum(query.is_apart for query in feed._stale) == 4, "all of hers")
            await told(url, notes, "b", "c", "d")
            assert texts(await parts.until(lambda rows: texts(rows) == ["b"])) == ["b"]
            assert not feed.is_failing
            # Also whoever comes now.
            assert texts((await Rows(admin, "late").ask("Notes")).rows) == ["d"]
            assert how == "fails" or not any((rows.now(), rows.error)[1] for rows in hers)
            assert len(feed._beside) <= feeds.MOST_OF_ONE
            if how in ("busy", "locked"):
                # To wait for others is neither to take long nor to fail.
                await wait_until(lambda: any(query.rests_until for query in feed._stale), "a read beside the steps")
                assert not any(query.late or query.failures for query in feed._stale)
            if how != "fails":
                session.rollback()
                write(url, "UPDATE gate SET state = 'open'")
        for rows in hers:
            if how == "fails":
                await wait_until(lambda rows=rows: (rows.now(), rows.error)[1], "the end of a query")
                assert rows.error == "invalid"
            else:
                assert texts(await rows.until(lambda found: texts(found) == ["b"])) == ["b"] and not rows.error
        await told(url, notes, "e")
        if how != "fails":
            write(url, """UPDATE "Parts" SET text = 'c'""")
            for rows in hers:
                await rows.until(lambda found: texts(found) == ["c"])
            await wait_until(lambda: not any(query.is_apart for query in feed._watched["Parts"].queries.values()))
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_few_queries_are_read_beside_the_steps_at_a_time(tmp_path: Path, postgresql_url: str, as_owner: str):
    """However many users have one that takes long: the others are read when one of these is done."""
    url, users = postgresql_url, ("ann", "bob", "eve")
    write(url, *GATE, """INSERT INTO "Members" (id, owner, text) VALUES (2, 'o', 'bob'), (3, 'o', 'eve')""")
    served = await serve(tmp_path, SCHEMA, as_owner, users=users, policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin = await served.client()
        notes, every = await Rows(admin, "notes").ask("Notes"), []
        for user in users:
            client = await served.client(token=served.tokens[user])
            every += [await Rows(client, f"q{n}").ask("Parts", where={"text__ne": f"{n}"}) for n in range(3)]
        await wait_until(lambda: feed._changes._read and not feed._stale, "the log")
        write(url, "UPDATE gate SET state = 'slow'")
        await writing(url, """UPDATE "Parts" SET text = 'b'""")
        await wait_until(lambda: sum(query.is_apart for query in feed._stale) == len(every), "all of theirs")
        await wait_until(lambda: len(feed._beside) >= feeds.MOST_BESIDE, "reads beside the steps")
        for text in ("b", "c", "d", "e", "f"):
            await told(url, notes, text)
            assert len(feed._beside) <= feeds.MOST_BESIDE
            assert max(Counter(feed._beside.values()).values(), default=0) <= feeds.MOST_OF_ONE
        write(url, "UPDATE gate SET state = 'open'")
        for rows in every:
            await rows.until(lambda found: texts(found) == ["b"])
            assert not rows.error
        await served.stands()
    finally:
        await served.stop()


#: A policy of Notes by which each of its rows takes so many seconds to be read as another table says.
SLOWLY = (
    "CREATE TABLE pace (seconds float)",
    "INSERT INTO pace VALUES (0)",
    "GRANT SELECT ON pace TO PUBLIC",
    """
    CREATE FUNCTION slowly() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_sleep(p.seconds) FROM public.pace AS p; RETURN true;
    END $$
    """,
    'ALTER TABLE "Notes" ENABLE ROW LEVEL SECURITY',
    'ALTER TABLE "Notes" FORCE ROW LEVEL SECURITY',
    'CREATE POLICY n ON "Notes" USING (slowly())',
)


@pytest_twisted.ensureDeferred
async def test_queries_that_wait_for_a_lock_leave_others_their_turn(tmp_path: Path, postgresql_url: str, as_owner: str):
    """However many they are, and also where one of their users has the other query, too."""
    url = postgresql_url
    write(url, *GATE, *SLOWLY, """INSERT INTO "Members" (id, owner, text) VALUES (2, 'o', 'bob')""")
    policy = POLICY + "    Notes: [read]\n"
    served = await serve(tmp_path, SCHEMA, as_owner, users=("ann", "bob"), policy=policy)
    feed: Any = served.comm.zcli.live.feed
    try:
        ann, bob = await served.client(token=served.tokens["ann"]), await served.client(token=served.tokens["bob"])
        await Rows(ann, "notes").ask("Notes")
        notes = await Rows(await served.client(), "notes").ask("Notes")
        every = [
            await Rows(client, f"q{n}").ask("Parts", where={"text__ne": f"{n}"})
            for client in (ann, bob)
            for n in range(30)
        ]
        await wait_until(lambda: feed._changes._read and not feed._stale, "the log")
        with psycopg.connect(url) as session:
            await deferToThread(session.execute, "LOCK TABLE gate")
            await writing(url, 'DELETE FROM "Parts"', """INSERT INTO "Parts" (id, owner, text) VALUES (1, 'o', 'b')""")
            await wait_until(lambda: sum(query.is_apart for query in feed._stale) == len(every), "all of theirs")
            write(url, "UPDATE pace SET seconds = 0.2")
            for query in feed._watched["Notes"].queries.values():
                query.took = 0.2
                feed._outdate(query)
            for text in ("b", "c", "d"):
                await told(url, notes, text)
            session.rollback()
        for rows in every:
            await rows.until(lambda found: texts(found) == ["b"])
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_whoever_asks_for_a_slow_query_that_changes_all_the_time_is_answered(
    tmp_path: Path, postgresql_url: str, as_owner: str
):
    """Though at the end of each step its rows are to be read anew, as Python does not know their order."""
    url = postgresql_url
    write(url, *SLOWLY, 'ALTER TABLE "Notes" ALTER owner TYPE text COLLATE "en-x-icu"', "UPDATE pace SET seconds = 0.2")
    served = await serve(tmp_path, SCHEMA, as_owner, policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin, late = await served.client(), await served.client()
        notes = await Rows(admin, "notes").ask("Notes", order_by="owner")
        await wait_until(lambda: feed._changes._read and not feed._stale, "the log")
        replies: list[Any] = []
        number = 0
        while not replies:
            number += 1
            await writing(url, f"""UPDATE "Notes" SET text = '{number}'""")
            if number == 10:
                late.call("zLive", {"query": "late", "model": "Notes", "order_by": "owner"}).addCallback(replies.append)
        assert int(replies[0]["result"]["rows"][0]["text"]) >= 10
        await notes.until(lambda rows: texts(rows) == [str(number)])
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_a_row_or_a_field_that_cannot_be_read_ends_whoever_asks_for_it(
    tmp_path: Path, postgresql_url: str, as_owner: str
):
    """No other query of its model, and at no time does a change of it keep those of others waiting."""
    url = postgresql_url
    served = await serve(tmp_path, SCHEMA, as_owner, policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin = await served.client()
        notes = await Rows(admin, "notes").ask("Notes")
        one, every, owner = [
            await Rows(admin, name).ask("Parts", **asked)
            for name, asked in (
                ("one", {"where": {"id": 1}, "fields": ["text"]}),
                ("every", {"fields": ["text"]}),
                ("owner", {"fields": ["owner"]}),
            )
        ]
        await wait_until(lambda: feed._changes._read, "the log")
        write(url, 'REVOKE SELECT ON "Parts" FROM owner', 'GRANT SELECT (id, text) ON "Parts" TO owner')
        await writing(url, """UPDATE "Parts" SET text = 'ac'""")
        assert texts(await one.until(lambda rows: texts(rows) == ["ac"])) == ["ac"]
        assert texts(await every.until(lambda rows: texts(rows) == ["ac"])) == ["ac"]
        await wait_until(lambda: (owner.now(), owner.error)[1], "the end of the query")
        assert owner.error == "permission_denied"
        await writing(
            url,
            'ALTER TABLE "Parts" ENABLE ROW LEVEL SECURITY',
            'ALTER TABLE "Parts" FORCE ROW LEVEL SECURITY',
            'CREATE POLICY p ON "Parts" USING (1 / (length(text) - 3) > -5)',
        )
        await told(url, notes, "b")
        assert one.error == every.error == ""
        for number in range(2, 5):
            await writing(url, f"""INSERT INTO "Parts" (id, text) VALUES ({number}, 'abc')""")
            await told(url, notes, f"c{number}")
        await writing(url, """UPDATE "Parts" SET text = 'ad' WHERE id = 1""")
        assert texts(await one.until(lambda rows: texts(rows) == ["ad"])) == ["ad"]
        await wait_until(lambda: (every.now(), every.error)[1], "the end of the query")
        await writing(url, """UPDATE "Parts" SET text = 'ae' WHERE id = 1""")
        assert texts(await one.until(lambda rows: texts(rows) == ["ae"])) == ["ae"]
        await told(url, notes, "d")
        assert one.error == notes.error == "" and every.error == "invalid"
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_behind_a_pooler_a_locked_table_keeps_no_others_waiting(
    tmp_path: Path, postgresql: Cluster, postgresql_url: str
):
    """There no step can find out beforehand which tables it may read."""
    with pgbouncer(postgresql) as bouncer:
        name = postgresql_url.partition("@/")[2].partition("?")[0]
        served = await serve(tmp_path, SCHEMA, bouncer.url(name), policy=POLICY)
        data, feed = served.comm.zcli.data, served.comm.zcli.live.feed
        try:
            admin, other = await served.client(), await served.client()
            notes, parts = await Rows(admin, "notes").ask("Notes"), await Rows(admin, "parts").ask("Parts")
            assert not feed.sees_all("Notes")
            with psycopg.connect(postgresql_url) as session:
                await deferToThread(session.execute, 'LOCK TABLE "Parts"')
                # Whose rows are read anew for whoever asks.
                other.send_json({"zKey": "zLive", "zHorizontal": {"query": "p", "model": "Parts"}, "_requestId": 1})
                await wait_until(lambda: any(query.is_apart for query in feed._stale), "a step")
                for number in range(3):
                    await data.create("test", "Notes", {"text": f"{number}"})
                    await notes.until(lambda rows, most=number: len(rows) == most + 1)
                assert parts.now() == [] and not parts.error
            await data.create("test", "Parts", {"text": "a"})
            assert texts(await parts.until(lambda rows: len(rows) == 1)) == ["a"]
            await served.stands()
        finally:
            await served.stop()


@pytest_twisted.ensureDeferred
async def test_a_read_that_takes_too_long_for_a_step_is_made_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of SQLite as well."""
    url = f"sqlite:///{tmp_path}/zcomm.db"
    served = await serve(tmp_path, SCHEMA, url, policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin = await served.client()
        values = ", ".join(f"({number}, 'o', '{'lorem ipsum ' * 20}')" for number in range(2000))
        write(url, f"""INSERT INTO "Parts" (id, owner, text) VALUES {values}""")
        like = {"$or": [{"text__like": f"%q%{number}%z%"} for number in range(20)]}
        dear = await Rows(admin, "dear").ask("Parts", where=like)
        notes = await Rows(admin, "notes").ask("Notes")
        await wait_until(lambda: feed._changes._known and not feed._stale, "the log")
        monkeypatch.setattr(sqlite_log, "READ_SECONDS", 0.0)
        for query in feed._watched["Parts"].queries.values():
            # A query becomes dear as its table grows.
            query.took = 0.0
            feed._outdate(query)
        with capturedLogs() as logged:
            await writing(url, """UPDATE "Parts" SET text = 'q0z' WHERE id > 1990""")
            assert len(await dear.until(lambda rows: len(rows) == 9)) == 9
        assert not dear.error and any("fails a step" in event.get("log_format", "") for event in logged)
        write(url, """INSERT INTO "Notes" (id, text) VALUES (1, 'a')""")
        await notes.until(lambda rows: texts(rows) == ["a"])
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_models_whose_changes_are_too_large_together_cost_one_step_each(
    tmp_path: Path, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
):
    """Those that have failed a step are not tried again in the step that fails at the next one."""
    served = await serve(tmp_path, SCHEMA, postgresql_url, policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin = await served.client()
        values = ", ".join(f"({number}, 'o', '{'x' * 100}')" for number in range(100))
        every = [await Rows(admin, name).ask(name, limit=1) for name in MODELS]
        await wait_until(lambda: feed._changes._read and not feed._stale, "the log")
        monkeypatch.setattr("zcomm.live.reading.RESULT_BYTES", 5000)
        failures: list[int] = []
        with psycopg.connect(postgresql_url) as session:
            for name in MODELS:
                session.execute(f'INSERT INTO "{name}" (id, owner, text) VALUES {values}')
        for rows in every:
            await rows.until(lambda found: (failures.append(feed._failures), len(found) == 1)[1])
        assert 1 <= max(failures) <= len(MODELS)
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_what_was_left_takes_room_where_it_is_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step that waits for the database lets go of nothing: who asks and leaves meanwhile has no more than others."""
    served = await serve(tmp_path, SCHEMA, policy=POLICY)
    feed: Any = served.comm.zcli.live.feed
    try:
        admin = await served.client()
        await ask(admin, "create_Notes", {"values": {"text": "x" * 10_000}})
        await Rows(admin, "notes").ask("Notes")
        await wait_until(lambda: not feed._coming and not feed.is_running, "the end of a step")
        (query,) = feed._watched["Notes"].queries.values()
        for watcher in list(query.watchers):
            feed.leave(query, watcher)
        assert feed._size > 10_000 and feed.size == 0
        monkeypatch.setattr(feeds, "MOST_LEFT", 5000)
        assert feed.size == feed._size - 5000
        await wait_until(lambda: feed._size == 0, "what was left")
        assert feed.size == 0
    finally:
        await served.stop()
