"""What live queries cost those who write: the same table not live, live while nobody watches, and watched."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from living.clients import WebSocket, spent, until
from living.databases import TABLE, PostgreSQL, SQLite, cluster
from living.subjects import _live, ready, running_zcomm

__all__ = ["measure"]

ROWS = 10_000
#: Queries that are held while it is watched.
QUERIES = 100
#: How many short rounds there are for each one, of single statements and of commits: a disk is now fast, now slow.
MANY, FEW = 15, 3
VARIANTS = ("plain", "not watched", "watched")
_SCRIPT = f"\\set id random(0, {ROWS - 1})\nUPDATE {TABLE} SET stamp = (random() * 1000000000)::int WHERE id = :id;\n"


@contextmanager
def _watching(database: PostgreSQL | SQLite, place: Path) -> Iterator[None]:
    """Have queries of it held."""
    with running_zcomm(database, place) as target:
        client = WebSocket(target.port, target.path(target.server.rpc))
        results = client.ask([_live(owner) for owner in range(50)])
        results += client.ask([_live(owner) for owner in range(50, QUERIES)])
        if any(result["sees"] != "all" for result in results):
            raise RuntimeError(f"{database.name} is not watched")
        # One change that is told shows that the log is written.
        with database.connect() as connection:
            connection.execute(f"UPDATE {TABLE} SET stamp = -1 WHERE id = 1")
            connection.commit()
        until(lambda: "queries" in client.hear(), 20, "no change was told of")
        client.socket.setblocking(False)
        yield
        client.socket.close()


@contextmanager
def _variants(make: Any, place: Path, stack: ExitStack) -> Iterator[dict[str, Any]]:
    made = {}
    for variant in VARIANTS:
        database = made[variant] = make(variant)
        with running_zcomm(database, place, variant != "plain") as target:
            # It makes the table, and what is needed to watch it.
            ready(target)
        database.fill(ROWS)
    stack.enter_context(_watching(made["watched"], place))
    yield made


def measure(rounds: int, seconds: float, note: Any) -> None:
    """Measure it on both databases, in turn.

    :param seconds: of each round of one variant.
    :param note: called with a case, a variant and what it gave.
    """
    import tempfile

    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zcomm-bench-")))
        place.chmod(0o755)
        files = stack.enter_context(
            _variants(lambda variant: SQLite(place / f"{variant.replace(' ', '-')}.sqlite3"), place, stack)
        )
        for _ in range(MANY * rounds):
            for variant, database in files.items():
                note("SQLite, a statement", variant, _in_one(database, 1000))
        for _ in range(FEW * rounds):
            for variant, database in files.items():
                note("SQLite, commits/s with fsync, 1 writer", variant, {"rate": _each_synced(database, seconds)})
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zcomm-bench-")))
        place.chmod(0o755)
        (place / "update.sql").write_text(_SCRIPT)
        running = stack.enter_context(cluster("fsync=on", "max_wal_size=4GB"))
        servers_of = stack.enter_context(_variants(lambda _: PostgreSQL(running), place, stack))
        sessions = {variant: stack.enter_context(database.connect()) for variant, database in servers_of.items()}
        for session in sessions.values():
            session.execute("SET synchronous_commit = off")
        for _ in range(MANY * rounds):
            for variant, session in sessions.items():
                note("PostgreSQL, a statement", variant, _each(session, 300))
        for _ in range(FEW * rounds):
            for writers in (1, 32):
                for variant, database in servers_of.items():
                    rate = _pgbench(database, place / "update.sql", writers, round(seconds))
                    note(f"PostgreSQL, commits/s with fsync, {_count(writers)}", variant, {"rate": rate})


def _count(writers: int) -> str:
    return f"{writers} writer{'s' if writers > 1 else ''}"


def _pgbench(database: PostgreSQL, script: Path, clients: int, seconds: int) -> float:
    """Transactions a second of single updates by key."""
    from support.postgres import binaries

    programs = binaries()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed")
    done = subprocess.run(
        [
            str(programs / "pgbench"),
            *("-n", "-M", "prepared", "-c", str(clients), "-j", "1", "-T", str(seconds), "-f", str(script)),
            *("-h", str(database.cluster.directory), "-p", "5432", "-U", "postgres", database.database),
        ],
        capture_output=True,
        text=True,
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(done.stderr)
    return float(found.group(1))


def _each(session: Any, count: int) -> dict[str, float]:
    """Microseconds of a single update and its commit, and those of the processor that the session has used."""
    sql = f"UPDATE {TABLE} SET stamp = %s WHERE id = %s"
    process = session.info.backend_pid
    begun, used = time.perf_counter(), spent(process)
    for number in range(count):
        session.execute(sql, (time.monotonic_ns() & 0xFFFFFFF, number * 7 % ROWS), prepare=True)
    took, used = time.perf_counter() - begun, spent(process) - used
    return {"us": took / count * 1e6, "cpu_us": used / count * 1e6}


def _in_one(database: SQLite, count: int) -> dict[str, float]:
    """The same, of many in one transaction: a commit writes to the disk."""
    with _connected(database, "OFF") as connection:
        sql = f"UPDATE {TABLE} SET stamp = ? WHERE id = ?"
        connection.execute("BEGIN IMMEDIATE")
        begun, used = time.perf_counter(), time.thread_time()
        for number in range(count):
            connection.execute(sql, (time.monotonic_ns() & 0xFFFFFFF, number * 7 % ROWS))
        took, used = time.perf_counter() - begun, time.thread_time() - used
        connection.execute("COMMIT")
    return {"us": took / count * 1e6, "cpu_us": used / count * 1e6}


def _each_synced(database: SQLite, seconds: float) -> float:
    """Commits a second, each of them on the disk."""
    with _connected(database, "FULL") as connection:
        sql = f"UPDATE {TABLE} SET stamp = ? WHERE id = ?"
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            count += 1
            connection.execute(sql, (time.monotonic_ns() & 0xFFFFFFF, count * 7 % ROWS))
        return count / (time.perf_counter() - begun)


@contextmanager
def _connected(database: SQLite, synchronous: str) -> Iterator[sqlite3.Connection]:
    connection = database.connect()
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    try:
        yield connection
    finally:
        connection.close()
