"""Random trouble for local servers, and a reckoning at the end.

``python benchmarks/torture.py SECONDS [--seed N]`` runs a manager with a real PostgreSQL and a real Redis in
a process of its own and, in a random order that the seed decides, starts, stops and restarts them, kills the
servers and the manager with SIGKILL, halts servers with SIGSTOP, and puts a stranger on a port while a
server is down. Meanwhile two writers commit rows and note each one that was acknowledged.

At the end it verifies: never two servers in one data directory, exactly one after a last start, every
acknowledged row there, no zombie, nothing left running after a last stop. It prints a summary and exits with
status 1 if any of that does not hold.

Redis runs with ``appendfsync always``, which promises the rows. With ``--appendfsync everysec`` it runs as it
does by default, and what is verified is that default's promise: what is lost are the last rows before a
SIGKILL that this script sent, without a hole, and not more than two seconds of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from writers import Gap, PostgreSQLWriter, RedisWriter, Writer, gaps

sys.path.insert(0, str(Path(__file__).parent.parent))

NAMES = ("postgresql", "redis")
#: Seconds a request to the manager may take before that counts as a violation.
ANSWER = 60.0


def manage(home: str, lifetime: str) -> None:
    """The other process: a manager that does what it reads from its standard input, one request a line."""
    from twisted.internet import reactor
    from twisted.internet.defer import maybeDeferred
    from twisted.internet.stdio import StandardIO
    from twisted.protocols.basic import LineReceiver

    from zcomm.services.manager import ServiceManager

    manager = ServiceManager(Path(home), os.environ, reactor, lifetime=lifetime)

    class Requests(LineReceiver):
        """Answers each line by its number, when it is done."""

        delimiter = b"\n"

        def lineReceived(self, line: bytes) -> None:
            number, action, *words = json.loads(line)
            done = maybeDeferred(getattr(manager, action), *words)
            done.addCallbacks(
                lambda value: self.say(number, True, value),
                lambda failure: self.say(number, False, f"{failure.type.__name__}: {failure.value}"),
            )

        def say(self, number: int, fine: bool, value: Any) -> None:
            self.sendLine(json.dumps([number, fine, value], default=str).encode())

        def connectionLost(self, reason: Any) -> None:
            if reactor.running:
                reactor.stop()

    reactor.addSystemEventTrigger("before", "shutdown", manager.stopService)
    StandardIO(Requests())
    reactor.run()


class Manager:
    """The manager's process, seen from here."""

    def __init__(self, home: Path, environ: dict[str, str], lifetime: str, log: Any, trace: Any):
        self.trace = trace
        self.trace(f"a manager with lifetime {lifetime}")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--manage", str(home), lifetime],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        self._answers: dict[int, tuple[bool, Any]] = {}
        self._arrived = threading.Condition()
        self._number = 0
        self._over = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            number, fine, value = json.loads(line)
            self.trace(f"  {number}: {'done' if fine else value}")
            with self._arrived:
                self._answers[number] = (fine, value)
                self._arrived.notify_all()
        with self._arrived:
            self._over = True
            self._arrived.notify_all()

    def send(self, action: str, *words: Any) -> int:
        self._number += 1
        self.trace(f"  {self._number}: {action} {' '.join(map(str, words))}")
        try:
            self.process.stdin.write(json.dumps([self._number, action, *words]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._number

    def answer(self, number: int) -> tuple[bool, Any]:
        """What came back; TimeoutError when nothing did, ``(False, "gone")`` when the manager was killed."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: number in self._answers or self._over, ANSWER):
                raise TimeoutError(f"no answer to request {number}")
            return self._answers.pop(number, (False, "gone"))

    def ask(self, action: str, *words: Any) -> tuple[bool, Any]:
        return self.answer(self.send(action, *words))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """In good order: its input ends."""
        self.process.stdin.close()
        self.process.wait(ANSWER)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def servers_in(directory: Path) -> list[psutil.Process]:
    """The living server processes of a data directory, their children left out."""
    inside = {}
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and os.path.samefile(process.cwd(), directory):
                inside[process.pid] = process
        except (psutil.Error, OSError):
            continue
    return [process for process in inside.values() if is_server(process, inside)]


def is_server(process: psutil.Process, inside: dict[int, psutil.Process]) -> bool:
    try:
        title = " ".join(process.cmdline())
        return process.ppid() not in inside and not title.startswith("postgres:") and "bgsave" not in title
    except psutil.Error:
        return False


class Torture:
    """The trouble and the reckoning."""

    def __init__(self, home: Path, seed: int, appendfsync: str):
        self.home, self.random, self.appendfsync = home, random.Random(seed), appendfsync
        self.environ = {
            **os.environ,
            "POSTGRESQL_PORT": str(free_port()),
            "REDIS_PORT": str(free_port()),
            "REDIS_APPENDFSYNC": appendfsync,
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        self.done: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.violations: list[str] = []
        #: Just before and just after each SIGKILL that this script sent to Redis.
        self.kills: list[tuple[float, float]] = []
        self.excused: list[Gap] = []
        self.begun = time.monotonic()
        self.log = open(home / "managers.log", "ab")
        self.events = open(home / "events.log", "w", encoding="utf-8")
        self.manager = self.new_manager()
        self.data: dict[str, Path] = {}
        self.writers: dict[str, Writer] = {}
        self.over = threading.Event()

    def new_manager(self) -> Manager:
        lifetime = self.random.choice(("persistent", "session"))
        return Manager(self.home / "zcomm", self.environ, lifetime, self.log, self.trace)

    def trace(self, text: str) -> None:
        """One line of ``events.log``: what was done when, for whoever looks for the cause."""
        self.events.write(f"{time.monotonic() - self.begun:9.3f} {text}\n")
        self.events.flush()

    def violation(self, text: str) -> None:
        self.violations.append(text)
        self.trace(f"VIOLATION: {text}")
        print(f"VIOLATION: {text}", file=sys.stderr)

    def begin(self) -> None:
        for name in NAMES:
            fine, answer = self.manager.ask("start", name)
            if not fine:
                raise SystemExit(f"{name} does not start at all: {answer}")
            status, info = self.status(name), self.manager.ask("connection_info", name)[1]
            self.data[name] = Path(status["data_dir"])
            self.writers[name] = {"postgresql": PostgreSQLWriter, "redis": RedisWriter}[name](info)
            self.writers[name].start()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Never two servers in one data directory, looked at all the time."""
        while not self.over.wait(0.05):
            for name, directory in self.data.items():
                there = servers_in(directory)
                if len(there) > 1 and len(again := servers_in(directory)) > 1:
                    self.violation(f"two servers in the data directory of {name}: {again}")

    def status(self, name: str) -> dict[str, Any]:
        fine, answer = self.manager.ask("status", name)
        return answer if fine else {"pid": None, "running": False, "state": str(answer)}

    # What may happen. Each is one turn.

    def start(self, name: str) -> None:
        self.note("start", name, *self.manager.ask("start", name))

    def stop(self, name: str) -> None:
        self.note("stop", name, *self.manager.ask("stop", name))

    def restart(self, name: str) -> None:
        self.note("restart", name, *self.manager.ask("restart", name))

    def at_once(self, name: str) -> None:
        """Several requests without waiting; the last one decides."""
        actions = [self.random.choice(("start", "stop", "restart")) for _ in range(self.random.randint(2, 6))]
        numbers = [self.manager.send(action, name) for action in actions]
        for action, number in zip(actions, numbers, strict=True):
            self.note(f"{action} among others", name, *self.manager.answer(number), superseded=True)
        wanted, deadline = actions[-1] != "stop", time.monotonic() + 10
        # A kill just before may be noticed only now, and is mended within moments.
        while (running := self.status(name)["running"]) != wanted and time.monotonic() < deadline:
            self.over.wait(0.01)
        if running != wanted:
            self.violation(f"after {', '.join(actions)} {name} is {'' if running else 'not '}running")

    def kill_server(self, name: str) -> None:
        pid = self.status(name)["pid"]
        if pid:
            before = time.monotonic()
            self.send_signal(pid, signal.SIGKILL)
            if name == "redis":
                self.kills.append((before, time.monotonic()))
            self.done[f"kill -9 {name}"] += 1

    def halt_server(self, name: str) -> None:
        """SIGSTOP to a server that runs; a restart has to cope with it."""
        status = self.status(name)
        if status["running"] and self.random.random() < 0.5:
            self.send_signal(status["pid"], signal.SIGSTOP)
            self.done[f"SIGSTOP {name}"] += 1
            self.note("restart of a halted server", name, *self.manager.ask("restart", name))

    def kill_manager(self, name: str) -> None:
        if self.random.random() < 0.5:
            self.manager.send(self.random.choice(("start", "restart", "stop")), name)
            self.over.wait(self.random.random() * 0.08)
        self.manager.kill()
        self.done["kill -9 the manager"] += 1
        self.manager = self.new_manager()
        for one in NAMES:
            self.note("start after the manager's death", one, *self.manager.ask("start", one))

    def end_manager(self, name: str) -> None:
        self.manager.end()
        self.done["orderly end of the manager"] += 1
        self.manager = self.new_manager()

    def steal_port(self, name: str) -> None:
        self.manager.ask("stop", name)
        port = int(self.environ[f"{name.upper()}_PORT"])
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                thief.bind(("127.0.0.1", port))
                thief.listen()
            except OSError:
                return
            fine, answer = self.manager.ask("start", name)
            self.done[f"stole the port of {name}"] += 1
            if fine:
                self.violation(f"{name} was called ready while a stranger had its port")
            elif "PortInUse" not in str(answer):
                self.violation(f"{name} did not say that its port is taken: {answer}")
        self.note("start after the theft", name, *self.manager.ask("start", name))

    def send_signal(self, pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def note(self, what: str, name: str, fine: bool, answer: Any, superseded: bool = False) -> None:
        self.done[f"{what} {name}"] += 1
        if not fine and not superseded:
            self.refusals[f"{what} {name}: {answer}"] += 1
            self.violation(f"{what} {name}: {answer}")

    def turn(self) -> None:
        (action,) = self.random.choices(
            (
                self.start,
                self.stop,
                self.restart,
                self.at_once,
                self.kill_server,
                self.halt_server,
                self.kill_manager,
                self.end_manager,
                self.steal_port,
            ),
            (6, 4, 5, 3, 6, 1, 3, 1, 2),
        )
        name = self.random.choice(NAMES)
        self.trace(f"{action.__name__} {name}")
        action(name)
        self.over.wait(self.random.random() * 0.4)

    # The reckoning.

    def reckon(self) -> None:
        for name in NAMES:
            self.note("last start", name, *self.manager.ask("start", name))
        for writer in self.writers.values():
            writer.over.set()
            writer.join(30)
        self.over.set()
        for name, directory in self.data.items():
            there = servers_in(directory)
            if len(there) != 1:
                self.violation(f"{len(there)} servers of {name} instead of one: {there}")
            writer = self.writers[name]
            for gap in gaps(writer.acknowledged, writer.missing()):
                if name == "redis" and self.appendfsync == "everysec" and gap.is_excused(self.kills):
                    self.excused.append(gap)
                else:
                    self.violation(f"acknowledged rows of {name} are gone: {gap}")
        self.count_zombies()
        for name in NAMES:
            self.note("last stop", name, *self.manager.ask("stop", name))
        self.manager.end()
        self.count_orphans()

    def count_zombies(self) -> None:
        for process in psutil.Process(self.manager.process.pid).children(recursive=True):
            if process.status() == psutil.STATUS_ZOMBIE:
                self.violation(f"the manager has not collected {process}")

    def count_orphans(self) -> None:
        """Nothing may work in, or have been started from, this run's directories."""
        deadline = time.monotonic() + 5
        while (left := self.left_running()) and time.monotonic() < deadline:
            self.over.wait(0.05)
            time.sleep(0.05)
        for process in left:
            self.violation(f"still running after the last stop: {process} {process.cmdline()}")

    def left_running(self) -> list[psutil.Process]:
        left, places = [], [*self.data.values(), self.home]
        for process in psutil.process_iter():
            try:
                inside = any(place == Path(process.cwd()) or place in Path(process.cwd()).parents for place in places)
                named = any(str(place) in word for word in process.cmdline() for place in places)
                if process.pid != os.getpid() and (inside or named) and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
            except psutil.Error:
                continue
        return left

    def summary(self, seconds: float) -> str:
        lines = [f"{seconds:.0f} s, {sum(self.done.values())} events"]
        lines += [f"  {count:6} {what}" for what, count in sorted(self.done.items())]
        for name, writer in self.writers.items():
            lines.append(
                f"{name}: {len(writer.acknowledged)} rows acknowledged, refused or cut off "
                f"{writer.refused} times, all acknowledged rows looked for"
            )
        lines += [f"redis: the last rows before a SIGKILL are gone: {gap}" for gap in self.excused]
        there = "every acknowledged row there" + (" but those" if self.excused else "")
        lines.append(
            f"{len(self.violations)} violations"
            if self.violations
            else f"one server each at the end, {there}, no zombie, no orphan"
        )
        return "\n".join([*lines, *(f"  {text}" for text in self.violations[:20])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float, nargs="?", default=120.0)
    parser.add_argument("--seed", type=int, default=1, help="decides what happens in which order (1)")
    parser.add_argument(
        "--appendfsync",
        choices=("always", "everysec"),
        default="always",
        help="when Redis writes to the disk (always)",
    )
    parser.add_argument("--manage", nargs=2, metavar=("HOME", "LIFETIME"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="leave the logs and data directories where they are")
    args = parser.parse_args()
    if args.manage:
        manage(*args.manage)
        return 0
    home = Path(tempfile.mkdtemp(prefix="zcomm-torture-"))
    home.chmod(0o755)
    torture = Torture(home, args.seed, args.appendfsync)
    begun = time.monotonic()
    try:
        torture.begin()
        while time.monotonic() - begun < args.seconds:
            torture.turn()
        torture.reckon()
    except TimeoutError as error:
        torture.violation(str(error))
    finally:
        torture.over.set()
        torture.manager.kill()
        for process in torture.left_running():
            process.kill()
        torture.log.close()
    print(f"seed {args.seed}, appendfsync {args.appendfsync}: {torture.summary(time.monotonic() - begun)}")
    if args.keep:
        print(f"kept in {home}")
    else:
        shutil.rmtree(home, ignore_errors=True)
    return 1 if torture.violations else 0


if __name__ == "__main__":
    sys.exit(main())
