"""The triggers by which a table of SQLite has its changes logged, whoever writes to it.

Rows that REPLACE removes fire no trigger, so that those with the same unique values are logged before each write. What
is about to happen is logged before it does, as far as that is known: a trigger of somebody else that ends with
RAISE(IGNORE) would keep those that come after it from running. Nothing here may fail, or the write would.
"""

# ruff: noqa: S608 (names and texts are in quotes, and the rest is the table's own)
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zcomm.data.drivers.sqlite_catalog import is_live_trigger, live_trigger
from zcomm.data.drivers.sqlite_columns import affinity
from zcomm.live.log import Key

__all__ = [
    "CHANGES",
    "LEASES",
    "MAKE_TABLES",
    "Ask",
    "Shape",
    "installed",
    "key_of",
    "label_of",
    "literal",
    "name_in_quotes",
    "shape_of",
    "triggers_of",
    "writes_of",
]

CHANGES, LEASES = "zcomm_changes", "zcomm_live"
#: The statements that make both, and their columns. Without AUTOINCREMENT, which would cost each write: one row is left
#: as long as somebody may read the log.
MAKE_TABLES = {
    CHANGES: (
        f"CREATE TABLE {CHANGES} (id INTEGER PRIMARY KEY, model TEXT NOT NULL, key)",
        ["id", "model", "key"],
    ),
    LEASES: (
        f"CREATE TABLE {LEASES} (life TEXT PRIMARY KEY, until INTEGER NOT NULL, upto INTEGER NOT NULL, "
        "done INTEGER NOT NULL, mark TEXT NOT NULL)",
        ["life", "until", "upto", "done", "mark"],
    ),
}
#: Bytes of a text that is logged as a key. Longer ones are logged as many.
_LONGEST = 1000
#: How many columns of a row SQLite does without where no trigger needs them; it has all others.
_LOADED = 32
#: Somebody reads the log, and it is not longer than they let it be. The clock is asked where there is a lease alone.
_WATCHED = (
    "EXISTS (SELECT 1 FROM zcomm_live WHERE until > (julianday('now') - 2440587.5) * 86400.0 "
    "AND upto > (SELECT max(id) FROM zcomm_changes))"
)
#: What is no part of a statement: comments, and names and texts in quotes.
_TOKEN = re.compile(
    r"--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]|\w+|\S", re.DOTALL
)
_DIRECTION = re.compile(r"\b(?:ASC|DESC)\s*\Z", re.IGNORECASE)
_IGNORES = re.compile(r"\bRAISE\s*\(\s*IGNORE\b", re.IGNORECASE)

#: What may stand in an expression of an index that is computed before each write, beside columns, numbers and texts. It
#: fails for no values: the write itself may never come to it, and would not fail.
_HARMLESS = frozenset(
    "and or not is null isnull notnull in between case when then else end cast as collate binary nocase rtrim "
    "text integer int real numeric blob ( ) + * / % | < > = ! , . ~ &".split()
)
_HARMLESS_FUNCTIONS = frozenset(
    "lower upper trim ltrim rtrim length substr substring coalesce ifnull nullif typeof instr iif".split()
)

#: Asks the database: a statement and its parameters, for the rows.
Ask = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]


