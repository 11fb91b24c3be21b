"""Live queries, measured: ``python benchmarks/live.py [rate|latency|idle|cost|all] … [--json report.json]``

Ten thousand live queries by equality, each of which finds one row, are held by 200 WebSocket connections. zComm runs as
its users run it, on PostgreSQL and on SQLite, with the limits of one user lifted, as which all of these come.
PocketBase does the part that it can do at all: it hears of what is written through itself alone, sends no rows to begin
with, tells of no row that comes not to match any more, and keeps no order and no limit.

``rate``     rows that arrive a second, while somebody writes more than is told of: batches of a hundred rows through
             the server, by ``psql`` and ``COPY``, by ``sqlite3``; and ``ping`` on twenty other connections.
``latency``  from when a write is sent until its row arrives: lone rows, and a hundred batches a second.
``idle``     transactions at the database and processor time while nothing changes.
``cost``     what a writer pays: a table not live, live while nobody watches, and watched by a hundred queries.

Memory for each query is measured with any of the first three. The server is on core 0, database, writers and listener
on core 1; for ``cost`` all share both. Each number is the median of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import run
from living import cost
from living.clients import spent
from living.databases import PostgreSQL, SQLite, cluster
from living.subjects import Held, PocketBase, ZComm, pocketbase
from living.writers import Writers

PARTS = ("rate", "latency", "idle", "cost")
#: What each case's numbers are, and the goal that they have: that of a rate is a floor.
COLUMNS = {
    "rate": (
        ("rate", "rows/s"),
        ("written", "written/s"),
        ("ping_p50", "ping p50 ms"),
        ("ping_p99", "ping p99 ms"),
        ("cpu", "% of a core"),
    ),
    "latency": (("p50", "p50 ms"), ("p99", "p99 ms"), ("rows", "rows/s"), ("ping_p99", "ping p99 ms")),
    "idle": (("statements", "statements/s"), ("cpu", "% of a core"), ("cpu_database", "% database")),
    "memory": (("kib", "KiB/query"),),
    "cost": (("cpu_us", "cpu µs"), ("us", "µs"), ("rate", "commits/s")),
}
#: Writers at once in the search for the limit, writes a second of those under load, and of the lone one.
CROWD, LOAD, LONE = 4, 100.0, 5.0
#: Rows a second that others write at most, twice what is to be followed; some would fill their core with it.
MOST = 40_000
#: Seconds after the last write within which its rows arrive, or never.
TAIL = 0.5

Samples = dict[str, dict[str, dict[str, list[dict[str, float]]]]]


class Bench:
    """One run.

    :ivar samples: by part, case and who, what each round gave.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.samples: Samples = {}

    def note(self, part: str, case: str, who: str, numbers: dict[str, float]) -> None:
        """Keep what a round gave."""
        self.samples.setdefault(part, {}).setdefault(case, {}).setdefault(who, []).append(numbers)
        if "us" in numbers:
            return
        said = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        print(f"  {part}, {case}, {who}: {said}", file=sys.stderr, flush=True)

    def held(self, name: str, held: Held, parts: list[str]) -> None:
        """Measure with what is held."""
        seconds, batches = self.options.seconds, self.options.queries // held.batch
        self.note("memory", "each query", name, {"kib": held.kib})
        if "idle" in parts and not self.samples.get("idle", {}).get(f"{self.options.queries:,} queries", {}).get(name):
            # Once is enough: nothing happens.
            # A session of PostgreSQL tells of its transactions when it has been idle for ten seconds.
            time.sleep(1 if held.of is None or held.of.transactions() is None else 11)
            self.note("idle", f"{self.options.queries:,} queries", name, _idle(held, 2 * seconds))
        if "latency" in parts:
            for who, make in held.lone.items():
                writers = Writers(make, 1, 2 * seconds, self.options.queries, LONE)
                self.note("latency", f"a lone row, {who}", name, _written(held, writers, 2 * seconds, True))
            for who, make in held.writers.items():
                writers = Writers(make, 2, seconds, batches, LOAD)
                self.note(
                    "latency", f"{LOAD:.0f} writes/s of {held.batch}, {who}", name, _written(held, writers, seconds)
                )
        if "rate" in parts:
            for who, make in held.writers.items():
                writers = Writers(make, CROWD, seconds, batches, MOST / held.batch)
                self.note("rate", who, name, _written(held, writers, seconds))


