"""Text frames as bytes: whole masked messages in, unmasked ones out, and how deep their JSON goes (RFC 6455).

The functions come from the extension module ``zcomm._fast`` where it was built, and from
:mod:`zcomm.bifrost.frames_pure` otherwise; they give the same results. ``ZCOMM_PURE=1`` in the
environment of a build leaves the extension out, ``python -X zcomm_pure`` passes it over.
"""
from __future__ import annotations

import sys

from zcomm.bifrost import frames_pure

__all__ = ["COMPILED", "depth_within", "frame", "frames", "header", "split"]

try:
    if "zcomm_pure" in sys._xoptions:
        raise ImportError("passed over")
    from zcomm import _fast as _functions
except ImportError:
    _functions = frames_pure  # type: ignore[assignment]

#: Whether the functions are the compiled ones.
COMPILED: bool = _functions is not frames_pure

depth_within = _functions.depth_within
frame = _functions.frame
frames = _functions.frames
header = _functions.header
split = _functions.split
