"""Models as tables: what is created where it is missing, and what existing ones must have.

An existing table is used as it is and never altered: a schema that does not fit it is an error that says
how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from zcomm.data.models import Field, Model, Schema
from zcomm.errors import ConfigError
from zcomm.text import quoted

__all__ = ["IDEMPOTENCY_KEYS", "build_tables", "check_tables", "constraint_columns"]

#: The table in which the results of writes with an idempotency key are kept.
IDEMPOTENCY_KEYS = "zcomm_idempotency"

_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "str": sa.Text(),
    # SQLite makes keys only for a column whose type is INTEGER to the letter.
    "int": sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    "float": sa.Double(),
    "decimal": sa.Numeric(),
    "bool": sa.Boolean(),
    "date": sa.Date(),
    "datetime": sa.DateTime(timezone=True),
    "time": sa.Time(),
    "uuid": sa.Uuid().with_variant(sa.String(36), "sqlite"),
    # SQLite would turn the text of a number into a number in a column declared JSON.
    "json": JSONB().with_variant(sa.Text(), "sqlite"),
    "bytes": sa.LargeBinary(),
}


def build_tables(schema: Schema) -> tuple[sa.MetaData, dict[str, sa.Table], sa.Table]:
    """The tables of ``schema``.

    :return: the metadata, the tables by model, and the table of idempotency keys.
    """
    metadata = sa.MetaData(
        naming_convention={
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    tables = {name: _table(model, metadata) for name, model in schema.models.items()}
    for name, model in schema.models.items():
        for field in model.fields.values():
            if field.fk is not None:
                # By the columns themselves: in a text a dot of their names would separate table and column.
                target = tables[field.fk.model].c[field.fk.field]
                tables[name].append_constraint(
                    sa.ForeignKeyConstraint([tables[name].c[field.name]], [target], ondelete=field.fk.on_delete.upper())
                )
    idempotency_keys = sa.Table(
        IDEMPOTENCY_KEYS,
        metadata,
        sa.Column("identity", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("result", sa.Text()),
        # Seconds since 1970. A wall clock by nature: the row outlives the process that wrote it.
        sa.Column("expires", sa.BigInteger(), nullable=False, index=True),
    )
    return metadata, tables, idempotency_keys


def _table(model: Model, metadata: sa.MetaData) -> sa.Table:
    columns = {field.name: _column(model, field) for field in model.fields.values()}
    return sa.Table(
        model.table,
        metadata,
        *columns.values(),
        *(sa.UniqueConstraint(*(columns[name] for name in group)) for group in model.unique),
        *(sa.Index(None, *(columns[name] for name in group)) for group in model.index),
        # Without it SQLite gives the id of a deleted row to the next new one, and a page that still shows
        # the old row would act on the new one. It is refused for any other key.
        sqlite_autoincrement=model.generated is not None,
    )


def _column(model: Model, field: Field) -> sa.Column[Any]:
    native = None if field.column is None else field.column.type
    return sa.Column(
        field.column_name,
        _TYPES[field.kind.name] if native is None else native,
        # What the rest of zComm calls it.
        key=field.name,
        primary_key=field.pk,
        nullable=not (field.required or field.pk),
        unique=field.unique and model.key != (field.name,) or None,
        index=field.index or None,
        autoincrement=field.name == model.generated,
    )


def check_tables(inspector: sa.Inspector, schema: Schema, url: str) -> list[str]:
    """Compare the database with the schema.

    :param url: the database as the user may see it, for errors.
    :return: the names of the tables that are missing, that of idempotency keys included.
    :raises ConfigError: when an existing table lacks a field.
    """
    views = set(inspector.get_view_names())
    existing = set(inspector.get_table_names()) | views
    folded = {name.lower(): name for name in existing}
    sqlite = inspector.dialect.name == "sqlite"
    missing = []
    for model in schema.models.values():
        if model.table in existing:
            if model.table not in views:
                _check_unique(inspector, model, url)
        elif sqlite and model.table.lower() in folded:
            there = folded[model.table.lower()]
            raise ConfigError(
                url,
                f"model {model.name}: the existing table is spelt {there}; spell the model the same way, or give its "
                f"table with _model: {{table: {there}}}",
            )
        elif model.read_only:
            raise ConfigError(
                url, f"model {model.name}: there is no table {quoted(model.table)}, and it is read_only; make the table"
            )
        else:
            missing.append(model.table)
    if IDEMPOTENCY_KEYS not in existing:
        missing.append(IDEMPOTENCY_KEYS)
    return missing


def _check_unique(inspector: sa.Inspector, model: Model, url: str) -> None:
    if not model.unique:
        return
    kept = _unique_columns(inspector, model.table)
    for group in model.unique:
        if {model.fields[name].column_name for name in group} not in kept:
            raise ConfigError(
                url,
                f"model {model.name}: _model says that {', '.join(group)} are unique together, and the existing table "
                "does not keep them so; add a unique index of all rows to it, or take them out of the schema",
            )


def _unique_columns(inspector: sa.Inspector, table: str) -> list[set[str]]:
    """The groups of columns that no two rows of ``table`` have alike."""
    # Without them, SQLite's are those of CREATE INDEX alone.
    options: dict[str, Any] = {"include_auto_indexes": True} if inspector.dialect.name == "sqlite" else {}
    groups = [set(inspector.get_pk_constraint(table)["constrained_columns"])]
    for index in inspector.get_indexes(table, **options):
        # One of an expression has no column there, and one with a condition is not for all rows.
        partial = any(key.endswith("_where") for key in index.get("dialect_options", {}))
        if index["unique"] and not partial and None not in index["column_names"]:
            groups.append({name for name in index["column_names"] if name is not None})
    return groups


def constraint_columns(inspector: sa.Inspector, schema: Schema) -> dict[tuple[str, str], tuple[str, ...]]:
    """The columns of each constraint, by table and constraint name."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for model in schema.models.values():
        table = model.table
        key = inspector.get_pk_constraint(table)
        groups: list[tuple[str | None, Sequence[str | None] | None]] = [
            (key.get("name"), key.get("constrained_columns"))
        ]
        groups += [(each["name"], each["column_names"]) for each in inspector.get_unique_constraints(table)]
        groups += [(each["name"], each["constrained_columns"]) for each in inspector.get_foreign_keys(table)]
        groups += [(each["name"], each["column_names"]) for each in inspector.get_indexes(table) if each["unique"]]
        for name, columns in groups:
            if name:
                found[table, name] = tuple(column for column in columns or () if column)
    return found
