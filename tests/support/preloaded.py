"""Python programs that start without their imports: a process that has imported zComm forks for each of them.

An interpreter takes more than a second of processor time to import what ``twistd zcomm`` needs; a fork takes
milliseconds. What runs is a process of its own all the same, with the arguments, environment, directory, streams,
session, signals and exit status that it would have; only its parent is another, the process that forked.

What has to see a start as it is for a user (another interpreter, ``sitecustomize``, what Python reads from its
environment when it begins, which modules are imported) is started by :mod:`subprocess`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import io
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Preloaded", "own_child", "own_descriptor", "run_python"]

CHECKOUT = Path(__file__).resolve().parents[2]

#: What the programs of the tests import. None of it may make a reactor: each program has its own.
MODULES = (
    "coverage",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.dialects.sqlite",
    "twisted.internet.ssl",
    "twisted.scripts._twistd_unix",
    "zcomm",
    "zcomm.cli.client",
    "zcomm.cli.doctor",
    "zcomm.cli.service",
    "zcomm.cli.token",
    "zcomm.client",
    "zcomm.data.drivers.postgresql",
    "zcomm.data.drivers.sqlite",
    "zcomm.legacy",
    "zcomm.tap",
)

#: Bytes that a request may have: arguments and environment.
REQUEST = 1 << 20
#: Bytes of a program's command line that other processes see.
COMMAND_LINE = 8192

#: What is told of a program, twice: its process id, then its wait status.
TOLD = struct.Struct("=i")


# -- on the side of the tests


class Parent:
    """The process that forks, and the connection to it; begun by the first program."""

    def __init__(self) -> None:
        self.connection, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(other.fileno()), " " * COMMAND_LINE],
                env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(CHECKOUT), "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                # Ctrl-C is for the tests; this one ends with its connection to them.
                start_new_session=True,
            )

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> tuple[int, int]:
        """Have a program started; returns its process id, and the descriptor on which its wait status will be told."""
        reading, writing = os.pipe()
        try:
            socket.send_fds(self.connection, [json.dumps(request).encode()], [*streams, writing])
        finally:
            os.close(writing)
        told = os.read(reading, TOLD.size)
        if not told:
            os.close(reading)
            raise RuntimeError("the process that forks has ended")
        return TOLD.unpack(told)[0], reading


_parents: list[Parent] = []


def own_child() -> int | None:
    """The process that forks, if there is one: no leak of the test that was the first to want it."""
    return _parents[0].process.pid if _parents else None


def own_descriptor() -> int | None:
    """The connection to it."""
    return _parents[0].connection.fileno() if _parents else None


class Preloaded(subprocess.Popen[Any]):
    """A :class:`subprocess.Popen` of this interpreter: ``[sys.executable, SCRIPT | -c TEXT | -m MODULE, *ARGUMENTS]``.

    :param streams: ``stdin``, ``stdout``, ``stderr``, ``text`` and their like, as Popen takes them.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | str | None = None,
        start_new_session: bool = False,
        **streams: Any,
    ):
        self._request = {
            "words": list(command[1:]),
            "cwd": str(cwd or os.getcwd()),
            "environ": dict(env),
            "session": start_new_session,
        }
        super().__init__(command, **streams)

    # The three methods in which Popen meets the system.

    def _execute_child(self, *arguments: Any) -> None:
        # After ten arguments that are not used here: the ends of the three pipes, or -1 where nothing was asked for.
        ends = arguments[10:16]
        streams = [end if end != -1 else number for number, end in enumerate((ends[0], ends[3], ends[5]))]
        if not _parents:
            _parents.append(Parent())
        try:
            self.pid, self._status = _parents[0].fork(self._request, streams)
        finally:
            self._close_pipe_fds(*ends)
        self._child_created = True

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._status_within(0)

    def _wait(self, timeout: float | None) -> int:
        status = self._status_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def _status_within(self, timeout: float | None) -> int | None:
        with self._waitpid_lock:
            if self.returncode is None:
                waiting = select.poll()
                waiting.register(self._status, select.POLLIN)
                if waiting.poll(None if timeout is None else max(timeout, 0) * 1000):
                    told = os.read(self._status, TOLD.size)
                    os.close(self._status)
                    # Nothing is told when the process that forks was killed: then nobody knows.
                    self.returncode = os.waitstatus_to_exitcode(TOLD.unpack(told)[0]) if told else -signal.SIGKILL
            return self.returncode


