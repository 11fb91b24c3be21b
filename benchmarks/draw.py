"""Draw the pictures of ``docs/performance.rst`` from a report of ``run.py``: ``draw.py REPORT.json DIRECTORY``.

Plain SVG, bars of medians with a line from the lowest to the highest round; colours that read on white and on black.
"""

from __future__ import annotations

import json
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

from run import COLUMNS, OUR_NAME, median

WIDTH, LABEL, NUMBER, ROW, TOP = 720, 150, 150, 26, 46
OURS, THEIRS, INK = "#d9480f", "#748ffc", "#868e96"

TITLES = {
    "rpc": "Replies a second",
    "fanout": "Deliveries a second",
    "handshakes": "Handshakes a second",
    "idle": "KiB for an idle connection (less is better)",
    "crud": "Queries a second through the socket",
    "cluster-publish": "Publishes a second at one of two nodes",
    "cluster-latency": "Milliseconds from node to node, median (less is better)",
    "cluster-fanout": "Deliveries a second",
    "cluster-storm": "Seconds until 99 % are back (less is better)",
    "cluster-presence": "Seconds until both nodes tell of it (less is better)",
    "cluster-gone": "Seconds until members of a killed node are gone (less is better)",
}
CASES = {
    "1x1": "1 connection, 1 request at a time",
    "100x1": "100 connections, 1 request each",
    "100x8": "100 connections, 8 requests each",
}


def picture(mode: str, case: str, by_server: dict[str, list[dict[str, Any]]]) -> str:
    """One chart: a bar for each server, the best first."""
    key, _, more_is_better = COLUMNS[mode][0]
    order = sorted(by_server, key=lambda name: median(by_server[name], key), reverse=more_is_better)
    longest = max(item[key] for numbers in by_server.values() for item in numbers)
    scale = (WIDTH - LABEL - NUMBER) / longest
    height = TOP + ROW * len(order) + 10
    title = f"{TITLES[mode]}: {CASES.get(case, case)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="14" role="img" aria-label="{escape(title)}">',
        f'<text x="8" y="26" font-size="16" font-weight="bold" fill="{INK}">{escape(title)}</text>',
    ]
    for place, name in enumerate(order):
        numbers = [item[key] for item in by_server[name]]
        middle, y = median(by_server[name], key), TOP + ROW * place
        colour = OURS if name.startswith(OUR_NAME) else THEIRS
        end = LABEL + middle * scale
        low, high = (LABEL + value * scale for value in (min(numbers), max(numbers)))
        parts += [
            f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end" fill="{INK}">{escape(name)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{max(1.0, end - LABEL):.1f}" height="{ROW - 6}" fill="{colour}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="{INK}" stroke-width="2"/>',
            f'<text x="{max(end, high) + 8:.1f}" y="{y + 15}" fill="{INK}">{_text(middle)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2g}"


def draw(report: dict[str, Any], directory: Path) -> None:
    """Draw every case of a report."""
    directory.mkdir(parents=True, exist_ok=True)
    for mode, results in report["modes"].items():
        for case, by_server in results["samples"].items():
            if len(by_server) > 1:
                name = re.sub("[^a-z0-9]+", "-", f"{mode}-{case}".lower().replace(",", ""))
                path = directory / f"{name}.svg"
                path.write_text(picture(mode, case, by_server))
                print(path)


def main() -> None:
    """Draw every case of the report."""
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
