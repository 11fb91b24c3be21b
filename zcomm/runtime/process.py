"""Insides of processes that nobody else tells of: the log files twistd has open, an exit status of our own, the outcome
of a daemon's start, its pid file, what a forked child has no business with, and what tells one process from a later one
of its number."""

from __future__ import annotations

import atexit
import fcntl
import gc
import io
import os
import re
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol
from weakref import WeakSet

import psutil
from twisted.python.logfile import BaseLogFile, LogFile

__all__ = [
    "PidFile",
    "exit_failed",
    "exit_with",
    "keep_from_children",
    "open_files",
    "open_log_files",
    "pid_space",
    "process_identity",
    "remove_stale_pid_file",
    "reopen_log_file",
    "wait_for_daemon",
]

#: Bytes that a pid file has at most; more is something else.
_PID_FILE = 64
_OURS = re.compile(rb"[0-9]+\n")
#: In the name or the command line of whatever runs Twisted.
_PYTHON = re.compile("python|pypy|twist", re.IGNORECASE)


class Forkable(Protocol):
    """Something with open files that belong to this process alone."""

    def forked(self) -> None:
        """Close the copies of them that this process, a forked child, has; nothing else is done to them."""


_KEPT: WeakSet[Forkable] = WeakSet()


def keep_from_children(thing: Forkable) -> None:
    """Let no child that this process forks from now on have the open files of ``thing``.

    Such a child (a worker of a pool, say) may outlive a server that is killed: a lock, a port and connections would be
    held by somebody who does not know of them. One that runs another program has none of them anyway.
    """
    _KEPT.add(thing)


def _forked() -> None:
    for thing in list(_KEPT):
        with suppress(Exception):
            thing.forked()
    _KEPT.clear()


os.register_at_fork(after_in_child=_forked)


def open_files(at_least: int) -> int:
    """The number of files that this process has open, of whatever kind; ``at_least`` where the system does not tell."""
    try:
        # One more is open while they are listed.
        return max(at_least, len(os.listdir("/dev/fd")) - 1)
    except OSError:
        return at_least


def open_log_files() -> list[BaseLogFile]:
    """The files that Twisted logs to, from now on kept open whatever happens to them: see :func:`_keep_open`.

    Asked for once, at the start: it looks at every object there is.
    """
    files = [thing for thing in gc.get_objects() if isinstance(thing, BaseLogFile)]
    for file in files:
        _keep_open(file)
    return files


def reopen_log_file(file: BaseLogFile) -> None:
    """Let what is logged from now on go to the file that has the path of this one; until that is open, nothing changes.

    :raises OSError: when it cannot be opened; what is logged goes where it went before.
    """
    mode = file.defaultMode
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(file.path, flags, 0o666 if mode is None else 0o600)
    try:
        if mode is not None:
            # As Twisted does.
            with suppress(OSError):
                os.fchmod(descriptor, mode)
        # In one step: another thread may be writing.
        os.dup2(descriptor, file._file.fileno(), inheritable=False)
        _count(file, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _keep_open(file: Any) -> None:
    """Append to a log file, for whoever cuts it off while it is open, and have no rotation by its size end it.

    Twisted closes it before it has another, and what fails in between would end all logging until a restart.
    """
    rotate: Callable[[], None] | None = getattr(file, "rotate", None)
    _append(file)
    if rotate is None:
        return

    def rotate_or_go_on() -> None:
        spare = -1
        try:
            if os.path.exists(file.path):
                spare = os.dup(file._file.fileno())
                rotate()
                _append(file)
            else:
                reopen_log_file(file)
        except OSError:
            if file._file.closed:
                file._file, spare = os.fdopen(spare, "rb+", 0), -1
            # Not again with the next line, but when as much has been written once more.
            _count(file, 0)
        finally:
            if spare >= 0:
                os.close(spare)

    file.rotate = rotate_or_go_on


def _append(file: BaseLogFile) -> None:
    if not file.closed:
        descriptor = file._file.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)


def _count(file: BaseLogFile, size: int) -> None:
    """Go by this size when the next rotation is due."""
    if isinstance(file, LogFile):
        file.size = size


def exit_failed() -> None:
    """Exit with status 1, after all that is to be done at exit; register it with :mod:`atexit`.

    twistd itself knows no failure after the reactor has started.
    """
    atexit.unregister(exit_failed)
    exit_with(1)


