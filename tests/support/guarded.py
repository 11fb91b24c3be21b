"""Processes of tests that end with the test process, also when that is killed."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from support.resp import PATIENCE

__all__ = ["Guarded"]

#: The end of its input is the end of the test process, which has the other end of the pipe; the kernel's own signal
#: (``PR_SET_PDEATHSIG``) would come when the *thread* ends that started the process. The number is no argument, so that
#: a guard looks like the one before it.
GUARD = 'read -r pid; read -r _; kill -KILL "$pid"'


class Guarded:
    """A process that is killed when this one ends.

    :param more: as for :class:`subprocess.Popen`.
    """

    def __init__(self, words: Sequence[object], *, stdin: Any = subprocess.DEVNULL, **more: Any):
        self._process = subprocess.Popen([str(word) for word in words], stdin=stdin, **more)
        self._guard = subprocess.Popen(["/bin/sh", "-c", GUARD], stdin=subprocess.PIPE)
        assert self._guard.stdin is not None
        self._guard.stdin.write(b"%d\n" % self.pid)
        self._guard.stdin.flush()

    @property
    def stdout(self) -> Any:
        """Its output, if ``more`` asks for a pipe."""
        return self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet; a stopped process is running."""
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended."""
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send it a signal and wait for its end; its status. It is killed when it does not end in time.

        Whoever was stopped is woken, for only SIGKILL reaches a sleeper.
        """
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        # Before its number is free for another process.
        self._dismiss_guard()
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait(PATIENCE)

    def _dismiss_guard(self) -> None:
        self._guard.kill()
        self._guard.wait(PATIENCE)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
