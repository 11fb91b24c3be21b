"""A real pgbouncer before the tests' PostgreSQL, as hosted databases come with one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from support.postgres import PORT, Cluster
from support.waiting import wait_until_blocking

__all__ = ["PgBouncer", "pgbouncer"]


class PgBouncer:
    """A pgbouncer before all databases of ``cluster``, reached through a socket in a directory of its own.

    :param mode: ``session``, ``transaction`` or ``statement``.
    :param connect_query: what it has each new session of the server run.
    :param settings: further lines of its configuration.
    """

    def __init__(self, directory: Path, cluster: Cluster, mode: str, connect_query: str = "", **settings: Any):
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        # It does not run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        lines = {
            "listen_addr": "",
            "listen_port": PORT,
            "unix_socket_dir": directory,
            "auth_type": "any",
            "admin_users": "postgres",
            "pool_mode": mode,
            "max_client_conn": 500,
            "default_pool_size": 3,
            **settings,
        }
        (directory / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={cluster.directory} port={PORT} user=postgres"
            + (f" connect_query='{connect_query}'" if connect_query else "")
            + "\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(directory, entry.pw_uid, entry.pw_gid)

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of ``database`` through it."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={PORT}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [program, str(self.directory / "pgbouncer.ini")], user=self._user, stdout=log, stderr=log
            )
        wait_until_blocking(self._answers, "pgbouncer to answer")

    def stop(self) -> None:
        """End it, and with it every connection through it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(self.admin("SHOW VERSION"))
        except psycopg.OperationalError:
            return False

    def admin(self, command: str) -> list[tuple[Any, ...]]:
        """Run a command of its console, such as ``PAUSE``; its rows."""
        with psycopg.connect(
            f"host={self.directory} port={PORT} user=postgres dbname=pgbouncer", autocommit=True
        ) as connection:
            cursor = psycopg.ClientCursor(connection).execute(command)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []


@contextmanager
def pgbouncer(cluster: Cluster, mode: str = "transaction", **settings: Any) -> Iterator[PgBouncer]:
    """A running pgbouncer, gone afterwards."""
    # Not under pytest's directory: the path of a socket has room for 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="zpgb"))
    made = PgBouncer(directory, cluster, mode, **settings)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)
