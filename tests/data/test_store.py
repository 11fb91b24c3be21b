"""The store on real databases: what is written, what comes back, and what is told when it cannot be."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from itertools import islice, product
from pathlib import Path

import psycopg
import pytest
import pytest_twisted
import sqlalchemy as sa
from support.rows import rows_of_a_test
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.threads import deferToThread

from zcomm.data.filters import MAX_TEXTUAL
from zcomm.data.schema import demo_schema, load_schema
from zcomm.data.sql.statements import MAX_STATEMENTS
from zcomm.data.sql.tables import IDEMPOTENCY_KEYS
from zcomm.errors import CommandError, CommandTimeout, ConfigError, Conflict, Invalid, TooBusy, Unavailable

EVERYTHING = {
    "s": "x'; DROP TABLE \u00e9\U0001f600",
    "i": -(2**63),
    "f": 1.5,
    "d": "12345678.9",
    "b": True,
    "da": "2024-02-29",
    "dt": "2024-10-15T06:30:00.000001Z",
    "ti": "08:30:00.500000",
    "u": "0b54be9a-6f5c-4c8e-9f0e-0c6a4d3f8f10",
    "j": {"a": [1, None, "x", 1.5, {"b": True}]},
    "by": "AAEC/w==",
}


def native(store) -> str:
    """``sqlite`` or ``postgresql``."""
    return sa.make_url(store.url).get_backend_name()


@pytest_twisted.ensureDeferred
async def test_every_type(store):
    """A value of each type comes back as it was sent, and finds its row."""
    row = await store.create(1, "Things", EVERYTHING)
    assert row == {"id": 1, **EVERYTHING}
    assert await store.read(1, "Things") == [row]
    for name, value in EVERYTHING.items():
        where = {"j__isnull": False} if name == "j" else {name: value, name + "__in": [value, value]}
        assert await store.read(1, "Things", where) == [row], name
        if name not in ("j", "by"):
            assert await store.read(1, "Things", {name + "__between": [value, value], name + "__gte": value}) == [row]
            assert await store.read(1, "Things", {name + "__gt": value}) == []
    nulls = await store.create(1, "Things", {})
    assert nulls == {"id": 2, **dict.fromkeys(EVERYTHING)}
    await store.update(1, "Things", 2, EVERYTHING)
    assert await store.read(1, "Things", 2) == [{**row, "id": 2}]
    await store.update(1, "Things", 2, dict.fromkeys(EVERYTHING))
    assert await store.read(1, "Things", 2) == [nulls]


EXTREMES = [
    ("d", "99999999999999.5", "99999999999999.5"),
    ("d", "0.000001", "0.000001"),
    ("d", "-0", "0"),
    ("d", 10**15, str(10**15)),
    ("d", 9007199254740993, "9007199254740993"),
    ("dt", "0001-01-01", "0001-01-01T00:00:00Z"),
    ("dt", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ("da", "0001-01-01", "0001-01-01"),
    ("f", 1.7976931348623157e308, 1.7976931348623157e308),
    ("f", 5, 5.0),
    ("i", 2**63 - 1, 2**63 - 1),
    ("s", "", ""),
    ("by", "", ""),
    ("j", {}, {}),
    ("j", [], []),
    ("j", "text", "text"),
    ("j", 5, 5),
    ("j", False, False),
    ("j", "5", "5"),
    ("s", "0123", "0123"),
    ("s", "1e5", "1e5"),
]


@pytest_twisted.ensureDeferred
async def test_extremes(store):
    """The ends of each type are kept exactly."""
    with rows_of_a_test() as row:
        for name, value, shown in EXTREMES:
            with row(f"{name} {value!r}"):
                made = await store.create(1, "Things", {name: value})
                assert made[name] == shown
                assert type(made[name]) is type(shown)


@pytest_twisted.ensureDeferred
async def test_contact_f41_no_number_names_the_neighbour(stores):
    """Beyond 2**53 an integer is one as an integer or as its digits; what a double has made of it finds no row."""
    beyond = 2**53 + 1
    for store in stores:
        for value in (beyond - 1, beyond, beyond + 1, -beyond):
            await store.create(1, "Things", {"i": value, "s": str(value)})
        for value in (beyond, -beyond):
            for same in (value, str(value)):
                assert [row["s"] for row in await store.read(1, "Things", {"i": same})] == [str(value)]
                assert [row["s"] for row in await store.read(1, "Things", {"i__in": [same]})] == [str(value)]
                assert await store.update(1, "Things", {"i": same}, {"i": same}) == {"updated": 1}
        assert [row["s"] for row in await store.read(1, "Things", {"i__gt": str(beyond)})] == [str(beyond + 1)]
        rounded = float(beyond)
        for where in (
            {"i": rounded},
            {"i": -rounded},
            {"i__in": [1, rounded]},
            {"i__gte": rounded},
            {"$or": [{"i": rounded}]},
            {"i__between": [rounded, beyond]},
            {"id": rounded},
        ):
            for attempt in (store.read(1, "Things", where), store.delete(1, "Things", where)):
                with pytest.raises(Invalid, match="must be a whole number, written with all its digits"):
                    await attempt
        with pytest.raises(Invalid, match="must be a whole number, written with all its digits"):
            await store.create(1, "Things", {"i": rounded})
        assert len(await store.read(1, "Things", {})) == 4


@pytest_twisted.ensureDeferred
async def test_decimals_are_never_rounded(store):
    """Thirty-eight digits are kept, found and compared to the last one (B10)."""
    value, near = "1234567890.1234567890123456789012345678", "1234567890.1234567890123456789012345679"
    made = await store.create(1, "Things", {"d": value})
    assert made["d"] == value
    assert await store.read(1, "Things", {"d": value}) == [made]
    assert await store.read(1, "Things", {"d": near}) == []
    assert await store.read(1, "Things", {"d__gte": near}) == []
    assert await store.read(1, "Things", {"d__lt": near, "d__in": [value, "5"]}) == [made]


@pytest_twisted.ensureDeferred
async def test_defaults(store):
    """A field that is left out gets its default; one that is null stays null."""
    user = await store.create(1, "Users", {"name": "A"})
    assert (user["active"], user["role"], user["email"]) == (True, "user", None)
    assert user["created_at"].startswith("20")
    assert user["created_at"].endswith("Z")
    assert (await store.create(1, "Users", {"name": "B", "active": None}))["active"] is None
    member = await store.create(1, "Members", {"note": "x"})
    assert len(member["id"]) == 36
    assert "secret" not in member


@pytest_twisted.ensureDeferred
async def test_ids_are_not_used_again(store):
    """The id of a deleted row never names another one."""
    first = await store.create(1, "Teams", {"name": "a"})
    await store.delete(1, "Teams", first["id"])
    assert (await store.create(1, "Teams", {"name": "b"}))["id"] > first["id"]


@pytest_twisted.ensureDeferred
async def test_upsert(store):
    """An upsert adds or changes, keeps what it does not name, and returns the row either way."""
    made = await store.upsert(1, "Users", {"name": "A", "email": "a@b.cd", "age": 5}, ["email"])
    changed = await store.upsert(1, "Users", {"name": "B", "email": "a@b.cd"}, ["email"])
    assert changed == {**made, "name": "B"}
    seat = await store.upsert(1, "Seats", {"row": "A", "number": 1}, ["number", "row"])
    assert seat == {"row": "A", "number": 1, "taken": False}
    assert await store.upsert(1, "Seats", {"row": "A", "number": 1, "taken": True}) == {**seat, "taken": True}
    assert await store.upsert(1, "Seats", {"row": "A", "number": 1}) == {**seat, "taken": True}
    with pytest.raises(Invalid, match="no single id"):
        await store.read(1, "Seats", 5)


@pytest_twisted.ensureDeferred
async def test_order(store):
    """Rows come in the order asked for, with ties and nulls in the same place on every database."""
    for age, name in ((3, "c"), (None, "n"), (1, "b"), (1, "a"), (2, "d")):
        await store.create(1, "Users", {"name": name, "age": age})

    async def names(order_by=None, **more):
        return "".join([row["name"] for row in await store.read(1, "Users", order_by=order_by, **more)])

    assert await names() == "cnbad"
    assert await names("age") == "badcn"
    assert await names("age DESC") == "ncdba"
    assert await names("age, name DESC") == "badcn"
    assert await names(["age", "name"]) == "abdcn"
    assert await names("age", limit=2, offset=1) == "ad"


@pytest_twisted.ensureDeferred
async def test_conflicts(store):
    """A write that contradicts what is stored says which field, and leaves nothing behind."""
    team = await store.create(1, "Teams", {"name": "a"})
    for write in (store.create(1, "Teams", {"name": "a"}), store.upsert(1, "Seats", {"row": "A", "number": 1})):
        try:
            await write
        except Conflict as error:
            assert (str(error), error.fields) == ("name already exists", {"name": "already exists"})
    with pytest.raises(Conflict, match="row, number already exists"):
        await store.create(1, "Seats", {"row": "A", "number": 1})
    with pytest.raises(Conflict) as caught:
        await store.create(1, "Members", {"team": 99})
    assert caught.value.fields == {"team": "points to a row that does not exist"}
    with pytest.raises(Conflict) as caught:
        await store.create(1, "Members", {"team": team["id"], "second": 99})
    assert caught.value.fields == {"second": "points to a row that does not exist"}
    member = await store.create(1, "Members", {"team": team["id"]})
    with pytest.raises(Conflict, match="still point to this row of Teams"):
        await store.delete(1, "Teams", team["id"])
    with pytest.raises(Conflict, match="team points to"):
        await store.update(1, "Members", member["id"], {"team": 99})
    other = await store.create(1, "Teams", {"name": "b"})
    await store.update(1, "Members", member["id"], {"team": None, "second": other["id"]})
    await store.delete(1, "Teams", other["id"])
    assert (await store.read(1, "Members"))[0]["second"] is None


@pytest_twisted.ensureDeferred
async def test_failed_write_is_undone_whole(store):
    """A write over many rows that fails at one of them changes none."""
    for name in "abc":
        await store.create(1, "Teams", {"name": name})
    with pytest.raises(Conflict):
        await store.update(1, "Teams", None, {"name": "same"}, all=True)
    assert [row["name"] for row in await store.read(1, "Teams")] == ["a", "b", "c"]


@pytest_twisted.ensureDeferred
async def test_handle_request(store):
    """The blocking form does the same in a program's own thread, and refuses the reactor's."""
    made = await deferToThread(store.handle_request, {"action": "create", "model": "Teams", "values": {"name": "a"}})
    assert made == {"id": 1, "name": "a"}
    assert await deferToThread(store.handle_request, {"action": "read", "model": "Teams", "limit": 10}) == [made]
    assert await deferToThread(store.handle_request, {"action": "delete", "model": "Teams", "where": {"id": []}}) == {
        "deleted": 0
    }
    with pytest.raises(Conflict):
        await deferToThread(store.handle_request, {"action": "create", "model": "Teams", "values": {"name": "a"}})
    with pytest.raises(Invalid):
        await deferToThread(store.handle_request, {"action": "drop", "model": "Teams"})
    with pytest.raises(RuntimeError, match="reactor thread"):
        store.handle_request({"action": "read", "model": "Teams"})


@pytest_twisted.ensureDeferred
async def test_many_at_once(store):
    """Writes from many clients at the same time are all made, each once."""
    rows = await gatherResults([store.create(n % 7, "Teams", {"name": f"t{n}"}) for n in range(200)])
    assert len({row["id"] for row in rows}) == 200
    counts = await gatherResults([store.upsert(n % 7, "Seats", {"row": "A", "number": n % 3}) for n in range(60)])
    assert len(counts) == 60
    assert len(await store.read(1, "Seats")) == 3
    assert len(await store.read(1, "Teams")) == 200


@pytest_twisted.ensureDeferred
async def test_b11_large_values_are_looked_at_in_threads(store):
    """What takes long to look through keeps nobody waiting: it is planned, digested and refused in a thread."""
    large = [[n, {"x": None}] for n in range(20_000)]
    await store.create(1, "Teams", {"name": "before"})
    for bad in ({"j": [*large, "\ud800"]}, {"j": large, "nowhere": 1}, {"j": large, "i": "x"}):
        refused = store.create(1, "Things", bad)
        assert not refused.called
        with pytest.raises(CommandError):
            await refused
    twice = [await store.create(1, "Things", {"j": large}, idempotency_key="k") for _ in range(2)]
    assert twice[0] == twice[1] and twice[0]["j"] == large
    assert await store.update(1, "Things", {"id": twice[0]["id"]}, {"j": [large, large]}) == {"updated": 1}
    assert [row["j"] for row in await store.read(1, "Things")] == [[large, large]]


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_many_shapes(store):
    """However many different forms of request clients make up, statements of a bounded size are kept."""
    keys = [["age", "age__ne", "age__gt", "age__lt"], ["name", "name__ne", "name__gt", "name__lt"]]
    keys += [
        ["id", "id__ne"],
        ["email", "email__ne"],
        ["role", "role__ne"],
        ["created_at__isnull", "last_login__isnull"],
    ]
    values = {"age": 1, "id": 1, "name": "x", "email": "x", "role": "x", "created_at": True, "last_login": True}
    for shape in islice(product(*([*some, None] for some in keys)), 520):
        await store.read(1, "Users", {key: values[key.partition("__")[0]] for key in shape if key})
    known = store._execution._statements._known
    assert sum(statement.size for statement in known.values()) == store._execution._statements._size <= MAX_STATEMENTS


@pytest_twisted.ensureDeferred
async def test_cancel(store):
    """A client that leaves takes its waiting commands with it; the rows of those are not there."""
    gate = threading.Event()
    blockers = [store._workers.run(f"blocker {n}", gate.wait, 60) for n in range(4)]
    waiting = store.create("leaving", "Teams", {"name": "never"})
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    gate.set()
    await gatherResults(blockers)
    assert await store.read(1, "Teams") == []


@pytest_twisted.ensureDeferred
async def test_check(store):
    """A database that answers is alive; one whose store was stopped is not."""
    assert await store.check() is True
    store._execution.answered = float("-inf")
    assert await gatherResults([store.check(), store.check()]) == [True, True]
    await store.stop()
    store._execution.answered = float("-inf")
    assert await store.check() is False
    with pytest.raises(Unavailable):
        await store.read(1, "Teams")
    await store.start()
    assert await store.read(1, "Teams") == []


@pytest_twisted.ensureDeferred
async def test_statement_timeout(make_store, url, postgresql):
    """A query that takes too long is ended with its own error, and others go on meanwhile."""
    store = make_store(url, statement_timeout=0.25)
    await store.start()
    fill = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
        "INSERT INTO \"Things\"(s) SELECT printf('%.*c', 400, 'a') || i FROM n",
        "postgresql": "INSERT INTO \"Things\"(s) SELECT repeat('a', 400) || i FROM generate_series(1, 300000) i",
    }
    await deferToThread(run_sql, url, fill[native(store)])
    slow = {"$or": [{"s__contains": f"a{n}b"} for n in range(MAX_TEXTUAL)]}
    query = store.read("slow", "Things", slow, order_by="s DESC", limit=5)
    assert await store.create("quick", "Teams", {"name": "served"})
    with pytest.raises(CommandTimeout):
        await query
    assert len(await store.read("slow", "Things", limit=5)) == 5


def run_sql(url: str, *statements: str) -> None:
    """Run SQL as another program would."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        return
    parts = sa.make_url(url)
    with psycopg.connect(
        host=parts.query["host"], port=parts.query["port"], user="postgres", dbname=parts.database, autocommit=True
    ) as session:
        for statement in statements:
            session.execute(statement)


