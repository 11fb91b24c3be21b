"""Tables of PostgreSQL that are watched: what stands in the catalogue about them, and the SQL that has them watched.

Triggers of statements write the keys of changed rows into an unlogged table, with the transaction that changed them.
A writer pays for that while somebody watches only: who watches holds an advisory lock, and a trigger that gets the same
lock shared, until the end of its transaction, writes nothing. So the lock is had when all who wrote nothing are done.

No trigger may make a write fail that would not fail without it. Its SQL is static, and yet a key's column may be
dropped, go by another name or have another type at any time: a column that is not there is null, of another type as
well, and the keys are not known then, so that the queries of that table are read anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from zcomm.data.drivers.postgresql_columns import text_of
from zcomm.live.log import Key, KeyForm

__all__ = [
    "LOCK",
    "MAX_KEYS",
    "SHAPES",
    "Column",
    "Member",
    "Table",
    "Trigger",
    "base_sql",
    "find_tables",
    "function_source",
    "function_sql",
    "grants_sql",
    "key_form",
    "keys_of",
    "quoted",
    "removal_sql",
    "settings_of",
    "source_version",
    "trigger_sql",
]

#: The advisory lock that who watches holds, and that of who installs: numbers that nobody else has.
LOCK, INSTALL_LOCK = 8746389512605518129, 8746389512605518130
#: The keys that one statement names at most; of more it says that they are many.
MAX_KEYS = 1000
#: Characters of a key that is logged. With a longer one the keys are not known: jsonb has a limit, and a write that
#: exceeds it would fail.
LONGEST = 1000
#: Of the functions and the log: a server leaves alone what a newer one has installed.
VERSION = 1
_VERSION = re.compile(r"\s*-- zcomm ([0-9]+)\s", re.ASCII)

#: Whether a text of statements and of what calls them may have a MERGE; a prepared statement says its name alone.
_MERGES = "OPERATOR(pg_catalog.~*) E'\\\\m(merge|execute)\\\\M'"
_INTEGERS = frozenset({"int2", "int4", "int8"})
_TEXTS = frozenset({"text", "varchar"})
#: Types whose text says all of a value, under the settings that it depends on, and is read under any as that value.
_BY_TEXT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("bpchar", "name", "uuid", "numeric", "bool", "time", "timetz", "oid"), ()),
    **dict.fromkeys(("inet", "cidr", "macaddr", "macaddr8"), ()),
    **dict.fromkeys(("float4", "float8"), ("extra_float_digits",)),
    "bytea": ("bytea_output",),
    **dict.fromkeys(("date", "timestamp"), ("DateStyle",)),
    "timestamptz": ("DateStyle", "TimeZone"),
}
_SETTINGS = {"DateStyle": "ISO", "TimeZone": "UTC", "extra_float_digits": "3", "bytea_output": "hex"}

#: The events that have a trigger, what PostgreSQL keeps of it (``tgtype``), and the tables of rows that it is given.
_TRIGGERS = {
    "insert": (4, None, "n"),
    "update": (16, "o", "n"),
    "delete": (8, "o", None),
    "truncate": (32, None, None),
}

#: A table, all below it whose rows are its rows, and all above any of these, whose statements change such rows; with
#: their triggers. Of depth 0 is the table itself.
_TABLES = """
WITH RECURSIVE wanted AS (
    SELECT w.name, c.oid FROM pg_catalog.unnest(%s::text[]) AS w (name)
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(w.name)
), below AS (
    SELECT name, oid AS member, 0 AS depth FROM wanted
    UNION
    SELECT t.name, i.inhrelid, t.depth OPERATOR(pg_catalog.+) 1 FROM below t
    JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) t.member
), tree AS (
    SELECT name, member, depth FROM below
    UNION
    SELECT t.name, i.inhparent, t.depth OPERATOR(pg_catalog.+) 1 FROM tree t
    JOIN pg_catalog.pg_inherits i ON i.inhrelid OPERATOR(pg_catalog.=) t.member
)
SELECT t.name, t.depth, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname),
    c.oid::int8, c.relfilenode::int8, c.relkind::text,
    pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'),
    pg_catalog.has_table_privilege(c.oid, 'SELECT'),
    coalesce((
        SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
            g.tgname, g.tgtype, g.tgenabled, CASE WHEN g.tgqual IS NULL THEN p.proname::text END, m.nspname,
            g.tgoldtable, g.tgnewtable
        )) FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) g.tgfoid
        JOIN pg_catalog.pg_namespace m ON m.oid OPERATOR(pg_catalog.=) p.pronamespace
        WHERE g.tgrelid OPERATOR(pg_catalog.=) c.oid AND g.tgname OPERATOR(pg_catalog.~) '^zcomm_'
    ), '[]')
