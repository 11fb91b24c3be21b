"""The plain form, each time in a program of its own: there is one reactor thread to a process, and one end."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.localservers import end_all_in, processes_in
from support.preloaded import run_python
from support.rawclient import BlockingRawClient, Opcode
from support.serverprocess import LISTENING, RunningServer, clean_environ

from zcomm.runtime.thread import patched_by
from zcomm.services.kinds import KINDS

BEGIN = """\
import asyncio
import logging
import os
import sys
import threading
from zcomm.threaded import zComm

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s %(levelname)s %(message)s")

class Host:
    session = {}
    logger = logging.getLogger("host")

host = Host()
comm = zComm(host)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that other accounts may pass; nothing may run in it at the end."""
    path = Path(tempfile.mkdtemp(prefix="zcomm-plain-"))
    path.chmod(0o711)
    yield path
    left = processes_in(path)
    end_all_in(path)
    shutil.rmtree(path, ignore_errors=True)
    assert left == []


def run(home: Path, text: str, **environ: str) -> tuple[str, str]:
    """What a program prints and logs; it must end well, by itself."""
    done = run_python(
        [sys.executable, "-c", BEGIN + text],
        cwd=home,
        timeout=120,
        env=clean_environ(home, {"WEBSOCKET_PORT": "0", "WEBSOCKET_REQUIRE_AUTH": "False", **environ}, measured=True),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def start(home: Path) -> Iterator[Callable[[str], RunningServer]]:
    """Starts a program that does not end by itself."""
    programs: list[RunningServer] = []

    def start(text: str, preloaded: bool = True) -> RunningServer:
        environ = clean_environ(home, {"WEBSOCKET_PORT": "0", "WEBSOCKET_REQUIRE_AUTH": "False"}, measured=True)
        program = RunningServer([sys.executable, "-c", BEGIN + text], home, environ, preloaded=preloaded)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.kill()


SERVE = """\
bifrost = comm.create_websocket()

async def serve():
    await comm.start_websocket(asyncio.Event())

"""


def test_the_port_is_taken(home: Path):
    """start_websocket raises, and whoever waits for the event or the future goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        output, _ = run(
            home,
            f"""
from twisted.internet.error import CannotListenError

async def main():
    ready, future = asyncio.Event(), asyncio.get_running_loop().create_future()
    for one in (ready, future):
        serving = asyncio.ensure_future(comm.start_websocket(one))
        try:
            await (one.wait() if one is ready else one)
        except CannotListenError as error:
            print("future", type(error).__name__)
        try:
            await serving
        except CannotListenError as error:
            print(type(error).__name__, error.port)
    print(ready.is_set())

comm.create_websocket(port={port})
asyncio.run(main())
""",
        )
    assert output.split("\n") == [
        f"CannotListenError {port}",
        "future CannotListenError",
        f"CannotListenError {port}",
        "True",
        "",
    ]


def test_one_after_the_other(home: Path):
    """A second asyncio.run, a second zComm, and a server that is started again after it was cancelled."""
    output, log = run(
        home,
        SERVE
        + """
second = zComm(host)

async def both():
    ready, also = asyncio.Event(), asyncio.Event()
    servers = [asyncio.ensure_future(comm.start_websocket(ready)), asyncio.ensure_future(second.start_websocket(also))]
    await ready.wait(), await also.wait()
    print(await comm.broadcast_websocket("x"), await second.broadcast_websocket({"x": 1}))
    for server in servers:
        server.cancel()
    print([type(result).__name__ for result in await asyncio.gather(*servers, return_exceptions=True)])

asyncio.run(both())
asyncio.run(both())
try:
    asyncio.run(comm.broadcast_websocket("nobody"))
except Exception as error:
    print(type(error).__name__)
comm.close()
comm.close()
second.close()
""",
    )
    assert output.splitlines() == ["0 0", "['CancelledError', 'CancelledError']"] * 2 + ["NotListening"]
    # Four servers, and each said so once although two zComms share the logger.
    assert len(LISTENING.findall(log)) == 4
    assert all(line.startswith("host ") for line in log.splitlines() if "zBifrost listening" in line)


def test_a_start_that_is_cancelled_leaves_no_server(home: Path):
    """Whether it had begun or not (G8)."""
    output, _ = run(
        home,
        SERVE
        + """
async def main():
    for turns in range(4):
        task = asyncio.ensure_future(serve())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        print((await asyncio.gather(task, return_exceptions=True))[0].__class__.__name__)
    print(comm._comm.websockets and bifrost.is_listening)

asyncio.run(main())
""",
    )
    assert output.splitlines()[:-1] == ["CancelledError"] * 4
    assert output.splitlines()[-1] in ("[]", "False")


