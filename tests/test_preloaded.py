"""Programs that are forked from a process with all imports behave as those that an interpreter of their own runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.preloaded import Preloaded, run_python
from support.serverprocess import CHECKOUT, clean_environ

SHOWN = """\
import json, os, sys
told = [sys.argv[1:], os.getcwd(), sys.path[0], os.environ.get("ONE"), os.environ.get("HOME"), __name__]
told.append(sys.stdin.read())
print(json.dumps(told))
print(sorted(os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")), file=sys.stderr)
"""


def both(command: list[str], home: Path, **options: Any) -> list[tuple[int, str, str]]:
    """How it ends and what it prints: by an interpreter of its own, and forked."""
    environ = clean_environ(home, {"ONE": "1"})
    theirs = subprocess.run(
        command, cwd=home, env=environ, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **options
    )
    ours = run_python(command, cwd=home, env=environ, timeout=60, **options)
    return [(one.returncode, one.stdout, one.stderr) for one in (theirs, ours)]


def test_a_program_sees_the_same(tmp_path: Path):
    """Arguments, directory, path, environment, descriptors and an empty input: of a script, a text and a module."""
    (tmp_path / "shown.py").write_text(SHOWN)
    for words in (["shown.py"], ["-c", SHOWN], ["-m", "shown"]):
        theirs, ours = both([sys.executable, *words, "a word", "-x"], tmp_path)
        assert ours == theirs and theirs[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('said at the end')",
        "import sys; sys.exit()",
        "raise SystemExit(256 + 7)",
        "import atexit; atexit.register(print, 'at exit'); print('before')",
        "import threading; threading.Thread(target=print, args=['a thread']).start()",
        "import os; print('lost', end=''); os._exit(4)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os.setsid()",
    ],
)
def test_a_program_ends_the_same(text: str, tmp_path: Path):
    """With its status, what it says last, and the signal that ended it."""
    theirs, ours = both([sys.executable, "-c", text], tmp_path)
    assert ours == theirs


@pytest.mark.parametrize("text", ["1 / 0", "raise KeyboardInterrupt"])
def test_an_exception_ends_it(text: str, tmp_path: Path):
    """With a traceback; Ctrl-C as by its signal."""
    theirs, ours = both([sys.executable, "-c", text], tmp_path)
    assert ours[0] == theirs[0] and ours[2].splitlines()[-1] == theirs[2].splitlines()[-1]
    assert "Traceback" in ours[2]


def test_it_is_a_process_that_can_be_waited_for_and_signalled(tmp_path: Path):
    """It runs under its own command line in its own session until it is told to end, and no longer."""
    command = [sys.executable, "-c", "print('here', flush=True); input()", "a word"]
    with Preloaded(
        command,
        env=clean_environ(tmp_path),
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "here\n" and process.poll() is None
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert shown == [word.encode() for word in command] and os.getsid(process.pid) == process.pid
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM == process.poll() and process.returncode == -signal.SIGTERM
    assert not Path(f"/proc/{process.pid}").exists()


def test_two_have_nothing_in_common(tmp_path: Path):
    """What one imports, sets or draws is not there in the next; chance is not shared."""
    text = "import sys, random, zcomm; print(random.random()); assert not hasattr(zcomm, 'seen'); zcomm.seen = 1"
    told = {
        run_python([sys.executable, "-c", text], env=clean_environ(tmp_path), cwd=CHECKOUT, timeout=60).stdout
        for _ in range(5)
    }
    assert len(told) == 5 and "" not in told


def test_none_of_what_is_imported_makes_a_reactor(tmp_path: Path):
    """A program chooses its own."""
    text = "import sys; assert 'twisted.internet.reactor' not in sys.modules and 'zcomm.tap' in sys.modules"
    done = run_python([sys.executable, "-c", text], env=clean_environ(tmp_path), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_plugins_are_looked_for_where_its_own_path_says(tmp_path: Path):
    """Twisted's plugins beside the program are found, as are those of the checkout."""
    (tmp_path / "twisted" / "plugins").mkdir(parents=True)
    (tmp_path / "twisted" / "plugins" / "of_this_test.py").touch()
    text = "import twisted.plugins as one; print(*[path for path in one.__path__ if 'site-packages' not in path])"
    environ = clean_environ(tmp_path, {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"})
    done = run_python([sys.executable, "-c", text], env=environ, cwd=tmp_path, timeout=60)
    assert {str(tmp_path / "twisted" / "plugins"), str(CHECKOUT / "twisted" / "plugins")} <= set(done.stdout.split())
