"""Every Python block of the guide, as it stands but for ports, directories and tokens, in a small zCLI host."""

from __future__ import annotations

import ast
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.guide_blocks import guide_block
from support.guide_host import GuideServer, host_environ
from support.localservers import end_all_in, processes_in
from support.preloaded import run_python

from zcomm.services.kinds import KINDS

ZCLI = "from zCLI.zCLI import zCLI\nzcli = zCLI({'zSpark': {}, 'plugins': []})\n"
WALKER = (
    ZCLI
    + "from types import SimpleNamespace\nwalker = SimpleNamespace(zcli=zcli, data=zcli.data, logger=zcli.logger)\n"
)
IN_MAIN = "import asyncio\n{before}async def main():\n    ready = asyncio.Event()\n{block}\nasyncio.run(main())\n"


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that other accounts may pass, for a PostgreSQL that is not root; nothing runs in it at the end."""
    path = Path(tempfile.mkdtemp(prefix="zcomm-guide-"))
    path.chmod(0o711)
    yield path
    left = processes_in(path)
    end_all_in(path)
    shutil.rmtree(path, ignore_errors=True)
    assert left == []


def run(home: Path, text: str, **environ: str) -> str:
    """What the program prints; it must end well."""
    (home / "program.py").write_text(text)
    done = run_python(
        [sys.executable, str(home / "program.py")], cwd=home, env=host_environ(home, **environ), timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., GuideServer]]:
    """Runs a program that serves; Ctrl-C ends it as it ends any Python program, and in order."""
    servers: list[GuideServer] = []

    def start(text: str, **environ: str) -> GuideServer:
        (home / "program.py").write_text(text)
        server = GuideServer(home / "program.py", home, WEBSOCKET_PORT="0", **environ)
        servers.append(server)
        return server.listening()

    yield start
    for server in servers:
        assert server.interrupt() == -2
        assert "never retrieved" not in server.log and "ERROR" not in server.log, server.log


def in_main(name: str, before: str) -> str:
    """A block that awaits, in a coroutine."""
    return IN_MAIN.format(before=before, block=textwrap.indent(guide_block(name).text, "    "))


def answers_on_data(server: GuideServer) -> bool:
    """CRUD goes to the walker's data and back."""
    with server.client() as client:
        created = client.call("create_Users", {"values": {"name": "Alice", "email": "alice@example.com"}})["result"]
        rows = client.call("read_Users", {"where": {"age__gte": 18}, "order_by": "created_at DESC", "limit": 10})[
            "result"
        ]
        assert client.call("read_Nothing")["code"] in ("invalid", "unknown_model")
    return rows == [created] and created["id"] == 1


def test_creating_a_websocket_server(home: Path):
    """The server is there, on the guide's port, and does not listen yet."""
    output = run(home, guide_block("Creating a WebSocket Server").text + "print(websocket, websocket.is_listening)")
    assert output == "<zBifrost ws://127.0.0.1:56891> False\n"


def test_starting_the_server(serve: Callable[..., GuideServer]):
    """It serves until Ctrl-C, and lets in who has the token."""
    assert answers_on_data(serve(WALKER + guide_block("Starting the Server").text))


def test_example_1(serve: Callable[..., GuideServer]):
    """A MockWalker with data and logger is enough."""
    server = serve(guide_block("Example 1: WebSocket Server for Web UI").text)
    assert answers_on_data(server)
    assert "🌐 Starting WebSocket server" in server.log


def test_authentication_is_switched_by_the_environment_after_the_import(serve: Callable[..., GuideServer]):
    """What the guide warns of no longer matters: the variable is read when the server is made."""
    switched = "import os\nos.environ['WEBSOCKET_REQUIRE_AUTH'] = 'False'\n"
    server = serve(WALKER + switched + guide_block("Starting the Server").text)
    assert not (server.home / ".zolo" / "zcomm" / "operator.json").exists()
    assert answers_on_data(server)


