"""Guarantee 16: what the messages and commands of one user take that are not whole, wait, or are not answered yet."""

from __future__ import annotations

from random import Random

import pytest
from support.fuzz_connection import IDENTITIES, Peer, Served
from support.rawclient import Opcode, Reader, build_frame, handshake
from twisted.internet.defer import Deferred

from zcomm.budget.account import CONNECTIONS_IN_FLIGHT, Account
from zcomm.wire import incoming

KIB = 1024


def admitted(served: Served, name: int = 0) -> Peer:
    """A client that was let in."""
    peer = Peer(served)
    peer.feed(handshake("127.0.0.1", token=list(IDENTITIES)[name]))
    return peer


def account_of(peer: Peer) -> Account:
    return peer.protocol._connection.account


def told(peer: Peer) -> list[object]:
    """What came since the handshake: results, error codes, and the reason of a goodbye."""
    peer.written += peer.pipe.getOutBuffer() or b""
    found: list[object] = []
    for item in Reader().feed(peer.written)[1:]:
        if item.opcode == Opcode.CLOSE:
            found.append((int.from_bytes(item.payload[:2], "big"), item.payload[2:].decode()))
        elif item.opcode == Opcode.TEXT:
            found.append(item.json.get("code", item.json.get("result")))
    return found


def pass_time(peer: Peer) -> None:
    """Let some turns go by: on a busy machine its user may have had its time of the first."""
    for _ in range(200):
        peer.served.clock.advance(0.001)


def fragment(size: int) -> bytes:
    return build_frame(Opcode.TEXT, b" " * size, fin=False)


def more(size: int) -> bytes:
    return build_frame(Opcode.CONTINUATION, b" " * size, fin=False)


def waits(peer: Peer) -> bool:
    """Whether nothing more of its message is read."""
    return peer.protocol._incoming.is_paused_for(incoming.CROWD)


def finish(number: int) -> bytes:
    return build_frame(Opcode.CONTINUATION, b'{"zKey":"ping","zHorizontal":%d}' % number)


def test_messages_that_are_not_whole_have_a_bound_by_user():
    """Beyond it one is read to its end, so that it gets done; the others wait for that, and nobody else does."""
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(3)]
    other = admitted(served, 1)
    account = account_of(peers[0])
    assert account.may_arrive == 16 * KIB * KIB
    account.may_arrive = 100 * KIB
    for peer in (*peers[:2], other):
        peer.protocol.dataReceived(fragment(40 * KIB))
        pass_time(peer)
    assert account.arriving == 80 * KIB and account_of(other).arriving == 40 * KIB
    peers[2].protocol.dataReceived(fragment(40 * KIB))
    pass_time(peers[2])
    for peer in (*peers[:2], other):
        peer.protocol.dataReceived(more(KIB))
        pass_time(peer)
    assert [waits(peer) for peer in (*peers, other)] == [True, True, False, False]
    peers[2].protocol.dataReceived(finish(2))
    pass_time(peers[2])
    assert not any(map(waits, peers))
    peers[0].pipe.lost()
    for number, peer in ((1, peers[1]), (3, other)):
        peer.protocol.dataReceived(finish(number))
        pass_time(peer)
        assert told(peer) == [number]
    assert told(peers[2]) == [2] and told(peers[0]) == []
    assert account.arriving == account_of(other).arriving == 0


def test_who_sends_one_message_behind_the_other_is_read_to_the_end_of_one():
    """The beginning of its next one comes with that end, and waits behind those who waited before."""
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(3)]
    account_of(peers[0]).may_arrive = 100 * KIB
    for peer in peers:
        peer.protocol.dataReceived(fragment(36 * KIB))
        pass_time(peer)
    for peer in peers[:2]:
        peer.protocol.dataReceived(more(KIB))
        pass_time(peer)
    assert [waits(peer) for peer in peers] == [True, True, False]
    for last, first, second in ((2, 0, 1), (0, 1, 2), (1, 2, 0)):
        peers[last].protocol.dataReceived(finish(last) + fragment(36 * KIB))
        pass_time(peers[last])
        assert told(peers[last]) == [last]
        assert waits(peers[last]) and not waits(peers[first]) and waits(peers[second])


