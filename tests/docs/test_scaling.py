"""The page on several processes as an administrator follows it: two real zComms on one Redis, real proxies in front."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.docs_blocks import block, runs
from support.ports import unused_port
from support.rawclient import BlockingRawClient, ConnectionEnded
from support.redisserver import RedisServer
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ
from support.waiting import wait_until_blocking

pytestmark = pytest.mark.child

NAME = "app.example.com"
ORIGIN = f"https://{NAME}"


class Hosts:
    """Two hosts of the page, each with a home of its own.

    :ivar token: of alice, which was made at the first and copied to the other.
    """

    def __init__(self, directory: Path, url: str):
        self.directory = directory
        (directory / "policy.yaml").write_text("editor:\n  topics:\n    'room:*': [subscribe, publish, history]\n")
        (directory / "topics.yaml").write_text("'room:{id}': {history: 100, publish: anybody}\n")
        shared = {"ZCOMM_ENGINE": url, "ZCOMM_DATABASE": f"sqlite:///{directory}/app.sqlite3", "WEBSOCKET_PORT": "0"}
        text = block("scaling-host").text.replace("/etc/zcomm", str(directory)).replace("10.0.0.11", "127.0.0.1")
        text = "\n".join(line for line in text.splitlines() if not line.startswith("export "))
        text = text.replace("-proxy 10.0.0.1", "-proxy 127.0.0.1").replace("twistd", "exec twistd")
        self.servers: list[RunningServer] = []
        self.token = ""
        for name in ("a", "b"):
            home = directory / name
            home.mkdir(mode=0o700)
            data = home / ".zolo" / "zcomm"
            if self.token:
                data.mkdir(mode=0o700, parents=True)
                shutil.copy(directory / "a" / ".zolo" / "zcomm" / "tokens.json", data)
            environ = clean_environ(home, shared)
            server = RunningServer(["bash", "-c", text], home, environ)
            self.servers.append(server)
            match = server.wait_for_log(LISTENING)
            server.url, server.port = match[1], int(match[2])
            server.wait_for_log(r"\] ready")
            if not self.token:
                added = subprocess.run(
                    ["zcomm", "token", "add", "alice", "--role", "editor"],
                    env=environ,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                self.token = max(added.stdout.split(), key=len)

    def clients(self) -> list[int]:
        """How many each has that is there."""
        found = []
        for server in self.servers:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=30) as response:
                found.append(json.load(response)["clients"])
        return found

    def end(self) -> None:
        """Kill what still runs."""
        for server in self.servers:
            server.kill()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with RedisServer() as redis:
        both = Hosts(tmp_path, redis.url)
        try:
            yield both
        finally:
            both.end()


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A self-made certificate, by the command of the page on operations; what trusts it."""
    subprocess.run(
        ["bash", "-eu", "-c", block("operations-certificate").text], cwd=tmp_path, capture_output=True, check=True
    )
    key, made = tmp_path / f"{NAME}.key", tmp_path / f"{NAME}.crt"
    (tmp_path / f"{NAME}.pem").write_bytes(made.read_bytes() + key.read_bytes())
    return ssl.create_default_context(cafile=str(made))