def run_python(command: Sequence[str], *, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """:func:`subprocess.run` for :class:`Preloaded`: runs it to its end, and keeps what it prints as text."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with Preloaded(command, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


# -- on the side of the process that forks


def fork_for_requests(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each request and tell how each child ended. Returns None at the end of the connection, and in a child
    the request that it is for."""
    waiting = select.poll()
    waiting.register(connection, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in waiting.poll():
            if ready in children:
                pid, telling = children.pop(ready)
                waiting.unregister(ready)
                tell(telling, os.waitpid(pid, 0)[1])
                os.close(telling)
                os.close(ready)
                continue
            data, descriptors, _, _ = socket.recv_fds(connection, REQUEST, 4)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                for number, descriptor in enumerate(descriptors[:3]):
                    os.dup2(descriptor, number)
                connection.detach()
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                return json.loads(data)
            tell(descriptors[3], pid)
            watched = os.pidfd_open(pid)
            children[watched] = pid, descriptors.pop()
            waiting.register(watched, select.POLLIN)
            for descriptor in descriptors:
                os.close(descriptor)


def tell(descriptor: int, number: int) -> None:
    try:
        os.write(descriptor, TOLD.pack(number))
    except BrokenPipeError:
        # A test that was broken off.
        pass


def show_command_line(words: Sequence[str]) -> None:
    """Have ``ps`` and ``/proc`` show these words, in the place of the arguments of the process that forked."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    # arg_start and arg_end, see proc(5).
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join(word.encode() for word in words)[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def become(request: dict[str, Any], installed: list[str]) -> None:
    """Run the program of a request in this process, as an interpreter of its own would."""
    show_command_line([sys.executable, *request["words"]])
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(open(number, "wb", buffering=0, closefd=False), "utf-8", errors, write_through=True)
            for number, errors in ((1, "strict"), (2, "backslashreplace"))
        )
    program, *rest = request["words"]
    first = {"-c": "", "-m": request["cwd"]}.get(program, os.path.dirname(os.path.abspath(program)))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *paths, *installed]
    importlib.invalidate_caches()
    if os.environ.get("COVERAGE_PROCESS_START") or os.environ.get("COVERAGE_PROCESS_CONFIG"):
        import coverage

        coverage.process_startup()
    if program == "-c":
        text, *rest = rest
        sys.argv[:] = ["-c", *rest]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(text, "<string>", "exec"), main.__dict__)
    elif program == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = request["words"]
        runpy.run_path(program, run_name="__main__")


def run_to_the_end(request: dict[str, Any], installed: list[str]) -> None:
    """Run the program, and end this process as Python does, but without taking apart all that was imported: that
    takes half a second of processor time, and is over with the process anyway."""
    status: object = None
    interrupted = False
    try:
        become(request, installed)
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
        interrupted = isinstance(error, KeyboardInterrupt)
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)


def main() -> None:
    before = list(sys.path)
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        importlib.import_module(name)
    # zComm does without it (noxfile.py, epoll).
    if importlib.util.find_spec("uvloop"):
        importlib.import_module("uvloop")
    if "twisted.internet.reactor" in sys.modules:
        raise RuntimeError("one of the modules that are imported for all made a reactor")
    gc.collect()
    # What is here is for all of them: no child looks through it.
    gc.freeze()
    request = fork_for_requests(connection)
    if request is not None:
        run_to_the_end(request, [path for path in before if path != str(CHECKOUT)])


if __name__ == "__main__":
    main()
