"""The effort of a thread: the time for which it has the processor, and for which it waits for the disk.

Time in which it waits for other threads, above all for its turn at the interpreter, is none of it: of several that run
at once each would seem to have taken what all of them took.
"""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

__all__ = ["PAGE_TIME", "Effort"]

#: Seconds that a disk takes for one page at most.
PAGE_TIME = 0.01
#: Blocks, as the system counts them, of a page.
_BLOCKS = 8
#: Not every system tells of one thread.
_OWN: int | None = getattr(resource, "RUSAGE_THREAD", None)
_IS_KNOWN = _OWN is not None and hasattr(time, "pthread_getcpuclockid")
_here = threading.local()


def _usage() -> Any:
    return resource.getrusage(_OWN)  # type: ignore[arg-type]


class Effort:
    """The effort of this thread from now on."""

    __slots__ = ("_blocks", "_clock", "_computed")

    def __init__(self) -> None:
        if not _IS_KNOWN:
            return
        clock = getattr(_here, "clock", None)
        if clock is None:
            clock = _here.clock = time.pthread_getcpuclockid(threading.get_ident())
        self._clock: int = clock
        usage = _usage()
        self._computed: float = usage.ru_utime + usage.ru_stime
        self._blocks: int = usage.ru_inblock + usage.ru_oublock

    def so_far(self, seconds: float) -> float:
        """The processor's part of ``seconds``, which have passed since; asked from any thread."""
        if not _IS_KNOWN:
            return seconds
        try:
            return min(seconds, time.clock_gettime(self._clock) - self._computed)
        except OSError:
            # The thread has ended.
            return 0.0

    def all(self, seconds: float) -> float:
        """The part of ``seconds``, which have passed since, that it has computed or waited for the disk. Asked from
        the thread itself."""
        if not _IS_KNOWN:
            return seconds
        usage = _usage()
        computed = usage.ru_utime + usage.ru_stime - self._computed
        pages = (usage.ru_inblock + usage.ru_oublock - self._blocks) / _BLOCKS
        return float(min(seconds, computed + pages * PAGE_TIME))
