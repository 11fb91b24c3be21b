"""Commands that may be sent again: after a loss they wait for the connection to come back, and go on there."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from zcomm.errors import CommandTimeout, ConnectionLost
from zcomm.runtime.deferreds import Waiters

__all__ = ["Repeated", "retry_delay"]

#: Seconds: the most a first retry waits, and the most any does.
FIRST_RETRY, LAST_RETRY = 0.5, 30.0


def retry_delay(attempt: int, chance: Callable[[], float] = random.random) -> float:
    """Seconds before retry number ``attempt`` (from 1): anywhere below a bound that doubles up to 30 s.

    Full jitter: a thousand clients that lost the same server do not come back in the same moment.
    """
    bound: float = min(LAST_RETRY, FIRST_RETRY * 2 ** min(attempt - 1, 16))
    return chance() * bound


class Repeated:
    """Sends each command until it has an answer, within its time, in the order in which they came.

    :param clock: for their time limits.
    :param call: sends one command, once; a Deferred of its result.
    :param state: the state of the client.
    """

    def __init__(self, clock: IReactorTime, call: Callable[[str, Any, float], Deferred[Any]], state: Callable[[], str]):
        self._clock = clock
        self._call = call
        self._state = state
        self._subscribing: Waiters[None] = Waiters()
        self._waiting: Waiters[None] = Waiters()

    @property
    def comes_back(self) -> bool:
        """Whether a connection is being made."""
        return self._state() in ("connecting", "reconnecting")

    def came_back(self) -> None:
        """Send what waits."""
        self._subscribing.fire(None)
        self._waiting.fire(None)

    def ended(self, error: ConnectionLost) -> None:
        """Fail what waits: no connection comes any more."""
        self._subscribing.fail(error)
        self._waiting.fail(error)

    async def run(self, key: str, horizontal: Callable[[], Any], timeout: float) -> Any:
        """Send a command, as often as it takes; returns its result.

        :param horizontal: what it says where it is sent now.
        :raises ConnectionLost: when no connection comes any more.
        :raises CommandTimeout: when its time is over.
        """
        until = self._clock.seconds() + timeout
        while True:
            left = until - self._clock.seconds()
            if self._state() == "connected" and left > 0:
                try:
                    return await self._call(key, horizontal(), left)
                except ConnectionLost:
                    if not self.comes_back:
                        raise
            elif not self.comes_back and left > 0:
                raise ConnectionLost(1006, f"not connected ({self._state()}): the command was not sent")
            await self._back(key, until - self._clock.seconds(), timeout)

    def _back(self, key: str, left: float, timeout: float) -> Deferred[None]:
        waiters = self._subscribing if key == "zSubscribe" else self._waiting
        late = CommandTimeout(f"No answer within {timeout:g} s")
        return waiters.add().addTimeout(max(left, 0), self._clock, lambda *_: Failure(late))