def test_ctrl_c_while_serving(start: Callable[[str], RunningServer]):
    """Clients hear 1001, the program ends as Python programs do, the service it runs has ended."""
    program = start(
        SERVE
        + """
print("redis", comm.start_service("redis", port="auto"), flush=True)
asyncio.run(serve())
"""
    )
    match = program.wait_for_log(LISTENING)
    assert "redis True" in program.log
    with BlockingRawClient(int(match[2])) as client:
        assert client.call("ping", 1)["result"] == 1
        program.signal(signal.SIGINT)
        assert client.next_close().close_code == 1001
    assert program.wait() == -signal.SIGINT
    assert "KeyboardInterrupt" in program.log and "never retrieved" not in program.log


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_contact_n5_a_signal_in_a_blocking_call(start: Callable[[str], RunningServer], number: int, status: int):
    """What was waited for is taken back: the client that was asked is told so, and 1001. Containers and systemd send
    SIGTERM."""
    program = start(
        SERVE
        + """
threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
while not bifrost.clients:
    pass
print(bifrost.ask(bifrost.clients[0], "Your name"))
"""
    )
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        asked = client.next_json()
        program.signal(number)
        assert client.next_json() == {"event": "ask_closed", "askId": asked["askId"], "reason": "cancelled"}
        assert client.next_close().close_code == 1001
    assert program.wait() == status


def test_contact_n5_sigterm_while_serving(start: Callable[[str], RunningServer]):
    """The event loop ends as with Ctrl-C, the program's own cleaning up is done, and a second signal does not wait."""
    program = start(
        SERVE
        + """
import signal
import time
try:
    asyncio.run(serve())
finally:
    print("cleaned up", flush=True)
    signal.pause()
"""
    )
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        program.signal(signal.SIGTERM)
        assert client.next_close().close_code == 1001
    program.wait_for_log(re.compile("cleaned up"))
    program.signal(signal.SIGTERM)
    assert program.wait() == -signal.SIGTERM


def test_contact_n5_sigterm_is_no_error_of_what_it_strikes(start: Callable[[str], RunningServer]):
    """Neither a command that catches whatever is raised in it nor an object that ends keeps the program from ending."""
    program = start(
        """
import signal
bifrost = comm.create_websocket()

@bifrost.command("struck")
async def struck():
    class Ending:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
    try:
        Ending()
        return "still there"
    except BaseException:
        return "caught"

asyncio.run(comm.start_websocket())
"""
    )
    with BlockingRawClient(int(program.wait_for_log(LISTENING)[2])) as client:
        client.send_json({"zKey": "struck"})
        assert client.next_close().close_code == 1001
    assert program.wait() == 143


@pytest.mark.parametrize("struck", ["its own", "ours"])
def test_contact_a_first_sigterm_at_the_end_of_the_program_cuts_nothing(
    start: Callable[[str], RunningServer], struck: str
):
    """Neither what the program has to clean up nor our stop: the command under way ends, and then the service."""
    program = start(
        SERVE
        + f"""
import atexit
import signal
import time
under_way = threading.Event()

def wait_for_the_signal():
    print("waiting", flush=True)
    while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        time.sleep(0.001)
    print("whole", flush=True)

@bifrost.command("slow")
def slow():
    under_way.set()
    wait_for_the_signal()

@bifrost.command("end")
def end():
    under_way.set()

threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
if {struck == "ours"}:
    print("redis", comm.start_service("redis", port="auto"), flush=True)
else:
    atexit.register(wait_for_the_signal)
under_way.wait()
"""
    )
    with BlockingRawClient(int(program.wait_for_log(LISTENING)[2])) as client:
        if struck == "ours":
            program.wait_for_log(re.compile("redis True"))
            client.send_json({"zKey": "slow"})
            assert client.next_close().close_code == 1001
        else:
            client.call("end")
    program.wait_for_log(re.compile("waiting"))
    program.signal(signal.SIGTERM)
    assert program.wait() == 0
    assert "whole" in program.log and "Traceback" not in program.log, program.log
    assert struck == "its own" or program.log.index("whole") < program.log.index("redis: stopped")


