"""Commands that meet a database which restarts, dies or stops answering: none hangs, none runs twice."""

from __future__ import annotations

import gc
import signal
from collections import Counter
from contextlib import suppress
from typing import Any

import psutil
import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from zcomm.data.drivers.driver import Fault, to_command_error
from zcomm.data.drivers.reconnector import LAST_DELAY, MAX_WAITING, Reconnector
from zcomm.data.requests import make_plan, parse_command
from zcomm.errors import CommandError, CommandTimeout, TooBusy, Unavailable


class Line:
    """A database that is there or not, as the reconnector asks it."""

    def __init__(self) -> None:
        self.there = False
        self.asked = 0

    def probe(self) -> Deferred[None]:
        self.asked += 1
        return succeed(None) if self.there else fail(Fault("down"))


@pytest.fixture
def line() -> Line:
    """A database that is away."""
    return Line()


@pytest.fixture
def clock() -> Clock:
    """Time that passes when it is told to."""
    return Clock()


@pytest.fixture
def reconnector(line: Line, clock: Clock) -> Reconnector:
    """A reconnector that nothing waits for yet."""
    return Reconnector(line.probe, clock)


def results(waiters: list[Deferred[None]]) -> list[Any]:
    """What each has come to: ``None``, an error's type, or ``...`` while it waits."""
    found: list[Any] = [...] * len(waiters)
    for number, waiter in enumerate(waiters):
        waiter.addBoth(lambda result, number=number: found.__setitem__(number, result and result.type))
    return found


def test_all_wait_together(reconnector, line, clock):
    """Many commands wait on one attempt at a time, and all go on when it succeeds."""
    found = results([reconnector.wait(10) for _ in range(50)])
    assert line.asked == 1
    clock.pump([0.01] * 100)
    assert found == [...] * 50
    assert line.asked < 8
    line.there = True
    clock.pump([0.1] * 10)
    assert found == [None] * 50
    assert not reconnector.is_down
    assert clock.getDelayedCalls() == []


def test_deadline(reconnector, clock):
    """Each waits to its own deadline and no longer; without time left it does not begin."""
    found = results([reconnector.wait(1), reconnector.wait(3), reconnector.wait(0), reconnector.wait(-5)])
    assert found == [..., ..., Unavailable, Unavailable]
    clock.advance(1)
    assert found == [Unavailable, ..., Unavailable, Unavailable]
    clock.pump([0.25] * 8)
    assert found == [Unavailable] * 4
    clock.pump([LAST_DELAY] * 2)
    assert not reconnector.is_down
    assert clock.getDelayedCalls() == []


def test_attempts_slow_down(reconnector, line, clock):
    """Attempts come at growing intervals up to a second, so that a dead server costs nothing."""
    results([reconnector.wait(60)])
    clock.pump([0.05] * 1000)
    assert 50 <= line.asked <= 60


def test_cancel(reconnector, clock):
    """A client that leaves stops waiting."""
    waiter = reconnector.wait(10)
    waiter.cancel()
    assert results([waiter]) == [CancelledError]
    clock.advance(LAST_DELAY)
    assert clock.getDelayedCalls() == []


def test_bound(reconnector):
    """The number that wait has an end."""
    waiters = [reconnector.wait(10) for _ in range(MAX_WAITING)]
    assert results([reconnector.wait(10)]) == [TooBusy]
    assert results(waiters) == [...] * MAX_WAITING
    reconnector.stop()


def test_stop(reconnector, clock):
    """Stopping ends all waiting, now and later."""
    found = results([reconnector.wait(10), reconnector.wait(20)])
    reconnector.stop()
    assert found == [Unavailable, Unavailable]
    assert results([reconnector.wait(10)]) == [Unavailable]
    assert clock.getDelayedCalls() == []
    reconnector.start()
    assert results([reconnector.wait(10)]) == [...]
    reconnector.stop()


@pytest.mark.parametrize(
    ("kind", "action", "code", "retryable"),
    [
        ("down", "create", "unavailable", True),
        ("lost", "read", "unavailable", True),
        ("lost", "create", "unavailable", False),
        ("full", "create", "unavailable", True),
        ("refused", "read", "unavailable", True),
        ("timeout", "read", "timeout", True),
        ("busy", "create", "too_busy", True),
        ("unknown", "read", "internal", False),
        ("invalid", "create", "invalid", False),
        ("not_null", "create", "invalid", False),
        ("unique", "create", "conflict", False),
        ("foreign_key", "create", "conflict", False),
    ],
)
def test_what_clients_hear(schema, kind, action, code, retryable):
    """Every fault has its error, none of them with the database's own words.

    Doing it again is advised only where it cannot do it twice.
    """
    model = schema.models["Teams"]
    request = {"action": action, "model": "Teams", **({"values": {"name": "a"}} if action == "create" else {})}
    error = to_command_error(
        Fault(kind, ("secret_column",), "secret detail"), make_plan(parse_command(request), model, 10)
    )
    assert isinstance(error, CommandError)
    assert (error.code, error.retryable) == (code, retryable)
    assert "secret" not in str(error) + repr(error.fields)


@pytest.mark.parametrize("keyed", [True, False])
def test_b32_a_lost_write_with_a_key_may_be_sent_again(schema, keyed):
    """Nobody knows whether it was made; with an idempotency key it is not made twice."""
    request = {"action": "create", "model": "Teams", "values": {"name": "a"}}
    plan = make_plan(parse_command(request), schema.models["Teams"], 10)
    error = to_command_error(Fault("lost", (), ""), plan, keyed)
    assert (error.code, error.retryable) == ("unavailable", keyed)


async def outcomes(waiting: list[Deferred[Any]]) -> list[Any]:
    """The result or the error of each."""
    return [result if worked else result.value for worked, result in await DeferredList(waiting, consumeErrors=True)]


