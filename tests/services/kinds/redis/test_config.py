"""The configuration of Redis, and the way to its append-only file."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies

from zcomm.services.kinds.redis.config import RedisData, config_text, plan_appendonly, quoted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", '"plain"'),
        ('a "b" \\', '"a \\"b\\" \\\\"'),
        ("new\nline", '"new\\x0aline"'),
        ("", '""'),
        ("a b", '"a b"'),
    ],
)
def test_quoting(value: str, expected: str):
    """What is written is read back as the same, and stays on its line."""
    assert quoted(value) == expected


@given(strategies.text(max_size=40))
def test_no_value_breaks_out_of_its_line(value: str):
    """Not even a password that tries."""
    text = config_text("redis", (7, 0), {"requirepass": value})
    assert text.count("\n") == len(text.splitlines()) or "\x0b" in value
    assert sum(line.startswith("requirepass ") for line in text.split("\n")) == 1


def test_old_servers_get_no_directive_they_do_not_know():
    """Redis 6 would refuse to start over enable-debug-command."""
    assert "enable-debug-command" not in config_text("redis", (6, 2), {})
    assert "enable-debug-command no" in config_text("redis", (7, 0), {}) and "enable-debug-command no" in config_text(
        "valkey", (8,), {}
    )


@pytest.mark.parametrize(
    ("data", "wanted", "plan"),
    [
        (RedisData(), None, (True, False)),
        (RedisData(), False, (False, False)),
        (RedisData(snapshot=True), None, (False, True)),
        (RedisData(snapshot=True), False, (False, False)),
        (RedisData(True, True), None, (True, False)),
    ],
)
def test_the_way_to_the_append_only_file(tmp_path: Any, data: RedisData, wanted: bool | None, plan: tuple[bool, bool]):
    """Never in a way that starts empty (RD9)."""
    assert plan_appendonly("redis", tmp_path, data, wanted) == plan