def test_contact_what_runs_for_commands_ends_with_the_loop_and_is_answered_by_1001(
    start: Callable[[str], RunningServer],
):
    """The end of the loop cancels it together with the server, in any order: that is no failure of a command, in
    whichever form it waits. A failure of its own stands in the log."""
    program = start(
        """
import concurrent.futures
import functools
bifrost = comm.create_websocket()
started = []
main = []

async def nap():
    started.append(None)
    if len(started) == 6:
        print("all wait", flush=True)
    await asyncio.Event().wait()

@functools.wraps(nap)
def thread():
    return asyncio.run_coroutine_threadsafe(nap(), main[0]).result()

async def grouped():
    async with asyncio.TaskGroup() as group:
        group.create_task(nap())

async def another():
    try:
        await nap()
    finally:
        raise ValueError("of its own")

forms = {
    "coroutine": nap, "grouped": grouped, "another": another, "thread": thread,
    "task": lambda: asyncio.run_coroutine_threadsafe(nap(), main[0]),
    "returned": lambda: nap(),
}
for name, form in forms.items():
    bifrost.command(name)(form)

async def serve():
    main.append(asyncio.get_running_loop())
    await comm.start_websocket()

asyncio.run(serve())
"""
    )
    port = int(program.wait_for_log(LISTENING)[2])
    forms = ("coroutine", "grouped", "another", "task", "returned", "thread")
    with BlockingRawClient(port) as client:
        for form in forms:
            client.send_json({"zKey": form, "_requestId": form})
        program.wait_for_log("all wait")
        program.signal(signal.SIGTERM)
        assert client.next_close().close_code == 1001
        assert [each for each in client.received if getattr(each, "opcode", None) == Opcode.TEXT] == []
    assert program.wait() == 143
    assert "of its own" in program.log and "CancelledError: cancelled by" not in program.log, program.log


@pytest.mark.parametrize(
    "thread",
    [
        "threading.Thread(target=run).start()",
        "pool = ThreadPoolExecutor()\npool.submit(run)",
        "threading.Thread(target=run).start()\nprint('waits', flush=True)\nthreading.Event().wait()",
    ],
    ids=["thread", "pool", "main too"],
)
def test_contact_sigterm_ends_the_waiting_for_a_thread_that_serves(
    start: Callable[..., RunningServer], home: Path, thread: str
):
    """A main thread that has nothing left to do, or is struck itself, and another that is no daemon: that is no end
    yet. The program ends as one that is struck elsewhere, with all that comes at its end."""
    program = start(
        SERVE
        + f"""
import atexit
import sys
from concurrent.futures import ThreadPoolExecutor
atexit.register(print, "at the exit", flush=True)
buffered = open({str(home / "buffered")!r}, "w")
buffered.write("kept")

def run():
    asyncio.run(serve())

def watch():
    frame = None
    while frame is None or frame.f_code.co_name != "_shutdown":
        frame = frame.f_back if frame else sys._current_frames()[threading.main_thread().ident]
    print("waits", flush=True)

print("redis", comm.start_service("redis", port="auto"), flush=True)
threading.Thread(target=watch, daemon=True).start()
{thread}
""",
        # The interpreter's own end.
        preloaded=False,
    )
    with BlockingRawClient(int(program.wait_for_log(LISTENING)[2])) as client:
        program.wait_for_log(re.compile("waits"))
        program.signal(signal.SIGTERM)
        assert client.next_close().close_code == 1001
    assert program.wait() == 143
    assert "at the exit" in program.log and "redis: stopped" in program.log, program.log
    assert "Traceback" not in program.log and "ignored" not in program.log, program.log
    assert (home / "buffered").read_text() == "kept"


def test_contact_sigterm_that_python_ignores_ends_the_program_too(start: Callable[[str], RunningServer]):
    """What is raised in an object that ends is reported and forgotten; the signal is not."""
    program = start(
        SERVE
        + """
import signal
import time

class Ending:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
while not bifrost.clients:
    pass
Ending()
print("went on", flush=True)
try:
    threading.Event().wait(60)
finally:
    print("cleaned up", flush=True)
"""
    )
    with BlockingRawClient(int(program.wait_for_log(LISTENING)[2])) as client:
        assert client.next_close().close_code == 1001
    assert program.wait() == 143
    assert "went on" in program.log and "cleaned up" in program.log and "Traceback" not in program.log, program.log


