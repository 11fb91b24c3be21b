"""Insides of Twisted's TCP transports: what they hold back, reading in their place, and their sockets.

No module outside of this folder touches a private name of Twisted's; tests/runtime/test_internals.py says whether each
still exists.
"""

from __future__ import annotations

import fcntl
import os
import termios
from array import array
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.internet.tcp import Connection as TCPConnection
from twisted.python.failure import Failure

__all__ = [
    "bytes_held",
    "bytes_unacknowledged",
    "close_copy",
    "descriptor_of",
    "end_at_once",
    "holds_nothing",
    "is_plain",
    "read_as_usual",
    "read_instead",
    "stop_reading_instead",
]

#: Read as Twisted does, from a transport whose reading was taken over.
read_as_usual = TCPConnection.doRead


def is_plain(transport: Any) -> bool:
    """Whether ``transport`` is a TCP or Unix socket and nothing more: no TLS."""
    return isinstance(transport, TCPConnection) and not getattr(transport, "TLS", False)


def read_instead(transport: Any, read: Callable[[], Any]) -> bool:
    """Let the reactor call ``read`` in place of the transport's ``doRead``, where its bytes are those of the socket.

    :returns: whether it does.
    """
    if getattr(type(transport), "doRead", None) is TCPConnection.doRead and not getattr(transport, "TLS", False):
        transport.doRead = read
        return True
    return False


def stop_reading_instead(transport: Any) -> None:
    """Undo :func:`read_instead`, so that the transport keeps no reference."""
    vars(transport).pop("doRead", None)


def holds_nothing(transport: Any) -> bool:
    """Whether a plain transport has no bytes that the system has not taken yet."""
    return not transport.dataBuffer and not transport._tempDataBuffer


def bytes_held(transport: Any) -> int | None:
    """Bytes that a transport, or the one below its TLS, has not handed to the system; ``None`` where unknown."""
    if not isinstance(transport, TCPConnection) or getattr(transport, "TLS", False):
        transport = getattr(transport, "transport", transport)
    if not isinstance(transport, TCPConnection):
        return None
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def bytes_unacknowledged(transport: Any) -> int:
    """Bytes that the system has taken for a transport's socket and its peer's system has not; 0 where unknown."""
    count = array("i", (0,))
    try:
        fcntl.ioctl(descriptor_of(transport), termios.TIOCOUTQ, count)
    except (OSError, ValueError):
        return 0
    return count[0]


def descriptor_of(transport: Any) -> int:
    """The number of a transport's socket, or of the one below its TLS; -1 for what has none."""
    number = getattr(transport, "fileno", None)
    return -1 if number is None else int(number())


def end_at_once(transport: Any) -> None:
    """End a connection that was aborted, which would end in the next turn: its socket is closed when this returns."""
    while not isinstance(transport, TCPConnection):
        transport = getattr(transport, "transport", None)
        if transport is None:
            return
    # Twisted calls it once more, which does nothing.
    transport.connectionLost(Failure(ConnectionAborted()))


def close_copy(thing: Any) -> None:
    """Close the socket of a port or a connection, in a forked child: nothing is sent, its parent's stays open."""
    while (found := getattr(thing, "socket", None)) is None:
        # What is above it: TLS, a proxy's header.
        thing = getattr(thing, "transport", None)
        if thing is None:
            return
    os.close(found.detach())
