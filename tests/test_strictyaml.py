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
    ("text", "problem"),
    [
        ("a: [", "line 1, column 5: "),
        ("1: x\n01: y", "line 2, column 1: 1 is given twice"),
        ("a: 2020-99-01", "a value cannot be read"),
        pytest.param("[" * 2000, "nested too deeply", marks=pytest.mark.unmeasured, id="deep"),
        ("a: \0", "not YAML: "),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: !!python/name:os.system x", "constructor"),
        ("? {a: 1}\n: {}", "unhashable key"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, problem: str):
    """One line with the file, the place and the reason; nothing that the file names is made."""
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml: not YAML: ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_data_is_read():
    """Mappings, lists, numbers, dates and what is merged."""
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: [true, null, 1.5]}", "f") == {
        "a": {"b": 1},
        "c": {"b": 1, "d": [True, None, 1.5]},
    }
    assert read_yaml("", "f") is None
