"""How many examples a random test takes: few, so that the suite stays quick, and many where somebody looks for more:
``ZCOMM_TEST_EXAMPLES=50 ./test tests/topics`` takes fifty times as many."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

__all__ = ["examples"]


def examples(count: int, **options: Any) -> settings:
    """The settings of a random test that takes ``count`` examples in the suite."""
    many = count * int(os.environ.get("ZCOMM_TEST_EXAMPLES", "1"))
    return settings(max_examples=many, suppress_health_check=list(HealthCheck), **options)
