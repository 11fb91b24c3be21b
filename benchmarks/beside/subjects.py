"""The servers that are measured, two processes of each on one Redis, and what their clients have to say."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cache
import servers
from servers import Running, Server

from beside import talks

__all__ = ["NAMES", "Pair", "Subject", "end", "known", "pair", "versions"]

PACKAGES = ("socket.io@4.8.4", "@socket.io/redis-streams-adapter@0.3.1", "redis@5.12.1")
#: What is published beside the time at which it is.
SAID = f'{{"at":%T,"n":%N,"values":{servers.VALUES}}}'

#: All of them.
NAMES = ("zcomm", "socketio", "python-socketio", "channels", "nchan")
_OF_SOCKETIO: dict[str, Any] = {
    "path": "/socket.io/?EIO=4&transport=websocket",
    "opening": ("1", "40", "1"),
    "joining": ("1", "40", "1", '420["join","room%R"]', "1"),
    "say": f'42%N["publish","room%R",{SAID}]',
}


@dataclass(frozen=True)
class Subject:
    """One of those that are measured.

    :ivar server: makes a node of it, from the URL of the Redis and a directory of its own.
    :ivar path: where clients connect, ``TOKEN`` stands for zComm's token and ``%R`` for the number of a room.
    :ivar opening: of a publisher: frames to wait for, text to send, and so on.
    :ivar joining: of a subscriber.
    :ivar say: what a publisher sends.
    :ivar talk: the client that comes back.
    :ivar posts: where messages are posted to by HTTP, if so.
    :ivar has_presence: whether members of a topic are told of each other.
    """

    name: str
    server: Callable[[str, Path], Server]
    path: str
    opening: tuple[str, ...]
    joining: tuple[str, ...]
    say: str
    talk: type[talks.Talk]
    posts: str = ""
    has_presence: bool = False


@dataclass(frozen=True)
class Pair:
    """Two nodes that listen, and their Redis."""

    subject: Subject
    nodes: tuple[Running, Running]
    redis: int

    @property
    def pids(self) -> list[int]:
        """The first node, the second one, and Redis."""
        return [self.nodes[0].pid, self.nodes[1].pid, self.redis]

    def path(self, node: int, path: str = "") -> str:
        """Where clients of a node connect."""
        return self.nodes[node].path(path or self.subject.path)


def _nginx(module: Path, url: str, place: Path) -> Server:
    template, config = place / "nginx.conf.in", place / "nginx.conf"
    template.write_text(
        f"load_module {module};\n"
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr crit;\n"
        "worker_rlimit_nofile 60000;\n"
        "events { worker_connections 20000; }\n"
        "http {\n"
        "  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n"
        "  uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 100000000;\n"
        f"  upstream shared {{ nchan_redis_server {url}; }}\n"
        "  server { listen 127.0.0.1:PORT backlog=4096;\n"
        "    nchan_message_buffer_length 100; nchan_message_timeout 1h;\n"
        "    location ~ /pub/(\\w+)$ { nchan_publisher; nchan_redis_pass shared; nchan_channel_id $1; }\n"
        "    location ~ /sub/(\\w+)$ { nchan_subscriber websocket; nchan_redis_pass shared; nchan_channel_id $1;\n"
        "      nchan_subscriber_first_message newest; }\n"
        "  }\n"
        "}\n"
    )
    script = f'sed "s/127.0.0.1:PORT/127.0.0.1:$0/" {template} > {config}; exec nginx -p {place} -c {config}'
    return Server("nchan", ("sh", "-c", script, "PORT"))


def known(name: str, place: Path) -> Subject | None:
    """One of :data:`NAMES`, with what it needs installed; ``None`` where that cannot be had here.

    :param place: a directory for the files that all nodes share.
    """
    if name == "zcomm":
        return _zcomm(place)
    if name == "nchan":
        module = cache.nchan_module()
        if module is None:
            return None
        return Subject(name, partial(_nginx, module), "/sub/room%R", (), (), SAID, talks.Nchan, posts="/pub/room%R")
    if name == "socketio":
        script = cache.node_script("c_socketio.mjs", *PACKAGES, directory="cluster-node")
        if script is None:
            return None
        return Subject(name, partial(_script, name, "node", script), talk=talks.SocketIO, **_OF_SOCKETIO)
    python = str(cache.python_of("cluster-venv", cache.PEERS / "cluster.txt"))
    if name == "python-socketio":
        made = partial(_script, name, python, cache.PEERS / "c_socketio.py")
        return Subject(name, made, talk=talks.PythonSocketIO, **_OF_SOCKETIO)
    made = partial(_script, name, python, cache.PEERS / "c_channels.py")
    say = f'{{"publish":"room%R","data":{SAID}}}'
    return Subject(name, made, "/ws", (), ("0", '{"join":"room%R"}', "1"), say, talks.Channels)


def _script(name: str, interpreter: str, script: Path, url: str, place: Path) -> Server:
    return Server(name, (interpreter, str(script), "PORT", url))


def _zcomm(place: Path) -> Subject:
    kinds, policy = place / "kinds.yaml", place / "policy.yaml"
    kinds.write_text(servers.KINDS)
    policy.write_text(servers.POLICY)
    ours = ("--topics", str(kinds), "--policy", str(policy), *servers.PUBLISHES, "--engine")
    subscribe = '{"zKey":"zSubscribe","zHorizontal":{"topic":"room:%R"},"_requestId":1}'
    publish = f'{{"zKey":"zPublish","zHorizontal":{{"topic":"room:%R","data":{SAID}}},"_requestId":%N}}'
    return Subject(
        "zcomm",
        lambda url, place: servers.zcomm("zcomm", *ours, url),
        "/?token=TOKEN",
        (),
        ("0", subscribe, "1"),
        publish,
        talks.ZComm,
        has_presence=True,
    )


@contextmanager
def _redis() -> Iterator[tuple[int, str]]:
    """A Redis that keeps nothing on disk, on core 0 as the nodes: its process and its URL."""
    port = servers.free_port()
    server = shutil.which("redis-server") or "redis-server"
    command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        servers.pinned(0, command), stdout=subprocess.DEVNULL, preexec_fn=servers.undisturbed_with_threads
    )
    try:
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError("Redis does not listen") from None
                time.sleep(0.05)
        yield process.pid, f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def pair(subject: Subject) -> Iterator[Pair]:
    """Start a Redis and two nodes, all on core 0.

    :raises RuntimeError: where one of them does not listen.
    """
    with ExitStack() as stack:
        redis, url = stack.enter_context(_redis())
        nodes = []
        for _ in range(2):
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zcomm-bench-")))
            server = subject.server(url, place)
            nodes.append(
                stack.enter_context(servers.running(server, prepare=servers.undisturbed_with_threads, within=30))
            )
        # Until they know of each other.
        time.sleep(1)
        yield Pair(subject, (nodes[0], nodes[1]), redis)


def end(node: Running, is_killed: bool) -> None:
    """Kill a node, or ask it to stop."""
    os.kill(node.pid, signal.SIGKILL if is_killed else signal.SIGTERM)


def versions() -> dict[str, str]:
    """What was measured, by name."""
    found = dict(package.rsplit("@", 1) for package in PACKAGES)
    for line in (cache.PEERS / "cluster.txt").read_text().split():
        name, _, version = line.partition("==")
        found[name] = version
    for name, command in (("Redis", ["redis-server", "--version"]), ("Node", ["node", "--version"])):
        if shutil.which(command[0]):
            found[name] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    for package in (cache.cache_directory() / "nchan").glob("*.deb"):
        found["nchan"] = package.name
    found["Python"] = sys.version.split()[0]
    return found