def exit_with(status: int) -> NoReturn:
    """Exit with ``status``, whatever the main thread came to its end with, after all that is to be done at exit.

    Called by the main thread at that end. Threads that still run are not waited for.
    """
    atexit._run_exitfuncs()
    # As the interpreter itself does at its end with whatever is in their buffers.
    for file in gc.get_objects():
        if issubclass(type(file), (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            # Broken, closed, or for reading alone.
            with suppress(OSError, ValueError):
                file.flush()
    os._exit(status)


def wait_for_daemon() -> Callable[[str], None]:
    """Let this process, which is about to fork into a daemon, wait until the daemon has started or has ended.

    If it ended, this process exits with the reason in one line on standard error and status 1. twistd's own wait hears
    of an ``Exception`` only, and lasts for ever when the daemon ends in any other way.

    :returns: to be called once in the daemon, with why it could not be started, or with nothing when it has.
    """
    reader, writer = os.pipe()
    starter = os.getpid()

    def wait() -> None:
        # A daemon is forked twice, and forks are its own business later.
        if os.getpid() != starter:
            return
        os.close(writer)
        try:
            said = os.read(reader, select.PIPE_BUF)
        except KeyboardInterrupt:
            os._exit(130)
        os.close(reader)
        if said != b"\n":
            os.write(2, said or b"zcomm: the start failed; the log says why\n")
            os._exit(1)

    def tell(reason: str) -> None:
        # Not more than a pipe takes at once, or a reader could take the first part for all of it.
        with suppress(BrokenPipeError):
            os.write(writer, reason.encode("utf-8", "backslashreplace")[: select.PIPE_BUF - 1] + b"\n")
        os.close(writer)
        os.close(reader)

    os.register_at_fork(after_in_parent=wait)
    return tell


class PidFile:
    """The file into which twistd has written this process's id.

    twistd believes such a file as long as any process has the number, which in a container or after a power failure may
    be its own. So this process keeps its file locked until it ends, however it ends, and puts an end to its line:
    a file with that is one of ours, and stale unless it is locked.
    """

    def __init__(self, path: str):
        self._path = path
        self._descriptor: int | None = None

    def hold(self) -> None:
        """Lock it; nothing is done where it is another process's, or the file system has no locks."""
        with suppress(OSError, ValueError):
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if int(os.read(descriptor, _PID_FILE)) == os.getpid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.write(descriptor, b"\n")
                    descriptor, self._descriptor = -1, descriptor
                    keep_from_children(self)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def forked(self) -> None:
        """Close the copy that a forked child has; the lock stays with its parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def remove(self) -> None:
        """Remove it if the pid in it is this process's."""
        with suppress(OSError, ValueError):
            if int(Path(self._path).read_bytes()) == os.getpid():
                os.unlink(self._path)


def remove_stale_pid_file(path: str) -> None:
    """Remove a pid file that no server has written that still runs; what may be another's stays for twistd to judge."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                return
            text = os.read(descriptor, _PID_FILE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            stale = _OURS.fullmatch(text) is not None or _is_of_no_server(text)
            if stale and os.path.samestat(facts, os.lstat(path)):
                os.unlink(path)
        finally:
            os.close(descriptor)


def _is_of_no_server(text: bytes) -> bool:
    """Whether no living server of Twisted's can have written this pid file."""
    if not text.strip(b" \t\r\n\0"):
        # What a power failure leaves of it.
        return True
    try:
        pid = int(text)
        process = psutil.Process(pid)
        # This process has written none yet; and a thread's number is no process's.
        if pid == os.getpid() or not psutil.pid_exists(pid) or process_identity(pid) is None:
            return True
        return _PYTHON.search(" ".join((process.name(), *process.cmdline()))) is None
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, OverflowError):
        return False


def process_identity(pid: int) -> str | None:
    """The identity that tells this process from any other that had or will have its pid; ``None`` if it is gone.

    On Linux the start in clock ticks and the boot it belongs to: the wall clock may be set, that is not.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        boot = _boot()
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    except OSError:
        return None
    else:
        # A zombie has ended; that its pid is still taken helps nobody.
        return None if fields[0] in (b"Z", b"X") else f"{fields[19].decode()}@{boot}"
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def _boot() -> str:
    """The boot of the system. :raises OSError: where it does not tell."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def pid_space() -> str:
    """The identity of what gives processes their numbers: this boot, and in a container its run (a PID namespace), by
    the first process there; by the boot alone where that may not be seen. Empty where the system does not tell."""
    first = process_identity(1)
    if first is None:
        with suppress(OSError):
            return _boot()
    return first or ""
