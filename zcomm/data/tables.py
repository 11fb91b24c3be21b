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

#: Which existing columns a kind can use, by SQLAlchemy's families.
_FAMILIES: dict[str, tuple[type[sa.types.TypeEngine[Any]], ...]] = {
    "str": (sa.String,),
    "int": (sa.Integer,),
    "float": (sa.Float, sa.Double),
    "decimal": (sa.Numeric,),
    "bool": (sa.Boolean,),
    "date": (sa.Date,),
    "datetime": (sa.DateTime,),
    "time": (sa.Time,),
    "uuid": (sa.Uuid,),
    "json": (sa.JSON,),
    "bytes": (sa.LargeBinary,),
}


def build_tables(schema: Schema) -> tuple[sa.MetaData, dict[str, sa.Table], sa.Table]:
    """The tables of ``schema``.

    :return: the metadata, the tables by model, and the table of idempotency keys.
    """
    metadata = sa.MetaData(
        naming_convention={
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    tables = {name: _table(model, metadata) for name, model in schema.models.items()}
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
    return sa.Table(
        model.name,
        metadata,
        *(_column(model, field) for field in model.fields.values()),
        # Without it SQLite gives the id of a deleted row to the next new one, and a page that still shows
        # the old row would act on the new one. It is refused for any other key.
        sqlite_autoincrement=model.generated is not None,
    )


def _column(model: Model, field: Field) -> sa.Column[Any]:
    arguments: list[Any] = [_TYPES[field.kind.name]]
    if field.fk is not None:
        arguments.append(sa.ForeignKey(f"{field.fk.model}.{field.fk.field}", ondelete=field.fk.on_delete.upper()))
    return sa.Column(
        field.name,
        *arguments,
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
    :raises ConfigError: when an existing table lacks a field or has another type for it.
    """
    existing = set(inspector.get_table_names()) | set(inspector.get_view_names())
    folded = {name.lower(): name for name in existing}
    strict = inspector.dialect.name != "sqlite"
    missing = []
    for model in schema.models.values():
        if model.name in existing:
            _check_columns(inspector.get_columns(model.name), model, url, strict)
        elif not strict and model.name.lower() in folded:
            raise ConfigError(
                url,
                f"model {model.name}: the existing table is spelt "
                f"{folded[model.name.lower()]}; spell the model the same way",
            )
        else:
            missing.append(model.name)
    if IDEMPOTENCY_KEYS not in existing:
        missing.append(IDEMPOTENCY_KEYS)
    return missing


def _check_columns(columns: list[Any], model: Model, url: str, strict: bool) -> None:
    found = {column["name"]: column["type"] for column in columns}
    for field in model.fields.values():
        if field.name not in found:
            raise ConfigError(
                url,
                f"model {model.name}, field {field.name}: the existing table has no such "
                "column, and existing tables are not altered; add the column or take the "
                "field out of the schema",
            )
        # SQLite stores any value in any column. An array's items would pass for the whole.
        there = found[field.name]
        if strict and not isinstance(there, (sa.types.NullType, *_FAMILIES[field.kind.name])):
            raise ConfigError(
                url,
                f"model {model.name}, field {field.name}: the existing column is of type "
                f"{there}, which does not fit {field.kind.name}; change the schema's type",
            )
        if strict and field.kind.name == "decimal" and isinstance(there, sa.Float):
            raise ConfigError(
                url,
                f"model {model.name}, field {field.name}: the existing column is of type "
                f"{there}, which is not exact; use type float",
            )


def constraint_columns(inspector: sa.Inspector, schema: Schema) -> dict[tuple[str, str], tuple[str, ...]]:
    """The columns of each constraint, by table and constraint name."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for table in schema.models:
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
