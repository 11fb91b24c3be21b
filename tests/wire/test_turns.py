"""Guarantee 7: what one client, or a storm of visitors, may have done in one turn of the reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import count
from random import Random

import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz_connection import IDENTITIES, Peer, Served
from support.rawclient import Opcode, Reader, build_frame, close_payload, handshake
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from zcomm import wire
from zcomm.bifrost.ratelimit import TokenBucket
from zcomm.budget.account import AWAY, SLICE
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

    def give_back(self, count: int) -> None:
        self.taken -= count
        self.bucket.give_back(count)


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
        before, account = counting.taken, protocol._connection.account
        turn(served.clock)
        turns.append(counting.taken - before)
        assert turns[-1] or account.is_spent, "nothing goes on"
    assert max(turns) <= most and len(turns) > 2
    peer.settle()
    told = Reader().feed(peer.written)[1:]
    answered = sum(frame[0] in (0x81, 0x89) for frame in frames) * times
    assert sum(item.opcode in (Opcode.TEXT, Opcode.PONG) for item in told) == answered
    assert protocol.state == protocol.STATE_OPEN


@pytest.mark.unmeasured
@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "run", "ping", "pong", "parts", "large"]), st.integers(1, 9)), max_size=60
    ),
    st.integers(0, 2**32),
    st.sampled_from([40, 1000]),
    st.sampled_from([wire.incoming.TURN, -1.0]),
    st.sampled_from([wire.incoming.LARGE, 0]),
    st.sampled_from([wire.incoming.WAITING, 100]),
)
def test_contact_r02_what_a_slowed_client_sends_is_all_answered(
    pieces: list[tuple[str, int]], seed: int, rate: int, turn_time: float, large: int, waiting: int
) -> None:
    """However frames and reads are cut, however little time a turn has, or may wait, less than one message too, and
    whether or not those that took the long way have a turn of their own: each message once and in order, each ping once
    and in order, nothing twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.incoming, "TURN", turn_time)
        patch.setattr(wire.incoming, "LARGE", large)
        patch.setattr(wire.incoming, "WAITING", waiting)
        answered_while_slowed(pieces, seed, rate)


def answered_while_slowed(pieces: list[tuple[str, int]], seed: int, rate: int) -> None:
    random = Random(seed)
    numbers = count()
    frames: list[bytes] = []
    messages: list[int] = []
    pings: list[bytes] = []

    def text(size: int = 0) -> bytes:
        messages.append(next(numbers))
        return b'{"zKey":"ping","zHorizontal":%d,"x":"%s"}' % (messages[-1], b"x" * size)

    for kind, times in pieces:
        for _ in range(times * 9 if kind == "run" else times):
            if kind == "ping":
                pings.append(b"%d" % next(numbers))
                frames.append(build_frame(Opcode.PING, pings[-1]))
            elif kind == "pong":
                frames.append(build_frame(Opcode.PONG, b"stray"))
            elif kind == "parts":
                whole = text()
                pings.append(b"%d" % next(numbers))
                frames.append(build_frame(Opcode.TEXT, whole[:9], fin=False))
                frames.append(build_frame(Opcode.PING, pings[-1]))
                frames.append(build_frame(Opcode.CONTINUATION, whole[9:]))
            else:
                frames.append(build_frame(Opcode.TEXT, text(3000 if kind == "large" else 0)))
    served = Served(0, message_size=5000, frame_rate=rate, frame_burst=30)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    stream = b"".join(frames)
    incoming = peer.protocol._incoming

    def pass_time(until: Callable[[], bool]) -> None:
        for _ in range(10_000):
            if until():
                return
            served.clock.advance(1.0)
            peer.written += peer.pipe.getOutBuffer() or b""

    while stream:
        cut = random.choice([1, 5, 50, 700, 9000])
        pass_time(lambda: not peer.pipe.paused)
        for piece in (stream[:cut], stream[cut : 2 * cut]):
            if not peer.pipe.paused:
                peer.protocol.dataReceived(piece)
                stream = stream[len(piece) :]
        served.clock.advance(random.choice([0, 0, 0.01, 0.5]))
        peer.written += peer.pipe.getOutBuffer() or b""
    pass_time(lambda: not incoming.is_slowed and incoming._backlog is None)
    peer.settle()
    told = Reader().feed(peer.written)[1:]
    answers = [item.json["result"] for item in told if item.opcode == Opcode.TEXT]
    assert answers == messages
    assert [item.payload for item in told if item.opcode == Opcode.PONG] == pings
    assert peer.protocol.state == peer.protocol.STATE_OPEN
    account = peer.protocol._connection.account
    peer.pipe.lost()
    pass_time(lambda: not account.is_spent)
    assert served.clock.getDelayedCalls() == []


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(build_frame(Opcode.CONTINUATION, b"", fin=False), id="F9-empty-fragments"),
        pytest.param(build_frame(Opcode.PING, b""), id="F12-pings"),
        pytest.param(build_frame(Opcode.PONG, b""), id="F12-pongs"),
    ],
)
def test_b11_frames_of_who_is_slowed_are_looked_at_in_several_turns(frame: bytes, monkeypatch: pytest.MonkeyPatch):
    """Where it takes long; all of them count, and the pings among them are answered without the rate."""
    monkeypatch.setattr(wire.incoming, "TURN", -1.0)
    served = Served(0, frame_rate=1000, frame_burst=1)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    peer.feed(build_frame(Opcode.TEXT, b"a", fin=False))
    session = peer.protocol._session
    counted: list[int] = []
    came = session.came
    monkeypatch.setattr(type(session), "came", lambda self, count: (counted.append(count), came(count))[1])
    times = READ // len(frame)
    peer.protocol.dataReceived(frame * times)
    while sum(counted) < times - 40:
        before = len(counted)
        turn(served.clock)
        assert len(counted) > before, "nothing goes on"
    assert max(counted) <= 512 and len(counted) > 20
    peer.settle()
    pongs = sum(item.opcode == Opcode.PONG for item in Reader().feed(peer.written)[1:])
    assert pongs == (times if frame[0] & 15 == Opcode.PING else 0)


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


