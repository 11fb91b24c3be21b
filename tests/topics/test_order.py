"""The commands of one connection on one topic, whatever the program's functions do: in order, each once, none that was
given up; and what waits takes nothing with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed

from zcomm import Identity
from zcomm.errors import Invalid
from zcomm.testing import MemoryClient, MemoryServer, assert_error, assert_reply
from zcomm.topics.kinds import Kind

ANN, BOB = Identity("ann", "member"), Identity("bob", "member")
ROOM = {"topic": "room:1"}


class Slow:
    """A function of the program whose answers the test gives, one after the other."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.waiting: list[Deferred[Any]] = []

    def __call__(self, identity: Identity, *data: Any, id: str) -> Deferred[Any]:
        self.asked.append(data[0] if data else identity.name)
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def answer(self, value: Any) -> None:
        self.waiting.pop(0).callback(value)


class Rights:
    """Everybody may do everything, but for what the test has denied: actions and topics."""

    def __init__(self) -> None:
        self.denied: set[str] = set()

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return action not in self.denied and name not in self.denied

    def rows(self, identity: Identity, model: str) -> None:
        return None


def server_with(**settings: Any) -> tuple[MemoryServer, Any]:
    server = MemoryServer(command_timeout=30.0, stall_timeout=3600.0, ping_interval=3600.0)
    settings = {"history": 100, "publish": "anybody"} | settings
    return server, server.bifrost.topic("room:{id}", **settings)


def result(deferred: Deferred[Any]) -> Any:
    """The result of a call that has been answered."""
    assert_reply(deferred, deferred.result["result"] if "result" in deferred.result else None)
    return deferred.result["result"]


def texts(client: MemoryClient) -> list[Any]:
    return [message.get("data") for message in client.messages if message["event"] == "message"]


def test_commands_take_effect_in_the_order_they_were_sent():
    """A publish that waits for the program holds back what comes behind it on that topic, and nothing on another."""
    server, rooms = server_with()
    slow = Slow()
    rooms.incoming(slow)
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    result(bob.call("zSubscribe", ROOM))
    first = ann.call("zPublish", {**ROOM, "data": 1})
    second = ann.call("zPublish", {**ROOM, "data": 2})
    third = ann.call("zSubscribe", {**ROOM, "last": 10})
    other = ann.call("zSubscribe", {"topic": "room:2"})
    assert not first.called and not second.called and not third.called and other.called
    assert slow.asked == [1]
    slow.answer("one")
    server.settle()
    assert slow.asked == [1, 2] and first.called and not second.called and not third.called
    slow.answer("two")
    server.settle()
    assert [message["data"] for message in result(third)["messages"]] == ["one", "two"]
    assert texts(bob) == ["one", "two"]


@pytest.mark.parametrize("answer", [True, succeed])
def test_a_slow_client_that_unsubscribes(answer: Any):
    """Its zSubscribe waits until it has taken what it was sent, and the zUnsubscribe behind it waits as well, also
    where the program says yes with a Deferred that has fired: the last word is the client's."""
    server, rooms = server_with()
    rooms.allow("subscribe")(lambda identity, id: answer(True) if callable(answer) else answer)
    ann = server.connect(identity=ANN)
    epoch = result(ann.call("zSubscribe", ROOM))["epoch"]
    result(ann.call("zUnsubscribe", ROOM))
    ann.stop_reading()
    ann.call("zSubscribe", {**ROOM, "since": {"epoch": epoch, "offset": 0}})
    left = ann.call("zUnsubscribe", ROOM)
    ann.read_again()
    assert left.called
    server.bifrost.topics.publish("room:1", "hi")
    server.settle()
    assert ann.messages == [] and server.bifrost.topics.hub.subscriptions == 0


