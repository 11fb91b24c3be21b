"""What one hostile client costs the others under each attack: their latency, memory, lines of the log, disk.

::

    python benchmarks/isolation.py                    # every attack, on every database: a table
    python benchmarks/isolation.py empty-fragments    # one of them
    python benchmarks/isolation.py --quick            # all of them within some minutes
    python benchmarks/isolation.py --database sqlite --seconds 20 --json

For each attack there is a new ``twistd zcomm`` on core 0, its PostgreSQL, if any, on both at the same priority, with a
schema, a policy file and a user for the attacker who may do little. The attack runs in a process of its own on core 1,
as fast as it can, and comes back as soon as the server has ended it. Another user, in this process, also on core 1 and
before the attack in its scheduler's eyes, asks for a ping every 5 ms, for a row by its id, for a new row, for a
function, for a login and for ``/health``, first without the attack and then under it. Memory is the peak that the
system counted (``VmHWM``) over what the server had before. After the attack it is counted how long it takes until all
is as it was; in a second attack the server is sent SIGTERM. The exit status is 1 when a bound does not hold. Linux
only, as root for the scheduling; elsewhere, and with ``--shared``, the figures are those of a machine that shares its
cores.

``attacks/sockets.py`` has the attacks of bytes, ``attacks/users.py`` those of an admitted user, ``attacks/stage.py``
the schema, the rights and the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from attacks.priority import first, kept_first
from attacks.probe import Caller, Figures, Probe
from attacks.sockets import ATTACKS
from attacks.stage import Stage, databases
from attacks.users import USER_ATTACKS
from sqlalchemy.exc import SQLAlchemyError

#: For every attack: seconds of others' 99th percentile; what they ask of the database and of functions may take
#: ``TIMES`` as long as it does alone; and seconds of a login.
P99, TIMES, LOGIN = 0.020, 3, 1.0
#: Seconds until all is as it was, and from SIGTERM to the end.
BACK, END = 10.0, 5.0
#: Lines and bytes that the log may grow by in a second; bytes of the database, where the attacker writes nothing.
LINES, LOGGED, DISK = 20, 5_000, 10_000_000
ALL: dict[str, Any] = {**ATTACKS, **USER_ATTACKS}
SHARED = False
#: Niceness of the server and its database, and of the attack.
SERVER, ATTACK = -20, -10


def beyond(alone: dict[str, Figures], under: dict[str, Figures]) -> list[str]:
    """The bounds that others' requests do not keep."""
    wrong = []
    for name, found in under.items():
        bound = {"login": LOGIN, "health": LOGIN, "program": LOGIN, "ping": P99}.get(
            name, max(P99, TIMES * alone[name].p99)
        )
        if found.p99 > bound:
            wrong.append(f"{name} p99 {found.p99 * 1000:.1f} > {bound * 1000:.1f} ms")
        if found.failures:
            wrong.append(f"{name}: {found.failures.total()} of {found.count} failed: {found.failures.most_common(1)}")
    return wrong


