"""The string forms, as tables and under fire."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zcomm.commands.grammar import Call, parse_call
from zcomm.errors import CommandError, Invalid, UnknownCommand


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ("zFunc(calculateTotal, {cart_id: 123})", "calculateTotal", ({"cart_id": 123},)),
        ("zFunc(f)", "f", ()),
        (" zFunc( f ) ", "f", ()),
        ("zFunc(f, 1, 2.5, -3e2, true, false, null)", "f", (1, 2.5, -300.0, True, False, None)),
        ("zFunc(f, [1, [2, []], {}])", "f", ([1, [2, []], {}],)),
        ("zFunc(f, 'single', \"double\")", "f", ("single", "double")),
        ("zFunc(f, 'it\\'s', 'say \"hi\"', \"it's\")", "f", ("it's", 'say "hi"', "it's")),
        ("zFunc(f, 'a, b: {c} [d] ) (')", "f", ("a, b: {c} [d] ) (",)),
        ("zFunc(f, {'a b': 1, \"c\": 2, d_1: 3, $e: 4})", "f", ({"a b": 1, "c": 2, "d_1": 3, "$e": 4},)),
        ("zFunc(f, {a : {b : [x]}})", "f", ({"a": {"b": ["x"]}},)),
        ("zFunc(f, {true: 1})", "f", ({"true": 1},)),
        ("zFunc(f,\n  {\n    a: 1\n  }\n)", "f", ({"a": 1},)),
        ("zFunc(f, 'ü€😀', \"\\u20ac\\n\", 'tab\\t')", "f", ("ü€😀", "€\n", "tab\t")),
        ("zFunc(f, {__proto__: {constructor: 1}})", "f", ({"__proto__": {"constructor": 1}},)),
        ('zFunc(f, "http://x/?a=1&b=2")', "f", ("http://x/?a=1&b=2",)),
        ("zFunc(f, '')", "f", ("",)),
        ('zFunc(f, "\\u0000")', "f", ("\0",)),
    ],
)
def test_function_calls_are_read(text: str, name: str, args: tuple[Any, ...]):
    """Relaxed JSON gives the same values as the JSON a person meant."""
    assert parse_call(text, "zFunc") == Call("zFunc", name, args)


@pytest.mark.parametrize(
    "word",
    [
        "session=",
        "session=x",
        "zContext",
        "zConv",
        "zConv.email",
        "this.x",
        "this.session.zAuth",
        "self",
        "os.environ",
        "__import__",
        "__builtins__.eval",
        "_schema_cached",
    ],
)
def test_words_of_the_host_are_only_text(word: str):
    """I5: what once named objects of the server is the text it looks like."""
    assert parse_call(f"zFunc(f, {word})", "zFunc").args == (word,)


@pytest.mark.parametrize(
    "arguments",
    [
        "__import__('os').system('id')",
        "(lambda: 1)()",
        "eval('1')",
        "open('/etc/passwd').read()",
        "f'{1}'",
        "b'x'",
        "1 + 1",
        "[x for x in y]",
        "{**a}",
        "a if b else c",
        "print(1)",
        "().__class__",
        "`id`",
        "$(id)",
        "1; 2",
        "a=1, b=2)",
        "{a: 1,}",
        "[1,]",
        ",",
        "1,,2",
        "",
        " ",
        "1 2",
        "a b",
        "{a}",
        "{a: }",
        "{: 1}",
        "{a-b: 1}",
        "{a.b: 1}",
        "{1: 2}",
        "[1",
        "1]",
        "1], [2",
        "}{",
        "'open",
        '"open',
        "'open\\'",
        "'",
        '"',
        "\\",
        "'\\q'",
        "'\\u12'",
        "'\\ud800'",
        "'line\nbreak'",
        "'nul\0'",
        "\0",
        "NaN",
        "Infinity",
        "-Infinity",
        "undefined",
        "True",
        "False",
        "None",
        "1e999",
        "01",
        "0x10",
        "1_000",
        ".5",
        "5.",
        "+1",
        "--1",
        "1e",
        "// c",
        "/* c */ 1",
        "# c",
        "é",
        "{é: 1}",
        "9" * 5000 + "]",
    ],
)
def test_what_is_no_json_is_refused(arguments: str):
    """I2, I4: nothing is evaluated, guessed or cut; the error says it is the arguments."""
    with pytest.raises(Invalid, match="^Invalid arguments"):
        parse_call(f"zFunc(f, {arguments})", "zFunc")


@pytest.mark.parametrize(
    "name",
    [
        "/tmp/evil.run",
        "../x.f",
        "os.system",
        "__builtins__.eval",
        "f.__globals__",
        "__import__",
        "_private",
        "@.a.b",
        "~.a",
        "f g",
        "f()",
        "f)",
        "(f",
        "f;",
        "f\n",
        "f\0",
        "é",
        "1f",
        "f'",
        '"f"',
        "{}",
        "x" * 65,
        "zFunc(f",
        "\u0066\u0301",
    ],
)
def test_names_that_no_function_can_have_are_unknown(name: str):
    """I3: dotted names, paths and dunders are not looked up at all."""
    for text in (f"zFunc({name})", f'zFunc({name}, "id")'):
        with pytest.raises(UnknownCommand, match="^Unknown function$"):
            parse_call(text, "zFunc")


@pytest.mark.parametrize(
    "text",
    [
        "zFunc(",
        "zFunc()",
        "zFunc( )",
        "zFunc(,)",
        "zFunc",
        "",
        "f()",
        "zfunc(f)",
        "zLink(/a)",
        "xzFunc(f)",
        "zFunc(f",
        "zFunc (f)",
        "zWizard(__import__('os').system('touch /tmp/p'))",
        None,
        5,
        True,
        [],
        ["zFunc(f)"],
        {},
        {"zFunc": "zFunc(f)"},
        b"zFunc(f)",
    ],
)
def test_what_is_no_call_is_refused(text: Any):
    """I1, I4, I9: only a string of exactly that form is a call."""
    with pytest.raises(Invalid, match="^Invalid arguments"):
        parse_call(text, "zFunc")


def test_closing_twice_is_no_call():
    """I4: ``zFunc(f))`` names a function that cannot be."""
    with pytest.raises(UnknownCommand):
        parse_call("zFunc(f))", "zFunc")


@pytest.mark.parametrize(
    ("depth", "allowed"),
    [
        (1, True),
        (64, True),
        (65, False),
        (500, False),
        (5000, False),
    ],
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ("{a:", "}")])
def test_nesting_has_a_limit(depth: int, allowed: bool, opening: str, closing: str):
    """64 levels are read, one more is not, however they are written."""
    text = f"zFunc(f, {opening * depth}{'1' if opening != '[' else ''}{closing * depth})"
    if allowed:
        assert parse_call(text, "zFunc").name == "f"
    else:
        with pytest.raises(Invalid, match="levels deep|longer than"):
            parse_call(text, "zFunc")


def test_long_calls_are_refused_unread():
    """A text beyond the limit is refused for its length; a long string in strict JSON is no hostile text."""
    assert parse_call('zFunc(f, "' + "x" * 100_000 + '")', "zFunc").args == ("x" * 100_000,)
    with pytest.raises(Invalid, match="longer than 131072 characters"):
        parse_call('zFunc(f, "' + "x" * 1_000_000 + '")', "zFunc")
    with pytest.raises(Invalid, match="longer than 16384 characters"):
        parse_call("zFunc(f, '" + "x" * 20_000 + "')", "zFunc")


UNITS = (
    "(",
    ")",
    "[",
    "]",
    "[],",
    "{},",
    "{a:",
    "a,",
    "a ",
    "'",
    '"',
    "\\'",
    '\\"',
    '"\\',
    "\\",
    " ",
    "\n",
    "\0",
    "0",
    "-",
    "é",
    "'a',",
)


def count_of_steps(text: str) -> int:
    """The number of Python instructions that reading ``text`` takes: the same on a busy machine and an idle one."""
    import sys

    steps = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse_call(text, "zFunc")
    except CommandError:
        pass
    finally:
        sys.settrace(before)
    return steps


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("prefix", ["", "'", '"'])
def test_hostile_text_costs_little(unit: str, prefix: str):
    """I4: a megabyte is refused without a look, and what is looked at is bounded by the text's length."""
    for size, most in ((1_000_000, 100), (16_000, 16_000 * 8)):
        text = "zFunc(f, " + prefix + unit * (size // len(unit)) + ")"
        assert count_of_steps(text) < most


@given(st.text(max_size=300))
@example("zFunc(f, '")
@settings(max_examples=400)
def test_any_text_is_a_call_or_an_error(text: str):
    """No text makes the grammar fail in a way of its own."""
    for form in ("zFunc", "zLink", "zOpen"):
        for candidate in (text, f"{form}({text})", f"{form}(f, {text})"):
            try:
                call = parse_call(candidate, form)
            except CommandError as error:
                assert str(error) and len(str(error)) < 300
            else:
                assert call.form == form and call.name


FRAGMENTS = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "'",
        '"',
        "\\",
        "a",
        "b1",
        "1",
        "-2.5e3",
        "true",
        "null",
        " ",
        "\n",
        "é",
        "\ud800",
        "(",
        ")",
        "=",
    ]
)


