"""Broadcasts to the clients of one server.

What is told within one turn of the reactor leaves in one piece at its end. An audience is judged once for each
identity and message, and all clients of an identity are sent the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from zcomm.bifrost.connection import Connection, Transport
from zcomm.bifrost.registry import Registry
from zcomm.interfaces import EVERYBODY, Broadcast, Permissions
from zcomm.runtime.logthrottle import Throttle
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Broadcaster"]


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
        fan_out: Callable[[list[Transport], list[bytes]], None],
        seconds: Callable[[], float],
        tells_results: bool = True,
    ):
        self.registry = registry
        self.told = 0
        self._permissions = permissions
        self._batch = batch
        self._fan_out = fan_out
        self._tells_results = tells_results
        self._waiting: list[Broadcast] = []
        # Permissions that fail do so at each change, and at each identity.
        self._complaints = Throttle(seconds)

    @property
    def clients(self) -> int:
        """The number of clients of the server."""
        return len(self.registry)

    def join(self, client: Connection) -> None:
        """Take ``client`` into the registry; what was told before in this turn is not for it."""
        self.flush()
        self.registry.add(client)

    def tell(self, message: Broadcast) -> int:
        """Queue ``message`` for its audience but its sender; returns for how many clients of this server."""
        if message.is_result and not self._tells_results:
            return 0
        groups, permissions = self.registry.groups, self._permissions
        audience, sender = message.audience, message.sender
        try:
            if audience is EVERYBODY:
                reached = len(self.registry)
            else:
                admitted = [len(group) for identity, group in groups.items() if audience.admits(identity, permissions)]
                reached = sum(admitted)
            if sender is not None and sender in groups.get(sender.identity, ()):
                reached -= audience.admits(sender.identity, permissions)
        except Exception:
            # What is told of has happened already: permissions that fail cost its sender and other servers nothing.
            self._complaints.log(self._log.failure, "tell", "the permissions failed; nobody hears of this")
            return 0
        self.told += 1
        if reached:
            if not self._waiting:
                self._batch.add_last(self)
            self._waiting.append(message)
        return reached

    def flush(self) -> None:
        """Send what waits; called at the end of the turn."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        permissions = self._permissions
        senders: set[Any] = {message.sender for message in waiting if message.sender is not None}
        # Transports by the places of the messages that they are to carry: what several identities hear is made once.
        carried: dict[tuple[int, ...], list[Transport]] = {}
        for identity, group in list(self.registry.groups.items()):
            try:
                heard = tuple(
                    [
                        place
                        for place, message in enumerate(waiting)
                        if message.audience is EVERYBODY or message.audience.admits(identity, permissions)
                    ]
                )
            except Exception:
                line = "the permissions failed; {name!r} hears nothing"
                self._complaints.log(self._log.failure, "flush", line, name=identity.name)
                continue
            carried.setdefault(heard, []).extend(
                [transport for client in group if (transport := client.transport) is not None and client not in senders]
            )
            for sender in senders:
                if sender in group and sender.transport is not None:
                    rest = tuple([place for place in heard if waiting[place].sender is not sender])
                    carried.setdefault(rest, []).append(sender.transport)
        for places, transports in carried.items():
            if places and transports:
                self._fan_out(transports, [waiting[place].payload for place in places])
