"""What concerns many subscriptions takes as many turns as it needs, and what happens between two of them counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent

from zcomm.auth.policy import Policy
from zcomm.interfaces import Identity
from zcomm.testing import MemoryClient, MemoryServer
from zcomm.topics import judging
from zcomm.wire import fanout
from zcomm.wire.writebatch import WriteBatch

ANN, BOB = Identity("ann", "user"), Identity("b", "user")
ROOM = {"topic": "room:1"}
ENDED = {"event": "unsubscribed", **ROOM, "reason": "ended"}


class Turns:
    """The turns that wait; in each there is time for one step."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()

    def one(self) -> None:
        self.waiting.popleft()()

    def all(self) -> int:
        """How many they were, one after the other."""
        count = 0
        while self.waiting:
            self.one()
            count += 1
        return count


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Turns that the test takes."""
    found = Turns()
    monkeypatch.setattr(judging, "SLICE", -1.0)
    monkeypatch.setattr(WriteBatch, "next_turn", lambda self, call: found.waiting.append(call))
    return found


@pytest.fixture
def declare(tmp_path: Path) -> Callable[[MemoryServer, str], None]:
    """Writes the file of kinds, and lets the server read it."""
    path = tmp_path / "topics.yaml"

    def write(server: MemoryServer, text: str) -> None:
        path.write_text(text)
        if server.topics.kinds.is_declared:
            server.topics.reload()
        else:
            server.topics.read_file(path)

    return write


def server_with(**settings: Any) -> MemoryServer:
    return MemoryServer(stall_timeout=3600.0, ping_interval=3600.0, publish_rate=10_000, **settings)


def result(client: MemoryClient, key: str, **more: Any) -> Any:
    """The result of a command, or the code of its error."""
    reply = client.call(key, {**ROOM, **more}).result
    return reply.get("result", reply.get("code"))


def several(server: MemoryServer, count: int = 5, **more: Any) -> list[MemoryClient]:
    """Clients that are in the room."""
    clients = [server.connect(identity=ANN) for _ in range(count)]
    for client in clients:
        result(client, "zSubscribe", **more)
    return clients


def taken(client: MemoryClient) -> list[Any]:
    """The events that have come since the last look."""
    events = [message for message in client.messages if "event" in message]
    client.messages.clear()
    return events


def members(server: MemoryServer) -> dict[str, dict[str, Any]]:
    found = server.topics.members("room:1").result["members"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("user", [None, "ann"])
def test_many_that_are_ended(turns: Turns, user: str | None):
    """All at once hear nothing of what is published from then on and publish nothing, and are told so one after the
    other; who has begun anew, or is gone, before its turn has the last word."""
    server = server_with()
    server.topics.topic("room:{id}", history=10, presence=True)
    clients = several(server)
    other = server.connect(identity=BOB)
    result(other, "zSubscribe")
    assert server.topics.unsubscribe("room:1", user) == (6 if user is None else 5)
    assert server.topics.unsubscribe("room:1", user) == 0
    server.topics.publish("room:1", "secret")
    server.settle()
    assert taken(clients[0]) == [ENDED]
    assert not any(taken(client) for client in clients[1:])
    assert result(clients[1], "zPublish", data=1) == "permission_denied"
    again = result(clients[2], "zSubscribe", state={"here": 2})
    assert again["offset"] == 1
    clients[3].vanish()
    assert result(clients[4], "zUnsubscribe") == ROOM
    server.topics.publish("room:1", "hi")
    server.settle()
    assert turns.all() >= 4
    server.settle()
    assert taken(clients[1]) == [ENDED] and taken(clients[4]) == []
    assert [event["data"] for event in taken(clients[2])] == ["hi"]
    assert [event.get("data", event.get("reason")) for event in taken(other)] == (
        ["ended"] if user is None else ["secret", "hi"]
    )
    assert list(members(server)["ann"].values()) == [{"here": 2}]
    assert server.topics.hub.subscriptions == (1 if user is None else 2)
    assert server.topics.unsubscribe("room:1") == (1 if user is None else 2)
    turns.all()
    assert server.topics.hub.subscriptions == len(server.topics.hub) == 0 and members(server) == {}


def test_a_slow_client_that_is_ended(turns: Turns):
    """It is not caught up with what was published since, however it takes what it was sent."""
    server = server_with()
    server.topics.topic("room:{id}", history=10)
    clients = several(server)
    for client in clients:
        client.stop_reading()
    for text in ("a" * 300_000, "b"):
        server.topics.publish("room:1", text[:60_000])
        server.settle()
    server.topics.unsubscribe("room:1")
    server.topics.publish("room:1", "secret")
    for client in clients:
        client.read_again()
    server.settle()
    turns.all()
    server.settle()
    for client in clients:
        assert "secret" not in [event.get("data") for event in client.messages]
        assert client.messages[-1] == ENDED
    assert server.topics.hub.subscriptions == len(server.topics.hub) == 0


def test_a_client_that_is_slow_once_it_is_ended(turns: Turns, monkeypatch: pytest.MonkeyPatch):
    """What was on its way to it before makes no subscription of it again."""
    server = server_with()
    server.topics.topic("room:{id}", history=10)
    clients = several(server)
    monkeypatch.setattr(fanout, "PIECE", 1)
    server.topics.publish("room:1", "before")
    server.settle()
    assert "before" not in [event.get("data") for event in clients[4].messages]
    clients[4].stop_reading()
    server.topics.unsubscribe("room:1")
    while clients[3].messages == []:
        turns.one()
    turns.all()
    server.topics.publish("room:1", "secret")
    clients[4].read_again()
    server.settle()
    turns.all()
    assert clients[4].messages[-1] == ENDED and server.topics.hub.subscriptions == 0


def test_the_program_puts_many_in(turns: Turns):
    """Those too that it has put out and whose turn has not come; it is told how many, whoever is gone meanwhile."""
    server = server_with()
    server.topics.topic("room:{id}", history=10)
    clients = several(server)
    server.topics.unsubscribe("room:1")
    put: Deferred[int] = server.topics.subscribe("room:1", "ann")
    clients[3].vanish()
    turns.all()
    assert put.result == 4
    server.topics.publish("room:1", "hi")
    server.settle()
    for client in (*clients[:3], clients[4]):
        assert client.messages[-1]["data"] == "hi"
    assert server.topics.hub.subscriptions == 4
    bob = server.connect(identity=BOB)
    result(bob, "zSubscribe")
    server.topics.unsubscribe("room:1")
    put = server.topics.subscribe("room:1", "b")
    turns.all()
    assert put.result == 1 and server.topics.hub.subscriptions == 1 and taken(bob)[-1]["event"] == "subscribed"


def test_presence_that_begins_and_ends(turns: Turns, declare: Callable[[MemoryServer, str], None]):
    """Those who are in a topic come to be among its members one after the other; what one says of itself before its
    turn stays, and a kind that becomes another once more before all had theirs has the last word."""
    server = server_with()
    plain, present = '"room:{id}": {}\n', '"room:{id}": {presence: true}\n'
    declare(server, plain)
    clients = several(server)
    declare(server, present)
    turns.one()
    assert result(clients[4], "zSubscribe", state={"here": 4}) == ROOM
    assert result(clients[3], "zPresence", state={"here": 3})["connections"] < 5
    clients[2].vanish()
    turns.all()
    assert sorted(map(str, members(server)["ann"].values())) == ["{'here': 3}", "{'here': 4}", "{}", "{}"]
    declare(server, plain)
    turns.one()
    turns.one()
    clients[1].vanish()
    declare(server, present)
    turns.all()
    assert len(members(server)["ann"]) == 3
    other, late = server.connect(identity=BOB), server.connect(identity=ANN)
    result(other, "zSubscribe")
    server.topics.unsubscribe("room:1", "ann")
    declare(server, plain)
    result(late, "zSubscribe")
    clients[0].vanish()
    turns.all()
    declare(server, present)
    turns.all()
    assert {user: len(those) for user, those in members(server).items()} == {"ann": 1, "b": 1}
    late.vanish(), other.vanish()
    turns.all()
    assert members(server) == {} and len(server.topics.hub) == 0


def test_what_one_says_of_itself_before_its_topic_has_its_turn(
    turns: Turns, declare: Callable[[MemoryServer, str], None]
):
    """It leaves nothing behind where there are no such topics any more when it has."""
    server = server_with()
    declare(server, '"room:{id}": {}\n')
    client = several(server, 2)[0]
    declare(server, '"room:{id}": {presence: true}\n')
    assert "connections" in result(client, "zPresence", state={"here": 1})
    declare(server, "hall: {}\n")
    turns.all()
    assert taken(client)[-1]["reason"] == "kind_gone"
    assert server.topics.engine.members("room:1").result.connections == 0


def test_presence_that_changes_while_somebody_waits(turns: Turns, declare: Callable[[MemoryServer, str], None]):
    """Who waits to come in is among the members by what the kind is when it does, and leaves nothing behind."""
    server = server_with()
    plain, present = (f'"room:{{id}}": {{history: 10, presence: {there}}}\n' for there in ("false", "true"))
    declare(server, plain)
    first, waiting, other = several(server, 1)[0], server.connect(identity=ANN), several(server, 1)[0]
    result(first, "zSubscribe", topic="room:0")
    result(first, "zUnsubscribe")
    result(other, "zUnsubscribe")
    result(other, "zSubscribe")
    waiting.stop_reading()
    waiting.call("zSubscribe", {**ROOM, "last": 5})
    declare(server, present)
    waiting.read_again()
    turns.all()
    assert len(members(server)["ann"]) == 2
    for kinds in (plain, present):
        declare(server, kinds)
        # Before the topic had its turn.
        early = several(server, 1)[0]
        assert server.topics.kinds.find("room:1") is server.topics.hub.topic("room:1").found
        early.vanish()
        turns.all()
    assert len(members(server)["ann"]) == 2
    for client in (waiting, other):
        client.vanish()
    turns.all()
    assert members(server) == {}


def test_reloads_that_never_cease(turns: Turns, declare: Callable[[MemoryServer, str], None]):
    """Everybody is judged all the same."""
    server = server_with()
    declare(server, '"room:{id}": {}\n')
    clients = several(server, 20)
    for _ in range(30):
        declare(server, "hall: {}\n")
        turns.one()
    assert all(taken(client) for client in clients)


@pytest.mark.parametrize("begins", [True, False])
def test_presence_that_changes_while_an_answer_waits_for_room(turns: Turns, begins: bool, tmp_path: Path):
    """Who comes in behind that is a member where there are any, and otherwise none, in the engine neither."""
    server = server_with(results_size=4 * 1024 * 1024)
    path = tmp_path / "topics.yaml"
    plain, present = (f'"room:{{id}}": {{history: 100, presence: {there}}}\n' for there in ("false", "true"))
    path.write_text(plain if begins else present)
    server.topics.read_file(path)
    for number in range(14):
        server.topics.publish("room:1", f"{number}" + "x" * 60_000)
    client = server.connect(identity=ANN)
    memory, account = server.topics.hub._budgets.memory, server.bifrost.clients[0].account
    memory.take(account, 1_500_000)
    call = client.call("zSubscribe", {**ROOM, "last": 14})
    assert not call.called
    path.write_text(present if begins else plain)
    server.topics.reload()
    memory.release(account, 1_500_000)
    turns.all()
    server.settle()
    assert len(call.result["result"]["messages"]) == 14
    assert server.topics.engine.members("room:1").result.connections == begins
    client.vanish()
    turns.all()
    assert server.topics.engine.members("room:1").result.connections == 0


def test_a_second_reload_before_the_first_is_through(turns: Turns, declare: Callable[[MemoryServer, str], None]):
    """All are judged by what holds then, however many more there are: in the rest of the first, and once more."""
    server = server_with()
    declare(server, '"room:{id}": {}\n')
    clients = several(server, 20)
    declare(server, '"hall": {}\n')
    for _ in range(3):
        turns.one()
    ended = [client for client in clients if taken(client)]
    assert 1 <= len(ended) <= 3
    for _ in range(5):
        declare(server, '"room:{id}": {history: 5}\n')
    assert 20 < turns.all() <= 50
    server.settle()
    for client in clients:
        assert [event["event"] for event in taken(client)] == ([] if client in ended else ["topic"])
    assert server.topics.hub.subscriptions == 20 - len(ended)


def test_a_kind_that_becomes_personal(turns: Turns, declare: Callable[[MemoryServer, str], None], log: list[LogEvent]):
    """Those who are connected come into their own topics one after the other, and go out of them again where they have
    not asked for them; who is gone meanwhile stops nobody."""
    server = server_with()
    plain, personal = '"user:{name}": {}\n"room:{id}": {}\n', '"user:{name}": {personal: true}\n"room:{id}": {}\n'
    declare(server, plain)
    names = ["ann", "ann", "bob", "eve", "anonymous", "gone"]
    clients = [server.connect(identity=Identity(name, "user")) for name in names]
    for client in clients[1:3]:
        # The second becomes somebody else's.
        result(client, "zSubscribe", topic="user:ann")
    declare(server, personal)
    clients[5].vanish()
    assert turns.all() >= 6
    assert [[(event["event"], event["topic"]) for event in taken(client)] for client in clients] == [
        [("subscribed", "user:ann")],
        [],
        [("unsubscribed", "user:ann"), ("subscribed", "user:bob")],
        [("subscribed", "user:eve")],
        [],
        [],
    ]
    declare(server, personal)
    turns.all()
    assert not any(taken(client) for client in clients)
    result(clients[3], "zSubscribe", topic="user:eve")
    declare(server, plain)
    turns.all()
    ended = [{"event": "unsubscribed", "topic": f"user:{name}", "reason": "ended"} for name in ("ann", "bob")]
    assert [taken(client) for client in clients[:4]] == [ended[:1], [], ended[1:], []]
    assert server.topics.hub.subscriptions == 2
    assert not any("log_failure" in event for event in log)


def test_a_personal_kind_that_is_declared_later(turns: Turns):
    """What the program says of it in the same turn holds for those who are connected already; who has a narrower kind
    has none of their own, and comes into it with it."""
    server = server_with()
    clients = [server.connect(identity=Identity(name, "user")) for name in ("bob", "ann", "eve")]
    users = server.topics.topic("user:{name}", personal=True)
    users.allow("subscribe")(lambda identity, name: name != "bob")
    server.topics.topic("user:eve", publish="nobody")
    turns.all()
    assert [[event["topic"] for event in taken(client)] for client in clients] == [[], ["user:ann"], []]


def test_rights_to_a_topic_of_ones_own_that_come_later(turns: Turns):
    """Who may be in it only now comes in."""
    permissions = Policy.from_yaml("user: {topics: {}}", "policy.yaml")
    server = server_with(permissions=permissions)
    server.topics.topic("user:{name}", personal=True)
    client = server.connect(identity=ANN)
    assert taken(client) == []
    permissions.become(Policy.from_yaml('user: {topics: {"user:$name": [subscribe]}}', "policy.yaml"))
    server.topics.reload()
    turns.all()
    assert taken(client) == [{"event": "subscribed", "topic": "user:ann"}]


def test_a_step_that_fails_stops_no_other(turns: Turns):
    """The log says so, and the others are judged."""
    server = server_with()
    rooms = server.topics.topic("room:{id}", history=10)
    clients = several(server, 3)
    rooms.allow("subscribe")(lambda identity, id: False)
    done: list[int] = []

    def step(number: int) -> None:
        done.append(number)
        if number % 2:
            raise ValueError(number)

    server.topics.hub.judging.begin(partial(step, number) for number in range(4))
    server.topics.reload()
    turns.all()
    assert done == [0, 1, 2, 3]
    assert [taken(client) for client in clients] == [[{**ENDED, "reason": "permission_denied"}]] * 3
