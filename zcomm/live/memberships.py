"""The conditions on other models by which rows are in reach: which queries have them, and which rows they find.

Whoever may read the rows of the boards that one is a member of asks such a condition on the members. When members come
and go, the rows that were found before and those that match now say whose queries that concerns; all others are left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from zcomm.data.filters import Filter
from zcomm.data.models import Model
from zcomm.data.requests import Plan
from zcomm.live.judging import Test, equal_to, test_of
from zcomm.live.log import Key, KeyForm
from zcomm.live.query import Query, fields_of
from zcomm.live.rows import Row, raw_fields
from zcomm.live.watched import Touched, Watched

__all__ = ["Membership", "Memberships"]

#: How many rows of one condition are remembered. Who is a member of more is concerned by any change of members.
MAX_MEMBERS = 1000


class Membership:
    """One condition, of all the queries that have it.

    :param question: the name of the model, and what is asked of its rows.
    :ivar queries: those that have it.
    :ivar members: the rows that it finds, by their keys; ``None`` where that is not known.
    """

    def __init__(self, question: tuple[str, Filter], model: Model, is_sqlite: bool):
        self.question = question
        self.model = model
        _, where = question
        self.names = tuple(dict.fromkeys(fields_of(where.shape)))
        self.raw = raw_fields(model, self.names, is_sqlite)
        self.equal, rest = equal_to(where, model, is_sqlite)
        self.test: Test = test_of(rest, model, is_sqlite)
        self.queries: dict[Query, None] = {}
        self.members: dict[Key, None] | None = None
        self.left: Sequence[Key] = ()
        self.came: Sequence[Key] = ()

    @property
    def keys(self) -> Mapping[Key, Any]:
        """The rows that are known to be found, by their keys."""
        return self.members or {}

    @property
    def plan(self) -> Plan:
        """The plan of a read of their keys: of those that are remembered and one more, which shows whether there are
        others."""
        where = self.question[1]
        slots = (*where.slots, ("int", MAX_MEMBERS + 1), ("int", 0))
        return Plan(action="read", model=self.model, shape=("read", (), where.shape, ()), slots=slots)

    def become(self, members: dict[Key, None] | None) -> None:
        """Have other rows, or none that are known."""
        before = self.keys
        self.members = members
        self.left = [key for key in before if key not in self.keys]
        self.came = [key for key in self.keys if key not in before]


class Memberships:
    """The conditions of all queries.

    :param find: the model of a name, with its columns.
    :param key_form: the keys of a model in SQL; a text where its rows cannot be named.
    :ivar unknown: those of which it is not known which rows they find, and that are to be read.
    """

    def __init__(self, find: Callable[[str], Model], key_form: Callable[[Model], KeyForm | str], is_sqlite: bool):
        self._find = find
        self._key_form = key_form
        self._is_sqlite = is_sqlite
        self._all: dict[tuple[str, Filter], Membership] = {}
        #: By the name of the model; ``None`` where nobody can tell its rows apart.
        self._watched: dict[str, Watched[Membership] | None] = {}
        self.unknown: dict[Membership, None] = {}

    @property
    def models(self) -> Collection[str]:
        """The names of the models that conditions are on."""
        return self._watched.keys()

    def watched(self, model: str) -> Watched[Membership] | None:
        """The conditions on ``model``; ``None`` where nobody can tell its rows apart."""
        return self._watched[model]

    def add(self, query: Query) -> None:
        """Take the conditions of ``query``."""
        for question in query.memberships:
            membership = self._all.get(question)
            if membership is None:
                model = self._find(question[0])
                membership = self._all[question] = Membership(question, model, self._is_sqlite)
                watched = self._watched_of(model)
                if watched is not None:
                    watched.add(membership)
                    self.unknown[membership] = None
            membership.queries[query] = None

    def _watched_of(self, model: Model) -> Watched[Membership] | None:
        if model.name in self._watched:
            watched = self._watched[model.name]
            if watched is not None and watched.model != model:
                # Its table has been altered since.
                self.distrust(model.name)
            return self._watched[model.name]
        key = self._key_form(model)
        watched = self._watched[model.name] = None if isinstance(key, str) else Watched(model, key, self._is_sqlite)
        return watched

    def remove(self, query: Query) -> None:
        """Forget the conditions of ``query`` that no other one has."""
        for question in query.memberships:
            membership = self._all.get(question)
            if membership is None or membership.queries.pop(query, self) is self or membership.queries:
                continue
            del self._all[question]
            self.unknown.pop(membership, None)
            name, _ = question
            watched = self._watched[name]
            if watched is not None:
                watched.remove(membership)
            if not any(each[0] == name for each in self._all):
                del self._watched[name]

    def distrust(self, model: str) -> None:
        """Take it that rows of ``model`` cannot be told apart: any change concerns all conditions on it."""
        if model in self._watched:
            self._watched[model] = None
            for membership in self._on(model):
                self.unknown.pop(membership, None)

    def _on(self, model: str) -> list[Membership]:
        return [membership for (name, _), membership in self._all.items() if name == model]

    def forget(self, model: str) -> Iterator[Query]:
        """Any rows of ``model`` may have changed; gives the queries that this concerns, all that have a condition on
        it."""
        for membership in self._on(model):
            yield from membership.queries
            self.learn(membership, None)

    def look(self, model: str, keys: Collection[Key], rows: Mapping[Key, Row]) -> Iterator[Query | None]:
        """Find the queries that a change of rows of ``model`` concerns; gives ``None`` where it has found none yet.

        :param keys: of the rows that have changed.
        :param rows: those of them that are there.
        """
        watched = self._watched[model]
        if watched is None:
            for membership in self._on(model):
                yield from membership.queries
            return
        touched: Touched[Membership] = {}
        unsure: Touched[Membership] = {}
        for key in keys:
            yield from watched.look_at(key, rows.get(key), touched, unsure)
            yield None
        for membership in [each for each in watched.queries.values() if each.members is None]:
            yield from membership.queries
        for membership, found in touched.items():
            if membership.members is None or membership in unsure:
                continue
            members = membership.members.copy()
            for key, row in found.items():
                if row is None:
                    members.pop(key, None)
                else:
                    members[key] = None
            yield from membership.queries
            self.learn(membership, members)
        for membership in unsure:
            yield from membership.queries
            self.learn(membership, None)

    def learn(self, membership: Membership, members: dict[Key, None] | None) -> None:
        """Take note of the rows that a condition finds; ``None`` where they are to be read."""
        self.unknown.pop(membership, None)
        watched = self._watched.get(membership.model.name)
        if watched is None or self._all.get(membership.question) is not membership:
            return
        if members is None:
            self.unknown[membership] = None
        elif len(members) > MAX_MEMBERS:
            members = None
        membership.become(members)
        watched.follow(membership)
