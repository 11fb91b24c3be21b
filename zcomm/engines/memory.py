"""The engine of servers that run in one process: a broadcast is handed from one to the other."""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from zcomm.interfaces import Broadcast, IEngine, Listener

__all__ = ["MemoryEngine"]


@implementer(IEngine)
class MemoryEngine:
    """Tells each server that is attached, at once and in the order of attaching. It needs no start."""

    def __init__(self) -> None:
        # Keys are the servers, in the order they came.
        self._listeners: dict[Listener, None] = {}

    def start(self) -> Deferred[None]:
        """Nothing has to be connected; fires at once."""
        return succeed(None)

    def stop(self) -> Deferred[None]:
        """Forget the servers; fires at once."""
        self._listeners.clear()
        return succeed(None)

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

    def tell(self, message: Broadcast) -> None:
        """Hand ``message`` to each server, which judges by its own permissions which of its clients get it."""
        for listener in list(self._listeners):
            listener.tell(message)
