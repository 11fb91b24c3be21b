"""The package tells type checkers what it takes and gives, so its own types are checked with the rest of it."""

from __future__ import annotations

import subprocess
import sys

from support.serverprocess import CHECKOUT


def test_types_hold():
    """``mypy --strict`` finds nothing in zcomm/, by the configuration in pyproject.toml."""
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", CHECKOUT / ".test-cache" / "mypy", "--no-error-summary"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
