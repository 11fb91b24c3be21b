"""Who may do what with topics: the policy, the kinds and the program's functions, which all have to say yes."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from zcomm import Identity
from zcomm.auth.policy import Policy
from zcomm.errors import CommandError, Invalid, PermissionDenied
from zcomm.testing import MemoryClient, MemoryServer
from zcomm.topics import judging

ANN, BOB, ADMIN = Identity("ann", "member"), Identity("b*b", "member"), Identity("root", "admin")

POLICY = """
admin: {topics: "*"}
member:
  topics:
    "room:*": [subscribe, publish, presence, history]
    "room:secret": []
    "user:$name": [subscribe, publish, history]
    "news": [subscribe]
blind: {}
"""


def policed(policy: str = POLICY) -> MemoryServer:
    server = MemoryServer(permissions=Policy.from_yaml(policy, "policy.yaml"), ping_interval=3600.0)
    for pattern, settings in {
        "room:{id}": {"history": 10, "presence": True, "publish": "anybody"},
        "user:{name}": {"history": 10, "publish": "anybody"},
        "news": {"history": 10, "publish": "nobody"},
        "hall": {"publish": "subscribers"},
    }.items():
        server.bifrost.topic(pattern, **settings)
    return server


def answer(client: MemoryClient, key: str, topic: str, **more: Any) -> str:
    """The code of the error, or ``ok``."""
    if key == "zPublish":
        more.setdefault("data", 1)
    call = client.call(key, {"topic": topic, **more})
    assert call.called
    reply = call.result
    return "ok" if "result" in reply else reply["code"]


COMMANDS = ("zSubscribe", "zPublish", "zHistory", "zPresence")


@pytest.mark.parametrize(
    ("identity", "topic", "answers"),
    [
        (ANN, "room:1", "ok ok ok ok"),
        (ANN, "room:secret", "permission_denied permission_denied permission_denied permission_denied"),
        (ANN, "user:ann", "ok ok ok permission_denied"),
        (ANN, "user:b%2Ab", "permission_denied permission_denied permission_denied permission_denied"),
        (BOB, "user:b%2Ab", "ok ok ok permission_denied"),
        (BOB, "user:bob", "permission_denied permission_denied permission_denied permission_denied"),
        (ANN, "news", "ok permission_denied permission_denied permission_denied"),
        (ADMIN, "news", "ok permission_denied ok invalid"),
        (ANN, "hall", "permission_denied permission_denied permission_denied permission_denied"),
        (ADMIN, "hall", "ok ok invalid invalid"),
        (ANN, "undeclared", "permission_denied permission_denied permission_denied permission_denied"),
        (ADMIN, "undeclared", "permission_denied permission_denied permission_denied permission_denied"),
        (Identity("eve", "blind"), "room:1", "permission_denied permission_denied permission_denied permission_denied"),
        (Identity("eve", "none"), "room:1", "permission_denied permission_denied permission_denied permission_denied"),
    ],
)
def test_a_policy(identity: Identity, topic: str, answers: str):
    """What is not granted, and what there is not, have one answer; a line for a name alone stands for that topic; one's
    own name stands as it is written in topics, and no star in it is one."""
    client = policed().connect(identity=identity)
    assert " ".join(answer(client, key, topic) for key in COMMANDS) == answers


def test_presence_is_a_right_of_its_own():
    """Who has only ``subscribe`` may be in, say something of itself, and hear how many there are; nobody's name."""
    server = MemoryServer(
        permissions=Policy.from_yaml('member: {topics: {"room:*": [subscribe]}}', "policy.yaml"), ping_interval=3600.0
    )
    server.bifrost.topic("room:{id}", presence=True)
    client = server.connect(identity=ANN)
    assert answer(client, "zSubscribe", "room:1", presence=True) == "permission_denied"
    assert answer(client, "zPresence", "room:1") == "permission_denied"
    assert answer(client, "zSubscribe", "room:1", state={"a": 1}) == "ok"
    assert answer(client, "zPresence", "room:1") == "permission_denied"
    told = client.call("zPresence", {"topic": "room:1", "state": {"a": 2}}).result["result"]
    assert told["users"] == 1 and "members" not in told
    server.advance(1)
    assert client.messages == []