def launch(name: str, stage: Stage, seconds: float) -> subprocess.Popen[bytes]:
    """Begin an attack in a process of its own; returns when its first connections are made."""
    attacking = subprocess.Popen(
        [sys.executable, __file__, "--attack", name, "--port", str(stage.server.port), "--seconds", str(seconds)],
        env={**os.environ, "ZCOMM_TOKENS_OF_USERS": json.dumps(stage.tokens)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    attacking.stdout.readline()
    return attacking


def back_after(stage: Stage, probe: Probe, alone: dict[str, Figures], most: float) -> float:
    """Seconds until all has been as it was for a second, memory too; infinity when it was not in time."""
    ended = time.monotonic()
    while (begun := time.monotonic()) < ended + BACK + 1:
        time.sleep(1.0)
        if beyond(alone, probe.figures(begun, begun + 1.0)) or stage.server.usage()["rss"] * 1024 > most:
            continue
        if not stage.left():
            return begun - ended
    return float("inf")


def measure(name: str, url: str, seconds: float) -> dict[str, Any]:
    """One attack on one server."""
    attack = ALL[name]
    with tempfile.TemporaryDirectory(prefix="zcomm-isolation-") as directory:
        stage = Stage(Path(directory), attack, url)
        server = stage.server
        try:
            if not SHARED:
                first(server.process.pid, SERVER)
            warm(stage)
            probe = Probe(stage, urgent=not SHARED)
            probe.start()
            time.sleep(0.5)
            begun = time.monotonic()
            time.sleep(max(2.0, seconds / 2))
            alone = probe.figures(begun, time.monotonic())
            (Path("/proc") / str(server.process.pid) / "clear_refs").write_text("5")
            before, disk, log = server.usage(), stage.disk(), stage.log_size()
            attacking = launch(name, stage, seconds)
            if not SHARED:
                first(attacking.pid, ATTACK)
            begun = time.monotonic()
            told = finish(attacking)
            under = probe.figures(begun, time.monotonic())
            after = server.usage()
            logged = [(now - then) / seconds for now, then in zip(stage.log_size(), log, strict=True)]
            filled = stage.disk() - disk
            back = back_after(stage, probe, alone, before["rss"] * 1024 + max(attack.growth, 16.0) * 1e6)
            # What was asked for may be at its largest when the one who asked has gone.
            grown, kept = (server.usage()[which] - before["rss"] for which in ("peak", "rss"))
            attacking = launch(name, stage, 60)
            time.sleep(1.5)
            probe.stop()
            end = goodbye(stage)
            attacking.kill()
            attacking.communicate()
        finally:
            server.process.kill()
            server.process.wait()
        wrong = beyond(alone, under)
        wrong += bounds(
            ("memory +MB", grown * 1024 / 1e6, attack.growth),
            ("seconds until it is back", back, BACK),
            ("seconds to the end", end, END),
            ("lines logged a second", logged[0], LINES),
            ("bytes logged a second", logged[1], LOGGED),
            ("bytes of disk", filled, float("inf") if attack.writes else DISK),
            ("listeners lost", told.get("listeners lost", 0), 0),
            ("complaints", len(server.complaints()), LINES if "failing" in name else 0),
        )
        return {
            "alone": {line: str(found) for line, found in alone.items()},
            "under attack": {line: str(found) for line, found in under.items()},
            "p50 ms": round(under["ping"].p50 * 1000, 2),
            "p99 ms": round(under["ping"].p99 * 1000, 2),
            "read": round(under["read"].p99 * 1000, 1),
            "create": round(under["create"].p99 * 1000, 1),
            "read alone": round(alone["read"].p99 * 1000, 1),
            "create alone": round(alone["create"].p99 * 1000, 1),
            "grown MB": round(grown * 1024 / 1e6, 1),
            "kept MB": round(kept * 1024 / 1e6, 1),
            "back s": back if back == float("inf") else round(back, 1),
            "end s": round(end, 2),
            "processor share": round((after["cpu"] - before["cpu"]) / seconds, 2),
            "logged lines/s": round(logged[0], 1),
            "logged bytes/s": round(logged[1]),
            "disk KB": filled // 1000,
            "attacker": told,
            "complaints": server.complaints()[:3],
            "wrong": wrong,
        }


def bounds(*found: tuple[str, float, float]) -> list[str]:
    """Those that do not hold."""
    return [f"{name} {value:.1f} > {bound:g}" for name, value, bound in found if value > bound]


def warm(stage: Stage) -> None:
    """What a server keeps from its first large messages on counts for nobody."""
    caller = Caller(stage.server.port, stage.tokens["other"])
    for _ in range(5):
        caller.call("ping", "x" * 3_000)
    caller.close()


def finish(attacking: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the attacker says at its end, which comes without a goodbye."""
    try:
        output = attacking.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        attacking.kill()
        output = attacking.communicate()[0]
    return json.loads(output) if output else {}


def goodbye(stage: Stage) -> float:
    """Seconds from SIGTERM to the end of the process; infinity after half a minute."""
    begun = time.monotonic()
    stage.server.process.send_signal(signal.SIGTERM)
    try:
        stage.server.process.wait(30)
    except subprocess.TimeoutExpired:
        return float("inf")
    return time.monotonic() - begun


def told(name: str, one: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{name:32} p50 {one['p50 ms']:7.2f}  p99 {one['p99 ms']:8.2f} ms  "
        f"read {one['read']:7.1f} ({one['read alone']:.1f})  create {one['create']:7.1f} ({one['create alone']:.1f})  "
        f"+{one['grown MB']:6.1f} MB  kept {one['kept MB']:6.1f}  "
        f"back {one['back s']:4.1f} s  end {one['end s']:4.1f} s"
    )


def attack_alone(arguments: argparse.Namespace) -> int:
    """Be the other process."""
    tokens = json.loads(os.environ["ZCOMM_TOKENS_OF_USERS"])
    attacker = ALL[arguments.attack].attacker(arguments.port, tokens)
    print("begun", flush=True)
    print(json.dumps(attacker.run(arguments.seconds)), flush=True)
    # Without a goodbye.
    os._exit(0)


def main() -> int:
    """Attack, or measure attacks."""
    global SHARED
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", choices=[*ALL, []], help="[all]")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each [8]")
    parser.add_argument("--quick", action="store_true", help="three seconds of each")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"], help="[both]; repeatable")
    parser.add_argument("--shared", action="store_true", help="leave the machine to the others")
    parser.add_argument("--json", action="store_true", help="everything that was measured")
    parser.add_argument("--attack", choices=ALL, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    SHARED = arguments.shared
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.attack:
        return attack_alone(arguments)
    seconds = 3.0 if arguments.quick else arguments.seconds
    results: dict[str, Any] = {}
    names = arguments.attacks or list(ALL)
    wanted = set(arguments.database or ("sqlite", "postgresql"))
    favour = nullcontext if SHARED else partial(kept_first, niceness=SERVER)
    with databases(wanted if any(ALL[name].databases for name in names) else set(), favour) as kinds:
        # The databases have both cores.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for name in names:
            for kind, make in kinds.items():
                if kind not in wanted and ALL[name].databases or kind != "sqlite" and not ALL[name].databases:
                    continue
                title = f"{name} {kind}" if ALL[name].databases else name
                results[title] = one = tried(name, make, seconds)
                if not arguments.json:
                    print(told(title, one) if "p50 ms" in one else title, flush=True)
                    for line in one["wrong"]:
                        print(f"    {line}", flush=True)
    wrong = [title for title, one in results.items() if one["wrong"]]
    if arguments.json:
        print(json.dumps({"results": results, "wrong": wrong}, indent=1))
    elif wrong:
        print("beyond the bounds:", ", ".join(wrong))
    return 1 if wrong else 0


def tried(name: str, make: Callable[[], AbstractContextManager[str]], seconds: float) -> dict[str, Any]:
    """One attack; that it could not be measured is a bound that does not hold."""
    try:
        with make() as url:
            return measure(name, url, seconds)
    except (OSError, RuntimeError, json.JSONDecodeError, SQLAlchemyError) as error:
        return {"wrong": [f"not measured: {type(error).__name__}: {error}"]}


if __name__ == "__main__":
    sys.exit(main())
