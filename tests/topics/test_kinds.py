"""The kinds of topics: what they are declared with, in Python and in a file, and which of them a topic is of."""

from __future__ import annotations

import re
from typing import Any

import pytest

from zcomm import Identity
from zcomm.errors import ConfigError
from zcomm.topics.kinds import AD_HOC, MAX_PAST, Kind, Kinds, kinds_from_yaml, own_topic
from zcomm.topics.names import NamePattern


def kinds_of(*patterns: str) -> Kinds:
    kinds = Kinds()
    for pattern in patterns:
        kinds.add(Kind(pattern))
    return kinds


def test_the_first_day():
    """Nothing is declared: every name is a topic with history, presence and a publish for anybody. One ends that."""
    kinds = Kinds()
    found = kinds.find("whatever:it/is")
    assert found is not None and found.kind is AD_HOC and not found.parts
    assert (AD_HOC.history, AD_HOC.keep, AD_HOC.presence, AD_HOC.publish) == (100, 3600.0, True, "anybody")
    kinds.add(Kind("room:{id}"))
    assert kinds.find("whatever:it/is") is None and kinds.find("room:1") is not None


def test_what_a_kind_is_where_nothing_is_said():
    """No history, no presence, and those publish who are subscribed."""
    kind = Kind("room:{id}")
    assert (kind.history, kind.keep, kind.presence, kind.publish, kind.personal) == (
        0,
        3600.0,
        False,
        "subscribers",
        False,
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"history": -1}, "history: -1 is no number of messages from 0 to 10,000"),
        ({"history": 10_001}, "history: 10001 is no number"),
        ({"history": 10.0}, "history: 10.0 is no number"),
        ({"history": True}, "history: True is no number"),
        ({"history": "100"}, "history: '100' is no number"),
        ({"history": None}, "history: None is no number"),
        ({"keep": 0}, "keep: 0 is no number of seconds up to 86,400"),
        ({"keep": -1.0}, "keep: -1.0"),
        ({"keep": 86_401}, "keep: 86401"),
        ({"keep": float("nan")}, "keep: nan"),
        ({"keep": float("inf")}, "keep: inf"),
        ({"keep": "1h"}, "keep: '1h'"),
        ({"keep": True}, "keep: True"),
        ({"presence": 1}, "presence: 1 is neither true nor false"),
        ({"presence": "yes"}, "presence: 'yes' is neither true nor false"),
        ({"personal": None}, "personal: None is neither true nor false"),
        ({"publish": "subscriber"}, "did you mean"),
        ({"publish": "everybody"}, "'everybody' is none of nobody, subscribers, anybody"),
        ({"publish": ["anybody"]}, "is none of nobody, subscribers, anybody"),
        ({"publish": None}, "is none of nobody, subscribers, anybody"),
        ({"personal": True}, "personal: the pattern of personal topics has the parameter {name}, and no other"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], complaint: str):
    """Each is refused with the pattern, the setting and what it takes."""
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        Kind("room:{id}", **settings)
    assert f"room:{{id}}: {next(iter(settings))}: " in str(caught.value)
    assert "known are" not in str(caught.value), "what it takes is said once"


@pytest.mark.parametrize("pattern", ["user", "user:{id}", "user:{name}:{id}", "user:{name}:{name2}"])
def test_personal_topics_need_a_name(pattern: str):
    """They are one for each name, and so have that parameter and no other."""
    with pytest.raises(ConfigError, match="personal"):
        Kind(pattern, personal=True)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("room:vip", "room:vip"),
        ("room:1", "room:{id}"),
        ("room:vip2", "room:vip{id}"),
        ("room:a-log", "room:{id}-log"),
        ("room:vip-log", "room:{id}-log"),
        ("room:1:log", "room:{id}:log"),
        ("room:1:2", "room:{id}:{part}"),
        ("vip:1", "{kind}:{id}"),
        ("vip:1:x:y", None),
        ("room:", None),
        ("other", None),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_narrower_kind_is_asked_first(name: str, pattern: str | None, reverse: bool):
    """A name that fits several kinds is of the narrowest, in whatever order they were declared."""
    patterns = [
        "room:vip",
        "room:{id}",
        "room:vip{id}",
        "room:{id}-log",
        "room:{id}:log",
        "room:{id}:{part}",
        "{kind}:{id}",
    ]
    found = kinds_of(*(reversed(patterns) if reverse else patterns)).find(name)
    assert (found.kind.pattern.text if found else None) == pattern
    if found:
        assert found.kind.pattern.name(found.parts) == name


def test_two_kinds_with_the_same_names():
    """They are refused, whatever their parameters are called."""
    kinds = kinds_of("room:{id}", "room:vip")
    for text in ("room:{id}", "room:{name}"):
        with pytest.raises(ConfigError, match=re.escape(f"{text} has the names of room:{{id}}, which is declared")):
            kinds.add(Kind(text))
    assert [kind.pattern.text for kind in kinds] == ["room:vip", "room:{id}"]


