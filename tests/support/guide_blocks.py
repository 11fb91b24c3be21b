"""The code blocks of the guide, taken out of ``tests/guide/GUIDE.md`` as they stand."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import dataclass
from functools import cache

from support.serverprocess import CHECKOUT

__all__ = ["GUIDE", "GuideBlock", "guide_block", "guide_blocks"]

GUIDE = CHECKOUT / "tests" / "guide" / "GUIDE.md"

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)$")
HEADING = re.compile(r"^#+ (?P<title>.*)$")


@dataclass(frozen=True)
class GuideBlock:
    """One block.

    :ivar name: the heading it stands under, with a number where several stand there: ``Read``, ``Origins 2``.
    :ivar line: where it begins in the guide.
    """

    name: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return self.name

    def alternatives(self, *marks: str) -> list[str]:
        """The block as the several programs it shows: one begins at each of the lines that start with one of ``marks``.

        What stands before the first mark belongs to all of them.
        """
        parts: list[list[str]] = [[]]
        for line in self.text.splitlines():
            if line.startswith(marks):
                parts.append([])
            parts[-1].append(line)
        common, *rest = ["\n".join(part) for part in parts]
        return [f"{common}\n{part}\n" for part in rest]


@cache
def guide_blocks() -> tuple[GuideBlock, ...]:
    """All blocks of the guide, in order."""
    found: list[GuideBlock] = []
    title = ""
    counts: Counter[str] = Counter()
    opened: re.Match[str] | None = None
    start, body = 0, []
    for number, line in enumerate(GUIDE.read_text("utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None and fence is not None:
            opened, start, body = fence, number, []
        elif opened is not None and line == opened["indent"] + "```":
            counts[title] += 1
            name = title if counts[title] == 1 else f"{title} {counts[title]}"
            found.append(GuideBlock(name, start, opened["language"], textwrap.dedent("\n".join(body)) + "\n"))
            opened = None
        elif opened is not None:
            body.append(line)
        elif heading := HEADING.match(line):
            title = heading["title"].strip()
    return tuple(found)


def guide_block(name: str) -> GuideBlock:
    """The block of that name."""
    (found,) = [block for block in guide_blocks() if block.name == name]
    return found
