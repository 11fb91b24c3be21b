"""Long and heavy load on a real ``twistd zcomm``, and a verdict.

::

    python benchmarks/soak.py idle                  # 10,000 connections with pings: memory, processor time
    python benchmarks/soak.py storm                 # 5,000 connect at once; kill -9 with 1,000 clients that come back
    python benchmarks/soak.py churn                 # broadcasts while clients come and go: none lost, none doubled
    python benchmarks/soak.py soak --minutes 30     # everything mixed: does memory grow, is anything left open

The server runs on core 0, all clients in this process on core 1, everything on the loopback. Each command
prints what it measured as JSON and exits with status 1 when a bound does not hold; the bounds are at the top
of this file. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herd import Herd, Member, masked

ROOT = Path(__file__).parent.parent

#: What 10,000 connections may cost.
IDLE_MIB, IDLE_SHARE = 250.0, 0.05
#: Seconds for 5,000 at once; for 99 % of 1,000 to be back after a kill -9.
STORM_SECONDS, BACK_SECONDS = 5.0, 10.0
#: Growth in a soak. The first part of it is not counted: caches fill, the allocator settles.
SLOPE_MIB_HOUR, SETTLING = 10.0, 0.25

Numbers = dict[str, Any]


class Server:
    """A ``twistd zcomm`` with a home of its own, that may be killed and started again.

    :param program: another program in its place, which takes the same options.
    :param core: which it is kept on.
    :ivar token: the operator's; empty where there is none.
    """

    def __init__(self, home: Path, *options: str, program: list[str] | None = None, core: int | None = 0):
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        twistd = shutil.which("twistd", path=str(Path(sys.executable).parent)) or "twistd"
        pin = ["taskset", "-c", str(core)] if core is not None and shutil.which("taskset") else []
        self.command = [
            *pin,
            *(program or [sys.executable, twistd, "--pidfile=", "-n", "zcomm"]),
            "--port",
            str(self.port),
            "--data-dir",
            str(home / "data"),
            *options,
        ]
        self.starts = 0
        self.start()
        operator = home / "data" / "operator.json"
        self.token = json.loads(operator.read_text())["token"] if operator.exists() else ""

    def start(self) -> None:
        """Start it; returns when it listens."""
        self.launch()
        self.wait_for(b"zBifrost listening")

    def wait_for(self, words: bytes) -> None:
        """Wait until these are in its log."""
        until = time.monotonic() + 30
        while not self.says(words):
            if time.monotonic() > until:
                raise RuntimeError(f"no server:\n{self.output.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def launch(self) -> None:
        """Start it; returns at once."""
        self.starts += 1
        self.output = self.home / f"output-{self.starts}"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env={**os.environ, "HOME": str(self.home), "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def listens(self) -> bool:
        """Whether it listens by now.

        :raises RuntimeError: with what it printed, when it has ended instead.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"no server:\n{self.output.read_text(errors='replace')[-2000:]}")
        return self.says(b"zBifrost listening")

    def says(self, words: bytes) -> bool:
        """Whether these are in its log by now.

        :raises RuntimeError: with what it printed, when it has ended instead.
        """
        if self.process.poll() is not None:
            raise RuntimeError(f"no server:\n{self.output.read_text(errors='replace')[-2000:]}")
        return words in self.output.read_bytes()

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send a signal; returns after how many seconds the process was gone."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - begun

    def usage(self) -> Numbers:
        """Memory in KiB, processor seconds, open files and threads of the process, as they are now."""
        base = Path(f"/proc/{self.process.pid}")
        status = dict(re.findall(r"^(\w+):\s+(\d+)", (base / "status").read_text(), re.MULTILINE))
        fields = (base / "stat").read_text().rpartition(")")[2].split()
        return {
            "rss": int(status["VmRSS"]),
            "peak": int(status["VmHWM"]),
            "threads": int(status["Threads"]),
            "cpu": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            "fds": len(os.listdir(base / "fd")),
        }

    def metrics(self) -> dict[str, float]:
        """What ``/metrics`` says; drops as ``drop: reason``."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/metrics", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        found = {name: float(value) for name, value in re.findall(r"^(zcomm_\w+) (\S+)$", text, re.MULTILINE)}
        drops = re.findall(r'^zcomm_drops_total\{reason="([^"]*)"\} (\S+)$', text, re.MULTILINE)
        return {**found, **{f"drop: {reason}": float(value) for reason, value in drops}}

    def complaints(self) -> list[str]:
        """Lines of its log that no run should have."""
        lines = [
            line
            for file in sorted(self.home.glob("output-*"))
            for line in file.read_text(errors="replace").splitlines()
        ]
        return [line for line in lines if "Traceback" in line or "Unhandled" in line or "unexpected error" in line]


@contextmanager
def serving(*options: str) -> Iterator[tuple[Server, Herd]]:
    """A server on core 0 and clients in this process on core 1."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="zcomm-soak-") as directory:
        server = Server(Path(directory), *options)
        herd = Herd(server.port, server.token)
        try:
            yield server, herd
        finally:
            herd.close()
            if server.process.poll() is None:
                server.stop()


