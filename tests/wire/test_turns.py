"""Guarantee 7: what one client, or a storm of visitors, may have done in one turn of the reactor."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from support.fuzz_connection import IDENTITIES, Peer, Served
from support.rawclient import Opcode, Reader, build_frame, handshake
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.runtime.acceptor import ACCEPTS, UNSENT, restrain

READ = 64 * 1024

#: A read full of them, and how many of them may be done with in one turn.
FLOODS = [
    pytest.param([build_frame(Opcode.PING, b"")], 256, id="F12-pings"),
    pytest.param([build_frame(Opcode.PONG, b"")], 32, id="F12-pongs"),
    pytest.param([build_frame(Opcode.CONTINUATION, b"", fin=False)], 32, id="F9-empty-fragments"),
    pytest.param([build_frame(Opcode.TEXT, b'{"zKey":"ping"}')], 256, id="F11-tiny-messages"),
    pytest.param([build_frame(Opcode.TEXT, b'{"zKey":"ping"}'), build_frame(Opcode.PING, b"")], 64, id="F12-in-turn"),
    pytest.param(
        [build_frame(Opcode.TEXT, b'{"zKey":"ping"}'), build_frame(Opcode.PONG, b"")], 64, id="F12-pongs-between"
    ),
    pytest.param(
        [*[build_frame(Opcode.TEXT, b'{"zKey":"ping"}')] * 200, build_frame(Opcode.PONG, b"")], 512, id="F11-runs"
    ),
]


class Counting:
    """Stands before a client's bucket and notes what is taken from it."""

    def __init__(self, bucket: TokenBucket):
        self.bucket = bucket
        self.taken = 0

    def spend(self, count: int) -> bool:
        self.taken += count
        return self.bucket.spend(count)


def turn(clock: Clock) -> None:
    """Make the calls that are due now, and not those that they ask for."""
    for call in [call for call in clock.calls if call.time <= clock.seconds()]:
        clock.calls.remove(call)
        call.called = 1
        call.func(*call.args, **call.kw)


@pytest.mark.unmeasured
@pytest.mark.parametrize(("frames", "most"), FLOODS)
def test_a_read_full_of_frames_takes_many_turns(frames: list[bytes], most: int):
    """Some of them now, the rest when others have had their turn; none is lost."""
    served = Served(0)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    if frames[0][0] & 0x0F == Opcode.CONTINUATION:
        peer.feed(build_frame(Opcode.TEXT, b"a", fin=False))
    protocol = peer.protocol
    protocol._session.rate = counting = Counting(protocol._session.rate)
    times = READ // len(b"".join(frames))
    protocol.dataReceived(b"".join(frames) * times)
    turns = [counting.taken]
    while counting.taken < times * len(frames):
        before = counting.taken
        turn(served.clock)
        turns.append(counting.taken - before)
        assert turns[-1], "nothing goes on"
    assert max(turns) <= most and len(turns) > 2
    peer.settle()
    told = Reader().feed(peer.written)[1:]
    answered = sum(frame[0] in (0x81, 0x89) for frame in frames) * times
    assert sum(item.opcode in (Opcode.TEXT, Opcode.PONG) for item in told) == answered
    assert protocol.state == protocol.STATE_OPEN


class Noting(Factory):
    """Makes protocols that do nothing, and keeps them."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[Protocol] = []

    def buildProtocol(self, addr: object) -> Protocol:
        self.made.append(Protocol())
        return self.made[-1]


@pytest_twisted.ensureDeferred
async def test_r3_a_storm_of_visitors_is_let_in_by_and_by():
    """A few in each turn, whatever waits; and the system keeps little for each that it cannot send (S1)."""
    from twisted.internet import reactor

    factory = Noting()
    port = reactor.listenTCP(0, factory, backlog=64, interface="127.0.0.1")
    restrain(port)
    visitors = [socket.create_connection(("127.0.0.1", port.getHost().port)) for _ in range(3 * ACCEPTS)]
    try:
        while (before := len(factory.made)) < len(visitors):
            port.doRead()
            assert 0 < len(factory.made) - before <= ACCEPTS
        accepted = factory.made[0].transport.socket
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
    finally:
        for visitor in visitors:
            visitor.close()
        for protocol in factory.made:
            protocol.transport.abortConnection()
        await port.stopListening()
