"""Users who lately asked for something that takes more than one turn of the reactor: a thread, in most cases.

A long piece of one user's work may keep such a command of another waiting in each of these turns. So whoever does work
in long pieces asks here whether there is anybody to leave time to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

__all__ = ["Askers"]

#: Seconds for which one who has asked counts.
LATELY = 1.0
#: Who asked before anybody did.
_NOBODY = object()


class Askers:
    """Remembers the user who asked last, and when somebody else did.

    :param seconds: the monotonic clock.
    """

    __slots__ = ("_before", "_last", "_seconds", "_since")

    def __init__(self, seconds: Callable[[], float] = time.monotonic):
        self._seconds = seconds
        self._last: Hashable = _NOBODY
        self._since = self._before = float("-inf")

    def ask(self, owner: Hashable) -> None:
        """Take note that ``owner`` has asked. Called on the reactor thread."""
        if owner != self._last:
            self._last, self._before = owner, self._since
        self._since = self._seconds()

    def others(self, owner: Hashable) -> bool:
        """Whether others than ``owner`` have asked lately. Called from any thread."""
        return self._seconds() - (self._before if owner == self._last else self._since) < LATELY