@given(st.lists(FRAGMENTS, max_size=40).map("".join))
@settings(max_examples=600)
def test_any_mixture_of_tokens_is_json_or_an_error(text: str):
    """What passes is made of JSON values alone, and can be written as JSON again."""
    try:
        call = parse_call(f"zFunc(f, {text})", "zFunc")
    except CommandError:
        return
    assert json.loads(json.dumps(list(call.args), allow_nan=False)) == list(call.args)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(JSON_VALUES, min_size=1, max_size=3))
@settings(max_examples=300)
def test_strict_json_comes_through_unchanged(values: list[Any]):
    """Whatever a program writes as JSON is what the function gets."""
    text = ", ".join(json.dumps(value) for value in values)
    assert parse_call(f"zFunc(f, {text})", "zFunc").args == tuple(values)


def single_quoted(value: Any) -> str:
    """``value`` as a person would write it: single quotes and bare keys."""
    if isinstance(value, str):
        return "'" + json.dumps(value)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ", ".join(map(single_quoted, value)) + "]"
    if isinstance(value, dict):
        plain = all(key.isascii() and key.isidentifier() for key in value)
        return (
            "{"
            + ", ".join(
                f"{key if plain else single_quoted(key)}: {single_quoted(inner)}" for key, inner in value.items()
            )
            + "}"
        )
    return json.dumps(value)


