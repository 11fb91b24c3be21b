"""The rows of a live query as one client has them: what an event makes of them, and what is different then."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import msgspec

__all__ = ["Changed", "LiveChange", "News", "Row", "Rows", "first_of", "same"]

Row = dict[str, Any]

_text = msgspec.json.Encoder(order="sorted").encode


class Changed(TypedDict):
    """A row with other values than before."""

    row: Row
    before: Row


class LiveChange(TypedDict):
    """The difference that leads from the rows that were told before to those that are told with it.

    ``initial``: these are the first rows. ``change``: some have changed. ``reset``: they were read anew, after a
    reconnect for one. ``same``: they are what they were, and ``status``, ``error`` or ``sees`` may have changed.
    ``added`` are those that were not there before (all of them where it is ``initial``), ``removed`` those that are
    there no more. Where all three lists are empty, and it is not ``same``, the order is another.
    """

    kind: Literal["initial", "change", "reset", "same"]
    added: list[Row]
    removed: list[Row]
    changed: list[Changed]


class News(msgspec.Struct):
    """The part of a reply or an event that is of one query."""

    same: bool = False
    key: list[str] | None = None
    rows: list[Row] | None = None
    reset: list[Row] | None = None
    gone: list[Any] = []
    put: list[tuple[int, Row]] = msgspec.field(name="set", default_factory=list)
    digest: str | None = None
    sees: Literal["all", "own"] | None = None


class Rows:
    """Rows in their order, with the names of the fields that are their key. A row that has not changed stays the same
    object, and so does the list where none has.

    :ivar key: the names; ``None``: no rows have come yet.
    :ivar digest: what the server calls them; ``None`` where it calls them nothing.
    :ivar list: the rows, for programs.
    """

    def __init__(self) -> None:
        self.key: list[str] | None = None
        self.digest: str | None = None
        self.list: list[Row] = []
        self._rows: dict[bytes, Row] = {}

    def take(self, news: News) -> LiveChange:
        """Take what is said of them; returns what is different.

        :raises ValueError: for what nothing can be made of.
        """
        names = news.key or self.key
        if not names:
            raise ValueError("the server has not said what the key is")
        whole = news.rows if news.reset is None else news.reset
        change = _change("initial" if self.key is None else "change" if whole is None else "reset")
        placed = news.put if whole is None else list(enumerate(whole))
        keys = [_key_of(row, names) for _, row in placed]
        touched = {*keys, *map(_text, news.gone)} if whole is None else self._rows.keys()
        before: dict[bytes, Row] = {}
        left: dict[bytes, Row] = {}
        for key, row in self._rows.items():
            (before if key in touched else left)[key] = row
        rows: dict[bytes, Row] = {}
        staying = iter(left.items())
        for key, (place, row) in zip(keys, placed, strict=True):
            while len(rows) < place and (stays := next(staying, None)) is not None:
                rows[stays[0]] = stays[1]
            was = before.pop(key, None)
            if was is None:
                change["added"].append(row)
            elif _is_same(was, row):
                row = was
            else:
                change["changed"].append({"row": row, "before": was})
            rows[key] = row
        rows.update(staying)
        change["removed"].extend(before.values())
        self.key, self.digest = names, news.digest or self.digest
        if change["kind"] != "initial" and _are_same(self._rows, rows):
            return same()
        self._rows = rows
        self.list = list(rows.values())
        return change


def first_of(rows: Rows) -> LiveChange:
    """The rows as they are told to who hears of them for the first time."""
    change = same()
    if rows.key is not None:
        change["kind"] = "initial"
        change["added"].extend(rows.list)
    return change


def same() -> LiveChange:
    """Nothing is different."""
    return _change("same")


def _key_of(row: Row, names: list[str]) -> bytes:
    try:
        return _text(row[names[0]] if len(names) == 1 else [row[name] for name in names])
    except KeyError as error:
        raise ValueError(f"a row has no {error}, which is of its key") from None


def _change(kind: Literal["initial", "change", "reset", "same"]) -> LiveChange:
    return {"kind": kind, "added": [], "removed": [], "changed": []}


def _is_same(before: Row, row: Row) -> bool:
    """Whether both are the same in JSON, where 1 is neither true nor 1.0."""
    try:
        return before == row and _text(before) == _text(row)
    except TypeError:
        # The program has put something else into it.
        return False


def _are_same(before: dict[bytes, Row], rows: dict[bytes, Row]) -> bool:
    return len(before) == len(rows) and all(map(_is, before.values(), rows.values()))


def _is(one: Row, other: Row) -> bool:
    return one is other
