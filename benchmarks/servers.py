"""The servers that are measured: how each is started, and what it wants to hear."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cache

ROOT = Path(__file__).parent.parent

REQUEST = (
    '{"zKey":"ping","zHorizontal":{"action":"read","model":"Users","where":{"active":true},"limit":10},"_requestId":%d}'
)
VALUES = '{"name":"Alice","email":"alice@example.com","role":"admin"}'
NEWS = f'{{"type":"update","data":{{"model":"Users","id":%d,"values":{VALUES}}}}}'
#: One user tells everybody everything, faster than one user's commands may in full.
FAN_OPTIONS = ("--broadcast", "all", "--broadcast-rate", "1000000000")
#: zComm's broadcast is a result that others hear of: the same news, sent as a command.
COMMAND = f'{{"zKey":"ping","zHorizontal":{{"model":"Users","id":%d,"values":{VALUES}}}}}'

#: Limits that the load exceeds on purpose: one connection here asks more often than any browser.
LIFTED = ("--frame-rate", "10000000", "--frame-burst", "10000000", "--connections-per-user", "10000")

#: Topics that are published to, and crowded.
KINDS = '"room:{id}": {history: 100, publish: anybody}\n"long:{id}": {history: 1000, publish: anybody}\n' + (
    '"crowd:{id}": {history: 10, presence: true, publish: anybody}\n'
)
#: Who may what with them: every publish and every subscription is judged by it.
POLICY = "admin:\n  topics:\n" + "".join(
    f'    "{kind}:*": [subscribe, publish, presence, history]\n' for kind in ("room", "long", "crowd")
)
PUBLISHES = ("--publish-rate", "10000000")


@dataclass(frozen=True)
class Server:
    """One server under test.

    :ivar name: what the tables call it.
    :ivar command: its command line; ``PORT`` stands for the port.
    :ivar rpc: the path for requests; ``TOKEN`` stands for zComm's token.
    :ivar fan: the path for listeners.
    :ivar request: what a client asks.
    :ivar news: what the publisher says.
    :ivar opening: environment of the load generator for protocols that say hello first.
    :ivar fan_options: what it is started with when results shall be sent to everybody else.
    :ivar ours: whether it is zComm, which has a home of its own for each run.
    """

    name: str
    command: tuple[str, ...]
    rpc: str = "/rpc"
    fan: str = "/fan"
    request: str = REQUEST
    news: str = NEWS
    opening: dict[str, str] = field(default_factory=dict)
    fan_options: tuple[str, ...] = ()
    ours: bool = False


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    server: Server
    port: int
    pid: int
    token: str
    home: Path

    def path(self, path: str) -> str:
        """``path`` with the token in its place."""
        return path.replace("TOKEN", self.token)


def zcomm(name: str, *options: str, python: tuple[str, ...] = (sys.executable,), reactor: str = "") -> Server:
    """zComm as its users run it: authentication, origin check, permissions and limits in place."""
    twistd = shutil.which("twistd", path=str(Path(sys.executable).parent)) or "twistd"
    return Server(
        name,
        (
            *python,
            twistd,
            *([f"--reactor={reactor}"] if reactor else []),
            "--pidfile=",
            "-n",
            "zcomm",
            "--port",
            "PORT",
            *LIFTED,
            *options,
        ),
        fan_options=FAN_OPTIONS,
        rpc="/?token=TOKEN",
        fan="/?token=TOKEN",
        news=COMMAND,
        ours=True,
    )


def peer(name: str, *arguments: str, **values: object) -> Server:
    """A peer written in Python."""
    script = cache.PEERS / f"p_{name.partition('-')[0]}.py"
    return Server(name, (str(cache.peers_python()), str(script), "PORT", *arguments), **values)  # type: ignore[arg-type]


def known() -> dict[str, Server]:
    """Every server that can be measured here, by name."""
    path = "/socket.io/?EIO=4&transport=websocket"
    servers = [
        zcomm("zcomm"),
        zcomm("zcomm-epoll", reactor="epoll"),
        zcomm("zcomm-pure", python=(sys.executable, "-X", "zcomm_pure")),
        peer("picows"),
        peer("socketify"),
        peer("websockets"),
        peer("aiohttp"),
        peer("starlette"),
        peer(
            "socketio",
            rpc=path,
            fan=path,
            request='42%1$d["ping",' + REQUEST.replace("%d", "%1$d") + "]",
            news='42["publish",' + NEWS + "]",
            opening={"WSLOAD_HELLO": "40", "WSLOAD_READY": "2"},
        ),
        peer("autobahn-epoll", "epoll"),
        peer("autobahn-uvloop", "uvloop"),
    ]
    script = cache.node_script("p_ws.mjs", "ws")
    if script is not None:
        servers.append(Server("ws", ("node", str(script), "PORT")))
    return {server.name: server for server in servers}


def custom(text: str) -> Server:
    """``NAME=COMMAND`` from the command line: a server that takes zComm's requests and makes its token the same way."""
    name, _, command = text.partition("=")
    return Server(
        name,
        tuple(shlex.split(command)),
        rpc="/?token=TOKEN",
        fan="/?token=TOKEN",
        news=COMMAND,
        fan_options=FAN_OPTIONS,
        ours=True,
    )


def free_port() -> int:
    """A port of the loopback address that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def undisturbed_with_threads() -> None:
    """As :func:`undisturbed`, for a process whose threads shall share the processor as they usually do.

    In the real-time class a thread keeps it for a tenth of a second.
    """
    try:
        os.setsid()
        Path("/proc/self/autogroup").write_text("-20")
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass
    as_many_files_as_allowed()


def undisturbed(priority: int = 1) -> None:
    """In a child before it runs: as many files as allowed, and before everybody else where that is allowed.

    :param priority: among those for which that is so.
    """
    try:
        # Where the scheduler groups processes by session, a priority counts within the group alone; the
        # real-time class counts everywhere. It leaves a twentieth of each second to the others.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))
    except (AttributeError, PermissionError):
        pass
    as_many_files_as_allowed()


def as_many_files_as_allowed() -> None:
    """Let this process have as many sockets as it may have at all."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pinned(core: int, command: list[str]) -> list[str]:
    """``command`` kept on one core, where the system can do that."""
    return ["taskset", "-c", str(core), *command] if shutil.which("taskset") else command


@contextmanager
def running(
    server: Server, options: tuple[str, ...] = (), prepare: Callable[[], None] = undisturbed, within: float = 20.0
) -> Iterator[Running]:
    """Start ``server`` on core 0 with more ``options``; it is stopped at the end.

    :raises RuntimeError: with what it printed, when it does not listen ``within`` seconds.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="zcomm-bench-") as directory:
        home = Path(directory)
        command = [str(port) if word == "PORT" else word for word in (*server.command, *options)]
        environ = {**os.environ, "HOME": directory, "ZCOMM_HOME": str(home / "zcomm")} if server.ours else None
        with open(home / "output", "wb") as output:
            process = subprocess.Popen(
                pinned(0, command), stdout=output, stderr=output, cwd=ROOT, env=environ, preexec_fn=prepare
            )
        try:
            _wait(process, port, within, home / "output")
            token = json.loads((home / "zcomm" / "operator.json").read_text())["token"] if server.ours else ""
            yield Running(server, port, process.pid, token, home)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, within: float, output: Path) -> None:
    until = time.monotonic() + within
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not listen:\n{output.read_text(errors='replace')[-2000:]}")
