"""Runs the whole suite, in the environment that ``./test`` made: ``python tests/run.py WORK``, where WORK is an empty
directory for what is written on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.parts import NodePart, PytestPart, left_in, run_parts, say, summary

CHECKOUT = Path(__file__).parents[1]
#: Two more than the processors that are counted on: half of their time the tests wait. One more would take longer to
#: find the tests than it saves.
BESIDE = ("-n", "4", "--dist", "loadscope", "--no-loadscope-reorder")
COVERAGE = ("--cov=zcomm", "--cov-branch", "--cov-report=", "--cov-fail-under=0")

#: The files of root's servers that cannot reach their data directory: no test has one to leave there.
SYSTEM_ROOT = Path("/var/lib/zcomm")

#: Finds the tests and runs none. On the way pytest rewrites their asserts and keeps the result; workers that begin
#: without it would all do it, each for itself.
FIND = ("-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-qq", "tests")


def lint() -> bool:
    """Whether ruff finds nothing to say of the code and nothing to format."""
    say("Lint and formatting: ruff")
    done = [
        subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", "."], cwd=CHECKOUT, check=False
        )
        for command in (("check",), ("format", "--check", "--diff"))
    ]
    return not any(one.returncode for one in done)


def main(work: Path) -> int:
    # Of all that the tests start, too, and of what ends after the suite was interrupted.
    os.environ["COVERAGE_FILE"] = str(work / "coverage")
    node = NodePart(
        "JavaScript client: node --test",
        sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("js/test/*.test.js")),
        work=work,
        cwd=CHECKOUT,
    )
    uvloop = PytestPart(
        "Wire behaviour on the uvloop reactor",
        ["tests/wire", "tests/web", "tests/engines/test_servers.py"],
        ["-p", "support.uvloop_reactor", "--reactor=asyncio", "-m", "wire"],
        BESIDE,
        work=work,
        cwd=CHECKOUT,
    )
    everything = PytestPart(
        "Everything, with branch coverage",
        ["tests"],
        COVERAGE,
        (*BESIDE, "--durations=25"),
        ["--cov-append"],
        work=work,
        cwd=CHECKOUT,
    )
    parts = [node, uvloop, everything]
    # Beside ruff and Node. What cannot be found fails below.
    with (
        left_in(SYSTEM_ROOT) as left,
        subprocess.Popen([sys.executable, *FIND], cwd=CHECKOUT, stdout=subprocess.DEVNULL),
    ):
        clean = lint()
        results, failures = run_parts(parts)
    failures += left
    if not clean:
        failures.append("ruff")

    say("Branch coverage of zcomm/")
    report = subprocess.run(
        [sys.executable, "-m", "coverage", "report"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False
    )
    print(report.stdout)
    if report.returncode:
        failures.append("coverage is below the limit")

    say("Summary")
    print("ruff:", "clean" if clean else "not clean")
    total = [line for line in report.stdout.splitlines() if line.startswith("TOTAL")]
    print("coverage:", " ".join("".join(total).split()))
    print("\n".join(summary(parts, results, failures)))
    return bool(failures)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except KeyboardInterrupt:
        sys.exit(130)
