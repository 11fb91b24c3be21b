"""Results as JSON. Large ones are made into it in a thread, piece by piece."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import msgspec

from zcomm.budget.memory import Hold

__all__ = ["PIECE", "Pieces", "Written", "write_json"]

#: Bytes that are made into JSON in one piece, within which no other thread has its turn.
PIECE = 64 * 1024
#: Bytes that are kept together, and above which a reply is not made one of these.
PART, WHOLE = 128 * 1024, 512 * 1024
#: What stands before the result in a reply.
_BEGIN = b'{"result":'

#: What JSON lacks is written in one form: ``Decimal`` and ``UUID`` as strings, bytes in base64.
write_json = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical").encode


class Pieces:
    """A long reply in pieces, which leave the memory one by one and are never copied into one.

    :param parts: bytes, of some hundred KiB at most.
    """

    __slots__ = ("_size", "parts")

    def __init__(self, parts: list[bytes]):
        self.parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


class Written:
    """A result as JSON, and the memory that is held for it until it is on its way to its client.

    It is written behind the beginning of a reply, so that the reply is made of it without copying it.

    :ivar hold: what is held for it, if anything.
    """

    __slots__ = ("_buffer", "_end", "_full", "_parts", "hold")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        #: The bytes in those.
        self._full = 0
        self._buffer = BytesIO()
        self._buffer.write(_BEGIN)
        self._end: int | None = None
        self.hold: Hold | None = None

    def __len__(self) -> int:
        return (self._full + self._buffer.tell() if self._end is None else self._end) - len(_BEGIN)

    def write(self, data: bytes | memoryview | msgspec.Raw) -> None:
        """Add what is JSON already."""
        view = memoryview(data)
        for start in range(0, len(view), PART):
            if self._buffer.tell() >= PART:
                self._full += self._buffer.tell()
                self._parts.append(self._buffer.getvalue())
                self._buffer = BytesIO()
            self._buffer.write(view[start : start + PART])

    def put(self, value: Any) -> None:
        """Add a value, a long text in pieces."""
        if type(value) is msgspec.Raw:
            self.write(value)
        elif type(value) is str and len(value) > PIECE:
            self.write(b'"')
            for start in range(0, len(value), PIECE):
                self.write(memoryview(write_json(value[start : start + PIECE]))[1:-1])
            self.write(b'"')
        else:
            self.write(write_json(value))

    def reply(self, end: bytes) -> bytes | Pieces:
        """The reply, which is whole with ``end``: a long one in pieces. Made once."""
        self._end = self._full + self._buffer.tell()
        self._buffer.write(end)
        self._parts.append(self._buffer.getvalue())
        if self._end > WHOLE:
            return Pieces(self._parts)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def json(self) -> bytes:
        """A copy of the result alone."""
        parts = self._parts if self._end is not None else [*self._parts, self._buffer.getvalue()]
        return b"".join(parts)[len(_BEGIN) : self._end]
