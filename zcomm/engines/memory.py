"""The engine of servers that run in one process: a broadcast is handed from one to the other."""

from __future__ import annotations

from twisted.application.service import Service
from zope.interface import implementer

from zcomm.interfaces import Broadcast, IEngine, Listener

__all__ = ["MemoryEngine"]


@implementer(IEngine)
class MemoryEngine(Service):
    """Tells each server that is attached, at once and in the order of attaching. It carries messages unstarted, too."""

    name = "engine"

    def __init__(self) -> None:
        # Keys are the servers, in the order they came.
        self._listeners: dict[Listener, None] = {}

    def attach(self, listener: Listener) -> None:
        """Tell ``listener`` from now on; once, however often it is attached."""
        self._listeners[listener] = None

    def detach(self, listener: Listener) -> None:
        """Tell ``listener`` no more; harmless when it is not attached."""
        self._listeners.pop(listener, None)

    @property
    def clients(self) -> int:
        """The number of clients of the attached servers."""
        count = 0
        for listener in self._listeners:
            count += listener.clients
        return count

    def tell(self, message: Broadcast) -> int:
        """Hand ``message`` to each server, which judges by its own permissions which of its clients get it.

        :returns: the number of those clients.
        """
        count = 0
        for listener in list(self._listeners):
            count += listener.tell(message)
        return count
