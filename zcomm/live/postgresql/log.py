"""The rows of PostgreSQL that have changed, whoever changed them (see :class:`zcomm.live.log.ChangeLog`).

Triggers write the keys into a log (:mod:`zcomm.live.postgresql.tables`) while somebody watches
(:mod:`zcomm.live.postgresql.lock`). A step reads of it what its snapshot sees and the one of the step before did not:
nothing is missed whatever transactions do, how long they last and in which order they end.

Changes that no trigger of a statement sees are not seen: those that logical replication brings, which knows triggers of
rows alone, those of foreign tables, and those of whoever drops or disables the triggers, until these are compared.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger

from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.postgresql import PostgreSQLDatabase
from zcomm.data.models import Model, Schema
from zcomm.live.log import READ_SECONDS, Changes, Key, KeyForm
from zcomm.live.postgresql.lock import STALE, Holder, clean
from zcomm.live.postgresql.tables import (
    INSTALL_LOCK,
    LOCK,
    SHAPES,
    Table,
    base_sql,
    find_tables,
    function_source,
    function_sql,
    grants_sql,
    key_form,
    keys_of,
    quoted,
    removal_sql,
    settings_of,
    source_version,
    trigger_sql,
)

__all__ = ["PostgreSQLLog", "Status"]

#: Seconds between two comparisons of the triggers, between two messages that we are there, and between two looks at a
#: log that nobody may be writing.
COMPARE_EVERY, RENEW_EVERY, ASK_EVERY = 60.0, 10.0, 1.0
#: Seconds between two cleanings by whoever does not hold the lock: whoever does may be stopped.
CLEAN_EVERY = 10.0
#: Seconds between two looks at what was altered of tables, and of these for each table: some 33 us of the database's.
SHAPES_EVERY, SHAPES_OF_ONE = 0.25, 0.01
#: How many keys a step takes, and of one model.
MAX_KEYS, MAX_MODEL_KEYS = 100_000, 50_000
#: How long a step waits for tables, and an installation: while it waits, writers wait behind it.
STEP_LOCK, INSTALL_WAIT = "100ms", "500ms"
#: Seconds after which there is a step for the sake of a table that somebody keeps locked; any other tries as well.
AWAY_EVERY = 0.1
#: Milliseconds for what is read in a step; what the log is asked for takes what it takes.
_READ_TIMEOUT = round(READ_SECONDS * 1000)
#: How often an installation is tried where a table is in use.
ATTEMPTS = 4
#: Since when PostgreSQL has transaction numbers that do not come again.
OLDEST = 130000

_FACTS = """
SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.pg_is_in_recovery(),
    CURRENT_USER::text,
    pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
    (SELECT pg_catalog.pg_get_userbyid(n.nspowner)::text FROM pg_catalog.pg_namespace AS n
        WHERE n.oid OPERATOR(pg_catalog.=) pg_catalog.to_regnamespace('zcomm'))
"""
#: Whether the tables of the schema are there, and grant what is needed.
_BASE = """
SELECT coalesce(pg_catalog.string_agg(
    c.relname || '.' || a.attname || ' ' || t.typname, ', ' ORDER BY c.relname::text || '.' || a.attname COLLATE "C"
), ''), coalesce(pg_catalog.bool_and(
    pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
    AND pg_catalog.has_table_privilege(c.oid, 'INSERT') AND pg_catalog.has_table_privilege(c.oid, 'DELETE')
    AND (c.relname OPERATOR(pg_catalog.=) 'changes' OR pg_catalog.has_table_privilege(c.oid, 'UPDATE'))
), false) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n
    ON n.oid OPERATOR(pg_catalog.=) c.relnamespace AND n.nspname OPERATOR(pg_catalog.=) 'zcomm'
JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0
    AND NOT a.attisdropped
