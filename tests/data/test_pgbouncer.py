"""PostgreSQL behind a real pgbouncer, where a session of the server serves whoever comes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.pgbouncer import PgBouncer, pgbouncer
from support.postgres import Cluster
from support.rows import rows_of_a_test
from support.waiting import wait_until
from twisted.internet.defer import DeferredList, ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent

from zcomm.data.drivers.driver import Fault
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import CommandError, ConfigError, Conflict, TooBusy, Unavailable

SCHEMA = load_schema(
    """
Item:
  id:   {type: int, pk: true}
  name: {type: str, required: true, unique: true}
  at:   {type: datetime}
  size: {type: float}
Third:
  id:   {type: int, pk: true}
  name: {type: str, required: true, unique: true}
  at:   {type: datetime}
  size: {type: float}
"""
)


@pytest.fixture(scope="module")
def bouncer(postgresql: Cluster) -> Iterator[PgBouncer]:
    """A pgbouncer that pools transactions, for the tests of this file."""
    with pgbouncer(postgresql) as made:
        yield made


@pytest.fixture
def database(postgresql: Cluster, bouncer: PgBouncer) -> Iterator[str]:
    """The name of a database that is empty and whose settings nobody would guess."""
    name = postgresql.new_database()
    for setting in ("datestyle = 'SQL, DMY'", "timezone = 'Asia/Kolkata'", "extra_float_digits = -3"):
        postgresql.execute(f"ALTER DATABASE {name} SET {setting}")
    yield name
    postgresql.drop_database(name)


class Person:
    """A client that does things at random with rows of its own and knows what must come of it."""

    def __init__(self, store: Store, model: str, number: int, seed: int):
        self._store = store
        self._model = model
        self._number = number
        self._random = random.Random(seed)
        self.rows: dict[str, dict[str, Any]] = {}
        self.wrong: list[str] = []

    def _name(self) -> str:
        return f"{self._model} {self._number} {self._random.randrange(6)}"

    async def live(self, steps: int) -> None:
        """Do ``steps`` things, one after the other."""
        for _ in range(steps):
            action = self._random.choice(("create", "create", "read", "update", "delete", "nobody", "upsert", "keyed"))
            name = self._name()
            try:
                got = await getattr(self, "_" + action)(name)
            except Conflict:
                got = name in self.rows
            except CommandError as error:
                got = f"{error.code}: {error}"
            if got is not True:
                self.wrong.append(f"{self._model} {action} {name}: {got}")

    def _values(self, name: str) -> dict[str, Any]:
        moment = f"20{self._random.randrange(10, 99)}-0{self._random.randrange(1, 10)}-02T03:04:05Z"
        return {"name": name, "at": moment, "size": self._random.random()}

    def _keep(self, row: dict[str, Any], values: dict[str, Any]) -> bool:
        self.rows[values["name"]] = row
        return {key: row[key] for key in values} == values

    async def _create(self, name: str) -> Any:
        values = self._values(name)
        row = await self._store.create(self, self._model, values)
        return name not in self.rows and self._keep(row, values)

    async def _keyed(self, name: str) -> Any:
        values = self._values(name)
        key = f"{self._model} {self._number} {self._random.random()}"
        row = await self._store.create(self, self._model, values, idempotency_key=key)
        again = await self._store.create(self, self._model, values, idempotency_key=key)
        return name not in self.rows and row == again and self._keep(row, values)

    async def _read(self, name: str) -> Any:
        found = await self._store.read(self, self._model, {"name": name})
        expected = [self.rows[name]] if name in self.rows else []
        return found == expected or (found, expected)

    async def _update(self, name: str) -> Any:
        values = self._values(name)
        done = await self._store.update(self, self._model, {"name": name}, {"at": values["at"], "size": values["size"]})
        if name in self.rows:
            self.rows[name] = {**self.rows[name], **values}
        return done == {"updated": int(name in self.rows)} or done

    async def _delete(self, name: str) -> Any:
        done = await self._store.delete(self, self._model, {"name": name})
        return done == {"deleted": int(self.rows.pop(name, None) is not None)} or done

    async def _nobody(self, name: str) -> Any:
        done = await self._store.delete(self, self._model, {"name": f"nobody {name}"})
        return done == {"deleted": 0} or done

    async def _upsert(self, name: str) -> Any:
        values = self._values(name)
        row = await self._store.upsert(self, self._model, values, ["name"])
        kept = self.rows.get(name)
        return (kept is None or kept["id"] == row["id"]) and self._keep(row, values)


async def crowd(first: Store, second: Store, steps: int, seed: int) -> list[str]:
    """Let people loose on two servers; everything that was not as it must be."""
    people = [
        Person(store, model, number, seed + number)
        for number, (store, model) in enumerate([(first, "Item"), (second, "Third"), (second, "Item")] * 4)
    ]
    await DeferredList([ensureDeferred(one.live(steps)) for one in people], fireOnOneErrback=True)
    wrong = [line for one in people for line in one.wrong]
    for model in ("Item", "Third"):
        expected = {name: row for one in people if one._model == model for name, row in one.rows.items()}
        stored = {row["name"]: row for row in await first.read("end", model)}
        if stored != expected:
            wrong.append(f"{model}: {stored} is not {expected}")
    return wrong


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_contact_f14_r7_two_servers_behind_a_pooler_of_transactions(
    bouncer, database, make_store: Callable[..., Store]
):
    """No command becomes another's, none fails for the pooler, and values are the same under any settings."""
    first, second = (make_store(bouncer.url(database), SCHEMA) for _ in range(2))
    await first.start()
    await second.start()
    assert await crowd(first, second, 60, 1) == []


