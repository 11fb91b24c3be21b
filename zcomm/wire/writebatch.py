"""Writes of one turn of the reactor, put together where several clients are written to.

A write to a socket wakes up whoever waits at its other end, which on the same machine (a proxy in front is
there) costs as much as everything else a reply costs. Replies that leave one after the other, without the work
for the next one in between, find their reader awake. So only the first reply of a turn leaves at once; those of
the others follow together when the turn is over, or when there are enough of them. Broadcasts wait for the end
of the turn in any case, so that all of one turn leave in one piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

__all__ = ["MAX_WAITING", "UNWATCHED", "WriteBatch"]

#: Clients whose replies may wait for each other: no reply is held back by more work than that for so many.
MAX_WAITING = 32
#: Replies after one that was alone in its turn which are taken to be alone too: to be told of the end of a turn
#: has its price, which is felt where one client asks one thing at a time.
UNWATCHED = 32


class Waiting(Protocol):
    """Something that holds writes back: the outgoing side of a client, or the broadcasts of a server."""

    def flush(self) -> None:
        """Write what waits."""


class WriteBatch:
    """The writes that wait for the end of the turn of the reactor that it is now.

    :param at_end: calls its argument once the reactor is done with what it is doing now.
    """

    __slots__ = ("_alone", "_at_end", "_begun", "_last", "_unwatched", "_waiting", "_watching")

    def __init__(self, at_end: Callable[[Callable[[], None]], object]):
        self._at_end = at_end
        self._begun = self._alone = False
        #: Whether the end of this turn will be told.
        self._watching = False
        #: Replies that still leave at once and unseen, because one was alone in its turn not long ago.
        self._unwatched = 0
        self._waiting: deque[Waiting] = deque()
        self._last: deque[Waiting] = deque()

    def begins(self) -> bool:
        """Whether a reply may leave at once, because no other is known in this turn."""
        if self._begun:
            return False
        if self._unwatched:
            self._unwatched -= 1
            return True
        self._begun = self._alone = True
        if not self._watching:
            self._watching = True
            self._at_end(self._end)
        return True

    def add(self, client: Waiting) -> None:
        """Flush ``client`` with the others of this turn, at its end or when there are enough of them."""
        self._alone = False
        self._waiting.append(client)
        if len(self._waiting) >= MAX_WAITING:
            self._flush()

    def add_last(self, waiting: Waiting) -> None:
        """Flush ``waiting`` at the end of this turn, never before."""
        self._last.append(waiting)
        if not self._watching:
            self._watching = True
            self._at_end(self._end)

    def next_turn(self, call: Callable[[], None]) -> None:
        """Call ``call`` once the reactor is done with what it is doing now, behind what is ready meanwhile."""
        self._at_end(call)

    def _end(self) -> None:
        if self._alone:
            self._unwatched = UNWATCHED
        self._watching = self._begun = self._alone = False
        try:
            while self._last:
                self._last.popleft().flush()
        finally:
            if self._waiting:
                self._flush()

    def _flush(self) -> None:
        waiting = self._waiting
        while waiting:
            waiting.popleft().flush()
