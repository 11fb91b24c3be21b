"""The databases behind the store, SQLite and PostgreSQL: the driver for a URL, connections and reconnecting."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from zcomm.config import is_unicode
from zcomm.data.drivers.driver import Database
from zcomm.errors import ConfigError
from zcomm.text import redact_url

__all__ = ["open_database", "parsed_url", "require_driver"]

#: The beginnings of PostgreSQL's URLs.
_POSTGRESQL = ("postgresql", "postgres")


def _postgresql_driver(blamed: str) -> Callable[[sa.URL, float, bool], Database]:
    # Only where it is asked for: psycopg is not installed everywhere, and takes its time to load.
    try:
        from zcomm.data.drivers.postgresql import PostgreSQLDatabase
    except ImportError:
        raise ConfigError(blamed, "psycopg is not installed; pip install 'zcomm[postgresql]'") from None
    return PostgreSQLDatabase


def require_driver(url: str) -> None:
    """Fail where there is no driver for databases such as that of ``url``, which only has to begin as one.

    :raises ConfigError: for a database that zComm does not speak to, and for a driver that is not installed.
    """
    backend = url.partition(":")[0].partition("+")[0]
    if backend in _POSTGRESQL:
        _postgresql_driver("database")
    elif backend != "sqlite":
        raise ConfigError("database", f"zComm speaks to sqlite and postgresql only, not to {backend or 'nothing'}")


def parsed_url(text: str) -> sa.URL:
    """The parts of a URL. :raises ConfigError: for a text that is none."""
    if not is_unicode(text):
        raise ConfigError("database", "the URL is not text in UTF-8; rename what it names, or write it in UTF-8")
    try:
        return sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        # Not repeated: it may hold a password in a place where no one can tell.
        raise ConfigError(
            "database", "not a database URL; write sqlite:///path or postgresql://user@host/database"
        ) from None


def open_database(
    text: str, statement_timeout: float, busy_timeout: float, alone: bool = False
) -> tuple[Database, str]:
    """The driver for a URL, and the URL without its secrets.

    :param alone: whether the URL says all there is to say, and no variable of the environment counts.
    :raises ConfigError: for a URL that is none, or of a database that zComm does not speak to.
    """
    url = parsed_url(text)
    shown = redact_url(text)
    try:
        return _open(url, shown, statement_timeout, busy_timeout, alone), shown
    except ConfigError:
        raise
    except (sa.exc.ArgumentError, ValueError):
        # Not repeated: it quotes the URL.
        raise ConfigError(
            shown, "its parts or settings do not fit; sqlite has no host, and a port is a number"
        ) from None


def _open(url: sa.URL, shown: str, statement_timeout: float, busy_timeout: float, alone: bool) -> Database:
    backend = url.drivername.partition("+")[0]
    if backend == "sqlite":
        from zcomm.data.drivers.sqlite import SQLiteDatabase

        return SQLiteDatabase(url, statement_timeout, busy_timeout)
    if backend in _POSTGRESQL:
        return _postgresql_driver(shown)(url, statement_timeout, alone)
    raise ConfigError(shown, "zComm speaks to sqlite and postgresql only")
