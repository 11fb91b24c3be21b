"""The quick start, step by step, as somebody who has never seen zComm types it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.docs_blocks import block, runs
from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ
from support.waiting import wait_until_blocking


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[[str], RunningServer]]:
    """Types a command that serves, in a directory with the examples' files."""
    work = shutil.copytree(CHECKOUT / "docs" / "examples", tmp_path / "work")
    servers: list[RunningServer] = []

    def type_in(text: str) -> RunningServer:
        server = RunningServer(
            ["bash", "-c", text], tmp_path, clean_environ(tmp_path, {"WEBSOCKET_PORT": "0"}), cwd=work
        )
        servers.append(server)
        match = server.wait_for_log(LISTENING)
        server.url, server.port = match[1], int(match[2])
        return server

    yield type_in
    for server in servers:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGTERM)
        server.stop()


@runs("quickstart-run")
def test_the_first_command_is_that_of_the_readme():
    """That one is run in a fresh checkout by test_wheel.py."""
    assert block("quickstart-run").text == block("readme-run").text


@runs("quickstart-schema")
def test_a_schema_of_ones_own(follow: Callable[[str], RunningServer]):
    """Its models are there, its rules hold, and a row refers to another."""
    server = follow(block("quickstart-schema").text)
    with BlockingRawClient(server.port, token=server.token) as client:
        user = client.call("create_Users", {"values": {"name": "Alice", "email": "alice@example.com"}})["result"]
        order = client.call("create_Orders", {"values": {"user_id": user["id"], "total": "59.97"}})["result"]
        assert (order["user_id"], order["total"]) == (user["id"], "59.97")
        assert client.call("create_Orders", {"values": {"user_id": user["id"], "total": "-1"}})["code"] == "invalid"
        assert client.call("create_Orders", {"values": {"user_id": 999, "total": "1"}})["code"] == "conflict"


@runs("quickstart-functions")
def test_functions_of_ones_own(follow: Callable[[str], RunningServer]):
    """What is marked can be called, what is not cannot."""
    server = follow(block("quickstart-functions").text)
    with BlockingRawClient(server.port, token=server.token) as client:
        total = client.call("zFunc", "zFunc(calculateTotal, {cart_id: 123})")["result"]["total"]
        assert total == "59.97"
        assert client.call("zFunc", "zFunc(calculateTotal, {cart_id: 1})")["fields"] == {"cart_id": "unknown"}
        assert client.call("zFunc", "zFunc(whoAmI)")["result"].keys() == {"name", "role"}
        assert client.call("zFunc", "zFunc(Decimal, 1)")["code"] == "unknown_command"


@runs("quickstart-shell")
def test_the_websockets_program(example_server: RunningServer, tmp_path: Path):
    """A program of others logs in, sends a command and shows the reply."""
    text = block("quickstart-shell").text.replace("ws://127.0.0.1:56891", example_server.url)
    environ = clean_environ(tmp_path, {"TOKEN": example_server.token, "TERM": "dumb"})
    process = subprocess.Popen(
        ["bash", "-c", text],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.set_blocking(process.stdout.fileno(), False)
    shown = bytearray()

    def shows(text: bytes) -> bool:
        shown.extend(process.stdout.read() or b"")
        return text in shown

    try:
        wait_until_blocking(lambda: shows(b"Connected"), "the connection")
        process.stdin.write(b'{"zKey": "ping"}\n')
        process.stdin.flush()
        wait_until_blocking(lambda: shows(b'{"result":"ping"}'), "the reply")
    finally:
        process.stdin.close()
        process.stdout.close()
        process.terminate()
        process.wait(30)
