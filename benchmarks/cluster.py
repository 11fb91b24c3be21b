"""Several servers on one Redis, zComm's beside those of others: ``python benchmarks/cluster.py [--rounds 2] …``

Two processes of each on one Redis: zComm (``--engine``), socket.io with its Redis streams adapter and connection state
recovery, python-socketio with its Redis manager, Django Channels with channels_redis, Nchan with Redis.

``publish``   messages a second through a hundred connections to the first node, four out on each, in a hundred rooms
              of which one has a subscriber, at the second node; with a hundred kept where the product can keep any.
``latency``   from when a message is due at the first node until a subscriber of the second has it: fifty a second, and
              as many as keep both nodes and Redis together busy for three tenths of the time, in ten rooms with a
              subscriber each.
``fanout``    deliveries a second to a thousand subscribers of one room, half of them at each node; four messages out.
``storm``     2,000 clients of a node that was killed, or stopped, come back at the other, each having missed ten.
``presence``  2,000 members come into a topic, and leave it.
``gone``      seconds after ``kill -9`` until the members of a node are gone.

Both nodes and Redis share core 0, the load has core 1. Each round starts everything anew, in turn; what is printed is
the median of the rounds. The processor's time is of each process alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cache
import draw
import run
import servers
from beside import subjects, swarm
from beside.subjects import Pair, Subject

CASES = ("publish", "latency", "fanout", "storm", "presence", "gone")
#: Connections that publish, and messages out on each.
PUBLISHERS, OUT = 100, 4
#: Messages a second of the low rate, and the part of a core that nodes and Redis use together under load.
LOW, LOAD = 50.0, 0.3
SUBSCRIBERS = 1000
CROWD, MEMBERS = 2000, 1000

Numbers = dict[str, Any]


def across(
    pair: Pair,
    mode: str,
    nodes: str,
    publishers: int,
    listeners: int,
    depth: int,
    rate: float,
    rooms: int,
    seconds: float,
) -> Numbers:
    """Run the load generator once.

    :raises RuntimeError: with what it printed, when it failed.
    """
    subject, both = pair.subject, (0, 1)
    listened = [0] if nodes == "A" else [1] if nodes == "B" else list(both)
    environ = {
        **os.environ,
        "ACROSS_PATH": subject.posts or pair.path(0),
        "ACROSS_PATHS": "@".join(pair.path(node) for node in listened),
        "ACROSS_OPEN": "@".join(subject.opening),
        "ACROSS_OPENS": "@".join(subject.joining),
        "ACROSS_SAY": subject.say,
        "ACROSS_PIDS": ",".join(map(str, pair.pids)),
        **({"ACROSS_HTTP": "1"} if subject.posts else {}),
    }
    ports = ",".join(str(pair.nodes[node].port) for node in listened)
    numbers = [publishers, listeners, depth, rate, rooms, seconds]
    program = str(cache.compiled(Path(__file__).parent / "beside" / "across.c"))
    command = [program, mode, str(pair.nodes[0].port), ports, *map(str, numbers)]
    done = subprocess.run(
        servers.pinned(1, command),
        env=environ,
        capture_output=True,
        text=True,
        preexec_fn=servers.undisturbed_with_threads,
        timeout=seconds + 120,
    )
    if done.returncode or not done.stdout.startswith("{"):
        raise RuntimeError(f"{subject.name}, {mode}: {done.stderr or done.stdout}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def _each(numbers: Numbers, count: float) -> Numbers:
    """Microseconds of the processor for each of so many."""
    first, second, redis = (used * 1e6 / max(1.0, count) for used in numbers["cpu"])
    return {"node_us": first, "other_us": second, "redis_us": redis}


def publish(pair: Pair, seconds: float) -> Numbers:
    """Messages that are published a second, and answered."""
    found = across(pair, "closed", "B", PUBLISHERS, 1, OUT, 0, 100, seconds)
    each = _each(found, found["acks"] * found["seconds"])
    return {"rate": found["acks"], **each, "by_node": 1e6 / each["node_us"] if each["node_us"] else 0.0}


def latency(pair: Pair, seconds: float, most: float) -> dict[str, Numbers]:
    """From one node to the other, with nothing else to do and with load."""
    rate = most / 20
    for _ in range(2):
        # What a message costs depends on how many there are.
        found = across(pair, "paced", "B", 10, 10, 1, rate, 10, 1.0)
        rate *= LOAD / max(0.01, sum(found["cpu"]) / found["seconds"])
    results = {}
    for case, each, rooms in (("a low rate", LOW, 1), ("30 % load", rate, 10)):
        found = across(pair, "paced", "B", rooms, rooms, 1, each, rooms, seconds)
        shares = [used / found["seconds"] for used in found["cpu"]]
        results[case] = {
            **{key: found[key] for key in ("p50", "p99", "most")},
            "rate": found["sent"],
            "told": found["told"] / found["sent"] if found["sent"] else 0.0,
            "node_share": shares[0],
            "other_share": shares[1],
            "redis_share": shares[2],
        }
    return results


def fanout(pair: Pair, seconds: float) -> Numbers:
    """Deliveries to subscribers of one room at both nodes."""
    found = across(pair, "fan", "AB", 1, SUBSCRIBERS, 4, 0, 1, seconds)
    each = _each(found, found["deliveries"])
    return {"rate": found["told"], "stalls": found["stalls"], **each, "cpu_us": sum(each.values())}


class Bench:
    """One run.

    :ivar samples: by what is measured, case and who: what each round gave.
    """

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.samples: dict[str, run.Samples] = {}

    def note(self, mode: str, case: str, who: str, numbers: Numbers) -> None:
        """Keep what a round gave."""
        self.samples.setdefault(f"cluster-{mode}", {}).setdefault(case, {}).setdefault(who, []).append(numbers)
        said = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
        print(f"  {mode}, {case}, {who}: {said}", file=sys.stderr, flush=True)

    def attempt(self, who: str, measures: Iterable[Callable[[Pair], None]], subject: Subject) -> None:
        """Measure on a pair of nodes; what fails leaves the others."""
        try:
            with subjects.pair(subject) as pair:
                for measure in measures:
                    try:
                        measure(pair)
                    except (RuntimeError, OSError, subprocess.TimeoutExpired, TimeoutError) as error:
                        print(f"  {who} is left out: {error}", file=sys.stderr, flush=True)
        except (RuntimeError, OSError) as error:
            print(f"  {who} is left out: {error}", file=sys.stderr, flush=True)

    def round(self, subject: Subject) -> None:
        """Everything once."""
        name, cases, seconds = subject.name, self.options.cases, self.options.seconds

        def flows(pair: Pair) -> None:
            most = publish(pair, seconds)
            if "publish" in cases:
                self.note("publish", "100 connections", name, most)
            if "latency" in cases:
                for case, numbers in latency(pair, seconds, most["rate"]).items():
                    self.note("latency", case, name, numbers)

        def fans(pair: Pair) -> None:
            self.note("fanout", "1,000 subscribers at two nodes", name, fanout(pair, seconds))

        def comes_back(is_killed: bool) -> Callable[[Pair], None]:
            case = f"{self.options.crowd:,} clients of a {'killed' if is_killed else 'stopped'} node"
            return lambda pair: self.note("storm", case, name, swarm.storm(pair, self.options.crowd, is_killed))

        def members(pair: Pair) -> None:
            for case, numbers in swarm.presence(pair, self.options.crowd).items():
                self.note("presence", case, name, numbers)

        def are_gone(pair: Pair) -> None:
            self.note("gone", f"{MEMBERS:,} members", name, swarm.gone(pair, MEMBERS))

        if {"publish", "latency", "fanout"} & set(cases):
            measures = [fans] if "fanout" in cases else []
            self.attempt(name, [*measures, *([flows] if {"publish", "latency"} & set(cases) else [])], subject)
        if "storm" in cases:
            self.attempt(name, [comes_back(True)], subject)
            self.attempt(name, [comes_back(False)], subject)
        if subject.has_presence and {"presence", "gone"} & set(cases):
            measures = [members] if "presence" in cases else []
            self.attempt(name, [*measures, *([are_gone] if "gone" in cases else [])], subject)


def main() -> None:
    """Read the command line, measure, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", help="names, with commas between them; all when left out")
    parser.add_argument("--cases", default=",".join(CASES), help="what is measured, with commas between")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--crowd", type=int, default=CROWD, help="clients that come back, and members")
    parser.add_argument("--json", type=Path, help="write every sample there; what is in it already is replaced")
    parser.add_argument("--pictures", type=Path, help="draw pictures into that directory")
    options = parser.parse_args()
    options.cases = options.cases.split(",")
    if wrong := set(options.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(wrong))}; there are {', '.join(CASES)}")
    with tempfile.TemporaryDirectory(prefix="zcomm-bench-") as place:
        names = options.servers.split(",") if options.servers else subjects.NAMES
        if wrong := set(names) - set(subjects.NAMES):
            parser.error(f"no such server: {', '.join(sorted(wrong))}; there are {', '.join(subjects.NAMES)}")
        chosen = [found for name in names if (found := subjects.known(name, Path(place))) is not None]
        bench, begun = Bench(options), time.monotonic()
        servers.as_many_files_as_allowed()
        if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
            # Clients in Python are on the core of the load, too.
            os.sched_setaffinity(0, {1})
        for turn in range(options.rounds):
            for subject in chosen:
                print(f"round {turn + 1} of {options.rounds}, {subject.name}", file=sys.stderr, flush=True)
                bench.round(subject)
    report = json.loads(options.json.read_text()) if options.json and options.json.exists() else {"modes": {}}
    for mode, samples in bench.samples.items():
        print(run.table(mode, samples))
        report["modes"][mode] = {
            "samples": samples,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "machine": run.machine(),
            "versions": subjects.versions(),
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": os.getloadavg(),
            "took": round(time.monotonic() - begun),
        }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.pictures:
        draw.draw({"modes": {mode: report["modes"][mode] for mode in bench.samples}}, options.pictures)


if __name__ == "__main__":
    main()
