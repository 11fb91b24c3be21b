"""One server process: how it is spawned, watched and ended; with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred

from zcomm.runtime.files import DirectoryLock
from zcomm.services.declaration import StopStep
from zcomm.services.machine.account import account_of, current_account
from zcomm.services.machine.command import run_command
from zcomm.services.machine.logfile import LogFile
from zcomm.services.machine.query import NoAnswer, ask
from zcomm.services.supervision.launch import Guardian, Launch, Tools, find_tools, server_environment
from zcomm.services.supervision.process import Exit, Life, ManagedProcess, ProcessEnded, StillRunning, process_identity

TOOLS = [pytest.param(find_tools(), id="system programs"), pytest.param(Tools(None, None), id="python")]


@pytest.fixture
def spawn(place: Path) -> Callable[..., ManagedProcess]:
    """``spawn("sh", "-c", …)`` starts a process whose log is ``place/log``."""
    from twisted.internet import reactor

    def start(*words: str, tools: Tools | None = None, **more: Any) -> ManagedProcess:
        more.setdefault("account", current_account())
        more.setdefault("environment", server_environment({"PATH": os.environ["PATH"]}, current_account()))
        return ManagedProcess.spawn(
            reactor, Launch(argv=tuple(words), log=LogFile(place / "log"), **more), tools or find_tools()
        )

    return start


@pytest.mark.parametrize("tools", TOOLS)
@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
@pytest_twisted.ensureDeferred
async def test_how_it_ended_is_told(spawn: Callable[..., ManagedProcess], tools: Tools, script: str, code: int):
    """Its status or its signal, to everybody who asked, before and after."""
    process = spawn("/bin/sh", "-c", script, tools=tools)
    first, second = process.when_exited(), process.when_exited()
    assert await first == await second == await process.when_exited() == Exit(code)
    assert process.life is Life.EXITED and process.signal(signal.SIGTERM) is False


def test_an_exit_in_words():
    """For reasons that people read."""
    assert [str(Exit(code)) for code in (0, 1, -9, None, -99)] == [
        "ended with status 0",
        "ended with status 1",
        "was ended by SIGKILL",
        "ended",
        "was ended by signal 99",
    ]


@pytest.mark.parametrize("tools", TOOLS)
@pytest_twisted.ensureDeferred
async def test_what_the_child_is_given(spawn: Callable[..., ManagedProcess], place: Path, tools: Tools):
    """Its own session, a private umask, a harmless directory, three descriptors, few variables (P15, P16)."""
    open_file = open(place / "ours", "w")
    os.set_inheritable(open_file.fileno(), True)
    process = spawn(
        "/bin/sh", "-c", "echo $$; umask; pwd; ls -l /proc/$$/fd; env; exec cat /dev/zero >/dev/null", tools=tools
    )
    await wait_until(lambda: "LC_ALL" in (place / "log").read_text(), "its words")
    open_file.close()
    lines = (place / "log").read_text().splitlines()
    assert int(lines[0]) == process.pid and int(lines[1], 8) == 0o077 and lines[2] == "/"
    assert os.getsid(process.pid) == process.pid and psutil.Process(process.pid).ppid() == os.getpid()
    assert "ours" not in "\n".join(lines)
    variables = {line.partition("=")[0] for line in lines if "=" in line and " " not in line.partition("=")[0]}
    assert variables <= {"PATH", "HOME", "USER", "LOGNAME", "LC_ALL", "PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
    assert (place / "log").stat().st_mode & 0o777 == 0o600
    await process.stop([StopStep(signal.SIGTERM, 5)])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")
@pytest.mark.parametrize("tools", TOOLS)
@pytest.mark.parametrize("user", ["nobody", 47110])
@pytest_twisted.ensureDeferred
async def test_another_account(spawn: Callable[..., ManagedProcess], place: Path, tools: Tools, user: Any):
    """All of root is gone: ids, groups, capabilities; with or without a name for the number."""
    account = account_of(user)
    process = spawn("/bin/cat", "/proc/self/status", account=account, tools=tools)
    assert (await process.when_exited()).code == 0
    status = dict(line.split(":", 1) for line in (place / "log").read_text().splitlines() if ":" in line)
    assert status["Uid"].split() == [str(account.uid)] * 4 and status["Gid"].split() == [str(account.gid)] * 4
    assert set(status["Groups"].split()) <= {str(group) for group in account.groups | {account.gid}}
    assert int(status["CapEff"], 16) == 0


@pytest_twisted.ensureDeferred
async def test_the_ladder(spawn: Callable[..., ManagedProcess], place: Path):
    """Each signal gets its time; the last one ends what ignored the others, also when it is suspended."""
    process = spawn("/bin/sh", "-c", "trap 'echo heard' TERM INT; echo up; while :; do :; done")
    await wait_until(lambda: "up" in (place / "log").read_text(), "its start")
    process.signal(signal.SIGSTOP)
    exit = await process.stop(
        [StopStep(signal.SIGINT, 0.2), StopStep(signal.SIGTERM, 0.2), StopStep(signal.SIGKILL, 10)]
    )
    assert exit == Exit(-9)


@pytest_twisted.ensureDeferred
async def test_a_ladder_without_a_kill(spawn: Callable[..., ManagedProcess], place: Path):
    """What survives all steps is told, not waited for."""
    process = spawn("/bin/sh", "-c", "trap '' TERM; echo up; while :; do :; done")
    await wait_until(lambda: "up" in (place / "log").read_text(), "its start")
    with pytest.raises(StillRunning, match="0.3 s"):
        await process.stop([StopStep(signal.SIGTERM, 0.3)])
    assert await process.stop([StopStep(signal.SIGKILL, 10)]) == Exit(-9)


@pytest_twisted.ensureDeferred
async def test_nobody_waits_for_a_dead_process(spawn: Callable[..., ManagedProcess]):
    """An operation under guard is cancelled when the process ends, and fails with how it ended."""
    process = spawn("/bin/cat", "/dev/zero")
    cancelled: list[bool] = []
    waiting: Deferred[None] = Deferred(lambda _: cancelled.append(True))
    guarded = process.guard(waiting)
    process.signal(signal.SIGKILL)
    with pytest.raises(ProcessEnded) as caught:
        await guarded
    assert caught.value.exit == Exit(-9) and cancelled == [True]


@pytest_twisted.ensureDeferred
async def test_a_guarded_operation_that_ends_first(spawn: Callable[..., ManagedProcess]):
    """Its result or failure comes through; cancelling the guard cancels it."""
    process = spawn("/bin/cat", "/dev/zero")
    good: Deferred[int] = Deferred()
    bad: Deferred[int] = Deferred()
    slow: Deferred[int] = Deferred()
    guarded = [process.guard(each) for each in (good, bad, slow)]
    good.callback(7)
    bad.errback(ValueError("no"))
    guarded[2].cancel()
    assert await guarded[0] == 7
    with pytest.raises(ValueError, match="no"):
        await guarded[1]
    with pytest.raises(CancelledError):
        await guarded[2]
    await process.stop([StopStep(signal.SIGKILL, 10)])


@pytest_twisted.ensureDeferred
async def test_a_program_that_cannot_be_run(spawn: Callable[..., ManagedProcess], place: Path):
    """The status is the shell's 126 or 127, and the log says why, without a traceback (PG30)."""
    process = spawn("/nonexistent/program")
    assert (await process.when_exited()).code in (126, 127)
    assert "/nonexistent/program" in (place / "log").read_text() and "Traceback" not in (place / "log").read_text()