def gather(herd: Herd, count: int, at_once: int = 64) -> None:
    """Connect ``count`` clients, not more than ``at_once`` undecided at any time."""
    members: list[Member] = []
    while len(members) < count or herd.open < count:
        while len(members) < count and len(members) - herd.open < at_once:
            members.append(herd.join())
        if not herd.run(30, lambda: herd.open >= min(count, len(members))):
            raise RuntimeError(f"{herd.open} of {count} are connected: {dict(herd.ends)}")


def idle(arguments: argparse.Namespace) -> tuple[Numbers, list[str]]:
    """Many connections that do nothing but answer pings."""
    interval = str(arguments.ping_interval)
    with serving(
        *("--connections", str(arguments.clients), "--connections-per-user", str(arguments.clients)),
        *("--ping-interval", interval),
    ) as (server, herd):
        before = server.usage()
        gather(herd, arguments.clients)
        connected = server.usage()
        herd.run(arguments.ping_interval)
        begun, pings, used = time.monotonic(), herd.pings, server.usage()["cpu"]
        herd.run(arguments.seconds)
        after, passed = server.usage(), time.monotonic() - begun
        numbers = {
            "connections": herd.open,
            "MiB": round(after["rss"] / 1024, 1),
            "MiB without clients": round(before["rss"] / 1024, 1),
            "KiB each": round((after["rss"] - before["rss"]) / arguments.clients, 2),
            "processor share": round((after["cpu"] - used) / passed, 4),
            "handshake CPU ms": round((connected["cpu"] - before["cpu"]) / arguments.clients * 1000, 3),
            "pings a second": round((herd.pings - pings) / passed, 1),
            "lost": dict(herd.ends),
            "SIGTERM seconds": round(_goodbye(server, herd), 2),
            "told 1001": herd.ends["close 1001"],
        }
    return numbers, [
        *_over("connections lost", arguments.clients - numbers["connections"], 0),
        *_over("MiB", numbers["MiB"], IDLE_MIB * max(1, arguments.clients / 10_000)),
        *_over("processor share", numbers["processor share"], IDLE_SHARE * max(1, 20 / arguments.ping_interval)),
        *_over("clients not told 1001", arguments.clients - numbers["told 1001"], 0),
        *server.complaints(),
    ]


def _goodbye(server: Server, herd: Herd) -> float:
    begun = time.monotonic()
    server.process.terminate()
    herd.run(15, lambda: server.process.poll() is not None and not herd.open)
    server.process.wait(15)
    return time.monotonic() - begun


def storm(arguments: argparse.Namespace) -> tuple[Numbers, list[str]]:
    """All connect at once; then a thousand lose the server, which is killed, and come back by themselves."""
    wrong = []
    with serving("--connections", "10000", "--connections-per-user", "10000") as (server, herd):
        before = server.usage()["cpu"]
        begun = time.monotonic()
        for _ in range(arguments.clients):
            herd.join(stays=True)
        called = time.monotonic() - begun
        herd.run(60, lambda: herd.open == arguments.clients)
        at_once = {
            "clients": arguments.clients,
            "connect calls": round(called, 2),
            "all open": round(time.monotonic() - begun, 2),
            "open": herd.open,
            "tried again": dict(herd.ends),
            "server CPU": round(server.usage()["cpu"] - before, 2),
            "drops": {name: value for name, value in server.metrics().items() if name.startswith("drop")},
        }
        herd.close()
        wrong += _over("seconds until all are open", at_once["all open"], STORM_SECONDS)
        wrong += _over("clients not open", arguments.clients - at_once["open"], 0) + server.complaints()
    with serving() as (server, herd):
        gather_staying(herd, arguments.back)
        herd.run(1)
        herd.ends.clear()
        herd.attempts.clear()
        killed = time.monotonic()
        server.stop(signal.SIGKILL)
        server.launch()
        if not herd.run(10, lambda: not herd.open) or not herd.run(30, server.listens):
            raise RuntimeError(f"{herd.open} clients did not notice, or the server did not come back")
        up = time.monotonic() - killed
        reached: dict[str, float] = {}
        for share in (0.5, 0.9, 0.99, 1.0):
            wanted = math.ceil(arguments.back * share)
            if herd.run(60, lambda wanted=wanted: herd.open >= wanted):
                reached[f"{share:.0%}"] = round(time.monotonic() - killed, 2)
        seconds = Counter(int(moment - killed) for moment in herd.attempts)
        back = {
            "clients": arguments.back,
            "listening again": round(up, 2),
            "back": reached,
            "attempts": len(herd.attempts),
            "most attempts in a second": max(seconds.values(), default=0),
            "ends": dict(herd.ends),
        }
        wrong += _over("seconds until 99 % are back", reached.get("99%", math.inf), BACK_SECONDS)
        wrong += _over("clients not back", arguments.back - herd.open, 0) + server.complaints()
    return {"at once": at_once, "after kill -9": back}, wrong


