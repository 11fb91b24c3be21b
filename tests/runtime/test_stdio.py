"""What is written to the log is there, whatever characters are in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.serverprocess import clean_environ

PROGRAM = """
import sys

from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.logfile import LogFile

from zcomm.runtime.stdio import keep_every_line

keep_every_line()
outputs = [sys.stdout, LogFile.fromFullPath(sys.argv[1])]
globalLogBeginner.beginLoggingTo([textFileLogObserver(each) for each in outputs], redirectStandardIO=False)
log = Logger()
for number, text in enumerate(("half \\ud800", "name \\udcff", "Gr\u00f6\u00dfe", "\u65e5\u672c", "plain")):
    try:
        raise ValueError(text)
    except ValueError:
        log.failure("failure {number}", number=number)
    log.info("line {number}: {text}", number=number, text=text)
"""


def test_contact_no_line_of_the_log_is_lost_for_a_character(tmp_path: Path):
    """Halves of a pair, and what the encoding of the output lacks, are escaped."""
    environ = clean_environ(tmp_path, {"PYTHONIOENCODING": "latin-1"})
    with open(tmp_path / "out", "wb") as out:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log")]
        done = subprocess.run(command, env=environ, stdout=out, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    for name, encoding, beyond in (("out", "latin-1", "\\u65e5\\u672c"), ("log", "utf-8", "日本")):
        text = (tmp_path / name).read_bytes().decode(encoding)
        for number, shown in enumerate(("half \\ud800", "name \\udcff", "Größe", beyond, "plain")):
            assert f"line {number}: {shown}\n" in text and f"failure {number}\n" in text, name
            assert f"builtins.ValueError: {shown}\n" in text, name
