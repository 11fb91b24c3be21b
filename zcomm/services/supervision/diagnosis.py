"""Diagnosis of a server's last words: the cause, whether a retry can help, and the fix. Values in and out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zcomm.text import redact

__all__ = ["ANY_LOG", "OTHER_PORT", "Diagnosis", "LogReading", "diagnose"]

#: What mends a taken port.
OTHER_PORT = 'stop that server, or start with port="auto"'


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause of a server's end, as found in its output.

    :ivar reason: the server's own last complaint.
    :ivar permanent: whether the same start would fail the same way.
    :ivar port_taken: whether it could not have its port.
    """

    reason: str
    fix: str = ""
    permanent: bool = False
    port_taken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReading:
    """The patterns by which the log of one kind of server is read.

    :ivar causes: (pattern, whether the same start would fail again, fix), the most telling first.
    :ivar port_taken: a line of a cause that says that the port was taken.
    :ivar ignored: lines that are no complaint, whatever words are in them.
    :ivar message: the part of a line that is for people, as group 1; the whole line where it does not match.
    :ivar hint: the server's own advice near a cause, as group 1.
    :ivar complaint: what a line must have to be taken for a complaint that is none of the ``causes``.
    :ivar noise: what a server says after its real complaint, or on every start.
    """

    causes: Sequence[tuple[str, bool, str]] = ()
    port_taken: str = r"[Aa]ddress already in use"
    ignored: str = r"(?!)"
    message: str = r"^(.*)$"
    hint: str = r"(?!)()"
    complaint: str = r""
    noise: str = r"^\s*$"


#: For a server of which nothing particular is known.
ANY_LOG = LogReading(
    causes=(
        (r"No space left on device", False, "free some space, then start it again"),
        (r"[Aa]ddress already in use", True, "stop that server, or choose another port"),
        (
            r": not found|No such file or directory|command not found",
            True,
            "install the program, or correct the command",
        ),
    )
)


def diagnose(reading: LogReading, output: str) -> Diagnosis:
    """The cause in ``output``, the end of what a server wrote before it ended."""
    lines = [line for line in output.splitlines()[-200:] if not re.search(reading.ignored, line)]
    for pattern, permanent, fix in reading.causes:
        for line in reversed(lines):
            if re.search(pattern, line):
                text = _message(reading, line)
                hints = [found.group(1) for found in (re.search(reading.hint, near) for near in lines[-6:]) if found]
                text = f"{text} ({hints[-1]})" if hints else text
                return Diagnosis(_clean(text), fix, permanent, re.search(reading.port_taken, line) is not None)
    for line in reversed(lines):
        if re.search(reading.complaint, line) and not re.search(reading.noise, line):
            return Diagnosis(_clean(_message(reading, line)))
    return Diagnosis("")


def _message(reading: LogReading, line: str) -> str:
    found = re.search(reading.message, line)
    return found.group(1) if found else line


def _clean(text: str) -> str:
    return redact(" ".join(text.split()))[:400]
