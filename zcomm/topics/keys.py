"""The keys that make publishing safe to repeat (docs/protocol.rst, "Publishing")."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from hashlib import blake2b

from zcomm.errors import Conflict
from zcomm.interfaces import Position

__all__ = ["KEPT", "Keys"]

#: Seconds for which a key is known at least; a part of them longer, as its part is forgotten as a whole.
KEPT = 300.0
#: They are forgotten in so many parts, the oldest as a whole.
PARTS = 10
#: Bytes that a key takes, more or less.
SIZE = 400
#: The part of all keys that one user's may be where there is no room for more.
SHARE = 4

#: Bytes of a digest that tell what was published; those behind them tell by which numbering of its topic.
DIGEST = 16

#: The digest of what was published, and where it stands.
Entry = tuple[bytes, Position | None]


class _Part:
    """The keys of a while."""

    __slots__ = ("begun", "by_author", "entries")

    def __init__(self, begun: float):
        self.begun = begun
        #: By user and key.
        self.entries: dict[tuple[str, str], Entry] = {}
        self.by_author: Counter[str] = Counter()


class Keys:
    """The keys of the last minutes, with what became of what was published under them.

    Where there are too many the oldest are forgotten before their time.

    :param memory: bytes that they may take.
    :param seconds: the monotonic clock.
    """

    def __init__(self, memory: int, seconds: Callable[[], float]):
        self._seconds = seconds
        #: How many there may be in a part, and of one user once there are so many.
        self._room = max(16, memory // SIZE // PARTS // 2)
        self._share = max(4, self._room // SHARE)
        self._parts: deque[_Part] = deque()

    def find(self, author: str, key: str, digest: bytes) -> Entry | None:
        """Look up what was published under ``key`` before; without its place, where the topic has been numbered anew
        since: that would be taken for one of now.

        :param digest: of what is published now (:func:`digest_of`).
        :raises Conflict: where that is something else.
        """
        now = self._seconds()
        while self._parts and self._parts[0].begun + KEPT + KEPT / PARTS <= now:
            self._parts.popleft()
        name = author, key
        for part in reversed(self._parts):
            entry = part.entries.get(name)
            if entry is not None:
                if entry[0][:DIGEST] != digest[:DIGEST]:
                    raise Conflict(
                        "_idempotencyKey: it was used to publish something else; use a key only for the same again",
                        {"_idempotencyKey": "was used for something else"},
                    )
                return entry if entry[0] == digest else (entry[0], None)
        return None

    def keep(self, author: str, key: str, digest: bytes, position: Position | None) -> None:
        """Remember what was published under ``key``."""
        now = self._seconds()
        parts = self._parts
        if not parts or parts[-1].begun + KEPT / PARTS <= now or len(parts[-1].entries) >= 2 * self._room:
            parts.append(_Part(now))
            if len(parts) > PARTS + 1:
                parts.popleft()
        part = parts[-1]
        if len(part.entries) >= self._room and part.by_author[author] >= self._share:
            # A user of so many keys would let others' be forgotten before their time.
            return
        part.by_author[author] += 1
        part.entries[author, key] = digest, position


def digest_of(topic: str, data: bytes, generation: int = 0) -> bytes:
    """The digest of what a client publishes, as it has sent it.

    :param generation: of the topic's numbering (:attr:`~zcomm.topics.kinds.Found.generation`).
    """
    digest = blake2b(topic.encode() + b"\n" + data, digest_size=DIGEST).digest()
    return digest + b"%x" % generation if generation else digest
