"""The members of a topic as one client knows them: the whole from a reply, then the changes that fit it."""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec

__all__ = ["Change", "Members", "PresenceNews", "Whole"]

#: The connections of each user and the state of each.
Named = dict[str, dict[str, Any]]


class PresenceNews(TypedDict):
    """A word to listeners of ``presence``: all there are, and who came and went since the one before."""

    members: Named | None
    arrived: list[str]
    gone: list[str]
    users: int
    connections: int


class Whole(msgspec.Struct):
    """All there is to know, from a reply."""

    version: int
    users: int
    connections: int
    members: Named | None = None


class Change(msgspec.Struct):
    """An event: what has changed since version ``after``."""

    after: int
    version: int
    users: int
    connections: int
    joined: Named | None = None
    left: dict[str, list[str]] | None = None
    arrived: list[str] | None = None
    gone: list[str] | None = None
    members: Named | None = None


class Members:
    """The members of one topic.

    :ivar named: the connections of each user and their states; never changed in place. ``None`` while it is not known:
        large topics are counted only.
    :ivar users: how many users there are.
    :ivar connections: how many connections they have.
    :ivar must_ask: whether what is known has to be asked for anew.
    """

    def __init__(self) -> None:
        self.named: Named | None = None
        self.users = self.connections = 0
        self.must_ask = False
        self._version: int | None = None

    def forget_version(self) -> None:
        """Compare no more with what has been: versions may begin anew."""
        self._version = None

    def take(self, whole: Whole) -> PresenceNews | None:
        """Take all from a reply; what to tell of it. One that is older than what is known changes nothing."""
        self.must_ask = False
        if self._version is not None and whole.version <= self._version:
            return None
        return self._become(whole.version, whole.users, whole.connections, whole.members, [], [])

    def apply(self, change: Change) -> PresenceNews | None:
        """Apply an event; what to tell of it. One that does not fit has the whole asked for."""
        if self._version is not None and change.version <= self._version:
            return None
        if change.members is None and (self._version is None or change.after > self._version):
            self.must_ask = True
            return None
        named = change.members
        if named is None and self.named is not None and not (change.joined is None and change.left is None):
            named = _changed(self.named, change.joined or {}, change.left or {})
        return self._become(
            change.version, change.users, change.connections, named, change.arrived or [], change.gone or []
        )

    def _become(
        self, version: int, users: int, connections: int, named: Named | None, arrived: list[str], gone: list[str]
    ) -> PresenceNews:
        before, self.named = self.named, named
        self._version, self.users, self.connections = version, users, connections
        if before is not None and named is not None:
            # By what was told before, so that nobody is told of twice, or never.
            arrived = [user for user in named if user not in before]
            gone = [user for user in before if user not in named]
        return {
            "members": copied(named),
            "arrived": arrived,
            "gone": gone,
            "users": users,
            "connections": connections,
        }


def copied(named: Named | None) -> Named | None:
    """``named`` for somebody who may change it."""
    return None if named is None else {user: dict(connections) for user, connections in named.items()}


def _changed(named: Named, joined: Named, left: dict[str, list[str]]) -> Named:
    after = dict(named)
    for user, connections in left.items():
        # One that came and went between two events was never heard of.
        rest = {name: state for name, state in after.get(user, {}).items() if name not in connections}
        if rest:
            after[user] = rest
        else:
            after.pop(user, None)
    for user, states in joined.items():
        if states:
            after[user] = {**after.get(user, {}), **states}
    return after