FROM tree t JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.member
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
ORDER BY t.name, t.depth, 3
"""
#: The columns of tables, domains unwrapped.
_COLUMNS = """
WITH RECURSIVE base (name, number, attribute, declared, type) AS (
    SELECT w.name, a.attnum, a.attname::text, a.atttypid, a.atttypid FROM pg_catalog.unnest(%s::text[]) AS w (name)
    JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(w.name)
    WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
  UNION ALL
    SELECT b.name, b.number, b.attribute, b.declared, t.typbasetype
    FROM base b JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) b.type
    WHERE t.typtype OPERATOR(pg_catalog.=) 'd'
)
SELECT b.name, b.attribute, t.typname::text, t.typtype::text, n.nspname::text,
    CASE WHEN d.typnamespace OPERATOR(pg_catalog.=) 'pg_catalog'::regnamespace THEN pg_catalog.quote_ident(d.typname)
        ELSE pg_catalog.quote_ident(m.nspname) || '.' || pg_catalog.quote_ident(d.typname) END
FROM base b JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) b.type AND t.typtype OPERATOR(pg_catalog.<>) 'd'
JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
JOIN pg_catalog.pg_type d ON d.oid OPERATOR(pg_catalog.=) b.declared
JOIN pg_catalog.pg_namespace m ON m.oid OPERATOR(pg_catalog.=) d.typnamespace
"""
#: What removes the triggers, and then the functions that no trigger needs any more.
_INSTALLED = """
WITH functions AS (
    SELECT p.oid, p.proname, p.proowner FROM pg_catalog.pg_proc p
    WHERE p.pronamespace OPERATOR(pg_catalog.=) pg_catalog.to_regnamespace('zcomm')
        AND p.prosrc OPERATOR(pg_catalog.~) '^\\s*-- zcomm [0-9]+\\s'
), triggers AS (
    SELECT f.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS relation,
        pg_catalog.quote_ident(g.tgname) AS name, pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned
    FROM functions f JOIN pg_catalog.pg_trigger g ON g.tgfoid OPERATOR(pg_catalog.=) f.oid
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) g.tgrelid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
), statements AS (
    SELECT 1 AS turn, 'DROP TRIGGER IF EXISTS ' || t.name || ' ON ' || t.relation AS statement
    FROM triggers t WHERE t.owned
  UNION ALL
    SELECT 2, 'DROP FUNCTION IF EXISTS zcomm.' || pg_catalog.quote_ident(f.proname) || '()'
    FROM functions f WHERE pg_catalog.pg_has_role(f.proowner, 'USAGE')
        AND NOT EXISTS (SELECT FROM triggers t WHERE t.oid OPERATOR(pg_catalog.=) f.oid AND NOT t.owned)
)
SELECT s.statement FROM statements s ORDER BY s.turn, s.statement
"""

Run = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A trigger of ours as the catalogue has it.

    :ivar kind: ``tgtype``.
    :ivar enabled: ``tgenabled``.
    :ivar function: with its schema; ``None`` where the trigger has a condition.
    """

    name: str
    kind: int
    enabled: str
    function: str | None
    old: str | None
    new: str | None


