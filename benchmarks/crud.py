"""CRUD through the socket, beside the same queries from a pool of threads that knows no server.

Both run pinned to the same core, on databases of their own with the demo model and a thousand users. The
threads are those of ``data.py``: SQLAlchemy Core as a careful program would write it. A third measurement asks
``ping`` while a hundred other clients wait for queries that walk a large table. Broadcasts are off, because
each create would count once for everybody who hears of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import load
import servers
from servers import Running, pinned, undisturbed, undisturbed_with_threads

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

ROWS = 1000
#: Rows of the table that slow queries walk.
MANY = 200_000
CLIENTS, IN_FLIGHT = 8, 8

READ = '{"zKey":"read_Users","zHorizontal":{"action":"read","model":"Users","where":{"id":%d}},"_requestId":1}'
CREATE = (
    '{"zKey":"create_Users","zHorizontal":{"action":"create","model":"Users",'
    '"values":{"name":"Alice","email":"socket%d@example.com"}},"_requestId":1}'
)
SLOW = (
    '{"zKey":"read_Users","zHorizontal":{"action":"read","model":"Users",'
    '"where":{"email__like":"%%nobody%%%d%%"}},"_requestId":1}'
)


@contextmanager
def databases() -> Iterator[dict[str, Any]]:
    """A function by kind of database that makes an empty one and returns its URL."""
    from support.postgres import make_cluster

    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="zcomm-bench-"))
        made = iter(range(1_000_000))
        cluster = stack.enter_context(contextmanager(make_cluster)())
        yield {
            "SQLite": lambda: f"sqlite:///{directory}/{next(made)}.sqlite3",
            "PostgreSQL": lambda: cluster.url(cluster.new_database()),
        }


def fill(url: str, rows: int) -> None:
    """Make the demo model's table and put ``rows`` users into it."""
    import sqlalchemy as sa

    from zcomm.data.schema import demo_schema
    from zcomm.data.sql.tables import build_tables

    made = sa.make_url(url)
    engine = sa.create_engine(
        made.set(drivername="postgresql+psycopg") if made.get_backend_name() == "postgresql" else made
    )
    metadata, tables, _ = build_tables(demo_schema())
    metadata.create_all(engine)
    values = [
        {"name": "Alice", "email": f"row{number}@example.com", "active": True, "role": "user", "verified": False}
        for number in range(rows)
    ]
    with engine.begin() as connection:
        connection.execute(tables["Users"].insert(), values)
    engine.dispose()


def through_threads(url: str, action: str, seconds: float) -> dict[str, Any]:
    """The rate of plain SQLAlchemy, in a process of its own on the server's core."""
    done = subprocess.run(
        pinned(0, [sys.executable, __file__, url, action, str(seconds)]),
        capture_output=True,
        text=True,
        preexec_fn=undisturbed,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def through_socket(target: Running, action: str, seconds: float) -> dict[str, Any]:
    """The rate of the same queries as commands."""
    said, more = (
        (READ, {"WSLOAD_FROM": "1", "WSLOAD_RANGE": str(ROWS)})
        if action == "read"
        else (CREATE, {"WSLOAD_FROM": str(int(time.monotonic() * 1000) % 10**8 * 10)})
    )
    return load.wsload(target, "rpc", target.server.rpc, CLIENTS, IN_FLIGHT, seconds, said, **more)


def ping_beside_slow(target: Running, seconds: float) -> dict[str, Any]:
    """The latency of ``ping`` on one connection while a hundred others wait for slow queries."""
    slow = subprocess.Popen(
        load.command(target, "rpc", target.server.rpc, 100, 1, seconds + 3, SLOW),
        env=load.environ(target),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=undisturbed,
    )
    try:
        time.sleep(1)
        return load.wsload(target, "rpc", target.server.rpc, 1, 1, seconds, target.server.request)
    finally:
        slow.kill()
        slow.communicate()


def measure(rounds: int, seconds: float) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every database and action, both ways in turn: case -> way -> what each round gave."""
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def note(case: str, way: str, numbers: dict[str, Any]) -> None:
        samples.setdefault(case, {}).setdefault(way, []).append(numbers)

    with databases() as make:
        for turn in range(rounds):
            for kind, new in make.items():
                print(f"\r\033[Kcrud: round {turn + 1} of {rounds}, {kind}", end="", file=sys.stderr, flush=True)
                for action in ("read", "create"):
                    url = new()
                    fill(url, ROWS)
                    note(f"{kind} {action}", "SQLAlchemy", through_threads(url, action, seconds))
                    url = new()
                    fill(url, ROWS)
                    with servers.running(servers.zcomm("zcomm", "--broadcast", "none", "--database", url)) as target:
                        note(f"{kind} {action}", "zcomm", through_socket(target, action, seconds))
                url = new()
                fill(url, MANY)
                ours = servers.zcomm("zcomm", "--broadcast", "none", "--database", url)
                with servers.running(ours, prepare=undisturbed_with_threads) as target:
                    note(f"{kind} ping beside 100 slow", "zcomm", ping_beside_slow(target, seconds))
    print("\r\033[K", end="", file=sys.stderr)
    return samples


def _main(url: str, action: str, seconds: str) -> None:
    """The other process: plain SQLAlchemy on ``url``."""
    import data

    run, dispose = data.direct(url, 10)
    run(action, float(seconds) * 0.2)
    print(json.dumps({"rate": run(action, float(seconds) * 0.8)}))
    dispose()


if __name__ == "__main__":
    _main(*sys.argv[1:])
