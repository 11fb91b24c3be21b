"""Every block of the guide has an outcome, and a test that sees it or a reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.guide_blocks import guide_blocks
from support.guide_outcomes import NOT_RUN, OUTCOMES

SOURCES = "\n".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_guide_*.py"))


def test_no_block_is_left_out():
    """Run or not run, never both, and nothing that the guide does not have."""
    assert sorted([*OUTCOMES, *NOT_RUN]) == sorted(block.name for block in guide_blocks())


@pytest.mark.parametrize("name", OUTCOMES)
def test_what_is_said_to_run_is_run(name: str):
    """A test names the block."""
    assert f'"{name}"' in SOURCES


@pytest.mark.parametrize("block", guide_blocks(), ids=str)
def test_programs_are_run(block):
    """Of the Python and JavaScript blocks only the piece of the original's server is not run."""
    if block.language in ("python", "javascript", "html"):
        assert block.name in OUTCOMES or block.name == "Custom Message Handlers"
