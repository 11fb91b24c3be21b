"""The two databases: rows to be watched, and those who write them without zComm."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from living.clients import spent
from living.writers import BATCH, Batch, Write

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))

__all__ = ["PostgreSQL", "SQLite"]

SCHEMA = """
Items:
  _model: {live: %s}
  id: {type: int, pk: true}
  owner: {type: int, index: true}
  part: {type: int, index: true}
  stamp: {type: int}
  title: {type: str}
"""
TABLE = '"Items"'
_INSERT = f"INSERT INTO {TABLE} (id, owner, part, stamp, title) VALUES (?, ?, ?, 0, 'a row of a table')"


def _rows(count: int) -> list[tuple[int, int, int]]:
    """One row for each owner; those of a batch are of a hundred owners."""
    return [(number, number, number // BATCH) for number in range(count)]


class PostgreSQL:
    """A cluster with a database."""

    name = "PostgreSQL"

    def __init__(self, cluster: Any):
        self.cluster = cluster
        self.database = cluster.new_database()
        self.url = cluster.url(self.database)

    def connect(self) -> psycopg.Connection[Any]:
        """Another program's connection."""
        return psycopg.connect(
            host=str(self.cluster.directory), port=5432, user="postgres", dbname=self.database, autocommit=True
        )

    def fill(self, count: int) -> None:
        """Put in the rows."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.executemany(_INSERT.replace("?", "%s"), _rows(count))
            cursor.execute(f"VACUUM ANALYZE {TABLE}")

    def writers(self) -> dict[str, Batch]:
        """Those who write batches, by what they are called."""
        return {"psql UPDATE": self._updating("part"), "psql COPY": self._copying}

    def lone(self) -> Batch:
        """One who writes single rows."""
        return self._updating("id")

    def _updating(self, field: str) -> Batch:
        def make() -> Write:
            connection = self.connect()
            sql = f"UPDATE {TABLE} SET stamp = %s WHERE {field} = %s"

            def write(stamp: int, which: int) -> None:
                connection.execute(sql, (stamp, which), prepare=True)

            return write

        return make

    def _copying(self) -> Write:
        connection = self.connect()

        def write(stamp: int, which: int) -> None:
            start = which * BATCH
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute(f"DELETE FROM {TABLE} WHERE part = %s", (which,), prepare=True)
                with cursor.copy(f"COPY {TABLE} (id, owner, part, stamp, title) FROM STDIN") as copy:
                    copy.write(
                        "".join(
                            f"{number}\t{number}\t{which}\t{stamp}\ta row of a table\n"
                            for number in range(start, start + BATCH)
                        )
                    )

        return write

    def transactions(self) -> int | None:
        """How many transactions there were."""
        with psycopg.connect(
            host=str(self.cluster.directory), port=5432, user="postgres", dbname="postgres", autocommit=True
        ) as other:
            ((count,),) = other.execute(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", (self.database,)
            ).fetchall()
        return int(count)

    def spent(self) -> float:
        """Seconds of the processor that its processes have used which live."""
        total = spent(self.cluster.pid)
        for child in Path(f"/proc/{self.cluster.pid}/task/{self.cluster.pid}/children").read_text().split():
            try:
                total += spent(int(child))
            except FileNotFoundError:
                continue
        return total

    def close(self) -> None:
        """Drop it."""
        self.cluster.drop_database(self.database)


class SQLite:
    """A file."""

    name = "SQLite"

    def __init__(self, path: Path):
        self.path = path
        self.url = f"sqlite:///{path}"

    def connect(self) -> sqlite3.Connection:
        """Another program's connection."""
        connection = sqlite3.connect(self.path, timeout=20, isolation_level=None)
        # The disk is not what is measured with it.
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def fill(self, count: int) -> None:
        """Put in the rows."""
        connection = self.connect()
        connection.execute("BEGIN")
        connection.executemany(_INSERT, _rows(count))
        connection.execute("COMMIT")
        connection.close()

    def writers(self) -> dict[str, Batch]:
        """Those who write batches, by what they are called."""
        return {"sqlite3 UPDATE": self._updating("part")}

    def lone(self) -> Batch:
        """One who writes single rows."""
        return self._updating("id")

    def _updating(self, field: str) -> Batch:
        def make() -> Write:
            connection = self.connect()
            sql = f"UPDATE {TABLE} SET stamp = ? WHERE {field} = ?"

            def write(stamp: int, which: int) -> None:
                connection.execute(sql, (stamp, which))

            return write

        return make

    def transactions(self) -> int | None:
        """Nobody counts them."""
        return None

    def spent(self) -> float:
        """It is in the server's process."""
        return 0.0

    def close(self) -> None:
        """Leave it to the directory."""


@contextmanager
def cluster(*settings: str) -> Iterator[Any]:
    """A PostgreSQL on core 1, without fsync unless ``settings`` say so."""
    from support.postgres import Cluster, cluster_directory

    with cluster_directory() as (directory, programs):
        made = Cluster(directory, programs)
        made.start(*settings)
        try:
            if not settings and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(made.pid, {1})
                with suppress(PermissionError):
                    # Before those who write. Its sessions are its children.
                    os.sched_setscheduler(made.pid, os.SCHED_RR, os.sched_param(2))
            yield made
        finally:
            made.stop()
