"""The servers of the tests of pages: one for each module and set of limits, looked over after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.served import RUNNING, served

__all__ = ["forgotten", "served"]


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What one test did is nothing that the next one trips over, however it ended."""
    for server in RUNNING:
        server.forget()
    yield
    for server in RUNNING:
        server.forget()
