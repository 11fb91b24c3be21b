"""The demo page in Chromium, driven by ``page.test.mjs`` with Node's test runner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from support.serverprocess import CHECKOUT, clean_environ, scripts, twistd_command

#: Seconds for the whole run; it takes less than one minute on an idle machine.
DEADLINE = 480


def test_demo_page(tmp_path: Path) -> None:
    """A person in two tabs creates, edits, filters, deletes, calls, is asked, and sees the server come back."""
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: apt-get install chromium"
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.yaml").write_text("theme: dark\n")
    here = Path(__file__).parent
    environ = clean_environ(home, {"PYTHONPATH": os.pathsep.join((str(CHECKOUT), str(here.parent)))})
    server = {
        "twistd": twistd_command(),
        "zcomm": str(scripts() / "zcomm"),
        "environ": environ,
        "files": str(files),
    }
    process = subprocess.Popen(
        ["node", "--test", "--test-reporter=tap", "page.test.mjs"],
        cwd=here,
        env={**environ, "CHROMIUM": chromium, "ZCOMM_TEST_SERVER": json.dumps(server), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            # Browser and server are in its group: none of them outlives a test that hangs.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, output
    assert "# fail 0" in output and "# pass 0" not in output, output
