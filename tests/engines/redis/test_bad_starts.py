"""Engines that cannot be used as they are: the start ends with one line that says why, and status 1."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from support.certificates import Authority
from support.ports import unused_port
from support.preloaded import run_python
from support.rediscluster import Cluster
from support.redisreplication import Replication, Sentinels
from support.redisserver import RedisServer
from support.serverprocess import clean_environ, twistd_command
from support.waiting import DEADLINE

pytestmark = pytest.mark.child

#: Makes a server that is wrong; the engine's URL.
Wrong = Callable[[ExitStack, Path], str]


def at(server: RedisServer, given: str = "", more: str = "") -> str:
    return f"redis://{given}{server.host}:{server.port}{more}"


def absent(_: ExitStack, __: Path) -> str:
    return f"redis://127.0.0.1:{unused_port()}"


def no_socket(_: ExitStack, directory: Path) -> str:
    return f"unix://{directory}/nothing"


def no_host(_: ExitStack, __: Path) -> str:
    return "redis://nowhere.invalid"


def wrong_password(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(RedisServer(password="right")), ":hunter@")


def no_password(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(RedisServer(password="right")))


def no_rights(made: ExitStack, _: Path) -> str:
    rules = "on >hunter ~zc:* &zc:* +@connection +info +set +get"
    return at(made.enter_context(RedisServer(users={"zcomm": rules})), "zcomm:hunter@")


def replica(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(Replication(1)).servers[1])


def slot_down(made: ExitStack, _: Path) -> str:
    cluster = made.enter_context(Cluster(3))
    for server in cluster.servers:
        server.call("CLUSTER", "DELSLOTSRANGE", 0, 1000)
    return f"redis+cluster://{cluster.servers[0].host}:{cluster.servers[0].port}"


def cluster_as_server(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(Cluster(3)).servers[0])


def sentinel_as_server(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(Sentinels(made.enter_context(Replication(1)))).servers[0])


def unknown_master(made: ExitStack, _: Path) -> str:
    sentinels = made.enter_context(Sentinels(made.enter_context(Replication(1))))
    return f"redis+sentinel://{sentinels.servers[0].host}:{sentinels.servers[0].port}/other"


def server_as_cluster(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(RedisServer())).replace("redis:", "redis+cluster:")


def evicting(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(RedisServer(maxmemory="50mb", maxmemory_policy="allkeys-lru")))


def full(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(RedisServer(maxmemory="1")))


def somebody_elses(made: ExitStack, _: Path) -> str:
    server = made.enter_context(RedisServer())
    server.call("SET", "zc:{0}:zcomm", "mine")
    return at(server)


def of_another_type(made: ExitStack, _: Path) -> str:
    server = made.enter_context(RedisServer())
    server.call("SADD", "zc:{0}:nodes", "mine")
    return at(server)


def wrong_name(made: ExitStack, directory: Path) -> str:
    authority = Authority(directory)
    certificate = authority.issue("other.example")
    server = made.enter_context(RedisServer(tls=authority, certificate=certificate))
    (directory / "ca.pem").write_bytes(authority.pem)
    return f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={directory}/ca.pem"


def plain_where_tls_is(made: ExitStack, directory: Path) -> str:
    server = made.enter_context(RedisServer(tls=Authority(directory)))
    return f"redis://127.0.0.1:{server.port}"


def tls_where_none_is(made: ExitStack, _: Path) -> str:
    return at(made.enter_context(RedisServer())).replace("redis:", "rediss:")


@contextmanager
def talker(reply: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server that answers each command with what ``reply`` says; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while data := connection.recv(1 << 16):
                    for command in data.split(b"\r\n*"):
                        connection.sendall(reply(command))

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def too_old(made: ExitStack, _: Path) -> str:
    info = b"redis_version:5.0.14\r\nredis_mode:standalone\r\n"

    def reply(command: bytes) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(info), info) if b"INFO\r" in command and b"LOAD" not in command else b"+OK\r\n"

    return f"redis://127.0.0.1:{made.enter_context(talker(reply))}"


def no_redis(made: ExitStack, _: Path) -> str:
    return f"redis://127.0.0.1:{made.enter_context(talker(lambda _: b'HTTP/1.1 400 Bad Request'))}"


def start(url: str, home: Path) -> subprocess.CompletedProcess[str]:
    home.mkdir()
    return run_python(
        twistd_command("--port", "0", "--engine", url), cwd=home, env=clean_environ(home), timeout=2 * DEADLINE
    )


@pytest.mark.parametrize(
    "wrong, line",
    [
        (absent, "connection refused"),
        (no_socket, "no such file"),
        (no_host, "no such host"),
        (wrong_password, "it refuses the password"),
        (no_password, "it asks for a password"),
        (no_rights, "the account lacks a right"),
        (replica, "it is a read-only replica"),
        (slot_down, "has the slot"),
        (cluster_as_server, "name it as redis+cluster://"),
        (sentinel_as_server, "named as redis+sentinel://"),
        (unknown_master, "other"),
        (server_as_cluster, "luster"),
        (evicting, "allkeys-lru"),
        (full, "its memory is full"),
        (somebody_elses, "somebody else's"),
        (of_another_type, "somebody else's"),
        (wrong_name, "its certificate is for another name"),
        (plain_where_tls_is, "rediss://"),
        (tls_where_none_is, "TLS"),
        (too_old, "it takes 6.2 or newer"),
        (no_redis, "is that a Redis"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_start_that_cannot_be(tmp_path: Path, wrong: Wrong, line: str):
    """One line of what is wrong and where, without a password, and no traceback."""
    with ExitStack() as made:
        done = start(wrong(made, tmp_path), tmp_path / "home")
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert [text for text in output.splitlines() if "zcomm: " in text and "--engine" in text and line in text], output
    assert "Traceback" not in output and "hunter" not in output