@pytest_twisted.ensureDeferred
async def test_tables_are_created_once(make_store, url, postgresql):
    """A second start finds what the first one made, and changes nothing of it."""
    first, second = make_store(url), make_store(url)
    await gatherResults([first.start(), second.start()])
    await first.create(1, "Teams", {"name": "kept"})
    await second.stop()
    await second.start()
    assert [row["name"] for row in await second.read(1, "Teams")] == ["kept"]


@pytest_twisted.ensureDeferred
async def test_existing_tables_are_used_as_they_are(make_store, url, postgresql):
    """A table that is there keeps its own columns and defaults; only what the schema names is seen."""
    kind = "SERIAL" if url.startswith("postgresql") else "INTEGER"
    run_sql(
        url,
        f"CREATE TABLE old (id {kind} PRIMARY KEY, name VARCHAR(50) NOT NULL, extra TEXT DEFAULT 'x', "
        "born TIMESTAMP, CONSTRAINT only_once UNIQUE (name))",
        "INSERT INTO old (name, born) VALUES ('a', '2024-10-15 08:30:00')",
    )
    schema = load_schema("old: {id: {type: int, pk: true}, name: str, born: datetime}")
    store = make_store(url, schema)
    await store.start()
    assert await store.read(1, "old") == [{"id": 1, "name": "a", "born": "2024-10-15T08:30:00Z"}]
    assert await store.create(1, "old", {"name": "b", "born": "2024-10-15T10:30:00+02:00"}) == {
        "id": 2,
        "name": "b",
        "born": "2024-10-15T08:30:00Z",
    }
    assert [row["id"] for row in await store.read(1, "old", {"born__gte": "2024-10-15T08:30:00Z"})] == [1, 2]
    with pytest.raises(Conflict) as caught:
        await store.create(1, "old", {"name": "b"})
    assert caught.value.fields == {"name": "already exists"}
    with pytest.raises(Invalid) as invalid:
        await store.create(1, "old", {"name": None})
    assert invalid.value.fields == {"name": "is required"}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("(id INTEGER PRIMARY KEY)", "model old, field name: the existing table has no such column"),
        ("(id INTEGER PRIMARY KEY, name INTEGER)", "the existing column is of type integer, which does not fit str"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_existing_tables_that_do_not_fit(make_store, url, postgresql, table, says):
    """A schema that an existing table does not fit is a mistake that names the field; nothing is altered."""
    if "does not fit" in says and url.startswith("sqlite"):
        says = ""  # SQLite keeps any value in any column.
    run_sql(url, f"CREATE TABLE old {table}")
    store = make_store(
        url, load_schema("old: {id: {type: int, pk: true}, name: str}\nnew: {id: {type: int, pk: true}}")
    )
    if not says:
        await store.start()
        return
    with pytest.raises(ConfigError) as caught:
        await store.start()
    assert says in str(caught.value)
    with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedTable)):
        run_sql(url, "SELECT * FROM new")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "not a database URL"),
        ("", "not a database URL"),
        ("mysql://a:secret@b/c", "sqlite and postgresql only"),
        ("sqlite:////no/such/directory/x.db", "the directory does not exist"),
        ("sqlite:////tmp", "it is a directory"),
        ("postgresql://a:secret@b:port/c", "not a database URL"),
        ("mysql://b/c?password=secret", "sqlite and postgresql only"),
    ],
)
def test_bad_urls(make_store, url, says):
    """A URL that cannot be used is one clear line without the password."""
    with pytest.raises(ConfigError) as caught:
        make_store(url)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_missing_database(make_store, postgresql):
    """A database that does not exist, or a user who may not enter, fails the start with a reason."""
    store = make_store(postgresql.url("no_such_database"), demo_schema(), deadline=2)
    with pytest.raises(ConfigError, match="no_such_database"):
        await store.start()
    store = make_store(postgresql.url().replace("postgres@", "nobody:secret@"), demo_schema(), deadline=2)
    with pytest.raises(ConfigError) as caught:
        await store.start()
    assert "secret" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_nobody_listens(make_store, tmp_path):
    """A server that is not there fails the start within the deadline."""
    store = make_store(f"postgresql://postgres@/x?host={tmp_path}", demo_schema(), deadline=0.3)
    with pytest.raises(Unavailable):
        await store.start()
    assert await store.check() is False