def test_contact_n5_a_handler_of_the_programs_own_is_kept(home: Path):
    """Whichever it set before or sets later."""
    output, _ = run(
        home,
        """
import signal
print(signal.getsignal(signal.SIGTERM).__name__)
""",
    )
    assert output.split() == ["_terminate"]
    done = run_python(
        [
            sys.executable,
            "-c",
            "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\nown = signal.getsignal(signal.SIGTERM)\n"
            + BEGIN
            + "print(signal.getsignal(signal.SIGTERM) is own)",
        ],
        cwd=home,
        timeout=60,
        env=clean_environ(home, measured=True),
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_the_end_of_the_interpreter(home: Path):
    """Servers and services that still run are stopped in order; a call after that raises and does not wait."""
    output, log = run(
        home,
        """
import atexit

def too_late():
    # A daemon thread: it is given the time to say how its wait ended.
    waiting.join(30)
    try:
        comm.check_port(1)
    except RuntimeError as error:
        print(f"RuntimeError {error}\\n", end="", flush=True)

atexit.unregister(__import__("zcomm.runtime.thread", fromlist=["_stop"])._stop)
atexit.register(too_late)
atexit.register(__import__("zcomm.runtime.thread", fromlist=["_stop"])._stop)

from zcomm.runtime.thread import blocking
from twisted.internet.defer import Deferred

def wait_for_ever():
    try:
        blocking(Deferred)
    except RuntimeError as error:
        # One write: the main thread prints at the same moment.
        print(f"RuntimeError {error}\\n", end="", flush=True)

waiting = threading.Thread(target=wait_for_ever, daemon=True)
waiting.start()
print(comm.start_service("redis", port="auto"), comm.service_status("redis")["running"], flush=True)
""",
    )
    assert output.splitlines()[0] == "True True"
    ends = [line for line in output.splitlines()[1:] if line.startswith("RuntimeError zComm's reactor has ended")]
    assert len(ends) == 2, output


def test_many_threads(home: Path):
    """A hundred calls from twenty threads, each answered."""
    output, _ = run(
        home,
        SERVE
        + """
threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
while not bifrost.is_listening:
    pass
answers = []

def work():
    for _ in range(5):
        running = comm.service_status("redis")["running"]
        answers.append((comm.check_port(bifrost.port), bifrost.broadcast("x"), len(bifrost.clients), type(running)))

threads = [threading.Thread(target=work) for _ in range(20)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(answers), set(answers))
comm.stop_websocket()
print(bifrost.is_listening)
""",
    )
    assert output == "100 {(False, 0, 0, <class 'bool'>)}\nFalse\n"


def test_on_the_reactors_own_thread(home: Path):
    """A blocking call there raises at once, and so does a coroutine's."""
    output, _ = run(
        home,
        """
from zcomm.runtime.thread import blocking, in_reactor

def on_the_reactor():
    for call in (lambda: comm.check_port(1), lambda: in_reactor(len, "")):
        try:
            call()
        except RuntimeError as error:
            print(error)

blocking(on_the_reactor)
""",
    )
    assert output.count("would wait for itself") == 2


def test_a_forked_child(home: Path):
    """Threads do not follow a fork: the child is told so in place of waiting for ever."""
    output, _ = run(
        home,
        """
if (child := os.fork()) == 0:
    try:
        comm.check_port(1)
    except RuntimeError as error:
        print("child", error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", comm.check_port(1))
""",
    )
    assert (
        output.splitlines()[0].startswith("child zComm's reactor has ended") and output.splitlines()[1] == "parent True"
    )


def test_failures_are_answers(home: Path, free_port: int):
    """False and empty dicts as the guide has them, with the reason in the host's log; bad arguments raise."""
    output, log = run(
        home,
        f"""
print(comm.start_service("nope"), comm.stop_service("nope"), comm.restart_service("nope"))
print(comm.service_status("nope"), comm.get_service_connection_info("nope"))
print(sorted(comm.service_status()))
for wrong in (-1, "x", None):
    try:
        comm.check_port(wrong)
    except (ValueError, TypeError) as error:
        print(type(error).__name__)
import socket
with socket.create_server(("127.0.0.1", {free_port})):
    print(comm.start_service("redis", port={free_port}))
""",
    )
    lines = output.splitlines()
    assert lines[:3] == ["False False False", "{} {}", str(sorted(kind.name for kind in KINDS))]
    assert len(lines[3:-1]) == 3 and lines[-1] == "False"
    assert log.count("there is no service of that name") == 5 and f"port {free_port} is in use" in log


COMMANDS = (
    SERVE
    + """
@bifrost.command("plain")
def plain(horizontal, client):
    client.send({"to": client.identity.name})
    assert client in bifrost.clients and client.id > 0 and client.peer and client.place == "" and repr(client)
    assert bifrost.display("text", {"n": 1}, to=client) == 1 and bifrost.display("text", {"n": 2}) == 1
    assert bifrost.broadcast("but you", sender=client) == 0
    return [horizontal, threading.current_thread().name.startswith("zcomm-worker")]

@bifrost.command("awaits", broadcast=True)
async def awaits(horizontal, client):
    assert asyncio.get_running_loop() is loops[0]
    if horizontal == "fail":
        raise ValueError("not for the client")
    if horizontal == "cancel":
        raise asyncio.CancelledError
    return await asyncio.to_thread(bifrost.ask, client, {"kind": "confirm", "label": "Sure?"})

@bifrost.command("out")
def out(horizontal, client):
    for code, reason, error in ((1006, "out", ValueError), ("1008", "out", TypeError), (1008, None, TypeError)):
        try:
            client.close(code, reason)
        except error:
            continue
        raise AssertionError(code)
    client.close(1008, "out")

@bifrost.command("stop")
def stop():
    threading.Thread(target=comm.stop_websocket).start()

loops = []

async def main():
    loops.append(asyncio.get_running_loop())
    ready = asyncio.Event()
    serving = asyncio.ensure_future(comm.start_websocket(ready))
    await ready.wait()
    print(bifrost, flush=True)
    await serving
    print("served", flush=True)

asyncio.run(main())
"""
)


def test_commands_of_a_plain_program(start: Callable[[str], RunningServer]):
    """Functions in worker threads, coroutines in the program's own loop; clients that any thread may use."""
    program = start(COMMANDS)
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        client.send_json({"zKey": "plain", "zHorizontal": 5, "_requestId": 1})
        said = [client.next_json() for _ in range(4)]
        assert said == [
            {"to": "anonymous"},
            {"event": "display", "display": "text", "data": {"n": 1}},
            {"event": "display", "display": "text", "data": {"n": 2}},
            {"result": [5, True], "_requestId": 1},
        ]
        client.send_json({"zKey": "awaits", "_requestId": 2})
        asked = client.next_json()
        assert asked["prompt"] == {"kind": "confirm", "label": "Sure?"}
        client.send_json({"zKey": "zAnswer", "zHorizontal": {"askId": asked["askId"], "value": True}, "_requestId": 3})
        answers = {reply["_requestId"]: reply["result"] for reply in (client.next_json(), client.next_json())}
        assert answers == {2: True, 3: True}
        assert client.call("awaits", "fail")["code"] == "internal"
        assert client.call("awaits", "cancel")["code"] == "internal"
        client.send_json({"zKey": "out"})
        assert client.next_close().close_code == 1008
    with BlockingRawClient(int(match[2])) as client:
        client.send_json({"zKey": "stop"})
        assert client.next_close().close_code == 1001
    assert program.wait() == 0
    assert "not for the client" in program.log and program.log.endswith("served")


def test_a_client_that_leaves_cancels_the_coroutine(start: Callable[[str], RunningServer]):
    """What runs for it in the program's loop is cancelled."""
    program = start(
        SERVE
        + """
@bifrost.command("waits")
async def waits():
    print("waiting", flush=True)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        raise

asyncio.run(serve())
"""
    )
    match = program.wait_for_log(LISTENING)
    client = BlockingRawClient(int(match[2]))
    client.send_json({"zKey": "waits"})
    program.wait_for_log("waiting")
    client.abort()
    program.wait_for_log("cancelled")
    program.signal(signal.SIGINT)
    assert program.wait() == -signal.SIGINT


def test_a_program_with_a_reactor_of_its_own(home: Path):
    """The plain calls, from a thread, use the reactor that runs; its end releases who still waits."""
    text = (
        BEGIN.rpartition("comm = ")[0]
        + """
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from zcomm.runtime.thread import blocking

def work():
    comm = zComm(host)
    print(comm.check_port(1), threading.current_thread() is threading.main_thread(), flush=True)
    reactor.callFromThread(reactor.stop)
    try:
        blocking(Deferred)
    except RuntimeError as error:
        print(error, flush=True)

thread = threading.Thread(target=work)
reactor.callWhenRunning(thread.start)
reactor.run()
thread.join()
"""
    )
    done = run_python([sys.executable, "-c", text], cwd=home, env=clean_environ(home), timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "True False" and second.startswith("zComm's reactor has ended")


def test_a_host_without_a_logger(home: Path):
    """Then it is the logger ``zcomm`` that hears."""
    _, log = run(
        home,
        """
bare = type("Bare", (), {"session": {}})()
other = zComm(bare)
other.start_service("nope")
""",
    )
    assert "zcomm ERROR start_service: nope: there is no service" in log


def test_contact_n2_n4_n13_all_that_the_deferred_form_does(start: Callable[[str], RunningServer]):
    """A host's data is there, coroutine functions run in the program's loop, all may ask for what the server gives,
    and a failure is in the log once."""
    program = start(
        """
from pathlib import Path
from twisted.internet import reactor
from zcomm.config import Config, WebSocketConfig
from zcomm.host import Host as OwnHost

comm.close()
config = Config(Path(os.environ["HOME"]) / "data", WebSocketConfig(port=0, require_auth=False))
comm = zComm(OwnHost(config, reactor), config=config)
bifrost = comm.create_websocket()
register = comm.program.functions.register
main = threading.current_thread()

@register
async def nap(*, identity, client, progress, ask):
    await asyncio.sleep(0.001)
    progress(1, 2)
    client.send({"said": "hello"})
    return [identity.name, client.id, await ask("coroutine?"), threading.current_thread() is main]

@register
def plain(*, identity, client, progress, ask):
    progress(1, 2)
    client.send({"said": "hello"})
    return [identity.name, client.id, ask("plain?"), threading.current_thread() is main]

@bifrost.command("nap")
async def nap_command(*, identity, client, progress, ask):
    return await nap(identity=identity, client=client, progress=progress, ask=ask)

@bifrost.command("plain")
def plain_command(horizontal, client, *, identity, progress, ask):
    return plain(identity=identity, client=client, progress=progress, ask=ask)

@register
def fails():
    raise KeyError("only once")

@register
async def leaves():
    sys.exit(3)

asyncio.run(comm.start_websocket())
"""
    )
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        assert client.call("read_Users", {"action": "read", "model": "Users"})["result"] == []
        for key, horizontal in [("zFunc", "zFunc(nap)"), ("zFunc", "zFunc(plain)"), ("nap", None), ("plain", None)]:
            client.send_json({"zKey": key, "zHorizontal": horizontal, "_requestId": 5})
            told = [client.next_json() for _ in range(3)]
            assert (told[0]["event"], told[1], told[2]["event"]) == ("progress", {"said": "hello"}, "ask")
            word = "nap" in key or "nap" in (horizontal or "")
            assert told[2]["prompt"]["label"] == ("coroutine?" if word else "plain?")
            client.send_json({"zKey": "zAnswer", "zHorizontal": {"askId": told[2]["askId"], "value": "me"}})
            answers = [client.next_json(), client.next_json()]
            (result,) = [each["result"] for each in answers if each.get("_requestId") == 5]
            assert result[0] == "anonymous" and result[2:] == ["me", word]
        for name in ("fails", "leaves"):
            assert client.call("zFunc", f"zFunc({name})")["code"] == "internal"
        program.signal(signal.SIGTERM)
        assert client.next_close().close_code == 1001
    assert program.wait() == 143
    assert program.log.count("KeyError: 'only once'") == 1


def test_a_signal_that_wakes_nobody_ends_the_program(start: Callable[[str], RunningServer]):
    """One that came just before the loop began to wait, or to another thread, as here."""
    program = start(
        """
import signal

@comm.program.functions.register
def hit():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

asyncio.run(comm.start_websocket())
"""
    )
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(hit)"})
        assert client.next_close().close_code == 1001
    assert program.wait() == 143


def test_contact_every_form_of_a_function_in_a_plain_program(start: Callable[[str], RunningServer]):
    """Functions and commands, however they are written: what comes out of them decides where it is waited for, and
    whatever they do, it is answered and neither the program's loop nor a worker is lost."""
    program = start(
        """
import concurrent.futures
import functools
from twisted.internet import defer, reactor, task

pool = concurrent.futures.ThreadPoolExecutor(1)
bifrost = comm.create_websocket()
main = threading.current_thread()

def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

async def later(*, client, ask, progress):
    await asyncio.sleep(0)
    progress(1)
    client.send("hello")
    return [await ask("Name?"), threading.current_thread() is main]

class Called:
    async def __call__(self, *, client, ask, progress):
        return await later(client=client, ask=ask, progress=progress)

def annotated(*, client, ask, progress) -> "asyncio.Awaitable[list]":
    return asyncio.get_running_loop().create_task(later(client=client, ask=ask, progress=progress))

def returns(*, client, ask, progress):
    return later(client=client, ask=ask, progress=progress)

@wrapped
async def deferred_out_of_the_loop():
    await asyncio.sleep(0)
    return task.deferLater(reactor, 0, lambda: "fired")

def runs_by_itself():
    async def inner():
        await asyncio.sleep(0)
        return "run"
    return inner()

@functools.wraps(runs_by_itself)
def nested():
    return asyncio.run(runs_by_itself())

async def interrupts():
    raise KeyboardInterrupt

async def exits():
    await asyncio.sleep(0)
    raise SystemExit(4)

async def stops():
    raise StopAsyncIteration

def stop_iteration():
    raise StopIteration

async def no_form():
    return object()

forms = dict(
    decorated=wrapped(later), partial=functools.partial(later), called=Called(), returns=returns, annotated=annotated,
    deferred=lambda: defer.succeed("fired"), late=deferred_out_of_the_loop, future=lambda: pool.submit(lambda: "done"),
    twice=lambda: wrapped(runs_by_itself)(), nested=nested, interrupts=interrupts, exits=exits, stops=stops,
    stop_iteration=stop_iteration, no_form=no_form, no_form_plain=lambda: object(),
)
for name, form in forms.items():
    comm.program.functions.register(form, name=name)
    bifrost.command(name)(form)
from zcomm.errors import ConfigError
class Yields:
    def __call__(self):
        yield 1
for refused in (Yields(), functools.partial(Yields())):
    for register in (bifrost.command("refused"), functools.partial(comm.program.functions.register, name="refused")):
        try:
            register(refused)
        except ConfigError as error:
            continue
        raise AssertionError(refused)

async def stop_in_the_reactor():
    from zcomm.runtime.thread import in_reactor
    try:
        await in_reactor(stop_iteration)
    except RuntimeError as error:
        return str(error)
bifrost.command("crossing")(stop_in_the_reactor)

asyncio.run(comm.start_websocket())
"""
    )
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        for form in ("function", "command"):
            for name in ("decorated", "partial", "called", "returns", "annotated"):
                asked = {"zKey": "zFunc", "zHorizontal": f"zFunc({name})"} if form == "function" else {"zKey": name}
                client.send_json({**asked, "_requestId": 5})
                told: list[dict[str, Any]] = []
                while not any("prompt" in each for each in told):
                    text = client.next().text
                    told.append({"said": text} if text == "hello" else json.loads(text))
                assert [*told[0]][0] == "event" and told[1] == {"said": "hello"}, (form, name, told)
                client.send_json({"zKey": "zAnswer", "zHorizontal": {"askId": told[-1]["askId"], "value": "me"}})
                answers = [client.next_json(), client.next_json()]
                assert {"result": ["me", True], "_requestId": 5} in answers, (form, name, answers)
            simple = {"deferred": "fired", "late": "fired", "future": "done", "twice": "run", "nested": "run"}
            failing = ("interrupts", "exits", "stops", "stop_iteration", "no_form", "no_form_plain")
            for name, result in [*simple.items(), *((name, None) for name in failing)]:
                reply = client.call("zFunc", f"zFunc({name})") if form == "function" else client.call(name)
                assert (reply.get("result"), "code" in reply) == (result, result is None), (form, name, reply)
        assert client.call("crossing")["result"] == "the call raised StopIteration"
        program.signal(signal.SIGTERM)
        assert client.next_close().close_code == 1001
    assert program.wait() == 143


def test_contact_open_questions_of_many_connections_stop_nobody_else(start: Callable[[str], RunningServer]):
    """Without authentication, from one address: whoever asks is asked, and whoever has most loses the oldest."""
    program = start(
        """
from zcomm.runtime import workers
workers.ASIDE = 6
bifrost = comm.create_websocket()

@comm.program.functions.register
def name(*, ask):
    return ask("Name?")

asyncio.run(comm.start_websocket())
"""
    )
    port = int(program.wait_for_log(LISTENING)[2])
    with ExitStack() as stack:
        crowd = [stack.enter_context(BlockingRawClient(port)) for _ in range(3)]
        for client in crowd:
            for number in range(3):
                client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(name)", "_requestId": number})
                while client.next_json().get("event") != "ask":
                    pass
        with BlockingRawClient(port) as client:
            for _ in range(3):
                client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(name)", "_requestId": 7})
                asked = client.next_json()
                assert asked["event"] == "ask"
                client.send_json({"zKey": "zAnswer", "zHorizontal": {"askId": asked["askId"], "value": "me"}})
                assert {"result": "me", "_requestId": 7} in [client.next_json(), client.next_json()]
        # Whoever's question was taken back is told, by the id.
        told = [crowd[0].next_json(), crowd[0].next_json()]
        assert sorted(each.get("event") or each["code"] for each in told) == ["ask_closed", "too_busy"], told
    program.signal(signal.SIGTERM)
    assert program.wait() == 143


def test_contact_r29_patched_threads_are_named():
    """Where gevent or eventlet have replaced threads or sockets, calls say so in place of waiting for ever."""

    class Patched:
        """The module that patches, as far as it is asked."""

        def __init__(self, *kinds: str):
            self.is_module_patched = self.is_monkey_patched = kinds.__contains__

    for name, module in (("gevent", "gevent.monkey"), ("eventlet", "eventlet.patcher")):
        for kind in ("thread", "socket", "select"):
            assert patched_by({module: Patched("os", kind)}) == name
        assert patched_by({module: Patched(), "threading": threading}) == ""
    assert patched_by(sys.modules) == ""


TOPICS = (
    SERVE
    + """
rooms = comm.topic("room:{id}", history=10, presence=True, publish="anybody")
comm.topic("news", publish="nobody")

@rooms.allow("subscribe")
def may(identity, id):
    return threading.current_thread().name.startswith("zcomm-worker") and id != "secret"

@rooms.incoming
async def clean(identity, data, id):
    asyncio.get_running_loop()
    return {"text": data, "room": id}

@comm.on_presence("room:{id}")
def seen(arrived, gone, id):
    print("seen", arrived, gone, id, threading.current_thread().name.startswith("zcomm-worker"), flush=True)

for wrong in (lambda: rooms.allow("subscribe"), lambda: rooms.allow("speak"), lambda: rooms.incoming(clean)):
    try:
        wrong()
    except ValueError as error:
        print(error, flush=True)

@bifrost.command("say")
def say(horizontal):
    position = comm.publish("room:1", horizontal, key="0123456789abcdef")
    assert comm.publish("room:1", horizontal, key="0123456789abcdef") == position and comm.publish("news", 1) is None
    page = comm.history("room:1", limit=1, reverse=True)
    there = comm.members("room:1")
    return [position.offset, page["messages"][0]["data"], there["users"], comm.unsubscribe("room:1")]

asyncio.run(serve())
"""
)


def test_topics_of_a_plain_program(start: Callable[[str], RunningServer]):
    """Its functions are asked in worker threads, its coroutines in its loop; its calls wait."""
    program = start(TOPICS)
    match = program.wait_for_log(LISTENING)
    with BlockingRawClient(int(match[2])) as client:
        assert client.call("zSubscribe", {"topic": "room:secret"})["code"] == "permission_denied"
        assert client.call("zSubscribe", {"topic": "room:1"})["result"]["offset"] == 0
        program.wait_for_log(re.compile(r"seen \['anonymous'\] \[\] 1 True"))
        client.send_json({"zKey": "zPublish", "zHorizontal": {"topic": "room:1", "data": "hi"}, "_requestId": 1})
        both = [client.next_json() for _ in range(2)]
        assert {"event": "message", "topic": "room:1", "offset": 1, "data": {"text": "hi", "room": "1"}} in [
            {key: value for key, value in message.items() if key != "from"} for message in both
        ]
        client.send_json({"zKey": "say", "zHorizontal": "bye", "_requestId": 2})
        message, ended, reply = (client.next_json() for _ in range(3))
        assert (message["data"], message["key"]) == ("bye", "0123456789abcdef") and "from" not in message
        assert ended == {"event": "unsubscribed", "topic": "room:1", "reason": "ended"}
        assert reply["result"] == [2, "bye", 1, 1]
        program.wait_for_log(re.compile(r"seen \[\] \['anonymous'\] 1 True"))
    for error in ("subscribe has a function already", "'speak' is none of", "has a function already"):
        assert error in program.log
