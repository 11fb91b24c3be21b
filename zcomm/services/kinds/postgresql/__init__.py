"""PostgreSQL as a service: clusters, pid files, its protocol, its log and its stops."""
