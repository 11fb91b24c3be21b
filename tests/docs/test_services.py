"""The services page: its commands, its file and its doctor, with real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support.docs_blocks import block, runs
from support.serverprocess import LISTENING, RunningServer, clean_environ, scripts


def shell(text: str, home: Path, **environ: str) -> str:
    done = subprocess.run(
        ["bash", "-eu", "-c", text],
        cwd=home,
        env=clean_environ(home, environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@runs("services-shell")
def test_the_commands(place: Path, free_port: int):
    """Started, shown, connected to with redis-cli, its log read, stopped: each line succeeds in turn."""
    start, status, ping, logs, stop = block("services-shell").text.strip().splitlines()
    environ = {"ZCOMM_HOME": str(place / "data"), "REDIS_PORT": str(free_port)}
    try:
        shell(start, place, **environ)
        assert "redis" in (table := shell(status, place, **environ)) and "running" in table
        assert json.loads(shell(f"{status} --json", place, **environ))
        assert shell(ping, place, **environ).strip() == "PONG"
        assert shell(logs, place, **environ)
    finally:
        shell(stop, place, **environ)
    after = subprocess.run(
        ["bash", "-c", f"{status} redis"],
        cwd=place,
        env=clean_environ(place, environ),
        capture_output=True,
        text=True,
    )
    assert "stopped" in after.stdout and after.returncode == 1


@runs("services-yaml")
def test_a_service_of_ones_own(place: Path):
    """memcached, from the page's file, starts with the server, answers in its own protocol, and ends with it."""
    import socket

    (place / "services.yaml").write_text(block("services-yaml").text)
    data = place / "data"
    # A server makes it for its own account only, and memcached would have another home than this one.
    data.mkdir(mode=0o711)
    command = [
        sys.executable,
        str(scripts() / "twistd"),
        "-n",
        "--pidfile=",
        "zcomm",
        "--services",
        "services.yaml",
        "--service",
        "memcached",
    ]
    server = RunningServer(
        command,
        place,
        clean_environ(place, {"WEBSOCKET_PORT": "0", "ZCOMM_HOME": str(data)}),
    )
    try:
        server.wait_for_log(LISTENING)
        server.wait_for_log("ready")
        environ = {"ZCOMM_HOME": str(data)}
        url = shell(
            "zcomm service --help >/dev/null; zcomm service url memcached --services services.yaml",
            place,
            **environ,
        ).strip()
        assert url.startswith("memcached://127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as connection:
            connection.sendall(b"version\r\n")
            assert connection.recv(100).startswith(b"VERSION")
        assert server.stop() == 0, server.log
    finally:
        server.kill()


@runs("services-doctor")
def test_the_doctor(place: Path):
    """It looks at the machine and says what it finds, as text and as JSON."""
    command = block("services-doctor").text.strip()
    environ = clean_environ(place, {"ZCOMM_HOME": str(place / "data")})
    for text in (command, f"{command} --json"):
        done = subprocess.run(["bash", "-c", text], cwd=place, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 1), done.stderr
        assert done.stdout and "Traceback" not in done.stderr
    assert isinstance(json.loads(done.stdout), (dict, list))
    assert os.access(scripts() / "zcomm", os.X_OK)