@contextmanager
def proxy(command: list[object], log: Path) -> Iterator[Callable[[], str]]:
    """A proxy in the foreground; yields what tells its output, and fails where it ended by itself."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield lambda: log.read_text() if process.poll() is None else pytest.fail(log.read_text())
    finally:
        process.terminate()
        process.wait(30)


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert found, f"{name} is not installed; ./test installs it"
    return found


def behind(hosts: Hosts, port: int, tls: ssl.SSLContext, running: Callable[[], str]) -> None:
    """Clients go where the fewest are, hear each other, and come back at the host that is left."""

    def connected(token: str = hosts.token, source: str = "") -> BlockingRawClient | None:
        running()
        try:
            return BlockingRawClient(
                port, source=source, tls=tls, server_name=NAME, name_in_handshake=NAME, token=token, origin=ORIGIN
            )
        except (ConnectionRefusedError, ConnectionEnded):
            return None

    with wait_until_blocking(connected, "the proxy") as first:
        assert first.call("zSubscribe", {"topic": "room:1"})["result"]["offset"] == 0
        before = hosts.clients()
        with connected() as second:
            assert second.call("zSubscribe", {"topic": "room:1"})["result"]["offset"] == 0
            assert hosts.clients() == [1, 1]
            second.call("zPublish", {"topic": "room:1", "data": 1, "_idempotencyKey": "k" * 16})
            told = first.next_json()
            assert told["data"] == 1
            with connected("wrong", "127.0.0.2") as guesser:
                assert guesser.next_close().close_reason == "Invalid token"
            wait_until_blocking(
                lambda: any("127.0.0.2 was not let in: Invalid token" in one.log for one in hosts.servers), "the line"
            )
            position = first.call("zSubscribe", {"topic": "room:1"})["result"]
            hosts.servers[before.index(1)].kill()
            first.wait_ended()
            second.call("zPublish", {"topic": "room:1", "data": 2})
            with wait_until_blocking(connected, "the host that is left") as again:
                since = {"epoch": position["epoch"], "offset": position["offset"]}
                result = again.call("zSubscribe", {"topic": "room:1", "since": since})["result"]
                assert result["recovered"] is True and [one["data"] for one in result["messages"]] == [2]
    request = urllib.request.Request(f"https://localhost:{port}/zBifrost.js", headers={"Host": NAME})
    with urllib.request.urlopen(request, context=tls, timeout=30) as response:
        assert b"class zBifrost" in response.read()


@runs("scaling-host", "scaling-nginx")
def test_nginx_in_front_of_two_hosts(tmp_path: Path, hosts: Hosts, certificate: ssl.SSLContext):
    """A client of a host that was killed misses nothing at the other, which nginx finds by itself."""
    port, root = unused_port(), tmp_path / "nginx"
    root.mkdir()
    site = block("scaling-nginx").text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    site = site.replace("/etc/ssl", str(tmp_path))
    for number, server in enumerate(hosts.servers, 1):
        site = site.replace(f"10.0.0.1{number}:56891", f"127.0.0.1:{server.port}")
    assert "10.0.0." not in site
    temporary = "".join(
        f"{kind}_temp_path {root}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    site = site.replace("http {\n", f"http {{\naccess_log off;\n{temporary}", 1)
    (root / "nginx.conf").write_text(f"daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log stderr;\n{site}")
    with proxy([program("nginx"), "-p", root, "-c", root / "nginx.conf"], root / "log") as running:
        behind(hosts, port, certificate, running)


@runs("scaling-haproxy")
def test_haproxy_in_front_of_two_hosts(tmp_path: Path, hosts: Hosts, certificate: ssl.SSLContext):
    """A client of a host that was killed misses nothing at the other, before the check has noticed and after."""
    port = unused_port()
    text = block("scaling-haproxy").text.replace("bind :443", f"bind 127.0.0.1:{port}")
    # As many files are not everybody's.
    text = text.replace("/etc/haproxy", str(tmp_path)).replace("maxconn 50000", "maxconn 500")
    for number, server in enumerate(hosts.servers, 1):
        text = text.replace(f"10.0.0.1{number}:56891", f"127.0.0.1:{server.port}")
    assert "10.0.0." not in text
    (tmp_path / "haproxy.cfg").write_text(text)
    with proxy([program("haproxy"), "-db", "-f", tmp_path / "haproxy.cfg"], tmp_path / "log") as running:
        behind(hosts, port, certificate, running)
        # The page says so of the check.
        wait_until_blocking(lambda: "DOWN" in running(), "the check")


@runs("scaling-reload")
def test_a_reload_at_one_host_reaches_all(tmp_path: Path, hosts: Hosts):
    """The signal of the page, sent to the first: both name the policy and the kinds of topics again."""
    text = block("scaling-reload").text.replace("systemctl reload zcomm", f"kill -HUP {hosts.servers[0].process.pid}")
    assert "kill -HUP" in text
    subprocess.run(["bash", "-eu", "-c", text], check=True)
    for server in hosts.servers:
        server.wait_for_log("the topics were read anew")


@runs("scaling-sizing")
def test_the_numbers_of_the_page_are_those_of_the_program():
    """Each cost in the table, the table that is worked through, and the command with which a reader does the same."""
    page = (CHECKOUT / "docs" / "scaling.rst").read_text()
    space = runpy.run_path(str(CHECKOUT / "benchmarks" / "sizing.py"))
    costs = space["Costs"]()
    names = {"process_mib": "process", "connection_bytes": "connection", "system_bytes": "socket"}
    missing = []
    for name, value in vars(costs).items():
        shown, told = names.get(name, name.rpartition("_")[0]), space["said"](name, value)
        if not re.search(rf"^``{shown}`` +{re.escape(told)} ", page, re.MULTILINE):
            missing.append((shown, told))
    assert missing == []
    assert space["table"](costs, space["Machine"]()) in page
    command = block("scaling-sizing").text.replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.match(r"workers [2-9] on 1 hosts, ", done.stdout)


def test_the_sum_grows_with_each_of_its_parts():
    """More of anything takes more, and there are never fewer workers than are busy."""
    space = runpy.run_path(str(CHECKOUT / "benchmarks" / "sizing.py"))
    costs, machine, plan = space["Costs"](), space["Machine"](), space["plan"]
    load = space["usual"](100_000)
    base = plan(costs, load, machine)
    assert base.worker_cpu <= base.workers * machine.use
    for name in ("connections", "publishes", "commands", "arrivals", "subscribers"):
        more = plan(costs, dataclasses.replace(load, **{name: 10 * getattr(load, name)}), machine)
        assert more.worker_cpu > base.worker_cpu and more.workers >= base.workers, name
    assert plan(costs, dataclasses.replace(load, publishes=100_000), machine).redis_servers >= 3
    assert space["hearing"](10, 1) == pytest.approx(1) and space["hearing"](10, 1000) == pytest.approx(10)
