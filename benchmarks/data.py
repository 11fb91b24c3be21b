"""Single-row reads and creates: zComm's store beside plain SQLAlchemy in the same process.

    python benchmarks/data.py [--seconds 2] [--rounds 5] [--threads 10] [--database URL …]

The baseline is what a careful program would write by hand: SQLAlchemy Core with its pool and its statement
cache, in a loop in each of ``threads`` threads, with no event loop in between. zComm's store gets the same
number of threads and is asked from the reactor, with checked values, filters parsed anew each time, and
rows made ready for JSON. Rounds alternate, and medians are printed.

Without ``--database`` a SQLite file and a PostgreSQL cluster are made for the occasion.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]

from support.postgres import make_cluster  # noqa: E402 (after the path)

from zcomm.budget.budgets import Budgets  # noqa: E402 (after the path)
from zcomm.config import Limits  # noqa: E402 (after the path)
from zcomm.data.schema import demo_schema  # noqa: E402 (after the path)
from zcomm.data.sql.tables import build_tables  # noqa: E402 (after the path)
from zcomm.data.store import Store  # noqa: E402 (after the path)
from zcomm.runtime.workers import Workers  # noqa: E402 (after the path)

ROWS = 1000
IN_FLIGHT = 64
OWNERS = 8
NUMBERS = count(1)


def direct(url: str, threads: int) -> tuple[Callable[[str, float], float], Callable[[], None]]:
    """The baseline: ``measure(action, seconds)`` gives queries per second."""
    made = sa.make_url(url)
    if made.get_backend_name() == "postgresql":
        engine = sa.create_engine(made.set(drivername="postgresql+psycopg"), pool_size=threads)
    else:
        engine = sa.create_engine(made, pool_size=threads)

        @sa.event.listens_for(engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                connection.execute(f"PRAGMA {pragma}")

    table = build_tables(demo_schema())[1]["Users"]

    def read(number: int) -> dict[str, Any]:
        with engine.connect() as connection:
            query = sa.select(table).where(table.c.id == number % ROWS + 1)
            return dict(connection.execute(query).mappings().one())

    def create(number: int) -> dict[str, Any]:
        with engine.begin() as connection:
            values = {
                "name": "Alice",
                "email": f"direct{number}@example.com",
                "active": True,
                "inactive": False,
                "role": "user",
                "verified": False,
                "created_at": datetime.now(UTC),
            }
            return dict(connection.execute(table.insert().values(values).returning(table)).mappings().one())

    def measure(action: str, seconds: float) -> float:
        query = {"read": read, "create": create}[action]
        done = [0] * threads
        until = time.perf_counter() + seconds

        def loop(place: int) -> None:
            while time.perf_counter() < until:
                query(next(NUMBERS))
                done[place] += 1

        begun = time.perf_counter()
        pool = [threading.Thread(target=loop, args=(place,)) for place in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        return sum(done) / (time.perf_counter() - begun)

    return measure, engine.dispose


@inlineCallbacks
def through_store(store: Store, action: str, seconds: float) -> Any:
    """zComm's rate; a Deferred of queries per second."""
    done = [0]
    begun = time.perf_counter()
    until = begun + seconds

    def ask(owner: int) -> Deferred[Any]:
        number = next(NUMBERS)
        if action == "read":
            return store.read(owner, "Users", {"id": number % ROWS + 1})
        return store.create(owner, "Users", {"name": "Alice", "email": f"store{number}@example.com"})

    @inlineCallbacks
    def loop(owner: int) -> Any:
        while time.perf_counter() < until:
            yield ask(owner)
            done[0] += 1

    yield gatherResults([loop(place % OWNERS) for place in range(IN_FLIGHT)])
    return done[0] / (time.perf_counter() - begun)


@inlineCallbacks
def compare(url: str, options: argparse.Namespace) -> Any:
    """Measure one database and print its rows of the table."""
    workers = Workers(options.threads, reactor=reactor)
    workers.start()
    store = Store(url, demo_schema(), workers, budgets=Budgets.on(reactor, Limits()))
    yield store.start()
    for _ in range(ROWS):
        yield store.create(0, "Users", {"name": "Alice", "email": f"row{next(NUMBERS)}@example.com"})
    measure, dispose = direct(url, options.threads)
    for action in ("read", "create"):
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(options.rounds):
            theirs.append(measure(action, options.seconds))
            ours.append((yield through_store(store, action, options.seconds)))
        plain, own = statistics.median(theirs), statistics.median(ours)
        name = sa.make_url(url).get_backend_name()
        print(f"{name:<12} {action:<8} {plain:>12,.0f} {own:>12,.0f} {own / plain:>8.2f}", flush=True)
    dispose()
    yield store.stop()
    yield workers.stop()


@inlineCallbacks
def run(options: argparse.Namespace) -> Any:
    """Measure every database."""
    print(f"{'database':<12} {'action':<8} {'SQLAlchemy/s':>12} {'zComm/s':>12} {'ratio':>8}")
    if options.database:
        for url in options.database:
            yield compare(url, options)
        return
    with tempfile.TemporaryDirectory(prefix="zcomm-bench") as directory:
        yield compare(f"sqlite:///{directory}/bench.sqlite3", options)
    for cluster in make_cluster():
        yield compare(cluster.url(cluster.new_database()), options)


def main() -> None:
    """Parse the options and run the reactor until done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    parser.add_argument("--threads", type=int, default=10)
    parser.add_argument("--database", action="append", help="an empty one, as SQLAlchemy URL; repeatable")
    options = parser.parse_args()
    failed: list[Any] = []

    def begin() -> None:
        run(options).addErrback(failed.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if failed:
        failed[0].printTraceback()
        sys.exit(1)


if __name__ == "__main__":
    main()
