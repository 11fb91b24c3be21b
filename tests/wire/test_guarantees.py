"""docs/guarantees.rst promises nothing that no test holds."""

from __future__ import annotations

import ast
import re

import pytest
from support.serverprocess import CHECKOUT

pytestmark = pytest.mark.unmeasured

PAGE = (CHECKOUT / "docs" / "guarantees.rst").read_text("utf-8")
NAMED = sorted(set(re.findall(r"``(tests/[^`]+\.py(?:::\w+)?)``", PAGE)))


def test_there_are_eighteen():
    """Numbered, each with at least one test."""
    parts = re.split(r"^(\d+)\. \*\*", PAGE.partition("What is not promised")[0], flags=re.MULTILINE)
    assert [int(number) for number in parts[1::2]] == list(range(1, 19))
    assert all("``tests/" in text for text in parts[2::2])


@pytest.mark.parametrize("named", NAMED)
def test_what_is_named_exists(named: str):
    """The file, and the test in it."""
    path, _, test = named.partition("::")
    tree = ast.parse((CHECKOUT / path).read_text("utf-8"))
    tests = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, tests)}
    assert test in names if test else any(name.lower().startswith("test") for name in names)