def gather_staying(herd: Herd, count: int) -> None:
    """Connect clients that come back."""
    gather(herd, count)
    for member in herd.members.values():
        member.stays = True
    herd.attempts.clear()


def churn(arguments: argparse.Namespace) -> tuple[Numbers, list[str]]:
    """Broadcasts reach everybody who stays, each once and in order, while others come and go."""
    heard: dict[int, list[int]] = {}

    def listen(member: Member, payload: bytes) -> None:
        message = json.loads(payload)
        if "zKey" in message:
            heard[member.number].append(message["result"])

    with serving("--broadcast", "all", "--broadcast-rate", "1000000000") as (server, herd):
        gather(herd, arguments.listeners)
        for member in herd.members.values():
            heard[member.number] = []
            member.on_text = listen
        sender = herd.join()
        herd.run(10, lambda: herd.open == arguments.listeners + 1)
        passing = Passing(herd, arguments.rate)
        sent, end = 0, time.monotonic() + arguments.seconds
        herd.later(0, passing.come)
        while time.monotonic() < end:
            sender.say({"zKey": "ping", "zHorizontal": sent, "_requestId": sent})
            sent += 1
            herd.run(1 / arguments.broadcasts)
        passing.over = True
        everything = list(range(sent))
        herd.run(30, lambda: all(numbers == everything for numbers in heard.values()))
        wrong = [
            f"client {number} heard {len(numbers)} of {sent}"
            for number, numbers in heard.items()
            if numbers != everything
        ]
        numbers = {
            "listeners": arguments.listeners,
            "broadcasts": sent,
            "deliveries": sum(map(len, heard.values())),
            "came and went": passing.count,
            "ends": dict(herd.ends),
            "not complete": len(wrong),
        }
        wrong += passing.leave_all(server)
        wrong += server.complaints()
    return numbers, wrong[:10]


class Passing:
    """Clients that come, say something, and go: politely, with a reset, in the middle of a frame, or with rubbish."""

    def __init__(self, herd: Herd, rate: float):
        self.herd, self.rate = herd, rate
        self.random = random.Random(1)
        self.count = 0
        self.over = False

    def come(self) -> None:
        """One more comes; called again by itself."""
        if self.over:
            return
        self.count += 1
        member = self.herd.join()
        self.herd.later(self.random.uniform(0.05, 1.0), lambda: self.act(member))
        self.herd.later(1 / self.rate, self.come)

    def act(self, member: Member) -> None:
        """What it came for."""
        kind = self.random.randrange(5)
        if kind == 1:
            member.write(b"\x81\xfe\x10\x00" + b"half a frame")
        elif kind == 2:
            member.write(self.random.randbytes(self.random.randrange(1, 2000)))
        elif kind == 3:
            member.write(masked(1, b'{"zKey": "no_such_command"}') + masked(1, b"["))
        member.leave(rude=kind in (0, 1))

    def leave_all(self, server: Server) -> list[str]:
        """Everybody leaves; what the server still holds then is wrong."""
        self.over = True
        self.herd.close()
        until = time.monotonic() + 15
        while (left := server.metrics()["zcomm_clients"]) and time.monotonic() < until:
            time.sleep(0.2)
        return [f"{left:g} clients are still in the registry"] if left else []


