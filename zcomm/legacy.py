"""The names of the original zComm, for programs that have not changed theirs yet.

Each works as what took its place in :mod:`zcomm.threaded`, and warns.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

from zcomm import threaded

__all__ = ["ZComm", "ZSocket"]


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with version 2", DeprecationWarning, stacklevel=3)


class ZComm(threaded.zComm):
    """The old name of :class:`zcomm.threaded.zComm`."""

    def __init__(self, zcli: Any, **given: Any):
        _warn("ZComm", "zComm")
        super().__init__(zcli, **given)


class ZSocket:
    """The old server object: ``await ZSocket(walker=walker).start_socket_server(ready)``.

    :param walker: the context of commands. Its ``zcli`` is the host; a walker with a ``session`` is one by itself.
    :param port: as :meth:`zcomm.zComm.create_websocket` takes it.
    :param host: as :meth:`zcomm.zComm.create_websocket` takes it.
    """

    def __init__(self, walker: Any = None, port: int | None = None, host: str | None = None):
        _warn("ZSocket", "zBifrost, made by zComm(zcli).create_websocket()")
        zcli = getattr(walker, "zcli", None)
        if zcli is None:
            zcli = walker
        if getattr(zcli, "session", None) is None:
            zcli = SimpleNamespace(session={}, logger=getattr(walker, "logger", None))
        self.walker = walker
        self._comm = threaded.zComm(zcli)
        self._bifrost = self._comm.create_websocket(walker, port, host)

    @property
    def port(self) -> int:
        """The port it listens on; the configured one while it does not."""
        return self._bifrost.port

    async def start_socket_server(self, socket_ready: Any = None) -> None:
        """Serve; see :meth:`zcomm.threaded.zComm.start_websocket`."""
        _warn("start_socket_server", "zComm.start_websocket")
        await self._comm.start_websocket(socket_ready, self.walker)

    async def broadcast(self, message: Any, sender: threaded.Client | None = None) -> int:
        """Send ``message`` to all clients but ``sender``; returns to how many."""
        return await self._comm.broadcast_websocket(message, sender)
