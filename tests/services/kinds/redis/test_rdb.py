"""Snapshots of Redis and Valkey, and who reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from zcomm.errors import DataDirectoryError
from zcomm.services.kinds.redis.programs import redis_for
from zcomm.services.kinds.redis.rdb import RdbHeader, parse_rdb_header, read_rdb_headers
from zcomm.services.machine.installations import Installation


@pytest.mark.parametrize(
    "start,expected",
    [
        (b"REDIS0010\xfa\x09", RdbHeader("REDIS", 10)),
        (b"REDIS0011\xfa", RdbHeader("REDIS", 11)),
        (b"VALKEY080\xfa", RdbHeader("VALKEY", 80)),
        (b"VALKEY0805", RdbHeader("VALKEY", 80)),
        (b"", None),
        (b"REDIS", None),
        (b"redis0010", None),
        (b"\0" * 10, None),
        (b"PGDMP", None),
    ],
)
def test_a_snapshot_is_known_by_its_first_bytes(start, expected):
    """Magic word and version, or nothing."""
    assert parse_rdb_header(start) == expected


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"REDIS", b"not a snapshot"])
@pytest.mark.parametrize("name", ["dump.rdb", "appendonlydir/appendonly.aof.1.base.rdb"])
def test_a_broken_snapshot_is_found_before_redis_loops_over_it(tmp_path: Path, name, content):
    """The error names the file and moves it aside; nothing is changed."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataDirectoryError, match="is empty or no snapshot") as caught:
        read_rdb_headers("redis", tmp_path)
    assert caught.value.fix == f"move it aside: mv {path} {path}.aside"
    assert path.read_bytes() == content


def test_a_snapshot_that_cannot_be_read_is_an_error(tmp_path: Path):
    """A directory of that name, for example."""
    (tmp_path / "dump.rdb").mkdir()
    with pytest.raises(DataDirectoryError, match="dump.rdb: cannot be read"):
        read_rdb_headers("redis", tmp_path)


def test_no_snapshot_is_no_problem(tmp_path: Path):
    """A new directory has nothing to read."""
    assert read_rdb_headers("redis", tmp_path) == []


def test_the_newest_snapshot_chooses_the_server():
    """One file of Valkey 9 among older ones rules Redis out."""
    redis = Installation("redis", (7, 0, 15), Path("/x/redis-server"), "PATH")
    valkey = Installation("valkey", (9, 1, 2), Path("/x/valkey-server"), "PATH")
    both = [RdbHeader("REDIS", 10, "/d/dump.rdb"), RdbHeader("VALKEY", 80, "/d/base.rdb")]
    assert redis_for([redis, valkey], both) is valkey
    with pytest.raises(DataDirectoryError, match="/d/base.rdb: has the format VALKEY 80, here is only redis 7.0.15"):
        redis_for([redis], both)
    assert redis_for([redis], []) is redis
