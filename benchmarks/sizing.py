"""How many processes and servers so many clients need: ``python benchmarks/sizing.py --connections 100000``

Everything is a sum: each connection has its memory, and each command, publish, delivery, ping and arrival its
microseconds (:class:`Costs`, the only place where these stand). ``--check`` plays a load with real servers, a real
Redis and real connections, and compares what they took with the sum: status 1 where one differs by more than a quarter.
``--measure`` takes the costs anew, each under a load of its own, and prints them; together with ``--check`` it is the
measured ones that are compared, so that a machine that is slower just now is no difference.

Both nodes and Redis share core 0, the load has core 1. It needs gcc and Redis.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Costs", "Load", "Plan", "plan"]

MIB = 1024.0 * 1024.0
#: How far a simulation may be from the sum.
TOLERANCE = 0.25


@dataclass(frozen=True)
class Costs:
    """What each thing takes. Times are processor microseconds.

    :ivar process_mib: a worker before anybody comes.
    :ivar connection_bytes: an idle connection in two topics that it shares with others, in the process.
    :ivar topic_bytes: a topic that somebody at a worker is subscribed to, in the process.
    :ivar system_bytes: a socket, its buffers empty, in the kernel: the sum of its objects in ``/proc/slabinfo``.
    :ivar live_bytes: a live query of one row that nobody shares (docs/performance.rst, "Live queries").
    :ivar idle_us: a worker with nobody, each second.
    :ivar arrival_us: a handshake with its token, and two subscriptions.
    :ivar ping_us: a ping and its answer.
    :ivar command_us: a registered command, asked and answered.
    :ivar publish_us: a message to a topic with history, from the client to Redis and its answer.
    :ivar hear_us: a message that Redis brings, at each worker where somebody is subscribed.
    :ivar delivery_us: a message to one subscriber.
    :ivar redis_publish_us: Redis's own time for a message that is kept.
    :ivar redis_hear_us: the same for each worker that it is sent to.
    :ivar redis_message_bytes: a message that is kept, beside its own bytes.
    :ivar redis_member_bytes: a member of a topic with presence.
    :ivar frame_bytes: what goes around the bytes of a message on its way to a client: fields of the event, the frame's
        head, TCP and IP. Counted, not measured.
    """

    process_mib: float = 92.9
    connection_bytes: float = 4563.2
    topic_bytes: float = 3040.0
    system_bytes: float = 3712.0
    live_bytes: float = 4096.0
    idle_us: float = 4267.0
    arrival_us: float = 667.9
    ping_us: float = 36.3
    command_us: float = 33.4
    publish_us: float = 264.2
    hear_us: float = 74.7
    delivery_us: float = 5.9
    redis_publish_us: float = 102.9
    redis_hear_us: float = 2.4
    redis_message_bytes: float = 67.2
    redis_member_bytes: float = 241.8
    frame_bytes: float = 140.0


@dataclass(frozen=True)
class Load:
    """What clients do. Rates are a second, of all together.

    :ivar topics: that have subscribers; 0 for as many as give each its ``subscribers`` with two topics a connection.
    :ivar slow: clients that are behind, with a full queue of 1 MiB each.
    :ivar kept: messages that each topic keeps.
    """

    connections: float
    publishes: float
    subscribers: float
    commands: float
    arrivals: float
    size: float = 200.0
    ping_interval: float = 20.0
    live: float = 0.0
    slow: float = 0.0
    kept: float = 100.0
    members: float = 0.0
    topics: float = 0.0

    @property
    def rooms(self) -> float:
        """Topics with subscribers."""
        return self.topics or max(1.0, 2 * self.connections / max(1.0, self.subscribers))


@dataclass(frozen=True)
class Machine:
    """What there is to run on, and how far it is to be filled.

    :ivar use: part of a core that is to be used, so that there is room for a moment with more.
    :ivar cores: of a host, of which one is left to the system.
    :ivar most: connections of one worker, so that its end is no more than others can let in again within seconds.
    """

    use: float = 0.6
    cores: int = 16
    most: float = 20_000.0


@dataclass(frozen=True)
class Plan:
    """What that needs; processor times are seconds a second, of all together."""

    workers: int
    hosts: int
    worker_cpu: float
    memory: float
    host_memory: float
    hearing: float
    redis_cpu: float
    redis_servers: int
    redis_memory: float
    to_clients: float
    from_redis: float


def usual(connections: float) -> Load:
    """The load of the table in docs/scaling.rst: a publish a second for each hundred connections, which twenty hear, a
    command for each fifty, and all connections new within ten minutes."""
    return Load(connections, connections / 100, 20, connections / 50, connections / 600)


def hearing(workers: int, subscribers: float) -> float:
    """Workers at which somebody is subscribed to one topic, where its subscribers are anywhere."""
    return float(workers) * (1 - (1 - 1 / workers) ** subscribers)


def worker_cpu(costs: Costs, load: Load, workers: int) -> float:
    """Seconds a second of all workers."""
    published = load.publishes * (
        hearing(workers, load.subscribers) * costs.hear_us + load.subscribers * costs.delivery_us
    )
    return (
        workers * costs.idle_us
        + load.connections / load.ping_interval * costs.ping_us
        + load.arrivals * costs.arrival_us
        + load.commands * costs.command_us
        + load.publishes * costs.publish_us
        + published
    ) / 1e6


def redis_cpu(costs: Costs, load: Load, workers: int) -> float:
    """Seconds a second of all Redis servers."""
    each = costs.redis_publish_us + hearing(workers, load.subscribers) * costs.redis_hear_us
    return load.publishes * each / 1e6


def memory(costs: Costs, load: Load, workers: int) -> float:
    """Bytes of all workers, without what the kernel takes."""
    return (
        workers * costs.process_mib * MIB
        + load.connections * costs.connection_bytes
        + load.rooms * hearing(workers, load.subscribers) * costs.topic_bytes
        + load.live * costs.live_bytes
        + load.slow * MIB
    )


def plan(costs: Costs, load: Load, machine: Machine) -> Plan:
    """What ``load`` needs. The more workers, the more of them hear each message: the least number that is enough."""
    workers = max(1, math.ceil(load.connections / machine.most))
    while worker_cpu(costs, load, workers) > workers * machine.use:
        workers += max(1, workers // 100)
        if workers > 1_000_000:
            raise ValueError("no number of workers is enough")
    hosts = math.ceil(workers / max(1, machine.cores - 1))
    held, used = memory(costs, load, workers), redis_cpu(costs, load, workers)
    heard = hearing(workers, load.subscribers)
    return Plan(
        workers,
        hosts,
        worker_cpu(costs, load, workers),
        held,
        (held + load.connections * costs.system_bytes) / hosts,
        heard,
        used,
        1 if used <= machine.use else max(3, math.ceil(used / machine.use)),
        load.rooms * load.kept * (load.size + costs.redis_message_bytes) + load.members * costs.redis_member_bytes,
        load.publishes * load.subscribers * (load.size + costs.frame_bytes),
        load.publishes * heard * (load.size + costs.frame_bytes),
    )


# ---- measuring -----------------------------------------------------------------------------------------------------

ROOMS = '{"zKey":"zSubscribe","zHorizontal":{"topic":"room:%R"},"_requestId":1}'
QUIET = '{"zKey":"zSubscribe","zHorizontal":{"topic":"long:%R"},"_requestId":2}'
CROWD = '{"zKey":"zSubscribe","zHorizontal":{"topic":"crowd:%R"},"_requestId":1}'
BOTH = ("0", ROOMS, "1", QUIET, "1")
#: Beside which there are ``{"at":…}`` and a number.
FILLING = "x" * 160
PUBLISH = (
    '{"zKey":"zPublish","zHorizontal":{"topic":"room:%R","data":{"at":%T,"n":%N,"text":"' + FILLING + '"}},'
    '"_requestId":%N}'
)
COMMAND = '{"zKey":"ping","zHorizontal":{"action":"read","model":"Users","limit":10},"_requestId":%N}'
#: Seconds. Not less: a generator answers no pings until all its connections are there.
PING = 10.0
WINDOW = 4.0
#: Connections whose memory and arrival is measured, and topics of either kind for them.
CROWD_OF, ROOMS_OF = 2000, 201


def used(pid: int) -> float:
    """Seconds of the processor that a process has had, with all its threads."""
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid: int) -> float:
    """Bytes of memory that a process has."""
    return float(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def socket_bytes() -> float:
    """Bytes of the kernel for one TCP connection that is idle; 0 where it does not tell."""
    try:
        lines = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    except OSError:
        return 0.0
    sizes = {line[0]: float(line[3]) for line in lines}
    return sum(sizes.get(name, 0.0) for name in ("TCP", "sock_inode_cache", "dentry", "filp", "eventpoll_epi"))


class Bench:
    """Two nodes on one Redis, and loads for them.

    :param pair: of :func:`beside.subjects.pair`.
    """

    def __init__(self, pair: Any, url: str):
        import redis

        self.pair = pair
        self.pids: list[int] = pair.pids
        self.redis = redis.Redis.from_url(url)

    def held_by_redis(self) -> float:
        """Bytes."""
        return float(self.redis.info("memory")["used_memory"])

    @contextmanager
    def load(
        self,
        nodes: tuple[int, ...],
        publishers: int,
        listeners: int,
        rate: float,
        rooms: int,
        joining: tuple[str, ...] = ("0", ROOMS, "1"),
        say: str = PUBLISH,
        seconds: float = WINDOW,
    ) -> Iterator[subprocess.Popen[str]]:
        """A load generator, whose connections are all there when the block begins."""
        import cache
        import servers

        path, ports = [self.pair.path(node) for node in (0, 1)], [node.port for node in self.pair.nodes]
        environ = {
            **os.environ,
            "ACROSS_PATH": path[0],
            "ACROSS_PATHS": "@".join(path[node] for node in nodes),
            "ACROSS_OPENS": "@".join(joining),
            "ACROSS_SAY": say,
            "ACROSS_PIDS": ",".join(map(str, self.pids)),
        }
        program = str(cache.compiled(Path(__file__).parent / "beside" / "across.c"))
        numbers = [publishers, listeners, 1, rate, rooms, seconds]
        wanted = sum(self._files(pid) for pid in self.pids[:2]) + publishers + listeners
        process = subprocess.Popen(
            servers.pinned(
                1, [program, "paced", str(ports[0]), ",".join(str(ports[n]) for n in nodes), *map(str, numbers)]
            ),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=servers.undisturbed_with_threads,
        )
        try:
            while sum(self._files(pid) for pid in self.pids[:2]) < wanted and process.poll() is None:
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.communicate()
            while sum(self._files(pid) for pid in self.pids[:2]) > wanted - publishers - listeners:
                time.sleep(0.02)

    @staticmethod
    def _files(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    def numbers(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """What a load generator has counted, at its end.

        :raises RuntimeError: with what it printed, where it failed.
        """
        said, wrong = process.communicate(timeout=120)
        if process.returncode or not said.startswith("{"):
            raise RuntimeError(wrong or said)
        return json.loads(said)  # type: ignore[no-any-return]

    def run(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Play one load, and what it took."""
        with self.load(*arguments, **options) as process:
            return self.numbers(process)

    def times(self) -> list[float]:
        """Seconds of the processor of both nodes and Redis so far."""
        return [used(pid) for pid in self.pids]


