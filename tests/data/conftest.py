"""Stores on real databases: SQLite in a file and a PostgreSQL cluster of the run's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.postgres import Cluster, cluster_template, make_cluster, postgresql, postgresql_url  # noqa: F401 (fixtures)
from twisted.internet import reactor

from zcomm.budget.budgets import Budgets
from zcomm.config import Limits
from zcomm.data.schema import Schema, demo_schema, load_schema
from zcomm.data.store import Store
from zcomm.runtime.workers import Workers

EVERY_TYPE = """
Things:
  id:  {type: int, pk: true}
  s:   str
  i:   int
  f:   float
  d:   decimal
  b:   bool
  da:  date
  dt:  datetime
  ti:  time
  u:   uuid
  j:   json
  by:  bytes

Teams:
  id:   {type: int, pk: true}
  name: {type: str, required: true, unique: true}

Members:
  id:     {type: uuid, pk: true, default: uuid}
  team:   {type: int, fk: Teams.id}
  second: {type: int, fk: Teams.id, on_delete: set null}
  note:   {type: str, index: true}
  secret: {type: str, hidden: true, default: classified}
  score:  {type: int, readonly: true, default: 0}

Seats:
  row:    {type: str, pk: true}
  number: {type: int, pk: true}
  taken:  {type: bool, default: false}
"""


@pytest.fixture(scope="session")
def schema() -> Schema:
    """The demo models, one with a field of every type, and some that point to each other."""
    return demo_schema().merge(load_schema(EVERY_TYPE))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/test.sqlite3"
        return
    cluster: Cluster = request.getfixturevalue("postgresql")
    name = cluster.new_database()
    yield cluster.url(name)
    cluster.drop_database(name)


@pytest.fixture
def make_store(schema: Schema) -> Iterator[Callable[..., Store]]:
    """``make_store(url, **settings)``: a store that is not started, stopped with its threads at the end."""
    made: list[tuple[Store, Workers]] = []

    def build(url: str, schema: Schema = schema, threads: int = 4, **settings: Any) -> Store:
        workers = Workers(threads, name="test-data", reactor=reactor)
        settings.setdefault("budgets", Budgets.on(reactor, Limits()))
        store = Store(url, schema, workers, **settings)
        workers.start()
        made.append((store, workers))
        return store

    yield build
    for store, workers in made:
        pytest_twisted.blockon(store.stop())
        pytest_twisted.blockon(workers.stop())


@pytest.fixture
def store(postgresql: Cluster, url: str, make_store: Callable[..., Store]) -> Store:  # noqa: F811 (fixtures)
    """A started store on an empty database of either kind."""
    made = make_store(url)
    pytest_twisted.blockon(made.start())
    return made


@pytest.fixture
def stores(postgresql: Cluster, tmp_path: Path, make_store: Callable[..., Store]) -> Iterator[list[Store]]:  # noqa: F811 (fixtures)
    """A started store on an empty database of each kind, for tests whose making up of inputs takes the time."""
    name = postgresql.new_database()
    made = [make_store(f"sqlite:///{tmp_path}/test.sqlite3"), make_store(postgresql.url(name))]
    for one in made:
        pytest_twisted.blockon(one.start())
    yield made
    pytest_twisted.blockon(made[1].stop())
    postgresql.drop_database(name)


@pytest.fixture
def own_cluster(cluster_template: Path) -> Iterator[Cluster]:  # noqa: F811 (fixtures)
    """A PostgreSQL that the test may stop and kill."""
    yield from make_cluster(cluster_template)
