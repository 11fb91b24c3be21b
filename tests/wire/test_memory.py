"""What an attack costs in memory, by the peak the system counted for a server process of its own.

Each attack runs against one server whose peak is reset before; the bounds are those of the catalogue.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.deflate import bomb
from support.rawclient import BlockingRawClient, ConnectionEnded, Opcode, build_frame, handshake
from support.serverprocess import LISTENING, RunningServer, clean_environ, scripts, start_server
from support.waiting import wait_until_blocking
from support.watched import MIB, Watched, ending, push

pytestmark = [
    pytest.mark.child,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]


def warmed(server: RunningServer) -> Watched:
    """What it keeps from its first large messages on counts for nobody."""
    found = Watched(server)
    for _ in range(5):
        assert found.serves()
        with found.client() as client:
            client.call("ping", "x" * 900_000)
    return found


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One server for the module, warm; it must end in order and have logged no traceback."""
    server = start_server(
        "--compression",
        "--stall-timeout",
        "2",
        "--frame-rate",
        "1000000",
        "--frame-burst",
        "2000000",
        home=tmp_path_factory.mktemp("watched") / "home",
    )
    found = warmed(server)
    yield found
    assert server.stop() == 0, server.log
    assert found.token not in server.log
    assert "Traceback" not in server.log, server.log[server.log.index("Traceback") - 500 :][:3000]


