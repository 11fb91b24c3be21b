"""Reads what a step needs of the database, in its snapshot. All of it runs in the thread of the steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any

from zcomm.data.drivers.driver import Fault
from zcomm.data.execution import bind
from zcomm.data.requests import Plan
from zcomm.data.sql.statements import RESULT_BYTES
from zcomm.data.store import Store
from zcomm.live.log import ChangeLog, Key
from zcomm.live.memberships import Membership, Memberships
from zcomm.live.query import Query
from zcomm.live.requests import MAX_BYTES
from zcomm.live.rows import Form, Row
from zcomm.live.watched import Touched, Watched

__all__ = ["MAX_KEYS", "PASSING", "QUERY_SECONDS", "STEP_SECONDS", "Found", "Keys", "Reading", "merge", "wide"]

#: Seconds that the reads of one step for single queries may take together; those that are left have theirs in the next.
STEP_SECONDS = 0.1
#: Seconds that the read of one query may take.
QUERY_SECONDS = 0.5
#: Keys that are read at once, and those of a model beyond which its queries are read anew.
KEYS_AT_ONCE, MAX_KEYS = 500, 50_000
#: Keys of a membership's model beyond which any condition on it is taken for concerned, and the seconds that a step may
#: spend on reading what conditions find.
MAX_MEMBER_KEYS, MEMBER_SECONDS = 2000, 0.02
#: Seconds for which the changed rows of a model are not read by their keys where one of them could not be.
UNREAD_SECONDS = 10.0
#: The faults that are of no table, and of no statement.
PASSING = ("crowded", "down", "in_the_way", "lost", "migrated", "overdrawn", "stale")

Keys = dict[str, "set[Key] | None"]


@dataclass(slots=True, kw_only=True)
class Found:
    """Keeps what a step has read: by model the keys of the rows that have changed, and those of them that are there;
    ``None`` where all of its queries have to be read anew.

    :ivar keys: also of models that nobody asks yet: somebody's first rows of them may be read meanwhile.
    :ivar members: likewise, of the models by whose rows others are in reach; those whose rows have not changed are
        missing.
    :ivar away: the models that cannot be read in this step.
    :ivar late: the keys that are to be told of in the next step as well: the snapshot may not see these changes.
    """

    keys: Keys = field(default_factory=dict)
    rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    forms: dict[str, Form] = field(default_factory=dict)
    members: Keys = field(default_factory=dict)
    member_rows: dict[str, list[Row]] = field(default_factory=dict)
    known: bool = True
    away: Collection[str] = frozenset()
    late: Keys = field(default_factory=dict)

    def absorb(self, later: Found) -> None:
        """Be what has changed in this step or in a later one; rows have been let go of."""
        self.known = self.known and later.known
        for name, keys in later.keys.items():
            mine = self.keys.setdefault(name, set())
            if mine is None or keys is None or len(mine) + len(keys) > MAX_KEYS:
                self.keys[name] = None
            else:
                mine |= keys


class Reading:
    """Reads what steps need of one database.

    :param store: has the statements.
    :param log: has the snapshot.
    :param watched: the queries, by model.
    :param memberships: their conditions on other models.
    :ivar distrusted: the models whose rows could not be read to find out what memberships they are.
    """

    def __init__(self, store: Store, log: ChangeLog, watched: Mapping[str, Watched[Query]], memberships: Memberships):
        self._store = store
        self._changes = log
        self._is_sqlite = store.execution.database.name == "sqlite"
        self._watched = watched
        self._memberships = memberships
        self.distrusted: set[str] = set()
        #: The models whose changed rows are not read by their keys, and until when: all of their queries are read anew,
        #: each of which says for itself what it cannot have.
        self._unread: dict[str, float] = {}
        #: When they could not be read for the last time.
        self._failed_at: dict[str, float] = {}

    def find(self, names: Sequence[str], told: Keys, take: Callable[[Keys], None]) -> Found:
        """Begin a step: read what has changed. Its snapshot is there until the log's :meth:`~ChangeLog.end`.

        :param told: what was told of the changes since the step before.
        :param take: has it take what was told since then.
        """
        log = self._changes
        log.watch()
        others = set(self._memberships.models)
        take(told)
        changes = log.begin({*names, *others})
        found = Found(known=changes.known, away=changes.away)
        #: Those whose changes are read in another way now, and by their keys again from the next time on.
        passed: list[str] = []
        try:
            # That which came while the snapshot had to wait: it may see it or not, and the log may have what came after
            # it.
            take(found.late)
            for name, keys in found.late.items():
                merge(told, name, keys)
            for name in others.difference(found.away):
                self._find_members(name, changes.keys.get(name, ()), told.get(name, ()), found)
            for name in dict.fromkeys((*names, *changes.keys, *told)):
                if name in found.away:
                    # The log tells of it again.
                    continue
                seen, mine = changes.keys.get(name, ()), told.get(name, ())
                keys = None if seen is None or mine is None else {*seen, *mine}
                if keys and name in self._unread:
                    if self._unread[name] <= monotonic():
                        passed.append(name)
                    keys = None
                if keys is None or len(keys) > MAX_KEYS:
                    found.keys[name] = None
                elif keys and found.known:
                    found.keys[name] = keys
                    if name in names:
                        self._find_rows(name, list(keys), found)
        except BaseException:
            log.end()
            raise
        for name in passed:
            del self._unread[name]
        return found

    def _find_members(
        self, name: str, seen: Collection[Key] | None, told: Collection[Key] | None, found: Found
    ) -> None:
        """Read the rows of a model that have changed by which others are in reach."""
        if seen is None or told is None or len(seen) + len(told) > MAX_MEMBER_KEYS:
            found.members[name] = None
            return
        keys = {*seen, *told}
        if not keys:
            return
        found.members[name] = keys
        watched = self._memberships.watched(name)
        if watched is None or not found.known:
            return
        form = watched.form
        try:
            found.member_rows[name] = [Row(form, values) for values in self._rows_of(watched, form, list(keys))]
        except Fault as fault:
            if fault.kind not in PASSING:
                # In the next step without them.
                self.distrusted.add(name)
            raise

    def _find_rows(self, name: str, keys: Sequence[Key], found: Found) -> None:
        watched = self._watched[name]
        form = found.forms[name] = watched.form
        try:
            found.rows[name] = self._rows_of(watched, form, keys)
        except Fault as fault:
            if fault.kind == "large":
                # So many have changed that they were too large together: in the next step, this once.
                self._unread[name] = 0.0
            elif fault.kind not in PASSING:
                now = monotonic()
                before, self._failed_at[name] = self._failed_at.get(name, 0.0), now
                # A database has its moments.
                is_once = fault.kind in ("busy", "timeout") and now - before > UNREAD_SECONDS
                self._unread[name] = 0.0 if is_once else now + UNREAD_SECONDS
                # It may be a field that no query has any more.
                watched.narrow()
            raise

    def _rows_of(self, watched: Watched[Any], form: Form, keys: Sequence[Key]) -> list[tuple[Any, ...]]:
        """Read the rows with some keys."""
        rows: list[tuple[Any, ...]] = []
        plan = Plan(
            action="read",
            model=watched.model,
            shape=("read", form.names, ("$true",), ()),
            slots=(),
            returning=form.names,
        )
        key = watched.key
        statement = self._store.execution.keyed(plan, key.columns, form.raw, key.condition)
        for start in range(0, len(keys), KEYS_AT_ONCE):
            some = keys[start : start + KEYS_AT_ONCE]
            parameters = bind(plan, statement.parameters, RESULT_BYTES, key.encode(some))
            rows += self._changes.run(statement.sql, parameters, statement.max_bytes)
        return rows

    def ask_which(self, unsure: Touched[Query]) -> dict[Query, set[Key] | None | Fault]:
        """Ask the database which of the rows match.

        :return: by query the keys of those that do; ``None`` where there was no time for it.
        """
        until = perf_counter() + STEP_SECONDS
        made: dict[Query, set[Key] | None | Fault] = {}
        for query, rows in unsure.items():
            if perf_counter() > until:
                made[query] = None
                continue
            key = self._watched[query.question.model].key
            where = query.question.where
            plan = Plan(
                action="read",
                model=query.plan.model,
                shape=("read", (), where.shape, ()),
                slots=where.slots,
            )
            statement = self._store.execution.keyed(plan, key.columns, (), key.condition)
            matching: set[Key] = set()
            keys = list(rows)
            for start in range(0, len(keys), KEYS_AT_ONCE):
                some = key.encode(keys[start : start + KEYS_AT_ONCE])
                try:
                    found = self._changes.run(statement.sql, bind(plan, statement.parameters, RESULT_BYTES, some))
                except Fault as fault:
                    if fault.kind in PASSING:
                        raise
                    # In its snapshot nothing can be read any more.
                    made[query] = fault
                    return made
                matching.update(row[0] if len(row) == 1 else row for row in found)
            made[query] = matching
        return made

    def read_anew(self, stale: Sequence[Query]) -> list[tuple[Query, Form, list[tuple[Any, ...]] | Fault]]:
        """Read the rows of queries anew, as many as there is time for."""
        until = perf_counter() + STEP_SECONDS
        made: list[tuple[Query, Form, list[tuple[Any, ...]] | Fault]] = []
        for query in stale:
            if made and perf_counter() > until:
                break
            model = query.plan.model
            form = Form(model, query.question.fields + query.view.beside, query.raw, self._is_sqlite)
            plan = wide(query, form)
            key = self._watched[query.question.model].key
            statement = self._store.execution.keyed(plan, key.columns, form.raw)
            parameters = bind(plan, statement.parameters, MAX_BYTES)
            begun = perf_counter()
            try:
                most = None if statement.max_bytes is None else MAX_BYTES
                rows: list[tuple[Any, ...]] | Fault = []
                if not plan.nothing:
                    rows = self._changes.run(statement.sql, parameters, most)
                query.took = perf_counter() - begun
            except Fault as fault:
                if fault.kind in PASSING:
                    raise
                rows = fault
            made.append((query, form, rows))
            if isinstance(rows, Fault):
                # In this snapshot nothing can be read any more.
                break
        return made

    def read_members(self, unknown: Sequence[Membership]) -> list[tuple[Membership, dict[Key, None]]]:
        """Read which rows conditions find, of as many as there is time for."""
        until = perf_counter() + MEMBER_SECONDS
        made: list[tuple[Membership, dict[Key, None]]] = []
        for membership in unknown:
            if made and perf_counter() > until:
                break
            name = membership.model.name
            watched = self._memberships.watched(name)
            if watched is None:
                continue
            plan = membership.plan
            statement = self._store.execution.keyed(plan, watched.key.columns, ())
            try:
                rows = self._changes.run(statement.sql, bind(plan, statement.parameters, RESULT_BYTES))
            except Fault as fault:
                if fault.kind not in PASSING:
                    self.distrusted.add(name)
                raise
            made.append((membership, {row[0] if len(row) == 1 else row: None for row in rows}))
        return made


def wide(query: Query, form: Form) -> Plan:
    """The plan of the read of ``query``, with all that is needed of its rows, and as many as are."""
    plan = query.plan
    _, _, where, order = plan.shape
    slots = (*plan.slots[:-2], ("int", query.reads), ("int", 0))
    return Plan(
        action="read",
        model=plan.model,
        shape=("read", form.names, where, order),
        slots=slots,
        returning=form.names,
        nothing=plan.nothing,
    )


def merge(into: Keys, name: str, keys: set[Key] | None) -> None:
    """Have ``keys`` of a model among those that have changed; ``None`` is any of its rows."""
    before = into.setdefault(name, set())
    if before is None or keys is None:
        into[name] = None
    else:
        before |= keys