@pytest_twisted.ensureDeferred
async def test_a_hundred_megabytes_nobody_reads(spawn: Callable[..., ManagedProcess], place: Path):
    """The child is never held up, and the log can be cut while it writes (P8, PG25)."""
    log = LogFile(place / "log", max_bytes=1 << 20, count=2)
    process = spawn("/bin/sh", "-c", "head -c 100000000 /dev/zero; echo done; exec cat /dev/zero > /dev/null")
    await wait_until(lambda: log.tail(100).endswith("done\n"), "its end")
    assert log.due() and log.rotate() is True
    assert log.size() == 0 and (place / "log.1").stat().st_size == 1 << 20 and process.life is Life.RUNNING
    await process.stop([StopStep(signal.SIGKILL, 10)])


def test_rotation_keeps_the_newest(tmp_path: Path):
    """The copies shift, the oldest goes; a cut log is told by an offset behind its end."""
    log = LogFile(tmp_path / "a.log", max_bytes=10, count=2)
    for text in ("one", "two", "three is far too long"):
        log.path.write_text(text)
        assert log.rotate() is True
    assert [path.read_text() for path in (tmp_path / "a.log.1", tmp_path / "a.log.2")] == ["r too long", "two"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    log.path.write_text("new")
    assert log.tail(since=1000) == "new" and log.tail(since=1) == "ew" and log.tail(limit=1) == "w"
    assert LogFile(tmp_path / "none").tail() == "" and LogFile(tmp_path / "none").size() == 0


def test_a_log_that_is_a_link_is_not_opened(tmp_path: Path):
    """Root must not append to what somebody else points at."""
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError):
        LogFile(tmp_path / "log").open()


def test_a_log_without_room_for_copies_is_cut(tmp_path: Path):
    """A copy that cannot be kept does not keep the log growing."""
    log = LogFile(tmp_path / "a.log", max_bytes=10, count=1)
    log.path.write_text("x" * 50)
    (tmp_path / "a.log.1").mkdir()
    assert log.rotate() is False and log.size() == 0


