"""Who writes: processes that change rows as fast as they can, or so many times a second, and note when."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from typing import Any

import servers

__all__ = ["Batch", "Write", "Writers"]

#: Rows of a batch: those with one value of ``part``.
BATCH = 100
#: Changes rows and waits until that is done: the stamp they get, and which batch, or the one row, that is.
Write = Callable[[int, int], None]
#: Makes one, in the process of the writer.
Batch = Callable[[], Write]
#: Stamps of one writer in one phase.
STAMPS = 100_000
#: Seconds by which writes come late, by lot: as long as servers wait between two looks.
JITTER = 0.05


class Writers:
    """Some processes that write for a while.

    :param make: makes what each writes with.
    :param count: how many there are.
    :param seconds: for how long.
    :param targets: how many batches, or rows, there are to be written; each has some of them to itself.
    :param rate: writes a second of all together; ``None`` for as many as they can.
    """

    _numbers = 0

    def __init__(self, make: Batch, count: int, seconds: float, targets: int, rate: float | None = None):
        context = multiprocessing.get_context("fork")
        self._pipes, self._processes = [], []
        for number in range(count):
            Writers._numbers += 1
            first = Writers._numbers * STAMPS
            here, there = context.Pipe()
            every = None if rate is None else count / rate
            process = context.Process(
                target=_run, args=(make, first, seconds, range(number, targets, count), every, there)
            )
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def run(self) -> list[tuple[int, int, int]]:
        """Let them write: each write's stamp, and when it was sent and answered, in nanoseconds.

        :raises RuntimeError: when one has failed.
        """
        for pipe in self._pipes:
            pipe.send(None)
        written: list[tuple[int, int, int]] = []
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            made = pipe.recv()
            process.join()
            if isinstance(made, str):
                raise RuntimeError(f"a writer has failed: {made}")
            written += made
        return written


def _run(make: Batch, first: int, seconds: float, targets: range, every: float | None, pipe: Any) -> None:
    servers.undisturbed()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {1})
    try:
        write = make()
        pipe.send(None)
        pipe.recv()
        pipe.send(_write(write, first, seconds, targets, every))
    except Exception as error:
        pipe.send(repr(error))


def _write(write: Write, first: int, seconds: float, targets: range, every: float | None) -> list[tuple[int, int, int]]:
    dice = random.Random(first)
    written = []
    begun = time.monotonic_ns()
    until = begun + int(seconds * 1e9)
    for turn in range(STAMPS):
        if every is not None:
            # By lot beside the beat: not when a server looks anyway.
            due = begun + int((turn * every + dice.random() * min(every, JITTER)) * 1e9)
            while (left := due - time.monotonic_ns()) > 0:
                time.sleep(left / 1e9)
        sent = time.monotonic_ns()
        if sent > until:
            break
        write(first + turn, dice.choice(targets))
        written.append((first + turn, sent, time.monotonic_ns()))
    return written