@pytest.mark.parametrize("way", ["raises", "fails", "coroutine", "invalid", "no"])
def test_a_function_that_fails_while_others_wait(way: str):
    """The command is answered with an error of its own; those before and behind it are answered as if it were not
    there, however the function fails."""
    server, rooms = server_with()
    first = Deferred[Any]()
    asked: list[int] = []

    async def failing() -> Any:
        raise ValueError("in a coroutine")

    @rooms.incoming
    def look(identity: Identity, data: Any, id: str) -> Any:
        asked.append(data)
        if data == 1:
            return first
        if data == 3:
            return "three"
        if way == "raises":
            raise ValueError("at once")
        if way == "invalid":
            raise Invalid("text: too rude", {"text": "too rude"})
        if way == "coroutine":
            return failing()
        if way == "fails":
            failed = Deferred[Any]()
            failed.errback(ValueError("later"))
            return failed
        return object()

    ann = server.connect(identity=ANN)
    calls = [ann.call("zPublish", {**ROOM, "data": number}) for number in (1, 2, 3)]
    assert not any(call.called for call in calls) and asked == [1]
    first.callback("one")
    server.settle()
    assert result(calls[0])["offset"] == 1
    assert_error(calls[1], "invalid" if way in ("invalid", "no") else "internal")
    assert result(calls[2])["offset"] == 2
    assert result(ann.call("zPublish", {**ROOM, "data": 3}))["offset"] == 3
    assert not server.bifrost.topics.hub.subscribers or not next(
        iter(server.bifrost.topics.hub.subscribers.values())
    ).is_busy("room:1")


