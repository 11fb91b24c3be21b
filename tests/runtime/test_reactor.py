"""The reactor of production: how much of a turn is spent on reading."""

from __future__ import annotations

import select
import socket
from collections import Counter
from typing import Any

import pytest

from zcomm.runtime.reactor import READS, UvloopReactor

uvloop = pytest.importorskip("uvloop")
COUNT = READS + 50


class Reader:
    """One that always has something."""

    def __init__(self, end: socket.socket, read: Counter[Any]):
        self._end = end
        self._read = read
        self.number: int = end.fileno()

    def fileno(self) -> int:
        return self.number

    def logPrefix(self) -> str:
        return "reader"

    def doRead(self) -> None:
        self._read[self] += 1

    def connectionLost(self, reason: Any) -> None:
        self.number = -1


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")
def test_a_turn_reads_from_so_many_and_no_more():
    """Where ever so many have something all the time, others have their turn in between, and each is read from."""
    loop = uvloop.new_event_loop()
    reactor = UvloopReactor(loop)
    pairs = [socket.socketpair() for _ in range(COUNT)]
    read: Counter[Any] = Counter()
    readers = [Reader(one, read) for one, _ in pairs]
    turns: list[int] = []

    def turn() -> None:
        turns.append(read.total())
        if len(turns) == 12:
            loop.stop()
        else:
            loop.call_soon(turn)

    try:
        for reader, (_, other) in zip(readers, pairs, strict=True):
            other.send(b"x")
            reactor.addReader(reader)
        loop.call_soon(turn)
        loop.run_forever()
        assert max(after - before for before, after in zip(turns, turns[1:], strict=False)) == READS
        assert set(read) == set(readers) and max(read.values()) - min(read.values()) <= 1
        gone = readers[0]
        reactor.removeReader(gone)
        before = read[gone]
        turns.clear()
        loop.call_soon(turn)
        loop.run_forever()
        assert read[gone] == before and gone not in reactor.getReaders()
    finally:
        for reader in reactor.removeAll():
            reader.connectionLost(None)
        for pair in pairs:
            for end in pair:
                end.close()
        loop.close()


def test_calls_from_threads_come_in_order_and_one_that_fails_stops_none():
    """Each in the next turn; what one raises is logged."""
    loop = uvloop.new_event_loop()
    reactor = UvloopReactor(loop)
    called: list[Any] = []

    def fail() -> None:
        called.append("fail")
        raise ValueError("on purpose")

    try:
        reactor.callFromThread(called.append, 1)
        reactor.callFromThread(fail)
        reactor.callFromThread(called.append, 2)
        reactor.callFromThread(loop.stop)
        loop.run_forever()
        assert called == [1, "fail", 2]
    finally:
        for reader in reactor.removeAll():
            reader.connectionLost(None)
        loop.close()
