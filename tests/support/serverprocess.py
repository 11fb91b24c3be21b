"""``twistd zcomm`` as a child process: a real server for tests that come from outside.

:func:`start_server` returns when the server listens. ``server.url``, ``server.port`` and
``server.token`` are what it chose and created by itself, as for a new user: an empty home, port 0.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Mapping
from pathlib import Path

from support.preloaded import Preloaded
from support.waiting import DEADLINE

__all__ = [
    "CHECKOUT",
    "LISTENING",
    "RunningServer",
    "clean_environ",
    "scripts",
    "start_server",
    "twistd_command",
]

CHECKOUT = Path(__file__).resolve().parents[2]

READY = re.compile(r"\] ready$", re.MULTILINE)
LISTENING = re.compile(r"zBifrost listening on (wss?://\S+?:(\d+)\S*)")


def scripts() -> Path:
    """The directory of this Python's console commands."""
    return Path(sysconfig.get_path("scripts"))


def twistd_command(*options: str) -> list[str]:
    """The command line of a server in the foreground, without a pid file."""
    return [sys.executable, str(scripts() / "twistd"), "--nodaemon", "--pidfile=", "zcomm", *options]


def clean_environ(home: Path, extra: Mapping[str, str] | None = None, *, measured: bool = False) -> dict[str, str]:
    """An environment in which nothing of the developer's own is set.

    :param measured: let coverage measure what runs in it, where no test in the tests' own process does the same. It
        makes a program half as slow again, and writes a file at its end.
    """
    coverage = {name: value for name, value in os.environ.items() if name.startswith(("COVERAGE_", "COV_"))}
    return {
        **(coverage if measured else {}),
        "PATH": f"{scripts()}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


class RunningServer:
    """A server process and what it says.

    :param preloaded: a program of this interpreter begins with its imports done, see :mod:`support.preloaded`.
    """

    def __init__(
        self,
        command: list[str],
        home: Path,
        environ: Mapping[str, str],
        cwd: Path | None = None,
        *,
        preloaded: bool = True,
    ):
        self.home = home
        self.url = ""
        self.port = 0
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._silent = False
        start = Preloaded if preloaded and command[0] == sys.executable else subprocess.Popen
        self.process: subprocess.Popen[str] = start(
            command,
            cwd=cwd or home,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        # A pipe that nobody drains would stop the server: a thread reads it as long as it is open.
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        with self._news:
            return "\n".join(self._lines)

    @property
    def http_url(self) -> str:
        """The address of the page, without a trailing slash."""
        return self.url.replace("ws", "http", 1).rstrip("/")

    @property
    def token(self) -> str:
        """The operator's token, which the first start put into the data directory."""
        usual = self.home / ".zolo" / "zcomm" / "operator.json"
        path = usual if usual.exists() else next(self.home.rglob("operator.json"))
        return json.loads(path.read_text())["token"]

    def wait_for_log(self, pattern: str | re.Pattern[str], timeout: float = DEADLINE) -> re.Match[str]:
        """The first match in the log, waiting for it; fails when the server ends or time is up."""
        expression = re.compile(pattern)
        found: list[re.Match[str]] = []

        def look() -> bool:
            text = "\n".join(self._lines)
            if match := expression.search(text):
                found.append(match)
            return bool(found) or self._silent

        with self._news:
            in_time = self._news.wait_for(look, timeout)
        if not found:
            why = "the server ended" if in_time else f"{timeout:g} s passed"
            raise AssertionError(f"{why} without {expression.pattern!r} in its log:\n{self.log}")
        return found[0]

    def wait(self, timeout: float = DEADLINE) -> int:
        """The exit status, waiting for the end."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, then wait; returns the exit status. May be called again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._end()

    def kill(self) -> int:
        """SIGKILL, then wait. May be called again."""
        if self.process.poll() is None:
            self.process.kill()
        return self._end()

    def _end(self) -> int:
        try:
            status = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end within {DEADLINE:g} s:\n{self.log}") from None
        self._reader.join(DEADLINE)
        self.process.stdout.close()
        return status


def start_server(*options: str, home: Path, environ: Mapping[str, str] | None = None) -> RunningServer:
    """Start ``twistd zcomm OPTIONS`` with ``home`` as its home and return when it listens and
    all behind it is ready.

    ``--port 0`` is added unless the options say where to listen.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not {"--port", "-p", "--listen"} & set(options) and not any(
        o.startswith(("--port=", "--listen=")) for o in options
    ):
        options = ("--port", "0", *options)
    server = RunningServer(twistd_command(*options), home, clean_environ(home, environ))
    try:
        match = server.wait_for_log(LISTENING)
        # It listens before its database and services are there; /health says 503 until then.
        server.wait_for_log(READY)
    except BaseException:
        server.kill()
        raise
    server.url, server.port = match[1], int(match[2])
    return server
