"""Every code block of the README and the documentation is run by a test, or says why not."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from support.docs_blocks import all_blocks, pages, parse
from support.serverprocess import CHECKOUT

pytestmark = pytest.mark.unmeasured

#: Played by test_protocol.py and test_snippets.py.
PLAYED = {
    "exchange",
    "handshake",
    "javascript",
    "javascript-program",
    "output",
    "python-deferred",
    "python-plain",
    "python-program",
}


@cache
def names_with_a_test() -> set[str]:
    """The names that stand in a ``@runs(…)`` of any test."""
    found: set[str] = set()
    for path in (CHECKOUT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "runs":
                found |= {
                    argument.value
                    for argument in node.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                }
    return found


@pytest.mark.parametrize("block", all_blocks(), ids=str)
def test_every_block_says_how_it_is_checked(block):
    """It is played, it has a test by its name, or it is an illustration with a reason."""
    ways = [
        bool(PLAYED & set(block.classes)),
        block.name in names_with_a_test(),
        "illustration" in block.classes,
    ]
    assert sum(ways) == 1, f"{block} is checked in {sum(ways)} ways; name: {block.name!r}, class: {block.classes}"
    assert bool(block.reason) == ways[2], f"{block}: an illustration needs a '.. not run: reason' before it"


def test_every_name_is_a_block():
    """A test whose block is gone would be checking nothing; two blocks of a name would hide one."""
    names = Counter(block.name for block in all_blocks() if block.name)
    assert names_with_a_test() - set(names) == set()
    assert [name for name, count in names.items() if count > 1] == []


def test_every_included_example_is_run():
    """The files under docs/examples/ that pages show are named in the tests that run them."""
    shown = {
        name
        for path in pages()
        for name in re.findall(r"^\.\. literalinclude:: (\S+)$", path.read_text("utf-8"), re.MULTILINE)
    }
    assert {f"examples/{path.name}" for path in (CHECKOUT / "docs" / "examples").iterdir() if path.is_file()} == shown
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("*.py"))
    assert [name for name in shown if f'"{name}"' not in tests] == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_no_code_hides_in_a_literal_block(path: Path):
    """``::`` has no language and no name, so nothing would run it."""
    lines = path.read_text("utf-8").splitlines()
    hidden = [
        number
        for number, line in enumerate(lines, 1)
        if line.rstrip().endswith("::") and not line.lstrip().startswith("..")
    ]
    assert hidden == []


def test_blocks_are_read_as_they_stand():
    """Options, indentation, the reason before and the end of a block are understood."""
    (first, second) = parse(
        "x\n\n.. not run: because\n\n.. code-block:: sh\n   :class: illustration\n\n   a\n     b\n\n   c\n\ny\n\n"
        ".. code-block:: python\n   :name: n\n\n   d\n",
        "page",
    )
    assert (first.language, first.classes, first.reason, first.text, first.line) == (
        "sh",
        ("illustration",),
        "because",
        "a\n  b\n\nc\n",
        5,
    )
    assert (second.name, second.text, second.reason) == ("n", "d\n", "")
