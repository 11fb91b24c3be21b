"""Databases whose tables are watched for live queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postgres import Cluster, cluster_template, make_cluster, postgresql, postgresql_url  # noqa: F401 (fixtures)


@pytest.fixture
def own_cluster(cluster_template: Path) -> Iterator[Cluster]:  # noqa: F811 (fixtures)
    """A PostgreSQL that the test may stop and kill."""
    yield from make_cluster(cluster_template)


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
