"""``zcomm url``, ``zcomm call`` and ``zcomm publish`` against a server in a process of its own."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from support.certificates import Authority
from support.preloaded import run_python
from support.rawclient import BlockingRawClient
from support.serverprocess import RunningServer, clean_environ, scripts, start_server, twistd_command

from zcomm.runtime.runfile import run_file, running_servers, write_run_file


def zcomm(home: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(scripts() / "zcomm"), *words]
    return run_python(command, env=clean_environ(home, environ, measured=True), cwd=home, timeout=120)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One for all that only ask it something."""
    server = start_server(home=tmp_path_factory.mktemp("home"))
    yield server
    server.stop()


def test_url(server: RunningServer):
    """A link that signs in, with another code in the fragment each time and never the token; the plain address, and no
    code, where that is asked for."""
    codes = server.home / ".zolo" / "zcomm" / "codes"
    assert zcomm(server.home, "url", "--websocket").stdout == f"{server.url}\n" and not codes.exists()
    told = json.loads(zcomm(server.home, "url", "--json").stdout)
    assert told == {"websocket": server.url, "page": told["page"], "pid": server.process.pid}
    found = set()
    for link in (zcomm(server.home, "url").stdout, told["page"] + "\n"):
        page, code = link.split("#code=")
        assert page == f"{server.http_url}/" and re.fullmatch(r"[\w-]{22}\n", code) and server.token not in link
        found.add(sha256(code.strip().encode()).hexdigest())
    assert {path.name for path in codes.iterdir()} == found and len(found) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in codes.iterdir()} == {0o600}


def test_contact_a23_a_code_of_another_process_signs_in_once(server: RunningServer):
    """The running server takes it; the first zDescribe brings the token of a session, which revoking ends."""
    offers = ["zbifrost.v1", "code." + zcomm(server.home, "url").stdout.strip().split("#code=")[1]]
    with BlockingRawClient(server.port, subprotocols=offers) as client:
        described = client.call("zDescribe")["result"]
        token = described["session"]
        assert described["identity"]["role"] == "admin" and token.startswith("zc_") and token != server.token
        assert "session" not in client.call("zDescribe")["result"]
        with BlockingRawClient(server.port, subprotocols=offers) as late:
            assert late.next_close().close_code == 1008
        with BlockingRawClient(server.port, token=token) as again:
            assert again.call("zDescribe")["result"]["identity"] == described["identity"]
            listed = json.loads(zcomm(server.home, "token", "list", "--json").stdout)
            (session,) = [one for one in listed if token.startswith(f"zc_{one['id']}_")]
            lifetime = datetime.fromisoformat(session["expires"]) - datetime.fromisoformat(session["created"])
            assert lifetime == timedelta(hours=12) and session["user"] == described["identity"]["name"]
            assert zcomm(server.home, "token", "revoke", session["id"]).returncode == 0
            for one in (client, again):
                assert one.next_close().close_reason == "Session expired"
    log = server.log
    assert token not in log and offers[1].removeprefix("code.") not in log


def test_contact_a36_n6_a_second_server_on_the_data_directory(server: RunningServer):
    """It ends with status 1 and a line that names the first and the option, which goes on and is found as before."""
    done = run_python(twistd_command("--port", "0"), env=clean_environ(server.home), cwd=server.home, timeout=120)
    output = done.stdout + done.stderr
    line = f"zcomm: --data-dir: {server.home / '.zolo' / 'zcomm'} is in use by another zComm (pid {server.process.pid})"
    assert done.returncode == 1 and [one for one in output.splitlines() if one.startswith(line)], output
    assert "Traceback" not in output
    assert zcomm(server.home, "url", "--websocket").stdout == f"{server.url}\n"
    assert zcomm(server.home, "call", "ping").stdout == '"ping"\n'


