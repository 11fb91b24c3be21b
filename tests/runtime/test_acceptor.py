"""Our listening port, where it does not go Twisted's own way."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactor, MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent

from zcomm.runtime.acceptor import PAUSE, Port, restrain


class Reactor(MemoryReactor):
    """Ports are read from by hand."""

    def addReader(self, reader: Any) -> None:
        """Nobody is watched."""

    removeReader = addReader


class PausedReactor(MemoryReactorClock):
    """Knows whose ports it would read from."""

    def reads(self, port: Any) -> bool:
        return port in self.getReaders()


class Guests(Factory):
    """Notes who has come."""

    noisy = False

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.protocols: list[Protocol] = []
        self.refused = 0
        self.broken = False

    def buildProtocol(self, address: Any) -> Protocol | None:
        if self.broken:
            raise RuntimeError("broken")
        if self.refused:
            self.refused -= 1
            return None
        self.seen.append(address.host)
        self.protocols.append(Protocol())
        return self.protocols[-1]

    def end(self) -> None:
        """Hang up on everybody."""
        for protocol in self.protocols:
            protocol.transport.getHandle().close()


@pytest.fixture
def port() -> Iterator[Port]:
    listening = Port(0, Guests(), 50, "127.0.0.1", Reactor())
    listening.startListening()
    yield listening
    listening.socket.close()
    listening.factory.end()


@pytest.fixture
def come(port: Port) -> Iterator[Any]:
    guests: list[socket.socket] = []

    def come(count: int) -> list[socket.socket]:
        new = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(count)]
        guests.extend(new)
        return new

    yield come
    for guest in guests:
        guest.close()


def test_all_who_are_there_are_taken(port: Port, come: Any):
    """In several turns if need be, also when nobody is left in the middle of one."""
    come(7)
    for _ in range(7):
        port.doRead()
    assert port.factory.seen == ["127.0.0.1"] * 7
    port.doRead()
    assert len(port.factory.seen) == 7


def test_one_by_one_few_tries_find_nobody(port: Port, come: Any):
    """And a crowd is met with more from turn to turn."""
    port.doRead()
    for count in range(1, 4):
        come(1)
        port.doRead()
        assert len(port.factory.seen) == count and int(port._tries) == 1
    come(45)
    turns = 0
    while len(port.factory.seen) < 48:
        port.doRead()
        turns += 1
    assert turns < 20


def test_who_is_refused_is_hung_up_on(port: Port, come: Any):
    """The next ones are served."""
    port.factory.refused = 1
    refused, served = come(2)
    port.doRead()
    port.doRead()
    assert len(port.factory.seen) == 1 and refused.recv(1) == b""
    served.setblocking(False)
    with pytest.raises(BlockingIOError):
        served.recv(1)


def test_a_fault_closes_no_port(port: Port, come: Any):
    """It costs one connection."""
    port.factory.broken = True
    [unlucky] = come(1)
    port.doRead()
    assert unlucky.recv(1) == b""
    port.factory.broken = False
    come(1)
    port.doRead()
    port.doRead()
    assert len(port.factory.seen) == 1


def test_out_of_descriptors_is_twisteds_to_solve(port: Port, come: Any):
    """It has one in reserve, hangs up on those who wait, and serves whoever comes when there are some again."""
    [unlucky] = come(1)
    with no_descriptors(unlucky):
        port.doRead()
    assert port.factory.seen == [] and unlucky.recv(1) == b""
    come(1)
    port.doRead()
    assert len(port.factory.seen) == 1


@contextmanager
def no_descriptors(like: socket.socket) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(like.fileno())
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_contact_a_want_of_descriptors_fills_no_log():
    """Of either port: it waits a moment each time, and says so once; then it accepts again."""
    for kind in (Port, tcp.Port):
        reactor: Any = PausedReactor()
        listening: Any = kind(0, Guests(), 50, "127.0.0.1", reactor)
        listening.startListening()
        restrain(listening)
        guests = []
        try:
            with capturedLogs() as logged:
                for _ in range(5):
                    address = ("127.0.0.1", listening.getHost().port)
                    guests += [socket.create_connection(address) for _ in range(4)]
                    with no_descriptors(guests[-1]):
                        while reactor.reads(listening):
                            listening.doRead()
                    reactor.advance(PAUSE)
            [line] = [formatEvent(event) for event in logged]
            assert "No new connection can be accepted now (EMFILE): no files are left; raise the limit" in line
            assert listening.factory.seen == []
            guests.append(socket.create_connection(address))
            while not listening.factory.seen:
                listening.doRead()
        finally:
            listening.socket.close()
            listening.factory.end()
            for guest in guests:
                guest.close()


def test_ipv6_goes_twisteds_way(come: Any):
    """Its addresses have a scope to look up."""
    listening = Port(0, Guests(), 50, "::1", Reactor())
    listening.startListening()
    try:
        with socket.create_connection(("::1", listening.getHost().port)):
            listening.doRead()
        assert listening.factory.seen == ["::1"]
    finally:
        listening.socket.close()
        listening.factory.end()
