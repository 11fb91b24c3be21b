"""YAML of which nothing is dropped without a word."""

from __future__ import annotations

import pytest

from zcomm.auth.policy import Policy
from zcomm.data.schema import load_schema
from zcomm.errors import ConfigError
from zcomm.services.servicefile import load_services
from zcomm.strictyaml import read_yaml


@pytest.mark.parametrize(
    ("read", "text", "line"),
    [
        (load_services, "cache: {argv: x}\ncache: {argv: y}", 2),
        (load_services, "services:\n  cache: {argv: x}\n  cache: {argv: y}", 3),
        (load_services, "cache:\n  argv: x\n  argv: y", 3),
        (load_schema, "A: {id: {type: int, pk: true}}\nA: {id: {type: int, pk: true}}", 2),
        (load_schema, "A:\n  id: {type: int, pk: true}\n  id: str", 3),
        (Policy.from_yaml, "admin: {}\nadmin: {}", 2),
        (Policy.from_yaml, "admin:\n  files: [a]\n  files: [b]", 3),
    ],
)
def test_no_file_may_give_a_key_twice(read, text: str, line: int):
    """Services, schema and policy: YAML itself would drop the first without a word."""
    with pytest.raises(ConfigError, match=f"^my.yaml: not YAML: line {line}, column .*is given twice$"):
        read(text, "my.yaml")


@pytest.mark.parametrize(
    ("text", "place", "key"),
    [
        ("2001-01-01: 1\n2001-01-01: 2", (2, 1), "'2001-01-01'"),
        ("!!binary YQ==: 1\n!!binary YQ==: 2", (2, 1), "'YQ=='"),
        ("true: 1\n1: 2", (2, 1), "1"),
        ("1: 1\n1.0: 2", (2, 1), "1.0"),
        ("~: 1\nnull: 2", (2, 1), "None"),
        (".nan: 1\n.NaN: 2", (2, 1), "nan"),
        ("a: 1\n'a': 2", (2, 1), "'a'"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: {y: 1}", (4, 3), "'<<'"),
        ("a: {<<: {x: 1, x: 2}}", (1, 16), "'x'"),
        ("a: {<<: [{y: 1}, {x: 1, x: 2}]}", (1, 25), "'x'"),
        ("a: &a {x: 1, x: 2}\nb: {<<: *a}", (1, 14), "'x'"),
        ("!!omap [a: 1, b: 2, a: 3]", (1, 21), "'a'"),
        ("!!pairs [a: 1, a: 2]", (1, 16), "'a'"),
        ("=: 1\n'=': 2", (2, 1), "'='"),
        ("!!set {a, b, a}", (1, 14), "'a'"),
        ("[[{a: [{b: 1, b: 2}]}]]", (1, 15), "'b'"),
        ("&a {x: *a, y: {x: 1, x: 2}}", (1, 22), "'x'"),
    ],
)
def test_no_kind_of_key_and_no_kind_of_mapping_is_excepted(text: str, place: tuple[int, int], key: str):
    """Dates, bytes and ``<<`` are keys; what is merged, ordered or a set is a mapping."""
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "my.yaml")
    assert str(caught.value) == f"my.yaml: not YAML: line {place[0]}, column {place[1]}: {key} is given twice"


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: {<<: {x: 1}, x: 2}", {"a": {"x": 2}}),
        ("a: {x: 2, <<: {x: 1}}", {"a": {"x": 2}}),
        ("z: {mid: &m {<<: {x: 1}, x: 2}}\ntop: {<<: *m, y: 1}", {"z": {"mid": {"x": 2}}, "top": {"x": 2, "y": 1}}),
        ("mid: &m {<<: {x: 1}, x: 2}\ntop: {<<: *m, y: 1}", {"mid": {"x": 2}, "top": {"x": 2, "y": 1}}),
        ("a: {<<: [{xx: 1}, {xx: 2, y: 3}]}", {"a": {"xx": 1, "y": 3}}),
        ("a: {<<: [{1: x}, {'1': y}]}", {"a": {1: "x", "1": "y"}}),
        ("a: &a {<<: *a, x: 1}", {"a": {"x": 1}}),
        ("a: &a {<<: {<<: *a, y: 2}, x: 1}", {"a": {"x": 1, "y": 2}}),
        ("a: &a {x: 1}\nb: [*a, *a]", {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}),
        ("'<<': 1\nx: 2", {"<<": 1, "x": 2}),
        ("!!omap [a: 1, b: 2]", [("a", 1), ("b", 2)]),
        ("!!set {a, b}", {"a", "b"}),
    ],
)
def test_what_a_merge_brings_in_may_be_overridden(text: str, data: object):
    """A key of its own wins, then what is merged first; none of it is a key given twice, however deep the anchor is."""
    assert read_yaml(text, "f") == data


@pytest.mark.parametrize("text", ["[" * 99 + "x" + "]" * 99, "- " * 99 + "x", "{a: " * 99 + "x" + "}" * 99])
def test_a_hundred_levels_are_read(text: str):
    """However they are written."""
    read = read_yaml(text, "f")
    for _ in range(99):
        (read,) = read.values() if isinstance(read, dict) else read
    assert read == "x"


@pytest.mark.parametrize("link", ["[{}]", "{{<<: [{}]}}"], ids=["listed", "merged"])
def test_aliases_of_aliases_cost_no_more_than_they_are_long(link: str):
    """Forty levels of nine aliases each: a walk along every way would never end."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n}: &a{n} " + link.format(", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 41)]
    read = read_yaml("\n".join(lines), "f")
    assert read["a0"] == {"x": 1, "y": 2} and len(read) == 41


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "line 1, column 5: "),
        ("1: x\n01: y", "line 2, column 1: 1 is given twice"),
        ("a: 2020-99-01", "a value cannot be read"),
        pytest.param(
            "[" * 100_000,
            "line 1, column 101: nested too deeply, beyond level 100",
            marks=pytest.mark.unmeasured,
            id="deep",
        ),
        pytest.param("- " * 100 + "x", "line 1, column 201: nested too deeply", id="deep-block"),
        pytest.param("{a: " * 100 + "x" + "}" * 100, "line 1, column 398: nested too deeply", id="deep-mappings"),
        ("a: \0", "not YAML: "),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: !!python/name:os.system x", "constructor"),
        ("? {a: 1}\n: {}", "unhashable key"),
        ("!!omap [[a]: 1]", "line 1, column 9: unhashable key"),
        ("a: {<<: 1}", "line 1, column 9: << needs a mapping"),
        ("a: {<<: [{x: 1}, 2]}", "line 1, column 18: << needs a mapping"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, problem: str):
    """One line with the file, the place and the reason; nothing that the file names is made."""
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml: not YAML: ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("=: 1", {"=": 1}),
        ("a: =", {"a": "="}),
        ("[=, x]", ["=", "x"]),
        ("a: <<", {"a": "<<"}),
        ("[<<]", ["<<"]),
        ("=", "="),
        ("!!omap [=: <<]", [("=", "<<")]),
    ],
)
def test_signs_are_text(text: str, data: object):
    """``=`` everywhere, and ``<<`` where it is no key of a mapping: there it merges."""
    assert read_yaml(text, "f") == data


def test_plain_data_is_read():
    """Mappings, lists, numbers, dates and what is merged."""
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: [true, null, 1.5]}", "f") == {
        "a": {"b": 1},
        "c": {"b": 1, "d": [True, None, 1.5]},
    }
    assert read_yaml("", "f") is None
