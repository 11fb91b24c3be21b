"""How coverage measures the process that the tests run in."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import coverage
import greenlet
import pytest_twisted
from twisted.internet.defer import Deferred

__all__ = ["measure_by_greenlet", "not_measured"]


def measure_by_greenlet() -> None:
    """Let coverage tell the tests from the reactor, which pytest-twisted runs in a greenlet of its own.

    Its setting for that asks for the greenlet in every thread. greenlet then keeps something for each thread, and
    drops it in the main one between two instructions; Python 3.11, while it is traced, goes around in circles
    forever when another thread ends in that moment. Only the main thread has greenlets here.
    """
    measuring = coverage.Coverage.current()
    if measuring is not None:
        main, *_ = measuring._collector.tracers
        main.concur_id_func = greenlet.getcurrent
        # It looks the greenlet up at each call and return. What it makes for that on first use is a WeakKeyDictionary,
        # whose lookup is Python; the few greenlets there are live as long as the process, so a dict will do.
        kept, weakref.WeakKeyDictionary = weakref.WeakKeyDictionary, dict
        try:
            (lambda: None)()
        finally:
            weakref.WeakKeyDictionary = kept


def _a_turn_of_the_reactor() -> None:
    """Leave the reactor where no function of zComm is under way: coverage counts calls and returns in pairs."""
    from twisted.internet import reactor

    turned: Deferred[None] = Deferred()
    reactor.callLater(0, turned.callback, None)
    pytest_twisted.blockon(turned)


@contextmanager
def not_measured() -> Iterator[None]:
    """Run without being traced, in this thread and in those that begin meanwhile. A trace makes everything that runs
    half as slow again, also what is not measured."""
    if coverage.Coverage.current() is None:
        yield
        return
    _a_turn_of_the_reactor()
    trace, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        _a_turn_of_the_reactor()
        threading.settrace(of_threads)
        sys.settrace(trace)
