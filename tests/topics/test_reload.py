"""Kinds and rights that change while clients are subscribed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from zcomm.auth.policy import Policy
from zcomm.errors import ConfigError
from zcomm.interfaces import Identity
from zcomm.testing import MemoryClient, MemoryServer

ALICE = Identity("alice", "user")


def answer(server: MemoryServer, client: MemoryClient, key: str, horizontal: Any) -> Any:
    """The result of a command, or the code of its error."""
    found: list[Any] = []
    client.call(key, horizontal).addBoth(found.append)
    server.settle()
    return found[0].get("result", found[0].get("code"))


def taken(server: MemoryServer, client: MemoryClient) -> list[Any]:
    """The events that have come since the last look."""
    server.advance(0.5)
    events, client.messages = client.messages, []
    return events


@pytest.fixture
def declare(tmp_path: Path) -> Callable[[MemoryServer, str], None]:
    """Writes the file of kinds, and lets the server read it."""
    path = tmp_path / "topics.yaml"

    def write(server: MemoryServer, text: str) -> None:
        is_first = not path.exists()
        path.write_text(text)
        path.chmod(0o600)
        if is_first:
            server.bifrost.topics.read_file(path)
        else:
            server.bifrost.topics.reload()

    return write


def test_a_kind_is_kept_no_more_and_then_again(declare: Callable[[MemoryServer, str], None]):
    """Subscribers are told where they stand; over what was published while nothing was kept nobody ever recovers."""
    server = MemoryServer()
    declare(server, '"room:{id}": {history: 5, publish: anybody}\n')
    client, other = server.connect(identity=ALICE), server.connect(identity=ALICE)
    first = answer(server, client, "zSubscribe", {"topic": "room:1"})
    assert answer(server, other, "zPublish", {"topic": "room:1", "data": 1})["offset"] == 1
    known = {"epoch": first["epoch"], "offset": 1}
    declare(server, '"room:{id}": {publish: anybody}\n')
    assert taken(server, client)[1:] == [
        {"event": "topic", "topic": "room:1", "recovered": False, "reason": "not_kept"}
    ]
    assert answer(server, other, "zPublish", {"topic": "room:1", "data": 2}) == {"topic": "room:1"}
    assert taken(server, client) == [{"event": "message", "topic": "room:1", "data": 2, "from": "alice"}]
    declare(server, '"room:{id}": {history: 5, publish: anybody}\n')
    (event,) = taken(server, client)
    assert event["epoch"] != first["epoch"] and "recovered" not in event
    again = answer(server, client, "zSubscribe", {"topic": "room:1", "since": known})
    assert (again["recovered"], again["reason"]) == (False, "epoch")
    now = {"epoch": event["epoch"], "offset": event["offset"]}
    assert answer(server, other, "zPublish", {"topic": "room:1", "data": 3})["epoch"] == event["epoch"]
    again = answer(server, client, "zSubscribe", {"topic": "room:1", "since": now})
    assert again["recovered"] and [message["data"] for message in again["messages"]] == [3]


def test_a_kind_that_is_gone(declare: Callable[[MemoryServer, str], None]):
    """Its subscriptions end with a reason; what the file says wrong changes nothing."""
    server = MemoryServer()
    declare(server, '"room:{id}": {presence: true}\n"hall": {}\n')
    client = server.connect(identity=ALICE)
    for topic in ("room:1", "hall"):
        answer(server, client, "zSubscribe", {"topic": topic})
    with pytest.raises(ConfigError, match="unknown key 'histroy'; did you mean"):
        declare(server, '"hall": {histroy: 5}\n')
    assert taken(server, client) == []
    declare(server, '"hall": {}\n')
    assert taken(server, client) == [{"event": "unsubscribed", "topic": "room:1", "reason": "kind_gone"}]
    assert answer(server, client, "zSubscribe", {"topic": "room:1"}) == "not_found"
    assert answer(server, client, "zSubscribe", {"topic": "hall"}) == {"topic": "hall"}


def test_a_policy_that_grants_less():
    """Those who may not be there any more are told so; who may not look who is there any more is out as well."""

    def policy(grants: str) -> Policy:
        return Policy.from_yaml(f"user: {{topics: {grants}}}", "policy.yaml")

    permissions = policy('{"room:*": [subscribe, presence], "user:$name": [subscribe]}')
    server = MemoryServer(permissions=permissions)
    client, looker = server.connect(identity=ALICE), server.connect(identity=Identity("bob", "user"))
    answer(server, client, "zSubscribe", {"topic": "room:1"})
    answer(server, client, "zSubscribe", {"topic": "user:alice"})
    answer(server, looker, "zSubscribe", {"topic": "room:1", "presence": True})
    assert answer(server, looker, "zSubscribe", {"topic": "user:alice"}) == "permission_denied"
    taken(server, client), taken(server, looker)
    permissions.become(policy('{"room:*": [subscribe]}'))
    server.bifrost.topics.reload()
    assert taken(server, client) == [{"event": "unsubscribed", "topic": "user:alice", "reason": "permission_denied"}]
    assert taken(server, looker) == [{"event": "unsubscribed", "topic": "room:1", "reason": "permission_denied"}]
    assert answer(server, looker, "zSubscribe", {"topic": "room:1"})["topic"] == "room:1"


def test_own_topics_that_there_are_only_now(declare: Callable[[MemoryServer, str], None]):
    """Whoever is connected is put into them, too, when their kind comes or the policy grants them; and nobody twice."""

    def policy(grants: str) -> Policy:
        return Policy.from_yaml(f"user: {{topics: {grants}}}", "policy.yaml")

    permissions = policy('{"user:$name": [subscribe]}')
    server = MemoryServer(permissions=permissions)
    declare(server, '"room:{id}": {}\n')
    clients = [server.connect(identity=identity) for identity in (ALICE, ALICE, Identity("b:b", "user"))]
    nobody = server.connect(identity=Identity("anonymous", "user"))
    names = ["user:alice", "user:alice", "user:b%3Ab"]
    are_in = [[{"event": "subscribed", "topic": name}] for name in names]
    server.bifrost.topics.topic("mine:{name}", personal=True)
    assert [taken(server, client) for client in clients] == [[]] * 3
    declare(server, '"user:{name}": {personal: true}\n')
    assert [taken(server, client) for client in clients] == are_in
    server.bifrost.topics.reload()
    assert [taken(server, client) for client in clients] == [[]] * 3
    permissions.become(policy("{}"))
    server.bifrost.topics.reload()
    assert [[event["event"] for event in taken(server, client)] for client in clients] == [["unsubscribed"]] * 3
    permissions.become(policy('{"user:$name": [subscribe], "mine:$name": [subscribe]}'))
    server.bifrost.topics.reload()
    assert [[event["topic"] for event in taken(server, client)] for client in clients] == [
        [f"mine:{name[5:]}", name] for name in names
    ]
    assert taken(server, nobody) == []


def test_own_topics_of_a_program_that_declares_them_late():
    """The same, where a program declares the kind while clients are connected, and none of them is in any topic."""
    server = MemoryServer()
    client = server.connect(identity=ALICE)
    server.bifrost.topics.topic("user:{name}", personal=True)
    assert taken(server, client) == [{"event": "subscribed", "topic": "user:alice"}]


def test_a_no_that_comes_late_ends_no_later_subscription():
    """The program is asked again about those who are subscribed; who has subscribed anew since has its own answer."""
    server = MemoryServer()
    rooms = server.bifrost.topics.topic("room:{id}")
    answers: list[Deferred[bool]] = []

    @rooms.allow("subscribe")
    def may(identity: Identity, id: str) -> Deferred[bool]:
        answers.append(Deferred())
        return answers[-1]

    client = server.connect(identity=ALICE)
    client.call("zSubscribe", {"topic": "room:1"})
    answers.pop().callback(True)
    for is_begun_anew in (True, False):
        server.bifrost.topics.reload()
        server.settle()
        if is_begun_anew:
            client.call("zSubscribe", {"topic": "room:1"})
            answers.pop().callback(True)
        answers.pop().callback(False)
        ended = [] if is_begun_anew else [{"event": "unsubscribed", "topic": "room:1", "reason": "permission_denied"}]
        assert taken(server, client) == ended


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_program_that_does_not_answer_when_it_is_asked_again(is_gone: bool):
    """After the time of a command that is a no, as an error is; where the client is gone nobody is asked any more."""
    server = MemoryServer(command_timeout=10.0)
    rooms = server.bifrost.topics.topic("room:{id}")
    asked: list[Deferred[bool]] = []
    given_up: list[Deferred[bool]] = []

    @rooms.allow("subscribe")
    def may(identity: Identity, id: str) -> Any:
        if not asked:
            asked.append(Deferred())
            return True
        asked.append(Deferred(given_up.append))
        return asked[-1]

    client = server.connect(identity=ALICE)
    assert answer(server, client, "zSubscribe", {"topic": "room:1"}) == {"topic": "room:1"}
    server.bifrost.topics.reload()
    server.settle()
    assert len(asked) == 2
    if is_gone:
        client.vanish()
        server.settle()
        assert given_up == asked[1:]
        return
    server.advance(9)
    assert taken(server, client) == []
    server.advance(1)
    assert taken(server, client) == [{"event": "unsubscribed", "topic": "room:1", "reason": "permission_denied"}]
    assert given_up == asked[1:]


def test_a_slow_client_of_a_topic_that_keeps_less_now(declare: Callable[[MemoryServer, str], None]):
    """It is told that something is lost, and goes on from where the topic stands."""
    server = MemoryServer(publish_rate=10_000)
    declare(server, '"room:{id}": {history: 100, publish: anybody}\n')
    client, other = server.connect(identity=ALICE), server.connect(identity=ALICE)
    answer(server, client, "zSubscribe", {"topic": "room:1"})
    client.stop_reading()
    for number in range(150):
        answer(server, other, "zPublish", {"topic": "room:1", "data": "x" * 20_000 + str(number)})
    assert client.closed is None
    client.read_again()
    (event,) = taken(server, client)
    assert (event["event"], event["offset"], event["recovered"], event["reason"]) == ("topic", 150, False, "too_old")
    client.stop_reading()
    for number in range(90):
        answer(server, other, "zPublish", {"topic": "room:1", "data": "x" * 20_000 + str(number)})
    client.read_again()
    assert [event["offset"] for event in taken(server, client)] == list(range(151, 241))


def test_a_repeated_message_of_a_topic_that_was_numbered_anew(declare: Callable[[MemoryServer, str], None]):
    """It has no position any more: that would be taken for one of now, behind which something unnumbered is missing."""
    server = MemoryServer()
    kept, not_kept = '"room:{id}": {history: 5, publish: anybody}\n', '"room:{id}": {publish: anybody}\n'
    declare(server, kept)
    client = server.connect(identity=ALICE)
    message = {"topic": "room:1", "data": 1, "_idempotencyKey": "k"}
    first = answer(server, client, "zPublish", message)
    assert first["offset"] == 1
    declare(server, kept)
    assert answer(server, client, "zPublish", message) == first
    declare(server, not_kept)
    assert answer(server, client, "zPublish", message) == {"topic": "room:1"}
    assert answer(server, client, "zPublish", {"topic": "room:1", "data": 2}) == {"topic": "room:1"}
    declare(server, kept)
    assert answer(server, client, "zPublish", message) == {"topic": "room:1"}
    assert answer(server, client, "zPublish", message | {"data": 2}) == "conflict"
    later = {"topic": "room:1", "data": 3, "_idempotencyKey": "k3"}
    last = answer(server, client, "zPublish", later)
    assert last["offset"] == 2 and last["epoch"] != first["epoch"]
    assert answer(server, client, "zPublish", later) == last
