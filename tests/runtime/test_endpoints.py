"""Endpoints on a Unix socket: whose place they take."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_twisted
from support.certificates import Authority
from support.rows import rows_of_a_test
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory

from zcomm import zBifrost
from zcomm.config import WebSocketConfig
from zcomm.errors import ConfigError
from zcomm.runtime.endpoints import server_endpoints
from zcomm.runtime.files import FileLock


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose path is short, as that of a socket has to be."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield Path()
    os.chdir(before)


async def listen(path: Path, kind: str = "unix") -> object:
    from twisted.internet import reactor

    factory = Factory()
    factory.noisy = False
    (endpoint,) = server_endpoints(WebSocketConfig(listen=(f"{kind}:{path}",), require_auth=True), reactor)
    return await endpoint.listen(factory)


def dead(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    """What the end of a server leaves that could not remove anything."""
    with socket.socket(socket.AF_UNIX, kind) as one:
        one.bind(str(path))


def named(pid: int) -> Callable[[Path], None]:
    """A dead socket with a lock as Twisted makes it, of a process of this number."""

    def leave(path: Path) -> None:
        dead(path)
        path.with_name(f"{path.name}.lock").symlink_to(str(pid))

    return leave


def locked(path: Path) -> None:
    """A dead socket with our lock's file, as a killed process leaves it."""
    dead(path)
    path.with_name(f".{path.name}.lock").touch(0o600)


@pytest_twisted.ensureDeferred
async def test_contact_the_place_of_a_dead_server_is_taken(directory: Path):
    """Whichever living process has its number by now; an orderly end leaves nothing."""
    left: dict[str, Callable[[Path], None]] = {
        "nothing": lambda path: None,
        "its own number": named(os.getpid()),
        "its parent's": named(os.getppid()),
        "the first process": named(1),
        "nobody's": named(2**22 + 1),
        "the file of our lock": locked,
        "no lock": dead,
        "a datagram socket": lambda path: dead(path, socket.SOCK_DGRAM),
    }
    with rows_of_a_test() as row:
        for number, (name, leave) in enumerate(left.items()):
            for kind in ("unix", "haproxy:unix"):
                with row(f"{name}, {kind}"):
                    path = directory / f"{number}{kind[0]}"
                    leave(path)
                    port = await listen(path, kind)
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(str(path))
                    with pytest.raises(CannotListenError, match="Address already in use"):
                        await listen(path, kind)
                    await port.stopListening()
                    assert os.listdir(directory) == []


