"""The exchanges and handshakes of the protocol's page, played against a live server."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

import pytest
from support.docs_blocks import Block, block, blocks_of, runs
from support.docs_exchange import parse_exchange, play, same
from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT, RunningServer

from zcomm.config import Limits

PAGE = CHECKOUT / "docs" / "protocol.rst"
LIMITS = fields(Limits)
EXCHANGES = [block for block in blocks_of(PAGE) if "exchange" in block.classes]
HANDSHAKES = [block for block in blocks_of(PAGE) if "handshake" in block.classes]


def section(title: str) -> str:
    """The text of the page below ``title``, up to the next title of any level."""
    after = re.split(rf"^{title}\n[-~]+\n", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1]
    return re.split(r"^.+\n[-~]{3,}\n", after, flags=re.MULTILINE)[0]


def test_the_whole_page_as_one_story(example_server: RunningServer):
    """Each block in turn, on one database; a block that deviates is named with its line."""
    for exchange in EXCHANGES:
        try:
            play(
                parse_exchange(exchange.text),
                lambda: BlockingRawClient(example_server.port, token=example_server.token),
            )
        except AssertionError as error:
            pytest.fail(f"{exchange}\n{error}", pytrace=False)


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


@runs("protocol-call", "protocol-call-answer")
def test_a_command_over_http(example_server: RunningServer):
    """The request, with the server's own port and token, gets exactly the answer shown."""
    head, _, body = block("protocol-call").text.strip().partition("\n\n")
    head = head.replace("TOKEN", example_server.token).replace(":56891", f":{example_server.port}")
    with BlockingRawClient(
        example_server.port, f"{head}\n\n".replace("\n", "\r\n").encode("ascii") + body.encode("ascii")
    ) as client:
        response = client.next()
        client.wait_ended()
        rest = client.reader.rest.decode("ascii")
    status_line, *headers = block("protocol-call-answer").text.strip().splitlines()[:-2]
    assert f"HTTP/1.1 {response.status} {response.phrase}" == status_line
    assert [f"{name}: {value}" for name, value in response.headers] == headers
    assert rest == block("protocol-call-answer").text.strip().splitlines()[-1]


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
    """The enumeration, both clients and both pages have one list; 1000 is final for a client by itself."""
    from zcomm.errors import ConnectionLost
    from zcomm.wire.closecodes import CloseCode, is_final

    rows = re.findall(r"^(1\d\d\d) {3}.*\S  +(no|yes|as you like)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert {int(code): answer != "yes" for code, answer in rows} == {int(code): code.is_final for code in CloseCode}
    (listed,) = re.findall(
        r"FINAL_CODES = new Set\(\[(.*)\]\)", (PAGE.parents[1] / "js" / "zBifrost.js").read_text("utf-8")
    )
    assert {int(code) for code in listed.split(",")} == {int(code) for code in CloseCode if code.is_final}
    readme = " ".join((PAGE.parents[1] / "js" / "README.md").read_text("utf-8").split())
    (named,) = re.findall(r"close codes ((?:1\d{3}(?:, | and )?)+)", readme)
    assert {int(code) for code in re.findall(r"\d+", named)} == {int(code) for code in CloseCode if code.is_final}
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
    """Each limit that is an option is in the table with its default, and nothing else is."""
    listed = re.findall(r"^``--([a-z-]+)`` +([\d,.]+) ", section("Limits"), re.MULTILINE)
    # What the file limit of this machine allows is not what another one's does.
    defaults = [(item.name.replace("_", "-"), 10_000 if item.default is MISSING else item.default) for item in LIMITS]
    assert set(listed) ^ {(name, f"{default:,.15g}") for name, default in defaults} == set()
    assert len(listed) == len(defaults)


def test_every_operator_is_in_the_table():
    """A filter takes exactly those that are explained."""
    from zcomm.data.filters import _TEXTUAL, OPERATORS

    table = section("Filters").partition("\noperator ")[2]
    listed = [name for line in re.findall(r"^(?:``\w+`` )+ ", table, re.MULTILINE) for name in re.findall(r"\w+", line)]
    assert set(listed) ^ set(OPERATORS) == set() and len(listed) == len(OPERATORS)
    # Whether case counts is said of each that compares texts.
    about_case = re.search(r"^.*tell capital from small letters.*$", table, re.MULTILINE)
    assert about_case and set(re.findall(r"``(\w+)``", about_case[0])) ^ _TEXTUAL == set()


def test_every_type_is_in_the_table():
    """A field has one of the types whose JSON is explained, here and where a schema is."""
    from zcomm.data.values import KINDS

    listed = re.findall(r"^(\w+) {3}", section("Values").partition("\ntype ")[2], re.MULTILINE)
    assert listed == list(KINDS)
    assert re.findall(r"^(\w+) {2,}\w", section("Columns").partition("\ntype ")[2], re.MULTILINE) == listed
    quickstart = (PAGE.parent / "quickstart.rst").read_text("utf-8")
    assert [kind for kind in KINDS if f"``{kind}``" not in quickstart] == []


def test_every_rule_and_format_is_explained_where_a_schema_is():
    """The sentence has the rules and formats that a field may have, and no others."""
    from zcomm.data.rules import FORMATS
    from zcomm.data.schema import _RULE_KEYS

    quickstart = (PAGE.parent / "quickstart.rst").read_text("utf-8")
    (sentence,) = re.findall(r"The ``rules`` of a field are (.*?)\. They are checked", quickstart, re.DOTALL)
    assert set(re.findall(r"``(\w+)``", sentence)) ^ {*_RULE_KEYS, *FORMATS} == set()


def test_every_option_is_in_the_guide():
    """The table has each option of twistd zcomm but the limits, which have a table of their own."""
    from zcomm.tap import Options

    methods = [name.removeprefix("opt_").replace("_", "-") for name in vars(Options) if name.startswith("opt_")]
    options = {*methods, *(each[0] for each in (*Options.optFlags, *Options.optParameters))}
    limits = {item.name.replace("_", "-") for item in LIMITS}
    table = (PAGE.parent / "guide.rst").read_text("utf-8").partition("\noption  ")[2].partition("\n\n")[0]
    assert set(re.findall(r"^``--([a-z-]+)``", table, re.MULTILINE)) ^ (options - limits) == set()


def test_every_variable_of_a_service_is_in_the_guide():
    """Of each kind those of its port, its directory and its settings, and no other."""
    from zcomm.services.kinds import KINDS
    from zcomm.services.options import variables

    known = {variable for kind in KINDS for variable in variables(kind.declaration, kind.settings)}
    sentence = (PAGE.parent / "guide.rst").read_text("utf-8").partition("\nServices read ")[2].partition("\n\n")[0]
    assert set(re.findall(r"``([A-Z_]+)``", sentence)) ^ known == set()
