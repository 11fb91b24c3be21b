"""Asking a running server again and again whether it still answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from zcomm.services.declaration import Probe
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.query import NoAnswer, pause

__all__ = ["Watch"]


class Watch:
    """A liveness watch: from :meth:`start` until :meth:`stop` or the verdict that the server hangs.

    One missed answer is a busy machine; ``misses`` in a row are a hang. Before that verdict the server
    is told to continue, once, because a process that was only suspended needs no restart.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        probe: Probe,
        misses: int,
        ask: Callable[[], Deferred[Reply]],
        heard: Callable[[Reply], None],
        missed: Callable[[int], None],
        resume: Callable[[], Any],
        hung: Callable[[], None],
        tick: Callable[[], Any],
    ):
        self._reactor = reactor
        self._probe = probe
        self._misses = misses
        self._ask = ask
        self._heard = heard
        self._missed = missed
        self._resume = resume
        self._hung = hung
        self._tick = tick
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
        while True:
            await pause(self._reactor, self._probe.every)
            self._tick()
            if await self._answers():
                missed = 0
                continue
            missed += 1
            self._missed(missed)
            if missed >= self._misses:
                self._resume()
                if not await self._answers():
                    break
                missed = 0
        self._run = None
        self._hung()

    async def _answers(self) -> bool:
        try:
            reply = await self._ask()
        except NoAnswer:
            return False
        self._heard(reply)
        return True
