"""The registry of a server: its open connections, by identity and by user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from zcomm.interfaces import Identity

__all__ = ["Member", "Registry"]


class Member(Protocol):
    """A connection, as far as the registry looks at it."""

    identity: Identity


M = TypeVar("M", bound=Member)


class Registry(Generic[M]):
    """The open connections of one server.

    They are grouped by identity, because what a client may hear of depends on nothing else: the question is asked once
    for a group.

    :ivar groups: the members by identity, to look at. It changes as they come and go: whoever calls them copies it
        first.
    """

    def __init__(self) -> None:
        self.groups: dict[Identity, dict[M, None]] = {}
        self._count = 0
        self._by_user: Counter[str] = Counter()

    def add(self, member: M) -> None:
        """Take in ``member``."""
        self.groups.setdefault(member.identity, {})[member] = None
        self._count += 1
        self._by_user[member.identity.name] += 1

    def remove(self, member: M) -> None:
        """Forget ``member``; harmless when it is not here."""
        group = self.groups.get(member.identity)
        if group is None or member not in group:
            return
        del group[member]
        self._count -= 1
        name = member.identity.name
        self._by_user[name] -= 1
        if not self._by_user[name]:
            del self._by_user[name]
        if not group:
            del self.groups[member.identity]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[M]:
        """The members as they are now, safe against joining and leaving meanwhile."""
        return iter([member for group in self.groups.values() for member in group])

    def connections_of(self, user: str) -> int:
        """The number of connections that the user of that name has, with any of its tokens."""
        return self._by_user[user]

    @property
    def identities(self) -> list[Identity]:
        """The identities that are connected, each once."""
        return list(self.groups)