@pytest.mark.parametrize("how", ["takes nothing", "says nothing"])
def test_who_is_read_to_its_end_gives_way_where_none_comes(how: str):
    """Whether it takes no answers or says nothing further, and to one of those that take theirs."""
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(5)]
    account_of(peers[0]).may_arrive = 100 * KIB
    for peer in peers:
        peer.protocol.dataReceived(fragment(30 * KIB))
        pass_time(peer)
    for peer in peers[:3]:
        peer.protocol.dataReceived(more(KIB))
        pass_time(peer)
    assert [waits(peer) for peer in peers] == [True, True, True, False, True]
    peers[4].protocol._incoming.pause(incoming.OUTPUT)
    if how == "takes nothing":
        peers[3].protocol._incoming.pause(incoming.OUTPUT)
    else:
        peers[3].protocol.tick()
    assert [waits(peer) for peer in peers] == [False, True, True, False, False]
    assert account_of(peers[0]).finishing is peers[0].protocol._incoming


@pytest.mark.parametrize("seed", range(12))
def test_whoever_waits_for_room_waits_for_somebody_who_is_read_from(seed: int):
    """Whatever comes in which order: clients that take nothing, leave, are told goodbye or pinged in the middle."""
    random = Random(seed)
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(6)]
    account = account_of(peers[0])
    account.may_arrive = 100 * KIB
    begun: set[Peer] = set()

    def check() -> None:
        there = [peer.protocol._incoming for peer in peers if peer.protocol._incoming._transport is not None]
        crowd = {each for each in there if each.is_paused_for(incoming.CROWD)}
        assert set(account._crowd) == crowd
        first = account.finishing
        assert first is not None or not crowd
        assert first is None or (first in there and not first._pauses & (incoming.CROWD | incoming.OUTPUT))
        assert sum(each._held for each in there) == account.arriving

    def data(peer: Peer) -> bytes:
        if peer not in begun:
            if random.random() < 0.2:
                return build_frame(Opcode.TEXT, b'{"zKey":"ping","zHorizontal":1}')
            begun.add(peer)
            return fragment(random.choice((1, 3, 5, 20, 36)) * KIB)
        if random.random() < 0.4:
            begun.remove(peer)
            return finish(1)
        return more(random.choice((100, KIB, 5 * KIB)))

    for _ in range(200):
        peer, act = random.choice(peers), random.random()
        reading = peer.protocol._incoming
        if reading._transport is None or peer.protocol.state != peer.protocol.STATE_OPEN:
            if reading._transport is not None:
                peer.pipe.lost()
            peers[peers.index(peer)] = admitted(served)
        elif act < 0.85:
            if not reading._pauses:
                peer.protocol.dataReceived(b"".join(data(peer) for _ in range(random.randint(1, 3))))
        elif act < 0.88:
            peer.pipe.lost()
        elif act < 0.91:
            peer.protocol.close(1000)
        elif act < 0.94:
            peer.protocol.tick()
        elif act < 0.97:
            reading.pause(incoming.OUTPUT)
        else:
            reading.resume(incoming.OUTPUT)
        check()
        pass_time(peer)
        check()
    for peer in peers:
        if peer.protocol._incoming._transport is not None:
            peer.pipe.lost()
    assert not account.arriving and not account._crowd and account.finishing is None


@pytest.mark.parametrize("end", ["lost", "goodbye"])
def test_who_waits_for_a_message_that_is_never_whole_goes_on_when_its_client_is_gone(end: str):
    """However it goes; one whose turn has not come for two pings is told to come back."""
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(4)]
    account = account_of(peers[0])
    account.may_arrive = 100 * KIB
    for peer in peers:
        peer.protocol.dataReceived(fragment(36 * KIB))
        pass_time(peer)
    assert [waits(peer) for peer in peers] == [False, False, False, True]
    peers[1].protocol.dataReceived(more(KIB))
    pass_time(peers[1])
    assert [waits(peer) for peer in peers] == [False, True, False, True]
    peers[3].protocol.tick()
    peers[3].protocol.tick()
    assert told(peers[3]) == [(1013, "Too many unfinished messages")] and waits(peers[1])
    if end == "lost":
        peers[2].pipe.lost()
    else:
        peers[2].protocol.close(1000)
    assert not waits(peers[1]) and account.finishing is peers[1].protocol._incoming
    peers[1].protocol.dataReceived(finish(1))
    pass_time(peers[1])
    assert told(peers[1]) == [1] and account.finishing is None


