"""System calls on the sockets of clients: a read that brings messages, a write that takes them, one message to many.

None of them waits. As in :mod:`zcomm.wire.frames`, the compiled forms are taken where they were built; they
save the bytes in between, which for a short message is most of the work.
"""

from __future__ import annotations

import os

from zcomm.wire import frames_pure
from zcomm.wire.frames import COMPILED

__all__ = ["receive", "receive_pure", "send_all", "send_all_pure", "send_messages", "send_messages_pure"]

READ_SIZE = 65536


def receive_pure(fd: int, max_payload: int) -> list[bytes] | bytes:
    """Read a socket once.

    :param fd: the descriptor of a connected, non-blocking stream socket.
    :param max_payload: as for :func:`zcomm.wire.frames.split`.
    :returns: the messages, where whole text messages are all that the read brought; otherwise the bytes as
        they are, empty at the end of the stream.
    :raises OSError: as the system has it; ``BlockingIOError`` where there is nothing to read.
    """
    data = os.read(fd, READ_SIZE)
    payloads, end = frames_pure.split(data, 0, max_payload)
    return payloads if payloads and end == len(data) else data


def send_messages_pure(fd: int, payloads: list[bytes]) -> bytes:
    """Write text messages as unmasked frames.

    :param fd: the descriptor of a connected, non-blocking stream socket.
    :returns: the bytes that the system did not take, all of them where it failed: the next write meets the error.
    """
    data = frames_pure.frames(payloads)
    try:
        return data[os.write(fd, data) :]
    except OSError:
        return data


def send_all_pure(fds: list[int], data: bytes) -> list[tuple[int, int]]:
    """Write ``data`` once to each of ``fds``.

    :param fds: descriptors of connected, non-blocking stream sockets; a negative one is left out.
    :returns: for each that did not get all of it, its place in ``fds`` and how many bytes the system took:
        0 where it was left out, the negative ``errno`` where it failed.
    """
    short: list[tuple[int, int]] = []
    write = os.write
    size = len(data)
    for place, fd in enumerate(fds):
        sent = 0
        if fd >= 0:
            try:
                sent = write(fd, data)
            except OSError as error:
                sent = -(error.errno or 0)
            if sent == size:
                continue
        short.append((place, sent))
    return short


if COMPILED:
    from zcomm.wire._fast import receive, send_all, send_messages
else:
    receive, send_all, send_messages = receive_pure, send_all_pure, send_messages_pure