@pytest.mark.parametrize("action", ["subscribe", "publish", "incoming"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_what_timed_out_has_no_effect(action: str, goes_on: bool):
    """It neither joins nor publishes, also where the function goes on when it is cancelled, and says yes in the end;
    what comes behind it is asked for in its turn."""
    server, rooms = server_with()
    never: list[Deferred[Any]] = [Deferred(), Deferred()]
    late: list[Deferred[Any]] = []

    async def ask(*_: Any, id: str) -> Any:
        if not never:
            return True
        try:
            await never.pop(0)
        except CancelledError:
            if not goes_on:
                raise
            late.append(Deferred())
            await late[-1]
        return True

    if action == "incoming":
        rooms.incoming(lambda identity, data, id: ask(id=id))
    else:
        rooms.allow(action)(lambda identity, id: ask(id=id))
    ann = server.connect(identity=ANN)
    command = {**ROOM, "data": 1} if action != "subscribe" else ROOM
    key = "zSubscribe" if action == "subscribe" else "zPublish"
    first = ann.call(key, command)
    server.advance(15)
    behind = ann.call(key, command)
    server.advance(16)
    assert_error(first, "timeout")
    assert not behind.called
    server.advance(15)
    assert_error(behind, "timeout")
    for deferred in late:
        deferred.callback(None)
    server.settle()
    hub = server.bifrost.topics.hub
    assert hub.subscriptions == 0 and len(hub) == 0
    assert server.bifrost.topics.history("room:1").result["messages"] == []
    assert "error" not in ann.call(key, command).result


def test_rights_that_end_while_a_command_waits():
    """Who may no longer when the program has said yes does not come in: it is judged by the rights of that turn."""
    rights = Rights()
    server = MemoryServer(permissions=rights)
    rooms = server.bifrost.topic("room:{id}", history=10, publish="anybody")
    slow = Slow()
    rooms.allow("subscribe")(slow)
    rooms.incoming(slow)
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    coming, telling = ann.call("zSubscribe", ROOM), bob.call("zPublish", {**ROOM, "data": 1})
    rights.denied |= {"subscribe", "publish"}
    server.bifrost.topics.reload()
    slow.answer(True)
    slow.answer("one")
    server.settle()
    assert_error(coming, "permission_denied")
    assert_error(telling, "permission_denied")
    assert server.bifrost.topics.hub.subscriptions == 0
    assert server.bifrost.topics.history("room:1").result["messages"] == []


@pytest.mark.parametrize("end", ["vanish", "timeout", "denied"])
def test_a_large_answer_that_is_given_up_while_it_waits(end: str):
    """The room that was kept for it is free again: for the user it is as if it had never been asked for."""
    rights = Rights()
    server = MemoryServer(permissions=rights, results_size=4 * 1024 * 1024, stall_timeout=3600.0, ping_interval=3600.0)
    topics = server.bifrost.topics
    server.bifrost.topic("room:{id}", history=100, publish="anybody")
    for number in range(14):
        topics.publish("room:1", f"{number}" + "x" * 60_000)
    ann = server.connect(identity=ANN)
    connection = server.bifrost.clients[0]
    memory, account = topics.hub._budgets.memory, connection.account
    memory.take(account, 1_500_000)
    epoch = topics.history("room:1", limit=1).result["epoch"]
    call = ann.call("zSubscribe", {**ROOM, "since": {"epoch": epoch, "offset": 0}})
    call.addErrback(lambda failure: failure.trap(ConnectionError))
    assert not call.called
    ann.stop_reading()
    memory.release(account, 1_500_000)
    assert not call.called and account.held > 0
    if end == "vanish":
        ann.vanish()
    elif end == "timeout":
        server.advance(31)
        ann.read_again()
    else:
        rights.denied.add("room:1")
        ann.read_again()
    server.settle()
    assert account.held == 0 and memory.held == 0
    assert topics.hub.subscriptions == 0 and len(topics.hub) == 0


def test_a_program_that_publishes_and_reads_its_kinds_anew_in_one_turn():
    """What was published before leaves as it was numbered before, and before the new numbering is told."""
    server, rooms = server_with()
    ann = server.connect(identity=ANN)
    first = result(ann.call("zSubscribe", ROOM))
    topics = server.bifrost.topics
    topics.publish("room:1", "before")
    for history in (0, 100):
        topics.kinds.replace_file([Kind("room:1", history=history, publish="anybody")], "topics.yaml")
        assert topics.kinds.find("room:1").kind.history == history
    topics.hub.judging.judge(topics._goes_on)
    topics.publish("room:1", "behind")
    server.settle()
    before, event, behind = ann.messages
    assert (before["data"], before["offset"]) == ("before", 1)
    assert event["event"] == "topic" and event["offset"] == 1 and event["epoch"] != first["epoch"]
    assert (behind["data"], behind["offset"]) == ("behind", 2)


def test_a_kind_that_is_none_of_a_topics_business(tmp_path: Any):
    """That another kind comes, goes, or is kept from now on costs nobody their position: who was away resumes, and who
    is there is told nothing."""
    file = tmp_path / "topics.yaml"
    server = MemoryServer()
    topics = server.bifrost.topics
    rooms = "'room:{id}': {history: 10, publish: anybody}"
    file.write_text(rooms)
    topics.read_file(file)
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    first = result(ann.call("zSubscribe", ROOM))
    since = {name: result(bob.call("zSubscribe", ROOM))[name] for name in ("epoch", "offset")}
    bob.vanish()
    for number, more in enumerate(("'news:{id}': {history: 5}", "'news:{id}': {}", "'hall:{id}': {}"), 1):
        file.write_text(f"{rooms}\n{more}")
        topics.reload()
        server.settle()
        assert result(ann.call("zPublish", {**ROOM, "data": number})) == {**first, "offset": number}
    assert [message["event"] for message in ann.messages] == ["message"] * 3
    back = result(server.connect(identity=BOB).call("zSubscribe", {**ROOM, "since": since}))
    assert back["recovered"] is True and [message["data"] for message in back["messages"]] == [1, 2, 3]


def test_a_slow_client_while_a_kind_is_not_kept(tmp_path: Any):
    """What was published meanwhile has no number, and it has not had it: it is told that there is a hole, though the
    numbers of then and of now fit together."""
    file = tmp_path / "topics.yaml"
    kept, unkept = "'room:{id}': {history: 10, publish: anybody}", "'room:{id}': {publish: anybody}"
    server = MemoryServer(stall_timeout=3600.0, ping_interval=3600.0)
    topics = server.bifrost.topics
    file.write_text(kept)
    topics.read_file(file)
    ann = server.connect(identity=ANN)
    result(ann.call("zSubscribe", ROOM))
    topics.publish("room:1", 1)
    server.settle()
    ann.stop_reading()
    topics.publish("room:1", 2)
    server.settle()
    for text, data in ((unkept, "lost"), (kept, 3)):
        file.write_text(text)
        topics.reload()
        topics.publish("room:1", data)
        server.settle()
    ann.read_again()
    topics.publish("room:1", 4)
    server.settle()
    told = [message.get("data", message.get("recovered")) for message in ann.messages]
    assert told[0] == 1 and told[-1] == 4
    assert False in told[1:-1]
    offset = None
    for message in ann.messages:
        if message["event"] == "topic":
            offset = message["offset"] if "offset" in message else None
        else:
            assert offset is None or message["offset"] == offset + 1
            offset = message.get("offset")


def test_a_kind_that_is_declared_while_the_server_runs():
    """Its topics are what it says from then on; no message has a number that is none."""
    server, _ = server_with()
    ann = server.connect(identity=ANN)
    topics = server.bifrost.topics
    first = result(ann.call("zSubscribe", {"topic": "room:vip"}))
    topics.publish("room:vip", 1)
    server.settle()
    server.bifrost.topic("room:vip", publish="anybody")
    topics.publish("room:vip", 2)
    server.settle()
    message, event, other = ann.messages
    assert message["offset"] == 1
    assert event == {"event": "topic", "topic": "room:vip", "recovered": False, "reason": "not_kept"}
    assert other == {"event": "message", "topic": "room:vip", "data": 2}
    again = result(ann.call("zSubscribe", {"topic": "room:vip", "since": {"epoch": first["epoch"], "offset": 1}}))
    assert again == {"topic": "room:vip", "recovered": False, "reason": "not_kept"}


def test_very_many_topics_whose_kind_changes(tmp_path: Any):
    """Judging them takes several turns. What is published, or subscribed to, in between is of the kind of now."""
    file = tmp_path / "topics.yaml"
    server = MemoryServer(topics_per_client=10_000)
    topics = server.bifrost.topics
    file.write_text("'room:{id}': {history: 10, publish: anybody}")
    topics.read_file(file)
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    for number in range(2000):
        ann.call("zSubscribe", {"topic": f"room:{number}"})
    file.write_text("'room:{id}': {publish: anybody}")
    topics.reload()
    topics.publish("room:1999", "hi")
    late = bob.call("zSubscribe", {"topic": "room:1998", "last": 1})
    assert result(late) == {"topic": "room:1998"}
    server.settle()
    assert {message["event"] for message in ann.messages} == {"topic", "message"}
    assert len(ann.messages) == 2001 and all("offset" not in message for message in ann.messages)
    assert [message["event"] for message in ann.messages if message["topic"] == "room:1999"] == ["topic", "message"]


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_large_answer_that_need_not_wait(count: int):
    """It is sent like any other, and nothing is held for it once it is taken."""
    server, _ = server_with()
    topics = server.bifrost.topics
    for _ in range(count):
        topics.publish("room:1", "x" * 63_000)
    ann = server.connect(identity=ANN)
    told = result(ann.call("zSubscribe", {**ROOM, "last": 100}))
    again = result(ann.call("zSubscribe", {**ROOM, "since": {"epoch": told["epoch"], "offset": 0}}))
    assert len(told["messages"]) == len(again["messages"]) == count and again["recovered"] is True
    assert topics.hub._budgets.memory.held == 0


def test_replies_come_in_the_order_of_the_commands():
    """Also those that had to wait for one before: a client takes the last one for how things stand."""
    server, rooms = server_with()
    slow = Slow()
    rooms.allow("subscribe")(slow)
    ann = server.connect(identity=ANN)
    for number, key in enumerate(("zSubscribe", "zUnsubscribe", "zSubscribe", "zUnsubscribe", "zUnsubscribe")):
        ann.send({"zKey": key, "zHorizontal": ROOM, "_requestId": number})
    for _ in range(2):
        slow.answer(True)
        server.settle()
    assert [message["_requestId"] for message in ann.messages] == [0, 1, 2, 3, 4]
    assert server.bifrost.topics.hub.subscriptions == 0
    ann.messages.clear()
    ann.send({"zKey": "zSubscribe", "zHorizontal": ROOM, "_requestId": 5})
    slow.answer(True)
    server.settle()
    ann.stop_reading()
    slow.asked.clear()
    for number in (6, 7):
        ann.send({"zKey": "zSubscribe", "zHorizontal": {**ROOM, "last": number}, "_requestId": number})
    slow.answer(True)
    ann.read_again()
    slow.answer(True)
    server.settle()
    assert [message["_requestId"] for message in ann.messages] == [5, 6, 7]


def test_who_subscribes_while_something_is_published():
    """In the same turn: what was published before is in the position of the reply and does not come again; what is
    published behind it comes, and the reply before it."""
    server, _ = server_with()
    topics = server.bifrost.topics
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    first = result(bob.call("zSubscribe", ROOM))
    topics.publish("room:1", 1)
    since = {"epoch": first["epoch"], "offset": 0}
    asked = {"zKey": "zSubscribe", "zHorizontal": {**ROOM, "since": since}, "_requestId": 7}
    ann.outgoing.carry(json.dumps(asked))
    topics.publish("room:1", 2)
    bob.outgoing.carry(json.dumps({**asked, "_requestId": 8}))
    topics.publish("room:1", 3)
    server.settle()
    for client, count in ((ann, 1), (bob, 2)):
        reply, *events = [message for message in client.messages if message != {}]
        assert [message["data"] for message in reply["result"]["messages"]] == [*range(1, count + 1)]
        assert reply["result"]["offset"] == count
        assert [event["offset"] for event in events] == [*range(count + 1, 4)]


def test_what_reads_waits_for_its_turn():
    """A zHistory and a zPresence behind a zPublish that waits for the program see what that has done, and hold back
    what comes behind them."""
    server, rooms = server_with(presence=True)
    slow = Slow()
    rooms.incoming(slow)
    looks = Slow()
    rooms.allow("presence")(looks)
    ann = server.connect(identity=ANN)
    sent = ann.call("zPublish", {**ROOM, "data": 1})
    read = ann.call("zHistory", ROOM)
    seen = ann.call("zPresence", ROOM)
    joined = ann.call("zSubscribe", ROOM)
    assert not any(each.called for each in (sent, read, seen, joined))
    slow.answer("one")
    server.settle()
    assert [message["data"] for message in result(read)["messages"]] == ["one"]
    assert looks.asked == ["ann"] and not joined.called
    looks.answer(True)
    server.settle()
    assert result(seen)["connections"] == 0 and result(joined)["offset"] == 1


@pytest.mark.parametrize(("action", "key"), [("history", "zHistory"), ("presence", "zPresence")])
def test_the_first_command_of_a_connection_has_its_turn_as_well(action: str, key: str):
    """Also where it reads, and the connection has had nothing to do with topics before."""
    server, rooms = server_with(presence=True)
    slow = Slow()
    rooms.allow(action)(slow)
    ann = server.connect(identity=ANN)
    read = ann.call(key, ROOM)
    sent = ann.call("zPublish", {**ROOM, "data": 1})
    assert not read.called and not sent.called
    slow.answer(True)
    server.settle()
    assert result(read).get("offset", 0) == 0 and result(sent)["offset"] == 1


@pytest.mark.parametrize(("action", "key"), [("history", "zHistory"), ("presence", "zPresence")])
def test_rights_that_end_while_the_program_is_asked(action: str, key: str):
    """Who may no longer read when the program has said yes is told nothing."""
    rights = Rights()
    server = MemoryServer(permissions=rights)
    rooms = server.bifrost.topic("room:{id}", history=10, presence=True)
    slow = Slow()
    rooms.allow(action)(slow)
    ann = server.connect(identity=ANN)
    read = ann.call(key, ROOM)
    rights.denied.add(action)
    server.bifrost.topics.reload()
    slow.answer(True)
    server.settle()
    assert_error(read, "permission_denied")


@pytest.mark.parametrize("end", ["answer", "time", "loss"])
def test_a_program_that_is_asked_who_is_put_into_a_topic(end: str):
    """What the program does not answer in the time of a command keeps the connection's own commands on that topic
    waiting no longer; who is gone is not put in, and leaves nothing behind."""
    server, rooms = server_with()
    may = rooms.allow("subscribe")(Slow())
    ann, bob = server.connect(identity=ANN), server.connect(identity=BOB)
    put: list[int] = []
    server.bifrost.topics.subscribe("room:1", to="ann").addCallback(put.append)
    left = server.bifrost.topics.unsubscribe("room:1", to="ann")
    assert (put, left, may.asked) == ([], 0, ["ann"])
    own = ann.call("zPublish", ROOM | {"data": 1})
    if end == "answer":
        may.answer(True)
    elif end == "time":
        server.advance(29)
        assert put == []
        server.advance(1)
    else:
        ann.close()
        server.settle()
    assert put == [end == "answer"]
    if end == "loss":
        assert not [call for call in server.clock.getDelayedCalls() if call.getTime() == 30.0]
    else:
        server.settle()
        assert own.called
        assert_reply(bob.call("zHistory", ROOM | {"limit": 1}))
        assert [event["event"] for event in ann.messages] == (["subscribed", "message"] if end == "answer" else [])
    if end != "answer":
        may.answer(True)
        server.settle()
        assert server.bifrost.topics.hub.topic("room:1") is None


def test_very_many_commands_that_wait_for_one():
    """They are all answered when it is, however many they are, and so is what comes later."""
    server, rooms = server_with()
    asked: list[Deferred[bool]] = []

    @rooms.allow("subscribe")
    def member(identity: Identity, id: str) -> Any:
        asked.append(Deferred())
        return asked[0] if len(asked) == 1 else True

    ann = server.connect(identity=ANN)
    first = ann.call("zSubscribe", ROOM)
    counts: list[int] = []
    for _ in range(2000):
        server.topics.subscribe("room:1", "ann").addCallback(counts.append)
    last = ann.call("zHistory", ROOM)
    assert not first.called and not last.called and not counts
    asked[0].callback(True)
    server.settle()
    assert result(first)["topic"] == "room:1" and result(last)["messages"] == []
    assert counts == [0] * 2000
    assert result(ann.call("zPublish", {**ROOM, "data": 1}))["offset"] == 1


@pytest.mark.parametrize("history", [0, 5])
def test_a_program_that_declares_a_kind_while_it_is_asked(history: int):
    """What was published is of the kind that the topic has by then, for those who hear it and for who publishes."""
    server, rooms = server_with(history=5 - history)
    asked: list[str] = []

    @rooms.allow("publish")
    def member(identity: Identity, id: str) -> bool:
        asked.append(id)
        if len(asked) == 2:
            server.topics.topic("room:1", history=history, publish="anybody")
        return True

    ann = server.connect(identity=ANN)
    result(ann.call("zSubscribe", ROOM))
    replies = [result(ann.call("zPublish", {**ROOM, "data": data})) for data in range(3)]
    server.settle()
    events = [message for message in ann.messages if message["event"] == "message"]
    assert texts(ann) == [0, 1, 2] and asked == ["1", "1"]
    offsets = [None, 1, 2] if history else [1, None, None]
    assert [reply.get("offset") for reply in replies] == offsets
    assert [event.get("offset") for event in events] == offsets
