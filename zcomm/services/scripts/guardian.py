"""``guardian.py PID MARK SIGNAL:SECONDS…``: end that process in good order when zComm is gone, then what it started.

Run as a script beside a server where the kernel cannot be asked to do all of it. Its standard input is a pipe
that only zComm holds open: the end of the pipe is the end of zComm, however that ended. It imports
nothing of zComm and remembers when the process started, so that it never signals another one.
"""

import os
import signal
import subprocess
import sys
import time

#: Times that what is left is looked for: what is asked to end may start something else.
ATTEMPTS = 10


def started(pid: int) -> str:
    """The identity that tells the process from later ones with its pid; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except OSError:
        if os.path.isdir("/proc/self"):
            return ""
    told = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return "" if told.startswith("Z") else " ".join(told.split()[1:])


def main(argv: list[str]) -> None:
    """Wait for the end of standard input, then climb the ladder."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    os.setsid()
    pid, mark, *steps = int(argv[0]), *argv[1:]
    ours = started(pid)
    while os.read(0, 4096):
        pass
    climb(steps, {pid: ours} if ours else {})
    for _ in range(ATTEMPTS if mark else 0):
        left = marked(mark, pid)
        if not left:
            return
        climb(steps, left)


def climb(steps: list[str], processes: dict[int, str]) -> None:
    """Climb the ladder until these processes, by their pid and identity, have ended."""
    for step in steps:
        number, _, seconds = step.partition(":")
        for pid, ours in processes.items():
            if started(pid) == ours:
                try:
                    os.kill(pid, int(number))
                    os.kill(pid, signal.SIGCONT)
                except (ProcessLookupError, PermissionError):
                    pass
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            processes = {pid: ours for pid, ours in processes.items() if started(pid) == ours}
            if not processes:
                return
            time.sleep(0.02)


def marked(mark: str, session: int) -> dict[int, str]:
    """The processes that the server started, by their environment, or by their session where that is gone (Linux)."""
    wanted, found = b"ZCOMM_SERVICE=" + os.fsencode(mark), {}
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else ()):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                environment = file.read().split(b"\0")
            mine = os.geteuid() in (0, os.stat(f"/proc/{name}").st_uid)
            member = mine and os.getsid(int(name)) == session
        except OSError:
            continue
        if wanted in environment or (member and b"=" not in environment[0]):
            found[int(name)] = started(int(name))
    return {pid: ours for pid, ours in found.items() if ours and pid != os.getpid()}


if __name__ == "__main__":
    main(sys.argv[1:])
