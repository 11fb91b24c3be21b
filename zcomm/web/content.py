"""The content of a page, in the forms in which it is sent: as it is, compressed, or not, where the client has it."""

from __future__ import annotations

import gzip
import re
from hashlib import blake2b

from zcomm.bifrost.handshake import Head

__all__ = ["Content", "accepts_gzip", "has_it", "type_header"]

#: Bytes below which nothing is compressed.
LEAST = 512
#: Bytes that a content takes besides its own, with its name and its place among others.
OVERHEAD = 1024
#: What becomes smaller, besides texts.
_COMPRESSIBLE = frozenset(
    f"application/{name}" for name in ("json", "manifest+json", "sql", "toml", "wasm", "xml", "yaml")
) | {"image/svg+xml", "font/otf", "font/ttf"}
_NEVER = re.compile(r"q=0(\.0*)?$")


class Content:
    """A content as it was found, and compressed once.

    :ivar body: as it is.
    :ivar packed: compressed with gzip; ``None`` where that does not make it smaller.
    :ivar media_type: its type.
    :ivar tag: tells it from every other one, without quotes.
    :ivar users: the number of responses that are being sent from it.
    :ivar is_kept: whether it is kept for the next request.
    """

    __slots__ = ("body", "is_kept", "media_type", "packed", "tag", "users")

    def __init__(self, body: bytes, media_type: str):
        self.body = body
        self.media_type = media_type
        self.tag = blake2b(body, digest_size=12).hexdigest()
        self.packed: bytes | None = None
        if len(body) >= LEAST and (media_type.startswith("text/") or media_type in _COMPRESSIBLE):
            packed = gzip.compress(body, 6, mtime=0)
            if len(packed) < len(body):
                self.packed = packed
        self.users = 0
        self.is_kept = False

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return OVERHEAD + len(self.body) + len(self.packed or b"")

    def chosen(self, head: Head) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
        """The status, the body and the headers that answer ``head`` with it."""
        body, tag = self.body, f'"{self.tag}"'
        headers: list[tuple[str, str]] = []
        if self.packed is not None:
            headers.append(("Vary", "Accept-Encoding"))
            if accepts_gzip(head):
                body, tag = self.packed, f'"{self.tag}-gzip"'
        if has_it(head, tag):
            return 304, b"", (("ETag", tag), *headers)
        if body is self.packed:
            headers.append(("Content-Encoding", "gzip"))
        return 200, body, (("Content-Type", type_header(self.media_type)), ("ETag", tag), *headers)


def type_header(media_type: str) -> str:
    """The value of ``Content-Type``: texts are in UTF-8."""
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type


def accepts_gzip(head: Head) -> bool:
    """Whether who asks takes what is compressed with gzip (RFC 9110 section 12.5.3)."""
    accepted = {}
    for item in head.text(b"accept-encoding").lower().replace(" ", "").split(","):
        coding, _, weight = item.partition(";")
        accepted[coding] = not _NEVER.match(weight)
    return accepted.get("gzip", accepted.get("*", False))


def has_it(head: Head, tag: str) -> bool:
    """Whether who asks has the content of that tag, in its quotes, already (RFC 9110 section 13.1.2)."""
    known = [item.strip().removeprefix("W/") for item in head.text(b"if-none-match").split(",")]
    return "*" in known or tag in known
