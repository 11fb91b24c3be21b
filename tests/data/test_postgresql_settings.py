"""PostgreSQL that is set to its country: its code runs as for any other program, and zComm's values are the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.pgbouncer import PgBouncer, pgbouncer
from support.postgres import Cluster
from support.rows import rows_of_a_test
from twisted.internet.threads import deferToThread

from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.errors import Invalid

#: What databases may be set to: as initdb takes it from a machine, and everything that has a say in the form of values.
SETS = {
    "a country": ["timezone = 'Europe/Berlin'", "datestyle = 'ISO, DMY'"],
    "everything": [
        "timezone = 'America/St_Johns'",
        "datestyle = 'German'",
        "intervalstyle = sql_standard",
        "extra_float_digits = -3",
        "bytea_output = escape",
        "standard_conforming_strings = off",
        "xmloption = document",
        "xmlbinary = hex",
    ],
}
#: All that a database's code may see of its settings.
SEEN = """concat_ws(' ', {at}, {at}::date, {at}::time(0), {f}, {i}, {b}, to_json({at}), ARRAY[{at}], ({at}, {i}),
    '01/02/03'::date, '-1 day 02:00'::interval, date_trunc('day', {at}), xmlelement(name x, {b}), ltz({at}), '\\101',
    current_setting('TimeZone'), current_setting('DateStyle'), current_setting('IntervalStyle'))"""
CODE = f"""
CREATE ROLE settled LOGIN; GRANT ALL ON SCHEMA public TO settled; SET ROLE settled;
CREATE FUNCTION ltz(timestamptz) RETURNS text LANGUAGE plpgsql AS
    $$BEGIN RETURN $1::text || '\\101' || extract(hour FROM $1); END$$;
CREATE TABLE t (
    id serial PRIMARY KEY, at timestamptz, f float8, i interval, b bytea, raw text, d date, ts timestamp, seen text,
    today text DEFAULT concat_ws(' ', now()::date, current_date, localtimestamp(0)::date, '01/02/03'::date),
    CHECK (at IS NULL OR at::time BETWEEN '08:00' AND '18:00')
);
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    NEW.seen := {SEEN.format(at="NEW.at", f="NEW.f", i="NEW.i", b="NEW.b")};
    NEW.d := NEW.raw::date; NEW.ts := NEW.at; RETURN NEW; END$$;
CREATE TRIGGER fill BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION fill();
CREATE TYPE pair AS (at timestamptz, text text);
CREATE VIEW v AS SELECT id, at, {SEEN.format(at="at", f="f", i="i", b="b")} AS seen,
    ARRAY[at] AS ats, ARRAY[at::text, at::date::text] AS days, f, i,
    ROW(at, at::text)::pair AS p, ROW(at, at::text)::pair AS q,
    tstzrange(date_trunc('day', at), at) AS day FROM t;
CREATE TABLE mine (id serial PRIMARY KEY, at timestamptz, name text);
INSERT INTO mine (at, name) VALUES ('2024-07-01 00:30 Europe/Berlin', 'berlin'),
    ('2024-07-02 00:30 America/St_Johns', 'the day after'), ('2024-01-07 12:00', 'january'),
    ('2024-07-01 12:00', 'noon');
ALTER TABLE mine ENABLE ROW LEVEL SECURITY; ALTER TABLE mine FORCE ROW LEVEL SECURITY;
CREATE POLICY p ON mine USING (at::date = '01/07/24');
"""
SCHEMA = load_schema(
    """
t: {id: {type: int, pk: true}, at: datetime, f: float, i: str, b: bytes, raw: str, d: {type: date, readonly: true},
    ts: {type: datetime, readonly: true}, seen: {type: str, readonly: true}, today: {type: str, readonly: true}}
v: {_model: {read_only: true}, id: {type: int, pk: true}, at: datetime, seen: str, ats: json, days: json, p: json,
    q: str, f: float, i: str, day: str}
