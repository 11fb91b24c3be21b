"""Live queries against reads: random models, rights, queries and writes by zComm and by other programs, restarts and
slow clients; whenever it is quiet, each client has what a read answers it.

By hand, for as long as one likes: ``ZCOMM_TEST_SECONDS=3600 ZCOMM_TEST_SEED=7 ./test tests/live/test_differential.py``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.differ.databases import Database, Memory, Postgres, Shared, Sqlite
from live.differ.run import World
from support.postgres import Cluster, cluster_template, make_cluster  # noqa: F401 (fixtures)

SECONDS = float(os.environ.get("ZCOMM_TEST_SECONDS", "15"))
SEED = int(os.environ.get("ZCOMM_TEST_SEED", "1"))
#: Steps of one world.
STEPS = 40

pytestmark = [pytest.mark.unmeasured, pytest.mark.child, pytest.mark.timeout(SECONDS + 280)]


@pytest.fixture
def cluster(cluster_template: Path) -> Iterator[Cluster]:  # noqa: F811 (fixtures)
    """A PostgreSQL that is started again now and then."""
    yield from make_cluster(cluster_template)


@pytest.fixture(params=["sqlite", "processes", "memory", "postgresql", "columns", "icu"])
def database(request: pytest.FixtureRequest) -> Database:
    """A database of each kind: SQLite's with one server and with two, those of PostgreSQL with zComm's own tables, with
    others, and with the order of ICU."""
    if request.param == "sqlite":
        return Sqlite()
    if request.param == "processes":
        return Shared()
    if request.param == "memory":
        return Memory()
    cluster: Cluster = request.getfixturevalue("cluster")
    return Postgres(cluster, request.param != "postgresql", "en-US" if request.param == "icu" else "")


def test_clients_have_what_a_read_answers(database: Database):
    """Byte for byte and in order, with equal digests for equal rows."""
    end = time.monotonic() + SECONDS
    counts: Counter[str] = Counter()
    seed = SEED
    while time.monotonic() < end:
        with World(seed, database, counts) as world:
            for _ in range(STEPS):
                world.run_step()
                if time.monotonic() > end:
                    break
        seed += 1
    print(f"{seed - SEED} worlds:", *(f"{name} {count};" for name, count in sorted(counts.items())))
    assert counts["compared"]
