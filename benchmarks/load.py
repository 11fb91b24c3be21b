"""The measurements: each runs the load generator on core 1 against a server that listens, and returns plain numbers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import cache
from servers import Running, pinned, undisturbed

#: Connections and requests in flight on each.
RPC_CASES = ((1, 1), (100, 1), (100, 8))
FAN_CASES = (100, 1000)

Numbers = dict[str, Any]


def command(
    target: Running, mode: str, path: str, connections: int, depth: int, seconds: float, said: str
) -> list[str]:
    numbers = [str(target.port), target.path(path), str(connections), str(depth), str(seconds), said]
    return pinned(1, [str(cache.load_generator()), mode, *numbers])


def environ(target: Running, **more: str) -> dict[str, str]:
    return {**os.environ, "WSLOAD_PID": str(target.pid), **target.server.opening, **more}


def wsload(
    target: Running, mode: str, path: str, connections: int, depth: int, seconds: float, said: str, **more: str
) -> Numbers:
    """Run the load generator once.

    :raises RuntimeError: with what it printed, when it failed: a lost or refused connection is no measurement.
    """
    done = subprocess.run(
        command(target, mode, path, connections, depth, seconds, said),
        env=environ(target, **more),
        capture_output=True,
        text=True,
        preexec_fn=undisturbed,
        timeout=seconds + 120,
    )
    if done.returncode or not done.stdout.startswith("{"):
        raise RuntimeError(f"{target.server.name}: {done.stderr or done.stdout}")
    return json.loads(done.stdout)


def rpc(target: Running, seconds: float) -> dict[str, Numbers]:
    """Replies a second and latency, for one client and for a hundred."""
    server = target.server
    return {
        f"{connections}x{depth}": wsload(target, "rpc", server.rpc, connections, depth, seconds, server.request)
        for connections, depth in RPC_CASES
    }


def fanout(target: Running, seconds: float) -> dict[str, Numbers]:
    """Deliveries a second, one publisher with four messages out."""
    server = target.server
    return {
        f"{listeners} listeners": wsload(target, "fanout", server.fan, listeners, 4, seconds, server.news)
        for listeners in FAN_CASES
    }


def handshakes(target: Running, seconds: float) -> dict[str, Numbers]:
    """Opening handshakes a second, one after the other."""
    return {"3000 in turn": wsload(target, "idle", target.server.rpc, 3000, 0, 0, "x")}


def idle(target: Running, seconds: float, connections: int = 5000) -> dict[str, Numbers]:
    """Memory for each open connection, and the processor time of a process that has nothing to do."""
    before = _memory(target.pid)
    process = subprocess.Popen(
        command(target, "idle", target.server.fan, connections, 0, seconds + 3, "x"),
        env=environ(target),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=undisturbed,
    )
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line.startswith("{"):
            raise RuntimeError(f"{target.server.name}: {process.stderr.read()}")  # type: ignore[union-attr]
        time.sleep(1)
        after, used = _memory(target.pid), _processor(target.pid)
        time.sleep(seconds)
        share = (_processor(target.pid) - used) / seconds
    finally:
        process.kill()
        process.communicate()
    return {
        f"{connections} idle": {
            "kib": (after - before) / connections,
            "rate": json.loads(line)["rate"],
            "cpu_share": share,
        }
    }


def _memory(pid: int) -> int:
    """Resident memory in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no memory")


def _processor(pid: int) -> float:
    """Seconds of processor time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