def test_rights_that_are_withdrawn(monkeypatch: pytest.MonkeyPatch):
    """Every subscription is judged anew: who may no longer is told, hears nothing more, and is no member; others are
    not disturbed. What is granted again is asked for again."""
    # However busy the machine is, all are judged in one turn.
    monkeypatch.setattr(judging, "SLICE", 60.0)
    current = [Policy.from_yaml(POLICY, "policy.yaml")]

    class Rights:
        def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
            return current[0].allows(identity, action, kind, name)

        def rows(self, identity: Identity, model: str) -> Any:
            return current[0].rows(identity, model)

    server = MemoryServer(permissions=Rights(), ping_interval=3600.0)
    server.bifrost.topic("room:{id}", history=10, presence=True, publish="anybody")
    ann, root = server.connect(identity=ANN), server.connect(identity=ADMIN)
    for client in (ann, root):
        assert answer(client, "zSubscribe", "room:1", presence=True) == "ok"
    server.advance(1)
    for client in (ann, root):
        client.messages.clear()
    topics = server.bifrost.topics
    topics.reload()
    server.settle()
    assert ann.messages == [] and root.messages == []
    current[0] = Policy.from_yaml('admin: {topics: "*"}\nmember: {topics: {"room:1": [history]}}', "policy.yaml")
    topics.reload()
    topics.publish("room:1", "secret")
    server.advance(1)
    assert ann.messages == [{"event": "unsubscribed", "topic": "room:1", "reason": "permission_denied"}]
    assert [message["event"] for message in root.messages] == ["message", "presence"]
    assert root.messages[1]["gone"] == ["ann"]
    assert answer(ann, "zSubscribe", "room:1") == "permission_denied"


@pytest.mark.parametrize("action", ["subscribe", "publish", "presence", "history"])
@pytest.mark.parametrize("way", ["value", "deferred", "later", "coroutine"])
@pytest.mark.parametrize("says", [True, False, None, 0, "yes"])
def test_the_program_is_asked(action: str, way: str, says: Any):
    """With the identity and the parts of the name, after the policy; a value, a Deferred or a coroutine: what is true
    is a yes."""
    server = MemoryServer(ping_interval=3600.0)
    rooms = server.bifrost.topic("room:{id}:{part}", history=10, presence=True, publish="anybody")
    asked: list[Any] = []
    waiting: Deferred[Any] = Deferred()

    @rooms.allow(action)
    def allow(identity: Identity, id: str, part: str) -> Any:
        asked.append((identity.name, id, part))

        async def later() -> Any:
            return says

        return {"value": says, "deferred": succeed(says), "later": waiting}.get(way) if way != "coroutine" else later()

    client = server.connect(identity=ANN)
    key = {"subscribe": "zSubscribe", "publish": "zPublish", "presence": "zPresence", "history": "zHistory"}[action]
    horizontal = {"topic": "room:1:a", **({"data": 1} if action == "publish" else {})}
    call = client.call(key, horizontal)
    assert call.called is (way != "later")
    waiting.callback(says)
    server.settle()
    assert asked == [("ann", "1", "a")]
    assert ("result" in call.result) is bool(says)
    assert says or call.result["code"] == "permission_denied"
    for other in {*COMMANDS} - {key}:
        assert answer(client, other, "room:1:a") == "ok"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionDenied("Members only"), "permission_denied"),
        (Invalid("id: there is no such room", {"id": "there is no such room"}), "invalid"),
        (CommandError("Closed at night"), None),
        (ValueError("a bug"), "internal"),
    ],
)
@pytest.mark.parametrize("is_later", [False, True])
def test_functions_that_raise(error: Exception, code: str | None, is_later: bool):
    """What is declared is told in its own words, a bug in none of its own; nobody is subscribed."""
    server = MemoryServer(ping_interval=3600.0)
    rooms = server.bifrost.topic("room:{id}", history=10)

    @rooms.allow("subscribe")
    def allow(identity: Identity, id: str) -> Any:
        if is_later:
            return fail(error)
        raise error

    client = server.connect(identity=ANN)
    reply = client.call("zSubscribe", {"topic": "room:1"}).result
    assert reply["code"] == (code or type(error).code)
    assert ("a bug" in reply["error"]) is False
    assert server.bifrost.topics.hub.subscriptions == 0


