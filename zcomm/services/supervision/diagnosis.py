"""What a server's last words mean: the cause, whether a retry can help, and the fix. Values in and out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from zcomm.text import redact

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found in the output of a server that ended.

    :ivar reason: the server's own last complaint.
    :ivar permanent: whether the same start would fail the same way.
    :ivar port_taken: whether it could not have its port.
    """

    reason: str
    fix: str = ""
    permanent: bool = False
    port_taken: bool = False


_OTHER_PORT = 'stop that server, or start with port="auto"'
_SAFE_MODE = "start it with safe_mode=True and undo the setting"

#: (pattern, permanent, fix). Gathered by provoking each of them on PostgreSQL 15 and Redis 7.
_POSTGRESQL: tuple[tuple[str, bool, str], ...] = (
    (r"No space left on device|wrote only \d+ of \d+ bytes", False, "free some space, then start it again"),
    (r"could not bind|could not create any TCP/IP sockets", True, _OTHER_PORT),
    (r"lock file \"postmaster\.pid\" already exists", False, "see the process it names, and zcomm doctor"),
    (r"bogus data in lock file|lock file .* is empty", True, "zcomm doctor tells if it can be moved aside"),
    (r"pre-existing shared memory block", False, "end the process that still uses the data directory"),
    (
        r"incompatible with server|was initialized by PostgreSQL version",
        True,
        "use the version that made the directory (bin_dir=…)",
    ),
    (
        r"data directory .* has (invalid permissions|wrong ownership)",
        True,
        "chmod 0700 the directory and chown it to the account of the server",
    ),
    (r"could not (map anonymous shared memory|create shared memory|resize shared memory)", True, _SAFE_MODE),
    # The line that names the setting before the one that only says there is such a line.
    (r"unrecognized configuration parameter|syntax error in file|invalid value for parameter", True, _SAFE_MODE),
    (r"could not access file|could not load library|configuration file .* contains errors", True, _SAFE_MODE),
    (r"could not load .*pg_hba\.conf|pg_hba\.conf", True, "repair pg_hba.conf; the log names the line"),
    (
        r"could not locate (a valid|required) checkpoint|invalid (primary )?checkpoint",
        True,
        "the write-ahead log is damaged: restore a backup; nothing was changed",
    ),
    (r"could not look up effective user", True, "the system must list the account; name another: user=…"),
    (r"cannot be run as root|not permitted", True, "name another account: user=…"),
    (
        r"could not open file \".*global/pg_control\"|is not a valid data directory",
        True,
        "this is no complete data directory; name another one",
    ),
    (r"Permission denied", True, "give the files to the account that runs the server"),
)

_REDIS: tuple[tuple[str, bool, str], ...] = (
    (r"No space left on device", False, "free some space, then start it again"),
    (r"TCP listening socket .*Permission denied", True, "choose a port above 1023"),
    (r"Address already in use", True, _OTHER_PORT),
    (r"Could not create server TCP listening socket|Failed listening on port", True, _OTHER_PORT),
    (
        r"Can't handle RDB format version|Wrong signature|Bad file format(?! reading the append)",
        True,
        "use the server that wrote the file (bin_dir=…), or move the file aside",
    ),
    (
        r"append only file|append-only file|AOF manifest|AOF loading|AOF file|appendonlydir",
        True,
        "copy the directory first, then redis-check-aof --fix; it drops what it cannot read",
    ),
    (
        r"Fatal error loading the DB|Short read or OOM loading DB|Internal error in RDB|RDB CRC error|"
        r"Unexpected EOF reading RDB|Error reading the RDB|Terminating server after rdb file reading failure",
        True,
        "the snapshot is damaged: move dump.rdb aside or restore a copy; nothing was changed",
    ),
    (r"FATAL CONFIG FILE ERROR|Bad directive", True, "correct the setting named in the log"),
    (r"Permission denied|Can't chdir", True, "give the files to the account that runs the server"),
)

_GENERAL: tuple[tuple[str, bool, str], ...] = (
    (r"No space left on device", False, "free some space, then start it again"),
    (r"[Aa]ddress already in use", True, "stop that server, or choose another port"),
    (r": not found|No such file or directory|command not found", True, "install the program, or correct the command"),
)

_TABLES = {"postgresql": _POSTGRESQL, "redis": _REDIS}
_PORT = re.compile(
    r"could not bind|could not create any TCP/IP sockets|TCP listening socket|"
    r"[Aa]ddress already in use"
)
_COMPLAINT = {
    "postgresql": re.compile(r"(?:FATAL|PANIC|ERROR):\s+(.*)"),
    "redis": re.compile(r"^(?:\d+:[A-Z] .*? # |\*\*\* |# )?(.*)$"),
}
_HINT = re.compile(r"HINT:\s+(.*)")
_QUIET = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [*.-] ")
_LINE_START = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [#*.-] ")
#: What a server says after its real complaint, or on every start.
_NOISE = re.compile(
    r"Redis is now ready to exit|bye bye|database system is shut down|"
    r"User requested shutdown|"
    r"# WARNING |HINT:|DETAIL:|CONTEXT:|STATEMENT:|LOG:|^\s*$|^Check https?:"
)

#: What PostgreSQL's own processes say because the postmaster is gone.
_ECHO = re.compile(r"terminating connection (due to|because of)|the database system is (starting|shutting)")


def diagnose(kind: str, output: str) -> Diagnosis:
    """The cause in ``output``, the end of what a server wrote before it ended.

    :param kind: ``postgresql``, ``redis`` or anything else.
    """
    lines = output.splitlines()[-200:]
    if kind == "redis":
        # What it says on every start (levels . - and *) is no complaint, whatever words are in it.
        lines = [line for line in lines if not _QUIET.match(line)]
    for pattern, permanent, fix in _TABLES.get(kind, _GENERAL):
        for line in reversed(lines):
            if re.search(pattern, line) and "database system was" not in line:
                return Diagnosis(_words(kind, line, lines), fix, permanent, bool(_PORT.search(line)))
    complaint = _last_complaint(kind, lines)
    return Diagnosis(complaint)


def _last_complaint(kind: str, lines: list[str]) -> str:
    pattern = _COMPLAINT.get(kind)
    for line in reversed(lines):
        if kind == "postgresql":
            found = pattern.search(line) if pattern else None
            if found and not _ECHO.search(line):
                return _clean(found.group(1))
        elif not _NOISE.search(line):
            return _clean(_LINE_START.sub("", line))
    return ""


def _words(kind: str, line: str, lines: list[str]) -> str:
    text = line
    if kind == "postgresql":
        found = re.search(r"(?:FATAL|PANIC|ERROR|LOG|WARNING):\s+(.*)", line)
        text = found.group(1) if found else line
        hints = [match.group(1) for match in map(_HINT.search, lines[-6:]) if match]
        if hints:
            text = f"{text} ({hints[-1]})"
    else:
        text = _LINE_START.sub("", line)
    return _clean(text)


def _clean(text: str) -> str:
    return redact(" ".join(text.split()))[:400]
