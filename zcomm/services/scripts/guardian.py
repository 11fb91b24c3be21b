"""``guardian.py PID SIGNAL:SECONDS…``: end that process in good order when zComm is gone.

Run as a script beside a server where the kernel cannot be asked to do it. Its standard input is a pipe
that only zComm holds open: the end of the pipe is the end of zComm, however that ended. It imports
nothing of zComm and remembers when the process started, so that it never signals another one.
"""

import os
import signal
import subprocess
import sys
import time


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
    pid = int(argv[0])
    ours = started(pid)
    while os.read(0, 4096):
        pass
    for step in argv[1:]:
        number, _, seconds = step.partition(":")
        if not ours or started(pid) != ours:
            return
        try:
            os.kill(pid, int(number))
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            if started(pid) != ours:
                return
            time.sleep(0.02)


if __name__ == "__main__":
    main(sys.argv[1:])
