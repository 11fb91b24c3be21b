"""What is written together at the end of a turn of the reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from twisted.internet import tcp
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor

from zcomm.bifrost.session import Session
from zcomm.config import Limits
from zcomm.wire.frames import frames
from zcomm.wire.outgoing import Outgoing
from zcomm.wire.writebatch import MAX_WAITING, UNWATCHED, WriteBatch


class Reactor:
    """Turns that end when a test says so."""

    def __init__(self) -> None:
        self.at_end: list[Callable[[], None]] = []
        self.batch = WriteBatch(self.at_end.append)

    def end_turn(self) -> None:
        due, self.at_end[:] = list(self.at_end), []
        for function in due:
            function()


class Client:
    """The outgoing side of a connection, and the socket that its peer reads."""

    def __init__(self, batch: WriteBatch):
        near, self.far = socket.socketpair()
        for end in (near, self.far):
            end.setblocking(False)
        self.transport = tcp.Connection(near, Protocol(), MemoryReactor())
        self.transport.connected = 1
        self.outgoing = Outgoing(self, self.transport, Session(Limits(), Clock().seconds), Clock(), batch)
        self.outgoing.send_frames(b"hello")
        assert self.received() == b"hello" and self.outgoing.fd == near.fileno()

    def output_blocked(self) -> None:
        """The transport has enough."""

    def output_drained(self) -> None:
        """It has taken everything."""

    def received(self) -> bytes:
        try:
            return self.far.recv(100_000)
        except BlockingIOError:
            return b""

    def end(self) -> None:
        self.far.close()
        self.transport.getHandle().close()


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def clients(reactor: Reactor) -> Iterator[list[Client]]:
    several = [Client(reactor.batch) for _ in range(3)]
    yield several
    for client in several:
        client.end()


def test_the_first_leaves_at_once_and_the_others_at_the_end(reactor: Reactor, clients: list[Client]):
    """In each turn anew; while replies wait, no broadcast is written to the socket past them."""
    for _ in range(3):
        for client in clients:
            client.outgoing.send([b"one", b"two"])
        assert [client.received() for client in clients] == [frames([b"one", b"two"]), b"", b""]
        assert [client.outgoing.fd >= 0 for client in clients] == [True, False, False]
        reactor.end_turn()
        assert [client.received() for client in clients] == [b"", *[frames([b"one", b"two"])] * 2]
        assert all(client.outgoing.fd >= 0 for client in clients)


def test_nothing_passes_by_what_waits(reactor: Reactor, clients: list[Client]):
    """What is written next takes it along, in order and in one piece: one reply of each client waits at most."""
    clients[0].outgoing.send([b"first"])
    waiting = clients[1].outgoing
    waiting.send([b"a"])
    assert clients[1].received() == b""
    waiting.send_frames(b"a broadcast")
    assert clients[1].received() == frames([b"a"]) + b"a broadcast"
    waiting.send([b"b"])
    assert clients[1].received() == b""
    waiting.send([b"c"])
    assert clients[1].received() == frames([b"b", b"c"])
    waiting.send([b"d"])
    reactor.end_turn()
    assert clients[1].received() == frames([b"d"])


def test_what_the_system_does_not_take_stays_in_order(reactor: Reactor, clients: list[Client]):
    """The transport has what did not fit, and what is written behind it."""
    large = bytes(3_000_000)
    clients[0].outgoing.send([b"first"])
    clients[1].outgoing.send([large])
    reactor.end_turn()
    clients[1].outgoing.send([b"last"])
    got, wanted = b"", frames([large]) + frames([b"last"])
    while len(got) < len(wanted):
        part = clients[1].received()
        got += part
        if not part:
            clients[1].transport.doWrite()
    assert got == wanted


def test_nobody_is_written_to_who_has_left(reactor: Reactor, clients: list[Client]):
    """Between the reply and the end of the turn; the others get theirs."""
    for client in clients:
        client.outgoing.send([b"reply"])
    clients[1].outgoing.release()
    reactor.end_turn()
    assert [client.received() for client in clients] == [frames([b"reply"]), b"", frames([b"reply"])]


def test_enough_of_them_do_not_wait(reactor: Reactor):
    """However long the turn: replies are held back by the work for so many others at most."""
    flushed: list[int] = []

    class Numbered:
        def __init__(self, number: int):
            self.number = number

        def flush(self) -> None:
            flushed.append(self.number)

    assert reactor.batch.begins()
    for number in range(2 * MAX_WAITING + 1):
        assert not reactor.batch.begins()
        reactor.batch.add(Numbered(number))
    assert flushed == list(range(2 * MAX_WAITING))
    reactor.end_turn()
    assert flushed == list(range(2 * MAX_WAITING + 1))


def test_one_alone_does_not_pay_for_company(reactor: Reactor):
    """After a turn with one reply the next ones leave without asking for the turn's end; then it is looked at anew."""
    for _ in range(3):
        assert reactor.batch.begins() and len(reactor.at_end) == 1
        reactor.end_turn()
        for _ in range(UNWATCHED):
            assert reactor.batch.begins()
        assert not reactor.at_end


def test_what_comes_last_waits_for_the_end(reactor: Reactor, clients: list[Client]):
    """However many replies leave before; the end is asked for once, and the first reply of the turn leaves as early."""

    class Broadcasts:
        def flush(self) -> None:
            flushed.append("broadcasts")

    class Reply:
        def flush(self) -> None:
            flushed.append("reply")

    flushed: list[str] = []
    reactor.batch.add_last(Broadcasts())
    assert reactor.batch.begins() and not reactor.batch.begins() and len(reactor.at_end) == 1
    for _ in range(MAX_WAITING + 1):
        reactor.batch.add(Reply())
    assert flushed == ["reply"] * MAX_WAITING
    reactor.end_turn()
    assert flushed[MAX_WAITING:] == ["broadcasts", "reply"]
    reactor.batch.add_last(Broadcasts())
    assert len(reactor.at_end) == 1
    reactor.end_turn()
    assert flushed[-2:] == ["reply", "broadcasts"] and not reactor.at_end


def test_broadcasts_alone_do_not_make_a_reply_alone(reactor: Reactor):
    """A turn without replies says nothing of the next one."""

    class Broadcasts:
        def flush(self) -> None:
            """Nobody hears them."""

    for _ in range(2):
        reactor.batch.add_last(Broadcasts())
        reactor.end_turn()
    assert reactor.batch.begins() and not reactor.batch.begins() and len(reactor.at_end) == 1


def test_broadcasts_that_fail_cost_no_reply(reactor: Reactor, clients: list[Client]):
    """What the same turn has for clients is written all the same."""

    class Broken:
        def flush(self) -> None:
            raise RuntimeError("broken")

    clients[0].outgoing.send([b"first"])
    reactor.batch.add_last(Broken())
    clients[1].outgoing.send([b"second"])
    with pytest.raises(RuntimeError):
        reactor.end_turn()
    assert clients[1].received() == frames([b"second"])


def test_a_failure_costs_nobody_else_a_reply(reactor: Reactor, clients: list[Client]):
    """What was behind it in the turn is written at the end of the next one."""

    class Broken:
        def flush(self) -> None:
            raise RuntimeError("broken")

    clients[0].outgoing.send([b"first"])
    reactor.batch.add(Broken())
    clients[1].outgoing.send([b"second"])
    with pytest.raises(RuntimeError):
        reactor.end_turn()
    clients[0].outgoing.send([b"next"])
    reactor.end_turn()
    assert clients[1].received() == frames([b"second"])
