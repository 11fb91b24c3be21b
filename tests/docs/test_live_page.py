"""The page on live queries says what is so."""

from __future__ import annotations

import re

from support.docs_blocks import block, runs
from support.serverprocess import CHECKOUT

from zcomm.config import Limits
from zcomm.data.schema import load_schema
from zcomm.live.feed import LATE, LOOK, PACE, QUERY_SECONDS
from zcomm.live.requests import MAX_BYTES, MAX_ROWS

PAGE = (CHECKOUT / "docs" / "live.rst").read_text("utf-8")


@runs("live-schema")
def test_the_schema_is_one():
    """Its model is watched."""
    assert load_schema(block("live-schema").text, "schema.yaml").models["Orders"].live


def test_the_figures_are_those_of_the_code():
    """How many rows and bytes, how long and how often."""
    assert f"At most {MAX_ROWS:,} rows, of {MAX_BYTES >> 20} MiB" in PAGE
    assert (2 * QUERY_SECONDS, LATE) == (1, 3) and "longer than a second" in PAGE and "three times in a row" in PAGE
    assert (PACE, LOOK) == (0.01, 0.05)
    named = set(re.findall(r"``--(live-[a-z-]+)``", PAGE))
    assert named == {name.replace("_", "-") for name in Limits.__dataclass_fields__ if name.startswith("live_")}
