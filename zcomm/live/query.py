"""A live query: its rows, as many as there may be, in their order; what a step makes of them.

Of a query with a limit some rows more are kept than clients see, so that one that leaves can be replaced. The rows that
are kept are always the first ones of all that match.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from zcomm.data.models import Model
from zcomm.data.requests import Plan
from zcomm.live.differences import NOTHING, Difference, difference
from zcomm.live.judging import Test, equal_to, memberships_of, test_of
from zcomm.live.log import Key
from zcomm.live.requests import MAX_BYTES, MAX_ROWS, Question
from zcomm.live.rows import ROW_BYTES, Entry, Row, View, raw_fields

__all__ = ["Query", "fields_of"]

#: A digest is of 64 bits.
_BITS = 2**64 - 1
#: What is added for each row, so that two rows that make nothing of each other are told from none.
_COUNT = 0x9E3779B97F4A7C15
_NOTHING: frozenset[str] = frozenset()
#: Bytes that a query takes besides its rows.
_BASE = 4096
#: Up to how many rows are taken one by one.
_FEW = 8
_TOO_MANY = f"More than {MAX_ROWS} rows match; give a limit or a narrower where"


class Query:
    """A live query, shared by all who ask the same.

    :param question: what is asked.
    :param plan: of a read of it.
    :param model: with its columns, all of its fields.
    :param view: its fields and its order, as other queries may have them as well.
    :param is_sqlite: whether the database is one of SQLite.
    :ivar names: the fields that a step has to read.
    :ivar raw: those that it has to read as they are stored.
    :ivar equal: a field and its values, one of which each row has that matches; ``None`` where there is none.
    :ivar test: whether a row matches that has one of those, as far as Python knows.
    :ivar memberships: the conditions on other models that its rows are in reach by: these models, and what is asked.
    :ivar depends: these models.
    :ivar watchers: those who are told of it, each with whose work that is.
    :ivar has_spares: whether more rows are kept than clients see; none are where these would be too large.
    :ivar is_stale: whether its rows are to be read anew.
    :ivar took: seconds that it took to read its rows.
    :ivar is_slow: whether it is known for one that takes long.
    :ivar is_apart: whether a step has failed at it, or at one of its model, and it was not read since.
    :ivar rests_until: the time before which they are not read again where that is long or has failed.
    :ivar begun_at: when the read of its rows beside steps began that was the last one.
    :ivar read_at: when the read began that they are of, where that was beside steps.
    :ivar late: how often in a row its rows took too long to be read anew beside steps.
    :ivar failures: how often in a row they could not be read there.
    :ivar fault: why it cannot go on; empty where it can.
    :ivar size: bytes that it takes, about.
    :ivar left: the keys of the rows that it does not keep any more since it was changed last.
    :ivar came: those of the rows that it keeps since then.
    """

    def __init__(self, question: Question, plan: Plan, model: Model, view: View, is_sqlite: bool):
        self.question = question
        self.plan = plan
        self.view = view
        ordered = tuple(name for name, _ in question.order)
        asked = fields_of(question.where.shape)
        self.names = tuple(dict.fromkeys((*question.fields, *ordered, *asked)))
        self.raw = raw_fields(model, (*ordered, *asked), is_sqlite)
        self.equal, rest = equal_to(question.where, model, is_sqlite)
        self.test: Test = test_of(rest, model, is_sqlite)
        self.memberships = tuple(dict.fromkeys(memberships_of(question.where)))
        self.depends = frozenset(name for name, _ in self.memberships) if self.memberships else _NOTHING
        self.watchers: dict[Any, Any] = {}
        self.is_stale = self.is_slow = self.is_apart = False
        self.took = self.rests_until = self.begun_at = self.read_at = 0.0
        self.late = self.failures = 0
        self.fault = ""
        kinds = {model.fields[name].kind.name for name in model.key}
        self._has_plain_keys = not is_sqlite or kinds <= {"int", "str"}
        limit = question.limit
        self._visible = MAX_ROWS if limit is None else limit
        self.has_spares = limit is not None
        self._entries: dict[Key, Entry] = {}
        self._rows: list[Entry] = []
        #: Whether the rows that are kept are all that match.
        self._is_whole = True
        #: Whether Python knows the order of those that are kept.
        self._is_sorted = False
        # The same rows in another order are others, where there are several.
        self._seed = int.from_bytes(blake2b(repr(question.order).encode(), digest_size=8).digest(), "big")
        self._sum = 0
        self.size = _BASE
        self.left: Sequence[Key] = ()
        self.came: Sequence[Key] = ()

    def __repr__(self) -> str:
        return f"<query {self.question!r:.200}>"

    @property
    def rows(self) -> list[Entry]:
        """The rows as clients see them."""
        return self._rows[: self._visible]

    @property
    def digest(self) -> str:
        """Tells the rows, their keys and their order from others."""
        order = self._seed if min(len(self._rows), self._visible) > 1 else 0
        return f"{self._sum + order & _BITS:016x}"

    @property
    def keys(self) -> Mapping[Key, Entry]:
        """The rows that are kept, by their keys."""
        return self._entries

    @property
    def capacity(self) -> int:
        """The number of rows that are kept at most."""
        seen = self._visible
        return seen + max(2, seen // 4) if self.has_spares else seen

    @property
    def reads(self) -> int:
        """The number of rows to be read: with spares, or where all are meant, one more than are kept, which shows
        whether there are others."""
        return self.capacity + (self.has_spares or self.question.limit is None)

    def fill(self, entries: Sequence[Entry]) -> Difference:
        """Take what has been read anew, in its order and as many as :attr:`reads` at most.

        :return: what has changed for clients.
        """
        before, keys = self.rows, self._entries
        if self.question.limit is None and len(entries) > MAX_ROWS:
            self.fault = _TOO_MANY
            self.left = self.came = ()
            return NOTHING
        self._is_whole = len(entries) < self.reads
        self._rows = list(entries[: self.capacity])
        self._entries = {entry.key: entry for entry in self._rows}
        self.left = [key for key in keys if key not in self._entries]
        self.came = [key for key in self._entries if key not in keys]
        self._is_sorted = self.view.is_sorted and all(entry.sort is not None for entry in self._rows)
        self.is_stale = False
        self._sum = sum(entry.hash + _COUNT for entry in self.rows)
        self.size = _BASE + sum(entry.size for entry in self._rows)
        return NOTHING if self._are_alike() or self._are_large() else difference(before, self.rows)

    def change(self, rows: Mapping[Key, Row | None]) -> Difference | None:
        """Take rows that have changed.

        :param rows: by their keys; ``None`` where one does not match any more.
        :return: what has changed for clients; ``None`` where its rows have to be read anew for that.
        :raises Unreadable: for a row that cannot be shown.
        """
        entries, view = self._entries, self.view
        updated: dict[Key, Entry | None] = {}
        for key, row in rows.items():
            before = entries.get(key)
            after = None if row is None else row.entry(view)
            if after is None:
                if before is None:
                    continue
            elif after.sort is None and view.is_sorted:
                return None
            elif before is not None and before.hash == after.hash and before.row == after.row:
                continue
            updated[key] = after
        if not updated:
            self.left = self.came = ()
            return NOTHING
        if not self._is_sorted:
            return None
        if not self._is_whole or len(self._rows) + len(updated) > self._visible:
            made = self._change_window(updated)
        elif len(updated) <= _FEW:
            made = self._change_few(updated)
        else:
            made = self._change_shown(updated)
        return NOTHING if self._are_alike() or self._are_large() else made

    def _are_large(self) -> bool:
        """Whether its rows come to more than they may."""
        if self.size - _BASE - ROW_BYTES * len(self._rows) > MAX_BYTES and self.has_spares:
            self.has_spares = False
            spares = {entry.key for entry in self._rows[self._visible :]}
            if spares:
                self._is_whole = False
                del self._rows[self._visible :]
                self.size -= sum(self._entries.pop(key).size for key in spares)
                self.left = [*self.left, *(spares - {*self.came})]
                self.came = [key for key in self.came if key not in spares]
        if self.size - _BASE - ROW_BYTES * len(self._rows) <= MAX_BYTES:
            return False
        self.fault = f"Its rows come to more than {MAX_BYTES >> 20} MiB; ask for fewer fields or rows"
        return True

    def _are_alike(self) -> bool:
        """Whether two rows have keys that clients could not tell apart: those of a table and of one that inherits from
        it, say, or forms of one value, which another program has written to a key of SQLite's."""
        if len(self._entries) == len(self._rows) and (
            self._has_plain_keys or len({entry.name for entry in self._rows}) == len(self._rows)
        ):
            return False
        self.fault = "Two of its rows have keys that look the same; give one of them another"
        return True

    def _change_few(self, updated: Mapping[Key, Entry | None]) -> Difference | None:
        """Take some rows into a list of which clients see all."""
        entries, rows = self._entries, self._rows
        gone: list[Entry] = []
        left: list[Key] = []
        came: list[Key] = []
        for key, after in updated.items():
            before = entries.get(key)
            if before is not None:
                place = bisect_left(rows, before.sort, key=_sort)
                del rows[place]
                self._sum -= before.hash + _COUNT
                self.size -= before.size
                if after is None:
                    del entries[key]
                    gone.append(before)
                    left.append(key)
            else:
                came.append(key)
        # Only then: a key that has come may stand where one that has gone does, as 0 and 0.00 do.
        for key, after in updated.items():
            if after is not None:
                rows.insert(bisect_left(rows, _sort(after), key=_sort), after)
                entries[key] = after
                self._sum += after.hash + _COUNT
                self.size += after.size
        self.left, self.came = left, came
        places = [(self._place(after), after) for after in updated.values() if after is not None]
        if len(places) > 1:
            places.sort(key=_first)
        return Difference(gone, places)

    def _change_shown(self, updated: Mapping[Key, Entry | None]) -> Difference | None:
        """Take many rows into a list of which clients see all."""
        rows = [entry for entry in self._rows if entry.key not in updated]
        rows += [entry for entry in updated.values() if entry is not None]
        rows.sort(key=_sort)
        return self._become(rows, updated)

    def _change_window(self, updated: Mapping[Key, Entry | None]) -> Difference | None:
        """Take rows into a list of which clients may see a part."""
        added = [entry for entry in updated.values() if entry is not None]
        if not self._is_whole:
            if not self._rows:
                return None
            # Of the rows behind the last one nothing is known.
            bound: Any = self._rows[-1].sort
            added = [entry for entry in added if not bound < _sort(entry)]
        kept = [entry for entry in self._rows if entry.key not in updated]
        for entry in added:
            kept.insert(bisect_left(kept, _sort(entry), key=_sort), entry)
        if len(kept) < self._visible and not self._is_whole:
            return None
        if self.question.limit is None and len(kept) > MAX_ROWS:
            self.fault = _TOO_MANY
            self.left = self.came = ()
            return NOTHING
        if len(kept) > self.capacity:
            del kept[self.capacity :]
            self._is_whole = False
        return self._become(kept, updated)

    def _become(self, rows: list[Entry], updated: Mapping[Key, Entry | None]) -> Difference:
        """Have ``rows``, of which those that are not ``updated`` have kept their order."""
        before, seen = self._entries, self._visible
        is_partly_hidden = len(self._rows) > seen or len(rows) > seen
        was_shown = {entry.key for entry in self._rows[:seen]} if is_partly_hidden else before.keys()
        self._rows = rows
        now = self._entries = {entry.key: entry for entry in rows}
        is_shown = {entry.key for entry in rows[:seen]} if is_partly_hidden else now.keys()
        told = {key for key in updated if key in is_shown}
        hidden = {key for key in updated if key in was_shown and key not in is_shown}
        if is_partly_hidden:
            told |= is_shown - was_shown
            hidden |= was_shown - is_shown
        gone = [before[key] for key in hidden]
        places = [(self._place(now[key]), now[key]) for key in told]
        places.sort(key=_first)
        for entry in gone:
            self._sum -= entry.hash + _COUNT
        for _, entry in places:
            if entry.key in was_shown:
                self._sum -= before[entry.key].hash + _COUNT
            self._sum += entry.hash + _COUNT
        # One that is pushed out by another is not among those that were updated.
        self.left = [key for key in before if key not in now]
        self.came = [key for key in updated if key in now and key not in before]
        for key in updated:
            self.size += now[key].size if key in now else 0
        for key in {*self.left, *updated}:
            self.size -= before[key].size if key in before else 0
        return Difference(gone, places)

    def _place(self, entry: Entry) -> int:
        return bisect_left(self._rows, _sort(entry), key=_sort)


def _sort(entry: Entry) -> Any:
    return entry.sort


def _first(place: tuple[int, Entry]) -> int:
    return place[0]


def fields_of(shape: tuple[Any, ...]) -> list[str]:
    """The fields that a filter asks for."""
    if shape[0] in ("$and", "$or", "$not"):
        return [name for part in shape[1:] for name in fields_of(part)]
    return [] if shape[0].startswith("$") else [shape[0]]