def settings_of(url: str) -> set[tuple[Any, ...]]:
    """What the sessions have that another user of the pooler gets, asked for often enough to meet them all."""
    found = set()
    for _ in range(8):
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            for name in ("statement_timeout", "idle_in_transaction_session_timeout", "extra_float_digits"):
                found |= {(name, *row) for row in connection.execute(f"SHOW {name}").fetchall()}  # type: ignore[call-overload]
            found |= set(connection.execute("SELECT statement, name FROM pg_prepared_statements").fetchall())
    return found


@pytest_twisted.ensureDeferred
async def test_contact_r7_sessions_are_left_as_they_were(bouncer, database, make_store):
    """Who else uses the pooler finds no setting of ours and no prepared statement; a slow statement still ends."""
    before = await deferToThread(settings_of, bouncer.url(database))
    store = make_store(bouncer.url(database), SCHEMA, statement_timeout=0.3)
    await store.start()
    for number in range(12):
        await store.create(number, "Item", {"name": f"n{number}"}, idempotency_key=f"k{number}" if number % 2 else None)
        await store.read(number, "Item", {"name": "n0"})
    assert await deferToThread(settings_of, bouncer.url(database)) == before
    with psycopg.connect(bouncer.url(database)) as holder:
        holder.execute('LOCK TABLE "Item" IN ACCESS EXCLUSIVE MODE')
        for key in (None, "slow"):
            with pytest.raises(CommandError, match="took too long"):
                await store.create(1, "Item", {"name": "slow"}, idempotency_key=key)
    assert len(await store.read(1, "Item")) == 12


@pytest_twisted.ensureDeferred
async def test_contact_r7_a_constraint_that_is_checked_at_the_end(bouncer, postgresql, database, make_store):
    """A write that fails when it is committed was not made and is not said to be, with a pooler or without."""
    schema = load_schema(
        "P: {id: {type: int, pk: true}}\n"
        "C: {id: {type: int, pk: true}, p: {type: int, fk: P.id}, n: {type: int, unique: true}}"
    )
    postgresql.execute(
        'CREATE TABLE "P" (id bigserial PRIMARY KEY);'
        'CREATE TABLE "C" (id bigserial PRIMARY KEY, n bigint UNIQUE,'
        ' p bigint REFERENCES "P" DEFERRABLE INITIALLY DEFERRED)',
        database,
    )
    with rows_of_a_test() as row:
        for name, url in (("pooled", bouncer.url(database)), ("direct", postgresql.url(database))):
            store = make_store(url, schema)
            await store.start()
            for key in (None, "key"):
                with row(f"{name} {key}"):
                    for _ in range(8):
                        with pytest.raises(Conflict, match="p points to a row that does not exist"):
                            await store.create(1, "C", {"p": 77, "n": 1}, idempotency_key=key)
                    assert await store.read(1, "C") == []


@pytest_twisted.ensureDeferred
async def test_contact_f14_other_modes_of_pgbouncer(postgresql, database, make_store):
    """Sessions are pooled as well as transactions; pooling single statements is refused at the start, by its name."""
    with pgbouncer(postgresql, "session", server_reset_query="DISCARD ALL", default_pool_size=40) as bouncer:
        first, second = (make_store(bouncer.url(database), SCHEMA) for _ in range(2))
        await first.start()
        await second.start()
        assert await crowd(first, second, 10, 2) == []
        await first.stop()
        await second.stop()
    with pgbouncer(postgresql, "statement") as bouncer:
        with pytest.raises(ConfigError, match="pool_mode"):
            await make_store(bouncer.url(database), SCHEMA).start()


