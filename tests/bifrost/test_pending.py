"""Places for handshakes and the lines of those that wait for one."""

from __future__ import annotations

from random import Random

import pytest
from support.rows import rows_of_a_test
from twisted.internet.task import Clock

from zcomm.bifrost import pending
from zcomm.bifrost.pending import LOOK, LOOKS_FOR_A_RESPONSE, WAITING, HandshakeState, Outsiders, PendingHandshakes
from zcomm.config import Limits

READING, DECIDING, RESPONDED = HandshakeState.READING, HandshakeState.DECIDING, HandshakeState.RESPONDED


class Visitor:
    """Notes what becomes of it."""

    def __init__(self, peer: str):
        self.peer = peer
        self.fate = ""
        self.seconds = 0.0
        self.progress: HandshakeState | None = None
        self.turns = 0

    def begin(self, seconds: float) -> None:
        if self.progress is None:
            self.progress, self.seconds = READING, seconds
        self.fate = "inside"
        self.turns += 1

    def wait(self) -> None:
        self.fate = "waiting"

    def drop(self, why: str) -> None:
        self.fate = why


def places(pending: int = 4, per_peer: int = 2) -> tuple[PendingHandshakes, Clock]:
    clock = Clock()
    return PendingHandshakes(Limits(pending=pending, pending_per_peer=per_peer, handshake_timeout=5.0), clock), clock


def come(door: PendingHandshakes, *peers: str) -> list[Visitor]:
    visitors = [Visitor(peer) for peer in peers]
    for visitor in visitors:
        door.arrive(visitor)
    return visitors


def test_contact_whose_address_has_the_most_makes_way():
    """Many of one address take nobody else's place, whoever comes in what order; and nobody makes way for himself."""
    chance = Random(4)
    outsiders: Outsiders[Visitor] = Outsiders()
    alone = Visitor("127.0.0.9")
    outsiders.add(alone, alone.peer)
    assert outsiders.take(alone) is alone and len(outsiders) == 0
    crowd = [Visitor("2001:db8::1" if chance.random() < 0.5 else "2001:db8::2") for _ in range(100)]
    few = [Visitor(f"127.0.0.{number}") for number in range(3)]
    for visitor in (*crowd, *few):
        outsiders.add(visitor, visitor.peer)
    outsiders.remove(crowd[0])
    outsiders.remove(crowd[0])
    gone = []
    for number in range(200):
        newcomer = Visitor("2001:db8::3" if number % 3 else "127.0.1.1")
        outsiders.add(newcomer, newcomer.peer)
        gone.append(outsiders.take(newcomer))
        assert len(outsiders) == 102 and gone[-1] is not newcomer
        if not number % 3:
            # It is let in.
            outsiders.remove(newcomer)
            outsiders.add(Visitor("2001:db8::4"), "2001:db8::4")
    assert not set(few) & set(gone)


def test_a_share_for_each_peer():
    """The third of one waits, the first of another does not."""
    door, _ = places()
    visitors = come(door, "a", "a", "a", "b")
    assert [visitor.fate for visitor in visitors] == ["inside", "inside", "waiting", "inside"]
    assert (door.count, door.waiting) == (3, 1)


def test_a_place_that_is_free_is_given_on():
    """With the time that is left, and peers in turn."""
    door, clock = places()
    first = come(door, "a", "a", "b", "b")
    waiting = come(door, "a", "b")
    clock.advance(2.0)
    door.leave(first[3])
    assert [visitor.fate for visitor in waiting] == ["waiting", "inside"]
    assert waiting[1].seconds == 3.0
    door.leave(first[0])
    assert waiting[0].fate == "inside" and door.waiting == 0


def test_who_waits_too_long_is_dropped():
    """The time of a handshake includes the waiting."""
    door, clock = places()
    come(door, "a", "a")
    (waiting,) = come(door, "a")
    clock.advance(5.1)
    assert waiting.fate == "pending_limit"


def test_who_leaves_the_line_is_not_called():
    """Leaving is harmless anywhere, any number of times."""
    door, clock = places()
    first = come(door, "a", "a")
    gone, next_one = come(door, "a", "a")
    door.leave(gone)
    door.leave(gone)
    door.leave(first[0])
    assert next_one.fate == "inside" and gone.fate == "waiting"
    for visitor in (*first, next_one):
        door.leave(visitor)
    assert (door.count, door.waiting) == (0, 0) and clock.getDelayedCalls() == []


def test_a_line_has_an_end():
    """Beyond it one by lot is dropped for the newcomer; lines of others stay, also when all of them are full."""
    door, _ = places(pending=4, per_peer=2)
    first = come(door, *["a"] * (2 + 2 * WAITING))
    alone = come(door, "b", "b", "b")[2]
    assert door.waiting == 2 * WAITING + 1
    # As many as wait: that none of the first is left in the line has a chance of one in a million.
    later = come(door, *["a"] * 2 * WAITING)
    fates = [visitor.fate for visitor in (*first, *later)]
    assert (fates.count("inside"), fates.count("waiting"), fates.count("pending_limit")) == (
        2,
        2 * WAITING,
        2 * WAITING,
    )
    assert later[-1].fate == "waiting" and {"waiting", "pending_limit"} < {visitor.fate for visitor in first}
    come(door, *["c"] * 2 * WAITING, *["d"] * 1000)
    assert door.waiting == 4 * WAITING and alone.fate == "waiting"


