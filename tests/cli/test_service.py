"""``zcomm service`` as people and scripts use it: one command after the other, real servers in between."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from support.localservers import copy_cluster, processes_in, words_of
from support.ports import unused_port
from support.preloaded import Preloaded
from support.waiting import wait_until_blocking
from twisted.internet.task import Clock

from zcomm.cli.progress_notice import ProgressNotice
from zcomm.cli.service import follow, status_rows
from zcomm.services.machine.account import blocked_by
from zcomm.services.machine.logfile import LogFile

CHECKOUT = Path(__file__).parents[2]
COMMAND = "import sys; from zcomm.cli import main; sys.exit(main())"
#: What tells a child that it is measured too.
COVERAGE = {name: value for name, value in os.environ.items() if name.startswith(("COVERAGE_", "COV_"))}


class Commands:
    """The commands of one user, with a data directory and ports of their own."""

    def __init__(self, home: Path):
        self.home = home
        self.python = sys.executable
        self.drop: dict[str, Any] = {}
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "ZCOMM_HOME": str(home),
            "POSTGRESQL_PORT": str(unused_port()),
            "REDIS_PORT": str(unused_port()),
            "PYTHONPATH": str(CHECKOUT),
            **COVERAGE,
        }

    def begin(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        return (subprocess.Popen if self.drop else Preloaded)(
            [self.python, "-c", COMMAND, *words],
            env={**self.environ, **more},
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **self.drop,
        )

    def run(self, *words: str, status: int | None = 0, **more: Any) -> subprocess.CompletedProcess[str]:
        running = self.begin(*words, **more)
        out, err = running.communicate(timeout=120)
        done = subprocess.CompletedProcess(words, running.returncode, out, err)
        if status is not None:
            assert done.returncode == status, (words, done.stdout, done.stderr)
        return done

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", status=status).stdout)


@pytest.fixture
def zcomm(place: Path) -> Commands:
    return Commands(place / "home")


@pytest.fixture
def with_cluster(zcomm: Commands, template: Path) -> Commands:
    """The same, with a cluster in reserve, so that no test waits for initdb."""
    copy_cluster(template, zcomm.home / "reserve" / template.name, None)
    return zcomm


def test_a_service_lives_on_between_commands(with_cluster: Commands):
    """start, status, url, restart, stop: each a process of its own, the servers outlive all but the last."""
    zcomm = with_cluster
    started = zcomm.run("service", "start", "postgresql", "redis")
    assert [line.split()[:3] for line in started.stdout.splitlines()[1:]] == [
        ["postgresql", "running", "healthy"],
        ["redis", "running", "healthy"],
    ]
    before = zcomm.json("service", "status")
    assert before["postgresql"]["port"] == int(zcomm.environ["POSTGRESQL_PORT"])
    assert before["redis"]["managed"] and psutil.pid_exists(before["redis"]["pid"])
    zcomm.run("service", "start", "postgresql", "redis")
    assert {name: one["pid"] for name, one in zcomm.json("service", "status").items()} == {
        name: one["pid"] for name, one in before.items()
    }
    after = zcomm.json("service", "restart", "postgresql")
    assert after["postgresql"]["pid"] != before["postgresql"]["pid"]
    assert after["postgresql"]["port"] == before["postgresql"]["port"]
    zcomm.run("service", "stop", "postgresql", "redis")
    assert zcomm.json("service", "status", "redis", status=1)["redis"]["state"] == "stopped"
    zcomm.run("service", "stop", "redis")
    assert processes_in(zcomm.home) == []


def test_the_url_connects(with_cluster: Commands):
    """psql and redis-cli connect with nothing but the URL, and only the URL shows a password."""
    zcomm = with_cluster
    shown = zcomm.run("service", "start", "postgresql", "redis")
    url = zcomm.run("service", "url", "postgresql").stdout.strip()
    if (psql := shutil.which("psql")) is not None:
        words = [psql, url, "-Atc", "select current_database()"]
        assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "zolo_dev\n"
    else:
        import psycopg

        with psycopg.connect(url) as connection:
            assert connection.execute("select current_database()").fetchone() == ("zolo_dev",)
    redis_url = zcomm.run("service", "url", "redis").stdout.strip()
    client = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if client is not None:
        words = [client, "-u", redis_url, "ping"]
        assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "PONG\n"
    for name in ("postgresql", "redis"):
        assert Path(zcomm.json("service", "url", name)["unix_socket"]).is_socket()
    secrets = [one.partition("@")[0].rpartition(":")[2] for one in (url, redis_url)]
    assert all(len(secret) > 20 for secret in secrets)
    told = [shown, zcomm.run("service", "status"), zcomm.run("service", "status", "--json")]
    told += [
        zcomm.run("service", "list"),
        zcomm.run("doctor", status=None),
        zcomm.run("service", "logs", "redis"),
    ]
    everything = "".join(one.stdout + one.stderr for one in told)
    everything += " ".join(" ".join(words_of(one.pid)) for one in processes_in(zcomm.home))
    assert not any(secret in everything for secret in secrets)
    zcomm.run("service", "stop", "postgresql", "redis")
    gone = zcomm.run("service", "url", "redis", status=1)
    assert gone.stdout.strip() == redis_url and "is not running; start it with" in gone.stderr


@pytest.mark.parametrize("name", ["redis", "postgresql"])
def test_a_directory_and_port_of_one_s_own_are_remembered(with_cluster: Commands, place: Path, name: str):
    """What a start was told holds for the commands after it: status, url, restart, another start."""
    zcomm, data, port = with_cluster, str(place / "own" / "data"), str(unused_port())
    (place / "own").mkdir(mode=0o711)
    zcomm.run("service", "start", name, "--port", port, "--service-dir", data)
    zcomm.run("service", "restart", name)
    status = zcomm.json("service", "status", name)[name]
    assert (status["port"], status["data_dir"], status["health"]) == (int(port), data, "healthy")
    url = zcomm.run("service", "url", name).stdout.strip()
    assert f":{port}/" in url
    if name == "postgresql":
        import psycopg

        psycopg.connect(url).close()
    zcomm.run("service", "start", name, "--port", port)
    moved = zcomm.run("service", "start", name, "--port", str(unused_port()), status=1)
    assert f"already runs, on port {port}" in moved.stderr and "zcomm service restart" in moved.stderr
    os.kill(status["pid"], signal.SIGSTOP)
    assert zcomm.json("service", "status", name)[name]["health"] == "unresponsive"
    zcomm.run("service", "stop", name)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("service",), 2, "ACTION"),
        (("service", "begin"), 2, "invalid choice"),
        (("service", "start"), 2, "NAME"),
        (("service", "url"), 2, "NAME"),
        (("service", "start", "redis", "--port", "70000"), 2, "70000' is not a port"),
        (("service", "start", "redis", "--port", "0"), 2, "is not a port"),
        (("service", "start", "redis", "--port", "x"), 2, "is not a port"),
        (("service", "logs", "redis", "-n", "-1"), 2, "-n"),
        (("service", "start", "../x"), 1, "../x: there is no service of that name; the services are"),
        (("service", "status", "nothing"), 1, "there is no service of that name"),
        (("service", "url", "nothing"), 1, "there is no service of that name"),
        (("service", "logs", "nothing"), 1, "there is no service of that name"),
        (("service", "logs", "redis"), 1, "has no log yet"),
        (("service", "start", "redis", "--service-dir", "data"), 1, "must be an absolute path"),
        (("service", "start", "redis", "--service-dir", "~/data"), 1, "must be an absolute path"),
        (("service", "start", "redis", "--user", "no-such-user-here"), 1, "no account"),
        (("service", "start", "redis", "--database", "x"), 1, "redis has no such setting"),
        (("service", "start", "postgresql", "--appendonly"), 1, "postgresql has no such setting"),
        (("service", "start", "redis", "--appendfsync", "no"), 2, "invalid choice"),
        (("service", "start", "postgresql", "--password", "x"), 2, "unrecognized arguments"),
        (("service", "start", "redis", "--bin-dir", "/nonexistent"), 1, "pip install 'zcomm[services]'"),
        (("service", "start", "redis", "--services", "/nonexistent.yaml"), 1, "cannot be read"),
    ],
)
def test_bad_usage_is_one_line_and_starts_nothing(zcomm: Commands, words, status, text):
    """Status 2 for what cannot be meant, 1 for what cannot be done; no traceback, no process."""
    done = zcomm.run(*words, status=status)
    assert text in done.stderr and "Traceback" not in done.stderr
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1
    assert processes_in(zcomm.home) == []


def test_the_settings_of_a_kind_are_options(zcomm: Commands):
    """A start and a restart take them; what is not given again falls back to its default."""
    shown = zcomm.run("service", "start", "redis", "--appendfsync", "always", "--no-appendonly")
    assert "healthy" in shown.stdout

    def written() -> dict[str, str]:
        text = next(zcomm.home.rglob("redis.conf")).read_text("utf-8")
        return dict(line.split(" ", 1) for line in text.splitlines() if line.startswith("append"))

    assert {name: value.strip('"') for name, value in written().items()} == {
        "appendonly": "no",
        "appendfsync": "always",
    }
    zcomm.run("service", "restart", "redis", "--no-appendonly")
    assert {name: value.strip('"') for name, value in written().items()} == {
        "appendonly": "no",
        "appendfsync": "everysec",
    }
    zcomm.run("service", "stop", "redis")


def test_a_failure_is_told_to_programs_too(zcomm: Commands):
    """With --json the error and its fix stand beside the status."""
    told = zcomm.json("service", "start", "redis", "--service-dir", "data", status=1)["redis"]
    assert not told["running"] and "must be an absolute path" in told["error"]
    assert told["fix"] == "write /full/path/data"


def test_a_stranger_on_the_port_is_named_and_never_ours(zcomm: Commands):
    """start fails and names it, status does not call it running; with --port auto ours starts beside it."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = str(stranger.getsockname()[1])
        taken = zcomm.run("service", "start", "redis", REDIS_PORT=port, status=1)
        assert f"port {port} is in use by" in taken.stderr and f"pid {os.getpid()}" in taken.stderr
        assert zcomm.run("service", "status", "redis", REDIS_PORT=port, status=1).stdout.split()[-2:] != ["running"]
        zcomm.run("service", "start", "redis", "--port", "auto", REDIS_PORT=port)
        assert zcomm.json("service", "status", "redis")["redis"]["port"] != int(port)
        zcomm.run("service", "stop", "redis")


