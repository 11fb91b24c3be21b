"""Local servers: PostgreSQL, Redis and any that is declared; started, watched, restarted and stopped."""

from __future__ import annotations

from zcomm.services.declaration import Probe, ServiceDeclaration, Settings, StopStep
from zcomm.services.kinds.declared import DeclaredService
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.kinds.redis.service import RedisService
from zcomm.services.manager import ServiceManager
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.servicefile import load_services
from zcomm.services.status import ConnectionInfo, Health, ServiceState, ServiceStatus
from zcomm.services.supervision.environment import ServicesEnvironment

__all__ = [
    "ConnectionInfo",
    "DeclaredService",
    "Health",
    "PostgreSQLService",
    "Probe",
    "RedisService",
    "RestartPolicy",
    "ServiceDeclaration",
    "ServiceManager",
    "ServiceState",
    "ServiceStatus",
    "ServicesEnvironment",
    "Settings",
    "StopStep",
    "load_services",
]
