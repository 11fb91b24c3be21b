"""Clients of TLS that are not let in yet share one slice of each turn."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection

from zcomm.wire import incoming
from zcomm.wire.incoming import Entrance


def test_who_had_to_wait_at_the_entrance_is_read_from_first(monkeypatch: pytest.MonkeyPatch):
    """Three sockets with something in each turn, and time for one: nobody waits for longer than three turns, though the
    same one is asked first each time; one that leaves keeps nobody waiting."""
    # Each read uses that up.
    monkeypatch.setattr(incoming, "ENTRANCE", 1e-9)
    monkeypatch.setattr(incoming, "WIDE_ENTRANCE", 1e-9)
    ends: list[Callable[[], None]] = []
    entrance = Entrance(ends.append)
    read: list[str] = []
    pairs = [socket.socketpair() for _ in "abc"]

    class Noted(Protocol):
        def __init__(self, name: str):
            self.name = name

        def dataReceived(self, data: bytes) -> None:
            read.append(self.name)

    sockets = [Connection(mine, Noted(name)) for name, (mine, _) in zip("abc", pairs, strict=True)]
    try:
        for _, theirs in pairs:
            theirs.setblocking(True)

        def turn(asking: list[Connection]) -> None:
            for each in asking:
                each.bufferSize = 1
                assert entrance.read(each) is None
            assert len(ends) == 1
            ends.pop()()

        for _, theirs in pairs:
            theirs.send(b"x" * 100)
        for _ in range(9):
            turn(sockets)
        assert len(read) == 9 and read[:3] == ["a", "b", "c"]
        assert all(set("abc") <= set(read[place : place + 4]) for place in range(6)), read
        # The one that is next has gone.
        turn(sockets[:1])
        turn(sockets[:1])
        assert read[-1] == "a"
        while ends:
            ends.pop()()
        turn(sockets[1:])
        assert read[-1] == "b"
    finally:
        for mine, theirs in pairs:
            mine.close()
            theirs.close()
