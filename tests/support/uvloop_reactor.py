"""A pytest plugin that makes zComm's own reactor the one of the run: ``-p uvloop_reactor --reactor=asyncio``.

It must be loaded with ``-p``: pytest-twisted installs a reactor as soon as it is configured, and finds
that there is one of the asyncio kind already.
"""

from __future__ import annotations

from zcomm.runtime.reactor import install

install()