FRAMES: list[tuple[str, bytes, int, int | None, int]] = [
    ("F3-1-GiB", build_frame(Opcode.TEXT, b"", claim=2**30), 1, 1009, 1024),
    ("F3-2^63-1", build_frame(Opcode.TEXT, b"", claim=2**63 - 1), 1, 1009, 1024),
    (
        "F10-1-byte-fragments",
        build_frame(Opcode.TEXT, b"a", fin=False) + build_frame(0, b"a", fin=False) * (MIB // 4),
        1,
        None,
        6 * 1024,
    ),
    ("C1-64-MiB-bomb", build_frame(Opcode.TEXT, bomb(64 * MIB), rsv=4), 1, 1009, 3 * 1024 + 1024),
    ("F12-pings-read", build_frame(Opcode.PING, b"p" * 100) * 100, 50, None, 5 * 1024),
]


@pytest.mark.parametrize(("data", "times", "code", "bound"), [pytest.param(*row[1:], id=row[0]) for row in FRAMES])
def test_frames_that_claim_or_become_much(watched: Watched, data: bytes, times: int, code: int | None, bound: int):
    """The peak stays within the bound, in KiB, and others are served.

    F10 is a quarter of the table's million fragments, which would take a slow machine half a minute.
    """
    watched.mark()
    with watched.client(headers=[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]) as client:
        push(client, data, times)
        if code is not None:
            assert ending(client) == code
        assert watched.serves()
    assert watched.grown <= bound


def test_f9_endless_empty_fragments(tmp_path: Path):
    """They are slowed, and little is kept of them: what waits is bounded as a message is. Others are served."""
    server = start_server("--frame-rate", "1000", "--frame-burst", "10000", home=tmp_path / "home")
    try:
        watched = Watched(server)
        assert watched.serves()
        watched.mark()
        with watched.client() as client:
            flood = build_frame(Opcode.TEXT, b"a", fin=False) + build_frame(0, b"", fin=False) * 100_000
            push(client, flood + build_frame(Opcode.PING, b"behind"))
            assert client.next().payload == b"behind"
            assert watched.serves()
        assert watched.serves() and watched.grown <= 4 * 1024
    finally:
        assert server.stop() == 0


def test_h6_endless_headers(watched: Watched):
    """Twenty at once, megabytes each: 16 KiB of each are kept at most."""
    watched.mark()
    flood = b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * MIB
    clients = [BlockingRawClient(watched.port, None) for _ in range(20)]
    for client in clients:
        push(client, flood, 4)
    assert watched.serves()
    for client in clients:
        client.socket.close()
    assert watched.grown <= 5 * 1024


def test_a13_pending_handshakes_cost_little(watched: Watched):
    """Thirty-one that have sent nearly a whole head."""
    watched.mark()
    clients = [BlockingRawClient(watched.port, handshake("127.0.0.1")[:-2]) for _ in range(31)]
    assert watched.serves()
    assert watched.grown <= 31 * 24 + 1024
    for client in clients:
        client.socket.close()


def test_s1_a_reader_that_stops(tmp_path: Path):
    """256 MiB of broadcasts to somebody who takes nothing: one queue and one buffer, then it is gone."""
    server = start_server("--broadcast", "all", "--broadcast-rate", "1000000000", home=tmp_path / "home")
    try:
        watched = Watched(server)
        with watched.client() as author, watched.client(receive_buffer=4096):
            author.call("ping", "x" * (MIB // 16 - 100))
            watched.mark()
            for _ in range(4096):
                author.call("ping", "x" * (MIB // 16 - 100))
            wait_until_blocking(lambda: watched.clients() == 1, "the slow one to be dropped")
            # A queue of 1 MiB and the buffer of the transport. Of messages as large as the queue the copies that
            # live while one is read, answered and passed on would count for more than what waits.
            assert watched.grown <= 3 * 1024
            assert watched.drops("slow_consumer") == 1
            assert author.call("ping", 1)["result"] == 1
    finally:
        assert server.stop() == 0


def test_s5_a_client_that_asks_and_never_reads(watched: Watched):
    """Its requests stay in its own buffer: it is not read from, and dropped after the stall timeout."""
    with watched.client() as author, watched.client(receive_buffer=4096) as slow:
        author.call("ping", "x" * 900_000)
        watched.mark()
        push(
            slow,
            build_frame(Opcode.TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 500_000}).encode()),
            64,
        )
        assert watched.serves()
        wait_until_blocking(lambda: watched.clients() == 1, "the slow one to be dropped")
        assert watched.grown <= 8 * 1024
        assert author.call("ping", 1)["result"] == 1


def test_s2_readers_that_stop(watched: Watched):
    """A hundred of them, each flooding and not reading: bounded together, and all of them go."""
    watched.mark()
    slow = [watched.client(receive_buffer=4096) for _ in range(100)]
    message = build_frame(Opcode.TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 60_000}).encode())
    for client in slow:
        client.socket.setblocking(False)
        try:
            for _ in range(100):
                client.socket.send(message)
        except OSError:
            pass
    assert watched.serves()
    wait_until_blocking(lambda: watched.clients() == 0, "all of them to be dropped")
    assert watched.grown <= 120 * 1024
    for client in slow:
        client.socket.close()


def test_c2_bombs_from_a_hundred_clients(watched: Watched):
    """All connected together, 64 MiB each once inflated: 1009 to each, and they do not add up."""
    offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]
    clients = [watched.client(headers=offer) for _ in range(100)]
    watched.mark()
    frame = build_frame(Opcode.TEXT, bomb(64 * MIB), rsv=4)
    for client in clients:
        push(client, frame)
    for client in clients:
        assert ending(client) == 1009
        client.socket.close()
    assert watched.serves() and watched.grown <= 20 * 1024


def test_r9_many_large_messages_at_once(running_server: Callable[..., RunningServer]):
    """A hundred clients with a megabyte each: about twice what is under way."""
    # With the usual time to read an answer: a hundred threads have their turn late on a machine that is busy.
    watched = warmed(
        running_server("--frame-rate", "1000000", "--frame-burst", "2000000", "--results-size", str(256 * MIB))
    )
    watched.mark()
    message = b'{"zKey":"ping","zHorizontal":"' + b"x" * (MIB - 100) + b'"}'

    def one() -> None:
        with watched.client() as client:
            client.send_text(message)
            assert len(client.next_json()["result"]) == MIB - 100

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watched.serves()
    assert watched.grown <= 250 * 1024


