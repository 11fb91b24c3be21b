"""The code blocks of the README and the documentation, taken out of their pages.

A block says by itself how it is checked:

* ``:class: exchange`` and ``:class: handshake``: lines between a client and a live server, played by
  ``test_protocol.py``;
* ``:class: javascript``, ``javascript-program``, ``python-plain``, ``python-deferred`` and ``python-program``: run by
  ``test_snippets.py``; an ``output`` right after one is what it prints;
* ``:name: some-name``: a test has :func:`runs` with this name and does with the block what a reader would;
* ``:class: illustration``: not run, for the reason given in a comment right before it (``.. not run: …``).

``test_blocks.py`` fails for a block that does none of these, and for a name without a block.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from support.serverprocess import CHECKOUT

__all__ = ["Block", "all_blocks", "block", "blocks_of", "pages", "runs"]

DIRECTIVE = re.compile(r"^(?P<indent> *)\.\. (?:code-block|code|sourcecode)::[ ]*(?P<language>\S*)[ ]*$")
OPTION = re.compile(r"^:(?P<name>[a-z-]+):[ ]*(?P<value>.*)$")
REASON = re.compile(r"^ *\.\. not run: (?P<reason>\S.*)$")

#: The names of blocks that have a test.
RUN: dict[str, list[str]] = {}


@dataclass(frozen=True)
class Block:
    """One code block.

    :ivar reason: why an illustration is not run.
    """

    page: str
    line: int
    language: str
    classes: tuple[str, ...]
    name: str
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """The README and every page of the documentation."""
    return [CHECKOUT / "README.rst", *sorted((CHECKOUT / "docs").glob("*.rst"))]


@cache
def blocks_of(path: Path) -> tuple[Block, ...]:
    """The blocks of one page, in order."""
    return tuple(parse(path.read_text("utf-8"), str(path.relative_to(CHECKOUT))))


def parse(text: str, page: str) -> list[Block]:
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        match = DIRECTIVE.match(line)
        if match is None:
            # A literal block without a language could not say how it is checked.
            if re.match(r"^ *\.\. (code-block|code|sourcecode)::", line):
                raise ValueError(f"{page}:{number + 1}: not a block that can be read: {line}")
            continue
        body = []
        for inner in lines[number + 1 :]:
            if inner.strip() and not inner.startswith(match["indent"] + "   "):
                break
            body.append(inner)
        body = textwrap.dedent("\n".join(body).rstrip()).splitlines()
        options: dict[str, str] = {}
        while body and (option := OPTION.match(body[0])):
            options[option["name"]] = option["value"]
            body.pop(0)
        while body and not body[0].strip():
            body.pop(0)
        reason = next((m for back in (1, 2) if number >= back and (m := REASON.match(lines[number - back]))), None)
        found.append(
            Block(
                page=page,
                line=number + 1,
                language=match["language"],
                classes=tuple(options.get("class", "").split()),
                name=options.get("name", ""),
                reason=reason["reason"] if reason else "",
                text="\n".join(body) + "\n",
            )
        )
    return found


def all_blocks() -> list[Block]:
    return [found for path in pages() if path.exists() for found in blocks_of(path)]


def block(name: str) -> Block:
    """The block of this name."""
    (found,) = [candidate for candidate in all_blocks() if candidate.name == name]
    return found


def runs(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Says of a test which blocks it runs."""

    def register(test: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            RUN.setdefault(name, []).append(test.__name__)
        return test

    return register
