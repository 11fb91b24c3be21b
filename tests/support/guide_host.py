"""Programs in the small zCLI host of ``tests/guide/host``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ
from support.waiting import DEADLINE

__all__ = ["HOST", "GuideServer", "host_environ"]

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
        credentials = self.home / ".zolo" / "zcomm" / "operator.json"
        return BlockingRawClient(self.port, token=self.token if credentials.exists() else None)

    def interrupt(self) -> int:
        """Ctrl-C, then wait; returns the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGINT)
        self.process.wait(DEADLINE)
        return self._end()
