"""The registry of a server: its open connections, by identity and by user."""

from __future__ import annotations

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
    :ivar members: all of them in the order they came, each with its group; to look at, like ``groups``.
    """

    def __init__(self) -> None:
        self.groups: dict[Identity, dict[M, None]] = {}
        self.members: dict[M, dict[M, None]] = {}
        self._by_user: dict[str, int] = {}

    def add(self, member: M) -> None:
        """Take in ``member``."""
        identity = member.identity
        self.members[member] = group = self.groups.setdefault(identity, {})
        group[member] = None
        self._by_user[identity.name] = self._by_user.get(identity.name, 0) + 1

    def remove(self, member: M) -> None:
        """Forget ``member``; harmless when it is not here."""
        group = self.members.pop(member, None)
        if group is None:
            return
        del group[member]
        identity = member.identity
        if not group:
            del self.groups[identity]
        left = self._by_user.pop(identity.name) - 1
        if left:
            self._by_user[identity.name] = left

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[M]:
        """The members as they are now, safe against joining and leaving meanwhile."""
        return iter(list(self.members))

    def connections_of(self, user: str) -> int:
        """The number of connections that the user of that name has, with any of its tokens."""
        return self._by_user.get(user, 0)

    @property
    def identities(self) -> list[Identity]:
        """The identities that are connected, each once."""
        return list(self.groups)