@contextmanager
def bench() -> Iterator[Bench]:
    """Start a Redis and two nodes."""
    sys.path.insert(0, str(Path(__file__).parent))
    import servers
    from beside import subjects, talks

    urls: list[str] = []
    with tempfile.TemporaryDirectory(prefix="zcomm-bench-") as directory:
        kinds, policy = Path(directory) / "kinds.yaml", Path(directory) / "policy.yaml"
        kinds.write_text(servers.KINDS)
        policy.write_text(servers.POLICY)

        def made(url: str, _: Path) -> servers.Server:
            urls.append(url)
            options = ("--topics", str(kinds), "--policy", str(policy), "--ping-interval", str(PING))
            server = servers.zcomm("zcomm", *options, *servers.PUBLISHES, "--engine", url)
            # A number of connections of one user would be counted in Redis.
            at = server.command.index("--connections-per-user")
            return dataclasses.replace(server, command=server.command[:at] + server.command[at + 2 :])

        subject = subjects.Subject("zcomm", made, "/?token=TOKEN", (), (), PUBLISH, talks.ZComm)
        with subjects.pair(subject) as pair:
            time.sleep(2)
            yield Bench(pair, urls[0])


def warm(bench: Bench) -> None:
    """Have done once what is made once."""
    bench.run((0, 1), 20, 20, 500, 21, joining=BOTH, seconds=1)


