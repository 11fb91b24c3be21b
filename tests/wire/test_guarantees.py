"""docs/guarantees.rst promises nothing that no test holds."""

from __future__ import annotations

import ast
import re

import pytest
from support.serverprocess import CHECKOUT

pytestmark = pytest.mark.unmeasured

PAGE = (CHECKOUT / "docs" / "guarantees.rst").read_text("utf-8")
NAMED = sorted(set(re.findall(r"``(tests/[^`]+\.py(?:::\w+)?)``", PAGE)))


def test_each_has_its_number_and_a_test():
    """From one on, as many as the page says that there are."""
    parts = re.split(r"^(\d+)\. \*\*", PAGE.partition("What is not promised")[0], flags=re.MULTILINE)
    numbers = [int(number) for number in parts[1::2]]
    words = ("Eighteen", "Nineteen", "Twenty", "Twenty-one", "Twenty-two", "Twenty-three", "Twenty-four")
    assert numbers == list(range(1, len(numbers) + 1))
    assert f"\n{words[len(numbers) - 18]} things that hold" in PAGE
    assert all("``tests/" in text for text in parts[2::2])


@pytest.mark.parametrize("named", NAMED)
def test_what_is_named_exists(named: str):
    """The file, and the test in it."""
    path, _, test = named.partition("::")
    tree = ast.parse((CHECKOUT / path).read_text("utf-8"))
    tests = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, tests)}
    assert test in names if test else any(name.lower().startswith("test") for name in names)