def test_few_bytes_are_taken_whatever_else_waits():
    """A short message in fragments does not end its connection because of others."""
    served = Served(0, message_size=64 * KIB)
    large, small = admitted(served), admitted(served)
    account_of(large).may_arrive = 50 * KIB
    large.protocol.dataReceived(fragment(50 * KIB))
    pass_time(large)
    small.protocol.dataReceived(fragment(100))
    small.protocol.dataReceived(finish(7))
    pass_time(small)
    assert told(small) == [7] and told(large) == []


def test_a_whole_message_that_waits_for_its_turn_is_counted(monkeypatch: pytest.MonkeyPatch):
    """As it was while it was not whole: who takes no answers could keep many of them waiting."""
    monkeypatch.setattr(incoming, "LARGE", 1000)
    served = Served(0, message_size=64 * KIB)
    peer = admitted(served)
    peer.protocol.dataReceived(fragment(40 * KIB) + finish(1) + build_frame(Opcode.PING, b""))
    assert account_of(peer).arriving > 40 * KIB
    pass_time(peer)
    assert told(peer)[0] == 1 and account_of(peer).arriving == 0


def test_messages_behind_answers_that_nobody_takes_have_a_bound(monkeypatch: pytest.MonkeyPatch):
    """Many tiny ones come with one read, each an object; who takes no answers would keep them as long as it likes."""
    # As many are answered at once on a busy machine as on another.
    monkeypatch.setattr("zcomm.bifrost.connection.TURN", 60.0)
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(3)]
    account = account_of(peers[0])
    account.may_arrive, account.due = 60 * KIB, float("inf")
    for peer in peers:
        # As when its transport says that it has enough, while the first messages are answered.
        peer.protocol.dataReceived(build_frame(Opcode.TEXT, b"{}") * 1000)
        peer.protocol.output_blocked()
        pass_time(peer)
    assert told(peers[2])[-1] == (1013, "Too many unfinished messages")
    assert 0 < account.arriving <= 2 * account.may_arrive
    for peer in peers[:2]:
        for _ in range(5):
            # It takes what it was sent.
            told(peer)
            peer.protocol.outgoing.resumeProducing()
            pass_time(peer)
        assert told(peer) == ["bad_message"] * 1000
    assert account.arriving == 0


def test_a_whole_message_does_not_wait_where_too_many_do(monkeypatch: pytest.MonkeyPatch):
    """It may come out of few bytes, which nobody could have counted before: then it is answered at once."""
    monkeypatch.setattr(incoming, "LARGE", 1000)
    served = Served(0, message_size=64 * KIB)
    peers = [admitted(served) for _ in range(3)]
    account = account_of(peers[0])
    account.may_arrive, account.due = 50 * KIB, float("inf")
    whole = fragment(40 * KIB) + finish(1)
    for peer in peers:
        peer.protocol.dataReceived(whole)
    waiting = account.arriving
    assert [told(peer) for peer in peers] == [[], [], [1]] and 80 * KIB <= waiting < 90 * KIB
    for peer in peers[:2]:
        pass_time(peer)
        assert told(peer) == [1]
    assert account.arriving == 0


