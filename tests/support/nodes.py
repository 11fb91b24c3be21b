"""Engines that share a server, and what they tell."""

from __future__ import annotations

from typing import Any

from support.waiting import wait_until
from twisted.internet import reactor

from zcomm.engines.memory import HISTORY_MEMORY
from zcomm.engines.redis.engine import RedisEngine
from zcomm.engines.redis.servers import settings_from
from zcomm.interfaces import Broadcast, Change, Kept, Position

__all__ = ["KEPT", "Node"]

KEPT = Kept(100, 60.0)


class Node:
    """An engine of its own, and what it has told.

    :ivar messages: of topics: topic, position, fragment, origin.
    """

    def __init__(self, url: str, memory: int = HISTORY_MEMORY, ack: str = "memory"):
        self.engine = RedisEngine(settings_from(url), reactor, memory, ack)
        self.clients = 1
        self.messages: list[tuple[str, Position | None, bytes, str]] = []
        self.moves: list[tuple[str, Position, str]] = []
        self.changes: list[tuple[str, Change]] = []
        self.crossings: list[tuple[str, Change]] = []
        self.states: list[str] = []
        self.unheard: list[str] = []
        self.told: list[Broadcast] = []
        self.said: list[tuple[str, bytes]] = []
        self.misses = 0
        self.engine.deliver(self)
        self.engine.attach(self)
        self.engine.listen_to_nodes(self)

    async def start(self) -> Node:
        self.engine.startService()
        await self.engine.connected()
        return self

    def message(self, topic: str, position: Position | None, fragment: bytes, origin: str, teller: Any) -> None:
        self.messages.append((topic, position, fragment, origin))

    def moved(self, topic: str, position: Position, reason: str) -> None:
        self.moves.append((topic, position, reason))

    def presence(self, topic: str, change: Change, teller: Any) -> None:
        self.changes.append((topic, change))

    def presence_missed(self, topic: str) -> None:
        self.unheard.append(topic)

    def came_or_went(self, topic: str, change: Change) -> None:
        self.crossings.append((topic, change))

    def engine_state(self, state: str) -> None:
        self.states.append(state)

    def tell(self, message: Broadcast) -> int:
        self.told.append(message)
        return 1

    def heard(self, node: str, message: bytes) -> None:
        self.said.append((node, message))

    def missed(self) -> None:
        self.misses += 1

    def offsets(self, topic: str) -> list[int]:
        """The offsets of the messages of a topic, in the order in which they came."""
        return [position.offset for name, position, _, _ in self.messages if name == topic and position is not None]

    async def hears(self, count: int) -> None:
        """Wait until so many messages have come."""
        await wait_until(lambda: len(self.messages) >= count, f"{count} messages, not {len(self.messages)}")
