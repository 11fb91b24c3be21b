"""The beats of nodes, by which each knows which of the others are there. Values in, values out.

A node counts on every few seconds. One that has not for ten seconds, in which whoever watches has read the counts again
and again without a pause, is dead. So neither a server that is away nor a watcher that was paused lets others die, and
no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["BEAT", "DEAD", "Beats"]

#: Seconds between beats, and seconds without one after which a node is dead.
BEAT, DEAD = 3.0, 10.0
#: Seconds between two readings that count as one after the other.
PAUSE = 2 * BEAT


class Beats:
    """The nodes that this one knows.

    :ivar alive: what each of those that are there has said last.
    """

    def __init__(self) -> None:
        #: By node, what it said, and when it was first read so.
        self._seen: dict[bytes, tuple[bytes, float]] = {}
        self._read = float("-inf")
        self.alive: dict[bytes, bytes] = {}

    def read(self, said: Mapping[bytes, bytes], begun: float, now: float) -> list[bytes]:
        """Take in what all nodes have said, and tell which are dead.

        :param begun: when they were asked, and ``now``: when the answer was there, by the own monotonic clock.
        """
        is_interrupted = now - self._read > PAUSE
        self._read = now
        seen: dict[bytes, tuple[bytes, float]] = {}
        for node, word in said.items():
            known = self._seen.get(node)
            if known is None or known[0] != word or is_interrupted:
                seen[node] = word, now
            else:
                seen[node] = known
        self._seen = seen
        dead = [node for node, (_, since) in seen.items() if begun - since > DEAD]
        self.alive = {node: word for node, (word, since) in seen.items() if begun - since <= DEAD}
        return dead
