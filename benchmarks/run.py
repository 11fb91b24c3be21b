"""zComm beside its peers, measured in one run: ``python benchmarks/run.py [rpc|fanout|idle|handshakes|crud|all] …``

Server on core 0, load on core 1, loopback, no TLS, no compression. Each round starts every server anew, in
turn; what is printed is the median of the rounds, with the lowest and highest beside it, because a machine
that does other things too is not the same machine twice. ``cpu`` is the server's own processor time for
one reply, delivery or handshake, which such a machine disturbs less.

zComm runs as its users run it, with token, origin check, permissions, limits and dispatch; only the frame
rate is lifted, because one connection here asks more often than the 10,000 times a second that it may.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import crud
import load
import servers
from servers import Server

MODES = ("rpc", "fanout", "handshakes", "idle")
#: One line of the table: what it shows of a measurement, and whether more is better.
COLUMNS = {
    "rpc": (
        ("rate", "replies/s", True),
        ("p50_us", "p50 µs", False),
        ("p99_us", "p99 µs", False),
        ("cpu_us", "cpu µs", False),
    ),
    "fanout": (("rate", "deliveries/s", True), ("p50_us", "p50 µs", False), ("cpu_us", "cpu µs", False)),
    "handshakes": (("rate", "handshakes/s", True), ("cpu_us", "cpu µs", False)),
    "idle": (("kib", "KiB/connection", False), ("cpu_share", "cpu share", False)),
    "crud": (("rate", "queries/s", True), ("p99_us", "p99 µs", False)),
    "cluster-publish": (
        ("rate", "publishes/s", True),
        ("node_us", "node µs", False),
        ("redis_us", "Redis µs", False),
        ("other_us", "other µs", False),
    ),
    "cluster-latency": (
        ("p50", "p50 ms", False),
        ("p99", "p99 ms", False),
        ("rate", "messages/s", True),
        ("told", "delivered", True),
        ("node_share", "node share", False),
        ("other_share", "other share", False),
        ("redis_share", "Redis share", False),
    ),
    "cluster-fanout": (
        ("rate", "deliveries/s", True),
        ("cpu_us", "cpu µs", False),
        ("node_us", "node µs", False),
        ("other_us", "other µs", False),
        ("redis_us", "Redis µs", False),
        ("stalls", "stalls", False),
    ),
    "cluster-storm": (
        ("seconds", "seconds", False),
        ("not_recovered", "not recovered", False),
        ("lost", "lost", False),
        ("node_ms", "node ms each", False),
        ("redis_ms", "Redis ms each", False),
    ),
    "cluster-presence": (
        ("seconds", "seconds", False),
        ("events", "events each", False),
        ("watched", "events watched", False),
        ("node_us", "nodes µs each", False),
        ("redis_us", "Redis µs each", False),
    ),
    "cluster-gone": (("seconds", "seconds", False), ("node_ms", "node ms", False), ("redis_ms", "Redis ms", False)),
}
OUR_NAME = "zcomm"

Samples = dict[str, dict[str, list[dict[str, Any]]]]


def measure(mode: str, chosen: list[Server], rounds: int, seconds: float, connections: int) -> Samples:
    """Each server in turn, ``rounds`` times: case -> server -> what each round gave."""
    samples: Samples = {}
    for turn in range(rounds):
        for server in chosen:
            print(f"\r\033[K{mode}: round {turn + 1} of {rounds}, {server.name}", end="", file=sys.stderr, flush=True)
            try:
                with servers.running(server, server.fan_options if mode == "fanout" else ()) as target:
                    if mode == "idle":
                        results = load.idle(target, seconds, connections)
                    else:
                        results = getattr(load, mode)(target, seconds)
            except (RuntimeError, OSError) as error:
                print(f"\n{server.name} is left out: {error}", file=sys.stderr)
                continue
            for case, numbers in results.items():
                samples.setdefault(case, {}).setdefault(server.name, []).append(numbers)
    print("\r\033[K", end="", file=sys.stderr)
    return samples


def median(numbers: list[dict[str, Any]], key: str) -> float:
    """The median of one number over the rounds."""
    return statistics.median(item.get(key, 0.0) for item in numbers)


def table(mode: str, samples: Samples) -> str:
    """The measurements of one mode as text, each beside what zComm gave in the same run."""
    columns = COLUMNS[mode]
    key, _, more_is_better = columns[0]
    lines = []
    for case, by_server in samples.items():
        ours = median(by_server[OUR_NAME], key) if OUR_NAME in by_server else None
        heads = "".join(f"{name:>15}" for _, name, _ in columns)
        lines.append(f"{mode}, {case:<22}{heads}  {'lowest … highest':>21}  {'zcomm is':>9}")
        order = sorted(by_server.items(), key=lambda item: median(item[1], key), reverse=more_is_better)
        for name, numbers in order:
            values = "".join(f"{_text(median(numbers, column)):>15}" for column, _, _ in columns)
            spread = sorted(item[key] for item in numbers)
            middle = median(numbers, key)
            ratio = "" if ours is None or not middle or not ours else f"{ours / middle:.2f} ×"
            lines.append(
                f"  {name:<{len(mode) + 22}}{values}  {_text(spread[0]):>9} … {_text(spread[-1]):>9}  {ratio:>9}"
            )
        lines.append("")
    return "\n".join(lines)


def _text(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "mode",
        nargs="*",
        default="all",
        choices=[*MODES, "crud", "all"],
        metavar="MODE",
        help="rpc, fanout, handshakes, idle, crud or all",
    )
    parser.add_argument(
        "--servers", help="names, with commas between them (default: all but zcomm-epoll and zcomm-pure)"
    )
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more server like zComm; PORT in it is the port",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=5000, help="idle ones")
    parser.add_argument("--json", type=Path, help="write every sample there; modes that are in it already are replaced")
    options = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        parser.error("two cores are needed: one for the server, one for the load")
    known = servers.known()
    names = (
        options.servers.split(",")
        if options.servers
        else [name for name in known if name not in ("zcomm-epoll", "zcomm-pure")]
    )
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no such server: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in names] + [servers.custom(text) for text in options.add]
    modes = [*MODES, "crud"] if "all" in options.mode else options.mode
    report = json.loads(options.json.read_text()) if options.json and options.json.exists() else {"modes": {}}
    for mode in modes:
        begun = time.monotonic()
        samples = (
            crud.measure(options.rounds, options.seconds)
            if mode == "crud"
            else measure(mode, chosen, options.rounds, options.seconds, options.connections)
        )
        print(table(mode, samples))
        report["modes"][mode] = {
            "samples": samples,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "machine": machine(),
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": os.getloadavg(),
            "took": round(time.monotonic() - begun),
        }
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
