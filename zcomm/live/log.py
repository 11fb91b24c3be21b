"""The interface between live queries and what tells them which rows have changed.

Too much told is harmless, since rows are read anew; too little never is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from zcomm.data.models import Model

__all__ = ["READ_SECONDS", "ChangeLog", "Changes", "Key", "KeyForm"]

#: Seconds that one read of a step may take, whoever it is for: all others wait for it.
READ_SECONDS = 0.5

#: The key of a row: of one column its value, of several theirs.
Key = int | str | tuple[int | str, ...]


class KeyForm(NamedTuple):
    """The keys of a model in SQL.

    :ivar columns: of each column of the key an expression that brings an ``int`` or a ``str``, the same that the log
        brings of that row.
    :ivar condition: with one parameter mark of the driver; true of the rows with one of some keys. It may be true of
        others as well, and an index answers it.
    :ivar encode: from keys to that parameter.
    """

    columns: tuple[str, ...]
    condition: str
    encode: Callable[[Sequence[Key]], Any]


class Changes(NamedTuple):
    """The rows that have changed since the step before.

    :ivar keys: by model; ``None`` where they are too many, or nobody knows: its queries are read anew.
    :ivar known: whether anything is known of them: else everything is read anew.
    :ivar away: the models whose tables somebody keeps locked: they cannot be read in this step, and are told of by the
        first one in which they can.
    """

    keys: Mapping[str, Collection[Key] | None]
    known: bool = True
    away: Collection[str] = frozenset()


class ChangeLog(Protocol):
    """The changes of one database. Its methods block, are called by one thread at a time, and raise
    :class:`~zcomm.data.drivers.driver.Fault`.

    :ivar file: the path of a file that whoever writes changes; empty where there is none. Never blocks.
    """

    @property
    def file(self) -> str: ...

    def prepare(self, models: Sequence[Model]) -> Mapping[str, str]:
        """Install what is missing to watch the tables of ``models`` that are to be live.

        :return: by model why it is not watched, in words that follow "its table is not watched: "; empty where it is.
        """

    def key_form(self, model: Model) -> KeyForm | str:
        """The keys of ``model``; or why its rows cannot be named, in words that follow its name."""

    def watch(self) -> None:
        """Have changes logged from now on. Harmless where they are."""

    def begin(self, models: Collection[str]) -> Changes:
        """Begin a transaction that reads one snapshot, of the tables of ``models``.

        :return: the changes between the snapshot of the step before and this one.
        """

    def run(self, sql: str, parameters: Sequence[Any], max_bytes: int | None = None) -> list[tuple[Any, ...]]:
        """Read something in it, which may take :data:`READ_SECONDS`.

        :param max_bytes: bytes that the rows may come to, where the statement does not see to that by itself.
        """

    def end(self) -> None:
        """End it. Never raises."""

    def changed(self) -> bool:
        """Whether something may have changed that no step has read."""

    def tend(self) -> Mapping[str, str]:
        """See to it that changes are logged, and that the log does not grow; called once a second.

        :return: as :meth:`prepare`, of the models of which that has become otherwise.
        """

    def rest(self) -> None:
        """Have nothing logged any more. Never raises."""

    def close(self) -> None:
        """Let go of all connections. Never raises."""
