"""The guardian beside a server: see :mod:`zcomm.services.scripts.guardian`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from zcomm.services.declaration import StopStep

__all__ = ["Guardian"]


class Guardian(ProcessProtocol):
    """A small process that outlives zComm just long enough to end one server in good order."""

    transport: Any

    def __init__(self) -> None:
        self.gone = False

    @classmethod
    def beside(cls, reactor: Any, pid: int, ladder: Sequence[StopStep]) -> Guardian:
        """Start one for the process ``pid``."""
        script = str(Path(__file__).parents[1] / "scripts" / "guardian.py")
        steps = [f"{int(step.signal)}:{step.seconds:g}" for step in ladder]
        words = [sys.executable, "-I", "-S", script, str(pid), *steps]
        guardian = cls()
        # Its standard input is the pipe that only we hold open; it says nothing.
        reactor.spawnProcess(guardian, words[0], words, env={"PATH": "/usr/bin:/bin"}, childFDs={0: "w", 1: "r", 2: 2})
        return guardian

    def dismiss(self) -> None:
        """It is not needed any more; the server has ended, or is to live on without us."""
        if not self.gone:
            self.transport.signalProcess("KILL")

    def processEnded(self, reason: Failure) -> None:
        self.gone = True
