"""Catalogue groups G and K on a real process: signals, a clock that jumps, an output nobody reads, a stop."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.ports import unused_port
from support.rawclient import BlockingRawClient, Opcode, build_frame
from support.serverprocess import (
    CHECKOUT,
    LISTENING,
    RunningServer,
    clean_environ,
    scripts,
    start_server,
    twistd_command,
)
from support.waiting import DEADLINE, wait_until_blocking

from zcomm.auth.tokens import TokenStore

pytestmark = pytest.mark.child

Start = Callable[..., RunningServer]


def launch(
    directory: Path, *options: str, reactor: str = "default", environ: dict[str, str] | None = None
) -> RunningServer:
    """A server on that reactor, listening; the caller ends it."""
    home = directory / "home"
    home.mkdir(exist_ok=True)
    chosen = [] if reactor == "default" else [f"--reactor={reactor}"]
    command = [
        sys.executable,
        str(scripts() / "twistd"),
        *chosen,
        "--nodaemon",
        "--pidfile=",
        "zcomm",
        "--port",
        "0",
        *options,
    ]
    # An environment of its own is for what Python reads when it begins.
    server = RunningServer(command, home, environ or clean_environ(home, measured=True), preloaded=environ is None)
    try:
        server.port = int(server.wait_for_log(LISTENING)[2])
    except BaseException:
        server.kill()
        raise
    return server


REACTORS = pytest.mark.parametrize("reactor", ["default", "epoll"])


def answers(server: RunningServer, token: str | None = None) -> bool:
    with BlockingRawClient(server.port, token=token or server.token) as client:
        return client.call("ping", 1)["result"] == 1


def refuses(server: RunningServer) -> bool:
    try:
        BlockingRawClient(server.port, None).socket.close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture
def clients() -> Iterator[list[BlockingRawClient]]:
    """Those in the list are closed after the test."""
    made: list[BlockingRawClient] = []
    yield made
    for client in made:
        client.socket.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_g1_everybody_is_told_goodbye(running_server: Start, clients: list, number: int):
    """With a thousand idle clients: 1001 to each, nobody new, exit status 0."""
    server = running_server()
    clients += [BlockingRawClient(server.port, token=server.token) for _ in range(1000)]
    server.signal(number)
    for client in clients:
        frame = client.next_close()
        assert (frame.close_code, frame.close_reason) == (1001, "Server is shutting down")
        client.send_close(1001)
    assert server.wait() == 0, server.log
    with pytest.raises(ConnectionRefusedError):
        BlockingRawClient(server.port, None)
    assert "Traceback" not in server.log


def test_g2_stalled_clients_do_not_delay_the_end(running_server: Start, clients: list, tmp_path: Path):
    """A hundred take nothing, some have said nothing, a hundred commands run: the stop takes the shutdown time at most,
    and ends well."""
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "pipe")
    (home / "waiting_functions.py").write_text(
        "from zcomm import function\n\n\n@function\ndef wait():\n    return open('pipe').read()\n"
    )
    server = running_server("--shutdown-timeout", "0.5", "--functions", "waiting_functions", home=home)
    authors = [BlockingRawClient(server.port, token=server.token) for _ in range(5)]
    slow = [BlockingRawClient(server.port, token=server.token, receive_buffer=2048) for _ in range(100)]
    clients += [*authors, *slow, *(BlockingRawClient(server.port, None) for _ in range(20))]
    for author in authors:
        for _ in range(20):
            author.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(wait)"})
        assert author.call("ping", 1)["result"] == 1
    large = build_frame(Opcode.TEXT, json.dumps({"zKey": "ping", "zHorizontal": "x" * 100_000}).encode())
    for client in slow:
        client.socket.setblocking(False)
        try:
            for _ in range(40):
                client.socket.send(large)
        except BlockingIOError:
            pass
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.log
    assert "Traceback" not in server.log


def test_g3_a_second_interrupt_ends_at_once(running_server: Start, tmp_path: Path):
    """The first waits for a function that does not end; the second does not."""
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "pipe")
    (home / "waiting_functions.py").write_text(
        "from zcomm import function\n\n\n@function\ndef wait():\n    return open('pipe').read()\n"
    )
    server = running_server("--shutdown-timeout", "3600", "--functions", "waiting_functions", home=home)
    with BlockingRawClient(server.port, token=server.token) as client:
        client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(wait)", "_requestId": 1})
        assert client.call("ping", 1)["result"] == 1
        server.signal(signal.SIGINT)
        wait_until_blocking(lambda: refuses(server), "the end of listening")
        server.signal(signal.SIGINT)
        assert server.wait() == 130


def test_g2_a_function_that_does_not_end_keeps_nobody(running_server: Start, tmp_path: Path):
    """The shutdown timeout holds for running functions too."""
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "pipe")
    (home / "waiting_functions.py").write_text(
        "from zcomm import function\n\n\n@function\ndef wait():\n    return open('pipe').read()\n"
    )
    server = running_server("--shutdown-timeout", "0.5", "--functions", "waiting_functions", home=home)
    with BlockingRawClient(server.port, token=server.token) as client:
        client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(wait)", "_requestId": 1})
        assert client.call("ping", 1)["result"] == 1
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "did not end in time" in server.log


def test_g4_other_signals_do_no_harm(running_server: Start):
    """A storm of them, with a client connected all the while."""
    server = running_server()
    with BlockingRawClient(server.port, token=server.token) as client:
        for _ in range(50):
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH):
                server.signal(number)
            assert client.call("ping", 1)["result"] == 1
    server.wait_for_log("the policy and the tokens were read anew")
    server.wait_for_log("the log was opened anew")
    assert "Traceback" not in server.log


def test_g4_signals_while_it_starts(running_server: Start, tmp_path: Path):
    """They end no server that listens already, and are followed as soon as it runs."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "early_signals.py").write_text(
        "import os, signal\n"
        "from twisted.logger import globalLogPublisher\n"
        "from zcomm import function\n"
        "@function\n"
        "def nothing(): pass\n"
        "def listens(event):\n"
        "    if 'listening on' in (event.get('log_format') or ''):\n"
        "        for number in (signal.SIGHUP, signal.SIGUSR1):\n"
        "            os.kill(os.getpid(), number)\n"
        "globalLogPublisher.addObserver(listens)\n"
    )
    server = running_server("--functions", "early_signals", home=home)
    server.wait_for_log("the policy and the tokens were read anew")
    server.wait_for_log("the log was opened anew")
    with BlockingRawClient(server.port, token=server.token) as client:
        assert client.call("ping", 1)["result"] == 1
    assert "Traceback" not in server.log


