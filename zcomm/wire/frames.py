"""Text frames as bytes (RFC 6455): whole masked messages in, unmasked ones out; how deep their JSON goes, what it costs
to read, and its id; and whether what becomes JSON is much.

The functions come from the extension module ``zcomm.wire._fast`` where it was built, and from
:mod:`zcomm.wire.frames_pure` otherwise; they give the same results. ``ZCOMM_PURE=1`` in the
environment of a build leaves the extension out, ``python -X zcomm_pure`` passes it over.
"""

from __future__ import annotations

import sys

from zcomm.wire import frames_pure
from zcomm.wire.frames_pure import unmasked

__all__ = [
    "COMPILED",
    "depth_within",
    "end_of_frame",
    "frame",
    "frames",
    "header",
    "is_light",
    "pongs",
    "price",
    "request_id",
    "split",
]

_PING, _PONG = 0x89, 0x8A  # FIN, no extension bits

try:
    if "zcomm_pure" in sys._xoptions:
        raise ImportError("passed over")
    from zcomm.wire._fast import depth_within, frame, frames, header, is_light, price, request_id, split
except ImportError:
    # Also where it was built before one of them was written.
    from zcomm.wire.frames_pure import depth_within, frame, frames, header, is_light, price, request_id, split

#: Whether the functions are the compiled ones.
COMPILED: bool = split is not frames_pure.split


def pongs(data: bytes, offset: int, most: int) -> tuple[bytes, int, int]:
    """Answer whole pings in ``data``, beginning at ``offset``, for as long as there is nothing else.

    :param most: how many at most.
    :returns: the pongs, the offset of the first byte that was not answered, and how many they are.
    """
    answers: list[bytes] = []
    size = len(data)
    while len(answers) < most and size - offset >= 6 and data[offset] == _PING:
        length = data[offset + 1] - 0x80
        stop = offset + 6 + length
        if not 0 <= length <= 125 or stop > size:
            break
        answers.append(bytes((_PONG, length)) + unmasked(data[offset + 6 : stop], data[offset + 2 : offset + 6]))
        offset = stop
    return b"".join(answers), offset, len(answers)


def end_of_frame(data: bytes, offset: int) -> int:
    """The offset at which the frame that starts at ``offset`` ends, or the end of ``data`` when it is incomplete."""
    size = len(data)
    if size - offset < 2:
        return size
    length = data[offset + 1] & 0x7F
    header = 2 + (4 if data[offset + 1] & 0x80 else 0)
    if length == 126:
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        header += 2
    elif length == 127:
        length = int.from_bytes(data[offset + 2 : offset + 10], "big")
        header += 8
    return min(size, offset + header + length)