def test_a_function_that_says_no_later():
    """Who is subscribed is asked for again when rights are read anew, and ends where the program says no by then, or
    fails; as long as it is asked, it stays."""
    server = MemoryServer(ping_interval=3600.0)
    rooms = server.bifrost.topic("room:{id}")
    answers: list[Any] = [True, True, True]
    rooms.allow("subscribe")(lambda identity, id: answers.pop(0))
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    for client in (ann, bob):
        assert answer(client, "zSubscribe", "room:1") == "ok"
    later: Deferred[bool] = Deferred()
    answers[:] = [later, fail(PermissionDenied())]
    server.bifrost.topics.reload()
    server.settle()
    assert ann.messages == []
    assert bob.messages == [{"event": "unsubscribed", "topic": "room:1", "reason": "permission_denied"}]
    later.callback(False)
    server.settle()
    assert ann.messages == [{"event": "unsubscribed", "topic": "room:1", "reason": "permission_denied"}]


def test_what_clients_publish_is_looked_at():
    """The function gets identity, data and parts; what it returns is published. What it refuses is not, and what the
    program publishes is not shown to it. A repetition is known by what the client has sent."""
    server = MemoryServer(ping_interval=3600.0)
    rooms = server.bifrost.topic("room:{id}", history=10, publish="anybody")
    seen: list[Any] = []

    @rooms.incoming
    def clean(identity: Identity, data: Any, id: str) -> Any:
        seen.append((identity.name, data, id))
        if data == "rude":
            raise Invalid("text: too rude", {"text": "too rude"})
        return {"text": data, "number": len(seen)}

    client = server.connect(identity=ANN)
    answer(client, "zSubscribe", "room:1")
    for _ in range(2):
        assert answer(client, "zPublish", "room:1", data="hi", _idempotencyKey="k") == "ok"
    assert answer(client, "zPublish", "room:1", data="ho", _idempotencyKey="k") == "conflict"
    refused = client.call("zPublish", {"topic": "room:1", "data": "rude"}).result
    assert refused["code"] == "invalid" and refused["fields"] == {"text": "too rude"}
    server.bifrost.topics.publish("room:1", "rude")
    server.settle()
    assert [message["data"] for message in client.messages] == [{"text": "hi", "number": 1}, "rude"]
    assert [message.get("from") for message in client.messages] == ["ann", None]
    assert ("ann", "hi", "1") in seen and len(seen) == 4


@pytest.mark.parametrize(
    ("publish", "outside", "inside"),
    [
        ("nobody", "permission_denied", "permission_denied"),
        ("subscribers", "permission_denied", "ok"),
        ("anybody", "ok", "ok"),
    ],
)
def test_who_publishes(publish: str, outside: str, inside: str):
    """Nobody but the program, who is subscribed, or anybody; after unsubscribing one is outside again."""
    server = MemoryServer(ping_interval=3600.0)
    server.bifrost.topic("room:{id}", publish=publish)
    client = server.connect(identity=ANN)
    assert answer(client, "zPublish", "room:1") == outside
    answer(client, "zSubscribe", "room:1")
    assert answer(client, "zPublish", "room:1") == inside
    answer(client, "zUnsubscribe", "room:1")
    assert answer(client, "zPublish", "room:1") == outside
    assert "error" not in str(server.bifrost.topics.publish("room:1", 1).result)


def personal(**settings: Any) -> MemoryServer:
    server = MemoryServer(ping_interval=3600.0)
    server.bifrost.topic("user:{name}", personal=True, **({"history": 10} | settings))
    return server


