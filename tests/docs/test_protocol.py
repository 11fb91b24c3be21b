"""The exchanges and handshakes of the protocol's page, played against a live server."""

from __future__ import annotations

import re

import pytest
from support.docs_blocks import Block, blocks_of
from support.docs_exchange import parse_exchange, play, same
from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT, RunningServer

PAGE = CHECKOUT / "docs" / "protocol.rst"
EXCHANGES = [block for block in blocks_of(PAGE) if "exchange" in block.classes]
HANDSHAKES = [block for block in blocks_of(PAGE) if "handshake" in block.classes]


def test_the_whole_page_as_one_story(example_server: RunningServer):
    """Each block in turn, on one database; a block that deviates is named with its line."""
    for block in EXCHANGES:
        try:
            play(
                parse_exchange(block.text),
                lambda: BlockingRawClient(example_server.port, token=example_server.token),
            )
        except AssertionError as error:
            pytest.fail(f"{block}\n{error}", pytrace=False)


@pytest.mark.parametrize(("request_block", "response_block"), list(zip(HANDSHAKES[::2], HANDSHAKES[1::2], strict=True)))
def test_handshakes(example_server: RunningServer, request_block: Block, response_block: Block):
    """The request, with the server's own port and token, gets exactly the status and headers shown."""
    text = request_block.text.replace("TOKEN", example_server.token).replace(":56891", f":{example_server.port}")
    with BlockingRawClient(
        example_server.port, text.strip().replace("\n", "\r\n").encode("ascii") + b"\r\n\r\n"
    ) as client:
        response = client.next()
    status_line, *headers = response_block.text.strip().splitlines()
    assert f"HTTP/1.1 {response.status} {response.phrase}" == status_line
    expected = sorted(tuple(re.split(r": ?", line, maxsplit=1)) for line in headers)
    assert sorted(response.headers) == expected


def test_every_error_code_is_in_the_table():
    """The codes that the package can send are those that the page lists, with the right word on trying again."""
    from zcomm import errors

    table = dict(re.findall(r"^``([a-z_]+)`` +(yes|no) ", PAGE.read_text("utf-8"), re.MULTILINE))
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.CommandError) and kind is not errors.CommandError
    ]
    assert table == {kind.code: "yes" if kind.retryable else "no" for kind in kinds}


def test_every_close_code_is_in_the_table():
    """As for errors: what the server can send is explained."""
    from zcomm.wire.closecodes import CloseCode

    listed = {int(code) for code in re.findall(r"^(1\d\d\d) {3}", PAGE.read_text("utf-8"), re.MULTILINE)}
    assert {int(code) for code in CloseCode} == listed


def test_all_agree_which_close_codes_are_final():
    """The enumeration, both clients and the page have one list; 1000 is final for a client by itself."""
    from zcomm.errors import ConnectionLost
    from zcomm.wire.closecodes import CloseCode, is_final

    rows = re.findall(r"^(1\d\d\d) {3}.*\S  +(no|yes|as you like)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert {int(code): answer != "yes" for code, answer in rows} == {int(code): code.is_final for code in CloseCode}
    (listed,) = re.findall(
        r"FINAL_CODES = new Set\(\[(.*)\]\)", (PAGE.parents[1] / "js" / "zBifrost.js").read_text("utf-8")
    )
    assert {int(code) for code in listed.split(",")} == {int(code) for code in CloseCode if code.is_final}
    for code in range(1000, 5000):
        assert ConnectionLost(code).retryable is not is_final(code)


@pytest.mark.parametrize(
    ("expected", "actual", "equal"),
    [
        ({"a": "…"}, {"a": [1]}, True),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"a": True}, False),
        ([1, "…"], [1, 2], True),
        ([1], [1, 2], False),
        (1, 1.0, False),
        ({"b": 1, "…": "…"}, {"a": 1}, False),
    ],
)
def test_comparing_is_exact_but_for_the_ellipsis(expected, actual, equal):
    """The test's own eye: extra keys, other types and missing entries are differences."""
    assert same(expected, actual) is equal


def test_a_line_that_is_none_is_an_error():
    """A typing error in the page must not make a line vanish."""
    with pytest.raises(ValueError, match="not a line"):
        parse_exchange("> {}\n<{}")


def test_the_limits_are_those_of_the_server():
    """The figures of the page are the defaults of the options."""
    from zcomm.config import Limits

    limits = Limits()
    text = " ".join(PAGE.read_text("utf-8").split())
    for phrase in (
        f"{limits.message_size:,} bytes",
        f"{limits.head_size // 1024} KiB, {limits.head_count} headers",
        f"token included {limits.handshake_timeout:g} s",
        f"{limits.pending}; {limits.pending_per_peer} of one address",
        f"{limits.auth_failures} a minute of one address",
        f"{limits.frame_rate:,.0f} a second, {limits.frame_burst:,.0f} at once",
        f"nesting {limits.json_depth} levels",
        f"{limits.in_flight} per client",
        f"time for a command {limits.command_timeout:g} s",
        f"{limits.read_rows:,} ``invalid``",
        f"waiting output {limits.queue_size // 2**20} MiB per client",
        f"takes nothing {limits.stall_timeout:g} s",
        f"every {limits.ping_interval:g} s, {limits.ping_interval:g} s to answer",
    ):
        assert phrase in text, phrase
