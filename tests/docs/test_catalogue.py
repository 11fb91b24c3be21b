"""docs/catalogue.rst has every case that a test or a page cites, and no case is forgotten."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.serverprocess import CHECKOUT

pytestmark = pytest.mark.unmeasured

DOCS = CHECKOUT / "docs"
CATALOGUE = (DOCS / "catalogue.rst").read_text("utf-8")
CASES = re.findall(r"^   \* - ([A-Z]+\d+)$", CATALOGUE, re.MULTILINE)
LETTERS = sorted({re.sub(r"\d", "", case) for case in CASES}, key=len, reverse=True)
NUMBER = rf"(?:{'|'.join(LETTERS)})\d{{1,2}}"


@cache
def sources() -> tuple[Path, ...]:
    """The files of the tests, in both languages."""
    python = (path for path in sorted((CHECKOUT / "tests").rglob("*.py")) if "node_modules" not in path.parts)
    return (*python, *sorted((CHECKOUT / "js" / "test").glob("*.test.js")))


def cited_in_python(text: str) -> Iterator[str]:
    """What stands in names of tests, in brackets in their sentences, and in front of the names of parameters."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            named = re.match(rf"test_({NUMBER.lower()})_", node.name, re.IGNORECASE)
            if named:
                yield named[1].upper()
            if node.name.startswith("test_"):
                yield from cited_in_brackets(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            prefix = re.match(rf"(?:{NUMBER}-)*{NUMBER}(?=-|$)", node.value)
            yield from prefix[0].split("-") if prefix else ()
        elif isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
            prefix = re.match(rf"{NUMBER}(?=-)", str(node.values[0].value))
            yield from [prefix[0]] if prefix else []


def cited_in_brackets(text: str) -> Iterator[str]:
    for inner in re.findall(r"\(([^()]*)\)", text):
        found = re.fullmatch(r"[A-Z]{1,2}\d{1,2}(?:(?:, | to )[A-Z]{1,2}\d{1,2})*", " ".join(inner.split()))
        for first, last in re.findall(r"([A-Z]+\d+)(?: to ([A-Z]+\d+))?", found[0] if found else ""):
            letter, low = re.fullmatch(r"(\D+)(\d+)", first).groups()
            yield from (f"{letter}{number}" for number in range(int(low), int((last or first)[len(letter) :]) + 1))


@cache
def cited() -> dict[str, set[str]]:
    """Every number that a test cites, with the files that do."""
    found: dict[str, set[str]] = {}
    for path in sources():
        text = path.read_text("utf-8")
        for case in cited_in_python(text) if path.suffix == ".py" else cited_in_brackets(text):
            found.setdefault(case, set()).add(str(path.relative_to(CHECKOUT)))
    return found


def test_the_cases_are_numbered_without_gaps():
    """Each letter from one on, each number once."""
    for letter in LETTERS:
        numbers = [int(case.removeprefix(letter)) for case in CASES if re.fullmatch(rf"{letter}\d+", case)]
        assert numbers == list(range(1, len(numbers) + 1)), letter


def test_what_tests_cite_is_in_the_catalogue():
    """A number that stands nowhere tells a reader nothing."""
    assert {case: files for case, files in cited().items() if case not in CASES} == {}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.rst")), ids=lambda path: path.stem)
def test_what_pages_cite_is_in_the_catalogue(page: Path):
    """In brackets, alone or several."""
    assert set(cited_in_brackets(page.read_text("utf-8"))) - set(CASES) == set()


def test_no_case_is_forgotten():
    """A test cites it, or docs/guarantees.rst says why none does."""
    reasons = (DOCS / "guarantees.rst").read_text("utf-8").partition("What is not promised")[2]
    assert [case for case in CASES if case not in cited() and not re.search(rf"\b{case}\b", reasons)] == []


def test_the_count_of_the_guarantees_is_right():
    """The page says how many cases there are."""
    assert f"catalogue of {len(CASES)} bad inputs" in (DOCS / "guarantees.rst").read_text("utf-8")
