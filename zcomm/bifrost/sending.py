"""One message to many sockets: the write of a broadcast.

As in :mod:`zcomm.bifrost.frames`, the compiled form is taken where it was built.
"""
from __future__ import annotations

import os

from zcomm.bifrost.frames import COMPILED

__all__ = ["send_all", "send_all_pure"]


def send_all_pure(fds: list[int], data: bytes) -> list[tuple[int, int]]:
    """Write ``data`` once to each of ``fds``, none of which is waited for.

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
    from zcomm._fast import send_all
else:
    send_all = send_all_pure
