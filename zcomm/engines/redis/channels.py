"""The channels that this process has subscribed to, at the servers that have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zcomm.engines.redis.layout import Layout
from zcomm.engines.redis.link import Link
from zcomm.engines.redis.protocol import RedisProtocol, ReplyError

__all__ = ["Channels"]

#: Channels that are named in one command.
AT_ONCE = 500


class Channels:
    """Keeps up the subscriptions of this process.

    :param layout: the names of channels.
    :param link_of: the link to the server that has a partition; ``None`` where nobody knows.
    :param is_cluster: whether channels belong to a part of the servers.
    :param on_confirmed: told a topic when the server has said that it is subscribed to, each time.
    :param on_message: told a topic and what was published there.
    :param on_trouble: called where a server refuses a channel or has ended one.
    """

    def __init__(
        self,
        layout: Layout,
        link_of: Callable[[int], Link | None],
        is_cluster: bool,
        on_confirmed: Callable[[str], None],
        on_message: Callable[[str, bytes], None],
        on_trouble: Callable[[], None],
    ):
        self._layout = layout
        self._link_of = link_of
        self._subscribe = "SSUBSCRIBE" if is_cluster else "SUBSCRIBE"
        self._unsubscribe = "SUNSUBSCRIBE" if is_cluster else "UNSUBSCRIBE"
        self._on_confirmed = on_confirmed
        self._on_message = on_message
        self._on_trouble = on_trouble
        #: By topic, the connection that it is subscribed to on.
        self._wanted: dict[str, RedisProtocol | None] = {}
        self._names: dict[bytes, str] = {}
        #: By connection, how many subscriptions to a channel it has not confirmed.
        self._unconfirmed: dict[RedisProtocol, dict[bytes, int]] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._wanted

    def add(self, topic: str) -> None:
        """Subscribe to the channel of ``topic``."""
        if topic not in self._wanted:
            self._wanted[topic] = None
            self._names[self._layout.topic(topic).channel] = topic
            self._renew([topic])

    def remove(self, topic: str) -> None:
        """End the subscription to the channel of ``topic``."""
        if topic not in self._wanted:
            return
        protocol = self._wanted.pop(topic)
        channel = self._layout.topic(topic).channel
        self._names.pop(channel, None)
        if protocol is not None and protocol.transport is not None:
            protocol.send(self._unsubscribe, channel)

    def is_confirmed(self, topic: str) -> bool:
        """Whether what is published to ``topic`` from now on is heard."""
        protocol = self._wanted.get(topic)
        channel = self._layout.topic(topic).channel
        return protocol is not None and channel not in self._unconfirmed.get(protocol, {})

    def up(self, link: Link) -> None:
        """Use a connection that is new."""
        protocol = link.protocol
        if protocol is not None:
            protocol.on_push = lambda pushed: self._pushed(protocol, pushed)
            self._unconfirmed[protocol] = {}
        self.renew()

    def down(self) -> None:
        """Forget connections that have ended."""
        for protocol in [one for one in self._unconfirmed if one.transport is None]:
            del self._unconfirmed[protocol]

    def renew(self) -> None:
        """Subscribe to everything where it is now."""
        self._renew(list(self._wanted))

    def _renew(self, topics: list[str]) -> None:
        asked: dict[RedisProtocol, list[bytes]] = {}
        for topic in topics:
            keys = self._layout.topic(topic)
            link = self._link_of(keys.partition)
            protocol = None if link is None else link.protocol
            known = self._wanted[topic]
            if protocol is known and protocol is not None:
                continue
            if known is not None and known.transport is not None:
                known.send(self._unsubscribe, keys.channel)
            self._wanted[topic] = protocol
            if protocol is not None:
                asked.setdefault(protocol, []).append(keys.channel)
        for protocol, channels in asked.items():
            unconfirmed = self._unconfirmed[protocol]
            for channel in channels:
                unconfirmed[channel] = unconfirmed.get(channel, 0) + 1
            for begin in range(0, len(channels), AT_ONCE):
                part = channels[begin : begin + AT_ONCE]
                if self._subscribe == "SUBSCRIBE":
                    protocol.send(self._subscribe, *part)
                else:
                    # Those of one command would have to be in one slot.
                    for channel in part:
                        protocol.send(self._subscribe, channel)

    def _pushed(self, protocol: RedisProtocol, pushed: Any) -> None:
        if isinstance(pushed, ReplyError):
            self._on_trouble()
            return
        kind = pushed[0]
        if kind in (b"message", b"smessage"):
            topic = self._names.get(pushed[1])
            if topic is not None and self._wanted[topic] is protocol:
                self._on_message(topic, pushed[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            self._confirmed(protocol, pushed[1])
        elif kind == b"sunsubscribe":
            # Asked for, or its slot has gone to another server.
            topic = self._names.get(pushed[1])
            unconfirmed = self._unconfirmed.get(protocol, {})
            if topic is not None and self._wanted[topic] is protocol and pushed[1] not in unconfirmed:
                self._wanted[topic] = None
                self._on_trouble()

    def _confirmed(self, protocol: RedisProtocol, channel: bytes) -> None:
        unconfirmed = self._unconfirmed.get(protocol, {})
        left = unconfirmed.pop(channel, 1) - 1
        if left:
            unconfirmed[channel] = left
            return
        topic = self._names.get(channel)
        if topic is not None and self._wanted[topic] is protocol:
            self._on_confirmed(topic)
