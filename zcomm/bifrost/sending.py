"""One message to many sockets: the write of a broadcast.

As in :mod:`zcomm.bifrost.frames`, the compiled form is taken where it was built.
"""
from __future__ import annotations

import os

from zcomm.bifrost.frames import COMPILED

__all__ = ["send_all", "send_all_pure"]


def send_all_pure(fds: list[int], data: bytes) -> list[int]:
    """Write ``data`` once to each of ``fds``, none of which is waited for.

    :param fds: descriptors of connected, non-blocking stream sockets.
    :returns: for each, in order, how many bytes the system took, or the negative ``errno``.
    """
    results = []
    write = os.write
    for fd in fds:
        try:
            results.append(write(fd, data))
        except OSError as error:
            results.append(-(error.errno or 0))
    return results


if COMPILED:
    from zcomm._fast import send_all
else:
    send_all = send_all_pure
