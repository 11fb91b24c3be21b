"""docs/schema.rst: its example is a schema, and every key that a schema may have is in its tables."""

from __future__ import annotations

import re

from support.docs_blocks import blocks_of, runs
from support.serverprocess import CHECKOUT

from zcomm.data.schema import _FIELD_KEYS, _MODEL_KEYS, _RULE_KEYS, load_schema
from zcomm.data.values import KINDS

PAGE = CHECKOUT / "docs" / "schema.rst"


def section(title: str) -> str:
    """The text below ``title``, up to the next title."""
    return re.split(rf"^{title}\n-+\n", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1].partition("\n---")[0]


@runs("schema-example")
def test_the_example_says_what_the_page_says():
    """It can be used, and shows both kinds of mapping."""
    (example,) = (block for block in blocks_of(PAGE) if block.name == "schema-example")
    schema = load_schema(example.text)
    details = schema.models["Details"]
    assert (details.table, details.fields["email"].column_name) == ("Order Details", "e-mail")
    assert details.unique == (("board_id", "email"),)
    assert schema.models["Totals"].read_only


def test_contact_f25_every_key_is_in_a_table():
    """The tables have the keys of fields and of ``_model``, and no others; types and rules are all named."""
    for title, keys in (("Fields", _FIELD_KEYS), ("Models", _MODEL_KEYS)):
        listed = re.findall(r"^``(\w+)`` {2}", section(title), re.MULTILINE)
        assert sorted(listed) == sorted(keys)
    named = set(re.findall(r"``(\w+)``", section("Fields")))
    assert {*KINDS, *_RULE_KEYS} - named == set()
