"""Who else uses a database: the table, on both databases, and what a server makes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from zcomm.data.drivers.driver import Fault
from zcomm.data.neighbours import Server, Strangers
from zcomm.data.store import Store


@pytest_twisted.ensureDeferred
async def test_servers_find_each_other(postgresql: Any, make_store: Callable[..., Store], url: str):
    """Each has a row, renewed with each word; the table is made with the first."""
    first, second = make_store(url), make_store(url)
    for store in (first, second):
        await store.start()
    assert await first.say_there("a", "e1", "one (pid 1)") == []
    (found,) = await second.say_there("b", "e2", "two (pid 2)")
    assert found[:3] == ("a", "e1", "one (pid 1)")
    assert abs((await first.say_there("a", "e3", "one"))[0].seen - found.seen) < 60_000
    assert [row[:3] for row in await second.say_there("b", "e2", "two")] == [("a", "e3", "one")]


def forget(url: str, postgresql: Any, statement: str) -> None:
    """Run a statement from outside."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        with connection:
            connection.execute(statement)
        connection.close()
    else:
        postgresql.execute(statement, url.split("/")[3].split("?")[0])


@pytest_twisted.ensureDeferred
async def test_what_says_nothing_any_more_is_removed(postgresql: Any, make_store: Callable[..., Store], url: str):
    """By the database's clock; and a table that went is made again."""
    store = make_store(url)
    await store.start()
    await store.say_there("old", "e1", "one")
    forget(url, postgresql, "UPDATE zcomm_servers SET seen = seen - 601000")
    assert await store.say_there("a", "e2", "two") == []
    forget(url, postgresql, "UPDATE zcomm_servers SET seen = seen + 601000")
    (left,) = await store.say_there("b", "e2", "three")
    assert left.node == "a"
    forget(url, postgresql, "DROP TABLE zcomm_servers")
    assert await store.say_there("a", "e2", "two") == []


@pytest_twisted.ensureDeferred
async def test_a_database_that_lets_no_table_be_made(postgresql: Any, make_store: Callable[..., Store]):
    """It is a fault of its own, and nothing else is disturbed."""
    database = postgresql.new_database()
    owner = make_store(f"{postgresql.url(database)}")
    await owner.start()
    postgresql.execute(
        "CREATE ROLE guest_n LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO guest_n;"
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO guest_n; REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        database,
    )
    store = make_store(postgresql.url(database).replace("postgres@", "guest_n@"))
    await store.start()
    with pytest.raises(Fault) as caught:
        await store.say_there("a", "e1", "one")
    assert caught.value.kind == "forbidden"
    assert await store.read(1, "Teams") == []
    assert (await store.identity()) == (await owner.identity()) != ""


def row(node: str, engine: str, seen: int) -> Server:
    return Server(node, engine, f"host {node}", seen)


def test_a_stranger_is_who_speaks_again_on_another_engine():
    """What a crash has left says nothing, and whoever shares the engine is none; each is told of once."""
    strangers = Strangers()
    assert strangers.look("e", [row("a", "f", 1), row("b", "e", 1)]) == ([], [])
    assert strangers.look("e", [row("a", "f", 1), row("b", "e", 2)]) == ([], [])
    assert strangers.look("e", [row("a", "f", 2), row("b", "e", 3)]) == (["host a"], [])
    assert strangers.look("e", [row("a", "f", 3)]) == ([], [])
    # One look may fall just before its word; two do not.
    assert strangers.look("e", [row("a", "f", 3)]) == ([], [])
    assert strangers.look("e", [row("a", "f", 4)]) == ([], [])
    assert strangers.look("e", [row("a", "f", 4)]) == ([], [])
    assert strangers.look("e", [row("a", "f", 4)]) == ([], ["host a"])
    assert strangers.look("e", [row("a", "f", 5)]) == (["host a"], [])
    assert strangers.look("e", []) == ([], ["host a"])


def test_an_engine_that_has_another_id_makes_no_strangers():
    """Where its servers have lost the id, all find the new one, one after the other."""
    strangers = Strangers()
    strangers.look("old", [row("a", "old", 1)])
    assert strangers.look("new", [row("a", "old", 2)]) == ([], [])
    assert strangers.look("new", [row("a", "new", 3)]) == ([], [])
    # Who moves to the engine is no stranger any more.
    strangers = Strangers()
    strangers.look("e", [row("a", "f", 1)])
    assert strangers.look("e", [row("a", "f", 2)]) == (["host a"], [])
    assert strangers.look("e", [row("a", "e", 3)]) == ([], ["host a"])


@pytest_twisted.ensureDeferred
async def test_a_database_has_an_id_wherever_it_is_asked(
    postgresql: Any, make_store: Callable[..., Store], url: str, tmp_path: Any
):
    """The same for all who use it, and another one for each other database."""
    other = postgresql.url(postgresql.new_database()) if url.startswith("postgresql") else f"sqlite:///{tmp_path}/o.db"
    stores = [make_store(each) for each in (url, url, other)]
    for store in stores:
        await store.start()
    a, b, c = [await store.identity() for store in stores]
    assert a == b != c and a.partition(":")[0] == c.partition(":")[0] == url.partition(":")[0]
    alone = [make_store("sqlite://"), make_store("sqlite://")]
    assert all([(await store.identity()).startswith("sqlite:") for store in alone])
