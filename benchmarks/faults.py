"""Two hosts with a zComm each, one with Redis and one with clients, under random faults, and a verdict.

::

    python benchmarks/faults.py --minutes 10 --seed 1

Each host is a network namespace. Clients publish to a few topics, are subscribed to them with presence, and come back
with their position at whichever host answers. Meanwhile hosts are cut off from Redis or from the clients, in both
directions or in one, and zComm and Redis are killed, paused, and slowed by many short pauses. Now and then all is
healed, and what has come is judged:

* what was acknowledged has been delivered to each subscriber, unless it was told that it has lost something (Redis
  writes each message to its disk, so nobody has to be);
* messages of a topic have come to each in order, without a gap and each once, and are the same at all;
* all publishes are answered, repeated with their key where the connection had ended;
* within 13 seconds both hosts say the same of who is there, and that is who is.

It prints what it counted as JSON and ends with status 1 where that is not so. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.namespaces import Host, Network, why_not  # noqa: E402 (behind the path)
from support.rawclient import Opcode, Reader, Response, build_frame, handshake  # noqa: E402 (behind the path)
from support.redisserver import RedisServer  # noqa: E402 (behind the path)

PORT, ORIGIN = 8765, "http://page.example"
TOPICS = ("room:1", "room:2", "room:3")
CLIENTS, EACH = 12, 0.5
#: Seconds of faults between two verdicts, and those in which presence has to be right once all is healed.
ROUND, PRESENCE = 45.0, 13.0
#: Seconds without a word after which a client goes elsewhere.
SILENCE = 4.0
KINDS = "'room:{id}': {history: 5000, keep: 3600, presence: true}\n"


class Wrong(Exception):
    """A promise that was not kept."""


class Model:
    """What has come to anybody.

    :ivar messages: by topic and numbering, what each offset has.
    :ivar acknowledged: by topic and numbering, offsets and what was published there.
    """

    def __init__(self) -> None:
        self.messages: dict[tuple[str, str], dict[int, str]] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self.acknowledged: dict[tuple[str, str], dict[int, str]] = {}
        self.counts: Counter[str] = Counter()

    def note(self, topic: str, epoch: str, offset: int, data: str) -> None:
        """Compare a message with what others have had."""
        number = epoch.partition(".")[0]
        known = self.messages.setdefault((topic, number), {}).setdefault(offset, data)
        if known != data:
            raise Wrong(f"{topic} {offset} is {known!r} and {data!r}")
        place = self.places.setdefault(data, (number, offset))
        if place != (number, offset):
            raise Wrong(f"{data!r} of {topic} stands at {place} and {(number, offset)}")


class Subscriber:
    """A client that comes back for ever.

    :ivar is_up: whether it has its subscriptions.
    """

    def __init__(self, name: str, hosts: list[Host], own: Host, model: Model, seed: int):
        self.name, self.hosts, self.own, self.model = name, hosts, own, model
        self.random = random.Random(seed)
        self.positions: dict[str, tuple[str, int]] = {}
        self.unanswered: dict[str, tuple[str, str]] = {}
        self.number = self.asked = 0
        self.is_up = False
        self.is_publishing = True
        self.writer: asyncio.StreamWriter | None = None
        self.wrong: Exception | None = None

    async def run(self) -> None:
        while True:
            try:
                await self.live(self.random.choice(self.hosts))
            except (TimeoutError, OSError, EOFError):
                self.model.counts["connections lost"] += 1
            except Exception as wrong:
                self.wrong = wrong
                raise
            finally:
                self.is_up = False
                if self.writer is not None:
                    self.writer.transport.abort()
                    self.writer = None
            await asyncio.sleep(self.random.uniform(0.05, 0.5))

    async def live(self, host: Host) -> None:
        """Use one connection until it ends, or is silent for too long."""
        made = await asyncio.to_thread(self.own.connect, host.address, PORT, 2.0)
        reader, self.writer = await asyncio.open_connection(sock=made)
        self.parser = Reader(expect_response=True)
        self.ids: dict[str, tuple[str, Any]] = {}
        self.subscribed: set[str] = set()
        self.writer.write(handshake(f"{host.address}:{PORT}", origin=ORIGIN))
        beat = asyncio.create_task(self.beat())
        try:
            while True:
                data = await asyncio.wait_for(reader.read(1 << 16), SILENCE)
                if not data:
                    raise EOFError
                for item in self.parser.feed(data):
                    if isinstance(item, Response):
                        for topic in TOPICS:
                            self.subscribe(topic)
                    elif item.opcode == Opcode.PING:
                        self.writer.write(build_frame(Opcode.PONG, item.payload))
                    elif item.opcode == Opcode.CLOSE:
                        raise EOFError
                    elif item.opcode == Opcode.TEXT:
                        self.take(item.json)
        finally:
            beat.cancel()

    async def beat(self) -> None:
        """Ask for a word again and again, and publish."""
        while True:
            await asyncio.sleep(EACH * self.random.uniform(0.5, 1.5))
            if self.writer is None or self.parser.response is None:
                continue
            self.send("ping", None, None)
            if self.is_publishing:
                self.number += 1
                key = f"key-of-{self.name}-{self.number}"
                self.unanswered[key] = self.random.choice(TOPICS), f"{self.name} {self.number}"
                self.publish(key)

    def send(self, key: str, horizontal: Any, what: Any) -> None:
        assert self.writer is not None
        self.asked += 1
        name = f"r{self.asked}"
        self.ids[name] = key, what
        message = {"zKey": key, "_requestId": name}
        if horizontal is not None:
            message["zHorizontal"] = horizontal
        self.writer.write(build_frame(Opcode.TEXT, json.dumps(message).encode()))

    def subscribe(self, topic: str) -> None:
        self.subscribed.discard(topic)
        asked: dict[str, Any] = {"topic": topic, "presence": True}
        if topic in self.positions:
            epoch, offset = self.positions[topic]
            asked["since"] = {"epoch": epoch, "offset": offset}
        self.send("zSubscribe", asked, topic)

    def publish(self, key: str) -> None:
        topic, data = self.unanswered[key]
        self.send("zPublish", {"topic": topic, "data": data, "_idempotencyKey": key}, key)

    def take(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "message":
            if message["topic"] in self.subscribed:
                epoch = message.get("epoch", self.positions[message["topic"]][0])
                self.next(message["topic"], epoch, message["offset"], message.get("data"), message.get("key"))
        elif event == "topic":
            self.positions[message["topic"]] = message["epoch"], message["offset"]
            if not message.get("recovered", True):
                self.model.counts["told of a loss"] += 1
        elif event == "unsubscribed":
            self.subscribe(message["topic"])
        elif "_requestId" in message:
            key, what = self.ids.pop(message["_requestId"], ("", None))
            self.answered(key, what, message)

    def answered(self, key: str, what: Any, message: dict[str, Any]) -> None:
        result, error = message.get("result"), message.get("error")
        if key == "zSubscribe":
            if error:
                self.model.counts[f"zSubscribe {message.get('code', error)}"] += 1
                asyncio.get_running_loop().call_later(0.5, self.again, what)
                return
            if result.get("recovered") is False:
                self.model.counts[f"told {result.get('reason')}"] += 1
                self.positions[what] = result["epoch"], result["offset"]
            elif what in self.positions:
                self.model.counts["resumed"] += 1
                for each in result.get("messages", ()):
                    self.next(what, result["epoch"], each["offset"], each["data"], each.get("key"))
            else:
                self.positions[what] = result["epoch"], result["offset"]
            if self.positions[what][1] != result["offset"]:
                raise Wrong(f"{self.name} is at {self.positions[what]} of {what}, not {result['offset']}")
            self.positions[what] = result["epoch"], result["offset"]
            self.subscribed.add(what)
            if len(self.subscribed) == len(TOPICS) and not self.is_up:
                self.is_up = True
                for waiting in list(self.unanswered):
                    self.publish(waiting)
        elif key == "zPublish" and what in self.unanswered:
            if error:
                self.model.counts[f"zPublish {message.get('code', error)}"] += 1
                asyncio.get_running_loop().call_later(0.5, self.once_more, what)
                return
            topic, data = self.unanswered.pop(what)
            number = result["epoch"].partition(".")[0]
            self.model.acknowledged.setdefault((topic, number), {})[result["offset"]] = data
            self.model.counts["acknowledged"] += 1

    def again(self, topic: str) -> None:
        if self.writer is not None:
            self.subscribe(topic)

    def once_more(self, key: str) -> None:
        if self.writer is not None and key in self.unanswered:
            self.publish(key)

    def next(self, topic: str, epoch: str, offset: int, data: Any, key: str | None) -> None:
        """Take a message, which has to be the next one."""
        known = self.positions[topic]
        if offset != known[1] + 1:
            raise Wrong(f"{self.name} has {topic} {known} and is told {epoch} {offset}")
        self.positions[topic] = epoch, offset
        self.model.note(topic, epoch, offset, data)
        self.model.counts["delivered"] += 1


class World:
    """The hosts, and what is done to them."""

    def __init__(self, network: Network, redis: RedisServer, home: Path, seed: int):
        self.network, self.redis, self.home = network, redis, home
        self.random = random.Random(seed)
        self.own = network["c"]
        self.hosts = [network["a"], network["b"]]
        self.servers: dict[str, Any] = {}
        self.killed: set[str] = set()
        self.model = Model()
        self.clients = [
            Subscriber(f"c{number}", self.hosts, self.own, self.model, seed * 100 + number) for number in range(CLIENTS)
        ]
        (home / "topics.yaml").write_text(KINDS, "utf-8")

    def start(self, host: Host) -> None:
        """Start the zComm of a host."""
        home = self.home / host.name
        home.mkdir(exist_ok=True)
        twistd = shutil.which("twistd", path=str(Path(sys.executable).parent)) or "twistd"
        words = [sys.executable, twistd, "-n", "--pidfile=", "zcomm", "--no-auth", "--insecure", "--host", host.address]
        words += ["--port", str(PORT), "--engine", f"redis://{self.redis.host}:{self.redis.port}"]
        words += ["--topics", str(self.home / "topics.yaml"), "--allowed-origin", ORIGIN]
        environ = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        with open(home / "log", "ab") as log:
            self.killed.discard(host.name)
            self.servers[host.name] = host.popen(words, cwd=home, env=environ, stdout=log, stderr=log)

    async def fault(self) -> None:
        """Have one thing fail for a while, and heal it."""
        host = self.random.choice(self.hosts)
        redis = self.network["r"]
        seconds = self.random.uniform(0.5, 14)
        kind = self.random.choice(
            ("cut", "one way", "away", "kill node", "pause node", "kill redis", "pause redis", "slow", "connections")
        )
        self.model.counts[kind] += 1
        print(f"{time.monotonic():.0f} {kind} {host.name} {seconds:.1f}", file=sys.stderr, flush=True)
        if kind in ("cut", "one way"):
            pair = self.random.choice([(host, redis), (redis, host)])
            await asyncio.to_thread(self.network.partition, *pair, one_way=kind == "one way")
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.network.heal, *pair)
        elif kind == "away":
            await asyncio.to_thread(self.network.partition, host, self.own)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.network.heal, host, self.own)
        elif kind == "kill node":
            self.killed.add(host.name)
            await asyncio.to_thread(self.servers[host.name].end, signal.SIGKILL)
            await asyncio.sleep(seconds / 4)
            self.start(host)
        elif kind == "pause node":
            self.servers[host.name].send(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.servers[host.name].send(signal.SIGCONT)
        elif kind == "kill redis":
            self.redis.kill()
            await asyncio.sleep(seconds / 3)
            await asyncio.to_thread(self.redis.start)
        elif kind == "pause redis":
            self.redis.pause()
            await asyncio.sleep(seconds)
            self.redis.go_on()
        elif kind == "slow":
            until = time.monotonic() + seconds
            process = self.random.choice([self.redis.pid, self.servers[host.name].pid])
            while time.monotonic() < until:
                os.kill(process, signal.SIGSTOP)
                await asyncio.sleep(0.25)
                os.kill(process, signal.SIGCONT)
                await asyncio.sleep(0.05)
        else:
            for _ in range(10):
                kinds = self.random.choice(("normal", "pubsub"))
                await asyncio.to_thread(self.redis.call, "CLIENT", "KILL", "TYPE", kinds)
                await asyncio.sleep(0.1)

    async def keep(self) -> None:
        """Start a zComm again that found no Redis at its start, as a supervisor of services does."""
        while True:
            await asyncio.sleep(1)
            for host in self.hosts:
                if not self.servers[host.name].is_running and host.name not in self.killed:
                    self.model.counts["starts without Redis"] += 1
                    self.start(host)

    async def ask(self, host: Host, topic: str) -> int:
        """The number of connections that are in a topic, as a host says it."""
        made = await asyncio.to_thread(self.own.connect, host.address, PORT, 2.0)
        reader, writer = await asyncio.open_connection(sock=made)
        try:
            parser = Reader(expect_response=True)
            writer.write(handshake(f"{host.address}:{PORT}", origin=ORIGIN))
            message = {"zKey": "zPresence", "_requestId": "p", "zHorizontal": {"topic": topic}}
            writer.write(build_frame(Opcode.TEXT, json.dumps(message).encode()))
            while True:
                data = await asyncio.wait_for(reader.read(1 << 16), SILENCE)
                if not data:
                    raise EOFError
                for item in parser.feed(data):
                    if not isinstance(item, Response) and item.opcode == Opcode.TEXT and "_requestId" in item.json:
                        return int(item.json.get("result", {}).get("connections", -1))
        finally:
            writer.transport.abort()

    async def judge(self) -> None:
        """Wait until all is well again, and compare."""
        healed = time.monotonic()
        for client in self.clients:
            client.is_publishing = False

        def is_quiet() -> bool:
            tops = {topic: {client.positions.get(topic) for client in self.clients} for topic in TOPICS}
            return all(client.is_up and not client.unanswered for client in self.clients) and all(
                len(found) == 1 for found in tops.values()
            )

        await self.until(is_quiet, healed + 60, self.explain)
        quiet = time.monotonic()
        for key, acknowledged in self.model.acknowledged.items():
            told = self.model.messages.get(key, {})
            for offset, data in acknowledged.items():
                if told.get(offset) != data:
                    raise Wrong(f"{data!r} was acknowledged at {key} {offset}, where {told.get(offset)!r} was told")
        while True:
            try:
                found = [await self.ask(host, topic) for host in self.hosts for topic in TOPICS]
            except (TimeoutError, OSError, EOFError):
                found = []
            if found and all(one == len(self.clients) for one in found) and is_quiet():
                break
            if time.monotonic() > quiet + PRESENCE:
                raise Wrong(f"who is there: {found}, not {len(self.clients)} each, {PRESENCE:g} s after all were back")
            await asyncio.sleep(0.2)
        self.model.counts["verdicts"] += 1
        self.model.counts["slowest until quiet, ms"] = max(
            self.model.counts["slowest until quiet, ms"], round(1000 * (quiet - healed))
        )
        self.model.counts["slowest until presence is right, ms"] = max(
            self.model.counts["slowest until presence is right, ms"], round(1000 * (time.monotonic() - healed))
        )
        for client in self.clients:
            client.is_publishing = True

    def explain(self) -> str:
        return "; ".join(
            f"{client.name} up {client.is_up} unanswered {len(client.unanswered)} {client.positions}"
            for client in self.clients
        )

    async def until(self, condition: Any, deadline: float, explain: Any) -> None:
        while not condition():
            for client in self.clients:
                if client.wrong is not None:
                    raise client.wrong
            if time.monotonic() > deadline:
                raise Wrong(f"all is not well again: {explain()}")
            await asyncio.sleep(0.05)

    async def run(self, minutes: float) -> None:
        for host in self.hosts:
            self.start(host)
        tasks = [asyncio.create_task(client.run()) for client in self.clients]
        tasks.append(asyncio.create_task(self.keep()))
        try:
            await self.judge()
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                until = min(end, time.monotonic() + ROUND)
                while time.monotonic() < until:
                    await self.fault()
                    await asyncio.sleep(self.random.uniform(0, 2))
                await self.judge()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Two hosts under random faults, and a verdict.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as directory, Network("r", "a", "b", "c") as network:
        with RedisServer(place=network["r"], appendonly="yes", appendfsync="always") as redis:
            world = World(network, redis, Path(directory), options.seed)
            verdict = "approved"
            begun = time.monotonic()
            try:
                asyncio.run(world.run(options.minutes))
            except Exception as wrong:
                verdict = str(wrong) if isinstance(wrong, Wrong) else repr(wrong)
                traceback.print_exception(wrong)
                for host in world.hosts:
                    log = (Path(directory) / host.name / "log").read_text("utf-8", "replace")
                    print(host.name, log[-3000:], sep="\n", file=sys.stderr)
            seconds = round(time.monotonic() - begun)
            print(
                json.dumps(
                    {"verdict": verdict, "seconds": seconds, **dict(sorted(world.model.counts.items()))}, indent=1
                )
            )
            return 0 if verdict == "approved" else 1


if __name__ == "__main__":
    sys.exit(main())