@pytest_twisted.ensureDeferred
async def test_new_file_is_private(make_store, tmp_path):
    """The file of a new database can be read by its owner alone, and so can what SQLite puts beside it."""
    store = make_store(f"sqlite:///{tmp_path}/new.sqlite3")
    await store.start()
    await store.create(1, "Teams", {"name": "a"})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes
    assert set(modes.values()) == {0o600}, modes


@pytest_twisted.ensureDeferred
async def test_memory(make_store):
    """A database in memory is one database, whichever thread asks, and is gone with its store."""
    store = make_store("sqlite://")
    await store.start()
    await gatherResults([store.create(n, "Teams", {"name": f"t{n}"}) for n in range(20)])
    assert len(await store.read(1, "Teams")) == 20
    await store.stop()
    await store.start()
    assert await store.read(1, "Teams") == []


@pytest_twisted.ensureDeferred
async def test_the_first_values_in_memory(make_store):
    """What a column keeps is found out with the first value, by whoever has the only connection, while others wait."""
    store = make_store("sqlite://")
    for _ in range(5):
        await store.start()
        made = [store.create(user, "Seats", {"row": "r", "number": user, "taken": True}) for user in range(10)]
        made += [store.create(user, "Things", {"d": "1.50", "b": True, "da": "2026-01-02"}) for user in range(10)]
        made += [store.read(user, "Seats") for user in range(10)]
        await gatherResults(made)
        assert len(await store.read(1, "Things", where={"da": "2026-01-02", "d": "1.50"})) == 10
        await store.stop()