@given(JSON_VALUES)
@settings(max_examples=300)
def test_relaxed_json_means_what_it_says(value: Any):
    """The same values, written with single quotes and bare keys, come out the same."""
    assert parse_call(f"zFunc(f, {single_quoted(value)})", "zFunc").args == (value,)


@pytest.mark.parametrize(
    "path",
    [
        "/admin/users",
        "/",
        "a",
        "@.menus.main",
        "~/x",
        "/a-b_c.d/~e@f",
        "x" * 512,
        "../..",
    ],
)
def test_paths_are_read(path: str):
    """I10: what the path grammar allows is a path; whether there is such a page is another matter."""
    assert parse_call(f"zLink({path})", "zLink") == Call("zLink", path)
    assert parse_call(f"zLink( {path} )", "zLink").name == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        " ",
        "/a\n/b",
        "/a\n",
        "\n/a",
        "javascript:alert(1)",
        "/a b",
        "/a?b=1",
        "/a#b",
        "/a%2f",
        "/a\\b",
        "/a\0",
        "/é",
        "/a;b",
        "'/a'",
        '"/a"',
        "x" * 513,
        "/a)",
        "(/a",
        "/а",
    ],
)
def test_what_is_no_path_is_refused(path: str):
    """I10: nothing outside the path grammar is looked up."""
    with pytest.raises(Invalid, match="^Invalid arguments"):
        parse_call(f"zLink({path})", "zLink")


@pytest.mark.parametrize("rest", [', {role: "guest"}', ', {"role": "admin"}', ", 1", ","])
def test_a_client_declares_no_rights(rest: str):
    """I11: further arguments of zLink are refused, not believed."""
    with pytest.raises(Invalid, match="^Invalid arguments: zLink takes a path and nothing else"):
        parse_call(f"zLink(/admin{rest})", "zLink")


@pytest.mark.parametrize("name", ["config.yaml", "a b.txt", "sub/dir/x.json", "ü.md", "../../etc/passwd"])
def test_file_names_are_read(name: str):
    """A name is a name; whether it may be opened is another matter."""
    assert parse_call(f"zOpen({name})", "zOpen") == Call("zOpen", name)


@pytest.mark.parametrize(
    "text",
    [
        "zOpen()",
        "zOpen( )",
        "zOpen(" + "x" * 513 + ")",
        "zOpen(a, {onSuccess: b})",
        "zOpen(a, zFunc(b))",
        {"zOpen": {"path": "config.yaml", "onSuccess": "zFunc(f)"}},
    ],
)
def test_what_is_no_file_name_is_refused(text: Any):
    """I9: no hooks, no further arguments."""
    with pytest.raises(Invalid, match="^Invalid arguments"):
        parse_call(text, "zOpen")


@pytest.mark.parametrize("arguments", ["1e300" + ", 1e300" * 18_000, "word" + ", 1e300" * 2000, "[]" + ",[]" * 43_600])
def test_b11_arguments_that_take_long_to_read_are_refused(arguments: str):
    """To the message they are one text; what is in it has its price all the same."""
    with pytest.raises(Invalid, match="too many values"):
        parse_call(f"zFunc(f, {arguments})", "zFunc")
