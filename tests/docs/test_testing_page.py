"""The examples of docs/testing.rst, as their reader runs them."""

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


@runs("testing-topics")
def test_the_test_of_a_topic_passes(tmp_path: Path):
    """By itself, as a reader would run it."""
    (tmp_path / "test_room.py").write_text(block("testing-topics").text, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:pytest_twisted", "test_room.py"],
        cwd=tmp_path,
        env=clean_environ(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