#: Of tables by their numbers, what is another once one has another name or schema, other columns, rights, partitions,
#: triggers or policies of row security, also where that was undone. Statistics and vacuum change nothing of it.
SHAPES = """
(SELECT pg_catalog.jsonb_object_agg(c.oid, pg_catalog.concat(c.xmin, ' ', (
    SELECT n.xmin FROM pg_catalog.pg_namespace AS n WHERE n.oid OPERATOR(pg_catalog.=) c.relnamespace
), ' ', (
    SELECT pg_catalog.string_agg(a.xmin::text, ',' ORDER BY a.attnum) FROM pg_catalog.pg_attribute AS a
    WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0
), ' ', (
    SELECT pg_catalog.string_agg(pg_catalog.concat(i.inhrelid, ':', i.xmin), ',' ORDER BY i.inhrelid)
    FROM pg_catalog.pg_inherits AS i
    WHERE i.inhparent OPERATOR(pg_catalog.=) c.oid
), ' ', (
    SELECT pg_catalog.string_agg(t.xmin::text, ',' ORDER BY t.oid) FROM pg_catalog.pg_trigger AS t
    WHERE t.tgrelid OPERATOR(pg_catalog.=) c.oid
), ' ', (
    SELECT pg_catalog.string_agg(p.xmin::text, ',' ORDER BY p.oid) FROM pg_catalog.pg_policy AS p
    WHERE p.polrelid OPERATOR(pg_catalog.=) c.oid
))) FROM pg_catalog.pg_class AS c WHERE c.oid OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.oid[]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A table whose statements change rows of a watched one: itself, a partition or an heir, or what it is one of.

    :ivar name: quoted, with its schema.
    :ivar number: of it and of its file, which is another one when its rows were written anew.
    :ivar kind: ``relkind``.
    :ivar owner: the role that may alter it.
    :ivar owned: whether we are that.
    """

    name: str
    number: tuple[int, int]
    kind: str
    owner: str
    owned: bool
    triggers: tuple[Trigger, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a key.

    :ivar base: the name of the type below all domains.
    :ivar form: ``typtype`` of that.
    :ivar namespace: the schema of that.
    :ivar declared: the type itself, quoted, with its schema where it is not PostgreSQL's own.
    """

    name: str
    base: str
    form: str
    namespace: str
    declared: str

    @property
    def builtin(self) -> bool:
        return self.namespace == "pg_catalog"

    @property
    def kind(self) -> str:
        """The way its values are named: as ``int``, as ``text``, ``by text``; ``""`` where they cannot be."""
        if self.builtin and self.base in _INTEGERS:
            return "int"
        if self.builtin and self.base in _TEXTS:
            return "text"
        if self.form == "e" or (self.base == "citext" and self.form == "b") or (self.builtin and self.base in _BY_TEXT):
            return "by text"
        return ""

    @property
    def may_be_long(self) -> bool:
        """Whether its values may be of any length."""
        return self.base in ("text", "varchar", "bpchar", "numeric", "bytea") if self.builtin else self.form != "e"

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of the settings that its text depends on."""
        return _BY_TEXT.get(self.base, ()) if self.builtin else ()

    @property
    def cast(self) -> str:
        return f"{quoted(self.namespace)}.{quoted(self.base)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as it is.

    :ivar name: quoted, with its schema.
    :ivar members: itself first.
    :ivar key: the columns of its key, as the model has it.
    :ivar readable: whether it may be read as a whole, and so be locked.
    """

    name: str
    members: tuple[Member, ...]
    key: tuple[Column, ...]
    readable: bool

    @property
    def token(self) -> str:
        """A name for it where a name may be of 63 characters."""
        plain = re.sub("[^a-z0-9]+", "_", self.name.lower()).strip("_")
        return f"{plain[:40]}_{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def function(self) -> str:
        return f"log_{self.token}"

    def trigger(self, event: str) -> str:
        """The name of a trigger; a partition that is watched by itself has another one of that event."""
        return f"zcomm_{event}_{self.token[-8:]}"

    @property
    def unfit(self) -> str:
        """Why it cannot be watched, whoever asks; empty where it can."""
        kinds = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}
        kind = self.members[0].kind
        if kind in kinds:
            return f"it is {kinds[kind]}, whose rows change without a trigger"
        for each in self.members:
            if each.kind not in ("r", "p"):
                return f"its partition {each.name} is {kinds.get(each.kind, 'no table')}, whose rows change elsewhere"
        if not self.key:
            return "it has no primary key in the schema"
        for column in self.key:
            if not column.kind:
                return (
                    f"its key {column.name} is of type {column.declared}, whose values cannot be told apart by their "
                    "text"
                )
        return ""

    @property
    def owners(self) -> tuple[str, ...]:
        """The roles other than ours that may alter it, or some of it."""
        return tuple(sorted({each.owner for each in self.members if not each.owned}))

    @property
    def rows(self) -> object:
        """Equal as long as no rows of it came, went or changed but by statements that change rows."""
        return {each.number for each in self.members}, self.key

    def amiss(self) -> list[tuple[Member, str, Trigger | None]]:
        """The triggers that are not as they have to be: of which table, of what event, and as they are."""
        found = []
        for member in self.members:
            there = {each.name: each for each in member.triggers}
            for event, (kind, old, new) in _TRIGGERS.items():
                name = self.trigger(event)
                right = Trigger(name=name, kind=kind, enabled="A", function=f"zcomm.{self.function}", old=old, new=new)
                if there.get(name) != right:
                    found.append((member, event, there.get(name)))
        return found


def quoted(name: str) -> str:
    """``name`` as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)