JOIN pg_catalog.pg_type AS t ON t.oid OPERATOR(pg_catalog.=) a.atttypid
WHERE c.relname IN ('changes', 'life', 'feeds')
"""
_COLUMNS = (
    "changes.keys jsonb, changes.relation text, changes.xid xid8, feeds.id int8, feeds.read xid8, "
    "feeds.seen timestamptz, life.id int8, life.pid int4, life.since timestamptz"
)
_OTHER_SCHEMA = "the schema zcomm has tables of something else by the names of ours (changes, life, feeds); rename them"
_FUNCTIONS = """
SELECT p.proname::text, p.prosrc, coalesce(p.proconfig, '{}')::text[], p.prosecdef,
    pg_catalog.pg_has_role(p.proowner, 'USAGE'),
    pg_catalog.has_schema_privilege(p.proowner, 'zcomm', 'USAGE')
        AND pg_catalog.has_table_privilege(p.proowner, 'zcomm.changes', 'INSERT'),
    pg_catalog.pg_get_userbyid(p.proowner)::text
FROM pg_catalog.pg_proc AS p WHERE p.pronamespace OPERATOR(pg_catalog.=) pg_catalog.to_regnamespace('zcomm')
    AND p.proname::text OPERATOR(pg_catalog.=) ANY (%s::text[])
"""
#: That nobody else installs meanwhile, and that a table in use is not waited for for long: writers wait behind us.
_INSTALL = (
    f"SET LOCAL lock_timeout = '{INSTALL_WAIT}'",
    f"SELECT pg_catalog.pg_advisory_xact_lock({INSTALL_LOCK})",
)
_REGISTER = """
INSERT INTO zcomm.feeds (id, read) VALUES (
    %s::pg_catalog.int8, pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())
) ON CONFLICT (id) DO UPDATE SET read = excluded.read, seen = excluded.seen
"""
_RENEW = """
UPDATE zcomm.feeds SET seen = pg_catalog.clock_timestamp(),
    read = CASE WHEN %s::text IS NULL THEN read ELSE pg_catalog.pg_snapshot_xmin(%s::pg_catalog.pg_snapshot) END
WHERE id OPERATOR(pg_catalog.=) %s::pg_catalog.int8
"""
#: Who holds the lock, and in which file the log is: it has another one when somebody has emptied it by TRUNCATE.
_LIFE = "pg_catalog.concat(l.id, ' ', pg_catalog.pg_relation_filenode('zcomm.changes'::pg_catalog.regclass))"
#: In the place of the tables as they are where nobody looks: to plan that takes longer than the rest.
_NO_SHAPES = "CAST(NULL AS pg_catalog.jsonb)"
#: The snapshot; that, and whether nobody holds the lock; whether we are registered; the tables as they are.
_STATE = f"""
pg_catalog.jsonb_build_array(
    pg_catalog.pg_current_snapshot()::text,
    (SELECT {_LIFE} FROM zcomm.life AS l LIMIT 1),
    coalesce((
        SELECT pg_catalog.pg_try_advisory_xact_lock_shared(l.id) FROM (SELECT id FROM zcomm.life LIMIT 1) AS l
    ), true),
    EXISTS (SELECT FROM zcomm.feeds AS f WHERE f.id OPERATOR(pg_catalog.=) %s::pg_catalog.int8),
    {_NO_SHAPES}, pg_catalog.set_config('enable_seqscan', %s, true), pg_catalog.set_config('jit', %s, true),
    pg_catalog.set_config('statement_timeout', '{_READ_TIMEOUT}', true)
)
"""  # noqa: S608 (constants and quoted names)
_UNSEEN = """
    c.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmax(%s::pg_catalog.pg_snapshot)
    OR c.xid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(%s::pg_catalog.pg_snapshot)))