@pytest_twisted.ensureDeferred
async def test_contact_the_place_of_a_living_server_is_not_taken(directory: Path):
    """Nor that of one that accepts nobody at the moment, nor of what is no socket."""
    from twisted.internet import reactor

    class Quiet(Factory):
        noisy = False

    with rows_of_a_test() as row, ExitStack() as stack:

        def bind(name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
            one = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            one.bind(name)
            return one

        of_twisted = reactor.listenUNIX("twisted", Quiet(), wantPID=True)
        bind("plain").listen()
        bind("full").listen(0)
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(9)]
        for client in waiting:
            client.setblocking(False)
        assert errno.EAGAIN in [client.connect_ex("full") for client in waiting]
        bind("datagrams", socket.SOCK_DGRAM)
        Path("file").write_text("kept")
        Path("directory").mkdir()
        Path("link").symlink_to("plain")
        held = FileLock(Path(".starting.lock"))
        assert held.take()
        dead(Path("starting"))
        names = set(os.listdir())
        for name in ("twisted", "plain", "full", "datagrams", "file", "directory", "link", "starting"):
            with row(name):
                with pytest.raises(CannotListenError, match=f"{name}: .*Address already in use"):
                    await listen(directory / name)
                assert set(os.listdir()) == names and Path("file").read_text() == "kept"
        held.release()
        with row("/"), pytest.raises(CannotListenError, match="Is a directory"):
            await listen(Path("/"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("twisted")
        await of_twisted.stopListening()


@pytest_twisted.ensureDeferred
async def test_contact_a_name_that_is_no_file_has_no_lock(directory: Path):
    """Linux's abstract names end with their holder."""
    name = f"\0zcomm-{os.getpid()}"
    port = await listen(Path(name))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
    await port.stopListening()
    assert os.listdir() == []


@pytest_twisted.ensureDeferred
async def test_contact_the_address_that_is_told_is_one_that_clients_reach(directory: Path):
    """The sockets say what they are, in whatever order they were asked for."""
    key, certificate = Authority(directory).issue("localhost")
    given = {
        "tcp": "tcp:0:interface=127.0.0.1",
        "every": "tcp:0",
        "ssl": f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
        "unix": "unix:{}",
        "haproxy": "haproxy:tcp:0:interface=127.0.0.1",
        "hidden": "haproxy:unix:{}",
        "tcp6": "tcp6:0:interface=\\:\\:1",
    }
    rows: list[tuple[str, str, str, str]] = [
        ("tcp", "tcp", "ws://127.0.0.1:", "http://127.0.0.1:"),
        ("every ssl", "every", "ws://127.0.0.1:", "http://127.0.0.1:"),
        ("tcp ssl", "tcp", "ws://127.0.0.1:", "http://127.0.0.1:"),
        ("ssl tcp6", "tcp6", "ws://[::1]:", "http://[::1]:"),
        ("haproxy tcp", "tcp", "ws://127.0.0.1:", "http://127.0.0.1:"),
        ("hidden haproxy ssl unix", "unix", "unix:", "https://127.0.0.1:"),
        ("unix ssl", "unix", "unix:", "https://127.0.0.1:"),
        ("haproxy ssl", "ssl", "wss://127.0.0.1:", "https://127.0.0.1:"),
        ("unix tcp", "tcp", "ws://127.0.0.1:", "http://127.0.0.1:"),
        ("haproxy unix", "unix", "unix:", ""),
        ("hidden", "hidden", "unix:", ""),
        ("haproxy", "haproxy", "ws://127.0.0.1:", ""),
    ]
    with rows_of_a_test() as row:
        for kinds, best, url, page in rows:
            names = kinds.split()
            listen = tuple(given[name].format(name) for name in names)
            server = zBifrost(WebSocketConfig(require_auth=False, insecure=True, listen=listen))
            await server.listen()
            try:
                with row(kinds):
                    ports = [getattr(port.getHost(), "port", None) for port in server._ports]
                    first, own = server.addresses[0], ports[names.index(best)]
                    assert server.url == first.url == f"{url}{own or best}"
                    shown = ports[names.index("ssl")] if page.startswith("https") else own
                    assert server.page == (f"{page}{shown}/" if page else "")
                    assert server.port in ports or not any(ports)
                    assert first.is_proxied is (best in ("haproxy", "hidden"))
                    assert len({address.url for address in server.addresses}) == len(names)
            finally:
                await server.stopService()
            assert server.addresses == []


def test_b26_a_socket_is_where_nobody_else_takes_its_place(tmp_path: Path):
    """Whoever may rename it could listen in its place, and be told the tokens; in a directory as /tmp nobody may."""
    from twisted.internet import reactor

    for mode in (0o1777, 0o775, 0o700):
        tmp_path.chmod(mode)
        server_endpoints(WebSocketConfig(listen=(f"unix:{tmp_path}/s",)), reactor)
    for description in (f"unix:{tmp_path}/s", f"unix:address={tmp_path}/s:mode=600", f"haproxy:unix:{tmp_path}/s"):
        tmp_path.chmod(0o777)
        with pytest.raises(ConfigError, match=f"could listen in the place of .*put files into {tmp_path} .*chmod o-w"):
            server_endpoints(WebSocketConfig(listen=(description,)), reactor)
    server_endpoints(WebSocketConfig(listen=("unix:\0abstract",)), reactor)
