"""Runs the parts of the suite, then what failed once more, alone; says which tests are flaky and counts them all.

A test that fails twice has failed. One that fails beside the others and passes by itself is flaky, which is listed
and, up to :data:`MOST_FLAKY`, excused: it is a fault to be mended, of the test or of the product, but no reason to
doubt everything else. Nothing else is excused: a file that cannot be collected, a process that died, another exit
status than "all passed" and "some failed".
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["MOST_FLAKY", "NodePart", "Part", "PytestPart", "Result", "left_in", "run_parts", "say", "summary"]

#: More flaky tests than this are a failure.
MOST_FLAKY = 3

HERE = Path(__file__).parent
#: pytest's own last line under -q, with or without the frame of "=".
CLOSING = re.compile(r"^=* ?(?:no tests ran|\d+ (?:passed|failed|errors?|skipped|deselected)\b).*", re.MULTILINE)


@dataclass
class Result:
    """The end of one run of a part.

    :ivar ends: ``passed``, ``failed`` or ``skipped`` by the name of the test.
    :ivar broken: what a second run cannot excuse.
    :ivar flaky: the names of those that failed in one run and passed in the other.
    :ivar closing: the last line to be shown of it.
    """

    ends: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    closing: str = ""
    flaky: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The names of the tests that failed."""
        return [name for name, end in self.ends.items() if end == "failed"]

    def counted(self) -> str:
        """The numbers in one line."""
        ends = list(self.ends.values())
        return ", ".join(f"{ends.count(end)} {end}" for end in ("passed", "failed", "skipped"))


class Part(Protocol):
    """Tests that run together."""

    title: str

    def run(self) -> Result:
        """Run all of it."""

    def run_again(self, names: Sequence[str]) -> Result:
        """Run only these, one after the other."""


@dataclass
class PytestPart:
    """A run of pytest. ``beside`` are the arguments that let tests run beside each other, which a second run lacks,
    ``again`` those that only a second run has, ``where`` the files or directories of the first."""

    title: str
    where: Sequence[str]
    arguments: Sequence[str] = ()
    beside: Sequence[str] = ()
    again: Sequence[str] = ()
    work: Path = Path()
    cwd: Path = Path()

    def run(self) -> Result:
        return self._run([*self.arguments, *self.beside, *self.where])

    def run_again(self, names: Sequence[str]) -> Result:
        return self._run([*self.arguments, *self.again, *names])

    def _run(self, arguments: Sequence[str]) -> Result:
        path = self.work / "pytest.json"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-P", str(HERE / "record.py"), str(path), "-p", "no:cacheprovider", "-q"]
        command += [f"--basetemp={self.work / 'pytest'}", *arguments]
        status, output = run_and_show(command, self.cwd)
        closing = CLOSING.findall(output)
        found = json.loads(path.read_text()) if path.exists() else {"ends": {}, "broken": ["pytest did not end"]}
        result = Result(found["ends"], found["broken"], closing[-1] if closing else "")
        if status not in (0, 1):
            result.broken.append(f"pytest ended with status {status}")
        elif status == 1 and not result.failed and not result.broken:
            result.broken.append("pytest failed, and no test did")
        return result


@dataclass
class NodePart:
    """A run of ``node --test``. A second run takes the whole files of what failed, one at a time."""

    title: str
    files: Sequence[str]
    work: Path = Path()
    cwd: Path = Path()

    def run(self) -> Result:
        return self._run(self.files)

    def run_again(self, names: Sequence[str]) -> Result:
        return self._run(sorted({name.partition("::")[0] for name in names}), "--test-concurrency=1")

    def _run(self, files: Sequence[str], *options: str) -> Result:
        path = self.work / "node.json"
        path.unlink(missing_ok=True)
        command = ["node", "--test", *options, "--test-reporter=dot", "--test-reporter-destination=stdout"]
        command += [f"--test-reporter={HERE / 'node_record.mjs'}", f"--test-reporter-destination={path}", *files]
        status, _ = run_and_show(command, self.cwd)
        result = Result()
        for line in path.read_text().splitlines() if path.exists() else ():
            test = json.loads(line)
            file = os.path.relpath(test["file"], self.cwd.resolve())
            if test["name"] == test["file"]:
                if test["end"] == "failed":
                    result.broken.append(f"{file} (did not run to its end)")
                continue
            name = f"{file}::{test['name']}"
            # Node lets two tests of a file have one name.
            number = sum(known == name or known.startswith(f"{name} #") for known in result.ends)
            result.ends[f"{name} #{number + 1}" if number else name] = test["end"]
        if status and not result.failed and not result.broken:
            result.broken.append(f"node ended with status {status}")
        result.closing = result.counted()
        return result


def run_and_show(command: Sequence[str], cwd: Path) -> tuple[int, str]:
    """Run a command whose output is shown as it comes; its exit status and the output."""
    output = bytearray()
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while piece := os.read(process.stdout.fileno(), 65536):
            output += piece
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    return process.returncode, output.decode("utf-8", "replace")


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


@contextmanager
def left_in(directory: Path) -> Iterator[list[str]]:
    """A line for each entry that ``directory`` has at the end and had not at the beginning."""
    failures: list[str] = []
    before = set(directory.glob("*"))
    yield failures
    failures += [f"left behind: {path}" for path in sorted(set(directory.glob("*")) - before)]


def run_parts(parts: Sequence[Part]) -> tuple[list[Result], list[str]]:
    """Run all parts, then what failed of each once more, alone.

    :returns: how each part ended after that, and a line for each failure.
    """
    results = []
    for part in parts:
        say(part.title)
        results.append(part.run())
    failures: list[str] = []
    for part, result in zip(parts, results, strict=True):
        failures += [f"{part.title}: {reason}" for reason in result.broken]
        if result.failed:
            say(f"{part.title}: what failed once more, alone")
            again = part.run_again(result.failed)
            failures += [f"{part.title}, once more: {reason}" for reason in again.broken]
            take_over(again, result)
        failures += [f"{part.title}: {name}" for name in result.failed]
    flaky = sum(len(result.flaky) for result in results)
    if flaky > MOST_FLAKY:
        failures.append(f"{flaky} flaky tests, more than {MOST_FLAKY}")
    for result in results:
        if flaky > MOST_FLAKY:
            result.ends.update(dict.fromkeys(result.flaky, "failed"))
        if result.flaky or result.failed or result.broken:
            result.closing = result.counted()
    return results, failures


def take_over(again: Result, first: Result) -> None:
    """Excuse in ``first`` what passed ``again``. What ran again with another test may have failed this time only."""
    first.flaky = [name for name in first.failed if again.ends.get(name) == "passed"]
    first.flaky += [name for name in again.failed if first.ends.get(name) == "passed"]
    first.ends.update(dict.fromkeys(first.flaky, "passed"))


def summary(parts: Sequence[Part], results: Sequence[Result], failures: Sequence[str]) -> list[str]:
    """The last lines, which say it all; the very last is the closing line of the last part."""
    return [
        *(f"{part.title}: {result.closing}" for part, result in zip(parts, results, strict=True)),
        *(f"FAILED: {line}" for line in failures),
        *(f"flaky: {name}" for result in results for name in result.flaky),
        results[-1].closing,
    ]
