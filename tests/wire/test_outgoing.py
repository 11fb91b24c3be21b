"""What waits for one client."""

from __future__ import annotations

import tracemalloc
from functools import partial
from typing import Any

from twisted.internet.task import Clock

from zcomm.bifrost.session import Session
from zcomm.budget.account import Turns
from zcomm.budget.budgets import Budgets
from zcomm.config import Limits
from zcomm.wire.closecodes import Ending
from zcomm.wire.frames import frames
from zcomm.wire.outgoing import PIECE, Outgoing
from zcomm.wire.writebatch import WriteBatch


class Transport:
    """Takes what it is given, and says when it is enough: a transport without a socket, as over TLS."""

    def __init__(self):
        self.taken: list[bytes] = []
        self.producer: Any = None
        self.room = 10**9

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer = producer

    def write(self, data: bytes) -> None:
        self.taken.append(data)
        self.room -= len(data)
        if self.room <= 0:
            self.producer.pauseProducing()

    def drain(self, room: int = 10**9) -> None:
        self.room = room
        self.producer.resumeProducing()


class Watch:
    """A connection that notes what its outgoing side tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.clock = Clock()
        self.transport = Transport()
        session = Session(Limits(queue_size=1024, stall_timeout=10.0), self.clock.seconds)
        budgets = Budgets(Limits(), Turns(self.clock.seconds, lambda call: call(), self.clock.callLater))
        self.account = budgets.join("alice")
        session.charges(budgets.memory, self.account)
        batch = WriteBatch(partial(self.clock.callLater, 0))
        self.outgoing = Outgoing(self, self.transport, session, self.clock, batch)

    def output_blocked(self) -> None:
        self.told.append("blocked")

    def output_drained(self) -> None:
        self.told.append("drained")

    def obey(self, ending: Ending) -> None:
        self.told.append(ending.cause)


def test_what_is_taken_does_not_wait():
    """It goes straight on, and no descriptor is written to past the transport."""
    watch = Watch()
    watch.outgoing.send_frames(b"a" * 500)
    assert watch.transport.taken == [b"a" * 500] and watch.outgoing.queued == 0 and watch.told == []
    assert watch.outgoing.fd == -1


def test_what_is_not_taken_waits_in_order():
    """And goes on as soon as there is room, as far as there is."""
    watch = Watch()
    watch.transport.room = 1
    watch.outgoing.send_frames(b"1")
    for data in (b"2", b"3", b"4"):
        watch.outgoing.send_frames(data)
    assert watch.told == ["blocked"] and watch.outgoing.queued == 3 and watch.transport.taken == [b"1"]
    watch.transport.drain(room=2)
    assert watch.transport.taken == [b"1", b"2", b"3"] and watch.outgoing.queued == 1
    watch.transport.drain()
    assert watch.transport.taken[-1] == b"4" and watch.told[-1] == "drained" and watch.outgoing.queued == 0


def test_more_than_the_limit_is_given_up():
    """Once; what waited is forgotten, and nothing more is kept."""
    watch = Watch()
    watch.transport.room = 1
    watch.outgoing.send_frames(b"x")
    watch.outgoing.send_frames(b"a" * 600)
    watch.outgoing.send_frames(b"b" * 424)
    assert "slow_consumer" not in watch.told
    watch.outgoing.send_frames(b"c")
    assert watch.told.count("slow_consumer") == 1 and watch.outgoing.queued == 0
    watch.outgoing.send_frames(b"goodbye")
    assert watch.transport.taken == [b"x", b"goodbye"]


def test_one_large_message_may_wait_alone():
    """A reply may be larger than the queue; a second one is too much."""
    watch = Watch()
    watch.transport.room = 1
    watch.outgoing.send_frames(b"x")
    watch.outgoing.send_frames(b"a" * 5000)
    assert "slow_consumer" not in watch.told
    watch.outgoing.send_frames(b"b")
    assert watch.told.count("slow_consumer") == 1


def test_contact_answers_wait_beside_the_limit():
    """In order with the rest, however many; they leave the whole limit to what nobody asked for."""
    watch = Watch()
    watch.transport.room = 1
    outgoing = watch.outgoing
    outgoing.send_frames(b"x")
    outgoing.reply([b"a" * 5000])
    outgoing.send_frames(b"b" * 1024)
    outgoing.reply([b"c" * 5000, b"d" * 5000])
    assert "slow_consumer" not in watch.told
    assert outgoing.owed > 15_000 and outgoing.queued == outgoing.owed + 1024
    watch.transport.drain(room=1)
    assert outgoing.owed > 10_000 and outgoing.queued == outgoing.owed + 1024
    watch.transport.drain()
    assert [data[-1:] for data in watch.transport.taken] == [b"x", b"a", b"b", b"d"]
    assert outgoing.queued == outgoing.owed == 0
    watch.transport.room = 1
    outgoing.send_frames(b"x")
    outgoing.reply([b"a" * 5000])
    outgoing.send_frames(b"b" * 1024)
    outgoing.send_frames(b"b")
    assert watch.told.count("slow_consumer") == 1 and outgoing.queued == outgoing.owed == 0


def test_who_takes_nothing_is_dropped():
    """When the stall timeout is over; not before, and not once it has taken everything."""
    watch = Watch()
    watch.transport.room = 1
    watch.outgoing.send_frames(b"x")
    watch.clock.pump([0.25] * 39)
    watch.transport.drain(room=1)
    watch.clock.pump([0.25] * 400)
    assert "stalled" not in watch.told
    watch.outgoing.send_frames(b"y")
    watch.clock.pump([0.25] * 39)
    assert "stalled" not in watch.told
    watch.clock.advance(0.25)
    assert watch.told[-1] == "stalled"


def test_nothing_is_told_once_it_is_released():
    """The connection is gone, and so is whoever would listen."""
    watch = Watch()
    watch.transport.room = 1
    watch.outgoing.send_frames(b"x")
    watch.outgoing.send_frames(b"y")
    watch.outgoing.release()
    told = list(watch.told)
    watch.outgoing.pauseProducing()
    watch.outgoing.resumeProducing()
    watch.outgoing.stopProducing()
    assert watch.told == told and watch.outgoing.queued == 0


def test_b14_an_answer_leaves_in_pieces():
    """The transport, which keeps what it has until the last byte of it is sent, gets a piece when it is empty; so that
    what has left is kept nowhere."""
    watch = Watch()
    outgoing = watch.outgoing
    outgoing.reply([b"x" * 1_000_000])
    whole = b"".join(watch.transport.taken)
    assert len(whole) > 1_000_000 and outgoing.queued == outgoing.owed == 0
    watch.transport.taken.clear()
    watch.transport.room = 1
    outgoing.reply([b"x" * 1_000_000])
    owed = [outgoing.owed]
    while outgoing.owed:
        watch.transport.drain(room=1)
        owed.append(outgoing.owed)
    assert owed == [*range(len(whole) - PIECE, 0, -PIECE), 0]
    assert b"".join(watch.transport.taken) == whole and outgoing.queued == 0
    assert max(len(piece) for piece in watch.transport.taken) == PIECE


def test_b14_what_is_owed_is_told_as_it_is():
    """As it waits, as it leaves, and when the connection is gone: nothing stays behind."""
    for end in ("drained", "discarded", "released"):
        watch = Watch()
        outgoing = watch.outgoing
        watch.transport.room = 1
        outgoing.send_frames(b"x")
        outgoing.reply([b"a" * 5000])
        outgoing.reply([b"b" * 500])
        outgoing.send_frames(b"c" * 100)
        assert watch.account.held == outgoing.owed > 5500
        watch.transport.drain(room=1)
        assert 500 < watch.account.held == outgoing.owed < 600
        if end == "drained":
            watch.transport.drain()
        elif end == "discarded":
            outgoing.discard()
            outgoing.send_frames(b"goodbye")
        else:
            outgoing.release()
        assert watch.account.held == outgoing.owed == outgoing.queued == 0


def test_b14_a_large_answer_is_counted_at_once():
    """Not at the end of the turn, before which room is given to others."""
    watch = Watch()
    watch.transport.room = 1
    watch.outgoing.reply_at_once([b"a" * 500_000])
    assert watch.account.held == watch.outgoing.owed == 500_000 + 10 - PIECE


def test_a_large_answer_leaves_in_pieces_that_are_copied_once():
    """As one frame, behind what was there before; it is never there as a whole a second time."""
    watch = Watch()
    payload = bytes(range(256)) * 4096 * 3
    tracemalloc.start()
    try:
        watch.outgoing.reply([payload])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    taken = watch.transport.taken
    assert b"".join(taken) == frames([payload]) and max(map(len, taken)) <= PIECE
    assert peak < len(payload) * 1.5
    assert watch.account.held == watch.outgoing.queued == 0
    watch.transport.room = 1
    watch.outgoing.send_frames(b"before")
    watch.outgoing.reply([payload])
    assert watch.account.held == watch.outgoing.queued == len(frames([payload]))
    watch.transport.taken.clear()
    watch.transport.drain()
    assert b"".join(watch.transport.taken) == frames([payload]) and watch.account.held == 0
