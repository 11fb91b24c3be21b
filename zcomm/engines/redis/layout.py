"""The keys and channels of the engine in Redis (docs/scaling.rst, "In Redis"). Values in, values out.

All that belongs to one topic has one hash tag, so that a script may use it in a cluster too. There is one tag where
there is one server, and 128 in a cluster, spread evenly over its slots.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections import OrderedDict
from typing import NamedTuple

__all__ = ["PARTITIONS", "SLOTS", "Layout", "TopicKeys", "slot_of"]

#: Slots of a cluster.
SLOTS = 16_384
#: The parts of the key space in a cluster.
PARTITIONS = 128
#: Topics whose keys are remembered.
REMEMBERED = 50_000


def slot_of(key: bytes) -> int:
    """The slot of a key without a hash tag, or of a tag (Redis Cluster specification, "Key distribution model")."""
    return crc_hqx(key, 0) % SLOTS


def _tags(partitions: int) -> tuple[bytes, ...]:
    """As many hash tags as there are partitions, each in a part of the slots of its own."""
    if partitions == 1:
        return (b"0",)
    width = SLOTS // partitions
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < partitions:
        tag = b"%d" % number
        found.setdefault(slot_of(tag) // width, tag)
        number += 1
    return tuple(found[part] for part in range(partitions))


class TopicKeys(NamedTuple):
    """The keys of a topic.

    :ivar stream: its messages.
    :ivar meta: its numbering.
    :ivar members: of presence, who is there.
    :ivar users: of presence, how many connections each user has.
    """

    partition: int
    channel: bytes
    stream: bytes
    meta: bytes
    members: bytes
    users: bytes


class Layout:
    """The names of keys and channels.

    :param prefix: begins all of them.
    :param partitions: 1, or more in a cluster.
    :ivar slots: those of the partitions.
    """

    def __init__(self, prefix: str, partitions: int):
        tags = _tags(partitions)
        self.partitions = partitions
        self.slots = tuple(slot_of(tag) for tag in tags)
        self._begins = tuple(prefix.encode() + b":{" + tag + b"}:" for tag in tags)
        self._topics: OrderedDict[str, TopicKeys] = OrderedDict()

    def topic(self, name: str) -> TopicKeys:
        """The keys of the topic ``name``."""
        keys = self._topics.get(name)
        if keys is None:
            encoded = name.encode()
            partition = crc_hqx(encoded, 0) % self.partitions
            begin = self._begins[partition]
            keys = TopicKeys(
                partition,
                begin + b"c:" + encoded,
                begin + b"s:" + encoded,
                begin + b"m:" + encoded,
                begin + b"p:" + encoded,
                begin + b"u:" + encoded,
            )
            self._topics[name] = keys
            if len(self._topics) > REMEMBERED:
                self._topics.popitem(last=False)
        return keys

    def topic_of(self, channel: bytes) -> str:
        """The name of the topic that ``channel`` is of."""
        # Neither the prefix nor a tag has a brace of its own.
        return channel[channel.index(b"}:c:") + 4 :].decode()

    def idempotency(self, partition: int, author: str, key: str) -> bytes:
        """The key under which it stands what was published under a user's ``key``."""
        return self._begins[partition] + b"k:%d:%s:%s" % (len(author.encode()), author.encode(), key.encode())

    def node_topics(self, partition: int, node: str) -> bytes:
        """The topics in which connections of ``node`` are."""
        return self._begins[partition] + b"n:" + node.encode()

    def node_members(self, partition: int, node: str, topic: str) -> bytes:
        """The connections of ``node`` in ``topic``."""
        return self._begins[partition] + b"t:%s:%s" % (node.encode(), topic.encode())

    def dead(self, partition: int, node: str) -> bytes:
        """The mark of a node whose members are taken out, or were."""
        return self._begins[partition] + b"d:" + node.encode()

    def history(self, partition: int) -> bytes:
        """The id of the replication history, where scripts may not ask for it."""
        return self._begins[partition] + b"h"

    @property
    def nodes(self) -> bytes:
        """The nodes that there are, with their beats."""
        return self._begins[0] + b"nodes"

    @property
    def mark(self) -> bytes:
        """Says that the prefix is taken, by what, and in which form."""
        return self._begins[0] + b"zcomm"

    @property
    def identity(self) -> bytes:
        """The id of the engine, as long as its servers keep it."""
        return self._begins[0] + b"id"