@pytest_twisted.ensureDeferred
async def test_contact_f14_a_pooler_that_restarts_pauses_and_has_one_connection(postgresql, database, make_store):
    """Commands wait while pgbouncer pauses, reconnects or is away, and none is made twice or lost."""
    with pgbouncer(
        postgresql, "transaction", max_db_connections=1, server_reset_query_always=1, server_idle_timeout=1
    ) as bouncer:
        first, second = (make_store(bouncer.url(database), SCHEMA, deadline=60) for _ in range(2))
        await first.start()
        await second.start()
        assert await crowd(first, second, 4, 3) == []
        await deferToThread(bouncer.admin, "PAUSE")
        waiting = [first.create(number, "Item", {"name": f"paused {number}"}) for number in range(6)]
        await deferToThread(bouncer.admin, "RESUME")
        await DeferredList(waiting, fireOnOneErrback=True)
        await deferToThread(bouncer.admin, "RECONNECT")
        for number in range(6):
            await first.create(number, "Item", {"name": f"reconnected {number}"})
        await deferToThread(bouncer.stop)
        waiting = [second.create(number, "Item", {"name": f"away {number}"}) for number in range(6)]
        await wait_until(lambda: second._reconnector.is_down, "the outage to be noticed")
        await deferToThread(bouncer.start)
        await DeferredList(waiting, fireOnOneErrback=True)
        names = [row["name"].split()[0] for row in await first.read(1, "Item")]
        assert [names.count(word) for word in ("paused", "reconnected", "away")] == [6, 6, 6]
        await first.stop()
        await second.stop()


@pytest_twisted.ensureDeferred
async def test_contact_a_pool_of_sessions_that_is_smaller_than_ours(postgresql, database, make_store):
    """Commands wait for the connections that have a session, and the log says so once; none fails, none is made twice.
    Where others have every session, it is as with a database that is away."""
    postgresql.execute(
        'CREATE TABLE "Item" (id bigserial PRIMARY KEY, name text NOT NULL UNIQUE);'
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(0.05); RETURN new; END$$;"
        'CREATE TRIGGER s BEFORE INSERT ON "Item" FOR EACH ROW EXECUTE FUNCTION slow()',
        database,
    )
    small = load_schema("Item: {id: {type: int, pk: true}, name: {type: str, unique: true, required: true}}")
    with pgbouncer(postgresql, "session", default_pool_size=3, ignore_startup_parameters="options") as bouncer:
        url = bouncer.url(database)
        with psycopg.connect(url, autocommit=True) as other:
            other.execute("SELECT 1")
            store = make_store(url, small, threads=8)
            await store.start()
            with capturedLogs() as logged:
                made = [
                    store.create(number, "Item", {"name": f"{turn} {number}"}, idempotency_key=f"{turn} {number}")
                    for turn in range(3)
                    for number in range(12)
                ]
                rows = [row for _, row in await DeferredList(made, fireOnOneErrback=True)]
            assert len(await store.read(1, "Item")) == len({row["id"] for row in rows}) == 36
            assert sum("has no session free" in (formatEvent(event) or "") for event in logged) == 1
            await store.stop()
            others = [psycopg.connect(url, autocommit=True) for _ in range(2)]
            for each in others:
                await deferToThread(each.execute, "SELECT 1")
            late = make_store(url + "&connect_timeout=1", small, threads=2, deadline=0.1)
            with pytest.raises(Unavailable):
                await late.start()
            for each in others:
                each.close()
            await late.start()
            assert len(await late.read(1, "Item")) == 36
            await late.stop()


@pytest_twisted.ensureDeferred
async def test_contact_f14_prepare_threshold_in_the_url(bouncer, postgresql, database, make_store):
    """The URL says how often a statement recurs before it is prepared, or that none is; anything else is refused."""

    async def prepared(base: str, setting: str) -> int:
        store = make_store(f"{base}&prepare_threshold={setting}", SCHEMA, threads=1, connections=1)
        await store.start()
        for _ in range(4):
            await store.read(1, "Item")
        with store._execution.pool.connection() as connection:
            return int(connection.run("SELECT count(*) FROM pg_prepared_statements", (), True)[0][0][0])

    base = postgresql.url(database)
    with rows_of_a_test() as row:
        for base, setting, number in [
            (postgresql.url(database), "0", 3),
            (postgresql.url(database), "2", 1),
            (postgresql.url(database), "100", 0),
            (postgresql.url(database), "none", 0),
            (postgresql.url(database), "None", 0),
            (postgresql.url(database), "", 0),
            (bouncer.url(database), "0", 0),
            (bouncer.url(database), "none", 0),
        ]:
            with row(setting):
                # Whatever else is prepared besides, such as the probe.
                found = await prepared(base, setting)
                assert found == 0 if not number else found >= 1, found
        for setting in ("-1", "five", "1.5", "1_0", "99999999999"):
            with row(setting), pytest.raises(ConfigError, match="prepare_threshold"):
                make_store(f"{base}&prepare_threshold={setting}", SCHEMA)
        for setting in ("autocommit=1", "row_factory=x", "cursor_factory=x", "context=x"):
            with row(setting), pytest.raises(ConfigError, match=setting.split("=")[0]):
                make_store(f"{base}&{setting}", SCHEMA)


