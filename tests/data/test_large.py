"""Catalogue R11: a read whose rows come to more than a result may, on either database."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest
import pytest_twisted
import sqlalchemy as sa
from support.postgres import Cluster

from zcomm.data.schema import load_schema
from zcomm.data.sql.statements import RESULT_BYTES
from zcomm.data.store import Store
from zcomm.errors import InternalError, Invalid

MIB = 1024 * 1024
SCHEMA = load_schema("""
Notes:
  id:    {type: int, pk: true}
  text:  str
  data:  bytes
  tree:  json
  title: {type: str, rules: {max_length: 50}}
""")


def stored(url: str, *statements: str) -> None:
    """Rows that no client could have sent, written by another program."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


@pytest.fixture
def notes(postgresql: Cluster, make_store: Callable[..., Store], url: str) -> Store:
    """A store of notes, started."""
    store = make_store(url, SCHEMA, row_cap=10_000)
    pytest_twisted.blockon(store.start())
    return store


def text_of(url: str, length: int) -> str:
    return (
        f"repeat('x', {length})" if url.startswith("postgresql") else f"replace(hex(zeroblob({length} / 2)), '0', 'x')"
    )


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_one_row_of_100_mib(notes: Store, url: str):
    """An error that says what to do; nothing of it is kept, and the other fields can be read."""
    stored(
        url,
        f"INSERT INTO \"Notes\" (id, text, title) VALUES (1, {text_of(url, 100 * MIB)}, 'large'), (2, 'small', 'b')",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InternalError, match="Result too large; ask for less with limit or fields"):
        await notes.read("me", "Notes")
    # SQLite has to read a value to know how long it is, and shows it as one of Python's; PostgreSQL knows without.
    bound = 16 * 1024 if url.startswith("postgresql") else 330 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= bound
    assert await notes.read("me", "Notes", fields=["id", "title"]) == [
        {"id": 1, "title": "large"},
        {"id": 2, "title": "b"},
    ]
    assert (await notes.read("me", "Notes", {"id": 2}))[0]["text"] == "small"


@pytest_twisted.ensureDeferred
async def test_many_rows_that_are_large_together(notes: Store, url: str):
    """Each of them small enough to have been sent; together up to the limit, and one byte more."""
    half = text_of(url, RESULT_BYTES // 2)
    stored(url, f'INSERT INTO "Notes" (id, text) VALUES (3, {half}), (1, {half})')
    found = await notes.read("me", "Notes", order_by="id")
    assert [(row["id"], len(row["text"])) for row in found] == [(1, RESULT_BYTES // 2), (3, RESULT_BYTES // 2)]
    stored(url, "INSERT INTO \"Notes\" (id, text) VALUES (2, 'y')")
    with pytest.raises(InternalError, match="Result too large"):
        await notes.read("me", "Notes", order_by="id")
    assert [row["id"] for row in await notes.read("me", "Notes", order_by="id DESC", limit=2)] == [3, 2]
    assert [row["id"] for row in await notes.read("me", "Notes", {"text__isnull": True})] == []


@pytest.mark.parametrize("values", [{"data": "AAAA"}, {"tree": {"a": [1, None]}}, {"text": None}, {}])
@pytest_twisted.ensureDeferred
async def test_values_of_every_kind_are_measured(notes: Store, values: dict):
    """Bytes, JSON and null among them: what is small comes back as it was, in its order."""
    for _ in range(3):
        await notes.create("me", "Notes", {"title": "t", **values})
    found = await notes.read("me", "Notes", order_by="id DESC")
    assert [row["id"] for row in found] == [3, 2, 1]
    assert all(row[name] == value for row in found for name, value in values.items())


@pytest_twisted.ensureDeferred
async def test_a_trigger_that_divides_by_zero_is_no_large_result(notes: Store, url: str):
    """What a database's own code fails with is not taken for the bound on a read."""
    if not url.startswith("postgresql"):
        pytest.skip("SQLite's division by zero is null")
    stored(
        url,
        "CREATE FUNCTION divide() RETURNS trigger AS $$ BEGIN NEW.id = 1 / 0; RETURN NEW; END $$ LANGUAGE plpgsql",
        'CREATE TRIGGER dividing BEFORE INSERT ON "Notes" FOR EACH ROW EXECUTE FUNCTION divide()',
    )
    with pytest.raises(Invalid, match="does not accept a value"):
        await notes.create("me", "Notes", {"title": "t"})
