"""Clients that say something and are cut off in the same moment leave nothing behind, on the reactor of production."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import pytest
from support.rawclient import BlockingRawClient, ConnectionEnded, Opcode, build_frame
from support.serverprocess import RunningServer
from support.waiting import DEADLINE, wait_until_blocking

pytestmark = pytest.mark.child

LAST_WORDS = [
    ("nothing", b""),
    ("a command", build_frame(Opcode.TEXT, b'{"zKey":"ping"}')),
    ("half a frame", build_frame(Opcode.TEXT, b"half of it", claim=5000)),
    ("more than one read", build_frame(Opcode.TEXT, bytes(300_000), claim=1_000_000)),
    ("rubbish", b"\xff" * 100),
]


def clients(server: RunningServer) -> int:
    """The number of those connected, as the health report has it."""
    with urllib.request.urlopen(server.http_url + "/health", timeout=30) as answer:
        return json.load(answer)["clients"]


@pytest.mark.parametrize("words", [pytest.param(row[1], id=row[0]) for row in LAST_WORDS])
def test_reset_behind_data(running_server: Callable[..., RunningServer], words: bytes):
    """The reset is seen although data came right before it; nobody stays in the registry, others are pinged on."""
    server = running_server("--ping-interval", "0.5")
    with BlockingRawClient(server.port, token=server.token) as watching:
        pings: SimpleQueue[bytes] = SimpleQueue()

        def answer() -> None:
            # All the while, so that it stays however long the others take.
            with suppress(ConnectionEnded, OSError):
                while True:
                    frame = watching.next()
                    if frame.opcode == Opcode.PING:
                        watching.send_frame(Opcode.PONG, frame.payload)
                        pings.put(frame.payload)

        answering = threading.Thread(target=answer)
        answering.start()
        try:
            for _ in range(20):
                client = BlockingRawClient(server.port, token=server.token)
                client.send(words)
                client.abort()
            wait_until_blocking(lambda: clients(server) == 1, "the others to be gone", timeout=10)
            for _ in range(pings.qsize() + 3):
                pings.get(timeout=DEADLINE)
        finally:
            watching.socket.shutdown(socket.SHUT_RDWR)
            answering.join(DEADLINE)
    assert "Traceback" not in server.log