class _Unique(NamedTuple):
    """Values that no two rows have alike.

    :ivar parts: the column of each part, or the SQL of an expression, whether it is one, and its collation.
    :ivar condition: which rows have it, in SQL; empty for all.
    """

    parts: tuple[tuple[str, bool, str], ...]
    condition: str = ""

    @property
    def plain(self) -> bool:
        return not self.condition and not any(part[1] for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A table, as far as its changes depend on that.

    :ivar why_not: why it cannot be watched; empty where it can.
    :ivar columns: the names of its columns.
    :ivar generated: those that are computed from others.
    :ivar filled: those for which REPLACE may take a default instead of null.
    :ivar number: the column that is the number of the row; empty for none.
    :ivar rowid: a name of that number where no column has it, empty where none is left.
    :ivar uniques: what is unique in it; ``None`` where that cannot be said.
    :ivar ignores: whether a trigger may keep those after it from running.
    :ivar affinities: by column, how it keeps values.
    """

    why_not: str = ""
    columns: tuple[str, ...] = ()
    generated: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()
    number: str = ""
    rowid: str = ""
    uniques: tuple[_Unique, ...] | None = ()
    ignores: bool = False
    affinities: tuple[tuple[str, str], ...] = ()


def name_in_quotes(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def label_of(table: str, key: Sequence[str]) -> str:
    """The name that the log has for a table and its key: two programs may have other models of it."""
    return f"{name_in_quotes(table)} ({', '.join(map(name_in_quotes, key))})"


def key_of(value: Any, columns: int) -> Key | None:
    """The key of a row that was logged; ``None`` for many rows, or unknown ones."""
    if columns == 1:
        is_key = type(value) is int or (type(value) is str and _is_whole(value))
        return value if is_key else None
    if type(value) is not str or not _is_whole(value):
        return None
    parts = re.findall(r"(-?[0-9]+)|'((?:[^']|'')*)'", value)
    return tuple(int(number) if number else text.replace("''", "'") for number, text in parts)


def _is_whole(text: str) -> bool:
    # A text that is not UTF-8 comes as another one, and SQLite's own functions end a text at a NUL.
    return "\ufffd" not in text and "\0" not in text


def shape_of(ask: Ask, table: str) -> Shape:
    """The table called ``table`` as it is now."""
    found = ask(
        "SELECT type, CAST(sql AS BLOB) FROM sqlite_master WHERE name = ? AND type IN ('table', 'view')", (table,)
    )
    if not found:
        return Shape(why_not="it is gone")
    kind, sql = found[0]
    if kind == "view":
        return Shape(why_not="it is a view")
    if re.match(rb"\s*CREATE\s+VIRTUAL\b", sql, re.IGNORECASE):
        return Shape(why_not="it is a virtual table")
    columns = ask('SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (table,))
    names = [str(column[0]) for column in columns]
    indexes = ask(
        "SELECT i.name, i.origin, i.partial, m.sql FROM pragma_index_list(?) i "
        "LEFT JOIN sqlite_master m ON m.type = 'index' AND m.name = i.name WHERE i.\"unique\" ORDER BY i.name",
        (table,),
    )
    uniques: list[_Unique] | None = []
    keyed, has_rowid = False, True
    for name, origin, partial, made in indexes:
        parts = ask("SELECT cid, name, coll, key FROM pragma_index_xinfo(?) ORDER BY seqno", (name,))
        if origin == "pk":
            keyed, has_rowid = True, any(part[0] == -1 for part in parts)
        parts = [part for part in parts if part[3]]
        unique = _unique_of(parts, partial, made, names)
        if unique is None:
            uniques = None
        elif uniques is not None:
            uniques.append(unique)
    key = [column for column in columns if column[4]]
    number = str(key[0][0]) if not keyed and len(key) == 1 else ""
    taken = {name.lower() for name in names}
    free = [each for each in ("rowid", "_rowid_", "oid") if each not in taken]
    triggers = ask(
        "SELECT CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_master "
        "WHERE type = 'trigger' AND lower(tbl_name) = lower(?)",
        (table,),
    )
    return Shape(
        columns=tuple(names),
        generated=frozenset(str(column[0]) for column in columns if column[5]),
        filled=frozenset(
            str(name)
            for name, _, required, default, *_ in columns
            if required and default is not None and name != number
        ),
        number=number,
        rowid=free[0] if free and has_rowid and not number else "",
        uniques=None if uniques is None else tuple(uniques),
        ignores=any(
            _IGNORES.search(_bare(text.decode("utf-8", "replace")))
            for name, text in triggers
            if not is_live_trigger(name, text)
        ),
        affinities=tuple((str(column[0]), affinity(column[1] or "")) for column in columns),
    )


def _bare(sql: str) -> str:
    """A statement without its comments."""
    return _TOKEN.sub(lambda word: " " if word[0].startswith(("--", "/*")) else word[0], sql)


def _unique_of(
    parts: Sequence[tuple[Any, ...]], partial: int, sql: str | None, columns: Sequence[str]
) -> _Unique | None:
    """A unique index, by its parts and its statement; ``None`` where rows cannot be looked up by these.

    :param columns: the names of the columns of its table.
    """
    expressions, condition = ([], "") if sql is None else _read_index(sql)
    if partial and not condition:
        return None
    found = []
    for place, (cid, name, collation, _) in enumerate(parts):
        if cid == -2:
            if len(expressions) != len(parts) or not _is_harmless(expressions[place], columns):
                return None
            found.append((expressions[place], True, str(collation)))
        else:
            found.append((str(name), False, str(collation)))
    return _Unique(tuple(found), condition if partial else "")


def _is_harmless(expression: str, columns: Sequence[str]) -> bool:
    """Whether an expression can be computed of any row without failing, as far as is known."""
    known = _HARMLESS | {name.lower() for name in columns}
    words = [word.lower() for word in _TOKEN.findall(expression)]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if following == "(" and re.match(r"[\w'\"`\[]", word) and word not in _HARMLESS:
            # The name of a function, which may be in quotes.
            if word not in _HARMLESS_FUNCTIONS:
                return False
        elif word == "-":
            # It may be the beginning of an operator on JSON.
            if following == ">":
                return False
        elif word[0] not in "'\"`[" and not re.match(r"[0-9]|x\Z", word) and word not in known:
            return False
    return True


def _read_index(sql: str) -> tuple[list[str], str]:
    """The parts of an index and its condition, as its statement has them."""
    sql = _bare(sql)
    expressions: list[str] = []
    depth = start = end = 0
    for word in _TOKEN.finditer(sql):
        if word[0] == "(":
            depth += 1
            if depth == 1:
                start = word.end()
        elif word[0] == ")" or (word[0] == "," and depth == 1):
            depth -= word[0] == ")"
            if depth <= (word[0] == ","):
                expressions.append(_DIRECTION.sub("", sql[start : word.start()]).strip())
                start = end = word.end()
            if not depth:
                break
    found = re.match(r"\s*WHERE\b(.*)\Z", sql[end:], re.IGNORECASE | re.DOTALL)
    return expressions, found[1].strip().rstrip(";") if found else ""


def _key_in(row: str, key: Sequence[str], shape: Shape) -> str:
    """The key of a row in SQL, as the log keeps it: null where it is none that can be named.

    :param row: ``NEW.`` or ``OLD.``; empty for the row of a query.
    """
    names = [row + name_in_quotes(name) for name in key]
    if len(names) == 1 and key[0] == shape.number:
        return names[0]
    # Of a text with a NUL, quote() knows the beginning alone.
    ends = " AND instr(CAST({0} AS BLOB), x'00') = 0" if len(names) > 1 else ""
    is_key = (
        f"(typeof({{0}}) = 'integer' OR typeof({{0}}) = 'text' AND length(CAST({{0}} AS BLOB)) <= {_LONGEST}{ends})"
    )
    kept = " AND ".join(is_key.format(name) for name in names)
    whole = names[0] if len(names) == 1 else " || ',' || ".join(f"quote({name})" for name in names)
    return f"CASE WHEN {kept} THEN {whole} END"


def _mentioned(unique: _Unique, shape: Shape) -> list[str]:
    """The columns that a unique index may depend on."""
    texts = [part[0] for part in unique.parts if part[1]] + [unique.condition]
    words = {word.strip("\"'`[]").lower() for text in texts for word in _TOKEN.findall(text)}
    plain = {part[0] for part in unique.parts if not part[1]}
    return [name for name in shape.columns if name in plain or name.lower() in words]


def triggers_of(table: str, key: Sequence[str], shape: Shape) -> dict[str, str]:
    """The triggers that log the changes of a table: by name, their statements.

    :param key: the columns of the key.
    """
    quoted, label = name_in_quotes(table), literal(label_of(table, key))
    log = f"INSERT INTO {CHANGES} (model, key)"
    new, old, other = (_key_in(row, key, shape) for row in ("NEW.", "OLD.", ""))
    is_other = " OR ".join(
        f"NEW.{name_in_quotes(name)} IS NOT OLD.{name_in_quotes(name)} COLLATE BINARY" for name in key
    )
    is_same_row = " AND ".join(f"{name_in_quotes(name)} IS OLD.{name_in_quotes(name)} COLLATE BINARY" for name in key)
    inserting: list[str] = []
    updating = [f"{log} VALUES ({label}, {old})", f"{log} SELECT {label}, {new} WHERE {is_other}"]
    many = f"{log} VALUES ({label}, NULL)"
    if shape.uniques is None:
        inserting.append(many)
        updating.append(many)
    elif shape.ignores:
        inserting.append(many)
    uniques = list(shape.uniques or ())
    for number in (shape.number, shape.rowid):
        if number:
            uniques.append(_Unique(((number, False, "BINARY"),)))
    filled: set[str] = set()
    looked_at = set(key)
    for unique in uniques:
        # A row with the same key is logged anyway.
        if set(key) <= {name for name, is_expression, by in unique.parts if not is_expression and by == "BINARY"}:
            continue
        depends = _mentioned(unique, shape)
        filled |= shape.filled.intersection(depends)
        looked_at.update(depends)
        parts = [
            f"{name_in_quotes(text)} = NEW.{name_in_quotes(text)} COLLATE {name_in_quotes(by)}"
            if not is_expression
            else f"({text}) = (SELECT {text} FROM ({_row_of(depends)}) AS zcomm_new) COLLATE {name_in_quotes(by)}"
            for text, is_expression, by in unique.parts
        ]
        if unique.condition:
            parts.append(f"({unique.condition})")
        found = f"{log} SELECT {label}, {other} FROM {quoted} AS zcomm_row WHERE {' AND '.join(parts)}"
        inserting.append(found)
        if unique.plain:
            changes = " OR ".join(
                f"NEW.{name_in_quotes(name)} IS NOT OLD.{name_in_quotes(name)} COLLATE BINARY"
                for name, _, _ in unique.parts
            )
            updating.append(f"{found} AND ({changes})")
        else:
            updating.append(f"{found} AND NOT ({is_same_row})")
    if filled:
        # REPLACE takes the default instead, which may be that of another row.
        missing = " OR ".join(f"NEW.{name_in_quotes(name)} IS NULL" for name in sorted(filled))
        for steps in (inserting, updating):
            steps.append(f"{log} SELECT {label}, NULL WHERE {missing}")
    if shape.generated & looked_at:
        # SQLite computes them of the columns that are written or that stand in a trigger, and of null for the others.
        columns = [name for name in shape.columns if name not in shape.generated]
        standing = ", ".join(f"NEW.{name_in_quotes(name)}" for name in columns[:_LOADED])
        updating.append(f"{log} SELECT {label}, NULL WHERE coalesce(0, {standing})")
    made = [
        ("BEFORE INSERT", inserting),
        ("AFTER INSERT", [f"{log} VALUES ({label}, {new})"]),
        ("BEFORE UPDATE", updating),
        ("BEFORE DELETE", [f"{log} VALUES ({label}, {old})"]),
    ]
    return dict(
        live_trigger(f"{event} ON {quoted} WHEN {_WATCHED} BEGIN {'; '.join(steps)}; END")
        for event, steps in made
        if steps
    )


def _row_of(columns: Sequence[str]) -> str:
    """The new row as a query."""
    if not columns:
        return "SELECT 1"
    return "SELECT " + ", ".join(f"NEW.{name_in_quotes(name)} AS {name_in_quotes(name)}" for name in columns)


def writes_of(table: str, shape: Shape) -> list[str]:
    """Statements that have SQLite compile each kind of write to a table, and do nothing."""
    quoted = name_in_quotes(table)
    made = [f"EXPLAIN INSERT INTO {quoted} DEFAULT VALUES", f"EXPLAIN DELETE FROM {quoted}"]
    written = [name for name in shape.columns if name not in shape.generated]
    return [*made, f"EXPLAIN UPDATE {quoted} SET {name_in_quotes(written[0])} = NULL"] if written else made


def installed(ask: Ask, table: str) -> dict[str, str]:
    """The triggers of a table that log its changes, as they are: by name, their statements."""
    found = ask(
        "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND lower(tbl_name) = lower(?) "
        "AND name GLOB 'zcomm_live_*'",
        (table,),
    )
    return {str(name): str(sql) for name, sql in found}
