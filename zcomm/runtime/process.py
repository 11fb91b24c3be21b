"""Insides of this process that nobody else tells of: the log files twistd has open, and an exit status of our own."""

from __future__ import annotations

import atexit
import gc
import os
import sys

from twisted.python.logfile import BaseLogFile

__all__ = ["exit_failed", "open_log_files"]


def open_log_files() -> list[BaseLogFile]:
    """The files that Twisted logs to. Asked for once, at the start: it looks at every object there is."""
    return [thing for thing in gc.get_objects() if isinstance(thing, BaseLogFile)]


def exit_failed() -> None:
    """Exit with status 1, after all that is to be done at exit; register it with :mod:`atexit`.

    twistd itself knows no failure after the reactor has started.
    """
    atexit.unregister(exit_failed)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