"""
#: What this snapshot sees and an earlier one did not; of too many keys only that they are many.
_CHANGES = f"""
WITH fresh AS MATERIALIZED (
    SELECT c.relation, CASE WHEN pg_catalog.sum(pg_catalog.jsonb_array_length(c.keys))
        OVER (ROWS UNBOUNDED PRECEDING) OPERATOR(pg_catalog.<=) {MAX_KEYS} THEN c.keys END AS keys
    FROM zcomm.changes AS c WHERE {_UNSEEN}
)
SELECT NULL AS relation, {_STATE} AS keys
UNION ALL SELECT f.relation, f.keys FROM fresh AS f WHERE f.keys IS NOT NULL
UNION ALL (SELECT DISTINCT f.relation, NULL::pg_catalog.jsonb FROM fresh AS f WHERE f.keys IS NULL)
"""  # noqa: S608 (constants and quoted names)
_FIRST = f"SELECT NULL AS relation, {_STATE} AS keys"
#: Whether there is something like that, and what else a step would find. One row is looked for by the index, whatever
#: was removed and is still in it.
_CHANGED = f"""
SELECT {_LIFE}, pg_catalog.pg_try_advisory_xact_lock_shared(l.id), (
    SELECT c.xid FROM zcomm.changes AS c
    WHERE c.xid OPERATOR(pg_catalog.>=) pg_catalog.pg_snapshot_xmax(%s::pg_catalog.pg_snapshot)
    ORDER BY c.xid DESC LIMIT 1
) IS NOT NULL OR EXISTS (
    SELECT FROM zcomm.changes AS c
    WHERE c.xid OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT pg_catalog.pg_snapshot_xip(%s::pg_catalog.pg_snapshot)))
), {_NO_SHAPES} FROM (SELECT id FROM zcomm.life LIMIT 1) AS l
"""  # noqa: S608 (constants and quoted names)
#: The log has an index, whatever its statistics say. A serializable transaction that looks at it would make those fail
#: that write it.
_SETTINGS = """
SELECT pg_catalog.current_setting('enable_seqscan'), pg_catalog.current_setting('jit'), pg_catalog.concat(
    pg_catalog.set_config('enable_seqscan', 'off', false), pg_catalog.set_config('jit', 'off', false),
    pg_catalog.set_config('default_transaction_isolation', 'read committed', false)
)
"""
_LOG_SIZE = """
SELECT (SELECT pg_catalog.count(*) FROM zcomm.changes),
    pg_catalog.pg_total_relation_size('zcomm.changes'::pg_catalog.regclass)
"""
_FEEDS = """
SELECT id, extract(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) seen)::pg_catalog.float8
FROM zcomm.feeds ORDER BY 1
"""
_HOLDER = f"""
SELECT a.pid, coalesce(a.client_addr::text, 'local'), extract(epoch FROM a.backend_start)::pg_catalog.float8
FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a ON a.pid OPERATOR(pg_catalog.=) l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' AND l.objsubid = 1
    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
    AND l.classid = {LOCK >> 32} AND l.objid = {LOCK & 0xFFFFFFFF}
