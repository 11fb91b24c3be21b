"""Hold zComm's protocol to RFC 6455 and RFC 7692 with the Autobahn|Testsuite: ``python benchmarks/conformance.py``.

``docs/examples/echo.py`` is the server; the testsuite's ``fuzzingclient`` talks to it. That one needs Python 2.7::

    python2.7 -m pip install virtualenv && python2.7 -m virtualenv ~/wstest
    ~/wstest/bin/pip install autobahntestsuite
    python benchmarks/conformance.py --wstest ~/wstest/bin/wstest

Of the 517 cases the 301 plain ones take a minute, the compressed ones a quarter of an hour or more. The exit status
is 0 when each case is OK or INFORMATIONAL, which is said of the few that have no right answer. A report for people
is left in ``--reports``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
ECHO = ROOT / "docs" / "examples" / "echo.py"
LISTENING = re.compile(r"listening on (ws://\S+)")

PLAIN = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
COMPRESSED = ("12.*", "13.*")
#: How the testsuite judges what a server did, and how it closed; best first.
VERDICTS = ("OK", "INFORMATIONAL", "UNIMPLEMENTED", "NON-STRICT", "WRONG CODE", "UNCLEAN", "FAILED")
GOOD = frozenset({"OK", "INFORMATIONAL"})


@contextmanager
def echoing(options: list[str]) -> Iterator[str]:
    """The echo server on a free port; gives its address."""
    environ = {**os.environ, "WEBSOCKET_PORT": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *(f"-X{option}" for option in sys._xoptions), str(ECHO), *options]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stdout:
                if (found := LISTENING.search(line)) is not None:
                    yield found[1]
                    return
            raise RuntimeError("the echo server did not start")
        finally:
            server.terminate()
            server.communicate()


def run(wstest: str, cases: list[str], options: list[str], reports: Path) -> dict[str, str]:
    """Run ``cases``; returns the worse of each one's two verdicts."""
    reports.mkdir(parents=True, exist_ok=True)
    with echoing(options) as url:
        specification = reports / "fuzzingclient.json"
        specification.write_text(
            json.dumps(
                {
                    "outdir": str(reports),
                    "servers": [{"agent": "zComm", "url": url}],
                    "cases": cases,
                    "exclude-cases": [],
                    "exclude-agent-cases": {},
                }
            )
        )
        with (reports / "wstest.log").open("w") as log:
            command = [wstest, "-m", "fuzzingclient", "-s", str(specification)]
            subprocess.run(command, stdout=log, stderr=log, check=True)
    found = json.loads((reports / "index.json").read_text())["zComm"]
    return {
        case: max(result["behavior"], result["behaviorClose"], key=VERDICTS.index) for case, result in found.items()
    }


def table(verdicts: dict[str, str]) -> str:
    """The number of cases of each section by what they came to."""
    sections: dict[int, Counter[str]] = {}
    for case, verdict in verdicts.items():
        sections.setdefault(int(case.split(".")[0]), Counter())[verdict] += 1
    shown = [verdict for verdict in VERDICTS if verdict in GOOD or verdict in verdicts.values()]
    lines = ["section  cases  " + "  ".join(shown)]
    for name, counts in [*sorted(sections.items()), ("all", Counter(verdicts.values()))]:
        numbers = "  ".join(f"{counts[verdict]:>{len(verdict)}}" for verdict in shown)
        lines.append(f"{name:>7}  {counts.total():>5}  {numbers}")
    return "\n".join(lines)


def main() -> int:
    """Run it all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wstest", default="wstest", help="the testsuite's program [wstest]")
    everything = [*PLAIN, *COMPRESSED]
    parser.add_argument("--cases", nargs="+", default=everything, metavar="CASES", help='such as "6.*" [all]')
    parser.add_argument("--reports", type=Path, default=Path("conformance"), help="where its reports go [conformance]")
    arguments = parser.parse_args()
    print(subprocess.run([arguments.wstest, "-a"], capture_output=True, text=True).stdout.strip())
    verdicts: dict[str, str] = {}
    for name, options, sections in (("plain", [], PLAIN), ("compressed", ["--compression"], COMPRESSED)):
        cases = [case for case in arguments.cases if f"{case.split('.')[0]}.*" in sections]
        if cases:
            verdicts |= run(arguments.wstest, cases, options, (arguments.reports / name).resolve())
    print(table(verdicts))
    wrong = [f"{case}: {verdict}" for case, verdict in verdicts.items() if verdict not in GOOD]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return int(bool(wrong) or not verdicts)


if __name__ == "__main__":
    sys.exit(main())
