"""The tables of a SQLite file, from its pragmas."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from zcomm.data.catalog import Relation, UniqueKey, misspelt
from zcomm.data.drivers.sqlite_columns import affinity
from zcomm.errors import ConfigError
from zcomm.text import quoted

__all__ = ["LIVE_NAMES", "LIVE_TABLES", "find_relations", "is_live_trigger", "live_trigger"]

_TABLES = "SELECT name, type, coalesce(sql, '') FROM sqlite_master WHERE type IN ('table', 'view')"
#: Asked of the tables that matter alone: a broken view or a virtual table without its module would fail it.
_COLUMNS = 'SELECT name, "notnull", dflt_value, pk, hidden, type FROM pragma_table_xinfo(?)'
#: The columns of unique indexes; the key of a table is among them, unless it is the number of the row itself.
_UNIQUES = (
    "SELECT m.name, i.name, i.origin, i.partial, x.name, x.cid, x.coll FROM sqlite_master m "
    "JOIN pragma_index_list(m.name) i JOIN pragma_index_xinfo(i.name) x "
    "WHERE m.type = 'table' AND i.\"unique\" AND x.key"
)
_REFERENCES = (
    'SELECT m.name, f.id, f."table", f."from", f."to", f.on_delete '
    "FROM sqlite_master m JOIN pragma_foreign_key_list(m.name) f WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq"
)
#: A table's own word on conflicts, and what is no part of its statement: comments, and names and texts in quotes.
_ON_CONFLICT = re.compile(r"\bON\s+CONFLICT\b", re.IGNORECASE)
_UNREAD = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]", re.DOTALL)
_STRICT = re.compile(r"\)[^)]*\bSTRICT\b[^)]*\Z", re.IGNORECASE)
# Bytes: a schema may have text in it that is not UTF-8.
_TRIGGERS = "SELECT tbl_name, CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master WHERE type = 'trigger'"
#: The beginning of the names of the triggers that log changes for live queries, of any version and of this one, and the
#: tables that these write to.
_LIVE = "zcomm_live_"
LIVE_NAMES = f"{_LIVE}1_"
LIVE_TABLES = ("zcomm_changes", "zcomm_live")
#: What of ``hidden`` says that a column is generated, virtual or stored.
_GENERATED = (2, 3)
_NOTHING: frozenset[str] = frozenset()


def live_trigger(rest: str) -> tuple[str, str]:
    """The name and the statement of a trigger that logs changes for live queries, and does nothing else.

    :param rest: of the statement, from its event on.
    """
    name = f"{LIVE_NAMES}{sha256(rest.encode('utf-8', 'replace')).hexdigest()[:20]}"
    return name, f"CREATE TRIGGER {name} {rest}"


def is_live_trigger(name: bytes, sql: bytes) -> bool:
    """Whether a trigger is as :func:`live_trigger` made it, to the letter: it changes no row of its table."""
    head = f"CREATE TRIGGER {name.decode('utf-8', 'replace')} ".encode()
    digest = name.rpartition(b"_")[2]
    made = live_trigger(sql[len(head) :].decode("utf-8", "replace"))[0].encode()
    return name.startswith(_LIVE.encode()) and sql.startswith(head) and made.rpartition(b"_")[2] == digest


def find_relations(connection: sa.Connection, names: Mapping[str, str], url: str) -> dict[str, Relation]:
    """Those of the tables ``names`` that are there.

    :param names: the model of each, for errors.
    :param url: the database as the user may see it, for errors.
    :raises ConfigError: for a file whose texts are in UTF-16, for a name that is spelt another way, and for foreign
        keys that SQLite could not follow, which would fail each write to the table that they point to.
    """
    encoding = connection.exec_driver_sql("PRAGMA encoding").scalar()
    if encoding != "UTF-8":
        # Bytes that are looked at as text, and the other way round, would be others there.
        raise ConfigError(
            url, f"its texts are in {encoding}; make one in UTF-8 of it with: sqlite3 FILE .dump | sqlite3 NEW"
        )
    coming = set(names)
    statements = {name: (kind, sql) for name, kind, sql in connection.exec_driver_sql(_TABLES)}
    tables = {name: kind for name, (kind, _) in statements.items()}
    folded = {name.lower(): name for name in tables}
    wanted = coming & tables.keys()
    coming -= wanted
    for name in sorted(coming):
        if name.lower() in folded:
            raise misspelt(names[name], folded[name.lower()], url)
    if not wanted:
        return {}
    keys = _foreign_keys(connection, wanted, folded)
    columns = {}
    for name in wanted | {parent for _, parent, _ in keys if parent in tables}:
        try:
            columns[name] = connection.exec_driver_sql(_COLUMNS, (name,)).fetchall()
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_ERROR":
                raise
            # A view of a table that is gone, or a virtual table whose module only its program has.
            raise ConfigError(
                url, f"model {names.get(name, name)}: SQLite cannot use {quoted(name)} here ({error.orig})"
            ) from None
    uniques, rowids = _uniques(connection, columns)
    # A row that is one to one with another has the number of that one, and not the next.
    pointing = {(child, part[1]) for child, _, parts in keys for part in parts}
    numbers = {name: frozenset(each for each in here if (name, each) not in pointing) for name, here in rowids.items()}
    # What is not there yet will be as the schema says.
    for name in coming:
        uniques[name] = [
            UniqueKey(frozenset({to})) for _, parent, parts in keys if parent == name for _, _, to, _ in parts
        ]
    references = _references(keys, uniques, columns, url)
    triggers = connection.exec_driver_sql(_TRIGGERS)
    triggered = {table.lower() for table, name, sql in triggers if not is_live_trigger(name, sql)}
    found = {}
    for name in wanted:
        view = tables[name] == "view"
        here = columns.get(name, ())
        # A view passes nothing on by itself.
        passive = view and name.lower() not in triggered
        found[name] = Relation(
            kind=tables[name],
            columns=frozenset(each[0] for each in here),
            uniques=tuple(uniques.get(name, ())),
            references=frozenset(references.get(name, ())),
            # The number of a row is never null, whatever the table says.
            nullable=frozenset(each[0] for each in here if not each[1]) - rowids.get(name, _NOTHING),
            made=frozenset({each[0] for each in here if _is_made(each)} | numbers.get(name, _NOTHING)),
            fixed=frozenset(each[0] for each in here if each[4] in _GENERATED),
            perhaps=view,
            lacks=dict.fromkeys(("create", "update", "delete"), "it has a view there") if passive else {},
            rereads=name.lower() in triggered,
            skips=name.lower() in triggered,
            lenient=_ON_CONFLICT.search(_UNREAD.sub(" ", statements[name][1])) is not None,
            declared={each[0]: _declared(each, statements[name][1]) for each in here},
        )
    return found


def _declared(column: Any, sql: str) -> tuple[object, ...]:
    """What decides how a column keeps its values, and whether they are a key's.

    :param sql: the statement of its table.
    """
    _, _, _, key, hidden, kind = column
    kept = affinity(kind)
    # The length of a text says something of UUIDs alone. What ANY means depends on the words after the columns.
    word = "" if kept == "TEXT" else kind.partition("(")[0].strip().upper()
    strict = _STRICT.search(_UNREAD.sub(" ", sql)) is not None
    return kind.upper(), kept, word, key > 0, hidden in _GENERATED, strict, sql if word == "ANY" else ""


def _is_made(column: Any) -> bool:
    """Whether a column gets a value of its own; null is none."""
    _, _, default, _, hidden, _ = column
    return hidden != 0 or (default is not None and default.strip("( )").upper() != "NULL")


def _uniques(
    connection: sa.Connection, columns: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, list[UniqueKey]], dict[str, frozenset[str]]]:
    """What is unique in each table, and the column of each that is the number of its row."""
    indexes: dict[tuple[str, str], list[Any]] = {}
    for table, index, *column in connection.exec_driver_sql(_UNIQUES):
        indexes.setdefault((table, index), []).append(column)
    uniques: dict[str, list[UniqueKey]] = {}
    keyed = set()
    for (table, _), parts in indexes.items():
        flaw = "an index on some of its rows" if parts[0][1] else ""
        if any(cid == -2 for *_, cid, _ in parts):
            flaw = "an index on an expression"
        if parts[0][0] == "pk":
            keyed.add(table)
        named = frozenset(name for _, _, name, _, _ in parts if name is not None)
        uniques.setdefault(table, []).append(UniqueKey(named, flaw))
    rowids = {}
    for table, here in columns.items():
        key = [column for column in here if column[3]]
        if table not in keyed and len(key) == 1:
            rowids[table] = frozenset({key[0][0]})
            uniques.setdefault(table, []).append(UniqueKey(rowids[table]))
    return uniques, rowids


def _foreign_keys(
    connection: sa.Connection, wanted: set[str], folded: Mapping[str, str]
) -> list[tuple[str, str, list[Any]]]:
    """The foreign keys from and to tables: the table, the one that it points to, and a part for each column."""
    keys: dict[tuple[str, int], list[Any]] = {}
    for child, number, *rest in connection.exec_driver_sql(_REFERENCES):
        keys.setdefault((child, number), []).append(rest)
    found = [(child, folded.get(parts[0][0].lower(), parts[0][0]), parts) for (child, _), parts in keys.items()]
    return [key for key in found if key[0] in wanted or key[1] in wanted]


def _references(
    keys: list[tuple[str, str, list[Any]]],
    uniques: Mapping[str, list[UniqueKey]],
    columns: Mapping[str, Sequence[Any]],
    url: str,
) -> dict[str, list[tuple[str, str, str, str]]]:
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    for child, parent, parts in keys:
        there = columns.get(parent, ())
        primary = [column[0] for column in sorted(there, key=lambda column: column[3]) if column[3]]
        spelt = {column[0].lower(): column[0] for column in there}
        # Without a column it is the primary key.
        targets = [
            (primary[place] if place < len(primary) else "") if to is None else spelt.get(to.lower(), to)
            for place, (_, _, to, _) in enumerate(parts)
        ]
        if not any(key.columns == frozenset(targets) and not key.flaw for key in uniques.get(parent, [])):
            raise ConfigError(
                url,
                f"table {child}: the foreign key of {', '.join(part[1] for part in parts)} points to "
                f"{parent}.{', '.join(targets)}, which is {'not unique' if there else 'not there'}, so that SQLite "
                "refuses writes; add a UNIQUE index to it or take the foreign key away",
            )
        if len(parts) == 1:
            _, column, _, on_delete = parts[0]
            action = on_delete.lower() if on_delete in ("CASCADE", "SET NULL") else "restrict"
            found.setdefault(child, []).append((column, parent, targets[0], action))
    return found