def memory_of(rooms: int) -> tuple[float, float]:
    """Bytes of a node before anybody comes, and by how much both grow for a crowd in two topics each.

    :param rooms: topics of either kind.
    """
    # Nodes of its own: what an earlier crowd has left would be used again.
    with bench() as pair:
        warm(pair)
        before = [resident(pid) for pid in pair.pids[:2]]
        with pair.load((0, 1), 1, CROWD_OF, 0.01, rooms, joining=BOTH, seconds=60):
            time.sleep(3)
            return sum(before) / 2, sum(resident(pid) for pid in pair.pids[:2]) - sum(before)


def memory_costs() -> dict[str, float]:
    """What connections and topics take in the process."""
    process, shared = memory_of(ROOMS_OF)
    _, alone = memory_of(CROWD_OF)
    # A topic of few is at both nodes, one of one's own at one.
    here, there = 2 * ROOMS_OF * 2, 2 * CROWD_OF
    topic = (alone - shared) / (there - here)
    return {
        "process_mib": process / MIB,
        "connection_bytes": (shared - here * topic) / CROWD_OF,
        "topic_bytes": topic,
        "system_bytes": socket_bytes(),
    }


def processor_costs(bench: Bench) -> dict[str, float]:
    """Each cost under a load that is made of little else."""
    warm(bench)
    found: dict[str, float] = {}
    before = bench.times()
    time.sleep(WINDOW)
    after = bench.times()
    found["idle_us"] = (after[0] + after[1] - before[0] - before[1]) / 2 / WINDOW * 1e6

    def rest(node: int, took: dict[str, Any], connections: float) -> float:
        """Microseconds a second of one node without being idle and its pings."""
        share: float = took["cpu"][node] / took["seconds"] * 1e6
        return share - found["idle_us"] - connections / PING * found.get("ping_us", 0)

    before = bench.times()
    with bench.load((0, 1), 1, CROWD_OF, 0.01, ROOMS_OF, joining=BOTH, seconds=2.5 * PING) as process:
        after = bench.times()
        found["arrival_us"] = (after[0] + after[1] - before[0] - before[1]) / CROWD_OF * 1e6
        took = bench.numbers(process)
    found["ping_us"] = (rest(0, took, 0) + rest(1, took, 0)) / (CROWD_OF / PING)

    took = bench.run((1,), 50, 1, 4000, 1, say=COMMAND)
    found["command_us"] = rest(0, took, 50) / took["sent"]

    rate, topics = 1000, 97
    by: dict[int, list[float]] = {}
    for each in (0, 2, 30) * 2:
        # One who listens to another topic, where nobody shall.
        took = bench.run((1,), 50, topics * each or 1, rate, topics)
        numbers = rest(0, took, 50), rest(1, took, topics * each), took["cpu"][2] / took["seconds"] * 1e6
        now = [number / took["sent"] for number in numbers]
        # Whatever else runs on the machine makes it more, and never less.
        by[each] = [min(pair) for pair in zip(now, by.get(each, now), strict=True)]
    found["publish_us"], found["redis_publish_us"] = by[0][0], by[0][2]
    found["delivery_us"] = (by[30][1] - by[2][1]) / 28
    found["hear_us"] = by[2][1] - 2 * found["delivery_us"]
    found["redis_hear_us"] = max(0.0, by[2][2] - by[0][2])
    return {**found, **kept(bench)}