@pytest_twisted.ensureDeferred
async def test_contact_f14_statements_that_are_gone(postgresql, database, make_store):
    """A session that lost its prepared statements does the command all the same, also within a transaction, and is not
    used for another one. The names of statements are one connection's alone."""
    store = make_store(f"{postgresql.url(database)}&prepare_threshold=0", SCHEMA, threads=1, connections=1)
    await store.start()
    pool = store._execution.pool
    names: set[str] = set()
    for key in (None, "1"):
        for text in ("a", "b"):
            with pool.connection() as connection:
                assert connection._raw.prepare_threshold is not None
                connection._raw.execute("SELECT 1")
                found = connection._raw.execute("SELECT name FROM pg_prepared_statements").fetchall()
                assert names.isdisjoint(row[0] for row in found)
                names.update(row[0] for row in found)
                connection._raw.pgconn.exec_(b"DEALLOCATE ALL")
                store._execution._database._pooled = False
            await store.create(1, "Item", {"name": f"{text}{key}"}, idempotency_key=key and key + text)
            with pool.connection() as connection:
                connection._raw.close()
            store._execution._database._pooled = False
            await store.create(1, "Item", {"name": f"{text}{key} more"}, idempotency_key=key and key + text + "more")
    assert len(await store.read(1, "Item")) == 8


#: What another user of the pooler, or a trigger, may leave in a session.
LEFT = {
    "a search path": "SET search_path = evil, public",
    "a table of the same name": 'CREATE TEMP TABLE "Item" (LIKE evil."Item" INCLUDING ALL)',
    "foreign keys that are off": "SET session_replication_role = replica",
    "a role": "SET ROLE stranger",
    "another user": "SET SESSION AUTHORIZATION stranger",
    "no writes": "SET default_transaction_read_only = on; SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "another isolation": "SET default_transaction_isolation = 'serializable'; SET default_transaction_deferrable = on",
    "writes that may be lost": "SET synchronous_commit = off",
    "row security": "SET row_security = off",
    "limits of time": "SET statement_timeout = 60000; SET lock_timeout = 1;"
    "SET idle_in_transaction_session_timeout = 60000",
    "comparisons with null": "SET transform_null_equals = on",
    "forms of values": "SET DateStyle = 'German'; SET IntervalStyle = 'iso_8601'; SET TimeZone = 'Asia/Tokyo';"
    "SET bytea_output = 'escape'; SET extra_float_digits = -10; SET lc_monetary = 'C'; SET lc_numeric = 'C'",
    "forms of texts": "SET standard_conforming_strings = off; SET backslash_quote = on; "
    "SET escape_string_warning = off;"
    "SET quote_all_identifiers = on; SET client_encoding = 'LATIN1'",
    "plans": "SET enable_seqscan = off; SET enable_indexscan = off; SET work_mem = '64kB'; SET jit = off",
    "a setting of one's own": "SET app.tenant = '2'",
}
OBJECTS = """
CREATE SCHEMA evil;
CREATE FUNCTION evil.equal(bigint, bigint) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE TABLE evil."Item" (id bigserial PRIMARY KEY, name text UNIQUE, at timestamptz, size float8, up bigint);
CREATE TABLE evil.zcomm_idempotency (identity text, key text, request text, result text, expires bigint,
    PRIMARY KEY (identity, key));
CREATE TABLE "Item" (id bigserial PRIMARY KEY, name text UNIQUE, at timestamptz, size float8,
    up bigint REFERENCES "Item", seen text DEFAULT concat_ws(' ', current_user, session_user,
        current_setting('synchronous_commit'), current_setting('transaction_isolation'),
        current_setting('session_replication_role'), current_setting('statement_timeout'),
        current_setting('transform_null_equals'), current_setting('enable_seqscan'), current_setting('work_mem'),
        current_setting('app.tenant', true)));
GRANT USAGE ON SCHEMA evil, public TO stranger; GRANT ALL ON ALL TABLES IN SCHEMA evil, public TO stranger;
GRANT ALL ON ALL SEQUENCES IN SCHEMA evil, public TO stranger;
"""
SEEN = load_schema(
    """
Item:
  id:   {type: int, pk: true}
  name: {type: str, unique: true}
  at:   {type: datetime}
  size: {type: float}
  up:   {type: int, fk: Item.id}
  seen: {type: str, readonly: true}
"""
)


