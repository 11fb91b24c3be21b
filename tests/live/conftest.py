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
