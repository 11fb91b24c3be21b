"""The members of topics: clients that follow what they are told, by the rule and nothing else, know who is there."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.examples import examples

from zcomm.testing import MemoryClient, MemoryServer
from zcomm.topics.presence import DETAIL, DETAIL_AGAIN, MAX_MEMBERS, Crossing, Roster, Window

connections = st.sampled_from([f"c{number}" for number in range(6)])
states = st.sampled_from([b"{}", b'{"typing":true}', b'{"typing":false}'])
OWNER = {f"c{number}": ("ann", "bob", "eve")[number % 3] for number in range(6)}


class Follower:
    """A client that was told the members once, and applies what comes by the rule of the protocol."""

    def __init__(self, told: dict[str, Any]):
        self.version: int = told["version"]
        self.members: dict[str, dict[str, Any]] | None = told.get("members")
        self.users, self.connections = told["users"], told["connections"]
        self.asks = 0

    def apply(self, event: dict[str, Any]) -> None:
        if event["version"] <= self.version:
            return
        if event["after"] > self.version:
            self.asks += 1
            return
        self.version, self.users, self.connections = event["version"], event["users"], event["connections"]
        if "members" in event:
            self.members = event["members"]
        elif "joined" not in event:
            self.members = None
        elif self.members is not None:
            # What it has may be another's too.
            members = {user: dict(mine) for user, mine in self.members.items()}
            for user, mine in event["left"].items():
                for connection in mine:
                    members.get(user, {}).pop(connection, None)
            for user, mine in event["joined"].items():
                members.setdefault(user, {}).update(mine)
            self.members = {user: mine for user, mine in members.items() if mine}


def shown(roster: Roster) -> dict[str, Any]:
    now = roster.members()
    members = None
    if now.members is not None:
        members = {user: {c: json.loads(state) for c, state in mine.items()} for user, mine in now.members.items()}
    return {"version": now.version, "users": now.users, "connections": now.connections, "members": members}


class Room(RuleBasedStateMachine):
    """Members come, change and go; windows close at any time; followers begin at any time, within a window too. Changes
    may be lost on their way: then all members are told."""

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.window = Window()
        self.crossing = Crossing()
        self.there: dict[str, bytes] = {}
        self.before: set[str] = set()
        self.followers: list[Follower] = []
        self.is_quiet = True

    @rule(connection=connections, state=states)
    def enter(self, connection: str, state: bytes) -> None:
        change = self.roster.enter(connection, OWNER[connection], state)
        assert (change is None) == (self.there.get(connection) == state)
        self.there[connection] = state
        if change is not None:
            self.window.add(change)
            self.crossing.add(change)
            self.is_quiet = False

    @rule(connection=connections)
    def leave(self, connection: str) -> None:
        change = self.roster.leave(connection)
        assert (change is None) == (connection not in self.there)
        self.there.pop(connection, None)
        if change is not None:
            self.window.add(change)
            self.crossing.add(change)
            self.is_quiet = False

    @rule(connection=connections)
    def lose(self, connection: str) -> None:
        change = self.roster.leave(connection)
        self.there.pop(connection, None)
        if change is not None:
            self.crossing.add(change)
            self.window.is_broken = True
            self.is_quiet = False

    @rule()
    def follow(self) -> None:
        self.followers.append(Follower(shown(self.roster)))

    @rule(is_whole=st.booleans())
    def close(self, is_whole: bool) -> None:
        is_whole = is_whole or self.window.is_broken
        told = self.window.told_whole(self.roster.members()) if is_whole else self.window.told(True)
        event = json.loads(b"{" + told + b"}")
        users = {OWNER[connection] for connection in self.there}
        arrived, gone = self.crossing.arrived, self.crossing.gone
        assert set(arrived) == users - self.before and set(gone) == self.before - users
        if not is_whole:
            assert event["arrived"] == arrived and event["gone"] == gone
        self.before = users
        if self.window.last is not None or is_whole:
            for follower in self.followers:
                follower.apply(event)
        self.window, self.crossing = Window(), Crossing()
        self.is_quiet = True

    @invariant()
    def all_know_who_is_there(self) -> None:
        """Whoever has heard all windows has the members of now; nobody ever had to ask."""
        if not self.is_quiet:
            return
        now = shown(self.roster)
        for follower in self.followers:
            assert not follower.asks
            assert (follower.version, follower.users, follower.connections, follower.members) == (
                now["version"],
                now["users"],
                now["connections"],
                now["members"],
            )


class TestRoom(Room.TestCase):
    settings = examples(80, stateful_step_count=40)


def test_who_comes_and_leaves_within_a_moment():
    """It is told of all the same, so that who asked between the two forgets it again: nobody stays as a ghost."""
    roster, window = Roster(), Window()
    window.add(roster.enter("c5", "eve", b"{}"))
    late = Follower(shown(roster))
    window.add(roster.leave("c5"))
    event = json.loads(b"{" + window.told(True) + b"}")
    late.apply(event)
    assert late.members == {} and not event["arrived"] and not event["gone"]


def test_the_next_ones_are_counted_and_not_named():
    """Beyond ten thousand: counted in connections and users; they come and go without a name, and nobody else's place
    is taken by them."""
    roster = Roster()
    for number in range(MAX_MEMBERS):
        roster.enter(f"c{number}", f"user{number}", b"{}")
    change = roster.enter("late", "eve", b'{"a":1}')
    assert change is not None and not change.is_named
    assert (change.connections, change.users, change.after) == (MAX_MEMBERS + 1, MAX_MEMBERS + 1, 1)
    assert roster.enter("late", "eve", b'{"a":2}') is None
    named = roster.members(MAX_MEMBERS + 1).members
    assert named is not None and "eve" not in named and len(named) == MAX_MEMBERS
    change = roster.leave("late")
    assert change is not None and not change.is_named and change.users == roster.users == MAX_MEMBERS
    roster.leave("c1")
    again = roster.enter("late", "eve", b"{}")
    assert again is not None and again.is_named and again.before == 0


def room(count: int) -> tuple[MemoryServer, list[MemoryClient], MemoryClient]:
    """A server with so many in a room, one of whom watches."""
    server = MemoryServer(connections=3000, connections_per_user=3000, ping_interval=3600.0)
    watcher = server.connect()
    others = [server.connect() for _ in range(count - 1)]
    for other in others:
        other.call("zSubscribe", {"topic": "room:1"})
    watcher.call("zSubscribe", {"topic": "room:1", "presence": True})
    server.advance(1)
    watcher.messages.clear()
    return server, others, watcher


def presence(client: MemoryClient) -> dict[str, Any]:
    """The one event of presence that came."""
    (event,) = client.messages
    client.messages.clear()
    assert event["event"] == "presence"
    return event


def test_names_of_many():
    """Above 200 connections only numbers are told; below 150 the next event names all; between the two it stays."""
    server, others, watcher = room(DETAIL)
    more = server.connect()
    more.call("zSubscribe", {"topic": "room:1"})
    server.advance(1)
    event = presence(watcher)
    assert event["connections"] == DETAIL + 1
    assert not {"joined", "left", "members", "arrived", "gone"} & event.keys()
    assert "members" not in watcher.call("zPresence", {"topic": "room:1"}).result["result"]
    for client in others[: DETAIL + 1 - DETAIL_AGAIN]:
        client.call("zUnsubscribe", {"topic": "room:1"})
    server.advance(1)
    event = presence(watcher)
    assert event["connections"] == DETAIL_AGAIN and not {"joined", "left", "members"} & event.keys()
    others[-1].call("zUnsubscribe", {"topic": "room:1"})
    server.advance(1)
    event = presence(watcher)
    assert event["connections"] == DETAIL_AGAIN - 1
    assert len(event["members"]["anonymous"]) == DETAIL_AGAIN - 1 and "joined" not in event
    more.call("zUnsubscribe", {"topic": "room:1"})
    server.advance(1)
    event = presence(watcher)
    assert list(event["left"]) == ["anonymous"] and len(event["left"]["anonymous"]) == 1 and "members" not in event


def test_who_comes_as_names_are_told_again():
    """Who subscribes in the very moment in which they become few enough knows the members like everybody else."""
    server, others, watcher = room(DETAIL + 1)
    for client in others[: DETAIL + 1 - DETAIL_AGAIN + 5]:
        client.call("zUnsubscribe", {"topic": "room:1"})
    late = server.connect()
    reply = late.call("zSubscribe", {"topic": "room:1", "presence": True}).result["result"]
    followers = [Follower(reply["presence"])]
    server.advance(1)
    for message in late.messages:
        followers[0].apply(message)
    count = DETAIL_AGAIN - 5 + 1
    assert followers[0].connections == count
    assert followers[0].members is not None and len(followers[0].members["anonymous"]) == count
    assert len(presence(watcher)["members"]["anonymous"]) == count


def test_two_thousand_who_come_in_a_second():
    """Whoever watches is told in no more events than there are moments, the last of which is right."""
    server = MemoryServer(connections=3000, connections_per_user=3000, ping_interval=3600.0)
    watcher = server.connect()
    told = watcher.call("zSubscribe", {"topic": "room:1", "presence": True}).result["result"]["presence"]
    for _ in range(400):
        server.connect().call("zSubscribe", {"topic": "room:1"})
        server.advance(0.0025)
    server.advance(1)
    follower = Follower(told)
    assert len(watcher.messages) <= 6
    for event in watcher.messages:
        follower.apply(event)
    assert not follower.asks and follower.connections == 401 and follower.members is None
