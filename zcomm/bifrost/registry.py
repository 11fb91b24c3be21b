"""The registry of open connections, and broadcasting to them.

Connections are grouped by identity, because what a client may read depends on nothing else: the
question is asked once per identity and message, and everybody in a group is sent the same bytes.
What is announced within one turn of the reactor leaves in one piece.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from zcomm.interfaces import EVERYBODY, Audience, Identity, Permissions

__all__ = ["Hub", "Member"]


class Member(Protocol):
    """What the hub asks of a connection."""

    identity: Identity

    def send_payloads(self, payloads: list[bytes]) -> None:
        """Queue these text messages, which are encoded already, for the client."""


M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True, eq=False)
class _Announcement:
    payload: bytes
    exclude: Member | None
    audience: Audience


class Hub(Generic[M]):
    """All open connections.

    :param at_end_of_turn: calls its argument once the reactor is done with what it is doing now.
    :param fan_out: writes the same messages to many members at the least cost.
    :param permissions: asked who belongs to an audience.
    """

    def __init__(
        self,
        at_end_of_turn: Callable[[Callable[[], None]], object],
        fan_out: Callable[[list[M], list[bytes]], None],
        permissions: Permissions,
    ):
        self._permissions = permissions
        self._at_end_of_turn = at_end_of_turn
        self._fan_out = fan_out
        self._groups: dict[Identity, dict[M, None]] = {}
        self._waiting: list[_Announcement] = []
        self._count = 0
        self._by_user: Counter[str] = Counter()
        #: How many messages were announced so far.
        self.announced = 0

    def add(self, member: M) -> None:
        """Let ``member`` hear from now on; what was announced before in this turn is not for it."""
        self._flush()
        self._groups.setdefault(member.identity, {})[member] = None
        self._count += 1
        self._by_user[member.identity.name] += 1

    def remove(self, member: M) -> None:
        """Forget ``member``; harmless when it is not here."""
        group = self._groups.get(member.identity)
        if group is None or member not in group:
            return
        del group[member]
        self._count -= 1
        name = member.identity.name
        self._by_user[name] -= 1
        if not self._by_user[name]:
            del self._by_user[name]
        if not group:
            del self._groups[member.identity]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[M]:
        """The members as they are now, safe against joining and leaving meanwhile."""
        return iter([member for group in self._groups.values() for member in group])

    def connections_of(self, user: str) -> int:
        """How many members the user of that name has, whichever of its tokens they showed."""
        return self._by_user[user]

    @property
    def identities(self) -> list[Identity]:
        """Who is connected, each once."""
        return list(self._groups)

    def announce(self, payload: bytes, exclude: Member | None = None, audience: Audience = EVERYBODY) -> int:
        """Queue one message for ``audience`` but ``exclude``; returns for how many clients."""
        permissions = self._permissions
        reached = sum(len(group) for identity, group in self._groups.items() if audience.admits(identity, permissions))
        group = None if exclude is None else self._groups.get(exclude.identity)
        if group and exclude is not None and exclude in group and audience.admits(exclude.identity, permissions):
            reached -= 1
        self.announced += 1
        if reached:
            if not self._waiting:
                self._at_end_of_turn(self._flush)
            self._waiting.append(_Announcement(payload, exclude, audience))
        return reached

    def _flush(self) -> None:
        announced, self._waiting = self._waiting, []
        if not announced:
            return
        senders = {item.exclude for item in announced if item.exclude is not None}
        for identity, group in list(self._groups.items()):
            readable = [item for item in announced if item.audience.admits(identity, self._permissions)]
            if not readable:
                continue
            payloads = [item.payload for item in readable]
            apart = [member for member in senders if member in group] if senders else ()
            if apart:
                self._fan_out([member for member in group if member not in senders], payloads)
                for member in apart:
                    others = [item.payload for item in readable if item.exclude is not member]
                    if others:
                        self._fan_out([member], others)
            else:
                self._fan_out(list(group), payloads)
