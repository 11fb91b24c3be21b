"""Which server reads a snapshot of Redis."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcomm.services.kinds.redis.programs import choose_redis, reads_rdb
from zcomm.services.kinds.redis.rdb import RdbHeader
from zcomm.services.machine.installations import Installation


def installation(flavour: str, *version: int, source: str = "PATH", tree: tuple[Path, ...] = ()) -> Installation:
    return Installation(flavour, version, Path(f"/opt/{flavour}-{version[0]}/bin/server"), source, tree)


@pytest.mark.parametrize(
    "header,chosen",
    [
        (None, 0),
        (RdbHeader("REDIS", 9), 0),
        (RdbHeader("REDIS", 10), 0),
        (RdbHeader("REDIS", 11), 1),
        (RdbHeader("VALKEY", 80), 1),
        (RdbHeader("REDIS", 12), None),
    ],
)
def test_the_snapshot_chooses_the_server(header, chosen):
    """Redis for what it reads, Valkey for what only it reads, none for what neither reads."""
    found = [installation("redis", 7, 0, 15), installation("valkey", 9, 1, 2)]
    assert choose_redis(found, header) == (found[chosen] if chosen is not None else None)


def test_a_server_newer_than_the_table_reads_everything():
    """What is not known to fail is tried."""
    assert reads_rdb(installation("redis", 11, 0), RdbHeader("REDIS", 40))
    assert not reads_rdb(installation("redis", 11, 0), RdbHeader("VALKEY", 80))
    assert not reads_rdb(installation("keydb", 6, 3), RdbHeader("REDIS", 10))
