"""The log of changes that fits a database."""

from __future__ import annotations

from typing import cast

from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.data.store import Store
from zcomm.live.log import ChangeLog
from zcomm.live.sqlite.log import SQLiteLog

__all__ = ["open_log"]


def open_log(store: Store) -> ChangeLog:
    """The log of the database of ``store``."""
    execution = store.execution
    database = execution.database
    if isinstance(database, SQLiteDatabase):
        return SQLiteLog(database, lambda: store.schema, execution.pool.connection, execution.look_again)
    # Only where it is asked for: psycopg is not installed everywhere.
    from zcomm.data.drivers.postgresql import PostgreSQLDatabase
    from zcomm.live.postgresql.log import PostgreSQLLog

    return PostgreSQLLog(cast(PostgreSQLDatabase, database), lambda: store.schema)