def test_a_slowed_client_with_far_too_much_that_is_not_whole_is_told_to_come_back():
    """What has been read of its message would be kept for as long as it takes no answers."""
    served = Served(0, message_size=64 * KIB, frame_rate=50, frame_burst=20)
    peer = admitted(served)
    account = account_of(peer)
    account.may_arrive, account.due = 15 * KIB, float("inf")
    peer.protocol.dataReceived(fragment(40 * KIB) + build_frame(Opcode.CONTINUATION, b" ", fin=False) * 40)
    assert told(peer) == [(1013, "Too many unfinished messages")] and account.arriving == 0


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_arrive_are_counted_as_long_as_they_are_there(seed: int):
    """However messages are cut, slowed, finished or left: never less than nothing, and nothing in the end."""
    random = Random(seed)
    served = Served(0, message_size=64 * KIB, frame_rate=50, frame_burst=20)
    peers = [admitted(served) for _ in range(4)]
    account = account_of(peers[0])
    account.may_arrive = random.choice((60 * KIB, 1 << 30))
    for _ in range(60):
        peer = random.choice(peers)
        if peer.protocol._connection is None:
            continue
        kind = random.randrange(6)
        if kind == 0:
            peer.protocol.dataReceived(fragment(random.randrange(30 * KIB)) + finish(1))
        elif kind == 1:
            data = build_frame(Opcode.TEXT, b'{"zKey":"ping"}') * random.randrange(300)
            peer.protocol.dataReceived(data)
        elif kind == 2:
            peer.protocol.dataReceived(fragment(random.randrange(30 * KIB)))
            peer.protocol.dataReceived(build_frame(Opcode.PING, b""))
            if random.random() < 0.5:
                peer.protocol.dataReceived(finish(2))
            else:
                peer.pipe.lost()
        elif kind == 3:
            served.clock.advance(random.random())
        elif kind == 4:
            peer.protocol.dataReceived(build_frame(Opcode.TEXT, b"{}" * random.randrange(20 * KIB)))
        assert account.arriving >= 0
    for peer in peers:
        peer.pipe.lost()
    served.clock.advance(0.2)
    assert account.arriving == 0 and account.finishing is None


def test_commands_in_flight_have_a_bound_by_user():
    """Beyond it each is refused, on every connection of that user alone; what is answered makes room."""
    served = Served(0, in_flight=2)
    held: list[Deferred[int]] = []

    @served.bifrost.command("held")
    def hold(horizontal: object) -> Deferred[int]:
        held.append(Deferred())
        return held[-1]

    peers = [admitted(served) for _ in range(CONNECTIONS_IN_FLIGHT + 1)]
    last, other = peers[-1], admitted(served, 1)
    account = account_of(last)
    ask = build_frame(Opcode.TEXT, b'{"zKey":"held"}')

    def say(peer: Peer, data: bytes) -> None:
        # On a busy machine its user may have to wait for some turns, or be away for a while.
        peer.protocol.dataReceived(data)
        for _ in range(400):
            served.clock.advance(0)
            if peer.protocol._incoming._backlog is None:
                return
            served.clock.advance(0.001)
        pytest.fail("its turn has not come")

    for peer in peers[:-1]:
        say(peer, ask * 2)
    assert account.running == account.may_run == len(held) == 2 * CONNECTIONS_IN_FLIGHT
    say(last, ask)
    say(other, ask)
    (refused,) = Reader().feed(last.written + (last.pipe.getOutBuffer() or b""))[1:]
    assert refused.json["code"] == "too_busy" and refused.json["retryable"]
    assert refused.json["error"] == "Too many requests in flight on all your connections: at most 64; try again"
    assert account.refused == 1 and len(held) == 2 * CONNECTIONS_IN_FLIGHT + 1
    for waiting in held:
        waiting.callback(1)
    assert told(other) == [1] and account.running == 0
    say(last, ask)
    peers[0].pipe.lost()
    assert account.running == 1
    last.pipe.lost()
    assert account.running == 0


def test_a_timer_that_has_fired_keeps_no_connection_from_being_freed():
    """One that cut off who never answered a goodbye has a function of that connection, which would keep it in turn."""
    served = Served(0)
    peer = admitted(served)
    peer.protocol.close(1000)
    timer = peer.protocol._timer
    served.clock.advance(5)
    peer.pipe.lost()
    assert timer.called and peer.protocol._timer is None
