"""The reactor of production: how much of a turn is spent on reading."""

from __future__ import annotations

import select
import socket
from collections import Counter
from typing import Any

import pytest

from zcomm.runtime import reactor as module
from zcomm.runtime.reactor import UvloopReactor

uvloop = pytest.importorskip("uvloop")


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
@pytest.mark.parametrize(
    ("few", "most", "time", "of_a_turn"),
    [
        pytest.param(100, 100, 60.0, 30, id="few"),
        pytest.param(10, 100, 60.0, 30, id="some-are-too-many"),
        pytest.param(10, 5, 60.0, 15, id="at-a-time"),
        pytest.param(10, 100, -1.0, 11, id="by-the-clock"),
    ],
)
def test_a_crowd_that_always_has_something_leaves_others_their_turns(
    monkeypatch: pytest.MonkeyPatch, few: int, most: int, time: float, of_a_turn: int
):
    """However many there are; and each of them is read from as often as the others beside it."""
    loop = uvloop.new_event_loop()
    reactor = UvloopReactor(loop)
    monkeypatch.setattr(module, "FEW", few + len(reactor.getReaders()))
    monkeypatch.setattr(module, "READS", most)
    monkeypatch.setattr(module, "TURN", time)
    pairs = [socket.socketpair() for _ in range(30)]
    read: Counter[Any] = Counter()
    readers = [Reader(one, read) for one, _ in pairs]
    turns: list[int] = []

    def turn() -> None:
        turns.append(read.total())
        if len(turns) == 100:
            loop.stop()
        else:
            loop.call_soon(turn)

    try:
        for reader, (_, other) in zip(readers, pairs, strict=True):
            other.send(b"x")
            reactor.addReader(reader)
        loop.call_soon(turn)
        loop.run_forever()
        assert max(after - before for before, after in zip(turns, turns[1:], strict=False)) == of_a_turn
        crowd = [read[reader] for reader in readers if reader in reactor._crowd.values()]
        assert set(read) == set(readers) and (not crowd or max(crowd) - min(crowd) <= 1)
        gone = readers[0], readers[-1]
        for each in gone:
            reactor.removeReader(each)
        before = [read[each] for each in gone]
        turns.clear()
        loop.call_soon(turn)
        loop.run_forever()
        assert [read[each] for each in gone] == before
        assert set(reactor.getReaders()) & set(readers) == set(readers[1:-1])
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


class Looking(UvloopReactor):
    """One that counts how often it looks for its next timer."""

    looked = 0

    def timeout(self) -> float | None:
        self.looked += 1
        return super().timeout()


def test_a_timer_that_is_not_the_next_one_asks_for_no_wake_up():
    """And all are called, soon: those that are earlier than others, are moved, or are made by one of them."""
    loop = uvloop.new_event_loop()
    reactor = Looking(loop)
    missing = {"first", "its own", "its own at once", "moved", "put off", "last"}
    looked: list[int] = []

    def call(name: str) -> None:
        missing.remove(name)
        if not missing:
            loop.stop()

    def first() -> None:
        call("first")
        reactor.callLater(0.01, own)

    def own() -> None:
        call("its own")
        reactor.callLater(0.0, call, "its own at once")

    def begin() -> None:
        reactor.callLater(30, loop.stop)
        reactor.callLater(0.06, call, "last")
        before = reactor.looked
        others = [reactor.callLater(60, call, "never") for _ in range(1000)]
        looked.append(reactor.looked - before)
        for other in others[1:]:
            other.cancel()
        moved = reactor.callLater(60, call, "moved")
        moved.reset(0.04)
        reactor.callLater(0.02, first)
        put_off = reactor.callLater(0.001, call, "put off")
        put_off.delay(0.05)

    try:
        reactor.callFromThread(begin)
        loop.run_forever()
        assert not missing
        assert looked == [0]
    finally:
        for reader in reactor.removeAll():
            reader.connectionLost(None)
        loop.close()
