"""The promise of resume over real sockets: connections that end at any byte, clients that do not read, with TLS and
compression, against a server process."""

from __future__ import annotations

import itertools
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import Authority
from support.deflate import inflated
from support.examples import examples
from support.rawclient import BlockingRawClient, Frame, Opcode, build_frame
from support.serverprocess import RunningServer, start_server

pytestmark = pytest.mark.child

KINDS = """
"big:{id}": {history: 1000, publish: anybody}
"small:{id}": {history: 3, publish: anybody}
"""
DEFLATE = (("Sec-WebSocket-Extensions", "permessage-deflate"),)
numbers = itertools.count(1)


class Place:
    """A server process, and how to connect to it."""

    def __init__(self, server: RunningServer, tls: ssl.SSLContext | None):
        self.server = server
        self.tls = tls

    def connect(self, **options: Any) -> BlockingRawClient:
        return BlockingRawClient(self.server.port, token=self.server.token, tls=self.tls, **options)


def started(directory: Path, *options: str) -> RunningServer:
    (directory / "topics.yaml").write_text(KINDS)
    options = (
        "--topics",
        str(directory / "topics.yaml"),
        "--publish-rate",
        "100000",
        "--stall-timeout",
        "120",
        *options,
    )
    return start_server(*options, home=directory / "home")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server without TLS."""
    server = started(tmp_path_factory.mktemp("plain"))
    yield Place(server, None)
    server.stop()


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with TLS."""
    directory = tmp_path_factory.mktemp("secure")
    authority = Authority(directory)
    key, certificate = authority.issue("localhost", "127.0.0.1")
    server = started(directory, "--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}")
    context = ssl.create_default_context(cadata=authority.pem.decode())
    yield Place(server, context)
    server.stop()


@pytest.fixture(params=["plain", "plain, compressed", "secure"])
def place(request: pytest.FixtureRequest, plain: Place, secure: Place) -> tuple[Place, dict[str, Any]]:
    """A server, and what a client says to it when it connects."""
    name, _, compressed = request.param.partition(", ")
    return {"plain": plain, "secure": secure}[name], {"headers": DEFLATE} if compressed else {}


def value(frame: Frame) -> Any:
    """The message of a text frame."""
    assert frame.opcode == Opcode.TEXT, frame
    return json.loads(inflated(frame.payload) if frame.rsv else frame.payload)


class Follower:
    """What a client knows of one topic, over all its connections."""

    def __init__(self, topic: str):
        self.topic = topic
        self.position: dict[str, Any] | None = None
        self.got: list[Any] = []
        self.is_in = False

    def request(self) -> bytes:
        asked: dict[str, Any] = {"topic": self.topic}
        asked |= {"last": 1000} if self.position is None else {"since": self.position}
        self.is_in = False
        return frame_of("zSubscribe", asked, "subscribe")

    def take(self, message: Any) -> None:
        if message.get("_requestId") == "subscribe":
            result = message["result"]
            assert result.get("recovered", True), result
            assert self.position is None or result["offset"] - len(result["messages"]) == self.position["offset"]
            first = result["offset"] - len(result["messages"]) + 1
            for offset, each in enumerate(result["messages"], first):
                assert each["offset"] == offset
                self.got.append(each["data"]["n"])
            self.position = {"epoch": result["epoch"], "offset": result["offset"]}
            self.is_in = True
        elif message.get("event") == "message":
            # The reply is before any message behind it.
            assert self.is_in and self.position is not None
            assert message["offset"] == self.position["offset"] + 1
            self.position = {**self.position, "offset": message["offset"]}
            self.got.append(message["data"]["n"])


def frame_of(key: str, horizontal: dict[str, Any], number: Any) -> bytes:
    return build_frame(Opcode.TEXT, json.dumps({"zKey": key, "zHorizontal": horizontal, "_requestId": number}).encode())


def publish(client: BlockingRawClient, topic: str, n: int, size: int = 0) -> Any:
    return client.call("zPublish", {"topic": topic, "data": {"n": n, "pad": "x" * size}})["result"]


@examples(8, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(st.integers(1, 4000), st.integers(0, 120), st.booleans(), st.sampled_from([0, 50, 3000])),
        min_size=1,
        max_size=4,
    )
)
def test_a_connection_that_ends_at_any_byte(plain: Place, rounds: list[tuple[int, int, bool, int]]):
    """Of what it is sent, and of what it sends. Whatever had come by then, in the end it has had each message once, in
    order; and what it published with a key, again and again until it was answered, is there once."""
    topic = f"big:{next(numbers)}"
    follower = Follower(topic)
    counter = itertools.count(1)
    total = 0

    def own(number: int) -> dict[str, Any]:
        number %= 3
        return {"topic": f"small:{topic[4:]}", "data": number, "_idempotencyKey": f"{topic}-{number}"}

    with plain.connect() as author:
        for number, (cut, cut_of_own, is_rude, size) in enumerate(rounds):
            client = plain.connect()
            client.send(follower.request())
            for _ in range(3):
                publish(author, topic, next(counter), size)
            total += 3
            # What it publishes itself goes to another topic, a part of it.
            mine = frame_of("zPublish", own(number), "own")
            client.send(mine[:cut_of_own])
            left = cut
            while left > 0 and len(follower.got) < total:
                data = client.socket.recv(min(left, 2048))
                assert data
                left -= len(data)
                for frame in client.reader.feed(data):
                    follower.take(value(frame))
            if is_rude:
                client.abort()
            else:
                client.socket.close()
        with plain.connect() as client:
            client.send(follower.request())
            publish(author, topic, next(counter))
            total += 1
            while len(follower.got) < total:
                follower.take(client.next_json())
            assert follower.got == [*range(1, total + 1)]
            for number in range(len(rounds)):
                assert "result" in client.call("zPublish", own(number))
            kept = client.call("zHistory", {"topic": f"small:{topic[4:]}"})["result"]["messages"]
            assert sorted(message["data"] for message in kept) == sorted({number % 3 for number in range(len(rounds))})


