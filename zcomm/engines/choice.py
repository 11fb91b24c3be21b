"""The engine that a configuration names."""

from __future__ import annotations

from typing import Any

from zcomm.config import Limits
from zcomm.engines.memory import MemoryEngine
from zcomm.errors import ConfigError
from zcomm.interfaces import IEngine

__all__ = ["engine_from"]


def engine_from(url: str, limits: Limits, reactor: Any, ack: str = "memory") -> IEngine:
    """The engine with that URL.

    :param url: empty for memory; ``service:NAME`` for servers that are named later, once that service runs.
    :param ack: what a message that is acknowledged has survived.
    :raises ConfigError: for a URL that cannot be used, and where a package is missing.
    """
    if not url:
        if ack != "memory":
            raise ConfigError("--ack", f"{ack} is for an engine that others share; name one with --engine")
        # Its time becomes another one later.
        return MemoryEngine(limits.history_memory, lambda: reactor.seconds())
    try:
        from zcomm.engines.redis.engine import RedisEngine
        from zcomm.engines.redis.servers import Settings, settings_from
    except ImportError as error:
        raise ConfigError("--engine", f"{error.name} is not installed: pip install 'zcomm[redis]'") from None
    settings = Settings() if url.startswith("service:") else settings_from(url)
    return RedisEngine(settings, reactor, limits.history_memory, ack)