async def as_before(store: Store, postgresql: Cluster, database: str, name: str) -> list[str]:
    """Do everything once; what was otherwise than it must be."""
    values = {"name": name, "at": "2024-05-06T07:08:09.500000Z", "size": 0.1 + 0.2}
    wrong = []
    row = await store.create(1, "Item", values)
    if {each: row[each] for each in values} != values:
        wrong.append(f"stored {row}")
    if row["seen"].rstrip() != "postgres postgres on read committed origin 5s off on 4MB":
        wrong.append(f"ran under {row['seen']}")
    keyed = await store.create(1, "Item", {**values, "name": f"{name} é"}, idempotency_key=name)
    if await store.read(1, "Item", {"id": keyed["id"]}) != [keyed]:
        wrong.append("cannot be read")
    for key in (None, f"{name} up"):
        try:
            await store.create(1, "Item", {"name": f"{name} {key}", "up": 99_999}, idempotency_key=key)
            wrong.append("a foreign key was not kept")
        except Conflict:
            pass
    if await store.update(1, "Item", {"name": name}, {"size": 2.5}) != {"updated": 1}:
        wrong.append("not updated")
    if await store.delete(1, "Item", {"name": name}) != {"deleted": 1}:
        wrong.append("not deleted")
    if await store.read(1, "Item", {"name": f"{name} é"}) != [keyed]:
        wrong.append("not there")
    stored = postgresql.execute(
        'SELECT (SELECT count(*) FROM evil."Item"), (SELECT count(*) FROM evil.zcomm_idempotency)', database
    )
    if stored != [(0, 0)]:
        wrong.append(f"strangers' tables have {stored}")
    return wrong


@pytest.fixture
def stranger(postgresql: Cluster, database: str) -> Iterator[None]:
    """A role that others left in sessions, and tables of theirs."""
    postgresql.execute("CREATE ROLE stranger LOGIN")
    postgresql.execute(OBJECTS, database)
    yield
    postgresql.execute("DROP OWNED BY stranger", database)
    postgresql.execute("DROP ROLE stranger")


@pytest_twisted.ensureDeferred
async def test_contact_what_strangers_leave_in_a_shared_session(postgresql, database, stranger, make_store):
    """Behind a pooler every transaction is where, as whom and under which settings the start found it, and what is in
    the session is still there for those who left it."""
    with pgbouncer(postgresql, "transaction", default_pool_size=1, ignore_startup_parameters="options") as bouncer:
        url = bouncer.url(database)
        store = make_store(url, SEEN)
        await store.start()
        with rows_of_a_test() as row:
            for name, left in LEFT.items():
                with row(name):
                    await deferToThread(execute, url, left)
                    before = await deferToThread(all_settings, url)
                    assert await as_before(store, postgresql, database, name) == []
                    assert await deferToThread(all_settings, url) == before
                await deferToThread(execute, url, "DISCARD ALL")
        await store.stop()


