"""Messages as permessage-deflate has them on the wire (RFC 7692)."""

from __future__ import annotations

import zlib
from functools import cache

__all__ = ["bomb", "deflated", "inflated"]

MIB = 1024 * 1024


def deflated(message: bytes, level: int = 9, bits: int = 12) -> bytes:
    """``message`` as RFC 7692 has it on the wire."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payload: bytes) -> bytes:
    """The message that ``payload`` stands for."""
    return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")


@cache
def bomb(size: int) -> bytes:
    """That many zeros, compressed."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -12)
    pieces = [compressor.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join(pieces) + compressor.flush(zlib.Z_SYNC_FLUSH)[:-4]