@pytest_twisted.ensureDeferred
async def test_what_is_asked_while_it_starts(make_store, url):
    """It waits until it is known what columns keep, and is done then, also when the store is started once more."""
    store = make_store(url)
    values = {"d": "1.50", "b": True, "da": "2026-01-02"}
    for turn in range(1, 4):
        started = store.start()
        made = [store.create(user, "Things", values) for user in range(5)]
        made.append(deferToThread(store.handle_request, {"action": "create", "model": "Things", "values": values}))
        await started
        await gatherResults(made)
        assert len(await store.read(1, "Things", where={"da": "2026-01-02", "d": "1.50"})) == 6 * turn
        await store.stop()


@pytest_twisted.ensureDeferred
async def test_what_waits_for_a_start_ends_with_the_store(make_store, tmp_path):
    """Who stops it does not wait for a database that somebody else keeps locked."""
    path = tmp_path / "test.sqlite3"
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    try:
        store = make_store(f"sqlite:///{path}", busy_timeout=30.0)
        started = store.start()
        made = store.create(1, "Teams", {"name": "a"})
        # It has a place, and waits for the file.
        await wait_until(lambda: store._pool._places._value < store._pool._places._initial_value)
        await store.stop()
        with pytest.raises(Unavailable):
            await made
        assert not started.called
    finally:
        locker.close()
    started.addErrback(lambda failure: failure.trap(Unavailable, ConfigError))
    await started