@pytest_twisted.ensureDeferred
async def test_a_guardian_ends_what_zcomm_left(place: Path):
    """When its pipe ends, the guardian climbs the ladder, whatever the process ignores."""
    from twisted.internet import reactor

    stubborn = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; echo up; while :; do :; done"], stdout=subprocess.PIPE)
    stubborn.stdout.readline()
    guardian = Guardian.beside(reactor, stubborn.pid, [StopStep(signal.SIGTERM, 0.2), StopStep(signal.SIGKILL, 5)])
    await wait_until(
        lambda: Path(f"/proc/{guardian.transport.pid}/stat").read_text().split()[5] == str(guardian.transport.pid),
        "its session",
    )
    os.kill(guardian.transport.pid, signal.SIGTERM)
    guardian.transport.closeStdin()
    await wait_until(lambda: stubborn.poll() is not None, "the end")
    assert stubborn.returncode == -9
    await wait_until(lambda: guardian.gone, "the end of the guardian")
    stubborn.stdout.close()


@pytest_twisted.ensureDeferred
async def test_a_dismissed_guardian_ends_nothing(place: Path):
    """After an ordered stop it just goes."""
    from twisted.internet import reactor

    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    guardian = Guardian.beside(reactor, child.pid, [StopStep(signal.SIGKILL, 5)])
    guardian.dismiss()
    await wait_until(lambda: guardian.gone, "the end of the guardian")
    guardian.dismiss()
    assert child.poll() is None
    child.communicate()


def test_one_holder_of_a_directory(tmp_path: Path):
    """By whatever path it is named; a child that lives on does not hold it; released, it is free (RD2, PG31)."""
    place = tmp_path / "data"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    first, second = DirectoryLock(place), DirectoryLock(tmp_path / "link")
    assert first.take() and first.take()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert second.take() is False
    place.rename(tmp_path / "elsewhere")
    assert DirectoryLock(tmp_path / "elsewhere").take() is False
    first.release()
    first.release()
    last = DirectoryLock(tmp_path / "elsewhere")
    assert last.take() is True
    last.release()
    with pytest.raises(OSError):
        DirectoryLock(tmp_path / "missing").take()
    child.communicate(b"\n")


@pytest_twisted.ensureDeferred
async def test_a_command_and_its_words():
    """Status and output, what it was given, the end of much output."""
    from twisted.internet import reactor

    environment = {"PATH": os.environ["PATH"]}
    assert await run_command(
        reactor, ["/bin/sh", "-c", "read x; echo $x; echo no >&2; exit 3"], environment, 20, "hello\n"
    ) == (3, "hello\nno\n")
    status, output = await run_command(
        reactor, ["/bin/sh", "-c", "head -c 200000 /dev/zero; echo end"], environment, 20
    )
    assert status == 0 and len(output) == 65536 and output.endswith("end\n")
    assert await run_command(reactor, ["/bin/sh", "-c", "kill -9 $$"], environment, 20) == (None, "")


@pytest.mark.parametrize("how", ["late", "cancelled"])
@pytest_twisted.ensureDeferred
async def test_a_command_is_ended_before_anybody_hears_of_it(place: Path, how: str):
    """Asked to end, with the programs it runs; when the Deferred fails, nothing is left of it."""
    from twisted.internet import reactor

    # The second program ignores the request to end and holds the pipe: it is ended the hard way.
    script = (
        f"trap '' TERM; cat /dev/zero >/dev/null & echo $! > {place}/second; "
        f"trap 'echo ended > {place}/mark; exit 1' TERM; echo up > {place}/up; wait"
    )
    running = run_command(
        reactor,
        ["/usr/bin/setsid", "/bin/sh", "-c", script],
        {"PATH": os.environ["PATH"]},
        0.5 if how == "late" else 60,
    )
    await wait_until(lambda: (place / "up").exists(), "its start")
    if how == "cancelled":
        running.cancel()
    with pytest.raises(NoAnswer if how == "late" else CancelledError):
        await running
    assert (place / "mark").read_text() == "ended\n"
    second = int((place / "second").read_text())
    await wait_until(lambda: process_identity(second) is None, "the end of the second program")


@pytest.mark.parametrize("listening", [True, False], ids=["silent", "connecting"])
@pytest_twisted.ensureDeferred
async def test_a_question_that_is_cancelled(listening: bool):
    """At once or while it waits: CancelledError, never NoAnswer, which would be a reason to ask again."""
    from twisted.internet import reactor

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        question = ask(reactor, server.getsockname(), b"hello", lambda data: None, 30.0)
        if listening:
            server.setblocking(False)
            accepted: list[socket.socket] = []

            def heard() -> bool:
                try:
                    accepted.append(server.accept()[0])
                except BlockingIOError:
                    return False
                return True

            await wait_until(heard, "the connection")
        question.cancel()
        with pytest.raises(CancelledError):
            await question
        for each in accepted if listening else ():
            each.close()


@pytest_twisted.ensureDeferred
async def test_a_question_nobody_answers():
    """Silence, a closed port and a hang-up are all no answer, in time."""
    from twisted.internet import reactor

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = server.getsockname()
        with pytest.raises(NoAnswer):
            await ask(reactor, address, b"", lambda data: None, 10.0)
        server.listen()
        with pytest.raises(NoAnswer, match="within 0.1 s"):
            await ask(reactor, address, b"", lambda data: None, 0.1)
        with pytest.raises(NoAnswer):
            await ask(reactor, "/nonexistent/socket", b"", lambda data: None, 10.0)
