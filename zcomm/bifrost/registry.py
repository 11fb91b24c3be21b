"""The registry of a server: its open connections, by identity and by user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from zcomm.interfaces import ANONYMOUS, Identity
from zcomm.peers import block_of

__all__ = ["Elsewhere", "Member", "Registry", "user_of"]


class Member(Protocol):
    """A connection, as far as the registry looks at it."""

    identity: Identity
    peer: str


def user_of(identity: Identity, peer: str) -> str:
    """Whose connection it is, where connections are counted: the user's name; without authentication, where nobody can
    tell users apart, the addresses that share their limits with ``peer``."""
    return block_of(peer) if identity is ANONYMOUS else identity.name


def _user(member: Member) -> str:
    # Nothing but its identity is asked of most.
    identity = member.identity
    return user_of(identity, member.peer) if identity is ANONYMOUS else identity.name


M = TypeVar("M", bound=Member)


class Elsewhere:
    """The connections that other processes have of the same server, as far as they have told; none where it has no
    others.

    :ivar total: how many there are.
    """

    total: int = 0

    def connections_of(self, user: str) -> int:
        """The number of connections that a user has there."""
        return 0


class Registry(Generic[M]):
    """The open connections of one server.

    They are grouped by identity, because what a client may hear of depends on nothing else: the question is asked once
    for a group.

    :ivar groups: the members by identity, to look at. It changes as they come and go: whoever calls them copies it
        first.
    :ivar members: all of them in the order they came, each with its group; to look at, like ``groups``.
    """

    def __init__(self) -> None:
        #: Called with each user whose number of connections is another now, where somebody wants to know.
        self.tell: Callable[[str], None] | None = None
        self.groups: dict[Identity, dict[M, None]] = {}
        self.members: dict[M, dict[M, None]] = {}
        self._by_user: dict[str, int] = {}

    def add(self, member: M) -> None:
        """Take in ``member``."""
        identity = member.identity
        self.members[member] = group = self.groups.setdefault(identity, {})
        group[member] = None
        user = _user(member)
        self._by_user[user] = self._by_user.get(user, 0) + 1
        if self.tell is not None:
            self.tell(user)

    def remove(self, member: M) -> None:
        """Forget ``member``; harmless when it is not here."""
        group = self.members.pop(member, None)
        if group is None:
            return
        del group[member]
        identity = member.identity
        if not group:
            del self.groups[identity]
        user = _user(member)
        left = self._by_user.pop(user) - 1
        if left:
            self._by_user[user] = left
        if self.tell is not None:
            self.tell(user)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[M]:
        """The members as they are now, safe against joining and leaving meanwhile."""
        return iter(list(self.members))

    def connections_of(self, user: str) -> int:
        """The number of connections that a user has, by :func:`user_of`, with any of its tokens."""
        return self._by_user.get(user, 0)

    @property
    def users(self) -> list[str]:
        """The users that are connected, each once."""
        return list(self._by_user)

    @property
    def identities(self) -> list[Identity]:
        """The identities that are connected, each once."""
        return list(self.groups)
