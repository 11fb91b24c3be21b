"""The time that local servers take to start, stop and come back: zComm, and ``pg_ctl`` and ``redis-server`` beside it.

Run it with ``python benchmarks/services.py [--runs N] [--dir DIR] [--json]``. Every figure is the median of N
runs of the real servers, in milliseconds, and all are taken in the same run on the same disk, one of ours and
one of theirs in turn. Ready means for zComm what it always means: the server is its own child and answered;
for ``pg_ctl`` what ``-w`` waits for, for ``redis-server`` the first PONG.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater, react

sys.path.insert(0, str(Path(__file__).parent.parent))

from zcomm.services.kinds.postgresql.programs import choose_postgresql
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.programs import choose_redis
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.machine.account import Account, choose_account
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.programs import find_all
from zcomm.services.manager import ServiceManager

#: What is to be reached, in milliseconds.
TARGETS = {
    "PostgreSQL warm start": 45,
    "PostgreSQL stop": 25,
    "PostgreSQL restart": 60,
    "PostgreSQL kill -9 to ready": 130,
    "PostgreSQL first start, from the spare": 100,
    "PostgreSQL first start, with initdb": 1000,
    "PostgreSQL adoption": 20,
    "Redis start": 15,
    "Redis kill -9 to ready": 25,
    "Redis adoption": 20,
}


@dataclass
class Figures:
    """Measured times by operation, in milliseconds; ``failed`` counts what did not work at all."""

    times: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def add(self, operation: str, seconds: float) -> None:
        self.times.setdefault(operation, []).append(seconds * 1000)

    def fail(self, operation: str) -> None:
        self.failed[operation] = self.failed.get(operation, 0) + 1

    def summary(self, operation: str) -> dict[str, Any] | None:
        times, failed = self.times.get(operation, []), self.failed.get(operation, 0)
        if not times:
            return {"failed": failed} if failed else None
        return {
            "median": round(statistics.median(times), 1),
            "min": round(min(times), 1),
            "max": round(max(times), 1),
            "runs": len(times),
            "failed": failed,
        }


class Peers:
    """The servers without zComm, run as the same account: ``pg_ctl``, and ``redis-server`` with a socket."""

    def __init__(self, root: Path, postgresql: Installation, redis: Installation, account: Account):
        self.root, self.postgresql, self.redis, self.account = root, postgresql, redis, account
        self.data = root / "peer-postgresql"
        self.redis_data = root / "peer-redis"
        self.port, self.redis_port = free_port(), free_port()
        self.drop = {"user": account.uid, "group": account.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        for path in (self.data, self.redis_data):
            self.own(path)

    def own(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        if self.drop:
            os.chown(path, self.account.uid, self.account.gid)

    def run(self, tool: str, *words: object) -> int:
        return subprocess.run(
            [str(self.postgresql.tool(tool)), *map(str, words)],
            cwd="/",
            check=False,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self.drop,
        ).returncode

    def initdb(self, path: Path) -> None:
        self.run("initdb", "-D", path, "-N", "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust")

    def pg_ctl(self, action: str, path: Path, *words: str) -> int:
        options = f"-p {self.port} -h 127.0.0.1 -k {path}"
        start = ("-l", str(path / "log"), "-o", options) if action != "stop" else ()
        return self.run("pg_ctl", action, "-D", path, "-w", *start, *words)

    def postmaster(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def start_redis(self) -> subprocess.Popen[bytes]:
        words = [
            str(self.redis.server),
            "--port",
            str(self.redis_port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.redis_data),
        ]
        running = subprocess.Popen(words, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.drop)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.redis_port), 1) as asking:
                    asking.sendall(b"PING\r\n")
                    if asking.recv(16).startswith(b"+PONG"):
                        return running
            except OSError:
                time.sleep(0.0005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def timed(figures: Figures, operation: str, work: Callable[[], Any]) -> Any:
    begun = time.perf_counter()
    status = work()
    if isinstance(status, int) and status != 0:
        figures.fail(operation)
    else:
        figures.add(operation, time.perf_counter() - begun)
    return status


async def timed_async(figures: Figures, operation: str, work: Callable[[], Deferred[Any]]) -> None:
    begun = time.perf_counter()
    await work()
    figures.add(operation, time.perf_counter() - begun)


class Bench:
    """One run of everything."""

    def __init__(self, reactor: Any, root: Path, runs: int):
        self.reactor, self.root, self.runs = reactor, root, runs
        self.ours, self.theirs = Figures(), Figures()
        self.environ = {**os.environ, "POSTGRESQL_PORT": str(free_port()), "REDIS_PORT": str(free_port())}
        for name in ("POSTGRESQL_DATA_DIR", "REDIS_DATA_DIR"):
            self.environ.pop(name, None)
        self.account = choose_account(root / "none", "", ("postgres",), self.environ)
        postgresql = choose_postgresql(find_all(PostgreSQLService.programs, self.environ), None)
        redis = choose_redis(find_all(RedisService.programs, self.environ), None)
        if postgresql is None or redis is None:
            raise SystemExit("this benchmark needs a PostgreSQL and a Redis or Valkey")
        self.versions = f"{postgresql}, {redis}"
        self.peers = Peers(root, postgresql, redis, self.account)

    def manager(self, name: str = "home", lifetime: str = "persistent") -> ServiceManager:
        return ServiceManager(self.root / name, self.environ, self.reactor, lifetime=lifetime, reserve_after=None)

    async def run(self) -> None:
        await self.first_starts()
        manager = self.manager()
        await manager.start("postgresql")
        await manager.start("redis")
        await manager.stop("postgresql")
        await manager.stop("redis")
        self.peers.initdb(self.peers.data)
        self.peers.pg_ctl("start", self.peers.data)
        self.peers.pg_ctl("stop", self.peers.data, "-m", "fast")
        for _ in range(self.runs):
            await self.postgresql(manager)
            self.pg_ctl()
            await self.redis(manager)
            self.redis_server()
        await manager.stopService()
        for _ in range(self.runs):
            await self.adoption()

    async def postgresql(self, manager: ServiceManager) -> None:
        await timed_async(self.ours, "PostgreSQL warm start", lambda: manager.start("postgresql"))
        await timed_async(self.ours, "PostgreSQL restart", lambda: manager.restart("postgresql"))
        await self.crash(manager, "postgresql", "PostgreSQL kill -9 to ready")
        await timed_async(self.ours, "PostgreSQL stop", lambda: manager.stop("postgresql"))

    def pg_ctl(self) -> None:
        peers = self.peers
        timed(self.theirs, "PostgreSQL warm start", lambda: peers.pg_ctl("start", peers.data))
        timed(self.theirs, "PostgreSQL restart", lambda: peers.pg_ctl("restart", peers.data, "-m", "fast"))

        def crash() -> int:
            os.kill(peers.postmaster(), signal.SIGKILL)
            return peers.pg_ctl("start", peers.data)

        if timed(self.theirs, "PostgreSQL kill -9 to ready", crash):
            while peers.pg_ctl("start", peers.data):
                pass
        timed(self.theirs, "PostgreSQL stop", lambda: peers.pg_ctl("stop", peers.data, "-m", "fast"))

    async def redis(self, manager: ServiceManager) -> None:
        await timed_async(self.ours, "Redis start", lambda: manager.start("redis"))
        await timed_async(self.ours, "Redis restart", lambda: manager.restart("redis"))
        await self.crash(manager, "redis", "Redis kill -9 to ready")
        await timed_async(self.ours, "Redis stop", lambda: manager.stop("redis"))

    def redis_server(self) -> None:
        running = timed(self.theirs, "Redis start", self.peers.start_redis)

        def crash() -> subprocess.Popen[bytes]:
            running.kill()
            running.wait()
            return self.peers.start_redis()

        again = timed(self.theirs, "Redis kill -9 to ready", crash)

        def stop() -> None:
            again.terminate()
            again.wait()

        timed(self.theirs, "Redis stop", stop)

    async def crash(self, manager: ServiceManager, name: str, operation: str) -> None:
        """From the SIGKILL to the next verified readiness, which zComm reaches by itself."""
        before = (await manager.status(name))["pid"]
        service = manager.get(name)
        # Failures add up to a pause between attempts; here each crash is meant to be the first.
        service._failures = ()
        begun = time.perf_counter()
        os.kill(before, signal.SIGKILL)
        while service.state.value != "running" or service.context.record.pid == before:
            await deferLater(self.reactor, 0.0005, lambda: None)
        self.ours.add(operation, time.perf_counter() - begun)

    async def first_starts(self) -> None:
        for number in range(max(3, self.runs // 3)):
            manager = self.manager(f"first-{number}")
            await timed_async(self.ours, "PostgreSQL first start, with initdb", lambda m=manager: m.start("postgresql"))
            await manager.stop("postgresql")
            await manager.stopService()
            path = self.root / f"peer-first-{number}"
            self.peers.own(path)

            def first(path: Path = path) -> int:
                self.peers.initdb(path)
                return self.peers.pg_ctl("start", path)

            timed(self.theirs, "PostgreSQL first start, with initdb", first)
            self.peers.pg_ctl("stop", path, "-m", "fast")
            spare = self.manager(f"spare-{number}")
            await Deferred.fromCoroutine(spare.get("postgresql").kind.make_reserve())
            await timed_async(
                self.ours, "PostgreSQL first start, from the spare", lambda m=spare: m.start("postgresql")
            )
            await spare.stop("postgresql")
            await spare.stopService()

    async def adoption(self) -> None:
        """A manager that ends leaves its servers; the next takes them over as they run."""
        first = self.manager()
        for name in ("postgresql", "redis"):
            await first.start(name)
        pids = {name: (await first.status(name))["pid"] for name in ("postgresql", "redis")}
        await first.stopService()
        second = self.manager()
        for name, shown in (("postgresql", "PostgreSQL"), ("redis", "Redis")):
            await timed_async(self.ours, f"{shown} adoption", lambda name=name: second.start(name))
            if (await second.status(name))["pid"] != pids[name]:
                raise SystemExit(f"{name} was started anew instead of being taken over")
        for name in ("postgresql", "redis"):
            await second.stop(name)
        await second.stopService()


def shown(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "-"
    if "median" not in summary:
        return f"fails ({summary['failed']} of {summary['failed']})"
    text = f"{summary['median']:.1f} ({summary['min']:.1f}-{summary['max']:.1f})"
    return text + (f", {summary['failed']} failed" if summary["failed"] else "")


def print_table(bench: Bench) -> None:
    operations = list(dict.fromkeys([*TARGETS, *bench.ours.times]))
    rows = [("milliseconds: median (min-max)", "zComm", "pg_ctl, redis-server", "target", "")]
    for operation in operations:
        ours, target = bench.ours.summary(operation), TARGETS.get(operation)
        verdict = "" if target is None or not ours else "reached" if ours["median"] <= target else "MISSED"
        rows.append(
            (
                operation,
                shown(ours),
                shown(bench.theirs.summary(operation)),
                f"<= {target}" if target else "",
                verdict,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


async def main(reactor: Any, args: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp(prefix="zcomm-bench-", dir=args.dir))
    root.chmod(0o755)
    try:
        bench = Bench(reactor, root, args.runs)
        print(
            f"{bench.versions}; {args.runs} runs in {root.parent}, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}, as {bench.account.name}",
            file=sys.stderr,
        )
        await bench.run()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if args.json:
        print(
            json.dumps(
                {
                    operation: {
                        "zcomm": bench.ours.summary(operation),
                        "peer": bench.theirs.summary(operation),
                        "target": TARGETS.get(operation),
                    }
                    for operation in bench.ours.times
                },
                indent=2,
            )
        )
    else:
        print_table(bench)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="how often each is measured (15)")
    parser.add_argument("--dir", help="where the data lies (the system's temporary directory)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, arguments)))
