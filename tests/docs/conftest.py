"""The server that the documentation's examples talk to: the documentation's own program, docs/examples/server.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import place
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ

__all__ = ["place"]

#: Shown in docs/quickstart.rst; what the fixtures below start.
EXAMPLES = ("examples/server.py", "examples/schema.yaml", "examples/shop.py")


def start_example(home: Path) -> RunningServer:
    """docs/examples/server.py with an empty home, listening on a free port."""
    server = RunningServer(
        [sys.executable, str(CHECKOUT / "docs" / EXAMPLES[0])],
        home,
        clean_environ(home, {"WEBSOCKET_PORT": "0"}, measured=True),
    )
    try:
        match = server.wait_for_log(LISTENING)
    except BaseException:
        server.kill()
        raise
    server.url, server.port = match[1], int(match[2])
    return server


@pytest.fixture(scope="module")
def example_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One for all tests of a module; it must end in order."""
    server = start_example(tmp_path_factory.mktemp("example"))
    yield server
    assert server.stop() == 0, server.log