def test_contact_b22_a_program_beside_it(server: RunningServer):
    """Where several servers run on a data directory, the one that is meant is named; what a dead one left does not
    count and is removed."""
    data_dir = server.home / ".zolo" / "zcomm"
    beside, other = run_file(data_dir, False), "ws://127.0.0.1:1"
    write_run_file(beside, other, "", False)
    dead = data_dir / "server-4194304.json"
    dead.write_text(beside.read_text().replace(str(os.getpid()), "4194304", 1))
    dead.chmod(0o600)
    try:
        for words in (["url"], ["call", "ping"]):
            asked = zcomm(server.home, *words)
            assert (asked.returncode, asked.stdout) == (1, "")
            assert server.url in asked.stderr and f"{other} (pid {os.getpid()})" in asked.stderr
            assert asked.stderr.startswith("zcomm: --url: ") and not dead.exists()
        assert zcomm(server.home, "url", "--url", other).stdout == f"{other}\n"
        assert zcomm(server.home, "url", "--websocket", "--url", server.url).stdout == f"{server.url}\n"
        assert zcomm(server.home, "url", "--url", "ws://127.0.0.1:2").returncode == 1
        assert zcomm(server.home, "call", "ping", "--url", server.url).stdout == '"ping"\n'
    finally:
        beside.unlink()


def test_contact_of_several_endpoints_one_that_clients_reach_is_told(
    running_server: Callable[..., RunningServer], tmp_path: Path
):
    """By its own scheme, whatever comes first; the log and the run file tell of all."""
    key, certificate = Authority(tmp_path).issue("app.example.com")
    listen = [
        "haproxy:tcp:0:interface=127.0.0.1",
        f"unix:{tmp_path}/s",
        f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
        "tcp:0:interface=127.0.0.1",
    ]
    server = running_server(*(part for each in listen for part in ("--listen", each)))
    lines = [line.partition("listening on ")[2] for line in server.log.splitlines() if "zBifrost listening on" in line]
    told = [line.partition(" ")[0] for line in lines]
    patterns = (
        r"ws://127\.0\.0\.1:\d+",
        re.escape(f"unix:{tmp_path}/s"),
        r"wss://127\.0\.0\.1:\d+",
        r"ws://.* \(for a proxy .*\)",
    )
    assert len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines)), lines
    assert zcomm(server.home, "url", "--websocket").stdout == f"{told[0]}\n"
    assert zcomm(server.home, "url", "--url", told[2]).stdout.startswith(f"{told[0].replace('ws', 'http', 1)}/#code=")
    assert zcomm(server.home, "call", "ping").stdout == '"ping"\n'
    (running,) = running_servers(server.home / ".zolo" / "zcomm")
    assert running["listening"] == [{"url": url, "proxy_header": url == told[3]} for url in told]