@pytest_twisted.ensureDeferred
async def test_restart_is_waited_for(own_cluster, make_store):
    """Commands sent while PostgreSQL is away are answered when it is back, each carried out once."""
    store = make_store(own_cluster.url(), deadline=60)
    await store.start()
    await store.create(1, "Teams", {"name": "before"})
    await deferToThread(own_cluster.stop)
    waiting = [store.create(n % 5, "Teams", {"name": f"t{n}"}) for n in range(40)]
    waiting += [store.read(n % 5, "Teams") for n in range(40)]
    await wait_until(lambda: store._reconnector.is_down, "the outage to be noticed")
    assert await store.check() is False
    await deferToThread(own_cluster.start)
    assert [type(result) for result in await outcomes(waiting)] == [dict] * 40 + [list] * 40
    names = Counter(row["name"] for row in await store.read(1, "Teams"))
    assert names == Counter(["before", *(f"t{n}" for n in range(40))])
    assert await store.check() is True


@pytest_twisted.ensureDeferred
async def test_idle_connections_that_died_are_noticed(own_cluster, make_store):
    """After a restart between two commands not even a write fails: a dead connection is not written to."""
    store = make_store(own_cluster.url(), deadline=60)
    await store.start()
    for number in range(20):
        await store.create(number, "Teams", {"name": f"a{number}"})
    await deferToThread(own_cluster.stop, signal.SIGQUIT)
    await deferToThread(own_cluster.start)
    for number in range(20):
        await store.create(number, "Teams", {"name": f"b{number}"})
    assert len(await store.read(1, "Teams")) == 40


@pytest_twisted.ensureDeferred
async def test_away_beyond_the_deadline(own_cluster, make_store):
    """A command whose deadline passes fails as unavailable, to be tried again; the next outage is no different."""
    # Long enough for each to have a thread on a machine that is busy: one that never had would be too_busy.
    store = make_store(own_cluster.url(), deadline=3)
    await store.start()
    await deferToThread(own_cluster.stop)
    errors = await outcomes(
        [store.create(n, "Teams", {"name": f"t{n}"}) for n in range(20)] + [store.read(n, "Teams") for n in range(20)]
    )
    assert {type(error) for error in errors} == {Unavailable}
    assert all(error.retryable for error in errors)
    with pytest.raises(Unavailable):
        await deferToThread(store.handle_request, {"action": "read", "model": "Teams"})
    await deferToThread(own_cluster.start)
    while not await store.check():
        pass
    assert await store.read(1, "Teams") == []


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_killed_in_the_middle(own_cluster, make_store):
    """PostgreSQL dies by kill -9 under a stream of writes.

    Those with a key are made exactly once, those without at most once, and whoever was told that a write was
    made finds it.
    """
    store = make_store(own_cluster.url(), deadline=60)
    await store.start()
    answered: dict[str, Any] = {}

    def keep(result: Any, name: str) -> None:
        answered[name] = getattr(result, "value", result)

    def write(name: str, key: str | None) -> Deferred[Any]:
        return store.create(name, "Messages", {"text": name}, idempotency_key=key).addBoth(keep, name)

    first = [write(f"k{n}", f"key {n}") if n % 2 else write(f"p{n}", None) for n in range(300)]
    await wait_until(lambda: len(answered) > 20, "some answers")
    # A backend that dies like this makes the postmaster end all others and recover.
    max(psutil.Process(own_cluster.pid).children(), key=lambda child: child.pid).kill()
    rest = [write(f"k{n}", f"key {n}") if n % 2 else write(f"p{n}", None) for n in range(300, 600)]
    await DeferredList(first + rest)
    stored = Counter(row["text"] for row in await store.read(1, "Messages"))
    assert max(stored.values()) == 1
    assert [name for name in answered if name.startswith("k") and stored[name] != 1] == []
    for name, result in answered.items():
        if isinstance(result, dict):
            assert stored[name] == 1, name
        else:
            # The outcome is unknown to us, and said to be.
            assert isinstance(result, Unavailable), result
            assert name.startswith("p")
            assert not result.retryable
    again = await outcomes(
        [store.create(n, "Messages", {"text": f"k{n}"}, idempotency_key=f"key {n}") for n in range(1, 600, 2)]
    )
    assert [row["text"] for row in again] == [f"k{n}" for n in range(1, 600, 2)]
    assert len(await store.read(1, "Messages")) == sum(stored.values())


@pytest_twisted.ensureDeferred
async def test_server_that_stops_answering(own_cluster, make_store):
    """A server that is frozen holds no thread for ever: its commands fail, and work goes on when it thaws."""
    store = make_store(own_cluster.url(), statement_timeout=0.3, deadline=1)
    await store.start()
    await store.create(1, "Teams", {"name": "a"})
    server = psutil.Process(own_cluster.pid)
    # It first: it makes no session for a connection that has just begun, as that of the first sweep.
    server.suspend()
    frozen = [server, *server.children(recursive=True)]
    # A session that was just about to end may do so meanwhile.
    for process in frozen:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        errors = await outcomes(
            [store.read(n, "Teams") for n in range(8)] + [store.create(n, "Teams", {"name": f"t{n}"}) for n in range(8)]
        )
        assert {type(error) for error in errors} <= {Unavailable, TooBusy, CommandTimeout}
        store._execution.answered = float("-inf")
        assert await store.check() is False
    finally:
        for process in frozen:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    while not await store.check():
        pass
    names = [row["name"] for row in await store.read(1, "Teams")]
    assert len(names) == len(set(names))
    # psycopg leaves an attempt to connect that timed out to the collector, its socket included.
    gc.collect()
