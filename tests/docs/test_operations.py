"""The operations page as an administrator follows it: real nginx, real certificates, real signals."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.containers import contained
from support.docs_blocks import block, runs
from support.ports import unused_port
from support.rawclient import BlockingRawClient
from support.serverprocess import LISTENING, RunningServer, clean_environ, scripts
from support.waiting import wait_until_blocking

SCHEMA = """
Users:
  id:   {type: int, pk: true}
  name: {type: str, required: true}
  role: {type: str, default: user}
  email: str
  last_login: datetime
"""


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


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts the command of a block and returns the server when it listens."""
    servers: list[RunningServer] = []

    def start(command: list[str], **environ: str) -> RunningServer:
        server = RunningServer(command, tmp_path, clean_environ(tmp_path, environ))
        servers.append(server)
        match = server.wait_for_log(LISTENING)
        server.url, server.port = match[1], int(match[2])
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGTERM)
        server.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-made certificate, by the page's own command."""
    shell(block("operations-certificate").text, tmp_path)
    return tmp_path / "app.example.com.crt", tmp_path / "app.example.com.key"


@runs("operations-start")
def test_the_options_for_a_server(tmp_path: Path, serve: Callable[..., RunningServer]):
    """Database, schema and policy of one's own: the named origin gets in, a role gets what the policy grants it."""
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    (tmp_path / "policy.yaml").write_text(block("security-policy").text)
    text = (
        block("operations-start")
        .text.replace("/var/lib/zcomm", str(tmp_path / "data"))
        .replace("/etc/zcomm", str(tmp_path))
    )
    server = serve(["bash", "-c", text], WEBSOCKET_PORT="0", ZCOMM_DATABASE=f"sqlite:///{tmp_path}/app.sqlite3")
    with BlockingRawClient(server.port, token=server.token, origin="https://app.example.com") as client:
        assert client.call("ping", 1)["result"] == 1
    with BlockingRawClient(server.port, token=server.token, origin="https://evil.example") as client:
        assert (closing := client.next_close()).close_code == 1008 and closing.close_reason == "Invalid origin"
    assert (tmp_path / "app.sqlite3").exists()


