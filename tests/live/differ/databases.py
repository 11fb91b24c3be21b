"""The databases that the random test runs on, and the connections of other programs to them."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import psycopg
from live.differ.models import Model, tables_of
from live.differ.values import PREPARE
from live.differ.writes import Failed, Foreign
from support.postgres import PORT, Cluster
from support.waiting import wait_until_blocking

__all__ = ["Database", "Memory", "Postgres", "Shared", "Sqlite"]


class _SqliteForeign:
    is_sqlite = True

    def __init__(self, path: Path, dice: Random):
        # A program that waits long would only make the test long.
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0.5, check_same_thread=False)
        self._connection.execute(f"PRAGMA foreign_keys = {dice.choice(['on', 'on', 'off'])}")
        self._connection.execute(f"PRAGMA recursive_triggers = {dice.choice(['on', 'off'])}")

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except (sqlite3.Error, OverflowError) as error:
            raise Failed(str(error)) from None

    def copy(self, table: str, columns: list[str], rows: list[list[Any]]) -> None:
        raise NotImplementedError

    def backup(self, other: Any = None) -> Any:
        """A copy of all that there is; or have all that is in ``other`` instead."""
        copy = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._connection.backup(copy) if other is None else other.backup(self._connection)
        except sqlite3.Error as error:
            raise Failed(str(error)) from None
        return copy

    def close(self) -> None:
        self._connection.close()


class _PostgresForeign:
    is_sqlite = False

    def __init__(self, conninfo: str):
        options = "-c lock_timeout=300ms -c statement_timeout=5s"
        self._connection = psycopg.connect(conninfo, autocommit=True, options=options)

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            if parameters:
                cursor = self._connection.execute(sql.replace("%", "%%").replace("?", "%s"), parameters)  # type: ignore[arg-type]
            else:
                cursor = self._connection.execute(sql)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise Failed(str(error).splitlines()[0]) from None

    def copy(self, table: str, columns: list[str], rows: list[list[Any]]) -> None:
        names = ", ".join(f'"{name}"' for name in columns)
        try:
            with self._connection.cursor().copy(f"COPY {table} ({names}) FROM STDIN") as copy:  # type: ignore[arg-type]
                for row in rows:
                    copy.write_row(row)
        except psycopg.Error as error:
            raise Failed(str(error).splitlines()[0]) from None

    def close(self) -> None:
        self._connection.close()


class Database(Protocol):
    """A database of the test.

    :ivar url: zComm's option.
    :ivar is_special: whether the tables of models are made here, with columns of PostgreSQL's own.
    :ivar is_shared: whether there is a second server in each world; else it is in some.
    """

    is_shared: bool
    is_sqlite: bool
    is_special: bool

    @property
    def url(self) -> str: ...

    def prepare(self, dice: Random, directory: Path, models: list[Model]) -> None: ...

    def connect(self, dice: Random) -> Foreign | None:
        """A connection of another program; ``None`` where none can be."""

    def restart(self, dice: Random) -> bool:
        """Stop it and start it again; whether that was possible."""

    def end(self) -> None: ...


class Sqlite:
    """A file."""

    is_sqlite, is_special, is_shared = True, False, False

    def prepare(self, dice: Random, directory: Path, models: list[Model]) -> None:
        self._path = directory / "test.sqlite3"
        if dice.random() < 0.3:
            # Without a write-ahead log readers and writers keep each other waiting.
            connection = sqlite3.connect(self._path)
            connection.execute("CREATE TABLE other (a)")
            connection.close()

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    def connect(self, dice: Random) -> Foreign | None:
        return _SqliteForeign(self._path, dice)

    def restart(self, dice: Random) -> bool:
        return False

    def end(self) -> None:
        pass


class Shared(Sqlite):
    """A file that two servers have."""

    is_shared = True


class Memory(Sqlite):
    """SQLite in memory, which no other program reaches."""

    @property
    def url(self) -> str:
        return "sqlite://"

    def connect(self, dice: Random) -> Foreign | None:
        return None


class Postgres:
    """A database of a cluster that is the test's own.

    :param icu: the locale by which texts are ordered; empty for that of C.
    """

    is_sqlite = is_shared = False

    def __init__(self, cluster: Cluster, is_special: bool, icu: str = ""):
        self.is_special = is_special
        self._cluster, self._icu = cluster, icu
        self._name = ""

    def prepare(self, dice: Random, directory: Path, models: list[Model]) -> None:
        if self._icu:
            self._name = f"icu_{dice.randrange(10**9)}"
            self._cluster.execute(
                f"CREATE DATABASE {self._name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE '{self._icu}'"
            )
        else:
            self._name = self._cluster.new_database()
        if self.is_special:
            for statement in [*filter(str.strip, PREPARE.split(";")), *tables_of(models)]:
                self._cluster.execute(statement, self._name)

    @property
    def url(self) -> str:
        return self._cluster.url(self._name)

    def connect(self, dice: Random) -> Foreign | None:
        return _PostgresForeign(f"host={self._cluster.directory} port={PORT} user=postgres dbname={self._name}")

    def restart(self, dice: Random) -> bool:
        self._cluster.stop(dice.choice([signal.SIGINT, signal.SIGQUIT]))
        wait_until_blocking(self._can_start, "a PostgreSQL that starts again")
        return True

    def _can_start(self) -> bool:
        # After a crash others of its processes may hold on to its memory for a moment.
        try:
            self._cluster.start()
        except psycopg.OperationalError:
            return False
        return True

    def end(self) -> None:
        self._cluster.drop_database(self._name)
