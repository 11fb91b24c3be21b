"""The names of topics and the patterns of kinds: what is one, what fits, what stands before what."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.examples import examples

from zcomm.errors import ConfigError
from zcomm.topics.names import MAX_NAME, NamePattern, is_topic_name, user_part

ALPHABET = "ABCXYZabcxyz0189_.:@/%-"

literals = st.text("ab1.@/%_-", max_size=3)


@st.composite
def patterns(draw):
    """A pattern, with what is needed to say by other means whether a name fits."""
    parts = []
    for number in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            parts.append(f"{draw(literals)}{{p{number}}}{draw(literals)}")
        else:
            parts.append(draw(st.text("ab1.@/%_-", min_size=1, max_size=3)))
    return ":".join(parts)


def as_expression(text: str) -> re.Pattern[str]:
    found = ""
    for piece in re.split(r"(\{\w+\})", text):
        found += f"(?P<{piece[1:-1]}>[^:]+)" if piece.startswith("{") else re.escape(piece)
    return re.compile(found)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a", True),
        ("room:1", True),
        ("user:j%C3%BCrgen@example.org", True),
        (":", True),
        ("a/b.c_d-e%41", True),
        ("x" * MAX_NAME, True),
        ("x" * (MAX_NAME + 1), False),
        ("", False),
        ("room 1", False),
        ("room:ä", False),
        ("room:1\n", False),
        ("room:\0", False),
        ("room:{id}", False),
        ("room:*", False),
        ("room:~", False),
        ('a"b', False),
        ("a\\b", False),
        ("\ud800", False),
        (None, False),
        (7, False),
        (["room:1"], False),
        (b"room:1", False),
    ],
)
def test_names(name: object, is_one: bool):
    """1 to 255 characters of an alphabet in which nothing needs quoting, in JSON or elsewhere; and a text."""
    assert is_topic_name(name) is is_one


class Text(str):
    """A text of a class of its own, which may lie about what it is."""

    __slots__ = ()


def test_a_subclass_of_text_is_no_name():
    """A name is made part of messages as it stands: only Python's own text is one."""
    assert not is_topic_name(Text("room:1"))


@examples(200)
@given(st.text())
def test_names_of_users(user: str):
    """Percent-encoded it is (part of) a name that tells the user and nobody else; kept are A-Za-z0-9_.@- only."""
    part = user_part(user)
    if part is None:
        assert not user or any("\ud800" <= one <= "\udfff" for one in user) or len(user.encode()) * 3 > MAX_NAME
        return
    assert is_topic_name(part) and ":" not in part and "/" not in part and "*" not in part and "$" not in part
    assert unquote(part) == user
    assert re.fullmatch(r"(?:[A-Za-z0-9_.@-]|%[0-9A-F]{2})+", part)


@pytest.mark.parametrize(
    ("user", "part"),
    [
        ("alice", "alice"),
        ("alice@example.org", "alice@example.org"),
        ("Jürgen Groß", "J%C3%BCrgen%20Gro%C3%9F"),
        ("~root", "%7Eroot"),
        ("*", "%2A"),
        ("a:b/c", "a%3Ab%2Fc"),
        ("100%", "100%25"),
        ("$name", "%24name"),
        ("{id}", "%7Bid%7D"),
        ("王", "%E7%8E%8B"),
        ("😀", "%F0%9F%98%80"),
        ("x" * 255, "x" * 255),
        ("x" * 256, None),
        ("王" * 28, "%E7%8E%8B" * 28),
        ("王" * 29, None),
        ("", None),
        ("\ud800", None),
    ],
)
def test_some_names_of_users(user: str, part: str | None):
    """What is special anywhere is encoded; who has no name that fits has none."""
    assert user_part(user) == part


@examples(150)
@given(patterns(), st.data())
def test_what_fits(text: str, data: st.DataObject):
    """A pattern fits as the regular expression does in which a parameter is one or more characters other than a colon,
    and the name that is made of its values is the one they were read from."""
    pattern = NamePattern(text)
    expression = as_expression(text)
    name = data.draw(st.one_of(st.text("ab1.:@", max_size=9), st.from_regex(expression, fullmatch=True)))
    fits = expression.fullmatch(name)
    values = pattern.match(name)
    assert values == (None if fits is None else fits.groupdict())
    if values is not None:
        assert pattern.name(values) == name


@examples(60)
@given(st.lists(patterns(), min_size=2, max_size=5), st.randoms())
def test_ranks(texts: list[str], random):
    """Sorted by rank the order is the same in whatever order they were declared; a text without parameter stands before
    all that fit it, too."""
    sorted_texts = sorted({NamePattern(text).rank for text in texts})
    random.shuffle(texts)
    assert sorted({NamePattern(text).rank for text in texts}) == sorted_texts
    for text in texts:
        literal = re.sub(r"\{\w+\}", "z", text)
        if literal != text:
            assert NamePattern(literal).rank < NamePattern(text).rank


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "such as room:{id}"),
        (None, "such as room:{id}"),
        (7, "such as room:{id}"),
        ("room:{", "a parameter is written {name}, and at most one stands between two colons"),
        ("room:}", "a parameter is written {name}, and at most one stands between two colons"),
        ("room:{a}{b}", "a parameter is written {name}, and at most one stands between two colons"),
        ("room:{a}-{b}", "a parameter is written {name}, and at most one stands between two colons"),
        ("room:{{a}}", "a parameter is written {name}, and at most one stands between two colons"),
        ("room:{a:b}", "a parameter is written {name}, and at most one stands between two colons"),
        ("room:{}", "{} is no name of a parameter"),
        ("room:{1}", "{1} is no name of a parameter"),
        ("room:{ä}", "{ä} is no name of a parameter"),
        ("room:{a b}", "is no name of a parameter"),
        ("room:{id}:{id}", "a parameter is there twice"),
        ("room *", "letters, digits"),
        ("room:*", "letters, digits"),
        ("räume:{id}", "letters, digits"),
        ("x" * 256, "255 characters at most"),
        ("x" * 255 + ":{id}", "255 characters at most"),
    ],
)
def test_patterns_that_are_none(text, complaint: str):
    """Each is refused with what is wrong with it."""
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        NamePattern(text)


def test_the_longest_pattern():
    """One whose shortest name has 255 characters has that one name at least."""
    pattern = NamePattern("x" * 254 + "{id}")
    assert pattern.match("x" * 254 + "y") == {"id": "y"} and pattern.match("x" * 254) is None


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("room:{id}", "room:{name}", True),
        ("room:{id}", "{kind}:{id}", True),
        ("room:1", "room:{id}", True),
        ("room:1", "room:2", False),
        ("room:{id}", "room:{id}:typing", False),
        ("room", "room:{id}", False),
        ("a{x}", "ab{y}", True),
        ("a{x}c", "b{y}", False),
        ("{x}ab", "{y}b", True),
        ("{x}ab", "{y}c", False),
        ("ab", "a{x}b", False),
        ("acb", "a{x}b", True),
    ],
)
def test_patterns_that_have_a_name_in_common(one: str, other: str, meet: bool):
    """Whichever of the two is asked."""
    first, second = NamePattern(one), NamePattern(other)
    assert first.meets(second) is second.meets(first) is meet
