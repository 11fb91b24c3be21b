"""The package tells type checkers what it takes and gives, so its own types are checked with the rest of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.serverprocess import CHECKOUT, clean_environ


def test_types_hold(tmp_path: Path):
    """``mypy --strict`` finds nothing in zcomm/, by the configuration in pyproject.toml."""
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", CHECKOUT / ".test-cache" / "mypy", "--no-error-summary"],
        cwd=CHECKOUT,
        env=clean_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
    )
    # A comparison would show the start of the output, which is cut; this shows all of it.
    assert not checked.returncode and not checked.stderr, checked.stdout + checked.stderr
