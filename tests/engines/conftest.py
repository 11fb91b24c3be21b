"""The engines: what is tested of one of them is tested of each."""

from __future__ import annotations

import pytest

from zcomm.engines.memory import MemoryEngine
from zcomm.interfaces import IEngine

#: A new engine is its line here.
ENGINES = {"memory": MemoryEngine}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> IEngine:
    """One of each kind, not started."""
    return ENGINES[request.param]()