def test_another_redis_is_reported_and_left_alone(zcomm: Commands, place: Path):
    """It runs, but is not managed: no URL of ours leads to it, and stop does not touch it."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("no redis-server on the PATH")
    words = [server, "--port", zcomm.environ["REDIS_PORT"], "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL) as other:
        try:
            wait_until_blocking(lambda: zcomm.json("service", "status")["redis"]["running"], "the other Redis")
            told = zcomm.json("service", "status", "redis")["redis"]
            assert told["managed"] is False and told["pid"] == other.pid
            assert "running (not by zComm)" in zcomm.run("service", "status").stdout
            refused = zcomm.run("service", "url", "redis", status=1)
            assert refused.stdout == "" and "not one that zComm started" in refused.stderr
            zcomm.run("service", "stop", "redis", status=None)
            assert other.poll() is None
        finally:
            other.kill()


@pytest_twisted.ensureDeferred
async def test_what_a_running_zcomm_has_is_shown_and_stopped_only_there(zcomm: Commands, make_manager):
    """Another process sees it and gets its URL, but may not stop it."""
    from twisted.internet.threads import deferToThread

    manager = make_manager(home=zcomm.home, environ=zcomm.environ)
    await manager.start("redis")
    pid = (await manager.status("redis"))["pid"]
    seen = await deferToThread(zcomm.json, "service", "status", "redis")
    assert seen["redis"]["running"] and seen["redis"]["pid"] == pid
    url = await deferToThread(zcomm.run, "service", "url", "redis")
    assert url.stdout.strip() == manager.connection_info("redis")["connection_string"]
    for action in ("stop", "restart"):
        refused = await deferToThread(zcomm.run, "service", action, "redis", status=1)
        assert "another zComm" in refused.stderr
    assert (await manager.status("redis"))["pid"] == pid
    await manager.stop("redis")


def test_contact_a_redis_with_another_password_by_now_is_stopped_and_started_anew(zcomm: Commands, place: Path):
    """It is known by its process and by where it stands. A start leaves it running, and says what to do."""
    zcomm.run("service", "start", "redis")
    url = zcomm.run("service", "url", "redis").stdout.strip()
    redis = ["redis-cli", "--no-auth-warning", "-u"]
    for words in (["set", "kept", "1"], ["config", "set", "requirepass", "other"]):
        subprocess.run([*redis, url, *words], check=True, stdout=subprocess.DEVNULL, timeout=30)
    pid = zcomm.json("service", "status", "redis")["redis"]["pid"]
    refused = zcomm.run("service", "start", "redis", status=1).stderr
    assert f"it runs (pid {pid}), and lets zComm in no more: NOAUTH" in refused and "service restart redis" in refused
    told = zcomm.json("service", "status", "redis")["redis"]
    assert (told["pid"], told["health"], told["managed"]) == (pid, "degraded", True)
    assert "NOAUTH" in told["reason"] and "service restart redis" in told["fix"]
    zcomm.run("service", "restart", "redis")
    kept = subprocess.run([*redis, url, "get", "kept"], check=True, stdout=subprocess.PIPE, text=True, timeout=30)
    assert kept.stdout == "1\n"
    # Somebody who may log in and do nothing else.
    words = [*redis, url, "acl", "setuser", "default", "-@all"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=30)
    zcomm.run("service", "stop", "redis")
    wait_until_blocking(lambda: processes_in(place) == [], "the end of the server")


SLOW = """
import socket, sys, threading
threading.Event().wait(float(sys.argv[1]))
listening = socket.create_server(("127.0.0.1", int(sys.argv[2])))
print("listening", flush=True)
threading.Event().wait()
"""


def slow_service(place: Path, seconds: float) -> str:
    """A file with a service that listens after some seconds."""
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no Python that every account may run")
    (place / "slow.py").write_text(SLOW)
    (place / "slow.py").chmod(0o644)
    words = ["/usr/bin/python3", str(place / "slow.py"), str(seconds), "{port}"]
    path = place / "services.yaml"
    path.write_text(json.dumps({"slow": {"argv": words, "port": unused_port(), "ready": "tcp"}}))
    return str(path)


def test_a_slow_start_says_what_it_waits_for(zcomm: Commands, place: Path):
    """After a second there is a line on the error stream, none before; the table stays clean."""
    file = slow_service(place, 1.7)
    started = zcomm.run("service", "start", "slow", "--services", file)
    assert "slow: " in started.stderr and "slow" in started.stdout
    assert zcomm.run("service", "start", "slow", "--services", file).stderr == ""
    assert "listening" in zcomm.run("service", "logs", "slow", "--services", file).stdout
    zcomm.run("service", "stop", "slow", "--services", file)


def test_ctrl_c_ends_a_start_and_leaves_nothing(zcomm: Commands, place: Path):
    """Interrupted while it waits: status 130, and the server that was not ready is gone."""
    file = slow_service(place, 600)
    running = zcomm.begin("service", "start", "slow", "--services", file)
    wait_until_blocking(lambda: len(processes_in(place)) > 1, "the slow service")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in err, err
    assert processes_in(place) == []


def test_a_log_is_followed_over_its_rotation(zcomm: Commands):
    """What is written later is printed, also after the file was cut."""
    zcomm.run("service", "start", "redis")
    log = zcomm.home / "log" / "redis.log"
    assert len(zcomm.run("service", "logs", "redis", "-n", "2").stdout.splitlines()) == 2
    assert zcomm.json("service", "logs", "redis", "-n", "1")["path"] == str(log)
    running = zcomm.begin("service", "logs", "redis", "-n", "1", "--follow")
    try:
        assert running.stdout.readline()
        for cut in (False, True, False):
            if cut:
                os.truncate(log, 0)
            with open(log, "a") as file:
                file.write(f"a new line {cut}\n")
            assert running.stdout.readline() == f"a new line {cut}\n"
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    zcomm.run("service", "stop", "redis")


def test_following_stops_after_its_turns(tmp_path: Path):
    """With a number of turns it returns; an empty or missing log has nothing to say."""
    out = io.StringIO()
    follow(LogFile(tmp_path / "none.log"), out, 0, turns=2)
    assert out.getvalue() == ""


def ordinary_python() -> str | None:
    """An interpreter of this version that any account may run."""
    if blocked_by(Path(sys.executable), 65534, ()) is None:
        return sys.executable
    other = Path("/usr/bin/python3")
    if not other.exists() or blocked_by(other, 65534, ()) is not None:
        return None
    version = subprocess.run(
        [other, "-c", "import sys; print(*sys.version_info[:2])"], check=True, capture_output=True, text=True
    ).stdout.split()
    return str(other) if tuple(map(int, version)) == sys.version_info[:2] else None


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all of these tests as one")
def test_an_ordinary_user_does_the_same(place: Path):
    """Without any privilege: start, URL, doctor, stop, with everything in the user's own directory."""
    python = ordinary_python()
    packages = Path(psutil.__file__).parents[1]
    if python is None or blocked_by(packages, 65534, ()) is not None or blocked_by(CHECKOUT, 65534, ()) is not None:
        pytest.skip("nobody may not run this installation")
    home = place / "nobody"
    home.mkdir(mode=0o700)
    os.chown(home, 65534, 65534)
    zcomm = Commands(home / "zcomm")
    zcomm.python, zcomm.drop = python, {"user": 65534, "group": 65534, "extra_groups": []}
    zcomm.environ |= {"PYTHONPATH": f"{packages}:{CHECKOUT}", "HOME": str(home)}
    zcomm.run("service", "start", "postgresql", "redis")
    status = zcomm.json("service", "status")
    assert [status[name]["user"] for name in ("postgresql", "redis")] == ["nobody", "nobody"]
    import psycopg

    with psycopg.connect(zcomm.run("service", "url", "postgresql").stdout.strip()) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert all(str(home) not in json.dumps(one) for one in zcomm_findings(zcomm))
    assert {os.stat(path).st_uid for path in home.rglob("*")} == {65534}
    zcomm.run("service", "stop", "postgresql", "redis")