def _written(held: Held, writers: Writers, seconds: float, is_lone: bool = False) -> dict[str, float]:
    """What arrives while they write, after a fifth of the time."""
    held.listener.records(True)
    begun, used = time.monotonic_ns(), spent(held.pid)
    written = writers.run()
    until, used = time.monotonic_ns(), spent(held.pid) - used
    time.sleep(TAIL)
    rows, pings = held.listener.records(False)
    since = begun + int(seconds * 0.2e9)
    sent = {stamp: when for stamp, when, _ in written}
    took = [(when - sent[stamp]) / 1e6 for stamp, when in rows if stamp in sent and sent[stamp] >= since]
    answered = [took / 1e6 for took, when in pings if since <= when < until]
    window = (until - since) / 1e9
    numbers = {
        "rate": sum(since <= when < until for _, when in rows) / window,
        "written": sum(since <= when < until for _, _, when in written) * (1 if is_lone else held.batch) / window,
        "cpu": 100 * used / ((until - begun) / 1e9),
        "rows": len(took) / window,
    }
    numbers |= _percentiles("", took) | _percentiles("ping_", answered)
    numbers["ping_max"] = max(answered, default=0.0)
    return numbers


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {f"{name}p50": float("inf"), f"{name}p99": float("inf")}
    values.sort()
    return {f"{name}p{part}": values[min(len(values) - 1, len(values) * part // 100)] for part in (50, 99)}


def _idle(held: Held, seconds: float) -> dict[str, float]:
    database = held.of
    before, used = (None if database is None else database.transactions()), spent(held.pid)
    of_database = 0.0 if database is None else database.spent()
    begun = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begun
    numbers = {"cpu": 100 * (spent(held.pid) - used) / took}
    if database is not None and before is not None:
        numbers["statements"] = (database.transactions() - before) / took
        numbers["cpu_database"] = 100 * (database.spent() - of_database) / took
    return numbers


@contextmanager
def _place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zcomm-bench-") as directory:
        yield Path(directory)


def measure(bench: Bench, parts: list[str]) -> None:
    """All servers in turn, round by round."""
    options = bench.options
    names = options.servers.split(",")
    if set(parts) - {"cost"}:
        with _place() as place, cluster() as running:
            for turn in range(options.rounds):
                subjects: list[Any] = []
                if "postgresql" in names:
                    subjects.append(ZComm(PostgreSQL(running), place))
                if "sqlite" in names:
                    subjects.append(ZComm(SQLite(place / f"{turn}.sqlite3"), place))
                if "pocketbase" in names:
                    subjects += [PocketBase(pocketbase(), place, by) for by in ("filter", "id")]
                for subject in subjects:
                    print(f"round {turn + 1} of {options.rounds}: {subject.name}", file=sys.stderr, flush=True)
                    try:
                        with subject.held(options.queries) as held:
                            bench.held(subject.name, held, parts)
                    except (RuntimeError, OSError) as error:
                        print(f"{subject.name} is left out: {error}", file=sys.stderr)
    if "cost" in parts:
        cost.measure(options.rounds, options.seconds, lambda case, who, numbers: bench.note("cost", case, who, numbers))


def table(samples: Samples) -> str:
    """The medians as text, with the lowest and highest round of the first number."""
    lines = []
    for part, cases in samples.items():
        columns = [
            (key, name)
            for key, name in COLUMNS[part]
            if any(key in each for of in cases.values() for numbers in of.values() for each in numbers)
        ]
        for case, by_who in cases.items():
            mine = [(key, name) for key, name in columns if any(key in each for of in by_who.values() for each in of)]
            lines.append(f"{part + ', ' + case:<48}" + "".join(f"{name:>14}" for _, name in mine) + "  from … to")
            for who, numbers in by_who.items():
                values = "".join(f"{_text(_median(numbers, key)):>14}" for key, _ in mine)
                spread = sorted(each[mine[0][0]] for each in numbers if mine[0][0] in each)
                ends = f"{_text(spread[0])} … {_text(spread[-1])}" if spread else ""
                lines.append(f"  {who:<46}{values}  {ends}{_beside(by_who, who, mine[0][0]) if part == 'cost' else ''}")
            lines.append("")
    return "\n".join(lines)


def _beside(by_who: dict[str, list[dict[str, float]]], who: str, key: str) -> str:
    """What differs from the table that is not live: the median of the differences within rounds."""
    plain = by_who["plain"]
    if who == "plain":
        return ""
    pairs = [(one[key], other[key]) for one, other in zip(by_who[who], plain, strict=False)]
    if key == "cpu_us":
        return f"  {statistics.median(one - other for one, other in pairs):+.1f} µs"
    return f"  {100 * statistics.median(one / other for one, other in pairs):.1f} %"


def _median(numbers: list[dict[str, float]], key: str) -> float | None:
    found = [each[key] for each in numbers if key in each]
    return statistics.median(found) if found else None


def _text(number: float | None) -> str:
    if number is None or number == float("inf"):
        return "–"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", default="all", choices=[*PARTS, "all"], metavar="PART")
    parser.add_argument("--servers", default="postgresql,sqlite,pocketbase", help="with commas between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.5, help="of each measurement")
    parser.add_argument("--queries", type=int, default=10_000, help="a multiple of 200")
    parser.add_argument("--json", type=Path, help="write every sample there")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    parts = list(PARTS) if "all" in options.part else options.part
    bench, begun = Bench(options), time.monotonic()
    measure(bench, parts)
    print(table(bench.samples))
    if options.json:
        report = {
            "samples": bench.samples,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "queries": options.queries,
            "machine": run.machine(),
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": os.getloadavg(),
            "took": round(time.monotonic() - begun),
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
