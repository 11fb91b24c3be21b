"""Two engines on one Redis: what is said at one of them is heard at the other."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.nodes import KEPT, Node
from support.redisserver import RedisServer
from support.waiting import wait_until
from twisted.internet.defer import gatherResults

from zcomm.errors import Conflict
from zcomm.interfaces import EVERYBODY, Audience, Broadcast, Kept, Position
from zcomm.topics.requests import MAX_MESSAGES

ROOM = "room:1"
Nodes = tuple[Node, Node]


@pytest_twisted.ensureDeferred
async def test_a_message_is_heard_at_both_and_in_order(nodes: Nodes):
    """Published here and there, its position is the same everywhere."""
    a, b = nodes
    begin = await a.engine.listen(ROOM, KEPT)
    assert begin is not None and begin.offset == 0 and begin == await b.engine.listen(ROOM, KEPT)
    sent = [await nodes[number % 2].engine.publish(ROOM, KEPT, b'"data":%d' % number, "ann") for number in range(20)]
    assert [position.offset for position in sent if position] == list(range(1, 21))
    for node in nodes:
        await node.hears(20)
        assert node.offsets(ROOM) == list(range(1, 21))
        assert [fragment for _, _, fragment, _ in node.messages] == [b'"data":%d' % number for number in range(20)]
        assert not node.moves


@pytest_twisted.ensureDeferred
async def test_messages_of_one_turn_keep_their_order(nodes: Nodes):
    """They leave in one write, and are numbered as they were published."""
    a, b = nodes
    await b.engine.listen(ROOM, KEPT)
    sent = await gatherResults([a.engine.publish(ROOM, KEPT, b'"data":%d' % number) for number in range(500)])
    assert [position.offset for position in sent] == list(range(1, 501))
    await b.hears(500)
    assert [fragment for _, _, fragment, _ in b.messages] == [b'"data":%d' % number for number in range(500)]


@pytest_twisted.ensureDeferred
async def test_who_resumes_gets_all_or_the_reason(nodes: Nodes):
    """As the memory engine answers: epoch, history_lost, too_old, too_many, or all of it."""
    a, b = nodes
    first = await a.engine.publish(ROOM, Kept(5, 60.0), b'"data":1')
    assert first is not None
    for number in range(2, 11):
        last = await a.engine.publish(ROOM, Kept(5, 60.0), b'"data":%d' % number)
    assert last == (first.epoch, 10)
    found = await b.engine.resume(ROOM, Position(first.epoch, 7))
    assert [message.offset for message in found.messages] == [8, 9, 10] and not found.reason
    assert [message.fragment for message in found.messages] == [b'"data":8', b'"data":9', b'"data":10']
    found = await b.engine.resume(ROOM, last)
    assert (found.position, list(found.messages), found.reason) == (last, [], "")
    for since, reason in (
        (Position("other.history", 7), "epoch"),
        (Position(first.epoch.partition(".")[0] + ".abcd", 7), "history_lost"),
        (Position(first.epoch, 11), "history_lost"),
        (Position(first.epoch, 4), "too_old"),
        (Position("%a.(", 4), "epoch"),
        (Position("", 4), "epoch"),
    ):
        found = await b.engine.resume(ROOM, since)
        assert (found.reason, list(found.messages), found.position) == (reason, [], last), since
    many = Kept(5000, 60.0)
    await gatherResults([a.engine.publish("room:2", many, b'"data":1') for _ in range(MAX_MESSAGES + 5)])
    position = (await a.engine.resume("room:2", Position("", 0))).position
    assert (await a.engine.resume("room:2", Position(position.epoch, 4))).reason == "too_many"
    assert len((await a.engine.resume("room:2", Position(position.epoch, 5))).messages) == MAX_MESSAGES


@pytest_twisted.ensureDeferred
async def test_history_is_read_from_either_end(nodes: Nodes):
    """Newest or oldest first, after one and before another, with more where there is more."""
    a, b = nodes
    for number in range(1, 11):
        await a.engine.publish(ROOM, Kept(8, 60.0), b'"data":%d' % number)
    at = (await b.engine.resume(ROOM, Position("", 0))).position.epoch
    for since, before, limit, reverse, offsets, more in (
        (None, None, 3, True, [10, 9, 8], True),
        (None, None, 3, False, [3, 4, 5], True),
        (None, None, 8, False, [3, 4, 5, 6, 7, 8, 9, 10], False),
        (Position(at, 6), None, 10, False, [7, 8, 9, 10], False),
        (Position(at, 6), Position(at, 9), 10, True, [8, 7], False),
        (None, Position("", 5), 10, True, [4, 3], False),
        (Position(at, 10), None, 10, False, [], False),
        (None, Position(at, 1), 10, False, [], False),
    ):
        found = await b.engine.read(ROOM, since, before, limit, reverse)
        assert ([message.offset for message in found.messages], found.more) == (offsets, more), (since, before, limit)
    assert (await b.engine.read(ROOM, Position(at, 1), None, 10, True)).reason == "too_old"
    assert (await b.engine.read(ROOM, Position(at, 11), None, 10, True)).reason == "history_lost"
    assert (await b.engine.read(ROOM, None, Position("x.y", 11), 10, True)).reason == "epoch"
    # As many as fit, and one at least.
    found = await b.engine.read(ROOM, None, None, 10, False, 20)
    assert [message.offset for message in found.messages] == [3, 4] and found.more
    found = await b.engine.read(ROOM, None, None, 10, False, 1)
    assert [message.offset for message in found.messages] == [3] and found.more


@pytest_twisted.ensureDeferred
async def test_a_key_makes_it_safe_to_publish_again(nodes: Nodes):
    """At another node, too: one message, one position; something else under it is refused."""
    a, b = nodes
    await b.engine.listen(ROOM, KEPT)
    digest, other = b"x" * 16, b"y" * 16
    first = await a.engine.publish(ROOM, KEPT, b'"data":1', "ann", "c1", "k", digest)
    assert first == await b.engine.publish(ROOM, KEPT, b'"data":1', "ann", "c2", "k", digest)
    with pytest.raises(Conflict):
        await b.engine.publish(ROOM, KEPT, b'"data":2', "ann", "c2", "k", other)
    # Another's key is another one, whatever the names look like together.
    assert (await b.engine.publish(ROOM, KEPT, b'"data":3', "an", "c2", "nk", other)) == (first.epoch, 2)
    await a.engine.publish("un:1", None, b'"data":1', "ann", "c1", "k2", digest)
    with pytest.raises(Conflict):
        await b.engine.publish("un:1", None, b'"data":2', "ann", "c1", "k2", other)
    await b.hears(2)
    assert b.offsets(ROOM) == [1, 2]
    a.engine.drop(ROOM)
    # Behind that, on the same connection.
    await a.engine.members(ROOM)
    assert await b.engine.publish(ROOM, KEPT, b'"data":1', "ann", "c2", "k", digest) is None


@pytest_twisted.ensureDeferred
async def test_a_topic_that_keeps_nothing_is_heard_and_ends_what_was_kept(nodes: Nodes):
    """What is not kept has no position, and a numbering that it is missing in is over."""
    a, b = nodes
    await a.engine.listen("un:1", None)
    assert await b.engine.publish("un:1", None, b'"data":1', "ann", "c9") is None
    await a.hears(1)
    assert a.messages == [("un:1", None, b'"data":1', "c9")]
    await a.engine.listen(ROOM, KEPT)
    at = await b.engine.publish(ROOM, KEPT, b'"data":1')
    await a.hears(2)
    await b.engine.publish(ROOM, None, b'"data":2')
    await a.hears(3)
    assert a.messages[2] == (ROOM, None, b'"data":2', "")
    await wait_until(lambda: a.moves)
    topic, position, reason = a.moves[0]
    assert (topic, reason) == (ROOM, "epoch") and position.epoch != at.epoch
    assert (await b.engine.resume(ROOM, at)).reason == "epoch"


@pytest_twisted.ensureDeferred
async def test_broadcasts_reach_the_servers_of_all_nodes(nodes: Nodes):
    """Once each, with the audience that each judges by itself; the sender stays here."""
    a, b = nodes
    for audience in (EVERYBODY, Audience("model", "Notes", {"owner": "ann", "size": 3}), Audience("function", "total")):
        message = Broadcast(b'{"zKey":"x"}', audience, None, True)
        assert a.engine.tell(message) == 1
    await wait_until(lambda: len(b.told) == 3)
    assert b.told == a.told and b.told[0].audience is EVERYBODY
    assert a.engine.clients >= 2


@pytest_twisted.ensureDeferred
async def test_nodes_know_each_other_and_have_a_word(nodes: Nodes):
    """What one says to all, the other hears once and itself not; what it says to one, only that hears."""
    a, b = nodes
    await wait_until(lambda: b.engine.node in a.engine.nodes() and a.engine.node in b.engine.nodes())
    a.engine.cast(b"all")
    b.engine.cast(b"one", a.engine.node)
    await wait_until(lambda: a.said and b.said)
    assert b.said == [(a.engine.node, b"all")] and a.said == [(b.engine.node, b"one")]
    await b.engine.stopService()
    await wait_until(lambda: not a.engine.nodes())


@pytest_twisted.ensureDeferred
async def test_who_is_there_is_known_everywhere(nodes: Nodes):
    """A user's connections at two nodes are of one user; it has come with the first and gone with the last; what a node
    brought about the program there hears of, and at no other."""
    a, b = nodes
    await a.engine.listen(ROOM, KEPT)
    await a.engine.enter(ROOM, "a-1", "ann", b"{}")
    await b.engine.enter(ROOM, "b-1", "ann", b'{"x":"\\n"}')
    await b.engine.enter(ROOM, "b-2", 'bo "b"\u00e4', None)
    found = await a.engine.members(ROOM)
    assert found.members == {"ann": {"a-1": b"{}", "b-1": b'{"x":"\\n"}'}, 'bo "b"\u00e4': {"b-2": b"{}"}}
    assert (found.users, found.connections) == (2, 3)
    assert (await a.engine.members(ROOM, 2)).members is None
    await b.engine.enter(ROOM, "b-1", "ann", None)
    await b.engine.enter(ROOM, "b-1", "ann", b'{"y":1}')
    a.engine.leave(ROOM, "a-1")
    b.engine.leave(ROOM, "b-1")
    b.engine.leave(ROOM, "b-2")
    b.engine.leave(ROOM, "b-3")
    await wait_until(lambda: len(a.changes) == 7)
    changes = [change for _, change in a.changes]
    assert [(change.before, change.after) for change in changes if change.user == "ann"][:3] == [(0, 1), (1, 2), (2, 2)]
    assert sorted((change.before, change.after) for change in changes if change.state is None) == [
        (1, 0),
        (1, 0),
        (2, 1),
    ]
    for one, next_one in zip(changes, changes[1:], strict=False):
        assert one.version == next_one.since
    assert changes[-1].connections == 0 and changes[-1].users == 0
    assert {change.connection for _, change in a.crossings} == {"a-1"}
    assert {change.connection for _, change in b.crossings} == {"b-1", "b-2"}
    assert (await a.engine.members(ROOM)) == (0, 0, 0, {})


@pytest_twisted.ensureDeferred
async def test_a_user_that_fills_the_engine_loses_messages_of_its_own(redis: RedisServer, prefix: str):
    """Of what it has published the longest ago; who comes back to that hears that it is too old. Nobody else loses
    anything."""
    node = await Node(f"{redis.unix_url}?prefix={prefix}", 1_000_000).start()
    engine, first = node.engine, {}
    for number in range(200):
        for topic, author in ((f"flood:{number % 40}", "eve"), ("room:1", "ann")):
            size = 10_000 if author == "eve" else 10
            position = await engine.publish(topic, Kept(1000, 60.0), b'"data":"%s"' % (b"x" * size), author)
            first.setdefault(topic, position)
    await engine.members("room:1")
    sizes = {topic: redis.call("MEMORY", "USAGE", f"{prefix}:{{0}}:s:{topic}") or 0 for topic in first}
    assert sum(sizes.values()) < 400_000
    assert len((await engine.resume("room:1", first["room:1"])).messages) == 199
    assert (await engine.resume("flood:0", first["flood:0"])).reason == "too_old"
    newest = await engine.read("flood:39", None, None, 1, True)
    assert newest.messages[0].offset == 5
    await engine.stopService()


@pytest_twisted.ensureDeferred
async def test_nothing_stays_behind_where_nobody_is_there(nodes: Nodes, redis: RedisServer, prefix: str):
    """The keys of presence are gone with the last member; those of messages end by themselves."""
    a, b = nodes
    await a.engine.publish(ROOM, KEPT, b'"data":1', "ann", "c1", "k", b"x" * 16)
    for number in range(1200):
        a.engine.enter(ROOM, f"a-{number}", f"user{number}", b"{}")
    await a.engine.enter(ROOM, "last", "ann", b"{}")
    assert (await b.engine.members(ROOM)).connections == 1201
    for number in range(1200):
        a.engine.leave(ROOM, f"a-{number}")
    a.engine.leave(ROOM, "last")
    await a.engine._lease.own.done()
    for node in nodes:
        await node.engine.stopService()
    left = {str(key) for key in redis.call("KEYS", f"{prefix}:*")}
    forever = {key for key in left if redis.call("TTL", key) < 0}
    assert forever == {f"{prefix}:{{0}}:zcomm"}
