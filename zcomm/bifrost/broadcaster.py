"""Broadcasts to the clients of one server.

What is told within one turn of the reactor leaves in one piece at its end. An audience is judged once for each
identity and message, and all clients that hear the same are sent the same bytes. Where they are so many, or the bytes,
that it takes longer than a turn may, the rest follows in the next ones, in order. Who has told it has its time charged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.bifrost.connection import Connection
from zcomm.bifrost.registry import Registry
from zcomm.engines.parts import WHOLE, Members, Part, Parts
from zcomm.interfaces import (
    EVERYBODY,
    Among,
    Audience,
    Broadcast,
    Identity,
    Permissions,
    goes_by_membership,
)
from zcomm.runtime.logthrottle import Throttle
from zcomm.wire.fanout import FanOut, Send
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Broadcaster"]

T = TypeVar("T")
#: Finds whose the values are that a message tells of.
FindMembers = Callable[[Broadcast, Mapping[str, Collection[Among]]], Deferred[Members]]
#: The place of a message that is heard whole, or with the part of it that is.
_Heard = int | tuple[int, Part]


class _Held:
    """A message that waits until it is known who hears it.

    :ivar members: what was found out.
    """

    __slots__ = ("is_ready", "members", "message")

    def __init__(self, message: Broadcast):
        self.message = message
        self.members: Members | None = None
        self.is_ready = False


class Broadcaster:
    """Tells the clients of one server; attached to an engine, it is that server's :class:`~zcomm.interfaces.Listener`.

    :param registry: the clients.
    :param permissions: judges audiences.
    :param batch: says when a turn is over.
    :param fan_out: sends the same messages through many transports at the least cost.
    :param seconds: the monotonic clock.
    :param tells_results: whether the clients hear of each other's commands.
    :ivar told: messages so far.
    """

    _log = Logger()

    def __init__(
        self,
        registry: Registry[Connection],
        permissions: Permissions,
        batch: WriteBatch,
        fan_out: Send,
        seconds: Callable[[], float],
        tells_results: bool = True,
    ):
        self.registry = registry
        self.told = 0
        self._permissions = permissions
        self._batch = batch
        self._fan_out = FanOut(batch, fan_out)
        self._tells_results = tells_results
        #: Looks up memberships, where there are some: the model, what rights go by, the values that are told of by the
        #: fields, whose work that is -> a Deferred of whose those are, which does not fail.
        self.members: FindMembers | None = None
        #: Messages that wait for that, and all behind them.
        self._held: deque[_Held] = deque()
        self._waiting: list[Broadcast] = []
        #: Of those that tell of rows, by their places.
        self._parts: dict[int, Parts] = {}
        # Permissions that fail do so at each change, and at each identity.
        self._complaints = Throttle(seconds)

    @property
    def clients(self) -> int:
        """The number of clients of the server."""
        return len(self.registry.members)

    def join(self, client: Connection) -> None:
        """Take ``client`` into the registry; what was told before in this turn is not for it."""
        if self._waiting:
            self.flush()
        self.registry.add(client)

    def tell(self, message: Broadcast) -> int:
        """Queue ``message`` for its audience but its sender; returns for how many clients of this server it may be."""
        if message.is_result and not self._tells_results:
            return 0
        if not self._held and (self.members is None or message.audience.kind != "model"):
            return self._tell(message)
        wanted = self._memberships(message.audience) if self.members is not None else None
        if not wanted and not self._held:
            return self._tell(message)
        held = _Held(message)
        self._held.append(held)
        if wanted and self.members is not None:
            self.members(message, wanted).addCallback(self._found, held)
        else:
            held.is_ready = True
        return len(self.registry.members)

    def _memberships(self, audience: Audience) -> dict[str, set[Among]]:
        """By field, the memberships that somebody's right to the rows of ``audience`` goes by."""
        found: dict[str, set[Among]] = {}
        if audience.kind != "model" or (audience.row is None and audience.rows is None):
            return found
        if not goes_by_membership(self._permissions, audience.name):
            return found
        for identity in self.registry.groups:
            granted = self._asked(lambda identity, rights: rights.rows(identity, audience.name), identity)
            for name, value in (granted or {}).items():
                if isinstance(value, Among):
                    found.setdefault(name, set()).add(value)
        return found

    def _found(self, members: Members, held: _Held) -> None:
        held.members, held.is_ready = members, True
        while self._held and self._held[0].is_ready:
            first = self._held.popleft()
            self._tell(first.message, first.members)

    def _tell(self, message: Broadcast, memberships: Members | None = None) -> int:
        """Queue ``message``.

        :param memberships: the ones that rights go by, where they were looked up.
        """
        audience, sender = message.audience, message.sender
        # Of rows each hears its part.
        parts = None if audience.row is None and audience.rows is None else Parts(message, memberships)
        if audience is EVERYBODY:
            members = self.registry.members
            reached = len(members) - (sender in members)
        else:
            groups, permissions = self.registry.groups.items(), self._permissions
            judge: Audience | Parts = audience if parts is None else parts
            try:
                reached = sum(
                    [
                        len(group) - (sender in group)
                        for identity, group in groups
                        if judge.admits(identity, permissions)
                    ]
                )
            except Exception:
                # Whose permissions failed is asked only now, so that it costs nothing as long as none do.
                reached = sum(
                    [
                        len(group) - (sender in group)
                        for identity, group in list(groups)
                        if self._asked(judge.admits, identity)
                    ]
                )
        self.told += 1
        if reached:
            if not self._waiting:
                self._batch.add_last(self)
            if parts is not None:
                self._parts[len(self._waiting)] = parts
            self._waiting.append(message)
        return reached

    def flush(self) -> None:
        """Send what waits; called at the end of the turn."""
        begun = perf_counter()
        waiting, self._waiting = self._waiting, []
        parts, self._parts = self._parts, {}
        if any(message.audience is not EVERYBODY for message in waiting):
            for heard, clients in self._audiences(waiting, parts):
                self._send(heard, clients)
        elif waiting:
            # All of it is for everybody: no permission is asked for, and identities do not matter.
            self._send(waiting, self.registry.members)
        self._fan_out.begin(begun)

    def _audiences(
        self, waiting: list[Broadcast], parts: dict[int, Parts]
    ) -> list[tuple[list[Broadcast], Collection[Connection]]]:
        """The messages with the clients that hear them; what several identities hear is made once."""
        permissions = self._permissions
        judges = [
            message.audience if (judge := parts.get(place)) is None else judge for place, message in enumerate(waiting)
        ]
        clients: dict[tuple[_Heard, ...], dict[Connection, None]] = {}
        for identity, group in list(self.registry.groups.items()):
            try:
                heard = _heard(judges, identity, permissions)
            except Exception:
                each = [self._asked(partial(_part, judge), identity) for judge in judges]
                heard = tuple(
                    [place if part is WHOLE else (place, part) for place, part in enumerate(each) if part is not None]
                )
            if heard:
                clients.setdefault(heard, {}).update(group)

        def message_of(each: _Heard) -> Broadcast:
            return waiting[each] if isinstance(each, int) else parts[each[0]].message(each[1])

        return [([message_of(each) for each in heard], group) for heard, group in clients.items()]

    def _asked(self, judge: Callable[[Identity, Permissions], T], identity: Identity) -> T | None:
        """The word of ``judge`` on ``identity``; nothing where the permissions fail.

        What is told of has happened already: permissions that fail for one cost nobody else anything.
        """
        try:
            return judge(identity, self._permissions)
        except Exception:
            line = "the permissions failed; {name!r} does not hear of this"
            self._complaints.log_failure(self._log.failure, line, Failure(), cause="permissions", name=identity.name)
            return None

    def _send(self, messages: list[Broadcast], clients: Collection[Connection]) -> None:
        """Send ``messages`` to ``clients``, less to each what it said itself."""
        senders: set[Any] = {message.sender for message in messages}
        hearers = [client for client in clients if client not in senders]
        tellers = list({account for sender in senders if (account := getattr(sender, "account", None)) is not None})
        if hearers:
            self._fan_out.add(hearers, _payloads(messages), tellers)
        if len(messages) > 1:
            for sender in senders:
                if sender in clients:
                    rest = _payloads([message for message in messages if message.sender is not sender])
                    if rest:
                        self._fan_out.add([sender], rest, tellers)


def _heard(judges: list[Audience | Parts], identity: Identity, permissions: Permissions) -> tuple[_Heard, ...]:
    """Those of the messages that ``identity`` hears."""
    heard: list[_Heard] = []
    for place, judge in enumerate(judges):
        if isinstance(judge, Parts):
            part = judge.of(identity, permissions)
            if part is not None:
                heard.append(place if part is WHOLE else (place, part))
        elif judge is EVERYBODY or judge.admits(identity, permissions):
            heard.append(place)
    return tuple(heard)


def _part(judge: Audience | Parts, identity: Identity, permissions: Permissions) -> Part | None:
    """The part that ``identity`` hears of the message that ``judge`` is of; ``None`` where it hears nothing."""
    if judge is EVERYBODY:
        return WHOLE
    if isinstance(judge, Parts):
        return judge.of(identity, permissions)
    return WHOLE if judge.admits(identity, permissions) else None


def _payloads(messages: list[Broadcast]) -> list[bytes]:
    """The payloads of ``messages``; of notices that are the same, one is enough."""
    payloads = []
    notices = set()
    for message in messages:
        payload = message.payload
        if message.is_notice:
            if payload in notices:
                continue
            notices.add(payload)
        payloads.append(payload)
    return payloads
