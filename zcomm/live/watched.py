"""The live queries of one model: which of them a changed row concerns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zcomm.data.models import Model
from zcomm.live.log import Key, KeyForm
from zcomm.live.query import Query
from zcomm.live.requests import Question
from zcomm.live.rows import UNKNOWN, Form, Row, View

__all__ = ["Watched"]

#: How many pairs of fields and an order are remembered.
MAX_VIEWS = 1000


class Watched:
    """The queries of one model that steps look after.

    :param model: with its columns.
    :param key: the keys of its rows in SQL.
    :param is_sqlite: whether the database is one of SQLite.
    :ivar queries: by what they ask.
    """

    def __init__(self, model: Model, key: KeyForm, is_sqlite: bool):
        self.model = model
        self.key = key
        self.is_sqlite = is_sqlite
        self.queries: dict[Question, Query] = {}
        #: Those whose rows have one of some values in a field: by field and value.
        self._equal: dict[str, dict[Any, dict[Query, None]]] = {}
        #: All others.
        self._others: dict[Query, None] = {}
        #: By key, the queries that keep the row.
        self._keeping: dict[Key, tuple[Query, ...]] = {}
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

    def view(self, question: Question) -> View:
        """The fields and the order of a query, the same for all that have the same."""
        key = question.fields, question.order
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                self._views.clear()
            view = self._views[key] = View(self.model, *key, self.is_sqlite)
        return view

    def add(self, query: Query) -> None:
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

    def remove(self, query: Query) -> None:
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

    def _keep(self, key: Key, query: Query) -> None:
        self._keeping[key] = (*self._keeping.get(key, ()), query)

    def _leave(self, key: Key, query: Query) -> None:
        left = tuple(each for each in self._keeping.get(key, ()) if each is not query)
        if left:
            self._keeping[key] = left
        else:
            self._keeping.pop(key, None)

    def follow(self, query: Query, before: set[Key]) -> None:
        """Take note of the rows that a query keeps now.

        :param before: the keys of those that it kept.
        """
        now = query.keys
        for key in before - now.keys():
            self._leave(key, query)
        for key in now.keys() - before:
            self._keep(key, query)

    def touched(self, keys: Iterable[Key], rows: Mapping[Key, Row]) -> Iterator[tuple[Query, Key, Row | None, bool]]:
        """The queries that changed rows may concern.

        :param keys: of all rows that have changed.
        :param rows: those of them that are there.
        :return: each query with a key; its row, ``None`` where it does not match; whether only the database can tell.
        """
        for key in keys:
            row = rows.get(key)
            keeping = self._keeping.get(key, ())
            if row is None:
                for query in keeping:
                    yield query, key, None, False
                continue
            if not keeping:
                for query, is_sure in self._candidates(row):
                    verdict = query.test(row)
                    if verdict is not False:
                        yield query, key, row, verdict is None or not is_sure
                continue
            left = dict.fromkeys(keeping)
            for query, is_sure in self._candidates(row):
                verdict = query.test(row)
                if verdict is not False:
                    left.pop(query, None)
                    yield query, key, row, verdict is None or not is_sure
            for query in left:
                yield query, key, None, False

    def _candidates(self, row: Row) -> Iterator[tuple[Query, bool]]:
        """The queries that ``row`` may match, each with whether it has the value that the query asks for."""
        for name, table in self._equal.items():
            value = row.compared(name)
            if value is UNKNOWN:
                for query in dict.fromkeys(query for queries in table.values() for query in queries):
                    yield query, False
            else:
                for query in table.get(value, ()):
                    yield query, True
        for query in self._others:
            yield query, True