def kept(bench: Bench) -> dict[str, float]:
    """What messages and members take in Redis."""
    bench.redis.flushall()
    before, rate, rooms = bench.held_by_redis(), 2000, 100
    bench.run((1,), 50, 1, rate, rooms)
    streams = list(bench.redis.scan_iter("zc:*s:room:*", count=1000))
    count = sum(bench.redis.xlen(key) for key in streams)
    size = len(FILLING) + 40
    message = (bench.held_by_redis() - before) / max(1, count) - size
    before = bench.held_by_redis()
    with bench.load((0, 1), 1, 1000, 0.01, 11, joining=("0", CROWD, "1"), seconds=8):
        time.sleep(1)
        member = (bench.held_by_redis() - before) / 1000
    return {"redis_message_bytes": message, "redis_member_bytes": member}


def compared(bench: Bench, costs: Costs, load: Load, seconds: float) -> list[tuple[str, float, float]]:
    """Play a load at two nodes: what was taken, the sum's number and the measured one."""
    rooms = round(load.rooms) | 1
    load = dataclasses.replace(load, topics=rooms, subscribers=load.connections / rooms, ping_interval=PING)
    held, before = [resident(pid) for pid in bench.pids[:2]], bench.times()
    asking, publishing = 50, 50
    crowd = round(load.connections)
    with bench.load((1,), asking, 1, load.commands, 1, say=COMMAND, seconds=3600) as commands:
        with bench.load((0, 1), publishing, crowd, load.publishes, rooms, joining=BOTH, seconds=seconds) as process:
            after = bench.times()
            numbers = bench.numbers(process)
            grown = sum(resident(pid) for pid in bench.pids[:2]) - sum(held)
        commands.kill()
    missing = 1 - numbers["told"] / (numbers["sent"] * load.subscribers)
    if abs(missing) > 0.05:
        raise RuntimeError(f"{missing:.0%} of the deliveries are missing: this machine is too slow for that load")
    everybody = dataclasses.replace(load, connections=crowd + asking + publishing, arrivals=0)
    everybody = dataclasses.replace(everybody, publishes=numbers["sent"])
    both, redis = sum(numbers["cpu"][:2]) / numbers["seconds"], numbers["cpu"][2] / numbers["seconds"]
    arriving = crowd * costs.arrival_us / 1e6
    # What was there before anybody came is not part of what has grown; each has two topics, of which one is quiet.
    grows = memory(dataclasses.replace(costs, process_mib=0), dataclasses.replace(everybody, topics=2 * rooms), 2)
    return [
        ("processor of both nodes, cores", worker_cpu(costs, everybody, 2), both),
        ("processor of Redis, cores", redis_cpu(costs, everybody, 2), redis),
        ("their coming, seconds", arriving, after[0] + after[1] - before[0] - before[1]),
        ("memory of the clients, MiB", grows / MIB, grown / MIB),
    ]


