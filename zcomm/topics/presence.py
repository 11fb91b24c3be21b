"""The members of topics (docs/protocol.rst, "Presence"). Values in, values out.

A :class:`Roster` is the truth about one topic; each change makes its version one higher. A :class:`Window` puts the
changes of a moment together, so that two thousand people who come in a second are told of in five events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from zcomm.budget.written import write_json
from zcomm.interfaces import Change, Members

__all__ = ["DETAIL", "DETAIL_AGAIN", "MAX_MEMBERS", "NO_STATE", "Roster", "Told", "Window", "raw_members"]

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

    def count(self, user: str) -> int:
        """The connections of ``user``."""
        return self._users.get(user, 0)

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
        self.version += 1
        return Change(self.version, connection, user, state, before, is_named)

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
        self.version += 1
        return Change(self.version, connection, user, None, before, known is not None)

    def members(self, most: int = DETAIL) -> Members:
        """The members of now, with names where they are no more than ``most``."""
        named: dict[str, dict[str, bytes]] | None = None
        if self.connections <= most:
            named = {}
            for connection, (user, state) in self._members.items():
                named.setdefault(user, {})[connection] = state
        return Members(self.version, self.users, self.connections, named)


class Told(NamedTuple):
    """The things that a window has to tell.

    :ivar event: as JSON, from the version on.
    :ivar arrived: users whose first connection has come.
    :ivar gone: users whose last one has left.
    """

    event: bytes
    arrived: list[str]
    gone: list[str]


class Window:
    """The changes of a moment in one topic."""

    __slots__ = ("_after", "_before", "_changes")

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._after: int | None = None
        #: The last change of each connection. None cancels another: who has asked between the two knows of the first.
        self._changes: dict[str, Change] = {}
        #: The connections that each user had before the first of its changes.
        self._before: dict[str, int] = {}

    def add(self, change: Change) -> None:
        """Take in ``change``."""
        if self._after is None:
            self._after = change.version - 1
        if change.is_named:
            self._changes[change.connection] = change
        self._before.setdefault(change.user, change.before)

    def close(self, now: Members, counts: dict[str, int], is_detailed: bool, is_whole: bool) -> Told:
        """Tell all of it, and begin anew.

        :param now: who is there now.
        :param counts: the connections that each of the users of the window has now.
        :param is_detailed: whether names are told.
        :param is_whole: whether all members are told, to those who had not been told any.
        """
        after, changes, before = self._after, self._changes, self._before
        self._begin()
        arrived = [user for user, count in before.items() if not count and counts.get(user, 0)]
        gone = [user for user, count in before.items() if count and not counts.get(user, 0)]
        event: dict[str, Any] = {"after": now.version if after is None else after, "version": now.version}
        if is_whole and now.members is not None:
            event["members"] = raw_members(now.members)
        elif is_detailed:
            joined: dict[str, dict[str, Any]] = {}
            left: dict[str, list[str]] = {}
            for change in changes.values():
                if change.state is None:
                    left.setdefault(change.user, []).append(change.connection)
                else:
                    joined.setdefault(change.user, {})[change.connection] = msgspec.Raw(change.state)
            event |= {"joined": joined, "left": left, "arrived": arrived, "gone": gone}
        event |= {"users": now.users, "connections": now.connections}
        return Told(write_json(event)[1:-1], arrived, gone)

    @property
    def users(self) -> Iterator[str]:
        """The users that something has changed for."""
        return iter(list(self._before))


def raw_members(members: dict[str, dict[str, bytes]]) -> dict[str, dict[str, Any]]:
    """Members as an answer has them: their states are JSON already."""
    return {
        user: {connection: msgspec.Raw(state) for connection, state in connections.items()}
        for user, connections in members.items()
    }
