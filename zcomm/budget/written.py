"""Results as JSON. Large ones are made into it in a thread, piece by piece."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import msgspec

from zcomm.budget.memory import Hold

__all__ = ["PIECE", "Written", "write_json"]

#: Bytes that are made into JSON in one piece, within which no other thread has its turn.
PIECE = 64 * 1024
#: What stands before the result in a reply.
_BEGIN = b'{"result":'

#: What JSON lacks is written in one form: ``Decimal`` and ``UUID`` as strings, bytes in base64.
write_json = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical").encode


class Written:
    """A result as JSON, and the memory that is held for it until it is on its way to its client.

    It is written behind the beginning of a reply, so that the reply is made of it without copying it.

    :ivar hold: what is held for it, if anything.
    """

    __slots__ = ("_buffer", "_end", "hold")

    def __init__(self) -> None:
        self._buffer = BytesIO()
        self._buffer.write(_BEGIN)
        self._end: int | None = None
        self.hold: Hold | None = None

    def __len__(self) -> int:
        return (self._buffer.tell() if self._end is None else self._end) - len(_BEGIN)

    def write(self, data: bytes | memoryview | msgspec.Raw) -> None:
        """Add what is JSON already."""
        self._buffer.write(data)

    def put(self, value: Any) -> None:
        """Add a value, a long text in pieces."""
        if type(value) is msgspec.Raw:
            self._buffer.write(value)
        elif type(value) is str and len(value) > PIECE:
            self._buffer.write(b'"')
            for start in range(0, len(value), PIECE):
                self._buffer.write(memoryview(write_json(value[start : start + PIECE]))[1:-1])
            self._buffer.write(b'"')
        else:
            self._buffer.write(write_json(value))

    def reply(self, end: bytes) -> bytes:
        """The reply, which is whole with ``end``; made once."""
        self._end = self._buffer.tell()
        self._buffer.write(end)
        return self._buffer.getvalue()

    def json(self) -> bytes:
        """A copy of the result alone."""
        return self._buffer.getvalue()[len(_BEGIN) : self._end]
