"""permessage-deflate (RFC 7692), off unless the operator asks for it.

The server always compresses each message by itself (``server_no_context_takeover``): a client then costs
no compressor of its own, everybody with the same window shares one compressed copy of a broadcast, and a
secret in one message never meets an attacker's text in another.
"""

from __future__ import annotations

import zlib

from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept

from zcomm.wire.autobahn import Inflate
from zcomm.wire.frames import header

__all__ = ["Deflate", "deflated_frames", "negotiate"]

#: 4 KiB of history: what memory a thousand clients cost is decided here.
WINDOW_BITS = 12
MEMORY_LEVEL = 5
#: One less than zlib's own: texts of few characters take half the time then, and most others hardly more bytes.
LEVEL = 5
#: Shorter messages gain nothing.
WORTHWHILE = 128
#: Bytes that are compressed at a time: more would keep the reactor, and goes as it is.
MOST = 256 * 1024
#: More than any client offers.
MAX_OFFERS = 16


class Deflate:
    """The compression agreed with one client.

    :ivar inbound: decompresses what the client sends.
    :ivar window_bits: what the client allows us; who shares it shares compressed copies.
    """

    __slots__ = ("inbound", "window_bits")

    def __init__(self, inbound: Inflate, window_bits: int):
        self.inbound = inbound
        self.window_bits = window_bits


def deflated_frames(payloads: list[bytes], window_bits: int) -> bytes:
    """The frames of ``payloads``, each compressed by itself where that pays and takes no longer than a turn may."""
    parts: list[bytes] = []
    left = MOST
    for payload in payloads:
        # The work for a short one is that of beginning.
        left -= max(len(payload), WORTHWHILE * 8)
        if len(payload) < WORTHWHILE or left < 0:
            parts += (header(len(payload)), payload)
            continue
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -window_bits, MEMORY_LEVEL)
        data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        # RFC 7692 section 7.2.1: the empty block at the end is not sent; RSV1 marks the message.
        data = data[:-4]
        start = header(len(data))
        parts += (bytes((start[0] | 0x40,)), start[1:], data)
    return b"".join(parts)


def negotiate(offered: str) -> tuple[Deflate | None, str]:
    """Take the first acceptable offer of a ``Sec-WebSocket-Extensions`` value.

    :returns: the agreement and its response header value, or ``(None, "")``: an offer that is illegal or
        not for us is declined, the handshake goes on without (RFC 7692 section 5.1).
    """
    for text in offered.split(",")[:MAX_OFFERS]:
        name, *parameters = (part.strip() for part in text.split(";", 32))
        if name != PerMessageDeflateOffer.EXTENSION_NAME:
            continue
        given: dict[str, list[object]] = {}
        for parameter in parameters:
            key, equals, value = parameter.partition("=")
            given.setdefault(key.strip(), []).append(value.strip().strip('"') if equals else True)
        try:
            offer = PerMessageDeflateOffer.parse(given)
            ours = min(WINDOW_BITS, offer.request_max_window_bits or WINDOW_BITS)
            if ours < 9:
                # zlib cannot compress with a window of 256 bytes.
                continue
            accept = PerMessageDeflateOfferAccept(
                offer,
                request_max_window_bits=_theirs(given) if offer.accept_max_window_bits else 0,
                no_context_takeover=True,
                window_bits=ours,
                mem_level=MEMORY_LEVEL,
            )
        except Exception:  # noqa: S112 (the library refuses what the RFC forbids with bare exceptions)
            continue
        answer = accept.get_extension_string()
        if "server_max_window_bits" not in answer:
            answer += f"; server_max_window_bits={ours}"
        if "server_no_context_takeover" not in answer:
            answer += "; server_no_context_takeover"
        return Deflate(Inflate.create_from_offer_accept(True, accept), ours), answer
    return None, ""


def _theirs(given: dict[str, list[object]]) -> int:
    """The window that the client is to compress with: no larger than it offers (RFC 7692 section 7.1.2.2)."""
    (most,) = given["client_max_window_bits"]
    return min(WINDOW_BITS, int(most)) if isinstance(most, str) else WINDOW_BITS
