"""All that zComm knows of Redis, Valkey and KeyDB: configuration, snapshots, how they are asked and stopped."""
