"""How coverage measures the process that the tests run in."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import coverage
import pytest_twisted
from twisted.internet.defer import Deferred

import zcomm

__all__ = ["import_what_is_measured", "not_measured", "return_in_a_turn_of_its_own"]


def return_in_a_turn_of_its_own() -> None:
    """Let pytest-twisted go on with a test when no function of zComm is under way.

    The reactor has a greenlet of its own there, and coverage counts calls and returns in pairs: it would take the
    return of one for that of the other. Among functions that it does not measure that does no harm. Its setting for
    greenlets, which would ask for the greenlet at each call and return, is slower, and hangs Python 3.11: greenlet
    keeps something for each thread and drops it in the main one between two instructions, and a trace then goes
    around in circles forever when another thread ends in that moment.
    """
    block = pytest_twisted.blockon_default

    @functools.wraps(block)
    def blockon(waited: Deferred[Any]) -> Any:
        from twisted.internet import reactor

        turned: Deferred[Any] = Deferred()
        waited.addBoth(lambda result: reactor.callLater(0, turned.callback, result) and None)
        return block(turned)

    pytest_twisted.blockon_default = blockon


def import_what_is_measured() -> None:
    """Import all of zComm, so that the lines which only an import runs count whoever is first to need them."""
    if coverage.Coverage.current() is not None:
        for module in pkgutil.walk_packages(zcomm.__path__, "zcomm."):
            importlib.import_module(module.name)


@contextmanager
def not_measured() -> Iterator[None]:
    """Run without being traced, in this thread and in those that begin meanwhile, the reactor's among them. A trace
    makes everything that runs half as slow again, also what is not measured."""
    if coverage.Coverage.current() is None:
        yield
        return
    trace, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    begin_threads_anew()
    try:
        yield
    finally:
        threading.settrace(of_threads)
        sys.settrace(trace)
        begin_threads_anew()


def begin_threads_anew() -> None:
    """End the threads of the reactor that wait for work: whether one is traced is decided when it begins."""
    from twisted.internet import reactor

    pool = reactor.getThreadPool()
    least, most = pool.min, pool.max
    pool.adjustPoolsize(0, 0)
    pool.adjustPoolsize(least, most)
