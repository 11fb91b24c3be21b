"""Random lives of servers that copy one another, and what must come of them: the scripts of the engine beside a model.

Each server is a prefix in one real Redis. What a replica has is a copy of its master's keys, a promotion or a restart
is another id of its history, and a loss is an older copy. Clients remember positions that they were told, with what
they know to stand before them, and come back with them at any server at any time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import hiredis
from support.redisserver import RedisServer

from zcomm.engines.redis.layout import Layout, TopicKeys
from zcomm.engines.redis.replies import changes_of, members_of, parts_of, position_of, slice_of
from zcomm.engines.redis.scripts import Script, Scripts
from zcomm.interfaces import Position

__all__ = ["Histories", "Presence", "Speaker"]

ROOM = "room:1"
KEYS = ("k1", "k2", "k3")
#: Milliseconds; nothing expires here by itself.
LONG = 600_000


class Speaker:
    """A blocking connection that calls scripts, with replies as the engine reads them."""

    def __init__(self, server: RedisServer):
        self._client = server.client()
        self._reader = hiredis.Reader()

    def close(self) -> None:
        self._client.close()

    def load(self, scripts: Scripts) -> None:
        self.call(*(("SCRIPT", "LOAD", script.text) for script in scripts.all))

    def call(self, *commands: Sequence[Any]) -> list[Any]:
        """Send commands at once; their replies, errors among them."""
        self._client.connection.sendall(b"".join(hiredis.pack_command(tuple(command)) for command in commands))  # type: ignore[arg-type]
        replies: list[Any] = []
        while len(replies) < len(commands):
            if (reply := self._reader.gets()) is False:
                self._reader.feed(self._client.connection.recv(1 << 16))
            else:
                replies.append(reply)
        return replies

    def run(self, script: Script, keys: Sequence[bytes], *words: Any) -> Any:
        """Run a script; its reply, or the error as a value."""
        return self.call(("EVALSHA", script.sha, len(keys), *keys, *words))[0]


@dataclass
class State:
    """All that a server has of the topic.

    :ivar epoch: empty where there is none.
    :ivar log: the messages of the numbering, each another number.
    :ivar first: the offset of the oldest that is kept.
    :ivar keys: digest, epoch and offset of what was published under a key.
    """

    epoch: str = ""
    log: tuple[int, ...] = ()
    first: int = 1
    keys: dict[str, tuple[bytes, str, int]] = field(default_factory=dict)

    def copy(self) -> State:
        return replace(self, keys=dict(self.keys))


class Server:
    """A server; its replication id is what its writes are under."""

    def __init__(self, prefix: str):
        self.layout = Layout(prefix, 1)
        self.topic: TopicKeys = self.layout.topic(ROOM)
        self.names = [self.topic.stream, self.topic.meta, *(self.layout.idempotency(0, "ann", key) for key in KEYS)]
        self.history = self.layout.history(0)
        self.state = State()
        self.is_master = False
        self.id = b""


@dataclass
class Known:
    """A position that a client was told, and the messages before it.

    :ivar is_within: whether it is one of a message that was caught up with, and not the last.
    """

    position: Position
    before: tuple[int, ...]
    is_within: bool = False


class Histories:
    """One random life of some servers.

    :param counts: of what happened.
    """

    def __init__(self, seed: int, speaker: Speaker, scripts: Scripts, counts: Counter[str]):
        self.random = random.Random(seed)
        self.speaker, self.scripts, self.counts = speaker, scripts, counts
        self.seed = seed
        self.servers = [Server(f"h{seed:x}.{number}") for number in range(self.random.choice((2, 3, 3, 4)))]
        #: Where copies are kept of what a disk has.
        self.disks = [Server(f"d{seed:x}.{number}") for number in range(len(self.servers))]
        self.kept = self.random.choice((3, 6, 100))
        self._ids, self._epochs, self._messages = count(1), count(1), count(1)
        self.known: list[Known] = []
        self.told: list[str] = []
        first = self.servers[0]
        first.is_master = True
        self._identify(first)
        if self.random.random() < 0.9:
            # Otherwise each server may begin a numbering of its own.
            self._stand(0, first)
        for other in (*self.servers[1:], *self.disks):
            self._copy(first, other)
            self._set_id(other, first.id)

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self._step()
        except AssertionError as error:
            raise AssertionError(f"history {self.seed}: {error}\n" + "\n".join(self.told)) from None
        finally:
            names = [name for one in (*self.servers, *self.disks) for name in (*one.names, one.history)]
            self.speaker.call(("DEL", *names))

    def _step(self) -> None:
        draw = self.random.random()
        masters = [number for number, server in enumerate(self.servers) if server.is_master]
        number = self.random.choice(masters)
        server = self.servers[number]
        if draw < 0.34:
            self._publish(number, server)
        elif draw < 0.52:
            self._resume(number, server)
        elif draw < 0.58:
            self._read(number, server)
        elif draw < 0.62:
            self._stand(number, server)
        elif draw < 0.74:
            self._replicate(number, server)
        elif draw < 0.86:
            self._fail_over(number, server)
        elif draw < 0.98:
            self._restart(number, server)
        else:
            self._forget(number, server)

    # -- what happens to servers

    def _identify(self, server: Server) -> None:
        self._set_id(server, b"%08x" % next(self._ids))

    def _set_id(self, server: Server, name: bytes) -> None:
        server.id = name
        self.speaker.call(("SET", server.history, name))

    def _copy(self, source: Server, target: Server) -> None:
        self.speaker.call(
            ("DEL", *target.names),
            *(("COPY", one, other) for one, other in zip(source.names, target.names, strict=True)),
        )
        target.state = source.state.copy()

    def _replicate(self, number: int, server: Server) -> None:
        """Have replicas, or the disk, get all that the master has."""
        if self.random.random() < 0.3:
            self._note(f"{number} on disk")
            self._copy(server, self.disks[number])
            return
        for other_number, other in enumerate(self.servers):
            if not other.is_master and self.random.random() < 0.6:
                self._note(f"{number} copied to {other_number}")
                self._copy(server, other)
                self._set_id(other, server.id)
        if self.random.random() < 0.1:
            # A first replica attaches: the id changes in the middle of life.
            self._note(f"{number} renamed")
            self._identify(server)

    def _fail_over(self, number: int, server: Server) -> None:
        """Promote some server beside a master, which may go on, or become a replica of the other."""
        other_number, other = self.random.choice([*enumerate(self.servers)])
        if other is server:
            return
        self._note(f"{other_number} promoted beside {number}")
        if not other.is_master:
            other.is_master = True
            self._identify(other)
        if self.random.random() < 0.6:
            self._note(f"{number} demoted")
            server.is_master = False
            self._copy(other, server)
            self._set_id(server, other.id)

    def _restart(self, number: int, server: Server) -> None:
        lost = self.random.random() < 0.5
        self._note(f"{number} restarted, {'from its disk' if lost else 'whole'}")
        if lost:
            self._copy(self.disks[number], server)
        self._identify(server)

    def _forget(self, number: int, server: Server) -> None:
        """Let keys expire, or be ended by what is not kept."""
        kind = self.random.choice(("stream", "meta", "both", "keys", "relay"))
        self._note(f"{number} forgets {kind}")
        state = server.state
        if kind == "keys":
            self.speaker.call(("DEL", *server.names[2:]))
            state.keys.clear()
        elif kind == "relay":
            reply = self.speaker.run(
                self.scripts.relay, (server.topic.stream, server.topic.meta, server.history), "c", b"x", b"", 0
            )
            assert reply == b"", reply
            state.epoch, state.log = "", ()
        else:
            if kind != "meta":
                self.speaker.call(("DEL", server.topic.stream))
                state.first = len(state.log) + 1
            if kind != "stream":
                self.speaker.call(("DEL", server.topic.meta))
                state.epoch, state.log = "", ()

    # -- what clients do

    def _epoch(self, server: Server, position: Position) -> None:
        """Check where a server says that it stands; its numbering begins where there was none."""
        number, _ = parts_of(position.epoch)
        state = server.state
        if not state.epoch:
            state.epoch, state.log, state.first = number, (), 1
        assert number == state.epoch, f"numbering {number}, not {state.epoch}"

    def _learn(self, position: Position, before: tuple[int, ...], is_within: bool = False) -> None:
        assert len(before) == position.offset and parts_of(position.epoch)[1] != "-", position
        self.known.append(Known(position, before, is_within))
        if len(self.known) > 40:
            self.known.pop(self.random.randrange(len(self.known)))

    def _publish(self, number: int, server: Server) -> None:
        message = next(self._messages)
        key = self.random.choice(KEYS) if self.random.random() < 0.3 else None
        digest = self.random.choice((b"a" * 16, b"b" * 16)) if key else b""
        names = [server.topic.stream, server.topic.meta, server.history]
        if key:
            names.append(server.layout.idempotency(0, "ann", key))
        reply = self.speaker.run(
            self.scripts.publish,
            names,
            *("c", self.kept, LONG, LONG, LONG, b"\n%d" % message, f"e{next(self._epochs)}", digest),
        )
        state = server.state
        self._note(f"{number} published {message} {key or ''}: {reply}")
        known = state.keys.get(key) if key else None
        if known is not None:
            self.counts["repeated"] += 1
            if known[0] != digest:
                assert isinstance(reply, hiredis.ReplyError) and "CONFLICT" in str(reply), reply
            elif known[1] != state.epoch:
                assert reply == b"", reply
            else:
                found = position_of(reply)
                assert found is not None and found.offset == known[2], reply
                self._learn(found, state.log[: found.offset])
            return
        assert not isinstance(reply, hiredis.ReplyError), reply
        position = position_of(reply)
        assert position is not None
        self._epoch(server, position)
        state.log += (message,)
        assert position.offset == len(state.log), f"{position}, not {len(state.log)}"
        state.first = max(state.first, len(state.log) - self.kept + 1)
        if key:
            state.keys[key] = digest, state.epoch, position.offset
        self._learn(position, state.log)
        self.counts["published"] += 1

    def _stand(self, number: int, server: Server) -> None:
        reply = self.speaker.run(
            self.scripts.listen,
            (server.topic.stream, server.topic.meta, server.history),
            *(f"e{next(self._epochs)}", LONG),
        )
        position = position_of(reply)
        assert position is not None
        self._note(f"{number} stands at {position}")
        self._epoch(server, position)
        assert position.offset == len(server.state.log)
        (stood,) = self.speaker.run(self.scripts.stand, (server.topic.meta,), LONG)
        assert position_of(stood) == position
        self._learn(position, server.state.log)

    def _ask(self, server: Server, since: Any, before: Any, limit: int, newest: bool, whole: bool) -> Any:
        words: list[Any] = [f"e{next(self._epochs)}", LONG]
        words += ["", "", ""] if since is None else [*parts_of(since.epoch), since.offset]
        words += ["", ""] if before is None else [parts_of(before.epoch)[0], before.offset]
        words += [limit, 1 << 20, int(newest), int(whole)]
        names = (server.topic.stream, server.topic.meta, server.history)
        reply = self.speaker.run(self.scripts.read, names, *words)
        assert not isinstance(reply, hiredis.ReplyError), reply
        return slice_of(reply)

    def _resume(self, number: int, server: Server) -> None:
        """Come back with a position, as a client or a node does."""
        if not self.known:
            return
        known = self.random.choice(self.known)
        limit = self.random.choice((2, 1000))
        found = self._ask(server, known.position, None, limit, False, True)
        self._note(f"{number} asked since {known.position}: {found.reason or 'all'} {found.position}")
        had = server.state.epoch
        self._epoch(server, found.position)
        state = server.state
        offset = known.position.offset
        same = parts_of(known.position.epoch)[0] == state.epoch
        is_there = same and state.log[:offset] == known.before
        is_kept = offset + 1 >= state.first or offset >= len(state.log)
        few = len(state.log) - offset <= limit
        told = [int(message.fragment) for message in found.messages]
        self.counts[found.reason or "recovered"] += 1
        assert found.position.offset == len(state.log)
        if not found.reason:
            assert is_there, f"false recovered: it has seen {known.before}, there is {state.log}"
            assert tuple(told) == state.log[offset:], f"told {told} of {state.log}"
            offsets = [message.offset for message in found.messages]
            assert offsets == list(range(offset + 1, len(state.log) + 1)), offsets
            for one in offsets[:-1]:
                self._learn(Position(found.position.epoch, one), state.log[:one], True)
        else:
            assert not told
            if found.reason == "epoch":
                assert not same or not had, "false epoch"
            elif is_there and is_kept and few and known.is_within:
                # A node that was cut off in the middle of catching up.
                self.counts["within"] += 1
            else:
                assert not (is_there and is_kept and few), f"false {found.reason}: {known} of {state}"
                assert found.reason != "too_many" or is_there
                assert found.reason != "too_old" or not is_kept
        self._learn(found.position, state.log)

    def _read(self, number: int, server: Server) -> None:
        """Read some, from either end."""
        newest, limit = self.random.random() < 0.5, self.random.choice((1, 2, 5, 1000))
        before = since = None
        state = server.state
        top = len(state.log)
        if self.random.random() < 0.5:
            before = Position("", self.random.randint(1, top + 2))
        if self.random.random() < 0.5 and state.epoch:
            at = self._ask(server, None, None, 1, True, False).position
            since = Position(at.epoch, self.random.randint(0, top))
        found = self._ask(server, since, before, limit, newest, False)
        self._note(f"{number} read {since} {before} {limit} {newest}: {found}")
        self._epoch(server, found.position)
        state = server.state
        offsets = [message.offset for message in found.messages]
        first = 1 if since is None else since.offset + 1
        if since is not None and first < state.first and first <= top:
            assert found.reason == "too_old", found
            return
        if since is not None and found.reason == "too_old":
            raise AssertionError(f"false too_old: {found} of {state}")
        last = top if before is None else min(top, before.offset - 1)
        wanted = list(range(max(first, state.first), last + 1))
        if newest:
            wanted.reverse()
        assert offsets == wanted[:limit], f"{offsets}, not {wanted[:limit]}"
        assert bool(found.more) == (len(wanted) > limit), found
        assert [int(message.fragment) for message in found.messages] == [state.log[one - 1] for one in offsets]
        self.counts["read"] += 1

    def _note(self, text: str) -> None:
        self.told.append(text)


@dataclass
class Life:
    """A node: the leases it has had, and who is connected to it.

    :ivar is_dead: killed; ``is_paused``: it does nothing, and may go on.
    """

    name: str
    lease: str
    own: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    leases: int = 0
    is_dead: bool = False
    is_paused: bool = False


class Presence:
    """Random nodes whose connections come into topics and go, of which some die, pause and are taken for dead.

    :param seed: of the random choices; several nodes take a dead one's members out at once, a few at a time.
    """

    topics = ("room:1", "room:2")

    def __init__(self, seed: int, speaker: Speaker, scripts: Scripts, counts: Counter[str]):
        self.random = random.Random(seed)
        self.speaker, self.scripts, self.counts = speaker, scripts, counts
        self.layout = Layout(f"p{seed:x}", 1)
        self._numbers = count(1)
        self.nodes = [self._node() for _ in range(3)]
        #: What is there: by topic and connection, lease, user and state.
        self.there: dict[str, dict[str, tuple[str, str, str]]] = {topic: {} for topic in self.topics}
        self.versions = dict.fromkeys(self.topics, 0)
        self.reaping: list[tuple[str, list[str]]] = []
        self.marked: set[str] = set()
        self.told: list[str] = []
        self.seed = seed

    def _node(self) -> Life:
        name = f"n{next(self._numbers)}"
        return Life(name, name)

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self._step()
            for node in self.nodes:
                if node.is_paused:
                    node.is_paused = False
                    self._enter_again(node)
                node.is_dead = True
                self._mark(node.lease)
            while self.reaping:
                self._reap()
            for topic in self.topics:
                assert not self.there[topic], f"{topic} has {self.there[topic]}"
                self._compare(topic)
            left = [key for key in self._keys() if b"}:d:" not in key]
            assert not left, left
        except AssertionError as error:
            raise AssertionError(f"presence {self.seed}: {error}\n" + "\n".join(self.told)) from None
        finally:
            names = self._keys()
            if names:
                self.speaker.call(("DEL", *names))

    def _keys(self) -> list[bytes]:
        (found,) = self.speaker.call(("KEYS", f"p{self.seed:x}:*"))
        return list(found)

    def _step(self) -> None:
        draw = self.random.random()
        node = self.random.choice(self.nodes)
        if draw < 0.6:
            if not node.is_dead and not node.is_paused:
                self._move(node)
        elif draw < 0.66:
            if node.is_paused:
                node.is_paused = False
                self.told.append(f"{node.name} goes on")
                self._enter_again(node)
            elif not node.is_dead:
                node.is_paused = True
        elif draw < 0.7:
            node.is_dead = True
            self.told.append(f"{node.name} killed")
            self._mark(node.lease)
            self.nodes.remove(node)
            self.nodes.append(self._node())
        elif draw < 0.75:
            if node.is_paused:
                self._mark(node.lease)
        elif draw < 0.9:
            if self.reaping:
                self._reap()
        else:
            self._compare(self.random.choice(self.topics))

    # -- nodes

    def _move(self, node: Life) -> None:
        topic = self.random.choice(self.topics)
        own = node.own.setdefault(topic, {})
        entries = []
        for _ in range(self.random.choice((1, 1, 2, 5))):
            connection = f"{node.name}-{self.random.randint(1, 6)}"
            if any(connection == one[0] for one in entries):
                continue
            known = own.get(connection)
            user = known[0] if known else self.random.choice(("ann", "bob", "eve"))
            what = self.random.choice(("in", "keep", "out"))
            state = self.random.choice(('{"x":1}', '{"x":2}', "{}"))
            if what == "keep" and known:
                state = known[1]
            entries.append((connection, user, what, state))
        self._call_move(node, topic, entries)

    def _call_move(self, node: Life, topic: str, entries: list[tuple[str, str, str, str]]) -> None:
        keys = self.layout.topic(topic)
        names = (
            keys.members,
            keys.users,
            self.layout.node_topics(0, node.lease),
            self.layout.node_members(0, node.lease, topic),
            self.layout.dead(0, node.lease),
        )
        words: list[str] = []
        for connection, user, what, state in entries:
            words += [f'"{connection}"', f'"{user}"', what, "null" if what == "out" else state]
        reply = self.speaker.run(self.scripts.move, names, "c", node.lease, topic, *words)
        self.told.append(f"{node.lease} moves {entries} in {topic}: {reply}")
        if isinstance(reply, hiredis.ReplyError):
            assert "DEADNODE" in str(reply) and node.lease in self.marked, reply
            self._renew(node)
            self._call_move(node, topic, entries)
            return
        assert node.lease not in self.marked, "a dead node has moved"
        own, there = node.own.setdefault(topic, {}), self.there[topic]
        wanted: list[tuple[str, str, str | None, int, int]] = []
        for connection, user, what, state in entries:
            known = there.get(connection)
            if what == "out":
                own.pop(connection, None)
                if known:
                    before = self._count(topic, known[1])
                    del there[connection]
                    wanted.append((connection, known[1], None, before, before - 1))
                continue
            if what == "keep" and known:
                state = known[2]
            own[connection] = user, state
            before = self._count(topic, user)
            there[connection] = node.lease, user, state
            if known is None or known[2] != state:
                wanted.append((connection, user, state, before, self._count(topic, user)))
        self._check(topic, reply, wanted)

    def _renew(self, node: Life) -> None:
        node.leases += 1
        node.lease = f"{node.name}.{node.leases}"
        self.counts["renewed"] += 1
        self._enter_again(node)

    def _enter_again(self, node: Life) -> None:
        """What a node does that has found itself taken for dead, or that goes on after a pause."""
        lease = node.lease
        for topic, own in list(node.own.items()):
            if own:
                self._call_move(node, topic, [(one, user, "in", state) for one, (user, state) in own.items()])
            if node.lease != lease:
                return

    # -- those who take out

    def _mark(self, lease: str) -> None:
        """One node or two find another dead, and begin to take its members out."""
        for _ in range(self.random.choice((1, 2))):
            names = (self.layout.node_topics(0, lease), self.layout.dead(0, lease))
            found = self.speaker.run(self.scripts.doomed, names, 100)
            self.marked.add(lease)
            self.reaping.append((lease, [topic.decode() for topic in found]))
            self.told.append(f"{lease} is dead, of {found}")

    def _reap(self) -> None:
        """Take out a few members, by one of those who do."""
        place = self.random.randrange(len(self.reaping))
        lease, topics = self.reaping[place]
        if not topics:
            # As long as there are more.
            names = (self.layout.node_topics(0, lease), self.layout.dead(0, lease))
            topics += [topic.decode() for topic in self.speaker.run(self.scripts.doomed, names, 100)]
            if not topics:
                self.reaping.pop(place)
                return
        topic = topics[0]
        keys = self.layout.topic(topic)
        names = (
            keys.members,
            keys.users,
            self.layout.node_topics(0, lease),
            self.layout.node_members(0, lease, topic),
        )
        reply = self.speaker.run(self.scripts.reap, names, "c", lease, topic)
        self.told.append(f"{lease} reaped in {topic}: {reply}")
        text, more = reply
        wanted = []
        for change in changes_of(text) if text else ():
            known = self.there[topic].pop(change.connection, None)
            assert known is not None and known[0] == lease, f"{change} was {known}"
            before = self._count(topic, known[1]) + 1
            wanted.append((change.connection, known[1], None, before, before - 1))
            self.counts["reaped"] += 1
        self._check(topic, text, wanted)
        if not more:
            topics.remove(topic)
            assert not any(one[0] == lease for one in self.there[topic].values()), "some are left"

    # -- what is so

    def _count(self, topic: str, user: str) -> int:
        return sum(one[1] == user for one in self.there[topic].values())

    def _check(self, topic: str, text: bytes, wanted: list[tuple[str, str, str | None, int, int]]) -> None:
        """Compare what was told of a call with what it should have brought about."""
        told = changes_of(text) if text else []
        found = [
            (one.connection, one.user, None if one.state is None else one.state.decode(), one.before, one.after)
            for one in told
        ]
        assert found == wanted, f"told {found}, not {wanted}"
        there = self.there[topic]
        for change in told:
            assert change.version > change.since, change
            assert change.since in (self.versions[topic], 0), f"{change} after {self.versions[topic]}"
            assert change.version > self.versions[topic], f"{change} after {self.versions[topic]}"
            self.versions[topic] = change.version
            assert (change.users, change.connections) == (len({one[1] for one in there.values()}), len(there)), change
            self.counts["told"] += 1

    def _compare(self, topic: str) -> None:
        keys = self.layout.topic(topic)
        found = members_of(self.speaker.run(self.scripts.members, (keys.members, keys.users), 200))
        wanted: dict[str, dict[str, bytes]] = {}
        for connection, (_, user, state) in self.there[topic].items():
            wanted.setdefault(user, {})[connection] = state.encode()
        assert found.members == wanted, f"{found} is not {wanted}"
        assert (found.users, found.connections) == (len(wanted), len(self.there[topic])), found
        self.counts["compared"] += 1
