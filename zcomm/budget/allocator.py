"""Memory that is freed goes back to the system, and does not stay with the process for ever.

The GNU C library gives back at once what was asked for in one piece of :data:`LARGE` bytes or more. Smaller pieces it
keeps for what comes next, and after a crowd of answers that is a hundred MiB of which nothing is in use. Here one looks
at what the process has and uses, and asks for the rest when a crowd is over, not in its midst: for some ms nobody gets
memory meanwhile. Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

__all__ = ["LOOK", "Giver", "give_back_large_memory", "giver"]

#: Bytes from which on memory is given back to the system as soon as it is freed: where that begins anyhow.
LARGE = 128 * 1024
#: Seconds between looks.
LOOK = 1.0
#: Bytes that have to be free before it is worth while to ask for them.
MUCH = 16 * 1024 * 1024
#: Bytes in use may have become more or less by so much since the last look where nothing much happens; and after how
#: many looks one does not wait for that any longer.
STILL, PATIENCE = 2 * 1024 * 1024, 6

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
    """Finds out when a crowd is over, and has what it has left given back.

    :param measure: tells the bytes that the process has, and how many of them are in use.
    :param give: gives back what is free; it takes a while.
    """

    def __init__(self, measure: Callable[[], tuple[int, int]], give: Callable[[], None]):
        self._measure = measure
        self._give = give
        resident, self._used = measure()
        #: What the process has beside what is in use, at the least: its programs, say.
        self._base = resident - self._used
        self._has_given = False
        self._waited = 0

    def look(self) -> None:
        """Look at what the process has; called each :data:`LOOK`."""
        resident, used = self._measure()
        spare, moved = resident - used, abs(used - self._used)
        self._used = used
        if self._has_given:
            # What is left by now cannot be given back: to ask again is of no use before there is as much more.
            self._has_given, self._base = False, spare
        self._base = min(self._base, spare)
        if spare - self._base < MUCH:
            self._waited = 0
            return
        self._waited += 1
        if moved <= STILL or self._waited >= PATIENCE:
            self._has_given, self._waited = True, 0
            self._give()


class _MallInfo(ctypes.Structure):
    """What mallinfo2() of the GNU C library tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def giver() -> Giver | None:
    """The one for this process, which works in a thread; ``None`` where there is none to be had."""
    try:
        library = ctypes.CDLL(None)
        trim, info = library.malloc_trim, library.mallinfo2
        info.restype = _MallInfo
        _resident()
    except (OSError, AttributeError, TypeError, ValueError, IndexError):
        return None

    def measure() -> tuple[int, int]:
        told = info()
        return _resident(), told.uordblks + told.hblkhd

    def give() -> None:
        # Where the system gives no thread, there is another time.
        with suppress(RuntimeError):
            Thread(target=trim, args=(0,), name="zcomm-memory", daemon=True).start()

    return Giver(measure, give)


def _resident() -> int:
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
