"""Patterns: the same answers as Python's ``re`` gives, in time that no pattern can inflate."""

from __future__ import annotations

import functools
import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from itertools import filterfalse

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.patterns import MAX_TEXT, Pattern, PatternError

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
        r"\s",
        r"\S",
        r"\W",
        r"[\w-]",
        r"[\S\D]",
        r"[!-\.[:]",
        "[[a]",
        r"\_",
        r"\€",
        "ä",
        "[à-þ]",
    ]
)
#: Letters, digits, numbers and spaces of more than one script, and what no other character may be mistaken for.
CHARACTERS = "abc1. \n]-[!:_äÄß中Ω\u0660²Ⅷ€\x1c\x85\xa0\u2028\u3000\0\U0001f600"


def grown(parts):
    quantifiers = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?", "{0}"])
    return st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(parts, quantifiers).map(lambda pair: f"({pair[0]}){pair[1]}"),
        parts.map(lambda part: "^" + part),
        parts.map(lambda part: part + "$"),
    )


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@given(st.recursive(atoms, grown, max_leaves=8), st.lists(st.text(CHARACTERS, max_size=6), max_size=8))
def test_agrees_with_re(pattern, texts):
    """A pattern matches exactly what ``re.fullmatch`` does."""
    # The first of the exceptions that are tested below.
    ours, theirs = Pattern(pattern), re.compile(pattern.replace("$", r"\Z"))
    for text in texts:
        assert ours.matches(text) == (theirs.fullmatch(text) is not None), (pattern, text)


@functools.cache
def assigned() -> list[str]:
    """All characters that Python knows of; RE2's tables may be newer."""
    return [char for char in map(chr, range(0x110000)) if unicodedata.category(char) not in ("Cn", "Cs")]


def texts_of(characters: list[str]) -> Iterator[str]:
    for start in range(0, len(characters), MAX_TEXT):
        yield "".join(characters[start : start + MAX_TEXT])


CLASSES: dict[str, Callable[[str], bool]] = {
    r"\d": str.isdecimal,
    r"\D": lambda char: not char.isdecimal(),
    r"\w": lambda char: char.isalnum() or char == "_",
    r"\W": lambda char: not (char.isalnum() or char == "_"),
    r"\s": str.isspace,
    r"\S": lambda char: not char.isspace(),
    r"[\d]": str.isdecimal,
    r"[\D]": lambda char: not char.isdecimal(),
    r"[\w]": lambda char: char.isalnum() or char == "_",
    r"[^\w]": lambda char: not (char.isalnum() or char == "_"),
    r"[\s]": str.isspace,
    r"[\S]": lambda char: not char.isspace(),
    r"[^\S]": str.isspace,
}


@pytest.mark.parametrize(("pattern", "expected"), CLASSES.items())
def test_classes(pattern, expected):
    """A class has the characters of all scripts that Python counts to it, and no other."""
    members, others = (list(group) for group in (filter(expected, assigned()), filterfalse(expected, assigned())))
    only, some = Pattern(pattern + "*"), Pattern(f"(?s).*{pattern}.*")
    assert all(map(only.matches, texts_of(members)))
    assert not any(map(some.matches, texts_of(others)))


def seconds(pattern: Pattern, text: str) -> float:
    """Processor time of a match, the shortest of some."""
    taken = []
    for _ in range(3):
        began = time.process_time()
        pattern.matches(text)
        taken.append(time.process_time() - began)
    return min(taken)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|aa)+b",
        "(a*)*b",
        "(a|a?)+b",
        "a*a*a*a*a*a*a*b",
        "(.*)(.*)(.*)(.*)b",
        "(a|b)*a(a|b){200}",
        r".*[^x].{990}",
        r"(\w*a){60}\w{300}",
    ],
)
def test_no_pattern_is_dangerous(pattern):
    """What keeps a backtracking matcher busy for years takes time by the length of the text alone."""
    compiled = Pattern(pattern)
    choose = random.Random(4).choice
    for text in ("a" * MAX_TEXT, "".join(choose("ab") for _ in range(MAX_TEXT)), "é" * MAX_TEXT):
        # Four times the text is four times the time; the rest is for clocks that tick coarsely.
        assert seconds(compiled, text) < 16 * seconds(compiled, text[: MAX_TEXT // 4]) + 0.05


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
        r"\b",
        r"\B",
        r"\A",
        r"\Z",
        r"\C",
        r"\Q.\E",
        r"\p{Klingon}",
        r"[\W]",
        r"[a-\d]",
        r"[!-\w]",
        r"[!-\s]",
        r"[!-\S]",
        "[[:alpha:]]",
        "a{,3}",
        "(?P=n)",
        "(?x)a",
        "\ud800",
        r"(\w{200}){5}",
        "\\",
        "a" * 501,
        "((a{50}){50}){50}",
        "[z",
        r"[\q]",
    ],
)
def test_refused(pattern, capfd):
    """What is not in the language is refused when it is read, not when it is used; nothing is printed."""
    with pytest.raises(PatternError):
        Pattern(pattern)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("(?i)straße", "STRAßE", True),
        ("(?i)ä", "Ä", True),
        ("a(?i:b)", "aB", True),
        ("a(?i:b)", "AB", False),
        ("(?P<n>a)", "a", True),
        ("(?<n>a)", "a", True),
        ("(?s).", "\n", True),
        ("(?m)a$\n^b", "a\nb", True),
        (r"\x41\x{e4}", "Aä", True),
        (r"\p{Lu}\P{Lu}\pL", "Äää", True),
        (r"[\s-z]+", " -z", True),
        (r"[\S-]+", "a-", True),
        (r"[\w-z]+", "`", False),
        (r"[\p{Greek}\d]+", "Ω1", True),
        (r"[\p{Greek}\d]+", "a1", False),
        ("(" * 40 + ")" * 40, "", True),
        (r"\w{300}", "ä" * 300, True),
        (r"\w{300}", "ä" * 299, False),
        (".{3}", "a\U0001f600ä", True),
        (".{1,2}", "\U0001f600\U0001f600\U0001f600", False),
    ],
)
def test_syntax_of_re2(pattern, text, matches):
    """What RE2 has beyond the rest works; counts are counts of characters."""
    assert Pattern(pattern).matches(text) is matches