def test_names_are_found_again_after_a_change():
    """What was found of a name before is not what holds after another kind is declared."""
    kinds = kinds_of("room:{id}")
    assert kinds.find("room:vip").kind.pattern.text == "room:{id}"
    kinds.add(Kind("room:vip"))
    assert kinds.find("room:vip").kind.pattern.text == "room:vip"
    assert kinds.find("hall:1") is None
    kinds.replace_file([Kind("hall:{id}")], "topics.yaml")
    assert kinds.find("hall:1") is not None
    kinds.replace_file([], "topics.yaml")
    assert kinds.find("hall:1") is None and kinds.find("room:1") is not None


def test_very_many_names():
    """Names that are looked for do not fill the memory."""
    kinds = kinds_of("room:{id}")
    for number in range(10_000):
        kinds.find(f"hall:{number}")
    assert len(kinds._found) <= 4096 and kinds.find("room:1") is not None


@pytest.mark.parametrize(
    ("user", "topic"),
    [
        ("alice", "user:alice"),
        ("Jürgen", "user:J%C3%BCrgen"),
        ("*", "user:%2A"),
        ("~", "user:%7E"),
        ("a:b", "user:a%3Ab"),
        ("x" * 250, "user:" + "x" * 250),
        ("x" * 251, None),
        ("é" * 41, "user:" + "%C3%A9" * 41),
        ("é" * 42, None),
        ("anonymous", None),
        ("", None),
    ],
)
def test_own_topics(user: str, topic: str | None):
    """Everybody has the one with their own name; who would pass 255 characters, and anonymous, has none."""
    kind = Kind("user:{name}", personal=True)
    found = own_topic(kind, Identity(user or "x", "admin") if user else Identity("", "admin"))
    assert found == topic
    if topic is not None:
        kinds = Kinds()
        kinds.add(kind)
        assert kinds.find(topic) is not None


FILE = """
"room:{id}": {history: 1000, keep: 3600, presence: true, publish: anybody}
"user:{name}": {personal: true, history: 100}
news:
"""


def test_a_file():
    """Patterns map to settings; none is as good as an empty one."""
    rooms, users, news = kinds_from_yaml(FILE, "topics.yaml")
    assert (rooms.history, rooms.keep, rooms.presence, rooms.publish) == (1000, 3600.0, True, "anybody")
    assert users.personal and users.history == 100 and users.publish == "subscribers"
    assert news.pattern.text == "news" and not news.history


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must map patterns to settings"),
        ("[]", "must map patterns to settings"),
        ("room", "must map patterns to settings"),
        ("{}", "must map patterns to settings"),
        ("7: {}", "7 is not text; put it in quotes"),
        ("room: 100", "room: must map history, keep, presence, publish, personal to values, not 100"),
        ("room: [history]", "room: must map"),
        ("room: {histroy: 100}", "room: unknown key 'histroy'; did you mean"),
        ("room: {prescence: true}", "unknown key 'prescence'; did you mean"),
        ("room: {1: 2}", "room: unknown key 1"),
        ("room: {history: '100'}", "room: history: '100' is no number of messages"),
        ("room: {keep: .inf}", "room: keep: inf is no number of seconds"),
        ("room: {publish: subscriber}", 'did you mean "subscribers"?'),
        ("'room:{id}': {}\n'room:{name}': {}", "room:{name} has the names of room:{id}, which is declared already"),
        ("'room:{id}': {}\n'room:{id}': {}", "room:{id}"),
        ("'room:{}': {}", "{} is no name of a parameter"),
        ("'räume:{id}': {}", "letters, digits"),
        ("room: {history: 1", "topics.yaml"),
        ("'user:{id}': {personal: true}", "the parameter {name}, and no other"),
    ],
)
def test_mistakes_in_a_file(text: str, complaint: str):
    """Each is told with the file, the kind, the key, and the nearest one that is known."""
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        kinds_from_yaml(text, "topics.yaml")
    assert "topics.yaml" in str(caught.value)


def test_a_file_with_what_the_program_declares():
    """It is refused, and the kinds stay as they were."""
    kinds = kinds_of("room:{id}")
    kinds.replace_file([Kind("hall:{id}")], "topics.yaml")
    with pytest.raises(ConfigError, match="room:{name} has the names of room:{id}"):
        kinds.replace_file([Kind("room:{name}"), Kind("yard")], "topics.yaml")
    assert [kind.pattern.text for kind in kinds] == ["hall:{id}", "room:{id}"]


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        (["a: {history: 1}", "a: {history: 9, keep: 5, presence: true}"], {"a": 0}),
        (["a: {history: 1}", "a: {}"], {"a": 1}),
        (["a: {history: 1}", "a: {}", "a: {history: 1}"], {"a": 2}),
        (["a: {history: 1}", "b: {history: 1}"], {"a": None, "b": 1}),
        (["a: {history: 1}", "b: {history: 1}", "a: {history: 1}"], {"a": 2, "b": None}),
        (["'a:{x}': {history: 1}", "'a:{y}': {history: 2}"], {"a:b": 0}),
        (["'a:{x}': {history: 1}", "'a:{x}': {history: 1}\n'a:b': {}"], {"a:b": 1, "a:c": 0}),
        (["a: {}\nb: {history: 1}", "b: {history: 1}\na: {}"], {"a": 0, "b": 0}),
        (["a: {history: 1}", "a: {history: 1}\nb: {history: 1}", "a: {history: 1}\nb: {}"], {"a": 0, "b": 2}),
    ],
)
def test_what_makes_positions_incomparable(files: list[str], changed: dict[str, int | None]):
    """A change of whether that very topic is kept, there and back too, and nothing else."""
    kinds = Kinds()
    for text in files:
        kinds.replace_file(kinds_from_yaml(text, "topics.yaml"), "topics.yaml")
        assert kinds.find("something") is None
    found = {name: kinds.find(name) for name in changed}
    assert {name: None if one is None else one.generation for name, one in found.items()} == changed


