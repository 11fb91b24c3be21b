"""The line in which the requests to a host wait: one at a time, whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred

from zcomm.runtime.workers import Workers

__all__ = ["HostLine", "Runner"]

T = TypeVar("T")


class Runner(Protocol):
    """Runs blocking calls off the reactor's thread."""

    def run(self, owner: Hashable, fn: Callable[..., T], *args: Any) -> Deferred[T]:
        """A Deferred of ``fn(*args)``; see :meth:`zcomm.runtime.workers.Workers.run`."""


class _Turn:
    """The right to call one host, whichever zComm does."""

    def __init__(self, host: Any):
        # Kept, so that its id stands for no other object meanwhile.
        self.host = host
        self.lock = threading.Lock()


#: By the host's ``id()``: a host may be equal to another, or have no hash.
_turns: WeakValueDictionary[int, _Turn] = WeakValueDictionary()


class HostLine:
    """Calls to a host that does not say that it can take several at once: in one thread, each client's in turn.

    Several zComms on one host take turns as well.

    :param host: the host, which is not touched.
    """

    def __init__(self, host: Any, reactor: Any):
        self._turn = _turns.setdefault(id(host), _Turn(host))
        self._workers = Workers(threads=1, name="zcomm-host", reactor=reactor)
        self._started = False

    def start(self) -> None:
        """Let calls run; the thread starts with the first. Calls made earlier have waited."""
        self._started = True
        if self._workers.waiting:
            self._workers.start()

    def stop(self) -> Deferred[None]:
        """Refuse new calls, fail those that wait; fires when the one that runs has ended."""
        self._started = False
        return self._workers.stop()

    def run(self, owner: Hashable, fn: Callable[..., T], *args: Any) -> Deferred[T]:
        """A Deferred of ``fn(*args)``, called when it is its turn; see :meth:`zcomm.runtime.workers.Workers.run`."""
        if self._started:
            self._workers.start()
        return self._workers.run(owner, self._call, fn, *args)

    def _call(self, fn: Callable[..., T], *args: Any) -> T:
        with self._turn.lock:
            return fn(*args)
