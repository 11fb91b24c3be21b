"""Running a short-lived program to its end, or ending it in good order."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from zcomm.services.machine.query import NoAnswer, within

__all__ = ["run_command"]

#: Seconds between asking a program to end and ending it.
GRACE = 3.0
_MOST_BYTES = 65536


class _Command(ProcessProtocol):
    """Collects the end of what a program says."""

    transport: Any

    def __init__(self, given: bytes) -> None:
        self._given = given
        self._output = b""
        self._pid = 0
        self.over = False
        self.done: Deferred[tuple[int | None, str]] = Deferred()
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self._pid = self.transport.pid or 0
        if self._given:
            self.transport.write(self._given)
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._output = (self._output + data)[-_MOST_BYTES:]

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.over = True
        if not self.done.called:
            output = self._output.decode("utf-8", "replace")
            self.done.callback((getattr(reason.value, "exitCode", None), output))
        self.ended.callback(None)

    def signal(self, number: int) -> None:
        """Signal it and, where it leads a group of its own, the programs it runs."""
        if self.over or not self._pid:
            return
        try:
            leads = os.getpgid(self._pid) == self._pid
        except ProcessLookupError:
            # It has ended, but something it ran still holds our pipe; that keeps the number of the group.
            leads = True
        with suppress(ProcessLookupError, PermissionError):
            if leads:
                os.killpg(self._pid, number)
            else:
                os.kill(self._pid, number)

    def end(self) -> None:
        """End it for good, and wait no more for whoever else holds its pipes."""
        self.signal(signal.SIGKILL)
        if not self.over:
            self.transport.loseConnection()


def run_command(
    reactor: Any, argv: Sequence[str], environment: Mapping[str, str], timeout: float, given: str = ""
) -> Deferred[tuple[int | None, str]]:
    """Run a program to its end.

    :param given: what it reads on its standard input.
    :return: fires with its exit status (``None`` for a signal) and the end of what it wrote. When the time
        is up, or the Deferred is cancelled, it is ended first; then the Deferred fails with
        :class:`~zcomm.services.machine.query.NoAnswer` or ``CancelledError``.
    """
    return Deferred.fromCoroutine(_run(reactor, argv, environment, timeout, given))


async def _run(
    reactor: Any, argv: Sequence[str], environment: Mapping[str, str], timeout: float, given: str
) -> tuple[int | None, str]:
    command = _Command(given.encode())
    reactor.spawnProcess(command, argv[0], list(argv), env=dict(environment))
    try:
        outcome: tuple[int | None, str] = await within(reactor, timeout, command.done)
        return outcome
    except (CancelledError, NoAnswer):
        command.signal(signal.SIGTERM)
        harder = reactor.callLater(GRACE, command.end)
        await command.ended
        if harder.active():
            harder.cancel()
        raise
