"""Memory that is freed goes back to the system, and does not stay with the process for ever.

The GNU C library gives back at once what was asked for in one piece of :data:`LARGE` bytes or more. Smaller pieces it
keeps for what comes next, and after a crowd of answers that is a hundred MiB of which nothing is in use. Here one looks
at what the process has, and asks for what is free when a crowd may be over. How much that is would take as long to find
out as to give it back, which is some ms, in which nobody gets memory. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import gc
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

from twisted.internet.task import LoopingCall

__all__ = ["LOOK", "Giver", "give_back_large_memory", "giver", "resident_bytes", "settle"]

#: Bytes from which on memory is given back to the system as soon as it is freed: where that begins anyhow.
LARGE = 128 * 1024
#: Seconds between looks.
LOOK = 1.0
#: Bytes that the process has to have more than at its least before it is worth while to ask.
MUCH = 16 * 1024 * 1024
#: Bytes that it may have more or less than at the last look where nothing much happens.
STILL = 2 * 1024 * 1024
#: Looks between two times that one asks: where nothing much happens, where much does, and where it brought nothing.
SOON, LATER, LATEST = 2, 6, 8
#: Looks between two times for each second that the first of them took: meanwhile nobody gets memory.
SELDOM = 300

_M_MMAP_THRESHOLD = -3
_STATM = Path("/proc/self/statm")


def give_back_large_memory() -> None:
    """Have the system's allocator go on giving back at once what is large.

    The GNU C library raises the size from which it does each time that something large is freed, up to 32 MiB; then
    what each thread once had for one large result would stay with that thread.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE)
    except (OSError, AttributeError, TypeError):
        pass  # Another C library has no such thing.


class Giver:
    """Finds out when a crowd may be over, and has what it has left given back.

    :param resident: tells the bytes that the process has.
    :param give: gives back what is free; returns the seconds that it took.
    :param start: calls its argument, in a thread.
    """

    def __init__(
        self, resident: Callable[[], int], give: Callable[[], float], start: Callable[[Callable[[], None]], None]
    ):
        self._resident = resident
        self._give = give
        self._start = start
        self._least = self._last = resident()
        self._since = LATEST
        self._took = 0.0
        #: What the process had when one asked, until it is known what that has brought; and looks until the next time.
        self._before: int | None = None
        self._pause = SOON

    def look(self) -> None:
        """Look at what the process has; called each :data:`LOOK`."""
        now, last = self._resident(), self._last
        self._last = now
        self._least = min(self._least, now)
        self._since += 1
        if self._before is not None:
            # What is in use cannot be given back, and is asked for less often.
            self._pause = SOON if self._before - now > STILL else min(2 * self._pause, LATEST)
            self._before = None
        pause = self._pause if abs(now - last) <= STILL else max(self._pause, LATER)
        if now - self._least >= MUCH and self._since >= max(pause, self._took * SELDOM):
            self._before, self._since = now, 0
            self._start(self._ask)

    def _ask(self) -> None:
        self._took = self._give()


def giver() -> Giver | None:
    """The one for this process, which works in a thread; ``None`` where there is none to be had."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
        resident_bytes()
    except (OSError, AttributeError, TypeError, ValueError, IndexError):
        return None

    def give() -> float:
        begun = perf_counter()
        trim(0)
        return perf_counter() - begun

    def start(call: Callable[[], None]) -> None:
        # Where the system gives no thread, there is another time.
        with suppress(RuntimeError):
            Thread(target=call, name="zcomm-memory", daemon=True).start()

    return Giver(resident_bytes, give, start)


def settle(clock: Any) -> LoopingCall | None:
    """Have a process that is a server's own, and has all that lives as long as it does, go on at little cost: what is
    there now the collector of garbage leaves alone, and what crowds leave behind is given back.

    :returns: what looks for that, to be stopped at the end; ``None`` where nothing does.
    """
    # Without this the collector walks all of it and all open connections again for each few hundred new ones, an eighth
    # of a handshake's time. What it walks at once is what came since: ten thousand objects, most of them garbage, take
    # it ten milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 5, 100)
    memory = giver()
    if memory is None:
        return None
    looking = LoopingCall(memory.look)
    looking.clock = clock
    looking.start(LOOK, now=False)
    return looking


def resident_bytes() -> int:
    """The bytes of this process that are in the machine's memory."""
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
