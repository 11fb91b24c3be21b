"""A real PostgreSQL for tests: one cluster for the whole run, a new database for whoever asks.

Import the fixtures in the ``conftest.py`` that wants them::

    from support.postgres import cluster_template, postgresql, postgresql_url  # noqa: F401 (fixtures)
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest

__all__ = ["Cluster", "binaries", "cluster_template", "make_cluster", "postgresql", "postgresql_url"]

PATIENCE = 60.0
#: The part of the socket's name that stands for a port; nothing listens on TCP.
PORT = 5432


def binaries() -> Path | None:
    """The directory of initdb and postgres, or ``None``."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return installed[-1].parent if installed else None


class Cluster:
    """A PostgreSQL cluster in a directory of its own, reached through a socket there.

    :param directory: an empty one.
    :param programs: where initdb and postgres are.
    :param template: the directory of a cluster that never ran, to be copied, which takes a tenth of making one.
    """

    def __init__(self, directory: Path, programs: Path, template: Path | None = None):
        self.directory = directory
        self._programs = programs
        self._data = directory / "data"
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL does not run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        if template is not None:
            subprocess.run(["cp", "-a", template / "data", self._data], check=True, timeout=PATIENCE)
            return
        subprocess.run(
            [
                programs / "initdb",
                "--pgdata",
                self._data,
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            user=self._user,
            cwd=directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE,
        )

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        if self._process is None:
            raise RuntimeError("the cluster is not running")
        return self._process.pid

    def start(self, *settings: str) -> None:
        """Start it and wait until it answers.

        :param settings: as ``name=value``.
        """
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    self._programs / "postgres",
                    "-D",
                    self._data,
                    "-k",
                    self.directory,
                    "-p",
                    str(PORT),
                    "-c",
                    "listen_addresses=",
                    "-c",
                    "fsync=off",
                    "-c",
                    "max_connections=200",
                    *(word for setting in settings for word in ("-c", setting)),
                ],
                user=self._user,
                cwd=self.directory,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                # The next attempt is the wait: libpq has no other way of asking.
                select_nothing(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends every session, SIGQUIT like a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)
            self._process = None

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of ``database``."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={PORT}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser; its rows."""
        with psycopg.connect(
            host=str(self.directory), port=PORT, user="postgres", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(sql)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """Create an empty database; its name."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, and whatever still talks to it."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")


def select_nothing(seconds: float) -> None:
    """Wait for a file descriptor that is none, which takes exactly so long."""
    import select

    select.select([], [], [], seconds)


@contextmanager
def cluster_directory() -> Iterator[tuple[Path, Path]]:
    """A directory for a cluster, gone afterwards, and PostgreSQL's programs."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (initdb)")
    # Not under pytest's directory: the path of a socket has room for 107 characters.
    directory = Path(tempfile.mkdtemp(prefix="zpg"))
    try:
        yield directory, programs
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def make_cluster(template: Path | None = None) -> Iterator[Cluster]:
    """A running cluster, gone afterwards with everything in it."""
    with cluster_directory() as (directory, programs):
        cluster = Cluster(directory, programs, template)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def cluster_template() -> Iterator[Path]:
    """The directory of a cluster that never runs."""
    with cluster_directory() as (directory, programs):
        Cluster(directory, programs)
        yield directory


@pytest.fixture(scope="session")
def postgresql(cluster_template: Path) -> Iterator[Cluster]:
    """The cluster that all tests of a run share."""
    yield from make_cluster(cluster_template)


@pytest.fixture
def postgresql_url(postgresql: Cluster) -> Iterator[str]:
    """The URL of an empty database of the shared cluster."""
    name = postgresql.new_database()
    yield postgresql.url(name)
    postgresql.drop_database(name)
