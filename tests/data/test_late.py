"""Changes that are made after their commands were answered, or after their clients had left: others hear of them."""

from __future__ import annotations

import gc
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_twisted
from support.postgres import Cluster
from support.served import Served
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from zcomm.data.drivers.driver import Fault
from zcomm.runtime.deferreds import Abandoned
from zcomm.runtime.workers import Workers

#: A create that gives up its hope in no time.
CREATE = {"values": {"name": "Late", "email": "late@example.com"}}


class Place:
    """A server, and another program that can keep it from writing to its database."""

    def __init__(self, served: Served, lock: str, other: Any):
        self.served = served
        self.other = other
        self._lock = lock

    def lock(self) -> None:
        self.other.execute(self._lock)


@pytest_twisted.async_yield_fixture(params=["sqlite", "postgresql"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Cluster) -> AsyncIterator[Place]:
    """A server on either database, whose commands have a tenth of a second."""
    database = postgresql.new_database() if request.param == "postgresql" else ""
    config = {"database": postgresql.url(database)} if database else {}
    served = await Served(tmp_path, {"command_timeout": 0.1}, config=config).start()
    if database:
        other: Any = psycopg.connect(postgresql.url(database), autocommit=True)
        made = Place(served, 'BEGIN; LOCK TABLE "Users" IN SHARE MODE', other)
    else:
        (file,) = served.config.data_dir.glob("*.sqlite3")
        other = sqlite3.connect(file, isolation_level=None)
        made = Place(served, "BEGIN IMMEDIATE", other)
    try:
        yield made
    finally:
        other.close()
        served.forget()
        await served.stop()
        if database:
            # What runs when its connection is broken keeps the database for a moment.
            await wait_until(lambda: not served.comm.zcli.data._workers.running)
            postgresql.drop_database(database)
        gc.collect()


@pytest.mark.parametrize("key", [{}, {"_idempotencyKey": "one"}])
@pytest_twisted.ensureDeferred
async def test_who_listens_hears_of_a_change_after_its_timeout(place: Place, key: dict[str, str]):
    """Once, with or without a key, as of any other change; whoever asked for it is not told what the reply would be."""
    served = place.served
    sender, listener = await served.client(), await served.client(token=served.tokens["admin"])
    await sender.call("create_Users", {"values": {"name": "First", "email": "a@example.com"}, "_idempotencyKey": "0"})
    assert (await listener.next_json())["result"]["name"] == "First"
    place.lock()
    answer = await sender.call("create_Users", {**CREATE, **key})
    assert (answer["code"], answer["retryable"]) == ("timeout", bool(key))
    place.other.execute("COMMIT")
    told = await listener.next_json()
    assert told["zKey"] == "create_Users" and told["result"]["name"] == "Late"
    assert (await sender.call("ping", "next"))["result"] == (await listener.call("ping", "next"))["result"] == "next"
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_listens_hears_of_a_change_whose_client_has_left(place: Place):
    """Before it was made."""
    served = place.served
    sender, listener = await served.client(), await served.client(token=served.tokens["admin"])
    place.lock()
    sender.send_json({"zKey": "create_Users", "zHorizontal": CREATE})
    await wait_until(lambda: served.comm.zcli.data._workers.running)
    await sender.leave()
    await wait_until(lambda: served.count == 1)
    place.other.execute("COMMIT")
    told = await listener.next_json()
    assert told["zKey"] == "create_Users" and told["result"]["name"] == "Late"
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_listens_hears_of_a_change_of_which_no_answer_can_be_made(tmp_path: Path, postgresql_url: str):
    """That there is something to be read anew: the one who made it is told not to repeat it."""
    served = await Served(tmp_path, config={"database": postgresql_url}).start()
    try:
        sender, listener = await served.client(), await served.client(token=served.tokens["admin"])
        with psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True) as other:
            other.execute(
                """
                CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN NEW.name = repeat('x', 17000000); RETURN NEW; END $$;
                ALTER TABLE "Users" ALTER name TYPE text;
                CREATE TRIGGER fill BEFORE INSERT ON "Users" FOR EACH ROW EXECUTE FUNCTION fill();
                """
            )
        answer = await sender.call("create_Users", CREATE)
        assert answer["error"].startswith("The change was made, but its answer could not be")
        assert await listener.next_json() == {"zKey": "create_Users", "many": True}
        other_one = {"values": {"name": "Undone", "email": "undone@example.com"}, "_idempotencyKey": "undone"}
        assert (await sender.call("create_Users", other_one))["code"] == "internal"
        for client in (sender, listener):
            assert (await client.call("ping", "next"))["result"] == "next"
        served.forget()
        await served.stands()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_who_listens_hears_of_what_functions_do_after_their_timeout(tmp_path: Path):
    """Of those that are registered to be told, in threads and as coroutines that go on when they are cancelled."""
    served = await Served(tmp_path, {"command_timeout": 0.1}).start()
    goes_on, later = threading.Event(), Deferred[str]()
    functions = served.comm.program.functions

    @functions.register(broadcast=True)
    def in_thread() -> str:
        goes_on.wait(30)
        return "in a thread"

    @functions.register(broadcast=True, thread=False)
    def deferred() -> Deferred[str]:
        # What is cancelled and does not heed it.
        return Deferred(lambda _: None).addErrback(lambda _: later) if not goes_on.is_set() else later

    @functions.register
    def untold() -> str:
        goes_on.wait(30)
        return "not to be told"

    try:
        sender, listener = await served.client(), await served.client(token=served.tokens["admin"])
        for name in ("in_thread", "untold", "deferred"):
            answer = await sender.call("zFunc", f"zFunc({name})")
            assert answer["code"] == "timeout"
        goes_on.set()
        assert (await listener.next_json())["result"] == "in a thread"
        later.callback("of a Deferred")
        assert (await listener.next_json())["result"] == "of a Deferred"
        await served.stands()
    finally:
        goes_on.set()
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_what_was_given_up_is_heard_of_when_it_ends(make_store, url, postgresql):
    """Who was told that a change got no answer in time has the outcome all the same."""
    store = make_store(url)
    await store.start()
    gate, begun = threading.Event(), threading.Event()
    performed = store._execution.perform

    def perform(*args: Any) -> Any:
        with store._pool.connection("eve"):
            begun.set()
            gate.wait(30)
        return performed(*args)

    store._execution.perform = perform  # type: ignore[method-assign]
    created = store.create("eve", "Teams", {"name": "late"})
    failures: list[Any] = []
    created.addErrback(failures.append)
    await wait_until(begun.is_set)
    store._hung = 0.0
    store._look()
    (failure,) = failures
    assert failure.value.code == "unavailable" and not failure.value.retryable
    gate.set()
    done = await failure.value.later
    assert done.changed and done.result["name"] == "late"


@pytest_twisted.ensureDeferred
async def test_a_call_that_is_cancelled_while_it_runs_tells_of_its_end():
    """Its result, or its failure, which nobody has to ask for."""
    workers = Workers(2, name="test-late", reactor=reactor)
    workers.start()
    gate = threading.Event()

    def fail() -> None:
        gate.wait(30)
        raise Fault("busy")

    calls = [workers.run("eve", gate.wait, 30), workers.run("bob", fail)]
    until = time.monotonic() + 30
    while workers.running < 2:
        assert time.monotonic() < until
    later = []
    for call in calls:
        call.cancel()
        with pytest.raises(Abandoned) as abandoned:
            await call
        later.append(abandoned.value.later)
    gate.set()
    assert await later[0] is True
    await wait_until(lambda: not workers.running)
    await workers.stop()
