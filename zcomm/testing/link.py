"""The way between a client in memory and its server, and how a connection ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.task import Clock

__all__ = ["Closed", "Link"]


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of a connection.

    :ivar code: the close code; 1006 where none was sent.
    :ivar reason: the text that came with it.
    """

    code: int
    reason: str = ""


class Link:
    """One direction between a client and the server, and what goes wrong there.

    What is said here holds for the messages that come after it.
    """

    def __init__(self, clock: Clock, deliver: Callable[[Any], None]):
        self._clock = clock
        self._deliver = deliver
        self._drop = 0
        self._duplicate = 0
        self._delay = 0.0
        self._cut = False
        #: When the last of those arrives that are on their way.
        self._last = 0.0

    def drop(self, messages: int = 1) -> None:
        """Lose the next messages."""
        self._drop = messages

    def duplicate(self, messages: int = 1) -> None:
        """Deliver each of the next messages twice, as a client that tries again would send it."""
        self._duplicate = messages

    def delay(self, seconds: float) -> None:
        """Let every message take so long from now on. Their order stays: what is faster waits for what is before it."""
        self._delay = seconds

    def cut(self) -> None:
        """Deliver nothing any more, without a word about it."""
        self._cut = True

    def carry(self, item: Any) -> None:
        """Take ``item`` to the other end, or not."""
        if self._cut:
            return
        if self._drop:
            self._drop -= 1
            return
        copies = 1
        if self._duplicate:
            self._duplicate -= 1
            copies = 2
        for _ in range(copies):
            if (wait := self._wait()) > 0:
                self._clock.callLater(wait, self._arrive, item)
            else:
                self._deliver(item)

    def end(self, notice: Callable[[], Any]) -> None:
        """Call ``notice`` behind what is on its way: the connection has ended, which no fault keeps from being seen."""
        if (wait := self._wait()) > 0:
            self._clock.callLater(wait, notice)
        else:
            notice()

    def _wait(self) -> float:
        """Seconds until what is sent now arrives."""
        now = self._clock.seconds()
        self._last = max(self._last, now + self._delay)
        return self._last - now

    def _arrive(self, item: Any) -> None:
        if not self._cut:
            self._deliver(item)