def check(options: argparse.Namespace, load: Load) -> bool:
    """Measure where asked for, play, compare and print; whether all is near enough."""
    costs = Costs()
    if options.measure:
        found = memory_costs()
        with bench() as pair:
            found.update(processor_costs(pair))
        costs = Costs(**{name: round(value, 1) for name, value in found.items()})
        for name, value in dataclasses.asdict(costs).items():
            print(f"{name:22} {value:14,.1f}   in the table {getattr(Costs(), name):14,.1f}")
    if not options.check:
        return True
    is_near = True
    plays = []
    for _ in range(2):
        with bench() as pair:
            warm(pair)
            plays.append(compared(pair, costs, load, options.seconds))
    # Whatever else runs on the machine makes it more, and never less.
    for (what, reckoned, one), (_, _, another) in zip(*plays, strict=True):
        found = min(one, another)
        off = found / reckoned - 1 if reckoned else math.inf
        is_near = is_near and abs(off) <= TOLERANCE
        print(f"{what:32} reckoned {reckoned:9.3f}   measured {found:9.3f}   {off:+7.1%}")
    return is_near


def told(found: Plan) -> str:
    """A plan for people."""
    lines = (
        f"workers {found.workers:,} on {found.hosts:,} hosts, {found.worker_cpu:.2f} cores busy",
        f"each message is heard by {found.hearing:.1f} workers",
        f"memory {found.memory / 1e9:.2f} GB of all workers, {found.host_memory / 1e9:.2f} GB a host with its sockets",
        f"Redis servers {found.redis_servers:,}, {found.redis_cpu:.2f} cores busy, {found.redis_memory / 1e9:.2f} GB",
        f"network {found.to_clients * 8 / 1e6:,.1f} Mbit/s to clients, {found.from_redis * 8 / 1e6:,.1f} from Redis",
    )
    return "\n".join(lines)