def test_contact_a_server_behind_its_proxy_alone(tmp_path: Path):
    """Nobody is sent to an address that wants a header of a proxy's: what is missing is said instead."""
    behind = "ws://127.0.0.1:1"
    write_run_file(run_file(tmp_path, False), "", "", False, [{"url": behind, "proxy_header": True}])
    for words in (["url"], ["url", "--json"], ["url", "--url", behind], ["call", "ping"]):
        done = zcomm(tmp_path, *words, "--data-dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "") and "reached through its proxy only" in done.stderr


def test_url_without_a_page_or_a_token(running_server: Callable[..., RunningServer]):
    """What the server does not have is not in the link."""
    server = running_server("--no-auth", "--no-web")
    assert zcomm(server.home, "url").stdout == f"{server.url}\n"
    server.stop()
    server = running_server("--no-auth")
    assert zcomm(server.home, "url").stdout == f"{server.http_url}/\n"


@pytest.mark.parametrize(("words", "also"), [(["url"], ""), (["call", "ping"], ", or give its address with --url")])
def test_no_server(tmp_path: Path, words: list[str], also: str):
    """One line that says how to start one, and how to reach one that left no note there."""
    done = zcomm(tmp_path, *words)
    assert (done.returncode, done.stdout) == (1, "")
    start = "start one with: twistd -n zcomm, or name another --data-dir"
    assert done.stderr == f"zcomm: no server runs on this data directory; {start}{also}\n"


@pytest.mark.parametrize("words", [["url"], ["call", "ping"]])
def test_a_note_that_is_not_believed_is_named(tmp_path: Path, words: list[str]):
    """That no server runs would not be true."""
    path = run_file(tmp_path, True)
    write_run_file(path, "ws://127.0.0.1:1", "http://127.0.0.1:1/", True)
    path.chmod(0o602)
    done = zcomm(tmp_path, *words, "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{path}: it is not believed where a server listens" in done.stderr and "no server runs" not in done.stderr


def test_a_server_that_was_killed_is_none(running_server: Callable[..., RunningServer]):
    """The file it left behind does not count."""
    server = running_server()
    assert zcomm(server.home, "url").returncode == 0
    server.kill()
    assert zcomm(server.home, "url").returncode == 1


def test_call(server: RunningServer):
    """Results as JSON, errors on standard error with status 1."""
    created = zcomm(server.home, "call", "create_Users", '{"values": {"name": "Ümit", "email": "u@example.com"}}')
    assert created.returncode == 0, created.stderr
    row = json.loads(created.stdout)
    assert row["name"] == "Ümit" and "Ümit" in created.stdout
    assert json.loads(zcomm(server.home, "call", "read_Users", json.dumps({"where": {"id": row["id"]}})).stdout) == [
        row
    ]
    assert json.loads(zcomm(server.home, "call", "zFunc(calculateTotal, {cart_id: 123})").stdout)["total"] == 49.0
    assert zcomm(server.home, "call", "ping").stdout == '"ping"\n'
    assert zcomm(server.home, "call", "ping", "--url", server.url).stdout == '"ping"\n'
    wrong = zcomm(server.home, "call", "create_Users", '{"values": {"age": "old"}}')
    assert (wrong.returncode, wrong.stdout) == (1, "")
    first, *fields = wrong.stderr.splitlines()
    assert first.startswith("zcomm: invalid: ") and any(line.startswith("  age: ") for line in fields)


def test_call_with_a_token_of_ones_own(server: RunningServer, tmp_path: Path):
    """From a file; a wrong one is refused with the server's word, and never shown."""
    (tmp_path / "good").write_text(server.token + "\n")
    (tmp_path / "bad").write_text("zc_wrong_secret\n")
    assert zcomm(server.home, "call", "ping", "--token-file", str(tmp_path / "good")).stdout == '"ping"\n'
    refused = zcomm(server.home, "call", "ping", "--token-file", str(tmp_path / "bad"))
    assert refused.returncode == 1 and "1008: Invalid token" in refused.stderr and "secret" not in refused.stderr
    missing = zcomm(server.home, "call", "ping", "--token-file", str(tmp_path / "missing"))
    assert missing.returncode == 1 and "--token-file" in missing.stderr


def test_call_from_a_job(server: RunningServer, tmp_path: Path):
    """With an address and a token in the environment, by an account that has nothing of the server's; a file of a token
    counts before it."""
    (tmp_path / "bad").write_text("zc_wrong_secret\n")
    where = ("call", "ping", "--url", server.url)
    assert zcomm(tmp_path, *where, ZCOMM_TOKEN=f" {server.token}\n").stdout == '"ping"\n'
    for words, environ in ((where, {"ZCOMM_TOKEN": "wrong"}), ((*where, "--token-file", str(tmp_path / "bad")), {})):
        refused = zcomm(tmp_path, *words, **{"ZCOMM_TOKEN": server.token, **environ})
        assert refused.returncode == 1 and "1008: Invalid token" in refused.stderr


def test_call_without_authentication(running_server: Callable[..., RunningServer]):
    """No token is needed, and none is read."""
    server = running_server("--no-auth")
    assert not (server.home / ".zolo" / "zcomm" / "operator.json").exists()
    assert zcomm(server.home, "call", "ping", '"x"').stdout == '"x"\n'


def test_publish(server: RunningServer):
    """To whoever has subscribed, with a key once; where the message is, for people and for programs; and errors."""
    with BlockingRawClient(server.port, token=server.token) as client:
        client.call("zSubscribe", {"topic": "room:1"})
        done = zcomm(server.home, "publish", "room:1", '{"text": "hi"}')
        assert (done.returncode, done.stdout) == (0, "published to room:1: message 1\n"), done.stderr
        for _ in range(2):
            done = zcomm(server.home, "publish", "room:1", '"again"', "--key", "k-1", "--json")
            assert json.loads(done.stdout)["offset"] == 2
        messages = [client.next_json() for _ in range(2)]
    assert [(one["data"], one.get("key")) for one in messages] == [({"text": "hi"}, None), ("again", "k-1")]
    for words, status, reason in (
        (["room:1", "hello"], 1, """a text needs double quotes of its own: '"hello"'\n"""),
        (["room:1", ""], 1, "'' is not JSON"),
        (["a room", "1"], 1, "zcomm: invalid: topic: "),
        (["", "1"], 1, "zcomm: invalid: topic: "),
        (["room:1", "1", "--key", ""], 1, "_idempotencyKey"),
        (["room:1"], 2, "JSON"),
    ):
        done = zcomm(server.home, "publish", *words)
        assert done.returncode == status and reason in done.stderr and "Traceback" not in done.stderr, words


def test_publish_where_only_subscribers_do(running_server: Callable[..., RunningServer], tmp_path: Path):
    """A script is no subscriber: it is told which kinds it may publish to."""
    kinds = tmp_path / "topics.yaml"
    kinds.write_text('"room:{id}": {}\n"news:{id}": {publish: anybody}\n')
    server = running_server("--topics", str(kinds))
    refused = zcomm(server.home, "publish", "room:1", "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("zcomm: permission_denied: ") and "publish: anybody" in refused.stderr
    assert zcomm(server.home, "publish", "news:1", "1").stdout == "published to news:1\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["ping", "{not json"], "is not JSON"),
        (["ping", "hello there"], """a text needs double quotes of its own: '"hello there"'\n"""),
        (["ping", "{'a': 1}"], "names and texts are in double quotes"),
        (["ping", "NaN"], "there is no NaN in JSON"),
        (["ping", ""], "'' is not JSON"),
        (["ping", "[" * 100_000], "is not JSON"),
        (["ping", "--url", "http://127.0.0.1:1"], "not a WebSocket address"),
        (["ping", "--url", "ws://127.0.0.1:1"], "ws://127.0.0.1:1"),
        *[(["ping", f"--timeout={text}"], f"--timeout: {text} is no") for text in ("0", "-1", "nan", "inf")],
        (["ping", "--timeout", "soon"], "--timeout"),
    ],
)
def test_calls_that_cannot_be_made(server: RunningServer, words: list[str], reason: str):
    """One clear line, no traceback."""
    done = zcomm(server.home, "call", *words)
    assert done.returncode in (1, 2) and reason in done.stderr and "Traceback" not in done.stderr


def test_contact_b22_a_server_on_a_unix_socket(tmp_path: Path):
    """``zcomm url`` says where it is, with no page that nobody could open, and ``zcomm call`` reaches it there."""
    path = tmp_path / "socket"
    (tmp_path / "home").mkdir(mode=0o700)
    server = RunningServer(
        twistd_command("--listen", f"unix:{path}"), tmp_path / "home", clean_environ(tmp_path / "home")
    )
    try:
        server.wait_for_log(r"\] ready")
        assert "] page " not in server.log and "WARNING: 127" not in server.log
        assert zcomm(server.home, "url").stdout == f"unix:{path}\n"
        done = zcomm(server.home, "call", "ping", '"x"')
        assert done.stdout == '"x"\n', done.stderr
        assert zcomm(server.home, "call", "ping", "--url", f"unix:{path}").stdout == '"ping"\n'
    finally:
        assert server.stop() == 0
    missing = zcomm(server.home, "call", "ping", "--url", f"unix:{path}")
    assert missing.returncode == 1 and f"unix:{path}" in missing.stderr and "Traceback" not in missing.stderr
