"""Liveness: asking a running server again and again whether it still answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from zcomm.services.machine.query import NoAnswer
from zcomm.services.supervision.probes import Reply

__all__ = ["Watch"]


class Watch:
    """A liveness watch: from :meth:`start` until :meth:`stop` or the verdict that the server hangs.

    A single missed answer means a busy machine; ``misses`` in a row mean a hang. Then a last question is asked, since a
    process that was only suspended, and is told to continue, needs no restart.

    :param every: seconds between two questions.
    :param ask: asks once; fails with :class:`~zcomm.services.machine.query.NoAnswer`.
    :param report: called after each question with the answer, or ``None``, and how many were missed in a row. More
        than ``misses`` of them are the verdict, and the last report.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        every: float,
        misses: int,
        ask: Callable[[], Deferred[Reply]],
        report: Callable[[Reply | None, int], None],
    ):
        self._reactor = reactor
        self._every = every
        self._misses = misses
        self._ask = ask
        self._report = report
        self._run: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to ask, the first time one interval from now."""
        self._run = Deferred.fromCoroutine(self._watch())
        self._run.addErrback(lambda failure: failure.trap(CancelledError))
        self._run.addErrback(lambda failure: self.log.failure("a liveness watch ended", failure))

    def stop(self) -> None:
        """Ask no more."""
        if self._run is not None:
            run, self._run = self._run, None
            run.cancel()

    async def _watch(self) -> None:
        missed = 0
        while missed <= self._misses:
            # The last question follows the one before it at once: the process has just been told to continue.
            if missed < self._misses:
                await deferLater(self._reactor, self._every)
            try:
                reply: Reply | None = await self._ask()
                missed = 0
            except NoAnswer:
                reply = None
                missed += 1
            if missed > self._misses:
                # What hears of it may end this watch, which has ended already.
                self._run = None
            self._report(reply, missed)
