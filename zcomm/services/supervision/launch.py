"""Launching a server: the command line around its command line, and the guardian beside it.

The server becomes a direct child of zComm (its pid is the pid we know) that leads a session of its own
(Ctrl-C in a terminal does not reach it), runs under the right account, creates private files, holds no
descriptor but its three, sees no variable but a few, and, with ``lifetime="session"``, is told to stop by
the kernel when zComm dies. Small system programs do all that, each ``exec``\\ ing the next; where one is
missing, :mod:`zcomm.services.scripts.launcher` does it in Python.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from zcomm.services.declaration import StopStep
from zcomm.services.machine.account import Account, current_account
from zcomm.services.machine.logfile import LogFile

__all__ = ["Guardian", "Launch", "Tools", "command_line", "find_tools", "server_environment"]

#: Programs of ours that a bare interpreter runs.
_SCRIPTS = Path(__file__).parents[1] / "scripts"
_SHELL = "/bin/sh"
#: Besides, the child writes down who it is: a zComm that dies right after the fork cannot.
_PRELUDE = (
    'cd "$1" && umask 077 && { [ -z "$2" ] || { read -r line < /proc/$$/stat && '
    "read -r boot < /proc/sys/kernel/random/boot_id && "
    'printf "%s\\n" "$line" "$boot" > "$2"; } 2> /dev/null || :; } && shift 2 && exec "$@"'
)
#: Variables a server may see. Nothing of PG*, LC_*, LD_*, no token of the program that runs zComm.
_PASSED = ("PATH", "TZ", "TMPDIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One run of one program, all of it decided.

    :ivar argv: the program (absolute path) and its arguments.
    :ivar death_signal: what it gets when zComm dies, ``None`` to live on.
    :ivar directory: where it starts.
    :ivar identity_file: the file in which it writes down its pid and start (its ``/proc/<pid>/stat``, and the boot), or
        nothing.
    """

    argv: tuple[str, ...]
    log: LogFile
    account: Account
    environment: Mapping[str, str] = field(default_factory=dict)
    death_signal: int | None = None
    directory: str = "/"
    identity_file: str = ""


@dataclass(frozen=True, slots=True)
class Tools:
    """The system programs found: ``setsid`` and ``setpriv``, or ``None`` where there are none (macOS)."""

    setsid: str | None = None
    setpriv: str | None = None

    @property
    def watches_parent(self) -> bool:
        """Whether the kernel can be asked to signal a child whose parent died."""
        return self.setpriv is not None and sys.platform.startswith("linux")


def find_tools() -> Tools:
    """The tools of this system, searched for in the system's directories only."""
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return Tools(shutil.which("setsid", path=path), shutil.which("setpriv", path=path))


def server_environment(
    environ: Mapping[str, str], account: Account, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a server: a few variables passed on, the account's own, UTF-8, and ``extra``."""
    environment = {name: environ[name] for name in _PASSED if name in environ}
    environment.setdefault("PATH", os.defpath)
    environment.update(HOME=account.home, USER=account.name, LOGNAME=account.name, LC_ALL="C.UTF-8")
    environment.update(extra or {})
    return environment


def command_line(launch: Launch, tools: Tools) -> list[str]:
    """The whole command, for ``spawnProcess``; its first word is the program to run."""
    drop = current_account().uid == 0 and launch.account.uid != 0
    if tools.setsid is None or (drop and tools.setpriv is None):
        return _python_launcher(launch, drop)
    words: list[str] = [_SHELL, "-c", _PRELUDE, "zcomm", launch.directory, launch.identity_file, tools.setsid]
    privileges = _setpriv_words(launch, drop, tools)
    if privileges and tools.setpriv is not None:
        words += [tools.setpriv, *privileges, "--"]
    return [*words, *launch.argv]


def _setpriv_words(launch: Launch, drop: bool, tools: Tools) -> list[str]:
    words: list[str] = []
    if drop:
        groups = "--init-groups" if launch.account.listed else "--clear-groups"
        words += [f"--reuid={launch.account.uid}", f"--regid={launch.account.gid}", groups]
    if launch.death_signal is not None and tools.watches_parent:
        # After the change of account: the kernel forgets the wish when credentials change.
        words.append(f"--pdeathsig={signal.Signals(launch.death_signal).name.removeprefix('SIG')}")
    return words


def _python_launcher(launch: Launch, drop: bool) -> list[str]:
    script = str(_SCRIPTS / "launcher.py")
    account: Sequence[str] = ("-", "-", "-")
    if drop:
        groups = ",".join(str(group) for group in sorted(launch.account.groups)) or str(launch.account.gid)
        account = (str(launch.account.uid), str(launch.account.gid), groups)
    return [sys.executable, "-I", "-S", script, launch.directory, *account, *launch.argv]


class Guardian(ProcessProtocol):
    """A small process that outlives zComm just long enough to end one server in good order."""

    transport: Any

    def __init__(self) -> None:
        self.gone = False

    @classmethod
    def beside(cls, reactor: Any, pid: int, ladder: Sequence[StopStep], mark: str = "") -> Guardian:
        """Start one for the process ``pid``, and for what that started, if it has a ``mark``
        (:data:`zcomm.services.machine.identity.MARK`)."""
        script = str(_SCRIPTS / "guardian.py")
        steps = [f"{int(step.signal)}:{step.seconds:g}" for step in ladder]
        words = [sys.executable, "-I", "-S", script, str(pid), mark, *steps]
        guardian = cls()
        # Its standard input is the pipe that only we hold open; it says nothing.
        reactor.spawnProcess(guardian, words[0], words, env={"PATH": "/usr/bin:/bin"}, childFDs={0: "w", 1: "r", 2: 2})
        return guardian

    def dismiss(self) -> None:
        """It is not needed any more; the server has ended, or is to live on without us."""
        if not self.gone:
            self.transport.signalProcess("KILL")

    def processEnded(self, reason: Failure) -> None:
        self.gone = True