"""  # noqa: S608 (constants and quoted names)
_WATCHED = """
SELECT DISTINCT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.pronamespace = pg_catalog.to_regnamespace('zcomm') ORDER BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The state of all this in a database.

    :ivar tables: those with triggers.
    :ivar holder: the process of the server that holds the lock, where it is from, and since when, in seconds since
        1970; ``None`` where nobody watches.
    :ivar rows: of the log.
    :ivar size: of the log, in bytes.
    :ivar feeds: for each server that reads the log, seconds since it was seen.
    """

    tables: tuple[str, ...] = ()
    holder: tuple[int, str, float] | None = None
    rows: int = 0
    size: int = 0
    feeds: Mapping[int, float]


class PostgreSQLLog:
    """The changes of a PostgreSQL database.

    :param database: its driver.
    :param schema_of: the models as they are now, with their columns.
    """

    _log = Logger()

    def __init__(self, database: PostgreSQLDatabase, schema_of: Callable[[], Schema]):
        self._database = database
        self._schema_of = schema_of
        self._connection: Any = None
        self._holder: Holder | None = None
        self._feed = secrets.randbits(62)
        self._registered = False
        #: Whether the schema with the log is there, and may be used.
        self._installed = False
        #: The tables of models, by model, and the models by token, that are to be live; and why each is not watched.
        self._tables: dict[str, Table] = {}
        self._models: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        #: The models that were not watched for a while.
        self._anew: set[str] = set()
        #: Those of which something was altered that has not been looked at.
        self._suspects: set[str] = set()
        #: Those whose tables somebody keeps locked, and when there is a step for them at the latest.
        self._away: dict[str, float] = {}
        self._stepping = self._failed = False
        #: Since when no step has succeeded; 0 where the last one has.
        self._failing_since = 0.0
        #: The snapshot up to which all is known, and the life in which; and those of the step under way.
        self._read: tuple[str, str] | None = None
        self._reading: tuple[str, str] | None = None
        #: Tables as they were by then, by their numbers; and those as they are in the step under way.
        self._shapes: dict[str, str] = {}
        self._seeing: dict[str, str] = {}
        #: The settings by which queries of tables are planned, which are otherwise for the log.
        self._plans = ("on", "on")
        self._role = ""
        self._renew_at = self._compare_at = self._ask_at = self._clean_at = self._shapes_at = 0.0

    # Installing

    @property
    def file(self) -> str:
        return ""

    def prepare(self, models: Sequence[Model]) -> Mapping[str, str]:
        try:
            self._compare_at = time.monotonic() + COMPARE_EVERY
            self._reasons = self._compare(models, ATTEMPTS, self._known())
        except Fault as fault:
            reason = f"the database did not say what is there ({fault.kind}); it is asked again"
            self._reasons = {model.name: reason for model in models}
            self._compare_at = time.monotonic() + RENEW_EVERY
        return dict(self._reasons)

    def _compare(self, models: Iterable[Model], attempts: int, others: Iterable[Model] = ()) -> dict[str, str]:
        """Find out which of ``models`` are watched, and have those watched that can be.

        :param others: those of which no more than the tables is wanted: their rows are read by their keys as well.
        """
        models = list(models)
        everything = dict.fromkeys((model.name for model in models), "")
        before = self._tables
        self._find({model.name: model for model in (*others, *models)}.values())
        # A partition came or went, say.
        self._anew.update(
            name for name, now in self._tables.items() if name in before and before[name].rows != now.rows
        )
        if self._database.pooled:
            return dict.fromkeys(
                everything,
                "a pooler stands before the database, and the lock of those who watch needs a session of its own; give "
                "the server a URL past the pooler",
            )
        ((version, recovers, self._role, creates, owner),) = self._ask(_FACTS)
        if version < OLDEST:
            return dict.fromkeys(everything, "it takes PostgreSQL 13 or later")
        if recovers:
            return dict.fromkeys(everything, "the database is a standby, which takes no writes")
        reasons = dict(everything)
        for model in models:
            table = self._tables.get(model.name)
            if not model.live:
                reasons[model.name] = "its model does not say so, with _model: {live: true}"
            else:
                reasons[model.name] = "it is not there as the schema has it" if table is None else table.unfit
        fit = [model.name for model in models if not reasons[model.name]]
        if not fit:
            return reasons
        refused = self._install_base(creates, owner)
        if refused:
            return {name: reason or refused for name, reason in reasons.items()}
        for name in fit:
            reasons[name] = self._install(name, attempts)
        self._find(models)
        return reasons

    def _find(self, models: Iterable[Model]) -> None:
        """Learn the tables of ``models`` as they are now."""
        models = list(models)
        names = {model.name for model in models}
        # Another thread may look into it.
        self._tables = {name: t for name, t in self._tables.items() if name not in names} | self._look(models)
        self._models = {table.token: name for name, table in self._tables.items()}
        # Those that are new among them are looked at from now on.
        self._shapes_at = 0.0

    def _look(self, models: Iterable[Model]) -> dict[str, Table]:
        keys = {
            ".".join(quoted(name) for name in (model.namespace, model.table) if name): (
                model.name,
                tuple(model.fields[name].column_name for name in model.key),
            )
            for model in models
        }
        found = find_tables(self._ask, {name: columns for name, (_, columns) in keys.items()})
        return {keys[name][0]: table for name, table in found.items()}

    def _install_base(self, creates: bool, owner: str | None) -> str:
        """Have the schema, and the tables in it.

        :return: why they cannot be had; empty when they are there.
        """
        ((there, granted),) = self._ask(_BASE)
        if there != _COLUMNS:
            if owner is None and not creates:
                self._installed = False
                return (
                    f"the role {self._role} may not create the schema zcomm, for which it needs CREATE on the "
                    "database; or have its owner run what `zcomm live sql` prints"
                )
            statements = base_sql() if owner is None else base_sql()[2:]
            try:
                self._transact([*_INSTALL, *statements])
            except Fault as fault:
                self._installed = False
                if there:
                    return _OTHER_SCHEMA
                return f"the schema zcomm cannot be made: {fault.detail}"
            ((there, granted),) = self._ask(_BASE)
        self._installed = there == _COLUMNS and granted
        if self._installed:
            return ""
        if there != _COLUMNS:
            return _OTHER_SCHEMA
        return (
            f"the tables of the schema zcomm grant too little to the role {self._role}; have their owner run what "
            "`zcomm live sql` prints"
        )

    def _install(self, name: str, attempts: int) -> str:
        """Have the triggers of a table as they should be.

        :return: why they are not; empty when they are.
        """
        reason = "its triggers do not stay as they are made"
        for left in range(attempts, -1, -1):
            table = self._tables[name]
            function, owned, reason_of_function = self._function_amiss(table)
            if reason_of_function:
                return reason_of_function
            amiss = table.amiss()
            if not function and not amiss:
                return ""
            if not owned or (amiss and table.owners):
                return (
                    f"the role {self._role} may not make its triggers, as it belongs to "
                    f"{', '.join(table.owners) or 'another role'}; have that role run what `zcomm live sql` prints"
                )
            if not left:
                break
            self._anew.add(name)
            statements = function_sql(table) if function else []
            for member, trigger, there in amiss:
                statements += trigger_sql(table, member, trigger, there)
            try:
                self._transact([*_INSTALL, *statements])
            except Fault as fault:
                if fault.kind in ("lost", "down", "refused", "crowded"):
                    raise
                reason = f"its triggers cannot be made: {fault.detail}"
                if fault.kind == "busy":
                    reason = "others keep its table locked, so that its triggers cannot be made; it is tried again"
                elif fault.kind != "altered":
                    return reason
                # Another server may have made them in the meantime.
            self._find_again(name)
        return reason

    def _find_again(self, name: str) -> None:
        table = self._tables[name]
        found = find_tables(self._ask, {table.name: tuple(column.name for column in table.key)})
        if table.name not in found:
            raise Fault("altered", (), f"the table {table.name} is gone")
        self._tables[name] = found[table.name]

    def _function_amiss(self, table: Table) -> tuple[bool, bool, str]:
        """Whether the function of ``table`` has to be made anew, whether it may be, and why it cannot be as it is."""
        for _, source, config, definer, owned, writes, owner in self._ask(_FUNCTIONS, ([table.function],)):
            if not writes:
                # Each writer of the table would fail.
                return True, False, f"the role {owner}, to which its function belongs, may not write the log"
            newer = source_version(source) > source_version(function_source(table))
            right = source == function_source(table) and sorted(config) == sorted(settings_of(table))
            return not (newer or right) or not definer, owned, ""
        return True, True, ""

    def _transact(self, statements: Iterable[str]) -> None:
        """Run statements in a transaction of their own."""
        connection = self._connected()
        connection.begin()
        try:
            for each in statements:
                connection.run(each, (), False)
            connection.commit()
        except Fault:
            connection.rollback()
            raise

    def live_sql(self, model: Model) -> str:
        """The SQL by which the owner of its table has ``model`` watched.

        :raises ValueError: where it cannot be, with the reason.
        """
        table = self._look([model]).get(model.name)
        if table is None or table.unfit:
            raise ValueError(table.unfit if table else "it is not there as the schema has it")
        self._role = self._ask(_FACTS)[0][2]
        statements = [*base_sql(), *grants_sql(self._role), *function_sql(table)]
        for member, trigger, there in table.amiss():
            statements += trigger_sql(table, member, trigger, there)
        return _script(statements)

    def live_off_sql(self) -> str:
        """The SQL that removes all that was installed, as far as our role may, and the schema where that was all."""
        return _script(removal_sql(self._ask))

    def remove(self) -> None:
        """Remove all that was installed, as far as our role may, and the schema where that was all.

        :raises Fault: ``busy`` where others keep a table locked; nothing is removed then.
        """
        for left in range(ATTEMPTS, -1, -1):
            try:
                return self._transact([*_INSTALL, *removal_sql(self._ask)])
            except Fault as fault:
                if fault.kind not in ("busy", "altered") or not left:
                    raise

    def watched(self) -> list[str]:
        """The tables that have triggers of ours."""
        return [name for (name,) in self._ask(_WATCHED)]

    def status(self) -> Status:
        """The state of all this in the database, whoever watches."""
        tables = tuple(self.watched())
        if self._ask(_BASE) != [(_COLUMNS, True)]:
            return Status(tables=tables, feeds={})
        ((rows, size),) = self._ask(_LOG_SIZE)
        holders = self._ask(_HOLDER)
        return Status(
            tables=tables,
            holder=holders[0] if holders else None,
            rows=rows,
            size=size,
            feeds=dict(self._ask(_FEEDS)),
        )

    # Steps

    def key_form(self, model: Model) -> KeyForm | str:
        table = self._tables.get(model.name)
        if table is None:
            return "its table is not known, or not there as the schema has it"
        return key_form(table, self._database.forms)

    def watch(self) -> None:
        if not self._installed:
            return
        if self._holder is None or not self._holder.alive:
            self._holder = Holder(self._database.connect)
        self._register()

    def _register(self) -> None:
        if not self._registered:
            self._connected().run(_REGISTER, (self._feed,), False)
            self._registered, self._renew_at = True, time.monotonic() + RENEW_EVERY
            # The log may have lost what came before.
            self._read = None

    def begin(self, models: Collection[str]) -> Changes:
        self._failed = False
        self._reading = None
        self._failing_since = self._failing_since or time.monotonic()
        try:
            return self._begin(models)
        except Fault as fault:
            self._rollback()
            if fault.kind not in ("altered", "forbidden"):
                raise
            # Tables were dropped, or the log was. The others are read all the same.
            self._log.warn("The tables of live queries are not as they were: {fault}", fault=fault)
            self._find(self._known())
            self._installed = self._ask(_BASE) == [(_COLUMNS, True)]
            self._compare_at = 0.0
            self._read = None
            return self._begin(models)

    def _begin(self, models: Collection[str], again: bool = False) -> Changes:
        connection = self._connected()
        if self._installed and self._holder is not None:
            self._register()
        self._begin_snapshot(models)
        self._stepping = True
        away = frozenset(self._away)
        anew: dict[str, Collection[Key] | None] = dict.fromkeys(self._anew - away)
        if not self._installed:
            return Changes(anew, all(self._reasons.values()), away)
        numbers = self._numbers()
        state = (self._feed, *_arrays(numbers), *self._plans)
        if self._read is None:
            rows = connection.run(_looking(_FIRST, numbers), state, True)[0]
        else:
            rows = connection.run(_looking(_CHANGES, numbers), (self._read[0], self._read[0], *state), True)[0]
        snapshot, life, free, registered, shapes, *_ = json.loads(rows[0][1])
        if not registered and self._holder is not None:
            self._registered = False
            if not again:
                # Who cleans took us for gone. The log keeps what comes after we are there again.
                self._rollback()
                return self._begin(models, True)
        shapes = shapes or {}
        if altered := self._altered(numbers, shapes):
            # What was read of another table, or by other rights, is not kept beside what is read now.
            found = [name for name, table in self._tables.items() if not altered.isdisjoint(_numbers_of(table))]
            self._suspects.update(found)
            anew |= dict.fromkeys(found)
        self._seeing = {number: each for number, each in self._shapes.items() if number not in numbers} | shapes
        if free or not life or not registered:
            self._unwatched()
            return Changes(anew, False, away)
        self._reading = (snapshot, life)
        if self._read is None or self._read[1] != life:
            return Changes(anew, False, away)
        keys = self._keys(rows[1:]) | anew
        return Changes({name: each for name, each in keys.items() if name not in away}, True, away)

    def _begin_snapshot(self, models: Collection[str]) -> None:
        """Begin a snapshot of the tables of ``models``, but for those that somebody keeps locked."""
        connection = self._connected()
        settings = {"lock_timeout": f"'{STEP_LOCK}'"}
        if not self._installed:
            # Else by the query of the log.
            settings["statement_timeout"] = str(_READ_TIMEOUT)
        if self._database.pooled:
            connection.begin_snapshot()
            connection.run(_set_local(settings), (), False)
            return
        tables = {
            name: table
            for name in sorted(models)
            if (table := self._tables.get(name)) and table.readable and table.members[0].kind in ("r", "p")
        }
        for name in list(self._away):
            if name not in tables:
                del self._away[name]
            elif self._may_read(tables[name]):
                del self._away[name]
                self._log.info("the live queries of {model} go on", model=name)
            else:
                self._away[name] = time.monotonic() + AWAY_EVERY
        if not self._installed:
            settings |= zip(("enable_seqscan", "jit"), self._plans, strict=True)
        while True:
            names = ", ".join(table.name for name, table in tables.items() if name not in self._away)
            # TRUNCATE and ALTER TABLE empty a table for a snapshot that was there before.
            lock = f"; LOCK TABLE {names} IN ACCESS SHARE MODE" if names else ""
            try:
                connection.begin_snapshot(_set_local(settings) + lock)
                return
            except Fault as fault:
                if fault.kind != "busy":
                    raise
                locked = [name for name in tables if name not in self._away and not self._may_read(tables[name])]
                if not locked:
                    raise
                for name in locked:
                    self._log.info("others keep the table of {model} locked: its live queries stand still", model=name)
                self._away |= dict.fromkeys(locked, time.monotonic() + AWAY_EVERY)
                self._anew.update(locked)

    def _may_read(self, table: Table) -> bool:
        """Whether nobody keeps a table locked, or waits to do so."""
        try:
            self._transact([f"LOCK TABLE {table.name} IN ACCESS SHARE MODE NOWAIT"])
        except Fault as fault:
            if fault.kind != "busy":
                raise
            return False
        return True

    def _numbers(self) -> Collection[str]:
        """The numbers of the tables that are looked at now for what was altered: of all now and then, of none else."""
        if (now := time.monotonic()) < self._shapes_at:
            return ()
        numbers = {number for table in self._tables.values() for number in _numbers_of(table)}
        self._shapes_at = now + max(SHAPES_EVERY, SHAPES_OF_ONE * len(numbers))
        return numbers

    def _altered(self, numbers: Collection[str], shapes: Mapping[str, str]) -> set[str]:
        """Those of some tables that are not as they were at the last step."""
        return {each for each in numbers if each in self._shapes and shapes.get(each) != self._shapes[each]}

    def _keys(self, rows: Sequence[tuple[Any, ...]]) -> dict[str, Collection[Key] | None]:
        keys: dict[str, Any] = {}
        for token, text in rows:
            name = self._models.get(token)
            if name is None:
                continue
            if text is None:
                keys[name] = None
            elif (known := keys.setdefault(name, set())) is not None:
                known.update(keys_of(text, self._tables[name]))
        return {name: None if found is None or len(found) > MAX_MODEL_KEYS else found for name, found in keys.items()}

    def run(self, sql: str, parameters: Sequence[Any], max_bytes: int | None = None) -> list[tuple[Any, ...]]:
        try:
            rows: list[tuple[Any, ...]] = self._connected().run(sql, parameters, True, max_bytes)[0]
            return rows
        except Fault:
            self._failed = True
            raise

    def end(self) -> None:
        stepped, self._stepping = self._stepping, False
        if not stepped:
            return
        self._rollback()
        if not self._failed:
            self._read, self._failing_since = self._reading, 0.0
            self._shapes = self._seeing
            self._anew.intersection_update(self._away)

    def changed(self) -> bool:
        now = time.monotonic()
        has_come = any(self._away.get(name, 0.0) <= now for name in self._anew)
        if not self._installed:
            # Until that is found out, everything is read anew.
            return has_come or (not all(self._reasons.values()) and self._may_ask())
        if self._holder is None:
            return False
        if self._read is None:
            return self._holder.holds or self._may_ask()
        snapshot, life = self._read
        numbers = self._numbers()
        rows = self._ask(_looking(_CHANGED, numbers), (snapshot, snapshot, *_arrays(numbers)))
        if not rows or rows[0][1]:
            self._unwatched()
            return self._may_ask()
        in_life, _, has_changed, text = rows[0]
        shapes = json.loads(text or "{}")
        if self._altered(numbers, shapes) or not shapes.keys() <= self._shapes.keys():
            # For the step, which takes note of those that came as well.
            self._shapes_at = 0.0
            return True
        return has_come or in_life != life or has_changed

    def _may_ask(self) -> bool:
        """Whether it is time for a step that does not know what has changed."""
        now = time.monotonic()
        if now < self._ask_at:
            return False
        self._ask_at = now + ASK_EVERY
        return True

    def _unwatched(self) -> None:
        """Nobody holds the lock, or not yet."""
        if self._holder is not None:
            self._holder.wake()

    # Housekeeping

    def tend(self) -> Mapping[str, str]:
        if self._stepping:
            return {}
        now = time.monotonic()
        if self._installed and self._holder is not None:
            try:
                self._renew(self._holder, now)
            except Fault as fault:
                if fault.kind not in ("altered", "forbidden"):
                    raise
                # Somebody has removed the log.
                self._compare_at = 0.0
        before, known = self._reasons, self._known()
        live = [model for model in known if model.live]
        if now >= self._compare_at:
            self._compare_at = time.monotonic() + COMPARE_EVERY
            self._reasons = self._compare(live, 1, known)
        elif self._suspects:
            suspects = [model for model in known if model.name in self._suspects]
            found = self._compare([model for model in suspects if model.live], 1, suspects)
            self._reasons = {**before, **found}
        else:
            return {}
        self._suspects.clear()
        if self._installed and self._holder is not None and not self._registered:
            self._register()
        return {name: reason for name, reason in self._reasons.items() if reason != before.get(name)}

    def _renew(self, holder: Holder, now: float) -> None:
        """Say that we are there and what we have read, and see to it that somebody keeps the log in order."""
        if not holder.alive:
            self._holder = Holder(self._database.connect)
        if self._failing_since and now - self._failing_since > STALE:
            # The log would grow for as long as no step can read its tables.
            self._registered, self._failing_since = False, now
            self._register()
        if self._registered and now >= self._renew_at:
            self._renew_at = now + RENEW_EVERY
            snapshot = None if self._read is None else self._read[0]
            _, count = self._connected().run(_RENEW, (snapshot, snapshot, self._feed), False)
            self._registered = count == 1
        if not holder.holds and now >= self._clean_at:
            self._clean_at = now + CLEAN_EVERY
            clean(self._connected(), most=1)

    def rest(self) -> None:
        self._read = None
        holder, self._holder = self._holder, None
        if holder is None:
            return
        try:
            if self._installed:
                self._connected().run("DELETE FROM zcomm.feeds WHERE id = %s::pg_catalog.int8", (self._feed,), False)
        except Fault as fault:
            self._log.info("The log of changes keeps this server for {seconds} s: {fault}", seconds=STALE, fault=fault)
        self._registered = False
        holder.stop()

    def close(self) -> None:
        self.rest()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # The connection

    def _known(self) -> list[Model]:
        """The models as they are by now."""
        return list(self._schema_of().models.values())

    def _connected(self) -> Any:
        connection = self._connection
        if connection is not None and (self._stepping or connection.alive()):
            return connection
        if connection is not None:
            connection.close()
        self._connection = None
        connection = self._database.connect()
        if not self._database.pooled:
            ((*plans, _),) = connection.run(_SETTINGS, (), True)[0]
            self._plans = (plans[0], plans[1])
        self._connection = connection
        return connection

    def _ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connected().run(sql, parameters, True)[0]
        return rows

    def _rollback(self) -> None:
        self._stepping = False
        if self._connection is not None:
            self._connection.rollback()


def _set_local(settings: Mapping[str, str]) -> str:
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())


def _numbers_of(table: Table) -> set[str]:
    return {str(member.number[0]) for member in table.members}


def _looking(statement: str, numbers: Collection[str]) -> str:
    """``statement`` with a look at tables, where there are any."""
    return statement.replace(_NO_SHAPES, SHAPES) if numbers else statement


def _arrays(numbers: Collection[str]) -> tuple[str, ...]:
    """The parameters of a look at tables."""
    return (f"{{{','.join(numbers)}}}",) if numbers else ()


def _script(statements: Iterable[str]) -> str:
    """``statements`` as one transaction. Writers of a table wait behind who waits for it."""
    return "".join(f"{each};\n" for each in ("BEGIN", "SET LOCAL lock_timeout = '5s'", *statements, "COMMIT"))
