"""Insides of Twisted's TCP transports: what they hold back, reading in their place, and their sockets.

No module outside of this folder touches a private name of Twisted's; tests/runtime/test_internals.py says whether each
still exists.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.internet.tcp import Connection as TCPConnection
from twisted.python.failure import Failure

__all__ = [
    "bytes_acknowledged",
    "bytes_held",
    "bytes_unacknowledged",
    "close_copy",
    "descriptor_of",
    "end_at_once",
    "holds_nothing",
    "is_plain",
    "pause_above",
    "read_as_usual",
    "read_instead",
    "read_instead_below",
    "read_pieces_below",
    "stop_reading_instead",
]

#: Where Linux has the count of acknowledged bytes in what it tells of a TCP socket (``tcpi_bytes_acked``), and its end.
_ACKED, _ACKED_END = 120, 128

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


def read_pieces_below(transport: Any, size: int) -> None:
    """Have the socket below a transport, as below TLS, bring at most ``size`` bytes with each read."""
    lowest: Any = _lowest(transport)
    if lowest is not None and lowest is not transport:
        lowest.bufferSize = size


def read_instead_below(transport: Any, read: Callable[[Any], Any]) -> None:
    """Let the reactor call ``read`` in place of the ``doRead`` of the socket below a transport, as below TLS, with that
    socket's own transport, which :func:`read_as_usual` takes."""
    lowest: Any = _lowest(transport)
    if lowest is not None and lowest is not transport:
        lowest.doRead = partial(read, lowest)


def stop_reading_instead(transport: Any) -> None:
    """Undo :func:`read_instead` and :func:`read_instead_below`, so that the transport keeps no reference."""
    vars(_lowest(transport) or transport).pop("doRead", None)


def holds_nothing(transport: Any) -> bool:
    """Whether a plain transport has no bytes that the system has not taken yet."""
    return not transport.dataBuffer and not transport._tempDataBuffer


def _lowest(transport: Any) -> TCPConnection | None:
    """The TCP or Unix socket's own transport, below TLS where that is."""
    if not isinstance(transport, TCPConnection) or getattr(transport, "TLS", False):
        transport = getattr(transport, "transport", transport)
    return transport if isinstance(transport, TCPConnection) else None


def bytes_held(transport: Any) -> int | None:
    """Bytes that a transport, or the one below its TLS, has not handed to the system; ``None`` where unknown."""
    lowest = _lowest(transport)
    return None if lowest is None else _held(lowest)


def _held(lowest: Any) -> int:
    return int(len(lowest.dataBuffer) - lowest.offset + lowest._tempDataLen)


def pause_above(transport: Any, least: int) -> None:
    """Have a transport that holds more than ``least`` bytes pause its producer until it is empty, as it does by itself
    above 64 KiB."""
    lowest: Any = _lowest(transport)
    if lowest is not None and lowest.producer is not None and not lowest.producerPaused and _held(lowest) > least:
        lowest.producerPaused = True
        lowest.producer.pauseProducing()


def bytes_unacknowledged(transport: Any) -> int:
    """Bytes that the system has taken for a transport's socket and its peer's system has not; 0 where unknown."""
    count = array("i", (0,))
    try:
        fcntl.ioctl(descriptor_of(transport), termios.TIOCOUTQ, count)
    except (OSError, ValueError):
        return 0
    return count[0]


def bytes_acknowledged(transport: Any) -> int:
    """Bytes that the peer's system has taken, counted from any beginning: exact for TCP on Linux, elsewhere as long as
    nothing is sent."""
    lowest = _lowest(transport)
    if sys.platform == "linux" and lowest is not None:
        try:
            told = lowest.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_END)
        except (OSError, AttributeError):
            told = b""
        if len(told) == _ACKED_END:
            return int.from_bytes(told[_ACKED:], sys.byteorder)
    return -bytes_unacknowledged(transport)


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