def find_tables(run: Run, names: Mapping[str, tuple[str, ...]]) -> dict[str, Table]:
    """Those of some tables that are there.

    :param run: asks the database.
    :param names: by the table, quoted and with its schema, the columns of its key.
    """
    wanted = list(names)
    members: dict[str, list[Member]] = {}
    readable: dict[str, bool] = {}
    for name, depth, member, oid, file, kind, owner, owned, selects, triggers in run(_TABLES, (wanted,)):
        found = tuple(
            Trigger(
                name=trigger,
                kind=kind_of,
                enabled=enabled,
                function=None if function is None else f"{namespace}.{function}",
                old=old,
                new=new,
            )
            for trigger, kind_of, enabled, function, namespace, old, new in json.loads(triggers)
        )
        members.setdefault(name, []).append(
            Member(name=member, number=(oid, file), kind=kind, owner=owner, owned=owned, triggers=found)
        )
        if depth == 0:
            readable[name] = selects
    columns: dict[str, dict[str, Column]] = {}
    for name, column, base, form, namespace, declared in run(_COLUMNS, (wanted,)):
        columns.setdefault(name, {})[column] = Column(
            name=column, base=base, form=form, namespace=namespace, declared=declared
        )
    tables = {}
    for name, key in names.items():
        if name in members and all(column in columns.get(name, {}) for column in key):
            # One that inherits in two ways is there twice.
            unique = tuple({each.name: each for each in members[name]}.values())
            tables[name] = Table(
                name=name,
                members=unique,
                key=tuple(columns[name][column] for column in key),
                readable=readable[name],
            )
    return tables


def base_sql() -> list[str]:
    """The statements that make the schema and the tables in it. The log keeps no row of its own for long: what is read
    is removed, so that its space is taken up again."""
    return [
        "CREATE SCHEMA IF NOT EXISTS zcomm",
        "COMMENT ON SCHEMA zcomm IS 'zComm: which rows have changed, for live queries'",
        "CREATE UNLOGGED TABLE IF NOT EXISTS zcomm.changes ("
        "xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), relation text NOT NULL, keys jsonb) WITH ("
        "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, "
        "autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off)",
        "CREATE INDEX IF NOT EXISTS changes_xid ON zcomm.changes (xid)",
        "CREATE UNLOGGED TABLE IF NOT EXISTS zcomm.life ("
        "id bigint NOT NULL, pid int NOT NULL DEFAULT pg_catalog.pg_backend_pid(), "
        "since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())",
        "CREATE UNLOGGED TABLE IF NOT EXISTS zcomm.feeds ("
        "id bigint PRIMARY KEY, read xid8 NOT NULL, seen timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())",
    ]


def grants_sql(role: str) -> list[str]:
    """The statements that let ``role`` watch where somebody else has installed it."""
    return [
        f"GRANT USAGE ON SCHEMA zcomm TO {quoted(role)}",
        f"GRANT SELECT, INSERT, DELETE, TRUNCATE ON zcomm.changes TO {quoted(role)}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON zcomm.life, zcomm.feeds TO {quoted(role)}",
    ]


def settings_of(table: Table) -> list[str]:
    """The settings of a function, as the catalogue has them; each costs as much as all that an empty function does.

    None has a search path: all that its SQL names is named with its schema.
    """
    depends = sorted({name for column in table.key if column.kind == "by text" for name in column.settings})
    return [f"{name}={_SETTINGS[name]}" for name in depends]