def zcomm_findings(zcomm: Commands) -> list[Mapping[str, Any]]:
    """What doctor finds; other servers of this machine may be in trouble of their own."""
    return json.loads(zcomm.run("doctor", "--json", status=None).stdout)["findings"]


def test_doctor_finds_what_keeps_a_service_from_starting(zcomm: Commands):
    """A directory everybody may write: the finding's own command mends it, and the service starts again."""
    zcomm.run("service", "start", "redis")
    data = Path(zcomm.json("service", "status", "redis")["redis"]["data_dir"])
    zcomm.run("service", "stop", "redis")
    assert not [one for one in zcomm_findings(zcomm) if str(data) in json.dumps(one)]
    data.chmod(0o777)
    assert "has the mode 0777" in zcomm.run("service", "start", "redis", status=1).stderr
    finding = next(one for one in zcomm_findings(zcomm) if "has the mode 0777" in one["problem"])
    report = zcomm.run("doctor", status=1).stdout
    assert finding["problem"] in report and f"fix: {finding['fix']}" in report
    subprocess.run(finding["fix"].removeprefix("run: ").split(), check=True)
    zcomm.run("service", "start", "redis")
    zcomm.run("service", "stop", "redis")


class Waiting:
    """A manager of one service whose progress is given."""

    def __init__(self) -> None:
        self.progress = ""

    def get(self, name: str) -> Waiting:
        return self


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (io.StringIO, "a: making\na: starting\n"),
        (Terminal, "\r\x1b[Ka: making (1 s)\r\x1b[Ka: starting (1 s)\r\x1b[Ka: starting (2 s)\r\x1b[K"),
    ],
)
def test_patience_is_told_once_on_paper_and_over_and_over_on_a_terminal(
    stream: Callable[[], io.StringIO], expected: str
):
    """Nothing in the first second; then each new thing, on a terminal in one line that is left empty."""
    clock, out, manager = Clock(), stream(), Waiting()
    notice = ProgressNotice(manager, ["a"], clock, out)
    manager.progress = "preparing"
    clock.pump([0.2] * 4)
    assert out.getvalue() == ""
    for manager.progress in ("", "making", "starting", "starting"):
        clock.advance(0.2)
    notice.stop()
    assert out.getvalue() == expected and not clock.getDelayedCalls()