@pytest_twisted.ensureDeferred
async def test_another_process_writes(make_store, tmp_path):
    """A file that another program keeps locked makes a write fail as busy, and reads go on."""
    store = make_store(f"sqlite:///{tmp_path}/busy.sqlite3", busy_timeout=0.2)
    await store.start()
    other = sqlite3.connect(tmp_path / "busy.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TooBusy):
        await store.create(1, "Teams", {"name": "a"})
    assert await store.read(1, "Teams") == []
    other.execute("ROLLBACK")
    other.close()
    assert await store.create(1, "Teams", {"name": "a"})


@pytest.mark.parametrize("closes", ["close", "renew"])
@pytest_twisted.ensureDeferred
async def test_no_connection_is_kept_that_comes_back_while_all_are_closed(store, closes, monkeypatch):
    """As that of the first sweep, where a store is stopped soon: nobody would close it any more."""
    pool = store._pool
    await wait_until(lambda: not pool._used and not store._own.running)

    def hold():
        with pool.connection() as connection:
            is_alive = connection.alive()
            monkeypatch.setattr(connection, "alive", lambda: getattr(pool, closes)() or is_alive)
        return connection

    connection = await store._workers.run(1, hold)
    monkeypatch.undo()
    assert not pool._idle and not connection.alive()


@pytest_twisted.ensureDeferred
async def test_full_disk(make_store, tmp_path):
    """A database that cannot grow refuses writes as unavailable, keeps what it has and serves reads."""
    store = make_store(f"sqlite:///{tmp_path}/full.sqlite3")
    await store.start()
    await store.create(1, "Teams", {"name": "kept"})

    def shrink() -> None:
        for connection in store._pool._idle:
            pages = connection.run("PRAGMA page_count", (), True)[0][0][0]
            connection.run(f"PRAGMA max_page_count = {pages}", (), True)

    # The first sweep has a connection of its own, which others get when it is done.
    await wait_until(lambda: not store._pool._used and not store._own.running)
    await store._workers.run(1, shrink)
    with pytest.raises(Unavailable, match="cannot store"):
        for number in range(50):
            await store.create(1, "Messages", {"text": str(number) * 5000})
    assert [row["name"] for row in await store.read(1, "Teams")] == ["kept"]


@pytest_twisted.ensureDeferred
async def test_not_a_database(make_store, tmp_path):
    """A file that is no database is a failed start, not a traceback; the file is left alone."""
    path = Path(tmp_path, "text.txt")
    path.write_text("this is no database, whatever its name says\n" * 100)
    store = make_store(f"sqlite:///{path}")
    with pytest.raises(ConfigError, match="text.txt: the database cannot be used: .*not a database"):
        await store.start()
    assert path.read_text().startswith("this is no database")


@pytest_twisted.ensureDeferred
async def test_slow_queries_of_one_client_starve_nobody(store):
    """While one client's commands hold all the threads they may, another's is answered."""
    gate = threading.Event()
    held = [store._workers.run("greedy", gate.wait, 60) for _ in range(20)]
    await wait_until(lambda: store._workers.running == store._workers.share, "the greedy client's share")
    assert await store.read("modest", "Teams") == []
    gate.set()
    await gatherResults(held)


@pytest_twisted.ensureDeferred
async def test_the_table_of_idempotency_keys_is_no_model(store):
    """The store's own table cannot be addressed, and is really there."""
    from zcomm.errors import UnknownModel

    with pytest.raises(UnknownModel):
        await store.read(1, IDEMPOTENCY_KEYS)
    run_sql(
        str(store._execution._database.url)
        if native(store) == "sqlite"
        else store._execution._database.url.render_as_string(False).replace("+psycopg", ""),
        f"SELECT * FROM {IDEMPOTENCY_KEYS}",
    )


@pytest_twisted.ensureDeferred
async def test_no_descriptor_is_kept(tmp_path, make_store):
    """Stopping closes every connection."""

    def opened() -> int:
        names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        return sum(os.readlink(name).startswith(str(tmp_path)) for name in names if os.path.lexists(name))

    store = make_store(f"sqlite:///{tmp_path}/fds.sqlite3")
    await store.start()
    await gatherResults([store.create(n, "Teams", {"name": f"t{n}"}) for n in range(20)])
    assert opened()
    await store.stop()
    assert opened() == 0


@pytest_twisted.ensureDeferred
async def test_a_database_that_moves_is_followed(make_store, postgresql, own_cluster):
    """Where a service has another port after a restart, commands go on there, and nothing stays at the old place."""
    there = postgresql.new_database()
    await make_store(postgresql.url(there)).start()
    name = own_cluster.new_database()
    store = make_store(own_cluster.url(name))
    await store.start()
    await store.create(1, "Teams", {"name": "before"})
    held = own_cluster.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zcomm'", name)
    assert held[0][0]
    store.move(postgresql.url(there))
    assert await store.create(1, "Teams", {"name": "after"}) == {"id": 1, "name": "after"}
    assert store.url == postgresql.url(there)
    own_cluster.stop()
    assert [row["name"] for row in await store.read(1, "Teams")] == ["after"]
    await store.stop()
    postgresql.drop_database(there)