def test_personal_topics():
    """Everybody is in their own by themselves, told by an event, and nobody else gets in, reads or writes there; one
    may begin it anew, and does not leave it."""
    server = personal(presence=True)
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    assert ann.messages[0]["event"] == "subscribed" and ann.messages[0]["topic"] == "user:ann"
    assert bob.messages[0]["topic"] == "user:b%2Ab"
    epoch = ann.messages[0]["epoch"]
    server.bifrost.topics.publish("user:ann", "for ann")
    server.settle()
    assert [message.get("data") for message in ann.messages] == [None, "for ann"] and len(bob.messages) == 1
    for key in COMMANDS:
        assert answer(bob, key, "user:ann") == "permission_denied"
    assert bob.call("zUnsubscribe", {"topic": "user:ann"}).result["result"] == {"topic": "user:ann"}
    assert answer(ann, "zUnsubscribe", "user:ann") == "invalid"
    ann.vanish()
    server.bifrost.topics.publish("user:ann", "missed")
    back = server.connect(identity=ANN)
    assert back.messages == [{"event": "subscribed", "topic": "user:ann", "epoch": epoch, "offset": 2}]
    reply = back.call("zSubscribe", {"topic": "user:ann", "since": {"epoch": epoch, "offset": 1}}).result["result"]
    assert reply["recovered"] and [message["data"] for message in reply["messages"]] == ["missed"]
    server.bifrost.topics.publish("user:ann", "live")
    server.settle()
    assert [message["offset"] for message in back.messages[1:]] == [3]


def test_who_has_no_topic_of_their_own():
    """``anonymous`` and names that are too long: they are told nothing, and get into nobody's."""
    server = personal()
    for name in ("anonymous", "x" * 251, "é" * 90):
        client = server.connect(identity=Identity(name, "member"))
        assert client.messages == [] and answer(client, "zSubscribe", "user:anonymous") == "permission_denied"


def test_the_program_puts_clients_into_topics():
    """All connections of a user that the policy lets, each told once; out again with ``ended``. Presence is told."""
    server = policed()
    topics = server.bifrost.topics
    heard: list[Any] = []
    topics.on_presence("room:{id}")(lambda arrived, gone, id: heard.append((arrived, gone, id)))
    first, second, other = (server.connect(identity=who) for who in (ANN, ANN, BOB))

    def subscribed(topic: str, user: str) -> Any:
        done = topics.subscribe(topic, user)
        # On a busy machine that takes more than one turn.
        server.settle()
        return done.result

    assert subscribed("room:1", "ann") == 2
    assert subscribed("room:1", "ann") == 0
    assert subscribed("room:secret", "ann") == 0
    assert subscribed("room:1", "nobody") == 0
    server.advance(1)
    for client in (first, second):
        assert [message["event"] for message in client.messages] == ["subscribed"]
        assert "_requestId" not in client.messages[0]
        client.messages.clear()
    assert heard == [(["ann"], [], "1")]
    first.vanish()
    server.advance(1)
    assert len(heard) == 1
    assert topics.unsubscribe("room:1", "b*b") == 0 and topics.unsubscribe("room:1") == 1
    server.advance(1)
    assert second.messages == [{"event": "unsubscribed", "topic": "room:1", "reason": "ended"}]
    assert other.messages == [] and heard[1:] == [([], ["ann"], "1")]


def test_functions_that_hear_of_presence_and_fail():
    """They stop nobody: the others hear of it, and the members are told."""
    server = policed()
    topics = server.bifrost.topics
    heard: list[Any] = []

    @topics.on_presence("room:{id}")
    def broken(arrived: list[str], gone: list[str], id: str) -> None:
        raise ValueError("a bug")

    @topics.on_presence("{kind}:{id}")
    async def good(arrived: list[str], gone: list[str], kind: str, id: str) -> None:
        heard.append((arrived, gone, kind, id))

    watcher, client = server.connect(identity=ADMIN), server.connect(identity=ANN)
    answer(watcher, "zSubscribe", "room:1", presence=True)
    server.advance(1)
    answer(client, "zSubscribe", "room:1")
    client.vanish()
    server.advance(1)
    assert heard == [(["root"], [], "room", "1")]
    assert [message["event"] for message in watcher.messages[-1:]] == ["presence"]


def test_no_reply_of_topics_is_broadcast():
    """Also where the results of all commands are told to all: others hear of a topic by being in it."""
    server = MemoryServer(broadcast="all", ping_interval=3600.0)
    client, other = server.connect(identity=ANN), server.connect(identity=BOB)
    for key in (*COMMANDS, "zUnsubscribe"):
        assert answer(client, key, "room:1") == "ok"
    server.settle()
    assert other.messages == []