@runs("operations-www")
def test_a_page_of_ones_own(tmp_path: Path, serve: Callable[..., RunningServer]):
    """It is what the port shows first; a file with a name of zComm's ends the start with one line and status 1."""
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("<title>Mine</title>")
    text = block("operations-www").text.replace("/srv/app/pages", str(pages))
    server = serve(["bash", "-c", text], WEBSOCKET_PORT="0")
    for path, expected in (("", b"<title>Mine"), ("demo/", b"<title>zBifrost"), ("zBifrost.js", b"class zBifrost")):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/{path}", timeout=30) as response:
            assert expected in response.read()
    server.wait_for_log(rf"files of {pages} for everybody; the demo page is below /demo/")
    server.wait_for_log(rf"page http://127.0.0.1:{server.port}/ ")
    assert server.stop() == 0, server.log
    (pages / "health").write_text("")
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env=clean_environ(tmp_path, {"WEBSOCKET_PORT": "0", "ZCOMM_HOME": str(tmp_path / "other")}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert f"zcomm: --www: {pages}/health: /health is zComm's own; give it another name" in done.stderr.splitlines()


@runs("operations-workers")
def test_several_processes(serve: Callable[..., RunningServer]):
    """The command starts them; both metrics of theirs are there under the names that the page has."""
    server = serve(["bash", "-c", f"exec {block('operations-workers').text}"], WEBSOCKET_PORT="0")
    server.wait_for_log(r"\] ready")
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/metrics", headers={"Authorization": f"Bearer {server.token}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        told = response.read().decode().splitlines()
    assert {"zcomm_workers 2.0", "zcomm_worker_restarts_total 0.0"} <= set(told)
    assert server.stop() == 0, server.log


@runs("operations-tokens")
def test_tokens_are_added_listed_and_revoked(tmp_path: Path):
    """The list names the user and never shows the token."""
    add, listing, revoke = block("operations-tokens").text.strip().splitlines()
    added = shell(add, tmp_path)
    token = max(re.findall(r"\S+", added), key=len)
    listed = shell(listing, tmp_path)
    assert "alice" in listed and "admin" in listed and token not in listed
    shell(revoke, tmp_path)
    assert "alice" not in shell(listing, tmp_path) or "revoked" in shell(listing, tmp_path)


@runs("operations-systemd")
def test_the_unit_starts_reloads_and_stops(tmp_path: Path, serve: Callable[..., RunningServer]):
    """Its command line starts a server in its state directory, which reads its policy anew and stops in order."""
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read_string(block("operations-systemd").text)
    service = unit["Service"]
    command = service["ExecStart"].replace("/opt/zcomm/bin", str(scripts())).split()
    environ = dict(word.split("=", 1) for word in service["Environment"].split())
    state = "/var/lib/zcomm"
    assert environ == {"HOME": state, "ZCOMM_HOME": state} and service["StateDirectory"] == "zcomm"
    server = serve([sys.executable, *command], WEBSOCKET_PORT="0", ZCOMM_HOME=str(tmp_path / "state"))
    server.wait_for_log(r"\] ready")
    reload_signal = re.fullmatch(r"/bin/kill -(\w+) \$MAINPID", service["ExecReload"])[1]
    server.signal(getattr(signal, f"SIG{reload_signal}"))
    server.wait_for_log("were read anew")
    with BlockingRawClient(server.port, token=server.token) as client:
        assert client.call("ping", 1)["result"] == 1
    assert server.stop() == 0, server.log
    if analyze := shutil.which("systemd-analyze"):
        path = tmp_path / "zcomm.service"
        path.write_text(
            block("operations-systemd")
            .text.replace("/opt/zcomm/bin", str(scripts()))
            .replace("User=zcomm", "User=root")
        )
        done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


#: What the unit closes, whatever systemd-analyze says of the rest.
CLOSED = {
    "User": "zcomm",
    "UMask": "0077",
    "StateDirectoryMode": "0700",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "SystemCallFilter": "@system-service",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "ProtectSystem": "strict",
    **dict.fromkeys(("ProtectHome", "PrivateTmp", "PrivateDevices", "RestrictNamespaces", "RestrictSUIDSGID"), "yes"),
    **{f"ProtectKernel{what}": "yes" for what in ("Logs", "Modules", "Tunables")},
}


@runs("operations-systemd")
def test_b38_the_unit_is_hardened(tmp_path: Path):
    """Its account, its limits and what is closed to it; systemd's own judgement, where that is installed: 0 is closed,
    10 is open, most services have more than 9."""
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read_string(block("operations-systemd").text)
    service = unit["Service"]
    assert {name: service.get(name) for name in CLOSED} == CLOSED
    assert re.fullmatch(r"\d+G", service["MemoryMax"]) and service["TasksMax"].isdigit()
    path = tmp_path / "zcomm.service"
    path.write_text(block("operations-systemd").text.replace("/opt/zcomm/bin", str(scripts())))
    if analyze := shutil.which("systemd-analyze"):
        done = subprocess.run(
            [analyze, "security", "--offline=true", "--threshold=20", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent"}], ids=["none", "nonexistent"])
def test_b38_it_starts_without_a_home(tmp_path: Path, home: dict[str, str]):
    """Where the data directory is named, no HOME is needed, and none is made: accounts of services have none."""
    state = tmp_path / "state"
    environ = {name: value for name, value in clean_environ(tmp_path).items() if name != "HOME"}
    environ |= {"WEBSOCKET_PORT": "0", "ZCOMM_HOME": str(state), **home}
    server = RunningServer([sys.executable, str(scripts() / "twistd"), "-n", "--pidfile=", "zcomm"], tmp_path, environ)
    try:
        server.wait_for_log(r"\] ready")
        assert server.stop() == 0, server.log
    finally:
        server.kill()
    assert (state / "operator.json").exists() and not Path("/nonexistent").exists()


@runs("operations-nginx", "operations-certificate")
def test_nginx_in_front(
    tmp_path: Path, certificate: tuple[Path, Path], serve: Callable[..., RunningServer], free_port: int
):
    """Page, client and WebSocket go through nginx over TLS; the page's origin is let in, others are not."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert nginx, "nginx is not installed; ./test installs it"
    server = serve(
        [
            sys.executable,
            str(scripts() / "twistd"),
            "-n",
            "--pidfile=",
            "zcomm",
            "--allowed-origin",
            "https://app.example.com",
            "--trusted-proxy",
            "127.0.0.1",
            "--auth-failures",
            "2",
        ],
        WEBSOCKET_PORT="0",
    )
    site = block("operations-nginx").text.replace("listen 443 ssl", f"listen 127.0.0.1:{free_port} ssl")
    site = site.replace("/etc/ssl", str(tmp_path)).replace(":56891", f":{server.port}")
    root = tmp_path / "nginx"
    root.mkdir()
    (root / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log {root}/access.log;\n"
        + "".join(f"{kind}_temp_path {root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + site
        + "}\n"
    )
    tls = ssl.create_default_context(cafile=str(certificate[0]))
    log = root / "stderr"
    with log.open("w") as output:
        process = subprocess.Popen(
            [nginx, "-p", root, "-c", root / "nginx.conf"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:

        def connected(**options: object) -> BlockingRawClient:
            return BlockingRawClient(
                free_port,
                tls=tls,
                server_name="app.example.com",
                name_in_handshake="app.example.com",
                token=server.token,
                **options,
            )

        def first() -> BlockingRawClient | None:
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            try:
                return connected(origin="https://app.example.com")
            except ConnectionRefusedError:
                return None

        with wait_until_blocking(first, "nginx") as client:
            assert client.call("ping", {"through": "nginx"})["result"] == {"through": "nginx"}
        with connected(origin="https://evil.example") as client:
            assert client.next_close().close_reason == "Invalid origin"
        request = urllib.request.Request(
            f"https://localhost:{free_port}/zBifrost.js", headers={"Host": "app.example.com"}
        )
        with urllib.request.urlopen(request, context=tls, timeout=30) as response:
            assert response.status == 200 and b"class zBifrost" in response.read()
        told = refusals(
            lambda source, claim: BlockingRawClient(
                free_port,
                source=source,
                tls=tls,
                server_name="app.example.com",
                name_in_handshake="app.example.com",
                token="wrong",
                headers=[("X-Forwarded-For", claim)],
            )
        )
        assert told == REFUSED
        wait_until_blocking(lambda: "127.0.0.2 was not let in: Invalid token" in server.log, "the line")
        with connected(origin="https://app.example.com") as client:
            assert client.call("ping", 1)["result"] == 1
        assert server.token not in (root / "access.log").read_text() + log.read_text()
    finally:
        process.terminate()
        process.wait(30)


@runs("operations-haproxy", "operations-haproxy-start")
def test_contact_r03_haproxy_in_front(tmp_path: Path, serve: Callable[..., RunningServer]):
    """By its header and by the PROXY protocol in both versions: a client's failures are its own."""
    haproxy = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert haproxy, "haproxy is not installed; ./test installs it"
    ports = [unused_port() for _ in range(4)]
    command = block("operations-haproxy-start").text.replace("56891", str(ports[0])).replace("56892", str(ports[1]))
    server = serve(["bash", "-c", f"{command.strip()} --auth-failures 2"])
    text = block("operations-haproxy").text.replace("56891", str(ports[0])).replace("56892", str(ports[1]))
    text = text.replace(":8080", f"127.0.0.1:{ports[2]}").replace(":8443", f"127.0.0.1:{ports[3]}")
    for version in ("send-proxy-v2", "send-proxy"):
        (tmp_path / "haproxy.cfg").write_text(text.replace("send-proxy-v2", version))
        process = subprocess.Popen(
            [haproxy, "-db", "-f", tmp_path / "haproxy.cfg"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            for port in ports[2:] if version == "send-proxy-v2" else ports[3:]:

                def connected(port: int = port, source: str = "", **options: object) -> BlockingRawClient | None:
                    try:
                        return BlockingRawClient(port, source=source, name_in_handshake="app.example.com", **options)
                    except ConnectionRefusedError:
                        return None

                def guess(source: str, claim: str, connected: Callable[..., object] = connected) -> object:
                    return connected(source=source, token="wrong", headers=[("X-Forwarded-For", claim)])

                with wait_until_blocking(lambda: connected(token=server.token), "haproxy") as client:
                    assert client.call("ping", "x" * 100_000)["result"] == "x" * 100_000
                shift = ports.index(port) + 10 * len(version)
                assert refusals(guess, shift) == REFUSED, (version, port)
                with connected(token=server.token, source="127.0.0.2") as client:
                    assert client.call("ping", 1)["result"] == 1
        finally:
            process.terminate()
            process.wait(30)
    assert "Traceback" not in server.log


#: Two guesses are free, from either address.
REFUSED = ["Invalid token", "Invalid token", "Too many failed attempts", "Invalid token"]


def refusals(guess: Callable[[str, str], BlockingRawClient], shift: int = 0) -> list[str]:
    """What is said to three guesses from one address, each of which claims another, and to one from another."""
    told = []
    for number, last in enumerate((2, 2, 2, 3)):
        with guess(f"127.0.{shift}.{last}", f"198.51.100.{number}") as client:
            told.append(client.next_close().close_reason)
    return told


@runs("operations-tls")
def test_tls_without_a_proxy(tmp_path: Path, certificate: tuple[Path, Path], serve: Callable[..., RunningServer]):
    """The endpoint holds the certificate: a client that trusts it connects, for the name in it and no other."""
    text = (
        block("operations-tls")
        .text.replace("/etc/ssl", str(tmp_path))
        .replace("ssl:8443", "ssl:0")
        .replace("0.0.0.0", "127.0.0.1")
    )
    server = serve(["bash", "-c", text])
    tls = ssl.create_default_context(cafile=str(certificate[0]))
    with BlockingRawClient(
        server.port,
        tls=tls,
        server_name="app.example.com",
        name_in_handshake="app.example.com",
        token=server.token,
    ) as client:
        assert client.call("ping", 1)["result"] == 1
    with pytest.raises(ssl.SSLCertVerificationError):
        BlockingRawClient(server.port, tls=tls, server_name="other.example.com")


@runs("operations-origins")
def test_origins_in_a_file(serve: Callable[..., RunningServer]):
    """The file names the one origin that is let in."""
    server = serve(["bash", "-c", block("operations-origins").text.replace("-n zcomm", "-n zcomm --port 0")])
    assert server.wait_for_log("allowed origins: (.*)")[1] == "https://app.example.com"
    with BlockingRawClient(server.port, token=server.token, origin="https://app.example.com") as client:
        assert client.call("ping", 1)["result"] == 1


@runs("operations-container")
def test_contact_a_container(serve: Callable[..., RunningServer]):
    """In a PID namespace, the first process; killed and started again there."""
    command = block("operations-container").text.replace("--host 0.0.0.0", "--host 127.0.0.1 --port 0")
    for _ in range(2):
        server = serve(contained(["bash", "-c", command]))
        server.wait_for_log(r"\] ready")
        server.kill()


@runs("operations-call", "operations-call-python", "operations-publish")
def test_commands_from_scripts(tmp_path: Path, serve: Callable[..., RunningServer]):
    """curl and Python's own library get the rows, a subscriber the message; what is wrong is told in the body."""
    server = serve([sys.executable, str(scripts() / "twistd"), "-n", "--pidfile=", "zcomm"], WEBSOCKET_PORT="0")
    server.wait_for_log(r"\] ready")
    text = block("operations-call").text.replace(":56891", f":{server.port}")
    assert "result" in json.loads(shell(text, server.home))
    with BlockingRawClient(server.port, token=server.token) as client:
        client.call("zSubscribe", {"topic": "deploys"})
        assert shell(block("operations-publish").text, server.home).startswith("published to deploys")
        assert client.next_json()["data"] == {"version": "1.2.3"}
    space: dict[str, Any] = {}
    exec(block("operations-call-python").text, space)
    url = f"http://127.0.0.1:{server.port}/call"
    assert space["call"]("ping", [1, 2], server.token, url) == [1, 2]
    with pytest.raises(urllib.error.HTTPError) as caught:
        space["call"]("nothing", 1, server.token, url)
    assert caught.value.code == 404 and json.load(caught.value)["code"] == "unknown_command"


@runs("operations-health", "operations-metrics")
def test_health_and_metrics(serve: Callable[..., RunningServer]):
    """The command succeeds with JSON; the metrics are in the Prometheus format."""
    server = serve([sys.executable, str(scripts() / "twistd"), "-n", "--pidfile=", "zcomm"], WEBSOCKET_PORT="0")
    server.wait_for_log(r"\] ready")
    health = shell(block("operations-health").text.replace(":56891", f":{server.port}"), server.home)
    assert '"status"' in health and health.lstrip().startswith("{")
    told = shell(block("operations-metrics").text.replace(":56891", f":{server.port}"), server.home)
    # Those of workers are there where there are some.
    documented = re.findall(
        r"``(zcomm_(?!worker)\w+)", Path(__file__).parents[2].joinpath("docs/operations.rst").read_text()
    )
    assert len(documented) > 4 and all(f"# TYPE {name} " in told for name in documented)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=30)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{server.port}/health", headers={"Host": "attacker.example"}),
            timeout=30,
        )


@runs("operations-backup")
def test_backup_of_a_live_database(tmp_path: Path, serve: Callable[..., RunningServer]):
    """The copy has the rows that the running server wrote."""
    import sqlite3

    data = tmp_path / "data"
    server = serve(
        [sys.executable, str(scripts() / "twistd"), "-n", "--pidfile=", "zcomm"],
        WEBSOCKET_PORT="0",
        ZCOMM_HOME=str(data),
    )
    with BlockingRawClient(server.port, token=server.token) as client:
        assert "result" in client.call("create_Users", {"values": {"name": "Alice", "email": "alice@example.com"}})
        subprocess.run(
            [sys.executable, "-c", block("operations-backup").text],
            env=clean_environ(tmp_path, {"ZCOMM_HOME": str(data)}),
            check=True,
        )
    with sqlite3.connect(data / "backup.sqlite3") as copy:
        assert copy.execute("SELECT name FROM Users").fetchall() == [("Alice",)]
    copy.close()


@runs("security-membership")
def test_rights_go_by_membership():
    """The grant of the page reaches the rows of the user's own memberships."""
    from zcomm.auth.policy import Policy
    from zcomm.interfaces import Among, Identity

    policy = Policy.from_yaml(block("security-membership").text, "policy.yaml")
    rows = policy.rows(Identity("ann", "member"), "Tasks")
    assert rows == {"board_id": Among("Members", "board_id", (("user", "ann"),))}


@runs("security-policy")
def test_the_policy_grants_what_it_says():
    """An editor may write users and call one function; a guest may read, but not everything; whoever is not named may
    nothing."""
    from zcomm.auth.policy import Policy
    from zcomm.interfaces import FieldRights, Identity

    policy = Policy.from_yaml(block("security-policy").text, "policy.yaml")
    admin, editor, guest, nobody = (Identity("x", role) for role in ("admin", "editor", "guest", "intern"))
    assert (
        policy.allows(admin, "delete", "model", "Anything")
        and policy.allows(admin, "open", "file", "x")
        and policy.allows(admin, "use", "command", "x")
    )
    assert policy.allows(editor, "update", "model", "Users") and not policy.allows(editor, "delete", "model", "Users")
    assert (
        policy.allows(editor, "call", "function", "calculateTotal")
        and not policy.allows(editor, "call", "function", "other")
        and policy.allows(editor, "visit", "page", "/users")
    )
    assert (
        policy.allows(guest, "read", "model", "Users")
        and not policy.allows(guest, "create", "model", "Users")
        and not policy.allows(guest, "open", "file", "x")
    )
    assert policy.fields(guest, "Users") == FieldRights(hide=["email", "last_login"])
    assert policy.fields(Identity("x", "member"), "Users") == FieldRights(readonly=["role"])
    member = Identity("ann", "member")
    assert policy.allows(member, "publish", "topic", "room:1") and policy.allows(admin, "publish", "topic", "room:1")
    assert policy.allows(member, "history", "topic", "room:board")
    assert not policy.allows(member, "publish", "topic", "room:board")
    assert policy.allows(member, "subscribe", "topic", "user:ann")
    assert not policy.allows(member, "subscribe", "topic", "user:bob")
    assert not policy.allows(editor, "subscribe", "topic", "room:1")
    assert not policy.allows(nobody, "read", "model", "Users")
