"""The databases behind the store, SQLite and PostgreSQL: the driver for a URL, connections and reconnecting."""

from __future__ import annotations

import sqlalchemy as sa

from zcomm.data.drivers.driver import Database
from zcomm.errors import ConfigError

__all__ = ["open_database"]


def open_database(text: str, statement_timeout: float, busy_timeout: float) -> tuple[Database, str]:
    """The driver for a URL, and the URL without its password.

    :raises ConfigError: for a URL that is none, or of a database that zComm does not speak to.
    """
    try:
        url = sa.make_url(text)
        shown = url.render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        # Not repeated: it may hold a password in a place where no one can tell.
        raise ConfigError(
            "database", "not a database URL; write sqlite:///path or postgresql://user@host/database"
        ) from None
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        from zcomm.data.drivers.sqlite import SQLiteDatabase

        return SQLiteDatabase(url, statement_timeout, busy_timeout), shown
    if backend in ("postgresql", "postgres"):
        try:
            from zcomm.data.drivers.postgresql import PostgreSQLDatabase
        except ImportError:
            raise ConfigError(shown, "psycopg is not installed; pip install 'zcomm[postgresql]'") from None
        return PostgreSQLDatabase(url, statement_timeout), shown
    raise ConfigError(shown, "zComm speaks to sqlite and postgresql only")
