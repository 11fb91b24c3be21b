"""Real servers for the tests of ``zcomm service``."""

from __future__ import annotations

from support.places import make_manager, place, template

__all__ = ["make_manager", "place", "template"]