def test_g4_a_hang_up_while_it_stops(running_server: Start, tmp_path: Path):
    """Nothing is read anew any more, and nothing is said to have failed."""
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "pipe")
    (home / "waiting_functions.py").write_text(
        "from zcomm import function\n\n\n@function\ndef wait():\n    return open('pipe').read()\n"
    )
    server = running_server("--shutdown-timeout", "2", "--functions", "waiting_functions", home=home)
    with BlockingRawClient(server.port, token=server.token) as client:
        client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(wait)", "_requestId": 1})
        assert client.call("ping", 1)["result"] == 1
        server.signal(signal.SIGTERM)
        wait_until_blocking(lambda: refuses(server), "the end of listening")
        server.signal(signal.SIGHUP)
        server.wait_for_log("nothing is read anew: it stops")
        assert server.wait() == 0
    assert "were read anew" not in server.log and "Traceback" not in server.log


def test_g4_signals_that_come_last(running_server: Start, tmp_path: Path):
    """They are ignored once all is stopped: while Python clears up, others would make a failure of an orderly end."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "last_signals.py").write_text(
        "import atexit, os, signal\n"
        "from zcomm import function\n"
        "@function\n"
        "def nothing(): pass\n"
        "def look():\n"
        "    for name in ('SIGHUP', 'SIGUSR1', 'SIGTERM'):\n"
        "        os.write(2, f'{name}: {signal.getsignal(getattr(signal, name))!r}\\n'.encode())\n"
        "atexit.register(look)\n"
    )
    server = running_server("--functions", "last_signals", home=home)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    for name in ("SIGHUP", "SIGUSR1", "SIGTERM"):
        assert f"{name}: <Handlers.SIG_IGN: 1>" in server.log


def test_g4_a_hang_up_takes_the_new_policy(running_server: Start, tmp_path: Path):
    """Those who are connected stay and go by it from then on; one that cannot be used is not taken."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("admin: {models: {Users: [read]}}\n")
    server = running_server("--policy", str(policy))
    create = {"values": {"name": "Ann", "email": "ann@example.com"}}
    with BlockingRawClient(server.port, token=server.token) as client:
        assert client.call("create_Users", create)["code"] == "permission_denied"
        policy.write_text("admin: {models: {Users: [read, create]}}\n")
        assert client.call("create_Users", create)["code"] == "permission_denied"
        server.signal(signal.SIGHUP)
        server.wait_for_log("the policy and the tokens were read anew")
        assert client.call("create_Users", create)["result"]["name"] == "Ann"
        policy.write_text("admin: [nonsense\n")
        server.signal(signal.SIGHUP)
        server.wait_for_log("not reloaded, what was read before still holds")
        assert len(client.call("read_Users", {})["result"]) == 1
        assert client.call("delete_Users", {"where": {"id": 1}})["code"] == "permission_denied"
    assert "Traceback" not in server.log