def test_the_table_says_who_manages():
    """A server of others is marked, one that does not run has no health."""
    base = {
        "state": "running",
        "managed": True,
        "running": True,
        "health": "healthy",
        "pid": 1,
        "port": 2,
        "uptime": "1s",
        "version": "15",
        "user": "pg",
    }
    rows = status_rows(
        {
            "a": base,
            "b": {**base, "managed": False},
            "c": {**base, "running": False, "state": "stopped", "pid": None, "port": None, "uptime": None},
        }
    )
    assert rows == [
        ("a", "running", "healthy", "1", "2", "1s", "15", "pg"),
        ("b", "running (not by zComm)", "healthy", "1", "2", "1s", "15", "pg"),
        ("c", "stopped", "", "", "", "", "15", "pg"),
    ]


def test_a_damaged_file_of_services_is_named(place: Path, zcomm: Commands):
    """Not UTF-8, not YAML, not a mapping: one line with the file's name."""
    path = place / "bad.yaml"
    for content in (b"\xff\xfe", b"a: [", b"- 1"):
        path.write_bytes(content)
        done = zcomm.run("service", "list", "--services", str(path), status=1)
        assert "bad.yaml" in done.stderr and len(done.stderr.splitlines()) == 1
    done = zcomm.run("service", "list", "--services", str(place / "none.yaml"), status=1)
    assert "none.yaml cannot be read" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error_to_report(zcomm: Commands):
    """zcomm … | head: no traceback, whatever was left to print."""
    running = zcomm.begin("service", "list", "--json")
    running.stdout.close()
    assert "Traceback" not in running.stderr.read() and running.wait() in (0, 1)
    running.stderr.close()


def test_contact_too_few_open_files_are_told_as_that(place: Path):
    """The system's own words would lead astray; the number that zComm may have open is what is to be raised."""
    words = [sys.executable, "-c", COMMAND, "service", "start", "postgresql"]
    environ = Commands(place / "home").environ
    for number in (24, 40):
        limited = ["sh", "-c", f'ulimit -n {number} && exec "$@"', "sh", *words]
        done = subprocess.run(limited, env=environ, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "file descriptor" in done.stderr and "Bad file" not in done.stderr
        assert "more open files: ulimit -n 1024" in done.stderr
