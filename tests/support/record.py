"""Runs pytest and writes down how every test ended: ``python -P tests/support/record.py RESULT ARGUMENT…``.

RESULT becomes a JSON object: ``ends`` has ``passed``, ``failed`` or ``skipped`` by the id of the test, ``broken``
lists what no second run can excuse (a file that cannot be collected, a worker that died).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


class Record:
    """A plugin of pytest, in the process that the workers of xdist report to."""

    def __init__(self) -> None:
        self._ends: dict[str, str] = {}
        self._broken: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self._ends.get(report.nodeid)
        if report.when not in ("setup", "call", "teardown"):
            # What xdist reports for the test during which a worker died.
            self._broken.append(f"{report.nodeid} (its process died)")
        elif report.failed:
            self._ends[report.nodeid] = "failed"
        elif report.skipped and before != "failed":
            self._ends[report.nodeid] = "skipped"
        elif report.when == "call" and before is None:
            self._ends[report.nodeid] = "passed"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # Each worker of xdist collects everything and reports the same.
        line = f"{report.nodeid} (cannot be collected)"
        if report.failed and line not in self._broken:
            self._broken.append(line)

    def write(self, path: Path) -> None:
        """Write the result of the run that just ended."""
        path.write_text(json.dumps({"ends": self._ends, "broken": self._broken}))


def main(path: str, *arguments: str) -> int:
    # For plugins named by -p, which are imported before pytest reads pythonpath in its configuration.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    record = Record()
    status = pytest.main(list(arguments), plugins=[record])
    record.write(Path(path))
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
