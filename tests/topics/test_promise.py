"""The promise of resume (docs/protocol.rst, "Topics") under everything at once: random histories of many clients, of
kinds that are kept or not or no longer, of rights, time and servers, against a record of what was really published.

The record is an engine: the real one, which notes beside each message where it stands. A client of the test keeps epoch
and offset as any client does, and beside them how far it has come in the record. What it is told next is the next in
it, or it has been told of a hole that really is one.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.examples import examples
from twisted.internet.defer import Deferred

from zcomm import Identity
from zcomm.engines.memory import MemoryEngine
from zcomm.interfaces import Kept, Position
from zcomm.testing import MemoryClient, MemoryServer

pytestmark = pytest.mark.unmeasured

PROGRAM = {"room:{id}": (20, 60.0), "slow:{id}": (20, 60.0), "plain:{id}": (0, 60.0)}
TOPICS = ("room:1", "room:2", "short:1", "plain:1", "turn:1", "slow:1")
FILE = (
    '"short:{{id}}": {{history: 3, keep: 5, publish: anybody}}\n"turn:{{id}}": {{history: {turn}, publish: anybody}}\n'
)

topics = st.sampled_from(TOPICS)
slots = st.integers(0, 3)
programs_and_slots = st.integers(-1, 3)


class Recording(MemoryEngine):
    """Notes all that is published, in order, by topic: where it stands, and what was kept of the topic by then."""

    def __init__(self, now: Any) -> None:
        super().__init__(seconds=now)
        self.now = now
        self.said: dict[str, list[tuple[Position | None, bytes]]] = {}
        #: By topic: from which place on all is still there, until when, and its numbering.
        self.kept_from: dict[str, int] = {}
        self.expires: dict[str, float] = {}
        self.keys: set[tuple[str | None, str]] = set()

    def publish(self, topic: str, kept: Kept | None, fragment: bytes, *args: Any, **kwargs: Any) -> Any:
        author, _, key, *_ = args
        if key is not None:
            if (author, key) in self.keys:
                # It is a repetition.
                return super().publish(topic, kept, fragment, *args, **kwargs)
            self.keys.add((author, key))
        told = json.loads(b"{" + fragment + b"}")["data"]
        said = self.said.setdefault(topic, [])
        sent = super().publish(topic, kept, fragment, *args, **kwargs)
        position = sent.result
        if kept is None:
            said.append((None, told))
        else:
            self.lapse(topic)
            said.append((position, told))
            self.expires[topic] = self.now() + kept.seconds
            self.kept_from[topic] = max(self.kept_from.get(topic, 0), position.offset - kept.messages)
        return sent

    def lapse(self, topic: str) -> None:
        """Forget what is too old by now."""
        if topic in self.expires and self.expires[topic] <= self.now():
            self.kept_from[topic] = max([position.offset for position, _ in self.said[topic] if position], default=0)


class Rights:
    """Everything, but for what the test denies: users and topics."""

    def __init__(self) -> None:
        self.denied: set[tuple[str, str]] = set()

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        return (identity.name, name) not in self.denied

    def rows(self, identity: Identity, model: str) -> None:
        return None


class Place:
    """What a client knows of one topic.

    :ivar position: the epoch and offset that it was told last.
    :ivar come: how many of the record it has been told of, or of whose loss it was told; ``None``: from any place on.
    :ivar asked: its commands that are not answered.
    """

    def __init__(self) -> None:
        self.position: tuple[str, int] | None = None
        self.come: int | None = None
        self.is_in = False
        #: Whether it has ignored messages for a reply that was an error: it has to subscribe again.
        self.is_deaf = False
        self.asked: list[dict[str, Any]] = []


class Device:
    """A client that loses its connection now and then, and keeps what it knows."""

    def __init__(self, number: int, user: str):
        self.number = number
        self.identity = Identity(user, "member")
        self.client: MemoryClient | None = None
        self.places = {topic: Place() for topic in TOPICS}
        self.reads = True
        self.ids = itertools.count(1)
        self.publishing: dict[int, str] = {}
        self.waits: dict[int, dict[str, Any]] = {}

    def forget_connection(self) -> None:
        self.client = None
        self.reads = True
        self.publishing.clear()
        self.waits.clear()
        for place in self.places.values():
            place.is_in = place.is_deaf = False
            place.asked.clear()


class Promise(RuleBasedStateMachine):
    """See the module."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "topics.yaml"
        self.devices = [Device(number, user) for number, user in enumerate(("ann", "ann", "bob", "eve"))]
        self.rights = Rights()
        self.count = itertools.count(1)
        self.turn = 20
        #: Of each topic's positions as clients are told them: how many of the record had been published there.
        self.where: dict[tuple[str, str, int], int] = {}
        self.lives: list[Recording] = []
        self.start()
        # Most of what can go wrong does so to who is in.
        for slot in range(len(self.devices)):
            self.connect(slot)
            for topic in TOPICS[:-1]:
                self.subscribe(slot, topic, 0, slot != 2, False)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            for device in self.devices:
                if device.client is not None and not device.reads:
                    self.read_again(device.number)
            self.time_passes(31.0)
            hub = self.topics.hub
            assert all(not device.waits for device in self.devices)
            for device in self.devices:
                if device.client is not None:
                    device.client.close()
            self.server.settle()
            assert not hub.subscriptions and not len(hub) and not hub.subscribers
            assert hub._budgets.memory.held == 0
            self.server.stop()
            self.folder.cleanup()

    def start(self) -> None:
        self.waiting: list[Deferred[Any]] = []
        time = [0.0]
        self.engine = Recording(lambda: self.server.clock.seconds() if hasattr(self, "server") else time[0])
        self.server = MemoryServer(
            permissions=self.rights, engine=self.engine, stall_timeout=7200.0, ping_interval=7200.0, publish_rate=1e9
        )
        self.topics = self.server.bifrost.topics
        self.file.write_text(FILE.format(turn=self.turn))
        self.topics.read_file(self.file)
        for pattern, (history, keep) in PROGRAM.items():
            kind = self.server.bifrost.topic(pattern, history=history, keep=keep, publish="anybody")
            if pattern.startswith("slow"):
                kind.allow("subscribe")(self.ask)
                kind.incoming(self.look)
        self.restarted()

    def ask(self, identity: Identity, id: str) -> Deferred[bool]:
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: True)

    def look(self, identity: Identity, data: Any, id: str) -> Deferred[Any]:
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: data)

    def restarted(self) -> None:
        """Positions from before are positions of another life."""
        self.lives.append(self.engine)
        self.note()

    def note(self) -> None:
        """Note how much of the record is behind each topic's positions, as they are told now."""
        for topic, said in self.engine.said.items():
            for place, (position, _) in enumerate(said):
                if position is not None:
                    self.where.setdefault(
                        (topic, self.topics.hub.told(topic, position).epoch, position.offset), place + 1
                    )
        for topic in TOPICS:
            position = self.topics.hub.told(topic, self.engine.histories.position(topic))
            self.where[topic, position.epoch, position.offset] = len(self.engine.said.get(topic, ()))

    def history_of(self, topic: str) -> int:
        if topic.startswith("short"):
            return 3
        if topic.startswith("turn"):
            return self.turn
        return PROGRAM[topic.partition(":")[0] + ":{id}"][0]

    # -- what happens

    @rule(slot=slots)
    def connect(self, slot: int) -> None:
        device = self.devices[slot]
        if device.client is None:
            device.client = self.server.connect(identity=device.identity)
            self.hear()

    @rule(slot=slots)
    def vanish(self, slot: int) -> None:
        device = self.devices[slot]
        if device.client is not None:
            self.hear()
            device.client.vanish()
            device.forget_connection()

    @rule(slot=slots)
    def stop_reading(self, slot: int) -> None:
        device = self.devices[slot]
        if device.client is not None:
            device.client.stop_reading()
            device.reads = False

    @rule(slot=slots)
    def read_again(self, slot: int) -> None:
        device = self.devices[slot]
        if device.client is not None:
            device.client.read_again()
            device.reads = True
            self.hear()

    def send(self, device: Device, key: str, horizontal: dict[str, Any]) -> int:
        number = next(device.ids)
        assert device.client is not None
        device.client.outgoing.carry(json.dumps({"zKey": key, "zHorizontal": horizontal, "_requestId": number}))
        return number

    def ask_to_subscribe(self, device: Device, topic: str, last: int, echo: bool, resumes: bool) -> None:
        place = device.places[topic]
        asked: dict[str, Any] = {"topic": topic, "echo": echo}
        if resumes and place.position is not None:
            asked["since"] = {"epoch": place.position[0], "offset": place.position[1]}
        if last:
            asked["last"] = last
        number = self.send(device, "zSubscribe", asked)
        device.waits[number] = {"key": "zSubscribe", "topic": topic, "asked": asked, "position": place.position}
        place.asked.append(device.waits[number])

    @rule(slot=slots, topic=topics, last=st.sampled_from([0, 0, 2, 30]), echo=st.booleans(), resumes=st.booleans())
    def subscribe(self, slot: int, topic: str, last: int, echo: bool, resumes: bool) -> None:
        device = self.devices[slot]
        if device.client is not None and len(device.waits) < 50:
            self.ask_to_subscribe(device, topic, last, echo, resumes)
            self.settle()

    @rule(slot=slots)
    def come_back(self, slot: int) -> None:
        """As a client does that has lost its connection: all at once."""
        device = self.devices[slot]
        if device.client is None:
            device.client = self.server.connect(identity=device.identity)
            for topic in TOPICS:
                if device.places[topic].position is not None:
                    self.ask_to_subscribe(device, topic, 0, True, True)
            self.settle()

    def ask_to_unsubscribe(self, device: Device, topic: str) -> None:
        number = self.send(device, "zUnsubscribe", {"topic": topic})
        device.waits[number] = {"key": "zUnsubscribe", "topic": topic}
        device.places[topic].asked.append(device.waits[number])

    @rule(slot=slots, topic=topics)
    def unsubscribe(self, slot: int, topic: str) -> None:
        device = self.devices[slot]
        if device.client is not None and len(device.waits) < 50:
            self.ask_to_unsubscribe(device, topic)
            self.settle()

    def tell(self, slot: int, topic: str, size: int, key: str | None) -> None:
        if topic.startswith(("plain", "turn")):
            # More than a MiB that is not kept may not wait for a client.
            size = 0
        data = {"n": next(self.count), "pad": "x" * size}
        if slot < 0:
            self.topics.publish(topic, data, key)
        elif self.devices[slot].client is not None and len(self.devices[slot].waits) < 50:
            device = self.devices[slot]
            asked = {"topic": topic, "data": data} | ({} if key is None else {"_idempotencyKey": f"{key}{data['n']}"})
            for _ in range(1 if key is None else 2):
                number = self.send(device, "zPublish", asked)
                device.waits[number] = {"key": "zPublish", "topic": topic, "repeats": key is not None}

    @rule(slot=programs_and_slots, topic=topics, size=st.sampled_from([0, 0, 0, 5000, 60_000]), is_safe=st.booleans())
    def publish(self, slot: int, topic: str, size: int, is_safe: bool) -> None:
        self.tell(slot, topic, size, f"k{next(self.count)}-" if is_safe else None)
        self.settle()

    @rule(topic=topics, count=st.sampled_from([2, 4, 21, 25]))
    def publish_many(self, topic: str, count: int) -> None:
        """As many as are kept, more or less, in a turn each."""
        for _ in range(count):
            self.tell(-1, topic, 0, None)
            self.settle()

    @rule(slot=slots, topic=topics, count=st.sampled_from([2, 4, 21, 25]), waits=st.booleans())
    def lose_the_connection_for_a_while(self, slot: int, topic: str, count: int, waits: bool) -> None:
        """While something is published there."""
        if self.devices[slot].client is not None:
            self.vanish(slot)
            self.publish_many(topic, count)
            if waits:
                self.time_passes(6.0)
            self.come_back(slot)

    @rule(slot=slots, topic=topics, count=st.sampled_from([2, 4, 21, 25]))
    def do_not_read_for_a_while(self, slot: int, topic: str, count: int) -> None:
        """While something is published there."""
        self.stop_reading(slot)
        self.publish_many(topic, count)
        self.read_again(slot)

    @rule(slot=slots, topic=topics, echo=st.booleans(), resumes=st.booleans(), behind=st.booleans())
    def subscribe_while_something_is_published(
        self, slot: int, topic: str, echo: bool, resumes: bool, behind: bool
    ) -> None:
        """In the same turn, before and behind."""
        device = self.devices[slot]
        if device.client is not None and len(device.waits) < 50:
            self.tell(-1, topic, 0, None)
            self.ask_to_subscribe(device, topic, 0, echo, resumes)
            if behind:
                self.tell(-1, topic, 0, None)
            self.settle()

    @rule(
        acts=st.lists(
            st.tuples(
                st.sampled_from(["subscribe", "unsubscribe", "publish", "program"]), slots, topics, st.booleans()
            ),
            min_size=2,
            max_size=6,
        )
    )
    def many_in_one_turn(self, acts: list[tuple[str, int, str, bool]]) -> None:
        for act, slot, topic, flag in acts:
            device = self.devices[slot]
            if act == "program":
                self.tell(-1, topic, 0, None)
            elif device.client is None or len(device.waits) > 50:
                continue
            elif act == "subscribe":
                self.ask_to_subscribe(device, topic, 0, flag, True)
            elif act == "unsubscribe":
                self.ask_to_unsubscribe(device, topic)
            else:
                self.tell(slot, topic, 0, None)
        self.settle()

    @rule(which=st.integers(0, 3))
    @precondition(lambda self: self.waiting)
    def the_program_answers(self, which: int) -> None:
        waiting = self.waiting.pop(min(which, len(self.waiting) - 1))
        if not waiting.called:
            waiting.callback(None)
        self.settle()

    @rule(seconds=st.sampled_from([0.3, 4.0, 6.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.server.advance(seconds)
        self.settle()

    @rule(turn=st.sampled_from([0, 20]), publishes=st.booleans())
    def reload(self, turn: int, publishes: bool) -> None:
        """The file of kinds is read anew; in the same turn the program may publish before."""
        if publishes:
            self.tell(-1, "turn:1", 0, None)
        self.note()
        self.turn = turn
        self.file.write_text(FILE.format(turn=turn))
        self.topics.reload()
        self.settle()

    @rule(slot=slots, topic=topics, is_denied=st.booleans())
    def rights_change(self, slot: int, topic: str, is_denied: bool) -> None:
        pair = self.devices[slot].identity.name, topic
        (self.rights.denied.add if is_denied else self.rights.denied.discard)(pair)
        self.topics.reload()
        self.settle()

    @rule(is_one=st.sampled_from([False, False, False, True]))
    def restart(self, is_one: bool) -> None:
        if not is_one:
            return
        self.hear()
        for device in self.devices:
            if device.client is not None:
                device.client.vanish()
            device.forget_connection()
        self.server.stop()
        self.start()

    def settle(self) -> None:
        self.server.settle()
        self.hear()

    # -- what is told

    def hear(self) -> None:
        self.note()
        for device in self.devices:
            if device.client is None:
                continue
            messages, device.client.messages = device.client.messages, []
            assert device.client.closed is None, device.client.closed
            for message in messages:
                if "_requestId" in message:
                    assert "event" not in message
                    self.answered(device, message)
                else:
                    self.told(device, message)

    def answered(self, device: Device, message: dict[str, Any]) -> None:
        wait = device.waits.pop(message["_requestId"])
        place = device.places[wait["topic"]]
        if wait["key"] != "zPublish":
            # In the order in which they were sent.
            assert place.asked.pop(0) is wait
        if "error" in message:
            assert message["code"] in ("permission_denied", "timeout", "too_busy"), message
            place.is_deaf |= wait["key"] == "zSubscribe"
            return
        result = message["result"]
        assert result["topic"] == wait["topic"]
        if wait["key"] == "zUnsubscribe":
            place.is_in = place.is_deaf = False
            assert result == {"topic": wait["topic"]}
        elif wait["key"] == "zSubscribe":
            self.subscribed(device, place, wait, result)
        elif "epoch" not in result:
            assert "offset" not in result

    def subscribed(self, device: Device, place: Place, wait: dict[str, Any], result: dict[str, Any]) -> None:
        topic, asked = wait["topic"], wait["asked"]
        since = asked.get("since")
        place.is_in, place.is_deaf = True, False
        assert ("recovered" in result) == (since is not None)
        assert ("reason" in result) == (result.get("recovered") is False)
        if "epoch" not in result:
            assert "offset" not in result and "messages" not in result and result.get("recovered") is not True
            assert since is None or result["reason"] in ("not_kept", "epoch")
            place.position = place.come = None
            return
        assert not topic.startswith("plain")
        now = result["epoch"], result["offset"]
        behind = self.where[topic, now[0], now[1]]
        if result.get("recovered"):
            assert since is not None and since["epoch"] == now[0]
            offsets = [message["offset"] for message in result["messages"]]
            assert offsets == [*range(since["offset"] + 1, now[1] + 1)]
            before = self.where[topic, since["epoch"], since["offset"]]
            # Nothing without a number has been in between, either.
            assert [message["data"] for message in result["messages"]] == [
                data for _, data in self.engine.said.get(topic, [])[before:behind]
            ]
        elif since is not None:
            assert "messages" not in result
            self.is_honest(topic, since, result)
        elif "last" in asked:
            offsets = [message["offset"] for message in result["messages"]]
            assert len(offsets) <= asked["last"]
            assert offsets == [*range(now[1] - len(offsets) + 1, now[1] + 1)]
            # What was published while nothing was kept is in nobody's history.
            kept = [data for position, data in self.engine.said.get(topic, [])[:behind] if position is not None]
            assert [message["data"] for message in result["messages"]] == kept[len(kept) - len(offsets) :]
        place.position, place.come = now, behind

    def is_honest(self, topic: str, since: dict[str, Any], result: dict[str, Any]) -> None:
        """Nothing is called lost that is there."""
        reason = result["reason"]
        if reason == "epoch":
            assert since["epoch"] != result["epoch"]
            # Another life of the server, or another generation of kinds.
            return
        assert since["epoch"] == result["epoch"]
        missed = result["offset"] - since["offset"]
        said = self.engine.said[topic]
        if reason == "too_many":
            assert sum(len(json.dumps(data)) for _, data in said[-missed:]) > 900_000
            return
        assert reason == "too_old", result
        self.engine.lapse(topic)
        assert since["offset"] < self.engine.kept_from[topic]

    def told(self, device: Device, event: dict[str, Any]) -> None:
        place = device.places[event["topic"]]
        is_asking = any(wait["key"] == "zSubscribe" for wait in place.asked)
        if event["event"] == "unsubscribed":
            place.is_in = place.is_deaf = False
            assert event["reason"] == "permission_denied"
            return
        if is_asking or place.is_deaf:
            return
        assert place.is_in, f"{device.number} is told of a topic that it is not in: {event}"
        if event["event"] == "topic":
            if "epoch" in event:
                now = event["epoch"], event["offset"]
                behind = self.where[event["topic"], now[0], now[1]]
                if "recovered" not in event:
                    # Nothing was lost.
                    assert place.come is None or place.come == behind
                place.position, place.come = now, behind
            else:
                # What it had not had by then is lost to it, as it is told.
                assert event["reason"] == "not_kept" and event["recovered"] is False
                place.position = place.come = None
            return
        assert event["event"] == "message"
        said = self.engine.said[event["topic"]]
        if "offset" in event:
            assert place.position is not None and event["offset"] == place.position[1] + 1
            place.position = place.position[0], event["offset"]
            mine = self.where[event["topic"], *place.position] - 1
            assert place.come is None or place.come == mine
        else:
            assert place.position is None
            if place.come is None:
                told = event.get("data")
                mine = next((number for number, (_, data) in enumerate(said) if data == told), None)
            else:
                mine = place.come
        if mine is not None and "data" in event:
            assert said[mine][1] == event["data"]
        assert ("data" in event) != event.get("own", False)
        place.come = None if mine is None else mine + 1

    @invariant()
    def nobody_who_reads_is_behind(self) -> None:
        """Whoever reads, and has nothing to be answered, has been told of everything."""
        if any(self.behind()):
            # Whoever has taken more than its share of the reactor, on a machine that is busy, waits for a moment.
            self.time_passes(0.3)
            assert not list(self.behind())

    def behind(self) -> Iterator[tuple[int, str]]:
        """Those who have not been told of everything."""
        for device in getattr(self, "devices", ()):
            if device.client is None or not device.reads:
                continue
            for topic, place in device.places.items():
                if place.is_in and not place.asked and not place.is_deaf and place.come is not None:
                    position = self.topics.hub.told(topic, self.engine.histories.position(topic))
                    is_there = place.position in (None, (position.epoch, position.offset))
                    if place.come != len(self.engine.said.get(topic, ())) or not is_there:
                        yield device.number, topic


class TestPromise(Promise.TestCase):
    settings = examples(25, stateful_step_count=50)
