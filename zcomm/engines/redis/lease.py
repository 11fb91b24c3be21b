"""Presence as the engine has it: the members that are connected here, the lease of this node, and those of others.

Members stand under the name of their node, which counts beats. Where one does not beat any more, the others take its
members out, each once. A node that finds itself taken for dead goes on under another name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.budget.written import write_json
from zcomm.engines.redis.beats import BEAT, Beats
from zcomm.engines.redis.layout import Layout
from zcomm.engines.redis.link import Words
from zcomm.engines.redis.members import Entry, OwnMembers
from zcomm.engines.redis.pool import PATIENCE, Pool, is_refused
from zcomm.engines.redis.protocol import LinkLost, ReplyError
from zcomm.engines.redis.replies import changes_of, read_text
from zcomm.engines.redis.scripts import Script
from zcomm.errors import Unavailable
from zcomm.interfaces import Change

__all__ = ["Lease"]

#: Seconds for which a node that is dead is known to be.
MARK_KEPT = 24 * 3600
#: Seconds for which a node is watched that would keep this one from starting: in that time one that is there beats. And
#: seconds between two looks.
WATCHED, WATCH = 2 * BEAT + 1, 0.5
#: The begin of the ids of databases that no two hosts can share.
LOCAL = "sqlite:"
#: The begin of the topics whose members are places, and seconds that the engine has to say whether there is one: who
#: asks waits for the handshake.
PLACES, CLAIM = "$places:", 1.0


class Beat(msgspec.Struct):
    """The word of a node.

    :ivar count: another one each time.
    :ivar database: the id of the database that its rows are in; empty for none that is known.
    :ivar name: by which people know it.
    """

    count: int
    clients: int = 0
    database: str = ""
    name: str = ""


_read_beat = msgspec.json.Decoder(Beat).decode


class Lease:
    """The members of this node, and its place among the others.

    :param pool: calls scripts.
    :param layout: the names of keys.
    :param node: the id of this process.
    :param at_end: calls its argument at the end of the turn.
    :param seconds: the monotonic clock.
    :param count: how many clients there are here.
    :param on_change: told of each change of a topic that came of a call of this node.
    :ivar own: the members that are connected here.
    """

    _log = Logger()

    def __init__(
        self,
        pool: Pool,
        layout: Layout,
        node: str,
        at_end: Callable[[Callable[[], None]], object],
        seconds: Callable[[], float],
        count: Callable[[], int],
        on_change: Callable[[str, Change], None],
    ):
        self._pool = pool
        self._layout = layout
        self.node = node
        self._seconds = seconds
        self._count_clients = count
        self._on_change = on_change
        self.own = OwnMembers(self._move, at_end)
        #: The name under which its members are entered; another one after others have taken it for dead.
        self._lease = node
        self._leases = 0
        self._beats = Beats()
        self._count = 0
        #: What all nodes have said last.
        self._said: dict[bytes, bytes] = {}
        #: The database of this node, and its name; empty until it has joined those who have their rows there.
        self._database = self._name = ""
        #: By node with other rows, what it said first; and the databases of which the log was told.
        self._strangers: dict[bytes, bytes] = {}
        self._known = {""}
        #: Nodes whose members are taken out, and those of whom all are.
        self._reaping: set[bytes] = set()
        self._ended: list[bytes] = []

    @property
    def others(self) -> list[str]:
        """The ids of the other nodes that are there."""
        return [name for lease in self._beats.alive if (name := lease.decode().partition(".")[0]) != self.node]

    @property
    def clients_of_others(self) -> int:
        """The number of their clients, as they have said last."""
        return sum(
            _read_beat(said).clients
            for lease, said in self._beats.alive.items()
            if lease.decode().partition(".")[0] != self.node
        )

    @inlineCallbacks
    def _leased(
        self, topic: str, script: Callable[[], Script], words: Callable[[str], Words], patience: float = PATIENCE
    ) -> Any:
        """Run a script on the members of a topic in the name of this node, whatever that is by then."""
        keys = self._layout.topic(topic)
        while True:
            lease = self._lease
            names = (
                keys.members,
                keys.users,
                self._layout.node_topics(keys.partition, lease),
                self._layout.node_members(keys.partition, lease, topic),
                self._layout.dead(keys.partition, lease),
            )
            try:
                reply = yield self._pool.call(keys.partition, script(), names, words(lease), patience=patience)
                return reply
            except ReplyError as error:
                if not is_refused(error, "DEADNODE"):
                    raise
                self._renew_lease(lease)

    @inlineCallbacks
    def _move(self, topic: str, entries: list[Entry]) -> Any:
        moves: list[bytes | str | int] = []
        for entry in entries:
            moves += [write_json(entry.connection), entry.user, entry.what, entry.state]
        channel = self._layout.topic(topic).channel
        told = yield self._leased(topic, lambda: self._pool.scripts.move, lambda lease: [channel, lease, topic, *moves])
        if told:
            self._brought_about(topic, told)

    @inlineCallbacks
    def claim(self, name: str, member: str, limit: int) -> Any:
        """Ask for one of ``limit`` places; a Deferred of whether there was one."""
        topic, named = f"{PLACES}{name}", write_json(member)
        has_place = yield self._leased(
            topic, lambda: self._pool.scripts.claim, lambda lease: [lease, topic, named, limit], CLAIM
        )
        if has_place:
            self.own.has_entered(topic, member, "")
        return bool(has_place)

    def release(self, name: str, member: str) -> None:
        """Give a place back."""
        self.own.leave(f"{PLACES}{name}", member)

    def _renew_lease(self, lease: str) -> None:
        """Go on under another name: the others take this process for dead, and its members out."""
        if lease == self._lease:
            self._leases += 1
            self._lease = f"{self.node}.{self._leases}"
            self._log.warn("other nodes took this one for dead; its members come in again")
            self.own.enter_again()

    def _brought_about(self, topic: str, text: bytes) -> None:
        if topic[0] == "$":
            return
        for change in changes_of(text):
            self._on_change(topic, change)

    @inlineCallbacks
    def leave_again(self) -> Any:
        """Let those leave who left before, where the servers have forgotten that."""
        lease = self._lease
        for partition in range(self._layout.partitions):
            protocol = self._pool.protocol(partition)
            if protocol is None:
                return
            try:
                topics = yield protocol.call("SMEMBERS", self._layout.node_topics(partition, lease))
                for topic in map(bytes.decode, topics):
                    named = yield protocol.call("SMEMBERS", self._layout.node_members(partition, lease, topic))
                    for connection in map(read_text, named):
                        if not self.own.is_in(topic, connection):
                            self.own.leave(topic, connection)
            except (ReplyError, LinkLost):
                # With the next connection it is looked at anew.
                return

    # -- beats

    def leave(self) -> Deferred[Any]:
        """Take this node off the list, once it has no members any more."""
        protocol = self._pool.protocol(0)
        if protocol is None:
            return succeed(None)
        return protocol.call("HDEL", self._layout.nodes, self._lease).addErrback(lambda _: None)

    @inlineCallbacks
    def beat(self) -> Any:
        """Count a beat, and look for nodes that are dead. It fails with :class:`~zcomm.errors.Unavailable`."""
        self._count += 1
        lease, ended = self._lease, list(self._ended)
        word = write_json(Beat(self._count, self._count_clients(), self._database, self._name))
        begun = self._seconds()
        names = (self._layout.nodes, self._layout.dead(0, lease))
        try:
            reply = yield self._pool.call(0, self._pool.scripts.beat, names, (lease, word, *ended), patience=BEAT)
        except ReplyError as error:
            if not is_refused(error, "DEADNODE"):
                raise
            self._renew_lease(lease)
            return
        self._ended = [node for node in self._ended if node not in ended]
        self.own.go_on()
        self._said = said = dict(zip(reply[::2], reply[1::2], strict=True))
        self._look_for_other_rows()
        for node in self._beats.read(said, begun, self._seconds()):
            if node not in self._reaping and node not in self._ended and node != lease.encode():
                self._reaping.add(node)
                reaping = self._reap(node)
                reaping.addErrback(self._not_reaped, node)
                reaping.addCallback(partial(self._reaped, node))

    # -- databases

    @inlineCallbacks
    def join(self, database: str, name: str, clock: IReactorTime) -> Any:
        """Say from now on in which database the rows of this node are, unless those of others are in another one.

        A beat says it and reads what all say, at once: so of two that start at a time the later one sees the other.

        :param name: by which people know this node.
        :returns: a Deferred of the name of a node that is there and has its rows in another database, or of ``None``.
            It fails with :class:`~zcomm.errors.Unavailable`.
        """
        dead: set[bytes] = set()
        while True:
            self._database, self._name = database, name
            yield self.beat()
            others = {lease: said for lease, said in self._said.items() if lease not in dead and self._differs(said)}
            if not others:
                return None
            # While it is not known whether those are there, this one keeps nobody else from starting.
            self._database = ""
            yield self.beat()
            found = yield self._first_there(others, clock)
            if found is not None:
                return found
            dead.update(others)

    def _differs(self, said: bytes) -> bool:
        """Whether a node has its rows in another database, where both databases are on the network."""
        theirs, own = _read_beat(said).database, self._database
        return theirs not in ("", own) and not theirs.startswith(LOCAL) and not own.startswith(LOCAL)

    @inlineCallbacks
    def _first_there(self, others: dict[bytes, bytes], clock: IReactorTime) -> Any:
        """The name of the first of some nodes that beats; ``None`` where none does."""
        until = self._seconds() + WATCHED
        while others and self._seconds() < until:
            yield deferLater(clock, WATCH)
            yield self.beat()
            for lease, before in list(others.items()):
                now = self._said.get(lease)
                said = None if now is None else _read_beat(now)
                if said is None or not said.database:
                    # It has left, or has not joined.
                    del others[lease]
                elif now != before:
                    return said.name or lease.decode()
        return None

    def _look_for_other_rows(self) -> None:
        """Tell the log of a node that is there and has other rows, of which one at least is local to its host."""
        if not self._database:
            return
        for lease, said in self._said.items():
            other = _read_beat(said)
            if other.database == self._database or other.database in self._known:
                continue
            if self._strangers.setdefault(lease, said) != said:
                self._known.add(other.database)
                self._log.warn(
                    "{other} shares this engine and has other rows: {why}. Changes of rows are told to the clients of "
                    "both all the same, as are topics; share a PostgreSQL, or give each a prefix of its own: "
                    "?prefix=NAME behind the engine's URL",
                    other=other.name,
                    why="a SQLite file is of one host"
                    if LOCAL in (other.database[: len(LOCAL)], self._database[: len(LOCAL)])
                    else "its database is another one",
                )

    @inlineCallbacks
    def _reap(self, node: bytes) -> Any:
        """Take the members of a node out that is dead. Others do so too: each member is taken out once."""
        name = node.decode()
        self._log.info("node {node} is dead: its members are taken out", node=name)
        for partition in range(self._layout.partitions):
            topics_key = self._layout.node_topics(partition, name)
            mark = self._layout.dead(partition, name)
            while True:
                topics = yield self._pool.call(partition, self._pool.scripts.doomed, (topics_key, mark), (MARK_KEPT,))
                for raw in topics:
                    yield self._reap_topic(partition, name, raw.decode(), topics_key, mark)
                if not topics:
                    break
        self._ended.append(node)

    @inlineCallbacks
    def _reap_topic(self, partition: int, name: str, topic: str, topics_key: bytes, mark: bytes) -> Any:
        keys = self._layout.topic(topic)
        names = (keys.members, keys.users, topics_key, self._layout.node_members(partition, name, topic))
        more = 1
        while more:
            told, more = yield self._pool.call(
                partition, self._pool.scripts.reap, names, (keys.channel, name, topic), may_repeat=False
            )
            if told:
                self._brought_about(topic, told)

    def _reaped(self, node: bytes, _: Any) -> None:
        self._reaping.discard(node)

    def _not_reaped(self, failure: Failure, node: bytes) -> None:
        # The next beat tries again.
        if not failure.check(Unavailable):
            self._log.failure("the members of node {node} are not taken out", failure, node=node.decode())
