"""The servers that the guide's web clients talk to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.guide_host import HOST, GuideServer
from support.serverprocess import CHECKOUT


def serve(home: Path, **environ: str) -> Iterator[GuideServer]:
    files = home / "files"
    files.mkdir()
    (files / "config.yaml").write_text("answer: 42\n")
    server = GuideServer(HOST / "serve.py", home, FILES=str(files), **environ).listening()
    yield server
    assert server.interrupt() == 0, server.log


@pytest.fixture(scope="module")
def with_auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuideServer]:
    """A host whose clients need a token."""
    yield from serve(tmp_path_factory.mktemp("auth"))


@pytest.fixture(scope="module")
def without_auth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuideServer]:
    """A host in the guide's testing mode."""
    yield from serve(tmp_path_factory.mktemp("noauth"), WEBSOCKET_REQUIRE_AUTH="False")


@pytest.fixture(scope="module")
def node_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the guide's reader has zBifrost.js, and the ws package for Node."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copy(CHECKOUT / "js" / "zBifrost.js", directory)
    shutil.copy(CHECKOUT / "tests" / "guide" / "sleeps.mjs", directory)
    (directory / "package.json").write_text('{"type": "module"}')
    os.symlink(CHECKOUT / "js" / "node_modules", directory / "node_modules")
    return directory
