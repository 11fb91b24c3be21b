"""The members of topics that are connected here, as the engine is to have them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.budget.written import write_json
from zcomm.errors import CommandError
from zcomm.topics.presence import NO_STATE

__all__ = ["Entry", "OwnMembers"]

#: Members that are moved in one script: more would hold up the server for all others.
AT_ONCE = 500


class Entry(NamedTuple):
    """A move of one connection.

    :ivar what: ``in`` with a new state, ``keep`` with the one that is known, or ``out``.
    """

    connection: str
    user: bytes
    what: str
    state: bytes


class OwnMembers:
    """Tells the engine who comes into topics here and goes, many at once, and tells it all anew where it has lost that.

    Of each connection the last move counts. One topic's are made one after the other.

    :param move: makes moves in one topic; a Deferred that fails where the engine is away too long.
    :param at_end: calls its argument at the end of the turn.
    """

    _log = Logger()

    def __init__(
        self,
        move: Callable[[str, list[Entry]], Deferred[Any]],
        at_end: Callable[[Callable[[], None]], object],
    ):
        self._move = move
        self._at_end = at_end
        #: User and state, both as JSON, by topic and connection.
        self._members: dict[str, dict[str, tuple[bytes, bytes]]] = {}
        self._moves: dict[str, dict[str, tuple[Entry, list[Deferred[None]]]]] = {}
        self._running: set[str] = set()
        self._late: set[str] = set()
        self._will_flush = False
        self._done: list[Deferred[None]] = []

    def __len__(self) -> int:
        return sum(map(len, self._members.values()))

    def is_in(self, topic: str, connection: str) -> bool:
        """Whether a connection is to be in a topic."""
        return connection in self._members.get(topic, {})

    def enter(self, topic: str, connection: str, user: str, state: bytes | None) -> Deferred[None]:
        """Let a connection in, or take its new state, if any; fires when the engine has it."""
        members = self._members.setdefault(topic, {})
        known = members.get(connection)
        named = write_json(user) if known is None else known[0]
        if state is not None:
            what = "in"
        else:
            what, state = "keep", NO_STATE if known is None else known[1]
        members[connection] = named, state
        entered: Deferred[None] = Deferred()
        self._queue(topic, Entry(connection, named, what, state), entered)
        return entered

    def has_entered(self, topic: str, connection: str, user: str) -> None:
        """Note a connection that the engine has let in by itself."""
        self._members.setdefault(topic, {})[connection] = write_json(user), NO_STATE

    def leave(self, topic: str, connection: str) -> None:
        """Let a connection leave."""
        members = self._members.get(topic)
        known = None if members is None else members.pop(connection, None)
        if not members:
            self._members.pop(topic, None)
        self._queue(topic, Entry(connection, b'""' if known is None else known[0], "out", b"null"))

    def enter_again(self) -> None:
        """Tell the engine all of it anew, and what it could not be told."""
        for topic, members in self._members.items():
            moves = self._moves.get(topic, {})
            for connection, (user, state) in members.items():
                if connection not in moves:
                    self._queue(topic, Entry(connection, user, "in", state))
        self.go_on()

    def go_on(self) -> None:
        """Tell the engine, which is back, what it could not be told."""
        self._late.clear()
        self._flush_later()

    def done(self) -> Deferred[None]:
        """Fires when the engine has been told of all moves, at once where it has."""
        done: Deferred[None] = Deferred()
        if self._moves or self._running:
            self._done.append(done)
        else:
            done.callback(None)
        return done

    def _queue(self, topic: str, entry: Entry, entered: Deferred[None] | None = None) -> None:
        moves = self._moves.setdefault(topic, {})
        waiting = moves.pop(entry.connection, None)
        if waiting is not None and waiting[0].what == "in" and entry.what == "keep":
            entry = entry._replace(what="in")
        fired = [] if waiting is None else waiting[1]
        moves[entry.connection] = entry, fired if entered is None else [*fired, entered]
        self._flush_later()

    def _flush_later(self) -> None:
        if not self._will_flush:
            self._will_flush = True
            self._at_end(self._flush)

    def _flush(self) -> None:
        self._will_flush = False
        for topic in list(self._moves):
            if topic not in self._running and topic not in self._late:
                self._run(topic)

    def _run(self, topic: str) -> None:
        moves = self._moves[topic]
        part = dict(list(moves.items())[:AT_ONCE])
        for connection in part:
            del moves[connection]
        if not moves:
            del self._moves[topic]
        self._running.add(topic)
        moving = self._move(topic, [entry for entry, _ in part.values()])
        moving.addCallbacks(partial(self._moved, topic, part), self._not_moved, errbackArgs=(topic, part)).addErrback(
            lambda failure: self._log.failure("the members of {topic} were not told", failure, topic=topic)
        )

    def _moved(self, topic: str, part: dict[str, tuple[Entry, list[Deferred[None]]]], _: Any) -> None:
        self._running.discard(topic)
        if topic in self._moves:
            self._run(topic)
        for _, entered in part.values():
            for deferred in entered:
                if not deferred.called:
                    deferred.callback(None)
        if not self._moves and not self._running:
            done, self._done = self._done, []
            for deferred in done:
                if not deferred.called:
                    deferred.callback(None)

    def _not_moved(self, failure: Failure, topic: str, part: dict[str, tuple[Entry, list[Deferred[None]]]]) -> None:
        """Whether the engine has them is not known: it is told again. Whoever waited hears of it."""
        self._running.discard(topic)
        self._late.add(topic)
        moves = self._moves.setdefault(topic, {})
        waited: list[Deferred[None]] = []
        for connection, (entry, entered) in part.items():
            moves.setdefault(connection, (entry, []))
            waited += entered
        for deferred in waited:
            if not deferred.called:
                deferred.errback(failure)
        if not failure.check(CommandError):
            failure.raiseException()