def function_source(table: Table) -> str:
    """The body of the function of ``table``."""
    numbers = range(1, len(table.key) + 1)
    names = [quoted(column.name) for column in table.key]
    #: A name that the rows of a table lack is looked up further out, and there each is null.
    missing = ", ".join(f"NULL::pg_catalog.text AS {name}" for name in names)
    found = ", ".join(f"{name} AS k{number}" for name, number in zip(names, numbers, strict=True))
    values = ", ".join(
        f"CASE WHEN pg_catalog.pg_typeof(k.k{number}) OPERATOR(pg_catalog.=) {_type(column)}"
        f"{_is_short(number) if column.may_be_long else ''} THEN k.k{number}"
        f"{'' if column.kind in ('int', 'text') else '::pg_catalog.text'} END AS k{number}"
        for column, number in zip(table.key, numbers, strict=True)
    )

    def keys(rows: str) -> str:
        return (
            f"(SELECT {values} FROM {rows} AS t, (SELECT {missing}) AS f, "  # noqa: S608 (constants and quoted names)
            f"LATERAL (SELECT {found} FROM (SELECT t.*) AS q) AS k LIMIT {MAX_KEYS + 1})"
        )

    same, size = "OPERATOR(pg_catalog.=)", "pg_catalog.cardinality(a.keys)"
    insert = "INSERT INTO zcomm.changes (relation, keys) "

    def logged(rows: str, most: int) -> str:
        if len(table.key) > 1:
            known = " AND ".join(f"k{number} IS NOT NULL" for number in numbers)
            key = f"pg_catalog.jsonb_build_array({', '.join(f'k{number}' for number in numbers)})"
            rows = f"SELECT CASE WHEN {known} THEN {key} END FROM ({rows}) AS k"  # noqa: S608 (constants)
        # An array takes three quarters of the time that an aggregate does; it is made once, as OFFSET keeps it apart.
        return (
            f"{insert}SELECT {_literal(table.token)}, "  # noqa: S608 (constants and quoted names)
            f"CASE WHEN {size} OPERATOR(pg_catalog.<=) {most} AND pg_catalog.array_position(a.keys, NULL) IS NULL "
            f"THEN pg_catalog.to_jsonb(a.keys) END FROM (SELECT ARRAY({rows}) AS keys OFFSET 0) AS a "
            f"WHERE {size} OPERATOR(pg_catalog.>) 0;"
        )

    updated = logged(f"{keys('n')} UNION ALL {keys('o')}", 2 * MAX_KEYS)
    declared = ""
    if any(each.kind == "p" for each in table.members):
        # A row that MERGE moves to another partition is in no transition table of its UPDATE (PostgreSQL 15 to 18).
        declared = "DECLARE\n  zcomm_context text;"
        updated = f"""GET DIAGNOSTICS zcomm_context = PG_CONTEXT;
    IF pg_catalog.concat(pg_catalog.current_query(), zcomm_context) {_MERGES} THEN
      {insert}VALUES ({_literal(table.token)}, NULL);
    ELSE
      {updated}
    END IF;"""
    return f"""
-- zcomm {VERSION}
#variable_conflict use_column
{declared}
BEGIN
  IF pg_catalog.pg_try_advisory_xact_lock_shared({LOCK}) THEN
    RETURN NULL;
  END IF;
  IF TG_OP {same} 'INSERT' THEN
    {logged(keys("n"), MAX_KEYS)}
  ELSIF TG_OP {same} 'UPDATE' THEN
    {updated}
  ELSIF TG_OP {same} 'DELETE' THEN
    {logged(keys("o"), MAX_KEYS)}
  ELSE
    {insert}VALUES ({_literal(table.token)}, NULL);
  END IF;
  RETURN NULL;
END
"""


def _is_short(number: int) -> str:
    return f" AND pg_catalog.length(k.k{number}::pg_catalog.text) OPERATOR(pg_catalog.<=) {LONGEST}"


def _type(column: Column) -> str:
    if column.builtin and column.declared == column.base:
        return f"'{column.cast}'::pg_catalog.regtype"
    # A type that goes by another name by now is none.
    return f"(SELECT pg_catalog.to_regtype({_literal(column.declared)}))"


def function_sql(table: Table) -> list[str]:
    """The statements that make the function of ``table``, or make it as it has to be."""
    name = f"zcomm.{table.function}()"
    source, mark = function_source(table), "$zcomm$"
    while mark in source:
        mark = f"{mark[:-1]}_$"
    sets = "".join(
        f" SET {setting} TO {_literal(value)}"
        for setting, _, value in (each.partition("=") for each in settings_of(table))
    )
    return [
        f"CREATE OR REPLACE FUNCTION {name} RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER{sets} "
        f"AS {mark}{source}{mark}",
        f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC",
    ]