def test_contact_c_roles_of_tokens_that_the_policy_does_not_name_are_warned_of(running_server: Start, tmp_path: Path):
    """At the start and at a hang-up, with the nearest role; each role once, and none that the policy names."""
    policy, home = tmp_path / "policy.yaml", tmp_path / "home"
    policy.write_text("admin: {models: {Users: [read]}}\neditor: {models: {Users: [read]}}\n")
    tokens = TokenStore(home / "tokens.json")
    for user, role in (("ann", "edittor"), ("bob", "edittor"), ("cid", "editor"), ("dan", "boss")):
        tokens.add(user, role)
    server = running_server("--policy", str(policy), "--data-dir", str(home))
    unknown = "WARNING: the policy names no role '{}', which the token of '{}' has"
    assert server.log.count("WARNING: the policy names no role") == 2, server.log
    assert unknown.format("edittor", "ann") + ': it may do nothing; did you mean "editor"?' in server.log
    assert unknown.format("boss", "dan") + ": it may do nothing" in server.log
    policy.write_text("admin: {models: {Users: [read]}}\nedittor: {models: {Users: [read]}}\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log(unknown.format("editor", "cid"))
    server.wait_for_log("the policy and the tokens were read anew")
    assert server.log.count(unknown.format("edittor", "ann")) == 1


def test_g4_the_log_is_opened_anew(tmp_path: Path, clients: list):
    """After a rotator has moved the file, what follows goes to a new one of the old name, or on as before while there
    can be none."""
    logs, home = tmp_path / "logs", tmp_path / "home"
    log = logs / "zcomm.log"
    logs.mkdir()
    home.mkdir()
    command = [
        sys.executable,
        str(scripts() / "twistd"),
        "--nodaemon",
        "--pidfile=",
        f"--logfile={log}",
        "zcomm",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=clean_environ(home), stdin=subprocess.DEVNULL)
    try:
        wait_until_blocking(lambda: log.exists() and "ready" in log.read_text(), "the start")
        port = int(LISTENING.search(log.read_text())[2])
        log.rename(logs / "moved.log")
        process.send_signal(signal.SIGUSR1)
        wait_until_blocking(lambda: log.exists() and "opened anew" in log.read_text(), "the new file")
        clients.append(BlockingRawClient(port))
        wait_until_blocking(lambda: "Authentication required" in log.read_text(), "a line in the new file")
        assert "Authentication required" not in (logs / "moved.log").read_text()
        # Where it cannot be opened, what is logged stays where it is, until it can.
        away, failed = tmp_path / "away", "the log goes on where it was: No such file"
        for _ in range(2):
            logs.rename(away)
            process.send_signal(signal.SIGUSR1)
            wait_until_blocking(lambda: failed in (away / log.name).read_text(), "the error")
            os.truncate(away / log.name, 0)
            process.send_signal(signal.SIGHUP)
            wait_until_blocking(lambda: "were read anew" in (away / log.name).read_text(), "a line in it")
            assert "\0" not in (away / log.name).read_text()
            away.rename(logs)
            log.rename(logs / "once more.log")
            process.send_signal(signal.SIGUSR1)
            wait_until_blocking(lambda: log.exists() and "opened anew" in log.read_text(), "the new file")
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0


@REACTORS
def test_g5_a_process_that_was_stopped_drops_nobody_who_answered(tmp_path: Path, reactor: str):
    """The answer to a ping arrived while the process did not run: it is read before anybody is called dead.

    A second at a ping interval of 0.4: two and a half intervals, as thirty seconds are one and a half of the default.
    """
    server = launch(tmp_path, "--ping-interval", "0.4", reactor=reactor)
    try:
        with BlockingRawClient(server.port, token=server.token) as client:
            for _ in range(3):
                ping = client.next()
                assert ping.opcode == Opcode.PING
                server.signal(signal.SIGSTOP)
                client.send_frame(Opcode.PONG, ping.payload)
                until = time.monotonic() + 1.0
                wait_until_blocking(lambda until=until: time.monotonic() > until, "a second to pass")
                server.signal(signal.SIGCONT)
            assert client.call("ping", 1)["result"] == 1
    finally:
        assert server.stop() == 0, server.log


FAILING = """
from zcomm import function

@function
def fail():
    raise RuntimeError("x" * 2000)
"""


def test_g6_nobody_reads_the_output(tmp_path: Path, clients: list):
    """The pipe is full, hundreds of tracebacks later: commands are answered, the stop works."""
    home, modules = tmp_path / "home", tmp_path / "modules"
    home.mkdir()
    modules.mkdir()
    (modules / "failing.py").write_text(FAILING)
    environ = clean_environ(home)
    environ["PYTHONPATH"] += f"{os.pathsep}{modules}"
    port = unused_port()
    command = [
        sys.executable,
        str(scripts() / "twistd"),
        "--nodaemon",
        "--pidfile=",
        "zcomm",
        "--port",
        str(port),
        "--functions",
        "failing",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        operator = home / ".zolo" / "zcomm" / "operator.json"

        def listening() -> BlockingRawClient | None:
            try:
                return BlockingRawClient(port, token=json.loads(operator.read_text())["token"])
            except (OSError, ValueError):
                return None

        client = wait_until_blocking(listening, "the start")
        clients.append(client)
        # Far more than a pipe holds (64 KiB), and more than waits for it (1 MiB).
        for _ in range(600):
            assert client.call("zFunc", "zFunc(fail)")["code"] == "internal"
        assert client.call("ping", "alive")["result"] == "alive"
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0
        process.stdout.close()


def test_g7_the_port_is_free_at_once(tmp_path: Path):
    """A restart binds although connections of before are still closing; while it is taken, one line says so."""
    first = start_server(home=tmp_path / "home")
    try:
        for _ in range(5):
            assert answers(first)
        second = RunningServer(
            [
                sys.executable,
                str(scripts() / "twistd"),
                "--nodaemon",
                "--pidfile=",
                "zcomm",
                "--port",
                str(first.port),
                "--data-dir",
                str(tmp_path / "other"),
            ],
            tmp_path,
            clean_environ(tmp_path / "home"),
        )
        assert second.wait() == 1
        second.process.stdout.close()
        assert f"port {first.port}" in second.log and "Traceback" not in second.log
    finally:
        first.stop()
    again = start_server("--port", str(first.port), home=tmp_path / "home")
    try:
        assert answers(again)
    finally:
        again.stop()


JUMPING = """
import os, time

_time = time.time

def shifted():
    try:
        with open(os.environ["CLOCK_OFFSET"]) as file:
            return _time() + float(file.read() or 0)
    except OSError:
        return _time()

time.time = shifted
"""


@pytest.mark.parametrize(
    ("reactor", "offset"),
    [
        pytest.param("default", 3600.0, id="K1-hour-default"),
        pytest.param("default", -3600.0, id="K2-back-default"),
        pytest.param("epoll", 86400.0, id="K1-day-epoll"),
        pytest.param("epoll", -3600.0, id="K2-back-epoll"),
    ],
)
def test_the_wall_clock_jumps(tmp_path: Path, reactor: str, offset: float):
    """Nobody is dropped, pings go on at their interval, timeouts still fire, on either reactor."""
    site, clock = tmp_path / "site", tmp_path / "offset"
    site.mkdir()
    (site / "sitecustomize.py").write_text(JUMPING)
    environ = clean_environ(tmp_path / "home", {"CLOCK_OFFSET": str(clock)})
    environ["PYTHONPATH"] = f"{site}{os.pathsep}{environ['PYTHONPATH']}"
    server = launch(tmp_path, "--ping-interval", "0.3", "--handshake-timeout", "0.5", reactor=reactor, environ=environ)
    try:
        with BlockingRawClient(server.port, token=server.token) as client:
            client.call("ping")
            clock.write_text(str(offset))
            began = time.monotonic()
            for _ in range(4):
                while (frame := client.next()).opcode != Opcode.PING:
                    pass
                client.send_frame(Opcode.PONG, frame.payload)
            assert time.monotonic() - began < DEADLINE / 2
            with BlockingRawClient(server.port, None) as silent:
                # The first goes on being heard meanwhile: who answers no ping is dropped for that.
                while not select.select([silent.socket], [], [], 0)[0]:
                    assert client.call("ping", 1)["result"] == 1
                silent.wait_ended()
            assert client.call("ping", 1)["result"] == 1
        assert "Traceback" not in server.log
    finally:
        assert server.stop() == 0, server.log


#: Ends the daemon without a word, after twistd has started it and before it is ready.
KILLED = """\
import os
import signal

from twisted.internet import reactor

from zcomm import function


@function
def nothing():
    pass


reactor.callWhenRunning(lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_contact_a_daemon_that_cannot_start_says_so_to_its_starter(tmp_path: Path):
    """One line on the terminal and status 1, for a failure before and after twistd's own end of the start, and for a
    daemon that is killed; no pid file stays where it was in its hands. In the foreground it is the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{tmp_path}/s")
        other.listen()
        port = str(taken.getsockname()[1])
        line = re.escape(f"zcomm: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with ")
        database = f"sqlite:///{tmp_path}"
        (tmp_path / "killed.py").write_text(KILLED)
        rows: dict[str, tuple[list[str], list[str], str]] = {
            "taken": ([], ["-p", port], line + ".*"),
            "foreground": (["-n", "--logfile=-"], ["-p", port], "(?s:.*)" + line + ".*"),
            "socket": (
                [],
                ["--listen", f"unix:{tmp_path}/s"],
                re.escape(f"zcomm: cannot listen on {tmp_path}/s: Address already in use; stop the server there, or ")
                + ".*",
            ),
            "directory": (
                [],
                ["--listen", f"unix:{tmp_path}/none/s"],
                re.escape(
                    f"zcomm: cannot listen on {tmp_path}/none/s: No such file or directory; name another path with "
                )
                + "--listen",
            ),
            "database": ([], ["-p", "0", "--database", database], f"zcomm: .*{re.escape(str(tmp_path))}.*"),
            "killed": ([], ["-p", "0", "--functions", "killed"], "zcomm: the start failed; the log says why"),
        }
        for name, (of_twistd, options, said) in rows.items():
            home = tmp_path / name
            home.mkdir()
            of_twistd = [f"--logfile={home}/log", "--pidfile=pid", *of_twistd]
            command = [sys.executable, str(scripts() / "twistd"), *of_twistd, "zcomm", *options]
            starter = RunningServer(command, home, clean_environ(home, {"PYTHONPATH": f"{CHECKOUT}:{tmp_path}"}))
            try:
                assert starter.wait() == 1, name
                assert re.fullmatch(said, starter.log), (name, starter.log)
                if name != "killed":
                    wait_until_blocking(lambda home=home: not (home / "pid").exists(), "the end of the pid file")
            finally:
                starter.kill()
                end_daemon(home / "pid")


def end_daemon(pid_file: Path, number: int = signal.SIGKILL) -> None:
    """Signal the daemon, whose group is its starter's no longer, if it is there."""
    with suppress(OSError, ValueError):
        os.kill(int(pid_file.read_bytes()), number)


def test_contact_a_daemon_returns_when_it_is_ready_and_outlives_its_starter(tmp_path: Path):
    """Status 0 and nothing on the terminal; a hang-up reloads; it stops in order. Another leaves its pid file alone."""
    pid, log = tmp_path / "pid", tmp_path / "log"
    command = [sys.executable, str(scripts() / "twistd"), f"--logfile={log}", "--pidfile=pid", "zcomm", "-p", "0"]
    starter = RunningServer(command, tmp_path, clean_environ(tmp_path))
    try:
        assert (starter.wait(), starter.log) == (0, "")
        assert "] ready\n" in log.read_text()
        second = RunningServer(command, tmp_path, clean_environ(tmp_path))
        assert second.wait() == 1 and "Another twistd server is running" in second.log
        second.kill()
        end_daemon(pid, signal.SIGHUP)
        wait_until_blocking(lambda: "the policy and the tokens were read anew" in log.read_text())
        end_daemon(pid, signal.SIGTERM)
        wait_until_blocking(lambda: not pid.exists(), "the end of the daemon")
        wait_until_blocking(lambda: "Server Shut Down" in log.read_text(), "the end of the log")
    finally:
        starter.kill()
        end_daemon(pid)


#: twistd with the terminal at a path as its controlling one, which the first that a new session opens becomes.
ON_A_TERMINAL = """\
import os, signal, sys
from twisted.scripts.twistd import run
os.open(sys.argv.pop(1), os.O_RDWR)
signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop(1)))
sys.argv[0] = "twistd"
run()
"""


@pytest.mark.parametrize("disposition", ["SIG_DFL", "SIG_IGN"])
def test_contact_a_server_ends_with_its_terminal(tmp_path: Path, disposition: str):
    """In the foreground; while the terminal is there a hang-up reloads, and under nohup always."""
    reloaded = "the policy and the tokens were read anew"
    terminal, end = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, os.ttyname(end), disposition, *twistd_command("-p", "0")[2:]]
    server = RunningServer(command, tmp_path, clean_environ(tmp_path))
    try:
        server.wait_for_log(r"\] ready")
        server.signal(signal.SIGHUP)
        server.wait_for_log(reloaded)
        os.close(end)
        end = -1
        os.close(terminal)
        terminal = -1
        if disposition == "SIG_IGN":
            wait_until_blocking(lambda: server.log.count(reloaded) == 2)
            server.signal(signal.SIGHUP)
            wait_until_blocking(lambda: server.log.count(reloaded) == 3)
            assert server.stop() == 0
        else:
            assert server.wait() == 0
            assert server.log.count(reloaded) == 1
            assert "the terminal is gone" in server.log and "Server Shut Down" in server.log
    finally:
        server.kill()
        for descriptor in (terminal, end):
            if descriptor >= 0:
                os.close(descriptor)


def test_contact_children_that_were_forked_hold_nothing_of_a_killed_server(
    running_server: Start, clients: list, tmp_path: Path
):
    """A worker of a pool, say, outlives it: the connections end at once all the same, and the next start finds the data
    directory and the port free."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "forking_functions.py").write_text(
        "import os, signal\nfrom zcomm import function\n\n\n"
        "@function\ndef fork():\n    pid = os.fork()\n"
        "    if not pid:\n        os.dup2(os.open(os.devnull, os.O_RDWR), 1)\n        os.dup2(1, 2)\n"
        "    while not pid:\n        signal.pause()\n    return pid\n"
    )
    options = ("--functions", "forking_functions", "--port", str(unused_port()))
    children = []
    try:
        for number in range(2):
            server = running_server(*options, home=home)
            clients.append(client := BlockingRawClient(server.port, token=server.token))
            children.append(client.call("zFunc", {"name": "fork"})["result"])
            # The parent's are what they were.
            assert client.call("ping", number)["result"] == number and answers(server)
            server.kill()
            client.wait_ended()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