mine: {_model: {read_only: true}, id: {type: int, pk: true}, name: str}
"""
)


@pytest.fixture(scope="module")
def bouncer(postgresql: Cluster) -> Iterator[PgBouncer]:
    """A pgbouncer that pools transactions and lets a URL ask for settings."""
    with pgbouncer(postgresql, ignore_startup_parameters="options") as made:
        yield made


def database_of(cluster: Cluster, settings: list[str]) -> str:
    """A new database with such settings."""
    name = cluster.new_database()
    for setting in settings:
        cluster.execute(f"ALTER DATABASE {name} SET {setting}")
    return name


def ask(cluster: Cluster, name: str, text: str, *values: Any) -> list[tuple[Any, ...]]:
    """What another program does there, in a session as the database gives it; its values as text."""
    with psycopg.connect(
        host=str(cluster.directory), port=5432, user="postgres", dbname=name, autocommit=True, options="-crole=settled"
    ) as connection:
        plain = psycopg.ClientCursor(connection)
        plain.execute(text, values)  # type: ignore[arg-type]
        return plain.fetchall() if plain.description else []


@pytest_twisted.ensureDeferred
async def test_contact_code_of_the_database_runs_under_its_own_settings(postgresql, bouncer, make_store):
    """Triggers, defaults, checks, views and policies make of the same what they make of it for any other program,
    directly and behind a pooler, whatever strangers left there."""
    given = ("2024-06-30T22:30:00.250000Z", "2024-07-01T06:30:00Z", "2024-07-01T17:30:00Z", None)
    with rows_of_a_test() as row:
        for what, settings in SETS.items():
            name = database_of(postgresql, settings)
            postgresql.execute(CODE, name)
            for way, url in (("directly", postgresql.url(name)), ("pooled", bouncer.url(name))):
                if way == "pooled":
                    with psycopg.connect(url, autocommit=True) as stranger:
                        stranger.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL, MDY'")
                store = make_store(f"{url}&options=-crole%3Dsettled", SCHEMA)
                await store.start()
                for at in given:
                    with row(f"{what} {way} {at}"):
                        values = {"at": at, "f": 0.1 + 0.2, "i": "-1 day 02:03:04", "b": "AAEC/1xc", "raw": "05/06/07"}
                        insert = (
                            "INSERT INTO t (at, f, i, b, raw) VALUES (%s, %s, make_interval(0, 0, 0, -1, 2, 3, 4), %s,"
                            " '05/06/07') RETURNING seen, d - '2000-01-01', today, extract(epoch FROM ts)"
                        )
                        try:
                            theirs = ask(postgresql, name, insert, at, 0.1 + 0.2, b"\0\1\2\xff\\\\")[0]
                        except psycopg.errors.CheckViolation:
                            with pytest.raises(Invalid, match="does not accept"):
                                await store.create(1, "t", values)
                            continue
                        for key in (None, way + str(at)):
                            made = await store.create(1, "t", values, idempotency_key=key)
                            assert made["i"] == "-1 days +02:03:04" and made["f"] == 0.1 + 0.2, made
                            assert {each: made[each] for each in ("at", "b", "raw")} == {
                                each: values[each] for each in ("at", "b", "raw")
                            }
                            kept = "SELECT seen, d - '2000-01-01', today, extract(epoch FROM ts) FROM t WHERE id = {}"
                            assert ask(postgresql, name, kept.format(made["id"])) == [theirs]
                            assert made["seen"] == theirs[0] and made["today"] == theirs[2]
                            await store.update(1, "t", made["id"], {"raw": "05/06/07"})
                            assert ask(postgresql, name, kept.format(made["id"])) == [theirs]
                        viewed = ask(postgresql, name, f"SELECT seen, days, (p).text FROM v WHERE id = {made['id']}")[0]
                        got = (await store.read(1, "v", made["id"]))[0]
                        assert (got["seen"], got["days"]) == viewed[:2]
                        shown = at and at.replace("T", " ").replace(".250000Z", ".25+00").replace("Z", "+00")
                        assert (got["at"], got["ats"], got["f"], got["i"]) == (at, [shown], 0.1 + 0.2, made["i"])
                        zoned = at and at.replace(".250000Z", ".25+00:00").replace("Z", "+00:00")
                        assert got["p"] == {"at": zoned, "text": viewed[2]}
                        if at:
                            assert got["q"].startswith(f'("{shown}",') and got["day"].endswith(f',"{shown}")')
                            for field in ("at", "q", "day", "i", "f"):
                                there = {"id": made["id"], field: got[field]}
                                assert len(await store.read(1, "v", there)) == 1, field
                with row(f"{what} {way} a policy"):
                    theirs = ask(postgresql, name, "SELECT name FROM mine ORDER BY id")
                    assert [(each["name"],) for each in await store.read(1, "mine", order_by="id")] == theirs
                    assert len(theirs) in (1, 2)
                await store.stop()
            await deferToThread(postgresql.execute, "DROP OWNED BY settled", name)
            postgresql.execute("DROP ROLE settled")


#: By the column's type: a field's type, and values as zComm shows them in a database of UTC.
SHOWN: dict[str, tuple[str, list[Any]]] = {
    "timestamptz": (
        "datetime",
        [
            "2024-06-30T22:30:00Z",
            "2024-10-27T01:30:00.500000Z",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999Z",
            "1883-11-18T12:03:58Z",
            "0044-03-15 01:02:03.5+00 BC",
            "0001-12-31 23:59:59+00 BC",
            "10000-01-01 00:00:00.000001+00",
            "294276-12-31 23:59:59.999999+00",
            "4714-11-24 00:00:00+00 BC",
            "infinity",
            "-infinity",
        ],
    ),
    "timestamp": ("datetime", ["2024-03-31T02:30:00Z", "0044-03-15 01:02:03.5 BC", "12000-01-01 00:00:00", "infinity"]),
    "moment": ("datetime", ["2024-06-30T22:30:00Z"]),
    "date": ("date", ["2024-02-03", "0044-03-15 BC", "12000-01-01", "infinity"]),
    "time": ("time", ["08:30:00", "24:00:00"]),
    "timetz": ("time", ["08:30:00+00", "08:30:00+02", "08:30:00.5-03:30"]),
    "interval": ("str", ["-1 days +02:03:04", "1 year 2 mons -3 days", "-00:00:01.5", "-1 mons -2 days -03:00:00"]),
    "float8": ("float", [0.1 + 0.2, 5e-324, "NaN", "-Infinity"]),
    "float4": ("float", [0.1, 3.4e38, 1e-45]),
    "bytea": ("bytes", ["AAEC/1xc", ""]),
    "point": ("str", ["(0.30000000000000004,-1e-300)"]),
    "xml": ("str", ["a<b/>c"]),
    "tstzrange": ("str", ['["1890-06-30 22:30:00+00",infinity)', "empty"]),
    "tstzmultirange": ("str", ['{["2024-06-30 22:30:00+00","2024-06-30 23:30:00+00")}']),
    "tsrange": ("str", ['["2024-03-04 22:30:00","2024-03-05 22:30:00")']),
    "daterange": ("str", ["[2024-03-04,2024-05-06)"]),
    "timestamptz[]": ("str", ['{"2024-06-30 22:30:00+00",NULL,infinity}']),
    "interval[]": ("str", ['{"-1 days +02:03:04"}']),
    "bytea[]": ("str", ['{"\\\\x00ff"}']),
    "everything": ("str", ['("2024-06-30 22:30:00+00",2024-03-04,"-1 days +02:03:04",0.30000000000000004,"\\\\x00")']),
    "everything[]": ("str", ['{"(,,,,)"}']),
    "both_of": ("str", ['("2024-06-30 22:30:00+00",2024-03-04,,,)']),
}
LISTS: dict[str, list[Any]] = {
    "timestamptz[]": [["2024-06-30 22:30:00+00", None], [["infinity"]], []],
    "date[]": [["2024-03-04"]],
    "interval[]": [["-1 days +02:03:04"]],
    "float8[]": [[0.1 + 0.2, None, "NaN"]],
    "bytea[]": [["\\x00ff"]],
    "everything[]": [['("2024-06-30 22:30:00+00",2024-03-04,"-1 days +02:03:04",0.30000000000000004,"\\\\x00")']],
}


@pytest_twisted.ensureDeferred
async def test_contact_values_are_the_same_under_any_settings(postgresql, bouncer, make_store):
    """Whatever the database is set to, a value is shown, found, ordered and kept as in one of UTC; one that leaves out
    its offset or a sign is not completed by the session."""
    columns = [(kind, column, values) for column, (kind, values) in SHOWN.items()]
    columns += [("json", column, values) for column, values in LISTS.items()]
    schema = load_schema(
        "\n".join(f"t{at}: {{id: {{type: int, pk: true}}, v: {kind}}}" for at, (kind, *_) in enumerate(columns))
    )
    tables = "\n".join(f"CREATE TABLE t{at} (id serial PRIMARY KEY, v {one[1]});" for at, one in enumerate(columns))
    types = (
        "CREATE DOMAIN moment AS timestamptz; CREATE TYPE everything AS (a timestamptz, b date, c interval, d float8,"
        " e bytea); CREATE DOMAIN both_of AS everything; "
    )
    at_of = {column: f"t{at}" for at, (_, column, _) in enumerate(columns[: len(SHOWN)])}
    with rows_of_a_test() as row:
        for what, settings in SETS.items():
            name = database_of(postgresql, settings)
            postgresql.execute(types + tables, name)
            store = make_store(bouncer.url(name) if what == "a country" else postgresql.url(name), schema)
            await store.start()
            for at, (kind, column, values) in enumerate(columns):
                if what == "a country" and not re.search(r"tz$|moment|tstzr|tz\[\]|of", column):
                    continue
                model = f"t{at}"
                with row(f"{what} {kind} {column}"):
                    made = [await store.create(1, model, {"v": value}) for value in values]
                    assert [each["v"] for each in made] == values
                    assert await store.read(1, model, order_by="id") == made
                    assert await store.update(1, model, made[0]["id"], {"v": values[0]}) == {"updated": 1}
                    if kind != "json":
                        assert await store.read(1, model, {"v__in": values}, order_by="id") == made
                    if kind == "str":
                        assert made[0] in await store.read(1, model, {"v__startswith": values[0][:12]})
                        every = parse_command({"action": "read", "model": model})
                        assert (await store.execute(1, every, rows={"v": values[0]})).result == made[:1]
            with row(f"{what} order"):
                ordered = [each["v"] for each in await store.read(1, at_of["timestamptz"], order_by="v")]
                assert ordered[:3] == ["-infinity", "4714-11-24 00:00:00+00 BC", "0044-03-15 01:02:03.5+00 BC"]
            for column, value, shown in (
                ("timestamptz", "0044-03-15 BC", "0044-03-15 00:00:00+00 BC"),
                ("timestamptz", "12000-01-01T00:00:00Z", "12000-01-01 00:00:00+00"),
                ("timestamptz", "2024-07-01", "2024-07-01T00:00:00Z"),
                ("timestamp", "2024-07-01T02:00:00+02:00", "2024-07-01T00:00:00Z"),
                ("timetz", "08:30:00", "08:30:00+00"),
                ("timetz", "08:30:00Z", "08:30:00+00"),
                ("interval", "-1 day 02:03:04", "-1 days +02:03:04"),
                ("interval", "-1 year 2 days 3 hours", "-1 years +2 days 03:00:00"),
            ):
                with row(f"{what} {column} {value}"):
                    made = await store.create(1, at_of[column], {"v": value})
                    assert made["v"] == shown
                    assert made in await store.read(1, at_of[column], {"v": value})
            with row(f"{what} what is there"):
                epoch = f"SELECT extract(epoch FROM v)::int FROM {at_of['timestamptz']} WHERE id = 1"
                assert postgresql.execute(epoch, name) == [(1719786600,)]
            await store.stop()


@pytest_twisted.ensureDeferred
async def test_contact_settings_that_are_asked_for(postgresql, bouncer, make_store, monkeypatch):
    """What the URL asks for counts for the database's code as well, also behind a pooler, and stays as the start found
    it; likewise libpq's variables where there is none."""
    schema = load_schema("t: {id: {type: int, pk: true}, i: str, at: datetime, seen: {type: str, readonly: true}}")
    values = {"i": "-1 days +02:03:04", "at": "2024-06-30T22:30:00Z"}
    with rows_of_a_test() as row:
        for way, zone in ((postgresql, "Asia/Tokyo"), (bouncer, "Europe/Berlin")):
            name = database_of(postgresql, ["timezone = 'Europe/Berlin'", "datestyle = 'SQL, MDY'"])
            shown = " || ' ' || ".join(
                f"current_setting('{each}')" for each in ("TimeZone", "DateStyle", "IntervalStyle")
            )
            table = f"CREATE TABLE t (id serial PRIMARY KEY, i interval, at timestamptz, seen text DEFAULT {shown})"
            postgresql.execute(table, name)
            asked = "&options=-cDateStyle%3DGerman%20--IntervalStyle%3Dsql_standard"
            # A pooler would hand it to all its sessions, and is refused with it.
            if way is bouncer:
                monkeypatch.delenv("PGTZ")
            else:
                monkeypatch.setenv("PGTZ", zone)
            store = make_store(way.url(name) + asked, schema, threads=1)
            await store.start()
            expected = {"id": 1, **values, "seen": f"{zone} German, DMY sql_standard"}
            with row(type(way).__name__):
                assert await store.create(1, "t", values) == expected
                for setting in ("timezone = 'UTC'", "intervalstyle = 'iso_8601'"):
                    postgresql.execute(f"ALTER DATABASE {name} SET {setting}")
                monkeypatch.setenv("PGTZ", "America/Lima")
                postgresql.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                    name,
                )
                assert await store.read(1, "t", {"i": values["i"]}) == [expected]
                assert await store.create(1, "t", values) == {**expected, "id": 2}
            monkeypatch.setenv("PGTZ", "Asia/Tokyo")
            await store.stop()
