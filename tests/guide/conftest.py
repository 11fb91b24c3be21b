"""The zCLI host that the guide's blocks run against."""
from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Iterator

import pytest

from rawclient import BlockingRawClient
from serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ
from waiting import DEADLINE

HOST = CHECKOUT / "tests" / "guide" / "host"


def host_environ(home: Path, **more: str) -> dict[str, str]:
    """An environment in which zCLI is the small one of this directory."""
    return clean_environ(home, {"PYTHONPATH": f"{HOST}{os.pathsep}{CHECKOUT}", **more})


class GuideServer(RunningServer):
    """A Python program of the guide that serves. It ends by Ctrl-C, as the reader ends it."""

    def __init__(self, program: Path, home: Path, **environ: str):
        super().__init__([sys.executable, str(program)], home, host_environ(home, **environ))

    def listening(self) -> GuideServer:
        """Wait until it listens."""
        try:
            match = self.wait_for_log(LISTENING)
        except BaseException:
            self.kill()
            raise
        self.url, self.port = match[1], int(match[2])
        return self

    def client(self) -> BlockingRawClient:
        """A connected client: the operator, or anybody where there is no authentication."""
        credentials = self.home / ".zolo" / "credentials"
        return BlockingRawClient(self.port, token=self.token if credentials.exists() else None)

    def interrupt(self) -> int:
        """Ctrl-C, then wait; returns the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGINT)
        self.process.wait(DEADLINE)
        return self._end()


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
    """Where the guide's reader has zBifrost.js, and the ws package for Node."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copy(CHECKOUT / "js" / "zBifrost.js", directory)
    shutil.copy(CHECKOUT / "tests" / "guide" / "sleeps.mjs", directory)
    (directory / "package.json").write_text('{"type": "module"}')
    os.symlink(CHECKOUT / "js" / "node_modules", directory / "node_modules")
    return directory