def ready() -> tuple[Served, Peer]:
    """A server, and a client that was let in."""
    served = Served(0, message_size=65536)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    return served, peer


def results(peer: Peer) -> list[object]:
    peer.written += peer.pipe.getOutBuffer() or b""
    return [item.json["result"] for item in Reader().feed(peer.written)[1:] if item.opcode == Opcode.TEXT]


@pytest.mark.unmeasured
def test_b12_a_turn_ends_by_the_clock():
    """Commands that take long are answered one a turn, whatever came with them, and all of them in order."""
    served, peer = ready()
    account = peer.protocol._connection.account
    answered: list[int] = []

    @served.bifrost.command("dear")
    def dear(horizontal: int) -> int:
        answered.append(horizontal)
        account.spend(0.0, SLICE)
        return horizontal

    peer.protocol.dataReceived(
        b"".join(build_frame(Opcode.TEXT, b'{"zKey":"dear","zHorizontal":%d}' % n) for n in range(9))
    )
    assert answered == [0]
    for _ in range(100):
        before = len(answered)
        turn(served.clock)
        assert len(answered) <= before + 1
    assert answered == results(peer) == list(range(9))
    assert not account.is_spent and peer.protocol._incoming._backlog is None


@pytest.mark.unmeasured
def test_b12_a_user_has_one_slice_on_all_its_connections():
    """What comes on the others waits for the next turn, and nobody else waits for it."""
    served, first = ready()
    second = Peer(served)
    second.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    other = Peer(served)
    other.feed(handshake("127.0.0.1", token=list(IDENTITIES)[1]))
    account = first.protocol._connection.account
    assert second.protocol._connection.account is account is not other.protocol._connection.account
    account.spend(0.0, 2.5 * SLICE)
    ping = build_frame(Opcode.TEXT, b'{"zKey":"ping","zHorizontal":1}')
    for peer in (first, second, other):
        peer.protocol.dataReceived(ping)
    assert [results(peer) for peer in (first, second, other)] == [[], [], [1]]
    turn(served.clock)
    assert results(first) == results(second) == []
    for _ in range(4):
        turn(served.clock)
    assert results(first) == results(second) == [1]


