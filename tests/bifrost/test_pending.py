"""Places for handshakes and the lines of those that wait for one."""

from __future__ import annotations

from twisted.internet.task import Clock

from zcomm.bifrost.pending import WAITING, PendingHandshakes
from zcomm.config import Limits


class Visitor:
    """Notes what becomes of it."""

    def __init__(self, peer: str):
        self.peer = peer
        self.fate = ""
        self.seconds = 0.0

    def begin(self, seconds: float) -> None:
        self.fate, self.seconds = "inside", seconds

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
    """One peer's does not shut the door for others; all of them together do."""
    door, _ = places(pending=2, per_peer=1)
    come(door, "a", *["a"] * WAITING)
    assert door.refuses("a") and not door.refuses("b")
    come(door, "b", *["b"] * WAITING)
    assert door.refuses("c")


def test_contact_a25_the_addresses_of_a_site_share_its_places():
    """Of IPv6 that is a /64; another site, and IPv4, have places of their own."""
    door, _ = places(pending=8)
    visitors = come(door, "2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:1::3", "2001:db8:0:2::1", "192.0.2.1")
    assert [visitor.fate for visitor in visitors] == ["inside", "inside", "waiting", "inside", "inside"]
    door.leave(visitors[1])
    assert visitors[2].fate == "inside"
    come(door, *(f"2001:db8:0:1::{number:x}" for number in range(2 * WAITING)))
    assert door.refuses("2001:db8:0:1::9999") and not door.refuses("2001:db8:0:2::9")


def test_what_is_no_address_yet_has_no_share():
    """Only all of them together do: a proxy that has not told yet where its client is."""
    door, _ = places(pending=4)
    assert [visitor.fate for visitor in come(door, "", "", "", "", "")] == ["inside"] * 4 + ["waiting"]
