"""Patterns: the same answers as Python's ``re`` gives, in time that no pattern can inflate."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.data.patterns import MAX_TEXT, Pattern, PatternError

atoms = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "1",
        ".",
        "[ab]",
        "[^a]",
        r"\d",
        r"\w",
        r"\D",
        "[a-c1-3]",
        r"\.",
        r"[\d.]",
        "[]a]",
        "[a-]",
        r"\n",
        " ",
    ]
)


def grown(parts):
    quantifiers = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?", "{0}"])
    return st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(parts, quantifiers).map(lambda pair: f"({pair[0]}){pair[1]}"),
        parts.map(lambda part: "^" + part),
        parts.map(lambda part: part + "$"),
    )


@given(st.recursive(atoms, grown, max_leaves=8), st.lists(st.text("abc1. \n]-", max_size=6), max_size=8))
def test_agrees_with_re(pattern, texts):
    """A pattern matches exactly what ``re.fullmatch`` does."""
    ours, theirs = Pattern(pattern), re.compile(pattern)
    for text in texts:
        # re's $ also matches before a newline at the end; here it is the end.
        assert ours.matches(text) == (theirs.fullmatch(text) is not None), (pattern, text)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|aa)+b", "(a*)*b", "(a|a?)+b", "a*a*a*a*a*a*a*b", "(.*)(.*)(.*)(.*)b"]
)
def test_no_pattern_is_dangerous(pattern):
    """What keeps a backtracking matcher busy for years is answered from few states."""
    compiled = Pattern(pattern)
    assert not compiled.matches("a" * MAX_TEXT)
    assert len(compiled._steps) < 100


def test_long_text():
    """A text beyond the limit does not match, whatever the pattern."""
    assert Pattern(".*").matches("a" * MAX_TEXT)
    assert not Pattern(".*").matches("a" * (MAX_TEXT + 1))


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "(a",
        "a)",
        "[",
        "[a",
        "[]",
        "[b-a]",
        "*",
        "+a",
        "?",
        "a**",
        "a{2}{3}",
        "a{3,2}",
        "a{9999}",
        "{2}",
        "a{x}",
        "a{",
        r"\1",
        r"(a)\1",
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?P<n>a)",
        "(?i)a",
        r"\b",
        r"\Z",
        r"\x41",
        "\\",
        "a" * 501,
        "(" * 40 + ")" * 40,
        "((a{50}){50}){50}",
        "[z",
        r"[\q]",
    ],
)
def test_refused(pattern):
    """What is not in the language is refused when it is read, not when it is used."""
    with pytest.raises(PatternError):
        Pattern(pattern)


@given(st.text("()[]{}*+?|^$\\.-,:abd159", max_size=30), st.text("ab19", max_size=5))
def test_any_pattern(pattern, text):
    """Any text is either a pattern or refused."""
    try:
        Pattern(pattern).matches(text)
    except PatternError:
        pass


def test_value():
    """Patterns with the same text are the same."""
    assert Pattern("a+") == Pattern("a+") != Pattern("a*")
    assert len({Pattern("a+"), Pattern("a+")}) == 1
    assert repr(Pattern("a+")) == "Pattern('a+')"


def test_the_memory_is_bounded():
    """However many different texts come by, little is remembered."""
    pattern = Pattern("[^x]*")
    for start in range(0, 0xD000, 500):
        assert pattern.matches("".join(map(chr, range(max(start, 121), start + 500))))
    assert len(pattern._steps) <= 5000
