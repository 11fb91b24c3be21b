"""The difference between two lists of rows, as clients apply it.

They take out the rows that are gone and those that are set, and insert each of the latter at its place, the first one
first. So all that keep their order among each other need not be told (docs/protocol.rst, "Live queries").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from zcomm.live.rows import Entry

__all__ = ["NOTHING", "Difference", "difference"]


class Difference(NamedTuple):
    """A difference between the rows that a query had and those that it has.

    :ivar gone: the entries whose rows are not there any more, or whose keys clients see as others, though they are the
        same to the database: a number in another form, in SQLite.
    :ivar set: the entries of new, changed and moved rows with their places, in that order.
    """

    gone: list[Entry]
    set: list[tuple[int, Entry]]

    def __bool__(self) -> bool:
        return bool(self.gone or self.set)


#: No difference.
NOTHING = Difference([], [])


def difference(before: Sequence[Entry], after: Sequence[Entry]) -> Difference:
    """The difference between two lists of rows, with as few rows as there can be."""
    places = {entry.key: place for place, entry in enumerate(before)}
    kept: list[tuple[int, int]] = []
    renamed: list[Entry] = []
    for place, entry in enumerate(after):
        old = places.pop(entry.key, None)
        # A row that has the same text and is ordered by something else is told as well: its digest is another.
        if old is not None and before[old].row == entry.row and before[old].hash == entry.hash:
            kept.append((old, place))
        elif old is not None and before[old].name != entry.name:
            renamed.append(before[old])
    staying = _longest_run(kept)
    return Difference(
        [before[place] for place in sorted(places.values())] + renamed,
        [(place, entry) for place, entry in enumerate(after) if place not in staying],
    )


def _longest_run(kept: Sequence[tuple[int, int]]) -> set[int]:
    """The places after of a longest run of rows that have kept their order.

    :param kept: of each row the place before and the place after, by the latter.
    """
    if all(first[0] < second[0] for first, second in zip(kept, kept[1:], strict=False)):
        return {after for _, after in kept}
    # By length, the place before of the last row of the run of that length that ends lowest, and where it is in kept.
    lowest: list[int] = []
    ends: list[int] = []
    previous: list[int] = []
    for number, (before, _) in enumerate(kept):
        length = bisect_left(lowest, before)
        previous.append(ends[length - 1] if length else -1)
        if length == len(lowest):
            lowest.append(before)
            ends.append(number)
        else:
            lowest[length], ends[length] = before, number
    staying = set()
    number = ends[-1] if ends else -1
    while number >= 0:
        staying.add(kept[number][1])
        number = previous[number]
    return staying
