"""The example of docs/testing.rst, as its reader runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from support.docs_blocks import block, runs
from support.serverprocess import CHECKOUT, clean_environ
from support.waiting import DEADLINE


@runs("testing-functions")
def test_the_tests_of_the_shop_pass(tmp_path: Path):
    """All four, beside the file that they test."""
    shutil.copy(CHECKOUT / "docs" / "examples" / "shop.py", tmp_path)
    (tmp_path / "test_shop.py").write_text(block("testing-functions").text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:pytest_twisted", "test_shop.py"],
        cwd=tmp_path,
        env=clean_environ(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