def execute(url: str, text: str) -> list[tuple[Any, ...]]:
    """Run statements as another user of the pooler does; the rows of the last."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        cursor = psycopg.ClientCursor(connection).execute(text)  # type: ignore[arg-type]
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []


def all_settings(url: str) -> list[tuple[Any, ...]]:
    """All that a session has set, the role and its temporary tables."""
    return execute(
        url,
        "SELECT name, setting FROM pg_settings WHERE name NOT IN"
        " ('application_name', 'client_encoding', 'in_hot_standby')"
        " UNION ALL SELECT 'role', current_setting('role') UNION ALL SELECT 'user', session_user"
        " UNION ALL SELECT 'app', current_setting('app.tenant', true)"
        " UNION ALL SELECT 'table', relname FROM pg_class WHERE relpersistence = 't' ORDER BY 1, 2",
    )


#: Ways in which what users wrote asks for a setting of theirs, each for one that is called as its column.
ASKED = {
    "capitals": "CREATE FUNCTION capitals() RETURNS text LANGUAGE plpgsql AS"
    " $$BEGIN RETURN CURRENT_SETTING('App.Capitals', TRUE); END$$",
    "returned": "CREATE FUNCTION returned() RETURNS text STABLE RETURN current_setting('app.returned', true)",
    "atomic": "CREATE FUNCTION atomic() RETURNS text LANGUAGE sql BEGIN ATOMIC;"
    " SELECT current_setting('app.atomic', true); END",
    "argument": "CREATE FUNCTION argument(n text DEFAULT 'app.argument') RETURNS text LANGUAGE sql AS"
    " 'SELECT current_setting(n, true)'",
    "shown": "CREATE FUNCTION shown() RETURNS text LANGUAGE plpgsql AS"
    " $$DECLARE s text; BEGIN EXECUTE 'show  app.shown' INTO s; RETURN s; EXCEPTION WHEN OTHERS THEN RETURN ''; END$$",
    "quoted": "CREATE FUNCTION quoted() RETURNS text LANGUAGE plpgsql AS"
    " 'BEGIN RETURN current_setting($q$app.quoted$q$, true); END'",
    "doubled": "CREATE FUNCTION doubled() RETURNS text LANGUAGE plpgsql AS"
    " $$DECLARE s text; BEGIN EXECUTE 'SELECT current_setting(''app.doubled'', true)' INTO s; RETURN s; END$$",
    "letters": "CREATE FUNCTION letters() RETURNS text RETURN current_setting('app.größe', true)",
    "three": "CREATE FUNCTION three() RETURNS text RETURN current_setting('app.three.parts'::name::text, true)",
    # Nothing in the database has these names: the database sets the one, the URL the other.
    "built": "CREATE FUNCTION built() RETURNS text RETURN current_setting('app' || '.' || 'built')",
    "url": "CREATE FUNCTION url() RETURNS text RETURN current_setting('app' || '.' || 'url')",
}


@pytest_twisted.ensureDeferred
async def test_contact_strangers_settings_of_their_own(postgresql, database, make_store):
    """However policies, defaults, triggers and rules ask for a setting of one's own, and however late they come, they
    get what the database, the role or the URL gives; where nothing does, nothing."""
    columns = ", ".join(f"{name} text DEFAULT {name}()" for name in ASKED)
    postgresql.execute(
        "; ".join(ASKED.values())
        + f"""; CREATE DOMAIN tenants AS text DEFAULT current_setting('app.domain', true);
        CREATE TABLE t (id bigserial PRIMARY KEY, {columns}, domain tenants, plain text DEFAULT
            current_setting('app.plain', true), of_trigger text, late text);
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            NEW.of_trigger := current_setting(tg_argv[1], true); RETURN NEW; END$$;
        CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f('x', 'app.of_trigger');
        CREATE TABLE ruled (id bigint, ruled text);
        CREATE RULE r AS ON INSERT TO t DO ALSO INSERT INTO ruled VALUES (1, current_setting('app.ruled', true));
        CREATE FUNCTION g() RETURNS text LANGUAGE plpgsql AS
            $$BEGIN RETURN current_setting('auto_explain.log_min_duration', true); END$$;
        ALTER DATABASE {database} SET app.built = 'ours'; ALTER DATABASE {database} SET app.atomic = 'ours';
        """,
        database,
    )
    names = [*ASKED, "domain", "plain", "of_trigger", "late"]
    model = load_schema("t: {id: {type: int, pk: true}, " + ", ".join(f"{name}: str" for name in names) + "}")
    ours = {"built": "ours", "atomic": "ours", "url": "of the URL"}
    left = [*names, "ruled", "three.parts", "größe"]
    with pgbouncer(postgresql, "transaction", default_pool_size=1, ignore_startup_parameters="options") as bouncer:
        url = bouncer.url(database)
        store = make_store(url + "&options=-capp.url%3Dof%5C%20the%5C%20URL", model, threads=1)
        await store.start()

        async def differs(expected: dict[str, str]) -> dict[str, Any]:
            made = await store.create(1, "t", {})
            return {name: made[name] for name in names if (made[name] or "") != expected.get(name, "")}

        with rows_of_a_test() as row:
            with row("in a session that nobody used"):
                assert await differs(ours) == {}
            await deferToThread(execute, url, ";".join(f"SET app.{name} = 'alice'" for name in left))
            with row("in one that a stranger used"):
                assert await differs(ours) == {}
                assert {text for (text,) in postgresql.execute("SELECT coalesce(ruled, '') FROM ruled", database)} == {
                    ""
                }
            with row("what strangers left is still theirs"):
                assert await deferToThread(execute, url, "SHOW app.capitals") == [("alice",)]
            with row("a library of a stranger's"):
                await deferToThread(execute, url, "LOAD 'auto_explain'")
                assert await differs(ours) == {}
            with row("a default that comes while we run"):
                postgresql.execute(
                    f"""ALTER DATABASE {database} SET app.tenant = 'zcomm';
                    ALTER TABLE t ALTER late SET DEFAULT coalesce(current_setting('app.late', true), '')
                        || current_setting('app.tenant')""",
                    database,
                )
                await deferToThread(execute, url, "SET app.tenant = 'alice'")
                store._execution._database._renew_at = 0
                assert await differs({**ours, "late": "zcomm"}) == {}
            with row("one that comes after a connection broke while the database was looked at"):
                driver = store._execution._database

                def break_one() -> None:
                    connection = driver.connect()
                    connection.interrupt()
                    driver._renew_at = 0
                    with pytest.raises(Fault, match="down"):
                        connection.run("SELECT 1", (), True)

                await deferToThread(break_one)
                postgresql.execute("ALTER TABLE t ALTER late SET DEFAULT current_setting('app.later', true)", database)
                await deferToThread(execute, url, "SET app.later = 'alice'")
                assert await differs(ours) == {}
        await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_where_a_pooler_lets_us_start(postgresql, database, stranger, make_store):
    """The path and the role that the database, its roles or the URL give count, not what a session happens to have;
    where the two differ the start says so. A pooler may drop the URL's options: they hold all the same."""
    with pgbouncer(postgresql, "transaction", default_pool_size=1, ignore_startup_parameters="options") as bouncer:
        url = bouncer.url(database)

        async def seen(setting: str = "") -> list[dict[str, Any]]:
            store = make_store(url + setting, SEEN, threads=1)
            await store.start()
            await store.create(1, "Item", {"name": setting})
            found = await store.read(1, "Item")
            await store.stop()
            return found

        with rows_of_a_test() as row:
            for left, name in [("SET search_path = evil", "search_path"), ("SET ROLE stranger", "role")]:
                with row(left):
                    await deferToThread(execute, url, left)
                    with pytest.raises(ConfigError, match=f"session has {name} set to"):
                        await make_store(url, SEEN).start()
                    await seen(f"&options=-c{name}%3D{'public' if name == 'search_path' else 'none'}")
                await deferToThread(execute, url, "DISCARD ALL")
            with row("what strangers leave at the start"):
                await deferToThread(
                    execute,
                    url,
                    'SET row_security = off; SET synchronous_commit = off; CREATE TEMP TABLE "Item" (x int)',
                )
                assert (await seen("&application_name=x"))[-1]["seen"].split()[2] == "on"
                await deferToThread(execute, url, "DISCARD ALL")
            with row("several options"):
                options = "&options=-c%20work_mem%3D8MB%20--synchronous-commit%3Dlocal%20-csearch_path%3Dpublic"
                words = (await seen(options))[-1]["seen"].split()
                assert (words[2], words[-1]) == ("local", "8MB")
            with row("the role's own"):
                for setting in ("role = 'stranger'", "app.tenant = '7'"):
                    postgresql.execute(f"ALTER ROLE postgres IN DATABASE {database} SET {setting}")
                try:
                    await deferToThread(bouncer.admin, "RECONNECT")
                    words = (await seen("&application_name=y"))[-1]["seen"].split()
                    assert (words[0], words[1], words[-1]) == ("stranger", "postgres", "7")
                finally:
                    postgresql.execute(f"ALTER ROLE postgres IN DATABASE {database} RESET ALL")
                    await deferToThread(bouncer.admin, "RECONNECT")
            with row("a path of the URL"):
                small = load_schema("Item: {id: {type: int, pk: true}, name: {type: str, unique: true}}")
                store = make_store(url + "&options=-csearch_path%3Devil,public", small, threads=1)
                await store.start()
                await store.create(1, "Item", {"name": "there"})
                assert postgresql.execute('SELECT name FROM evil."Item"', database) == [("there",)]
                await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_settings_that_the_pooler_makes(postgresql, database, make_store):
    """Settings that the pooler gives each new session are no strangers': the start names them until the URL says what
    is meant. What strangers left stays without effect; where the two cannot be told apart the log says so."""
    postgresql.execute(
        """
        CREATE ROLE tenant LOGIN; CREATE TABLE docs (id bigserial PRIMARY KEY, tenant text);
        GRANT ALL ON docs TO tenant; INSERT INTO docs (tenant) VALUES ('7'), ('8');
        ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON docs
            USING (coalesce(current_setting('app.tenant', true), '') IN ('', tenant))
        """,
        database,
    )
    docs = load_schema("docs: {id: {type: int, pk: true}, tenant: str}")
    made = "SET app.tenant = 7; SET default_transaction_read_only = on; SET timezone = UTC"
    forced = made.replace("timezone = UTC", "ROLE tenant")

    async def told(url: str) -> str:
        """What the log says of settings, or what the start says; and how many rows there are."""
        with capturedLogs() as logged:
            store = make_store(url, docs, threads=1)
            try:
                await store.start()
            except ConfigError as error:
                return str(error)
            rows = len(await store.read(1, "docs"))
            await store.stop()
        texts = [formatEvent(event) or "" for event in logged]
        return " ".join([str(rows), *(text for text in texts if "The pooler's sessions have" in text)])

    options = "&options=-capp.tenant%3D7%20-cdefault_transaction_read_only%3Don%20-ctimezone%3DUTC%20-crole%3Dtenant"
    try:
        with rows_of_a_test() as row:
            for left, size in ((False, 3), (True, 3), (False, 1), (True, 1)):
                given = {"default_pool_size": size, "ignore_startup_parameters": "options"}
                with pgbouncer(postgresql, "transaction", connect_query="" if left else made, **given) as bouncer:
                    url = bouncer.url(database)
                    await deferToThread(execute, url, made if left else "SELECT 1")
                    says = await told(url)
                    with row(f"{'left' if left else 'made'} {size} {says}"):
                        if size == 1:
                            assert says.startswith("2 The pooler's sessions have ")
                        elif left:
                            assert says == "2"
                        else:
                            assert "the pooler makes each session with" in says
                        # pgbouncer itself gives each client a time zone of its own.
                        names = ["app.tenant", "default_transaction_read_only", *([] if left else ["TimeZone"])]
                        assert says == "2" or all(f"{n} set to " in says and f"-c{n}%3D" in says for n in names)
                        if "makes each session" in says:
                            for _ in range(size):
                                assert await told(url) == says
            with pgbouncer(
                postgresql, "transaction", connect_query=forced, ignore_startup_parameters="options"
            ) as bouncer:
                with row("the URL says it all"):
                    assert await told(bouncer.url(database) + options) == "1"
                with row("a variable of libpq"), pytest.MonkeyPatch.context() as patched:
                    patched.setenv("PGTZ", "Asia/Tokyo")
                    says = await told(bouncer.url(database) + options.replace("-ctimezone%3DUTC", ""))
                    assert "session with TimeZone set to Asia/Tokyo, as by its connect_query or a variable" in says
                with row("one of several"):
                    says = await told(bouncer.url(database) + options.replace("-capp.tenant%3D7", ""))
                    assert "session with app.tenant set to 7, as" in says
    finally:
        postgresql.execute("DROP OWNED BY tenant; DROP ROLE tenant", database)


