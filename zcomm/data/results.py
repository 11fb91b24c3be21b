"""The rows of reads: as values or, where they are many or large, as JSON.

JSON is made in slices, whose rows are gone when the next ones come: a result takes little more memory than its text,
and none of its slices keeps other threads waiting for long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from zcomm.budget.written import PIECE, Written, write_json
from zcomm.data.drivers.driver import Counted, Fault, size_of
from zcomm.data.models import Model
from zcomm.data.sql.statements import RESULT_BYTES
from zcomm.errors import InternalError, Invalid

__all__ = ["VALUE_BYTES", "RowReader", "RowWriter", "lightened", "too_many"]

#: Bytes that a value takes beside its text, in what a database sends.
VALUE_BYTES = 24


class RowReader:
    """Makes dictionaries of the rows of one shape.

    :param model: with its columns.
    :param names: of the fields.
    :param raw: whether stored JSON stays the text that it is, to be passed on.
    """

    def __init__(self, model: Model, names: Sequence[str], raw: bool = False):
        self._names = tuple(names)
        #: What a row takes in JSON beside its texts, about.
        self.overhead = sum(len(name) + 12 for name in names)
        columns = [(name, column) for name in names if (column := model.fields[name].column) is not None]
        reads = [(name, (column.raw if raw else None) or column.read) for name, column in columns]
        self._converted = tuple((name, read) for name, read in reads if read is not None)

    def read(self, rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
        """All of ``rows``, converted."""
        names = self._names
        made = [dict(zip(names, row, strict=False)) for row in rows]
        for name, convert in self._converted:
            for row in made:
                value = row[name]
                if value is not None:
                    row[name] = convert(value)
        return made


class RowWriter:
    """Takes the rows of a read in slices, and makes JSON of them.

    Where they come to more than they may, they are counted to the end, so that the read can be repeated with as much.

    :param reader: of the rows.
    :param cap: how many there may be; ``None`` for any number.
    :param allowance: bytes that they may come to.
    :ivar use: counts the time of the read.
    :ivar converting: makes what is held around each slice: of several threads that compute, each would make the reactor
        wait.
    """

    __slots__ = (
        "_all",
        "_cap",
        "_count",
        "_most",
        "_reader",
        "_size",
        "_texts",
        "_written",
        "allowance",
        "converting",
        "use",
    )

    def __init__(self, reader: RowReader, cap: int | None, allowance: int):
        self._reader = reader
        self._cap = cap
        self.converting: Callable[[], AbstractContextManager[None]] = nullcontext
        self.allowance = allowance
        self.use: Counted | None = None
        #: How many rows are asked for at most, where there may be more; and what all of them may come to.
        self._most: int | None = None
        self._all = 0

    def expect(self, most: int, all: int) -> None:
        """Take one row more than ``most`` for a sign of a read that may come to ``all`` bytes."""
        self._most, self._all = most, all

    def begin(self) -> None:
        """Forget what was taken: the statement runs again."""
        self._count = self._texts = self._size = 0
        self._written: Written | None = None

    @property
    def has_begun(self) -> bool:
        """Whether rows were taken."""
        return self._count > 0

    def take(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Take some rows.

        :raises Fault: for more than any result may have.
        :raises Invalid: for more rows than there may be.
        """
        first = not self._count
        self._count += len(rows)
        if self._cap is not None and self._count > self._cap:
            raise too_many(self._cap)
        texts = sum(map(size_of, rows))
        self._texts += texts
        if self._texts > RESULT_BYTES:
            raise Fault("large", (), "the rows of a read")
        self._size += texts + self._reader.overhead * len(rows)
        if first:
            self._written = Written()
        if self._written is None:
            return
        if texts > self.allowance:
            # Of one row alone: it need not be looked at.
            self._written = None
            return
        with self.converting():
            self._write(self._reader.read(rows), texts, self._written)
        if len(self._written) > self.allowance:
            self._size = max(self._size, len(self._written))
            self._written = None
            if self.allowance >= RESULT_BYTES:
                raise Fault("large", (), "the rows of a read, as JSON")

    @staticmethod
    def _write(rows: list[dict[str, Any]], texts: int, written: Written) -> None:
        try:
            if texts <= 4 * PIECE:
                written.write(b"," if written else b"[")
                written.write(memoryview(write_json(rows))[1:-1])
                return
            for row in rows:
                before = b"," if written else b"["
                written.write(before + b"{")
                for place, (name, value) in enumerate(row.items()):
                    written.write(b"%s%s:" % (b"," if place else b"", write_json(name)))
                    written.put(value)
                written.write(b"}")
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise InternalError("Result not serializable") from error

    def end(self) -> Written:
        """All of it.

        :raises Fault: where it came to more than it may, with how much that was.
        """
        if self._most is not None and self._count > self._most:
            raise Fault("large", (), "the rows of a read", size=max(self._all, self._size))
        if self._written is None:
            raise Fault("large", (), "the rows of a read", size=self._size)
        self._written.write(b"]")
        return self._written


def too_many(cap: int) -> Invalid:
    """The error for a read of more than ``cap`` rows."""
    return Invalid(f"More than {cap} rows match; give a limit or a narrower where")


def lightened(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with long texts as JSON already, so that who writes it later has no more to do than to copy them."""
    long = [name for name, value in row.items() if type(value) is str and len(value) > PIECE]
    if not long:
        return row
    made = dict(row)
    for name in long:
        written = Written()
        written.put(row[name])
        made[name] = msgspec.Raw(written.json())
    return made
