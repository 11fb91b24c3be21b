"""The live queries of one model: which of them a changed row concerns."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from zcomm.data.models import Model
from zcomm.live.judging import Test
from zcomm.live.log import Key, KeyForm
from zcomm.live.requests import Question
from zcomm.live.rows import UNKNOWN, Form, Row, View

__all__ = ["Touched", "Watched"]


class Finding(Protocol):
    """A query or a condition that finds some rows of a model; see :class:`zcomm.live.query.Query`."""

    @property
    def question(self) -> Hashable:
        """Tells it from all others."""

    @property
    def names(self) -> Sequence[str]:
        """The fields that a step has to read."""

    @property
    def raw(self) -> Sequence[str]:
        """Those that it has to read as they are stored."""

    @property
    def equal(self) -> tuple[str, frozenset[Any]] | None:
        """A field and its values, one of which each row has that matches."""

    @property
    def test(self) -> Test:
        """Whether a row matches that has one of those."""

    @property
    def keys(self) -> Mapping[Key, Any]:
        """The rows that it keeps, by their keys."""

    @property
    def left(self) -> Sequence[Key]:
        """The keys of the rows that it does not keep any more since it was changed last."""

    @property
    def came(self) -> Sequence[Key]:
        """The keys of those that it keeps since then."""


T = TypeVar("T", bound=Finding)
#: Of each query some rows, by their keys.
Touched = dict[T, dict[Key, Row | None]]

#: How many pairs of fields and an order are remembered.
MAX_VIEWS = 1000
#: How many queries that keep one row are in a tuple, which takes little; of more none is looked for among all others.
FEW = 8
#: How many queries are looked at for a row at once.
QUERIES_AT_ONCE = 200


class Watched(Generic[T]):
    """The queries of one model that steps look after, or conditions on it.

    :param model: with its columns.
    :param key: the keys of its rows in SQL.
    :param is_sqlite: whether the database is one of SQLite.
    :ivar queries: by what they ask.
    """

    def __init__(self, model: Model, key: KeyForm, is_sqlite: bool):
        self.model = model
        self.key = key
        self.is_sqlite = is_sqlite
        self.queries: dict[Hashable, T] = {}
        #: Those whose rows have one of some values in a field: by field and value.
        self._equal: dict[str, dict[Any, dict[T, None]]] = {}
        #: All others.
        self._others: dict[T, None] = {}
        #: By key, the queries that keep the row.
        self._keeping: dict[Key, tuple[T, ...] | dict[T, None]] = {}
        self._form: Form | None = None
        self._views: dict[tuple[Any, ...], View] = {}

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def form(self) -> Form:
        """The form of the rows that a step reads: all that any of its queries looks at."""
        if self._form is None:
            names: dict[str, None] = {}
            raw: dict[str, None] = {}
            for query in self.queries.values():
                names.update(dict.fromkeys(query.names))
                raw.update(dict.fromkeys(query.raw))
            # In an order of its own: the same statement for the same fields.
            wanted = [name for name in self.model.fields if name in names]
            self._form = Form(self.model, wanted, sorted(raw), self.is_sqlite)
        return self._form

    def narrow(self) -> None:
        """Have no more read than its queries look at by now."""
        self._form = None

    def view(self, question: Question) -> View:
        """The fields and the order of a query, the same for all that have the same."""
        key = question.fields, question.order
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                self._views.clear()
            view = self._views[key] = View(self.model, *key, self.is_sqlite)
        return view

    def add(self, query: T) -> None:
        """Look after a query from the next step on."""
        self.queries[query.question] = query
        if query.equal is None:
            self._others[query] = None
        else:
            name, values = query.equal
            table = self._equal.setdefault(name, {})
            for value in values:
                table.setdefault(value, {})[query] = None
        for key in query.keys:
            self._keep(key, query)
        form = self._form
        if form is not None and not (form.place.keys() >= {*query.names} and {*form.raw} >= {*query.raw}):
            self._form = None

    def remove(self, query: T) -> None:
        """Look after a query no more."""
        if self.queries.pop(query.question, None) is None:
            return
        if query.equal is None:
            self._others.pop(query, None)
        else:
            name, values = query.equal
            table = self._equal[name]
            for value in values:
                table[value].pop(query, None)
                if not table[value]:
                    del table[value]
            if not table:
                del self._equal[name]
        for key in list(query.keys):
            self._leave(key, query)
        if not self.queries:
            self._form = None

    def _keep(self, key: Key, query: T) -> None:
        keeping = self._keeping.get(key, ())
        if isinstance(keeping, dict):
            keeping[query] = None
        elif len(keeping) < FEW:
            self._keeping[key] = (*keeping, query)
        else:
            self._keeping[key] = dict.fromkeys((*keeping, query))

    def _leave(self, key: Key, query: T) -> None:
        keeping = self._keeping.get(key, ())
        if isinstance(keeping, dict):
            keeping.pop(query, None)
        else:
            keeping = self._keeping[key] = tuple(each for each in keeping if each is not query)
        if not keeping:
            del self._keeping[key]

    def follow(self, query: T) -> None:
        """Take note of the rows that a query keeps since it was changed last, and of those that it does not."""
        for key in query.left:
            self._leave(key, query)
        for key in query.came:
            self._keep(key, query)

    def look_at(self, key: Key, row: Row | None, touched: Touched[T], unsure: Touched[T]) -> Iterator[None]:
        """Find the queries that a changed row may concern, in slices.

        :param row: ``None`` where it is not there any more.
        :param touched: takes of each query the row, or ``None`` where it does not match any more.
        :param unsure: takes the row of each query of which only the database can tell whether it matches.
        """
        keeping = self._keeping.get(key, ())
        looked = 0
        if row is None:
            for query in keeping:
                looked += 1
                if looked % QUERIES_AT_ONCE == 0:
                    yield
                _take(touched, query, key, None)
            return
        found: set[T] = set()
        for name, table in self._equal.items():
            value = row.compared(name)
            is_known = value is not UNKNOWN
            for wanted, queries in ((value, table.get(value, ())),) if is_known else table.items():
                looked += 1
                if looked % QUERIES_AT_ONCE == 0:
                    yield
                if not is_known and row.differs(name, wanted):
                    continue
                for query in queries:
                    looked += 1
                    if looked % QUERIES_AT_ONCE == 0:
                        yield
                    verdict = query.test(row)
                    if verdict is not False:
                        found.add(query)
                        _take(touched if verdict and is_known else unsure, query, key, row)
        for query in self._others:
            looked += 1
            if looked % QUERIES_AT_ONCE == 0:
                yield
            verdict = query.test(row)
            if verdict is not False:
                found.add(query)
                _take(touched if verdict else unsure, query, key, row)
        for query in keeping:
            looked += 1
            if looked % QUERIES_AT_ONCE == 0:
                yield
            if query not in found:
                _take(touched, query, key, None)


def _take(into: Touched[T], query: T, key: Key, row: Row | None) -> None:
    rows = into.get(query)
    if rows is None:
        into[query] = {key: row}
    else:
        rows[key] = row
