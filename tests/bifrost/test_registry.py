"""The registry of clients, and what each of them hears."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from zcomm.bifrost.broadcaster import Broadcaster
from zcomm.bifrost.registry import Registry
from zcomm.budget.account import Account, Turns
from zcomm.config import Limits
from zcomm.engines.memory import MemoryEngine
from zcomm.interfaces import EVERYBODY, Audience, Broadcast, Identity
from zcomm.wire.fanout import PIECE
from zcomm.wire.writebatch import WriteBatch

ALICE, BOB = Identity("alice", "admin"), Identity("bob", "guest")

#: The value itself, for which nobody is told apart, and one that equals it, as another process sends it.
in_either_way = pytest.mark.parametrize("everybody", [EVERYBODY, Audience.from_json(EVERYBODY.to_json())])


class Listener:
    """A client that keeps what it is sent; it is its own transport."""

    def __init__(self, identity: Identity):
        self.identity = identity
        self.transport = self
        self.heard: list[bytes] = []


class Turn:
    """A server of which the test ends the turns of the reactor. Only its admins may call the function ``total``."""

    def __init__(self, *allowed: Identity, everybody: Audience = EVERYBODY):
        self.waiting: list[Any] = []
        self.asked: list[Identity] = []
        self.allowed = allowed or (ALICE,)
        self.everybody = everybody
        self.pieces = 0
        self.registry: Registry[Any] = Registry()
        self.clock = Clock()
        #: Those about whom the permissions cannot be asked.
        self.failing: Collection[Identity] = ()
        self.broadcaster = Broadcaster(
            self.registry, self, WriteBatch(self.waiting.append), self.fan_out, self.clock.seconds
        )

    def fan_out(self, listeners: list[Any], payloads: list[bytes]) -> None:
        self.pieces += 1
        for listener in listeners:
            listener.heard += payloads

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        self.asked.append(identity)
        if identity in self.failing:
            raise RuntimeError("the permissions cannot be read")
        assert (action, kind, name) == ("call", "function", "total")
        return identity in self.allowed

    def rows(self, identity: Identity, model: str) -> Mapping[str, Any]:
        raise AssertionError("no model is asked about")

    def tell(self, payload: bytes, sender: Any = None, audience: Audience | None = None) -> int:
        return self.broadcaster.tell(Broadcast(payload, audience or self.everybody, sender))

    def end(self) -> None:
        waiting, self.waiting[:] = list(self.waiting), []
        for call in waiting:
            call()

    def join(self, identity: Identity) -> Listener:
        listener = Listener(identity)
        self.broadcaster.join(listener)
        return listener


@in_either_way
def test_everybody_hears_what_one_turn_brought_in_one_piece(everybody: Audience):
    """In order, at the end of the turn, once."""
    turn = Turn(everybody=everybody)
    alice, bob = turn.join(ALICE), turn.join(BOB)
    assert (turn.tell(b"1"), turn.tell(b"2")) == (2, 2)
    assert alice.heard == [] and len(turn.waiting) == 1
    turn.end()
    assert alice.heard == bob.heard == [b"1", b"2"]
    assert turn.pieces == 1


@in_either_way
def test_the_sender_does_not_hear_itself(everybody: Audience):
    """But what others said in the same turn."""
    turn = Turn(everybody=everybody)
    alice, twin, bob = turn.join(ALICE), turn.join(ALICE), turn.join(BOB)
    assert turn.tell(b"a", alice) == 2
    assert turn.tell(b"b", bob) == 2
    turn.end()
    assert (alice.heard, twin.heard, bob.heard) == ([b"b"], [b"a", b"b"], [b"a"])


@in_either_way
def test_a_sender_that_is_not_here_leaves_nobody_out(everybody: Audience):
    """Whoever has left, or is connected elsewhere under the same name, is no other client."""
    turn = Turn(everybody=everybody)
    alice, gone = turn.join(ALICE), turn.join(ALICE)
    turn.registry.remove(gone)
    assert turn.tell(b"1", gone) == turn.tell(b"2", Listener(ALICE)) == turn.tell(b"3", Listener(BOB)) == 1
    turn.end()
    assert (alice.heard, gone.heard) == ([b"1", b"2", b"3"], [])


def test_the_question_who_may_read_is_asked_by_identity():
    """Not by client; whoever may not is not counted."""
    turn = Turn()
    listeners = [turn.join(ALICE) for _ in range(5)]
    bob = turn.join(BOB)
    assert turn.tell(b"x", None, Audience("function", "total")) == 5
    turn.end()
    assert all(listener.heard == [b"x"] for listener in listeners) and bob.heard == []
    assert 2 <= len(turn.asked) <= 4


def test_a_sender_who_may_not_read_is_not_counted_twice():
    """It is left out once, as one of those who may not."""
    turn = Turn()
    alice, bob = turn.join(ALICE), turn.join(BOB)
    assert turn.tell(b"x", bob, Audience("function", "total")) == 1
    assert turn.tell(b"y", alice, Audience("function", "total")) == 0
    turn.end()
    assert (alice.heard, bob.heard) == ([b"x"], [])


def test_what_several_identities_hear_is_made_once():
    """However many users there are; who may hear less gets its own, in the same order."""
    turn = Turn(*[Identity(f"user {number}", "x") for number in range(0, 100, 2)])
    listeners = [turn.join(Identity(f"user {number}", "x")) for number in range(100)]
    turn.tell(b"1")
    turn.tell(b"2", listeners[7], Audience("function", "total"))
    turn.tell(b"3", listeners[4])
    turn.end()
    assert turn.pieces == 3
    assert listeners[4].heard == [b"1", b"2"] and listeners[7].heard == [b"1", b"3"]
    assert all(
        listener.heard == [b"1", b"2", b"3"][:: 1 if number % 2 == 0 else 2]
        for number, listener in enumerate(listeners)
        if number != 4
    )


def test_b12_what_many_hear_leaves_in_several_turns():
    """A bounded number of bytes in each, everything in order, to each once; who comes meanwhile hears what is new."""
    turn = Turn()
    account = Account("alice", Limits(), Turns(turn.clock.seconds, turn.waiting.append, turn.clock.callLater))
    teller = turn.join(ALICE)
    teller.account = account  # type: ignore[attr-defined]
    listeners = [turn.join(BOB) for _ in range(3000)]
    turn.tell(b"1" * 10_000, teller)
    turn.end()
    heard = sum(len(listener.heard) for listener in listeners)
    assert 0 < heard * 12_048 <= PIECE and not teller.heard
    assert account.busy > 0
    late = turn.join(BOB)
    turn.tell(b"2", teller)
    turns = 0
    while turn.waiting:
        turn.end()
        turns += 1
    assert turns >= 3000 * 12_048 // PIECE
    assert all(listener.heard == [b"1" * 10_000, b"2"] for listener in listeners)
    assert late.heard == [b"2"] and not teller.heard


@in_either_way
def test_nobody_hears_what_was_said_before_it_came(everybody: Audience):
    """Not even in the same turn."""
    turn = Turn(everybody=everybody)
    alice = turn.join(ALICE)
    turn.tell(b"early")
    bob = turn.join(BOB)
    turn.tell(b"late")
    turn.end()
    assert (alice.heard, bob.heard) == ([b"early", b"late"], [b"late"])


@in_either_way
def test_who_has_left_hears_nothing(everybody: Audience):
    """Leaving twice is leaving once."""
    turn = Turn(everybody=everybody)
    alice, bob = turn.join(ALICE), turn.join(BOB)
    turn.tell(b"x")
    turn.registry.remove(alice)
    turn.registry.remove(alice)
    turn.registry.remove(Listener(Identity("nobody", "")))
    turn.end()
    assert (alice.heard, bob.heard) == ([], [b"x"])
    assert len(turn.registry) == 1 and list(turn.registry) == [bob] and turn.registry.identities == [BOB]
    assert turn.registry.connections_of("alice") == 0 and turn.registry.connections_of("bob") == 1


def test_with_nobody_there_nothing_waits():
    """An announcement without listeners costs no turn."""
    turn = Turn()
    assert turn.tell(b"x") == 0
    assert turn.waiting == [] and turn.broadcaster.told == 1


def test_an_engine_tells_each_server_once():
    """Each judges by its own permissions; the sender is left out where it is connected, and nobody in its place."""
    engine, one, other = MemoryEngine(), Turn(ALICE), Turn(BOB)
    for server in (one, other, one):
        engine.attach(server.broadcaster)
    alice, bob = one.join(ALICE), one.join(BOB)
    alice_there, bob_there = other.join(ALICE), other.join(BOB)
    assert engine.clients == 4
    engine.tell(Broadcast(b"all", Audience(), alice))
    engine.tell(Broadcast(b"some", Audience("function", "total"), bob_there))
    one.tell(b"here")
    for server in (one, other):
        server.end()
    assert (alice.heard, bob.heard) == ([b"some", b"here"], [b"all", b"here"])
    assert (alice_there.heard, bob_there.heard) == ([b"all"], [b"all"])
    engine.detach(other.broadcaster)
    engine.detach(other.broadcaster)
    engine.tell(Broadcast(b"last"))
    one.end()
    assert engine.clients == 2 and alice.heard[-1] == b"last" and alice_there.heard == [b"all"] and not other.waiting


@pytest.mark.parametrize("first", [ALICE, BOB])
@pytest.mark.parametrize("when", ["told", "sent"])
def test_permissions_that_fail_for_one_identity_cost_the_others_nothing(first: Identity, when: str):
    """Whether they fail as something is told or at the end of the turn, and wherever that one stands; of what is for
    everybody it hears as well."""
    turn = Turn(ALICE, BOB)
    listeners = {identity: turn.join(identity) for identity in sorted((ALICE, BOB), key=first.__ne__)}
    if when == "told":
        turn.failing = {BOB}
    assert turn.tell(b"some", None, Audience("function", "total")) == (1 if when == "told" else 2)
    turn.failing = {BOB}
    turn.tell(b"all")
    turn.end()
    assert listeners[ALICE].heard == [b"some", b"all"] and listeners[BOB].heard == [b"all"]


def test_permissions_that_keep_failing_do_not_fill_the_log():
    """A line a second, with its cause, however many changes and identities there are; the rest goes on."""
    lines: list[LogEvent] = []
    globalLogPublisher.addObserver(lines.append)
    try:
        turn = Turn()
        listeners = [turn.join(Identity(f"user {number}", "x")) for number in range(20)]
        turn.failing = turn.registry.identities
        for _ in range(50):
            assert turn.tell(b"x", None, Audience("function", "total")) == 0
        line = "the permissions failed; 'user 0' does not hear of this"
        assert [formatEvent(line) for line in lines] == [line]
        assert "cannot be read" in lines[0]["log_failure"].getErrorMessage()
        turn.clock.advance(1.0)
        turn.tell(b"x", None, Audience("function", "total"))
        assert formatEvent(lines.pop()) == f"{line} (999 more like this were not logged)"
        # They fail between a change and the end of its turn.
        turn.clock.advance(1.0)
        for _ in range(2):
            turn.failing = ()
            turn.allowed = [listener.identity for listener in listeners]
            assert turn.tell(b"y", None, Audience("function", "total")) == 20
            turn.failing = turn.registry.identities
            turn.end()
        assert [formatEvent(line) for line in lines[1:]] == [f"{line} (19 more like this were not logged)"]
        turn.failing = ()
        assert turn.tell(b"z") == 20
        turn.end()
        assert all(listener.heard == [b"z"] for listener in listeners)
    finally:
        globalLogPublisher.removeObserver(lines.append)
