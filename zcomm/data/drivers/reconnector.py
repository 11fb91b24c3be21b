"""Reconnecting to a database that does not answer, for all commands that wait for it together.

One attempt to connect at a time stands for all of them, so that a database that comes back is not met by
a crowd, and no thread is held by waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.data.drivers.driver import NO_ANSWER, Fault
from zcomm.errors import TooBusy, Unavailable

__all__ = ["Reconnector"]

#: Seconds between attempts to connect: the first, and where doubling ends.
FIRST_DELAY = 0.05
LAST_DELAY = 1.0
MAX_WAITING = 1000


class Reconnector:
    """Tries to connect while the database does not answer, and keeps the commands that wait for it.

    :param probe: tries to connect; a Deferred that fails while that is not possible.
    :param clock: of the waiting.
    """

    _log = Logger()

    def __init__(self, probe: Callable[[], Deferred[Any]], clock: IReactorTime):
        self._probe = probe
        self._clock = clock
        self._waiting: dict[Deferred[None], IDelayedCall] = {}
        self._delay = FIRST_DELAY
        self._next: IDelayedCall | None = None
        self._probing: Deferred[Any] | None = None
        self._stopped = False
        #: Whether the database is known not to answer, so that asking it is in vain.
        self.is_down = False
        #: Why it did not answer last, in words of the driver.
        self.reason = ""

    def wait(self, until: float, reason: str = "") -> Deferred[None]:
        """Wait for the database.

        :param until: on the clock; when it has not come back by then, the Deferred fails.
        :param reason: why it is waited for, in words of the driver, for the log.
        :return: a Deferred that fires when it answers again, or fails with
            :class:`~zcomm.errors.Unavailable`. Cancelling it ends the waiting.
        """
        left = until - self._clock.seconds()
        if left <= 0 or self._stopped:
            return fail(Unavailable(NO_ANSWER))
        if len(self._waiting) >= MAX_WAITING:
            return fail(TooBusy("Busy: too many commands wait for the database"))
        if not self.is_down:
            self.is_down = True
            self._delay = FIRST_DELAY
            self.reason = reason
            self._log.warn(
                "The database does not answer; commands wait for it{why}", why=f" ({reason})" if reason else ""
            )
        waiter: Deferred[None] = Deferred(self._cancel)
        self._waiting[waiter] = self._clock.callLater(left, self._give_up, waiter)
        if self._probing is None and self._next is None:
            self._try()
        return waiter

    def stop(self) -> None:
        """Fail all that waits, and all that will wait until :meth:`start`."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._probing is not None:
            self._probing.cancel()
        for waiter in list(self._waiting):
            self._end(waiter).errback(Unavailable("The server is shutting down"))

    def start(self) -> None:
        """Serve again after :meth:`stop`."""
        self._stopped = False
        self.is_down = False

    def _end(self, waiter: Deferred[None]) -> Deferred[None]:
        timer = self._waiting.pop(waiter)
        if timer.active():
            timer.cancel()
        return waiter

    def _give_up(self, waiter: Deferred[None]) -> None:
        self._end(waiter).errback(Unavailable(NO_ANSWER))

    def _cancel(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._end(waiter).errback(CancelledError())

    def _try(self) -> None:
        self._next = None
        if not self._waiting:
            # Nobody to try for. The next command asks the database itself.
            self.is_down = False
            return
        self._probing = self._probe()
        self._probing.addCallbacks(self._answered, self._silent)

    def _answered(self, _: Any) -> None:
        self._probing = None
        self.is_down = False
        self._log.info("The database answers again")
        for waiter in list(self._waiting):
            self._end(waiter).callback(None)

    def _silent(self, failure: Failure) -> None:
        self._probing = None
        if isinstance(failure.value, Fault):
            self.reason = failure.value.detail
        if self._stopped:
            return
        self._next = self._clock.callLater(self._delay, self._try)
        self._delay = min(LAST_DELAY, self._delay * 2)
