"""The hosts that answer the commands which touch data: zComm's own, and the programs that bring a zCLI."""

from zcomm.host.host import Host, HostCrud, HostDispatcher, HostPermissions, schema_of

__all__ = ["Host", "HostCrud", "HostDispatcher", "HostPermissions", "schema_of"]
