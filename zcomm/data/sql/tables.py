"""Models as tables: what is created where it is missing, and what existing ones must have.

An existing table is used as it is and never altered: a schema that does not fit it is an error that says
how.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import quoted_name

from zcomm.data.models import Field, Model, Schema

__all__ = ["IDEMPOTENCY_KEYS", "build_tables"]

#: The table in which the results of writes with an idempotency key are kept.
IDEMPOTENCY_KEYS = "zcomm_idempotency"

_TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "str": sa.Text(),
    # SQLite makes keys only for a column whose type is INTEGER to the letter.
    "int": sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
    "float": sa.Double(),
    # As a number SQLite keeps 15 digits.
    "decimal": sa.Numeric().with_variant(sa.Text(), "sqlite"),
    "bool": sa.Boolean(),
    "date": sa.Date(),
    "datetime": sa.DateTime(timezone=True),
    "time": sa.Time(),
    "uuid": sa.Uuid().with_variant(sa.String(36), "sqlite"),
    # SQLite would turn the text of a number into a number in a column declared JSON.
    "json": JSONB().with_variant(sa.Text(), "sqlite"),
    "bytes": sa.LargeBinary(),
}


def build_tables(schema: Schema, namespace: str = "") -> tuple[sa.MetaData, dict[str, sa.Table], sa.Table]:
    """The tables of ``schema``, each named with the schema of the database that it is in.

    :param namespace: of the table of idempotency keys.
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
        schema=_quoted(namespace),
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
        schema=_quoted(model.namespace),
    )


def _quoted(namespace: str) -> str | None:
    return quoted_name(namespace, True) if namespace else None


def _column(model: Model, field: Field) -> sa.Column[Any]:
    native = None if field.column is None else field.column.type
    given = field.default is not None or field.name in model.needed or field.name == model.generated
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
        # SQLAlchemy warns of a row without its key.
        server_default=sa.FetchedValue() if field.pk and not given else None,
    )
