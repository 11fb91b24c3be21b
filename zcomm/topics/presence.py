"""The members of topics (docs/protocol.rst, "Presence"). Values in, values out.

A :class:`Roster` is the truth about one topic; each change makes its version one higher. A :class:`Window` puts the
changes of a moment together, so that two thousand people who come in a second are told of in five events.
"""

from __future__ import annotations

from typing import Any

import msgspec

from zcomm.budget.written import write_json
from zcomm.interfaces import Change, Members

__all__ = ["DETAIL", "DETAIL_AGAIN", "MAX_MEMBERS", "NO_STATE", "Crossing", "Roster", "Window", "raw_members"]

#: Members that are named at most; those beyond are counted.
MAX_MEMBERS = 10_000
#: Connections up to which members are named in events and answers, and below which they are again.
DETAIL, DETAIL_AGAIN = 200, 150
#: What a connection says of itself where it says nothing.
NO_STATE = b"{}"


class Roster:
    """The members of one topic.

    :ivar version: how many changes there have been.
    """

    __slots__ = ("_members", "_unnamed", "_users", "version")

    def __init__(self, version: int = 0) -> None:
        self.version = version
        #: User and state, by connection.
        self._members: dict[str, tuple[str, bytes]] = {}
        #: Those who are only counted: users by connection.
        self._unnamed: dict[str, str] = {}
        #: How many connections each user has.
        self._users: dict[str, int] = {}

    @property
    def connections(self) -> int:
        """The number of those who are there."""
        return len(self._members) + len(self._unnamed)

    @property
    def users(self) -> int:
        """The number of users those are of."""
        return len(self._users)

    def enter(self, connection: str, user: str, state: bytes | None) -> Change | None:
        """Let a connection in, or take its new state, if any; ``None`` where nothing is new."""
        known = self._members.get(connection)
        if state is None:
            state = NO_STATE if known is None else known[1]
        if known == (user, state) or connection in self._unnamed:
            return None
        before = self._users.get(user, 0)
        is_named = known is not None or len(self._members) < MAX_MEMBERS
        if known is None:
            self._users[user] = before + 1
        if is_named:
            self._members[connection] = user, state
        else:
            self._unnamed[connection] = user
        return self._change(connection, user, state, before, self._users[user], is_named)

    def leave(self, connection: str) -> Change | None:
        """Let a connection go; ``None`` where it is not there."""
        known = self._members.pop(connection, None)
        user = self._unnamed.pop(connection, None) if known is None else known[0]
        if user is None:
            return None
        before = self._users[user]
        if before > 1:
            self._users[user] = before - 1
        else:
            del self._users[user]
        return self._change(connection, user, None, before, before - 1, known is not None)

    def _change(
        self, connection: str, user: str, state: bytes | None, before: int, after: int, is_named: bool
    ) -> Change:
        since, self.version = self.version, self.version + 1
        return Change(
            since, self.version, connection, user, state, before, after, self.users, self.connections, is_named
        )

    def members(self, most: int = DETAIL) -> Members:
        """The members of now, with names where they are no more than ``most``."""
        named: dict[str, dict[str, bytes]] | None = None
        if self.connections <= most:
            named = {}
            for connection, (user, state) in self._members.items():
                named.setdefault(user, {})[connection] = state
        return Members(self.version, self.users, self.connections, named)


class Crossing:
    """The users of a moment in one topic: those whose first connection has come, and whose last one has left."""

    __slots__ = ("_users",)

    def __init__(self) -> None:
        #: The connections that each had before the first of its changes, and has after the last.
        self._users: dict[str, tuple[int, int]] = {}

    def add(self, change: Change) -> None:
        """Take in ``change``."""
        known = self._users.get(change.user)
        self._users[change.user] = change.before if known is None else known[0], change.after

    @property
    def arrived(self) -> list[str]:
        """Users who have come."""
        return [user for user, (before, after) in self._users.items() if not before and after]

    @property
    def gone(self) -> list[str]:
        """Users who have left."""
        return [user for user, (before, after) in self._users.items() if before and not after]


class Window:
    """The changes of a moment in one topic.

    :ivar last: the newest of them; ``None`` as long as there is none.
    :ivar is_broken: whether one of them is missing.
    """

    __slots__ = ("_changes", "_crossing", "_since", "is_broken", "last")

    def __init__(self) -> None:
        self._since = 0
        #: The last change of each connection. None cancels another: who has asked between the two knows of the first.
        self._changes: dict[str, Change] = {}
        self._crossing = Crossing()
        self.last: Change | None = None
        self.is_broken = False

    def add(self, change: Change) -> None:
        """Take in ``change``."""
        if self.last is None:
            self._since = change.since
        self.last = change
        if change.is_named:
            self._changes[change.connection] = change
        self._crossing.add(change)

    def told(self, is_detailed: bool) -> bytes:
        """The inside of the event that tells all of it, behind the topic.

        :param is_detailed: whether names are told.
        """
        last = self.last
        event: dict[str, Any] = {"after": self._since, "version": self._since if last is None else last.version}
        if is_detailed:
            joined: dict[str, dict[str, Any]] = {}
            left: dict[str, list[str]] = {}
            for change in self._changes.values():
                if change.state is None:
                    left.setdefault(change.user, []).append(change.connection)
                else:
                    joined.setdefault(change.user, {})[change.connection] = msgspec.Raw(change.state)
            event |= {"joined": joined, "left": left}
            event |= {"arrived": self._crossing.arrived, "gone": self._crossing.gone}
        if last is not None:
            event |= {"users": last.users, "connections": last.connections}
        return write_json(event)[1:-1]

    def told_whole(self, now: Members) -> bytes:
        """The inside of the event that tells all members instead, to those who had not been told any, or not all."""
        event: dict[str, Any] = {"after": 0 if self.is_broken else self._since, "version": now.version}
        if now.members is not None:
            event["members"] = raw_members(now.members)
        event |= {"users": now.users, "connections": now.connections}
        return write_json(event)[1:-1]


def raw_members(members: dict[str, dict[str, bytes]]) -> dict[str, dict[str, Any]]:
    """Members as an answer has them: their states are JSON already."""
    return {
        user: {connection: msgspec.Raw(state) for connection, state in connections.items()}
        for user, connections in members.items()
    }
