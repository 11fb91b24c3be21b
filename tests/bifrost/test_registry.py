"""The registry of clients, and what each hears."""

from __future__ import annotations

from typing import Any

from zcomm.bifrost.registry import Hub
from zcomm.interfaces import Audience, Identity

ALICE, BOB = Identity("alice", "admin"), Identity("bob", "guest")


class Listener:
    """A member that keeps what it is sent."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self.heard: list[bytes] = []

    def send_payloads(self, payloads: list[bytes]) -> None:
        self.heard += payloads


class Turn:
    """A reactor's turn that the test ends."""

    def __init__(self):
        self.waiting: list[Any] = []
        self.asked: list[Identity] = []
        self.hub = Hub(
            self.waiting.append,
            lambda members, payloads: [member.send_payloads(payloads) for member in members],
            self,
        )

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        self.asked.append(identity)
        assert (action, kind, name) == ("call", "function", "total")
        return identity == ALICE

    def end(self) -> None:
        waiting, self.waiting[:] = list(self.waiting), []
        for call in waiting:
            call()

    def join(self, identity: Identity) -> Listener:
        listener = Listener(identity)
        self.hub.add(listener)
        return listener


def test_everybody_hears_what_one_turn_brought_in_one_piece():
    """In order, at the end of the turn, once."""
    turn = Turn()
    alice, bob = turn.join(ALICE), turn.join(BOB)
    assert (turn.hub.announce(b"1"), turn.hub.announce(b"2")) == (2, 2)
    assert alice.heard == [] and len(turn.waiting) == 1
    turn.end()
    assert alice.heard == bob.heard == [b"1", b"2"]


def test_the_sender_does_not_hear_itself():
    """But what others said in the same turn."""
    turn = Turn()
    alice, twin, bob = turn.join(ALICE), turn.join(ALICE), turn.join(BOB)
    assert turn.hub.announce(b"a", alice) == 2
    assert turn.hub.announce(b"b", bob) == 2
    turn.end()
    assert (alice.heard, twin.heard, bob.heard) == ([b"b"], [b"a", b"b"], [b"a"])


def test_the_question_who_may_read_is_asked_by_identity():
    """Not by client; whoever may not is not counted."""
    turn = Turn()
    listeners = [turn.join(ALICE) for _ in range(5)]
    bob = turn.join(BOB)
    assert turn.hub.announce(b"x", None, Audience("function", "total")) == 5
    turn.end()
    assert all(listener.heard == [b"x"] for listener in listeners) and bob.heard == []
    assert 2 <= len(turn.asked) <= 4


def test_nobody_hears_what_was_said_before_it_came():
    """Not even in the same turn."""
    turn = Turn()
    alice = turn.join(ALICE)
    turn.hub.announce(b"early")
    bob = turn.join(BOB)
    turn.end()
    assert (alice.heard, bob.heard) == ([b"early"], [])


def test_who_has_left_hears_nothing():
    """Leaving twice is leaving once."""
    turn = Turn()
    alice, bob = turn.join(ALICE), turn.join(BOB)
    turn.hub.announce(b"x")
    turn.hub.remove(alice)
    turn.hub.remove(alice)
    turn.hub.remove(Listener(Identity("nobody", "")))
    turn.end()
    assert (alice.heard, bob.heard) == ([], [b"x"])
    assert len(turn.hub) == 1 and list(turn.hub) == [bob] and turn.hub.identities == [BOB]


def test_with_nobody_there_nothing_waits():
    """An announcement without listeners costs no turn."""
    turn = Turn()
    assert turn.hub.announce(b"x") == 0
    assert turn.waiting == [] and turn.hub.announced == 1
