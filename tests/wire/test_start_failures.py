"""A start that fails once the reactor runs: one line, what runs is stopped, exit status 1."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from support.preloaded import run_python
from support.serverprocess import clean_environ, twistd_command
from support.waiting import DEADLINE

pytestmark = pytest.mark.child


@pytest.mark.parametrize(
    "options, environ, line",
    [
        (["--service", "redis"], {"REDIS_DATA_DIR": "not/absolute"}, "not/absolute"),
        (["--database", "postgresql+psycopg://nobody:hunter@127.0.0.1:1/none?sslpassword=hunter"], {}, "postgresql"),
        (["--database", "postgresql+psycopg://nobody@127.0.0.1:1/none?pasword=hunter"], {}, "postgresql"),
        (["--database", "sqlite:////no/x.db?password=hunter"], {}, "x.db?password=***: the directory does not exist"),
        (["--database", "sqlite://host/x.db?pwd=hunter"], {}, "sqlite://host/x.db?pwd=***: "),
        (["--listen", "foo:1"], {}, "Unknown endpoint type: 'foo'"),
        (["--listen", "ssl:0:privateKey=/nowhere.pem"], {}, "/nowhere.pem"),
        # A pipe that nobody writes to, wherever a file is named.
        (["--services", "fifo"], {}, "/fifo is no regular file"),
        (["--database", "sqlite:///{home}/fifo"], {}, "/fifo: it is no regular file"),
        (["--listen", "ssl:0:privateKey=fifo"], {}, "the TLS key fifo is no regular file"),
        (["--database", "sqlite:////proc/zcomm.sqlite3"], {}, "sqlite"),
    ],
)
def test_what_cannot_be_had_ends_the_start(tmp_path: Path, options: list[str], environ: dict[str, str], line: str):
    """The line names what cannot be had, without its password, and there is no traceback."""
    home = tmp_path / "home"
    home.mkdir()
    os.mkfifo(home / "fifo")
    done = run_python(
        twistd_command("--port", "0", *(option.replace("{home}", str(home)) for option in options)),
        cwd=home,
        env=clean_environ(home, environ, measured=True),
        timeout=2 * DEADLINE,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert [text for text in output.splitlines() if "zcomm: " in text and line in text], output
    assert "Traceback" not in output and "hunter" not in output


FULL = """
mount -t tmpfs -o size=1m,mode=700 tmpfs "$1" && cp "$2" "$1/zcomm.sqlite3" && chmod 600 "$1/zcomm.sqlite3" || exit 77
dd if=/dev/zero of="$1/filler" bs=1k 2> /dev/null
shift 2
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root mounts something")
def test_b34_a_database_that_cannot_be_opened_on_a_full_disk(tmp_path: Path):
    """SQLite makes the index of its log before it reads anything: the line says that there is no room."""
    home, disk, database = tmp_path / "home", tmp_path / "disk", tmp_path / "x.sqlite3"
    for directory in (home, disk):
        directory.mkdir(mode=0o700)
    with closing(sqlite3.connect(database)) as made:
        made.execute("PRAGMA journal_mode = wal")
        made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    options = ("--port", "0", "--no-auth", "--data-dir", str(disk))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", FULL, "sh", str(disk), str(database), *twistd_command(*options)],
        cwd=home,
        env=clean_environ(home),
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode == 77 or "unshare:" in output:
        pytest.skip("nothing can be mounted here")
    assert done.returncode == 1 and "Traceback" not in output, output
    (line,) = [text for text in output.splitlines() if "zcomm: " in text]
    assert "zcomm: The database does not answer: sqlite:////" in line, output
    assert line.endswith("; no room is left on the disk, it seems"), output
    (line,) = [text for text in output.splitlines() if "server.json cannot be written" in text]
    assert "No space left on device; until it is" in line


@pytest.mark.parametrize(
    "options, line",
    [
        (["--port", "abc"], "--port: 'abc' is not a port"),
        (["--bogus"], "option --bogus not recognized"),
        (["--prot", "1"], 'option --prot not recognized; did you mean "port"?'),
        (["--data-dri=x"], 'option --data-dri not recognized; did you mean "data-dir"?'),
        (["--functions", "no_such_module"], "--functions no_such_module: there is no such module"),
    ],
)
def test_what_is_wrong_is_said_in_few_lines(tmp_path: Path, options: list[str], line: str):
    """Not below a page of help."""
    home = tmp_path / "home"
    home.mkdir()
    done = run_python(twistd_command(*options), cwd=home, env=clean_environ(home, measured=True), timeout=2 * DEADLINE)
    output = done.stdout + done.stderr
    assert done.returncode == 1 and line in output, output
    assert len(output.splitlines()) <= 4 and "Traceback" not in output, output