def said(name: str, value: float) -> str:
    """One of the costs as docs/scaling.rst has it."""
    if name.endswith("_us"):
        return f"{value / 1000:.2g} ms" if value >= 1000 else f"{value:.2g} µs" if value < 10 else f"{value:.0f} µs"
    if name.endswith("_mib"):
        return f"{value:.0f} MiB"
    return f"{value:.0f} B" if value < 1024 else f"{value / 1024:.1f} KiB"


def table(costs: Costs, machine: Machine) -> str:
    """The table of docs/scaling.rst."""
    rows = [("connections", "workers", "hosts", "busy cores", "GB a host", "Redis", "its cores", "Mbit/s to clients")]
    for connections in (1_000, 10_000, 100_000, 1_000_000):
        found = plan(costs, usual(connections), machine)
        rows.append(
            (
                f"{connections:,}",
                f"{found.workers:,}",
                f"{found.hosts:,}",
                f"{found.worker_cpu:.2g}",
                f"{found.host_memory / 1e9:.2g}",
                f"{found.redis_servers:,}",
                f"{found.redis_cpu:.2g}",
                f"{found.to_clients * 8 / 1e6:,.2g}"
                if found.to_clients < 1e7
                else f"{found.to_clients * 8 / 1e6:,.0f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    line = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([line, lines[0], line, *lines[1:], line])


def main() -> None:
    """Read the command line, and reckon or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=float, default=0, help="open at once [1,000; with --check 2,000]")
    parser.add_argument("--publishes", type=float, default=0, help="messages a second [a hundredth of connections]")
    parser.add_argument("--subscribers-per-topic", type=float, default=20, help="that hear each message [20]")
    parser.add_argument("--commands", type=float, default=0, help="commands a second [a fiftieth of connections]")
    parser.add_argument("--stay", type=float, default=600, help="seconds that a connection lasts [600]")
    parser.add_argument("--bytes", type=float, default=200, help="of a message [200]")
    parser.add_argument("--ping-interval", type=float, default=20, help="seconds, as the option of twistd zcomm [20]")
    parser.add_argument("--live", type=float, default=0, help="live queries of a row each, that nobody shares [0]")
    parser.add_argument("--slow", type=float, default=0, help="clients that are behind by a full queue [0]")
    parser.add_argument("--kept", type=float, default=100, help="messages that a topic keeps [100]")
    parser.add_argument("--members", type=float, default=0, help="subscriptions to topics with presence [0]")
    parser.add_argument("--cores", type=int, default=16, help="of a host; one is left to the system [16]")
    parser.add_argument("--use", type=float, default=0.6, help="part of a core that is to be used [0.6]")
    parser.add_argument("--most", type=float, default=20_000, help="connections of a worker [20,000]")
    parser.add_argument("--check", action="store_true", help="play it at two real servers, and compare")
    parser.add_argument("--measure", action="store_true", help="take the costs anew")
    parser.add_argument("--table", action="store_true", help="print the table of docs/scaling.rst")
    parser.add_argument("--seconds", type=float, default=10, help="that --check plays [10]")
    options = parser.parse_args()
    simulates = options.check or options.measure
    connections = options.connections or (2000 if simulates else 1000)
    load = Load(
        connections,
        options.publishes or (1000 if simulates else connections / 100),
        options.subscribers_per_topic if not simulates else min(options.subscribers_per_topic, 10),
        options.commands or (1000 if simulates else connections / 50),
        connections / options.stay,
        options.bytes,
        options.ping_interval,
        options.live,
        options.slow,
        options.kept,
        options.members,
    )
    if simulates:
        load = dataclasses.replace(load, topics=round(connections / load.subscribers))
        sys.exit(0 if check(options, load) else 1)
    if options.table:
        print(table(Costs(), Machine()))
        return
    print(told(plan(Costs(), load, Machine(options.use, options.cores, options.most))))


if __name__ == "__main__":
    main()