class Users:
    """Steady clients that use the models, call functions and measure how long a reply takes."""

    def __init__(self, herd: Herd, members: list[Member], rate: float):
        self.herd, self.members, self.rate = herd, members, rate
        self.random = random.Random(2)
        self.sent: dict[tuple[int, int], float] = {}
        self.latencies: list[float] = []
        self.replies: Counter[str] = Counter()
        self.number = 0
        for member in members:
            member.on_text = self.hear

    def ask(self) -> None:
        """One of them asks something; called again by itself."""
        member = self.random.choice(self.members)
        self.number += 1
        who = f"u{self.random.randrange(200)}@example.com"
        key, horizontal = self.random.choice(
            (
                ("ping", "x" * self.random.randrange(2000)),
                ("upsert_Users", {"values": {"name": who, "email": who}, "conflict_fields": ["email"]}),
                ("update_Users", {"values": {"age": self.random.randrange(100)}, "where": {"email": who}}),
                ("read_Users", {"where": {"age__gte": self.random.randrange(100)}, "order_by": "name", "limit": 20}),
                ("zFunc(calculateTotal, {cart_id: 123})", None),
                ("read_Nothing", {}),
                ("zLink(/admin/users)", None),
            )
        )
        if member.state == "open":
            self.sent[member.number, self.number] = time.monotonic()
            member.say(
                {"zKey": key, "_requestId": self.number, **({} if horizontal is None else {"zHorizontal": horizontal})}
            )
        self.herd.later(1 / self.rate, self.ask)

    def hear(self, member: Member, payload: bytes) -> None:
        """Take a reply; broadcasts carry no id."""
        message = json.loads(payload)
        begun = self.sent.pop((member.number, message.get("_requestId")), None)
        if begun is not None:
            self.latencies.append(time.monotonic() - begun)
            self.replies[message.get("code", "result")] += 1


def soak(arguments: argparse.Namespace) -> tuple[Numbers, list[str]]:
    """Everything mixed for a long time, a look at the process every five seconds."""
    with serving("--ping-interval", "5") as (server, herd):
        empty = server.usage()
        gather(herd, arguments.clients)
        users = Users(herd, list(herd.members.values()), arguments.commands)
        passing = Passing(herd, arguments.rate)
        herd.later(0, users.ask)
        herd.later(0, passing.come)
        begun, looks = time.monotonic(), [{"t": 0.0, **server.usage()}]
        while (passed := time.monotonic() - begun) < arguments.minutes * 60:
            herd.run(min(5.0, arguments.minutes * 60 - passed))
            looks.append({"t": time.monotonic() - begun, **server.usage()})
        passing.over = True
        herd._timers.clear()
        herd.run(15, lambda: not users.sent)
        unanswered, steady = len(users.sent), sum(member.state == "open" for member in users.members)
        wrong = passing.leave_all(server)
        left = server.usage()
        settled = [look for look in looks if look["t"] >= arguments.minutes * 60 * SETTLING]
        slope = growth([(look["t"] / 3600, look["rss"] / 1024) for look in settled])
        latencies = sorted(users.latencies)
        numbers = {
            "minutes": round(looks[-1]["t"] / 60, 1),
            "clients": arguments.clients,
            "still open": steady,
            "commands answered": len(latencies),
            "answers": dict(users.replies),
            "never answered": unanswered,
            "broadcasts and replies received": herd.texts,
            "pings": herd.pings,
            "came and went": passing.count,
            "p50 ms": round(statistics.median(latencies) * 1000, 2),
            "p99 ms": round(latencies[len(latencies) * 99 // 100] * 1000, 2),
            "MiB empty, begin, settled, end, peak": [
                round(value / 1024, 1)
                for value in (empty["rss"], looks[0]["rss"], settled[0]["rss"], looks[-1]["rss"], looks[-1]["peak"])
            ],
            "slope MiB/h": round(slope, 2),
            "processor share": round((looks[-1]["cpu"] - looks[0]["cpu"]) / looks[-1]["t"], 3),
            "fds empty, most, after": [empty["fds"], max(look["fds"] for look in looks), left["fds"]],
            "threads empty, after": [empty["threads"], left["threads"]],
            "metrics": server.metrics(),
            "ends": dict(herd.ends),
        }
        return numbers, [
            *wrong,
            *server.complaints()[:10],
            *_over("slope in MiB/h", slope, arguments.slope),
            # The database opens its connections at the first command and keeps them.
            *_over("files open after everybody left", left["fds"] - empty["fds"], 32),
            *_over("steady clients lost", arguments.clients - steady, 0),
            *_over("commands never answered", unanswered, 0),
        ]


def growth(points: list[tuple[float, float]]) -> float:
    """The slope of the line through ``points`` by least squares; 0 for fewer than two."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0


def _over(what: str, value: float, bound: float) -> list[str]:
    return [f"{what}: {value:g}, the bound is {bound:g}"] if value > bound else []


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(function: Callable[..., Any], **options: float) -> None:
        one = commands.add_parser(function.__name__, help=function.__doc__)
        one.set_defaults(function=function)
        for name, default in options.items():
            one.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=f"[{default}]")

    command(idle, clients=10_000, seconds=30.0, ping_interval=5.0)
    command(storm, clients=5000, back=1000)
    command(churn, listeners=500, rate=50.0, broadcasts=40.0, seconds=60.0)
    command(soak, minutes=30.0, clients=300, commands=150.0, rate=10.0, slope=SLOPE_MIB_HOUR)
    arguments = parser.parse_args()
    numbers, wrong = arguments.function(arguments)
    print(json.dumps({arguments.command: numbers, "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
