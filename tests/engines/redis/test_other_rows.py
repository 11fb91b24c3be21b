"""Whether the rows are the same that the nodes on one engine tell of."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from support.nodes import Node
from support.postgres import Cluster, cluster_template, postgresql  # noqa: F401 (fixtures)
from support.redisserver import RedisServer
from support.serverprocess import RunningServer, clean_environ, twistd_command
from support.waiting import DEADLINE, wait_until
from twisted.logger import LogEvent, capturedLogs, formatEvent

from zcomm.errors import ConfigError


def said_of(events: list[LogEvent]) -> list[str]:
    """What the log was told of other rows."""
    return [formatEvent(event) for event in events if "has other rows" in (event.get("log_format") or "")]


@pytest_twisted.ensureDeferred
async def test_two_databases_do_not_share_a_prefix(redis: RedisServer, prefix: str):
    """Who comes later is refused while one is there that has its rows elsewhere; what a crash has left is nobody."""
    url = f"{redis.unix_url}?prefix={prefix}"
    first, second, third = [await Node(url).start() for _ in range(3)]
    await first.engine.join("postgresql:1:1", "one (pid 1)")
    with pytest.raises(ConfigError, match=r"^--engine: one \(pid 1\) is on the same engine .*\?prefix=NAME"):
        await second.engine.join("postgresql:2:1", "two (pid 2)")
    # It has said nothing of it: others of the first one's database start.
    await third.engine.join("postgresql:1:1", "three (pid 3)")
    for node in (first, third):
        await node.engine.stopService()
    # Of a crash.
    left = {"count": 5, "clients": 0, "database": "postgresql:1:1", "name": "gone (pid 4)"}
    redis.call("HSET", f"{prefix}:{{0}}:nodes", "0123456789", json.dumps(left))
    await second.engine.join("postgresql:2:1", "two (pid 2)")
    said = json.loads(redis.call("HGET", f"{prefix}:{{0}}:nodes", second.engine.node))
    assert (said["database"], said["name"]) == ("postgresql:2:1", "two (pid 2)")
    await second.engine.stopService()


@pytest_twisted.ensureDeferred
async def test_files_of_two_hosts_on_one_prefix_are_told_of(redis: RedisServer, prefix: str):
    """Topics across hosts are as meant; that the rows differ is said once, by each."""
    url = f"{redis.unix_url}?prefix={prefix}"
    first, second, third = [await Node(url).start() for _ in range(3)]
    with capturedLogs() as events:
        await first.engine.join("sqlite:1", "one (pid 1)")
        await second.engine.join("sqlite:2", "two (pid 2)")
        await third.engine.join("sqlite:2", "three (pid 3)")
        await wait_until(lambda: len(said_of(events)) >= 3, "the warnings")
    assert all("a SQLite file is of one host" in line for line in said_of(events))
    assert len(said_of(events)) == 3
    for node in (first, second, third):
        await node.engine.stopService()


@pytest.mark.child
@pytest.mark.parametrize("more", [(), ("--workers", "1")], ids=["alone", "workers"])
def test_a_server_with_another_database_does_not_start(
    postgresql: Cluster,  # noqa: F811 (a fixture)
    redis: RedisServer,
    prefix: str,
    running_server: Callable[..., RunningServer],
    tmp_path: Path,
    more: tuple[str, ...],
):
    """One line that names the first and what to write, and status 1; the first one goes on."""
    engine = ("--engine", f"{redis.unix_url}?prefix={prefix}", "--port", "0")
    one, other = [postgresql.url(postgresql.new_database()) for _ in range(2)]
    first = running_server(*engine, "--database", one)
    done = subprocess.run(
        [*twistd_command(*engine, "--database", other, *more), "--data-dir", str(tmp_path / "other")],
        env=clean_environ(tmp_path / "other"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in output, output
    assert [line for line in output.splitlines() if "zcomm: --engine: " in line and "?prefix=NAME" in line], output
    assert "in another database" in output and "(pid " in output, output
    # One of the same database is welcome.
    running_server(*engine, "--database", one, home=tmp_path / "third").stop()
    assert first.stop() == 0
