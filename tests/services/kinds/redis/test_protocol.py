"""What Redis answers."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from zcomm.services.kinds.postgresql.protocol import parse_postgresql
from zcomm.services.kinds.redis.protocol import encode_resp, parse_resp, read_info
from zcomm.services.machine.query import NoAnswer


@given(strategies.binary(max_size=200))
def test_no_answer_is_too_strange(answer: bytes):
    """Random bytes end in a reply, in patience, or in NoAnswer."""
    for parse in (parse_postgresql, lambda data: parse_resp(data, 2)):
        try:
            parse(answer)
        except NoAnswer:
            continue


@given(strategies.lists(strategies.text(max_size=20), min_size=1, max_size=4))
def test_redis_reads_what_we_write(words: list[str]):
    """Bulk strings go there and back, also in pieces."""
    packed = encode_resp(*words)
    count, rest = packed.split(b"\r\n", 1)
    assert count == b"*%d" % len(words) and parse_resp(rest, len(words)) == words
    assert all(parse_resp(rest[:cut], len(words)) is None for cut in range(len(rest)))


def test_answers_of_redis():
    """Simple strings, errors, numbers, nothing; a refusal for lack of room stands for all."""
    assert parse_resp(b"+OK\r\n-NOAUTH x\r\n:7\r\n$-1\r\n$2\r\nab\r\n", 5) == ["OK", "-NOAUTH x", "7", "", "ab"]
    assert parse_resp(b"-ERR max number of clients reached\r\n", 3) == ["-ERR max number of clients reached"] * 3
    assert read_info("# Server\r\nrun_id:abc\r\nempty:\r\nno pair\r\n") == {"run_id": "abc", "empty": ""}
    for strange in (b"$x\r\n", b"HTTP/1.1 200\r\n", b"\r\n"):
        with pytest.raises(NoAnswer):
            parse_resp(strange, 1)