def test_a_first_declaration_makes_positions_of_kept_topics_no_others():
    """As long as none is declared every topic is kept, so that one which is kept on goes on."""
    kinds = Kinds()
    assert kinds.find("room:1") is not None and kinds.find("news") is not None
    kinds.add(Kind("room:{id}", history=10))
    kinds.add(Kind("news"))
    found = kinds.find("room:1"), kinds.find("news")
    assert [one and one.generation for one in found] == [0, 1]


def test_kinds_under_which_nobody_asked_for_a_topic():
    """A program that declares one after the other changes nothing that anybody knows of."""
    kinds = Kinds()
    for pattern, history in (("{a}", 0), ("{a}:{b}", 5), ("room:{id}", 0), ("room:1", 5)):
        kinds.add(Kind(pattern, history=history))
    assert not kinds.have_changed
    found = kinds.find("room:1")
    assert found is not None and found.generation == 0


def test_changes_without_end():
    """They are remembered up to a number. What comes then is a numbering that no topic has had, and that goes on from
    there: never one that was before."""
    kinds = Kinds()
    generations = []
    for turn in range(5 * MAX_PAST):
        text = f"a: {{history: {turn % 2}}}\nb: {{history: 1}}"
        kinds.replace_file(kinds_from_yaml(text, "topics.yaml"), "topics.yaml")
        found = [kinds.find(name) for name in ("a", "b")]
        generations.append([one.generation for one in found if one is not None])
        assert len(kinds._past) <= MAX_PAST
    a, b = zip(*generations, strict=True)
    assert list(a) == sorted(set(a)) and list(b) == sorted(b)
    assert len(set(b)) <= 5


def test_a_name_is_matched_as_often_after_many_changes(monkeypatch: pytest.MonkeyPatch):
    """Each pattern is looked at once more at the most, however many changes are remembered."""
    kinds = Kinds()
    for turn in range(MAX_PAST):
        text = "\n".join(f"'k{place}:{{id}}': {{history: {(turn + place) % 2}}}" for place in range(20))
        kinds.replace_file(kinds_from_yaml(text, "topics.yaml"), "topics.yaml")
        assert kinds.find(f"k1:{turn}") is not None
    assert len(kinds._past) == MAX_PAST - 1
    matched: list[str] = []
    match = NamePattern.match

    def counted(pattern: NamePattern, name: str) -> Any:
        matched.append(pattern.text)
        return match(pattern, name)

    monkeypatch.setattr(NamePattern, "match", counted)
    found = kinds.find("k19:new")
    assert found is not None and found.generation == MAX_PAST - 1
    assert len(matched) <= 2 * 20


@pytest.mark.parametrize("action", ["subscribe", "publish", "presence", "history"])
def test_what_is_asked_of_the_program(action: str):
    """One function for each action, which takes the identity and the parts of the name."""
    kind = Kind("room:{id}")

    @kind.allow(action)
    def allow(identity: Identity, id: str) -> bool:
        return True

    assert kind.allowing == {action: allow}
    with pytest.raises(ConfigError, match="has a function already"):
        kind.allow(action)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda identity: True, r"is called as \(identity, id\); let it take that"),
        (lambda id: True, r"is called as \(identity, id\)"),
        (lambda identity, name: True, r"is called as \(identity, id\)"),
        (lambda identity, id, more: True, r"is called as \(identity, id\)"),
        (7, "7 cannot be called"),
    ],
)
def test_functions_that_cannot_be_called(function: Any, complaint: str):
    """They are refused when they are declared, with the call that is made."""
    with pytest.raises(ConfigError, match=complaint):
        Kind("room:{id}").allow("subscribe")(function)
    with pytest.raises(ConfigError):
        Kind("room:{id}").incoming(function)


def test_an_action_there_is_not():
    """The error names those there are, and the nearest."""
    for action in ("subscribed", "read", None):
        with pytest.raises(ConfigError, match="is none of subscribe, publish, presence, history"):
            Kind("room:{id}").allow(action)


def test_allow_without_its_action():
    """What is written so often by mistake is told how it is written."""
    with pytest.raises(ConfigError, match=r'write @kind\.allow\("subscribe"\)'):

        @Kind("room:{id}").allow
        def member(identity, id):
            return True
