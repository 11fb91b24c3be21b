"""Catalogue C7, T7 and S8: what a client costs in memory for as long as it stays."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.deflate import deflated
from support.rawclient import Opcode, build_frame
from support.serverprocess import start_server
from support.waiting import wait_until_blocking
from support.watched import Watched, push

pytestmark = [
    pytest.mark.child,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Watched]:
    """A server on a TLS endpoint, warm."""
    authority = Authority(tmp_path)
    key, certificate = authority.issue("localhost", "127.0.0.1")
    server = start_server(
        "--listen",
        f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
        "--stall-timeout",
        "2",
        home=tmp_path / "home",
    )
    watched = Watched(server, ssl.create_default_context(cadata=authority.pem.decode()))
    for _ in range(5):
        with watched.client() as client:
            client.call("ping", "x" * 900_000)
    yield watched
    assert server.stop() == 0, server.log
    assert "Traceback" not in server.log


def test_t7_connections_over_tls(secure: Watched):
    """Three hundred that have been answered once: at most 40 KiB each."""
    secure.mark()
    clients = [secure.client() for _ in range(300)]
    for client in clients:
        assert client.call("ping", 1)["result"] == 1
    assert secure.grown <= 300 * 40
    for client in clients:
        client.socket.close()
    wait_until_blocking(lambda: secure.clients() == 0, "all of them to be gone")


def test_s8_a_reader_over_tls_that_stops(secure: Watched):
    """The same bound as without: what OpenSSL holds for it is counted."""
    slow = secure.client(receive_buffer=4096)
    secure.mark()
    push(
        slow,
        build_frame(Opcode.TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 500_000}).encode()),
        64,
    )
    assert secure.serves()
    wait_until_blocking(lambda: secure.clients() == 0, "the slow one to be dropped")
    assert secure.grown <= 10 * 1024
    assert secure.drops("stalled") == 1
    slow.socket.close()


def test_c7_clients_that_compress(tmp_path: Path):
    """A thousand that have sent and been sent one compressed message: at most 45 KiB each."""
    # A thousand may take longer than the usual time to answer a ping, which none of them reads.
    server = start_server("--compression", "--ping-interval", "600", home=tmp_path / "home")
    try:
        watched = Watched(server)
        offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
        message = json.dumps({"zKey": "ping", "zHorizontal": "some text " * 100}).encode()

        def answered() -> object:
            client = watched.client(headers=offer)
            client.send_frame(Opcode.TEXT, deflated(message), rsv=4)
            frame = client.next()
            assert frame.opcode == Opcode.TEXT and frame.rsv == 4
            return client

        answered().socket.close()
        watched.mark()
        clients = [answered() for _ in range(1000)]
        assert watched.grown <= 1000 * 45
        for client in clients:
            client.socket.close()
    finally:
        assert server.stop() == 0
