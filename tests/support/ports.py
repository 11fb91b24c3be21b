"""Ports for the servers that tests start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["unused_port"]

#: Of the system's own choice, for whoever asks for any port and for every client.
GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_000


def unused_port() -> int:
    """A TCP port of the loopback that nobody has, nor gets by chance before it is used.

    It is none of those that the system gives, and none that ``port="auto"`` begins with, which the servers of other
    tests take. Prefer port 0 where it can be asked for.
    """
    above = int(GIVEN.read_text().split()[0]) if GIVEN.exists() else 0
    # Hypothesis begins `random` itself with the same number in each process.
    numbers = random.SystemRandom()
    while True:
        port = numbers.randrange(LOWEST, max(above, 2 * LOWEST))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