@pytest.mark.unmeasured
def test_b14_who_reads_nothing_is_answered_no_further():
    """Large answers that are ready at once wait to be asked for again, so that no read fills the memory."""
    served, peer = ready()
    answered: list[int] = []

    @served.bifrost.command("large")
    def large(horizontal: int) -> str:
        answered.append(horizontal)
        return "x" * 200_000

    asked = 40
    stream = b"".join(build_frame(Opcode.TEXT, b'{"zKey":"large","zHorizontal":%d}' % n) for n in range(asked))
    peer.protocol.dataReceived(stream)
    for _ in range(100):
        turn(served.clock)
    assert len(answered) <= 4, "the client has taken nothing"
    for _ in range(1000):
        peer.written += peer.pipe.getOutBuffer() or b""
        peer.pipe.producer.resumeProducing()
        turn(served.clock)
    assert answered == list(range(asked)) and len(results(peer)) == asked


@pytest.mark.unmeasured
@pytest.mark.parametrize("is_let_in", [True, False])
def test_who_was_told_goodbye_has_no_more_time_than_others(is_let_in: bool, monkeypatch: pytest.MonkeyPatch):
    """Frames that come instead of a goodbye are passed over for as long as a turn, at the cost of their user, or of all
    together who were not let in; a goodbye behind them is heard."""
    monkeypatch.setattr(wire.incoming, "TURN", -1.0)
    served = Served(0)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES)) if is_let_in else "wrong"))
    if is_let_in:
        account = peer.protocol._connection.account
        peer.feed(build_frame(Opcode.BINARY, b""))
    else:
        account = served.bifrost.factory.state.budgets.outsiders
    protocol = peer.protocol
    assert protocol.is_closing
    busy = account.busy
    protocol.dataReceived(build_frame(Opcode.PING, b"") * 30 + build_frame(Opcode.CLOSE, close_payload(1000)))
    for _ in range(5):
        assert protocol.is_closing and account.busy > busy, "all are looked at in one turn"
        busy = account.busy
        turn(served.clock)
    account.spend(0.0, 2.5 * SLICE)
    left = protocol._incoming._backlog
    turn(served.clock)
    assert protocol._incoming._backlog == left, "its time is over"
    for _ in range(50):
        turn(served.clock)
    assert not protocol.is_closing


@pytest.mark.unmeasured
def test_who_is_slowed_and_reads_nothing_costs_nothing_meanwhile():
    """The server does not look again and again whether there is room; once there is, all is answered."""
    served = Served(0, frame_rate=1000.0, frame_burst=1000.0, message_size=1 << 20)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    incoming = peer.protocol._incoming
    peer.protocol.dataReceived(build_frame(Opcode.TEXT, b'{"zKey":"ping","zHorizontal":1}') * 1500)
    for _ in range(10):
        turn(served.clock)
    assert incoming.is_slowed
    incoming.pause(wire.incoming.OUTPUT)
    served.clock.rightNow += 1.0
    for _ in range(100):
        turn(served.clock)
    assert not [call for call in served.clock.calls if call.time <= served.clock.seconds()], "it looks again"
    incoming.resume(wire.incoming.OUTPUT)
    for _ in range(100):
        served.clock.rightNow += 0.1
        turn(served.clock)
    peer.written += peer.pipe.getOutBuffer() or b""
    assert results(peer) == [1] * 1500 and not incoming.is_slowed