def trigger_sql(table: Table, member: Member, event: str, there: Trigger | None) -> list[str]:
    """The statements that make a trigger as it has to be."""
    kind, old, new = _TRIGGERS[event]
    name = table.trigger(event)
    always = f"ALTER TABLE {member.name} ENABLE ALWAYS TRIGGER {name}"
    function = f"zcomm.{table.function}"
    if there is not None and (there.kind, there.function, there.old, there.new) == (kind, function, old, new):
        return [always]
    rows = "".join(f" {which} TABLE AS {rows}" for which, rows in (("OLD", old), ("NEW", new)) if rows is not None)
    return [
        *([] if there is None else [f"DROP TRIGGER {name} ON {member.name}"]),
        f"CREATE TRIGGER {name} AFTER {event.upper()} ON {member.name}{' REFERENCING' if rows else ''}{rows} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
        always,
    ]


def removal_sql(run: Run) -> list[str]:
    """The statements that remove all that was installed and that our role may remove, and the schema when nothing of it
    is needed any more.

    It goes by what there is, not by models: a partition may be detached by now, a table be called otherwise or be in no
    schema any more, and each of these has its triggers still.
    """
    return [
        *(statement for (statement,) in run(_INSTALLED, ())),
        """DO $zcomm$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.pronamespace = pg_catalog.to_regnamespace('zcomm')) THEN
    DROP TABLE IF EXISTS zcomm.changes, zcomm.life, zcomm.feeds;
    DROP SCHEMA IF EXISTS zcomm;
  END IF;
EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
  RAISE NOTICE 'something else is in the schema zcomm, or it belongs to another role, and stays';
END
$zcomm$""",
    ]


def source_version(source: str) -> int:
    """The version of the function with this body; 0 for one that is not ours."""
    found = _VERSION.match(source)
    return 0 if found is None else int(found[1])


def keys_of(text: str, table: Table) -> list[Key]:
    """The keys in a row of the log."""
    keys: list[Any] = json.loads(text)
    return keys if len(table.key) == 1 else [tuple(key) for key in keys]


def key_form(table: Table, forms: Mapping[str, tuple[str, str]]) -> KeyForm | str:
    """The keys of ``table`` in SQL; or why its rows cannot be named, in words of the table.

    :param forms: as of :class:`~zcomm.data.drivers.postgresql_session.Session`.
    """
    if not table.key:
        return "it has no primary key"
    for column in table.key:
        if not column.kind:
            return f"its key {column.name} is of type {column.declared}, whose values have no exact text"

    def shown(column: Column) -> str:
        if column.kind == "by text":
            text = text_of(quoted(column.name), {each: forms[each] for each in column.settings if each in forms})
            # It becomes part of a statement that is made elsewhere.
            return text.replace("%%", "%")
        return quoted(column.name)

    columns = tuple(map(shown, table.key))
    names = [_escaped(quoted(column.name)) for column in table.key]
    if len(table.key) == 1:
        (column,) = table.key
        if column.form == "e":
            given = f"ARRAY({_label(column, 'ANY (%s::pg_catalog.text[])')})"
        else:
            given = f"%s::{_cast(column)}[]"
        return KeyForm(columns, f"{names[0]} = ANY ({given})", list)
    values = (
        f"({_label(column, f'(k.key ->> {number})')})"
        if column.form == "e"
        else f"(k.key ->> {number})::{_cast(column)}"
        for number, column in enumerate(table.key)
    )
    rows = "pg_catalog.jsonb_array_elements(%s::pg_catalog.jsonb) AS k (key)"
    condition = f"({', '.join(names)}) IN (SELECT {', '.join(values)} FROM {rows})"  # noqa: S608 (constants and quoted names)
    return KeyForm(columns, condition, lambda keys: json.dumps(list(keys)))


def _escaped(name: str) -> str:
    return name.replace("%", "%%")


def _cast(column: Column) -> str:
    return "pg_catalog.int8" if column.kind == "int" else _escaped(column.cast)


def _label(column: Column, given: str) -> str:
    """A query for a value of an enum; a cast of a label that is no more would be an error."""
    return (
        f"SELECT e.enumlabel::pg_catalog.text::{_cast(column)} FROM pg_catalog.pg_enum AS e "  # noqa: S608 (constants and quoted names)
        f"WHERE e.enumtypid OPERATOR(pg_catalog.=) {_escaped(_literal(column.cast))}::pg_catalog.regtype "
        f"AND e.enumlabel::pg_catalog.text OPERATOR(pg_catalog.=) {given}"
    )