def test_contact_who_says_nothing_gives_its_place_up_to_those_who_wait():
    """Not where nobody waits, nor one that is being decided about; and it is not dropped, its turn comes again."""
    door, clock = places()
    silent, decided = come(door, "a", "a")
    decided.progress = DECIDING
    clock.pump([LOOK] * 20)
    assert silent.fate == "inside" and clock.getDelayedCalls() == []
    (waiting,) = come(door, "a")
    clock.pump([LOOK] * 2)
    assert (silent.fate, waiting.fate, decided.fate, decided.turns) == ("waiting", "inside", "inside", 1)
    clock.pump([LOOK] * 2)
    assert (silent.fate, silent.turns, waiting.fate) == ("inside", 2, "waiting")
    door.leave(silent)
    assert waiting.fate == "inside"
    clock.pump([LOOK] * 20)
    assert (waiting.turns, clock.getDelayedCalls()) == (2, [])


def test_contact_who_takes_no_response_gives_its_place_up_too():
    """After two seconds in which others waited for it, for good: what it was sent is not kept for longer."""
    door, clock = places()
    for visitor in (stalled := come(door, "a", "a")):
        visitor.progress = RESPONDED
    come(door, "a")
    clock.pump([LOOK] * LOOKS_FOR_A_RESPONSE)
    assert [visitor.fate for visitor in stalled] == ["inside"] * 2
    clock.advance(LOOK)
    assert [visitor.fate for visitor in stalled] == ["http_stalled"] * 2


@pytest.mark.parametrize("silent", [1, 34, 600])
def test_contact_whoever_waits_is_read_from_in_time(silent: int, monkeypatch: pytest.MonkeyPatch):
    """However many of its address say nothing: within two turns of each place for everybody in the longest line."""
    monkeypatch.setattr(pending, "randbelow", Random(10).randrange)
    clock = Clock()
    door = PendingHandshakes(Limits(), clock)
    come(door, *["a"] * silent)
    (honest,) = come(door, "a")
    steps = 0
    while honest.fate != "inside":
        clock.advance(LOOK)
        steps += 1
    assert steps * LOOK <= 4 * WAITING * LOOK < Limits().handshake_timeout


def test_contact_a_flood_keeps_nobody_out_for_certain(monkeypatch: pytest.MonkeyPatch):
    """Thirty new ones a second for each place, and a line that is always full: who comes back is read from."""
    monkeypatch.setattr(pending, "randbelow", Random(10).randrange)
    door, clock = places()
    come(door, *["a"] * 40)
    tries = []
    for _ in range(20):
        honest, needed = Visitor("a"), 0
        while honest.fate != "inside":
            if honest.fate != "waiting":
                honest = Visitor("a")
                door.arrive(honest)
                needed += 1
            come(door, *["a"] * round(2 * 30 * LOOK))
            clock.advance(LOOK)
        door.leave(honest)
        tries.append(needed)
    assert max(tries) <= 20 and sum(tries) / len(tries) < 6


def test_contact_places_by_a_model(monkeypatch: pytest.MonkeyPatch):
    """Whatever comes in whatever order: bounds hold, nobody is forgotten, nobody waits for a place that is free."""
    with rows_of_a_test() as row:
        for seed in range(25):
            with row(f"seed {seed}"):
                random = Random(seed)
                monkeypatch.setattr(pending, "randbelow", random.randrange)
                door, clock = places(per_peer=random.choice((1, 2, 4)))
                most = door._limits.pending_per_peer
                there: list[Visitor] = []
                for _ in range(random.choice((50, 150))):
                    match random.randrange(5):
                        case 0 | 1:
                            there += come(door, *[random.choice(("a", "a", "a", "b", "c", ""))] * random.choice((1, 9)))
                        case 2 if there:
                            door.leave(there.pop(random.randrange(len(there))))
                        case 3:
                            for visitor in there:
                                if visitor.fate == "inside" and random.random() < 0.3:
                                    visitor.progress = random.choice((READING, DECIDING, RESPONDED))
                        case _:
                            clock.advance(random.choice((0.01, LOOK, 0.3)))
                    for visitor in [one for one in there if one.fate not in ("inside", "waiting")]:
                        there.remove(visitor)
                        door.leave(visitor)
                    inside = [visitor.peer for visitor in there if visitor.fate == "inside"]
                    waiting = [visitor.peer for visitor in there if visitor.fate == "waiting"]
                    assert (len(inside), len(waiting)) == (door.count, door.waiting)
                    assert len(inside) <= 4 and len(waiting) <= 4 * WAITING
                    for peer in "abc":
                        assert inside.count(peer) <= most and waiting.count(peer) <= most * WAITING
                    assert len(inside) == 4 or not [peer for peer in waiting if not peer or inside.count(peer) < most]
                for visitor in there:
                    door.leave(visitor)
                assert (door.count, door.waiting, clock.getDelayedCalls()) == (0, 0, [])
                assert not (door._by_peer or door._lines or door._ready)


def test_contact_a25_the_addresses_of_a_site_share_its_places():
    """Of IPv6 that is a /64; another site, and IPv4, have places of their own (B25)."""
    door, _ = places(pending=8)
    visitors = come(door, "2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:1::3", "2001:db8:0:2::1", "192.0.2.1")
    assert [visitor.fate for visitor in visitors] == ["inside", "inside", "waiting", "inside", "inside"]
    door.leave(visitors[1])
    assert visitors[2].fate == "inside"
    come(door, *(f"2001:db8:0:1::{number:x}" for number in range(2 * WAITING + 10)))
    assert door.waiting == 2 * WAITING


def test_what_is_no_address_yet_has_no_share():
    """Only all of them together do: a proxy that has not told yet where its client is."""
    door, _ = places(pending=4)
    assert [visitor.fate for visitor in come(door, "", "", "", "", "")] == ["inside"] * 4 + ["waiting"]