@pytest_twisted.ensureDeferred
async def test_contact_an_error_leaves_nothing_and_deferred_triggers_are_heard(
    bouncer: PgBouncer, database: str, postgresql: Cluster, make_store: Callable[..., Store]
) -> None:
    """Behind a pooler too what a trigger did with a row that it took is undone, and a row is told as it is at last."""
    postgresql.execute(
        """
        CREATE TABLE log (n int);
        CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            INSERT INTO log VALUES (1); RETURN NULL; END$$;
        CREATE FUNCTION more() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            PERFORM set_config('search_path', 'nowhere', false);
            UPDATE public.late SET v = 7 WHERE id = NEW.id AND v <> 7; RETURN NULL; END$$;
        CREATE TABLE taken (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), v int);
        CREATE TRIGGER r BEFORE INSERT ON taken FOR EACH ROW EXECUTE FUNCTION take();
        CREATE TABLE late (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), v int);
        CREATE CONSTRAINT TRIGGER r AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION more();
        """,
        database,
    )
    body = "{id: {type: uuid, pk: true}, v: int}"
    store = make_store(bouncer.url(database), load_schema(f"taken: {body}\nlate: {body}"))
    await store.start()
    for key in (None, "k"):
        with pytest.raises(CommandError, match="did not store the row"):
            await store.create(1, "taken", {"v": 1}, idempotency_key=key)
        assert postgresql.execute("SELECT * FROM log", database) == []
        made = await store.create(1, "late", {"v": 1}, idempotency_key=key)
        assert made["v"] == 7
        assert await store.read(1, "late", {"id": made["id"]}) == [made]