@pytest.mark.parametrize(
    "count",
    ["{1001}", "{2,1001}", "{1001,}", "{2000000000}", "{1,99999999999}", "{99999999999,}", "{" + "9" * 490 + "}"],
)
def test_big_counts(count):
    """A count that is too big is refused, however many digits it has; it never becomes text."""
    with pytest.raises(PatternError, match="a count goes to 1000, at character 2"):
        Pattern(f"a{count}")


@pytest.mark.parametrize("pattern", ["a{002}", "a{02,002}", "a{0002,3}", "a{002,}", "a{0,0002}", "a{00}b?a*"])
def test_leading_zeros(pattern):
    """They change nothing, as in Python."""
    for text in ("", "a", "aa", "aaa", pattern):
        assert Pattern(pattern).matches(text) is (re.fullmatch(pattern, text) is not None)


def test_turkish_i():
    """The letters whose case is that of "i" in Python only: to RE2, as to Unicode, they are others."""
    assert [Pattern("(?i)i").matches(letter) for letter in "iIİı"] == [True, True, False, False]
    assert [Pattern("(?i)[a-z]").matches(letter) for letter in "İı\u017f\u212a"] == [False, False, True, True]


def test_the_end_is_the_end():
    """Before a newline that ends a text it is no end; in a log it is the end of a line, as in Python."""
    for pattern, text in ((r"a$\n", "a\n"), (r"$[^\w]", "\n"), (r"a$\s", "a\n")):
        assert re.fullmatch(pattern, text) and not Pattern(pattern).matches(text)
        assert Pattern(pattern).found_in(text)


@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@pytest.mark.parametrize("pattern", [*CLASSES, "[a-z]", "[^a-z]", "[À-ÿ]", "ß", "k", "ς", "Ⅷ", "ǅ", "é", "ι", r"[\w-]"])
def test_classes_where_case_does_not_count(pattern):
    """Python's members of every class but for the Turkish letters and U+0345, of all characters that there are."""
    expected = set(re.compile(f"(?i){pattern}").findall("".join(assigned())))
    members, others = (
        list(group)
        for group in (filter(expected.__contains__, assigned()), filterfalse(expected.__contains__, assigned()))
    )
    one, only, some = Pattern(f"(?i){pattern}"), Pattern(f"(?i){pattern}*"), Pattern(f"(?is).*{pattern}.*")
    # One by one where a whole text says that not all are the same.
    differing = [char for text in texts_of(members) if not only.matches(text) for char in text if not one.matches(char)]
    differing += [char for text in texts_of(others) if some.matches(text) for char in text if one.matches(char)]
    if "w" in pattern.lower():
        assert differing == ["\u0345"]
    else:
        assert set(differing) <= {"İ", "ı"}


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00"])
def test_half_characters(text):
    """A lone surrogate is no character, so it matches nothing; it is no error either."""
    assert not Pattern("(?s).*").matches(text)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"^listening on \d+$", True),
        ("on 80", True),
        ("^on", False),
        ("listening$", False),
        ("first.listening", False),
        (r"first\nlistening", True),
        ("(?i)LAST|x", True),
        ("last$|^x", True),
        ("\ud7ff?ä", True),
    ],
)
def test_found_in_lines(pattern, found):
    """In a log of any length, each line with its own beginning and end, whatever half characters stand there."""
    log = "first\nlistening on 80\n\ud800 ä\n" + "x" * (2 * MAX_TEXT) + "\nlast"
    assert Pattern(pattern).found_in(log) is found


def test_finding_takes_time_by_the_length():
    """A pattern that keeps a backtracking engine busy for hours takes no time."""
    began = time.process_time()
    assert not Pattern("(a+)+$").found_in("a" * 100_000 + "b")
    assert time.process_time() - began < 1


def test_nul():
    """NUL is a character like others, in patterns as in texts."""
    assert Pattern("a\0.").matches("a\0b") and not Pattern("a").matches("a\0")


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


def test_the_memory_is_bounded(capfd):
    """However many different texts come by, little is remembered, and nothing is said of it."""
    patterns = [Pattern("[^x]*"), Pattern("(a|b)*a(a|b){200}"), Pattern(r"\w*a\w{300}")]
    choose = random.Random(5).choice
    resident = psutil.Process().memory_info().rss
    for start in range(121, 0xD000, 500):
        text = "".join(map(chr, range(start, start + 500)))
        assert patterns[0].matches(text)
        for pattern in patterns[1:]:
            pattern.matches("".join(choose("ab") for _ in range(1000)))
    assert psutil.Process().memory_info().rss - resident < 64 << 20
    assert capfd.readouterr() == ("", "")


def test_b11_what_takes_long_is_known():
    """A pattern that remembers nothing of matching is known by its size and that of the text; usual ones are not so."""
    assert Pattern(".*a.{300}").takes_long("ab" * 5000)
    assert not Pattern(".*a.{300}").takes_long("ab" * 100)
    assert not Pattern("[a-z]+@[a-z.]+").takes_long("a" * 10_000)
    assert not Pattern(r"\w+").takes_long("a" * 500)
    # It does not match, and nobody looks.
    assert not Pattern(".*a.{300}").takes_long("a" * 10_001)