def test_r10_a_message_that_is_large_once_parsed(watched: Watched):
    """A megabyte of empty lists is not read; as many as are read take at most 25 MB, given back."""
    watched.mark()
    with watched.client() as client:
        for count, code in ((340_000, "bad_message"), (40_000, "unknown_command")):
            client.send_text(b'{"zKey":"nobody","zHorizontal":[' + b"[]," * count + b"[]]}")
            assert client.next_json()["code"] == code
    assert watched.serves() and watched.grown <= 32 * 1024


def test_r4_no_more_files(tmp_path: Path):
    """With every descriptor in use those who are connected are served, and others again when some are free."""
    home = tmp_path / "home"
    home.mkdir()
    command = [
        sys.executable,
        "-c",
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90)); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        str(scripts() / "twistd"),
        "--nodaemon",
        "--pidfile=",
        "zcomm",
        "--port",
        "0",
        "--pending-per-peer",
        "200",
        "--pending",
        "200",
    ]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    server = RunningServer(command, home, clean_environ(home))
    try:
        server.port = int(server.wait_for_log(LISTENING)[2])
        server.wait_for_log("ready")
        with BlockingRawClient(server.port, token=server.token) as client:
            assert client.call("ping", 1)["result"] == 1
            visitors = []
            for _ in range(120):
                visitor = socket.socket()
                visitor.setblocking(False)
                visitor.connect_ex(("127.0.0.1", server.port))
                visitors.append(visitor)
            assert client.call("ping", 2)["result"] == 2
            for visitor in visitors:
                visitor.close()

            def back() -> bool:
                try:
                    with BlockingRawClient(server.port, token=server.token) as other:
                        return other.call("ping", 3)["result"] == 3
                except (ConnectionEnded, OSError):
                    return False

            wait_until_blocking(back, "a free descriptor")
            assert client.call("ping", 4)["result"] == 4
    finally:
        assert server.stop() == 0, server.log
    assert len(server.log.splitlines()) < 200


def test_contact_who_is_not_in_takes_no_file_from_others(tmp_path: Path):
    """The limit is raised to the hard one. Silent connections of any number leave files to everything else: others are
    let in meanwhile, what is open is served, and the log has one line about it."""
    home = tmp_path / "home"
    home.mkdir()
    command = [
        *("sh", "-c", 'ulimit -n 320 && ulimit -Sn 200 && exec "$@"', "sh"),
        *(str(scripts() / "twistd"), "--nodaemon", "--pidfile=", "zcomm", "--port", "0", "--connections", "100"),
    ]
    server = RunningServer(command, home, clean_environ(home))
    silent: list[socket.socket] = []
    try:
        server.port = int(server.wait_for_log(LISTENING)[2])
        server.wait_for_log("ready")
        with BlockingRawClient(server.port, token=server.token) as client:
            # As one silent connection is cut off its neighbours go on; those that are cut off come again.
            for number in range(500):
                each = socket.socket()
                silent.append(each)
                each.bind((f"127.0.0.{number % 3 + 2}", 0))
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", server.port))
                if number % 50 == 49:
                    with BlockingRawClient(server.port, token=server.token) as other:
                        assert other.call("ping", number)["result"] == number
                    created = client.call("create_Users", {"values": {"name": f"n{number}"}})
                    assert created["result"]["name"] == f"n{number}"
                    files = Path(f"/proc/{server.process.pid}/fd")
                    assert not files.exists() or len(list(files.iterdir())) <= 320 - 80 + 10
    finally:
        for each in silent:
            each.close()
        assert server.stop() == 0, server.log
    assert "100 connections need 356 open files, and no more than 320 may be open" in server.log
    lines = [line for line in server.log.splitlines() if "files are open" in line or "EMFILE" in line]
    assert len(lines) == 1 and "are not for connections: who waits is cut off; raise the limit" in lines[0], lines


def test_the_peak_is_seen(watched: Watched):
    """The measure itself: what a large request costs for a moment shows."""
    watched.mark()
    with watched.client() as client:
        client.send_text(b'{"zKey":"nobody","zHorizontal":[' + b"1.5," * 250_000 + b"1]}")
        assert client.next_json()["code"] == "unknown_command"
    assert watched.grown > 2 * 1024
