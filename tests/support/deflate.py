"""Messages as permessage-deflate has them on the wire (RFC 7692)."""

from __future__ import annotations

import zlib

__all__ = ["bomb", "deflated", "inflated"]

MIB = 1024 * 1024


def deflated(message: bytes, level: int = 9, bits: int = 12) -> bytes:
    """``message`` as RFC 7692 has it on the wire."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payload: bytes) -> bytes:
    """The message that ``payload`` stands for."""
    return zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")


def bomb(size: int) -> bytes:
    """That many zeros, compressed: whole MiB."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -12)
    # Each MiB starts afresh, so that one stands for all of them.
    piece = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return (piece * (size // MIB))[:-4]
