"""The kinds of services that zComm knows by name, each in a folder of its own with all that is particular to it."""

from __future__ import annotations

from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.supervision.kind import KnownKind

__all__ = ["KINDS"]

#: A new kind is its folder and its line here; manager, probes, discovery, doctor, command line and help go by it.
KINDS: tuple[type[KnownKind], ...] = (PostgreSQLService, RedisService)
