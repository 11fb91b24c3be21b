"""Random writes: through zComm, and by other programs on connections of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

from live.differ.models import Field, Model
from live.differ.values import stored

__all__ = ["Failed", "Foreign", "request", "statements"]

#: The types of columns that zComm makes in PostgreSQL.
TYPES = {
    "str": "text",
    "int": "bigint",
    "float": "double precision",
    "decimal": "numeric",
    "bool": "boolean",
    "date": "date",
    "datetime": "timestamptz",
    "time": "time",
    "uuid": "uuid",
    "json": "jsonb",
    "bytes": "bytea",
}

#: A statement with question marks, and its parameters.
Statement = tuple[str, list[Any]]


class Failed(Exception):
    """The database has refused a statement, which is nothing unusual here."""


class Foreign(Protocol):
    """A connection of another program."""

    is_sqlite: bool

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]: ...

    def copy(self, table: str, columns: list[str], rows: list[list[Any]]) -> None: ...

    def close(self) -> None: ...


def request(
    dice: Random, model: Model, keys: Callable[[str], list[tuple[Any, ...]]], what: str = ""
) -> tuple[str, dict[str, Any]]:
    """A command that writes, and what it is given.

    :param keys: those that there are of a model.
    :param what: the action, where that is not random.
    """
    visible = [each for each in model.fields if not each.hidden]

    def values(of: list[Field]) -> dict[str, Any]:
        found = {}
        for each in of:
            if each.nullable and dice.random() < 0.2:
                if dice.random() < 0.5:
                    found[each.name] = None
            else:
                found[each.name] = each.value(dice)
                there = keys(each.fk[0]) if each.fk and dice.random() < 0.85 else []
                if there:
                    found[each.name] = dice.choice(there)[0]
        return found

    able = [each for each in visible if not each.is_made]
    plain = [each for each in visible if not each.pk]
    what = what or dice.choice(["create", "create", "create", "update", "update", "update", "delete", "upsert"])
    if what == "create":
        return f"create_{model.name}", {"values": values(able)}
    if what == "upsert":
        unique = [each for each in plain if each.unique]
        by = dice.choice(unique) if unique and dice.random() < 0.7 else None
        names = [by.name] if by else [each.name for each in model.key]
        given = values([each for each in able if each.name not in names])
        given |= {name: model.field(name).value(dice) for name in names}
        return f"upsert_{model.name}", {"values": given, "conflict_fields": names}
    where = _where(dice, model, lambda: keys(model.name))
    if what == "delete":
        return f"delete_{model.name}", {"where": where}
    if not plain:
        return f"delete_{model.name}", {"where": where}
    some = dice.sample(plain, dice.randrange(1, min(3, len(plain)) + 1))
    given = values(some) or {some[0].name: some[0].value(dice)}
    if dice.random() < 0.05:
        return f"update_{model.name}", {"all": True, "values": given}
    return f"update_{model.name}", {"where": where, "values": given}


def _where(dice: Random, model: Model, keys: Callable[[], list[tuple[Any, ...]]]) -> dict[str, Any]:
    if dice.random() < 0.25:
        each = dice.choice([each for each in model.fields if each.kind != "json" and not each.hidden])
        return {each.name: [each.value(dice) for _ in range(dice.choice([1, 2]))]}
    there = keys()
    if not there:
        return {model.key[0].name: model.key[0].value(dice)}
    some = [dice.choice(there) for _ in range(dice.choice([1, 1, 2, 5, 8]))]
    return {"$or": [{each.name: value for each, value in zip(model.key, key, strict=True)} for key in some]}


def _quoted(name: str) -> str:
    return f'"{name}"'


def _table(dice: Random, model: Model) -> str:
    """Its name; or that of a part of it."""
    return _quoted(f"{model.name}_{dice.randrange(2)}" if model.is_split and dice.random() < 0.4 else model.name)


def _keys(foreign: Foreign, table: str, names: list[str]) -> list[tuple[Any, ...]]:
    """The keys that there are, in some order that is always the same."""
    # Not each value of PostgreSQL is one of Python's.
    told = [_quoted(name) if foreign.is_sqlite else f"{_quoted(name)}::text" for name in names]
    return foreign.run(f"SELECT {', '.join(told)} FROM {_quoted(table)} ORDER BY {', '.join(map(_quoted, names))}")


def _value(dice: Random, field: Field, foreign: Foreign) -> Any:
    if field.fk and dice.random() < 0.8:
        model, key = field.fk
        there = _keys(foreign, model, [key])
        if there:
            return dice.choice(there)[0]
    return stored(field.kind, field.column, field.value(dice), foreign.is_sqlite)


def _maybe(dice: Random, field: Field, foreign: Foreign) -> Any:
    return None if field.nullable and dice.random() < 0.2 else _value(dice, field, foreign)


def _chosen(dice: Random, model: Model, foreign: Foreign, most: int = 3) -> Statement:
    """A condition on some rows."""
    how = dice.random()
    if how < 0.15:
        return f"length(CAST({_quoted(model.key[0].name)} AS text)) % 2 = {dice.randrange(2)}", []
    if how < 0.3:
        able = [each for each in model.fields if each.kind not in ("json", "bytes")]
        field = dice.choice(able)
        return f"{_quoted(field.name)} = ?", [_value(dice, field, foreign)]
    if how < 0.33:
        return "1 = 1", []
    there = _keys(foreign, model.name, [each.name for each in model.key])
    if not there:
        return f"{_quoted(model.key[0].name)} = ?", [_value(dice, model.key[0], foreign)]
    some = [dice.choice(there) for _ in range(dice.randrange(1, most + 1))]
    one = " AND ".join(f"{_quoted(each.name)} = ?" for each in model.key)
    return " OR ".join(f"({one})" for _ in some), [value for key in some for value in key]


def _insert(dice: Random, model: Model, foreign: Foreign) -> Statement:
    is_sqlite = foreign.is_sqlite
    fields = [each for each in model.fields if not each.is_made or dice.random() < 0.3]
    fields = [each for each in fields if not each.nullable or each.pk or dice.random() < 0.85]
    count = dice.choice([1, 1, 2, 3, 6])
    rows = [[_maybe(dice, each, foreign) for each in fields] for _ in range(count)]
    marks = ", ".join(f"({', '.join('?' for _ in fields)})" for _ in rows)
    how, end, table = "INSERT", "", _table(dice, model)
    if is_sqlite:
        how = dice.choice(["INSERT", "INSERT", "INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE", "INSERT OR FAIL"])
    if how == "INSERT" and dice.random() < 0.4:
        end = _on_conflict(dice, model, fields)
    if not fields:
        return f"{how} INTO {table} DEFAULT VALUES", []
    names = ", ".join(_quoted(each.name) for each in fields)
    return f"{how} INTO {table} ({names}) VALUES {marks}{end}", [v for row in rows for v in row]


def _on_conflict(dice: Random, model: Model, fields: list[Field]) -> str:
    if dice.random() < 0.4:
        return " ON CONFLICT DO NOTHING"
    unique = [each for each in fields if each.unique]
    by = [dice.choice(unique)] if unique and dice.random() < 0.6 else model.key
    others = [each for each in fields if each not in by] or by
    # The key too, now and then, which is a row that goes and one that comes.
    changed = dice.sample(others, dice.randrange(1, len(others) + 1))
    sets = ", ".join(f"{_quoted(each.name)} = excluded.{_quoted(each.name)}" for each in changed)
    return f" ON CONFLICT ({', '.join(_quoted(each.name) for each in by)}) DO UPDATE SET {sets}"


def _update(dice: Random, model: Model, foreign: Foreign) -> Statement:
    where, given = _chosen(dice, model, foreign)
    how = dice.choice(["UPDATE", "UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"]) if foreign.is_sqlite else "UPDATE"
    plain = [each for each in model.fields if not each.pk]
    if not plain:
        return _move(dice, model, foreign)
    some = dice.sample(plain, dice.randrange(1, min(3, len(plain)) + 1))
    sets, values = [], []
    for each in some:
        alike = [o for o in plain if o is not each and (o.kind, o.column) == (each.kind, each.column) and not o.unique]
        if alike and not each.unique and dice.random() < 0.2:
            sets.append(f"{_quoted(each.name)} = {_quoted(dice.choice(alike).name)}")
        else:
            sets.append(f"{_quoted(each.name)} = ?")
            values.append(_maybe(dice, each, foreign))
    return f"{how} {_table(dice, model)} SET {', '.join(sets)} WHERE {where}", values + given


def _move(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """Change keys."""
    where, given = _chosen(dice, model, foreign, most=1)
    how = dice.choice(["UPDATE", "UPDATE OR REPLACE"]) if foreign.is_sqlite else "UPDATE"
    key = dice.choice(model.key)
    name = _quoted(key.name)
    if key.kind == "int" and dice.random() < 0.4:
        change = dice.choice([f"{name} + 1000", f"-{name}", f"{name} - 1000"])
        where, given = dice.choice([(where, given), (f"{name} BETWEEN -3000 AND 3000", [])])
        return f"{how} {_table(dice, model)} SET {name} = {change} WHERE {where}", given
    value = _value(dice, key, foreign)
    return f"{how} {_table(dice, model)} SET {name} = ? WHERE {where}", [value, *given]


def _delete(dice: Random, model: Model, foreign: Foreign) -> Statement:
    where, given = _chosen(dice, model, foreign)
    return f"DELETE FROM {_table(dice, model)} WHERE {where}", given


def _empty(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """All rows at once."""
    if not foreign.is_sqlite and dice.random() < 0.7:
        return f"TRUNCATE {_table(dice, model)}{dice.choice([' CASCADE', ' RESTART IDENTITY CASCADE', ''])}", []
    return f"DELETE FROM {_table(dice, model)}", []


def _copy_rows(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """Rows made of rows."""
    key = model.key[0]
    if len(model.key) > 1 or key.kind != "int":
        return _insert(dice, model, foreign)
    fields = [each for each in model.fields if not each.pk and not (each.unique and each.nullable)]
    names = ", ".join(_quoted(each.name) for each in (key, *fields))
    taken = ", ".join([f"{_quoted(key.name)} + 500", *(_quoted(each.name) for each in fields)])
    where, given = _chosen(dice, model, foreign)
    table = _quoted(model.name)
    return f"INSERT INTO {table} ({names}) SELECT {taken} FROM {table} WHERE {where}", given


def _many(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """More rows than a query may have, or than a step looks at one by one."""
    key = model.key[0]
    needed = [each for each in model.fields if not each.nullable and not each.pk]
    if len(model.key) > 1 or key.kind != "int" or any(each.unique or each.fk for each in needed):
        return _insert(dice, model, foreign)
    names = ", ".join(_quoted(each.name) for each in (key, *needed))
    values = ", ".join(["n", *("?" for _ in needed)])
    last = 10_000 + dice.choice([50, 1200, 6000])
    series = f"WITH RECURSIVE s (n) AS (SELECT 10001 UNION ALL SELECT n + 1 FROM s WHERE n < {last})"
    return (
        f"{series} INSERT INTO {_quoted(model.name)} ({names}) SELECT {values} FROM s"
        if foreign.is_sqlite
        else f"INSERT INTO {_quoted(model.name)} ({names}) {series} SELECT {_cast(values, needed)} FROM s"
    ), [_value(dice, each, foreign) for each in needed]


def _cast(values: str, fields: list[Field]) -> str:
    """Question marks, each with the type of its column."""
    first, *marks = values.split(", ")
    return ", ".join(
        [first, *(f"{m}::{each.column or TYPES[each.kind]}" for m, each in zip(marks, fields, strict=True))]
    )


def _with(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """Two changes by one statement."""
    first, one = _delete(dice, model, foreign)
    second, two = _update(dice, model, foreign)
    return f"WITH gone AS ({first} RETURNING 1) {second}", one + two


def _merge(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """Rows that are changed, removed or made, as they are found."""
    plain = [each for each in model.fields if not each.pk and not each.unique and not each.fk]
    if not plain or len(model.key) > 1 or model.key[0].kind != "int":
        return _with(dice, model, foreign)
    field, key, table = dice.choice(plain), _quoted(model.key[0].name), _quoted(model.name)
    change = f"UPDATE SET {_quoted(field.name)} = ?"
    low = dice.randrange(20)
    return (
        f"MERGE INTO {table} t USING generate_series({low}, {low + 5}) g (n) ON t.{key} = g.n "
        f"WHEN MATCHED AND g.n % 3 = 0 THEN DELETE WHEN MATCHED THEN {change}"
    ), [_maybe(dice, field, foreign)]


def _rewrite(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """The table is stored anew, or gets a column that no model names."""
    table = _quoted(model.name)
    if foreign.is_sqlite:
        return dice.choice(["VACUUM", f"ANALYZE {table}", f"CREATE INDEX IF NOT EXISTS i ON {table} (1)"]), []
    return dice.choice(
        [
            f"VACUUM FULL {table}",
            f"ALTER TABLE {table} ADD COLUMN more{dice.randrange(1000)} int DEFAULT 5",
            f"ANALYZE {table}",
            f"LOCK TABLE {table} IN SHARE MODE",
        ]
    ), []


def _block(dice: Random, model: Model, foreign: Foreign) -> Statement:
    """Changes that a procedure takes back, and one that it leaves."""
    first, second = _plain(_delete(dice, model, foreign)), _plain(_update(dice, model, foreign))
    return (
        f"DO $do$ BEGIN BEGIN {first}; RAISE EXCEPTION 'no'; EXCEPTION WHEN OTHERS THEN NULL; END; "
        f"BEGIN {second}; EXCEPTION WHEN OTHERS THEN NULL; END; END $do$"
    ), []


def _plain(statement: Statement) -> str:
    """With its values within it."""
    sql, values = statement
    parts = sql.split("?")
    texts = []
    for value in values:
        if value is None:
            texts.append("NULL")
        elif isinstance(value, bytes):
            texts.append(f"'\\x{value.hex()}'")
        else:
            text = str(value).replace("\\", "\\\\").replace("'", "''")
            texts.append(f"E'{text}'")
    return "".join(part + text for part, text in zip(parts, [*texts, ""], strict=True))


def statements(dice: Random, model: Model, foreign: Foreign) -> list[Statement]:
    """One random statement of another program, or two that belong together; none where it was a COPY, which is done."""
    makers: list[Callable[..., Statement]] = [_insert] * 6 + [_update] * 6 + [_delete] * 2 + [_move] * 2 + [_copy_rows]
    makers += [_empty] if dice.random() < 0.3 else []
    makers += [_many] if dice.random() < 0.05 else []
    makers += [_rewrite] if dice.random() < 0.1 else []
    makers += [] if foreign.is_sqlite else [_with, _block, _merge]
    if not foreign.is_sqlite and dice.random() < 0.1:
        fields = [each for each in model.fields if not each.is_made]
        rows = [[_maybe(dice, each, foreign) for each in fields] for _ in range(dice.choice([1, 3, 10]))]
        foreign.copy(_table(dice, model), [each.name for each in fields], rows)
        return []
    return [dice.choice(makers)(dice, model, foreign)]