def read_on(client: BlockingRawClient, followers: dict[str, Follower], totals: dict[str, int]) -> None:
    """Read until each has had all of it."""
    while any(len(follower.got) < totals[topic] for topic, follower in followers.items()):
        frame = client.next()
        if frame.opcode == Opcode.PING:
            client.send_frame(Opcode.PONG, frame.payload)
            continue
        assert frame.opcode == Opcode.TEXT, (frame.close_code, frame.close_reason)
        message = value(frame)
        assert "error" not in message, message
        topic = message.get("topic") or message["result"]["topic"]
        followers[topic].take(message)


@pytest.mark.parametrize(
    ("topics", "count", "size", "more"),
    [(3, 8, 62_000, 10_000), (1, 16, 63_000, 20_000), (8, 15, 65_000, 1000), (2, 960, 900, 2000)],
)
def test_large_replies_to_a_client_that_does_not_read(
    place: tuple[Place, dict[str, Any]], topics: int, count: int, size: int, more: int
):
    """It resumes topics of half a MiB, and of nearly one, all at once, and takes nothing while more is published in
    each: it is not closed, however much that is; and once it reads it is told all of it, in order."""
    served, options = place
    with served.connect() as author:
        known = {topic: Follower(topic) for topic in [f"big:{next(numbers)}" for _ in range(topics)]}
        for topic in known:
            position = author.call("zHistory", {"topic": topic})["result"]
            known[topic].position = {"epoch": position["epoch"], "offset": 0}
            for number in range(count):
                publish(author, topic, number, size)
        with served.connect(receive_buffer=32_768, **options) as slow:
            slow.send(b"".join(follower.request() for follower in known.values()))
            for number in range(count, count + 30):
                for topic in known:
                    publish(author, topic, number, more)
            read_on(slow, known, dict.fromkeys(known, count + 30))
            for topic, follower in known.items():
                assert follower.got == [*range(count + 30)]
                # It hears on.
                publish(author, topic, count + 30)
            read_on(slow, known, dict.fromkeys(known, count + 31))


def test_a_client_that_does_not_read_for_longer_than_is_kept(place: tuple[Place, dict[str, Any]]):
    """It is told once that it has missed some, and where it stands; what comes then is without a gap."""
    served, options = place
    topic = f"small:{next(numbers)}"
    with served.connect() as author, served.connect(receive_buffer=4096, **options) as slow:
        slow.send(frame_of("zSubscribe", {"topic": topic}, 1))
        offset = value(slow.next())["result"]["offset"]
        # More than the system and the server take for it.
        for number in range(200):
            publish(author, topic, number, 60_000 if number < 190 else 10)
        holes = 0
        last = None
        while offset < 200:
            message = value(slow.next())
            if message["event"] == "topic":
                assert message["recovered"] is False and message["reason"] == "too_old"
                assert message["offset"] > offset
                offset = message["offset"]
                holes += 1
            else:
                assert message["offset"] == offset + 1
                offset, last = message["offset"], message["data"]["n"]
        assert holes >= 1 and (last is None or last <= 199)
        publish(author, topic, 200)
        message = value(slow.next())
        assert (message["offset"], message["data"]["n"]) == (201, 200)


@pytest.mark.parametrize("piece", [1, 7, 1_000_000])
def test_many_messages_in_one_segment(plain: Place, piece: int):
    """Commands that come together, or byte by byte: each is answered, in order, and takes effect in order."""
    topic = f"big:{next(numbers)}"
    commands = [
        ("zSubscribe", {"topic": topic}),
        ("zPublish", {"topic": topic, "data": {"n": 1}}),
        ("zPublish", {"topic": topic, "data": {"n": 2}}),
        ("zUnsubscribe", {"topic": topic}),
        ("zPublish", {"topic": topic, "data": {"n": 3}}),
        ("zSubscribe", {"topic": topic, "last": 2, "echo": False}),
        ("zPublish", {"topic": topic, "data": {"n": 4}, "_idempotencyKey": topic}),
        ("zHistory", {"topic": topic, "reverse": True, "limit": 1}),
        ("ping", {}),
    ]
    data = b"".join(frame_of(key, asked, number) for number, (key, asked) in enumerate(commands))
    with plain.connect() as client:
        for start in range(0, len(data), piece):
            client.send(data[start : start + piece])
        messages = []
        while not messages or messages[-1].get("_requestId") != len(commands) - 1:
            messages.append(client.next_json())
        client.send(frame_of("ping", {}, "last"))
        # On a busy machine the event of the last message leaves behind that reply.
        while not any("own" in each for each in messages) or not any(
            each.get("_requestId") == "last" for each in messages
        ):
            messages.append(client.next_json())
    replies = [message for message in messages if "_requestId" in message]
    assert [reply["_requestId"] for reply in replies[:-1]] == [*range(len(commands))]
    assert [message["data"]["n"] for message in replies[5]["result"]["messages"]] == [2, 3]
    assert replies[7]["result"]["messages"][0]["data"] == {"n": 4}
    events = [message for message in messages if "event" in message]
    # What it was told between is as the turns fell; what it was not in for it was never told.
    assert {event["data"]["n"] for event in events if "data" in event} <= {1, 2}
    own = [event for event in events if "own" in event]
    assert own == [{"event": "message", "topic": topic, "offset": 4, "own": True, "key": topic}]
