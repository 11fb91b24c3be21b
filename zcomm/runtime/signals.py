"""The signals of the daemon: reload, reopen the log, stop, stop at once (docs/operations.rst, "Signals")."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from zcomm.runtime.process import open_log_files, reopen_log_file

__all__ = ["Signals"]


def _terminal_error() -> int | None:
    """Why the controlling terminal cannot be opened, as an ``errno``; ``None`` where it can."""
    try:
        # Not waiting for a carrier.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno
    return None


class Signals:
    """The signals of one process. What comes before its reactor runs is done as soon as that does.

    :param reactor: the reactor.
    :param reload: called, on the reactor, for SIGHUP. Where the process began on a terminal, and not under nohup, and
        that terminal is gone, SIGHUP stops it instead.
    """

    _log = Logger()

    def __init__(self, reactor: Any, reload: Callable[[], None]):
        self._reactor = reactor
        self._reload = reload
        self._interrupted = False
        # nohup has the signal ignored: that one is to outlive its terminal.
        self._ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _terminal_error() is None
        self._files = open_log_files()

    def install(self) -> None:
        """Take the signals; those that the reactor takes as well, after it has."""
        # Either would end a process that is still starting.
        signal.signal(signal.SIGHUP, self._later(self._hang_up))
        signal.signal(signal.SIGUSR1, self._later(self._reopen))
        self._reactor.callWhenRunning(self._install)

    def _install(self) -> None:
        # Twisted's own would let the process end as if the signal had killed it; an orderly stop is a success.
        signal.signal(signal.SIGTERM, self._later(self._stop))
        signal.signal(signal.SIGINT, self._interrupt)
        self._reactor.addSystemEventTrigger("after", "shutdown", self._ended)

    @staticmethod
    def _ended() -> None:
        # While it clears up Python has them do what they do by default: one that comes late would make a failure of it.
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            # Whoever asks twice does not want to wait. Services notice by themselves that we are gone.
            os._exit(128 + number)
        self._interrupted = True
        self._reactor.callFromThread(self._stop)

    def _stop(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            # It is stopping already.
            pass

    def _later(self, act: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
        return lambda number, frame: self._reactor.callFromThread(act)

    def _hang_up(self) -> None:
        # Only these say that there is no terminal any more; running out of descriptors does not.
        if self._ends_with_terminal and _terminal_error() in (errno.ENXIO, errno.EIO):
            self._log.info("the terminal is gone")
            self._stop()
            return
        try:
            self._reload()
        except Exception:
            self._log.failure("the reload failed; what was read before still holds")

    def _reopen(self) -> None:
        failed = False
        for file in self._files:
            if not file.closed:
                try:
                    reopen_log_file(file)
                except OSError as error:
                    failed = True
                    self._log.error(
                        "{path} cannot be opened anew, the log goes on where it was: {reason}",
                        path=file.path,
                        reason=error.strerror,
                    )
        if not failed:
            self._log.info("the log was opened anew")