def test_b11_little_is_read_from_who_is_slowed():
    """However large a message may be. One that is larger than what may wait is answered all the same, and a ping behind
    what waits."""
    served = Served(0, frame_rate=1000.0, frame_burst=1000.0, message_size=1 << 20)
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=next(iter(IDENTITIES))))
    incoming = peer.protocol._incoming
    few = build_frame(Opcode.TEXT, b'{"zKey":"ping","zHorizontal":1}') * 1500
    large = build_frame(Opcode.TEXT, b'{"zKey":"ping","zHorizontal":1,"x":"%s"}' % (b"x" * 1_000_000))
    stream, taken, most = few + large + few + build_frame(Opcode.PING, b"p"), 0, 0
    for _ in range(10_000):
        if not peer.pipe.paused and taken < len(stream):
            peer.protocol.dataReceived(stream[taken : taken + 65536])
            taken += 65536
        if incoming.is_slowed and incoming._backlog is not None:
            most = max(most, len(incoming._backlog[1]))
        served.clock.rightNow += 0.01
        turn(served.clock)
        peer.written += peer.pipe.getOutBuffer() or b""
        if taken >= len(stream) and not incoming.is_slowed:
            break
    for _ in range(200):
        # On a busy machine the large one has taken its user's time of the next turns.
        served.clock.rightNow += 0.01
        turn(served.clock)
        peer.written += peer.pipe.getOutBuffer() or b""
    told = Reader().feed(peer.written)[1:]
    assert [item.json["result"] for item in told if item.opcode == Opcode.TEXT] == [1] * 3001
    assert [item.payload for item in told if item.opcode == Opcode.PONG] == [b"p"]
    assert 0 < most < wire.incoming.WAITING + 65536


@pytest.mark.unmeasured
def test_b11_tiny_messages_that_take_long_to_read_have_their_price():
    """A turn takes as few of them as of large ones, whether they are requests or none."""
    for rest in (b'"zHorizontal":[%b]', b'"_requestId":[%b]'):
        served, peer = ready()
        message = b'{"zKey":"ping",' + rest % b",".join([b"1e300"] * 35) + b"}"
        assert len(message) <= 256
        peer.protocol.dataReceived(build_frame(Opcode.TEXT, message) * 200)
        told = peer.written + (peer.pipe.getOutBuffer() or b"")
        assert 1 <= len(Reader().feed(told)[1:]) <= 5


@pytest.mark.unmeasured
@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 2**32))
def test_large_messages_of_the_long_way_have_a_turn_of_their_own(kinds: list[int], seed: int):
    """What comes behind one waits with it, wherever it is cut: all is answered once, in order, the goodbye at last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.incoming, "LARGE", 1000)
        served, peer = ready()
        random, frames = Random(seed), []
        for number, kind in enumerate(kinds):
            payload = b'{"zKey":"ping","zHorizontal":%d,"x":"%s"}' % (number, b"x" * random.choice((0, 999, 5000)))
            if kind < 2:
                frames.append(build_frame(Opcode.TEXT, payload))
            elif kind < 4:
                cut = random.randrange(len(payload))
                frames.append(build_frame(Opcode.TEXT, payload[:cut], fin=False))
                frames.append(build_frame(Opcode.CONTINUATION, payload[cut:]))
            else:
                frames.append(build_frame(Opcode.PING, b"%d" % number))
        data = b"".join((*frames, build_frame(Opcode.CLOSE, close_payload(1000))))
        while data:
            size = random.choice((1, 100, 4000, len(data)))
            peer.protocol.dataReceived(data[:size])
            data = data[size:]
            if random.random() < 0.5:
                turn(served.clock)
        for _ in range(100):
            turn(served.clock)
        peer.written += peer.pipe.getOutBuffer() or b""
        told = Reader().feed(peer.written)[1:]
    answers = [item.json["result"] if item.opcode == Opcode.TEXT else int(item.payload) for item in told[:-1]]
    assert answers == list(range(len(kinds)))
    assert told[-1].opcode == Opcode.CLOSE


@pytest.mark.unmeasured
def test_nothing_is_read_from_who_is_away():
    """The reactor does not ask again and again; what was sent meanwhile is answered when it is back."""
    served, peer = ready()
    account, incoming = peer.protocol._connection.account, peer.protocol._incoming
    served.bifrost.factory.state.budgets.askers.ask("somebody else")
    account.spend(0.0, 1.0)
    turn(served.clock)
    assert account.is_away
    assert incoming.read() is None and incoming.is_paused_for(wire.incoming.AWAY)
    peer.protocol.dataReceived(build_frame(Opcode.TEXT, b'{"zKey":"ping","zHorizontal":1}'))
    served.clock.advance(AWAY - 0.01)
    assert incoming.is_paused_for(wire.incoming.AWAY) and results(peer) == []
    served.clock.advance(0.02)
    assert not incoming.is_paused_for(wire.incoming.AWAY)
    for _ in range(200):
        served.clock.advance(0.001)
    assert results(peer) == [1]
