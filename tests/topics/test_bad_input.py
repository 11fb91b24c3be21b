"""Commands on topics with every field wrong in type, size, range and name: each is answered with an error that has the
id, the code and the field; nothing happens, and the next good command works."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zcomm import Identity
from zcomm.testing import MemoryClient, MemoryServer

LONG = "x" * 10_000
NAMES = ["", " ", "room 1", "room:ä", "room:*", "room:{id}", "room\n", "a\0b", "x" * 256, "\ud800", '"', "\\", "room:~"]
NOT_TEXT = [None, True, 7, 1.5, [], {}, ["room:1"], {"topic": "room:1"}]
NOT_FLAG = [None, 0, 1, "true", "", [], {}, 1.0]
NOT_NUMBER = [None, True, 0, -1, 1001, 1.0, 1e300, "5", [], {}, 2**70, -(2**70)]
NOT_POSITION = [
    None,
    True,
    7,
    "e",
    [],
    {},
    {"epoch": "e"},
    {"offset": 1},
    {"epoch": "e", "offset": 1, "more": 1},
    {"epoch": "", "offset": 1},
    {"epoch": "x" * 65, "offset": 1},
    {"epoch": LONG, "offset": 1},
    {"epoch": 7, "offset": 1},
    {"epoch": None, "offset": 1},
    {"epoch": "e", "offset": -1},
    {"epoch": "e", "offset": 1.0},
    {"epoch": "e", "offset": "1"},
    {"epoch": "e", "offset": True},
    {"epoch": "e", "offset": None},
    {"epoch": "e", "offset": 2**53 + 1},
    {"epoch": "e", "offset": 2**64},
]
NOT_STATE = [None, True, 7, "x", [], [{}], {"a": "x" * 1024}, {"a": "x" * 1_000_000}, {"ä" * 600: 1}]
NOT_KEY = [None, 7, True, [], {}, "", "x" * 129, "a\nb", "ä", "\x7f", "\ud800"]
UNKNOWN = {"histroy": 1, "": 1, "Topic": 1, "__proto__": 1, "x" * 5000: 1, "\ud800": 1, "ä\n": 1}


def cases() -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    commands: dict[str, dict[str, Any]] = {
        "zSubscribe": {"topic": "room:1"},
        "zUnsubscribe": {"topic": "room:1"},
        "zPublish": {"topic": "room:1", "data": 1},
        "zHistory": {"topic": "room:1"},
        "zPresence": {"topic": "room:1"},
    }
    wrong: dict[str, dict[str, list[Any]]] = {
        "zSubscribe": {
            "since": NOT_POSITION,
            "last": NOT_NUMBER,
            "presence": NOT_FLAG,
            "echo": NOT_FLAG,
            "state": NOT_STATE,
        },
        "zUnsubscribe": {},
        "zPublish": {"_idempotencyKey": NOT_KEY, "data": ["x" * 65_535, ["x" * 70_000], {"a": "ä" * 40_000}, "\ud800"]},
        "zHistory": {
            "since": NOT_POSITION,
            "before": [value for value in NOT_POSITION if value != 7],
            "limit": NOT_NUMBER,
            "reverse": NOT_FLAG,
        },
        "zPresence": {"state": NOT_STATE},
    }
    for key, good in commands.items():
        found += [(key, {**good, "topic": value}, "topic") for value in NAMES + NOT_TEXT]
        found += [(key, {name: value for name, value in good.items() if name != "topic"}, "topic")]
        found += [(key, {**good, field: value}, field) for field, values in wrong[key].items() for value in values]
        found += [(key, {**good, name: value}, name[:64]) for name, value in UNKNOWN.items()]
        found += [(key, value, "topic") for value in (None, True, 7, "room:1", [], ["room:1"], "")]
    found.append(("zPublish", {"topic": "room:1"}, "data"))
    found.append(("zSubscribe", {"topic": "room:1", "offset": 7}, "offset"))
    found.append(("zHistory", {"topic": "room:1", "before": -1}, "before"))
    return found


def in_room() -> tuple[MemoryServer, MemoryClient]:
    server = MemoryServer(ping_interval=3600.0, stall_timeout=3600.0)
    server.bifrost.topic("room:{id}", history=10, presence=True, publish="anybody")
    server.bifrost.topic("plain:{id}", publish="anybody")
    client = server.connect(identity=Identity("ann", "member"))
    return server, client


def error(client: MemoryClient, key: str, horizontal: Any, code: str) -> dict[str, Any]:
    """The error that a command is answered with, which has the id, the code and a text."""
    call = client.call(key, horizontal, request_id="the id")
    assert call.called, (key, horizontal)
    reply: dict[str, Any] = call.result
    if "\\ud800" in json.dumps(horizontal):
        # JSON that has no form in UTF-8 is none.
        code = "bad_message"
    assert reply["_requestId"] == "the id" and reply.get("code") == code, (key, str(horizontal)[:200], reply)
    assert isinstance(reply["error"], str) and 0 < len(reply["error"]) < 400
    assert "event" not in reply and "result" not in reply
    return reply


def test_every_field_wrong():
    """Each is ``invalid``, names the field in ``fields`` and has its name in the text; the topic is as it was."""
    server, client = in_room()
    assert "result" in client.call("zSubscribe", {"topic": "room:1"}).result
    before = client.call("zPresence", {"topic": "room:1"}).result["result"]
    checked = 0
    for key, horizontal, field in cases():
        reply = error(client, key, horizontal, "invalid")
        assert reply["retryable"] is False
        if isinstance(horizontal, dict) and reply["code"] == "invalid":
            assert list(reply["fields"]) == [field], (key, horizontal, reply)
            assert field[:20] in reply["error"] or "\n" in field
        checked += 1
    assert checked > 200
    assert client.messages == []
    assert client.call("zPresence", {"topic": "room:1"}).result["result"] == before
    assert client.call("zPublish", {"topic": "room:1", "data": "hi"}).result["result"]["offset"] == 1
    assert [message["data"] for message in client.messages] == ["hi"]
    assert client.closed is None and server.bifrost.topics.hub.subscriptions == 1


def test_raw_json_that_is_odd():
    """Numbers that are none, deep nesting, doubled fields, odd escapes: an answer, and the connection goes on."""
    _, client = in_room()
    for text in (
        '{"zKey":"zPublish","_requestId":1,"zHorizontal":{"topic":"room:1","data":NaN}}',
        '{"zKey":"zPublish","_requestId":2,"zHorizontal":{"topic":"room:1","data":1e999}}',
        '{"zKey":"zPublish","_requestId":3,"zHorizontal":{"topic":"room:1","data":"\\ud800"}}',
        '{"zKey":"zSubscribe","_requestId":4,"zHorizontal":{"topic":"\\ud800"}}',
        '{"zKey":"zSubscribe","_requestId":5,"zHorizontal":{"topic":"room:1","state":{"\\ud800":"\\udfff"}}}',
        '{"zKey":"zSubscribe","_requestId":6,"zHorizontal":{"topic":"room:1","since":{"epoch":"\\ud800","offset":1}}}',
        '{"zKey":"zSubscribe","_requestId":7,"zHorizontal":{"topic":"room:1","last":1e2}}',
        '{"zKey":"zPublish","_requestId":8,"zHorizontal":{"topic":"room:1","data":' + "[" * 70 + "]" * 70 + "}}",
        '{"zKey":"zPublish","_requestId":9,"zHorizontal":{"topic":"room:2","topic":"room:3","data":1}}',
    ):
        client.send(text)
    assert client.closed is None
    for message in client.messages:
        assert "result" in message or message["code"] == "invalid" or message["code"] == "bad_message", message
    assert "result" in client.call("zSubscribe", {"topic": "room:1"}).result


@pytest.mark.parametrize(("extra", "fits"), [(-1, True), (0, True), (1, False)])
def test_how_large_a_message_may_be(extra: int, fits: bool):
    """64 KiB of JSON, quotes included, in whatever characters; a state 1 KiB."""
    server, client = in_room()
    for size, text in ((65_536, "x"), (65_536, "ä")):
        data = text * ((size - 2 + extra) // len(text.encode())) + "y" * ((size - 2 + extra) % len(text.encode()))
        assert len(json.dumps(data, ensure_ascii=False).encode()) == size + extra
        if fits:
            assert "result" in client.call("zPublish", {"topic": "room:1", "data": data}).result
        else:
            reply = error(client, "zPublish", {"topic": "room:1", "data": data}, "invalid")
            assert list(reply["fields"]) == ["data"] and str(size + extra) in reply["error"]
    state = {"a": "x" * (1024 - len('{"a":""}') + extra)}
    if fits:
        assert "result" in client.call("zSubscribe", {"topic": "room:2", "state": state}).result
        assert "result" in client.call("zPresence", {"topic": "room:2", "state": state}).result
    else:
        error(client, "zSubscribe", {"topic": "room:2", "state": state}, "invalid")
        client.call("zSubscribe", {"topic": "room:2"})
        error(client, "zPresence", {"topic": "room:2", "state": state}, "invalid")
        assert server.bifrost.topics.members("room:2").result["members"] == {
            "ann": {next(iter(server.bifrost.topics.hub.subscribers)): {}}
        }


def test_what_a_kind_does_not_have():
    """Presence and history of a kind without: ``invalid``, and which field asks for it."""
    _, client = in_room()
    for horizontal, field in (({"presence": True}, "presence"), ({"state": {}}, "state")):
        reply = error(client, "zSubscribe", {"topic": "plain:1", **horizontal}, "invalid")
        assert list(reply["fields"]) == [field]
    assert list(error(client, "zHistory", {"topic": "plain:1"}, "invalid")["fields"]) == ["topic"]
    assert list(error(client, "zPresence", {"topic": "plain:1"}, "invalid")["fields"]) == ["topic"]
    assert list(error(client, "zPresence", {"topic": "room:1", "state": {}}, "invalid")["fields"]) == ["state"]
    assert client.call("zSubscribe", {"topic": "plain:1", "since": {"epoch": "e", "offset": 3}}).result["result"] == {
        "topic": "plain:1",
        "recovered": False,
        "reason": "not_kept",
    }
    assert client.call("zSubscribe", {"topic": "plain:1", "last": 5}).result["result"] == {"topic": "plain:1"}
    assert client.call("zPublish", {"topic": "plain:1", "data": 1}).result["result"] == {"topic": "plain:1"}
    assert client.messages == [{"event": "message", "topic": "plain:1", "data": 1, "from": "ann"}]


def test_a_topic_of_no_kind():
    """Without a policy it is not found, with the nearest pattern."""
    _, client = in_room()
    for key, more in (("zSubscribe", {}), ("zPublish", {"data": 1}), ("zHistory", {}), ("zPresence", {})):
        assert "rooms:1" in error(client, key, {"topic": "rooms:1", **more}, "not_found")["error"]
    assert client.call("zUnsubscribe", {"topic": "rooms:1"}).result["result"] == {"topic": "rooms:1"}


def test_positions_from_elsewhere():
    """Of another topic, of no epoch there ever was, of the future: not recovered, with the reason; and subscribed."""
    _, client = in_room()
    other = client.call("zPublish", {"topic": "room:2", "data": 1}).result["result"]
    here = client.call("zPublish", {"topic": "room:1", "data": 1}).result["result"]
    for since, reason in (
        ({"epoch": other["epoch"], "offset": 1}, "epoch"),
        ({"epoch": "never", "offset": 1}, "epoch"),
        ({"epoch": here["epoch"] + "-1", "offset": 1}, "epoch"),
        ({"epoch": "-", "offset": 1}, "epoch"),
        ({"epoch": here["epoch"] + "-", "offset": 1}, "epoch"),
        ({"epoch": here["epoch"], "offset": 2}, "history_lost"),
        ({"epoch": here["epoch"], "offset": 2**53}, "history_lost"),
    ):
        for more in ({}, {"last": 10}):
            result = client.call("zSubscribe", {"topic": "room:1", "since": since, **more}).result["result"]
            assert result == {
                "topic": "room:1",
                "epoch": here["epoch"],
                "offset": 1,
                "recovered": False,
                "reason": reason,
            }
        result = client.call("zHistory", {"topic": "room:1", "since": since}).result["result"]
        assert result["recovered"] is False and result["reason"] == reason and "messages" not in result
    client.call("zPublish", {"topic": "room:1", "data": 2})
    assert client.messages[-1]["data"] == 2


def test_publishing_faster_than_one_may():
    """``too_busy``, retryable; what was within the rate is published, what was beyond is not, and others publish on."""
    server = MemoryServer(publish_rate=10.0, ping_interval=3600.0)
    ann, bob, eve = (server.connect(identity=Identity(name, "member")) for name in ("ann", "bob", "eve"))
    eve.call("zSubscribe", {"topic": "room:1"})
    for client in (ann, bob):
        client.call("zSubscribe", {"topic": "room:2"})
    replies = [ann.call("zPublish", {"topic": "room:1", "data": number}).result for number in range(50)]
    good = [number for number, reply in enumerate(replies) if "result" in reply]
    assert good == [*range(20)]
    assert {reply["code"] for reply in replies[20:]} == {"too_busy"} and all(r["retryable"] for r in replies[20:])
    assert "result" in bob.call("zPublish", {"topic": "room:1", "data": "bob"}).result
    server.advance(1)
    assert "result" in ann.call("zPublish", {"topic": "room:1", "data": "again"}).result
    assert [message["data"] for message in eve.messages] == [*good, "bob", "again"]


def test_more_topics_than_one_may():
    """``too_busy`` for the next; those one is in may begin again, and one that is left makes room."""
    _, client = in_room()
    for number in range(128):
        assert "result" in client.call("zSubscribe", {"topic": f"room:{number}"}).result
    reply = error(client, "zSubscribe", {"topic": "room:128"}, "too_busy")
    assert "128" in reply["error"]
    assert "result" in client.call("zSubscribe", {"topic": "room:5", "last": 3}).result
    client.call("zUnsubscribe", {"topic": "room:5"})
    assert "result" in client.call("zSubscribe", {"topic": "room:128"}).result


def test_the_same_key_for_something_else():
    """``conflict`` with the field; the same again has no effect, and the place it had."""
    _, client = in_room()
    client.call("zSubscribe", {"topic": "room:1"})
    asked = {"topic": "room:1", "data": {"a": 1}, "_idempotencyKey": "k"}
    first, again = (client.call("zPublish", asked).result["result"] for _ in range(2))
    assert first == again and len(client.messages) == 1
    assert client.messages[0]["key"] == "k"
    for other in ({"data": {"a": 2}}, {"topic": "room:2"}):
        assert list(error(client, "zPublish", {**asked, **other}, "conflict")["fields"]) == ["_idempotencyKey"]
    assert len(client.messages) == 1


def test_ten_thousand_pairs_at_once():
    """Whoever subscribes and unsubscribes without end is answered for each, in order, leaves nothing behind, and is
    told of what is published as long as it is in, and of nothing else. Another's ping is answered between."""
    server, client = in_room()
    other = server.connect(identity=Identity("bob", "member"))
    pings = []
    for number in range(10_000):
        client.outgoing.carry(
            json.dumps({"zKey": "zSubscribe", "zHorizontal": {"topic": f"room:{number % 7}"}, "_requestId": 2 * number})
        )
        client.outgoing.carry(
            json.dumps(
                {"zKey": "zUnsubscribe", "zHorizontal": {"topic": f"room:{number % 7}"}, "_requestId": 2 * number + 1}
            )
        )
        if number % 1000 == 0:
            pings.append(other.call("ping", number))
            assert pings[-1].called
            server.bifrost.topics.publish("room:1", number)
    server.settle()
    assert [message["_requestId"] for message in client.messages] == [*range(20_000)]
    assert all("result" in message for message in client.messages)
    topics = server.bifrost.topics
    assert len(topics.hub) == 0 and topics.hub.subscriptions == 0 and not topics.engine._heard
    assert not topics.engine._rosters and len(topics.engine.histories) == 1


def test_what_may_be_a_position_or_an_offset():
    """The error says what is taken: an offset alone as well where that is, and up to which number."""
    _, client = in_room()
    numbers = "a whole number from 0 to 9007199254740992"
    position = 'must be a position, {"epoch": …, "offset": …}'
    for offset in (-1, 2**53 + 1, "3", None):
        told = error(client, "zHistory", {"topic": "room:1", "before": offset}, "invalid")
        assert told["fields"] == {"before": f"{position}, or {numbers}"}
        told = error(client, "zHistory", {"topic": "room:1", "since": offset}, "invalid")
        assert told["fields"] == {"since": position}
        told = error(client, "zSubscribe", {"topic": "room:1", "since": {"epoch": "e", "offset": offset}}, "invalid")
        assert told["fields"] == {"since": f"its offset must be {numbers}"}