@pytest_twisted.ensureDeferred
async def test_b2_one_user_leaves_sessions_of_a_small_pool(bouncer, postgresql, database, make_store):
    """Once statements have waited for the pooler's few sessions, dear reads of one user take no more than half of
    them."""
    store = make_store(bouncer.url(database), SCHEMA, threads=10, statement_timeout=20.0)
    await store.start()
    others = psycopg.connect(postgresql.url(database))
    for is_known in (False, True):
        others.execute('LOCK TABLE "Item"')
        reads = [store.read("eve", "Item") for _ in range(10)]
        await wait_until(lambda: store._workers.running == 5)
        if is_known:
            for number in range(10):
                assert await store.create("bob", "Third", {"name": str(number)})
            assert not any(read.called for read in reads)
        else:
            await wait_until(lambda: store._pool._most == 3)
        others.rollback()
        await DeferredList(reads, fireOnOneErrback=True)
    others.close()
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_b7_who_has_locked_others_rows_for_long_lets_go_of_them(bouncer, postgresql, database, make_store):
    """Behind a pooler as well: what works for a statement is known as long as its transaction is open."""
    store = make_store(bouncer.url(database), SCHEMA, threads=10, statement_timeout=30.0)
    await store.start()
    postgresql.execute(
        "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END $$;"
        'CREATE TRIGGER slowly BEFORE UPDATE ON "Item" FOR EACH ROW WHEN (NEW.size = 7) EXECUTE FUNCTION slowly();'
        'INSERT INTO "Item" (name, size) SELECT n, 0 FROM generate_series(1, 200) AS n',
        database,
    )
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    dear = store.update("eve", "Item", {}, {"size": 7}, all=True)
    await wait_until(lambda: postgresql.execute(sleeps))
    assert await store.update("bob", "Item", {"id": 1}, {"size": 1}) == {"updated": 1}
    with pytest.raises(TooBusy, match="kept others waiting"):
        await dear
    assert len(await store.read("bob", "Item", {"size": 0})) == 199
    await store.stop()
    gc.collect()
