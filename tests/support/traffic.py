"""Messages that are published at engines again and again while something fails, and what must have come of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from support.nodes import Node
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from zcomm.errors import Unavailable
from zcomm.interfaces import Change, Kept, Position

__all__ = ["LONG", "Traffic", "Witness"]

#: All that is published while something fails.
LONG = Kept(10_000, 600.0)
#: Seconds until each publish is answered at the latest: those that a call waits, and those until a silent server is
#: given up.
DEADLINE = 10.0 + 6.0
#: Seconds between two messages of one node.
EACH = 0.02


class Witness(Node):
    """An engine, and what it has told of topics, in order.

    :ivar events: by topic: a position with the message, or with ``None`` where it has moved there.
    :ivar there: by topic, the users of connections, as the changes tell it.
    """

    def __init__(self, url: str):
        super().__init__(url)
        self.events: dict[str, list[tuple[Position, bytes | None]]] = {}
        self.begins: dict[str, Position] = {}

    async def listen(self, topic: str) -> Position:
        begin = await self.engine.listen(topic, LONG)
        assert begin is not None
        self.begins[topic] = begin
        return begin

    def message(self, topic: str, position: Position | None, fragment: bytes, origin: str, teller: Any) -> None:
        super().message(topic, position, fragment, origin, teller)
        if position is not None:
            self.events.setdefault(topic, []).append((position, fragment))

    def moved(self, topic: str, position: Position, reason: str) -> None:
        super().moved(topic, position, reason)
        self.events.setdefault(topic, []).append((position, None))

    def gone(self, topic: str) -> list[Change]:
        """The changes by which connections left."""
        return [change for name, change in self.changes if name == topic and change.state is None]

    def check(self, topic: str) -> tuple[set[bytes], bool]:
        """Check that nothing was told twice, out of order or with a gap; what was told, and whether it was said that
        something is lost."""
        offset = self.begins[topic].offset
        seen: set[bytes] = set()
        has_moved = False
        for position, fragment in self.events.get(topic, ()):
            if fragment is None:
                has_moved = True
            else:
                assert position.offset == offset + 1, (offset, position, fragment)
                assert fragment not in seen, (position, fragment)
                seen.add(fragment)
            offset = position.offset
        return seen, has_moved


class Traffic:
    """Messages to one topic from each of some engines, from :meth:`begin` to :meth:`end`.

    :param keyed: whether each has a key, with which it may be sent again.
    :ivar acknowledged: what was answered with a position.
    :ivar refused: what was answered ``unavailable``.
    :ivar longest: seconds that an answer has taken at most.
    """

    def __init__(self, nodes: list[Witness], topic: str = "room:1", keyed: bool = True):
        self.nodes, self.topic, self._keyed = nodes, topic, keyed
        self.acknowledged: list[bytes] = []
        self.refused: list[str] = []
        self.faults: list[BaseException] = []
        self.longest = 0.0
        self._number = count(1)
        self._open = 0
        self._loop = LoopingCall(self._publish)

    async def begin(self) -> Traffic:
        for node in self.nodes:
            await node.listen(self.topic)
        self._loop.start(EACH)
        await wait_until(lambda: len(self.acknowledged) > 5)
        return self

    def _publish(self) -> None:
        for node in self.nodes:
            number = next(self._number)
            fragment = b"%d" % number
            key = f"{self.topic}-{number}" if self._keyed else None
            begun = reactor.seconds()  # type: ignore[attr-defined]
            self._open += 1
            published = node.engine.publish(self.topic, LONG, fragment, "ann", "", key, b"x" * 16)
            published.addCallbacks(self._published, self._refused, (fragment, begun), errbackArgs=(begun,))

    def _answered(self, begun: float) -> None:
        self._open -= 1
        self.longest = max(self.longest, reactor.seconds() - begun)  # type: ignore[attr-defined]

    def _published(self, position: Position | None, fragment: bytes, begun: float) -> None:
        self._answered(begun)
        # A key whose topic began anew has no position any more.
        if position is not None:
            self.acknowledged.append(fragment)

    def _refused(self, failure: Failure, begun: float) -> None:
        self._answered(begun)
        if failure.check(Unavailable):
            self.refused.append(failure.getErrorMessage())
        else:
            self.faults.append(failure.value)  # type: ignore[arg-type]

    def goes_on(self, more: int = 20) -> Deferred[Any]:
        """Wait until so many more are acknowledged."""
        until = len(self.acknowledged) + more
        return wait_until(lambda: len(self.acknowledged) >= until, "messages that are acknowledged again")

    async def end(self) -> list[bool]:
        """Publish no more, and check what came of all; whether each node was told that something is lost."""
        self._loop.stop()
        await wait_until(lambda: not self._open, "an answer to each message")
        assert not self.faults, self.faults
        assert self.longest < DEADLINE, self.longest
        last = b"the last of all"
        for node in self.nodes:
            await node.engine.publish(self.topic, LONG, last + b" %d" % id(node), "ann")
        has_moved = []
        for node in self.nodes:
            await wait_until(
                lambda node=node: (
                    sum(one[2].startswith(last) for one in node.messages if one[0] == self.topic)  # type: ignore[misc]
                    >= len(self.nodes)
                ),
                "the last messages at each node",
            )
            seen, moved = node.check(self.topic)
            has_moved.append(moved)
            if not moved:
                missing = [one for one in self.acknowledged if one not in seen]
                assert not missing, f"{len(missing)} acknowledged are missing: {missing[:5]}"
        return has_moved


async def while_busy(
    nodes: list[Witness], fault: Callable[[Traffic], Awaitable[Any]], topic: str = "room:1", keyed: bool = True
) -> tuple[Traffic, list[bool]]:
    """Have something happen while messages are published; the traffic, and which node was told of a loss."""
    traffic = await Traffic(nodes, topic, keyed).begin()
    await fault(traffic)
    await traffic.goes_on()
    return traffic, await traffic.end()