BROADCASTING = """\
import asyncio
import threading
{zcli}
async def main():
    from zcomm.client.threaded import connect
    bifrost = zcli.comm.create_websocket(port=0)
    ready = asyncio.Event()
    serving = asyncio.ensure_future(zcli.comm.start_websocket(ready))
    await ready.wait()
    client = await asyncio.to_thread(connect, bifrost.url)
    heard, messages = threading.Event(), []
    client.on_broadcast(lambda message: (messages.append(message), heard.set()))
{block}
    assert await asyncio.to_thread(heard.wait, 30)
    print(messages)
    await asyncio.to_thread(client.disconnect)
    serving.cancel()

asyncio.run(main())
"""


def test_broadcasting(home: Path):
    """A client gets the text as it is: it is no JSON, as the guide writes it."""
    block = textwrap.indent(guide_block("Broadcasting").text, "    ")
    output = run(home, BROADCASTING.format(zcli=ZCLI, block=block), WEBSOCKET_REQUIRE_AUTH="False")
    assert ast.literal_eval(output) == ['{"type": "update", "data": {...}}']


SERVICES = (
    "Starting a Service",
    "Stopping a Service",
    "Checking Service Status",
    "Getting Connection Info",
    "Restarting a Service",
    "4. PostgreSQL Won't Start",
)


def test_services(home: Path, free_port: int):
    """Start, stop, status, connection info, restart: with a real PostgreSQL that the end of the program stops."""
    text = ZCLI + "print('==')\n".join(guide_block(name).text for name in SERVICES) + "print(success)\n"
    text = text.replace("/usr/local/var/postgresql", str(home / "pg"), 1).replace("port=5432", f"port={free_port}")
    started, stopped, status, info, restarted, again = run(home, text).split("==\n")
    assert (started, stopped) == ("✅ PostgreSQL started\n", "✅ PostgreSQL stopped\n")
    one, every = map(ast.literal_eval, status.splitlines())
    known = {kind.name for kind in KINDS}
    assert (one["running"], every["postgresql"]["running"], set(every)) == (False, False, known)
    told = ast.literal_eval(info)
    assert {"host", "port", "database", "connection_string"} <= set(told) and told["port"] == free_port
    assert restarted == ""
    running, success = again.splitlines()
    assert success == "True"
    shown = ast.literal_eval(running)
    assert shown["running"] and shown["port"] == free_port and shown["pid"] > 1 and shown["uptime"].endswith("s")


def test_example_4(home: Path, free_port: int):
    """It starts PostgreSQL, says where it is, and reads through the host's data."""
    output = run(
        home,
        guide_block("Example 4: PostgreSQL Service Management").text,
        POSTGRESQL_PORT=str(free_port),
        POSTGRESQL_DATA_DIR=str(home / "pg"),
    )
    first, second, third = output.splitlines()
    assert first == "Starting PostgreSQL..."
    assert second.startswith("📡 Connect to: postgresql://") and f":{free_port}/" in second
    assert third == "📊 Found 0 users"


def test_port_availability(home: Path, free_port: int):
    """A free port is available; one that somebody listens on is in use."""
    text = guide_block("Port Availability Checking").text.replace("56891", str(free_port))
    listen = f"import socket\nserver = socket.create_server(('127.0.0.1', {free_port}))\n"
    output = run(home, ZCLI + text + listen + text)
    assert output.splitlines() == [f"✅ Port {free_port} is available", f"❌ Port {free_port} is in use"]


def test_the_old_names(serve: Callable[..., GuideServer]):
    """They work, and warn of what took their place."""
    server = serve(in_main("From Legacy zSocket", WALKER))
    assert answers_on_data(server)
    assert server.log.count("DeprecationWarning") == 2
    assert "ZSocket is now zBifrost" in server.log and "start_socket_server is now zComm.start_websocket" in server.log


def test_the_new_names(serve: Callable[..., GuideServer]):
    """They work without a warning."""
    server = serve(in_main("From Legacy zSocket 2", WALKER))
    assert answers_on_data(server)
    assert "Warning" not in server.log


def test_nothing_of_the_host_is_needed_but_a_session(home: Path):
    """``zComm(None)`` and hosts without a session are refused as the guide says."""
    text = (
        "from zcomm.threaded import zComm\n"
        "for wrong in (None, object(), type('H', (), {'session': None})()):\n"
        "    try:\n        zComm(wrong)\n    except ValueError as error:\n        print(error)\n"
    )
    assert run(home, text) == "zComm needs a host with a session: zComm(zcli)\n" * 3
