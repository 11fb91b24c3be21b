"""The tables of a PostgreSQL database, from its catalogue (PostgreSQL documentation, "System Catalogs")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from zcomm.data.catalog import Relation, UniqueKey, misspelt
from zcomm.errors import ConfigError

__all__ = ["find_constraints", "find_relations"]

_KINDS = {"r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table"}
_ON_DELETE = {"c": "cascade", "n": "set null"}
#: Of a trigger: that it is none by which a table is watched for live queries, which leaves rows and session alone.
_OTHERS = """
    NOT EXISTS (
        SELECT FROM pg_proc l WHERE l.oid = t.tgfoid AND l.pronamespace = to_regnamespace('zcomm')
        AND left(l.proname, 4) = 'log_'
    )
"""

#: Names are looked up as statements look them up, in each schema of the search path. What may be done is asked for the
#: table as a whole and for its columns, of which one will do. A view tells what it passes on by itself or by triggers
#: (8 insert, 4 update, 16 delete: 1 << CmdType). Of a rule that does something else in the place of a change the server
#: says that it changed no row.
_RELATIONS = sa.text(
    """
    SELECT wanted.name, c.oid, c.relkind::text,
        has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT'),
        has_table_privilege(c.oid, 'INSERT') OR has_any_column_privilege(c.oid, 'INSERT'),
        has_table_privilege(c.oid, 'UPDATE') OR has_any_column_privilege(c.oid, 'UPDATE'),
        has_table_privilege(c.oid, 'DELETE'),
        CASE WHEN c.relkind IN ('r', 'p') THEN 28 WHEN c.relkind = 'm' THEN 0
            ELSE pg_relation_is_updatable(c.oid, true) END,
        (
            SELECT coalesce(bit_or(1 << CAST(CAST(r.ev_type AS text) AS int)), 0) FROM pg_rewrite r
            WHERE r.ev_class = c.oid AND r.is_instead AND r.ev_type IN ('2', '4')
            AND CAST(r.ev_action AS text) ~ '\\:commandType [1-4] '
            AND CAST(r.ev_action AS text) NOT LIKE '%\\:commandType ' || CAST(r.ev_type AS text) || ' %'
        ),
        EXISTS (
            SELECT FROM pg_trigger t WHERE NOT t.tgisinternal AND {others} AND t.tgtype & 2 = 0 AND t.tgtype & 20 <> 0
            AND (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
        ) OR EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'),
        EXISTS (
            SELECT FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgtype & 6 = 6
            AND (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
        ),
        EXISTS (
            SELECT FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgtype & 66 <> 0 AND t.tgtype & 20 <> 0
            AND (t.tgrelid = c.oid OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))
        ) OR EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'),
        n.nspname,
        ARRAY(
            SELECT quote_ident(m.nspname) || '.' || quote_ident(h.relname)
            FROM pg_inherits i JOIN pg_class h ON h.oid = i.inhrelid JOIN pg_namespace m ON m.oid = h.relnamespace
            WHERE i.inhparent = c.oid AND c.relkind = 'r' AND NOT EXISTS (
                SELECT FROM pg_depend d WHERE d.deptype = 'e' AND d.objid = m.oid
                AND d.classid = CAST('pg_namespace' AS regclass)
            ) ORDER BY 1
        ),
        c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)
    FROM unnest(CAST(:names AS text[])) AS wanted (name)
    JOIN pg_class c ON c.oid = to_regclass(quote_ident(wanted.name))
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't'
    """.replace("{others}", _OTHERS)
)
_COLUMNS = sa.text(
    """
    SELECT a.attrelid, a.attname, a.attnotnull, a.atthasdef OR a.attidentity <> '' OR EXISTS (
        SELECT FROM pg_type t WHERE t.oid = a.atttypid AND t.typdefault IS NOT NULL
    ), a.attidentity = 'a' OR a.attgenerated <> ''
    FROM pg_attribute a WHERE a.attrelid = ANY(CAST(:oids AS oid[])) AND a.attnum > 0 AND NOT a.attisdropped
    """
)
_UNIQUES = sa.text(
    """
    SELECT i.indrelid,
        ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid
            AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1])),
        CASE WHEN NOT i.indisvalid THEN 'an index that is not valid'
            WHEN NOT i.indimmediate THEN 'deferrable'
            WHEN i.indpred IS NOT NULL THEN 'an index on some of its rows'
            WHEN i.indexprs IS NOT NULL THEN 'an index on an expression' ELSE '' END
    FROM pg_index i WHERE i.indisunique AND i.indrelid = ANY(CAST(:oids AS oid[]))
    """
)
#: The tables with which code of the database's users runs: triggers, rules, policies, views, and functions in what is
#: evaluated for a row, of the table itself, of what is below it, and of what its foreign keys change with it.
_DISTURBING = sa.text(
    """
    WITH RECURSIVE touched (root, oid) AS (
        SELECT oid, oid FROM pg_class WHERE oid = ANY(CAST(:oids AS oid[]))
        UNION
        SELECT touched.root, next.oid FROM touched, LATERAL (
            SELECT inhrelid FROM pg_inherits WHERE inhparent = touched.oid
            UNION ALL
            SELECT conrelid FROM pg_constraint WHERE confrelid = touched.oid
                AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
        ) AS next (oid)
    )
    SELECT DISTINCT touched.root FROM touched JOIN pg_class c ON c.oid = touched.oid
    WHERE c.relkind NOT IN ('r', 'p') OR c.relrowsecurity
        OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND {others})
        OR EXISTS (SELECT FROM pg_rewrite r WHERE r.ev_class = c.oid)
        OR EXISTS (
            SELECT FROM pg_depend d JOIN pg_proc p ON p.oid = d.refobjid JOIN pg_language l ON l.oid = p.prolang
            WHERE d.refclassid = CAST('pg_proc' AS regclass) AND l.lanname NOT IN ('internal', 'c')
            AND (d.classid, d.objid) IN (
                SELECT CAST('pg_attrdef' AS regclass), oid FROM pg_attrdef WHERE adrelid = c.oid
                UNION ALL
                SELECT CAST('pg_class' AS regclass), indexrelid FROM pg_index WHERE indrelid = c.oid
                UNION ALL
                SELECT CAST('pg_constraint' AS regclass), oid FROM pg_constraint WHERE conrelid = c.oid
                    OR contypid IN (SELECT atttypid FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0)
            )
        )
    """.replace("{others}", _OTHERS)
)
#: Whether triggers may wait for the end of a transaction: those of any table, to which code of this one may write.
_DEFERRING = sa.text("SELECT EXISTS (SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgdeferrable)")
_REFERENCES = sa.text(
    """
    SELECT k.conrelid, a.attname, p.relname, b.attname, k.confdeltype::text
    FROM pg_constraint k JOIN pg_class p ON p.oid = k.confrelid
    JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
    JOIN pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = k.confkey[1]
    WHERE k.contype = 'f' AND cardinality(k.conkey) = 1 AND k.conrelid = ANY(CAST(:oids AS oid[]))
    """
)
_NAMES = sa.text(
    "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_table_is_visible(oid)"
)
#: Of a partition it is the partition's own that an error names.
_CONSTRAINTS = sa.text(
    """
    WITH tables (oid) AS (
        SELECT to_regclass(quote_ident(name)) FROM unnest(CAST(:names AS text[])) AS wanted (name)
        UNION
        SELECT p.relid FROM unnest(CAST(:names AS text[])) AS wanted (name),
            pg_partition_tree(to_regclass(quote_ident(name))) p
    ), groups (relation, name, numbers) AS (
        SELECT conrelid, conname, conkey FROM pg_constraint WHERE conkey IS NOT NULL
        UNION
        SELECT i.indrelid, x.relname, (i.indkey::int2[])[0:i.indnkeyatts - 1]
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indisunique
    )
    SELECT c.relname::text, g.name::text, ARRAY(
        SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = g.relation AND a.attnum = ANY(g.numbers)
        ORDER BY array_position(g.numbers, a.attnum)
    )
    FROM groups g JOIN tables t ON t.oid = g.relation JOIN pg_class c ON c.oid = g.relation
    """
)


def find_relations(connection: sa.Connection, names: Mapping[str, str], url: str) -> dict[str, Relation]:
    """Those of the tables ``names`` that are there.

    :param names: the model of each, for errors.
    :param url: the database as the user may see it, for errors.
    :raises ConfigError: for a name that something else than a table has, or that differs in case only.
    """
    wanted = list(names)
    rows = connection.execute(_RELATIONS, {"names": wanted}).fetchall()
    there = {row[0] for row in rows}
    missing = [name for name in wanted if name not in there]
    if missing:
        folded = {each.lower(): each for (each,) in connection.execute(_NAMES)}
        for name in missing:
            # Somebody else may have made it just now.
            if folded.get(name.lower(), name) != name:
                raise misspelt(names[name], folded[name.lower()], url)
    oids = {"oids": [row[1] for row in rows]}
    columns: dict[int, list[Any]] = {}
    for oid, *column in connection.execute(_COLUMNS, oids):
        columns.setdefault(oid, []).append(column)
    uniques: dict[int, list[UniqueKey]] = {}
    for oid, keys, flaw in connection.execute(_UNIQUES, oids):
        uniques.setdefault(oid, []).append(UniqueKey(frozenset(keys), flaw))
    references: dict[int, list[tuple[str, str, str, str]]] = {}
    for oid, name, target, field, on_delete in connection.execute(_REFERENCES, oids):
        references.setdefault(oid, []).append((name, target, field, _ON_DELETE.get(on_delete, "restrict")))
    disturbing = {oid for (oid,) in connection.execute(_DISTURBING, oids)}
    deferring = bool(connection.execute(_DEFERRING).scalar())
    found = {}
    for name, oid, form, selects, inserts, updates, deletes, passes, untold, *facts in rows:
        rereads, fills, skips, namespace, heirs, only = facts
        kind = _KINDS.get(form)
        if kind is None:
            raise ConfigError(
                url, f"model {names[name]}: there is something of this name that is no table; rename the model"
            )
        here = columns.get(oid, [])
        found[name] = Relation(
            kind=kind,
            columns=frozenset(column[0] for column in here),
            uniques=tuple(uniques.get(oid, ())),
            references=frozenset(references.get(oid, ())),
            nullable=frozenset(column for column, not_null, *_ in here if not not_null),
            made=frozenset(column for column, _, made, _ in here if made),
            fixed=frozenset(column for column, *_, fixed in here if fixed),
            perhaps=kind in ("view", "foreign table") or fills,
            lacks=_lacks(kind, passes, untold, (selects, inserts, updates, deletes)),
            rereads=rereads or kind != "table" or (deferring and oid in disturbing),
            defers=deferring and oid in disturbing,
            skips=skips or kind != "table",
            disturbs=oid in disturbing,
            namespace=namespace,
            heirs=tuple(heirs),
            only=only,
        )
    return found


def _lacks(kind: str, passes: int, untold: int, rights: tuple[bool, bool, bool, bool]) -> dict[str, str]:
    """What cannot be done with a relation, and why."""
    selects, *writes = rights
    lacks = {}
    if not selects:
        lacks["read"] = "it grants no SELECT"
    for (action, bit), granted in zip((("create", 8), ("update", 4), ("delete", 16)), writes, strict=True):
        if not passes & bit:
            lacks[action] = f"it has a {kind} there"
        elif not granted or not selects:
            lacks[action] = "it does not grant that"
        elif untold & bit:
            lacks[action] = "a rule does something else there and does not tell to how many rows; a trigger would"
    return lacks


def find_constraints(connection: sa.Connection, names: Iterable[str]) -> dict[tuple[str, str], tuple[str, ...]]:
    """The columns of each constraint and unique index of tables, by table and name."""
    rows = connection.execute(_CONSTRAINTS, {"names": list(names)})
    return {(table, name): tuple(columns) for table, name, columns in rows}
