"""Redis, Valkey and KeyDB as services: configuration, snapshots, probes and stops."""
