"""Who runs before whom: the server and its database before the attack, and those before the rest of the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["first", "kept_first"]

#: Seconds between two looks for new children.
LOOK = 0.05


def first(process: int, niceness: int) -> None:
    """Let a process run before those of the rest of the machine, where we may say so; it has a session of its own.

    Not in the real-time class, in which a thread that computes would keep the processor for itself. Its threads stay as
    far behind its first one as they are.
    """
    with suppress(OSError):
        # On Linux each thread has its own; those to come have that of the one which starts them.
        by = niceness - os.getpriority(os.PRIO_PROCESS, process)
        for thread in map(int, os.listdir(f"/proc/{process}/task")):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)
        Path(f"/proc/{process}/autogroup").write_text(str(niceness))


@contextmanager
def kept_first(parent: int, niceness: int) -> Iterator[None]:
    """As :func:`first`, for a process and all of its children, those to come as well.

    PostgreSQL's processes begin a session each, which counts for nothing beside one that is preferred: they would have
    one part in a hundred of a core that the server uses.
    """
    stopped = threading.Event()

    def look() -> None:
        seen: set[int] = set()
        while not stopped.wait(LOOK):
            with suppress(OSError):
                children = {int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}
                for child in children - seen:
                    first(child, niceness)
                seen = children

    first(parent, niceness)
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        stopped.set()
        looking.join()
