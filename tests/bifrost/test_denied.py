"""A command that is denied leaves a line in the log: who, from where, what, and nothing that may be a secret."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from support.served import Served
from twisted.logger import LogLevel, formatEvent


@pytest_twisted.async_yield_fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Served]:
    """A server with a policy that lets guests read users, and nothing else."""
    server = await Served(tmp_path, policy=True).start()
    yield server
    await server.stop()


@pytest.mark.parametrize(
    ("key", "horizontal", "named"),
    [
        ("create_Users", {"values": {"name": "hunter2"}}, "create_Users"),
        ("zFunc", 'zFunc(echo, "hunter2")', "zFunc(echo)"),
        ('zFunc(echo, "hunter2")', None, "zFunc(echo)"),
        ("zFunc", {"name": "echo", "args": ["hunter2"]}, "zFunc(echo)"),
        ("zOpen", {"name": "config.yaml"}, "zOpen(config.yaml)"),
        ("zLink", "zLink(/admin/users)", "zLink(/admin/users)"),
        ("zOpen", "zOpen(config.yaml)", "zOpen(config.yaml)"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_line(guarded: Served, key: str, horizontal: object, named: str):
    """It names the user and the command, once a second at most."""
    client = await guarded.client(token=guarded.tokens["guest"])
    for _ in range(3):
        assert (await client.call(key, horizontal))["code"] in ("permission_denied", "not_found")
    lines = [formatEvent(event) for event in guarded.log if event["log_level"] is LogLevel.warn]
    assert len(lines) == 1 and lines[0].startswith(f"'guest-user' (guest) at 127.0.0.1 may not '{named}'"), lines
    assert "hunter2" not in guarded.log_text
    await client.leave()
