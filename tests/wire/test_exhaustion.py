"""Catalogue R7, R12 and S6: a processor that is busy, memory that is used up, a peer that stands still."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ, scripts
from support.waiting import DEADLINE, wait_until_blocking
from support.watched import Watched

pytestmark = pytest.mark.child

COMPUTING = """
from pathlib import Path

from zcomm import function


@function
def compute(stop):
    rounds = 0
    while not Path(stop).exists():
        for number in range(100_000):
            rounds += number & 1
    return rounds
"""


def test_r7_others_are_answered_while_a_function_computes(running_server, tmp_path: Path):
    """It fills a thread and shares the interpreter: commands, reads and newcomers have their turn all the same."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "computing.py").write_text(COMPUTING)
    server = running_server(
        "--functions", "computing", "--command-timeout", "600", home=home, environ={"PYTHONPATH": f"{home}:{CHECKOUT}"}
    )
    with BlockingRawClient(server.port, token=server.token) as busy:
        for number in range(2):
            busy.send_json({"zKey": "zFunc", "zHorizontal": f'zFunc(compute, "{home}/stop")', "_requestId": number})
        assert busy.call("ping", 1)["result"] == 1
        for number in range(50):
            with BlockingRawClient(server.port, token=server.token) as other:
                assert other.call("ping", number)["result"] == number
                assert other.call("read_Users", {"limit": 1})["result"] == []
        (home / "stop").touch()
        replies = {busy.next_json()["_requestId"] for _ in range(2)}
        assert replies == {0, 1}
    assert "Traceback" not in server.log


HOARDING = """
from zcomm import function


@function
def hoard():
    held = []
    while True:
        held.append(bytearray(1 << 20))


@function
def grab():
    return len(bytearray(1 << 40))
"""


def test_r12_no_memory_is_left(tmp_path: Path):
    """A function that takes all that the process may have, or more at once: ``internal``, and the server goes on."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "hoarding.py").write_text(HOARDING)
    command = [
        sys.executable,
        "-c",
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        str(scripts() / "twistd"),
        "--nodaemon",
        "--pidfile=",
        "zcomm",
        "--port",
        "0",
        "--functions",
        "hoarding",
    ]
    server = RunningServer(command, home, clean_environ(home, {"PYTHONPATH": f"{home}:{CHECKOUT}"}))
    try:
        server.port = int(server.wait_for_log(LISTENING)[2])
        server.wait_for_log("ready")
        with BlockingRawClient(server.port, token=server.token) as client:
            for name in ("grab", "hoard", "hoard", "grab"):
                reply = client.call("zFunc", f"zFunc({name})")
                assert (reply["code"], reply["error"]) == ("internal", "Internal error")
                with BlockingRawClient(server.port, token=server.token) as other:
                    assert other.call("ping", 1)["result"] == 1
            assert client.call("read_Users", {})["result"] == []
    finally:
        assert server.stop() == 0, server.log
    assert "MemoryError" in server.log


PEER = """
import sys
from support.rawclient import BlockingRawClient, ConnectionEnded

client = BlockingRawClient(int(sys.argv[1]), token=sys.argv[2])
print(client.call("ping", "here")["result"], flush=True)
try:
    client.next_json()
except (ConnectionEnded, OSError):
    print("ended", flush=True)
"""


def test_s6_a_peer_that_stands_still(running_server):
    """Its system takes what it is sent and it answers no ping: dropped, registry exact; others notice nothing."""
    server = running_server("--ping-interval", "0.4")
    watched = Watched(server)
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER, str(server.port), server.token],
        env=clean_environ(server.home, {"PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}"}),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert peer.stdout.readline() == "here\n" and watched.clients() == 1
        peer.send_signal(signal.SIGSTOP)
        wait_until_blocking(lambda: watched.clients() == 0, "the one that stands still to be dropped")
        assert watched.drops("ping_timeout") == 1 and watched.serves()
        peer.send_signal(signal.SIGCONT)
        assert peer.stdout.readline() == "ended\n"
        assert peer.wait(DEADLINE) == 0
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()
